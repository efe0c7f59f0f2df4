"""What is made of an evaluation: intervals, comparisons question by question, the page in docs/, expert load."""

import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from parity_tests.checkpoints import small_config, write_checkpoint
from reference.chat_template import render
from reference.command import read_json, run
from reference.generate import SHIPPED_MODEL
from reference.generation import Generated
from reference.prompt import Processor
from tools import evaluate, evaluate_all, evaluate_episodes, expert_load, report_evaluation, transcript
from tools.evaluate import Examinee
from tools.evaluation_figures import draw_accuracy, draw_expert_load
from tools.evaluation_targets import TARGETS
from tools.fingerprint import SIBLING_FILE, fingerprint
from tools.intervals import paired_interval, wilson_interval
from tools.nano_checkpoint import PREPROCESSOR
from tools.question_features import (
    CONCLUSION,
    OTHER,
    RIGHT,
    SEEN,
    SIZE,
    band,
    episode_features,
    named,
    question_features,
    thinking_kind,
)
from tools.report_evaluation import NOT_MEASURED
from tools.scores import Outcome, compare, difference, read_report, share, tally, with_totals
from tools.worlds.demonstration import Turn

ROOT = Path(__file__).parents[1]


def make_report(outcomes: dict[str, str], **settings: Any) -> dict[str, Any]:
    """A report as tools.evaluate prints it; `outcomes` by skill."""
    n = len(next(iter(outcomes.values())))
    rows = [
        {**share(skill, text.count("1"), n), "refused": 0, "could_refuse": n, "seconds": 1.5, "outcomes": text,
         "questions_sha256": f"{skill} {n}", "failures": [make_failure(skill, text.index("0"))] if "0" in text else []}
        for skill, text in outcomes.items()
    ]  # fmt: skip
    return {
        "command": "python -m tools.evaluate --json", "model": "reference/nano", "model_sha256": "1234" * 16,
        "int4_sha256": "1234" * 16 if settings.get("experts") == "unquantised" else None, "experts": "int4",
        "backend": "reference", "mode": "thinking", "temperature": 0.0, "top_p": 0.95, "seed": 0,
        "shapes": "one to four", "tokens": None, "calls": None, "parts": None, "reworded": False, "n_per_skill": n,
        "max_new_tokens": 400, "batch": 128, "cpu": "a CPU", "torch": "2.13.0", "threads": 2,
        "seconds": 3.0, "skills": with_totals(rows),
    } | settings  # fmt: skip


def make_failure(skill: str, index: int) -> dict[str, Any]:
    return {
        "index": index, "skill": skill, "question": "What is\n2 + 2?", "content_key": "k", "expected": "2 + 2 = 4",
        "answer": "2 + 2 = 5", "expected_reasoning": "ones: 2+2=4", "reasoning": "", "finish_reason": "stop",
    }  # fmt: skip


def write(path: Path, report: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report), encoding="utf-8")
    return path


# --- intervals and comparisons ---------------------------------------------------------------------------------------


def test_wilson_interval_of_nothing_and_of_everything_stays_inside_zero_to_one():
    for n in (1, 10, 29):
        (low, high), (other_low, other_high) = wilson_interval(0, n), wilson_interval(n, n)
        assert low == 0 and other_high == pytest.approx(1) and other_high <= 1
        assert other_low == pytest.approx(1 - high)


def test_paired_interval_agrees_with_the_published_example():
    """One of 21 patients got worse, seven got better. Fagerland, Lydersen and Laake 2014, table V."""
    assert paired_interval(1, 7, 21) == pytest.approx((-0.508, -0.013), abs=6e-4)


def test_paired_interval_covers_the_true_difference_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    first, second = 0.06, 0.03  # shares of questions that only one of the two gets right
    draws = torch.rand((1000, 400), generator=generator)
    covered = 0
    for row in draws:
        only_first = int((row < first).sum())
        only_second = int(((row >= first) & (row < first + second)).sum())
        low, high = paired_interval(only_first, only_second, 400)
        covered += low <= first - second <= high
    assert 0.92 <= covered / 1000 <= 0.98


def test_a_difference_counts_the_questions_that_one_of_two_got_right():
    row = difference("numbers.add", "1111000010", "1100110010")
    assert (row["accuracy"], row["other_accuracy"]) == (0.5, 0.5)
    assert (row["only_this"], row["only_other"], row["difference"], row["n"]) == (2, 2, 0.0, 10)
    assert difference("x", "110", "100")["difference"] == pytest.approx(1 / 3)
    assert difference("x", "100", "110")["interval_95"] == tuple(
        -bound for bound in reversed(difference("x", "110", "100")["interval_95"])
    )


def test_groups_of_several_skills_and_all_of_them_are_compared_too():
    rows = compare({"a.x": ("11", "10"), "a.y": ("00", "01"), "b.z": ("10", "10")})
    assert [(row["skill"], row["n"], row["difference"]) for row in rows] == [
        ("a.x", 2, 0.5), ("a.y", 2, -0.5), ("b.z", 2, 0.0), ("a", 4, 0.0), ("all", 6, 0.0)
    ]  # fmt: skip
    assert [row["skill"] for row in compare({"a.x": ("1", "1")})] == ["a.x"]


