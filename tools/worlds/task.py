"""One question with its true answer: what every world produces, before it becomes a conversation."""

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

SPLITS = ("train", "held-out")


class Medium(Protocol):
    """What a question is about besides its own words: a picture, a video, a document or a long text."""

    lead_ins: ClassVar[Sequence[str]]  # sentences that may stand before it

    @property
    def keys(self) -> tuple[str, ...]:
        """Everything that can be seen or read in it, each under the key that it has as a content of its own."""

    def parts(self) -> list[dict[str, Any]]:
        """It as content parts of a message."""


@dataclass(frozen=True)
class Level:
    """For which split a question is drawn, and how hard it may be; each world takes from it what it has."""

    split: str
    canvas: str
    num_shapes: Sequence[int]
    num_tokens: int | None


@dataclass(frozen=True)
class Task:
    """A question, how to think about it, the answer, and how to judge somebody else's answer.

    `key` names the random content (operands, picture, names) and decides between training and held-out;
    None means that nothing in the question is random, and both may ask it.
    """

    skill: str
    question: str
    reasoning_content: str
    content: str
    key: str | None
    judge: Callable[[str, Any], bool]
    truth: Any
    medium: Medium | None = None
    system: str | None = None
    shows: tuple[str, ...] = ()  # keys of what else stands in it that could be asked for by itself

    def belongs_to(self, split: str) -> bool:
        """Whether this split may ask it.

        A held-out question is about something held out. Training shows nothing that is held out, not even beside the
        point: a held-out picture is no frame of a clip and a held-out word is on no page of a document.
        """
        if self.key is None:
            return True
        if split == "held-out":
            return is_held_out(self.key)
        shown = self.medium.keys if self.medium else ()
        return not any(is_held_out(key) for key in {self.key, *shown, *self.shows})


def is_held_out(key: str) -> bool:
    """One key in ten is never trained on. The hash is stable across machines and Python versions."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10 == 0


def is_of_split(key: str, split: str) -> bool:
    """Whether what has this key may be asked about in this split."""
    return is_held_out(key) == (split == "held-out")


def draw_of_split(split: str, draw: Callable[[], str], key_of: Callable[[str], str]) -> str:
    """Draw one of several contents of a question until it belongs to the split by itself."""
    while True:
        content = draw()
        if is_of_split(key_of(content), split):
            return content


# What stands around a question where people talk: {q} is the question. None of it asks for anything.
FRAMES = (
    "I have a question. {q}", "Question: {q}", "Next question: {q}", "Quick question: {q}", "One more thing: {q}",
    "Hi! {q}", "Hello. {q}", "Hey, {q}", "OK. {q}", "Now {q}", "Thanks. {q}", "{q} Thanks!",
    "Tell me: {q}", "Can you help me? {q}", "I want to know this: {q}", "{q} I need to know it.", "{q} Thank you.",
)  # fmt: skip


def weighted(rng: random.Random, choices: dict[Any, float]) -> Any:
    """Pick one key of `choices` with its weight."""
    return rng.choices(list(choices), weights=list(choices.values()))[0]


def vary(rng: random.Random, question: str, polite: bool = True) -> str:
    """The same question as other people type it: capitals, final punctuation, 'please', words around it, blanks."""
    text = question
    if polite and rng.random() < 0.12:
        text = please(rng, text)
    elif polite and rng.random() < 0.06:
        text = rng.choice(FRAMES).format(q=text)
    roll = rng.random()
    if roll < 0.15:
        text = text[0].lower() + text[1:]
    elif roll < 0.20:
        text = text.lower()
    elif roll < 0.22:
        text = text.upper()
    if rng.random() < 0.12:
        text = text.rstrip("?.! ") or text
    elif rng.random() < 0.05:
        text = text.rstrip("?. ") + rng.choice(("!", "??", " ?", "..."))
    if rng.random() < 0.03:
        text = rng.choice((" " + text, text + " ", text + "\n"))
    return text


def please(rng: random.Random, question: str) -> str:
    """Add 'please' in front or behind, keeping the final mark last."""
    if rng.random() < 0.5:
        return f"Please {question[0].lower()}{question[1:]}" if question.endswith(".") else f"Please: {question}"
    body, mark = re.fullmatch(r"(.*?)([?.!]*)", question, re.DOTALL).groups()
    return f"{body}{rng.choice((', please', ' please'))}{mark}"


def join_words(words: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
