"""Per-token credit by enumeration: O5 and O6."""

import pytest
import torch
from sheet_language import BETA, LANGUAGE, POLICY, REFERENCE, REWARDS, close

from truing import exact
from truing.ops import discounted_deltas

REF, PI = LANGUAGE.sentence_logps(REFERENCE), LANGUAGE.sentence_logps(POLICY)
TOKEN_REWARDS = exact.token_rewards(LANGUAGE, POLICY, REFERENCE, REWARDS, BETA)
VALUES = exact.context_values(LANGUAGE, POLICY, TOKEN_REWARDS)
WRONG_VALUES = torch.linspace(-1, 2, 7, dtype=torch.float64)
TRUTH = exact.policy_gradient(LANGUAGE, POLICY, REF, REWARDS, BETA)
SCORES = torch.autograd.functional.jacobian(LANGUAGE.token_logps, POLICY)


def climb(advantages_YT):
    return torch.einsum("y,yt,ytsv->sv", PI.exp(), advantages_YT, SCORES)


def to_go(rewards_YT):
    return torch.stack([rewards_YT[:, t:].sum(-1) for t in range(3)], dim=-1)


def deltas(y, values, gamma):
    length = len(LANGUAGE.sentences[y])
    critic = [values[LANGUAGE.contexts.index(LANGUAGE.sentences[y][:t])] for t in range(length)]
    after = [*critic[1:], torch.tensor(0.0)]
    rewards = TOKEN_REWARDS[y, :length]
    return torch.stack([rewards[t] + gamma * after[t] - critic[t] for t in range(length)])


def gae(values, lam, gamma=1.0):
    advantages = torch.zeros(15, 3, dtype=torch.float64)
    for y in range(15):
        errors = deltas(y, values, gamma)
        advantages[y, : len(errors)] = discounted_deltas(errors, [len(errors)], gamma * lam)
    return advantages


def bellman(context):
    """V by recursion over the tree: the reward of each next token and what follows it."""
    s = LANGUAGE.contexts.index(context)
    total = torch.tensor(0.0, dtype=torch.float64)
    ours, theirs = POLICY[s].softmax(0), REFERENCE[s].softmax(0)
    for token in range(3):
        longer = (*context, token)
        onward = -BETA * (ours[token] / theirs[token]).log()
        if longer in LANGUAGE.sentences:
            onward = onward + REWARDS[LANGUAGE.sentences.index(longer)]
        else:
            onward = onward + bellman(longer)
        total = total + ours[token] * onward
    return total


def test_token_rewards_add_up_to_the_regularised_reward():
    close(TOKEN_REWARDS.sum(-1), REWARDS - BETA * (PI - REF))
    assert not TOKEN_REWARDS[~LANGUAGE.mask_YT].any()
    first = LANGUAGE.contexts.index(())
    drift = POLICY[first].log_softmax(0)[1] - REFERENCE[first].log_softmax(0)[1]
    y = LANGUAGE.sentences.index((1, 0))
    close(TOKEN_REWARDS[y, 0], -BETA * drift)


def test_values_are_bellmans():
    close(VALUES, torch.stack([bellman(context) for context in LANGUAGE.contexts]))
    close(VALUES[0], exact.rlhf_objective(PI, REF, REWARDS, BETA))


def test_values_of_contexts_that_are_never_reached_are_numbers():
    far = 800.0 * POLICY
    rewards = exact.token_rewards(LANGUAGE, far, far, REWARDS, BETA)
    values = exact.context_values(LANGUAGE, far, rewards)
    assert LANGUAGE.sentence_logps(far).exp().min() == 0
    assert values.isfinite().all()
    assert values.abs().max() <= 1


def test_o5_return_to_go_with_k1_per_token_is_the_exact_gradient():
    close(climb(to_go(TOKEN_REWARDS)), TRUTH)
    # crediting each token with its own KL alone forgets what it does to later contexts
    short_sighted = REWARDS[:, None] + exact.token_rewards(
        LANGUAGE, POLICY, REFERENCE, torch.zeros(15), BETA
    )
    assert (climb(short_sighted) - TRUTH).norm() > 1e-2


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_o6_with_the_exact_values_no_lambda_is_biased(lam):
    close(climb(gae(VALUES, lam)), TRUTH)


def test_o6_with_wrong_values_only_lambda_1_is_unbiased():
    close(climb(gae(WRONG_VALUES, 1.0)), TRUTH)
    for lam in (0.0, 0.5, 0.95):
        assert (climb(gae(WRONG_VALUES, lam)) - TRUTH).norm() > 1e-3


def test_o6_closed_forms_of_gae():
    mask = LANGUAGE.mask_YT
    close(gae(VALUES, 0.0)[mask], torch.cat([deltas(y, VALUES, 1.0) for y in range(15)]))
    critic = WRONG_VALUES[LANGUAGE.contexts_YT] * mask
    close(gae(WRONG_VALUES, 1.0), to_go(TOKEN_REWARDS) - critic)
    gamma, lam, errors = 0.9, 0.8, deltas(14, WRONG_VALUES, 0.9)
    spelled = [
        sum((gamma * lam) ** k * errors[t + k] for k in range(3 - t)) for t in range(len(errors))
    ]
    close(gae(WRONG_VALUES, lam, gamma)[14], torch.stack(spelled))
