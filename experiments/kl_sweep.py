"""What a price on KL buys: the same methods at many β, beside the exact frontier.

Published: Ziegler et al. 2019 (arXiv 1909.08593): without a KL penalty the reward rises and the
text falls apart. Rafailov et al. 2023 (arXiv 2305.18290), section 6.1 and figure 2: reward against
KL, each method a curve that β moves along. Bai et al. 2022 (arXiv 2204.05862): reward is about
linear in √KL.
We expect: no point above the exact frontier (a theorem: of all laws at a distance, ref · exp(r/β)
has the most reward); KL falls as β rises; β = 0 ends with nearly all mass on one sentence.
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
from experiments._picture import Line, drawn
from experiments._tiny import TableReward, World, trained
from truing import exact
from truing.exact import Language

ON_POLICY = {"learning_rate": 0.1, "max_completion_length": 3, "max_grad_norm": 100.0}


@dataclass(frozen=True)
class Plan:
    """How much is tried."""

    betas: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0)
    methods: tuple[str, ...] = ("ppo", "rloo", "dpo")
    rollouts: int = 30
    answers: int = 256
    """Completions of one rollout."""
    pairs: int = 4096
    dpo_epochs: int = 8


def run(seeds: int, plan: Plan = Plan()) -> Found:
    """Every method at every β, over the seeds."""
    grid = torch.arange(21, dtype=torch.float64).view(7, 3)
    rewards_Y = (2 * torch.arange(15, dtype=torch.float64)).sin()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        world = World.make(Path(folder), Language(3, 3), grid.sin())
        for method in plan.methods:
            for beta in plan.betas:
                if method == "dpo" and beta == 0:
                    continue  # it has no such limit: its policy is ref · exp(r/β)
                say(f"{method}, β {beta:g}")
                laws = [law_of(world, rewards_Y, method, beta, s, plan) for s in range(seeds)]
                rows.append(
                    {"method": method, "beta": beta} | summary(world, rewards_Y, laws, beta)
                )
        optima = exact.frontier(world.reference_Y, rewards_Y, [b for b in plan.betas if b > 0])
        # fine enough that the chords of the drawn line lie on it, and down to where it ends
        fine = torch.logspace(2, -3, 200, dtype=torch.float64).tolist()
        line = exact.frontier(world.reference_Y, rewards_Y, fine)
        names = ("beta", "kl", "reward")
        return {
            "rows": rows,
            "optima": {n: t.tolist() for n, t in zip(names, optima, strict=True)},
            "frontier": {n: t.tolist() for n, t in zip(names, line, strict=True)},
            "reference": world.standing(world.reference_Y, rewards_Y),
            "largest_reward": float(rewards_Y.max()),
        }


def law_of(
    world: World, rewards_Y: Tensor, method: str, beta: float, seed: int, plan: Plan
) -> Tensor:
    """What one run ends with."""
    if method == "dpo":
        knobs: dict[str, Any] = {"beta": beta, "learning_rate": 0.1, "batch_size": 512}
        knobs |= {"num_train_epochs": plan.dpo_epochs, "max_grad_norm": 100.0}
        groups, reward = world.pairs(rewards_Y, plan.pairs, seed), None
    else:
        each = 4 if method == "rloo" else 1
        knobs = {"kl_coef": beta, "num_rollouts": plan.rollouts, "score_normalization": "none"}
        knobs |= {"num_generations": each, "rollout_batch_size": plan.answers // each}
        knobs |= {"batch_size": plan.answers, "sampling_batch_size": plan.answers, **ON_POLICY}
        knobs |= {"num_train_epochs": 4}
        groups = world.prompts(plan.answers // each)
        reward = TableReward.of(world.language, rewards_Y)
    run = trained(world.folder, {"method": method, **knobs}, groups, seed=seed, reward=reward)
    return world.law(run.built)


def summary(world: World, rewards_Y: Tensor, laws: list[Tensor], beta: float) -> dict[str, Any]:
    """Where the runs of one β ended, and how far from the optimum of that β."""
    found = [world.standing(law_Y, rewards_Y) for law_Y in laws]
    if beta > 0:
        best_Y = exact.optimal_policy(world.reference_Y, rewards_Y, beta)
        for row, law_Y in zip(found, laws, strict=True):
            row["kl_to_optimum"] = float(exact.kl(law_Y, best_Y))
    return gathered(found)


def table(found: Found) -> str:
    """One row a method and β."""
    optimum = dict(zip(found["optima"]["beta"], found["optima"]["kl"], strict=True))
    headings = ["method, β", "KL (nats)", "KL of π*", "reward", "below the frontier"]
    headings += ["KL to π*", "entropy (nats)", "likeliest sentence"]
    rows = []
    for row in found["rows"]:
        known = row["beta"] in optimum
        rows.append(
            [
                f"{row['method']}, {row['beta']:g}",
                shown(row["kl"]),
                f"{optimum[row['beta']]:.2f}" if known else "–",
                shown(row["reward"], 3),
                shown(row["below_frontier"], 3),
                shown(row["kl_to_optimum"], 3) if known else "–",
                shown(row["entropy"]),
                shown(row["largest"]),
            ]
        )
    return markdown(headings, rows)


def picture(found: Found) -> str:
    """Reward against KL: the frontier, and where every β of each method ended."""
    line = found["frontier"]
    start = (found["reference"]["kl"], found["reference"]["reward"])
    points = sorted([start, *zip(line["kl"], line["reward"], strict=True)])
    kls, rewards = zip(*points, strict=True)
    lines = [Line("exact frontier", kls, rewards, marker="")]
    for method in dict.fromkeys(row["method"] for row in found["rows"]):
        mine = [row for row in found["rows"] if row["method"] == method]
        x, y = ([row[name]["mean"] for row in mine] for name in ("kl", "reward"))
        lines.append(Line(method, x, y, joined=False))
    return drawn("Reward against KL, a point for every β", "KL (nats)", "reward", [lines])


if __name__ == "__main__":
    sys.exit(main("kl_sweep", {"tiny": run}, table))
