"""Messages: what is repaired, what is refused and how it is named, and tool-call ids renamed and matched."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.errors import TemplateError
from reference.messages import check_messages, rename_tool_call_ids


def call(call_id, name="f", arguments="{}"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls, **fields):
    return {"role": "assistant", "content": "", "tool_calls": list(calls), **fields}


def result(call_id, content="ok"):
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def only(messages):
    (message,) = check_messages(messages)
    return message


def test_null_reasoning_is_treated_as_missing():
    assert "reasoning_content" not in only([calling(call("functions.f:0"), reasoning_content=None)])


@pytest.mark.parametrize("function", [{"name": "f", "arguments": None}, {"name": "f"}])
def test_null_or_missing_arguments_become_an_empty_object(function):
    message = only([calling({"id": "functions.f:0", "function": function})])
    assert message["tool_calls"][0]["function"]["arguments"] == "{}"


def test_arguments_that_are_there_stay_as_they_are():
    for arguments in ("", " {}", {"b": 1, "a": []}, [], 0):
        assert only([calling(call("x", arguments=arguments))])["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize("call_id", [{}, {"id": None}, {"id": ""}])
def test_a_call_without_an_id_gets_the_number_it_has_in_the_conversation(call_id):
    function = {"name": "g", "arguments": "{}"}
    checked = check_messages([calling(call("a"), call("b")), calling({**call_id, "function": function})])
    assert checked[1]["tool_calls"][0]["id"] == "functions.g:2"


def test_null_text_and_bare_strings_in_a_list_become_text_parts():
    content = only([{"role": "user", "content": [{"type": "text", "text": None}, "abc"]}])["content"]
    assert content == [{"type": "text", "text": ""}, {"type": "text", "text": "abc"}]


def test_missing_content_is_null():
    assert only([{"role": "user"}])["content"] is None


def test_fields_that_nobody_reads_are_kept():
    message = {"role": "user", "content": [{"type": "image", "image": b"raw", "detail": "high"}], "cache": 1}
    assert only([message]) == message


def test_the_callers_messages_are_left_alone():
    messages = [{"role": "user", "content": ["a", {"text": None}]}, calling(call(None), reasoning_content=None),
                calling(call("x")), result("x")]
    before = copy.deepcopy(messages)
    check_messages(messages)
    rename_tool_call_ids(messages)
    assert messages == before


USER = {"role": "user", "content": "q"}


@pytest.mark.parametrize(("messages", "field"), [
    ({"role": "user"}, "messages is an object"),
    (None, "messages is null"),
    ("Hello", "messages is text"),
    (["Hello"], "messages[0] is text"),
    ([USER, None], "messages[1] is null"),
    ([{"content": "abc"}], "messages[0].role is missing"),
    ([{"role": "", "content": "abc"}], "messages[0].role is empty"),
    ([{"role": 3, "content": "abc"}], "messages[0].role is the number 3"),
    ([{"role": "user", "name": 3}], "messages[0].name is the number 3"),
    ([{"role": "user", "content": 42}], "messages[0].content is the number 42"),
    ([{"role": "user", "content": True}], "messages[0].content is true"),
    ([{"role": "user", "content": {"type": "text", "text": "abc"}}], "messages[0].content is an object"),
    ([{"role": "user", "content": ["a", 3]}], "messages[0].content[1] is the number 3"),
    ([{"role": "user", "content": [None]}], "messages[0].content[0] is null"),
    ([{"role": "user", "content": [{"type": "text", "text": 1.5}]}], "messages[0].content[0].text is the number 1.5"),
    ([{"role": "user", "content": [{"type": []}]}], "messages[0].content[0].type is a list"),
    ([USER, {"role": "tool", "content": "r"}], "messages[1].tool_call_id is missing"),
    ([USER, {"role": "tool", "tool_call_id": None, "content": "r"}], "messages[1].tool_call_id is missing"),
    ([USER, {"role": "tool", "tool_call_id": "", "content": "r"}], "messages[1].tool_call_id is empty"),
    ([USER, {"role": "tool", "tool_call_id": 7, "content": "r"}], "messages[1].tool_call_id is the number 7"),
    ([{"role": "assistant", "reasoning_content": ["r"]}], "messages[0].reasoning_content is a list"),
    ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls is an object"),
    ([{"role": "assistant", "tool_calls": ["f"]}], "messages[0].tool_calls[0] is text"),
    ([calling({"id": "x", "name": "f", "arguments": "{}"})], "messages[0].tool_calls[0].function is null or missing"),
    ([calling({"id": "x", "function": "f"})], "messages[0].tool_calls[0].function is text"),
    ([calling({"id": "x", "function": {}})], "messages[0].tool_calls[0].function.name is missing"),
    ([calling(call("x", name=3))], "messages[0].tool_calls[0].function.name is the number 3"),
    ([calling(call(5))], "messages[0].tool_calls[0].id is the number 5"),
    ([calling(call("x", arguments={1, 2}))], "messages[0].tool_calls[0].function.arguments cannot be written as JSON"),
    ([{"role": "user", "content": "a\ud83d"}], "messages[0].content holds U+D83D"),
    ([calling(call("x", arguments={"a": "\udc00"}))], "messages[0].tool_calls[0].function.arguments holds U+DC00"),
])
def test_a_malformed_message_is_refused_by_the_name_of_its_field(messages, field):
    with pytest.raises(TemplateError) as caught:
        check_messages(messages)
    text = str(caught.value)
    assert text.startswith(field)
    assert "; expected " in text
    assert text.endswith((".", "?"))


short = st.text(max_size=4)
json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | short,
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short, inner, max_size=3),
                           max_leaves=6)
fields = st.sampled_from(["role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"])
roles = st.sampled_from(["user", "assistant", "tool", "system"])


@given(role=roles, other=st.dictionaries(fields, json_values, max_size=4))
def test_any_json_is_checked_or_refused_and_checking_again_changes_nothing(role, other):
    try:
        checked = check_messages([{"role": role, **other}])
    except TemplateError:
        return
    assert check_messages(checked) == checked


def test_foreign_ids_become_the_form_the_model_knows_and_map_back():
    messages, theirs = rename_tool_call_ids([USER, calling(call("call_abc", "get_weather")), result("call_abc")])
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"] == "functions.get_weather:0"
    assert theirs == {"functions.get_weather:0": "call_abc"}


def test_ids_count_all_calls_of_the_conversation():
    messages, theirs = rename_tool_call_ids([
        calling(call("a", "f"), call("b", "g")), result("b"), result("a"), {"role": "assistant", "content": "done"},
        USER, calling(call("c", "f")), result("c")])
    assert [message["tool_call_id"] for message in messages if message["role"] == "tool"] == [
        "functions.g:1", "functions.f:0", "functions.f:2"]
    assert theirs == {"functions.f:0": "a", "functions.g:1": "b", "functions.f:2": "c"}


def test_a_reused_id_belongs_to_the_nearest_earlier_call():
    messages, theirs = rename_tool_call_ids([
        calling(call("call_0", "f")), result("call_0"), calling(call("call_0", "g")), result("call_0")])
    assert [messages[1]["tool_call_id"], messages[3]["tool_call_id"]] == ["functions.f:0", "functions.g:1"]
    assert theirs == {"functions.f:0": "call_0", "functions.g:1": "call_0"}


def test_parallel_calls_that_share_an_id_are_answered_in_order():
    messages, _ = rename_tool_call_ids([calling(call("x", "f"), call("x", "g")), result("x"), result("x")])
    assert [message["tool_call_id"] for message in messages[1:]] == ["functions.f:0", "functions.g:1"]


def test_a_late_result_finds_its_call_behind_another_message():
    messages, _ = rename_tool_call_ids([calling(call("a")), calling(call("b")), USER, result("a"), result("b")])
    assert [message["tool_call_id"] for message in messages[3:]] == ["functions.f:0", "functions.f:1"]


def test_ids_that_swap_places_are_not_confused():
    """An id may look like ours and mean another call: it is matched before it is renamed."""
    messages, theirs = rename_tool_call_ids([
        calling(call("functions.f:1"), call("functions.f:0")), result("functions.f:0"), result("functions.f:1")])
    assert [message["tool_call_id"] for message in messages[1:]] == ["functions.f:1", "functions.f:0"]
    assert theirs == {"functions.f:0": "functions.f:1", "functions.f:1": "functions.f:0"}


@pytest.mark.parametrize(("messages", "text"), [
    ([USER, result("call_9")], 'messages[1].tool_call_id "call_9" answers no earlier tool call (known: none).'),
    ([calling(call("functions.search:0")), result("call_9")], "(known: functions.search:0). Send back the id"),
    ([result("a"), calling(call("a"))], 'messages[0].tool_call_id "a" answers no earlier tool call'),
])
def test_a_result_without_a_call_is_refused(messages, text):
    with pytest.raises(TemplateError) as caught:
        rename_tool_call_ids(messages)
    assert text in str(caught.value)


@given(rounds=st.lists(st.lists(st.sampled_from(["call_0", "call_1", "x"]), min_size=1, max_size=3), max_size=4))
def test_renaming_matches_every_result_and_doing_it_again_changes_nothing(rounds):
    conversation = [message for ids in rounds for message in (calling(*map(call, ids)), *map(result, ids))]
    renamed, theirs = rename_tool_call_ids(conversation)
    made = [one["id"] for message in renamed for one in message.get("tool_calls", [])]
    assert made == [f"functions.f:{number}" for number in range(len(made))] == list(theirs)
    assert [message["tool_call_id"] for message in renamed if message["role"] == "tool"] == made
    assert list(theirs.values()) == [call_id for ids in rounds for call_id in ids]
    assert rename_tool_call_ids(renamed)[0] == renamed
