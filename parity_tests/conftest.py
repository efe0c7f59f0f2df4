"""What every test run shares: seeds, the GPU marker, no silent skips, and the agreement table at the end."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from parity_tests.agreement import RECORDS, worst_per_stage
from reference.command import write_whole

NO_GPU = "needs a CUDA GPU"
NO_TRITON = "needs Triton, which has no wheel for this platform"
ALLOWED_SKIPS = NO_GPU, NO_TRITON
forbidden_skips: list[str] = []

if importlib.util.find_spec("hypothesis"):  # `make gpu-check` runs without it
    from hypothesis import settings

    # The same examples on every run and no time limit per example: a slow machine is not a failure.
    settings.register_profile("repeatable", derandomize=True, deadline=None)
    settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true",
                     help="a test skipped for any reason but a missing GPU or Triton wheel fails the run")
    parser.addoption("--agreement-json", metavar="FILE", type=Path, help="write every measured agreement to FILE")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m gpu` runs with the core packages alone: leave out the files that have no such test and may import more."""
    if config.option.markexpr == "gpu" and collection_path.suffix == ".py":
        return "mark.gpu" not in collection_path.read_text(encoding="utf-8") or None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


def note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(allowed in reason for allowed in ALLOWED_SKIPS):
        forbidden_skips.append(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")


pytest_runtest_logreport = note_skip  # a test or its fixtures skipped
pytest_collectreport = note_skip      # a whole module skipped


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.option.fail_on_skip and forbidden_skips and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if path := session.config.option.agreement_json:
        with write_whole(path) as temporary:
            temporary.write_text(json.dumps([asdict(record) for record in RECORDS], indent=1) + "\n", encoding="utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if RECORDS:
        print_agreement(terminalreporter)
    if config.option.fail_on_skip and forbidden_skips:
        terminalreporter.section("not allowed to be skipped", red=True)
        for line in forbidden_skips:
            terminalreporter.line(line)


def print_agreement(terminalreporter: pytest.TerminalReporter) -> None:
    worst = worst_per_stage(RECORDS)
    width = max((len(record.stage) for record, _ in worst), default=0)
    terminalreporter.section("agreement, worst per stage")
    for record, count in worst:
        terminalreporter.line(
            f"{record.stage:<{width}}  relative L2 {record.error:.1e}  tolerance {record.tolerance:.0e}  of {count}")
    if caught := sum(record.caught for record in RECORDS):
        terminalreporter.line(f"{caught} deliberately wrong variants were caught")
