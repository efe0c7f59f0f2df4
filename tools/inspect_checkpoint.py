"""Say what a checkpoint is, count its parameters and bytes by part, and find every tensor that does not fit."""

import argparse
import dataclasses
import functools
import json
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import CHECK_FAILED, DONE, OneLineParser, run
from reference.config import KimiConfig, preset
from reference.errors import UsageError
from reference.presets import PRESETS
from reference.terminal import progress

if TYPE_CHECKING:
    from torch import Tensor

    from reference.checkpoint import Checkpoint

EXAMPLES = """examples:
  python -m tools.inspect_checkpoint reference/nano --verify
  python -m tools.inspect_checkpoint kimi-k2.5
"""

# The first pattern that a name contains says which part of the model the tensor belongs to.
PARTS = (
    ("vision_tower.", "vision tower"),
    ("mm_projector.", "projector"),
    ("multi_modal_projector.", "projector"),
    ("embed_tokens.", "embedding"),
    ("lm_head.", "head"),
    (".self_attn.", "attention"),  # with the two norms of its latents
    (".mlp.experts.", "routed experts"),
    (".mlp.shared_experts.", "shared experts"),
    (".mlp.gate.", "router"),
    (".mlp.", "dense MLP"),
    ("norm.weight", "norms"),
)
OTHER = "other"  # what the model does not use: rotary tables and layers past the last one, or unexpected tensors
VISION_PARTS = ("vision tower", "projector")
SCALES = (".weight_scale", ".weight_shape", ".weight_scale_inv")  # how weights are stored, not weights


