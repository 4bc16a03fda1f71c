"""Bugs in the optimizer step: sums, divisions, masters, contract."""

from __future__ import annotations

from .mutant import Mutant

STEP, OPTIM, CONTRACT = "training/step.py", "training/optim.py", "training/contract.py"
STEP_TESTS = ("training/test_step.py",)
PLAIN = ("training/test_plain_step.py",)

MUTANTS = (
    Mutant(
        "mean_of_micro_batch_means",
        STEP,
        "        loss.total.backward()  # type: ignore[no-untyped-call]\n"
        "        self.masters.collect()\n"
        "        return loss._replace(total=loss.total.detach())\n",
        "        (loss.total / loss.weight).backward()\n"
        "        self.masters.collect()\n"
        "        return loss._replace(total=loss.total.detach(), weight=1.0)\n",
        PLAIN,
        "gradient accumulation in transformers until late 2024 (#34191), trl #2175, verl #906",
    ),
    Mutant(
        "weight_of_the_last_micro_batch",
        STEP,
        "            weight += loss.weight",
        "            weight = loss.weight",
        PLAIN,
        "normalised by what the last micro-batch held (prime-rl #583)",
    ),
    Mutant(
        "divided_by_accumulation_twice",
        STEP,
        "        self.masters.scale_gradients(1.0 / weight)",
        "        self.masters.scale_gradients(1.0 / weight / len(micro_batches))",
        PLAIN,
        "a global normaliser, and the framework divides once more (transformers #35203)",
    ),
    Mutant(
        "clipped_before_the_division",
        STEP,
        "        self.masters.scale_gradients(1.0 / weight)\n",
        "        torch.nn.utils.clip_grad_norm_(\n"
        "            self.masters.masters.values(), self.max_grad_norm\n"
        "        )\n"
        "        self.masters.scale_gradients(1.0 / weight)\n",
        PLAIN,
        "clipping the sum instead of the mean: tiny steps on large batches",
    ),
    Mutant(
        "gradients_pile_up",
        STEP,
        "        self.optimizer.zero_grad(set_to_none=True)\n",
        "",
        PLAIN,
        "zero_grad forgotten: every step repeats the last ones",
    ),
    Mutant(
        "learning_rate_never_moves",
        STEP,
        "        if not alone:\n            self.schedule.step()\n",
        "",
        (*PLAIN, *STEP_TESTS),
        "a scheduler that is made and not stepped",
    ),
    Mutant(
        "non_finite_loss_is_hidden",
        STEP,
        "            self._refuse_non_finite(*bad)\n"
        '            return self._skip(f"{bad[0]} is {bad[1]}", metrics, before, rows)\n',
        "            metrics = {n: v for n, v in metrics.items() if math.isfinite(v)}\n",
        STEP_TESTS,
        "transformers logs a running mean instead of NaN and steps anyway",
    ),
    Mutant(
        "contract_is_never_asked",
        STEP,
        "        if not self.first_metrics:",
        "        if self.taken == 1:",
        STEP_TESTS,
        "SFT adapter as policy, bare base as reference (trl #1340, #495)",
    ),
    Mutant(
        "running_means_are_lost",
        STEP,
        "self.prepared(micro_batches, self.carried)",
        "self.prepared(micro_batches, dict(self.carried))",
        PLAIN,
        "LLaMA-Factory's BCO: the mean of one batch in place of the running one",
    ),
    Mutant(
        "every_step_is_the_first",
        STEP,
        "carried, self.taken)",
        "carried, 0)",
        PLAIN,
        "draws seeded with the step that never changes",
    ),
    Mutant(
        "masters_in_bfloat16",
        OPTIM,
        "            name: p if p.dtype != torch.bfloat16 else nn.Parameter(p.detach().float())",
        "            name: p",
        STEP_TESTS,
        "an Adam step of 1e-5 on a bfloat16 weight rounds to nothing",
    ),
    Mutant(
        "gradient_of_the_last_micro_batch",
        OPTIM,
        "gradient if master.grad is None else master.grad.add_(gradient)",
        "gradient",
        STEP_TESTS,
        "accumulation that overwrites",
    ),
    Mutant(
        "moved_weights_are_not_used",
        OPTIM,
        "                parameter.copy_(self.masters[name])",
        "                pass",
        STEP_TESTS,
        "stale weights: masters move, the model that computes does not (trl #5312)",
    ),
    Mutant(
        "vectors_are_decayed",
        OPTIM,
        '{"params": vectors, "weight_decay": 0.0},',
        '{"params": vectors, "weight_decay": weight_decay},',
        PLAIN,
        "weight decay on norms and biases",
    ),
    Mutant(
        "nan_passes_the_contract",
        CONTRACT,
        "        if not abs(found[name] - value) <= tolerance:",
        "        if abs(found[name] - value) > tolerance:",
        (*STEP_TESTS, *PLAIN),
        "NaN is larger than no tolerance",
    ),
    Mutant(
        "a_frozen_tensor_learns_unseen",
        CONTRACT,
        "            if not parameter.requires_grad and parameter.grad is not None:",
        "            if parameter.requires_grad and parameter.grad is not None and False:",
        (*STEP_TESTS, *PLAIN),
        "gradients into reference or reward model",
    ),
)
