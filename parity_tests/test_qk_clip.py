"""QK-Clip finds the largest logit that attention really computes, and brings it down to the threshold."""

import pytest
import torch

from parity_tests.checkpoints import random_weights, small_config
from reference.attention import MultiHeadLatentAttention
from reference.config import KimiConfig
from reference.model import KimiModel
from reference.stages import observing
from tools.qk_clip import MaxLogits, clip

# B examples   T tokens   H heads


@pytest.fixture
def model():
    config = small_config()
    model = KimiModel(KimiConfig.from_dict(config)).double()
    # Three times as large as they come, so that heads differ.
    model.load_state_dict({name: 3 * tensor.double() for name, tensor in random_weights(config).items()})
    return model


def attentions_of(model):
    return [module for module in model.modules() if isinstance(module, MultiHeadLatentAttention)]


def largest_by_qk_clip(model, ids, valid):
    observer = MaxLogits(attentions_of(model))
    observer.begin(valid)
    with observing(observer):
        model(ids)
    return observer.total()


def scores_of_real_queries(model, ids, valid, monkeypatch):
    """What softmax is given, per layer, heads first: the truth, taken from inside the reference."""
    seen = {}
    inner = MultiHeadLatentAttention._weights

    def spy(self, scores, step, start):
        num_tokens = scores.shape[-1]
        visible = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril() & valid[:, :, None]  # (B, T, T)
        seen[self.layer_index] = (scores * self.scale).transpose(0, 1)[:, visible]  # (H, pairs)
        return inner(self, scores, step, start)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(MultiHeadLatentAttention, "_weights", spy)
        model(ids)
    return seen


def test_the_largest_logit_of_every_head_is_the_one_that_softmax_sees(model, monkeypatch):
    ids = torch.randint(50, (3, 17), generator=torch.Generator().manual_seed(1))
    valid = torch.arange(17) < torch.tensor([17, 9, 4])[:, None]  # (B, T)
    found = largest_by_qk_clip(model, ids, valid)
    truth = scores_of_real_queries(model, ids, valid, monkeypatch)
    assert found.keys() == truth.keys()
    for layer, logits in truth.items():
        assert torch.allclose(found[layer], logits.amax(dim=1))


def test_padding_has_no_say(model):
    ids = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(2))
    valid = torch.arange(12) < torch.tensor([7, 7])[:, None]  # (B, T)
    padded, alone = largest_by_qk_clip(model, ids, valid), largest_by_qk_clip(model, ids[:, :7], valid[:, :7])
    unmasked = largest_by_qk_clip(model, ids, torch.ones_like(valid))
    assert all(torch.allclose(padded[layer], alone[layer]) for layer in alone)
    assert any(not torch.allclose(padded[layer], unmasked[layer]) for layer in alone)


def test_clipped_heads_come_to_lie_on_the_threshold_and_the_others_keep_their_logits(model, monkeypatch):
    ids = torch.randint(50, (2, 11), generator=torch.Generator().manual_seed(3))
    valid = torch.ones_like(ids, dtype=torch.bool)
    first = attentions_of(model)[0]  # later layers also see what an earlier one changes
    before = scores_of_real_queries(model, ids, valid, monkeypatch)[0]  # (H, pairs)
    largest = before.amax(dim=1)  # (H)
    threshold = float(largest.sort().values[len(largest) // 2 - 1 : len(largest) // 2 + 1].mean())
    clip(first, largest, threshold)
    after = scores_of_real_queries(model, ids, valid, monkeypatch)[0]  # (H, pairs)
    too_large = largest > threshold
    assert too_large.any() and not too_large.all()
    assert torch.allclose(after[too_large].amax(dim=1), torch.full_like(largest[too_large], threshold))
    assert torch.allclose(after[too_large], before[too_large] * (threshold / largest[too_large])[:, None])
    assert torch.equal(after[~too_large], before[~too_large])
