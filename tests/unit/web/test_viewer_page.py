"""The page in a real browser: what it draws, what it tells the server, and that it keeps to its own rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from viewed_run import made_run, shaped_case, shaped_dose
from viewer_server import CHROMIUM, application, served

from vmat_diffusion.geometry import sample_dose
from vmat_diffusion.web.view.planes import layer_grid

STATIC = Path(str(resources.files("vmat_diffusion.web"))) / "static"
OWN = [
    STATIC / "viewer.html",
    STATIC / "viewer.js",
    STATIC / "viewer.css",
    *sorted((STATIC / "view").glob("*.js")),
]
_ISODOSES = (30, 50, 70, 80, 90, 95, 100, 105, 107)
_TEN_S = 10_000
WAIT_MS = 6 * _TEN_S  # a busy computer is no defect


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    root = tmp_path_factory.mktemp("page")
    one, case = made_run(root)
    two, _ = made_run(root, "two")
    other, other_case = made_run(root / "elsewhere")
    app = application({"one": (one, case), "two": (two, case), "other": (other, other_case)}, root / "store")
    with served(app) as address:
        yield address, app


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not installed (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as tools:
        found = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture()
def page(browser: Any) -> Iterator[Any]:
    """A page whose errors, and whose breaches of the content policy, fail the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(WAIT_MS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.expected = faults
    yield page
    page.close()
    assert not faults, faults


def until(page: Any, expression: str) -> None:
    """Wait until a JavaScript expression holds; the page's policy forbids the browser tool's own way."""
    for _ in range(WAIT_MS // 100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"it never became true: {expression}")


def told(page: Any, app: Any, kind: str) -> None:
    """Wait until the page has told the server that something was seen."""
    for _ in range(WAIT_MS // 100):
        if any(s["kind"] == kind for s in app.state.seen):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{kind} was never told of")


def shown(page: Any, plane: str = "axial") -> int:
    page.wait_for_selector(f".pane.{plane}[data-ready=true]")
    return int(page.get_attribute(f".pane.{plane}", "data-shown"))


def test_planes_are_linked_and_the_wash_is_the_dose_of_each_pixel(page: Any, site: tuple[str, Any]) -> None:
    address, app = site
    page.goto(f"{address}/static/viewer.html?run=one")
    page.wait_for_selector(".structure")
    before = shown(page)
    page.focus(".pane.axial canvas")
    page.keyboard.press("ArrowUp")
    page.wait_for_selector(f".pane.axial[data-shown='{before + 1}'][data-ready=true]")
    assert "Planned" in page.inner_text("#readout") and "Independent" in page.inner_text("#readout")
    box = page.locator(".pane.axial canvas").bounding_box()
    coronal = shown(page, "coronal")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.3)
    until(page, f"document.querySelector('.pane.coronal').dataset.shown != '{coronal}'")
    # Every pixel of the wash has the colour of the band that our own sampling puts it in.
    pixels = page.evaluate(
        "() => { const { wash } = document.querySelector('.pane.axial').pane;"
        "return [...wash.getContext('2d').getImageData(0, 0, wash.width, wash.height).data]; }"
    )
    case, dose = shaped_case(), shaped_dose(shaped_case())
    layer = layer_grid(case.grid, "axial", before + 1)
    gy = sample_dose(dose.gy, dose.grid, layer.points_mm(np.arange(layer.shape[1] * layer.shape[2])))
    edges = 0.6 * np.array(_ISODOSES)
    band = np.searchsorted(edges, gy, side="right")
    clear = np.abs(gy[:, None] - edges).min(axis=1) > 0.002
    found = np.array(pixels).reshape(-1, 4)
    assert not found[(band == 0) & clear].any()
    colours = [np.unique(found[(band == k) & clear], axis=0) for k in np.unique(band[band > 0])]
    assert all(len(c) == 1 for c in colours), "one colour for each band"
    assert len({tuple(c[0]) for c in colours}) == len(colours) >= 6
    page.wait_for_timeout(1200)
    passed = [s for s in app.state.seen if s["kind"] == "slices"]
    assert {before, before + 1} <= {k for s in passed for k in s["detail"]["slices"]}
    assert {s["detail"]["structure"] for s in passed} == {"PTV_60"}


@pytest.mark.slow
def test_levels_windows_and_modes_change_the_picture(page: Any, site: tuple[str, Any]) -> None:
    page.goto(f"{site[0]}/static/viewer.html?run=one")
    page.wait_for_selector(".structure")
    shown(page)
    picture = page.locator(".pane.axial canvas")
    taken = {picture.screenshot()}
    for change in (
        lambda: page.select_option("select[aria-label=Window]", "bone"),
        lambda: page.fill(".isodose >> nth=2 >> input[type=number]", "85"),
        lambda: page.click("#panel button:has-text('Difference')"),
        lambda: page.click("#panel button:has-text('Noise')"),
        lambda: page.click("#panel button:has-text('CT')"),
        lambda: page.click(".structures input >> nth=0"),
        lambda: page.click("#panel button:has-text('Maximum')"),
    ):
        change()
        page.wait_for_timeout(400)
        shown(page)
        taken.add(picture.screenshot())
    assert len(taken) == 8


@pytest.mark.slow
def test_the_other_tabs_show_goals_beams_and_evidence(page: Any, site: tuple[str, Any]) -> None:
    address, app = site
    app.state.seen.clear()
    page.goto(f"{address}/static/viewer.html?run=one&tab=dvh")
    until(
        page, "document.querySelectorAll('.figures td.n').length && document.querySelector('.uplot canvas')"
    )
    told(page, app, "dvh")
    page.locator("#dvh table.cards tbody tr").last.scroll_into_view_if_needed()
    assert "missed" in page.inner_text("#dvh tr.missed")
    page.click("#tabs >> text=Beams")
    until(page, "document.querySelector('#beams dd')?.textContent === '1 of 31'")
    page.click("#beams >> text=Play")
    until(page, "document.querySelector('#beams dd').textContent === '31 of 31'")
    page.click("#tabs >> text=Checks")
    page.click(".check >> text=dose of any region")
    page.wait_for_selector(".evidence >> text=mean over 4 cm")
    page.wait_for_timeout(800)
    page.click("text=Show the place")
    until(page, "document.querySelector('#readout').textContent.includes('4.0, −6.0, 8.0 mm')")
    page.wait_for_timeout(800)
    kinds = {(s["kind"], str(s["detail"].get("arc") or s["detail"].get("key") or "")) for s in app.state.seen}
    assert {
        ("dvh", ""),
        ("goals", ""),
        ("arc", "1"),
        ("check", "dose of any region"),
        ("difference", ""),
    } <= kinds


@pytest.mark.slow
def test_two_plans_stand_side_by_side_and_a_foreign_one_is_refused(page: Any, site: tuple[str, Any]) -> None:
    page.goto(f"{site[0]}/static/viewer.html?run=one&with=two")
    until(page, "document.querySelectorAll('.pane[data-ready=true]').length === 2")
    assert page.inner_text("#readout").count("Planned") == 2
    page.goto(f"{site[0]}/static/viewer.html?run=one&with=other")
    page.wait_for_selector("#notice:has-text('different images')")
    page.expected.clear()  # the refusal itself is an error of the network to the browser


@pytest.mark.slow
@pytest.mark.parametrize("tab", ["images", "dvh", "beams", "checks"])
def test_a_phone_needs_no_scrolling_to_the_side(browser: Any, site: tuple[str, Any], tab: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    page.goto(f"{site[0]}/static/viewer.html?run=one&tab={tab}")
    page.wait_for_selector(f"#{tab}:not([hidden])")
    page.wait_for_timeout(1500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_what_was_asked_for_and_not_drawn_is_not_seen(page: Any, site: tuple[str, Any]) -> None:
    address, app = site
    app.state.seen.clear()
    page.route("**/outlines/axial/**", lambda route: route.abort())
    page.route("**/api/runs/one/dvh/*", lambda route: route.abort())
    page.route("**/api/runs/one/goals", lambda route: route.abort())
    page.goto(f"{address}/static/viewer.html?run=one")
    page.wait_for_selector(".structure")
    shown(page)
    page.wait_for_timeout(1500)
    page.click("#tabs >> text=DVH")
    page.wait_for_timeout(1000)
    assert app.state.seen == [], "neither contours nor curves were drawn"
    page.unroute("**/outlines/axial/**")
    page.unroute("**/api/runs/one/dvh/*")
    page.unroute("**/api/runs/one/goals")
    page.goto(f"{address}/static/viewer.html?run=one&tab=dvh")
    until(page, "document.querySelector('.uplot canvas')")
    page.evaluate("document.querySelector('.plot').scrollIntoView()")
    told(page, app, "dvh")
    kinds = {s["kind"] for s in app.state.seen}
    assert "dvh" in kinds and "slices" not in kinds, "the images were never in front"
    page.expected.clear()  # what was not given is an error of the network to the browser


def test_the_page_has_no_code_or_style_of_its_own_and_asks_nobody_else() -> None:
    html = OWN[0].read_text(encoding="utf-8")
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\bsrc=)", html)
    for file in OWN:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|\beval\(|new Function", text), file.name


def test_every_module_imports_what_is_there() -> None:
    names = r"""from "(\./[^"]+|\.\./[^"]+)";"""
    for file in (f for f in OWN if f.suffix == ".js"):
        for path in re.findall(names, file.read_text(encoding="utf-8")):
            assert (file.parent / path).is_file(), f"{file.name}: {path}"


def test_the_vendored_library_has_its_licence() -> None:
    folder = STATIC / "vendor" / "uplot"
    assert "MIT License" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert (folder / "uPlot.esm.js").stat().st_size < 200_000
