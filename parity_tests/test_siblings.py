"""The relatives go through the same code: K2 (FP8 blocks), K2-Thinking (INT4), Moonlight, Kimi-VL, grouped routing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity_tests.agreement import FLOAT32, assert_agrees, assert_caught
from parity_tests.checkpoints import (
    pack_experts,
    prompt_with_media,
    random_pixels,
    random_weights,
    small_config,
    write_checkpoint,
    write_tensors,
)
from parity_tests.mistakes import TEXT_MISTAKES
from parity_tests.transformers_oracle import assert_same, load_theirs, our_stages, their_stages
from reference.config import KimiConfig
from reference.errors import CheckpointError, MediaError
from reference.model import TextOnlyModel, load_model
from reference.presets import preset_dict

pytestmark = pytest.mark.parity
IDS = prompt_with_media([], text_tokens=50, seed=1)
YARN = preset_dict("tiny")["text_config"]["rope_scaling"]
MOONLIGHT = {"q_lora_rank": None, "n_shared_experts": 2, "rope_scaling": None, "routed_scaling_factor": 2.446}
K2 = {"rms_norm_eps": 1e-6, "rope_scaling": {**YARN, "factor": 32.0, "beta_fast": 1.0}}


def text_only(model_type: str, int4: bool = False, **changes: Any) -> dict[str, Any]:
    """The tiny text model as a `config.json` of its own."""
    config = preset_dict("tiny")["text_config"] | {"model_type": model_type} | changes
    if not int4:
        del config["quantization_config"]
    return config


def load_deepseek_v3(directory: Path) -> nn.Module:
    """transformers 5.23 knows K2's layout only under the name of the architecture it shares."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "deepseek_v3"}))
    return load_theirs(directory, "DeepseekV3ForCausalLM")


@pytest.mark.oracle
@pytest.mark.parametrize(
    "config",
    [text_only("kimi_k2", **K2), text_only("deepseek_v3", **MOONLIGHT),
     text_only("deepseek_v3", n_group=4, topk_group=2), text_only("deepseek_v3", n_group=2, topk_group=1),
     text_only("kimi_k2", int4=True)],
    ids=["K2", "Moonlight", "4 expert groups", "2 expert groups", "K2-Thinking"])
def test_text_only_relative_agrees_with_deepseek_v3(tmp_path: Path, config: dict[str, Any]) -> None:
    ours = load_model(write_checkpoint(tmp_path, config, seed=2))
    assert isinstance(ours, TextOnlyModel)
    assert_same("relative", our_stages(ours, IDS), their_stages(load_deepseek_v3(tmp_path), IDS))


@torch.no_grad()
def test_text_only_model_has_the_same_calls(tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path, text_only("deepseek_v3", **MOONLIGHT), seed=3))
    cache, expected = model.new_cache(1), model(IDS)
    pieces = torch.cat([model(piece, cache=cache) for piece in IDS.split([30, 1, 19], dim=1)], dim=1)
    assert_agrees("relative, cached and uncached", pieces, expected, FLOAT32)
    padded = torch.nn.functional.pad(IDS, (4, 0))
    assert_agrees("relative, left padding", model(padded, num_padding=torch.tensor([4]))[:, 4:], expected, FLOAT32)
    with pytest.raises(MediaError, match="deepseek_v3 has no vision tower"):
        model(IDS, pixel_values=torch.zeros(4, 3, 14, 14))


@torch.no_grad()
def test_k2_thinking_is_the_text_model_of_k25_under_another_prefix(tmp_path: Path) -> None:
    """Its quantization_config stands at the top level, and its tensors have no `language_model.`."""
    nested, flat = small_config(int4=True), text_only("kimi_k2", int4=True)
    prefix = "language_model."
    weights = pack_experts(random_weights(nested, seed=4), nested)
    text_weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    k25 = load_model(write_tensors(tmp_path / "k25", nested, weights))
    thinking = load_model(write_tensors(tmp_path / "thinking", flat, text_weights))
    assert torch.equal(k25(IDS), thinking(IDS))


# --- FP8 blocks ---


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E4M3 weights, one float32 scale per 128 x 128 block, and what they stand for, block by block."""
    rows, columns = weight.shape
    stored, dense = torch.zeros(weight.shape, dtype=torch.float8_e4m3fn), torch.zeros(weight.shape)
    scales = torch.zeros(-(-rows // 128), -(-columns // 128))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            scales[i, j] = weight[block].float().abs().max() / 448  # 448 is the largest E4M3 number
            stored[block] = (weight[block].float() / scales[i, j]).to(torch.float8_e4m3fn)
            dense[block] = stored[block].float() * scales[i, j]
    return stored, scales, dense.to(torch.bfloat16)


@pytest.fixture(scope="module")
def fp8_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One K2 checkpoint twice: FP8 with block scales, and dequantised to bfloat16. Widths leave ragged blocks."""
    sizes = {"hidden_size": 160, "intermediate_size": 288, "moe_intermediate_size": 136}
    dense_config = text_only("kimi_k2", **K2, **sizes)
    fp8_config = {**dense_config, "quantization_config": preset_dict("kimi-k2-instruct")["quantization_config"]}
    stored, dense = {}, {}
    for name, weight in random_weights(dense_config, seed=5).items():
        stored[name] = dense[name] = weight
        if "_proj" in name:  # every linear but the router and the head, as DeepSeek-V3 does it
            stored[name], stored[f"{name}_scale_inv"], dense[name] = to_fp8(weight)
    root = tmp_path_factory.mktemp("fp8")
    return write_tensors(root / "fp8", fp8_config, stored), write_tensors(root / "dense", dense_config, dense)


