"""The clients' environments: made once from pinned lists, found again in no time, told apart by what the lists say.

Python's lie in `.venv-clients/`, npm's in the `node_modules` beside each package.json: Node looks there only.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.e2e.catalog import HERE, ROOT, Client

PYTHONS = ROOT / ".venv-clients"
LISTS = HERE / "environments"
CLIENTS = HERE / "clients"
NODE_LEAST = 20

Say = Callable[[str], None]


class Unavailable(Exception):
    """This machine cannot run the client; the message says what is missing."""


def command(client: Client, say: Say) -> list[str]:
    """Make the client's environment, if it is not there, and return what runs its program.

    Raises Unavailable, or subprocess.CalledProcessError when an installer fails.
    """
    if client.is_light:
        return [sys.executable, str(CLIENTS / client.program)]
    if client.environment.startswith("node-"):
        node = _node()
        _once(CLIENTS / client.environment / "node_modules", _npm_lists(client), say, client.environment, _npm_install)
        return [node, str(CLIENTS / client.environment / client.program)]
    folder = python_environment(client.environment, say)
    return [str(folder / "bin" / "python"), str(CLIENTS / client.program)]


def python_environment(name: str, say: Say) -> Path:
    """The folder of a virtual environment with what environments/NAME.txt lists."""
    folder = PYTHONS / name
    _once(folder, [LISTS / f"{name}.txt"], say, name, _pip_install)
    return folder


def more_packages(name: str, say: Say) -> Path:
    """A folder with what environments/NAME.txt lists, to be put beside the project's own packages."""
    folder = PYTHONS / name
    _once(folder, [LISTS / f"{name}.txt"], say, name, _pip_install_beside)
    return folder


def _once(
    folder: Path, lists: Sequence[Path], say: Say, name: str, install: Callable[[Path, Sequence[Path]], None]
) -> None:
    """Install unless a mark says that just this was installed with just this interpreter."""
    digest = hashlib.sha256(sys.version.encode() + b"".join(path.read_bytes() for path in lists)).hexdigest()
    mark = folder / ".installed"
    if mark.is_file() and mark.read_text() == digest:
        return
    say(f"installing {name}; this is done once")
    mark.unlink(missing_ok=True)
    install(folder, lists)
    mark.write_text(digest)


def _pip_install(folder: Path, lists: Sequence[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, *(argument for path in lists for argument in ("-r", path))], check=True)


def _pip_install_beside(folder: Path, lists: Sequence[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", folder, *(part for path in lists for part in ("-r", path))], check=True)


def _npm_install(folder: Path, lists: Sequence[Path]) -> None:
    command = ["npm", "ci", "--no-audit", "--no-fund", "--silent", "--ignore-scripts"]
    subprocess.run(command, cwd=folder.parent, check=True)


def _npm_lists(client: Client) -> list[Path]:
    return [CLIENTS / client.environment / name for name in ("package.json", "package-lock.json")]


def _node() -> str:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise Unavailable(f"Node {NODE_LEAST} or newer, with npm, is not installed")
    version = subprocess.run([node, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < NODE_LEAST:
        raise Unavailable(f"Node {NODE_LEAST} or newer is needed, and {version} is installed")
    return node
