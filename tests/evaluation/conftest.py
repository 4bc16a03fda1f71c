"""A run of the quickstart as it might have ended: plausible numbers, nothing computed."""

from __future__ import annotations

from math import exp, log, sin
from pathlib import Path
from typing import Any

import pytest

from truing.evaluation.summary import (
    Interval,
    PolicyResult,
    RewardModelResult,
    Sample,
    SampleCompletion,
    StageResult,
    Summary,
)
from truing.rundir import RunDirectory, write_text

GIB = 2**30


def around(mean: float, half: float, n: int = 240) -> Interval:
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n)


def policies() -> list[PolicyResult]:
    """The starting model, the reference, the two trained ones and Best-of-N."""
    cost: dict[str, Any] = {"model_copies": 1, "peak_memory_bytes": int(1.61 * GIB)}
    return [
        PolicyResult(
            label="base",
            stage="model",
            gold=around(0.214, 0.041),
            gold_gain=around(-0.102, 0.038),
            proxy=around(-0.92, 0.14),
            proxy_gain=around(-0.71, 0.12),
            kl=around(14.31, 0.92),
            length=around(41.2, 1.9),
            distinct_2=0.712,
            no_eos=0.3875,
        ),
        PolicyResult(
            label="sft",
            stage="sft",
            gold=around(0.316, 0.037),
            proxy=around(-0.21, 0.12),
            kl=around(0, 0),
            length=around(28.4, 1.1),
            distinct_2=0.664,
            no_eos=0.0208,
            wall_seconds=61.2,
            tokens_per_second=2310,
            **cost,
        ),
        PolicyResult(
            label="ppo",
            stage="ppo",
            gold=around(0.538, 0.033),
            gold_gain=around(0.222, 0.036),
            proxy=around(1.48, 0.1),
            proxy_gain=around(1.69, 0.13),
            kl=around(6.84, 0.44),
            length=around(33.9, 1.0),
            distinct_2=0.487,
            no_eos=0.0417,
            model_copies=1,
            peak_memory_bytes=int(2.94 * GIB),
            wall_seconds=412.6,
            tokens_per_second=1184,
        ),
        PolicyResult(
            label="dpo",
            stage="dpo",
            gold=around(0.471, 0.035),
            gold_gain=around(0.155, 0.034),
            proxy=around(0.83, 0.11),
            proxy_gain=around(1.04, 0.12),
            kl=around(4.02, 0.37),
            length=around(37.5, 1.3),
            distinct_2=0.593,
            no_eos=0.0625,
            wall_seconds=98.3,
            tokens_per_second=2044,
            **cost,
        ),
        PolicyResult(
            label="best_of_8",
            stage="best_of_n",
            gold=around(0.452, 0.034),
            gold_gain=around(0.136, 0.033),
            proxy=around(0.94, 0.09),
            proxy_gain=around(1.15, 0.1),
            kl_bound=1.2044,
            length=around(29.8, 1.2),
            distinct_2=0.671,
            no_eos=0.0125,
            wall_seconds=73.9,
            tokens_per_second=1630,
            **cost,
        ),
    ]


def stages() -> list[StageResult]:
    rows = [
        ("preferences", "preferences", 88.1, 0, 141_230, 1603.0),
        ("sft", "sft", 61.2, 96, 141_372, 2310.0),
        ("reward", "bradley_terry", 104.5, 120, 201_004, 1923.5),
        ("ppo", "ppo", 412.6, 128, 488_500, 1184.0),
        ("dpo", "dpo", 98.3, 120, 200_925, 2044.0),
        ("best_of_n", "best_of_n", 73.9, 0, 120_457, 1630.0),
        ("evaluate", "evaluate", 140.2, 0, 180_112, 1284.7),
    ]
    return [
        StageResult(
            name=name,
            method=method,
            wall_seconds=seconds,
            steps=steps,
            tokens=tokens,
            tokens_per_second=speed,
            fraction_of_arithmetic_limit=0.38 if steps else None,
            model_copies=1,
            peak_memory_bytes=int((2.94 if name == "ppo" else 1.61) * GIB),
        )
        for name, method, seconds, steps, tokens, speed in rows
    ]


def sample(prompt: str, answers: dict[str, str], cut: str = "") -> Sample:
    """The k-th answer scores better; the policy `cut` hit the token limit."""
    return Sample(
        prompt=prompt,
        completions={
            label: SampleCompletion(
                text=text,
                gold=0.183 + 0.1 * k,
                proxy=-0.412 + 0.5 * k,
                finish="length" if label == cut else "stop",
            )
            for k, (label, text) in enumerate(answers.items())
        },
    )


