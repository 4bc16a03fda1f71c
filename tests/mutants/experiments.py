"""Bugs in Best-of-N's curve: what experiments are read off."""

from __future__ import annotations

from .mutant import Mutant

ORDER, CURVE = "exact/order_statistics.py", "rollouts/best_of_n.py"
STAGE = "pipeline/stages/best_of_n.py"
ORDER_TESTS = ("exact/test_exact_order_statistics.py",)
CURVE_TESTS = ("rollouts/test_best_of_n.py",)
STAGE_TESTS = ("pipeline/test_best_of_n_stage.py",)

MUTANTS = (
    Mutant(
        "kl_of_a_pool_calls_every_sample_an_atom",
        ORDER,
        "torch.where(count_L > 1, atom_L, smooth_L)",
        "atom_L",
        ORDER_TESTS,
        "the plug-in estimate: at n = N it is log N's shadow, far below the KL",
    ),
    Mutant(
        "kl_of_a_pool_knows_no_ties",
        ORDER,
        "torch.where(count_L > 1, atom_L, smooth_L)",
        "smooth_L",
        ORDER_TESTS,
        "the bound, reported as the KL of a small discrete language",
    ),
    Mutant(
        "curve_picks_by_gold",
        CURVE,
        "best_of_n_estimates(r_N, g_N, sizes)",
        "best_of_n_estimates(g_N, r_N, sizes)",
        CURVE_TESTS,
        "the reward that picks and the one that looks on change places",
    ),
    Mutant(
        "a_failed_score_is_a_zero",
        CURVE,
        "in zip(proxy, golds, strict=True)",
        "in zip(*([[s or 0.0 for s in pool] for pool in side] for side in (proxy, golds)))",
        CURVE_TESTS,
        "failed rewards counted as 0",
    ),
    Mutant(
        "a_missing_score_can_win",
        CURVE,
        "for i, score in enumerate(scores) if score is not None]",
        "for i, score in enumerate(s or 0.0 for s in scores)]",
        CURVE_TESTS,
        "a completion whose reward failed beats all that scored below 0",
    ),
    Mutant(
        "gold_curve_of_the_proxy",
        STAGE,
        "self._scores(context, info, drawn, config.gold, memory)",
        "self._scores(context, info, drawn, config.reward, memory)",
        STAGE_TESTS,
        "a gold curve that is the proxy's",
    ),
    Mutant(
        "an_estimate_is_drawn_as_the_bound",
        "evaluation/plots.py",
        'far = [max(0.0, point["kl_bound"] - x)',
        "far = [max(0.0, x - x)",
        ("evaluation/test_best_of_n_picture.py",),
        "a bound that is not shown, so that the KL looks known",
    ),
)
