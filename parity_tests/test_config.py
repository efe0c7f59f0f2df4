"""config.json: every published spelling is read, and whatever is missing, contradictory or not computed is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from parity_tests.checkpoints import VISION_SYNONYMS, small_config
from reference.config import KimiConfig, preset
from reference.errors import ConfigError
from reference.presets import PRESETS, preset_dict

REMOVED = object()
K25, K2, VL = "kimi-k2.5", "kimi-k2-thinking", "kimi-vl-a3b"
YARN = preset_dict(K25)["text_config"]["rope_scaling"]


def changed(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A preset with values replaced: "text_config.vocab_size" is a path; REMOVED takes a key away."""
    config = preset_dict(name)
    for path, value in changes.items():
        *parents, key = path.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        if value is REMOVED:
            del place[key]
        else:
            place[key] = value
    return config


@pytest.mark.parametrize("name", PRESETS)
def test_preset_parses(name: str) -> None:
    config = preset(name)
    assert config.text.qk_head_dim == config.text.qk_nope_head_dim + config.text.qk_rope_head_dim
    assert (config.vision is None) == (config.media_placeholder_token_id is None)
    assert config.eos_token_ids


def test_published_values_of_k25() -> None:
    config = preset(K25)
    text, vision = config.text, config.vision
    assert (text.hidden_size, text.num_hidden_layers) == (7168, 61)
    assert (text.n_routed_experts, text.num_experts_per_tok) == (384, 8)
    assert (text.rope_scaling.beta_fast, text.rms_norm_eps, text.latent_norm_eps) == (32.0, 1e-5, 1e-6)
    assert (vision.vt_hidden_size, vision.init_pos_emb_time, vision.merge_kernel_size) == (1152, 4, (2, 2))
    assert (config.quantization, config.media_placeholder_token_id) == ("int4", 163605)


def test_published_differences_of_the_relatives() -> None:
    assert preset("kimi-k2-instruct").quantization == "fp8"
    assert preset("kimi-k2-instruct").text.rope_scaling.beta_fast == 1.0
    assert preset("moonlight-16b-a3b").text.rope_scaling is None
    assert preset("moonlight-16b-a3b").text.q_lora_rank is None
    kimi_vl = preset(VL)
    assert (kimi_vl.vision.init_pos_emb_time, kimi_vl.vision.vt_num_hidden_layers) == (1, 27)
    assert (kimi_vl.text.rope_theta, kimi_vl.text.n_shared_experts) == (800000.0, 2)


def test_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"kimi-k9: no such preset\. Known: .*kimi-k2\.5"):
        preset("kimi-k9")


# --- spellings of one value ---


def merged_rope(config: dict[str, Any]) -> dict[str, Any]:
    """The spelling of transformers 5: rope_theta and rope_scaling in one object."""
    text = config["text_config"]
    scaling = text.pop("rope_scaling")
    text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), "rope_type": scaling.pop("type"), **scaling}
    return config


def test_both_spellings_of_the_rope_parameters_are_read() -> None:
    assert KimiConfig.from_dict(merged_rope(preset_dict(K25))) == preset(K25)
    assert KimiConfig.from_dict({**preset_dict(K25), "text_config": {
        **merged_rope(preset_dict(K25))["text_config"], "rope_theta": 50000.0, "rope_scaling": YARN}}) == preset(K25)


def test_rope_parameters_of_a_model_without_yarn() -> None:
    config = preset_dict("moonlight-16b-a3b")
    del config["rope_scaling"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    assert KimiConfig.from_dict(config) == preset("moonlight-16b-a3b")


def test_absent_yarn_values_mean_what_the_published_code_means() -> None:
    bare = {key: YARN[key] for key in ("type", "factor", "original_max_position_embeddings")}
    scaling = KimiConfig.from_dict(changed(K25, {"text_config.rope_scaling": bare})).text.rope_scaling
    assert (scaling.beta_fast, scaling.beta_slow, scaling.mscale, scaling.mscale_all_dim) == (32.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize("published", VISION_SYNONYMS)
def test_vision_fields_may_be_spelt_either_way_but_not_both_ways(published: str) -> None:
    config = small_config()
    expected = KimiConfig.from_dict(config)
    synonym = VISION_SYNONYMS[published]
    for kept, dropped in ((published, synonym), (synonym, published)):
        one = copy.deepcopy(config)
        del one["vision_config"][dropped]
        assert KimiConfig.from_dict(one) == expected, kept
    config["vision_config"][synonym] += 1
    with pytest.raises(ConfigError, match=rf"vision_config: {published} is \d+ but {synonym} is \d+; they must"):
        KimiConfig.from_dict(config)


def test_both_name_sets_together_read_like_the_published_one() -> None:
    small, tiny = KimiConfig.from_dict(small_config(int4=True)), preset("tiny")
    assert (small.text, small.vision, small.media_placeholder_token_id) == (
        tiny.text, tiny.vision, tiny.media_placeholder_token_id)
    assert KimiConfig.from_dict(preset_dict("kimi-k25-nano")) == preset("kimi-k25-nano")


def test_quantization_is_read_in_either_place() -> None:
    nested = preset_dict(K25)
    quantization = nested["text_config"].pop("quantization_config")
    assert KimiConfig.from_dict(nested).quantization is None
    assert KimiConfig.from_dict({**nested, "quantization_config": quantization}).quantization == "int4"
    both = {**preset_dict(K25), "quantization_config": quantization}  # what a loaded configuration prints
    assert KimiConfig.from_dict(both).quantization == "int4"
    assert preset(K2).quantization == "int4"


def test_stop_tokens_of_both_files_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(preset_dict(K25)))
    assert KimiConfig.from_directory(tmp_path).eos_token_ids == (163585,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 163586}')
    assert KimiConfig.from_directory(tmp_path).eos_token_ids == (163585, 163586)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "<|im_end|>"}')
    with pytest.raises(ConfigError, match=r"generation_config\.json: eos_token_id is '<\|im_end\|>'"):
        KimiConfig.from_directory(tmp_path)


