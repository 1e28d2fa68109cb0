"""Things that stand, float or fly: each is drawn around a foot or a centre, `size` high."""

from __future__ import annotations

import numpy as np
from canvas import Canvas, Colour, Floats, dark, light, mix
from light import Scene, rgb

WOOD = rgb("7a5238")
GLASS = rgb("bfe0ee")
LAMP = rgb("ffd884")


def house(scene: Scene, x: float, foot: float, size: float) -> None:
    """Walls in the asked colour, a roof with a chimney, a door and two windows, lit at night."""
    canvas, colour = scene.canvas, scene.colour("house")
    roof = scene.lit(rgb("5a4650") if sum(scene.latent.colour("house")) > 1.1 else rgb("b8bcc4"))
    pane = LAMP if scene.latent.hour in ("night", "sunset", "storm") else scene.lit(GLASS)
    half, eaves = 0.55 * size, foot - 0.55 * size
    canvas.ellipse((x, foot), (half * 1.25, 0.035 * size), dark(scene.lit(rgb("5c8a48")), 0.35))
    canvas.box(x + 0.22 * size, foot - 1.02 * size, x + 0.36 * size, foot - 0.7 * size, scene.lit(rgb("8a4a40")))
    canvas.box(x - half, eaves, x + half, foot, light(colour, 0.12), dark(colour, 0.14))
    canvas.polygon([(x - half, eaves), (x + half, eaves), (x, foot - 0.98 * size)], colour, dark(colour, 0.1))
    slope = [(x - half * 1.16, eaves + 0.04 * size), (x, foot - 1.05 * size), (x + half * 1.16, eaves + 0.04 * size)]
    for start, end in zip(slope[:-1], slope[1:], strict=True):
        canvas.line(start, end, 0.085 * size, roof)
    door = dark(scene.lit(WOOD), 0.2)
    canvas.box(x - 0.1 * size, foot - 0.36 * size, x + 0.1 * size, foot, door)
    canvas.circle((x + 0.06 * size, foot - 0.17 * size), 0.014 * size, LAMP)
    frame = scene.lit((0.97, 0.96, 0.92))
    for side in (-1, 1):
        wx, wy, pw = x + side * 0.33 * size, foot - 0.3 * size, 0.1 * size
        canvas.box(wx - pw * 1.18, wy - pw * 1.18, wx + pw * 1.18, wy + pw * 1.18, frame)
        canvas.box(wx - pw, wy - pw, wx + pw, wy + pw, pane)
        canvas.line((wx - pw, wy), (wx + pw, wy), 0.02 * size, frame)
        canvas.line((wx, wy - pw), (wx, wy + pw), 0.02 * size, frame)
    canvas.circle((x, foot - 0.68 * size), 0.075 * size, frame)
    canvas.circle((x, foot - 0.68 * size), 0.055 * size, pane)


def tree(scene: Scene, x: float, foot: float, size: float) -> None:
    """A trunk with boughs, and a crown of leaves lit from above."""
    canvas, colour, detail = scene.canvas, scene.colour("tree"), scene.latent.detail("tree")
    trunk = dark(scene.lit(WOOD), 0.12)
    canvas.ellipse((x, foot), (0.3 * size, 0.025 * size), dark(scene.lit(rgb("5c8a48")), 0.35))
    canvas.polygon(
        [
            (x - 0.055 * size, foot),
            (x + 0.055 * size, foot),
            (x + 0.03 * size, foot - 0.6 * size),
            (x - 0.03 * size, foot - 0.6 * size),
        ],
        trunk,
    )
    for side in (-1, 1):
        canvas.line((x, foot - 0.38 * size), (x + side * 0.14 * size, foot - 0.58 * size), 0.035 * size, trunk)
    crown = [(0.0, 0.78, 0.25), (-0.2, 0.62, 0.2), (0.2, 0.62, 0.2), (-0.1, 0.88, 0.17), (0.13, 0.86, 0.17)]
    for part, (shade, lift, scale) in enumerate(((-0.18, 0.0, 1.0), (0.0, 0.025, 0.86), (0.16, 0.06, 0.6))):
        tone = dark(colour, -shade) if shade < 0 else light(colour, shade)
        for at, up, radius in crown[: 5 - (part == 2) * 1]:
            shift = 0.02 * size * (detail.random() - 0.5)
            canvas.circle(
                (x + at * size - 0.02 * size * part + shift, foot - (up + lift) * size), radius * scale * size, tone
            )


