"""The words of worlds 6 and 7: tool names put together from verbs and nouns, items to ask for, values to get back.

Names and items are held out by their hash, so held-out episodes use only tools and items that training never saw,
while every verb and most nouns occur in both.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .pictures import COLOURS
from .self_knowledge import FILLERS, invent_name
from .task import is_of_split, vary, weighted

GET_VERBS = (
    "get", "find", "read", "check", "show", "fetch", "load", "see", "ask", "tell", "look_up", "query", "search",
    "give",
)  # fmt: skip
SET_VERBS = ("set", "change", "put", "turn", "make", "switch", "move", "adjust", "control", "use", "write", "start")


@dataclass(frozen=True)
class Attribute:
    """Something that an item has: the noun, the kind of its values, and how people ask without using the noun."""

    noun: str
    kind: str
    questions: tuple[str, ...] = ()


ATTRIBUTES = (
    Attribute("price", "number", ("How much does {0} cost?", "How much is {0}?")),
    Attribute("weight", "number", ("How heavy is {0}?",)), Attribute("age", "number", ("How old is {0}?",)),
    Attribute("height", "number", ("How tall is {0}?", "How high is {0}?")),
    Attribute("length", "number", ("How long is {0}?",)), Attribute("width", "number", ("How wide is {0}?",)),
    Attribute("depth", "number", ("How deep is {0}?",)), Attribute("speed", "number", ("How fast is {0}?",)),
    Attribute("size", "number", ("How big is {0}?", "How large is {0}?")),
    Attribute("stock", "number", ("How many of {0} are in stock?",)), Attribute("score", "number"),
    Attribute("rank", "number"), Attribute("level", "number"), Attribute("year", "number"),
    Attribute("page", "number", ("On which page is {0}?",)), Attribute("number", "number"),
    Attribute("tax", "number"), Attribute("heat", "number", ("How hot is {0}?",)),
    Attribute("shelf", "code", ("On which shelf is {0}?", "Which shelf is {0} on?")),
    Attribute("box", "code", ("In which box is {0}?",)), Attribute("room", "code", ("In which room is {0}?",)),
    Attribute("row", "code", ("In which row is {0}?",)), Attribute("code", "code"), Attribute("key", "code"),
    Attribute("gate", "code", ("At which gate is {0}?",)), Attribute("seat", "code"), Attribute("plan", "code"),
    Attribute("owner", "name", ("Who owns {0}?",)), Attribute("maker", "name", ("Who made {0}?",)),
    Attribute("team", "name"), Attribute("friend", "name"), Attribute("road", "name"),
    Attribute("city", "city", ("In which city is {0}?", "Which city is {0} in?")),
    Attribute("color", "colour", ("What color is {0}?", "Which color is {0}?")),
)  # fmt: skip
ITEMS = (
    "bolt", "nut", "gear", "screw", "nail", "pin", "bell", "cup", "plate", "bowl", "spoon", "fork", "knife", "pan",
    "pot", "desk", "chair", "table", "bed", "rug", "clock", "book", "pen", "map", "card", "coin", "ring", "hat",
    "coat", "shoe", "sock", "shirt", "belt", "bag", "rope", "net", "flag", "drum", "flute", "horn", "ball", "bat",
    "kite", "doll", "robot", "truck", "car", "bus", "bike", "boat", "ship", "train", "plane", "cart", "wheel", "brick",
    "stone", "pipe", "wire", "hose", "brush", "broom", "comb", "soap", "towel", "torch", "mirror", "vase", "basket",
    "bucket", "barrel", "bottle", "jar", "tin", "tube", "tray", "tent", "axe", "saw", "hammer", "drill", "file",
    "rake", "apple", "pear", "plum", "lemon", "melon", "grape", "peach", "carrot", "onion", "bean", "cake", "pie",
    "egg", "stamp", "letter", "ladder", "spring", "chain", "hook", "lock", "lever", "motor", "panel", "cable", "plug",
    "valve", "tank", "tile", "glove", "scarf", "boot", "pillow", "candle", "button", "needle", "ribbon", "bead",
    "stool", "sofa", "couch", "bench", "carpet", "curtain", "kettle", "teapot", "mug", "jug", "lid",
    "sieve", "whisk", "ladle", "napkin", "toaster", "fridge", "phone", "laptop", "tablet",
    "speaker", "charger", "battery", "sensor", "switch", "socket", "fuse", "magnet", "lens", "prism",
    "ruler", "pencil", "crayon", "marker", "eraser", "notebook", "folder", "envelope", "poster", "magazine", "novel",
    "guitar", "violin", "piano", "trumpet", "whistle", "puzzle", "marble", "balloon", "mask", "costume",
    "jacket", "sweater", "dress", "skirt", "sandal", "slipper", "helmet", "umbrella", "wallet", "purse", "suitcase",
    "backpack", "bracelet", "necklace", "watch", "jewel", "crown", "tractor", "wagon", "scooter", "canoe", "raft",
    "anchor", "paddle", "sail", "kayak", "shovel", "spade", "hoe", "wrench", "clamp", "chisel",
    "screwdriver", "washer", "hinge", "bracket", "pulley", "crank", "piston", "gasket", "rivet", "plank", "beam",
    "log", "branch", "seed", "bulb", "tulip", "cactus", "fern", "banana", "mango", "cherry",
    "walnut", "almond", "potato", "tomato", "pepper", "radish", "turnip", "cabbage", "pumpkin", "biscuit", "muffin",
    "waffle", "bagel", "sausage", "cheese", "parcel", "sack", "pallet", "badge", "ticket", "trophy",
    "medal", "statue", "painting", "frame", "globe", "compass", "telescope", "lantern", "blanket", "cushion", "quilt",
)  # fmt: skip
ADJECTIVES = (
    "old", "new", "big", "small", "long", "short", "round", "flat", "green", "red", "blue", "black", "white", "steel",
    "glass", "wooden", "heavy", "light",
)  # fmt: skip
DEVICES = (
    "lamp", "fan", "heater", "radio", "oven", "pump", "door", "window", "screen", "alarm", "camera", "printer",
    "light", "engine", "crane", "stove", "sign", "mixer",
)  # fmt: skip
ROOMS = ("kitchen", "hall", "bath", "office", "garage", "garden", "cellar", "school", "library", "lab")
ITEM_PARAMETERS = {"item": 5, "name": 3, "thing": 1, "object": 1, "product": 1, "what": 0.5}
NOT_FOUND = ("error: not found", '{"error": "not found"}', "error: no such item", "error: unknown item", "not found")


@dataclass(frozen=True)
class Item:
    """Something to ask for: what the argument says, and how a sentence names it."""

    text: str
    has_article: bool = True

    @property
    def phrase(self) -> str:
        return f"the {self.text}" if self.has_article else self.text

    @property
    def asked(self) -> str:
        """The phrase in a question that is still to be varied."""
        return f"the {keep(self.text)}" if self.has_article else keep(self.text)


def draw_until(draw: Callable[[], Any], accept: Callable[[Any], bool]) -> Any:
    """Draw again until it is acceptable."""
    while True:
        drawn = draw()
        if accept(drawn):
            return drawn


def belongs(kind: str, text: str, split: str) -> bool:
    """Whether this name or item may occur in this split."""
    return is_of_split(f"{kind}:{text}", split)


def draw_name(rng: random.Random, verbs: Sequence[str], nouns: Sequence[str], split: str) -> str:
    """`get_price`: a tool's name of this split."""
    return draw_until(lambda: f"{rng.choice(verbs)}_{rng.choice(nouns)}", lambda name: belongs("tool", name, split))


