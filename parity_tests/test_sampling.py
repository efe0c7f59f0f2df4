"""Sampling: exact at temperature 0, the right share of each token otherwise, and the same draw in every batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.errors import CheckpointError, UsageError
from reference.sampling import Sampler, nucleus, pick

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40).map(lambda values: torch.tensor([values]))
TEMPERATURES = st.floats(0.05, 5)
TOP_P = st.floats(0.01, 1)


@given(LOGITS)
def test_temperature_0_is_argmax(logits):
    assert Sampler(0, 0.95, [0]).sample(logits, [0]) == [int(logits[0].argmax())]


@given(LOGITS, TEMPERATURES, TOP_P)
def test_nucleus_is_the_smallest_set_that_reaches_top_p(logits, temperature, top_p):
    full = (logits.double() / temperature).softmax(-1)[0]
    kept = nucleus(logits, temperature, top_p)[0]
    inside = kept > 0
    assert inside.any()
    assert kept.sum().item() == pytest.approx(1)
    assert full[inside].sum() >= top_p - 1e-9
    assert full[inside].sum() - full[inside].min() < top_p + 1e-9, "without its least likely token it is too small"
    assert inside.all() or full[inside].min() >= full[~inside].max(), "no token outside is likelier than one inside"
    torch.testing.assert_close(kept[inside], full[inside] / full[inside].sum())


@given(LOGITS, TEMPERATURES, TOP_P, st.integers(0, 2**63 - 1))
def test_only_tokens_of_the_nucleus_are_drawn(logits, temperature, top_p, seed):
    [token] = Sampler(temperature, top_p, [seed]).sample(logits, [0])
    assert nucleus(logits, temperature, top_p)[0, token] > 0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20).filter(lambda values: sum(values) > 0.1), st.floats(0, 1))
def test_pick_finds_the_interval_that_holds_the_draw(weights, draw):
    draw = min(draw, 1 - 2**-53)  # as large as a uniform double below 1 can be
    probabilities = torch.tensor([weights], dtype=torch.float64)
    probabilities /= probabilities.sum()
    token = int(pick(probabilities, torch.tensor([draw], dtype=torch.float64)))
    before, after = probabilities[0, :token].sum(), probabilities[0, : token + 1].sum()
    assert probabilities[0, token] > 0
    assert before - 1e-9 <= draw <= after + 1e-9


def test_tokens_come_as_often_as_their_probability_says():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    sampler = Sampler(1.0, 1.0, [7])
    counts = torch.bincount(torch.tensor([sampler.sample(logits, [0])[0] for _ in range(4000)]), minlength=4)
    torch.testing.assert_close(counts / 4000, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.03, rtol=0)


def test_temperature_sharpens_or_flattens():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    cold, plain, warm = (nucleus(logits, temperature, 1.0)[0, 2] for temperature in (0.5, 1.0, 2.0))
    assert cold > plain > warm


@pytest.mark.parametrize("temperature", [1e-9, 1e-300, 5e-324, 1e300])
def test_extreme_temperatures_give_no_nan(temperature):
    probabilities = nucleus(torch.tensor([[-3e38, 0.0, 3e38]]), temperature, 0.95)
    assert torch.isfinite(probabilities).all()


def test_a_seed_repeats_and_another_seed_differs():
    logits = torch.zeros(1, 1000)
    draws = [[Sampler(1.0, 0.95, [seed]).sample(logits, [0]) for _ in range(3)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_prompt_draws_the_same_alone_and_in_any_batch():
    logits = torch.randn(3, 5, 50)  # three steps of five prompts
    together, alone = Sampler(1.0, 0.9, range(5)), Sampler(1.0, 0.9, range(5))
    rows = [0, 1, 2, 3, 4]
    for step in logits:
        batch = together.sample(step[rows], rows)
        assert batch == [alone.sample(step[[row]], [row])[0] for row in rows]
        rows = rows[1:]  # one leaves


def test_logits_in_bfloat16_are_sampled_in_float64():
    assert nucleus(torch.randn(2, 9, dtype=torch.bfloat16), 0.7, 0.9).dtype == torch.float64


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(bad):
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        Sampler(1.0, 0.95, [0]).sample(torch.tensor([[0.0, bad]]), [0])


@pytest.mark.parametrize(("temperature", "top_p", "seed", "complaint"), [
    (-0.1, 0.95, 0, "temperature is -0.1"),
    (float("nan"), 0.95, 0, "temperature is nan"),
    (float("inf"), 0.95, 0, "temperature is inf"),
    (1.0, 0.0, 0, "top_p is 0.0"),
    (1.0, 1.5, 0, "top_p is 1.5"),
    (1.0, float("nan"), 0, "top_p is nan"),
    (1.0, 0.95, -1, "seed is -1"),
    (1.0, 0.95, 2**64, "seed is"),
])
def test_settings_out_of_range_are_refused(temperature, top_p, seed, complaint):
    with pytest.raises(UsageError, match=complaint):
        Sampler(temperature, top_p, [seed])
