"""The programs around a checkpoint: inspect, quantise, dump, compare, measure."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from parity_tests.checkpoints import (
    pack_experts,
    prompt_with_media,
    random_pixels,
    random_weights,
    small_config,
    write_checkpoint,
    write_tensors,
)
from reference.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from reference.command import BAD_INPUT, CHECK_FAILED, DONE, run
from reference.config import preset
from reference.generate import SHIPPED_MODEL
from reference.model import build_model, load_model, routed_linears
from reference.presets import PRESETS, preset_dict
from reference.stages import observing
from tools import bench, bench_forms, bench_models, compare_dumps, dump_activations, inspect_checkpoint, quantize
from tools.bench_engines import engine_builders
from tools.bench_models import Weights, published_weights

ROOT, GOLDEN = Path(__file__).parents[1], Path(__file__).parent / "golden" / "model"
GRIDS = [(1, 4, 6), (2, 2, 4)]
NORM = "language_model.model.norm.weight"

Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Program:
    """Run a program's main as its command line does; exit code, stdout, stderr."""

    def call_main(program: Any, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = run(lambda: program.main([str(argument) for argument in arguments]))
        except SystemExit as end:  # argparse
            code = end.code
        return code, *capsys.readouterr()

    return call_main


def refused(outcome: tuple[int, str, str]) -> str:
    """The one line on stderr of a program that did not accept its input."""
    code, out, err = outcome
    assert code == BAD_INPUT and out == "" and err.count("\n") == 1, outcome
    return err


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "dense", small_config(), shard_bytes=60_000)


@pytest.fixture
def int4(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "int4", small_config(int4=True))


# Inspect


def test_published_architecture_has_exactly_the_published_inventory(call: Program) -> None:
    code, out, _ = call(inspect_checkpoint, "kimi-k2.5", "--json")
    report = json.loads(out)
    assert code == DONE and report["problems"] == [] and report["quantization"] == "int4"
    assert report["parameters"] == {
        "total": 1_026_879_376_368,
        "text": 1_026_408_232_448,
        "vision": 416_866_032 + 54_277_888,
        "activated_per_token": 31_687_095_808,
        "activated_with_embedding": 32_861_500_928,
        "by_part": {
            "vision tower": 416_866_032,
            "projector": 54_277_888,
            "embedding": 1_174_405_120,
            "head": 1_174_405_120,
            "attention": 61 * 101_124_096,
            "routed experts": 60 * 16_911_433_728,
            "shared experts": 60 * 44_040_192,
            "router": 60 * 2_752_896,
            "dense MLP": 396_361_728,
            "norms": 61 * 14_336 + 7_168,
        },
    }
    assert (report["tensors"], report["stored_elements"]) == (208_550, 170_738_182_128)
    assert report["bytes"] == sum(report["bytes_by_dtype"].values()) == 595_148_192_736


@pytest.mark.parametrize(
    ("name", "text", "quantization"),
    [
        ("kimi-k2-thinking", 1_026_408_232_448, "int4"),
        ("kimi-k2-instruct", 1_026_408_232_448, "fp8"),
        ("moonlight-16b-a3b", 15_960_110_208, None),
        ("kimi-vl-a3b", 15_960_110_208, None),
    ],
)
def test_relatives_have_their_published_sizes(call: Program, name: str, text: int, quantization: str | None) -> None:
    report = json.loads(call(inspect_checkpoint, name, "--json")[1])
    assert report["parameters"]["text"] == text and report["quantization"] == quantization


