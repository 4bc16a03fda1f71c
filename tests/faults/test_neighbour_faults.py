"""Order and neighbours: what a network says of a completion does not depend on what stands beside
it. And completions that never end: marked, counted, scored by the rule that was asked for."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from unittest import mock

import pytest
import torch
from harness import ROWS, STAGES, SilentError, fire, stage_folder, succeeded, truing
from test_model_faults import scored_by, to_scorer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from faults.matrix import EVERY, POLICY_GRADIENT, SAMPLING

END = "<|im_end|>"
EVERY_NTH, CALLS = 5, 6
"""Passes of the network that are repeated, one completion at a time: not only the first, before
anything is learned."""


def compare_with_alone() -> None:
    """Repeats some passes with every completion alone and writes down by how much log-probs,
    values and scores differ, relative to 1 or to what they are if that is more."""
    from truing.data.packing import pack
    from truing.groups import FinishReason, TokenCompletion, TokenGroup
    from truing.models.network import Network

    forward, calls = Network.forward, itertools.count()

    def alone(batch, completion: int):
        group = batch.group_C[completion]
        prompt = batch.tokens_T[(batch.group_T == group) & (batch.branch_T == 0)]
        answer = batch.token_ids_N[batch.completion_N == completion]
        one = TokenCompletion(tuple(answer.tolist()), FinishReason.LENGTH)
        return pack([TokenGroup(tuple(prompt.tolist()), (one,))])

    def then(self, batch, **asked):
        together = forward(self, batch, **asked)
        if batch.size_C < 2 or next(calls) not in range(0, EVERY_NTH * CALLS, EVERY_NTH):
            return together
        differences = {}
        for completion in range(batch.size_C):
            with torch.no_grad():
                single = forward(self, alone(batch, completion), **asked)
            own = {"N": batch.completion_N == completion, "C": completion}
            for name in ("logps_N", "values_N", "scores_C"):
                if (expected := getattr(single, name)) is not None:
                    found = getattr(together, name).detach()[own[name[-1]]]
                    difference = ((found - expected).abs() / expected.abs().clamp(min=1)).max()
                    differences[name] = max(differences.get(name, 0.0), difference.item())
        fire()
        with open("differences.jsonl", "a") as file:
            file.write(json.dumps(differences) + "\n")
        return together

    Network.forward = then


READ = {
    "reward": {"scores_C"},
    "ppo": {"logps_N", "values_N", "scores_C"},
    "best_of_n": {"scores_C"},
}


@pytest.mark.fault("T4")
@pytest.mark.parametrize("stage", EVERY)
def test_neighbours_change_no_number(stage, out, plain_model):
    if stage in SAMPLING:
        reward = to_scorer(plain_model, out.parent / "reward")
        succeeded(scored_by(stage, out, plain_model, reward, plant=[compare_with_alone]))
    else:
        succeeded(truing(stage, out, plant=[compare_with_alone]))
    seen = set()
    for line in (out.parent / "differences.jsonl").read_text().splitlines():
        for name, difference in json.loads(line).items():
            seen.add(name)
            if not difference < 1e-6:
                raise SilentError(f"{name} moves by {difference} with its neighbours")
    assert seen >= READ.get(stage, {"logps_N"})


@pytest.mark.fault("T4", "reward")
@pytest.mark.full
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_gives_the_score_of_none(side, out, plain_model):
    """What others compute from the saved model, padded, is what the stage wrote down."""
    succeeded(truing("reward", out, "--model.save-dtype", "float32"))
    run = stage_folder("reward", out)
    rows = [json.loads(line) for line in (run / "samples/scores.jsonl").read_text().splitlines()]
    asked = [ROWS[int(row["where"].rpartition(":")[2]) - 1] for row in rows]
    texts = [row["prompt"] + row[kind] + END for kind in ("chosen", "rejected") for row in asked]
    opened = AutoModelForSequenceClassification.from_pretrained(run).eval()
    tokenizer = AutoTokenizer.from_pretrained(run, padding_side=side)
    padded = tokenizer(texts, padding=True, return_tensors="pt")
    assert (padded["attention_mask"] == 0).any()
    found = opened(**padded).logits[:, 0].tolist()
    expected = [row[f"{kind}_score"] for kind in ("chosen", "rejected") for row in rows]
    if found != pytest.approx(expected, rel=1e-5, abs=1e-5):
        raise SilentError(f"{found} padded on the {side}, {expected} in the stage")


def sampler_without_a_stop_token() -> None:
    """No token that is drawn is the one that ends a completion."""
    from truing.rollouts.rows import Rows

    begin = Rows.__init__

    def then(self, settings, seed, device):
        fire()
        begin(self, replace(settings, stop_id=-1), seed, device)

    Rows.__init__ = then


def drawn(stage: str, out) -> list[dict]:
    files = sorted((stage_folder(stage, out) / "samples").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.fault("T8")
@pytest.mark.parametrize("stage", SAMPLING)
def test_completions_without_an_end_are_marked_and_counted(stage, out):
    result = succeeded(truing(stage, out, plant=[sampler_without_a_stop_token]))
    rows = drawn(stage, out)
    assert rows
    assert {row["finish"] for row in rows} == {"length"}
    run = stage_folder(stage, out)
    if stage == "best_of_n":
        facts = json.loads((run / "run.json").read_text())["facts"]
        assert facts["cut"] == 16
        assert "16 of 16 completions cut at max_completion_length" in result.said
        return
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    counted = [line for line in lines if "completions/clipped_ratio" in line]
    assert counted
    assert {line["completions/clipped_ratio"] for line in counted} == {1}
    assert {line["val/num_eos_tokens"] for line in counted} == {0}


@pytest.mark.fault("T8")
@pytest.mark.full
@pytest.mark.parametrize("stage", POLICY_GRADIENT)
def test_the_reward_of_a_cut_completion_is_its_score_less_the_penalty(stage, out):
    flags = ["--missing-eos-penalty", "0.25"]
    with mock.patch.dict(STAGES, {"ppo": [f.replace("running", "none") for f in STAGES["ppo"]]}):
        succeeded(truing(stage, out, *flags, plant=[sampler_without_a_stop_token]))
    lines = (stage_folder(stage, out) / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    reward = first["objective/rlhf_reward"] - first["objective/non_score_reward"]
    assert reward == pytest.approx(first["objective/scores"] - 0.25, abs=1e-6)
