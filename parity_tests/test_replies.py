"""Replies: the golden cases, any cut into pieces, what is held back, and parsers that are wrong on purpose."""

import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import replies
from reference.chat_template import render
from reference.command import run
from reference.replies import (
    MARKER_OF_TEXT,
    MARKERS,
    STATES,
    TABLE,
    CallArguments,
    CallStart,
    Content,
    Reasoning,
    Reply,
    ReplyParser,
    TextReplyParser,
    ToolCall,
    complete_id,
    inferred_id,
)
from tools import parse_reply

ROOT = Path(__file__).parents[1]
CASES = json.loads((ROOT / "parity_tests/golden/chat/reply.json").read_text(encoding="utf-8"))["cases"]
TO, TC, SB, CB, CA, CE, SE = MARKERS
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"properties": {"city": {}}}}}
SEARCH_PARAMETERS = {"properties": {"q": {}}, "required": ["q"]}
SEARCH = {"type": "function", "function": {"name": "search", "parameters": SEARCH_PARAMETERS}}

PIECES = [*MARKER_OF_TEXT, "<|im_end|>", "[EOS]", " ", "\n", "<", "<|tool_call", "text", "é😀",
          "functions.get_weather:0", "functionssearch7", "3", "call_x", '{"city": "Oslo"}', '{"q": 1}']
texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
controls = st.sampled_from([*MARKERS, "<|im_end|>", "[EOS]", "[BOS]", "<|im_user|>"]).map(lambda name: ("s", name))
runs = st.lists(controls | st.sampled_from(PIECES).map(lambda text: ("t", text)), max_size=14)
some_tools = st.sampled_from([None, [], [WEATHER], [WEATHER, SEARCH]])


def cut(text: str, places: list[int]) -> list[str]:
    """`text` in pieces; places beyond its end are taken modulo its length."""
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def parse_text(pieces, thinking, tools=None):
    parser = TextReplyParser(thinking, tools)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return finish(parser, events)


def parse_runs(parts, thinking, tools=None):
    parser = ReplyParser(thinking, tools)
    events = []
    for kind, text in parts:
        events += parser.control(text) if kind == "s" else parser.text(text)
    return finish(parser, events)


def finish(parser, events):
    """The reply, after checking that the events, put together, tell the same."""
    events = events + parser.finish()
    reply = parser.result()
    assert_events_tell(events, reply)
    return reply


def assert_events_tell(events, reply):
    def joined(kind):
        return "".join(event.text for event in events if isinstance(event, kind))

    starts = [event for event in events if isinstance(event, CallStart)]
    arguments = ["" for _ in starts]
    for event in events:
        if isinstance(event, CallArguments):
            arguments[event.index] += event.text
    calls = [ToolCall(start.id, start.name, text) for start, text in zip(starts, arguments, strict=True)]
    assert [start.index for start in starts] == list(range(len(starts)))
    assert (joined(Reasoning), joined(Content)) == (reply.reasoning_content or "", reply.content)
    assert calls == reply.tool_calls
    assert all(isinstance(event, CallStart) or event.text for event in events), "an event without text says nothing"


def as_golden(reply):
    calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in reply.tool_calls]
    fields = {"reasoning_content": reply.reasoning_content, "content": reply.content, "tool_calls": calls}
    return fields, reply.dropped_calls


def golden_faults():
    """Names of the golden cases that come out differently."""
    return [case["name"] for case in CASES if not is_right(case)]


def is_right(case):
    if case["mode"] == "tokens":
        reply = parse_runs(case["parts"], case["thinking"], case["tools"])
    else:
        reply = parse_text([case["text"]], case["thinking"], case["tools"])
    return as_golden(reply) == (case["expected"], case["dropped_calls"])


def test_every_golden_reply_parses_as_recorded():
    assert len(CASES) == 64
    assert golden_faults() == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_reply_parses_the_same_one_character_at_a_time(case):
    if case["mode"] == "tokens":
        parts = [(kind, piece) for kind, text in case["parts"] for piece in ([text] if kind == "s" else text)]
        reply = parse_runs(parts, case["thinking"], case["tools"])
    else:
        reply = parse_text(case["text"], case["thinking"], case["tools"])
    assert as_golden(reply) == (case["expected"], case["dropped_calls"])


