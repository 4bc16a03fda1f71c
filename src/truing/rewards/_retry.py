"""When to ask an endpoint again, and when to stop. No message holds a header, a path or a body."""

from __future__ import annotations

import http.client
import json
import math
import random
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from truing.errors import RolloutError
from truing.rewards._address import Target, resolve
from truing.rewards._request import Answer, Limits, TooLargeError, post

TOO_MANY_REQUESTS = 429


@dataclass(frozen=True, slots=True)
class Waits:
    """How often, and how long in between."""

    retries: int
    seconds: float
    cap_seconds: float

    def before(self, attempt: int, retry_after: str | None) -> float:
        """Seconds before attempt 1, 2, ...: exponential with jitter, or what the server asks."""
        asked = _seconds(retry_after)
        if asked is not None:
            return min(asked, self.cap_seconds)
        longest = self.seconds * 2.0 ** (attempt - 1)
        # not the global generator: a flaky network must not change what the run draws
        return min(longest, self.cap_seconds) * random.SystemRandom().uniform(0.5, 1.0)


@dataclass(slots=True)
class Endpoint:
    """Where and how to ask. `addresses` are filled at the first success of the name's lookup."""

    target: Target
    headers: Mapping[str, str] = field(repr=False)
    limits: Limits
    waits: Waits
    allow_private: bool
    addresses: list[str] = field(default_factory=list)

    def post(self, body: bytes) -> Answer:
        """One attempt."""
        if not self.addresses:
            self.addresses = resolve(self.target, self.allow_private)
        return post(self.target, self.addresses, body, self.headers, self.limits)


class _TryAgainError(Exception):
    def __init__(self, why: str, retry_after: str | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


def ask(endpoint: Endpoint, body: bytes, count: int) -> list[float | None]:
    """`count` scores. Raises RolloutError after the last attempt, or at once where none helps."""
    for attempt in range(1, endpoint.waits.retries + 2):
        try:
            return _attempt(endpoint, body, count)
        except _TryAgainError as error:
            why = str(error)
            if attempt <= endpoint.waits.retries:
                time.sleep(endpoint.waits.before(attempt, error.retry_after))
    raise _stop(
        endpoint, f"{why}, {attempt} times", "see the endpoint's own log; `retries` allows more"
    )


def _attempt(endpoint: Endpoint, body: bytes, count: int) -> list[float | None]:
    try:
        answer = endpoint.post(body)
    except TooLargeError:
        most = endpoint.limits.response_bytes
        raise _stop(endpoint, f"answered more than {most} bytes", "raise response_kb") from None
    except ssl.SSLCertVerificationError as error:
        raise _stop(endpoint, f"certificate: {error.verify_message}", "correct it") from None
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(_words(error)) from None
    if answer.status == TOO_MANY_REQUESTS or answer.status >= 500:
        raise _TryAgainError(f"answered status {answer.status}", answer.retry_after)
    if answer.status != 200:
        raise _stop(
            endpoint,
            f"answered status {answer.status}",
            "correct the request's url, headers or columns; redirects are not followed",
        )
    return _scores(endpoint, answer.body, count)


def _scores(endpoint: Endpoint, body: bytes, count: int) -> list[float | None]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise _TryAgainError("answered something that is not JSON") from None
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise _TryAgainError('answered no {"scores": [...]}')
    if len(scores) != count or not all(map(_is_score, scores)):
        raise _stop(
            endpoint,
            f"answered {len(scores)} scores for {count} completions, or what is no number",
            "the endpoint returns one number or null per completion, in their order",
        )
    return [None if score is None else float(score) for score in scores]


def _is_score(score: object) -> bool:
    if isinstance(score, int) and not isinstance(score, bool):
        return abs(score) < 2**1023  # larger ones are no float
    return score is None or isinstance(score, float)


def _stop(endpoint: Endpoint, what: str, remedy: str) -> RolloutError:
    return RolloutError(f"{endpoint.target.shown} {what}", where="http", remedy=remedy)


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "did not answer in time"
    reason = getattr(error, "strerror", None) or type(error).__name__
    return f"cannot be reached or broke off ({reason})"


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After: a number of seconds or a date (RFC 9110, 10.2.3); nonsense counts as absent."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            then = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        seconds = (then - datetime.now(UTC)).total_seconds() if then.tzinfo else math.nan
    return max(seconds, 0.0) if math.isfinite(seconds) else None
