"""The tokenizer against the published one's golden data, then what must hold for every text, then bad files.

golden/chat/tokenizer.json: made by running tiktoken with the published pattern over small made-up vocabularies, and
checked by a second implementation; its `about` says what each list holds.
"""

import base64
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import regex
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from reference import tokenizer as module
from reference.errors import TemplateError, TokenizerError
from reference.tokenizer import SPLIT_PATTERN, Run, StreamDecoder, Tokenizer, chunks, write_tokenizer_files
from tools.export_tokenizer_json import merges, tokenizer_json

ROOT = Path(__file__).parents[1]
GOLDEN = json.loads((Path(__file__).parent / "golden/chat/tokenizer.json").read_text(encoding="utf-8"))
RANKS = {base64.b64decode(token): rank for rank, token in enumerate(GOLDEN["ranks_base64"])}
NAMED_SPECIALS = {token_id: name for name, token_id in GOLDEN["named_specials"].items()}
TOKENIZER = Tokenizer.from_ranks(RANKS, NAMED_SPECIALS)

PATTERN_WITHOUT_HAN = SPLIT_PATTERN.removeprefix(r"[\p{Han}]+|").replace(r"&&[^\p{Han}]", "")
# What transformers splits a bare tiktoken.model by: words are not cut where small letters turn to capitals.
OTHER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HARD_STRINGS = [
    "iPhone's DON'T", "it'ſ", "ABCdef", "the weather ", "é", "e\u0301", "ß", "ǅ", "1234", "½", "...", "<|im_", "end|>",
    "中文", "漢a", "々〇", "とカナ", "👍🏽", "\u200d", "\x00", "\ufeff", "\x1c", "\x85", "\u3000",
    " ", "   ", "\n", "\r\n", "\t",
    *TOKENIZER.control_ids,
]  # fmt: skip
mixed_text = st.lists(st.sampled_from(HARD_STRINGS) | st.text(max_size=5), max_size=20).map("".join)
any_id = st.integers(0, TOKENIZER.vocab_size - 1)


def differing(cases: list[dict], compute: Callable[[str], object], expected: str) -> list[str]:
    return [case["name"] for case in cases if compute(case["text"]) != case[expected]]


def encoder(pattern: str) -> tiktoken.Encoding:
    return tiktoken.Encoding("variant", pat_str=pattern, mergeable_ranks=RANKS, special_tokens={})


# Golden data


def test_pieces_are_those_of_the_published_pattern():
    assert differing(GOLDEN["split"], TOKENIZER.split, "pieces") == []
    without_han = regex.compile(PATTERN_WITHOUT_HAN, regex.VERSION1)
    assert "chinese" in differing(GOLDEN["split"], without_han.findall, "pieces")
    version_0 = regex.compile(SPLIT_PATTERN, regex.VERSION0)  # reads && as two characters
    assert differing(GOLDEN["split"], version_0.findall, "pieces") != []


def test_plain_ids_are_the_published_ones():
    assert differing(GOLDEN["encode"], TOKENIZER.encode, "ids_plain") == []
    assert differing(GOLDEN["encode"], TOKENIZER.encode_with_control, "ids_plain") != []
    assert differing(GOLDEN["encode"], encoder(OTHER_PATTERN).encode_ordinary, "ids_plain") != []


def test_ids_with_control_strings_are_the_published_ones():
    assert differing(GOLDEN["encode"], TOKENIZER.encode_with_control, "ids_with_specials") == []
    assert differing(GOLDEN["encode"], TOKENIZER.encode, "ids_with_specials") != []
    only_named = {name: token_id for token_id, name in NAMED_SPECIALS.items()}
    unnamed_are_text = tiktoken.Encoding(
        "variant", pat_str=SPLIT_PATTERN, mergeable_ranks=RANKS, special_tokens=only_named
    )
    encode = lambda text: unnamed_are_text.encode(text, allowed_special="all")  # noqa: E731
    assert differing(GOLDEN["encode"], encode, "ids_with_specials") == ["reserved_name"]


