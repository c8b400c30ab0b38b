"""VMAT Diffusion: from a contoured CT and clinical goals to a deliverable, checked VMAT plan."""

__version__ = "0.1.0"
