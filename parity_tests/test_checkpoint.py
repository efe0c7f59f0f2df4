"""Reading and writing the published layout: what is read, what is refused, and that nothing is left half-written."""

import json
import struct
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
    random_weights,
    small_config,
    write_checkpoint,
    write_tensors,
)
from reference.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, ShardWriter, dequantize_fp8
from reference.errors import CheckpointError, ConfigError
from reference.int4 import Int4Linear, dequantize, quantize
from reference.model import load_expert, load_layer, load_model
from reference.presets import preset_dict

MANY_FILES = 60_000  # bytes a shard: the small model becomes a dozen files
LAYER_1 = "language_model.model.layers.1."
EXPERT = f"{LAYER_1}mlp.experts.5."


@pytest.fixture
def int4_weights() -> dict[str, Tensor]:
    config = small_config(int4=True)
    return pack_experts(random_weights(config), config)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", small_config(int4=True), shard_bytes=MANY_FILES)


def problems_of(call: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_file_and_many_files_load_the_same_model(tmp_path: Path, sharded: Path) -> None:
    single = write_checkpoint(tmp_path / "single", small_config(int4=True))
    assert (single / SINGLE_FILE).exists() and not (single / INDEX_FILE).exists()
    assert len(list(sharded.glob("model-*-of-*.safetensors"))) > 10
    states = [load_model(directory).state_dict() for directory in (single, sharded)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_names_in_files_are_names_of_the_model(sharded: Path, int4_weights: dict[str, Tensor]) -> None:
    assert set(load_model(sharded).state_dict()) == set(Checkpoint(sharded).tensors) == set(int4_weights)


def test_floats_take_the_dtype_asked_for_except_bias_and_scales(sharded: Path) -> None:
    state = load_model(sharded, torch.float64).state_dict()
    kinds = {".weight_scale": torch.bfloat16, ".weight_packed": torch.int32, ".weight_shape": torch.int32}
    kinds[".e_score_correction_bias"] = torch.float32
    for name, tensor in state.items():
        assert tensor.dtype == kinds.get("." + name.rpartition(".")[2], torch.float64), name


def recorded_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read, names = Checkpoint.read, []

    def recording(self: Checkpoint, name: str) -> Tensor:
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "read", recording)
    return names


def test_one_layer_is_loaded_without_reading_anything_else(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, checkpoint = load_model(sharded), Checkpoint(sharded)
    names = recorded_reads(monkeypatch)
    layer = load_layer(checkpoint, 1, torch.float32)
    assert set(names) == {name for name in checkpoint.tensors if name.startswith(LAYER_1)}
    assert set(checkpoint._open_files) == {checkpoint.tensors[name].file for name in names}
    expected = whole.get_submodule(LAYER_1.rstrip(".")).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in layer.state_dict().items())


def test_one_expert_is_loaded_without_reading_anything_else(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, names = Checkpoint(sharded), recorded_reads(monkeypatch)
    expert = load_expert(checkpoint, 1, 5, torch.float32)
    assert set(names) == {name for name in checkpoint.tensors if name.startswith(EXPERT)} and len(names) == 9
    assert isinstance(expert.gate_proj, Int4Linear) and expert(torch.ones(2, 96)).shape == (2, 96)


def test_opening_reads_headers_only(sharded: Path) -> None:
    """The values may be absent altogether: a listing of the published 595 GB works from sparse files."""
    for path in sharded.glob("*.safetensors"):
        size = path.stat().st_size
        with path.open("r+b") as file:
            header_size = struct.unpack("<Q", file.read(8))[0]
            file.truncate(8 + header_size)
            file.truncate(size)
    assert len(Checkpoint(sharded).tensors) == 222


def test_every_misfit_is_listed_at_once(tmp_path: Path, int4_weights: dict[str, Tensor]) -> None:
    weights, norm = int4_weights, "language_model.model.norm.weight"
    del weights["language_model.lm_head.weight"]
    weights["language_model.extra.weight"] = torch.zeros(3)
    weights[f"{LAYER_1}mlp.gate.weight"] = weights[f"{LAYER_1}mlp.gate.weight"][:, :-1].clone()
    weights[norm] = weights[norm].to(torch.int64)
    weights[f"{EXPERT}up_proj.weight_packed"] = weights[f"{EXPERT}up_proj.weight_packed"].to(torch.int64)
    message = problems_of(lambda: load_model(write_tensors(tmp_path, small_config(int4=True), weights)))
    for part in (
        "5 problems",
        "language_model.lm_head.weight: missing, expected shape [256, 96]",
        "language_model.extra.weight: unexpected, in model.safetensors",
        f"{LAYER_1}mlp.gate.weight: shape [8, 95] in model.safetensors, expected [8, 96]",
        f"{norm}: dtype I64 in model.safetensors, expected BF16 or F16 or F32",
        f"{EXPERT}up_proj.weight_packed: dtype I64 in model.safetensors, expected I32",
        f"python -m tools.inspect_checkpoint {tmp_path}",
    ):
        assert part in message


def test_config_of_another_model_is_told_by_shapes(sharded: Path) -> None:
    config = small_config(text={"num_hidden_layers": 2, "first_k_dense_replace": 0}, int4=True)
    (sharded / "config.json").write_text(json.dumps(config))
    message = problems_of(lambda: load_model(sharded))
    assert "language_model.model.layers.0.mlp.gate.weight: missing" in message and "more." in message


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_files_are_all_named(sharded: Path, keep: int) -> None:
    files = sorted(sharded.glob("*.safetensors"))[:2]
    for path in files:
        path.write_bytes(path.read_bytes()[:keep])
    message = problems_of(lambda: Checkpoint(sharded))
    assert "2 problems" in message and "truncated" in message and all(path.name in message for path in files)


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        header(b"not json at all!"),
        header(b"[1, 2, 3]       "),
        header(b'{"w": {"dtype": "BF16"}}'),
        header(b'{"w": {"dtype": "BF16", "shape": 3, "data_offsets": [0, 6]}}', bytes(6)),
        header(b'{"w": {"dtype": "BF16", "shape": [3], "data_offsets": "all"}}', bytes(6)),
        header(b'{"w": {"dtype": ["F32"], "shape": [0], "data_offsets": [0, 0]}}'),
        header(b'{"w": {"dtype": "F32", "shape": ["3"], "data_offsets": [0, 0]}}'),
        header(b'{"w": {"dtype": "F32", "shape": [-3], "data_offsets": [0, 0]}}'),
        header(b'{"w": {"dtype": "F32", "shape": [3], "data_offsets": [12, 0]}}'),
        header(b"[" * 100_000),
        header(b"\xff\xfe" * 8),
        struct.pack("<Q", 2**60) + b"{}",
    ],
)
def test_corrupt_header_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text(json.dumps(small_config()))
    (tmp_path / SINGLE_FILE).write_bytes(content)
    message = problems_of(lambda: Checkpoint(tmp_path))
    assert SINGLE_FILE in message and "Fetch these files again" in message


