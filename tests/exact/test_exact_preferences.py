"""Population losses over preferences: O18, O20-O23, O26, O27, O30, O34, O35."""

import math

import pytest
import torch
from sheet_language import (
    BETA,
    LANGUAGE,
    MU,
    OTHER,
    POLICY,
    REFERENCE,
    REWARDS,
    close,
    finite_differences,
    gradient,
    intransitive_preferences,
    newton,
)

from truing import exact
from truing.errors import UsageError

REF, PI = LANGUAGE.sentence_logps(REFERENCE), LANGUAGE.sentence_logps(POLICY)
STAR = exact.optimal_policy(REF, REWARDS, BETA)
LABELS, PAIRS = exact.bradley_terry(REWARDS), exact.independent_pairs(MU)
CYCLIC = intransitive_preferences()
LENGTHS = LANGUAGE.lengths_Y
TAU = 0.3
FLAT = torch.zeros(15, dtype=torch.float64)
ISLANDS = (torch.arange(15) % 2)[:, None] == torch.arange(15) % 2
"""Even sentences are compared with even ones only, odd with odd."""
NEARBY = LANGUAGE.logits_of(exact.optimal_policy(REF, REWARDS, 20.0))


def dpo(logps, reference=REF, labels=LABELS, pairs=PAIRS, beta=BETA):
    return exact.dpo_loss(logps, reference, labels, pairs, beta)


def ipo(logps, labels=CYCLIC, reference=REF):
    return exact.ipo_loss(logps, reference, labels, PAIRS, TAU)


def of_logits(loss):
    return lambda logits: loss(LANGUAGE.sentence_logps(logits))


def by_hand(labels, mu, cost):
    """Σ over who is drawn first, who second and who wins, of `cost(winner, loser)`."""
    return sum(
        mu[i] * mu[j] * (labels[i, j] * cost(i, j) + labels[j, i] * cost(j, i))
        for i in range(15)
        for j in range(15)
    )


def negative_log_sigmoid(x):
    return math.log1p(math.exp(-x))


def test_losses_are_loops_over_draws_and_labels():
    ratio = (PI - REF).tolist()
    for labels in (LABELS, CYCLIC):
        by_loop = by_hand(
            labels, MU, lambda i, j: negative_log_sigmoid(BETA * (ratio[i] - ratio[j]))
        )
        close(dpo(PI, labels=labels), by_loop)
        by_loop = by_hand(labels, MU, lambda i, j: (ratio[i] - ratio[j] - 1 / (2 * TAU)) ** 2)
        close(ipo(PI, labels), by_loop)
    r = REWARDS.tolist()
    by_loop = by_hand(
        LABELS, MU, lambda i, j: negative_log_sigmoid(r[i] - r[j]) + 0.1 * (r[i] + r[j]) ** 2
    )
    close(exact.bradley_terry_loss(REWARDS, LABELS, PAIRS, centering=0.1), by_loop)


def test_bradley_terry_probabilities_are_softmaxes_of_two():
    for i, j in ((0, 1), (3, 11), (7, 7)):
        a, b = math.exp(REWARDS[i]), math.exp(REWARDS[j])
        assert LABELS[i, j].item() == pytest.approx(a / (a + b))


def test_win_rate_is_a_loop_over_two_draws():
    p, q = PI.exp().tolist(), REF.exp().tolist()
    by_loop = sum(p[i] * q[j] * CYCLIC[i, j] for i in range(15) for j in range(15))
    close(exact.win_rate(PI, REF, CYCLIC), by_loop)
    close(exact.win_rate(PI, PI, CYCLIC), 0.5)


@pytest.mark.parametrize("loss", [dpo, ipo])
def test_gradients_are_slopes_by_finite_differences(loss):
    close(gradient(of_logits(loss), POLICY), finite_differences(of_logits(loss), POLICY), 1e-7)


def test_o18_dpo_stands_still_at_the_rlhf_optimum_whoever_picks_the_pairs():
    optimum = LANGUAGE.logits_of(STAR)
    skewed = (4 * REWARDS.cos()).softmax(0)
    for mu in (MU, REF.exp(), skewed):
        pairs = exact.independent_pairs(mu)
        close(gradient(of_logits(lambda p, w=pairs: dpo(p, pairs=w)), optimum), torch.zeros(7, 3))
        for logits in (POLICY, REFERENCE, OTHER):
            assert gradient(of_logits(lambda p, w=pairs: dpo(p, pairs=w)), logits).norm() > 1e-3
    # the optimum of another β, and labels that no reward explains, do not stand still
    elsewhere = LANGUAGE.logits_of(exact.optimal_policy(REF, REWARDS, 2 * BETA))
    assert gradient(of_logits(dpo), elsewhere).norm() > 1e-3
    assert gradient(of_logits(lambda p: dpo(p, labels=CYCLIC)), optimum).norm() > 1e-3


