"""Tool declarations in the OpenAI format, and whether arguments satisfy one, as far as our tools use JSON Schema."""

from collections.abc import Iterable
from typing import Any

Declaration = dict[str, Any]
PYTHON_TYPES = {"string": str, "integer": int}


def declare(name: str, description: str, properties: dict[str, Any], required: Iterable[str]) -> Declaration:
    """One tool. An empty description is left out, as people do."""
    schema = {"type": "object", "properties": properties, "required": list(required)}
    described = {"description": description} if description else {}
    return {"type": "function", "function": {"name": name, **described, "parameters": schema}}


def name_of(tool: Declaration) -> str:
    return tool["function"]["name"]


def in_declared_order(tool: Declaration, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments in the order in which the prompt shows the parameters: required first, each by name."""
    required = tool["function"]["parameters"]["required"]
    return {name: arguments[name] for name in sorted(arguments, key=lambda name: (name not in required, name))}


def complaint(tool: Declaration, arguments: Any) -> str | None:
    """What is wrong with the arguments of a call, or None if they are valid."""
    if not isinstance(arguments, dict):
        return "the arguments are no object"
    schema = tool["function"]["parameters"]
    missing = [name for name in schema["required"] if name not in arguments]
    if missing:
        return f"{missing[0]} is missing"
    for name, value in arguments.items():
        if name not in schema["properties"]:
            return f"there is no parameter {name}"
        if not fits(schema["properties"][name], value):
            return f"{name} is not valid"
    return None


def fits(schema: dict[str, Any], value: Any) -> bool:
    """Whether one value satisfies the schema of its parameter. A boolean is no integer here, as in JSON."""
    if not isinstance(value, PYTHON_TYPES[schema["type"]]) or isinstance(value, bool):
        return False
    in_range = schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return value in schema.get("enum", [value]) and in_range
