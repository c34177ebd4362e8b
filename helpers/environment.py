"""The Python environment: find the interpreter that satisfies `requirements.lock`, or make `.venv` from it.

Standard library only, and no import of the package: any Python 3 may run this file before anything is installed.
`python3 helpers/environment.py python` prints the interpreter to use; `setup` makes sure there is one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
DIRECT = "# Direct"  # heads the pins that the project imports; an environment is judged by these
STAMP = "clap-complete"  # written last, holds the lock's hash: without it a .venv is half made
MAKING = "clap-making"  # written first: says that the .venv is this project's and may be made anew


class SetupError(RuntimeError):
    """An environment that cannot be used or made; the message is what the user reads."""


def pins(lock: Path) -> dict[str, str]:
    """The direct pins of a lock file, name → version; environment markers and comments are left out."""
    found, direct = {}, False
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            direct = line.startswith(DIRECT)
        elif direct and "==" in line:
            name, _, version = line.partition(";")[0].partition("==")
            found[normalised(name)] = version.strip()
    return found


def normalised(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def public(version: str) -> str:
    """A version without its local part: 2.13.0+cpu and 2.13.0 are builds of the same release."""
    return version.partition("+")[0]


def unmet(wanted: dict[str, str]) -> list[str]:
    """What the running interpreter lacks, as readable phrases; empty when it satisfies every pin."""
    from importlib import metadata

    lacking = []
    for name, version in wanted.items():
        try:
            present = metadata.version(name)
        except metadata.PackageNotFoundError:
            lacking.append(f"{name} {version} is absent")
            continue
        if public(present) != public(version):
            lacking.append(f"{name} is {present}, not {version}")
    return lacking


def interpreter(root: Path) -> Path:
    """The interpreter to use: the running one when it satisfies the lock, else that of `.venv`, made when need be."""
    lock = root / "requirements.lock"
    if sys.version_info >= OLDEST and not unmet(pins(lock)):
        return Path(sys.executable)
    if not is_complete(root / ".venv", lock):
        make(root / ".venv", lock)
    return root / ".venv" / "bin" / "python"


def is_complete(folder: Path, lock: Path) -> bool:
    """Whether a `.venv` was made to the end, from this very lock, and its interpreter is still there."""
    with contextlib.suppress(OSError):
        stamp = (folder / STAMP).read_text(encoding="utf-8").strip()
        return stamp == _digest(lock) and (folder / "bin" / "python").exists()
    return False


def make(folder: Path, lock: Path) -> None:
    """Make a `.venv` from the lock; one that was left half made, or made from another lock, is replaced.

    Raises SetupError when this Python is too old, the folder belongs to someone else, or the installation fails.
    """
    if sys.version_info < OLDEST:
        raise SetupError(
            f"This is Python {sys.version.split()[0]}; Python {'.'.join(map(str, OLDEST))} or later is needed: "
            "install one and name it, as in `make reproduce PYTHON=python3.12`."
        )
    with _alone(folder.with_name(".venv.lock")):
        if is_complete(folder, lock):
            return  # another call made it while this one waited
        if folder.exists() and any(folder.iterdir()) and not {STAMP, MAKING} & {p.name for p in folder.iterdir()}:
            raise SetupError(
                f"{folder.name} was not made by this project and does not fit {lock.name}: move it away, or activate "
                "an environment that does."
            )
        print(f"Making {folder.name} from {lock.name}; this downloads packages and takes minutes.", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / MAKING).touch()
        python = folder / "bin" / "python"
        _call([sys.executable, "-m", "venv", str(folder)], "making the virtual environment")
        install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-r", str(lock)]
        _call(install, "installing the packages")
        temporary = folder / f"{STAMP}.tmp"
        temporary.write_text(_digest(lock), encoding="utf-8")
        os.replace(temporary, folder / STAMP)


@contextlib.contextmanager
def _alone(path: Path):
    """One maker at a time: a second one waits and then finds the work done."""
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _call(command: list[str], what: str) -> None:
    # Standard output carries the interpreter's path alone, so the tools' words go to standard error.
    result = subprocess.run(command, stdout=sys.stderr, check=False)
    if result.returncode:
        raise SetupError(f"The environment could not be made: {what} failed (see above). Run `make setup` again.")


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def main(arguments: list[str], root: Path) -> int:
    """`python` prints the interpreter to use; `setup` says where the environment is."""
    if arguments not in (["python"], ["setup"]):
        print("usage: python3 helpers/environment.py (python | setup)", file=sys.stderr)
        return 2
    try:
        python = interpreter(root)
    except (SetupError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(python if arguments == ["python"] else f"The environment is ready: {python}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent.parent))
