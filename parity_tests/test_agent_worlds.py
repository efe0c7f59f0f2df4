"""The worlds of tools and swarms: valid calls, true workings, fair judges, and no leak from training to held-out."""

import functools
import inspect
import itertools
import json
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_tests.test_worlds import EQUATION, RELATION, calculate
from reference.chat_template import IM_END
from reference.generate import SHIPPED_MODEL
from reference.generation import read_reply
from reference.prompt import Processor
from tools.worlds import pictures, swarm, tool_pictures, tool_questions
from tools.worlds.demonstration import look_up, spell
from tools.worlds.episode import SKILLS, Environment, Episode, Turn, draw_episode, play
from tools.worlds.tool_requests import EXTRAS
from tools.worlds.tool_schema import complaint, declare, name_of
from tools.worlds.tool_words import Item, keep, says_only, vary_words

SPLITS = ("train", "held-out")
FIXED_NAMES = {"step", "crop", swarm.CREATE, swarm.ASSIGN}  # the published wording names them, so both splits do
WITH_CALLS = [skill for skill in SKILLS if skill != "tools.none"]


cached = functools.cache(draw_episode)


def episodes(skill: str, num: int, split: str = "train", **difficulty):
    for index in range(num):
        yield cached(skill, 3, index, split, **difficulty)


def judged(episode: Episode) -> bool:
    """Play this demonstration; whether its own judge is content."""
    environment = episode.new_environment()
    messages, _ = play(episode, environment)
    return episode.judge(messages[-1]["content"], environment)


def demonstrated_calls(episode: Episode) -> list[tuple[str, dict]]:
    return [call for turn in episode.demonstration for call in turn.tool_calls]


def change_call(episode: Episode, turn: int, call: tuple[str, dict]) -> Episode:
    """The same episode whose last call of this turn is another one."""
    turns = list(episode.demonstration)
    turns[turn] = replace(turns[turn], tool_calls=(*turns[turn].tool_calls[:-1], call))
    return replace(episode, demonstration=tuple(turns))


def last_turn_with_calls(episode: Episode) -> int:
    return len(episode.demonstration) - 2


# --- every skill -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", SKILLS)
def test_every_demonstrated_call_is_valid_and_the_last_turn_answers(skill):
    for split in SPLITS:
        for episode in episodes(skill, 50, split):
            declared = {name_of(tool): tool for tool in episode.tools}
            assert len(declared) == len(episode.tools), "two tools share a name"
            for name, arguments in demonstrated_calls(episode):
                assert complaint(declared[name], arguments) is None, (name, arguments)
            *calling, last = episode.demonstration
            assert all(turn.tool_calls and not turn.content for turn in calling)
            assert last.content and not last.tool_calls
            assert bool(calling) == (skill != "tools.none")


@pytest.mark.parametrize("skill", SKILLS)
def test_the_demonstration_satisfies_its_own_judge(skill):
    for split in SPLITS:
        for episode in episodes(skill, 50, split):
            assert judged(episode), (episode.messages, episode.demonstration)


@pytest.mark.parametrize("skill", SKILLS)
def test_a_wrong_answer_does_not_pass(skill):
    others = list(episodes(skill, 31))
    for episode, other in itertools.pairwise(others):
        environment = episode.new_environment()
        play(episode, environment)
        answers = ["", "I do not know.", "It is 123456789."]
        if other.truth != episode.truth and skill not in ("tools.counter", "tools.none", "tools.error"):
            answers.append(other.demonstration[-1].content)
        for answer in answers:
            assert not episode.judge(answer, environment), (answer, episode.demonstration)


@pytest.mark.parametrize("skill", WITH_CALLS)
def test_the_right_answer_without_the_calls_does_not_pass(skill):
    for episode in episodes(skill, 30):
        assert not episode.judge(episode.demonstration[-1].content, episode.new_environment())


@pytest.mark.parametrize("skill", WITH_CALLS)
def test_a_wrong_tool_or_a_wrong_argument_does_not_pass(skill):
    num_changed = 0
    for episode in episodes(skill, 30):
        at = last_turn_with_calls(episode)
        name, arguments = episode.demonstration[at].tool_calls[-1]
        assert not judged(change_call(episode, at, ("no_such_tool", arguments)))
        for wrong_name in {name_of(tool) for tool in episode.tools} - {name}:
            assert not judged(change_call(episode, at, (wrong_name, arguments)))
        for parameter, value in arguments.items():
            wrong = value + 1 if isinstance(value, int) else "zzz"
            assert not judged(change_call(episode, at, (name, {**arguments, parameter: wrong})))
            num_changed += 1
    assert num_changed >= 30 or skill == "tools.counter"


