"""A reward model of any make, asked through text: its own tokenizer, template and vocabulary.

    prompt and completion as text -> its own ids -> hidden states -> head at the last token of each

The last token is found from lengths, never by looking for padding: where padding is the end token
too, that search ends one token early. A score does not depend on the batch it was computed in,
beyond rounding.

R rows · T positions of a row
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from truing.data import templates
from truing.errors import ModelError
from truing.memory import memory_errors
from truing.models import folders, loading
from truing.models.quiet import quiet
from truing.rewards.base import Reward, Unscored
from truing.rewards.model import Model

NO_LIMIT = 1 << 30
"""A tokenizer that knows no limit says a larger one."""
PROBE = "What is 1 + 23?\n  Café: ½ "
"""A text that tokenizers cut differently."""


class LearnedReward(Reward):
    """`Model`, opened when it is first asked. Formula, unit and errors: rewards/model.py."""

    def __init__(
        self,
        model: Model,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.device, self.dtype = model, device or torch.device("cpu"), dtype

    @property
    def wants(self) -> frozenset[str]:
        return frozenset({"prompt_messages"})

    @property
    def label(self) -> str:
        return self.model.path

    @cached_property
    def tokenizer(self) -> Any:
        return loading.load_tokenizer(self.model.path)

    @cached_property
    def network(self) -> PreTrainedModel:
        return _load(self.model.path, self.dtype).to(self.device)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | Unscored]:
        talks = columns.get("prompt_messages") or [None] * len(prompts)
        rows = [self.ids(*row) for row in zip(prompts, completions, talks, strict=True)]
        longest = self.longest
        kept = [i for i, ids in enumerate(rows) if longest is None or len(ids) <= longest]
        values: list[float | Unscored] = [Unscored("too_long")] * len(rows)
        for batch in _batches(kept, rows, self.model.batch_tokens):
            for index, value in zip(batch, self._scores([rows[i] for i in batch]), strict=True):
                values[index] = value
        return values

    @property
    def longest(self) -> int | None:
        """Tokens the model can read; None if it does not say."""
        positions: int | None = getattr(self.network.config, "max_position_embeddings", None)
        # RoBERTa and its kin lose two positions to padding, and only their tokenizer says so
        found = min(positions or NO_LIMIT, self.tokenizer.model_max_length)
        return found if found < NO_LIMIT else None

    def ids(self, prompt: str, completion: str, talk: list[dict[str, str]] | None) -> list[int]:
        """What the model reads of a prompt and its completion. Raises ModelError.

        The template writes its own BOS and the ends of its turns, so nothing is added to it.
        """
        templated = self.model.template == "chat" or (
            self.model.template == "auto" and talk is not None and self.tokenizer.chat_template
        )
        if templated:
            turns = talk or [{"role": "user", "content": prompt}]
            return self._rendered(_answered(turns, completion))
        encoded = self.tokenizer(prompt + completion, split_special_tokens=True, verbose=False)
        ids = list(encoded["input_ids"])
        end = self.tokenizer.eos_token_id
        if self.model.append_eos and end is not None and ids[-1:] != [end]:
            ids.append(end)
        if not ids:
            raise ModelError(
                "an empty prompt with an empty completion has no token to score",
                where=self.model.path,
                remedy="give the rows prompts, or set append_eos",
            )
        return ids

    def _rendered(self, turns: list[dict[str, str]]) -> list[int]:
        try:
            ids = templates.render(
                self.tokenizer, turns, sanitize_control_tokens=True, return_dict=False
            )
        except ModelError:
            raise
        except Exception as error:  # a template is a foreign program: it may raise anything
            raise ModelError(
                f"the reward model's chat template refuses a prompt: {error}",
                where=self.model.path,
                remedy="correct the template or the rows, or set template: plain",
            ) from error
        return list(ids)

    @torch.no_grad()
    def _scores(self, rows: list[list[int]]) -> list[float]:
        """Padded on the right and masked. Raises ResourceError."""
        sizes = [len(ids) for ids in rows]
        padding = (
            getattr(self.network.config, "pad_token_id", None) or 0
        )  # masked; some encoders count positions by it
        ids_RT = torch.full((len(rows), max(sizes)), padding)
        mask_RT = torch.zeros_like(ids_RT)
        for row, ids in enumerate(rows):
            ids_RT[row, : len(ids)] = torch.tensor(ids)
            mask_RT[row, : len(ids)] = 1
        lengths_R = torch.tensor(sizes, device=self.device)
        with memory_errors(self.model.path, "lower the reward's batch_tokens"):
            score_R = self._forward(ids_RT.to(self.device), mask_RT.to(self.device), lengths_R)
        scores: list[float] = score_R.float().cpu().tolist()
        return scores

    def _forward(self, ids_RT: Tensor, mask_RT: Tensor, lengths_R: Tensor) -> Tensor:
        """The head's number of each row. Shape [R]."""
        network = self.network
        if not _reads_last_token(network):  # an encoder: it has its own way to sum a text up
            whole_R: Tensor = network(input_ids=ids_RT, attention_mask=mask_RT).logits[:, 0]
            return whole_R
        states = network.base_model(input_ids=ids_RT, attention_mask=mask_RT, use_cache=False)
        rows_R = torch.arange(len(lengths_R), device=lengths_R.device)
        last_RH = states.last_hidden_state[rows_R, lengths_R - 1]
        score_R: Tensor = network.score(last_RH)[:, 0]
        return score_R


