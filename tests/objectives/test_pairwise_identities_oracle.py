"""What the pairwise losses must obey, whatever their formula (sheet 2.1: O19-O30)."""

import math

import pytest
from points import PAIRS_A, PAIRS_B, Point, judge

from truing import objectives

LN2 = math.log(2)


def pair(chosen, rejected, lengths=(1, 1), reference=(0.0, 0.0)):
    """One pair whose log-ratios are given, spread evenly over its tokens."""
    policy, base = [], []
    for rho, length, ref in zip((chosen, rejected), lengths, reference, strict=True):
        policy.append([(rho + ref) / length - 5.0] * length)
        base.append([ref / length - 5.0] * length)
    columns = {"reference_logps_N": base, "chosen_G": [0], "rejected_G": [1]}
    return Point(policy, columns, [0, 0], [[-5.0] * n for n in lengths])


def value(name, point, **fields):
    return judge(objectives.find(name)(**fields), point)[0].total.item()


SMALL = {"cdpo": 0.2, "robust": 0.2, "exo_pair": 0.2}
IPO_SUM = ("ipo", {"length_normalize": False, "tau": 0.3})
MARGIN_ONLY = [
    *[(name, {"beta": 0.3}) for name in ("dpo", "hinge", "aot", "discopop", "tr_dpo")],
    *[(name, {"beta": 0.3, "label_smoothing": eps}) for name, eps in SMALL.items()],
    ("f_dpo", {"beta": 0.3, "divergence": "reverse_kl"}),
    ("r_dpo", {"beta": 0.3}),
    IPO_SUM,
]
ABSOLUTE = [
    *[(name, {"beta": 0.3}) for name in ("nca_pair", "apo_zero", "apo_down", "sppo", "dpop")],
    *[("f_dpo", {"beta": 0.3, "divergence": d}) for d in ("forward_kl", "jensen_shannon", "alpha")],
    ("dpo_norm", {"beta": 0.3}),
    ("ipo", {"length_normalize": True, "tau": 0.3}),
]


def shifted(by):
    return pair(0.7, -0.4, (2, 5)), pair(0.7 + by, -0.4 + by, (2, 5))


@pytest.mark.parametrize(("name", "fields"), MARGIN_ONLY, ids=str)
@pytest.mark.parametrize("by", [1.9, -1.9])
def test_a_constant_per_prompt_leaves_the_margin_methods_alone(name, fields, by):
    here, there = shifted(by)
    assert value(name, there, **fields) == pytest.approx(value(name, here, **fields), abs=1e-10)


@pytest.mark.parametrize(("name", "fields"), ABSOLUTE, ids=str)
def test_a_constant_per_prompt_moves_the_absolute_methods(name, fields):
    moves = []
    for by in (1.9, -1.9):
        here, there = shifted(by)
        moves.append(abs(value(name, there, **fields) - value(name, here, **fields)))
    assert max(moves) > 1e-3


def test_a_constant_per_prompt_moves_bco_at_a_given_shift():
    import torch

    found = []
    for point in shifted(1.9):
        batch = point.batch().with_columns(reward_shift=torch.tensor(0.0, dtype=torch.float64))
        found.append(objectives.find("bco_pair")(beta=0.3)(batch, point.outputs()).total.item())
    assert abs(found[0] - found[1]) > 1e-3


G0 = [  # at the reference, in units of β∇log π: (chosen, rejected), for tokens of 2 and 5
    ("dpo", {}, -1 / 2, 1 / 2),
    ("cdpo", {"label_smoothing": 0.2}, -0.3, 0.3),
    ("robust", {"label_smoothing": 0.2}, -1 / 1.2, 1 / 1.2),
    ("hinge", {}, -1, 1),
    ("tr_dpo", {}, -1 / 2, 1 / 2),
    ("f_dpo", {"divergence": "reverse_kl"}, -1 / 2, 1 / 2),
    ("f_dpo", {"divergence": "forward_kl"}, -1 / 2, 1 / 2),
    ("f_dpo", {"divergence": "jensen_shannon"}, -1 / 4, 1 / 4),
    ("f_dpo", {"divergence": "alpha", "alpha": 0.3}, -1 / 2, 1 / 2),
    ("dpo_norm", {}, -1 / 4, 1 / 10),
    ("r_dpo", {"alpha": 0.1}, -1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(-0.3))),
    ("rpo", {"nll_coef": 0.06}, -1 / 2 - 0.06 / 2 / 0.3, 1 / 2),
    ("rpo", {"nll_coef": 0.06, "nll_average": "sum"}, -1 / 2 - 0.06 / 0.3, 1 / 2),
    ("dpop", {}, -1 / 2, 1 / 2),
    ("wpo", {}, -1 / 2, 1 / 2),
    ("nca_pair", {}, -1 / 4, 1 / 4),
    ("exo_pair", {"label_smoothing": 0.2}, -math.log(4) / 4, math.log(4) / 4),
    ("bco_pair", {}, -1 / 2, 1 / 2),
    ("apo_zero", {}, -1 / 4, 1 / 4),
    ("apo_down", {}, 0, 1 / 4),
    ("sppo", {}, -1 / 0.3**2, 1 / 0.3**2),
    ("aot", {}, -1 / 2, 1 / 2),
    ("aot", {"pairing": "unpaired"}, -1 / 2, 1 / 2),
    ("discopop", {"tau": 0.5}, (1 - LN2) / 2 - 3 / 4, 3 / 4 - (1 - LN2) / 2),
    ("beta_dpo", {"keep_ratio": 1.0}, -1 / 2, 1 / 2),
]
ELSEWHERE = {"ipo", "ld_dpo", "cpo", "simpo", "orpo", "slic", "xpo"}


