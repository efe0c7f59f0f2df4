"""`make gpu-check` without a GPU: it says so, its byte counts are the published ones, every section runs when small."""

import json

import pytest
import torch

from parity_tests.checkpoints import small_config
from reference.command import BAD_INPUT, run
from reference.config import KimiConfig
from tools import gpu_check, gpu_sections
from tools.gpu_sections import SECTIONS, Bench, Sizes

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

FULL = Sizes()
SMALL = Sizes(
    preset="tiny", dtype=torch.float32, copy_bytes=2**12, product=16, cache_bytes=2**12, grouped_tokens=(3, 40),
    batches=(1, 3), contexts=(40,), prefill_tokens=9, grids=(((1, 4, 6), 1), ((1, 4, 4), 3)), calls=2,
)  # fmt: skip


def test_without_a_gpu_it_says_so_in_one_line(capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(lambda: gpu_check.main([])) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no CUDA GPU" in error


def test_an_unknown_section_is_refused(capsys) -> None:
    assert run(lambda: gpu_check.main(["--sections", "layer,fun"])) == BAD_INPUT
    assert "--sections fun: unknown; expected some of tests, ceilings" in capsys.readouterr().err
    assert set(gpu_check.SECTION_NAMES) == set(SECTIONS)


def test_bounds_are_those_of_the_published_sizes() -> None:
    """By hand: an expert has 3 * 7168 * 2048 weights, a token's experts are 8 of 384."""
    config = FULL.config
    assert gpu_sections.expert_weights(config) == 44_040_192
    assert gpu_sections.distinct(config, 1) == pytest.approx(8)
    assert gpu_sections.distinct(config, 8) == pytest.approx(59.5, abs=0.1)
    # 61 layers of attention in bfloat16 are 12.34 GB.
    assert 61 * 2 * gpu_sections.attention_weights(config) == pytest.approx(12.34e9, rel=1e-3)
    routed = 8 * 44_040_192 * 4.5 / 8
    at_4k = gpu_sections.layer_bytes(config, 1, 4096, gpu_sections.INT4_BYTES)
    shared = 44_040_192 + 384 * 7168 + 4096 * 576
    assert at_4k == pytest.approx(routed + 2 * (gpu_sections.attention_weights(config) + shared))
    more = gpu_sections.layer_bytes(config, 1, 8192, gpu_sections.INT4_BYTES) - at_4k
    assert more == 4096 * 576 * 2


@pytest.fixture
def bench(monkeypatch) -> Bench:
    """Small sizes on the CPU, with experts whose rows are whole groups of 32."""
    raw = small_config({"num_hidden_layers": 1, "first_k_dense_replace": 0}, int4=True)
    monkeypatch.setattr(Sizes, "config", KimiConfig.from_dict(raw))
    return Bench(torch.device("cpu"), SMALL, gpu_check.Log())


@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "tests"])
def test_every_section_runs_with_small_sizes(bench: Bench, name: str) -> None:
    found = gpu_check.run_sections({name: SECTIONS[name]}, bench, bench.log, 100)[name]
    assert "error" not in found, found["error"]
    assert found["rows"] and found["seconds"] >= 0
    json.dumps(found)
    for row in found["rows"]:
        assert "us" not in row or (row["us"] > 0 and row["bound_us"] > 0)
    if name == "attention":
        assert max(row["difference"] for row in found["rows"]) < 1e-5
        assert len(found["rows"]) == 3


def test_a_failing_section_is_recorded_and_the_rest_goes_on(bench: Bench) -> None:
    def broken(bench: Bench) -> None:
        """Fails half way."""
        bench.rows.append({"name": "before"})
        raise RuntimeError("out of registers")

    found = gpu_check.run_sections({"broken": broken, "ceilings": SECTIONS["ceilings"]}, bench, bench.log, 100)
    assert found["broken"]["error"] == "RuntimeError: out of registers"
    assert found["broken"]["rows"] == [{"name": "before"}]
    assert "error" not in found["ceilings"] and len(found["ceilings"]["rows"]) == 2
    assert "FAILED RuntimeError: out of registers" in bench.log.text()


def test_what_comes_too_late_is_named(bench: Bench) -> None:
    found = gpu_check.run_sections({"ceilings": SECTIONS["ceilings"]}, bench, bench.log, -1)
    assert "not begun" in found["ceilings"]["error"] and "--sections ceilings" in found["ceilings"]["error"]


def test_where_the_report_cannot_be_written_nothing_is_measured(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_sections, "Bench", lambda *_: pytest.fail("it measures already"))
    assert run(lambda: gpu_check.main(["--out", str(tmp_path / "missing")])) == BAD_INPUT
    assert "gpu-check.json: cannot write there" in capsys.readouterr().err


def test_the_report_is_written_whole(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_sections, "Bench", lambda _, sizes, log: Bench(torch.device("cpu"), SMALL, log))
    monkeypatch.setattr(Bench, "describe", lambda _: {"device": "none", "memory_gib": 1, "torch": "", "triton": ""})
    assert gpu_check.main(["--out", str(tmp_path), "--sections", "ceilings"]) == 0
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert [row["name"] for row in report["sections"]["ceilings"]["rows"]] == ["copy", "product of 16 x 16"]
    assert (tmp_path / "gpu-check.log").read_text() == capsys.readouterr().out
