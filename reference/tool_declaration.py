"""Tool declarations: OpenAI function schemas written as the TypeScript-like text that the model was trained on.

    # Tools

    ## functions
    namespace functions {
    // Find things.
    type find = (_: {
      // What to look for
      query: string,
      // Default: 10
      limit?: number
    }) => any;
    }

The text is compared byte by byte with the published encoder, slips included. It does not know every schema: where
it gives up, `declare_tools` raises, and the prompt carries all the tools as JSON instead.

Every function here takes the schema, the indent that its text stands at, and the path to name in an error.
"""

import json
from typing import Any, NoReturn

from .errors import TemplateError

Schema = dict[str, Any] | bool

# The constraints that are printed, in the order in which they are printed. All others are lost.
CONSTRAINTS = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}

# A list of types keeps nothing but their names.
UNION_MEMBERS = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
    "object": "{}",
    "array": "Array<any>",
}

# What an enum's values must be when a type stands beside it. Python's idea of int: booleans are integers.
ENUM_CLASSES = {"string": str, "number": int | float, "integer": int, "boolean": bool}

INDENT = "  "


def declare_tools(tools: list[Any], sort: bool = True) -> str:
    """The declaration of `tools`, ending in a newline; "" if none of them is a usable function.

    sort=False keeps the order of keys as given: the published tokenizer sorts, its encoder alone does not.
    Raises TemplateError where the published encoder gives up.
    """
    try:
        functions = [
            _Function(path).declare(tool["function"])
            for path, tool in _named_tools(deep_sort(tools) if sort else tools)
        ]
    except RecursionError:
        _fail("tools", "schemas nested this deeply", "fewer levels")
    if not functions:
        return ""
    return "# Tools\n\n## functions\nnamespace functions {\n" + "\n".join(functions) + "\n}\n"


