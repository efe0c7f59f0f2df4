"""World 6, one turn of calls: the right tool, several at once, no tool where none is needed, errors told honestly."""

import random
import re
from collections.abc import Sequence
from typing import Any

from . import arithmetic, self_knowledge
from .arithmetic import draw_numbers
from .demonstration import Environment, Episode, Turn, look_up, play
from .self_knowledge import draw_outside, draw_self
from .task import is_of_split, join_words, weighted
from .tool_requests import STYLES, Request, Tool, draw_getter, draw_request, draw_tools, look_through
from .tool_words import NOT_FOUND, draw_items, draw_until, names, says_only, spell_out, vary_words

SYSTEM_SHARE = 0.1
EARLIER = {1: 0.2, 0: 0.8}  # how many questions to the same tools went before: ids then go on counting
SYSTEMS = (
    "You are a helpful assistant.", "Use the tools.", "You are an assistant with tools.",
    "You are Kimi, an AI assistant created by Moonshot AI.", "Answer briefly.", "Call a tool when you need one.",
)  # fmt: skip
GLUE = {"in", "on", "at", "the", "of", "a", "is", "are", "how", "what", "which", "who", "does", "do", "many", "much"}


def open_conversation(rng: random.Random, question: str, may_have_system: bool = True) -> list[dict[str, Any]]:
    """The user's question, sometimes after a system message."""
    has_system = may_have_system and rng.random() < SYSTEM_SHARE
    system = [{"role": "system", "content": rng.choice(SYSTEMS)}] if has_system else []
    return [*system, {"role": "user", "content": question}]


def sentence(text: str) -> str:
    """`the price is 4` → `The price is 4.`; invented names and codes have their capital already."""
    return f"{text[0].upper()}{text[1:]}."


def make_episode(rng: random.Random, skill: str, question: str, tools: Sequence[Tool], requests: Sequence[Request],
                 learnt: str, content: str, history: Sequence[dict[str, Any]] = ()
                 ) -> Episode:  # fmt: skip
    """An episode with all its calls in one turn and an answer that tells every result."""
    declarations = [tool.declaration for tool in tools]
    calls = [request.call for request in requests]
    results = [(request.call, request.result) for request in requests]
    otherwise = rng.choice(NOT_FOUND)
    expected = [(request.value, request.words if len(requests) > 1 else ()) for request in requests]
    allowed = [str(value) for request in requests for value in request.arguments.values()
               if str(value) not in [value for value, _ in expected]]  # fmt: skip
    key = f"{skill}:{calls}{[request.result for request in requests]}"
    return Episode(
        skill, [*history, *open_conversation(rng, vary_words(rng, question), not history)], declarations, key,
        (Turn(think(tools, requests), "", tuple(calls)), Turn(learnt, content)),
        lambda: Environment(declarations, look_up(results, otherwise)),
        lambda answer, environment: environment.made(calls) and says_only(answer, expected, allowed),
        [request.value for request in requests],
    )  # fmt: skip


def think(tools: Sequence[Tool], requests: Sequence[Request]) -> str:
    """What is needed, and which tool gives it, for one request after the other."""
    declared = [tool.name for tool in tools]
    return "\n".join(f"{request.plan}.\n{look_through(declared, request.tool.name)}" for request in requests)


def draw_choose(rng: random.Random, split: str, num_tools: Sequence[int] = (2, 3, 4, 5, 6)) -> Episode:
    """Several tools, one of which answers the question; now and then after earlier questions to some of them."""
    tools = draw_tools(rng, split, rng.choice(num_tools))
    history: list[dict[str, Any]] = []
    for _ in range(weighted(rng, EARLIER)):
        # A lamp that is on or off can be asked so few things that perhaps none is of this split: then none went before.
        asked = (ask_one(rng, split, tools, history) for _ in range(100))
        earlier = next((past for past in asked if is_of_split(past.key, split)), None)
        history, _ = play(earlier) if earlier else (history, tools)
    return ask_one(rng, split, tools, history)


def ask_one(rng: random.Random, split: str, tools: Sequence[Tool], history: Sequence[dict[str, Any]] = ()) -> Episode:
    """One question to one of these tools."""
    request = draw_request(rng, split, rng.choice(tools))
    fact = sentence(request.fact)
    return make_episode(rng, "tools.choose", request.question, tools, [request], fact, fact, history)


