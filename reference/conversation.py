"""One running conversation as the model meets it: ids that only grow while tools are at work, and what of them is new.

    conversation = Conversation(processor, messages, tools)
    new = conversation.take_new()                    # what no cache has seen yet: the whole prompt, the first time
    ...                                              # the model reads it and samples a reply
    reply = conversation.add_reply(generated)        # its ids stay exactly as they were sampled
    conversation.add_messages(results)               # tool results, and the opening of the next reply

Reasoning stays in the prompt as long as its chain of calls runs, so each step's ids are the beginning of the next
step's, and a cache is never wrong about what it holds. After an answer the published template drops the reasoning that
led to it. Then the ids are rendered anew from the messages, and a cache is good up to where the two part.
"""

from itertools import takewhile
from typing import Any

import numpy as np

from .chat_template import CALL_BEGIN, IM_END, MEDIA_PAD, SECTION_BEGIN, render
from .errors import TemplateError
from .generation import Generated, read_reply
from .media import load_media
from .messages import Message, calls_of, check_messages, rename_tool_call_ids
from .prompt import Processor, Prompt
from .replies import Reply


class Conversation:
    """Messages and their ids, opened for the next reply. Raises what Processor.prompt raises.

    `messages` are checked copies of the caller's, with ids of calls as the model knows them. `num_cached` is how many
    of the `ids` a cache holds. `seed` is what its replies are sampled from. Where `may_call` is false, the tools stay
    declared, but no call can be sampled.
    """

    def __init__(self, processor: Processor, messages: list[dict[str, Any]], tools: list[Any] | None = None,
                 thinking: bool = True, seed: int = 0) -> None:
        self.processor, self.tools, self.thinking, self.seed = processor, tools, thinking, seed
        self.messages, _ = rename_tool_call_ids(messages)
        self.may_call = True
        self.num_cached = 0
        self._opening = processor.tokenizer.encode_runs(render([], None, thinking))  # the generation prompt
        self._body: list[int] = []     # everything before it
        self._is_open = True           # whether it stands at the end
        self._must_render = False      # whether the template writes what is there differently once more follows
        self._pixel_values: np.ndarray | None = None  # of the media that no cache has seen
        self._grid_thws: np.ndarray | None = None
        self._render(self.messages)

    @property
    def ids(self) -> list[int]:
        """Everything so far; with the open generation prompt, until a reply is added."""
        return self._body + self._opening if self._is_open else list(self._body)

    @property
    def num_calls(self) -> int:
        """Tool calls so far: ids of calls count on from here."""
        return sum(len(calls_of(message)) for message in self.messages)

    @property
    def forbidden_ids(self) -> list[int]:
        """What may not be sampled."""
        control_ids = self.processor.tokenizer.control_ids
        return [] if self.may_call else [control_ids[SECTION_BEGIN], control_ids[CALL_BEGIN]]

    def take_new(self) -> Prompt:
        """The last of the `ids`, those that no cache has seen, and the media in them; they count as seen then.

        Always at least one, whose logits are wanted. A cache has to forget what it holds beyond the ids before them.
        """
        assert self._is_open, "add messages before the next reply"
        ids = self.ids
        new = ids[min(self.num_cached, len(ids) - 1):]
        prompt = Prompt(new, self._pixel_values, self._grid_thws, [])
        self._pixel_values = self._grid_thws = None
        self.num_cached = len(ids)
        return prompt

    def start_over(self) -> None:
        """Count nothing as seen: a cache begins empty."""
        if self.num_cached:
            media = load_media(self.messages, self.processor.media_config, self.processor.max_position_embeddings)
            self._pixel_values, self._grid_thws, self.num_cached = media.pixel_values, media.grid_thws, 0

    def read(self, generated: Generated) -> Reply:
        """The reply that these sampled ids are, without adding it."""
        return read_reply(generated.ids, self.processor.tokenizer, self.thinking, self.tools, self.num_calls)

    def add_reply(self, generated: Generated) -> Reply:
        """Add a sampled reply, id by id, and close it. Returns it."""
        reply = self.read(generated)
        if self.num_cached == len(self.ids):
            self.num_cached += generated.num_sampled - 1  # the last sampled token has not gone through the model
        self._body = [*self.ids, *generated.ids, self.processor.tokenizer.control_ids[IM_END]]
        self._is_open = False
        # A plain answer ends the chain. A reply that was cut may stop between two markers.
        self._must_render = not reply.tool_calls or generated.finish_reason != "stop"
        self.messages.append(reply.to_message())
        return reply

    def add_messages(self, messages: list[dict[str, Any]]) -> None:
        """Add tool results, under the ids that the model gave, or messages of a user; open the next reply.

        Raises TemplateError, MediaError or, if there is no room left, ContextError: then nothing has changed.
        """
        messages = check_messages(messages)
        if any(message["role"] == "assistant" for message in messages):
            raise TemplateError("an assistant message cannot be added; expected results of tools or a user's message. "
                                "Add what the model sampled with add_reply, or begin a new conversation.")
        everything = [*self.messages, *messages]
        rename_tool_call_ids(everything)  # refuses a result that answers no call
        if self._must_render:
            self._render(everything)
        else:
            self._append(messages)
        self.messages, self._is_open = everything, True

    def _append(self, messages: list[Message]) -> None:
        """Put messages behind what is there: each begins and ends with a marker, so no merge crosses its border."""
        prompt = self.processor.continuation(messages, self.thinking, len(self._body))
        self.num_cached = min(self.num_cached, len(self._body))
        self._body = self._body + prompt.input_ids[:-len(self._opening)]
        self._pixel_values = _joined(self._pixel_values, prompt.pixel_values)
        self._grid_thws = _joined(self._grid_thws, prompt.grid_thws)

    def _render(self, messages: list[Message]) -> None:
        """Write everything anew; keep of the cache what both have in common."""
        prompt = self.processor.prompt(messages, self.tools, self.thinking)
        pairs = zip(self._body, prompt.input_ids, strict=False)
        num_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.num_cached = min(self.num_cached, num_common)
        self._body = prompt.input_ids[:-len(self._opening)]
        self._pixel_values, self._grid_thws = self._media_behind(prompt, self.num_cached)
        self._must_render = False

    def _media_behind(self, prompt: Prompt, num_tokens: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The media whose placeholders stand behind the first `num_tokens`: never a part of one.

        Two renderings of the same messages have the same media, and part where a text differs.
        """
        if prompt.grid_thws is None:
            return None, None
        pad_id = self.processor.tokenizer.control_ids[MEDIA_PAD]
        num_pads, num_media, num_patches = prompt.input_ids[:num_tokens].count(pad_id), 0, 0
        while num_pads > 0:
            t, h, w = (int(size) for size in prompt.grid_thws[num_media])
            num_pads, num_media, num_patches = num_pads - h * w // 4, num_media + 1, num_patches + t * h * w
        if num_media == len(prompt.grid_thws):
            return None, None
        return prompt.pixel_values[num_patches:], prompt.grid_thws[num_media:]


def _joined(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    if first is None or second is None:
        return second if first is None else first
    return np.concatenate([first, second])
