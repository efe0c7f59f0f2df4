"""Write a copy of a checkpoint with its routed experts as INT4, in groups of 32, in the published layout."""

import argparse
import contextlib
import dataclasses
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import OneLineParser, run
from reference.config import INT4_GROUP_SIZE, KimiConfig, read_config_file
from reference.errors import CheckpointError, UsageError
from reference.presets import preset_dict

if TYPE_CHECKING:
    from torch import Tensor

    from reference.checkpoint import Checkpoint

EXAMPLES = """examples:
  python -m tools.quantize --model checkpoints/kimi-bf16 --out checkpoints/kimi-int4
  python -m tools.quantize --model checkpoints/k2-instruct-fp8 --out checkpoints/k2-instruct-int4
"""

ROUTED = re.compile(r"\.mlp\.experts\.\d+\.(gate|up|down)_proj\.weight$")


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.quantize",
        description=f"{__doc__} Everything else stays as it is; FP8 blocks become bfloat16 first. Needs memory for one "
        "shard (5 GiB) and disk for the result.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="DIR", type=Path, required=True, help="the checkpoint to read")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder to make; must not exist yet")
    args = parser.parse_args(argv)

    refuse_existing(args.out)
    checkpoint, config = open_dense(args.model)
    names = kept_names(checkpoint)
    refuse_full_disk(args.out, sum(size_after(name, checkpoint) for name in names))
    with folder_made_whole(args.out) as folder:
        copy_other_files(args.model, folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        before, after = write_weights(checkpoint, names, folder)
    routed = sum(ROUTED.search(name) is not None for name in names)
    print(f"{args.out}: {routed} expert matrices packed, {after:,} bytes instead of {before:,} ({after / before:.1%})")
    return 0


def refuse_existing(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: exists and is not an empty folder. Name a new one, or remove it first.")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: the folder around it does not exist. Make it first: mkdir -p {out.parent}")


def open_dense(directory: Path) -> tuple["Checkpoint", dict[str, Any]]:
    """The checkpoint to quantise and its `config.json` after that. Refuses one that is packed or does not fit."""
    from reference.checkpoint import Checkpoint, find_problems

    from .inspect_checkpoint import expected_tensors

    checkpoint = Checkpoint(directory)
    if packed := len(checkpoint.int4_linears()):
        raise UsageError(f"{directory}: has {packed} INT4 matrices already. Take a bfloat16 or FP8 release instead.")
    dense = dataclasses.replace(checkpoint.config, quantization=None)
    if problems := find_problems(expected_tensors(dense), checkpoint):
        raise CheckpointError(
            f"{directory}: {len(problems)} tensors do not fit config.json, first {problems[0]}. See them all: "
            f"python -m tools.inspect_checkpoint {directory}"
        )
    config = quantized_config(read_config_file(directory / "config.json"))
    KimiConfig.from_dict(config)  # refuses sizes that groups of 32 do not divide
    return checkpoint, config


def quantized_config(config: dict[str, Any]) -> dict[str, Any]:
    """`config.json` with the published `quantization_config` where the published files have it, and no other."""
    quantization = preset_dict("kimi-k2.5")["text_config"]["quantization_config"]
    if "text_config" not in config:
        return config | {"quantization_config": quantization}
    # Readers that quantise every Linear of the whole model would look for packed vision weights otherwise.
    projector = "multi_modal_projector" if config["model_type"] == "kimi_vl" else "mm_projector"
    quantization["ignore"] += ["re:.*vision_tower.*", f"re:.*{projector}.*"]
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    return kept | {"text_config": config["text_config"] | {"quantization_config": quantization}}


def kept_names(checkpoint: "Checkpoint") -> list[str]:
    """What is read and written on: all but the FP8 scales, which end with the FP8 weights they belong to."""
    fp8_scales = {f"{name}_scale_inv" for name, stored in checkpoint.tensors.items() if stored.dtype == "F8_E4M3"}
    return [name for name in checkpoint.tensors if name not in fp8_scales]


def size_after(name: str, checkpoint: "Checkpoint") -> int:
    stored = checkpoint.tensors[name]
    if ROUTED.search(name):
        return int(stored.shape[0] * stored.shape[1] * (0.5 + 2 / INT4_GROUP_SIZE)) + 8
    return stored.size_bytes * (2 if stored.dtype == "F8_E4M3" else 1)


def refuse_full_disk(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.absolute().parent).free
    if needed > free:
        needs = f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free there"
        raise UsageError(f"{out}: {needs}. Make room, or name another disk.")


@contextlib.contextmanager
def folder_made_whole(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, which gets its name if the block ends well and vanishes otherwise."""
    folder = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copy_other_files(source: Path, folder: Path) -> None:
    """Tokenizer, processor settings and whatever else lies beside the weights."""
    for path in sorted(source.iterdir()):
        is_weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
        if path.is_file() and not is_weights and path.name != "config.json":
            shutil.copyfile(path, folder / path.name)


def write_weights(checkpoint: "Checkpoint", names: list[str], folder: Path) -> tuple[int, int]:
    """Stream the tensors through, the routed experts packed. Returns bytes before and after."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from reference.checkpoint import ShardWriter

    before, after = sum(stored.size_bytes for stored in checkpoint.tensors.values()), 0
    columns = ("packing", BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
    with bar, ShardWriter(folder) as writer:
        task = bar.add_task("", total=sum(checkpoint.tensors[name].size_bytes for name in names))
        for name in names:
            tensor = checkpoint.read(name)
            for part, values in (pack_expert(name, tensor) if ROUTED.search(name) else {name: tensor}).items():
                writer.add(part, values)
                after += values.nbytes
            bar.advance(task, checkpoint.tensors[name].size_bytes)
    return before, after


def pack_expert(name: str, weight: "Tensor") -> dict[str, "Tensor"]:
    """The three published tensors of one expert's matrix. Scales keep its dtype, as in compressed-tensors."""
    import torch

    from reference.int4 import quantize

    words, scale = quantize(weight)
    if not scale.isfinite().all():
        raise CheckpointError(f"{name}: holds NaN or Inf, which no scale can cover. Fetch the checkpoint again.")
    shape = torch.tensor(weight.shape, dtype=torch.int32)
    return {f"{name}_packed": words, f"{name}_scale": scale, f"{name}_shape": shape}


if __name__ == "__main__":
    raise SystemExit(run(main))