@given(case=st.sampled_from([case for case in CASES if case["mode"] == "text"]), places=st.lists(st.integers(0, 400)))
def test_golden_reply_parses_the_same_in_random_cuts(case, places):
    reply = parse_text(cut(case["text"], places), case["thinking"], case["tools"])
    assert as_golden(reply) == (case["expected"], case["dropped_calls"])


@given(text=texts, places=st.lists(st.integers(0, 200)), thinking=st.booleans(), tools=some_tools)
def test_text_parses_the_same_however_it_is_cut(text, places, thinking, tools):
    assert parse_text(cut(text, places), thinking, tools) == parse_text([text], thinking, tools)
    assert parse_text(text, thinking, tools) == parse_text([text], thinking, tools)


@given(parts=runs, places=st.lists(st.integers(0, 30)), thinking=st.booleans(), tools=some_tools)
def test_tokens_parse_the_same_however_their_text_is_cut(parts, places, thinking, tools):
    pieces = [(kind, piece) for kind, text in parts for piece in ([text] if kind == "s" else cut(text, places))]
    assert parse_runs(pieces, thinking, tools) == parse_runs(parts, thinking, tools)


@given(text=texts, thinking=st.booleans(), tools=some_tools)
def test_no_marker_reaches_reasoning_or_the_answer_but_a_late_think(text, thinking, tools):
    reply = parse_text([text], thinking, tools)
    assert not [marker for marker in MARKER_OF_TEXT if marker in (reply.reasoning_content or "")]
    assert not [marker for marker in MARKER_OF_TEXT if marker in reply.content and marker != TO]


@given(text=texts, thinking=st.booleans())
def test_text_without_control_tokens_is_one_field_verbatim(text, thinking):
    """Token mode looks for markers in ids, never in text: whatever a model spells out is quoted."""
    reply = parse_runs([("t", text)], thinking)
    assert reply == (Reply(text, "", [], 0) if thinking else Reply(None, text, [], 0))


def held_back(text):
    """What a parser that has seen `text` as content has not given out yet."""
    given_out = "".join(event.text for event in TextReplyParser(thinking=False).feed(text))
    assert text.startswith(given_out)
    return text[len(given_out) :]


def test_only_a_tail_that_may_become_a_marker_is_held_back():
    assert held_back("a < b") == ""
    assert held_back("a <") == "<"
    assert held_back("a <|tool_calls_section_begin|") == "<|tool_calls_section_begin|"
    assert held_back("a <|tool_calls_section_x") == ""
    assert held_back("a <|im_user|>") == ""
    assert held_back("a <<") == "<"


def test_an_end_token_is_held_back_until_something_follows():
    assert held_back("a<|im_end|>") == "<|im_end|>"
    assert held_back("a<|im_end|><") == "<"
    assert held_back("a<|im_end|><|im_end|>") == "<|im_end|>"
    assert parse_text("a<|im_end|><|im_end|>", thinking=False).content == "a<|im_end|>"
    assert parse_text("a<|im_end|>\n", thinking=False).content == "a<|im_end|>\n"


def test_arguments_arrive_while_they_are_written():
    parser = ReplyParser(thinking=True)
    for piece in (SB, CB):
        parser.control(piece)
    assert parser.text(" functions.f:0") == []
    assert parser.control(CA) == [CallStart(0, "functions.f:0", "f")]
    assert parser.text('\n {"a": ') == [CallArguments(0, '{"a":')]
    assert parser.text("\n") == []
    assert parser.text("1} \n") == [CallArguments(0, " \n1}")]
    assert parser.control(CE) == []


def test_a_call_with_a_damaged_id_is_held_until_its_arguments_tell_the_tool():
    parser = TextReplyParser(thinking=False, tools=[WEATHER, SEARCH], calls_before=4)
    assert parser.feed(f'{CB}call_9{CA}{{"q": 1}}') == []
    assert parser.feed(CE) == [CallStart(0, "functions.search:4", "search"), CallArguments(0, '{"q": 1}')]


def test_white_space_before_an_answer_waits_for_what_follows():
    parser = ReplyParser(thinking=False)
    assert parser.text(" \n") == []
    assert parser.text("Hi") == [Content(" \n"), Content("Hi")]
    assert parse_text([" \n"], thinking=False).content == " \n"
    assert parse_text([f" \n{SB}{CB}functions.f:0{CA}{CE}"], thinking=False).content == ""
    assert parse_text([f" \n{SB}{CB}damaged{CA}{CE}"], thinking=False) == Reply(None, " \n", [], 1)


