"""The site: opens from disk with no network, links to what is there, and changes only when results change."""

import base64
import re
from html.parser import HTMLParser

import nbformat.v4 as v4
import pytest
from toy import STAGES, make_toy

from helpers.artifacts import ArtifactError, write_json
from helpers.config import Paths, load_profile
from helpers.notebooks import write_notebook
from helpers.site import SiteError, build_site, check_offline, git_revision, site_is_fresh
from helpers.stages import Record, executed_path, read_record, write_record

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


def executed(title, extra=""):
    """An executed notebook with a title, a table, a picture and printed text."""
    outputs = [
        v4.new_output("stream", text="printed <tag>\n"),
        v4.new_output("display_data", data={"image/png": PNG, "text/plain": "figure"}),
        v4.new_output("display_data", data={"text/html": "<table><tr><td>0.5</td></tr></table>"}),
    ]
    cells = [
        v4.new_markdown_cell(f"# {title}\n\nSee [the paper](https://example.org/paper).{extra}", id="a"),
        v4.new_code_cell("x = 1", execution_count=1, outputs=outputs, id="b"),
    ]
    return v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


class Bundle:
    """Executed notebooks, findings and figures as a run leaves them, without having run anything."""

    def __init__(self, root, profile_name="toy", overrides=""):
        self.root, self.paths = root, Paths(profile_name, root)
        self.profile = load_profile(profile_name, overrides, folder=root / "profiles")
        for stage, title in zip(STAGES, ["Data & draw", "Rounding", "Show"], strict=True):
            write_notebook(executed_path(stage, self.paths), executed(title))
            write_record(self.paths, stage.name, Record({}, {stage.name: "1"}, 1.0))
        finding = {"title": "Layer <0>", "text": "Recovery is 0.56 & more."}
        write_json(self.paths.data / "findings" / "02_round.json", [finding])
        for suffix in ("png", "svg", "pdf", "csv"):
            self.paths.figures.mkdir(parents=True, exist_ok=True)
            (self.paths.figures / f"03_heat.{suffix}").write_bytes(b"x")
        write_json(self.paths.figures / "03_heat.json", {"caption": "Where it is hot."})

    def build(self, revision="abc", **options):
        build_site(self.profile, STAGES, root=self.root, revision=revision, **options)
        return {path.name: path.read_text() for path in self.paths.appendix.glob("*.*") if path.suffix != ".ipynb"}

    def fresh(self, **options):
        return site_is_fresh(self.profile, STAGES, root=self.root, **options)


@pytest.fixture
def bundle(tmp_path):
    return Bundle(make_toy(tmp_path / "toy").root)


