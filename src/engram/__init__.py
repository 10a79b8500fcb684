"""Class-incremental image classification under a memory bounded in bytes."""
