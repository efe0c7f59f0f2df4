"""What is trained when: the mixture of worlds, how hard their pictures are, and the learning rate.

`progress` is the share of the training time that is used up, from 0 to 1, so a schedule does not depend on the machine.
"""

import random

from tools.worlds.sample import Sample, draw
from tools.worlds.task import weighted

LEARNING_RATE, WARMUP_STEPS = 2e-3, 20
# To see one shape is the hardest thing to learn, and many kinds of question at once hide it: it comes first.
FIRST_MIXTURE = {"pictures.describe": 0.7, "numbers.add": 0.15, "numbers.subtract": 0.15}
MIXTURE = {
    "pictures": 0.58,
    "numbers.add": 0.11,
    "numbers.subtract": 0.10,
    "numbers.multiply": 0.05,
    "numbers.decimals": 0.06,
    "self": 0.03,
    "outside": 0.05,
    "conversation": 0.02,
}


def learning_rate(step: int, progress: float) -> float:
    """Warm up, hold, then fall to zero over the second half."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, 2 * (1 - progress))


def draw_example(seed: int, index: int, progress: float, split: str = "train") -> Sample:
    """One example. Pictures begin small with one shape, and grow: seeing one makes seeing four possible."""
    rng = random.Random(f"{seed} {index} {split}")
    world = weighted(rng, FIRST_MIXTURE if progress < 0.15 else MIXTURE)
    canvas = "full" if split == "held-out" else weighted(rng, canvas_mixture(progress))
    return draw(world, seed, index, split, canvas=canvas, num_shapes=range(1, most_shapes(progress) + 1))


def most_shapes(progress: float) -> int:
    return 1 if progress < 0.35 else 2 if progress < 0.5 else 3 if progress < 0.6 else 4


def canvas_mixture(progress: float) -> dict[str, float]:
    """Large pictures cost most, so they come last."""
    if progress < 0.35:
        return {"small": 1}
    return {"small": 1, "medium": 1} if progress < 0.65 else {"small": 0.3, "medium": 0.35, "full": 0.35}
