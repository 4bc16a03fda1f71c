"""Who plays which part: policy, reference, reward, value.

With adapters one trunk plays them all: the reference is the trunk with its adapters off, the
reward model a second adapter, the value a head. Without adapters each part is its own copy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn

from truing.batch import Batch, Outputs
from truing.errors import ModelError, UnsafeFileError
from truing.memory import Memory
from truing.models import folders, loading, saving
from truing.models.heads import ScalarHead
from truing.models.network import CRITIC_ADAPTER, OWN_ADAPTER, Network

REWARD_ADAPTER = "reward"


@dataclass(slots=True)
class Roles:
    """The networks of one stage and how each part is computed."""

    policy: Network
    """The network that learns (a reward model, while one is trained)."""
    reference_copy: Network | None = None
    """A frozen copy; None where adapters make it unnecessary, or nothing needs a reference."""
    reward_copy: Network | None = None
    """A reward model of its own; None where it is an adapter, or there is none."""
    critic: Network | None = None
    """A critic of its own; None where it is an adapter or a head on the policy's trunk, or there
    is none."""
    reference_masters: dict[str, Tensor] = field(default_factory=dict)
    """Float32 weights of a reference that follows the policy; empty until it first moves."""
    temperature: float = 1.0
    """Log-probs are taken at the temperature the sampler uses."""

    @property
    def copies(self) -> int:
        """Whole-model copies in memory. Adapters and heads are not copies."""
        return 1 + sum(c is not None for c in (self.reference_copy, self.reward_copy, self.critic))

    def trainable(self, trains: str) -> dict[str, nn.Parameter]:
        """Name -> parameter that learns; those of a critic of its own begin with `critic.`."""
        found = self.policy.trainable(trains)
        if self.critic is not None:
            own = self.critic.trainable("reward")
            found |= {f"critic.{name}": parameter for name, parameter in own.items()}
        return found

    @property
    def has_own_critic(self) -> bool:
        """Whether values cost a pass of their own."""
        return self.critic is not None or self.policy.critic_head is not None

    def placed(self, batch: Batch, device: torch.device, memory: Memory) -> Batch:
        """The batch on the device, with what all parts that share the trunk compute alike."""
        batch = batch.to(device)
        parts = memory.in_parts(self.policy.with_frozen, batch)
        if len(parts) == 1:
            return parts[0]
        if not all("frozen_TH" in part for part in parts):
            return batch
        return batch.with_columns(frozen_TH=torch.cat([part["frozen_TH"] for part in parts]))

    def outputs(self, batch: Batch, trains: str, extra: Collection[str] = frozenset()) -> Outputs:
        """What an objective that trains `trains` reads, with gradients; `extra` are the outputs
        that it reads besides."""
        values = trains == "policy+value"
        # what people wrote was drawn at no temperature: a loss on it is that of SFT
        people = "demonstration_C" in batch and bool(batch["demonstration_C"].all())
        outputs: Outputs = self.policy(
            batch,
            logps=trains != "reward",
            values=values and not self.has_own_critic,
            scores=trains == "reward",
            steps=trains == "reward" and "step_end_S" in batch,
            collision="collision_N" in extra,
            temperature=1.0 if people else self.temperature,
        )
        if values and self.has_own_critic:
            return replace(outputs, values_N=self._critic_values(batch))
        return outputs

    @torch.no_grad()
    def rescale_critic(self, shift: float, deviation: float) -> None:
        """Make a critic that was a reward model speak of (score − shift) / deviation: the scale
        of the returns it will learn."""
        head = self.policy.critic_head if self.critic is None else self.critic.value_head
        assert head is not None
        assert head.bias is not None
        head.bias.sub_(shift).div_(deviation)
        head.weight.div_(deviation)

    @property
    def networks(self) -> list[Network]:
        """Those that learn."""
        return [self.policy, *([] if self.critic is None else [self.critic])]

    def _critic_values(self, batch: Batch) -> Tensor:
        if self.critic is None:
            return self.policy.critic_values(batch)
        # the policy's frozen states are none of this trunk's
        values_N: Tensor = self.critic(batch.without("frozen_TH"), values=True).values_N
        return values_N

    @torch.no_grad()
    def reference_logps(self, batch: Batch) -> Tensor:
        """Log-prob of each token under the frozen reference. Shape [N], nats."""
        with self.as_reference() as network:
            logps_N: Tensor = network(batch, logps=True, temperature=self.temperature).logps_N
        return logps_N

    @contextmanager
    def as_reference(self) -> Iterator[Network]:
        """The network that plays the reference, for as long as the block lasts."""
        if self.reference_copy is not None:
            yield self.reference_copy
            return
        with self.policy.using(None):
            yield self.policy

    @torch.no_grad()
    def move_reference(self, alpha: float) -> None:
        """reference ← α·policy + (1 − α)·reference, for every weight.

        Needs a copy of the reference. It computes in the policy's precision, so that their first
        log-ratio is exactly 0; the average is kept in float32, or small moves would be lost.
        """
        assert self.reference_copy is not None
        reference = dict(self.reference_copy.base.named_parameters())
        if not self.reference_masters:
            self.reference_masters = {
                name: p.to(torch.promote_types(p.dtype, torch.float32), copy=True)
                for name, p in reference.items()
            }
        for name, weight in self.policy.merged_weights():
            master = self.reference_masters[name]
            master.lerp_(weight.to(master.dtype), alpha)
            reference[name].copy_(master)

    @torch.no_grad()
    def set_reference(self, masters: dict[str, Tensor]) -> None:
        """Make the reference what it had become: the float32 weights of one that has moved."""
        assert self.reference_copy is not None
        reference = dict(self.reference_copy.base.named_parameters())
        self.reference_masters = {
            name: masters[name].to(parameter.device) for name, parameter in reference.items()
        }
        for name, parameter in reference.items():
            parameter.copy_(self.reference_masters[name])

    @torch.no_grad()
    def reward_scores(self, batch: Batch) -> Tensor:
        """The reward model's score of each completion. Shape [C]."""
        if self.reward_copy is None:
            return self.policy.adapter_scores(batch, REWARD_ADAPTER)
        scores_C: Tensor = self.reward_copy(batch, scores=True).scores_C
        return scores_C


