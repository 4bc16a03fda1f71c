"""Best-of-N over the held-out prompts: no training, n times the sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from truing.config import BestOfN, RewardSpec, check
from truing.evaluation.intervals import mean_interval
from truing.evaluation.policy import per_completion
from truing.exact import kl_bound
from truing.groups import FinishReason, Group, TokenGroup
from truing.memory import Memory
from truing.models.roles import load_reward_network
from truing.pipeline.context import Context, Tick
from truing.pipeline.stages.base import PipelineStage, Totals
from truing.rewards.base import checked_scores
from truing.rollouts.best_of_n import Curve, best, curve
from truing.rollouts.sampler import sample
from truing.rollouts.scoring import score_groups, scores_by_group, unscored
from truing.rundir import BEST_OF_N_FILE, RunInfo
from truing.training.on_policy import sampling_settings

COMPLETIONS_FILE = "samples/best.jsonl"


class BestOfNStage(PipelineStage):
    """Writes the picked completions, which an evaluate stage measures like any policy's, and what
    every smaller n would have given."""

    config: BestOfN
    makes = "completions"

    @classmethod
    def read(cls, name: str, raw: Mapping[str, Any], where: str) -> Self:
        return cls(name, check(BestOfN, raw, where, f"stages.{name}"))

    def check(self, context: Context) -> None:
        """There are prompts to answer, and the rewards are known."""
        context.reward(self.config.reward)
        if self.config.gold is not None:
            context.reward(self.config.gold)
        if self.config.data == "data":
            context.prompts(
                "data", "test", self.config.test_prompts, self.config.max_completion_length
            )

    def run(self, context: Context, info: RunInfo, tick: Tick) -> Totals:
        config, directory = self.config, context.run(self.name)
        prompts = context.prompts(
            config.data, "test", config.test_prompts, config.max_completion_length
        )
        memory = Memory(say=lambda text: context.say(f"{self.name}: {text}"))
        drawn = sample(
            context.network(config.from_),
            context.encode(prompts),
            sampling_settings(config, context.tokenizer.stop_id, context.readable),
            completions=config.num_generations,
            # the seed of every evaluation: the first of the n is what the policy itself answers
            seed=config.seed if config.seed is not None else context.derived_seed("held-out"),
            memory=memory,
        )
        _say_cut(context, info, self.name, drawn)
        tick(1, 2, {})
        proxy = self._scores(context, info, drawn, config.reward, memory)
        gold = None
        if config.gold is not None:
            gold = self._scores(context, info, drawn, config.gold, memory)
        if memory.halved:
            info.facts["memory_halved"] = memory.halved
        picked = _picked(context, prompts, drawn, proxy)
        directory.write_rows(COMPLETIONS_FILE, picked)
        if unpicked := sum(row["score"] is None for row in picked):
            info.facts["unpicked"] = unpicked
            context.say(f"{self.name}: {unpicked:,} prompts without a scored completion: the first")
        equal = sum(len(set(mine)) == 1 for mine in proxy if len(mine) > 1)
        if equal:
            info.facts["equal_scores"] = equal
            context.say(f"{self.name}: {equal:,} prompts whose scores are all equal: the first")
        found = curve(proxy, gold)
        if found is None:
            context.say(f"{self.name}: no prompt has all its scores: there is no curve over n")
        else:
            directory.write_json(BEST_OF_N_FILE, _points(found))
        info.facts |= {"n": config.num_generations, "kl_bound": kl_bound(config.num_generations)}
        tick(2, 2, {})
        judges = {str(r): context.reward(r) for r in (config.reward, config.gold) if r is not None}
        copies = 1 + sum(isinstance(judge, Path) for judge in judges.values())
        return Totals(sum(group.length for group in drawn), model_copies=copies)

    def _scores(
        self,
        context: Context,
        info: RunInfo,
        groups: Sequence[TokenGroup],
        reward: RewardSpec,
        memory: Memory,
    ) -> list[list[float | None]]:
        """The scores of each prompt's completions; those that have none are said."""
        judge = context.reward(reward)
        if isinstance(judge, Path):
            network = load_reward_network(judge, context.dtype).requires_grad_(False)
            network.to(context.device)
            found = per_completion(
                groups,
                lambda batch: network(batch.to(context.device), scores=True).scores_C,
                memory,
            )
            scores = checked_scores(str(judge), found)
        else:
            scores = score_groups(judge, groups, context.readable)
        if scores.faults:
            label = judge.name if isinstance(judge, Path) else judge.label
            info.facts.setdefault("unscored", {})[label] = scores.faults
            context.say(f"{self.name}: {label}: {unscored(scores)}")
        return scores_by_group(scores, groups)


def _say_cut(context: Context, info: RunInfo, name: str, drawn: Sequence[TokenGroup]) -> None:
    """How many completions never came to their stop token: they are scored as they are."""
    every = [c for group in drawn for c in group.completions]
    cut = sum(c.finish is FinishReason.LENGTH for c in every)
    info.facts["cut"] = cut
    if cut:
        context.say(f"{name}: {cut:,} of {len(every):,} completions cut at max_completion_length")


def _picked(
    context: Context,
    prompts: Sequence[Group],
    drawn: Sequence[TokenGroup],
    scores: Sequence[Sequence[float | None]],
) -> list[dict[str, Any]]:
    """The best completion of each prompt, as a row."""
    rows = []
    for prompt, group, mine in zip(prompts, drawn, scores, strict=True):
        index = best(mine)
        # nothing to choose by: the answer stands that the policy itself would have given
        pick = group.completions[index or 0]
        known = [score for score in mine if score is not None]
        rows.append(
            {
                "prompt": prompt.prompt.text,
                "completion": context.readable(pick.ids),
                "ids": list(pick.ids),
                "finish": pick.finish.value,
                "score": None if index is None else mine[index],
                "mean_score": sum(known) / len(known) if known else None,
            }
        )
    return rows


def _points(found: Curve) -> dict[str, Any]:
    """The curve with an interval over prompts at every n. The bound is called a bound."""

    def interval(values_PK: Tensor | None, column: int) -> dict[str, Any] | None:
        if values_PK is None:
            return None
        return mean_interval(values_PK[:, column].tolist()).model_dump()

    return {
        "prompts": len(found.proxy_PK),
        "prompts_left_out": found.left_out,
        "points": [
            {
                "n": n,
                "kl_bound": kl_bound(n),
                "kl_estimate": interval(found.kl_PK, column),
                "proxy": interval(found.proxy_PK, column),
                "gold": interval(found.gold_PK, column),
            }
            for column, n in enumerate(found.sizes)
        ],
    }
