"""From messages to model input: token ids with one placeholder per media token, and the pixels behind them.

The prompt stays a list of runs until the very end, so text from users, tools or web pages is encoded as text and can
never become a control token; only markers that the renderer wrote do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .chat_template import IM_END, MEDIA_PAD, render
from .config import KimiConfig
from .errors import ConfigError, ContextError
from .media import Media, load_media
from .media_config import MediaConfig
from .messages import Message, check_messages, rename_tool_call_ids
from .tokenizer import Run, Tokenizer

EOS = "[EOS]"


@dataclass(frozen=True)
class Prompt:
    """What one conversation hands to the model.

    `input_ids` has one placeholder per media token; `pixel_values` [N, 3, 14, 14] float32 and `grid_thws` [M, 3] int64
    are in the same order, or None without media. `runs` is the prompt as text, one `<|media_pad|>` per medium.
    """

    input_ids: list[int]
    pixel_values: np.ndarray | None
    grid_thws: np.ndarray | None
    runs: list[Run]


@dataclass(frozen=True)
class Processor:
    """Everything around the weights: a checkpoint directory's tokenizer, media settings, limits and stop tokens."""

    config: KimiConfig
    tokenizer: Tokenizer
    media_config: MediaConfig | None  # None: a model without a vision tower
    stop_ids: frozenset[int]

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Processor":
        """Read the small files of a checkpoint, no weights. Raises ConfigError, TokenizerError."""
        config = KimiConfig.from_directory(directory)
        tokenizer = Tokenizer.from_directory(directory)
        check_vocabulary(config, tokenizer)
        media_config = MediaConfig.from_directory(directory) if config.vision else None
        return cls(config, tokenizer, media_config, stop_ids(config, tokenizer))

    @property
    def max_position_embeddings(self) -> int:
        return self.config.text.max_position_embeddings

    def prompt(self, messages: list[dict[str, Any]], tools: list[Any] | None = None, thinking: bool = True) -> Prompt:
        """Build a prompt that leaves room in the context for at least one new token."""
        max_tokens = self.max_position_embeddings - 1
        return build_prompt(messages, tools, thinking, self.tokenizer, self.media_config, max_tokens)

    def continuation(self, messages: list[dict[str, Any]], thinking: bool, num_before: int) -> Prompt:
        """Build what follows `num_before` tokens of a conversation: these messages and the generation prompt.

        Leaves room for one new token, too. Ids of calls are written as given.
        """
        max_tokens = self.max_position_embeddings - 1
        return encode_prompt(check_messages(messages), None, thinking, self.tokenizer, self.media_config, max_tokens,
                             num_before)


def check_vocabulary(config: KimiConfig, tokenizer: Tokenizer) -> None:
    """Raise ConfigError unless every token has a row in the embedding, and pictures their placeholder."""
    if tokenizer.vocab_size != config.text.vocab_size:
        raise ConfigError(f"config.json: vocab_size is {config.text.vocab_size} but tiktoken.model makes "
                          f"{tokenizer.vocab_size} tokens; expected the same. Take all files from one revision.")
    if config.vision and tokenizer.control_ids.get(MEDIA_PAD) != config.media_placeholder_token_id:
        raise ConfigError(f"config.json: media_placeholder_token_id is {config.media_placeholder_token_id} but the "
                          f"tokenizer has {MEDIA_PAD} at {tokenizer.control_ids.get(MEDIA_PAD)}; expected the same. "
                          "Take all files from one revision.")


def stop_ids(config: KimiConfig, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end a reply. The published files disagree (`<|im_end|>` in one, `[EOS]` in another): stop on any."""
    named = {tokenizer.control_ids[name] for name in (IM_END, EOS) if name in tokenizer.control_ids}
    return frozenset(named | set(config.eos_token_ids))


def build_prompt(messages: list[dict[str, Any]], tools: list[Any] | None, thinking: bool, tokenizer: Tokenizer,
                 media_config: MediaConfig | None, max_tokens: int) -> Prompt:
    """Check, rename tool-call ids, load media, render, encode. Ends with the generation prompt.

    Raises TemplateError for messages that cannot be rendered, MediaError for media that cannot be read or used, either
    one if the prompt is longer than `max_tokens` (the former as ContextError).
    """
    renamed, _ = rename_tool_call_ids(messages)
    return encode_prompt(renamed, tools, thinking, tokenizer, media_config, max_tokens)


def encode_prompt(messages: list[Message], tools: list[Any] | None, thinking: bool, tokenizer: Tokenizer,
                  media_config: MediaConfig | None, max_tokens: int, num_before: int = 0) -> Prompt:
    """As build_prompt, for checked messages whose ids stay as they are and that stand behind `num_before` tokens."""
    media = load_media(messages, media_config, max(max_tokens - num_before, 0))
    runs = list(fill_in_videos(render(media.messages, tools, thinking), media.video_runs))
    input_ids = expand_pads(tokenizer.encode_runs(runs), tokenizer.control_ids.get(MEDIA_PAD), media)
    if (num_tokens := num_before + len(input_ids)) > max_tokens:
        raise ContextError(f"the prompt has {num_tokens} tokens, {sum(media.tokens_per_medium)} of them media; at "
                           f"most {max_tokens} fit into the model's context. Shorten the conversation or the media.")
    return Prompt(input_ids, media.pixel_values, media.grid_thws, runs)


def fill_in_videos(runs: list[Run], video_runs: list[list[Run]]) -> Iterator[Run]:
    """Replace each video placeholder of the renderer by the timestamps and markers of that video's chunks."""
    videos = iter(video_runs)
    for run in runs:
        if run.kind == "p":
            yield from next(videos)
        else:
            yield run
    assert next(videos, None) is None, "a video without a placeholder"


def expand_pads(ids: list[int], pad_id: int | None, media: Media) -> list[int]:
    """Repeat the one `<|media_pad|>` of each medium to the number of vision tokens that will replace it."""
    num_pads = ids.count(pad_id)
    assert num_pads == len(media.tokens_per_medium), f"{num_pads} pads for {len(media.tokens_per_medium)} media"
    counts = iter(media.tokens_per_medium)
    return [token for token in ids for _ in range(next(counts) if token == pad_id else 1)]
