"""Count how many tokens each routed expert gets on held-out examples, in shares of its layer's mean.

An expert that is hardly ever chosen learns nothing; one that is chosen by everything makes the others superfluous, and
a group of devices wait for it. Prompts and their right replies count, as in the training. The mixture is its, too, but
for documents, which are PDF files where they are held out, and for pictures, which are all of full size.
"""

import argparse
import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import OneLineParser, run
from reference.errors import UsageError
from reference.generate import SHIPPED_MODEL

if TYPE_CHECKING:
    from torch import Tensor, nn

    from reference.prompt import Processor

EXAMPLES = """examples:
  python -m tools.expert_load --n 50
  python -m tools.expert_load --n 50 --seed 3 --json
"""

LOWEST, HIGHEST = 0.25, 4.0  # of the mean: between them every expert should be
BATCH_TOKENS = 4096

# E n_routed_experts


class LoadCounter:
    """Observer that counts how many real tokens each expert of each layer gets, in several threads at once."""

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts
        self.thread = threading.local()  # .valid: which positions of the batch are no padding; None: none count
        self.counts: list[tuple[str, Tensor]] = []

    def begin(self, valid: "Tensor | None") -> None:
        self.thread.valid = None if valid is None else valid.flatten()

    def __call__(self, name: str, tensor: "Tensor") -> "Tensor":
        if name.endswith("router.experts") and self.thread.valid is not None:
            load = tensor[self.thread.valid].flatten().bincount(minlength=self.num_experts).float()  # (E)
            self.counts.append((name, load))
        return tensor

    def total(self) -> "dict[str, Tensor]":
        """Loads (E) by stage name."""
        loads: dict[str, Tensor] = {}
        for name, load in self.counts:
            loads[name] = loads[name] + load if name in loads else load
        return loads


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    from reference.model import load_model
    from reference.prompt import Processor

    layers = measure(load_model(args.model), Processor.from_directory(args.model), args.n, args.seed)
    if not layers:
        raise UsageError(f"{args.model}: all its layers are dense; expected routed experts. Name another checkpoint.")
    report = make_report(layers, args, sys.argv[1:] if argv is None else list(argv))
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        print_table(report)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.expert_load", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="DIR",
                        help="checkpoint directory (default: the small model shipped here)")  # fmt: skip
    parser.add_argument("--n", type=int, default=1000, metavar="N", help="held-out examples (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other seed, other examples (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if args.n < 1:
        parser.error(f"--n is {args.n}; expected at least 1")
    from reference.request import check_seed

    check_seed(args.seed)
    return args


def measure(model: "nn.Module", processor: "Processor", n: int, seed: int) -> "dict[int, Tensor]":
    """How many tokens each expert (E) got, by index of the layer, over `n` held-out examples."""
    import torch

    from reference.stages import observing

    from .curriculum import FULL, GOES_ON, draw_example
    from .training_batches import encode_example, micro_batches

    counter = LoadCounter(processor.config.text.n_routed_experts)
    with torch.inference_mode(), observing(counter):
        for start in range(0, n, 64):  # pictures are large: not all of them at once
            samples = [draw_example(seed, i, GOES_ON + FULL, "held-out") for i in range(start, min(start + 64, n))]
            examples = [encode_example(processor, sample) for sample in samples]
            for batch in micro_batches(examples, BATCH_TOKENS, processor.config.pad_token_id or 0):
                counter.begin(batch.valid)
                model(batch.input_ids, pixel_values=batch.pixel_values, grid_thws=batch.grid_thws, last_only=True)
    return {int(name.split(".")[1]): load for name, load in counter.total().items()}


def make_report(layers: "dict[int, Tensor]", args: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    from .fingerprint import fingerprint, shown

    shares = {index: load / load.mean() for index, load in layers.items()}  # (E)
    return {
        "command": " ".join(["python -m tools.expert_load", *arguments]), "model": shown(args.model),
        "model_sha256": fingerprint(args.model), "n": args.n, "seed": args.seed,
        "lowest": round(min(float(share.min()) for share in shares.values()), 4),
        "highest": round(max(float(share.max()) for share in shares.values()), 4),
        "layers": [{"layer": index, "tokens": [int(tokens) for tokens in layers[index]],
                    "share_of_mean": [round(float(part), 4) for part in share]} for index, share in shares.items()],
    }  # fmt: skip


def print_table(report: dict[str, Any]) -> None:
    print(f"tokens per expert as a share of the layer's mean, {report['n']} held-out examples, seed {report['seed']}")
    for layer in report["layers"]:
        print(f"layer {layer['layer']:<3}" + "".join(f"{share:>7.2f}" for share in layer["share_of_mean"]))
    verdict = "within" if report["lowest"] >= LOWEST and report["highest"] <= HIGHEST else "outside"
    print(f"lowest {report['lowest']:.2f}, highest {report['highest']:.2f}: {verdict} {LOWEST:g} to {HIGHEST:g}")


if __name__ == "__main__":
    raise SystemExit(run(main))
