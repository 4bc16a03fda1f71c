"""DPO lowers the likelihood of what was chosen: the exact law, and what similar pairs do to it.

Published: Pal et al. 2024 (arXiv 2402.13228): with pairs that differ in few tokens the chosen
answer's likelihood falls while the margin grows; DPOP prevents it. Razin et al. 2024 (arXiv
2410.08847): the more alike the two sides' hidden states, the more likelihood moves elsewhere.
Rafailov et al. 2024 (arXiv 2404.12358), section 4.3: it falls even where chosen answers were
fine-tuned on first.
We expect: exactly, for pairs drawn from the reference (sheet, O23), whatever the labels,

    E[r_chosen + r_rejected] = −2β KL(ref‖π),   so   E r_chosen = margin/2 − β KL(ref‖π):

as the forward KL grows faster than the margin, the chosen side ends below 0. In a network: a fall
for pairs that differ in one place, less for pairs that share nothing, and none with DPOP or with
the chosen side's own loss (RPO, IRPO).
"""

from __future__ import annotations

import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments._common import Found, gathered, main, markdown, say, shown
from experiments._picture import Line, drawn
from experiments._tiny import World, trained
from truing import exact
from truing.evaluation.policy import per_completion
from truing.exact import Language
from truing.groups import TokenCompletion, TokenGroup
from truing.models import saving
from truing.models.tiny import byte_tokenizer
from truing.ops import segment_sum
from truing.training.build import Built

BETA = 0.1
SUBJECTS = ("cat", "dog", "fox", "cow", "hen", "owl", "bee", "ant")
VERBS = ("sees", "likes", "finds", "hears", "wants", "meets")
OBJECTS = ("milk", "corn", "wool", "fish", "moss", "salt", "leaf", "rain")


@dataclass(frozen=True)
class Plan:
    """How much is tried."""

    steps: int = 120
    """Of DPO on the table."""
    pairs: int = 4096
    """For the table."""
    sentences: int = 96
    """Of the network's corpus; as many pairs."""
    sft_epochs: int = 12
    network_steps: int = 36
    methods: tuple[str, ...] = ("dpo", "dpop", "irpo")


def run(seeds: int, plan: Plan = Plan()) -> Found:
    """The law along a run on the table, then the network."""
    grid = torch.arange(21, dtype=torch.float64).view(7, 3)
    rewards_Y = (2 * torch.arange(15, dtype=torch.float64)).sin()
    with tempfile.TemporaryDirectory() as folder:
        world = World.make(Path(folder), Language(3, 3), grid.sin())
        say("the exact law")
        law = [along(world, rewards_Y, seed, plan) for seed in range(seeds)]
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            base = speaker(Path(folder), seed, plan)
            for kind in ("one letter", "distinct"):
                for method in plan.methods:
                    say(f"{method}, {kind}, seed {seed}")
                    row = network_run(base, method, kind, seed, plan)
                    runs.setdefault(f"{method}, {kind}", []).append(row)
    return {
        "law": law,
        "network": [{"name": name} | gathered(rows) for name, rows in runs.items()],
    }


