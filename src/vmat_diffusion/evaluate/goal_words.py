"""What goals on dose and on delivery have alike: words, limits and sources of their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from vmat_diffusion.errors import GoalError

Comparator = Literal[">=", "<="]
Status = Literal["pass", "acceptable", "fail", "not evaluated"]
# How the source of a number was seen; "chosen" where the author of the sheet chose it and says why; "" where
# the sheet does not say.
Seen = Literal["publication", "transcription", "template", "practice", "recalled", "chosen", ""]
SEEN: tuple[Seen, ...] = ("publication", "transcription", "template", "practice", "recalled", "chosen")

# float32 doses carry 1e-7; a result that equals its limit on paper must not fail by rounding.
_ROUNDING = 1e-6
# What a reader is told of a source; a publication needs no word.
_SEEN_WORDS: Mapping[str, str] = {
    "publication": "",
    "transcription": "as transcribed by others",
    "template": "a clinic's template",
    "practice": "practice",
    "recalled": "recalled, verify",
    "chosen": "chosen",
    "": "how it was seen is not stated",
}


def source_text(source: str, seen: Seen) -> str:
    """A source, with how it was seen if not in print."""
    if not source.strip():
        return "source not stated"
    words = _SEEN_WORDS[seen]
    return f"{source} ({words})" if words else source


def meets(value: float, limit: float, *, at_least: bool) -> bool:
    """Whether a value keeps a limit."""
    slack = _ROUNDING * max(abs(limit), 1.0)
    return value >= limit - slack if at_least else value <= limit + slack


def sources_text(source: str, seen: Seen, variation_source: str, variation_seen: Seen) -> list[str]:
    """The sources of limit and variation, and how they were seen; of the variation where it has one."""
    parts = [source_text(source, seen)]
    if variation_source or variation_seen:
        parts.append(f"acceptable: {source_text(variation_source or source, variation_seen or seen)}")
    return parts


def require_consistent(
    goal: object, priority: int, limit: float, variation: float | None, comparator: Comparator
) -> None:
    """Raise GoalError for a priority that there is not, or a variation that is stricter than the limit."""
    if priority not in (1, 2, 3):
        raise GoalError(f"{goal}: priority {priority} is not 1 (must), 2 (should) or 3 (wish)")
    if variation is not None and not meets(variation, limit, at_least=comparator == "<="):
        raise GoalError(
            f"{goal}: variation {variation:g} is stricter than the limit; it is the worst acceptable value"
        )
