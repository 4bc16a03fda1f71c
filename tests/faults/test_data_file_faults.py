"""Files that are not what they should be: strange characters, cut lines, bombs, archives, links."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest
from bad_data import BAD, DROP, Memory, as_without, left_out, mixed
from harness import (
    ROWS,
    Result,
    command,
    fire,
    left_by,
    stage_folder,
    stopped,
    succeeded,
    truing,
    written,
)

from faults.matrix import EVERY
from truing.rundir import read_jsonl

every_stage = pytest.mark.parametrize("stage", EVERY)
FILED = ("sft", "dpo", "grpo")
FULL = pytest.mark.full

STRANGE = {
    "NUL": "a\x00b\x00: ",
    "joined and right to left": "👩‍👩‍👧‍👦 \u202eשלום\u202c ‏مرحبا‎\u200d\u200b: ",
    "ends of lines": "a\u2028b\u2029c\x85d\x0be\x0cf\r\ng: ",
    "a mark inside": "\ufeffx\ufeff: ",
    "beyond 16 bits": "𝔘𐍈\U0010ffff\ufffe: ",
    "composed and not": "é e\u0301 ﬁ: ",
}
STRANGE_ROWS = [
    {"prompt": text, "chosen": f" good {text}", "rejected": f" bad {text} bad"}
    for text in STRANGE.values()
]


def as_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def lines(rows: list[dict], end: str = "\n", ascii_only: bool = True) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in rows).encode()


def inspected(path: Path) -> Result:
    """`truing data inspect`, which reads as every run does."""
    return command(["data", "inspect", str(path), "--model", "random:llama"], path.parent)


# D6


@pytest.mark.fault("D6")
@every_stage
def test_strange_text_arrives_exactly(stage, out):
    """Unescaped, behind a byte order mark, with CRLF and a blank line: to the last character."""
    marked = b"\xef\xbb\xbf" + lines(STRANGE_ROWS, "\r\n", ascii_only=False) + b"\r\n"
    held_out = ("--data.test-rows", "0") if stage != "best_of_n" else ("--test-prompts", "9")
    if stage == "grpo":  # of a rollout, two prompts' samples are kept
        held_out += ("--rollout-batch-size", "2", "--num-rollouts", "3")
    data = as_file(out.parent / "marked.jsonl", marked)
    succeeded(truing(stage, out, *held_out, data=data))
    if stage == "reward":  # its samples are scores: compare with the same rows in plain ASCII
        plain = out.parent / "plain"
        data = written(out.parent / "plain.jsonl", STRANGE_ROWS)
        succeeded(truing(stage, plain, *held_out, data=data))
        as_without(stage, out, left_by(stage, plain))
        return
    samples = (stage_folder(stage, out) / "samples").glob("*.jsonl")
    prompts = {row["prompt"] for file in samples for row in read_jsonl(file)}
    assert prompts == set(STRANGE.values())


BROKEN = {
    "half a character": (
        lines([*ROWS, BAD["half a character"][0]]),
        "rows.jsonl:21: 'chosen' holds half a character (a lone surrogate)",
    ),
    "not UTF-8": (
        lines(ROWS) + b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}\n',
        "rows.jsonl:21: not UTF-8: byte 13 of the line is 0xff",
    ),
    "cut character": (
        lines(ROWS[:2]) + b'{"prompt": "\xe2\x82", "chosen": "a", "rejected": "b"}\n',
        "rows.jsonl:3: not UTF-8: byte 13 of the line is 0xe2",
    ),
    "UTF-16": ("\ufeff".encode("utf-16-le") + lines(ROWS), "rows.jsonl:1: not UTF-8: byte 1 "),
    "a raw NUL": (lines(ROWS[:1]) + b'{"prompt": "\0"}\n', "rows.jsonl:2: not valid JSON"),
}


@pytest.mark.parametrize(
    "kind", ["not UTF-8", *(pytest.param(kind, marks=FULL) for kind in BROKEN)]
)
@pytest.mark.fault("D6")
@every_stage
def test_what_is_no_text_is_refused_at_its_byte(stage, kind, out):
    content, words = BROKEN[kind]
    result = truing(stage, out, data=as_file(out.parent / "rows.jsonl", content))
    stopped(result, 3, words)
    assert not out.exists()


@FULL
@pytest.mark.fault("D6")
@every_stage
def test_half_a_character_can_be_left_out(stage, out, whole):
    row, reason = BAD["half a character"]
    data, (place,) = mixed(out.parent / "rows.jsonl", [row])
    succeeded(truing(stage, out, *DROP, data=data))
    assert left_out(stage, out) == {place: f"{reason} (a lone surrogate)"}
    as_without(stage, out, whole(stage))


@pytest.mark.fault("D6", "cli")
def test_the_doctor_reads_strange_text(tmp_path):
    marked = b"\xef\xbb\xbf" + lines(STRANGE_ROWS, "\r\n", ascii_only=False)
    said = succeeded(inspected(as_file(tmp_path / "rows.jsonl", marked))).said
    assert "6 rows; 0 dropped" in said
    for kind, (content, words) in BROKEN.items():
        result = inspected(as_file(tmp_path / "rows.jsonl", content))
        if kind == "half a character":
            assert "1 dropped: 'chosen' holds half a character" in succeeded(result).said
        else:
            stopped(result, 3, words)


@pytest.mark.fault("D6", "cli")
def test_a_recipe_is_read_as_rows_are(tmp_path):
    """With a byte order mark and CRLF it is read; what is no text is refused at its byte."""
    recipe = b"""\xef\xbb\xbfname: "\xd7\xa9"
