"""What the experts' operators run on a CPU.

A few tokens: one generated loop over the chosen experts' weights. Many tokens, or no compiler: the chosen experts one
after the other, each over all of its tokens.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.norm import wide_dtype

from . import capability, int4_lanes
from .generated import generated, varying
from .int4 import layout, multiply, num_inputs
from .linear import in_memory

# n tokens   C hidden_size   K num_experts_per_tok   A assignments: n*K   E n_routed_experts   W moe_intermediate_size
# m rows of one expert   O outputs   I inputs

Product = Callable[[int, Tensor, Tensor], object]  # the expert, its rows (m, I), where its outputs (m, O) go


def dense(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor, may_generate: bool
) -> Tensor:
    if may_generate and expert_ids.numel() <= capability.GATHER_DENSE * len(gate_up):
        rows = (varying(tensor, 0) for tensor in (tokens, weights, expert_ids))
        return generated(gathered_dense)(*rows, gate_up, down)

    def product(stack: Tensor) -> Product:
        return lambda i, group, out: torch.mm(group, stack[i].T, out=out)

    return _each_expert(tokens, weights, expert_ids, product(gate_up), product(down), gate_up.shape[1], may_generate)


def gathered_dense(tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`kimi::dense_experts` of a few tokens."""
    flat = expert_ids.flatten()  # (A)
    rows = tokens.repeat_interleave(expert_ids.shape[-1], dim=0)  # (A, C)
    hidden = activate(_matvec(rows, gate_up, flat))  # (A, W)
    return weigh(_matvec(hidden, down, flat), weights, tokens.dtype)


def _matvec(hidden: Tensor, weight: Tensor, expert_ids: Tensor) -> Tensor:
    """Row a of hidden (A, I) times the weights (O, I) of expert expert_ids[a]: (A, O)."""
    row = in_memory(hidden[:, None]).float()  # (A, 1, I)
    return (weight[expert_ids].float() * row).sum(-1).to(hidden.dtype)  # (A, O)


def int4(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor,
    down_scale: Tensor, rounded: bool,
) -> Tensor:  # fmt: skip
    in_lanes = layout(gate_up[0]) == layout(down[0]) == "lanes"
    if in_lanes and expert_ids.numel() <= capability.GATHER_INT4 * len(gate_up):
        rows = (varying(tensor, 0) for tensor in (tokens, weights, expert_ids))
        return generated(gathered_int4)(*rows, gate_up, gate_up_scale, down, down_scale, rounded)

    def product(stack: Tensor, scale: Tensor) -> Product:
        return lambda i, group, out: out.copy_(multiply(group, stack[i], scale[i], rounded))

    both = product(gate_up, gate_up_scale), product(down, down_scale)
    return _each_expert(tokens, weights, expert_ids, *both, 2 * num_inputs(down[0]), in_lanes)


def gathered_int4(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor,
    down_scale: Tensor, rounded: bool,
) -> Tensor:  # fmt: skip
    """`kimi::int4_experts` of a few tokens, on lanes."""
    flat = expert_ids.flatten()  # (A)
    rows = tokens.repeat_interleave(expert_ids.shape[-1], dim=0)  # (A, C)
    gate_and_up = int4_lanes.gathered_matvec(rows, gate_up, gate_up_scale, flat, rounded)  # (A, 2W)
    hidden = activate(gate_and_up).to(tokens.dtype)  # (A, W)
    return weigh(int4_lanes.gathered_matvec(hidden, down, down_scale, flat, rounded), weights, tokens.dtype)


def _each_expert(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Product, down: Product, width: int, may_generate: bool
) -> Tensor:
    """Run both products for every expert that has tokens, and all else for all at once. width: 2W."""
    in_order, order = expert_ids.flatten().sort(stable=True)  # (A) (A)
    chosen, loads = (tensor.tolist() for tensor in in_order.unique_consecutive(return_counts=True))

    def products(product: Product, rows: Tensor, num_outputs: int) -> Tensor:
        outputs = rows.new_empty(len(rows), num_outputs)
        for i, group, out in zip(chosen, rows.split(loads), outputs.split(loads), strict=True):
            product(i, group, out)
        return outputs

    activation, weighing = (generated(f) if may_generate else f for f in (activate, weigh))
    hidden = activation(varying(products(gate_up, tokens[order // expert_ids.shape[-1]], width), 0))  # (A, W)
    outputs = products(down, hidden, tokens.shape[-1])[order.argsort()]  # (A, C)
    return weighing(varying(outputs, 0), varying(weights, 0), tokens.dtype)


def activate(gate_up: Tensor) -> Tensor:
    """SwiGLU: (A, 2W) to (A, W)."""
    gate, up = gate_up.chunk(2, dim=-1)  # (A, W) (A, W)
    return F.silu(gate) * up


def weigh(outputs: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """outputs (A, C) in the order of the assignments, times weights (n, K), summed per token in float32: (n, C)."""
    per_token = outputs.view(*weights.shape, -1).to(wide_dtype(dtype))  # (n, K, C)
    return (per_token * weights.unsqueeze(-1)).sum(dim=1).to(dtype)  # (n, C)