def test_a_think_block_after_a_blank_answer_continues_the_reasoning():
    assert parse_text([f"a{TC}\n{TO}b{TC}c"], thinking=True) == Reply("ab", "c", [], 0)


def test_an_end_token_gives_out_what_was_held():
    parser = ReplyParser(thinking=False)
    parser.text(" ")
    assert parser.control("<|im_end|>") == [Content(" ")]
    assert parser.text("more") == parser.control(CB) == parser.finish() == []
    assert parser.result() == Reply(None, " ", [], 0)


def test_a_reply_cut_off_in_the_id_makes_no_call():
    assert parse_text([f"{CB}functions.delete_all:0"], thinking=False) == Reply(None, "", [], 1)
    cut_later = parse_text([f'{CB}functions.f:0{CA}{{"a'], thinking=False)
    assert cut_later.tool_calls == [ToolCall("functions.f:0", "f", '{"a')]


# Every cell of the table once more, as what a reply of BEFORE, the marker and AFTERWARDS comes to.
BEFORE = {"reasoning": "r", "content": "c", "section": SB, "header": f"{CB}f:0", "arguments": f"{CB}f:0{CA}1"}
AFTERWARDS = f"7{CA}a"


def called(arguments, call_id="f:0", dropped=0):
    return Reply(None, "", [ToolCall(call_id, "f", arguments)], dropped)


NOTHING, ONE_LOST = Reply(None, "", [], 0), Reply(None, "", [], 1)
AFTER = {
    "reasoning": dict.fromkeys(MARKERS, Reply("r7a", "", [], 0)) | {
        TC: Reply("r", "7a", [], 0), SB: Reply("r", "", [], 0), CB: Reply("r", "", [], 1)},
    "content": dict.fromkeys(MARKERS, Reply(None, "c7a", [], 0)) | {
        TO: Reply(None, f"c{TO}7a", [], 0), SB: Reply(None, "c", [], 0), CB: Reply(None, "c", [], 1)},
    "section": dict.fromkeys(MARKERS, NOTHING) | {CB: ONE_LOST},
    "header": {TO: called("a", "f:07"), TC: called("a", "f:07"), CA: called(f"7{CA}a"), CE: called("{}"),
               SB: ONE_LOST, SE: ONE_LOST, CB: Reply(None, "", [], 2)},
    "arguments": {marker: called(f"1{marker}7{CA}a") for marker in (TO, TC, CA)} | {
        SB: called("1"), CE: called("1"), SE: called("1"), CB: called("1", dropped=1)},
}


def example(marker, state):
    return BEFORE[state] + marker + AFTERWARDS


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("marker", MARKERS)
def test_every_marker_in_every_state_does_what_the_table_says(marker, state):
    assert parse_text([example(marker, state)], state == "reasoning") == AFTER[state][marker]


@pytest.mark.parametrize(("header", "found"), [
    ("functions.f:0", ("functions.f:0", "f")),
    ("f:12", ("f:12", "f")),
    ("a:b:3", ("a:b:3", "a:b")),
    ("functions.functions.f:0", ("functions.functions.f:0", "functions.f")),
    ("functions.:0", None), (":0", None), ("f:", None), ("f 1:0", None), ("f:٣", None), ("f", None), ("", None),
])
def test_a_complete_id_is_kept_verbatim_and_names_the_tool(header, found):
    assert complete_id(header) == found


ONE = {"exec": {"properties": {"command": {}}, "required": ["command"]}}
TWO = ONE | {"exec5": {}}


