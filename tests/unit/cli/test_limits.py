"""Commands on a computer at its limits, by real runs: one sentence with the remedy, and nothing lost.

A row is a limit, a column a command. By default the quickest commands run; `--slow` runs all.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_commands import AGAIN, Inputs

_QUICK = ("deidentify",)
_MEMORY_BYTES = 700_000_000


def commands() -> list[object]:
    """All commands, those that take long as slow ones."""
    return [pytest.param(name, marks=[] if name in _QUICK else pytest.mark.slow) for name in AGAIN]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("limits") / "inputs").make()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of its own with the given options; skips where that is not permitted."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(options: str) -> Path:
        allowed = shutil.which("mount") and os.geteuid() == 0
        if not allowed or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place]).returncode:
            pytest.skip("no file system can be mounted here: it needs root and the right to mount")
        return place

    yield mounted
    subprocess.run(["umount", place], stderr=subprocess.DEVNULL)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    err: str

    @property
    def sentence(self) -> str:
        """The last line of stderr."""
        return self.err.strip().splitlines()[-1]


def ended(
    command: list[str], *, env: dict[str, str] | None = None, limit: tuple[int, int] | None = None
) -> Ended:
    """Run a command, under a limit of `resource` and its value if one is given."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(limit[0], (limit[1], limit[1]))

    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env, preexec_fn=limited)
    return Ended(done.returncode, done.stderr)


def says(end: Ended, *words: str) -> None:
    """The command failed with one sentence that holds the words, and calls it no defect."""
    assert end.code == 2, end.err[-3000:]
    assert "Traceback" not in end.err and "defect" not in end.err, end.err[-3000:]
    assert end.sentence.startswith("Error: ") and all(word in end.sentence for word in words), end.sentence


def half_written(out: Path) -> list[Path]:
    """Hidden parts of files that a failed command left, other than the record of the work."""
    return [p for p in out.parent.rglob("*") if p.name.endswith((".part", ".partial"))]


@pytest.mark.parametrize("name", commands())
def test_a_full_disk(name: str, inputs: Inputs, disk: Callable[[str], Path]) -> None:
    out = disk("size=16k" if name == "deidentify" else "size=60k") / "out"
    end = ended(inputs.command(name, out))
    says(end, "the disk is full", "free some space or write to another disk", str(out))
    assert not half_written(out)
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(["mount", "-o", "remount,size=60m", out.parent], check=True)
    assert ended(inputs.command(name, out)).code in (0, 1)


@pytest.mark.parametrize("name", commands())
def test_after_space_was_made_the_command_goes_on(
    name: str, inputs: Inputs, disk: Callable[[str], Path]
) -> None:
    if "--resume" not in AGAIN[name]:
        pytest.skip("the command begins anew")
    out = disk("size=120k") / "out"
    says(ended(inputs.command(name, out)), "the disk is full")
    subprocess.run(["mount", "-o", "remount,size=60m", out.parent], check=True)
    assert ended([*inputs.command(name, out), "--resume"]).code == 0
    assert not half_written(out)


@pytest.mark.parametrize("name", commands())
def test_a_mount_point_as_output(name: str, inputs: Inputs, disk: Callable[[str], Path]) -> None:
    out = disk("size=60m")
    assert ended(inputs.command(name, out)).code in (0, 1)
    assert any(p for p in out.iterdir() if not p.name.startswith(".")) and not half_written(out)


@pytest.mark.parametrize("name", commands())
def test_a_disk_that_can_only_be_read(name: str, inputs: Inputs, disk: Callable[[str], Path]) -> None:
    out = disk("size=1m,ro") / "out"
    says(ended(inputs.command(name, out)), "the disk can only be read", "name a folder on another one")


@pytest.mark.parametrize("home", [None, "/nonexistent", "/dev/null"])
@pytest.mark.parametrize("name", commands())
def test_without_a_home(name: str, home: str | None, inputs: Inputs, tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if k != "HOME" and not k.startswith(("XDG_", "MPL"))}
    there = kept if home is None else {**kept, "HOME": home}
    end = ended(inputs.command(name, tmp_path / "out"), env=there)
    assert end.code in (0, 1), end.err[-3000:]


@pytest.mark.parametrize("name", commands())
def test_700_mb_of_memory(name: str, inputs: Inputs, tmp_path: Path) -> None:
    """Enough for some commands; the others say so."""
    end = ended(inputs.command(name, tmp_path / "out"), limit=(resource.RLIMIT_AS, _MEMORY_BYTES))
    if end.code not in (0, 1):
        says(end, "memory", "ulimit -v")
        assert not half_written(tmp_path / "out")


@pytest.mark.parametrize("name", commands())
def test_a_limit_of_the_size_of_files(name: str, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    end = ended(inputs.command(name, out), limit=(resource.RLIMIT_FSIZE, 2_000))
    says(end, "larger than is allowed here", "ulimit -f", str(out))
    assert not half_written(out)


@pytest.mark.parametrize("name", commands())
def test_a_limit_of_open_files(name: str, inputs: Inputs, tmp_path: Path) -> None:
    """So few that the command cannot begin; what the interpreter itself needs is more."""
    end = ended(inputs.command(name, tmp_path / "out"), limit=(resource.RLIMIT_NOFILE, 12))
    if end.code not in (0, 1):
        says(end, "ulimit -n")


def test_a_folder_without_rights(inputs: Inputs, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    says(ended(inputs.command("deidentify", tmp_path / "out")), "permission denied")
