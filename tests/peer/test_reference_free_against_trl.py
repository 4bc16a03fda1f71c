"""CPO, SimPO and ORPO against TRL's experimental trainers, from logits on."""

from types import SimpleNamespace

import doubles
import pytest
import torch
from doubles import DTYPES, differ, mean_loss, method, same
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

from objectives.flat_batches import random_batch
from truing.batch import Outputs

BETA, VOCABULARY = 0.3, 5


class Point:
    """Pairs of uneven lengths after uneven prompts, with logits that take a gradient."""

    def __init__(self, dtype=torch.float64, seed=7, scale=1.0):
        self.batch, _ = random_batch({"chosen_G", "rejected_G"}, seed, 4, dtype)
        order = torch.cat([self.batch["chosen_G"], self.batch["rejected_G"]])
        self.sheet = doubles.Sheet(self.batch, order.tolist())
        self.inputs = doubles.supervised_inputs(self.sheet)
        g = torch.Generator().manual_seed(seed)
        logits = scale * torch.randn(*self.sheet.shape, VOCABULARY, generator=g, dtype=dtype)
        self.logits = logits.requires_grad_()

    def log_probs(self):
        """Of every token but the first, prompts and padding included. Shape [rows, T - 1]."""
        ids = self.inputs["input_ids"][:, 1:, None]
        return self.logits[:, :-1].log_softmax(-1).gather(-1, ids).squeeze(-1)

    def ours(self, name, reference=False, **settings):
        sheet = self.sheet
        logps_N = self.logits.new_zeros(self.batch.size_N)
        here = self.log_probs()[sheet.rows, sheet.columns - 1]
        logps_N = logps_N.index_put((sheet.tokens,), here)
        batch = self.batch
        if reference:
            batch = batch.with_columns(reference_logps_N=torch.zeros_like(logps_N).detach())
        return mean_loss(method(name, **settings), batch, Outputs(logps_N=logps_N))

    def theirs(self, kind, **attributes):
        """TRL's loss; padding to the right of each row is not attended to."""
        rows = self.inputs["completion_mask"]
        after = rows.flip(1).cumsum(1).flip(1) == 0
        fields = {
            "input_ids": self.inputs["input_ids"],
            "attention_mask": (~after).long(),
            "labels": self.inputs["input_ids"].masked_fill(rows == 0, -100),
        }
        batch = {
            f"{side}_{name}": half
            for name, values in fields.items()
            for side, half in zip(("chosen", "rejected"), values.chunk(2), strict=True)
        }
        settings = {
            "beta": BETA,
            "is_encoder_decoder": False,
            "pad_token_id": 0,
            "padding_value": 0,
            "label_smoothing": 0.0,
            "alpha": 0.0,
            "cpo_alpha": 0.0,
            "loss_type": "sigmoid",
        }
        made = doubles.trainer(kind, **settings | attributes)
        model = doubles.Model(lambda *_, **__: SimpleNamespace(logits=self.logits))
        loss, self.metrics = kind.get_batch_loss_metrics(made, model, batch)
        return loss

    def chosen_nll(self, prompts=False):
        """(mean over the tokens of all chosen, mean over sequences of their token means)."""
        mask = self.inputs["completion_mask"][:4, 1:]
        if prompts:
            mask = (mask.flip(1).cumsum(1).flip(1) > 0).long()
        nll = -self.log_probs()[:4] * mask
        return nll.sum() / mask.sum(), (nll.sum(1) / mask.sum(1)).mean()


@DTYPES
def test_cpo_agrees(dtype):
    """TRL's supervised term is a mean over tokens, as our mixture's."""
    point = Point(dtype)
    contrast = {"beta": BETA, "nll_coef": 0.0}
    same(point.ours("cpo", **contrast), point.theirs(CPOTrainer), point.logits)
    theirs = point.theirs(CPOTrainer, cpo_alpha=0.7)
    parts = ({"method": "cpo", **contrast}, {"method": "sft", "weight": 0.7})
    same(point.ours("mixture", parts=parts), theirs, point.logits)


def test_the_nll_of_cpo_weighs_pairs_here_and_tokens_there():
    point = Point()
    ours, theirs = point.ours("cpo", beta=BETA), point.theirs(CPOTrainer, cpo_alpha=1.0)
    differ(ours, theirs)
    tokens, sequences = point.chosen_nll()
    same(ours + tokens - sequences, theirs, point.logits)


@DTYPES
def test_simpo_agrees_once_gamma_is_converted(dtype):
    """simpo_gamma is γ, gamma_beta_ratio is the authors' γ/β."""
    point = Point(dtype)
    theirs = point.theirs(CPOTrainer, loss_type="simpo", simpo_gamma=0.6)
    same(point.ours("simpo", beta=BETA, gamma_beta_ratio=0.6 / BETA), theirs, point.logits)
    differ(point.ours("simpo", beta=BETA, gamma_beta_ratio=0.6), theirs)


LOSSES = [
    ("hinge", {}, "hinge", {"beta": BETA}),
    ("ipo", {}, "ipo", {"tau": BETA}),
    ("sigmoid", {"label_smoothing": 0.2}, "cdpo", {"beta": BETA, "label_smoothing": 0.2}),
]


@DTYPES
@pytest.mark.parametrize(
    ("loss", "settings", "name", "fields"), LOSSES, ids=[row[0] for row in LOSSES]
)
def test_cpos_other_losses_are_ours_without_a_reference(loss, settings, name, fields, dtype):
    """Label smoothing works here, which DPOTrainer leaves out."""
    point = Point(dtype)
    theirs = point.theirs(CPOTrainer, loss_type=loss, **settings)
    same(point.ours(name, reference=True, **fields), theirs, point.logits)


def test_cpos_hinge_is_slic_in_other_units():
    point = Point()
    slic = point.ours("slic", delta=1 / BETA, nll_coef=0.0)
    same(BETA * slic, point.theirs(CPOTrainer, loss_type="hinge"), point.logits)


def test_orpos_odds_ratio_agrees():
    """Float32, as TRL casts to it."""
    point = Point(torch.float32)
    theirs, _ = point.theirs(ORPOTrainer), point.metrics
    prompts, _ = point.chosen_nll(prompts=True)
    _, sequences = point.chosen_nll()
    ours = point.ours("orpo", beta=BETA)
    same(ours - sequences, theirs - prompts, point.logits)


def test_trls_orpo_learns_the_prompt_too():
    """Its NLL is over prompt and completion, and over tokens; ours over the completion."""
    point = Point(torch.float32)
    ours, theirs = point.ours("orpo", beta=BETA), point.theirs(ORPOTrainer)
    differ(ours, theirs)
    (mine,) = torch.autograd.grad(ours, point.logits)
    (peer,) = torch.autograd.grad(theirs, point.logits)
    prompt = point.inputs["completion_mask"].cumsum(1)[:, 1:] == 0
    assert (mine[:, :-1][prompt] == 0).all()
    assert (peer[:4, :-1][prompt[:4]] != 0).all()


def test_trls_orpo_has_no_gradient_for_certain_answers():
    """log1mexp there passes 0 · ∞ back from the branch that `where` did not take."""
    point = Point(torch.float32)
    ids = point.inputs["input_ids"]
    sure = torch.nn.functional.one_hot(ids.roll(-1, 1), VOCABULARY) * 50.0
    point.logits = sure.requires_grad_()
    (peer,) = torch.autograd.grad(point.theirs(ORPOTrainer), point.logits)
    (mine,) = torch.autograd.grad(point.ours("orpo", beta=BETA), point.logits)
    assert peer.isnan().any()
    assert mine.isfinite().all()