def palm(scene: Scene, x: float, foot: float, size: float) -> None:
    """A bent trunk and seven fronds."""
    canvas, colour = scene.canvas, scene.colour("palm")
    lean = 0.22 if scene.latent.place("palm") < 0 else -0.22
    steps = np.linspace(0, 1, 14)
    path = [(x + lean * size * float(s) ** 1.8, foot - 0.78 * size * float(s)) for s in steps]
    trunk = scene.lit(rgb("9a7048"))
    for index, (start, end) in enumerate(zip(path[:-1], path[1:], strict=True)):
        canvas.line(start, end, size * (0.06 - 0.0022 * index), trunk if index % 2 else dark(trunk, 0.14))
    top = path[-1]
    for index, angle in enumerate((-2.95, -2.35, -1.85, -1.3, -0.8, -0.2, 2.9)):
        _frond(canvas, top, angle, 0.42 * size, dark(colour, 0.14) if index % 2 else light(colour, 0.1))
    for at in (-0.02, 0.025):
        canvas.circle((top[0] + at * size, top[1] + 0.035 * size), 0.026 * size, dark(trunk, 0.35))


def _frond(canvas: Canvas, root: tuple[float, float], angle: float, long: float, colour: Colour) -> None:
    upper, lower = [], []
    for share in np.linspace(0, 1, 12):
        s = float(share)
        x = root[0] + long * s * float(np.cos(angle))
        y = root[1] + long * s * float(np.sin(angle)) + 0.55 * long * s * s
        thick = 0.14 * long * float(np.sin(np.pi * min(s * 0.9 + 0.08, 1)))
        upper.append((x, y - thick * 0.4))
        lower.append((x, y + thick * (0.75 + 0.35 * (int(s * 11) % 2))))
    canvas.polygon([*upper, *reversed(lower)], colour)


def cactus(scene: Scene, x: float, foot: float, size: float) -> None:
    canvas, colour = scene.canvas, scene.colour("cactus")
    thick = 0.17 * size
    canvas.ellipse((x, foot), (0.3 * size, 0.03 * size), dark(scene.colour("desert"), 0.25))
    for side, low, high in ((-1, 0.38, 0.72), (1, 0.28, 0.6)):
        elbow = x + side * 0.27 * size
        canvas.line((x, foot - low * size), (elbow, foot - low * size), thick * 0.72, dark(colour, 0.1))
        canvas.line((elbow, foot - low * size), (elbow, foot - high * size), thick * 0.72, dark(colour, 0.04))
    canvas.line((x, foot - 0.04 * size), (x, foot - 0.92 * size), thick, colour)
    for shift in (-0.3, 0.05, 0.36):
        canvas.line(
            (x + shift * thick, foot - 0.06 * size),
            (x + shift * thick, foot - 0.9 * size),
            0.012 * size,
            light(colour, 0.25),
        )


def lighthouse(scene: Scene, x: float, foot: float, size: float) -> None:
    """A striped tower on a rock; its beam shines in the dark."""
    canvas, colour = scene.canvas, scene.colour("lighthouse")
    white = scene.lit((0.97, 0.96, 0.93))
    lamp_y = foot - 0.9 * size
    if scene.latent.hour in ("night", "storm", "sunset"):
        for side, spread in ((-1, 0.28), (1, 0.28)):
            far = x + side * 4 * size
            before = canvas.pixels.copy()
            canvas.polygon([(x, lamp_y), (far, lamp_y - spread * size), (far, lamp_y + spread * size)], LAMP)
            canvas.pixels[:] = before + 0.28 * (canvas.pixels - before)
        canvas.glow((x, lamp_y), 0.16 * size, LAMP, 0.8)
    rock = scene.lit(rgb("6b6460"))
    canvas.polygon(
        [
            (x - 0.52 * size, foot + 0.09 * size),
            (x - 0.3 * size, foot - 0.05 * size),
            (x - 0.05 * size, foot - 0.09 * size),
            (x + 0.26 * size, foot - 0.05 * size),
            (x + 0.5 * size, foot + 0.09 * size),
        ],
        light(rock, 0.1),
        dark(rock, 0.25),
        round=0.02 * size,
    )
    bands = 5
    for band in range(bands):
        low, high = 0.06 + 0.72 * band / bands, 0.06 + 0.72 * (band + 1) / bands
        wide, narrow = 0.15 - 0.06 * band / bands, 0.15 - 0.06 * (band + 1) / bands
        tone = colour if band % 2 == 0 else white
        canvas.polygon(
            [
                (x - wide * size, foot - low * size),
                (x + wide * size, foot - low * size),
                (x + narrow * size, foot - high * size),
                (x - narrow * size, foot - high * size),
            ],
            tone,
            dark(tone, 0.08),
        )
    canvas.box(x - 0.125 * size, foot - 0.81 * size, x + 0.125 * size, foot - 0.775 * size, dark(white, 0.7))
    canvas.box(x - 0.065 * size, foot - 0.95 * size, x + 0.065 * size, foot - 0.81 * size, LAMP)
    canvas.box(x - 0.008 * size, foot - 0.95 * size, x + 0.008 * size, foot - 0.81 * size, dark(white, 0.6))
    canvas.polygon(
        [(x - 0.09 * size, foot - 0.95 * size), (x + 0.09 * size, foot - 0.95 * size), (x, foot - 1.06 * size)],
        dark(colour, 0.1),
    )


