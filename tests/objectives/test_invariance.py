"""What each preference loss does not see, and what it does: both are promises.

A method that compares log-ratios within a prompt never needs the partition function Z(x); one that
reads a single log-ratio does. Every pairwise, listwise and unpaired objective, in every mode, is
in exactly one row of each table: a new file must say where it belongs (sheet O21, O29-O31, O34).
"""

import dataclasses
import math

import pytest
import torch
from flat_batches import make_batch, prepare, random_batch
from subjects import SUBJECTS, raw_columns

from truing import objectives
from truing.batch import Outputs
from truing.ops import segment_sum

ROOMS = ("pairwise", "listwise", "unpaired")
COMPARING = {
    title: subject
    for title, subject in SUBJECTS.items()
    if type(subject).__module__.split(".")[-2] in ROOMS
}

REFERENCE_FREE = {"cpo", "cpo[nll_average=sum]", "simpo", "simpo[sft_weight]", "orpo", "slic"}
SHIFT_FREE = {
    "dpo", "cdpo", "robust", "hinge", "ipo[length_normalize=False]", "f_dpo[divergence=reverse_kl]",
    "exo_pair", "aot", "discopop", "r_dpo", "tr_dpo", "tr_dpo_hard", "beta_dpo", "wpo",
    "rpo", "rpo[nll_average=sum]", "irpo",
    "xpo",  # its further term reads the policy alone
    "infonca", "exo",
}  # fmt: skip
SHIFT_SEEN = {
    "ipo", "dpo_norm", "ld_dpo",  # per-token or part-wise: the lengths come apart
    "f_dpo", "f_dpo[divergence=forward_kl]", "f_dpo[divergence=alpha]",
    "nca_pair", "bco_pair", "apo_zero", "apo_down", "sppo", "sppo[soft_labels=True]", "dpop",
    "aot[pairing=unpaired]", "nca",
    "kto", "bco", "apo_zero_unpaired",
}  # fmt: skip
SHIFTS = pytest.mark.parametrize("seed", [0, 1])


def value(subject, batch, outputs):
    ((batch, outputs),) = prepare(subject, [(batch, outputs)])
    return subject(batch, outputs).total.item()


def rows(*titles):
    return pytest.mark.parametrize("title", sorted(set().union(*titles) & set(COMPARING)))


def lively(subject):
    """The subject with a β at which one nat is seen; some defaults are meant for hundreds."""
    return dataclasses.replace(subject, beta=0.5) if hasattr(subject, "beta") else subject


def point(title, seed=0):
    subject = lively(COMPARING[title])
    return subject, *random_batch(raw_columns(subject), seed=seed)


def close(left, right):
    return left == pytest.approx(right, rel=1e-9, abs=1e-9)


def test_every_objective_that_compares_is_in_exactly_one_list():
    lists = [REFERENCE_FREE, SHIFT_FREE, SHIFT_SEEN]
    listed = [title for titles in lists for title in titles]
    assert sorted(listed) == sorted(COMPARING)


def shifted(batch, seed):
    """A constant of each prompt added to every reference log-prob, spread over the tokens."""
    g = torch.Generator().manual_seed(seed + 100)
    shift_G = 1.5 * torch.randn(batch.size_G, generator=g, dtype=torch.float64)
    shift_C = shift_G[batch.group_C] / batch.lengths_C
    reference_N = batch["reference_logps_N"] + shift_C[batch.completion_N]
    return batch.with_columns(reference_logps_N=reference_N)


@SHIFTS
@rows(SHIFT_FREE)
def test_a_constant_of_the_prompt_changes_nothing(title, seed):
    subject, batch, outputs = point(title, seed)
    assert close(value(subject, shifted(batch, seed), outputs), value(subject, batch, outputs))


@SHIFTS
@rows(SHIFT_SEEN)
def test_a_constant_of_the_prompt_is_seen(title, seed):
    subject, batch, outputs = point(title, seed)
    moved = value(subject, shifted(batch, seed), outputs) - value(subject, batch, outputs)
    assert abs(moved) > 1e-3


