"""What must run again, and what need not: freshness by content, on toy stages that nobody has to execute."""

import multiprocessing

import pytest
from toy import STAGES, make_toy

from helpers import stages as table
from helpers.artifacts import write_json
from helpers.config import Paths
from helpers.stages import (
    StageError,
    complete,
    executed_path,
    ingredients,
    locked,
    needed,
    notebook_path,
    owned_files,
    sources,
    sweep_temporaries,
    why_stale,
)

FIRST, SECOND, THIRD = STAGES


@pytest.fixture
def toy(tmp_path):
    return make_toy(tmp_path / "toy")


def run(toy, stage, value="1", *, profile=None):
    """Leave behind what a complete run of the stage leaves behind."""
    profile = profile or toy.profile()
    found = ingredients(stage, profile, root=toy.root)
    write_json(toy.paths.data / stage.outputs[0] / "value.json", value)
    write_json(toy.paths.data / "findings" / f"{stage.name}.json", [])
    write_json(toy.paths.figures / f"{stage.number}_figure.json", value)
    write_json(executed_path(stage, toy.paths), "executed")
    complete(stage, profile, found, 1.0, root=toy.root)


def stale(toy, overrides=""):
    """Names of the stages that are stale as things are now."""
    return [stage.name for stage in STAGES if why_stale(stage, toy.profile(overrides), root=toy.root)]


@pytest.fixture
def done(toy):
    for stage in STAGES:
        run(toy, stage)
    assert stale(toy) == []
    return toy


def test_sources_are_the_notebook_and_the_helpers_it_reaches(toy):
    names = [p.name for p in sources(notebook_path(FIRST, toy.root), root=toy.root)]
    assert names == ["__init__.py", "arithmetic.py", "artifacts.py", "config.py", "progress.py", "01_draw.py"]


@pytest.mark.parametrize(
    "line",
    [
        "import helpers.far",
        "from helpers import far",
        "from helpers.far import x",
        "def lazy():\n    import helpers.far as f",
        "from . import far",
        "from .far import x",
    ],
)
def test_every_form_of_import_is_followed(toy, line):
    (toy.root / "helpers" / "far.py").write_text("x = 1\n")
    (toy.root / "helpers" / "arithmetic.py").write_text(f"{line}\n")
    found = sources(notebook_path(FIRST, toy.root), root=toy.root)
    assert toy.root / "helpers" / "far.py" in found


def test_a_missing_or_broken_notebook_is_one_sentence(toy):
    toy.notebook("02_round").write_text("if:\n")
    with pytest.raises(StageError, match=r"02_round.py cannot be parsed \(line 1"):
        sources(notebook_path(SECOND, toy.root), root=toy.root)
    toy.notebook("02_round").unlink()
    with pytest.raises(StageError, match="notebooks/02_round.py is missing"):
        sources(notebook_path(SECOND, toy.root), root=toy.root)


def test_a_fresh_clone_has_no_evidence(done):
    for record in (done.paths.data / "stages").iterdir():
        record.unlink()  # the committed figures and executed notebooks are all still there
    assert [why_stale(FIRST, done.profile(), root=done.root)] == ["it has no complete run here"]
    assert list(done.paths.figures.iterdir()) and list(done.paths.appendix.iterdir())


@pytest.mark.parametrize(
    "file, stages",
    [
        ("notebooks/01_draw.py", ["01_draw"]),
        ("helpers/arithmetic.py", ["01_draw"]),
        ("helpers/config.py", ["01_draw", "02_round", "03_show"]),
        ("helpers/unused.py", []),
        ("requirements.lock", ["01_draw", "02_round", "03_show"]),
        ("data/embedded/facts.csv", ["01_draw"]),
    ],
)
def test_a_changed_file_makes_stale_what_reads_it(done, file, stages):
    with (done.root / file).open("a") as handle:
        handle.write("\n# changed\n")
    assert stale(done) == stages
    for stage in STAGES:
        reason = why_stale(stage, done.profile(), root=done.root)
        assert reason is None if stage.name not in stages else file in reason


@pytest.mark.parametrize(
    "overrides, stages",
    [("corpus.seed=5", ["01_draw"]), ("items.seed=5", ["02_round"]), ("statistics.seed=5", []), ("corpus.seed=0", [])],
)
def test_a_changed_setting_makes_stale_what_may_read_it(done, overrides, stages):
    assert stale(done, overrides) == stages


