"""What every stage is given: the recipe, the data, the tokenizer, and where its parents are.

Data are read and encoded before any weights are loaded, so bad rows are found at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from truing import rewards
from truing.config import Data, Recipe, RewardSpec
from truing.data.chat import ChatTokenizer
from truing.data.declared import by_reason, declared, doubtful
from truing.data.formats import Dropped, parse_rows, settle
from truing.data.readers import read_rows
from truing.data.splits import split_by_prompt
from truing.errors import UsageError, suggest
from truing.groups import Group, Prompt, TokenGroup
from truing.models import loading
from truing.models.network import Network
from truing.rewards.base import Reward
from truing.rewards.model import Model
from truing.rollouts.learned_reward import LearnedReward, reads_ids_of
from truing.rundir import RunDirectory, fingerprint

Split = Literal["train", "test"]
NO_ROOM_REMEDY = "lower max_completion_length, or set data.bad_rows=drop to leave them out"
Tick = Callable[[int, int, Mapping[str, float]], None]
"""How far a stage is: done, of how many, with the latest numbers."""


@dataclass
class Context:
    """One run of one recipe."""

    recipe: Recipe
    output: Path
    where: str
    """The recipe's name in messages."""
    say: Callable[[str], None]
    """One line to the user."""
    dropped: dict[str, dict[Dropped, None]] = field(default_factory=dict)
    """Data name -> rows left out, each once."""
    doubtful: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Data name -> reason -> places of rows that are used and deserve a look."""
    _groups: dict[str, dict[Split, list[Group]]] = field(default_factory=dict)
    _lengths: dict[Prompt, int] = field(default_factory=dict)
    """Tokens of every prompt that was read."""
    _through_text: set[str] = field(default_factory=set)
    """Reward models of which the user was told so."""

    @cached_property
    def model_path(self) -> str:
        return loading.resolve(self.recipe.model.path, self.recipe.model.revision)

    @cached_property
    def data_digest(self) -> str:
        """Hash of the rows as read, so that an edited file is not taken for the old one; where
        they lie is no part of them."""
        splits = [self.groups("data", split) for split in ("train", "test")]
        return fingerprint([[asdict(replace(g, where="")) for g in split] for split in splits])

    @cached_property
    def tokenizer(self) -> ChatTokenizer:
        return ChatTokenizer(loading.load_tokenizer(self.model_path, self.recipe.model.revision))

    @cached_property
    def positions(self) -> int | None:
        """Tokens that the model has places for; None without a limit."""
        return loading.positions(self.model_path, self.recipe.model.revision)

    @cached_property
    def device(self) -> torch.device:
        return loading.pick_device(self.recipe.model.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        return loading.compute_dtype(self.recipe.model.dtype, self.device)

    def run(self, stage: str) -> RunDirectory:
        """The run directory of a stage."""
        return RunDirectory(self.output / stage)

    def source(self, name: str) -> tuple[str, str | None]:
        """Where the weights of 'model', of a stage or of any model path are: (path, revision)."""
        if name == "model":
            return self.model_path, self.recipe.model.revision
        inside = name in self.recipe.stages
        return loading.resolve(str(self.run(name).path) if inside else name), None

    def network(self, name: str) -> Network:
        """A frozen policy, for sampling and measuring."""
        path, revision = self.source(name)
        network = Network(loading.load_causal(path, self.dtype, revision))
        return network.requires_grad_(False).to(self.device)

    def seed(self, stage: str, own: int | None) -> int:
        """The stage's own seed, or one derived from the recipe's and a name."""
        return own if own is not None else self.derived_seed(stage)

    def derived_seed(self, name: str) -> int:
        return int(fingerprint(self.recipe.seed, name), 16) & 0x7FFFFFFF

    def reward(self, spec: RewardSpec) -> Reward | Path:
        """The folder of a reward model that reads the policy's own ids (a stage's, or anyone's with
        the same tokenizer), or a reward over texts."""
        if isinstance(spec, str) and spec in self.recipe.stages:
            return self.run(spec).path
        if isinstance(spec, str) and Path(spec, "config.json").is_file():
            if reads_ids_of(Path(spec), self.tokenizer.tokenizer):
                return Path(spec)
            if spec not in self._through_text:
                self.say(f"{spec} has another tokenizer or head: it scores through text")
                self._through_text.add(spec)
        return self.text_reward(spec)

    def text_reward(self, spec: RewardSpec) -> Reward:
        """A reward over texts: a name, fields, a function, a reward model. Opens no weights yet."""
        try:
            return rewards.make(spec, self._reward_model, self.recipe.stages)
        except UsageError as error:
            if not (isinstance(spec, str) and error.what.startswith("unknown name")):
                raise
            valid = [*rewards.names(), *self.recipe.stages]
            raise UsageError(error.what, where=self.where, remedy=suggest(spec, valid)) from error

    def _reward_model(self, model: Model) -> Reward:
        """A reward model that is asked through text: a stage's, or anyone's."""
        inside = model.path in self.recipe.stages
        path = str(self.run(model.path).path) if inside else loading.resolve(model.path)
        return LearnedReward(replace(model, path=path), self.device, self.dtype)

    def groups(self, name: str, split: Split) -> list[Group]:
        """Groups of 'data' or of a stage that made some, train or test."""
        if name not in self._groups:
            if name == "data":
                self._groups[name] = self._read_data(self.recipe.data)
            else:
                self._groups[name] = {
                    part: self._parsed(str(self.run(name).path / f"{part}.jsonl"), name)
                    for part in ("train", "test")
                }
        return self._groups[name][split]

    def _read_data(self, data: Data) -> dict[Split, list[Group]]:
        """The recipe's rows, checked whole (bad rows and lengths), divided by prompt."""
        train = self._parsed(data.path, "data", data.columns, data.max_rows)
        if data.test_path == data.path:
            return {"train": train, "test": train}
        if data.test_path is not None:
            test = self._parsed(data.test_path, "data.test_path", data.columns, data.max_rows)
            return {"train": train, "test": test}
        if not data.test_rows:
            return {"train": train, "test": []}
        train, test = split_by_prompt(train, data.test_rows, self.recipe.seed)
        return {"train": train, "test": test}

    def _parsed(
        self,
        path: str,
        name: str,
        columns: Mapping[str, str] | None = None,
        max_rows: int | None = None,
    ) -> list[Group]:
        """The groups of a path that fit the model; what was left out is kept under `name`."""
        data = self.recipe.data
        most = min(data.max_length, self.positions or data.max_length)
        rows = read_rows(path, split=data.split, max_rows=max_rows)
        parsed = parse_rows(rows, columns=columns, bad_rows=data.bad_rows)
        fitted = self.tokenizer.fit(parsed.groups, most, bad_rows=data.bad_rows)
        self._lengths |= {
            group.prompt: len(tokens.prompt_ids)
            for group, tokens in zip(fitted.groups, fitted.tokens, strict=True)
        }
        self._drop(name, [*parsed.dropped, *fitted.dropped])
        if known := doubtful(fitted.groups):
            self.doubtful[name] = known
        return fitted.groups

    def _drop(self, name: str, rows: Iterable[Dropped]) -> None:
        """Remember rows that were left out, each once however often it is asked for."""
        if found := dict.fromkeys(rows):
            self.dropped.setdefault(name, {}).update(found)

    @property
    def data_facts(self) -> dict[str, Any]:
        """What was read and what became of it, for run.json: counts of rows, rows left out and
        rows that deserve a look, with reasons and places."""
        return {
            "rows": {
                name: {part: len(groups) for part, groups in parts.items()}
                for name, parts in self._groups.items()
            },
            "dropped_rows": {
                name: declared(by_reason(rows)) for name, rows in self.dropped.items()
            },
            "doubtful_rows": {name: declared(known) for name, known in self.doubtful.items()},
        }

    def encode(self, groups: Sequence[Group]) -> list[TokenGroup]:
        """Token ids of groups that were found to fit."""
        return [self.tokenizer.encode(group) for group in groups]

    def prompts(
        self, name: str, split: Split, limit: int | None = None, room: int = 0
    ) -> list[Group]:
        """The prompts of groups, each once, without their completions.

        A prompt after which the model has no places for `room` tokens is a bad row. Raises
        DataError for those unless they are to be dropped, UsageError if there are no prompts.
        """
        seen: dict[Any, Group] = {}
        for group in self.groups(name, split):
            seen.setdefault(group.prompt, group.bare())
        # the limit first: stages with other limits on length then differ in what they drop alone
        prompts = list(seen.values())[:limit]
        if not prompts:
            raise UsageError(
                f"'{name}' has no {split} prompts",
                where=self.where,
                remedy="set data.test_rows or data.test_path",
            )
        without = {prompt.where: bad for prompt in prompts if (bad := self._no_room(prompt, room))}
        settle(list(without.values()), len(prompts), self.recipe.data.bad_rows, NO_ROOM_REMEDY)
        self._drop(name, without.values())
        return [prompt for prompt in prompts if prompt.where not in without]

    def _no_room(self, prompt: Group, room: int) -> Dropped | None:
        """Why a prompt cannot be answered with `room` tokens, if so."""
        length = self._lengths.get(prompt.prompt, 0)
        if self.positions is None or length + room <= self.positions:
            return None
        reason = f"no room for {room:,} tokens of a completion in {self.positions:,} places"
        return Dropped(prompt.where, reason, f"{length:,} tokens")

    def readable(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, as rewards and people read it."""
        return self.tokenizer.decode(ids)
