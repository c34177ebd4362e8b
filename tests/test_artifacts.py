"""Artifacts are whole or absent: a write cut short at any moment leaves the old one."""

import subprocess
import sys

import pandas as pd
import pytest
from toy import ROOT

from helpers.artifacts import (
    ArtifactError,
    fingerprint,
    new_folder,
    read_json,
    read_table,
    sha256_bytes,
    sha256_file,
    sha256_tree,
    write_bytes,
    write_json,
    write_table,
    write_tables,
)


def die_during(call: str, code: str, path) -> int:
    """Run `code` in a process of its own that is gone at the moment it makes the system call `call`."""
    script = f"import os, pathlib\npath = pathlib.Path({str(path)!r})\nos.{call} = lambda *a, **k: os._exit(9)\n{code}"
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_write_cut_short_leaves_the_old_file(tmp_path, call):
    path = tmp_path / "value.json"
    write_json(path, "old")
    code = "from helpers.artifacts import write_json\nwrite_json(path, 'new' * 100000)"
    assert die_during(call, code, path) == 9
    assert read_json(path) == "old"


@pytest.mark.parametrize("call", ["fsync", "chmod"])
def test_a_folder_cut_short_leaves_the_old_folder(tmp_path, call):
    path = tmp_path / "folder"
    with new_folder(path) as folder:
        (folder / "a").write_text("old")
    code = "from helpers.artifacts import new_folder\nwith new_folder(path) as f:\n (f / 'a').write_text('new')"
    assert die_during(call, code, path) == 9
    assert (path / "a").read_text() == "old"


def test_a_folder_whose_making_fails_leaves_the_old_one_and_no_rest(tmp_path):
    path = tmp_path / "folder"
    with new_folder(path) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), new_folder(path) as folder:
        (folder / "a").write_text("new")
        raise ZeroDivisionError
    assert (path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_failed_write_leaves_no_temporary_file(tmp_path):
    with pytest.raises(TypeError):
        write_bytes(tmp_path / "a", "not bytes")
    assert list(tmp_path.iterdir()) == []


def test_json_is_byte_stable_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": [2.5, None]})
    write_json(tmp_path / "b", {"a": [2.5, None], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "c", float("nan"))


def test_tables_come_back_as_they_were_and_equal_tables_give_equal_bytes(tmp_path):
    table = pd.DataFrame({"item": ["a", "b"], "effect": [0.25, None], "layer": [0, 5]})
    write_table(tmp_path / "a", table)
    write_table(tmp_path / "b", table.copy())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    pd.testing.assert_frame_equal(read_table(tmp_path / "a"), table)


@pytest.mark.parametrize("read", [read_json, read_table])
def test_what_is_missing_is_said_in_one_sentence(tmp_path, read):
    with pytest.raises(ArtifactError, match="missing: run the notebook that writes it"):
        read(tmp_path / "absent")


def test_damaged_json_is_said_in_one_sentence(tmp_path):
    (tmp_path / "a").write_text('{"half": ')
    with pytest.raises(ArtifactError, match="not valid JSON"):
        read_json(tmp_path / "a")


def test_hashes(tmp_path):
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "a").touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").touch()
    (tmp_path / ".b.x.tmp").touch()
    assert sha256_bytes(b"") == sha256_file(tmp_path / "a") == empty
    assert sha256_tree([tmp_path], tmp_path) == {"a": empty, "deep/b": empty}
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 2, "b": 1})


def test_tables_are_written_by_name(tmp_path):
    table = pd.DataFrame({"x": [1, 2]})
    write_tables(tmp_path / "new", {"a": table, "b": table * 2})
    assert read_table(tmp_path / "new" / "b.parquet")["x"].tolist() == [2, 4]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.parquet", "b.parquet"]
