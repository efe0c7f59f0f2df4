"""From drawn examples to padded batches: the real chat template, the real media pipeline, loss on the reply alone."""

import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reference.chat_template import IM_ASSISTANT, IM_END, THINK, THINK_END, suffix_start
from reference.prompt import Processor
from reference.tokenizer import Tokenizer
from tools.worlds.demonstration import Episode, play
from tools.worlds.sample import Sample

# B examples   T tokens of the longest   L patches of all pictures   M pictures

INSTANT_ONE_IN = 8  # so many episodes
IGNORED = -100  # target of a position without loss
# Gradients through all of a long text would need the square of its length in memory. Of an example longer than
# LONGEST_WHOLE the beginning is read into a cache and only the end, with the answer, is learnt.
LONGEST_WHOLE, LEARNT_TOKENS = 3500, 1024


@dataclass(frozen=True)
class Example:
    """A whole conversation as ids. `is_reply` marks those that the model itself has to write, stop tokens included."""

    input_ids: list[int]
    is_reply: list[bool]
    pixel_values: np.ndarray | None
    grid_thws: np.ndarray | None
    skill: str

    @property
    def length(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Batch:
    input_ids: Tensor  # (B, T) right-padded: causal attention never looks to the right, so no mask is needed
    targets: Tensor  # (B, T) the next token where it belongs to the reply, IGNORED elsewhere
    weights: Tensor  # (B, T) float32, loss weight of each position
    valid: Tensor  # (B, T) bool, False on padding
    pixel_values: Tensor | None  # (L, 3, 14, 14)
    grid_thws: Tensor | None  # (M, 3)
    skills: list[str]
    num_read: int  # so many tokens at the beginning are only read: no loss and no gradient

    def to(self, device: str) -> "Batch":
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def encode_example(processor: Processor, drawn: Sample | Episode) -> Example:
    """Render and encode one example with the replies that the model itself would have to generate."""
    if isinstance(drawn, Episode):
        return encode_episode(processor, drawn)
    return encode_conversation(
        processor, drawn.messages, None, drawn.thinking, drawn.reasoning_content, drawn.content, drawn.skill
    )


def encode_episode(processor: Processor, episode: Episode) -> Example:
    """The whole demonstration. A few, told by their keys, are learnt in instant mode."""
    (*messages, answer), tools = play(episode)
    thinking = zlib.crc32(episode.key.encode()) % INSTANT_ONE_IN != 0
    reasoning = answer["reasoning_content"] if thinking else ""
    return encode_conversation(processor, messages, tools, thinking, reasoning, answer["content"], episode.skill)


def encode_conversation(
    processor: Processor, messages: list[dict], tools: list[dict] | None, thinking: bool, reasoning_content: str,
    content: str, skill: str,
) -> Example:  # fmt: skip
    """A conversation and its answer. Every assistant turn is learnt, as the template renders it.

    Turns of the running tool chain stand there with their reasoning; earlier ones without, as if answered instantly.
    """
    tokenizer = processor.tokenizer
    prompt = processor.prompt(messages, tools, thinking)
    answer = [*tokenizer.encode(content), tokenizer.control_ids[IM_END]]
    if thinking:
        answer = [*tokenizer.encode(reasoning_content), tokenizer.control_ids[THINK_END], *answer]
    is_reply = [False] * len(prompt.input_ids) + [True] * len(answer)
    num_past = sum(message["role"] == "assistant" for message in messages[: suffix_start(messages)])
    for start, end in closed_turns(prompt.input_ids, tokenizer, num_past, thinking):
        is_reply[start:end] = [True] * (end - start)
    return Example(prompt.input_ids + answer, is_reply, prompt.pixel_values, prompt.grid_thws, skill)


def closed_turns(ids: list[int], tokenizer: Tokenizer, num_past: int, thinking: bool) -> list[tuple[int, int]]:
    """Where each assistant turn of a prompt begins, behind what the template opens it with, and ends, stop included.

    The first `num_past` of them stand behind an empty think block, as all do in instant mode. Text of users cannot
    forge a turn: only control ids count.
    """
    control = tokenizer.control_ids
    *begins, _ = (i for i, token in enumerate(ids) if token == control[IM_ASSISTANT])  # the last one opens the answer
    spans = []
    for number, begin in enumerate(begins):
        opened = control[THINK if thinking and number >= num_past else THINK_END]
        start = ids.index(opened, begin) + 1
        spans.append((start, ids.index(control[IM_END], start) + 1))
    return spans


def micro_batches(examples: list[Example], max_tokens: int, pad_id: int) -> list[Batch]:
    """Sort by length and cut, so that little padding is computed and no batch exceeds `max_tokens` positions.

    The longest come first: no thread is left alone with them at the end.
    """
    groups: list[list[Example]] = []
    for example in sorted(examples, key=lambda example: -example.length):
        if not groups or (len(groups[-1]) + 1) * groups[-1][0].length > max_tokens:
            groups.append([])
        groups[-1].append(example)
    return [collate(group, pad_id) for group in groups]


def collate(examples: list[Example], pad_id: int) -> Batch:
    longest = max(example.length for example in examples) - 1  # the last token is only a target
    num_read = longest - LEARNT_TOKENS if longest > LONGEST_WHOLE else 0
    shape = (len(examples), longest)
    input_ids, targets = torch.full(shape, pad_id), torch.full(shape, IGNORED)  # (B, T) (B, T)
    weights, valid = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)  # (B, T) (B, T)
    for row, example in enumerate(examples):
        ids, is_reply = torch.tensor(example.input_ids), torch.tensor(example.is_reply)  # (length) (length)
        is_reply[: num_read + 1] = False
        end = len(ids) - 1
        input_ids[row, :end] = ids[:-1]
        targets[row, :end] = ids[1:].where(is_reply[1:], IGNORED)
        # Between a mean per token and a mean per example: long workings matter more than short answers, not n times.
        weights[row, :end] = is_reply[1:] * is_reply.sum() ** -0.5
        valid[row, :end] = True
    pictures = [example for example in examples if example.pixel_values is not None]
    pixel_values = torch.from_numpy(np.concatenate([p.pixel_values for p in pictures])) if pictures else None
    grid_thws = torch.from_numpy(np.concatenate([p.grid_thws for p in pictures])) if pictures else None
    skills = [example.skill for example in examples]
    return Batch(input_ids, targets, weights, valid, pixel_values, grid_thws, skills, num_read)
