"""Mixture of experts: the reference's routing, with all experts of a layer in two tensors and one custom op over them.

    gate_up (E, 2W, C)   the gate's rows, then the up projection's: one product instead of two
    down    (E, C, W)

Only the experts that a token chose are read. The state dict still has the published names, expert by expert.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from reference import moe as plain
from reference.config import TextConfig
from reference.int4 import PRODUCTS, WEIGHTS_PER_WORD
from reference.mlp import SwiGLU

from . import cpu_experts
from .int4 import Int4Stack
from .linear import Router
from .ops import dense_experts, int4_experts

# n tokens of the whole batch in a row   C hidden_size   K num_experts_per_tok   E n_routed_experts
# W moe_intermediate_size   O outputs   I inputs   w words of a row: I/8   g groups of a row: I/32


class MixtureOfExperts(plain.MixtureOfExperts):
    """The reference's forward; `experts` holds all of them."""

    def __init__(self, config: TextConfig, layer_index: int):
        nn.Module.__init__(self)
        self.layer_index = layer_index
        self.gate = Router(config, layer_index)
        width = config.moe_intermediate_size
        self.experts: DenseExperts | Int4Experts = DenseExperts(config.n_routed_experts, config.hidden_size, width)
        self.shared_experts = SwiGLU(config.hidden_size, width * config.n_shared_experts)

    def _routed(self, tokens: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        return self.experts(tokens, weights, expert_ids)  # (n, C)


class Experts(nn.Module, ABC):
    """What both kinds share: tensors under the published names in the state dict, one expert after the other."""

    may_generate = False  # whether torch.compile may be asked for kernels

    def use_generated(self) -> None:
        """Run on kernels that torch.compile generates, from the next call on."""
        self.may_generate = True

    def _joins_the_graph(self, tokens: Tensor) -> bool:
        """Whether tokens (n, C) are one token, decoded on a CPU in a graph that is being compiled.

        Its experts then become part of that graph. The operator would compute the same, but calling a compiled function
        out of another one costs half as much as its work.
        """
        return torch.compiler.is_compiling() and tokens.shape[0] == 1 and tokens.device.type == "cpu"

    @abstractmethod
    def published(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) as in the published files."""

    @abstractmethod
    def take(self, tensors: dict[str, Tensor]) -> None:
        """Keep these published tensors in the layout of this class."""

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        destination.update({prefix + name: tensor for name, tensor in self.published()})

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, strict: bool, missing_keys: list,
        unexpected_keys: list, error_msgs: list,
    ) -> None:  # fmt: skip
        """PyTorch's hook for `load_state_dict`: complain about what is missing or misshapen, take the rest.

        As everywhere in PyTorch, tensors take on this module's dtype and device unless they are assigned.
        """
        assign = local_metadata.get("assign_to_params_buffers", False)
        tensors = dict(self.published())
        for name, own in tensors.items():
            given = state_dict.get(prefix + name)
            if given is None:
                missing_keys.append(prefix + name)
            elif given.shape != own.shape:
                error_msgs.append(f"{prefix}{name}: shape {list(given.shape)}, expected {list(own.shape)}")
            else:
                tensors[name] = given if assign else given.to(own)
        if strict:
            known = {prefix + name for name in tensors}
            unexpected_keys += [name for name in state_dict if name.startswith(prefix) and name not in known]
        has_gaps = len({tensor.is_meta for tensor in tensors.values()}) > 1  # on the meta device nothing is kept
        if not error_msgs and not has_gaps:
            self.take(tensors)


class DenseExperts(Experts):
    """Experts as they are trained or released without quantisation."""

    def __init__(self, num_experts: int, hidden_size: int, width: int):
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * width, hidden_size))  # (E, 2W, C)
        self.down = nn.Parameter(torch.empty(num_experts, hidden_size, width))  # (E, C, W)

    def forward(self, tokens: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        """tokens (n, C), weights (n, K) and expert_ids (n, K) of the router to (n, C)."""
        if self._joins_the_graph(tokens):
            return cpu_experts.gathered_dense(tokens, weights, expert_ids, self.gate_up, self.down)
        return dense_experts(tokens, weights, expert_ids, self.gate_up, self.down, self.may_generate)

    def published(self) -> Iterator[tuple[str, Tensor]]:
        for i, (gate_up, down) in enumerate(zip(self.gate_up.detach(), self.down.detach(), strict=True)):
            gate, up = gate_up.chunk(2)  # (W, C) (W, C)
            yield from {f"{i}.gate_proj.weight": gate, f"{i}.up_proj.weight": up, f"{i}.down_proj.weight": down}.items()

    def take(self, tensors: dict[str, Tensor]) -> None:
        experts = range(len(self.gate_up))
        gate_up = [torch.cat([tensors[f"{i}.{name}_proj.weight"] for name in ("gate", "up")]) for i in experts]
        down = [tensors[f"{i}.down_proj.weight"] for i in experts]
        self.gate_up = nn.Parameter(torch.stack(gate_up), requires_grad=False)  # (E, 2W, C)
        self.down = nn.Parameter(torch.stack(down), requires_grad=False)  # (E, C, W)


class Int4Experts(Experts):
    """Packed experts. `product` is the convention of `reference.int4.dequantize`.

    float32 runs round integer * scale as the reference does, so that both agree; bfloat16 runs stay exact, which is
    nearer to the weights that were trained and what the fast operators compute. Where no product rounds, as in the
    shipped model, there is nothing to choose.
    """

    def __init__(self, num_experts: int, hidden_size: int, width: int, dtype: torch.dtype):
        super().__init__()
        self.dtype, self.product = dtype, PRODUCTS[0] if dtype == torch.float32 else "exact"
        self.gate_up = Int4Stack(num_experts, 2 * width, hidden_size)
        self.down = Int4Stack(num_experts, hidden_size, width)

    def use_generated(self) -> None:
        super().use_generated()
        self.gate_up.use_lanes()
        self.down.use_lanes()

    def forward(self, tokens: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        """tokens (n, C), weights (n, K) and expert_ids (n, K) of the router to (n, C)."""
        gate_up, down = self.gate_up, self.down
        rounded = self.product == "bfloat16" and (gate_up.may_round or down.may_round)
        stacks = gate_up.weight, gate_up.scale, down.weight, down.scale
        if self._joins_the_graph(tokens) and gate_up.layout == down.layout == "lanes":
            return cpu_experts.gathered_int4(tokens, weights, expert_ids, *stacks, rounded)
        return int4_experts(tokens, weights, expert_ids, *stacks, rounded)

    def published(self) -> Iterator[tuple[str, Tensor]]:
        for i in range(self.gate_up.weight.shape[0]):
            words, scale = self.gate_up.published(i)  # (2W, w) (2W, g)
            halves = zip(words.chunk(2), scale.chunk(2), strict=True)
            for name, pair in zip(("gate", "up", "down"), (*halves, self.down.published(i)), strict=True):
                shape = torch.tensor([pair[0].shape[0], pair[0].shape[1] * WEIGHTS_PER_WORD], dtype=torch.int32)
                parts = {"packed": pair[0], "scale": pair[1], "shape": shape.to(pair[0].device)}
                yield from ((f"{i}.{name}_proj.weight_{part}", tensor) for part, tensor in parts.items())

    def take(self, tensors: dict[str, Tensor]) -> None:
        def stacked(part: str, *names: str) -> Tensor:
            experts = range(self.gate_up.weight.shape[0])
            return torch.stack([torch.cat([tensors[f"{i}.{n}_proj.weight_{part}"] for n in names]) for i in experts])

        self.gate_up.take(stacked("packed", "gate", "up"), stacked("scale", "gate", "up"), self.dtype)
        self.down.take(stacked("packed", "down"), stacked("scale", "down"), self.dtype)
        if self.may_generate:
            self.use_generated()
