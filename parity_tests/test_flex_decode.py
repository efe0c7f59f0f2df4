"""Decoding by FlexAttention with a mask made of lengths, and the recorded step: what a CPU can say about both."""

import pytest
import torch
from torch import Tensor

from optimized import attention_products, capability, flex_decode
from optimized.attention import block_mask
from optimized.cuda_graph import DecodeGraph
from optimized.model import compile_steps, load_model, set_attention
from parity_tests.agreement import FLOAT32, assert_agrees, assert_caught
from parity_tests.checkpoints import small_config, write_checkpoint
from reference.model import load_model as load_reference

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]

NUM_SLOTS = 700  # not a multiple of a block
STARTS = torch.tensor([0, 1, 127, 128, 300, 640, 699, 40])
PADDINGS = torch.tensor([0, 0, 127, 5, 260, 639, 0, 60])  # the last row is still in its padding


def visible_slots(mask) -> Tensor:
    """(B, S) bool: the slots in blocks that are listed, as the mask then cuts them."""
    seen = torch.zeros(len(STARTS), NUM_SLOTS, dtype=torch.bool)  # (B, S)
    for row, count in enumerate(mask.kv_num_blocks[:, 0, 0].tolist()):
        for block in mask.kv_indices[row, 0, 0, :count].tolist():
            for slot in range(block * 128, min(block * 128 + 128, NUM_SLOTS)):
                index = (torch.tensor(i) for i in (row, 0, 0, slot))
                seen[row, slot] |= mask.mask_mod(*index)
    return seen


def test_blocks_from_lengths_show_what_the_full_mask_shows() -> None:
    expected = block_mask(STARTS, PADDINGS, 1, NUM_SLOTS)
    found = flex_decode.decode_mask(STARTS, PADDINGS, NUM_SLOTS)
    slot = torch.arange(NUM_SLOTS)
    own = STARTS[:, None]
    assert torch.equal(visible_slots(found), (slot == own) | ((slot < own) & (slot >= PADDINGS[:, None])))
    full = expected.full_kv_num_blocks if expected.full_kv_num_blocks is not None else 0
    # Not one block more is read than the full mask would have read.
    assert torch.equal(found.kv_num_blocks.flatten(), (expected.kv_num_blocks + full).flatten())
    assert found.seq_lengths == (1, NUM_SLOTS)


@pytest.mark.parametrize("num_heads", [8, 3])
def test_flex_decoding_agrees_with_products(num_heads: int) -> None:
    """Heads that four groups share, and heads that they do not."""
    query, keys = torch.randn(8, 1, num_heads, 24), torch.randn(8, NUM_SLOTS, 24)
    seeing = STARTS >= PADDINGS  # a padding query sees itself here, and nothing there
    mask = flex_decode.decode_mask(STARTS, PADDINGS, NUM_SLOTS)
    found = flex_decode.attend(query, keys, mask, 16, 0.3)
    expected = attention_products.all_rows(query, keys, STARTS, PADDINGS, 16, 0.3)
    assert_agrees("optimized, flex decoding", found[seeing], expected[seeing], FLOAT32)
    wrong = flex_decode.attend(query, keys, flex_decode.decode_mask(STARTS - 1, PADDINGS, NUM_SLOTS), 16, 0.3)
    assert_caught("optimized, flex decoding: one slot short", wrong[seeing][1:], expected[seeing][1:], FLOAT32)


@pytest.mark.filterwarnings("error:.* cannot be compiled here")
def test_compiled_decoding_builds_its_mask_in_the_graph(tmp_path) -> None:
    if not capability.has_compiler(torch.device("cpu")):
        return  # test_optimized_compiled.py holds the message
    config = small_config({"num_hidden_layers": 1, "first_k_dense_replace": 0}, int4=True)
    directory = write_checkpoint(tmp_path, config)
    plain, fast = load_reference(directory), load_model(directory)
    set_attention(fast, "flex")
    caches = plain.new_cache(2), fast.new_cache(2, 300)
    torch._dynamo.reset()
    stats = torch._dynamo.utils.counters["stats"]  # over the whole process
    with torch.inference_mode():
        for model, cache in zip((plain, fast), caches, strict=True):
            model(torch.arange(260).view(2, 130) % 240, cache=cache)
        compile_steps(fast)
        warm = None  # graphs after two steps: sizes that may vary are known as such then
        for step in range(140):  # into the third block
            ids = torch.full((2, 1), step)
            expected, found = plain(ids, cache=caches[0]), fast(ids, cache=caches[1])
            assert_agrees("optimized, compiled flex decoding", found, expected, FLOAT32)
            warm = stats["unique_graphs"] if step == 1 else warm
    assert stats["unique_graphs"] == warm


class Recorder:
    """Stands for a CUDA graph: what would be recorded is called."""

    def __init__(self, compute):
        self.compute = compute
        self.recordings = 0

    def record(self, hidden, start, num_padding, layers, settings):
        self.recordings += 1
        inputs = [tensor.clone() for tensor in (hidden, start, num_padding)]
        logits = torch.empty(len(hidden), 1, 5)

        class Graph:
            replay = staticmethod(lambda: logits.copy_(self.compute(*inputs, layers, *settings)))

        return Graph, inputs, logits


@pytest.fixture
def recorded(monkeypatch) -> tuple[DecodeGraph, Recorder]:
    recorder = Recorder(lambda hidden, start, padding, layers, scale:
                        scale * hidden[..., :5] + start[:, None, None] + layers[0].sum())  # fmt: skip
    monkeypatch.setattr(DecodeGraph, "record", lambda self, *given: recorder.record(*given))
    return DecodeGraph(recorder.compute), recorder


def test_a_recorded_step_takes_new_inputs_and_sees_the_cache_change(recorded) -> None:
    graph, recorder = recorded
    cache, padding = torch.ones(3, 4, 2), torch.zeros(3, dtype=torch.int64)
    outputs = []
    for step in range(3):
        hidden = torch.randn(3, 1, 6)
        start = torch.full((3,), step)
        given = hidden, start, padding, [cache], 2
        outputs.append((graph(*given), recorder.compute(*given)))
        cache += 1
    assert recorder.recordings == 1
    assert all(torch.equal(found, expected) for found, expected in outputs)  # and none was written over


def test_one_recording_per_number_of_rows_and_none_of_a_cache_that_is_gone(recorded) -> None:
    graph, recorder = recorded
    cache = torch.ones(3, 4, 2)
    for rows in (3, 2, 3, 2, 1):
        ids = torch.zeros(rows, dtype=torch.int64)
        graph(torch.randn(rows, 1, 6), ids, ids, [cache[:rows]], 1)
    assert recorder.recordings == len(graph.recorded) == 3
    ids = torch.zeros(2, dtype=torch.int64)
    graph(torch.randn(2, 1, 6), ids, ids, [torch.ones(2, 4, 2)], 1)
    assert recorder.recordings == 4 and len(graph.recorded) == 1
