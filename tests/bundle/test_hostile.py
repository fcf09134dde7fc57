"""Bundles that are damaged, or made to do harm."""

from __future__ import annotations

import contextlib
import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefold.bundle import archive as archive_module
from edgefold.bundle.reader import load_bundle
from edgefold.bundle.writer import Contract, write_bundle, zip_path
from edgefold.errors import ArtifactError
from edgefold.report.content import Shipment

Entries = dict[str, bytes]


@pytest.fixture(scope="module")
def clean(make_shipment: Callable[[Path], Shipment], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    write_bundle(make_shipment(folder / "artifacts"), Contract(), folder / "out")
    return folder / "out"


@pytest.fixture
def bundle_dir(clean: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, with its zip, to damage."""
    shutil.copytree(clean, tmp_path / "out")
    shutil.copyfile(zip_path(clean), tmp_path / "out.zip")
    return tmp_path / "out"


def _artifact(out: Path) -> Path:
    return next(path for path in sorted((out / "artifacts").iterdir()))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _repack(out: Path, change: Callable[[Entries], None]) -> Path:
    """The zip again, with other entries."""
    with zipfile.ZipFile(zip_path(out)) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    change(entries)
    target = out.with_name("changed.zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return target


def test_one_flipped_bit_is_found(bundle_dir: Path) -> None:
    name = f"artifacts/{_artifact(bundle_dir).name}"
    _flip(_artifact(bundle_dir))
    with pytest.raises(ArtifactError, match="other content"):
        load_bundle(bundle_dir)

    def flip(entries: Entries) -> None:
        entries[name] = bytes([entries[name][0] ^ 1]) + entries[name][1:]

    with pytest.raises(ArtifactError, match="other content"):
        load_bundle(_repack(bundle_dir, flip))


def test_a_flipped_bit_in_the_zip_itself_is_found(bundle_dir: Path) -> None:
    path = zip_path(bundle_dir)
    clean = path.read_bytes()
    for position in range(0, len(clean), max(1, len(clean) // 60)):
        damaged = bytearray(clean)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        # Only what the format does not read (dates, unused fields) may pass, and then nothing of the payload is changed.
        with contextlib.suppress(ArtifactError), load_bundle(path) as bundle:
            for entry in bundle.manifest.payload:
                assert (bundle.root / entry.path).read_bytes() == (bundle_dir / entry.path).read_bytes()


@pytest.mark.parametrize("kind", ["missing", "extra", "longer"])
def test_files_that_are_not_as_listed(bundle_dir: Path, kind: str) -> None:
    artifact = _artifact(bundle_dir)
    if kind == "missing":
        artifact.unlink()
    elif kind == "extra":
        (bundle_dir / "artifacts" / "payload.so").write_bytes(b"x")
    else:
        artifact.write_bytes(artifact.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match={"missing": "lacks", "extra": "does not list", "longer": "bytes, expected"}[kind]):
        load_bundle(bundle_dir)


def test_links_are_refused(bundle_dir: Path, tmp_path: Path) -> None:
    artifact = _artifact(bundle_dir)
    outside = tmp_path / "outside"
    artifact.rename(outside)
    artifact.symlink_to(outside)
    with pytest.raises(ArtifactError, match="is a link"):
        load_bundle(bundle_dir)


def test_a_linked_folder_is_refused(bundle_dir: Path, tmp_path: Path) -> None:
    (bundle_dir / "artifacts").rename(tmp_path / "elsewhere")
    (bundle_dir / "artifacts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="is a link"):
        load_bundle(bundle_dir)


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "results/../../evil",
        "/evil",
        "C:/evil",
        "results\\..\\evil",
        "results/./evil",
        "results//evil",
        "results/e\x00vil",
        "results/e\nvil",
    ],
)
def test_entries_that_lead_out_are_refused(bundle_dir: Path, name: str) -> None:
    def add(entries: Entries) -> None:
        entries[name] = b"evil"

    target = _repack(bundle_dir, add)
    if "\x00" in name:  # zipfile cuts names at a NUL when it writes, so put it there by hand
        target = _repack(bundle_dir, lambda entries: entries.update({"results/eQvil": b"evil"}))
        target.write_bytes(target.read_bytes().replace(b"results/eQvil", b"results/e\x00vil"))
    with pytest.raises(ArtifactError, match="not a plain path"):
        load_bundle(target)
    assert not list(bundle_dir.parent.rglob("evil"))


def test_a_link_in_a_zip_is_refused(bundle_dir: Path) -> None:
    info = zipfile.ZipInfo("results/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(zip_path(bundle_dir), "a") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArtifactError, match="not a plain file"):
        load_bundle(zip_path(bundle_dir))


def test_an_entry_that_is_there_twice_is_refused(bundle_dir: Path) -> None:
    target = _repack(bundle_dir, lambda entries: entries.update({"results/REPORT.html": b"x"}))
    with pytest.raises(ArtifactError, match="there twice"):
        load_bundle(target)


def test_a_file_below_a_file_is_refused(bundle_dir: Path) -> None:
    target = _repack(bundle_dir, lambda entries: entries.update({"results/report.html/x": b"x"}))
    with pytest.raises(ArtifactError, match="below another file"):
        load_bundle(target)


def test_a_zip_bomb_is_not_unpacked(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_RESULTS_BYTES", 1 << 20)
    target = _repack(bundle_dir, lambda entries: entries.update({"results/zeros": b"\0" * (1 << 21)}))
    with pytest.raises(ArtifactError, match="larger than"):
        load_bundle(target)


def test_an_entry_larger_than_it_says_is_not_unpacked(bundle_dir: Path) -> None:
    target = _repack(bundle_dir, lambda entries: entries.update({"results/zeros": b"\0" * 100_000}))
    data = target.read_bytes()
    # The uncompressed size in the central directory: a lie of 10 bytes.
    at = data.rindex(b"results/zeros") - 46 + 24
    assert data[at : at + 4] == (100_000).to_bytes(4, "little")
    target.write_bytes(data[:at] + (10).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(ArtifactError):
        load_bundle(target)


def test_too_many_entries_are_refused(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_FILES", 5)
    with pytest.raises(ArtifactError, match="at most 5"):
        load_bundle(zip_path(bundle_dir))


def test_nothing_stays_behind_after_a_refusal(bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with pytest.raises(ArtifactError):
        load_bundle(_repack(bundle_dir, lambda entries: entries.update({"evil": b"x"})))
    assert list(temporary.iterdir()) == []


def _change(manifest: dict[str, Any], path: str) -> None:
    manifest["payload"][0]["path"] = path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(schema="edgefold.bundle/2"), "schema"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.pop("fold"), "fold"),
        (lambda m: _change(m, "../evil"), "plain path"),
        (lambda m: _change(m, "results/report.html"), "cannot be payload"),
        (lambda m: m["payload"].append(m["payload"][0]), "there twice"),
        (lambda m: m["artifacts"].append(m["artifacts"][0]), "there twice"),
        (lambda m: m["artifacts"][0].update(file="none.onnx"), "not in the payload"),
        (lambda m: m["payload"][0].update(sha256="abc"), "sha256"),
        (lambda m: m["payload"][0].update(size_bytes=-1), "size_bytes"),
        (lambda m: m["artifacts"][0].update(format="coreml"), "format"),
    ],
)
def test_manifests_that_do_not_fit(bundle_dir: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    file = bundle_dir / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="does not fit schema") as caught:
        load_bundle(bundle_dir)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"not json", b"\xff\xfe", b"[]", b"null"])
def test_manifests_that_are_no_json_object(bundle_dir: Path, text: bytes) -> None:
    (bundle_dir / "manifest.json").write_bytes(text)
    with pytest.raises(ArtifactError, match="does not fit schema"):
        load_bundle(bundle_dir)
