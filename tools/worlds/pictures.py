"""World 3, pictures: one to four plain shapes on a plain background, and questions about them.

A scene is drawn at random, described in words, and only then painted: the description is what decides
between training and held-out, so a held-out picture is one whose whole content was never trained on.
"""

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image, ImageDraw

from .task import Task, join_words, vary, weighted

COLOURS = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 210, 40),
    "purple": (140, 50, 170), "orange": (240, 140, 30), "black": (10, 10, 10), "white": (250, 250, 250),
}  # fmt: skip
KINDS = ("circle", "square", "triangle")
SIZES = {"small": 1 / 8, "medium": 1 / 5, "large": 1 / 3}  # extent as a share of the short side
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
COUNTS = ("no", "one", "two", "three", "four")
BACKGROUND_DISTANCE = 80.0
COMMON_BACKGROUNDS = (
    (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 200, 200), (245, 240, 225), (135, 206, 235),
)  # fmt: skip

# Sides in pixels. 28 × 28 pixels make one token, so small canvases make training several times cheaper.
# "plain" is the easiest: shapes that are not small, on a background that tells nothing about them.
CANVASES = {"plain": (84, 140), "small": (84, 168), "medium": (56, 280), "full": (56, 448)}
SKILLS = {
    "pictures.describe": 3.0, "pictures.count": 1.5, "pictures.colour": 1.5, "pictures.shape": 1.2,
    "pictures.at": 1.2, "pictures.exists": 1.2, "pictures.place_of": 1.0,
}  # fmt: skip

