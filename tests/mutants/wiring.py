"""Bugs in how right parts are put together: presets, seeds, temperatures, splits, measurements."""

from __future__ import annotations

from .mutant import Mutant

BUILD, PRESETS, LOADER = "training/build.py", "objectives/_presets.py", "data/loader.py"
NETWORKS, ON_POLICY = "training/networks.py", "training/on_policy.py"
METHOD_TESTS = ("training/test_method.py",)
WIRING_TESTS = ("training/test_wiring.py",)
NOISE_TESTS = ("rollouts/test_noise.py",)
PRESET_TESTS = ("training/test_presets.py",)
PACKING_TESTS = ("data/test_packing.py",)

MUTANTS = (
    Mutant(
        "dr_grpo_preset_keeps_the_deviation",
        PRESETS,
        '            "scale_rewards": "none",\n',
        "",
        PRESET_TESTS,
        "TRL's documented Dr. GRPO recipe does not set scale_rewards",
    ),
    Mutant(
        "dapo_preset_without_clip_higher",
        PRESETS,
        '            "epsilon_high": 0.28,\n',
        "",
        PRESET_TESTS,
        "DAPO by name only",
    ),
    Mutant(
        "remax_preset_with_the_group_mean",
        PRESETS,
        '            "baseline": "greedy",\n',
        "",
        PRESET_TESTS,
        "ReMax without its greedy baseline",
    ),
    Mutant(
        "preset_beats_the_recipe",
        "training/method.py",
        "    keys = {**defaults, **raw}",
        "    keys = {**raw, **defaults}",
        METHOD_TESTS,
        "what a person wrote is overwritten",
    ),
    Mutant(
        "rloo_defaults_to_the_group_mean",
        "objectives/policy_gradient/rloo.py",
        '        "baseline": "leave_one_out",',
        '        "baseline": "group",',
        PRESET_TESTS,
        "RLOO whose default credit includes the sample itself",
    ),
    Mutant(
        "contract_of_the_credit_is_dropped",
        "training/method.py",
        "        return dict(self.objective.step_zero) | rule",
        "        return dict(self.objective.step_zero)",
        WIRING_TESTS,
        "policy ≠ reference at the first rollout, unseen (NeMo-Aligner #227)",
    ),
    Mutant(
        "trained_at_temperature_1",
        NETWORKS,
        "reward_copy, critic, temperature=temperature)",
        "reward_copy, critic)",
        WIRING_TESTS,
        "the recipe's temperature reaches the sampler only",
    ),
    Mutant(
        "sampled_at_temperature_1",
        ON_POLICY,
        "        temperature=sampling.temperature,",
        "        temperature=1.0,",
        WIRING_TESTS,
        "the recipe's temperature reaches the trainer only",
    ),
    Mutant(
        "every_rollout_has_the_same_noise",
        "training/sources.py",
        "            seed = hash((self.seed, index)) & 0x7FFFFFFF",
        "            seed = hash((self.seed, 0)) & 0x7FFFFFFF",
        WIRING_TESTS,
        "one seed for all rollouts",
    ),
    Mutant(
        "completions_of_a_group_are_alike",
        "rollouts/rows.py",
        "hash((seed, job.prompt, job.completion))",
        "hash((seed, job.prompt))",
        NOISE_TESTS,
        "a group of G copies teaches nothing",
    ),
    Mutant(
        "redraw_repeats_the_draw",
        "rollouts/collect.py",
        "self.draw(more(), hash((seed, extra)) & 0x7FFFFFFF)",
        "self.draw(more(), seed)",
        NOISE_TESTS,
        "dynamic sampling with the noise that failed",
    ),
    Mutant(
        "reference_never_follows",
        BUILD,
        '        if taken % knobs["sync_steps"] == 0:',
        '        if taken // knobs["sync_steps"] == -1:',
        WIRING_TESTS,
        "TR-DPO that is DPO",
    ),
    Mutant(
        "reference_follows_every_step",
        BUILD,
        '        if taken % knobs["sync_steps"] == 0:',
        "        if True:",
        WIRING_TESTS,
        "sync_steps read and not used",
    ),
    Mutant(
        "measuring_moves_the_running_means",
        "training/loop.py",
        "step.prepared(batches, dict(step.carried))",
        "step.prepared(batches, step.carried)",
        WIRING_TESTS,
        "an evaluation that changes the run",
    ),
    Mutant(
        "every_epoch_in_the_same_order",
        LOADER,
        '        random.Random(f"{self.seed}/{number}").shuffle(order)',
        '        random.Random(f"{self.seed}/0").shuffle(order)',
        PACKING_TESTS,
        "epoch 0's order replayed (accelerate #2016)",
    ),
    Mutant(
        "last_batch_is_dropped",
        LOADER,
        "        for start in range(0, len(order), self.batch_size):",
        "        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):",
        PACKING_TESTS,
        "drop_last without being asked",
    ),
    Mutant(
        "prompts_on_both_sides_of_the_split",
        "data/splits.py",
        "    train = [group for group in groups if group.prompt not in held_out]",
        "    train = list(groups)",
        ("data/test_splits.py",),
        "held-out prompts that were trained on",
    ),
    Mutant(
        "reward_model_is_right_on_ties",
        "evaluation/reward_model.py",
        "        right += chosen > rejected",
        "        right += chosen >= rejected",
        ("evaluation/test_reward_model.py",),
        "a constant reward model with accuracy 1",
    ),
    Mutant(
        "wilson_without_its_centre",
        "evaluation/intervals.py",
        "    centre = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)",
        "    centre = share",
        ("evaluation/test_intervals.py",),
        "intervals that leave [0, 1]",
    ),
    Mutant(
        "kl_reported_the_other_way",
        "evaluation/policy.py",
        "kl_k1(policy_logps(batch), reference_logps(batch))",
        "kl_k1(reference_logps(batch), policy_logps(batch))",
        ("evaluation/test_policy.py",),
        "−KL in the table",
    ),
    Mutant(
        "numbers_in_packed_order",
        "evaluation/policy.py",
        "    return [value for index in range(len(groups)) for value in found[index]]",
        "    return [value for values in found.values() for value in values]",
        ("evaluation/test_policy.py",),
        "paired tests on pairs that are none",
    ),
)
