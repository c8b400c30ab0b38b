"""The review room in a real browser: from the set-up to the signature."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from network_peers import planning_run
from stand_in_worker import record
from viewed_run import noisy, shaped_case, shaped_dose, write_run
from viewer_server import CHROMIUM, served
from web_room import PASSWORD, WORKER, SmallRoom, small_room

from vmat_diffusion.dicom import write_case
from vmat_diffusion.dicom.rtplan_parts.seeded_faults import FAULTS, draw_fault
from vmat_diffusion.files import content_hash
from vmat_diffusion.web import accounts
from vmat_diffusion.web.app import create_app
from vmat_diffusion.web.audit import verify
from vmat_diffusion.web.cases import cases
from vmat_diffusion.web.queue.jobs import complete
from vmat_diffusion.web.queue.supervisor import Supervisor
from vmat_diffusion.web.reviews import decisions, status_of
from vmat_diffusion.web.room import Room, Rules
from vmat_diffusion.web.runs import RunEntry, file_hashes, runs
from vmat_diffusion.web.store import now, open_store

WAIT_MS = 90_000  # a busy computer is no defect


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not installed (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as tools:
        found = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class _Person:
    """Somebody at a browser of their own, whose errors and breaches of the content policy fail the test."""

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 860) -> None:
        self.page = browser.new_context(viewport={"width": width, "height": height}).new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        self.page.goto(address)

    def log_in(self, name: str) -> Any:
        page = self.page
        page.wait_for_selector("#login:not([hidden])")
        page.fill("#login [name=name]", name)
        page.fill("#login [name=password]", PASSWORD)
        page.click("#login button")
        page.wait_for_selector("#log-out")
        return page

    def shot(self, name: str) -> None:
        """Keep a picture of the page where a folder for them is named."""
        if folder := os.environ.get("ROOM_TEST_SHOTS"):
            width = self.page.viewport_size["width"]
            self.page.screenshot(path=str(Path(folder) / f"{name}_{width}.png"), full_page=width < 500)

    def done(self) -> None:
        assert self.faults == []
        self.page.context.close()


def _fits(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def _entered(room: SmallRoom) -> str:
    """The id of a plan to look at, which did not pass the gate."""
    folder = room.room.store.folder / "cases" / "Doe^John"
    write_case(folder, shaped_case())
    case_id = cases(room.room)[0].id
    job = room.job(case_id)
    given, run_id = room.claimed(), room.run_id(job)
    dose = shaped_dose(shaped_case())
    written = write_run(room.room.run_folder(run_id), folder, dose, noisy(dose), arc_delivery_s=[30.0, 30.0])
    layers = shaped_case().structures["PTV_60"].mask.any(axis=(1, 2))
    slices = {"PTV_60": [k for k in range(len(layers)) if layers[k]]}
    entry = RunEntry(run_id, case_id, 0, room.ids["planner"], now(), "FAILED", file_hashes(written), slices)
    assert complete(room.room.store, given, entry, content_hash(folder), {})
    return run_id


def test_a_reviewer_looks_answers_and_rejects(browser: Any, tmp_path: Path) -> None:
    room = small_room(tmp_path / "room")
    run_id = _entered(room)
    with served(create_app(room.room, work=False)) as address:
        address = address.replace("127.0.0.1", "localhost")
        person = _Person(browser, address)
        page = person.log_in("reviewer")
        assert page.locator("#upload").is_hidden(), "a reviewer makes no plans"
        page.click("td a")
        page.wait_for_selector(".item")
        assert "Doe" not in page.url and page.inner_text("#title") == "Doe^John, version 1"
        frame = page.frame_locator("#viewer")
        frame.locator(".pane.axial[data-ready=true]").wait_for()
        page.wait_for_selector("#item-coverage .missing:has-text('slices'):not(:has-text('1–'))")
        frame.locator("#tabs >> text=DVH").click()
        page.locator("#item-goals .missing:has-text('histograms')").wait_for(state="detached")
        frame.locator("#dvh table.cards tbody tr").last.scroll_into_view_if_needed()
        page.wait_for_selector("#item-goals:not(:has(.missing))")
        assert page.locator("#item-coverage input >> nth=0").is_disabled()
        page.click("#item-clearance input >> nth=1")
        page.wait_for_selector("#item-clearance.no")
        assert page.locator("#decision button[value=APPROVED]").is_disabled()
        assert "verdict is FAILED" in page.inner_text("#decision")
        page.fill("#reason", "the gantry would touch the couch")
        page.fill("#signature", PASSWORD)
        page.click("#decision button[value=REJECTED]")
        page.wait_for_selector("#state .chip:text-is('rejected')")
        page.set_viewport_size({"width": 390, "height": 844})
        assert _fits(page)
        person.done()
    (made,) = decisions(room.room, run_id)
    assert (made.status, made.reason) == ("REJECTED", "the gantry would touch the couch")
    assert verify(room.room.store).faults == ()


def test_an_exercise_says_training_and_tells_its_fault(browser: Any, tmp_path: Path) -> None:
    room = small_room(tmp_path / "room")
    made = planning_run(tmp_path / "made" / "run")
    (made / "report.html").write_text("<p>Plan report</p>")
    (made / "run.json").write_text(json.dumps(record("PASSED")))
    case_id = room.case(made.parent / "case")
    job = room.job(case_id)
    given, run_id = room.claimed(), room.run_id(job)
    folder = shutil.copytree(made, room.room.run_folder(run_id))
    slices = {"PTV": [8, 9, 10, 11, 12]}
    entry = RunEntry(run_id, case_id, 0, room.ids["planner"], now(), "PASSED", file_hashes(folder), slices)
    assert complete(room.room.store, given, entry, content_hash(room.room.case_folder("Doe^John")), {})
    with served(create_app(room.room, work=False)) as address:
        address = address.replace("127.0.0.1", "localhost")
        person = _Person(browser, address)
        page = person.log_in("admin")
        page.fill("#exercise [name=seed]", "4")
        page.click("#exercise button")
        page.wait_for_selector("#exercises td:text-is('none yet')")
        person.done()
        person = _Person(browser, address)
        page = person.log_in("reviewer")
        page.click("tr:has(.chip:text-is('training')) a")
        page.wait_for_selector("#training:has-text('TRAINING')")
        page.frame_locator("#viewer").locator("#training:has-text('TRAINING')").wait_for()
        assert page.locator("#decision").count() == 0
        page.select_option("#fault", "isocentre")
        page.click("#guess button")
        page.wait_for_selector("#told")
        told = page.inner_text("#told")
        assert draw_fault(4).kind == "isocentre" or told.startswith("You said “isocentre”")
        assert FAULTS[draw_fault(4).kind] in told
        page.set_viewport_size({"width": 390, "height": 844})
        assert _fits(page)
        person.shot("training")
        person.done()


def _zipped_case(folder: Path) -> Path:
    from small_case import small_case

    write_case(folder / "dicom", small_case())
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for file in (folder / "dicom").iterdir():
            archive.write(file, f"DICOM/{file.name}")
    (folder / "case.zip").write_bytes(stream.getvalue())
    return folder / "case.zip"


def _look_at_everything(person: _Person) -> None:
    """Scroll through the slices, open all views and checks, play all arcs, read the report."""
    page = person.page
    frame = page.frame_locator("#viewer")
    frame.locator(".pane.axial[data-ready=true]").wait_for()
    canvas = frame.locator(".pane.axial canvas")
    canvas.focus()
    for key, times in (("ArrowUp", 20), ("ArrowDown", 20)):
        for _ in range(times):
            page.keyboard.press(key)
            page.wait_for_timeout(120)
    person.shot("slices")
    frame.locator("#panel button:has-text('Difference')").click()
    frame.locator("#tabs >> text=DVH").click()
    frame.locator(".uplot canvas").first.scroll_into_view_if_needed()
    page.locator("#item-goals .missing:has-text('histograms')").wait_for(state="detached")
    frame.locator("#dvh table.cards tbody tr").last.scroll_into_view_if_needed()
    page.locator("#item-prescription .missing:has-text('goals')").wait_for(state="detached")
    frame.locator("#tabs >> text=Beams").click()
    frame.locator("#beams >> text=Play").click()
    frame.locator("#beams canvas.bev").scroll_into_view_if_needed()
    page.wait_for_selector("#item-clearance:not(:has(.missing))")
    frame.locator("#tabs >> text=Checks").click()
    frame.locator(".check").first.wait_for()
    for check in frame.locator(".check summary, .check > button").all():
        check.click()
        page.wait_for_timeout(900)  # what is on the screen for less does not count
    frame.locator("#checks tbody tr").last.scroll_into_view_if_needed()
    person.shot("looking")
    page.click("#open-report")
    page.frame_locator("#report").locator("text=Plan report").first.wait_for()
    page.wait_for_timeout(1500)
    page.click("#close-report")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_from_the_set_up_to_the_signature(
    browser: Any, tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch, real_hasher: Any
) -> None:
    monkeypatch.setattr(accounts, "_hasher", real_hasher)
    monkeypatch.setenv("ROOM_TEST_GATE", "1")
    store = open_store(tmp_path / "room")
    room = Room(store, Rules(hosts=("localhost",)))
    SmallRoom(room, {}).sheet()
    token = accounts.setup_token(store)
    height = 860 if width == 1280 else 844
    supervisor = Supervisor(room, WORKER)
    supervisor.start()
    try:
        with served(create_app(room, work=False)) as address:
            address = address.replace("127.0.0.1", "localhost")
            _set_up(_Person(browser, address, width, height), str(token))
            _plan(_Person(browser, address, width, height), _zipped_case(tmp_path))
            _sign(_Person(browser, address, width, height))
            _fetch(_Person(browser, address, width, height))
    finally:
        supervisor.stop()
    (run,) = runs(room)
    assert status_of(room, run.id) == "APPROVED"
    assert verify(store).faults == ()


def _set_up(person: _Person, token: str) -> None:
    page = person.page
    page.wait_for_selector("#set-up:not([hidden])")
    for name, value in (("token", token), ("name", "ada"), ("password", PASSWORD), ("again", PASSWORD)):
        page.fill(f"#set-up [name={name}]", value)
    page.click("#set-up button")
    page.wait_for_selector("#entries tr")
    for name in ("planner", "reviewer"):
        page.fill("#add [name=name]", name)
        page.fill("#add [name=password]", PASSWORD)
        page.check(f"#add [value={name}]")
        page.click("#add button")
        page.wait_for_selector(f"#users td:text-is('{name}')")
    page.click("#check")
    page.wait_for_selector("#chain:has-text('the chain is whole')")
    assert _fits(page)
    person.shot("admin")
    person.done()


def _plan(person: _Person, case: Path) -> None:
    page = person.log_in("planner")
    page.fill("#upload [name=label]", "Phantom")
    page.set_input_files("#upload [name=files]", str(case))
    page.click("#upload button")
    page.wait_for_selector(".case h2:text-is('Phantom')")
    page.click("text=New plan")
    page.select_option("[name=goals]", "small")
    page.click(".case form button:has-text('Plan')")
    page.wait_for_selector(".job .chip")
    page.wait_for_selector(".job progress")
    person.shot("planning")
    page.wait_for_selector("td a", timeout=600_000)
    assert page.inner_text("td .chip >> nth=0") == "gate passed"
    assert _fits(page)
    person.shot("worklist")
    person.done()


def _sign(person: _Person) -> None:
    page = person.log_in("reviewer")
    page.click("td a")
    page.wait_for_selector(".item")
    _look_at_everything(person)
    page.wait_for_selector(".item")
    end = time.monotonic() + 30
    while page.locator(".item .missing").count() and time.monotonic() < end:
        page.wait_for_timeout(300)
    assert page.locator(".item .missing").all_inner_texts() == []
    for k in range(page.locator(".item").count()):
        page.locator(".item").nth(k).locator("input[type=radio]").nth(0).click()
        page.wait_for_selector(f"h2:has-text('Checklist, {k + 1} of')")
    person.shot("answered")
    page.fill("#reason", "looked at all of it")
    page.fill("#signature", PASSWORD)
    page.click("#decision button[value=APPROVED]")
    page.wait_for_selector("#state .chip:text-is('approved')")
    assert "approved by reviewer" in page.inner_text(".history")
    person.shot("approved")
    person.done()


def _fetch(person: _Person) -> None:
    page = person.log_in("planner")
    page.click("td a")
    with page.expect_download() as taken:
        page.click("a:has-text('RP.dcm')")
    content = Path(taken.value.path()).read_bytes()
    assert content[128:132] == b"DICM" and b"UNAPPROVED" in content
    person.done()


def test_pages_load_nothing_from_elsewhere_and_hold_no_code() -> None:
    static = Path(str(resources.files("vmat_diffusion.web"))) / "static"
    pages = [*static.glob("*.html"), *static.glob("*.js"), static / "room.css"]
    assert len(pages) >= 11
    for file in pages:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|\beval\(|new Function", text), file.name
        if file.suffix == ".html":
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\bsrc=)", text), file.name
