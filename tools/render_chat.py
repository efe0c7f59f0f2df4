"""Print the exact prompt that a conversation becomes, as text, as runs or as token ids."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reference.chat_template import prompt_text, render
from reference.command import OneLineParser, read_json, run
from reference.errors import UsageError
from reference.messages import check_messages
from reference.tokenizer import Run, Tokenizer

DEFAULT_MODEL = Path(__file__).resolve().parents[1] / "reference" / "nano"

EPILOG = """examples:
  echo '{"messages": [{"role": "user", "content": "Hi"}]}' | python -m tools.render_chat /dev/stdin
  echo '{"messages": [], "thinking": false}' | python -m tools.render_chat /dev/stdin --ids --model reference/nano
"""


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.render_chat",
        description="Print the exact prompt that a conversation becomes, without running any model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file",
        metavar="FILE.json",
        type=Path,
        help='{"messages": [...], "tools": [...] or null, "thinking": true, "add_generation_prompt": true}',
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--ids", action="store_true", help="print token ids, one pad per image and per video chunk")
    form.add_argument("--parts", action="store_true", help='print runs: ["s", control], ["t", text], ["p", video]')
    parser.add_argument("--model", metavar="DIR", type=Path, default=DEFAULT_MODEL, help="whose tokenizer --ids uses")
    args = parser.parse_args(argv)

    request = read_request(args.file)
    runs = render(**request)
    if args.ids:
        output = json.dumps(prompt_ids(runs, request["messages"], args.model)) + "\n"
    elif args.parts:
        output = json.dumps(runs, ensure_ascii=False) + "\n"
    else:
        output = prompt_text(runs)
    sys.stdout.buffer.write(output.encode("utf-8"))
    return 0


def read_request(path: Path) -> dict[str, Any]:
    """Read FILE.json and fill in its defaults. Fields that rendering does not know are left out."""
    request = read_json(path, "the conversation")
    if not isinstance(request, dict) or "messages" not in request:
        raise UsageError(f'{path}: no "messages" found; expected {{"messages": [...]}}. Put the list into an object.')
    return {
        "messages": request["messages"],
        "tools": request.get("tools"),
        "thinking": request.get("thinking", True),
        "add_generation_prompt": request.get("add_generation_prompt", True),
    }


def prompt_ids(runs: list[Run], messages: list[dict[str, Any]], model: Path) -> list[int]:
    """Encode the prompt. Only videos are opened: how many pads one becomes depends on its length."""
    tokenizer = Tokenizer.from_directory(model)
    if any(run_.kind == "p" for run_ in runs):
        runs = replace_videos(runs, messages, model)
    return tokenizer.encode_runs(runs)


def replace_videos(runs: list[Run], messages: list[dict[str, Any]], model: Path) -> list[Run]:
    """Put the chunk prompts of each video in the place of its placeholder. Headers are read, no pictures decoded."""
    from reference.document import DEFAULT_MAX_PAGES
    from reference.image import DEFAULT_MAX_PIXELS
    from reference.media import Loader, chunk_runs
    from reference.media_config import MediaConfig

    has_settings = (model / "preprocessor_config.json").exists()  # a folder with only a tokenizer has none
    config = MediaConfig.from_directory(model) if has_settings else MediaConfig()
    loader = Loader(config, fixes=(), max_pixels=DEFAULT_MAX_PIXELS, max_pages=DEFAULT_MAX_PAGES)
    videos = iter([chunk_runs(loader.medium(part, where).video_plan) for where, part in video_parts(messages)])
    return [new for run_ in runs for new in (next(videos) if run_.kind == "p" else [run_])]


def video_parts(messages: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every video of the conversation in reading order, with where it stands."""
    for i, message in enumerate(check_messages(messages)):
        for j, part in enumerate(message["content"] if isinstance(message["content"], list) else []):
            if part.get("type") in ("video", "video_url"):
                yield f"messages[{i}].content[{j}]", part


if __name__ == "__main__":
    raise SystemExit(run(main))
