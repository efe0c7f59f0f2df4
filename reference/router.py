"""The router: which experts see a token, and how much each counts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TextConfig
from .norm import wide_dtype
from .stages import stage

# T tokens   C hidden_size   E n_routed_experts   K num_experts_per_tok   G n_group


class Router(nn.Module):
    """Sigmoid scores, the best K of E after a bias. The bias steers which experts win, never how much they count.

    `e_score_correction_bias` stays float32 in every dtype. Source: DeepSeek-V3, arXiv 2412.19437, section 2.1.2,
    eq. 12-16.
    """

    def __init__(self, config: TextConfig, layer_index: int):
        super().__init__()
        self.config, self.layer_index = config, layer_index
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias = nn.Parameter(torch.zeros(config.n_routed_experts, dtype=torch.float32))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (T, C) to weights (T, K), float32, and expert ids (T, K), in no particular order.

        The weights of a token sum to routed_scaling_factor (if norm_topk_prob). All in float32: bfloat16 scores flip
        experts.
        """
        scores = self._logits(hidden).sigmoid()  # (T, E)
        scores = stage(f"layers.{self.layer_index}.router.scores", scores)  # (T, E)
        choice = self._within_best_groups(scores + self.e_score_correction_bias)  # (T, E)
        expert_ids = choice.topk(self.config.num_experts_per_tok, dim=-1).indices  # (T, K)
        expert_ids = stage(f"layers.{self.layer_index}.router.experts", expert_ids)  # (T, K)
        weights = scores.gather(-1, expert_ids)  # (T, K), without the bias
        if self.config.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)  # (T, K), rows sum to 1
        weights = weights * self.config.routed_scaling_factor  # (T, K)
        return stage(f"layers.{self.layer_index}.router.weights", weights), expert_ids

    def _logits(self, hidden: Tensor) -> Tensor:
        wide = wide_dtype(hidden.dtype)
        return F.linear(hidden.to(wide), self.weight.to(wide))  # (T, E)

    def _within_best_groups(self, choice: Tensor) -> Tensor:
        """Hide the experts outside the best `topk_group` groups. K2.5 has one group: nothing is hidden."""
        if self.config.n_group == 1:
            return choice  # (T, E)
        grouped = choice.unflatten(-1, (self.config.n_group, -1))  # (T, G, E/G)
        group_score = grouped.topk(2, dim=-1).values.sum(dim=-1)  # (T, G), the two best experts stand for a group
        best = group_score.topk(self.config.topk_group, dim=-1).indices  # (T, topk_group)
        hidden = torch.ones_like(group_score, dtype=torch.bool).scatter(-1, best, False)  # (T, G)
        return grouped.masked_fill(hidden[..., None], float("-inf")).flatten(-2)  # (T, E)