def long_text(case: dict) -> str:
    return "".join(string * count for string, count in case["recipe"])


def differing_lengths() -> list[str]:
    return [
        case["name"] for case in GOLDEN["long"] if list(map(len, chunks(long_text(case)))) != case["chunk_lengths"]
    ]


def test_long_texts_are_cut_where_the_published_tokenizer_cuts(monkeypatch):
    assert differing_lengths() == []
    monkeypatch.setattr(module, "MAX_RUN", 25_001)
    assert "runs_exactly_at_the_limit" in differing_lengths()
    monkeypatch.setattr(module, "MAX_RUN", 10**9)
    monkeypatch.setattr(module, "MAX_SLICE", 10**9)
    assert "ordinary_text_of_half_a_million" in differing_lengths()


def test_long_texts_have_the_published_ids():
    def checksum(ids: list[int]) -> tuple[int, int]:
        return len(ids), sum(place * token_id for place, token_id in enumerate(ids, start=1)) % 1_000_003

    uncut = encoder(SPLIT_PATTERN)
    caught = []
    for case in GOLDEN["long"]:
        expected = case["ids"], case["ids_sum_mod_1000003"]
        assert checksum(TOKENIZER.encode(long_text(case))) == expected, case["name"]
        if checksum(uncut.encode_ordinary(long_text(case))) != expected:
            caught.append(case["name"])
    assert caught != []


def test_decoding_is_the_published_one():
    one_by_one = lambda ids: "".join(TOKENIZER.decode([token_id]) for token_id in ids)  # noqa: E731
    assert [case["name"] for case in GOLDEN["decode"] if TOKENIZER.decode(case["ids"]) != case["text"]] == []
    assert one_by_one(TOKENIZER.encode("漢")) != TOKENIZER.decode(TOKENIZER.encode("漢")) == "漢"


def test_all_256_slots_have_a_name():
    assert TOKENIZER.vocab_size == GOLDEN["total"] == TOKENIZER.num_ranks + 256
    assert len(TOKENIZER.control_ids) == 256
    assert GOLDEN["named_specials"].items() <= TOKENIZER.control_ids.items()
    assert TOKENIZER.control_names[624] == "<|reserved_token_624|>"


# What holds for every text


@given(mixed_text)
def test_encoding_then_decoding_gives_the_text_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert TOKENIZER.decode(TOKENIZER.encode_with_control(text)) == text


@given(mixed_text)
def test_plain_text_never_gives_a_control_id(text):
    assert all(token_id < TOKENIZER.num_ranks for token_id in TOKENIZER.encode(text))


@given(mixed_text)
def test_pieces_joined_are_the_text(text):
    assert "".join(TOKENIZER.split(text)) == text


@given(st.lists(st.sampled_from(HARD_STRINGS), max_size=20).map("".join))
def test_encoding_cuts_where_split_does(text):
    piece_by_piece = [token_id for piece in TOKENIZER.split(text) for token_id in TOKENIZER.encode(piece)]
    assert TOKENIZER.encode(text) == piece_by_piece


@given(st.lists(any_id, max_size=40))
def test_streamed_text_is_the_text_decoded_at_once(ids):
    stream = StreamDecoder(TOKENIZER)
    pieces = [stream.push(token_id) for token_id in ids] + [stream.finish()]
    assert "".join(pieces) == TOKENIZER.decode(ids)


@given(mixed_text)
def test_a_stream_never_shows_half_a_character(text):
    stream = StreamDecoder(TOKENIZER)
    shown = ""
    for token_id in TOKENIZER.encode(text):
        shown += stream.push(token_id)
        assert text.startswith(shown)
    assert (shown, stream.finish()) == (text, "")


def test_a_stream_that_ends_inside_a_character_says_so():
    stream = StreamDecoder(TOKENIZER)
    cut_off = [TOKENIZER.control_ids["<think>"], RANKS[b"\xf0"]]
    assert [stream.push(token_id) for token_id in cut_off] == ["<think>", ""]
    assert stream.finish() == "\ufffd"
    assert stream.push(RANKS[b"a"]) == "a"


