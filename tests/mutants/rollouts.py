"""Bugs while answers are drawn, scored and put together."""

from __future__ import annotations

from .mutant import Mutant

COLLECT, BEST = "rollouts/collect.py", "rollouts/best_of_n.py"
NORMALIZE = "rollouts/normalize.py"
COLLECT_TESTS = ("rollouts/test_collect.py", "rollouts/test_collect_extras.py")

MUTANTS = (
    Mutant(
        "scores_go_to_other_completions",
        COLLECT,
        "[next(remaining) for _ in g.completions]) for g in groups]",
        "[next(remaining) for _ in g.completions]) for g in reversed(groups)]",
        COLLECT_TESTS,
        "rewards zipped with completions in another order",
    ),
    Mutant(
        "normaliser_follows_the_policy",
        NORMALIZE,
        '(self.kind == "reference" and self.count)',
        "False",
        COLLECT_TESTS,
        "legacy TRL scales by a running deviation: the reward's unit drifts with the policy",
    ),
    Mutant(
        "greedy_baseline_not_normalised",
        COLLECT,
        '*(["baseline_C"] if self.credit.wants_greedy else [])',
        "",
        COLLECT_TESTS,
        "ReMax with scores in one unit and baselines in another",
    ),
    Mutant(
        "silent_groups_are_kept",
        COLLECT,
        "len(set(group.scores)) > 1",
        "len(set(group.scores)) > 0",
        COLLECT_TESTS,
        "TRL's dapo loss has no dynamic sampling",
    ),
    Mutant(
        "demonstrations_pass_for_samples",
        COLLECT,
        '            columns["demonstration_C"] = _flags(batch, value=True)',
        '            columns["demonstration_C"] = _flags(batch, value=False)',
        COLLECT_TESTS,
        "pretraining text in the policy loss of PPO-ptx",
    ),
    Mutant(
        "groups_are_cut_by_minibatches",
        COLLECT,
        "        size = max(1, self.batch_size // per_group)",
        "        size = max(1, self.batch_size)",
        COLLECT_TESTS,
        "batch size counted in prompts where it is completions",
    ),
    Mutant(
        "best_of_equals_is_the_last",
        BEST,
        "    return max(scored, key=lambda found: found[1])[0]",
        "    return max(reversed(scored), key=lambda found: found[1])[0]",
        COLLECT_TESTS,
        "ties decided by the order of a sort",
    ),
    Mutant(
        "best_of_n_picks_the_worst",
        BEST,
        "    return max(scored,",
        "    return min(scored,",
        COLLECT_TESTS,
        "a reward whose sign is turned round",
    ),
)
