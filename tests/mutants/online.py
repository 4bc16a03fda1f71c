"""Bugs where an offline method learns from its own samples."""

from __future__ import annotations

from .mutant import Mutant

CURATION = "rollouts/curation/"
BASE, PAIRS, BEST = CURATION + "base.py", CURATION + "pairs.py", CURATION + "best.py"
VERDICTS, THEIRS = CURATION + "verdicts.py", CURATION + "against_reference.py"
SOURCE, WIRING = "training/online.py", "training/on_policy.py"
XPO, JUDGE = "objectives/pairwise/xpo.py", "rewards/judge.py"
CURATION_TESTS = ("rollouts/test_curation.py",)
ONLINE_TESTS = ("training/test_online.py",)
ORACLE = ("objectives/test_online_oracle.py",)
OPPONENTS, OPPONENT_TESTS = "rollouts/opponents.py", ("rollouts/test_opponents.py",)
JUDGE_TESTS = ("rewards/test_judge.py",)

MUTANTS = (
    Mutant(
        "first_of_equals_is_chosen",
        PAIRS,
        "if scores[high] - scores[low] > self.min_gap",
        "if scores[high] - scores[low] >= self.min_gap",
        CURATION_TESTS,
        "TRL's online DPO chooses the first of two equal completions",
    ),
    Mutant(
        "worst_is_chosen",
        BASE,
        "completions=pair, chosen=0, rejected=1",
        "completions=pair, chosen=1, rejected=0",
        CURATION_TESTS,
        "a reward whose sign is turned round",
    ),
    Mutant(
        "random_pairs_in_the_order_drawn",
        PAIRS,
        "    low, high = sorted(two, key=scores.__getitem__)",
        "    low, high = two",
        CURATION_TESTS,
        "pairs labelled by place",
    ),
    Mutant(
        "ties_are_not_counted",
        BASE,
        "ties = sum(one.compared for one in kept), sum(one.ties for one in kept)",
        "ties = sum(one.compared for one in kept), 0",
        CURATION_TESTS,
        "silent drops: nobody learns that the reward cannot tell",
    ),
    Mutant(
        "expert_iteration_imitates_the_worst",
        BEST,
        "key=scores.__getitem__, reverse=True)",
        "key=scores.__getitem__)",
        CURATION_TESTS,
        "a sort in the other direction",
    ),
    Mutant(
        "solved_groups_are_no_demonstrations",
        BEST,
        "        if self.threshold is None and len(set(scores)) == 1:",
        "        if len(set(scores)) == 1:",
        CURATION_TESTS,
        "right answers thrown away because all were right",
    ),
    Mutant(
        "average_completions_are_bad",
        VERDICTS,
        "            if score != bar",
        "            if score is not None",
        CURATION_TESTS,
        "what is neither good nor bad learnt as bad",
    ),
    Mutant(
        "reference_sample_meets_another_prompts_place",
        THEIRS,
        "duels = list(zip(own, theirs, strict=False))",
        "duels = list(zip(own, reversed(theirs), strict=False))",
        CURATION_TESTS,
        "completions paired across their order",
    ),
    Mutant(
        "xpo_rewards_what_the_reference_says",
        XPO,
        "return dpo_P + self.alpha * _reference_side(pairs)",
        "return dpo_P - self.alpha * _reference_side(pairs)",
        ORACLE,
        "the optimism turned into a leash by its sign",
    ),
    Mutant(
        "xpo_pushes_the_rejected_side",
        XPO,
        'drawn_C[batch["chosen_G"]] * pairs.chosen.logps_P',
        'drawn_C[batch["chosen_G"]] * pairs.rejected.logps_P',
        ORACLE,
        "the bonus on the wrong completion of the pair",
    ),
    Mutant(
        "loss_at_the_samplers_temperature",
        "training/networks.py",
        "        temperature = 1.0  # ratios",
        "        temperature = temperature  # ratios",
        ONLINE_TESTS,
        "an offline loss that changes with how its rows were drawn",
    ),
    Mutant(
        "reference_is_renewed_at_every_rollout",
        SOURCE,
        "if index and self.sync_every and not index % self.sync_every:",
        "if index and self.sync_every:",
        ONLINE_TESTS,
        "no leash at all",
    ),
    Mutant(
        "reference_moves_only_half_way",
        WIRING,
        "roles.move_reference(1.0)",
        "roles.move_reference(0.5)",
        ONLINE_TESTS,
        "iterative DPO against a mixture",
    ),
    Mutant(
        "adapters_stay_on_when_the_reference_draws",
        "models/roles.py",
        "        with self.policy.using(None):\n            yield self.policy",
        "        yield self.policy",
        ONLINE_TESTS,
        "the policy against itself: under LoRA nothing to learn",
    ),
    Mutant(
        "reference_draws_with_the_policy",
        WIRING,
        "lambda: sample(network, prompts, settings",
        "lambda: sample(roles.policy, prompts, settings",
        ONLINE_TESTS,
        "the policy against itself",
    ),
    Mutant(
        "cut_completions_are_not_penalised",
        SOURCE,
        "score - penalty * (completion.finish is FinishReason.LENGTH)",
        "score - penalty * (completion.finish is FinishReason.STOP)",
        ONLINE_TESTS,
        "TRL looks for a stop token in prompt and completion together",
    ),
    Mutant(
        "the_references_scores_are_the_policys",
        SOURCE,
        "            if not completion.of_reference",
        "            if completion is not None",
        ONLINE_TESTS,
        "the reward curve of two models in one",
    ),
    Mutant(
        "each_epoch_draws_one_minibatch",
        SOURCE,
        "            yield from loader.epoch(epoch)",
        "            yield next(loader.epoch(epoch))",
        ONLINE_TESTS,
        "rows that are paid for and not learnt from",
    ),
    Mutant(
        "opponent_mixes_the_other_way",
        "models/mixture.py",
        "torch.cat([(1 - self.m) * own, self.m * theirs], -1)",
        "torch.cat([self.m * own, (1 - self.m) * theirs], -1)",
        OPPONENT_TESTS,
        "m on the wrong model: TRL's mixture_coef weighs the reference",
    ),
    Mutant(
        "both_models_share_their_keys",
        "models/mixture.py",
        "return self.layout(self.first + layer, query",
        "return self.layout(layer, query",
        OPPONENT_TESTS,
        "one model reads the other's cache",
    ),
    Mutant(
        "opponent_is_always_the_reference",
        WIRING,
        "        if mixture < 1:",
        "        if mixture < 0:",
        ONLINE_TESTS,
        "Nash-MD that is only a win rate against the start",
    ),
    Mutant(
        "quantile_of_minus_infinity",
        OPPONENTS,
        "math.log((1 + beaten) / (1 + len(rivals)))",
        "math.log(max(beaten, 1e-9) / len(rivals))",
        OPPONENT_TESTS,
        "one completion below all samples decides the step",
    ),
    Mutant(
        "equals_are_lost",
        OPPONENTS,
        "(score > rival) + 0.5 * (score == rival)",
        "(score > rival) + 0.0 * (score == rival)",
        OPPONENT_TESTS,
        "ties count against the policy",
    ),
    Mutant(
        "own_completions_are_their_own_opponents",
        OPPONENTS,
        "for score in scored[number:] if score is not None]",
        "for score in scored if score is not None]",
        OPPONENT_TESTS,
        "everyone also plays against themselves",
    ),
    Mutant(
        "judge_counts_what_it_cannot_tell",
        JUDGE,
        "            if winner >= 0:",
        "            if winner >= -1:",
        JUDGE_TESTS,
        "TRL's -1 read as a loss of both",
    ),
    Mutant(
        "judge_asks_across_prompts",
        JUDGE,
        "            members[group].append(index)",
        "            members[0].append(index)",
        JUDGE_TESTS,
        "answers to different questions compared",
    ),
)
