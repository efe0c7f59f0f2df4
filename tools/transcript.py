"""Show one held-out question and everything that the model does with it, unedited.

Questions are numbered as in `tools.evaluate`: the index of a failure in its report draws the same question here.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from reference.command import OneLineParser, run, write_whole
from reference.errors import UsageError

from .question_options import add_question_options, check_question_options, seed_of

if TYPE_CHECKING:
    from .evaluate import Examinee

EXAMPLES = """examples:
  python -m tools.transcript pictures.describe --index 3 --media .
  python -m tools.transcript swarm.orchestrate --parts 6 --backend optimized
"""
SUFFIXES = {"image": "png", "video": "png", "pdf": "pdf"}  # a video is an animated PNG
INDENT = "    "


@dataclass(frozen=True)
class Transcript:
    """A whole run. `subagents` are the messages of each subagent, in the order in which tasks were assigned."""

    tools: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    subagents: list[list[dict[str, Any]]]
    finish_reason: str
    critical_steps: int | None  # None where there is one reply
    right: bool
    expected: str

    def text(self, names: "MediaNames") -> str:
        """What was said by whom, in the order in which it happened."""
        lines = [f"tools: {', '.join(map(signature, self.tools))}"] if self.tools else []
        lines += spoken(self.messages, names)
        for number, messages in enumerate(self.subagents, start=1):
            lines += [f"subagent {number}:", *(INDENT + line for line in spoken(messages, names))]
        return "\n".join([*lines, *self.verdict()])

    def verdict(self) -> Iterator[str]:
        ending = "" if self.finish_reason == "stop" else f" (ended by {self.finish_reason})"
        yield f"=> right{ending}" if self.right else f"=> WRONG{ending}; expected: {self.expected}"
        if self.subagents:
            yield f"=> {len(self.subagents)} subagents, {self.critical_steps} critical steps"


@dataclass
class MediaNames:
    """Gives every medium a name, and keeps its bytes under that name."""

    stem: str
    files: dict[str, bytes | Image.Image] = field(default_factory=dict)

    def __call__(self, part: dict[str, Any]) -> str:
        kind = part["type"]
        medium = part[kind]
        if (known := next((name for name, other in self.files.items() if other is medium), None)) is None:
            known = f"{self.stem}-{len(self.files) + 1}.{SUFFIXES[kind]}"
            self.files[known] = medium
        return known

    def write(self, folder: Path) -> None:
        for name, medium in self.files.items():
            with write_whole(folder / name) as temporary:
                if isinstance(medium, bytes):
                    temporary.write_bytes(medium)
                else:
                    medium.save(temporary, "PNG")


def spoken(messages: Sequence[dict[str, Any]], names: Callable[[dict[str, Any]], str]) -> Iterator[str]:
    """Lines of a conversation."""
    for message in messages:
        content = message["content"] or ""
        if not isinstance(content, str):
            content = "\n".join(part["text"] if part["type"] == "text" else f"[{names(part)}]" for part in content)
        if message["role"] == "assistant":
            if message.get("reasoning_content"):
                yield from labelled("thinks", message["reasoning_content"])
            if content:
                yield from labelled("answers", content)
            for call in message.get("tool_calls") or []:
                yield f"calls: {call['id']} {call['function']['arguments']}"
        else:
            yield from labelled(message.get("tool_call_id") or message["role"], content)


def labelled(label: str, text: str) -> Iterator[str]:
    """Lines of a text, the first behind its label, the others below the first."""
    first, *others = text.split("\n")
    yield f"{label}: {first}".rstrip()
    yield from ((INDENT + line).rstrip() for line in others)


def signature(tool: dict[str, Any]) -> str:
    function = tool["function"]
    return f"{function['name']}({', '.join(function.get('parameters', {}).get('properties', {}))})"


def transcribe(skill: str, index: int, examinee: "Examinee", options: argparse.Namespace) -> Transcript:
    """Ask the question, and let tools and subagents do what the model has them do; without tools it has one reply."""
    from reference.agent import run_agents
    from reference.conversation import Conversation

    from . import evaluate, evaluate_episodes
    from .worlds import episode

    seed, responder = seed_of(index, options), examinee.responder(options)
    if skill not in episode.SKILLS:
        sample = evaluate.draw_question(skill, index, options)
        conversation = Conversation(examinee.processor, sample.messages, None, sample.thinking, seed)
        responder.submit(conversation)
        [(_, generated)] = responder.collect()
        reply, finish_reason = conversation.add_reply(generated), generated.finish_reason
        right = finish_reason == "stop" and sample.check(reply.content)
        return Transcript([], conversation.messages, [], finish_reason, None, right, sample.content)
    drawn = evaluate_episodes.draw(skill, index, options)
    environment = drawn.new_environment()
    agent = evaluate_episodes.agent_for(examinee.processor, drawn, environment, not options.instant, seed)
    [result] = run_agents(responder, [agent])
    right = evaluate_episodes.is_right(drawn, environment, result)
    subagents = [subagent.messages for subagent in getattr(result, "subagents", [])]
    return Transcript(agent.conversation.tools, result.messages, subagents, result.finish_reason,
                      result.critical_steps, right, drawn.demonstration[-1].content)  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m tools.transcript", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("skill", metavar="SKILL", help="such as pictures.describe, tools.chain or conversation")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="which question (default: 0)")
    parser.add_argument("--media", type=Path, metavar="DIR", help="write pictures, videos and documents to this folder")
    add_question_options(parser)
    parser.set_defaults(batch=16)  # rows of the optimized backend: an agent and its subagents
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> None:
    from .evaluate import evaluators
    from .evaluate_episodes import check_lengths
    from .worlds.rewording import WORDINGS

    check_question_options(options)
    if options.skill not in evaluators():
        raise UsageError(f"{options.skill}: no such skill. Expected one of {', '.join(evaluators())}.")
    if options.reworded and options.skill not in WORDINGS:
        raise UsageError(f"--reworded: {options.skill} has no other wordings. Expected one of {', '.join(WORDINGS)}.")
    check_lengths([options.skill], options)
    if options.index < 0:
        raise UsageError(f"--index is {options.index}; expected 0 or more.")
    if options.media and not options.media.is_dir():
        raise UsageError(f"--media {options.media}: not a folder. Make it first, or name another one.")


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    check(options)
    from reference.prompt import Processor

    from .evaluate import open_backend

    examinee = open_backend(options, Processor.from_directory(options.model))
    transcript = transcribe(options.skill, options.index, examinee, options)
    names = MediaNames(f"{options.skill}-{options.index}")
    print(transcript.text(names))
    if options.media:
        names.write(options.media)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
