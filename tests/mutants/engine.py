"""Bugs in what a run says of its own speed, in cached references and in recomputed layers."""

from __future__ import annotations

from .mutant import Mutant

FLOPS, METER, SPEED = "planning/flops.py", "training/meter.py", "training/speed.py"
COUNTED = ("planning/test_flops.py",)
TIMED = ("training/test_speed.py",)

MUTANTS = (
    Mutant(
        "completions_do_not_see_their_prompt",
        FLOPS,
        "_triangle(c) + c * prompt for",
        "_triangle(c) for",
        COUNTED,
        "attention counted per completion as if it stood alone",
    ),
    Mutant(
        "adapters_cost_a_full_backward",
        FLOPS,
        "(sizes.reached_weights + sizes.trained_weights)",
        "(2 * sizes.reached_weights)",
        COUNTED,
        "6N for everything: a LoRA run looks half again as fast as it is",
    ),
    Mutant(
        "tokens_do_not_see_themselves",
        METER,
        "(batch.positions_T + 1).sum()",
        "batch.positions_T.sum()",
        COUNTED,
        "off by one on the diagonal",
    ),
    Mutant(
        "held_out_rows_count_as_training",
        METER,
        "started, self.counting = time.perf_counter(), False",
        "started = time.perf_counter()",
        TIMED,
        "tokens/s that rise with eval_steps",
    ),
    Mutant(
        "evaluating_counts_as_training_time",
        METER,
        "loop_seconds - self.sample_seconds - self.aside_seconds",
        "loop_seconds - self.sample_seconds",
        TIMED,
        "train_runtime of transformers holds its evaluations",
    ),
    Mutant(
        "building_counts_as_training",
        "training/loop.py",
        "    meter.restart()\n",
        "",
        TIMED,
        "work done before the first step is counted in the run's",
    ),
    Mutant(
        "warm_up_call_is_timed",
        SPEED,
        "            if warm:  # the first call",
        "            if True:  # the first call",
        TIMED,
        "a first call compiles, picks an algorithm or touches fresh memory",
    ),
)
