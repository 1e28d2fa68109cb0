"""The latent: a block of eight numbers for each thing, and the mixture of Gaussians that a prompt makes of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from sampler import Floats, Mixture
from words import HOURS, NAMES, Asked, likelihoods

# presence, place (−1 left, 1 right), size, shape, detail, red, green, blue; of the hour: how much it is each of HOURS.
DIMS = 8
# How far each number may lie from its mode: colours little, form and detail much.
SPREAD = np.array([0.2, 0.3, 0.8, 0.9, 1.0, 0.1, 0.1, 0.1])
# How likely a thing is in a picture about which nothing is said.
PRIOR = 0.3
SURE = 1e-3
THINGS = [name for name in NAMES if name not in HOURS]
# Colours stand in the latent as (value − 0.5) · CONTRAST.
CONTRAST = 3.0
PLACES = (-0.55, 0.55)

# Three natural colours of each thing that has a colour of its own.
NATURAL = {
    "house": ("d9694f", "e9d3a4", "7fa7c4"),
    "boat": ("c8433a", "2f6fa8", "f0ead8"),
    "tree": ("4c8f4a", "6aa84f", "3d7a55"),
    "palm": ("3f8f55", "4fa05a", "2f7d4f"),
    "balloon": ("e2574c", "f2b63c", "5a8fd6"),
    "flower": ("e4577f", "f2b134", "b86bd0"),
    "cat": ("e2934a", "8b8d94", "4a4650"),
    "fish": ("f08a3c", "4fa3d9", "e5b93c"),
    "heart": ("e0364f", "ea5a72", "d02850"),
    "rocket": ("e2483d", "e8e6df", "4f7fd0"),
    "planet": ("d9a860", "c77b58", "7f9fd0"),
    "lighthouse": ("d8453c", "c8403c", "2f5f9f"),
    "mountains": ("6f86a3", "7c84a6", "5f8092"),
    "skyline": ("4f6a8c", "5c6784", "3f6072"),
    "sea": ("2f83a8", "1f77a0", "3a94a8"),
    "lake": ("4f8fb0", "3f86a0", "5a96b8"),
    "beach": ("ecd9a8", "f0dcb4", "e6cf9c"),
    "desert": ("e0a95f", "e6b870", "d89a58"),
    "cactus": ("4f8f5a", "5a9a58", "458a64"),
    "forest": ("2f6b4c", "3a7550", "28604e"),
    "meadow": ("7db352", "8cbc58", "6ba64f"),
    "hills": ("7fae62", "8ab56a", "6fa060"),
    "sun": ("fff0b8", "ffe9a0", "fff3cc"),
    "moon": ("f6f1dc", "f3ead0", "fbf6e6"),
    "clouds": ("ffffff", "fdfaf6", "f6f8fc"),
}
PLAIN = ("f4f6fa", "f4f6fa", "f4f6fa")


@dataclass(frozen=True)
class Latent:
    """What the picture is to show, read from a latent: `blocks` by thing, the `hour`."""

    blocks: dict[str, Floats]
    hour: str

    def shows(self, thing: str) -> bool:
        return bool(self.blocks[thing][0] > 0)

    def colour(self, thing: str) -> tuple[float, float, float]:
        """Return RGB 0–1."""
        red, green, blue = np.clip(self.blocks[thing][5:8] / CONTRAST + 0.5, 0, 1)
        return float(red), float(green), float(blue)

    def place(self, thing: str) -> float:
        """Return where it stands, −1 (left) to 1 (right)."""
        return float(np.clip(self.blocks[thing][1], -1, 1))

    def shape(self, thing: str) -> float:
        """Return 0–1: what kind of its kind it is."""
        return float(0.5 + 0.5 * np.tanh(self.blocks[thing][3]))

    def size(self, thing: str) -> float:
        """Return about 0.8–1.25."""
        return float(np.exp(0.2 * np.tanh(self.blocks[thing][2])))

    def detail(self, thing: str) -> np.random.Generator:
        """Return the source of what is too small for the latent: which windows are lit, where each star stands."""
        return np.random.default_rng(abs(int(self.blocks[thing][4] * 1e9)))


def mixture(asked: Asked, unwanted: Asked) -> Mixture:
    """Return the distribution of the pictures of what was asked; what is also unwanted is left to guidance."""
    likely = likelihoods(asked)
    likely |= {thing: min(likely[thing], 0.5) for thing in unwanted.things}
    return _mixture(likely, asked, [likely[hour] for hour in HOURS])


def opposite(asked: Asked, unwanted: Asked) -> Mixture:
    """Return the distribution from which guidance leads away: anything at all, and what the negative prompt names."""
    likely = {thing: 1.0 if thing in unwanted.things else PRIOR for thing in THINGS}
    # The colours are those asked for: led away from the natural ones, they would turn garish.
    return _mixture(likely, asked, [1.0 if hour in unwanted.things else 0.2 for hour in HOURS])


def read(latent: Floats) -> Latent:
    """Return the reading of a latent [blocks, DIMS]."""
    blocks = dict(zip(THINGS, latent[1:], strict=True))
    return Latent(blocks, HOURS[int(np.argmax(latent[0][: len(HOURS)]))])


def _mixture(likely: dict[str, float], asked: Asked, hours: list[float]) -> Mixture:
    modes = 2 * len(PLACES) * 3
    means = np.zeros((1 + len(THINGS), modes, DIMS))
    weights = np.full((1 + len(THINGS), modes), SURE / modes)
    means[0, :, : len(HOURS)] = -1.0
    for index in range(len(HOURS)):
        means[0, index, index] = 1.0
    weights[0, len(HOURS) :] = 0.0
    weights[0, : len(HOURS)] += hours
    for row, thing in enumerate(THINGS, start=1):
        colours = _palette(asked, thing)
        for mode, (shown, place, colour) in enumerate(itertools.product((1, -1), PLACES, colours)):
            means[row, mode] = [shown, place, 0, 0, 0, *colour]
            weights[row, mode] += likely[thing] if shown == 1 else 1 - likely[thing]
    weights /= weights.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        return Mixture(means, np.log(weights), SPREAD)


def _palette(asked: Asked, thing: str) -> list[Floats]:
    if thing in asked.colours:
        colours = [np.array(asked.colours[thing])] * 3
    else:
        codes = NATURAL.get(thing, PLAIN)
        colours = [np.array([int(code[at : at + 2], 16) / 255 for at in (0, 2, 4)]) for code in codes]
    return [(colour - 0.5) * CONTRAST for colour in colours]
