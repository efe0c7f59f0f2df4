"""The main job on the optimized model: `python -m optimized.generate`, with the options of `reference.generate`."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reference import generate as plain
from reference.command import run
from reference.errors import UsageError
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

    def say(text: str) -> None:
        if not options.quiet:
            note(text)

    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")

    def load(directory: Path, dtype: "torch.dtype", device: str) -> "torch.nn.Module":
        import torch

        from .capability import check_version, compiles_by_default, has_compiler

        check_version()  # before what an old PyTorch does not have is imported
        try:
            from .model import compile_steps, load_model, set_attention
        except OSError as error:
            if error.filename is None:
                raise
            raise UsageError(
                f"{error.filename}: PyTorch's compiler cannot make its cache there ({error.strerror}), and wants one "
                "even where nothing is compiled. Name a folder that can be written: TORCHINDUCTOR_CACHE_DIR."
            ) from None

        model = load_model(directory, dtype, device)
        set_attention(model, options.attention)
        place = torch.device(device)
        wants = compiles_by_default(place) if options.compile is None else options.compile
        if wants and not has_compiler(place):
            say("no compiler found (a C++ compiler on a CPU, Triton on CUDA): running without --compile")
        elif wants:
            compile_steps(model)
        return model

    return plain.main(argv, load, parser)


if __name__ == "__main__":
    raise SystemExit(run(main))
