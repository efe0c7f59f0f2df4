"""Tool declarations against the output of the published encoder, byte by byte.

golden/chat/tool_declaration.json: made by running tool_declaration_ts.py of moonshotai/Kimi-K2.5 on each list.
`expected` is for the key order given, `expected_sorted` after the deep sort; a case with `error` makes it give up.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import tool_declaration as module
from reference.errors import TemplateError
from reference.tool_declaration import declare_tools, deep_sort

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden/chat/tool_declaration.json"
CASES = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]


def answer(tools: list, sort: bool) -> str | None:
    try:
        return declare_tools(tools, sort=sort)
    except TemplateError:
        return None


def differing(expected: str, sort: bool) -> list[str]:
    return [case["name"] for case in CASES if answer(case["tools"], sort) != case.get(expected)]


def one_tool(schema: object) -> list:
    """A tool whose only parameter `x` has this schema."""
    return [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": schema}}}}]


def printed(schema: object) -> str:
    declaration = declare_tools(one_tool(schema))
    return declaration.removeprefix("# Tools\n\n## functions\nnamespace functions {\ntype f = (_: {\n").removesuffix(
        "\n}) => any;\n}\n"
    )


def test_declarations_are_those_of_the_published_encoder():
    assert differing("expected", sort=False) == []
    assert differing("expected", sort=True) != []


def test_declarations_after_the_deep_sort_are_the_published_ones():
    assert differing("expected_sorted", sort=True) == []
    assert {"defaults", "defs_and_refs", "self_reference"} <= set(differing("expected_sorted", sort=False))


def lines_cut_like_python(schema: dict, indent: str, path: str) -> list[str]:
    return [f"{indent}// {line}" for line in (schema.get("description") or "").splitlines()]


def constraints_as_given(schema: object, indent: str, path: str) -> list[str]:
    return module._description(schema, indent, path) if isinstance(schema, dict) else []


def fields_as_given(fields: list[tuple[bool, str, str]]) -> list[str]:
    return [text for _, _, text in fields]


def enum_as_json(schema: dict, path: str) -> str:
    return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])


@pytest.mark.parametrize(
    ("function", "variant", "caught"),
    [
        ("_description", lines_cut_like_python, "multi_line_descriptions"),
        ("_comments", constraints_as_given, "string_constraints"),
        ("_required_first", fields_as_given, "required_first_then_alphabetical"),
        ("_enum", enum_as_json, "enum_strings_are_not_escaped"),
    ],
)
def test_a_tempting_simplification_is_caught(monkeypatch, function: str, variant: Callable, caught: str):
    monkeypatch.setattr(module, function, variant)
    assert caught in differing("expected", sort=False)


def test_a_default_is_written_as_python_writes_numbers_and_as_json_otherwise():
    assert printed({"type": "number", "default": 1e-05}) == "  // Default: 1e-05\n  x?: number"
    assert printed({"type": "boolean", "default": False}) == "  // Default: False\n  x?: boolean"
    assert printed({"type": "array", "default": ["é", None]}) == '  // Default: ["é", null]\n  x?: Array<any>'


def test_a_constraint_is_printed_as_it_is_even_across_lines():
    assert printed({"type": "string", "pattern": "a\nb", "minLength": None}) == (
        "  // minLength: None, pattern: a\nb\n  x?: string"
    )


def test_empty_items_are_any_whatever_their_kind():
    for items in (None, False, {}):
        assert printed({"type": "array", "items": items}) == "  x?: Array<any>"


def test_an_enum_of_booleans_passes_as_integers_and_null_always_passes():
    assert printed({"type": "integer", "enum": [True, None]}) == "  x?: True | None"
    assert printed({"type": ["null", "boolean"], "enum": [False, None]}) == "  x?: False | None"
    assert printed({"type": "date", "enum": ["a", 1]}) == '  x?: "a" | 1'


def test_a_definition_is_known_only_after_the_object_that_holds_it_was_read():
    holder = {"type": "object", "$defs": {"D": {"type": "string"}}}
    user = {"$ref": "#/$defs/D"}
    with pytest.raises(TemplateError, match=r"properties\.a\.\$ref.*known: none"):
        declare_tools([{"type": "function", "function": {"parameters": {"properties": {"a": user, "b": holder}}}}])
    parameters = {"properties": {"a": holder, "b": user}}
    declared = declare_tools([{"type": "function", "function": {"parameters": parameters}}])
    assert "interface D string\ntype function = (_: {\n  a?: {},\n  b?: D\n}) => any;" in declared


def test_the_later_of_two_definitions_wins_at_the_place_of_the_first():
    inner = {"type": "object", "$defs": {"A": {"type": "integer"}}}
    parameters = {"$defs": {"A": {"type": "string"}, "B": {"type": "null"}}, "properties": {"x": inner}}
    declared = declare_tools([{"type": "function", "function": {"parameters": parameters}}])
    assert "interface A number\ninterface B null\n" in declared


BAD_SCHEMAS = {
    "properties null": {"type": "object", "properties": None},
    "properties a list": {"type": "object", "properties": []},
    "required null": {"type": "object", "properties": {}, "required": None},
    "description a number": {"type": "string", "description": 3},
    "any of no list": {"anyOf": {}},
    "enum no list": {"enum": 3},
    "type null": {"type": None},
    "no schema": None,
    "a definition that is true": {"type": "object", "$defs": {"D": True}},
    "a reference that is no string": {"$ref": 3},
    "a reference into properties": {"$ref": "#/properties/x"},
    "items a string": {"type": "array", "items": "string"},
    "additional a number": {"type": "object", "additionalProperties": 1},
    "a wrong boolean": {"type": "boolean", "enum": [1]},
    "a wrong number": {"type": ["number", "null"], "enum": ["1"]},
}


@pytest.mark.parametrize("name", BAD_SCHEMAS)
def test_a_schema_without_this_form_is_refused_with_its_path(name):
    with pytest.raises(TemplateError, match=r"^tools\[0\]\.function\.parameters\.properties\.x.*expected"):
        declare_tools(one_tool(BAD_SCHEMAS[name]))


@pytest.mark.parametrize("tools", [[3], [{"type": "function", "function": "f"}], one_tool(1)])
def test_a_tool_of_the_wrong_shape_is_refused(tools):
    with pytest.raises(TemplateError, match=r"^tools\[0\]"):
        declare_tools(tools)


def test_endless_nesting_is_refused():
    schema: dict = {"type": "string"}
    for _ in range(5_000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(TemplateError, match="nested"):
        declare_tools(one_tool(schema))


KEYWORDS = ["type", "enum", "items", "properties", "anyOf", "$ref", "$defs", "description", "required", "default",
            "additionalProperties", "minLength", "x"]  # fmt: skip
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1e-05, "", "string", "array", "a\nb", "#"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_any_schema_is_declared_or_refused_with_our_error(schema):
    declared = answer(one_tool(schema), sort=True)
    assert declared is None or declared.endswith("}\n")


@given(JSON_VALUES)
def test_the_deep_sort_changes_order_only(value):
    assert deep_sort(value) == value
    text = json.dumps(value, sort_keys=True)
    assert json.dumps(deep_sort(value)) == text


# The command line


def run_tool(path: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tools.declare_tools", str(path), *options]
    return subprocess.run(command, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"})


@pytest.fixture
def tools_file(tmp_path: Path) -> Callable[[object], Path]:
    def write(content: object) -> Path:
        path = tmp_path / "tools.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", ["defaults", "unicode_and_odd_names", "only_skipped_tools"])
def test_declare_tools_prints_the_declaration_and_nothing_else(tools_file, name):
    case = next(case for case in CASES if case["name"] == name)
    path = tools_file(case["tools"])
    assert run_tool(path).stdout == case["expected_sorted"].encode()
    assert run_tool(path, "--as-given").stdout == case["expected"].encode()


def test_declare_tools_exits_1_with_the_reason_where_the_encoder_gives_up(tools_file):
    result = run_tool(tools_file(one_tool({"const": 3})))
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"a schema with only const" in result.stderr and result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("content", [{"tools": []}, None])
def test_declare_tools_exits_2_for_a_file_that_is_no_list(tools_file, content):
    result = run_tool(tools_file(content))
    assert result.returncode == 2 and b"expected a list of tools" in result.stderr