def test_a_local_model_folder_counts_by_its_content(toy):
    folder = toy.root / "model"
    folder.mkdir()
    (folder / "weights").write_text("1")
    overrides = f"model.name_or_path={folder}"
    for stage in STAGES:
        run(toy, stage, profile=toy.profile(overrides))
    assert stale(toy, overrides) == []
    (folder / "weights").write_text("2")
    assert stale(toy, overrides) == ["03_show"]


@pytest.mark.parametrize(
    "kind", ["data/toy/round/value.json", "figures/toy/02_figure.json", "appendix/toy/02_round.ipynb"]
)
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_output_makes_its_stage_stale(done, kind, damage):
    path = done.root / kind
    path.unlink() if damage == "missing" else path.write_text("other")
    assert stale(done) == ["02_round"]
    assert kind in why_stale(SECOND, done.profile(), root=done.root)


def test_equal_outputs_of_a_rerun_leave_later_stages_fresh(done):
    done.add_cell("01_draw", "1 + 1")
    run(done, FIRST, value="1")
    assert stale(done) == []
    run(done, FIRST, value="2")
    assert stale(done) == ["02_round"]


def test_later_stages_read_artifacts_not_pictures_or_findings(done):
    write_json(done.paths.figures / "01_figure.json", "redrawn")
    write_json(done.paths.data / "findings" / "01_draw.json", [{"title": "a", "text": "b"}])
    complete(FIRST, done.profile(), ingredients(FIRST, done.profile(), root=done.root), 1.0, root=done.root)
    assert stale(done) == []


def test_a_source_edited_during_the_run_makes_the_stage_stale(toy):
    found = ingredients(FIRST, toy.profile(), root=toy.root)
    toy.add_cell("01_draw", "1 + 1")
    complete(FIRST, toy.profile(), found, 1.0, root=toy.root)
    assert "notebooks/01_draw.py" in why_stale(FIRST, toy.profile(), root=toy.root)


def test_an_input_that_never_ran_is_one_sentence(toy):
    with pytest.raises(StageError, match="02_round reads the artifacts of 01_draw, which has not run yet"):
        ingredients(SECOND, toy.profile(), root=toy.root)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"ingredients": {}}'])
def test_a_damaged_record_is_no_evidence(done, text):
    (done.paths.data / "stages" / "03_show.json").write_text(text)
    assert stale(done) == ["03_show"]


def test_a_stage_owns_its_folders_findings_figures_and_notebook(done):
    names = [str(p.relative_to(done.root)) for p in owned_files(SECOND, done.paths)]
    assert names == [
        "appendix/toy/02_round.ipynb",
        "data/toy/findings/02_round.json",
        "data/toy/round/value.json",
        "figures/toy/02_figure.json",
    ]


def test_leftovers_of_a_killed_run_are_swept_and_never_owned(done):
    rest = done.paths.data / "round" / ".seed0.x.tmp"
    rest.mkdir()
    (rest / "weights").write_text("half")
    (done.paths.figures / ".02_figure.json.y.tmp").write_text("half")
    assert not any(".tmp" in str(path) for path in owned_files(SECOND, done.paths))
    sweep_temporaries(done.paths)
    assert not rest.exists() and not list(done.paths.figures.glob(".*"))
    assert stale(done) == []


def test_needed_is_the_asked_for_stage_and_what_it_reads():
    assert [stage.name for stage in needed("02", STAGES)] == ["01_draw", "02_round"]
    assert needed("02_round", STAGES) == needed("02", STAGES)
    assert needed(None, STAGES) == list(STAGES)
    with pytest.raises(StageError, match="no notebook '09'; there are 01_draw, 02_round, 03_show"):
        needed("09", STAGES)


def _hold(root, ready, leave):
    with locked(Paths("toy", root)):
        ready.set()
        leave.wait(20)


def test_a_second_run_is_refused_in_one_sentence(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, leave))
    other.start()
    try:
        assert ready.wait(20)
        with pytest.raises(StageError, match="Another run of the profile 'toy' is under way"):
            with locked(Paths("toy", tmp_path), patience=0.1):
                pass
    finally:
        leave.set()
        other.join()
    with locked(Paths("toy", tmp_path), patience=0.1):
        pass  # the lock goes with its holder


def test_the_real_table_is_in_order_and_nothing_has_two_owners():
    names = [stage.name for stage in table.STAGES]
    assert names == sorted(names) and len({stage.number for stage in table.STAGES}) == len(names)
    for position, stage in enumerate(table.STAGES):
        assert set(stage.inputs) <= set(names[:position])
    folders = [folder for stage in table.STAGES for folder in stage.outputs]
    assert len(folders) == len(set(folders))
    assert not set(folders) & {"stages", "findings", "raw"}
