"""Model files: found, checked, prepared once, loaded whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from semcache.cache import model
from semcache.cache.model import DEFAULT, MANIFEST, MODEL, PROBES, TOKENIZER, Manifest, PreparedModel, Progress
from semcache.errors import StartError


class FakeExport:
    """Writes the files of a prepared model, of no use but for their digests."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, name: str, source: Path, weights: str, target: Path, progress: Progress) -> None:
        self.runs += 1
        progress("writing")
        (target / MODEL).write_bytes(b"graph")
        (target / TOKENIZER).write_text("{}")
        np.save(target / PROBES, np.eye(2, dtype=np.float32))
        files = {file: model.sha256_of(target / file) for file in (MODEL, TOKENIZER, PROBES)}
        manifest = Manifest(name, weights, "int8", 2, 16, "", None, 0.999, ("a", "b"), files)
        (target / MANIFEST).write_text(manifest.to_json())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_the_default_model_is_the_original_release_in_eight_bits(prepared_model: PreparedModel) -> None:
    manifest = prepared_model.manifest
    assert manifest.weights == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert prepared_model.folder.name.startswith("all-MiniLM-L6-v2-53aa51172d142c89")
    assert (manifest.dimensions, manifest.window, manifest.precision) == (384, 256, "int8")
    assert manifest.cosine >= 0.993
    assert model.load() == prepared_model


def test_the_stamp_tells_apart_whatever_changes_vectors(prepared_model: PreparedModel) -> None:
    manifest = prepared_model.manifest
    others = [
        replace(manifest, name="another"),
        replace(manifest, weights="00" * 32),
        replace(manifest, precision="fp32"),
        replace(manifest, recipe=99),
        replace(manifest, dimensions=383),
    ]
    stamps = {PreparedModel(prepared_model.folder, m).stamp for m in [manifest, *others]}
    assert len(stamps) == 1 + len(others)


def test_other_weights_under_a_known_name_are_refused(source: Path) -> None:
    with pytest.raises(StartError, match=r"is not that of all-MiniLM-L6-v2 \(53aa51172d14"):
        model.check_weights(DEFAULT, source)


def test_a_folder_is_prepared_once(source: Path, cache: Path) -> None:
    export, steps = FakeExport(), list[str]()
    first = model.prepare(str(source), cache, steps.append, export)
    assert model.prepare(str(source), cache, steps.append, export) == first == model.load(str(source), cache)
    assert export.runs == 1
    assert "writing" in steps


def test_changed_weights_are_prepared_anew_and_then_loaded(source: Path, cache: Path) -> None:
    export = FakeExport()
    old = model.prepare(str(source), cache, export=export)
    (source / "model.safetensors").write_bytes(b"other weights")
    new = model.prepare(str(source), cache, export=export)
    assert export.runs == 2
    assert new.stamp != old.stamp
    assert model.load(str(source), cache) == new


def test_weights_in_several_files_are_all_in_the_digest(source: Path) -> None:
    one = model.check_weights("x", source)
    (source / "model-2.safetensors").write_bytes(b"more")
    two = model.check_weights("x", source)
    (source / "model-2.safetensors").write_bytes(b"less")
    assert len({one, two, model.check_weights("x", source)}) == 3


def test_an_export_that_fails_leaves_nothing(source: Path, cache: Path) -> None:
    def half(name: str, source: Path, weights: str, target: Path, progress: Progress) -> None:
        (target / MODEL).write_bytes(b"half")
        raise StartError("out of memory")

    with pytest.raises(StartError, match="out of memory"):
        model.prepare(str(source), cache, export=half)
    assert list(cache.iterdir()) == []
    with pytest.raises(StartError, match="not prepared"):
        model.load(str(source), cache)


def test_two_processes_preparing_at_once_both_succeed(source: Path, cache: Path) -> None:
    def overtaken(*args: object) -> None:
        model.prepare(str(source), cache, export=FakeExport())
        FakeExport()(*args)  # type: ignore[arg-type]

    assert model.prepare(str(source), cache, export=overtaken) == model.load(str(source), cache)
    assert len(list(cache.iterdir())) == 1


def test_a_model_that_is_missing_says_how_to_get_it(cache: Path) -> None:
    with pytest.raises(StartError, match="not prepared in .*; run: semcache model prepare all-MiniLM-L6-v2"):
        model.load(DEFAULT, cache)


@pytest.mark.parametrize("file", [MODEL, TOKENIZER, PROBES, MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_never_loaded_and_prepare_mends_it(source: Path, cache: Path, file: str, damage: str) -> None:
    export = FakeExport()
    whole = model.prepare(str(source), cache, export=export)
    path = whole.folder / file
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(StartError, match="damaged or of another version"):
        model.load(str(source), cache)
    assert model.prepare(str(source), cache, export=export) == whole
    assert export.runs == 2


def test_a_model_of_another_recipe_is_not_loaded(source: Path, cache: Path) -> None:
    made = model.prepare(str(source), cache, export=FakeExport())
    raw = json.loads((made.folder / MANIFEST).read_text())
    (made.folder / MANIFEST).write_text(json.dumps({**raw, "recipe": model.RECIPE + 1}))
    with pytest.raises(StartError, match="another version"):
        model.load(str(source), cache)


def test_a_copy_under_another_name_is_not_that_model(source: Path, cache: Path, tmp_path: Path) -> None:
    made = model.prepare(str(source), cache, export=FakeExport())
    shutil.copytree(made.folder, cache / f"all-MiniLM-L6-v2-53aa51172d142c89-r{model.RECIPE}")
    with pytest.raises(StartError):
        model.load(DEFAULT, cache)


def test_names_that_differ_in_their_path_only_do_not_share_a_folder(source: Path, cache: Path, tmp_path: Path) -> None:
    twin = tmp_path / "elsewhere" / source.name
    shutil.copytree(source, twin)
    folders = {model.prepare(str(path), cache, export=FakeExport()).folder for path in (source, twin)}
    assert len(folders) == 2


def test_bad_places_are_one_clear_line(tmp_path: Path, source: Path) -> None:
    with pytest.raises(StartError, match="there is no such folder"):
        model.locate("./missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StartError, match="so it is no model"):
        model.prepare(str(tmp_path / "empty"), tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="cannot be written: .*; set XDG_CACHE_HOME"):
        model.prepare(str(source), tmp_path / "file" / "cache", export=FakeExport())


def test_what_the_exporting_process_complains_of_is_told(source: Path, cache: Path) -> None:
    # Real weights are missing, so the real exporter fails: after loading torch, which takes its time.
    with pytest.raises(StartError, match=r"my-model: could not be prepared: \S+"):
        model.prepare(str(source), cache)
