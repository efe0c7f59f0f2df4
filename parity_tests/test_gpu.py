"""On a CUDA GPU: the reference gives the CPU's numbers and text; the optimized model its stages, operators, graphs."""

import argparse

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from optimized import attention_products, cuda_experts, ops
from optimized.cuda_graph import DecodeGraph
from optimized.generation import generate as generate_fast
from optimized.model import compile_steps
from optimized.model import load_model as load_fast
from parity_tests.agreement import FLOAT32, assert_agrees
from parity_tests.test_golden_model import CASES, GOLDEN
from reference.errors import UsageError
from reference.generate import SHIPPED_MODEL
from reference.generation import generate
from reference.int4 import PRODUCTS, dequantize, pack, quantize
from reference.model import load_model
from reference.prompt import Processor
from reference.stages import observing
from tools import parity

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


# --- the optimized model ---


@pytest.mark.parametrize("attention", ["auto", "products"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_stage_of_the_optimized_model_agrees_on_cuda(dtype: str, attention: str) -> None:
    args = argparse.Namespace(model=SHIPPED_MODEL, dtype=dtype, device="cuda", attention=attention)
    rows, _ = parity.compare(args)
    assert [(row.stage, row.error, row.allowed) for row in rows if row.share > 1] == []


def experts_on_cuda(num_tokens: int, sizes: tuple[int, int, int] = (8, 128, 64)) -> tuple[Tensor, ...]:
    """Tokens, weights and expert ids, then words and scales of all experts, on the GPU."""
    num_experts, hidden_size, width = sizes
    routed = torch.randn(num_tokens, hidden_size), torch.rand(num_tokens, 2), torch.randint(0, 7, (num_tokens, 2))
    stacks = []
    for shape in ((2 * width, hidden_size), (hidden_size, width)):
        pairs = [quantize((torch.randn(shape) * shape[1] ** -0.5).bfloat16()) for _ in range(num_experts)]
        stacks += [torch.stack(part) for part in zip(*pairs, strict=True)]
    return tuple(tensor.cuda() for tensor in (*routed, *stacks))


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 3, 40, 130])
def test_operators_on_cuda_are_those_of_the_cpu(num_tokens: int, rounded: bool) -> None:
    tensors = experts_on_cuda(num_tokens)
    found = ops.int4_experts(*tensors, rounded)
    expected = ops.int4_experts(*(tensor.cpu() for tensor in tensors), rounded)
    assert_agrees("INT4 experts on CUDA", found, expected, FLOAT32)
    dense = torch.randn(8, 128, 128, device="cuda"), torch.randn(8, 128, 64, device="cuda")
    found = ops.dense_experts(*tensors[:3], *dense, False)
    expected = ops.dense_experts(*(tensor.cpu() for tensor in (*tensors[:3], *dense)), False)
    assert_agrees("dense experts on CUDA", found, expected, FLOAT32)


def test_operators_keep_their_contracts_on_cuda() -> None:
    tensors = experts_on_cuda(3)
    torch.library.opcheck(ops.int4_experts, (*tensors, False))
    dense = torch.randn(8, 128, 128, device="cuda"), torch.randn(8, 128, 64, device="cuda")
    torch.library.opcheck(ops.dense_experts, (*tensors[:3], *dense, False))
    query, keys = torch.randn(2, 1, 4, 24, device="cuda"), torch.randn(2, 30, 24, device="cuda")
    lengths = torch.tensor([4, 29], device="cuda"), torch.tensor([0, 2], device="cuda")
    torch.library.opcheck(ops.latent_attention, (query, keys, *lengths, 16, 0.3))


@pytest.mark.parametrize("num_tokens", [1, 40])
def test_operators_never_wait_for_the_device(num_tokens: int) -> None:
    tensors = experts_on_cuda(num_tokens)
    query, keys = torch.randn(2, 1, 4, 24, device="cuda"), torch.randn(2, 30, 24, device="cuda")
    lengths = torch.tensor([4, 29], device="cuda"), torch.tensor([0, 2], device="cuda")

    def run() -> None:
        ops.int4_experts(*tensors, False)
        attention_products.all_rows(query, keys, *lengths, 16, 0.3)

    run()  # compiling and tuning may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def launched(work) -> list[str]:
    """Names of the kernels that one call launches, after a call to compile and tune."""
    work()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    return [event.name for event in profile.events() if not event.name.startswith(("Mem", "cuda", "Activity"))]


def test_decoding_launches_three_generated_kernels() -> None:
    tensors = experts_on_cuda(1)
    names = launched(lambda: cuda_experts.int4(*tensors, False))
    assert len(names) == 3 and all(name.startswith("triton_") for name in names), names


def greedy(model, generator) -> list[list[int]]:
    processor = Processor.from_directory(SHIPPED_MODEL)
    texts = "What is 48 + 37?", "Who are you?", "What is 9 * 7?"
    prompts = [processor.prompt([{"role": "user", "content": text}]) for text in texts]
    settings = {"max_new_tokens": 64, "temperature": 0, "top_p": 1, "seed": 0, "stop_ids": processor.stop_ids}
    return [result.ids for result in generator(model, prompts, **settings)]


def test_compiled_and_recorded_decoding_says_the_same() -> None:
    expected = greedy(load_model(SHIPPED_MODEL), generate)
    fast = load_fast(SHIPPED_MODEL, device="cuda")
    assert greedy(fast, generate_fast) == expected
    compile_steps(fast)
    assert greedy(fast, generate_fast) == expected
    assert fast.language_model.decode_graph.recorded


def test_recorded_steps_agree_and_need_no_new_graph() -> None:
    plain, fast = load_model(SHIPPED_MODEL, device="cuda"), load_fast(SHIPPED_MODEL, device="cuda")
    compile_steps(fast)
    caches = plain.new_cache(2), fast.new_cache(2, 300)
    stats = torch._dynamo.utils.counters["stats"]
    with torch.inference_mode():
        for step in range(150):
            ids = torch.full((2, 1 if step else 9), step + 1, device="cuda")
            expected, found = plain(ids, cache=caches[0]), fast(ids, cache=caches[1])
            assert_agrees("recorded decoding on CUDA", found, expected, FLOAT32)
            if step == 3:
                warm = stats["unique_graphs"]
    assert stats["unique_graphs"] == warm
    assert len(fast.language_model.decode_graph.recorded) == 1


def test_a_step_that_waits_for_the_device_cannot_be_recorded() -> None:
    def waits(hidden: Tensor, start: Tensor, num_padding: Tensor, layers: list[Tensor]) -> Tensor:
        return hidden * start.sum().item()

    ids = torch.zeros(1, dtype=torch.int64, device="cuda")
    hidden, layer = torch.randn(1, 1, 8, device="cuda"), torch.zeros(1, 4, 8, device="cuda")
    with pytest.raises(UsageError, match="cannot be recorded"):
        DecodeGraph(waits)(hidden, ids, ids, [layer])
