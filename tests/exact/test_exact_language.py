"""Enumeration, log-probs and tables, against strings cut by hand and products of softmaxes."""

import pytest
import torch
from sheet_language import (
    BETA,
    LANGUAGE,
    POLICY,
    REFERENCE,
    REWARDS,
    close,
    gradient,
    probability,
    sentences_by_cutting,
)

from truing.errors import NumericsError, UsageError
from truing.exact import Language, optimal_policy
from truing.exact.language import segment_logsumexp


@pytest.mark.parametrize("size", [(3, 3, 0), (2, 4, 1), (4, 3, 2), (6, 2, 5), (2, 1, 0), (5, 4, 0)])
def test_sentences_and_contexts_are_all_there_in_depth_first_order(size):
    language, sentences = Language(*size), sentences_by_cutting(*size)
    assert list(language.sentences) == sentences
    assert list(language.contexts) == sorted({s[:t] for s in sentences for t in range(len(s))})


def test_the_largest_language_has_the_sizes_it_says():
    language = Language(6, 6)
    assert (len(language.contexts), len(language.sentences)) == (3906, 19531)


def test_the_tensors_spell_the_sentences():
    language = Language(4, 3, stop=2)
    for y, sentence in enumerate(language.sentences):
        assert language.lengths_Y[y] == len(sentence) == language.mask_YT[y].sum()
        assert tuple(language.tokens_YT[y, : len(sentence)].tolist()) == sentence
        for t, s in enumerate(language.contexts_YT[y, : len(sentence)].tolist()):
            assert language.contexts[s] == sentence[:t]
    assert not language.tokens_YT[~language.mask_YT].any()
    assert not language.contexts_YT[~language.mask_YT].any()


@pytest.mark.parametrize("size", [(3, 3, 0), (4, 3, 2)])
def test_log_probs_are_products_of_softmaxes(size):
    language = Language(*size)
    cells = len(language.contexts) * size[0]
    logits = torch.arange(cells, dtype=torch.float64).cos().view(-1, size[0])
    contexts = list(language.contexts)
    by_hand = [probability(s, logits, contexts) for s in language.sentences]
    close(language.sentence_logps(logits).exp(), by_hand, 1e-12)
    assert sum(by_hand) == pytest.approx(1)
    tokens = language.token_logps(logits)
    close(tokens.sum(-1).exp(), by_hand, 1e-12)
    assert not tokens[~language.mask_YT].any()


def test_o2_descendants_mass_realises_the_optimum():
    star = optimal_policy(LANGUAGE.sentence_logps(REFERENCE), REWARDS, BETA)
    table = LANGUAGE.logits_of(star)
    close(LANGUAGE.sentence_logps(table), star)
    for s, context in enumerate(LANGUAGE.contexts):
        for token in range(3):
            longer = (*context, token)
            mass = [
                sum(
                    p
                    for p, y in zip(star.exp().tolist(), LANGUAGE.sentences, strict=True)
                    if y[: len(prefix)] == prefix
                )
                for prefix in (longer, context)
            ]
            assert table[s, token].exp().item() == pytest.approx(mass[0] / mass[1])
    # tilting each token's logit by the reward of one sentence below it is not the optimum
    greedy = REFERENCE.clone()
    greedy[LANGUAGE.contexts_YT[:, 0], LANGUAGE.tokens_YT[:, 0]] += REWARDS / BETA
    assert (LANGUAGE.sentence_logps(greedy) - star).abs().max() > 0.1


def test_o2_a_table_survives_the_way_there_and_back():
    logps = LANGUAGE.sentence_logps(POLICY)
    close(LANGUAGE.logits_of(logps), POLICY.log_softmax(-1))
    close(LANGUAGE.logits_of(logps + 5), POLICY.log_softmax(-1))


def test_o2_the_table_stays_finite_where_probabilities_would_underflow():
    star = optimal_policy(LANGUAGE.sentence_logps(REFERENCE), REWARDS, 1e-3)
    assert star.exp().min() == 0
    table = LANGUAGE.logits_of(star)
    assert table.isfinite().all()
    close(LANGUAGE.sentence_logps(table), star)


def test_gradients_pass_through_the_table():
    logps = LANGUAGE.sentence_logps(POLICY)
    weights = REWARDS.cos()
    there_and_back = gradient(
        lambda x: (LANGUAGE.sentence_logps(LANGUAGE.logits_of(x)) * weights).sum(), logps
    )
    close(there_and_back, gradient(lambda x: (x.log_softmax(0) * weights).sum(), logps))


def test_segments_add_in_logs_without_overflow():
    values = torch.tensor([1e4, 1e4, -1e4, 0.0], dtype=torch.float64)
    summed = segment_logsumexp(values, torch.tensor([0, 0, 1, 1]), 3)
    close(summed, [1e4 + torch.tensor(2.0).double().log(), 0.0, -torch.inf])


@pytest.mark.parametrize(
    ("size", "word"),
    [
        ((7, 3), "vocabulary"),
        ((1, 3), "vocabulary"),
        ((3, 0), "max_length"),
        ((3, 7), "max_length"),
        ((3, 3, 3), "stop"),
        ((3, 3, -1), "stop"),
    ],
)
def test_a_language_that_cannot_be_written_down_is_refused(size, word):
    with pytest.raises(UsageError, match=word) as caught:
        Language(*size)
    assert caught.value.where
    assert caught.value.remedy


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"\[6, 3\].*\[7, 3\]"):
        LANGUAGE.token_logps(POLICY[:6])
    broken = POLICY.clone()
    broken[2, 1] = -torch.inf
    with pytest.raises(NumericsError):
        LANGUAGE.sentence_logps(broken)
    with pytest.raises(NumericsError):
        LANGUAGE.logits_of(torch.full((15,), torch.nan))
