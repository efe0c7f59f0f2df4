"""Worlds 6 (tools) and 7 (swarm): `draw_episode("tools.chain", seed, index)` is the same on every machine."""

import random
from collections.abc import Callable
from typing import Any

from . import swarm, tool_chains, tool_pictures, tool_questions
from .demonstration import Environment, Episode, Turn, play
from .sample import SPLITS
from .task import is_of_split

__all__ = ["SKILLS", "Environment", "Episode", "Turn", "draw_episode", "play"]

# Each draws (rng, split, **difficulty); what makes an episode harder stands in its signature.
SKILLS: dict[str, Callable[..., Episode]] = {
    "tools.choose": tool_questions.draw_choose, "tools.parallel": tool_questions.draw_parallel,
    "tools.error": tool_questions.draw_error, "tools.none": tool_questions.draw_none,
    "tools.chain": tool_chains.draw_chain, "tools.counter": tool_chains.draw_counter,
    "tools.picture": tool_pictures.draw_picture_call, "tools.crop": tool_pictures.draw_crop,
    "swarm.orchestrate": swarm.draw_orchestrate, "swarm.part": swarm.draw_part, "swarm.single": swarm.draw_single,
}  # fmt: skip


def draw_episode(skill: str, seed: int, index: int, split: str = "train", **difficulty: Any) -> Episode:
    """Episode number `index` of this skill. `difficulty` goes to the skill's own function (see SKILLS): `num_tools`,
    `num_parts`, `num_calls`, `num_shapes` are the numbers to draw from, `canvas` is the size of a picture.

    Training and held-out episodes never share a key, nor the name of a tool that was put together, nor an item.
    """
    assert split in SPLITS, split
    task = "swarm" if skill in ("swarm.orchestrate", "swarm.single") else skill  # the same tasks for both
    rng = random.Random(f"{task} {seed} {split} {index}")
    while True:
        episode = SKILLS[skill](rng, split, **difficulty)
        if is_of_split(episode.key, split):
            return episode
