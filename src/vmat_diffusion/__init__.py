"""VMAT Diffusion: from a contoured CT and clinical goals to a deliverable, checked VMAT plan."""

import os

# Two threading runtimes share the cores here. Threads that spin while they wait for work take the
# other's time: on a busy machine a plan costs three times the processor time. Must be set before
# torch and numba are loaded; what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
