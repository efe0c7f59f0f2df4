"""The agent loop on a real model that plays a script: calls are run and answered, mistakes are read, limits end it."""

import json
import re
from pathlib import Path

import pytest

from optimized.model import load_model as load_optimized
from optimized.responder import Responder as OptimizedResponder
from parity_tests.speaking_checkpoint import (
    CONTROL_IDS,
    call,
    calling,
    declared,
    saying,
    scripted,
    spell,
    write_speaking_checkpoint,
)
from reference.agent import LAST_TURN, UNREADABLE_CALL, Agent, read_arguments, run_agents
from reference.conversation import Conversation
from reference.errors import UsageError
from reference.model import load_model
from reference.prompt import Processor
from reference.responder import Responder

TOOLS = [declared("add", a="integer", b="integer"), declared("show")]
BACKENDS = {"reference": (load_model, Responder), "optimized": (load_optimized, OptimizedResponder)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_speaking_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def processor(directory):
    return Processor.from_directory(directory)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, directory):
    load, responder = BACKENDS[request.param]
    return load(directory), responder


@pytest.fixture(scope="module")
def plain(directory):
    return load_model(directory), Responder


def run_tool(name, arguments):
    return str(arguments["a"] + arguments["b"]) if name == "add" else [{"type": "text", "text": "nothing"}]


def replies_so_far(conversation):
    return sum(message["role"] == "assistant" for message in conversation.messages)


def responder_of(backend, *lines, max_new_tokens=400):
    """Says the k-th line where k replies are there already."""
    model, responder_class = backend
    speaking = scripted(responder_class, lambda conversation: lines[replies_so_far(conversation)])
    return speaking(model, max_new_tokens=max_new_tokens, temperature=0, top_p=1.0,
                    stop_ids=[CONTROL_IDS["<|im_end|>"]])


def asking(processor, text="Add.", tools=TOOLS):
    return Conversation(processor, [{"role": "user", "content": text}], tools)


def run(backend, processor, *lines, tool=run_tool, max_new_tokens=400, **settings):
    responder = responder_of(backend, *lines, max_new_tokens=max_new_tokens)
    [result] = run_agents(responder, [Agent(asking(processor), tool, **settings)])
    return result


def tool_results(result):
    return [message["content"] for message in result.messages if message["role"] == "tool"]


