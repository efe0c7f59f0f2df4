"""The figure of a training: the same bytes for the same curve, groups counted together, bad input in one line."""

import json

import pytest

from reference.command import run
from tools.plot_training import WINDOW, by_group, draw, main

CHECK = {"step": 100, "examples": 6400, "minutes": 1.5, "loss": 0.5,
         "exact": {"numbers.add": [3, 4], "numbers.multiply": [0, 4], "self.who": [1, 1], "outside.question": [0, 3]}}


def curve(num_checks):
    checks = [CHECK | {"step": 100 * i, "minutes": 1.5 * i, "examples": 6400 * i} for i in range(1, num_checks + 1)]
    return {"seed": 1, "curve": checks}


def test_skills_of_a_group_are_counted_together():
    assert by_group(CHECK["exact"]) == {"numbers": (3, 8), "self and outside": (1, 4)}


def test_a_point_is_the_mean_of_the_last_checks():
    checks = [CHECK | {"minutes": float(i), "groups": {"numbers": (i % 2, 1)}} for i in range(1, 2 * WINDOW + 1)]
    panel = draw(checks).axes[2]
    [line] = panel.lines
    assert line.get_label() == "numbers"
    assert list(line.get_xdata()) == [check["minutes"] for check in checks]
    assert line.get_ydata()[0] == 100 and set(line.get_ydata()[WINDOW:]) == {50}


def test_equal_curves_give_equal_figures(tmp_path):
    source = tmp_path / "training-curve.json"
    source.write_text(json.dumps(curve(3)), encoding="utf-8")
    for folder in ("a", "b"):
        assert main([str(source), "--out", str(tmp_path / folder)]) == 0
    first, second = ((tmp_path / folder / "training-curve.svg").read_bytes() for folder in ("a", "b"))
    assert first == second and b"19,200 examples in 4 minutes" in first


@pytest.mark.parametrize(("found", "complaint"), [
    ([], "no training curve"), ({"curve": [{"loss": 1}]}, "no training curve"), ({"curve": 3}, "no training curve"),
    (curve(0), "without checks"), ({"curve": [CHECK | {"loss": 0}]}, "without checks"),
])  # fmt: skip
def test_what_is_no_curve_is_refused_in_one_line(tmp_path, capsys, found, complaint):
    source = tmp_path / "training-curve.json"
    source.write_text(json.dumps(found), encoding="utf-8")
    assert run(lambda: main([str(source), "--out", str(tmp_path / "out")])) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
