"""The folder that appears whole: other disks, failed moves, processes that died, and what is not ours."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vmat_diffusion.errors import InputError, LimitError, PlanError
from vmat_diffusion.files import is_dead, is_plain_name, read_json, this_process
from vmat_diffusion.workflow.output import appearing_whole, require_apart


def hidden(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.endswith(".partial")]


def write(out: Path, *, overwrite: bool = False, names: tuple[str, ...] = (), text: str = "new") -> None:
    with appearing_whole(out, overwrite=overwrite, names=names) as part:
        (part / "a.txt").write_text(text)
        (part / "b").mkdir()
        (part / "b" / "c.txt").write_text(text)
        (part / "run.json").write_text(json.dumps({"files": ["a.txt", "b", "run.json"]}))


def contents(out: Path) -> dict[str, str]:
    return {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*.txt")}


WRITTEN = {"a.txt": "new", "b/c.txt": "new"}


def test_results_reach_a_folder_that_is_there_and_one_that_is_not(tmp_path: Path) -> None:
    (tmp_path / "there" / "lost+found").mkdir(parents=True)  # as a new disk has it
    for name in ("there", "not/yet/there"):
        write(tmp_path / name)
        assert contents(tmp_path / name) == WRITTEN
    assert not hidden(tmp_path)


def test_results_reach_another_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk]).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        write(disk)
        write(disk / "below")
        assert contents(disk / "below") == WRITTEN
        with pytest.raises(LimitError, match="full"), appearing_whole(disk / "big", overwrite=False) as part:
            (part / "big").write_bytes(bytes(2_000_000))
        assert not (disk / "big").exists() and not hidden(disk)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_cannot_be_renamed_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As between file systems, wherever their border lies."""
    plain = Path.rename

    def across(self: Path, target: Path) -> Path:
        if "files" in (self.name, self.parent.name) and "unmoved" not in str(target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self))
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", across)
    monkeypatch.setattr(Path, "replace", across)
    write(tmp_path / "out")
    assert contents(tmp_path / "out") == WRITTEN
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.txt", "b", "run.json"]


def test_results_that_cannot_be_moved_stay_where_the_sentence_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("vmat_diffusion.workflow.output._publish", full)
    with pytest.raises(LimitError, match=r"disk is full.*stays in") as caught:
        write(tmp_path / "out")
    (kept,) = tmp_path.iterdir()
    assert str(kept) in str(caught.value)
    assert contents(kept) == WRITTEN


def test_results_stay_where_the_folder_was_filled_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(PlanError, match=r"filled by something else.*stays in"),
        appearing_whole(out, overwrite=False) as part,
    ):
        (part / "a.txt").write_text("new")
        out.mkdir()
        (out / "a.txt").write_text("of another")
    assert contents(out) == {"a.txt": "of another"}
    (kept,) = (p for p in tmp_path.iterdir() if p != out)
    assert contents(kept) == {"a.txt": "new"}


def test_a_failure_while_working_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), appearing_whole(tmp_path / "a" / "b", overwrite=False):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_overwriting_replaces_what_an_earlier_run_lists_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, text="old")
    (out / "mine.txt").write_text("mine")
    write(out, overwrite=True, names=("a.txt",))
    assert contents(out) == {**WRITTEN, "mine.txt": "mine"}
    with pytest.raises(PlanError, match=r"mine\.txt, which no earlier run"):
        write(out, overwrite=True, names=("*.txt",))
    (out / "run.json").unlink()
    for names in ((), ("a.txt",)):
        with pytest.raises(PlanError, match="which no earlier run of ours lists"):
            write(out, overwrite=True, names=names, text="newer")
    left = {name: text for name, text in contents(out).items() if ".unmoved-" not in name}
    assert left == {**WRITTEN, "mine.txt": "mine"}


@pytest.mark.parametrize(
    "files", [["../mine.txt"], ["/etc/passwd"], [".."], [7, None], "mine.txt", {"mine.txt": 1}]
)
def test_a_record_lists_plain_names_alone(tmp_path: Path, files: object) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for mine in (out / "mine.txt", tmp_path / "mine.txt"):
        mine.write_text("mine")
    (out / "run.json").write_text(json.dumps({"files": files, "candidates": 7}))
    for name in ("mine.txt", "../mine.txt"):
        with pytest.raises(PlanError, match="no earlier run"):
            write(out, overwrite=True, names=(name,))
    assert contents(out) == {"mine.txt": "mine"} and (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("name", ["a", "RP.dcm", "ä b.npz", ".work"])
def test_plain_names(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "..\\b", "/a", "C:x", "a\0", "a\nb", "x" * 256, 3, None]
)
def test_names_that_are_none(name: object) -> None:
    assert not is_plain_name(name)


