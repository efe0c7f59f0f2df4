"""World 3, coding with vision: SVG code for the pictures of the pictures world, their size, and places in them.

The code has to say how large the picture is, and the model sees no numbers: it sees tokens of 28 by 28 pixels, and a
picture is padded with black to whole ones. On black, nothing tells where the picture ends and the padding begins. So
sides are multiples of 28 here: columns and rows of tokens can be counted, and 28 times that is exact.
"""

import itertools
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass

from .pictures import COLOURS, Scene, Shape, american, draw_scene, matching
from .task import Task, vary, weighted

TOKEN_SIDE = 28  # pixels
SKILLS = {"svg.write": 1.0, "svg.size": 0.3, "svg.place": 0.3}
NAMESPACE = "http://www.w3.org/2000/svg"
PLACE_TOLERANCE = 0.1  # of the side of the canvas
FILL_TOLERANCE = 24  # per channel
GEOMETRY = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "polygon": ("points",)}

QUESTIONS = {
    "Write SVG code for this image.": 6, "Write SVG code for this picture.": 2, "Write the SVG code for this image.": 1,
    "Write SVG for this image.": 1, "Draw this image as SVG.": 1, "Turn this image into SVG.": 1,
    "Convert this picture to SVG code.": 1, "Give me SVG code for this image.": 1, "Reproduce this image in SVG.": 0.7,
    "Generate SVG code for this picture.": 0.7, "What is the SVG code of this image?": 0.5,
    "Make SVG code from this image.": 0.4, "Can you turn this picture into SVG code?": 0.4, "Give me this as SVG.": 0.3,
    "I need SVG code for this picture.": 0.4, "Create an SVG of the image.": 0.4, "Produce SVG for this.": 0.3,
}  # fmt: skip
SIZE_QUESTIONS = {
    "How large is this image?": 4, "How big is this picture?": 2, "What is the size of this image?": 2,
    "How large is the image in pixels?": 2, "How many pixels wide and high is this image?": 1,
    "What are the width and height of this picture?": 1, "Tell me the size of this image in pixels.": 1,
}  # fmt: skip
PLACE_QUESTIONS = {
    "Where is the {x} in pixels?": 3, "What are the pixel coordinates of the {x}?": 2, "At which pixel is the {x}?": 2,
    "Give me the coordinates of the {x}.": 1, "Which coordinates does the {x} have?": 1,
    "At which pixel is the centre of the {x}?": 2,
}  # fmt: skip

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Element:
    """One shape of a drawing: a rect, a circle, or a polygon with its points."""

    kind: str
    box: Box
    fill: tuple[int, int, int]
    points: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Drawing:
    """What an SVG text draws, from back to front."""

    width: float
    height: float
    elements: tuple[Element, ...]


def draw_drawing(rng: random.Random, skill: str, canvas: str, num_shapes: Sequence[int]) -> Task:
    """The question about a fresh scene, with the SVG code that paints it, how large it is, or where a shape is."""
    scene = draw_scene(rng, canvas, num_shapes, step=TOKEN_SIDE)
    if skill == "svg.place":
        return ask_place(rng, scene) or draw_drawing(rng, skill, canvas, num_shapes)
    if skill == "svg.size":
        question, size = vary(rng, weighted(rng, SIZE_QUESTIONS)), (scene.width, scene.height)
        answer = f"The image is {scene.width} pixels wide and {scene.height} pixels high."
        return Task(skill, question, count_tokens(scene), answer, scene.key, judge_size, size, medium=scene)
    question = vary(rng, weighted(rng, QUESTIONS))
    return Task(skill, question, think(scene), write(scene), scene.key, judge_drawing, scene, medium=scene)


