"""Objectives that see a pair through one margin, in scalars (sheet 1.7, 1.8).

Each row: the objective's name, its fields, and the loss of a pair as the paper writes it.
"""

import math

import pytest
import torch
from points import PAIRS_A, PAIRS_B, agree, judge, label, over_pairs
from pydantic import ValidationError
from scalar import bernoulli_kl, log_sigmoid, mean, sigmoid

from truing import objectives


def dpo(w, r, beta):
    return -log_sigmoid(beta * (w.rho - r.rho))


def cdpo(w, r, beta, label_smoothing):
    h, eps = beta * (w.rho - r.rho), label_smoothing
    return -(1 - eps) * log_sigmoid(h) - eps * log_sigmoid(-h)


def robust(w, r, beta, label_smoothing):
    h, eps = beta * (w.rho - r.rho), label_smoothing
    return (eps * log_sigmoid(-h) - (1 - eps) * log_sigmoid(h)) / (1 - 2 * eps)


def hinge(w, r, beta):
    return max(0.0, 1 - beta * (w.rho - r.rho))


def ipo(w, r, tau, length_normalize):
    margin = w.mean_rho - r.mean_rho if length_normalize else w.rho - r.rho
    return (margin - 1 / (2 * tau)) ** 2


def exo_pair(w, r, beta, label_smoothing):
    return bernoulli_kl(sigmoid(beta * (w.rho - r.rho)), 1 - label_smoothing)


def discopop(w, r, beta, tau):
    h = beta * (w.rho - r.rho)
    gate = sigmoid(h / tau)
    return (1 - gate) * -log_sigmoid(h) + gate * math.exp(-h)


def dpo_norm(w, r, beta):
    return -log_sigmoid(beta * (w.mean_rho - r.mean_rho))


def r_dpo(w, r, beta, alpha):
    return -log_sigmoid(beta * (w.rho - r.rho) + alpha * (w.length - r.length))


def ld_dpo(w, r, beta, alpha):
    shared = min(w.length, r.length)

    def rho(y):
        ratios = [p - q for p, q in zip(y.policy, y.reference, strict=True)]
        return sum(ratios[:shared]) + alpha * sum(ratios[shared:])

    return -log_sigmoid(beta * (rho(w) - rho(r)))


def rpo(w, r, beta, nll_coef, nll_average="sequence"):
    nll = -w.mean_logp if nll_average == "sequence" else -w.logp
    return dpo(w, r, beta) + nll_coef * nll


def dpop(w, r, beta, penalty):
    return -log_sigmoid(beta * (w.rho - r.rho - penalty * max(0.0, -w.rho)))


SLOPE = {  # f'(u) of each divergence, as a function of ρ = log u
    "reverse_kl": lambda rho, alpha: rho,
    "forward_kl": lambda rho, alpha: -math.exp(-rho),
    "jensen_shannon": lambda rho, alpha: math.log(2 * math.exp(rho) / (1 + math.exp(rho))),
    "alpha": lambda rho, alpha: (1 - math.exp(-alpha * rho)) / alpha,
}


def f_dpo(w, r, beta, divergence="jensen_shannon", alpha=0.5):
    f = SLOPE[divergence]
    return -log_sigmoid(beta * (f(w.rho, alpha) - f(r.rho, alpha)))


def tr_dpo(w, r, beta, **moving):
    return dpo(w, r, beta)


