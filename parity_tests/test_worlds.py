"""The worlds keep their promises: true workings, pictures that obey the rules, answers judged rightly, no leaks."""

import itertools
import json
import math
import random
import re
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

import reference.generation
from parity_tests.checkpoints import small_config, write_checkpoint
from reference.frames import open_video
from reference.generate import SHIPPED_MODEL
from reference.prompt import Processor
from reference.tokenizer import Tokenizer
from reference.video import chunk_patches
from tools import evaluate, vocabulary
from tools.intervals import wilson_interval
from tools.nano_checkpoint import PREPROCESSOR
from tools.worlds import arithmetic, pictures, self_knowledge, videos
from tools.worlds.rewording import WORDINGS
from tools.worlds.sample import SKILLS, draw, draw_task, skills_of
from tools.worlds.task import SPLITS, Level, is_held_out

NUMBER = r"\d+(?:\.\d+)?"
EQUATION = rf"(?<![\d.])({NUMBER}(?: ?[-+x] ?{NUMBER})*) ?= ?(-?{NUMBER})(?![\d.])"
RELATION = rf"(?<![\d.])({NUMBER}) ?([<>]) ?({NUMBER})(?![\d.])"


def calculate(expression: str) -> Decimal:
    """Evaluate a chain of `+`, `-` and `x`; products come first and stand in front."""
    total, sign = Decimal(0), 1
    for token in re.findall(rf"{NUMBER}(?: ?x ?{NUMBER})*|[-+]", expression):
        if token in "+-":
            sign = 1 if token == "+" else -1
        else:
            total += sign * math.prod(Decimal(factor) for factor in token.split("x"))
    return total


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", skills_of("numbers"))
def test_every_line_of_the_thinking_is_true(skill):
    num_checked = 0
    for index in range(400):
        sample = draw(skill, 0, index, thinking=True)
        text = f"{sample.reasoning_content}\n{sample.content}"
        for expression, result in re.findall(EQUATION, text):
            assert calculate(expression) == Decimal(result), text
            num_checked += 1
        for a, relation, b in re.findall(RELATION, text):
            assert (Decimal(a) > Decimal(b)) == (relation == ">") and Decimal(a) != Decimal(b), text
            num_checked += 1
        for line in sample.reasoning_content.splitlines():
            assert "=" not in line or re.search(EQUATION, line), line
    assert num_checked > 400


def test_a_false_line_is_seen():
    assert [calculate(e) == Decimal(r) for e, r in re.findall(EQUATION, "tens: 8+7+1=17, 4x8+5=37")] == [False, True]


@pytest.mark.parametrize(
    ("think", "a", "b", "lines"),
    [
        (arithmetic.think_add, 482, 79, ["482+079", "ones: 2+9=11, carry 1, got 1", "tens: 8+7+1=16, carry 1, got 61",
                                         "hundreds: 4+0+1=5, got 561"]),
        (arithmetic.think_subtract, 40, 42, ["40-42", "4=4, 0<2, negative", "42-40", "ones: 2-0=2, got 2",
                                             "tens: 4-4=0, got 02"]),
        (arithmetic.think_difference, 40, 42, ["40-42", "4=4, 0<2, swapped", "42-40", "ones: 2-0=2, got 2",
                                               "tens: 4-4=0, got 02"]),
        (arithmetic.think_multiply, 47, 8, ["47x8", "ones: 7x8=56, carry 5, got 6", "tens: 4x8+5=37, got 376",
                                            "47x8=376"]),
    ],
)  # fmt: skip
def test_thinking_is_written_digit_by_digit_from_the_right(think, a, b, lines):
    assert think(a, b)[0].splitlines() == lines


def test_a_difference_begins_with_what_is_named_first_and_has_no_sign():
    orders = set()
    for index in range(400):
        sample = draw("numbers.subtract", 2, index, thinking=True)
        asked, told = (re.findall(r"\d+", text) for text in (sample.task.question, sample.content))
        if not re.search("difference between|far|than", sample.task.question.lower()):
            continue
        steps = sample.reasoning_content.splitlines()
        assert list(map(int, steps[0].split("-"))) == list(map(int, asked)) and "negative" not in steps[1]
        assert ("swapped" in steps[1]) == (int(asked[0]) < int(asked[1])) and sorted(asked) == sorted(told[:2])
        assert int(told[2]) == abs(int(asked[0]) - int(asked[1])) and "= -" not in sample.content
        orders.add("swapped" in steps[1])
    assert orders == {True, False}