def ask_place(rng: random.Random, scene: Scene) -> Task | None:
    """Where the centre of one shape is, in pixels; None if there is another of its colour and kind."""
    shape = rng.choice(scene.shapes)
    if len(matching(scene, shape.colour, shape.kind)) != 1:
        return None
    name, (left, top, right, bottom) = f"{shape.colour} {shape.kind}", shape.box
    question = vary(rng, american(rng, weighted(rng, PLACE_QUESTIONS).format(x=name)))
    centre = ((left + right) // 2, (top + bottom) // 2)
    answer = f"The centre of the {name} is at {centre[0]}, {centre[1]}."
    truth = (centre, (scene.width, scene.height))
    return Task("svg.place", question, think(scene), answer, scene.key, judge_place, truth, medium=scene)


def think(scene: Scene) -> str:
    """The size of the canvas, its background, and a line for each shape with all numbers that the code then copies.

    The tower sees a place as a share of the picture, so a centre comes first in percent, to the next 5, and then in
    pixels: `bottom: large white square, 55 across 253, 70 down 243, half 53: 200 to 307, 190 to 297`.
    """
    lines = [count_tokens(scene), "background: {} {} {}".format(*steps(scene.background))]
    for shape in scene.shapes:
        left, top, right, bottom = shape.box
        x, y = (left + right) // 2, (top + bottom) // 2
        across, down = 5 * round(20 * x / scene.width), 5 * round(20 * y / scene.height)
        line = f"{shape.place}: {shape.words}, {across} across {x}, {down} down {y}, half {(right - left) // 2}"
        if shape.kind != "circle":
            line += f": {left} to {right}, {top} to {bottom}"
        lines.append(line)
    return "\n".join(lines)


def steps(rgb: Sequence[int]) -> list[int]:
    """A colour in steps of 17, 16 to a channel. Each step is one hexadecimal digit, twice: 5 is 55, 12 is cc."""
    return [round(channel / 17) for channel in rgb]


def count_tokens(scene: Scene) -> str:
    """The size of the canvas, counted in tokens."""
    columns, rows = scene.width // TOKEN_SIDE, scene.height // TOKEN_SIDE
    sides = f"{TOKEN_SIDE}x{columns}={scene.width}, {TOKEN_SIDE}x{rows}={scene.height}"
    return f"{columns} columns, {rows} rows: {sides}"


def judge_size(answer: str, truth: tuple[int, int]) -> bool:
    """Width and height, in this order, and no other number."""
    return [int(digits) for digits in re.findall(r"\d+", answer)] == list(truth)


def write(scene: Scene) -> str:
    """The picture as SVG code, in whole pixels, one element in a line."""
    ground = "".join(f"{step:x}" * 2 for step in steps(scene.background))
    return "\n".join([
        f'<svg xmlns="{NAMESPACE}" viewBox="0 0 {scene.width} {scene.height}">',
        f'<rect x="0" y="0" width="{scene.width}" height="{scene.height}" fill="#{ground}"/>',
        *map(write_shape, scene.shapes),
        "</svg>",
    ])  # fmt: skip


def write_shape(shape: Shape) -> str:
    """One shape, filled with the colour that its name stands for: within 12 per channel, and the same every time."""
    left, top, right, bottom = shape.box
    fill = "".join(f"{channel:02x}" for channel in COLOURS[shape.colour])
    middle = (left + right) // 2
    geometry = {
        "circle": f'circle cx="{middle}" cy="{(top + bottom) // 2}" r="{(right - left) // 2}"',
        "square": f'rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"',
        "triangle": f'polygon points="{middle},{top} {left},{bottom} {right},{bottom}"',
    }[shape.kind]
    return f'<{geometry} fill="#{fill}"/>'


def judge_place(answer: str, truth: tuple[tuple[int, int], tuple[int, int]]) -> bool:
    """Two numbers, none of which is off by more than a tenth of the canvas."""
    found = [int(digits) for digits in re.findall(r"\d+", answer)]
    return len(found) == 2 and is_close(found, truth[0], [PLACE_TOLERANCE * side for side in truth[1]])


def parse(text: str) -> Drawing | None:
    """The drawing that this SVG text is; None if it is no XML, or holds anything but the few elements used here."""
    fenced = re.fullmatch(r"\s*```\w*\n(.*?)\n?```\s*", text, re.DOTALL)
    text = fenced[1] if fenced else text.strip()
    if "<!" in text or "<?" in text:  # no entities, nothing hidden in comments
        return None
    try:
        root = ElementTree.fromstring(text)
        width, height = canvas_size(root)
        return Drawing(width, height, tuple(map(parse_element, root)))
    except (ElementTree.ParseError, ValueError, LookupError):
        return None


def canvas_size(root: ElementTree.Element) -> tuple[float, float]:
    """Width and height from the viewBox, which begins at 0, 0. Raises ValueError, LookupError."""
    if local_name(root) != "svg" or (root.text or "").strip() or set(root.attrib) - {"viewBox", "width", "height"}:
        raise ValueError(root.tag)
    left, top, width, height = (number(text) for text in re.split(r"[ ,]+", root.attrib["viewBox"].strip()))
    sides = [number(root.get(name, text)) for name, text in (("width", f"{width}"), ("height", f"{height}"))]
    if (left, top) != (0, 0) or sides != [width, height]:
        raise ValueError(root.attrib)
    return width, height


def parse_element(element: ElementTree.Element) -> Element:
    """One filled shape. Raises ValueError, LookupError for everything else, attributes such as transform included."""
    kind, given = local_name(element), element.attrib
    has_text = (element.text or "").strip() or (element.tail or "").strip()
    if len(element) or has_text or set(given) - {*GEOMETRY[kind], "fill"}:
        raise ValueError(element.tag)
    fill = parse_fill(given["fill"])
    if kind == "polygon":
        numbers = [number(text) for text in re.split(r"[ ,]+", given["points"].strip())]
        points = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        xs, ys = zip(*points, strict=True)
        return Element(kind, (min(xs), min(ys), max(xs), max(ys)), fill, points)
    if kind == "circle":
        x, y, radius = (number(given[name]) for name in GEOMETRY[kind])
        return Element(kind, (x - radius, y - radius, x + radius, y + radius), fill)
    x, y = (number(given.get(name, "0")) for name in ("x", "y"))
    width, height = (number(given[name]) for name in ("width", "height"))
    return Element(kind, (x, y, x + width, y + height), fill)


def local_name(element: ElementTree.Element) -> str:
    """The tag without the namespace, which may be missing. Raises ValueError for another namespace."""
    namespace, brace, name = element.tag.rpartition("}")
    if brace and namespace != f"{{{NAMESPACE}":
        raise ValueError(namespace)
    return name


def number(text: str) -> float:
    """A plain decimal number. Raises ValueError."""
    if not re.fullmatch(r"-?\d{1,6}(\.\d{1,6})?", text):
        raise ValueError(text)
    return float(text)


def parse_fill(text: str) -> tuple[int, int, int]:
    """`#rrggbb` or its short form `#rgb`. Raises ValueError."""
    if not re.fullmatch(r"#([0-9a-fA-F]{3}){1,2}", text):
        raise ValueError(text)
    digits = text[1:] if len(text) == 7 else "".join(digit * 2 for digit in text[1:])
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


def judge_drawing(answer: str, truth: Scene) -> bool:
    """It parses, its canvas is the picture's, and it draws the ground and every shape, in any order, and nothing else.

    A drawing without a ground is seen on white.
    """
    drawing = parse(answer)
    if drawing is None or (drawing.width, drawing.height) != (truth.width, truth.height):
        return False
    shapes, ground = list(drawing.elements), (255, 255, 255)
    canvas = (0, 0, truth.width, truth.height)
    if shapes and shapes[0].kind == "rect" and is_near(shapes[0].box, canvas, truth):
        ground = shapes.pop(0).fill
    return (
        is_fill(ground, truth.background)
        and len(shapes) == len(truth.shapes)
        and any(
            all(map(is_shape, order, truth.shapes, itertools.repeat(truth))) for order in itertools.permutations(shapes)
        )
    )


def is_shape(element: Element, shape: Shape, scene: Scene) -> bool:
    """Whether this element is that shape: kind, fill and place."""
    kind = {"circle": "circle", "square": "rect", "triangle": "polygon"}[shape.kind]
    left, top, right, bottom = shape.box
    if element.kind != kind or not is_fill(element.fill, shape.rgb) or not is_near(element.box, shape.box, scene):
        return False
    if kind != "polygon":
        return True
    corners = [((left + right) / 2, top), (left, bottom), (right, bottom)]
    reach = (PLACE_TOLERANCE * scene.width, PLACE_TOLERANCE * scene.height)
    return len(element.points) == 3 and any(
        all(is_close(point, corner, reach) for point, corner in zip(points, corners, strict=True))
        for points in itertools.permutations(element.points)
    )


def is_near(found: Box, expected: Sequence[float], scene: Scene) -> bool:
    """Whether no edge is off by more than a tenth of the canvas, and there is something inside."""
    reach = (PLACE_TOLERANCE * scene.width, PLACE_TOLERANCE * scene.height)
    is_open = found[0] < found[2] and found[1] < found[3]
    return is_open and is_close(found[:2], expected[:2], reach) and is_close(found[2:], expected[2:], reach)


def is_close(found: Sequence[float], expected: Sequence[float], reach: Sequence[float]) -> bool:
    """Whether no coordinate is further off than its axis allows."""
    return all(abs(a - b) <= most for a, b, most in zip(found, expected, reach, strict=True))


def is_fill(found: Sequence[int], expected: Sequence[int]) -> bool:
    return all(abs(a - b) <= FILL_TOLERANCE for a, b in zip(found, expected, strict=True))
