"""Products of one token with a weight matrix, which decoding consists of.

A matrix library is made for many tokens; for one, on the CPUs measured, it reads weights at half the speed of memory.
Spelled as a sum of products, Inductor generates a loop over rows that reads them at nearly all of it, and fuses what
stands before and behind (docs/performance.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference import router
from reference.norm import wide_dtype

# I inputs   O outputs   T tokens   C hidden_size   E n_routed_experts


class Linear(nn.Linear):
    """nn.Linear, with one token spelled as a sum where it is compiled for a CPU."""

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (..., I) to (..., O)."""
        return product(hidden, self.weight, hidden.dtype)


class Router(router.Router):
    def _logits(self, hidden: Tensor) -> Tensor:
        return product(hidden, self.weight, wide_dtype(hidden.dtype))  # (T, E)


def product(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """hidden (..., I) times weight (O, I), computed in `dtype` or wider and rounded to it once: (..., O)."""
    is_one_token = hidden.numel() == hidden.shape[-1]
    if torch.compiler.is_compiling() and is_one_token and not hidden.is_cuda:
        row = in_memory(hidden.flatten())  # (I)
        rows = (weight.to(wide_dtype(dtype)) * row.to(wide_dtype(dtype))).sum(-1)  # (O)
        return rows.to(dtype).view(*hidden.shape[:-1], -1)  # (..., O)
    return F.linear(hidden.to(dtype), weight.to(dtype))  # (..., O)


def in_memory(tensor: Tensor) -> Tensor:
    """The same tensor, which Inductor's C++ writes to memory before anything reads it.

    It does so with a concatenation of two that differ. What stands before a product, a norm for example, would
    otherwise be computed again for every row of the weight.
    """
    first, _ = torch.stack([tensor, -tensor])
    return first


def use_fast_linears(model: nn.Module) -> None:
    """Replace every plain nn.Linear without bias in a model that is built; parameters and their names stay."""
    for module in model.modules():
        if type(module) is nn.Linear and module.bias is None:
            module.__class__ = Linear
