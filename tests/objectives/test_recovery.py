"""Every method with a known optimum finds it, from the population's own gradient (sheet 2.0, 2.1).

The policy is the sheet's table of 7 x 3 logits; the data are all sentences, all pairs or all pairs
of samples, weighted by their probability, so there is no sampling error and what is left is the
method. The loss is the objective's own; only sums over data are this file's.
"""

import math
from itertools import combinations

import pytest
import tiny_language as tiny
import torch
from flat_batches import make_batch, prepare

from truing import exact, objectives
from truing.batch import Outputs
from truing.ops import segment_sum
from truing.rollouts import credit

BETA, REWARDS, MU = tiny.BETA, tiny.REWARDS, tiny.MU
REFERENCE = tiny.sentence_logps(tiny.REFERENCE)
LENGTHS = torch.tensor(tiny.LENGTHS, dtype=torch.float64)
PREFERENCES = torch.sigmoid(REWARDS[:, None] - REWARDS)
_APART = torch.arange(15, dtype=torch.float64)[:, None] - torch.arange(15)
INTRANSITIVE = 0.5 + 0.25 * (2 * _APART).sin() + 0.1 * (REWARDS[:, None] - REWARDS)
"""Stone, paper, scissors on top of the rewards: cycles of three in which each beats the next."""
CLOSE, STARTS = 1e-6, 0.1


def objective(name, **knobs):
    return objectives.find(name)(**knobs)


class Data:
    """Sentences in groups, and what a table of logits says of them."""

    def __init__(self, groups, reference=tiny.REFERENCE, **columns):
        self.said = [i for members in groups for i in members]
        self.steps = torch.tensor([step for i in self.said for step in tiny.SENTENCES[i]])
        self.batch = make_batch(
            [tiny.LENGTHS[i] for i in self.said],
            [g for g, members in enumerate(groups) for _ in members],
            reference_logps_N=self.read(reference),
            **columns,
        )

    def read(self, logits):
        return logits.log_softmax(-1)[self.steps[:, 0], self.steps[:, 1]]

    def outputs(self, logits):
        logps_N = self.read(logits)
        collision_N = (2 * logits.log_softmax(-1)).logsumexp(-1)[self.steps[:, 0]].detach()
        return Outputs(logps_N, values_N=torch.zeros_like(logps_N), collision_N=collision_N)


def every_pair(reference=tiny.REFERENCE):
    """All ordered pairs, first is chosen; weights are set by who says how often it wins."""
    pairs = [(i, j) for i in range(15) for j in range(15)]
    count = torch.arange(len(pairs))
    return Data(pairs, reference, chosen_G=2 * count, rejected_G=2 * count + 1)


PAIRS = every_pair()


def population(subject, wins, data=PAIRS):
    """Σ_ij μ_i μ_j P(i beats j) loss(i, j) as a function of logits."""
    weights_P = (MU[:, None] * MU * wins).flatten()

    def loss(logits):
        pairs = subject.read(data.batch, data.outputs(logits))
        return (weights_P * subject.pair_losses(pairs)).sum()

    return loss


def total(subject, data):
    def loss(logits):
        ((batch, outputs),) = prepare(subject, [(data.batch, data.outputs(logits))])
        return subject(batch, outputs).total

    return loss


def minimised(loss, start=tiny.REFERENCE, steps=150):
    """Where the loss is smallest, from `start`."""
    point = start.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [point],
        max_iter=steps,
        tolerance_grad=1e-11,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        search.zero_grad()
        value = loss(point)
        value.backward()
        return value

    search.step(closure)
    return point.detach()


def law(logits):
    return tiny.sentence_logps(logits)


def tilted(reference, exponent):
    """The law reference · exp(exponent), normalised."""
    return (reference + exponent).log_softmax(0)


def length_tilted(reference, rewards):
    """The law reference · exp(L (r + c)): the constant c is what normalises it."""
    low, high = -50.0, 50.0
    for _ in range(200):
        c = (low + high) / 2
        low, high = (
            (low, c) if (reference + LENGTHS * (rewards + c)).logsumexp(0) > 0 else (c, high)
        )
    return reference + LENGTHS * (rewards + low)


def found(seen, truth, tolerance=CLOSE):
    """The reference is far from the truth, and what was found is not."""
    assert exact.kl(truth, REFERENCE) > STARTS
    assert exact.kl(seen, truth) < tolerance


