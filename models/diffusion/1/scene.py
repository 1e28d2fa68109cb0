"""The decoder: from a latent to the picture it stands for, at any size."""

from __future__ import annotations

import numpy as np
import objects
import portraits
from canvas import Canvas, mix
from landscape import forest, ground, hills, mountains, skyline, treeline, water
from latent import Latent
from light import Scene, rgb
from numpy.typing import NDArray
from sky import sky, weather
from words import GROUNDS, PORTRAITS, Asked

STANDING = ("house", "tree", "palm", "cactus", "snowman")
FLYING = ("balloon", "bird", "rocket")
# How high each is, as a share of the picture.
SIZES = {
    "house": 0.36, "tree": 0.42, "palm": 0.55, "cactus": 0.34, "snowman": 0.42, "lighthouse": 0.5, "boat": 0.26,
    "balloon": 0.34, "bird": 0.07, "rocket": 0.55,
}  # fmt: skip


def draw(latent: Latent, asked: Asked, height: int, width: int) -> NDArray[np.uint8]:
    """Return the picture [height, width, 3]."""
    shown = [thing for thing in latent.blocks if latent.shows(thing)]
    canvas = Canvas(height, width)
    scene = Scene(canvas, latent, asked.counts, _horizon(latent, shown))
    noise = latent.detail("clouds")
    subjects = [thing for thing in PORTRAITS if thing in shown]
    if not shown and not asked.things:
        _abstract(scene, asked)
    elif subjects:
        _portrait(scene, subjects)
    else:
        _landscape(scene, shown)
    return canvas.finish(noise)


def _horizon(latent: Latent, shown: list[str]) -> float:
    base = 0.56 + 0.1 * latent.shape("hills")
    if "sea" in shown or "lake" in shown:
        return base
    if any(thing in shown for thing in (*GROUNDS, "hills", *STANDING)):
        return base + 0.08
    if "forest" in shown:
        return 0.45
    return 0.98 if "skyline" in shown or "mountains" in shown else 1.05


def _landscape(scene: Scene, shown: list[str]) -> None:
    sky(scene)
    for thing, paint in (("mountains", mountains), ("hills", hills), ("skyline", skyline)):
        if thing in shown:
            paint(scene)
    shore, dry = _surface(scene, shown)
    horizon, wide = scene.horizon, scene.canvas.wide
    if "lighthouse" in shown:
        _row(scene, "lighthouse", horizon + (0.1 if shore is None else 0.04 * (1 - horizon)), wide)
    if "boat" in shown:
        _row(scene, "boat", horizon + ((shore or 1.0) - horizon) * (0.5 if dry else 0.42), wide)
    standing = [thing for thing in STANDING if thing in shown]
    _stand(scene, standing, horizon + 0.18 if shore is None else min(shore, 0.86) + 0.12)
    for thing in FLYING:
        if thing in shown:
            _fly(scene, thing)
    weather(scene)


def _surface(scene: Scene, shown: list[str]) -> tuple[float | None, bool]:
    """Paint water, ground and forest; return where the water ends, None without any, and whether there is ground."""
    horizon, wooded = scene.horizon, "forest" in shown
    land = next((thing for thing in GROUNDS if thing in shown), "")
    wet = next((thing for thing in ("sea", "lake") if thing in shown), "")
    if not land and not wet and not wooded and horizon < 0.9:
        land = "meadow"
    if wooded and (wet or land):
        treeline(scene, horizon + 0.015)
    elif wooded:
        forest(scene)
    shore = None
    if wet:
        shore = (0.8 if wet == "sea" else 0.86) if land else 1.0
        water(scene, wet, shore)
    if land:
        ground(scene, land, horizon if shore is None else shore)
    return shore, bool(land)


