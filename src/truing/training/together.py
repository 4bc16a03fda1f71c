"""Keys of a training stage that are right one by one and wrong together. Loads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from truing import config
from truing.errors import UsageError
from truing.objectives.base import Objective
from truing.rollouts.credit.group import GroupCredit
from truing.rollouts.curation.base import Curation

SWITCHES: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "kl_target": ("kl_control", ("fixed",)),
    "kl_horizon": ("kl_control", ("fixed", "budget")),
    "importance_cap": ("importance_correction", ("none",)),
    "dynamic_rounds": ("dynamic_sampling", (False,)),
    "opponent_mixture": ("opponents", (0,)),
    "opponent_score": ("opponents", (0,)),
    "demonstrations_per_step": ("ptx_coef", (0, None)),
    "kl_estimator": ("beta", (0,)),
}
"""A key -> the one that turns it on, and the values with which it says nothing."""


@dataclass(frozen=True, slots=True)
class Together:
    """A stage's keys with their defaults, and the parts that were made of them."""

    keys: Mapping[str, Any]
    training: config.Training
    objective: Objective
    rule: Any
    """Credit or curation; None for training on rows."""
    where: str
    prefix: str

    def refuse(self, key: str, why: str, remedy: str) -> NoReturn:
        raise UsageError(f"'{self.prefix}.{key}': {why}", where=self.where, remedy=remedy)

    def check(self, own_keys: Mapping[str, Any]) -> None:
        """Raises UsageError for the first thing that does not fit; `own_keys` are the recipe's."""
        training = self.training
        self._unheard(own_keys)
        if isinstance(training, config.Rollouts):
            self._sampling(training)
        if isinstance(training, config.Online):
            self._online(training)
        if isinstance(training, config.OnPolicy):
            self._kl_control(training)
            self._groups(training)
            self._limits(training)
        if isinstance(training, config.ActorCritic):
            self._warm_up(training)
        if isinstance(training, config.Offline) and training.reference_logps == "cached":
            self._cached()

    def _unheard(self, own_keys: Mapping[str, Any]) -> None:
        """Nobody writes a key that does nothing on purpose."""
        for key, (switch, off) in SWITCHES.items():
            if key not in own_keys:
                continue
            value = getattr(self.training, switch, getattr(self.objective, switch, None))
            if value in off:
                self.refuse(
                    key, f"says nothing while {switch} is {value}", f"set {switch}, or leave it out"
                )

    def _sampling(self, training: config.Rollouts) -> None:
        if training.temperature == 0:
            self.refuse(
                "temperature",
                "0 draws one completion for ever: on-policy training needs variety",
                "set it above 0",
            )

    def _online(self, training: config.Online) -> None:
        """There is enough to choose from, and a reference to renew where that is asked for."""
        rule = self.rule
        assert isinstance(rule, Curation)
        if training.num_generations < rule.fewest:
            self.refuse(
                "num_generations",
                f"{training.num_generations}, and one completion cannot be compared with another",
                f"set it to {rule.fewest} or more",
            )
        if "mismatched_C" in self.objective.required and training.rollout_batch_size < 2:
            self.refuse(
                "rollout_batch_size",
                "this method compares with the completions of other prompts, and one is alone",
                "set it to 2 or more",
            )
        if training.sync_reference_rollouts is None:
            return
        if not ("reference_logps_N" in self.objective.required or rule.draws_from_reference):
            why = "this method reads no reference"
        elif self.objective.moves_reference:
            why = "this method moves its reference itself, every sync_steps steps"
        else:
            return
        self.refuse("sync_reference_rollouts", why, "leave it out")

    def _kl_control(self, training: config.OnPolicy) -> None:
        """A controller multiplies β and compares with a target: it needs both."""
        kind = training.kl_control
        if kind == "fixed":
            return
        if training.kl_target is None:
            self.refuse(
                "kl_control",
                f"{kind} needs kl_target",
                "say how many nats a completion may drift, for example kl_target: 6",
            )
        if not self.rule.kl_coef:
            self.refuse(
                "kl_coef",
                f"{kind} multiplies it, and it is 0",
                "start from a small one, for example 0.05",
            )
        drawn = training.rollout_batch_size * training.num_generations
        if kind == "adaptive" and drawn >= 5 * training.kl_horizon:
            self.refuse(
                "kl_horizon",
                f"a rollout of {drawn:,} completions would change kl_coef by more than itself",
                f"set it to {drawn:,} or more",
            )

    def _groups(self, training: config.OnPolicy) -> None:
        """A baseline of the group needs a group, and a step whole ones."""
        each = training.num_generations
        compares = isinstance(self.rule, GroupCredit) and self.rule.baseline in (
            "group",
            "leave_one_out",
        )
        if compares and each < 2:
            self.refuse(
                "num_generations",
                "1, and a completion that is alone in its group teaches nothing",
                "set it to 2 or more, or choose another baseline",
            )
        shaped = [
            name
            for name in ("missing_eos_penalty", "score_clip", "overlong_cache")
            if getattr(self.rule, name, None) is not None
        ]
        if shaped and self.rule.wants_greedy:
            self.refuse(
                shaped[0],
                "the greedy completion that scores are compared with would not have it",
                "leave it out, or choose another baseline",
            )
        if training.batch_size % each:
            self.refuse(
                "batch_size",
                f"{training.batch_size} completions are not whole groups of {each}",
                f"set it to a multiple of num_generations, for example {each * 4}",
            )

    def _limits(self, training: config.OnPolicy) -> None:
        """A limit needs what it is a limit of, a correction what it corrects."""
        if training.approxkl_limit is not None and "val/ratio" not in self.objective.step_zero:
            self.refuse(
                "approxkl_limit",
                "this method has no ratio to the policy that sampled",
                "leave it out, or use a method with one (ppo, grpo, rloo, ...)",
            )
        if training.importance_correction != "none" and training.truncates:
            self.refuse(
                "importance_correction",
                "with top_k, top_p or min_p log-probs are those of the whole distribution, on both "
                "sides: there is nothing to see, and nothing is corrected",
                "leave it out, or draw from the whole distribution",
            )

    def _warm_up(self, training: config.ActorCritic) -> None:
        """After the critic's rollouts some are left for the policy."""
        per_step = max(1, training.batch_size // training.num_generations)
        steps = -(-training.rollout_batch_size // per_step) * training.num_train_epochs
        most = training.num_rollouts
        if training.max_steps is not None:
            most = min(most, -(-training.max_steps // steps))
        if training.critic_warmup_rollouts >= most:
            self.refuse(
                "critic_warmup_rollouts",
                f"{training.critic_warmup_rollouts} of {most} rollouts leave none for the policy",
                "lower it, or raise num_rollouts or max_steps",
            )

    def _cached(self) -> None:
        """Only a reference that there is, and that stands still, can be computed beforehand."""
        if "reference_logps_N" not in self.objective.required:
            why = "this method reads no reference"
        elif self.objective.moves_reference:
            why = "this method moves its reference"
        else:
            return
        self.refuse("reference_logps", f"cached, but {why}", "set it to online, or leave it out")
