"""The hour's light, and the picture in the making that it falls on."""

from __future__ import annotations

from dataclasses import dataclass

from canvas import Canvas, Colour, mix
from latent import Latent


def rgb(code: str) -> Colour:
    """Return RGB 0–1 of six hexadecimal digits."""
    red, green, blue = (int(code[at : at + 2], 16) / 255 for at in (0, 2, 4))
    return red, green, blue


# The sky from the zenith to the horizon.
SKIES = {
    "day": ("3585d0", "7fbdec", "dff1fa"),
    "dawn": ("6d9ad2", "efc3c6", "fde6bd"),
    "sunset": ("3a2f73", "cf5b7c", "fcc878"),
    "night": ("060a20", "14214d", "33508a"),
    "storm": ("39444f", "667480", "a9b2b8"),
}
# What the light makes of every other colour, and how much of it.
LIGHTS = {
    "day": ("ffffff", 0.0),
    "dawn": ("e8a99a", 0.2),
    "sunset": ("5a2a5e", 0.36),
    "night": ("0b1436", 0.62),
    "storm": ("434d58", 0.42),
}


@dataclass
class Scene:
    """A picture in the making. The horizon is a height on the canvas; below 1 there is ground or water."""

    canvas: Canvas
    latent: Latent
    counts: dict[str, int]
    horizon: float

    def lit(self, colour: Colour, far: float = 0.0) -> Colour:
        """Return a colour in the hour's light, seen through `far` (0–1) of haze."""
        code, share = LIGHTS[self.latent.hour]
        return mix(mix(colour, rgb(code), share), rgb(SKIES[self.latent.hour][2]), far)

    def colour(self, thing: str, far: float = 0.0) -> Colour:
        return self.lit(self.latent.colour(thing), far)

    def across(self, thing: str, reach: float = 0.8) -> float:
        """Return the place of a thing as a width on the canvas."""
        return self.canvas.wide * (0.5 + 0.5 * reach * self.latent.place(thing))