@rows(REFERENCE_FREE)
def test_what_is_reference_free_reads_no_reference(title):
    subject, batch, outputs = point(title)
    assert "reference_logps_N" not in subject.required
    blank = torch.full_like(outputs.logps_N, math.nan)
    assert value(subject, batch.with_columns(reference_logps_N=blank), outputs) == value(
        subject, batch, outputs
    )


@pytest.mark.parametrize("title", ["infonca", "nca", "exo"])
def test_a_constant_of_the_prompt_in_the_rewards_changes_nothing(title):
    subject, batch, outputs = point(title)
    shift_C = torch.linspace(-2, 2, batch.size_G, dtype=torch.float64)[batch.group_C]
    moved = batch.with_columns(scores_C=batch["scores_C"] + shift_C)
    assert close(value(subject, moved, outputs), value(subject, batch, outputs))


@pytest.mark.parametrize("title", sorted(t for t in SUBJECTS if t.startswith("bradley_terry")))
def test_a_reward_model_is_free_up_to_a_constant_of_the_prompt(title):
    subject = SUBJECTS[title]
    batch, outputs = random_batch(raw_columns(subject))
    shift_C = torch.linspace(-2, 2, batch.size_G, dtype=torch.float64)[batch.group_C]
    moved = dataclasses.replace(outputs, scores_C=outputs.scores_C + shift_C)
    free = close(value(subject, batch, moved), value(subject, batch, outputs))
    assert free == (subject.center_coefficient == 0)


# Swapping chosen and rejected is the same as negating every log-ratio (O29), where the loss knows
# nothing but log-ratios and treats both sides alike.
SWAP_IS_NEGATION = {
    "dpo", "cdpo", "robust", "hinge", "ipo", "ipo[length_normalize=False]",
    "f_dpo[divergence=reverse_kl]", "exo_pair", "aot", "aot[pairing=unpaired]", "discopop",
    "tr_dpo", "tr_dpo_hard", "beta_dpo", "dpo_norm", "ld_dpo", "bco_pair", "apo_zero", "sppo",
    "sppo[soft_labels=True]", "simpo", "cpo[nll_coef=0]", "slic[nll_coef=0]",
}  # fmt: skip
SWAP_IS_MORE = {
    "f_dpo", "f_dpo[divergence=forward_kl]", "f_dpo[divergence=alpha]",  # u and 1/u differ
    "r_dpo",  # lengths swap too
    "nca_pair", "apo_down", "dpop",  # the sides have terms of their own
    "rpo", "rpo[nll_average=sum]", "irpo", "cpo", "cpo[nll_average=sum]", "slic",  # NLL of chosen
    "simpo[sft_weight]", "orpo",
    "wpo",  # weights are of the policy alone
    "xpo",  # so is the log-prob of what the reference drew
}  # fmt: skip
WITHOUT_NLL = {f"{name}[nll_coef=0]": (name, {"nll_coef": 0}) for name in ("cpo", "slic")}


def swap_subject(title):
    if title in WITHOUT_NLL:
        name, knobs = WITHOUT_NLL[title]
        return lively(dataclasses.replace(SUBJECTS[name], **knobs))
    subject = lively(SUBJECTS[title])
    # the default is meant to be hardly seen
    return dataclasses.replace(subject, alpha=0.1) if title == "xpo" else subject


def swapped_and_negated(title):
    subject = swap_subject(title)
    batch, outputs = random_batch(raw_columns(subject))
    swapped = batch.with_columns(chosen_G=batch["rejected_G"], rejected_G=batch["chosen_G"])
    negated = batch
    if "reference_logps_N" in batch:
        negated = batch.with_columns(reference_logps_N=-batch["reference_logps_N"])
    minus = dataclasses.replace(outputs, logps_N=-outputs.logps_N)
    return value(subject, swapped, outputs), value(subject, negated, minus)


def test_every_pairwise_objective_says_what_a_swap_does():
    pairwise = {t for t, s in COMPARING.items() if ".pairwise." in type(s).__module__}
    assert (SWAP_IS_NEGATION | SWAP_IS_MORE) - set(WITHOUT_NLL) == pairwise
    assert not SWAP_IS_NEGATION & SWAP_IS_MORE


