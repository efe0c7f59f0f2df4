"""The prompt: the golden cases, the Jinja twin, text that spells control strings, and renderers wrong on purpose."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reference import chat_template
from reference.chat_template import prompt_text, render
from reference.command import run
from reference.errors import TemplateError
from reference.tokenizer import Tokenizer
from reference.tool_declaration import declare_tools
from tools import render_chat

ROOT = Path(__file__).parents[1]
GOLDEN = json.loads((ROOT / "parity_tests/golden/chat/template.json").read_text(encoding="utf-8"))
CASES = GOLDEN["cases"]
JINJA = ROOT / "reference/nano/chat_template.jinja"


def tool(name, **properties):
    return {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}


WEATHER = tool("get_weather", city={"type": "string"})
NOT_TYPESCRIPT = tool("f", x={"const": "ü<"})

MARKERS = ["<|im_end|>", "<|im_system|>", "<|im_middle|>", "<think>", "</think>", "<|tool_calls_section_begin|>",
           "<|tool_call_begin|>", "<|media_pad|>", "<|kimi_k25_video_placeholder|>", "[EOS]"]
texts = st.lists(st.sampled_from([*MARKERS, "a", " ", "\n", "é", "{{ x }}"]), max_size=4).map("".join)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.sampled_from([{"type": "image_url", "image_url": "x"}, {"type": "video", "video": "x"}, {"type": "audio"}]))
contents = st.none() | texts | st.lists(parts, max_size=3)
arguments = texts | st.dictionaries(texts, texts | st.integers() | st.none(), max_size=2)
calls = st.builds(lambda i, a: {"id": i or "x", "function": {"name": "f", "arguments": a}}, texts, arguments)
named = st.builds(lambda role, name, content: {"role": role, "name": name, "content": content},
                  st.sampled_from(["user", "system", "developer"]), st.none() | texts, contents)
answers = st.builds(lambda content, reasoning, made: {"role": "assistant", "content": content, "tool_calls": made,
                                                      "reasoning_content": reasoning},
                    contents, st.none() | texts, st.none() | st.lists(calls, max_size=2))
results = st.builds(lambda i, content: {"role": "tool", "tool_call_id": i or "x", "content": content}, texts, contents)
conversations = st.lists(named | answers | results, max_size=5)
some_tools = st.sampled_from([None, [], [WEATHER], [NOT_TYPESCRIPT], [WEATHER, NOT_TYPESCRIPT]])


def golden_faults():
    """Names of the golden cases that come out differently, as text or as runs."""
    return [case["name"] for case in CASES if not is_right(case)]


def is_right(case):
    runs = render(case["messages"], case["tools"], **case["kwargs"])
    return prompt_text(runs) == case["expected"] and [list(run_) for run_ in runs] == case["parts"]


def test_every_golden_prompt_is_rendered_as_text_and_as_runs():
    assert len(CASES) == 50
    assert golden_faults() == []


@pytest.mark.parametrize("case", [case for case in CASES if case["tools"]], ids=lambda case: case["name"])
def test_the_declaration_is_typescript_where_the_published_encoder_succeeds(case):
    declaration = chat_template.declaration(case["tools"])
    assert declaration == case["tools_ts_str"] or declaration.startswith("[{")
    assert f"<|im_middle|>{declaration}<|im_end|>" in case["expected"]


def test_every_quirk_is_repaired_or_refused():
    """Whatever the published template prints nonsense for, ours never prints the same."""
    for quirk in GOLDEN["quirks"]:
        try:
            text = prompt_text(render(quirk["messages"], quirk["tools"], **quirk["kwargs"]))
        except TemplateError:
            continue
        assert text != quirk["published"], quirk["name"]
        assert "None" not in text and "null" not in text


@pytest.mark.parametrize("switch", [None, 0, 1, "false", {"type": "disabled"}])
@pytest.mark.parametrize("name", ["thinking", "add_generation_prompt"])
def test_a_switch_is_true_or_false(name, switch):
    with pytest.raises(TemplateError, match=f"{name} is .*expected true or false"):
        render([], **{name: switch})


@pytest.mark.parametrize("tools", ["x", {}, 0, [None], ["f"], {"type": "function"}])
def test_tools_that_are_no_list_of_objects_are_refused(tools):
    with pytest.raises(TemplateError, match="tools is not a list of objects"):
        render([], tools)


def test_tools_with_half_a_surrogate_pair_are_refused():
    with pytest.raises(TemplateError, match=r"the declaration of tools holds U\+D83D"):
        render([], [{"type": "function", "function": {"name": "f", "description": "\ud83d"}}])


@given(conversations, some_tools, st.booleans(), st.booleans())
def test_text_from_outside_never_becomes_a_control_run(messages, tools, thinking, generation_prompt):
    """The control runs of a conversation are those of the same conversation with harmless text in it."""
    runs = render(messages, tools, thinking, generation_prompt)
    harmless = render(disarm(messages), tools, thinking, generation_prompt)
    assert [run_ for run_ in runs if run_.kind != "t"] == [run_ for run_ in harmless if run_.kind != "t"]


def disarm(value):
    """The same conversation with the control strings taken out of every text in it."""
    if isinstance(value, str):
        for marker in MARKERS:
            value = value.replace(marker, "_")
        return value
    if isinstance(value, list):
        return [disarm(item) for item in value]
    return {disarm(key): disarm(item) for key, item in value.items()} if isinstance(value, dict) else value


@given(conversations, some_tools)
def test_neighbouring_text_is_one_run_and_none_is_empty(messages, tools):
    runs = render(messages, tools)
    assert all(run_.text for run_ in runs)
    assert not [pair for pair in pairwise(runs) if pair[0].kind == pair[1].kind == "t"]


def test_a_marker_typed_by_a_user_neither_consumes_nor_shifts_a_medium():
    content = [{"type": "text", "text": "<|media_pad|>"}, {"type": "image", "image": "x"}]
    runs = render([{"role": "user", "content": content}])
    assert [run_.kind for run_ in runs if "<|media_pad|>" in run_.text] == ["t", "s"]


def jinja_template(**environment):
    sandbox = pytest.importorskip("jinja2.sandbox")

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = sandbox.ImmutableSandboxedEnvironment(**environment)
    made.filters["tojson"] = tojson  # as transformers defines it: Jinja's own escapes HTML
    return made.from_string(JINJA.read_text(encoding="utf-8"))


def typescript(tools):
    try:
        return declare_tools(tools) if tools else None
    except TemplateError:
        return None


@pytest.mark.oracle
@pytest.mark.parametrize("trims", [True, False])
def test_the_jinja_template_renders_every_golden_prompt(trims):
    template = jinja_template(trim_blocks=trims, lstrip_blocks=trims)
    for case in CASES:
        tools = {"tools": case["tools"], "tools_ts_str": case["tools_ts_str"]}
        text = template.render(messages=case["messages"], **tools, **case["kwargs"])
        assert text == case["expected"], case["name"]


@pytest.mark.oracle
def test_the_jinja_template_prints_sorted_json_without_a_typescript_declaration():
    template = jinja_template(trim_blocks=True, lstrip_blocks=True)
    declaration = json.dumps([NOT_TYPESCRIPT], ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    text = template.render(messages=[], tools=[NOT_TYPESCRIPT])
    assert text == f"<|im_system|>tool_declare<|im_middle|>{declaration}<|im_end|>"


@pytest.mark.oracle
@given(conversations, some_tools, st.booleans(), st.booleans())
def test_the_jinja_template_agrees_with_the_renderer(messages, tools, thinking, generation_prompt):
    template = jinja_template(trim_blocks=True, lstrip_blocks=True)
    text = template.render(messages=messages, tools=tools, tools_ts_str=typescript(tools), thinking=thinking,
                           add_generation_prompt=generation_prompt)
    assert text == prompt_text(render(messages, tools, thinking, generation_prompt))


# Deliberate mistakes, each made by some engine: the golden cases have to notice them.

def test_reasoning_kept_in_history_is_caught(monkeypatch):
    monkeypatch.setattr(chat_template, "suffix_start", lambda messages: 0)
    assert "history_drops_reasoning" in golden_faults()


def test_reasoning_dropped_in_the_running_loop_is_caught(monkeypatch):
    monkeypatch.setattr(chat_template, "suffix_start", len)
    assert {"one_tool_round", "two_rounds_keep_both_reasonings"} <= set(golden_faults())


def test_a_loop_ended_by_the_last_user_message_is_caught(monkeypatch):
    def after_last_user(messages):
        return max((index for index, message in enumerate(messages) if message["role"] == "user"), default=0)

    monkeypatch.setattr(chat_template, "suffix_start", after_last_user)
    assert "user_interrupts_a_loop" in golden_faults()


def test_tools_always_printed_as_json_are_caught(monkeypatch):
    monkeypatch.setattr(chat_template, "declare_tools", lambda tools: "")
    assert "no_default_system_prompt_with_tools" in golden_faults()


def test_markers_looked_up_in_text_are_caught(monkeypatch):
    """A prompt that is one string until it is tokenized: what a user types becomes a control token."""
    def write(prompt, text):
        prompt.control(text) if text in MARKERS else prompt._text.append(text)

    monkeypatch.setattr(chat_template._Prompt, "text", write)
    with pytest.raises(AssertionError):
        test_text_from_outside_never_becomes_a_control_run()


def test_text_that_is_not_joined_is_caught(monkeypatch):
    def write(prompt, text):
        prompt._text.append(text)
        prompt.close_text()

    monkeypatch.setattr(chat_template._Prompt, "text", write)
    assert "tool_without_name" in golden_faults()


# The command line.

def write_request(path, case):
    request = {"messages": case["messages"], "tools": case["tools"], **case["kwargs"]}
    path.write_text(json.dumps(request), encoding="utf-8")
    return str(path)


def test_render_chat_prints_every_golden_prompt_and_its_parts(tmp_path, capsysbinary):
    for case in CASES:
        file = write_request(tmp_path / "request.json", case)
        assert render_chat.main([file]) == 0
        assert capsysbinary.readouterr().out.decode("utf-8") == case["expected"]
        assert render_chat.main([file, "--parts"]) == 0
        assert json.loads(capsysbinary.readouterr().out) == case["parts"]


def test_render_chat_prints_utf_8_in_any_locale_and_needs_no_model(tmp_path):
    file = tmp_path / "request.json"
    request = {"messages": [{"role": "user", "content": "é\r\n😀"}], "add_generation_prompt": False}
    file.write_text(json.dumps(request, ensure_ascii=False), encoding="utf-8")
    command = [sys.executable, "-X", "utf8=0", "-m", "tools.render_chat", str(file), "--model", str(tmp_path / "none")]
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, env=locale)
    assert outcome.stdout == "<|im_user|>user<|im_middle|>é\r\n😀<|im_end|>".encode(), outcome.stderr


def test_render_chat_prints_ids_that_decode_to_the_prompt(tmp_path, capsysbinary):
    tokenizer = Tokenizer.from_directory(render_chat.DEFAULT_MODEL)
    for case in CASES:
        if any(kind == "p" for kind, _ in case["parts"]):
            continue
        assert render_chat.main([write_request(tmp_path / "request.json", case), "--ids"]) == 0
        ids = json.loads(capsysbinary.readouterr().out)
        assert tokenizer.decode(ids) == case["expected"]
        assert [tokenizer.control_names[i] for i in ids if i in tokenizer.control_names] == [
            text for kind, text in case["parts"] if kind == "s"]


def test_render_chat_prints_one_pad_per_image_and_per_video_chunk(tmp_path, capsysbinary):
    """Six seconds become 12 sampled frames, three chunks of four. The image is not even opened."""
    frames = [Image.new("RGB", (28, 28), (index * 4, 0, 0)) for index in range(60)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    content = [{"type": "image", "image": "missing.png"}, {"type": "video", "video": str(tmp_path / "clip.gif")}]
    file = write_request(tmp_path / "request.json", {"messages": [{"role": "user", "content": content}], "tools": None,
                                                     "kwargs": {"add_generation_prompt": False}})
    assert render_chat.main([file, "--ids"]) == 0
    text = Tokenizer.from_directory(render_chat.DEFAULT_MODEL).decode(json.loads(capsysbinary.readouterr().out))
    chunks = [f"00:00:0{second}<|media_begin|>video<|media_content|><|media_pad|><|media_end|>" for second in
              ("0.000", "2.100", "4.299")]  # 4.3 s: the published clock cuts the binary fraction
    image = "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\n"
    assert text == f"<|im_user|>user<|im_middle|>{image}{''.join(chunks)}\n<|im_end|>"


def test_render_chat_names_the_video_that_it_cannot_read(tmp_path, capsys):
    messages = [{"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}]
    case = {"messages": messages, "tools": None, "kwargs": {}}
    assert run(lambda: render_chat.main([write_request(tmp_path / "request.json", case), "--ids"])) == 2
    assert "x.mp4" in capsys.readouterr().err


@pytest.mark.parametrize(("request_text", "message"), [
    ('{"messages": [{"role": "user", "content": [{"type": "pdf", "pdf": "x"}]}]}', "expected its pages as images"),
    ("[]", 'no "messages" found'),
    ("{}", 'no "messages" found'),
    ("{", "is not valid JSON"),
    ('{"messages": [{"content": "abc"}]}', "messages[0].role is missing"),
    ('{"messages": [{"role": "user", "content": 1}]}', "messages[0].content is the number 1"),
    ('{"messages": [], "thinking": {"type": "disabled"}}', "thinking is"),
    ('{"messages": [], "add_generation_prompt": null}', "add_generation_prompt is null"),
    ('{"messages": [], "tools": "x"}', "tools is not a list"),
    ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', "messages[0].content holds U+D83D"),
])
def test_render_chat_refuses_bad_input_with_one_line(tmp_path, capsys, request_text, message):
    (tmp_path / "request.json").write_text(request_text, encoding="utf-8")
    code = run(lambda: render_chat.main([str(tmp_path / "request.json")]))
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert message in printed.err


def test_render_chat_refuses_a_file_that_is_not_there(capsys):
    assert run(lambda: render_chat.main(["missing.json"])) == 2
    assert "missing.json: cannot read the conversation" in capsys.readouterr().err


@pytest.mark.parametrize("line", render_chat.EPILOG.splitlines()[1:])
def test_the_examples_of_render_chat_run(line):
    command = line.replace("python ", f"{sys.executable} ", 1)
    outcome = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith("[" if "--ids" in line else "<|im_user|>user")
