"""Answer one prompt, or chat: text, pictures, videos and documents in, thinking, text and tool calls out."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chat_session import chat, media_part, user_message
from .command import OneLineParser, read_json, run
from .errors import UsageError
from .request import Request
from .terminal import Speaker, as_document, progress

if TYPE_CHECKING:
    import torch

SHIPPED_MODEL = Path(__file__).parent / "nano"
Load = Callable[[Path, "torch.dtype", str], "torch.nn.Module"]


def build_parser(program: str) -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f'examples:\n  {program} "What is 482 + 379?"\n'
               f'  {program} --image photo.png --instant --temperature 0 "Describe this image in detail."')
    parser.add_argument("prompt", nargs="?", metavar="PROMPT",
                        help="the question; without it, stdin, or an interactive chat if that is a terminal")
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="DIR",
                        help="checkpoint directory in the published layout (default: the small model shipped here)")
    for kind, what in (("image", "a picture"), ("video", "a video"), ("pdf", "a document")):
        parser.add_argument(f"--{kind}", dest="media", action="append", default=[], metavar="FILE",
                            type=lambda file, kind=kind: (kind, file),
                            help=f"attach {what}, before the text; repeatable, order holds across the media options")
    parser.add_argument("--messages", type=Path, metavar="FILE",
                        help='JSON {"messages": [...], "tools": [...]} in the OpenAI chat format, instead of PROMPT')
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON list of OpenAI tool declarations")
    parser.add_argument("--instant", action="store_true", help="answer without thinking first")
    parser.add_argument("--temperature", type=float, metavar="T",
                        help="0 is greedy (default: 1.0 thinking, 0.6 instant, as published)")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P",
                        help="sample from the likeliest tokens that hold this share (default: 0.95, as published)")
    parser.add_argument("--max-new-tokens", type=int, default=16384, metavar="N",
                        help="stop after N tokens, thinking included (default: 16384, or what the context leaves)")
    parser.add_argument("--seed", type=int, metavar="N", help="repeat the same sample (default: another one each time)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda, float32 on cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object with message, usage and timing")
    parser.add_argument("--quiet", action="store_true", help="nothing on stderr: no thinking, progress or speed")
    return parser


def main(argv: Sequence[str] | None = None, load: Load | None = None,
         parser: argparse.ArgumentParser | None = None) -> int:
    """`load(directory, dtype, device)` makes the model, the reference one if not given; `parser` may know more."""
    started = time.perf_counter()
    options = (parser or build_parser("python -m reference.generate")).parse_args(argv)
    sys.stderr.reconfigure(encoding="utf-8", errors="replace")
    request, is_chat = read_request(options)

    from .prompt import Processor

    processor = Processor.from_directory(options.model)
    # The prompt is built before the weights are read: what is wrong with it is said at once.
    prompt = None if is_chat else processor.prompt(request.messages, request.tools, request.thinking)
    num_tokens = request.max_new_tokens + (len(prompt.input_ids) if prompt else 0)
    with progress(f"loading {options.model}", options.quiet):
        model = open_model(options, min(num_tokens, processor.max_position_embeddings), load or load_reference)
    load_s = time.perf_counter() - started
    speaker = Speaker(model, processor, options.quiet, load_s)
    if is_chat:
        chat(speaker.turn, request, [media_part(kind, file) for kind, file in options.media])
    elif options.json:
        with progress(f"answering a prompt of {len(prompt.input_ids)} tokens", options.quiet):
            result = speaker.answer(request, prompt, lambda event: None)
        print(json.dumps(as_document(result, load_s), ensure_ascii=False))
    else:
        speaker.stream(request, prompt, asked_at=started)
    return 0


def read_request(options: argparse.Namespace) -> tuple[Request, bool]:
    """The request, and whether it is only the opening of a chat. Raises UsageError for options that contradict."""
    if options.messages:
        messages, tools, thinking = read_conversation(options)
        is_chat = False
    else:
        text = read_prompt(options)
        messages = [{"role": "system", "content": options.system}] if options.system is not None else []
        if text is not None:
            messages.append(user_message(text, [media_part(kind, file) for kind, file in options.media]))
        tools = read_tools(read_json(options.tools, "the tools"), options.tools) if options.tools else None
        thinking, is_chat = not options.instant, text is None
    sampling = options.temperature, options.top_p, options.max_new_tokens, options.seed
    return Request(messages, tools, thinking, *sampling), is_chat


def read_conversation(options: argparse.Namespace) -> tuple[list[Any], list[Any] | None, bool]:
    """Messages, tools and mode from the file of --messages."""
    beside = {"PROMPT": options.prompt is not None, "--system": options.system is not None,
              "--image, --video or --pdf": options.media}
    if given := [name for name, value in beside.items() if value]:
        raise UsageError(f"--messages contradicts {given[0]}; expected one of them. Put everything into the file.")
    file = options.messages
    content = read_json(file, "the conversation")
    if not isinstance(content, dict) or not isinstance(content.get("messages"), list) or not content["messages"]:
        raise UsageError(f'{file}: no messages found; expected {{"messages": [{{"role": "user", "content": "..."}}]}}. '
                         "See python -m tools.render_chat --help.")
    thinking = content.get("thinking", not options.instant)
    if not isinstance(thinking, bool):
        raise UsageError(f"{file}: thinking is {json.dumps(thinking)}; expected true or false.")
    if thinking and options.instant:
        raise UsageError(f"--instant contradicts \"thinking\": true in {file}; expected one of them. Leave one out.")
    tools = read_tools(content.get("tools"), file)
    if options.tools:
        if tools:
            raise UsageError(f"--messages contradicts --tools: {file} declares tools too. Keep one of the two.")
        tools = read_tools(read_json(options.tools, "the tools"), options.tools)
    return content["messages"], tools, thinking


def read_tools(tools: Any, file: Path) -> list[Any] | None:
    if tools is not None and not isinstance(tools, list):
        raise UsageError(f'{file}: tools is no list; expected [{{"type": "function", "function": {{"name": "..."}}}}]. '
                         "Put a single tool into a list.")
    return tools


def read_prompt(options: argparse.Namespace) -> str | None:
    """PROMPT, or else all of stdin; None if that is a terminal, where a chat begins."""
    if options.prompt is not None:
        text, source = options.prompt, "PROMPT"
    elif not sys.stdin.isatty():
        text, source = read_stdin(), "stdin"
    elif options.json:
        raise UsageError("--json needs a prompt; expected PROMPT, --messages FILE or text on stdin.")
    else:
        return None
    if not text.strip() and not (options.media and source == "PROMPT"):
        raise UsageError(f"{source} is empty; expected a question. Give PROMPT, --messages FILE or text on stdin.")
    return text


def read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8 ({error}); expected text. Convert it, for example with iconv.") from None


def open_model(options: argparse.Namespace, num_tokens: int, load: Load) -> "torch.nn.Module":
    """Choose device and dtype, check that there is room, load. num_tokens: how long the cache may get."""
    import torch

    from .generation import check_memory

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA GPU here. Use --device cpu, or check nvidia-smi.")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, options.dtype or ("bfloat16" if device == "cuda" else "float32"))
    check_memory(options.model, dtype, device, num_tokens)
    return load(options.model, dtype, device)


def load_reference(directory: Path, dtype: "torch.dtype", device: str) -> "torch.nn.Module":
    from .model import load_model

    return load_model(directory, dtype, device)


if __name__ == "__main__":
    raise SystemExit(run(main))
