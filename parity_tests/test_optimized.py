"""The optimized twin against the reference, stage by stage, under the same experts; and its parts, each by itself."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from optimized import cuda_experts, int4, int4_tiles, moe, ops
from optimized.generation import Batch
from optimized.generation import generate as generate_fast
from optimized.model import KimiModel, load_model, set_attention
from parity_tests.agreement import BATCH, BFLOAT16, FLOAT32, FLOAT64, assert_agrees, assert_caught, relative_l2
from parity_tests.checkpoints import prompt_with_media, random_pixels, small_config, write_checkpoint
from reference.config import KimiConfig
from reference.errors import CheckpointError, UsageError
from reference.generate import SHIPPED_MODEL
from reference.generation import generate
from reference.int4 import dequantize, quantize, set_int4_product
from reference.mlp import SwiGLU
from reference.model import load_model as load_reference
from reference.prompt import Processor, Prompt
from reference.stages import observing
from tools.worlds.sample import draw

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]

# Widths that a tile of 32 or 64 outputs divides, so that a CPU with the operator uses it.
WIDE = {"hidden_size": 128, "moe_intermediate_size": 64}
KINDS = {
    "dense": small_config(),
    "int4 words": small_config(int4=True),
    "int4 tiles": small_config(WIDE, {"text_hidden_size": WIDE["hidden_size"]}, int4=True),
}
BFLOAT16_HEADROOM = 1.1  # times the reference's own error


@pytest.fixture(scope="module", params=KINDS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("twin"), KINDS[request.param], seed=3)


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 240, shape, generator=torch.Generator().manual_seed(sum(shape)))


def stages_of(model: nn.Module, experts: dict[str, Tensor], call: Callable[[nn.Module], object]) -> dict[str, Tensor]:
    """Everything that passes `stage`, with the experts of `experts` in place of the model's own choice.

    Where `call` runs the model several times, the names of the later runs end in " again".
    """
    seen: dict[str, Tensor] = {}

    def observe(name: str, tensor: Tensor) -> Tensor:
        while name in seen:
            name += " again"
        tensor = experts.get(name, tensor)
        seen[name] = tensor.clone()
        return tensor

    with torch.no_grad(), observing(observe):
        call(model)
    return seen


def assert_twins(directory: Path, call: Callable[[nn.Module], object], attention: str = "auto") -> None:
    plain, fast = load_reference(directory), load_model(directory)
    set_attention(fast, attention)
    expected = stages_of(plain, {}, call)
    experts = {name: tensor for name, tensor in expected.items() if "router.experts" in name}
    found = stages_of(fast, experts, call)
    assert list(found) == list(expected)
    for name in expected:
        if name not in experts:
            assert_agrees(f"optimized, {name.partition(' ')[0]}", found[name], expected[name], FLOAT32)


def prefill(model: nn.Module) -> None:
    model(tokens(2, 13))


def one_token(model: nn.Module) -> None:
    model(tokens(1, 1))


def beyond_the_original_context(model: nn.Module) -> None:
    model(tokens(1, model.config.text.rope_scaling.original_max_position_embeddings + 9))


def many_blocks(model: nn.Module) -> None:
    model(tokens(2, 300))


def decoding(model: nn.Module) -> None:
    cache = model.new_cache(3)
    model(tokens(3, 6), cache=cache)
    for _ in range(3):
        model(tokens(3, 1), cache=cache)


def continued_prefix(model: nn.Module) -> None:
    cache = model.new_cache(2)
    model(tokens(2, 7), cache=cache)
    model(tokens(2, 5), cache=cache)


def media(model: nn.Module) -> None:
    grids = [(1, 4, 6), (3, 2, 4), (1, 2, 2), (4, 6, 2)]
    pixels, grid_thws = random_pixels(grids)
    model(prompt_with_media(grids), pixel_values=pixels, grid_thws=grid_thws)


CALLS = [prefill, one_token, many_blocks, beyond_the_original_context, decoding, continued_prefix, media]


@pytest.mark.parametrize("attention", ["auto", "flex", "products"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_every_stage_agrees(directory: Path, call: Callable[[nn.Module], object], attention: str) -> None:
    assert_twins(directory, call, attention)


@pytest.mark.parametrize("attention", ["auto", "flex", "products"])
@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_padded_rows_agree_where_they_are_no_padding(directory: Path, attention: str, form: str) -> None:
    plain, fast = load_reference(directory), load_model(directory)
    set_attention(fast, attention)
    padding = torch.tensor([0, 4, 9])
    cached, cached_fast = plain.new_cache(3), fast.new_cache(3)
    with torch.no_grad():
        for part in (tokens(3, 11), tokens(3, 1)):
            expected = plain(part, cache=cached, num_padding=padding, form=form)
            found = fast(part, cache=cached_fast, num_padding=padding, form=form)
            for row, first in enumerate(padding.tolist() if part.shape[1] > 1 else [0, 0, 0]):
                assert_agrees("optimized, padded rows", found[row, first:], expected[row, first:], FLOAT32)


def test_bfloat16_is_as_near_to_the_truth_as_the_reference(directory: Path) -> None:
    exact, plain = load_reference(directory, torch.float64), load_reference(directory, torch.bfloat16)
    fast = load_model(directory, torch.bfloat16)
    for model in (exact, plain, fast):
        set_int4_product(model, "exact")
    truth = stages_of(exact, {}, prefill)
    experts = {name: tensor for name, tensor in truth.items() if "router.experts" in name}
    own, found = stages_of(plain, experts, prefill), stages_of(fast, experts, prefill)
    for name in ("logits", *(name for name in truth if name.startswith("hidden."))):
        error, limit = relative_l2(found[name], truth[name]), BFLOAT16_HEADROOM * relative_l2(own[name], truth[name])
        assert error <= limit, f"{name}: {error:.3g}, the reference {limit / BFLOAT16_HEADROOM:.3g}"


def test_state_dict_gives_the_published_bits(directory: Path) -> None:
    expected, found = load_reference(directory).state_dict(), load_model(directory).state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_state_dict_loads_into_the_twin(directory: Path) -> None:
    fast = load_model(directory)
    state = load_reference(directory).state_dict()
    flipped = re.compile(r"experts\.0\.gate_proj\.weight(_packed|_scale)?$")
    changed = {name: tensor.flip(0) if flipped.search(name) else tensor for name, tensor in state.items()}
    fast.load_state_dict(changed)
    assert all(torch.equal(tensor, changed[name]) for name, tensor in fast.state_dict().items())
    missing = next(name for name in state if ".experts.1.up_proj" in name)
    with pytest.raises(RuntimeError, match=missing):
        fast.load_state_dict({name: tensor for name, tensor in state.items() if name != missing})
    with pytest.raises(RuntimeError, match="expected"):
        fast.load_state_dict(state | {missing: state[missing][:1]})


def test_a_missing_expert_keeps_its_weights_and_the_others_load(directory: Path) -> None:
    fast = load_model(directory)
    state = {name: tensor.flip(0) for name, tensor in fast.state_dict().items() if "weight_shape" not in name}
    kept = {name: tensor.clone() for name, tensor in fast.state_dict().items() if ".experts.1." in name}
    others = {name: tensor for name, tensor in state.items() if name not in kept}
    assert set(kept) <= set(fast.load_state_dict(others, strict=False).missing_keys)
    assert all(torch.equal(tensor, (others | kept)[name]) for name, tensor in fast.state_dict().items()
               if "weight_shape" not in name)  # fmt: skip


def test_a_loaded_state_takes_on_the_dtype_of_the_model(directory: Path) -> None:
    fast = load_model(directory, torch.bfloat16)
    expected = fast(tokens(1, 9))
    fast.load_state_dict(load_reference(directory).state_dict())
    assert torch.equal(fast(tokens(1, 9)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_that_is_cast_computes_as_the_reference_does(directory: Path, dtype: torch.dtype) -> None:
    plain, fast = load_reference(directory).to(dtype), load_model(directory).to(dtype)
    for model in (plain, fast):
        set_int4_product(model, "exact")
    expected = stages_of(plain, {}, one_token)
    experts = {name: tensor for name, tensor in expected.items() if "router.experts" in name}
    for _ in range(2):
        found = stages_of(fast, experts, one_token)["layers.1.moe.routed"]
        limit = BFLOAT16 if dtype == torch.bfloat16 else FLOAT64
        assert_agrees("optimized, cast", found, expected["layers.1.moe.routed"], limit)
        fast.load_state_dict(fast.state_dict())


def test_words_of_another_shape_than_they_say_are_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, small_config(int4=True))
    tensors = load_file(directory / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight_shape"))
    save_file(tensors | {name: tensors[name].flip(0)}, directory / "model.safetensors")
    for load in (load_reference, load_model):
        with pytest.raises(CheckpointError, match=rf"{name} says \[32, 96\], weight_packed holds \[96, 32\]"):
            load(directory)


def test_other_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, words in (("cuda", "finds no CUDA GPU"), ("cuda:1", "finds no CUDA GPU"), ("mps", "cpu or cuda")):
        with pytest.raises(UsageError, match=words):
            load_model(SHIPPED_MODEL, device=device)


def test_damaged_checkpoint_is_refused_like_by_the_reference(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, small_config(int4=True))
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_model(directory)
    with pytest.raises(UsageError, match="float32 or bfloat16"):
        load_model(SHIPPED_MODEL, torch.float64)


# --- INT4 ---


def experts_of(num_experts: int, hidden_size: int, width: int) -> tuple[list[SwiGLU], dict[str, Tensor]]:
    """Packed experts, as reference modules with the weights that the words stand for, and as published tensors."""
    modules, tensors = [], {}
    for i in range(num_experts):
        expert = SwiGLU(hidden_size, width).requires_grad_(False)
        for name, linear in expert.named_children():
            words, scale = quantize((torch.randn_like(linear.weight) * linear.in_features**-0.5).bfloat16())
            linear.weight.copy_(dequantize(words, scale, "exact"))
            tensors |= {f"{i}.{name}.weight_packed": words, f"{i}.{name}.weight_scale": scale}
        modules.append(expert)
    return modules, tensors


def packed_experts(
    sizes: tuple[int, int, int], tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> moe.Int4Experts:
    experts = moe.Int4Experts(*sizes, dtype)
    experts.product = "exact"
    experts.take(tensors)
    return experts


def one_by_one(modules: list[SwiGLU], hidden: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
    """The plainest mixture: every token through each of its experts in turn."""
    rows = [sum(w * modules[e](x) for w, e in zip(ws, es.tolist(), strict=True))
            for x, ws, es in zip(hidden, weights, expert_ids, strict=True)]
    return torch.stack(rows)


ROUTINGS = {
    "one token": torch.tensor([[5, 2]]),
    "all to one expert": torch.tensor([[3, 1]] * 20),
    "empty and ragged": torch.tensor([[0, 1], [0, 2], [0, 1], [7, 0], [0, 1]] * 9),
}


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("sizes", [(8, 64, 32), (8, 128, 64)], ids=["words or tiles", "tiles"])
def test_int4_experts_multiply_what_the_words_say(routing: str, sizes: tuple[int, int, int]) -> None:
    modules, tensors = experts_of(*sizes)
    experts = packed_experts(sizes, tensors)
    expert_ids = ROUTINGS[routing]
    hidden, weights = torch.randn(len(expert_ids), sizes[1]), torch.rand(expert_ids.shape)
    expected = one_by_one(modules, hidden, weights, expert_ids)
    assert_agrees("optimized, INT4 experts", experts(hidden, weights, expert_ids), expected, FLOAT32)
    as_words = [tensor for stack in (experts.gate_up, experts.down)
                for tensor in map(torch.stack, zip(*(stack.published(i) for i in range(sizes[0])), strict=True))]
    on_cuda = cuda_experts.int4(hidden, weights, expert_ids, *as_words, False)
    assert_agrees("optimized, INT4 experts as on CUDA", on_cuda, expected, FLOAT32)
    wrong = cuda_experts.int4(hidden, weights, (expert_ids + 1) % sizes[0], *as_words, False)
    assert_caught("optimized, INT4 experts: neighbours", wrong, expected, FLOAT32)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_dense_experts_as_on_cuda(routing: str) -> None:
    experts = moe.DenseExperts(8, 64, 32)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.1)
    expert_ids = ROUTINGS[routing]
    hidden, weights = torch.randn(len(expert_ids), 64), torch.rand(expert_ids.shape)
    stacks = experts.gate_up.detach(), experts.down.detach()
    found = cuda_experts.dense(hidden, weights, expert_ids, *stacks)
    assert_agrees("optimized, dense experts as on CUDA", found, experts(hidden, weights, expert_ids), FLOAT32)


@pytest.mark.parametrize("num_tokens", [1, 40])
def test_rounded_products_are_the_published_ones(num_tokens: int) -> None:
    sizes = (4, 128, 64)
    modules, tensors = experts_of(*sizes)
    experts = packed_experts(sizes, tensors)
    assert experts.gate_up.may_round
    for i, module in enumerate(modules):
        for name, linear in module.named_children():
            words, scale = (tensors[f"{i}.{name}.weight_{part}"] for part in ("packed", "scale"))
            linear.weight.copy_(dequantize(words, scale, "bfloat16"))
    hidden, weights = torch.randn(num_tokens, 128), torch.rand(num_tokens, 2)
    expert_ids = torch.randint(0, 4, (num_tokens, 2))
    expected = one_by_one(modules, hidden, weights, expert_ids)
    experts.product = "bfloat16"
    assert_agrees("optimized, rounded INT4 products", experts(hidden, weights, expert_ids), expected, FLOAT32)
    experts.product = "exact"
    assert_caught("optimized, rounded INT4 products: exact", experts(hidden, weights, expert_ids), expected, FLOAT32)


def test_shipped_scales_never_round() -> None:
    stacks = [module for module in load_model(SHIPPED_MODEL).modules() if isinstance(module, int4.Int4Stack)]
    assert stacks and not any(stack.may_round for stack in stacks)


@pytest.mark.parametrize("num_outputs", [64, 128, 192])
def test_tiles_give_back_the_integers(num_outputs: int) -> None:
    size = int4_tiles.tile_size()
    if size is None:
        assert int4.int4_layout(num_outputs, torch.device("cpu"), may_generate=False) == "words"
        return
    integers = torch.randint(-8, 8, (num_outputs, 96))
    assert torch.equal(int4_tiles.unpack_tiles(int4_tiles.pack_tiles(integers), size), integers)


def test_custom_operators_keep_their_contracts() -> None:
    sizes = (4, 128, 64)
    experts = packed_experts(sizes, experts_of(*sizes)[1])
    hidden, weights, expert_ids = torch.randn(3, 128), torch.rand(3, 2), torch.tensor([[0, 1], [3, 0], [2, 1]])
    stacks = experts.gate_up.weight, experts.gate_up.scale, experts.down.weight, experts.down.scale
    torch.library.opcheck(ops.int4_experts, (hidden, weights, expert_ids, *stacks, False))
    dense = torch.randn(4, 128, 128), torch.randn(4, 128, 64)
    torch.library.opcheck(ops.dense_experts, (hidden, weights, expert_ids, *dense, False))
    query, keys = torch.randn(2, 1, 3, 20), torch.randn(2, 9, 20)
    torch.library.opcheck(ops.latent_attention, (query, keys, torch.tensor([4, 7]), torch.tensor([0, 2]), 16, 0.3))
    query, key, value = torch.randn(2, 3, 4, 20), torch.randn(2, 3, 9, 20), torch.randn(2, 3, 9, 16)
    lengths = torch.tensor([4, 5]), torch.tensor([0, 2])
    torch.library.opcheck(ops.expanded_attention, (query, key, value, *lengths, 0.3, False))


# --- batches ---


def test_a_row_of_the_cache_does_not_know_its_neighbours() -> None:
    """The order of sums is fixed by the row alone, so the bits are equal, not only the numbers."""
    query, keys, start = torch.randn(3, 1, 4, 24), torch.randn(3, 30, 24), torch.tensor([3, 29, 11])
    padding = torch.zeros(3, dtype=torch.int64)
    together = ops.latent_attention(query, keys, start, padding, 16, 0.2)
    for row in range(3):
        alone = ops.latent_attention(*(tensor[row : row + 1] for tensor in (query, keys, start, padding)), 16, 0.2)
        assert torch.equal(alone[0], together[row])


def as_prompt(input_ids: list[int]) -> Prompt:
    return Prompt(input_ids, None, None, [])


def text_prompt(*shape: int) -> Prompt:
    return as_prompt(tokens(*shape).flatten().tolist())


def test_sequences_join_and_leave_at_any_step(directory: Path) -> None:
    """All that a sequence is answered, in the batch against alone: 1e-6 over its logits as a whole."""
    model = load_model(directory)
    prompts = {"a": text_prompt(7), "b": text_prompt(3), "c": text_prompt(12)}
    alone: dict[str, Batch] = {}  # each sequence once more, by itself
    answers: dict[str, tuple[list[Tensor], list[Tensor]]] = {}  # logits (V) of every step, in the batch and alone

    with torch.inference_mode():
        batch = Batch(model, max_rows=3, max_tokens=40)

        def join(key: str) -> None:
            alone[key] = Batch(model, max_rows=1, max_tokens=40)
            answers[key] = [batch.join(key, prompts[key])], [alone[key].join(key, prompts[key])]

        def step() -> None:
            new = [(7 * int(alone[key].cache.length) + ord(key)) % 240 for key in batch.keys]
            for key, token, logits in zip(batch.keys, new, batch.step(new), strict=True):
                answers[key][0].append(logits)
                answers[key][1].append(alone[key].step([token])[0])

        def leave(key: str) -> None:
            found, expected = (torch.stack(logits) for logits in answers[key])
            assert_agrees("optimized, batch against alone", found, expected, BATCH)
            batch.leave(key)

        join("a")
        step()
        join("b")
        join("c")
        step()
        leave("a")
        step()
        join("a")
        step()
        with pytest.raises(UsageError, match="rows of the batch are in use"):
            batch.join("d", prompts["a"])
        for key in prompts:
            leave(key)


def test_a_batch_refuses_what_would_mix_up_its_rows() -> None:
    model = KimiModel(KimiConfig.from_dict(small_config()))
    batch = Batch(model, max_rows=2, max_tokens=20)
    with torch.inference_mode():
        for key in (4, 7):
            batch.join(key, text_prompt(5))
        with pytest.raises(UsageError, match="1 tokens for 2 sequences"):
            batch.step([1])
        batch.leave(4)
        with pytest.raises(UsageError, match="key 7 names a sequence of the batch already"):
            batch.join(7, text_prompt(3))
    settings = {"max_new_tokens": 1, "temperature": 0, "top_p": 1, "seed": 0, "stop_ids": []}
    with pytest.raises(UsageError, match="max_rows is 0"):
        generate_fast(model, [text_prompt(3)], **settings, max_rows=0)


def test_a_common_prefix_is_computed_once(directory: Path) -> None:
    model = load_model(directory)
    beginning = tokens(1, 20)[0].tolist()
    first, second = as_prompt([*beginning, 3, 4]), as_prompt([*beginning, 9, 8, 7])
    with torch.inference_mode():
        batch = Batch(model, max_rows=2, max_tokens=40)
        batch.join("first", first)
        seen: list[int] = []
        with observing(lambda name, tensor: (seen.append(tensor.shape[1]) if name == "hidden.0" else None, tensor)[1]):
            logits = batch.join("second", second)
        assert seen == [3]
        expected = model(torch.tensor([second.input_ids]), last_only=True)[0, -1]
        assert_agrees("optimized, shared prefix", logits, expected, FLOAT32)


def test_media_are_never_shared() -> None:
    processor, model = Processor.from_directory(SHIPPED_MODEL), load_model(SHIPPED_MODEL)
    samples = [draw("pictures.describe", 1, i, "held-out", thinking=True) for i in range(2)]
    prompts = [processor.prompt(sample.messages) for sample in samples]
    batch = Batch(model, 2, 600)
    with torch.inference_mode():
        batch.join(0, prompts[0])
        shared = batch._shared(prompts[0].input_ids, prompts[0].input_ids)
    placeholder = model.config.media_placeholder_token_id
    assert shared == prompts[0].input_ids.index(placeholder)


def test_shipped_model_says_the_same_in_both() -> None:
    """Greedy, float32, all kinds of media: rows of a batch that is refilled, against the reference's padded batch."""
    processor = Processor.from_directory(SHIPPED_MODEL)
    text = ("numbers.add", "numbers.decimals", "outside", "conversation", "self")
    names = [name for other in text for name in (other, "pictures", "videos")]
    samples = [draw(names[i % len(names)], 11, i, "held-out") for i in range(120)]
    prompts = [processor.prompt(sample.messages, thinking=sample.thinking) for sample in samples]
    settings = {"max_new_tokens": 120, "temperature": 0, "top_p": 1, "seed": 0, "stop_ids": processor.stop_ids}
    plain, fast = load_reference(SHIPPED_MODEL), load_model(SHIPPED_MODEL)
    expected = [result for i in range(0, 120, 40) for result in generate(plain, prompts[i : i + 40], **settings)]
    assert generate_fast(fast, prompts, **settings) == expected
    assert generate(fast, prompts[:20], **settings) == expected[:20]


