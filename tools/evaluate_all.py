"""Make every report that docs/evaluation.md is made of: all evaluations, one thread each, as many at once as cores.

A report that lies in the folder already is left as it is, so what was stopped goes on. The whole table takes about
an hour on two cores; longer ones begin first.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from reference.command import OneLineParser, run, write_whole
from reference.errors import KimiError, UsageError

EXAMPLES = """examples:
  python -m tools.evaluate_all --out build/evaluation
  python -m tools.evaluate_all --out build/evaluation thinking-svg expert-load
"""

PAIRED = "--n 1000 --skill numbers.subtract --skill numbers.multiply --skill pictures.describe --skill pictures.count"
UNQUANTISED = "unquantised"  # stands for the folder that --unquantised names
REPORTS = {
    "thinking-agents": "tools.evaluate --n 1000 --skill tools.choose --skill tools.parallel --skill tools.chain "
                       "--skill tools.picture --backend optimized",
    "thinking": "tools.evaluate --n 1000",
    "thinking-200-calls": "tools.evaluate --n 20 --skill tools.counter --calls 200 --backend optimized",
    "thinking-needles-16k": "tools.evaluate --n 20 --skill needles --tokens 16000 --backend optimized",
    "thinking-media": "tools.evaluate --n 1000 --skill signs --skill videos --skill documents --backend optimized",
    "instant": "tools.evaluate --n 1000 --instant",
    "thinking-swarm": "tools.evaluate --n 100 --skill swarm --backend optimized",
    "thinking-reworded": "tools.evaluate --n 100 --reworded --skill numbers --skill pictures --skill signs "
                         "--skill videos --skill documents --skill self --skill outside --backend optimized",
    "thinking-needles-reworded": "tools.evaluate --n 200 --reworded --skill needles --tokens 1000 --backend optimized",
    "thinking-swarm-6-parts": "tools.evaluate --n 20 --skill swarm.orchestrate --skill swarm.single --parts 6 "
                              "--backend optimized",
    "thinking-sampled": f"tools.evaluate {PAIRED} --temperature 1.0",
    "thinking-optimized": f"tools.evaluate {PAIRED} --backend optimized",
    "thinking-needles-4k": "tools.evaluate --n 100 --skill needles --tokens 4000 --backend optimized",
    "thinking-unquantised": f"tools.evaluate {PAIRED} --model {UNQUANTISED}",
    "thinking-agents-more": "tools.evaluate --n 200 --skill tools.error --skill tools.none --skill tools.counter "
                            "--skill tools.crop --backend optimized",
    "instant-sampled": f"tools.evaluate {PAIRED} --instant --temperature 0.6",
    "thinking-svg": "tools.evaluate --n 200 --skill svg --backend optimized",
    "thinking-needles-1k": "tools.evaluate --n 200 --skill needles --tokens 1000 --backend optimized",
    "expert-load": "tools.expert_load --n 400",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    files = {name: args.out / file_name(name) for name in REPORTS if not args.reports or name in args.reports}
    todo = [name for name, file in files.items() if not file.exists()]
    for name in files.keys() - set(todo):
        say(f"{name}: there already")
    if any(UNQUANTISED in REPORTS[name].split() for name in todo) and not args.unquantised.is_dir():
        raise UsageError(f"--unquantised {args.unquantised}: not a folder. Name what tools.train wrote beside its "
                         "checkpoint, or the reports that are to be made without it.")  # fmt: skip
    say(f"{len(todo)} to make")
    failed = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(make, REPORTS[name], files[name], args.unquantised): name for name in todo}
        for number, future in enumerate(as_completed(running), 1):
            seconds, complaint = future.result()
            say(f"{number} of {len(todo)}: {running[future]}, {seconds:.0f} s{complaint and f': {complaint}'}")
            failed += [running[future]] if complaint else []
    print(args.out)
    if failed:
        raise KimiError(f"{', '.join(failed)}: not made, see above. The same command makes what is missing.")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.evaluate_all", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("reports", metavar="NAME", nargs="*", help=f"only these, of {', '.join(REPORTS)}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for the reports, which report_evaluation makes the page from")
    parser.add_argument("--unquantised", type=Path, default=Path("build/nano/unquantised"), metavar="DIR",
                        help="the float32 weights of the same training (default: build/nano/unquantised)")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.reports if name not in REPORTS]:
        parser.error(f"{unknown[0]}: no such report; expected some of {', '.join(REPORTS)}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out}: is a file; expected a folder")
    return args


def file_name(name: str) -> str:
    return f"{name}.json" if name == "expert-load" else f"evaluate-{name}.json"


def make(command: str, file: Path, unquantised: Path) -> tuple[float, str]:
    """Run one evaluation. Its seconds, and the last line of its complaint, empty if it went well."""
    started = time.monotonic()
    words = [str(unquantised) if word == UNQUANTISED else word for word in command.split()]
    outcome = subprocess.run([sys.executable, "-m", *words, "--seed", "0", "--json"], capture_output=True, text=True,
                             env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    if not outcome.returncode:
        with write_whole(file) as temporary:
            temporary.write_text(outcome.stdout, encoding="utf-8")
    lines = outcome.stderr.strip().splitlines() or [f"exit code {outcome.returncode}"]
    return time.monotonic() - started, lines[-1] if outcome.returncode else ""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(run(main))
