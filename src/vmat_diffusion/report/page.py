"""The report as one HTML file without any outside reference, and beside it the same as PDF."""

from __future__ import annotations

import base64
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vmat_diffusion.files import written_whole
from vmat_diffusion.lettering import legible
from vmat_diffusion.report import charts
from vmat_diffusion.report.content import Reported, report_document
from vmat_diffusion.report.document import Document, Picture
from vmat_diffusion.report.pdf import pdf_bytes


def write_report(path: str | Path, of: Reported) -> Path:
    """Write a report as HTML and, with the ending .pdf, as PDF; returns the path of the first.

    Both hold the same. They appear when both are whole, or not at all. Cost: about 10 s of processor time.
    """
    path = Path(path)
    document = report_document(of)
    html, pdf = html_text(document), pdf_bytes(document)
    with ExitStack() as both:
        parts = [both.enter_context(written_whole(file)) for file in (path, path.with_suffix(".pdf"))]
        parts[0].write_text(html, encoding="utf-8")
        parts[1].write_bytes(pdf)
    return path


def html_text(document: Document) -> str:
    """The report as a page."""
    return str(_template().render(document=document))


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("vmat_diffusion", "report"),
        autoescape=True,
        finalize=_legible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["image"] = _image
    environment.filters["css"] = _css
    environment.filters["kind"] = lambda block: type(block).__name__
    return environment.get_template("report.html.j2")


def _legible(value: Any) -> Any:
    return legible(value) if type(value) is str else value


def _image(picture: Picture) -> str:
    """The picture as an address that holds it."""
    data, kind = (picture.jpeg, "jpeg") if picture.photo else (charts.svg(picture.figure), "svg+xml")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _css(text: str) -> str:
    """A text within the quotes of a style sheet: all but letters, digits and a few signs as their code."""
    return re.sub(r"[^A-Za-z0-9 .,:_-]", lambda found: f"\\{ord(found[0]):x} ", legible(text))
