"""INT4 weights laid out for the C++ that Inductor generates: 64 outputs side by side, sixteen lanes of a register.

    weight (E, N, I/2, 16) int32   word l of tile n and column pair j: byte b belongs to output 64 n + 16 b + l, its low
                                   half to column 2j and its high half to column 2j + 1
    scale  (E, N, g, 4, 16) float32  of output 64 n + 16 b + l

A C++ loop then loads sixteen words, which are 128 weights, and every shift, mask and product is one instruction on all
lanes. Scales are widened because Inductor has no vector form for what would widen them in the loop: 5 bits a weight
instead of 4.5. docs/performance.md compares this with PyTorch's own operator and with what else was tried.
"""

import torch
from torch import Tensor

from reference.config import INT4_GROUP_SIZE

from .generated import generated
from .int4_words import round_to_bfloat16

# A assignments   n tokens   E n_routed_experts   O outputs   I inputs   N tiles: O/64   g groups of a row: I/32
# w words of a row: I/8

LANES, BYTES = 16, 4  # int32 numbers of a register of 512 bits, bytes of one of them
TILE = LANES * BYTES
PAIRS = INT4_GROUP_SIZE // 2
CACHED_WEIGHTS = 2**22  # unpacked at a time
ZERO = 8  # what a nibble holds for weight 0


def pack_lanes(words: Tensor) -> Tensor:
    """Published words (O, w) to lanes (N, I/2, 16). A byte of a word already is a pair of columns."""
    by_tile = words.view(torch.uint8).unflatten(0, (-1, BYTES, LANES))  # (N, 4, 16, I/2)
    return by_tile.permute(0, 3, 2, 1).contiguous().view(torch.int32).squeeze(-1)  # (N, I/2, 16)


def unpack_lanes(lanes: Tensor) -> Tensor:
    """Lanes (N, I/2, 16) back to published words (O, w)."""
    by_tile = lanes.unsqueeze(-1).view(torch.uint8)  # (N, I/2, 16, 4)
    return by_tile.permute(0, 3, 2, 1).flatten(0, 2).contiguous().view(torch.int32)  # (O, w)


def pack_scales(scale: Tensor) -> Tensor:
    """Published scales (O, g) bfloat16 to lanes (N, g, 4, 16) float32."""
    return scale.float().unflatten(0, (-1, BYTES, LANES)).permute(0, 3, 1, 2).contiguous()


def unpack_scales(lanes: Tensor) -> Tensor:
    """Lanes (N, g, 4, 16) back to published scales (O, g) bfloat16."""
    return lanes.to(torch.bfloat16).permute(0, 2, 3, 1).flatten(0, 2)


def gathered_matvec(hidden: Tensor, weight: Tensor, scale: Tensor, expert_ids: Tensor, rounded: bool) -> Tensor:
    """Row a of hidden (A, I) times the weights of expert expert_ids[a]: (A, O) float32, one pass over its words."""
    words = weight[expert_ids].unflatten(2, (-1, PAIRS))  # (A, N, g, 16, 16)
    factors = scale[expert_ids].unsqueeze(3).unbind(4)  # four of (A, N, g, 1, 16)
    columns = hidden.float().unflatten(-1, (-1, PAIRS, 2))[:, None, ..., None]  # (A, 1, g, 16, 2, 1)
    low, high = columns.unbind(-2)  # (A, 1, g, 16, 1) (A, 1, g, 16, 1)
    # Stacked, because Inductor's C++ writes a concatenation to memory: otherwise every tile would compute them again.
    low, high, eights = torch.stack([low, high, ZERO * (low + high)])  # three times (A, 1, g, 16, 1)
    outputs = []
    for i, factor in enumerate(factors):
        first, second = (words >> 8 * i & 15).float(), (words >> 8 * i + 4 & 15).float()  # (A, N, g, 16, 16) twice
        if rounded:
            first, second = (round_to_bfloat16((half - ZERO) * factor) for half in (first, second))
            total = first * low + second * high  # (A, N, g, 16, 16)
        else:  # the eights are taken off once for both
            total = (first * low + second * high - eights) * factor  # (A, N, g, 16, 16)
        outputs.append(total.sum((2, 3)))  # (A, N, 16)
    return torch.stack(outputs, dim=2).flatten(1)


def multiply(hidden: Tensor, weight: Tensor, scale: Tensor, rounded: bool) -> Tensor:
    """hidden (n, I) times the weights of one expert: (n, O), some tiles at a time, so that they stay in the cache."""
    num_tiles = max(1, CACHED_WEIGHTS // (TILE * hidden.shape[-1]))
    parts = zip(weight.split(num_tiles), scale.split(num_tiles), strict=True)
    return torch.cat([hidden @ generated(dense)(*part, rounded, hidden.dtype) for part in parts], dim=-1)


def dense(weight: Tensor, scale: Tensor, rounded: bool, dtype: torch.dtype) -> Tensor:
    """The weights of some tiles as a matrix (I, O), which is how a product with many tokens wants them."""
    words = weight.unflatten(1, (-1, PAIRS))[:, :, :, None, None]  # (N, g, 16, 1, 1, 16)
    shifts = torch.tensor([[[0], [8], [16], [24]], [[4], [12], [20], [28]]], dtype=torch.int32)  # (2, 4, 1)
    part = ((words >> shifts & 15).float() - ZERO) * scale[:, :, None, None]  # (N, g, 16, 2, 4, 16)
    part = (round_to_bfloat16(part) if rounded else part).to(dtype)  # (N, g, 16, 2, 4, 16)
    return part.permute(1, 2, 3, 0, 4, 5).flatten(0, 2).flatten(1)  # (I, O)
