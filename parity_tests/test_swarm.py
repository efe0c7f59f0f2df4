"""The swarm on a real model that plays a script: stages, subagents, their failures, and the steps that are counted."""

import re

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
    write_speaking_checkpoint,
)
from reference.agent import Agent, Stage, critical_steps, run_agents
from reference.chat_template import declaration
from reference.conversation import Conversation
from reference.errors import UsageError
from reference.model import load_model
from reference.prompt import Processor
from reference.responder import Responder
from reference.swarm import SWARM_TOOLS, Orchestrator

TOOLS = [declared("shelf", of="string"), declared("count", shelf="integer")]
STOCK = {"bolts": (3, 40), "nuts": (5, 2), "gears": (8, 700)}  # where it is, and how much
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


def responder_of(backend, script, max_new_tokens=2000, **settings):
    model, responder_class = backend
    return scripted(responder_class, script)(model, max_new_tokens=max_new_tokens, temperature=0, top_p=1.0,
                                             stop_ids=[CONTROL_IDS["<|im_end|>"]], **settings)


def look_up(name, arguments):
    if name == "shelf":
        return str(STOCK[arguments["of"]][0])
    return str(next(count for shelf, count in STOCK.values() if shelf == arguments["shelf"]))


def contents(conversation, role):
    return [message["content"] for message in conversation.messages if message["role"] == role]


def find_stock(conversation):
    """A subagent: first the shelf, then the count, then one sentence."""
    results = contents(conversation, "tool")
    if not results:
        return calling("The shelf.", call("shelf", {"of": contents(conversation, "user")[0]}, 0))
    if len(results) == 1:
        return calling("The count.", call("count", {"shelf": int(results[0])}, 1))
    return saying("", results[1])


def split_work(parts):
    """An orchestrator: creates one kind of agent and assigns every part in the same turn, then adds up."""
    def speak(conversation):
        if "system" in [message["role"] for message in conversation.messages]:
            return find_stock(conversation)
        results = contents(conversation, "tool")
        if not results:
            tasks = [call("assign_task", {"agent": "clerk", "prompt": part}, i + 1) for i, part in enumerate(parts)]
            create = call("create_subagent", {"name": "clerk", "system_prompt": "You know the stock."}, len(parts) + 1)
            return calling("Split it.", *tasks, create)
        return saying("Add up.", str(sum(int(text) for text in results if text.isdigit())))
    return speak


def orchestrate(backend, processor, script, run_tool=look_up, max_new_tokens=2000, **settings):
    responder = responder_of(backend, script, max_new_tokens)
    orchestrator = Orchestrator(processor, [{"role": "user", "content": "What is there?"}], TOOLS, run_tool, **settings)
    [result] = run_agents(responder, [orchestrator])
    return result, responder


def test_critical_steps_of_the_worked_example():
    stages = [Stage(1), Stage(1, [4, 7, 2]), Stage(1)]
    assert critical_steps(stages) == 10
    assert critical_steps([*stages[:1], Stage(3, [4, 7, 2]), *stages[2:]]) == 12


def test_a_turn_creates_first_and_all_its_tasks_run_side_by_side(backend, processor):
    """The call that creates stands last in the turn; results come in the order of the calls all the same."""
    result, responder = orchestrate(backend, processor, split_work(STOCK))
    tools = [(message["tool_call_id"], message["content"]) for message in result.messages if message["role"] == "tool"]
    assert tools == [("functions.assign_task:1", "40"), ("functions.assign_task:2", "2"),
                     ("functions.assign_task:3", "700"), ("functions.create_subagent:4", "created clerk")]
    assert result.answer == "742"
    assert result.stages == [Stage(1, [2, 2, 2]), Stage(1)]
    assert (result.critical_steps, result.total_steps) == (4, 8)
    assert result.num_new_tokens == sum(len(logits) for _, _, logits in responder.heard)
    assert result.report() == {
        "finish_reason": "stop", "turns": 2, "critical_steps": 4, "total_steps": 8, "agents_created": 1,
        "tasks_assigned": 3, "finish_rate": 1.0, "new_tokens": result.num_new_tokens,
        "stages": [{"s_main": 1, "max_s_sub": 2}, {"s_main": 1, "max_s_sub": 0}]}


