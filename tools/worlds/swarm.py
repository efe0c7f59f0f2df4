"""World 7: the same task for a swarm, for one of its subagents, and for a single agent.

A task has 2 to 12 independent parts, and each part needs dependent calls: first where an item is, then what there is
to know about it there. The results are then added up, compared or listed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from reference.swarm import ASSIGN, CREATE, SWARM_TOOLS

from .demonstration import Call, Environment, Episode, Result, Turn, look_up
from .task import is_of_split, join_words, weighted
from .tool_questions import mask_admission, open_conversation
from .tool_requests import STYLES, draw_tools, report
from .tool_schema import Declaration, declare, name_of
from .tool_words import (
    GET_VERBS,
    NOT_FOUND,
    Item,
    draw_code,
    draw_items,
    draw_name,
    draw_until,
    find_words,
    nameable,
    names,
    says_only,
    vary_words,
)

LACKING_SHARE = 0.1  # of the tasks whose sense survives it: one of the items is not there
NUM_PARTS = tuple(range(2, 13))
LARGEST_VALUE = 20  # two digits: a running total then grows in steps that a small model can write down
VERBS = (*GET_VERBS, "count", "open", "list", "view", "note", "scan", "name")
PLACES = ("shelf", "box", "room", "row", "bin", "rack", "desk", "bay", "drawer", "hall", "case", "crate")
MEASURES = ("stock", "count", "number", "price", "weight", "age", "score", "rank", "level", "size", "demand", "tax")
AGENTS = ("worker", "helper", "finder", "clerk", "scout", "agent", "reader", "searcher")
PART_QUESTIONS = {"Find the {m} of {0}.": 5, "What is the {m} of {0}?": 2, "Tell me the {m} of {0}.": 1}
ROLES = ("You find the {m} of an item.", "Find the {m} of the item that you are given.",
         "You look up the {m} of one item and report it.")  # fmt: skip
TOTAL = {
    "Find {0} and add them up.": 4, "Add up {0}.": 2, "What is the sum of {0}?": 1, "Find {0}. What is the total?": 1.5,
    "Give me the total of {0}.": 1,
}  # fmt: skip
WANTED = {"total": "the total", "each": "each", "highest": "the highest", "lowest": "the lowest"}
EACH = {"Find {0}.": 3, "What is {0}?": 2, "Report {0}.": 1, "Tell me {0}.": 1, "List {0}.": 1}
MOST = {
    "Which has the {s} {m}: {0}?": 3, "Which of {1} has the {s} {m}?": 2, "Find the {m} of {1}. Which has the {s}?": 2,
}  # fmt: skip
HIGHEST, LOWEST = ("highest", "largest", "biggest"), ("lowest", "smallest")


@dataclass(frozen=True)
class Part:
    """One item, what is asked of it, the calls that lead there with their results, and the value at the end.

    An item that the tools do not know has one call, no result and no value.
    """

    item: Item
    measure: str
    places: tuple[str, ...]
    calls: tuple[Call, ...]
    results: tuple[str, ...]
    found: tuple[str, ...]  # what each result says
    value: int | None

    @property
    def task(self) -> str:
        return f"the {self.measure} of {self.item.phrase}"

    @property
    def answer(self) -> str:
        if self.value is None:
            return f"I could not find {self.task}."
        return f"The {self.measure} of {self.item.phrase} is {self.value}."

    def thoughts(self) -> list[str]:
        """What to think before each call, and before the answer."""
        thoughts = [f"First the {self.places[0]} of {self.item.phrase}."]
        if self.value is None:
            return [*thoughts, f"The tool does not know {self.item.phrase}."]
        for place, code, following in zip(self.places, self.found, (*self.places[1:], self.measure), strict=False):
            thoughts.append(f"The {place} is {code}. Next: the {following}.")
        return [*thoughts, f"The {self.measure} is {self.value}."]


@dataclass(frozen=True)
class Work:
    """A whole task: its question, its parts in the order of the question, and what the parts are for."""

    goal: str  # "total", "each", "highest" or "lowest"
    question: str
    parts: tuple[Part, ...]
    tools: list[Declaration]
    otherwise: str

    @property
    def calls(self) -> list[Call]:
        return [call for part in self.parts for call in part.calls]

    @property
    def key(self) -> str:
        return f"swarm:{self.goal}:{[(call, part.results) for part in self.parts for call in part.calls]}"

    def answer(self, name: str, arguments: dict[str, Any]) -> Result:
        results = [pair for part in self.parts for pair in zip(part.calls, part.results, strict=False)]
        return look_up(results, self.otherwise)(name, arguments)

    def content(self) -> str:
        """The final answer."""
        lacking = "".join(f"{part.answer} " for part in self.parts if part.value is None)
        if self.goal == "total":
            return f"{lacking}The total{' of the others' if lacking else ''} is {self.truth()}."
        if self.goal == "each":
            facts = [f"{part.measure} of {part.item.phrase}: {part.value}" for part in self.known]
            return f"{lacking}{'; '.join(facts)}."
        best = self.best()
        return f"It is {best.item.phrase} with {best.value}."

    @property
    def known(self) -> list[Part]:
        return [part for part in self.parts if part.value is not None]

    def best(self) -> Part:
        return (max if self.goal == "highest" else min)(self.parts, key=lambda part: part.value)

    def judge(self, content: str, environment: Environment) -> bool:
        """The right answer, and every value in it was really looked up, by whichever agent."""
        if not environment.includes(self.calls):
            return False
        texts = [part.item.text for part in self.parts]
        for part in self.parts:
            rest = mask_admission(content, part.item.text) if part.value is None else content
            if rest is None:
                return False
            content = rest
        if self.goal == "total":
            return says_only(content, [(str(self.truth()), [])], texts)
        if self.goal == "each":
            return says_each(content, self.known)
        named = [text for text in texts if names(content, text)]
        return named == [self.best().item.text]

    def truth(self) -> Any:
        values = {part.item.text: part.value for part in self.known}
        if self.goal == "total":
            return sum(values.values())
        return values if self.goal == "each" else self.best().item.text


def says_each(content: str, parts: Sequence[Part]) -> bool:
    """Whether every item is followed by its value before the next item is named."""
    starts = []
    for part in parts:
        found = find_words(content, part.item.text)
        if not found:
            return False
        starts.append((found.start(), found.end(), part))
    starts.sort(key=lambda start: start[0])
    ends = [start for start, _, _ in starts[1:]] + [len(content)]
    return all(says_only(content[after:end], [(str(part.value), [])])
               for (_, after, part), end in zip(starts, ends, strict=True))  # fmt: skip


def draw_work(rng: random.Random, split: str, num_parts: Sequence[int]) -> Work:
    """A task of this split."""
    return draw_until(lambda: compose(rng, split, num_parts), lambda work: is_of_split(work.key, split))


def compose(rng: random.Random, split: str, num_parts: Sequence[int]) -> Work:
    """Tools with names drawn for this task, items, values, and the question."""
    goal = weighted(rng, {"total": 6, "each": 2, "highest": 2, "lowest": 1})
    count = rng.choice(num_parts)
    places = rng.sample(nameable(VERBS, PLACES, split), 2 if rng.random() < 0.2 else 1)
    has_two = goal in ("total", "each") and count >= 4 and rng.random() < 0.2
    # The highest rank is 1 for most people, and the largest number for others.
    measurable = [measure for measure in MEASURES if measure != "rank" or goal not in ("highest", "lowest")]
    measures = rng.sample(nameable(VERBS, measurable, split), 2 if has_two else 1)
    tools, parameter = [], rng.choice(("item", "name", "thing", "item"))
    for i, place in enumerate(places):
        before, of = (places[i - 1], f"a {places[i - 1]}") if i else (parameter, "an item")
        tools.append(draw_link(rng, split, place, before, f"The {place} of {of}."))
    for measure in measures:
        tools.append(draw_link(rng, split, measure, places[-1], f"The {measure} in a {places[-1]}."))
    links, style = [name_of(tool) for tool in tools], weighted(rng, STYLES)
    items = draw_items(rng, split, count, plural=True)
    first = count // 2 if len(measures) == 2 else count
    values = draw_values(rng, count, goal)
    num_codes = count * len(places)
    codes = draw_until(lambda: [draw_code(rng) for _ in range(num_codes)], lambda drawn: len({*drawn}) == num_codes)
    parts = []
    for i, (item, value) in enumerate(zip(items, values, strict=True)):
        measure = measures[0 if i < first else -1]
        found = [*codes[i * len(places) : (i + 1) * len(places)], str(value)]
        chain = [*links[: len(places)], links[len(places) + measures.index(measure)]]
        given = [(parameter, item.text), *zip(places, found, strict=False)]
        calls = tuple((name, dict([pair])) for name, pair in zip(chain, given, strict=True))
        results = [report(style, noun, text, "code") for noun, text in zip(places, found, strict=False)]
        results.append(report(style, measure, str(value), "number"))
        parts.append(Part(item, measure, tuple(places), calls, tuple(results), tuple(found), value))
    if goal in ("total", "each") and rng.random() < LACKING_SHARE:
        at = rng.randrange(count)
        parts[at] = replace(parts[at], calls=parts[at].calls[:1], results=(), found=(), value=None)
    others = [tool.declaration for tool in draw_tools(rng, split, rng.choice((0, 0, 0, 1, 2)))
              if tool.noun not in (*places, *measures) and tool.name not in links]  # fmt: skip
    declarations = rng.sample([*tools, *others], len(tools) + len(others))
    return Work(goal, word(rng, goal, parts), tuple(parts), declarations, rng.choice(NOT_FOUND))


def draw_link(rng: random.Random, split: str, noun: str, parameter: str, description: str) -> Declaration:
    """A tool such as `find_shelf(item)`."""
    return declare(draw_name(rng, VERBS, [noun], split), description, {parameter: {"type": "string"}}, [parameter])


def draw_values(rng: random.Random, count: int, goal: str) -> list[int]:
    """Small numbers; all different where one of them is to win."""
    if goal in ("highest", "lowest"):
        return rng.sample(range(1, LARGEST_VALUE + 1), count)
    return [rng.randint(1, LARGEST_VALUE if rng.random() < 0.5 else 9) for _ in range(count)]


def word(rng: random.Random, goal: str, parts: Sequence[Part]) -> str:
    """The question."""
    asked = [part.item.asked for part in parts]
    if goal in ("highest", "lowest"):
        superlative = rng.choice(HIGHEST if goal == "highest" else LOWEST)
        alternatives = ", ".join(asked[:-1]) + f" or {asked[-1]}"
        form = weighted(rng, MOST)
        return vary_words(rng, form.format(alternatives, join_words(asked), s=superlative, m=parts[0].measure))
    groups: dict[str, list[str]] = {}
    for part in parts:
        groups.setdefault(part.measure, []).append(part.item.asked)
    things = " and ".join(f"the {measure} of {join_words(group)}" for measure, group in groups.items())
    return vary_words(rng, weighted(rng, TOTAL if goal == "total" else EACH).format(things))


def enlist(parts: Sequence[Part], first: int = 1) -> str:
    """The parts in lines with numbers. A number tells where one is, in the list and in all that follows from it."""
    return "\n".join(f"{number} {part.item.text}" for number, part in enumerate(parts, start=first))


def tally(goal: str, parts: Sequence[Part], first: int = 1) -> list[str]:
    """What to write down for each part: the running total, or the best so far."""
    lines, total, best = [], 0, None
    for number, part in enumerate(parts, start=first):
        line = f"{number} {part.item.text}: "
        if part.value is None:
            line += "none"
        elif goal == "total":
            line += add_step(total, part.value)
            total += part.value
        elif goal == "each" or best is None:
            line += f"{part.value}"
            best = part
        else:
            wins = (part.value > best.value) == (goal == "highest")
            line += f"{part.value}{'>' if part.value > best.value else '<'}{best.value}"
            best = part if wins else best
            line += f", {best.item.text} {best.value}"  # what the next line compares with
        lines.append(line)
    return lines


def add_step(total: int, value: int) -> str:
    """`12+7=19`, and tens before ones: `19+14: 19+10=29, 29+4=33`."""
    if total == 0:
        return str(value)
    tens, ones = value // 10 * 10, value % 10
    if not tens or not ones:
        return f"{total}+{value}={total + value}"
    return f"{total}+{value}: {total}+{tens}={total + tens}, {total + tens}+{ones}={total + value}"


# --- one agent -------------------------------------------------------------------------------------------------------


def draw_single(rng: random.Random, split: str, num_parts: Sequence[int] = NUM_PARTS) -> Episode:
    """All parts one after the other, by one agent with the ordinary tools."""
    work = draw_work(rng, split, num_parts)
    lines = tally(work.goal, work.parts)
    turns = []
    for i, part in enumerate(work.parts):
        thoughts = part.thoughts()
        if i:
            thoughts[0] = f"{lines[i - 1]}\n{thoughts[0].replace('First', f'Next {i + 1}:', 1)}"
        else:
            thoughts[0] = f"{enlist(work.parts)}\nWanted: {WANTED[work.goal]}. {thoughts[0]}"
        turns += [Turn(thought, "", (call,)) for thought, call in zip(thoughts, part.calls, strict=False)]
    turns.append(Turn(f"{lines[-1]}\nThat was the last.", work.content()))
    return Episode(
        "swarm.single", open_conversation(rng, work.question), work.tools, work.key, tuple(turns),
        lambda: Environment(work.tools, work.answer), work.judge, work.truth(),
    )  # fmt: skip


# --- a swarm ---------------------------------------------------------------------------------------------------------


def draw_orchestrate(rng: random.Random, split: str, num_parts: Sequence[int] = NUM_PARTS) -> Episode:
    """Create a kind of subagent for each measure, assign all parts in one turn, put the messages together.

    In the thinking a part has the number that its call gets, and that its message comes back under. What is wanted in
    the end is said again in every turn, for the question is far away by then.
    """
    work = draw_work(rng, split, num_parts)
    measures = list(dict.fromkeys(part.measure for part in work.parts))
    base, role = rng.choice(AGENTS), rng.choice(ROLES)
    agents = {measure: base if len(measures) == 1 else f"{measure}_{base}" for measure in measures}
    roles = {measure: role.format(m=measure) for measure in measures}
    subagents = tuple(part_episode(work, part, roles[part.measure], f"Find {part.task}.") for part in work.parts)
    creates = tuple((CREATE, {"name": agents[measure], "system_prompt": roles[measure]}) for measure in measures)
    assigns = tuple((ASSIGN, {"agent": agents[part.measure], "prompt": f"Find {part.task}."}) for part in work.parts)
    first, wanted = len(creates), f"Wanted: {WANTED[work.goal]}."  # calls are counted from 0
    tools = [*work.tools, *SWARM_TOOLS]
    turns = (
        Turn(f"{enlist(work.parts, first)}\nEach can be a task of its own. {wanted}", "", creates),
        Turn(f"All tasks at once. {wanted}", "", assigns),
        Turn("\n".join([wanted, *tally(work.goal, work.parts, first)]), work.content()),
    )
    return Episode(
        "swarm.orchestrate", open_conversation(rng, work.question), tools, work.key, turns,
        lambda: SwarmEnvironment(tools, work), work.judge, work.truth(), subagents,
    )  # fmt: skip


def draw_part(rng: random.Random, split: str, num_parts: Sequence[int] = NUM_PARTS) -> Episode:
    """One part of a task, as the subagent gets it; worded a little more freely than our own orchestrator does."""
    work = draw_work(rng, split, num_parts)
    part = rng.choice(work.parts)
    task = weighted(rng, PART_QUESTIONS).format(part.item.phrase, m=part.measure)
    return part_episode(work, part, rng.choice(ROLES).format(m=part.measure), task)


def part_episode(work: Work, part: Part, system_prompt: str, task: str) -> Episode:
    """A subagent's whole conversation: its role, its task, its calls, one message."""
    thoughts = part.thoughts()
    turns = [Turn(thought, "", (call,)) for thought, call in zip(thoughts, part.calls, strict=False)]
    calls = list(part.calls)

    def judge(content: str, environment: Environment) -> bool:
        if part.value is None:
            return environment.includes(calls) and mask_admission(content, part.item.text) == ""
        expected = [(str(part.value), [part.measure, part.item.text])]
        return environment.includes(calls) and says_only(content, expected)

    return Episode(
        "swarm.part", [{"role": "system", "content": system_prompt}, {"role": "user", "content": task}],
        work.tools, work.key, (*turns, Turn(thoughts[-1], part.answer)),
        lambda: Environment(work.tools, work.answer), judge, part.value,
    )  # fmt: skip


class SwarmEnvironment(Environment):
    """The ordinary tools, and subagents that do ideally what they are told, in this same world.

    A runner with real subagents answers `create_subagent` and `assign_task` itself; then only ordinary calls get here.
    """

    def __init__(self, tools: list[Declaration], work: Work) -> None:
        super().__init__(tools, self.respond)
        self.work = work
        self.agents: set[str] = set()

    def respond(self, name: str, arguments: dict[str, Any]) -> Result:
        if name == CREATE:
            self.agents.add(arguments["name"])
            return f"created {arguments['name']}"
        if name == ASSIGN:
            return self.assign(arguments["agent"], arguments["prompt"])
        return self.work.answer(name, arguments)

    def assign(self, agent: str, prompt: str) -> str:
        """The message of a subagent that understands its prompt: it names one item and what is wanted of it."""
        if agent not in self.agents:
            return f"error: there is no agent {agent}. The agents are: {', '.join(sorted(self.agents)) or 'none'}."
        meant = [part for part in self.work.parts if names(prompt, part.item.text) and names(prompt, part.measure)]
        if len(meant) != 1:
            return "I could not find that."
        for call in meant[0].calls:
            self(*call)
        return meant[0].answer
