"""World 3, printed text: a sign with up to five capital letters or digits, and the question what it says.

`Sign` is also what a page of a document is. The text in capitals decides between training and held-out, wherever it is
printed.
"""

import functools
import random
import re
import string
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image, ImageDraw, ImageFont

from .pictures import COLOURS, draw_background, draw_ink, plain_background
from .task import Task, vary, weighted

MARGIN = 2  # pixels between the ink and the edge
EDGE = 8  # pixels around a print before it is cut to its ink
SKILLS = {"signs.read": 1.0}

QUESTIONS = {
    "What does the sign say?": 6, "What does this sign say?": 1.5, "What is written on the sign?": 1.5,
    "Read the sign.": 1.5, "What is on the sign?": 0.7, "What text is on the sign?": 0.7,
    "Which text is on the sign?": 0.5, "What does it say?": 0.7, "What is written there?": 0.5,
    "What is written in this image?": 1, "What text do you see?": 0.7, "Read the text in this picture.": 0.7,
    "Can you read the sign?": 0.7, "Tell me what the sign says.": 0.5,
    "Can you read this?": 0.4, "Which word do you see?": 0.3, "What do the letters say?": 0.3, "Read it.": 0.3,
    "What is printed here?": 0.4, "What's on the sign?": 0.4, "Give me the text of the sign.": 0.3,
    "What is the text in this image?": 0.3, "Read what is written.": 0.3, "Spell what the sign says.": 0.2,
}  # fmt: skip
LEAD_INS = ("Here is a sign.", "Look at this sign:", "See this:", "I have a question about this picture.")

# Half of the texts are words or could be; the others cannot be guessed from their first letters.
FORMS = {"word": 3, "name": 2, "letters": 2, "digits": 2, "mixed": 1}
WORDS = (
    "A", "UP", "GO", "IN", "ON", "NO", "OFF", "BUS", "TAXI", "STOP", "EXIT", "OPEN", "SHOP", "CAFE", "BANK", "PARK",
    "ZOO", "HOTEL", "SALE", "FREE", "HELP", "INFO", "PUSH", "PULL", "LEFT", "RIGHT", "DOWN", "SLOW", "FAST", "WAIT",
    "WALK", "KEEP", "OUT", "TRAM", "TRAIN", "METRO", "PORT", "FERRY", "ROAD", "LANE", "GATE", "DOOR", "LIFT", "HALL",
    "ROOM", "DESK", "BAR", "PUB", "GYM", "POOL", "SPA", "MENU", "FOOD", "TEA", "MILK", "BREAD", "FISH", "MEAT", "RICE",
    "CAKE", "PIZZA", "SOUP", "FRUIT", "APPLE", "PEAR", "PLUM", "LEMON", "NUT", "BOLT", "GEAR", "NAIL", "SCREW", "TOOL",
    "SAW", "AXE", "ROPE", "WIRE", "PIPE", "LAMP", "FUSE", "OIL", "GAS", "WATER", "FIRE", "ICE", "SNOW", "RAIN", "WIND",
    "SUN", "MOON", "STAR", "SKY", "SEA", "LAKE", "RIVER", "BEACH", "HILL", "WOOD", "FARM", "BARN", "MILL", "TOWER",
    "FORT", "TOWN", "CITY", "NORTH", "SOUTH", "EAST", "WEST", "HOME", "HOUSE", "INN", "TENT", "CAMP", "BOAT", "SHIP",
    "BIKE", "CAR", "VAN", "TRUCK", "JET", "PLANE", "DOG", "CAT", "COW", "PIG", "HEN", "DUCK", "GOAT", "HORSE", "BEAR",
    "WOLF", "FOX", "LION", "OWL", "BEE", "ANT", "ROSE", "TREE", "LEAF", "SEED", "BOOK", "PAGE", "CARD", "NOTE", "MAP",
    "PEN", "INK", "ART", "MUSIC", "SONG", "DRUM", "BELL", "CLOCK", "TIME", "DAY", "NIGHT", "YEAR", "KING", "QUEEN",
    "JACK", "ACE", "WIN", "GAME", "GOAL", "TEAM", "BALL", "CHESS", "GOLD", "IRON", "STEEL", "GLASS", "PAPER", "STONE",
    "BRICK", "SAND", "SALT", "SUGAR", "SPICE", "HONEY", "RED", "GREEN", "BLUE", "BLACK", "WHITE", "SMALL", "LARGE",
    "NEW", "OLD", "HOT", "COLD", "WET", "DRY", "QUIET", "SAFE", "VIP", "WC", "TV", "CD", "PC", "OK", "ZONE", "AREA",
    "LEVEL", "FLOOR", "ROW", "SEAT", "BOX", "KEY", "LOCK", "CODE", "MAIL", "POST", "NEWS", "CASH", "COIN", "PRICE",
)  # fmt: skip

RGB = tuple[int, int, int]
Range = tuple[int, int]  # both ends included


@dataclass(frozen=True)
class Difficulty:
    """How large and how legible the signs of one kind are."""

    sides: Range
    most_characters: int
    cap_heights: Range
    is_plain: bool  # black, white or grey behind the text


# Under the names of pictures.CANVASES, so that one word says how hard all pictures are.
CANVASES = {
    "plain": Difficulty((56, 140), 2, (32, 64), True),
    "small": Difficulty((56, 168), 3, (24, 64), False),
    "medium": Difficulty((56, 280), 4, (20, 64), False),
    "full": Difficulty((56, 448), 5, (16, 64), False),
}


