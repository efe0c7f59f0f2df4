"""What is trained when: the mixture of worlds, how hard they are, and the learning rate.

`progress` is the share of the training time that is used up, from 0 to 1, so a schedule does not depend on the machine.
A training that goes on from finished weights counts from 1 to 2.
"""

import math
import random
from collections.abc import Collection
from typing import Any

from tools.worlds.demonstration import Episode
from tools.worlds.episode import draw_episode
from tools.worlds.sample import GALLERY, Sample, draw
from tools.worlds.task import weighted

LEARNING_RATE, WARMUP_STEPS = 2e-3, 20
# To see one shape is the hardest thing to learn, and many kinds of question at once hide it: it comes first, and
# always with thinking, which names place, size, colour and kind in a fixed order. Then numbers, which come quickly
# when they are half of everything. Then all that pictures and numbers can be asked for, and then every world, with more
# and more shapes in a picture. While the rate falls, most is what the model is to be good at.
SEE_UNTIL, COUNT_UNTIL, ASK_UNTIL, FINISH_FROM = 0.09, 0.2, 0.41, 0.61
SEEING = {"pictures.describe": 1}
COUNTING = {"pictures": 0.45, "numbers.add": 0.24, "numbers.subtract": 0.23, "numbers.decimals": 0.08}
ASKING = {
    "pictures": 0.28, GALLERY: 0.28, "numbers.add": 0.09, "numbers.subtract": 0.09, "numbers.multiply": 0.09,
    "numbers.decimals": 0.04, "signs": 0.04, "self": 0.03, "outside": 0.04, "conversation": 0.02,
}  # fmt: skip
EVERYTHING = {
    "pictures": 0.17, GALLERY: 0.12, "numbers.add": 0.035, "numbers.subtract": 0.035, "numbers.multiply": 0.07,
    "numbers.decimals": 0.02, "signs": 0.08, "svg": 0.05, "videos": 0.06, "documents": 0.03, "needles": 0.02,
    "self": 0.02, "outside": 0.03, "conversation": 0.03,
    "tools.choose": 0.05, "tools.parallel": 0.02, "tools.chain": 0.04, "tools.counter": 0.015, "tools.picture": 0.03,
    "tools.crop": 0.015, "tools.none": 0.015, "tools.error": 0.01,
    "swarm.orchestrate": 0.015, "swarm.part": 0.025, "swarm.single": 0.015,
}  # fmt: skip
FINISHING = {
    "pictures": 0.26, GALLERY: 0.24, "numbers.add": 0.05, "numbers.subtract": 0.05, "numbers.multiply": 0.11,
    "numbers.decimals": 0.02, "self": 0.025, "outside": 0.04, "conversation": 0.06,
    "tools.choose": 0.06, "tools.parallel": 0.01, "tools.chain": 0.03, "tools.counter": 0.01, "tools.picture": 0.015,
    "tools.none": 0.01, "tools.error": 0.01,
}  # fmt: skip
WORLDS = tuple(dict.fromkeys("pictures" if skill == GALLERY else skill.partition(".")[0] for skill in EVERYTHING))
GOES_ON = 1.0  # the progress at which a training on finished weights begins
FULL = 0.999  # so far behind its beginning, any training draws its hardest examples
# Enough of what is known to keep and better it; most goes to what has new wordings, or had too little time before.
GOING_ON = {
    "pictures": 0.15, GALLERY: 0.05, "numbers.add": 0.035, "numbers.subtract": 0.12, "numbers.multiply": 0.035,
    "numbers.decimals": 0.07, "signs": 0.055, "svg.write": 0.08, "svg.size": 0.01, "svg.place": 0.025,
    "videos": 0.04, "documents": 0.03, "needles": 0.016, "self": 0.05, "outside": 0.045, "conversation": 0.02,
    "tools.choose": 0.04, "tools.parallel": 0.03, "tools.chain": 0.015, "tools.counter": 0.01, "tools.picture": 0.02,
    "tools.crop": 0.003, "tools.none": 0.008, "tools.error": 0.004,
    "swarm.orchestrate": 0.04, "swarm.part": 0.015, "swarm.single": 0.01,
}  # fmt: skip
HARD = ("signs", "documents", "svg.write")  # go on mostly as large and with texts as long as they get
QUANTISED_FROM = 0.46  # quantisation-aware from here on
# Attention costs the square of the length: one example of 16,000 tokens costs more than all others of a step. A text
# and a swarm are therefore rarely long in training, and long at all only on finished weights.
NEEDLE_TOKENS = (80, 1300)  # short ones more often
LONG_NEEDLE_TOKENS, LONG_NEEDLE_SHARE = (2500, 16000), 0.4
NUM_CALLS = (*range(3, 13), 20, 30, 45, 60)  # of a counter
LONG_NUM_CALLS = (4, 8, 12, 20, 50, 80, 110, 140, 170, 200)
NUM_PARTS = (2, 3, 4, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11, 11, 12, 12)
PARTS_OF_SINGLE = (2, 2, 3, 3, 4, 5, 6)  # one agent alone writes down every call


