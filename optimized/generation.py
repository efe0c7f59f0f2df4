"""Batched generation: sequences of any length decode together, join and leave at any step, and share prefixes.

The reference pads a batch on the left and lets it run out. Here each sequence has a row of one preallocated cache and
its own length, so nothing is padded and a free row is filled at once. `generate` has the reference's signature.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from reference.errors import UsageError
from reference.generation import Generated, room
from reference.prompt import Prompt
from reference.request import check_max_new_tokens
from reference.sampling import Sampler

# R rows in use   T tokens of one prompt   V vocab_size

MAX_ROWS = 32


class Batch:
    """Up to `max_rows` sequences with up to `max_tokens` tokens each. `keys` names the row of each, in order."""

    def __init__(self, model: torch.nn.Module, max_rows: int, max_tokens: int):
        self.model, self.max_rows = model, max_rows
        self.cache = model.new_cache(max_rows, max_tokens)
        self.keys: list[int] = []
        self.prompts: list[Prompt] = []

    def join(self, key: int, prompt: Prompt) -> Tensor:
        """Take one more sequence and read its prompt; logits (V) of the token after it.

        What it shares with the beginning of a sequence that is here already is copied, not computed. Raises UsageError
        if all rows are in use, if the key is, or if the prompt is longer than a row.
        """
        row = len(self.keys)
        if key in self.keys:
            raise UsageError(f"key {key} names a sequence of the batch already. Choose another, or let that one leave.")
        if row == self.max_rows:
            raise UsageError(f"all {self.max_rows} rows of the batch are in use. Make it larger, or let one leave.")
        shared, source = max(((self._shared(prompt, other), i) for i, other in enumerate(self.prompts)), default=(0, 0))
        self.cache.copy_row(source, row, shared)
        input_ids = torch.tensor([prompt.input_ids[shared:]], device=self.cache.lengths.device)  # (1, T)
        pixels, grids = (self._tensor(array) for array in (prompt.pixel_values, prompt.grid_thws))
        logits = self.model(
            input_ids, pixel_values=pixels, grid_thws=grids, cache=self.cache.rows(row, row + 1), last_only=True
        )  # (1, 1, V)
        self.keys.append(key)
        self.prompts.append(prompt)
        return logits[0, -1]

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Run the newest token of every row; logits (R, V) of the next. Raises UsageError if a token is missing."""
        if len(tokens) != len(self.keys):
            raise UsageError(f"{len(tokens)} tokens for {len(self.keys)} sequences; expected one for each of `keys`.")
        input_ids = torch.tensor(tokens, device=self.cache.lengths.device).unsqueeze(-1)  # (R, 1)
        return self.model(input_ids, cache=self.cache.rows(0, len(tokens)), last_only=True)[:, -1]

    def leave(self, key: int) -> None:
        """Give the row of this sequence back; the last row moves into it, so that rows in use stay side by side."""
        row, last = self.keys.index(key), len(self.keys) - 1
        self.cache.copy_row(last, row, int(self.cache.known_lengths[last]))
        self.keys[row], self.prompts[row] = self.keys[last], self.prompts[last]
        self.keys.pop()
        self.prompts.pop()

    def _shared(self, prompt: Prompt, other: Prompt) -> int:
        """How many first tokens are the same. Not the last one, whose logits are wanted, and no medium."""
        longest = len(prompt.input_ids) - 1
        if prompt.pixel_values is not None or other.pixel_values is not None:
            placeholder = self.model.config.media_placeholder_token_id
            media = (i for i, token in enumerate(prompt.input_ids) if token == placeholder)
            longest = min(longest, next(media, longest))
        pairs = zip(prompt.input_ids[:longest], other.input_ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _tensor(self, array: np.ndarray | None) -> Tensor | None:
        return None if array is None else torch.from_numpy(array).to(self.cache.lengths.device)


@torch.inference_mode()
def generate(
    model: torch.nn.Module, prompts: Sequence[Prompt], *, max_new_tokens: int, temperature: float, top_p: float,
    seed: int | Sequence[int], stop_ids: Iterable[int], on_token: Callable[[int, int], None] | None = None,
    max_rows: int = MAX_ROWS,
) -> list[Generated]:  # fmt: skip
    """As reference.generation.generate; at most max_rows prompts run at a time, the others wait for a free row."""
    check_max_new_tokens(max_new_tokens)
    if max_rows < 1:
        raise UsageError(f"max_rows is {max_rows}; expected at least one row to run a prompt in.")
    context = model.config.text.max_position_embeddings
    limits = [min(max_new_tokens, room(len(prompt.input_ids), context)) for prompt in prompts]
    sampler = Sampler(temperature, top_p, [seed] * len(prompts) if isinstance(seed, int) else seed)
    results, stop_ids = [Generated() for _ in prompts], frozenset(stop_ids)
    if not prompts:
        return results
    longest = max(len(prompt.input_ids) + limit for prompt, limit in zip(prompts, limits, strict=True))
    batch = Batch(model, min(max_rows, len(prompts)), longest)
    newest: dict[int, int] = {}  # the last token of each sequence that runs

    def accept(key: int, token: int) -> None:
        """Keep a sampled token, or end the sequence."""
        if token in stop_ids:
            results[key].finish_reason = "stop"
        else:
            results[key].ids.append(token)
            if on_token:
                on_token(key, token)
            newest[key] = token
        if token in stop_ids or len(results[key].ids) == limits[key]:
            newest.pop(key, None)
            batch.leave(key)

    waiting = list(range(len(prompts)))
    while waiting or newest:
        while waiting and len(batch.keys) < batch.max_rows:
            key = waiting.pop(0)
            logits = batch.join(key, prompts[key])  # (V)
            accept(key, sampler.sample(logits[None], [key])[0])
        if newest:
            keys = list(batch.keys)
            sampled = sampler.sample(batch.step([newest[key] for key in keys]), keys)
            for key, token in zip(keys, sampled, strict=True):
                accept(key, token)
    return results
