"""Text on stdin to a JSON list of token ids, or with --decode the other way round."""

import argparse
import json
import sys

from reference.command import OneLineParser, run
from reference.errors import UsageError

EXAMPLES = """examples:
  printf 'Hello, World!' | python -m tools.encode_text --model reference/nano
  echo '[72, 105]' | python -m tools.encode_text --model reference/nano --decode
"""


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.encode_text",
        description=f"{__doc__} Plain text: strings like <|im_end|> in it are spelled out, not obeyed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="DIR", required=True, help="holds tiktoken.model and tokenizer_config.json")
    parser.add_argument("--decode", action="store_true", help="read a JSON list of ids, write their text")
    options = parser.parse_args(argv)

    from reference.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_directory(options.model)
    # Bytes on both sides: the text layer would follow the locale and rewrite line ends.
    given = _text(sys.stdin.buffer.read())
    answer = tokenizer.decode(_ids(given)) if options.decode else json.dumps(tokenizer.encode(given)) + "\n"
    sys.stdout.buffer.write(answer.encode())
    sys.stdout.buffer.flush()
    return 0


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8. Convert the text to UTF-8 first."
        ) from None


def _ids(text: str) -> list[int]:
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"stdin: not valid JSON ({error}). Expected a list of token ids, like [72, 105].") from None
    if not isinstance(ids, list) or not all(type(token_id) is int for token_id in ids):
        raise UsageError(f"stdin: found {text.strip()[:60]!r}, expected a JSON list of whole numbers, like [72, 105].")
    return ids


if __name__ == "__main__":
    raise SystemExit(run(main))
