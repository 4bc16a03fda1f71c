"""Several policies on the same held-out prompts with the same seeds, as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from torch import Tensor

from truing import rewards
from truing.batch import Batch
from truing.config import Evaluate, check
from truing.errors import UsageError, suggest
from truing.evaluation.diversity import distinct_n
from truing.evaluation.intervals import mean_interval
from truing.evaluation.policy import per_completion, sequence_kl
from truing.evaluation.summary import Interval, PolicyResult, Sample, SampleCompletion
from truing.groups import FinishReason, Group, TokenCompletion, TokenGroup
from truing.models.network import Network
from truing.models.roles import load_reward_network
from truing.pipeline.context import Context, Tick
from truing.pipeline.stages.base import PipelineStage, Totals
from truing.pipeline.stages.best_of_n import COMPLETIONS_FILE
from truing.rewards.base import score
from truing.rollouts.sampler import sample
from truing.rundir import RunInfo
from truing.training.on_policy import sampling_settings

RESULTS_FILE = "eval/policies.json"


@dataclass(slots=True)
class _Measured:
    """One policy's completions and every number of each."""

    groups: list[TokenGroup]
    texts: list[str]
    gold: list[float] | None
    proxy: list[float] | None
    kl: list[float] | None


class EvaluateStage(PipelineStage):
    """Writes eval/policies.json: rows and samples as the summary shows them."""

    config: Evaluate
    makes = ""

    @classmethod
    def read(cls, name: str, raw: Mapping[str, Any], where: str) -> Self:
        config = check(Evaluate, raw, where, f"stages.{name}")
        if config.reference not in config.policies.values():
            raise UsageError(
                f"stages.{name}.reference '{config.reference}' is none of the policies",
                where=where,
                remedy=suggest(config.reference, config.policies.values()),
            )
        return cls(name, config)

    def check(self, context: Context) -> None:
        """The gold reward exists, and there are held-out prompts."""
        if self.config.gold is not None:
            rewards.make(self.config.gold)
        if self.config.proxy is not None and not isinstance(
            context.reward(self.config.proxy), Path
        ):
            raise UsageError(
                f"stages.{self.name}.proxy '{self.config.proxy}' is no reward model",
                where=context.where,
                remedy="name a bradley_terry stage or its folder; rewards by name go to gold",
            )
        if self.config.data == "data":
            context.prompts("data", "test", self.config.test_prompts)
        for label, stage in self.config.policies.items():
            raw = context.recipe.stages.get(stage, {})
            if raw.get("method") != "best_of_n":
                continue
            theirs = (raw.get("data", "data"), raw.get("test_prompts"))
            if theirs != (self.config.data, self.config.test_prompts):
                raise UsageError(
                    f"policy {label} was picked on other prompts than stages.{self.name} uses",
                    where=context.where,
                    remedy=f"give stages.{stage} and stages.{self.name} the same data and "
                    "test_prompts",
                )

    def run(self, context: Context, info: RunInfo, tick: Tick) -> Totals:
        config = self.config
        prompts = context.prompts(config.data, "test", config.test_prompts)
        reference = context.network(config.reference)
        proxy = self._proxy(context)
        measured: dict[str, _Measured] = {}
        for number, (label, stage) in enumerate(config.policies.items(), start=1):
            measured[label] = self._measure(context, stage, prompts, reference, proxy)
            tick(number, len(config.policies), {})
        base = next(
            m
            for m, s in zip(measured.values(), config.policies.values(), strict=True)
            if s == config.reference
        )
        rows = [
            self._row(context, label, stage, measured[label], base)
            for label, stage in config.policies.items()
        ]
        samples = self._samples(prompts, measured)
        run = context.run(self.name)
        run.write_json(
            RESULTS_FILE,
            {
                "policies": [row.model_dump() for row in rows],
                "samples": [sample_.model_dump() for sample_ in samples],
            },
        )
        for label in measured:
            run.write_rows(f"samples/{label}.jsonl", _rows(prompts, measured[label]))
        tokens = sum(group.length for m in measured.values() for group in m.groups)
        return Totals(tokens, model_copies=2 + (proxy is not None))

    def _proxy(self, context: Context) -> Network | None:
        if self.config.proxy is None:
            return None
        folder = context.reward(self.config.proxy)
        assert isinstance(folder, Path)
        network = load_reward_network(folder, context.dtype)
        return network.requires_grad_(False).to(context.device)

    def _measure(
        self,
        context: Context,
        stage: str,
        prompts: Sequence[Group],
        reference: Network,
        proxy: Network | None,
    ) -> _Measured:
        config, device = self.config, context.device
        temperature = config.temperature or 1.0
        inside = stage in context.recipe.stages
        picked = context.run(stage).rows(COMPLETIONS_FILE) if inside else []
        kl = None
        if picked:
            groups = _picked_groups(context.encode(prompts), picked)
        else:
            network = context.network(stage) if stage != config.reference else reference
            groups = sample(
                network,
                context.encode(prompts),
                sampling_settings(config, context.tokenizer.stop_id, context.readable),
                seed=config.seed if config.seed is not None else context.derived_seed("held-out"),
            )

            def logps(of: Network, batch: Batch) -> Tensor:
                outputs = of(batch.to(device), logps=True, temperature=temperature)
                logps_N: Tensor = outputs.logps_N
                return logps_N

            kl = sequence_kl(groups, lambda b: logps(network, b), lambda b: logps(reference, b))
        texts = [context.readable(group.completions[0].ids) for group in groups]
        gold = None
        if config.gold is not None:
            readable = [prompt.prompt.text for prompt in prompts]
            gold = score(rewards.make(config.gold), readable, texts)
        scores = None
        if proxy is not None:
            scores = per_completion(
                groups, lambda batch: proxy(batch.to(device), scores=True).scores_C
            )
        return _Measured(groups, texts, gold, scores, kl)

    def _row(
        self, context: Context, label: str, stage: str, mine: _Measured, base: _Measured
    ) -> PolicyResult:
        made_by = context.run(stage).info() if stage in context.recipe.stages else None
        completions = [group.completions[0] for group in mine.groups]
        seconds = made_by.wall_seconds if made_by else None
        return PolicyResult(
            label=label,
            stage=stage,
            gold=_interval(mine.gold),
            gold_gain=None if mine is base else _gain(mine.gold, base.gold),
            proxy=_interval(mine.proxy),
            proxy_gain=None if mine is base else _gain(mine.proxy, base.proxy),
            kl=_interval(mine.kl),
            kl_bound=made_by.facts.get("kl_bound") if made_by else None,
            length=mean_interval([float(len(c.ids)) for c in completions]),
            distinct_2=distinct_n(mine.texts, 2),
            no_eos=fmean(c.finish is FinishReason.LENGTH for c in completions),
            model_copies=made_by.model_copies if made_by else None,
            peak_memory_bytes=made_by.peak_memory_bytes if made_by else None,
            wall_seconds=seconds,
            tokens_per_second=made_by.tokens / seconds if made_by and seconds else None,
        )

    def _samples(self, prompts: Sequence[Group], measured: dict[str, _Measured]) -> list[Sample]:
        return [
            Sample(
                prompt=prompts[i].prompt.text,
                completions={label: _shown(m, i) for label, m in measured.items()},
            )
            for i in range(min(self.config.show_samples, len(prompts)))
        ]


def _interval(values: list[float] | None) -> Interval | None:
    return None if values is None else mean_interval(values)


def _gain(mine: list[float] | None, base: list[float] | None) -> Interval | None:
    """Paired difference on the same prompts."""
    if mine is None or base is None:
        return None
    return mean_interval([a - b for a, b in zip(mine, base, strict=True)])


def _picked_groups(prompts: list[TokenGroup], rows: list[dict[str, Any]]) -> list[TokenGroup]:
    return [
        TokenGroup(
            prompt.prompt_ids,
            (TokenCompletion(tuple(row["ids"]), FinishReason(row["finish"])),),
        )
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def _shown(measured: _Measured, index: int) -> SampleCompletion:
    return SampleCompletion(
        text=measured.texts[index],
        gold=None if measured.gold is None else measured.gold[index],
        proxy=None if measured.proxy is None else measured.proxy[index],
        finish=measured.groups[index].completions[0].finish.value,
    )


def _rows(prompts: Sequence[Group], measured: _Measured) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt.prompt.text, **_shown(measured, i).model_dump()}
        | {"kl": None if measured.kl is None else measured.kl[i]}
        for i, prompt in enumerate(prompts)
    ]
