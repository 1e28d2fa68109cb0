"""What this model understands of a prompt: the things it can draw, how many of each, and their colours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Each thing, by the words that name it. Their order is the order of the latent's blocks.
THINGS = {
    "day": "day daytime noon sunny",
    "dawn": "dawn sunrise morning",
    "sunset": "sunset dusk evening twilight sundown",
    "night": "night midnight nighttime nocturnal dark",
    "storm": "storm stormy rainy overcast thunder gloomy",
    "stars": "star starry stars",
    "moon": "moon moonlight moonlit crescent",
    "sun": "sun sunshine sunlight sunrise sunset sunny",
    "clouds": "cloud cloudy",
    "rainbow": "rainbow",
    "mountains": "mountain peak alps alpine summit volcano",
    "hills": "hill rolling countryside",
    "skyline": "city skyline skyscraper town downtown cityscape metropolis building",
    "sea": "sea ocean wave seaside coast harbor harbour bay",
    "lake": "lake river pond water reflection",
    "beach": "beach sand shore island coastline",
    "desert": "desert dune sahara",
    "forest": "forest wood woods woodland pine fir jungle",
    "meadow": "meadow field grass lawn garden park pasture farm",
    "snowfield": "snowy snowfield winter wintry ice icy",
    "house": "house home cottage cabin barn hut",
    "lighthouse": "lighthouse",
    "tree": "tree oak",
    "palm": "palm coconut",
    "cactus": "cactus cacti",
    "boat": "boat sailboat ship yacht sail",
    "balloon": "balloon",
    "bird": "bird seagull gull",
    "snowman": "snowman",
    "flower": "flower rose daisy tulip sunflower blossom bouquet",
    "cat": "cat kitten kitty feline",
    "fish": "fish goldfish",
    "heart": "heart love",
    "rocket": "rocket spaceship",
    "planet": "planet saturn",
    "rain": "rain rainy raining shower drizzle",
    "snow": "snow snowing snowfall snowflake blizzard",
}
NAMES = list(THINGS)
NAMED: dict[str, list[str]] = {}
for _thing, _words in THINGS.items():
    for _word in _words.split():
        NAMED.setdefault(_word, []).append(_thing)

# How likely each thing brings another with it, when the prompt does not say.
BRINGS = {
    "sunset": {"sun": 0.7, "clouds": 0.6},
    "dawn": {"sun": 0.7, "clouds": 0.6},
    "night": {"stars": 0.9, "moon": 0.6},
    "storm": {"clouds": 0.95},
    "stars": {"night": 1.0},
    "moon": {"night": 0.9},
    "rain": {"storm": 0.9, "clouds": 0.95},
    "snow": {"snowfield": 1.0, "clouds": 0.5},
    "rainbow": {"clouds": 0.7},
    "mountains": {"clouds": 0.4, "meadow": 0.5},
    "sea": {"clouds": 0.5, "sun": 0.3},
    "beach": {"sea": 0.95, "palm": 0.5, "sun": 0.5},
    "palm": {"beach": 0.9, "sea": 0.9},
    "desert": {"sun": 0.6, "cactus": 0.4},
    "cactus": {"desert": 0.95, "sun": 0.5},
    "lake": {"mountains": 0.6, "forest": 0.5},
    "boat": {"sea": 0.95, "clouds": 0.5},
    "lighthouse": {"sea": 0.95, "bird": 0.5},
    "house": {"meadow": 0.95, "hills": 0.6, "clouds": 0.5, "tree": 0.3},
    "tree": {"meadow": 0.95, "hills": 0.6, "clouds": 0.5},
    "hills": {"meadow": 0.9, "clouds": 0.6},
    "meadow": {"hills": 0.6, "clouds": 0.6},
    "balloon": {"clouds": 0.7, "hills": 0.8, "meadow": 0.7},
    "bird": {"clouds": 0.6, "hills": 0.5, "meadow": 0.5},
    "snowman": {"snowfield": 1.0, "forest": 0.5, "snow": 0.4},
    "snowfield": {"forest": 0.4},
    "rocket": {"night": 0.95, "stars": 0.95, "planet": 0.4},
    "planet": {"night": 1.0, "stars": 1.0},
}
# One of these stands alone before a plain ground, large, unless a landscape is asked for.
PORTRAITS = ("flower", "cat", "fish", "heart")
HOURS = ("day", "dawn", "sunset", "night", "storm")

COLOURS = {
    "red": "d8382f", "crimson": "b01e3a", "scarlet": "e03020", "orange": "ee7f27", "golden": "e8b23a", "gold": "e8b23a",
    "yellow": "f4cc3c", "green": "3f9b57", "lime": "8ecb3c", "teal": "1f8f8c", "turquoise": "35bdb8", "cyan": "3cc3de",
    "blue": "2f6fc4", "navy": "22386f", "purple": "7b4bb0", "violet": "8a5ccf", "lavender": "b49be0", "pink": "ee86ae",
    "magenta": "cf3a94", "brown": "80542f", "beige": "dcc7a0", "white": "f6f4ee", "black": "26262c", "grey": "8b9099",
    "gray": "8b9099", "silver": "bcc3cc", "ginger": "e08a3c",
}  # fmt: skip
# Names that are colours too.
TINTED = {"goldfish": "orange", "sunflower": "yellow", "rose": "red", "daisy": "white", "tulip": "crimson"}
# "Palm trees" are no trees besides, "a pine forest" is one thing.
COMPOUNDS = {"palm", "coconut", "pine", "fir", "city", "sail"}
GROUNDS = ("beach", "desert", "snowfield", "meadow")
NUMBERS = {"two": 2, "pair": 2, "three": 3, "four": 4, "five": 5, "several": 4, "many": 5, "some": 3, "few": 3}
MOST = 5
# Words between a colour or a number and its noun: "a red wooden house", "three of the boats".
REACH = 3


@dataclass
class Asked:
    """What a prompt names: the things, how many of them, their colours as RGB 0–1; and its words."""

    things: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    colours: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    words: tuple[str, ...] = ()


def read(prompt: str) -> Asked:
    """Return what the prompt names. "no", "without" take the next thing out again."""
    words = tuple(re.findall(r"[a-z]+|\d", prompt.lower()))
    asked = Asked(words=words)
    colour, count, denied, since = "", 1, False, 0
    for before, word in zip(("", *words), words, strict=False):
        since += 1
        if since > REACH:
            colour, count, denied = "", 1, False
        noun = word if word in NAMED else _singular(word)
        things = [] if before in COMPOUNDS else NAMED.get(noun, [])
        if word in COLOURS:
            colour, since = COLOURS[word], 0
        elif word in NUMBERS or word.isdigit():
            count, since = min(max(NUMBERS.get(word) or int(word), 1), MOST), 0
        elif word in ("no", "without"):
            denied, since = True, 0
        elif things:
            _add(asked, things, colour or COLOURS.get(TINTED.get(noun, ""), ""), count, denied)
            colour, count, denied = "", 1, False
    return asked


def _add(asked: Asked, things: list[str], colour: str, count: int, denied: bool) -> None:
    for thing in things:
        if denied:
            asked.things.discard(thing)
            continue
        asked.things.add(thing)
        asked.counts[thing] = max(count, asked.counts.get(thing, 1))
        if colour:
            red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4))
            asked.colours[thing] = (red, green, blue)


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith("oes"):
        return word[:-2]
    return word.removesuffix("s")


def likelihoods(asked: Asked) -> dict[str, float]:
    """Return how likely each thing is to be in a picture of what was asked."""
    likely = dict.fromkeys(NAMES, 0.0) | dict.fromkeys(asked.things, 1.0)
    open_ended = dict.fromkeys(asked.things)
    for _ in range(2):
        for thing in list(open_ended):
            for other, chance in BRINGS.get(thing, {}).items():
                if other not in HOURS or not asked.things.intersection(HOURS):
                    likely[other] = max(likely[other], chance * likely[thing])
                    open_ended[other] = None
    land = [ground for ground in GROUNDS if ground in asked.things] or sorted(
        GROUNDS, key=lambda ground: -likely[ground]
    )
    likely |= {ground: 0.0 for ground in GROUNDS if ground != land[0]}
    if likely["night"] > likely["day"] and "sun" not in asked.things:
        likely["sun"] = 0.0
    if likely["planet"] > 0 and "moon" not in asked.things:
        likely["moon"] = 0.0
    portrait = asked.things.intersection(PORTRAITS)
    if not portrait and not any(likely[hour] >= 0.9 for hour in HOURS):
        likely["day"] = 1.0
    if asked.things and not portrait and likely["day"] > likely["night"] and "night" not in asked.things:
        likely["stars"] = likely["moon"] = 0.0
    return likely
