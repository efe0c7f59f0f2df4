"""The yardstick itself: what counts as agreement, what a deliberate mistake must exceed, which skips are allowed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parity_tests import agreement
from parity_tests.agreement import Measurement, assert_agrees, assert_caught, relative_l2, worst_per_stage

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_records(monkeypatch):
    """What these tests measure stays out of the table of the run."""
    monkeypatch.setattr(agreement, "RECORDS", [])


def test_relative_l2_by_hand():
    expected = torch.tensor([3.0, 4.0])  # length 5
    assert relative_l2(expected + torch.tensor([0.5, 0.0]), expected) == 0.1
    assert relative_l2(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_l2(torch.tensor([0.5, 0.0]), torch.zeros(2)) == 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_never_agrees(bad):
    assert relative_l2(torch.tensor([1.0, bad]), torch.ones(2)) == float("inf")
    assert relative_l2(torch.ones(2), torch.tensor([1.0, bad])) == float("inf")


def test_a_broadcast_is_not_agreement():
    with pytest.raises(AssertionError, match="shapes differ"):
        relative_l2(torch.ones(2, 1), torch.ones(2, 3))


def test_agreement_fails_beyond_the_tolerance_and_a_mistake_has_to():
    expected, near, far = torch.ones(4), torch.ones(4) * (1 + 1e-6), torch.ones(4) * 1.1
    assert_agrees("stage", near, expected, 1e-5)
    assert_caught("stage", far, expected, 1e-5)
    with pytest.raises(AssertionError, match=r"stage: relative L2 0\.1"):
        assert_agrees("stage", far, expected, 1e-5)
    with pytest.raises(AssertionError, match="would hardly notice"):
        assert_caught("stage", near, expected, 1e-5)


def test_the_table_shows_the_worst_of_each_stage_and_no_deliberate_mistake():
    a, worse, b, wrong = Measurement("a", 1e-7, 1e-5), Measurement("a", 2e-7, 1e-5), Measurement("b", 1e-6, 1e-5), (
        Measurement("a", 1.0, 1e-5, caught=True))
    assert worst_per_stage([a, worse, b, wrong]) == [(b, 1), (worse, 2)]


def run_pytest(folder: Path, **files: str) -> subprocess.CompletedProcess:
    """Run test files under our conftest, as `make test` does."""
    for name, body in files.items():
        (folder / f"test_{name}.py").write_text("import pytest\n" + body, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "parity_tests.conftest", "-c", ROOT / "pyproject.toml",
               "--rootdir", folder, "--fail-on-skip", "--agreement-json", folder / "agreement.json", folder]
    return subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
                          encoding="utf-8", timeout=120)


def test_a_missing_gpu_excuses_a_skip(tmp_path):
    outcome = run_pytest(tmp_path, plain="def test(): pass", gpu="@pytest.mark.gpu\ndef test(): pass")
    assert outcome.returncode == 0, outcome.stdout
    assert json.loads((tmp_path / "agreement.json").read_text(encoding="utf-8")) == []


def test_a_platform_without_triton_excuses_a_skip(tmp_path):
    outcome = run_pytest(tmp_path, kernels="from parity_tests.conftest import NO_TRITON\n"
                                           "@pytest.mark.skip(reason=NO_TRITON)\ndef test(): pass")  # fmt: skip
    assert outcome.returncode == 0, outcome.stdout


def test_nothing_else_excuses_a_skip(tmp_path):
    outcome = run_pytest(tmp_path, plain="def test(): pass", lazy="def test(): pytest.skip('no time')",
                         oracle="pytest.importorskip('no_such_package')\ndef test(): pass")
    assert outcome.returncode == 1
    named = outcome.stdout.partition("not allowed to be skipped")[2]
    assert "test_lazy.py::test: no time" in named
    assert "test_oracle.py: could not import 'no_such_package'" in named
