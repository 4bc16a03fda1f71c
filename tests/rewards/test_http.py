"""Endpoints that fail in every way: bounded retries, then a stop, never a zero; and no secrets."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
import tracemalloc
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from endpoints import Endpoint, reply, scores, serving
from truing import rewards
from truing.errors import DataError, RolloutError, UsageError
from truing.rewards import _address, _request, _retry
from truing.rewards.base import score

ERROR = reply(b"no", 500)
SECRET = "s3cret-canary"


@pytest.fixture
def waits(monkeypatch):
    """The seconds it would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(_retry, "time", SimpleNamespace(sleep=slept.append))
    return slept


def make(endpoint: Endpoint | str, **fields):
    url = endpoint if isinstance(endpoint, str) else endpoint.url
    fields = {"allow_private": True, "retries": 2, **fields}
    return rewards.make({"name": "http", "url": url, **fields})


def ask(reward, count: int = 2, **columns):
    texts = [f"c{n}" for n in range(count)]
    return score(reward, [f"p{n}" for n in range(count)], texts, columns)


def test_what_is_sent_and_what_comes_back():
    with serving(scores(0.5, -3)) as endpoint:
        answer = ask(make(endpoint, columns=["gold"]), gold=["a", {"b": [1]}], other=[1, 2])
    assert answer.values == [0.5, -3.0]
    assert endpoint.requests == [
        {
            "prompts": ["p0", "p1"],
            "completions": ["c0", "c1"],
            "columns": {"gold": ["a", {"b": [1]}]},
        }
    ]
    assert endpoint.paths == ["/judge"]
    assert endpoint.headers[0]["Content-Type"] == "application/json"
    assert endpoint.headers[0]["Host"] == f"127.0.0.1:{endpoint.port}"


def test_batches_in_order():
    with serving(scores(0, 1), scores(2, 3), scores(4)) as endpoint:
        assert ask(make(endpoint, batch_size=2), 5).values == [0, 1, 2, 3, 4]
    assert [request["completions"] for request in endpoint.requests] == [
        ["c0", "c1"], ["c2", "c3"], ["c4"],
    ]  # fmt: skip


def test_null_and_nan_are_faults_of_the_data():
    with serving(reply(b'{"scores": [null, NaN, 1e999, 0]}')) as endpoint:
        answer = ask(make(endpoint), 4)
    assert answer.values == [None, None, None, 0.0]
    assert answer.faults == {"none": 1, "nan": 1, "infinite": 1}


@pytest.mark.parametrize(
    "first",
    [
        ERROR,
        reply(b"slow down", 429),
        reply(b'{"scores": [1, 2'),
        reply(b'{"scores": [1, 2]}', Content_Length="99"),
        reply(b"<html>"),
        reply(b"\xff\xfe"),
        reply(b"[" * 100_000),
        reply(b'{"error": "not now"}'),
        reply(b"[1, 2]"),
        reply(b'{"scores": "12"}'),
        lambda handler: handler.connection.shutdown(socket.SHUT_RDWR),
        lambda handler: handler.wfile.write(b"\x00nonsense\r\n\r\n"),
        lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000),
    ],
)
def test_a_fault_that_passes_is_asked_again(first, waits):
    with serving(first, scores(1, 2)) as endpoint:
        assert ask(make(endpoint)).values == [1, 2]
    assert len(endpoint.requests) == 2
    assert len(waits) == 1


@pytest.mark.parametrize("retries", [0, 3])
def test_a_fault_that_stays_stops_and_is_no_zero(retries, waits):
    with serving(ERROR) as endpoint, pytest.raises(RolloutError, match="status 500") as caught:
        ask(make(endpoint, retries=retries))
    assert len(endpoint.requests) == retries + 1 == len(waits) + 1
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("status", [201, 204, 301, 400, 401, 403, 404, 422])
def test_other_answers_stop_at_once(status, waits):
    with (
        serving(reply(b'{"scores": [1, 2]}', status)) as endpoint,
        pytest.raises(RolloutError, match=f"status {status}"),
    ):
        ask(make(endpoint))
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "body", [b'{"scores": [1]}', b'{"scores": [1, 2, 3]}', b'{"scores": [1, "2"]}',
             b'{"scores": [1, true]}', b'{"scores": [1, [2]]}',
             b'{"scores": [1, 1%s]}' % (b"0" * 400)]
)  # fmt: skip
def test_a_wrong_count_or_type_stops_at_once(body, waits):
    with serving(reply(body)) as endpoint, pytest.raises(RolloutError, match="one number or null"):
        ask(make(endpoint))
    assert len(endpoint.requests) == 1


