"""INT4 weights in the published `pack-quantized` format, bit by bit.

32 neighbouring input columns of one output row are a group. A group has one scale, and each of its weights is an
integer q from -8 to 7:   weight = q * scale.   Stored are

    weight_packed  int32 (out, in/8)   eight weights a word, first column in the lowest four bits, as q + 8 (0 to 15)
    weight_scale   bf16  (out, in/32)
    weight_shape   int32 (2,)          (out, in)

so q = -8, -7, ..., -1 packs to 0x76543210 and q = 0, 1, ..., 7 to 0xFEDCBA98. The nibbles are offset binary. Reading
them as two's complement (nibbles above 7 as nibble - 16) is the usual mistake, and its result is noise.
4.5 bits a weight in all. Source: compressed-tensors, `pack_quantized`; Kimi K2 Thinking model card (INT4 by
quantisation-aware training).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import INT4_GROUP_SIZE

# O output rows   I input columns   g groups of a row: I/32   w words of a row: I/8

WEIGHTS_PER_WORD = 8
PRODUCTS = ("bfloat16", "exact")


def group_scales(weight: Tensor) -> Tensor:
    """Scale of each group, (O, I) to (O, g), in the weight's dtype.

    The 16 integers span 15 steps, so the largest magnitude lies at 7.5 of them.
    """
    largest = weight.unflatten(-1, (-1, INT4_GROUP_SIZE)).abs().amax(dim=-1)  # (O, g)
    scale = largest / 7.5  # (O, g)
    return torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)  # (O, g)


def round_to_int4(weight: Tensor, scale: Tensor) -> Tensor:
    """Nearest integers, (O, I), halves to even, held in -8 to 7; in the weight's dtype."""
    groups = weight.unflatten(-1, (-1, INT4_GROUP_SIZE)) / scale[..., None]  # (O, g, 32)
    return groups.round().clamp(-8, 7).flatten(-2)  # (O, I)


def pack(integers: Tensor) -> Tensor:
    """Integers -8 to 7, (O, I), to int32 words, (O, w)."""
    nibbles = (integers.to(torch.int64) + 8).unflatten(-1, (-1, WEIGHTS_PER_WORD))  # (O, w, 8)
    words = (nibbles << _shifts(integers.device)).sum(dim=-1)  # (O, w), unsigned 32 bits in an int64
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)  # (O, w)


def unpack(words: Tensor) -> Tensor:
    """int32 words, (O, w), to int32 integers -8 to 7, (O, I)."""
    # The shift repeats the sign bit of a negative word; the mask removes those copies.
    nibbles = (words[..., None] >> _shifts(words.device).to(torch.int32)) & 15  # (O, w, 8)
    return nibbles.flatten(-2) - 8  # (O, I)


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(0, 32, 4, device=device)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A dense weight (O, I) to words (O, w) and scales (O, g). I must be a multiple of 32."""
    scale = group_scales(weight)  # (O, g)
    return pack(round_to_int4(weight, scale)), scale


def dequantize(words: Tensor, scale: Tensor, product: str = "bfloat16") -> Tensor:
    """Words (O, w) and scales (O, g) to a dense weight (O, I).

    product "bfloat16": q * scale in the scale's dtype. In bfloat16 this rounds 23 % of the products of normally
    distributed weights (37 % where all codes are equally likely). The published code and the stock libraries do this,
    so it is the default everywhere.
    product "exact": q * scale in float32, without rounding.
    """
    if product == "exact":
        scale = scale.float()  # (O, g)
    groups = unpack(words).to(scale.dtype).unflatten(-1, (-1, INT4_GROUP_SIZE))  # (O, g, 32)
    return (groups * scale[..., None]).flatten(-2)  # (O, I)


class Int4Linear(nn.Module):
    """A linear map without bias whose weight stays packed in memory and is dequantised on use."""

    def __init__(self, in_features: int, out_features: int, device: torch.device | str | None = None):
        super().__init__()
        self.product = "bfloat16"
        words, groups = in_features // WEIGHTS_PER_WORD, in_features // INT4_GROUP_SIZE
        shape = torch.tensor([out_features, in_features], dtype=torch.int32, device=device)
        self.register_buffer("weight_packed", torch.empty(out_features, words, dtype=torch.int32, device=device))
        self.register_buffer("weight_scale", torch.empty(out_features, groups, dtype=torch.bfloat16, device=device))
        self.register_buffer("weight_shape", shape)

    def forward(self, hidden: Tensor) -> Tensor:
        weight = dequantize(self.weight_packed, self.weight_scale, self.product).to(hidden.dtype)  # (O, I)
        return F.linear(hidden, weight)


def set_int4_product(model: nn.Module, product: str) -> None:
    """Choose the product convention of `dequantize` for every module of a model that multiplies INT4 weights."""
    assert product in PRODUCTS, product
    for module in model.modules():
        if hasattr(module, "product"):
            module.product = product
