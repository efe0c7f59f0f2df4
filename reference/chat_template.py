"""Messages and tools become a prompt: a list of runs, each either one control token or ordinary text.

    [tool block] message* [generation prompt]
    message            ROLE_MARKER name <|im_middle|> body <|im_end|>

The prompt is never one string on its way to the tokenizer. A user, a web page in a tool result or a file
name may spell `<|im_end|>`; as text it stays text, and only the markers written here become control ids.

Source: chat_template.jinja and tokenization_kimi.py of moonshotai/Kimi-K2.5.
"""

import json
from collections.abc import Iterable
from typing import Any

from .errors import TemplateError
from .messages import Message, arguments_text, calls_of, check_messages, check_text
from .tokenizer import Run
from .tool_declaration import declare_tools, deep_sort

IM_SYSTEM, IM_USER, IM_ASSISTANT = "<|im_system|>", "<|im_user|>", "<|im_assistant|>"
IM_MIDDLE, IM_END = "<|im_middle|>", "<|im_end|>"
THINK, THINK_END = "<think>", "</think>"
SECTION_BEGIN, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
ARGUMENT_BEGIN = "<|tool_call_argument_begin|>"
MEDIA_BEGIN, MEDIA_CONTENT, MEDIA_END = "<|media_begin|>", "<|media_content|>", "<|media_end|>"
MEDIA_PAD = "<|media_pad|>"

# Not a token: it stands for a video until the chunk prompts replace it, before the prompt becomes ids.
VIDEO_PLACEHOLDER = "<|kimi_k25_video_placeholder|>"

ROLE_MARKERS = {"user": IM_USER, "assistant": IM_ASSISTANT}  # every other role: IM_SYSTEM


class _Prompt:
    """A list of runs under construction. Neighbouring text is joined, because merges cross those borders."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self._text: list[str] = []

    def text(self, text: str) -> None:
        self._text.append(text)

    def control(self, *markers: str) -> None:
        self.close_text()
        self.runs += [Run("s", marker) for marker in markers]

    def video(self) -> None:
        self.close_text()
        self.runs.append(Run("p", VIDEO_PLACEHOLDER))

    def close_text(self) -> None:
        if text := "".join(self._text):
            self.runs.append(Run("t", text))
        self._text = []


def render(
    messages: Any, tools: Any = None, thinking: bool = True, add_generation_prompt: bool = True
) -> list[Run]:
    """Render a conversation in the OpenAI format. Ids are written as given: see `rename_tool_call_ids`.

    tools: OpenAI declarations, in any key order. thinking=False asks for an instant answer.
    Raises TemplateError naming the field that cannot be rendered.
    """
    _check_switch("thinking", thinking)
    _check_switch("add_generation_prompt", add_generation_prompt)
    messages = check_messages(messages)
    prompt = _Prompt()
    if tools is not None and tools != []:
        _write_opening(prompt, IM_SYSTEM, "tool_declare")
        prompt.text(declaration(tools))
        prompt.control(IM_END)
    suffix = suffix_start(messages)
    for index, message in enumerate(messages):
        _write_message(prompt, message, keep_reasoning=thinking and index >= suffix)
    if add_generation_prompt:
        _write_opening(prompt, IM_ASSISTANT, "assistant")
        prompt.control(*([THINK] if thinking else [THINK, THINK_END]))
    prompt.close_text()
    return prompt.runs


def prompt_text(runs: Iterable[Run]) -> str:
    """The prompt as one string, to be read by people and compared with other renderers."""
    return "".join(run.text for run in runs)


def declaration(tools: Any) -> str:
    """The tools as the model sees them: TypeScript, or sorted JSON if one schema cannot be said in it."""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise TemplateError(
            "tools is not a list of objects; expected OpenAI tool declarations. "
            'Write [{"type": "function", "function": {"name": "...", "parameters": {...}}}].'
        )
    try:
        typescript = declare_tools(tools)
    except (TemplateError, RecursionError):  # the published path falls back on any error
        typescript = ""
    return check_text(typescript or _declaration_json(tools), "the declaration of tools")


def _declaration_json(tools: list[dict[str, Any]]) -> str:
    try:
        return json.dumps(deep_sort(tools), ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateError(f"tools cannot be written as JSON ({error}); expected plain JSON values.") from None


def suffix_start(messages: list[Message]) -> int:
    """Index of the first message after the last assistant message without calls.

    Reasoning lives as long as the tool loop it belongs to: a plain answer ends the loop, and everything up
    to it is history, whose think blocks are emptied. A user message inside an unfinished loop ends nothing.
    """
    is_answer = [message["role"] == "assistant" and not calls_of(message) for message in messages]
    return max((index + 1 for index, answers in enumerate(is_answer) if answers), default=0)


def _write_opening(prompt: _Prompt, marker: str, name: str) -> None:
    prompt.control(marker)
    prompt.text(name)
    prompt.control(IM_MIDDLE)


def _write_message(prompt: _Prompt, message: Message, keep_reasoning: bool) -> None:
    role = message["role"]
    _write_opening(prompt, ROLE_MARKERS.get(role, IM_SYSTEM), message.get("name") or role)
    if role == "assistant":
        prompt.control(THINK)
        prompt.text(message.get("reasoning_content", "") if keep_reasoning else "")
        prompt.control(THINK_END)
    if role == "tool":
        prompt.text(f"## Return of {message['tool_call_id']}\n")
    _write_content(prompt, message["content"])
    _write_calls(prompt, calls_of(message))
    prompt.control(IM_END)


def _write_content(prompt: _Prompt, content: str | list[dict[str, Any]] | None) -> None:
    if isinstance(content, str):
        prompt.text(content)
        return
    for part in content or []:
        match part.get("type"):
            case "image" | "image_url":
                prompt.control(MEDIA_BEGIN)
                prompt.text("image")
                prompt.control(MEDIA_CONTENT, MEDIA_PAD, MEDIA_END)
                prompt.text("\n")
            case "video" | "video_url":
                prompt.video()
                prompt.text("\n")
            case "pdf" | "pdf_url":  # our own part type: the media loader replaces it by its pages
                raise TemplateError(
                    f"a content part of type {part['type']} reached the prompt; expected its pages as images. "
                    "Answer documents with python -m reference.generate, which loads them first."
                )
            case _:
                prompt.text(part.get("text", ""))


def _write_calls(prompt: _Prompt, calls: list[dict[str, Any]]) -> None:
    """The id carries the tool's name; nothing else in the prompt does."""
    if not calls:
        return
    prompt.control(SECTION_BEGIN)
    for call in calls:
        prompt.control(CALL_BEGIN)
        prompt.text(call["id"])
        prompt.control(ARGUMENT_BEGIN)
        prompt.text(arguments_text(call["function"]["arguments"]))
        prompt.control(CALL_END)
    prompt.control(SECTION_END)


def _check_switch(name: str, value: Any) -> None:
    # The published template takes everything but `false` for true: {"type": "disabled"} would switch thinking on.
    if not isinstance(value, bool):
        raise TemplateError(
            f"{name} is {json.dumps(value, default=repr)[:60]}; expected true or false. "
            'Translate other forms first: {"type": "disabled"} is false.'
        )