def test_shape_that_contradicts_the_length_is_refused(tmp_path: Path) -> None:
    weights = random_weights(small_config())
    save_file(weights, tmp_path / SINGLE_FILE)
    content = (tmp_path / SINGLE_FILE).read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    entries = json.loads(content[8 : 8 + size])
    entries["language_model.model.norm.weight"]["data_offsets"][1] -= 2
    text = json.dumps(entries).encode()
    (tmp_path / SINGLE_FILE).write_bytes(header(text, content[8 + size : -2]))
    (tmp_path / "config.json").write_text(json.dumps(small_config()))
    message = problems_of(lambda: load_model(tmp_path))
    assert SINGLE_FILE in message and "cannot be read" in message and "Fetch the file again" in message


def test_index_naming_absent_files_lists_them(sharded: Path) -> None:
    files = sorted(sharded.glob("*.safetensors"))[1:3]
    for path in files:
        path.unlink()
    message = problems_of(lambda: Checkpoint(sharded))
    assert all(f"{path.name}: cannot be read (No such file or directory)" in message for path in files)


def test_index_naming_the_wrong_file_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_FILE).read_text())
    name, wrong = "language_model.model.norm.weight", min(index["weight_map"].values())
    index["weight_map"][name] = wrong
    (sharded / INDEX_FILE).write_text(json.dumps(index))
    message = problems_of(lambda: Checkpoint(sharded))
    assert f"{INDEX_FILE} says {name} is in {wrong}, which does not hold it" in message


