"""Bugs in objectives that look at the two sides apart, at no reference, or at the whole step."""

# ruff: noqa: E501 (code as it stands)

from __future__ import annotations

from .mutant import Mutant

ROOM = "objectives/pairwise/"
SIGMOID = ("objectives/test_sigmoid_family_oracle.py",)
ABSOLUTE = ("objectives/test_absolute_family_oracle.py",)
FREE = ("objectives/test_reference_free_oracle.py",)
COUPLED = ("objectives/test_batch_coupled_oracle.py",)

MUTANTS = (
    Mutant(
        "beta_dpo_keeps_every_pair",
        ROOM + "beta_dpo.py",
        "        sides = {name: batch[name][kept_G]",
        "        sides = {name: batch[name][kept_G >= 0]",
        COUPLED,
        "the filter is drawn, and not applied",
    ),
    Mutant(
        "beta_dpo_prefers_the_odd",
        ROOM + "beta_dpo.py",
        "draw(-((gaps_G - usual) / width).square() / 2, count, step.number)",
        "draw(((gaps_G - usual) / width).square() / 2, count, step.number)",
        COUPLED,
        "outliers kept, the usual left out",
    ),
    Mutant(
        "beta_dpo_falls_where_it_should_rise",
        ROOM + "beta_dpo.py",
        "(1 + self.sensitivity * clearer)",
        "(1 - self.sensitivity * clearer)",
        COUPLED,
        "β against the gap",
    ),
    Mutant(
        "beta_dpo_margins_times_beta",
        ROOM + "beta_dpo.py",
        "            return pairs.chosen.ratio_P - pairs.rejected.ratio_P\n\n",
        "            return self.beta * (pairs.chosen.ratio_P - pairs.rejected.ratio_P)\n\n",
        COUPLED,
        "the paper writes β₀Δ, its code takes Δ",
    ),
    Mutant(
        "moving_average_the_other_way",
        "objectives/_gather.py",
        "momentum * before + (1 - momentum) * value",
        "(1 - momentum) * before + momentum * value",
        COUPLED,
        "0.9 of the new",
    ),
    Mutant(
        "running_mean_of_batch_means",
        "objectives/_gather.py",
        '    count = step.carried.get("count", torch.tensor(0)) + values.numel()\n'
        '    mean = step.carried.get("mean", values.new_zeros(()))\n'
        "    mean = mean + (values - mean).sum() / count\n",
        '    count = step.carried.get("count", torch.tensor(0)) + 1\n'
        '    mean = step.carried.get("mean", values.new_zeros(()))\n'
        "    mean = mean + (values.mean() - mean) / count\n",
        (*ABSOLUTE, "objectives/test_prepare.py"),
        "LLaMA-Factory's BCO takes the mean of a batch for one sample",
    ),
    Mutant(
        "aot_sorts_each_micro_batch",
        ROOM + "aot.py",
        "        upper_rival_G, lower_rival_G = same_rank(*gather(step, both))\n",
        "        ranked = [same_rank(*both(b, step.compute(b))) for b in step.batches]\n"
        "        upper_rival_G, lower_rival_G = (torch.cat(r) for r in zip(*ranked, strict=True))\n",
        COUPLED,
        "TRL sorts within a micro-batch: the loss depends on memory",
    ),
    Mutant(
        "aot_sorts_one_side",
        ROOM + "aot.py",
        "scatter(0, by_upper, lower_P[by_lower])",
        "scatter(0, by_upper, lower_P)",
        COUPLED,
        "ranks of one side against places of the other",
    ),
    Mutant(
        "aot_counts_twice",
        ROOM + "aot.py",
        "    return both_P - both_P.detach() / 2",
        "    return both_P",
        COUPLED,
        "both comparisons in the value",
    ),
    Mutant(
        "nca_pair_drops_a_half",
        ROOM + "nca_pair.py",
        "    noise_P = logsigmoid(-chosen_reward_P) + logsigmoid(-rejected_reward_P)",
        "    noise_P = logsigmoid(-rejected_reward_P) * 2",
        ABSOLUTE,
        "without the chosen side's noise term the reward is not anchored",
    ),
    Mutant(
        "exo_pair_runs_forwards",
        ROOM + "exo_pair.py",
        "    right_P = margin_P.sigmoid() * (logsigmoid(margin_P) - math.log1p(-label_smoothing))\n"
        "    wrong_P = (-margin_P).sigmoid() * (logsigmoid(-margin_P) - math.log(label_smoothing))\n",
        "    right, wrong = 1 - label_smoothing, label_smoothing\n"
        "    right_P = right * (math.log(right) - logsigmoid(margin_P))\n"
        "    wrong_P = wrong * (math.log(wrong) - logsigmoid(-margin_P))\n",
        SIGMOID,
        "the forward KL is cDPO",
    ),
    Mutant(
        "bco_pair_has_no_shift",
        ROOM + "bco_pair.py",
        'chosen_P, rejected_P, pairs.batch["reward_shift"])',
        "chosen_P, rejected_P, 0.0)",
        ABSOLUTE,
        "TRL's bco_pair fixes δ = 0",
    ),
    Mutant(
        "bco_pair_shifts_one_side",
        ROOM + "bco_pair.py",
        "logsigmoid(reward_shift - rejected_reward_P)",
        "logsigmoid(-rejected_reward_P)",
        ABSOLUTE,
        "δ subtracted from the chosen side only",
    ),
    Mutant(
        "apo_down_with_the_pair_of_up",
        ROOM + "apo_down.py",
        "(rejected_reward_P - chosen_reward_P).sigmoid()",
        "(chosen_reward_P - rejected_reward_P).sigmoid()",
        ABSOLUTE,
        "the pair term turned round: both sides go where they should not",
    ),
    Mutant(
        "apo_zero_lifts_both",
        ROOM + "apo_zero.py",
        "    return (-chosen_reward_P).sigmoid() + rejected_reward_P.sigmoid()",
        "    return (-chosen_reward_P).sigmoid() + (-rejected_reward_P).sigmoid()",
        ABSOLUTE,
        "the rejected side with the chosen one's sign",
    ),
    Mutant(
        "sppo_pulls_both_up",
        ROOM + "sppo.py",
        "(rejected_ratio_P + target_P).square()",
        "(rejected_ratio_P - target_P).square()",
        ABSOLUTE,
        "the sign of the loser's target",
    ),
    Mutant(
        "sppo_target_is_one_over_beta",
        ROOM + "sppo.py",
        "    target_P = (probability_P - 0.5) / beta",
        "    target_P = probability_P / beta",
        ABSOLUTE,
        "1/β for 1/(2β)",
    ),
    Mutant(
        "discopop_blends_the_wrong_way",
        ROOM + "discopop.py",
        "    logistic_P = (-margin_P / tau).sigmoid() *",
        "    logistic_P = (margin_P / tau).sigmoid() *",
        SIGMOID,
        "the two losses with each other's weight",
    ),
    Mutant(
        "cpo_reads_a_reference",
        ROOM + "cpo.py",
        "    needs = REFERENCE_FREE\n\n"
        "    def pair_losses(self, pairs: Pairs) -> Tensor:\n"
        "        contrast_P = dpo_loss(pairs.chosen.logps_P, pairs.rejected.logps_P, self.beta)\n",
        "    def pair_losses(self, pairs: Pairs) -> Tensor:\n"
        "        contrast_P = dpo_loss(pairs.chosen.ratio_P, pairs.rejected.ratio_P, self.beta)\n",
        FREE,
        "CPO with a reference is RPO",
    ),
    Mutant(
        "simpo_gamma_not_times_beta",
        ROOM + "simpo.py",
        "        gamma = self.beta * self.gamma_beta_ratio",
        "        gamma = self.gamma_beta_ratio",
        FREE,
        "γ or γ/β: TRL and LLaMA-Factory take the one, the paper's code the other",
    ),
    Mutant(
        "simpo_margin_the_other_way",
        ROOM + "simpo.py",
        "(chosen_mean_P - rejected_mean_P) - gamma)",
        "(chosen_mean_P - rejected_mean_P) + gamma)",
        FREE,
        "a margin given away instead of asked for",
    ),
    Mutant(
        "simpo_sums",
        ROOM + "simpo.py",
        "pairs.chosen.mean_logp_P, pairs.rejected.mean_logp_P",
        "pairs.chosen.logps_P, pairs.rejected.logps_P",
        FREE,
        "β = 2 on sums decides every pair at once",
    ),
    Mutant(
        "orpo_without_log1mexp",
        ROOM + "orpo.py",
        "    return capped_P - log1mexp(capped_P)",
        "    return capped_P",
        FREE,
        "odds that are probabilities",
    ),
    Mutant(
        "orpo_on_sums",
        ROOM + "orpo.py",
        "log_odds(pairs.chosen.mean_logp_P) - log_odds(pairs.rejected.mean_logp_P)",
        "log_odds(pairs.chosen.logps_P) - log_odds(pairs.rejected.logps_P)",
        FREE,
        "ORPO on summed log-probs: unstable (rlhf-book #243)",
    ),
    Mutant(
        "slic_regulariser_per_token",
        ROOM + "slic.py",
        '        return hinge_P + self.nll_coef * nll_of(pairs.chosen, "sum")',
        '        return hinge_P + self.nll_coef * nll_of(pairs.chosen, "sequence")',
        FREE,
        "HALOs' SLiC: a term per token beside one per sequence",
    ),
    Mutant(
        "slic_hinge_the_other_way",
        ROOM + "slic.py",
        "    return torch.relu(delta - chosen_logps_P + rejected_logps_P)",
        "    return torch.relu(delta + chosen_logps_P - rejected_logps_P)",
        FREE,
        "the loser is calibrated up",
    ),
)