@pytest.mark.parametrize(("name", "fields", "chosen", "rejected"), G0, ids=str)
def test_the_first_pull(name, fields, chosen, rejected):
    _, gradient = judge(objectives.find(name)(beta=0.3, **fields), pair(0, 0, (2, 5)))
    expected = [0.3 * chosen] * 2 + [0.3 * rejected] * 5
    assert gradient == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("normalize", "pulls"), [(False, (1, 1)), (True, (2, 5))])
def test_the_first_pull_of_ipo_has_no_beta(normalize, pulls):
    cls = objectives.find("ipo")
    _, gradient = judge(cls(tau=0.3, length_normalize=normalize), pair(0, 0, (2, 5)))
    expected = [-1 / 0.3 / pulls[0]] * 2 + [1 / 0.3 / pulls[1]] * 5
    assert gradient == pytest.approx(expected, abs=1e-10)


def test_the_first_pull_of_ld_dpo_fades_beyond_the_shorter_one():
    _, gradient = judge(objectives.find("ld_dpo")(beta=0.3, alpha=0.4), pair(0, 0, (2, 5)))
    assert gradient == pytest.approx([-0.15] * 2 + [0.15] * 2 + [0.06] * 3, abs=1e-12)


def test_no_pairwise_objective_is_left_out():
    pairwise = {n for n in objectives.names() if ".pairwise." in objectives.find(n).__module__}
    assert pairwise == {row[0] for row in G0} | ELSEWHERE


SWAPPABLE = [row for row in MARGIN_ONLY if row[0] != "r_dpo"]


@pytest.mark.parametrize(("name", "fields"), SWAPPABLE, ids=str)
def test_swapping_the_sides_negates_the_margin(name, fields):
    for w, r in [(0.7, -0.4), (-2.0, 1.5)]:
        swapped, negated = pair(r, w), pair(-w, -r)
        assert value(name, swapped, **fields) == pytest.approx(
            value(name, negated, **fields), abs=1e-10
        )


@pytest.mark.parametrize("name", ["dpo", "cdpo", "robust", "hinge", "exo_pair", "discopop", "aot"])
@pytest.mark.parametrize("point", [PAIRS_A, PAIRS_B], ids=["two pairs", "three pairs"])
def test_beta_and_the_log_ratio_trade_places(name, point):
    reference = point.columns["reference_logps_N"]
    scaled = [
        [q + 0.3 * (p - q) for p, q in zip(*rows, strict=True)]
        for rows in zip(point.policy, reference, strict=True)
    ]
    here = value(name, point, beta=0.3)
    there = value(name, Point(scaled, point.columns, point.groups), beta=1.0)
    assert there == pytest.approx(here, abs=1e-10)


@pytest.mark.parametrize(
    "name", ["dpo", "cdpo", "dpo_norm", "f_dpo", "ld_dpo", "wpo", "tr_dpo", "dpop"]
)
def test_at_the_reference_the_loss_is_ln_2_and_the_accuracy_0(name):
    loss, _ = judge(objectives.find(name)(), pair(0, 0, (2, 5)))
    assert loss.total.item() == pytest.approx(LN2, abs=1e-12)
    assert loss.metrics["rewards/margins"].total.item() == 0
    assert loss.metrics["rewards/accuracies"].total.item() == 0


@pytest.mark.parametrize("name", ["cdpo", "exo_pair"])
def test_smoothing_settles_at_its_log_odds(name):
    eps = 0.15
    best = math.log((1 - eps) / eps)
    cls = objectives.find(name)
    around = [pair(best + by, 0.0) for by in (-0.1, 0.0, 0.1)]
    losses = [value(name, point, beta=1.0, label_smoothing=eps) for point in around]
    assert losses[1] < min(losses[0], losses[2])
    _, gradient = judge(cls(beta=1.0, label_smoothing=eps), around[1])
    assert gradient == pytest.approx([0.0, 0.0], abs=1e-12)
    if name == "exo_pair":
        assert losses[1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("eps", [0.1, 0.35])
def test_flipping_the_labels_at_random_leaves_robust_dpo_unbiased(eps):
    for h in (-3.0, 0.4, 2.5):
        robust = {"beta": 1.0, "label_smoothing": eps}
        right, wrong = value("robust", pair(h, 0), **robust), value("robust", pair(0, h), **robust)
        clean = value("dpo", pair(h, 0), beta=1.0)
        assert (1 - eps) * right + eps * wrong == pytest.approx(clean, abs=1e-10)


def test_robust_dpo_is_unbounded_below_with_slope_eps():
    near, far = (value("robust", pair(h, 0), beta=1.0, label_smoothing=0.2) for h in (49, 50))
    assert far < near < 0
    assert far - near == pytest.approx(-0.2 / 0.6, abs=1e-9)


def test_ipo_aims_at_a_finite_margin_and_turns_back():
    fields = {"tau": 0.25, "length_normalize": False}
    assert value("ipo", pair(2.0, 0.0), **fields) == pytest.approx(0.0, abs=1e-12)
    _, beyond = judge(objectives.find("ipo")(**fields), pair(3.0, 0.0))
    assert beyond == pytest.approx([2.0, -2.0], abs=1e-12)


@pytest.mark.parametrize("rho", [0.0, 0.3, 4.0])
def test_dpop_is_dpo_while_the_chosen_has_not_fallen(rho):
    for dpop, dpo in [(value("dpop", pair(rho, r)), value("dpo", pair(rho, r))) for r in (-1, 2)]:
        assert dpop == pytest.approx(dpo, abs=1e-12)
