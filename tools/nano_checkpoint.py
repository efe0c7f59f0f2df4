"""Write a trained model as a checkpoint folder in the published layout: what `reference/nano` holds."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reference.checkpoint import ShardWriter
from reference.command import write_whole
from reference.model import routed_linears
from reference.presets import preset_dict
from tools.quantization_aware import quantize_coarsely

PREPROCESSOR = {
    "media_proc_cfg": {
        "in_patch_limit": 16384,
        "patch_size": 14,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "merge_kernel_size": 2,
        "fixed_output_tokens": None,
        "patch_limit_on_one_side": 512,
        "in_patch_limit_each_frame": 4096,
        "in_patch_limit_video": None,
        "sample_fps": 2.0,
        "max_num_frames_each_video": None,
        "temporal_merge_kernel_size": 4,
        "timestamp_mode": "hh:mm:ss.fff",
    }
}


def write_settings(directory: Path, config: dict[str, Any], im_end_id: int) -> None:
    """config.json, generation_config.json and preprocessor_config.json."""
    generation = {"eos_token_id": im_end_id, "max_length": config["text_config"]["max_position_embeddings"]}
    for name, values in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("preprocessor_config.json", PREPROCESSOR),
    ):
        with write_whole(directory / name) as temporary:
            temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def unquantised_config(preset_name: str) -> dict[str, Any]:
    """`config.json` of the weights that the training works on: dense float32, as no file of the release is."""
    config = preset_dict(preset_name)
    del config["text_config"]["quantization_config"]
    return config | {"dtype": "float32", "text_config": config["text_config"] | {"dtype": "float32"}}


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model as it is published: routed experts packed, everything else bfloat16 but the router's bias."""
    packed = set(routed_linears(model))
    tensors: dict[str, Tensor] = {}
    for name in sorted(packed):
        master = master_weight(model.get_submodule(name))
        words, scale = quantize_coarsely(master)
        tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_scale"] = words, scale
        tensors[f"{name}.weight_shape"] = torch.tensor(master.shape, dtype=torch.int32)
    for name, tensor in model.state_dict().items():
        if not any(name.startswith(f"{linear}.") for linear in packed):
            dtype = torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16
            tensors[name] = tensor.detach().cpu().to(dtype)
    return tensors


def master_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The float32 weights that the training works on, before any rounding, under their published names."""
    packed = set(routed_linears(model))
    tensors = {f"{name}.weight": master_weight(model.get_submodule(name)) for name in sorted(packed)}
    for name, tensor in model.state_dict().items():
        if not any(name.startswith(f"{linear}.") for linear in packed):
            tensors[name] = tensor.detach().cpu()
    return tensors


def master_weight(linear: nn.Module) -> Tensor:
    """What the optimiser moves, whether or not the forward pass sees it through INT4."""
    weight = linear.parametrizations.weight.original if parametrize.is_parametrized(linear) else linear.weight
    return weight.detach().cpu()


def write_weights(directory: Path, tensors: dict[str, Tensor]) -> None:
    """model.safetensors, whole or not at all."""
    with ShardWriter(directory) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