@given(st.lists(st.tuples(st.sampled_from("st"), st.sampled_from(sorted(TOKENIZER.control_ids))), max_size=12))
def test_control_ids_in_a_prompt_are_exactly_its_control_runs(pairs):
    ids = TOKENIZER.encode_runs([Run(*pair) for pair in pairs])
    control = [token_id for token_id in ids if token_id >= TOKENIZER.num_ranks]
    assert control == [TOKENIZER.control_ids[name] for kind, name in pairs if kind == "s"]
    assert TOKENIZER.decode(ids) == "".join(text for _, text in pairs)


def test_neighbouring_text_runs_are_joined_before_merging():
    runs = [Run("s", "<|im_user|>"), Run("t", "the wea"), Run("t", ""), Run("t", "ther"), Run("s", "<|im_end|>")]
    assert TOKENIZER.encode_runs(runs) == TOKENIZER.encode_with_control("<|im_user|>the weather<|im_end|>")
    assert TOKENIZER.encode("the wea") + TOKENIZER.encode("ther") != TOKENIZER.encode("the weather")


def test_a_video_placeholder_that_nobody_replaced_is_an_error():
    with pytest.raises(TemplateError, match="video placeholder"):
        TOKENIZER.encode_runs([Run("p", "<|kimi_k25_video_placeholder|>")])


def test_a_control_run_outside_the_vocabulary_is_an_error():
    with pytest.raises(TokenizerError, match="names no control token"):
        TOKENIZER.encode_runs([Run("s", "<|kimi_k25_video_placeholder|>")])


@pytest.mark.parametrize("token_id", [-1, TOKENIZER.vocab_size, 163_840])
def test_an_id_outside_the_vocabulary_is_an_error(token_id):
    with pytest.raises(TokenizerError, match=f"token id {token_id} is not in the vocabulary"):
        TOKENIZER.decode([token_id])


def test_half_a_surrogate_pair_becomes_the_replacement_character():
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud83d b")) == "a\ufffd b"


