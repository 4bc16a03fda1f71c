"""Bugs while completions are drawn: the choice of a token, the stored keys, the refilled slots."""

from __future__ import annotations

from .mutant import Mutant

CHOOSING, ROWS, SLOTS = "rollouts/choosing.py", "rollouts/rows.py", "rollouts/slots.py"
LOCAL, SAMPLER = "rollouts/engines/local.py", "rollouts/sampler.py"
ON_POLICY, GENERATE = "training/on_policy.py", "rollouts/engines/transformers.py"
TESTS = ("rollouts/test_sampler.py",)
CHOOSING_TESTS = ("rollouts/test_sampler_choosing.py",)
SLOTS_TESTS = ("rollouts/test_sampler_slots.py",)
ENGINE_TESTS = ("rollouts/test_sampler_engines.py",)

MUTANTS = (
    Mutant(
        "sampled_log_probs_at_temperature_1",
        CHOOSING,
        "        return ids_R, probs.gather(1, ids_R[:, None])[:, 0].log()",
        "        probs = torch.softmax(logits_RV.float(), -1)\n"
        "        return ids_R, probs.gather(1, ids_R[:, None])[:, 0].log()",
        TESTS,
        "samplers that report log-probs of the untempered model",
    ),
    Mutant(
        "temperature_upside_down",
        CHOOSING,
        "            logits.div_(temperature)",
        "            logits.mul_(temperature)",
        TESTS,
        "1/T for T",
    ),
    Mutant(
        "log_probs_of_what_truncation_left",
        CHOOSING,
        "        least = settings.min_p *",
        "        probs_RW.masked_fill_(probs_RW < kept_RK.where(kept_RK > 0, 1.0)"
        ".amin(-1, keepdim=True), 0)\n"
        "        probs_RW /= probs_RW.sum(-1, keepdim=True)\n"
        "        least = settings.min_p *",
        CHOOSING_TESTS,
        "processed log-probs against the trainer's raw ones: ratios far from 1",
    ),
    Mutant(
        "top_p_loses_the_token_that_reaches_it",
        CHOOSING,
        "            before = cumulative - kept_RK",
        "            before = cumulative",
        CHOOSING_TESTS,
        "top-p whose set holds less than p",
    ),
    Mutant(
        "top_p_of_the_whole_after_top_k",
        CHOOSING,
        "settings.top_p * cumulative[:, -1:]",
        "settings.top_p",
        CHOOSING_TESTS,
        "top-p not of what top-k left",
    ),
    Mutant(
        "min_p_is_absolute",
        CHOOSING,
        "settings.min_p * kept_RK.amax(-1, keepdim=True)",
        "settings.min_p",
        CHOOSING_TESTS,
        "min_p as a probability, not a share of the likeliest",
    ),
    Mutant(
        "last_noise_falls_off_the_end",
        CHOOSING,
        "torch.minimum(target, below), right=True",
        "target, right=True",
        CHOOSING_TESTS,
        "inverse CDF that overshoots by rounding",
    ),
    Mutant(
        "chunk_begins_at_zero",
        CHOOSING,
        "_inverse_at(inside, target - before)",
        "_inverse_at(inside, target)",
        CHOOSING_TESTS,
        "a two-level search that forgets the first level",
    ),
    Mutant(
        "cut_samples_called_finished",
        ROWS,
        "FinishReason.STOP if self.stopped_R[row] else FinishReason.LENGTH",
        "FinishReason.STOP",
        TESTS,
        "fragments trained as natural stops (whitecircle/halo #8)",
    ),
    Mutant(
        "stop_token_not_kept",
        ROWS,
        "        end = int(self.length_R[row])\n        return TokenCompletion(",
        "        end = int(self.length_R[row]) - bool(self.stopped_R[row])\n"
        "        return TokenCompletion(",
        TESTS,
        "completions without their EOS: stopping is never rewarded",
    ),
    Mutant(
        "ended_rows_go_on",
        ROWS,
        "        self.length_R += self.going_R",
        "        self.length_R += (self.length_R < self.settings.max_completion_length)",
        TESTS,
        "text behind the stop token",
    ),
    Mutant(
        "stop_sequences_are_read_in_single_tokens",
        ROWS,
        "[row, max(0, end - tail) : end]",
        "[row, end - 1 : end]",
        ENGINE_TESTS,
        "a stop string across two tokens is missed",
    ),
    Mutant(
        "slots_keep_their_former_rows",
        SLOTS,
        "            own[:, : len(rows_R)] = own[:, rows_R]",
        "            pass",
        TESTS,
        "a refilled batch whose cache was not moved with its rows",
    ),
    Mutant(
        "former_text_of_a_slot_is_seen",
        SLOTS,
        "        self._bias_RK = _bias(length_R, self._width)",
        "        self._bias_RK = None",
        TESTS,
        "continuous batching that leaks what the slot held before",
    ),
    Mutant(
        "padding_of_prompts_is_seen",
        SLOTS,
        "        self.bias_PK = _bias(self.length_P, int(self.length_P.max()))",
        "        self.bias_PK = None",
        TESTS,
        "padding that is attended to",
    ),
    Mutant(
        "rows_read_their_neighbours_prompt",
        SLOTS,
        "begin + seat * width + index, lengths[seat]",
        "begin + index, lengths[seat]",
        TESTS,
        "one prompt's keys serve another's completion",
    ),
    Mutant(
        "positions_restart_behind_the_prompt",
        SLOTS,
        "position_R = self._prompt_length_R + self._column_R",
        "position_R = self._column_R",
        TESTS,
        "decoding without position ids",
    ),
    Mutant(
        "positions_are_one_late",
        SLOTS,
        "position_R = self._prompt_length_R + self._column_R",
        "position_R = self._prompt_length_R + self._column_R + 1",
        TESTS,
        "the first decoded token skips a position",
    ),
    Mutant(
        "two_softmaxes_are_averaged",
        SLOTS,
        "        share = torch.sigmoid(total - totals)",
        "        share = torch.full_like(total, 0.5)",
        TESTS,
        "parts of a softmax merged without their sums",
    ),
    Mutant(
        "growing_forgets_the_text",
        SLOTS,
        "            self.own[layer][..., : old.shape[3], :] = old",
        "            pass",
        SLOTS_TESTS + TESTS,
        "a cache that is allocated anew",
    ),
    Mutant(
        "slots_are_allocated_for_the_limit",
        SLOTS,
        "        self._room = min(FIRST_SLOT, longest)",
        "        self._room = longest",
        SLOTS_TESTS,
        "a static cache as long as the longest text allowed",
    ),
    Mutant(
        "seats_are_kept_for_ever",
        SLOTS,
        "        self._give_up({*prompts, *waiting})",
        "        pass",
        SLOTS_TESTS,
        "memory that grows with the number of prompts",
    ),
    Mutant(
        "waiting_prompts_lose_their_seat",
        LOCAL,
        "        waiting = [self.queue[0].prompt] if self.queue else []",
        "        waiting: list[int] = []",
        SLOTS_TESTS,
        "a prompt prefilled again for its later completions",
    ),
    Mutant(
        "prompts_are_computed_for_every_refill",
        LOCAL,
        "if job.prompt not in seated)",
        "if True)",
        SLOTS_TESTS,
        "prefill per completion",
    ),
    Mutant(
        "window_models_take_the_local_engine",
        SAMPLER,
        "    if takes_shared_prompts(config, longest + settings.max_completion_length):",
        "    if takes_shared_prompts(config, longest):",
        ENGINE_TESTS,
        "full attention where the model has a window",
    ),
    Mutant(
        "left_padding_is_seen",
        GENERATE,
        "[[0] * (width - len(prompt)) + [1] * len(prompt)",
        "[[1] * width",
        TESTS,
        "left padding that is attended to",
    ),
    Mutant(
        "truncation_does_not_reach_the_sampler",
        ON_POLICY,
        "        top_p=sampling.top_p,\n",
        "",
        ENGINE_TESTS,
        "a knob that is read and not used",
    ),
)