UNIFORM = torch.zeros(15, dtype=torch.float64)
OPTIMUM = tilted(REFERENCE, REWARDS / BETA)
NOISY = 0.8 * PREFERENCES + 0.2 * PREFERENCES.T
WITH_BRADLEY_TERRY = {
    "dpo": ({}, PREFERENCES, OPTIMUM),
    "tr_dpo": ({}, PREFERENCES, OPTIMUM),
    "f_dpo": ({"divergence": "reverse_kl"}, PREFERENCES, OPTIMUM),
    "robust": ({"label_smoothing": 0.2}, NOISY, OPTIMUM),
    "r_dpo": ({"alpha": 0.3}, PREFERENCES, tilted(REFERENCE, (REWARDS - 0.3 * LENGTHS) / BETA)),
    "dpo_norm": ({}, PREFERENCES, length_tilted(REFERENCE, REWARDS / BETA)),
    "cpo": ({"nll_coef": 0}, PREFERENCES, tilted(UNIFORM, REWARDS / BETA)),
    "simpo": ({"gamma_beta_ratio": 0}, PREFERENCES, length_tilted(UNIFORM, REWARDS / BETA)),
}


@pytest.mark.parametrize("name", WITH_BRADLEY_TERRY)
def test_on_bradley_terry_preferences_it_finds_the_law_its_reward_implies(name):
    knobs, wins, truth = WITH_BRADLEY_TERRY[name]
    found(law(minimised(population(objective(name, beta=BETA, **knobs), wins))), truth)


@pytest.mark.parametrize("wins", [PREFERENCES, INTRANSITIVE], ids=["bradley_terry", "intransitive"])
def test_ipo_finds_the_win_rates_even_of_intransitive_preferences(wins):
    tau = 0.1
    seen = minimised(population(objective("ipo", tau=tau, length_normalize=False), wins))
    found(law(seen), tilted(REFERENCE, wins @ MU / tau))


def test_the_intransitive_preferences_have_cycles():
    beats = INTRANSITIVE > 0.5
    assert ((INTRANSITIVE > 0) & (INTRANSITIVE < 1)).all()
    assert any(
        beats[i, j] and beats[j, k] and beats[k, i] for i, j, k in combinations(range(15), 3)
    )


def test_sppo_finds_the_win_rates_that_a_policy_can_have():
    """Its targets need not be normalised: what is left of each is what a Lagrangian leaves."""
    beta = 0.1
    seen = law(minimised(population(objective("sppo", beta=beta), INTRANSITIVE)))
    # hard labels: chosen pulls to +1/(2β), rejected to −1/(2β); their mean is the win rate's
    target = (INTRANSITIVE @ MU - 0.5) / beta
    price = MU * (seen - REFERENCE - target) / seen.exp()
    assert price.std() < 1e-5
    assert exact.kl(seen, REFERENCE) > STARTS


MATCHING = [(i, i + 7) for i in range(7)]
"""Disjoint pairs, each always decided the same way: one log-ratio difference per pair is free."""


def matched(subject, steps=150):
    """Log-ratios (chosen, rejected) of every pair once the method is done with them."""
    count = torch.arange(7)
    data = Data(MATCHING, chosen_G=2 * count, rejected_G=2 * count + 1)
    logits = minimised(total(subject, data), steps=steps)
    ratio_C = law(logits) - REFERENCE
    return ratio_C[:7], ratio_C[7:14], total(subject, data)(logits).item()


DECIDED = {
    "cdpo": ({"beta": BETA, "label_smoothing": 0.1}, math.log(9) / BETA),
    "exo_pair": ({"beta": BETA, "label_smoothing": 0.1}, math.log(9) / BETA),
    "ipo": ({"tau": 0.4, "length_normalize": False}, 1 / 0.8),
}


@pytest.mark.parametrize("name", DECIDED)
def test_decided_pairs_move_apart_by_a_finite_margin(name):
    knobs, margin = DECIDED[name]
    chosen, rejected, _ = matched(objective(name, **knobs))
    torch.testing.assert_close(
        chosen - rejected, torch.full_like(chosen, margin), rtol=0, atol=1e-5
    )


def test_dpo_on_decided_pairs_never_stops():
    margins = [
        (chosen - rejected).min().item()
        for chosen, rejected, _ in (matched(objective("dpo", beta=BETA), n) for n in (5, 10, 20))
    ]
    assert margins[0] < margins[1] < margins[2]
    assert margins[2] > 2 * math.log(9) / BETA


