"""The command line with a stand-in for optimiser and independent engine, to be run as a program."""

from __future__ import annotations

from typing import Any

from vmat_diffusion import cli, workflow


def plan_case(*arguments: Any, **options: Any) -> Any:
    """As the program's own; what takes memory is imported here, as there."""
    from small_case import StandIn

    from vmat_diffusion.workflow.planning.run import plan_case

    return plan_case(*arguments, tools=StandIn().tools, **options)


if __name__ == "__main__":
    workflow.plan_case = plan_case
    cli.main()
