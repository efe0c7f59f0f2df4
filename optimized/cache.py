"""The latent cache, preallocated: rows of sequences that grow in place, each at its own length.

One tensor per layer holds latent and rotary key side by side, (B, S, R+P), because decoding compares queries with both
at once. Slots beyond a row's length hold anything and are never looked at.
"""

import torch
from torch import Tensor

from reference.config import TextConfig
from reference.errors import UsageError

# B rows   T new tokens   S slots   R kv_lora_rank   P qk_rope_head_dim   s tokens of one row

FIRST_ROOM = 256
SLOT_STEP = 64  # decoding on a CPU looks at whole steps of slots


class LatentCache:
    """Has room for `num_tokens` per row; without that number it doubles whenever it is full.

    Written in place: for inference, where the reference's cache lets gradients pass. Raises UsageError for no room.
    """

    def __init__(
        self, config: TextConfig, batch_size: int, dtype: torch.dtype, device: torch.device | str,
        num_tokens: int | None = None,
    ):  # fmt: skip
        if num_tokens is not None and num_tokens < 1:
            raise UsageError(f"a cache of {num_tokens} tokens; expected at least 1. Without a number it grows.")
        self.grows, self.room = num_tokens is None, num_tokens or FIRST_ROOM
        # One step more than the room, so that no query ever looks at all slots: that would be another compiled graph.
        shape = (batch_size, self.room + SLOT_STEP, config.kv_lora_rank + config.qk_rope_head_dim)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)  # (B,) tokens in each row
        self.known_lengths = torch.zeros(batch_size, dtype=torch.int64)  # (B,) the same, known without asking a device

    @property
    def length(self) -> int:
        """Tokens in the longest row, left padding included."""
        return int(self.known_lengths.max())

    def rows(self, first: int, end: int) -> "LatentCache":
        """Rows `first` to `end` as a cache of their own that shares this one's memory; it cannot grow."""
        part = object.__new__(LatentCache)
        part.grows, part.room = False, self.room
        part.layers = [layer[first:end] for layer in self.layers]
        part.lengths, part.known_lengths = self.lengths[first:end], self.known_lengths[first:end]
        return part

    def reserve(self, num_new: int, num_rows: int) -> None:
        """Make sure that each of its `num_rows` rows can take `num_new` tokens.

        Raises UsageError if it has another number of rows, or if the room is fixed and used up.
        """
        if num_rows != len(self.lengths):
            raise UsageError(
                f"the cache has {len(self.lengths)} rows and the input {num_rows}; expected as many. Take some of its "
                f"rows, cache.rows(first, end), or make another cache, new_cache({num_rows})."
            )
        wanted = self.length + num_new
        if wanted > self.room and not self.grows:
            raise UsageError(
                f"the cache has room for {self.room} tokens, {self.length} are in it and {num_new} are to come; "
                "expected at most as many as it was made for. Make it larger: new_cache(batch_size, num_tokens)."
            )
        self.grow(wanted)

    def grow(self, num_tokens: int) -> None:
        """Give every row room for `num_tokens` in all."""
        if num_tokens > self.room:
            more = max(self.room, num_tokens - self.room)
            self.room += more
            self.layers = [torch.nn.functional.pad(layer, (0, 0, 0, more)) for layer in self.layers]

    def advance(self, num_new: int) -> None:
        """Count `num_new` tokens that every layer has written behind each row."""
        self.lengths += num_new
        self.known_lengths += num_new

    def keep_rows(self, rows: Tensor) -> None:
        """Drop every sequence that is not in `rows` (int64 indices)."""
        self.layers = [layer[rows] for layer in self.layers]
        self.lengths, self.known_lengths = self.lengths[rows], self.known_lengths[rows.cpu()]

    def keep_tokens(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens` of every row."""
        self.lengths.clamp_(max=num_tokens)
        self.known_lengths.clamp_(max=num_tokens)

    def read_row(self, row: int) -> list[Tensor]:
        """A copy of what a row holds: (s, R+P) per layer."""
        return [layer[row, : int(self.known_lengths[row])].clone() for layer in self.layers]

    def write_row(self, row: int, held: list[Tensor]) -> None:
        """Let a row hold what `read_row` gave, and nothing else."""
        num_tokens = len(held[0])
        for layer, tokens in zip(self.layers, held, strict=True):
            layer[row, :num_tokens] = tokens
        self.lengths[row] = self.known_lengths[row] = num_tokens

    def copy_row(self, source: int, target: int, num_tokens: int) -> None:
        """Let row `target` begin with the first `num_tokens` of row `source`, and with nothing else."""
        for layer in self.layers:
            layer[target, :num_tokens] = layer[source, :num_tokens]
        self.lengths[target] = self.known_lengths[target] = num_tokens

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


def write_tokens(layer: Tensor, lengths: Tensor, new: Tensor) -> None:
    """Put new (B, T, R+P) behind each row's length in layer (B, S, R+P)."""
    slots = lengths[:, None] + torch.arange(new.shape[1], device=new.device)  # (B, T)
    rows = torch.arange(new.shape[0], device=new.device)[:, None]  # (B, 1)
    # Not scatter_, which a compiled graph would turn into a copy of the whole layer and back.
    layer.index_put_((rows, slots), new)