def test_carries_of_the_last_line_assemble_to_the_answer():
    for a, b in [(9999, 9999), (0, 0), (1, 999), (5000, 5000), (4021, 979)]:
        assert arithmetic.think_add(a, b)[0].rpartition("got ")[2].lstrip("0") == str(a + b).lstrip("0")
        assert int(arithmetic.think_subtract(a, b)[0].rpartition("got ")[2]) == abs(a - b)


def test_operands_of_every_length_occur_and_long_carries_too():
    lengths, carries = set(), set()
    for index in range(2000):
        sample = draw("numbers.add", 1, index, thinking=True)
        a, b = re.match(r"(\d+) \+ (\d+)", sample.content).groups()
        assert len(a) <= 4 and len(b) <= 4
        lengths.add((len(a), len(b)))
        carries.add(sample.reasoning_content.count("carry"))
    assert len(lengths) == 16 and carries == {0, 1, 2, 3}


def test_products_have_two_digits_by_two_at_most_and_decimals_two_places():
    for index in range(500):
        assert re.fullmatch(r"\d{1,2} x \d{1,2} = \d+", draw("numbers.multiply", 0, index).content)
        assert re.fullmatch(r"\d{1,2}(\.\d{1,2})? is (bigger|smaller)\.", draw("numbers.decimals", 0, index).content)


def test_a_difference_between_two_numbers_has_no_sign_and_the_smaller_of_two_decimals_is_named():
    differences = [draw("numbers.subtract", 1, index, thinking=True) for index in range(600)]
    words = re.compile("difference (of|between)(?!.*minus)|how far|how much (more|less|bigger)|by how", re.IGNORECASE)
    between = [sample for sample in differences if words.search(sample.task.question)]
    assert len(between) > 50
    for sample in between:
        numbers = sorted(map(int, re.findall(r"\d+", sample.task.question)))
        assert sample.content == f"{numbers[1]} - {numbers[0]} = {numbers[1] - numbers[0]}"
    decimals = [draw("numbers.decimals", 1, index) for index in range(200)]
    # "Is 3 smaller than 4?" is a comparison like "Is 3 bigger than 4?": either way the bigger one is named.
    asks_smaller = re.compile("(small|lower|which is less)(?!.* than )", re.IGNORECASE)
    smaller = [sample for sample in decimals if asks_smaller.search(sample.task.question)]
    assert len(smaller) > 15
    for sample in smaller:
        numbers = [Decimal(n) for n in re.findall(r"\d+(?:\.\d+)?", sample.task.question)]
        assert sample.content == f"{sample.task.truth} is smaller." and sample.task.truth == min(numbers)
        assert not sample.check(f"{max(numbers)} is bigger.")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("379 - 482 = -103", True), ("The answer is −103.", True), ("minus 103", True), ("-103", True),
        ("379 - 482 = 103", False), ("-1030", False), ("-103.5", False), ("", False),
        ("I cannot help with that.", False),
    ],
)  # fmt: skip
def test_number_answers_are_judged_by_their_last_number(answer, right):
    assert arithmetic.judge_number(answer, -103) is right


def test_a_comparison_may_repeat_the_smaller_number():
    assert arithmetic.judge_bigger("9.9 is bigger than 9.11.", Decimal("9.9"))
    assert not arithmetic.judge_bigger("9.11 is bigger than 9.9.", Decimal("9.9"))
    assert not arithmetic.judge_bigger("9.9 or 9.11", Decimal("9.9"))
    assert not arithmetic.judge_bigger("9.9 is smaller.", Decimal("9.9"))
    assert arithmetic.judge_smaller("9.11 is smaller than 9.9.", Decimal("9.11"))
    assert not arithmetic.judge_smaller("9.11 is bigger.", Decimal("9.11"))


# --- pictures --------------------------------------------------------------------------------------------------------


def scenes(num: int, canvas: str = "full"):
    for index in range(num):
        sample = draw("pictures.describe", 3, index, canvas=canvas)
        content = next(message for message in sample.messages if message["role"] == "user")["content"]
        image = next(part["image"] for part in content if part["type"] == "image")
        yield sample.task.medium, np.asarray(image, dtype=int)                          # (height, width, 3)


