"""The command lines on the optimized model: the same text, one-line errors, the table of agreement."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import optimized.model as optimized_model
from optimized import capability
from optimized import generate as optimized_generate
from optimized.generation import generate as generate_fast
from parity_tests.checkpoints import small_config, write_checkpoint
from reference import generate as plain_generate
from reference.command import BAD_INPUT, CHECK_FAILED, DONE, run
from reference.generation import Generated
from reference.prompt import Prompt
from tools import bench, bench_forms, dump_activations, evaluate, greedy_agreement, parity
from tools.greedy_agreement import Alone, Comparison, GreedyAgreement, replay

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "examples" / "shapes.png"


def printed(module: str, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", f"{module}.generate", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_generate_prints_what_the_reference_prints() -> None:
    question = ("What colour is the circle?", "--image", str(PICTURE), "--temperature", "0")
    code, out, err = printed("optimized", *question)
    assert (code, out) == printed("reference", *question)[:2] and code == DONE
    assert "tok/s" in err and "flex_attention" not in err


def test_generate_samples_what_the_reference_samples(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["Who are you?", "--seed", "3", "--max-new-tokens", "30", "--json"]
    code, out, _ = printed("optimized", *arguments)
    assert run(lambda: plain_generate.main(arguments)) == code == DONE
    assert json.loads(out)["message"] == json.loads(capsys.readouterr().out)["message"]


def test_quiet_keeps_warnings_to_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "has_compiler", lambda device: False)
    for attention in ("auto", "flex"):  # without a compiler; uncompiled FlexAttention, which PyTorch warns of
        arguments = ["Who?", "--compile", "--attention", attention, "--max-new-tokens", "1", "--quiet"]
        assert run(lambda arguments=arguments: optimized_generate.main(arguments)) == DONE
        assert capsys.readouterr().err == ""


def test_an_old_torch_is_named_before_anything_of_it_is_missed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.1.0")
    for name in ("optimized.model", "torch.nn.attention.flex_attention"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    assert run(lambda: optimized_generate.main(["Who?"])) == BAD_INPUT
    assert "needs PyTorch 2.11 or newer, and this is 2.1.0" in capsys.readouterr().err


def test_a_compiler_cache_that_cannot_be_made_is_said_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    code, out, err = printed("optimized", "Who?")
    assert (code, out, err.count("\n")) == (BAD_INPUT, "", 1)
    assert str(tmp_path / "file") in err and "Name a folder that can be written: TORCHINDUCTOR_CACHE_DIR" in err


def test_help_knows_the_options_of_both() -> None:
    options = printed("optimized", "--help")[1]
    assert "python -m optimized.generate" in options and "--no-compile" in options and "--image" in options


def test_parity_prints_a_table_and_fails_beyond_the_tolerance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_checkpoint(tmp_path, small_config(int4=True), seed=2)
    for dtype in ("float32", "bfloat16"):
        assert run(lambda dtype=dtype: parity.main(["--model", str(directory), "--dtype", dtype, "--json"])) == DONE
        report = json.loads(capsys.readouterr().out)
        shares = [row["error"] / row["allowed"] for row in report["stages"] if row["allowed"]]
        assert shares == sorted(shares, reverse=True) and 0 < shares[0] <= 1
        assert {"logits", "vision.features", "layers.1.moe.routed"} <= {row["stage"] for row in report["stages"]}
        assert 0 <= report["expert_flips"] < report["tokens_routed"]
    monkeypatch.setattr(parity, "FLOAT32_TOLERANCE", 1e-9)
    assert run(lambda: parity.main(["--model", str(directory)])) == CHECK_FAILED
    assert "TOO FAR" in capsys.readouterr().out


def test_parity_fails_where_a_number_is_not_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_checkpoint(tmp_path, small_config({"num_hidden_layers": 1}), seed=2)
    loaded = optimized_model.load_model

    def damaged(*args: object) -> torch.nn.Module:
        model = loaded(*args)
        model.language_model.lm_head.weight.data[7] = torch.nan
        return model

    monkeypatch.setattr(optimized_model, "load_model", damaged)
    assert run(lambda: parity.main(["--model", str(directory), "--json"])) == CHECK_FAILED
    [worst, *_] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["stages"]
    assert (worst["stage"], worst["error"]) == ("logits", None)


def test_parity_compares_a_stage_of_zeros(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_checkpoint(tmp_path, small_config({"num_hidden_layers": 1}), seed=2)
    file = directory / "model.safetensors"
    zeros = {name: tensor * (not name.endswith("kv_b_proj.weight")) for name, tensor in load_file(file).items()}
    save_file(zeros, file)
    assert run(lambda: parity.main(["--model", str(directory), "--json"])) == DONE
    errors = {row["stage"]: row["error"] for row in json.loads(capsys.readouterr().out)["stages"]}
    assert errors["layers.0.attn.heads"] == 0 < errors["logits"]


def test_parity_allows_no_error_where_the_reference_has_none() -> None:
    assert parity.Row("logits", 0.0, 0.0).share == 0 and parity.Row("logits", 1e-30, 0.0).share > 1


def test_parity_compares_greedy_answers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy_agreement, "MAX_NEW_TOKENS", 12)
    assert run(lambda: parity.main(["--prompts", "6", "--json"])) == DONE
    greedy = json.loads(capsys.readouterr().out)["greedy"]
    [comparison] = greedy["comparisons"]
    assert (greedy["prompts"], comparison["identical"], comparison["differences"]) == (6, 6, [])
    assert comparison["identical_by_kind"] == {"text": "2 of 2", "pictures": "2 of 2", "videos": "2 of 2"}
    alone = greedy["alone_and_in_a_batch"]
    assert alone["num_identical"] == 6 and 0 < alone["all_answers"] <= alone["worst_answer"] <= alone["worst_token"]
    assert all(0 < error < 1e-5 for error in alone["worst_from_float64"].values())
    assert run(lambda: parity.main(["--prompts", "3", "--dtype", "bfloat16"])) == DONE
    printed_lines = capsys.readouterr().out
    assert "from the reference in float64" not in printed_lines
    assert "optimized against the reference: " in printed_lines
    assert "the reference against the reference in float32: " in printed_lines


def test_a_different_answer_fails_in_float32_and_says_how_near_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_end(*args: object, **settings: object) -> list[Generated]:
        """The second token of the first answer is another one; the second answer ends a token early."""
        first, second, *others = generate_fast(*args, **settings)
        first.ids[1] += 1
        second.ids.pop()
        return [first, second, *others]

    monkeypatch.setattr(greedy_agreement, "MAX_NEW_TOKENS", 40)
    monkeypatch.setattr(greedy_agreement, "generate_fast", wrong_end)
    assert run(lambda: parity.main(["--prompts", "3", "--json"])) == CHECK_FAILED
    [comparison] = json.loads(capsys.readouterr().out)["greedy"]["comparisons"]
    assert comparison["identical"] == 1 and [one["question"] for one in comparison["differences"]] == [0, 1]
    for one in comparison["differences"]:
        assert 0 < one["top_two_gap"] <= one["gap"]
    assert comparison["differences"][0]["position"] == comparison["min_median_max"]["position"][0] == 1


@pytest.mark.parametrize(
    ("all_answers", "worst_answer", "failed"),
    [(1e-6, 1e-5, False), (1.1e-6, 2e-6, True), (9e-7, 1.1e-5, True), (math.nan, math.nan, True)],
)
def test_answers_may_be_so_far_from_those_in_a_batch(all_answers: float, worst_answer: float, failed: bool) -> None:
    equal = Comparison("optimized", "the reference", ["text"], [])
    assert GreedyAgreement([equal], Alone(1, all_answers, worst_answer, 1e-4, {}), is_exact=True).failed == failed
    assert not GreedyAgreement([equal], Alone(1, all_answers, worst_answer, 1e-4, {}), is_exact=False).failed


def test_logits_that_differ_in_a_batch_are_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturbed(
        model: nn.Module, prompts: Sequence[Prompt], replies: Sequence[Generated], max_rows: int
    ) -> list[Tensor]:
        """In a batch, the first answer's logits are a little too large."""
        first, *others = replay(model, prompts, replies, max_rows)
        return [first * (1 if max_rows == 1 else 1.001), *others]

    monkeypatch.setattr(greedy_agreement, "MAX_NEW_TOKENS", 12)
    monkeypatch.setattr(greedy_agreement, "replay", disturbed)
    assert run(lambda: parity.main(["--prompts", "3", "--json"])) == CHECK_FAILED
    alone = json.loads(capsys.readouterr().out)["greedy"]["alone_and_in_a_batch"]
    assert alone["worst_answer"] == pytest.approx(1e-3, rel=0.01) and alone["all_answers"] < 0.9e-3
    assert alone["worst_from_float64"]["in a batch"] == pytest.approx(1e-3, rel=0.01)
    assert alone["worst_from_float64"]["alone"] < 1e-5


