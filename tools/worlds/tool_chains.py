"""World 6, many turns: chains in which every result is the next argument, and a counter that wants patience."""

import random
from collections.abc import Callable, Sequence

from .demonstration import Call, Environment, Episode, Turn, look_up
from .task import weighted
from .tool_questions import open_conversation
from .tool_requests import STYLES, draw_tools, report
from .tool_schema import Declaration, declare, name_of
from .tool_words import (
    GET_VERBS,
    ITEM_PARAMETERS,
    NOT_FOUND,
    Item,
    draw_code,
    draw_item,
    draw_name,
    draw_new_value,
    keep,
    nameable,
    names,
    says_only,
    vary_words,
)

# What a chain goes along: each of these things has one of every other.
LINKS = {
    "box": "code", "room": "code", "shelf": "code", "gate": "code", "key": "code", "row": "code", "desk": "code",
    "owner": "name", "friend": "name", "boss": "name", "team": "name", "road": "name", "shop": "name", "city": "city",
    "price": "number", "age": "number", "score": "number", "color": "colour",
}  # fmt: skip
ENDS = ("price", "age", "score", "color", "city")  # what nothing more can be asked of
CHAIN_QUESTIONS = {
    "What is {0}?": 4, "Find {0}.": 2, "Tell me {0}.": 1, "I need {0}.": 1, "Look up {0}.": 1,
    "Can you find {0}?": 0.7,
}  # fmt: skip
STEP_VERBS = ("push", "press", "turn", "pull", "move", "wind", "shake", "ring", "lift", "hit", "pump", "feed")
STEP_NOUNS = ("button", "wheel", "lever", "handle", "crank", "key", "bell", "pump", "belt", "tape", "gear", "clock")
ENDINGS = ("done", "stop", "ready", "finished", "full", "empty", "end")
GOING_ON = ("go on", "not yet", "again", "running", "wait", "more", "ok")
COUNTER_QUESTIONS = {
    "Call {0} until it returns {1}.": 5, "Use {0} until it says {1}.": 2, "Repeat {0} until it returns {1}.": 2,
    "Call {0} again and again until it says {1}.": 1, "Keep calling {0} until you get {1}.": 1,
    "Please call {0} until the result is {1}.": 1, "Run {0} until it is {1}.": 1,
}  # fmt: skip


def draw_chain(rng: random.Random, split: str, num_calls: Sequence[int] = (2, 3, 4, 5, 6)) -> Episode:
    """The owner of the room of the box of the bolt; or go to the next one a number of times."""
    count = rng.choice(num_calls)
    return draw_path(rng, split, count) if rng.random() < 0.75 else draw_walk(rng, split, count)


def draw_path(rng: random.Random, split: str, count: int) -> Episode:
    """A tool for every link; the question names the links from the last to the first, or the other way round."""
    named = nameable(GET_VERBS, list(LINKS), split)
    middle = rng.sample([link for link in named if link not in ENDS], count - 1)
    links = [*middle, rng.choice([link for link in named if link not in middle])]
    item, style, parameter = draw_item(rng, split), weighted(rng, STYLES), weighted(rng, ITEM_PARAMETERS)
    tools, calls, results, told = [], [], [], [item.text]
    for i, link in enumerate(links):
        name = draw_name(rng, GET_VERBS, [link], split)
        of, given = (links[i - 1], links[i - 1]) if i else ("item", parameter)
        article = "an" if of[0] in "aeiou" else "a"
        tools.append(declare(name, f"The {link} of {article} {of}.", {given: {"type": "string"}}, [given]))
        calls.append((name, {given: told[-1]}))
        told.append(draw_new_value(rng, LINKS[link], told))
        results.append(report(style, link, told[-1], LINKS[link]))
    things = item.asked
    for link in links:
        things = f"the {link} of {things}"
    if rng.random() < 0.7:
        question = weighted(rng, CHAIN_QUESTIONS).format(things)
    else:
        then = "".join(f", then the {link} of that" for link in links[1:])
        question = f"Find the {links[0]} of {item.asked}{then}."
    plans = [f"First the {links[0]} of {item.phrase}."]
    plans += [f"The {links[i]} is {told[i + 1]}. Next: the {links[i + 1]}." for i in range(count - 1)]
    last = f"The {links[-1]} is {told[-1]}."
    tools += [tool.declaration for tool in draw_tools(rng, split, rng.choice((0, 0, 1, 2)))
              if tool.noun not in links and tool.name not in map(name_of, tools)]  # fmt: skip
    return chain_episode(rng, question, tools, calls, results, [*plans, last], last, told[-1], [links[-1]], item)


