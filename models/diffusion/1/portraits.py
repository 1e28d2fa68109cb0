"""Things that fill the picture: a flower, a cat's face, a fish, a heart."""

from __future__ import annotations

import numpy as np
from canvas import Floats, dark, light, mix
from light import Scene, rgb
from objects import WOOD


def flower(scene: Scene, x: float, y: float, size: float) -> None:
    """Two rings of petals around (x, y), on a stem with two leaves."""
    canvas, latent = scene.canvas, scene.latent
    colour, green = latent.colour("flower"), rgb("4f9a58")
    foot = y + 0.95 * size
    canvas.line((x, y), (x + 0.02 * size, foot), 0.055 * size, dark(green, 0.1))
    for side, up in ((-1, 0.62), (1, 0.76)):
        canvas.ellipse(
            (x + side * 0.17 * size, y + up * size),
            (0.2 * size, 0.075 * size),
            light(green, 0.1),
            dark(green, 0.15),
            turn=-side * 0.6,
        )
    petals = 6 + round(4 * latent.shape("flower"))
    for ring, long, tone in ((0.0, 0.25, dark(colour, 0.16)), (0.5, 0.22, colour)):
        for petal in range(petals):
            angle = 2 * np.pi * (petal + ring) / petals
            at = (x + 0.24 * size * float(np.cos(angle)), y + 0.24 * size * float(np.sin(angle)))
            canvas.ellipse(
                at, (long * size, 0.72 * size / petals), light(tone, 0.2), dark(tone, 0.06), turn=float(angle)
            )
    heart = rgb("f2c037") if colour[2] > 0.35 or colour[1] < 0.5 else rgb("6b4226")
    canvas.circle((x, y), 0.15 * size, light(heart, 0.2), dark(heart, 0.15))
    for index in range(40):
        away, angle = 0.135 * size * (index / 40) ** 0.5, index * 2.39996
        canvas.circle(
            (x + away * float(np.cos(angle)), y + away * float(np.sin(angle))), 0.011 * size, dark(heart, 0.28)
        )


def cat(scene: Scene, x: float, y: float, size: float) -> None:
    """A cat's face."""
    canvas, colour = scene.canvas, scene.latent.colour("cat")
    pale, pink = light(colour, 0.72), rgb("ee9aa2")
    for side in (-1, 1):
        ear = [
            (x + side * 0.46 * size, y - 0.16 * size),
            (x + side * 0.42 * size, y - 0.62 * size),
            (x + side * 0.1 * size, y - 0.36 * size),
        ]
        canvas.polygon(ear, colour, dark(colour, 0.08), round=0.03 * size)
        inner = [
            (x + side * 0.4 * size, y - 0.24 * size),
            (x + side * 0.385 * size, y - 0.52 * size),
            (x + side * 0.2 * size, y - 0.36 * size),
        ]
        canvas.polygon(inner, pink, round=0.01 * size)
    canvas.ellipse((x, y), (0.52 * size, 0.44 * size), light(colour, 0.1), dark(colour, 0.1))
    for at in (-0.13, 0.0, 0.13):
        canvas.line(
            (x + at * size, y - 0.41 * size), (x + at * 0.7 * size, y - 0.27 * size), 0.042 * size, dark(colour, 0.4)
        )
    for side in (-1, 1):
        for up in (0.02, 0.11):
            canvas.line(
                (x + side * 0.5 * size, y + (up - 0.03) * size),
                (x + side * 0.4 * size, y + up * size),
                0.032 * size,
                dark(colour, 0.4),
            )
        canvas.ellipse((x + side * 0.1 * size, y + 0.2 * size), (0.145 * size, 0.115 * size), pale)
    canvas.ellipse((x, y + 0.31 * size), (0.1 * size, 0.07 * size), pale)
    iris = (rgb("7fbf5a"), rgb("e8b93c"), rgb("5aa9d6"))[min(int(3 * scene.latent.shape("cat")), 2)]
    for side in (-1, 1):
        ex, ey = x + side * 0.2 * size, y - 0.06 * size
        canvas.ellipse((ex, ey), (0.118 * size, 0.112 * size), dark(colour, 0.75))
        canvas.ellipse((ex, ey), (0.1 * size, 0.098 * size), light(iris, 0.25), dark(iris, 0.1))
        canvas.ellipse((ex, ey), (0.036 * size, 0.085 * size), (0.06, 0.06, 0.09))
        canvas.circle((ex - 0.03 * size, ey - 0.04 * size), 0.022 * size, (1, 1, 1))
    mouth = dark(colour, 0.7)
    canvas.polygon(
        [(x - 0.05 * size, y + 0.105 * size), (x + 0.05 * size, y + 0.105 * size), (x, y + 0.155 * size)],
        rgb("e2707f"),
        round=0.014 * size,
    )
    canvas.line((x, y + 0.16 * size), (x, y + 0.21 * size), 0.014 * size, mouth)
    for side in (-1, 1):
        path = [(0.0, 0.21), (0.04, 0.245), (0.09, 0.25), (0.13, 0.225)]
        for (ax, ay), (bx, by) in zip(path[:-1], path[1:], strict=True):
            canvas.line(
                (x + side * ax * size, y + ay * size), (x + side * bx * size, y + by * size), 0.014 * size, mouth
            )
        for start, end in (((0.16, 0.17), (0.62, 0.1)), ((0.17, 0.2), (0.64, 0.2)), ((0.16, 0.23), (0.61, 0.3))):
            canvas.line(
                (x + side * start[0] * size, y + start[1] * size),
                (x + side * end[0] * size, y + end[1] * size),
                0.008 * size,
                (0.98, 0.97, 0.95),
            )


