"""The complexity of a plan: its metrics, and those of published plans. See `docs/complexity.md`."""

from vmat_diffusion.evaluate.complexity.metrics import (
    OPEN_GAP_MM,
    Complexity,
    complexity,
    complexity_of,
    leaf_rows,
)
from vmat_diffusion.evaluate.complexity.published import (
    PUBLISHED,
    RANGES,
    SOURCES,
    outside_ranges,
    ranges_for,
)

__all__ = [
    "OPEN_GAP_MM",
    "PUBLISHED",
    "RANGES",
    "SOURCES",
    "Complexity",
    "complexity",
    "complexity_of",
    "leaf_rows",
    "outside_ranges",
    "ranges_for",
]
