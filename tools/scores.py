"""What an evaluation found, per skill, and how two evaluations of the same questions differ.

A report keeps a digit per question, 1 for right and 0 for wrong, in the order of the questions. So any two reports of
the same questions can be compared question by question: thinking and instant, two checkpoints, two backends.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reference.command import read_json
from reference.errors import UsageError

from .intervals import paired_interval, wilson_interval

NUM_FAILURES = 5
ALL = "all"  # name of the total over every skill
# What decides which questions are asked, by option.
SAME_QUESTIONS = {
    "seed": "--seed", "n_per_skill": "--n", "shapes": "--shapes", "tokens": "--tokens", "calls": "--calls",
    "parts": "--parts", "reworded": "--reworded",
}  # fmt: skip
# What else a reader of the report has to know.
DESCRIBED_BY = (
    "command", "model_sha256", "int4_sha256", "experts", "backend", "mode", "temperature", "top_p", "seconds", "cpu",
    "threads", "torch",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of one question.

    `question` is all that makes it this question and no other, as text. `refused`: the model said that it cannot do
    this; None where saying so may be right. `failure` is a wrong answer with everything around it. `features` are those
    of the question, and of the thinking (tools/question_features.py). `critical_steps` are those of an agent's run.
    """

    question: str
    right: bool
    refused: bool | None
    failure: dict[str, Any] | None
    features: dict[str, str]
    critical_steps: int | None = None


@dataclass
class Score:
    """The outcomes of one skill, in the order of its questions, and the seconds it took to get them."""

    skill: str
    outcomes: list[Outcome]
    seconds: float

    @property
    def right(self) -> int:
        return sum(outcome.right for outcome in self.outcomes)

    def as_dict(self) -> dict[str, Any]:
        """What stands in the report; the first few wrong answers are to be read by a person."""
        inside = [outcome.refused for outcome in self.outcomes if outcome.refused is not None]
        questions = "\n".join(outcome.question for outcome in self.outcomes)
        failures = [outcome.failure for outcome in self.outcomes if outcome.failure is not None]
        steps = [outcome.critical_steps for outcome in self.outcomes if outcome.critical_steps is not None]
        return {
            **share(self.skill, self.right, len(self.outcomes)),
            "refused": sum(inside),
            "could_refuse": len(inside),
            **({"critical_steps": steps} if steps else {}),
            "seconds": round(self.seconds, 1),
            "questions_sha256": hashlib.sha256(questions.encode()).hexdigest(),
            "outcomes": "".join(str(int(outcome.right)) for outcome in self.outcomes),
            "right_by": tally(self.outcomes),
            "failures": failures[:NUM_FAILURES],
        }


def tally(outcomes: Sequence[Outcome]) -> dict[str, dict[str, list[int]]]:
    """For each feature and each of its values: how many right answers to how many questions."""
    counts: dict[str, dict[str, list[int]]] = {}
    for outcome in outcomes:
        for name, value in outcome.features.items():
            count = counts.setdefault(name, {}).setdefault(value, [0, 0])
            count[0] += outcome.right
            count[1] += 1
    return {name: {value: values[value] for value in sorted(values, key=natural)} for name, values in counts.items()}


def natural(text: str) -> list[str | int]:
    """A key to sort by: numbers in a text in the order of their size."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def share(skill: str, right: int, n: int) -> dict[str, Any]:
    """`right` of `n` as every report says it."""
    return {"skill": skill, "right": right, "n": n, "accuracy": right / n, "interval_95": wilson_interval(right, n)}


def with_totals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of skills, and behind them one for every group of several: `numbers` from `numbers.add` and so on."""
    totals = []
    for group in dict.fromkeys(row["skill"].partition(".")[0] for row in rows):
        members = [row for row in rows if row["skill"].partition(".")[0] == group]
        if len(members) > 1:
            totals.append(share(group, sum(row["right"] for row in members), sum(row["n"] for row in members)))
    return [*rows, *totals]