def deep_sort(value: Any) -> Any:
    """`value` with every mapping, at every depth, in the order of its keys by code point. Lists keep their order."""
    if isinstance(value, dict):
        return {key: deep_sort(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [deep_sort(item) for item in value]
    return value


def _named_tools(tools: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """The tools that are functions, each with its path for errors. Others are skipped without a word."""
    return [
        (f"tools[{index}].function", tool)
        for index, tool in enumerate(tools)
        if _mapping(tool, f"tools[{index}]").get("type") == "function" and tool.get("function")
    ]


class _Function:
    """Writes one function, and remembers what its schema defined and referred to on the way."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.definitions: dict[str, dict[str, Any]] = {}
        self.refers_to_root = False

    def declare(self, function: Any) -> str:
        """Interfaces, then the description as a comment, then the type; each only if there is something to print."""
        function = _mapping(function, self.path)
        path = f"{self.path}.parameters"
        root = _mapping(function.get("parameters") or {}, path)
        fields, tail = self.members(root, INDENT, path)
        body = _braces(_required_first(fields) + tail, "")
        blocks = []
        # Definitions are read last, so a reference to the root from inside one of them comes too late to be seen
        # here: the published encoder then names an interface `parameters` that it never prints.
        if self.refers_to_root:
            blocks.append("interface parameters " + _braces([text for _, _, text in fields], ""))
            body = "parameters"
        blocks += self.interfaces(path)
        blocks += _description(function, "", self.path)
        blocks.append(f"type {function.get('name', 'function')} = (_: {body}) => any;")
        return "\n".join(blocks)

    def interfaces(self, path: str) -> list[str]:
        """One block per definition; definitions inside these can be referred to but are not printed."""
        blocks = []
        for name, schema in list(self.definitions.items()):
            here = f"{path}.$defs.{name}"
            body = self.type_of(schema, "", here)
            blocks.append("\n".join([*_description(schema, "", here), f"interface {name} {body}"]))
        return blocks

    def members(self, schema: dict[str, Any], indent: str, path: str) -> tuple[list[tuple[bool, str, str]], list[str]]:
        """Read an object: its fields in given order as (is_optional, name, text), and the line for other keys.

        The order of reading matters to references: definitions, additionalProperties, properties.
        """
        if "$defs" in schema:
            for name, definition in _mapping(schema["$defs"], f"{path}.$defs").items():
                self.definitions[name] = _mapping(definition, f"{path}.$defs.{name}")
        tail = self.other_keys(schema.get("additionalProperties"), indent, f"{path}.additionalProperties")
        if "properties" not in schema:
            return [], tail
        properties = _mapping(schema["properties"], f"{path}.properties")
        required = _list(schema.get("required", []), f"{path}.required")
        return [
            (name not in required, name, self.field(name, property_schema, name not in required, indent, path))
            for name, property_schema in properties.items()
        ], tail

    def field(self, name: str, schema: Schema, is_optional: bool, indent: str, path: str) -> str:
        path = f"{path}.properties.{name}"
        line = f"{indent}{name}{'?' if is_optional else ''}: {self.type_of(schema, indent, path)}"
        return "\n".join([*_comments(schema, indent, path), *_default(schema, indent), line])

    def other_keys(self, schema: Any, indent: str, path: str) -> list[str]:
        if schema is None:
            return []
        if isinstance(schema, bool):
            return [f"{indent}[k: string]: {'any' if schema else 'never'}"]
        if not isinstance(schema, dict):
            _fail(path, _short(schema), "true, false or a schema")
        return [f"{indent}[k: string]: {self.type_of(schema, indent, path)}"]

    def type_of(self, schema: Any, indent: str, path: str) -> str:
        """The type that a schema stands for. The order of the checks is part of the format."""
        if isinstance(schema, bool):
            return "any" if schema else "null"
        schema = _mapping(schema, path)
        if "$ref" in schema:
            return self.reference(schema["$ref"], f"{path}.$ref")
        if "anyOf" in schema:
            members = _list(schema["anyOf"], f"{path}.anyOf")
            return " | ".join(self.type_of(member, indent, f"{path}.anyOf[{i}]") for i, member in enumerate(members))
        if "enum" in schema:
            return _enum(schema, path)
        if "type" in schema:
            return self.named_type(schema, indent, path)
        if not schema:
            return "any"
        _fail(path, f"a schema with only {', '.join(schema)}", "one of type, enum, anyOf, $ref")

    def named_type(self, schema: dict[str, Any], indent: str, path: str) -> str:
        name = schema["type"]
        if isinstance(name, list):
            return " | ".join(_union_member(member, f"{path}.type") for member in name)
        if name == "object":
            fields, tail = self.members(schema, indent + INDENT, path)
            return _braces(_required_first(fields) + tail, indent)
        if name == "array":
            return self.array(schema.get("items"), indent, f"{path}.items")
        if not isinstance(name, str):
            _fail(f"{path}.type", repr(name), "a type's name or a list of names")
        return "number" if name == "integer" else name

    def array(self, items: Any, indent: str, path: str) -> str:
        if not items:
            return "Array<any>"
        comments = _comments(items, indent + INDENT, path)
        if not comments:
            return f"Array<{self.type_of(items, indent, path)}>"
        element = f"{indent}{INDENT}{self.type_of(items, indent + INDENT, path)}"
        return "\n".join(["Array<", *comments, element, f"{indent}>"])

    def reference(self, target: Any, path: str) -> str:
        if target == "#":
            self.refers_to_root = True
            return "parameters"
        if not isinstance(target, str) or not target.startswith("#/$defs/"):
            _fail(path, repr(target), "'#' or '#/$defs/NAME'")
        name = target.split("/")[-1]
        if name not in self.definitions:
            known = ", ".join(self.definitions) or "none"
            _fail(path, f"{target!r}", f"a name that some $defs above it defines (known: {known})")
        return name


def _required_first(fields: list[tuple[bool, str, str]]) -> list[str]:
    return [text for _, _, text in sorted(fields, key=lambda field: field[:2])]


def _braces(lines: list[str], indent: str) -> str:
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}" if lines else "{}"


def _comments(schema: Any, indent: str, path: str) -> list[str]:
    """Description and constraints of a field or an array's element."""
    if not isinstance(schema, dict):
        return []
    lines = _description(schema, indent, path)
    if {"$ref", "anyOf", "enum"}.isdisjoint(schema) and isinstance(schema.get("type"), str):
        printed = [f"{key}: {schema[key]}" for key in CONSTRAINTS.get(schema["type"], ()) if key in schema]
        if printed:
            lines.append(f"{indent}// {', '.join(printed)}")
    return lines


def _description(schema: dict[str, Any], indent: str, path: str) -> list[str]:
    text = schema.get("description")
    if not text:
        return []
    if not isinstance(text, str):
        _fail(f"{path}.description", repr(text), "a string")
    # Only \n cuts: `splitlines` would also cut at \r, U+2028 and others, and drop a trailing empty line.
    return [f"{indent}// {line}" if line else "" for line in text.split("\n")]


def _default(schema: Any, indent: str) -> list[str]:
    value = schema.get("default") if isinstance(schema, dict) else None
    if value is None:
        return []
    # Python's spelling for numbers and booleans (1e-05, True), JSON's for everything else.
    printed = repr(value) if isinstance(value, int | float) else json.dumps(value, ensure_ascii=False)
    return [f"{indent}// Default: {printed}"]


def _enum(schema: dict[str, Any], path: str) -> str:
    values = _list(schema["enum"], f"{path}.enum")
    name = schema.get("type")
    if isinstance(name, list):
        name = _enum_type(name, f"{path}.type")
    allowed = ENUM_CLASSES.get(name) if isinstance(name, str) else None
    for value in values:
        if allowed and value is not None and not isinstance(value, allowed):
            _fail(f"{path}.enum", f"{value!r} beside type {name}", f"values of type {name}")
    # Quotes, backslashes and line breaks inside a value stand as they are: the published encoder escapes nothing.
    return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in values)


def _enum_type(names: list[Any], path: str) -> Any:
    """The one type of a list like ["string"] or ["string", "null"]."""
    if len(names) == 2 and "null" in names:
        return names[0] if names[1] == "null" else names[1]
    if len(names) != 1:
        _fail(path, f"{names} beside an enum", "one type, or one and 'null'")
    return names[0]


def _union_member(name: Any, path: str) -> str:
    if not isinstance(name, str) or name not in UNION_MEMBERS:
        _fail(path, f"{name!r} in a list of types", f"one of {', '.join(UNION_MEMBERS)}")
    return UNION_MEMBERS[name]


def _mapping(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _fail(path, _short(value), "a mapping")
    return value


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        _fail(path, _short(value), "a list")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fail(path: str, found: str, expected: str) -> NoReturn:
    raise TemplateError(
        f"{path}: the TypeScript form has no way to write {found}; expected {expected}. "
        "Rewrite the schema, or use the JSON form of the tools."
    )
