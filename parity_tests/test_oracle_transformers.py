"""Held to transformers 5.23's native Kimi K2.5, an independent implementation, on random published-layout checkpoints.

Both load the same folder, in float32. Its known defects, and how these tests go around them: docs/parity.md.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity_tests.agreement import FLOAT32, assert_agrees, assert_caught
from parity_tests.checkpoints import (
    prompt_with_media,
    random_pixels,
    random_weights,
    small_config,
    write_checkpoint,
    write_tensors,
)
from parity_tests.mistakes import (
    IMAGE_MISTAKES,
    INT4_MISTAKES,
    LATENT_EPS,
    PACKING_MISTAKES,
    TEXT_MISTAKES,
    VIDEO_MISTAKES,
)
from parity_tests.transformers_oracle import assert_same, import_transformers, load_theirs, our_stages, their_stages
from reference.model import load_model
from reference.presets import preset_dict

pytestmark = [pytest.mark.oracle, pytest.mark.parity]

YARN = preset_dict("tiny")["text_config"]["rope_scaling"]
IMAGES = [(1, 6, 4), (1, 2, 10), (1, 8, 8), (1, 4, 14)]  # one of the table's own size, three resampled

# What changes against the tiny preset (3 layers, the first dense; YaRN by 64 beyond 24 positions): text, vision, INT4.
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "tiny": ({}, {}, False),
    "INT4 experts": ({}, {}, True),
    "one dense layer": ({"num_hidden_layers": 1}, {"vt_num_hidden_layers": 1}, False),
    "experts from the first layer": ({"num_hidden_layers": 2, "first_k_dense_replace": 0}, {}, False),
    "two shared experts": ({"n_shared_experts": 2, "norm_topk_prob": False}, {}, False),
    "K2's beta_fast": ({"rope_scaling": YARN | {"beta_fast": 1.0, "factor": 32.0}, "rms_norm_eps": 1e-6}, {}, False),
    "beta and mscale of their own": (
        {"rope_scaling": YARN | {"beta_fast": 8.0, "beta_slow": 0.5, "mscale": 0.7}, "rope_theta": 800.0}, {}, False),
    "YaRN by its defaults": (
        {"rope_scaling": {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 24}}, {}, False),
    "no YaRN, full queries": ({"rope_scaling": None, "q_lora_rank": None}, {}, False),
    "expert groups": ({"n_group": 4, "topk_group": 2}, {}, False),
    "wider vision": ({}, {"vt_num_attention_heads": 3, "vt_hidden_size": 48, "init_pos_emb_height": 5,
                          "init_pos_emb_width": 5, "projector_ln_eps": 1e-3}, False),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Module, nn.Module]:
    """One random checkpoint, in shards, as our model and as theirs."""
    text, vision, int4 = CONFIGS[request.param]
    directory = write_checkpoint(tmp_path_factory.mktemp("oracle"), small_config(text, vision, int4), seed=1,
                                 shard_bytes=200_000)
    assert (directory / "model.safetensors.index.json").exists()
    return request.param, load_model(directory), load_theirs(directory)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[nn.Module, nn.Module]]:
    directory = write_checkpoint(tmp_path_factory.mktemp("oracle"), small_config(), seed=2)
    yield load_model(directory), load_theirs(directory)


@pytest.mark.parametrize("grids", [[], [(1, 6, 4)], IMAGES], ids=["text", "one image", "four images"])
def test_every_stage_agrees(pair: tuple[str, nn.Module, nn.Module], grids: list[tuple[int, int, int]]) -> None:
    case, ours, theirs = pair
    input_ids = prompt_with_media(grids, text_tokens=60 if not grids else 7, seed=3)
    if not grids:
        return assert_same(case, our_stages(ours, input_ids), their_stages(theirs, input_ids))
    pixels, grid_thws = random_pixels(grids, seed=4)
    assert_same(case, our_stages(ours, input_ids, pixel_values=pixels, grid_thws=grid_thws),
                their_stages(theirs, input_ids, pixel_values=pixels, image_grid_thw=grid_thws))


@torch.no_grad()
def their_features(model: nn.Module, pixels: Tensor, grids: list[tuple[int, int, int]]) -> list[Tensor]:
    """Features per clip, one call each: theirs refuses clips of different lengths together."""
    clips = pixels.split([t * h * w for t, h, w in grids])
    return [model.model.mm_projector(model.model.vision_tower(clip, grid_thw=torch.tensor([grid])).pooler_output)
            .flatten(0, 1) for clip, grid in zip(clips, grids, strict=True)]


@pytest.mark.parametrize("num_frames", [2, 3, 4])
def test_video_chunks_agree_through_tower_and_projector(tiny: tuple[nn.Module, nn.Module], num_frames: int) -> None:
    ours, theirs = tiny
    for grid in [(num_frames, 4, 6), (num_frames, 8, 8), (num_frames, 2, 2)]:
        pixels, grid_thws = random_pixels([grid], seed=5)
        with torch.no_grad():
            features = ours.media_features(pixels, grid_thws)
        assert_agrees("transformers video features", features, their_features(theirs, pixels, [grid])[0], FLOAT32)


def test_images_and_video_chunks_of_every_length_agree_with_text(tiny: tuple[nn.Module, nn.Module]) -> None:
    """Our one packed call against their clips one by one, handed to their text model as finished features."""
    ours, theirs = tiny
    grids = [(4, 4, 6), (1, 8, 8), (3, 2, 4), (2, 6, 2), (1, 2, 2)]
    input_ids, (pixels, grid_thws) = prompt_with_media(grids, seed=6), random_pixels(grids, seed=6)
    finished = import_transformers().modeling_outputs.BaseModelOutputWithPooling(
        pooler_output=their_features(theirs, pixels, grids))
    expected = their_stages(theirs, input_ids, mm_encoder_outputs={"image": finished})
    assert_same("mixed", our_stages(ours, input_ids, pixel_values=pixels, grid_thws=grid_thws), expected)


def test_left_padded_batch_agrees(tiny: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = tiny
    lengths = [30, 17, 1]
    input_ids = torch.randint(0, 240, (3, 30))
    num_padding = torch.tensor([30 - length for length in lengths])
    mask = (torch.arange(30) >= num_padding[:, None]).long()
    with torch.no_grad():
        out = ours(input_ids, num_padding=num_padding)
        expected = theirs(input_ids=input_ids, attention_mask=mask).logits
    for row, length in enumerate(lengths):
        assert_agrees("transformers left padding", out[row, -length:], expected[row, -length:], FLOAT32)


@pytest.mark.parametrize("with_image", [False, True])
def test_greedy_generation_gives_the_same_tokens(tiny: tuple[nn.Module, nn.Module], with_image: bool) -> None:
    ours, theirs = tiny
    grids = [(1, 6, 4)] if with_image else []
    input_ids, media, their_media = prompt_with_media(grids, seed=7), {}, {}
    if with_image:
        pixels, grid_thws = random_pixels(grids, seed=7)
        media = {"pixel_values": pixels, "grid_thws": grid_thws}
        their_media = {"pixel_values": pixels, "image_grid_thw": grid_thws}
    expected = theirs.generate(input_ids=input_ids, **their_media, max_new_tokens=24, do_sample=False, eos_token_id=[])
    assert greedy(ours, input_ids, 24, **media) == expected[0, input_ids.shape[1]:].tolist()


@torch.no_grad()
def greedy(model: nn.Module, input_ids: Tensor, num_tokens: int, **media: Tensor) -> list[int]:
    cache, tokens = model.new_cache(1), []
    logits = model(input_ids, cache=cache, **media)
    for _ in range(num_tokens):
        tokens.append(int(logits[0, -1].argmax()))
        logits = model(torch.tensor([tokens[-1:]]), cache=cache)
    return tokens


@pytest.mark.parametrize("name", [*TEXT_MISTAKES, *IMAGE_MISTAKES, *PACKING_MISTAKES])
def test_mistake_is_noticed(
    tiny: tuple[nn.Module, nn.Module], name: str, expected_of_tiny: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = tiny
    input_ids, (pixels, grid_thws) = prompt_with_media(IMAGES, seed=8), random_pixels(IMAGES, seed=8)
    (TEXT_MISTAKES | IMAGE_MISTAKES | PACKING_MISTAKES)[name](monkeypatch, ours)
    stages = our_stages(ours, input_ids, pixel_values=pixels, grid_thws=grid_thws)
    assert_caught(f"transformers logits: {name}", stages["logits"], expected_of_tiny["logits"], FLOAT32)


@pytest.fixture(scope="module")
def expected_of_tiny(tiny: tuple[nn.Module, nn.Module]) -> dict[str, Tensor]:
    input_ids, (pixels, grid_thws) = prompt_with_media(IMAGES, seed=8), random_pixels(IMAGES, seed=8)
    return their_stages(tiny[1], input_ids, pixel_values=pixels, image_grid_thw=grid_thws)


@pytest.mark.parametrize("name", VIDEO_MISTAKES)
def test_video_mistake_is_noticed(
    tiny: tuple[nn.Module, nn.Module], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tiny
    pixels, grid_thws = random_pixels([(3, 4, 6)], seed=9)
    VIDEO_MISTAKES[name](monkeypatch, ours)
    with torch.no_grad():
        wrong = ours.media_features(pixels, grid_thws)
    assert_caught(f"transformers video features: {name}", wrong, their_features(theirs, pixels, [(3, 4, 6)])[0],
                  FLOAT32)


def test_latent_norms_have_their_own_epsilon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1e-6 whatever rms_norm_eps says. Latents of 2^-7, mean square 6e-5, make the difference plain."""
    config = small_config()
    weights = random_weights(config, seed=10)
    for name, weight in weights.items():
        if name.endswith(("q_a_proj.weight", "kv_a_proj_with_mqa.weight")):
            weights[name] = weight * 2**-7
    directory = write_tensors(tmp_path, config, weights)
    ours, expected = load_model(directory), their_stages(load_theirs(directory), prompt_with_media([], 60, seed=10))
    stages = our_stages(ours, prompt_with_media([], 60, seed=10))
    assert_same("small latents", stages, expected)
    LATENT_EPS["rms_norm_eps in the latent norms"](monkeypatch, ours)
    wrong = our_stages(ours, prompt_with_media([], 60, seed=10))
    assert_caught("transformers logits: rms_norm_eps in the latent norms", wrong["logits"], expected["logits"], FLOAT32)