@dataclass(frozen=True)
class Entry:
    """One stored tensor: safetensors' dtype, shape, and bytes."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.inspect_checkpoint",
        description=f"{__doc__} Only headers are read, unless --verify. Exit 1 if there are problems.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="DIR|PRESET", help=f"a checkpoint folder, or one of {', '.join(PRESETS)}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--verify", action="store_true", help="read every tensor: NaN, Inf, zero scales, holes")
    args = parser.parse_args(argv)

    if Path(args.checkpoint).is_dir():
        report = inspect_directory(args.checkpoint, args.verify)
    elif args.checkpoint in PRESETS:
        if args.verify:
            raise UsageError(f"--verify: preset {args.checkpoint} has no weights to read. Name a checkpoint folder.")
        report = inspect_preset(args.checkpoint)
    else:
        raise UsageError(f"{args.checkpoint}: neither a folder nor a preset. Presets: {', '.join(PRESETS)}.")
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report)
    return CHECK_FAILED if report["problems"] else DONE


def inspect_preset(name: str) -> dict[str, Any]:
    """Describe a published architecture as it would be stored, without any weights."""
    config = preset(name)
    with progress(f"building {name}, without memory", quiet=False):
        inventory = stored_as_published(config)
    return describe(name, config, inventory)


def inspect_directory(directory: str, verify: bool) -> dict[str, Any]:
    """Describe a checkpoint folder from its headers; with `verify` from its values too."""
    from reference.checkpoint import Checkpoint, find_problems

    checkpoint = Checkpoint(directory)
    inventory = {name: Entry(t.dtype, t.shape, t.size_bytes) for name, t in checkpoint.tensors.items()}
    with progress(f"comparing {len(inventory)} tensors with config.json", quiet=False):
        expected = expected_tensors(checkpoint.config)
        pack(expected, checkpoint.int4_linears())
        problems = find_problems(expected, checkpoint)
    report = describe(directory, checkpoint.config, inventory)
    report["files"] = len({stored.file for stored in checkpoint.tensors.values()})
    report["problems"] = problems
    if verify:
        # What does not fit may not even be readable as what its name says, and what the model ignores does not matter.
        misfits = {problem.partition(":")[0] for problem in problems}
        num_layers = checkpoint.config.text.num_hidden_layers
        names = [name for name in inventory if name not in misfits and part_of(name, num_layers) != OTHER]
        report["problems"] = problems + verify_values(checkpoint, names)
        report["verified_tensors"] = len(names)
    return report


def expected_tensors(config: KimiConfig) -> dict[str, "Tensor"]:
    """Every tensor of the model on the meta device, nothing packed.

    Decoder layers of one kind are alike, so one of each is built and named again: the published model in two seconds.
    """
    from reference.model import build_model

    text = config.text
    pattern = min(text.first_k_dense_replace, text.num_hidden_layers - 1)  # the layer that all later ones repeat
    few_layers = dataclasses.replace(text, num_hidden_layers=pattern + 1)
    built = build_model(dataclasses.replace(config, text=few_layers, quantization=None)).state_dict()
    expected = dict(built)
    for i in range(pattern + 1, text.num_hidden_layers):
        for name, tensor in built.items():
            if f".layers.{pattern}." in f".{name}":
                expected[name.replace(f"layers.{pattern}.", f"layers.{i}.", 1)] = tensor
    return expected


def pack(expected: dict[str, "Tensor"], linears: list[str]) -> None:
    """Replace the weights of the named linears by the three tensors that INT4 stores."""
    for name in linears:
        if f"{name}.weight" in expected:
            weight = expected.pop(f"{name}.weight")
            expected |= {f"{name}.{part}": tensor for part, tensor in packed_parts(*weight.shape).items()}


@functools.cache  # the published model packs 69,120 matrices of two shapes
def packed_parts(out_features: int, in_features: int) -> dict[str, "Tensor"]:
    from reference.int4 import Int4Linear

    return Int4Linear(in_features, out_features, device="meta").state_dict()


def stored_as_published(config: KimiConfig) -> dict[str, Entry]:
    """What a checkpoint of this configuration stores: bfloat16, with INT4 experts or FP8 blocks where it says so."""
    from reference.checkpoint import DTYPES, FP8_BLOCK, may_be_fp8

    tensors = expected_tensors(config)
    if config.quantization == "int4":
        pack(tensors, [name.removesuffix(".weight") for name in tensors if ".mlp.experts." in name])
    dtype_names = {dtype: name for name, dtype in DTYPES.items()}
    inventory = {}
    for name, tensor in tensors.items():
        inventory[name] = Entry(dtype_names[tensor.dtype], tuple(tensor.shape), tensor.nbytes)
        if config.quantization == "fp8" and may_be_fp8(name):
            blocks = tuple(-(-size // FP8_BLOCK) for size in tensor.shape)
            inventory[name] = Entry("F8_E4M3", tuple(tensor.shape), tensor.numel())
            inventory[f"{name}_scale_inv"] = Entry("F32", blocks, 4 * blocks[0] * blocks[1])
    return inventory


def describe(source: str, config: KimiConfig, inventory: dict[str, Entry]) -> dict[str, Any]:
    """The whole report but its problems."""
    text, quantised = config.text, {entry.dtype for entry in inventory.values()}
    stored_as = "int4" if any(n.endswith(".weight_packed") for n in inventory) else None
    elements = sum(math.prod(entry.shape) for entry in inventory.values())
    bytes_by_dtype = Counter[str]()
    for entry in inventory.values():
        bytes_by_dtype[entry.dtype] += entry.size_bytes
    return {
        "source": source,
        "model_type": config.model_type,
        "num_hidden_layers": text.num_hidden_layers,
        "first_k_dense_replace": text.first_k_dense_replace,
        "n_routed_experts": text.n_routed_experts,
        "num_experts_per_tok": text.num_experts_per_tok,
        "n_shared_experts": text.n_shared_experts,
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
        "quantization": "fp8" if "F8_E4M3" in quantised else stored_as,
        "parameters": count_parameters(config, inventory),
        "tensors": len(inventory),
        "stored_elements": elements,
        "bytes": bytes_by_dtype.total(),
        "bytes_by_dtype": dict(sorted(bytes_by_dtype.items())),
        "problems": [],
    }


def count_parameters(config: KimiConfig, inventory: dict[str, Entry]) -> dict[str, Any]:
    """Logical weights by part: a packed word counts as its eight weights, scales as none."""
    by_part = dict.fromkeys([part for _, part in PARTS] + [OTHER], 0)
    for name, entry in inventory.items():
        if not name.endswith(SCALES):
            weights_per_element = 8 if name.endswith(".weight_packed") else 1
            by_part[part_of(name, config.text.num_hidden_layers)] += weights_per_element * math.prod(entry.shape)
    vision = sum(by_part[part] for part in VISION_PARTS)
    text = sum(by_part.values()) - vision - by_part[OTHER]
    routed, k, num_experts = by_part["routed experts"], config.text.num_experts_per_tok, config.text.n_routed_experts
    activated = text - routed + routed * k // num_experts
    return {
        "total": text + vision,
        "text": text,
        "vision": vision,
        "activated_per_token": activated - by_part["embedding"],
        "activated_with_embedding": activated,
        "by_part": {part: count for part, count in by_part.items() if count},
    }


def part_of(name: str, num_hidden_layers: int) -> str:
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    if layer is not None and int(layer[1]) >= num_hidden_layers:
        return OTHER
    return next((part for pattern, part in PARTS if pattern in name), OTHER)


def verify_values(checkpoint: "Checkpoint", names: list[str]) -> list[str]:
    """Read the named tensors and report values that no trained model has."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    problems = []
    columns = ("reading", BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=sum(checkpoint.tensors[name].size_bytes for name in names))
        for name in names:
            problems += [f"{name}: {fault}" for fault in find_faults(name, checkpoint)]
            bar.advance(task, checkpoint.tensors[name].size_bytes)
    return problems


