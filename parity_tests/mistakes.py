"""Deliberately wrong models: mistakes that load, run and look plausible, each as one patch of the reference.

A parity test is worth something only if it notices these. `MISTAKES[name](patch, model)` makes `model` wrong until the
MonkeyPatch is undone; the tests then demand that their comparison fails by far (`agreement.assert_caught`).
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from pytest import MonkeyPatch
from torch import Tensor, nn

from reference import attention, int4, rope, vision
from reference.attention import MultiHeadLatentAttention, Step
from reference.cache import LatentCache
from reference.moe import MixtureOfExperts
from reference.router import Router
from reference.vision import PositionEmbedding, VisionMLP, VisionTower, time_table

Mistake = Callable[[MonkeyPatch, nn.Module], None]


def half_split(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate component i with component i + size/2, without having moved the pairs there."""
    x, y = vectors.chunk(2, dim=-1)
    return torch.cat([x * cos - y * sin, x * sin + y * cos], dim=-1)


def no_yarn(patch: MonkeyPatch, model: nn.Module) -> None:
    true = rope.inverse_frequencies
    patch.setattr(rope, "inverse_frequencies", lambda config: true(dataclasses.replace(config, rope_scaling=None)))


def softmax_scale(patch: MonkeyPatch, model: nn.Module, exponent: int) -> None:
    """mscale to the power of `exponent` in the softmax scale, where 2 is right."""
    for module in model.modules():
        if isinstance(module, MultiHeadLatentAttention):
            head_size, factor = sum(module.qk_sizes), model.config.text.rope_scaling.factor
            patch.setattr(module, "scale", head_size**-0.5 * (0.1 * math.log(factor) + 1) ** exponent)


def wide_latent_eps(patch: MonkeyPatch, model: nn.Module) -> None:
    for name, module in model.named_modules():
        if name.endswith(("q_a_layernorm", "kv_a_layernorm")):
            patch.setattr(module, "eps", model.config.text.rms_norm_eps)