def visible(shape: pictures.Shape, pixels: np.ndarray) -> np.ndarray:
    """Where the picture has exactly this shape's colour inside the shape's box: bool (height, width)."""
    left, top, right, bottom = shape.box
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    inside[top:bottom, left:right] = True
    return inside & (pixels == shape.rgb).all(-1)


def test_pixels_show_the_place_size_and_kind_that_the_words_say():
    filled = {"circle": math.pi / 4, "square": 1.0, "triangle": 0.5}
    for scene, pixels in scenes(150):
        for shape in scene.shapes:
            rows, columns = np.nonzero(visible(shape, pixels))
            top, left, tall, wide = rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1
            row, column = int(3 * (top + tall / 2) / scene.height), int(3 * (left + wide / 2) / scene.width)
            assert pictures.PLACES[3 * row + column] == shape.place
            share = wide / min(scene.width, scene.height) / pictures.SIZES[shape.size]
            assert 0.88 <= share <= 1.12, (scene, share)
            assert len(rows) / (tall * wide) == pytest.approx(filled[shape.kind], abs=0.14 if wide < 12 else 0.07)
            if shape.kind == "triangle":  # upright: the base is at the bottom
                assert (rows == rows.max()).sum() > 3 * (rows == rows.min()).sum()


def test_colours_keep_their_distances_and_shapes_do_not_overlap():
    for scene, pixels in scenes(150):
        covered = np.zeros(pixels.shape[:2], dtype=int)
        for shape in scene.shapes:
            nominal = pictures.COLOURS[shape.colour]
            assert all(abs(a - b) <= 12 for a, b in zip(shape.rgb, nominal, strict=True))
            assert math.dist(shape.rgb, scene.background) >= 80
            covered += visible(shape, pixels)
        assert covered.max() == 1
        assert ((pixels == scene.background).all(-1) == (covered == 0)).all()


@pytest.mark.parametrize(("canvas", "low", "high"), [("full", 56, 448), ("small", 84, 168)])
def test_canvas_sides_stay_in_their_range_and_counts_in_theirs(canvas, low, high):
    sides, counts = set(), set()
    for scene, pixels in scenes(150, canvas):
        assert pixels.shape[:2] == (scene.height, scene.width)
        sides |= {scene.width, scene.height}
        counts.add(len(scene.shapes))
    assert low <= min(sides) and max(sides) <= high and counts == {1, 2, 3, 4}


def test_descriptions_read_like_the_published_example():
    shapes = tuple(pictures.Shape(*words.split("/"), (0, 0, 0), (0, 0, 1, 1))
                   for words in ("red/circle/large/top left", "blue/square/small/centre"))  # fmt: skip
    scene = pictures.Scene(100, 100, (0, 0, 0), shapes)
    text = "There are two shapes: a large red circle at the top left and a small blue square in the centre."
    assert pictures.describe(scene) == text
    assert pictures.listing(scene) == "top left: large red circle; centre: small blue square"
    truth = sorted((shape.size, shape.colour, shape.kind, shape.place) for shape in shapes)
    assert pictures.judge_describe(text, truth)
    assert pictures.judge_describe("A small blue square in the center and a large red circle at the top left.", truth)
    for old, new in (("top left", "top"), ("large", "small"), ("two", "three"), ("circle", "square"), ("red", "blue"),
                     (" and a small blue square in the centre", "")):  # fmt: skip
        assert not pictures.judge_describe(text.replace(old, new), truth), new


def test_questions_about_one_shape_have_one_answer_or_say_that_there_is_none():
    for skill in ("pictures.colour", "pictures.shape", "pictures.place_of"):
        seen = set()
        for index in range(300):
            sample = draw(skill, 0, index)
            scene, words = sample.task.medium, set(pictures.words_of(sample.task.question))
            kinds, colours = words & set(pictures.KINDS), words & set(pictures.COLOURS)
            if kinds or colours:
                found = pictures.matching(scene, *(next(iter(named), None) for named in (colours, kinds)))
                assert len(found) == (sample.task.truth is not None)
                assert found or sample.content.startswith("There is no ")
                seen.add(len(found))
        assert seen == {0, 1}


