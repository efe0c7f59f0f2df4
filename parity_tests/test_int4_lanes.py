"""INT4 experts laid out for generated C++: the same bits back, and the same numbers in every way of running them."""

import pytest
import torch
from torch import Tensor, nn

from optimized import capability, int4_lanes, moe, ops
from parity_tests.agreement import FLOAT32, assert_agrees, assert_caught
from reference.errors import UsageError
from reference.int4 import dequantize, pack, quantize
from reference.mlp import SwiGLU

pytestmark = pytest.mark.parity

E, C, W = 6, 128, 64  # n_routed_experts, hidden_size, moe_intermediate_size
TOKENS = {"one token": 1, "gathered": 3, "grouped": 40}


def published(product: str) -> tuple[list[SwiGLU], dict[str, Tensor]]:
    """Random experts as the modules that the words stand for, and as published tensors."""
    modules, tensors = [], {}
    for i in range(E):
        expert = SwiGLU(C, W).requires_grad_(False)
        for name, linear in expert.named_children():
            words, scale = quantize((torch.randn_like(linear.weight) * linear.in_features**-0.5).bfloat16())
            linear.weight.copy_(dequantize(words, scale, product))
            tensors |= {f"{i}.{name}.weight_packed": words, f"{i}.{name}.weight_scale": scale}
        modules.append(expert)
    return modules, tensors


def in_lanes(tensors: dict[str, Tensor], product: str, dtype: torch.dtype = torch.float32) -> moe.Int4Experts:
    experts = moe.Int4Experts(E, C, W, dtype)
    experts.product = product
    experts.use_generated()
    experts.take(tensors)
    assert experts.gate_up.layout == experts.down.layout == "lanes"
    return experts


def drawn(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, weights and expert ids; expert 5 stays empty, groups are ragged."""
    expert_ids = torch.stack([torch.randperm(5)[:2] for _ in range(num_tokens)])
    return torch.randn(num_tokens, C), torch.rand(num_tokens, 2), expert_ids


def one_by_one(modules: list[SwiGLU], tokens: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
    return torch.stack([sum(w * modules[e](x) for w, e in zip(ws, es.tolist(), strict=True))
                        for x, ws, es in zip(tokens, weights, expert_ids, strict=True)])  # fmt: skip


@pytest.mark.parametrize("shape", [(64, 32), (128, 96), (192, 64)])
def test_lanes_give_back_the_published_bits(shape: tuple[int, int]) -> None:
    num_outputs, num_inputs = shape
    words = pack(torch.randint(-8, 8, shape))
    scale = torch.rand(num_outputs, num_inputs // 32).bfloat16()
    lanes, scales = int4_lanes.pack_lanes(words), int4_lanes.pack_scales(scale)
    assert torch.equal(int4_lanes.unpack_lanes(lanes), words)
    assert torch.equal(int4_lanes.unpack_scales(scales), scale)
    assert lanes.nbytes == words.nbytes and scales.nbytes == 2 * scale.nbytes
    for rounded, product in ((False, "exact"), (True, "bfloat16")):
        dense = int4_lanes.dense(lanes, scales, rounded, torch.float32)
        assert torch.equal(dense, dequantize(words, scale, product).T.float())


@pytest.mark.parametrize("product", ["exact", "bfloat16"])
@pytest.mark.parametrize("form", TOKENS)
def test_every_form_multiplies_what_the_words_say(form: str, product: str) -> None:
    modules, tensors = published(product)
    experts, arguments = in_lanes(tensors, product), drawn(TOKENS[form])
    is_gathered = arguments[2].numel() <= capability.GATHER_INT4 * E
    assert is_gathered == (form != "grouped")
    expected = one_by_one(modules, *arguments)
    stage = f"optimized, INT4 experts in lanes, {form}"
    assert_agrees(stage, experts(*arguments), expected, FLOAT32)
    experts.product = "exact" if product == "bfloat16" else "bfloat16"
    assert_caught(f"{stage}: the other rounding", experts(*arguments), expected, FLOAT32)


@pytest.mark.parametrize("form", TOKENS)
def test_bfloat16_is_no_further_from_the_truth_than_products_one_by_one(form: str) -> None:
    modules, tensors = published("exact")
    experts, (tokens, weights, expert_ids) = in_lanes(tensors, "exact", torch.bfloat16), drawn(TOKENS[form])
    tokens = tokens.bfloat16()
    truth = one_by_one([module.double() for module in modules], tokens.double(), weights.double(), expert_ids)
    plain = one_by_one([module.bfloat16() for module in modules], tokens, weights, expert_ids)
    error = (experts(tokens, weights, expert_ids).double() - truth).norm()
    assert error <= 1.1 * (plain.double() - truth).norm()


def test_dense_experts_of_a_few_tokens_are_generated() -> None:
    experts = moe.DenseExperts(E, C, W)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.1)
    for num_tokens in (1, 3):
        arguments = drawn(num_tokens)
        expected = experts(*arguments)
        experts.use_generated()
        assert arguments[2].numel() <= capability.GATHER_DENSE * E
        assert_agrees("optimized, dense experts gathered", experts(*arguments), expected, FLOAT32)
        experts.may_generate = False


def test_state_is_loaded_into_lanes_and_read_from_them() -> None:
    _, tensors = published("exact")
    experts = in_lanes({name: tensor.flip(0) for name, tensor in tensors.items()}, "exact")
    shapes = {name: tensor for name, tensor in experts.published() if name.endswith("_shape")}
    experts.load_state_dict(tensors | shapes)
    assert experts.gate_up.layout == "lanes"
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in experts.published() if name in tensors)


def test_operators_keep_their_contracts_on_lanes() -> None:
    experts, arguments = in_lanes(published("exact")[1], "exact"), drawn(3)
    stacks = experts.gate_up.weight, experts.gate_up.scale, experts.down.weight, experts.down.scale
    torch.library.opcheck(ops.int4_experts, (*arguments, *stacks, False))
    query, key, value = torch.randn(2, 3, 5, 12), torch.randn(2, 3, 9, 12), torch.randn(2, 3, 9, 8)
    rows = torch.tensor([4, 2]), torch.tensor([0, 3])
    torch.library.opcheck(ops.expanded_attention, (query, key, value, *rows, 0.3, False))


def test_too_few_outputs_stay_as_they_are() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert capability.int4_layout(64, cpu, may_generate=True) == "lanes"
    assert capability.int4_layout(64, cpu, may_generate=False) != "lanes"
    assert capability.int4_layout(96, cpu, may_generate=True) != "lanes"
    assert capability.int4_layout(64, cuda, may_generate=True) == "words"


def test_an_old_pytorch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    with pytest.raises(UsageError, match=r"needs PyTorch 2\.11 or newer, and this is 2\.10\.1"):
        capability.check_version()
