"""The projector: four neighbouring patches become one vector of the text model's width."""

import torch.nn.functional as F
from torch import Tensor, nn

from .config import VisionConfig
from .stages import stage

# m merged tokens of all media   D vt_hidden_size   F merged size: D times the patches of a merge window   C hidden_size


class PatchMergerMLP(nn.Module):
    """K2.5's "patchmerger": norm each patch, join the four, Linear - exact GELU - Linear."""

    def __init__(self, config: VisionConfig, hidden_size: int):
        super().__init__()
        self.pre_norm = nn.LayerNorm(config.vt_hidden_size, eps=config.projector_ln_eps)
        merged = config.merged_size
        self.proj = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, hidden_size))

    def forward(self, patches: Tensor) -> Tensor:
        """(m, merge window, D) to (m, C)."""
        joined = self.pre_norm(patches).flatten(1)  # (m, F)
        return stage("vision.features", self.proj(joined))  # (m, C)


class KimiVLProjector(nn.Module):
    """The same function under Kimi-VL's tensor names, linear_1 and linear_2."""

    def __init__(self, config: VisionConfig, hidden_size: int):
        super().__init__()
        self.pre_norm = nn.LayerNorm(config.vt_hidden_size, eps=config.projector_ln_eps)
        self.linear_1 = nn.Linear(config.merged_size, config.merged_size)
        self.linear_2 = nn.Linear(config.merged_size, hidden_size)

    def forward(self, patches: Tensor) -> Tensor:
        """(m, merge window, D) to (m, C)."""
        joined = self.pre_norm(patches).flatten(1)  # (m, F)
        return stage("vision.features", self.linear_2(F.gelu(self.linear_1(joined))))  # (m, C)