DESCRIBE = {
    "Describe this image in detail.": 6, "Describe this image.": 2, "Describe the image.": 1,
    "Describe this picture.": 1, "What is in this image?": 1, "What do you see in this image?": 1,
    "What can you see?": 0.7, "What is in the picture?": 0.7, "Describe the picture in detail.": 1,
    "What does this image show?": 0.7, "Tell me what is in this image.": 0.5, "Can you describe this image?": 0.5,
    "Describe what you see.": 0.7, "Describe it.": 0.3, "What do you see?": 0.5, "What is this?": 0.3,
    "What is shown here?": 0.3, "What is shown in the image?": 0.3, "What is depicted in this picture?": 0.3,
    "What does the picture show?": 0.5, "What is to be seen in this picture?": 0.3, "What can be seen here?": 0.3,
    "What's in the image?": 0.5, "What's this a picture of?": 0.3, "What is on this picture?": 0.3,
    "Tell me about this image.": 0.5, "Tell me what this picture shows.": 0.3, "Tell me all that you see.": 0.3,
    "Give a description of the picture.": 0.3, "Give me a detailed description.": 0.3,
    "Write a description of this image.": 0.3, "I would like a description of this picture.": 0.3,
    "List the shapes in this image.": 0.3, "List everything in the picture.": 0.3, "Which shapes are there?": 0.3,
    "Which shapes do you see in this picture?": 0.3, "What shapes are in the image?": 0.3, "Name all shapes.": 0.3,
    "Which objects can you see in the image?": 0.3, "What objects are in this picture?": 0.3,
    "Look at the picture and describe it.": 0.3, "Explain this image.": 0.3, "Caption this image.": 0.3,
    "Say what is in the picture.": 0.3, "Can you describe what you see?": 0.3, "What am I looking at?": 0.3,
    "Could you describe the picture for me?": 0.3, "I want to know what is in this image.": 0.3,
    "Can you tell me what is in this picture?": 0.3, "Can you see what is in the image?": 0.3, "What is in it?": 0.3,
    "Do you see what this is?": 0.3, "Put this picture into words.": 0.3, "How would you describe this image?": 0.3,
}  # fmt: skip
COUNT = {
    "How many {x}s are there?": 5, "How many {x}s are in the image?": 2, "How many {x}s do you see?": 1,
    "Count the {x}s.": 1, "How many {x}s can you see?": 1, "What is the number of {x}s?": 0.5, "How many {x}s?": 0.3,
    "How many {x}s does the picture show?": 0.3, "Give me the number of {x}s.": 0.3, "Count all {x}s.": 0.3,
    "Say how many {x}s you see.": 0.3, "I want to know how many {x}s there are.": 0.3, "Number of {x}s?": 0.3,
    "How many {x}s can be seen?": 0.3, "Do you know how many {x}s there are?": 0.3, "How many {x}s are here?": 0.3,
}  # fmt: skip
COLOUR = {
    "What colour is the {x}?": 5, "What is the colour of the {x}?": 1.5, "Which colour is the {x}?": 1,
    "Which colour does the {x} have?": 0.7, "Tell me the colour of the {x}.": 0.5, "Name the colour of the {x}.": 0.3,
    "What colour does the {x} have?": 0.3, "What is the {x}'s colour?": 0.3, "The {x} has what colour?": 0.3,
    "Say which colour the {x} is.": 0.3, "Do you know the colour of the {x}?": 0.3,
    "In which colour is the {x} painted?": 0.3, "Could you tell me which colour the {x} is?": 0.3,
}  # fmt: skip
SHAPE_AT = {
    "What shape is {p}?": 5, "Which shape is {p}?": 2, "What is the shape {p}?": 0.7, "What kind of shape is {p}?": 0.7,
    "Which shape do you see {p}?": 0.5, "What shape can you see {p}?": 0.5, "What shape is the one {p}?": 0.5,
    "What is the shape of the object {p}?": 0.3, "What's the shape of the one {p}?": 0.3,
    "Say which shape is {p}.": 0.3,
    "Tell me the shape of the thing {p}.": 0.3, "What type of shape is {p}?": 0.3, "Which kind of shape is {p}?": 0.3,
    "Which shape has the object {p}?": 0.3, "I want to know which shape is {p}.": 0.3,
    "Do you know which shape is {p}?": 0.3, "Which shape can be seen {p}?": 0.3, "Tell which shape is {p}.": 0.3,
    "What is the name of the shape {p}?": 0.3, "What form does the object {p} have?": 0.3,
    "What sort of object is {p}?": 0.3, "Tell me which shape is {p}.": 0.3, "Which shape stands {p}?": 0.3,
}  # fmt: skip
SHAPE_OF = {
    "What shape is {c}?": 2, "Which shape is {c}?": 1, "What is the shape of the {c} one?": 1,
    "What shape is the {c} one?": 1, "What shape is the {c} object?": 0.5, "What kind of shape is {c}?": 0.5,
    "Which shape is the {c} one?": 0.5, "What shape does the {c} one have?": 0.5, "Name the {c} shape.": 0.5,
    "What kind of shape is the {c} one?": 0.5, "What's the shape of the {c} object?": 0.3,
    "Which shape does the {c} object have?": 0.3, "Say what shape is {c}.": 0.3, "What type of shape is {c}?": 0.3,
    "I want to know which shape is {c}.": 0.3, "The {c} one is what shape?": 0.3,
    "Do you know which shape is {c}?": 0.3, "Can you tell what shape is {c}?": 0.3,
    "Which form does the {c} one have?": 0.3, "What is the name of the {c} shape?": 0.3, "What is the {c} one?": 0.3,
    "Tell me which shape is {c}.": 0.3, "Which shape has the colour {c}?": 0.3, "What shape is the one in {c}?": 0.3,
    "What is it that is {c}?": 0.3, "Which sort of shape is {c}?": 0.3,
}  # fmt: skip
AT = {
    "What is {p}?": 5, "What do you see {p}?": 1, "What can be seen {p}?": 0.5, "Which object is {p}?": 0.5,
    "What's {p}?": 0.7, "What object is {p}?": 0.5, "What can you see {p}?": 0.5,
    "What is placed {p}?": 0.3, "What is shown {p}?": 0.3, "Tell me what you see {p}.": 0.3, "What sits {p}?": 0.3,
    "Describe what is {p}.": 0.3, "Name what is {p}.": 0.3, "What thing is {p}?": 0.3, "What is the object {p}?": 0.3,
    "What exactly is {p}?": 0.3, "Say what is {p}.": 0.3, "Do you see what is {p}?": 0.3, "What stands {p}?": 0.3,
    "Could you say what is {p}?": 0.3, "I want to know what is {p}.": 0.3, "What have we {p}?": 0.3,
    "What is the one {p}?": 0.3, "Describe the object {p}.": 0.3, "What can be found {p}?": 0.3,
    "What's there {p}?": 0.3, "What is to be seen {p}?": 0.3, "Tell me what's {p}.": 0.3, "Which one is {p}?": 0.3,
}  # fmt: skip
EXISTS = {
    "Is there {x}?": 5, "Is there {x} in the image?": 2, "Do you see {x}?": 1, "Can you see {x}?": 1,
    "Does the image show {x}?": 0.5, "Is there {x} in this picture?": 1, "Is {x} in the image?": 1, "Is {x} here?": 0.5,
    "Is there {x} here?": 0.7, "Is there {x} somewhere?": 0.7, "Does it show {x}?": 0.5, "Can you find {x}?": 0.7,
    "Is {x} visible?": 0.5, "Does the image contain {x}?": 0.7, "Does the picture have {x}?": 0.5,
    "Tell me whether there is {x}.": 0.5, "Do you find {x} in this image?": 0.5, "Is {x} shown in the picture?": 0.5,
    "Does it contain {x}?": 0.3, "Is there {x} to be seen?": 0.3, "Check whether there is {x}.": 0.3,
    "Find out whether there is {x}.": 0.3, "Have you seen {x}?": 0.3, "Can {x} be found in this image?": 0.3,
    "Do we have {x} here?": 0.3, "Look for {x}. Is there one?": 0.3, "Could there be {x} in the picture?": 0.3,
    "I want to know whether there is {x}.": 0.3, "Can you say whether there is {x}?": 0.3,
}  # fmt: skip
PLACE_OF = {
    "Where is the {x}?": 5, "Where can I find the {x}?": 0.5, "Where in the image is the {x}?": 1,
    "What is the position of the {x}?": 0.5, "Where can you see the {x}?": 0.5, "Where exactly is the {x}?": 0.5,
    "Tell me the position of the {x}.": 0.5, "In which part of the image is the {x}?": 0.7,
    "Where is the {x} placed?": 0.5, "Can you tell me where the {x} is?": 0.5,
    "Where in the picture can the {x} be found?": 0.5, "At which position is the {x}?": 0.5, "Locate the {x}.": 0.4,
    "Which part of the picture has the {x} in it?": 0.4, "At what place is the {x}?": 0.4,
    "I am looking for the {x}. Where is it?": 0.4, "Where does the picture show the {x}?": 0.4,
    "I want to know where the {x} is.": 0.4, "What place is the {x} at?": 0.4, "Find the {x}. Where is it?": 0.4,
    "Say where the {x} is.": 0.4, "Do you know where the {x} is?": 0.4, "Which place does the {x} have?": 0.4,
}  # fmt: skip
ABSENT_SHARE = 0.1  # of the questions about one shape or place ask for what is not there
LEAD_INS = ("Here is a picture.", "Look at this image:", "See this:", "I have a question about this picture.")


