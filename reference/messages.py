"""Messages as a caller sends them, checked and repaired so that the renderer never prints nonsense.

The published template prints what it is given: a missing id becomes `None` in the prompt, a mapping as
content becomes nothing at all, and the model answers a question nobody asked. Here such input is either
repaired, where only one meaning is possible, or refused with the name of the field.
"""

import json
from dataclasses import dataclass
from typing import Any

from .errors import TemplateError

Message = dict[str, Any]


def check_messages(messages: Any) -> list[Message]:
    """Return repaired copies of `messages`, ready to be rendered. The caller's own are left alone.

    Repaired: `reasoning_content: null` goes away, null or missing arguments become `{}`, a call without an
    id gets one, bare strings in a content list become text parts, and `text: null` becomes empty text.
    Raises TemplateError for everything else that the published template would print wrongly.
    """
    if not isinstance(messages, list):
        raise _wrong("messages", messages, "a list of messages", 'Write [{"role": "user", "content": "..."}]')
    checked: list[Message] = []
    num_calls = 0
    for index, message in enumerate(messages):
        checked.append(_check_message(message, f"messages[{index}]", num_calls))
        num_calls += len(calls_of(checked[-1]))
    return checked


def calls_of(message: Message) -> list[dict[str, Any]]:
    """The tool calls of a checked message; other roles than the assistant make none."""
    return (message.get("tool_calls") or []) if message["role"] == "assistant" else []


def check_text(value: Any, where: str) -> str:
    """Return `value` if it is text that UTF-8 can hold. Raises TemplateError naming `where`."""
    if not isinstance(value, str):
        raise _wrong(where, value, "text", "Send a JSON string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(value[error.start]):04X}"
        raise TemplateError(
            f"{where} holds {half}, half of a surrogate pair, at character {error.start}; expected whole characters. "
            "Was the text cut inside an emoji? Cut it between characters."
        ) from None
    return value


def _check_message(message: Any, where: str, num_calls: int) -> Message:
    if not isinstance(message, dict):
        raise _wrong(where, message, "an object with a role and content", 'Write {"role": "user", "content": "..."}')
    message = dict(message)
    _check_present(message.get("role"), f"{where}.role", "Name the speaker: system, user, assistant or tool")
    if message.get("name") is not None:
        check_text(message["name"], f"{where}.name")
    message["content"] = _check_content(message.get("content"), f"{where}.content")
    if message["role"] == "assistant":
        _check_assistant(message, where, num_calls)
    if message["role"] == "tool":
        _check_present(message.get("tool_call_id"), f"{where}.tool_call_id", "Send back the id of the call it answers")
    return message


def _check_present(value: Any, where: str, do: str) -> str:
    """Text that may not be empty either."""
    if value is None or value == "":
        raise TemplateError(f"{where} is {'missing' if value is None else 'empty'}; expected text. {do}.")
    return check_text(value, where)


def _check_content(content: Any, where: str) -> str | list[dict[str, Any]] | None:
    if content is None:
        return None
    if isinstance(content, list):
        return [_check_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
    if not isinstance(content, str):
        raise _wrong(where, content, "text, parts in a list or null", 'Write [{"type": "text", "text": "..."}]')
    return check_text(content, where)


def _check_part(part: Any, where: str) -> dict[str, Any]:
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise _wrong(where, part, "a content part", 'Write {"type": "text", "text": "..."}')
    part = dict(part)
    if part.get("type") is not None:
        check_text(part["type"], f"{where}.type")
    if "text" in part:
        part["text"] = "" if part["text"] is None else check_text(part["text"], f"{where}.text")
    return part


def _check_assistant(message: Message, where: str, num_calls: int) -> None:
    if message.get("reasoning_content") is None:
        message.pop("reasoning_content", None)
    else:
        check_text(message["reasoning_content"], f"{where}.reasoning_content")
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list):
        raise _wrong(f"{where}.tool_calls", calls, "a list of calls", "Put the one call in a list")
    message["tool_calls"] = [
        _check_call(call, f"{where}.tool_calls[{index}]", num_calls + index) for index, call in enumerate(calls)
    ]


def _check_call(call: Any, where: str, number: int) -> dict[str, Any]:
    """`number` counts the calls of the whole conversation: what a made-up id ends in."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        found, field = (call, where) if not isinstance(call, dict) else (call.get("function"), f"{where}.function")
        form = '{"id": "...", "type": "function", "function": {"name": "...", "arguments": "{}"}}'
        raise _wrong(field, found, "an object", f"Write each call as {form}")
    function = dict(call["function"])
    name = _check_present(function.get("name"), f"{where}.function.name", "Name the tool that was called")
    arguments = function.get("arguments")
    function["arguments"] = "{}" if arguments is None else arguments
    check_text(arguments_text(function["arguments"], f"{where}.function.arguments"), f"{where}.function.arguments")
    call_id = call.get("id")
    call_id = canonical_id(name, number) if call_id in (None, "") else check_text(call_id, f"{where}.id")
    return {**call, "id": call_id, "function": function}


def arguments_text(arguments: Any, where: str = "arguments") -> str:
    """Arguments as the prompt shows them: text verbatim, anything else as JSON. Raises TemplateError."""
    if isinstance(arguments, str):
        return arguments
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateError(f"{where} cannot be written as JSON ({error}); expected JSON text or an object.") from None


def canonical_id(name: str, number: int) -> str:
    """The only form of id the model was trained on; `number` counts all calls of the conversation from 0."""
    return f"functions.{name}:{number}"


@dataclass
class _Call:
    theirs: str
    ours: str
    is_answered: bool = False


def rename_tool_call_ids(messages: Any) -> tuple[list[Message], dict[str, str]]:
    """Give every call of the history the id that the model would have written; return the map ours -> theirs.

    The model copies the ids it sees: shown `call_abc`, it soon writes such ids itself, or none at all.
    A result belongs to the nearest earlier message that made a call of its id, because clients reuse ids.
    Raises TemplateError for a result that answers no call.
    """
    messages = check_messages(messages)
    theirs: dict[str, str] = {}
    made: list[list[_Call]] = []  # the calls of one assistant message each
    for index, message in enumerate(messages):
        if calls := calls_of(message):
            made.append([])
            for call in calls:
                ours = canonical_id(call["function"]["name"], len(theirs))
                made[-1].append(_Call(call["id"], ours))
                theirs[ours], call["id"] = call["id"], ours
        elif message["role"] == "tool":
            message["tool_call_id"] = _answer(message["tool_call_id"], made, f"messages[{index}].tool_call_id")
    return messages, theirs


def _answer(call_id: str, made: list[list[_Call]], where: str) -> str:
    """Mark the call that `call_id` answers; return our id of it."""
    for calls in reversed(made):
        # Parallel calls may share an id: their results then come in the order of the calls.
        if same := [call for call in calls if call.theirs == call_id]:
            call = next((call for call in same if not call.is_answered), same[-1])
            call.is_answered = True
            return call.ours
    known = ", ".join(call.theirs for calls in made[-3:] for call in calls) or "none"
    raise TemplateError(
        f'{where} "{call_id}" answers no earlier tool call (known: {known}). Send back the id the model gave.'
    )


def _wrong(where: str, found: Any, expected: str, do: str) -> TemplateError:
    return TemplateError(f"{where} is {_kind(found)}; expected {expected}. {do}.")


def _kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    if value is None or isinstance(value, bool):
        return {None: "null or missing", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"the number {value}"
    return {str: "text", list: "a list", dict: "an object"}.get(type(value), type(value).__name__)
