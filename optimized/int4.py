"""INT4 weights that stay packed while they are multiplied, in one of three layouts.

The reference writes an expert's unpacked weights to memory and multiplies them from there: eight times the bytes in
float32. Here the nibbles are widened in registers, so a decoded token reads little more than the packed weights.

    words   as published; what CUDA reads                                          int4_words.py
    tiles   for PyTorch's CPU operator: nothing has to be compiled                 int4_tiles.py
    lanes   for C++ that Inductor generates: all experts of a token in one loop    int4_lanes.py

A CPU keeps tiles, or lanes once the model is compiled, and lets the words go; `published` gives them back bit for bit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.config import INT4_GROUP_SIZE
from reference.int4 import WEIGHTS_PER_WORD, dequantize

from . import int4_lanes, int4_tiles
from .capability import int4_layout

# n tokens   E n_routed_experts   O outputs   I inputs   w words of a row: I/8   g groups of a row: I/32


class Int4Stack(nn.Module):
    """The INT4 linears of one shape of all experts of a layer: words, until a CPU lays them out for its products."""

    def __init__(self, num_experts: int, num_outputs: int, num_inputs: int):
        super().__init__()
        words = torch.empty(num_experts, num_outputs, num_inputs // WEIGHTS_PER_WORD, dtype=torch.int32)
        scale = torch.empty(num_experts, num_outputs, num_inputs // INT4_GROUP_SIZE, dtype=torch.bfloat16)
        self.register_buffer("weight", words, persistent=False)  # (E, O, w), or one of the other layouts per expert
        self.register_buffer("scale", scale, persistent=False)  # (E, O, g), the same
        self.num_outputs, self.may_round = num_outputs, True

    def take(self, words: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        """Keep words (E, O, w) and scale (E, O, g), on a CPU as tiles, for runs in `dtype`."""
        self.may_round = rounding_matters(scale)
        if int4_layout(self.num_outputs, words.device, may_generate=False) == "tiles":
            words = torch.stack([int4_tiles.from_words(expert) for expert in words])  # (E, O, I/2) uint8
            scale = torch.stack([int4_tiles.pack_scales(expert, dtype) for expert in scale])  # (E, g, O, 2)
        self.weight, self.scale = words, scale

    def use_lanes(self) -> None:
        """Lay the weights out for generated C++, if there are outputs enough to fill it and this is a CPU."""
        wanted = int4_layout(self.num_outputs, self.weight.device, may_generate=True)
        if wanted == "lanes" != self.layout:
            stacks = [self.published(i) for i in range(len(self.weight))]
            self.weight = torch.stack([int4_lanes.pack_lanes(words) for words, _ in stacks])  # (E, N, I/2, 16) int32
            self.scale = torch.stack([int4_lanes.pack_scales(scale) for _, scale in stacks])  # (E, N, g, 4, 16)

    @property
    def layout(self) -> str:
        return layout(self.weight[0])

    def published(self, expert: int) -> tuple[Tensor, Tensor]:
        """Words (O, w) and bfloat16 scales (O, g) of one expert, bit for bit as they came."""
        weight, scale = self.weight[expert], self.scale[expert]
        if layout(weight) == "words":
            return weight, scale
        if layout(weight) == "tiles":
            return int4_tiles.to_words(weight), int4_tiles.unpack_scales(scale)
        return int4_lanes.unpack_lanes(weight), int4_lanes.unpack_scales(scale)


def layout(weight: Tensor) -> str:
    """Which layout the weight of one expert has: "words", "tiles" or "lanes"."""
    if weight.dtype == torch.uint8:
        return "tiles"
    return "lanes" if weight.dim() == 3 else "words"


def num_inputs(weight: Tensor) -> int:
    """I of the weight of one expert, in any layout."""
    return weight.shape[1] * {"words": WEIGHTS_PER_WORD, "tiles": 2, "lanes": 2}[layout(weight)]


def multiply(hidden: Tensor, weight: Tensor, scale: Tensor, rounded: bool) -> Tensor:
    """hidden (n, I) times the weights of one expert in any layout, to (n, O).

    rounded: integer * scale is rounded to bfloat16 first, as the published code does; otherwise it is exact.
    """
    if layout(weight) == "tiles":
        return int4_tiles.multiply(hidden, weight, scale, rounded)
    if layout(weight) == "lanes":
        return int4_lanes.multiply(hidden, weight, scale, rounded)
    return F.linear(hidden, dequantize(weight, scale, "bfloat16" if rounded else "exact").to(hidden.dtype))  # (n, O)


def rounding_matters(scale: Tensor) -> bool:
    """Whether integer * scale needs more bits than bfloat16 has, for any integer of -8 to 7.

    They take 3 significant bits, bfloat16 has 8: scales of at most 5, which the shipped model has, never round.
    """
    return bool((scale.to(torch.bfloat16).view(torch.int16) & 0b111).any())
