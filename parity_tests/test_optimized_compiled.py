"""The compiled forward of the optimized model: the same numbers, and no new graph once it is warm."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from optimized import capability, int4_tiles
from optimized.generated import generated
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
    "int4 narrow": small_config(SMALL, int4=True),
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
    narrow = "tiles" if int4_tiles.tile_size() == 32 else "words"  # 32 outputs: PyTorch's tiles have 64 with AVX-512
    assert layouts == {"dense": set(), "int4 narrow": {narrow, "lanes"}, "int4 lanes": {"lanes"}}[kind]
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


def test_a_copy_of_a_compiled_model_computes_with_its_own_weights(tmp_path: Path) -> None:
    if not capability.has_compiler(torch.device("cpu")):
        return
    model = load_model(write_checkpoint(tmp_path, KINDS["dense"], seed=1))
    compile_steps(model)
    with torch.inference_mode():
        expected = model(tokens(9))
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_agrees("optimized, a copy", copied(tokens(9)), expected, FLOAT32)
            copied.language_model.lm_head.weight.zero_()
            assert not copied(tokens(9)).any() and torch.equal(model(tokens(9)), expected)


def test_what_was_compiled_is_kept_for_the_next_run(tmp_path: Path) -> None:
    """As another process would meet it: nothing in memory, everything on disk."""
    if not capability.has_compiler(torch.device("cpu")):
        return
    directory = write_checkpoint(tmp_path, KINDS["int4 narrow"], seed=1)
    counters = torch._dynamo.utils.counters["inductor"]
    misses = []
    for _ in range(2):
        torch._dynamo.reset()
        before = counters["fxgraph_cache_miss"]
        model = load_model(directory)
        compile_steps(model)
        with torch.inference_mode():
            cache = model.new_cache(1, 300)
            model(tokens(9), cache=cache)
            model(tokens(1), cache=cache)
        misses.append(counters["fxgraph_cache_miss"] - before)
    assert misses[1] == 0 < counters["fxgraph_cache_hit"]


def test_a_compiler_that_fails_is_said_once_and_the_numbers_stay(tmp_path: Path, monkeypatch) -> None:
    directory = write_checkpoint(tmp_path, KINDS["dense"], seed=1)
    plain, fast = load_reference(directory), load_model(directory)

    def refuse(*_: object, **__: object):
        def call(*_: object):
            raise torch._dynamo.exc.TorchDynamoException("CppCompileError: out of disk space\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr(capability, "has_compiler", lambda device: True)
    generated.cache_clear()
    compile_steps(fast)
    with torch.inference_mode(), pytest.warns(UserWarning) as caught:
        for length in (4, 1):
            assert_agrees("optimized, nothing compiled", fast(tokens(length)), plain(tokens(length)), FLOAT32)
    generated.cache_clear()
    assert all(str(w.message).endswith("slower: CppCompileError: out of disk space") for w in caught)
    assert sum("compute cannot be compiled" in str(w.message) for w in caught) == 1


def test_without_a_compiler_the_model_runs_as_it_is(tmp_path, monkeypatch, capsys) -> None:
    from optimized import generate
    from reference.command import DONE, run

    monkeypatch.setattr(capability, "has_compiler", lambda device: False)
    assert run(lambda: generate.main(["Who are you?", "--compile", "--temperature", "0"])) == DONE
    printed = capsys.readouterr()
    assert "no compiler found" in printed.err and "model" in printed.out
