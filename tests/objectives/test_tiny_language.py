"""Objectives and credit against a language that can be enumerated (sheet 2.0, O4-O7, O14-O23)."""

import pytest
import tiny_language as tiny
import torch
from flat_batches import make_batch

from truing import ops
from truing.batch import Outputs
from truing.objectives.pairwise.dpo import DPO
from truing.objectives.policy_gradient.ppo import PPO
from truing.objectives.reward.bradley_terry import BradleyTerry
from truing.rollouts.credit.gae import GAE

BETA, LENGTHS = tiny.BETA, tiny.LENGTHS
KL, KL_FORWARD = 0.7548075912, 0.9282072273
PAIRS = [(i, j) for i in range(15) for j in range(15)]


def exact_gradient(value, logits):
    return torch.autograd.grad(value, logits)[0]


def objective_J(logits):
    logps = tiny.sentence_logps(logits)
    drift = logps - tiny.sentence_logps(tiny.REFERENCE)
    return (logps.exp() * (tiny.REWARDS - BETA * drift)).sum()


def ppo_gradient(lam, values_S):
    """Gradient of the expected PPO loss on the first inner step, credit by GAE; and E[KL]."""
    logits = tiny.POLICY.clone().requires_grad_()
    expected, drift = 0.0, 0.0
    probs = tiny.sentence_logps(tiny.POLICY).exp()
    for i, sentence in enumerate(tiny.SENTENCES):
        logps_N = tiny.token_logps(logits)[i]
        batch = make_batch(
            [len(sentence)],
            scores_C=tiny.REWARDS[i : i + 1],
            finished_C=[1],
            sampled_logps_N=logps_N.detach(),
            values_N=values_S[[s for s, _ in sentence]],
            reference_logps_N=tiny.token_logps(tiny.REFERENCE)[i],
        )
        rule = GAE(kl_coef=BETA, lam=lam, whiten_advantages=False)
        (credited,), metrics = rule([batch])
        loss = PPO(vf_coef=0)(credited, Outputs(logps_N, values_N=credited["values_N"]))
        expected = expected + probs[i] * loss.total
        drift += probs[i] * metrics["objective/kl"].total
    return exact_gradient(expected, logits), drift.item()


def test_the_language_is_the_one_of_the_sheet():
    logits = tiny.POLICY.clone().requires_grad_()
    value = objective_J(logits)
    assert value.item() == pytest.approx(-0.3025601412, abs=1e-8)
    assert exact_gradient(value, logits).norm().item() == pytest.approx(0.2218113041, abs=1e-8)


def test_ppo_with_gae_climbs_the_exact_gradient_whatever_the_critic_at_lambda_1():
    logits = tiny.POLICY.clone().requires_grad_()
    truth = exact_gradient(objective_J(logits), logits)
    wrong_critic = torch.linspace(-1, 2, 7, dtype=torch.float64)
    gradient, drift = ppo_gradient(1.0, wrong_critic)
    torch.testing.assert_close(-gradient, truth, rtol=0, atol=1e-8)
    assert drift == pytest.approx(KL, abs=1e-6)
    biased, _ = ppo_gradient(0.5, wrong_critic)
    assert (biased + truth).norm() > 1e-2


@pytest.mark.parametrize("lam", [0.0, 0.6, 0.95])
def test_with_an_exact_critic_no_lambda_is_biased(lam):
    logits = tiny.POLICY.clone().requires_grad_()
    truth = exact_gradient(objective_J(logits), logits)
    per_token = []
    for i, (p, q) in enumerate(
        zip(tiny.token_logps(tiny.POLICY), tiny.token_logps(tiny.REFERENCE), strict=True)
    ):
        rewards = -BETA * (p - q)
        rewards[-1] += tiny.REWARDS[i]
        per_token.append(rewards)
    gradient, _ = ppo_gradient(lam, tiny.value_table(tiny.POLICY, per_token))
    torch.testing.assert_close(-gradient, truth, rtol=0, atol=1e-8)


