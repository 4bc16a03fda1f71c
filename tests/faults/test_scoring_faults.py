"""Rewards that fail, lie, say the same of all, or attack."""

from __future__ import annotations

import json
import socket
import time
from functools import partial

import pytest
from harness import (
    LeakedError,
    facts,
    fire,
    lines,
    second,
    stage_folder,
    stopped,
    succeeded,
    truing,
    written,
)

from endpoints import reply, scores, serving
from faults.matrix import SAMPLING
from sandboxes import orphans, sandboxed


def rewarding(answer, call):
    """What the reward answers the `call`-th time it is asked, and from then on."""
    from truing.rewards.character_share import CharacterShare

    judge, asked = CharacterShare.__call__, []

    def then(self, prompts, completions, **columns):
        asked.append(len(completions))
        found = judge(self, prompts, completions, **columns)
        if len(asked) < call:
            return found
        fire()
        return answer(found)

    CharacterShare.__call__ = then


def raises(found):
    raise ZeroDivisionError("of the reward")


def nothing(found):
    return None


def none_of_all(found):
    return [None] * len(found)


def nan_of_all(found):
    return [float("nan")] * len(found)


def infinite(found):
    return [float("inf")] * len(found)


def one_too_few(found):
    return found[1:]


def words(found):
    return ["good"] * len(found)


BROKEN = {
    nan_of_all: "not one of",
    nothing: "returned NoneType",
    none_of_all: "not one of",
    infinite: "not one of",
    one_too_few: "scores for",
    words: "the score of completion 0 is str",
}


@pytest.mark.fault("W4")
@pytest.mark.parametrize(
    "answer",
    [nan_of_all, *(pytest.param(a, marks=pytest.mark.full) for a in list(BROKEN)[1:])],
)
@pytest.mark.parametrize("stage", SAMPLING)
def test_a_reward_of_nonsense_stops_the_run(stage, answer, out):
    result = truing(stage, out, plant=[partial(rewarding, answer, second(stage))])
    stopped(result, 7, BROKEN[answer])
    assert not [*stage_folder(stage, out).glob("samples/*0001.jsonl")]  # and not with zeros


@pytest.mark.full
@pytest.mark.fault("W4")
@pytest.mark.parametrize("stage", SAMPLING)
def test_a_reward_that_raises_stops_the_run(stage, out, whole):
    hasty = () if stage == "best_of_n" else ("--reward-retries", "0")
    result = truing(stage, out, *hasty, plant=[partial(rewarding, raises, second(stage))])
    stopped(result, 7, "ZeroDivisionError: of the reward")
    assert result.fired == (3 if stage == "best_of_n" else 1)


def nan_of_one(found):
    return [float("nan"), *found[1:]]


@pytest.mark.full
@pytest.mark.fault("W4")
@pytest.mark.parametrize("stage", SAMPLING)
def test_one_without_a_score_is_left_out_and_counted(stage, out):
    """PPO and GRPO: in metrics of every rollout; Best-of-N: in run.json and said."""
    result = succeeded(truing(stage, out, plant=[partial(rewarding, nan_of_one, 1)]))
    if stage == "best_of_n":
        assert facts(stage, out)["unscored"] == {"CharacterShare": {"nan": 1}}
        assert "1 of 16 completions unscored (nan: 1)" in result.said
        return
    shares = [line["rewards/unscored/nan"] for line in lines(stage, out) if "objective/kl" in line]
    assert shares == pytest.approx([1 / {"ppo": 8, "grpo": 16}[stage]] * len(shares))
    assert shares


HASTY = "retries: 1, backoff_seconds: 0.01, connect_timeout: 1, read_timeout: 0.5, total_timeout: 1"


def http(url, *more):
    return ("--reward", "{" + ", ".join(["name: http", f"url: {url}", HASTY, *more]) + "}")


def late(handler):
    time.sleep(2)


def cut(handler):
    reply(b'{"scores": [1.0, 2', Content_Length="1000")(handler)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * (1 << 16))


LIES = {
    "500": (reply(b"", 500), "answered status 500", 2),
    "late": (late, "did not answer in time", 2),
    "429": (reply(b"", 429, Retry_After="0.01"), "answered status 429", 2),
    "cut": (cut, "broke off", 2),
    "error": (reply(b'{"error": "no"}'), 'answered no {"scores": [...]}', 2),
    "redirect": (
        reply(b"", 302, Location="http://169.254.169.254/latest/meta-data/"),
        "answered status 302",
        1,
    ),
    "endless": (endless, "answered more than", 1),
    "fewer": (scores(1.0), "answered 1 scores for", 1),
}


@pytest.mark.fault("W5")
@pytest.mark.parametrize(
    "lie", ["500", *(pytest.param(lie, marks=pytest.mark.full) for lie in list(LIES)[1:])]
)
@pytest.mark.parametrize("stage", SAMPLING)
def test_an_endpoint_that_lies_stops_the_run(stage, lie, out):
    answer, words, requests = LIES[lie]
    with serving(answer) as endpoint:
        result = truing(stage, out, *http(endpoint.url, "allow_private: true"))
    stopped(result, 7, words)
    assert len(endpoint.requests) == requests


