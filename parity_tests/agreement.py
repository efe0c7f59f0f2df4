"""How closely two computations of the same stage agree: every tolerance of the project, in one place.

The measure is the relative L2 distance |out - expected| / |expected|, computed in float64. Each measurement is kept
in RECORDS; the test run prints the worst per stage and writes them all with `--agreement-json FILE`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT64 = 1e-12   # two ways of writing the same formula, in float64
FLOAT32 = 1e-5    # two implementations, both in float32: they differ in the order of sums
BATCH = 1e-6      # the same float32 computation alone, in a batch, padded, or through the cache
BFLOAT16 = 2e-2   # bfloat16 against float32 under the same experts: 8 bits of mantissa through a few layers


@dataclass(frozen=True)
class Measurement:
    """One comparison. `caught` marks a deliberately wrong variant, whose error has to exceed the tolerance."""

    stage: str
    error: float
    tolerance: float
    caught: bool = False


RECORDS: list[Measurement] = []


def relative_l2(out: Tensor, expected: Tensor) -> float:
    """|out - expected| / |expected| in float64; |out| itself where `expected` is all zero. NaN and Inf give inf."""
    if out.shape != expected.shape:
        raise AssertionError(f"shapes differ: {tuple(out.shape)} and {tuple(expected.shape)}")
    out, expected = (tensor.detach().cpu().to(torch.float64) for tensor in (out, expected))
    distance, size = (out - expected).norm().item(), expected.norm().item()
    error = distance / size if size > 0 else distance
    return error if error < float("inf") else float("inf")  # a NaN compares false, and is no agreement


def assert_agrees(stage: str, out: Tensor, expected: Tensor, tolerance: float) -> float:
    """Fail if `out` is further than `tolerance` from `expected`. Returns the error."""
    error = relative_l2(out, expected)
    RECORDS.append(Measurement(stage, error, tolerance))
    assert error <= tolerance, f"{stage}: relative L2 {error:.3g}, tolerance {tolerance:.3g}"
    return error


def assert_caught(stage: str, wrong: Tensor, expected: Tensor, tolerance: float, factor: float = 10) -> float:
    """Fail unless the deliberately wrong variant is at least `factor` times beyond `tolerance`: the test has teeth."""
    error = relative_l2(wrong, expected)
    RECORDS.append(Measurement(stage, error, tolerance, caught=True))
    assert error >= factor * tolerance, (
        f"{stage}: the wrong variant is off by only {error:.3g}; a tolerance of {tolerance:.3g} would hardly notice")
    return error


def worst_per_stage(records: list[Measurement]) -> list[tuple[Measurement, int]]:
    """Per stage the measurement nearest to (or furthest beyond) its tolerance and how many there were, worst first."""
    by_stage: dict[str, list[Measurement]] = {}
    for record in records:
        if not record.caught:
            by_stage.setdefault(record.stage, []).append(record)
    worst = [(max(group, key=strain), len(group)) for group in by_stage.values()]
    return sorted(worst, key=lambda pair: strain(pair[0]), reverse=True)


def strain(record: Measurement) -> float:
    """Share of the tolerance that the error uses up."""
    if record.tolerance == 0:
        return 0.0 if record.error == 0 else float("inf")
    return record.error / record.tolerance
