"""Commands that are killed (SIGKILL) at random moments: nothing is lost, doubled or left unjudged.

By default two quick commands; `--slow` kills all, and `benchmarks/kills.py` kills them a hundred times.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from kills import Broken, kill_often, promises, scenarios
from small_commands import AGAIN

_QUICK = ("deidentify",)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _QUICK else pytest.mark.slow) for name in AGAIN]
)
def test_killed_at_random_moments(name: str, tmp_path: Path) -> None:
    count = kill_often(scenarios(tmp_path)[name], tmp_path, 2, random.Random(name))
    assert count.kills == 2 and count.completed


def test_a_plan_file_without_its_verdict_breaks_the_promise(tmp_path: Path) -> None:
    plan = tmp_path / "out" / "RP.dcm"
    plan.parent.mkdir()
    plan.write_bytes(b"x")
    for record in (None, '{"verdict": {"passed": false}}'):
        if record:
            plan.with_name("run.json").write_text(record)
        with pytest.raises(Broken, match=r"RP\.dcm without the record of a passed verdict"):
            promises(tmp_path, plan.parent)
    plan.with_name("run.json").write_text('{"verdict": {"passed": true}}')
    promises(tmp_path, plan.parent)
