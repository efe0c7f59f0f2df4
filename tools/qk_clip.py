"""QK-Clip for latent attention: heads whose logits grow too large get smaller query and key weights after the step.

Muon lets attention logits grow. A head whose largest logit S is beyond the threshold t is scaled by g = t / S: query
and key without positions by sqrt(g) each, the rotary query by g. The rotary key, shared by all heads, stays as it is.
Source: Kimi K2, arXiv 2507.20534, section 2.1, algorithm 1.
"""

import re
import threading
from collections import defaultdict

import torch
from torch import Tensor

from reference.attention import MultiHeadLatentAttention

# B examples   T tokens   H num_attention_heads   R kv_lora_rank   N qk_nope_head_dim   P qk_rope_head_dim

THRESHOLD = 100.0


class MaxLogits:
    """Observer that keeps the largest logit of every head, over all micro-batches and threads of a step.

    It computes the products of queries and keys once more, from the stages that the model shows.
    """

    def __init__(self, attentions: list[MultiHeadLatentAttention]) -> None:
        self.attentions = {attention.layer_index: attention for attention in attentions}
        # .valid: (B, T) what is no padding, None: nothing is looked at; .query, .latent: of the layer at work
        self.thread = threading.local()
        self.largest: dict[int, list[Tensor]] = defaultdict(list)

    def begin(self, valid: Tensor | None) -> None:
        self.thread.valid = valid

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        found = re.fullmatch(r"layers\.(\d+)\.attn\.(q|kv_latent|k_pe)", name)
        if not found or self.thread.valid is None:
            return tensor
        if found[2] == "q":
            self.thread.query = tensor
        elif found[2] == "kv_latent":
            self.thread.latent = tensor
        else:
            attention = self.attentions[int(found[1])]
            logits = largest_logits(attention, self.thread.query, self.thread.latent, tensor, self.thread.valid)  # (H)
            self.largest[attention.layer_index].append(logits)
        return tensor

    def total(self) -> dict[int, Tensor]:
        """(H) per layer."""
        return {layer: torch.stack(parts).amax(dim=0) for layer, parts in self.largest.items()}


@torch.no_grad()
def largest_logits(
    attention: MultiHeadLatentAttention, query: Tensor, latent: Tensor, k_pe: Tensor, valid: Tensor
) -> Tensor:
    """Largest logit (H) of any real query (B, T, H, N+P) and a key it sees; latent (B, T, R), k_pe (B, T, P)."""
    w_uk = attention.kv_b_proj.weight.unflatten(0, (attention.num_heads, -1))[:, : attention.kv_sizes[0]]  # (H, N, R)
    q_nope, q_pe = query.split(attention.qk_sizes, dim=-1)  # (B, T, H, N) (B, T, H, P)
    k_nope = torch.einsum("btr,hnr->bhnt", latent, w_uk)  # (B, H, N, T)
    logits = q_nope.transpose(1, 2) @ k_nope + q_pe.transpose(1, 2) @ k_pe[:, None].mT  # (B, H, T, T)
    num_tokens = query.shape[1]
    seen = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=query.device).tril()  # (T, T)
    # Padding stands on the right, where real queries do not look.
    hidden = ~(seen & valid[:, :, None])[:, None]  # (B, 1, T, T)
    return attention.scale * logits.masked_fill_(hidden, -torch.inf).amax(dim=(0, 2, 3))  # (H)


@torch.no_grad()
def clip(attention: MultiHeadLatentAttention, largest: Tensor, threshold: float = THRESHOLD) -> None:
    """Scale down the heads whose largest logit (H) is beyond the threshold, so that it comes to lie on it."""
    factor = (threshold / largest.clamp_min(threshold))[:, None, None]  # (H, 1, 1)
    num_nope = attention.qk_sizes[0]
    query = getattr(attention, "q_b_proj", None) or attention.q_proj
    per_head = query.weight.unflatten(0, (attention.num_heads, -1))  # (H, N+P, inputs), a view
    per_head[:, :num_nope].mul_(factor.sqrt())
    per_head[:, num_nope:].mul_(factor)
    attention.kv_b_proj.weight.unflatten(0, (attention.num_heads, -1))[:, :num_nope].mul_(factor.sqrt())
