"""Write docs/benchmarks.md from all figures that are kept: python benchmarks/page.py"""

from __future__ import annotations

from collections.abc import Iterator

import ablation
import beam
import commands
import figures
import goal_forms
import kills
import monte_carlo
import mutations
import patients
import peer_plans
import peers
import prediction
import preprocess
import priors
import readers
import sites
import trade
import viewing

from vmat_diffusion.files import written_whole

# In the order of the page.
SECTIONS = (
    patients.section,
    commands.tg119_section,
    commands.plans_section,
    trade.section,
    commands.gap_section,
    goal_forms.section,
    sites.section,
    beam.section,
    monte_carlo.section,
    peers.section,
    peer_plans.section,
    preprocess.section,
    prediction.section,
    commands.openkbp_section,
    ablation.section,
    priors.section,
    mutations.section,
    kills.section,
    viewing.section,
    readers.section,
)


def lines() -> Iterator[str]:
    """The lines of the page."""
    yield "# Benchmarks"
    yield ""
    yield "`make bench` writes this page; do not edit it. Every section names the command that makes it and"
    yield "the date."
    for section in SECTIONS:
        yield from section()


def main() -> None:
    """Write the page."""
    page = figures.DOCS / "benchmarks.md"
    with written_whole(page) as part:
        part.write_text("\n".join(lines()) + "\n", encoding="utf-8")
    print(f"written: {page.name}")


if __name__ == "__main__":
    main()
