"""What the command line's verbs do: each is a small recipe, or one public function called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from truing.config import Recipe, apply_override, check_recipe, read_value
from truing.errors import UsageError

SWITCHES = ("resume", "overwrite", "dry_run")
"""Flags that are no part of a recipe."""


def single_stage(
    method: str, model: str, data: str, output: Path, knobs: list[str], every_row_is_a_test: bool
) -> tuple[Recipe, dict[str, bool]]:
    """A recipe of one stage from `--key value` flags, and which of SWITCHES were given.

    Dotted keys (`--model.lora.rank 8`, `--data.test-rows 0.2`) go to the recipe's sections,
    plain ones to the stage.
    """
    raw: dict[str, Any] = {
        "name": method,
        "output": str(output),
        "model": {"path": model},
        "data": {"path": data, **({"test_path": data} if every_row_is_a_test else {})},
        "stages": {method: {"method": method}},
    }
    flags = dict(read_flags(knobs))
    switches = {name: flags.pop(name, "false") != "false" for name in SWITCHES}
    for key, value in flags.items():
        section = key if "." in key or key == "seed" else f"stages.{method}.{key}"
        apply_override(raw, f"{section}={value}")
    return check_recipe(raw, f"truing {method}"), switches


def read_flags(tokens: list[str]) -> Iterator[tuple[str, str]]:
    """`--key value`, `--key=value` and `--switch` as pairs; dashes in keys become underscores."""
    waiting = list(tokens)
    while waiting:
        token = waiting.pop(0)
        if not token.startswith("--"):
            raise UsageError(f"unexpected '{token}'", remedy="write keys as --key value")
        key, equals, value = token[2:].partition("=")
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
        yield key.replace("-", "_"), value


def evaluation_recipe(
    policies: list[str],
    data: str,
    reference: str,
    gold: str,
    proxy: str,
    output: Path,
    max_completion_length: int,
    test_prompts: int,
) -> Recipe:
    """A recipe of one evaluate stage over folders."""
    named = dict(policy.partition("=")[::2] for policy in policies)
    if not named or not all(named.values()):
        raise UsageError("no policies", remedy="write LABEL=FOLDER, for example sft=runs/x/sft")
    first = next(iter(named))
    if reference and reference not in named:
        raise UsageError(f"'{reference}' is no label", remedy=f"one of: {', '.join(named)}")
    stage: dict[str, Any] = {
        "method": "evaluate",
        "policies": named,
        "reference": named[reference or first],
        "max_completion_length": max_completion_length,
        "test_prompts": test_prompts,
        "gold": read_value(gold, "--gold") if gold else None,
        "proxy": read_value(proxy, "--proxy") if proxy else None,
    }
    raw = {
        "name": "evaluate",
        "output": str(output),
        "model": {"path": named[first]},
        "data": {"path": data, "test_path": data},
        "stages": {"evaluate": stage},
    }
    return check_recipe(raw, "truing evaluate")


def draw(
    prompt: str,
    data: str,
    model: str,
    number: int,
    sampling: Mapping[str, Any],
    seed: int,
    limit: int,
) -> Iterator[tuple[str, str]]:
    """(prompt, completion) pairs drawn from a model; `sampling` as in a recipe."""
    from truing.config import Model, Sampling, check
    from truing.data.chat import ChatTokenizer
    from truing.data.formats import parse_rows
    from truing.data.readers import read_rows
    from truing.groups import Group, Message, Prompt
    from truing.models import loading
    from truing.models.network import Network
    from truing.rollouts.sampler import sample
    from truing.training.on_policy import sampling_settings

    if bool(prompt) == bool(data):
        raise UsageError("give either a prompt or --data", remedy="truing sample 'Hello' --model M")
    wanted = check(Sampling, sampling, "truing sample")
    path = loading.resolve(model)
    tokenizer = ChatTokenizer(loading.load_tokenizer(path))
    if data:
        groups = parse_rows(read_rows(data, max_rows=limit)).groups
    else:
        talks = bool(tokenizer.tokenizer.chat_template)
        groups = [Group(Prompt(prompt, (Message("user", prompt),) if talks else None))]
    device = loading.pick_device(Model.model_fields["device"].default)
    network = Network(loading.load_causal(path, loading.compute_dtype("auto", device))).to(device)
    settings = sampling_settings(wanted, tokenizer.stop_id, tokenizer.decode)
    prompts = [tokenizer.encode(group, with_completions=False) for group in groups]
    drawn = sample(network, prompts, settings, completions=number, seed=seed)
    for group, answered in zip(groups, drawn, strict=True):
        for completion in answered.completions:
            yield group.prompt.text, tokenizer.decode(completion.ids)


def inspect_data(path: str, model: str, split: str, max_length: int) -> str:
    """What the data doctor says about a path."""
    from truing.data.doctor import describe, examine

    tokenizer = None
    if model:
        from truing.data.chat import ChatTokenizer
        from truing.models import loading

        tokenizer = ChatTokenizer(loading.load_tokenizer(loading.resolve(model)))
    return describe(examine(path, tokenizer=tokenizer, split=split, max_length=max_length))
