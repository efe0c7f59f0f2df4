"""One question with its true answer: what every world produces, before it becomes a conversation."""

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pictures import Scene
    from .videos import Clip


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
    scene: "Scene | None" = None
    clip: "Clip | None" = None
    system: str | None = None


def is_held_out(key: str) -> bool:
    """One key in ten is never trained on. The hash is stable across machines and Python versions."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10 == 0


def weighted(rng: random.Random, choices: dict[Any, float]) -> Any:
    """Pick one key of `choices` with its weight."""
    return rng.choices(list(choices), weights=list(choices.values()))[0]


def vary(rng: random.Random, question: str, polite: bool = True) -> str:
    """The same question as other people type it: capitals, final punctuation, 'please', a blank too many."""
    text = question
    if polite and rng.random() < 0.12:
        text = please(rng, text)
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
