"""Checkpoints in the published layout: `config.json` and safetensors files, one or many with an index.

Nothing is read but the headers until a tensor is asked for, and then only that tensor, memory-mapped. Names in the
files are names in `state_dict()`, unrenamed. A linear is INT4 if and only if `<name>.weight_packed` exists; the ignore
list of `quantization_config` does not match what is really packed. FP8 blocks (K2 Base and Instruct) are dequantised on
reading. The layout is described in docs/checkpoint-format.md.
"""

import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .command import write_whole
from .config import KimiConfig, read_config_file
from .errors import CheckpointError
from .int4 import Int4Linear

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
FP8_BLOCK = 128
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class StoredTensor:
    """What a file's header says of one tensor."""

    file: str
    dtype: str  # safetensors' name, e.g. BF16
    shape: tuple[int, ...]
    size_bytes: int


class Checkpoint:
    """An opened checkpoint folder: every header read and checked, no weight loaded.

    Raises CheckpointError for absent, truncated or contradictory files, naming all of them, and ConfigError for
    config.json.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise CheckpointError(f"{directory}: no such folder. Expected a checkpoint: config.json and *.safetensors.")
        self.config = KimiConfig.from_directory(self.directory)
        weight_map = self._weight_map()
        files = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE_FILE]
        self.tensors: dict[str, StoredTensor] = {}
        self._open_files: dict[str, safe_open] = {}
        self._read_headers(files, weight_map)

    def _weight_map(self) -> dict[str, str] | None:
        index = self.directory / INDEX_FILE
        if not index.exists():
            return None
        weight_map = read_config_file(index).get("weight_map")
        if not isinstance(weight_map, dict) or not {type(file) for file in weight_map.values()} == {str}:
            raise CheckpointError(f"{index}: weight_map is not an object of tensor name to file name. Fetch it again.")
        outside = sorted({file for file in weight_map.values() if Path(file).name != file})
        if outside:
            raise CheckpointError(f"{index}: weight_map names files outside the folder: {', '.join(outside[:5])}.")
        return weight_map

    def _read_headers(self, files: list[str], weight_map: dict[str, str] | None) -> None:
        problems = []
        for file in files:
            try:
                stored = read_header(self.directory / file)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            self.tensors |= {n: t for n, t in stored.items() if weight_map is None or weight_map.get(n) == file}
        if weight_map is not None and not problems:
            wrong = [name for name in weight_map if name not in self.tensors]
            problems += [f"{INDEX_FILE} says {name} is in {weight_map[name]}, which does not hold it" for name in wrong]
        if problems:
            raise CheckpointError(_all_of(self.directory, problems) + " Fetch these files again.")

    def read(self, name: str) -> Tensor:
        """One tensor as stored, memory-mapped on the CPU; FP8 blocks come out as bfloat16. Raises CheckpointError."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory}: holds no tensor {name}.")
        stored = self.tensors[name]
        try:
            if stored.file not in self._open_files:
                self._open_files[stored.file] = safe_open(self.directory / stored.file, framework="pt")
            tensor = self._open_files[stored.file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            where = self.directory / stored.file
            raise CheckpointError(f"{where}: {name} cannot be read ({error}). Fetch the file again.") from None
        if stored.dtype == "F8_E4M3":
            return dequantize_fp8(tensor, self.read(f"{name}_scale_inv"))
        return tensor

    def int4_linears(self) -> list[str]:
        """Names of the linears that are stored packed."""
        return [name.removesuffix(".weight_packed") for name in self.tensors if name.endswith(".weight_packed")]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Names, dtypes and shapes in one safetensors file. Raises CheckpointError if it is absent, truncated or corrupt.

    The file begins with the length of a JSON header in 8 bytes; the header gives each tensor's place in the rest.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            header_size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            file_size = path.stat().st_size
            if not 0 < header_size <= file_size - 8:
                raise CheckpointError(f"{path.name}: truncated or not a safetensors file ({file_size} bytes)")
            header = json.loads(file.read(header_size))
            stored = {name: _stored(path.name, entry) for name, entry in header.items() if name != "__metadata__"}
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path.name}: its safetensors header is corrupt") from None
    missing = sum(tensor.size_bytes for tensor in stored.values()) + 8 + header_size - file_size
    if missing:
        what = f"truncated: {missing} bytes are missing" if missing > 0 else f"{-missing} bytes too long"
        raise CheckpointError(f"{path.name}: {what}")
    return stored


