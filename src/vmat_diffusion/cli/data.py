"""The commands that make data ready for others: de-identification."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmat_diffusion.cli.display import progress_bar, show, stdout_kept, table
from vmat_diffusion.cli.options import AsJson, MappingFile

if TYPE_CHECKING:
    from vmat_diffusion.workflow.deidentify import Deidentified


def deidentify(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Folder of DICOM files, any number of patients.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder.")],
    key: Annotated[
        str | None,
        typer.Option(help="Secret text or file: the same key, the same UIDs again. Random if not given."),
    ] = None,
    mapping: MappingFile = None,
    as_json: AsJson = False,
) -> None:
    """Copy DICOM files without names, numbers, dates and private data; 1 if any had to be left out."""
    from vmat_diffusion.workflow.deidentify import deidentify_folder

    with stdout_kept(), progress_bar() as progress:
        done = deidentify_folder(source, out, key=key, mapping=mapping, progress=progress)
    if as_json:
        show(json.dumps(done.summary()))
    else:
        show(_text(done))
    if done.left_out:
        raise typer.Exit(1)


def _text(done: Deidentified) -> str:
    """Files by case, what was done how often, and what was left out."""
    cases = [[name, ", ".join(f"{n} {k}" for k, n in kinds.items())] for name, kinds in done.cases.items()]
    actions: Counter[str] = Counter()
    for (_, action), count in done.done.items():
        actions[action] += count
    parts = [
        table(["case", "files"], cases, left=2),
        table(["action", "attributes"], sorted(actions.items()), left=1),
        "\n".join(f"Left out, file {n}: {reason}" for n, reason in sorted(done.left_out.items())),
        f"{done.written} files written, {len(done.left_out)} left out, {len(done.others)} not DICOM; "
        f"the scan found nothing of the patients\n{done.report}",
    ]
    return "\n\n".join(part for part in parts if part)