def test_a_subagent_sees_its_role_and_its_task_and_ordinary_tools(plain, processor):
    _, responder = orchestrate(plain, processor, split_work(["nuts"]))
    sub = next(conversation for conversation, _, _ in responder.heard if conversation.messages[0]["role"] == "system")
    assert [message["content"] for message in sub.messages[:2]] == ["You know the stock.", "nuts"]
    assert sub.tools == TOOLS
    orchestrator = responder.heard[0][0]
    assert orchestrator.tools == [*TOOLS, *SWARM_TOOLS]
    assert "The shelf." not in processor.tokenizer.decode(orchestrator.ids), "results, not the ways to them"


def test_the_swarm_finds_what_a_single_agent_finds_in_fewer_critical_steps(backend, processor):
    def alone(conversation):
        results, parts = contents(conversation, "tool"), list(STOCK)
        done = len(results)
        if done == 2 * len(parts):
            return saying("", str(sum(int(text) for text in results[1::2])))
        arguments = {"shelf": int(results[-1])} if done % 2 else {"of": parts[done // 2]}
        return calling("", call("count" if done % 2 else "shelf", arguments, done))

    conversation = Conversation(processor, [{"role": "user", "content": "What is there?"}], TOOLS)
    [single] = run_agents(responder_of(backend, alone), [Agent(conversation, look_up)])
    swarm, _ = orchestrate(backend, processor, split_work(STOCK))
    assert single.answer == swarm.answer == "742"
    assert (single.critical_steps, swarm.critical_steps) == (7, 4)


def test_many_swarms_share_one_batch_of_few_rows(directory, processor):
    """More orchestrators than rows: those that wait for their subagents give their rows to them."""
    backend = load_optimized(directory), OptimizedResponder
    responder = responder_of(backend, split_work(STOCK), max_rows=2)
    swarms = [Orchestrator(processor, [{"role": "user", "content": "What is there?"}], TOOLS, look_up)
              for _ in range(4)]
    assert [result.answer for result in run_agents(responder, swarms)] == ["742"] * 4
    assert not responder.batch.keys and not responder.aside


@pytest.mark.parametrize("max_agents", [1, 2])
def test_no_more_agents_run_at_a_time_than_allowed(plain, processor, max_agents):
    model, responder_class = plain
    open_at_once = []

    class Watching(scripted(responder_class, split_work(STOCK))):
        def submit(self, conversation):
            super().submit(conversation)
            open_at_once.append(sum(one.messages[0]["role"] == "system" for one in self.sampler_rows))

    responder = Watching(model, max_new_tokens=2000, temperature=0, top_p=1.0, stop_ids=[CONTROL_IDS["<|im_end|>"]])
    orchestrator = Orchestrator(processor, [{"role": "user", "content": "?"}], TOOLS, look_up, max_agents=max_agents)
    [result] = run_agents(responder, [orchestrator])
    assert result.answer == "742"
    assert max(open_at_once) == max_agents


def one_turn(*calls):
    """Makes these calls, then says what came back."""
    def speak(conversation):
        if conversation.messages[0]["role"] == "system":
            return find_stock(conversation)
        results = contents(conversation, "tool")
        return saying("", "\n".join(results)) if results else calling("", *calls)
    return speak


CLERK = {"name": "clerk", "system_prompt": "You know the stock."}


@pytest.mark.parametrize(("calls", "complaint", "finish_rate"), [
    ([("assign_task", {"agent": "cook", "prompt": "nuts"})], "there is no agent cook. The agents are: none.", 0),
    ([("assign_task", {"agent": "clerk"})], "assign_task needs agent and prompt", 0),
    ([("assign_task", "{")], "the arguments are not valid JSON", 0),
    ([("create_subagent", {"name": " ", "system_prompt": "x"})], "create_subagent needs name and system_prompt", None),
    ([("create_subagent", CLERK), ("create_subagent", CLERK)], "there is an agent clerk already", None),
    ([("create_subagent", CLERK), ("assign_task", '{"agent": "clerk", "prompt": "\\ud83d"}')], "surrogate", 0),
])
def test_a_mistake_of_the_orchestrator_is_something_to_read(plain, processor, calls, complaint, finish_rate):
    result, _ = orchestrate(plain, processor, one_turn(*(call(*made, i) for i, made in enumerate(calls))))
    assert re.search(rf"^error: .*{re.escape(complaint)}", result.answer, re.MULTILINE)
    assert (result.finish_reason, result.finish_rate) == ("stop", finish_rate)
    assert result.stages == [Stage(1), Stage(1)]


def test_a_subagent_that_does_not_finish_says_so(backend, processor):
    """One uses up its steps and tells what it has, one thinks until it is cut off."""
    def speak(conversation):
        if conversation.messages[-1]["content"] == "ponder":
            return saying("x" * 400, "never said")
        if conversation.messages[-1]["role"] == "system":
            return saying("", "the shelf is 5")
        return one_turn(call("create_subagent", CLERK, 0), call("assign_task", {"agent": "clerk", "prompt": "nuts"}, 1),
                        call("assign_task", {"agent": "clerk", "prompt": "ponder"}, 2))(conversation)

    result, _ = orchestrate(backend, processor, speak, max_new_tokens=350, max_sub_steps=1)
    assert result.answer.splitlines() == [
        "created clerk", "The agent did not finish (max_steps). the shelf is 5",
        "The agent did not finish (length). It left no message."]
    assert (result.finish_reason, result.finish_rate, result.stages[0]) == ("stop", 0, Stage(1, [1, 1]))


def test_a_failing_tool_of_a_subagent_reaches_the_orchestrator_as_words(plain, processor):
    def fail(name, arguments):
        raise OSError("the store is closed")

    def speak(conversation):
        results = contents(conversation, "tool")
        if conversation.messages[0]["role"] == "system" and results:
            return saying("", f"I could not look: {results[0]}")
        return one_turn(call("create_subagent", CLERK, 0),
                        call("assign_task", {"agent": "clerk", "prompt": "nuts"}, 1))(conversation)

    result, _ = orchestrate(plain, processor, speak, fail)
    assert result.answer == "created clerk\nI could not look: error: OSError: the store is closed"
    assert (result.finish_rate, result.stages) == (1, [Stage(1, [1]), Stage(1)])


def test_direct_calls_of_a_turn_are_steps_beside_its_subagents(plain, processor):
    script = one_turn(call("shelf", {"of": "gears"}, 0), call("create_subagent", CLERK, 1),
                      call("shelf", {"of": "nuts"}, 2), call("assign_task", {"agent": "clerk", "prompt": "bolts"}, 3))
    result, _ = orchestrate(plain, processor, script)
    assert result.answer == "8\ncreated clerk\n5\n40"
    assert result.stages == [Stage(2, [2]), Stage(1)]


def test_the_orchestrator_has_a_limit_too(plain, processor):
    def speak(conversation):
        if conversation.messages[-1]["role"] == "system":
            return saying("", "enough")
        return calling("", call("create_subagent", {"name": f"a{conversation.num_calls}", "system_prompt": "x"},
                                conversation.num_calls))

    result, _ = orchestrate(plain, processor, speak, max_steps=3)
    assert (result.finish_reason, result.num_created, result.num_turns) == ("max_steps", 3, 4)


def test_the_two_tools_can_be_declared_in_the_published_form():
    text = declaration(SWARM_TOOLS)
    assert "type create_subagent = (_: {" in text and "type assign_task = (_: {" in text
    assert text.count("?:") == 0, "all four parameters are required"


@pytest.mark.parametrize(("settings", "complaint"), [
    ({"tools": [declared("assign_task")]}, "assign_task, which is the swarm's own"),
    ({"max_agents": 0}, "max_agents is 0"),
])
def test_a_swarm_that_cannot_be_is_refused(processor, settings, complaint):
    settings = {"tools": None, "run_tool": look_up, **settings}
    with pytest.raises(UsageError, match=complaint):
        Orchestrator(processor, [{"role": "user", "content": "?"}], **settings)