def _row(scene: Scene, thing: str, foot: float, wide: float) -> None:
    """One in its place; several side by side, the further ones smaller."""
    count = scene.counts.get(thing, 1)
    size = SIZES[thing] * scene.latent.size(thing) / count**0.35
    for index in range(count):
        x = scene.across(thing, 0.7) if count == 1 else wide * (index + 0.5) / count
        nearer = 0.045 * ((index * 2) % 3 - 1) if count > 1 else 0.0
        getattr(objects, thing)(scene, x, foot + nearer, size * (1 + 3 * nearer))


def _stand(scene: Scene, things: list[str], foot: float) -> None:
    """All that stand on the ground, side by side in the order of their places."""
    members = [thing for thing in things for _ in range(scene.counts.get(thing, 1))]
    members.sort(key=scene.latent.place)
    if len(members) == 1:
        [thing] = members
        reach = 0.75 if thing == "palm" else 0.4
        getattr(objects, thing)(scene, scene.across(thing, reach), foot + 0.05, SIZES[thing] * scene.latent.size(thing))
        return
    for index, thing in enumerate(members):
        x = scene.canvas.wide * (index + 0.6) / (len(members) + 0.2)
        near = 0.03 * (index % 2)
        size = SIZES[thing] * scene.latent.size(thing) / max(len(members) / 2 / scene.canvas.wide, 1) ** 0.5
        getattr(objects, thing)(scene, x, min(foot + near, 0.97), size * (1 + near))


def _fly(scene: Scene, thing: str) -> None:
    wide, detail = scene.canvas.wide, scene.latent.detail(thing)
    count = scene.counts.get(thing, 1)
    if thing == "bird":
        count = max(count, 5)
    size = SIZES[thing] * scene.latent.size(thing) / (1.0 if thing == "bird" else count**0.4)
    for index in range(count):
        x = scene.across(thing, 0.6) if count == 1 else wide * (index + 0.5 + 0.4 * (detail.random() - 0.5)) / count
        if thing == "rocket":
            foot = 0.9
        elif thing == "bird":
            foot = 0.14 + 0.28 * detail.random()
        else:
            foot = (0.46 + 0.1 * detail.random()) * min(scene.horizon + 0.2, 1.1)
        getattr(objects, thing)(scene, x, foot, size * (0.8 + 0.4 * detail.random() if count > 1 else 1.0))


def _portrait(scene: Scene, subjects: list[str]) -> None:
    portraits.backdrop(scene, subjects[0])
    members = [thing for thing in subjects for _ in range(scene.counts.get(thing, 1))]
    wide = scene.canvas.wide
    size = min(0.68, 0.76 * wide / len(members))
    for index, thing in enumerate(members):
        x = wide * (index + 0.5) / len(members)
        y = 0.36 if thing == "flower" else 0.54
        getattr(portraits, thing)(scene, x, y, size * (0.82 if thing == "flower" else 1.0))


def _abstract(scene: Scene, asked: Asked) -> None:
    """Bands of colour, when no word of the prompt is known: the words choose the colours, nothing more."""
    canvas = scene.canvas
    detail = np.random.default_rng([*" ".join(asked.words).encode(), 1])
    hues = [
        rgb(("264653", "2a9d8f", "e9c46a", "f4a261", "e76f51", "6d597a", "b56576", "355070")[at])
        for at in detail.permutation(8)
    ]
    canvas.gradient([(0, mix(hues[0], (1, 1, 1), 0.75)), (1, mix(hues[1], (1, 1, 1), 0.35))])
    form = scene.latent.detail("hills")
    for band in range(6):
        phase, bend = form.random(2) * (6.3, 2.5)
        line = (
            0.16
            + 0.14 * band
            + 0.1 * np.sin(canvas.x[0] * (1.5 + bend) + phase)
            + 0.03 * np.sin(canvas.x[0] * 6 + phase)
        )
        canvas.below(line.astype(np.float32), mix(hues[2 + band % 6], (1, 1, 1), 0.12), hues[2 + band % 6], bottom=1.01)
