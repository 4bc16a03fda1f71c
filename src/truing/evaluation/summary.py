"""The schema of `summary.json`: what a run of a recipe found. No torch.

Every mean has an interval; a number that was not measured is null, never 0.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Interval(Part):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int
    """Independent units (prompts; pairs, lists or steps) behind it."""


class PolicyResult(Part):
    """One row of the table: a policy on the held-out prompts."""

    label: str
    stage: str
    gold: Interval | None = None
    """The annotator's reward of the completions, which no training stage saw."""
    gold_gain: Interval | None = None
    """Gold minus the reference's gold on the same prompts: a paired difference."""
    proxy: Interval | None = None
    """The reward model's score, before any normalisation."""
    proxy_gain: Interval | None = None
    kl: Interval | None = None
    """KL(policy || reference) of whole completions, nats, estimated on the policy's samples."""
    kl_bound: float | None = None
    """Best-of-N has no log-probs: its KL is at most this (log n - (n-1)/n). A bound, not a KL."""
    length: Interval
    """Completion tokens, stop token included."""
    distinct_2: float
    """Different word pairs / word pairs over all completions: 1 is all different."""
    no_eos: float
    """Share of completions cut at the token limit."""
    model_copies: float | None = None
    """Whole-model copies in memory while this policy was made."""
    peak_memory_bytes: int | None = None
    """Peak resident memory while this policy was made."""
    wall_seconds: float | None = None
    """Time of the stage that made this policy (for Best-of-N: of drawing and scoring)."""
    tokens_per_second: float | None = None
    """Tokens that stage computed or drew, per second of it."""


class StageResult(Part):
    """What a stage cost."""

    name: str
    method: str
    wall_seconds: float | None
    steps: int
    tokens: int
    tokens_per_second: float | None
    fraction_of_arithmetic_limit: float | None = None
    """Of a training stage: the time its operations take at the least, at the machine's own rate of
    matrix products, over the time its loop took."""
    model_copies: float | None
    peak_memory_bytes: int | None


class RewardModelResult(Part):
    """The reward model on held-out rows."""

    stage: str
    accuracy: Interval
    """Share of held-out pairs scored in the annotator's order, with its interval (of scored lists
    the mean share of their pairs, of judged steps the share of steps)."""
    unit: str = "pairs"
    """What the accuracy is over: pairs, lists or steps."""
    train_pairs: int
    """Training rows: pairs, scored lists or solutions."""
    test_pairs: int
    """Held-out rows."""
    ceiling: float | None = None
    """Best possible accuracy: a simulated annotator is itself undecided. null for real people."""

    @property
    def judged(self) -> str:
        """What the accuracy is a share of, in words."""
        held_out = f"{self.accuracy.n} held-out {self.unit}"
        return f"the pairs of {held_out}" if self.unit == "lists" else held_out


class SampleCompletion(Part):
    text: str
    gold: float | None = None
    proxy: float | None = None
    finish: str


class Sample(Part):
    """One held-out prompt and what each policy answered."""

    prompt: str
    completions: dict[str, SampleCompletion]
    """Label of the policy -> its completion."""


class Summary(Part):
    """`summary.json`."""

    schema_version: int = SCHEMA_VERSION
    name: str
    seed: int
    created: str
    """UTC, ISO 8601."""
    machine: dict[str, str]
    """Processor, cores, memory, accelerator, operating system."""
    versions: dict[str, str]
    precision: str
    """Compute precision of the forward passes."""
    reference: str | None = None
    """Label of the policy that KL and gains refer to."""
    policies: list[PolicyResult] = Field(default_factory=list)
    stages: list[StageResult] = Field(default_factory=list)
    reward_models: list[RewardModelResult] = Field(default_factory=list)
    first_step: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Stage -> metrics before its first update (DPO: loss = ln 2; PPO: ratio = 1)."""
    first_step_expected: dict[str, dict[str, tuple[float, float]]] = Field(default_factory=dict)
    """Stage -> metric -> (value, tolerance) that its objective declared for them."""
    verdicts: list[str] = Field(default_factory=list)
    """What the numbers say, in sentences: which policies raised the gold reward, which did not."""
    samples: list[Sample] = Field(default_factory=list)
