"""Write `tokenizer.json`, so that transformers, vLLM and others split and merge text as the published tokenizer does.

Without it transformers reads `tiktoken.model` but splits by a pattern of its own, and `iPhone's DON'T` gets other ids.
Marker strings in text become control ids there, as in the published `encode`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from reference.command import OneLineParser, run, write_whole
from reference.tokenizer import SPLIT_PATTERN, Tokenizer, added_token

EXAMPLES = """examples:
  python -m tools.export_tokenizer_json --model reference/nano
  python -m tools.export_tokenizer_json --model reference/nano --out /tmp/tokenizer.json
"""


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The document of the `tokenizers` library that gives the same ids as `tokenizer.encode_with_control`.

    It does not cut texts beyond 25,000 characters without a space (or 400,000 in all) as the published code does.
    """
    ranks = {tokenizer.token_bytes(token_id): token_id for token_id in range(tokenizer.num_ranks)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, **added_token(name)} for token_id, name in tokenizer.control_names.items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False},
                _byte_level(),
            ],
        },
        "post_processor": None,
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a rank is that rank, even where merging could not reach it
            "vocab": {spell(token): rank for token, rank in ranks.items()},
            "merges": [[spell(left), spell(right)] for left, right in merges(ranks)],
        },
    }


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of ranks whose concatenation is a rank, lowest concatenation first.

    Byte-pair encoding by ranks joins whichever pair spells a rank, so each way to cut a token is a merge of its own.
    """
    return [
        (token[:cut], token[cut:])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]


def _byte_level() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _byte_alphabet() -> list[str]:
    """GPT-2's visible character for each byte: printable Latin-1 stands for itself, the rest counts on from U+0100."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(0x100 + hidden.index(byte)) for byte in range(256)]


BYTE_ALPHABET = _byte_alphabet()


def spell(token: bytes) -> str:
    """A byte string in the byte-level alphabet."""
    return "".join(BYTE_ALPHABET[byte] for byte in token)


def write_tokenizer_json(directory: str | Path, out: str | Path | None = None) -> Path:
    """Read the tokenizer files of `directory` and write `tokenizer.json`, there or to `out`."""
    path = Path(out or Path(directory) / "tokenizer.json")
    document = tokenizer_json(Tokenizer.from_directory(directory))
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.export_tokenizer_json",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="DIR", required=True, help="holds tiktoken.model and tokenizer_config.json")
    parser.add_argument("--out", metavar="FILE", help="default: tokenizer.json in DIR")
    options = parser.parse_args(argv)
    print(write_tokenizer_json(options.model, options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
