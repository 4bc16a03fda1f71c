"""Stages that are no training, and the recipe: a graph of named stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from truing.config.sections import Data, Model, Positive, RewardSpec, Sampling, Section, Stage


class Preferences(Stage, Sampling):
    """Draw several completions a prompt and let a simulated annotator choose between them."""

    method: Literal["preferences"] = "preferences"
    from_: str = Field("model", alias="from")
    """Who writes the completions."""
    data: str = "data"
    """Where the prompts come from."""
    annotator: RewardSpec
    """The reward that plays the human. No later stage sees it, only its choices."""
    annotator_temperature: Annotated[float, Field(gt=0)] = 0.1
    """P(a over b) = σ((score_a − score_b) / temperature). Smaller is a surer annotator."""
    num_generations: Annotated[int, Field(ge=2)] = 4
    """Completions per prompt; neighbours (1,2), (3,4), ... are compared."""
    train_prompts: Positive | None = None
    """Use at most this many prompts of the train split (null: all)."""
    test_prompts: Positive | None = None
    """The same for the test split."""


class BestOfN(Stage, Sampling):
    """Draw n completions a prompt and keep the one the reward model likes best."""

    method: Literal["best_of_n"] = "best_of_n"
    from_: str = Field("model", alias="from")
    """Who writes the completions."""
    reward: RewardSpec
    """What picks: an earlier bradley_terry stage, or a reward by name."""
    data: str = "data"
    """Where the (held-out) prompts come from."""
    num_generations: Annotated[int, Field(ge=1)] = 8
    """n. KL to the sampler is at most log n − (n − 1)/n nats. Larger: more of what picks is got,
    further from the sampler, and a curve that goes further."""
    gold: RewardSpec | None = None
    """A reward that does not pick: the curve of every n from 1 to num_generations shows it beside
    the one that does (a stage, a folder or a reward by name; null: no such curve)."""
    test_prompts: Positive | None = None
    """Use at most this many prompts of the test split (null: all)."""


class Evaluate(Stage, Sampling):
    """Draw from several policies on the same held-out prompts with the same seeds; compare."""

    method: Literal["evaluate"] = "evaluate"
    policies: dict[str, str]
    """Label -> stage ('model' for the starting model). A best_of_n stage counts as a policy."""
    reference: str
    """The stage KL is measured to and differences are taken from."""
    data: str = "data"
    """Where the prompts come from (their test split)."""
    proxy: RewardSpec | None = None
    """The reward that was trained against: a stage, a folder or a reward by name."""
    gold: RewardSpec | None = None
    """The annotator's reward, if there is one: it is only ever seen here."""
    test_prompts: Positive | None = None
    """Use at most this many prompts of the test split (null: all)."""
    show_samples: Annotated[int, Field(ge=0)] = 6
    """Prompts whose completions are shown side by side in the report (0: none)."""

    def parents(self) -> dict[str, str]:
        policies = {f"policy {label}": stage for label, stage in self.policies.items()}
        return {**policies, "reference": self.reference, **super().parents()}


class Recipe(Section):
    """A graph of stages."""

    name: str
    """Names the run."""
    output: str
    """Folder of the run. Each stage has a run directory of its own in it."""
    seed: int = 0
    """Everything random is derived from it."""
    model: Model
    data: Data
    stages: dict[str, dict[str, Any]]


PIPELINE_METHODS: Mapping[str, type[Stage]] = {
    "preferences": Preferences,
    "best_of_n": BestOfN,
    "evaluate": Evaluate,
}
"""Methods that are not objectives, and their schema."""
