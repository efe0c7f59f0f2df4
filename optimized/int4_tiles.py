"""INT4 weights laid out for PyTorch's own CPU operator, for runs that compile nothing.

    weight (O, I/2) uint8      S outputs side by side: a byte holds output j of its tile low, output j + S/2 high
    scale  (g, O, 2)           scale and zero of each group, in the dtype of the run

S depends on the CPU and is found by looking. Weights are packed when they are loaded and never stored like this.
"""

import functools

import torch
from torch import Tensor

from reference.config import INT4_GROUP_SIZE
from reference.int4 import unpack

# n tokens   O outputs   I inputs   w words of a row: I/8   g groups of a row: I/32   S outputs of a tile   N tiles: O/S

ZERO = 8  # what a nibble holds for weight 0
FEW_TOKENS = 8  # of one expert, up to which the operator beats unpacking (docs/performance.md)


@functools.cache
def tile_size() -> int | None:
    """S of this CPU, found by packing a known pattern, or None where the operator lays its tiles in some other way."""
    pattern = (torch.arange(128 * INT4_GROUP_SIZE) * 7 % 16 - ZERO).view(128, -1)  # (128, 32), all sixteen values
    try:
        tiles = pack_tiles(pattern)
    except RuntimeError:
        return None  # not every build of PyTorch has the operator
    return next((size for size in (64, 32) if torch.equal(unpack_tiles(tiles, size), pattern)), None)


def pack_tiles(integers: Tensor) -> Tensor:
    """Integers -8 to 7, (O, I), to tiles (O, I/2) uint8 of this CPU."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu((integers + ZERO).to(torch.int32), 1)


def from_words(words: Tensor) -> Tensor:
    """Published words (O, w) to tiles (O, I/2)."""
    return pack_tiles(unpack(words))


def to_words(tiles: Tensor) -> Tensor:
    """Tiles (O, I/2) back to the published words (O, w)."""
    nibbles = _nibbles(tiles, tile_size())  # (N, I, S)
    pairs = nibbles[:, 0::2] | nibbles[:, 1::2] << 4  # (N, I/2, S), a byte of a word is a pair of columns
    return pairs.transpose(1, 2).flatten(0, 1).contiguous().view(torch.int32)  # (O, w)


def unpack_tiles(tiles: Tensor, size: int) -> Tensor:
    """Tiles (O, I/2) to integers -8 to 7, (O, I)."""
    return _nibbles(tiles, size).transpose(1, 2).flatten(0, 1).to(torch.int64) - ZERO  # (O, I)


def _nibbles(tiles: Tensor, size: int) -> Tensor:
    by_tile = tiles.view(-1, tiles.shape[1] * 2, size // 2)  # (N, I, S/2)
    return torch.cat([by_tile & 15, by_tile >> 4], dim=-1)  # (N, I, S)


def pack_scales(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Published scales (O, g) to (g, O, 2) of `dtype`: scale, and what the operator adds after it, which is nothing."""
    return torch.stack([scale, torch.zeros_like(scale)], dim=-1).transpose(0, 1).to(dtype).contiguous()  # (g, O, 2)


def unpack_scales(scales: Tensor) -> Tensor:
    """(g, O, 2) back to published scales (O, g) bfloat16."""
    return scales[..., 0].T.to(torch.bfloat16)  # (O, g)


def multiply(hidden: Tensor, tiles: Tensor, scales: Tensor, rounded: bool) -> Tensor:
    """hidden (n, I) times the weights of one expert's tiles (O, I/2), to (n, O)."""
    scales = scales.to(hidden.dtype)  # nothing to do unless the model was cast after it was loaded
    if len(hidden) <= FEW_TOKENS and not rounded and hidden.dtype != torch.float64:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(hidden, tiles, INT4_GROUP_SIZE, scales)  # (n, O)
    return hidden @ dense(tiles, scales, rounded)  # (n, O)


def dense(tiles: Tensor, scales: Tensor, rounded: bool) -> Tensor:
    """The weights as a matrix (I, O), which is how a product with tokens wants them, in the dtype of the scales."""
    dtype = torch.bfloat16 if rounded else scales.dtype
    nibbles = _nibbles(tiles, tile_size()).transpose(0, 1).flatten(1)  # (I, O)
    integers = (nibbles.to(dtype) - ZERO).unflatten(0, (-1, INT4_GROUP_SIZE))  # (g, 32, O)
    return (integers * scales[:, None, :, 0].to(dtype)).flatten(0, 1).to(scales.dtype)  # (I, O)
