"""Time the page that shows a plan: first picture, scrolling, memory of the server with ten cases open.

    python benchmarks/viewing.py [--slices 148] [--pixels 512] [--cases 10]

A made head of so many slices with a dose on 3 mm voxels, in Chromium without a GPU. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from computer import stamp  # noqa: E402
from viewed_run import noisy, shaped_case, shaped_dose, write_run  # noqa: E402
from viewer_server import CHROMIUM, application, served  # noqa: E402

from vmat_diffusion.dicom import write_case  # noqa: E402

_ASKED_PER_S = 25.0  # key presses; the goal is 20 pictures a second
_SCROLL_S = 4.0


def make(root: Path, slices: int, pixels: int) -> dict[str, tuple[Path, Path]]:
    """One run of a large case."""
    case = shaped_case((slices, pixels, pixels), (500 / pixels, 500 / pixels, 2.0))
    write_case(root / "case", case)
    dose = shaped_dose(case, 3.0)
    return {"run": (write_run(root / "run", root / "case", dose, noisy(dose)), root / "case")}


def serve(folders: dict[str, tuple[Path, Path]], store: Path, pipe: Any) -> None:
    """Serve until told to stop; then tell the most memory that the process took."""
    import resource

    with served(application(folders, store)) as address:
        pipe.send(address)
        pipe.recv()
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def first_picture_s(browser: Any, address: str) -> tuple[float, float, Any]:
    """Seconds from asking for the page to the CT with dose, and to the contours over it."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(120_000)
    began = time.perf_counter()
    page.goto(f"{address}/static/viewer.html?run=run", wait_until="commit")
    page.wait_for_selector(".pane.axial[data-ready=true]")
    picture = time.perf_counter() - began
    page.wait_for_selector(".structure")
    page.wait_for_selector(".pane.axial[data-ready=true]")
    return picture, time.perf_counter() - began, page


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


def measure(slices: int, pixels: int, cases: int) -> dict[str, Any]:
    """All figures; the first picture of a case that the store does not hold yet, and of one that it does."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="vmat_viewing_") as place, sync_playwright() as tools:
        root = Path(place)
        folders = make(root, slices, pixels)
        for k in range(1, cases):
            shutil.copytree(root / "case", root / f"case{k}")
            folders[f"run{k}"] = (folders["run"][0], root / f"case{k}")
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(folders, root / "store", there)
        )
        process.start()
        address = here.recv()
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        cold, contours, page = first_picture_s(browser, address)
        page.close()
        warm, warm_contours, page = first_picture_s(browser, address)
        rate = pictures_per_s(page)
        for k in range(1, cases):
            for path in (
                "view",
                "structures",
                f"dose/planned/axial/{slices // 2}",
                f"outlines/axial/{slices // 2}",
            ):
                assert page.request.get(f"{address}/api/runs/run{k}/{path}", timeout=120_000).ok
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
        "slices_per_s": round(rate, 1),
        "cases": cases,
        "server_gb": round(memory, 2),
        **stamp(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=148)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--cases", type=int, default=10)
    given = parser.parse_args()
    print(json.dumps(measure(given.slices, given.pixels, given.cases), indent=1))
