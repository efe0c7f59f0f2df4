"""Evaluate worlds 6 and 7: an agent, or a swarm, does the task in its environment, and the environment's judge decides.

Unconstrained: nothing makes a call valid but the model itself. A wrong call is answered as a real tool would answer it.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from reference.errors import UsageError

from .question_options import seed_of
from .scores import Outcome

if TYPE_CHECKING:
    from reference.agent import Agent, Result
    from reference.prompt import Processor

    from .evaluate import Examinee
    from .worlds.demonstration import Environment, Episode

NUM_CALLS = 20  # of a failure, the first ones, to be read by a person
SPARE_STEPS = 20  # beyond twice the calls that an ideal agent makes: it may err and try again, but not for ever
# What makes the episodes of a skill longer, the option that sets it, and how much it may be: a chain goes to each thing
# once, an agent is asked for few things at a time, and each part of a swarm's task has another value up to 20.
LENGTHENED_BY = {
    "tools.chain": ("num_calls", "calls", range(2, 13)), "tools.counter": ("num_calls", "calls", range(1, 1001)),
    "tools.parallel": ("num_parts", "parts", range(2, 7)), "swarm.orchestrate": ("num_parts", "parts", range(2, 21)),
    "swarm.part": ("num_parts", "parts", range(2, 21)), "swarm.single": ("num_parts", "parts", range(2, 21)),
}  # fmt: skip
WITH_SHAPES = ("tools.picture", "tools.crop")


def check_lengths(skills: Iterable[str], options: argparse.Namespace) -> None:
    """Raises UsageError if an episode of one of these skills cannot be that long."""
    for skill in skills:
        _, option, possible = LENGTHENED_BY.get(skill, (None, None, None))
        value = getattr(options, option) if option else None
        if value is not None and value not in possible:
            raise UsageError(f"--{option} is {value}; {skill} can have {possible[0]} to {possible[-1]}. Choose another "
                             "number, or name the skills that are meant.")  # fmt: skip


def run_episodes(
    skill: str, examinee: "Examinee", options: argparse.Namespace, advance: Callable[[int, int], None]
) -> list[Outcome]:
    """Run this skill's episodes, as many side by side as a batch has rows."""
    from reference.agent import run_agents

    outcomes: list[Outcome] = []
    for start in range(0, options.n, options.batch):
        indices = range(start, min(start + options.batch, options.n))
        episodes = [draw(skill, index, options) for index in indices]
        environments = [episode.new_environment() for episode in episodes]
        agents = [
            agent_for(examinee.processor, episode, environment, not options.instant, seed_of(index, options))
            for index, episode, environment in zip(indices, episodes, environments, strict=True)
        ]
        results = run_agents(examinee.responder(options), agents)
        outcomes += map(partial(judge, options), indices, episodes, environments, results)
        advance(len(indices), sum(outcome.right for outcome in outcomes[start:]))
    return outcomes


def draw(skill: str, index: int, options: argparse.Namespace) -> "Episode":
    from .worlds.episode import draw_episode

    difficulty: dict[str, Any] = {}
    if skill in LENGTHENED_BY:
        name, option, _ = LENGTHENED_BY[skill]
        if getattr(options, option) is not None:
            difficulty[name] = (getattr(options, option),)
    if skill in WITH_SHAPES and options.shapes:
        difficulty["num_shapes"] = (options.shapes,)
    return draw_episode(skill, options.seed, index, "held-out", **difficulty)


def agent_for(
    processor: "Processor", episode: "Episode", environment: "Environment", thinking: bool, seed: int
) -> "Agent":
    """An agent for one that works alone, an orchestrator with real subagents for one that has some to assign."""
    from reference.agent import Agent
    from reference.conversation import Conversation
    from reference.swarm import Orchestrator

    max_steps = SPARE_STEPS + 2 * sum(len(turn.tool_calls) for turn in episode.demonstration)
    if episode.subagents:
        ordinary = episode.subagents[0].tools
        return Orchestrator(
            processor, episode.messages, ordinary, environment, thinking=thinking, max_steps=max_steps, seed=seed
        )
    conversation = Conversation(processor, episode.messages, episode.tools, thinking, seed)
    return Agent(conversation, environment, max_steps=max_steps)


def is_right(episode: "Episode", environment: "Environment", result: "Result") -> bool:
    """An answer that came by itself and that the environment's judge accepts.

    A tool is to be called rightly at once: a call that reached none, which the environment knows nothing of, is wrong.
    In a swarm only the outcome counts.
    """
    is_valid = episode.skill.startswith("swarm.") or not result.num_refused
    return result.finish_reason == "stop" and is_valid and episode.judge(result.answer, environment)


def judge(
    options: argparse.Namespace, index: int, episode: "Episode", environment: "Environment", result: "Result"
) -> Outcome:
    """What became of one episode."""
    from .question_features import episode_features, thinking_kind
    from .worlds.self_knowledge import refuses

    right = is_right(episode, environment, result)
    question = episode.messages[-1]["content"]
    asked = question if isinstance(question, str) else next(part["text"] for part in question if "text" in part)
    replies = [message for message in result.messages[len(episode.messages) :] if message["role"] == "assistant"]
    calls = [call["function"] for reply in replies for call in reply.get("tool_calls") or []]
    first, wanted = replies[0] if replies else {}, episode.demonstration[0].reasoning_content
    features = episode_features(episode)
    if not options.instant:
        features["first thought"] = thinking_kind(episode.skill, wanted, first.get("reasoning_content") or "")
    failure = {
        "index": index, "skill": episode.skill, "question": asked, "content_key": episode.key,
        "expected": episode.demonstration[-1].content, "answer": result.answer,
        "expected_reasoning": wanted,
        "calls": [f"{call['name']}({call['arguments']})" for call in calls[:NUM_CALLS]],
        "finish_reason": result.finish_reason,
    }  # fmt: skip
    # Where the right answer is that it did not work, the model may say so in its own words.
    ends_well = not re.search(r"\b(?:not|no|cannot)\b", episode.demonstration[-1].content)
    refused = refuses(result.answer) if ends_well else None
    return Outcome(
        json.dumps([asked, episode.key]), right, refused, None if right else failure,
        features, result.critical_steps,
    )  # fmt: skip
