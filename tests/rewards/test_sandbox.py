"""Hostile programs end within their limits, and the host is as it was."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import truing
from sandboxes import children, host, sandboxed, until
from truing.errors import RolloutError
from truing.rewards import _sandbox
from truing.rewards._jail import _walls
from truing.rewards._sandbox import Limits, require, run_script, run_tests

SECONDS = 2.0
__all__ = ["host"]  # a fixture
LIMITS = Limits(SECONDS, memory_bytes=256 << 20, output_bytes=64 << 10, file_bytes=1 << 20)


def script(program: str, stdin: str = "", limits: Limits = LIMITS):
    begin = time.monotonic()
    output = run_script(program, stdin, limits)
    assert time.monotonic() - begin < limits.seconds + 5.0
    assert len(output.text) <= limits.output_bytes + (1 << 16)
    return output


STOPPED = {
    "endless loop": "while True: pass",
    "sleep": "import time; time.sleep(1000)",
    "fork bomb": "import os\nwhile True: os.fork()",
    "stubborn fork bomb": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "thread bomb": "import threading, time\n"
    "while True: threading.Thread(target=time.sleep, args=(9,)).start()",
    "subprocess": "import subprocess; subprocess.run(['/bin/sleep', '1000'])",
    "exec": "import os; os.execv('/bin/sleep', ['sleep', '1000'])",
    "daemon": "import os\nif os.fork() == 0:\n  os.setsid()\n"
    "  if os.fork() == 0:\n    import time; time.sleep(1000)",
    "memory at once": "x = bytearray(1 << 40)",
    "memory by and by": "x = []\nwhile True: x.append(bytes(1 << 20))",
    "one large file": "f = open('a', 'wb')\nwhile True: f.write(bytes(1 << 16)); f.flush()",
    "many files": "import itertools\n"
    "for i in itertools.count(): open(str(i), 'wb').write(bytes(1 << 18))",
    "too many names": "import time\nfor i in range(300): open(str(i), 'w').close()",
    "files that come and go": "import os\nwhile True:\n"
    "  for i in range(9): open(str(i), 'w').write('x' * 99)\n"
    "  for i in range(9): os.truncate(str(i), 0)",
    "files that nobody sees": "import mmap, os\nkept = []\nwhile True:\n"
    "  f = open('a', 'w+b'); f.write(bytes(1 << 22)); f.flush()\n"
    "  kept.append(mmap.mmap(f.fileno(), 4096)); f.close(); os.unlink('a')",
    "huge output": "while True: print('x' * 1000)",
    "much output": "print('x' * 200_000)",
    "reads for ever": "import sys\nwhile True: sys.stdin.read()",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f() + [0]\nf()",
    "closed output": "import os, time; os.close(1); os.close(2); time.sleep(1000)",
    "stopped by itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "ignored signals": "import signal\n"
    "for s in range(1, 64):\n  try: signal.signal(s, signal.SIG_IGN)\n  except OSError: pass\n"
    "while True: pass",
    "abort": "import os; os.abort()",
    "os._exit(3)": "import os; os._exit(3)",
    "sys.exit(1)": "import sys; sys.exit(1)",
    "syntax error": "def",
    "null byte": "x = '\0'",
    "lone surrogate": "x = '\ud800'",
    "nothing to import": "import numpy, truing",
}


@sandboxed
@pytest.mark.parametrize("name", STOPPED)
def test_a_hostile_program_is_stopped(name, host):
    assert not script(STOPPED[name]).finished


@sandboxed
def test_a_harmless_program_has_python(host):
    program = """
import asyncio, decimal, hashlib, json, sys, tempfile
async def wait(): await asyncio.sleep(0.01); return sys.stdin.readline().strip()
tempfile.tempdir = "."
with tempfile.TemporaryFile() as file: file.write(b"x" * 1000)
open("own", "w").write("mine")
print(asyncio.run(wait()), open("own").read(), hashlib.sha256(b"").hexdigest()[:6], __name__)
"""
    output = script(program, "wörd\nrest")
    assert output.text.decode() == "wörd mine e3b0c4 __main__\n"
    assert output.finished


@sandboxed
def test_output_need_not_be_utf8(host):
    output = script("import sys; sys.stdout.buffer.write(b'\\xff\\x00')", "\udcff")
    assert (output.text, output.finished) == (b"\xff\x00", True)


ATTEMPTS = """
import json, os, sys
places = json.loads(sys.stdin.read())
def attempt(name, action):
    try: action()
    except OSError: return
    print("did", name)