CASES = [
    ("dpo", dpo, {"beta": 0.1}),
    ("dpo", dpo, {"beta": 0.7}),
    ("cdpo", cdpo, {"beta": 0.1, "label_smoothing": 0.1}),
    ("cdpo", cdpo, {"beta": 0.6, "label_smoothing": 0.35}),
    ("robust", robust, {"beta": 0.1, "label_smoothing": 0.1}),
    ("robust", robust, {"beta": 0.6, "label_smoothing": 0.35}),
    ("hinge", hinge, {"beta": 0.1}),
    ("hinge", hinge, {"beta": 1.3}),
    ("ipo", ipo, {"tau": 0.1, "length_normalize": True}),
    ("ipo", ipo, {"tau": 0.8, "length_normalize": True}),
    ("ipo", ipo, {"tau": 0.8, "length_normalize": False}),
    ("exo_pair", exo_pair, {"beta": 0.1, "label_smoothing": 1e-3}),
    ("exo_pair", exo_pair, {"beta": 0.6, "label_smoothing": 0.2}),
    ("discopop", discopop, {"beta": 0.05, "tau": 0.05}),
    ("discopop", discopop, {"beta": 0.3, "tau": 0.4}),
    ("dpo_norm", dpo_norm, {"beta": 5.0}),
    ("dpo_norm", dpo_norm, {"beta": 0.9}),
    ("r_dpo", r_dpo, {"beta": 0.1, "alpha": 0.01}),
    ("r_dpo", r_dpo, {"beta": 0.4, "alpha": 0.3}),
    ("ld_dpo", ld_dpo, {"beta": 0.1, "alpha": 0.5}),
    ("ld_dpo", ld_dpo, {"beta": 0.8, "alpha": 0.2}),
    ("rpo", rpo, {"beta": 0.1, "nll_coef": 0.005}),
    ("rpo", rpo, {"beta": 0.4, "nll_coef": 0.7}),
    ("rpo", rpo, {"beta": 0.4, "nll_coef": 0.7, "nll_average": "sum"}),
    ("dpop", dpop, {"beta": 0.1, "penalty": 50.0}),
    ("dpop", dpop, {"beta": 0.6, "penalty": 1.7}),
    ("f_dpo", f_dpo, {"beta": 0.1}),
    *[("f_dpo", f_dpo, {"beta": 0.7, "divergence": name}) for name in SLOPE],
    ("f_dpo", f_dpo, {"beta": 0.7, "divergence": "alpha", "alpha": 0.3}),
    ("tr_dpo", tr_dpo, {"beta": 0.4, "mixup_alpha": 0.2, "sync_steps": 7}),
]
every_case = pytest.mark.parametrize(("name", "scalar", "fields"), CASES, ids=label)
DEFAULTS = {
    "cdpo": {"beta": 0.1, "label_smoothing": 0.1},
    "robust": {"beta": 0.1, "label_smoothing": 0.1},
    "hinge": {"beta": 0.1},
    "ipo": {"tau": 0.1, "length_normalize": True},
    "exo_pair": {"beta": 0.1, "label_smoothing": 1e-3},
    "discopop": {"beta": 0.05, "tau": 0.05},
    "dpo_norm": {"beta": 5.0},
    "r_dpo": {"beta": 0.1, "alpha": 0.01},
    "ld_dpo": {"beta": 0.1, "alpha": 0.5},
    "rpo": {"beta": 0.1, "nll_coef": 0.005, "nll_average": "sequence"},
    "dpop": {"beta": 0.1, "penalty": 50.0},
    "f_dpo": {"beta": 0.1, "divergence": "jensen_shannon", "alpha": 0.5},
    "tr_dpo": {"beta": 0.1, "mixup_alpha": 0.6, "sync_steps": 512},
    "wpo": {"beta": 0.1},
}


@every_case
@pytest.mark.parametrize("point", [PAIRS_A, PAIRS_B], ids=["two pairs", "three pairs"])
def test_value_and_gradient(name, scalar, fields, point):
    objective = objectives.find(name)(**fields)
    loss = over_pairs(point, lambda w, r: scalar(w, r, **fields))
    agree(objective, point, loss, weight=len(point.columns["chosen_G"]))


@every_case
def test_single_precision(name, scalar, fields):
    loss = over_pairs(PAIRS_A, lambda w, r: scalar(w, r, **fields))
    agree(objectives.find(name)(**fields), PAIRS_A, loss, 2, torch.float32)


@pytest.mark.parametrize("point", [PAIRS_A, PAIRS_B], ids=["two pairs", "three pairs"])
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_wpo_weighs_by_how_likely_the_policy_is_to_say_it(point, beta):
    def weight(index):  # at the point itself: it takes no gradient
        pairs = zip(point.policy[index], point.collision[index], strict=True)
        return math.exp(mean([p - c for p, c in pairs]))

    sides = list(zip(point.columns["chosen_G"], point.columns["rejected_G"], strict=True))

    def loss(policy):
        return sum(
            weight(w) * weight(r) * dpo(point.sentence(w, policy), point.sentence(r, policy), beta)
            for w, r in sides
        )

    products = [weight(w) * weight(r) for w, r in sides]
    assert min(products) < 0.9
    assert point is PAIRS_A or max(products) > 1.1
    agree(objectives.find("wpo")(beta=beta), point, loss, weight=len(sides))


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name):
    cls = objectives.find(name)
    assert cls() == cls(**DEFAULTS[name])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("robust", {"label_smoothing": 0.5}),  # divides by 1 − 2ε
        ("exo_pair", {"label_smoothing": 0.0}),  # the KL to a certain label is infinite
        ("ipo", {"tau": 0.0}),
        ("f_dpo", {"divergence": "kl"}),
        ("rpo", {"nll_average": "token"}),
        ("dpop", {"penalty": -1.0}),
        ("tr_dpo", {"mixup_alpha": 1.5}),
        ("tr_dpo", {"sync_steps": 0}),
        ("ld_dpo", {"alpha": -0.1}),
    ],
    ids=str,
)
def test_senseless_fields_are_refused(name, fields):
    with pytest.raises(ValidationError):
        objectives.find(name)(**fields)


def test_only_tr_dpo_moves_its_reference():
    moving = [n for n in objectives.names() if objectives.find(n).moves_reference]
    assert moving == ["tr_dpo"]


def test_r_dpo_gives_a_longer_winner_a_smaller_pull():
    plain, penalised = (objectives.find("r_dpo")(beta=0.1, alpha=alpha) for alpha in (1e-12, 0.05))
    _, before = judge(plain, PAIRS_A)
    _, after = judge(penalised, PAIRS_A)
    # pair 0: the chosen has one token more; pair 1: three fewer
    assert abs(after[2]) < abs(before[2])
    assert abs(after[5]) > abs(before[5])
