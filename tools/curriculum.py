"""What is trained when: the mixture of worlds, how hard their pictures are, and the learning rate.

`progress` is the share of the training time that is used up, from 0 to 1, so a schedule does not depend on the machine.
"""

import random

from tools.worlds.sample import Sample, draw
from tools.worlds.task import weighted

LEARNING_RATE, WARMUP_STEPS = 2e-3, 20
MIXTURE = {"pictures": 0.58, "numbers": 0.30, "self": 0.04, "outside": 0.05, "conversation": 0.03}


def learning_rate(step: int, progress: float) -> float:
    """Warm up, hold, then fall to zero over the second half."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, 2 * (1 - progress))


def draw_example(seed: int, index: int, progress: float, split: str = "train") -> Sample:
    """One example. Pictures begin small with one shape, and grow: seeing one makes seeing four possible."""
    rng = random.Random(f"{seed} {index} {split}")
    canvas = "full" if split == "held-out" else weighted(rng, canvas_mixture(progress))
    num_shapes = range(1, most_shapes(progress) + 1)
    return draw(weighted(rng, MIXTURE), seed, index, split, canvas=canvas, num_shapes=num_shapes)


def most_shapes(progress: float) -> int:
    return 1 if progress < 0.3 else 2 if progress < 0.45 else 3 if progress < 0.55 else 4


def canvas_mixture(progress: float) -> dict[str, float]:
    """Large pictures cost most, so they come last."""
    if progress < 0.3:
        return {"small": 1}
    return {"small": 1, "medium": 1} if progress < 0.55 else {"small": 0.3, "medium": 0.35, "full": 0.35}