def nameable(verbs: Sequence[str], nouns: Sequence[str], split: str) -> list[str]:
    """The nouns for which this split has a name."""
    return [noun for noun in nouns if any(belongs("tool", f"{verb}_{noun}", split) for verb in verbs)]


def draw_item(rng: random.Random, split: str, plural: bool = False) -> Item:
    """A word, two words, an invented name or a code; in the plural only words."""

    def draw() -> Item:
        form = weighted(rng, {"word": 5, "two words": 2, "name": 0 if plural else 2, "code": 0 if plural else 1})
        if form == "name":
            return Item(invent_name(rng), has_article=False)
        if form == "code":
            return Item(draw_code(rng), has_article=False)
        word = make_plural(rng.choice(ITEMS)) if plural else rng.choice(ITEMS)
        return Item(f"{rng.choice(ADJECTIVES)} {word}" if form == "two words" else word, has_article=not plural)

    return draw_until(draw, lambda item: belongs("item", item.text, split))


def make_plural(word: str) -> str:
    if word.endswith("f") or word in ("knife", "shelf"):
        return word.removesuffix("e").removesuffix("f") + "ves"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("x", "ch", "sh", "s", "tato", "mato")) else "s")


def draw_items(rng: random.Random, split: str, count: int, plural: bool = False) -> list[Item]:
    """Different items, none of which is a part of another, so that naming one never names two."""
    items: list[Item] = []
    while len(items) < count:
        new = draw_item(rng, split, plural)
        if not any(names(new.text, old.text) or names(old.text, new.text) for old in items):
            items.append(new)
    return items


