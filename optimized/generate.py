"""The main job on the optimized model: `python -m optimized.generate`, with the options of `reference.generate`."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reference import generate as plain
from reference.command import run
from reference.terminal import note

from .capability import ATTENTIONS

if TYPE_CHECKING:
    import torch


def main(argv: Sequence[str] | None = None) -> int:
    parser = plain.build_parser("python -m optimized.generate")
    parser.add_argument("--attention", choices=ATTENTIONS, default="auto",
                        help="flex: FlexAttention; products: matrix products; auto: what is fastest on the device")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction,
                        help="compile prefill and decoding first: pays off after a minute or so of generation "
                             "(default: on cuda only)")  # fmt: skip
    options = parser.parse_args(argv)
    warnings.showwarning = lambda message, *_, **__: note(f"warning: {message}")

    def load(directory: Path, dtype: "torch.dtype", device: str) -> "torch.nn.Module":
        import torch

        from .capability import compiles_by_default, has_compiler
        from .model import compile_steps, load_model, set_attention

        model = load_model(directory, dtype, device)
        set_attention(model, options.attention)
        place = torch.device(device)
        wants = compiles_by_default(place) if options.compile is None else options.compile
        if wants and not has_compiler(place):
            note("no compiler found (a C++ compiler on a CPU, Triton on CUDA): running without --compile")
        elif wants:
            compile_steps(model)
        return model

    return plain.main(argv, load, parser)


if __name__ == "__main__":
    raise SystemExit(run(main))