def normed_rope_key(patch: MonkeyPatch, model: nn.Module) -> None:
    true = MultiHeadLatentAttention._latent

    def latent_and_key(self: MultiHeadLatentAttention, hidden: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        latent, k_pe = true(self, hidden, step)
        return latent, F.rms_norm(k_pe, k_pe.shape[-1:])

    patch.setattr(MultiHeadLatentAttention, "_latent", latent_and_key)


def biased_weights(patch: MonkeyPatch, model: nn.Module) -> None:
    def forward(self: Router, hidden: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(hidden, self.weight).sigmoid() + self.e_score_correction_bias
        weights, expert_ids = scores.topk(self.config.num_experts_per_tok, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True) * self.config.routed_scaling_factor, expert_ids

    patch.setattr(Router, "forward", forward)


def router_config(patch: MonkeyPatch, model: nn.Module, **changes: object) -> None:
    for module in model.modules():
        if isinstance(module, Router):
            patch.setattr(module, "config", dataclasses.replace(module.config, **changes))


def no_bias(patch: MonkeyPatch, model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Router):
            patch.setattr(module.e_score_correction_bias, "data", torch.zeros(module.config.n_routed_experts))


def no_shared_expert(patch: MonkeyPatch, model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            weight = module.shared_experts.down_proj.weight
            patch.setattr(weight, "data", torch.zeros_like(weight))


def twos_complement(patch: MonkeyPatch, model: nn.Module) -> None:
    true = int4.unpack
    patch.setattr(int4, "unpack", lambda words: true(words) + 8 - 16 * (true(words) >= 0))


def cache_off_by_one(patch: MonkeyPatch, model: nn.Module) -> None:
    true = LatentCache.length
    patch.setattr(LatentCache, "length", property(lambda self: true.fget(self) and true.fget(self) + 1))


def visible_padding(patch: MonkeyPatch, model: nn.Module) -> None:
    true = MultiHeadLatentAttention._weights
    patch.setattr(
        MultiHeadLatentAttention, "_weights",
        lambda self, scores, step, start: true(self, scores, dataclasses.replace(step, num_padding=None), start))


def visible_future(patch: MonkeyPatch, model: nn.Module) -> None:
    true = MultiHeadLatentAttention._weights
    patch.setattr(MultiHeadLatentAttention, "_weights",
                  lambda self, scores, step, start: true(self, scores, step, start + 1))


def half_split_2d(patch: MonkeyPatch, model: nn.Module) -> None:
    patch.setattr(vision, "rotate_wide", half_split)


def rotary_rows_first(patch: MonkeyPatch, model: nn.Module) -> None:
    """Even pairs by row and odd pairs by column, as a comment in the published code has it."""
    true = vision.rotation_2d

    def swapped(*grid: object) -> tuple[Tensor, Tensor]:
        return tuple(part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) for part in true(*grid))

    patch.setattr(vision, "rotation_2d", swapped)


def swapped_grid(patch: MonkeyPatch, model: nn.Module) -> None:
    true = VisionTower.forward
    patch.setattr(VisionTower, "forward", lambda self, pixels, grids: true(self, pixels, grids[:, [0, 2, 1]]))


def resampling(patch: MonkeyPatch, model: nn.Module, **options: object) -> None:
    true = F.interpolate
    patch.setattr(F, "interpolate", lambda table, **given: true(table, **(given | options)))


def time_always(patch: MonkeyPatch, model: nn.Module) -> None:
    """Row 0 of the time table on an image: it is not zero, its cosines are 1."""
    true = PositionEmbedding.forward

    def forward(self: PositionEmbedding, t: int, h: int, w: int) -> Tensor:
        places = true(self, t, h, w)
        return places + time_table(1, places.shape[-1]).to(places) if t == 1 else places

    patch.setattr(PositionEmbedding, "forward", forward)


def no_time(patch: MonkeyPatch, model: nn.Module) -> None:
    patch.setattr(vision, "time_table", lambda num_frames, size: torch.zeros(num_frames, size))


def interleaved_time(patch: MonkeyPatch, model: nn.Module) -> None:
    """sin cos sin cos, as in the Transformer paper, instead of all sines first."""
    patch.setattr(vision, "time_table",
                  lambda t, size: time_table(t, size).unflatten(-1, (2, -1)).transpose(1, 2).flatten(1))


def attention_across_media(patch: MonkeyPatch, model: nn.Module) -> None:
    true = vision.Block._attention
    patch.setattr(vision.Block, "_attention",
                  lambda self, hidden, cos, sin, lengths: true(self, hidden, cos, sin, [sum(lengths)]))


def exact_gelu_in_tower(patch: MonkeyPatch, model: nn.Module) -> None:
    patch.setattr(VisionMLP, "forward", lambda self, hidden: self.fc1(F.gelu(self.fc0(hidden))))


def tanh_gelu_in_projector(patch: MonkeyPatch, model: nn.Module) -> None:
    patch.setattr(model.mm_projector.proj[1], "approximate", "tanh")


TEXT_MISTAKES: dict[str, Mistake] = {
    "text rotary by halves": lambda patch, model: patch.setattr(attention, "rotate", half_split),
    "no YaRN": no_yarn,
    "no mscale in the softmax": partial(softmax_scale, exponent=0),
    "mscale once in the softmax": partial(softmax_scale, exponent=1),
    "rotary key normed with the latent": normed_rope_key,
    "router bias counted as weight": biased_weights,
    "router bias ignored": no_bias,
    "top-k weights not renormalised": partial(router_config, norm_topk_prob=False),
    "routed_scaling_factor dropped": partial(router_config, routed_scaling_factor=1.0),
    "shared expert dropped": no_shared_expert,
    "causal mask off by one": visible_future,
}
LATENT_EPS = {"rms_norm_eps in the latent norms": wide_latent_eps}
INT4_MISTAKES: dict[str, Mistake] = {"nibbles as two's complement": twos_complement}
CACHE_MISTAKES: dict[str, Mistake] = {"cache off by one": cache_off_by_one}
PADDING_MISTAKES: dict[str, Mistake] = {"padding not masked": visible_padding}
IMAGE_MISTAKES: dict[str, Mistake] = {
    "2-D rotary by halves": half_split_2d,
    "2-D rotary rows first": rotary_rows_first,
    "h and w swapped": swapped_grid,
    "align_corners": partial(resampling, align_corners=True),
    "antialias": partial(resampling, antialias=True),
    "bilinear": partial(resampling, mode="bilinear"),
    "temporal row at t = 1": time_always,
    "exact GELU in the tower": exact_gelu_in_tower,
    "tanh GELU in the projector": tanh_gelu_in_projector,
}
VIDEO_MISTAKES: dict[str, Mistake] = {"no temporal row": no_time, "sines and cosines interleaved": interleaved_time}
PACKING_MISTAKES: dict[str, Mistake] = {"attention across media": attention_across_media}