def is_of_critic(name: str) -> bool:
    """Whether a trainable parameter, by its name in `Roles.trainable`, is the critic's own."""
    return name.startswith(("critic.", "critic_head.", "value_head.")) or (
        f".{CRITIC_ADAPTER}." in name
    )


def attach_reward_adapter(policy: Network, run: Path, dtype: torch.dtype) -> None:
    """Put the reward model of `run` on the policy's trunk, as a second adapter that only reads.

    Right only if that reward model was trained from the very weights of this trunk. Raises
    UnsafeFileError if the adapter is not safetensors: peft would fall back to a pickle.
    """
    policy.reward_head = _attach(policy, run, dtype, REWARD_ADAPTER)


def attach_critic_adapter(policy: Network, run: Path, dtype: torch.dtype) -> None:
    """Put a critic on the policy's trunk that starts as the reward model of `run` and learns.

    Like `attach_reward_adapter`; its head gets a bias, which starts at 0.
    """
    head = _attach(policy, run, dtype, CRITIC_ADAPTER)
    policy.critic_head = ScalarHead(head.weight.detach()[0], bias=True)


def _attach(policy: Network, run: Path, dtype: torch.dtype, name: str) -> ScalarHead:
    """Another adapter on the trunk; returns the head it was trained with."""
    assert policy.peft is not None
    folder = run / saving.ADAPTER_FOLDER
    if not (folder / saving.ADAPTER_FILE).is_file():
        raise UnsafeFileError(
            f"the adapter has no {saving.ADAPTER_FILE}",
            where=str(folder),
            remedy="train the reward model again, or set model.lora to null to load it whole",
        )
    policy.peft.load_adapter(str(folder), name, is_trainable=False, autocast_adapter_dtype=False)
    for parameter_name, parameter in policy.named_parameters():
        if f".{name}." in parameter_name:  # peft keeps the precision of the file
            parameter.data = parameter.data.to(dtype)
    policy.peft.set_adapter(OWN_ADAPTER)  # peft makes the loaded one active
    return saving.load_head(folder / saving.SCORE_HEAD_FILE)


def load_critic(run: Path, dtype: torch.dtype, lora: LoraConfig | None) -> Network:
    """A critic of its own that starts as the reward model of `run`, trunk and head."""
    reward = load_reward_network(run, dtype)
    assert reward.score_head is not None
    head = ScalarHead(reward.score_head.weight.detach()[0], bias=True)
    if lora is not None:
        lora = replace(lora, exclude_modules=["score"])  # the classifier's own head is not read
    return Network(reward.base, lora=lora, value_head=head)


def load_reward_network(run: Path, dtype: torch.dtype) -> Network:
    """A reward model that a bradley_terry stage (or anyone) left as a sequence classifier.

    Raises ModelError if its head is not one bias-free matrix.
    """
    folders.check_folder(run)
    scorer = loading.load_scorer(str(run), dtype)
    if not hasattr(scorer, "score") or getattr(scorer.score, "bias", None) is not None:
        raise ModelError(
            "its head is not one bias-free matrix called `score`",
            where=str(run),
            remedy="give a decoder-only sequence classifier with num_labels=1",
        )
    return Network(scorer, score_head=ScalarHead(scorer.score.weight[0].float(), bias=False))
