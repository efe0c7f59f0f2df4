"""The command line of `generate`: what it prints where, what it refuses and how, and the interactive chat."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from parity_tests.speaking_checkpoint import ScriptedModel, spell, write_json, write_speaking_checkpoint
from reference import generate
from reference.command import BAD_INPUT, INTERRUPTED, run
from reference.prompt import Processor

ROOT = Path(__file__).parents[1]
THINKING_REPLY = [*spell("Let me see.", "</think>"), *spell("It is 861.")]
CALL_REPLY = [*spell("Look.", "</think>", "<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
              *spell("functions.look:0", "<|tool_call_argument_begin|>"), *spell('{"at":"ö"}', "<|tool_call_end|>")]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_speaking_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (30, 50), "red").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def set_stdin(monkeypatch, data: bytes = b"", is_terminal: bool = False) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(data), encoding="ascii")
    monkeypatch.setattr(stdin, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stdin", stdin)


class Command:
    """Runs the command line in this process, with a model that says what it is told to."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture) -> None:
        self.directory, self.capsys = directory, capsys
        self.asked: list[str] = []  # every prompt, as text

    def __call__(self, *argv: object, script: list[int] | None = None) -> tuple[int, str, str]:
        """Exit code, stdout, stderr. Without a script the random weights of the checkpoint are loaded."""
        load = None if script is None else lambda directory, dtype, device: ScriptedModel(script, directory)
        code = run(lambda: generate.main([*map(str, argv), "--model", str(self.directory)], load))
        return (code, *self.capsys.readouterr())


@pytest.fixture
def command(directory, capsys, monkeypatch):
    set_stdin(monkeypatch)
    command, build = Command(directory, capsys), Processor.prompt

    def remember(processor, *arguments):
        prompt = build(processor, *arguments)
        command.asked.append("".join(run.text for run in prompt.runs))
        return prompt

    monkeypatch.setattr(Processor, "prompt", remember)
    return command


SPEED = (r"load [\d.]+ s, prefill \d+ tokens at \d+ tok/s, decode \d+ tokens at [\d.]+ tok/s, "
         r"first token after [\d.]+ s, peak \d+ MB")


def test_the_answer_is_on_stdout_and_everything_else_on_stderr(command):
    code, out, err = command("What is 482 + 379?", script=THINKING_REPLY)
    assert (code, out) == (0, "It is 861.\n")
    thinking, speed = err.splitlines()
    assert thinking == "Let me see.", "not dimmed, because stderr is no terminal"
    assert re.fullmatch(SPEED, speed)
    assert command.asked == ["<|im_user|>user<|im_middle|>What is 482 + 379?<|im_end|>"
                             "<|im_assistant|>assistant<|im_middle|><think>"]


