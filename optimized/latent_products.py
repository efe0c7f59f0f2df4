"""Absorbed attention on the latent cache as two matrix products with a softmax between them."""

import torch
from torch import Tensor

from reference.norm import wide_dtype

# B batch   T new tokens   H num_attention_heads   S slots of the cache   s tokens of one row so far
# R kv_lora_rank   P qk_rope_head_dim


def one_row(query: Tensor, keys: Tensor, padding: int | Tensor, rank: int, scale: float) -> Tensor:
    """query (T, H, R+P), the last T of the row's s tokens, and its keys (s, R+P), padding included: (T, H, R)."""
    (num_queries, num_heads, _), num_keys = query.shape, keys.shape[0]
    scores = (query.flatten(0, 1) @ keys.T).unflatten(0, (num_queries, num_heads))  # (T, H, s)
    slot = torch.arange(num_keys, device=keys.device)  # (s)
    query_slot = num_keys - num_queries + torch.arange(num_queries, device=keys.device)[:, None, None]  # (T, 1, 1)
    weights = _weights(scores, (slot > query_slot) | (slot < padding), scale)  # (T, H, s)
    return (weights.flatten(0, 1) @ keys[:, :rank]).unflatten(0, (num_queries, num_heads))  # (T, H, R)


def each_row(query: Tensor, latent_key: Tensor, start: Tensor, num_padding: Tensor, rank: int, scale: float) -> Tensor:
    """Each row by itself and no further than it is long, so its numbers do not depend on what else is in the batch."""
    num_queries = query.shape[1]
    rows = zip(query, latent_key, start.tolist(), num_padding.tolist(), strict=True)
    return torch.stack([one_row(row, keys[: past + num_queries], padding, rank, scale)
                        for row, keys, past, padding in rows])  # fmt: skip


def all_rows(query: Tensor, latent_key: Tensor, start: Tensor, num_padding: Tensor, rank: int, scale: float) -> Tensor:
    """Without a question to the device: every slot is scored, and those that a query must not see are hidden."""
    scores = torch.einsum("bthd,bsd->bths", query, latent_key)  # (B, T, H, S)
    slot = torch.arange(latent_key.shape[1], device=query.device)  # (S)
    query_slot = start[:, None] + torch.arange(query.shape[1], device=query.device)  # (B, T)
    hidden = (slot > query_slot[..., None]) | (slot < num_padding[:, None, None])  # (B, T, S)
    weights = _weights(scores, hidden[:, :, None], scale)  # (B, T, H, S)
    return torch.einsum("bths,bsr->bthr", weights, latent_key[..., :rank])


def _weights(scores: Tensor, hidden: Tensor, scale: float) -> Tensor:
    wide = scores.to(wide_dtype(scores.dtype)) * scale
    # Not -inf: a padding query sees no key at all, and must not become NaN.
    return wide.masked_fill(hidden, torch.finfo(wide.dtype).min).softmax(-1).to(scores.dtype)
