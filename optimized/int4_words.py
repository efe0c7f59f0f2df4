"""INT4 products on the published words, written so that Inductor makes one kernel of each.

What Inductor generates follows from how the arithmetic is spelled, so the spelling is the point of this file:
eight shifts of a whole word become one reduction that reads each word once; a shift by a tensor of amounts, or nibbles
stacked into an axis, become several kernels. docs/performance.md lists what was tried, and a test without a GPU holds
the generated kernels to it.
"""

import torch
from torch import Tensor

from reference.config import INT4_GROUP_SIZE
from reference.int4 import WEIGHTS_PER_WORD

# A assignments   E experts   O outputs   I inputs   w words of a row: I/8   g groups of a row: I/32
# b blocks of R rows, each of one expert

WORDS_PER_GROUP = INT4_GROUP_SIZE // WEIGHTS_PER_WORD
BLOCK_ROWS = 64  # the least rows for which Hopper's matrix units run at full width


def gathered_matvec(hidden: Tensor, words: Tensor, scale: Tensor, expert_ids: Tensor, rounded: bool) -> Tensor:
    """Row a of hidden (A, I) times the weights of expert expert_ids[a]: (A, O) float32.

    words (E, O, w) and scale (E, O, g) are read only where an expert is chosen; no (A, O, I) weight ever exists.
    """
    picked = words[expert_ids].unflatten(-1, (-1, WORDS_PER_GROUP))  # (A, O, g, 4)
    factor = scale[expert_ids][..., None]  # (A, O, g, 1)
    columns = hidden.float().unflatten(-1, (-1, WORDS_PER_GROUP, WEIGHTS_PER_WORD))[:, None]  # (A, 1, g, 4, 8)
    total = torch.zeros((), device=hidden.device)
    for i, column in enumerate(columns.unbind(-1)):  # each (A, 1, g, 4)
        integer = ((picked >> (4 * i)) & 15) - 8  # (A, O, g, 4)
        total = total + _weight(integer, factor, rounded) * column  # (A, O, g, 4)
    return total.sum((-1, -2))


def _weight(integer: Tensor, scale: Tensor, rounded: bool) -> Tensor:
    """integer * scale, exact in float32 or rounded to bfloat16 on the way."""
    weight = integer.float() * scale.float()
    return weight.to(torch.bfloat16).float() if rounded else weight


def grouped_product(blocks: Tensor, words: Tensor, scale: Tensor, block_expert: Tensor, rounded: bool) -> Tensor:
    """Each block of rows times its expert's weights: blocks (b, R, I), block_expert (b,) to (b, R, O).

    A byte of a word holds an even column low and the odd one after it high: two products of half the width, so that no
    nibble has to be moved to where its neighbour is.
    """
    packed = words.view(torch.uint8)[block_expert].transpose(1, 2)  # (b, I/2, O)
    half_group = INT4_GROUP_SIZE // 2
    factor = scale[block_expert].transpose(1, 2).repeat_interleave(half_group, dim=1)  # (b, I/2, O)
    even, odd = blocks[..., 0::2], blocks[..., 1::2]  # (b, R, I/2) (b, R, I/2)
    low = _weight((packed & 15).to(torch.int8) - 8, factor, rounded).to(blocks.dtype)  # (b, I/2, O)
    high = _weight((packed >> 4).to(torch.int8) - 8, factor, rounded).to(blocks.dtype)  # (b, I/2, O)
    return torch.bmm(even, low) + torch.bmm(odd, high)


def make_blocks(expert_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Sort assignments by expert and give each expert whole blocks, without asking the device how many it has.

    expert_ids (A,) to slot (A,), where in the padded rows each assignment goes, and block_expert (b,). The number of
    blocks is the most that could be needed, so that every shape is known before the routing is.
    """
    num_assignments = len(expert_ids)
    num_blocks = -(-num_assignments // BLOCK_ROWS) + min(num_experts, num_assignments)
    ones = torch.ones_like(expert_ids)
    load = torch.zeros(num_experts, dtype=torch.int64, device=expert_ids.device).scatter_add(0, expert_ids, ones)  # (E)
    blocks = (load + BLOCK_ROWS - 1) // BLOCK_ROWS  # (E)
    last_block = blocks.cumsum(0)  # (E), one past it
    first_row = (last_block - blocks) * BLOCK_ROWS  # (E)
    order = expert_ids.argsort(stable=True)  # (A)
    in_order = expert_ids[order]  # (A)
    rank = torch.arange(num_assignments, device=expert_ids.device) - (load.cumsum(0) - load)[in_order]  # (A)
    slot = torch.zeros_like(expert_ids).scatter(0, order, first_row[in_order] + rank)  # (A)
    block = torch.arange(num_blocks, device=expert_ids.device)  # (b)
    # Blocks beyond the last one multiply zeros; any expert will do.
    block_expert = torch.searchsorted(last_block, block, right=True).clamp(max=num_experts - 1)  # (b)
    return slot, block_expert