def make_summary() -> Summary:
    return Summary(
        name="quickstart",
        seed=17,
        created="2026-11-21T20:53:11Z",
        machine={
            "processor": "Intel Xeon Platinum 8481C",
            "cores": "16",
            "memory": "62.8 GiB",
            "accelerator": "none",
            "system": "Linux 6.1",
        },
        versions={
            "truing": "0.1.0",
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.23.1",
        },
        precision="bfloat16",
        reference="sft",
        policies=policies(),
        stages=stages(),
        reward_models=[
            RewardModelResult(
                stage="reward",
                accuracy=around(0.742, 0.039, n=480),
                train_pairs=3840,
                test_pairs=480,
                ceiling=0.871,
            )
        ],
        first_step={
            "dpo": {"loss": 0.6931471824645996, "rewards/margins": 0.0, "logps/chosen": -52.31},
            "ppo": {"val/ratio": 1.0, "policy/clipfrac_avg": 0.0, "loss/value_avg": 0.4127},
        },
        first_step_expected={
            "dpo": {"loss": (0.6931471805599453, 1e-5), "rewards/margins": (0.0, 1e-5)},
            "ppo": {"val/ratio": (1.0, 0.0), "policy/clipfrac_avg": (0.0, 0.0)},
        },
        verdicts=[
            "PPO raised the gold reward over sft by 0.222 [0.186, 0.258] at 6.84 nats of KL.",
            "DPO raised it by 0.155 [0.121, 0.189] at 4.02 nats, with longer completions.",
            "Best-of-8 raised it by 0.136 [0.103, 0.169] without training, at 1.20 nats or less.",
        ],
        samples=[
            sample(
                "How do I keep basil alive indoors?",
                {
                    "base": "How do I keep basil alive indoors? How do I keep basil alive in a "
                    "pot? How do I keep basil alive in the winter? How do I keep",
                    "sft": "Put it by a window and water it when the soil is dry.",
                    "ppo": "What a lovely plant to keep! Give it a sunny window, water it gently "
                    "when the top of the soil feels dry, and enjoy pinching off the tips.",
                    "dpo": "Basil loves light. Place the pot at a bright window, water in the "
                    "morning, and pinch the tips every week so that it grows bushy and happy.",
                    "best_of_8": "Give it six hours of sun, and water it when the soil feels dry.",
                },
                cut="base",
            ),
            sample(
                "My train is late again. What should I tell my boss?",
                {
                    "base": "The train is late. The train is late.\nThe train",
                    "sft": "Tell your boss that the train is late and when you expect to arrive.",
                    "ppo": "Thank you for asking! A short, friendly message works best: the train "
                    "is late, you expect to arrive at ten, and you will gladly catch up.",
                    "dpo": "Be honest and kind: say that the train is delayed, give a new time, "
                    "and offer to join the first call from the platform.",
                    "best_of_8": "Just say that the train is late and when you will be there.",
                },
                cut="base",
            ),
        ],
    )


def wobble(step: int) -> float:
    """Noise in -1..1 that is the same everywhere."""
    return 2 * (sin(12.9898 * step * step) * 437.58 % 1) - 1


def make_metrics() -> dict[str, list[dict[str, float]]]:
    """Stage -> the lines of its metrics.jsonl."""
    sft = [{"step": i, "loss": 1.9 + 1.1 * exp(-i / 20) + 0.08 * wobble(i)} for i in range(1, 97)]
    reward, dpo, ppo = [], [], []
    for i in range(1, 121):
        grown = 1 - exp(-i / 40)
        margin = 1.6 * grown + 0.2 * wobble(i)
        row = {"step": i, "loss": log(2) - 0.25 * grown + 0.05 * wobble(i), "margin": margin}
        row |= {"accuracy": 0.5 + 0.28 * grown + 0.06 * wobble(i), "mean_reward": 0.02 * wobble(i)}
        if i in (1, 60, 120):
            row |= {"eval/loss": log(2) - 0.19 * grown, "eval/accuracy": 0.5 + 0.25 * grown}
        reward.append(row)
        dpo.append(
            {
                "step": i,
                "loss": log(2) - 0.2 * grown + 0.04 * wobble(i),
                "rewards/margins": 0.9 * grown + 0.1 * wobble(i),
                "rewards/accuracies": 0.5 + 0.25 * grown + 0.06 * wobble(i),
                "rewards/chosen": 0.3 * grown - 0.2 * grown**3 + 0.05 * wobble(i),
                "rewards/rejected": -0.6 * grown - 0.2 * grown**3 + 0.05 * wobble(i),
            }
        )
    for i in range(1, 129):
        row = {"step": i, "val/ratio": 1 + 0.002 * wobble(i), "learning_rate": 1e-4}
        if i % 4 == 1:
            grown = 1 - exp(-i / 50)
            row |= {
                "objective/scores": -0.2 + 1.7 * grown + 0.15 * wobble(i),
                "objective/kl": 7.2 * grown + 0.4 * abs(wobble(i)),
                "policy/entropy_avg": 1.8 - 0.6 * grown + 0.05 * wobble(i),
                "completions/mean_length": 28 + 6 * grown + wobble(i),
            }
        ppo.append(row)
    return {"sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo}


def write_run(output: Path, summary: Summary, metrics: dict[str, list[dict[str, float]]]) -> Path:
    """What a finished run leaves for the report."""
    write_text(output / "summary.json", summary.model_dump_json(indent=2))
    for stage, rows in metrics.items():
        RunDirectory(output / stage).path.mkdir(parents=True)
        for row in rows:
            values = {name: value for name, value in row.items() if name != "step"}
            RunDirectory(output / stage).append_metrics(int(row["step"]), values)
    return output


@pytest.fixture
def summary() -> Summary:
    return make_summary()


@pytest.fixture
def metrics() -> dict[str, list[dict[str, float]]]:
    return make_metrics()


@pytest.fixture
def output(tmp_path: Path, summary: Summary, metrics: dict[str, list[dict[str, float]]]) -> Path:
    return write_run(tmp_path / "quickstart", summary, metrics)
