"""An agent: reply, run the tools that the reply calls, hand back what they returned, and again until it only answers.

    responder = Responder(model, max_new_tokens=4096, temperature=1.0, top_p=0.95, stop_ids=processor.stop_ids)
    agent = Agent(Conversation(processor, messages, tools), run_tool)
    [result] = run_agents(responder, [agent])

A mistake of the model's, or of a tool, is something that the model reads in the tool's place and can act on; it never
ends the run. What ends it is said in `finish_reason`.
"""

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .conversation import Conversation
from .errors import ContextError, KimiError, UsageError
from .generation import Generated
from .replies import Reply, ToolCall, refuse_constant
from .responder import Responder
from .together import Task, run_together

Content = str | list[Any]  # text, or parts, among them pictures
ToolRunner = Callable[[str, dict[str, Any]], Content]

MAX_STEPS = 100
MAX_EMPTY = 2  # replies with neither text nor a call, one after the other, that are tried again

UNREADABLE_CALL = "The tool call could not be read. Call the tool again, under an id of the form functions.NAME:NUMBER."
LAST_TURN = "All steps are used up. Answer with what you know, without calling a tool."


@dataclass(frozen=True)
class Stage:
    """One turn: steps of the agent itself, and of each subagent that it launched in this turn.

    A step is one tool call. A turn without any, and a subagent that answers at once, count as one.
    """

    num_main_steps: int
    num_sub_steps: list[int] = field(default_factory=list)


def critical_steps(stages: Sequence[Stage]) -> int:
    """How many steps pass one after the other: in each stage the agent's own, then those of its slowest subagent.

    Source: Kimi K2.5 technical report, arXiv 2602.02276, section 3.
    """
    return sum(stage.num_main_steps + max(stage.num_sub_steps, default=0) for stage in stages)


@dataclass(frozen=True)
class Result:
    """A run that is over.

    finish_reason: "stop" an answer; "max_steps" an answer after the last step; "length" a reply was cut at its limit;
    "context" there was no room left; "empty" the model said nothing. num_calls are the steps that were taken. No tool
    heard of num_refused calls: they could not be read, named no tool, had arguments that are no JSON object, or came
    after the last step. num_new_tokens were sampled, and num_tokens is how long the conversation has become.
    """

    messages: list[dict[str, Any]]
    finish_reason: str
    stages: list[Stage]
    num_calls: int
    num_refused: int
    num_new_tokens: int
    num_tokens: int

    @property
    def answer(self) -> str:
        """The text of the last message, if that is the model's."""
        last = self.messages[-1]
        return last["content"] if last["role"] == "assistant" else ""

    @property
    def num_turns(self) -> int:
        return len(self.stages)

    @property
    def critical_steps(self) -> int:
        return critical_steps(self.stages)

    @property
    def total_steps(self) -> int:
        return sum(stage.num_main_steps + sum(stage.num_sub_steps) for stage in self.stages)