def test_cache_of_fixed_size_says_when_it_is_full() -> None:
    model = KimiModel(KimiConfig.from_dict(small_config()))
    cache = model.new_cache(1, num_tokens=8)
    with torch.no_grad():
        model(tokens(1, 6), cache=cache)
        with pytest.raises(UsageError, match="room for 8 tokens, 6 are in it and 3 are to come"):
            model(tokens(1, 3), cache=cache)
        assert cache.length == 6


def test_cache_of_another_number_of_rows_is_refused() -> None:
    model = KimiModel(KimiConfig.from_dict(small_config()))
    for num_rows, num_tokens in ((1, 5), (3, 5), (1, 1), (3, 1)):
        with torch.no_grad(), pytest.raises(UsageError, match=f"has {num_rows} rows and the input 2"):
            model(tokens(2, num_tokens), cache=model.new_cache(num_rows))
    with pytest.raises(UsageError, match="a cache of 0 tokens"):
        model.new_cache(1, num_tokens=0)


def test_growing_cache_keeps_what_is_in_it(directory: Path) -> None:
    model = load_model(directory)
    ids = tokens(1, 300)
    with torch.no_grad():
        cache = model.new_cache(1)
        parts = [model(part, cache=cache) for part in ids.split((250, 1, 30, 19), dim=1)]
        assert_agrees("optimized, growing cache", torch.cat(parts, dim=1), model(ids), FLOAT32)
