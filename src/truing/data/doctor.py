"""What is in a data set, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from truing.data.chat import ChatTokenizer
from truing.data.declared import CONTRADICTED, REPEATED, by_reason, doubtful
from truing.data.formats import Dropped, parse_rows
from truing.data.readers import read_rows
from truing.data.rows import Format
from truing.groups import Group, GroupType, TokenGroup

PLACES = 5
"""Places shown for each reason."""
EDGE = 8
"""Tokens shown at each end of a long stretch of the example."""


class Spread(NamedTuple):
    """How a length is distributed over the rows."""

    median: int
    p95: int
    longest: int


class ExampleToken(NamedTuple):
    """One token of the example, as the vocabulary writes it."""

    token: str
    id: int
    trained: bool


@dataclass(frozen=True, slots=True)
class Example:
    """One row as the model sees it. What stands in [[...]] is trained."""

    where: str
    text: str
    tokens: tuple[tuple[ExampleToken, ...], ...] = ()
    """The prompt's tokens, then those of each completion. Empty without a tokenizer."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What `examine` found. Counts are of rows that can be used unless they say otherwise."""

    path: str
    type: GroupType
    format: Format
    implicit_prompt: bool
    rows: int
    dropped: list[Dropped]
    """Rows that cannot be used, those that are too long included."""
    repeated_prompts: int
    """Rows whose prompt an earlier row has."""
    repeated_rows: int
    """Rows that say what an earlier row says."""
    contradictions: int
    """Pairs that another row has the other way round, verdicts that another row denies."""
    chosen_longer: float | None
    """Share of pairs in which chosen has more characters than rejected; ties count a half."""
    ties: int | None
    """Scored rows that give all their completions one score."""
    right_steps: float | None
    """Share of the judged steps that are right."""
    control_text: int | None
    """Rows that spell out a control token. It is read as text. None without a tokenizer."""
    lengths: dict[str, Spread]
    """'prompt characters', 'completion tokens', ...; pairs have 'chosen' and 'rejected'. Also
    'completions' of a scored row and 'steps' of a stepwise one."""
    example: Example


def examine(
    path: str,
    *,
    tokenizer: ChatTokenizer | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    max_rows: int | None = None,
    max_length: int | None = None,
) -> Examination:
    """Read a data set as training would and say what is in it.

    Tokens are counted and `max_length` is applied when there is a tokenizer. Raises DataError for
    data without one usable row, or of no type or of several.
    """
    rows = read_rows(path, split=split, max_rows=max_rows)
    parsed = parse_rows(rows, columns=columns, bad_rows="drop")
    groups, dropped, tokens = parsed.groups, parsed.dropped, None
    if tokenizer is not None:
        fitted = tokenizer.fit(groups, max_length, bad_rows="drop")
        groups, tokens, dropped = fitted.groups, fitted.tokens, dropped + fitted.dropped
    known = doubtful(groups)
    return Examination(
        path=path,
        type=parsed.type,
        format=parsed.format,
        implicit_prompt=parsed.implicit_prompt,
        rows=len(groups),
        dropped=dropped,
        repeated_prompts=len(groups) - len({g.prompt for g in groups}),
        repeated_rows=len(known.get(REPEATED, ())),
        contradictions=len(known.get(CONTRADICTED, ())),
        chosen_longer=_chosen_longer(groups) if parsed.type == "preference" else None,
        ties=_ties(groups) if parsed.type == "scored" else None,
        right_steps=_right_steps(groups) if parsed.type == "stepwise" else None,
        control_text=None if tokenizer is None else _control_text(groups, tokenizer),
        lengths=_lengths(groups, tokens),
        example=_example(groups[0], tokenizer),
    )


def describe(examination: Examination) -> str:
    """The examination for a person: one line first, then what deserves a look."""
    e = examination
    prompt = "implicit prompt" if e.implicit_prompt else "explicit prompt"
    kind = [e.type, e.format, *([prompt] if e.type == "preference" else [])]
    lines = [f"{', '.join(kind)}; {e.rows:,} rows; {len(e.dropped):,} dropped"]
    lines += _dropped_lines(e.dropped)
    for count, meaning in (
        (e.repeated_prompts, "have the prompt of an earlier row"),
        (e.repeated_rows, REPEATED),
        (e.contradictions, CONTRADICTED),
        (e.ties, "give all completions one score, which orders nothing"),
        (e.control_text, "spell out a control token, which is read as text"),
    ):
        if count:
            lines.append(f"{count:,} rows {meaning}")
    if e.chosen_longer is not None:
        lines.append(f"chosen is longer than rejected in {e.chosen_longer:.1%} of the pairs")
    if e.right_steps is not None:
        lines.append(f"{e.right_steps:.1%} of the steps are right")
    lines += ["", f"{'lengths':<24}{'median':>10}{'95%':>10}{'longest':>10}"]
    for name, spread in e.lengths.items():
        lines.append(f"{name:<24}" + "".join(f"{value:>10,}" for value in spread))
    lines += ["", f"one row, {e.example.where}; what stands in [[...]] is trained", ""]
    lines += [e.example.text, *_token_lines(e.example)]
    return "\n".join(lines)


