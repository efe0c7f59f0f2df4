"""What a person at a terminal sees of one reply: thinking and text as they stream, tool calls, speed.

The answer goes to stdout and nothing else does, so it can be piped; thinking (dimmed), progress and speed go to stderr.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .replies import Content, Event, Reasoning, Reply
from .request import Request

if TYPE_CHECKING:
    import torch

    from .generation import Answer
    from .prompt import Processor, Prompt

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class ReplyPrinter:
    """Prints the events of one reply as they come, and its tool calls in one line each at the end."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.spinner = ExitStack()
        self.is_thinking = False
        self.colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")

    def wait(self, text: str) -> None:
        """Show that something happens until the first event."""
        self.spinner.enter_context(progress(text, self.quiet))

    def __call__(self, event: Event) -> None:
        self.spinner.close()
        if isinstance(event, Reasoning) and not self.quiet:
            if not self.is_thinking:
                note(DIM if self.colours else "", end="")
                self.is_thinking = True
            note(event.text, end="")
        elif isinstance(event, Content):
            self.stop()
            sys.stdout.write(event.text)
            sys.stdout.flush()

    def stop(self) -> None:
        """Leave the terminal as it was: no spinner, no dimmed text."""
        self.spinner.close()
        if self.is_thinking:
            note(PLAIN if self.colours else "")
            self.is_thinking = False

    def finish(self, reply: Reply) -> None:
        self.stop()
        if reply.content and not reply.content.endswith("\n"):
            print()
        for call in reply.tool_calls:
            print(f"{call.name}({call.arguments})  # {call.id}")
        sys.stdout.flush()
        if reply.dropped_calls and not self.quiet:
            plural = "s" if reply.dropped_calls > 1 else ""
            note(f"left out {reply.dropped_calls} tool call{plural} that could not be read")


def note(text: str, end: str = "\n") -> None:
    """Say something that is not the answer."""
    print(text, end=end, file=sys.stderr, flush=True)


def progress(text: str, quiet: bool) -> AbstractContextManager[object]:
    """A spinner on stderr while the block runs; nothing unless a person is looking."""
    if quiet or not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


def speed_line(answer: "Answer", load_s: float, first_token_s: float) -> str:
    """The figures of one answer. first_token_s is how long the person waited for its first token."""
    return (f"load {load_s:.2f} s, prefill {answer.num_prompt_tokens} tokens at {answer.prefill_tok_s:.0f} tok/s, "
            f"decode {answer.num_completion_tokens} tokens at {answer.decode_tok_s:.1f} tok/s, "
            f"first token after {first_token_s:.2f} s, peak {peak_rss_mb():.0f} MB")


def peak_rss_mb() -> float:
    """The most memory that this process has held, in 10^6 bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@dataclass(frozen=True)
class Speaker:
    """A loaded model that answers to the terminal."""

    model: "torch.nn.Module"
    processor: "Processor"
    quiet: bool
    load_s: float

    def turn(self, request: Request) -> Reply:
        """One turn of a chat."""
        asked_at = time.perf_counter()
        prompt = self.processor.prompt(request.messages, request.tools, request.thinking)
        return self.stream(request, prompt, asked_at)

    def stream(self, request: Request, prompt: "Prompt", asked_at: float) -> Reply:
        """Print the reply as it comes. asked_at: when the wait for the first token began."""
        waited_s = time.perf_counter() - asked_at
        printer = ReplyPrinter(self.quiet)
        printer.wait(f"reading {len(prompt.input_ids)} tokens")
        try:
            result = self.answer(request, prompt, printer)
        finally:
            printer.stop()
        printer.finish(result.reply)
        if not self.quiet:
            note(speed_line(result, self.load_s, waited_s + result.prefill_s))
        return result.reply

    def answer(self, request: Request, prompt: "Prompt", on_event: Callable[[Event], None]) -> "Answer":
        from .generation import answer

        return answer(self.model, self.processor, prompt, request, on_event)


def as_document(result: "Answer", load_s: float) -> dict[str, Any]:
    """What --json prints."""
    timing = {"load_s": load_s, "prefill_s": result.prefill_s, "decode_s": result.decode_s,
              "prefill_tok_s": result.prefill_tok_s, "decode_tok_s": result.decode_tok_s, "peak_rss_mb": peak_rss_mb()}
    return {"message": result.reply.to_message(), "finish_reason": result.finish_reason,
            "usage": {"prompt_tokens": result.num_prompt_tokens, "completion_tokens": result.num_completion_tokens},
            "timing": {name: round(value, 4) for name, value in timing.items()}}
