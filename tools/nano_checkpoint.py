"""Write a trained model as a checkpoint folder in the published layout: what `reference/nano` holds."""

import json
from pathlib import Path

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


def write_settings(directory: Path, preset_name: str, im_end_id: int) -> None:
    """config.json, generation_config.json and preprocessor_config.json."""
    config = preset_dict(preset_name)
    generation = {"eos_token_id": im_end_id, "max_length": config["text_config"]["max_position_embeddings"]}
    for name, values in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("preprocessor_config.json", PREPROCESSOR),
    ):
        with write_whole(directory / name) as temporary:
            temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model as it is published: routed experts packed, everything else bfloat16 but the router's bias."""
    packed = set(routed_linears(model))
    tensors: dict[str, Tensor] = {}
    for name in sorted(packed):
        linear = model.get_submodule(name)
        master = linear.parametrizations.weight.original if parametrize.is_parametrized(linear) else linear.weight
        words, scale = quantize_coarsely(master.detach().cpu())
        tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_scale"] = words, scale
        tensors[f"{name}.weight_shape"] = torch.tensor(master.shape, dtype=torch.int32)
    for name, tensor in model.state_dict().items():
        if not any(name.startswith(f"{linear}.") for linear in packed):
            dtype = torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16
            tensors[name] = tensor.detach().cpu().to(dtype)
    return tensors


def write_weights(directory: Path, model: nn.Module) -> None:
    """model.safetensors, whole or not at all."""
    with ShardWriter(directory) as writer:
        for name, tensor in stored_tensors(model).items():
            writer.add(name, tensor)
