"""Attention as two matrix products with a softmax between them: what the attention operators run where that is fastest.

Absorbed: queries meet the latent cache as it lies. Expanded: keys and values are multiplied out, as for a prompt.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.norm import wide_dtype

from .generated import generated, varying

# B batch   T new tokens   H num_attention_heads   S slots of the cache   s tokens of one row so far
# R kv_lora_rank   P qk_rope_head_dim   D head size of queries and keys   V v_head_dim   t queries of one block

QUERY_BLOCK = 128  # queries scored at once: few enough to skip what no query sees yet, enough for a matrix library


def one_row(query: Tensor, keys: Tensor, start: int | Tensor, padding: int | Tensor, rank: int, scale: float) -> Tensor:
    """query (T, H, R+P), tokens start to start + T of a row, and its keys (s, R+P), padding included: (T, H, R)."""
    num_queries, num_heads, _ = query.shape
    # The long operand first: a CPU's matrix library is up to a third faster with it.
    scores = (keys @ query.flatten(0, 1).T).T.unflatten(0, (num_queries, num_heads))  # (T, H, s)
    slot = torch.arange(keys.shape[0], device=keys.device)  # (s)
    query_slot = start + torch.arange(num_queries, device=keys.device)[:, None, None]  # (T, 1, 1)
    weights = _weights(scores, (slot > query_slot) | (slot < padding), scale)  # (T, H, s)
    return (weights.flatten(0, 1) @ keys[:, :rank]).unflatten(0, (num_queries, num_heads))  # (T, H, R)


def each_row(query: Tensor, latent_key: Tensor, start: Tensor, num_padding: Tensor, rank: int, scale: float) -> Tensor:
    """Each row by itself and no further than it is long, so its numbers do not depend on what else is in the batch."""
    rows = zip(query, latent_key, start.tolist(), num_padding.tolist(), strict=True)
    return torch.stack([one_row(row, keys[: past + query.shape[1]], past, padding, rank, scale)
                        for row, keys, past, padding in rows])  # fmt: skip


def all_rows(query: Tensor, latent_key: Tensor, start: Tensor, num_padding: Tensor, rank: int, scale: float) -> Tensor:
    """Without a question to the device: every slot is scored, and those that a query must not see are hidden."""
    scores = torch.einsum("bthd,bsd->bths", query, latent_key)  # (B, T, H, S)
    slot = torch.arange(latent_key.shape[1], device=query.device)  # (S)
    query_slot = start[:, None] + torch.arange(query.shape[1], device=query.device)  # (B, T)
    hidden = (slot > query_slot[..., None]) | (slot < num_padding[:, None, None])  # (B, T, S)
    weights = _weights(scores, hidden[:, :, None], scale)  # (B, T, H, S)
    return torch.einsum("bths,bsr->bthr", weights, latent_key[..., :rank])


def in_blocks(
    query: Tensor, key: Tensor, value: Tensor, start: Tensor, num_padding: Tensor, scale: float, may_generate: bool
) -> Tensor:
    """Expanded, a block of queries after the other, each against the keys up to its own end.

    query (B, H, T, D), key (B, H, S, D), value (B, H, S, V), start and num_padding (B,) to (B, H, T, V).
    """
    last, softmax = int(start.max()), generated(_weights) if may_generate else _weights
    blocks = []
    for i, block in enumerate(query.split(QUERY_BLOCK, dim=2)):
        first, end = i * QUERY_BLOCK, last + i * QUERY_BLOCK + block.shape[2]
        hidden = ~visible(start + first, num_padding, block.shape[2], end)  # (B, 1, t, s)
        scores = varying(block @ key[:, :, :end].transpose(2, 3), 0, 2, 3)  # (B, H, t, s)
        weights = softmax(scores, varying(hidden, 0, 2, 3), scale)  # (B, H, t, s)
        blocks.append(weights @ value[:, :, :end])
    return torch.cat(blocks, dim=2)  # (B, H, T, V)


def fused(query: Tensor, key: Tensor, value: Tensor, start: Tensor, num_padding: Tensor, scale: float) -> Tensor:
    """The same by PyTorch's fused attention, which wants values as wide as keys: added zeros come out as zeros."""
    mask = visible(start, num_padding, query.shape[2], key.shape[2])  # (B, 1, T, S)
    widened = F.pad(value, (0, query.shape[-1] - value.shape[-1]))  # (B, H, S, D)
    heads = F.scaled_dot_product_attention(query, key, widened, attn_mask=mask, scale=scale)  # (B, H, T, D)
    return heads[..., : value.shape[-1]]


def visible(start: Tensor, num_padding: Tensor, num_queries: int, num_slots: int) -> Tensor:
    """Which slots query start[b] + t of a row may look at: (B, 1, T, S) bool.

    From the first that is no padding up to its own, which it always sees: a padding query needs something to look at.
    """
    slot = torch.arange(num_slots, device=start.device)  # (S)
    own = (start[:, None] + torch.arange(num_queries, device=start.device))[..., None]  # (B, T, 1)
    return ((slot == own) | ((slot < own) & (slot >= num_padding[:, None, None])))[:, None]  # (B, 1, T, S)


def _weights(scores: Tensor, hidden: Tensor, scale: float) -> Tensor:
    wide = scores.to(wide_dtype(scores.dtype)) * scale
    # Not -inf: a padding query sees no key at all, and must not become NaN.
    return wide.masked_fill(hidden, torch.finfo(wide.dtype).min).softmax(-1).to(scores.dtype)
