"""Draw examples from the worlds: `draw("numbers", seed, index)` is the same example on every machine.

A name picks a whole world (`numbers`), one skill (`numbers.add`) or `conversation` (several turns that mix worlds).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import arithmetic, pictures, self_knowledge, videos
from .task import Task, is_held_out, weighted

SKILLS: dict[str, float] = {
    **arithmetic.SKILLS, **pictures.SKILLS, **videos.SKILLS, **self_knowledge.SKILLS, **self_knowledge.OUTSIDE_SKILLS
}  # fmt: skip
THINKING_SHARE = {"numbers": 0.8, "pictures": 0.5, "videos": 0.5, "self": 0.5, "outside": 0.5}
SPLITS = ("train", "held-out")
SYSTEMS = (
    "You are a helpful assistant.", "You are Kimi, an AI assistant created by Moonshot AI.", "Answer briefly.",
    "You are a friendly tutor.", "Be concise.", "Answer in English.",
    "You are a careful assistant. Think step by step.", "You are an expert.", "Be polite and helpful.",
    "You are a helpful, harmless and honest assistant.", "Today is Monday.", "You are a maths teacher.",
    "You look at pictures.",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A conversation that ends with a user's message, the reply it should get, and how to judge another reply.

    `messages` are in the OpenAI format; a picture is a part `{"type": "image", "image": PIL.Image}`, a video
    `{"type": "video", "video": bytes}`.
    `reasoning_content` is empty in instant mode. `skill` is that of the last question.
    """

    messages: list[dict[str, Any]]
    thinking: bool
    reasoning_content: str
    content: str
    skill: str
    content_key: str | None
    task: Task

    def check(self, answer: str) -> bool:
        """Whether this answer (the content after thinking) is right."""
        return self.task.judge(answer.strip(), self.task.truth)


def skills_of(name: str) -> list[str]:
    """The skills that a world's or a skill's name stands for; empty if there is none of that name."""
    return [skill for skill in SKILLS if skill == name or skill.startswith(f"{name}.")]


def draw(
    name: str, seed: int, index: int, split: str = "train", *, thinking: bool | None = None,
    canvas: str = "full", num_shapes: Sequence[int] = (1, 2, 3, 4),
) -> Sample:  # fmt: skip
    """Example number `index` of this world, skill or `conversation`; `thinking` None mixes both modes.

    `canvas` ('small', 'full') and `num_shapes` shape the pictures: a training starts easy, the default is the test.
    A video has one shape, whatever `num_shapes` says.
    Training and held-out examples never share content (see `Task.key`).
    """
    assert split in SPLITS, split
    rng = random.Random(f"{name} {seed} {split} {index}")
    if name == "conversation":
        return draw_conversation(rng, split, thinking, canvas, num_shapes)
    task = draw_task(rng, name, split, canvas, num_shapes)
    return make_sample(rng, [task], thinking)


def draw_task(rng: random.Random, name: str, split: str, canvas: str, num_shapes: Sequence[int]) -> Task:
    """Draw until the content belongs to this split."""
    skill = weighted(rng, {skill: SKILLS[skill] for skill in skills_of(name)})
    while True:
        world = skill.partition(".")[0]
        if world == "numbers":
            task = arithmetic.draw_numbers(rng, skill)
        elif world == "pictures":
            task = pictures.draw_picture(rng, skill, canvas, num_shapes)
        elif world == "videos":
            task = videos.draw_video(rng, skill, canvas)
        elif world == "self":
            task = self_knowledge.draw_self(rng, skill)
        else:
            task = self_knowledge.draw_outside(rng, skill)
        if task.key is None or is_held_out(task.key) == (split == "held-out"):
            return task


def draw_conversation(
    rng: random.Random, split: str, thinking: bool | None, canvas: str, num_shapes: Sequence[int]
) -> Sample:
    """Two to four turns; a picture may be asked about again in the turn after it, without being sent again."""
    tasks: list[Task] = []
    for _ in range(rng.randint(2, 4)):
        again = ask_again(rng, tasks[-1]) if tasks and rng.random() < 0.4 else None
        world = weighted(rng, {"numbers": 4, "pictures": 4, "self": 1, "outside": 1})
        tasks.append(again or draw_task(rng, world, split, canvas, num_shapes))
    return make_sample(rng, tasks, thinking)


def ask_again(rng: random.Random, task: Task) -> Task | None:
    """Another question about the picture of this task, if it has one."""
    return pictures.ask(rng, weighted(rng, pictures.SKILLS), task.scene) if task.scene else None


def make_sample(rng: random.Random, tasks: Sequence[Task], thinking: bool | None) -> Sample:
    """Turns into messages; the last task is the one to answer, the others are answered in the history."""
    task = tasks[-1]
    if thinking is None:
        thinking = rng.random() < THINKING_SHARE[task.skill.partition(".")[0]]
    system = next((turn.system for turn in tasks if turn.system), None)
    if system is None and rng.random() < 0.15:
        system = rng.choice(SYSTEMS)
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    seen = None
    for turn in tasks:
        messages.append({"role": "user", "content": user_content(rng, turn, show=turn.scene is not seen)})
        seen = turn.scene
        if turn is not task:
            messages.append({"role": "assistant", "content": turn.content})
    reasoning = task.reasoning_content if thinking else ""
    return Sample(messages, thinking, reasoning, task.content, task.skill, task.key, task)


def user_content(rng: random.Random, task: Task, show: bool) -> str | list[dict[str, Any]]:
    """The question, with its picture or video before, after or between text."""
    if task.clip is not None:
        medium, lead_ins = {"type": "video", "video": task.clip.encode()}, videos.LEAD_INS
    elif task.scene is not None and show:
        medium, lead_ins = {"type": "image", "image": task.scene.paint()}, pictures.LEAD_INS
    else:
        return task.question
    question = {"type": "text", "text": task.question}
    roll = rng.random()
    if roll < 0.6:
        return [medium, question]
    if roll < 0.85:
        return [question, medium]
    return [{"type": "text", "text": rng.choice(lead_ins)}, medium, question]