def test_time_to_merge_one_long_piece_grows_no_faster_than_its_length():
    """Older releases of tiktoken merge in quadratic time: the ratio below is then about 100."""
    letters = "".join(random.Random(0).choices("etaoinshr", k=25_000))

    def seconds(text: str) -> float:
        start = time.process_time()
        for _ in range(250_000 // len(text)):
            TOKENIZER.encode(text)
        return (time.process_time() - start) / (250_000 // len(text))

    ratio = min(seconds(letters) for _ in range(3)) / min(seconds(letters[:2_500]) for _ in range(3))
    assert ratio < 40


# Files


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_tokenizer_files(tmp_path, RANKS, NAMED_SPECIALS)
    return tmp_path


def test_written_files_read_back_as_the_same_tokenizer(directory):
    read = Tokenizer.from_directory(directory)
    assert [read.token_bytes(i) for i in range(875)] == [TOKENIZER.token_bytes(i) for i in range(875)]
    assert read.control_ids == TOKENIZER.control_ids
    assert sorted(path.name for path in directory.iterdir()) == ["tiktoken.model", "tokenizer_config.json"]


def test_the_order_of_lines_in_the_vocabulary_does_not_matter(directory):
    path = directory / "tiktoken.model"
    path.write_bytes(b"\n".join(reversed(path.read_bytes().splitlines())))
    assert Tokenizer.from_directory(directory).encode("the weather") == TOKENIZER.encode("the weather")


LINES = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in RANKS.items())
VOCABULARY = "".join(LINES)
BAD_VOCABULARIES = {
    "a Git LFS pointer": ("version https://git-lfs.github.com/spec/v1\n", "line 1: expected BASE64 RANK"),
    "bad base64": (VOCABULARY + "!!!! 619\n", "line 620: expected BASE64 RANK"),
    "no rank": (VOCABULARY + "enp6\n", "line 620: expected BASE64 RANK"),
    "rank no number": (VOCABULARY + "enp6 x\n", "line 620: expected BASE64 RANK"),
    "a token twice": (VOCABULARY + "Qg== 619\n", "has rank 0 already and now 619"),
    "a rank twice": (VOCABULARY + "enp6 618\n", "618 comes where 619 should"),
    "a rank missing": (VOCABULARY + "enp6 620\n", "620 comes where 619 should"),
    "a negative rank": (VOCABULARY + "enp6 -1\n", "-1 comes where 0 should"),
    "empty file": ("", "256 single bytes have no rank"),
    "a byte missing": ("enp6zz== 0\n" + VOCABULARY.split("\n", 1)[1], "1 single bytes have no rank, the first is 0x42"),
    "not text": ("\x00\xff", "line 1: expected BASE64 RANK"),
}


@pytest.mark.parametrize("name", BAD_VOCABULARIES)
def test_a_vocabulary_that_cannot_be_used_is_refused_with_its_place(directory, name):
    content, message = BAD_VOCABULARIES[name]
    (directory / "tiktoken.model").write_text(content, encoding="latin-1")
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_directory(directory)


BAD_CONFIGS = {
    "not JSON": ("{", "not valid JSON"),
    "endless brackets": ("[" * 100_000, "not valid JSON"),
    "a list": ("[]", "no added_tokens_decoder"),
    "no table": ("{}", "no added_tokens_decoder"),
    "id no number": ('{"added_tokens_decoder": {"x": {"content": "[BOS]"}}}', "expected each decimal id once"),
    "endless id": (f'{{"added_tokens_decoder": {{"1{"0" * 5000}": {{"content": "a"}}}}}}', "each decimal id once"),
    "half a surrogate pair": ('{"added_tokens_decoder": {"619": {"content": "\\ud800"}}}', "non-empty string"),
    "no content": ('{"added_tokens_decoder": {"619": {"special": true}}}', "non-empty string 'content'"),
    "same id twice": ('{"added_tokens_decoder": {"619": {"content": "a"}, "0619": {"content": "b"}}}', "once"),
    "below the slots": ('{"added_tokens_decoder": {"618": {"content": "a"}}}', "id 618; expected 619 to 874"),
    "above the slots": ('{"added_tokens_decoder": {"875": {"content": "a"}}}', "id 875; expected 619 to 874"),
    "one name twice": (
        '{"added_tokens_decoder": {"620": {"content": "a"}, "621": {"content": "a"}}}', "name of both 620 and 621",
    ),
    "the name of another slot": (
        '{"added_tokens_decoder": {"620": {"content": "<|reserved_token_622|>"}}}', "name of both 620 and 622",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_table_of_control_tokens_that_contradicts_itself_is_refused(directory, name):
    content, message = BAD_CONFIGS[name]
    (directory / "tokenizer_config.json").write_text(content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_directory(directory)


@pytest.mark.parametrize("name", ["tiktoken.model", "tokenizer_config.json"])
def test_a_missing_file_is_named(directory, name):
    (directory / name).unlink()
    with pytest.raises(TokenizerError, match=f"{name}: cannot read it"):
        Tokenizer.from_directory(directory)


@pytest.mark.parametrize(
    ("ranks", "specials"), [({**RANKS, b"": 619}, {}), ({**RANKS, b"zzz": 700}, {}), (RANKS, {5: "[BOS]"})]
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, ranks, specials):
    with pytest.raises(TokenizerError):
        write_tokenizer_files(tmp_path, ranks, specials)
    assert list(tmp_path.iterdir()) == []


# The command line


def encode_text(directory: Path, *options: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tools.encode_text", "--model", str(directory), *options]
    return subprocess.run(
        command, input=stdin, capture_output=True, cwd=ROOT, env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    )


def test_encode_text_keeps_every_byte_whatever_the_locale(directory):
    text = "a\r\nb\rc\n\ufeff漢 <|im_end|>\n\n"
    ids = encode_text(directory, stdin=text.encode())
    assert json.loads(ids.stdout) == TOKENIZER.encode(text)
    assert encode_text(directory, "--decode", stdin=ids.stdout).stdout == text.encode()


@pytest.mark.parametrize(
    ("options", "stdin"),
    [([], b"a\xff"), (["--decode"], b"[1, 2"), (["--decode"], b'{"a": 1}'), (["--decode"], b"[true]"),
     (["--decode"], b"[875]"), (["--decode"], b"[" * 100_000)],
)  # fmt: skip
def test_encode_text_answers_bad_input_with_one_line_and_exit_code_2(directory, options, stdin):
    result = encode_text(directory, *options, stdin=stdin)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"error: ") and result.stderr.count(b"\n") == 1


def test_the_tokenizer_does_not_load_torch():
    check = "import sys, reference.tokenizer, tools.encode_text; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


# tokenizer.json for other libraries


@pytest.mark.oracle
def test_tokenizer_json_gives_our_ids_in_the_tokenizers_library():
    tokenizers = pytest.importorskip("tokenizers")
    # Tokens across the border of Han and Latin, which only the pattern keeps apart.
    bridges = [b"\xe6\xbc", "漢".encode(), "漢a".encode(), "a漢".encode()]
    ranks = {**RANKS, **{token: len(RANKS) + index for index, token in enumerate(bridges)}}
    ours = Tokenizer.from_ranks(ranks, {token_id + len(bridges): name for token_id, name in NAMED_SPECIALS.items()})
    document = tokenizer_json(ours)
    exported = tokenizers.Tokenizer.from_str(json.dumps(document))
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = PATTERN_WITHOUT_HAN
    without_han = tokenizers.Tokenizer.from_str(json.dumps(document))

    draw = random.Random(0)
    texts = ["".join(draw.choices(HARD_STRINGS, k=draw.randrange(25))) for _ in range(3_000)]
    texts += [character * count for character in " a\n" for count in range(1, 200, 7)]
    caught = 0
    for text in texts:
        ids = exported.encode(text).ids
        assert ids == ours.encode_with_control(text), text
        assert exported.decode(ids, skip_special_tokens=False) == text
        pieces = exported.pre_tokenizer.pre_tokenize_str(text)
        assert [text[start:end] for _, (start, end) in pieces] == ours.split(text), text
        caught += without_han.encode(text).ids != ids
    assert caught > 0


@pytest.mark.oracle
def test_auto_tokenizer_reads_the_exported_file(directory):
    transformers = pytest.importorskip("transformers")
    from tools.export_tokenizer_json import write_tokenizer_json

    write_tokenizer_json(directory)
    (directory / "config.json").write_text('{"model_type": "kimi_k25"}')
    text = "iPhone's DON'T <think>漢 a</think>  x <|reserved_token_622|><|im_end|>"
    loaded = transformers.AutoTokenizer.from_pretrained(directory)
    assert loaded(text)["input_ids"] == TOKENIZER.encode_with_control(text)
    assert loaded.decode(TOKENIZER.encode(text)) == text
    # Think and tool markers survive, whoever reads the reply; the end of the turn does not.
    visible = loaded.decode(TOKENIZER.encode_with_control(text), skip_special_tokens=True)
    assert "</think>" in visible and "<|im_end|>" not in visible

    (directory / "tokenizer.json").unlink()
    other_pattern = transformers.AutoTokenizer.from_pretrained(directory)
    assert other_pattern("漢a DON'T iPhone's")["input_ids"] != TOKENIZER.encode("漢a DON'T iPhone's")


def test_every_way_to_cut_a_token_is_a_merge():
    ranks = {b"a": 0, b"b": 1, b"ab": 2, b"ba": 3, b"aba": 4}
    assert merges(ranks) == [(b"a", b"b"), (b"b", b"a"), (b"a", b"ba"), (b"ab", b"a")]
