"""What a policy forgets while it learns to please, and what helps: ptx, or going half the way.

Published: Ouyang et al. 2022 (arXiv 2203.02155): PPO loses on public tasks; mixing in pretraining
gradients (PPO-ptx) recovers most of it, a higher KL coefficient does not. Lin et al. 2023
(arXiv 2309.06256): forgetting grows with the reward; averaging the weights before and after gives
the best trade of all.
We expect: the loss on the text it was taught rises with the reward; with ptx it rises less at the
same reward; the averaged weights lie on or above the line between start and end.

A two-layer Llama learns to say simple sentences after "Say: ". Then PPO rewards vowels after
"Shout: ". Forgetting is the loss on sentences it has never seen, after "Say: ".
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments._common import Found, gathered, main, markdown, over_seeds, say, shown
from experiments._tiny import trained
from experiments.chosen_likelihood import OBJECTS, SUBJECTS, VERBS
from truing.data.chat import ChatTokenizer
from truing.evaluation.policy import per_completion
from truing.groups import TokenCompletion, TokenGroup
from truing.models import saving
from truing.models.network import Network
from truing.models.tiny import byte_tokenizer
from truing.ops import segment_sum
from truing.rewards.character_share import CharacterShare
from truing.rollouts.engines.base import SamplingSettings
from truing.rollouts.sampler import sample
from truing.rollouts.scoring import score_groups
from truing.training.build import Built

LONGEST = 20


@dataclass(frozen=True)
class Plan:
    """How much is tried."""

    sentences: int = 160
    """Taught; as many again are held out."""
    sft_epochs: int = 10
    rollouts: int = 20
    answers: int = 32
    ptx: tuple[float, ...] = (0.0, 0.3)
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Of the way from the weights before to those after."""


def run(seeds: int, plan: Plan = Plan()) -> Found:
    """PPO with and without demonstrations beside it, and the averages, over the seeds."""
    runs: dict[str, list[list[dict[str, float]]]] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            base, taught, heldout = speaker(Path(folder), seed, plan)
            for ptx in plan.ptx:
                say(f"ptx_coef {ptx:g}, seed {seed}")
                points, between = rewarded(base, ptx, taught, heldout, seed, plan)
                runs.setdefault(f"ptx_coef {ptx:g}", []).append(points)
                if ptx == 0:
                    runs.setdefault("averaged weights", []).append(between)
    return {
        "curves": [
            {"name": name, "points": [gathered(same) for same in zip(*found, strict=True)]}
            for name, found in runs.items()
        ],
        "start": over_seeds(found[0]["loss"] for found in runs[f"ptx_coef {plan.ptx[0]:g}"]),
    }


def sentences(count: int, seed: int) -> list[str]:
    """Different ones."""
    every = [f"the {a} {b} {c}" for a in SUBJECTS for b in VERBS for c in OBJECTS]
    return random.Random(seed).sample(every, count)


def said(texts: Sequence[str]) -> list[TokenGroup]:
    """Each as an answer to "Say: "."""
    tokenizer = byte_tokenizer()
    prompt, stop = tuple(tokenizer.encode("Say: ")), int(tokenizer.eos_token_id)
    return [
        TokenGroup(prompt, (TokenCompletion((*tokenizer.encode(text), stop)),)) for text in texts
    ]


def speaker(folder: Path, seed: int, plan: Plan) -> tuple[Path, list[TokenGroup], list[TokenGroup]]:
    """The model before PPO, what it was taught, what was held out."""
    texts = sentences(2 * plan.sentences, seed)
    taught, heldout = said(texts[: plan.sentences]), said(texts[plan.sentences :])
    tokenizer = byte_tokenizer()
    knobs = {"method": "sft", "learning_rate": 5e-3, "batch_size": 32}
    run = trained(
        "random:llama",
        {**knobs, "num_train_epochs": plan.sft_epochs},
        taught,
        seed=seed,
        stop_id=int(tokenizer.eos_token_id),
    )
    saving.save_policy(folder, run.built.roles.policy.base, tokenizer, torch.float32)
    return folder, taught, heldout


def rewarded(
    base: Path,
    ptx: float,
    taught: Sequence[TokenGroup],
    heldout: Sequence[TokenGroup],
    seed: int,
    plan: Plan,
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Reward and held-out loss every few rollouts; then of the weights in between."""
    chat = ChatTokenizer(byte_tokenizer())
    prompts = [TokenGroup(tuple(byte_tokenizer().encode("Shout: "))) for _ in range(plan.answers)]
    points: list[dict[str, float]] = []
    start: dict[str, Any] = {}
    every = max(1, 2 * plan.rollouts // 5)

    def watch(step: int, built: Built) -> None:
        if step == 0:
            start.update({n: p.detach().clone() for n, p in weights(built.roles.policy)})
        if step % every == 0:
            points.append({"step": step} | measured(built.roles.policy, chat, prompts, heldout))

    knobs = {
        "method": "ppo",
        "kl_coef": 0.02,
        "ptx_coef": ptx,
        "learning_rate": 3e-3,
        "num_rollouts": plan.rollouts,
        "rollout_batch_size": plan.answers,
        "batch_size": plan.answers,
        "num_train_epochs": 2,
        "max_completion_length": LONGEST,
    }
    run = trained(
        base,
        knobs,
        prompts,
        seed=seed,
        reward=CharacterShare(),
        demonstrations=taught,
        stop_id=chat.stop_id,
        readable=chat.decode,
        watch=watch,
    )
    policy = run.built.roles.policy
    end = {n: p.detach().clone() for n, p in weights(policy)}
    between = []
    for share in plan.shares:
        with torch.no_grad():
            for name, parameter in weights(policy):
                parameter.copy_(torch.lerp(start[name], end[name], share))
        between.append({"step": share} | measured(policy, chat, prompts, heldout))
    return points, between


def weights(network: Network) -> list[tuple[str, torch.nn.Parameter]]:
    """The language model's own."""
    return list(network.base.named_parameters())


@torch.no_grad()
def measured(
    network: Network,
    chat: ChatTokenizer,
    prompts: Sequence[TokenGroup],
    heldout: Sequence[TokenGroup],
) -> dict[str, float]:
    """Mean reward after "Shout: ", and nats per token of held-out sentences after "Say: "."""
    settings = SamplingSettings(LONGEST, 1.0, 64, chat.stop_id)
    drawn = sample(network, prompts, settings, completions=4, seed=1)
    rewards = [
        v for v in score_groups(CharacterShare(), drawn, chat.decode).values if v is not None
    ]

    def sums(batch: Any) -> torch.Tensor:
        logps_N = network(batch, logps=True).logps_N
        return segment_sum(logps_N, batch.completion_N, batch.size_C)

    tokens = sum(len(group.completions[0].ids) for group in heldout)
    loss = -sum(per_completion(heldout, sums)) / tokens
    return {"reward": sum(rewards) / len(rewards), "loss": loss}


def table(found: Found) -> str:
    """One row a point of a curve."""
    headings = ["run", "updates, or share of the way", "reward (share of vowels)"]
    rows = [
        [
            curve["name"],
            f"{point['step']['mean']:g}",
            shown(point["reward"], 3),
            shown(point["loss"], 3),
        ]
        for curve in found["curves"]
        for point in curve["points"]
    ]
    return markdown([*headings, "held-out loss (nats/token)"], rows)


if __name__ == "__main__":
    sys.exit(main("forgetting", {"tiny": run}, table))
