"""Read raw generated text on stdin and print the reasoning, the content and the tool calls in it as JSON."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reference.command import OneLineParser, read_json, run
from reference.errors import UsageError
from reference.replies import Reply, ReplyParser, TextReplyParser

EPILOG = """examples:
  echo 'Easy.</think>The answer is 4.' | python -m tools.parse_reply
  echo '[["t", "quoted </think>"], ["s", "</think>"], ["t", "Hi"]]' | python -m tools.parse_reply --json-runs
"""


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.parse_reply",
        description="Read raw generated text on stdin and print its reasoning, content and tool calls as JSON.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--no-thinking", action="store_true", help="the prompt had not opened a think block")
    parser.add_argument("--tools", metavar="FILE.json", type=Path, help="the request's tools, to read damaged ids")
    parser.add_argument("--chunks", metavar="N", type=chunk_size, help="feed N characters at a time")
    parser.add_argument("--json-runs", action="store_true", help='stdin is [["s", control], ["t", text], ...]')
    args = parser.parse_args(argv)

    tools = read_tools(args.tools) if args.tools else None
    text = read_stdin()
    if args.json_runs:
        reply = parse_runs(read_runs(text), ReplyParser(not args.no_thinking, tools), args.chunks)
    else:
        reply = parse_text(text, TextReplyParser(not args.no_thinking, tools), args.chunks)
    # Half a surrogate pair, which JSON can spell and UTF-8 cannot hold, goes out as the escape it came in as.
    sys.stdout.buffer.write(json.dumps(asdict(reply), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    return 0


def chunk_size(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of characters; expected 1 or more")
    return int(text)


def read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8 text ({error}). Convert it to UTF-8.") from None


def read_tools(path: Path) -> list[dict[str, Any]]:
    tools = read_json(path, "the tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UsageError(f"{path}: not a list of tool declarations; expected a JSON list of objects.")
    return tools


def read_runs(text: str) -> list[tuple[str, str]]:
    """Read the runs of --json-runs. Raises UsageError naming the first that is none."""
    try:
        runs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"stdin is not valid JSON ({error}); --json-runs expects a list of runs.") from None
    if not isinstance(runs, list):
        raise UsageError('stdin is not a JSON list; --json-runs expects [["t", "text"], ["s", "</think>"], ...].')
    for index, run_ in enumerate(runs):
        if not (isinstance(run_, list) and len(run_) == 2 and run_[0] in ("s", "t") and isinstance(run_[1], str)):
            raise UsageError(f'run {index} on stdin is not ["s", control token] or ["t", text]. Correct it.')
    return [(kind, piece) for kind, piece in runs]


def pieces(text: str, size: int | None) -> list[str]:
    size = size or max(len(text), 1)
    return [text[start : start + size] for start in range(0, len(text), size)]


def parse_text(text: str, parser: TextReplyParser, size: int | None) -> Reply:
    for piece in pieces(text, size):
        parser.feed(piece)
    parser.finish()
    return parser.result()


def parse_runs(runs: list[tuple[str, str]], parser: ReplyParser, size: int | None) -> Reply:
    for kind, text in runs:
        if kind == "s":
            parser.control(text)
        else:
            for piece in pieces(text, size):
                parser.text(piece)
    parser.finish()
    return parser.result()


if __name__ == "__main__":
    raise SystemExit(run(main))
