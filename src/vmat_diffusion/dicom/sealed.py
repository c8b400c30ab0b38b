"""Files that no planning system takes for DICOM: what is written before the gate has passed it.

A folder import goes by content, not by name. A sealed file starts with words and holds the DICOM compressed,
so that even one left behind by a killed process is no plan. Sealed are the files with the suffix `SEALED`.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import written_whole

SEALED = ".unjudged"
_WORDS = b"VMAT Diffusion: not judged, not for treatment and not DICOM.\n"


def sealed(content: bytes) -> bytes:
    """The bytes of a DICOM file as a sealed file holds them."""
    return _WORDS + zlib.compress(content, 1)


def unsealed(content: bytes) -> bytes:
    """The bytes of the DICOM file in a sealed one. Raises CaseError for what is none."""
    if not content.startswith(_WORDS):
        raise CaseError(f"the file does not start as a file {SEALED} does; plan the case again")
    try:
        return zlib.decompress(content[len(_WORDS) :])
    except zlib.error:
        raise CaseError(f"the file {SEALED} is damaged; plan the case again") from None


def unseal(file: Path, path: Path) -> Path:
    """Write the DICOM file in a sealed one to `path`, whole or not at all, and remove the sealed one."""
    content = unsealed(file.read_bytes())
    with written_whole(path) as part:
        part.write_bytes(content)
    file.unlink()
    return path