@pytest.mark.parametrize("where", ["", "sub/deeper", "..", "link", "link/sub"])
def test_out_within_above_or_equal_to_the_input_is_refused(tmp_path: Path, where: str) -> None:
    case = tmp_path / "data" / "case"
    case.mkdir(parents=True)
    (case / "CT.dcm").write_text("x")
    (case / "link").symlink_to(case)
    with pytest.raises(InputError, match="--out"):
        require_apart(case / where, case)
    require_apart(tmp_path / "data" / "out", case)
    require_apart(tmp_path / "data" / "case_2", case)


def test_beside_an_input_file_is_allowed_but_not_over_it(tmp_path: Path) -> None:
    plan = tmp_path / "runs" / "RP.dcm"
    plan.parent.mkdir()
    plan.write_text("x")
    require_apart(plan.parent / "qa", plan, None)
    for out in (plan, plan.parent):
        with pytest.raises(InputError, match="--out"):
            require_apart(out, plan)


# What a process does that is killed while it writes: at which place, and the words that it ends with.
KILLED = """
import os, signal, sys
from pathlib import Path
from vmat_diffusion.workflow import output
out, place = Path(sys.argv[1]), sys.argv[2]
def die(*a, **k):
    os.kill(os.getpid(), signal.SIGKILL)
if place == "publish":
    output._publish = die
elif place == "move":
    plain = output._moved
    def moved(*a):
        plain(*a)
        die()
    output._moved = moved
with output.appearing_whole(out, overwrite=True, names=("a.txt", "old.txt")) as part:
    (part / "a.txt").write_text("new")
    (part / "z.txt").write_text("new")
    if place == "work":
        die()
    (part / "run.json").write_text('{"files": ["a.txt", "z.txt", "run.json"]}')
"""


def killed(out: Path, place: str) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(out), place])
    assert ended.returncode == -9


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("place", ["work", "publish", "move"])
def test_after_kill_9_nothing_is_lost_and_nothing_remains(tmp_path: Path, place: str, earlier: bool) -> None:
    out = tmp_path / "out"
    old = {}
    if earlier:
        out.mkdir()
        old = {"a.txt": "old", "old.txt": "old"}
        for name, text in old.items():
            (out / name).write_text(text)
        (out / "run.json").write_text(json.dumps({"files": [*old, "run.json"]}))
    if place == "move" and not earlier:
        pytest.skip("a new folder is renamed at once")
    killed(out, place)
    assert hidden(tmp_path)
    with (
        pytest.raises(PlanError if earlier or place != "work" else ZeroDivisionError),
        appearing_whole(out, overwrite=False),
    ):
        raise ZeroDivisionError
    assert not hidden(tmp_path)
    new = {"a.txt": "new", "z.txt": "new"}
    assert (contents(out) if out.exists() else {}) == (old if place == "work" else new)


def test_a_living_process_keeps_its_hidden_folder(tmp_path: Path) -> None:
    with appearing_whole(tmp_path / "out", overwrite=False) as part:
        (part / "a.txt").write_text("first")
        with appearing_whole(tmp_path / "other", overwrite=False) as beside:
            (beside / "a.txt").write_text("second")
    assert contents(tmp_path / "out") == {"a.txt": "first"}


def test_who_is_dead() -> None:
    own = this_process()
    assert not is_dead(own)
    assert is_dead({**own, "started": "another start"})  # the number of the process was given anew
    assert not is_dead({**own, "host": "elsewhere", "pid": 2**22 + 7})
    for damaged in (None, 3, {}, {"pid": "x"}, {**own, "pid": 10**30}):
        assert not is_dead(damaged)
    import platform

    assert platform.node() not in json.dumps(own)


def test_damaged_json_is_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"[" * 200_000)
    assert read_json(tmp_path / "x") is None and read_json(tmp_path / "y") is None
