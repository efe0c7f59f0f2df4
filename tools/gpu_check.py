"""Test and measure what needs a CUDA GPU: parity, kernels, one full-width layer as a graph, prefill, vision.

Every figure stands beside a bound: the fewest bytes the work must move over the copy bandwidth of this card, measured
in the same run, or its arithmetic over the rate of the largest product. A section that fails is recorded with its
error, and the others run on.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import CHECK_FAILED, DONE, OneLineParser, check_writable, run, write_whole
from reference.errors import UsageError

if TYPE_CHECKING:
    from .gpu_sections import Bench

EXAMPLES = """examples:
  python -m tools.gpu_check
  python -m tools.gpu_check --out /tmp --sections experts,layer
"""
DEFAULT_OUT = Path("docs/benchmarks")
REPORT, LOG = "gpu-check.json", "gpu-check.log"
BUDGET_S = 420  # no section begins after so long, so that the whole stays under eight minutes


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    import torch

    if not torch.cuda.is_available():
        raise UsageError("torch finds no CUDA GPU here, and every check needs one. Run this on a machine with a GPU.")
    for name in REPORT, LOG:
        check_writable(args.out / name)  # minutes of measuring come first
    from .gpu_sections import SECTIONS, Bench, Sizes

    log = Log()
    bench = Bench(torch.device("cuda"), Sizes(), log)
    report = bench.describe()
    log(f"{report['device']}, {report['memory_gib']:.0f} GiB, torch {report['torch']}, triton {report['triton']}")
    names = args.sections or list(SECTIONS)
    report["sections"] = run_sections({name: SECTIONS[name] for name in names}, bench, log, BUDGET_S)
    failed = [name for name, section in report["sections"].items() if "error" in section]
    log(f"{len(names) - len(failed)} of {len(names)} sections done" + (f", failed: {', '.join(failed)}" * bool(failed)))
    for name, text in ((REPORT, json.dumps(report, indent=1) + "\n"), (LOG, log.text())):
        with write_whole(args.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return CHECK_FAILED if failed else DONE


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.gpu_check", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", type=Path, default=DEFAULT_OUT,
                        help=f"where gpu-check.json and gpu-check.log go (default: {DEFAULT_OUT})")  # fmt: skip
    parser.add_argument("--sections", metavar="NAME,...", help=f"only these of {', '.join(SECTION_NAMES)}")
    args = parser.parse_args(argv)
    if args.sections:
        args.sections = args.sections.split(",")
        if unknown := [name for name in args.sections if name not in SECTION_NAMES]:
            raise UsageError(f"--sections {','.join(unknown)}: unknown; expected some of {', '.join(SECTION_NAMES)}.")
    return args


SECTION_NAMES = (
    "tests", "ceilings", "parity", "experts", "layer", "attention", "grouped", "peer", "prefill", "vision",
)  # fmt: skip


class Log:
    """Lines on stdout, kept for the file."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def run_sections(
    sections: dict[str, Callable[["Bench"], None]], bench: "Bench", log: Callable[[str], None],
    budget_s: float,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Rows, seconds, and the error of each section that failed or came too late."""
    begin, found = time.monotonic(), {}
    for name, section in sections.items():
        start = time.monotonic()
        log(f"\n{name}: {section.__doc__.splitlines()[0]}")
        found[name] = entry = {}
        try:
            if start - begin > budget_s:
                spent = f"{start - begin:.0f} s of {budget_s:.0f} s were over"
                raise UsageError(f"not begun: {spent}. Run it alone: --sections {name}.")
            bench.rows = entry["rows"] = []  # what a section has measured before it fails is kept
            section(bench)
        except Exception as error:  # whatever it is: it is recorded, and the other sections have their turn
            entry["error"] = f"{type(error).__name__}: {error}"
            log(f"  FAILED {entry['error'][:2000]}")
        entry["seconds"] = time.monotonic() - start
        bench.release()
    return found


if __name__ == "__main__":
    raise SystemExit(run(main))
