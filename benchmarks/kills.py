"""Kill each command at random moments (SIGKILL) and look what it left: nothing lost, doubled or unjudged.

    python benchmarks/kills.py [--kills 102] [--seed 1] [--only plan train ...] [--real-plan]

Every command runs in a small setting, is killed up to three times in a row in the same folder, and is then
run to its end, which must give what an undisturbed run gives. Half of the moments are drawn from the whole
running time, half from its last fifth, where files reach their places. `plan` searches with a stand-in for
optimiser and independent engine, which take most of the time and write nothing; gate, files and record are
the program's own. With --real-plan it is the command itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from figures import keep_row, load

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
PROGRAM = (sys.executable, "-m", "vmat_diffusion")
_IN_A_ROW, _LATE_SHARE, _TRIES = 3, 0.2, 4


class Broken(AssertionError):
    """A promise that does not hold after a kill."""


@dataclass(frozen=True)
class Scenario:
    """A command in a small setting. `again` is added to go on; `results(out)` is what two runs must share."""

    name: str
    command: Callable[[Path], list[str]]
    again: tuple[str, ...]
    results: Callable[[Path], dict[str, Any]]


@dataclass
class Count:
    """What became of the kills of a command."""

    kills: int = 0
    completed: int = 0
    seconds: float = 0.0
    left: dict[str, int] = field(default_factory=dict)


def scenarios(work: Path) -> dict[str, Scenario]:
    """All commands with their inputs below `work`."""
    from small_commands import AGAIN, Inputs

    inputs = Inputs(work).make()
    results = {"plan": _plan, "train": _trained, "predict": _predicted}

    def of(name: str) -> Scenario:
        return Scenario(name, lambda out: inputs.command(name, out), AGAIN[name], results.get(name, _visible))

    return {name: of(name) for name in AGAIN}


def real_plan(work: Path) -> Scenario:
    """`plan` itself, as coarse as the gate allows."""
    gate = work / "gate.toml"
    gate.write_text("uncertainty_percent = 3.0\n")
    words = (*PROGRAM, "plan", work / "case", "--goals", work / "sheet.toml", "--arcs", 1, "--gate", gate)
    options = ("--search-minutes", 0.2, "--uncertainty", 0.029, "--out")
    return Scenario(
        "plan",
        lambda out: [*map(str, (*words, *options, out))],
        ("--overwrite",),
        lambda out: {"files": sorted(p.name for p in out.iterdir())},
    )


# What two runs must share: all that does not depend on the clock or on new UIDs.


def _visible(out: Path) -> dict[str, Any]:
    files = (p for p in sorted(out.rglob("*")) if p.is_file() and ".work" not in p.parts)
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in files}


def _plan(out: Path) -> dict[str, Any]:
    record = json.loads((out / "run.json").read_text())
    with np.load(out / "fluence.npz") as file:
        arrays = {name: file[name].tobytes() for name in file.files}
    points = (out / "control_points.csv").read_bytes()
    return {
        "files": sorted(p.name for p in out.iterdir()),
        "points": points,
        "goals": record["goals"],
        **arrays,
    }


def _predicted(out: Path) -> dict[str, Any]:
    with np.load(out / "prediction.npz") as file:
        arrays = {name: file[name].tobytes() for name in file.files}
    return {"files": sorted(p.name for p in out.iterdir()), **arrays}


def _trained(out: Path) -> dict[str, Any]:
    from training_runs import curve

    from vmat_diffusion.diffusion.model import load_model
    from vmat_diffusion.training.checkpoint import read_metrics

    model = load_model(out / "weights.safetensors")
    assert model.residual is not None
    nets = {"mean": model.mean, "residual": model.residual}
    weights = {
        f"{n} {k}": v.numpy().tobytes() for n, net in nets.items() for k, v in net.state_dict().items()
    }
    return {"metrics": curve(read_metrics(out)), **weights}


def promises(work: Path, out: Path) -> None:
    """Raise Broken for what no moment of a kill may leave behind."""
    for plan in work.rglob("RP.dcm"):
        if ".partial" in str(plan.relative_to(work)):  # unsealed only after the verdict
            continue
        record = plan.parent / "run.json"
        if not record.is_file() or not json.loads(record.read_text())["verdict"]["passed"]:
            raise Broken(f"{plan.relative_to(work)} without the record of a passed verdict")
    for file in (p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if ".partial" in str(file.relative_to(work)):
            continue
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".npz":
            with np.load(file) as arrays:
                for name in arrays.files:
                    _ = arrays[name]
        elif file.suffix == ".state" and json.loads(file.read_text())["id"] != file.stem:
            raise Broken(f"{file.name} is of another case")


def swept(work: Path, out: Path) -> None:
    """Raise Broken for what a finished run may leave behind of those that were killed before it."""
    for file in (*out.rglob(".*"), *(p for p in out.parent.glob(".*") if out.name in p.name)):
        if file.name.endswith((".partial", ".part")):
            raise Broken(f"{file.relative_to(work)} was not swept")
    index = out / "index.jsonl"
    if index.is_file():
        names = [json.loads(line)["id"] for line in index.read_text().splitlines()]
        if len(set(names)) < len(names):
            raise Broken("a case stands twice in the index")


def killed(command: list[str], after_s: float) -> bool:
    """Start a command and kill its process group then; False where it had ended before."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after_s)
    ended = process.poll() is not None
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return not ended