@pytest.mark.parametrize("skill", SKILLS)
def test_every_sum_and_comparison_in_a_think_block_is_true(skill):
    num_checked = 0
    for episode in episodes(skill, 60):
        for turn in episode.demonstration:
            for expression, result in re.findall(EQUATION, turn.reasoning_content):
                assert calculate(expression) == Decimal(result), turn.reasoning_content
                num_checked += 1
            for a, relation, b in re.findall(RELATION, turn.reasoning_content):
                assert (Decimal(a) > Decimal(b)) == (relation == ">") and a != b, turn.reasoning_content
                num_checked += 1
    assert num_checked > 60 or skill not in ("swarm.orchestrate", "swarm.single")


@pytest.mark.parametrize("skill", SKILLS)
def test_training_and_held_out_share_no_key_no_tool_name_and_no_item(skill):
    keys, names, items = {}, {}, {}
    for split in SPLITS:
        drawn = list(episodes(skill, 50, split))
        keys[split] = {episode.key for episode in drawn}
        names[split] = {name_of(tool) for episode in drawn for tool in episode.tools} - FIXED_NAMES
        items[split] = {episode.demonstration[0].tool_calls[0][1].get("item") for episode in drawn
                        if episode.demonstration[0].tool_calls} - {None}  # fmt: skip
        assert len(names[split]) > 20
    assert not keys["train"] & keys["held-out"]
    assert not names["train"] & names["held-out"]
    assert not items["train"] & items["held-out"] or skill == "tools.picture"  # where items are what is in the picture


@pytest.mark.parametrize("skill", SKILLS)
def test_the_same_seed_and_index_give_the_same_episode(skill):
    for split in SPLITS:
        first, second = draw_episode(skill, 5, 8, split), draw_episode(skill, 5, 8, split)
        assert first == second and play(first) == play(second)
        assert draw_episode(skill, 6, 8, split) != first or draw_episode(skill, 6, 9, split) != first


# --- the conversation ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_directory(SHIPPED_MODEL)


@pytest.mark.parametrize("skill", SKILLS)
def test_rendered_turns_parse_back_to_what_was_demonstrated(skill, processor):
    """What a turn adds to the prompt is exactly what the model would have to generate, and reads back the same."""
    for episode in episodes(skill, 3):
        messages, tools = play(episode)
        starts = [i for i in range(len(episode.messages), len(messages)) if "tool_calls" in messages[i]]
        for start in starts:
            num_calls = sum(len(message.get("tool_calls", [])) for message in messages[:start])
            before = processor.prompt(messages[:start], tools).input_ids
            after = processor.prompt(messages[: start + 1], tools).input_ids
            assert after[: len(before)] == before
            reply = read_reply(after[len(before) :], processor.tokenizer, True, tools, num_calls)
            assert reply.reasoning_content == messages[start]["reasoning_content"] and reply.dropped_calls == 0
            made = [(call.id, call.name, json.loads(call.arguments)) for call in reply.tool_calls]
            assert made == [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
                            for call in messages[start]["tool_calls"]]  # fmt: skip
        last = messages[-1]
        control = processor.tokenizer.control_ids
        ids = [*processor.tokenizer.encode(last["reasoning_content"]), control["</think>"],
               *processor.tokenizer.encode(last["content"]), control[IM_END]]  # fmt: skip
        reply = read_reply(ids, processor.tokenizer, True, tools)
        assert (reply.reasoning_content, reply.content) == (last["reasoning_content"], last["content"])


def test_ids_count_the_calls_of_the_whole_conversation():
    for episode in episodes("swarm.orchestrate", 5):
        messages, _ = play(episode)
        ids = [call["id"] for message in messages for call in message.get("tool_calls", [])]
        names = [name for name, _ in demonstrated_calls(episode)]
        assert ids == [f"functions.{name}:{i}" for i, name in enumerate(names)]
        assert ids == [message["tool_call_id"] for message in messages if message["role"] == "tool"]


