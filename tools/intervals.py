"""How sure a measured share is, and how sure the difference of two shares of the same questions is."""

import math

Z_95 = 1.959964  # two-sided 95 % of the normal distribution


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share. Source: Wilson 1927, doi 10.1080/01621459.1927.10502953."""
    share, z2 = right / n, Z_95 * Z_95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """95 % interval of first share minus second, from n questions that both answered.

    Only questions that exactly one of them got right count: `only_first` and `only_second`. One is added to each, so
    that no disagreement at all still leaves an interval. Source: Bonett and Price 2012, doi 10.3102/1076998611411915.
    """
    first, second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    difference = first - second
    half = Z_95 * math.sqrt((first + second - difference * difference) / (n + 2))
    return max(-1.0, difference - half), min(1.0, difference + half)
