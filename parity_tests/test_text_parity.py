"""The text model against numbers worked out elsewhere, and against itself: cache, batch, blocks, dtypes, gradients."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from parity_tests.agreement import BATCH, BFLOAT16, FLOAT32, FLOAT64, assert_agrees, assert_caught
from parity_tests.checkpoints import prompt_with_media, random_weights, small_config, write_checkpoint, write_tensors
from parity_tests.mistakes import CACHE_MISTAKES, LATENT_EPS, PADDING_MISTAKES, TEXT_MISTAKES, half_split
from reference import attention
from reference.config import TextConfig, preset
from reference.model import load_model
from reference.rope import inverse_frequencies, rotate, rotation, softmax_scale
from reference.router import Router
from reference.stages import observing

pytestmark = pytest.mark.parity

# inv_freq of K2.5 for i = 0..31, worked out in double precision from the published formula.
K25_FREQUENCIES = [
    1.0, 0.713111103, 0.508527458, 0.362636536, 0.258600146, 0.184410617, 0.131505266, 0.0937778577,
    0.0668740347, 0.0437766574, 0.0284279585, 0.0182829555, 0.01161916, 0.00727411965, 0.00446584867, 0.0026702038,
    0.00153729669, 0.000834655075, 0.000408646069, 0.000158374969, 1.80702336e-05, 1.28860838e-05, 9.18920978e-06,
    6.55292706e-06, 4.67296513e-06, 3.33234311e-06, 2.37633071e-06, 1.69458781e-06, 1.20842935e-06, 8.61744411e-07,
    6.14519479e-07, 4.38220638e-07]
# (1, 2, ..., 64) turned to position 5, the pairs moved into halves: a few of the 64 components.
K25_ROTATED = {0: 2.20151, 1: -1.08889, 8: 10.15136, 20: 40.99620, 31: 62.99986, 32: -0.39160, 33: -4.87999,
               40: 22.58207, 52: 42.00370, 63: 64.00014}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("text"), small_config(), seed=1)


@pytest.fixture(scope="module")
def model(directory: Path) -> nn.Module:
    return load_model(directory)


@pytest.fixture(scope="module")
def exact_model(directory: Path) -> nn.Module:
    return load_model(directory, torch.float64)


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 240, shape, generator=torch.Generator().manual_seed(sum(shape)))


# --- numbers worked out elsewhere ---


def test_yarn_frequencies_of_k25() -> None:
    torch.testing.assert_close(
        inverse_frequencies(preset("kimi-k2.5").text), torch.tensor(K25_FREQUENCIES), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "low", "high"), [("kimi-k2.5", 8, 20), ("kimi-k2-instruct", 19, 20)])
def test_yarn_ramps_between_the_published_pairs(name: str, low: int, high: int) -> None:
    config = preset(name).text
    plain = inverse_frequencies(dataclasses.replace(config, rope_scaling=None))
    slowed = plain / inverse_frequencies(config)
    factor = config.rope_scaling.factor
    torch.testing.assert_close(slowed[: low + 1], torch.ones(low + 1))
    torch.testing.assert_close(slowed[high:], torch.full((32 - high,), factor))
    assert all(1 < value < factor for value in slowed[low + 1 : high])


def test_rotation_of_a_counting_vector() -> None:
    cos, sin = rotation(torch.tensor([[5]]), preset("kimi-k2.5").text, torch.float32)
    turned = rotate(torch.arange(1.0, 65.0), cos[0, 0], sin[0, 0])
    halves = torch.cat([turned[0::2], turned[1::2]])
    expected = torch.tensor(list(K25_ROTATED.values()))
    torch.testing.assert_close(halves[list(K25_ROTATED)], expected, rtol=1e-5, atol=1e-5)
    wrong = half_split(torch.arange(1.0, 65.0), cos[0, 0], sin[0, 0])
    assert_caught("text rotary: halves", wrong[list(K25_ROTATED)], expected, FLOAT32)


@pytest.mark.parametrize(
    ("name", "scale"),
    [("kimi-k2.5", 0.1446795756), ("kimi-k2-thinking", 0.1446795756), ("kimi-k2-instruct", 0.1308608),
     ("moonlight-16b-a3b", 0.0721687836), ("kimi-vl-a3b", 0.0721687836)])
def test_softmax_scale_of_the_published_models(name: str, scale: float) -> None:
    assert softmax_scale(preset(name).text) == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("name", ["kimi-k2.5", "kimi-k2-instruct", "kimi-k2-instruct-0905"])
def test_cosine_and_sine_are_not_enlarged_when_both_mscales_are_equal(name: str) -> None:
    cos, sin = rotation(torch.arange(9)[None], preset(name).text, torch.float64)
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos))


def test_unequal_mscales_enlarge_cosine_and_sine() -> None:
    config = preset("kimi-k2.5").text
    scaling = dataclasses.replace(config.rope_scaling, mscale=0.7)
    cos, _ = rotation(torch.zeros((1, 1), dtype=torch.int64), dataclasses.replace(config, rope_scaling=scaling),
                      torch.float64)
    log = 0.1 * math.log(64)
    torch.testing.assert_close(cos, torch.full_like(cos, (0.7 * log + 1) / (log + 1)))


def mini_router(config: TextConfig, logits: list[float], bias: list[float]) -> Router:
    """A router that gives these logits to the token (1, 0, ...)."""
    router = Router(config, layer_index=0)
    router.weight.data = torch.zeros(len(logits), 2)
    router.weight.data[:, 0] = torch.tensor(logits)
    router.e_score_correction_bias.data = torch.tensor(bias, dtype=torch.float32)
    return router


@torch.no_grad()
def test_router_bias_changes_choice_not_weight() -> None:
    config = dataclasses.replace(preset("kimi-k2.5").text, n_routed_experts=4, num_experts_per_tok=2, hidden_size=2)
    weights, expert_ids = mini_router(config, [2, 1, 0, -1], [0, 0, 0.9, 0])(torch.tensor([[1.0, 0.0]]))
    chosen = dict(zip(expert_ids[0].tolist(), weights[0].tolist(), strict=True))
    assert chosen == {2: pytest.approx(1.0236840), 0: pytest.approx(1.8033158)}
    unbiased = mini_router(config, [2, 1, 0, -1], [0, 0, 0, 0])(torch.tensor([[1.0, 0.0]]))[1]
    assert set(unbiased[0].tolist()) == {0, 1}


@torch.no_grad()
def test_router_with_groups_chooses_only_within_the_best_groups() -> None:
    """The best single expert (3) stands in a group whose two best are worth less than the other group's."""
    config = dataclasses.replace(preset("kimi-k2.5").text, n_routed_experts=4, num_experts_per_tok=2, hidden_size=2,
                                 n_group=2, topk_group=1)
    _, expert_ids = mini_router(config, [1, 1.1, -3, 2], [0, 0, 0, 0])(torch.tensor([[1.0, 0.0]]))
    assert set(expert_ids[0].tolist()) == {0, 1}


