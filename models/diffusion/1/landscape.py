"""What lies under the sky: mountains, hills, forest, city, water and ground."""

from __future__ import annotations

import numpy as np
from canvas import Canvas, Colour, Floats, dark, light, mix
from light import SKIES, Scene, rgb
from numpy.typing import NDArray


def ridge(
    canvas: Canvas, detail: np.random.Generator, height: float, rough: float, octaves: int = 6, base: float = 1.6
) -> Floats:
    """Return a line like a mountain's, one value for each column, around 0 and about `height` high."""
    x = canvas.x[0]
    line = np.zeros_like(x)
    for octave in range(octaves):
        frequency, phase = base * 2.03**octave, detail.random() * 100
        at = x * frequency + phase
        knots = detail.random(int(frequency * canvas.wide + 4)).astype(np.float32)
        line += np.interp(at - np.floor(at[0]), np.arange(len(knots)), knots - 0.5) * rough**octave
    return (line * height).astype(np.float32)


def mountains(scene: Scene) -> None:
    """Two ranges of peaks, snow on the far and higher one."""
    detail, canvas = scene.latent.detail("mountains"), scene.canvas
    height = 0.4 * scene.latent.size("mountains")
    for layer, far in enumerate((0.28, 0.06)):
        tall = height * (1.0 - 0.42 * layer)
        line, shaded = _peaks(canvas, detail, scene.horizon, tall, 3 + 2 * layer)
        colour = scene.colour("mountains", far)
        foot = scene.colour("mountains", far + 0.4)
        canvas.below(line, colour, foot, bottom=min(scene.horizon + 0.02, 1.0))
        shade = np.where(shaded, line, np.float32(2.0))
        canvas.below(shade, dark(colour, 0.26), dark(foot, 0.1), bottom=min(scene.horizon + 0.02, 1.0))
        if layer == 0:
            _snowcap(scene, line, shaded, detail, scene.horizon - 0.62 * tall)


