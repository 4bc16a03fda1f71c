"""A small taste for long answers becomes a large one: how much of the gain is only length.

Published: Singhal et al. 2023 (arXiv 2310.03716): 70 to 90 % of PPO's reward gain is a shift to
longer answers; within answers of one length little is gained. Park et al. 2024 (arXiv 2403.19159):
DPO's answers grow far beyond what its pairs show; R-DPO takes a length term out of the margin.
We expect: labels that favour the longer answer in 60 % of the pairs make every plain method longer
than its pairs; R-DPO with the annotator's own bias takes most of it back (exactly, with endless
data), SimPO's and DPO-norm's division by length some; gold, which does not see length, gains
either way.

Gold has mean 0 at every length. The annotator adds λ a token, with λ such that the longer of two
answers wins 60 % of the time. A gain of its reward is divided without remainder:

    E_π r − E_ref r = Σ_L π(L) (E_π[r|L] − E_ref[r|L])  +  Σ_L (π(L) − ref(L)) E_ref[r|L]

the first sum over the whole is the share that is not length (NRG).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments._common import Found, gathered, main, markdown, say, shown
from experiments._tiny import TableReward, World, features, scores, standardised, trained
from truing import exact
from truing.exact import Language
from truing.groups import TokenGroup

LONGER_WINS = 0.6


@dataclass(frozen=True)
class Plan:
    """How much is tried."""

    pairs: int = 4096
    rollouts: int = 40
    answers: int = 256
    dpo_epochs: int = 8
    max_length: int = 6
    methods: tuple[str, ...] = ("ppo", "dpo", "r_dpo", "dpo_norm", "simpo")


def run(seeds: int, plan: Plan = Plan()) -> Found:
    """Every method on the same pairs, over the seeds."""
    language = Language(3, plan.max_length)
    luck = torch.Generator().manual_seed(0)
    table = torch.randn(len(language.contexts), 3, generator=luck).double()
    with tempfile.TemporaryDirectory() as folder:
        world = World.make(Path(folder), language, table)
        gold_Y = standardised(blind_to_length(world, features(language, seed=2)), world.reference_Y)
        bias = bias_per_token(world, gold_Y)
        annotator_Y = gold_Y + bias * language.lengths_Y
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in plan.methods}
        models = []
        for seed in range(seeds):
            say(f"seed {seed}")
            pairs = world.pairs(annotator_Y, plan.pairs, seed)
            proxy_Y = reward_model(world, pairs, seed)
            models.append(taste(world, proxy_Y, gold_Y))
            for method in plan.methods:
                law_Y = law_of(world, method, pairs, proxy_Y, bias, seed, plan)
                runs[method].append(standing(world, law_Y, gold_Y, annotator_Y))
        return {
            "bias_per_token": bias,
            "longer_wins": longer_wins(world, annotator_Y),
            "reference": standing(world, world.reference_Y, gold_Y, annotator_Y),
            "reward_model": gathered(models),
            "methods": [{"method": name} | gathered(rows) for name, rows in runs.items()],
        }


def by_length(world: World, law_Y: Tensor, values_Y: Tensor) -> tuple[Tensor, Tensor]:
    """Of each length: its probability, and the mean of the values given it. Index: the length."""
    lengths_Y = world.language.lengths_Y
    mass = torch.zeros(world.language.max_length + 1).double().index_add(0, lengths_Y, law_Y.exp())
    total = torch.zeros_like(mass).index_add(0, lengths_Y, law_Y.exp() * values_Y)
    return mass, total / mass.clamp(min=1e-300)


def blind_to_length(world: World, values_Y: Tensor) -> Tensor:
    """The values less their mean at each length under the reference."""
    return values_Y - by_length(world, world.reference_Y, values_Y)[1][world.language.lengths_Y]


def longer_wins(world: World, rewards_Y: Tensor) -> float:
    """How often the longer of two answers of the reference wins, where lengths differ."""
    lengths_Y = world.language.lengths_Y
    weights_YY = exact.independent_pairs(world.reference_Y.exp())
    weights_YY = weights_YY * (lengths_Y[:, None] > lengths_Y)
    return float((weights_YY * exact.bradley_terry(rewards_Y)).sum() / weights_YY.sum())


def bias_per_token(world: World, gold_Y: Tensor) -> float:
    """λ with which the longer answer wins as often as it should."""
    low, high = 0.0, 10.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        often = longer_wins(world, gold_Y + middle * world.language.lengths_Y) > LONGER_WINS
        low, high = (low, middle) if often else (middle, high)
    return low


def reward_model(world: World, pairs: list[TokenGroup], seed: int) -> Tensor:
    """Scores of a small transformer, in units of the annotator's reward."""
    knobs = {"method": "bradley_terry", "learning_rate": 2e-3, "batch_size": 32}
    return scores(world, trained("random:llama", knobs, pairs, seed=seed))