def test_waits_grow_with_jitter_up_to_a_cap(waits):
    with serving(ERROR) as endpoint:
        for _ in range(4):
            with pytest.raises(RolloutError):
                ask(make(endpoint, retries=4, backoff_seconds=1, backoff_cap_seconds=3))
    for attempt, longest in enumerate([1, 2, 3, 3]):
        those = waits[attempt::4]
        assert all(longest / 2 <= wait <= longest for wait in those)
        assert len(set(those)) == 4


@pytest.mark.parametrize(
    ("asked", "cap", "least", "most"),
    [
        ("7", 60, 7, 7),
        ("7", 5, 5, 5),
        ("0", 60, 0, 0),
        ("-3", 60, 0, 0),
        ("in an hour", 9000, 3590, 3600),
        (formatdate(0, usegmt=True), 60, 0, 0),
        ("soon", 60, 0.25, 0.5),
        ("nan", 60, 0.25, 0.5),
    ],
)
def test_retry_after_counts_up_to_the_cap(asked, cap, least, most, waits):
    if asked == "in an hour":
        asked = formatdate(time.time() + 3600, usegmt=True)
    with serving(reply(b"", 429, Retry_After=asked), scores(1, 2)) as endpoint:
        assert ask(make(endpoint, backoff_cap_seconds=cap)).values == [1, 2]
    assert least <= waits[0] <= most


def sleeper(handler):
    time.sleep(3)


def trickle(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(30):
        handler.wfile.write(b" ")
        time.sleep(0.1)


def trickling_headers(handler):
    for character in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 30:
        handler.wfile.write(bytes([character]))
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("answer", "limit"),
    [
        (sleeper, {"read_timeout": 0.3}),
        (sleeper, {"total_timeout": 0.3}),
        (trickle, {"total_timeout": 0.5}),
        (trickling_headers, {"total_timeout": 0.5}),
        (trickle, {"read_timeout": 0.05}),
    ],
)
def test_a_slow_endpoint_is_given_up(answer, limit, waits):
    with serving(answer) as endpoint:
        begin = time.monotonic()
        with pytest.raises(RolloutError, match="did not answer in time, 2 times"):
            ask(make(endpoint, retries=1, **limit))
        assert time.monotonic() - begin < 2.0
    assert len(endpoint.requests) == 2


def test_a_length_that_is_a_lie_is_not_read_into_memory(waits):
    """http.client takes a chunk of -1 bytes for all that comes."""
    sent = []

    def endless(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
        for _ in range(500):
            sent.append(handler.wfile.write(bytes(1 << 20)))

    with serving(endless) as endpoint, pytest.raises(RolloutError, match="answered more than"):
        ask(make(endpoint, response_kb=1024))
    assert sum(sent) < 100 << 20
    assert len(endpoint.requests) == 1


def test_a_slow_but_steady_endpoint_is_waited_for(waits):
    def slow(handler):
        time.sleep(0.5)
        scores(1, 2)(handler)

    with serving(slow) as endpoint:
        assert ask(make(endpoint, read_timeout=5)).values == [1, 2]


def test_a_connection_that_is_never_taken(waits):
    """A full queue of a server that never accepts: the connect timeout ends it."""
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for other in (first, second):
            other.setblocking(False)
            other.connect_ex(server.getsockname())
        begin = time.monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(RolloutError, match="in time"):
            ask(make(url, retries=0, connect_timeout=0.3))
        assert time.monotonic() - begin < 2.0


def test_a_refused_connection_is_tried_again(waits):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RolloutError, match=r"refused.*3 times"):
        ask(make(f"http://127.0.0.1:{port}/"))
    assert len(waits) == 2


