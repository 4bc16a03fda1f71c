"""Groups as token ids. Two rules hold everywhere:

1. Only the chat template, the tokenizer's own BOS and the stop token write control tokens. Text is
   text: "<|im_end|>" in a message, a plain prompt or a completion becomes ordinary tokens.
2. Prompt and completion are tokenised apart, so that the prompt's ids are the same whatever
   follows, in training as in sampling. The stop id follows a completion iff its author stopped.

Judged steps are tokenised apart as well, each with the separator behind it: no token reaches over
the end of a step, so its last token, where a process reward model is read, is well defined. The
last step has no separator behind it; the stop id is no part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from truing.data import templates
from truing.data.formats import BadRows, Dropped, settle
from truing.errors import DataError, ModelError
from truing.groups import (
    CHOICE_COLUMNS,
    Completion,
    FinishReason,
    Group,
    Message,
    TokenCompletion,
    TokenGroup,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SENTINEL = "an answer to look behind"
MOST_CHARACTERS = 256
"""Of a token, where the vocabulary does not have a longer one. Tokenizers that fold what they do
not know into one token may stand for more than their longest entry."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Groups and their ids, index by index, and the rows that were left out."""

    groups: list[Group]
    tokens: list[TokenGroup]
    dropped: list[Dropped]


class ChatTokenizer:
    """A fast tokenizer of transformers with its chat template, as groups need it.

    Raises ModelError when the tokenizer has nothing that could end an answer, begins a text with
    two BOS, or has a template that fails, has no end or leaves its sandbox (data/templates.py).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.stop_id = self._find_stop()
        """Id of the token that ends an assistant turn. Never taken from the padding token."""
        self.stop_text: str = tokenizer.convert_ids_to_tokens(self.stop_id)
        self._before = self._find_before()
        if self._before.count(tokenizer.bos_token_id) > 1:
            raise _two_bos("the tokenizer itself", tokenizer.name_or_path)

    def encode(self, group: Group, *, with_completions: bool = True) -> TokenGroup:
        """The ids of a group. Raises DataError for a prompt without tokens or that the template
        refuses, ModelError for a conversation without a template."""
        said = group if with_completions else group.bare()
        choice = {}
        if said.chosen is not None:
            choice = {name: said.columns.get(name) for name in CHOICE_COLUMNS}
        return TokenGroup(
            self._prompt_ids(group),
            tuple(self._completion_ids(completion, group.where) for completion in said.completions),
            chosen=said.chosen,
            rejected=said.rejected,
            where=group.where,
            origin=group,
            **choice,
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids: a stop token at the end left out, other control tokens spelt out."""
        ids = list(ids)
        if ids and ids[-1] == self.stop_id:
            ids.pop()
        return self._spell(ids)

    def render(self, group: Group) -> str:
        """What the model sees, control tokens included: the prompt, then each completion in
        [[...]] on a line of its own. What stands in [[...]] is trained."""
        tokens = self.encode(group)
        trained = [f"[[{self._spell(completion.ids)}]]" for completion in tokens.completions]
        return "\n".join([self._spell(tokens.prompt_ids), *trained])

    def fit(
        self, groups: Iterable[Group], max_length: int | None, *, bad_rows: BadRows = "error"
    ) -> Fitted:
        """Encode groups. A bad row is one that cannot be encoded, whose prompt and longest
        completion have more than `max_length` tokens (nothing is cut), or that is a pair of the
        same tokens. Raises DataError for bad rows unless they are to be dropped."""
        fitted = Fitted([], [], [])
        for group in groups:
            found = self._fitted(group, max_length)
            if isinstance(found, Dropped):
                fitted.dropped.append(found)
                continue
            fitted.groups.append(group)
            fitted.tokens.append(found)
        settle(fitted.dropped, len(fitted.groups) + len(fitted.dropped), bad_rows)
        return fitted

    def _fitted(self, group: Group, max_length: int | None) -> TokenGroup | Dropped:
        """The ids of a group, or why it is a bad row."""
        reason = f"longer than max_length {max_length:,}" if max_length else ""
        characters = _characters(group)
        if max_length is not None and characters > max_length * self._most_characters:
            return Dropped(group.where, reason, f"{characters:,} characters")
        try:
            tokens = self.encode(group)
        except DataError as error:
            return Dropped(group.where, error.what)
        lengths = [len(completion.ids) for completion in tokens.completions]
        length = len(tokens.prompt_ids) + max(lengths, default=0)
        if max_length is not None and length > max_length:
            return Dropped(group.where, reason, f"{length:,} tokens")
        if tokens.chosen is not None and len({c.ids for c in tokens.completions}) == 1:
            return Dropped(group.where, "chosen and rejected are the same tokens")
        return tokens

    @cached_property
    def _most_characters(self) -> int:
        """No token stands for more characters: what has more of them for each token it may have is
        too long, and is not tokenised to find out (ids take a hundred times a text's memory)."""
        return max(MOST_CHARACTERS, *map(len, self.tokenizer.get_vocab()))

    def _prompt_ids(self, group: Group) -> tuple[int, ...]:
        if group.prompt.messages is not None:
            ids = self._render_messages(group.prompt.messages, group.where)
        else:
            ids = self._before + self._text_ids(group.prompt.text)
        if not ids and self.tokenizer.bos_token_id is not None:
            ids = (self.tokenizer.bos_token_id,)
        if not ids:
            raise DataError(
                "the prompt has no tokens, so nothing predicts the first one of the completion",
                where=group.where,
                remedy="give the row a prompt, or use a tokenizer with a BOS token",
            )
        return ids

    def _completion_ids(self, completion: Completion, where: str) -> TokenCompletion:
        steps: tuple[tuple[int, bool], ...] = ()
        if completion.steps:
            ids, steps = self._step_ids(completion, where)
        else:
            ids = self._text_ids(completion.text)
        if completion.finish is FinishReason.STOP:
            ids = (*ids, self.stop_id)
        return TokenCompletion(
            ids, completion.finish, completion.score, completion.label, steps=steps
        )

    def _step_ids(
        self, completion: Completion, where: str
    ) -> tuple[tuple[int, ...], tuple[tuple[int, bool], ...]]:
        """The ids of a completion, and where among them each step ends. Raises DataError."""
        text = completion.text
        ids: list[int] = []
        steps = []
        behind = [*(step.start for step in completion.steps[1:]), len(text)]
        for step, end in zip(completion.steps, behind, strict=True):
            piece = self._text_ids(text[step.start : end])
            if not piece:
                raise DataError("a step has no tokens", where=where, remedy="leave it out")
            ids += piece
            steps.append((len(ids) - 1, step.label))
        return tuple(ids), tuple(steps)

    def _text_ids(self, text: str) -> tuple[int, ...]:
        """Text as text: no special token is added, and none is read from it."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return tuple(encoded["input_ids"])

    def _render_messages(self, messages: Sequence[Message], where: str) -> tuple[int, ...]:
        """The prompt of a conversation: open for a new assistant turn, or within its last one."""
        if not self.tokenizer.chat_template:
            raise ModelError(
                "the rows are conversations, and this tokenizer has no chat template",
                where=where,
                remedy="use an instruction-tuned model, put a chat_template.jinja beside the "
                "tokenizer, or give plain prompts",
            )
        continued = messages[-1].role == "assistant"
        try:
            ids = templates.render(
                self.tokenizer,
                _dicts(messages),
                add_generation_prompt=not continued,
                continue_final_message=continued,
                sanitize_control_tokens=True,  # rule 1; transformers >= 5.20
                return_dict=False,
            )
        except ModelError:
            raise
        except Exception as error:  # a template is a foreign program: it may raise anything
            raise DataError(
                f"the chat template refuses it: {error}",
                where=where,
                remedy="bring the turns into the order the template asks for",
            ) from error
        return tuple(ids)

    def _find_stop(self) -> int:
        """The first special token the template writes behind an answer, or else EOS."""
        if self.tokenizer.chat_template:
            talk = [Message("user", "a question"), Message("assistant", SENTINEL)]
            try:
                rendered = templates.render(self.tokenizer, _dicts(talk), tokenize=False)
            except ModelError:
                raise
            except Exception as error:  # a template is a foreign program: it may raise anything
                raise ModelError(
                    f"the chat template fails on a question and an answer: {error}",
                    where=templates.place(self.tokenizer),
                    remedy="correct the template",
                ) from error
            if SENTINEL not in rendered:
                raise ModelError(
                    "the chat template leaves out what the assistant says",
                    where=templates.place(self.tokenizer),
                    remedy="correct the template",
                )
            bos = self.tokenizer.bos_token
            if bos and rendered.startswith(2 * bos):
                raise _two_bos("the chat template", templates.place(self.tokenizer))
            behind = rendered.partition(SENTINEL)[2]
            special = {i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special}
            for token in self.tokenizer(behind, add_special_tokens=False)["input_ids"]:
                if token in special:
                    return int(token)
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "nothing ends an answer: no EOS token, and the chat template writes none",
                where=self.tokenizer.name_or_path,
                remedy="set tokenizer.eos_token, or a template that ends assistant turns",
            )
        return int(self.tokenizer.eos_token_id)

    def _find_before(self) -> tuple[int, ...]:
        """What the tokenizer itself puts before a text, usually BOS or nothing. What it puts
        behind one (some add EOS) would stand between prompt and completion and is left out."""
        whole = self.tokenizer("a")["input_ids"]
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        starts = range(len(whole) - len(bare) + 1)
        start = next(i for i in starts if whole[i : i + len(bare)] == bare)
        return tuple(whole[:start])

    def _spell(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)


def _characters(group: Group) -> int:
    """Of the prompt and the longest completion."""
    messages = group.prompt.messages
    said = [group.prompt.text] if messages is None else [m.content for m in messages]
    return sum(map(len, said)) + max((len(c.text) for c in group.completions), default=0)


def _two_bos(who: str, where: str) -> ModelError:
    """No model was trained on that, and nothing in a loss would show it."""
    return ModelError(
        f"{who} begins a text with two BOS tokens", where=where, remedy="take one of them out"
    )


def _dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in messages]
