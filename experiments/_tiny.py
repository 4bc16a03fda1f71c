"""A world in which everything can be counted, and the production path through it.

The reference is a table over a tiny language (see `_table_network`), a policy is such a table after
training, so KL, reward, entropy are sums without sampling error. Everything else is the house's
own: `resolve` reads a stage's keys, `build` makes its networks, source and step, `train` loops.

Y sentences · S contexts · V words
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments._table_network import logits_of, save_table
from truing import config, exact
from truing.data.packing import pack
from truing.exact import Language
from truing.groups import FinishReason, TokenCompletion, TokenGroup
from truing.rewards.base import Reward
from truing.rollouts.scoring import score_groups
from truing.rundir import RunDirectory
from truing.training.build import Built, build
from truing.training.inputs import Inputs
from truing.training.loop import train
from truing.training.method import resolve

Watch = Callable[[int, Built], None]
"""Called with the number of updates so far: 0 before the first."""


@dataclass(frozen=True)
class World:
    """A language, how the reference speaks it, and where that is a model on disk."""

    language: Language
    reference_SV: Tensor
    folder: Path

    @classmethod
    def make(cls, folder: Path, language: Language, reference_SV: Tensor) -> World:
        """Write the reference as a model folder."""
        save_table(folder, language, reference_SV[None])
        # what the model holds is float32: that is the reference, not what it was rounded from
        return cls(language, reference_SV.float().double(), folder)

    @property
    def reference_Y(self) -> Tensor:
        return self.language.sentence_logps(self.reference_SV)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The one prompt there is: a token that is no word."""
        return (self.language.vocabulary,)

    def prompts(self, count: int) -> list[TokenGroup]:
        """The prompt, as often as a rollout answers it."""
        return [TokenGroup(self.prompt_ids) for _ in range(count)]

    def completion(self, sentence: int) -> TokenCompletion:
        words = self.language.sentences[sentence]
        ended = words[-1] == self.language.stop
        return TokenCompletion(words, FinishReason.STOP if ended else FinishReason.LENGTH)

    def every_sentence(self) -> TokenGroup:
        """All of them, as answers to the prompt."""
        count = len(self.language.sentences)
        return TokenGroup(self.prompt_ids, tuple(self.completion(i) for i in range(count)))

    def pairs(
        self, rewards_Y: Tensor, count: int, seed: int, from_Y: Tensor | None = None
    ) -> list[TokenGroup]:
        """Two sentences each, drawn from the reference (or `from_Y`, log-probs) and labelled by
        Bradley-Terry: P(i over j) = σ(r_i − r_j). Pairs of one sentence with itself say nothing
        and are drawn again."""
        luck = torch.Generator().manual_seed(seed)
        law_Y = (self.reference_Y if from_Y is None else from_Y).exp()
        i_P, j_P = torch.multinomial(law_Y, 16 * count, replacement=True, generator=luck).view(
            2, -1
        )
        chance_P = torch.rand(len(i_P), generator=luck, dtype=torch.float64)
        wins_P = chance_P < torch.sigmoid(rewards_Y[i_P] - rewards_Y[j_P])
        kept = (i_P != j_P).nonzero()[:count, 0]
        assert len(kept) == count, "a law that is almost one sentence has no pairs"
        return [
            TokenGroup(
                self.prompt_ids,
                (self.completion(i), self.completion(j)),
                chosen=int(not wins),
                rejected=int(wins),
            )
            for i, j, wins in zip(*(x[kept].tolist() for x in (i_P, j_P, wins_P)), strict=True)
        ]

    def law(self, built: Built) -> Tensor:
        """log π(y) of every sentence as the policy is now. Shape [Y], nats, float64."""
        return self.language.sentence_logps(logits_of(built.roles.policy.base, self.language)[0])

    def standing(self, law_Y: Tensor, rewards_Y: Tensor) -> dict[str, float]:
        """Where a law stands: reward, distance, the best reward at that distance, variety."""
        distance = float(exact.kl(law_Y, self.reference_Y))
        reward = float(exact.expectation(law_Y, rewards_Y))
        best = exact.best_reward_at(self.reference_Y, rewards_Y, distance)
        return {
            "kl": distance,
            "reward": reward,
            "below_frontier": best - reward,
            "entropy": float(-exact.expectation(law_Y, law_Y)),
            "largest": float(law_Y.exp().max()),
        }


@dataclass(frozen=True)
class TableReward(Reward):
    """A number for each sentence, found by its text."""

    by_text: Mapping[str, float]

    @classmethod
    def of(cls, language: Language, rewards_Y: Tensor) -> TableReward:
        texts = map(readable, language.sentences)
        return cls(dict(zip(texts, rewards_Y.tolist(), strict=True)))

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        return [self.by_text[text] for text in completions]


def readable(ids: Sequence[int]) -> str:
    """Words as digits."""
    return " ".join(map(str, ids))


@dataclass
class Trained:
    """A stage that has run."""

    built: Built
    metrics: list[dict[str, float]] = field(default_factory=list)
    """The lines of its metrics.jsonl."""


def trained(
    source: Path | str,
    knobs: Mapping[str, Any],
    groups: Sequence[TokenGroup],
    *,
    seed: int,
    reward: Reward | None = None,
    demonstrations: Sequence[TokenGroup] = (),
    stop_id: int = 0,
    readable: Callable[[Sequence[int]], str] = readable,
    watch: Watch | None = None,
) -> Trained:
    """One training stage, as a recipe would run it; `knobs` are the stage's keys."""
    given = dict(knobs) if reward is None else {"reward": "table", **knobs}
    method = resolve("stage", given, "experiments")
    torch.manual_seed(seed)
    built = build(
        method,
        Inputs(
            source=str(source),
            revision=None,
            model=config.Model(path=str(source), dtype="float32", device="cpu"),
            stop_id=stop_id,
            train=groups,
            heldout=(),
            demonstrations=demonstrations,
            reward_run=None,
            shares_trunk=False,
            reward=None if reward is None else partial(score_groups, reward, readable=readable),
            on_rollout=lambda index, rollout: None,
            seed=seed,
            where="experiments",
            readable=readable,
        ),
    )
    if watch is not None:
        watch(0, built)

    def tick(number: int, total: int, metrics: Mapping[str, float]) -> None:
        if watch is not None:
            watch(number, built)

    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        train(built.step, built.source, run, tick, built.meter)
        return Trained(built, run.metrics())


@torch.no_grad()
def scores(world: World, reward_model: Trained) -> Tensor:
    """What the reward model says of every sentence. Shape [Y]."""
    outputs = reward_model.built.roles.outputs(pack([world.every_sentence()]), "reward")
    assert outputs.scores_C is not None
    return outputs.scores_C.double()


def features(language: Language, seed: int) -> Tensor:
    """A reward that is made of words and of neighbours, so that part of it shows in any sentence:
    Σ a(word) + Σ b(word, next). Shape [Y]."""
    luck = random.Random(seed)
    word = [luck.gauss(0, 1) for _ in range(language.vocabulary)]
    pair = {(a, b): luck.gauss(0, 1) for a in range(8) for b in range(8)}
    return torch.tensor(
        [
            sum(word[w] for w in sentence) + sum(pair[two] for two in pairwise(sentence))
            for sentence in language.sentences
        ],
        dtype=torch.float64,
    )


def standardised(values_Y: Tensor, law_Y: Tensor) -> Tensor:
    """Mean 0 and variance 1 under a law."""
    centred = values_Y - exact.expectation(law_Y, values_Y)
    return centred / exact.variance(law_Y, values_Y).sqrt()
