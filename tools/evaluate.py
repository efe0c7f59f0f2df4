"""Measure the shipped model: accuracy per skill on questions whose numbers, pictures and topics it never saw."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.command import OneLineParser, run
from reference.errors import UsageError

from .evaluate_episodes import check_lengths
from .question_options import add_question_options, check_positive, check_question_options, seed_of
from .scores import Outcome, Score, check_comparable, check_questions, differences, read_report, with_totals

if TYPE_CHECKING:
    import torch

    from reference.prompt import Processor
    from reference.replies import Reply
    from reference.responder import Responder

    from .worlds.sample import Sample

WINDOW = 4  # batches of questions that are drawn at once and sorted
BATCH_TOKENS = 8192  # of all prompts of a batch with their padding: long ones run in smaller batches
MAY_REFUSE = ("self", "outside")  # worlds whose right answers say what the model cannot do


@dataclass(frozen=True)
class Examinee:
    """The model under test, and what reads for it and runs it."""

    model: "torch.nn.Module"
    generate: Callable
    processor: "Processor"
    batches_at_once: int  # for one call of generate
    responder: Callable[[argparse.Namespace], "Responder"]  # of replies in many steps


# A kind of skill: asks its questions, calls advance(number of questions, number of right ones) now and then, and
# returns the outcomes in the order of the questions.
Evaluator = Callable[[str, Examinee, argparse.Namespace, Callable[[int, int], None]], list[Outcome]]


def evaluators() -> dict[str, Evaluator]:
    """Every skill in its usual order, with the function that evaluates it."""
    from .evaluate_episodes import run_episodes
    from .worlds import episode
    from .worlds.sample import CONVERSATION, SKILLS

    return dict.fromkeys([*SKILLS, CONVERSATION], ask_once) | dict.fromkeys(episode.SKILLS, run_episodes)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m tools.evaluate --skill numbers --n 200\n"
        "  python -m tools.evaluate --skill pictures.count --instant --seed 7 --json",
    )
    parser.add_argument(
        "--skill",
        action="append",
        metavar="NAME",
        help="a skill (numbers.add), a group (numbers) or conversation; repeatable (default: numbers, "
        "pictures, self, outside and conversation)",
    )
    parser.add_argument("--n", type=int, default=200, metavar="N", help="questions per skill (default: 200)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="questions answered together (default: 64)")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="REPORT.json",
        help="compare with an earlier --json report of the same questions, one by one",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object, with the outcome of every question and the first wrong answers",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    add_question_options(parser)
    options = parser.parse_args(argv)
    check_positive(options, "n", "batch")
    check_question_options(options)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    skills = choose_skills(options.skill, options.reworded)
    check_lengths(skills, options)
    other = read_report(options.against) if options.against else None
    if other:
        check_comparable(questions_of(options), skills, other, options.against)
    from reference.prompt import Processor

    from .fingerprint import sibling_fingerprint

    sibling_fingerprint(options.model)  # a damaged mark is better known before the questions than after them
    examinee = open_backend(options, Processor.from_directory(options.model))
    rows = []
    with progress_bar(len(skills) * options.n, options) as advance:
        for skill in skills:
            started = time.perf_counter()
            outcomes = evaluators()[skill](skill, examinee, options, partial(advance, skill))
            rows.append(Score(skill, outcomes, time.perf_counter() - started).as_dict())
            if other:
                check_questions(rows[-1], other, options.against)  # as soon as it can be known
    report = make_report(rows, examinee, options, sys.argv[1:] if argv is None else list(argv))
    if other:
        report["against"] = {"command": other["command"], "skills": differences(report, other, options.against)}
    if options.json:
        print(json.dumps(report, ensure_ascii=False, indent=1))
    else:
        print_tables(report)
    return 0


def choose_skills(names: Sequence[str] | None, reworded: bool = False) -> list[str]:
    """The skills to measure, in their usual order. Raises UsageError for a name that is none."""
    from .worlds.rewording import WORDINGS
    from .worlds.sample import BY_DEFAULT, CONVERSATION

    known = list(WORDINGS) if reworded else list(evaluators())
    chosen: set[str] = set()
    for name in names or [name for name in BY_DEFAULT if name != CONVERSATION or not reworded]:
        found = [skill for skill in known if skill == name or skill.startswith(f"{name}.")]
        if not found:
            groups = dict.fromkeys(skill.partition(".")[0] for skill in known)
            raise UsageError(
                f"--skill {name}: no such skill or group{' with other wordings' if reworded else ''}. "
                f"Expected one of {', '.join(groups)}, or a skill such as {', '.join(known[:2])}."
            )
        chosen.update(found)
    return [skill for skill in known if skill in chosen]


def open_backend(options: argparse.Namespace, processor: "Processor") -> Examinee:
    """The model in float32, and the `generate` that runs it.

    The reference lets a batch run out before the next one begins, and agents act one after the other. The optimized
    model fills a free row at once: it gets a whole window of questions, and runs as many as a batch has at a time.
    """
    if options.backend == "optimized":
        import optimized.generation as generation
        import optimized.model as model
        from optimized.responder import Responder

        rows = {"max_rows": options.batch}
    else:
        import reference.generation as generation
        import reference.model as model
        from reference.responder import Responder

        rows = {}

    def responder(options: argparse.Namespace) -> "Responder":
        sampling = {"temperature": options.temperature, "top_p": options.top_p}
        return Responder(loaded, max_new_tokens=options.max_new_tokens, stop_ids=processor.stop_ids, **sampling, **rows)

    loaded = model.load_model(options.model)
    return Examinee(loaded, partial(generation.generate, **rows), processor, WINDOW if rows else 1, responder)


def ask_once(
    skill: str, examinee: Examinee, options: argparse.Namespace, advance: Callable[[int, int], None]
) -> list[Outcome]:
    """Questions that one reply answers, a batch at a time.

    A window of them is sorted by the length of the prompts: without that, every short one is padded to a long one.
    """
    from reference.generation import read_reply

    processor, outcomes = examinee.processor, {}
    for start in range(0, options.n, WINDOW * options.batch):
        window = range(start, min(start + WINDOW * options.batch, options.n))
        samples = {index: draw_question(skill, index, options) for index in window}
        prompts = {
            index: processor.prompt(sample.messages, thinking=sample.thinking) for index, sample in samples.items()
        }
        lengths = {index: len(prompt.input_ids) for index, prompt in prompts.items()}
        for indices in batches(lengths, options.batch * examinee.batches_at_once,
                               BATCH_TOKENS * examinee.batches_at_once):  # fmt: skip
            # When sampling, every question has a seed of its own, so a result does not depend on the batch size.
            results = examinee.generate(
                examinee.model,
                [prompts[index] for index in indices],
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                seed=[seed_of(index, options) for index in indices],
                stop_ids=processor.stop_ids,
            )
            for index, result in zip(indices, results, strict=True):
                reply = read_reply(result.ids, processor.tokenizer, samples[index].thinking)
                outcomes[index] = judge(skill, index, samples[index], reply, result.finish_reason)
            advance(len(indices), sum(outcomes[index].right for index in indices))
    return [outcomes[index] for index in range(options.n)]


def draw_question(skill: str, index: int, options: argparse.Namespace) -> "Sample":
    """Question `index` of this run. Pictures have one to four shapes in turn, so that easy ones do not dominate."""
    from .worlds.sample import draw

    shapes = [options.shapes or 1 + index % 4]
    return draw(skill, options.seed, index, "held-out", thinking=not options.instant, num_shapes=shapes,
                num_tokens=options.tokens, reworded=options.reworded)  # fmt: skip


def batches(lengths: dict[int, int], max_rows: int, max_tokens: int) -> Iterator[list[int]]:
    """Keys of `lengths`, longest first, cut into batches that stay within both limits when padded to their longest."""
    batch: list[int] = []
    for index in sorted(lengths, key=lambda index: -lengths[index]):
        if batch and (len(batch) == max_rows or (len(batch) + 1) * lengths[batch[0]] > max_tokens):
            yield batch
            batch = []
        batch.append(index)
    yield batch


def judge(skill: str, index: int, sample: "Sample", reply: "Reply", finish_reason: str) -> Outcome:
    """An answer that was cut off counts as wrong."""
    from .question_features import question_features, thinking_kind
    from .worlds.self_knowledge import refuses

    right = finish_reason == "stop" and sample.check(reply.content)
    refused = None if sample.skill.partition(".")[0] in MAY_REFUSE else refuses(reply.content)
    question = json.dumps([sample.task.question, sample.content, sample.content_key])
    features = question_features(skill, sample)
    if sample.thinking:
        features["thinking"] = thinking_kind(sample.skill, sample.reasoning_content, reply.reasoning_content)
    wrong = None if right else failure(index, sample, reply, finish_reason)
    return Outcome(question, right, refused, wrong, features)


def failure(index: int, sample: "Sample", reply: "Reply", finish_reason: str) -> dict[str, Any]:
    """Everything needed to see what went wrong; `index` draws the same question again."""
    return {
        "index": index, "skill": sample.skill, "question": sample.task.question, "content_key": sample.content_key,
        "expected": sample.content, "answer": reply.content, "expected_reasoning": sample.reasoning_content,
        "reasoning": reply.reasoning_content, "finish_reason": finish_reason,
    }  # fmt: skip


def progress_bar(total: int, options: argparse.Namespace) -> AbstractContextManager[Any]:
    """A function (skill, questions, right ones) that moves a bar on stderr; silent unless that is a terminal."""
    if options.quiet or not sys.stderr.isatty():
        return nullcontext(lambda skill, questions, right: None)
    return Bar(total)


class Bar:
    """How far, at what rate, which skill, and how it is doing."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.progress.add_task("loading", total=total)
        self.counts: dict[str, tuple[int, int]] = {}  # by skill: questions so far, right ones

    def __enter__(self) -> Any:
        self.progress.start()
        return self.advance

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def advance(self, skill: str, questions: int, right: int) -> None:
        n, so_far = self.counts.get(skill, (0, 0))
        self.counts[skill] = n, so_far = n + questions, so_far + right
        self.progress.update(self.task, advance=questions, description=f"{skill} {so_far}/{n} right")


