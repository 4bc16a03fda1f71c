"""Every method there is trains: offline ones lower their own loss, on-policy ones raise the reward.

Thirty steps of a two-layer model through the production path: text rows, template, packing,
reference, prepare, step. The rows are real human pairs where they are at hand, else small ones.
"""

from __future__ import annotations

from itertools import islice, product
from pathlib import Path

import pytest

from small_groups import scorer
from truing import objectives
from truing.config import Model
from truing.data.chat import ChatTokenizer
from truing.data.formats import parse_rows
from truing.data.readers import Row, read_rows
from truing.models import loading
from truing.training.arrange import arrange
from truing.training.build import build
from truing.training.inputs import Inputs
from truing.training.loop import measure
from truing.training.method import resolve

HH = Path(__file__).parents[3] / "shared" / "data" / "hh-harmless.jsonl.gz"
PAIRS = 32
STEPS = 30

OFFLINE = [n for n in objectives.methods() if not objectives.draws(n)]
ON_POLICY = [n for n in objectives.methods() if objectives.draws(n)]
KNOBS = {
    "f_dpo_forward_kl": {"learning_rate": 3e-4},  # 1/u explodes where the policy leaves quickly
    "bradley_terry": {"center_coefficient": 0.01},
    "remax": {"learning_rate": 3e-2},  # one greedy answer is a noisy baseline at the start
    "vbon": {"kl_coef": 0.05},  # best of 4 is not much better than the reference here
}
DESCENDED = {"dft": lambda found: -found["eval/token_probability"]}
"""What falls, where it is not the loss: DFT's value rises until a token is likelier than 1/e."""


def human_pairs():
    """Short pairs of people's choices, as rows."""
    for row in read_rows(str(HH)):
        sides = [row.values[side] for side in ("chosen", "rejected")]
        answers = [side.rpartition("\n\nAssistant:")[2].strip() for side in sides]
        if max(map(len, sides)) < 260 and all(answers) and answers[0] != answers[1]:
            yield row.values


def small_pairs():
    subjects = ("The tea", "This tune", "That joke", "Our walk", "Your note", "The view")
    words = (("lovely", "dull"), ("kind", "rude"), ("bright", "bleak"), ("calm", "loud"))
    for subject, (good, bad), verb in product(subjects, words, ("was", "is")):
        yield {"prompt": subject, "chosen": f" {verb} {good}.", "rejected": f" {verb} {bad}."}


@pytest.fixture(scope="module")
def tokenizer():
    return ChatTokenizer(loading.load_tokenizer("random:llama"))


@pytest.fixture(scope="module")
def rows_of(tokenizer):
    """Column names -> (encoded groups, their type), made of the same pairs."""
    pairs = list(islice(human_pairs() if HH.exists() else small_pairs(), PAIRS))
    pairs = [
        p | {"margin": 0.5 + i % 3, "probability": 0.6 + i % 4 / 10} for i, p in enumerate(pairs)
    ]

    def encoded(rows):
        groups = parse_rows([Row(values, f"row {i}") for i, values in enumerate(rows)]).groups
        return [tokenizer.encode(group) for group in groups], groups

    tokens, groups = encoded(pairs)
    stepwise = [
        {
            "prompt": group.prompt.text,
            "completions": completion.text.split(maxsplit=1),
            "labels": [True, side == 0],
        }
        for group in groups
        for side, completion in enumerate(group.completions)
        if len(completion.text.split(maxsplit=1)) == 2
    ]
    return {"preference": tokens, "stepwise": encoded(stepwise)[0]}


def inputs(train, **changes):
    given = {
        "source": "random:llama",
        "revision": None,
        "model": Model(path="random:llama", dtype="float32"),
        "stop_id": 2,
        "train": train,
        "heldout": [],
        "demonstrations": [],
        "reward_run": None,
        "shares_trunk": False,
        "reward": None,
        "on_rollout": lambda index, rollout: None,
        "seed": 3,
        "where": "test",
    }
    return Inputs(**given | changes)


@pytest.mark.parametrize("name", OFFLINE)
def test_thirty_steps_on_pairs_lower_its_own_loss(name, rows_of):
    raw = {
        "method": name,
        "learning_rate": 3e-3,
        "batch_size": 8,
        "num_train_epochs": 99,
        "max_steps": STEPS,
        **KNOBS.get(name, {}),
    }
    method = resolve("stage", raw, "test")
    needs = method.objective.required
    kind = "stepwise" if "step_label_S" in needs else "preference"
    stage = build(method, inputs(arrange(rows_of[kind], kind, needs, seed=1)))
    fixed = stage.source.batches(stage.source.groups)
    own = DESCENDED.get(name, lambda found: found["eval/loss"])
    before = own(measure(stage.step, fixed))
    for work in stage.source:
        stage.step(work.micro_batches, work.metrics)
    assert stage.step.taken == STEPS
    assert own(measure(stage.step, fixed)) < before - 1e-3 * abs(before)


def given(metrics):
    """What the reward gave, also where it is then compared with an opponent's."""
    return metrics.get("rewards/plain/mean", metrics["objective/scores"])


@pytest.mark.parametrize("name", ON_POLICY)
def test_the_reward_rises(name, rows_of):
    raw = {
        "method": name,
        "reward": "character_share",
        "learning_rate": 1e-2,
        "num_rollouts": 12,
        "rollout_batch_size": 8,
        "num_generations": 4,
        "batch_size": 16,
        "max_completion_length": 6,
        **KNOBS.get(name, {}),
    }
    found = []

    @scorer
    def low_bytes(completion, group):
        """Share of tokens from the lower half of the alphabet."""
        return sum(i < 130 for i in completion.ids) / len(completion.ids)

    prompts = [type(g)(g.prompt_ids) for g in rows_of["preference"]]
    stage = build(
        resolve("stage", raw, "test"),
        inputs(
            prompts,
            reward=low_bytes,
            demonstrations=rows_of["preference"],
            on_rollout=lambda index, rollout: found.append(given(rollout.metrics)),
        ),
    )
    for work in stage.source:
        stage.step(work.micro_batches, work.metrics)
    assert len(found) == 12
    assert sum(found[-3:]) / 3 > sum(found[:2]) / 2 + 0.1
