"""The model in `reference/nano`: complete, in the published format, the same for other engines, and able to answer."""

import json
import random

import pytest
import torch
from torch import nn

from parity_tests.agreement import FLOAT32
from parity_tests.transformers_oracle import assert_same, import_transformers, load_theirs, our_stages, their_stages
from reference.checkpoint import Checkpoint, find_problems
from reference.generate import SHIPPED_MODEL
from reference.generation import generate, read_reply
from reference.int4 import Int4Linear, dequantize
from reference.model import build_model, load_model
from reference.presets import preset_dict
from reference.prompt import Processor, Prompt
from tools.worlds.sample import Sample, draw

FILES = (
    "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
    "preprocessor_config.json", "tiktoken.model", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
QUESTIONS = {"numbers.add": 12, "numbers.subtract": 12, "numbers.decimals": 6, "self.who": 4, "outside.question": 4}
NUM_PICTURES = 24  # all kinds of question about one shape


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load_model(SHIPPED_MODEL)


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return load_theirs(SHIPPED_MODEL)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_directory(SHIPPED_MODEL)


def held_out() -> list[Sample]:
    pictures = [draw("pictures", 4, i, "held-out", thinking=True, num_shapes=[1]) for i in range(NUM_PICTURES)]
    others = [draw(skill, 4, i, "held-out", thinking=True) for skill, count in QUESTIONS.items() for i in range(count)]
    return others + pictures


def test_every_file_of_a_published_checkpoint_is_there_and_all_are_small() -> None:
    assert sorted(path.name for path in SHIPPED_MODEL.iterdir()) == sorted(FILES)
    assert sum(path.stat().st_size for path in SHIPPED_MODEL.iterdir()) < 30_000_000


def test_its_configuration_is_the_preset_and_its_tensors_are_all_there() -> None:
    assert json.loads((SHIPPED_MODEL / "config.json").read_text()) == preset_dict("kimi-k25-nano")
    checkpoint = Checkpoint(SHIPPED_MODEL)
    assert find_problems(build_model(checkpoint.config).state_dict(), checkpoint) == []
    assert len(checkpoint.int4_linears()) == 4 * 8 * 3  # every linear of every routed expert, and nothing else


def test_every_rounding_convention_gives_the_same_int4_weights(model: nn.Module) -> None:
    packed = [module for module in model.modules() if isinstance(module, Int4Linear)]
    for linear in packed:
        exact = dequantize(linear.weight_packed, linear.weight_scale, "exact")
        assert torch.equal(dequantize(linear.weight_packed, linear.weight_scale, "bfloat16").float(), exact)


def test_no_merge_of_the_vocabulary_holds_a_digit(processor: Processor) -> None:
    tokens = [processor.tokenizer.token_bytes(i) for i in range(processor.tokenizer.num_ranks)]
    assert not [token for token in tokens if len(token) > 1 and any(byte in b"0123456789" for byte in token)]


def test_it_answers_most_held_out_questions_of_the_easy_kinds(model: nn.Module, processor: Processor) -> None:
    """A guard against a broken checkpoint, with what the model does best. docs/benchmarks has the measurement."""
    samples = held_out()
    prompts = [processor.prompt(sample.messages) for sample in samples]
    replies = generate(model, prompts, max_new_tokens=256, temperature=0, top_p=1, seed=0, stop_ids=processor.stop_ids)
    answers = [read_reply(reply.ids, processor.tokenizer, thinking=True).content for reply in replies]
    right = sum(sample.check(answer) for sample, answer in zip(samples, answers, strict=True))
    assert right >= 0.85 * len(samples), f"{right} of {len(samples)}"


@pytest.mark.oracle
def test_transformers_loads_it_whole_and_computes_the_same(
    model: nn.Module, theirs: nn.Module, processor: Processor
) -> None:
    for sample in (draw("numbers.multiply", 4, 0), draw("pictures.describe", 4, 0)):
        prompt = processor.prompt(sample.messages)
        ours, expected = stages_of_both(model, theirs, prompt)
        assert_same("shipped model", ours, expected)


def stages_of_both(model: nn.Module, theirs: nn.Module, prompt: Prompt) -> tuple[dict, dict]:
    ids, media, their_media = torch.tensor([prompt.input_ids]), {}, {}
    if prompt.pixel_values is not None:
        pixels, grids = torch.from_numpy(prompt.pixel_values), torch.from_numpy(prompt.grid_thws)
        media = {"pixel_values": pixels, "grid_thws": grids}
        their_media = {"pixel_values": pixels, "image_grid_thw": grids}
    return our_stages(model, ids, **media), their_stages(theirs, ids, **their_media)


@pytest.mark.oracle
@pytest.mark.parametrize("skill", ["numbers.add", "pictures.describe", "pictures.colour"])
def test_transformers_generates_the_same_greedy_tokens(
    model: nn.Module, theirs: nn.Module, processor: Processor, skill: str
) -> None:
    prompts = [processor.prompt(draw(skill, 4, i, "held-out").messages) for i in range(4)]
    settings = {"temperature": 0, "top_p": 1, "seed": 0, "stop_ids": processor.stop_ids}
    for prompt in prompts:
        [ours] = generate(model, [prompt], max_new_tokens=200, **settings)
        media = {}
        if prompt.pixel_values is not None:
            media = {"pixel_values": torch.from_numpy(prompt.pixel_values)}
            media["image_grid_thw"] = torch.from_numpy(prompt.grid_thws)
        ids = torch.tensor([prompt.input_ids])
        stop = sorted(processor.stop_ids)
        output = theirs.generate(input_ids=ids, **media, max_new_tokens=200, do_sample=False, eos_token_id=stop)
        expected = [token for token in output[0, ids.shape[1] :].tolist() if token not in processor.stop_ids]
        assert ours.ids == expected


@pytest.mark.oracle
def test_their_tokenizer_gives_our_ids_on_thousands_of_strings(processor: Processor) -> None:
    tokenizer = import_transformers().AutoTokenizer.from_pretrained(SHIPPED_MODEL)
    rng = random.Random(5)
    pieces = [
        "iPhone's DON'T", "漢字かな", " 12345", "\r\n\n  ", "élan", "<|im_end|>", "<think>", "🙂", "can't WE'LL",
        "\u3000", "x=1;",
        "naïve", "Ünïcode", "٣٤٥", "中文abc", "…", "[EOS]", "What is 482 + 379?", "ſ's", "http://a.b/c?d=e",
    ]  # fmt: skip
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 6)))
        assert tokenizer.encode(text, add_special_tokens=False) == processor.tokenizer.encode_with_control(text), text


def test_a_shuffled_expert_would_be_noticed(processor: Processor) -> None:
    """The comparison with transformers has teeth: two swapped experts are far beyond its tolerance."""
    wrong, right = load_model(SHIPPED_MODEL), load_model(SHIPPED_MODEL)
    experts = wrong.language_model.model.layers[2].mlp.experts
    experts[0], experts[1] = experts[1], experts[0]
    ids = torch.tensor([processor.prompt([{"role": "user", "content": "What is 482 + 379?"}]).input_ids])
    with torch.inference_mode():
        difference = torch.linalg.norm(wrong(ids) - right(ids)) / torch.linalg.norm(right(ids))
    assert difference > 10 * FLOAT32
