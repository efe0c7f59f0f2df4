"""SwiGLU, the one feed-forward network: the dense layer, each routed expert and the shared expert are this class."""

import torch.nn.functional as F
from torch import Tensor, nn

# T tokens   C hidden_size   W width: intermediate_size, or moe_intermediate_size in an expert


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)). Source: GLU variants, arXiv 2002.05202, eq. 6."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (..., C) to (..., C)."""
        gated = F.silu(self.gate_proj(hidden)) * self.up_proj(hidden)  # (..., W)
        return self.down_proj(gated)  # (..., C)