@pytest.mark.full
@pytest.mark.fault("W5")
@pytest.mark.parametrize("stage", SAMPLING)
def test_an_endpoint_that_is_not_there_stops_the_run(stage, out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        stopped(truing(stage, out, *http(url, "allow_private: true")), 7, "cannot be reached")


@pytest.mark.full
@pytest.mark.fault("W5")
@pytest.mark.parametrize("stage", SAMPLING)
def test_an_endpoint_that_recovers_is_asked_again(stage, out):
    """429 with Retry-After, then answers: the run ends as if nothing had been, with its scores."""

    def answer(handler):
        asked = endpoint.requests[-1]["completions"]
        scores(*[float(len(text)) for text in asked])(handler)

    with serving(reply(b"", 429, Retry_After="0.01"), answer) as endpoint:
        succeeded(truing(stage, out, *http(endpoint.url, "allow_private: true")))
    assert endpoint.requests[0] == endpoint.requests[1]
    samples = [json.loads(line) for file in stage_folder(stage, out).glob("samples/*.jsonl")
               for line in file.read_text().splitlines()]  # fmt: skip
    assert samples
    assert all(row["score"] == len(row["completion"]) for row in samples)


def equal(found):
    return [0.25] * len(found)


def hardly_apart(found):
    return [1e-12 * (i % 2) for i in range(len(found))]


def first_group_alike(found):
    return [*[0.25] * 4, *map(float, range(len(found) - 4))]


@pytest.mark.fault("W6", "grpo")
@pytest.mark.parametrize("answer", [equal, pytest.param(hardly_apart, marks=pytest.mark.full)])
def test_equal_rewards_teach_nothing_and_are_declared(answer, out):
    from safetensors.torch import load_file
    from torch import equal as same_tensors

    result = succeeded(truing("grpo", out, plant=[partial(rewarding, answer, 1)]))
    found = lines("grpo", out)
    assert [line["frac_reward_zero_std"] for line in found if "objective/kl" in line] == [1.0] * 4
    assert all(line["grad_norm"] == 0 for line in found)
    assert facts("grpo", out)["rollouts_without_signal"] == [1, 3, 5, 7]
    assert "in 4 rollouts all scores of each group were equal" in result.said
    run = stage_folder("grpo", out)
    before, after = (
        load_file(folder / "model.safetensors") for folder in (run / "checkpoint-7", run)
    )
    assert all(same_tensors(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.full
@pytest.mark.fault("W6", "grpo")
def test_one_group_of_equal_rewards_is_counted(out):
    succeeded(truing("grpo", out, plant=[partial(rewarding, first_group_alike, 1)]))
    shares = [line["frac_reward_zero_std"] for line in lines("grpo", out) if "objective/kl" in line]
    assert shares == [0.25] * 4
    assert "rollouts_without_signal" not in facts("grpo", out)


@pytest.mark.fault("W6", "best_of_n")
def test_the_first_of_equals_is_picked_and_declared(out):
    result = succeeded(truing("best_of_n", out, plant=[partial(rewarding, equal, 1)]))
    assert facts("best_of_n", out)["equal_scores"] == 4
    assert "prompts whose scores are all equal: the first" in result.said


ATTACKS = {
    "writes": "open({victim!r}, 'w').write('gone')",
    "endless": "while True: pass",
    "forks": "import os\nwhile True: os.fork()",
    "memory": "x = []\nwhile True: x.append(bytearray(1 << 26))",
    "environment": "import os\nif os.environ: print(os.environ['HOME'])",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', {port}))",
    "leaves": "import os\nos._exit(0)",
    "reward file": "import sys, os\nopen('/dev/fd/3', 'w').write('R11111111')",
}
JUDGED = "{name: code, seconds: 1, memory_mb: 128}"


def programs(attack):
    """Whatever was drawn, this is the program in it."""
    from truing.rewards.code import Code

    def then(self, completion):
        fire()
        return attack

    Code._program = then


@sandboxed
@pytest.mark.fault("W7")
@pytest.mark.parametrize(
    "attack", ["writes", *(pytest.param(a, marks=pytest.mark.full) for a in list(ATTACKS)[1:])]
)
@pytest.mark.parametrize("stage", ["grpo", "best_of_n"])
def test_a_program_that_attacks_earns_nothing(stage, attack, out):
    victim = out.parent / "victim"
    victim.write_text("precious")
    rows = [{"prompt": f"Number {i}: ", "tests": ["assert f() == 1"]} for i in range(4)]
    data = written(out.parent / "tests.jsonl", rows)
    small = ("--num-generations", "2")
    if stage == "grpo":
        small += ("--num-rollouts", "1", "--rollout-batch-size", "2", "--batch-size", "4")
        small += ("--data.test-rows", "1")
    before = orphans()
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = ATTACKS[attack].format(victim=str(victim), port=server.getsockname()[1])
        program += "\ndef f(): return 0"
        result = truing(
            stage, out, "--reward", JUDGED, *small, data=data, plant=[partial(programs, program)]
        )
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody came
            server.accept()
    succeeded(result)
    assert victim.read_text() == "precious"
    if left := orphans() - before:
        raise LeakedError(f"{stage}: {left}")
    kept = [json.loads(line) for file in stage_folder(stage, out).glob("samples/*.jsonl")
            for line in file.read_text().splitlines()]  # fmt: skip
    assert kept
    assert {row["score"] for row in kept} == {0.0}
    assert result.seconds < 60
