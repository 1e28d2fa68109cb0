"""The sky by the hour, with its lights and clouds, and what falls from it."""

from __future__ import annotations

import numpy as np
from canvas import Canvas, Colour, Floats, dark, light, mix
from light import SKIES, Scene, rgb


def sky(scene: Scene) -> None:
    """Paint the sky and all its lights, the far ones first."""
    canvas, latent = scene.canvas, scene.latent
    top, middle, low = (rgb(code) for code in SKIES[latent.hour])
    canvas.gradient([(0, top), (0.55, middle), (1, low)], bottom=min(scene.horizon + 0.02, 1.0))
    for thing, paint in (("stars", _stars), ("planet", _planets), ("moon", _moon), ("sun", _sun)):
        if latent.shows(thing):
            paint(scene)
    if latent.shows("rainbow"):
        _rainbow(scene)
    if latent.shows("clouds"):
        _clouds(scene)


def _stars(scene: Scene) -> None:
    detail, canvas = scene.latent.detail("stars"), scene.canvas
    for _ in range(int(170 * canvas.wide)):
        x, y = detail.random() * canvas.wide, detail.random() ** 1.2 * min(scene.horizon, 1.0)
        bright = detail.random() ** 3
        if bright > 0.55:
            canvas.glow((x, y), 0.007 * bright, (0.8, 0.88, 1.0), 0.6)
        canvas.circle((x, y), 0.0009 + 0.0019 * bright, mix((0.6, 0.68, 0.9), (1, 1, 0.95), bright))


def _planets(scene: Scene) -> None:
    canvas, colour, size = scene.canvas, scene.latent.colour("planet"), 0.13 * scene.latent.size("planet")
    x, y = scene.across("planet", 0.6), 0.34
    tilt = -0.35
    cos, sin = float(np.cos(tilt)), float(np.sin(tilt))

    def ring(front: bool) -> None:
        for inner, share in ((1.45, 0.2), (1.65, 0.5), (1.85, 0.35)):

            def distance(u: Floats, v: Floats, inner: float = inner) -> Floats:
                a, b = (u - x) * cos + (v - y) * sin, ((v - y) * cos - (u - x) * sin) / 0.28
                edge = np.abs(np.hypot(a, b) - inner * size) - 0.07 * size
                return np.maximum(edge, -b if front else b) * 0.5

            canvas.shape(distance, (x - 2 * size, y - size, x + 2 * size, y + size), light(colour, share))

    canvas.glow((x, y), size * 1.5, colour, 0.35)
    ring(False)
    canvas.circle((x, y), size, light(colour, 0.25), dark(colour, 0.45))
    for band, share in ((-0.45, 0.18), (-0.05, 0.12), (0.35, 0.22)):
        half = size * float(np.sqrt(1 - band * band)) * 0.97
        canvas.line(
            (x - half * cos, y + band * size - half * sin),
            (x + half * cos, y + band * size + half * sin),
            0.1 * size,
            dark(colour, share),
        )
    ring(True)


def _moon(scene: Scene) -> None:
    canvas, colour, size = scene.canvas, scene.latent.colour("moon"), 0.075 * scene.latent.size("moon")
    x, y = scene.across("moon", 0.75), 0.2
    canvas.glow((x, y), size * 2.6, (0.72, 0.8, 1.0), 0.35)
    if scene.latent.shape("moon") < 0.45:
        cut = (x + 0.42 * size, y - 0.22 * size)
        canvas.shape(
            lambda u, v: np.maximum(np.hypot(u - x, v - y) - size, 0.92 * size - np.hypot(u - cut[0], v - cut[1])),
            (x - size, y - size, x + size, y + size),
            colour,
        )
        return
    canvas.circle((x, y), size, colour)
    for dx, dy, part in ((-0.35, -0.2, 0.24), (0.3, 0.25, 0.3), (0.15, -0.5, 0.14), (-0.3, 0.5, 0.12)):
        canvas.circle((x + dx * size, y + dy * size), part * size, dark(colour, 0.13))