def draw_parallel(rng: random.Random, split: str, num_parts: Sequence[int] = (2, 3, 4),
                  num_tools: Sequence[int] = (1, 2, 3, 4)) -> Episode:  # fmt: skip
    """One tool for several items, several tools for one item, or any mixture, all called in one turn."""
    count = rng.choice(num_parts)
    form = weighted(rng, {"one tool": 4, "one item": 2, "mixed": 3, "set": 2})
    while True:
        chosen, requests = draw_parts(rng, split, form, count)
        values = [request.value for request in requests]
        if len({value.lower() for value in values}) == count and not clash(requests) and not is_loose(requests):
            break
    tools = draw_tools(rng, split, max(len(chosen), rng.choice(num_tools)), chosen)
    phrases = [request.phrase for request in requests]
    if form == "set":
        question = sentence(f"{rng.choice(('set', 'change'))} {join_words(phrases)}")
    elif form == "one tool" and not chosen[0].extras and rng.random() < 0.5:
        lead = f"the {chosen[0].noun} of "
        question = ask_for(rng, lead + join_words([phrase.removeprefix(lead) for phrase in phrases]))
    else:
        question = ask_for(rng, join_words(phrases))
    facts = [request.fact for request in requests]
    return make_episode(rng, "tools.parallel", question, tools, requests, "All results are there.",
                        sentence(join_words(facts)))  # fmt: skip


def draw_parts(rng: random.Random, split: str, form: str, count: int) -> tuple[list[Tool], list[Request]]:
    """The tools that a parallel question needs, and its requests."""
    style = weighted(rng, STYLES)
    items = draw_items(rng, split, count)
    if form == "one tool":
        chosen = [draw_getter(rng, split)]
        used = chosen * count
    else:
        wants_setters = form == "set"
        pool = draw_until(
            lambda: [tool for tool in draw_tools(rng, split, 12) if tool.is_setter == wants_setters],
            lambda found: len(found) >= count,
        )
        used = pool[:count] if form != "mixed" else rng.choices(pool[: max(2, count - 1)], k=count)
        chosen = list(dict.fromkeys(tool.name for tool in used))
        chosen = [next(tool for tool in pool if tool.name == name) for name in chosen]
    requests: list[Request] = []
    taken = [item.text for item in items]
    for tool, item in zip(used, items[:1] * count if form == "one item" else items, strict=True):
        request = draw_request(rng, split, tool, item, taken, style)
        taken += [request.value, *map(str, request.arguments.values())]
        requests.append(request)
    return chosen, requests


def clash(requests: Sequence[Request]) -> bool:
    """Whether a value of one part is also a word of the question, so that an answer could not be told from a copy."""
    given = [str(value) for request in requests for name, value in request.arguments.items()
             if name != request.tool.value_parameter]  # fmt: skip
    return any(names(text, request.value) for text in given for request in requests)


def is_loose(requests: Sequence[Request]) -> bool:
    """Whether an extra of one part could also be meant for another that does without it: `... on day 3` at the end."""
    extras = {extra for request in requests for extra in request.tool.extras if extra in request.arguments}
    return any(extra in request.tool.extras and extra not in request.arguments
               for request in requests for extra in extras)  # fmt: skip


def ask_for(rng: random.Random, things: str) -> str:
    """A question for several things, or an instruction."""
    forms = {"What is {}?": 3, "Find {}.": 2, "Tell me {}.": 1.5, "I need {}.": 1, "Look up {}.": 1, "List {}.": 0.5}
    return weighted(rng, forms).format(things)


