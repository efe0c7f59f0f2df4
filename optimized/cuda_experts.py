"""What the experts' operators run on CUDA: kernels that Inductor generates, without one question to the device.

Nothing here waits for the routing: every shape is known before it, so the host runs ahead and CUDA graphs can record.
Up to GATHERED_ON_CUDA assignments each one reads its expert by itself, three kernels in all. Beyond, they are sorted by
expert into blocks, and each matrix is one kernel over all blocks.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .capability import GATHERED_ON_CUDA
from .cpu_experts import weigh
from .generated import on_cuda
from .int4_words import BLOCK_ROWS, gathered_matvec, grouped_product, make_blocks, pick

# n tokens   C hidden_size   K num_experts_per_tok   A assignments: n*K   E n_routed_experts   W moe_intermediate_size
# O outputs   I inputs   b blocks   R rows of a block

LARGEST_PART = 8192  # tokens sorted at a time: each size compiles anew, so there must be few
NATIVE = {"triton.native_matmul": True}  # products written out in Triton, so that unpacking fuses into them
GATHER = {"triton.max_tiles": 1}  # tiles over assignments and outputs would leave four words a step to each row


def dense(tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`kimi::dense_experts`."""
    if expert_ids.numel() <= GATHERED_ON_CUDA:
        return dense_gathered(tokens, weights, expert_ids, gate_up, down)
    return in_blocks(tokens, weights, expert_ids, dense_grouped, (gate_up,), (down,))


def int4(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor,
    down_scale: Tensor, rounded: bool,
) -> Tensor:  # fmt: skip
    """`kimi::int4_experts` on words."""
    stacks = gate_up, gate_up_scale, down, down_scale
    if expert_ids.numel() <= GATHERED_ON_CUDA:
        return int4_gathered(tokens, weights, expert_ids, *stacks, rounded)
    return in_blocks(tokens, weights, expert_ids, int4_grouped, (*stacks[:2], rounded), (*stacks[2:], rounded))


@on_cuda(**GATHER)
def dense_gathered(tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """tokens (n, C), weights (n, K), expert_ids (n, K), gate_up (E, 2W, C), down (E, C, W) to (n, C)."""
    flat, rows = _assignments(tokens, expert_ids)
    gate, up = _dense_matvec(rows, gate_up, flat).chunk(2, dim=-1)  # (A, W) (A, W)
    hidden = (F.silu(gate) * up).to(tokens.dtype)  # (A, W)
    return weigh(_dense_matvec(hidden, down, flat), weights, tokens.dtype)


@on_cuda(**GATHER)
def int4_gathered(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor,
    down_scale: Tensor, rounded: bool,
) -> Tensor:  # fmt: skip
    """The same over words and scales."""
    flat, rows = _assignments(tokens, expert_ids)
    gate, up = gathered_matvec(rows, gate_up, gate_up_scale, flat, rounded).chunk(2, dim=-1)  # (A, W) (A, W)
    hidden = (F.silu(gate) * up).to(tokens.dtype)  # (A, W)
    return weigh(gathered_matvec(hidden, down, down_scale, flat, rounded), weights, tokens.dtype)


def _assignments(tokens: Tensor, expert_ids: Tensor) -> tuple[Tensor, Tensor]:
    return expert_ids.flatten(), tokens.repeat_interleave(expert_ids.shape[-1], dim=0)  # (A) (A, C)


def _dense_matvec(rows: Tensor, stack: Tensor, experts: Tensor) -> Tensor:
    """rows (A, I) times stack (E, O, I) of each row's expert: (A, O) float32."""
    return (pick(stack, experts).float() * rows.unsqueeze(1).float()).sum(-1)  # (A, O)


def in_blocks(
    tokens: Tensor, weights: Tensor, expert_ids: Tensor, grouped: Callable, gate_up: tuple, down: tuple
) -> Tensor:
    """Part by part, each filled up to a power of two with tokens that nobody reads."""
    outputs = []
    for part in zip(*(t.split(LARGEST_PART) for t in (tokens, weights, expert_ids)), strict=True):
        num_tokens = len(part[0])
        size = 1 << (num_tokens - 1).bit_length()
        rows, counts, experts = (F.pad(tensor, (0, 0, 0, size - num_tokens)) for tensor in part)
        halves, slot, block_expert = to_blocks(rows, experts, len(gate_up[0]))
        hidden = gated_halves(grouped(halves, block_expert, *gate_up))  # (2, b, R, W/2)
        mixed = weigh_blocks(grouped(hidden, block_expert, *down), slot, counts)  # (size, C)
        outputs.append(mixed[:num_tokens])
    return torch.cat(outputs)


@on_cuda()
def to_blocks(tokens: Tensor, expert_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """tokens (n, C) as halves (2, b, R, C/2) of blocks, each assignment's slot (A,), and each block's expert (b,).

    Even columns are one half, odd ones the other, as the bytes of `grouped_product` want them.
    """
    slot, source, block_expert = make_blocks(expert_ids.flatten(), num_experts)
    rows = pick(tokens, source // expert_ids.shape[-1])  # (b*R, C)
    return split_columns(rows.unflatten(0, (-1, BLOCK_ROWS))), slot, block_expert


def split_columns(rows: Tensor) -> Tensor:
    """(..., I) to (2, ..., I/2): even columns, then odd ones."""
    return torch.stack(rows.unflatten(-1, (-1, 2)).unbind(-1))


@on_cuda()
def gated_halves(gate_up: Tensor) -> Tensor:
    """SwiGLU's activation: (b, R, 2W) to (2, b, R, W/2)."""
    gate, up = gate_up.chunk(2, dim=-1)  # (b, R, W) (b, R, W)
    return split_columns(F.silu(gate) * up)


@on_cuda()
def weigh_blocks(outputs: Tensor, slot: Tensor, weights: Tensor) -> Tensor:
    """outputs (b, R, C) back in the order of the assignments, weighted and summed per token: (n, C)."""
    return weigh(pick(outputs.flatten(0, 1), slot), weights, outputs.dtype)


@on_cuda(**NATIVE)
def int4_grouped(halves: Tensor, block_expert: Tensor, words: Tensor, scale: Tensor, rounded: bool) -> Tensor:
    """halves (2, b, R, I/2) times the words (E, O, I/8) of each block's expert: (b, R, O)."""
    return grouped_product(halves, words, scale, block_expert, rounded)


@on_cuda(**NATIVE)
def dense_grouped(halves: Tensor, block_expert: Tensor, stack: Tensor) -> Tensor:
    """halves (2, b, R, I/2) times the matrix (E, O, I) of each block's expert: (b, R, O)."""
    blocks = halves.movedim(0, -1).flatten(-2)  # (b, R, I)
    return torch.bmm(blocks, pick(stack, block_expert).transpose(1, 2))