def test_fp8_preset_counts_one_byte_a_weight_and_a_scale_per_block(call: Program) -> None:
    report = json.loads(call(inspect_checkpoint, "kimi-k2-instruct", "--json")[1])
    parts = report["parameters"]["by_part"]
    norms_inside = 61 * (1_536 + 512)
    linears = ("attention", "routed experts", "shared experts", "dense MLP")
    in_blocks = sum(parts[part] for part in linears) - norms_inside
    assert report["bytes_by_dtype"]["F8_E4M3"] == in_blocks
    # 576 rows of kv_a_proj_with_mqa are 4.5 blocks: the last block of each layer is half empty.
    assert report["bytes_by_dtype"]["F32"] == 4 * (in_blocks // 128**2 + 61 * 56 // 2) + 60 * 384 * 4


@pytest.mark.parametrize("name", ["tiny", "kimi-k25-nano"])
def test_expected_tensors_are_those_of_the_whole_model(name: str) -> None:
    """The inspector builds one layer of each kind and repeats it; loading builds them all."""
    whole = build_model(preset(name))
    expected = inspect_checkpoint.expected_tensors(preset(name))
    inspect_checkpoint.pack(expected, routed_linears(whole))
    kinds = [{n: (t.shape, t.dtype) for n, t in tensors.items()} for tensors in (expected, whole.state_dict())]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    "changes", [{"first_k_dense_replace": 3}, {"first_k_dense_replace": 0}, {"num_hidden_layers": 1}]
)
def test_models_all_dense_or_all_experts_are_inspected(tmp_path: Path, changes: dict[str, int], call: Program) -> None:
    directory = write_checkpoint(tmp_path, small_config(text=changes))
    assert call(inspect_checkpoint, directory)[0] == DONE


@pytest.mark.parametrize("which", ["dense", "int4"])
def test_sound_checkpoint_has_no_problems(call: Program, request: pytest.FixtureRequest, which: str) -> None:
    directory = request.getfixturevalue(which)
    code, out, err = call(inspect_checkpoint, directory, "--verify", "--json")
    report = json.loads(out)
    assert (code, err, report["problems"]) == (DONE, "", [])
    assert report["verified_tensors"] == report["tensors"] == len(Checkpoint(directory).tensors)
    assert report["bytes"] == sum(stored.size_bytes for stored in Checkpoint(directory).tensors.values())
    assert report["parameters"]["total"] == sum(tensor.numel() for tensor in random_weights(small_config()).values())
    code, out, _ = call(inspect_checkpoint, directory, "--verify")
    assert code == DONE and "kimi_k25, 3 layers (the first 1 dense), 8 experts" in out and "0 problems" in out


def test_misfits_are_all_named_with_exit_code_1(call: Program, tmp_path: Path) -> None:
    weights = random_weights(small_config())
    del weights["language_model.lm_head.weight"]
    weights["vision_tower.extra"] = torch.zeros(2)
    weights[NORM] = weights[NORM][:-1].clone()
    for i in range(30):
        weights[f"language_model.more.{i}"] = torch.zeros(2)
    code, out, _ = call(inspect_checkpoint, write_tensors(tmp_path, small_config(), weights), "--verify", "--json")
    problems = json.loads(out)["problems"]
    assert code == CHECK_FAILED and len(problems) == 33
    assert f"{NORM}: shape [95] in model.safetensors, expected [96]" in problems
    assert "language_model.lm_head.weight: missing, expected shape [256, 96]" in problems
    assert "vision_tower.extra: unexpected, in model.safetensors" in problems
    assert "problem: vision_tower.extra: unexpected" in call(inspect_checkpoint, tmp_path)[1]


def test_verify_finds_what_headers_do_not_show(call: Program, tmp_path: Path) -> None:
    config = small_config(int4=True)
    weights, expert = pack_experts(random_weights(config), config), "language_model.model.layers.2.mlp.experts.7."
    weights[NORM][3], weights["vision_tower.encoder.final_layernorm.bias"][:2] = float("nan"), float("inf")
    weights[f"{expert}up_proj.weight_scale"][0, 1] = 0
    weights[f"{expert}up_proj.weight_packed"].zero_()
    weights[f"{expert}down_proj.weight_shape"][0] = 97
    directory = write_tensors(tmp_path, config, weights)
    assert call(inspect_checkpoint, directory)[0] == DONE
    code, out, _ = call(inspect_checkpoint, directory, "--verify", "--json")
    assert code == CHECK_FAILED and set(json.loads(out)["problems"]) == {
        f"{NORM}: 1 of 96 values are NaN or Inf",
        "vision_tower.encoder.final_layernorm.bias: 2 of 40 values are NaN or Inf",
        f"{expert}up_proj.weight_scale: 1 of 96 scales are zero",
        f"{expert}up_proj.weight_packed: every word is zero, a hole in the file. Fetch it again",
        f"{expert}down_proj.weight_shape: says [97, 32], weight_packed holds [96, 32]",
    }


