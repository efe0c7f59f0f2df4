"""What decoding may look at in the preallocated cache, as FlexAttention's blocks, computed from each row's length.

`create_block_mask` looks at every pair of query and slot and is launched outside the compiled step. One query needs
none of that: its blocks are the ones from the first that is no padding to its own, so a few integers per row say it
all, inside the graph. Blocks beyond a row's length are not read, and shapes stay while rows grow.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

# B batch   S slots of the cache   N blocks of slots

BLOCK_SLOTS = 128  # FlexAttention's own default


def decode_mask(start: Tensor, num_padding: Tensor, num_slots: int) -> BlockMask:
    """start (B,), the slot of each row's one query, and num_padding (B,), its left padding: `attention.block_mask`."""

    def is_visible(b: Tensor, h: Tensor, query: Tensor, slot: Tensor) -> Tensor:
        own = query + start[b]
        return (slot == own) | ((slot < own) & (slot >= num_padding[b]))

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
