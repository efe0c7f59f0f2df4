"""Batched generation: sequences of any length decode together, join and leave at any step, and share prefixes.

The reference pads a batch on the left and lets it run out. Here each sequence has a row of one preallocated cache and
its own length, so nothing is padded and a free row is filled at once. `generate` has the reference's signature.
"""

from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from reference.errors import UsageError
from reference.generation import Generated, room
from reference.prompt import Prompt
from reference.request import check_max_new_tokens
from reference.sampling import Sampler

from .cache import LatentCache

# R rows that run   T tokens of one prompt   V vocab_size

MAX_ROWS = 32


class Batch:
    """Up to `max_rows` sequences with up to `max_tokens` tokens each, or as many as come. `keys` names the row of each.

    A sequence that waits keeps its row; `bring_forward` moves those that run next to each other.
    """

    def __init__(self, model: torch.nn.Module, max_rows: int, max_tokens: int | None = None):
        self.model, self.max_rows = model, max_rows
        self.cache = model.new_cache(max_rows, max_tokens)
        self.keys: list[Hashable] = []
        self.ids: list[list[int]] = []  # what each row was fed by join and feed: its first tokens, at least

    def join(self, key: Hashable, prompt: Prompt) -> Tensor:
        """Take one more sequence and read its prompt; logits (V) of the token after it.

        What it shares with the beginning of a sequence that is here already is copied, not computed. Raises UsageError
        if all rows are in use, if the key is, or if the prompt is longer than a row.
        """
        shared, source = max(((self._shared(prompt.input_ids, ids), i) for i, ids in enumerate(self.ids)),
                             default=(0, 0))  # fmt: skip
        row = self._take_row(key)
        self.cache.copy_row(source, row, shared)
        return self._feed(row, prompt.input_ids, replace(prompt, input_ids=prompt.input_ids[shared:]))

    def come_back(self, key: Hashable, held: list[Tensor]) -> None:
        """Take a sequence that has been `set_aside`."""
        row = self._take_row(key)
        self.cache.grow(len(held[0]))
        self.cache.write_row(row, held)

    def feed(self, key: Hashable, ids: list[int], new: Prompt) -> Tensor:
        """Let a sequence become `ids`, of which `new` are the last and not in its row yet; logits (V) of the next."""
        row = self.keys.index(key)
        self.cache.rows(row, row + 1).keep_tokens(len(ids) - len(new.input_ids))
        return self._feed(row, ids, new)

    def step(self, tokens: Sequence[int], num_waiting: int = 0) -> Tensor:
        """Run the newest token of every row but the last `num_waiting`; logits (R, V) of the next.

        Raises UsageError if a token is missing.
        """
        if len(tokens) + num_waiting != len(self.keys):
            running = len(self.keys) - num_waiting
            raise UsageError(f"{len(tokens)} tokens for {running} sequences; expected one for each of `keys`.")
        input_ids = torch.tensor(tokens, device=self.cache.lengths.device).unsqueeze(-1)  # (R, 1)
        return self.model(input_ids, cache=self._rows(0, len(tokens), 1), last_only=True)[:, -1]

    def leave(self, key: Hashable) -> None:
        """Give the row of this sequence back; the last row moves into it, so that rows in use stay side by side."""
        row, last = self.keys.index(key), len(self.keys) - 1
        self.cache.copy_row(last, row, int(self.cache.known_lengths[last]))
        self.keys[row], self.ids[row] = self.keys[last], self.ids[last]
        self.keys.pop()
        self.ids.pop()

    def set_aside(self, key: Hashable) -> list[Tensor]:
        """Give the row of this sequence back; what it held, (s, R+P) per layer."""
        held = self.cache.read_row(self.keys.index(key))
        self.leave(key)
        return held

    def bring_forward(self, running: Container[Hashable]) -> None:
        """Exchange rows until those of the sequences that run come first."""
        first, last = 0, len(self.keys) - 1
        while True:
            while first < last and self.keys[first] in running:
                first += 1
            while first < last and self.keys[last] not in running:
                last -= 1
            if first >= last:
                return
            held = self.cache.read_row(first)
            self.cache.copy_row(last, first, int(self.cache.known_lengths[last]))
            self.cache.write_row(last, held)
            for names in (self.keys, self.ids):
                names[first], names[last] = names[last], names[first]

    def _take_row(self, key: Hashable) -> int:
        if key in self.keys:
            raise UsageError(f"key {key} names a sequence of the batch already. Choose another, or let that one leave.")
        if len(self.keys) == self.max_rows:
            raise UsageError(f"all {self.max_rows} rows of the batch are in use. Make it larger, or let one leave.")
        self.keys.append(key)
        self.ids.append([])
        return len(self.keys) - 1

    def _feed(self, row: int, ids: list[int], new: Prompt) -> Tensor:
        input_ids = torch.tensor([new.input_ids], device=self.cache.lengths.device)  # (1, T)
        pixels, grids = (self._tensor(array) for array in (new.pixel_values, new.grid_thws))
        cache = self._rows(row, row + 1, len(new.input_ids))
        logits = self.model(input_ids, pixel_values=pixels, grid_thws=grids, cache=cache, last_only=True)  # (1, 1, V)
        self.ids[row] = ids
        return logits[0, -1]

    def _rows(self, first: int, end: int, num_new: int) -> LatentCache:
        """These rows, with room for `num_new` tokens more, if there is no fixed end to it."""
        if self.cache.grows:
            self.cache.grow(int(self.cache.known_lengths[first:end].max()) + num_new)
        return self.cache.rows(first, end)

    def _shared(self, ids: list[int], others: list[int]) -> int:
        """How many first tokens are the same. Not the last one, whose logits are wanted, and no medium."""
        pairs = zip(ids[:-1], others, strict=False)
        placeholder = self.model.config.media_placeholder_token_id
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1] != placeholder, pairs))

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
