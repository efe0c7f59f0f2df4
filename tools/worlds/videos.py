"""World 4, video: one plain shape that moves, grows, shrinks or changes colour, and questions about what happens.

A clip is the first and the last of its scenes and the frames between them. It is held out if the picture that it ends
with is: no training has shown that picture, alone or as a frame.
"""

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from PIL import Image
from PIL.PngImagePlugin import Disposal

from .pictures import (
    COLOURS,
    KINDS,
    PLACES,
    SIZES,
    Scene,
    Shape,
    american,
    draw_background,
    draw_position,
    draw_shape,
    listing,
    plain_background,
    words_of,
)
from .task import Task, vary, weighted

# Sides in pixels, under the names of pictures.CANVASES; smaller, for every frame costs as much as a picture.
CANVASES = {"plain": (84, 112), "small": (84, 140), "medium": (56, 168), "full": (56, 224)}
MOST_FRAMES = {"plain": 4, "small": 6, "medium": 8, "full": 16}  # and at least two
FRAME_MS = 500  # two frames a second, the rate of the published settings: the model sees all of them
SHORTEST_WAY = 1 / 5  # of the side that a shape moves along
SKILLS = {"videos.motion": 2.0, "videos.size": 1.0, "videos.colour": 1.0}
DIRECTIONS = ("left", "right", "up", "down")

HAPPENS = {
    "What happens in the video?": 6, "What happens in this video?": 2, "What happens in the clip?": 1,
    "What is happening in the video?": 1, "What does the video show?": 0.7, "Describe the video.": 1,
    "What changes in the video?": 0.5, "Describe what happens.": 0.7, "What can you see in this video?": 0.5,
    "What's happening here?": 0.4, "What is in this video?": 0.3, "Tell me what happens in the video.": 0.4,
    "What happens here?": 0.4, "What do you see in the clip?": 0.3, "Describe this clip.": 0.3,
}  # fmt: skip
MOTION = {
    "Which way does the {x} move?": 5, "In which direction does the {x} move?": 1.5, "Where does the {x} move?": 0.7,
    "Which direction does the {x} go?": 0.5, "Where is the {x} going?": 0.5, "What is the {x} doing?": 0.5,
    "To which side does the {x} move?": 0.3, "Does the {x} move, and where to?": 0.3, "How does the {x} move?": 0.4,
}  # fmt: skip
SIZE = {
    "Does the {x} grow or shrink?": 3, "Does the {x} shrink or grow?": 1.5, "What happens to the {x}?": 2,
    "How does the size of the {x} change?": 1, "What is the {x} doing?": 0.7, "What changes about the {x}?": 0.7,
}  # fmt: skip
COLOUR = {
    "What colour does the {x} turn?": 3, "Which colour does the {x} turn?": 1.5, "What happens to the {x}?": 2,
    "What colour is the {x} at the end?": 1, "What colour does the {x} change to?": 0.7, "What is the {x} doing?": 0.7,
    "What changes about the {x}?": 0.7, "Into which colour does the {x} change?": 0.5,
    "How does the colour of the {x} change?": 0.5,
}  # fmt: skip
LEAD_INS = ("Here is a video.", "Look at this clip:", "See this:", "I have a question about this video.")
LARGER = {"grow", "grows", "grew", "growing", "larger", "bigger"}
SMALLER = {"shrink", "shrinks", "shrank", "shrinking", "smaller"}


@dataclass(frozen=True)
class Clip:
    """All scenes of a video before they are painted, each with the one shape on the same background."""

    lead_ins: ClassVar[tuple[str, ...]] = LEAD_INS
    scenes: tuple[Scene, ...]

    @property
    def words(self) -> tuple[str, str]:
        """The first scene and the last, as a thought about a picture names them."""
        return listing(self.scenes[0]), listing(self.scenes[-1])

    @property
    def key(self) -> str:
        return self.scenes[-1].key

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(scene.key for scene in self.scenes))

    def parts(self) -> list[dict[str, Any]]:
        return [{"type": "video", "video": self.encode()}]

    def paint(self) -> list[Image.Image]:
        return [scene.paint() for scene in self.scenes]

    def encode(self) -> bytes:
        """An animated PNG, which keeps every pixel."""
        first, *others = self.paint()
        stream = io.BytesIO()
        # Pillow joins equal frames, of which a clip has many where a colour changes. A frame that is cleared before
        # the next one is drawn never equals it.
        animation = {"save_all": True, "append_images": others, "duration": FRAME_MS, "compress_level": 1}
        first.save(stream, "PNG", **animation, disposal=Disposal.OP_BACKGROUND)
        return stream.getvalue()


def draw_video(rng: random.Random, skill: str, canvas: str) -> Task:
    """One question of this skill about a fresh clip, on a canvas of a kind named in CANVASES."""
    clip, verb = draw_clip(rng, skill, canvas)
    shape = clip.scenes[0].shapes[0]
    questions = HAPPENS if rng.random() < 0.6 else QUESTIONS[skill]
    question = vary(rng, american(rng, weighted(rng, questions).format(x=shape.kind)))
    first, last = clip.words
    answer, truth = f"The {shape.colour} {shape.kind} {verb}.", (shape.colour, shape.kind, verb.split()[-1])
    return Task(skill, question, f"first: {first}\nlast: {last}", answer, clip.key, JUDGES[skill], truth, medium=clip)