def _stored(file: str, entry: dict) -> StoredTensor:
    """One tensor of a header. Raises ValueError, KeyError or TypeError if the entry is none."""
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not isinstance(dtype, str) or not all(type(size) is int and size >= 0 for size in (*shape, begin, end - begin)):
        raise ValueError("not the entry of a tensor")
    return StoredTensor(file, dtype, shape, end - begin)


def dequantize_fp8(weight: Tensor, scale_inv: Tensor) -> Tensor:
    """E4M3 weights (out, in) times the scale of their 128 x 128 block, (out/128, in/128), to bfloat16.

    Source: DeepSeek-V3, README_WEIGHTS.
    """
    rows, columns = weight.shape
    scale = scale_inv.repeat_interleave(FP8_BLOCK, 0)[:rows].repeat_interleave(FP8_BLOCK, 1)[:, :columns]
    return (weight.float() * scale).to(torch.bfloat16)


def use_int4(module: nn.Module, names: Iterable[str]) -> None:
    """Replace the named linears of a module by packed ones of the same size."""
    modules = dict(module.named_modules())  # the published model has 69,120 of them: no walk from the root for each
    for name in names:
        parent, _, child = name.rpartition(".")
        linear = modules[name]
        packed = Int4Linear(linear.in_features, linear.out_features, device=linear.weight.device)
        setattr(modules[parent], child, packed)


def find_problems(expected: dict[str, Tensor], checkpoint: Checkpoint, prefix: str = "") -> list[str]:
    """Every missing, unexpected, misshapen or wrongly typed tensor among those whose names begin with `prefix`.

    expected: names as in the files, with tensors (on the meta device) of the right shape and kind of dtype.
    """
    problems = []
    for name, tensor in expected.items():
        stored = checkpoint.tensors.get(name)
        if stored is None:
            problems.append(f"{name}: missing, expected shape {list(tensor.shape)}")
            continue
        if stored.shape != tuple(tensor.shape):
            problems.append(f"{name}: shape {list(stored.shape)} in {stored.file}, expected {list(tensor.shape)}")
        allowed = _allowed_dtypes(name, tensor)
        if stored.dtype not in allowed:
            problems.append(f"{name}: dtype {stored.dtype} in {stored.file}, expected {' or '.join(allowed)}")
        if stored.dtype == "F8_E4M3":
            problems += _fp8_scale_problems(name, stored, checkpoint)
    known = set(expected) | {f"{name}_scale_inv" for name in expected if checkpoint.tensors.get(name)}
    unexpected = [n for n in checkpoint.tensors if n.startswith(prefix) and n not in known]
    return problems + [
        f"{n}: unexpected, in {checkpoint.tensors[n].file}" for n in unexpected if not _may_be_ignored(n, checkpoint)
    ]


def _allowed_dtypes(name: str, tensor: Tensor) -> tuple[str, ...]:
    if name.endswith(".weight_shape"):
        return ("I32", "I64")  # the published files have int32, today's compressed-tensors writes int64
    if tensor.dtype == torch.int32:
        return ("I32",)
    return (*FLOATS, "F8_E4M3") if may_be_fp8(name) else FLOATS


def may_be_fp8(name: str) -> bool:
    """Whether FP8 releases quantise this weight: the linears of the decoder layers, but not the router."""
    return re.search(r"\.layers\.\d+\..*_proj(_with_mqa)?\.weight$", name) is not None


