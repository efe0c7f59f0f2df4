"""The generation loop: a prompt is answered the same alone, in a batch and beside images; stops, limits, streaming."""

from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from parity_tests.agreement import BATCH, assert_agrees, assert_caught
from parity_tests.speaking_checkpoint import CONTROL_IDS, ScriptedModel, spell, write_speaking_checkpoint
from reference.chat_template import prompt_text
from reference.errors import CheckpointError, ConfigError, MediaError, TemplateError, UsageError
from reference.generation import ReplyStream, _Batch, answer, check_memory, generate, read_reply
from reference.model import load_model
from reference.prompt import Processor, Prompt, build_prompt
from reference.replies import Content, Reasoning
from reference.request import Request

GREEDY = {"temperature": 0, "top_p": 1.0, "seed": 0}
SAMPLED = {"temperature": 1.0, "top_p": 0.95, "seed": 5}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_speaking_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def processor(directory):
    return Processor.from_directory(directory)


@pytest.fixture(scope="module")
def model(directory):
    return load_model(directory)


def picture(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def asking(*parts: object) -> list[dict]:
    """One user message of texts and images."""
    return [{"role": "user", "content": [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in parts]}]


@pytest.fixture(scope="module")
def prompts(processor):
    """Different lengths, with no, one and two images."""
    conversations = [asking("Hi"), asking(picture(70, 40, 1), "What is this?"), asking("A somewhat longer question."),
                     asking("First", picture(28, 28, 2), "and second", picture(100, 90, 3))]
    return [processor.prompt(messages) for messages in conversations]


def first_logits(model, prompts):
    with torch.inference_mode():
        return _Batch(model, prompts).prefill(prompts)


def test_logits_are_the_same_alone_and_in_a_batch(model, prompts):
    together = first_logits(model, prompts)
    for row, prompt in enumerate(prompts):
        assert_agrees("generation.batch", together[[row]], first_logits(model, [prompt]), BATCH)


def test_forgetting_the_padding_would_be_noticed(model, prompts):
    padded = Prompt([0] * 9 + prompts[0].input_ids, None, None, [])
    assert_caught("generation.batch", first_logits(model, [padded]), first_logits(model, prompts[:1]), BATCH)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_tokens_are_the_same_alone_and_in_a_batch(model, prompts, settings):
    def ids(batch):
        return [result.ids for result in generate(model, batch, max_new_tokens=8, stop_ids=[], **settings)]

    assert ids(prompts) == [ids([prompt])[0] for prompt in prompts]


def test_rows_that_stop_do_not_disturb_the_others(model, prompts):
    free = generate(model, prompts, max_new_tokens=12, stop_ids=[], **GREEDY)
    stop = free[1].ids[3]  # ends the second row early, the others wherever it occurs in them
    results = generate(model, prompts, max_new_tokens=12, stop_ids=[stop], **GREEDY)
    for result, unstopped in zip(results, free, strict=True):
        has_stop = stop in unstopped.ids
        assert result.ids == (unstopped.ids[: unstopped.ids.index(stop)] if has_stop else unstopped.ids)
        assert result.finish_reason == ("stop" if has_stop else "length")
        assert result.num_sampled == len(result.ids) + has_stop


def test_decoding_through_the_cache_equals_running_the_whole_text_again(model, prompts):
    [result] = generate(model, [prompts[1]], max_new_tokens=6, stop_ids=[], **GREEDY)
    ids = list(prompts[1].input_ids)
    media = {name: torch.from_numpy(getattr(prompts[1], name)) for name in ("pixel_values", "grid_thws")}
    with torch.inference_mode():
        for token in result.ids:
            assert int(model(torch.tensor([ids]), **media)[0, -1].argmax()) == token
            ids.append(token)


def test_streamed_tokens_are_the_result_in_order(model, prompts):
    seen: list[tuple[int, int]] = []
    stop = generate(model, prompts, max_new_tokens=8, stop_ids=[], **GREEDY)[0].ids[2]
    results = generate(model, prompts, max_new_tokens=8, stop_ids=[stop], **GREEDY,
                       on_token=lambda row, token: seen.append((row, token)))
    for row, result in enumerate(results):
        assert [token for of, token in seen if of == row] == result.ids
    assert [row for row, _ in seen[:4]] == [0, 1, 2, 3], "a step serves all rows before the next begins"


def test_a_seed_repeats_and_each_prompt_may_have_its_own(model, prompts):
    def ids(seed, batch=prompts):
        settings = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 6, "stop_ids": []}
        return [result.ids for result in generate(model, batch, seed=seed, **settings)]

    assert ids(3) == ids(3) != ids(4)
    twice = [prompts[0]] * 2
    first, second = ids([3, 4], twice)
    assert first != second
    assert [first, second] == [ids(3, twice[:1])[0], ids(4, twice[:1])[0]]


def test_no_prompts_give_no_results(model):
    assert generate(model, [], max_new_tokens=1, stop_ids=[], **GREEDY) == []


def text_prompt(num_tokens):
    return Prompt([65] * num_tokens, None, None, [])


def test_the_context_limits_what_is_generated(model):
    context = model.config.text.max_position_embeddings
    [result] = generate(model, [text_prompt(context - 2)], max_new_tokens=100, stop_ids=[], **GREEDY)
    assert (len(result.ids), result.finish_reason) == (2, "length")


def test_a_prompt_that_fills_the_context_is_refused_before_anything_runs(directory):
    model = ScriptedModel([], directory)
    context = model.config.text.max_position_embeddings
    with pytest.raises(TemplateError, match=f"{context} tokens, the model's context {context}"):
        generate(model, [text_prompt(5), text_prompt(context)], max_new_tokens=1, stop_ids=[], **GREEDY)


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"seed": -1}])
def test_settings_out_of_range_are_refused(model, prompts, wrong):
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} is"):
        generate(model, prompts[:1], **{"max_new_tokens": 1, "stop_ids": [], **GREEDY, **wrong})


