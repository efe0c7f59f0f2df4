"""Tools that read or set something, and single requests to them: what the skills of world 6 are put together from."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .demonstration import Call
from .pictures import COLOURS
from .self_knowledge import invent_name
from .task import weighted
from .tool_schema import Declaration, declare, in_declared_order, name_of
from .tool_words import (
    ATTRIBUTES,
    DEVICES,
    GET_VERBS,
    ITEM_PARAMETERS,
    ROOMS,
    SET_VERBS,
    Attribute,
    Item,
    draw_item,
    draw_name,
    draw_new_value,
    keep,
)

ASK = {
    "What is the {n} of {0}?": 5, "Find the {n} of {0}.": 2, "Tell me the {n} of {0}.": 1.5,
    "I need the {n} of {0}.": 1,
    "Look up the {n} of {0}.": 1, "Get the {n} of {0}.": 1, "Can you tell me the {n} of {0}?": 0.7,
    "Which {n} does {0} have?": 0.7, "Show me the {n} of {0}.": 0.5, "What's the {n} of {0}?": 0.7,
    "I want to know the {n} of {0}.": 0.5,
}  # fmt: skip
# How the parameters besides the item are called, and how a question says them.
EXTRAS: dict[str, tuple[dict[str, Any], str]] = {
    "shop": ({"type": "string"}, "in shop {v}"), "day": ({"type": "integer"}, "on day {v}"),
    "year": ({"type": "integer"}, "in year {v}"), "floor": ({"type": "integer"}, "on floor {v}"),
    "side": ({"type": "string", "enum": ["left", "right"]}, "on the {v} side"),
    "time": ({"type": "string", "enum": ["morning", "evening"]}, "in the {v}"),
    "unit": ({"type": "string", "enum": ["small", "large"]}, "in {v} units"),
}  # fmt: skip
RANGES = {"day": (1, 31), "year": (1950, 2030), "floor": (1, 9)}
PARAMETER_NOTES = {"integer": "A whole number", "string": "A name"}
STYLES = {"json": 4, "plain": 2, "pair": 1, "sentence": 1}
OK = ("ok", '{"ok": true}', "done", '{"status": "ok"}')


@dataclass(frozen=True)
class Tool:
    """A tool with what it is about. `noun` is an attribute's or a device's; `parameters` are its roles by name."""

    declaration: Declaration
    noun: str
    attribute: Attribute | None  # None: it sets a device
    is_setter: bool
    item_parameter: str | None
    value_parameter: str | None
    extras: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return name_of(self.declaration)

    @property
    def about(self) -> tuple[str, bool]:
        """Two tools with the same would both answer one question."""
        return self.noun, self.is_setter


@dataclass(frozen=True)
class Request:
    """One thing to ask of one tool. `phrase` asks for it inside a longer sentence, `fact` tells the result.

    `value` is what the answer must say, `words` are what must stand before it.
    """

    tool: Tool
    arguments: dict[str, Any]
    result: str
    question: str
    phrase: str
    plan: str
    fact: str
    value: str
    words: tuple[str, ...]

    @property
    def call(self) -> Call:
        return self.tool.name, in_declared_order(self.tool.declaration, self.arguments)


def draw_tool(rng: random.Random, split: str) -> Tool:
    """A tool that reads an attribute, sets one, or sets a device."""
    kind = weighted(rng, {"get": 6, "set": 1.5, "device": 2})
    if kind == "device":
        return draw_device(rng, split)
    return draw_getter(rng, split) if kind == "get" else draw_setter(rng, split)


def draw_tools(rng: random.Random, split: str, count: int, first: Sequence[Tool] = ()) -> list[Tool]:
    """`count` tools, of which no two answer the same question or share a name; in random order."""
    tools = list(first)
    while len(tools) < count:
        new = draw_tool(rng, split)
        if all(new.about != tool.about and new.name != tool.name for tool in tools):
            tools.append(new)
    return rng.sample(tools, len(tools))


def look_through(names: Sequence[str], wanted: str) -> str:
    """The thought that finds a tool: one name after the other, in the order in which they are declared.

    To write the right name at once, it has to be found by its noun and then read from its verb, which stands before:
    a small model names the noun rightly and takes the verb of another tool.
    """
    passed = names[: names.index(wanted)]
    return "\n".join([*(f"{name}: no" for name in passed), f"{wanted}: yes"])


def draw_getter(rng: random.Random, split: str, with_extras: bool = True) -> Tool:
    """`get_price(item)`, perhaps with one or two parameters more."""
    name = draw_name(rng, GET_VERBS, [attribute.noun for attribute in ATTRIBUTES], split)
    attribute = next(attribute for attribute in ATTRIBUTES if name.endswith(f"_{attribute.noun}"))
    count = weighted(rng, {0: 6, 1: 3, 2: 1}) if with_extras else 0
    extras = tuple(rng.sample([extra for extra in EXTRAS if extra != attribute.noun], count))
    item = weighted(rng, ITEM_PARAMETERS)
    properties = {item: {"type": "string"}} | {extra: dict(EXTRAS[extra][0]) for extra in extras}
    required = [item, *(extra for extra in extras if rng.random() < 0.5)]
    verb = name.removesuffix(f"_{attribute.noun}").replace("_", " ").capitalize()
    noun = attribute.noun
    words = {f"{verb} the {noun} of an item.": 4, f"The {noun} of an item.": 2, f"{verb} the {noun}.": 1, "": 1}
    declaration = declare(name, weighted(rng, words), describe_some(rng, properties), required)
    return Tool(declaration, noun, attribute, False, item, None, extras)


def draw_setter(rng: random.Random, split: str) -> Tool:
    """`set_price(item, value)`."""
    name = draw_name(rng, SET_VERBS, [attribute.noun for attribute in ATTRIBUTES], split)
    attribute = next(attribute for attribute in ATTRIBUTES if name.endswith(f"_{attribute.noun}"))
    item = weighted(rng, ITEM_PARAMETERS)
    value = weighted(rng, {"value": 3, "to": 1, attribute.noun: 2})
    properties = {item: {"type": "string"}, value: {"type": "integer" if attribute.kind == "number" else "string"}}
    words = {f"Set the {attribute.noun} of an item.": 4, f"Change the {attribute.noun} of an item.": 2, "": 1}
    declaration = declare(name, weighted(rng, words), describe_some(rng, properties), [item, value])
    return Tool(declaration, attribute.noun, attribute, True, item, value)


def draw_device(rng: random.Random, split: str) -> Tool:
    """`set_lamp(level)`, `turn_fan(state, room?)`: a level, a state or a color, perhaps in a room."""
    name = draw_name(rng, SET_VERBS, DEVICES, split)
    noun = name.partition("_")[2]
    value, schema = weighted(rng, {
        ("level", ("integer",)): 2, ("power", ("integer",)): 1, ("state", ("string", "on", "off")): 2,
        ("mode", ("string", "slow", "fast", "off")): 1,
        ("color", ("string", *rng.sample(list(COLOURS), rng.randint(3, 5)))): 2,
    })  # fmt: skip
    properties: dict[str, Any] = {value: {"type": schema[0]}}
    if schema[1:]:
        properties[value]["enum"] = list(schema[1:])
    elif rng.random() < 0.3:
        properties[value] |= {"minimum": 0, "maximum": 100}
    required, extras = [value], ()
    if rng.random() < 0.4:
        properties["room"] = {"type": "string"}
        extras = ("room",)
        required += ["room"] if rng.random() < 0.5 else []
    words = {f"Set the {noun}.": 4, f"Set the {value} of the {noun}.": 2, "": 1}
    declaration = declare(name, weighted(rng, words), describe_some(rng, properties), required)
    return Tool(declaration, noun, None, True, None, value, extras)


def describe_some(rng: random.Random, properties: dict[str, Any]) -> dict[str, Any]:
    """Now and then parameters have descriptions of their own."""
    if rng.random() < 0.15:
        for schema in properties.values():
            if "enum" not in schema:
                schema["description"] = PARAMETER_NOTES[schema["type"]]
    return properties


def draw_request(rng: random.Random, split: str, tool: Tool, item: Item | None = None,
                 taken: Sequence[str] = (), style: str | None = None) -> Request:  # fmt: skip
    """Ask this tool for something. The value differs from every text in `taken`, and from the item."""
    if tool.is_setter:
        return request_set(rng, split, tool, item, taken)
    item = item or draw_item(rng, split)
    arguments, phrases = draw_extras(rng, tool, taken)
    asked = " ".join([item.asked, *phrases])
    told = [item.text, *map(str, arguments.values())]
    value = draw_new_value(rng, tool.attribute.kind, [*taken, *told])
    form = weighted(rng, ASK) if not tool.attribute.questions or rng.random() < 0.6 else rng.choice(
        tool.attribute.questions)  # fmt: skip
    noun, phrase = tool.noun, f"the {tool.noun} of {item.phrase}"
    result = report(style or weighted(rng, STYLES), noun, value, tool.attribute.kind)
    return Request(
        tool, {tool.item_parameter: item.text, **arguments}, result, form.format(asked, n=noun),
        f"the {noun} of {asked}", f"I need {phrase}", f"{phrase} is {value}", value, (noun, item.text),
    )  # fmt: skip


def report(style: str, noun: str, value: str, kind: str) -> str:
    """A result as tools write it."""
    if style == "json":
        return f'{{"{noun}": {value if kind == "number" else chr(34) + value + chr(34)}}}'
    return {"plain": value, "pair": f"{noun}: {value}", "sentence": f"The {noun} is {value}."}[style]


def draw_extras(rng: random.Random, tool: Tool, taken: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Arguments besides the item, with the words that ask for them; what is optional may stay out."""
    arguments: dict[str, Any] = {}
    phrases = []
    schema = tool.declaration["function"]["parameters"]
    for extra in tool.extras:
        if extra in schema["required"] or rng.random() < 0.6:
            choices = schema["properties"][extra].get("enum")
            if choices:
                value: Any = rng.choice(choices)
            elif extra in RANGES:
                value = rng.randint(*RANGES[extra])
            else:
                value = draw_new_value(rng, "name", taken)
            arguments[extra] = value
            phrases.append(EXTRAS[extra][1].format(v=keep(str(value))))
    return arguments, phrases


