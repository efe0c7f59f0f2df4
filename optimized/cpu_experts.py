"""What the experts' operators run on a CPU: the chosen experts one after the other, each over all of its tokens."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.int4 import dequantize
from reference.norm import wide_dtype

from .int4 import multiply_tiles

# n tokens   C hidden_size   K num_experts_per_tok   A assignments: n*K   E n_routed_experts   W moe_intermediate_size


def dense(tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    def expert(i: int, group: Tensor) -> Tensor:
        gate, up = F.linear(group, gate_up[i]).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, down[i])

    return _each_expert(tokens, weights, expert_ids, expert)


def int4(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor,
    down_scale: Tensor, rounded: bool,
) -> Tensor:  # fmt: skip
    def expert(i: int, group: Tensor) -> Tensor:
        gate, up = _int4_product(group, gate_up[i], gate_up_scale[i], rounded).chunk(2, dim=-1)
        return _int4_product(F.silu(gate) * up, down[i], down_scale[i], rounded)

    return _each_expert(tokens, weights, expert_ids, expert)


def _int4_product(hidden: Tensor, weight: Tensor, scale: Tensor, rounded: bool) -> Tensor:
    if weight.dtype == torch.uint8:
        return multiply_tiles(hidden, weight, scale, rounded)
    return F.linear(hidden, dequantize(weight, scale, "bfloat16" if rounded else "exact").to(hidden.dtype))


def _each_expert(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, expert: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Run `expert(i, its tokens)` for every expert that has tokens; weigh and sum in float32, rounded once."""
    in_order, order = expert_ids.flatten().sort(stable=True)  # (A) (A)
    chosen, loads = in_order.unique_consecutive(return_counts=True)
    groups = tokens[order // expert_ids.shape[-1]].split(loads.tolist())
    outputs = torch.cat([expert(i, group) for i, group in zip(chosen.tolist(), groups, strict=True)])  # (A, C)
    return weigh(outputs[order.argsort()], weights, tokens.dtype)


def weigh(outputs: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """outputs (A, C) in the order of the assignments, times weights (n, K), summed per token: (n, C)."""
    per_token = outputs.view(*weights.shape, -1).to(wide_dtype(dtype))  # (n, K, C)
    return (per_token * weights.unsqueeze(-1)).sum(dim=1).to(dtype)  # (n, C)
