"""What is trained when: the mixture of worlds, how hard their pictures are, and the learning rate.

`progress` is the share of the training time that is used up, from 0 to 1, so a schedule does not depend on the machine.
"""

import random

from tools.worlds.sample import Sample, draw
from tools.worlds.task import weighted

LEARNING_RATE, WARMUP_STEPS = 2e-3, 20
# To see one shape is the hardest thing to learn, and many kinds of question at once hide it: it comes first.
FIRST_MIXTURE = {"pictures.describe": 1}
SECOND_MIXTURE = {"pictures": 0.4, "numbers.add": 0.28, "numbers.subtract": 0.22, "numbers.decimals": 0.1}
MIXTURE = {
    "pictures": 0.56,
    "numbers.add": 0.13,
    "numbers.subtract": 0.12,
    "numbers.multiply": 0.03,
    "numbers.decimals": 0.06,
    "self": 0.03,
    "outside": 0.05,
    "conversation": 0.02,
}
QUANTISED_FROM = 0.5  # quantisation-aware from here on


def learning_rate(step: int, progress: float) -> float:
    """Warm up, hold, then fall to zero over the last third."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, 3 * (1 - progress))


def draw_example(seed: int, index: int, progress: float, split: str = "train") -> Sample:
    """One example. Pictures begin small, plain and with one shape: seeing one makes seeing four possible."""
    rng = random.Random(f"{seed} {index} {split}")
    mixture = FIRST_MIXTURE if progress < 0.2 else SECOND_MIXTURE if progress < 0.42 else MIXTURE
    world = weighted(rng, mixture)
    canvas = "full" if split == "held-out" else weighted(rng, canvas_mixture(progress))
    return draw(world, seed, index, split, canvas=canvas, num_shapes=range(1, most_shapes(progress) + 1))


def most_shapes(progress: float) -> int:
    return 1 if progress < 0.42 else 2 if progress < 0.6 else 3 if progress < 0.75 else 4


def canvas_mixture(progress: float) -> dict[str, float]:
    """Backgrounds of any colour hide the shapes at first, and large pictures cost most."""
    if progress < 0.2:
        return {"plain": 1}
    if progress < 0.6:
        return {"plain": 0.4, "small": 0.4, "medium": 0.2}
    return {"small": 0.35, "medium": 0.35, "full": 0.3}
