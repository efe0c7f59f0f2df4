"""Measure prefill, decoding, vision and memory, of several engines side by side on the same weights.

Every round asks each engine in turn, so that a machine that slows down slows all of them; each figure is the median of
the rounds, after one to warm up. Figures of different runs do not compare.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import OneLineParser, check_writable, run, write_whole
from reference.config import KimiConfig, read_config_file
from reference.errors import UsageError
from reference.generate import SHIPPED_MODEL
from reference.presets import PRESETS
from reference.terminal import note, peak_rss_mb, progress

from .bench_models import Weights, available_bytes, named_config, published_weights, random_weights

if TYPE_CHECKING:
    from torch import Tensor

    from .bench_engines import Engine

EXAMPLES = """examples:
  python -m tools.bench --backend all
  python -m tools.bench --preset tiny --contexts 64,256 --json bench.json
"""

NEW_TOKENS, REPEATS, REPEATS_OF_LONG = 32, 5, 3
LONG = 2048  # tokens of a prompt from which on fewer repeats have to do
EXPERT_TOKENS = (1, 2, 4, 8, 16, 64, 256)  # sizes for which a layer's routed experts are measured alone
MANY_TOKENS = 64  # from so many on, less often
IMAGE_GRID = (1, 16, 16)  # an image of 224 x 224 pixels
QUIET_LOAD, QUIET_WAIT_S = 0.5, 15  # above this load average, other programs are in the figures
MEMORY_TEST_BYTES = 2**30  # more than any cache holds


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    load_average = wait_until_quiet()
    with progress("building the weights", quiet=False):
        weights = random_weights(args.preset) if args.preset else published_weights(args.model)
    report = machine(load_average) | {
        "model": args.preset or os.path.relpath(args.model),
        "dtype": args.dtype,
        "checkpoint_bytes": weights.nbytes,
        "new_tokens": NEW_TOKENS,
        "repeats": REPEATS,
    }
    with progress("measuring", quiet=False):
        engines = build_engines(weights, args)
        bandwidths: list[float] = []
        report["contexts"] = {context: measure(engines, weights, context, bandwidths) for context in args.contexts}
        report["experts"] = {tokens: measure_experts(engines, weights, tokens) for tokens in EXPERT_TOKENS}
        report["engines"] = {
            engine.name: {
                "load_s": engine.load_s, "compile_s": engine.compile_s, "images_per_s": images_per_s,
                "weights_mb": engine.weights_bytes / 1e6,
            }
            for engine, images_per_s in zip(engines, measure_images(engines, weights.config), strict=True)
        }  # fmt: skip
        report["bandwidth_gb_s"] = statistics.median(bandwidths)
        report["bandwidth_spread_gb_s"] = summary(bandwidths)
        report["load_average_after"] = os.getloadavg()[0]
    report["peak_rss_mb"] = peak_rss_mb()
    if args.json:
        with write_whole(args.json) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_report(report)
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.bench", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="DIR", type=Path, default=SHIPPED_MODEL, help="default: the shipped model")
    source.add_argument(
        "--preset", metavar="NAME",
        help=f"random weights instead: {', '.join(PRESETS)}, mid, or k2.5-layers-N[-experts-E] for N layers of K2.5's "
             "full width",
    )  # fmt: skip
    parser.add_argument("--backend", choices=("reference", "optimized", "all"), default="reference")
    parser.add_argument("--peer", choices=("transformers",), help="measure it, too (dev extra)")
    parser.add_argument(
        "--compile", nargs="?", const="too", choices=("too", "only"),
        help="measure the compiled forms, too, which takes minutes; 'only': leave the uncompiled ones out, which take "
             "minutes themselves at K2.5's full width",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--contexts", metavar="N,...", default="256", help="prompt lengths to measure (default: 256)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report there, too")
    args = parser.parse_args(argv)
    try:
        args.contexts = [int(text) for text in args.contexts.split(",")]
    except ValueError:
        raise UsageError(f"--contexts {args.contexts}: expected whole numbers with commas, like 256,2048.") from None
    if min(args.contexts) < 1:
        raise UsageError(f"--contexts {min(args.contexts)}: expected at least 1 token.")
    if args.compile and args.backend == "reference" and not args.peer:
        raise UsageError("--compile: the reference has no compiled form. Add --backend optimized, or all.")
    # Said before the machine is waited for, and before minutes of measuring.
    if args.preset:
        named_config(args.preset)
    else:
        read_config_file(args.model / "config.json")
    if args.json:
        check_writable(args.json)
    return args


def build_engines(weights: Weights, args: argparse.Namespace) -> list["Engine"]:
    """What was asked for and fits into memory. Raises UsageError if the peer is not installed or nothing fits."""
    import torch

    from .bench_engines import engine_builders

    engines, dtype = [], getattr(torch, args.dtype)
    for name, needed_bytes, build in engine_builders(weights, dtype, args.backend, args.peer, args.compile):
        if needed_bytes > available_bytes():
            note(f"{name} is left out: it needs {needed_bytes / 2**30:,.1f} GiB of memory for its weights")
            continue
        start = time.perf_counter()
        engine = build()
        engine.name, engine.load_s = name, time.perf_counter() - start
        engines.append(engine)
    if not engines:
        raise UsageError("no engine fits into memory. Choose a smaller preset, or --backend optimized alone.")
    return engines


def measure(
    engines: list["Engine"], weights: Weights, context: int, bandwidths: list[float]
) -> dict[str, dict[str, Any]]:
    """Figures of every engine for prompts of `context` tokens; adds what memory gave in each round to `bandwidths`."""
    import torch

    text = weights.config.text
    prompt = torch.randint(text.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))  # (1, T)
    placeholder = weights.config.media_placeholder_token_id
    prompt[prompt == placeholder] = 0
    rounds: dict[str, list[dict[str, float]]] = {engine.name: [] for engine in engines}
    first_s: dict[str, float] = {}  # of the round that warms up, compilation included
    with torch.inference_mode():
        for i in range((REPEATS if context < LONG else REPEATS_OF_LONG) + 1):
            bandwidths.append(memory_bandwidth())
            for engine in engines:
                figures = one_answer(engine, prompt)
                if i == 0:
                    first_s[engine.name] = figures["answer_s"]
                else:
                    rounds[engine.name].append(figures)
    report = {}
    for engine in engines:
        found = rounds[engine.name]
        figures = report[engine.name] = {key: summary([one[key] for one in found]) for key in found[0]}
        if engine.is_compiled:
            engine.compile_s += max(0.0, first_s[engine.name] - figures["answer_s"]["median"])
        moved = weights.bytes_per_token(engine.expert_bits, engine.dtype.itemsize)
        figures["gb_per_s"] = moved * figures["decode_tok_s"]["median"] / 1e9
    return report


def one_answer(engine: "Engine", prompt: "Tensor") -> dict[str, float]:
    """Read the prompt, then write NEW_TOKENS greedily, as generation does."""
    start = time.perf_counter()
    session = engine.begin(prompt.shape[1] + NEW_TOKENS + 1)
    token = session(prompt)
    first = time.perf_counter()
    for _ in range(NEW_TOKENS):
        token = session(token)
    end = time.perf_counter()
    return {
        "prefill_tok_s": prompt.shape[1] / (first - start),
        "decode_tok_s": NEW_TOKENS / (end - first),
        "time_to_first_token_s": first - start,
        "answer_s": end - start,
    }


def measure_experts(engines: list["Engine"], weights: Weights, num_tokens: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of one layer's routed experts by themselves, for tokens that choose evenly; layers take turns."""
    import torch

    text = weights.config.text
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn((num_tokens, text.hidden_size), generator=generator)  # (n, C)
    counts = torch.rand((num_tokens, text.num_experts_per_tok), generator=generator)  # (n, K)
    candidates = [engine for engine in engines if engine.mixtures]
    rounds: dict[str, list[float]] = {engine.name: [] for engine in candidates}
    with torch.inference_mode():
        for i in range((4 * REPEATS if num_tokens < MANY_TOKENS else REPEATS) + 2):
            order = torch.rand((num_tokens, text.n_routed_experts), generator=generator).argsort(dim=-1)  # (n, E)
            expert_ids = order[:, : text.num_experts_per_tok]  # (n, K)
            for engine in candidates:
                mixture = engine.mixtures[i % len(engine.mixtures)]
                arguments = hidden.to(engine.dtype), counts, expert_ids
                elapsed = seconds(lambda mixture=mixture, arguments=arguments: mixture(*arguments))
                rounds[engine.name] += [1e3 * elapsed] if i >= 2 else []  # the first ones compile
    width = 3 * text.hidden_size * text.moe_intermediate_size  # weights of one expert
    distinct = len(expert_ids.unique())
    return {
        engine.name: {
            "ms": (ms := summary(rounds[engine.name])),
            "gb_per_s": distinct * width * engine.expert_bits / 8 / ms["median"] / 1e6,
        }
        for engine in candidates
    }


