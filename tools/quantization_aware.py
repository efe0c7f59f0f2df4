"""Quantisation-aware training: the forward pass sees INT4 weights, the gradient passes straight through.

A parametrisation on the routed experts' linears of the reference model; no layer is defined a second time. Scales keep
five significant bits, so that integer * scale is exact in bfloat16 (a magnitude up to 7 has three, and 3 + 5 are its
8; that of -8 has one) and every engine's rounding convention gives the same weights.
Source: Kimi K2 Thinking model card; straight-through estimator, arXiv 1308.3432.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reference.int4 import group_scales, pack, round_to_int4
from reference.model import routed_linears

# O output rows   I input columns   g groups of a row: I/32

SCALE_BITS = 5


def coarse_scales(weight: Tensor) -> Tensor:
    """Group scales (O, g) rounded to SCALE_BITS significant bits."""
    mantissa, exponent = torch.frexp(group_scales(weight.float()))  # (O, g) (O, g)
    steps = 2.0**SCALE_BITS
    return torch.ldexp((mantissa * steps).round() / steps, exponent)  # (O, g)


def quantize_coarsely(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Dense weight (O, I) to packed words and bfloat16 scales: what `FakeInt4` computes with, as it is stored."""
    scale = coarse_scales(weight)  # (O, g)
    return pack(round_to_int4(weight.float(), scale)), scale.to(torch.bfloat16)


class FakeInt4(nn.Module):
    """weight to the nearest INT4 weight; its gradient is the gradient of the weight itself. Inactive: the weight."""

    active = True

    def forward(self, weight: Tensor) -> Tensor:
        if not self.active:
            return weight  # (O, I)
        with torch.no_grad():
            scale = coarse_scales(weight)  # (O, g)
            integers = round_to_int4(weight, scale).unflatten(-1, (scale.shape[-1], -1))  # (O, g, 32)
            nearest = (integers * scale[..., None]).flatten(-2)  # (O, I)
        return weight + (nearest - weight).detach()  # (O, I)


def fake_quantize(model: nn.Module) -> None:
    """Let every routed expert of `model` compute with INT4 weights while training."""
    for name in routed_linears(model):
        parametrize.register_parametrization(model.get_submodule(name), "weight", FakeInt4())


def set_active(model: nn.Module, active: bool) -> None:
    for module in model.modules():
        if isinstance(module, FakeInt4):
            module.active = active
