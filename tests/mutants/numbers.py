"""Bugs in the pure functions, in the batch and in how groups become rows."""

# ruff: noqa: E501 (code as it stands)

from __future__ import annotations

from .mutant import Mutant

OPS, BATCH = "ops.py", "batch.py"
PACKING, ARRANGING = "data/packing.py", "data/arranging.py"
OPS_TESTS = ("test_ops.py",)
PATH = ("data/test_packing.py", "objectives/test_production_path.py")
ARRANGING_TESTS = ("data/test_arranging.py",)
STOP = ("objectives/test_production_path.py::test_the_stop_token_costs_its_own_log_prob",)

MUTANTS = (
    Mutant(
        "k1_maximised",
        OPS,
        "    return logps_N - reference_logps_N",
        "    return reference_logps_N - logps_N",
        OPS_TESTS,
        "verl's KL loss was maximised (RAGEN #58)",
    ),
    Mutant(
        "k2_not_halved",
        OPS,
        "    return (logps_N - reference_logps_N).square() / 2",
        "    return (logps_N - reference_logps_N).square()",
        OPS_TESTS,
        "the square without its half: twice the leash",
    ),
    Mutant(
        "k3_reversed",
        OPS,
        "    d = (logps_N - reference_logps_N).clamp(",
        "    d = (reference_logps_N - logps_N).clamp(",
        OPS_TESTS,
        "k3 with the ratio the other way up: never negative still, and another KL",
    ),
    Mutant(
        "k3_by_subtraction",
        OPS,
        "torch.expm1(-d) + d",
        "torch.exp(-d) - 1 + d",
        OPS_TESTS,
        "e^−d − 1 loses every digit near 0 in float32, and then is negative",
    ),
    Mutant(
        "k3_overflows",
        OPS,
        "(logps_N - reference_logps_N).clamp(min=-EXP_LIMIT)",
        "logps_N - reference_logps_N",
        OPS_TESTS,
        "TRL clamps nothing inside exp",
    ),
    Mutant(
        "whitening_keeps_the_mean",
        OPS,
        "    return whitened + mean if keep_mean else whitened",
        "    return whitened + mean",
        OPS_TESTS,
        "torchtune's whiten adds the mean back",
    ),
    Mutant(
        "whitening_is_biased",
        OPS,
        "max(values.numel() - 1, 1)",
        "max(values.numel(), 1)",
        OPS_TESTS,
        "lm-human-preferences divides by n where we say n − 1",
    ),
    Mutant(
        "gae_runs_into_the_next_completion",
        OPS,
        "        for t in range(start + length - 2, start - 1, -1):",
        "        for t in range(min(start + length, len(deltas_N)) - 2 + (start + length < len(deltas_N)), start - 1, -1):",
        OPS_TESTS,
        "on flat tokens the recursion must stop at a completion's end",
    ),
    Mutant(
        "log1mexp_cancels",
        OPS,
        "torch.log(-torch.expm1(small))",
        "torch.log1p(-torch.exp(small))",
        OPS_TESTS,
        "ORPO's odds by log1p(−exp(·)): no digits left near P = 1",
    ),
    Mutant(
        "log1mexp_has_nan_slopes",
        OPS,
        "    large = torch.where(near_zero, -1.0, x)",
        "    large = x",
        (*OPS_TESTS, "objectives/test_reference_free_oracle.py"),
        "torch.where sends 0 · ∞ back through the branch it did not take",
    ),
    Mutant(
        "columns_carry_gradients",
        BATCH,
        "        return self.columns[name].detach()  #",
        "        return self.columns[name]  #",
        ("objectives/test_conformance.py::test_no_gradient_flows_into_the_columns",),
        "reference and advantages not detached: open-instruct's weights, and many first drafts",
    ),
    Mutant(
        "last_is_one_too_far",
        BATCH,
        "        return torch.cumsum(self.lengths_C, 0) - 1",
        "        return torch.cumsum(self.lengths_C, 0).clamp(max=self.size_N - 1)",
        ("objectives/test_gae_oracle.py",),
        "TRL and N+ put PPO's score on the token after EOS (trl #3750, #1893)",
    ),
    Mutant(
        "length_without_the_stop_token",
        BATCH,
        "        return torch.bincount(self.completion_N, minlength=self.size_C)",
        "        return (torch.bincount(self.completion_N, minlength=self.size_C) - 1).clamp(min=1)",
        ("objectives/test_reference_free_oracle.py",),
        "means over L − 1 tokens: the stop token is one of them",
    ),
    Mutant(
        "metrics_are_means_of_means",
        BATCH,
        "                combined[name] = sum(totals) / weight",
        "                combined[name] = sum(\n"
        "                    float(part.total) / max(part.weight, 1) for part in parts\n"
        "                ) / len(parts)",
        ("objectives/test_conformance.py::test_micro_batches_add_up",),
        "means of micro-batch means, as logged all over the field",
    ),
    Mutant(
        "kept_tokens_of_other_completions",
        BATCH,
        "        kept_N = kept_C[self.completion_N]",
        "        kept_N = kept_C[self.completion_N] | (self.completion_N == 0)",
        ("rollouts/test_collect_extras.py",),
        "filtered completions that still give loss",
    ),
    Mutant(
        "source_is_the_token_itself",
        PACKING,
        "[last_of_prompt, *range(start, start + length - 1)]",
        "range(start, start + length)",
        PATH,
        "log-probs without the shift: each token is read off the state that has seen it",
    ),
    Mutant(
        "first_token_follows_the_sibling",
        PACKING,
        "[last_of_prompt, *range(start, start + length - 1)]",
        "range(start - 1, start + length - 1)",
        PATH,
        "with a shared prompt, the state before a completion is not the one to its left",
    ),
    Mutant(
        "positions_do_not_restart",
        PACKING,
        "            self._write(completion.ids, prompt_length, index, branch)",
        "            self._write(completion.ids, start, index, branch)",
        PATH,
        "packing without position ids per segment",
    ),
    Mutant(
        "stop_token_outside_the_mask",
        PACKING,
        "            self.source_N += [last_of_prompt, *range(start, start + length - 1)]\n"
        "            self.target_N += range(start, start + length)\n"
        "            self.completion_N += [len(self.group_C)] * length\n",
        "            said = length - (completion.finish is FinishReason.STOP)\n"
        "            self.source_N += [last_of_prompt, *range(start, start + length - 1)][:said]\n"
        "            self.target_N += range(start, start + said)\n"
        "            self.completion_N += [len(self.group_C)] * said\n",
        STOP,
        "TRL's SFT never trained EOS (trl #1623, again #3091)",
    ),
    Mutant(
        "prompt_tokens_in_the_loss",
        PACKING,
        "            self.source_N += [last_of_prompt, *range(start, start + length - 1)]\n"
        "            self.target_N += range(start, start + length)\n"
        "            self.completion_N += [len(self.group_C)] * length\n",
        "            asked = range(last_of_prompt - prompt_length + 1, last_of_prompt + 1)\n"
        "            self.source_N += [*asked, *range(start, start + length - 1)]\n"
        "            self.target_N += [*asked[1:], *range(start, start + length)]\n"
        "            self.completion_N += [len(self.group_C)] * (length + prompt_length - 1)\n",
        PATH,
        "TRL's prompt length became 2 and the prompt was trained (trl #6105)",
    ),
    Mutant(
        "pairs_of_the_first_group",
        PACKING,
        "            first += len(group.completions)",
        "            first += 0",
        PATH,
        "indices of pairs that do not move on with the group",
    ),
    Mutant(
        "step_label_off_by_one",
        PACKING,
        "            self.step_end_S += [start + last for last, _ in completion.steps]",
        "            self.step_end_S += [start + last + 1 for last, _ in completion.steps]",
        PATH,
        "a process reward read at the token after the step's end",
    ),
    Mutant(
        "demonstration_is_the_first_answer",
        ARRANGING,
        "        return group.chosen\n",
        "        return 0\n",
        ARRANGING_TESTS,
        "SFT on the first completion of a pair, chosen or not",
    ),
    Mutant(
        "undesirable_answers_are_imitated",
        ARRANGING,
        "completion.label is not False and all(labels)",
        "all(labels)",
        ARRANGING_TESTS,
        "SFT on every unpaired row",
    ),
    Mutant(
        "verdicts_of_a_pair_change_places",
        ARRANGING,
        "(replace(pair[0], label=True), replace(pair[1], label=False))",
        "(replace(pair[0], label=False), replace(pair[1], label=True))",
        ARRANGING_TESTS,
        "labels of unpaired rows made from pairs",
    ),
    Mutant(
        "scores_of_a_pair_change_places",
        ARRANGING,
        "replace(pair[0], score=1.0), replace(pair[1], score=0.0)",
        "replace(pair[0], score=0.0), replace(pair[1], score=1.0)",
        ARRANGING_TESTS,
        "rejected 1, chosen 0",
    ),
    Mutant(
        "mismatched_with_itself",
        ARRANGING,
        "_lend(groups[lent[index]], group, index, longest)",
        "_lend(groups[index], group, index, longest)",
        ARRANGING_TESTS,
        "KTO pairs a row with itself (trl #1911)",
    ),
    Mutant(
        "mismatched_is_not_marked",
        ARRANGING,
        "label=label, mismatched=True)",
        "label=label, mismatched=False)",
        ARRANGING_TESTS,
        "KTO learns from another row's answer",
    ),
    Mutant(
        "cut_answers_count_as_finished",
        PACKING,
        "[c.finish is FinishReason.STOP for c in completions]",
        "[len(c.ids) > 0 for c in completions]",
        ("data/test_finished.py",),
        "truncated completions taken for natural stops (whitecircle/halo #8)",
    ),
)