def test_a_gigabyte_is_cut_off_after_the_cap(waits):
    sent = []

    def flood(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        for _ in range(1024):
            handler.wfile.write(chunk)
            sent.append(1 << 20)

    with serving(flood) as endpoint:
        tracemalloc.start()
        try:
            with pytest.raises(RolloutError, match="more than 1048576 bytes"):
                ask(make(endpoint, response_kb=1024))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert len(endpoint.requests) == 1
    assert sum(sent) < 32 << 20
    assert peak < 16 << 20


def test_the_cap_is_a_field():
    body = json.dumps({"scores": [1, 2], "notes": "x" * 3000}).encode()
    with serving(reply(body)) as endpoint:
        assert ask(make(endpoint, response_kb=4)).values == [1, 2]
        with pytest.raises(RolloutError, match="2048 bytes"):
            ask(make(endpoint, response_kb=2))


@pytest.mark.parametrize("beyond", [0, 1])
def test_the_cap_is_exact(beyond):
    """Just beyond it, where the larger cap on all that comes over the socket does not help."""
    body = json.dumps({"scores": [1, 2]}).encode().ljust(2048 + beyond)
    with serving(reply(body)) as endpoint:
        if not beyond:
            assert ask(make(endpoint, response_kb=2)).values == [1, 2]
            return
        with pytest.raises(RolloutError, match="more than 2048 bytes"):
            ask(make(endpoint, response_kb=2))


def test_no_redirect_is_followed(waits):
    with serving(scores(1, 2)) as inner:
        for status in (301, 302, 303, 307, 308):
            with (
                serving(reply(b"", status, Location=inner.url)) as endpoint,
                pytest.raises(RolloutError, match="redirects are not followed"),
            ):
                ask(make(endpoint))
            assert len(endpoint.requests) == 1
        assert inner.requests == []


def test_the_proxy_environment_is_not_trusted(monkeypatch):
    with serving(scores(9, 9)) as proxy, serving(scores(1, 2)) as endpoint:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert ask(make(endpoint)).values == [1, 2]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "10.1.2.3", "172.16.0.1", "192.168.1.1", "0.0.0.0",
             "169.254.169.254", "224.0.0.1", "100.64.0.1", "[fe80::1]", "[fd00::1]", "[ff02::1]",
             "[::ffff:127.0.0.1]", "[::ffff:169.254.169.254]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
             "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "2130706433", "0x7f.1", "[::]",
             "[fec0::1]", "[4000::1]"]
)  # fmt: skip
def test_private_addresses_are_refused(host, waits, monkeypatch):
    monkeypatch.setattr(_request, "post", None)
    with pytest.raises(RolloutError, match="not a public address"):
        ask(make(f"http://{host}/", allow_private=False))
    assert waits == []


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_not(address):
    where = _address.target(f"http://[{address}]/" if ":" in address else f"http://{address}/")
    assert _address.resolve(where, allow_private=False)


def named(monkeypatch, *answers):
    """Looking any name up gives these addresses, one list per look-up; returns the look-ups."""
    looked: list[str] = []

    def getaddrinfo(host, port, **_):
        looked.append(host)
        found = answers[min(len(looked), len(answers)) - 1]
        if isinstance(found, OSError):
            raise found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(_address.socket, "getaddrinfo", getaddrinfo)
    return looked