@torch.no_grad()
def test_fp8_blocks_are_dequantised_on_reading(fp8_pair: tuple[Path, Path]) -> None:
    fp8, dense = (load_model(directory) for directory in fp8_pair)
    assert KimiConfig.from_directory(fp8_pair[0]).quantization == "fp8"
    for (name, read), (_, expected) in zip(fp8.state_dict().items(), dense.state_dict().items(), strict=True):
        assert torch.equal(read, expected), name
    assert torch.equal(fp8(IDS), dense(IDS))


@pytest.mark.oracle
def test_fp8_k2_agrees_with_deepseek_v3_on_dequantised_weights(fp8_pair: tuple[Path, Path]) -> None:
    theirs = load_deepseek_v3(fp8_pair[1])
    assert_same("K2 FP8", our_stages(load_model(fp8_pair[0]), IDS), their_stages(theirs, IDS))


def test_fp8_weight_without_its_scale_is_refused(tmp_path: Path) -> None:
    config = text_only("kimi_k2", **K2)
    weights = random_weights(config)
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match=rf"{name}_scale_inv: missing beside FP8 weights, .* \[1, 1\]"):
        load_model(write_tensors(tmp_path, config, weights))


# --- Kimi-VL ---


def kimi_vl_config() -> dict[str, Any]:
    """Kimi-VL: Moonlight's text, MoonViT's own field names, no time."""
    config = small_config(MOONLIGHT | {"model_type": "deepseek_v3", "rope_theta": 800000.0})
    vision = config["vision_config"]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size",
             "init_pos_emb_height", "init_pos_emb_width", "merge_kernel_size")
    return {**preset_dict("kimi-vl-a3b"), "media_placeholder_token_id": config["media_placeholder_token_id"],
            "eos_token_id": 241, "pad_token_id": 255, "text_config": config["text_config"],
            "vision_config": {"model_type": "moonvit"} | {name: vision[name] for name in names}}


def as_k25(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under K2.5's projector names."""
    renamed = {"multi_modal_projector.linear_1": "mm_projector.proj.0",
               "multi_modal_projector.linear_2": "mm_projector.proj.2",
               "multi_modal_projector.pre_norm": "mm_projector.pre_norm"}
    return {f"{renamed.get(name.rpartition('.')[0], name.rpartition('.')[0])}.{name.rpartition('.')[2]}": tensor
            for name, tensor in weights.items()}


IMAGES = [(1, 6, 4), (1, 8, 8), (1, 2, 10)]


@pytest.fixture(scope="module")
def kimi_vl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One checkpoint twice: as Kimi-VL, and renamed to K2.5's layout."""
    config, root = kimi_vl_config(), tmp_path_factory.mktemp("vl")
    weights = random_weights(config, seed=6)
    assert "multi_modal_projector.linear_1.weight" in weights
    k25 = small_config(config["text_config"])
    return write_tensors(root / "vl", config, weights), write_tensors(root / "k25", k25, as_k25(weights))


@torch.no_grad()
def test_kimi_vl_is_k25_with_one_frame_and_other_names(kimi_vl: tuple[Path, Path]) -> None:
    (pixels, grid_thws), input_ids = random_pixels(IMAGES, seed=7), prompt_with_media(IMAGES, seed=7)
    vl, k25 = (load_model(directory)(input_ids, pixel_values=pixels, grid_thws=grid_thws) for directory in kimi_vl)
    assert_agrees("Kimi-VL as K2.5", vl, k25, FLOAT32)


@pytest.mark.oracle
def test_kimi_vl_agrees_with_transformers_in_k25_layout(kimi_vl: tuple[Path, Path]) -> None:
    """transformers 5.23 has no Kimi-VL of its own; the renamed checkpoint stands for it."""
    (pixels, grid_thws), input_ids = random_pixels(IMAGES, seed=8), prompt_with_media(IMAGES, seed=8)
    expected = their_stages(load_theirs(kimi_vl[1]), input_ids, pixel_values=pixels, image_grid_thw=grid_thws)
    assert_same("Kimi-VL", our_stages(load_model(kimi_vl[0]), input_ids, pixel_values=pixels, grid_thws=grid_thws),
                expected)


# --- what relatives carry along ---


@torch.no_grad()
def test_prediction_head_and_rotary_tables_of_relatives_are_left_out(tmp_path: Path) -> None:
    config = text_only("deepseek_v3", **MOONLIGHT)
    weights = random_weights(config, seed=9)
    expected = load_model(write_tensors(tmp_path / "plain", config, weights))(IDS)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    weights["model.layers.3.eh_proj.weight"] = torch.ones(4, 8)  # the layer after the last: multi-token prediction
    assert torch.equal(load_model(write_tensors(tmp_path / "more", config, weights))(IDS), expected)


@torch.no_grad()
@pytest.mark.parametrize("mistake", ["shared expert dropped", "text rotary by halves", "router bias counted as weight"])
def test_mistake_in_a_relative_is_noticed(tmp_path: Path, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(write_checkpoint(tmp_path, text_only("deepseek_v3", **MOONLIGHT), seed=10))
    expected = model(IDS)
    TEXT_MISTAKES[mistake](monkeypatch, model)
    assert_caught(f"relative: {mistake}", model(IDS), expected, FLOAT32)
