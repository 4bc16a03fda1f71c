"""Pairs that cover half of the answers: where DPO and PPO leave the mass of the other half.

Published: Xu et al. 2024 (arXiv 2404.10719): every policy PPO can find DPO can find too, but DPO
also finds policies that favour answers outside of its data; tuned PPO beats it, and DPO on pairs
of its own distribution comes closer.
We expect: the exact DPO loss does not change at all when mass moves between the covered and the
uncovered answers (a theorem: the comparison graph has islands; sheet, O22), so where DPO ends is
decided by luck and by the network; PPO is held by its KL. With pairs from the whole reference the
graph is connected and the freedom is gone.

Half of the sentences, drawn by each seed, appear in pairs. The uncovered ones are no worse and no
better by the reward. PPO's reward model sees the same pairs; it is a table, so it knows nothing of
what it has not seen, or a transformer, which guesses.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments._common import Found, gathered, main, markdown, say, shown
from experiments._table_network import scores_of
from experiments._tiny import TableReward, World, features, scores, standardised, trained
from truing import exact
from truing.exact import Language
from truing.groups import TokenGroup

BETA = 0.1


@dataclass(frozen=True)
class Plan:
    """How much is tried."""

    pairs: int = 2048
    dpo_epochs: int = 20
    rollouts: int = 40
    answers: int = 256
    vocabulary: int = 3
    max_length: int = 4


def run(seeds: int, plan: Plan = Plan()) -> Found:
    """Both methods on covered pairs and on pairs from the whole reference, over the seeds."""
    language = Language(plan.vocabulary, plan.max_length)
    luck = torch.Generator().manual_seed(0)
    table = torch.randn(len(language.contexts), plan.vocabulary, generator=luck).double()
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = World.make(Path(folder), language, table)
        gold_Y = standardised(features(language, seed=3), world.reference_Y)
        for seed in range(seeds):
            covered_Y = torch.rand(len(gold_Y), generator=luck) < 0.5
            for data in ("half", "whole"):
                say(f"{data}, seed {seed}")
                pairs = pairs_of(world, gold_Y, covered_Y if data == "half" else None, plan, seed)
                for name, law_Y in laws_of(world, pairs, seed, plan).items():
                    row = standing(world, law_Y, gold_Y, covered_Y)
                    row["islands"] = float(exact.flat_directions(counts(world, pairs)) + 1)
                    runs.setdefault(f"{name}, {data}", []).append(row)
    return {"runs": [{"name": name} | gathered(rows) for name, rows in runs.items()]}


def pairs_of(
    world: World, gold_Y: Tensor, covered_Y: Tensor | None, plan: Plan, seed: int
) -> list[TokenGroup]:
    """Pairs from the reference, or from what of it is covered."""
    from_Y = world.reference_Y
    if covered_Y is not None:
        from_Y = from_Y.masked_fill(~covered_Y, -torch.inf).log_softmax(-1)
    return world.pairs(gold_Y, plan.pairs, seed, from_Y)


def counts(world: World, pairs: list[TokenGroup]) -> Tensor:
    """How often one sentence was shown with another. Shape [Y, Y]."""
    index = {words: i for i, words in enumerate(world.language.sentences)}
    shown_YY = torch.zeros(len(index), len(index))
    for pair in pairs:
        i, j = (index[c.ids] for c in pair.completions)
        shown_YY[i, j] += 1
    return shown_YY


def laws_of(world: World, pairs: list[TokenGroup], seed: int, plan: Plan) -> dict[str, Tensor]:
    """DPO on the pairs; PPO on two reward models of the same pairs."""
    knobs: dict[str, Any] = {"method": "dpo", "beta": BETA, "learning_rate": 0.1}
    knobs |= {"batch_size": 512, "num_train_epochs": plan.dpo_epochs, "max_grad_norm": 100.0}
    found = {"dpo": world.law(trained(world.folder, knobs, pairs, seed=seed).built)}
    fit = {"method": "bradley_terry", "batch_size": 64}
    tabular = trained(
        world.folder, {**fit, "learning_rate": 0.05, "num_train_epochs": 8}, pairs, seed=seed
    )
    head = tabular.built.roles.policy.score_head
    assert head is not None
    network = trained(
        "random:llama", {**fit, "learning_rate": 2e-3, "num_train_epochs": 3}, pairs, seed=seed
    )
    found["ppo, reward table"] = ppo(world, scores_of(head.weight, world.language)[0], seed, plan)
    found["ppo, reward network"] = ppo(world, scores(world, network), seed, plan)
    return found


def ppo(world: World, scores_Y: Tensor, seed: int, plan: Plan) -> Tensor:
    """What PPO makes of a reward model."""
    knobs = {
        "method": "ppo",
        "kl_coef": BETA,
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
    reward = TableReward.of(world.language, scores_Y)
    run = trained(world.folder, knobs, world.prompts(plan.answers), seed=seed, reward=reward)
    return world.law(run.built)


def standing(world: World, law_Y: Tensor, gold_Y: Tensor, covered_Y: Tensor) -> dict[str, float]:
    """Gold, distance, and the mass of uncovered answers: now, under the reference, and under the
    optimum of the gold reward."""
    best_Y = exact.optimal_policy(world.reference_Y, gold_Y, BETA)
    mass = {
        name: float(y.exp()[~covered_Y].sum()) for name, y in (("now", law_Y), ("best", best_Y))
    }
    return {
        "gold": float(exact.expectation(law_Y, gold_Y)),
        "kl": float(exact.kl(law_Y, world.reference_Y)),
        "uncovered": mass["now"],
        "uncovered_before": float(world.reference_Y.exp()[~covered_Y].sum()),
        "uncovered_best": mass["best"],
        "best_gold": float(exact.expectation(best_Y, gold_Y)),
    }


def table(found: Found) -> str:
    """One row a method and kind of data."""
    headings = ["method, pairs from", "islands", "mass on uncovered", "before", "of π*"]
    headings += ["gold", "gold of π*", "KL (nats)"]
    names = ("uncovered", "uncovered_before", "uncovered_best", "gold", "best_gold", "kl")
    rows = [
        [row["name"], shown(row["islands"], 0), *(shown(row[name]) for name in names)]
        for row in found["runs"]
    ]
    return markdown(headings, rows)


if __name__ == "__main__":
    sys.exit(main("shift", {"tiny": run}, table))
