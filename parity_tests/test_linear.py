"""Products of one token, as Inductor's C++ computes them: what stands before is computed once, not once a row."""

import re

import torch
from torch import Tensor

import optimized.linear
from optimized import capability
from optimized.linear import Linear, product
from reference.norm import RMSNorm

INPUTS, OUTPUTS = 96, 1234


def computes_norm_per_row(hidden: Tensor) -> bool:
    """Whether the C++ loop over the rows of a weight computes the norm that stands before the product."""
    torch._dynamo.reset()
    norm, linear = RMSNorm(INPUTS, 1e-5), Linear(INPUTS, OUTPUTS, bias=False)
    torch.nn.init.ones_(norm.weight)
    with torch.inference_mode():
        compiled = torch.compile(lambda row: linear(norm(row)), dynamic=False)
        found, [source] = torch._inductor.utils.run_and_get_code(compiled, hidden)
        assert torch.allclose(found, torch.nn.functional.linear(norm(hidden), linear.weight), atol=1e-5)
    [start] = re.finditer(rf"< *static_cast<int64_t>\({OUTPUTS}L\); x\d\+=static_cast<int64_t>\(1L\)", source)
    return "sqrt" in source[start.end() : source.index("vec_reduce_all", start.end())]


def test_a_norm_before_a_product_of_one_token_is_computed_once_and_a_plain_product_is_caught(monkeypatch):
    if not capability.has_compiler(torch.device("cpu")):
        return  # test_optimized_compiled.py holds the message
    hidden = torch.randn(1, 1, INPUTS)
    assert not computes_norm_per_row(hidden)
    monkeypatch.setattr(optimized.linear, "in_memory", lambda tensor: tensor)
    assert computes_norm_per_row(hidden)


def test_several_tokens_and_uncompiled_products_are_the_librarys():
    hidden, weight = torch.randn(3, INPUTS), torch.randn(OUTPUTS, INPUTS)
    assert torch.equal(product(hidden, weight, torch.float32), torch.nn.functional.linear(hidden, weight))
