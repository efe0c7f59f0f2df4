"""Mixture of experts: each token visits a few routed experts, and every token visits the shared one."""

import torch
from torch import Tensor, nn

from .config import TextConfig
from .mlp import SwiGLU
from .norm import wide_dtype
from .router import Router
from .stages import stage

# B batch   T new tokens   n tokens of the whole batch in a row: B*T   C hidden_size   K num_experts_per_tok
# A assignments: n*K


class MixtureOfExperts(nn.Module):
    """Source: DeepSeekMoE, arXiv 2401.06066, section 3; DeepSeek-V3, arXiv 2412.19437, section 2.1.2."""

    def __init__(self, config: TextConfig, layer_index: int):
        super().__init__()
        self.layer_index = layer_index
        self.gate = Router(config, layer_index)
        width = config.moe_intermediate_size
        self.experts = nn.ModuleList(SwiGLU(config.hidden_size, width) for _ in range(config.n_routed_experts))
        # Several shared experts are one wide MLP, and it counts without a weight.
        self.shared_experts = SwiGLU(config.hidden_size, width * config.n_shared_experts)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, C) to (B, T, C)."""
        tokens = hidden.flatten(0, 1)  # (n, C)
        weights, expert_ids = self.gate(tokens)  # (n, K) (n, K)
        routed = self._routed(tokens, weights, expert_ids)  # (n, C)
        routed = stage(f"layers.{self.layer_index}.moe.routed", routed)  # (n, C)
        shared = stage(f"layers.{self.layer_index}.moe.shared", self.shared_experts(tokens))  # (n, C)
        return (routed + shared).view_as(hidden)

    def _routed(self, tokens: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        """Sort the assignments by expert, run each expert on its tokens, put the results back, sum per token."""
        order = expert_ids.flatten().argsort(stable=True)  # (A)
        tokens_per_expert = expert_ids.flatten().bincount(minlength=len(self.experts)).tolist()
        groups = tokens[order // expert_ids.shape[-1]].split(tokens_per_expert)
        outputs = torch.cat(
            [expert(group) for expert, group in zip(self.experts, groups, strict=True) if len(group)]
        )  # (A, C)
        per_token = outputs[order.argsort()].view(*expert_ids.shape, -1)  # (n, K, C)
        wide = wide_dtype(tokens.dtype)
        # Products and their sum in float32, rounded once. Summing in bfloat16 would depend on the experts' order.
        return (per_token.to(wide) * weights[..., None]).sum(dim=1).to(tokens.dtype)  # (n, C)
