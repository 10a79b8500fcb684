"""The server: a page for people who have pictures, and REST for programs."""
