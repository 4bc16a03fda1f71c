"""Guards against numbers, memory and samplers that fail, each taken away."""

from __future__ import annotations

from .mutant import Mutant

STEP, OPTIM, STATE = "training/step.py", "training/optim.py", "training/state.py"
GUARDS, BATCH, SAMPLER = "training/guards.py", "batch.py", "rollouts/sampler.py"
GUARDS_TESTS = ("training/test_guards.py",)
HALVES_TESTS = ("test_halves.py",)
SAMPLER_TESTS = ("rollouts/test_answers.py",)

MUTANTS = (
    Mutant(
        "a_reference_computed_in_halves_is_cached",
        "training/reference_cache.py",
        "        if memory.too_large is None:\n",
        "        if True:\n",
        ("training/test_reference_cache.py::test_what_was_computed_in_halves_is_not_cached",),
        "the next run's first log-ratio is not 0 and nothing says why",
    ),
    Mutant(
        "frozen_states_of_the_first_half_only",
        "models/roles.py",
        'torch.cat([part["frozen_TH"] for part in parts])',
        'parts[0]["frozen_TH"]',
        ("models/test_frozen.py",),
        "states of other tokens enter the adapted layers",
    ),
    Mutant(
        "sums_that_overflow_are_refused",
        GUARDS,
        " or bool(torch.isfinite(tensor).all())",
        "",
        GUARDS_TESTS,
        "large weights whose sum is infinite are no reason to stop",
    ),
    Mutant(
        "gradients_of_a_broken_off_pass",
        STEP,
        "                self.masters.clear_gradients()\n",
        "",
        GUARDS_TESTS,
        "a micro-batch tried again, and half of its gradient counted twice",
    ),
    Mutant(
        "metrics_of_what_was_done_before_the_halving",
        STEP,
        "waiting, collected, weight = parts, [], 0.0",
        "waiting = parts",
        GUARDS_TESTS,
        "divided by the weight of passes whose gradients were thrown away",
    ),
    Mutant(
        "a_skipped_step_moves_the_running_means",
        STEP,
        "        self.carried.clear()\n        self.carried.update(carried)\n",
        "",
        GUARDS_TESTS,
        "NaN in a running mean outlives the batch it came from",
    ),
    Mutant(
        "skipped_steps_are_forgotten",
        STATE,
        '        step.skipped[:] = numbers["skipped"]\n',
        "",
        ("training/test_resume.py::test_the_budget_of_skipped_steps_goes_on_where_it_was",),
        "every resume brings a new budget of NaN",
    ),
    Mutant(
        "frozen_weights_are_taken_on_trust",
        GUARDS,
        "            if _digest(tensor) != digest:",
        "            if len(_digest(tensor)) != len(digest):",
        GUARDS_TESTS,
        "a reference that drifts: embeddings trained beside an adapter (unsloth-zoo #830)",
    ),
    Mutant(
        "pairs_of_the_other_half",
        BATCH,
        "return kept - along[into][0] if (into := COLUMNS[name].into) else kept",
        "return kept",
        HALVES_TESTS,
        "chosen and rejected of the first half, in the second",
    ),
    Mutant(
        "a_sampler_is_believed",
        SAMPLER,
        "    if wrong:\n        raise RolloutError(",
        "    if False:\n        raise RolloutError(",
        SAMPLER_TESTS,
        "a dead worker's rows shift every reward behind them (NeMo-RL)",
    ),
    Mutant(
        "jobs_may_end_twice",
        "rollouts/rows.py",
        "        if job in done or not (",
        "        if not (",
        SAMPLER_TESTS,
        "one completion in two places",
    ),
    Mutant(
        "stale_samplers_are_logged_and_learnt_from",
        "rollouts/collect.py",
        "if limit is not None and gap > limit:",
        "if limit is not None and gap < 0:",
        ("rollouts/test_answers.py",),
        "sleep mode with weights of long ago: 0.2 nats a token (trl #5312)",
    ),
    Mutant(
        "rounding_of_equal_scores_is_a_signal",
        "rollouts/credit/group.py",
        "torch.where(deviation_C > SILENT, advantages_C, 0)",
        "advantages_C",
        ("rollouts/test_answers.py",),
        "AdamW makes a whole step of an advantage of 1e-8",
    ),
)