@dataclass(frozen=True)
class Sign:
    """One text on a plain ground before it is painted; its ink begins at `left` and `top`."""

    lead_ins: ClassVar[tuple[str, ...]] = LEAD_INS
    width: int
    height: int
    background: RGB
    rgb: RGB
    text: str
    cap_height: int
    left: int
    top: int

    @property
    def key(self) -> str:
        return text_key(self.text)

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def parts(self) -> list[dict[str, Any]]:
        return [{"type": "image", "image": self.paint()}]

    def paint(self) -> Image.Image:
        image = Image.new("RGB", (self.width, self.height), self.background)
        image.paste(self.rgb, (self.left, self.top), ink(self.text, self.cap_height))
        return image


def text_key(text: str) -> str:
    """The key of a printed text, the same on a sign and on a page."""
    return f"text:{text}"


@functools.lru_cache(maxsize=16)  # for a sign that is placed and then painted
def ink(text: str, cap_height: int) -> Image.Image:
    """How much ink each pixel gets, 0 to 255, cut to where there is any."""
    return print_ink(text, font(cap_height))


def print_ink(text: str, letters: ImageFont.FreeTypeFont) -> Image.Image:
    """The same in a font as it is. Pillow's own box of a text includes the space before the first letter."""
    left, top, right, bottom = letters.getbbox(text)
    page = Image.new("L", (right - left + 2 * EDGE, bottom - top + 2 * EDGE))
    ImageDraw.Draw(page).text((EDGE - left, EDGE - top), text, fill=255, font=letters)
    return page.crop(page.getbbox())


@functools.cache
def font(cap_height: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font in the largest size whose capitals are not higher than this many pixels.

    That is one pixel less where hinting skips a height. Kept, for reading the font takes longer than printing with it.
    """
    letters = larger = ImageFont.load_default(size=cap_height)  # a size is more than the height of its capitals
    while print_ink("H", larger).height <= cap_height:
        letters, larger = larger, ImageFont.load_default(size=larger.size + 0.25)
    return letters


def draw_sign(rng: random.Random, skill: str, canvas: str) -> Task:
    """The question about a fresh sign, of a kind named in CANVASES."""
    difficulty = CANVASES[canvas]
    text = draw_text(rng, FORMS, difficulty.most_characters)
    colours = draw_colours(rng, difficulty.is_plain)
    sign = place_text(rng, text, colours, (difficulty.sides, difficulty.sides), difficulty.cap_heights)
    question = vary(rng, weighted(rng, QUESTIONS))
    return Task(skill, question, spell(text), f"The sign says {text}.", sign.key, judge_text, text, medium=sign)


def draw_text(rng: random.Random, forms: dict[str, float], most_characters: int) -> str:
    """A text of one of these forms with at most this many characters."""
    form, length = weighted(rng, forms), rng.randint(1, most_characters)
    if form == "word":
        return rng.choice([word for word in WORDS if len(word) <= most_characters])
    if form == "name":  # consonants and vowels in turn: nearly a word
        start = rng.randrange(2)
        kinds = ("BCDFGHJKLMNPQRSTVWXYZ", "AEIOU")
        return "".join(rng.choice(kinds[(start + i) % 2]) for i in range(length))
    alphabet = {"letters": string.ascii_uppercase, "digits": string.digits}
    return "".join(rng.choices(alphabet.get(form, string.ascii_uppercase + string.digits), k=length))


def draw_colours(rng: random.Random, is_plain: bool) -> tuple[RGB, RGB]:
    """Ink of one of the eight colours, and a ground that is far enough from it."""
    while True:
        rgb = draw_ink(rng, rng.choice(list(COLOURS)))
        background = plain_background([rgb]) if is_plain else draw_background(rng, [rgb])
        if background:
            return rgb, background


def place_text(
    rng: random.Random, text: str, colours: tuple[RGB, RGB], sides: tuple[Range, Range], cap_heights: Range
) -> Sign:
    """A sign with this text wholly inside; width and height are drawn from `sides`, the ranges they may have."""
    while True:
        cap_height = rng.randint(*cap_heights)
        wide, tall = ink(text, cap_height).size
        lows = [max(low, extent + 2 * MARGIN) for (low, _), extent in zip(sides, (wide, tall), strict=True)]
        if all(low <= high for low, (_, high) in zip(lows, sides, strict=True)):
            break
    width, height = (rng.randint(low, high) for low, (_, high) in zip(lows, sides, strict=True))
    left, top = rng.randint(MARGIN, width - wide - MARGIN), rng.randint(MARGIN, height - tall - MARGIN)
    rgb, background = colours
    return Sign(width, height, background, rgb, text, cap_height, left, top)


def spell(text: str) -> str:
    """Character by character, each on a line with its number, which tells two equal ones apart."""
    return "\n".join(f"{number} {character}" for number, character in enumerate(text, start=1))


def printed_words(answer: str) -> list[str]:
    """What stands in capitals or digits in an answer, which is what it quotes."""
    words = re.findall(r"[A-Za-z0-9]+", re.sub(r"^(?:I|A)(?= [a-z])", "", answer))
    return [word for word in words if word == word.upper()]


def judge_text(answer: str, truth: str) -> bool:
    """This text, character by character, and no other."""
    return printed_words(answer) == [truth]
