"""The lines of docs/benchmarks.md about plans of OpenKBP patients against their clinical doses.

    python benchmarks/clinical.py DIR [--remark TEXT]   # keep the tables of `benchmark plans --out DIR`

They are kept in docs/benchmarks_clinical.json; `plans.py --page` writes the page with them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from computer import stamp

from vmat_diffusion.benchmark.plans_tables import SUMMARY_MD
from vmat_diffusion.files import written_whole

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "benchmarks_clinical.json"


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about these plans; none without tables."""
    if not FIGURES.is_file():
        return
    kept = json.loads(FIGURES.read_text(encoding="utf-8"))
    yield ""
    for line in kept["tables"].splitlines():
        yield f"#{line}" if line.startswith("#") else line
    yield ""
    yield "[Plans against clinical doses](plans_benchmark.md) says what the columns mean."
    yield "The command is `vmat-diffusion benchmark plans --data DIR --cases 20`; `benchmarks/clinical.py`"
    yield "keeps its tables."
    yield f"Measured on {kept['date']} on {kept['machine']}. {kept['remark']}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder that `benchmark plans` wrote")
    parser.add_argument("--remark", default="", help="what a reader of the page must know of this run")
    given = parser.parse_args()
    tables = (given.results / SUMMARY_MD).read_text(encoding="utf-8")
    kept = stamp() | {"tables": tables, "remark": given.remark}
    with written_whole(FIGURES) as part:
        part.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print("\n".join(section()))


if __name__ == "__main__":
    main()
