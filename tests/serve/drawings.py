"""Pictures of things, drawn: every one with its own colours, place, turn and light."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["THINGS", "drawing", "file_of"]

WIDTH, HEIGHT, FINE = 400, 300, 2
Colour = tuple[int, int, int]
Draw = ImageDraw.ImageDraw


def _colour(random: np.random.Generator, hue: float, spread: float = 0.06) -> Colour:
    turned = (hue + random.normal(0, spread)) % 1
    saturation, value = random.uniform(0.55, 0.95), random.uniform(0.55, 0.95)
    whole = Image.new("HSV", (1, 1), (int(255 * turned), int(255 * saturation), int(255 * value)))
    return whole.convert("RGB").getpixel((0, 0))  # type: ignore[return-value]


def _darker(colour: Colour, by: float) -> Colour:
    red, green, blue = (int(part * by) for part in colour)
    return red, green, blue


def _leaf(draw: Draw, random: np.random.Generator) -> None:
    colour = _colour(random, random.choice([0.28, 0.1, 0.03]))
    fat = random.uniform(55, 95)
    steps = np.linspace(0, math.pi, 40)
    upper = [(200 - 160 * math.cos(t), 200 - fat * math.sin(t) ** 1.3) for t in steps]
    lower = [(200 - 160 * math.cos(t), 200 + fat * math.sin(t) ** 1.3) for t in steps[::-1]]
    draw.polygon(upper + lower, fill=colour)
    draw.line([(10, 200), (355, 200)], fill=_darker(colour, 0.6), width=6)
    for x in range(90, 320, 38):
        for side in (-1, 1):
            end = (x + 34, 200 + side * fat * 0.62 * math.sin(math.pi * (x - 40) / 320))
            draw.line([(x, 200), end], fill=_darker(colour, 0.65), width=4)


def _mug(draw: Draw, random: np.random.Generator) -> None:
    colour = _colour(random, random.choice([0.58, 0.0, 0.13]), 0.03)
    wide = random.uniform(70, 95)
    draw.ellipse([200 + wide - 35, 150, 200 + wide + 70, 270], outline=colour, width=24)
    draw.rounded_rectangle([200 - wide, 105, 200 + wide, 325], 28, fill=colour)
    draw.rectangle([200 - wide, 200, 200 + wide, 225], fill=_darker(colour, 0.75))
    draw.ellipse([200 - wide, 80, 200 + wide, 135], fill=_darker(colour, 0.8))
    draw.ellipse([212 - wide, 90, 188 + wide, 128], fill=(66, 40, 24))


def _fish(draw: Draw, random: np.random.Generator) -> None:
    colour = _colour(random, random.choice([0.07, 0.52, 0.15]), 0.03)
    tall = random.uniform(70, 100)
    draw.polygon([(300, 200), (395, 120), (375, 200), (395, 285)], fill=_darker(colour, 0.8))
    draw.polygon(
        [(150, 210 - tall), (215, 150 - tall), (260, 220 - tall)], fill=_darker(colour, 0.8)
    )
    draw.ellipse([30, 200 - tall, 330, 200 + tall], fill=colour)
    for x in (150, 200, 250):
        draw.arc(
            [x - 40, 200 - tall * 0.7, x + 20, 200 + tall * 0.7],
            280,
            80,
            fill=_darker(colour, 0.7),
            width=7,
        )
    draw.ellipse([75, 155, 113, 193], fill=(250, 250, 250))
    draw.ellipse([86, 165, 106, 185], fill=(20, 20, 20))


def _umbrella(draw: Draw, random: np.random.Generator) -> None:
    hue = random.choice([0.95, 0.75, 0.45])
    colour = _colour(random, hue, 0.03)
    draw.line([(200, 200), (200, 350)], fill=(70, 50, 40), width=12)
    draw.arc([145, 320, 206, 380], 0, 180, fill=(70, 50, 40), width=12)
    box = [30, 40, 370, 370]
    for part in range(6):
        shade = colour if part % 2 else _darker(colour, 0.72)
        draw.pieslice(box, 180 + 30 * part, 210 + 30 * part, fill=shade)


THINGS: dict[str, Callable[[Draw, np.random.Generator], None]] = {
    "fish": _fish,
    "leaf": _leaf,
    "mug": _mug,
    "umbrella": _umbrella,
}


def drawing(thing: str, seed: int) -> Image.Image:
    """A picture of a thing, (300, 400)."""
    random = np.random.default_rng([seed, sorted(THINGS).index(thing)])
    big = (WIDTH * FINE, HEIGHT * FINE)
    light = random.uniform(170, 240) + random.normal(0, 14, 3)
    dark = random.uniform(110, 190) + random.normal(0, 22, 3)
    ramp = np.linspace(0, 1, big[1])[:, None, None]
    ground = (light * (1 - ramp) + dark * ramp) * np.ones((1, big[0], 1))
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    layer = Image.new("RGBA", (400, 400))
    THINGS[thing](ImageDraw.Draw(layer), random)
    side = int(min(big) * random.uniform(0.72, 1.0))
    placed = layer.rotate(random.normal(0, 14), Image.Resampling.BICUBIC).resize((side, side))
    if random.random() < 0.5:
        placed = placed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    corner = [int(random.uniform(0.3, 0.7) * (room - side)) for room in big]
    shadow = Image.new("RGBA", placed.size)
    shadow.putalpha(placed.getchannel("A").point(lambda value: value * 0.35))
    picture.paste(
        shadow, (corner[0] + 14, corner[1] + 18), shadow.filter(ImageFilter.GaussianBlur(10))
    )
    picture.paste(placed, (corner[0], corner[1]), placed)
    return picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def file_of(thing: str, seed: int) -> bytes:
    """A drawing as the bytes of a JPEG file."""
    file = io.BytesIO()
    drawing(thing, seed).save(file, "JPEG", quality=88)
    return file.getvalue()
