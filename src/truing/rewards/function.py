"""A function with TRL's signature: (prompts, completions, **columns) -> list[float | None].

    def short(completions, **kwargs):
        return [-float(len(text)) for text in completions]

It is called by keyword with what it accepts of: prompts, completions, completion_ids (the drawn
tokens, stop token included) and the further columns of the rows. Where the prompt is a
conversation, prompt and completion are lists of messages, as TRL passes them: the text is
`completion[0]["content"]`. It may be async. Not passed, so they need defaults: trainer_state,
log_extra, log_metric, environments (a reward that depends on training's progress is another reward
at each step; what it logs belongs into a mixture's parts).

Source: TRL 1.16, GRPOTrainer(reward_funcs=...), `_calculate_rewards`.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass

from truing.errors import DataError, UsageError
from truing.rewards.base import Reward

NOT_PASSED = frozenset({"trainer_state", "log_extra", "log_metric", "environments"})


def load(place: Any) -> Any:
    """The thing at `module:name` or `file.py:name`. Raises UsageError."""
    if not isinstance(place, str):
        return place
    where, _, name = place.rpartition(":")
    remedy = "write my_module:my_function (the module on the Python path) or my_file.py:my_function"
    if not where or not name:
        raise UsageError(f"'{place}' names no function", remedy=remedy)
    try:
        module = _from_file(str(Path(where).resolve())) if where.endswith(".py") else None
        module = module or importlib.import_module(where)
    except Exception as error:  # a foreign module may raise anything
        what = f"cannot import '{where}' ({type(error).__name__}: {error})"
        raise UsageError(what, remedy=remedy) from error
    if not callable(getattr(module, name, None)):
        raise UsageError(f"'{where}' has no function or class '{name}'", remedy=remedy)
    return getattr(module, name)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Function(Reward):
    """What the function returns, checked. Unit and range: the function's own.

    Raises DataError for a column it needs and the rows do not have, UsageError for one that only
    TRL's trainer could give.
    """

    function: Annotated[Callable[..., Any], BeforeValidator(load)]
    """`my_module:my_function` or `my_file.py:my_function`; in Python also the function itself."""

    @property
    def wants(self) -> frozenset[str]:
        return frozenset({"completion_ids", "prompt_messages"})

    @property
    def label(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> Any:
        talks = columns.pop("prompt_messages", None) or [None] * len(prompts)
        said = [
            text if talk is None else [{"role": "assistant", "content": text}]
            for talk, text in zip(talks, completions, strict=True)
        ]
        asked = [p if talk is None else talk for talk, p in zip(talks, prompts, strict=True)]
        given = {**columns, "prompts": asked, "completions": said}
        answer = self.function(**self._accepted(given))
        return asyncio.run(_result(answer)) if inspect.isawaitable(answer) else answer

    def _accepted(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the function has a place for."""
        parameters = inspect.signature(self.function).parameters.values()
        named = {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        for name, parameter in named.items():
            if name in given or parameter.default is not parameter.empty:
                continue
            kind = UsageError if name in NOT_PASSED else DataError
            raise kind(
                f"the function needs '{name}', and there is no such column",
                where=self.label,
                remedy=f"give it a default, or add the column (there are: {', '.join(given)})",
            )
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return dict(given)
        return {name: value for name, value in given.items() if name in named}


async def _result(answer: Awaitable[Any]) -> Any:
    return await answer


@cache
def _from_file(path: str) -> ModuleType:
    """A file as a module; executed once."""
    name = f"reward_{Path(path).stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up there
    spec.loader.exec_module(module)
    return module
