"""Whatever is done to the files, reading ends in a result or in one sentence (InputError).

Some of each kind by default, 14,000 with `--slow`; `benchmarks/mutations.py` runs these in limited memory.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from harmed_files import GROUPS, drawn, outcome
from mutations import NUMBERS

_FEW = {"dicom": 120, "arrays": 36, "texts": 110}
# Files that once led to a traceback.
_ONCE = {"dicom": (4335, 5190, 8655, 9495), "arrays": (596, 646, 1003, 1079, 1506), "texts": ()}


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("group", list(GROUPS))
def test_a_result_or_a_sentence(
    group: str, request: pytest.FixtureRequest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kinds = GROUPS[group](tmp_path)
    for kind in kinds.values():
        kind.read(0)  # unharmed
    numbers = NUMBERS if request.config.getoption("--slow") else _FEW
    tally: Counter[str] = Counter()
    for number in (*range(numbers[group]), *_ONCE[group]):
        kind = drawn(kinds, number)
        tally[outcome(kind, number)] += 1
    # The mutations must neither all be harmless nor all be fatal, else the test would say nothing.
    assert 0.03 < tally["read"] / numbers[group] < 0.9, tally
    captured = capfd.readouterr()
    assert "secret" not in (captured.err + captured.out).lower()
