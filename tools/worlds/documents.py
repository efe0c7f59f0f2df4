"""World 5, documents: one to three pages with one large number or word each, and questions about them.

A page is a sign whose text is held out or not wherever it is printed; a held-out document has held-out texts only.
"""

import functools
import random
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from .pdf import PIXELS_PER_POINT, write_pdf
from .pictures import draw_ink
from .signs import Sign, draw_colours, draw_text, place_text, printed_words, spell, text_key
from .task import Task, draw_of_split, join_words, vary, weighted

SKILLS = {"documents.page": 3.0, "documents.count": 1.0}
NUM_PAGES = (1, 3)
MOST_CHARACTERS = 5
CAP_HEIGHTS = (16, 64)  # pixels
BLACK_ON_WHITE = 0.6  # of the documents
FORMS = {"word": 3, "name": 2, "digits": 2.5}  # numbers, words, and what could be a word
ORDINALS = ("first", "second", "third")

# Sides of a page in points, under the names of pictures.CANVASES. A point is two pixels, so a page takes 16 to 36
# tokens, 16 to 100, or 16 to 256. Common sizes take more: A8 165 tokens, A7 330 and A6 660, which are among the full
# ones; and A5 1290, letter 2508 and A4 2623, which have a name of their own: "paper".
CANVASES = {"plain": (56, 84), "small": (56, 84), "medium": (56, 140), "full": (56, 224)}
CARDS = ((147, 210), (210, 298), (298, 420))  # A8, A7, A6
CARD_SHARE = 0.1  # of the documents on a full canvas
PAPERS = ((420, 595), (612, 792), (595, 842))  # A5, letter, A4

PAGE = {
    "What does page {n} say?": 6, "What is on page {n}?": 2, "What is written on page {n}?": 1.5,
    "What is printed on page {n}?": 1, "Read page {n}.": 1, "What does the {o} page say?": 1.5,
    "What can you read on page {n}?": 0.7, "Which word is on page {n}?": 0.5, "What is the text of page {n}?": 0.5,
}  # fmt: skip
WHOLE = {
    "What does the document say?": 4, "What does this document say?": 1.5, "What is in the document?": 1,
    "Read the document.": 1, "What do the pages say?": 1, "What is written in this document?": 1,
    "Read all pages.": 0.7,
}  # fmt: skip
COUNT = {
    "How many pages are there?": 5, "How many pages does the document have?": 3, "How many pages are in it?": 0.5,
    "How many pages does it have?": 1, "How many pages is this document?": 1, "Count the pages.": 1,
    "What is the number of pages?": 0.7, "How long is the document?": 0.5,
}  # fmt: skip
LEAD_INS = ("Here is a document.", "Look at this document:", "Read this:", "I have a question about this PDF.")
COUNTS = ("no", "one", "two", "three")


@dataclass(frozen=True)
class Document:
    """The pages before they are printed, and whether they are handed over as a PDF file or as rendered."""

    lead_ins: ClassVar[tuple[str, ...]] = LEAD_INS
    pages: tuple[Sign, ...]
    as_file: bool

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(page.key for page in self.pages)

    def encode(self) -> bytes:
        """The document as a PDF file."""
        return write_pdf([page.paint() for page in self.pages])

    def parts(self) -> list[dict[str, Any]]:
        """The file, or what the media pipeline makes of it, which is the same prompt and needs no PDF renderer."""
        if self.as_file:
            return [{"type": "pdf", "pdf": self.encode()}]
        return [
            part
            for number, page in enumerate(self.pages, start=1)
            for part in ({"type": "text", "text": f"Page {number}:\n"}, {"type": "image", "image": page.paint()})
        ]


def draw_document(rng: random.Random, skill: str, split: str, canvas: str) -> Task:
    """One question of this skill about a fresh document with pages of a kind named in CANVASES, or "paper"."""
    # Training must not need the extra that renders PDF files; a test goes all the way.
    document = Document(draw_pages(rng, split, canvas), as_file=split == "held-out")
    question, reasoning, answer, truth, judge = ASKERS[skill](rng, document)
    return Task(skill, vary(rng, question), reasoning, answer, document.keys[0], judge, truth, medium=document)