def boat(scene: Scene, x: float, foot: float, size: float) -> None:
    """A sailing boat: hull in the asked colour, white sails, its reflection below."""
    canvas, colour = scene.canvas, scene.colour("boat")
    sail = scene.lit((0.98, 0.96, 0.91))
    for step in range(9):
        wide = 0.36 * size * (1 - step / 11)
        sway = 0.03 * size * float(np.sin(step * 2.1))
        canvas.ellipse(
            (x + sway, foot + (0.03 + 0.035 * step) * size),
            (wide, 0.009 * size),
            dark(mix(colour, scene.colour("sea"), 0.35 + 0.05 * step), 0.25),
        )
    canvas.line((x, foot - 0.1 * size), (x, foot - 1.0 * size), 0.022 * size, scene.lit(WOOD))
    canvas.polygon(
        [
            (x + 0.03 * size, foot - 0.96 * size),
            (x + 0.03 * size, foot - 0.22 * size),
            (x + 0.44 * size, foot - 0.22 * size),
        ],
        light(sail, 0.3),
        dark(sail, 0.1),
    )
    canvas.polygon(
        [
            (x - 0.03 * size, foot - 0.86 * size),
            (x - 0.03 * size, foot - 0.24 * size),
            (x - 0.34 * size, foot - 0.22 * size),
        ],
        dark(sail, 0.1),
        dark(sail, 0.2),
    )
    canvas.polygon([(x, foot - 1.0 * size), (x + 0.14 * size, foot - 0.965 * size), (x, foot - 0.93 * size)], colour)
    canvas.polygon(
        [
            (x - 0.5 * size, foot - 0.16 * size),
            (x + 0.52 * size, foot - 0.18 * size),
            (x + 0.33 * size, foot + 0.02 * size),
            (x - 0.34 * size, foot + 0.02 * size),
        ],
        light(colour, 0.1),
        dark(colour, 0.25),
        round=0.012 * size,
    )
    canvas.line((x - 0.48 * size, foot - 0.145 * size), (x + 0.49 * size, foot - 0.16 * size), 0.022 * size, sail)


def balloon(scene: Scene, x: float, foot: float, size: float) -> None:
    """A hot-air balloon with stripes and a basket; `foot` is the basket's."""
    canvas, colour = scene.canvas, scene.colour("balloon")
    centre, radius = foot - 0.66 * size, 0.34 * size
    other = light(colour, 0.62)
    for side in (-1, 1):
        canvas.line(
            (x + side * 0.2 * size, foot - 0.42 * size),
            (x + side * 0.055 * size, foot - 0.1 * size),
            0.008 * size,
            dark(WOOD),
        )

    def envelope(u: Floats, v: Floats) -> Floats:
        round_part = np.hypot(u - x, v - centre) - radius
        neck = np.maximum(
            np.abs(u - x) - (0.075 * size + (foot - 0.3 * size - v) * 0.86),
            np.maximum(centre + 0.6 * radius - v, v - foot + 0.3 * size),
        )
        return np.minimum(round_part, neck * 0.8)

    area = (x - radius, centre - radius, x + radius, foot - 0.28 * size)
    canvas.shape(envelope, area, light(colour, 0.12), dark(colour, 0.12))
    for inner, outer in ((0.16, 0.46), (0.76, 1.1)):

        def stripe(u: Floats, v: Floats, inner: float = inner, outer: float = outer) -> Floats:
            bend = np.sqrt(np.clip(1 - ((v - centre) / radius) ** 2 * 0.9, 0.06, 1)) * radius
            across = np.abs(u - x)
            return np.maximum(envelope(u, v), np.maximum(inner * bend - across, across - outer * bend))

        canvas.shape(stripe, area, light(other, 0.1), dark(other, 0.14))
    canvas.box(
        x - 0.065 * size, foot - 0.11 * size, x + 0.065 * size, foot, scene.lit(rgb("a87848")), scene.lit(rgb("7c5432"))
    )


