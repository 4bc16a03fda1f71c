"""PPO on a lexicon's idea of sentiment, with a price on KL and without: what the text looks like.

Published: Ziegler et al. 2019 (arXiv 1909.08593): without the penalty the reward is maximal and the
text nonsense; a target of 6 to 8 nats keeps it readable.
We expect: without a price sentiment nears its maximum of 1, while KL runs away and the same words
come again and again; with a budget of 6 nats most of the sentiment for a KL within 20 % of 6.
"""

from __future__ import annotations

import sys
from functools import partial

from experiments._common import main
from experiments._recipes import run_recipe, table

CAPTION = "Means over prompts with 95 % intervals; of one seed each."

if __name__ == "__main__":
    sys.exit(main("hacking", {"smollm2": partial(run_recipe, "sentiment")}, table))
