"""Small random checkpoints in the published layout, for every test that needs a model on disk.

Weights are bfloat16, so that a float32 run starts from exactly what is stored; the router's bias is float32 and large
enough to change choices. The configurations speak both spellings of the vision fields, ours and those of transformers.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.checkpoint import ShardWriter
from reference.config import KimiConfig
from reference.int4 import quantize
from reference.model import build_model, routed_linears
from reference.presets import preset_dict

VISION_SYNONYMS = {
    "vt_hidden_size": "hidden_size",
    "vt_num_hidden_layers": "num_hidden_layers",
    "vt_num_attention_heads": "num_attention_heads",
    "vt_intermediate_size": "intermediate_size",
    "init_pos_emb_height": "pos_emb_height",
    "init_pos_emb_width": "pos_emb_width",
    "init_pos_emb_time": "pos_emb_time",
}
PLACEHOLDER = 245  # media_placeholder_token_id of the tiny preset


def small_config(
    text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, int4: bool = False
) -> dict[str, Any]:
    """The `config.json` of the tiny preset with changes in `text_config` and `vision_config`, in both name sets."""
    config = preset_dict("tiny")
    config["text_config"] |= text or {}
    config["vision_config"] |= vision or {}
    if not int4:
        del config["text_config"]["quantization_config"]
    return with_both_names(config)


def with_both_names(config: dict[str, Any]) -> dict[str, Any]:
    """Add what transformers 5.23 reads beside the published names; without it, it takes the sizes of the 1T model."""
    vision, text = config["vision_config"], config["text_config"]
    vision["mm_hidden_size"] = vision["vt_hidden_size"]
    vision |= {theirs: vision[ours] for ours, theirs in VISION_SYNONYMS.items()}
    config["projection_hidden_size"] = vision["vt_hidden_size"]
    config["projection_layer_norm_eps"] = vision["projector_ln_eps"]
    config["image_token_id"] = config["media_placeholder_token_id"]
    if "quantization_config" in text:  # the published list lets it look for packed vision weights
        text["quantization_config"]["ignore"] += ["re:.*vision_tower.*", "re:.*mm_projector.*"]
    return config


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """A dense weight for every published name, bfloat16 but for the router's bias."""
    dense = dataclasses.replace(KimiConfig.from_dict(config), quantization=None)
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, meta, generator) for name, meta in build_model(dense).state_dict().items()}


def _random(name: str, meta: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(meta.shape, generator=generator)
    if name.endswith("e_score_correction_bias"):
        return 0.2 * noise
    if name.endswith("bias"):
        return (0.2 * noise).to(torch.bfloat16)
    if meta.dim() == 1:  # a norm's scale
        return (1 + 0.2 * noise).to(torch.bfloat16)
    if name.endswith(("embed_tokens.weight", "pos_emb.weight")):
        return noise.to(torch.bfloat16)
    gain = 4 if "mlp.fc1" in name else 1  # the tower's MLP speaks loudly, so that a wrong GELU is heard
    return (gain * noise * meta[0].numel() ** -0.5).to(torch.bfloat16)


def pack_experts(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Replace every routed expert's weight by `weight_packed`, `weight_scale` and `weight_shape`."""
    dense = dataclasses.replace(KimiConfig.from_dict(config), quantization=None)
    packed = dict(weights)
    for name in routed_linears(build_model(dense)):
        weight = packed.pop(f"{name}.weight")
        words, scale = quantize(weight)
        shape = torch.tensor(weight.shape, dtype=torch.int32)
        packed |= {f"{name}.weight_packed": words, f"{name}.weight_scale": scale, f"{name}.weight_shape": shape}
    return packed


def write_tensors(
    directory: Path, config: dict[str, Any], weights: dict[str, Tensor], shard_bytes: int = 2**30
) -> Path:
    """Write `config.json` and safetensors files; a small `shard_bytes` gives many files with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    with ShardWriter(directory, shard_bytes) as writer:
        for name, tensor in weights.items():
            writer.add(name, tensor)
    return directory


def write_checkpoint(directory: Path, config: dict[str, Any], seed: int = 0, shard_bytes: int = 2**30) -> Path:
    """A random checkpoint of `config`, its routed experts packed if the configuration says INT4."""
    weights = random_weights(config, seed)
    if KimiConfig.from_dict(config).quantization == "int4":
        weights = pack_experts(weights, config)
    return write_tensors(directory, config, weights, shard_bytes)


def random_pixels(grid_thws: list[tuple[int, int, int]], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise as patches (L, 3, 14, 14) and its `grid_thws` (M, 3)."""
    num_patches = sum(t * h * w for t, h, w in grid_thws)
    pixels = torch.randn((num_patches, 3, 14, 14), generator=torch.Generator().manual_seed(seed))
    return pixels, torch.tensor(grid_thws)


def prompt_with_media(grid_thws: list[tuple[int, int, int]], text_tokens: int = 5, seed: int = 0) -> Tensor:
    """Random text before, between and after the placeholders of each medium: (1, T)."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _, h, w in grid_thws:
        parts += [torch.randint(0, 240, (text_tokens,), generator=generator), torch.full((h * w // 4,), PLACEHOLDER)]
    parts.append(torch.randint(0, 240, (text_tokens,), generator=generator))
    return torch.cat(parts)[None]