def learning_rate(step: int, progress: float) -> float:
    """Warm up, hold, then fall to zero over the last 40 %; on finished weights at two fifths of the height."""
    height, end = (0.4, 2) if progress >= GOES_ON else (1, 1)
    return LEARNING_RATE * height * min(1, (step + 1) / WARMUP_STEPS, (end - progress) / 0.4)


def draw_example(
    seed: int, index: int, progress: float, split: str = "train", worlds: Collection[str] = WORLDS
) -> Sample | Episode:
    """One example. Pictures begin small, plain and with one shape: seeing one makes seeing four possible."""
    rng = random.Random(f"{seed} {index} {split}")
    shares = mixture(progress, worlds)
    if split == "held-out":  # a held-out document is a PDF file, and a training does without the extra that opens it
        shares = {world: share for world, share in shares.items() if world != "documents"}
    world = weighted(rng, shares)
    canvas = "full" if split == "held-out" else weighted(rng, canvas_mixture(world, progress))
    shapes = range(1, most_shapes(progress) + 1)
    if world.startswith(("tools.", "swarm.")):
        return draw_episode(world, seed, index, split, **difficulty(world, canvas, shapes, progress))
    thinking = True if progress < SEE_UNTIL else None  # None mixes both modes
    is_long = progress >= GOES_ON and rng.random() < LONG_NEEDLE_SHARE
    lengths = LONG_NEEDLE_TOKENS if is_long else NEEDLE_TOKENS
    num_tokens = round(math.exp(rng.uniform(*map(math.log, lengths))))
    return draw(
        world, seed, index, split, thinking=thinking, canvas=canvas, num_shapes=shapes, num_tokens=num_tokens
    )


def mixture(progress: float, worlds: Collection[str]) -> dict[str, float]:
    """What is drawn, and how often. A phase that has none of these worlds gives way to the one that has all."""
    return within(worlds, phase(progress)) or within(worlds, EVERYTHING)


def within(worlds: Collection[str], shares: dict[str, float]) -> dict[str, float]:
    """Of these shares those of the worlds; a gallery shows pictures."""
    known = {*worlds, GALLERY} if "pictures" in worlds else worlds
    return {skill: share for skill, share in shares.items() if skill.partition(".")[0] in known}


def phase(progress: float) -> dict[str, float]:
    if progress >= GOES_ON:
        return GOING_ON
    if progress < SEE_UNTIL:
        return SEEING
    if progress < COUNT_UNTIL:
        return COUNTING
    if progress < ASK_UNTIL:
        return ASKING
    return EVERYTHING if progress < FINISH_FROM else FINISHING


def difficulty(skill: str, canvas: str, shapes: range, progress: float) -> dict[str, Any]:
    """How hard an episode is. Those that are not named are short enough to be drawn in full."""
    if skill in ("tools.picture", "tools.crop"):
        return {"canvas": canvas, "num_shapes": shapes}
    if skill == "tools.counter":
        return {"num_calls": LONG_NUM_CALLS if progress >= GOES_ON else NUM_CALLS}
    if skill == "swarm.orchestrate":
        return {"num_parts": NUM_PARTS}
    return {"num_parts": PARTS_OF_SINGLE} if skill == "swarm.single" else {}


def most_shapes(progress: float) -> int:
    return 1 if progress < COUNT_UNTIL else 2 if progress < 0.35 else 3 if progress < 0.5 else 4


def canvas_mixture(world: str, progress: float) -> dict[str, float]:
    """Backgrounds of any colour hide the shapes at first, and large pictures cost most."""
    if progress >= GOES_ON and world in HARD:
        return {"small": 0.1, "medium": 0.3, "full": 0.6}
    if progress < SEE_UNTIL:
        return {"plain": 1}
    if progress < 0.4:
        return {"plain": 0.4, "small": 0.4, "medium": 0.2}
    return {"small": 0.3, "medium": 0.35, "full": 0.35}
