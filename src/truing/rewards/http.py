"""Scores from an endpoint over HTTP: a service of yours judges, in whatever language it likes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass

from truing.errors import DataError, UsageError
from truing.rewards import _address, _retry
from truing.rewards._request import Limits
from truing.rewards.base import Reward, column

Seconds = Annotated[float, Field(gt=0, le=3600)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Http(Reward):
    """What the endpoint says of each completion: any finite number, or null for 'cannot judge'.

    Request: POST {"prompts": [...], "completions": [...], "columns": {name: [...]}}, as JSON.
    Response: 200 and {"scores": [...]}, as many as completions; null and NaN are data faults.
    Raises RolloutError where the endpoint does not answer so, DataError for a column that is not
    there or no JSON. SECURITY.md says where requests go.
    """

    url: str
    """http(s)://host[:port]/path. Its address is looked up once and kept; no redirect, no proxy."""
    headers_env: dict[str, str] = Field(default_factory=dict)
    """Header name -> name of the environment variable with its value, so that no secret stands in
    a recipe: {Authorization: JUDGE_TOKEN}."""
    columns: tuple[str, ...] = ()
    """Columns of the rows to send along."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Completions per request; larger: fewer, longer requests."""
    connect_timeout: Seconds = 5.0
    """Seconds to connect, TLS included; smaller gives up on a slow network sooner."""
    read_timeout: Seconds = 60.0
    """Seconds without a byte; smaller gives up on a slow judge sooner."""
    total_timeout: Seconds = 120.0
    """Seconds for one request in all, however steadily bytes trickle (the name's lookup aside)."""
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    """Further attempts after a broken connection, an unreadable answer, 429 or 5xx."""
    backoff_seconds: Annotated[float, Field(ge=0)] = 0.5
    """The wait before attempt k + 1 is backoff_seconds 2^(k − 1), times a random 0.5 to 1."""
    backoff_cap_seconds: Annotated[float, Field(ge=0)] = 60.0
    """No wait is longer; an endpoint's Retry-After counts up to here, too."""
    response_kb: Annotated[int, Field(ge=1)] = 4096
    """A larger answer is cut off there and stops the run."""
    allow_private: bool = False
    """Whether the address may be private: this machine, the local network, a cloud's metadata."""

    @field_validator("url")
    @classmethod
    def _can_be_asked(cls, url: str) -> str:
        _address.target(url)
        return url

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        wanted = {name: column(columns, name, self.label) for name in self.columns}
        scores: list[float | None] = []
        for begin in range(0, len(completions), self.batch_size):
            part = slice(begin, begin + self.batch_size)
            sent = {
                "prompts": list(prompts[part]),
                "completions": list(completions[part]),
                "columns": {name: list(values[part]) for name, values in wanted.items()},
            }
            scores += _retry.ask(self._endpoint, _json(sent), len(completions[part]))
        return scores

    @cached_property
    def _endpoint(self) -> _retry.Endpoint:
        """Made at the first call, then kept: the address, and what the environment held."""
        headers = {name: _secret(variable) for name, variable in self.headers_env.items()}
        limits = Limits(
            self.connect_timeout, self.read_timeout, self.total_timeout, self.response_kb << 10
        )
        waits = _retry.Waits(self.retries, self.backoff_seconds, self.backoff_cap_seconds)
        return _retry.Endpoint(
            _address.target(self.url), {**headers, "Content-Type": "application/json"}, limits,
            waits, self.allow_private,
        )  # fmt: skip


def _json(sent: dict[str, Any]) -> bytes:
    try:
        return json.dumps(sent, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a column cannot be sent as JSON ({error})", where="http", remedy="leave it out"
        ) from error


def _secret(variable: str) -> str:
    """The variable's value. Raises UsageError that names the variable, never what it holds."""
    value = os.environ.get(variable, "")
    if not value or not all(" " <= character <= "~" for character in value):
        raise UsageError(
            f"the environment variable {variable} is not set to one line of ASCII",
            remedy=f"export {variable}=... before the run",
        )
    return value
