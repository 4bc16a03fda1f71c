"""Best-of-N: draw n completions, keep the one with the best score.

How far that is from the sampler, `truing.exact.kl_bound` says: a bound, never reported as a KL.
"""

from __future__ import annotations

from collections.abc import Sequence


def best(scores: Sequence[float]) -> int:
    """Index of the best score; the first of equals, so that the result does not depend on luck."""
    return max(range(len(scores)), key=scores.__getitem__)
