"""Looking at a plan's checklist, ticking it, and deciding."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(prefix="/api/reviews")