# -- the prompt --------------------------------------------------------------------------------------------------------

def test_images_get_one_placeholder_per_token_in_reading_order(processor):
    prompt = processor.prompt(asking(picture(28, 56, 1), "between", picture(84, 28, 2)), thinking=False)
    pad = CONTROL_IDS["<|media_pad|>"]
    text = prompt_text(prompt.runs)
    assert text.count("<|media_pad|>") == 2
    lengths = [len(list(group)) for is_pad, group in groupby(prompt.input_ids, pad.__eq__) if is_pad]
    assert lengths == [2, 3] == [int(h * w // 4) for _, h, w in prompt.grid_thws]
    assert len(prompt.pixel_values) == prompt.grid_thws.prod(axis=1).sum()
    assert text.endswith("<|im_assistant|>assistant<|im_middle|><think></think>")


MARKERS = st.sampled_from([*CONTROL_IDS, "<|kimi_k25_video_placeholder|>"])


@given(st.lists(MARKERS | st.text(max_size=5)).map("".join))
def test_text_never_becomes_a_control_token(processor, text):
    def controls(text):
        messages = [{"role": "system", "content": text}, {"role": "user", "content": text, "name": f"x{text}"}]
        return [token for token in processor.prompt(messages).input_ids if token >= 256]

    assert controls(text) == controls("harmless")


def test_foreign_tool_call_ids_are_renamed_in_the_prompt(processor):
    call = {"id": "call_abc", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_abc", "content": "seen"}]
    text = prompt_text(processor.prompt(messages).runs)
    assert "call_abc" not in text
    assert text.count("functions.look:0") == 2
    assert Request(messages).calls_before == 1


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(processor):
    with pytest.raises(TemplateError, match=r"prompt has \d+ tokens, 0 of them media; at most 4095"):
        processor.prompt([{"role": "user", "content": "a" * 5000}])
    with pytest.raises(MediaError, match="4095"):
        processor.prompt(asking(picture(1792, 1792, 1)))


def test_a_model_without_media_settings_refuses_media(processor):
    with pytest.raises(MediaError, match="cannot see"):
        build_prompt(asking(picture(28, 28, 1)), None, True, processor.tokenizer, None, 100)


def test_both_published_stop_tokens_stop(processor):
    assert processor.stop_ids == {CONTROL_IDS["<|im_end|>"], CONTROL_IDS["[EOS]"]}


@pytest.mark.parametrize("wrong", [{"vocab_size": 600}, {"vocab_size": 400}])
def test_a_vocabulary_that_is_not_the_models_is_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="vocab_size"):
        Processor.from_directory(write_speaking_checkpoint(tmp_path, **wrong))


# -- the reply ---------------------------------------------------------------------------------------------------------

REPLY = [*spell("Hm, schön", "</think>"), *spell("Wört</think>", "<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
         *spell("functions.look:0", "<|tool_call_argument_begin|>"), *spell('{"at": 1}', "<|tool_call_end|>")]


def test_a_reply_is_read_from_ids(processor):
    reply = read_reply(REPLY, processor.tokenizer, thinking=True)
    assert (reply.reasoning_content, reply.content) == ("Hm, schön", "Wört</think>")
    [call] = reply.tool_calls
    assert (call.id, call.name, call.arguments) == ("functions.look:0", "look", '{"at": 1}')


def test_a_character_is_streamed_whole_and_a_broken_one_replaced(processor):
    stream = ReplyStream(processor.tokenizer, thinking=False)
    assert [stream.push(byte) for byte in "é".encode()] == [[], [Content("é")]]
    assert stream.push("é".encode()[0]) == []
    assert stream.push(CONTROL_IDS["<think>"]) == [Content("\ufffd"), Content("<think>")]
    stream.push("é".encode()[0])
    assert stream.finish() == [Content("\ufffd")]


@pytest.mark.parametrize(("max_new_tokens", "finish_reason"), [(1000, "tool_calls"), (len(REPLY), "length")])
def test_an_answer_says_why_it_ended(directory, processor, max_new_tokens, finish_reason):
    events = []
    request = Request([{"role": "user", "content": "?"}], max_new_tokens=max_new_tokens)
    prompt = processor.prompt(request.messages)
    result = answer(ScriptedModel(REPLY, directory), processor, prompt, request, events.append)
    assert result.finish_reason == finish_reason
    assert result.num_completion_tokens == len(REPLY) + (finish_reason == "tool_calls")
    assert "".join(event.text for event in events if isinstance(event, Reasoning)) == result.reply.reasoning_content
    assert "".join(event.text for event in events if isinstance(event, Content)) == result.reply.content


def test_an_empty_answer_is_an_answer(directory, processor):
    request = Request([{"role": "user", "content": "?"}], thinking=False)
    result = answer(ScriptedModel([], directory), processor, processor.prompt(request.messages), request, print)
    assert (result.reply.content, result.finish_reason, result.num_completion_tokens) == ("", "stop", 1)
    assert result.decode_tok_s == 0


def test_what_cannot_fit_is_refused_before_loading(directory, monkeypatch):
    check_memory(directory, torch.float32, "cpu", 4096)
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}.__getitem__)
    with pytest.raises(CheckpointError, match=r"needs 0.0 GiB for weights .* cpu has 0.0 GiB in all"):
        check_memory(directory, torch.float32, "cpu", 4096)
