"""What a physicist reads before signing: one self-contained HTML file, and pictures of a plan."""

from vmat_diffusion.report.figures import plan_picture
from vmat_diffusion.report.page import write_report

__all__ = ["plan_picture", "write_report"]