def test_thinking_is_dimmed_on_a_terminal(command, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    _, _, err = command("?", script=THINKING_REPLY)
    assert "\x1b[2mLet me see.\x1b[0m\n" in err


def test_quiet_prints_the_answer_alone(command):
    assert command("?", "--quiet", script=THINKING_REPLY) == (0, "It is 861.\n", "")


def test_tool_calls_are_readable(command, tmp_path):
    tools = write_json(tmp_path / "tools.json", TOOLS)
    code, out, err = command("?", "--tools", tools, script=CALL_REPLY)
    assert (code, out) == (0, 'look({"at":"ö"})  # functions.look:0\n')
    assert "type look = (_: {}) => any;" in command.asked[0]
    assert "Look." in err


def test_a_call_that_cannot_be_read_is_mentioned(command):
    _, out, err = command("?", script=spell("", "</think>", "<|tool_call_begin|>") + spell("???", "<|tool_call_end|>"))
    assert out == ""
    assert "left out 1 tool call that could not be read" in err


def test_json_prints_one_object(command):
    code, out, err = command("?", "--json", script=CALL_REPLY)
    document = json.loads(out)
    assert (code, err) == (0, "")
    call = {"id": "functions.look:0", "type": "function", "function": {"name": "look", "arguments": '{"at":"ö"}'}}
    message = {"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": [call]}
    assert document["message"] == message
    assert document["finish_reason"] == "tool_calls"
    assert document["usage"] == {"prompt_tokens": 20, "completion_tokens": len(CALL_REPLY) + 1}
    assert set(document) == {"message", "finish_reason", "usage", "timing"}
    figures = {"load_s", "prefill_s", "decode_s", "prefill_tok_s", "decode_tok_s", "peak_rss_mb"}
    assert set(document["timing"]) == figures
    assert all(value > 0 for value in document["timing"].values())


def test_instant_mode_has_no_reasoning(command):
    _, out, _ = command("?", "--json", "--instant", script=spell("Red."))
    message = json.loads(out)["message"]
    assert (message["content"], message["reasoning_content"]) == ("Red.", None)
    assert command.asked[0].endswith("<think></think>")


def test_max_new_tokens_cuts_and_says_length(command):
    _, out, _ = command("?", "--json", "--max-new-tokens", 3, script=THINKING_REPLY)
    document = json.loads(out)
    assert (document["finish_reason"], document["usage"]["completion_tokens"]) == ("length", 3)


def test_media_stand_before_the_text_in_the_order_given(command, photo, tmp_path):
    frames = [Image.new("RGB", (28, 28), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=500)
    frames[0].save(tmp_path / "pages.pdf")
    options = ["--pdf", tmp_path / "pages.pdf", "--image", photo, "--video", tmp_path / "clip.gif", "--image", photo]
    code, _, err = command("What?", *options, "--system", "Be brief.", "--quiet", script=[])
    assert (code, err) == (0, "")
    image = "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>"
    chunk = "00:00:00.000<|media_begin|>video<|media_content|><|media_pad|><|media_end|>"
    assert command.asked[0].startswith(
        "<|im_system|>system<|im_middle|>Be brief.<|im_end|>"
        f"<|im_user|>user<|im_middle|>Page 1:\n{image}\n{image}\n{chunk}\n{image}\nWhat?<|im_end|>")


def test_stdin_is_the_prompt_if_there_is_no_other(command, monkeypatch):
    set_stdin(monkeypatch, "Größe?\r\n\n".encode())
    code, _, _ = command("--quiet", script=[])
    assert code == 0
    assert "<|im_middle|>Größe?\r\n\n<|im_end|>" in command.asked[0], "UTF-8, line ends unchanged"


def test_a_conversation_comes_from_a_file(command, tmp_path):
    spoken = {"user": "1", "assistant": "2", "observer": "3"}
    messages = [{"role": role, "content": content} for role, content in spoken.items()]
    file = write_json(tmp_path / "chat.json", {"messages": messages, "tools": TOOLS, "thinking": False})
    code, out, _ = command("--messages", file, script=spell("Red."))
    assert (code, out) == (0, "Red.\n")
    assert "<|im_system|>tool_declare" in command.asked[0]
    assert "<|im_system|>observer<|im_middle|>3" in command.asked[0]
    assert command.asked[0].endswith("<think></think>")


def test_a_seed_repeats_and_greedy_needs_none(command):
    def answer(*options):
        return json.loads(command("?", "--json", "--max-new-tokens", 8, *options)[1])["message"]

    assert answer("--seed", 1) == answer("--seed", 1) != answer("--seed", 2)
    assert answer("--temperature", 0) == answer("--temperature", 0)


def test_every_new_run_samples_anew(command):
    answers = {command("?", "--quiet", "--instant", "--temperature", 5, "--max-new-tokens", 8)[1] for _ in range(4)}
    assert len(answers) > 1


def test_bfloat16_runs_on_the_cpu(command):
    code, out, _ = command("?", "--json", "--dtype", "bfloat16", "--device", "cpu", "--max-new-tokens", 2)
    assert (code, json.loads(out)["usage"]["completion_tokens"]) == (0, 2)


# -- bad input: exit code 2 and one line -------------------------------------------------------------------------------

def refused(outcome: tuple[int, str, str]) -> str:
    code, out, err = outcome
    assert (code, out) == (BAD_INPUT, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1 and err.endswith("\n"), "one line, no traceback"
    return err


@pytest.mark.parametrize(("argv", "complaint"), [
    (["?", "--temperature", "-0.5"], "temperature is -0.5"),
    (["?", "--temperature", "warm"], "invalid float value: 'warm'"),
    (["?", "--temperature", "nan"], "temperature is nan"),
    (["?", "--top-p", "0"], "top_p is 0.0"),
    (["?", "--top-p", "1.01"], "top_p is 1.01"),
    (["?", "--max-new-tokens", "0"], "max_new_tokens is 0"),
    (["?", "--seed", "-3"], "seed is -3"),
    (["?", "--device", "tpu"], "invalid choice: 'tpu'"),
    (["?", "--dtype", "float16"], "invalid choice: 'float16'"),
    (["?", "--unknown"], "unrecognized arguments: --unknown"),
    (["?", "--image", "nowhere.png"], "nowhere.png"),
    (["?", "--video", "nowhere.mp4"], "nowhere.mp4"),
    (["?", "--pdf", "nowhere.pdf"], "nowhere.pdf"),
    (["?", "--tools", "nowhere.json"], "nowhere.json: cannot read the tools"),
    (["--messages", "nowhere.json"], "nowhere.json: cannot read the conversation"),
    (["?", "--messages", "nowhere.json"], "--messages contradicts PROMPT"),
    (["--messages", "a", "--system", "b"], "--messages contradicts --system"),
    (["--messages", "a", "--pdf", "b"], "--messages contradicts --image, --video or --pdf"),
    ([""], "PROMPT is empty"),
    ([], "stdin is empty"),
    (["a" * 5000], "the prompt has"),
    (["broken \ud83d"], "surrogate"),
])
def test_bad_options_are_refused_in_one_line(command, argv, complaint):
    assert complaint in refused(command(*argv, script=[]))


@pytest.mark.parametrize(("content", "complaint"), [
    ([], "no messages found"),
    ({}, "no messages found"),
    ({"messages": []}, "no messages found"),
    ({"messages": {"role": "user"}}, "no messages found"),
    ({"messages": ["Hello"]}, "messages[0] is text"),
    ({"messages": [{"content": "no role"}]}, "messages[0].role is missing"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "3"}]}, "messages[0].tool_call_id is missing"),
    ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "3"}]}, "answers no earlier tool call"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": "?"}], "tools": {"look": {}}}, "tools is no list"),
    ({"messages": [{"role": "user", "content": "?"}], "tools": ["look"]}, "tools is not a list of objects"),
    ({"messages": [{"role": "user", "content": "?"}], "thinking": "yes"}, "thinking is"),
])
def test_malformed_conversations_are_refused_in_one_line(command, tmp_path, content, complaint):
    assert complaint in refused(command("--messages", write_json(tmp_path / "chat.json", content), script=[]))


