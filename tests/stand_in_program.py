"""The command line with a stand-in for optimiser and independent engine, to be run as a program."""

from __future__ import annotations

from functools import partial

from small_case import StandIn

from vmat_diffusion import cli, workflow
from vmat_diffusion.workflow.run import plan_case

if __name__ == "__main__":
    workflow.plan_case = partial(plan_case, tools=StandIn().tools)
    cli.main()
