"""What a physicist reads before signing: one self-contained HTML file, and pictures of a plan."""

from vmat_diffusion.report.page import write_report
from vmat_diffusion.report.planes import plan_picture

__all__ = ["plan_picture", "write_report"]
