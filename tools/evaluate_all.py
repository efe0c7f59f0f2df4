"""Make every report that docs/evaluation.md is made of: all evaluations, one thread each, as many at once as cores.

A report of the shipped weights that lies in the folder already is left as it is, so what was stopped goes on. The whole
table takes one to one and a half hours on two cores; longer ones begin first. docs/evaluation.md is made of those in
docs/benchmarks: copy them there, and run tools.report_evaluation.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reference.command import OneLineParser, run, write_whole
from reference.errors import KimiError, UsageError
from reference.generate import SHIPPED_MODEL

from .fingerprint import fingerprint, sibling_fingerprint
from .report_evaluation import read_load
from .scores import read_report

EXAMPLES = """examples:
  python -m tools.evaluate_all --out build/evaluation
  python -m tools.evaluate_all --out build/evaluation thinking-svg expert-load
"""

# The same questions under two settings each, to be compared one by one.
PAIRED = "--n 1000 --skill numbers.subtract --skill numbers.multiply --skill pictures.describe --skill pictures.count"
UNQUANTISED = "unquantised"  # stands for the folder that --unquantised names
MASTERS = Path("build/nano/unquantised")  # float32 weights that became the shipped ones
LOOK_EVERY_S = 0.2  # whether an evaluation has ended
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
    "thinking-needles-1k": "tools.evaluate --n 1000 --skill needles --tokens 1000 --backend optimized",
    "expert-load": "tools.expert_load --n 400",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """An evaluation that runs, and where it writes."""

    process: subprocess.Popen
    started: float
    stdout: Path
    stderr: Path


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    files = {name: args.out / file_name(name) for name in args.reports or REPORTS}
    shipped = fingerprint(SHIPPED_MODEL)
    if needs_masters := [name for name in files if UNQUANTISED in REPORTS[name].split() and not files[name].exists()]:
        if args.unquantised is None and not MASTERS.is_dir():
            say(f"{', '.join(needs_masters)}: left out, for {MASTERS} is not there; see --unquantised")
            files = {name: file for name, file in files.items() if name not in needs_masters}
        else:
            check_masters(args.unquantised or MASTERS, shipped)
    todo = [name for name, file in files.items() if not is_made(file, shipped)]
    args.out.mkdir(parents=True, exist_ok=True)
    say(f"{len(todo)} reports to make, {len(files) - len(todo)} there already")
    failed = make_all(todo, files, str(args.unquantised or MASTERS))
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
    parser.add_argument("--unquantised", type=Path, metavar="DIR",
                        help=f"the float32 weights that the shipped ones are made of (default: {MASTERS}; without it "
                             "the report that needs them is left out)")  # fmt: skip
    args = parser.parse_args(argv)
    if unknown := [name for name in args.reports if name not in REPORTS]:
        parser.error(f"{unknown[0]}: no such report; expected some of {', '.join(REPORTS)}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out}: is a file; expected a folder")
    return args


def file_name(name: str) -> str:
    return f"{name}.json" if name == "expert-load" else f"evaluate-{name}.json"


def check_masters(folder: Path, shipped: str) -> None:
    """Raise UsageError unless these are the weights that became the shipped ones."""
    if sibling_fingerprint(folder) != shipped:
        raise UsageError(f"--unquantised {folder}: is not said to be what the shipped weights are made of. Name what "
                         "tools.train or tools.average_weights wrote below them, or the other reports.")  # fmt: skip


def is_made(file: Path, shipped: str) -> bool:
    """Whether the report is there. Raises UsageError for another file of its name, or a report of other weights."""
    if not file.exists():
        return False
    report = read_load(file) if file.name == file_name("expert-load") else read_report(file)
    if shipped not in (report["model_sha256"], report.get("int4_sha256")):
        raise UsageError(f"{file}: is of other weights than those shipped now. Move it away, or name another folder.")
    return True


def make_all(todo: Sequence[str], files: dict[str, Path], unquantised: str) -> list[str]:
    """Run one evaluation per core until all are done. Those that failed; what still runs ends with this program."""
    waiting, running, failed = list(todo), {}, []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < (os.cpu_count() or 1):
                    name = waiting.pop(0)
                    say(f"{name}: begins")
                    running[name] = start(REPORTS[name].replace(f"--model {UNQUANTISED}", f"--model {unquantised}"),
                                          Path(folder) / name)  # fmt: skip
                for name in [name for name, job in running.items() if job.process.poll() is not None]:
                    failed += [] if finish(name, running.pop(name), files[name]) else [name]
                time.sleep(LOOK_EVERY_S)
        finally:
            for job in running.values():
                job.process.terminate()
            for job in running.values():
                job.process.wait()
            signal.signal(signal.SIGTERM, before)
    return failed


def start(command: str, output: Path) -> Job:
    stdout, stderr = output.with_suffix(".out"), output.with_suffix(".err")
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen([sys.executable, "-m", *command.split(), "--seed", "0", "--json"], stdout=out,
                                   stderr=err, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    return Job(process, time.monotonic(), stdout, stderr)


def finish(name: str, job: Job, file: Path) -> bool:
    """Put the report in its place if the evaluation went well, and say how it went."""
    went_well, seconds = job.process.returncode == 0, time.monotonic() - job.started
    if went_well:
        with write_whole(file) as temporary:
            temporary.write_bytes(job.stdout.read_bytes())
    lines = job.stderr.read_text(encoding="utf-8").strip().splitlines() or [f"exit code {job.process.returncode}"]
    say(f"{name}: {f'done in {seconds:.0f} s' if went_well else lines[-1]}")
    return went_well


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(run(main))
