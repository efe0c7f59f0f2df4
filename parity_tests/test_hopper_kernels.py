"""What Inductor generates for Hopper from the experts' products and decode attention, looked at without a GPU.

Full width of K2.5: counted, compiled for sm_90a, held to the shared memory of a block. Small and in float32: run in
Triton's interpreter. How long a kernel takes is for `make gpu-check` to say.
"""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from optimized import cuda_experts, flex_decode
from optimized.generated import on_cuda
from optimized.int4_words import BLOCK_ROWS, pick
from parity_tests.agreement import FLOAT32, assert_agrees, assert_caught
from parity_tests.conftest import NO_TRITON
from parity_tests.hopper_kernels import (
    HAS_WHEEL,
    Compiled,
    Emitted,
    compile_sm90a,
    emit,
    interpret,
    kernel_name,
    num_loads,
)
from reference.int4 import dequantize, quantize
from reference.presets import preset_dict

pytestmark = pytest.mark.skipif(not HAS_WHEEL, reason=NO_TRITON)

# n tokens   C hidden_size   K num_experts_per_tok   E n_routed_experts   W moe_intermediate_size   b blocks   R rows
# O outputs   I inputs   B batch   S slots of the cache   H num_attention_heads   R kv_lora_rank   P qk_rope_head_dim
TEXT = preset_dict("kimi-k2.5")["text_config"]
C, K, E, W = (TEXT[key] for key in ("hidden_size", "num_experts_per_tok", "n_routed_experts", "moe_intermediate_size"))
TUNED = 8  # configurations compiled of each product: all that the tuner tries with small tiles
SMALL = {"C": 128, "W": 64, "E": 5, "K": 2}  # for the interpreter


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def routed(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (n, C), weights (n, K) and expert ids (n, K)."""
    weights = meta(num_tokens, K, dtype=torch.float32)
    return meta(num_tokens, C), weights, meta(num_tokens, K, dtype=torch.int64)


def packed(num_outputs: int, num_inputs: int) -> tuple[Tensor, Tensor]:
    """Words (E, O, I/8) and scales (E, O, I/32) of all experts."""
    return meta(E, num_outputs, num_inputs // 8, dtype=torch.int32), meta(E, num_outputs, num_inputs // 32)


def emit_product(function, *args) -> Emitted:
    return emit(function.__wrapped__, *args, options=function.options)


def assert_streams_words(emitted: Emitted, num_kernels: int, largest: int) -> None:
    """The words go from memory into registers once, and no tensor of more than `largest` elements is made."""
    assert len(emitted.kernels) == num_kernels, [kernel_name(kernel) for kernel in emitted.kernels]
    assert [call for call in emitted.library_calls if call != "torch.ops.aten.view.dtype"] == []  # which copies nothing
    assert all(meta(*shape).numel() <= largest for shape, _ in emitted.buffers), emitted.buffers
    for kernel in emitted.kernels:
        assert all(num_loads(kernel, pointer) <= 1 for pointer in word_pointers(kernel)), kernel_name(kernel)
    assert any(word_pointers(kernel) for kernel in emitted.kernels)


def word_pointers(kernel: str) -> list[str]:
    """Arguments that are packed weights: integers of 32 or 8 bits."""
    return re.findall(r"'(in_ptr\d+)': '\*(?:i32|u8)'", kernel)


def assert_usable(configurations: list[Compiled]) -> None:
    """No registers in memory, and a block's shared memory fits."""
    for found in configurations:
        assert found.spilled_bytes == 0 and found.fits, found


def without_crowded_tile(configurations: list[Compiled]) -> list[Compiled]:
    """All that the tuner tries of a reduction; with Triton 3.6 all but the one tile of 64 by 64.

    From the same Triton source and with the same ptxas, 3.6 sends that tile's sums through 16 KB of shared memory where
    3.7 needs 256 bytes, and has up to 68 registers too few. Inductor does not even time what lacks more than 16, and
    where it lacks fewer another configuration may still win.
    """
    import triton

    if TorchVersion(triton.__version__) >= (3, 7):
        return configurations
    others = [found for found in configurations if found.blocks != {"XBLOCK": 64, "R0_BLOCK": 64}]
    assert len(configurations) - len(others) <= 1
    return others


@pytest.mark.parametrize("num_tokens", [1, 8])
def test_decoding_reads_the_chosen_words_once_in_three_kernels(num_tokens: int) -> None:
    args = *routed(num_tokens), *packed(2 * W, C), *packed(C, W), False
    emitted = emit_product(cuda_experts.int4_gathered, *args)
    assert_streams_words(emitted, num_kernels=3, largest=num_tokens * K * C)
    for kernel in emitted.kernels:
        configurations = compile_sm90a(kernel, TUNED)
        assert_usable(without_crowded_tile(configurations))
        assert any(found.wide_loads for found in configurations)


def test_dense_decoding_makes_no_copy_of_the_chosen_experts() -> None:
    emitted = emit_product(cuda_experts.dense_gathered, *routed(8), meta(E, 2 * W, C), meta(E, C, W))
    assert len(emitted.kernels) == 3 and emitted.library_calls == []
    assert all(meta(*shape).numel() <= 8 * K * C for shape, _ in emitted.buffers)


@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(2 * W, C), (C, W)])
def test_a_grouped_product_is_one_kernel_on_the_matrix_units(num_outputs: int, num_inputs: int) -> None:
    blocks = 392  # of 64 tokens
    halves, experts = meta(2, blocks, BLOCK_ROWS, num_inputs // 2), meta(blocks, dtype=torch.int64)
    emitted = emit_product(cuda_experts.int4_grouped, halves, experts, *packed(num_outputs, num_inputs), False)
    assert_streams_words(emitted, num_kernels=1, largest=blocks * BLOCK_ROWS * num_outputs)
    (kernel,) = emitted.kernels
    assert kernel.count("tl.dot(") == 2  # even columns and odd ones
    configurations = compile_sm90a(kernel, TUNED)
    assert_usable(configurations)
    assert sum(found.wgmma > 0 for found in configurations) >= 4


def test_a_dense_grouped_product_is_one_kernel() -> None:
    halves, experts = meta(2, 392, BLOCK_ROWS, C // 2), meta(392, dtype=torch.int64)
    emitted = emit_product(cuda_experts.dense_grouped, halves, experts, meta(E, 2 * W, C))
    assert len(emitted.kernels) == 1 and emitted.library_calls == []
    assert emitted.kernels[0].count("tl.dot(") == 1


def test_sorting_and_weighing_are_a_few_small_kernels() -> None:
    """What stands around the products of a batch of 64, by name and number."""
    tokens, weights, expert_ids = routed(64)
    sorting = emit_product(cuda_experts.to_blocks, tokens, expert_ids, E)
    assert len(sorting.kernels) <= 7 and sorting.library_calls == ["aten.scatter_.src"]
    gating = emit_product(cuda_experts.gated_halves, meta(392, BLOCK_ROWS, 2 * W))
    slot = meta(expert_ids.numel(), dtype=torch.int64)
    weighing = emit_product(cuda_experts.weigh_blocks, meta(392, BLOCK_ROWS, C), slot, weights)
    for emitted in (gating, weighing):
        assert len(emitted.kernels) == 1 and emitted.library_calls == []


def flex_decoding(query: Tensor, latent_key: Tensor, start: Tensor, num_padding: Tensor) -> Tensor:
    mask = flex_decode.decode_mask(start, num_padding, latent_key.shape[1])
    return flex_decode.attend(query, latent_key, mask, TEXT["kv_lora_rank"], 0.1)


def decoded(batch: int) -> list[Tensor]:
    """One query per row (B, 1, H, R+P), a cache of 4096 slots (B, S, R+P), lengths and paddings (B,)."""
    width = TEXT["kv_lora_rank"] + TEXT["qk_rope_head_dim"]
    lengths = meta(batch, dtype=torch.int64), meta(batch, dtype=torch.int64)
    return [meta(batch, 1, TEXT["num_attention_heads"], width), meta(batch, 4096, width), *lengths]


@pytest.mark.parametrize("batch", [1, 8])
def test_decode_attention_reads_the_cache_once_and_stays_in_registers(batch: int) -> None:
    """Five kernels: two for the mask, one attends, two put its parts together. Nothing is a copy of the cache."""
    emitted = emit(flex_decoding, *decoded(batch))
    assert emitted.library_calls == [] and len(emitted.kernels) == 5
    (attending,) = [kernel for kernel in emitted.kernels if kernel_name(kernel).startswith("triton_tem_")]
    (found,) = compile_sm90a(attending)
    assert_usable([found])
    assert found.wide_loads > 0
    parts = batch * flex_decode.HOPPER["SPLIT_KV"] * TEXT["num_attention_heads"] * TEXT["kv_lora_rank"]
    assert all(meta(*shape).numel() <= parts for shape, _ in emitted.buffers), emitted.buffers


# --- the assertions have teeth ---


def test_flex_attention_as_it_comes_is_caught(monkeypatch) -> None:
    """The same heads with the settings that FlexAttention would choose."""
    monkeypatch.setattr(flex_decode, "HOPPER", None)
    emitted = emit(flex_decoding, *decoded(1))
    (attending,) = [kernel for kernel in emitted.kernels if kernel_name(kernel).startswith("triton_tem_")]
    with pytest.raises(AssertionError, match=r"spilled_bytes=[1-9]"):
        assert_usable(compile_sm90a(attending))


def shifted_by_a_tensor(words: Tensor, scale: Tensor, hidden: Tensor) -> Tensor:
    """The obvious spelling of unpacking: correct, and eight times the bytes."""
    amounts = torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)
    integers = ((words.unsqueeze(-1) >> amounts) & 15).flatten(-2) - 8  # (O, I)
    weight = (integers.unflatten(-1, (-1, 32)) * scale.unsqueeze(-1)).flatten(-2)  # (O, I)
    return torch.nn.functional.linear(hidden, weight.to(hidden.dtype))


def test_a_weight_written_out_is_caught() -> None:
    words, scale = meta(2 * W, C // 8, dtype=torch.int32), meta(2 * W, C // 32)
    emitted = emit(shifted_by_a_tensor, words, scale, meta(64, C))
    with pytest.raises(AssertionError):
        assert_streams_words(emitted, num_kernels=1, largest=64 * C)
    assert ((2 * W, C // 32, 32), "bfloat16") in emitted.buffers and emitted.library_calls == ["extern_kernels.mm"]


def matvec_shifted_by_a_tensor(words: Tensor, scale: Tensor, hidden: Tensor) -> Tensor:
    """The same as one reduction over a row."""
    amounts = torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)
    integers = ((words.unsqueeze(-1) >> amounts) & 15).flatten(-2) - 8  # (O, I)
    weight = (integers.unflatten(-1, (-1, 32)) * scale.unsqueeze(-1)).flatten(-2)  # (O, I)
    return (weight.float() * hidden.float()).sum(-1)


def test_a_matvec_that_shifts_by_a_tensor_is_caught() -> None:
    words, scale = meta(2 * W, C // 8, dtype=torch.int32), meta(2 * W, C // 32)
    emitted = emit(matvec_shifted_by_a_tensor, words, scale, meta(1, C))
    with pytest.raises(AssertionError):
        assert_streams_words(emitted, num_kernels=1, largest=2 * W)


def test_a_grouped_product_without_native_products_is_caught() -> None:
    args = meta(2, 392, BLOCK_ROWS, C // 2), meta(392, dtype=torch.int64), *packed(2 * W, C), False
    emitted = emit(cuda_experts.int4_grouped.__wrapped__, *args)
    with pytest.raises(AssertionError):
        assert_streams_words(emitted, num_kernels=1, largest=392 * BLOCK_ROWS * 2 * W)
    assert max(meta(*shape).numel() for shape, _ in emitted.buffers) == 392 * C // 2 * 2 * W


def eight_dots(halves: Tensor, block_expert: Tensor, words: Tensor) -> Tensor:
    """One product for each nibble of a word instead of two of a byte."""
    parts = halves.flatten(0, 1).unflatten(-1, (-1, 4)).unbind(-1)  # each (2b, R, I/8)
    chosen = pick(words, block_expert).transpose(1, 2)  # (2b, I/8, O)
    return sum(torch.bmm(parts[i % 4], (((chosen >> (4 * i)) & 15) - 8).to(halves.dtype)) for i in range(8))


def test_spilled_registers_are_caught() -> None:
    halves, experts = meta(2, 8, BLOCK_ROWS, C // 2), meta(16, dtype=torch.int64)
    emitted = emit(eight_dots, halves, experts, packed(2 * W, C)[0], options=cuda_experts.NATIVE)
    with pytest.raises(AssertionError, match=r"spilled_bytes=[1-9]"):
        assert_usable([found for kernel in emitted.kernels for found in compile_sm90a(kernel, TUNED)])


# --- a compiler that fails ---


def test_what_cannot_be_compiled_runs_as_it_stands_and_says_so_once(monkeypatch) -> None:
    def refuse(*_: object, **__: object):
        def call(*_: object):
            raise torch._dynamo.exc.TorchDynamoException("no Triton for this GPU")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    on_gpu = SimpleNamespace(is_cuda=True)

    @on_cuda()
    def double(first: SimpleNamespace, number: int) -> int:
        return 2 * number

    with pytest.warns(UserWarning, match="double cannot be compiled here .* uncompiled.*: no Triton"):
        assert double(on_gpu, 3) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert double(on_gpu, 4) == 8


# --- numbers ---


def small_stacks() -> tuple[list[Tensor], list[Tensor]]:
    """Words and scales of gate_up and down, and the weights they stand for, (E, 2W, C) and (E, C, W)."""
    packed_tensors, dense = [], []
    for num_outputs, num_inputs in ((2 * SMALL["W"], SMALL["C"]), (SMALL["C"], SMALL["W"])):
        weights = torch.randn(SMALL["E"], num_outputs, num_inputs) * num_inputs**-0.5
        words, scale = zip(*(quantize(weight.bfloat16()) for weight in weights), strict=True)
        packed_tensors += [torch.stack(words), torch.stack(scale)]
        dense.append(torch.stack([dequantize(w, s, "exact") for w, s in zip(words, scale, strict=True)]))
    return packed_tensors, dense


def mixture(tokens: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The plainest mixture of experts in float64."""
    rows = []
    for token, counts, experts in zip(tokens.double(), weights.double(), expert_ids.tolist(), strict=True):
        parts = [(gate_up[e].double() @ token).chunk(2) for e in experts]
        hidden = [torch.nn.functional.silu(gate) * up for gate, up in parts]
        rows.append(sum(count * (down[e].double() @ h) for count, e, h in zip(counts, experts, hidden, strict=True)))
    return torch.stack(rows)


def in_interpreter(*cases: tuple) -> list[list[Tensor]]:
    """(function, its arguments) each, emitted for CUDA and run in the interpreter."""
    emitted = [emit_product(function, *args) for function, args in cases]
    return interpret(*((case, list(args)) for case, (_, args) in zip(emitted, cases, strict=True)))


def test_generated_kernels_compute_the_mixture() -> None:
    """The kernels of both paths: gathered, and sorted with blocks that are empty or ragged.

    Not those that sort: the interpreter does not know Inductor's binary search.
    """
    stacks, dense = small_stacks()
    tokens, weights = torch.randn(40, SMALL["C"]), torch.rand(40, SMALL["K"])  # (n, C) (n, K)
    expert_ids = torch.randint(0, 4, weights.shape)  # (n, K), expert 4 stays without tokens
    few = [tensor[:3].contiguous() for tensor in (tokens, weights, expert_ids)]
    halves, slot, block_expert = cuda_experts.to_blocks(tokens, expert_ids, SMALL["E"])
    gate_up = cuda_experts.int4_grouped(halves, block_expert, *stacks[:2], False)  # (b, R, 2W)
    hidden = cuda_experts.gated_halves(gate_up)  # (2, b, R, W/2)
    outputs = cuda_experts.int4_grouped(hidden, block_expert, *stacks[2:], False)  # (b, R, C)
    found = in_interpreter(
        (cuda_experts.int4_gathered, (*few, *stacks, False)),
        (cuda_experts.dense_gathered, (*few, *dense)),
        (cuda_experts.int4_gathered, (*few, *stacks, True)),
        (cuda_experts.int4_grouped, (halves, block_expert, *stacks[:2], False)),
        (cuda_experts.gated_halves, (gate_up,)),
        (cuda_experts.int4_grouped, (hidden, block_expert, *stacks[2:], False)),
        (cuda_experts.weigh_blocks, (outputs, slot, weights)),
    )
    for result in found[:2]:
        assert_agrees("Hopper kernels, gathered experts", result[0], mixture(*few, *dense), FLOAT32)
    for result, expected in zip(found[3:6], (gate_up, hidden, outputs), strict=True):
        assert_agrees("Hopper kernels, grouped products", result[0], expected, FLOAT32)
    expected = mixture(tokens, weights, expert_ids, *dense)
    assert_agrees("Hopper kernels, weighed blocks", found[6][0], expected, FLOAT32)
    rounded = [torch.stack([dequantize(w, s, "bfloat16") for w, s in zip(*pair, strict=True)])
               for pair in (stacks[:2], stacks[2:])]  # fmt: skip
    assert_agrees("Hopper kernels, rounded products", found[2][0], mixture(*few, *rounded), FLOAT32)
    assert_caught("Hopper kernels, rounded products: exact", found[0][0], mixture(*few, *rounded), FLOAT32)
    wrong = mixture(few[0], few[1], (few[2] + 1) % 4, *dense)
    assert_caught("Hopper kernels, gathered experts: neighbours", wrong, mixture(*few, *dense), FLOAT32)
