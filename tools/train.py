"""Train the shipped model from nothing but this repository.

It runs the modules of `reference/` themselves, with their routed experts seen through INT4 (quantization_aware.py),
Muon for the matrices and AdamW for the rest, and balances the experts by their bias alone. Examples are drawn from
`tools/worlds`, never stored. The state is saved every few minutes; `--resume` goes on from it. At the end there is a
checkpoint with INT4 experts in the folder, and in `unquantised` below it the float32 weights that were trained: what
the quantisation costs is the difference between the two (`tools.evaluate --against`).
"""

import argparse
from pathlib import Path

from reference.command import OneLineParser, run
from reference.config import read_config_file
from reference.errors import ConfigError, UsageError
from reference.presets import preset_dict
from reference.request import check_seed

EXAMPLES = """examples:
  python -m tools.train --out build/nano --minutes 110
  python -m tools.train --out build/more --minutes 60 --seed 9 --init reference/nano --world svg --world pictures
"""

DEFAULT_MINUTES = 110


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.train", description="Train the shipped model from nothing but this repository.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("build/nano"), help="folder for the checkpoint and the state")
    parser.add_argument("--minutes", type=float, help=f"training time in all (default {DEFAULT_MINUTES})")
    parser.add_argument("--seed", type=int, help="other seed, other weights and examples (default 1)")
    parser.add_argument("--init", type=Path, help="go on from this checkpoint's weights, with a fresh optimiser and "
                             "a mixture of its own")
    parser.add_argument("--world", action="append", metavar="NAME",
                        help="train on this world alone (numbers, pictures, svg, ...: docs/worlds.md names them), or "
                             "on several: give it again (default: all)")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--resume", action="store_true",
                        help="go on from the state in --out, which is saved every three minutes")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Raise UsageError or ConfigError for options that contradict each other, the machine or the folders."""
    import torch

    from tools.curriculum import WORLDS
    from tools.trainer import PRESET, STATE_FILE

    if args.minutes is not None and not 0 < args.minutes < float("inf"):
        raise UsageError(f"--minutes is {args.minutes}; expected a positive number.")
    check_seed(args.seed or 0)
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out {args.out}: is a file; expected a folder. Name another one.")
    if args.resume and args.seed is not None:
        raise UsageError("--resume and --seed contradict each other: the state already has a seed. Leave --seed out.")
    if args.resume and args.minutes is not None:
        raise UsageError("--resume and --minutes contradict each other: the state already has its length, of which the "
                         "curriculum is made. Leave --minutes out.")  # fmt: skip
    if args.resume and args.world:
        raise UsageError("--resume and --world contradict each other: the state already has its worlds. Leave --world "
                         "out.")  # fmt: skip
    for name in args.world or ():
        if name not in WORLDS:
            raise UsageError(f"--world {name}: there is none of that name. Choose from {', '.join(WORLDS)}.")
    if args.world and set(args.world) == {"documents"}:
        raise UsageError("--world documents alone: held-out documents are PDF files, so nothing would be left to check "
                         "what is learnt. Add another world.")  # fmt: skip
    if args.resume and args.init:
        raise UsageError("--resume and --init contradict each other: the state already has weights. Give one of them.")
    if args.resume and not (args.out / STATE_FILE).exists():
        raise UsageError(f"{args.out / STATE_FILE}: not there, nothing to resume. Leave out --resume to begin.")
    if not args.resume and (args.out / STATE_FILE).exists():
        raise UsageError(f"{args.out}: holds a training already. Go on with --resume, or name another folder.")
    if not args.resume and any(args.out.rglob("*.safetensors")):
        raise UsageError(f"{args.out}: holds a checkpoint, whose files a training would overwrite. "
                         f"Name another folder, and begin with --init {args.out} to go on from it.")
    for name in ("tiktoken.model", "tokenizer_config.json") if args.init else ():
        if not (args.init / name).exists():
            raise ConfigError(f"{args.init}: {name} is missing. Start from a whole checkpoint made here.")
    if args.init and read_config_file(args.init / "config.json") != preset_dict(PRESET):
        raise ConfigError(f"{args.init}: its config.json is not that of {PRESET}. Start from a checkpoint made here.")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA GPU here. Use --device cpu, or check nvidia-smi.")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    check(args)
    from tools.trainer import Trainer

    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args.out, 1 if args.seed is None else args.seed, args.device, args.init, args.world)
    if args.resume:
        trainer.restore()
        trainer.train()
    else:
        trainer.train(60 * (DEFAULT_MINUTES if args.minutes is None else args.minutes))
    trainer.export()
    print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