def draw_pages(rng: random.Random, split: str, canvas: str) -> tuple[Sign, ...]:
    """One to three pages of one size, mostly black on white, in letters of a sign's height or higher."""
    width, height = draw_size(rng, canvas)
    sides = ((width, width), (height, height))
    short = min(width, height)
    cap_heights = (max(CAP_HEIGHTS[0], short // 8), max(CAP_HEIGHTS[1], short // 5))
    is_usual = canvas == "plain" or rng.random() < BLACK_ON_WHITE
    colours = (draw_ink(rng, "black"), (255, 255, 255)) if is_usual else draw_colours(rng, is_plain=False)
    draw = functools.partial(draw_text, rng, FORMS, 2 if canvas == "plain" else MOST_CHARACTERS)
    texts = [draw_of_split(split, draw, text_key) for _ in range(rng.randint(*NUM_PAGES))]
    return tuple(place_text(rng, text, colours, sides, cap_heights) for text in texts)


def draw_size(rng: random.Random, canvas: str) -> tuple[int, int]:
    """Width and height of a page in pixels, upright or lying."""
    if canvas == "paper" or (canvas == "full" and rng.random() < CARD_SHARE):
        points = rng.sample(rng.choice(PAPERS if canvas == "paper" else CARDS), 2)
    else:
        points = [rng.randint(*CANVASES[canvas]), rng.randint(*CANVASES[canvas])]
    return points[0] * PIXELS_PER_POINT, points[1] * PIXELS_PER_POINT


def ask_page(rng: random.Random, document: Document) -> tuple:
    """What one page says, or sometimes all of them."""
    texts = [page.text for page in document.pages]
    if rng.random() < 0.25:
        says = [f"page {number} says {text}" for number, text in enumerate(texts, start=1)]
        answer = join_words(says)
        thought = "\n".join(f"page {number}\n{spell(text)}" for number, text in enumerate(texts, start=1))
        return weighted(rng, WHOLE), thought, f"{answer[0].upper()}{answer[1:]}.", tuple(texts), judge_whole
    index = rng.randrange(len(texts))
    question = weighted(rng, PAGE).format(n=index + 1, o=ORDINALS[index])
    text = texts[index]
    return question, f"page {index + 1}\n{spell(text)}", f"Page {index + 1} says {text}.", (index + 1, text), judge_page


def ask_count(rng: random.Random, document: Document) -> tuple:
    """How many pages it has."""
    count = len(document.pages)
    thought = ", ".join(f"page {number}" for number in range(1, count + 1))
    answer = f"There {'is' if count == 1 else 'are'} {count} page{'' if count == 1 else 's'}."
    return weighted(rng, COUNT), thought, answer, count, judge_count


def judge_page(answer: str, truth: tuple[int, str]) -> bool:
    """This text and no other, and no other page."""
    number, text = truth
    named = page_numbers(answer)
    return set(named) <= {number} and printed_words(without_numbers(answer)) == [text]


def judge_whole(answer: str, truth: tuple[str, ...]) -> bool:
    """The texts of all pages in order; where pages are named, each one and in order."""
    in_order = page_numbers(answer) in ([], list(range(1, len(truth) + 1)))
    return in_order and printed_words(without_numbers(answer)) == list(truth)


def judge_count(answer: str, truth: int) -> bool:
    """The only number, in digits or words, is the true one."""
    found = [word for word in re.findall(r"[a-z]+|\d+", answer.lower()) if word.isdigit() or word in COUNTS]
    return found in ([str(truth)], [COUNTS[truth]])


def page_numbers(answer: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\bpage (\d+)\b", answer, re.IGNORECASE)]


def without_numbers(answer: str) -> str:
    """The answer without the names of pages, whose numbers are not what they say."""
    return re.sub(r"\bpage \d+\b", "page", answer, flags=re.IGNORECASE)


ASKERS: dict[str, Any] = {"documents.page": ask_page, "documents.count": ask_count}