@pytest.mark.parametrize("name", ["hinge", "slic"])
def test_margin_losses_stop_at_the_margin(name):
    subject = (
        objective(name, beta=BETA) if name == "hinge" else objective(name, delta=1, nll_coef=0)
    )
    chosen, rejected, loss = matched(subject)
    margin = chosen - rejected
    if name == "slic":  # it compares log-probs, not log-ratios
        margin = margin + REFERENCE[:7] - REFERENCE[7:14]
    assert loss < 1e-9
    assert (margin * (BETA if name == "hinge" else 1) > 1 - 1e-9).all()


def test_nca_holds_the_chosen_reward_at_a_finite_height():
    """σ(r̂_w) = 2/3 whatever the other side does, and that one falls."""
    beta = 2.0
    chosen, rejected, _ = matched(objective("nca_pair", beta=beta))
    torch.testing.assert_close(
        beta * chosen, torch.full_like(chosen, math.log(2)), rtol=0, atol=1e-2
    )
    assert (beta * rejected < -3).all()


def walked(loss, start=tiny.REFERENCE, steps=200, lr=0.1, optimizer=torch.optim.Adam):
    """Where small steps lead: for losses with weights that follow the policy."""
    point = start.clone().requires_grad_()
    step = optimizer([point], lr=lr)
    for _ in range(steps):
        step.zero_grad()
        loss(point).backward()
        step.step()
    return point.detach()


def test_wpo_weighs_both_orders_of_a_pair_alike_so_the_optimum_stays():
    loss = population(objective("wpo", beta=BETA), PREFERENCES)
    found(law(walked(loss)), OPTIMUM, 1e-3)
    at_optimum = exact.Language(3, 3).logits_of(OPTIMUM).requires_grad_()
    assert slope(loss(at_optimum), at_optimum).norm() < 1e-10


