"""Bugs in the reward models' objectives."""

from __future__ import annotations

from .mutant import Mutant

BT, RANKING = "objectives/reward/bradley_terry.py", "objectives/reward/ranking.py"
BT_TESTS = ("objectives/test_bradley_terry_oracle.py",)
REWARD_TESTS = ("objectives/test_reward_oracle.py",)

MUTANTS = (
    Mutant(
        "margin_given_away",
        BT,
        "    d_P = chosen_P - rejected_P - margin_P",
        "    d_P = chosen_P - rejected_P + margin_P",
        (*BT_TESTS, *REWARD_TESTS),
        "the sign of Llama 2's margin",
    ),
    Mutant(
        "margin_ignored",
        BT,
        "    d_P = chosen_P - rejected_P - margin_P",
        "    d_P = chosen_P - rejected_P",
        (*BT_TESTS, *REWARD_TESTS),
        "OpenRLHF's LogExpLoss takes a margin and ignores it",
    ),
    Mutant(
        "reward_loss_overflows",
        BT,
        "    return -probability_P * logsigmoid(d_P) - (1 - probability_P) * logsigmoid(-d_P)",
        "    return probability_P * (1 + (-d_P).exp()).log()"
        " + (1 - probability_P) * (1 + d_P.exp()).log()",
        BT_TESTS,
        "OpenRLHF's log(1 + exp(r_l − r_w)) overflows",
    ),
    Mutant(
        "smoothing_of_the_reward_ignored",
        BT,
        "probability_P + self.label_smoothing * (1 - 2 * probability_P)",
        "probability_P",
        (*BT_TESTS, *REWARD_TESTS),
        "a knob without effect",
    ),
    Mutant(
        "centring_of_the_difference",
        BT,
        "(chosen_P + rejected_P).square()",
        "(chosen_P - rejected_P).square()",
        BT_TESTS,
        "a penalty on the margin in place of the mean",
    ),
    Mutant(
        "plackett_luce_backwards",
        RANKING,
        "(scores_C <= scores_C[:, None])",
        "(scores_C >= scores_C[:, None])",
        REWARD_TESTS,
        "the worst picked first",
    ),
    Mutant(
        "long_rankings_weigh_more",
        RANKING,
        " / pairs_G.clamp(min=1)",
        "",
        REWARD_TESTS,
        "all pairs of a ranking as independent examples: InstructGPT's reward model overfitted",
    ),
    Mutant(
        "best_is_the_worst",
        RANKING,
        'scatter_reduce(0, group_C, scores_C, "amax")[group_C]',
        'scatter_reduce(0, group_C, scores_C, "amin", include_self=False)[group_C]',
        REWARD_TESTS,
        "argmin for argmax",
    ),
    Mutant(
        "steps_judged_the_wrong_way",
        "objectives/reward/process_reward.py",
        "right_S.to(scores_S.dtype)",
        "1 - right_S.to(scores_S.dtype)",
        REWARD_TESTS,
        "labels of the other class",
    ),
)