def test_ids_go_on_counting_after_an_earlier_question():
    lengths = set()
    for episode in episodes("tools.choose", 50):
        messages, _ = play(episode)
        ids = [call["id"] for message in messages for call in message.get("tool_calls", [])]
        assert [call_id.rpartition(":")[2] for call_id in ids] == [str(i) for i in range(len(ids))]
        assert [message["role"] for message in messages[-4:]] == ["user", "assistant", "tool", "assistant"]
        lengths.add(len(ids))
    assert lengths == {1, 2}


def test_earlier_questions_are_as_many_as_drawn_or_as_the_tools_have_for_this_split(monkeypatch):
    monkeypatch.setattr(tool_questions, "EARLIER", {3: 1})
    for split in SPLITS:
        drawn = [draw_episode("tools.choose", 3, i, split, num_tools=(1,)) for i in range(100)]
        counts = [len(episode.messages) // 4 for episode in drawn]  # of each, four messages stand before the last one
        assert max(counts) == 3 and counts.count(3) > 80
        assert all(map(judged, drawn))


@pytest.mark.parametrize("skill", ["tools.choose", "tools.parallel", "tools.error", "tools.picture"])
def test_the_thought_goes_through_the_tools_in_their_order_up_to_each_one_that_is_called(skill):
    for episode in episodes(skill, 60):
        declared = [name_of(tool) for tool in episode.tools]
        verdicts = re.findall(r"^(\w+): (yes|no)$", episode.demonstration[0].reasoning_content, re.MULTILINE)
        expected = []
        for name, _ in episode.demonstration[0].tool_calls:
            expected += [(other, "no") for other in declared[: declared.index(name)]] + [(name, "yes")]
        assert verdicts == expected


def test_arguments_stand_in_the_order_of_the_declaration(processor):
    for episode in episodes("tools.choose", 60):
        [(name, arguments)] = demonstrated_calls(episode)
        prompt = processor.prompt(episode.messages, episode.tools)
        text = next(run.text for run in prompt.runs if "namespace functions" in run.text)
        body = text.partition(f"type {name} = ")[2].partition("=> any")[0]
        declared = re.findall(r"^  (\w+)\??:", body, re.MULTILINE)
        assert list(arguments) == [parameter for parameter in declared if parameter in arguments]


# --- environments ----------------------------------------------------------------------------------------------------


def test_an_environment_answers_wrong_calls_and_remembers_them():
    tool = declare("get_price", "", {"item": {"type": "string"}, "day": {"type": "integer"}}, ["item"])
    right = ("get_price", {"item": "bolt"})
    environment = Environment([tool], look_up([(right, "4")], "error: not found"))
    assert environment(*right) == "4"
    assert environment("get_price", {"item": "nut"}) == "error: not found"
    assert environment("get_weight", {}) == "error: there is no tool get_weight"
    assert environment("get_price", {"day": 3}) == "error: item is missing"
    assert [name for name, _ in environment.calls] == ["get_price", "get_price", "get_weight", "get_price"]
    assert not environment.made([right]) and environment.includes([right])


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"item": "bolt"}, None), ({"item": "bolt", "day": 31, "side": "left"}, None), ({}, "item is missing"),
        ({"item": 4}, "item is not valid"), ({"item": "bolt", "day": "3"}, "day is not valid"),
        ({"item": "bolt", "day": True}, "day is not valid"), ({"item": "bolt", "day": 32}, "day is not valid"),
        ({"item": "bolt", "side": "up"}, "side is not valid"), ({"item": "bolt", "x": 1}, "there is no parameter x"),
        (["bolt"], "the arguments are no object"),
    ],
)  # fmt: skip
def test_arguments_are_checked_against_their_schema(arguments, wrong):
    properties = {"item": {"type": "string"}, "day": {"type": "integer", "minimum": 1, "maximum": 31},
                  "side": {"type": "string", "enum": ["left", "right"]}}  # fmt: skip
    assert complaint(declare("get_price", "", properties, ["item"]), arguments) == wrong


def test_a_call_spells_the_same_in_any_order_of_its_arguments():
    assert spell(("f", {"a": 1, "b": "x"})) == spell(("f", {"b": "x", "a": 1})) != spell(("f", {"a": 1, "b": "y"}))


# --- tools -----------------------------------------------------------------------------------------------------------


