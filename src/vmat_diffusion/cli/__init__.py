"""The command line: arguments in, data on stdout, everything else on stderr.

Exit codes: 0 done; 1 a check failed; 2 the input cannot be used; 3 a defect of the program; 130 and 143
stopped by Ctrl-C and by SIGTERM. Heavy imports live inside the commands, so that `--help` answers at once.
"""

from vmat_diffusion.cli.program import app, main

__all__ = ["app", "main"]