def draw_error(rng: random.Random, split: str, num_tools: Sequence[int] = (1, 2, 3, 4)) -> Episode:
    """The tool does not know the item, or one of two items; the answer says so and invents nothing."""
    while True:
        tool = draw_getter(rng, split)
        items = draw_items(rng, split, weighted(rng, {1: 3, 2: 2}))
        taken = [item.text for item in items]
        requests = []
        for item in items:
            requests.append(draw_request(rng, split, tool, item, taken))
            taken += [requests[-1].value, *map(str, requests[-1].arguments.values())]
        if not clash(requests) and not is_loose(requests):
            break
    missing, known = requests[0], requests[1:]
    order = rng.sample(requests, len(requests))
    tools = draw_tools(rng, split, rng.choice(num_tools), [tool])
    declarations = [each.declaration for each in tools]
    phrases = [request.phrase for request in order]
    question = vary_words(rng, ask_for(rng, join_words(phrases)) if known else missing.question)
    calls = [request.call for request in order]
    otherwise = rng.choice(NOT_FOUND)
    results = [(request.call, request.result) for request in known]
    thing = f"the {tool.noun} of {items[0].phrase}"
    facts = [f"I could not find {thing}" if request is missing else request.fact for request in order]
    content = f"I could not find {thing}: {tool.name} says that there is none." if not known else ". ".join(
        sentence(fact).rstrip(".") for fact in facts) + "."  # fmt: skip
    learnt = f"The tool did not find {items[0].phrase}. I say so."
    allowed = [str(value) for request in order for value in request.arguments.values()]

    def judge(answer: str, environment: Environment) -> bool:
        rest = mask_admission(answer, items[0].text)
        return environment.made(calls) and rest is not None and says_only(
            rest, [(request.value, request.words) for request in known], allowed) if known else (
            environment.made(calls) and rest is not None and not tells_a_value(rest, allowed))  # fmt: skip

    return Episode(
        "tools.error", open_conversation(rng, question), declarations,
        f"tools.error:{calls}{[request.result for request in known]}",
        (Turn(think(tools, order), "", tuple(calls)), Turn(learnt, content)),
        lambda: Environment(declarations, look_up(results, otherwise)), judge, [request.value for request in known],
    )  # fmt: skip


ADMISSION = re.compile(
    r"[^.]*\b(?:could not|couldn't|cannot|can't|not found|no such|unknown|does not exist|there is no)\b[^.]*\.?", re.I
)


def mask_admission(answer: str, item: str) -> str | None:
    """The answer without the sentence that admits that this item was not found; None if no sentence does."""
    for found in ADMISSION.finditer(answer):
        if names(found[0], item):
            return answer[: found.start()] + answer[found.end() :]
    return None


def tells_a_value(text: str, allowed: Sequence[str]) -> bool:
    """Whether there is a number or an 'is ...' left that nobody could know."""
    for value in allowed:
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", spell_out(value), text)
    return bool(re.search(r"\d|\bis\b", text))


# (draw, skills of the world): weight
NO_TOOL_NEEDED = {
    (draw_numbers, tuple(arithmetic.SKILLS)): 4, (draw_self, tuple(self_knowledge.SKILLS)): 1.5,
    (draw_outside, tuple(self_knowledge.OUTSIDE_SKILLS)): 3,
}  # fmt: skip


def draw_none(rng: random.Random, split: str, num_tools: Sequence[int] = (1, 2, 3, 4)) -> Episode:
    """Tools are there, but the question is a sum, about the model, or outside: it is answered as without tools."""
    draw, skills = weighted(rng, NO_TOOL_NEEDED)
    task = draw_until(lambda: draw(rng, rng.choice(skills)), lambda task: task.belongs_to(split))
    asked = set(re.findall(r"[a-z]+", task.question.lower()))
    tools = draw_until(
        lambda: draw_tools(rng, split, rng.choice(num_tools)),
        lambda found: not any(cues(tool) & asked for tool in found),
    )
    declarations = [tool.declaration for tool in tools]
    messages = open_conversation(rng, task.question)
    if task.system:
        messages = [{"role": "system", "content": task.system}, messages[-1]]
    return Episode(
        "tools.none", messages, declarations,
        task.key or f"tools.none:{task.question}:{[tool.name for tool in tools]}",
        (Turn(task.reasoning_content, task.content),),
        lambda: Environment(declarations, look_up([], NOT_FOUND[0])),
        lambda answer, environment: not environment.calls and task.judge(answer.strip(), task.truth), task.truth,
    )  # fmt: skip


def cues(tool: Tool) -> set[str]:
    """The words by which a question could mean this tool."""
    forms = [tool.noun, *(tool.attribute.questions if tool.attribute else ())]
    return set(re.findall(r"[a-z]+", " ".join(forms).lower())) - GLUE
