"""An antialiased canvas in numpy: heights run from 0 (top) to 1 (bottom), widths from 0 to `wide`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]
Point = tuple[float, float]
# A distance to an edge, negative inside, from coordinates that broadcast to [rows, columns].
Distance = Callable[[Floats, Floats], Floats]


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """Return `one` with `share` (0–1) of `other` in it."""
    red, green, blue = (a + (b - a) * share for a, b in zip(one, other, strict=True))
    return red, green, blue


def dark(colour: Colour, share: float = 0.3) -> Colour:
    return mix(colour, (0.08, 0.09, 0.16), share)


def light(colour: Colour, share: float = 0.3) -> Colour:
    return mix(colour, (1.0, 0.98, 0.94), share)


class Canvas:
    """RGB 0–1 in `pixels` [height, width, 3]; everything is painted over what stands there."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.wide = width / height
        self.pixels = np.zeros((height, width, 3), np.float32)
        self.x = ((np.arange(width, dtype=np.float32) + 0.5) / height)[None, :]
        self.y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]

    def gradient(self, stops: Sequence[tuple[float, Colour]], top: float = 0.0, bottom: float = 1.0) -> None:
        """Fill the rows between two heights; a stop is (share of the way down, colour)."""
        first, last = self.row(top), self.row(bottom)
        way = (self.y[first:last, 0] - top) / max(bottom - top, 1e-6)
        shares = [share for share, _ in stops]
        for channel in range(3):
            values = np.interp(way, shares, [colour[channel] for _, colour in stops])
            self.pixels[first:last, :, channel] = values[:, None]

    def shape(
        self, distance: Distance, box: tuple[float, float, float, float], colour: Colour, below: Colour | None = None
    ) -> None:
        """Paint where the distance is negative, within box (left, top, right, bottom); `below` colours its bottom."""
        self._paint(box, lambda x, y: np.clip(0.5 - distance(x, y) * self.height, 0, 1), colour, below)

    def glow(self, centre: Point, radius: float, colour: Colour, strength: float) -> None:
        """Add light that falls off around a point."""
        reach = radius * 4
        rows, columns = self._box((centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach))
        x, y = self.x[:, columns] - centre[0], self.y[rows] - centre[1]
        away = (x * x + y * y) / (radius * radius)
        amount = strength * np.exp(-away) * np.clip((16 - away) / 4, 0, 1)
        part = self.pixels[rows, columns]
        part += amount[:, :, None] * (np.array(colour, np.float32) - part)

    def below(self, line: Floats, colour: Colour, foot: Colour | None = None, bottom: float = 1.0) -> None:
        """Paint under a line, one height for each column, down to `bottom`; `foot` is the colour there."""
        top = float(line.min())
        self._paint(
            (0, top - 0.01, self.wide, bottom + 0.01),
            lambda x, y: (
                np.clip((y - line[None, :]) * self.height + 0.5, 0, 1) * np.clip((bottom - y) * self.height + 0.5, 0, 1)
            ),
            colour,
            foot,
        )

    def circle(self, centre: Point, radius: float, colour: Colour, below: Colour | None = None) -> None:
        self.ellipse(centre, (radius, radius), colour, below)

    def ellipse(
        self, centre: Point, radii: Point, colour: Colour, below: Colour | None = None, turn: float = 0.0
    ) -> None:
        """Paint an ellipse, turned clockwise by `turn` radians."""
        (cx, cy), (rx, ry) = centre, radii
        cos, sin = float(np.cos(turn)), float(np.sin(turn))

        def distance(x: Floats, y: Floats) -> Floats:
            u, v = (x - cx) * cos + (y - cy) * sin, (y - cy) * cos - (x - cx) * sin
            length = np.sqrt((u / rx) ** 2 + (v / ry) ** 2) + 1e-6
            # To first order the distance, from the gradient of the length.
            slope = np.sqrt((u / rx**2) ** 2 + (v / ry**2) ** 2) / length + 1e-6
            return (length - 1) / slope

        reach = max(rx, ry)
        self.shape(distance, (cx - reach, cy - reach, cx + reach, cy + reach), colour, below)

    def line(self, start: Point, end: Point, thick: float, colour: Colour) -> None:
        """Paint a line with round ends; it may be thinner than a pixel."""
        (ax, ay), (bx, by) = start, end
        along = (bx - ax) ** 2 + (by - ay) ** 2 + 1e-12

        def distance(x: Floats, y: Floats) -> Floats:
            share = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / along, 0, 1)
            return np.hypot(x - ax - share * (bx - ax), y - ay - share * (by - ay)) - thick / 2

        self.shape(distance, (min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)), colour)

    def polygon(self, points: Sequence[Point], colour: Colour, below: Colour | None = None, round: float = 0.0) -> None:
        """Paint a polygon, convex or not, with corners rounded outwards by a radius."""
        xs, ys = [x for x, _ in points], [y for _, y in points]

        def distance(x: Floats, y: Floats) -> Floats:
            return _polygon(points, x, y) - round

        self.shape(distance, (min(xs) - round, min(ys) - round, max(xs) + round, max(ys) + round), colour, below)

    def box(
        self, left: float, top: float, right: float, bottom: float, colour: Colour, below: Colour | None = None
    ) -> None:
        def distance(x: Floats, y: Floats) -> Floats:
            return np.maximum(np.maximum(left - x, x - right), np.maximum(top - y, y - bottom))

        self.shape(distance, (left, top, right, bottom), colour, below)

    def veil(self, colour: Colour, top: float, bottom: float, strength: float) -> None:
        """Lay haze over the rows between two heights, densest at the lower."""
        first, last = self.row(top), self.row(bottom)
        amount = strength * np.linspace(0, 1, last - first, dtype=np.float32)[:, None, None] ** 2
        self.pixels[first:last] += amount * (np.array(colour, np.float32) - self.pixels[first:last])

    def finish(self, noise: np.random.Generator) -> NDArray[np.uint8]:
        """Return the picture [height, width, 3], with a faint vignette and the dither that keeps gradients smooth."""
        away = ((self.x / self.wide - 0.5) ** 2 + (self.y - 0.5) ** 2) * 2
        shaded = self.pixels * (1 - 0.16 * away**2)[:, :, None] * 255
        shaded += noise.random((self.height, self.width, 1), np.float32)
        return np.clip(shaded, 0, 255).astype(np.uint8)

    def _paint(
        self,
        box: tuple[float, float, float, float],
        coverage: Callable[[Floats, Floats], Floats],
        colour: Colour,
        below: Colour | None,
    ) -> None:
        rows, columns = self._box(box)
        part = self.pixels[rows, columns]
        if part.size == 0:
            return
        y = self.y[rows]
        paint = np.array(colour, np.float32)
        if below is not None:
            way = np.clip((y - box[1]) / max(box[3] - box[1], 1e-6), 0, 1)[:, :, None]
            paint = paint + way * (np.array(below, np.float32) - paint)
        part += coverage(self.x[:, columns], y)[:, :, None] * (paint - part)

    def _box(self, box: tuple[float, float, float, float]) -> tuple[slice, slice]:
        left, top, right, bottom = (int(np.floor(edge * self.height)) for edge in box)
        rows = slice(max(top - 2, 0), min(max(bottom + 3, 0), self.height))
        return rows, slice(max(left - 2, 0), min(max(right + 3, 0), self.width))

    def row(self, height: float) -> int:
        """Return the row of pixels at a height, within the picture."""
        return int(np.clip(round(height * self.height), 0, self.height))


def _polygon(points: Sequence[Point], x: Floats, y: Floats) -> Floats:
    """The signed distance to a polygon: the nearest edge's, negative where a ray crosses an odd number of edges."""
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape), 1e9, np.float32)
    inside = np.zeros(nearest.shape, bool)
    for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
        along = (bx - ax) ** 2 + (by - ay) ** 2 + 1e-12
        share = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / along, 0, 1)
        nearest = np.minimum(nearest, (x - ax - share * (bx - ax)) ** 2 + (y - ay - share * (by - ay)) ** 2)
        if ay != by:
            inside ^= ((y < ay) != (y < by)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return np.where(inside, -1, 1) * np.sqrt(nearest)
