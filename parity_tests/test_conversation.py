"""A running conversation: each step's ids begin the next step's, and they are what rendering everything would give."""

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from optimized.generation import Batch
from optimized.model import load_model as load_optimized
from optimized.responder import Responder as OptimizedResponder
from parity_tests.agreement import BATCH, FLOAT32, assert_agrees, assert_caught
from parity_tests.speaking_checkpoint import (
    CONTROL_IDS,
    call,
    calling,
    declared,
    saying,
    scripted,
    spell,
    write_speaking_checkpoint,
)
from reference.conversation import Conversation
from reference.errors import ContextError, MediaError, TemplateError
from reference.generation import Generated, generate
from reference.model import load_model
from reference.prompt import Processor, Prompt
from reference.responder import Responder

TOOLS = [declared("look", at="integer"), declared("find", what="string")]
QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Look twice."}]
FIRST = calling("Two at once.", call("look", {"at": 1}, 0), call("find", {"what": "ü"}, 1))
SECOND = calling("Once more.", call("look", {"at": 2}, 2), content="One moment.")
LAST = saying("Done.", "Both are there.")
SETTINGS = {"max_new_tokens": 400, "temperature": 0, "top_p": 1.0}
BACKENDS = {"reference": (load_model, Responder), "optimized": (load_optimized, OptimizedResponder)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_speaking_checkpoint(tmp_path_factory.mktemp("checkpoint"), max_position_embeddings=8192)


@pytest.fixture(scope="module")
def processor(directory):
    return Processor.from_directory(directory)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, directory):
    load, responder = BACKENDS[request.param]
    return load(directory), responder


