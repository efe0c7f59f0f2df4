"""INT4 words bit by bit: the published format on paper, on random weights, and against compressed-tensors."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parity_tests.agreement import FLOAT32, assert_agrees, assert_caught
from reference.int4 import Int4Linear, dequantize, group_scales, pack, quantize, round_to_int4, set_int4_product, unpack

# w_i = (i - 16) / 16: one group, worked out by hand in docs/checkpoint-format.md.
EXAMPLE = ((torch.arange(32) - 16) / 16)[None].to(torch.bfloat16)
INTEGERS = [-7, -7, -7, -6, -6, -5, -5, -4, -4, -3, -3, -2, -2, -1, -1, 0]
INTEGERS += [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
WORDS = [0x43322111, 0x87766554, 0xBBAA9988, 0xFFEEDDCC]
LEVELS = [0, 0.1337890625, 0.267578125, 0.40234375, 0.53515625, 0.66796875, 0.8046875, 0.9375]  # q * scale in bfloat16


def unsigned(words: Tensor) -> list[int]:
    return [word % 2**32 for word in words.flatten().tolist()]


def test_worked_example_of_the_documentation() -> None:
    words, scale = quantize(EXAMPLE)
    assert scale.dtype == torch.bfloat16 and scale.view(torch.int16).item() == 0x3E09
    assert unpack(words).flatten().tolist() == INTEGERS
    assert unsigned(words) == WORDS
    assert words.flatten().tolist() == [1127358737, -2022283948, -1146447480, -1122868]
    expected = [LEVELS[abs(q)] * (1 if q > 0 else -1) for q in INTEGERS]
    assert dequantize(words, scale).flatten().tolist() == expected


def test_lowest_nibble_is_the_first_column_and_codes_are_offset_by_eight() -> None:
    assert unsigned(pack(torch.arange(-8, 8)[None])) == [0x76543210, 0xFEDCBA98]


@given(st.lists(st.lists(st.integers(-8, 7), min_size=32, max_size=32), min_size=1, max_size=5))
def test_unpack_undoes_pack(rows: list[list[int]]) -> None:
    assert unpack(pack(torch.tensor(rows))).tolist() == rows


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8))
def test_pack_undoes_unpack_for_every_word(words: list[int]) -> None:
    row = torch.tensor([words], dtype=torch.int32)
    assert torch.equal(pack(unpack(row)), row)


def test_twos_complement_nibbles_are_caught() -> None:
    """The mistake of a public re-packer: it loads, and every weight has the wrong sign or size."""
    words, scale = quantize(torch.randn(8, 64, dtype=torch.float32))
    nibbles = unpack(words) + 8
    wrong = torch.where(nibbles >= 8, nibbles - 16, nibbles).float() * scale.repeat_interleave(32, dim=-1)
    assert_caught("int4.dequantize", wrong, dequantize(words, scale), FLOAT32)


def test_scale_by_seven_steps_is_caught() -> None:
    weight = torch.randn(8, 64)
    assert_caught("int4.scale", group_scales(weight) * 7.5 / 7, group_scales(weight), FLOAT32)


def test_integers_round_half_to_even_and_stay_in_range() -> None:
    weight = torch.tensor([[-100, -8.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 7.5, 100, *[0] * 22]])
    rounded = round_to_int4(weight, torch.ones(1, 1))
    assert rounded[0, :10].tolist() == [-8, -8, -2, -2, 0, 0, 2, 2, 7, 7]


def test_a_group_of_zeros_stays_zero() -> None:
    words, scale = quantize(torch.zeros(2, 32, dtype=torch.bfloat16))
    assert unsigned(words) == [0x88888888] * 8 and scale.tolist() == [[0.0078125]] * 2
    assert dequantize(words, scale).tolist() == [[0.0] * 32] * 2


def share_rounded(words: Tensor, scale: Tensor) -> float:
    """Share of the products that bfloat16 rounds, after checking that rounding is all it does."""
    exact, rounded = dequantize(words, scale, "exact"), dequantize(words, scale)
    assert exact.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.to(torch.bfloat16))
    assert torch.equal(exact.double(), unpack(words).double() * scale.double().repeat_interleave(32, dim=-1))
    return (rounded.float() != exact).float().mean().item()


def test_the_two_products_differ_by_one_rounding_of_some_weights() -> None:
    words, scale = quantize(torch.randn(512, 512).to(torch.bfloat16))
    assert share_rounded(words, scale) == pytest.approx(0.23, abs=0.01)
    words = torch.randint(-(2**31), 2**31 - 1, words.shape, dtype=torch.int32)
    assert share_rounded(words, scale) == pytest.approx(0.37, abs=0.01)


@pytest.mark.parametrize("product", ["bfloat16", "exact"])
def test_packed_linear_is_a_linear_with_the_dequantised_weight(product: str) -> None:
    linear, weight = Int4Linear(64, 24), torch.randn(24, 64).to(torch.bfloat16)
    linear.weight_packed, linear.weight_scale = quantize(weight)
    set_int4_product(linear, product)
    hidden = torch.randn(5, 64)
    dense = dequantize(linear.weight_packed, linear.weight_scale, product).float()
    assert_agrees("int4.linear", linear(hidden), hidden @ dense.T, FLOAT32)
    assert linear.weight_shape.tolist() == [24, 64]


def oracle_scheme() -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
    return QuantizationScheme(targets=["Linear"], weights=weights)


def all_codes_and_a_zero_group(dtype: torch.dtype) -> Tensor:
    """Random rows, one row that needs all 16 codes, and zero groups between others."""
    weight = torch.randn(16, 128)
    weight[1, :32] = torch.arange(-15, 17) * 0.5
    weight[1, 0] = -8.0
    weight[2, 32:64] = 0
    weight[3] = 0
    return weight.to(dtype)


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantising_equals_compressed_tensors_bit_for_bit(dtype: torch.dtype) -> None:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    weight, scheme = all_codes_and_a_zero_group(dtype), oracle_scheme()
    words, scale = quantize(weight)
    groups = weight.unflatten(-1, (-1, 32))
    their_scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
    theirs = PackedQuantizationCompressor.compress({"weight": weight, "weight_scale": their_scale}, scheme)
    assert set(unpack(words).flatten().tolist()) == set(range(-8, 8))
    assert their_scale.dtype == scale.dtype and torch.equal(their_scale, scale)
    assert torch.equal(theirs["weight_packed"], words)
    assert theirs["weight_shape"].tolist() == [16, 128]


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_word_dequantises_as_in_compressed_tensors(dtype: torch.dtype) -> None:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor

    words = torch.randint(-(2**31), 2**31 - 1, (16, 16), dtype=torch.int32)
    scale = torch.rand(16, 4).to(dtype)
    stored = {"weight_packed": words, "weight_scale": scale, "weight_shape": torch.tensor([16, 128])}
    theirs = PackedQuantizationCompressor.decompress(stored, oracle_scheme())["weight"]
    ours = dequantize(words, scale)
    assert theirs.dtype == ours.dtype and torch.equal(theirs, ours)