def bird(scene: Scene, x: float, y: float, size: float) -> None:
    canvas, tone = scene.canvas, scene.lit(rgb("33404f"))
    for side in (-1, 1):
        wing = [
            (x, y),
            (x + side * 0.28 * size, y - 0.24 * size),
            (x + side * 0.6 * size, y - 0.06 * size),
            (x + side * 0.27 * size, y - 0.13 * size),
        ]
        canvas.polygon(wing, tone, round=0.012 * size)
    canvas.ellipse((x, y), (0.07 * size, 0.045 * size), tone)


def snowman(scene: Scene, x: float, foot: float, size: float) -> None:
    canvas = scene.canvas
    white, shade, coal = scene.lit((0.99, 0.99, 1.0)), scene.lit(rgb("c3d0e2")), rgb("2c2e36")
    canvas.ellipse((x, foot), (0.3 * size, 0.035 * size), shade)
    for side in (-1, 1):
        canvas.line(
            (x + side * 0.17 * size, foot - 0.5 * size),
            (x + side * 0.42 * size, foot - 0.64 * size),
            0.018 * size,
            dark(WOOD),
        )
    for up, radius in ((0.2, 0.22), (0.5, 0.165), (0.74, 0.12)):
        canvas.circle((x, foot - up * size), radius * size, white, shade)
    scarf = scene.lit(rgb("d8382f"))
    canvas.line((x - 0.1 * size, foot - 0.635 * size), (x + 0.1 * size, foot - 0.635 * size), 0.045 * size, scarf)
    canvas.line((x + 0.07 * size, foot - 0.63 * size), (x + 0.1 * size, foot - 0.48 * size), 0.04 * size, scarf)
    for at in (-0.045, 0.045):
        canvas.circle((x + at * size, foot - 0.77 * size), 0.014 * size, coal)
    canvas.polygon(
        [(x, foot - 0.745 * size), (x, foot - 0.715 * size), (x + 0.12 * size, foot - 0.715 * size)], rgb("ee7f27")
    )
    for up in (0.42, 0.5, 0.57):
        canvas.circle((x, foot - up * size), 0.014 * size, coal)
    canvas.box(x - 0.14 * size, foot - 0.855 * size, x + 0.14 * size, foot - 0.83 * size, coal)
    canvas.box(x - 0.09 * size, foot - 1.0 * size, x + 0.09 * size, foot - 0.84 * size, coal)
    canvas.box(x - 0.09 * size, foot - 0.885 * size, x + 0.09 * size, foot - 0.855 * size, scarf)


def rocket(scene: Scene, x: float, foot: float, size: float) -> None:
    """A rocket on its flame, upright; `foot` is where the flame ends."""
    canvas, colour = scene.canvas, scene.latent.colour("rocket")
    body, base = (0.94, 0.94, 0.92), foot - 0.3 * size
    canvas.glow((x, base + 0.12 * size), 0.16 * size, rgb("ffb347"), 0.8)
    for half, long, tone in ((0.1, 0.3, "f2722c"), (0.07, 0.22, "fbb040"), (0.04, 0.13, "fff3c0")):
        canvas.polygon(
            [(x - half * size, base), (x + half * size, base), (x, base + long * size)], rgb(tone), round=0.01 * size
        )
    for side in (-1, 1):
        canvas.polygon(
            [
                (x + side * 0.1 * size, base - 0.22 * size),
                (x + side * 0.24 * size, base + 0.04 * size),
                (x + side * 0.08 * size, base - 0.02 * size),
            ],
            dark(colour, 0.12),
        )
    profile = [(0.09, 0.0), (0.125, 0.18), (0.12, 0.36), (0.08, 0.54), (0.0, 0.7)]
    hull = [(x - half * size, base - up * size) for half, up in profile] + [
        (x + half * size, base - up * size) for half, up in reversed(profile[:-1])
    ]
    canvas.polygon(hull, body, dark(body, 0.15))
    canvas.polygon(
        [(x - 0.083 * size, base - 0.53 * size), (x, base - 0.705 * size), (x + 0.083 * size, base - 0.53 * size)],
        colour,
    )
    canvas.circle((x, base - 0.36 * size), 0.066 * size, colour)
    canvas.circle((x, base - 0.36 * size), 0.046 * size, GLASS)
    canvas.box(x - 0.1 * size, base - 0.03 * size, x + 0.1 * size, base + 0.01 * size, dark(colour, 0.3))
