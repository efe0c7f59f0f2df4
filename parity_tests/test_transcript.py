"""Transcripts: a run is shown as it happened, every medium under one name, and judged as an evaluation judges it."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from reference.command import run
from tools import evaluate, report_transcripts, transcript
from tools.transcript import MediaNames, Transcript, spoken

PICTURE, OTHER = Image.new("RGB", (28, 56), "red"), Image.new("RGB", (56, 28), "blue")
CALL = {"id": "functions.crop:0", "type": "function", "function": {"name": "crop", "arguments": '{"left": 0}'}}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is\nthere?"}]},
    {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "functions.crop:0", "content": [{"type": "image", "image": OTHER}]},
    {"role": "user", "content": [{"type": "image", "image": PICTURE}]},
    {"role": "assistant", "content": "A circle.", "reasoning_content": ""},
]


def test_a_conversation_is_shown_line_by_line_and_a_medium_keeps_its_name():
    assert list(spoken(MESSAGES, MediaNames("x"))) == [
        "system: Be brief.", "user: [x-1.png]", "    What is", "    there?", "thinks: I look.",
        'calls: functions.crop:0 {"left": 0}', "functions.crop:0: [x-2.png]", "user: [x-1.png]", "answers: A circle.",
    ]  # fmt: skip


def test_the_last_lines_are_the_judgement():
    tool = {"type": "function", "function": {"name": "crop", "parameters": {"properties": {"left": {}, "top": {}}}}}
    right = Transcript([tool], MESSAGES[-1:], [MESSAGES[-1:]], "stop", 3, True, "A circle.")
    assert right.text(MediaNames("x")).split("\n") == [
        "tools: crop(left, top)", "answers: A circle.", "subagent 1:", "    answers: A circle.", "=> right",
        "=> 1 subagents, 3 critical steps",
    ]  # fmt: skip
    wrong = Transcript([], MESSAGES[-1:], [], "length", None, False, "A square.")
    assert wrong.text(MediaNames("x")).endswith("=> WRONG (ended by length); expected: A square.")


def test_media_are_written_as_they_were_shown(tmp_path):
    names, pdf = MediaNames("x"), b"%PDF-1.4"
    assert [names({"type": "image", "image": PICTURE}), names({"type": "pdf", "pdf": pdf})] == ["x-1.png", "x-2.pdf"]
    names.write(tmp_path)
    assert Image.open(io.BytesIO((tmp_path / "x-1.png").read_bytes())).tobytes() == PICTURE.tobytes()
    assert (tmp_path / "x-2.pdf").read_bytes() == pdf


@pytest.mark.parametrize("skill", ["numbers.add", "pictures.describe", "videos.motion", "tools.choose"])
def test_it_judges_as_an_evaluation_does(capsys, tmp_path, skill):
    assert evaluate.main(["--skill", skill, "--n", "3", "--json", "--quiet"]) == 0
    outcomes = json.loads(capsys.readouterr().out)["skills"][0]["outcomes"]
    texts = ""
    for index, outcome in enumerate(outcomes):
        assert transcript.main([skill, "--index", str(index), "--media", str(tmp_path)]) == 0
        texts += (text := capsys.readouterr().out)
        assert ("\n=> right\n" in text) == (outcome == "1")
        assert text.count("user: ") >= 1 and ("answers: " in text or "calls: " in text)
    written = [path.name for path in tmp_path.iterdir()]
    assert written or not skill.startswith(("pictures", "videos"))
    assert all(name in texts for name in written)  # one picture may stand beside a question about numbers


@pytest.mark.parametrize(("arguments", "complaint"), [
    (["poems"], "poems: no such skill"),
    (["numbers"], "numbers: no such skill"),
    (["conversation", "--reworded"], "conversation has no other wordings"),
    (["numbers.add", "--index", "-1"], "--index is -1"),
    (["tools.chain", "--calls", "0"], "--calls is 0"),
    (["numbers.add", "--media", "nowhere"], "--media nowhere: not a folder"),
    (["numbers.add", "--temperature", "-1"], "temperature"),
])  # fmt: skip
def test_bad_options_get_one_line(capsys, monkeypatch, tmp_path, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    assert run(lambda: transcript.main(arguments)) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


def test_the_page_names_a_command_for_every_transcript(tmp_path, monkeypatch):
    entries = report_transcripts.ENTRIES
    monkeypatch.setattr(report_transcripts, "ENTRIES", entries[:1] + tuple(e for e in entries if "count" in e.options))
    assert report_transcripts.main(["--out", str(tmp_path)]) == 0
    page = (tmp_path / "transcripts.md").read_text(encoding="utf-8")
    assert "    python -m tools.transcript pictures.count --index 1\n" in page
    assert "![pictures.count-1-1.png](transcripts/pictures.count-1-1.png)" in page
    assert Image.open(tmp_path / "transcripts/pictures.count-1-1.png").size > (0, 0)


def test_a_missing_folder_is_refused_before_the_model_is_loaded(capsys, tmp_path):
    assert run(lambda: report_transcripts.main(["--out", str(tmp_path / "none"), "--model", "nowhere"])) == 2
    assert "not a folder" in capsys.readouterr().err
    assert not Path(tmp_path / "none").exists()
