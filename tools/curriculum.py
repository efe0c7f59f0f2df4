"""What is trained when: the mixture of worlds, how hard their pictures are, and the learning rate.

`progress` is the share of the training time that is used up, from 0 to 1, so a schedule does not depend on the machine.
"""

import random

from tools.worlds.sample import Sample, draw
from tools.worlds.task import weighted

LEARNING_RATE, WARMUP_STEPS = 2e-3, 20
# To see one shape is the hardest thing to learn, and many kinds of question at once hide it: it comes first, and
# always with thinking, which names place, size, colour and kind in a fixed order. Then numbers, which come quickly
# when they are half of everything. Then all of it, with more and more shapes in a picture.
SEE_UNTIL, COUNT_UNTIL = 0.18, 0.4
FIRST_MIXTURE = {"pictures.describe": 1}
SECOND_MIXTURE = {"pictures": 0.45, "numbers.add": 0.24, "numbers.subtract": 0.23, "numbers.decimals": 0.08}
MIXTURE = {
    "pictures": 0.6,
    "numbers.add": 0.1,
    "numbers.subtract": 0.11,
    "numbers.multiply": 0.07,
    "numbers.decimals": 0.04,
    "self": 0.025,
    "outside": 0.035,
    "conversation": 0.02,
}
QUANTISED_FROM = 0.5  # quantisation-aware from here on


def learning_rate(step: int, progress: float) -> float:
    """Warm up, hold, then fall to zero over the last 40 %."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, (1 - progress) / 0.4)


def draw_example(seed: int, index: int, progress: float, split: str = "train") -> Sample:
    """One example. Pictures begin small, plain and with one shape: seeing one makes seeing four possible."""
    rng = random.Random(f"{seed} {index} {split}")
    mixture = FIRST_MIXTURE if progress < SEE_UNTIL else SECOND_MIXTURE if progress < COUNT_UNTIL else MIXTURE
    world = weighted(rng, mixture)
    canvas = "full" if split == "held-out" else weighted(rng, canvas_mixture(progress))
    shapes = range(1, most_shapes(progress) + 1)
    thinking = True if progress < SEE_UNTIL else None  # None mixes both modes
    return draw(world, seed, index, split, thinking=thinking, canvas=canvas, num_shapes=shapes)


def most_shapes(progress: float) -> int:
    return 1 if progress < COUNT_UNTIL else 2 if progress < 0.55 else 3 if progress < 0.7 else 4


def canvas_mixture(progress: float) -> dict[str, float]:
    """Backgrounds of any colour hide the shapes at first, and large pictures cost most."""
    if progress < SEE_UNTIL:
        return {"plain": 1}
    if progress < 0.55:
        return {"plain": 0.4, "small": 0.4, "medium": 0.2}
    return {"small": 0.35, "medium": 0.35, "full": 0.3}