def taste(world: World, proxy_Y: Tensor, gold_Y: Tensor) -> dict[str, float]:
    """Correlation of a reward model's scores with length and with gold, under the reference."""
    law_Y = world.reference_Y

    def correlation(values_Y: Tensor) -> float:
        both = standardised(values_Y.double(), law_Y) * standardised(proxy_Y, law_Y)
        return float(exact.expectation(law_Y, both))

    return {"with_length": correlation(world.language.lengths_Y), "with_gold": correlation(gold_Y)}


def law_of(
    world: World,
    method: str,
    pairs: list[TokenGroup],
    proxy_Y: Tensor,
    bias: float,
    seed: int,
    plan: Plan,
) -> Tensor:
    """What one run ends with. Every method at β = 0.3, or what its paper has in its place."""
    if method == "ppo":
        knobs: dict[str, Any] = {
            "kl_coef": 0.3,
            "learning_rate": 0.1,
            "max_grad_norm": 100.0,
            "num_rollouts": plan.rollouts,
            "rollout_batch_size": plan.answers,
            "batch_size": plan.answers,
            "sampling_batch_size": plan.answers,
            "num_train_epochs": 2,
            "max_completion_length": plan.max_length,
            "score_normalization": "none",
        }
        reward = TableReward.of(world.language, proxy_Y)
        groups = world.prompts(plan.answers)
        run = trained(world.folder, {"method": method, **knobs}, groups, seed=seed, reward=reward)
        return world.law(run.built)
    own: Mapping[str, Mapping[str, float]] = {
        "r_dpo": {"beta": 0.3, "alpha": bias},
        "dpo_norm": {"beta": 0.3 * 3},  # a mean over about 3 tokens for a sum
        "simpo": {"beta": 2.0, "gamma_beta_ratio": 0.0},
    }
    knobs = {"learning_rate": 0.1, "max_grad_norm": 100.0, "batch_size": 512}
    knobs |= {"num_train_epochs": plan.dpo_epochs, **own.get(method, {"beta": 0.3})}
    run = trained(world.folder, {"method": method, **knobs}, pairs, seed=seed)
    return world.law(run.built)


def standing(world: World, law_Y: Tensor, gold_Y: Tensor, annotator_Y: Tensor) -> dict[str, float]:
    """Length, gold, the annotator's reward and what part of its gain is not length."""
    lengths_Y = world.language.lengths_Y.double()
    mass, mean = by_length(world, law_Y, annotator_Y)
    old_mass, old_mean = by_length(world, world.reference_Y, annotator_Y)
    gain = float(exact.expectation(law_Y, annotator_Y)) - float(
        exact.expectation(world.reference_Y, annotator_Y)
    )
    within = float((mass * (mean - old_mean)).sum())
    shift = float(((mass - old_mass) * old_mean).sum())
    return {
        "length": float(exact.expectation(law_Y, lengths_Y)),
        "gold": float(exact.expectation(law_Y, gold_Y)),
        "gain": gain,
        "within_length": within,
        "by_length": shift,
        "kl": float(exact.kl(law_Y, world.reference_Y)),
    }


def table(found: Found) -> str:
    """One row a method."""
    reference = found["reference"]
    headings = ["method", "mean length", "gold", "annotator's gain", "of it within a length"]
    headings += ["NRG", "KL (nats)"]
    rows = [["reference", f"{reference['length']:.2f}", f"{reference['gold']:.2f}", *"––––"]]
    for row in found["methods"]:
        shares = [
            w / g
            for w, g in zip(row["within_length"]["values"], row["gain"]["values"], strict=True)
        ]
        cells = [shown(row[name]) for name in ("length", "gold", "gain", "within_length")]
        share = f"{sum(shares) / len(shares):.0%}"
        rows.append([row["method"], *cells, share, shown(row["kl"])])
    model = found["reward_model"]
    said = (
        f"The longer answer wins {found['longer_wins']:.0%} of the pairs "
        f"({found['bias_per_token']:.2f} a token). The reward model's scores correlate "
        f"{shown(model['with_length'])} with length, {shown(model['with_gold'])} with gold."
    )
    return f"{said}\n\n{markdown(headings, rows)}"


if __name__ == "__main__":
    sys.exit(main("length", {"tiny": run}, table))