def along(world: World, rewards_Y: Tensor, seed: int, plan: Plan) -> list[dict[str, float]]:
    """Both sides of the law at every tenth step, by sums over all pairs; and what the run itself
    logged on its sampled pairs."""
    reference_Y = world.reference_Y
    pairs_YY = exact.independent_pairs(reference_Y.exp())
    wins_YY = exact.bradley_terry(rewards_Y)
    points: list[dict[str, float]] = []

    def watch(step: int, built: Built) -> None:
        if step % 10:
            return
        law_Y = world.law(built)
        implicit_Y = BETA * (law_Y - reference_Y)
        chosen = float((pairs_YY * (wins_YY * implicit_Y[:, None] + wins_YY.T * implicit_Y)).sum())
        lost_YY = wins_YY.T * implicit_Y[:, None] + wins_YY * implicit_Y
        rejected = float((pairs_YY * lost_YY).sum())
        forward = float(exact.kl(reference_Y, law_Y))
        points.append(
            {
                "step": step,
                "chosen": chosen,
                "rejected": rejected,
                "margin": chosen - rejected,
                "forward_kl": forward,
                "law": (chosen - rejected) / 2 - BETA * forward,
            }
        )

    knobs = {
        "method": "dpo",
        "beta": BETA,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 100.0,
        "batch_size": 512,
        "num_train_epochs": -(-plan.steps * 512 // plan.pairs),
        "max_steps": plan.steps,
    }
    trained(world.folder, knobs, world.pairs(rewards_Y, plan.pairs, seed), seed=seed, watch=watch)
    return points


def speaker(folder: Path, seed: int, plan: Plan) -> Path:
    """A two-layer Llama that has learnt to say the corpus."""
    rows = [
        TokenGroup(group.prompt_ids, (group.completions[0],))
        for group in network_pairs("distinct", seed, plan)
    ]
    knobs = {
        "method": "sft",
        "learning_rate": 5e-3,
        "batch_size": 32,
        "num_train_epochs": plan.sft_epochs,
    }
    tokenizer = byte_tokenizer()
    run = trained("random:llama", knobs, rows, seed=seed, stop_id=int(tokenizer.eos_token_id))
    saving.save_policy(folder, run.built.roles.policy.base, tokenizer, torch.float32)
    return folder


def network_pairs(kind: str, seed: int, plan: Plan) -> list[TokenGroup]:
    """A sentence is chosen; rejected is the same with one letter changed, or another sentence."""
    luck, tokenizer = random.Random(seed), byte_tokenizer()
    stop = int(tokenizer.eos_token_id)

    def sentence() -> str:
        return f"the {luck.choice(SUBJECTS)} {luck.choice(VERBS)} {luck.choice(OBJECTS)}"

    prompt = tuple(tokenizer.encode("Say: "))
    made = []
    for _ in range(plan.sentences):
        chosen, other = sentence(), sentence()
        place = luck.randrange(4, len(chosen))
        letter = luck.choice([c for c in "abcdefghijklmnopqrstuvwxyz" if c != chosen[place]])
        rejected = {"distinct": other, "one letter": chosen[:place] + letter + chosen[place + 1 :]}
        sides = [
            TokenCompletion((*tokenizer.encode(text), stop)) for text in (chosen, rejected[kind])
        ]
        made.append(TokenGroup(prompt, tuple(sides), chosen=0, rejected=1))
    return made


def network_run(base: Path, method: str, kind: str, seed: int, plan: Plan) -> dict[str, float]:
    """How far each side's log-likelihood moved, nats per sentence, and how often it fell."""
    pairs = network_pairs(kind, seed, plan)
    before: list[Tensor] = []
    after: list[Tensor] = []

    def watch(step: int, built: Built) -> None:
        if step in (0, plan.network_steps):
            (before if step == 0 else after).append(likelihoods(built, pairs))

    knobs = {
        "method": method,
        "beta": BETA,
        "learning_rate": 1e-3,
        "batch_size": 32,
        "num_train_epochs": -(-plan.network_steps * 32 // len(pairs)),
        "max_steps": plan.network_steps,
    }
    stop = int(byte_tokenizer().eos_token_id)
    trained(base, knobs, pairs, seed=seed, stop_id=stop, watch=watch)
    chosen_P, rejected_P = (after[0] - before[0]).view(-1, 2).T
    return {
        "chosen": float(chosen_P.mean()),
        "rejected": float(rejected_P.mean()),
        "margin": float((chosen_P - rejected_P).mean()),
        "chosen_fell": float((chosen_P < 0).double().mean()),
        "chosen_before": float(before[0].view(-1, 2)[:, 0].mean()),
    }


@torch.no_grad()
def likelihoods(built: Built, pairs: list[TokenGroup]) -> Tensor:
    """log π of both sides of each pair, in their order. Nats, float64."""

    def sums(batch: Any) -> Tensor:
        logps_N = built.roles.outputs(batch, "policy").logps_N
        assert logps_N is not None
        return segment_sum(logps_N, batch.completion_N, batch.size_C)

    return torch.tensor(per_completion(pairs, sums), dtype=torch.float64)


CAPTION = "First table: one seed. Second: mean ± standard error over seeds."


def table(found: Found) -> str:
    """The end of the law's run, then the networks."""
    headings = ["step", "margin", "KL(ref‖π)", "chosen reward", "margin/2 − β KL(ref‖π)"]
    points = found["law"][0]
    shown_points = [points[0], *points[1:4], *points[6::6]]
    law = [
        [str(p["step"]), *(f"{p[name]:.4f}" for name in ("margin", "forward_kl", "chosen", "law"))]
        for p in shown_points
    ]
    network = [
        [
            row["name"],
            *(shown(row[name]) for name in ("chosen", "rejected", "margin", "chosen_fell")),
        ]
        for row in found["network"]
    ]
    names = ["method, rejected side", "Δ log π chosen", "Δ log π rejected", "Δ margin"]
    return f"{markdown(headings, law)}\n\n{markdown([*names, 'chosen fell (share)'], network)}"


def picture(found: Found) -> str:
    """The margin grows, the chosen side falls, and the law says how far; first seed."""
    points = found["law"][0]
    steps = [p["step"] for p in points]
    names = {"margin": "margin", "chosen": "chosen reward", "rejected": "rejected reward"}
    lines = [Line(name, steps, [p[key] for p in points], marker="") for key, name in names.items()]
    lines.append(Line("margin/2 − β KL(ref‖π)", steps, [p["law"] for p in points], joined=False))
    return drawn("DPO on the table", "step", "β × nats", [lines])


if __name__ == "__main__":
    sys.exit(main("chosen_likelihood", {"tiny": run}, table))
