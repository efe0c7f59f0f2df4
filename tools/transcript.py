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
from reference.generate import SHIPPED_MODEL

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

    seed, responder = (options.seed + index) % 2**63, examinee.responder(options)
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
    right = result.finish_reason == "stop" and drawn.judge(result.answer, environment)
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
    add_run_options(parser)
    return parser.parse_args(argv)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of `tools.evaluate` that decide what is asked and how it is answered."""
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="DIR",
                        help="checkpoint directory (default: the small model shipped here)")
    parser.add_argument("--backend", choices=("reference", "optimized"), default="reference",
                        help="which code runs the model (default: reference)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other seed, other questions (default: 0)")
    parser.add_argument("--instant", action="store_true", help="answer without thinking first")
    parser.add_argument("--shapes", type=int, choices=(1, 2, 3, 4), metavar="N",
                        help="pictures with exactly N shapes (default: one to four in turn)")
    parser.add_argument("--tokens", type=int, metavar="N", help="long texts of about N tokens")
    parser.add_argument("--calls", type=int, metavar="N", help="chains of N calls")
    parser.add_argument("--parts", type=int, metavar="N", help="tasks of N independent parts")
    parser.add_argument("--reworded", action="store_true", help="ask in ordinary words that no training uses")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0, greedy")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P", help="when sampling (default: 0.95)")
    parser.add_argument("--max-new-tokens", type=int, default=400, metavar="N",
                        help="tokens of one reply at most (default: 400)")
    parser.set_defaults(batch=16)  # rows of the optimized backend: an agent and its subagents


def check(options: argparse.Namespace) -> None:
    from reference.request import check_sampling, check_seed

    from .evaluate import evaluators

    if options.skill not in evaluators():
        raise UsageError(f"{options.skill}: no such skill. Expected one of {', '.join(evaluators())}.")
    if options.index < 0:
        raise UsageError(f"--index is {options.index}; expected 0 or more.")
    for name in ("tokens", "calls", "parts"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UsageError(f"--{name} is {value}; expected at least 1.")
    if options.media and not options.media.is_dir():
        raise UsageError(f"--media {options.media}: not a folder. Make it first, or name another one.")
    check_sampling(options.temperature, options.top_p)
    check_seed(options.seed)


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
