"""World 6 with pictures: an argument that has to be seen, and a tool whose result is a part of the picture."""

import random
from collections.abc import Sequence

from PIL import Image

from . import pictures, signs
from .demonstration import Environment, Episode, Turn, look_up
from .pictures import PLACES, Scene, Shape, boxes_touch, draw_scene, first, matching, phrase, search
from .task import is_of_split, weighted
from .tool_requests import OK, STYLES, draw_tools, look_through, report
from .tool_schema import declare, name_of
from .tool_words import (
    ATTRIBUTES,
    DEVICES,
    GET_VERBS,
    ITEM_PARAMETERS,
    NOT_FOUND,
    SET_VERBS,
    draw_name,
    draw_new_value,
    draw_until,
    keep,
    names,
    says_only,
    vary_words,
)

CROP_VERBS = ("crop", "zoom", "cut", "see", "show", "enlarge")
CROP_NOUNS = ("image", "picture", "part", "region", "area")
CROP_MARGIN = 0.06  # of a side: how far a crop reaches beyond its third
SMALLEST_CROP = 28  # pixels: one token
CROP_QUESTIONS = {
    "Look closely at the {p}. What is there?": 2, "What is at the {p}? Use {t}.": 3,
    "Crop the {p}. What do you see?": 2,
    "Zoom into the {p} and tell me what is there.": 1, "What is in the {p} part of the picture?": 1,
    "Use {t} to look at the {p}. What is there?": 2,
}  # fmt: skip


def show(rng: random.Random, image: Image.Image, question: str) -> list[dict]:
    """The user's message: the picture before or after the question."""
    parts = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts if rng.random() < 0.7 else parts[::-1]}]


def draw_picture_call(rng: random.Random, split: str, canvas: str = "full", num_shapes: Sequence[int] = (1, 2, 3, 4),
                      num_tools: Sequence[int] = (1, 2, 3)) -> Episode:  # fmt: skip
    """Read a color, a shape, a number of shapes or a printed text off a picture and call a tool with it."""
    form = weighted(rng, {"color": 4, "shape": 3, "count": 2, "sign": 4})
    if form == "sign":
        medium = draw_until(
            lambda: signs.draw_sign(rng, "signs.read", canvas).medium, lambda sign: is_of_split(sign.key, split)
        )
        asked = ask_sign(rng, split, medium)
    else:
        medium = draw_until(
            lambda: draw_scene(rng, canvas, num_shapes),
            lambda scene: is_of_split(scene.key, split) and (form == "count" or unique(scene)),
        )
        shape = rng.choice(medium.shapes if form == "count" else unique(medium))
        ask = {"color": ask_color, "shape": ask_shape, "count": ask_count}[form]
        asked = ask(rng, split, medium, shape)
    tool, question, seen, arguments, result, content, value, words = asked
    call = (tool["function"]["name"], arguments)
    others = [other.declaration for other in draw_tools(rng, split, rng.choice(num_tools) - 1)
              if other.name != call[0] and other.noun not in call[0]]  # fmt: skip
    tools = rng.sample([tool, *others], 1 + len(others))
    plan = f"{seen}.\n{look_through([name_of(tool) for tool in tools], call[0])}"
    otherwise = rng.choice(NOT_FOUND)
    question = pictures.american(rng, vary_words(rng, question))
    return Episode(
        "tools.picture", show(rng, medium.paint(), question), tools, medium.key,
        (Turn(plan, "", (call,)), Turn(content, content)),
        lambda: Environment(tools, look_up([(call, result)], otherwise)),
        lambda answer, environment: environment.made([call]) and says_only(
            answer, [(value, words)], map(str, arguments.values()) if form == "sign" else ()),
        value,
    )  # fmt: skip


def unique(scene: Scene) -> list[Shape]:
    """The shapes that are alone of their kind."""
    return [shape for shape in scene.shapes if len(matching(scene, None, shape.kind)) == 1]