def test_o20_dpos_first_step_is_a_policy_gradient_of_the_win_rate():
    scores = torch.autograd.functional.jacobian(LANGUAGE.sentence_logps, REFERENCE)
    for labels in (LABELS, CYCLIC):
        first = gradient(of_logits(lambda p, q=labels: dpo(p, labels=q)), REFERENCE)
        excess = (labels * MU).sum(-1) - 0.5
        close(first, -2 * BETA * torch.einsum("y,ysv->sv", MU * excess, scores))
    by_reference = exact.independent_pairs(REF.exp())
    first = gradient(of_logits(lambda p: dpo(p, pairs=by_reference)), REFERENCE)
    winning = gradient(of_logits(lambda p: exact.win_rate(p, REF, LABELS)), REFERENCE)
    close(first, -2 * BETA * winning)
    # pairs from elsewhere climb something else
    assert (gradient(of_logits(dpo), REFERENCE) + 2 * BETA * winning).norm() > 1e-3


def test_o21_a_constant_on_the_reference_or_the_rewards_changes_no_pairwise_loss():
    shifted = REF + 3.7
    close(dpo(PI, shifted), dpo(PI))
    close(ipo(PI, reference=shifted), ipo(PI))
    close(exact.bradley_terry(REWARDS + 3.7), LABELS)
    close(exact.optimal_policy(REF, REWARDS + 3.7, BETA), STAR)


def test_o21_it_does_change_absolute_and_length_normalised_losses():
    def absolute(ratio):  # SPPO's hard form
        return by_hand(
            LABELS, MU, lambda i, j: (ratio[i] - 1 / (2 * TAU)) ** 2 + (ratio[j] + 1 / TAU / 2) ** 2
        )

    def length_normalised(ratio):
        means = ratio / LENGTHS
        return by_hand(LABELS, MU, lambda i, j: (means[i] - means[j] - 1 / (2 * TAU)) ** 2)

    for loss in (absolute, length_normalised):
        assert abs(loss(PI - REF - 3.7) - loss(PI - REF)) > 1e-2


def test_o22_between_islands_mass_moves_and_dpo_does_not_see_it():
    pairs = PAIRS * ISLANDS
    moved = (STAR + 1.3 * (torch.arange(15) % 2 == 0)).log_softmax(0)
    close(dpo(moved, pairs=pairs), dpo(STAR, pairs=pairs))
    assert dpo(moved) - dpo(STAR) > 1e-3
    assert exact.kl(moved, STAR) > 0.1
    best = exact.rlhf_objective(STAR, REF, REWARDS, BETA)
    assert best - exact.rlhf_objective(moved, REF, REWARDS, BETA) > 1e-2


@pytest.mark.parametrize("loss", [exact.bradley_terry_loss, None])
def test_o22_flat_directions_are_islands_less_one(loss):
    lonely = MU * (torch.arange(15) > 2)
    chain = torch.diag(torch.ones(14).double(), 1)
    cases = {0: PAIRS, 1: PAIRS * ISLANDS, 3: exact.independent_pairs(lonely)}
    for flat, pairs in [*cases.items(), (0, chain), (14, torch.zeros(15, 15).double())]:
        assert exact.flat_directions(pairs) == flat
        score = torch.autograd.functional.hessian(
            lambda s, w=pairs: (
                loss(s, LABELS, w) if loss else exact.ipo_loss(s, FLAT, CYCLIC, w, TAU)
            ),
            REWARDS,
        )
        # one more null direction in the scores: a constant, which normalisation takes away
        assert (torch.linalg.eigvalsh(score).abs() < 1e-9).sum() == flat + 1


def test_o22_islands_are_numbered_in_order_of_appearance():
    pairs = torch.zeros(6, 6)
    for i, j in ((5, 0), (3, 5), (2, 4)):
        pairs[i, j] = 0.1
    assert exact.components(pairs).tolist() == [0, 1, 2, 0, 2, 0]


def test_o23_chosen_rewards_pay_the_forward_kl():
    q, negative = REF.exp(), set()
    for labels in (LABELS, CYCLIC):
        for logits in (POLICY, OTHER, LANGUAGE.logits_of(STAR), NEARBY):
            logps = LANGUAGE.sentence_logps(logits)
            implicit, forward = BETA * (logps - REF), exact.kl(REF, logps)
            both = by_hand(labels, q, lambda i, j, r=implicit: r[i] + r[j])
            close(both, -2 * BETA * forward)
            chosen = by_hand(labels, q, lambda i, j, r=implicit: r[i])
            margin = by_hand(labels, q, lambda i, j, r=implicit: r[i] - r[j])
            close(chosen, margin / 2 - BETA * forward)
            assert (chosen < 0) == (forward > margin / (2 * BETA))
            negative.add(bool(chosen < 0))
            elsewhere = by_hand(labels, MU, lambda i, j, r=implicit: r[i] + r[j])
            assert abs(elsewhere + 2 * BETA * forward) > 1e-3  # pairs must come from ref
    assert negative == {True, False}  # further out it falls, whatever the margin


