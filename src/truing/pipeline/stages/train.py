"""Training with any objective: networks from their parents, one loop, weights that others open."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from truing.batch import Batch, Outputs
from truing.config import Offline, Rollouts, Sampling
from truing.errors import DataError, UsageError
from truing.evaluation.reward_model import judge
from truing.groups import Group, TokenGroup
from truing.models import saving
from truing.models.loading import DTYPES
from truing.objectives.base import Objective
from truing.pipeline.code_version import room
from truing.pipeline.context import Context, Tick
from truing.pipeline.keeping import kept, own_facts, preflight, resumed
from truing.pipeline.stages.base import PipelineStage, Totals
from truing.rewards.base import Patience, Reward, Scores
from truing.rollouts.collect import Rollout, Scorer
from truing.rollouts.sampler import sample
from truing.rollouts.scoring import score_groups
from truing.rundir import ROLLOUT_FILE, RunInfo, checkpoints
from truing.storage import move_into
from truing.training.arrange import (
    arrange,
    check_columns,
    check_demonstrations,
    check_kind,
    check_rows,
)
from truing.training.build import Built, build
from truing.training.guards import check_finite
from truing.training.inputs import Inputs
from truing.training.loop import Progress, train
from truing.training.method import Method, resolve
from truing.training.on_policy import sampling_settings
from truing.training.speed import measured_speed
from truing.training.step import Step

KEPT_SAMPLES = 8
"""Completions kept of each rollout, and drawn at the end of offline training."""


class Train(PipelineStage):
    """sft, bradley_terry, dpo, ppo, ...: whatever the objective says it trains."""

    def __init__(self, name: str, method: Method) -> None:
        super().__init__(name, method.training)
        self.method = method
        self.makes = _makes(method.objective)

    @classmethod
    def read(cls, name: str, raw: Mapping[str, Any], where: str) -> Self:
        return cls(name, resolve(name, raw, where))

    @property
    def _eval_rows(self) -> int:
        training = self.method.training
        return training.eval_rows if isinstance(training, Offline) else 0

    @property
    def knobs(self) -> dict[str, Any]:
        return self.method.knobs

    @property
    def modules(self) -> list[str]:
        """With the objective's own, and those of a mixture's parts."""
        parts = [part.objective for part in getattr(self.method.objective, "built", ())]
        used = [type(objective).__module__ for objective in (self.method.objective, *parts)]
        return [*super().modules, *used]

    @property
    def files(self) -> list[Path]:
        """Credit, curation and engines are found by name."""
        return room("rollouts") if self.method.draws else []

    def check(self, context: Context) -> None:
        """The reward is known and the rows are usable; a stage's rows are checked once made."""
        training = self.method.training
        if isinstance(training, Rollouts):
            reward = context.reward(training.reward)
            if getattr(training, "critic", "policy") == "reward" and not isinstance(reward, Path):
                raise UsageError(
                    f"stages.{self.name}.critic: a critic that starts as the reward model, and "
                    "this reward is none",
                    where=context.where,
                    remedy="set reward to a bradley_terry stage or its folder, or critic: policy",
                )
        if training.data == "data":
            self._check_rows(context)

    def _check_rows(self, context: Context) -> None:
        """The rows are there, of the right type, and train the stop token somewhere; held-out ones
        that are measured have the columns that are read."""
        groups = context.groups(self.method.training.data, "train")
        if not self.method.draws:
            needs = self.method.objective.required
            path = context.recipe.data.path
            check_rows(groups, needs, self.name, path)
            measured = context.groups(self.method.training.data, "test")[: self._eval_rows]
            check_columns(measured, needs, self.name, path)
            return
        if not groups:
            raise DataError("no rows to train on", where=context.where, remedy="check data.path")
        self._prompts(context)
        if "demonstration_C" in self.method.objective.required:
            check_demonstrations(groups, self.name, context.where)

    def run(self, context: Context, info: RunInfo, tick: Tick) -> Totals:
        self._check_rows(context)
        inputs = self._inputs(context)
        built = build(self.method, inputs)
        step = built.step
        step.memory.say = lambda text: context.say(f"{self.name}: {text}")
        for note in built.notes:
            context.say(f"{self.name}: {note}")

        progress = self._train(context, info, inputs, built, tick)
        built.settle()
        if built.best is not None:
            info.facts["best"] = {"value": built.best.value, "step": built.best.step}
        built.frozen.check(f"{self.name}, at its end")
        check_finite(step.masters.masters, f"{self.name}, at its end")
        speed = measured_speed(built.meter, built.roles, self.method.objective.trains)
        context.say(f"{self.name}: {speed}")
        info.facts["speed"] = speed.facts
        info.facts["first_step"] = step.first_metrics
        info.facts["first_step_expected"] = self.method.step_zero
        info.facts["precision"] = str(built.dtype).removeprefix("torch.")
        self._keep(context, inputs, built)
        if self.method.objective.trains == "reward":
            info.facts["reward_model"] = self._judge(context, inputs, built)
        elif not self.method.draws:
            self._draw_samples(context, inputs, built)
        self._declare(context, info, step)
        return Totals(progress.tokens, step.taken, built.roles.copies)

    def _train(
        self, context: Context, info: RunInfo, inputs: Inputs, built: Built, tick: Tick
    ) -> Progress:
        """Every step that is left, from the newest checkpoint if there is one."""
        training, run, progress = self.method.training, context.run(self.name), Progress()
        preflight(built, training, run)
        facts = own_facts(info)
        if folder := resumed(built, run, progress, facts, context.say):
            info.facts["resumed_from"] = folder.name
        keeper = kept(
            built,
            training,
            run,
            progress,
            facts,
            lambda into, masters: self._export(context, inputs, built, into, masters),
        )
        return train(
            built.step,
            built.source,
            run,
            tick,
            built.meter,
            built.measure if built.heldout else None,
            keeper,
            progress,
            training.eval_steps if isinstance(training, Offline) else None,
        )

    def tidy(self, context: Context) -> None:
        if self.method.training.save_steps is None:
            for folder in checkpoints(context.run(self.name).path):
                shutil.rmtree(folder)

    def _declare(self, context: Context, info: RunInfo, step: Step) -> None:
        """What this run did otherwise than its recipe says: to the user, and in run.json."""
        lines, skipped = context.run(self.name).metrics(), step.skipped
        silent = [line["step"] for line in lines if line.get("frac_reward_zero_std") == 1]
        found: dict[str, tuple[Any, str]] = {
            "skipped_steps": (skipped, f"{len(skipped):,} steps were skipped"),
            "memory_halved": (
                int(sum(line.get("memory/halved", 0) for line in lines)) + step.memory.taken(),
                "for want of memory some work was done in halves",
            ),
            "rollouts_without_signal": (
                silent,
                f"in {len(silent):,} rollouts all scores of each group were equal: their advantage "
                "is 0",
            ),
        }
        for name, (fact, words) in found.items():
            if fact:
                info.facts[name] = fact
                context.say(f"{self.name}: {words} (see {name} in run.json)")

    def _inputs(self, context: Context) -> Inputs:
        training = self.method.training
        path, revision = context.source(training.from_)
        reward_run, reward = self._reward(context)
        seed = context.seed(self.name, training.seed)
        train_groups = self._rows(context, seed)
        heldout: list[TokenGroup] = []
        shown: list[TokenGroup] = []
        if not self.method.draws:
            heldout = self._heldout(context, seed)
        elif "demonstration_C" in self.method.objective.required:
            shown = self._demonstrations(context)
        return Inputs(
            source=path,
            revision=revision,
            model=context.recipe.model,
            stop_id=context.tokenizer.stop_id,
            train=train_groups,
            heldout=heldout,
            demonstrations=shown,
            reward_run=reward_run,
            shares_trunk=reward_run is not None and self._same_parent(context, reward_run),
            reward=reward,
            on_rollout=lambda index, rollout: self._keep_rollout(context, index, rollout),
            seed=seed,
            where=f"stages.{self.name}",
            readable=context.readable,
        )

    def _prompts(self, context: Context) -> list[Group]:
        """What the policy answers."""
        training = self.method.training
        assert isinstance(training, Rollouts)
        return context.prompts(training.data, "train", room=training.max_completion_length)

    def _rows(self, context: Context, seed: int) -> list[TokenGroup]:
        """Prompts where the policy answers them; else rows as the objective learns from them."""
        data = self.method.training.data
        if self.method.draws:
            return context.encode(self._prompts(context))
        groups = context.groups(data, "train")
        encoded = context.encode(groups)
        return arrange(encoded, groups[0].type, self.method.objective.required, seed)

    def _heldout(self, context: Context, seed: int) -> list[TokenGroup]:
        """Held-out rows as the objective learns from them; none, and a line why, if they will not
        do: other stages may have a use for them."""
        groups = context.groups(self.method.training.data, "test")
        if not groups:
            return []
        needs = self.method.objective.required
        try:
            check_kind(groups, needs, self.name, context.recipe.data.path)
            return arrange(context.encode(groups), groups[0].type, needs, seed)
        except DataError as error:
            context.say(f"{self.name}: held-out rows are left out: {error.what}")
            return []

    def _demonstrations(self, context: Context) -> list[TokenGroup]:
        """The data's own answers, if it has any."""
        groups = context.groups(self.method.training.data, "train")
        return arrange(context.encode(groups), groups[0].type, frozenset(), 0)

    def _reward(self, context: Context) -> tuple[Path | None, Scorer | None]:
        """The reward model's run directory, or a scorer over texts."""
        training = self.method.training
        if not isinstance(training, Rollouts):
            return None, None
        found = context.reward(training.reward)
        if isinstance(found, Path):
            return found, None
        reward: Reward = found

        patience = Patience(training.reward_retries, timeout=training.reward_timeout)

        def by_text(groups: Sequence[TokenGroup]) -> Scores:
            return score_groups(reward, groups, context.readable, patience)

        return None, by_text

    def _same_parent(self, context: Context, reward_run: Path) -> bool:
        """Whether the reward model is an adapter on the weights this stage starts from."""
        parent = context.run(reward_run.name).info()
        return (
            parent is not None
            and reward_run == context.run(reward_run.name).path
            and parent.parents.get("from") == self.method.training.from_
            and (reward_run / saving.ADAPTER_FOLDER).is_dir()
        )

    def _keep(self, context: Context, inputs: Inputs, built: Built) -> None:
        """Weights at the root of the run directory, each file whole."""
        masters = {n: p.detach().cpu() for n, p in built.step.masters.masters.items()}
        root = context.run(self.name).path
        move_into(root, lambda into: self._export(context, inputs, built, into, masters))

    def _export(
        self,
        context: Context,
        inputs: Inputs,
        built: Built,
        folder: Path,
        masters: Mapping[str, Tensor],
    ) -> None:
        """What from_pretrained opens, and the adapter and heads beside it. Reads nothing that
        training writes: a step may be under way."""
        adapter = folder / saving.ADAPTER_FOLDER
        model = saving.merged(inputs.source, masters, built.lora, adapter, inputs.revision)
        tokenizer = context.tokenizer.tokenizer
        dtype = DTYPES[context.recipe.model.save_dtype]
        if self.method.objective.trains == "reward":
            head = saving.head_of(masters, "score_head")
            saving.save_scorer(folder, model, head, tokenizer, inputs.stop_id, dtype)
            if built.lora is not None:
                saving.save_head(adapter / saving.SCORE_HEAD_FILE, head)
            return
        saving.save_policy(folder, model, tokenizer, dtype)
        if "value_head.weight" in masters:
            head = saving.head_of(masters, "value_head")
            saving.save_head(folder / "value" / saving.VALUE_HEAD_FILE, head)

    def _keep_rollout(self, context: Context, index: int, rollout: Rollout) -> None:
        rows = [
            {
                "prompt": context.readable(group.prompt_ids),
                "completion": context.readable(completion.ids),
                "score": completion.score,
                "finish": completion.finish.value,
                **({"drawn_by": "reference"} if completion.of_reference else {}),
            }
            for group in rollout.groups
            for completion in group.completions
        ]
        file = ROLLOUT_FILE.format(index=index)
        context.run(self.name).write_rows(file, rows[:KEPT_SAMPLES])

    def _judge(self, context: Context, inputs: Inputs, built: Built) -> dict[str, Any]:
        """The reward model on every held-out row; its scores are the stage's samples."""

        def compute(batch: Batch) -> Outputs:
            return built.step.measured(batch.to(built.device))

        budget = self.method.training.micro_batch_tokens
        verdict = judge(compute, inputs.heldout or inputs.train, budget)
        accuracy = verdict.accuracy
        context.run(self.name).write_rows("samples/scores.jsonl", verdict.rows)
        return {
            "accuracy": accuracy.model_dump() if accuracy and inputs.heldout else None,
            "unit": verdict.unit,
            "train_pairs": len(inputs.train),
            "test_pairs": len(inputs.heldout),
        }

    def _draw_samples(self, context: Context, inputs: Inputs, built: Built) -> None:
        """A few completions of the trained policy, so that a run can be looked at."""
        pool = inputs.heldout or inputs.train
        prompts = [TokenGroup(group.prompt_ids) for group in pool[:KEPT_SAMPLES]]
        settings = sampling_settings(Sampling(), inputs.stop_id, inputs.readable)
        memory = built.step.memory
        drawn = sample(built.roles.policy, prompts, settings, seed=inputs.seed, memory=memory)
        rows = [
            {
                "prompt": context.readable(group.prompt_ids),
                "completion": context.readable(group.completions[0].ids),
                "finish": group.completions[0].finish.value,
            }
            for group in drawn
        ]
        context.run(self.name).write_rows("samples/final.jsonl", rows)


def _makes(objective: Objective) -> str:
    """What others may use the stage for. Scores of steps are read at their ends, those of
    completions at the last token: one is no substitute for the other."""
    if objective.trains != "reward":
        return "weights"
    return "step rewards" if objective.unit == "steps" else "reward"
