"""The time limit on a chat template: it ends what has no end, and leaves nothing behind."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from byte_tokens import CHATML, make_tokenizer

from truing.data import templates
from truing.errors import ModelError

TURNS = [{"role": "user", "content": "hi"}]
ENDLESS = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4


def raised(tokenizer) -> ModelError:
    with pytest.raises(ModelError) as caught:
        templates.render(tokenizer, TURNS, tokenize=False)
    return caught.value


@pytest.mark.parametrize("where", ["main", "another thread"])
def test_a_template_without_an_end_is_stopped(where, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    found: list[ModelError] = []
    tokenizer = make_tokenizer(ENDLESS)
    started = time.monotonic()
    if where == "main":
        found.append(raised(tokenizer))
    else:
        thread = threading.Thread(target=lambda: found.append(raised(tokenizer)), daemon=True)
        thread.start()
        thread.join(20)
    assert "does not come to an end: stopped after 0.2 s" in str(found[0])
    assert time.monotonic() - started < 20


def test_arithmetic_without_an_end_is_stopped_too(monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    assert "does not come to an end" in str(raised(make_tokenizer("{% set x = 9 ** (9 ** 9) %}")))


def test_timers_and_handlers_of_others_go_on():
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        templates.render(make_tokenizer(), TURNS, tokenize=False)
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left <= 0.3
        deadline = time.monotonic() + 20
        while not rang and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rang
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_no_limit_stays_behind():
    for where in (templates._by_signal, templates._by_thread):
        with where(0.1):
            pass
        time.sleep(0.2)  # an exception that came now would be anyone's
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]


def test_a_template_too_large_is_not_compiled():
    error = raised(make_tokenizer(" " * (templates.LARGEST + 1) + CHATML))
    assert "262,144 at most" in str(error)
    assert templates.render(make_tokenizer(" " + CHATML), TURNS, tokenize=False)


def test_other_errors_of_a_template_pass_through():
    with pytest.raises(ZeroDivisionError):
        templates.render(make_tokenizer("{{ 1 / 0 }}"), TURNS, tokenize=False)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'].__base__ }}",
        "{% set _ = messages.append(1) %}",
    ],
)
def test_what_would_leave_the_sandbox_is_no_bad_row(attack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "not safe to render" in str(raised(make_tokenizer(attack + CHATML)))
    assert not list(tmp_path.iterdir())