DIRECTIONS = {
    "apo_zero": (1, -1),
    "apo_down": (1, -1),  # pushed down by nobody yet: what the rejected loses goes everywhere
    "bco_pair": (1, -1),
    "nca_pair": (1, -1),
    "sppo": (1, -1),
    "discopop": (-1, 1),  # found by search, and not convex: at h = 0 it climbs the wrong way
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_which_way_each_side_moves(name):
    count = torch.arange(7)
    data = Data(MATCHING, chosen_G=2 * count, rejected_G=2 * count + 1)
    loss = total(objective(name, beta=BETA), data)
    ratio = law(walked(loss, steps=3, lr=1e-3, optimizer=torch.optim.SGD)) - REFERENCE
    weighted = (ratio * REFERENCE.exp())[:14].view(2, 7).sum(1)
    assert tuple(weighted.sign().tolist()) == DIRECTIONS[name]


def test_apo_down_ends_with_both_below_the_reference():
    """All pairs but one: the mass has to stay somewhere."""
    count = torch.arange(7)
    data = Data(MATCHING, chosen_G=2 * count, rejected_G=2 * count + 1)
    seen = law(walked(total(objective("apo_down", beta=BETA), data)))
    chosen, rejected = (seen - REFERENCE)[:14].view(2, 7)
    assert (rejected < chosen).all()
    assert (chosen < 0).sum() == 6


GOOD = (REWARDS > 0).tolist()


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired", "bco"])
def test_verdicts_move_the_good_up_and_the_bad_down(name):
    """KTO's mismatched completions are the sentences again, shifted by four."""
    alone = Data([[i] for i in range(15)], label_C=GOOD)
    shared = Data(
        [[i, (i + 4) % 15] for i in range(15)],
        label_C=[verdict for good in GOOD for verdict in (good, False)],
        mismatched_C=[0, 1] * 15,
    )
    loss = total(objective(name, beta=BETA), shared if name == "kto" else alone)
    good = torch.tensor(GOOD)
    before, after = (logps[good].exp().sum() for logps in (REFERENCE, law(walked(loss, steps=20))))
    assert after > before + 0.1


def test_bco_finds_the_log_odds_of_the_verdicts():
    """r̂ − δ = log odds, if they average 0 as r̂ − δ does (δ is the mean of r̂)."""
    good = [1, 7, 2, 6, 3, 5, 4, 1, 7, 2, 6, 3, 5, 2, 6]  # of 8 verdicts each
    odds = torch.tensor([k / (8 - k) for k in good], dtype=torch.float64).log()
    data = Data(
        [[i] for i in range(15) for _ in range(8)],
        label_C=[verdict < k for k in good for verdict in range(8)],
    )
    seen = law(walked(total(objective("bco", beta=BETA), data), steps=400))
    found(seen, tilted(REFERENCE, odds / BETA), 1e-3)


GROUPS_OF_4 = [members for k, members in enumerate(combinations(range(15), 4)) if k % 31 == 0]


@pytest.mark.parametrize(
    ("name", "knobs", "tilt"),
    [
        ("infonca", {"beta": 0.5, "alpha": 0.8}, 1 / (0.5 * 0.8)),
        ("exo", {"beta": 0.5, "beta_reward": 0.8}, 1 / (0.5 * 0.8)),
    ],
)
def test_listwise_methods_find_the_law_of_the_scores(name, knobs, tilt):
    data = Data(GROUPS_OF_4, scores_C=[REWARDS[i] for members in GROUPS_OF_4 for i in members])
    found(law(minimised(total(objective(name, **knobs), data))), tilted(REFERENCE, tilt * REWARDS))


def test_nca_finds_absolute_rewards_on_samples_of_the_reference():
    """All sentences from a uniform reference: σ(r̂_i) = odds K softmax(r/α)_i, and it normalises."""
    table = exact.Language(3, 3).logits_of(UNIFORM.log_softmax(0))
    data = Data([range(15)], table, scores_C=REWARDS)
    seen = law(minimised(total(objective("nca", beta=1.0, alpha=0.7), data), start=table))
    truth = tilted(UNIFORM, REWARDS / 0.7)
    assert exact.kl(truth, UNIFORM.log_softmax(0)) > STARTS
    assert exact.kl(seen, truth) < CLOSE


COPIES = [i for i in range(15) for _ in range(1 + i % 4)]
"""Every sentence as often as μ says."""


@pytest.mark.parametrize("aggregation", ["token", "sequence_sum", "sequence"])
def test_sft_finds_the_distribution_of_its_data(aggregation):
    """Unless every sequence is averaged first: then long ones count for less."""
    seen = law(
        minimised(total(objective("sft", aggregation=aggregation), Data([[i] for i in COPIES])))
    )
    if aggregation == "sequence":
        assert exact.kl(seen, MU.log()) > 1e-3
    else:
        found(seen, MU.log())


def test_a_reward_model_finds_the_rewards_up_to_a_constant():
    subject = objective("bradley_terry", soft_labels=True)
    pairs = list(combinations(range(15), 2))
    index = torch.tensor(pairs)
    batch = make_batch(
        [1] * 2 * len(pairs),
        [g for g in range(len(pairs)) for _ in range(2)],
        chosen_G=torch.arange(0, 2 * len(pairs), 2),
        rejected_G=torch.arange(1, 2 * len(pairs), 2),
        probability_G=[PREFERENCES[i, j] for i, j in pairs],
    )
    scores = minimised(
        lambda s: subject(batch, Outputs(scores_C=s[index].flatten())).total,
        start=torch.zeros_like(REWARDS),
    )
    torch.testing.assert_close(scores - scores.mean(), REWARDS - REWARDS.mean(), rtol=0, atol=1e-5)


def test_picking_the_best_finds_how_often_each_is_best():
    subject = objective("ranking", form="best")
    given = [[float(k == best) for k in range(15)] for best in COPIES]
    batch = make_batch([1] * 15 * len(COPIES), [g for g in range(len(COPIES)) for _ in range(15)],
                       scores_C=[s for scores in given for s in scores])  # fmt: skip
    scores = minimised(
        lambda s: subject(batch, Outputs(scores_C=s.repeat(len(COPIES)))).total,
        start=torch.zeros_like(REWARDS),
    )
    torch.testing.assert_close(scores.log_softmax(0), MU.log(), rtol=0, atol=1e-5)


def test_a_process_reward_model_finds_the_odds_of_each_step():
    subject = objective("process_reward")
    labels = [[k <= step for k in range(4)] for step in range(3)]
    batch = make_batch(
        [12],
        step_end_S=torch.arange(1, 13),
        step_label_S=[verdict for step in labels for verdict in step],
    )
    scores = minimised(
        lambda s: subject(batch, Outputs(scores_S=s.repeat_interleave(4))).total,
        start=torch.zeros(3, dtype=torch.float64),
    )
    torch.testing.assert_close(
        scores.sigmoid(), torch.tensor([0.25, 0.5, 0.75]).double(), rtol=0, atol=1e-6
    )


# On-policy: the expected gradient over every sample, or every pair of samples, of the policy.

SINGLES, DUELS = [[i] for i in range(15)], [[i, j] for i in range(15) for j in range(15)]


def expected_loss(subject, rule, data, logits, rewards=REWARDS):
    """E over groups of samples of the mean loss of a group; its gradient is the method's own.

    Losses are proportional to the size of the advantages, so probabilities go there.
    """
    outputs = data.outputs(logits)
    sampled_N = outputs.logps_N.detach()
    said = torch.tensor(data.said)
    batch = data.batch.with_columns(
        sampled_logps_N=sampled_N,
        values_N=torch.zeros_like(sampled_N),
        scores_C=rewards[said],
        finished_C=torch.ones(len(said), dtype=torch.bool),
    )
    (batch,), _ = rule([batch])
    logps_C = segment_sum(sampled_N, batch.completion_N, batch.size_C)
    weight_G = segment_sum(logps_C, batch.group_C, batch.size_G).exp()
    weight_N = weight_G[batch.group_C][batch.completion_N]
    batch = batch.with_columns(advantages_N=weight_N * batch["advantages_N"])
    return subject(batch, outputs).total * batch.size_G / batch.size_C


def credit_of(name, **knobs):
    return credit.find(name)(**knobs)


UNBIASED = {
    "reinforce": (
        objective("reinforce", aggregation="sequence_sum"),
        credit_of(
            "group", baseline="none", scale_rewards="none", kl_coef=BETA, kl_placement="token"
        ),
        SINGLES,
    ),
    "rloo": (
        objective("rloo"),
        credit_of("group", baseline="leave_one_out", scale_rewards="none", kl_coef=BETA),
        DUELS,
    ),
    "grpo without std": (
        objective("grpo", beta=0, aggregation="sequence_sum"),
        credit_of("group", baseline="group", scale_rewards="none", kl_coef=BETA),
        DUELS,
    ),
    "cispo": (
        objective("cispo", aggregation="sequence_sum"),
        credit_of("group", baseline="none", scale_rewards="none", kl_coef=BETA),
        SINGLES,
    ),
    "sapo": (
        objective("sapo", aggregation="sequence_sum"),
        credit_of("group", baseline="none", scale_rewards="none", kl_coef=BETA),
        SINGLES,
    ),
    "ppo": (
        objective("ppo", vf_coef=0),
        credit_of("gae", kl_coef=BETA, lam=1.0, whiten_advantages=False),
        SINGLES,
    ),
}


def slope(value, point):
    return torch.autograd.grad(value, point)[0]


def climb(logits):
    """The exact gradient of J."""
    return exact.policy_gradient(exact.Language(3, 3), logits, REFERENCE, REWARDS, BETA)


@pytest.mark.parametrize("name", UNBIASED)
def test_the_expected_step_is_the_exact_gradient_and_leads_to_the_optimum(name):
    subject, rule, groups = UNBIASED[name]
    data = Data(groups)
    point = tiny.POLICY.clone().requires_grad_()
    share = (
        0.5 if name == "grpo without std" else 1.0
    )  # (G − 1)/G: its mean holds the sample itself
    torch.testing.assert_close(
        -slope(expected_loss(subject, rule, data, point), point),
        share * climb(tiny.POLICY),
        rtol=0,
        atol=1e-9,
    )
    seen = walked(lambda logits: expected_loss(subject, rule, data, logits), steps=120)
    found(law(seen), OPTIMUM, 1e-3)


def test_grpos_deviation_makes_it_climb_the_win_rate_instead():
    """Two samples over their deviation are ±1/√2: E[g] = √2 ∇P(y_θ beats y_sg)."""
    subject = objective("grpo", beta=0, aggregation="sequence_sum")
    rule = credit_of("group", baseline="group", scale_rewards="group", scale_epsilon=1e-12)
    point = tiny.POLICY.clone().requires_grad_()
    logps = law(point)
    beats = (REWARDS[:, None] > REWARDS).double() + 0.5 * torch.eye(15)  # a tie is half a win
    win_rate = logps.exp() @ beats @ logps.exp().detach()
    step = -slope(expected_loss(subject, rule, Data(DUELS), point), point)
    torch.testing.assert_close(step, math.sqrt(2) * slope(win_rate, point), rtol=0, atol=1e-9)
    reward = slope((law(point).exp() * REWARDS).sum(), point)
    assert torch.cosine_similarity(step.flatten(), reward.flatten(), dim=0) < 0.999