def questions_of(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that decide which questions are asked."""
    shapes = options.shapes or "one to four"
    others = {name: getattr(options, name) for name in ("tokens", "calls", "parts", "reworded")}
    return {"seed": options.seed, "shapes": shapes, **others, "n_per_skill": options.n}


def make_report(
    rows: Sequence[dict[str, Any]], examinee: Examinee, options: argparse.Namespace, arguments: Sequence[str]
) -> dict[str, Any]:
    """One JSON document. Apart from the command, which is as it was typed, it holds no path of this machine."""
    import torch

    from .bench import cpu_name
    from .fingerprint import fingerprint, shown, sibling_fingerprint

    config = examinee.processor.config
    return {
        "command": " ".join(["python -m tools.evaluate", *arguments]), "model": shown(options.model),
        "model_sha256": fingerprint(options.model), "int4_sha256": sibling_fingerprint(options.model),
        "experts": config.quantization or "unquantised",
        "backend": options.backend, "mode": "instant" if options.instant else "thinking",
        "temperature": options.temperature, "top_p": options.top_p, **questions_of(options),
        "max_new_tokens": options.max_new_tokens, "batch": options.batch,
        "cpu": cpu_name(), "torch": torch.__version__, "threads": torch.get_num_threads(),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "skills": with_totals(rows),
    }  # fmt: skip


def print_tables(report: dict[str, Any]) -> None:
    """A line per skill, with a total for every group of several, and a second table where there is a comparison."""
    shapes = "" if report["shapes"] == "one to four" else f", pictures with {report['shapes']}"
    print(
        f"{report['mode']} mode, temperature {report['temperature']:g}, seed {report['seed']}, "
        f"held-out questions{shapes}"
    )
    print(f"{'skill':<20} {'accuracy':>9}  {'95 % interval':<16} {'n':>6}")
    for row in report["skills"]:
        low, high = row["interval_95"]
        print(f"{row['skill']:<20} {row['accuracy']:>8.1%}  {f'{low:.1%} to {high:.1%}':<16} {row['n']:>6}")
    if "against" in report:
        print(f"\nagainst {report['against']['command']}, question by question, in points")
        print(f"{'skill':<20} {'accuracy':>9} {'other':>8} {'difference':>11}  {'95 % interval':<16} {'n':>6}")
        for row in report["against"]["skills"]:
            low, high = (f"{100 * bound:+.1f}" for bound in row["interval_95"])
            print(
                f"{row['skill']:<20} {row['accuracy']:>8.1%} {row['other_accuracy']:>8.1%} "
                f"{100 * row['difference']:>+11.1f}  {f'{low} to {high}':<16} {row['n']:>6}"
            )


if __name__ == "__main__":
    raise SystemExit(run(main))
