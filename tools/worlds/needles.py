"""World 8, long context: one code hidden in a long text of sentences about nothing, and codes of other doors.

The text is made here, sentence by sentence, from a few lists. A code is held out or not wherever it stands.
"""

import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from .pictures import COLOURS
from .task import Task, draw_of_split, vary, weighted

SKILLS = {"needles.code": 1.0}
NUM_TOKENS = (1000, 16000)
CHARACTERS_PER_TOKEN = 1.965  # of this filler in the shipped vocabulary
NUM_OTHERS = (2, 6)  # codes of other doors
PARAGRAPH = (3, 7)  # sentences
THINGS = {"door": 5, "gate": 1, "box": 1, "safe": 1, "room": 1}

QUESTIONS = {
    "What is the code of the {x}?": 6, "Which code does the {x} have?": 1, "What code does the {x} have?": 1,
    "What is the code for the {x}?": 1, "Tell me the code of the {x}.": 1, "Find the code of the {x}.": 1,
    "Do you know the code of the {x}?": 0.5, "What's the code of the {x}?": 1,
}  # fmt: skip
LEAD_INS = ("Here is a text.", "Read this text:", "I have a question about this text.", "Read the following.")

SUBJECTS = (
    "the old teacher", "a young farmer", "the baker", "my neighbour", "the captain", "a tired singer", "the gardener",
    "her brother", "the librarian", "a quiet stranger", "the painter", "our cousin", "the shepherd", "a tall woman",
    "the carpenter", "his aunt", "the driver", "a small boy", "the doctor", "the postman", "a lonely sailor",
    "the tailor", "my grandmother", "the young clerk", "the cook", "a cheerful guest", "the miller", "the pilot",
    "a stray dog", "the grey cat", "the black horse", "a flock of geese",
)  # fmt: skip
VERBS = (
    "watched", "carried", "found", "painted", "forgot", "described", "sold", "repaired", "cleaned", "borrowed",
    "remembered", "followed", "lifted", "counted", "hid", "measured", "moved", "noticed", "wanted", "lost", "kept",
    "drew", "praised", "returned", "looked for", "asked about", "waited for", "dreamt of", "talked about",
    "walked around",
)  # fmt: skip
OBJECTS = (
    "a wooden chair", "the broken clock", "two baskets of apples", "a heavy stone", "the long letter", "an old map",
    "a pair of boots", "the silver spoon", "a bag of flour", "the last candle", "a bundle of hay", "some warm bread",
    "the garden wall", "a rusty key", "the wet umbrella", "a bowl of soup", "the thick book", "a bottle of milk",
    "the tall ladder", "a piece of rope", "the music box", "an empty bucket", "the kitchen table", "a jar of honey",
    "the woollen coat", "a paper boat", "the round mirror", "a box of nails", "the window frame", "a copper kettle",
)  # fmt: skip
PLACES = (
    "near the river", "behind the mill", "in the market", "at the edge of the forest", "under the bridge",
    "beside the school", "on the hill", "in the narrow street", "by the sea", "in front of the church",
    "between two barns", "at the station", "in the cellar", "on the roof", "along the fence", "across the field",
    "inside the tower", "next to the well", "at the end of the lane", "in the courtyard", "on the other side of town",
    "close to the harbour",
)  # fmt: skip
TIMES = (
    "in the morning", "before lunch", "after the rain", "late at night", "on a windy day", "during the holidays",
    "at noon", "once a week", "in early spring", "when the bells rang", "while it was snowing", "every second day",
    "a long time ago", "without a word", "for no reason", "with great care", "as always", "in a hurry", "by mistake",
    "just in time",
)  # fmt: skip
ASIDES = (
    "Nobody was surprised.", "It was cold outside.", "That took a while.", "The rest is not known.",
    "Everyone was pleased.", "It happened more than once.", "There was no hurry.", "The wind had turned.",
    "Nothing else changed.", "It was a quiet day.", "The light was fading.", "Some people laughed.",
)  # fmt: skip
FORMS = {"{s} {v} {o} {p}.": 4, "{t}, {s} {v} {o}.": 3, "{s} {v} {o} {t}.": 3, "{p}, {s} {v} {o} {t}.": 1, "{a}": 1}