def test_inspect_refuses_what_is_no_checkpoint(call: Program, dense: Path, tmp_path: Path) -> None:
    assert "neither a folder nor a preset. Presets: kimi-k2.5" in refused(call(inspect_checkpoint, tmp_path / "none"))
    assert "has no weights to read" in refused(call(inspect_checkpoint, "tiny", "--verify"))
    shard = min(dense.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-5])
    assert f"{shard.name}: truncated: 5 bytes are missing" in refused(call(inspect_checkpoint, dense))


# Quantise


def test_quantised_checkpoint_differs_in_its_experts_alone(call: Program, dense: Path, tmp_path: Path) -> None:
    (dense / "tokenizer_config.json").write_text('{"a": "é"}', encoding="utf-8")
    out = tmp_path / "out"
    code, text, _ = call(quantize, "--model", dense, "--out", out)
    assert code == DONE and "48 expert matrices packed" in text
    before, after, dense_weights = Checkpoint(dense), Checkpoint(out), random_weights(small_config())
    expected = pack_experts(dense_weights, small_config())
    assert set(after.tensors) == set(expected)
    for name, tensor in expected.items():
        assert after.read(name).dtype == tensor.dtype and torch.equal(after.read(name), tensor), name
    assert after.config.quantization == "int4" and before.config.quantization is None
    assert (out / "tokenizer_config.json").read_bytes() == (dense / "tokenizer_config.json").read_bytes()
    assert not (out / INDEX_FILE).exists()  # the small result is one file: no index of the source is left
    assert call(inspect_checkpoint, out, "--verify")[0] == DONE
    load_model(out)


def test_quantised_config_has_the_published_entry_in_its_place(call: Program, dense: Path, tmp_path: Path) -> None:
    call(quantize, "--model", dense, "--out", tmp_path / "out")
    before, after = (json.loads((path / "config.json").read_text()) for path in (dense, tmp_path / "out"))
    entry, published = after["text_config"].pop("quantization_config"), PRESETS["kimi-k2.5"]["text_config"]
    assert before == after
    assert entry.pop("ignore") == [
        *published["quantization_config"]["ignore"], "re:.*vision_tower.*", "re:.*mm_projector.*"
    ]  # fmt: skip
    assert entry == {key: value for key, value in published["quantization_config"].items() if key != "ignore"}


