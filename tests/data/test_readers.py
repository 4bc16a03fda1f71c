from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from truing.data.readers import MOST_RATIO, MOST_UNPACKED, Row, read_rows
from truing.errors import DataError, UnsafeFileError

VALUES = [{"prompt": "Grüße", "score": 1}, {"prompt": "b\nc", "score": 2}]
JSONL = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in VALUES)
PACKED = gzip.compress(JSONL.encode(), mtime=0)  # no clock in it: workers must agree on the tests


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl.gz", PACKED),
        ("a.json", json.dumps(VALUES, indent=2)),
        ("a.json", json.dumps({"version": 1, "data": VALUES})),
    ],
)
def test_values_and_places(tmp_path: Path, name: str, content: str | bytes) -> None:
    rows = list(read_rows(write(tmp_path / name, content)))
    assert rows == [Row(VALUES[0], f"{name}:1"), Row(VALUES[1], f"{name}:2")]


def test_parquet_keeps_types_and_nests(tmp_path: Path) -> None:
    values = [{"prompt": [{"role": "user", "content": "hi"}], "label": True}]
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet")
    assert list(read_rows(str(tmp_path / "a.parquet"))) == [Row(values[0], "a.parquet:1")]


def test_csv_counts_lines_through_quoted_newlines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufeffprompt,score\r\n"two\nlines",1\r\n\r\nnext,2\r\n')
    assert list(read_rows(path)) == [
        Row({"prompt": "two\nlines", "score": "1"}, "a.csv:3"),
        Row({"prompt": "next", "score": "2"}, "a.csv:5"),
    ]


def test_a_byte_order_mark_and_blank_lines_are_no_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\ufeff{"prompt": "x"}\r\n\r\n{"prompt": "y"}\r\n')
    assert [row.where for row in read_rows(path)] == ["a.jsonl:1", "a.jsonl:3"]


def test_a_folder_is_read_in_order_of_name_without_hidden_files(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", '{"n": 2}\n{"n": 3}\n')
    write(tmp_path / "a.json", '[{"n": 1}]')
    write(tmp_path / ".gitattributes", "not data")
    rows = list(read_rows(str(tmp_path), max_rows=2))
    assert rows == [Row({"n": 1}, "a.json:1"), Row({"n": 2}, "b.jsonl:1")]


def test_max_rows_does_not_read_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"n": 1}\nbroken\n')
    assert len(list(read_rows(path, max_rows=1))) == 1
    with pytest.raises(DataError):
        list(read_rows(path, max_rows=2))


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("a.jsonl", '{"n": 1}\n{"n": 2,}\n', "a.jsonl:2", "not valid JSON: .*column"),
        ("a.jsonl", '{"n": 1}\n{"n": "cut', "a.jsonl:2", "not valid JSON: Unterminated"),
        ("a.jsonl", '{"n": 1}\n[1]\n', "a.jsonl:2", "a row is an object, this is list"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1", "not readable JSON"),
        ("a.jsonl", b'{"n": 1}\n{"n": "\xff"}\n', "a.jsonl:2", "not UTF-8: byte 8 .* 0xff"),
        ("a.jsonl.gz", PACKED[:-9], "a.jsonl.gz:", "archive is damaged"),
        ("a.jsonl.gz", b"no archive", "a.jsonl.gz:1", "archive is damaged"),
        ("a.json", '[\n{"n": 1},\n{"n" 2}]', "a.json:3", "not valid JSON"),
        ("a.json", '{"a": [], "b": []}', "a.json", "neither a list of objects"),
        ("a.json", '[{"n": 1}, 2]', "a.json:2", "a row is an object, this is int"),
        ("a.csv", "a,b\n1,2,3\n", "a.csv:2", "3 fields, but the header has 2"),
        ("a.csv", 'a,b\n1,"open\n', "a.csv:2", "not valid CSV"),
        ("a.parquet", "PAR1 not really", "a.parquet", "not a readable parquet file"),
    ],
)
def test_broken_content_names_its_line(
    tmp_path: Path, name: str, content: str | bytes, where: str, what: str
) -> None:
    with pytest.raises(DataError, match=what) as caught:
        list(read_rows(write(tmp_path / name, content)))
    assert caught.value.where.startswith(where)
    assert caught.value.remedy


def test_lines_in_a_json_file_are_told_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Extra data") as caught:
        list(read_rows(write(tmp_path / "a.json", JSONL)))
    assert "call it .jsonl" in caught.value.remedy


def test_an_archive_that_packs_well_is_read_up_to_the_bound(tmp_path: Path) -> None:
    """A small one whatever its ratio, and one of any size whose ratio is that of text."""
    line = b'{"prompt": "' + b"x" * 4_000 + b'"}\n'
    packed = gzip.compress(line * (MOST_UNPACKED // len(line)))
    assert len(packed) * MOST_RATIO < MOST_UNPACKED
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    assert len(list(read_rows(str(tmp_path / "a.jsonl.gz")))) == MOST_UNPACKED // len(line)
    (tmp_path / "b.jsonl.gz").write_bytes(packed + gzip.compress(line))
    with pytest.raises(DataError, match=f"unpacks to more than {MOST_UNPACKED:,} bytes"):
        list(read_rows(str(tmp_path / "b.jsonl.gz")))
    noise = b"".join(
        b'{"prompt": "%s"}\n' % random.Random(i).randbytes(500).hex().encode()
        for i in range(20_000)
    )
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(noise, compresslevel=1))
    assert len(noise) > MOST_UNPACKED
    assert len(list(read_rows(str(tmp_path / "c.jsonl.gz")))) == 20_000


@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "a.bin", "A.PKL"])
def test_files_that_would_be_executed_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeFileError, match="executed"):
        read_rows(write(tmp_path / name, b"\x80\x04."))


def test_unknown_kinds_list_the_valid_ones_before_a_row_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown kind of file '\.txt'") as caught:
        read_rows(write(tmp_path / "a.txt", "x"))
    assert ".jsonl, .jsonl.gz, .json, .parquet, .csv" in caught.value.remedy


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        read_rows(str(tmp_path))
    (tmp_path / "deeper").mkdir()
    with pytest.raises(DataError, match="folder inside a folder"):
        read_rows(str(tmp_path))


def test_a_folder_of_save_to_disk_is_refused_with_the_way_out(tmp_path: Path) -> None:
    datasets.Dataset.from_list(VALUES).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="save_to_disk") as caught:
        read_rows(str(tmp_path / "saved"))
    assert "to_json" in caught.value.remedy


@pytest.mark.parametrize("path", ["gone.jsonl", "data/gone.jsonl", "./gone", "/gone/folder", "a b"])
def test_a_path_that_is_not_there_and_no_hub_id(path: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_rows(path)


def test_a_hub_id_with_revision_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, revision: str | None, split: str) -> datasets.Dataset:
        asked.append((name, revision, split))
        return datasets.Dataset.from_list(VALUES)

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = list(read_rows("org/some-name@v1.0", split="test", max_rows=1))
    assert asked == [("org/some-name", "v1.0", "test")]
    assert rows == [Row(VALUES[0], "org/some-name:1")]


def test_a_hub_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="ConnectionError: no route to the hub") as caught:
        list(read_rows("org/name"))
    assert "HF_TOKEN" in caught.value.remedy
