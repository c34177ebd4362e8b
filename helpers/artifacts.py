"""Artifacts on disk: atomic writes, hashes, and nothing half-written ever taken for whole.

Every write goes to a temporary file in the target's own folder, is flushed to the disk, and is renamed into place:
a reader, or a rerun after `kill -9`, sees the old artifact or the new one, never a part of either.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path


class ArtifactError(RuntimeError):
    """An artifact that is missing, damaged, or cannot be written."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically; the folder is made when absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object) -> None:
    """Write JSON with sorted keys and a final newline, so that equal values give equal bytes."""
    write_bytes(
        path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )


def read_json(path: Path) -> object:
    """Read JSON; raises ArtifactError in one sentence when the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: run the notebook that writes it, or `make reproduce`.") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}): delete it and run `make reproduce`.") from None


def write_table(path: Path, table) -> None:
    """Write a pandas DataFrame as parquet, atomically and byte-stable for equal tables."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd")
    write_bytes(path, buffer.getvalue())


def write_tables(folder: Path, tables: Mapping) -> None:
    """Write pandas DataFrames as `folder`/NAME.parquet, by name; each as `write_table` does."""
    for name, table in tables.items():
        write_table(folder / f"{name}.parquet", table)


def read_table(path: Path):
    """Read a parquet table; raises ArtifactError in one sentence when it is missing."""
    import pandas  # heavy, and not needed by the freshness check

    if not path.is_file():
        raise ArtifactError(f"{path} is missing: run the notebook that writes it, or `make reproduce`.")
    return pandas.read_parquet(path)


@contextmanager
def new_folder(path: Path):
    """Yield a temporary folder that replaces `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked_file(path: Path, *, patience: float = 0.0):
    """Hold a lock on `path` and yield its file descriptor; raises BlockingIOError when others keep it.

    `patience` is for how many seconds to wait for them. The lock ends with the last process that has the descriptor.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.2)
        yield file.fileno()


def sha256_bytes(content: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_tree(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Digest of every file under the given files and folders, keyed by its path relative to `root`."""
    digests = {}
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if not file.name.endswith(".tmp"):
                digests[str(file.relative_to(root))] = sha256_file(file)
    return digests


def fingerprint(value: object) -> str:
    """Digest of any JSON-able value, independent of the order of its keys."""
    return sha256_bytes(json.dumps(value, sort_keys=True, default=str).encode())