def test_the_number_of_tools_parts_and_calls_can_be_chosen():
    for n in (2, 6):
        assert {len(episode.tools) for episode in episodes("tools.choose", 10, num_tools=(n,))} == {n}
        assert {len(demonstrated_calls(episode)) for episode in episodes("tools.chain", 10, num_calls=(n,))} == {n}
        assert {len(demonstrated_calls(e)) for e in episodes("tools.counter", 10, num_calls=(n + 1,))} == {n + 1}
    for n in (2, 3, 4):
        found = {len(episode.demonstration[0].tool_calls) for episode in episodes("tools.parallel", 10, num_parts=(n,))}
        assert found == {n}


def test_each_link_of_a_chain_needs_the_result_before_it():
    for episode in episodes("tools.chain", 60):
        environment = episode.new_environment()
        for (_, arguments), result in zip(
            demonstrated_calls(episode)[1:], [environment(*call) for call in demonstrated_calls(episode)], strict=False
        ):
            [given] = arguments.values()
            question = episode.messages[-1]["content"]
            assert re.search(rf"\b{given}\b", result) and not re.search(rf"\b{given}\b", question)


def test_a_counter_of_200_calls_fits_the_context_and_stops_when_told(processor):
    [episode] = episodes("tools.counter", 1, num_calls=(200,))
    messages, tools = play(episode)
    assert len(processor.prompt(messages[:-1], tools).input_ids) < processor.max_position_embeddings / 2
    results = [message["content"] for message in messages if message["role"] == "tool"]
    assert len(results) == 200 and len(set(results[:-1])) == 1 and results[-1] != results[0]
    assert judged(episode)
    one_more = (*episode.demonstration[:1], *episode.demonstration)
    one_less = episode.demonstration[1:]
    assert not judged(replace(episode, demonstration=one_more))
    assert not judged(replace(episode, demonstration=one_less))


def test_an_error_is_told_and_nothing_is_invented():
    for episode in episodes("tools.error", 60):
        environment = episode.new_environment()
        messages, _ = play(episode, environment)
        results = [message["content"] for message in messages if message["role"] == "tool"]
        assert sum("not found" in result or "error" in result for result in results) == 1
        answer = messages[-1]["content"]
        assert not episode.judge(f"{answer} It is 31415.", environment)
        assert not episode.judge(answer.replace("could not find", "found"), environment)


def test_a_question_that_needs_no_tool_fails_with_any_call():
    worlds = set()
    for episode in episodes("tools.none", 60):
        assert episode.tools
        environment = episode.new_environment()
        environment(name_of(episode.tools[0]), {})
        assert not episode.judge(episode.demonstration[-1].content, environment)
        worlds.add(episode.key.partition(":")[0])
    assert worlds >= {"numbers", "outside"}


def test_the_crop_is_the_part_of_the_picture_that_was_asked_for():
    seen = set()
    for episode in episodes("tools.crop", 40):
        messages, _ = play(episode)
        image = next(part["image"] for part in episode.messages[-1]["content"] if part["type"] == "image")
        [call] = demonstrated_calls(episode)
        [place] = call[1].values()
        [result] = [message["content"] for message in messages if message["role"] == "tool"]
        part = np.asarray(result[0]["image"], dtype=int)  # (height, width, 3)
        row, column = divmod(pictures.PLACES.index(place), 3)
        x, y = int(image.width * (column + 0.5) / 3), int(image.height * (row + 0.5) / 3)
        left, top, _, _ = tool_pictures.crop_box(image.width, image.height, place)
        assert tuple(part[y - top, x - left]) == image.getpixel((x, y))
        colours = {tuple(pixel) for pixel in part.reshape(-1, 3)}
        assert len(colours) == (1 if episode.truth == "nothing" else 2)  # the shape is there, whole and alone
        seen.add(episode.truth == "nothing")
    assert seen == {True, False}


def test_an_argument_read_off_a_picture_is_what_the_picture_shows():
    worlds = set()
    for episode in episodes("tools.picture", 60):
        [(_, arguments)] = demonstrated_calls(episode)
        listing = episode.key.partition(":")[2]  # of shapes, or the text of a sign
        worlds.add(episode.key.partition(":")[0])
        [value] = arguments.values()
        if isinstance(value, int):
            assert value == len(re.findall(counted_kinds(episode), listing))
        else:
            assert value in listing
    assert worlds == {"picture", "text"}


