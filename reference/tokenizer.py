"""Text to token ids and back, from the two files that a checkpoint carries: no remote code, no `transformers`.

    tiktoken.model          one line per rank, `BASE64 RANK`: the byte strings that byte-pair encoding may join
    tokenizer_config.json   `added_tokens_decoder` names some of the 256 control ids that follow the ranks

A control id (`<|im_end|>`, `<think>`, ...) is a command to the model. `encode` never produces one, whatever the
text says; `encode_runs` produces exactly those that the renderer asked for.
"""

import base64
import codecs
import functools
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import tiktoken

from .command import write_whole
from .errors import TemplateError, TokenizerError

VOCABULARY_FILE = "tiktoken.model"
CONFIG_FILE = "tokenizer_config.json"

NUM_CONTROL_SLOTS = 256

# Text is cut into pieces by the first alternative that matches, and each piece is byte-pair encoded by itself.
# `&&` intersects two classes: letters that are not Han. Han script has its own alternative, so a Chinese word
# never shares a piece, and hence a token, with Latin letters or kana.
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LEAD = r"[^\r\n\p{L}\p{N}]?"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT_PATTERN = "|".join(
    [
        r"[\p{Han}]+",
        f"{LEAD}{UPPER}*{LOWER}+{CONTRACTION}",
        f"{LEAD}{UPPER}+{LOWER}*{CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# The published tokenizer encodes long texts in chunks, because its splitter may not survive one endless word.
# Where a chunk ends changes ids, so the limits are part of the format. Both count characters.
MAX_SLICE = 400_000
MAX_RUN = 25_000

# Markers that a client wants to see in the decoded text, where other libraries drop "special" tokens: without
# `</think>` the whole reply would look like reasoning.
VISIBLE_MARKERS = frozenset(
    {
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<think>",
        "</think>",
    }
)


class Run(NamedTuple):
    """A stretch of a prompt. kind: "s" one control marker, "t" text, "p" a video placeholder still to be replaced."""

    kind: str
    text: str


class Tokenizer:
    """The vocabulary of one checkpoint. Ids 0..num_ranks-1 are byte strings, the next 256 are control ids."""

    def __init__(self, ranks: dict[bytes, int], control_names: dict[int, str]) -> None:
        """Use `from_directory` or `from_ranks`: they check what this takes for granted."""
        self.num_ranks = len(ranks)
        self.vocab_size = self.num_ranks + NUM_CONTROL_SLOTS
        self.control_names = control_names
        self.control_ids = {name: token_id for token_id, name in control_names.items()}
        # `ranks` need not be in rank order; ids index this list.
        self._token_bytes = sorted(ranks, key=ranks.__getitem__) + [name.encode() for name in control_names.values()]
        self._encoding = tiktoken.Encoding(
            "kimi", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=self.control_ids
        )

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Tokenizer":
        """Read `tiktoken.model` and `tokenizer_config.json`. Raises TokenizerError."""
        vocabulary, config = Path(directory) / VOCABULARY_FILE, Path(directory) / CONFIG_FILE
        ranks = read_ranks(vocabulary)
        check_ranks(ranks, str(vocabulary))
        return cls(ranks, all_control_names(read_named_specials(config), len(ranks), str(config)))

    @classmethod
    def from_ranks(cls, ranks: dict[bytes, int], named_specials: dict[int, str]) -> "Tokenizer":
        """Build from byte strings with their ranks, and the control ids that have a name. Raises TokenizerError."""
        check_ranks(ranks, "ranks")
        return cls(ranks, all_control_names(named_specials, len(ranks), "named_specials"))

    def split(self, text: str) -> list[str]:
        """The pieces that `encode` merges one by one; joined they are `text` again.

        `encode` cuts with the splitter inside tiktoken. This one has the same pattern but its own Unicode tables,
        so a letter that only one of the two knows yet may be cut differently.
        """
        return [piece for chunk in chunks(text) for piece in _splitter().findall(chunk)]

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as ordinary text: marker strings in it are spelled out, never obeyed."""
        return [token_id for chunk in chunks(text) for token_id in self._encoding.encode_ordinary(chunk)]

    def encode_with_control(self, text: str) -> list[int]:
        """Ids of `text` with each marker string as its control id, as the published `encode` does.

        Only for text that nobody else had a hand in: a user who types `<|im_end|>` ends the turn.
        """
        encode = self._encoding.encode
        return [token_id for chunk in chunks(text) for token_id in encode(chunk, allowed_special="all")]

    def encode_runs(self, runs: Iterable[Run]) -> list[int]:
        """Ids of a prompt: control runs by id, text between two of them joined and encoded as ordinary text."""
        ids: list[int] = []
        for kind, group in itertools.groupby(runs, key=lambda run: run[0]):
            texts = [text for _, text in group]
            if kind == "t":
                ids += self.encode("".join(texts))  # merges cross the borders of text runs
            elif kind == "s":
                ids += [self._control_id(name) for name in texts]
            else:
                raise TemplateError(
                    f"a prompt run of kind {kind!r} ({texts[0]!r}) has no token ids; expected 's' or 't'. "
                    "Replace each video placeholder by the prompts of its chunks first."
                )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, control ids by name. Bytes that are no UTF-8 become the replacement character U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token: often a part of a character only. Raises TokenizerError for an id out of range."""
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(
                f"token id {token_id} is not in the vocabulary; expected 0 to {self.vocab_size - 1}. "
                "Do the model and its tokenizer files come from the same checkpoint?"
            )
        return self._token_bytes[token_id]

    def _control_id(self, name: str) -> int:
        if name not in self.control_ids:
            raise TokenizerError(
                f"{name!r} names no control token of this vocabulary; expected it among added_tokens_decoder of "
                f"{CONFIG_FILE}. Use the {CONFIG_FILE} of the checkpoint."
            )
        return self.control_ids[name]


class StreamDecoder:
    """Decode token by token. Characters come out whole: bytes of an incomplete one wait for the rest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; may be empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What was held back and cannot be completed any more: empty or U+FFFD. The decoder can be used again."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def chunks(text: str) -> list[str]:
    """Cut `text` as the published tokenizer does before it looks at anything else; short texts stay whole.

    First into slices of MAX_SLICE; then no run of white space, or of anything else, may exceed MAX_RUN: the
    character that would make it longer starts a chunk. A change of kind alone does not cut.
    """
    return [
        chunk
        for start in range(0, len(text), MAX_SLICE)
        for chunk in _cut_long_runs(text[start : start + MAX_SLICE])
    ]


def _cut_long_runs(text: str) -> list[str]:
    # For text, the standard `re` defines \s by `str.isspace`, which is what the published code asks. The `\s` of
    # SPLIT_PATTERN is another set: U+001C to U+001F count as white space here but not there.
    if len(text) <= MAX_RUN:
        return [text]
    cuts = [
        cut
        for run in re.finditer(r"\s+|\S+", text)
        for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN)
    ]
    return [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]


@functools.cache
def _splitter() -> Any:
    import regex  # the standard `re` knows neither \p{...} nor &&; only `split` needs it

    return regex.compile(SPLIT_PATTERN, regex.VERSION1)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read the `BASE64 RANK` lines of a tiktoken.model. Raises TokenizerError."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read_file(path).splitlines(), start=1):
        if not line:
            continue
        try:
            encoded, digits = line.split()
            token, rank = base64.b64decode(encoded, validate=True), int(digits)
        except ValueError:  # wrong number of fields, not base64, not a number
            raise TokenizerError(
                f"{path}, line {number}: expected BASE64 RANK, found {line[:40]!r}. Download the file again "
                "(a Git LFS pointer or a web page is not the file)."
            ) from None
        if token in ranks:
            raise TokenizerError(
                f"{path}, line {number}: {token!r} has rank {ranks[token]} already and now {rank}; expected each "
                "byte string once. Download the file again."
            )
        ranks[token] = rank
    return ranks


def check_ranks(ranks: dict[bytes, int], source: str) -> None:
    """Refuse ranks that are not 0, 1, 2, ... once each, or that cannot spell every byte. Raises TokenizerError."""
    for expected, rank in enumerate(sorted(ranks.values())):
        if rank != expected:
            raise TokenizerError(
                f"{source}: in rank order, {rank} comes where {expected} should; expected 0 to {len(ranks) - 1} once "
                "each. Download the file again."
            )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(
            f"{source}: {len(missing)} single bytes have no rank, the first is 0x{missing[0]:02x}; expected all 256, "
            "or some text has no ids. Download the file again."
        )
    if b"" in ranks:
        raise TokenizerError(f"{source}: rank {ranks[b'']} is the empty string; expected at least one byte.")


def read_named_specials(path: Path) -> dict[int, str]:
    """Read `added_tokens_decoder` of a tokenizer_config.json: id to name. Raises TokenizerError."""
    try:
        config = json.loads(_read_file(path))
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, or brackets without end
        raise TokenizerError(f"{path}: not valid JSON ({error}). Expected the checkpoint's {CONFIG_FILE}.") from None
    table = config.get("added_tokens_decoder") if isinstance(config, dict) else None
    if not isinstance(table, dict):
        raise TokenizerError(
            f"{path}: no added_tokens_decoder; expected a mapping from id to {{'content': NAME}}. "
            f"Use the {CONFIG_FILE} published with the model, not one that another library rewrote."
        )
    named_specials: dict[int, str] = {}
    for key, entry in table.items():
        token_id = int(key) if key.isascii() and key.isdecimal() and len(key) < 20 else None
        name = entry.get("content") if isinstance(entry, dict) else None
        is_text = isinstance(name, str) and name.encode("utf-8", "ignore").decode() == name != ""
        if token_id is None or token_id in named_specials or not is_text:
            raise TokenizerError(
                f"{path}: added_tokens_decoder[{key!r}] is {json.dumps(entry)[:80]}; expected each decimal id once, "
                "with a non-empty string 'content'. Correct the entry."
            )
        named_specials[token_id] = name
    return named_specials


def all_control_names(named_specials: dict[int, str], num_ranks: int, source: str) -> dict[int, str]:
    """Name all 256 slots above the ranks: as listed, else `<|reserved_token_ID|>`. Raises TokenizerError."""
    slots = range(num_ranks, num_ranks + NUM_CONTROL_SLOTS)
    names: dict[int, str] = {}
    for token_id, name in named_specials.items():
        if token_id not in slots:
            raise TokenizerError(
                f"{source}: control token {name!r} has id {token_id}; expected {slots[0]} to {slots[-1]}, the slots "
                f"above the {num_ranks} ranks. Do {VOCABULARY_FILE} and {CONFIG_FILE} belong together?"
            )
    for token_id in slots:
        names[token_id] = named_specials.get(token_id, f"<|reserved_token_{token_id}|>")
    first_id_of: dict[str, int] = {}
    for token_id, name in names.items():
        if first_id_of.setdefault(name, token_id) != token_id:
            raise TokenizerError(
                f"{source}: {name!r} is the name of both {first_id_of[name]} and {token_id}; expected distinct names. "
                "Correct added_tokens_decoder."
            )
    return names


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"{path}: cannot read it ({error.strerror}). Expected {VOCABULARY_FILE} and {CONFIG_FILE} of the "
            "checkpoint in this directory."
        ) from None


def write_tokenizer_files(directory: str | Path, ranks: dict[bytes, int], named_specials: dict[int, str]) -> None:
    """Write `tiktoken.model` and `tokenizer_config.json` as the published checkpoint lays them out.

    `tokenizer_class` sends `AutoTokenizer` to a `tokenizer.json` beside them (tools.export_tokenizer_json): without
    one it would split by a pattern of its own. Raises TokenizerError for ranks or names that cannot be used.
    """
    check_ranks(ranks, "ranks")
    all_control_names(named_specials, len(ranks), "named_specials")
    lines = [f"{base64.b64encode(token).decode()} {ranks[token]}\n" for token in sorted(ranks, key=ranks.__getitem__)]
    config = {
        "added_tokens_decoder": {str(token_id): added_token(name) for token_id, name in sorted(named_specials.items())},
        **{
            f"{role}_token": f"[{role.upper()}]"
            for role in ("bos", "eos", "unk", "pad")
            if f"[{role.upper()}]" in named_specials.values()
        },
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    with write_whole(Path(directory) / VOCABULARY_FILE) as path:
        path.write_text("".join(lines), encoding="ascii")
    with write_whole(Path(directory) / CONFIG_FILE) as path:
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def added_token(name: str) -> dict[str, Any]:
    """One entry of `added_tokens_decoder`: matched verbatim, with nothing stripped around it."""
    return {
        "content": name,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": name not in VISIBLE_MARKERS,
    }
