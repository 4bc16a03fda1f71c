"""Best-of-N: draw n completions, keep the one with the best score.

Its distance to the sampler is known: KL ≤ log n − (n − 1)/n nats, with equality where no two
completions tie (Beirami et al. 2024, arXiv 2401.01879). It is a bound, never reported as a KL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def best(scores: Sequence[float]) -> int:
    """Index of the best score; the first of equals, so that the result does not depend on luck."""
    return max(range(len(scores)), key=scores.__getitem__)


def kl_bound(n: int) -> float:
    """log n − (n − 1)/n: what the KL to the sampler is at most, nats. n ≥ 1."""
    return math.log(n) - (n - 1) / n
