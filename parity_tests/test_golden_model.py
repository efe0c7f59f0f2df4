"""Two small published-layout checkpoints with activations that were computed elsewhere: the model reproduces them.

Origin and conventions: golden/model/README.md.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from parity_tests.agreement import FLOAT32, assert_agrees, assert_caught
from parity_tests.mistakes import IMAGE_MISTAKES, TEXT_MISTAKES
from reference.model import load_model
from reference.stages import observing

pytestmark = pytest.mark.parity
GOLDEN = Path(__file__).parent / "golden" / "model"
CASES = ("text_small", "image_small")


def run_case(case: str, model: nn.Module, form: str = "auto") -> dict[str, Tensor]:
    """Every stage of one forward on the case's input."""
    stages: dict[str, Tensor] = {}

    def record(name: str, tensor: Tensor) -> Tensor:
        stages[name] = tensor
        return tensor

    inputs = load_file(GOLDEN / case / "input.safetensors")
    with torch.no_grad(), observing(record):
        model(inputs.pop("input_ids"), form=form, **inputs)
    return stages


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
@pytest.mark.parametrize("case", CASES)
def test_every_expected_activation_is_reproduced(case: str, form: str) -> None:
    stages = run_case(case, load_model(GOLDEN / case), form)
    for name, expected in load_file(GOLDEN / case / "expected.safetensors").items():
        assert_agrees(f"golden {name}", stages[name], expected, FLOAT32)


@pytest.mark.parametrize("case", CASES)
def test_float64_run_lands_on_the_expected_activations_too(case: str) -> None:
    stages = run_case(case, load_model(GOLDEN / case, torch.float64))
    for name, expected in load_file(GOLDEN / case / "expected.safetensors").items():
        assert stages[name].dtype == torch.float64
        assert_agrees(f"golden {name}, float64", stages[name], expected, FLOAT32)


@pytest.mark.parametrize(
    ("case", "mistake"),
    [("text_small", name) for name in TEXT_MISTAKES] + [("image_small", name) for name in IMAGE_MISTAKES],
)
def test_mistake_is_noticed(case: str, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(GOLDEN / case)
    (TEXT_MISTAKES | IMAGE_MISTAKES)[mistake](monkeypatch, model)
    expected = load_file(GOLDEN / case / "expected.safetensors")
    stages = run_case(case, model)
    stage = "logits" if case == "text_small" else "vision.features"
    assert_caught(f"golden {stage}: {mistake}", stages[stage], expected[stage], FLOAT32)
    assert_caught(f"golden logits: {mistake}", stages["logits"], expected["logits"], FLOAT32)