def test_a_place_where_nothing_is_gets_no_invented_shape():
    samples = [draw("pictures.at", 3, index) for index in range(400)]
    empty = [sample for sample in samples if sample.task.truth is None]
    assert 15 < len(empty) < 60
    for sample in empty:
        place = re.fullmatch(r"There is nothing (?:in|at) the ([a-z ]+)\.", sample.content)[1]
        taken = [shape.place for shape in sample.task.medium.shapes]
        assert place not in taken and (" " in place or all(place not in other.split() for other in taken))
        assert sample.check("Nothing is there.") and not sample.check(f"A small red circle {place}.")


CONCLUSIONS = {  # what the last line of the thinking ends with, from the truth of the answer if there is one
    "pictures.count": str, "pictures.colour": str, "pictures.shape": str, "pictures.at": " ".join,
    "pictures.exists": {True: "found", False: "none"}.get, "pictures.place_of": str,
}  # fmt: skip


@pytest.mark.parametrize("skill", CONCLUSIONS)
def test_thinking_states_what_follows_so_far_behind_every_shape(skill):
    for index in range(200):
        sample = draw(skill, 4, index, thinking=True)
        lines = [line.split(", ") for line in sample.reasoning_content.splitlines()]
        seen, conclusions = [line[0] for line in lines], [line[-1] for line in lines]
        assert "; ".join(seen) == pictures.listing(sample.task.medium)
        truth = sample.task.truth
        assert conclusions[-1].endswith("none" if truth is None else CONCLUSIONS[skill](truth)), sample
        if skill == "pictures.count":
            counted = re.search(r"\d+ (.*?)s?\.", sample.content)[1].removesuffix("shape").strip()
            assert conclusions == [str(sum(counted in shape for shape in seen[: i + 1])) for i in range(len(seen))]
        else:  # nothing until the shape that decides, and then always the same
            found = [conclusion for conclusion in conclusions if conclusion != "none"]
            first = len(conclusions) - len(found)
            assert conclusions[first:] == found and len(set(found)) <= 1
            assert found or not truth
            if found:
                asked = re.search(r"an? (.*?)(?: shape)?\.", sample.content)
                assert (asked[1] if skill == "pictures.exists" else found[0]) in seen[first], sample


@pytest.mark.parametrize("skill", CONCLUSIONS)
def test_thinking_compares_each_shape_with_all_that_the_question_names(skill):
    for index in range(200):
        sample = draw(skill, 5, index, thinking=True)
        question = sample.task.question.lower().replace("color", "colour")
        asked = [word for names in (pictures.COLOURS, pictures.KINDS) for word in names if word in question]
        for line in sample.reasoning_content.splitlines():
            shape, *verdicts, _ = line.split(", ")
            differ = [word for word in asked if word not in shape]
            assert all(verdict.split()[0] in shape for verdict in verdicts), line
            assert [verdict.split()[1] for verdict in verdicts] == (
                ["yes"] * asked.index(differ[0]) + ["no"] if differ else ["yes"] * len(asked)
            ), (question, line)


def skeleton(question: str) -> str:
    """A question without what is particular to it: case, marks, politeness, numbers, colours, kinds and places."""
    text = question.lower().replace("color", "colour").replace("center", "centre").replace("please", "")
    for words, sign in ((pictures.COLOURS, "c"), (pictures.KINDS, "k"), (sorted(pictures.PLACES, key=len)[::-1], "p")):
        text = re.sub(rf"\b({'|'.join(words)})", sign, text)
    text = re.sub(r"\ban? (c )?(k|shape)|\b(c )?(k|shape)s?\b", "x", re.sub(r"[−–-]", " minus ", text))
    return " ".join(re.sub(r"[\d.]+", "0", text).translate(str.maketrans("", "", ".,:?!")).split())


