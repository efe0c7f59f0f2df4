"""Hold the optimized model to the reference, stage by stage, worst first."""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import CHECK_FAILED, DONE, OneLineParser, run
from reference.errors import UsageError
from reference.generate import SHIPPED_MODEL
from reference.terminal import progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from reference.config import KimiConfig

    from .greedy_agreement import GreedyAgreement

EXAMPLES = """examples:
  python -m tools.parity
  python -m tools.parity --model reference/nano --dtype bfloat16 --prompts 12 --json
"""
FLOAT32_TOLERANCE = 1e-5  # relative L2 to the reference in float32
BFLOAT16_RATIO = 1.1  # error against float64, over the reference's own
GRIDS = [(1, 4, 6), (3, 2, 4), (1, 2, 2)]  # two images of odd sizes and a clip of three frames

Call = Callable[["nn.Module"], None]


@dataclass
class Row:
    """One stage over all cases. In float32 `allowed` is the tolerance, in bfloat16 the reference's error times 1.1."""

    stage: str
    error: float
    allowed: float

    @property
    def share(self) -> float:
        """Of what is allowed; above 1 is a failure. Infinite where nothing is allowed, or where a number is NaN."""
        if self.error == 0:
            return 0.0
        return self.error / self.allowed if self.allowed > 0 and math.isfinite(self.error) else math.inf


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.parity", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{__doc__} Both run under the reference's choice of experts; where the optimized model would "
                    "choose others is counted apart. Exit code 1 beyond the tolerances.",
    )  # fmt: skip
    parser.add_argument("--model", metavar="DIR", type=Path, default=SHIPPED_MODEL, help="default: the shipped model")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32",
        help="float32: at most 1e-5 from the reference; bfloat16: at most 1.1 times as far from float64 as it is",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--attention", choices=("auto", "flex", "products"), default="auto")
    parser.add_argument(
        "--prompts", metavar="N", type=int, default=0,
        help="then let both answer N held-out prompts greedily: text, pictures and videos in turn. In float32 every "
             "token has to be the same; in bfloat16 it says how many are, and how near the call was (default: 0)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if args.prompts < 0:
        parser.error(f"--prompts is {args.prompts}; expected 0 or more")
    with progress("comparing", quiet=args.json):
        rows, flips = compare(args)
    rows.sort(key=lambda row: -row.share)
    greedy = None
    if args.prompts:
        from .greedy_agreement import measure

        greedy = measure(args.model, args.prompts, args.dtype, args.device, args.attention, quiet=args.json)
    if args.json:
        print(json.dumps(as_document(rows, flips, greedy, args), indent=1))
    else:
        print_table(rows, flips, args)
        if greedy:
            greedy.print()
    failed = any(row.share > 1 for row in rows) or (greedy is not None and greedy.failed)
    return CHECK_FAILED if failed else DONE


def compare(args: argparse.Namespace) -> tuple[list[Row], tuple[int, int]]:
    """One row per stage, and (tokens whose experts the optimized model would choose differently, tokens routed)."""
    import torch

    from optimized.model import load_model, set_attention
    from reference.int4 import set_int4_product
    from reference.model import load_model as load_reference

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA GPU here. Use --device cpu.")
    dtype = getattr(torch, args.dtype)
    truth_dtype = torch.float32 if args.dtype == "float32" else torch.float64
    truth = load_reference(args.model, truth_dtype, args.device)
    fast = load_model(args.model, dtype, args.device)
    set_attention(fast, args.attention)
    plain = load_reference(args.model, dtype, args.device) if truth_dtype == torch.float64 else None
    models = [model for model in (truth, fast, plain) if model is not None]
    for model in models:
        set_int4_product(model, "exact")
    errors, own, sizes = Errors(), Errors(), Errors()
    flipped = routed = 0
    for call in cases(truth.config, args.device):
        expected = stages_of(truth, call)
        experts = {name: tensor for name, tensor in expected.items() if "router.experts" in name}
        found = stages_of(fast, call, experts)
        chosen = stages_of(fast, call)
        for name, tensor in experts.items():
            differs = tensor.sort(-1).values != chosen[name].sort(-1).values  # (n, K)
            flipped, routed = flipped + int(differs.any(-1).sum()), routed + len(tensor)
        for name in expected.keys() - experts.keys():
            errors.add(name, found[name], expected[name])
            sizes.add(name, expected[name], None)
        if plain is not None:
            for name, tensor in stages_of(plain, call, experts).items():
                if name not in experts:
                    own.add(name, tensor, expected[name])
    rows = []
    for stage, size in sizes.total().items():
        size = size or 1.0  # of a stage that is all zeros, the distance itself
        allowed = FLOAT32_TOLERANCE if plain is None else BFLOAT16_RATIO * own.total()[stage] / size
        rows.append(Row(stage, errors.total()[stage] / size, allowed))
    return rows, (flipped, routed)


class Errors:
    """Squared distances by stage, summed over all cases: one stage of one short case alone is too noisy a witness."""

    def __init__(self) -> None:
        self.squares: dict[str, float] = defaultdict(float)

    def add(self, name: str, tensor: "Tensor", expected: "Tensor | None") -> None:
        distance = tensor.double() if expected is None else tensor.double() - expected.double()
        self.squares[name.partition(" ")[0]] += float(distance.square().sum())

    def total(self) -> dict[str, float]:
        return {name: square**0.5 for name, square in self.squares.items()}


def cases(config: "KimiConfig", device: str) -> list[Call]:
    """What hurts: one token, a ragged length, a long prompt, decoding, a continued prefix, media of odd sizes."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def ids(*shape: int) -> "Tensor":
        """Any tokens but placeholders."""
        drawn = torch.randint(config.text.vocab_size - 1, shape, generator=generator)
        return (drawn + (drawn >= (config.media_placeholder_token_id or config.text.vocab_size))).to(device)

    def steps(*parts: "Tensor") -> Call:
        def call(model: "nn.Module") -> None:
            cache = model.new_cache(len(parts[0]))
            for part in parts:
                model(part, cache=cache)

        return call

    def prompt(input_ids: "Tensor", **media: "Tensor") -> Call:
        return lambda model: model(input_ids, **media)

    found = [prompt(ids(1, 1)), prompt(ids(3, 37)), prompt(ids(1, 1100)), steps(ids(2, 19), ids(2, 11))]
    found.append(steps(ids(4, 9), *(ids(4, 1) for _ in range(8))))
    if config.vision is not None:
        size, (down, across) = config.vision.patch_size, config.vision.merge_kernel_size
        pixels = torch.randn(sum(t * h * w for t, h, w in GRIDS), 3, size, size, generator=generator).to(device)
        num_places = sum(h // down * (w // across) for _, h, w in GRIDS)
        places = torch.full((1, num_places), config.media_placeholder_token_id, device=device)
        with_media = torch.cat([ids(1, 5), places, ids(1, 7)], dim=1)
        found.append(prompt(with_media, pixel_values=pixels, grid_thws=torch.tensor(GRIDS, device=device)))
    return found


def stages_of(model: "nn.Module", call: Call, experts: dict[str, "Tensor"] | None = None) -> dict[str, "Tensor"]:
    """Every stage of one case; of several forwards the later ones are named "... again"."""
    import torch

    from reference.stages import observing

    seen: dict[str, Tensor] = {}

    def observe(name: str, tensor: "Tensor") -> "Tensor":
        while name in seen:
            name += " again"
        tensor = (experts or {}).get(name, tensor)
        seen[name] = tensor.clone()
        return tensor

    with torch.inference_mode(), observing(observe):
        call(model)
    return seen


def as_document(
    rows: list[Row], flips: tuple[int, int], greedy: "GreedyAgreement | None", args: argparse.Namespace
) -> dict[str, Any]:
    import torch

    document = {
        "model": str(args.model), "dtype": args.dtype, "device": args.device, "attention": args.attention,
        "torch": torch.__version__, "expert_flips": flips[0], "tokens_routed": flips[1],
        "stages": [{"stage": row.stage, "error": finite(row.error), "allowed": finite(row.allowed)} for row in rows],
    }  # fmt: skip
    return document | ({"greedy": greedy.as_document()} if greedy else {})


def finite(value: float) -> float | None:
    """JSON has no name for what is no number."""
    return value if math.isfinite(value) else None


def print_table(rows: list[Row], flips: tuple[int, int], args: argparse.Namespace) -> None:
    print(f"{args.model}, {args.dtype} on {args.device}, attention {args.attention}: relative L2, worst first")
    print(f"{'stage':<32} {'error':>9}  {'allowed':>9}")
    for row in rows:
        mark = "  TOO FAR" if row.share > 1 else ""
        print(f"{row.stage:<32} {row.error:>9.2e}  {row.allowed:>9.2e}{mark}")
    print(f"experts chosen differently: {flips[0]} of {flips[1]} routed tokens")


if __name__ == "__main__":
    raise SystemExit(run(main))