def test_nibbles_are_offset_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_checkpoint(tmp_path, small_config(int4=True), seed=11)
    input_ids = prompt_with_media([], 40, seed=11)
    ours, expected = load_model(directory), their_stages(load_theirs(directory), input_ids)
    assert_same("INT4", our_stages(ours, input_ids), expected)
    INT4_MISTAKES["nibbles as two's complement"](monkeypatch, ours)
    wrong = our_stages(ours, input_ids)["logits"]
    assert_caught("transformers logits: nibbles as two's complement", wrong, expected["logits"], FLOAT32)


def test_published_field_names_alone_do_not_load_there(tmp_path: Path) -> None:
    """Why the shipped config.json speaks both spellings: otherwise theirs builds the vision tower of the 1T model."""
    config = small_config()
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        del config["vision_config"][name]
    write_checkpoint(tmp_path, config, seed=12)
    settings = import_transformers().AutoConfig.from_pretrained(tmp_path)
    assert settings.vision_config.hidden_size == 1152
    assert load_model(tmp_path).vision_tower.patch_embed.proj.weight.shape[0] == 40


def test_defects_named_in_the_documentation_are_still_there(tiny: tuple[nn.Module, nn.Module]) -> None:
    """If one of these starts to pass, docs/parity.md has a paragraph too many, and a test here can be simpler."""
    theirs = tiny[1]
    for grids in ([(2, 4, 4)], [(2, 4, 4), (1, 4, 4)]):  # a video; a video and an image in one call
        pixels, grid_thws = random_pixels(grids)
        with pytest.raises((RuntimeError, IndexError)):
            theirs(input_ids=prompt_with_media(grids), pixel_values=pixels, image_grid_thw=grid_thws)


@pytest.mark.parametrize("change", ["published ignore list", "kimi_k2 alone"])
def test_published_checkpoints_it_leaves_partly_unread(tmp_path: Path, change: str) -> None:
    config, kind = small_config(int4=True), "AutoModelForImageTextToText"
    if change == "published ignore list":
        config["text_config"]["quantization_config"]["ignore"] = preset_dict("kimi-k2.5")["text_config"][
            "quantization_config"]["ignore"]
    else:
        config, kind = preset_dict("tiny")["text_config"], "DeepseekV3ForCausalLM"
        del config["quantization_config"]
    write_checkpoint(tmp_path, config, seed=15)
    with pytest.raises(AssertionError, match="missing_keys"):
        load_theirs(tmp_path, kind)
    load_model(tmp_path)