# --- tools.evaluate --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> Path:
    """An untrained model with the shipped vocabulary, whose answers are wrong."""
    directory = tmp_path_factory.mktemp("random")
    config = small_config(text={"vocab_size": 1280})
    config["media_placeholder_token_id"] = config["image_token_id"] = 1045
    write_checkpoint(directory, config)
    (directory / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), encoding="utf-8")
    for file in ("tiktoken.model", "tokenizer_config.json"):
        shutil.copy(SHIPPED_MODEL / file, directory)
    return directory


def run_evaluate(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert evaluate.main([*arguments, "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_report_compared_with_itself_differs_nowhere_and_with_another_model_everywhere(
    random_model, tmp_path, capsys
):
    flags = ["--skill", "pictures.count", "--skill", "self.who", "--n", "4", "--max-new-tokens", "160"]
    shipped = run_evaluate(capsys, *flags)
    assert [row["outcomes"] for row in shipped["skills"]] == ["1111", "1111"]
    path = write(tmp_path / "shipped.json", shipped)
    again = run_evaluate(capsys, *flags, "--batch", "3", "--against", str(path))
    assert [row["difference"] for row in again["against"]["skills"]] == [0, 0, 0]
    assert again["skills"][0]["questions_sha256"] == shipped["skills"][0]["questions_sha256"]
    other = run_evaluate(capsys, *flags, "--model", str(random_model), "--against", str(path))
    assert [row["difference"] for row in other["against"]["skills"]] == [-1, -1, -1]
    assert other["experts"] == "unquantised" and shipped["experts"] == "int4"
    assert other["model_sha256"] != shipped["model_sha256"]
    evaluate.main([*flags, "--model", str(random_model), "--against", str(path), "--quiet"])
    table = capsys.readouterr().out
    assert re.search(r"^all +0\.0% +100\.0% +-100\.0 ", table, re.MULTILINE)


def test_a_report_holds_no_path_of_this_machine(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    report = run_evaluate(capsys, "--skill", "self.hello", "--n", "1", "--max-new-tokens", "1")
    assert str(SHIPPED_MODEL.parent) not in json.dumps(report)
    assert report["model"] == "nano"
    monkeypatch.chdir(SHIPPED_MODEL.parents[1])
    report = run_evaluate(capsys, "--skill", "self.hello", "--n", "1", "--max-new-tokens", "1")
    assert report["model"] == "reference/nano"


def test_refusals_count_where_the_model_could_have_answered(capsys, monkeypatch):
    import reference.generation
    from reference.tokenizer import Tokenizer
    from tools.worlds.self_knowledge import REFUSALS

    tokenizer = Tokenizer.from_directory(SHIPPED_MODEL)

    def refuse(model, prompts, **settings):
        return [reference.generation.Generated(tokenizer.encode(REFUSALS[0]), "stop") for _ in prompts]

    monkeypatch.setattr(reference.generation, "generate", refuse)
    report = run_evaluate(capsys, "--skill", "numbers.add", "--skill", "outside.question", "--n", "3", "--instant")
    counts = {row["skill"]: (row["refused"], row["could_refuse"], row["right"]) for row in report["skills"]}
    assert counts == {"numbers.add": (3, 3, 0), "outside.question": (0, 0, 3)}


BASE = make_report({"numbers.add": "1101"})
LOAD = {"command": "python -m tools.expert_load", "model_sha256": "1234" * 16, "n": 1, "seed": 0, "lowest": 0.5,
        "highest": 1.5, "layers": [{"layer": 1, "share_of_mean": [0.5, 1.5]}]}  # fmt: skip
WRONG_SUM = make_report({"numbers.add": "1101"})
WRONG_SUM["skills"][0]["right"] = 2


@pytest.mark.parametrize(("report", "flags", "complaint"), [
    (make_report({"numbers.add": "1101"}, seed=1), [], "was made with seed 1, and this is 0"),
    (make_report({"numbers.add": "11011"}), [], "was made with n_per_skill 5, and this is 4"),
    (BASE, ["--shapes", "1"], "was made with shapes one to four, and this is 1"),
    (BASE, ["--skill", "numbers.multiply"], "has no numbers.multiply"),
    ({"skills": []}, [], "no report of this tools.evaluate"),
    ([1], [], "no report of this tools.evaluate"),
    ({"skills": [{"skill": "numbers.add", "right": 1}]}, [], "no report of this tools.evaluate"),
    (WRONG_SUM, [], "the outcomes of numbers.add are not its 2 right answers"),
    (BASE, [], "its questions of numbers.add are others"),
])  # fmt: skip
def test_a_report_of_other_questions_is_refused_in_one_line(tmp_path, capsys, report, flags, complaint):
    path = write(tmp_path / "other.json", report)
    arguments = ["--skill", "numbers.add", "--n", "4", "--max-new-tokens", "1", "--against", str(path), *flags]
    assert run(lambda: evaluate.main(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and complaint in error and error.count("\n") == 1


def test_an_unknown_skill_is_refused_with_the_names_of_all_groups(capsys):
    assert run(lambda: evaluate.main(["--skill", "numbers.ad"])) == 2
    error = capsys.readouterr().err
    assert "numbers, pictures, signs" in error and "conversation" in error


def test_other_words_are_asked_on_demand_and_are_other_questions(tmp_path, capsys):
    flags = ["--skill", "self.hello", "--n", "3", "--max-new-tokens", "1"]
    report = run_evaluate(capsys, *flags, "--reworded")
    assert report["reworded"] and not BASE["reworded"]
    path = write(tmp_path / "reworded.json", report)
    assert run(lambda: evaluate.main([*flags, "--against", str(path)])) == 2
    assert "was made with reworded True, and this is False" in capsys.readouterr().err
    assert run(lambda: evaluate.main(["--skill", "tools.choose", "--reworded"])) == 2
    assert "no such skill or group with other wordings" in capsys.readouterr().err
    assert "conversation" not in evaluate.choose_skills(None, reworded=True)


def test_answers_to_other_words_stand_beside_the_usual_ones_and_count_for_no_target(tmp_path):
    write(tmp_path / "evaluate-a.json", make_report({"numbers.decimals": "1101"}))
    page = report_evaluation.make_page(report_evaluation.read_folder(tmp_path))
    assert f"words that no training uses: {NOT_MEASURED}" in page
    write(tmp_path / "evaluate-b.json", make_report({"numbers.decimals": "00000010"}, reworded=True))
    page = report_evaluation.make_page(report_evaluation.read_folder(tmp_path))
    assert re.search(r"\| numbers\.decimals \| 75\.0 % \([^|]*\| 4 \| 12\.5 % \([^|]*\| 8 \|", page)
    assert re.search(r"which decimal is bigger, or smaller \| 98 % \| 75\.0 % ", page)


def test_batches_hold_every_question_once_and_keep_both_limits():
    lengths = {index: 5 + index * index % 97 for index in range(200)} | {200: 5000}
    found = list(evaluate.batches(lengths, 16, 1000))
    assert sorted(index for batch in found for index in batch) == list(range(201))
    assert found[0] == [200]  # longer than allowed, and asked all the same
    for batch in found[1:]:
        assert len(batch) <= 16 and len(batch) * max(lengths[index] for index in batch) <= 1000
    assert max(map(len, found)) == 16


def test_every_skill_of_the_worlds_has_an_evaluator_and_some_are_measured_by_default():
    from tools.worlds import episode
    from tools.worlds.sample import BY_DEFAULT, SKILLS, skills_of

    assert list(evaluate.evaluators()) == [*SKILLS, "conversation", *episode.SKILLS]
    asked = [skill for name in BY_DEFAULT for skill in skills_of(name) or [name]]
    assert sorted(evaluate.choose_skills(None)) == sorted(asked) and "self.who" in asked


# --- what was asked, and how the model thought -----------------------------------------------------------------------


def test_features_say_what_was_asked():
    options = evaluate.parse(["--n", "40", "--parts", "6"])
    for skill, evaluator in evaluate.evaluators().items():
        for index in range(4):
            if evaluator is evaluate.ask_once:
                sample = evaluate.draw_question(skill, index, options)
                features = question_features(skill, sample)
                if skill.startswith(("pictures", "svg")):
                    assert features["shapes"] == str(len(sample.task.medium.shapes)) == str(1 + index)
            else:
                episode = evaluate_episodes.draw(skill, index, options)
                features = episode_features(episode)
                if skill == "swarm.orchestrate":
                    assert features["parts"] == "6" and features["goal"] in ("total", "each", "highest", "lowest")
                else:
                    assert features["tools"] == str(len(episode.tools))
            assert features or skill.startswith(("self", "outside"))
            assert all(isinstance(text, str) and text for pair in features.items() for text in pair)
    drawn = [evaluate.draw_question("numbers.decimals", index, options) for index in range(40)]
    for word in ("bigger", "smaller"):
        expected = [sample.content.endswith(f"is {word}.") for sample in drawn]
        found = [question_features("numbers.decimals", sample)["asks for"] == f"the {word}" for sample in drawn]
        assert found == expected and any(found)
    for skill in ("pictures.colour", "pictures.shape", "pictures.at", "pictures.place_of"):
        drawn = [evaluate.draw_question(skill, index, options) for index in range(40)]
        there = [question_features(skill, sample)["is there"] for sample in drawn]
        assert there == ["no" if sample.content.startswith("There is no") else "yes" for sample in drawn]
        assert {"yes", "no"} == set(there)
    words = {"What is the difference between 9 and 4?": "a difference", "How much less is 4 than 9?": "a difference",
             "How far is 4 from 9?": "a difference", "What is 9 minus 4?": "one minus the other"}  # fmt: skip
    sample = evaluate.draw_question("numbers.subtract", 0, options)
    for question, kind in words.items():
        asked = replace(sample, task=replace(sample.task, question=question))
        assert question_features("numbers.subtract", asked)["asks for"] == kind
    assert [named(f"What about {thing}?") for thing in ("the Red one", "CIRCLES", "a grey square", "a red square", "it")
            ] == ["a colour", "a kind", "a kind", "a colour and a kind", "neither"]  # fmt: skip
    assert [band(value, (2, 5, 9), 16) for value in (2, 4, 5, 8, 9, 16)] == ["2 to 4"] * 2 + ["5 to 8"] * 2 + [
        "9 to 16"] * 2  # fmt: skip


def test_a_wrong_conclusion_is_told_from_a_wrong_list():
    expected = "left: large red circle, 1\nright: small blue square, 1"
    for thought, kind in {
        expected: RIGHT, expected.replace("square, 1", "square, 2"): CONCLUSION, expected.replace("red", "blue"): OTHER,
        expected.partition("\n")[0]: OTHER, "": OTHER,
    }.items():  # fmt: skip
        assert thinking_kind("pictures.count", expected, thought) == kind
    size = "5 columns, 10 rows: 28x5=140, 28x10=280\nbackground: 3 9 15\nleft: small red circle, 20 across 28"
    for thought, kind in (
        (size, RIGHT), (size.replace("10", "11"), SIZE), (size.replace("20", "25"), SEEN),
        (size.replace("9", "8"), SEEN), (size.replace("red", "blue"), OTHER),
    ):  # fmt: skip
        assert thinking_kind("svg.write", size, thought) == kind
    assert thinking_kind("numbers.add", "ones: 2+2=4, write 4", "ones: 2+2=4, write 5") == OTHER


def test_right_answers_are_counted_by_feature_and_the_page_shows_those_that_split(tmp_path):
    outcomes = [Outcome("q", i % 4 > 0, None, None, {"calls": str(9 + i % 2), "kind": "x"}) for i in range(80)]
    assert tally(outcomes) == {"calls": {"9": [20, 40], "10": [40, 40]}, "kind": {"x": [60, 80]}}
    report = make_report({"tools.chain": "0111" * 20, "numbers.add": "1" * 80})
    report["skills"][0]["right_by"] = tally([*outcomes, Outcome("q", True, None, None, {"calls": "12"})])
    write(tmp_path / "in/evaluate-thinking.json", report)
    section = page_of(tmp_path / "in", tmp_path / "out").partition("## Where it goes wrong")[2].partition("\n## ")[0]
    assert "| tools.chain | calls | 9: 50.0 % of 40; 10: 100.0 % of 40 |" in section
    assert "kind" not in section.partition("| --- |")[2] and "numbers.add" not in section


# --- the page --------------------------------------------------------------------------------------------------------


def page_of(reports: Path, out: Path) -> str:
    assert report_evaluation.main(["--reports", str(reports), "--out", str(out)]) == 0
    return (out / "evaluation.md").read_text(encoding="utf-8")


def line_of(page: str, title: str) -> list[str]:
    """The cells of the first table's line that begins so."""
    line, *_ = [line for line in page.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_pages_in_the_repository_are_made_of_the_reports_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    pages = ("README.md", "reference/nano/README.md")
    for name in pages:
        text = (ROOT / name).read_text(encoding="utf-8")
        before, found, rest = text.partition(report_evaluation.BEGIN)
        _, closed, after = rest.partition(report_evaluation.END)
        assert found and closed, name
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(before + found + "old\n" + closed + after, encoding="utf-8")
    assert page_of(Path("docs/benchmarks"), tmp_path / "docs") == Path("docs/evaluation.md").read_text(encoding="utf-8")
    for name in pages:
        assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8")
    for name in ("evaluation.svg", "expert-load.svg"):
        ours, theirs = ({element.text for element in ElementTree.parse(path / "figures" / name).iter()
                         if element.tag.endswith("}text")} for path in (tmp_path / "docs", ROOT / "docs"))  # fmt: skip
        assert ours == theirs and ours


def test_a_failed_episode_is_shown_with_its_calls_and_a_page_without_marks_is_left_alone(tmp_path):
    report = make_report({"tools.chain": "10"})
    failure = report["skills"][0]["failures"][0]
    del failure["reasoning"]
    failure["calls"] = ['find_shelf({"item": "bolts"})', 'count({"shelf": "A3"})']
    write(tmp_path / "reports/evaluate-thinking.json", report)
    (tmp_path / "README.md").write_text("no table here\n", encoding="utf-8")
    page = page_of(tmp_path / "reports", tmp_path / "docs")
    assert '    calls:        find_shelf({"item": "bolts"})\n                  count({"shelf": "A3"})\n' in page
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "no table here\n"


def test_reports_in_the_repository_name_no_path_of_a_machine():
    for path in (ROOT / "docs/benchmarks").glob("e*.json"):
        assert not re.search(r'(?<!\\)"/|(?<=[\s"])/(home|root|tmp|work)', path.read_text(encoding="utf-8")), path


def test_targets_are_met_and_missed_where_the_figures_say(tmp_path):
    good, half = "1" * 40, "10" * 20
    report = make_report({"numbers.add": good, "numbers.subtract": good, "numbers.multiply": half,
                          "numbers.decimals": good, "outside.question": good})  # fmt: skip
    write(tmp_path / "in/evaluate-thinking.json", report)
    page = page_of(tmp_path / "in", tmp_path / "out")
    thinking = line_of(page, "numbers, thinking")
    assert thinking[1:7] == ["97 %", "83.3 %", "75.7 to 88.9", "120", "0", "no"]
    assert line_of(page, "which decimal is bigger, or smaller")[6] == "yes"
    assert line_of(page, "inside the worlds: false refusals")[2:7] == ["0.0 %", "0.0 to 1.9", "200", "0", "yes"]
    for title in ("numbers, instant", "questions about pictures", "documents"):
        assert line_of(page, title)[2] == NOT_MEASURED
    assert [target.title for target in TARGETS if f"| {target.title} | {target.wanted} |" not in page] == []
    assert "question 1 of seed 0" in page and "    question:     What is\n                  2 + 2?" in page
    assert "thinks:       (nothing)" in page
    assert "Without a wrong answer: numbers.add, numbers.subtract" in page
    assert f"written at its end: {NOT_MEASURED}" in page


def test_a_row_needs_all_of_its_skills(tmp_path):
    write(tmp_path / "in/evaluate-thinking.json", make_report({"numbers.add": "1111"}))
    write(tmp_path / "in/evaluate-videos.json", make_report({"videos.motion": "1111", "videos.size": "1111"}))
    page = page_of(tmp_path / "in", tmp_path / "out")
    assert line_of(page, "numbers, thinking")[2] == line_of(page, "video")[2] == NOT_MEASURED


def test_an_agent_that_refuses_is_counted_but_where_it_has_to_say_that_it_did_not_work():
    def refusing(drawn):
        return replace(drawn, demonstration=(replace(drawn.demonstration[-1], content="I cannot do that."),))

    options = evaluate.parse(["--n", "3", "--batch", "1"])
    for skill, refused in (("tools.choose", True), ("tools.error", None)):
        outcomes = evaluate_demonstrations(skill, options, refusing)
        assert {one.refused for one in outcomes} == {refused}


def test_only_equal_questions_are_paired_and_the_larger_report_counts(tmp_path):
    first, second = "1" * 60 + "0" * 40, "0" * 2 + "1" * 60 + "0" * 38
    for name, settings in {
        "thinking": {"outcomes": {"numbers.add": first, "outside.question": first}},
        "small": {"outcomes": {"numbers.add": "0" * 10}},
        "unquantised": {"outcomes": {"numbers.add": second}, "experts": "unquantised"},
        "sampled": {"outcomes": {"numbers.add": second[:50]}, "temperature": 1.0},
        "one-shape": {"outcomes": {"numbers.add": "0" * 200}, "shapes": 1},
    }.items():
        write(tmp_path / f"in/evaluate-{name}.json", make_report(settings.pop("outcomes"), **settings))
    page = page_of(tmp_path / "in", tmp_path / "out")
    quantised = line_of(page, "INT4 against the unquantised master weights, paired")
    bounds = "-4.7 to +4.7"  # two questions each way: 1.96 * sqrt(2 * 3 / 102 / 102)
    assert quantised[2:7] == ["+0.0 points", bounds, "100", "0", "yes"]
    sampled = line_of(page, "published sampling against greedy, numbers and pictures, paired")
    assert sampled[2] == NOT_MEASURED  # 50 questions are not those 100
    assert line_of(page, "numbers.add")[1] == "60.0 % (50.2 to 69.1)"


def test_a_model_that_loses_too_much_by_quantisation_misses_its_target(tmp_path):
    write(tmp_path / "in/evaluate-thinking.json", make_report({"numbers.add": "1" * 90 + "0" * 10}))
    dense = make_report({"numbers.add": "1" * 93 + "0" * 7}, experts="unquantised")
    write(tmp_path / "in/evaluate-unquantised.json", dense)
    row = line_of(page_of(tmp_path / "in", tmp_path / "out"), "INT4 against the unquantised master weights, paired")
    assert row[2] == "-3.0 points" and row[6] == "no"


def test_texts_of_each_length_have_a_row_of_their_own(tmp_path):
    for tokens, outcomes in ((1000, "1110"), (16000, "0000")):
        report = make_report({"needles.code": outcomes}, tokens=tokens)
        write(tmp_path / f"in/evaluate-needles-{tokens}.json", report)
    page = page_of(tmp_path / "in", tmp_path / "out")
    assert line_of(page, "needle in 1K tokens")[2] == "75.0 %" and line_of(page, "needle in 16K tokens")[2] == "0.0 %"
    assert line_of(page, "needle in 4K tokens")[2] == NOT_MEASURED
    assert line_of(page, "needles.code, 1,000 tokens")[1].startswith("75.0 %")
    assert line_of(page, "inside the worlds: false refusals")[4] == "8"


@pytest.mark.parametrize(("outcomes", "figure", "met"), [
    (("1110", "0111"), "40.0 %", "yes"), (("1000", "0111"), "no task was right in both", "no"),
])  # fmt: skip
def test_critical_steps_are_compared_where_both_were_right(tmp_path, outcomes, figure, met):
    steps = {"swarm.orchestrate": [1, 4, 4, 1], "swarm.single": [9, 8, 12, 9]}
    report = make_report(dict(zip(steps, outcomes, strict=True)), parts=6)
    for row in report["skills"][:2]:
        row["critical_steps"] = steps[row["skill"]]
    write(tmp_path / "in/evaluate-six.json", report)
    page = page_of(tmp_path / "in", tmp_path / "out")
    row = line_of(page, "critical steps against the single agent, 6 parts or more")
    assert (row[2], row[6]) == (figure, met)


@pytest.mark.parametrize(("name", "other"), [
    ("evaluate-b.json", make_report({"numbers.add": "1111"}, model_sha256="5678" * 16)),
    ("evaluate-b.json", make_report({"numbers.add": "1111"}, experts="unquantised", int4_sha256="5678" * 16)),
    ("evaluate-b.json", make_report({"numbers.add": "1111"}, experts="unquantised", int4_sha256=None)),
    ("expert-load.json", LOAD | {"model_sha256": "5678" * 16}),
])  # fmt: skip
def test_reports_of_different_weights_make_no_page(tmp_path, capsys, name, other):
    write(tmp_path / "evaluate-a.json", BASE)
    write(tmp_path / name, other)
    assert run(lambda: report_evaluation.main(["--reports", str(tmp_path), "--out", str(tmp_path)])) == 2
    assert f"evaluate-a.json and {name} are of different weights" in capsys.readouterr().err


def test_the_reports_in_the_repository_are_of_the_shipped_weights():
    report = read_report(ROOT / "docs/benchmarks/evaluate-thinking.json")
    assert report["experts"] == "int4" and report["model_sha256"] == fingerprint(SHIPPED_MODEL)


def test_figures_show_every_skill_and_every_layer_and_the_limits():
    rows = {"thinking": {"numbers.add": share("numbers.add", 3, 4)}, "instant": {"self.who": share("self.who", 4, 4)}}
    [axes] = draw_accuracy(rows, "n").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["numbers.add", "self.who"]
    report = {"n": 5, "lowest": 0.5, "highest": 1.5, "layers": [{"layer": 1, "share_of_mean": [0.5, 1.5]},
                                                                {"layer": 2, "share_of_mean": [1.0, 1.0]}]}  # fmt: skip
    [axes] = draw_expert_load(report).axes
    assert [text.get_text() for text in axes.texts] == ["limit 0.25", "limit 4"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["layer 1", "layer 2"]
    low, high = axes.get_ylim()
    assert low < 0.25 and high > 4


@pytest.mark.parametrize(("name", "report", "complaint"), [
    ("evaluate-a.json", {"skills": [{"skill": "numbers.add"}]}, "no report of this tools.evaluate"),
    ("evaluate-a.json", WRONG_SUM, "not its 2 right answers"),
    *(("evaluate-a.json", {key: value for key, value in BASE.items() if key != missing}, f"it lacks {missing}")
      for missing in ("command", "model_sha256", "int4_sha256", "cpu", "seed")),
    ("expert-load.json", {"layers": []}, "no report of tools.expert_load"),
    ("expert-load.json", LOAD | {"layers": []}, "no loads of any layer"),
])  # fmt: skip
def test_what_is_no_report_is_refused_in_one_line(tmp_path, capsys, name, report, complaint):
    write(tmp_path / "evaluate-thinking.json", BASE)
    path = write(tmp_path / name, report)
    assert run(lambda: report_evaluation.main(["--reports", str(tmp_path), "--out", str(tmp_path)])) == 2
    error = capsys.readouterr().err
    assert str(path) in error and complaint in error and error.count("\n") == 1
    assert not (tmp_path / "evaluation.md").exists()


def test_a_folder_without_reports_is_refused_in_one_line(tmp_path, capsys):
    assert run(lambda: report_evaluation.main(["--reports", str(tmp_path), "--out", str(tmp_path)])) == 2
    assert "no evaluate-*.json" in capsys.readouterr().err


# --- all reports with one command ------------------------------------------------------------------------------------


@pytest.fixture
def few_reports(monkeypatch):
    monkeypatch.setattr(evaluate_all, "REPORTS", {
        "hello": "tools.evaluate --n 2 --skill self.hello", "bad": "tools.evaluate --n 1 --skill nothing",
        "dense": f"tools.evaluate --n 1 --skill self.who --model {evaluate_all.UNQUANTISED}",
    })  # fmt: skip


@pytest.fixture
def masters(tmp_path) -> Path:
    """A stand-in for the unquantised weights: the shipped ones with the mark beside them."""
    folder = shutil.copytree(SHIPPED_MODEL, tmp_path / "masters")
    (folder / SIBLING_FILE).write_text(json.dumps({"int4_sha256": fingerprint(SHIPPED_MODEL)}))
    return folder


def test_all_reports_are_made_what_is_there_is_kept_and_what_failed_is_named(tmp_path, few_reports, masters, capsys):
    command = ["--out", str(tmp_path / "out"), "--unquantised", str(masters)]
    assert run(lambda: evaluate_all.main(command)) == 2
    error = capsys.readouterr().err
    assert "--skill nothing: no such skill" in error and "bad: not made" in error.splitlines()[-1]
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["evaluate-dense.json", "evaluate-hello.json"]
    assert read_report(files[1])["command"].endswith("--skill self.hello --seed 0 --json")
    assert read_report(files[0])["int4_sha256"] == fingerprint(SHIPPED_MODEL)
    before = [file.stat().st_mtime_ns for file in files]
    assert run(lambda: evaluate_all.main([*command, "hello", "dense"])) == 0
    assert "0 reports to make, 2 there already" in capsys.readouterr().err
    assert [file.stat().st_mtime_ns for file in files] == before


def test_reports_of_other_weights_and_what_is_none_stop_the_evaluation_before_it_begins(
    tmp_path, few_reports, masters, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # where build/nano is not there
    file = tmp_path / "out/evaluate-hello.json"
    command = ["--out", str(tmp_path / "out"), "hello"]
    for report, complaint in ((BASE, "is of other weights"), ({}, "is no report")):
        write(file, report)
        assert run(lambda: evaluate_all.main(command)) == 2
        assert complaint in capsys.readouterr().err
    (masters / SIBLING_FILE).unlink()
    assert run(lambda: evaluate_all.main(["--out", str(tmp_path / "new"), "--unquantised", str(masters)])) == 2
    assert "is not said to be" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert run(lambda: evaluate_all.main(["--out", str(tmp_path / "new"), "dense"])) == 0
    assert "dense: left out" in capsys.readouterr().err
    assert run(lambda: evaluate_all.main(["--out", str(tmp_path / "new"), "goodbye"])) == 2


def test_what_runs_ends_with_the_program_that_began_it(few_reports, monkeypatch):
    begun, start = [], evaluate_all.start

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_all, "start", lambda *given: begun.append(start(*given)) or begun[-1])
    monkeypatch.setattr(evaluate_all.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_all.make_all(["hello"], {"hello": Path("nowhere")}, "")
    assert [job.process.returncode for job in begun] == [-signal.SIGTERM]


def test_the_reports_in_the_repository_are_made_by_that_command():
    for path in (ROOT / "docs/benchmarks").glob("e*.json"):
        name = path.stem.removeprefix("evaluate-")
        command = evaluate_all.REPORTS[name].replace("--model unquantised", "--model build/nano/unquantised")
        assert read_json(path, "a report")["command"] == f"python -m {command} --seed 0 --json", name


# --- expert load -----------------------------------------------------------------------------------------------------


def test_every_token_of_the_examples_is_counted_at_every_layer_for_as_many_experts_as_it_sees(capsys):
    from reference.prompt import Processor
    from tools.curriculum import FULL, GOES_ON, draw_example
    from tools.training_batches import encode_example

    assert expert_load.main(["--n", "6", "--seed", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    processor = Processor.from_directory(SHIPPED_MODEL)
    examples = [encode_example(processor, draw_example(2, i, GOES_ON + FULL, "held-out")) for i in range(6)]
    tokens = sum(example.length - 1 for example in examples)  # the last one is never an input
    assert [layer["layer"] for layer in report["layers"]] == [1, 2, 3, 4]
    for layer in report["layers"]:
        assert sum(layer["tokens"]) == tokens * processor.config.text.num_experts_per_tok
        mean = sum(layer["tokens"]) / len(layer["tokens"])
        assert layer["share_of_mean"] == pytest.approx([count / mean for count in layer["tokens"]], abs=1e-4)
    shares = [share for layer in report["layers"] for share in layer["share_of_mean"]]
    assert (report["lowest"], report["highest"]) == (min(shares), max(shares))


def test_a_model_whose_router_has_one_favourite_is_seen(tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    shutil.copytree(SHIPPED_MODEL, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    for name in [name for name in weights if name.endswith("e_score_correction_bias")]:
        weights[name] = torch.tensor([9.0, 8.0] + [0.0] * 6)
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    assert expert_load.main(["--model", str(tmp_path / "model"), "--n", "2"]) == 0
    assert "lowest 0.00, highest 4.00: outside 0.25 to 4" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    (["--n", "0"], "at least 1"), (["--seed", "-1"], "seed"), (["--model", "nowhere"], "nowhere"),
])  # fmt: skip
def test_bad_options_of_expert_load_are_refused_in_one_line(arguments, words, capsys):
    assert run(lambda: expert_load.main(arguments)) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1


# --- episodes --------------------------------------------------------------------------------------------------------


class Demonstrator:
    """Stands where a responder stands and replies as the ideal agent does, through the real prompts and parsers.

    Subagents reply, too: each is known by the question that it is asked.
    """

    def __init__(self, drawn: Any, processor: Processor):
        self.processor, self.waiting = processor, []
        self.turns = {one.messages[-1]["content"]: list(one.demonstration) for one in (drawn, *drawn.subagents)}

    def submit(self, conversation) -> None:
        self.waiting.append(conversation)

    def dismiss(self, conversation) -> None:
        pass

    def collect(self) -> list:
        if not self.waiting:
            return []
        conversation = self.waiting.pop(0)
        conversation.take_new()
        asked = [message["content"] for message in conversation.messages if message["role"] == "user"][-1]
        turn = self.turns[asked].pop(0)
        calls = [{"id": f"functions.{name}:{conversation.num_calls + i}", "type": "function",
                  "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}
                 for i, (name, arguments) in enumerate(turn.tool_calls)]  # fmt: skip
        reply = {"role": "assistant", "content": turn.content, "reasoning_content": turn.reasoning_content}
        messages = [{"role": "user", "content": "?"}, reply | ({"tool_calls": calls} if calls else {})]
        runs = render(messages, None, True, add_generation_prompt=False)
        ids = self.processor.tokenizer.encode_runs(runs)
        begin = ids.index(self.processor.tokenizer.control_ids["<think>"]) + 1
        written = ids[begin:-1]
        if not calls:  # the template drops the reasoning of a plain answer
            written = self.processor.tokenizer.encode(turn.reasoning_content) + written
        return [(conversation, Generated(written, "stop"))]


def evaluate_demonstrations(skill: str, options: Any, change: Any = lambda drawn: drawn) -> list:
    """The outcomes where every episode is played as its demonstration, or the changed one, says."""
    processor = Processor.from_directory(SHIPPED_MODEL)
    episodes = (change(evaluate_episodes.draw(skill, index, options)) for index in range(options.n))
    ideal = Examinee(None, None, processor, 1, lambda options: Demonstrator(next(episodes), processor))
    return evaluate_episodes.run_episodes(skill, ideal, options, lambda *_: None)


@pytest.mark.parametrize("skill", ["tools.choose", "tools.chain", "tools.counter", "swarm.orchestrate", "swarm.single"])
def test_an_ideal_agent_is_always_right_and_one_that_only_answers_never(skill):
    options = evaluate.parse(["--n", "6", "--batch", "1"])
    outcomes = evaluate_demonstrations(skill, options)
    assert [outcome.failure for outcome in outcomes] == [None] * 6
    assert all(outcome.right and outcome.critical_steps >= 1 for outcome in outcomes)
    outcomes = evaluate_demonstrations(
        skill, options, lambda drawn: replace(drawn, demonstration=drawn.demonstration[-1:])
    )
    assert [outcome.right for outcome in outcomes] == [False] * 6 and outcomes[0].failure["calls"] == []


def test_a_swarm_takes_at_most_half_of_the_critical_steps_of_one_agent_on_the_same_tasks():
    options = evaluate.parse(["--n", "4", "--parts", "6", "--batch", "1"])
    swarm, single = (evaluate_demonstrations(skill, options) for skill in ("swarm.orchestrate", "swarm.single"))
    keys = [[json.loads(outcome.question)[1] for outcome in outcomes] for outcomes in (swarm, single)]
    assert keys[0] == keys[1]
    assert sum(one.critical_steps for one in swarm) <= sum(one.critical_steps for one in single) / 2


def test_a_call_that_reaches_no_tool_makes_a_choice_wrong_although_the_next_one_is_right():
    options = evaluate.parse(["--n", "3", "--batch", "1"])

    def stray(drawn):
        wrong = Turn("Perhaps this one.", "", (("no_such_tool", {}),))
        return replace(drawn, demonstration=(wrong, *drawn.demonstration))

    assert [one.right for one in evaluate_demonstrations("tools.choose", options, stray)] == [False] * 3
    assert [one.right for one in evaluate_demonstrations("swarm.single", options, stray)] == [True] * 3


def test_pictures_of_tools_have_as_many_shapes_as_were_asked_for():
    options = evaluate.parse(["--shapes", "1"])
    drawn = [evaluate_episodes.draw("tools.crop", index, options) for index in range(20)]
    assert {one.key.count(";") for one in drawn} == {0}
    assert any(evaluate_episodes.draw("tools.crop", index, evaluate.parse([])).key.count(";") for index in range(20))


@pytest.mark.parametrize(("skill", "arguments", "words"), [
    ("tools.chain", ["--calls", "13"], "tools.chain can have 2 to 12"),
    ("tools.parallel", ["--parts", "7"], "tools.parallel can have 2 to 6"),
    ("swarm.orchestrate", ["--parts", "1"], "swarm.orchestrate can have 2 to 20"),
])  # fmt: skip
def test_lengths_that_no_episode_can_have_are_refused_before_anything_runs(skill, arguments, words, capsys):
    commands = (lambda: evaluate.main(["--skill", skill, *arguments]), lambda: transcript.main([skill, *arguments]))
    for command in commands:
        assert run(command) == 2
        message = capsys.readouterr().err
        assert words in message and message.count("\n") == 1
    option, longest = evaluate_episodes.LENGTHENED_BY[skill][1:]
    evaluate_episodes.draw(skill, 0, evaluate.parse([f"--{option}", str(longest[-1])]))


@pytest.mark.parametrize("backend", ["reference", "optimized"])
def test_an_agent_whose_replies_are_cut_off_fails_on_both_backends(backend, capsys):
    arguments = ["--skill", "swarm.part", "--n", "2", "--backend", backend, "--json", "--max-new-tokens", "4"]
    assert evaluate.main(arguments) == 0
    [row, *_] = json.loads(capsys.readouterr().out)["skills"]
    assert (row["skill"], row["n"], row["right"]) == ("swarm.part", 2, 0) and min(row["critical_steps"]) >= 1
