"""Bugs that a reader with fresh eyes found in the glue, each planted again."""

from __future__ import annotations

from .mutant import Mutant

COLLECT, ROLES = "rollouts/collect.py", "models/roles.py"
WIRING, TOGETHER = "training/on_policy.py", "training/together.py"
EVALUATE, CONTEXT = "pipeline/stages/evaluate.py", "pipeline/context.py"
CODE, REQUEST = "rewards/code.py", "rewards/_request.py"
EVALUATE_TESTS = ("pipeline/test_evaluate_stage.py",)
TOGETHER_TESTS = ("training/test_together.py",)
CRITIC_TESTS = ("training/test_critic.py",)
CODE_TESTS = ("rewards/test_code.py",)

MUTANTS = (
    Mutant(
        "only_the_loss_asks_for_a_reference",
        "training/networks.py",
        "method.curation is not None and method.curation.draws_from_reference",
        "False",
        ("training/test_online.py",),
        "simpo against the reference's own completions, and nobody to draw them",
    ),
    Mutant(
        "adapters_begin_by_chance",
        "training/networks.py",
        "        torch.manual_seed(inputs.seed)",
        "        torch.seed()",
        ("training/test_step.py",),
        "two runs of one recipe and one seed end a fifth of a reward apart",
    ),
    Mutant(
        "scores_of_the_last_draw_alone",
        COLLECT,
        "for scores in said for value in scores.values",
        "for scores in said[-1:] for value in scores.values",
        ("rollouts/test_collect_extras.py",),
        "with dynamic sampling the headline curve is of a selection",
    ),
    Mutant(
        "critic_keeps_the_reward_models_unit",
        ROLES,
        "head.weight.div_(deviation)",
        "head.weight.div_(1.0)",
        CRITIC_TESTS,
        "values in one unit, returns in another",
    ),
    Mutant(
        "critic_keeps_the_reward_models_mean",
        ROLES,
        "head.bias.sub_(shift)",
        "head.bias.sub_(0.0 * shift)",
        CRITIC_TESTS,
        "a constant that cliprange_value takes twenty rollouts to remove",
    ),
    Mutant(
        "one_prompt_left_ends_the_run",
        WIRING,
        "len({row.prompt_ids for row in rows}) < 2",
        "len({row.prompt_ids for row in rows}) < 1",
        ("training/test_online.py",),
        "ties in one rollout lose what all rollouts before it taught",
    ),
    Mutant(
        "groups_of_one_are_let_through",
        TOGETHER,
        "if compares and each < 2:",
        "if compares and each < 1:",
        TOGETHER_TESTS,
        "a whole run with a gradient of exactly 0, exit code 0",
    ),
    Mutant(
        "keys_nobody_hears_are_let_through",
        TOGETHER,
        "if value in off:",
        "if value is off:",
        TOGETHER_TESTS,
        "kl_target: 6 with kl_control left at fixed",
    ),
    Mutant(
        "price_falls_while_the_critic_warms_up",
        COLLECT,
        "if self.collected > self.critic_rollouts:",
        "if self.collected > 0:",
        ("rollouts/test_kl_control.py",),
        "a controller that winds up before anything can drift",
    ),
    Mutant(
        "demonstrations_at_the_samplers_temperature",
        ROLES,
        "1.0 if people else self.temperature",
        "self.temperature",
        ("training/test_on_policy_runs.py",),
        "PPO-ptx flattens the model at temperatures below 1",
    ),
    Mutant(
        "warm_up_is_over_before_the_policy_begins",
        "training/step.py",
        "        if not alone:\n            self.schedule.step()",
        "        self.schedule.step()",
        CRITIC_TESTS,
        "the first update at the peak rate, with empty moments",
    ),
    Mutant(
        "kl_of_greedy_texts",
        EVALUATE,
        "config.truncates or not config.temperature",
        "config.truncates",
        EVALUATE_TESTS,
        "log-ratios of what was not drawn from the policy, called a KL",
    ),
    Mutant(
        "bound_to_another_model",
        EVALUATE,
        "sampler.from_ == mine.reference and all(",
        "all(",
        EVALUATE_TESTS,
        "log n - (n - 1)/n as a bound of the KL to what was not sampled from",
    ),
    Mutant(
        "bound_at_another_temperature",
        EVALUATE,
        'alike = ("temperature", "top_k", "top_p", "min_p")',
        "alike = ()",
        EVALUATE_TESTS,
        "the same, with a colder sampler",
    ),
    Mutant(
        "none_of_four_is_certainty",
        EVALUATE,
        "share_interval(values) if set(values) <= {0.0, 1.0} else mean_interval(values)",
        "mean_interval(values)",
        EVALUATE_TESTS,
        "0.00 [0.00, 0.00] from four prompts",
    ),
    Mutant(
        "beyond_the_last_position",
        CONTEXT,
        "length + room <= self.positions:",
        "length + room <= 10 * self.positions:",
        EVALUATE_TESTS,
        "an IndexError in the middle of a rollout",
    ),
    Mutant(
        "lines_end_where_unicode_says",
        "rundir.py",
        'lines = path.read_bytes().split(b"\\n")',
        'lines = [*path.read_text(encoding="utf-8").splitlines(), ""]',
        EVALUATE_TESTS,
        "a U+2028 in a completion ends a run after everything is trained",
    ),
    Mutant(
        "other_languages_are_the_program",
        CODE,
        "reversed(named or unnamed)",
        "reversed(unnamed or named)",
        CODE_TESTS,
        "what a program printed, taken for the program",
    ),
    Mutant(
        "hanging_programs_hang_for_every_input",
        CODE,
        "                    break  # it hangs",
        "                    pass  # it hangs",
        (CODE_TESTS[0] + "::test_a_program_that_hangs_is_not_waited_for_with_every_input",),
        "half an hour of a rollout, then an error",
    ),
    Mutant(
        "chunk_lengths_are_believed",
        REQUEST,
        "if self.timed.left < 0:",
        "if False:",
        ("rewards/test_http.py",),
        "Transfer-Encoding: chunked with a chunk of -1",
    ),
    Mutant(
        "reserved_addresses_are_public",
        "rewards/_address.py",
        "if address.is_site_local or address.is_reserved:",
        "if False:",
        ("rewards/test_http.py",),
        "fec0::/10 is global to Python",
    ),
    Mutant(
        "columns_hide_completions",
        "rollouts/scoring.py",
        'if name not in ("prompts", "completions")',
        "if True",
        ("rewards/test_function_reward.py",),
        "UltraFeedback has a column of that name",
    ),
    Mutant(
        "stages_inside_rewards_are_not_seen",
        "config/sections.py",
        "        if isinstance(inner, Mapping):  # the parts",
        "        if False:  # the parts",
        ("pipeline/test_graph.py",),
        "a mixture that is trained against before its reward model is",
    ),
)