# --- the model against itself ---


@torch.no_grad()
def chunked(model: nn.Module, input_ids: Tensor, sizes: list[int], form: str = "auto") -> Tensor:
    """Logits of all tokens, given to a cache in pieces."""
    cache = model.new_cache(len(input_ids))
    out = torch.cat([model(piece, cache=cache, form=form) for piece in input_ids.split(sizes, dim=1)], dim=1)
    assert cache.length == input_ids.shape[1]
    return out


@torch.no_grad()
@pytest.mark.parametrize("form", ["auto", "expanded", "absorbed"])
@pytest.mark.parametrize("sizes", [[40], [1] * 40, [25, 1, 1, 1, 12], [3, 37]], ids=["once", "single", "mixed", "two"])
def test_cache_changes_nothing(model: nn.Module, exact_model: nn.Module, sizes: list[int], form: str) -> None:
    input_ids = tokens(2, 40)
    assert_agrees("cached and uncached", chunked(model, input_ids, sizes, form), model(input_ids), FLOAT32)
    assert_agrees("cached and uncached, float64", chunked(exact_model, input_ids, sizes, form), exact_model(input_ids),
                  FLOAT64)


@torch.no_grad()
def test_attention_forms_agree(model: nn.Module, exact_model: nn.Module) -> None:
    input_ids = tokens(2, 40)
    for which, tolerance, name in ((model, FLOAT32, "float32"), (exact_model, FLOAT64, "float64")):
        absorbed, expanded = which(input_ids, form="absorbed"), which(input_ids, form="expanded")
        assert_agrees(f"expanded and absorbed, {name}", absorbed, expanded, tolerance)


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 7, 39, 40])
@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_query_blocks_change_nothing(
    model: nn.Module, block: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    input_ids, num_padding = tokens(2, 40), torch.tensor([0, 11])
    expected = model(input_ids, num_padding=num_padding, form=form)
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    out = model(input_ids, num_padding=num_padding, form=form)
    assert_agrees("query blocks", out[0], expected[0], BATCH)
    assert_agrees("query blocks", out[1, 11:], expected[1, 11:], BATCH)


@torch.no_grad()
def test_last_only_is_the_last_row(model: nn.Module) -> None:
    input_ids = tokens(2, 9)
    assert_agrees("last logits only", model(input_ids, last_only=True), model(input_ids)[:, -1:], BATCH)


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    num_padding = torch.tensor([longest - len(row) for row in rows])
    return torch.stack([nn.functional.pad(row, (longest - len(row), 0), value=255) for row in rows]), num_padding


@torch.no_grad()
def greedy_batch(model: nn.Module, rows: list[Tensor], num_tokens: int) -> tuple[Tensor, list[Tensor]]:
    """Chosen tokens (B, num_tokens) and, per row, the logits of its own tokens and of what it chose."""
    input_ids, num_padding = left_padded(rows)
    cache, chosen = model.new_cache(len(rows)), []
    outputs = [model(input_ids, cache=cache, num_padding=num_padding)]
    for _ in range(num_tokens):
        chosen.append(outputs[-1][:, -1:].argmax(dim=-1))
        outputs.append(model(chosen[-1], cache=cache, num_padding=num_padding))
    logits = torch.cat(outputs, dim=1)
    return torch.cat(chosen, dim=1), [row[skip:] for row, skip in zip(logits, num_padding.tolist(), strict=True)]


def test_a_left_padded_batch_is_each_row_alone(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of prompt and answer, and the greedy answer itself."""
    rows = [tokens(31), tokens(17), tokens(1), tokens(30)]
    alone = [greedy_batch(model, [row], 12) for row in rows]
    chosen, logits = greedy_batch(model, rows, 12)
    for i, (chosen_alone, logits_alone) in enumerate(alone):
        assert chosen[i].tolist() == chosen_alone[0].tolist()
        assert_agrees("left-padded batch and row alone", logits[i], logits_alone[0], BATCH)
    for name, mistake in PADDING_MISTAKES.items():
        mistake(monkeypatch, model)
        wrong = greedy_batch(model, rows, 1)[1][1]
        assert_caught(f"left-padded batch: {name}", wrong[:17], alone[1][1][0][:17], BATCH)


@torch.no_grad()
@pytest.mark.parametrize("name", CACHE_MISTAKES)
def test_cache_mistake_is_noticed(model: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    input_ids, expected = tokens(2, 40), model(tokens(2, 40))
    CACHE_MISTAKES[name](monkeypatch, model)
    cache = model.new_cache(2)
    wrong = torch.cat([model(piece, cache=cache) for piece in input_ids.split(8, dim=1)], dim=1)
    assert_caught(f"cached and uncached: {name}", wrong, expected, FLOAT32)


@torch.no_grad()
def test_rows_dropped_from_a_cache_leave_the_others_alone(model: nn.Module) -> None:
    input_ids = tokens(3, 12)
    cache, expected = model.new_cache(3), model(input_ids)
    model(input_ids[:, :8], cache=cache)
    cache.keep_rows(torch.tensor([0, 2]))
    assert_agrees("cache after keep_rows", model(input_ids[[0, 2], 8:], cache=cache), expected[[0, 2], 8:], BATCH)


@torch.no_grad()
def test_cache_holds_one_latent_and_one_rotary_key_per_token_and_layer(model: nn.Module) -> None:
    cache = model.new_cache(2)
    model(tokens(2, 5), cache=cache)
    text = model.config.text
    assert cache.nbytes == 2 * 5 * text.num_hidden_layers * (text.kv_lora_rank + text.qk_rope_head_dim) * 4


@torch.no_grad()
def test_float32_is_close_to_float64(model: nn.Module, exact_model: nn.Module) -> None:
    assert_agrees("float32 and float64", model(tokens(2, 60)), exact_model(tokens(2, 60)), FLOAT32)


@torch.no_grad()
@pytest.mark.parametrize("name", TEXT_MISTAKES)
def test_text_mistake_is_noticed(
    directory: Path, exact_model: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The float32 and float64 runs share their code, so a mistake is put into one of them."""
    expected, model = exact_model(tokens(2, 60)), load_model(directory)
    TEXT_MISTAKES[name](monkeypatch, model)
    assert_caught(f"float32 and float64: {name}", model(tokens(2, 60)), expected, FLOAT32)


@torch.no_grad()
def test_latent_epsilon_matters_where_latents_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(small_config(), seed=10)
    for name, weight in weights.items():
        if name.endswith(("q_a_proj.weight", "kv_a_proj_with_mqa.weight")):
            weights[name] = weight * 2**-7
    model = load_model(write_tensors(tmp_path, small_config(), weights))
    expected = model(tokens(1, 40))
    for name, mistake in LATENT_EPS.items():
        mistake(monkeypatch, model)
        assert_caught(name, model(tokens(1, 40)), expected, FLOAT32)


# --- gradients ---


def gradients(model: nn.Module, sizes: list[int], form: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and parameter gradients of one sequence given to a cache in pieces; a single piece has no cache."""
    model.zero_grad()
    input_ids = tokens(2, 20)
    cache = model.new_cache(2) if len(sizes) > 1 else None
    logits = torch.cat([model(piece, cache=cache, form=form) for piece in input_ids.split(sizes, dim=1)], dim=1)
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), found


@pytest.mark.parametrize(("sizes", "form"), [([20], "absorbed"), ([12, 8], "auto"), ([14] + [1] * 6, "auto")])
def test_gradients_are_the_same_through_a_cache_and_in_both_forms(
    exact_model: nn.Module, sizes: list[int], form: str
) -> None:
    expected_loss, expected = gradients(exact_model, [20], "expanded")
    loss, found = gradients(exact_model, sizes, form)
    assert_agrees("training loss through a cache", loss, expected_loss, FLOAT64)
    # No gradient reaches the router's bias (it only chooses) or the vision tower (there is no picture).
    trained = {name for name, _ in exact_model.language_model.named_parameters(prefix="language_model")
               if not name.endswith("e_score_correction_bias")}
    assert set(found) == set(expected) == trained
    for name in expected:
        assert_agrees("gradients through a cache", found[name], expected[name], FLOAT64 * 100)


def test_gradient_is_the_slope_of_the_loss(exact_model: nn.Module) -> None:
    loss, found = gradients(exact_model, [12, 8], "auto")
    name = "language_model.model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
    weight = exact_model.get_parameter(name)
    before, step = weight.detach().clone(), torch.randn_like(weight) * 1e-6
    weight.data = before + step
    moved, _ = gradients(exact_model, [20], "expanded")
    weight.data = before
    assert (moved - loss).item() == pytest.approx((found[name] * step).sum().item(), rel=1e-4)


def test_padding_brings_no_nan_into_the_gradients(exact_model: nn.Module) -> None:
    """A padding query sees no key at all."""
    rows = [tokens(9), tokens(4)]
    input_ids, num_padding = left_padded(rows)
    exact_model.zero_grad()
    out = exact_model(input_ids, num_padding=num_padding)
    out[1, 5:].square().mean().backward()
    padded = {name: p.grad.clone() for name, p in exact_model.named_parameters() if p.grad is not None}
    exact_model.zero_grad()
    exact_model(rows[1][None]).square().mean().backward()
    for name, gradient in padded.items():
        alone = exact_model.get_parameter(name).grad
        # An expert that only the other row visited has gradient 0 here, and none there.
        expected = torch.zeros_like(gradient) if alone is None else alone
        assert_agrees("gradients through padding", gradient, expected, FLOAT64 * 100)


# --- the observer ---


@torch.no_grad()
def test_pinned_experts_hold_bfloat16_close_to_float32(directory: Path, model: nn.Module) -> None:
    """Rounding may flip a choice between nearly equal experts; with the choices of one run in the other it cannot."""
    chosen: dict[str, Tensor] = {}

    def record(name: str, tensor: Tensor) -> Tensor:
        if name.endswith("router.experts"):
            chosen[name] = tensor
        return tensor

    input_ids = tokens(2, 60)
    with observing(record):
        expected = model(input_ids)
    with observing(lambda name, tensor: chosen.get(name, tensor)):
        out = load_model(directory, torch.bfloat16)(input_ids)
    assert_agrees("bfloat16 and float32, experts pinned", out, expected, BFLOAT16)


@torch.no_grad()
def test_observer_sees_every_stage_and_replaces_what_it_returns(model: nn.Module) -> None:
    input_ids, seen = prompt_with_media([]), []

    def silence(name: str, tensor: Tensor) -> Tensor:
        seen.append(name)
        return torch.zeros_like(tensor) if name in ("layers.1.moe.routed", "layers.1.moe.shared") else tensor

    with observing(silence):
        model(input_ids)
    stages = {f"hidden.{i}" for i in range(4)} | {"logits"} | {
        f"layers.{i}.{stage}" for i in range(3) for stage in ("attn.q", "attn.kv_latent", "attn.k_pe", "attn.out")} | {
        f"layers.{i}.router.{stage}" for i in (1, 2) for stage in ("scores", "experts", "weights")}
    assert stages <= set(seen) and len(seen) == len(set(seen))
    recorded: dict[str, Tensor] = {}

    def record(name: str, tensor: Tensor) -> Tensor:
        recorded[name] = silence(name, tensor)
        return recorded[name]

    with observing(record):
        model(input_ids)
    assert recorded["layers.1.mlp.out"].count_nonzero() == 0