def test_a_crop_of_the_top_is_asked_for_where_it_cannot_mean_the_whole_upper_row():
    sides = {"top": "top", "bottom": "bottom", "left": "left", "right": "right"}
    seen = 0
    for episode in episodes("tools.crop", 150):
        [place] = demonstrated_calls(episode)[0][1].values()
        if place in sides:
            seen += 1
            places = [shape.partition(": ")[0] for shape in episode.key.removeprefix("picture:").split("; ")]
            assert not [other for other in places if place in other.split() and other != place], episode.key
    assert seen > 20


def test_no_extra_of_one_part_could_be_meant_for_another_that_does_without():
    for skill in ("tools.parallel", "tools.error"):
        for episode in episodes(skill, 60):
            schemas = {name_of(tool): tool["function"]["parameters"] for tool in episode.tools}
            calls = demonstrated_calls(episode)
            given = {name for _, arguments in calls for name in arguments if name in EXTRAS}
            for name, arguments in calls:
                assert not given & schemas[name]["properties"].keys() - arguments.keys(), episode.messages[-1]


def test_ranks_are_not_compared():
    for episode in episodes("swarm.single", 150):
        question = episode.messages[-1]["content"].lower()
        assert not (re.search(r"\brank\b", question) and re.search("highest|largest|biggest|lowest|smallest", question))


def counted_kinds(episode: Episode) -> str:
    """The pattern of what a counting question counts."""
    question = next(part["text"] for part in episode.messages[-1]["content"] if part["type"] == "text").lower()
    return next((kind for kind in pictures.KINDS if kind in question), "circle|square|triangle")


@pytest.mark.parametrize(
    ("content", "right"),
    [
        ("The price of the bolt is 42 and the weight of K7 is 9.", True),
        ("Price of the bolt: 42. Weight of K7: 9.", True),
        ("The price of the bolt is 9 and the weight of K7 is 42.", False),
        ("The price of the bolt is 42 and the price of K7 is 9.", False),
        ("The price of the bolt is 42 and the weight of K7 is 9 or 8.", False),
        ("The price of the bolt is 42.", False), ("42 and 9", False), ("", False),
    ],
)  # fmt: skip
def test_several_values_are_judged_by_what_stands_before_them(content, right):
    expected = [("42", ("price", "bolt")), ("9", ("weight", "K7"))]
    assert says_only(content, expected, ["bolt", "K7"]) is right


