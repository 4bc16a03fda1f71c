"""The model that is a table: the production path says of it what the table says."""

from __future__ import annotations

import pytest
import torch
from experiments._table_network import logits_of, save_table, scores_of
from experiments._tiny import World, features, standardised, trained

from truing import exact
from truing.data.packing import pack
from truing.exact import Language
from truing.groups import TokenGroup
from truing.models.loading import load_causal, resolve
from truing.models.network import Network
from truing.ops import segment_sum
from truing.rollouts.engines.base import SamplingSettings
from truing.rollouts.sampler import sample

LANGUAGES = [Language(3, 3), Language(2, 5), Language(4, 2)]


def tables(language, kinds=2):
    torch.manual_seed(0)
    return torch.randn(kinds, len(language.contexts), language.vocabulary).double()


@pytest.fixture(
    params=LANGUAGES, ids=lambda language: f"{language.vocabulary}-{language.max_length}"
)
def opened(request, tmp_path):
    """(language, tables, network) of a model that was written and read."""
    logits_KSV = tables(request.param)
    save_table(tmp_path, request.param, logits_KSV)
    network = Network(load_causal(resolve(str(tmp_path)), torch.float32))
    return request.param, logits_KSV, network


def test_the_folder_holds_the_tables(opened):
    language, logits_KSV, network = opened
    torch.testing.assert_close(logits_of(network.base, language), logits_KSV, rtol=0, atol=1e-6)


def test_sentence_log_probs_are_the_tables(opened):
    language, logits_KSV, network = opened
    world = World(language, logits_KSV[0], None)
    answers = world.every_sentence().completions
    groups = [TokenGroup((language.vocabulary + kind,), answers) for kind in (1, 0)]
    batch = pack(groups)
    with torch.no_grad():
        logps_N = network(batch, logps=True).logps_N
    seen = segment_sum(logps_N.double(), batch.completion_N, batch.size_C).view(2, -1)
    for row, kind in ((0, 1), (1, 0)):
        truth = language.sentence_logps(logits_KSV[kind])
        torch.testing.assert_close(seen[row], truth, rtol=0, atol=1e-5)


def test_what_is_drawn_has_the_tables_law(opened):
    language, logits_KSV, network = opened
    settings = SamplingSettings(language.max_length, 1.0, 512, language.stop)
    prompts = [TokenGroup((language.vocabulary + kind,)) for kind in (0, 1)]
    drawn = sample(network, prompts, settings, completions=2000, seed=0)
    for kind, group in enumerate(drawn):
        truth_Y = language.sentence_logps(logits_KSV[kind])
        place = {words: i for i, words in enumerate(language.sentences)}
        index = torch.tensor([place[c.ids] for c in group.completions])
        said = torch.tensor([sum(c.sampled_logps) for c in group.completions]).double()
        torch.testing.assert_close(said, truth_Y[index], rtol=0, atol=1e-5)
        share = torch.bincount(index, minlength=len(truth_Y)) / 2000
        assert (share - truth_Y.exp()).abs().max() < 0.05


def test_training_moves_the_tables_and_a_score_head_is_one(tmp_path):
    language = Language(3, 2)
    world = World.make(tmp_path, language, tables(language)[0])
    rewards_Y = standardised(features(language, seed=0), world.reference_Y)
    pairs = world.pairs(rewards_Y, 256, seed=0)
    knobs = {"method": "dpo", "beta": 1.0, "learning_rate": 0.1, "batch_size": 64}
    after = world.law(trained(world.folder, knobs, pairs, seed=0).built)
    assert exact.expectation(after, rewards_Y) > exact.expectation(world.reference_Y, rewards_Y)
    knobs = {"method": "bradley_terry", "learning_rate": 0.1, "batch_size": 64}
    run = trained(world.folder, knobs, pairs, seed=0)
    scores_Y = scores_of(run.built.roles.policy.score_head.weight, language)[0]
    outputs = run.built.roles.outputs(pack([world.every_sentence()]), "reward")
    torch.testing.assert_close(scores_Y, outputs.scores_C.double(), rtol=0, atol=1e-6)
    assert torch.corrcoef(torch.stack([scores_Y, rewards_Y]))[0, 1] > 0.5


def test_pairs_have_the_law_of_the_reference_and_its_labels(tmp_path):
    language = Language(3, 2)
    world = World.make(tmp_path, language, tables(language)[0])
    rewards_Y = features(language, seed=1)
    pairs = world.pairs(rewards_Y, 6000, seed=0)
    place = {words: i for i, words in enumerate(language.sentences)}
    chosen = torch.tensor([place[p.completions[p.chosen].ids] for p in pairs])
    rejected = torch.tensor([place[p.completions[p.rejected].ids] for p in pairs])
    shown = torch.zeros(7, 7).index_put((chosen, rejected), torch.ones(6000), accumulate=True)
    law = world.reference_Y.exp()
    both = torch.outer(law, law).fill_diagonal_(0)
    both /= both.sum()
    assert ((shown + shown.T) / 12000 - both).abs().max() < 0.02
    often = shown + shown.T > 200
    won = shown / (shown + shown.T)
    truth = torch.sigmoid(rewards_Y[:, None] - rewards_Y)
    assert often.any()
    assert (won - truth)[often].abs().max() < 0.12