def request_set(rng: random.Random, split: str, tool: Tool, item: Item | None, taken: Sequence[str]) -> Request:
    """Set an attribute of an item, or a device."""
    arguments: dict[str, Any] = {}
    schema = tool.declaration["function"]["parameters"]
    if tool.attribute:
        item = item or draw_item(rng, split)
        arguments[tool.item_parameter] = item.text
        asked, phrase = f"the {tool.noun} of {item.asked}", f"the {tool.noun} of {item.phrase}"
        words = (tool.noun, item.text)
        value = draw_new_value(rng, tool.attribute.kind, [*taken, item.text])
    else:
        asked = phrase = f"the {tool.noun}"
        words = (tool.noun,)
        if "room" in tool.extras and ("room" in schema["required"] or rng.random() < 0.6):
            arguments["room"] = rng.choice(ROOMS) if rng.random() < 0.7 else invent_name(rng)
            place = "in the {}" if arguments["room"] in ROOMS else "in room {}"
            phrase += " " + place.format(arguments["room"])
            asked += " " + place.format(keep(arguments["room"]))
        choices = schema["properties"][tool.value_parameter].get("enum")
        value = rng.choice(choices) if choices else str(rng.randint(0, 100))
    is_number = schema["properties"][tool.value_parameter]["type"] == "integer"
    arguments[tool.value_parameter] = int(value) if is_number else value
    form = weighted(rng, {"Set {0} to {1}.": 6, "Change {0} to {1}.": 2, "I want {0} to be {1}.": 1, "Make {0} {1}.": 1,
                          "Can you set {0} to {1}?": 1})  # fmt: skip
    if value in ("on", "off") and rng.random() < 0.6:
        form = rng.choice(("Turn {0} {1}.", "Switch {0} {1}.", "Turn {1} {0}."))
    return Request(
        tool, arguments, rng.choice(OK), form.format(asked, keep(value)), f"{asked} to {keep(value)}",
        f"I set {phrase} to {value}", f"{phrase} is now {value}", value, words,
    )  # fmt: skip