class Agent:
    """A conversation, and a function that runs its tools.

    run_tool(name, arguments) returns text or content parts; what it raises becomes the tool's answer, too. A step is
    one tool call; the calls of one turn run in their order.
    """

    def __init__(self, conversation: Conversation, run_tool: ToolRunner, *, max_steps: int = MAX_STEPS) -> None:
        if max_steps < 1:
            raise UsageError(f"max_steps is {max_steps}; expected at least 1. Leave it out for the default.")
        self.conversation, self.run_tool, self.max_steps = conversation, run_tool, max_steps
        self.stages: list[Stage] = []
        self.steps_left = max_steps
        self.num_calls = self.num_refused = self.num_new_tokens = 0

    def run(self) -> Task:
        """The loop, as a task for `run_together`; returns the Result."""
        finish_reason, num_empty = None, 0
        while not finish_reason:
            generated = yield self.conversation
            self.num_new_tokens += generated.num_sampled
            reply = self.conversation.read(generated)
            self.num_refused += reply.dropped_calls
            if is_empty(reply, generated):
                num_empty += 1
                finish_reason = "empty" if num_empty > MAX_EMPTY else self._ask_again(reply)
                continue
            self.conversation.add_reply(generated)
            finish_reason, num_empty = self._reason_to_end(reply, generated), 0
            if finish_reason:
                self.stages.append(Stage(1))
            else:
                contents = yield from self.act(reply.tool_calls)
                finish_reason = self._hand_back(reply.tool_calls, contents)
        return self._result(finish_reason)

    def act(self, calls: list[ToolCall]) -> Generator[Any, Any, list[Content]]:
        """Run the calls of a turn and note the stage; their results, in order."""
        before = self.num_calls
        contents = [self.call(call) for call in calls]
        self.stages.append(Stage(self.num_calls - before))
        yield from ()  # there is nobody to wait for
        return contents

    def call(self, call: ToolCall) -> Content:
        """The result of one call, or what is wrong with it."""
        if not self.steps_left:
            return self._refuse(f"not run, the limit of {self.max_steps} steps is used up.")
        self.steps_left -= 1
        self.num_calls += 1
        known = tool_names(self.conversation.tools)
        if call.name not in known:
            return self._refuse(f"there is no tool {call.name}. The tools are: {', '.join(known) or 'none'}.")
        try:
            arguments = read_arguments(call.arguments)
        except ValueError as error:
            return self._refuse(str(error))
        try:
            return self.run_tool(call.name, arguments)
        except Exception as error:  # a tool may fail in any way; the model is told, and decides
            return f"error: {type(error).__name__}: {error}".removesuffix(": ")

    def _refuse(self, why: str) -> str:
        """What the model reads in the place of a result, for a call that reaches no tool."""
        self.num_refused += 1
        return f"error: {why}"

    def _reason_to_end(self, reply: Reply, generated: Generated) -> str | None:
        if generated.finish_reason == "length":
            processor = self.conversation.processor
            return "context" if len(self.conversation.ids) > processor.max_position_embeddings else "length"
        if not self.conversation.may_call:
            return "max_steps"
        return None if reply.tool_calls else "stop"

    def _hand_back(self, calls: list[ToolCall], contents: list[Content]) -> str | None:
        """Add a tool message per call. Returns "context" if they do not fit."""
        try:
            for call, content in zip(calls, contents, strict=True):
                self._add_result({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": content})
            if not self.steps_left:
                self.conversation.add_messages([{"role": "system", "content": LAST_TURN}])
                self.conversation.may_call = False
        except ContextError:
            return "context"
        return None

    def _add_result(self, message: dict[str, Any]) -> None:
        try:
            self.conversation.add_messages([message])
        except ContextError:
            raise
        except KimiError as error:  # a result that no prompt can hold, such as a picture that is none
            self.conversation.add_messages([message | {"content": f"error: {error}"}])

    def _ask_again(self, reply: Reply) -> str | None:
        """Leave an empty reply out. Returns "context" if a word about an unreadable call does not fit."""
        if reply.dropped_calls:
            try:
                self.conversation.add_messages([{"role": "system", "content": UNREADABLE_CALL}])
            except ContextError:
                return "context"
        return None

    def _result(self, finish_reason: str) -> Result:
        conversation = self.conversation
        return Result(conversation.messages, finish_reason, self.stages, self.num_calls, self.num_refused,
                      self.num_new_tokens, len(conversation.ids))


def run_agents(responder: Responder, agents: Sequence[Agent], limit: int | None = None) -> list[Any]:
    """Run agents side by side, at most `limit` at a time; their results, in order."""
    return run_together(responder, [agent.run() for agent in agents], limit)


def is_empty(reply: Reply, generated: Generated) -> bool:
    """A reply that ended by itself and has nothing to keep: no text but thinking, no call that can be read."""
    return generated.finish_reason == "stop" and not reply.content.strip() and not reply.tool_calls


def tool_names(tools: list[Any] | None) -> list[str]:
    """Names of the declared functions."""
    return [tool["function"].get("name", "function") for tool in tools or [] if tool.get("function")]


def read_arguments(text: str) -> dict[str, Any]:
    """Arguments as the model wrote them. Raises ValueError, to be read by the model."""
    try:
        arguments = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'the arguments are not valid JSON ({error}). Write an object, such as {{"x": 1}}.') from None
    if not isinstance(arguments, dict):
        raise ValueError('the arguments are no JSON object. Write one, such as {"x": 1}.')
    return arguments