def _fp8_scale_problems(name: str, stored: StoredTensor, checkpoint: Checkpoint) -> list[str]:
    blocks = tuple(-(-size // FP8_BLOCK) for size in stored.shape)
    scale = checkpoint.tensors.get(f"{name}_scale_inv")
    if scale is None:
        return [f"{name}_scale_inv: missing beside FP8 weights, expected shape {list(blocks)}"]
    problems = []
    if scale.shape != blocks:
        problems.append(f"{name}_scale_inv: shape {list(scale.shape)} in {scale.file}, expected {list(blocks)}")
    if scale.dtype not in FLOATS:
        problems.append(f"{name}_scale_inv: dtype {scale.dtype} in {scale.file}, expected {' or '.join(FLOATS)}")
    return problems


def _may_be_ignored(name: str, checkpoint: Checkpoint) -> bool:
    """Rotary tables that relatives store, and layers past the last one (their multi-token prediction head)."""
    layer = re.search(r"(?:^|\.)model\.layers\.(\d+)\.", name)
    past_the_end = layer is not None and int(layer[1]) >= checkpoint.config.text.num_hidden_layers
    return past_the_end or name.endswith("rotary_emb.inv_freq")


def fill(
    module: nn.Module, checkpoint: Checkpoint, prefix: str, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Load a module built on the meta device: all of it that the checkpoint holds under `prefix`, nothing else.

    Floating tensors become `dtype`, except the router's bias (float32) and the INT4 scales (as stored). Raises
    CheckpointError listing every problem at once.
    """
    packed = [name[len(prefix) :] for name in checkpoint.int4_linears() if name.startswith(prefix)]
    linears = {name for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    use_int4(module, [name for name in packed if name in linears])
    expected = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    problems = find_problems(expected, checkpoint, prefix)
    if problems:
        raise CheckpointError(
            _all_of(checkpoint.directory, problems) + " Check that config.json and the weights are of one revision: "
            f"python -m tools.inspect_checkpoint {checkpoint.directory}"
        )
    state = {name: _converted(prefix + name, checkpoint, dtype, device) for name in module.state_dict()}
    _check_packed_shapes(state, checkpoint, prefix)
    module.load_state_dict(state, assign=True)


def _converted(name: str, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    tensor = checkpoint.read(name)
    if name.endswith(".weight_shape"):
        dtype = torch.int32
    elif not tensor.is_floating_point() or name.endswith(".weight_scale"):
        dtype = tensor.dtype
    elif name.endswith(".e_score_correction_bias"):
        dtype = torch.float32
    return tensor.to(device=device, dtype=dtype)


def _check_packed_shapes(state: dict[str, Tensor], checkpoint: Checkpoint, prefix: str) -> None:
    for name, shape in state.items():
        if name.endswith(".weight_shape"):
            rows, words = state[name.removesuffix("shape") + "packed"].shape
            if shape.tolist() != [rows, words * 8]:
                raise CheckpointError(
                    f"{checkpoint.directory}: {prefix}{name} says {shape.tolist()}, "
                    f"weight_packed holds {[rows, words * 8]}. Fetch the file again."
                )


def _all_of(directory: Path, problems: list[str], shown: int = 20) -> str:
    more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
    plural = "problem" if len(problems) == 1 else "problems"
    return f"{directory}: {len(problems)} {plural}: {'; '.join(problems[:shown])}{more}."


class ShardWriter:
    """Write tensors in the published layout, a shard at a time: `model-00001-of-000064.safetensors` and the index.

    One shard becomes `model.safetensors` without an index. Nothing appears under its final name unless the block ends
    well.
    """

    def __init__(self, directory: Path, shard_bytes: int = 5 * 2**30):
        self.directory, self.shard_bytes = directory, shard_bytes
        self.pending: dict[str, Tensor] = {}
        self.shards: list[tuple[Path, list[str]]] = []  # temporary file, the names in it
        self.total_bytes = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        if self.pending and sum(t.nbytes for t in self.pending.values()) + tensor.nbytes > self.shard_bytes:
            self._write_pending()
        self.pending[name] = tensor.contiguous()

    def _write_pending(self) -> None:
        path = self.directory / f".shard-{len(self.shards):05d}.partial"
        self.shards.append((path, list(self.pending)))
        save_file(self.pending, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes it private
        self.total_bytes += sum(tensor.nbytes for tensor in self.pending.values())
        self.pending = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write_pending()
                self._publish()
        finally:
            for path, _ in self.shards:
                path.unlink(missing_ok=True)

    def _publish(self) -> None:
        if len(self.shards) == 1:
            self.shards[0][0].replace(self.directory / SINGLE_FILE)
            (self.directory / INDEX_FILE).unlink(missing_ok=True)  # of an earlier, larger checkpoint: it would win
            return
        weight_map = {}
        for i, (path, names) in enumerate(self.shards):
            file = f"model-{i + 1:05d}-of-{len(self.shards):06d}.safetensors"
            path.replace(self.directory / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        with write_whole(self.directory / INDEX_FILE) as temporary:
            temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