def ask_color(rng: random.Random, split: str, scene: Scene, shape: Shape) -> tuple:
    """Set a device to the color of a shape."""
    name = draw_name(rng, SET_VERBS, DEVICES, split)
    noun = name.partition("_")[2]
    colours = rng.sample(list(pictures.COLOURS), 4)
    schema = {"type": "string"} | ({"enum": sorted({*colours, shape.colour})} if rng.random() < 0.6 else {})
    description = rng.choice((f"Set the color of the {noun}.", f"Set the {noun}."))
    tool = declare(name, description, {"color": schema}, ["color"])
    forms = {"Set the {n} to the colour of the {k}.": 3, "Make the {n} the same colour as the {k}.": 1,
             "Give the {n} the colour of the {k}.": 1, "What colour is the {k}? Set the {n} to it.": 1}  # fmt: skip
    question = weighted(rng, forms).format(n=noun, k=shape.kind)
    fact = f"The {noun} is now {shape.colour}."
    seen = f"{search(scene, [shape], first('colour'), kind=shape.kind)}\nThe {shape.kind} is {shape.colour}"
    return tool, question, seen, {"color": shape.colour}, rng.choice(OK), fact, shape.colour, [noun]


def ask_shape(rng: random.Random, split: str, scene: Scene, shape: Shape) -> tuple:
    """Ask a tool about something that the question only points at: the picture tells what it is called."""
    name = draw_name(rng, GET_VERBS, [attribute.noun for attribute in ATTRIBUTES if attribute.kind != "colour"], split)
    attribute = next(attribute for attribute in ATTRIBUTES if name.endswith(f"_{attribute.noun}"))
    noun, parameter = attribute.noun, weighted(rng, ITEM_PARAMETERS)
    schema = {"type": "string", "description": rng.choice(("Color and shape", "Color and shape, like pink star"))}
    tool = declare(name, f"The {noun} of a thing.", {parameter: schema}, [parameter])
    thing = f"{shape.colour} {shape.kind}"
    value = draw_new_value(rng, attribute.kind, [thing])
    side = pictures.draw_side(rng, scene, shape) if rng.random() < 0.6 else None
    what = f"the shape {side}" if side else f"the {shape.kind}"
    forms = {"What is the {n} of {w}?": 3, "Find the {n} of {w}.": 1, "Tell me the {n} of {w}.": 1}
    question = weighted(rng, forms).format(n=noun, w=what)
    result = report(weighted(rng, STYLES), noun, value, attribute.kind)
    fact = f"The {noun} of the {thing} is {value}."
    seen = f"{search(scene, [shape], first('words'), kind=None if side else shape.kind)}\nIt is the {thing}"
    return tool, question, seen, {parameter: thing}, result, fact, value, [noun]


def ask_sign(rng: random.Random, split: str, sign: signs.Sign) -> tuple:
    """Ask a tool about what is printed on a sign."""
    name = draw_name(rng, GET_VERBS, [attribute.noun for attribute in ATTRIBUTES], split)
    attribute = next(attribute for attribute in ATTRIBUTES if name.endswith(f"_{attribute.noun}"))
    noun, parameter = attribute.noun, weighted(rng, ITEM_PARAMETERS)
    tool = declare(name, f"The {noun} of an item.", {parameter: {"type": "string"}}, [parameter])
    value = draw_new_value(rng, attribute.kind, [sign.text])
    forms = {"What is the {n} of the item on the sign?": 3, "Read the sign and find the {n} of it.": 2,
             "Find the {n} of what the sign says.": 2, "The sign names an item. What is its {n}?": 1}  # fmt: skip
    question = weighted(rng, forms).format(n=noun)
    result = report(weighted(rng, STYLES), noun, value, attribute.kind)
    fact = f"The {noun} of {sign.text} is {value}."
    seen = f"{signs.spell(sign.text)}\nThe sign says {sign.text}"
    return tool, question, seen, {parameter: sign.text}, result, fact, value, [noun]


def ask_count(rng: random.Random, split: str, scene: Scene, shape: Shape) -> tuple:
    """Hand over a number of shapes."""
    name = draw_name(rng, ("save", "store", "send", "set", "write", "note", "report", "enter"),
                     ("count", "number", "total", "sum", "amount", "figure"), split)  # fmt: skip
    verb, _, noun = name.partition("_")
    parameter = rng.choice(("value", "number", "count", "n"))
    tool = declare(name, f"{verb.capitalize()} a number.", {parameter: {"type": "integer"}}, [parameter])
    target = rng.choice((None, shape.kind, shape.kind))
    found = matching(scene, None, target)
    count = len(found)
    forms = {"Count the {k}s and {v} the {n}.": 3, "How many {k}s are there? {V} the {n}.": 2,
             "{V} the {n} of {k}s in the picture.": 2}  # fmt: skip
    question = weighted(rng, forms).format(k=target or "shape", v=verb, V=verb.capitalize(), n=noun)
    seen = f"{search(scene, found, len, kind=target)}\nThere {'is' if count == 1 else 'are'} {count}"
    content = f"The {noun} is {count}."
    return tool, question, seen, {parameter: count}, rng.choice(OK), content, str(count), [noun]


