"""The custom operators, each declared once: what it computes, its shape for the compiler, its form on each device.

| operator | its twin in reference/ | on a CPU | on CUDA |
| --- | --- | --- | --- |
| `kimi::latent_attention` | `attention._absorbed` | `attention_products.each_row` | `attention_products.all_rows` |
| `kimi::expanded_attention` | `attention._expanded` | `attention_products.in_blocks` | `attention_products.fused` |
| `kimi::dense_experts` | `moe._routed` | `cpu_experts.dense` | `cuda_experts.dense` |
| `kimi::int4_experts` | `moe._routed` with `int4.Int4Linear` | `cpu_experts.int4` | `cuda_experts.int4` |

An operator is opaque to torch.compile: a form may loop over experts or rows, and the graph around it stays whole.
"""

import torch
from torch import Tensor

from . import attention_products, cpu_experts, cuda_experts

# B batch   T new tokens   S slots of the cache   H num_attention_heads   R kv_lora_rank   P qk_rope_head_dim
# D head size of queries and keys   V v_head_dim
# n tokens   C hidden_size   K num_experts_per_tok   E n_routed_experts   W moe_intermediate_size


@torch.library.custom_op("kimi::latent_attention", mutates_args=())
def latent_attention(
    query: Tensor, latent_key: Tensor, start: Tensor, num_padding: Tensor, rank: int, scale: float
) -> Tensor:
    """Absorbed attention: query (B, T, H, R+P) and latent_key (B, S, R+P) to (B, T, H, R).

    Query t of row b sees slots num_padding[b] to start[b] + t.
    """
    return attention_products.each_row(query, latent_key, start, num_padding, rank, scale)


@latent_attention.register_fake
def _(query: Tensor, latent_key: Tensor, start: Tensor, num_padding: Tensor, rank: int, scale: float) -> Tensor:
    return query.new_empty(*query.shape[:-1], rank)


@latent_attention.register_kernel("cuda")
def _(query: Tensor, latent_key: Tensor, start: Tensor, num_padding: Tensor, rank: int, scale: float) -> Tensor:
    return attention_products.all_rows(query, latent_key, start, num_padding, rank, scale)


@torch.library.custom_op("kimi::expanded_attention", mutates_args=())
def expanded_attention(
    query: Tensor, key: Tensor, value: Tensor, start: Tensor, num_padding: Tensor, scale: float, may_generate: bool
) -> Tensor:
    """query (B, H, T, D), key (B, H, S, D) and value (B, H, S, V) to (B, H, T, V); who sees what as above."""
    return attention_products.in_blocks(query, key, value, start, num_padding, scale, may_generate)


@expanded_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


@expanded_attention.register_kernel("cuda")
def _(
    query: Tensor, key: Tensor, value: Tensor, start: Tensor, num_padding: Tensor, scale: float, may_generate: bool
) -> Tensor:
    # A copy, because an operator's result must own its memory as the shape promised above says.
    return attention_products.fused(query, key, value, start, num_padding, scale).contiguous()


@torch.library.custom_op("kimi::dense_experts", mutates_args=())
def dense_experts(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor, may_generate: bool
) -> Tensor:
    """tokens (n, C) through their experts, weighted and summed: (n, C).

    weights and expert_ids (n, K) from the router, gate_up (E, 2W, C), down (E, C, W). may_generate: a CPU may compile a
    kernel for it; CUDA always does.
    """
    return cpu_experts.dense(tokens, weights, expert_ids, gate_up, down, may_generate)


@torch.library.custom_op("kimi::int4_experts", mutates_args=())
def int4_experts(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor,
    down_scale: Tensor, rounded: bool,
) -> Tensor:  # fmt: skip
    """The same over packed weights, in one of the layouts of int4.py; CUDA reads words.

    rounded: integer * scale is rounded to bfloat16 first, as the published code does; otherwise it is exact.
    """
    stacks = gate_up, gate_up_scale, down, down_scale
    return cpu_experts.int4(tokens, weights, expert_ids, *stacks, rounded)


@dense_experts.register_fake
def _(tokens: Tensor, *_: object) -> Tensor:
    return torch.empty_like(tokens)


@int4_experts.register_fake
def _(tokens: Tensor, *_: object) -> Tensor:
    return torch.empty_like(tokens)


@dense_experts.register_kernel("cuda")
def _(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor, may_generate: bool
) -> Tensor:
    return cuda_experts.dense(tokens, weights, expert_ids, gate_up, down)


@int4_experts.register_kernel("cuda")
def _(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor,
    down_scale: Tensor, rounded: bool,
) -> Tensor:  # fmt: skip
    stacks = gate_up, gate_up_scale, down, down_scale
    return cuda_experts.int4(tokens, weights, expert_ids, *stacks, rounded)