@dataclass(frozen=True)
class LongText:
    """A text with codes in it."""

    lead_ins: ClassVar[tuple[str, ...]] = LEAD_INS
    text: str
    codes: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(map(code_key, self.codes))

    def parts(self) -> list[dict[str, Any]]:
        return [{"type": "text", "text": self.text}]


def code_key(code: str) -> str:
    return f"code:{code}"


def draw_needle(rng: random.Random, skill: str, split: str, num_tokens: int | None) -> Task:
    """The question for one code in a text of about `num_tokens` tokens; None: of any length, short ones more often."""
    if num_tokens is None:
        low, high = NUM_TOKENS
        num_tokens = round(math.exp(rng.uniform(math.log(low), math.log(high))))
    count = 1 + rng.randint(*NUM_OTHERS)
    names = draw_names(rng, count)
    codes: list[str] = []
    while len(codes) < count:
        code = draw_of_split(split, lambda: str(rng.randint(1000, 9999)), code_key)
        codes += [code] if code not in codes else []
    needles = [f"The code of the {name} is {code}." for name, code in zip(names, codes, strict=True)]
    text = hide(rng, needles, num_tokens)
    question = vary(rng, weighted(rng, QUESTIONS).format(x=names[0]))
    reasoning = f"{names[0]}: {codes[0]}"
    truth = (names[0], codes[0])
    medium = LongText(text, tuple(codes))
    return Task(skill, question, reasoning, needles[0], code_key(codes[0]), judge_code, truth, medium=medium)


def draw_names(rng: random.Random, count: int) -> list[str]:
    """Different things with a colour: 'blue door'. The first is the one that is asked for."""
    names: list[str] = []
    while len(names) < count:
        name = f"{rng.choice(list(COLOURS))} {weighted(rng, THINGS)}"
        names += [name] if name not in names else []
    return names


def hide(rng: random.Random, needles: list[str], num_tokens: int) -> str:
    """Filler of this length in paragraphs, with each needle between two sentences anywhere."""
    room = num_tokens * CHARACTERS_PER_TOKEN - sum(map(len, needles))
    filler: list[str] = []
    for sentence in draw_sentences(rng):
        if room < len(sentence) / 2:
            break
        filler.append(sentence)
        room -= len(sentence) + 1
    places = [rng.randint(0, len(filler)) for _ in needles]
    for place, needle in sorted(zip(places, needles, strict=True), reverse=True):
        filler.insert(place, needle)
    sentences = iter(filler)
    paragraphs = []
    while paragraph := list(itertools.islice(sentences, rng.randint(*PARAGRAPH))):
        paragraphs.append(" ".join(paragraph))
    return "\n".join(paragraphs)


def draw_sentences(rng: random.Random) -> Iterator[str]:
    """Sentences without end, none of which has a digit in it."""
    lists = {"s": SUBJECTS, "v": VERBS, "o": OBJECTS, "p": PLACES, "t": TIMES, "a": ASIDES}
    while True:
        sentence = weighted(rng, FORMS).format(**{name: rng.choice(words) for name, words in lists.items()})
        yield sentence[0].upper() + sentence[1:]


def judge_code(answer: str, truth: tuple[str, str]) -> bool:
    """This code is the only number, and no other thing is named."""
    name, code = truth
    words = set(re.findall(r"[a-z]+", answer.lower()))
    colour, thing = name.split()
    is_about_it = words & set(COLOURS) <= {colour} and words & set(THINGS) <= {thing}
    return re.findall(r"\d+", answer) == [code] and is_about_it
