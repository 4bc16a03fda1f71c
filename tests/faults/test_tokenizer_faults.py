"""Tokenizers and chat templates as strangers make them: special tokens missing, doubled or shared,
templates that are not there, raise, have no end or attack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harness import SilentError, fire, same, stopped, succeeded, truing, written
from tokenizers import processors
from transformers import AutoTokenizer

from faults.matrix import EVERY
from truing.models import tiny

TALKS = [
    {
        "prompt": [{"role": "user", "content": f"Number {i}"}],
        "chosen": [{"role": "assistant", "content": f"good {i}"}],
        "rejected": [{"role": "assistant", "content": f"bad {i} bad"}],
    }
    for i in range(20)
]
END, BOS = "<|im_end|>", "<|pad|>"
END_ID, BOS_ID = 2, 0
CONTROL_IDS = {0, 1, 2}
WITH_BOS = "{{ bos_token }}" + tiny.CHAT_TEMPLATE


def changed(plain: Path, to: Path, template: str | None = tiny.CHAT_TEMPLATE, **special) -> Path:
    """The plain model with another template and other special tokens."""
    shutil.copytree(plain, to)
    tokenizer = AutoTokenizer.from_pretrained(to)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.chat_template = template
    if special.get("bos_token"):  # what a tokenizer with a BOS does with plain texts
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)]
        )
    if template is None:
        (to / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(to)
    return to


def spy_on_packed() -> None:
    """Writes down every prompt and completion that is packed, as ids."""
    from truing.data.packing import _Layout

    add = _Layout.add

    def then(self, index, group):
        fire()
        with open("packed.jsonl", "a") as file:
            answers = [[list(c.ids), c.finish.value] for c in group.completions]
            file.write(json.dumps([list(group.prompt_ids), answers]) + "\n")
        add(self, index, group)

    _Layout.add = then


def packed(folder: Path) -> tuple[list[list[int]], list[tuple[list[int], str]]]:
    """(prompts, (completion, how it ended)) of a run with the spy."""
    lines = [json.loads(line) for line in (folder / "packed.jsonl").read_text().splitlines()]
    return [prompt for prompt, _ in lines], [answer for _, found in lines for answer in found]


def one_stop_each(answers: list[tuple[list[int], str]]) -> None:
    """The stop token stands at the end of what ended, once, and nowhere else."""
    for ids, finish in answers:
        if ids.count(END_ID) != (finish == "stop") or (finish == "stop") != (ids[-1] == END_ID):
            raise SilentError(f"stop tokens in {ids}, which ended by {finish}")


SPECIAL = {
    "pad_is_eos": {"pad_token": END},
    "no_pad": {"pad_token": None},
    "no_eos": {"eos_token": None},  # the template says what ends a turn
    "no_bos": {"bos_token": None},
}


@pytest.mark.fault("T1")
@pytest.mark.parametrize(
    "fault",
    ["pad_is_eos", *(pytest.param(n, marks=pytest.mark.full) for n in list(SPECIAL)[1:])],
)
@pytest.mark.parametrize("stage", EVERY)
def test_padding_and_ends_have_no_say_in_the_result(stage, fault, out, plain_model, whole):
    model = changed(plain_model, out.parent / "model", **SPECIAL[fault])
    succeeded(truing(stage, out, model=str(model), plant=[spy_on_packed]))
    same(stage, out, whole(stage))
    prompts, answers = packed(out.parent)
    assert not [ids for ids in prompts if CONTROL_IDS & set(ids)]
    one_stop_each(answers)


@pytest.mark.fault("T1")
@pytest.mark.full
@pytest.mark.parametrize("rows", ["talks", "plain"])
@pytest.mark.parametrize("stage", EVERY)
def test_template_and_tokenizer_both_add_bos_and_there_is_one(stage, rows, out, plain_model):
    model = changed(plain_model, out.parent / "model", WITH_BOS, bos_token=BOS, pad_token=END)
    data = written(out.parent / "talks.jsonl", TALKS) if rows == "talks" else None
    succeeded(truing(stage, out, model=str(model), data=data, plant=[spy_on_packed]))
    prompts, answers = packed(out.parent)
    if wrong := [ids for ids in prompts if ids[0] != BOS_ID or ids.count(BOS_ID) != 1]:
        raise SilentError(f"not one BOS at the beginning of {wrong[0]}")
    one_stop_each(answers)


@pytest.mark.fault("T1")
@pytest.mark.full
@pytest.mark.parametrize("who", ["template", "tokenizer"])
@pytest.mark.parametrize("stage", EVERY)
def test_two_bos_of_one_hand_are_refused(stage, who, out, plain_model):
    template = ("{{ bos_token }}" if who == "template" else "") + WITH_BOS
    model = changed(plain_model, out.parent / "model", template, bos_token=BOS, pad_token=END)
    if who == "tokenizer":
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} {BOS} $A", special_tokens=[(BOS, BOS_ID)]
        )
        tokenizer.save_pretrained(model)
    stopped(truing(stage, out, model=str(model)), 4, "two BOS tokens", who)


@pytest.mark.fault("T1")
@pytest.mark.full
@pytest.mark.parametrize("stage", EVERY)
def test_nothing_that_ends_an_answer_is_refused(stage, out, plain_model):
    model = changed(plain_model, out.parent / "model", None, eos_token=None)
    stopped(truing(stage, out, model=str(model)), 4, "nothing ends an answer", str(model))


ENDLESS = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
ATTACK = "{{ cycler.__init__.__globals__.os.system('touch owned') }}"
TEMPLATES = {
    "attack": (ATTACK, "not safe"),
    "attack_on_messages": ("{{ messages.append.__self__ }}", "not safe"),
    "globals": ("{{ raise_exception.__globals__['os'] }}", "not safe"),
    "globals_as_text": ("{{ raise_exception.__globals__ }}", "leaves out"),  # which are empty
    "missing": (None, "no chat template"),
    "raising": ("{{ raise_exception('not today') }}", "not today"),
    "broken": ("{% for message in %}", "fails"),
    "endless": (ENDLESS, "does not come to an end"),
    "huge_number": ("{% set x = 9 ** (9 ** 9) %}", "does not come to an end"),
    "huge_number_in_two": ("{% set x = 9 ** 9 %}{{ (9 ** x) % 7 }}", "does not come to an end"),
    "recursive": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "not safe"),
    "large": (" " * (1 << 18) + tiny.CHAT_TEMPLATE, "characters"),
}


@pytest.mark.fault("T2")
@pytest.mark.parametrize(
    "fault",
    [
        "attack",
        "missing",
        *(
            pytest.param(name, marks=pytest.mark.full)
            for name in TEMPLATES
            if name not in ("attack", "missing")
        ),
    ],
)
@pytest.mark.parametrize("stage", EVERY)
def test_a_template_that_cannot_be_used(stage, fault, out, plain_model):
    template, said = TEMPLATES[fault]
    model = changed(plain_model, out.parent / "model", template)
    talks = written(out.parent / "talks.jsonl", TALKS)
    result = truing(stage, out, model=str(model), data=talks, deadline=20)
    stopped(result, 4, said, "chat", "talks.jsonl:1" if template is None else "chat_template")
    assert not (out.parent / "owned").exists()
    assert not out.exists()


@pytest.mark.fault("T2")
@pytest.mark.full
@pytest.mark.parametrize("fault", ["endless", "attack"])
@pytest.mark.parametrize("stage", EVERY)
def test_a_template_that_waits_for_the_rows(stage, fault, out, plain_model):
    """It behaves when it is tried, on a question and an answer, and not on a question alone."""
    body = f"{{% if messages|length == 1 %}}{TEMPLATES[fault][0]}{{% endif %}}"
    model = changed(plain_model, out.parent / "model", body + tiny.CHAT_TEMPLATE)
    talks = written(out.parent / "talks.jsonl", TALKS)
    # not a bad row: dropping it would be no answer
    result = truing(
        stage, out, "--data.bad-rows", "drop", model=str(model), data=talks, deadline=20
    )
    stopped(result, 4, TEMPLATES[fault][1], "chat_template")
    assert not (out.parent / "owned").exists()
