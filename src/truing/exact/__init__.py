"""Languages small enough to enumerate: what every method aims at, as sums without sampling error.

Tests hold objectives and estimators against this room, and the lab draws from it. float64 torch;
a policy is a table of logits, autograd gives exact gradients.
"""

from truing.exact.best_of_n import (
    best_of_n_kl,
    best_of_n_logps,
    best_of_n_win_rate,
    bond_loss,
    kl_bound,
    log_quantiles,
    vbon_lower_bound,
    vbon_objective,
)
from truing.exact.language import Language
from truing.exact.order_statistics import (
    best_of_n_estimates,
    best_of_n_kl_estimates,
    order_weights,
)
from truing.exact.overoptimisation import (
    Fit,
    Peak,
    bon_gain,
    bon_peak,
    fit_bon,
    fit_rl,
    rl_gain,
    rl_peak,
)
from truing.exact.preferences import (
    bradley_terry,
    bradley_terry_loss,
    components,
    dpo_loss,
    flat_directions,
    independent_pairs,
    ipo_loss,
    ipo_optimum,
    win_rate,
)
from truing.exact.regularised import (
    Frontier,
    best_reward_at,
    expectation,
    frontier,
    kl,
    log_partition,
    optimal_policy,
    policy_gradient,
    rlhf_objective,
    small_kl_reward,
    variance,
)
from truing.exact.values import context_values, token_rewards

__all__ = [
    "Fit",
    "Frontier",
    "Language",
    "Peak",
    "best_of_n_estimates",
    "best_of_n_kl",
    "best_of_n_kl_estimates",
    "best_of_n_logps",
    "best_of_n_win_rate",
    "best_reward_at",
    "bon_gain",
    "bon_peak",
    "bond_loss",
    "bradley_terry",
    "bradley_terry_loss",
    "components",
    "context_values",
    "dpo_loss",
    "expectation",
    "fit_bon",
    "fit_rl",
    "flat_directions",
    "frontier",
    "independent_pairs",
    "ipo_loss",
    "ipo_optimum",
    "kl",
    "kl_bound",
    "log_partition",
    "log_quantiles",
    "optimal_policy",
    "order_weights",
    "policy_gradient",
    "rl_gain",
    "rl_peak",
    "rlhf_objective",
    "small_kl_reward",
    "token_rewards",
    "variance",
    "vbon_lower_bound",
    "vbon_objective",
    "win_rate",
]
