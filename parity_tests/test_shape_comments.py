"""The shapes that stand in the comments of `reference/` are what the tensors are."""

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from parity_tests.shape_comments import ShapeChecker, ShapeCommentError
from reference import attention, vision
from reference.checkpoint import use_int4
from reference.config import KimiConfig
from reference.generation import generate
from reference.image import image_patches
from reference.int4 import Int4Linear, dequantize, quantize
from reference.media_config import MediaConfig
from reference.model import KimiModel, TextOnlyModel, routed_linears
from reference.presets import preset_dict
from reference.prompt import Prompt
from reference.responder import Responder

ROOT = Path(__file__).parents[1]

# Sizes that all differ, so that a swapped pair cannot pass: primes where the mathematics allows it. Rotary heads are
# even, INT4 rows are multiples of 32, the vision tower needs heads of a multiple of 4.
TEXT_SIZES = {
    "hidden_size": 96, "intermediate_size": 131, "kv_lora_rank": 37, "moe_intermediate_size": 64,
    "n_routed_experts": 11, "num_attention_heads": 3, "num_experts_per_tok": 5, "num_key_value_heads": 3,
    "pad_token_id": 250, "q_lora_rank": 47, "qk_nope_head_dim": 17, "qk_rope_head_dim": 22, "v_head_dim": 19,
    "vocab_size": 251,
}
VISION_SIZES = {
    "init_pos_emb_height": 6, "init_pos_emb_width": 10, "mm_hidden_size": 56, "vt_hidden_size": 56,
    "vt_intermediate_size": 53, "vt_num_attention_heads": 7,
}
GRID_THWS = [[1, 4, 6], [3, 2, 4], [1, 6, 10]]  # a picture, a clip, a picture of just the size of the position table
NUM_MEDIA_TOKENS = 6 + 2 + 15


def tiny_config(model_type: str = "kimi_k25", **text: object) -> KimiConfig:
    values = preset_dict("tiny")
    values["model_type"] = model_type
    values["text_config"] |= TEXT_SIZES | text
    values["vision_config"] |= VISION_SIZES
    return KimiConfig.from_dict(values)


def random_model(config: KimiConfig) -> KimiModel | TextOnlyModel:
    """Random weights of unit scale, experts packed where the configuration says so."""
    model = KimiModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    names = routed_linears(model) if config.quantization == "int4" else []
    packed = {name: quantize(model.get_submodule(name).weight) for name in names}
    use_int4(model, names)
    for name, (words, scale) in packed.items():
        linear: Int4Linear = model.get_submodule(name)
        linear.weight_packed, linear.weight_scale = words, scale
    return model


def sizes_of(config: KimiConfig) -> dict[str, int]:
    """Every whole number of the configuration under its published name."""
    values = dataclasses.asdict(config.text) | dataclasses.asdict(config.vision) | {"head_dim": config.vision.head_dim}
    return {name: value for name, value in values.items() if type(value) is int}


def media_batch(config: KimiConfig) -> dict[str, torch.Tensor]:
    """Two rows, the second one padded on the left, with all media in the first."""
    input_ids = torch.randint(0, 240, (2, NUM_MEDIA_TOKENS + 8))
    input_ids[0, 4 : 4 + NUM_MEDIA_TOKENS] = config.media_placeholder_token_id
    grid_thws = torch.tensor(GRID_THWS)
    pixel_values = torch.rand(int(grid_thws.prod(dim=1).sum()), 3, 14, 14)
    return {"input_ids": input_ids, "pixel_values": pixel_values, "grid_thws": grid_thws,
            "num_padding": torch.tensor([0, 9])}


def run_model(config: KimiConfig) -> None:
    """Prefill with media in both forms of attention, then some tokens and one token through the cache."""
    model, batch = random_model(config), media_batch(config)
    model(**batch, form="absorbed")
    cache = model.new_cache(2)
    model(**batch, cache=cache, last_only=True)
    for num_tokens in (13, 1):
        model(torch.randint(0, 240, (2, num_tokens)), cache=cache, num_padding=batch["num_padding"])


def run_generation(config: KimiConfig) -> None:
    """Two prompts; the longer one fills its context first and leaves the batch. Greedy, sampled, then one by itself."""
    model, prompts = random_model(config), [Prompt([7, 8, 9], None, None, []), Prompt([7], None, None, [])]
    for temperature in (0.0, 1.0):
        generate(model, prompts, max_new_tokens=9, temperature=temperature, top_p=0.9, seed=1, stop_ids=[])
    responder = Responder(model, max_new_tokens=9, temperature=0, top_p=1.0, stop_ids=[])
    responder._forward(prompts[0], model.new_cache(1))


@pytest.fixture(scope="module")
def checker():
    """All of `reference/`, after runs that take every branch in which a shape stands."""
    checker = ShapeChecker(sorted((ROOT / "reference").glob("*.py")), ROOT)
    torch.manual_seed(0)
    int4, short = tiny_config(), tiny_config(max_position_embeddings=5)
    plain = tiny_config(quantization_config=None, q_lora_rank=None, rope_scaling=None)
    grouped = tiny_config("kimi_vl", quantization_config=None, n_routed_experts=12, n_group=3, topk_group=2)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        # Small blocks: then the queries of a block are fewer than all tokens, and a swap of the two shows.
        patch.setattr(attention, "QUERY_BLOCK", 13)
        patch.setattr(vision, "QUERY_BLOCK", 20)
        for config in (int4, plain, grouped):
            with checker.watching(sizes_of(config)):
                run_model(config)
        with checker.watching(sizes_of(short)):
            run_generation(short)
            dequantize(*quantize(torch.rand(3, 64)), product="exact")
            image_patches(Image.new("RGB", (50, 90)), MediaConfig())
    return checker