@given(st.text("abcXYZ 019-_'", min_size=1).filter(str.strip), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_varied_wording_never_touches_what_has_to_be_copied(text, rng):
    varied = vary_words(rng, f"What is the price of {keep(text)} in shop {keep('Kalo')}?")
    assert text in varied and "Kalo" in varied and "\x02" not in varied and "\x03" not in varied


# --- swarm -----------------------------------------------------------------------------------------------------------


def test_the_orchestrator_creates_first_and_then_assigns_all_parts_in_one_turn():
    num_kinds = set()
    for episode in episodes("swarm.orchestrate", 80):
        create, assign, _ = episode.demonstration
        assert {name for name, _ in create.tool_calls} == {swarm.CREATE}
        assert {name for name, _ in assign.tool_calls} == {swarm.ASSIGN}
        assert len(assign.tool_calls) == len(episode.subagents)
        created = {arguments["name"]: arguments["system_prompt"] for _, arguments in create.tool_calls}
        for (_, arguments), part in zip(assign.tool_calls, episode.subagents, strict=True):
            assert [message["content"] for message in part.messages] == [created[arguments["agent"]],
                                                                         arguments["prompt"]]  # fmt: skip
            assert len(demonstrated_calls(part)) >= 2 or part.truth is None
        num_kinds.add(len(created))
    assert num_kinds == {1, 2}


@pytest.mark.parametrize("n", [2, 7, 12])
def test_real_subagents_may_answer_in_the_place_of_the_ideal_ones(n):
    """A runner answers the two swarm tools itself; then only ordinary calls reach the environment."""
    for episode in episodes("swarm.orchestrate", 15, num_parts=(n,)):
        environment = episode.new_environment()
        answers = [play(part, environment)[0][-1]["content"] for part in episode.subagents]
        assert len(answers) == n and not {swarm.CREATE, swarm.ASSIGN} & {name for name, _ in environment.calls}
        assert episode.judge(episode.demonstration[-1].content, environment)
        messages, _ = play(episode)
        assert [message["content"] for message in messages if message["role"] == "tool"][-n:] == answers
        declared = {name_of(tool) for part in episode.subagents for tool in part.tools}
        assert not {swarm.CREATE, swarm.ASSIGN} & declared


@pytest.mark.parametrize(
    ("content", "right"),
    [
        ("stock of springs: 4; stock of rings: 9.", True), ("Rings: 9. Springs: 4.", True),
        ("stock of springs: 9; stock of rings: 4.", False), ("stock of springs: 4.", False),
        ("stock of springs: 4; stock of rings: 9 or 8.", False), ("4; 9", False),
    ],
)  # fmt: skip
def test_each_item_is_judged_by_the_value_that_follows_it(content, right):
    parts = [swarm.Part(Item(text, has_article=False), "stock", ("shelf",), (), (), (), value)
             for text, value in (("springs", 4), ("rings", 9))]  # fmt: skip
    assert swarm.says_each(content, parts) is right


def test_an_assignment_that_nobody_can_understand_finds_nothing():
    episode = draw_episode("swarm.orchestrate", 0, 0)
    environment = episode.new_environment()
    assert environment(swarm.ASSIGN, {"agent": "x", "prompt": "Find it."}).startswith("error: there is no agent x.")
    environment(swarm.CREATE, {"name": "x", "system_prompt": "You find things."})
    assert environment(swarm.ASSIGN, {"agent": "x", "prompt": "Find it."}) == "I could not find that."


def test_one_part_left_out_does_not_pass():
    for skill in ("swarm.orchestrate", "swarm.single"):
        for episode in episodes(skill, 20):
            at = 1 if skill == "swarm.orchestrate" else last_turn_with_calls(episode)
            turns = list(episode.demonstration)
            turns[at] = Turn("", "", turns[at].tool_calls[:-1])
            assert not judged(replace(episode, demonstration=tuple(turns)))


def test_an_item_that_is_not_there_is_admitted_by_the_subagent_and_by_the_orchestrator():
    for skill in ("swarm.orchestrate", "swarm.single"):
        lacking = [e for e in episodes(skill, 150) if "not find" in e.demonstration[-1].content]
        assert 3 <= len(lacking) <= 30
        for episode in lacking:
            environment = episode.new_environment()
            messages, _ = play(episode, environment)
            answer = messages[-1]["content"]
            assert episode.judge(answer, environment)
            assert not episode.judge(answer.partition(". ")[2], environment)  # the rest, without a word about it
            for part in episode.subagents:
                assert judged(part) and ("could not" in part.demonstration[-1].content) == (part.truth is None)


def test_a_swarm_needs_at_most_half_the_critical_steps_from_six_parts_on():
    for episode in episodes("swarm.orchestrate", 20, num_parts=(6, 12)):
        longest = max(len(demonstrated_calls(part)) for part in episode.subagents)
        alone = sum(len(demonstrated_calls(part)) for part in episode.subagents) + 1
        assert len(episode.demonstration) + longest <= alone / 2


@given(st.integers(0, 300), st.integers(1, 99))
def test_a_running_total_is_true_step_by_step_and_ends_in_the_sum(total, value):
    line = swarm.add_step(total, value)
    assert all(calculate(expression) == Decimal(result) for expression, result in re.findall(EQUATION, line))
    assert int(re.findall(r"\d+", line)[-1]) == total + value


def test_all_goals_are_asked_and_totals_stay_small():
    goals = set()
    for episode in episodes("swarm.single", 120):
        goals.add(type(episode.truth).__name__)
        if isinstance(episode.truth, int):
            assert 2 <= episode.truth <= 12 * swarm.LARGEST_VALUE
    assert goals == {"int", "str", "dict"}


# --- docs ------------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "worlds.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_runs_and_is_judged_as_it_says():
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    setup, _, last = code.rstrip().rpartition("\n")
    expression, _, said = last.partition("  # ")
    names = {}
    exec(setup, names)
    assert str(eval(expression, names)) == said


def test_the_page_lists_every_skill_with_what_makes_it_harder():
    rows = dict(re.findall(r"^\| `([a-z.]+)` \|.*\| (.*) \|$", PAGE, re.MULTILINE))
    assert rows.keys() == SKILLS.keys()
    for skill, said in rows.items():
        parameters = set(inspect.signature(SKILLS[skill]).parameters) - {"rng", "split"}
        assert set(re.findall(r"`(\w+)`", said)) <= parameters and said.startswith("`")
