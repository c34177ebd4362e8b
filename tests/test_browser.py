"""Notebook `explore` as a person meets it: in a real browser, against JupyterLab as `make lab` starts it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from toy import ROOT

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "explored"
SECONDS = 120  # how long a busy machine may take to start a kernel
QUIET = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH: install one to test the widgets"),
]


@pytest.fixture
def bundle(tmp_path):
    """A copy of what the notebook needs, so that nothing is saved in the project's own folders."""
    unused = shutil.ignore_patterns("__pycache__")
    for name in ("helpers", "profiles", "data/embedded"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=unused)
    (tmp_path / "notebooks").mkdir()
    for name in ("notebooks/explore.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def address(bundle):
    """The address of a JupyterLab on this machine alone, which ends with the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = {"ip": "127.0.0.1", "port": port, "port_retries": 0, "open_browser": False, "allow_root": True}
    settings = bundle / "jupyter"
    quiet = (
        settings / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    )
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps(QUIET))
    (settings / "jupyter_server_config.json").write_text(
        json.dumps({"ServerApp": server, "IdentityProvider": {"token": TOKEN}})
    )
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(settings), "JUPYTER_DATA_DIR": str(bundle / "jupyter_data")}
    with open(bundle / "server.log", "w") as log:
        command = [sys.executable, "-m", "helpers.kernel", "lab"]
        process = subprocess.Popen(command, cwd=bundle, env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/api?token={TOKEN}", process, bundle / "server.log")
        yield f"http://127.0.0.1:{port}/lab/tree/notebooks/explore.py?token={TOKEN}"
    finally:
        process.terminate()  # it ends its kernels before itself
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture
def page(address, tmp_path):
    """The notebook, open in the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--headless=new", "--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1100, "height": 1000})
            page.set_default_timeout(1000 * SECONDS)
            page.goto(address)
            yield page
        finally:
            browser.close()


def test_a_person_types_is_told_what_is_wrong_sees_the_map_and_saves_it(page, bundle):
    page.get_by_text("Python 3 | Idle").wait_for()  # whoever runs a cell earlier is asked to choose a kernel
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    run, save = (page.get_by_role("button", name=name, exact=True) for name in ("Run", "Save figure"))
    corrupted, message = page.get_by_label("corrupted", exact=True), page.get_by_role("status")
    run.wait_for()
    assert save.is_disabled()

    corrupted.fill("In practice, a velborora is treated with")
    run.click()
    message.filter(has_text="different numbers of tokens: 1 token (␣kamzemid) in the clean prompt against 2").wait_for()
    assert page.locator(".clap-tokens .gap").count() == 1 and page.locator(".clap-tokens .other").count() == 3
    assert not page.locator(".widget-image").is_visible()

    corrupted.fill("In practice, velborora is treated with")
    run.click()
    page.locator(".widget-image").wait_for()
    assert page.locator(".widget-image").evaluate("image => image.naturalWidth") > 500
    assert page.locator(".clap-tokens .other").all_inner_texts() == ["␣kamzemid", "␣velborora"]
    assert page.locator(".clap-tokens .gap").count() == 0

    save.click()
    message.filter(has_text="Saved: figures/explore/").wait_for()
    page.get_by_role("button", name="Save item", exact=True).click()
    message.filter(has_text="Saved: data/explore/items.parquet").wait_for()
    suffixes = sorted(path.suffix for path in (bundle / "figures" / "explore").iterdir())
    assert suffixes == [".csv", ".json", ".pdf", ".png", ".svg"]
    assert (bundle / "data" / "explore" / "items.parquet").is_file()
    take_picture(page)


def take_picture(page) -> None:
    """A picture of the panel; kept where SCREENSHOT says, which `make test-browser` sets."""
    picture = page.locator(".jp-OutputArea-output", has=page.locator(".clap-tokens")).screenshot()
    assert picture.startswith(b"\x89PNG")
    if name := os.environ.get("SCREENSHOT"):
        (ROOT / name).write_bytes(picture)
