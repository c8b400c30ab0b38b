"""The cache of decoded cases."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from training_cases import small_training

from vmat_diffusion.distance import signed_distance_mm
from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import sha256_of
from vmat_diffusion.training import cache as module
from vmat_diffusion.training.cache import cached_case, decoded_case, default_cache
from vmat_diffusion.training.cases import save_case


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_case(tmp_path / "case_0001.npz", small_training())


def test_cached_case_is_the_decoded_one(file: Path, tmp_path: Path) -> None:
    plain = decoded_case(file)
    for _ in range(2):
        cached = cached_case(file, sha256_of(file), tmp_path / "cache")
        assert np.array_equal(cached.training.case.hu, plain.training.case.hu)
        assert np.array_equal(cached.training.case.reference_dose.gy, plain.training.case.reference_dose.gy)
        assert cached.training.constraints == plain.training.constraints
        assert cached.sdf_tenth_mm.keys() == {"PTV_70", "PTV_56", "Parotid_L", "Parotid_R"}
        for name, structure in cached.training.case.structures.items():
            assert np.array_equal(structure.mask, plain.training.case.structures[name].mask)
        for name, distances in cached.sdf_tenth_mm.items():
            assert np.array_equal(distances, plain.sdf_tenth_mm[name])
        assert not cached.training.case.hu.flags.writeable


def test_second_reading_does_not_decode(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = sha256_of(file)
    cached_case(file, digest, tmp_path / "cache")
    monkeypatch.setattr(module, "read_arrays", lambda path: pytest.fail("decoded again"))
    file.unlink()
    assert cached_case(file, digest, tmp_path / "cache").training.case.id == "case_0001"


def test_stored_distances_are_taken_and_limited(tmp_path: Path) -> None:
    training = small_training()
    structures = training.case.structures
    stored = {n: signed_distance_mm(s.mask, training.case.grid.spacing_mm) + 7 for n, s in structures.items()}
    file = save_case(tmp_path / "a.npz", training, sdf_mm=stored)
    maps = decoded_case(file, far_mm=30.0).sdf_tenth_mm["PTV_70"]
    assert np.abs(maps - np.clip(10 * stored["PTV_70"], -300, 300)).max() <= 0.5
    assert decoded_case(file, far_mm=None).sdf_tenth_mm == {}


def test_limits_of_distances_do_not_share_an_entry(file: Path, tmp_path: Path) -> None:
    digest = sha256_of(file)
    far = cached_case(file, digest, tmp_path / "cache").sdf_tenth_mm["PTV_70"].max()
    near = cached_case(file, digest, tmp_path / "cache", far_mm=20.0).sdf_tenth_mm["PTV_70"].max()
    assert (far > 400, near) == (True, 200)


def test_changed_file_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="is not the file that the index names; make the index again"):
        cached_case(file, hashlib.sha256(b"other").hexdigest(), tmp_path / "cache")


def test_damaged_entry_is_made_again(file: Path, tmp_path: Path) -> None:
    digest = sha256_of(file)
    cached_case(file, digest, tmp_path / "cache")
    (dose,) = (tmp_path / "cache").rglob("dose.npy")
    dose.write_bytes(dose.read_bytes()[:50])
    assert cached_case(file, digest, tmp_path / "cache").training.case.reference_dose.gy.max() > 30


@pytest.mark.parametrize("name", ["dose.npy", "sdf_tenth_mm.npy", "small.npz"])
def test_entry_with_a_file_deleted_or_cut_is_made_again(file: Path, tmp_path: Path, name: str) -> None:
    digest = sha256_of(file)
    whole = cached_case(file, digest, tmp_path / "cache")
    (part,) = (tmp_path / "cache").rglob(name)
    if name == "small.npz":
        part.write_bytes(part.read_bytes()[:200])
    else:
        part.unlink()
    again = cached_case(file, digest, tmp_path / "cache")
    assert again.training.case.reference_dose.gy.max() > 30
    assert list(again.sdf_tenth_mm) == list(whole.sdf_tenth_mm)


def test_unwritable_cache_is_named(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, no folder")
    with pytest.raises(CaseError, match=r"cannot be written .*; free space or give another with --cache"):
        cached_case(file, sha256_of(file), tmp_path / "cache")


def test_many_at_once_leave_one_entry(file: Path, tmp_path: Path) -> None:
    digest, found, start = sha256_of(file), [], threading.Barrier(6)

    def ask() -> None:
        start.wait()
        found.append(int(cached_case(file, digest, tmp_path / "cache").training.case.hu.sum(dtype=np.int64)))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert len(list((tmp_path / "cache" / digest[:2]).iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_default_cache_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    assert default_cache().parent == tmp_path
    assert default_cache().stat().st_mode & 0o077 == 0