def _dropped_lines(dropped: Iterable[Dropped]) -> list[str]:
    """Each reason with its count and first places, the most frequent first."""
    lines = []
    for reason, where in by_reason(dropped).items():
        shown = ", ".join(where[:PLACES]) + (", ..." if len(where) > PLACES else "")
        lines.append(f"  {len(where):,} dropped: {reason}: {shown}")
    return lines


def _token_lines(example: Example) -> list[str]:
    """The table of the example's tokens; the middle of a long stretch is left out and counted."""
    if not example.tokens:
        return []
    lines = ["", f"{'token':<24}{'id':>8}  trained"]
    for part in example.tokens:
        hidden = len(part) - 2 * EDGE
        shown = [f"{t.token:<24}{t.id:>8}  {'yes' if t.trained else '-'}" for t in part]
        if hidden > 0:
            shown[EDGE:-EDGE] = [f"... {hidden:,} more"]
        lines += [*shown, ""]
    return lines[:-1]


def _chosen_longer(groups: Iterable[Group]) -> float:
    wins = []
    for group in groups:
        chosen, rejected = (len(completion.text) for completion in group.completions)
        wins.append(0.5 if chosen == rejected else float(chosen > rejected))
    return sum(wins) / len(wins)


def _ties(groups: Iterable[Group]) -> int:
    return sum(len({c.score for c in group.completions}) == 1 for group in groups)


def _right_steps(groups: Iterable[Group]) -> float:
    labels = [s.label for group in groups for c in group.completions for s in c.steps]
    return sum(labels) / len(labels)


def _control_text(groups: Iterable[Group], tokenizer: ChatTokenizer) -> int:
    """Groups in which the text of a control token occurs."""
    added = tokenizer.tokenizer.added_tokens_decoder.values()
    control = [token.content for token in added if token.special]
    return sum(any(word in text for word in control for text in _texts(group)) for group in groups)


def _texts(group: Group) -> list[str]:
    said = [message.content for message in group.prompt.messages or ()]
    return [group.prompt.text, *said, *(completion.text for completion in group.completions)]


def _lengths(groups: list[Group], tokens: list[TokenGroup] | None) -> dict[str, Spread]:
    """The spread of every length there is."""
    kind = groups[0].type
    named: dict[str, slice] = {}  # which of a group's completions go by a name
    if kind == "preference":
        named = {"chosen": slice(0, 1), "rejected": slice(1, 2)}
    elif kind != "prompt-only":
        named = {"completion": slice(None)}
    lengths = {"prompt characters": _spread(_prompt_characters(group) for group in groups)}
    for name, these in named.items():
        lengths[f"{name} characters"] = _spread(
            len(c.text) for group in groups for c in group.completions[these]
        )
    if tokens is not None:
        lengths["prompt tokens"] = _spread(len(group.prompt_ids) for group in tokens)
        for name, these in named.items():
            lengths[f"{name} tokens"] = _spread(
                len(c.ids) for group in tokens for c in group.completions[these]
            )
    if kind == "scored":
        lengths["completions"] = _spread(len(group.completions) for group in groups)
    if kind == "stepwise":
        lengths["steps"] = _spread(len(group.completions[0].steps) for group in groups)
    return lengths


def _prompt_characters(group: Group) -> int:
    messages = group.prompt.messages
    return len(group.prompt.text) if messages is None else sum(len(m.content) for m in messages)


def _spread(values: Iterable[int]) -> Spread:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Spread(ordered[last // 2], ordered[round(0.95 * last)], ordered[-1])


def _example(group: Group, tokenizer: ChatTokenizer | None) -> Example:
    if tokenizer is None:
        messages = group.prompt.messages
        said = [f"{m.role}: {m.content}" for m in messages] if messages else [group.prompt.text]
        trained = [f"[[{completion.text}]]" for completion in group.completions]
        return Example(group.where, "\n".join([*said, *trained]))
    tokens = tokenizer.encode(group)
    parts = [(tokens.prompt_ids, False), *((c.ids, True) for c in tokens.completions)]
    spelt = tokenizer.tokenizer.convert_ids_to_tokens
    table = tuple(tuple(ExampleToken(spelt(i), i, trained) for i in ids) for ids, trained in parts)
    return Example(group.where, tokenizer.render(group), table)
