"""Best-of-N over the held-out prompts: no training, n times the sampling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from truing.config import BestOfN, check
from truing.errors import RolloutError
from truing.evaluation.policy import per_completion
from truing.exact import kl_bound
from truing.groups import TokenGroup
from truing.models.roles import load_reward_network
from truing.pipeline.context import Context, Tick
from truing.pipeline.stages.base import PipelineStage, Totals
from truing.rollouts.best_of_n import best
from truing.rollouts.sampler import sample
from truing.rollouts.scoring import score_groups, unscored
from truing.rundir import RunInfo
from truing.training.on_policy import sampling_settings

COMPLETIONS_FILE = "samples/best.jsonl"


class BestOfNStage(PipelineStage):
    """Writes the picked completions; an evaluate stage measures them like any policy's."""

    config: BestOfN
    makes = "completions"

    @classmethod
    def read(cls, name: str, raw: Mapping[str, Any], where: str) -> Self:
        return cls(name, check(BestOfN, raw, where, f"stages.{name}"))

    def check(self, context: Context) -> None:
        """There are prompts to answer, and the reward is known."""
        context.reward(self.config.reward)
        if self.config.data == "data":
            context.prompts("data", "test", self.config.test_prompts)

    def run(self, context: Context, info: RunInfo, tick: Tick) -> Totals:
        config = self.config
        prompts = context.prompts(config.data, "test", config.test_prompts)
        drawn = sample(
            context.network(config.from_),
            context.encode(prompts),
            sampling_settings(config, context.tokenizer.stop_id, context.readable),
            completions=config.num_generations,
            # the seed of every evaluation: the first of the n is what the policy itself answers
            seed=config.seed if config.seed is not None else context.derived_seed("held-out"),
        )
        tick(1, 2, {})
        scores = self._scores(context, drawn)
        rows = []
        for index, (prompt, group) in enumerate(zip(prompts, drawn, strict=True)):
            mine = scores[index * config.num_generations : (index + 1) * config.num_generations]
            pick = group.completions[best(mine)]
            rows.append(
                {
                    "prompt": prompt.prompt.text,
                    "completion": context.readable(pick.ids),
                    "ids": list(pick.ids),
                    "finish": pick.finish.value,
                    "score": max(mine),
                    "mean_score": sum(mine) / len(mine),
                }
            )
        context.run(self.name).write_rows(COMPLETIONS_FILE, rows)
        info.facts |= {"n": config.num_generations, "kl_bound": kl_bound(config.num_generations)}
        tick(2, 2, {})
        copies = 2 if isinstance(context.reward(config.reward), Path) else 1
        return Totals(sum(group.length for group in drawn), model_copies=copies)

    def _scores(self, context: Context, groups: list[TokenGroup]) -> list[float]:
        reward = context.reward(self.config.reward)
        if isinstance(reward, Path):
            network = load_reward_network(reward, context.dtype).requires_grad_(False)
            network.to(context.device)
            return per_completion(
                groups, lambda batch: network(batch.to(context.device), scores=True).scores_C
            )
        scores = score_groups(reward, groups, context.readable)
        if scores.faults:
            raise RolloutError(unscored(scores), where=reward.label)
        return [value for value in scores.values if value is not None]
