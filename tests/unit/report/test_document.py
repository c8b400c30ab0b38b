"""One content, two forms: what the HTML page says stands in the PDF too, page by page and to be signed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from small_case import UNIFORM_GY, open_arc, small_case

from vmat_diffusion.case import Case, CtTable, Dose, Source
from vmat_diffusion.evaluate.goals import Goal, GoalResult
from vmat_diffusion.evaluate.metrics import Metric
from vmat_diffusion.machine import load_machine
from vmat_diffusion.qa.limits import GateSettings
from vmat_diffusion.qa.verdict import Check, Verdict
from vmat_diffusion.report import Identity, Reported
from vmat_diffusion.report.content import report_document
from vmat_diffusion.report.document import Document, Facts, Heading, Picture, Signature, Table, Text
from vmat_diffusion.report.page import html_text
from vmat_diffusion.report.pdf import pdf_bytes

UID = "2.25.329800735698586629295641978511506172918"
NAME = "PTV_<b>&\u202e\u524d"


def reported(**changes: object) -> Reported:
    """A report of an open arc on the small case, with a name that is markup, a formula and unseen at once."""
    case = small_case()
    odd = replace(case.structures["Core"], name=NAME)
    case = replace(case, structures={**case.structures, NAME: odd})
    gy = np.full(case.grid.shape, UNIFORM_GY, np.float32)
    metric = Metric.parse("mean")
    goal = Goal("Core", metric, "<=", 20.0, metric.result_unit, None, 2, "our physicists")
    given = {
        "case": case,
        "plan": open_arc(),
        "machine": load_machine("generic_6mv"),
        "dose": Dose(case.grid, gy, provenance={"engine": "pencil-beam"}),
        "results": (GoalResult(goal, 52.0, "fail"),),
        "violations": ["beam 1: leaf pair 3 is too fast"],
        "provenance": {
            "program": {"name": "vmat-diffusion", "version": "9.8.7", "git": None},
            "packages": {"numpy": "1.2.3"},
            "settings": {"seed": 5, "names": {"mapping": None}},
        },
        "identity": Identity(UID),
    }
    return Reported(**{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def document() -> Document:
    return report_document(reported())


def said(document: Document) -> Iterator[str]:
    """Every text of a document in its order, but for links, which are page numbers in the PDF."""
    for section in document.sections:
        yield section.title
        for block in section.blocks:
            if isinstance(block, Heading | Text):
                yield block.text
            elif isinstance(block, Table):
                yield block.caption
                yield from (c.title for c in block.columns)
                cells = [c for g in block.groups for row in g.rows for c in row if not c.section]
                yield from (text for c in cells for text in (c.text, c.note))
            elif isinstance(block, Facts):
                yield from (text for pair in block.pairs for text in pair)
            elif isinstance(block, Picture):
                yield block.caption
                yield from (key.label for key in block.keys)
            elif isinstance(block, Signature):
                yield from block.roles


def squeezed(text: str) -> str:
    """A text without what lines and cells add to it."""
    return re.sub(r"[\s\u00ad]+", "", text)


@pytest.fixture(scope="module")
def pages(document: Document, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed (Debian: poppler-utils)")
    file = tmp_path_factory.mktemp("pdf") / "report.pdf"
    file.write_bytes(pdf_bytes(document))
    text = subprocess.run(["pdftotext", "-raw", file, "-"], capture_output=True, text=True, check=True).stdout
    return text.split("\f")[:-1]


def test_page_and_pdf_say_the_same(document: Document, pages: list[str]) -> None:
    """Words, since a cell that is broken over lines or pages keeps those."""
    html = squeezed(unescape(re.sub(r"<[^>]+>", "", html_text(document))))
    pdf = squeezed("".join(pages))
    shown = NAME.replace("\u202e", r"\u202e")
    count = 0
    for text in said(document):
        for word in text.replace(NAME, shown).split():
            assert word in html, text
            assert word.replace("\u524d", r"\u524d") in pdf, text
            count += 1
    assert count > 500


def test_every_page_bears_its_number_and_the_plan_s_uid(pages: list[str]) -> None:
    assert len(pages) > 5
    for number, text in enumerate(pages, start=1):
        assert f"Page {number} of {len(pages)}" in text
        assert f"Plan UID {UID}" in text and "UNAPPROVED" in text


def test_page_1_says_which_plan_how_it_was_made_and_whether_it_is_good(pages: list[str]) -> None:
    for expected in (
        "Plan UID",
        "2 Gy",  # a fraction of 50 Gy in 25
        "vmat-diffusion 9.8.7",
        "numpy 1.2.3",
        "-1000: 0.00121",
        "Generic 6 MV linac",
        "1 violation",
        "leaf pair 3 is too fast",
        "mean ≤ 20 Gy",
        "not named here",
    ):
        assert expected in pages[0], expected


def test_the_checklist_leads_to_the_pages(document: Document, pages: list[str]) -> None:
    sections = {s.id: s.title for s in document.sections}
    review = next(s for s in document.sections if s.id == "review")
    table, signature = review.blocks
    assert isinstance(table, Table) and isinstance(signature, Signature)
    places = [c.section for row in table.groups[0].rows for c in row if c.section]
    assert len(places) > 10 and set(places) <= set(sections)
    text = next(p for p in pages if "Tick what was looked at" in p)
    found = [int(n) for n in re.findall(r"page (\d+)", text)]
    for number, place in zip(found, places, strict=True):
        assert sections[place] in pages[number - 1], place
    assert UID in text and signature.plan_uid == UID and not signature.refused


def test_what_was_not_released_is_not_to_be_signed() -> None:
    document = report_document(reported(identity=Identity()))
    signature = document.sections[-2].blocks[-1]
    assert isinstance(signature, Signature) and "Not to be signed" in signature.refused
    assert "Not to be signed" in html_text(document) and "no plan file" in document.foot
    failed = Verdict((Check("gamma 3 %/3 mm", False, 80.0, 95.0, "%", "too few"),))
    signature = report_document(reported(verdict=failed)).sections[-2].blocks[-1]
    assert isinstance(signature, Signature) and "the gate was not passed" in signature.refused


def test_only_who_asks_gets_the_patient_s_name() -> None:
    patient = (("Patient", "Doe^Jane"), ("Patient ID", "7"))
    named = html_text(report_document(reported(identity=Identity(UID, patient=patient))))
    assert "Doe^Jane" in named and "not named here" not in named
    assert 'content: "Plan UID' in named and "Doe" not in named[: named.index("<body>")]


def test_what_is_not_as_usual_stands_in_banners() -> None:
    gate = {name: getattr(GateSettings(), name) for name in ("gamma_pass_percent", "leaf_mm")}
    usual = {"gate": gate, "settings": {"force": False, "mu_per_gy": 300.0}}

    def banners(provenance: dict[str, object]) -> list[str]:
        blocks = report_document(reported(provenance=provenance)).sections[0].blocks
        return [b.text for b in blocks if isinstance(b, Text) and b.kind in ("banner", "warning")]

    assert banners(usual) == []
    strict = {**usual, "gate": {**gate, "gamma_pass_percent": 97.0}}
    assert banners(strict) == ["Limits of the gate other than the shipped ones: gamma_pass_percent 97 (95)"]
    (allowed,) = banners({**usual, "settings": {"force": True, "mu_per_gy": "off"}})
    assert "--force" in allowed and "mu_per_gy" in allowed


def test_page_1_says_where_choices_came_from() -> None:
    provenance = {
        "profile": {"title": "North clinic", "code": "ab12"},
        "origins": {"machine": "profile", "goals": "command line", "seed": "default"},
    }
    table = CtTable((-1000.0, 3000.0), (0.0, 3.0))
    page = html_text(
        report_document(reported(provenance=provenance, case=replace(reported().case, ct_table=table)))
    )
    assert "North clinic (ab12)" in page
    assert "command line: goals; profile: machine" in page
    assert "the site’s own, HU: g/cm³, linear between: -1000: 0; 3000: 3" in page


def test_the_dose_grid_that_does_not_hold_an_organ_is_named() -> None:
    given = reported()
    low, high = given.case.grid.bounds_mm
    small = given.case.grid.around(low, (0.0, high[1], high[2]), (5.0, 5.0, 6.0))
    dose = Dose(small, np.full(small.shape, 50.0, np.float32))
    assert "reaches not all of PTV, Core" in html_text(report_document(reported(dose=dose)))
    assert "holds all targets and organs" in html_text(report_document(given))


def test_colours_are_those_of_the_structure_set(case_with_colours: Case) -> None:
    document = report_document(reported(case=case_with_colours))
    swatches = {
        c.text: c.swatch
        for s in document.sections
        for b in s.blocks
        if isinstance(b, Table)
        for g in b.groups
        for row in g.rows
        for c in row
        if c.swatch
    }
    assert swatches["PTV"] == "#ffff00" and swatches["Core"] == "#0000ff"


@pytest.fixture
def case_with_colours() -> Case:
    return replace(small_case(), source=Source(colours={"PTV": "#ffff00", "Core": "#0000ff"}))