def _peaks(
    canvas: Canvas, detail: np.random.Generator, foot: float, tall: float, count: int
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the line of a range, and in which columns it lies in shade."""
    x = canvas.x[0]
    tops = [canvas.wide * (index + 0.25 + 0.5 * detail.random()) / count for index in range(count)]
    highs = [foot - tall * (0.7 + 0.45 * detail.random()) for _ in tops]
    slopes = np.stack(
        [high + np.abs(x - top) * (0.62 + 0.3 * detail.random()) for top, high in zip(tops, highs, strict=True)]
    )
    nearest = slopes.argmin(axis=0)
    rough = ridge(canvas, detail, 0.05, 0.52, base=7)
    shaded = x + ridge(canvas, detail, 0.05, 0.6, base=14) > np.array(tops, np.float32)[nearest]
    return (slopes.min(axis=0) + rough).astype(np.float32), shaded


def _snowcap(scene: Scene, line: Floats, shaded: NDArray[np.bool_], detail: np.random.Generator, limit: float) -> None:
    canvas = scene.canvas
    edge = limit + ridge(canvas, detail, 0.09, 0.75, base=11)
    white = scene.lit((0.97, 0.98, 1.0), 0.05)
    tones = np.where(shaded[:, None], np.array(dark(white, 0.2), np.float32), np.array(white, np.float32))
    rows = slice(
        max(int(line.min() * canvas.height) - 2, 0), max(int(min(edge.max() * canvas.height + 3, canvas.height)), 0)
    )
    y, part = canvas.y[rows], canvas.pixels[rows]
    cover = np.clip((y - line) * canvas.height + 0.5, 0, 1) * np.clip((edge - y) * canvas.height + 0.5, 0, 1)
    part += cover[:, :, None] * (tones[None] - part)


def hills(scene: Scene) -> None:
    detail, canvas = scene.latent.detail("hills"), scene.canvas
    for layer, far in enumerate((0.45, 0.2)):
        colour = scene.colour("hills", far)
        line = scene.horizon - 0.07 + 0.05 * layer + ridge(canvas, detail, 0.12, 0.3, octaves=2, base=1.3)
        smooth = np.convolve(np.pad(line, 40, "edge"), np.ones(81) / 81, "valid").astype(np.float32)
        canvas.below(smooth, light(colour, 0.12), dark(colour, 0.06), bottom=min(scene.horizon + 0.02, 1.0))


def treeline(scene: Scene, foot: float) -> None:
    """Two rows of firs far off, standing at `foot`."""
    for size, far in ((0.12, 0.35), (0.15, 0.1)):
        _firs(scene, foot, size * scene.latent.size("forest"), far)


def forest(scene: Scene) -> None:
    """Four rows of firs, the far ones in mist, down to the lower edge."""
    canvas = scene.canvas
    canvas.below(np.full(canvas.width, scene.horizon, np.float32), scene.colour("forest", 0.6), bottom=1.01)
    for foot, size, far in ((0.52, 0.2, 0.6), (0.66, 0.3, 0.38), (0.84, 0.42, 0.18), (1.08, 0.6, 0.0)):
        tone = scene.colour("forest", far)
        _firs(scene, foot, size * scene.latent.size("forest"), far)
        canvas.below(np.full(canvas.width, foot - 0.02, np.float32), tone, dark(tone, 0.1), bottom=1.01)
        canvas.veil(scene.lit(rgb("f2f5ee"), 0.5), foot - 0.16, foot, 0.6 * far)


def _firs(scene: Scene, foot: float, size: float, far: float) -> None:
    canvas, detail = scene.canvas, scene.latent.detail("forest")
    colour, x = scene.colour("forest", far), -0.2 * detail.random()
    while x < canvas.wide + 0.2:
        tall = size * (0.75 + 0.5 * detail.random())
        fir(canvas, x, foot + 0.01 * detail.random(), tall, mix(colour, light(colour), 0.3 * detail.random()))
        x += tall * (0.26 + 0.2 * detail.random())


def fir(canvas: Canvas, x: float, foot: float, tall: float, colour: Colour) -> None:
    """A fir of three skirts standing at (x, foot)."""
    canvas.box(x - 0.03 * tall, foot - 0.12 * tall, x + 0.03 * tall, foot, dark(rgb("6a4a34"), 0.3))
    for top, bottom, half in ((0.45, 0.08, 0.24), (0.72, 0.3, 0.19), (1.0, 0.55, 0.13)):
        points = [
            (x, foot - top * tall),
            (x + half * tall, foot - bottom * tall),
            (x - half * tall, foot - bottom * tall),
        ]
        canvas.polygon(points, light(colour, 0.14), dark(colour, 0.12))


def skyline(scene: Scene) -> None:
    """Two rows of towers with windows, lit when it is dark."""
    detail, canvas, hour = scene.latent.detail("skyline"), scene.canvas, scene.latent.hour
    glowing = hour in ("night", "sunset", "storm")
    foot = min(scene.horizon + 0.03, 1.0)
    for layer, far in enumerate((0.45, 0.0)):
        x = -0.02
        while x < canvas.wide:
            wide = 0.05 + 0.06 * detail.random()
            middle = 1 - abs(2 * x / canvas.wide - 1) ** 2
            tall = (
                0.1 + 0.16 * detail.random() + 0.2 * middle * detail.random() + 0.1 * (1 - layer)
            ) * scene.latent.size("skyline")
            tone = scene.colour("skyline", far)
            colour = mix(dark(tone, 0.2), light(tone), 0.45 * detail.random())
            canvas.box(x, foot - tall, x + wide, foot, colour, mix(colour, scene.lit(rgb("c9d4de"), far), 0.25))
            if detail.random() < 0.3:
                canvas.line((x + wide / 2, foot - tall), (x + wide / 2, foot - tall - 0.05), 0.003, colour)
            _windows(canvas, detail, (x, foot - tall, x + wide, foot), colour, glowing, layer)
            x += wide + (0.006 * detail.random() if layer else -0.01)


def _windows(
    canvas: Canvas,
    detail: np.random.Generator,
    wall: tuple[float, float, float, float],
    colour: Colour,
    glowing: bool,
    layer: int,
) -> None:
    left, top, right, bottom = wall
    gap, pane = 0.017, 0.0085
    columns = max(int((right - left - 0.008) / gap), 1)
    margin = (right - left - (columns - 1) * gap - pane) / 2
    for row in range(int((bottom - top - 0.014) / 0.02)):
        for column in range(columns):
            lit = detail.random() < (0.5 if glowing else 0.0)
            x, y = left + margin + column * gap, top + 0.013 + row * 0.02
            glass = (
                mix(rgb("ffd98a"), colour, 0.45 * (1 - layer))
                if lit
                else mix(colour, rgb("bcd3e6"), 0.12 if glowing else 0.4)
            )
            canvas.box(x, y, x + pane, y + 0.011, glass)


def water(scene: Scene, thing: str, shore: float) -> None:
    """Water from the horizon down to `shore`: a lake mirrors what stands behind it, the sea has waves; both glitter."""
    canvas, detail = scene.canvas, scene.latent.detail(thing)
    colour = scene.colour(thing)
    # The ground before it has a wavy edge.
    shore += 0.06
    first, last = canvas.row(scene.horizon), canvas.row(shore)
    if last <= first:
        return
    mirror = canvas.pixels[np.clip(2 * first - np.arange(first, last) - 1, 0, None)] if thing == "lake" else None
    canvas.gradient(
        [(0, mix(light(colour, 0.35), rgb(SKIES[scene.latent.hour][2]), 0.45)), (0.35, colour), (1, dark(colour, 0.3))],
        scene.horizon,
        shore,
    )
    if mirror is not None:
        wave = (
            0.004
            * np.sin(canvas.y[first:last, 0] * 260)
            * (canvas.y[first:last, 0] - scene.horizon)
            * 8
            * canvas.height
        ).astype(int)
        for row in range(last - first):
            canvas.pixels[first + row] += 0.62 * (np.roll(mirror[row], wave[row], axis=0) - canvas.pixels[first + row])
    for _ in range(int(90 * canvas.wide)):
        near = detail.random() ** 1.3
        y = scene.horizon + 0.008 + (shore - scene.horizon) * near
        long, x = 0.02 + 0.09 * near * detail.random(), detail.random() * canvas.wide
        under = canvas.pixels[
            min(int(y * canvas.height), canvas.height - 1), min(int(x * canvas.height), canvas.width - 1)
        ]
        tone = (float(under[0]), float(under[1]), float(under[2]))
        canvas.ellipse((x, y), (long, 0.0012 + 0.0024 * near), light(tone, 0.28 if thing == "sea" else 0.1))
    for lamp, tint in (("sun", "ffe3a6"), ("moon", "dfe8ff")):
        if scene.latent.shows(lamp):
            _glitter(scene, scene.across(lamp, 0.6 if lamp == "sun" else 0.75), shore, rgb(tint), detail)


def _glitter(scene: Scene, x: float, shore: float, colour: Colour, detail: np.random.Generator) -> None:
    canvas = scene.canvas
    for step in range(46):
        near = step / 46
        y = scene.horizon + 0.006 + (shore - scene.horizon - 0.01) * near**1.2
        aside = (0.02 + 0.05 * near) * (detail.random() - 0.5) * 2
        canvas.ellipse((x + aside, y), (0.012 + 0.035 * detail.random() * (0.4 + near), 0.0016 + 0.0022 * near), colour)


def ground(scene: Scene, thing: str, top: float) -> None:
    """A meadow, snow, dunes or a beach from `top` to the lower edge."""
    canvas, detail = scene.canvas, scene.latent.detail(thing)
    colour = scene.lit((0.93, 0.95, 0.98)) if thing == "snowfield" else scene.colour(thing)
    wavy = {"meadow": 0.03, "snowfield": 0.05, "desert": 0.11, "beach": 0.035}[thing]
    layers = 1 if thing == "beach" else 3
    if thing != "beach":
        canvas.below(np.full(canvas.width, top, np.float32), light(colour, 0.16), bottom=1.01)
    for layer in range(layers):
        line = top + layer * 0.11 + wavy * np.sin(canvas.x[0] * (2.2 + detail.random() * 2) + detail.random() * 6)
        if thing == "desert":
            line = (
                top
                + layer * 0.11
                - 0.08 * np.abs(((canvas.x[0] * (0.9 + detail.random()) + detail.random()) % 1.0) - 0.5)
            )
        line = line.astype(np.float32)
        tone = mix(light(colour, 0.16), dark(colour, 0.06), layer / 3)
        if thing == "beach":
            canvas.below(line - 0.016, scene.lit((0.97, 0.99, 1.0)), bottom=1.01)
            canvas.below(line - 0.007, dark(colour, 0.16), bottom=1.01)
        canvas.below(line, tone, dark(tone, 0.1), bottom=1.01)
    if thing == "meadow":
        _blades(scene, top, colour, detail)


def _blades(scene: Scene, top: float, colour: Colour, detail: np.random.Generator) -> None:
    canvas = scene.canvas
    for _ in range(int(240 * canvas.wide)):
        near = detail.random()
        x, y = detail.random() * canvas.wide, top + 0.06 + (1 - top) * near
        tall = 0.008 + 0.018 * near
        canvas.line(
            (x, y),
            (x + (detail.random() - 0.5) * tall, y - tall),
            0.0018,
            mix(dark(colour, 0.12), light(colour), detail.random()),
        )
        if detail.random() < 0.1:
            bloom = (rgb("f7e36b"), rgb("f5f3ee"), rgb("ec8fb0"))[detail.integers(3)]
            canvas.circle((x, y - tall), 0.0025 + 0.004 * near, scene.lit(bloom))