@dataclass(frozen=True)
class Shape:
    """One shape. `box` is left, top, right, bottom in pixels, the last two exclusive."""

    colour: str
    kind: str
    size: str
    place: str
    rgb: tuple[int, int, int]
    box: tuple[int, int, int, int]

    @property
    def words(self) -> str:
        return f"{self.size} {self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """A whole picture before it is painted; `shapes` stand in the reading order of their places."""

    lead_ins: ClassVar[tuple[str, ...]] = LEAD_INS
    width: int
    height: int
    background: tuple[int, int, int]
    shapes: tuple[Shape, ...]

    @property
    def key(self) -> str:
        """What the picture shows, in words, which is what held-out pictures never share with training."""
        return "picture:" + listing(self)

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def parts(self) -> list[dict[str, Any]]:
        return [{"type": "image", "image": self.paint()}]

    def paint(self) -> Image.Image:
        """The picture as pixels."""
        image = Image.new("RGB", (self.width, self.height), self.background)
        pen = ImageDraw.Draw(image)
        for shape in self.shapes:
            left, top, right, bottom = shape.box
            if shape.kind == "circle":
                pen.ellipse((left, top, right - 1, bottom - 1), fill=shape.rgb)
            elif shape.kind == "square":
                pen.rectangle((left, top, right - 1, bottom - 1), fill=shape.rgb)
            else:
                apex = ((left + right - 1) / 2, top)
                pen.polygon([apex, (left, bottom - 1), (right - 1, bottom - 1)], fill=shape.rgb)
        return image


def draw_scene(rng: random.Random, canvas: str, num_shapes: Sequence[int], step: int = 1) -> Scene:
    """A random scene with one of `num_shapes` shapes, on a canvas of a kind named in CANVASES.

    The sides are multiples of `step` where the bounds of the canvas are.
    """
    low, high = CANVASES[canvas]
    width, height = rng.randrange(low, high + 1, step), rng.randrange(low, high + 1, step)
    count = rng.choice(num_shapes)
    while True:
        shapes = draw_shapes(rng, width, height, count, ("medium", "large") if canvas == "plain" else tuple(SIZES))
        inks = [shape.rgb for shape in shapes]
        background = inks and (plain_background(inks) if canvas == "plain" else draw_background(rng, inks))
        if background:
            return Scene(width, height, background, tuple(sorted(shapes, key=lambda shape: PLACES.index(shape.place))))


def draw_shapes(rng: random.Random, width: int, height: int, count: int, sizes: Sequence[str]) -> list[Shape]:
    """`count` shapes in different places that do not touch; an empty list if they did not fit."""
    shapes: list[Shape] = []
    for place in rng.sample(PLACES, count):
        shape = draw_shape(rng, width, height, place, sizes)
        if any(boxes_touch(shape.box, other.box, gap=2) for other in shapes):
            return []
        shapes.append(shape)
    return shapes


def draw_shape(rng: random.Random, width: int, height: int, place: str, sizes: Sequence[str]) -> Shape:
    """One shape whose centre lies in `place`, clear of the lines between places."""
    colour, kind, size = rng.choice(list(COLOURS)), rng.choice(KINDS), rng.choice(sizes)
    short = min(width, height)
    extent = max(round(short * SIZES[size] * rng.uniform(0.9, 1.1)), math.ceil(short * SIZES[size] * 0.9))
    extent = min(extent, math.floor(short * SIZES[size] * 1.1))
    # People draw upright triangles as tall as wide or equilateral; both count.
    tall = round(extent * rng.uniform(0.87, 1.0)) if kind == "triangle" else extent
    row, column = divmod(PLACES.index(place), 3)
    left = draw_position(rng, width, column, extent)
    top = draw_position(rng, height, row, tall)
    return Shape(colour, kind, size, place, draw_ink(rng, colour), (left, top, left + extent, top + tall))


def draw_ink(rng: random.Random, colour: str) -> tuple[int, int, int]:
    """This colour as pixels have it: each channel up to 12 off."""
    red, green, blue = (max(0, min(255, channel + rng.randint(-12, 12))) for channel in COLOURS[colour])
    return red, green, blue


def draw_position(rng: random.Random, side: int, third: int, extent: int) -> int:
    """Where a shape starts so that its centre lies well inside this third of the side and all of it on the canvas."""
    low, high = side * (third + 0.08) / 3, side * (third + 0.92) / 3
    low, high = max(low, extent / 2), min(high, side - extent / 2)
    return min(max(0, round(rng.uniform(low, high) - extent / 2)), side - extent)


def boxes_touch(a: Sequence[int], b: Sequence[int], gap: int) -> bool:
    """Whether two boxes overlap or come closer than `gap` pixels."""
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def draw_background(rng: random.Random, inks: Sequence[tuple[int, int, int]]) -> tuple[int, int, int] | None:
    """Any colour far enough from all that is on it; often one that people use. None if none was found."""
    for attempt in range(40):
        if attempt == 0 and rng.random() < 0.35:
            colour = rng.choice(COMMON_BACKGROUNDS)
        else:
            colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        if all(math.dist(colour, ink) >= BACKGROUND_DISTANCE for ink in inks):
            return colour
    return None


def plain_background(inks: Sequence[tuple[int, int, int]]) -> tuple[int, int, int] | None:
    """White, or else black or grey: the first that is far enough from all that is on it."""
    plain = ((255, 255, 255), (0, 0, 0), (128, 128, 128))
    distances = ((colour, min(math.dist(colour, ink) for ink in inks)) for colour in plain)
    return next((colour for colour, distance in distances if distance >= BACKGROUND_DISTANCE), None)


def phrase(place: str, article: str = "at the") -> str:
    """'at the top left', 'in the centre'."""
    return f"in the {place}" if place == "centre" else f"{article} {place}"


def listing(scene: Scene) -> str:
    """The thought behind every answer: `top left: large red circle; centre: small blue square`."""
    return "; ".join(f"{shape.place}: {shape.words}" for shape in scene.shapes)


def describe(scene: Scene) -> str:
    """The whole picture in one sentence."""
    count = len(scene.shapes)
    parts = [f"a {shape.words} {phrase(shape.place)}" for shape in scene.shapes]
    return f"There {'is one shape' if count == 1 else f'are {COUNTS[count]} shapes'}: {join_words(parts)}."


def draw_picture(rng: random.Random, skill: str, canvas: str, num_shapes: Sequence[int]) -> Task:
    """One question of this skill about a fresh scene, drawn again until the question has exactly one answer.

    That happens more often with few shapes. Whoever needs every number of shapes equally often asks for one at a time.
    """
    while True:
        task = ask(rng, skill, draw_scene(rng, canvas, num_shapes))
        if task:
            return task


def ask(rng: random.Random, skill: str, scene: Scene) -> Task | None:
    """One question of this skill about this scene, or None where it would be ambiguous."""
    asked = ASKERS[skill](rng, scene)
    if asked is None:
        return None
    question, reasoning, content, truth = asked
    if rng.random() < 0.4:
        question = question.replace("in the centre", "in the middle")
    question = vary(rng, american(rng, question))
    return Task(skill, question, reasoning, content, scene.key, JUDGES[skill], truth, medium=scene)


def american(rng: random.Random, question: str) -> str:
    """Now and then the American spelling."""
    return question.replace("colour", "color").replace("centre", "center") if rng.random() < 0.25 else question


def matching(scene: Scene, colour: str | None, kind: str | None) -> list[Shape]:
    """Shapes of this colour and kind; None matches all."""
    return [shape for shape in scene.shapes if colour in (None, shape.colour) and kind in (None, shape.kind)]


def search(
    scene: Scene, found: Sequence[Shape], conclude: Callable[[Sequence[Shape]], Any], colour: str | None = None,
    kind: str | None = None,
) -> str:  # fmt: skip
    """One shape after the other, each with what follows so far: conclude(those `found` up to it).

    To list all and conclude at the end would be one line less, but then the shape has to be looked up again by its last
    word to tell an earlier one: a small model reads its own list wrongly more often than the picture. For the same
    reason a `colour` and `kind` that are asked for are compared before anything is concluded from them.
    """
    lines, so_far = [], []
    for shape in scene.shapes:
        so_far += [shape] if shape in found else []
        verdicts = compare(shape, colour, kind)
        lines.append(", ".join([f"{shape.place}: {shape.words}", *verdicts, str(conclude(so_far))]))
    return "\n".join(lines)


def compare(shape: Shape, colour: str | None, kind: str | None) -> list[str]:
    """What is seen against what is asked for, colour first, up to the first difference: `red yes`, `circle no`."""
    verdicts = []
    for asked, seen in ((colour, shape.colour), (kind, shape.kind)):
        if asked:
            verdicts.append(f"{seen} {'yes' if seen == asked else 'no'}")
            if seen != asked:
                break
    return verdicts


def first(attribute: str) -> Callable[[Sequence[Shape]], str]:
    """This attribute of the first shape, 'none' without any."""
    return lambda shapes: getattr(shapes[0], attribute) if shapes else "none"


def draw_target(rng: random.Random, scene: Scene, forms: dict[str, float]) -> tuple[str | None, str | None]:
    """A colour and a kind to ask for, either of them possibly None; mostly something that the picture has."""
    form = weighted(rng, forms)
    model = rng.choice(scene.shapes)
    colour = model.colour if rng.random() < 0.7 else rng.choice(list(COLOURS))
    kind = model.kind if rng.random() < 0.7 else rng.choice(KINDS)
    return (colour if "colour" in form else None), (kind if "kind" in form else None)


def name_target(colour: str | None, kind: str | None) -> str:
    """'red circle', 'circle', 'red shape', 'shape'."""
    return f"{colour} {kind or 'shape'}" if colour else (kind or "shape")


def ask_describe(rng: random.Random, scene: Scene) -> tuple:
    truth = sorted((shape.size, shape.colour, shape.kind, shape.place) for shape in scene.shapes)
    return weighted(rng, DESCRIBE), listing(scene), describe(scene), truth


def ask_count(rng: random.Random, scene: Scene) -> tuple:
    colour, kind = draw_target(rng, scene, {"kind": 4, "colour": 4, "colour kind": 2, "all": 2})
    found, name = matching(scene, colour, kind), name_target(colour, kind)
    answer = f"There {'is' if len(found) == 1 else 'are'} {len(found)} {name}{'' if len(found) == 1 else 's'}."
    return weighted(rng, COUNT).format(x=name), search(scene, found, len, colour, kind), answer, len(found)


def nothing_of(rng: random.Random, scene: Scene, targets: Sequence[tuple[str | None, str | None]],
               wordings: dict[str, float]) -> tuple | None:
    """A question about what the picture does not have, or None if it has all of it. The truth is None."""
    absent = [target for target in targets if not matching(scene, *target)]
    if not absent:
        return None
    colour, kind = rng.choice(absent)
    name = name_target(colour, kind)
    reasoning = search(scene, [], first("kind"), colour, kind)
    return weighted(rng, wordings).format(x=name, c=colour), reasoning, f"There is no {name}.", None


def ask_colour(rng: random.Random, scene: Scene) -> tuple | None:
    if rng.random() < ABSENT_SHARE:
        return nothing_of(rng, scene, [(None, kind) for kind in KINDS], COLOUR)
    shape = rng.choice(scene.shapes)
    if len(matching(scene, None, shape.kind)) != 1:
        return None
    question = weighted(rng, COLOUR).format(x=shape.kind)
    reasoning = search(scene, [shape], first("colour"), kind=shape.kind)
    return question, reasoning, f"The {shape.kind} is {shape.colour}.", shape.colour


def ask_shape(rng: random.Random, scene: Scene) -> tuple | None:
    if rng.random() < ABSENT_SHARE:
        return nothing_of(rng, scene, [(colour, None) for colour in COLOURS], SHAPE_OF)
    shape, colour = rng.choice(scene.shapes), None
    if rng.random() < 0.4:
        if len(matching(scene, shape.colour, None)) != 1:
            return None
        colour = shape.colour
        question = weighted(rng, SHAPE_OF).format(c=shape.colour)
    else:
        place = draw_side(rng, scene, shape)
        if place is None:
            return None
        question = weighted(rng, SHAPE_AT).format(p=place)
    return question, search(scene, [shape], first("kind"), colour), f"It is a {shape.kind}.", shape.kind


def ask_at(rng: random.Random, scene: Scene) -> tuple | None:
    if rng.random() < ABSENT_SHARE:
        return ask_at_nothing(rng, scene)
    shape = rng.choice(scene.shapes)
    place = draw_side(rng, scene, shape)
    if place is None:
        return None
    reasoning = search(scene, [shape], first("words"))
    return weighted(rng, AT).format(p=place), reasoning, f"A {shape.words}.", (shape.colour, shape.kind)


def ask_at_nothing(rng: random.Random, scene: Scene) -> tuple | None:
    """What is where nothing is: a corner, the centre, or a side with nothing along all of it. The truth is None."""
    taken = {word for shape in scene.shapes for word in shape.place.split()}
    corners = [place for place in PLACES if (" " in place or place == "centre")
               and all(shape.place != place for shape in scene.shapes)]  # fmt: skip
    place = rng.choice(corners + [side for side in ("left", "right", "top", "bottom") if side not in taken])
    asked = phrase(place, "on the" if place in ("left", "right") and rng.random() < 0.7 else "at the")
    reasoning = search(scene, [], first("words"))
    return weighted(rng, AT).format(p=asked), reasoning, f"There is nothing {phrase(place)}.", None


def draw_side(rng: random.Random, scene: Scene, shape: Shape) -> str | None:
    """Name where this shape is so that no other can be meant, or None.

    'The left' may mean the middle of the left side or all of it, so it is asked only when its whole column
    holds one shape; corners and the centre mean themselves.
    """
    row, column = divmod(PLACES.index(shape.place), 3)
    alone_in_column = sum(PLACES.index(other.place) % 3 == column for other in scene.shapes) == 1
    alone_in_row = sum(PLACES.index(other.place) // 3 == row for other in scene.shapes) == 1
    sides = [shape.place] if " " in shape.place or shape.place == "centre" else []
    if alone_in_column and column != 1:
        sides.append("left" if column == 0 else "right")
    if alone_in_row and row != 1:
        sides.append("top" if row == 0 else "bottom")
    if not sides:
        return None
    side = rng.choice(sides)
    return phrase(side, rng.choice(("on the", "on the", "at the")) if side in ("left", "right") else "at the")


def ask_exists(rng: random.Random, scene: Scene) -> tuple:
    colour, kind = draw_target(rng, scene, {"colour kind": 5, "kind": 2, "colour": 3})
    if rng.random() < 0.3:  # both parts are there, but not together: where guessing from parts goes wrong
        colour, kind = rng.choice(scene.shapes).colour, rng.choice(scene.shapes).kind
    found, name = matching(scene, colour, kind), name_target(colour, kind)
    thing = f"{'an' if name[0] == 'o' else 'a'} {name}"
    answer = f"Yes, there is {thing}." if found else f"No, there is no {name}."
    reasoning = search(scene, found, lambda shapes: "found" if shapes else "none", colour, kind)
    return weighted(rng, EXISTS).format(x=thing), reasoning, answer, bool(found)


def ask_place_of(rng: random.Random, scene: Scene) -> tuple | None:
    if rng.random() < ABSENT_SHARE:
        return nothing_of(rng, scene, [(shape.colour, kind) for shape in scene.shapes for kind in KINDS], PLACE_OF)
    shape = rng.choice(scene.shapes)
    colour, kind = weighted(rng, {(shape.colour, shape.kind): 3, (None, shape.kind): 1.5, (shape.colour, None): 2.5})
    if len(matching(scene, colour, kind)) != 1:
        return None
    question, name = weighted(rng, PLACE_OF), name_target(colour, kind)
    reasoning = search(scene, [shape], first("place"), colour, kind)
    return question.format(x=name), reasoning, f"The {name} is {phrase(shape.place)}.", shape.place


def words_of(answer: str) -> list[str]:
    """Lower-case words in British spelling."""
    text = answer.lower().replace("color", "colour").replace("center", "centre").replace("-", " ")
    return re.findall(r"[a-z]+|\d+", text)


def judge_describe(answer: str, truth: list[tuple[str, str, str, str]]) -> bool:
    """Number, size, colour, kind and place of every shape, in any order, and nothing besides."""
    text = " ".join(words_of(answer))
    shape = rf"({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(KINDS)})"
    place = "|".join(sorted(PLACES, key=len, reverse=True))
    found = re.findall(rf"\ban? {shape} (?:at|in|on) the ({place})\b", text)
    announced = re.match(r"there (?:is|are) (\w+) shapes?\b", text)
    right_count = announced is None or announced[1] in (COUNTS[len(truth)], str(len(truth)))
    return right_count and sorted(found) == truth and len(re.findall(rf"\b(?:{'|'.join(KINDS)})\b", text)) == len(truth)


def judge_count(answer: str, truth: int) -> bool:
    """The first number, in digits or words, is the true one."""
    words = [word for word in words_of(answer) if word.isdigit() or word in COUNTS or word == "zero"]
    return bool(words) and words[0] in (str(truth), COUNTS[truth], "zero" if truth == 0 else COUNTS[truth])


def only(answer: str, names: Sequence[str], truth: str) -> bool:
    """Of these names the answer says the true one and no other."""
    return set(words_of(answer)) & set(names) == {truth}


def says_nothing(answer: str) -> bool:
    """'There is no square.', 'No, nothing is there.'"""
    return bool({"no", "nothing", "none"} & set(words_of(answer)))


def judge_colour(answer: str, truth: str | None) -> bool:
    return says_nothing(answer) if truth is None else only(answer, tuple(COLOURS), truth)


def judge_shape(answer: str, truth: str | None) -> bool:
    return says_nothing(answer) if truth is None else only(answer, KINDS, truth)


def judge_at(answer: str, truth: tuple[str, str] | None) -> bool:
    if truth is None:
        return says_nothing(answer) and not set(words_of(answer)) & {*COLOURS, *KINDS}
    return judge_colour(answer, truth[0]) and judge_shape(answer, truth[1])


def judge_exists(answer: str, truth: bool) -> bool:
    return words_of(answer)[:1] == ["yes" if truth else "no"]


def judge_place(answer: str, truth: str | None) -> bool:
    """Exactly the words of the place: 'top' does not pass for 'top left'."""
    if truth is None:
        return says_nothing(answer)
    named = {word for place in PLACES for word in place.split()}
    return set(words_of(answer)) & named == set(truth.split())


ASKERS: dict[str, Any] = {
    "pictures.describe": ask_describe, "pictures.count": ask_count, "pictures.colour": ask_colour,
    "pictures.shape": ask_shape, "pictures.at": ask_at, "pictures.exists": ask_exists,
    "pictures.place_of": ask_place_of,
}  # fmt: skip
JUDGES: dict[str, Any] = {
    "pictures.describe": judge_describe, "pictures.count": judge_count, "pictures.colour": judge_colour,
    "pictures.shape": judge_shape, "pictures.at": judge_at, "pictures.exists": judge_exists,
    "pictures.place_of": judge_place,
}  # fmt: skip
