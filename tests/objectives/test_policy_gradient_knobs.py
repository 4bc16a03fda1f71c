"""What each number of the policy-gradient objectives and of group credit does, on a grid of ratios.

Formulas against the papers are in the oracles beside this file; here only the direction that a
field's docstring promises. Rising values of a field must give strictly more, or strictly less.
"""

from __future__ import annotations

import pytest
import torch

from objectives.flat_batches import make_batch, prepare
from truing import objectives
from truing.batch import Outputs
from truing.rollouts.credit.group import GroupCredit

LOG_RATIOS = [-1.2, -0.6, -0.3, -0.15, -0.05, 0.0, 0.05, 0.15, 0.3, 0.6, 1.2]
SIGNS = [1.0] * len(LOG_RATIOS) + [-1.0] * len(LOG_RATIOS)
COUNT = len(SIGNS)


def slopes(method, advantages=SIGNS, **fields):
    """Output -> its gradient, one token a completion."""
    subject = objectives.find(method)(**fields)
    moved = LOG_RATIOS * 2
    batch = make_batch(
        [1] * COUNT,
        [i % len(LOG_RATIOS) for i in range(COUNT)],
        sampled_logps_N=[-2.0] * COUNT,
        reference_logps_N=[-2.5] * COUNT,
        advantages_N=advantages,
        values_N=[0.0] * COUNT,
        returns_N=[2.0] * COUNT,
        demonstration_C=[i >= COUNT - 4 for i in range(COUNT)],
    )
    leaves = {
        "logps_N": torch.tensor([x - 2 for x in moved], dtype=torch.float64),
        "entropy_N": torch.ones(COUNT, dtype=torch.float64),
        "values_N": torch.tensor(moved, dtype=torch.float64),
    }
    outputs = Outputs(**{name: leaf.requires_grad_() for name, leaf in leaves.items()})
    ((batch, outputs),) = prepare(subject, [(batch, outputs)])
    loss = subject(batch, outputs)
    (loss.total / loss.weight).backward()
    return {
        name: torch.zeros(COUNT) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }


def live(found, name="logps_N"):
    return int((found[name] != 0).sum())


def pull(found, name="logps_N"):
    return found[name].abs().sum().item()


