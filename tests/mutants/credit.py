"""Bugs in credit: rewards of tokens, GAE, baselines, deviations, penalties."""

from __future__ import annotations

from .mutant import Mutant

BASE, GAE, GROUP, STATISTICS = (
    f"rollouts/credit/{name}.py" for name in ("base", "gae", "group", "_statistics")
)
GAE_TESTS = ("objectives/test_gae_oracle.py",)
GROUP_TESTS = ("objectives/test_group_credit_oracle.py",)

MUTANTS = (
    Mutant(
        "missing_stop_is_rewarded",
        BASE,
        'missing_eos_penalty * (~batch["finished_C"]).to(scores_C.dtype)',
        'missing_eos_penalty * batch["finished_C"].to(scores_C.dtype)',
        GAE_TESTS,
        "the EOS trick never fires in TRL's XPO and Nash-MD (trl #6805)",
    ),
    Mutant(
        "rlhf_reward_adds_the_kl",
        BASE,
        "torch.cat(list(shaped)) - kl_coef * kl_C",
        "torch.cat(list(shaped)) + kl_coef * kl_C",
        GAE_TESTS,
        "TRL documents score − non_score_reward, and adds",
    ),
    Mutant(
        "score_on_the_first_token",
        GAE,
        "rewards_N.index_add(0, batch.last_C, ",
        "rewards_N.index_add(0, batch.last_C - batch.lengths_C + 1, ",
        GAE_TESTS,
        "a score that is not on the last real token",
    ),
    Mutant(
        "drift_is_rewarded",
        GAE,
        "        rewards_N = -self.kl_coef * drift(batch)",
        "        rewards_N = self.kl_coef * drift(batch)",
        GAE_TESTS,
        "the KL penalty with its sign turned (RAGEN #58)",
    ),
    Mutant(
        "kl_is_not_in_the_reward",
        GAE,
        "        rewards_N = -self.kl_coef * drift(batch)",
        "        rewards_N = torch.zeros_like(drift(batch))",
        GAE_TESTS,
        "kl_coef read and not used (slime #399)",
    ),
    Mutant(
        "last_value_is_not_zero",
        GAE,
        "        next_values_N[batch.last_C] = 0.0\n",
        "",
        GAE_TESTS,
        "bootstrapping from whatever stands behind the end",
    ),
    Mutant(
        "returns_of_whitened_advantages",
        GAE,
        "        returns = [\n"
        '            advantages_N + batch["values_N"]\n'
        "            for batch, advantages_N in zip(batches, advantages, strict=True)\n"
        "        ]\n"
        "        if self.whiten_advantages:\n"
        "            advantages = list(torch.split(whiten(torch.cat(advantages)), sizes))\n",
        "        if self.whiten_advantages:\n"
        "            advantages = list(torch.split(whiten(torch.cat(advantages)), sizes))\n"
        "        returns = [\n"
        '            advantages_N + batch["values_N"]\n'
        "            for batch, advantages_N in zip(batches, advantages, strict=True)\n"
        "        ]\n",
        GAE_TESTS,
        "a critic that learns whitened numbers",
    ),
    Mutant(
        "whitened_per_micro_batch",
        GAE,
        "            advantages = list(torch.split(whiten(torch.cat(advantages)), sizes))\n",
        "            advantages = [whiten(advantages_N) for advantages_N in advantages]\n",
        GAE_TESTS,
        "lm-human-preferences whitens each minibatch inside the loss",
    ),
    Mutant(
        "discount_only_by_lambda",
        GAE,
        "self.gamma * self.lam)",
        "self.lam)",
        GAE_TESTS,
        "A_t = δ_t + λ A_{t+1}",
    ),
    Mutant(
        "discount_missing_in_delta",
        GAE,
        "rewards_N + self.gamma * next_values_N - values_N",
        "rewards_N + next_values_N - values_N",
        GAE_TESTS,
        "δ_t = R_t + V_{t+1} − V_t whatever γ",
    ),
    Mutant(
        "rloo_includes_itself",
        GROUP,
        "mean_C + (mean_C - returns_C) / (size_C - 1).clamp(min=1)",
        "mean_C",
        GROUP_TESTS,
        "the group's mean for the mean of the others: (G − 1)/G of the gradient",
    ),
    Mutant(
        "singleton_keeps_its_reward",
        GROUP,
        "mean_C + (mean_C - returns_C) / (size_C - 1).clamp(min=1)",
        "(size_C * mean_C - returns_C) / (size_C - 1).clamp(min=1)",
        GROUP_TESTS,
        "verl's rloo hands a group of one its raw reward",
    ),
    Mutant(
        "group_deviation_is_biased",
        STATISTICS,
        "    return (sum_G[batch.group_C] / (size_C - 1).clamp(min=1)).sqrt()",
        "    return (sum_G[batch.group_C] / size_C).sqrt()",
        GROUP_TESTS,
        "HALOs' np.std (n) where TRL, verl, OpenRLHF and we take n − 1",
    ),
    Mutant(
        "dr_grpo_divides_by_the_deviation",
        GROUP,
        '        if self.scale_rewards == "group":',
        '        if self.scale_rewards in ("group", "none"):',
        GROUP_TESTS,
        "TRL's Dr. GRPO recipe leaves scale_rewards on",
    ),
    Mutant(
        "epsilon_missing_in_the_deviation",
        GROUP,
        " / (deviation_C + self.scale_epsilon)",
        " / deviation_C",
        GROUP_TESTS,
        "equal rewards in a group give NaN",
    ),
    Mutant(
        "overlong_without_a_floor",
        GROUP,
        "        return scores_C - over_C.clamp(0, 1)",
        "        return scores_C - over_C.clamp(min=0)",
        GROUP_TESTS,
        "NeMo-RL's overlong punishment has no bound",
    ),
    Mutant(
        "overlong_rewards_the_short",
        GROUP,
        "        return scores_C - over_C.clamp(0, 1)",
        "        return scores_C - over_C.clamp(max=1)",
        GROUP_TESTS,
        "a punishment that turns into a bonus below its threshold",
    ),
    Mutant(
        "kl_forgotten_in_the_return",
        GROUP,
        "        return shaped_C - self.kl_coef * kl_C",
        "        return shaped_C",
        GROUP_TESTS,
        "kl_coef without effect (slime #399)",
    ),
    Mutant(
        "kl_of_one_token_only",
        GROUP,
        "advantages_N - discounted_deltas(costs_N, batch.lengths_C.tolist(), 1.0)",
        "advantages_N - costs_N",
        GROUP_TESTS,
        "k1 without return-to-go misses what a token does to the tokens after it",
    ),
    Mutant(
        "batch_baseline_per_micro_batch",
        GROUP,
        "            return whole_mean.expand_as(returns_C)",
        "            return returns_C.mean().expand_as(returns_C)",
        GROUP_TESTS,
        "a baseline that depends on memory",
    ),
    Mutant(
        "batch_whitening_per_micro_batch",
        GROUP,
        "list(torch.split(whiten(torch.cat(advantages)), sizes))",
        "[whiten(advantages_N) for advantages_N in advantages]",
        GROUP_TESTS,
        "REINFORCE++ normalised over less than the global batch",
    ),
    Mutant(
        "filter_keeps_the_cut",
        GROUP,
        'batch.keep(batch["finished_C"])',
        'batch.keep(~batch["finished_C"])',
        ("rollouts/test_collect_extras.py",),
        "an inverted mask",
    ),
    Mutant(
        "baseline_of_the_whole_batch",
        STATISTICS,
        "    return size_G[batch.group_C], mean_G[batch.group_C]",
        "    return size_G[batch.group_C], values_C.mean().expand_as(values_C)",
        GROUP_TESTS,
        "groups mixed up: the baseline of other prompts",
    ),
    Mutant(
        "silent_groups_counted_by_completion",
        GROUP,
        "torch.where(size_C > 1, 1 / size_C, 0)",
        "torch.where(size_C > 1, 1.0, 0)",
        ("objectives/test_survivors.py",),
        "a share of groups that is a share of completions",
    ),
)
