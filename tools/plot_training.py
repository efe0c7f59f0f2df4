"""Draw a training: the loss, and how many held-out replies of each world the model would have written whole.

The checks during a training ask few questions of each world, so a point is the mean of the last WINDOW checks; they
count a reply as right only if all of it, thinking included, is the expected one. `tools.evaluate` judges answers.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import OneLineParser, read_json, run
from reference.errors import UsageError

from .plot_benchmarks import figure_saver

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXAMPLES = """examples:
  python -m tools.plot_training
  python -m tools.plot_training docs/benchmarks/training-curve.json --out .
"""
CURVES, FIGURES = Path("docs/benchmarks"), Path("docs/figures")
WINDOW = 8
# Colours that people with any colour vision tell apart, as in plot_benchmarks.
PANELS = {
    "what is seen": {"pictures": "#0072B2", "signs": "#D55E00", "svg": "#009E73", "videos": "#CC79A7"},
    "what is read": {
        "numbers": "#0072B2", "self and outside": "#D55E00", "needles": "#009E73", "tools": "#CC79A7",
        "swarm": "#000000",
    },
}  # fmt: skip
GROUPS = {"self": "self and outside", "outside": "self and outside"}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    paths = args.curves or sorted(CURVES.glob("training-curve*.json"))
    if not paths:
        raise UsageError(f"{CURVES}: no training-curve*.json there. Name a curve that tools.train wrote.")
    curves = {args.out / f"{path.stem}.svg": read_curve(path) for path in paths}
    save = figure_saver()
    args.out.mkdir(parents=True, exist_ok=True)
    for target, curve in curves.items():
        save(partial(draw, curve), "A training", target)
        print(target)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.plot_training", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("curves", metavar="FILE.json", type=Path, nargs="*",
                        help=f"what tools.train wrote (default: every training-curve*.json in {CURVES})")  # fmt: skip
    parser.add_argument("--out", metavar="DIR", type=Path, default=FIGURES,
                        help=f"folder of the figures, made if it is missing (default: {FIGURES})")  # fmt: skip
    return parser.parse_args(argv)


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The checks of a training. Raises UsageError if the file has none."""
    found = read_json(path, "a training curve of tools.train")
    try:
        checks = [check | {"groups": by_group(check["exact"])} for check in found["curve"]]
        drawable = all(check["loss"] > 0 and check["minutes"] >= 0 and check["examples"] >= 0 for check in checks)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: no training curve ({error}). Expected what tools.train writes.") from None
    if not checks or not drawable:
        raise UsageError(f"{path}: a training curve without checks, nothing to draw. A check comes every 100 steps.")
    return checks


def by_group(exact: dict[str, list[int]]) -> dict[str, tuple[int, int]]:
    """Replies right and seen, by the names of PANELS."""
    groups: dict[str, tuple[int, int]] = {}
    for skill, (right, seen) in exact.items():
        world = skill.partition(".")[0]
        name = GROUPS.get(world, world)
        before = groups.get(name, (0, 0))
        groups[name] = before[0] + right, before[1] + seen
    return groups


def draw(curve: list[dict[str, Any]]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    last = curve[-1]
    figure.suptitle(f"{last['examples']:,} examples in {last['minutes']:.0f} minutes", fontsize=10)
    axes = figure.subplot_mosaic([["loss", "loss"], list(PANELS)], height_ratios=[1, 1.6])
    minutes = [check["minutes"] for check in curve]
    axes["loss"].plot(minutes, [check["loss"] for check in curve], color="#000000", linewidth=1)
    axes["loss"].set_yscale("log")
    axes["loss"].set_title("loss of a step")
    axes["loss"].grid()
    for title, colours in PANELS.items():
        draw_groups(axes[title], curve, colours)
        axes[title].set_title(f"{title}: whole replies as expected")
        axes[title].set_xlabel("minutes")
    return figure


def draw_groups(axes: "Axes", curve: list[dict[str, Any]], colours: dict[str, str]) -> None:
    for group, colour in colours.items():
        points = []
        for end in (i for i, check in enumerate(curve) if group in check["groups"]):
            counts = [check["groups"].get(group, (0, 0)) for check in curve[max(0, end + 1 - WINDOW): end + 1]]
            share = sum(right for right, _ in counts) / sum(seen for _, seen in counts)
            points.append((curve[end]["minutes"], 100 * share))
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, label=group)
    axes.set_ylim(-2, 102)
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.grid()
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    raise SystemExit(run(main))
