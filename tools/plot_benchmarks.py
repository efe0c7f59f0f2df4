"""Draw what `tools.bench` measured: one SVG per report, the same bytes for the same report.

Colours mean the same engines in every figure; solid is compiled, dashed is not.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import OneLineParser, read_json, run, write_whole
from reference.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXAMPLES = """examples:
  python -m tools.plot_benchmarks
  python -m tools.plot_benchmarks docs/benchmarks/bench-full-width.json --out .
"""

REPORTS, FIGURES = Path("docs/benchmarks"), Path("docs/figures")
# Colours that people with any colour vision tell apart. Source: Okabe and Ito 2008, jfly.uni-koeln.de/color. Each
# family has a marker, too, for prints in grey. The first start that fits an engine's name is its family.
FAMILIES = {
    "reference": ("#000000", "o"),
    "optimized INT4": ("#D55E00", "D"),
    "optimized": ("#0072B2", "s"),
    "transformers": ("#CC79A7", "^"),
}
# Text stays text: readers can search and hear it, and a change of one figure is a change of one line. A machine without
# DejaVu Sans shows another font; hardly any is wider, so labels still do not collide.
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "kimi", "font.sans-serif": ["DejaVu Sans", "sans-serif"], "font.size": 9,
    "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "grid.color": "#DDDDDD", "grid.linewidth": 0.6,
}  # fmt: skip
WIDTH_IN, ROW_IN, HEADER_IN = 9.0, 2.9, 1.0
BAR_ROW_IN = 0.46  # of one engine, with a bar for each of two contexts
HEADROOM = 1.12  # of the highest value: the axis goes on above it
LABEL_ROOM, LABEL_ROOM_HALF = 1.2, 1.6  # the same for bars with a figure behind them, in a panel of half the width


@dataclass(frozen=True)
class Spread:
    """Rounds of one measurement."""

    median: float
    low: float
    high: float


Curve = dict[int, Spread]  # by context, or by number of tokens


@dataclass
class Report:
    """One report of `tools.bench`. Curves and shares are by engine; a panel without any is not drawn."""

    title: str
    subtitle: str
    decode: dict[str, Curve] = field(default_factory=dict)
    prefill: dict[str, Curve] = field(default_factory=dict)
    shares: dict[str, dict[int, float]] = field(default_factory=dict)  # of the memory bandwidth, while decoding
    experts: dict[str, Curve] = field(default_factory=dict)

    def engines(self) -> list[str]:
        return list(dict.fromkeys([*self.decode, *self.experts]))


@dataclass(frozen=True)
class Look:
    """How an engine is drawn."""

    color: str
    marker: str
    compiled: bool

    def line(self) -> dict[str, Any]:
        return {"color": self.color, "marker": self.marker, "markersize": 5, "linewidth": 1.6,
                "linestyle": "-" if self.compiled else (0, (4, 1.5)),
                "markerfacecolor": self.color if self.compiled else "white"}  # fmt: skip

    def bar(self) -> dict[str, Any]:
        fill = self.color if self.compiled else f"{self.color}40"  # a quarter opaque
        return {"facecolor": fill, "edgecolor": self.color, "linestyle": "-" if self.compiled else (0, (4, 1.5))}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    paths = args.reports or sorted(REPORTS.glob("bench-*.json"))
    if not paths:
        raise UsageError(f"{REPORTS}: no bench-*.json there. Name a report that tools.bench --json wrote.")
    targets = {args.out / f"{path.stem}.svg": path for path in paths}
    if len(targets) < len(paths):
        raise UsageError("two reports have the same name, and so would their figures. Draw one at a time.")
    reports = {target: read_report(path) for target, path in targets.items()}
    save = figure_saver()
    args.out.mkdir(parents=True, exist_ok=True)
    for target, report in reports.items():
        save(partial(draw, report), report.title, target)
        print(target)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.plot_benchmarks", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("reports", metavar="FILE.json", type=Path, nargs="*",
                        help=f"what tools.bench --json wrote (default: every bench-*.json in {REPORTS})")  # fmt: skip
    parser.add_argument("--out", metavar="DIR", type=Path, default=FIGURES,
                        help=f"folder of the figures, made if it is missing (default: {FIGURES})")  # fmt: skip
    return parser.parse_args(argv)


def read_report(path: Path) -> Report:
    """Raises UsageError if the file is no report of `tools.bench` or names an engine without a colour."""
    found = read_json(path, "a report of tools.bench")
    try:
        report = convert(found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UsageError(f"{path}: no report of tools.bench ({what}). Expected what its --json writes.") from None
    if not report.decode:
        raise UsageError(f"{path}: a report without engines, nothing to draw. Measure again with tools.bench --json.")
    if unknown := [name for name in report.engines() if not name.startswith(tuple(FAMILIES))]:
        raise UsageError(f'{path}: engine "{unknown[0]}" has no colour: its name starts with none of '
                         f"{', '.join(FAMILIES)}. Give it one in FAMILIES of tools/plot_benchmarks.py.")  # fmt: skip
    return report


def convert(found: dict[str, Any]) -> Report:
    """Raises what Python raises where the layout is another one, ValueError where a value cannot be drawn."""
    quiet = "" if found["quiet"] else f"; the machine was not quiet, load average {found['load_average_before']:.1f}"
    machine = f"{found['threads']} threads, torch {found['torch']}, {found['cpu_capability']}"
    rounds = f"Medians of {found['repeats']} rounds, bars from the slowest to the fastest"
    report = Report(f"{found['model']}, {found['dtype']}, {machine}", rounds + quiet)
    for context, engines in by_number(found["contexts"]):
        for name, figures in engines.items():
            report.decode.setdefault(name, {})[context] = spread(figures["decode_tok_s"])
            report.prefill.setdefault(name, {})[context] = spread(figures["prefill_tok_s"])
            share = positive(figures["gb_per_s"]) / positive(found["bandwidth_gb_s"])
            report.shares.setdefault(name, {})[context] = share
    for num_tokens, engines in by_number(found.get("experts", {})):
        for name, figures in engines.items():
            report.experts.setdefault(name, {})[num_tokens] = spread(figures["ms"])
    return report


def by_number(entries: dict[str, Any]) -> list[tuple[int, Any]]:
    """Entries whose keys are numbers of tokens, smallest first."""
    numbered = sorted((int(key), value) for key, value in entries.items())
    if numbered and numbered[0][0] < 1:
        raise ValueError(f"{numbered[0][0]} tokens")
    return numbered


def spread(figures: dict[str, float]) -> Spread:
    found = Spread(*(positive(figures[key]) for key in ("median", "min", "max")))
    if not found.low <= found.median <= found.high:
        raise ValueError(f"median {found.median:g} is not between min and max")
    return found


def positive(value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{value:g} where a measured value belongs")
    return value


def look_of(engine: str) -> Look:
    color, marker = next(look for start, look in FAMILIES.items() if engine.startswith(start))
    return Look(color, marker, engine.endswith(", compiled"))


def figure_saver() -> Callable[[Callable[[], "Figure"], str, Path], None]:
    """A function (how to draw it, title, path) that makes an SVG file. Raises UsageError without matplotlib."""
    try:
        from matplotlib import style
    except ImportError:
        raise UsageError("matplotlib is not installed. Install the dev extra: pip install -e '.[dev]'.") from None

    def save(draw_figure: Callable[[], "Figure"], title: str, path: Path) -> None:
        with style.context(STYLE, after_reset=True):  # whatever the user's matplotlibrc says
            figure, metadata = draw_figure(), {"Title": title, "Date": None, "Creator": None}
            with write_whole(path) as temporary:
                figure.savefig(temporary, format="svg", metadata=metadata)

    return save


def draw(report: Report) -> "Figure":
    """The whole figure: speeds above, the share of the bandwidth and the experts below, engines once at the foot."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    lower_in = max(BAR_ROW_IN * len(report.shares) + 0.8, ROW_IN if report.experts else 0.0)
    names = report.engines()
    legend_columns = 4 if len(names) <= 4 else 3  # more engines means compiled ones, which have longer names
    size = (WIDTH_IN, HEADER_IN + ROW_IN + lower_in + 0.2 * math.ceil(len(names) / legend_columns))
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08, hspace=0.04, wspace=0.04)
    figure.suptitle(f"{report.title}\n{report.subtitle}", fontsize=10)
    grid = figure.add_gridspec(2, 2, height_ratios=(ROW_IN, lower_in))
    draw_speeds(figure.add_subplot(grid[0, 0]), report.decode, "Decoding")
    draw_speeds(figure.add_subplot(grid[0, 1]), report.prefill, "Prefill")
    if report.experts:
        draw_shares(figure.add_subplot(grid[1, 0]), report.shares, LABEL_ROOM_HALF)
        draw_experts(figure.add_subplot(grid[1, 1]), report.experts)
    else:
        draw_shares(figure.add_subplot(grid[1, :]), report.shares, LABEL_ROOM)
    handles = [Line2D([], [], label=name, **look_of(name).line()) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False, handlelength=3.5)
    return figure