def k2_fp8(directory: Path) -> Path:
    config = preset_dict("tiny")["text_config"] | {"model_type": "kimi_k2"}
    config["quantization_config"] = preset_dict("kimi-k2-instruct")["quantization_config"]
    weights = random_weights(config)
    for name in [name for name in weights if "_proj" in name]:
        weights[name] = weights[name].to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = torch.rand(tuple(-(-size // 128) for size in weights[name].shape)) + 0.5
    return write_tensors(directory, config, weights)


def test_fp8_checkpoint_is_dequantised_then_quantised(call: Program, tmp_path: Path) -> None:
    source, out = Checkpoint(k2_fp8(tmp_path / "fp8")), tmp_path / "out"
    assert call(inspect_checkpoint, tmp_path / "fp8", "--verify")[0] == DONE
    assert call(quantize, "--model", tmp_path / "fp8", "--out", out)[0] == DONE
    result = Checkpoint(out)
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"] == PRESETS["kimi-k2-thinking"]["quantization_config"]
    assert not any(name.endswith("_scale_inv") for name in result.tensors)
    dense = {name: source.read(name) for name in source.tensors if not name.endswith("_scale_inv")}
    expected = pack_experts(dense, config)
    assert set(result.tensors) == set(expected)
    assert all(torch.equal(result.read(name), tensor) for name, tensor in expected.items())


def test_quantise_refuses_with_one_line(call: Program, dense: Path, int4: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    assert "48 INT4 matrices already" in refused(call(quantize, "--model", int4, "--out", new))
    assert "exists and is not an empty folder" in refused(call(quantize, "--model", dense, "--out", dense))
    assert "does not exist. Make it first" in refused(call(quantize, "--model", dense, "--out", new / "deep"))
    assert "no such folder" in refused(call(quantize, "--model", tmp_path / "none", "--out", new))
    odd = write_checkpoint(tmp_path / "odd", small_config(text={"moe_intermediate_size": 40}))
    assert "moe_intermediate_size is 40; INT4 experts need a multiple of 32" in refused(
        call(quantize, "--model", odd, "--out", new)
    )
    assert not new.exists()


def test_quantise_into_an_empty_folder_is_fine(call: Program, dense: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert call(quantize, "--model", dense, "--out", tmp_path / "out")[0] == DONE


def test_quantise_that_fails_leaves_nothing_behind(call: Program, tmp_path: Path) -> None:
    weights = random_weights(small_config())
    weights["language_model.model.layers.2.mlp.experts.7.up_proj.weight"][0, 0] = float("nan")
    directory = write_tensors(tmp_path / "dense", small_config(), weights)
    assert "holds NaN or Inf" in refused(call(quantize, "--model", directory, "--out", tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_quantise_refuses_a_full_disk_before_it_starts(
    call: Program, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(quantize.shutil, "disk_usage", lambda path: full)
    assert "needs 0.0 GiB, 0.0 GiB are free" in refused(call(quantize, "--model", dense, "--out", tmp_path / "out"))


# Dump and compare


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    pixels, grids = random_pixels(GRIDS)
    tensors = {"input_ids": prompt_with_media(GRIDS), "pixel_values": pixels, "grid_thws": grids}
    save_file(tensors, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


@pytest.fixture
def dump(call: Program, int4: Path, inputs: Path, tmp_path: Path) -> Callable[..., Path]:
    def run_dump(name: str, *options: str) -> Path:
        path = tmp_path / f"{name}.safetensors"
        code, _, err = call(dump_activations, "--model", int4, "--input", inputs, "--out", path, *options)
        assert (code, err) == (DONE, "")
        return path

    return run_dump


def test_dump_holds_the_promised_names_and_shapes(dump: Callable[..., Path]) -> None:
    tensors, num_tokens = load_file(dump("plain")), prompt_with_media(GRIDS).shape[1]
    expected = {f"hidden.{i}": (1, num_tokens, 96) for i in range(4)}
    expected |= {"logits": (1, num_tokens, 256), "vision.features": (8, 96)}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dump_keeps_the_dtype_of_the_run(dump: Callable[..., Path], dtype: str) -> None:
    path = dump("typed", "--dtype", dtype)
    assert {tensor.dtype for tensor in load_file(path).values()} == {getattr(torch, dtype)}
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"backend": "reference", "dtype": dtype, "device": "cpu", "int4_product": "bfloat16"}


@pytest.mark.parametrize("case", ["text_small", "image_small"])
def test_dump_of_a_golden_checkpoint_compares_equal(call: Program, tmp_path: Path, case: str) -> None:
    out, source = tmp_path / "out.safetensors", GOLDEN / case
    assert call(dump_activations, "--model", source, "--input", source / "input.safetensors", "--out", out)[0] == DONE
    assert call(compare_dumps, source / "expected.safetensors", out)[0] == DONE


def test_every_stage_is_dumped_documented_and_in_execution_order(int4: Path, dump: Callable[..., Path]) -> None:
    seen: list[str] = []

    def note_name(name: str, tensor: Tensor) -> Tensor:
        seen.append(name)
        return tensor

    pixels, grids = random_pixels(GRIDS)
    with torch.no_grad(), observing(note_name):
        load_model(int4)(prompt_with_media(GRIDS), pixel_values=pixels, grid_thws=grids)
    assert sorted(seen, key=compare_dumps.execution_order) == seen and len(set(seen)) == len(seen)
    assert set(load_file(dump("all", "--all"))) == set(seen)
    text = (ROOT / "docs" / "dump-names.md").read_text(encoding="utf-8")
    for name in seen:
        documented = ".".join("{i}" if part.isdigit() else part for part in name.split("."))
        assert f"| `{documented}` " in text, name


def test_unknown_names_come_after_the_logits() -> None:
    names = ["zebra", "layers.1.attn.mine", "logits", "hidden.10", "layers.9.mlp.out", "hidden.2", "vision.features"]
    ordered = ["vision.features", "hidden.2", "layers.9.mlp.out", "hidden.10", "logits", "layers.1.attn.mine", "zebra"]
    assert sorted(names, key=compare_dumps.execution_order) == ordered


def test_the_two_int4_products_are_told_apart(call: Program, dump: Callable[..., Path]) -> None:
    rounded, exact = dump("rounded", "--all"), dump("exact", "--all", "--int4-product", "exact")
    code, out, _ = call(compare_dumps, rounded, exact, "--json")
    report = json.loads(out)
    assert code == CHECK_FAILED and report["first_beyond"] == "layers.1.moe.routed"
    first = next(row for row in report["tensors"] if row["beyond"])
    assert 1e-4 < first["relative_l2"] < 1e-2 and first["cosine"] > 0.999


def test_compare_names_the_first_stage_not_the_worst(call: Program, tmp_path: Path) -> None:
    names = ["hidden.0", "layers.0.attn.q", "hidden.1", "layers.10.mlp.out", "hidden.11", "logits"]
    true = {name: torch.ones(1, 4, 8) for name in names}
    mine = {name: true[name] + error for name, error in zip(names, [0, 0, 0.5, 9, 9, 9], strict=True)}
    save_file(true, tmp_path / "a.safetensors")
    save_file(mine | {"mine": torch.ones(1)}, tmp_path / "b.safetensors")
    code, out, _ = call(compare_dumps, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert code == CHECK_FAILED and "4 of 6 stages beyond 1e-05, first hidden.1" in out and "only in B: mine" in out
    positions = [out.index(f"\n{name} ") for name in names]
    assert positions == sorted(positions)
    report = json.loads(call(compare_dumps, tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--json")[1])
    row = next(row for row in report["tensors"] if row["name"] == "hidden.1")
    assert (row["max_abs"], row["relative_l2"], row["shape"]) == (0.5, 0.5, [1, 4, 8])
    assert row["cosine"] == pytest.approx(1) and report["only_in_b"] == ["mine"]
    code, _, _ = call(compare_dumps, tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--tolerance", "9.1")
    assert code == DONE


def compared(call: Program, folder: Path, a: dict[str, Tensor], b: dict[str, Tensor]) -> list[dict[str, Any]]:
    save_file(a, folder / "a.safetensors")
    save_file(b, folder / "b.safetensors")
    return json.loads(call(compare_dumps, folder / "a.safetensors", folder / "b.safetensors", "--json")[1])["tensors"]


def test_experts_are_compared_as_sets_and_their_weights_by_expert(call: Program, tmp_path: Path) -> None:
    ids, weights = torch.tensor([[3, 1], [0, 2], [5, 4], [1, 7]]), torch.rand(4, 2)
    true = {"layers.1.router.experts": ids, "layers.1.router.weights": weights}
    other_order = {"layers.1.router.experts": ids.flip(-1), "layers.1.router.weights": weights.flip(-1)}
    assert [row["beyond"] for row in compared(call, tmp_path, true, other_order)] == [False, False]
    one_flip = {"layers.1.router.experts": ids.clone()}
    one_flip["layers.1.router.experts"][2, 0] = 6
    [row] = compared(call, tmp_path, true, one_flip)
    assert row["beyond"] and row["flipped_tokens"] == 0.25 and row["note"] == "25.00% flipped"


@pytest.mark.parametrize(
    ("mine", "note"),
    [
        (torch.ones(4, 3), "shape [4, 3] in B"),
        (torch.full((3, 4), float("nan")), "NaN or Inf"),
        (torch.zeros(3, 4), ""),
    ],
)
def test_what_cannot_agree_is_beyond(call: Program, tmp_path: Path, mine: Tensor, note: str) -> None:
    [row] = compared(call, tmp_path, {"logits": torch.ones(3, 4)}, {"logits": mine})
    assert row["beyond"] and row["note"] == note


def test_zeros_agree_with_zeros(call: Program, tmp_path: Path) -> None:
    zeros = torch.zeros(3)
    [row] = compared(call, tmp_path, {"logits": zeros}, {"logits": zeros.bfloat16()})
    assert (row["beyond"], row["relative_l2"], row["cosine"]) == (False, 0.0, 1.0)


def test_compare_refuses_with_one_line(call: Program, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_text("nothing")
    assert "no tensor in common" in refused(call(compare_dumps, tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    for bad in ("c.safetensors", "none.safetensors"):
        assert f"{bad}: cannot be read" in refused(call(compare_dumps, tmp_path / "a.safetensors", tmp_path / bad))
    twice = [tmp_path / "a.safetensors"] * 2
    assert "expected a number of at least 0" in refused(call(compare_dumps, *twice, "--tolerance", "-1"))


IDS = {"input_ids": torch.tensor([[5, 245, 245, 6]])}
PIXELS = {"pixel_values": torch.zeros(8, 3, 14, 14)}


def grid(*thw: int, dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
    return {"grid_thws": torch.tensor([thw], dtype=dtype)}


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        (PIXELS, "holds no input_ids, but pixel_values"),
        ({"input_ids": torch.ones(4, dtype=torch.int64)}, "input_ids is int64 [4], expected int64 [B, T]"),
        ({"input_ids": torch.ones(1, 4, dtype=torch.int32)}, "input_ids is int32 [1, 4], expected int64 [B, T]"),
        ({"input_ids": torch.ones(1, 0, dtype=torch.int64)}, "input_ids is int64 [1, 0], expected int64 [B, T]"),
        ({"input_ids": torch.tensor([[3, 256]])}, "input_ids go from 3 to 256, expected 0 to 255"),
        ({"input_ids": torch.tensor([[3, -1]])}, "input_ids go from -1 to 3, expected 0 to 255"),
        (IDS | PIXELS, "pixel_values and grid_thws belong together"),
        (IDS | {"pixel_values": torch.zeros(8, 3, 14, 14).long()} | grid(1, 2, 4), "pixel_values are torch.int64"),
        (IDS | {"pixel_values": torch.zeros(8, 588)} | grid(1, 2, 4), "expected floats [patches, 3, 14, 14]"),
        (IDS | PIXELS | grid(1, 2, 4, dtype=torch.int32), "grid_thws are torch.int32 [1, 3], expected int64"),
        (IDS | PIXELS | grid(2, 4), "grid_thws are torch.int64 [1, 2], expected int64"),
        (IDS | PIXELS | grid(2, 4, 8), "64 patches but pixel_values hold 8"),
        (IDS | PIXELS | grid(5, 2, 4), "grid_thws[0] has 5 frames, expected 1 to 4"),
        (IDS | PIXELS | grid(0, 2, 4), "grid_thws[0] has 0 frames, expected 1 to 4"),
        (IDS | PIXELS | grid(1, 1, 8), "grid_thws[0] is 1 x 8 patches, expected positive multiples of 2 x 2"),
        (IDS | PIXELS | grid(1, -2, -4), "grid_thws[0] is -2 x -4 patches"),
        ({"input_ids": torch.tensor([[245]])} | PIXELS | grid(1, 2, 4), "hold 1 media placeholders (id 245)"),
    ],
)
def test_dump_refuses_inputs_that_do_not_fit(
    call: Program, tmp_path: Path, tensors: dict[str, Tensor], complaint: str
) -> None:
    save_file(tensors, tmp_path / "in.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(small_config()))  # refused before any weight is read
    given, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    assert complaint in refused(call(dump_activations, "--model", tmp_path, "--input", given, "--out", out))
    assert not out.exists()


def test_dump_warns_about_what_it_does_not_use(call: Program, tmp_path: Path, dense: Path) -> None:
    given, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(IDS | {"attention_mask": torch.ones(1, 4)}, given)
    code, _, err = call(dump_activations, "--model", dense, "--input", given, "--out", out)
    assert code == DONE and "attention_mask not used" in err and "2 media placeholders but no pixel_values" in err


def test_dump_refuses_what_it_cannot_run(call: Program, tmp_path: Path, dense: Path, inputs: Path) -> None:
    common = ("--model", dense, "--input", inputs, "--out")
    out = tmp_path / "out.safetensors"
    outcome = call(dump_activations, *common, out, "--backend", "optimized", "--dtype", "float64")
    assert "the optimized backend has no float64" in refused(outcome)
    assert "cannot write there" in refused(call(dump_activations, *common, tmp_path / "none" / "out.safetensors"))
    assert "would be overwritten" in refused(call(dump_activations, *common, inputs))
    if not torch.cuda.is_available():
        assert "torch finds no CUDA GPU" in refused(call(dump_activations, *common, out, "--device", "cuda"))
    text_only = tmp_path / "text_only"
    text_only.mkdir()
    config = preset_dict("tiny")["text_config"] | {"model_type": "kimi_k2"}
    (text_only / "config.json").write_text(json.dumps(config))
    assert "kimi_k2 has no vision part" in refused(
        call(dump_activations, "--model", text_only, "--input", inputs, "--out", out)
    )
    assert not out.exists()


# Measure


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NEW_TOKENS": 2, "REPEATS": 3, "QUIET_WAIT_S": 0, "MEMORY_TEST_BYTES": 2**20}.items():
        monkeypatch.setattr(bench, name, value)


@pytest.mark.usefixtures("short")
def test_bench_reports_medians_with_spread(call: Program, int4: Path, tmp_path: Path) -> None:
    code, out, _ = call(bench, "--model", int4, "--backend", "all", "--contexts", "7,9", "--json", tmp_path / "b.json")
    report = json.loads((tmp_path / "b.json").read_text())
    names = ["reference", "optimized INT4", "optimized float32"]
    assert code == DONE and all(name in out for name in names)
    for engines in report["contexts"].values():
        assert list(engines) == names
        for figures in engines.values():
            assert figures.pop("gb_per_s") > 0
            assert set(figures) == {"prefill_tok_s", "decode_tok_s", "time_to_first_token_s", "answer_s"}
            assert all(0 < figure["min"] <= figure["median"] <= figure["max"] for figure in figures.values())
    assert list(report["contexts"]) == ["7", "9"] and report["bandwidth_gb_s"] > 0
    assert list(report["experts"]) == [str(n) for n in bench.EXPERT_TOKENS]
    for engines in report["experts"].values():
        assert list(engines) == names[1:] and all(engine["ms"]["median"] > 0 for engine in engines.values())
    weights_mb = [engine["weights_mb"] for engine in report["engines"].values()]
    assert weights_mb[0] > 0 and weights_mb[1] < weights_mb[2]
    assert all(engine["images_per_s"]["median"] > 0 for engine in report["engines"].values())
    assert 0 < (int4 / SINGLE_FILE).stat().st_size - report["checkpoint_bytes"] < 2**16  # the header
    assert report["peak_rss_mb"] > 50
    assert report["quiet"] == (report["load_average_before"] <= 0.5) and ("not quiet" in out) != report["quiet"]


@pytest.mark.parametrize("kind", ["experts", "grouped", "decode"])
def test_every_form_is_measured(kind: str, call: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SIZES": {"mid": (128, 64, 8), "full": (64, 64, 8)}, "ROUNDS": 2, "WARM_UPS": 1}.items():
        monkeypatch.setattr(bench_forms, name, value)
    monkeypatch.setattr(bench, "QUIET_WAIT_S", 0)
    code, out, _ = call(bench_forms, "--only", kind, "--json", tmp_path / "f.json")
    works = json.loads((tmp_path / "f.json").read_text())["works"]
    assert code == DONE and len(works) >= 3 and {work["kind"] for work in works} == {kind}
    for work in works:
        assert work["what"] in out and len(work["forms"]) >= 2
        assert all(form["ms"]["median"] > 0 and form["gb_per_s"] > 0 for form in work["forms"].values())


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bench_runs_a_small_preset_with_random_weights(call: Program, dtype: str) -> None:
    code, out, _ = call(bench, "--preset", "tiny", "--backend", "all", "--contexts", "5", "--dtype", dtype)
    assert code == DONE and "images/s" in out


@pytest.mark.oracle
@pytest.mark.usefixtures("short")
def test_bench_measures_transformers_on_the_same_weights(call: Program) -> None:
    code, out, _ = call(bench, "--peer", "transformers", "--contexts", "5")
    assert code == DONE and "transformers" in out


def test_peer_computes_what_the_reference_does() -> None:
    """A bench of two engines that do different work would say nothing."""
    weights, ids = published_weights(SHIPPED_MODEL), torch.randint(0, 1000, (1, 20))
    builders = engine_builders(weights, torch.float32, "all", "transformers", compiled=None)
    with torch.inference_mode():
        said = []
        for _, _, build in builders:
            session = build().begin(40)
            token = session(ids)
            said.append([token.item(), *((token := session(token)).item() for _ in range(12))])
    assert len(said) == 4 and all(tokens == said[0] for tokens in said)


def test_bench_of_compiled_forms_only_leaves_the_others_out() -> None:
    weights = published_weights(SHIPPED_MODEL)
    names = [name for name, _, _ in engine_builders(weights, torch.float32, "optimized", None, compiled="only")]
    assert names == ["optimized INT4, compiled", "optimized float32, compiled"]


def test_bytes_of_a_decoded_token_are_those_of_the_published_model() -> None:
    """63.4 GB with bfloat16 experts, 32.99 GB with INT4: 8 of 384 experts, no embedding, no cache, no vision."""
    config = preset("kimi-k2.5")
    weights = Weights(config, {}, build_model(config).state_dict())
    assert weights.bytes_per_token(16, 2) / 1e9 == pytest.approx(63.4, abs=0.05)
    assert weights.bytes_per_token(4.5, 2) / 1e9 == pytest.approx(32.99, abs=0.03)


def last_line(outcome: tuple[int, str, str]) -> str:
    assert outcome[0] == BAD_INPUT and outcome[1] == ""
    return outcome[2].splitlines()[-1]


def test_bench_refuses_a_preset_larger_than_memory(call: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_models, "available_bytes", lambda: 16 * 2**30)
    monkeypatch.setattr(bench, "QUIET_WAIT_S", 0)
    line = last_line(call(bench, "--preset", "kimi-vl-a3b"))
    assert "of memory for weights alone, 16.0 GiB are available" in line


def test_bench_refuses_contradictions(call: Program, tmp_path: Path) -> None:
    assert "not allowed with" in last_line(call(bench, "--preset", "tiny", "--model", tmp_path))
    assert "config.json: cannot be read" in last_line(call(bench, "--model", tmp_path / "none"))
    assert "unknown; expected" in last_line(call(bench, "--preset", "tinier"))
    assert "expected whole numbers" in last_line(call(bench, "--contexts", "many"))
    assert "expected at least 1 token" in last_line(call(bench, "--contexts", "0"))


@pytest.mark.parametrize("program", [inspect_checkpoint, quantize, dump_activations, compare_dumps, bench])
def test_help_ends_with_two_examples(program: Any) -> None:
    command = [sys.executable, "-m", program.__name__, "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert text.rstrip().split("examples:")[1].count(f"python -m {program.__name__}") == 2
