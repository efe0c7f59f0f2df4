"""Measure the shipped model: accuracy per skill on questions whose numbers, pictures and topics it never saw."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import OneLineParser, run
from reference.errors import UsageError
from reference.generate import SHIPPED_MODEL

if TYPE_CHECKING:
    import torch

    from reference.prompt import Processor
    from reference.replies import Reply

    from .worlds.sample import Sample

NUM_FAILURES = 5
Z_95 = 1.959964                # two-sided 95 % of the normal distribution


@dataclass
class Score:
    """What one skill reached. `failures` are the first few wrong answers, to be read by a person."""

    skill: str
    right: int = 0
    n: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, index: int, sample: "Sample", reply: "Reply", finish_reason: str) -> None:
        """Count one reply; an answer that was cut off counts as wrong."""
        self.n += 1
        if finish_reason == "stop" and sample.check(reply.content):
            self.right += 1
        elif len(self.failures) < NUM_FAILURES:
            self.failures.append(failure(index, sample, reply, finish_reason))

    def as_dict(self) -> dict[str, Any]:
        low, high = wilson_interval(self.right, self.n)
        return {"skill": self.skill, "right": self.right, "n": self.n, "accuracy": self.right / self.n,
                "interval_95": [low, high], "failures": self.failures}


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share. Source: Wilson 1927, doi 10.1080/01621459.1927.10502953."""
    share, z2 = right / n, Z_95 * Z_95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def failure(index: int, sample: "Sample", reply: "Reply", finish_reason: str) -> dict[str, Any]:
    """Everything needed to see what went wrong; `index` draws the same question again."""
    return {
        "index": index, "skill": sample.skill, "question": sample.task.question, "content_key": sample.content_key,
        "expected": sample.content, "answer": reply.content, "expected_reasoning": sample.reasoning_content,
        "reasoning": reply.reasoning_content, "finish_reason": finish_reason,
    }  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m tools.evaluate --skill numbers --n 200\n"
               "  python -m tools.evaluate --skill pictures.count --instant --seed 7 --json")
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="DIR",
                        help="checkpoint directory (default: the small model shipped here)")
    parser.add_argument("--backend", choices=("reference", "optimized"), default="reference",
                        help="which code runs the model (default: reference)")
    parser.add_argument("--skill", action="append", metavar="NAME",
                        help="a skill (numbers.add), a group (numbers) or conversation; repeatable (default: what the "
                             "shipped model was trained on)")
    parser.add_argument("--n", type=int, default=200, metavar="N", help="questions per skill (default: 200)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other seed, other questions (default: 0)")
    parser.add_argument("--instant", action="store_true", help="answer without thinking first")
    parser.add_argument("--shapes", type=int, choices=(1, 2, 3, 4), metavar="N",
                        help="pictures with exactly N shapes (default: one to four in turn)")
    parser.add_argument("--tokens", type=int, metavar="N",
                        help="long texts of about N tokens (default: 1,000 to 16,000)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0, greedy")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P", help="when sampling (default: 0.95)")
    parser.add_argument("--max-new-tokens", type=int, default=400, metavar="N",
                        help="an answer longer than this counts as wrong (default: 400)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="questions answered together (default: 32)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the first wrong answers")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    options = parser.parse_args(argv)
    for name in ("n", "batch", "max_new_tokens", "tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; expected at least 1")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    skills = choose_skills(options.skill)
    from reference.prompt import Processor
    from reference.request import check_sampling, check_seed

    check_sampling(options.temperature, options.top_p)
    check_seed(options.seed)
    processor = Processor.from_directory(options.model)
    model, generate = open_backend(options.backend, options.model)
    scores = [Score(skill) for skill in skills]
    with progress_bar(len(skills) * options.n, options) as advance:
        for score in scores:
            evaluate_skill(score, model, generate, processor, options, advance)
    print_report(scores, options, sys.argv[1:] if argv is None else list(argv))
    return 0


def choose_skills(names: Sequence[str] | None) -> list[str]:
    """The skills to measure, in their usual order. Raises UsageError for a name that is none."""
    from .worlds.sample import CONVERSATION, SKILLS, TRAINED, skills_of

    chosen: set[str] = set()
    for name in names or TRAINED:
        found = [CONVERSATION] if name == CONVERSATION else skills_of(name)
        if not found:
            groups = sorted({skill.partition(".")[0] for skill in SKILLS})
            raise UsageError(f"--skill {name}: no such skill or group. Expected one of {', '.join(groups)}, "
                             f"{CONVERSATION}, or a skill such as {', '.join(list(SKILLS)[:2])}.")
        chosen.update(found)
    return [skill for skill in [*SKILLS, CONVERSATION] if skill in chosen]


def open_backend(backend: str, directory: Path) -> tuple["torch.nn.Module", Callable]:
    """The model in float32, and the `generate` that runs it."""
    if backend == "optimized":
        import optimized.generation as generation
        import optimized.model as model
    else:
        import reference.generation as generation
        import reference.model as model
    return model.load_model(directory), generation.generate


def evaluate_skill(score: Score, model: "torch.nn.Module", generate: Callable, processor: "Processor",
                   options: argparse.Namespace, advance: Any) -> None:
    """Ask this skill's questions, a batch at a time."""
    from reference.generation import read_reply

    for indices in batches(options.n, options.batch):
        samples = [draw_question(score.skill, index, options) for index in indices]
        prompts = [processor.prompt(sample.messages, thinking=sample.thinking) for sample in samples]
        # When sampling, every question has a seed of its own, so a result does not depend on the batch size.
        results = generate(model, prompts, max_new_tokens=options.max_new_tokens, temperature=options.temperature,
                           top_p=options.top_p, seed=[(options.seed + index) % 2**63 for index in indices],
                           stop_ids=processor.stop_ids)
        for index, sample, result in zip(indices, samples, results, strict=True):
            reply = read_reply(result.ids, processor.tokenizer, sample.thinking)
            score.add(index, sample, reply, result.finish_reason)
        advance(len(indices), score)


def draw_question(skill: str, index: int, options: argparse.Namespace) -> "Sample":
    """Question `index` of this run. Pictures have one to four shapes in turn, so that easy ones do not dominate."""
    from .worlds.sample import draw

    shapes = [options.shapes or 1 + index % 4]
    return draw(skill, options.seed, index, "held-out", thinking=not options.instant, num_shapes=shapes,
                num_tokens=options.tokens)


def batches(n: int, size: int) -> Iterator[range]:
    for start in range(0, n, size):
        yield range(start, min(start + size, n))


def progress_bar(total: int, options: argparse.Namespace) -> AbstractContextManager[Any]:
    """A function (questions, score) that moves a bar on stderr; silent unless that is a terminal."""
    if options.quiet or not sys.stderr.isatty():
        return nullcontext(lambda questions, score: None)
    return Bar(total)


class Bar:
    """How far, at what rate, which skill, and how it is doing."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.progress.add_task("loading", total=total)

    def __enter__(self) -> Any:
        self.progress.start()
        return self.advance

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def advance(self, questions: int, score: Score) -> None:
        self.progress.update(self.task, advance=questions, description=f"{score.skill} {score.right}/{score.n} right")


def print_report(scores: Sequence[Score], options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """One JSON document, or a table with a total for every group of several skills."""
    rows = [score.as_dict() for score in scores] + [total.as_dict() for total in group_totals(scores)]
    mode = "instant" if options.instant else "thinking"
    if options.json:
        command = " ".join(["python -m tools.evaluate", *arguments])
        print(json.dumps({
            "command": command, "model": str(options.model), "backend": options.backend, "mode": mode,
            "temperature": options.temperature, "seed": options.seed, "shapes": options.shapes or "one to four",
            "n_per_skill": options.n, "skills": rows,
        }, ensure_ascii=False, indent=1))
        return
    shapes = f", pictures with {options.shapes}" if options.shapes else ""
    print(f"{mode} mode, temperature {options.temperature:g}, seed {options.seed}, held-out questions{shapes}")
    print(f"{'skill':<20} {'accuracy':>9}  {'95 % interval':<16} {'n':>6}")
    for row in rows:
        low, high = row["interval_95"]
        print(f"{row['skill']:<20} {row['accuracy']:>8.1%}  {f'{low:.1%} to {high:.1%}':<16} {row['n']:>6}")


def group_totals(scores: Sequence[Score]) -> list[Score]:
    """`numbers` from `numbers.add` and so on, where more than one skill of the group was measured."""
    totals = []
    for group in dict.fromkeys(score.skill.partition(".")[0] for score in scores):
        members = [score for score in scores if score.skill.partition(".")[0] == group]
        if len(members) > 1:
            totals.append(Score(group, sum(score.right for score in members), sum(score.n for score in members)))
    return totals


if __name__ == "__main__":
    raise SystemExit(run(main))
