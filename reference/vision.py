"""MoonViT-3D: images of any size and short clips of video to features, in their native resolution.

Every medium is a grid of 14x14-pixel patches: t frames (1 for an image, up to 4 for a chunk of video) of h rows and w
columns. All patches of all media lie in one long axis L; a medium's patches attend to one another and to nothing else.
Source: Kimi K2.5, arXiv 2602.02276, section 2; Kimi-VL, arXiv 2504.07491, section 2.1; NaViT, arXiv 2307.06304.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VisionConfig
from .errors import MediaError
from .norm import wide_dtype
from .stages import stage

# L patches of all media   l patches of one medium   M media   D vt_hidden_size   H vt_num_attention_heads   d head_dim
# t frames   h rows   w columns   X numbers of one patch: 3 * 14 * 14   W vt_intermediate_size   q queries of one block
# m merged tokens of all media

QUERY_BLOCK = 1024  # patches scored at once: a picture of 17,856 patches never builds heads * 17,856 * 17,856 scores
LAYER_NORM_EPS = 1e-5
ROPE_BASE = 10000.0


def check_media(pixel_values: Tensor, grid_thws: Tensor, config: VisionConfig) -> None:
    """Raise MediaError unless the patches fill the grids and the grids suit the tower."""
    size, (down, across), longest = config.patch_size, config.merge_kernel_size, config.init_pos_emb_time
    if pixel_values.shape[1:] != (3, size, size) or not pixel_values.is_floating_point():
        raise MediaError(f"pixel_values are {pixel_values.dtype} {list(pixel_values.shape)}, expected floats "
                         f"[patches, 3, {size}, {size}]. Make them with python -m tools.preprocess.")
    if grid_thws.dim() != 2 or grid_thws.shape[1] != 3 or grid_thws.dtype != torch.int64:
        raise MediaError(f"grid_thws are {grid_thws.dtype} {list(grid_thws.shape)}, expected int64 [media, 3]. "
                         "Make them with python -m tools.preprocess.")
    for i, (t, h, w) in enumerate(grid_thws.tolist()):
        if not 1 <= t <= longest:
            raise MediaError(f"grid_thws[{i}] has {t} frames, expected 1 to {longest}. Split the clip into chunks.")
        if h < 1 or w < 1 or h % down or w % across:
            raise MediaError(f"grid_thws[{i}] is {h} x {w} patches, expected positive multiples of {down} x {across}: "
                             "the patches that merge into one token. Pad the picture.")
    num_patches = int(grid_thws.prod(dim=1).sum())
    if num_patches != len(pixel_values):
        raise MediaError(f"grid_thws describe {num_patches} patches but pixel_values hold {len(pixel_values)}; they "
                         "must be equal. Take both from one run of the preprocessing.")


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        self.encoder = Encoder(config)

    def forward(self, pixel_values: Tensor, grid_thws: Tensor) -> Tensor:
        """pixel_values (L, 3, 14, 14) and grid_thws (M, 3) to merged patches (m, merge window, D)."""
        check_media(pixel_values, grid_thws, self.config)
        grids = [tuple(grid) for grid in grid_thws.tolist()]
        hidden = self.patch_embed(pixel_values, grids)  # (L, D)
        hidden = self.encoder(stage("vision.patches", hidden), grids)  # (L, D)
        return stage("vision.pooled", pool_frames_and_merge(hidden, grids, self.config.merge_kernel_size))


class PatchEmbedding(nn.Module):
    """Pixels to vectors, plus where in the picture, plus when in the clip."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        # A convolution whose stride is its kernel sees each patch once: it is a linear map of the flattened patch.
        self.proj = nn.Conv2d(3, config.vt_hidden_size, config.patch_size, stride=config.patch_size)
        self.pos_emb = PositionEmbedding(config)

    def forward(self, pixel_values: Tensor, grids: list[tuple[int, int, int]]) -> Tensor:
        pixels = pixel_values.to(self.proj.weight.dtype).flatten(1)  # (L, X)
        patches = F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)  # (L, D)
        positions = torch.cat([self.pos_emb(t, h, w) for t, h, w in grids])  # (L, D)
        return patches + positions  # (L, D)


