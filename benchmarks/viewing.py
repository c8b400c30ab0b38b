"""Time the page that shows a plan: first picture, scrolling, memory of the server with ten cases open.

    python benchmarks/viewing.py [--slices 148] [--pixels 512] [--cases 10] [--keep]

A made head of so many slices with two doses on 3 mm voxels, in Chromium without a GPU. The first picture is
taken of a case that the store does not hold yet, and of one that it does: so it is after `serve` has planned
it. Memory is the most that the server took with so many different cases open, each with all planes, both
doses, contours, histograms and control points. Prints one JSON object; `--keep` puts it on the page of
benchmarks. The load of the computer before the run is noted: on a busy one the seconds say nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from computer import stamp
from figures import load, save

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

_ASKED_PER_S = 25.0  # key presses; the goal is 20 pictures a second
_SCROLL_S = 4.0
_PATIENCE_S = 600
_PLANES = ("axial", "coronal", "sagittal")


def make(root: Path, slices: int, pixels: int) -> tuple[Path, Path]:
    """One run of a large case, and the case."""
    from viewed_run import noisy, shaped_case, shaped_dose, write_run

    from vmat_diffusion.dicom import write_case

    case = shaped_case((slices, pixels, pixels), (500 / pixels, 500 / pixels, 2.0))
    write_case(root / "case", case)
    dose = shaped_dose(case, 3.0)
    return write_run(root / "run", root / "case", dose, noisy(dose)), root / "case"


def others(root: Path, count: int) -> dict[str, tuple[Path, Path]]:
    """Further runs and cases, copies under other names: to the server different ones."""
    made = {}
    for k in range(1, count):
        shutil.copytree(root / "run", root / f"run{k}")
        shutil.copytree(root / "case", root / f"case{k}", copy_function=os.link)
        made[f"run{k}"] = (root / f"run{k}", root / f"case{k}")
    return made


def as_read(store: Path, first: Path, cases: list[Path]) -> None:
    """Let the store hold the copies of a case as it holds the first one: reading each takes seconds."""
    from vmat_diffusion.web.view.cases import _key

    for case in cases:
        shutil.copytree(store / _key(first), store / _key(case))


def serve(folders: dict[str, tuple[Path, Path]], store: Path, pipe: Any) -> None:
    """Serve until told to stop; then tell the most memory that the process took."""
    import resource

    from viewer_server import application, served

    with served(application(folders, store)) as address:
        pipe.send(address)
        pipe.recv()
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def first_picture_s(browser: Any, address: str) -> tuple[float, float, Any]:
    """Seconds from asking for the page to the CT with dose, and to the contours over it."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(1000 * _PATIENCE_S)
    began = time.perf_counter()
    page.goto(f"{address}/static/viewer.html?run=run", wait_until="commit")
    page.wait_for_selector(".pane.axial[data-ready=true]")
    picture = time.perf_counter() - began
    page.wait_for_selector(".structure")
    page.wait_for_selector(".pane.axial[data-ready=true]")
    return picture, time.perf_counter() - began, page