def draw_crop(rng: random.Random, split: str, canvas: str = "full", num_shapes: Sequence[int] = (1, 2, 3, 4)
              ) -> Episode:  # fmt: skip
    """Look at one part of a picture through a tool that cuts it out, and say what is there, if anything is."""
    while True:
        scene = draw_scene(rng, canvas, num_shapes)
        place = rng.choice(PLACES if rng.random() < 0.25 else [shape.place for shape in scene.shapes])
        box = crop_box(scene.width, scene.height, place)
        inside = [shape for shape in scene.shapes if shape.place == place]
        seen = [shape for shape in scene.shapes if boxes_touch(shape.box, box, gap=0)]
        is_whole = seen == inside and all(contains(box, shape.box) for shape in inside) and means_a_third(scene, place)
        if is_of_split(scene.key, split) and is_whole and min(box[2] - box[0], box[3] - box[1]) >= SMALLEST_CROP:
            break
    plain = rng.random() < 0.5
    name = "crop" if plain else draw_name(rng, CROP_VERBS, CROP_NOUNS, split)
    parameter = rng.choice(("place", "place", "part", "region", "where"))
    schema = {"type": "string"} | ({"enum": list(PLACES)} if rng.random() < 0.5 else {})
    tools = [declare(name, rng.choice(("Cut a part out of the picture.", "Show a part of the picture.")),
                     {parameter: schema}, [parameter])]  # fmt: skip
    tools += [tool.declaration for tool in draw_tools(rng, split, rng.choice((0, 0, 1, 2))) if tool.name != name]
    question = vary_words(rng, weighted(rng, CROP_QUESTIONS).format(p=keep(place), t=keep(name)))
    thing = f"{inside[0].colour} {inside[0].kind}" if inside else ""
    content = f"There is {'an' if thing[0] == 'o' else 'a'} {thing} {phrase(place)}." if thing else (
        f"There is nothing {phrase(place)}.")  # fmt: skip
    learnt = f"The part shows {thing}." if thing else "The part is empty."
    call = (name, {parameter: place})
    image = scene.paint()

    def answer(_name: str, arguments: dict) -> str | list[dict]:
        where = arguments[parameter]
        if where not in PLACES:
            return f"error: unknown {parameter}"
        return [{"type": "image", "image": image.crop(crop_box(*image.size, where))}]

    def judge(text: str, environment: Environment) -> bool:
        right = pictures.judge_at(text, (inside[0].colour, inside[0].kind)) if inside else says_nothing(text)
        return environment.made([call]) and right

    return Episode(
        "tools.crop", show(rng, image, question), tools, scene.key,
        (Turn(f"I look at the {place}: {name}.", "", (call,)), Turn(learnt, content)),
        lambda: Environment(tools, answer), judge, thing or "nothing",
    )  # fmt: skip


def means_a_third(scene: Scene, place: str) -> bool:
    """Whether this place could not mean more than its third: `the top` may be the whole upper row, if shapes are there.

    As in `pictures.draw_side`. Corners and the centre mean themselves.
    """
    row, column = divmod(PLACES.index(place), 3)
    others = [divmod(PLACES.index(shape.place), 3) for shape in scene.shapes if shape.place != place]
    if place in ("top", "bottom"):
        return all(other_row != row for other_row, _ in others)
    return place not in ("left", "right") or all(other_column != column for _, other_column in others)


def crop_box(width: int, height: int, place: str) -> tuple[int, int, int, int]:
    """The third of the picture that a place names, and a little around it: left, top, right, bottom."""
    row, column = divmod(PLACES.index(place), 3)

    def side(length: int, third: int) -> tuple[int, int]:
        low, high = length * (third / 3 - CROP_MARGIN), length * ((third + 1) / 3 + CROP_MARGIN)
        return max(0, round(low)), min(length, round(high))

    (left, right), (top, bottom) = side(width, column), side(height, row)
    return left, top, right, bottom


def contains(outer: Sequence[int], inner: Sequence[int]) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def says_nothing(text: str) -> bool:
    """Whether the answer says that nothing is there, and names no shape."""
    shapes = set(pictures.words_of(text)) & {*pictures.COLOURS, *pictures.KINDS}
    return not shapes and any(names(text, word) for word in ("nothing", "empty", "no shape"))
