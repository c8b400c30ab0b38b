"""What a physicist reads before signing: one self-contained HTML file and its PDF, and pictures of a plan."""

from vmat_diffusion.report.content import Reported
from vmat_diffusion.report.page import write_report
from vmat_diffusion.report.parts.summary import Identity
from vmat_diffusion.report.planes import plan_picture

__all__ = ["Identity", "Reported", "plan_picture", "write_report"]
