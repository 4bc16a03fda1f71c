"""A proxy is optimised and gold falls: Best-of-N, PPO and DPO on one axis, by how much data.

Published: Gao et al. 2022 (arXiv 2210.10760): with d = √KL the gold reward follows d(α − β d) for
Best-of-N and d(α − β log d) for RL; a reward model of more data turns later and falls slower; RL
spends more KL than Best-of-N for the same gain. Rafailov et al. 2024 (arXiv 2406.02900): DPO,
which has no reward model to blame, follows the same form.
We expect: proxy reward rises with d for ever, gold turns; its peak is farther and higher for more
pairs; the forms fit where the curve turns inside the range.

The gold reward is known for every sentence. A reward model of random weights (two layers of a
Llama) learns m pairs that gold labels by Bradley-Terry; the same m pairs train DPO. The proxy is
read off for every sentence and set to mean 0, variance 1 under the reference, so Best-of-N is
exact, and so is every KL.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments._common import Found, gathered, main, markdown, over_seeds, say, shown
from experiments._picture import Line, drawn
from experiments._tiny import TableReward, World, features, scores, standardised, trained
from truing import exact
from truing.exact import Language
from truing.training.build import Built

FITS: dict[str, Callable[[Tensor, Tensor], exact.Fit]] = {
    "best_of_n": exact.fit_bon,
    "ppo": exact.fit_rl,
    "dpo": exact.fit_rl,
}
PEAKS = {"best_of_n": exact.bon_peak, "ppo": exact.rl_peak, "dpo": exact.rl_peak}


@dataclass(frozen=True)
class Plan:
    """How much is tried."""

    pairs: tuple[int, ...] = (64, 512, 4096)
    sizes: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024)
    """n of Best-of-N."""
    rollouts: int = 60
    answers: int = 256
    """Completions of one rollout."""
    dpo_steps: int = 60
    vocabulary: int = 5
    max_length: int = 4


def run(seeds: int, plan: Plan = Plan()) -> Found:
    """Every method on every amount of data, over the seeds."""
    language = Language(plan.vocabulary, plan.max_length)
    luck = torch.Generator().manual_seed(0)
    table = torch.randn(len(language.contexts), plan.vocabulary, generator=luck).double()
    curves: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        world = World.make(Path(folder), language, table)
        gold_Y = standardised(features(language, seed=1), world.reference_Y)
        for m in plan.pairs:
            for seed in range(seeds):
                say(f"{m} pairs, seed {seed}")
                curves += curves_of(world, gold_Y, m, seed, plan)
    return {"curves": curves, "fits": fits(curves, plan), "reward_models": judged(curves, plan)}


def curves_of(world: World, gold_Y: Tensor, m: int, seed: int, plan: Plan) -> list[dict[str, Any]]:
    """Best-of-N, PPO and DPO from the same m pairs."""
    pairs = world.pairs(gold_Y, m, seed)
    reward_model = trained(
        "random:llama",
        {
            "method": "bradley_terry",
            "learning_rate": 2e-3,
            "batch_size": 32,
            "num_train_epochs": max(1, min(16, 2048 // m)),
        },
        pairs,
        seed=seed,
    )
    proxy_Y = standardised(scores(world, reward_model), world.reference_Y)
    laws = {
        "best_of_n": [exact.best_of_n_logps(world.reference_Y, proxy_Y, n) for n in plan.sizes],
        "ppo": by_ppo(world, proxy_Y, seed, plan),
        "dpo": by_dpo(world, pairs, seed, plan),
    }
    # both have mean 0 and deviation 1 under the reference: this is their correlation there
    agreement = float(exact.expectation(world.reference_Y, gold_Y * proxy_Y))
    return [
        {"method": method, "pairs": m, "seed": seed, "agreement": agreement}
        | trajectory(world, found, gold_Y, proxy_Y)
        for method, found in laws.items()
    ]


def by_ppo(world: World, proxy_Y: Tensor, seed: int, plan: Plan) -> list[Tensor]:
    """The law after every rollout; no price on KL, as in the paper: time does its work."""
    laws: list[Tensor] = []

    def watch(_: int, built: Built) -> None:
        laws.append(world.law(built))

    knobs = {
        "method": "ppo",
        "kl_coef": 0.0,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 100.0,
        "num_rollouts": plan.rollouts,
        "rollout_batch_size": plan.answers,
        "batch_size": plan.answers,
        "sampling_batch_size": plan.answers,
        "num_train_epochs": 2,
        "max_completion_length": world.language.max_length,
        "score_normalization": "none",
    }
    reward = TableReward.of(world.language, proxy_Y)
    trained(world.folder, knobs, world.prompts(plan.answers), seed=seed, reward=reward, watch=watch)
    return laws[::2]


def by_dpo(world: World, pairs: list[Any], seed: int, plan: Plan) -> list[Tensor]:
    """The law after every step, at a small β: the pairs say how far it goes."""
    laws: list[Tensor] = []

    def watch(_: int, built: Built) -> None:
        laws.append(world.law(built))

    batch = min(len(pairs), 512)
    knobs = {
        "method": "dpo",
        "beta": 0.05,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 100.0,
        "batch_size": batch,
        "num_train_epochs": -(-plan.dpo_steps * batch // len(pairs)),
        "max_steps": plan.dpo_steps,
    }
    trained(world.folder, knobs, pairs, seed=seed, watch=watch)
    return laws


def trajectory(
    world: World, laws: list[Tensor], gold_Y: Tensor, proxy_Y: Tensor
) -> dict[str, list[float]]:
    """Distance, gold and proxy along the way; exact sums."""
    kept = {"distance": [], "gold": [], "proxy": []}  # type: dict[str, list[float]]
    for law_Y in laws:
        divergence = max(0.0, float(exact.kl(law_Y, world.reference_Y)))
        kept["distance"].append(round(divergence**0.5, 6))
        kept["gold"].append(round(float(exact.expectation(law_Y, gold_Y)), 6))
        kept["proxy"].append(round(float(exact.expectation(law_Y, proxy_Y)), 6))
    return kept


def fits(curves: list[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """The form of each method and amount of data, over the seeds, and where gold really peaked."""
    found = []
    for method, fit in FITS.items():
        for m in plan.pairs:
            mine = [c for c in curves if (c["method"], c["pairs"]) == (method, m)]
            rows = [one_fit(c, fit, PEAKS[method]) for c in mine]
            turning = [row["fitted_peak"] for row in rows if row["fitted_peak"] is not None]
            numbers = [{n: v for n, v in row.items() if n != "fitted_peak"} for row in rows]
            found.append(
                {"method": method, "pairs": m, "turning": len(turning)}
                | gathered(numbers)
                | ({"fitted_peak": over_seeds(turning)} if turning else {})
            )
    return found


def one_fit(
    curve: dict[str, Any], fit: Callable[..., exact.Fit], peak: Callable[..., exact.Peak | None]
) -> dict[str, Any]:
    """α, β, R² of one curve, its own highest point, and its end."""
    distance, gold = (torch.tensor(curve[name]).double() for name in ("distance", "gold"))
    form = fit(distance, gold)
    turn = peak(form.alpha, form.beta)
    return {
        "alpha": form.alpha,
        "beta": form.beta,
        "r2": form.r2,
        "highest_gold": float(gold.max()),
        "highest_at": float(distance[gold.argmax()]),
        "last_gold": float(gold[-1]),
        "last_proxy": curve["proxy"][-1],
        "last_distance": float(distance[-1]),
        "fitted_peak": None if turn is None else turn.distance,
    }


def judged(curves: list[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """How well the proxy follows gold under the reference: their correlation."""
    return [
        {"pairs": m}
        | {
            "agreement": over_seeds(
                {c["seed"]: c["agreement"] for c in curves if c["pairs"] == m}.values()
            )
        }
        for m in plan.pairs
    ]


def table(found: Found) -> str:
    """One row a method and amount of data."""
    agreement = {row["pairs"]: row["agreement"] for row in found["reward_models"]}
    headings = ["method, pairs", "proxy-gold correlation", "highest gold", "at d", "fitted peak d"]
    headings += ["α", "β", "R²", "last d", "last proxy", "last gold"]
    rows = []
    for row in found["fits"]:
        peak = f"{shown(row['fitted_peak'])} ({row['turning']})" if row["turning"] else "none"
        rows.append(
            [
                f"{row['method']}, {row['pairs']:,}",
                shown(agreement[row["pairs"]]),
                *(shown(row[name]) for name in ("highest_gold", "highest_at")),
                peak,
                *(shown(row[name]) for name in ("alpha", "beta", "r2", "last_distance")),
                *(shown(row[name]) for name in ("last_proxy", "last_gold")),
            ]
        )
    return markdown(headings, rows)


def picture(found: Found) -> str:
    """Gold against d, a panel a method, a line an amount of data; first seed."""
    panels = []
    for method in FITS:
        mine = [c for c in found["curves"] if (c["method"], c["seed"]) == (method, 0)]
        panels.append(
            [
                Line(f"{method}, {c['pairs']:,} pairs", c["distance"], c["gold"], marker="")
                for c in mine
            ]
        )
    return drawn("Gold reward against d = √KL", "d (√nats)", "gold reward", panels)


if __name__ == "__main__":
    sys.exit(main("overoptimisation", {"tiny": run}, table))