@pytest.mark.parametrize("found", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"]])
def test_a_name_that_leads_to_a_private_address_is_refused(found, monkeypatch):
    named(monkeypatch, found)
    with pytest.raises(RolloutError, match="not a public address"):
        ask(make("http://judge.test/", allow_private=False))


def test_a_name_that_leads_elsewhere_later_is_not_followed(monkeypatch, waits):
    looked = named(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    reached = []

    class Socket:
        def __init__(self, family):
            assert family == socket.AF_INET

        def settimeout(self, seconds):
            pass

        def connect(self, address):
            reached.append(address)
            raise ConnectionRefusedError(111, "refused")

        def close(self):
            pass

    fake = SimpleNamespace(socket=Socket, AF_INET=socket.AF_INET, AF_INET6=socket.AF_INET6)
    monkeypatch.setattr(_request, "socket", fake)
    reward = make("http://judge.test/", allow_private=False)
    for _ in range(2):
        with pytest.raises(RolloutError, match="refused"):
            ask(reward)
    assert reached == [("8.8.8.8", 80)] * 6
    assert looked == ["judge.test"]


def test_a_name_server_that_fails_is_asked_again(monkeypatch, waits):
    with serving(scores(1, 2)) as endpoint:
        looked = named(monkeypatch, socket.gaierror(-3, "try again"), ["127.0.0.1"])
        assert ask(make(f"http://judge.test:{endpoint.port}/")).values == [1, 2]
    assert len(looked) == 2
    assert endpoint.headers[0]["Host"] == f"judge.test:{endpoint.port}"


def test_the_next_address_serves_when_the_first_is_dead(monkeypatch, waits):
    with serving(scores(1, 2)) as endpoint:
        named(monkeypatch, ["127.0.0.2", "127.0.0.1"])
        assert ask(make(f"http://judge.test:{endpoint.port}/", retries=0)).values == [1, 2]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate for judge.test."""
    place = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=judge.test"
    command += " -addext subjectAltName=DNS:judge.test -keyout key.pem -out cert.pem"
    try:
        subprocess.run(command.split(), cwd=place, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl")
    return place


@pytest.fixture
def secure(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


def test_tls_checks_the_name_though_the_address_is_pinned(secure, certificate, monkeypatch, waits):
    asked = []
    secure.sni_callback = lambda _, name, __: asked.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    named(monkeypatch, ["127.0.0.1"])
    with serving(scores(1, 2), secure=secure) as endpoint:
        assert ask(make(f"https://judge.test:{endpoint.port}/")).values == [1, 2]
        with pytest.raises(RolloutError, match=r"certificate: .*other\.test"):
            ask(make(f"https://other.test:{endpoint.port}/"))
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(RolloutError, match="certificate: "):
            ask(make(f"https://judge.test:{endpoint.port}/"))
    assert asked == ["judge.test", "other.test", "judge.test"]
    assert waits == []


def test_headers_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", f"Bearer {SECRET}")
    with serving(scores(1, 2)) as endpoint:
        reward = make(endpoint, headers_env={"Authorization": "JUDGE_TOKEN"})
        assert ask(reward).values == [1, 2]
    assert endpoint.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in repr(reward)
    assert SECRET not in repr(vars(reward))


@pytest.mark.parametrize("value", [None, "", f"{SECRET}\n", f"{SECRET}\r\nX: y", f"{SECRET}ß"])
def test_a_variable_that_is_no_header_is_named_but_not_shown(value, monkeypatch):
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_TOKEN", value)
    with serving(scores(1, 2)) as endpoint, pytest.raises(UsageError) as caught:
        ask(make(endpoint, headers_env={"Authorization": "JUDGE_TOKEN"}))
    assert "JUDGE_TOKEN" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert endpoint.requests == []


def echo(handler):
    reply(handler.headers["Authorization"].encode())(handler)


@pytest.mark.parametrize("answer", [ERROR, reply(b"", 401), echo, scores(1)])
def test_no_error_shows_a_secret(answer, monkeypatch, waits):
    import traceback

    monkeypatch.setenv("JUDGE_TOKEN", SECRET)
    with serving(answer) as endpoint, pytest.raises(RolloutError) as caught:
        ask(make(f"{endpoint.url}/{SECRET}?key={SECRET}", headers_env={"X-Key": "JUDGE_TOKEN",
                 "Authorization": "JUDGE_TOKEN"}))  # fmt: skip
    assert endpoint.paths[0] == f"/judge/{SECRET}?key={SECRET}"
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert f"http://127.0.0.1:{endpoint.port}" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": "ftp://host/"}, "http://"),
        ({"url": "file:///etc/passwd"}, "http://"),
        ({"url": f"http://me:{SECRET}@host/"}, "headers_env"),
        ({"url": "http:///path"}, "host"),
        ({"url": "http://host/a b"}, "blank"),
        ({"url": "http://host/\r\nX: y"}, "blank"),
        ({"url": "http://host:99999/"}, "range"),
        ({"url": "http://host/", "headers": {"Authorization": SECRET}}, "headers"),
        ({"url": "http://host/", "retries": -1}, "retries"),
    ],
)
def test_wrong_fields_are_usage_errors(fields, words):
    with pytest.raises(UsageError, match=words) as caught:
        rewards.make({"name": "http", **fields})
    assert SECRET not in str(caught.value)


def test_columns_that_cannot_be_sent():
    with serving(scores(1, 2)) as endpoint:
        with pytest.raises(DataError, match="gold"):
            ask(make(endpoint, columns=["gold"]))
        for value in (object(), float("nan")):
            with pytest.raises(DataError, match="JSON"):
                ask(make(endpoint, columns=["gold"]), gold=["a", value])
    assert endpoint.requests == []
