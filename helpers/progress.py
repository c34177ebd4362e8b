"""Progress: steps and loops of a notebook shown on the terminal of the run, never in the executed notebook.

A kernel appends text to the file named by CLAP_PROGRESS; the run reads it as it grows and shows it. Without that
variable (JupyterLab, a plain script) the same calls write to standard error.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeVar

VARIABLE = "CLAP_PROGRESS"
QUIET_SECONDS = 20.0  # between two lines of the same loop where lines cannot be overwritten

Item = TypeVar("Item")


def step(text: str) -> None:
    """Say in a few words which step begins."""
    with _stream() as stream:
        stream.write(f"{' '.join(text.split())}\n")


def track(iterable: Iterable[Item], description: str, *, total: int | None = None) -> Iterator[Item]:
    """Yield the items of a long loop and show how many are done, how fast, and the time left."""
    from tqdm import tqdm  # the freshness check does not need it

    with _stream() as stream:
        watched = VARIABLE in os.environ or stream.isatty() or "ipykernel" in sys.modules
        yield from tqdm(iterable, description, total, file=stream, disable=not watched, mininterval=0.5, ncols=90)


@contextmanager
def _stream() -> Iterator[TextIO]:
    name = os.environ.get(VARIABLE)
    if not name:
        yield sys.stderr
        return
    with open(name, "a", encoding="utf-8", buffering=1) as file:
        yield file


class Display:
    """The reading end: lasting lines, and one passing line that is overwritten where the stream is a terminal."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.terminal = stream.isatty()
        self.prefix = ""
        self._passing = ""
        self._spoke = 0.0
        self._guard = threading.Lock()

    def line(self, text: str = "") -> None:
        """Write a line that stays."""
        with self._guard:
            self._wipe()
            self._write(f"{text}\n")

    def passing(self, text: str, *, lasting: bool = False) -> None:
        """Show a line that the next one replaces; `lasting` lines stay where lines cannot be overwritten."""
        with self._guard:
            text = " · ".join(part for part in (self.prefix, text) if part)
            if self.terminal:
                text = text[: shutil.get_terminal_size().columns - 1]
                if text != self._passing:
                    self._wipe()
                    self._passing = text
                    self._write(text)
            elif lasting or time.monotonic() - self._spoke > QUIET_SECONDS:
                self._spoke = time.monotonic()
                self._write(f"{text}\n")

    def _wipe(self) -> None:
        if self._passing:
            self._write("\r" + " " * len(self._passing) + "\r")
            self._passing = ""

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


@contextmanager
def follow(path: Path, display: Display) -> Iterator[None]:
    """Show what a kernel appends to `path` until the block ends; the file is begun anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("", encoding="utf-8")
    ended = threading.Event()
    thread = threading.Thread(target=_read, args=(path, display, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


def _read(path: Path, display: Display, ended: threading.Event) -> None:
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rest = ""
        last = False
        while not last:
            last = ended.wait(0.2)  # one more look after the end, so that the last words are not lost
            rest += file.read()
            *whole, rest = re.split(r"(?<=[\r\n])", rest)
            for text in whole:
                if text.strip():
                    display.passing(text.strip(), lasting=text.endswith("\n"))
            if rest.strip():  # a bar: tqdm returns to the line's start before it, not after it
                display.passing(rest.strip())
