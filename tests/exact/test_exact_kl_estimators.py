"""k1, k2, k3 over whole sentences: what each estimates and where each pulls (O14-O17)."""

import pytest
import torch
from sheet_language import LANGUAGE, OTHER, POLICY, REFERENCE, close, gradient

from truing import exact
from truing.ops import kl_k1, kl_k2, kl_k3

REF, PI = LANGUAGE.sentence_logps(REFERENCE), LANGUAGE.sentence_logps(POLICY)
OLD = LANGUAGE.sentence_logps(OTHER)
REVERSE = gradient(lambda logits: exact.kl(LANGUAGE.sentence_logps(logits), REF), POLICY)
FORWARD = gradient(lambda logits: exact.kl(REF, LANGUAGE.sentence_logps(logits)), POLICY)
FAR = 1e-3


def as_loss(estimator):
    """E over samples of π of the estimator's own gradient."""
    return gradient(
        lambda logits: (PI.exp() * estimator(LANGUAGE.sentence_logps(logits), REF)).sum(), POLICY
    )


def as_reward(estimator):
    """Policy gradient with the detached estimator as a cost."""
    cost = estimator(PI, REF)
    return gradient(lambda logits: (LANGUAGE.sentence_logps(logits).exp() * cost).sum(), POLICY)


def weighted(estimator):
    """E over samples of an old policy of the gradient of w times the estimator."""

    def loss(logits):
        logps = LANGUAGE.sentence_logps(logits)
        return (OLD.exp() * (logps - OLD).exp() * estimator(logps, REF)).sum()

    return gradient(loss, POLICY)


def token_sum(estimator, logits):
    return estimator(LANGUAGE.token_logps(logits), LANGUAGE.token_logps(REFERENCE)).sum(-1)


def test_o14_k1_and_k3_estimate_the_kl_and_k2_does_not():
    truth = exact.kl(PI, REF)
    close(exact.expectation(PI, kl_k1(PI, REF)), truth)
    close(exact.expectation(PI, kl_k3(PI, REF)), truth)
    assert abs(exact.expectation(PI, kl_k2(PI, REF)) - truth) > FAR


def test_o14_as_a_reward_only_k1_has_the_gradient_of_the_kl():
    close(as_reward(kl_k1), REVERSE)
    assert (as_reward(kl_k2) - REVERSE).norm() > FAR
    assert (as_reward(kl_k3) - REVERSE).norm() > FAR


def test_o14_as_a_loss_k1_pulls_nowhere_k2_reverse_k3_forward():
    close(as_loss(kl_k1), torch.zeros(7, 3))
    close(as_loss(kl_k2), REVERSE)
    close(as_loss(kl_k3), FORWARD)
    assert (REVERSE - FORWARD).norm() > FAR


def test_o15_k3_summed_over_tokens_is_the_sentence_kl():
    truth = exact.kl(PI, REF)
    close(exact.expectation(PI, token_sum(kl_k3, POLICY)), truth)
    assert abs(exact.expectation(PI, token_sum(kl_k2, POLICY)) - truth) > FAR
    # the sum is not the sentence's own k3: they agree on average only
    assert (token_sum(kl_k3, POLICY) - kl_k3(PI, REF)).abs().max() > FAR


def test_o16_k2_summed_over_tokens_misses_the_future_and_return_to_go_does_not():
    partial = gradient(lambda logits: (PI.exp() * token_sum(kl_k2, logits)).sum(), POLICY)
    assert (partial - REVERSE).norm() > FAR
    drift_YT = kl_k1(LANGUAGE.token_logps(POLICY), LANGUAGE.token_logps(REFERENCE))
    to_go_YT = torch.stack([drift_YT[:, t:].sum(-1) for t in range(3)], dim=-1)
    full = gradient(
        lambda logits: (PI.exp()[:, None] * to_go_YT * LANGUAGE.token_logps(logits)).sum(), POLICY
    )
    close(full, REVERSE)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_o17_weighted_by_importance_the_gradient_is_right_for_any_old_policy(estimator):
    close(weighted(estimator), REVERSE)


def test_o17_without_the_weight_an_old_policys_samples_pull_elsewhere():
    stale = gradient(
        lambda logits: (OLD.exp() * kl_k3(LANGUAGE.sentence_logps(logits), REF)).sum(), POLICY
    )
    assert (stale - REVERSE).norm() > FAR