def read_report(path: Path) -> dict[str, Any]:
    """A report that `tools.evaluate --json` printed. Raises UsageError for anything else."""
    report = read_json(path, "a report of tools.evaluate")
    try:
        for row in skill_rows(report):
            if not set(row["outcomes"]) <= {"0", "1"} or row["outcomes"].count("1") != row["right"]:
                raise ValueError(f"the outcomes of {row['skill']} are not its {row['right']} right answers")
            if len(row["outcomes"]) != row["n"] or row["n"] != report["n_per_skill"]:
                raise ValueError(f"{row['skill']} has {len(row['outcomes'])} outcomes")
            if not isinstance(row["questions_sha256"], str):
                raise ValueError(f"{row['skill']} does not say which questions it had")
            if not (isinstance(row["failures"], list) and all(len(one["expected"]) for one in row["failures"])):
                raise ValueError(f"{row['skill']} does not say which answers were wrong")
            check_numbers(row, "accuracy", "refused", "could_refuse")
        if missing := [key for key in (*SAME_QUESTIONS, *DESCRIBED_BY) if key not in report]:
            raise ValueError(f"it lacks {missing[0]}")
        if not skill_rows(report):
            raise ValueError("it lacks skills")
        for row in report["skills"]:
            low, high = row["interval_95"]
            check_numbers(row | {"low": low, "high": high}, "right", "n", "low", "high")
        check_numbers(report, "seconds", "threads", "temperature", "top_p", "seed")
        lengths = {key: report[key] for key in ("tokens", "calls", "parts") if report[key] is not None}
        check_numbers(lengths, *lengths)
        if not all(isinstance(report[key], str) for key in ("command", "model_sha256", "experts", "backend", "mode")):
            raise ValueError("it does not say in words what it is of")
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise UsageError(f"{path}: is no report of this tools.evaluate ({error}). Make one: python -m tools.evaluate "
                         f"--json > {path}") from None  # fmt: skip
    return report


def check_numbers(values: dict[str, Any], *names: str) -> None:
    """Raises ValueError or LookupError unless all of these are numbers."""
    for name in names:
        if not isinstance(values[name], int | float):
            raise ValueError(f"{name} is {values[name]!r}")


def skill_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of single skills, without totals."""
    return [row for row in report["skills"] if "outcomes" in row]


def check_comparable(settings: dict[str, Any], skills: Sequence[str], other: dict[str, Any], path: Path) -> None:
    """Raise UsageError unless the other report has these skills and was made with these settings."""
    for name, option in SAME_QUESTIONS.items():
        if other[name] != settings[name]:
            raise UsageError(f"{path}: was made with {name} {other[name]}, and this is {settings[name]}; only the same "
                             f"questions can be compared. Give both the same {option}.")  # fmt: skip
    if missing := [skill for skill in skills if skill not in {row["skill"] for row in skill_rows(other)}]:
        raise UsageError(f"{path}: has no {missing[0]}, so there is nothing to compare with. Name the skills that it "
                         "has with --skill.")  # fmt: skip


def differences(report: dict[str, Any], other: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """Accuracy of `report` minus that of `other`, of each of its skills, each group of several and all together.

    `path` names the other report in the error, UsageError, that there is if the questions were others.
    """
    rows, there = skill_rows(report), {row["skill"]: row for row in skill_rows(other)}
    check_comparable(report, [row["skill"] for row in rows], other, path)
    for row in rows:
        check_questions(row, other, path)
    return compare({row["skill"]: (row["outcomes"], there[row["skill"]]["outcomes"]) for row in rows})


def check_questions(row: dict[str, Any], other: dict[str, Any], path: Path) -> None:
    """Raise UsageError unless the other report's row of this skill is about the same questions, word by word."""
    there = next(one for one in skill_rows(other) if one["skill"] == row["skill"])
    if row["questions_sha256"] != there["questions_sha256"]:
        raise UsageError(f"{path}: its questions of {row['skill']} are others, although seed and number agree: the "
                         "worlds drew them differently then. Use one revision for both reports.")  # fmt: skip


def compare(outcomes: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """By skill two texts of outcomes of the same questions: a row for each, each group of several, and all."""
    groups: dict[str, list[str]] = {}
    for skill in outcomes:
        groups.setdefault(skill.partition(".")[0], []).append(skill)
    groups[ALL] = list(outcomes)
    rows = [difference(skill, *texts) for skill, texts in outcomes.items()]
    for group, skills in groups.items():
        if len(skills) > 1:
            first, second = ("".join(outcomes[skill][side] for skill in skills) for side in (0, 1))
            rows.append(difference(group, first, second))
    return rows


def difference(skill: str, first: str, second: str) -> dict[str, Any]:
    """Only questions count that one of the two got right and the other did not."""
    pairs = list(zip(first, second, strict=True))
    only_first, only_second, n = pairs.count(("1", "0")), pairs.count(("0", "1")), len(pairs)
    return {
        "skill": skill, "n": n, "accuracy": first.count("1") / n, "other_accuracy": second.count("1") / n,
        "only_this": only_first, "only_other": only_second, "difference": (only_first - only_second) / n,
        "interval_95": paired_interval(only_first, only_second, n),
    }  # fmt: skip
