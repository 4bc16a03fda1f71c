"""How many different answers are left: SFT, DPO and PPO at two prices of KL.

Published: Kirk et al. 2023 (arXiv 2310.06452): after RLHF answers to one prompt are far less
varied than after SFT, less so across prompts. Cui et al. 2025 (arXiv 2505.22617): the reward is
bought with entropy, most of it early.
We expect: variety falls in the order SFT, DPO, PPO with a high price, PPO with a low one; rejection
sampling without a price (RAFT) lowest of all, where it is there.

Entropy and the expected number of different answers among k samples are exact:

    E[different of k] = Σ_y 1 − (1 − π(y))^k
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
from experiments._tiny import TableReward, World, features, readable, standardised, trained
from truing import exact, objectives
from truing.evaluation.diversity import distinct_n
from truing.exact import Language
from truing.groups import TokenGroup

SAMPLES = 16
"""Answers to one prompt that are compared, as in Kirk et al."""


@dataclass(frozen=True)
class Plan:
    """How much is tried."""

    pairs: int = 4096
    rollouts: int = 60
    answers: int = 256
    epochs: int = 8
    vocabulary: int = 5
    max_length: int = 4


def run(seeds: int, plan: Plan = Plan()) -> Found:
    """Every method, over the seeds."""
    language = Language(plan.vocabulary, plan.max_length)
    luck = torch.Generator().manual_seed(0)
    table = torch.randn(len(language.contexts), plan.vocabulary, generator=luck).double()
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = World.make(Path(folder), language, table)
        gold_Y = standardised(features(language, seed=1), world.reference_Y)
        for seed in range(seeds):
            pairs = world.pairs(gold_Y, plan.pairs, seed)
            for name, knobs in methods(plan).items():
                say(f"{name}, seed {seed}")
                law_Y = law_of(world, gold_Y, pairs, knobs, seed)
                runs.setdefault(name, []).append(variety(world, law_Y, gold_Y, seed))
        return {
            "reference": variety(world, world.reference_Y, gold_Y, 0),
            "methods": [{"name": name} | gathered(rows) for name, rows in runs.items()],
        }


def methods(plan: Plan) -> dict[str, dict[str, Any]]:
    """Name -> keys of its stage."""
    common = {"learning_rate": 0.1, "max_grad_norm": 100.0}
    offline = {**common, "batch_size": 512, "num_train_epochs": plan.epochs}
    drawing = {
        **common,
        "num_rollouts": plan.rollouts,
        "rollout_batch_size": plan.answers,
        "batch_size": plan.answers,
        "sampling_batch_size": plan.answers,
        "max_completion_length": plan.max_length,
    }
    ppo = {"method": "ppo", **drawing, "num_train_epochs": 2, "score_normalization": "none"}
    found: dict[str, dict[str, Any]] = {
        "sft on chosen": {"method": "sft", "aggregation": "sequence_sum", **offline},
        "dpo, β 0.3": {"method": "dpo", "beta": 0.3, **offline},
        "ppo, β 0.3": {**ppo, "kl_coef": 0.3},
        "ppo, β 0.03": {**ppo, "kl_coef": 0.03},
    }
    if "raft" in objectives.methods():
        found["raft"] = {"method": "raft", **drawing, "num_generations": 8}
        found["raft"]["rollout_batch_size"] = plan.answers // 8
    return found


def law_of(
    world: World, gold_Y: Tensor, pairs: list[TokenGroup], knobs: dict[str, Any], seed: int
) -> Tensor:
    """What one run ends with."""
    if "num_rollouts" in knobs:
        prompts = world.prompts(knobs["rollout_batch_size"])
        reward = TableReward.of(world.language, gold_Y)
        run = trained(world.folder, knobs, prompts, seed=seed, reward=reward)
        return world.law(run.built)
    rows = pairs
    if knobs["method"] == "sft":
        rows = [TokenGroup(p.prompt_ids, (p.completions[p.chosen or 0],)) for p in pairs]
    return world.law(trained(world.folder, knobs, rows, seed=seed).built)


def variety(world: World, law_Y: Tensor, gold_Y: Tensor, seed: int) -> dict[str, float]:
    """Reward, distance and how varied the answers are; one number is of drawn answers."""
    luck = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(law_Y.exp(), SAMPLES, replacement=True, generator=luck)
    texts = [readable(world.language.sentences[i]) for i in drawn.tolist()]
    return {
        "gold": float(exact.expectation(law_Y, gold_Y)),
        "kl": float(exact.kl(law_Y, world.reference_Y)),
        "entropy": float(-exact.expectation(law_Y, law_Y)),
        "different": different(law_Y, SAMPLES) / SAMPLES,
        "distinct_2": distinct_n(texts, 2),
    }


def different(law_Y: Tensor, samples: int) -> float:
    """Expected number of different answers among `samples`."""
    return float(-torch.expm1(samples * torch.log1p(-law_Y.exp().clamp(max=1 - 1e-15))).sum())


def table(found: Found) -> str:
    """One row a method."""
    headings = ["method", "gold", "KL (nats)", "entropy (nats)", f"share that differ, of {SAMPLES}"]
    names = ("gold", "kl", "entropy", "different", "distinct_2")
    first = ["reference", *(f"{found['reference'][name]:.2f}" for name in names)]
    rows = [[row["name"], *(shown(row[name]) for name in names)] for row in found["methods"]]
    return markdown([*headings, "distinct-2"], [first, *rows])


if __name__ == "__main__":
    sys.exit(main("mode_collapse", {"tiny": run}, table))
