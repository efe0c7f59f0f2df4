"""Signs, SVG, documents and long texts keep their promises, and nothing held out is ever shown in training."""

import math
import random
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from reference.document import render_pages
from reference.errors import UsageError
from reference.generate import SHIPPED_MODEL
from reference.prompt import Processor
from tools import evaluate
from tools.worlds import documents, drawings, needles, pictures, signs
from tools.worlds.pdf import write_pdf
from tools.worlds.sample import BY_DEFAULT, SKILLS, draw, draw_task, skills_of
from tools.worlds.task import Level, is_held_out

NEW_SKILLS = [skill for world in ("signs", "svg", "documents", "needles") for skill in skills_of(world)]
SHORT = {"num_tokens": 300}  # of long texts, where length does not matter
SVG = drawings.NAMESPACE


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_directory(SHIPPED_MODEL)


def images(sample) -> list[Image.Image]:
    """The pictures of the last message, as the model gets them."""
    parts = sample.messages[-1]["content"]
    return [part["image"] for part in parts if part["type"] == "image"]


def ink_box(image: Image.Image, background: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not background."""
    rows, columns = np.nonzero((np.asarray(image) != background).any(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


# --- signs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", signs.CANVASES)
def test_text_stands_wholly_inside_in_a_colour_that_can_be_seen(canvas):
    difficulty = signs.CANVASES[canvas]
    low, high = difficulty.sides
    for index in range(100):
        sample = draw("signs.read", 0, index, canvas=canvas)
        sign, [image] = sample.task.medium, images(sample)
        assert image.size == (sign.width, sign.height) and low <= min(image.size) and max(image.size) <= high
        assert re.fullmatch(rf"[A-Z0-9]{{1,{difficulty.most_characters}}}", sign.text)
        left, top, right, bottom = ink_box(image, sign.background)
        # The faintest ink of an edge may round to the colour of the ground.
        expected = (sign.left, sign.top, *signs.ink(sign.text, sign.cap_height).size)
        assert np.abs(np.subtract((left, top, right - left, bottom - top), expected)).max() <= 2
        assert min(left, top) >= 1 and right < sign.width and bottom < sign.height
        assert math.dist(sign.rgb, sign.background) >= 80
        assert any(np.abs(np.subtract(sign.rgb, nominal)).max() <= 12 for nominal in pictures.COLOURS.values())


def test_capitals_are_as_high_as_asked_for_or_one_pixel_less():
    heights = {cap_height: signs.ink("H", cap_height).height for cap_height in range(16, 65)}
    assert all(cap_height - 1 <= height <= cap_height for cap_height, height in heights.items())
    assert heights[16] == 16 and len(set(heights.values())) > 35


def test_every_character_is_printed_differently():
    prints = {np.asarray(signs.ink(character, 32)).tobytes() for character in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"}
    assert len(prints) == 36


def test_texts_of_every_length_and_form_occur():
    texts = [draw("signs.read", 1, index).task.truth for index in range(400)]
    assert {len(text) for text in texts} == {1, 2, 3, 4, 5}
    assert sum(text in signs.WORDS for text in texts) > 80
    assert sum(text.isdigit() for text in texts) > 40
    assert any(set(text) & set("0123456789") and not text.isdigit() for text in texts)


def test_a_sign_is_read_character_by_character():
    assert signs.spell("B4OO") == "1 B\n2 4\n3 O\n4 O"
    for index in range(50):
        sample = draw("signs.read", 2, index, thinking=True)
        read = "".join(line.split()[1] for line in sample.reasoning_content.splitlines())
        assert sample.content == f"The sign says {read}." and read == sample.task.truth


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("The sign says STOP.", "STOP", True), ("STOP", "STOP", True), ('It says "STOP".', "STOP", True),
        ("I can read STOP.", "STOP", True), ("The sign says I.", "I", True), ("A sign that says A.", "A", True),
        ("The sign says 4.", "4", True), ("The sign says SHOP.", "STOP", False), ("The sign says STO.", "STOP", False),
        ("The sign says GO STOP.", "STOP", False), ("STOP STOP", "STOP", False), ("The sign says stop.", "STOP", False),
        ("The sign says O.", "0", False), ("The sign says something.", "STOP", False), ("", "A", False),
    ],
)  # fmt: skip
def test_a_text_is_judged_by_its_characters(answer, truth, right):
    assert signs.judge_text(answer, truth) is right


# --- SVG -------------------------------------------------------------------------------------------------------------


def render(svg: str) -> Image.Image:
    """Paint the few elements that the model may write, on white; a renderer of its own, not the judge's parser."""
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(int, root.get("viewBox").split())
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    for element in root:
        numbers = {name: float(text) for name, text in element.attrib.items() if name not in ("fill", "points")}
        fill, tag = element.get("fill"), element.tag.removeprefix(f"{{{SVG}}}")
        if tag == "rect":
            x, y = numbers["x"], numbers["y"]
            pen.rectangle((x, y, x + numbers["width"] - 1, y + numbers["height"] - 1), fill=fill)
        elif tag == "circle":
            x, y, r = numbers["cx"], numbers["cy"], numbers["r"]
            pen.ellipse((x - r, y - r, x + r - 1, y + r - 1), fill=fill)
        else:
            points = [tuple(map(float, point.split(","))) for point in element.get("points").split()]
            pen.polygon([(x, y - (y > points[0][1])) for x, y in points], fill=fill)
    return image


def draw_svg(index: int, canvas: str = "full", num_shapes=(1, 2, 3, 4)):
    sample = draw("svg.write", 4, index, canvas=canvas, num_shapes=num_shapes)
    return sample, sample.task.medium


@pytest.mark.parametrize("canvas", pictures.CANVASES)
def test_svg_code_renders_to_its_picture(canvas):
    for index in range(40):
        sample, scene = draw_svg(index, canvas)
        found, expected = np.asarray(render(sample.content), int), np.asarray(scene.paint(), int)
        assert found.shape == expected.shape
        off = (np.abs(found - expected) > drawings.FILL_TOLERANCE).any(-1)  # (height, width)
        # Whole pixels move an edge by one at most: a rim around each shape, and no more than half of it is seen.
        rim = sum(2 * (s.box[2] - s.box[0] + s.box[3] - s.box[1]) for s in scene.shapes)
        assert off.sum() <= rim / 2, (scene, off.sum(), rim)


def test_sides_are_whole_tokens_so_that_they_can_be_counted(processor):
    for index in range(30):
        sample, scene = draw_svg(index)
        assert {scene.width, scene.height} <= set(range(56, 449, 28))
        [(_, rows, columns)] = processor.prompt(sample.messages).grid_thws
        assert (scene.width, scene.height) == (14 * columns, 14 * rows)
        first, _, *shapes = drawings.think(scene).split("\n")
        counted = re.fullmatch(r"(\d+) columns, (\d+) rows: 28x\1=(\d+), 28x\2=(\d+)", first).groups()
        assert [*map(int, counted)] == [columns // 2, rows // 2, scene.width, scene.height]
        assert "; ".join(line.partition(", ")[0] for line in shapes) == pictures.listing(scene)


def test_the_place_of_each_shape_is_that_of_its_ink_in_percent_and_in_pixels():
    for index in range(30):
        _, scene = draw_svg(index)
        for line, shape in zip(drawings.think(scene).split("\n")[2:], scene.shapes, strict=True):
            alone = replace(scene, shapes=(shape,))
            rows, columns = np.nonzero((np.asarray(alone.paint()) != scene.background).any(-1))
            left, right, top, bottom = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
            words, *found, edges = re.fullmatch(
                r"(.+), (\d+) across (\d+), (\d+) down (\d+), half (\d+)(: .+)?", line
            ).groups()
            across, x, down, y, half = map(int, found)
            assert words == f"{shape.place}: {shape.words}"
            assert abs(x - (left + right) / 2) <= 1 and abs(y - (top + bottom) / 2) <= 1
            assert abs(half - (right - left) / 2) <= 1
            assert abs(across - 100 * x / scene.width) <= 2.5 and abs(down - 100 * y / scene.height) <= 2.5
            assert across % 5 == down % 5 == 0 and (edges is None) == (shape.kind == "circle")
            if edges:
                written = [int(digits) for digits in re.findall(r"\d+", edges)]
                assert np.abs(np.subtract(written, [left, right, top, bottom])).max() <= 1


def test_every_number_of_a_drawing_stands_in_the_thinking_before_it():
    """But twice the half of a square; and the background's steps are the digits of its fill."""
    for index in range(30):
        sample, scene = draw_svg(index)
        thought = drawings.think(scene)
        sides = [(shape.box[2] - shape.box[0], shape.box[3] - shape.box[1]) for shape in scene.shapes]
        known = {*re.findall(r"\d+", thought), *(str(side) for pair in sides for side in pair)}
        root = ElementTree.fromstring(sample.content)
        for element in root[1:]:
            numbers = [text for name, text in element.attrib.items() if name != "fill"]
            assert {*re.findall(r"\d+", " ".join(numbers))} <= known
        red, green, blue = re.search(r"\nbackground: (\d+) (\d+) (\d+)\n", thought).groups()
        assert root[0].get("fill") == "#" + "".join(f"{int(step):x}" * 2 for step in (red, green, blue))


def test_the_size_of_a_picture_is_its_width_and_height_in_pixels():
    for index in range(30):
        sample = draw("svg.size", 4, index)
        [picture] = [part["image"] for part in sample.messages[-1]["content"] if part["type"] == "image"]
        assert sample.task.truth == picture.size and sample.check(sample.content)
        wide, high = picture.size
        assert sample.check(f"{wide} x {high}") and not sample.check(f"{wide}") and not sample.check("")
        assert not sample.check(f"The image is {high + 28} pixels wide and {wide} pixels high.")


def test_coordinates_of_a_shape_may_be_a_tenth_of_the_picture_off():
    for index in range(30):
        sample = draw("svg.place", 4, index)
        (across, down), (width, height) = sample.task.truth
        assert sample.check(sample.content) and sample.check(f"x={across + int(width / 10)}, y={down}")
        assert not sample.check(f"{across}, {down + int(height / 10) + 1}")
        assert not sample.check(f"{across}") and not sample.check(f"{across}, {down} of {width}")
        shape = re.search(r"the (\w+) (\w+) is", sample.content)
        [asked] = pictures.matching(sample.task.medium, *shape.groups())
        left, top, right, bottom = asked.box
        assert left <= across <= right and top <= down <= bottom


def test_svg_code_uses_only_the_elements_and_hex_colours_of_the_task():
    tags = set()
    for index in range(60):
        sample, scene = draw_svg(index)
        root = ElementTree.fromstring(sample.content)
        assert root.get("viewBox") == f"0 0 {scene.width} {scene.height}" and len(root) == 1 + len(scene.shapes)
        tags |= {element.tag.removeprefix(f"{{{SVG}}}") for element in root.iter()}
        fills = [element.get("fill") for element in root]
        for fill, rgb in zip(fills, (scene.background, *(shape.rgb for shape in scene.shapes)), strict=True):
            assert re.fullmatch("#[0-9a-f]{6}", fill)
            assert np.abs(np.subtract(list(bytes.fromhex(fill[1:])), rgb)).max() <= 12
    assert tags == {"svg", "rect", "circle", "polygon"}


SCENE = pictures.Scene(224, 112, (250, 240, 230), (
    pictures.Shape("red", "circle", "large", "left", (225, 35, 45), (20, 30, 60, 70)),
    pictures.Shape("blue", "square", "medium", "centre", (50, 80, 220), (100, 40, 120, 60)),
    pictures.Shape("green", "triangle", "medium", "right", (40, 170, 60), (160, 40, 182, 60)),
))  # fmt: skip
RIGHT = f"""<svg xmlns="{SVG}" viewBox="0 0 224 112">
<rect x="0" y="0" width="224" height="112" fill="#ffeeee"/>
<circle cx="40" cy="50" r="20" fill="#dc2828"/>
<rect x="100" y="40" width="20" height="20" fill="#3250dc"/>
<polygon points="171,40 160,60 182,60" fill="#28aa3c"/>
</svg>"""
LINES = RIGHT.splitlines()


@pytest.mark.parametrize(
    "answer",
    [
        RIGHT, f"```svg\n{RIGHT}\n```", RIGHT.replace(f' xmlns="{SVG}"', ""), RIGHT.replace("\n", ""),
        "\n".join([*LINES[:2], *LINES[4:1:-1], LINES[5]]),            # in another order
        RIGHT.replace("3250dc", "35d"), RIGHT.replace("3250dc", "3250DC"),
        RIGHT.replace("viewBox", 'width="224" height="112" viewBox'),
        RIGHT.replace('x="0" y="0" ', ""), RIGHT.replace("0 0 224 112", "0,0,224,112"),
        RIGHT.replace("171,40 160,60 182,60", "160 60 182 60 171 40"),
        RIGHT.replace('cx="40"', 'cx="62.3"'), RIGHT.replace('cy="50"', 'cy="61.1"'),  # a tenth of the side, not more
    ],
)  # fmt: skip
def test_ordinary_variants_of_an_svg_drawing_are_right(answer):
    assert drawings.judge_drawing(answer, SCENE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('cx="40"', 'cx="62.5"'), ('cy="50"', 'cy="61.3"'), ('r="20"', 'r="31.3"'), ("dc2828", "dc2846"),
        ("ffeeee", "c8eeee"), ("0 0 224 112", "0 0 225 112"), ("0 0 224 112", "0 0 112 224"),
        ("0 0 224 112", "1 0 224 112"), ("viewBox", 'width="448" height="224" viewBox'), ("<circle", "<ellipse"),
        ('<circle cx="40"', '<circle transform="scale(2)" cx="40"'), (LINES[1], ""), (LINES[2], ""),
        (LINES[3], LINES[3] * 2), (LINES[3], LINES[3].replace("rect", "circle")), ("</svg>", ""),
        ("</svg>", "<text>red</text></svg>"), ("</svg>", "red</svg>"), ("#3250dc", "blue"), ("#3250dc", "#3250d"),
        ("171,40 160,60 182,60", "171,60 160,40 182,40"), ("171,40 160,60 182,60", "171,40 160,60 182,60 171,60"),
        ("171,40 160,60 182,60", "171,40 160,60 182"), ('width="20"', 'width="-20"'), ('width="20"', 'width="0"'),
        ('width="20"', 'width="nan"'), ('width="20"', 'width="1e1"'), ("<svg", "<!DOCTYPE svg><svg"),
        (f' xmlns="{SVG}"', ' xmlns="http://example.com/"'), ("<svg", "Here it is: <svg"),
        ('fill="#3250dc"', ""), ('fill="#3250dc"/>', 'fill="#3250dc"><rect/></rect>'),
    ],
)  # fmt: skip
def test_a_wrong_svg_drawing_is_refused(old, new):
    assert old in RIGHT
    assert not drawings.judge_drawing(RIGHT.replace(old, new, 1), SCENE)


def test_a_drawing_without_a_ground_is_seen_on_white():
    white = replace(SCENE, background=(240, 255, 232))
    assert drawings.judge_drawing(RIGHT.replace(LINES[1], ""), white)
    assert not drawings.judge_drawing(RIGHT.replace(LINES[1], ""), replace(SCENE, background=(230, 255, 255)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(-0.2, 0.2), st.sampled_from(["x", "y"]))
def test_a_drawing_is_right_just_when_it_is_moved_by_no_more_than_a_tenth(index, share, axis):
    _, scene = draw_svg(index, num_shapes=[1])
    [shape] = scene.shapes
    left, top, right, bottom = shape.box
    dx, dy = (share * scene.width, 0) if axis == "x" else (0, share * scene.height)
    left, top, right, bottom = left + dx, top + dy, right + dx, bottom + dy
    x, y, r = (left + right) / 2, (top + bottom) / 2, (right - left) / 2
    fill = "#" + bytes(shape.rgb).hex()
    element = {
        "square": f'rect x="{left:.6f}" y="{top:.6f}" width="{right - left:.6f}" height="{bottom - top:.6f}"',
        "circle": f'circle cx="{x:.6f}" cy="{y:.6f}" r="{r:.6f}"',
        "triangle": f'polygon points="{x:.6f},{top:.6f} {left:.6f},{bottom:.6f} {right:.6f},{bottom:.6f}"',
    }[shape.kind]
    lines = drawings.write(scene).splitlines()
    answer = "\n".join([*lines[:2], f'<{element} fill="{fill}"/>', lines[-1]])
    if abs(abs(share) - drawings.PLACE_TOLERANCE) > 1e-4:
        assert drawings.judge_drawing(answer, scene) == (abs(share) < drawings.PLACE_TOLERANCE)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='<svg/> rect"=0xcy#', max_size=60))
