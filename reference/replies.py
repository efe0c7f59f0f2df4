"""What the model writes becomes reasoning, content and tool calls, piece by piece as it arrives.

    reply = [reasoning </think>] content [SECTION_BEGIN call+ SECTION_END]      reasoning in thinking mode only
    call  = CALL_BEGIN id ARGUMENT_BEGIN arguments CALL_END

Models leave markers out, repeat them and get cut off. One table says what happens then, so that nothing
is lost, nothing is invented and no marker reaches a field that people read.

`ReplyParser` takes tokens: only control ids are markers, and a model that quotes `</think>` in ordinary
tokens is quoted, not obeyed. `TextReplyParser` takes text from elsewhere, where every marker string counts.

Source: the tool-call guide of moonshotai/Kimi-K2-Instruct for the form; the table is this project's.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from .chat_template import (
    ARGUMENT_BEGIN,
    CALL_BEGIN,
    CALL_END,
    IM_END,
    SECTION_BEGIN,
    SECTION_END,
    THINK,
    THINK_END,
)
from .messages import canonical_id

END_TOKENS = (IM_END, "[EOS]")
STATES = ("reasoning", "content", "section", "header", "arguments")

# What a marker does in each state. Words are carried out from left to right: the name of a state enters it, "done" and
# "lost" end the call, "literal" keeps the marker as text, "rethink" opens a think block unless the content has begun.
# An empty cell drops the marker.
TABLE: dict[str, tuple[str, ...]] = {
    #                reasoning  content    section    header                    arguments
    THINK:          ("",        "rethink", "",        "",                       "literal"),
    THINK_END:      ("content", "",        "",        "",                       "literal"),
    SECTION_BEGIN:  ("section", "section", "section", "lost section",           "done section"),
    CALL_BEGIN:     ("header",  "header",  "header",  "lost header",            "done header"),
    ARGUMENT_BEGIN: ("",        "",        "",        "arguments",              "literal"),
    CALL_END:       ("",        "",        "",        "arguments done section", "done section"),
    SECTION_END:    ("",        "",        "",        "lost section",           "done section"),
}
MARKERS = tuple(TABLE)
AT_THE_END = {"header": "lost", "arguments": "done"}  # a reply cut off in the id never becomes a call


@dataclass(frozen=True)
class ToolCall:
    """A call; `arguments` is the text that the model wrote, which need not be valid JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """A whole reply. `reasoning_content` is None if there was no think block, "" if it was empty."""

    reasoning_content: str | None
    content: str
    tool_calls: list[ToolCall]
    dropped_calls: int

    def to_message(self) -> dict[str, Any]:
        """The reply as an assistant message in the OpenAI format, to be appended to the conversation."""
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self.tool_calls
        ]
        return {
            "role": "assistant",
            "content": self.content,
            "reasoning_content": self.reasoning_content,
            "tool_calls": calls,
        }


@dataclass(frozen=True)
class Reasoning:
    """A piece of the reasoning."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the content."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call whose id and name are certain. `index` counts from 0 without gaps."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the arguments of call `index`."""

    index: int
    text: str


Event = Reasoning | Content | CallStart | CallArguments


class _Trimmed:
    """Passes text on without the white space at either end, each piece as early as that can be known."""

    def __init__(self) -> None:
        self._has_begun = False
        self._held: list[str] = []  # white space that is the end, unless other text follows

    def push(self, text: str) -> str:
        text = text if self._has_begun else text.lstrip()
        body = text.rstrip()
        passed = "".join(self._held) + body if body else ""
        if body:
            self._has_begun, self._held = True, []
        self._held.append(text[len(body) :])
        return passed


class _OpenCall:
    """A call whose arguments are arriving. `start` stays None until id and name are certain."""

    def __init__(self, header: str) -> None:
        self.header = header
        self.start: CallStart | None = None
        self.trimmed = _Trimmed()
        self.arguments: list[str] = []