def measure_images(engines: list["Engine"], config: KimiConfig) -> list[dict[str, float] | None]:
    """Images per second through tower and projector; None for engines without them."""
    import torch

    if config.vision is None:
        return [None] * len(engines)
    size, (t, h, w) = config.vision.patch_size, IMAGE_GRID
    pixels = torch.randn((t * h * w, 3, size, size), generator=torch.Generator().manual_seed(0))
    grids, rounds = torch.tensor([IMAGE_GRID]), [[] for _ in engines]
    with torch.inference_mode():
        for i in range(REPEATS + 1):
            for engine, found in zip(engines, rounds, strict=True):
                if engine.see is not None:
                    elapsed = seconds(lambda engine=engine: engine.see(pixels, grids))
                    found += [1 / elapsed] if i else []
    return [summary(found) if found else None for found in rounds]


def memory_bandwidth() -> float:
    """GB/s at which PyTorch reads memory: the sum of a tensor that no cache holds, best of five."""
    tensor = memory_tensor(MEMORY_TEST_BYTES)
    return tensor.nbytes / min(seconds(tensor.sum) for _ in range(5)) / 1e9


@functools.cache
def memory_tensor(nbytes: int) -> "Tensor":
    import torch

    return torch.ones(nbytes // 4)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def wait_until_quiet() -> float:
    """The load average once it is low, or after a while of waiting, with a warning."""
    deadline = time.monotonic() + QUIET_WAIT_S
    while (load := os.getloadavg()[0]) > QUIET_LOAD and time.monotonic() < deadline:
        time.sleep(1)
    if load > QUIET_LOAD:
        note(f"warning: load average {load:.1f}, the machine is not quiet: expect slower and wider figures")
    return load


def machine(load_average: float) -> dict[str, Any]:
    import torch

    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "load_average_before": load_average,
        "quiet": load_average <= QUIET_LOAD,
    }


