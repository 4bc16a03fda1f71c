"""A simulated annotator: completions drawn from a model, compared in pairs, chosen by coin.

P(a over b) = σ((score_a − score_b) / temperature), the Bradley-Terry model with the annotator's
own reward. What is written is what a person would have left: pairs, without scores to learn from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from truing.config import Preferences, check
from truing.data.formats import to_row
from truing.errors import RolloutError
from truing.groups import Completion, Group, TokenGroup
from truing.memory import Memory
from truing.pipeline.context import Context, Split, Tick
from truing.pipeline.stages.base import PipelineStage, Totals
from truing.rollouts.sampler import sample
from truing.rollouts.scoring import score_groups, scores_by_group, unscored
from truing.rundir import RunInfo
from truing.training.on_policy import sampling_settings


class PreferencesStage(PipelineStage):
    """Writes train.jsonl and test.jsonl: preference rows in TRL's format."""

    config: Preferences
    makes = "groups"

    @classmethod
    def read(cls, name: str, raw: Mapping[str, Any], where: str) -> Self:
        return cls(name, check(Preferences, raw, where, f"stages.{name}"))

    def check(self, context: Context) -> None:
        """The annotator exists and there are prompts on both sides."""
        context.text_reward(self.config.annotator)
        if self.config.data != "data":
            return  # prompts that an earlier stage will make
        for split, limit in self._splits():
            context.prompts(self.config.data, split, limit, self.config.max_completion_length)

    def _splits(self) -> list[tuple[Split, int | None]]:
        return [("train", self.config.train_prompts), ("test", self.config.test_prompts)]

    def run(self, context: Context, info: RunInfo, tick: Tick) -> Totals:
        config = self.config
        annotator = context.text_reward(config.annotator)
        network = context.network(config.from_)
        settings = sampling_settings(config, context.tokenizer.stop_id, context.readable)
        seed = context.seed(self.name, config.seed)
        memory = Memory(say=lambda text: context.say(f"{self.name}: {text}"))
        tokens = 0
        for number, (split, limit) in enumerate(self._splits(), start=1):
            prompts = context.prompts(config.data, split, limit, config.max_completion_length)
            drawn = sample(
                network,
                context.encode(prompts),
                settings,
                completions=config.num_generations,
                seed=seed + number,
                memory=memory,
            )
            tokens += sum(group.length for group in drawn)
            scores = score_groups(annotator, drawn, context.readable)
            scored = [
                _answered(context, *one)
                for one in zip(prompts, drawn, scores_by_group(scores, drawn), strict=True)
            ]
            pairs, certainty = self._pairs(scored, random.Random(seed + number))
            if scores.faults:
                info.facts[f"{split}_unscored"] = scores.faults
                context.say(f"{self.name}: {unscored(scores)}; their pairs are left out ({split})")
            context.run(self.name).write_rows(f"{split}.jsonl", map(to_row, pairs))
            info.facts |= {
                f"{split}_pairs": len(pairs),
                # how often a judge who knows the true scores would agree with the coin
                f"{split}_ceiling": certainty,
            }
            tick(number, 2, {})
        if memory.halved:
            info.facts["memory_halved"] = memory.halved
        return Totals(tokens, model_copies=1)

    def _pairs(self, groups: list[Group], coin: random.Random) -> tuple[list[Group], float]:
        """Neighbours compared; the mean certainty of the choices (½ is a coin, 1 is sure)."""
        pairs: list[Group] = []
        certainty = 0.0
        for group in groups:
            for first in range(0, len(group.completions) - 1, 2):
                left, right = group.completions[first : first + 2]
                if not left.text.strip() or not right.text.strip() or left.text == right.text:
                    continue  # nothing to compare; the count of pairs is in run.json
                if left.score is None or right.score is None:
                    continue  # counted in run.json, too
                drift = (left.score - right.score) / self.config.annotator_temperature
                prefers_left = 1 / (1 + math.exp(-max(-700.0, min(700.0, drift))))
                left_wins = coin.random() < prefers_left
                certainty += max(prefers_left, 1 - prefers_left)
                bare = (replace(left, score=None), replace(right, score=None))
                chosen, rejected = bare if left_wins else bare[::-1]
                pairs.append(replace(group, completions=(chosen, rejected), chosen=0, rejected=1))
        if not pairs:
            raise RolloutError(
                "no two completions could be compared: they are empty, equal or unscored",
                where=f"stages.{self.name}",
                remedy="raise temperature or max_completion_length",
            )
        return pairs, certainty / len(pairs)


def _answered(
    context: Context, prompt: Group, drawn: TokenGroup, scores: Sequence[float | None]
) -> Group:
    """The prompt with what was drawn, as texts with scores."""
    completions = tuple(
        Completion(context.readable(c.ids), c.finish, score)
        for c, score in zip(drawn.completions, scores, strict=True)
    )
    return replace(prompt, completions=completions)
