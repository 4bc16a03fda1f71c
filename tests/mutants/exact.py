"""Bugs in the room of exact numbers itself: an oracle that is wrong proves nothing."""

from __future__ import annotations

from .mutant import Mutant

BON_TESTS = ("exact/test_exact_best_of_n.py", "exact/test_exact_golden.py")
ORDER_TESTS = ("exact/test_exact_order_statistics.py",)
REGULARISED_TESTS = ("exact/test_exact_regularised.py", "exact/test_exact_golden.py")
PREFERENCE_TESTS = ("exact/test_exact_preferences.py",)
VALUES_TESTS = ("exact/test_exact_values.py",)
CURVES_TESTS = ("exact/test_exact_overoptimisation.py",)
LANGUAGE_TESTS = ("exact/test_exact_language.py",)

MUTANTS = (
    Mutant(
        "estimator_starts_one_rank_late",
        "exact/order_statistics.py",
        "    k = torch.arange(pool - 1, n - 1, -1, dtype=torch.float64)",
        "    k = torch.arange(pool, n, -1, dtype=torch.float64)",
        ORDER_TESTS,
        "C(k, n − 1) for C(k − 1, n − 1)",
    ),
    Mutant(
        "ties_of_the_pool_by_place",
        "exact/order_statistics.py",
        "    ranked_N = total_L[level_N] / count_L[level_N]",
        "    ranked_N = gold_N[order_N]",
        ORDER_TESTS,
        "samples that tie are ranked by the order they came in",
    ),
    Mutant(
        "best_of_n_knows_no_ties",
        "exact/best_of_n.py",
        "    tied_Y = _log_tied(reference_logps_Y, rewards_Y)\n    quantile_Y",
        "    tied_Y = reference_logps_Y\n    quantile_Y",
        BON_TESTS,
        "the formula for rewards that never tie, used where they do",
    ),
    Mutant(
        "quantile_is_strict",
        "exact/best_of_n.py",
        "    return below_Y[torch.searchsorted(sorted_Y, rewards_Y, right=True) - 1]",
        "    return below_Y[torch.searchsorted(sorted_Y, rewards_Y)]",
        BON_TESTS,
        "P(r < r(y)) for P(r ≤ r(y))",
    ),
    Mutant(
        "bound_without_its_second_term",
        "exact/best_of_n.py",
        "    return math.log(n) - (n - 1) / n",
        "    return math.log(n)",
        BON_TESTS,
        "log n: still a bound, and never reached",
    ),
    Mutant(
        "ties_count_as_wins",
        "exact/best_of_n.py",
        ".exp() - tied_Y / 2",
        ".exp()",
        BON_TESTS,
        "win rates of ties",
    ),
    Mutant(
        "vbon_bound_with_n",
        "exact/best_of_n.py",
        "    return (n - 1) * climb - kl(",
        "    return n * climb - kl(",
        BON_TESTS,
        "KL weight 1/n for 1/(n − 1)",
    ),
    Mutant(
        "bond_directions_change_places",
        "exact/best_of_n.py",
        "    return (1 - backward) * kl(target_Y, logps_Y) + backward * kl(logps_Y, target_Y)",
        "    return backward * kl(target_Y, logps_Y) + (1 - backward) * kl(logps_Y, target_Y)",
        BON_TESTS,
        "forward and backward KL",
    ),
    Mutant(
        "optimum_without_its_reference",
        "exact/regularised.py",
        "    return (reference_logps_Y + rewards_Y / beta).log_softmax(-1)",
        "    return (rewards_Y / beta + 0 * reference_logps_Y).log_softmax(-1)",
        REGULARISED_TESTS,
        "exp(r/β) alone",
    ),
    Mutant(
        "kl_runs_forwards",
        "exact/regularised.py",
        "    return expectation(logps_Y, kl_k1(logps_Y, reference_logps_Y))",
        "    return expectation(reference_logps_Y, kl_k1(reference_logps_Y, logps_Y))",
        REGULARISED_TESTS,
        "KL(ref‖π) called KL(π‖ref)",
    ),
    Mutant(
        "objective_rewards_the_kl",
        "exact/regularised.py",
        "    return expectation(logps_Y, rewards_Y) - beta * kl(",
        "    return expectation(logps_Y, rewards_Y) + beta * kl(",
        REGULARISED_TESTS,
        "the sign of the leash",
    ),
    Mutant(
        "small_kl_law_without_the_two",
        "exact/regularised.py",
        "(2 * divergence * spread).sqrt()",
        "(divergence * spread).sqrt()",
        REGULARISED_TESTS,
        "√(Var·KL) for √(2·Var·KL)",
    ),
    Mutant(
        "ipo_population_target",
        "exact/preferences.py",
        "1 / (2 * tau)",
        "1 / tau",
        PREFERENCE_TESTS,
        "1/τ for 1/(2τ)",
    ),
    Mutant(
        "labels_of_the_population_turned",
        "exact/preferences.py",
        "    return torch.sigmoid(rewards_Y[:, None] - rewards_Y)",
        "    return torch.sigmoid(rewards_Y - rewards_Y[:, None])",
        PREFERENCE_TESTS,
        "P(j ≻ i) for P(i ≻ j)",
    ),
    Mutant(
        "score_after_the_last_token",
        "exact/values.py",
        "language.lengths_Y[:, None] - 1",
        "language.max_length - 1",
        VALUES_TESTS,
        "a score in the last column whatever the length (lm-human-preferences)",
    ),
    Mutant(
        "values_without_their_weights",
        "exact/values.py",
        "    parts = (onward_YT.exp() * returns_YT)[mask_YT]",
        "    parts = returns_YT[mask_YT]",
        VALUES_TESTS,
        "a sum over sentences that is no expectation",
    ),
    Mutant(
        "peak_of_rl_one_step_late",
        "exact/overoptimisation.py",
        "    distance = math.exp(alpha / beta - 1)",
        "    distance = math.exp(alpha / beta)",
        CURVES_TESTS,
        "the zero taken for the peak",
    ),
    Mutant(
        "padding_has_log_probs",
        "exact/language.py",
        "[self.contexts_YT, self.tokens_YT] * self.mask_YT",
        "[self.contexts_YT, self.tokens_YT]",
        LANGUAGE_TESTS,
        "sums over padding",
    ),
)