def completed(command: list[str]) -> float:
    """Run a command to its end; its seconds. Raises Broken where it fails."""
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Broken(f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return time.monotonic() - started


def moment(draw: random.Random, seconds: float) -> float:
    """When to kill a run of so many seconds."""
    first = 0.0 if draw.random() < 0.5 else 1 - _LATE_SHARE
    return seconds * draw.uniform(first, 1.0)


def kill_often(scenario: Scenario, work: Path, kills: int, draw: random.Random) -> Count:
    """Kill a command so many times; what was counted. Raises Broken naming the promise."""
    undisturbed = work / f"{scenario.name} undisturbed"
    if not undisturbed.exists():
        completed(scenario.command(undisturbed))
        shutil.rmtree(undisturbed)
    count = Count(seconds=completed(scenario.command(undisturbed)))  # warm: caches are filled
    wanted, round_ = scenario.results(undisturbed), 0
    while count.kills < kills:
        round_ += 1
        out = work / f"{scenario.name} {round_}"
        tries = 0
        for _ in range(min(_IN_A_ROW, kills - count.kills) if round_ % 2 else 1):
            while not killed(_going_on(scenario, out), moment(draw, count.seconds)):
                tries += 1
                _same(scenario, wanted, out)
                shutil.rmtree(out)
                if tries > _TRIES:  # the computer is faster now than when it was measured
                    count.seconds *= 0.8
            count.kills += 1
            promises(work, out)
            where = "results" if out.is_dir() and _visible(out) else "hidden" if _hidden(out) else "nothing"
            count.left[where] = count.left.get(where, 0) + 1
        completed(_going_on(scenario, out))
        count.completed += 1
        swept(work, out)
        _same(scenario, wanted, out)
        shutil.rmtree(out)
    return count


def _going_on(scenario: Scenario, out: Path) -> list[str]:
    """The command, told to go on where something is there."""
    if not scenario.again and out.is_dir() and _visible(out):
        shutil.rmtree(out)  # it is complete: `appearing_whole` moves it as a whole
    there = out.is_dir() and any(out.iterdir())
    return [*scenario.command(out), *(scenario.again if there or "--overwrite" not in scenario.again else ())]


def _hidden(out: Path) -> bool:
    return any(p.name.endswith(".partial") for p in out.parent.glob(f".{out.name}*"))


def _same(scenario: Scenario, wanted: dict[str, Any], out: Path) -> None:
    found = scenario.results(out)
    different = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if different:
        raise Broken(f"{scenario.name}: {different[0]} and {len(different) - 1} more differ from undisturbed")


def section() -> Iterator[str]:
    """The section of the page."""
    kept = load("kills")
    if not kept:
        return
    yield ""
    yield "## Killed at random moments"
    yield ""
    yield f"`python benchmarks/kills.py`, {kept['date']}. SIGKILL to the process group, half of the"
    yield "moments in the whole running time, half in its last fifth; up to three in a row, then a run to the"
    yield "end with the results of an undisturbed one. `plan` with a stand-in for search and second engine."
    yield ""
    yield "| command | kills | nothing left | hidden folder | results | runs to the end | promises broken |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, row in kept["commands"].items():
        left = row["left"]
        cells = [
            row["kills"],
            *(left.get(k, 0) for k in ("nothing", "hidden", "results")),
            row["completed"],
            0,
        ]
        yield f"| {name} | {' | '.join(map(str, cells))} |"


def main() -> None:
    """Kill all commands, and keep the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=102)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], metavar="COMMAND")
    parser.add_argument("--real-plan", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vmat-kills-") as name:
        work = Path(name)
        known = scenarios(work)
        if given.real_plan:
            known["plan"] = real_plan(work)
        chosen = [s for s in known.values() if not given.only or s.name in given.only]
        for k, scenario in enumerate(chosen):
            kills = given.kills // len(chosen) + (k < given.kills % len(chosen))
            count = kill_often(scenario, work, kills, random.Random(f"{given.seed} {scenario.name}"))
            print(f"{scenario.name}: {count}", flush=True)
            if not given.real_plan:
                row = {"kills": count.kills, "completed": count.completed, "left": count.left}
                keep_row("kills", "commands", scenario.name, row)


if __name__ == "__main__":
    main()
