"""Write docs/transcripts.md: one held-out question of each kind, with everything that the shipped model does.

Which question it is was fixed before any answer was seen: number 1 of seed 0. Equal weights give equal pages on one
machine; on another, a close choice between two tokens may fall differently.
"""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reference.command import OneLineParser, run, write_whole
from reference.errors import UsageError
from reference.generate import SHIPPED_MODEL

from . import transcript

EXAMPLES = """examples:
  python -m tools.report_transcripts
  python -m tools.report_transcripts --out .
"""
INDEX = 1


@dataclass(frozen=True)
class Entry:
    title: str
    options: str  # of tools.transcript, with the skill

    @property
    def arguments(self) -> list[str]:
        skill, *others = shlex.split(self.options)
        return [skill, "--index", str(INDEX), *others]


ENTRIES = (
    Entry("A product, thinking first", "numbers.multiply"),
    Entry("The same, instantly", "numbers.multiply --instant"),
    Entry("Which decimal is bigger", "numbers.decimals"),
    Entry("A picture described", "pictures.describe"),
    Entry("The same, instantly", "pictures.describe --instant"),
    Entry("Shapes counted", "pictures.count"),
    Entry("Printed text", "signs.read"),
    Entry("A picture as SVG", "svg.write"),
    Entry("A video", "videos.motion"),
    Entry("A PDF document", "documents.page"),
    Entry("One tool among several", "tools.choose"),
    Entry("A chain of calls, each with what the one before it found", "tools.chain"),
    Entry("A tool and a picture", "tools.picture"),
    Entry("A tool that returns a picture", "tools.crop"),
    Entry("A swarm with six parts", "swarm.orchestrate --parts 6"),
    Entry("The same task for a single agent", "swarm.single --parts 6"),
    Entry("A long text", "needles.code --tokens 300"),
    Entry("Several turns", "conversation"),
    Entry("What it can do", "self.abilities"),
    Entry("What it cannot", "outside.question"),
)
INTRO = """# What the shipped model says

Unedited, greedy, one held-out question of each kind: number {index} of seed 0, fixed before any answer was seen. Worlds
that it has not learnt yet are here, too. How often it is right stands in [evaluation.md](evaluation.md). This page is
made by `python -m tools.report_transcripts`; every transcript has its own command, and `--index` shows any other
question.

`thinks` is what stands between `<think>` and `</think>`, `answers` what follows. The last line is the judgement of the
world that drew the question.
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if not args.out.is_dir():
        raise UsageError(f"--out {args.out}: not a folder. Make it first, or name another one.")
    from reference.prompt import Processor

    from .evaluate import open_backend

    media = args.out / "transcripts"
    media.mkdir(exist_ok=True)
    run_options = transcript.parse([ENTRIES[0].arguments[0], "--model", str(args.model)])
    examinee = open_backend(run_options, Processor.from_directory(args.model))
    sections = [INTRO.format(index=INDEX)]
    for entry in ENTRIES:
        options = transcript.parse(entry.arguments)
        names = transcript.MediaNames(f"{options.skill}-{INDEX}")
        text = transcript.transcribe(options.skill, INDEX, examinee, options).text(names)
        names.write(media)
        sections.append(section(entry, text, list(names.files)))
    page = args.out / "transcripts.md"
    with write_whole(page) as temporary:
        temporary.write_text("\n".join(sections), encoding="utf-8")
    print(page)
    return 0


def section(entry: Entry, text: str, media: Sequence[str]) -> str:
    command = f"    python -m tools.transcript {shlex.join(entry.arguments)}\n"
    shown = [f"![{name}](transcripts/{name})" if name.endswith(".png") else f"[{name}](transcripts/{name})"
             for name in media]  # fmt: skip
    return "\n".join([f"## {entry.title}\n", command, *([" ".join(shown) + "\n"] if shown else []),
                      f"```text\n{text}\n```\n"])  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.report_transcripts", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="DIR",
                        help="checkpoint directory (default: the small model shipped here)")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR",
                        help="where transcripts.md and transcripts/ go (default: docs)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(run(main))
