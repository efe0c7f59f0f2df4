"""From drawn examples to padded batches: the real chat template, the real media pipeline, loss on the reply alone."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reference.chat_template import IM_END
from reference.prompt import Processor, Prompt
from tools.worlds.sample import Sample

# B examples   T tokens of the longest   L patches of all pictures   M pictures

IGNORED = -100  # target of a position without loss


@dataclass(frozen=True)
class Example:
    """Prompt and reply as ids."""

    prompt: Prompt
    reply: list[int]
    skill: str

    @property
    def length(self) -> int:
        return len(self.prompt.input_ids) + len(self.reply)


@dataclass(frozen=True)
class Batch:
    input_ids: Tensor  # (B, T) right-padded: causal attention never looks to the right, so no mask is needed
    targets: Tensor  # (B, T) the next token where it belongs to the reply, IGNORED elsewhere
    weights: Tensor  # (B, T) float32, loss weight of each position
    valid: Tensor  # (B, T) bool, False on padding
    pixel_values: Tensor | None  # (L, 3, 14, 14)
    grid_thws: Tensor | None  # (M, 3)
    skills: list[str]

    def to(self, device: str) -> "Batch":
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def encode_example(processor: Processor, sample: Sample) -> Example:
    """Render and encode one example. The reply is what the model itself would have to generate, stop token included."""
    tokenizer = processor.tokenizer
    prompt = processor.prompt(sample.messages, thinking=sample.thinking)
    reply = [*tokenizer.encode(sample.content), tokenizer.control_ids[IM_END]]
    if sample.thinking:
        reply = [*tokenizer.encode(sample.reasoning_content), tokenizer.control_ids["</think>"], *reply]
    return Example(prompt, reply, sample.skill)


def micro_batches(examples: list[Example], max_tokens: int, pad_id: int) -> list[Batch]:
    """Sort by length and cut, so that little padding is computed and no batch exceeds `max_tokens` positions."""
    groups: list[list[Example]] = []
    for example in sorted(examples, key=lambda example: example.length):
        if not groups or (len(groups[-1]) + 1) * example.length > max_tokens:
            groups.append([])
        groups[-1].append(example)
    return [collate(group, pad_id) for group in groups]


def collate(examples: list[Example], pad_id: int) -> Batch:
    longest = max(example.length for example in examples) - 1  # the last token is only a target
    shape = (len(examples), longest)
    input_ids, targets = torch.full(shape, pad_id), torch.full(shape, IGNORED)  # (B, T) (B, T)
    weights, valid = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)  # (B, T) (B, T)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.prompt.input_ids + example.reply)
        start, end = len(example.prompt.input_ids) - 1, len(ids) - 1
        input_ids[row, :end] = ids[:-1]
        targets[row, start:end] = ids[start + 1 :]
        # Between a mean per token and a mean per example: long workings matter more than short answers, not n times.
        weights[row, start:end] = len(example.reply) ** -0.5
        valid[row, :end] = True
    pictures = [example.prompt for example in examples if example.prompt.pixel_values is not None]
    pixel_values = torch.from_numpy(np.concatenate([p.pixel_values for p in pictures])) if pictures else None
    grid_thws = torch.from_numpy(np.concatenate([p.grid_thws for p in pictures])) if pictures else None
    return Batch(input_ids, targets, weights, valid, pixel_values, grid_thws, [example.skill for example in examples])
