"""Compare two activation dumps stage by stage and name the first stage, in execution order, where they part."""

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import CHECK_FAILED, DONE, OneLineParser, run
from reference.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = """examples:
  python -m tools.compare_dumps float32.safetensors mine.safetensors
  python -m tools.compare_dumps float32.safetensors bfloat16.safetensors --tolerance 2e-2 --json
"""

# Stages in the order in which the model computes them: the vision tower, then layer by layer, then the logits.
VISION = ("patches", "blocks", "final_layernorm", "pooled", "features")
LAYER = (
    "attn.q",
    "attn.kv_latent",
    "attn.k_pe",
    "attn.heads",
    "attn.out",
    "router.scores",
    "router.experts",
    "router.weights",
    "moe.routed",
    "moe.shared",
    "mlp.out",
)


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.compare_dumps",
        description=f"{__doc__} A is taken as true. Exit 1 if any stage is beyond the tolerance.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A.safetensors", type=Path)
    parser.add_argument("b", metavar="B.safetensors", type=Path)
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-5,
        help="largest relative L2 distance |B - A| / |A|, and for chosen experts the largest share of tokens whose set "
        "differs (default: 1e-5)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    if not args.tolerance >= 0:
        parser.error(f"--tolerance is {args.tolerance}; expected a number of at least 0")

    report = compare_files(args.a, args.b, args.tolerance)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report)
    return DONE if report["first_beyond"] is None else CHECK_FAILED


def execution_order(name: str) -> tuple[int, int, int, str]:
    """Sort key of a stage; names that the model does not have come last, by alphabet."""
    if name == "logits":
        return (2, 0, 0, name)
    if match := re.fullmatch(r"hidden\.(\d+)", name):  # hidden.3 is what layer 3 starts from
        return (1, int(match[1]), -1, name)
    if (match := re.fullmatch(r"layers\.(\d+)\.(\w+\.\w+)", name)) and match[2] in LAYER:
        return (1, int(match[1]), LAYER.index(match[2]), name)
    if (match := re.fullmatch(r"vision\.(\w+?)(?:\.(\d+))?", name)) and match[1] in VISION:
        return (0, VISION.index(match[1]), int(match[2] or 0), name)
    return (3, 0, 0, name)


def compare_files(path_a: Path, path_b: Path, tolerance: float) -> dict[str, Any]:
    """The whole report. Raises UsageError if a file cannot be read or nothing has the same name."""
    file_a, file_b = open_dump(path_a), open_dump(path_b)
    names_a, names_b = set(file_a.keys()), set(file_b.keys())
    common = sorted(names_a & names_b, key=execution_order)
    if not common:
        raise UsageError(f"{path_a} and {path_b} have no tensor in common. Are both made by tools.dump_activations?")
    rows = []
    for name in common:
        pair = [canonical(name, file) for file in (file_a, file_b)]
        rows.append({"name": name, **compare(*pair, tolerance)})
    return {
        "tolerance": tolerance,
        "first_beyond": next((row["name"] for row in rows if row["beyond"]), None),
        "num_beyond": sum(row["beyond"] for row in rows),
        "only_in_a": sorted(names_a - names_b, key=execution_order),
        "only_in_b": sorted(names_b - names_a, key=execution_order),
        "tensors": rows,
    }


def open_dump(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read ({error}). Expected a safetensors file.") from None


def canonical(name: str, file: Any) -> "Tensor":
    """A tensor of a dump. A token's chosen experts have no order, so its router weights are sorted by expert id."""
    tensor, ids_name = file.get_tensor(name), re.sub(r"\.weights$", ".experts", name)
    if name.endswith(".router.weights") and ids_name in file.keys():  # noqa: SIM118, not a dict
        expert_ids = file.get_tensor(ids_name)
        if expert_ids.shape == tensor.shape:
            return tensor.gather(-1, expert_ids.argsort(dim=-1))
    return tensor


def compare(a: "Tensor", b: "Tensor", tolerance: float) -> dict[str, Any]:
    """Distances of two tensors; null where there is none, because the shapes differ or values are NaN or Inf."""
    row: dict[str, Any] = {"shape": list(a.shape), "max_abs": None, "relative_l2": None, "cosine": None}
    if a.shape != b.shape:
        return row | {"beyond": True, "note": f"shape {list(b.shape)} in B"}
    if not a.is_floating_point() and not b.is_floating_point():
        flipped = flipped_tokens(a, b)
        return row | {"flipped_tokens": flipped, "beyond": flipped > tolerance, "note": f"{flipped:.2%} flipped"}
    a, b = a.double().flatten(), b.double().flatten()
    if not (a.isfinite().all() and b.isfinite().all()):
        return row | {"beyond": True, "note": "NaN or Inf"}
    size_a, size_b, distance = a.norm().item(), b.norm().item(), (a - b).norm().item()
    relative = distance / size_a if size_a else distance
    row["max_abs"] = (a - b).abs().max().item() if a.numel() else 0.0
    row["relative_l2"] = relative
    row["cosine"] = (a @ b).item() / (size_a * size_b) if size_a and size_b else float(size_a == size_b)
    return row | {"beyond": not relative <= tolerance, "note": ""}


def flipped_tokens(a: "Tensor", b: "Tensor") -> float:
    """Share of rows whose sets of integers differ. Expert ids of a token come in no particular order."""
    differs = (a.sort(dim=-1).values != b.sort(dim=-1).values).any(dim=-1)
    return differs.double().mean().item() if differs.numel() else 0.0


def print_report(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    table = Table("stage", "shape", "max abs", "relative L2", "cosine", "", box=None, pad_edge=False)
    for row in report["tensors"]:
        mark = "beyond" if row["beyond"] else "ok"
        figures = [figure(row["max_abs"], ".2e"), figure(row["relative_l2"], ".2e"), figure(row["cosine"], ".9f")]
        table.add_row(row["name"], "x".join(map(str, row["shape"])), *figures, f"{mark} {row['note']}".rstrip())
    console.print(table)
    for which in ("a", "b"):
        if alone := report[f"only_in_{which}"]:
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            console.print(f"only in {which.upper()}: {', '.join(alone[:3])}{more}")
    if report["first_beyond"] is None:
        console.print(f"all {len(report['tensors'])} stages within {report['tolerance']:g}")
    else:
        count = f"{report['num_beyond']} of {len(report['tensors'])} stages beyond {report['tolerance']:g}"
        console.print(f"{count}, first {report['first_beyond']}")


def figure(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


if __name__ == "__main__":
    raise SystemExit(run(main))
