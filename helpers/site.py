"""The site: executed notebooks as HTML pages and an index of findings and figures, readable offline and on a phone.

No page loads anything but `style.css` and pictures from beside it. Equal results give equal bytes; only the footer's
revision may differ, and a new revision alone does not make the site stale.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import helpers
from helpers.artifacts import fingerprint, read_json, sha256_file, write_bytes
from helpers.config import ROOT, Paths, Profile
from helpers.stages import Record, Stage, damaged_outputs, executed_path, read_record, write_record

TEMPLATES = Path(__file__).resolve().parent / "templates"
NAME = "site"  # of its record, beside those of the notebooks
REMOTE = re.compile(
    r"""<(?:script|link|img|iframe|source|video|audio)\b[^>]*\b(?:src|href)\s*=\s*["']?(?:https?:)?//""", re.I
)


class SiteError(RuntimeError):
    """A page that cannot be built, or would not open offline."""


@dataclass(frozen=True)
class Page:
    """One page: its file beside the index, its title, and its short label in the navigation."""

    file: str
    title: str
    label: str


def build_site(
    profile: Profile, stages: Sequence[Stage], *, overrides: str = "", root: Path = ROOT, revision: str | None = None
) -> None:
    """Write the index, one page per notebook and the stylesheet into the profile's appendix, then their record.

    `revision` is shown in the footer, by default git's. Raises SiteError when a page would load something from the
    network, and ArtifactError when an executed notebook is missing or damaged.
    """
    import jinja2
    from markupsafe import Markup

    paths = Paths(profile.name, root)
    found = site_ingredients(profile, stages, overrides=overrides, root=root)
    bodies = {stage.name: notebook_body(executed_path(stage, paths)) for stage in stages}
    pages = {stage.name: _page(stage, body) for stage, body in zip(stages, bodies.values(), strict=True)}
    index = Page("index.html", "The question", "Start")
    common = {
        "pages": [index, *pages.values()],
        "profile": profile.name,
        "overrides": overrides,
        "plumbing": profile.model.plumbing,
        "revision": revision if revision is not None else git_revision(root),
    }
    loader = jinja2.FileSystemLoader(TEMPLATES)
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    question = " ".join((helpers.__doc__ or "").split())
    texts = {
        index.file: templates.get_template("index.html.j2").render(
            common,
            title=question,
            current=index.file,
            question=question,
            findings=_findings(stages, pages, paths),
            gallery=_gallery(stages, pages, paths),
        )
    }
    order = list(pages.values())
    for position, stage in enumerate(stages):
        texts[order[position].file] = templates.get_template("page.html.j2").render(
            common,
            title=order[position].title,
            current=order[position].file,
            body=Markup(bodies[stage.name]),
            previous=order[position - 1] if position else index,
            following=order[position + 1] if position + 1 < len(order) else None,
        )
    texts["style.css"] = stylesheet()
    for name, text in texts.items():
        if name.endswith(".html"):
            check_offline(name, text)
        write_bytes(paths.appendix / name, (text.rstrip() + "\n").encode())
    outputs = {str((paths.appendix / n).relative_to(root)): sha256_file(paths.appendix / n) for n in sorted(texts)}
    write_record(paths, NAME, Record(found, outputs, 0.0))


def site_is_fresh(profile: Profile, stages: Sequence[Stage], *, overrides: str = "", root: Path = ROOT) -> bool:
    """Whether the site on disk is that of these notebooks, findings, figures and templates; imports nothing heavy."""
    record = read_record(Paths(profile.name, root), NAME)
    if record is None or record.ingredients != site_ingredients(profile, stages, overrides=overrides, root=root):
        return False
    return not damaged_outputs(record, root)


def site_ingredients(
    profile: Profile, stages: Sequence[Stage], *, overrides: str = "", root: Path = ROOT
) -> dict[str, str]:
    """The hash of everything a page shows, by name; the git revision is left out on purpose."""
    paths = Paths(profile.name, root)
    records = {stage.name: read_record(paths, stage.name) for stage in stages}
    found = {name: fingerprint(record.outputs if record else None) for name, record in records.items()}
    code = [Path(__file__), *TEMPLATES.iterdir()]
    found |= {f"helpers/{path.name}": sha256_file(path) for path in code}
    return found | {"overrides": overrides, "plumbing": str(profile.model.plumbing)}


def notebook_body(path: Path) -> str:
    """The HTML of one executed notebook, without page, style or script around it."""
    import nbformat
    from nbconvert import HTMLExporter

    read_json(path)  # one sentence when it is missing or damaged
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(nbformat.read(path, as_version=4))
    return body.replace('alt="No description has been provided for this image"', 'alt="Figure, described below it"')


def stylesheet() -> str:
    """The project's own rules and those that colour code."""
    from pygments.formatters import HtmlFormatter

    own = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return own + HtmlFormatter(style="default", nobackground=True).get_style_defs(".highlight") + "\n"


def check_offline(name: str, text: str) -> None:
    """Raise SiteError when a page loads a script, style, picture or frame from the network."""
    found = REMOTE.search(text)
    if found:
        raise SiteError(f"{name} would load something from the network, and must open offline: {found.group(0)[:120]}")


def git_revision(root: Path) -> str:
    """The short revision, with a plus sign when tracked files differ from it; empty outside a repository."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _page(stage: Stage, body: str) -> Page:
    heading = re.search(r"<h1[^>]*>(.*?)(?:<a\b|</h1>)", body, re.S)
    title = html.unescape(re.sub(r"<[^>]+>", "", heading.group(1))).strip() if heading else stage.name.replace("_", " ")
    return Page(f"{stage.name}.html", title, stage.name.replace("_", " "))


def _findings(stages: Sequence[Stage], pages: dict[str, Page], paths: Paths) -> list[dict]:
    found = []
    for stage in stages:
        path = paths.data / "findings" / f"{stage.name}.json"
        if path.is_file():
            found += [{**finding, "page": pages[stage.name]} for finding in read_json(path)]
    return found


def _gallery(stages: Sequence[Stage], pages: dict[str, Page], paths: Paths) -> list[dict]:
    """Every figure with a sidecar, in the order of notebooks and names."""
    folder = Path(os.path.relpath(paths.figures, paths.appendix)).as_posix()
    return [
        {"name": path.stem, "folder": folder, "caption": read_json(path)["caption"], "page": pages[stage.name]}
        for stage in stages
        for path in sorted(paths.figures.glob(f"{stage.number}_*.json"))
    ]
