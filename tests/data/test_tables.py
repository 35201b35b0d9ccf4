"""A file is read whole, as it is now, by its very name; what is wrong in it is named by its row there."""

import gzip
import json
import os

import datasets
import pytest

from lrlora import InputError
from lrlora.data.tables import read_table
from tests.conftest import write_rows

ROWS = [{"text": f"row {n}", "label": n % 2} for n in range(3)]


@pytest.mark.parametrize(
    "name", ["a[12].jsonl", "a*.jsonl", "a?.jsonl", "x::y.jsonl", "a b {c}.jsonl", "hf:x.jsonl", "#.jsonl"]
)
def test_signs_in_a_name_are_letters(tmp_path, name):
    write_rows(tmp_path / "a1.jsonl", [{"text": "another", "label": 0}])
    assert read_table(write_rows(tmp_path / name, ROWS)).columns["text"] == ["row 0", "row 1", "row 2"]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_file_that_changed_is_read_again_whatever_its_time_stamp_says(tmp_path, ending):
    file = tmp_path / f"rows.{ending}"

    def write(word: str) -> None:
        rows = datasets.Dataset.from_list([{"text": f"{word} {n}", "label": n % 2} for n in range(3)])
        {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[ending](file)
        os.utime(file, (1_000_000_000, 1_000_000_000))

    write("old")
    assert read_table(file).columns["text"][0] == "old 0"
    write("new")
    assert read_table(file).columns["text"][0] == "new 0"


def test_words_of_a_csv_are_words(tmp_path):
    words = ["NA", "None", "null", "nan", "N/A", "007", "1e3", " x ", "TRUE"]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f'"{word}",{n}\n' for n, word in enumerate(words)))
    assert read_table(tmp_path / "a.csv").columns["text"] == words


def test_a_csv_as_excel_writes_it(tmp_path):
    (tmp_path / "a.csv").write_bytes('text,label\r\n"two\r\nlines, quoted",1\r\n\r\nb,0\r\n'.encode("utf-8-sig"))
    table = read_table(tmp_path / "a.csv")
    assert table.columns == {"text": ["two\r\nlines, quoted", "b"], "label": ["1", "0"]}
    assert list(table.numbers) == [1, 2]


def test_json_as_an_array_or_line_by_line(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "b.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    for name in ("a.json", "b.json", "c.json.gz"):
        assert read_table(tmp_path / name).columns == {"text": [r["text"] for r in ROWS], "label": [0, 1, 0]}, name


def test_a_field_that_some_rows_lack_is_none_there_and_blank_lines_count(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"b": 2, "a": 3}\n')
    table = read_table(tmp_path / "a.jsonl")
    assert table.columns == {"a": [1, 3], "b": [None, 2]}
    assert list(table.numbers) == [1, 3]


def test_class_numbers_become_their_names(tmp_path):
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["pos", "neg"]))
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": -1}]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    assert table.columns["label"] == ["neg", "pos", None]
    assert table.class_names == {"label": ["pos", "neg"]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,label\na,1\nb,c,0\n", r"row 2 \(line 3\) has 3 cells, the header 2: .* in quotes: b,c,0"),
        ("a.csv", "text,label\na,1\nb\n", r"row 2 \(line 3\) has 1 cells, the header 2"),
        ("a.csv", "text,text\na,1\n", "names the column 'text' twice"),
        ("a.csv", 'text,label\n"a"b,1\n', "as CSV: line 2"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"as JSON: row 2: "),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"row 2 is no object with fields: \[1\]"),
        ("a.json", '[{"a": 1}, 5]', "row 2 is no object"),
        ("a.json", '[{"a": 1}', "as JSON"),
        ("a.parquet", "text", "as parquet"),
        ("a.jsonl.gz", "text", "copy it again"),
        ("a.parquet.gz", "text", "needed .jsonl"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_its_row(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        read_table(tmp_path / name)


def test_text_of_another_encoding_is_said(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\nSchön,1\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_table(tmp_path / "a.csv")


def test_plain_text_is_paragraphs_or_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffOne\r\ntwo\r\n\r\n  \r\nThree\r\n\r\n".encode())
    table = read_table(tmp_path / "a.txt")
    assert (table.columns, list(table.numbers)) == ({"text": ["One\ntwo", "Three"]}, [1, 5])
    assert table.rows_are == "paragraphs"
    (tmp_path / "b.txt").write_text("\nOne\ntwo\n\n", encoding="utf-8")
    table = read_table(tmp_path / "b.txt")
    assert (table.columns, list(table.numbers), table.rows_are) == ({"text": ["One", "two"]}, [2, 3], "lines")
    (tmp_path / "c.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(InputError, match="has no rows"):
        read_table(tmp_path / "c.txt")