def fish(scene: Scene, x: float, y: float, size: float) -> None:
    """A fish that swims to where it does not stand, with stripes and bubbles."""
    canvas, colour = scene.canvas, scene.latent.colour("fish")
    face = -1 if scene.latent.place("fish") > 0 else 1
    tail = [
        (x - face * 0.34 * size, y),
        (x - face * 0.64 * size, y - 0.24 * size),
        (x - face * 0.56 * size, y),
        (x - face * 0.64 * size, y + 0.24 * size),
    ]
    canvas.polygon(tail, light(colour, 0.1), dark(colour, 0.2), round=0.02 * size)
    canvas.polygon(
        [
            (x - face * 0.18 * size, y - 0.2 * size),
            (x - face * 0.05 * size, y - 0.4 * size),
            (x + face * 0.18 * size, y - 0.2 * size),
        ],
        dark(colour, 0.18),
        round=0.03 * size,
    )
    canvas.polygon(
        [
            (x - face * 0.1 * size, y + 0.2 * size),
            (x - face * 0.16 * size, y + 0.36 * size),
            (x + face * 0.08 * size, y + 0.2 * size),
        ],
        dark(colour, 0.18),
        round=0.02 * size,
    )

    def body(u: Floats, v: Floats) -> Floats:
        return (np.hypot((u - x) / 0.46, (v - y) / 0.27) / size - 1) * 0.27 * size

    area = (x - 0.46 * size, y - 0.27 * size, x + 0.46 * size, y + 0.27 * size)
    canvas.shape(body, area, light(colour, 0.25), dark(colour, 0.08))
    for at in (-0.16, 0.1):
        centre = x + face * at * size
        canvas.shape(
            lambda u, v, centre=centre: np.maximum(
                body(u, v), np.abs(u - centre + 0.25 * (v - y) ** 2 / size) - 0.045 * size
            ),
            area,
            light(colour, 0.75),
        )
    ex, ey = x + face * 0.29 * size, y - 0.06 * size
    canvas.circle((ex, ey), 0.062 * size, (1, 1, 1))
    canvas.circle((ex + face * 0.012 * size, ey), 0.036 * size, (0.07, 0.08, 0.12))
    canvas.line(
        (x + face * 0.44 * size, y + 0.05 * size),
        (x + face * 0.36 * size, y + 0.075 * size),
        0.016 * size,
        dark(colour, 0.5),
    )
    canvas.ellipse(
        (x + face * 0.02 * size, y + 0.07 * size), (0.11 * size, 0.055 * size), dark(colour, 0.22), turn=face * 0.5
    )
    for index in range(4):
        centre_of = (x + face * (0.52 + 0.05 * (index % 2)) * size, y - (0.06 + 0.12 * index) * size)
        canvas.circle(centre_of, (0.03 - 0.004 * index) * size, mix((1, 1, 1), rgb("8ccdea"), 0.45))
        canvas.circle((centre_of[0] - 0.008 * size, centre_of[1] - 0.008 * size), 0.008 * size, (1, 1, 1))


def heart(scene: Scene, x: float, y: float, size: float) -> None:
    canvas, colour = scene.canvas, scene.latent.colour("heart")
    turn = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    across = 16 * np.sin(turn) ** 3
    up = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    for shift, scale, top, low in (
        (0.03, 0.031, dark(colour, 0.5), dark(colour, 0.4)),
        (0.0, 0.03, light(colour, 0.2), dark(colour, 0.18)),
    ):
        points = [
            (x + float(a) * scale * size, y + shift * size - float(b) * scale * size)
            for a, b in zip(across, up, strict=True)
        ]
        canvas.polygon(points, top, low)
    canvas.ellipse((x - 0.24 * size, y - 0.22 * size), (0.11 * size, 0.06 * size), light(colour, 0.65), turn=-0.7)


def backdrop(scene: Scene, thing: str) -> None:
    """A soft ground in the complement of what stands before it; water for a fish."""
    canvas, colour = scene.canvas, scene.latent.colour(thing)
    if thing == "fish":
        canvas.gradient([(0, rgb("8fdcec")), (0.5, rgb("3fa3cf")), (1, rgb("14507f"))])
        detail = scene.latent.detail("fish")
        for plant in range(int(9 * canvas.wide)):
            x, tall = canvas.wide * (plant + detail.random()) / int(9 * canvas.wide), 0.12 + 0.2 * detail.random()
            for step in range(10):
                at = (x + 0.014 * float(np.sin(step + plant)), 1.0 - tall * step / 10)
                canvas.ellipse(at, (0.014, 0.03), mix(rgb("1f7f6a"), rgb("4fb37a"), step / 10))
        return
    bright = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] > 0.85
    base = mix((1 - colour[0], 1 - colour[1], 1 - colour[2]), rgb("5b86a8") if bright else rgb("e4f0ee"), 0.68)
    canvas.gradient([(0, light(base, 0.5)), (1, base)])
    canvas.circle((canvas.wide / 2, 0.5), 0.43 * min(canvas.wide, 1.0), light(base, 0.42), light(base, 0.16))
    if thing == "flower":
        canvas.below(
            np.full(canvas.width, 0.93, np.float32), mix(WOOD, base, 0.35), mix(dark(WOOD), base, 0.3), bottom=1.01
        )