def test_evaluation_finds_the_same_with_both(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for backend in ("reference", "optimized"):
        arguments = ["--skill", "pictures.colour", "--n", "6", "--backend", backend, "--json", "--quiet"]
        assert run(lambda arguments=arguments: evaluate.main(arguments)) == DONE
        [row] = json.loads(capsys.readouterr().out)["skills"]
        found.append({key: value for key, value in row.items() if key != "seconds"})
    assert found[0] == found[1]


def test_benchmarks_refuse_before_they_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after minutes, nor after the wait for a quiet machine."""
    for module in (bench, bench_forms):
        monkeypatch.setattr(module, "wait_until_quiet", lambda: pytest.fail("it waits already"))
    nowhere = str(tmp_path / "missing" / "report.json")
    for main, arguments, words in (
        (bench.main, ["--preset", "tinny"], "--preset tinny: unknown"),
        (bench.main, ["--model", "nowhere"], "nowhere/config.json: cannot be read"),
        (bench.main, ["--contexts", "0"], "expected at least 1 token"),
        (bench.main, ["--compile"], "the reference has no compiled form"),
        (bench.main, ["--json", nowhere], "cannot write there"),
        (bench_forms.main, ["--json", nowhere], "cannot write there"),
    ):
        assert run(lambda main=main, arguments=arguments: main(arguments)) == BAD_INPUT
        message = capsys.readouterr().err
        assert words in message and message.count("\n") == 1


def test_contradictions_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for main, arguments, words in (
        (parity.main, ["--dtype", "float64"], "invalid choice"),
        (parity.main, ["--model", "nowhere"], "nowhere"),
        (parity.main, ["--prompts", "-1"], "expected 0 or more"),
        (dump_activations.main, ["--model", "reference/nano", "--input", "none", "--out", "o", "--backend", "optimized",
                                 "--dtype", "float64"], "no float64"),
    ):  # fmt: skip
        assert run(lambda main=main, arguments=arguments: main(arguments)) == BAD_INPUT
        message = capsys.readouterr().err
        assert words in message and message.count("\n") == 1