MEASURES = {
    "tokens with a gradient": live,
    "values with a gradient": lambda found: live(found, "values_N"),
    "size of the pull": pull,
    "pull at the values": lambda found: pull(found, "values_N"),
    "pull at the entropy": lambda found: pull(found, "entropy_N"),
    "pull at demonstrations": lambda found: found["logps_N"][-4:].abs().sum().item(),
    "pull where A > 0": lambda found: found["logps_N"][: COUNT // 2].abs().sum().item(),
    "pull where A < 0": lambda found: found["logps_N"][COUNT // 2 :].abs().sum().item(),
}
RANGES, COEFFICIENTS, LIMITS = (0.1, 0.4, 0.9), (0.0, 0.1, 0.5), (8, 16, 64)
BARE, CONSTANT = {"beta": 0.0}, {"aggregation": "constant"}
STILL = {"advantages": [0.0] * COUNT}
MOVES = {
    "ppo.cliprange": (RANGES, "more", "tokens with a gradient", {}),
    "ppo.cliprange_value": (RANGES, "more", "values with a gradient", {}),
    "ppo.vf_coef": (COEFFICIENTS, "more", "pull at the values", {}),
    "ppo.dual_clip": ((1.5, 2.5, 4.0), "more", "tokens with a gradient", {}),
    "ppo.entropy_coef": (COEFFICIENTS, "more", "pull at the entropy", {}),
    "ppo.ptx_coef": ((0.1, 0.5, 2.0), "more", "pull at demonstrations", {}),
    "grpo.epsilon": (RANGES, "more", "tokens with a gradient", BARE | {"epsilon_high": 0.2}),
    "grpo.epsilon_high": (RANGES, "more", "tokens with a gradient", BARE),
    "grpo.beta": (COEFFICIENTS, "more", "size of the pull", STILL),
    "grpo.dual_clip": ((1.5, 2.5, 4.0), "more", "tokens with a gradient", BARE),
    "grpo.entropy_coef": (COEFFICIENTS, "more", "pull at the entropy", {}),
    "grpo.max_completion_length": (LIMITS, "less", "size of the pull", CONSTANT),
    "rloo.cliprange": (RANGES, "more", "tokens with a gradient", {}),
    "reinforce.max_completion_length": (LIMITS, "less", "size of the pull", CONSTANT),
    "cispo.ratio_max": ((1.1, 1.5, 3.0), "more", "size of the pull", {}),
    "cispo.ratio_min": ((0.3, 0.6, 0.9), "more", "size of the pull", {}),
    "cispo.max_completion_length": (LIMITS, "less", "size of the pull", CONSTANT),
    "gspo.epsilon": (RANGES, "more", "tokens with a gradient", {"epsilon_high": 0.2}),
    "gspo.epsilon_high": (RANGES, "more", "tokens with a gradient", {"epsilon": 0.2}),
    "gmpo.log_clip": ((0.1, 0.4, 1.0), "more", "tokens with a gradient", {}),
    "sapo.tau_positive": ((0.5, 1.0, 3.0), "less", "pull where A > 0", {}),
    "sapo.tau_negative": ((0.5, 1.0, 3.0), "less", "pull where A < 0", {}),
    "sapo.max_completion_length": (LIMITS, "less", "size of the pull", CONSTANT),
}


@pytest.mark.parametrize("knob", MOVES)
def test_a_number_moves_the_gradient_as_its_field_says(knob):
    method, _, name = knob.partition(".")
    values, direction, measure, fixed = MOVES[knob]
    seen = [MEASURES[measure](slopes(method, **fixed | {name: value})) for value in values]
    if direction == "less":
        seen.reverse()
    assert seen[0] < seen[1] < seen[2]


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_without_a_dual_clip_nothing_is_cut_below(method):
    fixed = BARE if method == "grpo" else {}
    assert live(slopes(method, **fixed)) == live(slopes(method, **fixed, dual_clip=4.0))


def test_without_a_range_of_values_none_is_silent():
    seen = slopes("ppo", cliprange_value=None)
    assert live(seen, "values_N") == COUNT > live(slopes("ppo"), "values_N")


# Credit


def group_advantages(scores, drift=None, lengths=None, **fields):
    batch = make_batch(
        lengths or [1] * len(scores),
        [i // 2 for i in range(len(scores))],
        sampled_logps_N=[-1.0 + d for d in (drift or [0.0] * sum(lengths or [1] * len(scores)))],
        reference_logps_N=[-1.0] * sum(lengths or [1] * len(scores)),
        scores_C=scores,
        finished_C=[1] * len(scores),
    )
    (seen,), _ = GroupCredit(**fields)([batch])
    return seen["advantages_N"][seen.last_C].tolist()


def test_scale_epsilon():
    """Larger damps groups whose scores hardly differ; one that differs much hardly notices."""
    small, large = (group_advantages([0.0, 1e-3, 0.0, 10.0], scale_epsilon=e) for e in (1e-6, 1e-2))
    assert large[1] < 0.1 * small[1]
    assert large[3] > 0.99 * small[3] > 0


def test_kl_coef_of_groups():
    """Larger stays closer: of two equal scores the one that drifted pays, and pays more."""
    paid = [
        group_advantages([1.0, 1.0], [0.5, -0.1], kl_coef=c, scale_rewards="none")
        for c in (0.0, 0.1, 0.5)
    ]
    assert paid[0] == [0.0, 0.0]
    assert paid[2][0] < paid[1][0] < 0 < paid[1][1] < paid[2][1]


def test_overlong_cache():
    """A wider one begins earlier; at the limit all cost 1."""
    costs = [
        group_advantages(
            [0.0] * 4,
            lengths=[4, 6, 8, 10],
            overlong_cache=cache,
            max_completion_length=10,
            baseline="none",
            scale_rewards="none",
        )
        for cache in (2, 4, 0.8)
    ]
    assert costs == [
        pytest.approx([0, 0, 0, -1]),
        pytest.approx([0, 0, -0.5, -1]),
        pytest.approx([-0.25, -0.5, -0.75, -1]),
    ]