def reads_ids_of(folder: Path, tokenizer: Any) -> bool:
    """Whether a reward model reads the very ids of another tokenizer, and so needs no text: the
    same vocabulary, template and special tokens, and a head that models/roles.py can place on a
    packed batch. Raises ModelError if it has no tokenizer."""
    theirs = loading.load_tokenizer(str(folder))
    kept = {name for file in folder.glob("*.safetensors") for name in _names_in(file)}
    return (
        theirs.get_vocab() == tokenizer.get_vocab()
        and theirs.chat_template == tokenizer.chat_template
        and theirs(PROBE)["input_ids"] == tokenizer(PROBE)["input_ids"]
        and "score.weight" in kept
        and "score.bias" not in kept
    )


def _names_in(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def _reads_last_token(network: PreTrainedModel) -> bool:
    """Whether it is a decoder with a linear `score` on its last token's state."""
    return isinstance(getattr(network, "score", None), torch.nn.Linear)


def _answered(turns: list[dict[str, str]], completion: str) -> list[dict[str, str]]:
    """The conversation with the answer; one that the prompt began is one turn with it."""
    if turns[-1]["role"] == "assistant":
        begun = turns[-1]["content"]
        return [*turns[:-1], {"role": "assistant", "content": begun + completion}]
    return [*turns, {"role": "assistant", "content": completion}]


def _batches(kept: list[int], rows: list[list[int]], budget: int) -> list[list[int]]:
    """Indices by falling length, so many together that width times rows keeps to the budget."""
    batches: list[list[int]] = []
    for index in sorted(kept, key=lambda i: -len(rows[i])):
        if batches and (len(batches[-1]) + 1) * len(rows[batches[-1][0]]) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _load(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """The classifier in eval mode. Raises ModelError or UnsafeFileError."""
    if Path(path).is_dir():
        folders.check_folder(Path(path))
    try:
        with quiet():
            network, report = AutoModelForSequenceClassification.from_pretrained(
                path,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"cannot be loaded: {str(error).splitlines()[0]}",
            where=path,
            remedy="give the folder of a sequence classifier",
        ) from error
    made_up = [*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])]
    if made_up:
        raise ModelError(
            f"the weights have no {min(made_up)} of the right shape: it would be random",
            where=path,
            remedy="give a sequence classifier, not a language model",
        )
    if network.config.num_labels != 1:
        raise ModelError(
            f"a reward model has one label, this one has {network.config.num_labels}",
            where=path,
            remedy="give a sequence classifier with num_labels=1",
        )
    if "score.bias" in report["unexpected_keys"]:  # transformers' own heads have none
        network.score.bias = torch.nn.Parameter(_tensor(Path(path), "score.bias").to(dtype))
    loaded: PreTrainedModel = network.eval()
    return loaded


def _tensor(folder: Path, name: str) -> Tensor:
    """One tensor of a folder's weights. Raises ModelError."""
    for file in folder.glob("*.safetensors"):
        if name in _names_in(file):
            with safe_open(file, "pt") as opened:
                found: Tensor = opened.get_tensor(name)
                return found
    raise ModelError(
        f"the head has a {name}, which is only read from a folder",
        where=str(folder),
        remedy="download the model and give its folder",
    )