@pytest.mark.parametrize(("header", "arguments", "declared", "found"), [
    ("functionsexec5", "{}", ONE, ("functions.exec:5", "exec")),
    ("functions_exec-007", "{}", ONE, ("functions.exec:7", "exec")),
    ("functions.exec", "{}", ONE, ("functions.exec:9", "exec")),
    ("exec", "not JSON", ONE, ("functions.exec:9", "exec")),
    ("functionsexec5", "{}", TWO, None),                        # `exec` and 5, or `exec5`?
    (".exec", "{}", ONE, None),
    ("exe", "{}", ONE, None),
    ("", "anything", ONE, ("functions.exec:9", "exec")),
    ("call00003", "anything", ONE, ("functions.exec:3", "exec")),
    ("call", "{}", ONE, None),
    ("toolu_01A", "{}", ONE, ("functions.exec:9", "exec")),
    ("chatcmpl-tool-5", "{}", ONE, ("functions.exec:9", "exec")),
    ("0", '{"command": "ls"}', TWO, ("functions.exec:0", "exec")),
    ("0", "{}", TWO, ("functions.exec5:0", "exec5")),           # `exec` requires a command
    ("0", '{"command": NaN}', TWO, None),
    ("0", '["command"]', TWO, None),
    ("0", "{}", {}, None),
    ("0", '{"command": 1}', ONE | {"odd": {"properties": [{}]}, "odder": {"required": 5}},
     ("functions.exec:0", "exec")),
    ("0", '{"command": 1}', ONE | {"odd": {"properties": {"command": {}}, "required": [{}]}},
     ("functions.exec:0", "exec")),
    ("1" * 5000, "{}", ONE, ("functions.exec:" + "1" * 5000, "exec")),
])
def test_a_damaged_id_is_repaired_only_without_doubt(header, arguments, declared, found):
    assert inferred_id(header, arguments, declared, position=9) == found


def test_declarations_that_are_no_functions_help_nobody():
    broken = [{"type": "x"}, {"type": "function", "function": None}, {"type": "function", "function": {"name": 3}}]
    tools = [*broken, {"type": "function", "function": {"name": "f", "parameters": 3}}]
    reply = parse_text([f"{CB}0{CA}{CE}"], thinking=False, tools=tools)
    assert reply.tool_calls == [ToolCall("functions.f:0", "f", "{}")]


names = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True)
plain = st.text(st.characters(codec="utf-8"), max_size=8)
stripped = plain.map(str.strip).map(lambda text: text or "{}")


@given(reasoning=plain, content=plain, calls=st.lists(st.tuples(names, stripped), min_size=1, max_size=3))
def test_a_rendered_message_parses_back_to_itself(reasoning, content, calls):
    """What was generated is what the next prompt shows again."""
    tool_calls = [ToolCall(f"functions.{name}:{index}", name, text) for index, (name, text) in enumerate(calls)]
    reply = Reply(reasoning, content if content.strip() else "", tool_calls, 0)
    parts = render([reply.to_message()], add_generation_prompt=False)
    assert [run.text for run in parts[:4]] == ["<|im_assistant|>", "assistant", "<|im_middle|>", TO]
    assert parse_runs([(run.kind, run.text) for run in parts[4:]], thinking=True) == reply


