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


def pick(stack: Tensor, indices: Tensor) -> Tensor:
    """stack[indices] along the first axis.

    By the operator's name: PyTorch without CUDA cannot trace brackets on a fake CUDA tensor, and the test that looks
    at the generated kernels has no other.
    """
    return torch.ops.aten.index.Tensor(stack, [indices])


def gathered_matvec(hidden: Tensor, words: Tensor, scale: Tensor, expert_ids: Tensor, rounded: bool) -> Tensor:
    """Row a of hidden (A, I) times the weights of expert expert_ids[a]: (A, O) float32.

    words (E, O, w) and scale (E, O, g) are read only where an expert is chosen; no (A, O, I) weight ever exists.
    """
    picked = pick(words, expert_ids).unflatten(-1, (-1, WORDS_PER_GROUP))  # (A, O, g, 4)
    factor = pick(scale, expert_ids).unsqueeze(-1)  # (A, O, g, 1)
    columns = hidden.float().unflatten(-1, (-1, WORDS_PER_GROUP, WEIGHTS_PER_WORD)).unsqueeze(1)  # (A, 1, g, 4, 8)
    total = torch.zeros((), device=hidden.device)
    for i, column in enumerate(columns.unbind(-1)):  # each (A, 1, g, 4)
        integer = ((picked >> (4 * i)) & 15) - 8  # (A, O, g, 4)
        total = total + _weight(integer, factor, rounded) * column  # (A, O, g, 4)
    return total.sum((-1, -2))


def _weight(integer: Tensor, scale: Tensor, rounded: bool) -> Tensor:
    """integer * scale, exact in float32 or rounded to bfloat16 on the way."""
    weight = integer.float() * scale.float()
    return round_to_bfloat16(weight) if rounded else weight


def round_to_bfloat16(weight: Tensor) -> Tensor:
    """float32 numbers with bfloat16's bits, half to even.

    By hand: Inductor keeps float32 where bfloat16 is only passed through, and would not round.
    """
    bits = weight.view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(torch.float32)


def grouped_product(halves: Tensor, words: Tensor, scale: Tensor, block_expert: Tensor, rounded: bool) -> Tensor:
    """Each block of rows times its expert's weights: halves (2, b, R, I/2), block_expert (b,) to (b, R, O).

    A byte of a word holds an even column low and the odd one after it high. The rows come split in the same way: two
    products of half the width, and no nibble has to be moved to where its neighbour is.
    """
    packed = pick(words.view(torch.uint8), block_expert).transpose(1, 2)  # (b, I/2, O)
    half_group = INT4_GROUP_SIZE // 2
    factor = pick(scale, block_expert).transpose(1, 2).repeat_interleave(half_group, dim=1)  # (b, I/2, O)
    even, odd = halves.unbind(0)  # (b, R, I/2) (b, R, I/2)
    low = _weight((packed & 15).to(torch.int8) - 8, factor, rounded).to(halves.dtype)  # (b, I/2, O)
    high = _weight((packed >> 4).to(torch.int8) - 8, factor, rounded).to(halves.dtype)  # (b, I/2, O)
    return torch.bmm(even, low) + torch.bmm(odd, high)


def make_blocks(expert_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort assignments by expert and give each expert whole blocks, without asking the device how many it has.

    expert_ids (A,) to slot (A,), the row that each assignment gets; source (b*R,), the assignment of each row; and
    block_expert (b,). The number of blocks is the most that could be needed, so that every shape is known before the
    routing is: rows and blocks left over repeat others, and nobody reads them.
    """
    num_assignments, device = len(expert_ids), expert_ids.device
    num_blocks = -(-num_assignments // BLOCK_ROWS) + min(num_experts, num_assignments)
    in_order, order = expert_ids.sort(stable=True)  # (A) (A)
    expert = torch.arange(num_experts, device=device)  # (E)
    first = torch.searchsorted(in_order, expert)  # (E), where its run begins in the order
    load = torch.searchsorted(in_order, expert, right=True) - first  # (E)
    blocks = (load + BLOCK_ROWS - 1) // BLOCK_ROWS  # (E)
    last_block = blocks.cumsum(0)  # (E), one past it
    shift = (last_block - blocks) * BLOCK_ROWS - first  # (E), from the order to the padded rows
    row = torch.arange(num_assignments, device=device) + pick(shift, in_order)  # (A)
    slot = torch.zeros_like(expert_ids).scatter(0, order, row)  # (A)
    block = torch.arange(num_blocks, device=device)  # (b)
    block_expert = torch.searchsorted(last_block, block, right=True).clamp(max=num_experts - 1)  # (b)
    place = torch.arange(num_blocks * BLOCK_ROWS, device=device)  # (b*R)
    place = place - pick(shift, block_expert.repeat_interleave(BLOCK_ROWS))  # (b*R), back to the order
    source = pick(order, place.clamp(0, num_assignments - 1))  # (b*R)
    return slot, source, block_expert
