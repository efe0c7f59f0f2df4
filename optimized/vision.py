"""MoonViT-3D for speed: fused attention inside each medium, or FlexAttention over all media at once.

As reference/vision.py. A medium's patches see one another and nothing else; FlexAttention gets that as a block-diagonal
mask over the one long axis of patches, so many small pictures make one kernel.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from reference import vision as plain
from reference.config import VisionConfig
from reference.stages import stage

from . import capability

# L patches of all media   l patches of one medium   D vt_hidden_size   H vt_num_attention_heads   d head_dim


class VisionTower(plain.VisionTower):
    def __init__(self, config: VisionConfig):
        nn.Module.__init__(self)
        self.config = config
        self.patch_embed = plain.PatchEmbedding(config)
        self.encoder = Encoder(config)


class Encoder(plain.Encoder):
    def __init__(self, config: VisionConfig):
        nn.Module.__init__(self)
        self.head_dim = config.head_dim
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.vt_num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.vt_hidden_size, eps=plain.LAYER_NORM_EPS)
        self.attention = "auto"

    def forward(self, hidden: Tensor, grids: list[tuple[int, int, int]]) -> Tensor:
        """hidden (L, D) to (L, D)."""
        turns = [plain.rotation_2d(*grid, self.head_dim, hidden.device) for grid in grids]
        cos, sin = (torch.cat(parts)[:, None] for parts in zip(*turns, strict=True))  # (L, 1, d/2) (L, 1, d/2)
        lengths = [t * h * w for t, h, w in grids]
        fuses = hidden.is_cuda and capability.has_compiler(hidden.device)
        use_flex = self.attention == "flex" or (self.attention == "auto" and fuses and len(grids) > 1)
        media = block_diagonal(lengths, hidden.device) if use_flex else lengths
        for i, block in enumerate(self.blocks):
            hidden = stage(f"vision.blocks.{i}", block(hidden, cos, sin, media))  # (L, D)
        return stage("vision.final_layernorm", self.final_layernorm(hidden))  # (L, D)


class Block(plain.Block):
    def _attention(self, hidden: Tensor, cos: Tensor, sin: Tensor, media: list[int] | BlockMask) -> Tensor:
        qkv = self.wqkv(hidden).unflatten(-1, (3, self.num_heads, -1))  # (L, 3, H, d)
        query, key, value = qkv.unbind(dim=1)  # (L, H, d) (L, H, d) (L, H, d)
        query, key = plain.rotate_wide(query, cos, sin), plain.rotate_wide(key, cos, sin)  # (L, H, d) (L, H, d)
        query, key, value = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))  # (1, H, L, d)
        if isinstance(media, BlockMask):
            attend = compiled_flex() if query.is_cuda else flex_attention  # uncompiled, it writes out all scores
            heads = attend(query, key, value, block_mask=media)  # (1, H, L, d)
        else:
            parts = zip(*(tensor.split(media, dim=2) for tensor in (query, key, value)), strict=True)
            heads = torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=2)  # (1, H, L, d)
        return self.wo(heads[0].transpose(0, 1).flatten(1))  # (L, D)


@functools.cache
def compiled_flex() -> Callable:
    """FlexAttention for any number of patches: one kernel, however many media."""
    return torch.compile(flex_attention, dynamic=True)


def block_diagonal(lengths: list[int], device: torch.device) -> BlockMask:
    """Every patch sees the patches of its own medium."""
    medium = torch.repeat_interleave(torch.tensor(lengths, device=device))  # (L), index of each patch's medium

    def same_medium(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return medium[query] == medium[key]

    return create_block_mask(same_medium, None, None, len(medium), len(medium), device=device)