def _sun(scene: Scene) -> None:
    canvas, hour, size = scene.canvas, scene.latent.hour, 0.07 * scene.latent.size("sun")
    low = hour in ("sunset", "dawn")
    x, y = scene.across("sun", 0.6), 0.2
    if low:
        y, size = min(scene.horizon, 0.9) - 0.09 - 0.1 * scene.latent.shape("sun"), size * 1.35
    colour = mix(scene.latent.colour("sun"), rgb("ffdf8a"), 0.6 if low else 0.1)
    canvas.glow((x, y), size * 4, rgb("ffb86b") if low else rgb("fff3c4"), 0.55)
    canvas.glow((x, y), size * 1.7, rgb("ffdf9a"), 0.7)
    canvas.circle((x, y), size, light(colour, 0.4), colour)


def _rainbow(scene: Scene) -> None:
    canvas = scene.canvas
    x, y, radius = canvas.wide * 0.5, min(scene.horizon, 0.85) + 0.12, 0.36 * canvas.wide + 0.14
    part = canvas.pixels[: canvas.row(scene.horizon)]
    away = np.hypot(canvas.x - x, canvas.y[: part.shape[0]] - y)
    for band, code in enumerate(("e5484d", "f08c3a", "f5d547", "58b368", "4a90d9", "5b5bc0", "9159b5")):
        ring = np.clip(0.5 - (np.abs(away - radius + 0.016 * band) - 0.0085) * canvas.height, 0, 1)
        part += 0.62 * ring[:, :, None] * (np.array(rgb(code), np.float32) - part)


def _clouds(scene: Scene) -> None:
    detail, latent, canvas = scene.latent.detail("clouds"), scene.latent, scene.canvas
    stormy = latent.hour == "storm"
    count = 6 if stormy else 3 + round(2 * latent.shape("clouds"))
    colour = {"sunset": rgb("f4a58c"), "dawn": rgb("fbdcd2"), "night": rgb("3d4f80"), "storm": rgb("8a949d")}.get(
        latent.hour, latent.colour("clouds")
    )
    for index in range(count):
        x = canvas.wide * ((index + 0.5 + 0.5 * (detail.random() - 0.5)) / count)
        y = (0.1 + 0.24 * detail.random()) * min(scene.horizon / 0.6, 1.3)
        size = (0.05 + 0.035 * detail.random()) * (1.5 if stormy else 1.0)
        _cloud(canvas, x, y, size, mix(colour, dark(colour), 0.25 * detail.random() if stormy else 0), detail)


def _cloud(canvas: Canvas, x: float, y: float, size: float, colour: Colour, detail: np.random.Generator) -> None:
    puffs = [(-1.5, 0.5), (-0.7, 0.85), (0.15, 1.1), (1.0, 0.75), (1.7, 0.42)]
    parts = [(x + at * size, size * part * (0.9 + 0.2 * detail.random())) for at, part in puffs]
    floor = y + 0.35 * size

    def distance(u: Floats, v: Floats) -> Floats:
        away = [np.hypot(u - at, v - floor + 0.62 * radius) - radius for at, radius in parts]
        return np.maximum(np.minimum.reduce(away), (v - floor) * 0.999)

    box = (x - 2.3 * size, y - 1.6 * size, x + 2.4 * size, floor)
    canvas.shape(distance, box, light(colour, 0.45), dark(colour, 0.1))


def weather(scene: Scene) -> None:
    """Rain or snow over everything."""
    canvas, latent = scene.canvas, scene.latent
    if latent.shows("rain"):
        detail = latent.detail("rain")
        for _ in range(int(260 * canvas.wide)):
            x, y, long = detail.random() * canvas.wide * 1.1, detail.random() * 1.05, 0.025 + 0.035 * detail.random()
            canvas.line((x, y - long), (x - 0.25 * long, y), 0.0017, rgb("c4d3df"))
    if latent.shows("snow"):
        detail = latent.detail("snow")
        for _ in range(int(220 * canvas.wide)):
            size = 0.002 + 0.0055 * detail.random() ** 2
            canvas.circle((detail.random() * canvas.wide, detail.random()), size, (0.98, 0.99, 1.0))
