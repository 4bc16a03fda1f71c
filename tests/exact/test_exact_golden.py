"""The ten-digit numbers of the sheet's section 2.0, found there by another program."""

import pytest
from sheet_language import BETA, LANGUAGE, MU, POLICY, REFERENCE, REWARDS, gradient

from truing import exact

REF, PI = LANGUAGE.sentence_logps(REFERENCE), LANGUAGE.sentence_logps(POLICY)
STAR = exact.optimal_policy(REF, REWARDS, BETA)
BEST = exact.best_of_n_logps(REF, REWARDS, 2)


def dpo(logps):
    pairs = exact.independent_pairs(MU)
    return exact.dpo_loss(logps, REF, exact.bradley_terry(REWARDS), pairs, BETA)


def dpo_slope():
    return gradient(lambda logits: dpo(LANGUAGE.sentence_logps(logits)), REFERENCE)


GOLDEN = {
    "β log Z": (lambda: BETA * exact.log_partition(REF, REWARDS, BETA), 0.5307573708),
    "KL(π*‖ref)": (lambda: exact.kl(STAR, REF), 0.4274104037),
    "E r under π*": (lambda: exact.expectation(STAR, REWARDS), 0.7444625726),
    "E r under ref": (lambda: exact.expectation(REF, REWARDS), 0.2291960672),
    "J(π)": (lambda: exact.rlhf_objective(PI, REF, REWARDS, BETA), -0.3025601412),
    "KL(π‖ref)": (lambda: exact.kl(PI, REF), 0.7548075912),
    "KL(ref‖π)": (lambda: exact.kl(REF, PI), 0.9282072273),
    "DPO at π": (lambda: dpo(PI), 0.8323318555),
    "DPO at ref": (lambda: dpo(REF), 0.6931471806),
    "DPO at π*": (lambda: dpo(STAR), 0.6053397342),
    "norm of ∇J(π)": (
        lambda: exact.policy_gradient(LANGUAGE, POLICY, REF, REWARDS, BETA).norm(),
        0.2218113041,
    ),
    "norm of ∇DPO at ref": (lambda: dpo_slope().norm(), 0.0456399763),
    "KL of best of 2": (lambda: exact.best_of_n_kl(REF, REWARDS, 2), 0.1892989329),
    "E r of best of 2": (lambda: exact.expectation(BEST, REWARDS), 0.5739826390),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    compute, golden = GOLDEN[name]
    assert float(compute()) == pytest.approx(golden, abs=1e-8, rel=0)


BOUNDS = {2: 0.193147, 4: 0.636294, 8: 1.204442, 16: 1.835089}
BOUNDS |= {64: 3.174508, 256: 4.549084, 1024: 5.932448}


@pytest.mark.parametrize(("n", "bound"), BOUNDS.items())
def test_golden_bound(n, bound):
    assert exact.kl_bound(n) == pytest.approx(bound, abs=5e-7, rel=0)