def picture(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def result(call_id: str, *parts: object) -> dict:
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
               for part in parts]
    return {"role": "tool", "tool_call_id": call_id, "name": call_id[10:-2],
            "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else content}


RESULTS = [[result("functions.look:0", "a wall"), result("functions.find:1", picture(56, 28, 1), "an ü")],
           [result("functions.look:2", picture(28, 28, 2))]]


def said(ids: list[int], finish_reason: str = "stop") -> Generated:
    return Generated(list(ids), finish_reason)


def whole(conversation: Conversation):
    return conversation.processor.prompt(conversation.messages, conversation.tools, conversation.thinking)


# -- ids ---------------------------------------------------------------------------------------------------------------

def test_the_ids_of_a_step_begin_the_next_and_equal_those_of_rendering_everything(processor):
    conversation = Conversation(processor, QUESTION, TOOLS)
    seen: list[int] = []
    for reply, results in zip((FIRST, SECOND), RESULTS, strict=True):
        before = conversation.ids
        seen += conversation.take_new().input_ids
        assert seen == before == whole(conversation).input_ids
        conversation.add_reply(said(reply))
        conversation.add_messages(results)
        assert conversation.ids[:len(before) + len(reply)] == before + reply
        seen += reply
        assert conversation.num_cached == len(seen)
    assert seen + conversation.take_new().input_ids == conversation.ids == whole(conversation).input_ids


def test_media_are_handed_over_once_with_the_ids_that_hold_their_places(processor):
    conversation = Conversation(processor, [{"role": "user", "content": [
        {"type": "image", "image": picture(28, 56, 3)}]}], TOOLS)
    pad = CONTROL_IDS["<|media_pad|>"]
    grids, pixels = [], []
    for reply, results in zip((FIRST, SECOND, LAST), [*RESULTS, [{"role": "user", "content": "?"}]], strict=True):
        new = conversation.take_new()
        assert new.input_ids.count(pad) == sum(int(h * w // 4) for _, h, w in new.grid_thws)
        grids.append(new.grid_thws)
        pixels.append(new.pixel_values)
        conversation.add_reply(said(reply))
        conversation.add_messages(results)
    everything = whole(conversation)
    assert np.array_equal(np.concatenate(grids), everything.grid_thws)
    assert np.array_equal(np.concatenate(pixels), everything.pixel_values)
    last = conversation.take_new()
    conversation.start_over()
    again = conversation.take_new()
    assert again.input_ids == everything.input_ids != last.input_ids
    assert np.array_equal(again.pixel_values, everything.pixel_values)


def test_results_may_be_added_one_by_one(processor):
    at_once, singly = (Conversation(processor, QUESTION, TOOLS) for _ in range(2))
    for conversation in (at_once, singly):
        conversation.take_new()
        conversation.add_reply(said(FIRST))
    at_once.add_messages(RESULTS[0])
    for message in RESULTS[0]:
        singly.add_messages([message])
    assert singly.ids == at_once.ids
    assert singly.take_new().input_ids == at_once.take_new().input_ids


def test_sampled_ids_stay_as_they_are_while_the_chain_runs(processor):
    """A model may count its calls wrongly and leave markers out: the result comes under the id that it wrote."""
    odd = [*spell("x", "<|tool_call_begin|>"), *spell("functions.look:7", "<|tool_call_argument_begin|>"), *spell("{}")]
    conversation = Conversation(processor, QUESTION, TOOLS)
    opening = conversation.take_new().input_ids
    assert conversation.add_reply(said(odd)).tool_calls[0].id == "functions.look:7"
    conversation.add_messages([result("functions.look:7", "y")])
    text = processor.tokenizer.decode(conversation.ids)
    assert conversation.ids[:len(opening + odd) + 1] == [*opening, *odd, CONTROL_IDS["<|im_end|>"]]
    assert "## Return of functions.look:7\ny" in text
    assert conversation.num_calls == 1


def test_a_user_who_speaks_in_a_running_chain_ends_nothing(processor):
    conversation = Conversation(processor, QUESTION, TOOLS)
    before = conversation.take_new().input_ids + FIRST
    conversation.add_reply(said(FIRST))
    conversation.add_messages([*RESULTS[0], {"role": "user", "content": "Hurry!"}])
    assert conversation.ids[:len(before)] == before
    assert conversation.ids == whole(conversation).input_ids


def test_the_turn_after_an_answer_drops_the_reasoning_and_keeps_the_cache_up_to_it(processor):
    conversation = Conversation(processor, QUESTION, TOOLS)
    opening = conversation.take_new().input_ids
    conversation.add_reply(said(FIRST))
    conversation.add_messages(RESULTS[0])
    conversation.take_new()
    conversation.add_reply(said(LAST))
    conversation.add_messages([{"role": "user", "content": "Thanks."}])
    assert conversation.ids == whole(conversation).input_ids
    assert "Two at once." not in processor.tokenizer.decode(conversation.ids)
    assert conversation.num_cached == len(opening), "both go on with <think>, and then part"
    new = conversation.take_new()
    assert opening + new.input_ids == conversation.ids
    assert len(new.grid_thws) == 1, "the picture stands behind the place where they part"


def test_an_instant_answer_leaves_the_cache_whole(processor):
    conversation = Conversation(processor, QUESTION, TOOLS, thinking=False)
    seen = conversation.take_new().input_ids + spell("Yes.")
    conversation.add_reply(said(spell("Yes.")))
    conversation.add_messages([{"role": "user", "content": "Sure?"}])
    assert conversation.ids == whole(conversation).input_ids
    assert seen + conversation.take_new().input_ids == conversation.ids


def test_a_reply_that_was_cut_is_written_out_once_more_follows(processor):
    conversation = Conversation(processor, QUESTION, TOOLS)
    conversation.take_new()
    reply = conversation.add_reply(said(FIRST[:-20], "length"))
    assert conversation.ids[-21:-1] == FIRST[-40:-20]
    conversation.add_messages([result(made.id, "?") for made in reply.tool_calls])
    assert conversation.ids == whole(conversation).input_ids


def test_a_reply_that_is_not_added_leaves_no_trace(processor):
    conversation = Conversation(processor, QUESTION, TOOLS)
    ids = conversation.take_new().input_ids
    assert conversation.take_new().input_ids == ids[-1:], "its logits are wanted again"
    conversation.add_messages([{"role": "system", "content": "Answer!"}])
    assert conversation.ids == whole(conversation).input_ids
    kept = len(conversation.ids) - len(conversation.take_new().input_ids)
    assert conversation.ids[:kept] == ids[:kept]


def test_foreign_ids_of_the_history_are_renamed_and_new_calls_count_on(processor):
    theirs = {"id": "call_x", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    history = [*QUESTION, {"role": "assistant", "tool_calls": [theirs]}, result("call_x", "?")]
    conversation = Conversation(processor, history, TOOLS)
    assert conversation.messages[-1]["tool_call_id"] == "functions.find:0"
    assert history[-1]["tool_call_id"] == "call_x", "the caller's own are left alone"
    unnumbered = [*spell("", "</think>", "<|tool_call_begin|>"), *spell("look", "<|tool_call_argument_begin|>")]
    assert conversation.add_reply(said(unnumbered)).tool_calls[0].id == "functions.look:1"


@pytest.mark.parametrize(("messages", "error", "complaint"), [
    ([result("functions.look:9", "?")], TemplateError, "answers no earlier tool call"),
    ([{"role": "assistant", "content": "I did."}], TemplateError, "add_reply"),
    ([result("functions.look:0", "x" * 9000)], ContextError, "at most 8191 fit"),
    ([result("functions.look:0", *[Image.new("L", (1792, 1792))] * 2)], MediaError, "at most"),
    ([{"role": "tool", "tool_call_id": "functions.look:0", "content": 3}], TemplateError, "the number 3"),
])
def test_what_cannot_be_added_changes_nothing(processor, messages, error, complaint):
    conversation = Conversation(processor, QUESTION, TOOLS)
    conversation.take_new()
    conversation.add_reply(said(FIRST))
    before = conversation.ids, list(conversation.messages), conversation.num_cached
    with pytest.raises(error, match=complaint):
        conversation.add_messages(messages)
    assert (conversation.ids, conversation.messages, conversation.num_cached) == before


# -- through the cache -------------------------------------------------------------------------------------------------

def play(*lines: list[int]):
    """Says these replies, one after the other: the k-th where k replies are there already."""
    return lambda conversation: lines[sum(message["role"] == "assistant" for message in conversation.messages)]


def run_chain(responder, conversation):
    for results in (*RESULTS, [{"role": "user", "content": "And now?"}]):
        responder.reply_all([conversation])
        conversation.add_messages(results)
    responder.reply_all([conversation])


def anew(model, processor, ids, conversation):
    """Logits of every token of a reply, everything run at once: `ids` are the prompt and the reply."""
    media = whole(conversation)
    num_pads, num_media = ids.count(CONTROL_IDS["<|media_pad|>"]), 0
    while num_pads:
        num_pads -= int(media.grid_thws[num_media][1:].prod()) // 4
        num_media += 1
    grids = media.grid_thws[:num_media]
    pixels = media.pixel_values[:int(grids.prod(axis=1).sum())]
    arrays = {"pixel_values": torch.from_numpy(pixels), "grid_thws": torch.from_numpy(grids)} if num_media else {}
    with torch.inference_mode():
        return model(torch.tensor([ids]), **arrays)[0]


@pytest.mark.parity
def test_a_kept_cache_gives_the_logits_of_prefilling_everything_anew(backend, processor):
    """A chain with pictures in its results, then a new turn that drops the reasoning."""
    model, responder_class = backend
    conversation = Conversation(processor, QUESTION, TOOLS)
    responder = scripted(responder_class, play(FIRST, SECOND, LAST, LAST))(model, **SETTINGS, stop_ids=[
        CONTROL_IDS["<|im_end|>"]])
    run_chain(responder, conversation)
    assert [len(logits) for _, _, logits in responder.heard] == [len(line) + 1 for line in (FIRST, SECOND, LAST, LAST)]
    for (_, prompt, logits), line in zip(responder.heard, (FIRST, SECOND, LAST, LAST), strict=True):
        expected = anew(model, processor, prompt + line, conversation)[len(prompt) - 1:]
        assert_agrees("agents, cache kept between steps", torch.stack(logits), expected, FLOAT32)
    _, prompt, logits = responder.heard[1]
    shifted = anew(model, processor, prompt[1:] + SECOND, conversation)[len(prompt) - 2:]
    assert_caught("agents, cache kept between steps: one token lost", torch.stack(logits), shifted, FLOAT32)


def test_only_what_is_new_goes_through_the_model(backend, processor):
    model, responder_class = backend
    fed: list[int] = []
    handle = model.language_model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: fed.append(inputs[0].numel()))
    conversation = Conversation(processor, QUESTION, TOOLS)
    responder = scripted(responder_class, play(FIRST, SECOND, LAST))(model, **SETTINGS, stop_ids=[
        CONTROL_IDS["<|im_end|>"]])
    for results in RESULTS:
        responder.reply_all([conversation])
        conversation.add_messages(results)
    responder.reply_all([conversation])
    handle.remove()
    assert sum(fed) == len(conversation.ids) - 1, "all but the last <|im_end|>, each once"


def test_replies_are_those_of_single_requests(backend, processor):
    """Nothing scripted: every reply is what `generate` says to the same prompt without a cache from before."""
    model, responder_class = backend
    conversation = Conversation(processor, QUESTION, TOOLS, thinking=False)
    responder = responder_class(model, max_new_tokens=12, temperature=0, top_p=1.0, stop_ids=processor.stop_ids)
    for question in ("One?", "Two?", "Three?"):
        conversation.add_messages([{"role": "user", "content": question}])
        [expected] = generate(model, [whole(conversation)], max_new_tokens=12, temperature=0, top_p=1.0, seed=0,
                              stop_ids=processor.stop_ids)
        before = conversation.ids
        [reply] = responder.reply_all([conversation])
        assert conversation.ids[len(before):-1] == expected.ids
        assert reply == conversation.read(expected)


def test_a_conversation_samples_from_its_own_seed_whatever_runs_beside_it(backend, processor):
    model, responder_class = backend
    settings = {"max_new_tokens": 9, "temperature": 1.0, "top_p": 0.95, "stop_ids": []}

    def said_by(*seeds):
        conversations = [Conversation(processor, QUESTION, TOOLS, seed=seed) for seed in seeds]
        num_before = len(conversations[0].ids)
        responder_class(model, **settings).reply_all(conversations)
        return [conversation.ids[num_before:-1] for conversation in conversations]

    first, second, third = said_by(3, 4, 3)
    assert first == third != second
    assert [first, second] == [said_by(3)[0], said_by(4)[0]]
    [expected] = generate(model, [processor.prompt(QUESTION, TOOLS)], seed=4, **settings)
    assert second == expected.ids


def test_a_conversation_may_move_to_another_responder(backend, processor):
    model, responder_class = backend
    conversation = Conversation(processor, QUESTION, TOOLS)
    stop = [CONTROL_IDS["<|im_end|>"]]
    scripted(responder_class, play(FIRST))(model, **SETTINGS, stop_ids=stop).reply_all([conversation])
    conversation.add_messages(RESULTS[0])
    other = scripted(responder_class, play(FIRST, LAST))(model, **SETTINGS, stop_ids=stop)
    other.reply_all([conversation])
    [(_, prompt, logits)] = other.heard
    expected = anew(model, processor, prompt + LAST, conversation)[len(prompt) - 1:]
    assert_agrees("agents, cache begun anew", torch.stack(logits), expected, FLOAT32)


def test_a_call_that_is_forbidden_cannot_be_sampled(backend, processor):
    model, responder_class = backend
    conversation = Conversation(processor, QUESTION, TOOLS)
    responder = responder_class(model, max_new_tokens=1, temperature=0, top_p=1.0, stop_ids=[])
    responder.submit(conversation)
    logits = torch.zeros(1, 512)
    logits[0, CONTROL_IDS["<|tool_calls_section_begin|>"]] = 9
    logits[0, CONTROL_IDS["<|tool_call_begin|>"]] = 8
    logits[0, 65] = 7
    assert responder.choose(logits.clone(), [conversation]) == [CONTROL_IDS["<|tool_calls_section_begin|>"]]
    conversation.may_call = False
    assert responder.choose(logits, [conversation]) == [65]


# -- the batch ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("max_rows", [1, 2, 5])
def test_many_conversations_share_few_rows_and_disturb_nobody(directory, processor, max_rows):
    """Their tools take their time; some lose their rows meanwhile and get them back. Each hears what it hears alone."""
    model, lines = load_optimized(directory), [(FIRST, SECOND, LAST), (SECOND, LAST), (LAST,), (FIRST, LAST)]
    random, num_aside = Random(max_rows), 0

    def speak(conversation):
        asked = int(conversation.messages[1]["content"])
        return lines[asked][sum(message["role"] == "assistant" for message in conversation.messages)]

    def converse(asked, max_rows):
        nonlocal num_aside
        responder = scripted(OptimizedResponder, speak)(model, **SETTINGS, stop_ids=[CONTROL_IDS["<|im_end|>"]],
                                                        max_rows=max_rows)
        conversations = [Conversation(processor, [QUESTION[0], {"role": "user", "content": f"{one}"}], TOOLS)
                         for one in asked]
        working = list(conversations)
        while len(responder.heard) < sum(len(lines[one]) for one in asked) or responder.running:
            for conversation in [one for one in working if random.random() < 0.4]:
                working.remove(conversation)
                responder.submit(conversation)
            for conversation, generated in responder.collect():
                if calls := conversation.add_reply(generated).tool_calls:
                    conversation.add_messages([result(made.id, f"{made.name} found it" * 9) for made in calls])
                    working.append(conversation)
            num_aside += sum(one in working for one in responder.aside)
        return [torch.cat([torch.stack(logits) for other, _, logits in responder.heard if other is one])
                for one in conversations]

    together = converse(range(4), max_rows)
    assert num_aside or max_rows == 5, "none has lost its row: this test shows nothing"
    for one, logits in enumerate(together):
        assert_agrees("agents, in a batch", logits, converse([one], 1)[0], BATCH)


def test_rows_that_wait_move_behind_those_that_run(directory):
    model = load_optimized(directory)
    prompts = {key: whole_prompt(key) for key in range(5)}
    with torch.inference_mode():
        batch = Batch(model, max_rows=5)
        for key, prompt in prompts.items():
            batch.join(key, prompt)
        held = {key: batch.cache.read_row(batch.keys.index(key)) for key in prompts}
        batch.bring_forward({3, 4, 1})
        assert set(batch.keys[:3]) == {3, 4, 1} and set(batch.keys[3:]) == {0, 2}
        for row, key in enumerate(batch.keys):
            assert batch.ids[row] == prompts[key].input_ids
            assert all(torch.equal(a, b) for a, b in zip(batch.cache.read_row(row), held[key], strict=True))


def whole_prompt(seed: int):
    return Prompt(np.random.default_rng(seed).integers(0, 250, 7 + 5 * seed).tolist(), None, None, [])