class PositionEmbedding(nn.Module):
    """A learned table of places, resampled to the grid at hand, and a fixed table of times ("divided_fixed")."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.weight = nn.Parameter(
            torch.zeros(config.init_pos_emb_height, config.init_pos_emb_width, config.vt_hidden_size)
        )

    def forward(self, t: int, h: int, w: int) -> Tensor:
        """Position vectors of one medium, (l, D), in the table's dtype."""
        wide = self.weight.to(wide_dtype(self.weight.dtype))
        if (h, w) != self.weight.shape[:2]:
            channels_first = wide.permute(2, 0, 1)[None]
            wide = F.interpolate(channels_first, size=(h, w), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
        places = wide.flatten(0, 1)  # (h*w, D)
        if t == 1:
            return places.to(self.weight.dtype)  # (l, D), an image has no time: not even frame 0's row
        times = time_table(t, places.shape[-1]).to(places)  # (t, D)
        return (times[:, None] + places).flatten(0, 1).to(self.weight.dtype)  # (l, D)


def time_table(num_frames: int, size: int) -> Tensor:
    """One row per frame: all sines, then all cosines, of frame * 10000^(-k / (size/2)). float32 (t, D)."""
    frequency = ROPE_BASE ** -(torch.arange(size // 2, dtype=torch.float32, device="cpu") / (size // 2))  # (D/2)
    angles = torch.arange(num_frames, dtype=torch.float32, device="cpu")[:, None] * frequency  # (t, D/2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)  # (t, D)


def rotation_2d(t: int, h: int, w: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of every patch of one medium, each (l, d/2) float32.

    Pairs of components alternate: pair 2k turns by column * f_k, pair 2k+1 by row * f_k. Positions are integers, not
    rescaled; time does not enter. Splitting the head in two halves, one for x and one for y, loads and runs, and sees
    every image torn.
    """
    steps = torch.arange(0, head_dim, 4, dtype=torch.float32, device="cpu")  # (d/4)
    frequency = (ROPE_BASE ** -(steps / head_dim)).to(device)  # (d/4), the same bits on every device
    by_column = torch.arange(w, device=device)[:, None] * frequency  # (w, d/4)
    by_row = torch.arange(h, device=device)[:, None] * frequency  # (h, d/4)
    column, row = by_column.expand(h, -1, -1), by_row[:, None].expand(-1, w, -1)  # (h, w, d/4) (h, w, d/4)
    angles = torch.stack([column, row], dim=-1).flatten(2)  # (h, w, d/2), column and row in turn
    angles = angles.flatten(0, 1).repeat(t, 1)  # (l, d/2), every frame alike
    return angles.cos(), angles.sin()


class Encoder(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.vt_num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.vt_hidden_size, eps=LAYER_NORM_EPS)

    def forward(self, hidden: Tensor, grids: list[tuple[int, int, int]]) -> Tensor:
        """hidden (L, D) to (L, D)."""
        turns = [rotation_2d(*grid, self.head_dim, hidden.device) for grid in grids]
        cos, sin = (torch.cat(parts)[:, None] for parts in zip(*turns, strict=True))  # (L, 1, d/2) (L, 1, d/2)
        lengths = [t * h * w for t, h, w in grids]
        for i, block in enumerate(self.blocks):
            hidden = stage(f"vision.blocks.{i}", block(hidden, cos, sin, lengths))  # (L, D)
        return stage("vision.final_layernorm", self.final_layernorm(hidden))  # (L, D)


class Block(nn.Module):
    """Pre-norm transformer block with biases and full attention inside each medium."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        size = config.vt_hidden_size
        self.num_heads = config.vt_num_attention_heads
        self.norm0 = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        self.wqkv = nn.Linear(size, 3 * size)
        self.wo = nn.Linear(size, size)
        self.norm1 = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        self.mlp = VisionMLP(size, config.vt_intermediate_size)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, lengths: list[int]) -> Tensor:
        """hidden (L, D) to (L, D)."""
        hidden = hidden + self._attention(self.norm0(hidden), cos, sin, lengths)  # (L, D)
        return hidden + self.mlp(self.norm1(hidden))  # (L, D)

    def _attention(self, hidden: Tensor, cos: Tensor, sin: Tensor, lengths: list[int]) -> Tensor:
        qkv = self.wqkv(hidden).unflatten(-1, (3, self.num_heads, -1))  # (L, 3, H, d), all of q, then k, then v
        query, key, value = qkv.unbind(dim=1)  # (L, H, d) (L, H, d) (L, H, d)
        query, key = rotate_wide(query, cos, sin), rotate_wide(key, cos, sin)  # (L, H, d) (L, H, d)
        per_medium = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
        heads = torch.cat([full_attention(*medium) for medium in per_medium])  # (L, H, d)
        return self.wo(heads.flatten(1))  # (L, D)


class VisionMLP(nn.Module):
    def __init__(self, size: int, width: int):
        super().__init__()
        self.fc0 = nn.Linear(size, width)
        self.fc1 = nn.Linear(width, size)

    def forward(self, hidden: Tensor) -> Tensor:
        # The tanh approximation here, the exact GELU in the projector: the published model has both.
        return self.fc1(F.gelu(self.fc0(hidden), approximate="tanh"))  # (L, D)


def rotate_wide(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring pairs of (L, H, d) in float32 and round once, where the text model rotates in its own dtype."""
    x, y = vectors.to(wide_dtype(vectors.dtype)).unflatten(-1, (-1, 2)).unbind(dim=-1)  # (L, H, d/2) (L, H, d/2)
    turned = torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)  # (L, H, d/2, 2)
    return turned.flatten(-2).to(vectors.dtype)  # (L, H, d)


def full_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every patch of one medium sees every other. (l, H, d) three times to (l, H, d); softmax in float32."""
    blocks = []
    for block in query.split(QUERY_BLOCK):
        scores = torch.einsum("qhd,khd->hqk", block, key) * query.shape[-1] ** -0.5  # (H, q, l)
        weights = scores.softmax(dim=-1, dtype=wide_dtype(scores.dtype)).to(value.dtype)  # (H, q, l)
        blocks.append(torch.einsum("hqk,khd->qhd", weights, value))
    return torch.cat(blocks)  # (l, H, d)


def pool_frames_and_merge(
    hidden: Tensor, grids: list[tuple[int, int, int]], merge_kernel_size: tuple[int, int]
) -> Tensor:
    """Average each patch over the frames, then put each merge window (2x2) into one token ("sd2_tpool").

    hidden (L, D) to (m, merge window, D). A chunk of 4 frames costs the text model as much as one image. Tokens are in
    raster order; inside a token: top left, top right, bottom left, bottom right.
    """
    down, across = merge_kernel_size
    tokens = []
    for (t, h, w), medium in zip(grids, hidden.split([t * h * w for t, h, w in grids]), strict=True):
        windows = medium.unflatten(0, (t, h // down, down, w // across, across)).mean(dim=0)
        tokens.append(windows.transpose(1, 2).flatten(2, 3).flatten(0, 1))
    return torch.cat(tokens)