def test_a_file_that_is_no_json_is_refused_in_one_line(command, tmp_path):
    (tmp_path / "chat.json").write_bytes(b"\xff{")
    assert "not valid JSON" in refused(command("--messages", tmp_path / "chat.json", script=[]))


def test_tools_beside_a_conversation_count_unless_it_has_its_own(command, tmp_path):
    tools, chat = write_json(tmp_path / "tools.json", TOOLS), tmp_path / "chat.json"
    write_json(chat, {"messages": [{"role": "user", "content": "?"}], "tools": None})
    assert command("--messages", chat, "--tools", tools, script=CALL_REPLY)[0] == 0
    assert "type look = (_: {}) => any;" in command.asked[0]
    write_json(chat, {"messages": [{"role": "user", "content": "?"}], "tools": TOOLS})
    complaint = refused(command("--messages", chat, "--tools", tools, script=[]))
    assert "--messages contradicts --tools" in complaint


def test_instant_contradicts_a_file_that_wants_thinking(command, tmp_path):
    messages = [{"role": "user", "content": "?"}]
    file = write_json(tmp_path / "chat.json", {"messages": messages, "thinking": True})
    assert "--instant contradicts" in refused(command("--messages", file, "--instant", script=[]))
    write_json(file, {"messages": messages, "thinking": False})
    assert command("--messages", file, "--instant", "--quiet", script=[])[0] == 0


def test_stdin_that_is_no_text_is_refused_in_one_line(command, monkeypatch):
    set_stdin(monkeypatch, b"\xff\xfe")
    assert "stdin is not UTF-8" in refused(command(script=[]))


def test_json_on_a_terminal_needs_a_prompt(command, monkeypatch):
    set_stdin(monkeypatch, is_terminal=True)
    assert "--json needs a prompt" in refused(command("--json", script=[]))


def test_a_model_that_is_not_there_is_refused_in_one_line(capsys, tmp_path):
    for place in (tmp_path / "nowhere", tmp_path):
        outcome = run(lambda place=place: generate.main(["?", "--model", str(place)])), *capsys.readouterr()
        assert str(place) in refused(outcome)


def test_ctrl_c_ends_with_130(command, monkeypatch):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(ScriptedModel, "forward", interrupt)
    assert command("?", script=[]) == (INTERRUPTED, "", "interrupted\n")