def draw_speeds(axes: "Axes", curves: dict[str, Curve], title: str) -> None:
    axes.set_title(f"{title}: tokens per second, more is better")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    draw_curves(axes, curves, "tokens in context")
    axes.set_ylim(0, HEADROOM * highest(curves))


def draw_experts(axes: "Axes", curves: dict[str, Curve]) -> None:
    """Log-log, where time in proportion to tokens is a straight line; bars, which start at zero, are linear."""
    axes.set_title("One layer's routed experts: ms, less is better")
    draw_curves(axes, curves, "tokens at once")
    if len(numbers_of(curves)) > 1:
        axes.set_yscale("log")
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.minorticks_off()
    else:
        axes.set_ylim(0, HEADROOM * highest(curves))


def draw_curves(axes: "Axes", curves: dict[str, Curve], unit: str) -> None:
    """One line per engine over a logarithmic axis of numbers, or one bar per engine if there is a single number."""
    numbers = numbers_of(curves)
    axes.grid(axis="y")
    if len(numbers) == 1:
        for position, (name, curve) in enumerate(curves.items()):
            found = curve[numbers[0]]
            axes.bar(position, found.median, width=0.7, **look_of(name).bar())
            axes.errorbar(position, found.median, error_bars([found]), color="black", capsize=3, linewidth=1)
        axes.set_xticks([])
        axes.set_xlabel(f"{unit}: {numbers[0]:,}")
        return
    # Engines stand a little beside each other, or their bars from slowest to fastest would hide each other.
    step = (numbers[-1] / numbers[0]) ** 0.012
    for position, (name, curve) in enumerate(curves.items()):
        shift = step ** (position - (len(curves) - 1) / 2)
        medians = [found.median for found in curve.values()]
        axes.errorbar([number * shift for number in curve], medians, error_bars(curve.values()), capsize=2.5,
                      elinewidth=1, **look_of(name).line())  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axes.minorticks_off()
    axes.set_xlabel(unit)


