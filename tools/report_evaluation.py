"""Write docs/evaluation.md from the committed reports: every target, what was reached, and examples of failures.

The reports are what `tools.evaluate --json` and `tools.expert_load --json` printed. Equal reports give equal pages. The
tables of figures in the README and in the model card, where they lie beside that folder, are made anew from them, too.
"""

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reference.command import OneLineParser, read_json, run, write_whole
from reference.errors import UsageError
from reference.generate import SHIPPED_MODEL

from .evaluation_figures import draw_accuracy, draw_expert_load
from .evaluation_targets import (
    GREEDY_INT4,
    MODES,
    SAMPLED,
    TARGETS,
    THINKING,
    Found,
    Reports,
    compare_pairs,
    files_of,
    percent,
    signed,
)
from .expert_load import HIGHEST, LOWEST
from .fingerprint import fingerprint
from .plot_benchmarks import figure_saver
from .scores import read_report, skill_rows

EXAMPLES = """examples:
  python -m tools.report_evaluation
  python -m tools.report_evaluation --reports docs/benchmarks --out docs
"""

NOT_MEASURED = "not measured yet"
ACCURACY_FIGURE, LOAD_FIGURE = "evaluation.svg", "expert-load.svg"
NEARLY_ALWAYS, FEWEST = 0.97, 20  # skills below the one are split, where there are as many questions as the other
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"  # around a table that is made here


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    reports = read_folder(args.reports)
    page, tables = make_page(reports), {name: make_table(reports) for name, make_table in TABLES.items()}
    save, figures = figure_saver(), args.out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    best = {mode: found for mode in MODES if (found := reports.best(any_length=True, mode=mode, **GREEDY_INT4))}
    rows = {mode: {skill: found.row for skill, found in by_skill.items()} for mode, by_skill in best.items()}
    questions = describe_n(found for by_skill in best.values() for found in by_skill.values())
    subtitle = f"greedy, with 95 % intervals; {questions} questions a skill"
    save(partial(draw_accuracy, rows, subtitle), "Accuracy per skill", figures / ACCURACY_FIGURE)
    for load in reports.loads.values():
        save(partial(draw_expert_load, load), "Tokens per expert", figures / LOAD_FIGURE)
    target = args.out / "evaluation.md"
    with write_whole(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(target)
    for name, table in tables.items():
        if renew_table(args.out.parent / name, table):
            print(args.out.parent / name)
    return 0


def renew_table(page: Path, table: str) -> bool:
    """Put the table between the marks of a page; False if it is not there or has no marks."""
    if not page.exists():
        return False
    before, found, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        return False
    with write_whole(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}{table}\n{END}{after}", encoding="utf-8")
    return True


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.report_evaluation", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--reports", type=Path, default=Path("docs/benchmarks"), metavar="DIR",
                        help="where evaluate-*.json and expert-load.json are (default: docs/benchmarks)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR",
                        help="where evaluation.md and figures/ go (default: docs)")  # fmt: skip
    return parser.parse_args(argv)


def read_folder(folder: Path) -> Reports:
    """Raises UsageError if there is no evaluation, or a file that is none."""
    if not folder.is_dir():
        raise UsageError(f"--reports {folder}: not a folder; expected one with evaluate-*.json.")
    evaluations = {path.name: read_report(path) for path in in_order(folder, "evaluate-*")}
    if not evaluations:
        raise UsageError(f"{folder}: no evaluate-*.json there. Make them: python -m tools.evaluate_all --out {folder}")
    loads = {path.name: read_load(path) for path in in_order(folder, "expert-load")}
    weights = {name: report["model_sha256"] if report["experts"] == "int4" else report["int4_sha256"]
               for name, report in evaluations.items()} | {name: load["model_sha256"] for name, load in loads.items()}
    first, *others = weights
    for other in others:
        if weights[other] != weights[first]:
            raise UsageError(f"{folder}: {first} and {other} are of different weights, and a page is of one training. "
                             "Evaluate it again, or put the others into another folder.")  # fmt: skip
    return Reports(evaluations, loads)


def in_order(folder: Path, stem: str) -> list[Path]:
    """By name without its ending: `evaluate-thinking` before `evaluate-thinking-sampled`, which sort the other way."""
    return sorted(folder.glob(f"{stem}.json"), key=lambda path: path.stem)


