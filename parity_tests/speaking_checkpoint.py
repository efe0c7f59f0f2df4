"""A random checkpoint that can be talked to: beside the weights a vocabulary, media settings and stop tokens.

The vocabulary is the plainest that spells everything: ids 0 to 255 are the single bytes, ids 256 to 511 the control
slots with the published names at the published offsets.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from parity_tests.checkpoints import small_config, write_checkpoint
from reference.config import KimiConfig
from reference.conversation import Conversation
from reference.responder import Responder
from reference.tokenizer import write_tokenizer_files

NUM_RANKS, NUM_TOKENS = 256, 512
NAMED_SPECIALS = {
    0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>", 10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>", 12: "<|tool_calls_section_end|>", 13: "<|tool_call_begin|>",
    14: "<|tool_call_argument_begin|>", 15: "<|tool_call_end|>", 17: "<|im_middle|>", 18: "<|media_begin|>",
    19: "<|media_content|>", 20: "<|media_end|>", 21: "<|media_pad|>", 22: "<think>", 23: "</think>",
    254: "[UNK]", 255: "[PAD]",
}
CONTROL_IDS = {name: NUM_RANKS + offset for offset, name in NAMED_SPECIALS.items()}


def write_speaking_checkpoint(directory: Path, **text_settings: object) -> Path:
    """`text_settings` replace keys of text_config."""
    text = {"vocab_size": NUM_TOKENS, "eos_token_id": CONTROL_IDS["[EOS]"], **text_settings}
    config = small_config(text) | {"eos_token_id": CONTROL_IDS["[EOS]"]}
    config |= dict.fromkeys(("media_placeholder_token_id", "image_token_id"), CONTROL_IDS["<|media_pad|>"])
    write_checkpoint(directory, config)
    write_tokenizer_files(directory, {bytes([byte]): byte for byte in range(NUM_RANKS)},
                          {NUM_RANKS + offset: name for offset, name in NAMED_SPECIALS.items()})
    write_json(directory / "generation_config.json", {"eos_token_id": CONTROL_IDS["<|im_end|>"]})
    write_json(directory / "preprocessor_config.json", {"media_proc_cfg": {}})
    return directory


def write_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def spell(text: str, *markers: str) -> list[int]:
    """Ids of ordinary text, then of control markers."""
    return [*text.encode(), *(CONTROL_IDS[marker] for marker in markers)]


class ScriptedModel(nn.Module):
    """Says what a test wants to read: the k-th sampled token of every row is the k-th of `script`, then `[EOS]`."""

    def __init__(self, script: list[int], directory: Path) -> None:
        super().__init__()
        self.config = KimiConfig.from_directory(directory)
        self.script = [*script, CONTROL_IDS["[EOS]"]]
        self.place = nn.Parameter(torch.zeros(()))  # says which device the model is on

    def new_cache(self, batch_size: int) -> "SpokenTokens":
        return SpokenTokens()

    def forward(self, input_ids, *, cache, num_padding=None, last_only=False, pixel_values=None, grid_thws=None):
        logits = torch.zeros(len(input_ids), 1, NUM_TOKENS)
        logits[..., self.script[cache.count]] = 1000.0
        cache.count += 1
        return logits


class SpokenTokens:
    """All that a scripted model remembers."""

    count = 0

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Every row says the same."""


# -- replies of many steps ---------------------------------------------------------------------------------------------

Script = Callable[[Conversation], list[int]]


def scripted(responder: type[Responder], script: Script) -> type[Responder]:
    """Of this class, but it says `script(conversation)` and then `<|im_end|>`, whatever it would sample.

    The model, its caches and its sampler run all the same. `heard` keeps what the model computed: for each reply in
    turn the conversation, the ids of its prompt, and the logits of every token of the reply.
    """

    class Scripted(responder):
        def __init__(self, *args: object, **settings: object) -> None:
            super().__init__(*args, **settings)
            self.lines: dict[Conversation, Iterator[int]] = {}
            self.heard: list[tuple[Conversation, list[int], list[Tensor]]] = []

        def choose(self, logits: Tensor, conversations: list[Conversation]) -> list[int]:
            assert all(0 <= token < NUM_TOKENS for token in super().choose(logits, conversations))
            return [self.next_id(row, conversation) for row, conversation in zip(logits, conversations, strict=True)]

        def next_id(self, row: Tensor, conversation: Conversation) -> int:
            if conversation not in self.lines:
                self.lines[conversation] = iter([*script(conversation), CONTROL_IDS["<|im_end|>"]])
                self.heard.append((conversation, conversation.ids, []))
            next(logits for other, _, logits in reversed(self.heard) if other is conversation).append(row.clone())
            token = next(self.lines[conversation])
            if token == CONTROL_IDS["<|im_end|>"]:
                del self.lines[conversation]
            return token

    return Scripted


def call(name: str, arguments: object, number: int) -> list[int]:
    """Ids of a call between two markers of the section."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return [*spell("", "<|tool_call_begin|>"), *spell(f"functions.{name}:{number}", "<|tool_call_argument_begin|>"),
            *spell(text, "<|tool_call_end|>")]


def calling(thought: str, *calls: list[int], content: str = "") -> list[int]:
    """A reply in thinking mode that calls tools."""
    ids = [token for one in calls for token in one]
    return [*spell(thought, "</think>"), *spell(content, "<|tool_calls_section_begin|>"), *ids,
            *spell("", "<|tool_calls_section_end|>")]


def saying(thought: str, content: str) -> list[int]:
    """A reply in thinking mode that answers."""
    return [*spell(thought, "</think>"), *spell(content)]


def declared(name: str, **types: str) -> dict:
    """A tool whose parameters are all required."""
    schema = {"type": "object", "properties": {key: {"type": value} for key, value in types.items()},
              "required": list(types)}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": schema}}