def draw_shares(axes: "Axes", shares: dict[str, dict[int, float]], label_room: float) -> None:
    """Two bars per engine, of its smallest and its largest context, or one if it has but one.

    The axis is `label_room` times as long as the longest bar, for the figure behind it.
    """
    axes.set_title("Decoding: share of memory bandwidth")
    for position, (name, by_context) in enumerate(shares.items()):
        contexts = sorted({min(by_context), max(by_context)})
        for row, context in enumerate(contexts):
            share, y = by_context[context], position + 0.38 * (row - (len(contexts) - 1) / 2)
            axes.barh(y, share, height=0.32, **look_of(name).bar())
            label = f"{100 * share:.1f} % at {context:,}"
            axes.annotate(label, (share, y), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(shares)), list(shares))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    axes.set_xlim(0, label_room * max(max(by_context.values()) for by_context in shares.values()))


def numbers_of(curves: dict[str, Curve]) -> list[int]:
    return sorted({number for curve in curves.values() for number in curve})


def highest(curves: dict[str, Curve]) -> float:
    return max(found.high for curve in curves.values() for found in curve.values())


def error_bars(found: Iterable[Spread]) -> list[list[float]]:
    """As matplotlib wants them: distances down, then distances up."""
    spreads = list(found)
    return [[one.median - one.low for one in spreads], [one.high - one.median for one in spreads]]


if __name__ == "__main__":
    raise SystemExit(run(main))