class ReplyParser:
    """Token mode: the caller says which pieces are control tokens and which are text.

    thinking: whether the prompt ended inside an open think block. tools: the request's declarations, which
    help to read damaged ids. calls_before: number of calls earlier in the conversation, for ids made here.
    """

    def __init__(self, thinking: bool, tools: list[dict[str, Any]] | None = None, calls_before: int = 0) -> None:
        self._parameters = _declared_parameters(tools or [])
        self._calls_before = calls_before
        self._state = "reasoning" if thinking else "content"
        self._reasoning: list[str] | None = [] if thinking else None
        self._content: list[str] = []
        self._blank: list[str] = []  # white space before the content: content too, unless a call follows
        self._header: list[str] = []
        self._open: _OpenCall | None = None
        self._calls: list[ToolCall] = []
        self._dropped_calls = 0
        self._has_ended = False
        self._events: list[Event] = []

    def control(self, name: str) -> list[Event]:
        """Take one control token. Those without a meaning in a reply vanish."""
        if name in END_TOKENS:
            return self.finish()
        if name in TABLE and not self._has_ended:
            for word in TABLE[name][STATES.index(self._state)].split():
                self._do(word, name)
        return self._new_events()

    def text(self, text: str) -> list[Event]:
        """Take a piece of ordinary text, cut anywhere."""
        if text and not self._has_ended:
            self._take(text)
        return self._new_events()

    def finish(self) -> list[Event]:
        """The reply is over, by its end token or because it was cut off. What comes later is ignored."""
        if not self._has_ended:
            if word := AT_THE_END.get(self._state):
                self._do(word, "")
            if not self._calls:
                self._release_blank()
            self._has_ended = True
        return self._new_events()

    def result(self) -> Reply:
        """The whole reply, after `finish` or an end token."""
        assert self._has_ended, "call finish() before result()"
        reasoning = None if self._reasoning is None else "".join(self._reasoning)
        return Reply(reasoning, "".join(self._content), list(self._calls), self._dropped_calls)

    def _new_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _do(self, word: str, marker: str) -> None:
        match word:
            case "literal":
                self._take(marker)
            case "rethink":
                self._rethink(marker)
            case "lost":
                self._dropped_calls += 1
            case "done":
                self._finish_call()
            case state:
                self._enter(state)

    def _rethink(self, marker: str) -> None:
        """A think block may open as long as the content is blank; later the marker is only talked about."""
        if self._content:
            self._take(marker)
        else:
            self._blank.clear()
            self._enter("reasoning")

    def _enter(self, state: str) -> None:
        self._state = state
        if state == "reasoning" and self._reasoning is None:
            self._reasoning = []
        if state == "header":
            self._header = []
        if state == "arguments":
            self._open = _OpenCall("".join(self._header).strip())
            if found := complete_id(self._open.header):
                self._start_call(*found)

    def _take(self, text: str) -> None:
        match self._state:
            case "reasoning":
                self._reasoning.append(text)
                self._events.append(Reasoning(text))
            case "content":
                self._take_content(text)
            case "header":
                self._header.append(text)
            case "arguments":
                self._take_arguments(self._open.trimmed.push(text))

    def _take_content(self, text: str) -> None:
        if not self._content and text.isspace():
            self._blank.append(text)
            return
        self._release_blank()
        self._content.append(text)
        self._events.append(Content(text))

    def _release_blank(self) -> None:
        if blank := "".join(self._blank):
            self._content.append(blank)
            self._events.append(Content(blank))
        self._blank = []

    def _take_arguments(self, text: str) -> None:
        if text:
            self._open.arguments.append(text)
            if self._open.start:
                self._events.append(CallArguments(self._open.start.index, text))

    def _start_call(self, call_id: str, name: str) -> None:
        self._blank = []
        self._open.start = CallStart(len(self._calls), call_id, name)
        self._events.append(self._open.start)

    def _finish_call(self) -> None:
        call = self._open
        if not call.arguments:
            self._take_arguments("{}")
        arguments = "".join(call.arguments)
        if not call.start:
            position = self._calls_before + len(self._calls)
            found = inferred_id(call.header, arguments, self._parameters, position)
            if not found:
                self._dropped_calls += 1
                return
            self._start_call(*found)
            self._events.append(CallArguments(call.start.index, arguments))
        self._calls.append(ToolCall(call.start.id, call.start.name, arguments))


def complete_id(header: str) -> tuple[str, str] | None:
    """Read `functions.NAME:digits` or `NAME:digits`: the id verbatim, and the name. None if it has neither form."""
    match = re.fullmatch(r"(\S+):[0-9]+", header)
    name = match[1].removeprefix("functions.") if match else ""
    return (header, name) if name else None


