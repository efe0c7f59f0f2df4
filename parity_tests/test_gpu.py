"""The reference on a CUDA GPU: the golden models, INT4 words, and the same greedy text as on the CPU."""

import pytest
import torch
from safetensors.torch import load_file

from parity_tests.agreement import FLOAT32, assert_agrees
from parity_tests.test_golden_model import CASES, GOLDEN
from reference.generate import SHIPPED_MODEL
from reference.generation import generate
from reference.int4 import PRODUCTS, dequantize, pack
from reference.model import load_model
from reference.prompt import Processor
from reference.stages import observing

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_golden_model_on_cuda(case: str, form: str) -> None:
    model = load_model(GOLDEN / case, device="cuda")
    inputs = {name: tensor.cuda() for name, tensor in load_file(GOLDEN / case / "input.safetensors").items()}
    input_ids, seen = inputs.pop("input_ids"), {}
    with torch.inference_mode(), observing(lambda name, tensor: seen.setdefault(name, tensor)):
        model(input_ids, form=form, **inputs)
    for name, expected in load_file(GOLDEN / case / "expected.safetensors").items():
        assert_agrees(f"golden on CUDA, {name}", seen[name], expected, FLOAT32)


@pytest.mark.parametrize("product", PRODUCTS)
def test_int4_weights_have_the_same_bits_on_cuda(product: str) -> None:
    words = pack(torch.randint(-8, 8, (24, 64)))
    scale = torch.rand(24, 2).bfloat16()
    assert torch.equal(dequantize(words.cuda(), scale.cuda(), product).cpu(), dequantize(words, scale, product))


def test_shipped_model_says_the_same_on_cuda() -> None:
    processor = Processor.from_directory(SHIPPED_MODEL)
    prompts = [processor.prompt([{"role": "user", "content": text}]) for text in ("What is 48 + 37?", "Who are you?")]
    settings = {"max_new_tokens": 64, "temperature": 0, "top_p": 1, "seed": 0, "stop_ids": processor.stop_ids}
    on_cpu = generate(load_model(SHIPPED_MODEL), prompts, **settings)
    on_cuda = generate(load_model(SHIPPED_MODEL, device="cuda"), prompts, **settings)
    assert [result.ids for result in on_cuda] == [result.ids for result in on_cpu]
    in_bfloat16 = generate(load_model(SHIPPED_MODEL, torch.bfloat16, "cuda"), prompts, **settings)
    assert all(result.finish_reason == "stop" for result in in_bfloat16)
