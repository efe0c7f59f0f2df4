"""INT4 weights that stay packed while they are multiplied: their two layouts, and a product for each.

The reference writes an expert's unpacked weights to memory and multiplies them from there: eight times the bytes in
float32. Here the nibbles are widened in registers, so a decoded token reads 4.5 bits a weight and nothing more.

    words   the published int32 words (O, I/8) and bfloat16 scales (O, I/32), read as they are
    tiles   what the CPU operator of PyTorch reads: S outputs side by side, uint8 (O, I/2), with the scale and zero of
            each group in the dtype of the run, (I/32, O, 2)

A CPU keeps tiles and lets the words go; `to_words` gives them back bit for bit. `optimized/moe.py` builds the operator.
"""

import functools

import torch
from torch import Tensor

from reference.config import INT4_GROUP_SIZE
from reference.int4 import pack

# n tokens   O outputs   I inputs   w words of a row: I/8   g groups of a row: I/32   S outputs of a tile   N tiles: O/S

ZERO = 8  # what a nibble holds for weight 0
# Up to here the operator that widens in registers wins; beyond, unpacking pays for itself (docs/performance.md).
FEW_TOKENS = 8


@functools.cache
def tile_size() -> int | None:
    """S of this CPU, found by packing a known pattern, or None where the operator lays its tiles in some other way."""
    pattern = (torch.arange(128 * INT4_GROUP_SIZE) * 7 % 16 - ZERO).view(128, -1)  # (128, 32), all sixteen values
    try:
        tiles = pack_tiles(pattern)
    except RuntimeError:
        return None  # not every build of PyTorch has the operator
    return next((size for size in (64, 32) if torch.equal(unpack_tiles(tiles, size), pattern)), None)


def fits_tiles(num_outputs: int, device: torch.device) -> bool:
    """Whether weights with this many outputs are kept as tiles on this device."""
    return device.type == "cpu" and tile_size() is not None and num_outputs % tile_size() == 0


def pack_tiles(integers: Tensor) -> Tensor:
    """Integers -8 to 7, (O, I), to tiles (O, I/2) uint8 of this CPU."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu((integers + ZERO).to(torch.int32), 1)


def unpack_tiles(tiles: Tensor, size: int) -> Tensor:
    """Tiles (O, I/2) back to integers (O, I): a byte has output j of its tile in the low half, j + S/2 in the high."""
    return _nibbles(tiles, size).transpose(1, 2).flatten(0, 1).to(torch.int64) - ZERO  # (O, I)


def _nibbles(tiles: Tensor, size: int) -> Tensor:
    by_tile = tiles.view(-1, tiles.shape[1] * 2, size // 2)  # (N, I, S/2)
    return torch.cat([by_tile & 15, by_tile >> 4], dim=-1)  # (N, I, S)


def to_words(tiles: Tensor) -> Tensor:
    """Tiles (O, I/2) to the published words (O, w)."""
    return pack(unpack_tiles(tiles, tile_size()))


def tile_scales(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Published scales (O, g) to (g, O, 2) of `dtype`: scale, and what the operator adds after it, which is nothing."""
    return torch.stack([scale, torch.zeros_like(scale)], dim=-1).transpose(0, 1).to(dtype).contiguous()  # (g, O, 2)


def multiply_tiles(hidden: Tensor, tiles: Tensor, scales: Tensor, rounded: bool) -> Tensor:
    """hidden (n, I) times the weights of tiles (O, I/2), to (n, O).

    rounded: integer * scale is rounded to bfloat16 first, as the published code does; otherwise it is exact.
    """
    if len(hidden) <= FEW_TOKENS and not rounded:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(hidden, tiles, INT4_GROUP_SIZE, scales)  # (n, O)
    return hidden @ dense_from_tiles(tiles, scales, rounded)  # (n, O)


def dense_from_tiles(tiles: Tensor, scales: Tensor, rounded: bool) -> Tensor:
    """The weights as a matrix (I, O), which is how a product with tokens wants them, in the dtype of the scales."""
    dtype = torch.bfloat16 if rounded else scales.dtype
    nibbles = _nibbles(tiles, tile_size()).transpose(0, 1).flatten(1)  # (I, O)
    integers = (nibbles.to(dtype) - ZERO).unflatten(0, (-1, INT4_GROUP_SIZE))  # (g, 32, O)
    return (integers * scales[:, None, :, 0].to(dtype)).flatten(0, 1).to(scales.dtype)  # (I, O)


def rounding_matters(scale: Tensor) -> bool:
    """Whether integer * scale needs more bits than bfloat16 has, for any integer of -8 to 7.

    They take 3 significant bits, bfloat16 has 8: scales of at most 5, which the shipped model has, never round.
    """
    return bool((scale.to(torch.bfloat16).view(torch.int16) & 0b111).any())
