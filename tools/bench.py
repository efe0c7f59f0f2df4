"""Measure prefill, decoding, vision and memory of a model on this machine."""

import argparse
import json
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import OneLineParser, run, write_whole
from reference.config import KimiConfig, preset
from reference.errors import UsageError
from reference.generate import SHIPPED_MODEL
from reference.presets import PRESETS
from reference.terminal import note, progress

from .dump_activations import load_backend
from .inspect_checkpoint import Entry, stored_as_published

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

EXAMPLES = """examples:
  python -m tools.bench
  python -m tools.bench --preset tiny --json bench.json
"""

PROMPT_TOKENS, NEW_TOKENS, REPEATS = 256, 32, 5
IMAGE_GRID = (1, 16, 16)  # an image of 224 x 224 pixels
QUIET_LOAD = 0.5  # above this load average, other programs are in the figures


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.bench",
        description=f"{__doc__} Each figure is the median of {REPEATS} rounds after one to warm up.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="DIR", type=Path, default=SHIPPED_MODEL, help="default: the shipped model")
    source.add_argument(
        "--preset", metavar="NAME", choices=PRESETS, help=f"random weights instead: {', '.join(PRESETS)}"
    )
    parser.add_argument("--backend", choices=("reference", "optimized"), default="reference")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report there, too")
    args = parser.parse_args(argv)

    load_average = os.getloadavg()[0]
    start = time.perf_counter()
    with progress("loading", quiet=False):
        model, weight_bytes = load(args)
    load_s = time.perf_counter() - start
    if load_average > QUIET_LOAD:
        note(f"warning: load average {load_average:.1f}, the machine is not quiet: expect slower and wider figures")
    with progress("measuring", quiet=False):
        report = machine(load_average) | {
            "model": args.preset or str(args.model),
            "backend": args.backend,
            "dtype": args.dtype,
            "checkpoint_bytes": weight_bytes,
            "load_s": load_s,
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": NEW_TOKENS,
            "repeats": REPEATS,
            "figures": measure(model),
            "peak_rss_mb": peak_rss_mb(),
        }
    if args.json:
        with write_whole(args.json) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_report(report)
    return 0


def load(args: argparse.Namespace) -> tuple["nn.Module", int]:
    """The model to measure, and how many bytes its weights take in the published layout."""
    import torch

    dtype = getattr(torch, args.dtype)
    if args.preset and args.backend == "optimized":
        raise UsageError("--preset: random weights exist for the reference only. Use --backend reference.")
    if args.preset:
        return random_model(args.preset, dtype)
    model = load_backend(args.backend, args.model, dtype, "cpu")
    return model, sum(path.stat().st_size for path in args.model.glob("*.safetensors"))


def random_model(name: str, dtype: "torch.dtype") -> tuple["nn.Module", int]:
    """A preset with random weights, packed where it is published packed. Raises UsageError if memory is too small."""
    import torch

    from reference.model import build_model

    config = preset(name)
    stored = stored_as_published(config)
    needed = sum(bytes_in_memory(name, entry, dtype) for name, entry in stored.items())
    available = available_bytes()
    if needed > available:
        raise UsageError(
            f"--preset {name}: needs {needed / 2**30:,.1f} GiB of memory for weights alone, "
            f"{available / 2**30:,.1f} GiB are available. Use --preset tiny, or --model for the shipped model."
        )
    model = build_model(config)
    torch.manual_seed(0)
    state = {name: random_like(name, tensor, dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model, sum(entry.size_bytes for entry in stored.values())


def bytes_in_memory(name: str, entry: Entry, dtype: "torch.dtype") -> int:
    """As the loader does it: packed words and scales stay as they are, other weights become the dtype of the run."""
    if name.endswith("_scale_inv"):
        return 0
    stays = entry.dtype in ("I32", "F32") or name.endswith(".weight_scale")
    return entry.size_bytes if stays else math.prod(entry.shape) * dtype.itemsize


def available_bytes() -> int:
    """Memory that programs can still have; where the system does not say, all there is."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def random_like(name: str, meta: "Tensor", dtype: "torch.dtype") -> "Tensor":
    """Values of a plausible size, so that nothing overflows and every expert is chosen by someone."""
    import torch

    if name.endswith(".weight_packed"):
        return torch.randint(-(2**31), 2**31 - 1, meta.shape, dtype=torch.int32)
    if name.endswith((".weight_scale", ".weight_shape")):
        return torch.full(meta.shape, 0.01 if meta.is_floating_point() else 0, dtype=meta.dtype)
    return 0.02 * torch.randn(meta.shape, dtype=torch.float32 if name.endswith("e_score_correction_bias") else dtype)


def measure(model: "nn.Module") -> dict[str, dict[str, float]]:
    """Median, least and most of every figure."""
    import torch

    config: KimiConfig = model.config
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randint(config.text.vocab_size, (1, PROMPT_TOKENS), generator=generator)  # (B, T)
        rounds = repeat(lambda: one_answer(model, prompt))
        figures = {name: summary([figures[name] for figures in rounds]) for name in rounds[0]}
        if config.vision is not None:
            size = config.vision.patch_size
            t, h, w = IMAGE_GRID
            pixels = torch.randn((t * h * w, 3, size, size), generator=generator)
            grids = torch.tensor([IMAGE_GRID])
            rounds = repeat(lambda: {"images_per_s": 1 / seconds(lambda: model.media_features(pixels, grids))})
            figures["images_per_s"] = summary([figures["images_per_s"] for figures in rounds])
    return figures


def repeat(one_round: Callable[[], dict[str, float]]) -> list[dict[str, float]]:
    one_round()  # warms caches and allocators up
    return [one_round() for _ in range(REPEATS)]


def one_answer(model: "nn.Module", prompt: "Tensor") -> dict[str, float]:
    """Read the prompt, then write NEW_TOKENS greedily, as generation does."""
    cache = model.new_cache(1)
    start = time.perf_counter()
    token = model(prompt, cache=cache, last_only=True).argmax(dim=-1)
    token.item()
    first = time.perf_counter()
    for _ in range(NEW_TOKENS):
        token = model(token, cache=cache, last_only=True).argmax(dim=-1)
        token.item()
    end = time.perf_counter()
    return {
        "prefill_tok_s": PROMPT_TOKENS / (first - start),
        "decode_tok_s": NEW_TOKENS / (end - first),
        "time_to_first_token_s": first - start,
    }


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine(load_average: float) -> dict[str, Any]:
    import torch

    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average_before": load_average,
        "quiet": load_average <= QUIET_LOAD,
    }


def peak_rss_mb() -> float:
    """The most memory this process has had, in MiB, torch itself included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def print_report(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True)
    setting = f"{report['backend']}, {report['dtype']}, {report['threads']} threads, torch {report['torch']}"
    console.print(f"{report['model']}: {setting}; {PROMPT_TOKENS} tokens in, {NEW_TOKENS} out")
    table = Table("figure", "median", "min", "max", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in report["figures"].items():
        digits = 0 if values["median"] >= 1000 else 4
        table.add_row(name, *(f"{values[key]:,.{digits}f}" for key in ("median", "min", "max")))
    console.print(table)
    size = f"{report['checkpoint_bytes'] / 2**20:,.1f} MiB of weights"
    console.print(f"{size}, loaded in {report['load_s']:.2f} s, peak memory {report['peak_rss_mb']:,.0f} MiB")
    if not report["quiet"]:
        console.print(f"the machine was not quiet: load average {report['load_average_before']:.1f} at the start")


if __name__ == "__main__":
    raise SystemExit(run(main))
