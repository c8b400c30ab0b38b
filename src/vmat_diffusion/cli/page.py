"""The option tables of `docs/commands.md`, made from the commands' dataclasses.

`python -m vmat_diffusion.cli.page docs/commands.md` writes them anew between the page's marks, such as
`<!-- options: plan -->` and `<!-- /options -->`; the prose around them stays.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import get_type_hints

from vmat_diffusion.cli.options import (
    CONFIG_HELP,
    PROFILE_HELP,
    Spelled,
    fields_of,
    has_config,
    has_profile,
    usage_of,
)
from vmat_diffusion.cli.program import COMMANDS, function_of
from vmat_diffusion.errors import InputError

_BLOCK = re.compile(r"<!-- options: (.+?) -->\n.*?<!-- /options -->", re.DOTALL)
# Of nearly every command: their table stands once, at the top of the page.
_COMMON = ("json", "quiet", "verbose")


def with_tables(page: str) -> str:
    """The page with the tables of today. Raises InputError where a command has no place or a place none."""
    marked = _BLOCK.findall(page)
    if sorted(marked) != sorted([*COMMANDS, "all"]):
        wrong = set(marked) ^ {*COMMANDS, "all"}
        raise InputError(f"the page's marks are not those of the commands: {', '.join(sorted(wrong))}")
    return _BLOCK.sub(
        lambda block: f"<!-- options: {block[1]} -->\n{_block(block[1])}<!-- /options -->", page
    )


def _block(path: str) -> str:
    if path == "all":
        return _table(_common_rows())
    kind = get_type_hints(function_of(path))["options"]
    found = [f for f in fields_of(kind) if f.name not in _COMMON]
    usage = f"```console\n$ vmat-diffusion {path} {usage_of(kind)}\n```\n"
    rows = [(f"`{f.spelling}`", _meaning(f), _default(f)) for f in found]
    rows += [("`--profile FILE`", PROFILE_HELP, "")] if has_profile(kind) else []
    return f"\n{usage}{_table(rows)}" if rows else f"\n{usage}\n"


def _common_rows() -> list[tuple[str, str, str]]:
    kinds = [get_type_hints(function_of(path))["options"] for path in COMMANDS]
    found = {f.name: f for kind in kinds for f in fields_of(kind) if f.name in _COMMON}
    rows = [(f"`{found[name].spelling}`", found[name].description, "") for name in _COMMON]
    if any(map(has_config, kinds)):
        rows.append(("`--config FILE`", CONFIG_HELP, ""))
    return [*rows, ("`-h, --help`", "Show usage, arguments and options.", "")]


def _table(rows: list[tuple[str, str, str]]) -> str:
    lines = ["| option | meaning | default |", "|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n" + "\n".join(lines) + "\n\n"


def _meaning(field: Spelled) -> str:
    known = "; ".join(fact for fact in (field.bounds, "may be given again" if field.again else "") if fact)
    return f"{field.description} {known[0].upper()}{known[1:]}." if known else field.description


def _default(field: Spelled) -> str:
    return "required" if field.required else field.default_text and f"`{field.default_text}`"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(with_tables(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