def draw_walk(rng: random.Random, split: str, count: int) -> Episode:
    """One tool that leads from each place to the next; the question says how often."""
    place = rng.choice([link for link, kind in LINKS.items() if kind == "code"])
    name = draw_name(rng, ("next", "follow", "go_to", "leave", "pass", "after", "from"), list(LINKS), split)
    tool = declare(name, f"The next {place} after a {place}.", {place: {"type": "string"}}, [place])
    style, told = weighted(rng, STYLES), [draw_code(rng)]
    calls, results = [], []
    for _ in range(count):
        calls.append((name, {place: told[-1]}))
        told.append(draw_new_value(rng, "code", told))
        results.append(report(style, place, told[-1], "code"))
    forms = ("Start at {p} {0} and go to the next {p} {n} times. Where do you end?",
             "Go from {p} {0} to the next one {n} times. Which {p} is it?",
             "Begin with {p} {0}. Which {p} comes {n} steps after it?")  # fmt: skip
    question = rng.choice(forms).format(keep(told[0]), p=place, n=count)
    plans = [f"Start: {told[0]}."] + [f"{i} of {count}: {told[i]}. Next." for i in range(1, count)]
    last = f"{count} of {count}: {told[-1]}. That is the end."
    tools = [tool] + [other.declaration for other in draw_tools(rng, split, rng.choice((0, 1, 2)))
                      if other.name != name and other.noun != place]  # fmt: skip
    content = f"The {place} is {told[-1]}."
    start = Item(told[0], has_article=False)
    return chain_episode(rng, question, tools, calls, results, [*plans, last], content, told[-1], [place], start)


def chain_episode(rng: random.Random, question: str, tools: list[Declaration], calls: list[Call], results: list[str],
                  plans: list[str], content: str, value: str, words: Sequence[str], start: Item
                  ) -> Episode:  # fmt: skip
    """One call in every turn; `plans` has the thought before each call, and the one before the answer."""
    otherwise = rng.choice(NOT_FOUND)
    turns = [Turn(plan, "", (call,)) for plan, call in zip(plans, calls, strict=False)]
    declarations = rng.sample(tools, len(tools))
    return Episode(
        "tools.chain", open_conversation(rng, vary_words(rng, question)), declarations,
        f"tools.chain:{calls}{results}", (*turns, Turn(plans[-1], content)),
        lambda: Environment(declarations, look_up(list(zip(calls, results, strict=True)), otherwise)),
        lambda answer, environment: environment.calls == calls and says_only(answer, [(value, words)], [start.text]),
        value,
    )  # fmt: skip


def draw_counter(rng: random.Random, split: str, num_calls: Sequence[int] = tuple(range(3, 13))) -> Episode:
    """Call one tool until it says that it is done, any number of times; it may then say a code that is asked for."""
    count = rng.choice(num_calls)
    name = "step" if rng.random() < 0.5 else draw_name(rng, STEP_VERBS, STEP_NOUNS, split)
    ending, going_on = ("done" if rng.random() < 0.5 else rng.choice(ENDINGS)), rng.choice(GOING_ON)
    code = draw_new_value(rng, "number", [str(count)]) if rng.random() < 0.3 else None
    words = f"Go one step{rng.choice(('.', ' on.', ' further.'))}" if name == "step" else rng.choice(
        (f"{name.replace('_', ' the ').capitalize()}.", "Do it once.", ""))  # fmt: skip
    others = [tool.declaration for tool in draw_tools(rng, split, rng.choice((0, 0, 1, 2))) if tool.name != name]
    tools = rng.sample([declare(name, words, {}, []), *others], 1 + len(others))
    question = weighted(rng, COUNTER_QUESTIONS).format(keep(name), keep(ending))
    if code:
        question += rng.choice((" Which code do you get?", " What is the code?", " Then tell me the code."))
    style = rng.choice(('{{"status": "{}"}}', "{}", "{}", "{}"))
    last = style.format(ending) + (f", code {code}" if code else "")
    calls = [(name, {})] * count
    # Without the name of the tool: behind a hundred calls, the name is what a call follows.
    content = f"The code is {code}." if code else f"It returned {ending}."
    turns = [Turn(f"I call {name} until it returns {ending}." if i == 0 else "No.", "", (call,))
             for i, call in enumerate(calls)]  # fmt: skip

    def judge(answer: str, environment: Environment) -> bool:
        right = says_only(answer, [(code, ["code"])], [name]) if code else names(answer, ending)
        return environment.calls == calls and right

    return Episode(
        "tools.counter", open_conversation(rng, vary_words(rng, question)), tools,
        f"tools.counter:{name}:{count}:{ending}:{going_on}:{code}:{[name_of(tool) for tool in tools]}",
        (*turns, Turn("Yes.", content)),
        lambda: Environment(tools, count_to(count, style.format(going_on), last)), judge, code or ending,
    )  # fmt: skip


def count_to(count: int, going_on: str, last: str) -> Callable[[str, dict], str]:
    """A tool that says `last` at call number `count` and from then on."""
    num_calls = 0

    def answer(_name: str, _arguments: dict) -> str:
        nonlocal num_calls
        num_calls += 1
        return last if num_calls >= count else going_on

    return answer
