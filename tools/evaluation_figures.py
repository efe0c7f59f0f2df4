"""The two figures of docs/evaluation.md: accuracy per skill with its interval, and tokens per expert."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .expert_load import HIGHEST, LOWEST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that people with any colour vision tell apart, and a marker for prints in grey, as in plot_benchmarks.
LOOKS = {"thinking": ("#0072B2", "o"), "instant": ("#D55E00", "s")}
WIDTH_IN, ROW_IN, HEADER_IN = 9.0, 0.27, 1.5


def draw_accuracy(rows_by_mode: dict[str, dict[str, dict[str, Any]]], subtitle: str) -> "Figure":
    """A line per skill, a mark with its 95 % interval per mode; rows_by_mode holds a report's rows by skill."""
    from matplotlib.figure import Figure

    skills = list(dict.fromkeys(skill for rows in rows_by_mode.values() for skill in rows))
    figure = Figure(figsize=(WIDTH_IN, HEADER_IN + ROW_IN * len(skills)), layout="constrained")
    figure.suptitle(f"Right answers to held-out questions\n{subtitle}", fontsize=10)
    axes = figure.subplots()
    for offset, (mode, rows) in zip((-0.14, 0.14), rows_by_mode.items(), strict=False):
        color, marker = LOOKS[mode]
        places = [skills.index(skill) + offset for skill in rows]
        shares = [100 * row["accuracy"] for row in rows.values()]
        bounds = [[100 * bound for bound in row["interval_95"]] for row in rows.values()]
        errors = [[max(0.0, share - low) for share, (low, _) in zip(shares, bounds, strict=True)],
                  [max(0.0, high - share) for share, (_, high) in zip(shares, bounds, strict=True)]]  # fmt: skip
        axes.errorbar(shares, places, xerr=errors, label=mode, linestyle="none", color=color, marker=marker,
                      markersize=5, capsize=2.5, elinewidth=1)  # fmt: skip
    axes.set_yticks(range(len(skills)), skills)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.xaxis.set_major_formatter("{x:g} %")
    axes.grid(axis="x")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_expert_load(report: dict[str, Any]) -> "Figure":
    """A column per layer, a mark per expert, on a logarithmic axis with the mean in its middle."""
    from matplotlib.figure import Figure

    layers: Sequence[dict[str, Any]] = report["layers"]
    figure = Figure(figsize=(WIDTH_IN, 3.2), layout="constrained")
    figure.suptitle(f"Tokens per routed expert, as a share of its layer's mean\n{report['n']:,} held-out examples, "
                    f"lowest {report['lowest']:.2f}, highest {report['highest']:.2f}", fontsize=10)  # fmt: skip
    axes = figure.subplots()
    for position, layer in enumerate(layers):
        shares = sorted(layer["share_of_mean"], reverse=True)
        places = [position + 0.6 * (i / max(1, len(shares) - 1) - 0.5) for i in range(len(shares))]
        axes.scatter(places, shares, s=22, color="#0072B2")
    for bound in (LOWEST, HIGHEST):
        axes.axhline(bound, color="#D55E00", linestyle="--", linewidth=1)
        axes.annotate(f"limit {bound:g}", (len(layers) - 0.52, bound), (0, 3), textcoords="offset points", ha="right")
    axes.axhline(1, color="black", linewidth=0.6)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(layers)), [f"layer {layer['layer']}" for layer in layers])
    axes.set_xlim(-0.5, len(layers) - 0.5)
    return figure
