"""Fixtures shared by all tests: test data that is not part of the project, and checked shapes."""

from __future__ import annotations

import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from small_case import StandIn

# Shapes and types in the signatures of these modules are enforced while testing; an int is a fine float.
install_import_hook(
    ["vmat_diffusion.geometry", "vmat_diffusion.case"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# A slow or busy computer is no defect. In CI the same examples run every time, so that a failure
# belongs to the change under test; elsewhere new ones are looked for.
hypothesis.settings.register_profile(
    "project", deadline=None, derandomize="CI" in os.environ, max_examples=50
)
hypothesis.settings.load_profile("project")

_ROOT = Path(__file__).resolve().parents[1]
# Archive under `dicom/` of the shared data that holds each patient's folder.
_ARCHIVES = {
    "pt_3": "openkbp_dicom",
    "pt_22": "openkbp_dicom",
    "pt_201": "openkbp_dicom",
    "hn_fullres": "hn_fullres",
    "dicompyler": "breast_tps_dvh",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Slow tests run, and golden files change, only when asked for."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow tests unless --slow was given or they are selected by name or mark."""
    if config.getoption("--slow") or config.getoption("-m"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow (make test-all)"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the test data that is not part of the project; skips where it is absent."""
    folder = Path(os.environ.get("VMAT_SHARED_DATA", _ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip("test data absent: set VMAT_SHARED_DATA to the folder that holds dicom/, rtplans/, ...")
    return folder


@pytest.fixture(scope="session")
def patient(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpacks a patient's DICOM folder by name, each archive once per session.

    Names: pt_3, pt_22, pt_201, hn_fullres, dicompyler.
    """
    unpacked: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        archive = _ARCHIVES[name]
        if archive not in unpacked:
            file = shared_data / "dicom" / f"{archive}.tar.xz"
            if not file.is_file():
                pytest.skip(f"test data absent: {archive}.tar.xz")
            folder = tmp_path_factory.mktemp(archive)
            with tarfile.open(file) as tar:
                if hasattr(tarfile, "data_filter"):
                    tar.extractall(folder, filter="data")
                else:
                    tar.extractall(folder)
            unpacked[archive] = folder
        found = unpacked[archive] / name
        assert found.is_dir(), f"{archive}.tar.xz holds no folder {name}"
        return found

    return unpack


@pytest.fixture(scope="session")
def case_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small case as a folder of DICOM files, to be read only."""
    from small_case import small_case

    from vmat_diffusion.dicom import write_case

    folder = tmp_path_factory.mktemp("small_case") / "dicom"
    write_case(folder, small_case())
    return folder


@pytest.fixture
def optimiser(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A stand-in for the optimiser and the independent engine, to be handed in as `optimiser.tools`.

    The PDF of the report, seconds for each plan, is left empty: `tests/unit/report` looks at it.
    """
    from small_case import StandIn

    monkeypatch.setattr("vmat_diffusion.report.page.pdf_bytes", lambda document: b"%PDF-1.4")

    return StandIn()


def pytest_configure(config: pytest.Config) -> None:
    """Processes of `pytest -n` and in the background ignore Ctrl-C, which some tests send themselves."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
