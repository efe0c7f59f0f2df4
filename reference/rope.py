"""Rotary positions of the text model, stretched by YaRN.

A pair of neighbouring components (2i, 2i+1) turns by position * inverse_frequency[i]. YaRN leaves the fast pairs as
they were trained, slows the slow ones by `factor`, and ramps between. It holds at every position, in short prompts too.
Source: YaRN, arXiv 2309.00071, section 3; DeepSeek-V2, arXiv 2405.04434, section 3.1.4.
"""

import math

import torch
from torch import Tensor

from .config import RopeScaling, TextConfig
from .norm import wide_dtype

# B batch   T new tokens   P qk_rope_head_dim   P/2 rotary pairs


def inverse_frequencies(config: TextConfig) -> Tensor:
    """Radians per position of each pair: (P/2,) float32."""
    size, base = config.qk_rope_head_dim, config.rope_theta
    wavelengths = base ** (torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size)  # (P/2)
    unscaled = 1.0 / wavelengths  # (P/2)
    if config.rope_scaling is None:
        return unscaled  # (P/2)
    slowed = 1.0 / (config.rope_scaling.factor * wavelengths)  # (P/2)
    low, high = _ramp_ends(config.rope_scaling, size, base)
    pair = torch.arange(size // 2, dtype=torch.float32, device="cpu")  # (P/2)
    keep = 1.0 - ((pair - low) / (high - low)).clamp(0, 1)  # (P/2), 1 for fast pairs, 0 for slow ones
    return slowed * (1 - keep) + unscaled * keep  # (P/2)


def _ramp_ends(scaling: RopeScaling, size: int, base: float) -> tuple[float, float]:
    """The pairs at which slowing begins and is complete.

    A pair that makes `turns` full turns over the original context lies at the index that `pair_at` gives. The upper
    clip is size - 1, not size / 2 - 1: that is the published formula.
    """

    def pair_at(turns: float) -> float:
        return size * math.log(scaling.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_at(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_at(scaling.beta_slow)), size - 1)
    return low, high + 0.001 if low == high else high


def _magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(config: TextConfig) -> float:
    """What the scores are multiplied by: 1/sqrt(head dimension), times mscale squared under YaRN.

    The square is right: it stands for one mscale on the queries and one on the keys.
    """
    scale = config.qk_head_dim**-0.5
    if config.rope_scaling is not None:
        scale *= _magnitude(config.rope_scaling.factor, config.rope_scaling.mscale_all_dim) ** 2
    return scale


def rotation(
    positions: Tensor, config: TextConfig, dtype: torch.dtype, frequencies: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin for `rotate`. positions (B, T) int64; both results (B, T, P/2) of `dtype`.

    frequencies: `inverse_frequencies(config)` where the positions are, for whoever keeps them there.
    The angle is a float32 product, by definition of the published code, whatever the dtype of the run.
    """
    if frequencies is None:
        frequencies = inverse_frequencies(config).to(positions.device)  # (P/2)
    angles = positions[..., None].float() * frequencies  # (B, T, P/2)
    angles = angles.to(wide_dtype(dtype))  # (B, T, P/2)
    scaling = config.rope_scaling
    # K2.5 has mscale == mscale_all_dim, which makes this 1: the whole effect is in softmax_scale.
    ratio = 1.0
    if scaling is not None:
        ratio = _magnitude(scaling.factor, scaling.mscale) / _magnitude(scaling.factor, scaling.mscale_all_dim)
    return (angles.cos() * ratio).to(dtype), (angles.sin() * ratio).to(dtype)


def rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each neighbouring pair of the last axis (P). cos and sin end in P/2 and broadcast over the axes before.

    Pairs stay where they are (x0 y0 x1 y1 ...), as in vLLM and the DeepSeek demo. The Hugging Face code moves them into
    halves (x0 x1 ... y0 y1 ...) on the way: the same permutation on queries and keys, so the scores are equal. Rotating
    halves without moving them first would load and run, and be wrong.
    """
    x, y = vectors.unflatten(-1, (-1, 2)).unbind(dim=-1)  # (..., P/2) (..., P/2)
    turned = torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)  # (..., P/2, 2)
    return turned.flatten(-2)  # (..., P)
