"""Figures of benchmark reports: the same bytes for the same report, every engine named, bad input in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from reference.command import run
from tools.plot_benchmarks import FAMILIES, draw, look_of, main, read_report

ROOT = Path(__file__).parents[1]
ENGINES = ("reference", "optimized INT4", "optimized INT4, compiled", "optimized float32", "transformers")
EXPERTS_TITLE = "One layer's routed experts"


def measured(median: float) -> dict[str, float]:
    return {"median": median, "min": 0.8 * median, "max": 1.1 * median}


def make_report(contexts: tuple[int, ...] = (256, 2048), experts: tuple[int, ...] = ()) -> dict[str, Any]:
    """A report as `tools.bench` writes it, with what the figure needs."""
    speeds = {name: {"prefill_tok_s": measured(900.0 + i), "decode_tok_s": measured(20.0 + i), "gb_per_s": 7.0 + i}
              for i, name in enumerate(ENGINES)}
    report = {
        "model": "tiny", "dtype": "float32", "threads": 3, "torch": "2.13.0", "cpu_capability": "AVX2", "repeats": 5,
        "quiet": True, "load_average_before": 0.1, "bandwidth_gb_s": 40.0,
        "contexts": {str(context): speeds for context in contexts},
    }  # fmt: skip
    if experts:
        report["experts"] = {str(n): {name: {"ms": measured(0.5 * n), "gb_per_s": 3.0} for name in ENGINES[1:]}
                             for n in experts}
    return report


def write(folder: Path, report: Any, name: str = "bench-test.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(report), encoding="utf-8")
    return path


def draw_file(path: Path, out: Path) -> Path:
    assert main([str(path), "--out", str(out)]) == 0
    return out / f"{path.stem}.svg"


def texts(figure: Path) -> list[str]:
    return [element.text for element in ElementTree.parse(figure).iter("{http://www.w3.org/2000/svg}text")]


def test_same_report_gives_the_same_bytes_also_in_another_process(tmp_path):
    path = write(tmp_path, make_report(experts=(1, 8)))
    first, second = draw_file(path, tmp_path / "first"), draw_file(path, tmp_path / "second")
    command = [sys.executable, "-m", "tools.plot_benchmarks", str(path), "--out", str(tmp_path / "third")]
    settings = tmp_path / "matplotlibrc"  # of a user who likes figures large: it must not matter
    settings.write_text("font.size: 20\n", encoding="utf-8")
    subprocess.run(command, cwd=ROOT, env=os.environ | {"MATPLOTLIBRC": str(settings)}, check=True)
    assert first.read_bytes() == second.read_bytes() == (tmp_path / "third" / first.name).read_bytes()


@pytest.mark.parametrize("contexts", [(256,), (256, 2048, 8192)])
@pytest.mark.parametrize("experts", [(), (1,), (1, 8, 64)])
def test_figure_names_every_engine_the_machine_and_the_shares(tmp_path, contexts, experts):
    found = texts(draw_file(write(tmp_path, make_report(contexts, experts)), tmp_path))
    assert set(ENGINES) <= set(found)
    assert "tiny, float32, 3 threads, torch 2.13.0, AVX2" in found
    assert {f"17.5 % at {context:,}" for context in (contexts[0], contexts[-1])} <= set(found)
    assert any(text.startswith(EXPERTS_TITLE) for text in found) == bool(experts)


def test_axes_of_speeds_and_shares_start_at_zero(tmp_path):
    decode, prefill, shares, experts = draw(read_report(write(tmp_path, make_report(experts=(1, 8))))).axes
    assert decode.get_ylim()[0] == prefill.get_ylim()[0] == shares.get_xlim()[0] == 0
    assert (experts.get_xscale(), experts.get_yscale()) == ("log", "log")


def test_a_machine_that_was_not_quiet_is_in_the_figure(tmp_path):
    loaded = make_report() | {"quiet": False, "load_average_before": 3.14}
    assert any("not quiet, load average 3.1" in text for text in texts(draw_file(write(tmp_path, loaded), tmp_path)))


def test_families_look_different_and_compiled_engines_share_the_colour():
    colors, markers = zip(*FAMILIES.values(), strict=True)
    assert len(set(colors)) == len(set(markers)) == len(FAMILIES)
    plain, compiled = look_of("optimized INT4"), look_of("optimized INT4, compiled")
    assert plain.color == compiled.color != look_of("optimized bfloat16").color
    assert plain.line()["linestyle"] != compiled.line()["linestyle"] == "-"


def test_default_draws_every_benchmark_of_the_documents(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(lambda: main([])) == 2  # none there
    (tmp_path / "docs/benchmarks").mkdir(parents=True)
    for name in ("bench-a.json", "bench-b.json"):
        write(tmp_path / "docs/benchmarks", make_report(), name)
    write(tmp_path / "docs/benchmarks", {}, "evaluate.json")
    assert main([]) == 0
    assert sorted(path.name for path in (tmp_path / "docs/figures").iterdir()) == ["bench-a.svg", "bench-b.svg"]
    assert capsys.readouterr().out.split() == ["docs/figures/bench-a.svg", "docs/figures/bench-b.svg"]


FLAWED = make_report()
FLAWED["contexts"]["256"] = {"reference": {"decode_tok_s": {"median": 9, "min": 10, "max": 11}}}


@pytest.mark.parametrize(("report", "complaint"), [
    ({"skills": []}, "it has no 'quiet'"),
    ([1], "no report of tools.bench"),
    ("text", "no report of tools.bench"),
    (make_report(contexts=()), "without engines"),
    (make_report() | {"contexts": {"256": {}}}, "without engines"),
    (make_report() | {"contexts": {"many": {}}}, "no report of tools.bench"),
    (make_report() | {"bandwidth_gb_s": 0}, "0 where a measured value belongs"),
    (make_report() | {"bandwidth_gb_s": None}, "no report of tools.bench"),
    (make_report() | {"experts": {"0": {}}}, "0 tokens"),
    (make_report() | {"experts": {"1": {"abacus": {"ms": measured(1.0)}}}}, 'engine "abacus" has no colour'),
    (FLAWED, "median 9 is not between"),
])  # fmt: skip
def test_what_is_no_report_is_refused_in_one_line(tmp_path, capsys, report, complaint):
    path = write(tmp_path, report)
    assert run(lambda: main([str(path), "--out", str(tmp_path / "out")])) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and complaint in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_and_broken_files_and_equal_names_are_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    good = str(write(tmp_path, make_report()))
    for names, complaint in ((["none.json"], "No such file"), (["broken.json"], "not valid JSON"),
                             ([good, good], "same name")):  # fmt: skip
        assert run(lambda names=names: main([str(tmp_path / name) for name in names])) == 2
        error = capsys.readouterr().err
        assert complaint in error and error.count("\n") == 1


def test_without_matplotlib_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = write(tmp_path, make_report())
    assert run(lambda: main([str(path), "--out", str(tmp_path)])) == 2
    error = capsys.readouterr().err
    assert "pip install -e '.[dev]'" in error and error.count("\n") == 1
