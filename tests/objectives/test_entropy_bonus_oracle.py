"""The entropy bonus of PPO and GRPO, in scalars: L − c_H · (the average that the loss takes) of H.

Schulman et al. 2017, eq. 9: the bonus is the mean over the same states as the surrogate.
"""

from __future__ import annotations

import pytest
import torch
from flat_batches import make_batch, prepare
from pydantic import ValidationError

from truing import objectives
from truing.batch import Outputs, combine

LENGTHS = [2, 1, 3, 2]
ENTROPY = [1.9, 0.3, 1.1, 0.0, 2.2, 0.7, 0.4, 1.6]
COEF = 0.13
ROWS = [ENTROPY[0:2], ENTROPY[2:3], ENTROPY[3:6], ENTROPY[6:8]]
BONUS = {
    "token": sum(ENTROPY) / 8,
    "sequence": sum(sum(row) / len(row) for row in ROWS) / 4,
    "sequence_sum": sum(ENTROPY) / 4,
    "constant": sum(ENTROPY) / 7 / 4,
}
SHARE = {
    "token": [1 / 8] * 8,
    "sequence": [1 / len(row) / 4 for row in ROWS for _ in row],
    "sequence_sum": [1 / 4] * 8,
    "constant": [1 / 28] * 8,
}


def batch(**more):
    columns = {
        "sampled_logps_N": [-1.0] * 8,
        "reference_logps_N": [-1.5] * 8,
        "advantages_N": [0.5, -1.0, 2.0, 0.0, -0.3, 1.0, 1.0, -2.0],
        "returns_N": [1.0] * 8,
        "values_N": [0.0] * 8,
    }
    return make_batch(LENGTHS, [0, 0, 1, 1], **columns | more)


def judged(name, given=None, entropy=ENTROPY, **fields):
    """(mean loss, gradients of log-probs and entropies, metrics)."""
    subject = objectives.find(name)(**fields)
    logps_N = torch.linspace(-1.4, -0.6, 8, dtype=torch.float64, requires_grad=True)
    entropy_N = torch.tensor(entropy, dtype=torch.float64, requires_grad=True)
    values_N = torch.full((8,), 0.5, dtype=torch.float64)
    outputs = Outputs(logps_N=logps_N, entropy_N=entropy_N, values_N=values_N)
    ((whole, outputs),) = prepare(subject, [(given or batch(), outputs)])
    loss = subject(whole, outputs)
    mean = loss.total / loss.weight
    by_logp, by_entropy = torch.autograd.grad(mean, [logps_N, entropy_N], allow_unused=True)
    return mean.item(), by_logp, by_entropy, combine([loss.metrics])


CASES = [("ppo", {}, "token")]
CASES += [("grpo", {"aggregation": kind, "max_completion_length": 7}, kind) for kind in BONUS]


@pytest.mark.parametrize(("name", "fields", "kind"), CASES, ids=str)
def test_the_bonus_is_averaged_as_the_loss_is(name, fields, kind):
    plain, pull, unread, _ = judged(name, **fields)
    assert unread is None
    rewarded, same_pull, slope, metrics = judged(name, **fields, entropy_coef=COEF)
    assert rewarded == pytest.approx(plain - COEF * BONUS[kind], abs=1e-12)
    assert slope.tolist() == pytest.approx([-COEF * share for share in SHARE[kind]], abs=1e-12)
    assert torch.equal(pull, same_pull)
    assert metrics["loss"] == pytest.approx(rewarded, abs=1e-6)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_more_entropy_is_a_lower_loss_and_a_larger_coefficient_pays_more(name):
    open_minded = [h + 1 for h in ENTROPY]
    falls = [
        judged(name, entropy_coef=c)[0] - judged(name, entropy=open_minded, entropy_coef=c)[0]
        for c in (0.0, 0.1, 0.2)
    ]
    assert falls == pytest.approx([0.0, 0.1, 0.2], abs=1e-12)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_the_entropy_is_measured_whether_or_not_it_pays(name):
    key = {"ppo": "policy/entropy_avg", "grpo": "entropy"}[name]
    for coef in (0.0, COEF):
        assert judged(name, entropy_coef=coef)[3][key] == pytest.approx(sum(ENTROPY) / 8, rel=1e-6)


def test_demonstrations_have_no_bonus():
    shown = batch(demonstration_C=[0, 0, 0, 1])
    plain, *_ = judged("ppo", shown, ptx_coef=0.5)
    rewarded, _, slope, _ = judged("ppo", shown, ptx_coef=0.5, entropy_coef=COEF)
    assert rewarded == pytest.approx(plain - COEF * sum(ENTROPY[:6]) / 6, abs=1e-12)
    assert slope.tolist() == pytest.approx([-COEF / 6] * 6 + [0, 0], abs=1e-12)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_it_is_off_by_default_and_cannot_be_negative(name):
    assert objectives.find(name)().entropy_coef == 0
    with pytest.raises(ValidationError):
        objectives.find(name)(entropy_coef=-0.1)