def draw_code(rng: random.Random) -> str:
    """`K7`, `B12`."""
    return f"{rng.choice('ABCDEFGHJKLMNPRSTUVWXYZ')}{rng.randint(1, 99 if rng.random() < 0.5 else 9)}"


def draw_value(rng: random.Random, kind: str) -> str:
    """A value of an attribute of this kind, as text."""
    if kind == "number":
        return str(rng.randint(0, 99) if rng.random() < 0.6 else rng.randint(100, 9999))
    if kind == "code":
        return draw_code(rng)
    if kind == "colour":
        return rng.choice(list(COLOURS))
    return invent_name(rng) if kind == "name" else rng.choice(FILLERS["city"])


def draw_new_value(rng: random.Random, kind: str, taken: Sequence[str]) -> str:
    """A value that none of these texts names, so that naming it says something."""
    return draw_until(lambda: draw_value(rng, kind), lambda value: not any(names(text, value) for text in taken))


def keep(text: str) -> str:
    """Mark a text so that `vary_words` leaves it as it is: an argument has to be copied letter by letter."""
    return f"\x02{text}\x03"


def vary_words(rng: random.Random, question: str) -> str:
    """`vary`, but for what `keep` marked."""
    kept: list[str] = []

    def hide(match: re.Match[str]) -> str:
        kept.append(match[1])
        return chr(0xE000 + len(kept) - 1)  # a private character: it has no upper case

    varied = vary(rng, re.sub("\x02(.*?)\x03", hide, question))
    return re.sub("[\ue000-\uefff]", lambda match: kept[ord(match[0]) - 0xE000], varied)


def find_words(text: str, value: str) -> re.Match[str] | None:
    """Where the text has this value as words of their own: `rings` is not in `springs`."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE)


def names(text: str, value: str) -> bool:
    """Whether it has."""
    return find_words(text, value) is not None


def says_only(content: str, expected: Sequence[tuple[str, Sequence[str]]], allowed: Iterable[str] = ()) -> bool:
    """Whether the content gives each of these values once, after the words that tell whose value it is.

    expected: each value with those words. Numbers and codes besides must be in `allowed`.
    """
    values = sorted((value for value, _ in expected), key=len, reverse=True)
    for word in sorted({word for _, words in expected for word in words} | set(allowed), key=len, reverse=True):
        if re.search(r"\d", word):  # an item such as K7 is not a number too many
            content = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", f"<{spell_out(word)}>", content, flags=re.IGNORECASE)
    pieces = re.split(rf"(?<!\w)({'|'.join(map(re.escape, values))})(?!\w)", content, flags=re.IGNORECASE)
    clauses = list(zip(pieces[::2], pieces[1::2], strict=False))
    if len(clauses) != len(expected) or re.search(r"\d", "".join(pieces[::2])):
        return False
    found = {value.lower(): clause for clause, value in clauses}
    return len(found) == len(expected) and all(
        all(names(found.get(value.lower(), ""), spell_out(word)) for word in words) for value, words in expected
    )


def spell_out(word: str) -> str:
    """A word with letters in the place of its digits."""
    return re.sub(r"\d", lambda digit: "abcdefghij"[int(digit[0])], word)
