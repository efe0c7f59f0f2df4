"""What the experts' operators run on CUDA: kernels that Inductor generates, without one question to the device.

Nothing here waits for the routing: every shape is known before it, so the host runs ahead and CUDA graphs can record.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu_experts import weigh
from .int4_words import BLOCK_ROWS, gathered_matvec, grouped_product, make_blocks

# n tokens   C hidden_size   K num_experts_per_tok   A assignments: n*K   E n_routed_experts   W moe_intermediate_size
# w words of a row: I/8   g groups of a row: I/32   b blocks   R rows of a block

GATHERED = 64  # up to so many assignments each one reads its expert by itself; beyond, they are sorted


def compiled(function: Callable) -> Callable:
    """One kernel per matrix, the activation and the sum fused into them; native_matmul lets dequantisation fuse too."""
    if function not in _COMPILED:
        _COMPILED[function] = torch.compile(function, fullgraph=True, options={"triton.native_matmul": True})
    return _COMPILED[function]


_COMPILED: dict[Callable, Callable] = {}


def dense(tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`kimi::dense_experts`: each assignment gathers its expert, or sorted blocks do."""
    flat = expert_ids.flatten()  # (A)
    rows = tokens.repeat_interleave(expert_ids.shape[-1], dim=0)  # (A, C)
    if len(flat) <= GATHERED:
        gate, up = (gate_up[flat].float() * rows[:, None].float()).sum(-1).chunk(2, dim=-1)  # (A, W) (A, W)
        hidden = (F.silu(gate) * up).to(tokens.dtype)  # (A, W)
        return weigh((down[flat].float() * hidden[:, None].float()).sum(-1), weights, tokens.dtype)
    blocks, slot, block_expert = _to_blocks(rows, flat, len(gate_up))
    gate, up = torch.bmm(blocks, gate_up[block_expert].transpose(1, 2)).chunk(2, dim=-1)
    outputs = torch.bmm(F.silu(gate) * up, down[block_expert].transpose(1, 2))  # (b, R, C)
    return weigh(outputs.flatten(0, 1)[slot], weights, tokens.dtype)


def int4(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor,
    down_scale: Tensor, rounded: bool,
) -> Tensor:  # fmt: skip
    """`kimi::int4_experts` on words."""
    flat = expert_ids.flatten()  # (A)
    rows = tokens.repeat_interleave(expert_ids.shape[-1], dim=0)  # (A, C)
    if len(flat) <= GATHERED:
        gate, up = gathered_matvec(rows, gate_up, gate_up_scale, flat, rounded).chunk(2, dim=-1)  # (A, W) (A, W)
        hidden = (F.silu(gate) * up).to(tokens.dtype)  # (A, W)
        return weigh(gathered_matvec(hidden, down, down_scale, flat, rounded), weights, tokens.dtype)
    blocks, slot, block_expert = _to_blocks(rows, flat, len(gate_up))
    gate, up = grouped_product(blocks, gate_up, gate_up_scale, block_expert, rounded).chunk(2, dim=-1)
    outputs = grouped_product(F.silu(gate) * up, down, down_scale, block_expert, rounded)  # (b, R, C)
    return weigh(outputs.flatten(0, 1)[slot], weights, tokens.dtype)


def _to_blocks(rows: Tensor, expert_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """rows (A, C) sorted into blocks (b, R, C), the slot (A,) of each, and the expert (b,) of each block."""
    slot, block_expert = make_blocks(expert_ids, num_experts)
    padded = rows.new_zeros(len(block_expert) * BLOCK_ROWS, rows.shape[1]).index_copy(0, slot, rows)
    return padded.unflatten(0, (-1, BLOCK_ROWS)), slot, block_expert