def test_o26_ipos_optimum_for_preferences_that_no_reward_explains():
    wins = CYCLIC > 0.5
    assert any(
        wins[i, j] and wins[j, k] and wins[k, i]
        for i in range(15)
        for j in range(15)
        for k in range(15)
    )
    optimum = exact.ipo_optimum(REF, CYCLIC, MU, TAU)
    assert optimum.exp().sum().item() == pytest.approx(1)
    close(gradient(ipo, optimum), FLAT)
    beaten = [sum((CYCLIC[i, j] * MU[j]).item() for j in range(15)) / TAU for i in range(15)]
    found = newton(lambda ratio: ipo(REF + ratio), FLAT)
    close(found - found[0], torch.tensor(beaten, dtype=torch.float64) - beaten[0])
    # DPO does not stand still there, nor does IPO with another τ or with lengths divided out
    assert gradient(lambda p: dpo(p, labels=CYCLIC), optimum).norm() > 1e-3
    other = exact.ipo_optimum(REF, CYCLIC, MU, 2 * TAU)
    assert gradient(ipo, other).norm() > 1e-3
    divided = gradient(lambda p: ipo(REF + (p - REF) / LENGTHS), optimum)
    assert divided.norm() > 1e-3


def test_o27_on_a_pair_that_never_flips_ipo_stops_and_dpo_does_not():
    always = torch.tensor([[0.5, 1.0], [0.0, 0.5]]).double()
    nothing = torch.zeros(2).double()
    half = torch.full((2,), 0.5).double()
    pairs = exact.independent_pairs(half)
    optimum = exact.ipo_optimum(nothing, always, half, TAU)
    close(optimum[0] - optimum[1], 1 / (2 * TAU))
    close(gradient(lambda p: exact.ipo_loss(p, nothing, always, pairs, TAU), optimum), nothing)

    def dpo_pull(margin):
        at = torch.tensor([margin, 0.0]).double()
        return -gradient(lambda p: exact.dpo_loss(p, nothing, always, pairs, 1.0), at)[0].item()

    assert all(dpo_pull(margin) > 0 for margin in (0.0, 5.0, 30.0))
    margin, rate, steps = 0.0, 0.5, 20_000
    for _ in range(steps):  # the pair is shown half of the time: pull = σ(−h)/2
        margin += rate / (1 + math.exp(margin))
    assert dpo_pull(margin) == pytest.approx(0.5 / (1 + math.exp(margin)))
    assert margin == pytest.approx(math.log(rate * steps), abs=0.5)


def test_o30_only_beta_times_the_ratio_counts_and_only_reward_over_beta():
    close(dpo(REF + BETA * (PI - REF), beta=1.0), dpo(PI))
    close(exact.optimal_policy(REF, 3 * REWARDS, 3 * BETA), STAR)
    assert abs(dpo(PI, beta=1.0) - dpo(PI)) > 1e-3
    assert (exact.optimal_policy(REF, 3 * REWARDS, BETA) - STAR).abs().max() > 1e-2


def test_o34_the_reward_model_is_free_up_to_a_constant_which_centring_settles():
    def loss(centering):
        return lambda s: exact.bradley_terry_loss(s, LABELS, PAIRS, centering)

    close(loss(0.0)(REWARDS + 4.2), loss(0.0)(REWARDS))
    assert abs(loss(0.1)(REWARDS + 4.2) - loss(0.1)(REWARDS)) > 1e-2
    fits = {c: newton(loss(c), FLAT) for c in (0.01, 1.0)}
    spreads = []
    for c, fit in fits.items():
        smallest = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss(c), fit))[0]
        assert smallest > 1e-4
        close(gradient(loss(c), fit), FLAT)
        close((MU * fit).sum(), 0.0)
        spreads.append(((fit.max() - fit.min()) / (REWARDS.max() - REWARDS.min())).item())
    # it also shrinks differences: a little with a hundredth, much with one
    assert 0.8 < spreads[0] < 1
    assert spreads[1] < 0.5


def test_o35_exact_probabilities_give_the_rewards_back_up_to_a_constant():
    found = newton(lambda s: exact.bradley_terry_loss(s, LABELS, PAIRS), FLAT)
    close(found - found[0], REWARDS - REWARDS[0])
    stretched = newton(
        lambda s: exact.bradley_terry_loss(s, exact.bradley_terry(2 * REWARDS), PAIRS), FLAT
    )
    assert (stretched - stretched[0] - REWARDS + REWARDS[0]).abs().max() > 0.1


def test_what_is_no_preference_and_what_does_not_fit_is_refused():
    broken = LABELS.clone()
    broken[2, 3] += 0.1
    for ask in (
        lambda: dpo(PI, labels=broken),
        lambda: ipo(PI, broken),
        lambda: exact.ipo_optimum(REF, broken, MU, TAU),
        lambda: exact.win_rate(PI, REF, broken),
        lambda: exact.bradley_terry_loss(REWARDS, broken, PAIRS),
    ):
        with pytest.raises(UsageError, match="sum to 1"):
            ask()
    for table in (exact.bradley_terry, exact.independent_pairs):
        with pytest.raises(UsageError, match="5000 sentences"):
            table(torch.zeros(5000))
