"""Sentences of errors without the names of files and regions, which may contain a patient's name."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmat_diffusion.dataset.raw_cases import listing
from vmat_diffusion.dicom.folder import open_folder
from vmat_diffusion.dicom.names import NameTable
from vmat_diffusion.dicom.structure_set.structures import region_names
from vmat_diffusion.errors import CaseError, InputError, LimitError, UnreadableError, limit_of

# Words that name no patient; a file named by these and short numbers may stand in a sentence.
_PLAIN_WORDS = {"ct", "rs", "rd", "rp", "ss", "rtss", "rtstruct", "rtdose", "rtplan"}
_PLAIN_WORDS |= {"dose", "plan", "image", "img", "slice", "file", "dcm"}


@contextmanager
def nameless(root: Path, table: NameTable) -> Iterator[None]:
    """Remove names of files and regions from the sentences of errors: they may contain a patient's name."""
    try:
        yield
    except LimitError:
        raise
    except InputError as fault:
        error = UnreadableError if isinstance(fault, UnreadableError) else CaseError
        raise error(without_names(str(fault), root, table)) from None
    except OSError as fault:
        fault.filename = None  # may be a patient's name
        if limit := limit_of(fault):
            raise LimitError(limit) from None
        raise UnreadableError(
            f"a file cannot be read ({fault.strerror}); check the disk, the permissions and the links"
        ) from None
    except Exception as fault:
        if isinstance(fault, MemoryError) or limit_of(fault):
            raise
        # What a library says of a value may quote it, and the value may be a name.
        frame = traceback.extract_tb(fault.__traceback__)[-1]
        raise RuntimeError(
            f"{type(fault).__name__} at line {frame.lineno} of {Path(frame.filename).name}"
        ) from None


def without_names(sentence: str, root: Path, table: NameTable) -> str:
    """A sentence with `file 3` for the third file by name, and `region 7` for an unknown region."""
    spoken = {
        name: f"file {k}" for k, name in enumerate(listing(root), start=1) if not is_plain_file_name(name)
    }
    for found in open_folder(root).of("RTSTRUCT"):
        spoken |= {
            alias: f"region {number}"
            for number, alias in region_names(found.dataset)
            if table.match(alias) is None
        }
    for name in sorted((n for n in spoken if n in sentence), key=len, reverse=True):
        sentence = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", spoken[name], sentence)
    return sentence


def is_plain_file_name(name: str) -> bool:
    """Whether a file's name consists of words such as CT and dose and of short numbers alone."""
    words = re.findall(r"[^\W\d_]+|\d+", name)
    return all(len(w) < 5 if w.isdigit() else w.lower() in _PLAIN_WORDS for w in words)
