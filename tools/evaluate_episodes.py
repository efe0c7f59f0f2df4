"""Evaluate worlds 6 and 7: an agent, or a swarm, does the task in its environment, and the environment's judge decides.

Unconstrained: nothing makes a call valid but the model itself. A wrong call is answered as a real tool would answer it.
"""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .scores import Outcome

if TYPE_CHECKING:
    from reference.agent import Agent, Result
    from reference.prompt import Processor

    from .evaluate import Examinee
    from .worlds.demonstration import Environment, Episode

NUM_CALLS = 20  # of a failure, the first ones, to be read by a person
SPARE_STEPS = 20  # beyond twice the calls that an ideal agent makes: it may err and try again, but not for ever
# What makes the episodes of a skill longer, and the option that sets it.
LENGTHS = {
    "tools.chain": ("num_calls", "calls"), "tools.counter": ("num_calls", "calls"),
    "tools.parallel": ("num_parts", "parts"), "swarm.orchestrate": ("num_parts", "parts"),
    "swarm.part": ("num_parts", "parts"), "swarm.single": ("num_parts", "parts"),
}  # fmt: skip


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
            agent_for(examinee.processor, episode, environment, not options.instant, (options.seed + index) % 2**63)
            for index, episode, environment in zip(indices, episodes, environments, strict=True)
        ]
        results = run_agents(examinee.responder(options), agents)
        outcomes += map(judge, indices, episodes, environments, results)
        advance(len(indices), sum(outcome.right for outcome in outcomes[start:]))
    return outcomes


def draw(skill: str, index: int, options: argparse.Namespace) -> "Episode":
    from .worlds.episode import draw_episode

    difficulty: dict[str, Any] = {}
    name, option = LENGTHS.get(skill, (None, None))
    if name and getattr(options, option) is not None:
        difficulty[name] = (getattr(options, option),)
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


def judge(index: int, episode: "Episode", environment: "Environment", result: "Result") -> Outcome:
    """Right is an answer that came by itself and that the environment's judge accepts."""
    from .question_features import episode_features, thinking_kind

    right = result.finish_reason == "stop" and episode.judge(result.answer, environment)
    question = episode.messages[-1]["content"]
    asked = question if isinstance(question, str) else next(part["text"] for part in question if "text" in part)
    replies = [message for message in result.messages[len(episode.messages) :] if message["role"] == "assistant"]
    calls = [call["function"] for reply in replies for call in reply.get("tool_calls") or []]
    first, wanted = replies[0] if replies else {}, episode.demonstration[0].reasoning_content
    thinking = thinking_kind(episode.skill, wanted, first.get("reasoning_content") or "")
    failure = {
        "index": index, "skill": episode.skill, "question": asked, "content_key": episode.key,
        "expected": episode.demonstration[-1].content, "answer": result.answer,
        "expected_reasoning": wanted,
        "calls": [f"{call['name']}({call['arguments']})" for call in calls[:NUM_CALLS]],
        "finish_reason": result.finish_reason,
    }  # fmt: skip
    return Outcome(
        json.dumps([asked, episode.key]), right, None, None if right else failure,
        episode_features(episode) | {"first thought": thinking}, result.critical_steps,
    )  # fmt: skip
