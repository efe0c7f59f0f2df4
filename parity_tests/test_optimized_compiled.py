"""The compiled forward of the optimized model: the same numbers, and no new graph once it is warm."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from optimized import capability
from optimized.int4 import Int4Stack
from optimized.model import compile_steps, load_model
from parity_tests.agreement import FLOAT32, assert_agrees
from parity_tests.checkpoints import small_config, write_checkpoint
from reference.errors import UsageError
from reference.model import load_model as load_reference

pytestmark = pytest.mark.parity

WARM_LENGTHS, LENGTHS, DECODE_STEPS = (2, 5, 150), range(3, 163, 8), 100


def tokens(length: int) -> Tensor:
    return torch.randint(0, 240, (1, length), generator=torch.Generator().manual_seed(length))


SMALL = {"num_hidden_layers": 2}
WIDE = SMALL | {"hidden_size": 128, "moe_intermediate_size": 64}  # outputs enough for lanes
KINDS = {
    "dense": small_config(SMALL),
    "int4 words": small_config(SMALL, int4=True),
    "int4 lanes": small_config(WIDE, {"text_hidden_size": WIDE["hidden_size"]}, int4=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_steps_agree_and_need_no_new_graph(kind: str, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, KINDS[kind], seed=1)
    plain, fast = load_reference(directory), load_model(directory)
    if not capability.has_compiler(torch.device("cpu")):  # a fresh machine need not have one
        with pytest.raises(UsageError, match=r"a C\+\+ compiler"):
            compile_steps(fast)
        return
    compile_steps(fast)
    layouts = {stack.layout for stack in fast.modules() if isinstance(stack, Int4Stack)}
    assert layouts == {"dense": set(), "int4 words": {"words", "lanes"}, "int4 lanes": {"lanes"}}[kind]
    torch._dynamo.reset()
    stats = torch._dynamo.utils.counters["stats"]  # over the whole process
    with torch.inference_mode():
        for length in WARM_LENGTHS:
            cache = fast.new_cache(1, 300)
            fast(tokens(length), cache=cache)
            fast(tokens(1), cache=cache)
        warm = stats["unique_graphs"]
        for length in LENGTHS:
            expected = plain(tokens(length), cache=plain.new_cache(1))
            found = fast(tokens(length), cache=fast.new_cache(1, 300))
            assert_agrees("optimized, compiled prefill", found, expected, FLOAT32)
        caches = plain.new_cache(1), fast.new_cache(1, 300)
        for model, cache in zip((plain, fast), caches, strict=True):
            model(tokens(20), cache=cache)
        for i in range(DECODE_STEPS):
            expected = plain(tokens(1) + i % 7, cache=caches[0])
            found = fast(tokens(1) + i % 7, cache=caches[1])
            assert_agrees("optimized, compiled decoding", found, expected, FLOAT32)
    assert stats["unique_graphs"] == warm


def test_without_a_compiler_the_model_runs_as_it_is(tmp_path, monkeypatch, capsys) -> None:
    from optimized import generate
    from reference.command import DONE, run

    monkeypatch.setattr(capability, "has_compiler", lambda device: False)
    assert run(lambda: generate.main(["Who are you?", "--compile", "--temperature", "0"])) == DONE
    printed = capsys.readouterr()
    assert "no compiler found" in printed.err and "model" in printed.out
