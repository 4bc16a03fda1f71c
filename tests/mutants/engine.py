"""Bugs in what a run says of its own speed, in cached references and in recomputed layers."""

from __future__ import annotations

from .mutant import Mutant

FLOPS, METER, SPEED = "planning/flops.py", "training/meter.py", "training/speed.py"
CACHE, CHECKPOINTING = "training/reference_cache.py", "models/checkpointing.py"
COUNTED = ("planning/test_flops.py",)
TIMED = ("training/test_speed.py",)
CACHED = ("training/test_reference_cache.py",)
RECOMPUTED = ("training/test_checkpointing.py",)

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
    Mutant(
        "cache_knows_weights_by_name_only",
        CACHE,
        ".cpu().view(torch.uint8).numpy()",
        ".cpu().view(torch.uint8)[:0].numpy()",
        CACHED,
        "a cache keyed by the model's path: the next SFT run in that folder gets the old numbers",
    ),
    Mutant(
        "cache_forgets_the_temperature",
        CACHE,
        '"temperature": temperature,',
        '"temperature": 1.0,',
        CACHED,
        "reference and policy at different temperatures: the first log-ratio is not 0",
    ),
    Mutant(
        "cache_forgets_what_was_computed_together",
        CACHE,
        "[[(g.prompt_ids, [c.ids for c in g.completions]) for g in p] for p in parts]",
        "sorted((g.prompt_ids, [c.ids for c in g.completions]) for p in parts for g in p)",
        CACHED,
        "the cache of another batch size: in bfloat16 the first log-ratio is rounding and not 0",
    ),
    Mutant(
        "cache_believes_any_file",
        CACHE,
        'if header.get("key") != key:',
        'if header.get("key") is None:',
        CACHED,
        "a file left by another run is read as this one's",
    ),
    Mutant(
        "cache_of_another_epochs_order",
        "training/sources.py",
        "self.loader.epoch(0), self.total_steps",
        "self.loader.epoch(1), self.total_steps",
        CACHED,
        "in bfloat16 the first log-ratio is rounding and not 0",
    ),
    Mutant(
        "reference_copy_is_loaded_for_nothing",
        "training/networks.py",
        "    if method.caches_reference:\n        needs_reference = False",
        "    if False:\n        needs_reference = False",
        CACHED,
        "trl precomputes reference log-probs and keeps the reference model in memory",
    ),
    Mutant(
        "sampling_is_checkpointed",
        CHECKPOINTING,
        "        if not torch.is_grad_enabled():\n",
        "        if False:\n",
        RECOMPUTED,
        "transformers' switch slows generation and takes its cache away",
    ),
    Mutant(
        "checkpointing_does_nothing",
        CHECKPOINTING,
        "        layer.forward = _checkpointed(layer.forward)",
        "        layer.forward = layer.forward",
        RECOMPUTED,
        "enabled in eval mode: transformers' layers look at self.training and keep everything",
    ),
)