def test_any_text_is_judged_without_an_exception(text):
    assert not drawings.judge_drawing(text, SCENE) and not drawings.judge_drawing(RIGHT[:100] + text, SCENE)


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", [*documents.CANVASES, "paper"])
def test_a_pdf_file_and_its_rendered_pages_are_the_same_prompt(canvas, processor):
    for index in range(1 if canvas == "paper" else 12):
        sample = draw("documents", 0, index, "held-out", canvas=canvas)
        document = sample.task.medium
        parts = sample.messages[-1]["content"]
        assert document.as_file and [part["pdf"] for part in parts if part["type"] == "pdf"] == [document.encode()]
        at = next(i for i, part in enumerate(parts) if part["type"] == "pdf")
        pages = replace(document, as_file=False).parts()
        rendered = [*sample.messages[:-1], {"role": "user", "content": [*parts[:at], *pages, *parts[at + 1 :]]}]
        found, expected = processor.prompt(rendered), processor.prompt(sample.messages)
        assert found.input_ids == expected.input_ids
        assert np.array_equal(found.pixel_values, expected.pixel_values)
        assert np.array_equal(found.grid_thws, expected.grid_thws)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=4), st.integers())
def test_a_written_pdf_renders_to_its_pictures(sizes, seed):
    """Any sizes, odd ones included, and any pixels."""
    rng = random.Random(seed)
    pages = [Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])) for size in sizes]
    assert [page.tobytes() for page in render_pages(write_pdf(pages), "written")] == [page.tobytes() for page in pages]


