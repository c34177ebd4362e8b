"""Committed tables: what makes them stale, and that nothing else than what was written is read."""

import pandas as pd
import pytest

from helpers.artifacts import ArtifactError, write_table
from helpers.committed import code_digests, read_committed, write_committed

LINES = pd.DataFrame({"score": [1.0, 2.0]})


def test_tables_are_stale_when_code_or_plants_changed(tmp_path):
    code, plants = {"helpers/a.py": "1", "helpers/b.py": "2"}, {"mlp-0-seed0": "d", "mlp-0-seed1": "e"}
    write_committed(tmp_path, {"lines": LINES}, code=code, plants=plants, again="make it")
    found = read_committed(tmp_path, code=code, plants={"mlp-0-seed0": "d"})  # the others are not here to compare
    assert found.fresh and "fit the code" in found.note
    pd.testing.assert_frame_equal(found.tables["lines"], LINES)
    stale = read_committed(tmp_path, code=code | {"helpers/b.py": "3"}, plants=plants)
    assert not stale.fresh and "for helpers/b.py changed" in stale.note and "run `make it`" in stale.note
    many = read_committed(tmp_path, code={}, plants={"mlp-0-seed0": "x", "mlp-9-seed0": "y"})
    assert not many.fresh and "and 1 more" in many.note


def test_other_tables_than_those_that_were_written_are_refused(tmp_path):
    write_committed(tmp_path, {"lines": LINES}, code={}, plants={}, again="make it")
    write_table(tmp_path / "lines.parquet", LINES.iloc[1:])
    with pytest.raises(ArtifactError, match="are not those that were written.*run `make it`"):
        read_committed(tmp_path, code={}, plants={})
    with pytest.raises(ArtifactError, match="is missing"):
        read_committed(tmp_path / "nowhere", code={}, plants={})


def test_the_code_is_what_is_reached_less_what_changes_no_number(tmp_path):
    (tmp_path / "helpers").mkdir()
    for name, text in {"first": "from helpers.other import x\nimport helpers.config\n", "other": "x = 1\n"}.items():
        (tmp_path / "helpers" / f"{name}.py").write_text(text)
    (tmp_path / "helpers" / "config.py").write_text("ROOT = 1\n")
    before = code_digests(("first", "absent"), root=tmp_path)
    assert list(before) == ["helpers/first.py", "helpers/other.py"]
    (tmp_path / "helpers" / "config.py").write_text("ROOT = 2\n")
    assert code_digests(("first",), root=tmp_path) == before
    (tmp_path / "helpers" / "other.py").write_text("x = 2\n")
    assert code_digests(("first",), root=tmp_path)["helpers/other.py"] != before["helpers/other.py"]