"""


@sandboxed
def test_nothing_outside_is_written_or_changed(host, tmp_path):
    places = [str(host / "new"), str(tmp_path / "new"), "../new", "/dev/shm/truing-new", "/tmp/t-n"]
    actions = """
for place in places:
    attempt(place, lambda: open(place, "w"))
    attempt(place, lambda: os.mkdir(place))
    attempt(place, lambda: os.symlink("x", place))
    attempt(place, lambda: os.open(os.path.dirname(place), os.O_TMPFILE | os.O_RDWR))
    attempt(place, lambda: os.link("/etc/passwd", place))
    attempt(place, lambda: os.mkfifo(place))
victim = places[0].replace("new", "victim")
attempt("append", lambda: open(victim, "a"))
attempt("truncate", lambda: os.truncate(victim, 0))
attempt("empty while reading", lambda: os.open(victim, os.O_RDONLY | os.O_TRUNC))
attempt("mode", lambda: os.chmod(victim, 0o777))
attempt("owner", lambda: os.chown(victim, 1, 1))
attempt("times", lambda: os.utime(victim, (1, 1)))
attempt("attribute", lambda: os.setxattr(victim, "user.x", b"x"))
attempt("unlink", lambda: os.unlink(victim))
attempt("rename", lambda: os.rename(victim, "taken"))
attempt("link", lambda: os.link(victim, "taken"))
attempt("folder", lambda: os.mkdir("own"))
open("own", "w").close()
attempt("empty its own while reading", lambda: os.open("own", os.O_RDONLY | os.O_TRUNC))
attempt("hidden memory", lambda: os.memfd_create("x"))
print("end")
"""
    assert script(ATTEMPTS + actions, json.dumps(places)).text == b"end\n"
    assert not any((host / place).exists() for place in places)


@sandboxed
def test_secrets_are_not_read(host):
    actions = """
print(dict(os.environ))
parent = os.getppid()
for place in [f"/proc/{parent}/environ", "/proc/self/environ", "/etc/passwd", "/etc/hostname",
              "/proc/self/maps", *places]:
    attempt(place, lambda: print(open(place).read()))
attempt("list", lambda: print(os.listdir(os.path.dirname(places[0]))))
print("end")
"""
    text = script(ATTEMPTS + actions, json.dumps([str(host / "victim")])).text.decode()
    assert "canary" not in text
    assert "did" not in text
    assert text.endswith("end\n")


@sandboxed
def test_there_is_no_network(host, tmp_path):
    place = str(tmp_path / "socket")
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        unix.bind(place)
        actions = """
import socket
tcp, udp, unix = places
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", tcp), 1))
attempt("udp", lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", udp)))
attempt("dns", lambda: socket.getaddrinfo("example.com", 80))
attempt("listen", lambda: socket.create_server(("127.0.0.1", 0)))
attempt("unix", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).connect(unix))
one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
attempt("pair", lambda: one.sendto(b"x", unix))
attempt("pair", lambda: one.sendmsg([b"x"], [], 0, unix))
attempt("pair", lambda: one.connect(unix))
one.send(b"ok")
print(two.recv(9))
"""
        ports = [tcp.getsockname()[1], udp.getsockname()[1], place]
        assert script(ATTEMPTS + actions, json.dumps(ports)).text == b"b'ok'\n"
        for server in (tcp, udp, unix):
            server.setblocking(False)
        with pytest.raises(BlockingIOError):
            tcp.accept()
        for server in (udp, unix):
            with pytest.raises(BlockingIOError):
                server.recv(9)


@sandboxed
def test_other_processes_are_left_alone(host):
    actions = """
import ctypes, fcntl, resource, signal
parent, bystander = os.getppid(), places[0]
def call(name, *arguments):
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) < 0: raise OSError(ctypes.get_errno(), name)
for other in (parent, bystander):
    attempt("kill", lambda: os.kill(other, signal.SIGTERM))
    attempt("group", lambda: os.killpg(other, signal.SIGTERM))
    attempt("limits", lambda: resource.prlimit(other, resource.RLIMIT_NOFILE))
    attempt("handle", lambda: os.pidfd_open(other))
    attempt("trace", lambda: call("ptrace", 16, other, 0, 0))
    attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, other, 19))
    attempt("cores", lambda: os.sched_setaffinity(other, {0}))
    read, write = os.pipe()
    attempt("signal by file", lambda: fcntl.fcntl(read, fcntl.F_SETOWN, other))
attempt("shared memory", lambda: call("shmget", 4711, 4096, 0o1600))
attempt("session", os.setsid)
attempt("root", lambda: os.chroot("."))
attempt("namespace", lambda: call("unshare", 0x10000000))
def raise_limit():
    try: resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    except ValueError as error: raise OSError from error
