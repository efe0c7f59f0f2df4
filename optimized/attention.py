"""Latent attention for speed: products of blocks or FlexAttention for a prompt, the cache as it lies for one token.

The same modules, names and numbers as reference/attention.py; what differs is what touches memory. Prefill scores no
block of keys that no query may see. Decoding reads the cache once for the scores and once for their mixture; on a CPU
it stops within a few slots of the longest row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from reference import attention as plain
from reference.stages import stage

from . import flex_decode
from .attention_products import one_row
from .cache import write_tokens
from .ops import expanded_attention, latent_attention

# B batch   T new tokens   S slots of the cache, or the T new tokens where there is none   H num_attention_heads
# C hidden_size   R kv_lora_rank   N qk_nope_head_dim   P qk_rope_head_dim   V v_head_dim   s tokens of one row so far

@dataclass
class Step:
    """What every layer of one forward shares. Query t of row b stands in slot start[b] + t."""

    cos: Tensor  # (B, T, P/2)
    sin: Tensor  # (B, T, P/2)
    start: Tensor  # (B,) tokens already in each row
    num_padding: Tensor  # (B,) left padding per row
    layers: list[Tensor] | None  # the cache's tensors, (B, slots, R+P) per layer
    form: str  # "expanded" or "absorbed"
    num_slots: int  # S: keys that queries may look at
    flex: BlockMask | None  # what each query sees, if FlexAttention computes it


class MultiHeadLatentAttention(plain.MultiHeadLatentAttention):
    may_generate = False  # whether torch.compile may be asked for kernels

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        """hidden (B, T, C) to (B, T, C)."""
        query = stage(f"layers.{self.layer_index}.attn.q", self._query(hidden, step))  # (B, T, H, N+P)
        key = torch.cat(self._latent(hidden, step), dim=-1)  # (B, T, R+P)
        if step.layers is not None:
            layer = step.layers[self.layer_index]  # (B, slots, R+P)
            write_tokens(layer, step.start, key)
            key = layer[:, : step.num_slots]  # (B, S, R+P)
        attend = self._absorbed_fast if step.form == "absorbed" else self._expanded_fast
        heads = stage(f"layers.{self.layer_index}.attn.heads", attend(query, key, step))  # (B, T, H, V)
        return self.o_proj(heads.flatten(-2))  # (B, T, C)

    def _expanded_fast(self, query: Tensor, latent_key: Tensor, step: Step) -> Tensor:
        """Keys and values multiplied out: (B, T, H, V)."""
        latent, k_pe = latent_key.split(self.latent_sizes, dim=-1)  # (B, S, R) (B, S, P)
        key_value = self.kv_b_proj(latent).unflatten(-1, (self.num_heads, -1))  # (B, S, H, N+V)
        k_nope, value = key_value.split(self.kv_sizes, dim=-1)  # (B, S, H, N) (B, S, H, V)
        key = torch.cat([k_nope, k_pe[:, :, None].expand(-1, -1, self.num_heads, -1)], dim=-1)  # (B, S, H, N+P)
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))  # (B, H, T or S, ...)
        if step.flex is not None:
            # Inductor's CPU form fails, or even errs, on the strides of transposed tensors.
            query, key, value = (tensor.contiguous() for tensor in (query, key, value))
            heads = flex_attention(query, key, value, block_mask=step.flex, scale=self.scale)  # (B, H, T, V)
        else:
            rows = step.start, step.num_padding
            heads = expanded_attention(query, key, value, *rows, self.scale, self.may_generate)  # (B, H, T, V)
        return heads.transpose(1, 2)

    def _absorbed_fast(self, query: Tensor, latent_key: Tensor, step: Step) -> Tensor:
        """Queries moved into the latent space, the cache read as it lies: (B, T, H, V)."""
        w_uk, w_uv = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1)).split(self.kv_sizes, dim=1)
        q_nope, q_pe = query.split(self.qk_sizes, dim=-1)  # (B, T, H, N) (B, T, H, P)
        q_latent = torch.einsum("bthn,hnr->bthr", q_nope, w_uk)  # (B, T, H, R)
        query = torch.cat([q_latent, q_pe], dim=-1)  # (B, T, H, R+P)
        rank = self.latent_sizes[0]
        if step.flex is not None:
            mixed = flex_decode.attend(query, latent_key, step.flex, rank, self.scale)  # (B, T, H, R)
        elif len(query) == 1 and not query.is_cuda:
            row = query[0], latent_key[0], step.start[0], step.num_padding[0]
            mixed = one_row(*row, rank, self.scale)[None]  # (1, T, H, R)
        else:
            mixed = latent_attention(query, latent_key, step.start, step.num_padding, rank, self.scale)  # (B, T, H, R)
        return torch.einsum("bthr,hvr->bthv", mixed, w_uv)


def block_mask(start: Tensor, num_padding: Tensor, num_queries: int, num_slots: int) -> BlockMask:
    """For FlexAttention: query t of a row sees the slots from the first that is no padding up to its own.

    start and num_padding (B,). Its own slot it always sees, so that a padding query has something to look at.
    """

    def is_visible(b: Tensor, h: Tensor, query: Tensor, slot: Tensor) -> Tensor:
        own = query + start[b]
        return (slot == own) | ((slot < own) & (slot >= num_padding[b]))

    return create_block_mask(is_visible, len(start), None, num_queries, num_slots, device=start.device)