def processor_s(pid: int) -> float:
    """Seconds of processor that a process has used: they hold on a busy computer too. 0 but on Linux."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def pictures_per_s(page: Any) -> float:
    """Different axial slices shown in a second while a key is held down."""
    return float(
        page.evaluate(
            """async ([every, seconds]) => {
              const pane = document.querySelector('.pane.axial');
              const seen = new Set();
              const note = () => seen.add(pane.dataset.shown);
              const watch = new MutationObserver(note);
              watch.observe(pane, { attributes: true });
              const canvas = pane.querySelector('canvas'), slider = pane.querySelector('input');
              slider.value = '10';
              slider.dispatchEvent(new Event('input'));
              await new Promise((next) => setTimeout(next, 3000));
              const began = performance.now();
              while (performance.now() - began < 1000 * seconds) {
                canvas.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowUp' }));
                await new Promise((next) => setTimeout(next, 1000 * every));
              }
              watch.disconnect();
              return seen.size / ((performance.now() - began) / 1000);
            }""",
            [1 / _ASKED_PER_S, _SCROLL_S],
        )
    )


def look(page: Any, address: str, run: str, facts: dict[str, Any]) -> None:
    """Ask for all that a reviewer looks at in one run."""

    def ask(path: str) -> Any:
        answer = page.request.get(f"{address}/api/runs/{run}/{path}", timeout=1000 * _PATIENCE_S)
        assert answer.ok, (path, answer.status)
        return answer

    structures = ask("structures").json()
    middle = dict(zip(_PLANES, (n // 2 for n in facts["grid"]["shape"]), strict=True))
    for plane, index in middle.items():
        for path in ("ct", *(f"dose/{volume['name']}" for volume in facts["volumes"]), "outlines"):
            ask(f"{path}/{plane}/{index}")
    for structure in structures:
        ask(f"dvh/{structure['number']}")
    numbers = ",".join(str(structure["number"]) for structure in structures)
    for path in ("goals", "checks", "complexity", "arcs", f"arcs/0/projections/3?structures={numbers}"):
        ask(path)


def measure(slices: int, pixels: int, cases: int) -> dict[str, Any]:
    """All figures."""
    from playwright.sync_api import sync_playwright
    from viewer_server import CHROMIUM

    with tempfile.TemporaryDirectory(prefix="vmat_viewing_") as place, sync_playwright() as tools:
        root, load_before = Path(place), os.getloadavg()[0]
        folders = {"run": make(root, slices, pixels), **others(root, cases)}
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(folders, root / "store", there)
        )
        process.start()
        address = here.recv()
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        used = [processor_s(process.pid or 0)]
        cold, contours, page = first_picture_s(browser, address)
        page.close()
        used.append(processor_s(process.pid or 0))
        warm, warm_contours, page = first_picture_s(browser, address)
        used.append(processor_s(process.pid or 0))
        rate = pictures_per_s(page)
        as_read(root / "store", root / "case", [case for _, case in folders.values()][1:])
        for run in folders:
            facts = page.request.get(f"{address}/api/runs/{run}/view", timeout=1000 * _PATIENCE_S).json()
            look(page, address, run, facts)
        browser.close()
        here.send("stop")
        memory = here.recv()
        process.join(20)
    return {
        "slices": slices,
        "pixels": pixels,
        "first_picture_unread_s": round(cold, 2),
        "contours_unread_s": round(contours, 2),
        "first_picture_s": round(warm, 2),
        "contours_s": round(warm_contours, 2),
        "unread_server_processor_s": round(used[1] - used[0], 2),
        "server_processor_s": round(used[2] - used[1], 2),
        "slices_per_s": round(rate, 1),
        "cases": cases,
        "server_gb": round(memory, 2),
        "load_before": round(load_before, 1),
        **stamp(),
    }


def section() -> Iterator[str]:
    """The section of the page."""
    kept = load("viewing")
    if not kept:
        return
    yield ""
    yield "## Looking at a plan"
    yield ""
    yield f"`python benchmarks/viewing.py --keep`, {kept['date']}, {kept['machine']}; load before it"
    yield f"{kept['load_before']}. {kept['slices']} slices of {kept['pixels']} x {kept['pixels']} pixels."
    yield ""
    yield "| figure | measured | goal |"
    yield "|---|---:|---:|"
    for title, name, goal in (
        ("page to first picture with dose, s", "first_picture_s", "under 2"),
        ("the same of a case that was never read, s", "first_picture_unread_s", ""),
        ("processor time of the server for the first of these, with contours, s", "server_processor_s", ""),
        ("pictures a second in scrolling", "slices_per_s", "20"),
        (f"memory of the server with {kept['cases']} cases open, GB", "server_gb", "under 1"),
    ):
        yield f"| {title} | {kept[name]} | {goal} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=148)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    found = measure(given.slices, given.pixels, given.cases)
    print(json.dumps(found, indent=1))
    if given.keep:
        save("viewing", found)
