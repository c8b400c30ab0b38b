"""A worker of the review room whose plan takes as long as is asked for, to be run as a program.

ROOM_TEST_SECONDS is how long the search takes, ROOM_TEST_LOG a file in which each plan that begins and ends
is noted, ROOM_TEST_OUTCOME the verdict; with ROOM_TEST_FAILS the case is refused. With ROOM_TEST_GATE it is a
real plan: the program's own run with a stand-in for optimiser and independent engine.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vmat_diffusion import workflow
from vmat_diffusion.errors import CaseError
from vmat_diffusion.workflow import planning

# What the review asks of `run.json`.
CHECKS = ("files agree", "gamma 3 %/3 mm", "complexity", "deliverable")


def record(outcome: str) -> dict[str, Any]:
    """The part of `run.json` that the room reads."""
    words = ("pass", "pass", "warning", "pass" if outcome == "PASSED" else "fail")
    checks = [{"name": n, "result": w, "why": "", "value": 1.0} for n, w in zip(CHECKS, words, strict=True)]
    return {
        "verdict": {"outcome": outcome, "passed": outcome == "PASSED", "checks": checks},
        "arc_delivery_s": [60.0, 60.0],
        "files": ["RP.dcm", "RD.dcm", "report.html", "run.json"],
        "goals": [{"goal": "D95% >= 47 Gy", "structure": "PTV", "value": 50.0, "status": "pass"}],
        "prescription_gy": {"PTV": 50.0},
        "inputs": {"uid_hashes": {"series": "", "structure_set": "", "frame_of_reference": ""}},
        "fractions": 25,
        "mu": 300.0,
    }


def _case() -> Any:
    """What a worker asks of a case: where its target is, as in `small_case`, which takes long to import."""
    mask = np.zeros((20, 24, 24), bool)
    mask[8:13, 9:15, 9:15] = True
    return SimpleNamespace(
        targets=[SimpleNamespace(name="PTV", mask=mask)], grid=SimpleNamespace(shape=mask.shape)
    )


def _note(word: str) -> None:
    if log := os.environ.get("ROOM_TEST_LOG"):
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(f"{word}\n")


def plan_case(case_folder: Path, out: Path, asked: Any, *, progress: Any, **options: Any) -> Any:
    """A run folder that appears whole after the time that was asked for."""
    from vmat_diffusion.workflow.output import appearing_whole

    seconds = float(os.environ.get("ROOM_TEST_SECONDS", "0"))
    if os.environ.get("ROOM_TEST_FAILS"):
        raise CaseError(f"case folder {case_folder} and {case_folder.name} are of no use; give another one")
    if os.environ.get("ROOM_TEST_GATE"):
        from small_case import StandIn

        from vmat_diffusion.workflow.planning.run import plan_case

        return plan_case(case_folder, out, asked, tools=StandIn().tools, progress=progress, **options)
    outcome = os.environ.get("ROOM_TEST_OUTCOME", "PASSED")
    with appearing_whole(out, overwrite=False) as folder:
        _note(f"begun {out.name}")
        for k in range(round(20 * seconds)):
            progress("optimise", k / (20 * seconds), "")
            time.sleep(0.05)
            if k == 0:  # a thread of a library that goes on computing
                threading.Thread(target=time.sleep, args=(600,)).start()
        names = ["RD.dcm", "report.html"] + (["RP.dcm"] if outcome == "PASSED" else [])
        for name in names:
            (folder / name).write_text(f"<p>{name}</p>", encoding="utf-8")
        (folder / "run.json").write_text(json.dumps(record(outcome)), encoding="utf-8")
    _note(f"made {out.name}")
    return SimpleNamespace(task=SimpleNamespace(case=_case()), seconds={"optimise": seconds})


def check_again(run: Path, *, out: Path, progress: Any, **asked: Any) -> Any:
    """The check of a run that goes on and passes; it notes the time that it was given."""
    from vmat_diffusion.workflow.output import appearing_whole

    minutes = asked["check_minutes"]
    assert (run / "open_check").is_dir() and (run / "case").resolve() == asked["case_folder"].resolve()
    with appearing_whole(out, overwrite=False) as folder:
        _note(f"checked {run.name} {minutes}")
        for name in ("RD.dcm", "report.html", "RP.dcm"):
            (folder / name).write_text(f"<p>{name} again</p>", encoding="utf-8")
        (folder / "run.json").write_text(json.dumps(record("PASSED")), encoding="utf-8")
    return SimpleNamespace(seconds={"check": 1.0})


if __name__ == "__main__":
    workflow.plan_case = plan_case
    # In the place of the module, which takes long to import.
    planning.check_again = SimpleNamespace(check_again=check_again)
    from vmat_diffusion.web.queue import worker

    worker._make_ready = lambda *_: None
    worker.run()