@pytest.mark.parametrize("title", sorted(SWAP_IS_NEGATION))
def test_swapping_the_sides_negates_the_log_ratios(title):
    swapped, negated = swapped_and_negated(title)
    assert close(swapped, negated)


@pytest.mark.parametrize("title", sorted(SWAP_IS_MORE - {"orpo"}))
def test_where_a_swap_is_more_than_a_sign_the_loss_shows_it(title):
    swapped, negated = swapped_and_negated(title)
    assert abs(swapped - negated) > 1e-3


def test_a_flipped_label_is_a_negated_reward():
    subject = SUBJECTS["bradley_terry"]
    batch, outputs = random_batch(raw_columns(subject))
    swapped = batch.with_columns(chosen_G=batch["rejected_G"], rejected_G=batch["chosen_G"])
    minus = dataclasses.replace(outputs, scores_C=-outputs.scores_C)
    assert close(value(subject, swapped, outputs), value(subject, batch, minus))


# Every token twice: sums double, means stay.
PER_TOKEN = {"ipo", "dpo_norm", "simpo", "simpo[sft_weight]", "orpo"}
SUMMED = set(COMPARING) - PER_TOKEN


def stretched(batch, outputs):
    """Every token of every completion twice, right after each other."""
    twice_N = torch.arange(batch.size_N).repeat_interleave(2)
    longer = make_batch((2 * batch.lengths_C).tolist(), batch.group_C.tolist())
    return longer.with_columns(
        **{k: v[twice_N] if k[-1] == "N" else v for k, v in batch.columns.items()}
    ), Outputs(**{
        f.name: v[twice_N] if f.name[-1] == "N" else v
        for f in dataclasses.fields(outputs)
        if (v := getattr(outputs, f.name)) is not None
    })  # fmt: skip


@rows(PER_TOKEN)
def test_a_length_normalised_loss_does_not_see_length(title):
    subject, batch, outputs = point(title)
    assert close(value(subject, *stretched(batch, outputs)), value(subject, batch, outputs))


@rows(SUMMED)
def test_a_summed_loss_sees_length(title):
    subject, batch, outputs = point(title)
    moved = value(subject, *stretched(batch, outputs)) - value(subject, batch, outputs)
    assert abs(moved) > 1e-6


# β is the unit of log-ratios (O30): twice the log-ratio is twice β. Squares give the factor 4.
SCALE_BY_BETA = {
    "dpo", "cdpo", "robust", "hinge", "exo_pair", "aot[pairing=unpaired]", "discopop",
    "f_dpo[divergence=reverse_kl]", "r_dpo", "tr_dpo", "tr_dpo_hard", "dpo_norm", "ld_dpo", "wpo",
    "dpop", "rpo", "rpo[nll_average=sum]", "irpo", "nca_pair", "bco_pair", "apo_zero", "apo_down",
    "xpo", "infonca", "nca", "exo", "kto", "bco", "apo_zero_unpaired",
}  # fmt: skip
SCALE_SQUARED = {
    "ipo": "tau", "ipo[length_normalize=False]": "tau", "sppo": "beta",
    "sppo[soft_labels=True]": "beta",
}  # fmt: skip
SCALE_OTHERWISE = {
    "f_dpo", "f_dpo[divergence=forward_kl]", "f_dpo[divergence=alpha]", "beta_dpo",
    "aot",  # it sorts log-probs and reference log-probs apart
}  # fmt: skip


def doubled(batch, outputs):
    """Every log-ratio twice as large, by the reference: the policy's own log-probs stay."""
    ratio_N = outputs.logps_N - batch["reference_logps_N"]
    return batch.with_columns(reference_logps_N=outputs.logps_N - 2 * ratio_N)


def test_every_objective_with_a_reference_says_how_it_scales():
    listed = [*SCALE_BY_BETA, *SCALE_SQUARED, *SCALE_OTHERWISE]
    assert sorted(listed) == sorted(set(COMPARING) - REFERENCE_FREE)