def test_a_reply_becomes_an_assistant_message():
    assert Reply(None, "", [ToolCall("functions.f:0", "f", "{}")], 0).to_message() == {
        "role": "assistant", "content": "", "reasoning_content": None,
        "tool_calls": [{"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}


def test_long_arguments_are_not_cut():
    arguments = json.dumps({"text": "line \n" * 50_000})
    pieces = cut(f"{CB}functions.f:0{CA}{arguments}{CE}", list(range(0, 400_000, 8)))
    assert parse_text(pieces, thinking=False).tool_calls[0].arguments == arguments


# Deliberate mistakes, each made by some engine: the golden cases have to notice them.

def with_cells(cells):
    """The table with other words in some cells, given as {(marker, state): words}."""
    return {marker: tuple(cells.get((marker, state), words) for state, words in zip(STATES, row, strict=True))
            for marker, row in TABLE.items()}


@pytest.mark.parametrize(("cells", "caught_by"), [
    ({(SB, "reasoning"): "", (CB, "reasoning"): ""}, "section_inside_unclosed_thinking"),
    ({(TC, "reasoning"): "section"}, "thinking_then_answer"),
    ({(CB, "content"): "literal"}, "call_without_a_section"),
    ({(TO, "content"): "literal"}, "instant_reply_that_thinks_anyway"),
    ({(SE, "section"): "content"}, "text_after_the_section_is_dropped"),
    ({(CE, "header"): "lost section"}, "call_closed_without_argument_marker"),
    ({(SE, "arguments"): "literal"}, "section_end_closes_a_call"),
    ({(CB, "arguments"): "literal"}, "next_call_closes_a_call"),
])
def test_a_wrong_table_is_caught(monkeypatch, cells, caught_by):
    monkeypatch.setattr(replies, "TABLE", with_cells(cells))
    assert caught_by in golden_faults()


def test_markers_looked_up_in_text_are_caught(monkeypatch):
    """Token mode must not scan text: that is how a quoted call would run."""
    monkeypatch.setattr(sys.modules[__name__], "parse_runs", lambda parts, thinking, tools: parse_text(
        [text for _, text in parts], thinking, tools))
    assert {"tokens_literal_think_end_in_reasoning", "tokens_literal_section_in_answer"} <= set(golden_faults())


def test_inventing_a_call_from_a_cut_off_id_is_caught(monkeypatch):
    monkeypatch.setattr(replies, "AT_THE_END", {"arguments": "done"})
    assert "cut_off_inside_the_id" in golden_faults()


def test_a_parser_that_holds_nothing_back_is_caught(monkeypatch):
    monkeypatch.setattr(replies, "_start_of_tail", lambda text, start: len(text))
    assert parse_text("r</think>x", thinking=True) != parse_text(["r</think>x"], thinking=True)


# The command line.

def start(args, stdin):
    command = [sys.executable, "-m", "tools.parse_reply", *args]
    return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, timeout=60)


def call_main(monkeypatch, capsys, args, stdin):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    code = run(lambda: parse_reply.main(args))
    return code, capsys.readouterr()


@pytest.mark.parametrize("chunks", [[], ["--chunks", "1"], ["--chunks", "7"]], ids=["whole", "1", "7"])
def test_parse_reply_prints_every_golden_reply(monkeypatch, capsys, tmp_path, chunks):
    for case in CASES:
        args = [*chunks, *([] if case["thinking"] else ["--no-thinking"])]
        if case["tools"]:
            (tmp_path / "tools.json").write_text(json.dumps(case["tools"]), encoding="utf-8")
            args += ["--tools", str(tmp_path / "tools.json")]
        if case["mode"] == "tokens":
            args += ["--json-runs"]
        stdin = json.dumps(case["parts"]) if case["mode"] == "tokens" else case["text"]
        code, printed = call_main(monkeypatch, capsys, args, stdin.encode("utf-8"))
        assert (code, json.loads(printed.out)) == (0, {**case["expected"], "dropped_calls": case["dropped_calls"]})


def test_parse_reply_reads_and_writes_utf_8_and_keeps_line_ends():
    outcome = start(["--no-thinking"], "é\r\n😀\r".encode())
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout.decode("utf-8"))["content"] == "é\r\n😀\r"
    assert "é".encode() in outcome.stdout


def test_parse_reply_gives_half_a_surrogate_pair_back_as_the_escape_it_was(monkeypatch, capsys):
    code, printed = call_main(monkeypatch, capsys, ["--json-runs"], rb'[["t", "a\ud83d"]]')
    assert (code, json.loads(printed.out)["reasoning_content"]) == (0, "a\ud83d")


@pytest.mark.parametrize(("args", "stdin", "message"), [
    ([], b"\xff", "stdin is not UTF-8 text"),
    (["--json-runs"], b"plain", "stdin is not valid JSON"),
    (["--json-runs"], b'{"t": "x"}', "stdin is not a JSON list"),
    (["--json-runs"], b'[["t", "x"], ["p", "y"]]', "run 1 on stdin is not"),
    (["--json-runs"], b'[["t", null]]', "run 0 on stdin is not"),
    (["--tools", "missing.json"], b"", "missing.json: cannot read the tools"),
    (["--tools", "parity_tests/golden/chat/reply.json"], b"", "not a list of tool declarations"),
])
def test_parse_reply_refuses_bad_input_with_one_line(monkeypatch, capsys, args, stdin, message):
    monkeypatch.chdir(ROOT)
    code, printed = call_main(monkeypatch, capsys, args, stdin)
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert message in printed.err


@pytest.mark.parametrize("number", ["0", "-1", "x", "²", ""])
def test_parse_reply_wants_chunks_of_at_least_one_character(number, capsys):
    assert run(lambda: parse_reply.main(["--chunks", number])) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("line", parse_reply.EPILOG.splitlines()[1:])
def test_the_examples_of_parse_reply_run(line):
    command = line.replace("python ", f"{sys.executable} ", 1)
    outcome = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)["content"] in ("The answer is 4.\n", "Hi")