# --- refused: each message names the key ---


def quantization(**changes: Any) -> dict[str, Any]:
    values = preset_dict(K2)["quantization_config"]
    for key, value in changes.items():
        (values if key in values else values["config_groups"]["group_0"]["weights"])[key] = value
    return values


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # missing
    *[(K25, {f"text_config.{key}": REMOVED}, f"text_config: {key} is missing") for key in (
        "vocab_size", "hidden_size", "num_hidden_layers", "first_k_dense_replace", "q_lora_rank", "kv_lora_rank",
        "n_routed_experts", "num_experts_per_tok", "routed_scaling_factor", "rms_norm_eps", "max_position_embeddings")],
    *[(K25, {f"vision_config.{key}": REMOVED}, f"vision_config: {key} is missing") for key in (
        "vt_hidden_size", "vt_num_attention_heads", "patch_size", "init_pos_emb_width")],
    (K25, {"model_type": REMOVED}, "model_type is missing"),
    (K25, {"text_config": REMOVED}, "text_config is missing"),
    (K25, {"vision_config": REMOVED}, "vision_config is missing"),
    (K25, {"media_placeholder_token_id": REMOVED}, "media_placeholder_token_id is missing"),
    (K25, {"text_config.rope_theta": REMOVED}, "rope_theta is None"),
    (K25, {"text_config.rope_scaling": {"type": "yarn", "factor": 4}}, "original_max_position_embeddings is missing"),
    (K2, {"quantization_config": {"quant_method": "compressed-tensors"}}, "config_groups is missing"),
    # of the wrong type or size
    (K25, {"text_config": [1]}, r"text_config: expected a JSON object, found \[1\]"),
    (K25, {"text_config.hidden_size": "7168"}, "hidden_size is '7168', expected an integer"),
    (K25, {"text_config.hidden_size": 7168.5}, "hidden_size is 7168.5, expected an integer"),
    (K25, {"text_config.num_hidden_layers": 0}, "num_hidden_layers is 0, expected an integer of at least 1"),
    (K25, {"text_config.n_routed_experts": True}, "n_routed_experts is True"),
    (K25, {"text_config.rms_norm_eps": 0}, "rms_norm_eps is 0, expected a positive number"),
    (K25, {"text_config.rms_norm_eps": 10**400}, "expected a positive number"),
    (K25, {"text_config.vocab_size": 2**62}, "expected an integer"),
    (K25, {"text_config.routed_scaling_factor": "2.827"}, "routed_scaling_factor is '2.827'"),
    (K25, {"text_config.norm_topk_prob": 1}, "norm_topk_prob is 1, expected true or false"),
    (K25, {"text_config.rope_scaling.factor": float("inf")}, "factor is inf"),
    (K25, {"text_config.rope_scaling.mscale_all_dim": -1}, "mscale_all_dim is -1, expected a number of at least 0"),
    (K25, {"vision_config.merge_kernel_size": 2}, "merge_kernel_size is 2, expected two"),
    (K25, {"eos_token_id": "stop"}, "eos_token_id is 'stop', expected a token id"),
    (K25, {"pad_token_id": -1}, "pad_token_id is -1, expected a token id"),
    # contradictory
    (K25, {"text_config.num_experts_per_tok": 385}, "num_experts_per_tok is 385 but n_routed_experts is 384"),
    (K25, {"text_config.n_group": 7}, "n_group 7 must divide n_routed_experts 384"),
    (K25, {"text_config.n_group": 4, "text_config.topk_group": 5}, "topk_group 5 must not exceed it"),
    (K25, {"text_config.n_group": 96}, "num_experts_per_tok is 8 but topk_group leaves 4 experts"),
    (K25, {"text_config.n_group": 384, "text_config.topk_group": 8}, "n_group 384 leaves one expert per group"),
    (K25, {"text_config.num_key_value_heads": 8}, "num_key_value_heads differs from num_attention_heads"),
    (K25, {"text_config.qk_rope_head_dim": 63}, "qk_rope_head_dim is 63; rotary pairs need an even number"),
    (K25, {"text_config.hidden_size": 7100, "vision_config.text_hidden_size": 7100},
     "hidden_size is 7100; INT4 experts need a multiple of 32"),
    (K25, {"text_config.rope_parameters": {"rope_theta": 10000.0, "rope_type": "yarn", **YARN}},
     "rope_theta contradicts"),
    (K25, {"text_config.rope_parameters": {**YARN, "rope_theta": 50000.0, "factor": 32.0}},
     "rope_scaling and rope_parameters contradict"),
    (K25, {"text_config.rope_scaling.rope_type": "linear"}, "type is 'yarn' but rope_type is 'linear'"),
    (K25, {"media_placeholder_token_id": 163840}, "media_placeholder_token_id is 163840 but vocab_size is 163840"),
    (K25, {"image_token_id": 5}, "media_placeholder_token_id is 163605 but image_token_id is 5"),
    (K25, {"projection_hidden_size": 1024}, "projection_hidden_size differs from vt_hidden_size 1152"),
    (K25, {"vision_config.mm_hidden_size": 1024}, "mm_hidden_size differs from vt_hidden_size 1152"),
    (K25, {"projection_layer_norm_eps": 1e-6}, "projector_ln_eps is 1e-05 but projection_layer_norm_eps is 1e-06"),
    (K25, {"vision_config.text_hidden_size": 4096}, "text_hidden_size is 4096"),
    (K25, {"vision_config.vt_num_attention_heads": 17}, "vt_hidden_size 1152 over 17 heads"),
    (K25, {"quantization_config": quantization(format="dense")}, "quantization_config contradict each other"),
    # not computed here
    (K25, {"model_type": "kimi_k3"}, "model_type is 'kimi_k3', expected one of kimi_k25"),
    (K25, {"text_config.model_type": "kimi_linear"}, "text_config: model_type is 'kimi_linear'"),
    (K25, {"tie_word_embeddings": True}, "tie_word_embeddings is True; only False is implemented"),
    *[(K25, {f"text_config.{key}": value}, f"text_config: {key} is {value!r}; only") for key, value in {
        "scoring_func": "softmax", "topk_method": "greedy", "hidden_act": "gelu", "moe_layer_freq": 2,
        "attention_bias": True, "tie_word_embeddings": True, "rope_interleave": False}.items()],
    (K25, {"text_config.rope_scaling.type": "linear"}, "type is 'linear'; only 'yarn'"),
    *[(K25, {f"vision_config.{key}": value}, f"vision_config: {key} is {value!r}; only") for key, value in {
        "pos_emb_type": "learned", "merge_type": "none", "video_attn_type": "frame", "mm_projector_type": "identity",
        "projector_hidden_act": "relu"}.items()],
    (K2, {"quantization_config.quant_method": "awq"}, "quant_method is 'awq', expected 'compressed-tensors' or 'fp8'"),
    *[(K2, {"quantization_config": quantization(**{key: value})}, f"{key} is {value!r}; only") for key, value in {
        "format": "dense", "num_bits": 8, "type": "float", "symmetric": False, "strategy": "channel",
        "group_size": 128}.items()],
    ("kimi-k2-instruct", {"quantization_config.weight_block_size": [64, 64]}, "weight_block_size is"),
    ("kimi-k2-instruct", {"quantization_config.fmt": "e5m2"}, "fmt is 'e5m2'; only 'e4m3'"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_refused_and_the_message_names_the_key(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        KimiConfig.from_dict(changed(name, changes))
    assert str(caught.value).startswith("config.json: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "not valid JSON"), ("[" * 100_000, "not valid JSON"),
     ("[]", "holds a JSON list, expected an object")])
def test_unreadable_file_is_refused_by_name(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"config\.json: .*{message}|config\.json: {message}"):
        KimiConfig.from_directory(tmp_path)


def test_values_with_no_effect_are_ignored() -> None:
    """The published file carries library defaults, and training settings."""
    extra = {"text_config.aux_loss_alpha": 0.001, "text_config.top_k": 50, "text_config.id2label": {"0": "LABEL_0"},
             "auto_map": {"AutoConfig": "configuration_kimi_k25.KimiK25Config"},
             "vision_config._attn_implementation": "flash_attention_2"}
    assert KimiConfig.from_dict(changed(K25, extra)) == preset(K25)