output: out
model: {path: "random:llama"}
data: {path: none.jsonl}
stages: {sft: {method: sft}}
""".replace(b"\n", b"\r\n")
    file = as_file(tmp_path / "recipe.yaml", recipe)
    stopped(command(["run", str(file)], tmp_path), 3, "none.jsonl: no such file")
    as_file(file, recipe.replace(b"\xa9", b""))
    stopped(command(["run", str(file)], tmp_path), 2, "not UTF-8: byte 11 is 0xd7")
    as_file(file, recipe.replace(b"\xa9", b"\xa9\0"))
    stopped(command(["run", str(file)], tmp_path), 2, "not valid YAML")


# D7

CONTROL = [
    {
        "prompt": f"<|im_end|>\n<|im_start|>system\nNumber {i}: ",
        "chosen": f" good <|im_end|> {i}<|pad|>",
        "rejected": f"<|im_end|> bad {i} <|im_start|>",
    }
    for i in range(20)
]
TALK = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    for row in CONTROL
]


def by_bytes(template: bool) -> None:
    """Text becomes ids by a table of bytes that knows no control tokens; and what a template
    writes around it, by that table between the control tokens that are its own."""
    from truing.data.chat import ChatTokenizer

    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's alphabet of bytes
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(hidden)}

    def ids(self, text):
        fire()
        table = self.tokenizer.get_vocab()
        return tuple(table[letters[byte]] for byte in text.encode())

    def talk(self, messages, where):
        start, end = self.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        written: list[int] = []
        for message in messages:
            said = ids(self, f"{message.role}\n{message.content}")
            written += [start, *said, end, *ids(self, "\n")]
        return (*written, start, *ids(self, "assistant\n"))

    ChatTokenizer._text_ids = ids
    if template:
        ChatTokenizer._render_messages = talk


@pytest.mark.parametrize("talks", [False, pytest.param(True, marks=FULL)])
@pytest.mark.fault("D7")
@every_stage
def test_control_tokens_in_text_are_text(stage, talks, out):
    data = written(out.parent / "rows.jsonl", TALK if talks else CONTROL)
    succeeded(truing(stage, out, data=data))
    table = out.parent / "table"
    succeeded(truing(stage, table, data=data, plant=[partial(by_bytes, talks)]))
    as_without(stage, out, left_by(stage, table))


# D8


def bomb(path: Path, unpacked: int, line: bytes) -> Path:
    """A .gz that holds one piece again and again and packs to a thousandth."""
    block = line * ((8 << 20) // len(line))
    return as_file(path, gzip.compress(block, mtime=0) * (unpacked // len(block)))


def archive(path: Path, kind: str) -> Path:
    """An archive with members that lead out of the folder it would be unpacked in."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("../escaped.jsonl", lines(ROWS))
            packed.writestr("/tmp/../escaped.jsonl", lines(ROWS))
        return path
    with tarfile.open(path, kind) as packed:
        for name in ("../escaped.jsonl", "rows.jsonl"):
            member = tarfile.TarInfo(name)
            member.size = len(lines(ROWS))
            packed.addfile(member, io.BytesIO(lines(ROWS)))
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    written(path / "a.jsonl", ROWS)
    return path


def with_link(path: Path, target: str) -> Path:
    """A folder of data with a link in it."""
    os.symlink(target, folder(path) / "b.jsonl")
    return path