def cpu_name() -> str:
    """What the machine says its processor is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def print_report(report: dict[str, Any]) -> None:
    print(f"{report['model']}, {report['dtype']}, {report['threads']} threads, torch {report['torch']}, memory read at "
          f"{report['bandwidth_gb_s']:.1f} GB/s")  # fmt: skip
    for context, engines in report["contexts"].items():
        first = next(iter(engines))
        print(f"\n{context} tokens in, {report['new_tokens']} out; times is against {first}")
        print(f"{'engine':<28}{'prefill tok/s':>14}{'times':>7}{'decode tok/s':>14}{'times':>7}{'GB/s':>7}{'bound':>7}")
        for name, figures in engines.items():
            prefill, decode = (figures[key]["median"] for key in ("prefill_tok_s", "decode_tok_s"))
            ratios = (value / engines[first][key]["median"]
                      for key, value in (("prefill_tok_s", prefill), ("decode_tok_s", decode)))  # fmt: skip
            faster, decodes_faster = ratios
            share = figures["gb_per_s"] / report["bandwidth_gb_s"]
            print(f"{name:<28}{prefill:>14,.1f}{faster:>7.2f}{decode:>14,.1f}{decodes_faster:>7.2f}"
                  f"{figures['gb_per_s']:>7.2f}{share:>7.0%}")  # fmt: skip
    names = next(iter(report["experts"].values()))
    print("\nrouted experts of one layer alone, milliseconds by number of tokens" if names else "")
    for name in names:
        times = (f"{tokens}: {engines[name]['ms']['median']:.2f}" for tokens, engines in report["experts"].items())
        print(f"{name:<28}{'   '.join(times)}")
    print()
    for name, figures in report["engines"].items():
        images = figures["images_per_s"]
        seen = f", {images['median']:.1f} images/s of 224 x 224" if images else ""
        built = f", compiled in {figures['compile_s']:.0f} s" if figures["compile_s"] else ""
        print(f"{name}: {figures['weights_mb']:,.0f} MB of weights, built in {figures['load_s']:.2f} s{built}{seen}")
    print(f"{report['checkpoint_bytes'] / 2**20:,.1f} MiB in the published layout, peak memory of this process "
          f"{report['peak_rss_mb']:,.0f} MB")  # fmt: skip
    if not report["quiet"]:
        print(f"the machine was not quiet: load average {report['load_average_before']:.1f} at the start")


if __name__ == "__main__":
    raise SystemExit(run(main))