def test_pages_of_training_need_no_renderer_and_are_numbered():
    for index in range(20):
        sample = draw("documents.count", 0, index)
        parts = sample.task.medium.parts()
        assert [part["type"] for part in parts] == ["text", "image"] * sample.task.truth
        assert [part["text"] for part in parts[::2]] == [f"Page {n}:\n" for n in range(1, sample.task.truth + 1)]


@pytest.mark.parametrize(
    ("canvas", "most"), [("plain", 36), ("small", 36), ("medium", 100), ("full", 660), ("paper", 2623)]
)
def test_a_page_costs_no_more_tokens_than_its_kind_says(canvas, most):
    rng = random.Random(0)
    sizes = [documents.draw_size(rng, canvas) for _ in range(400)]
    assert most / 2 < max(math.ceil(width / 28) * math.ceil(height / 28) for width, height in sizes) <= most


def test_large_letters_stand_wholly_on_their_page_and_it_says_what_the_answer_says():
    counts, asked = set(), set()
    for index in range(100):
        sample = draw("documents.page", 6, index, thinking=True)
        pages = sample.task.medium.pages
        for page in pages:
            left, top, right, bottom = ink_box(page.paint(), page.background)
            assert min(left, top) >= 1 and right < page.width and bottom < page.height
            assert page.cap_height >= max(16, min(page.width, page.height) // 8)
            assert re.fullmatch(r"[A-Z]{1,5}|\d{1,5}", page.text)
        said = re.findall(r"[Pp]age (\d) says (\w+)", sample.content)
        assert said and all(pages[int(number) - 1].text == text for number, text in said)
        spelt = re.findall(r"page (\d)\n((?:\d \w\n?)+)", sample.reasoning_content)
        assert said == [(number, "".join(re.findall(r"\d (\w)", lines))) for number, lines in spelt]
        counts.add(len(pages))
        asked.add(len(said))
    assert counts == asked == {1, 2, 3}


@pytest.mark.parametrize(
    ("judge", "answer", "truth", "right"),
    [
        (documents.judge_page, "Page 2 says BOLT.", (2, "BOLT"), True),
        (documents.judge_page, "BOLT", (2, "BOLT"), True),
        (documents.judge_page, 'It says "482" on page 2.', (2, "482"), True),
        (documents.judge_page, "Page 1 says BOLT.", (2, "BOLT"), False),
        (documents.judge_page, "Page 2 says BOLD.", (2, "BOLT"), False),
        (documents.judge_page, "Page 2 says BOLT and NUT.", (2, "BOLT"), False),
        (documents.judge_page, "Page 2 says 2.", (2, "BOLT"), False),
        (documents.judge_page, "Page 2.", (2, "2"), False),
        (documents.judge_whole, "Page 1 says NUT and page 2 says 7.", ("NUT", "7"), True),
        (documents.judge_whole, "NUT, 7", ("NUT", "7"), True),
        (documents.judge_whole, "Page 1 says 7 and page 2 says NUT.", ("NUT", "7"), False),
        (documents.judge_whole, "Page 2 says NUT and page 1 says 7.", ("NUT", "7"), False),
        (documents.judge_whole, "Page 1 says NUT.", ("NUT", "7"), False),
        (documents.judge_count, "There are 3 pages.", 3, True),
        (documents.judge_count, "Three.", 3, True),
        (documents.judge_count, "There is one page.", 1, True),
        (documents.judge_count, "There are 2 pages.", 3, False),
        (documents.judge_count, "2 or 3", 3, False),
        (documents.judge_count, "Many.", 3, False),
    ],
)
def test_answers_about_documents_are_judged_by_what_they_say(judge, answer, truth, right):
    assert judge(answer, truth) is right


# --- long texts ------------------------------------------------------------------------------------------------------


def test_the_text_holds_the_code_once_and_codes_of_other_things():
    places = []
    for index in range(200):
        sample = draw("needles.code", 0, index, **SHORT)
        text, (name, code) = sample.task.medium.text, sample.task.truth
        found = dict(re.findall(r"The code of the (\w+ \w+) is (\d{4})\.", text))
        assert found[name] == code and name in sample.task.question.lower()
        assert 3 <= len(found) <= 7 and len(set(found.values())) == len(found)
        assert re.findall(r"\d+", text) == list(found.values())
        assert set(found.values()) == set(sample.task.medium.codes)
        assert sample.content == f"The code of the {name} is {code}."
        places.append(text.index(sample.content) / len(text))
    thirds = [sum(low <= place < low + 1 / 3 for place in places) for low in (0, 1 / 3, 2 / 3)]
    assert min(thirds) > 45


@pytest.mark.parametrize("num_tokens", [256, 1000, 4000, 16000])
def test_a_text_is_as_long_as_asked_for(num_tokens, processor):
    for index in range(3):
        text = draw("needles.code", 1, index, num_tokens=num_tokens).task.medium.text
        # A sentence more or less, and sentences with codes, which have other lengths: in a short text both count.
        assert len(processor.tokenizer.encode(text)) == pytest.approx(num_tokens, rel=0.1, abs=40)


def test_lengths_are_mixed_and_the_filler_does_not_repeat_itself():
    lengths = [len(draw("needles.code", 2, index).task.medium.text) for index in range(60)]
    assert 1000 * 2 < min(lengths) < 5000 and 16000 < max(lengths) < 16000 * 2.5
    sentences = re.split(r"(?<=\.)\s", draw("needles.code", 2, 0, num_tokens=4000).task.medium.text)
    assert len(set(sentences)) > 0.85 * len(sentences) > 100


def test_a_long_text_is_one_string_before_or_after_its_question():
    orders = set()
    for index in range(60):
        sample = draw("needles.code", 3, index, **SHORT)
        content, text = sample.messages[-1]["content"], sample.task.medium.text
        before, _, after = content.partition(text)
        orders.add((bool(before), bool(after)))
        assert sample.task.question in (before.removesuffix("\n\n"), after.removeprefix("\n\n"))
    assert orders == {(False, True), (True, False), (True, True)}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The code of the blue door is 4821.", True), ("4821", True), ("It is 4821.", True),
        ("The code of the blue door is 482.", False), ("The code of the red door is 4821.", False),
        ("The code of the blue box is 4821.", False), ("4821 or 4822", False), ("I do not know.", False),
    ],
)  # fmt: skip
def test_a_code_is_judged_with_its_door(answer, right):
    assert needles.judge_code(answer, ("blue door", "4821")) is right


