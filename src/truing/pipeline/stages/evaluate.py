"""Several policies on the same held-out prompts with the same seeds, as one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from torch import Tensor

from truing.batch import Batch
from truing.config import BestOfN, Evaluate, check
from truing.errors import DataError, UsageError, suggest
from truing.evaluation.diversity import distinct_n
from truing.evaluation.intervals import mean_interval, share_interval
from truing.evaluation.policy import per_completion, sequence_kl
from truing.evaluation.summary import Interval, PolicyResult, Sample, SampleCompletion
from truing.groups import FinishReason, Group, TokenCompletion, TokenGroup
from truing.memory import Memory
from truing.models.network import Network
from truing.models.roles import load_reward_network
from truing.pipeline.context import Context, Tick
from truing.pipeline.stages.base import PipelineStage, Totals
from truing.pipeline.stages.best_of_n import COMPLETIONS_FILE
from truing.rewards.base import Reward, Scores, checked_scores
from truing.rollouts.sampler import sample
from truing.rollouts.scoring import score_groups, unscored
from truing.rundir import RunInfo
from truing.training.on_policy import sampling_settings

RESULTS_FILE = "eval/policies.json"
SHARED_BY_A_TABLE = ("gold", "proxy", "reference")


@dataclass(slots=True)
class _Measured:
    """One policy's completions and every number of each."""

    groups: list[TokenGroup]
    texts: list[str]
    gold: Scores | None
    proxy: Scores | None
    kl: list[float] | None

    @property
    def faults(self) -> dict[str, dict[str, int]]:
        """Reward -> why it could not score some -> how many."""
        rewards = {"gold": self.gold, "proxy": self.proxy}
        return {name: s.faults for name, s in rewards.items() if s is not None and s.faults}


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
        """The rewards exist, and there are held-out prompts."""
        for judge in (self.config.gold, self.config.proxy):
            if judge is not None:
                context.reward(judge)
        if self.config.data == "data":
            context.prompts(
                "data", "test", self.config.test_prompts, self.config.max_completion_length
            )
        self._check_one_table(context)
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

    def _check_one_table(self, context: Context) -> None:
        """All evaluate stages of a recipe go into one table: a column means the same in each."""
        mine = self.config
        for name, raw in context.recipe.stages.items():
            if raw["method"] != "evaluate" or name == self.name:
                continue
            other = check(Evaluate, raw, context.where, f"stages.{name}")
            same = all(getattr(mine, key) == getattr(other, key) for key in SHARED_BY_A_TABLE)
            if not same or mine.policies.keys() & other.policies.keys():
                raise UsageError(
                    f"stages.{self.name} and stages.{name} go into one table, and its columns "
                    "would not mean the same in every row",
                    where=context.where,
                    remedy=f"give both the same {', '.join(SHARED_BY_A_TABLE)} and labels of their "
                    "own, or make one stage or two recipes of them",
                )

    def run(self, context: Context, info: RunInfo, tick: Tick) -> Totals:
        config = self.config
        prompts = context.prompts(
            config.data, "test", config.test_prompts, config.max_completion_length
        )
        reference = context.network(config.reference)
        memory = Memory(say=lambda text: context.say(f"{self.name}: {text}"))
        gold, proxy = self._judges(context, memory)
        measured: dict[str, _Measured] = {}
        for number, (label, stage) in enumerate(config.policies.items(), start=1):
            groups, kl = self._drawn(context, stage, prompts, reference, memory)
            texts = [context.readable(group.completions[0].ids) for group in groups]
            measured[label] = _Measured(
                groups,
                texts,
                None if gold is None else gold(groups),
                None if proxy is None else proxy(groups),
                kl,
            )
            self._tell_faults(context, info, label, measured[label])
            tick(number, len(config.policies), {})
        if memory.halved:
            info.facts["memory_halved"] = memory.halved
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

    def _judges(self, context: Context, memory: Memory) -> tuple[_Judge | None, _Judge | None]:
        """What scores completions: the annotator's reward by text, and the reward model."""
        gold = proxy = None
        if self.config.gold is not None:
            gold = _by_text(context, context.text_reward(self.config.gold))
        if self.config.proxy is not None:
            found = context.reward(self.config.proxy)
            if isinstance(found, Path):
                proxy = _by_ids(context, found, memory)
            else:
                proxy = _by_text(context, found)
        return gold, proxy

    def _tell_faults(self, context: Context, info: RunInfo, label: str, mine: _Measured) -> None:
        """Completions without a score are left out of the means, and said."""
        if not mine.faults:
            return
        info.facts.setdefault("unscored", {})[label] = mine.faults
        for name, scores in {"gold": mine.gold, "proxy": mine.proxy}.items():
            if scores is not None and scores.faults:
                context.say(f"{self.name}: {label}, {name}: {unscored(scores)}")

    def _drawn(
        self,
        context: Context,
        stage: str,
        prompts: Sequence[Group],
        reference: Network,
        memory: Memory,
    ) -> tuple[list[TokenGroup], list[float] | None]:
        """One completion per prompt, and its KL estimate where the policy drew it here."""
        config, device = self.config, context.device
        inside = stage in context.recipe.stages
        picked = context.run(stage).rows(COMPLETIONS_FILE) if inside else []
        if picked:
            if len(picked) != len(prompts):
                raise DataError(
                    f"{len(picked):,} prompts were answered by {stage}, {len(prompts):,} are left "
                    "here",
                    where=f"stages.{self.name}",
                    remedy="give both stages the same max_completion_length",
                )
            return _picked_groups(context.encode(prompts), picked), None
        network = context.network(stage) if stage != config.reference else reference
        groups = sample(
            network,
            context.encode(prompts),
            sampling_settings(config, context.tokenizer.stop_id, context.readable),
            seed=config.seed if config.seed is not None else context.derived_seed("held-out"),
            memory=memory,
        )

        def logps(of: Network, batch: Batch) -> Tensor:
            outputs = of(batch.to(device), logps=True, temperature=config.temperature)
            logps_N: Tensor = outputs.logps_N
            return logps_N

        if config.truncates or not config.temperature:  # not drawn from what log-probs are of
            return groups, None
        policies = (lambda b: logps(network, b), lambda b: logps(reference, b))
        return groups, sequence_kl(groups, *policies, memory)

    def _bounds(self, context: Context, stage: str) -> bool:
        """Whether what bounds the KL to the sampler of a best_of_n stage bounds that to our
        reference: it is the same, and drawn from in the same way."""
        raw = context.recipe.stages.get(stage, {})
        if raw.get("method") != "best_of_n":
            return False
        sampler = check(BestOfN, raw, context.where, f"stages.{stage}")
        mine, theirs = self.config, sampler
        alike = ("temperature", "top_k", "top_p", "min_p")
        return sampler.from_ == mine.reference and all(
            getattr(mine, key) == getattr(theirs, key) for key in alike
        )

    def _row(
        self, context: Context, label: str, stage: str, mine: _Measured, base: _Measured
    ) -> PolicyResult:
        made_by = context.run(stage).info() if stage in context.recipe.stages else None
        bound = made_by.facts.get("kl_bound") if made_by else None
        completions = [group.completions[0] for group in mine.groups]
        seconds = made_by.wall_seconds if made_by else None
        return PolicyResult(
            label=label,
            stage=stage,
            gold=_interval(mine.gold),
            gold_gain=None if mine is base else _gain(mine.gold, base.gold),
            proxy=_interval(mine.proxy),
            proxy_gain=None if mine is base else _gain(mine.proxy, base.proxy),
            kl=None if mine.kl is None else mean_interval(mine.kl),
            kl_bound=bound if self._bounds(context, stage) else None,
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


_Judge = Callable[[Sequence[TokenGroup]], Scores]


def _by_text(context: Context, reward: Reward) -> _Judge:
    return lambda groups: score_groups(reward, groups, context.readable)


def _by_ids(context: Context, folder: Path, memory: Memory) -> _Judge:
    network = load_reward_network(folder, context.dtype)
    network.requires_grad_(False).to(context.device)

    def scores_C(batch: Batch) -> Tensor:
        found: Tensor = network(batch.to(context.device), scores=True).scores_C
        return found

    return lambda groups: checked_scores(str(folder), per_completion(groups, scores_C, memory))


def _interval(scores: Scores | None) -> Interval | None:
    """The mean over the completions that have a score."""
    if scores is None:
        return None
    values = [value for value in scores.values if value is not None]
    return share_interval(values) if set(values) <= {0.0, 1.0} else mean_interval(values)


def _gain(mine: Scores | None, base: Scores | None) -> Interval | None:
    """Paired difference on the prompts where both were scored, if there are any."""
    if mine is None or base is None:
        return None
    both = zip(mine.values, base.values, strict=True)
    differences = [a - b for a, b in both if a is not None and b is not None]
    return mean_interval(differences) if differences else None


def _picked_groups(prompts: list[TokenGroup], rows: list[dict[str, Any]]) -> list[TokenGroup]:
    return [
        replace(
            prompt,
            completions=(TokenCompletion(tuple(row["ids"]), FinishReason(row["finish"])),),
        )
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def _shown(measured: _Measured, index: int) -> SampleCompletion:
    return SampleCompletion(
        text=measured.texts[index],
        gold=None if measured.gold is None else measured.gold.values[index],
        proxy=None if measured.proxy is None else measured.proxy.values[index],
        finish=measured.groups[index].completions[0].finish.value,
    )


def _rows(prompts: Sequence[Group], measured: _Measured) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt.prompt.text, **_shown(measured, i).model_dump()}
        | {"kl": None if measured.kl is None else measured.kl[i]}
        for i, prompt in enumerate(prompts)
    ]