def dpo_loss(policy_logps):
    """DPO's population loss: pairs μ×μ, labels by Bradley-Terry on the rewards."""
    reference = tiny.sentence_logps(tiny.REFERENCE)
    total = 0.0
    for i, j in PAIRS:
        batch = make_batch(
            [1, 1], [0, 0], chosen_G=[0], rejected_G=[1], reference_logps_N=reference[[i, j]]
        )
        loss = DPO(beta=BETA)(batch, Outputs(logps_N=policy_logps[[i, j]]))
        label = torch.sigmoid(tiny.REWARDS[i] - tiny.REWARDS[j])
        total = total + 2 * tiny.MU[i] * tiny.MU[j] * label * loss.total
    return total


def test_dpos_population_loss_is_the_sheets():
    for logps, golden in [
        (tiny.sentence_logps(tiny.POLICY), 0.8323318555),
        (tiny.sentence_logps(tiny.REFERENCE), 0.6931471806),
        (tiny.optimum(), 0.6053397342),
    ]:
        assert dpo_loss(logps).item() == pytest.approx(golden, abs=1e-8)


def test_dpo_stands_still_at_the_rlhf_optimum_and_nowhere_else():
    at_optimum = tiny.optimum().requires_grad_()
    assert exact_gradient(dpo_loss(at_optimum), at_optimum).norm() < 1e-10
    logits = tiny.REFERENCE.clone().requires_grad_()
    slope = exact_gradient(dpo_loss(tiny.sentence_logps(logits)), logits)
    assert slope.norm().item() == pytest.approx(0.0456399763, abs=1e-8)


def test_bradley_terry_stands_still_at_the_true_rewards_and_their_shifts():
    for shift in (0.0, 3.0):
        scores = (tiny.REWARDS[:6] + shift).requires_grad_()
        total = 0.0
        for i in range(6):
            for j in range(6):
                batch = make_batch([1, 1], [0, 0], chosen_G=[0], rejected_G=[1])
                label = torch.sigmoid(tiny.REWARDS[i] - tiny.REWARDS[j])
                loss = BradleyTerry()(batch, Outputs(scores_C=scores[[i, j]]))
                total = total + label * loss.total
        assert exact_gradient(total, scores).norm() < 1e-12


def test_k1_and_k3_summed_over_tokens_are_the_sequence_kl():
    probs = tiny.sentence_logps(tiny.POLICY).exp()
    ours, theirs = (
        torch.cat(tiny.token_logps(tiny.POLICY)),
        torch.cat(tiny.token_logps(tiny.REFERENCE)),
    )
    segment_N = make_batch(LENGTHS).completion_N
    for estimator in (ops.kl_k1, ops.kl_k3):
        per_sentence = ops.segment_sum(estimator(ours, theirs), segment_N, 15)
        assert (probs * per_sentence).sum().item() == pytest.approx(KL, abs=1e-8)
    forward = ops.segment_sum(ops.kl_k1(theirs, ours), segment_N, 15)
    reference = tiny.sentence_logps(tiny.REFERENCE).exp()
    assert (reference * forward).sum().item() == pytest.approx(KL_FORWARD, abs=1e-8)


def test_what_each_kl_estimator_pulls_towards_as_a_loss():
    logits = tiny.POLICY[0].clone().requires_grad_()
    logps, reference = logits.log_softmax(0), tiny.REFERENCE[0].log_softmax(0)
    probs = logps.detach().exp()
    reverse = exact_gradient((logps.exp() * (logps - reference)).sum(), logits)
    forward = exact_gradient(-(reference.exp() * logits.log_softmax(0)).sum(), logits)

    def pull(estimator, weigh=False):
        logps = logits.log_softmax(0)
        ratio = (logps - logps.detach()).exp() if weigh else 1.0
        return exact_gradient((probs * ratio * estimator(logps, reference)).sum(), logits)

    for seen, truth in [
        (pull(ops.kl_k1), torch.zeros(3, dtype=torch.float64)),  # no pull at all
        (pull(ops.kl_k2), reverse),
        (pull(ops.kl_k3), forward),
        (pull(ops.kl_k3, weigh=True), reverse),
        (pull(ops.kl_k1, weigh=True), reverse),
    ]:
        torch.testing.assert_close(seen, truth, rtol=0, atol=1e-12)