class Targets(HTMLParser):
    """Every address a page names, with the tag that names it."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found += [(tag, value) for name, value in attributes if name in ("src", "href", "srcset", "data")]


def test_there_is_an_index_a_page_for_each_notebook_and_a_stylesheet(bundle):
    assert set(bundle.build()) == {"index.html", "01_draw.html", "02_round.html", "03_show.html", "style.css"}


def test_pages_load_nothing_from_the_network_and_every_link_leads_somewhere(bundle):
    for name, text in bundle.build().items():
        if name == "style.css":
            assert "url(" not in text and "@import" not in text
            continue
        targets = Targets(text).found
        assert ("link", "style.css") in targets
        for tag, address in targets:
            if re.match(r"(https?:)?//", address):
                assert tag == "a", f"{name} loads {address}"
            elif not address.startswith(("data:", "#")):
                assert (bundle.paths.appendix / address).is_file(), f"{name} names {address}"
        assert "<script" not in text and "mathjax" not in text.lower()


def test_a_page_that_would_load_from_the_network_is_refused(bundle):
    write_notebook(executed_path(STAGES[1], bundle.paths), executed("R", "\n\n![x](https://example.org/x.png)"))
    with pytest.raises(SiteError, match="02_round.html would load something from the network"):
        bundle.build()


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        "<link rel=stylesheet href=//cdn.example.org/a.css>",
        "<IMG alt='' SRC='http://example.org/a.png'>",
        '<iframe\n width="1" src="https://example.org"></iframe>',
    ],
)
def test_every_way_to_load_from_the_network_is_seen(text):
    with pytest.raises(SiteError):
        check_offline("page.html", text)
    check_offline(
        "page.html", '<a href="https://example.org">x</a><img src="a.png"><img src="data:image/png;base64,//">'
    )


def test_the_index_holds_the_question_the_findings_and_the_figures(bundle):
    text = bundle.build()["index.html"]
    assert "Where in a fine-tuned GPT-2 does a fact live" in text
    assert "<dt>Layer &lt;0&gt;</dt>" in text and "Recovery is 0.56 &amp; more." in text
    assert 'src="../../figures/toy/03_heat.png" alt="Where it is hot."' in text
    assert "Data &amp; draw" in text and "&amp;amp;" not in text


def test_pages_are_turned_in_order(bundle):
    pages = bundle.build()
    links = {name: re.findall(r'href="(\S+)" rel="(\w+)"', text) for name, text in pages.items()}
    assert links["01_draw.html"] == [("index.html", "prev"), ("02_round.html", "next")]
    assert links["02_round.html"] == [("01_draw.html", "prev"), ("03_show.html", "next")]
    assert links["03_show.html"] == [("02_round.html", "prev")]


def test_pictures_are_inside_the_page_and_printed_text_is_text(bundle):
    text = bundle.build()["01_draw.html"]
    assert f'src="data:image/png;base64,{PNG}"' in text.replace("\n", "")
    assert "printed &lt;tag&gt;" in text and "<td>0.5</td>" in text


def test_pages_fit_a_phone(bundle):
    pages = bundle.build()
    assert all('name="viewport" content="width=device-width' in text for name, text in pages.items() if "html" in name)
    assert "overflow-x: auto" in pages["style.css"] and "max-width: 100%" in pages["style.css"]


def test_equal_results_give_equal_bytes_and_only_the_footer_knows_the_revision(bundle):
    first, second, other = bundle.build(), bundle.build(), bundle.build(revision="def")
    assert first == second
    for name in first:
        changed = [
            pair for pair in zip(first[name].split("\n"), other[name].split("\n"), strict=True) if len({*pair}) > 1
        ]
        assert changed == ([] if name == "style.css" else [(REVISION.format("abc"), REVISION.format("def"))])


REVISION = '<span class="revision">Revision {}.</span></footer>'


def test_a_new_revision_alone_does_not_make_the_site_stale(bundle):
    bundle.build(revision="abc")
    assert bundle.fresh()
    assert not bundle.fresh(overrides="corpus.seed=1")


def test_new_results_or_lost_pages_make_the_site_stale(bundle):
    assert not bundle.fresh()
    bundle.build()
    write_record(bundle.paths, "02_round", Record({}, {"02_round": "2"}, 1.0))
    assert not bundle.fresh()
    bundle.build()
    assert bundle.fresh()
    (bundle.paths.appendix / "index.html").unlink()
    assert not bundle.fresh()
    assert set(read_record(bundle.paths, "site").outputs) > {"appendix/toy/index.html"}


def test_runs_without_meaning_carry_a_banner_on_every_page(bundle):
    assert not any("banner" in text for name, text in bundle.build().items() if name != "style.css")
    plumbing = Bundle(bundle.root, overrides="model.plumbing=true")
    pages = plumbing.build(overrides="model.plumbing=true")
    assert all("without meaning" in text for name, text in pages.items() if name != "style.css")
    assert "Profile toy with model.plumbing=true." in pages["index.html"]


def test_the_default_profile_lies_at_the_top(bundle):
    (bundle.root / "profiles" / "toy.yaml").rename(bundle.root / "profiles" / "mini.yaml")
    pages = Bundle(bundle.root, "mini").build()
    assert 'src="../figures/mini/03_heat.png"' in pages["index.html"]
    assert (bundle.root / "appendix" / "index.html").is_file()


def test_a_run_without_findings_or_figures_says_so(bundle):
    (bundle.paths.data / "findings" / "02_round.json").unlink()
    (bundle.paths.figures / "03_heat.json").unlink()
    text = bundle.build()["index.html"]
    assert "No notebook of this run has stated a finding." in text and "This run has drawn no figure." in text


def test_a_missing_executed_notebook_is_one_sentence(bundle):
    executed_path(STAGES[0], bundle.paths).unlink()
    with pytest.raises(ArtifactError, match="01_draw.ipynb is missing: run"):
        bundle.build()


def test_outside_a_repository_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision(tmp_path) == ""