def read_load(path: Path) -> dict[str, Any]:
    load = read_json(path, "a report of tools.expert_load")
    try:
        complete = all(load[key] > 0 for key in ("n", "highest")) and load["lowest"] >= 0
        complete &= isinstance(load["model_sha256"], str)
        complete &= all(layer["share_of_mean"] and layer["layer"] >= 0 for layer in load["layers"])
    except (TypeError, LookupError) as error:
        raise UsageError(f"{path}: is no report of tools.expert_load ({error}). Make one: python -m tools.expert_load "
                         f"--json > {path}") from None  # fmt: skip
    if not (complete and load["layers"]):
        raise UsageError(f"{path}: has no loads of any layer. Make it again: python -m tools.expert_load --json")
    return load


def make_page(reports: Reports) -> str:
    parts = [
        intro(), targets_table(reports), skills_section(reports), features_section(reports), wording_section(reports),
        *(paired_section(reports, *section) for section in PAIRED_SECTIONS),
        load_section(reports), failures_section(reports), runs_section(reports),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def intro() -> str:
    return f"""# What can the shipped model do, and what not?

This page is made by `python -m tools.report_evaluation` from the JSON in [benchmarks](benchmarks), which
`python -m tools.evaluate --json` and `python -m tools.expert_load --json` print; nothing in it is typed by hand. The
questions are held out: nothing that was drawn for them, operands, picture, text or name, was asked in the training of
the same world ([worlds.md](worlds.md) tells of the lines of products in which some stood). Only those about the model
itself are not: nothing in them is drawn but the wording. The worlds that they come from are in `tools/worlds`.

Intervals are 95 %: Wilson's for a share; for a difference, which is always between two runs over the same questions,
that of Bonett and Price for paired data. They take every question for a new one. Those about the model itself come from
few wordings, and so do the other words for what is outside the worlds: there, intervals are too narrow.
`{NOT_MEASURED}` means that no report is in the folder.

A report keeps the outcome of every question, so any two can be compared: other weights, mode, backend or sampling.

    python -m tools.evaluate --skill numbers --json > thinking.json
    python -m tools.evaluate --skill numbers --instant --against thinking.json

## Targets

Thinking mode and greedy unless it says otherwise. The targets ask for 1,000 questions or more. A figure that falls
short stays as it is; what limits it is told in [training.md](training.md#what-limits-it). Paired rows are about the
skills that their sections below name."""


def targets_table(reports: Reports) -> str:
    lines = ["| what | target | reached | 95 % interval | n | seed | met | report |", "| --- " * 8 + "|"]
    for target in TARGETS:
        found = target.find(reports)
        if found is None:
            lines.append(f"| {target.title} | {target.wanted} | {NOT_MEASURED} |  |  |  |  |  |")
            continue
        met = "" if found.met is None else "yes" if found.met else "no"
        links = ", ".join(link(file) for file in found.files)
        lines.append(f"| {target.title} | {target.wanted} | {found.figure} | {found.interval} | {found.n:,} | "
                     f"{found.seeds} | {met} | {links} |")  # fmt: skip
    return "\n".join(lines)


def short_targets_table(reports: Reports) -> str:
    """For readers in a hurry: what, target, reached."""
    lines = ["| what | target | reached | n |", "| --- | --- | --- | --- |"]
    for target in TARGETS:
        if (found := target.find(reports)) is None:
            lines.append(f"| {target.title} | {target.wanted} | {NOT_MEASURED} |  |")
        else:
            interval = f" ({found.interval})" if found.interval else ""
            lines.append(f"| {target.title} | {target.wanted} | {found.figure}{interval} | {found.n:,} |")
    return "\n".join(lines)


def skills_section(reports: Reports) -> str:
    return "\n".join(["## Every skill", "", f"![accuracy per skill, thinking and instant](figures/{ACCURACY_FIGURE})",
                      "", skills_table(reports)])  # fmt: skip


def skills_table(reports: Reports) -> str:
    best = {mode: reports.best(any_length=True, mode=mode, **GREEDY_INT4) for mode in MODES}
    lines = ["| skill | thinking | instant | n |", "| --- | --- | --- | --- |"]
    for skill in dict.fromkeys(skill for by_skill in best.values() for skill in by_skill):
        cells = [best[mode].get(skill) for mode in MODES]
        shares = [with_interval(found.row) if found else NOT_MEASURED for found in cells]
        lines.append(f"| {skill} | {' | '.join(shares)} | {describe_n(found for found in cells if found)} |")
    return "\n".join(lines)


TABLES = {"README.md": short_targets_table, "reference/nano/README.md": skills_table}  # by page


def features_section(reports: Reports) -> str:
    """Skills that are often wrong, split by what was asked and by how the model thought."""
    how = (f"Thinking, greedy: every skill below {percent(NEARLY_ALWAYS)}, its right answers split by what was asked, "
           f"where {FEWEST} questions or more are of a kind. The last split is by the model's own thinking: as the "
           "world would write it, of the right things with a wrong conclusion, size of the canvas, or reach over "
           "the tokens of a drawing, or other.")  # fmt: skip
    lines = ["## Where it goes wrong", "", how, "", "| skill | split by | right |", "| --- | --- | --- |"]
    for skill, found in reports.best(any_length=True, **THINKING).items():
        if found.row["accuracy"] < NEARLY_ALWAYS:
            lines += [f"| {skill} | {name} | {cells} |" for name, cells in split(found.row.get("right_by", {}))]
    return "\n".join(lines)


def split(right_by: dict[str, dict[str, list[int]]]) -> Iterable[tuple[str, str]]:
    """Each feature that tells some of the questions from others."""
    for name, counts in right_by.items():
        cells = [f"{value}: {percent(right / n)} of {n:,}" for value, (right, n) in counts.items() if n >= FEWEST]
        if len(cells) > 1:
            yield name, "; ".join(cells)


def wording_section(reports: Reports) -> str:
    """The same pictures, numbers and texts, asked for in words that no training uses."""
    title = "## Other words\n\n"
    usual, other = (reports.best(True, mode="thinking", reworded=reworded, **GREEDY_INT4) for reworded in (False, True))
    if not other:
        return f"{title}Questions in words that no training uses: {NOT_MEASURED}."
    sources = ", ".join(link(file) for file in files_of(other.values()))
    lines = [f"{title}Thinking, greedy: questions in ordinary words that no training uses (tools/worlds/rewording.py), "
             f"which makes them harder to understand but not to answer; {sources}.", "",
             "| skill | usual words | n | other words | n |", "| --- " * 5 + "|"]  # fmt: skip
    for skill, found in other.items():
        if skill in usual:
            cells = (f"{with_interval(one.row)} | {one.row['n']:,}" for one in (usual[skill], found))
            lines.append(f"| {skill} | {' | '.join(cells)} |")
    return "\n".join(lines)


PAIRED_SECTIONS = (
    ("Thinking against instant", "greedy", THINKING, GREEDY_INT4 | {"mode": "instant"}, "thinking", "instant"),
    ("Published sampling against greedy", "thinking, temperature 1.0, top-p 0.95", SAMPLED["thinking"], THINKING,
     "sampled", "greedy"),
    ("Published sampling against greedy, instant", "temperature 0.6, top-p 0.95", SAMPLED["instant"],
     GREEDY_INT4 | {"mode": "instant"}, "sampled", "greedy"),
    ("INT4 against the unquantised weights",
     "thinking, greedy; the float32 master weights of the same training, written at its end",
     THINKING, THINKING | {"experts": "unquantised"}, "INT4", "unquantised"),
    ("The optimized model against the reference", "thinking, greedy", THINKING | {"backend": "optimized"},
     THINKING | {"backend": "reference"}, "optimized", "reference"),
)  # fmt: skip


def paired_section(reports: Reports, title: str, how: str, first: dict[str, Any], second: dict[str, Any],
                   first_name: str, second_name: str) -> str:  # fmt: skip
    """Accuracy of both on the same questions, and the difference question by question."""
    pairs, how = reports.pairs(first, second), how[0].upper() + how[1:]
    if not pairs:
        return f"## {title}\n\n{how}: {NOT_MEASURED}."
    files = [files_of(pair[side] for pair in pairs.values()) for side in (0, 1)]
    sources = " against ".join(", ".join(link(file) for file in part) for part in files)
    lines = [f"## {title}", "", f"{how}; {sources}.", "",
             f"| skill | {first_name} | {second_name} | only {first_name} right | only {second_name} right | "
             "difference in points | 95 % interval | n |", "| --- " * 8 + "|"]  # fmt: skip
    for row in compare_pairs(pairs):
        low, high = row["interval_95"]
        name = f"**{row['skill']}**" if row["skill"] not in pairs else row["skill"]
        lines.append(f"| {name} | {percent(row['accuracy'])} | {percent(row['other_accuracy'])} | {row['only_this']} | "
                     f"{row['only_other']} | {signed(row['difference'])} | {signed(low)} to {signed(high)} | "
                     f"{row['n']:,} |")  # fmt: skip
    return "\n".join(lines)


def load_section(reports: Reports) -> str:
    title = "## Expert load\n\n"
    wanted = f"No expert should get less than {LOWEST:g} or more than {HIGHEST:g} times its layer's mean"
    if not reports.loads:
        return f"{title}{wanted}: {NOT_MEASURED}."
    [(file, load)] = reports.loads.items()
    verdict = "met" if load["lowest"] >= LOWEST and load["highest"] <= HIGHEST else "not met"
    return (f"{title}{wanted}. Over {load['n']:,} held-out examples of the training's mixture (documents left out, "
            f"pictures of full size), seed {load['seed']}, the lowest is {load['lowest']:.2f} and the highest "
            f"{load['highest']:.2f}: {verdict} ({link(file)}, "
            f"`{load['command']}`).\n\n![tokens per expert, layer by layer](figures/{LOAD_FIGURE})")  # fmt: skip


def failures_section(reports: Reports) -> str:
    """The first wrong answer of every skill: chosen by its place, not by its looks."""
    best = reports.best(any_length=True, **THINKING)
    parts = ["## Failures", "The first wrong answer of each skill, thinking and greedy, unedited. What it should think "
             "of a picture says what is in it."]  # fmt: skip
    for skill, found in best.items():
        for one in found.row["failures"][:1]:
            fields = {"question": one["question"], "should think": one["expected_reasoning"],
                      **({"calls": "\n".join(one["calls"])} if "calls" in one else {"thinks": one["reasoning"]}),
                      "should say": one["expected"], "says": one["answer"]}  # fmt: skip
            if one["finish_reason"] != "stop":
                fields["ended by"] = one["finish_reason"]
            lines = [line for label, text in fields.items() for line in labelled(label, text)]
            parts += [f"{skill}, question {one['index']} of seed {found.report['seed']}:", "\n".join(lines)]
    perfect = [skill for skill, found in best.items() if not found.row["failures"]]
    parts += [f"Without a wrong answer: {', '.join(perfect)}."] if perfect else []
    return "\n\n".join(parts)


def labelled(label: str, text: str) -> list[str]:
    """An indented code block, whatever is in the text: the label, then the lines below one another."""
    first, *others = text.split("\n") if text else ["(nothing)"]
    return [f"    {label + ':':<14}{first}".rstrip(), *(f"    {'':<14}{line}".rstrip() for line in others)]


def runs_section(reports: Reports) -> str:
    shipped = fingerprint(SHIPPED_MODEL)
    lines = ["## The runs", "", "The seconds are those of one machine, which other programs may have shared.", "",
             "| report | command | weights | questions | seconds | a second | CPU, threads | torch |",
             "| --- " * 8 + "|"]  # fmt: skip
    for file, report in reports.evaluations.items():
        questions, seconds = sum(row["n"] for row in skill_rows(report)), report["seconds"]
        cells = (link(file), f"`{report['command']}`", weights_of(report, shipped), f"{questions:,}", f"{seconds:,.0f}",
                 f"{questions / max(seconds, 0.1):.1f}", f"{report['cpu']}, {report['threads']}",
                 report["torch"])  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def weights_of(report: dict[str, Any], shipped: str) -> str:
    if report["model_sha256"] == shipped:
        return "the shipped ones"
    return "unquantised" if report["experts"] == "unquantised" else f"others, SHA-256 {report['model_sha256'][:12]}"


def describe_n(found: Iterable[Found]) -> str:
    return ", ".join(f"{n:,}" for n in sorted({one.row["n"] for one in found}))


def with_interval(row: dict[str, Any]) -> str:
    low, high = row["interval_95"]
    return f"{percent(row['accuracy'])} ({100 * low:.1f} to {100 * high:.1f})"


def link(file: str) -> str:
    return f"[{file.removesuffix('.json').removeprefix('evaluate-')}](benchmarks/{file})"


if __name__ == "__main__":
    raise SystemExit(run(main))
