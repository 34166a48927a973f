"""What is said of measured times, and when there are enough of them. tools/README.md has the rules in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WINDOW, AGREE = 5, 0.01
"""Times are stable where the medians of the last two windows of so many differ by no more than this share."""

WARMUP_SECONDS = 1.0
"""How long a warm-up that waits for stable times may last, after its first run."""

LEAST_ROUNDS, MOST_ROUNDS, ROUND_SECONDS = 10, 50, 3.0
"""Rounds, where no number is asked for: as many as each model runs in so many seconds, but not fewer or more."""

RESAMPLES, CONFIDENCE = 2000, 0.95
LEAST_FOR_INTERVAL = 5
"""Rounds below which a bootstrap says nothing."""


def is_stable(times: Sequence[float]) -> bool:
    """Whether times have settled."""
    from statistics import median

    if len(times) < 2 * WINDOW:
        return False
    before, last = median(times[-2 * WINDOW : -WINDOW]), median(times[-WINDOW:])
    return abs(last - before) <= AGREE * before


def rounds_for(seconds: float | None) -> int:
    """How many rounds, where a model's turn in one takes so many seconds; None: that is not known."""
    return min(MOST_ROUNDS, max(LEAST_ROUNDS, int(ROUND_SECONDS / seconds))) if seconds else LEAST_ROUNDS


def statistics(times: Sequence[float]) -> dict[str, Any]:
    """The times, and what is said of them; percentiles between two times are interpolated. times: at least one.

    spread: the third quartile minus the first.
    """
    import numpy as np

    low, median, high, p90, p99 = (float(value) for value in np.percentile(times, (25, 50, 75, 90, 99)))
    return {
        "times": list(times),
        "runs": len(times),
        "median": median,
        "p90": p90,
        "p99": p99,
        "mean": float(np.mean(times)),
        "min": min(times),
        "spread": high - low,
    }


def ratio_interval(times: Sequence[float], first: Sequence[float], paired: bool) -> tuple[float, float] | None:
    """The interval of 95 % for the ratio of the medians of `times` and `first`; None for too few.

    The bootstrap's percentiles (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): medians of
    times that are drawn again from those measured. paired: entries of one index are of one round, and are drawn
    together, so that what slows a round down for both does not count. The draws are the same every time.
    """
    import numpy as np

    if min(len(times), len(first)) < LEAST_FOR_INTERVAL:
        return None
    draw = np.random.default_rng(0)
    chosen = draw.integers(0, len(times), (RESAMPLES, len(times)))
    others = chosen if paired else draw.integers(0, len(first), (RESAMPLES, len(first)))
    ratios = np.median(np.asarray(times)[chosen], axis=1) / np.median(np.asarray(first)[others], axis=1)
    outside = 100 * (1 - CONFIDENCE) / 2
    low, high = (float(value) for value in np.percentile(ratios, (outside, 100 - outside)))
    return low, high