# -- the chat ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def talk(command, monkeypatch):
    """Types lines at a terminal; exceptions stand for Ctrl-C and Ctrl-D."""
    def talk(*lines, options=(), script=THINKING_REPLY):
        typed = iter([*lines, EOFError])

        def read_line(prompt):
            line = next(typed)
            if isinstance(line, str):
                return line
            raise line

        set_stdin(monkeypatch, is_terminal=True)
        monkeypatch.setattr("builtins.input", read_line)
        return command(*options, script=script)

    return talk


def test_a_chat_remembers_its_turns(talk, command):
    code, out, err = talk("What is 1?", "", "And 2?", options=["--system", "Be brief."])
    assert (code, out) == (0, "It is 861.\nIt is 861.\n")
    assert err.count("Let me see.") == 2
    first = "<|im_system|>system<|im_middle|>Be brief.<|im_end|><|im_user|>user<|im_middle|>What is 1?<|im_end|>"
    answer = "<|im_assistant|>assistant<|im_middle|><think></think>It is 861.<|im_end|>"
    assert command.asked[1].startswith(f"{first}{answer}<|im_user|>user<|im_middle|>And 2?<|im_end|>")


def test_commands_of_the_chat(talk, command, photo):
    _, _, err = talk(f"/image {photo}", "What?", "/instant", "Again", "/reset", "New", "/thinking", "/nonsense", "/",
                     "/quit", "never asked", options=["--image", photo])
    assert command.asked[0].count("<|media_pad|>") == 2, "one from the option, one from the command"
    assert command.asked[1].count("<|media_pad|>") == 2 and command.asked[1].endswith("<think></think>")
    assert command.asked[2].startswith("<|im_user|>user<|im_middle|>New<|im_end|>")
    assert len(command.asked) == 3
    assert err.count("/quit") == 3, "the list of commands: at the start and after what is no command"


def test_a_failed_turn_is_forgotten(talk, command):
    code, _, err = talk("/image nowhere.png", "What?", "Hello")
    assert code == 0
    assert re.search("^error: .*nowhere.png", err, re.MULTILINE)
    assert command.asked == ["<|im_user|>user<|im_middle|>Hello<|im_end|><|im_assistant|>assistant<|im_middle|><think>"]


def test_an_empty_answer_is_forgotten(talk, command):
    _, _, err = talk("One", "Two", script=[])
    assert err.count("no answer") == 2
    assert "One" not in command.asked[1]


def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves(talk, command, monkeypatch):
    forward = ScriptedModel.forward

    def stopped_once(model, *arguments, **settings):
        monkeypatch.setattr(ScriptedModel, "forward", forward)
        raise KeyboardInterrupt

    monkeypatch.setattr(ScriptedModel, "forward", stopped_once)
    code, out, err = talk(KeyboardInterrupt, "One", "Two")
    assert (code, out) == (0, "It is 861.\n")
    assert "stopped" in err
    assert "One" not in command.asked[1]


# -- as people start it ------------------------------------------------------------------------------------------------

def test_the_examples_of_the_help_run(command, photo, monkeypatch):
    with pytest.raises(SystemExit) as end:
        generate.main(["--help"])
    assert end.value.code == 0
    examples = re.findall(r"^  python -m reference\.generate (.*)$", command.capsys.readouterr().out, re.MULTILINE)
    assert len(examples) == 2
    monkeypatch.chdir(photo.parent)
    for example in examples:
        assert command(*shlex.split(example), "--max-new-tokens", 3)[0] == 0


def test_the_program_runs_in_a_bare_locale(directory):
    argv = [sys.executable, "-m", "reference.generate", "--model", directory, "--max-new-tokens", "3", "--json"]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    outcome = subprocess.run([*map(str, argv)], input="Größe?".encode(), capture_output=True, cwd=ROOT, env=environment,
                             timeout=120)
    assert (outcome.returncode, outcome.stderr) == (0, b"")
    assert json.loads(outcome.stdout.decode())["usage"] == {"prompt_tokens": 27, "completion_tokens": 3}


def test_a_cold_start_does_not_load_the_compiler(directory):
    """It would double the time to the first token. Initialising weights on the meta device is what drags it in."""
    argv = ["?", "--model", str(directory), "--max-new-tokens", "1", "--quiet"]
    code = ("import sys; from reference import generate\n"
            f"generate.main({argv})\nassert 'torch._dynamo' not in sys.modules")
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, timeout=120)
    assert (outcome.returncode, outcome.stderr) == (0, b"")