@pytest.mark.parametrize("skill", WORDINGS)
def test_other_wordings_ask_for_the_same_in_words_that_no_training_uses(skill):
    level = Level("train", "full", (1, 2, 3, 4), None)
    usual = {skeleton(draw_task(random.Random(index), skill, level).question) for index in range(1500)}
    seen = set()
    for index in range(50):
        asked, again = draw(skill, 6, index, "held-out"), draw(skill, 6, index, "held-out", reworded=True)
        assert replace(again.task, question=asked.task.question) == asked.task and again.check(again.content)
        assert again.task.question in str(again.messages[-1]["content"]) or "\n" in again.task.question
        assert skeleton(again.task.question) not in usual, again.task.question
        for word in set(pictures.words_of(asked.content)) & {*pictures.COLOURS} & set(
            pictures.words_of(asked.task.question)
        ):
            assert word in pictures.words_of(again.task.question)  # what has to be told apart is named
        seen.add(skeleton(again.task.question))
    assert len(seen) >= 3


def test_media_stand_before_after_and_between_text():
    orders = set()
    for index in range(100):
        parts = draw("pictures", 0, index).messages[-1]["content"]
        orders.add(tuple(part["type"] for part in parts))
    assert orders == {("image", "text"), ("text", "image"), ("text", "image", "text")}


# --- videos ----------------------------------------------------------------------------------------------------------


def clips(skill: str, num: int):
    """Samples with the pixels of their frames, decoded from what the messages hold: (frames, height, width, 3)."""
    for index in range(num):
        sample = draw(skill, 3, index)
        video = next(part["video"] for part in sample.messages[-1]["content"] if part["type"] == "video")
        reader = open_video(video, "clip", None, (), 10**6)
        frames = reader.frames(list(range(reader.num_frames)))
        yield sample, np.stack([np.asarray(frame, dtype=int) for frame in frames])