attempt("limits", raise_limit)
print("end")
"""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        try:
            assert script(ATTEMPTS + actions, json.dumps([bystander.pid])).text == b"end\n"
            assert bystander.poll() is None
        finally:
            bystander.kill()


@sandboxed
def test_descriptors_of_the_host_are_not_inherited(host):
    with open(host / "victim", "r+") as file:
        os.set_inheritable(file.fileno(), True)
        program = "import os\nfor fd in range(3, 256):\n  try: os.fstat(fd); print(fd)\n" + (
            "  except OSError: pass\n"
        )
        assert script(program).text == b""


@sandboxed
@pytest.mark.parametrize(
    ("tighter", "program"),
    [
        ({"seconds": 0.6}, "import time; time.sleep(0.8)"),
        ({"memory_bytes": 96 << 20}, "x = bytes(100 << 20)"),
        ({"output_bytes": 10}, "print('x' * 20)"),
        ({"file_bytes": 1 << 16}, "open('x', 'wb').write(bytes(1 << 17))"),
    ],
    ids=str,
)
def test_every_limit_binds_at_its_size(tighter, program, host):
    limits = {name: getattr(LIMITS, name) for name in Limits.__slots__}
    assert run_script(program, "", LIMITS).finished
    assert not run_script(program, "", Limits(**{**limits, **tighter})).finished


@sandboxed
def test_it_dies_with_truing(host, tmp_path):
    """A killed run leaves no program behind."""
    code = (
        "from truing.rewards._sandbox import *\n"
        'program = \'import time; open("ready", "w"); time.sleep(60)\'\n'
        "run_script(program, '', Limits(60, 1 << 28, 9, 1 << 20))"
    )
    source = str(Path(truing.__file__).parents[1])  # not sys.path: tests have names of their own
    env = {**os.environ, "PYTHONPATH": source, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=env) as run:
        until(lambda: any(tmp_path.glob("truing-code-*/ready")), 30)
        (program,) = children(run.pid)
        run.send_signal(signal.SIGKILL)
    try:
        until(lambda: _is_dead(program), 10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(program, signal.SIGKILL)


def _is_dead(process: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


@sandboxed
def test_root_is_a_person_like_others_inside(host):
    """No capability is left, so that limits and owners bind root as well."""
    limits = {"seconds": 5, "memory_bytes": 1 << 28, "file_bytes": 1 << 16}
    code = f"""
import sys
sys.path.append({str(Path(_sandbox.__file__).parent)!r})
from _jail import _walls
status = open("/proc/self/status")
_walls.raise_walls(None, **{limits!r})
print([line.split()[1].strip("0") for line in status if line[:6] in ("CapEff", "CapPrm")])
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True)
    assert done.stdout == b"['', '']\n"


def test_a_machine_without_walls_is_refused(monkeypatch):
    require.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RolloutError, match=r"Linux 5\.13"):
        run_tests("x = 1", ["assert x == 1"], LIMITS)


@sandboxed
@pytest.mark.parametrize(
    ("place", "old", "new", "words"),
    [
        ("_walls.py", "CREATE_RULESET, None", "9999, None", "no Landlock"),
        ("_calls.py", "libseccomp.so.2", "libseccomp.so.none", "apt install libseccomp2"),
        ("_start.py", 'raise_walls(job.pop("folder")', 'str(job.pop("folder")', "did not come up"),
        ("_walls.py", "        close_calls()", "        pass", "got out: network"),
        ("_walls.py", "        _close_files(readable, folder)", "        pass", "writes reads"),
    ],
)
def test_a_missing_wall_is_found_before_anything_runs(
    place, old, new, words, tmp_path, monkeypatch
):
    home = Path(_sandbox.__file__).parent
    shutil.copytree(home / "_jail", tmp_path / "_jail")
    file = tmp_path / "_jail" / place
    assert file.read_text().count(old) == 1
    file.write_text(file.read_text().replace(old, new))
    monkeypatch.setattr(_sandbox, "__file__", str(tmp_path / "_sandbox.py"))
    require.cache_clear()
    with pytest.raises(RolloutError, match=words):
        run_tests("x = 1", ["assert x == 1"], LIMITS)


def test_an_interpreter_that_is_not_there():
    with pytest.raises(RolloutError, match="does not start"):
        run_script("", "", LIMITS, "/nowhere/python")


def test_the_walls_name_python_s_own_folders_only():
    folders = _walls.python_folders()
    assert not {"/", "/etc", "/tmp", "/home", "/proc", str(Path.home())} & set(folders)