def test_the_index_decides_which_of_two_copies_counts(sharded: Path) -> None:
    """A shard may hold what the index assigns to another one, as after merging folders."""
    index = json.loads((sharded / INDEX_FILE).read_text())["weight_map"]
    name, last = "language_model.model.norm.weight", sorted(index.values())[-1]
    assert index[name] != last
    tensors = load_file(sharded / last)
    save_file({**tensors, name: torch.full((96,), 7.0)}, sharded / last)
    assert Checkpoint(sharded).tensors[name].file == index[name]
    assert load_model(sharded).get_parameter(name).max() < 7


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}, {"a": ["b"]}])
def test_index_without_a_weight_map_is_refused(sharded: Path, weight_map: Any) -> None:
    (sharded / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    assert "weight_map is not an object" in problems_of(lambda: Checkpoint(sharded))


def test_index_pointing_outside_the_folder_is_refused(sharded: Path) -> None:
    (sharded / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))
    assert "outside the folder" in problems_of(lambda: Checkpoint(sharded))


def test_absent_folder_and_absent_weights_are_told_apart(tmp_path: Path) -> None:
    assert "no such folder" in problems_of(lambda: Checkpoint(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(small_config()))
    assert "model.safetensors: cannot be read" in problems_of(lambda: Checkpoint(tmp_path))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_weight_shape_is_read_in_both_integer_widths(
    tmp_path: Path, int4_weights: dict[str, Tensor], dtype: torch.dtype
) -> None:
    weights = {n: t.to(dtype) if n.endswith(".weight_shape") else t for n, t in int4_weights.items()}
    model = load_model(write_tensors(tmp_path, small_config(int4=True), weights))
    assert model.get_submodule(f"{EXPERT}down_proj").weight_shape.tolist() == [96, 32]


def test_weight_shape_that_contradicts_the_words_is_refused(tmp_path: Path, int4_weights: dict[str, Tensor]) -> None:
    int4_weights[f"{EXPERT}down_proj.weight_shape"] = torch.tensor([32, 96], dtype=torch.int32)
    message = problems_of(lambda: load_model(write_tensors(tmp_path, small_config(int4=True), int4_weights)))
    assert f"{EXPERT}down_proj.weight_shape says [32, 96], weight_packed holds [96, 32]" in message


def test_packed_or_not_is_decided_by_the_tensors_alone(tmp_path: Path, int4_weights: dict[str, Tensor]) -> None:
    """One expert stays dense although the configuration says INT4, and one attention matrix is packed."""
    weights, name, q_a = int4_weights, f"{EXPERT}down_proj", f"{LAYER_1}self_attn.q_a_proj"
    weights[f"{name}.weight"] = dequantize(weights[f"{name}.weight_packed"], weights[f"{name}.weight_scale"])
    for part in ("packed", "scale", "shape"):
        del weights[f"{name}.weight_{part}"]
    weights[f"{q_a}.weight_packed"], weights[f"{q_a}.weight_scale"] = quantize(weights.pop(f"{q_a}.weight"))
    weights[f"{q_a}.weight_shape"] = torch.tensor([48, 96], dtype=torch.int32)
    model = load_model(write_tensors(tmp_path, small_config(int4=True), weights))
    assert isinstance(model.get_submodule(name), torch.nn.Linear)
    assert isinstance(model.get_submodule(q_a), Int4Linear)


def test_packed_tensor_where_no_linear_stands_is_unexpected(tmp_path: Path, int4_weights: dict[str, Tensor]) -> None:
    int4_weights["language_model.model.norm.weight_packed"] = torch.zeros(1, 1, dtype=torch.int32)
    message = problems_of(lambda: load_model(write_tensors(tmp_path, small_config(int4=True), int4_weights)))
    assert "language_model.model.norm.weight_packed: unexpected" in message


@pytest.mark.parametrize("shape", [(128, 256), (130, 200), (1, 1), (127, 385)])
def test_fp8_blocks_take_the_scale_of_their_block(shape: tuple[int, int]) -> None:
    rows, columns = shape
    weight = torch.randn(shape).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-rows // 128), -(-columns // 128)) + 0.5
    expected = torch.empty(shape, dtype=torch.bfloat16)
    for row in range(rows):
        for start in range(0, columns, 128):
            block = weight[row, start : start + 128].float() * scale[row // 128, start // 128]
            expected[row, start : start + 128] = block.to(torch.bfloat16)
    assert torch.equal(dequantize_fp8(weight, scale), expected)


def fp8_checkpoint(directory: Path, change: Callable[[dict[str, Tensor]], None] = lambda weights: None) -> Path:
    """K2's layout: no prefix, FP8 in all linears of the layers but the router, ragged blocks everywhere."""
    config = preset_dict("tiny")["text_config"]
    config |= {"model_type": "kimi_k2", "quantization_config": preset_dict("kimi-k2-instruct")["quantization_config"]}
    weights = random_weights(config)
    for name in [name for name in weights if "_proj" in name]:
        weights[name] = weights[name].to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = torch.rand(tuple(-(-size // 128) for size in weights[name].shape)) + 0.5
    change(weights)
    return write_tensors(directory, config, weights)


@torch.no_grad()
def test_fp8_checkpoint_loads_dequantised(tmp_path: Path) -> None:
    checkpoint = Checkpoint(fp8_checkpoint(tmp_path))
    model, name = load_model(tmp_path), "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
    stored = load_file(tmp_path / SINGLE_FILE)
    assert checkpoint.tensors[name].dtype == "F8_E4M3"
    expected = dequantize_fp8(stored[name], stored[f"{name}_scale_inv"])
    assert torch.equal(model.get_parameter(name), expected.float())
    assert model(prompt_with_media([])).isfinite().all()


def test_fp8_scales_are_checked(tmp_path: Path) -> None:
    q, o = (f"model.layers.1.self_attn.{name}.weight_scale_inv" for name in ("q_b_proj", "o_proj"))

    def spoil(weights: dict[str, Tensor]) -> None:
        del weights[q]
        weights[o] = torch.ones(2, 1)
        weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.float8_e4m3fn)

    message = problems_of(lambda: load_model(fp8_checkpoint(tmp_path, spoil)))
    assert f"{q}: missing beside FP8 weights, expected shape [1, 1]" in message
    assert f"{o}: shape [2, 1] in model.safetensors, expected [1, 1]" in message
    assert "model.norm.weight: dtype F8_E4M3 in model.safetensors, expected BF16" in message


def test_rotary_tables_and_later_layers_are_ignored(tmp_path: Path, int4_weights: dict[str, Tensor]) -> None:
    int4_weights["language_model.model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    int4_weights["language_model.model.layers.3.eh_proj.weight"] = torch.ones(2, 2)
    int4_weights["language_model.model.layers.3.mlp.experts.0.up_proj.weight_packed"] = torch.ones(1, dtype=torch.int32)
    directory = write_tensors(tmp_path, small_config(int4=True), int4_weights)
    assert len(load_model(directory).state_dict()) == 222


def test_what_the_writer_writes_the_reader_reads_bit_for_bit(tmp_path: Path, int4_weights: dict[str, Tensor]) -> None:
    write_tensors(tmp_path, small_config(int4=True), int4_weights, MANY_FILES)
    checkpoint = Checkpoint(tmp_path)
    for name, tensor in int4_weights.items():
        assert checkpoint.read(name).dtype == tensor.dtype and torch.equal(checkpoint.read(name), tensor)


def test_shards_have_published_names_limited_sizes_and_an_index(tmp_path: Path, sharded: Path) -> None:
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):06d}.safetensors" for i in range(1, len(files) + 1)]
    index = json.loads((sharded / INDEX_FILE).read_text())
    sizes = {file: 0 for file in files}
    for stored in Checkpoint(sharded).tensors.values():
        sizes[stored.file] += stored.size_bytes
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert set(index["weight_map"].values()) == set(files) and max(sizes.values()) <= MANY_FILES
    with safe_open(sharded / files[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses files without it
    assert (sharded / files[0]).stat().st_mode & 0o444 == 0o444


def test_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ShardWriter(tmp_path, shard_bytes=100) as writer:
        for i in range(10):
            writer.add(f"tensor.{i}", torch.zeros(20))
        assert any(tmp_path.iterdir())
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_failure_while_writing_keeps_the_earlier_checkpoint(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, small_config())
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(ZeroDivisionError), ShardWriter(directory) as writer:
        writer.add("tensor", torch.zeros(20))
        _ = 1 / 0
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_one_file_written_over_many_is_what_counts(sharded: Path) -> None:
    write_checkpoint(sharded, small_config(), seed=1)
    assert {stored.file for stored in Checkpoint(sharded).tensors.values()} == {SINGLE_FILE}