def test_every_shape_comment_was_met_by_a_run(checker):
    assert checker.unmet() == []


def test_the_model_files_carry_shapes(checker):
    """The comments that the other tests check are there to be read: at least these files have them."""
    carrying = {Path(path).stem for path, source in checker.sources.items() if source.claims}
    assert carrying >= {"mlp", "rope", "attention", "router", "moe", "decoder", "vision", "projector", "int4", "model"}


# -- the checker itself ------------------------------------------------------------------------------------------------

GOOD = '''
# B batch   T tokens   H heads   C hidden_size   t rows of a part
# A all tokens: B*T
from dataclasses import dataclass
import torch

@dataclass
class Step:
    cos: torch.Tensor  # (T, 2C)

def split(hidden, num_heads=4):
    """hidden (B, T, C) in several ways."""
    Step(torch.zeros(hidden.shape[1], 2 * hidden.shape[2]))
    heads = hidden.unflatten(
        -1, (num_heads, -1))  # (B, T, H, C/H), under the last line of a statement
    first, rest = heads[..., :1], heads[..., 1:]  # (..., 1) (..., C/H-1)
    for part in hidden.split([2, 1], dim=1):
        pieces = part + 0  # (B, t, C)
    pieces *= 2  # (B, t, C)
    with torch.no_grad():
        return hidden.flatten(0, 1), [first][0]  # (A, C) (B, T, H, topk_group-1)
'''


def check_file(tmp_path: Path, text: str) -> ShapeChecker:
    """Run `split` of a file on a tensor (2, 3, 8)."""
    path = tmp_path / "sample.py"
    path.write_text(text, encoding="utf-8")
    checker = ShapeChecker([path], tmp_path)
    spec = importlib.util.spec_from_file_location("sample", path)
    module = sys.modules["sample"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with checker.watching({"hidden_size": 8, "topk_group": 2}):
        module.split(torch.zeros(2, 3, 8))
    return checker


def test_right_comments_pass(tmp_path):
    assert check_file(tmp_path, GOOD).unmet() == []


@pytest.mark.parametrize(("right", "wrong", "complaint"), [
    ("(B, T, H, C/H)", "(B, T, C/H, H)", "H = 2"),  # possible for this line alone, contradicted by the next
    ("(B, T, H, C/H)", "(B, T, C)", "heads is (2, 3, 4, 2)"),
    ("(B, T, H, C/H)", "(B, T, H, 2C/H)", "heads is"),
    ("(B, T, H, C/H)", "(B, T, H, D)", "D is not in the legend"),
    ("(..., 1) (..., C/H-1)", "(..., 1) (B, ..., C)", "rest is"),
    ("(..., 1) (..., C/H-1)", "(..., 1)", "first, rest"),
    ("(..., 1) (..., C/H-1)", "(..., 1) (..., 1) (1)", "3 shapes for 2 targets"),
    ("pieces = part + 0  # (B, t, C)", "pieces = part + 0  # (B, T, C)", "T = 3"),
    ("pieces *= 2  # (B, t, C)", "pieces *= 2  # (t, B, C)", "pieces is"),
    ("(A, C) (B", "(C, A) (B", "the result[0] is (6, 8)"),
    ("topk_group-1", "topk_group", "the result[1] is (2, 3, 4, 1)"),
    ("(T, 2C)", "(T, C)", "cos is (3, 16)"),
    ("hidden (B, T, C) in", "hidden (T, B, C) in", "claimed is"),
    ("A all tokens: B*T", "A all tokens: B*B", "A is 6, not B * B"),
    ("# (A, C)", "# (A C)", "no shape can be read"),
    ("Step(torch", "print()  # (B, T)\n    Step(torch", "nothing is assigned or returned"),
])
def test_wrong_comments_are_caught(tmp_path, right, wrong, complaint):
    assert GOOD.count(right) == 1
    with pytest.raises(ShapeCommentError, match=re.escape(complaint)):
        check_file(tmp_path, GOOD.replace(right, wrong))


def test_a_comment_that_no_run_meets_is_named(tmp_path):
    never = "    if num_heads > 4:\n        heads = heads + 0  # (B, T, H, C/H)\n"
    text = GOOD.replace("    for part", never + "    for part")
    line = text[: text.index("heads + 0")].count("\n") + 1
    assert check_file(tmp_path, text).unmet() == [f"sample.py:{line}"]


def test_a_comment_cannot_be_met_by_a_statement_that_failed(tmp_path):
    failing = ("    try:\n        late = torch.cat([hidden, heads])  # (B, T, C)\n"
               "    except RuntimeError:\n        late = None\n")
    text = GOOD.replace("    for part", failing + "    for part")
    assert len(check_file(tmp_path, text).unmet()) == 1
