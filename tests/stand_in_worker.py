"""A worker of the review room with a stand-in for optimiser and independent engine, to be run as a program.

Two numbers may come from the environment: how long the search takes, and which engine's factor it finds.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from vmat_diffusion import workflow


def plan_case(*arguments: Any, progress: Any, **options: Any) -> Any:
    """As the program's own; what takes memory is imported here, as there."""
    from small_case import StandIn

    from vmat_diffusion.workflow.planning.run import plan_case

    if log := os.environ.get("ROOM_TEST_LOG"):
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(f"{os.getpid()}\n")
    seconds = float(os.environ.get("ROOM_TEST_SECONDS", "0"))
    for k in range(round(20 * seconds)):
        progress("optimise", k / (20 * seconds), "")
        time.sleep(0.05)
    factor = float(os.environ.get("ROOM_TEST_FACTOR", "1"))
    stand_in = StandIn()
    stand_in(engine=(factor,) * 3)
    return plan_case(*arguments, tools=stand_in.tools, progress=progress, **options)


if __name__ == "__main__":
    workflow.plan_case = plan_case  # type: ignore[assignment]
    from vmat_diffusion.web.worker import main

    main(*sys.argv[1:])
