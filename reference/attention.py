"""Multi-head latent attention (MLA), twice side by side: expanded, easy to read, and absorbed, what a cache wants.

Keys and values of all heads are linear in one small latent per token. The expanded form multiplies them out and is
plain multi-head attention. The absorbed form folds those matrices into the query and the output instead, so the cached
latents are read as they lie: fewer bytes per decoded token, more arithmetic per pair. Both give the same numbers.
Source: DeepSeek-V2, arXiv 2405.04434, section 2.1, eq. 9-19 and appendix C.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .cache import LatentCache
from .config import TextConfig
from .norm import RMSNorm, wide_dtype
from .rope import rotate, softmax_scale
from .stages import stage

# B batch   T new tokens   S all tokens so far   H num_attention_heads   C hidden_size   Q q_lora_rank
# R kv_lora_rank   N qk_nope_head_dim   P qk_rope_head_dim   V v_head_dim   t queries of one block

QUERY_BLOCK = 128  # queries scored at once: bounds the score matrix at B * H * 128 * S, twice as fast on CPU as 1024


@dataclass
class Step:
    """What every layer of one forward shares."""

    cos: Tensor  # (B, T, P/2)
    sin: Tensor  # (B, T, P/2)
    past: int  # tokens already in the cache
    num_padding: Tensor | None  # (B,) left padding per row; None: no row has any
    cache: LatentCache | None
    form: str  # "expanded" or "absorbed"


class MultiHeadLatentAttention(nn.Module):
    def __init__(self, config: TextConfig, layer_index: int):
        super().__init__()
        hidden_size, num_heads = config.hidden_size, config.num_attention_heads
        self.num_heads, self.layer_index, self.scale = num_heads, layer_index, softmax_scale(config)
        self.qk_sizes = [config.qk_nope_head_dim, config.qk_rope_head_dim]
        self.latent_sizes = [config.kv_lora_rank, config.qk_rope_head_dim]
        self.kv_sizes = [config.qk_nope_head_dim, config.v_head_dim]
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden_size, num_heads * config.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden_size, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.latent_norm_eps)
            self.q_b_proj = nn.Linear(config.q_lora_rank, num_heads * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden_size, sum(self.latent_sizes), bias=False)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, config.latent_norm_eps)
        self.kv_b_proj = nn.Linear(config.kv_lora_rank, num_heads * sum(self.kv_sizes), bias=False)
        self.o_proj = nn.Linear(num_heads * config.v_head_dim, hidden_size, bias=False)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        """hidden (B, T, C) to (B, T, C)."""
        query = stage(f"layers.{self.layer_index}.attn.q", self._query(hidden, step))  # (B, T, H, N+P)
        latent, k_pe = self._latent(hidden, step)  # (B, T, R) (B, T, P)
        if step.cache is not None:
            latent, k_pe = step.cache.append(self.layer_index, latent, k_pe)  # (B, S, R) (B, S, P)
        attend = self._absorbed if step.form == "absorbed" else self._expanded
        heads = attend(query, latent, k_pe, step)  # (B, T, H, V)
        heads = stage(f"layers.{self.layer_index}.attn.heads", heads)  # (B, T, H, V)
        return self.o_proj(heads.flatten(-2))  # (B, T, C)

    def _query(self, hidden: Tensor, step: Step) -> Tensor:
        if hasattr(self, "q_proj"):
            query = self.q_proj(hidden)  # (B, T, H*N+H*P)
        else:
            query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden)))  # (B, T, H*N+H*P)
        query = query.unflatten(-1, (self.num_heads, -1))  # (B, T, H, N+P)
        q_nope, q_pe = query.split(self.qk_sizes, dim=-1)  # (B, T, H, N) (B, T, H, P)
        q_pe = rotate(q_pe, step.cos[:, :, None], step.sin[:, :, None])  # (B, T, H, P)
        return torch.cat([q_nope, q_pe], dim=-1)  # (B, T, H, N+P)

    def _latent(self, hidden: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        latent, k_pe = self.kv_a_proj_with_mqa(hidden).split(self.latent_sizes, dim=-1)  # (B, T, R) (B, T, P)
        latent = self.kv_a_layernorm(latent)  # (B, T, R), the rotary key beside it is not normalised
        k_pe = rotate(k_pe, step.cos, step.sin)  # (B, T, P)
        latent = stage(f"layers.{self.layer_index}.attn.kv_latent", latent)  # (B, T, R)
        k_pe = stage(f"layers.{self.layer_index}.attn.k_pe", k_pe)  # (B, T, P)
        return latent, k_pe

    def _expanded(self, query: Tensor, latent: Tensor, k_pe: Tensor, step: Step) -> Tensor:
        """Multiply keys and values out of the latents: right for prefill, where each serves many queries."""
        key_value = self.kv_b_proj(latent).unflatten(-1, (self.num_heads, -1))  # (B, S, H, N+V)
        k_nope, value = key_value.split(self.kv_sizes, dim=-1)  # (B, S, H, N) (B, S, H, V)
        shared = k_pe[:, :, None].expand(-1, -1, self.num_heads, -1)  # (B, S, H, P), one rotary key for all heads
        key = torch.cat([k_nope, shared], dim=-1)  # (B, S, H, N+P)
        blocks = []
        for start, query_block in _query_blocks(query):
            scores = torch.einsum("bthd,bshd->bhts", query_block, key)  # (B, H, t, S)
            weights = self._weights(scores, step, start)  # (B, H, t, S)
            blocks.append(torch.einsum("bhts,bshv->bthv", weights, value))
        return torch.cat(blocks, dim=1)  # (B, T, H, V)

    def _absorbed(self, query: Tensor, latent: Tensor, k_pe: Tensor, step: Step) -> Tensor:
        """Compare queries with the latents themselves: right for decoding, where the cache is read for one query."""
        per_head = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))  # (H, N+V, R)
        w_uk, w_uv = per_head.split(self.kv_sizes, dim=1)  # (H, N, R) (H, V, R)
        q_nope, q_pe = query.split(self.qk_sizes, dim=-1)  # (B, T, H, N) (B, T, H, P)
        q_latent = torch.einsum("bthn,hnr->bthr", q_nope, w_uk)  # (B, T, H, R)
        query = torch.cat([q_latent, q_pe], dim=-1)  # (B, T, H, R+P)
        key = torch.cat([latent, k_pe], dim=-1)  # (B, S, R+P)
        blocks = []
        for start, query_block in _query_blocks(query):
            scores = torch.einsum("bthd,bsd->bhts", query_block, key)  # (B, H, t, S)
            weights = self._weights(scores, step, start)  # (B, H, t, S)
            blocks.append(torch.einsum("bhts,bsr->bthr", weights, latent))
        mixed = torch.cat(blocks, dim=1)  # (B, T, H, R)
        return torch.einsum("bthr,hvr->bthv", mixed, w_uv)  # (B, T, H, V)

    def _weights(self, scores: Tensor, step: Step, start: int) -> Tensor:
        """Scale, hide what a query must not see, softmax in float32. scores (B, H, t, S) to the same."""
        num_queries, num_keys = scores.shape[-2:]
        key_slot = torch.arange(num_keys, device=scores.device)  # (S)
        query_slot = torch.arange(num_queries, device=scores.device) + step.past + start  # (t)
        visible = (key_slot <= query_slot[:, None])[None, None]  # (1, 1, t, S)
        if step.num_padding is not None:
            visible = visible & (key_slot >= step.num_padding[:, None])[:, None, None]  # (B, 1, t, S)
        wide = scores.to(wide_dtype(scores.dtype)) * self.scale  # (B, H, t, S)
        # Not -inf: a padding query sees no key at all, and must not become NaN.
        wide = wide.masked_fill(~visible, torch.finfo(wide.dtype).min)  # (B, H, t, S)
        return wide.softmax(dim=-1).to(scores.dtype)  # (B, H, t, S)


def _query_blocks(query: Tensor) -> list[tuple[int, Tensor]]:
    """(index of the first query, queries) for each block along axis 1."""
    return [(i * QUERY_BLOCK, block) for i, block in enumerate(query.split(QUERY_BLOCK, dim=1))]