def inferred_id(
    header: str, arguments: str, parameters: dict[str, dict[str, Any]], position: int
) -> tuple[str, str] | None:
    """Make an id from a damaged header, if the declared tools leave no doubt which one is meant.

    parameters: schema by declared name. position: the number of a call whose header holds none.
    """
    fits = [(name, match[1]) for name in parameters if (match := re.fullmatch(_glued(name), header))]
    if len(fits) == 1:
        name, digits = fits[0]
        return _made_id(name, digits, position)
    if re.fullmatch(r"(?:call)?[0-9]+|", header):
        digits = header.removeprefix("call")
    elif header.startswith(("call_", "toolu_", "chatcmpl-tool-")):
        digits = ""
    else:
        return None
    names = list(parameters)
    if len(names) > 1:
        names = [name for name in names if _takes(parameters[name], arguments)]
    return _made_id(names[0], digits, position) if len(names) == 1 else None


def _glued(name: str) -> str:
    """Pattern of a name with its prefix or number damaged, as in `functionsexec5` and `functions_exec_5`."""
    return rf"(?:functions[._:]?)?{re.escape(name)}[:._-]?([0-9]*)"


def _made_id(name: str, digits: str, position: int) -> tuple[str, str]:
    # Leading zeros go without int(): Python refuses to read numbers of thousands of digits.
    return canonical_id(name, (digits.lstrip("0") or "0") if digits else position), name


def _takes(parameters: dict[str, Any], arguments: str) -> bool:
    """Whether a tool could have been meant by these arguments: it knows every key and misses none."""
    try:
        value = json.loads(arguments, parse_int=str, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return False
    properties, required = parameters.get("properties") or {}, parameters.get("required") or []
    is_readable = isinstance(value, dict) and isinstance(properties, dict) and isinstance(required, list)
    return is_readable and value.keys() <= properties.keys() and all(name in list(value) for name in required)


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # Python reads NaN and Infinity, no one else does


def _declared_parameters(tools: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Schema by name of every usable function. A schema that is no object has no properties to go by."""
    functions = [tool.get("function") for tool in tools if tool.get("type") == "function"]
    named = [function for function in functions if isinstance(function, dict) and isinstance(function.get("name"), str)]
    return {
        function["name"]: function["parameters"] if isinstance(function.get("parameters"), dict) else {}
        for function in named
    }


# Singular spellings occur in text from elsewhere; the vocabulary does not have them.
MARKER_OF_TEXT = {marker: marker for marker in MARKERS} | {
    "<|tool_call_section_begin|>": SECTION_BEGIN,
    "<|tool_call_section_end|>": SECTION_END,
}
_ANY_MARKER = re.compile("|".join(map(re.escape, MARKER_OF_TEXT)))


class TextReplyParser:
    """Text mode: reads text in chunks cut anywhere. Holds back only a tail that may be, or end, a marker."""

    def __init__(self, thinking: bool, tools: list[dict[str, Any]] | None = None, calls_before: int = 0) -> None:
        self._parser = ReplyParser(thinking, tools, calls_before)
        self._tail = ""

    def feed(self, chunk: str) -> list[Event]:
        """Take the next chunk."""
        text = self._tail + chunk
        events: list[Event] = []
        start = 0
        for match in _ANY_MARKER.finditer(text):
            events += self._parser.text(text[start : match.start()])
            events += self._parser.control(MARKER_OF_TEXT[match[0]])
            start = match.end()
        held_from = _start_of_tail(text, start)
        self._tail = text[held_from:]
        return events + self._parser.text(text[start:held_from])

    def finish(self) -> list[Event]:
        """The text is over. One `<|im_end|>` at its very end is no part of the reply."""
        tail, self._tail = self._tail, ""
        events = self._parser.text("" if tail == IM_END else tail)
        return events + self._parser.finish()

    def result(self) -> Reply:
        """The whole reply, after `finish`."""
        return self._parser.result()


def _start_of_tail(text: str, start: int) -> int:
    """Where a piece begins that the next chunk may complete to a marker; the length of the text if none does."""
    found = text.rfind("<", start)  # every marker holds one "<", at its beginning
    if found >= 0 and any(marker.startswith(text[found:]) for marker in (*MARKER_OF_TEXT, IM_END)):
        return found
    return len(text)