# --- training and held-out -------------------------------------------------------------------------------------------


def draw_tasks(skill: str, split: str, num: int):
    """Tasks alone, so that thousands of clips and pages need not be painted."""
    rng = random.Random(f"{skill} {split}")
    level = Level(split, "small", (1, 2, 3, 4), 300)
    return (draw_task(rng, skill, level) for _ in range(num))


MEDIA_SKILLS = [*NEW_SKILLS, *skills_of("videos"), "pictures.describe"]


@pytest.mark.parametrize("skill", MEDIA_SKILLS)
def test_training_shows_nothing_that_is_held_out(skill):
    for task in draw_tasks(skill, "train", 2000):
        assert not any(map(is_held_out, (task.key, *task.medium.keys))), task.key


@pytest.mark.parametrize("skill", MEDIA_SKILLS)
def test_a_held_out_question_is_about_something_held_out(skill):
    for task in draw_tasks(skill, "held-out", 200):
        assert is_held_out(task.key) and task.key in task.medium.keys
        if skill.partition(".")[0] in ("documents", "needles"):  # where each part is drawn by itself
            assert all(map(is_held_out, task.medium.keys))


@pytest.mark.parametrize("skill", skills_of("videos"))
def test_a_frame_has_the_key_of_the_picture_that_it_is(skill):
    for index in range(40):
        clip = draw(skill, 8, index).task.medium
        assert {scene.key for scene in clip.scenes} == set(clip.keys)
        assert all(key == "picture:" + pictures.listing(scene) for scene in clip.scenes for key in scene.keys)


