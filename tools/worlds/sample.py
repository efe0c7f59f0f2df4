"""Draw examples from the worlds: `draw("numbers", seed, index)` is the same example on every machine.

A name picks a whole world (`numbers`), one skill (`numbers.add`), `conversation` (several turns that mix worlds) or
`gallery` (several about one picture).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import arithmetic, documents, drawings, needles, pictures, self_knowledge, signs, videos
from .rewording import reword
from .task import SPLITS, Level, Task, weighted

SKILLS: dict[str, float] = {
    **arithmetic.SKILLS, **pictures.SKILLS, **signs.SKILLS, **drawings.SKILLS, **videos.SKILLS, **documents.SKILLS,
    **needles.SKILLS, **self_knowledge.SKILLS, **self_knowledge.OUTSIDE_SKILLS,
}  # fmt: skip
CONVERSATION = "conversation"  # the last question of several turns that mix worlds
GALLERY = "gallery"  # several questions about one picture, for training: the picture is looked at once for all of them
# What an evaluation asks if nobody says what: the worlds whose questions one short reply answers.
BY_DEFAULT = ("numbers", "pictures", "self", "outside", CONVERSATION)
WORLDS: dict[str, Callable[[random.Random, str, Level], Task]] = {
    "numbers": lambda rng, skill, level: arithmetic.draw_numbers(rng, skill),
    "pictures": lambda rng, skill, level: pictures.draw_picture(rng, skill, level.canvas, level.num_shapes),
    "signs": lambda rng, skill, level: signs.draw_sign(rng, skill, level.canvas),
    "svg": lambda rng, skill, level: drawings.draw_drawing(rng, skill, level.canvas, level.num_shapes),
    "videos": lambda rng, skill, level: videos.draw_video(rng, skill, level.canvas),
    "documents": lambda rng, skill, level: documents.draw_document(rng, skill, level.split, level.canvas),
    "needles": lambda rng, skill, level: needles.draw_needle(rng, skill, level.split, level.num_tokens),
    "self": lambda rng, skill, level: self_knowledge.draw_self(rng, skill),
    "outside": lambda rng, skill, level: self_knowledge.draw_outside(rng, skill),
}
BESIDE_THE_POINT = 0.08  # of the questions about no picture come with one all the same
NO_PICTURE = "outside.no_picture"
THINKING_SHARE = dict.fromkeys(WORLDS, 0.8) | {"self": 0.5, "outside": 0.5}
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
    `{"type": "video", "video": bytes}`, a document `{"type": "pdf", "pdf": bytes}` or its rendered pages.
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
    canvas: str = "full", num_shapes: Sequence[int] = (1, 2, 3, 4), num_tokens: int | None = None,
    reworded: bool = False,
) -> Sample:  # fmt: skip
    """Example number `index` of this world, skill or `conversation`; `thinking` None mixes both modes.

    `canvas` ('small', 'full') and `num_shapes` shape the pictures: a training starts easy, the default is the test.
    A video has one shape, whatever `num_shapes` says. `num_tokens` is the length of a long text; None mixes lengths.
    `reworded` asks the same in words that no training uses, where there are such (`rewording.WORDINGS`).
    Training and held-out examples never share content (see `Task.belongs_to`).
    """
    assert split in SPLITS, split
    rng = random.Random(f"{name} {seed} {split} {index}")
    level = Level(split, canvas, num_shapes, num_tokens)
    if name == CONVERSATION:
        return draw_conversation(rng, level, thinking)
    if name == GALLERY:
        return draw_gallery(rng, level, thinking)
    task = draw_task(rng, name, level)
    if task.medium is None and task.skill != NO_PICTURE and rng.random() < BESIDE_THE_POINT:
        task = put_beside(rng, task, level)
    return make_sample(rng, [reword(rng, task) if reworded else task], thinking)


def draw_task(rng: random.Random, name: str, level: Level) -> Task:
    """Draw until the content belongs to the split."""
    skill = weighted(rng, {skill: SKILLS[skill] for skill in skills_of(name)})
    while True:
        task = WORLDS[skill.partition(".")[0]](rng, skill, level)
        if task.belongs_to(level.split):
            return task


def put_beside(rng: random.Random, task: Task, level: Level) -> Task:
    """The same question in one message with a picture that it is not about."""
    while True:
        beside = replace(task, medium=pictures.draw_scene(rng, level.canvas, level.num_shapes))
        if beside.belongs_to(level.split):
            return beside


def draw_conversation(rng: random.Random, level: Level, thinking: bool | None) -> Sample:
    """Two to four turns; a picture may be asked about again in the turn after it, without being sent again."""
    tasks: list[Task] = []
    for _ in range(rng.randint(2, 4)):
        again = ask_again(rng, tasks[-1]) if tasks and rng.random() < 0.4 else None
        world = weighted(rng, {"numbers": 4, "pictures": 4, "self": 1, "outside.question": 1})
        tasks.append(again or draw_task(rng, world, level))
    return make_sample(rng, tasks, thinking)


def draw_gallery(rng: random.Random, level: Level, thinking: bool | None) -> Sample:
    """Three to six questions about one picture."""
    tasks = [draw_task(rng, "pictures", level)]
    for _ in range(rng.randint(2, 5)):
        again = None
        while again is None:
            again = ask_again(rng, tasks[0])
        tasks.append(again)
    return make_sample(rng, tasks, thinking)


def ask_again(rng: random.Random, task: Task) -> Task | None:
    """Another question about the picture of this task, if it has one."""
    if not isinstance(task.medium, pictures.Scene):
        return None
    return pictures.ask(rng, weighted(rng, pictures.SKILLS), task.medium)


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
        messages.append({"role": "user", "content": user_content(rng, turn, show=turn.medium is not seen)})
        seen = turn.medium
        if turn is not task:
            messages.append({"role": "assistant", "content": turn.content})
    reasoning = task.reasoning_content if thinking else ""
    return Sample(messages, thinking, reasoning, task.content, task.skill, task.key, task)


def user_content(rng: random.Random, task: Task, show: bool) -> str | list[dict[str, Any]]:
    """The question, with its medium before, after or between text; text alone is one string of paragraphs."""
    if task.medium is None or not show:
        return task.question
    question = {"type": "text", "text": task.question}
    roll = rng.random()
    if roll < 0.6:
        parts = [*task.medium.parts(), question]
    elif roll < 0.85:
        parts = [question, *task.medium.parts()]
    else:
        parts = [{"type": "text", "text": rng.choice(task.medium.lead_ins)}, *task.medium.parts(), question]
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return parts