def test_calls_are_run_and_answered_under_their_ids_until_there_are_none(backend, processor):
    lines = (calling("Both.", call("add", {"a": 1, "b": 2}, 0), call("add", {"a": 3, "b": 4}, 1)),
             calling("Now these.", call("add", {"a": 3, "b": 7}, 2)), saying("Fine.", "10"))
    result = run(backend, processor, *lines)
    assert [message["role"] for message in result.messages] == [
        "user", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    results = [(message["tool_call_id"], message["name"], message["content"])
               for message in result.messages if message["role"] == "tool"]
    assert results == [(f"functions.add:{i}", "add", total) for i, total in enumerate(("3", "7", "10"))]
    assert (result.answer, result.finish_reason) == ("10", "stop")
    assert [stage.num_main_steps for stage in result.stages] == [2, 1, 1]
    assert (result.num_turns, result.num_calls, result.critical_steps, result.total_steps) == (3, 3, 4, 4)
    assert result.num_new_tokens == sum(len(line) + 1 for line in lines)
    assert result.messages[1]["reasoning_content"] == "Both."


def test_agents_run_side_by_side_each_with_its_own_tools(backend, processor):
    """A counter of 12 steps beside agents that answer at once; results come in the order of the agents."""
    def speak(conversation):
        last = conversation.messages[-1]["content"]
        number = conversation.num_calls
        if last == "Add." or (last.isdigit() and int(last) < 12):
            return calling("", call("add", {"a": number, "b": 1}, number))
        return saying("", last)

    model, responder_class = backend
    responder = scripted(responder_class, speak)(model, max_new_tokens=200, temperature=0, top_p=1.0,
                                                 stop_ids=[CONTROL_IDS["<|im_end|>"]])
    conversations = [asking(processor, text) for text in ("Hi", "Add.", "Ho", "Add.")]
    agents = [Agent(conversation, run_tool, max_steps=200) for conversation in conversations]
    results = run_agents(responder, agents, limit=3)
    assert [result.answer for result in results] == ["Hi", "12", "Ho", "12"]
    assert [result.num_turns for result in results] == [1, 13, 1, 13]
    assert not responder.sampler_rows, "what is over is forgotten"


def test_an_agent_may_go_on_with_a_new_question(backend, processor):
    lines = (calling("x", call("add", {"a": 1, "b": 2}, 0)), saying("y", "3"),
             calling("z", call("add", {"a": 3, "b": 3}, 1)), saying("", "6"))
    responder, conversation = responder_of(backend, *lines), asking(processor)
    run_agents(responder, [Agent(conversation, run_tool)])
    conversation.add_messages([{"role": "user", "content": "And twice that?"}])
    [result] = run_agents(responder, [Agent(conversation, run_tool)])
    assert (result.answer, tool_results(result)) == ("6", ["3", "6"])
    assert conversation.ids[:len(responder.heard[-1][1])] == responder.heard[-1][1]


@pytest.mark.parametrize(("name", "arguments", "complaint"), [
    ("add", '{"a": 1', "error: the arguments are not valid JSON"),
    ("add", '{"a": NaN}', "error: the arguments are not valid JSON"),
    ("add", "[1]", "error: the arguments are no JSON object"),
    ("add", json.dumps('{"a": 1}'), "error: the arguments are no JSON object"),
    ("sub", {}, "error: there is no tool sub. The tools are: add, show."),
    ("add", {"a": 1}, "error: KeyError: 'b'"),
    ("show", {}, "error: messages[0].content is the number 5"),
    ("show", {"what": "picture"}, "error: picture: not an image"),
])
def test_a_mistake_is_something_to_read(plain, processor, name, arguments, complaint):
    def tool(name, arguments):
        if name == "add":
            return str(arguments["a"] + arguments["b"])
        return [{"type": "image", "image": {"url": "data:image/png;base64,AAAA"}}] if arguments else 5

    result = run(plain, processor, calling("", call(name, arguments, 0), call("add", {"a": 1, "b": 1}, 1)),
                 saying("Oh.", "sorry"), tool=tool, max_new_tokens=6000)
    first, second = tool_results(result)
    assert result.num_refused == ("JSON" in complaint or "no tool" in complaint) and result.num_calls == 2
    assert first.startswith(complaint.partition("picture")[0])
    assert (second, result.finish_reason, result.answer) == ("2", "stop", "sorry")


def test_a_tool_without_a_word_of_its_own_is_named(plain, processor):
    def tool(name, arguments):
        raise TimeoutError

    result = run(plain, processor, calling("", call("show", {}, 0)), saying("", "x"), tool=tool)
    assert tool_results(result) == ["error: TimeoutError"]


def test_a_run_that_is_stopped_by_hand_can_be_taken_up_again(backend, processor):
    """The tool of one agent stops everything while the other is in the middle of a long reply."""
    stops = [KeyboardInterrupt]

    def tool(name, arguments):
        if stops:
            raise stops.pop()
        return "3"

    line = calling("", call("add", {"a": 1, "b": 2}, 0))
    scripts = {"Add.": [line, saying("", "3")], "Talk.": [saying("x" * 90, "y")]}
    model, responder_class = backend
    speaking = scripted(responder_class, lambda one: scripts[one.messages[0]["content"]][replies_so_far(one)])
    responder = speaking(model, max_new_tokens=400, temperature=0, top_p=1.0, stop_ids=[CONTROL_IDS["<|im_end|>"]])
    conversations = [asking(processor), asking(processor, "Talk.")]
    with pytest.raises(KeyboardInterrupt):
        run_agents(responder, [Agent(conversation, tool) for conversation in conversations])
    assert not responder.sampler_rows and not responder.waiting
    responder.lines.clear()
    conversations[0].add_messages([{"role": "tool", "tool_call_id": "functions.add:0", "content": "3"}])
    results = run_agents(responder, [Agent(conversation, tool) for conversation in conversations])
    assert [result.answer for result in results] == ["3", "y"]


def test_after_the_last_step_the_agent_answers_without_tools(backend, processor):
    ran = []

    def tool(name, arguments):
        ran.append(arguments["a"])
        return "ok"

    lines = [calling("", *(call("add", {"a": 3 * turn + i}, 3 * turn + i) for i in range(3))) for turn in range(2)]
    result = run(backend, processor, *lines, saying("", "As far as I know."), tool=tool, max_steps=4)
    assert ran == [0, 1, 2, 3]
    assert tool_results(result)[4:] == ["error: not run, the limit of 4 steps is used up."] * 2
    assert result.messages[-2] == {"role": "system", "content": LAST_TURN}
    assert (result.finish_reason, result.answer, result.num_calls) == ("max_steps", "As far as I know.", 4)
    assert [stage.num_main_steps for stage in result.stages] == [3, 1, 1]


def test_a_reply_cut_at_its_limit_ends_the_run_even_with_calls(plain, processor):
    line = calling("", call("add", {"a": 1, "b": 2}, 0))
    result = run(plain, processor, line, max_new_tokens=len(line) - 3)
    assert (result.finish_reason, tool_results(result), result.num_calls) == ("length", [], 0)
    assert result.messages[-1]["tool_calls"]


@pytest.mark.parametrize("size", [3400, 9000])
def test_a_full_context_ends_the_run(plain, processor, size):
    """A result that does not fit; and one that fits, but leaves too little for the reply."""
    result = run(plain, processor, calling("", call("show", {}, 0)), saying("y" * 500, "z"),
                 tool=lambda name, arguments: "x" * size, max_new_tokens=8000)
    assert result.finish_reason == "context"
    assert result.messages[-1]["role"] == "assistant"
    assert len(tool_results(result)) == (size == 3400)


def test_an_empty_reply_is_tried_again_and_never_kept(plain, processor):
    tries = []

    def speak(conversation):
        tries.append(conversation.ids)
        return spell("Hm.", "</think>") if len(tries) < 3 else saying("Hm.", "Yes.")

    model, responder_class = plain
    responder = scripted(responder_class, speak)(model, max_new_tokens=50, temperature=0, top_p=1.0,
                                                 stop_ids=[CONTROL_IDS["<|im_end|>"]])
    [result] = run_agents(responder, [Agent(asking(processor), run_tool)])
    assert (result.answer, result.num_turns, len(result.messages)) == ("Yes.", 1, 2)
    assert tries[0] == tries[1] == tries[2]
    forever = run(plain, processor, spell("", "</think>"))
    assert (forever.finish_reason, forever.answer, forever.num_turns) == ("empty", "", 0)


def test_a_call_that_cannot_be_read_is_asked_for_again(plain, processor):
    def speak(conversation):
        if conversation.messages[-1]["role"] == "user":
            return [*spell("", "</think>", "<|tool_call_begin|>"), *spell("?", "<|tool_call_argument_begin|>")]
        return saying("", conversation.messages[-1]["content"])

    model, responder_class = plain
    responder = scripted(responder_class, speak)(model, max_new_tokens=200, temperature=0, top_p=1.0,
                                                 stop_ids=[CONTROL_IDS["<|im_end|>"]])
    [result] = run_agents(responder, [Agent(asking(processor), run_tool)])
    assert result.answer == UNREADABLE_CALL
    assert [message["role"] for message in result.messages] == ["user", "system", "assistant"]


def test_no_agents_give_no_results(plain):
    assert run_agents(responder_of(plain), []) == []


def test_a_limit_below_one_is_refused(processor):
    with pytest.raises(UsageError, match="max_steps is 0"):
        Agent(asking(processor), run_tool, max_steps=0)


def test_arguments_are_read():
    assert read_arguments('{"a": [1, "ü"]}') == {"a": [1, "ü"]}
    with pytest.raises(ValueError, match="not valid JSON"):
        read_arguments("[" * 100_000)


def test_the_documented_loop_is_the_real_one():
    root = Path(__file__).parents[1]
    page = (root / "docs/agents.md").read_text(encoding="utf-8")
    for file, block in re.findall(r"<!-- from (\S+) -->\n```python\n(.*?)```", page, flags=re.DOTALL):
        lines = (root / file).read_text(encoding="utf-8")
        assert block in lines, file
    assert "<!-- from reference/agent.py -->" in page


def test_the_documented_example_runs(tmp_path, capsys):
    page = (Path(__file__).parents[1] / "docs/agents.md").read_text(encoding="utf-8")
    [example] = re.findall(r"<!-- example -->\n```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(example, "docs/agents.md", "exec"), {})
    assert capsys.readouterr().out.strip()