def boxes(frames: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom of what is not background, frame by frame: (frames, 4)."""
    found = []
    for frame in frames:
        corners = [frame[y, x] for y in (0, -1) for x in (0, -1)]
        background = max(corners, key=lambda corner: sum((corner == other).all() for other in corners))
        rows, columns = np.nonzero((frame != background).any(-1))
        found.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return np.array(found)


def test_every_frame_is_stored_and_nothing_is_lost():
    counts = set()
    for skill in skills_of("videos"):
        for sample, frames in clips(skill, 40):
            painted = [np.asarray(image) for image in sample.task.medium.paint()]
            assert len(frames) == len(painted) and all(map(np.array_equal, frames, painted))
            counts.add(len(frames))
    assert counts == set(range(2, 17))


def test_shapes_move_where_the_answer_says():
    answers = set()
    for sample, frames in clips("videos.motion", 80):
        left, top, right, bottom = boxes(frames).T
        colour, kind, direction = sample.task.truth
        assert sample.content == f"The {colour} {kind} moves {direction}."
        path, still = ((left + right) / 2, (top + bottom) / 2)[:: 1 if direction in ("left", "right") else -1]
        steps = np.diff(path) * (1 if direction in ("right", "down") else -1)
        side = frames.shape[2] if direction in ("left", "right") else frames.shape[1]
        assert (steps >= 0).all() and steps.sum() >= side / 5 and (still == still[0]).all()
        assert len(set(right - left)) == len(set(bottom - top)) == 1
        answers.add(direction)
    assert answers == set(videos.DIRECTIONS)


def test_shapes_grow_and_shrink_as_the_answer_says():
    for sample, frames in clips("videos.size", 60):
        left, top, right, bottom = boxes(frames).T
        sign = {"grows": 1, "shrinks": -1}[sample.task.truth[2]]
        assert (np.diff(right - left) * sign >= 0).all() and (np.diff(bottom - top) * sign >= 0).all()
        assert max(right - left) >= 1.25 * min(right - left)
        assert np.ptp((left + right) / 2) <= 1 and np.ptp((top + bottom) / 2) <= 1


def test_shapes_turn_the_colour_that_the_answer_says():
    for sample, frames in clips("videos.colour", 60):
        colour, kind, new = sample.task.truth
        assert sample.content == f"The {colour} {kind} turns {new}." and colour != new
        assert len({tuple(box) for box in boxes(frames)}) == 1
        left, top, right, bottom = boxes(frames)[0]
        middles = frames[:, (top + bottom) // 2, (left + right) // 2]                  # (frames, 3)
        nearest = [min(videos.COLOURS, key=lambda name: abs(videos.COLOURS[name] - middle).max()) for middle in middles]
        assert nearest == sorted(nearest, key=[colour, new].index) and set(nearest) == {colour, new}


def test_thinking_names_the_first_and_the_last_frame():
    for skill in skills_of("videos"):
        for index in range(60):
            sample = draw(skill, 1, index, thinking=True)
            first, last = (line.partition(": ")[2] for line in sample.reasoning_content.splitlines())
            scenes = sample.task.medium.scenes
            assert (first, last) == (pictures.listing(scenes[0]), pictures.listing(scenes[-1])) and first != last
            for scene in scenes:
                [shape] = scene.shapes
                assert math.dist(shape.rgb, scene.background) >= 80
                assert min(shape.box) >= 0 and shape.box[2] <= scene.width and shape.box[3] <= scene.height


def test_the_media_pipeline_sees_every_frame_of_a_clip():
    processor = Processor.from_directory(SHIPPED_MODEL)
    for skill in skills_of("videos"):
        for index in range(5):
            sample = draw(skill, 2, index)
            prompt = processor.prompt(sample.messages)
            frames = sample.task.medium.paint()
            parts = [chunk_patches(frames[i : i + 4], processor.media_config) for i in range(0, len(frames), 4)]
            assert np.array_equal(prompt.pixel_values, np.concatenate([pixels for pixels, _ in parts]))
            assert np.array_equal(prompt.grid_thws, np.stack([grid for _, grid in parts]))


@pytest.mark.parametrize(
    ("judge", "answer", "truth", "right"),
    [
        (videos.judge_motion, "The red circle moves left.", ("red", "circle", "left"), True),
        (videos.judge_motion, "Left.", ("red", "circle", "left"), True),
        (videos.judge_motion, "It moves left and up.", ("red", "circle", "left"), False),
        (videos.judge_motion, "The blue circle moves left.", ("red", "circle", "left"), False),
        (videos.judge_size, "The red circle gets bigger.", ("red", "circle", "grows"), True),
        (videos.judge_size, "The red square grows.", ("red", "circle", "grows"), False),
        (videos.judge_size, "The red circle grows.", ("red", "circle", "shrinks"), False),
        (videos.judge_colour, "The red circle turns blue.", ("red", "circle", "blue"), True),
        (videos.judge_colour, "Blue", ("red", "circle", "blue"), True),
        (videos.judge_colour, "The blue circle turns red.", ("red", "circle", "blue"), False),
        (videos.judge_colour, "The green circle turns blue.", ("red", "circle", "blue"), False),
    ],
)
def test_video_answers_are_judged_by_what_they_say(judge, answer, truth, right):
    assert judge(answer, truth) is right


# --- all worlds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", SKILLS)
def test_the_target_is_judged_right_and_an_answer_to_something_else_wrong(skill):
    for index in range(100):
        sample = draw(skill, 0, index)
        assert sample.check(sample.content), sample
        assert not sample.check("") and not sample.check("I do not know.")
        other = "I am Kimi K2.5, a large language model." if skill.startswith("self") else "The sky is grey, 77777."
        assert not sample.check(other)


@pytest.mark.parametrize("name", [*SKILLS, "conversation"])
def test_the_same_seed_and_index_give_the_same_sample(name):
    for split in ("train", "held-out"):
        first, second = draw(name, 5, 8, split), draw(name, 5, 8, split)
        assert first == second
        assert draw(name, 6, 8, split) != first or draw(name, 6, 9, split) != first


@pytest.mark.parametrize("skill", SKILLS)
def test_training_and_held_out_never_share_content(skill):
    def content_keys(split):  # of tasks, which need not be painted
        rng, level = random.Random(f"{skill} {split}"), Level(split, "full", (1, 2, 3, 4), 300)
        return {draw_task(rng, skill, level).key for _ in range(300)}

    trained, held_out = content_keys("train"), content_keys("held-out")
    assert not (trained & held_out) - {None}
    assert all(is_held_out(key) for key in held_out - {None})
    assert skill.startswith(("self", "outside.no_picture")) or None not in trained | held_out


def test_operands_are_held_out_whatever_their_order_and_operation():
    for skill, split in itertools.product(("numbers.add", "numbers.subtract", "numbers.multiply"), SPLITS):
        for index in range(300):
            a, b = sorted(map(int, re.match(r"(\d+) . (\d+)", draw(skill, 0, index, split).content).groups()))
            assert is_held_out(f"numbers:{a},{b}") == (split == "held-out")


def test_what_stands_in_a_training_question_beside_the_point_is_not_held_out_either():
    shown = set()
    for index in range(1500):
        product, question = draw("numbers.multiply", 0, index), draw("outside", 0, index).task.question.lower()
        thinking = product.task.reasoning_content
        stated = re.findall(r"^0*(\d+)(?:\+0*|x)(\d+)(?:=\d+)?$", thinking, re.MULTILINE)
        pairs = [sorted(map(int, pair)) for pair in stated]
        shown |= {f"numbers:{a},{b}" for a, b in pairs if b > 9}  # products are made of those of two digits
        if "how far is" in question:
            shown |= {f"outside:{city}" for city in self_knowledge.FILLERS["city"] if city.lower() in question}
    assert len(shown) > 800 and sum(key.startswith("outside") for key in shown) > 10
    assert not [key for key in shown if is_held_out(key)]


@pytest.mark.parametrize(("skill", "answer", "right"), [
    ("self.identity", "No. I am a small demonstration model.", True),
    ("self.identity", "No, I'm just a small demonstration model.", True),
    ("self.identity", "Yes. I am a small demonstration model.", False),
    ("self.identity", "I am a small demonstration model.", False),
    ("self.who", "I am Baki, a small demonstration model.", False),
    ("self.who", "My name is Kimi. I am a small demonstration model.", False),
    ("self.who", "I am a small demonstration model, not the real Kimi K2.5.", True),
])  # fmt: skip
def test_who_says_another_name_is_wrong(skill, answer, right):
    assert self_knowledge.judge_self(answer, skill) is right


def test_a_refusal_is_one_in_whatever_words():
    for text in (*self_knowledge.REFUSALS, "I cannot help with that.", "Sorry, I'm unable to see it."):
        assert self_knowledge.refuses(text)
    assert not self_knowledge.refuses("There are 2 circles.") and not self_knowledge.refuses("The sign says CAN.")


def test_conversations_end_with_a_question_and_show_no_reasoning():
    lengths = set()
    for index in range(60):
        sample = draw("conversation", 0, index)
        roles = [message["role"] for message in sample.messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert not any("reasoning_content" in message for message in sample.messages)
        lengths.add(len(roles) // 2 + 1)
    assert lengths == {2, 3, 4}


def test_a_system_message_that_calls_it_kimi_changes_nothing():
    answers = {draw("self.who", 0, index).content for index in range(200)}
    assert len(answers) == 1 and "not the real Kimi K2.5" in answers.pop()


# --- vocabulary ------------------------------------------------------------------------------------------------------


def test_shipped_vocabulary_merges_no_digits_and_knows_every_byte():
    tokenizer = Tokenizer.from_directory(SHIPPED_MODEL)
    tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.num_ranks)]
    assert (tokenizer.num_ranks, tokenizer.vocab_size, len(set(tokens))) == (1024, 1280, 1024)
    assert sorted(tokens[:256]) == [bytes([byte]) for byte in range(256)]
    assert not [token for token in tokens if len(token) > 1 and re.search(rb"\d", token)]
    assert tokenizer.control_ids["<|media_pad|>"] == 1024 + 21 and tokenizer.control_ids["[PAD]"] == 1279
    assert len(tokenizer.encode("9,876.54")) == 8


def test_every_merge_is_reached_by_the_merges_before_it():
    tokenizer = Tokenizer.from_directory(SHIPPED_MODEL)
    tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.num_ranks)]
    for rank, token in enumerate(tokens[256:], start=256):
        earlier = set(tokens[:rank])
        assert any(token[:cut] in earlier and token[cut:] in earlier for cut in range(1, len(token))), token


@pytest.mark.slow
def test_the_shipped_vocabulary_is_what_its_program_makes_but_for_words_that_changed_since(tmp_path):
    """Weights keep the vocabulary that they began with. The worlds are worded better from time to time."""
    assert vocabulary.main(["--out", str(tmp_path)]) == 0
    made, shipped = (Tokenizer.from_directory(folder) for folder in (tmp_path, SHIPPED_MODEL))
    merges = [{tokenizer.token_bytes(rank) for rank in range(256, 1024)} for tokenizer in (made, shipped)]
    assert len(merges[0] & merges[1]) > 0.85 * 768
    assert made.control_ids == shipped.control_ids


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> Path:
    """An untrained model with the shipped vocabulary."""
    directory = tmp_path_factory.mktemp("random")
    config = small_config(text={"vocab_size": 1280})
    config["media_placeholder_token_id"] = config["image_token_id"] = 1045
    write_checkpoint(directory, config)
    (directory / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), encoding="utf-8")
    for file in ("tiktoken.model", "tokenizer_config.json"):
        shutil.copy(SHIPPED_MODEL / file, directory)
    return directory


def run_evaluate(capsys, *arguments: str) -> dict:
    assert evaluate.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_untrained_model_scores_nothing_and_shows_its_failures(random_model, capsys):
    torch.manual_seed(0)
    report = run_evaluate(capsys, "--model", str(random_model), "--skill", "pictures.count", "--skill", "numbers.add",
                          "--skill", "numbers.subtract", "--n", "3", "--batch", "2", "--max-new-tokens", "4")
    names = [row["skill"] for row in report["skills"]]
    assert names == ["numbers.add", "numbers.subtract", "pictures.count", "numbers"]
    assert [row["n"] for row in report["skills"]] == [3, 3, 3, 6]
    assert all(row["right"] == 0 for row in report["skills"])
    found = report["skills"][0]["failures"]
    assert [one["index"] for one in found] == [0, 1, 2]
    assert found[1]["question"] == draw("numbers.add", 0, 1, "held-out", thinking=True).task.question


@pytest.mark.parametrize("mode", ["thinking", "instant"])
def test_a_model_that_says_the_targets_scores_everything(random_model, capsys, monkeypatch, mode):
    flags = ["--skill", "conversation", "--n", "5", "--batch", "2", *(["--instant"] if mode == "instant" else [])]
    tokenizer, processor = Tokenizer.from_directory(random_model), Processor.from_directory(random_model)
    samples = [evaluate.draw_question("conversation", index, evaluate.parse(flags)) for index in range(5)]
    asked = {tuple(processor.prompt(one.messages, thinking=one.thinking).input_ids): one for one in samples}

    def say_targets(model, prompts, **settings):
        assert settings["temperature"] == 0
        replies = []
        for prompt in prompts:
            sample = asked.pop(tuple(prompt.input_ids))
            thought = [*tokenizer.encode(sample.reasoning_content), tokenizer.control_ids["</think>"]]
            reply = (thought if sample.thinking else []) + tokenizer.encode(sample.content)
            replies.append(reference.generation.Generated(reply, "stop"))
        return replies

    monkeypatch.setattr(reference.generation, "generate", say_targets)
    report = run_evaluate(capsys, "--model", str(random_model), *flags)
    [row] = report["skills"]
    assert (row["right"], row["accuracy"], row["failures"]) == (5, 1.0, [])
    assert report["mode"] == mode


@pytest.mark.parametrize("skill", skills_of("pictures"))
def test_evaluation_asks_about_every_number_of_shapes_equally_often(skill):
    options = evaluate.parse([])
    counts = [len(evaluate.draw_question(skill, index, options).task.medium.shapes) for index in range(40)]
    assert [counts.count(count) for count in (1, 2, 3, 4)] == [10, 10, 10, 10]


def test_wilson_intervals_agree_with_published_values():
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--skill", "cooking"], "no such skill"),
        (["--n", "0"], "at least 1"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments, words, capsys):
    assert evaluate.run(lambda: evaluate.main(arguments)) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1


def test_a_question_about_a_picture_that_is_not_there_is_answered_so():
    for index in range(30):
        sample = draw("outside.no_picture", 0, index)
        assert isinstance(sample.messages[-1]["content"], str) and sample.check(sample.content)
        assert not sample.check("There are 2 circles.") and not sample.check("There is a circle, and no picture of it.")
        assert sample.check("I see no image.")


def test_now_and_then_a_question_comes_with_a_picture_that_it_is_not_about():
    for world in ("numbers", "self", "outside.question"):
        contents = [draw(world, 0, index).messages[-1]["content"] for index in range(400)]
        beside = [content for content in contents if not isinstance(content, str)]
        assert 5 <= len(beside) <= 45
        assert all(sum(part["type"] == "image" for part in content) == 1 for content in beside)
