"""GRPO on a reward that can be checked: JSON with the keys that were asked for.

Published: Shao et al. 2024 (arXiv 2402.03300) and DeepSeek-AI 2025 (arXiv 2501.12948): with a
checkable reward and groups for a baseline, the share of right answers climbs steadily.
We expect: the share of answers that are JSON with both keys at least doubles in 20 rollouts.
"""

from __future__ import annotations

import sys
from functools import partial

from experiments._common import main
from experiments._recipes import run_recipe, table

CAPTION = "Means over prompts with 95 % intervals; of one seed each."

if __name__ == "__main__":
    sys.exit(main("verifiable", {"smollm2": partial(run_recipe, "json")}, table))