@rows(SCALE_BY_BETA)
def test_twice_the_log_ratio_is_twice_beta(title):
    subject, batch, outputs = point(title)
    half = dataclasses.replace(subject, beta=subject.beta / 2)
    assert close(value(half, doubled(batch, outputs), outputs), value(subject, batch, outputs))


@rows(SCALE_SQUARED)
def test_squares_scale_with_the_square(title):
    subject, batch, outputs = point(title)
    knob = SCALE_SQUARED[title]
    half = dataclasses.replace(subject, **{knob: getattr(subject, knob) / 2})
    assert close(value(half, doubled(batch, outputs), outputs), 4 * value(subject, batch, outputs))


@rows(SCALE_OTHERWISE)
def test_what_is_not_a_function_of_beta_rho_shows_it(title):
    subject, batch, outputs = point(title)
    half = dataclasses.replace(subject, beta=subject.beta / 2)
    moved = value(half, doubled(batch, outputs), outputs) - value(subject, batch, outputs)
    assert abs(moved) > 1e-3


# Equalities between methods: each is another one at a special setting (O25, O32, O33).
def test_robust_is_unbiased_under_flipped_labels():
    robust = objectives.find("robust")(beta=0.3, label_smoothing=0.2)
    dpo = objectives.find("dpo")(beta=0.3)
    batch, outputs = random_batch(raw_columns(dpo))
    flipped = batch.with_columns(chosen_G=batch["rejected_G"], rejected_G=batch["chosen_G"])
    expected = 0.8 * value(robust, batch, outputs) + 0.2 * value(robust, flipped, outputs)
    assert close(expected, value(dpo, batch, outputs))


SPECIAL_CASES = [
    ("cdpo", {"label_smoothing": 0.0}),
    ("f_dpo", {"divergence": "reverse_kl"}),
    ("r_dpo", {"alpha": 0.0}),
    ("ld_dpo", {"alpha": 1.0}),
    ("rpo", {"nll_coef": 0.0}),
    ("dpop", {"penalty": 0.0}),
    ("tr_dpo", {}),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "knobs"), SPECIAL_CASES)
def test_without_its_extra_term_it_is_dpo(name, knobs):
    special, plain = objectives.find(name)(beta=0.5, **knobs), objectives.find("dpo")(beta=0.5)
    batch, outputs = random_batch(raw_columns(special) | raw_columns(plain))
    assert close(value(special, batch, outputs), value(plain, batch, outputs))


def test_the_sft_weight_of_simpo_adds_the_nll_per_token():
    plain, more = (objectives.find("simpo")(sft_weight=weight) for weight in (0, 1))
    batch, outputs = random_batch(raw_columns(plain))
    nll_C = segment_sum(-outputs.logps_N, batch.completion_N, batch.size_C) / batch.lengths_C
    added = value(more, batch, outputs) - value(plain, batch, outputs)
    assert close(added, nll_C[batch["chosen_G"]].sum().item())


def test_kto_without_a_baseline_is_unpaired_apo_zero():
    kto, apo = objectives.find("kto")(beta=0.3), objectives.find("apo_zero_unpaired")(beta=0.3)
    batch, outputs = random_batch(raw_columns(kto))
    batch = batch.with_columns(
        kl_baseline=torch.tensor(0.0, dtype=torch.float64),
        mismatched_C=torch.zeros_like(batch["mismatched_C"]),
    )
    assert close(kto(batch, outputs).total.item(), value(apo, batch, outputs))


def test_cpo_with_no_beta_is_maximum_likelihood_of_the_chosen():
    cpo = objectives.find("cpo")(beta=1e-9, nll_coef=1, nll_average="sum")
    batch, outputs = random_batch(raw_columns(cpo))
    nll_C = segment_sum(-outputs.logps_N, batch.completion_N, batch.size_C)
    chosen = nll_C[batch["chosen_G"]].sum().item()
    assert value(cpo, batch, outputs) == pytest.approx(
        chosen + batch.size_G * math.log(2), rel=1e-7
    )
