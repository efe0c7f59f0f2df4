"""Average the weights of trainings that went on from one another, and write the mean as a checkpoint.

Each training ends a little beside the lowest place, every time on another side; the mean of their ends often lies lower
than each of them. It is taken of the float32 weights that `tools.train` wrote below each checkpoint, or of what the
INT4 integers stand for where only the checkpoint is there, as of the shipped one; and then quantised. Whether one went
on from the other (--init) is not checked; the mean of strangers is worth nothing.

Source: Izmailov et al. 2018, arXiv 1803.05407, section 3; Wortsman et al. 2022, arXiv 2203.05482.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import OneLineParser, run
from reference.config import read_config_file
from reference.errors import CheckpointError, ConfigError, UsageError

if TYPE_CHECKING:
    from reference.model import KimiModel

EXAMPLES = """examples:
  python -m tools.average_weights reference/nano build/next --out build/nano
  python -m tools.average_weights build/fourth build/fifth build/sixth --out build/mean-of-three
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    from reference.presets import preset_dict
    from tools.nano_checkpoint import unquantised_config
    from tools.trainer import PRESET, UNQUANTISED, export, write_small_files

    first, *others = args.trainings
    check(args.trainings, UNQUANTISED, unquantised_config(PRESET), preset_dict(PRESET))
    model = load_float32(first, UNQUANTISED)
    total = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for other in others:
        for name, tensor in load_float32(other, UNQUANTISED).state_dict().items():
            total[name] += tensor
    if bad := [name for name, tensor in total.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{bad[0]}: is not a number somewhere in one of the trainings. Leave that one out.")
    model.load_state_dict({name: tensor / len(args.trainings) for name, tensor in total.items()})
    args.out.mkdir(parents=True, exist_ok=True)
    write_small_files(args.out, first, preset_dict(PRESET))
    export(model, args.out)
    print(args.out)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.average_weights", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("trainings", metavar="DIR", type=Path, nargs="+", help="two or more folders of tools.train")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the checkpoint")
    args = parser.parse_args(argv)
    if len(args.trainings) < 2:
        parser.error(f"only {args.trainings[0]} is given; expected two or more folders")
    if len({path.resolve() for path in args.trainings}) < len(args.trainings):
        parser.error("a folder is given twice; expected different ones")
    if any(args.out.rglob("*.safetensors")) or (args.out.exists() and not args.out.is_dir()):
        raise UsageError(f"--out {args.out}: is a file or holds weights. Name another folder.")
    return args


def load_float32(training: Path, below: str) -> "KimiModel":
    """The weights that a training worked on, or else those that its checkpoint's integers stand for."""
    from reference.model import load_model
    from tools.trainer import dense_model

    return load_model(training / below) if has_weights(training / below) else dense_model(training)


def has_weights(folder: Path) -> bool:
    return (folder / "model.safetensors").exists()


def check(trainings: Sequence[Path], below: str, unquantised: dict[str, Any], quantised: dict[str, Any]) -> None:
    """Raise ConfigError for folders without weights, with weights of another shape, or with other vocabularies."""
    for training in trainings:
        folder, config = (training / below, unquantised) if has_weights(training / below) else (training, quantised)
        if not has_weights(folder):
            raise ConfigError(f"{folder}: holds no weights. Name folders that tools.train wrote.")
        if read_config_file(folder / "config.json") != config:
            raise ConfigError(f"{folder}: its config.json is not that of weights made here. Name folders that "
                              "tools.train wrote.")  # fmt: skip
    for name in ("tiktoken.model", "tokenizer_config.json"):
        if missing := [training for training in trainings if not (training / name).exists()]:
            raise ConfigError(f"{missing[0]}: {name} is missing. Name folders that tools.train wrote.")
        if len({(training / name).read_bytes() for training in trainings}) > 1:
            raise ConfigError(f"{', '.join(map(str, trainings))}: {name} differs. Weights have a mean where one "
                              "training went on from the other.")  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run(main))
