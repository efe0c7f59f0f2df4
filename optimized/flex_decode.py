"""Decoding by FlexAttention on the latent cache: what a query may look at, and the form that fits Hopper's registers.

`create_block_mask` looks at every pair of query and slot and is launched outside the compiled step. One query needs
none of that: its blocks are the ones from the first that is no padding to its own, so a few integers per row say it
all, inside the graph. Blocks beyond a row's length are not read, and shapes stay while rows grow.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .int4_words import pick

# B batch   T new tokens   H num_attention_heads   R kv_lora_rank   P qk_rope_head_dim   S slots of the cache
# N blocks of slots   G key heads

BLOCK_SLOTS = 128  # FlexAttention's own default
KEY_HEADS = 4  # with fewer query heads to each, the 576-wide queries stay in registers (docs/performance.md)
HOPPER = {"BLOCK_N": 32, "num_warps": 4, "num_stages": 2, "SPLIT_KV": 32}


@torch.compiler.assume_constant_result
def is_hopper(index: int) -> bool:
    """Whether this CUDA device has Hopper's registers and shared memory, or a later one's."""
    return torch.cuda.get_device_capability(index) >= (9, 0)


def attend(query: Tensor, latent_key: Tensor, mask: BlockMask, rank: int, scale: float) -> Tensor:
    """Absorbed attention: query (B, T, H, R+P) and latent_key (B, S, R+P) to (B, T, H, R).

    All heads share one key. It is shown as several key heads, a view without a copy, so that each has fewer queries.
    """
    num_heads = query.shape[2]
    groups = KEY_HEADS if num_heads % KEY_HEADS == 0 else 1
    latent = latent_key.narrow(-1, 0, rank)  # (B, S, R)
    if not query.is_cuda:
        # Inductor's CPU form up to PyTorch 2.12 refuses keys and values of one buffer; from 2.13 on it copies both.
        latent = latent.clone()
    key, value = (rows.unsqueeze(1).expand(-1, groups, -1, -1) for rows in (latent_key, latent))  # (B, G, S, R+P or R)
    options = HOPPER if query.is_cuda and is_hopper(query.device.index) else None
    mixed = flex_attention(
        query.transpose(1, 2), key, value, block_mask=mask, scale=scale, enable_gqa=True, kernel_options=options
    )  # (B, H, T, R)
    return mixed.transpose(1, 2)


def decode_mask(start: Tensor, num_padding: Tensor, num_slots: int) -> BlockMask:
    """start (B,), the slot of each row's one query, and num_padding (B,), its left padding: `attention.block_mask`."""

    def is_visible(b: Tensor, h: Tensor, query: Tensor, slot: Tensor) -> Tensor:
        own = query + pick(start, b)
        return (slot == own) | ((slot < own) & (slot >= pick(num_padding, b)))

    num_blocks = -(-num_slots // BLOCK_SLOTS)  # N
    own_block = start // BLOCK_SLOTS  # (B)
    first_block = torch.minimum(num_padding // BLOCK_SLOTS, own_block)  # (B), a padding query sees itself
    block = first_block.unsqueeze(1) + torch.arange(num_blocks, device=start.device)  # (B, N)
    indices = block.clamp(max=num_blocks - 1).to(torch.int32)  # (B, N), in use are the first of them
    counts = (own_block - first_block + 1).to(torch.int32)  # (B)
    return BlockMask.from_kv_blocks(
        counts.view(-1, 1, 1), indices.view(-1, 1, 1, num_blocks), BLOCK_SIZE=BLOCK_SLOTS, mask_mod=is_visible,
        seq_lengths=(1, num_slots), compute_q_blocks=False,
    )  # fmt: skip