def find_faults(name: str, checkpoint: "Checkpoint") -> list[str]:
    import torch

    tensor, faults = checkpoint.read(name), []
    if tensor.is_floating_point():
        not_finite = tensor.numel() - int(torch.isfinite(tensor).sum())
        if not_finite:
            faults.append(f"{not_finite} of {tensor.numel()} values are NaN or Inf")
    if name.endswith((".weight_scale", ".weight_scale_inv")) and (zeros := int((tensor == 0).sum())):
        faults.append(f"{zeros} of {tensor.numel()} scales are zero")
    if name.endswith(".weight_packed") and not tensor.any():
        faults.append("every word is zero, a hole in the file. Fetch it again")
    if name.endswith(".weight_shape"):
        rows, words = checkpoint.tensors[name.removesuffix("shape") + "packed"].shape
        if tensor.tolist() != [rows, 8 * words]:
            faults.append(f"says {tensor.tolist()}, weight_packed holds {[rows, 8 * words]}")
    return faults


def print_report(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True)
    parameters = report["parameters"]
    console.print(f"{report['source']}: {headline(report)}")
    table = Table("part", "parameters", "share", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for part, count in parameters["by_part"].items():
        share = f"{count / parameters['total']:.2%}" if part != OTHER else "not used"
        table.add_row(part, f"{count:,}", share)
    table.add_row("total", f"{parameters['total']:,}")
    table.add_row("  text", f"{parameters['text']:,}")
    table.add_row("activated per token", f"{parameters['activated_per_token']:,}")
    table.add_row("  with the embedding table", f"{parameters['activated_with_embedding']:,}")
    console.print(table)
    dtypes = ", ".join(f"{dtype} {size:,}" for dtype, size in report["bytes_by_dtype"].items())
    size = f"{report['bytes']:,} bytes ({report['bytes'] / 2**30:.2f} GiB)"
    console.print(f"{report['tensors']:,} tensors, {size}: {dtypes}")
    for problem in report["problems"]:
        console.print(f"problem: {problem}")
    if "files" in report:
        verified = f", {report['verified_tensors']} tensors read" if "verified_tensors" in report else ""
        console.print(f"{len(report['problems'])} problems in {report['files']} files{verified}")


def headline(report: dict[str, Any]) -> str:
    experts = f"{report['n_routed_experts']} experts, {report['num_experts_per_tok']} chosen"
    shared = f"{report['n_shared_experts']} shared"
    dense = f"the first {report['first_k_dense_replace']} dense"
    kind = {"int4": "routed experts INT4", "fp8": "FP8 blocks", None: "not quantised"}[report["quantization"]]
    return f"{report['model_type']}, {report['num_hidden_layers']} layers ({dense}), {experts}, {shared}; {kind}"


if __name__ == "__main__":
    raise SystemExit(run(main))