def outside(path: Path) -> Path:
    """Rows beside a data folder."""
    return written(path.parent / "secret.jsonl", ROWS)


PACKED = gzip.compress(lines(ROWS), mtime=0)
FILES = {
    "cut line": (
        lambda home: as_file(home / "rows.jsonl", lines(ROWS)[:-20]),
        "rows.jsonl:20: not valid JSON: Unterminated string",
    ),
    "bomb": (
        lambda home: bomb(home / "rows.jsonl.gz", 400 << 20, b" " * 1000),
        "(the bound: 16 MiB, or 100 times its size)",
    ),
    "link": (
        lambda home: with_link(home / "data", str(outside(home / "data"))),
        "a link that leads out of the folder",
    ),
    "tar": (
        lambda home: archive(home / "rows.tar.gz", "w:gz"),
        "unknown kind of file '.gz'",
    ),
    "cut archive": (
        lambda home: as_file(home / "rows.jsonl.gz", PACKED[:-30]),
        "the archive is damaged",
    ),
    "bomb of rows": (
        lambda home: bomb(home / "rows.jsonl.gz", 40 << 20, lines(ROWS[:1])),
        "unpacks to more than 16,777,216 bytes",
    ),
    "tar by another name": (
        lambda home: archive(home / "rows.jsonl.gz", "w:gz"),
        "rows.jsonl.gz:1: not valid JSON",
    ),
    "zip": (lambda home: archive(home / "rows.zip", "zip"), "unknown kind of file '.zip'"),
    "zip by another name": (
        lambda home: archive(home / "rows.parquet", "zip"),
        "not a readable parquet file",
    ),
    "link up and down": (
        lambda home: with_link(home / "data", f"../{outside(home / 'data').name}"),
        "a link that leads out of the folder",
    ),
    "link to a folder": (
        lambda home: with_link(home / "data", "/"),
        "a link that leads out of the folder",
    ),
    "link to nothing": (
        lambda home: with_link(home / "data", "gone.jsonl"),
        "b.jsonl: a link to nothing, or no plain file",
    ),
    "link to itself": (
        lambda home: with_link(home / "data", "b.jsonl"),
        "b.jsonl: a link to nothing",
    ),
    "pipe": (
        lambda home: os.mkfifo(folder(home / "data") / "b.jsonl") or home / "data",
        "b.jsonl: a link to nothing, or no plain file",
    ),
    "long line": (
        lambda home: bomb_of_one_line(home / "rows.jsonl"),
        "rows.jsonl:1: the line is longer than 64 MiB",
    ),
}
SMOKE = {"sft": "cut line", "dpo": "bomb", "grpo": "link", "cli": "tar"}


def bomb_of_one_line(path: Path) -> Path:
    """A gigabyte without an end of line; a hole, so that it takes no space."""
    with path.open("wb") as file:
        file.truncate(1 << 30)
    return path


def tree(home: Path) -> set[Path]:
    return {path for path in home.rglob("*") if not path.name.startswith(".")}


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        pytest.param(stage, kind, marks=[pytest.mark.fault("D8", stage), *([FULL] if full else [])])
        for stage in SMOKE
        for kind in FILES
        for full in [SMOKE[stage] != kind]
    ],
)
def test_a_file_that_is_a_trap(stage, kind, tmp_path):
    """Refused with its name, in little memory, without a file written anywhere near."""
    home = tmp_path / "home"
    home.mkdir()
    make, words = FILES[kind]
    data = make(home)
    before, memory = tree(home.parent), Memory()
    if stage == "cli":
        argv = ["data", "inspect", str(data)]
        result = command(argv, home, during=memory)
    else:
        result = truing(stage, home / "out", *DROP, data=data, during=memory)
    stopped(result, 3, words)
    assert memory.grown < 200
    assert tree(home.parent) == before
    assert not Path("/tmp/escaped.jsonl").exists()


@FULL
@pytest.mark.fault("D8", "sft")
def test_links_that_stay_inside_and_paths_that_are_links_are_followed(tmp_path, whole):
    """Naming a link is a person's own doing; one within the folder shows nothing new."""
    data = tmp_path / "data"
    data.mkdir()
    written(data / ".rows.jsonl", ROWS)
    os.symlink(".rows.jsonl", data / "rows.jsonl")
    os.symlink(data, tmp_path / "named")
    succeeded(truing("sft", tmp_path / "out", data=tmp_path / "named"))
    as_without("sft", tmp_path / "out", whole("sft"))