def test_held_out_clips_are_still_many():
    """The rule leaves a choice: one picture of a clip decides, not all of them."""
    clips = {task.medium.words for skill in skills_of("videos") for task in draw_tasks(skill, "held-out", 200)}
    assert len(clips) > 350


def test_a_text_has_one_key_on_signs_and_on_pages():
    sign, document = (draw(name, 0, 0).task.medium for name in ("signs", "documents"))
    page = replace(document.pages[0], text=sign.text)
    assert replace(document, pages=(page,)).keys == sign.keys == (f"text:{sign.text}",)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", NEW_SKILLS)
@pytest.mark.parametrize("split", ["train", "held-out"])
def test_every_prompt_passes_the_processor(skill, split, processor):
    pad = processor.config.media_placeholder_token_id
    for index in range(12):
        sample = draw(skill, 10, index, split, **SHORT)
        prompt = processor.prompt(sample.messages, thinking=sample.thinking)
        grids = [] if prompt.grid_thws is None else prompt.grid_thws.tolist()
        assert prompt.input_ids.count(pad) == sum(rows * columns // 4 for _, rows, columns in grids)
        assert len(grids) == {"documents": len(sample.task.medium.keys), "needles": 0}.get(skill.partition(".")[0], 1)


def test_without_names_evaluation_asks_what_short_replies_answer():
    worlds = {skill.partition(".")[0] for skill in evaluate.choose_skills(None)}
    assert worlds == set(BY_DEFAULT) and not worlds & {"videos", "signs", "svg", "documents", "needles"}
    assert evaluate.choose_skills(["documents"]) == ["documents.page", "documents.count"]
    assert set(evaluate.choose_skills([*SKILLS, "conversation"])) == {*SKILLS, "conversation"}


def test_evaluation_asks_for_texts_of_the_length_it_is_told():
    options = evaluate.parse(["--tokens", "500"])
    text = evaluate.draw_question("needles.code", 0, options).task.medium.text
    assert len(text) == pytest.approx(500 * needles.CHARACTERS_PER_TOKEN, rel=0.05)
    with pytest.raises(UsageError, match="--tokens is 0; expected at least 1"):
        evaluate.parse(["--tokens", "0"])
