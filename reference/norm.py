"""RMSNorm, the only normalisation of the text model."""

import torch
from torch import Tensor, nn


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype for statistics, scores and sums: float32 for bfloat16 and float32, float64 for a float64 run."""
    return torch.promote_types(dtype, torch.float32)


class RMSNorm(nn.Module):
    """Divide each vector by its root mean square, then scale each channel.

    Statistics in float32; the result is rounded to the input's dtype before `weight` multiplies it, as the published
    code does. Source: RMSNorm, arXiv 1910.07467, eq. 4.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.to(wide_dtype(hidden.dtype))
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * normed.to(hidden.dtype)
