"""What worlds 6 and 7 are made of: an episode, the environment that answers its calls, and an ideal agent's turns.

A question of the other worlds has one reply. Here the agent acts several times, and whether it did well depends also
on what it did: an environment answers the calls and remembers them, and the judge looks at both.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from reference.messages import canonical_id

from .tool_schema import Declaration, complaint, name_of

Result = str | list[dict[str, Any]]  # text, or content parts, among them pictures
Call = tuple[str, dict[str, Any]]


class Environment:
    """A fresh world. It answers every call, also a wrong one, and keeps all of them in `calls`."""

    def __init__(self, tools: list[Declaration], answer: Callable[[str, dict[str, Any]], Result]) -> None:
        self.tools = {name_of(tool): tool for tool in tools}
        self.answer = answer
        self.calls: list[Call] = []

    def __call__(self, name: str, arguments: dict[str, Any]) -> Result:
        self.calls.append((name, arguments))
        if name not in self.tools:
            return f"error: there is no tool {name}"
        wrong = complaint(self.tools[name], arguments)
        return f"error: {wrong}" if wrong else self.answer(name, arguments)

    def made(self, calls: list[Call]) -> bool:
        """Whether these calls and no others were made, in any order."""
        return sorted(map(spell, self.calls)) == sorted(map(spell, calls))

    def includes(self, calls: list[Call]) -> bool:
        """Whether each of these calls was made, whatever else was."""
        return {spell(call) for call in calls} <= {spell(call) for call in self.calls}


def spell(call: Call) -> str:
    """A call as text; equal calls have equal texts, whatever the order of their arguments."""
    return f"{call[0]}({json.dumps(call[1], sort_keys=True, ensure_ascii=False, default=repr)})"


def look_up(results: list[tuple[Call, Result]], otherwise: str) -> Callable[[str, dict[str, Any]], Result]:
    """An environment's answers out of a table; `otherwise` for every call that is not in it."""
    table = {spell(call): result for call, result in results}
    return lambda name, arguments: table.get(spell((name, arguments)), otherwise)


@dataclass(frozen=True)
class Turn:
    """One assistant turn of a demonstration; `tool_calls` are names and arguments in order, empty in the last turn."""

    reasoning_content: str
    content: str
    tool_calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Episode:
    """A question that needs tools, what an ideal agent does, and how to judge what another agent did.

    `messages` end with the user's question, in the OpenAI format; `tools` are OpenAI declarations. `key` names the
    random content and decides between training and held-out. `judge` takes the final content and the environment in
    which the calls were made, by whomever. `subagents` of an orchestrator are the episodes that its demonstration
    assigns, in order; their tools are the ordinary ones, and their calls go to the same environment.
    """

    skill: str
    messages: list[dict[str, Any]]
    tools: list[Declaration]
    key: str
    demonstration: tuple[Turn, ...]
    new_environment: Callable[[], Environment] = field(compare=False)
    judge: Callable[[str, Environment], bool] = field(compare=False)
    truth: Any
    subagents: tuple["Episode", ...] = ()


def play(episode: Episode, environment: Environment | None = None) -> tuple[list[dict[str, Any]], list[Declaration]]:
    """The whole conversation of the demonstration, results from the environment, and the tools.

    Ids count the calls of the whole conversation from 0, earlier questions included. Pass an environment to look at
    what happened in it.
    """
    environment = environment or episode.new_environment()
    messages = list(episode.messages)
    num_calls = sum(len(message.get("tool_calls", [])) for message in messages)
    for turn in episode.demonstration:
        message = {"role": "assistant", "content": turn.content, "reasoning_content": turn.reasoning_content}
        messages.append(message)
        results = []
        for name, arguments in turn.tool_calls:
            call_id = canonical_id(name, num_calls)
            function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
            message.setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})
            content = environment(name, arguments)
            results.append({"role": "tool", "tool_call_id": call_id, "name": name, "content": content})
            num_calls += 1
        messages += results
    return messages, episode.tools
