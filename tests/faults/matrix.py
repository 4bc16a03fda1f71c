"""The faults a run must take: kind -> (what happens, stage -> how it must end).

    S    same: what is left is bit for bit what the unbroken run leaves, after --resume or at once
    D    declared: it ends well and the run says what was left out, and how many
    Xn   stops with exit code n; what was saved is intact, and --resume ends the same
    Rn   refused with exit code n before any work

A stage that is absent cannot meet the fault: Best-of-N saves nothing in its middle (it is drawn
again, the same), so it has no checkpoint to damage, mistake, or edit data under. Kinds that need
several processes (P14, P15) come with them; the lab's (L) come with the lab.
"""

from __future__ import annotations

EVERY = ("sft", "reward", "dpo", "ppo", "grpo", "best_of_n")
TRAINED, SAMPLING, POLICY_GRADIENT = EVERY[:5], EVERY[3:], EVERY[3:5]


def _all(verdict: str, *stages: str) -> dict[str, str]:
    return dict.fromkeys(stages or EVERY, verdict)


MATRIX: dict[str, tuple[str, dict[str, str]]] = {
    "P1": ("SIGKILL at an operation of a save", _all("S")),
    "P2": ("SIGKILL between steps", _all("S")),
    "P3": ("SIGTERM in a step, a save, a rollout", _all("X143")),
    "P4": ("SIGINT once, twice", _all("X130")),
    "P5": ("power cut", _all("S")),
    "P6": ("disk full", _all("X6")),
    "P7": ("read-only folder, input/output error", _all("X6") | {"lab": "R2", "cli": "R2"}),
    "P8": ("newest checkpoint damaged", _all("S", *TRAINED)),
    "P9": ("every checkpoint damaged", _all("X8", *TRAINED)),
    "P10": ("a checkpoint of something else", _all("R8", *TRAINED)),
    "P11": ("two processes on one run, a stale lock", _all("R2")),
    "P12": ("out of memory in a micro-batch", _all("D")),
    "P13": ("resumed again and again", _all("S", *TRAINED)),
    "N1": ("loss or gradient not finite", _all("X5", *TRAINED)),
    # N2: batches are flat, nothing in them is masked. What is never read is memory nobody wrote
    # (slots of keys and values, output buffers) and the padding inside of attention's blocks.
    "N2": ("NaN in every masked place", _all("S")),
    "N3": ("nothing to average over", _all("D", *TRAINED)),
    "N4": ("step-0 identity broken", _all("X5", *TRAINED[1:])),
    "N5": ("other micro-batches", _all("S", *TRAINED)),
    "D1": ("bad row", _all("R3")),
    "D2": ("empty prompt or completion", _all("D")),
    "D3": ("too long", _all("D")),
    "D4": ("chosen is rejected, twice, contradicted", _all("D", "reward", "dpo")),
    "D5": ("huge row", _all("D")),
    "D6": ("surrogates, NUL, invalid UTF-8, BOM", _all("D") | {"cli": "D"}),
    "D7": ("control tokens spelt out in text", _all("S")),
    "D8": ("cut file, bomb, archive, link", _all("R3", "sft", "dpo", "grpo", "cli")),
    "D9": ("data edited between save and resume", _all("R8", *TRAINED)),
    "D10": ("no rows, one row, fewer than a batch", _all("D")),
    "T1": ("missing or doubled special tokens", _all("S")),
    "T2": ("chat template missing, raising, endless, hostile", _all("R4")),
    "T3": ("another vocabulary", _all("R4", "dpo", *SAMPLING)),
    "T4": ("order and neighbours", _all("S")),
    "T5": ("adapter and head saved, merged, loaded", _all("S", "reward", "dpo", "ppo", "grpo")),
    "T6": ("frozen weights touched", _all("X5", "dpo", "ppo", "grpo")),
    "T7": ("missing, extra, misshapen weights", _all("R4")),
    "T8": ("no stop token ever", _all("D", *SAMPLING)),
    # W1: the sampler lives in the trainer's process. One that hangs there cannot be ended from
    # inside, and nobody else could draw in its place: that comes with engines outside.
    "W1": ("a sampler that dies or is slow", _all("X7", *SAMPLING)),
    "W2": ("fewer, more, doubled, reordered completions", _all("X7", *SAMPLING)),
    "W3": ("stale sampler weights", _all("X7", *POLICY_GRADIENT)),
    "W4": ("a reward that raises or answers nonsense", _all("X7", *SAMPLING)),
    "W5": ("an http reward that lies", _all("X7", *SAMPLING)),
    "W6": ("equal rewards", _all("D", "grpo", "best_of_n")),
    "W7": ("a program that attacks its host", _all("D", "grpo", "best_of_n")),
}

LAB = ("lab",)
"""Stages that are not there yet."""


def cells() -> set[tuple[str, str]]:
    """(kind, stage) of every cell that can be tested today."""
    return {
        (kind, stage)
        for kind, (_, verdicts) in MATRIX.items()
        for stage in verdicts
        if stage not in LAB
    }