def draw_clip(rng: random.Random, skill: str, canvas: str) -> tuple[Clip, str]:
    """A random clip, and what its shape does: 'moves left', 'grows', 'turns blue'."""
    low, high = CANVASES[canvas]
    width, height, num_frames = rng.randint(low, high), rng.randint(low, high), rng.randint(2, MOST_FRAMES[canvas])
    background = None
    while background is None:
        first, last, verb = CHANGES[skill](rng, width, height)
        inks = [first.rgb, last.rgb]
        background = plain_background(inks) if canvas == "plain" else draw_background(rng, inks)
    turn = rng.randrange(1, num_frames)  # the frame from which the colour is the last one
    scenes = []
    for i in range(num_frames):
        part = i / (num_frames - 1)
        box = tuple(math.floor(a + part * (b - a) + 0.5) for a, b in zip(first.box, last.box, strict=True))
        shape = shape_at(box, (width, height), first if i < turn else last)
        scenes.append(Scene(width, height, background, (shape,)))
    return Clip(tuple(scenes)), verb


def shape_at(box: tuple[int, int, int, int], canvas: tuple[int, int], like: Shape) -> Shape:
    """A shape of this colour and kind in this box, with the words that are true of it there."""
    left, top, right, bottom = box
    width, height = canvas
    row, column = int(3 * (top + bottom) / (2 * height)), int(3 * (left + right) / (2 * width))
    size = min(SIZES, key=lambda name: abs(math.log((right - left) / min(canvas) / SIZES[name])))
    return replace(like, size=size, place=PLACES[3 * row + column], box=box)


def move(rng: random.Random, width: int, height: int) -> tuple[Shape, Shape, str]:
    """From one third of the canvas into another, far enough to be seen."""
    direction = rng.choice(DIRECTIONS)
    near, far = sorted(rng.sample(range(3), 2))
    start, end = (far, near) if direction in ("left", "up") else (near, far)
    other = rng.randrange(3)  # the row of a shape that moves sideways, the column of one that moves up or down
    axis, side = (0, width) if direction in ("left", "right") else (1, height)
    place = PLACES[3 * other + start if axis == 0 else 3 * start + other]
    while True:
        first = draw_shape(rng, width, height, place, tuple(SIZES))
        box = list(first.box)
        way = draw_position(rng, side, end, box[axis + 2] - box[axis]) - box[axis]
        if abs(way) >= SHORTEST_WAY * side:
            box[axis], box[axis + 2] = box[axis] + way, box[axis + 2] + way
            return first, replace(first, box=tuple(box)), f"moves {direction}"


def resize(rng: random.Random, width: int, height: int) -> tuple[Shape, Shape, str]:
    """From one of the three sizes to another, around its centre."""
    names = list(SIZES)
    small, large = (names[i] for i in sorted(rng.sample(range(3), 2)))
    place = rng.choice(PLACES)
    full = draw_shape(rng, width, height, place, (large,))
    other = draw_shape(rng, width, height, place, (small,)).box
    left, top, right, bottom = full.box
    wide = other[2] - other[0]
    tall = round(wide * (bottom - top) / (right - left))
    inner_left, inner_top = (left + right - wide) // 2, (top + bottom - tall) // 2
    inner = replace(full, size=small, box=(inner_left, inner_top, inner_left + wide, inner_top + tall))
    return (inner, full, "grows") if rng.random() < 0.5 else (full, inner, "shrinks")


def recolour(rng: random.Random, width: int, height: int) -> tuple[Shape, Shape, str]:
    """From one colour to another from one frame to the next."""
    place = rng.choice(PLACES)
    first = draw_shape(rng, width, height, place, tuple(SIZES))
    while True:
        other = draw_shape(rng, width, height, place, tuple(SIZES))
        if other.colour != first.colour:
            return first, replace(first, colour=other.colour, rgb=other.rgb), f"turns {other.colour}"


def says_subject(words: Sequence[str], colours: set[str], kind: str) -> bool:
    """No other kind and no other colours are named; neither has to be."""
    return set(words) & set(KINDS) <= {kind} and set(words) & set(COLOURS) <= colours


def judge_motion(answer: str, truth: tuple[str, str, str]) -> bool:
    """This direction and no other."""
    colour, kind, direction = truth
    words = words_of(answer)
    return set(words) & set(DIRECTIONS) == {direction} and says_subject(words, {colour}, kind)


def judge_size(answer: str, truth: tuple[str, str, str]) -> bool:
    """That it grows, or that it shrinks, in one of the usual words."""
    colour, kind, verb = truth
    words = words_of(answer)
    said = [name for name, group in (("grows", LARGER), ("shrinks", SMALLER)) if group & set(words)]
    return said == [verb] and says_subject(words, {colour}, kind)


def judge_colour(answer: str, truth: tuple[str, str, str]) -> bool:
    """The last colour that is named is the new one, and only the old one may be named besides."""
    colour, kind, new = truth
    words = words_of(answer)
    return [word for word in words if word in COLOURS][-1:] == [new] and says_subject(words, {colour, new}, kind)


CHANGES: dict[str, Any] = {"videos.motion": move, "videos.size": resize, "videos.colour": recolour}
QUESTIONS: dict[str, dict[str, float]] = {"videos.motion": MOTION, "videos.size": SIZE, "videos.colour": COLOUR}
JUDGES: dict[str, Any] = {"videos.motion": judge_motion, "videos.size": judge_size, "videos.colour": judge_colour}
