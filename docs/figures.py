"""Write the figures of README and docs: python docs/figures.py (some minutes).

Arguments choose the figures: studies, figures of claims, river_valley, landscapes, integrators or explorer.
"""

import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console

from rishd.claims import CLAIMS
from rishd.progress import progress_bar
from rishd.report.claim_figures import panels_figure
from rishd.report.figures import valley_figure
from rishd.report.integrator_figures import optimizer_step_figure, stable_step_figure, work_precision_figure
from rishd.report.landscape_figures import landscape_figure
from rishd.studies.integrators import integrator_study
from rishd.studies.landscapes import landscape_maps
from rishd.studies.valley import valley_flows
from rishd.study import STUDIES, StudyResult, run_study

IMAGES = Path(__file__).parent / "images"
GUIDE = Path(__file__).parent / "guides" / "studies.md"
PANELS = {
    "convex_rates": ("C8", "C8b"),
    "descent_limits": ("C9", "C9b"),
    "noise_floor": ("C10",),
    "flow_noise_floor": ("C20",),
    "edge_of_stability": ("C21", "C21c"),
    "rivers": ("C11b", "C11c"),
    "strongly_convex_rates": ("C16a", "C16d"),
    "norm_energies": ("C18", "C18b", "C18c"),
    "memory_energies": ("C19", "C19b"),
}

EXPLORED = {  # query, width and height of the window; docs/explore.md links to the same queries
    "river": ("", 1280, 1090),
    "unstable": ("?eta=0.45", 1280, 1090),
    "muon": ("?landscape=quadratic&metric=polar-factor&noise=0.2&eta=0.03&sharp=2&beta_flat=1.0&chi=2.0", 1280, 1090),
    "phone": ("?landscape=widening&chi=4.0", 390, 844),
    "results": ("results?variants=muon;muon-lite;soap;soap-lite", 1280, 1090),
}
SWEEPS = {"C21c": 100}  # instances: with fewer, its panel has no sweep


def write_conclusion(name: str, result: StudyResult) -> None:
    """Put a study's answer and conclusion between its marks in the guide, if it has them."""
    begin, end = f"<!-- conclusion of {name} -->\n", "<!-- end -->"
    head, mark, tail = GUIDE.read_text(encoding="utf-8").partition(begin)
    if mark:
        GUIDE.write_text(
            head + mark + f"**{result.answer}**\n\n{result.conclusion}\n" + tail[tail.index(end) :], encoding="utf-8"
        )


def draw_integrators() -> None:
    """The integrator study: a minute and a half of a processor."""
    with progress_bar(Console(stderr=True)) as advance:
        study = integrator_study(progress=advance)
    work_precision_figure(study).savefig(IMAGES / "work_precision.png", dpi=80)
    stable_step_figure(study).savefig(IMAGES / "stable_steps.png", dpi=80)
    optimizer_step_figure(study).savefig(IMAGES / "optimizer_steps.png", dpi=80)


def draw_explorer() -> None:
    """Screenshots of ``rishd explore`` (extra ``explore``), by Selenium (extra ``dev``) in Debian's Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    profile = tempfile.mkdtemp()
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "hide-scrollbars",
        "no-first-run",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    options.binary_location = shutil.which("chromium")
    command = [sys.executable, "-u", "-m", "rishd", "explore", "--no-open", "--results", "docs/results/evidence"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=IMAGES.parent.parent)
    driver = None
    try:
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        url = server.stdout.readline().split()[0].removesuffix("results")
        for name, (query, width, height) in EXPLORED.items():
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get(url + query)
            time.sleep(30)  # generous: nothing says when the widgets and canvases of a page are drawn
            picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
            picture.quantize(96).save(IMAGES / f"explore_{name}.png", optimize=True)
    finally:
        if driver is not None:
            driver.quit()
        server.terminate()


OTHERS = {
    "explorer": draw_explorer,
    "river_valley": lambda: valley_figure(valley_flows()).savefig(IMAGES / "river_valley.png", dpi=110),
    "landscapes": lambda: landscape_figure(landscape_maps()).savefig(IMAGES / "landscapes.png", dpi=95),
    "integrators": draw_integrators,
}


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or (*OTHERS, *PANELS, *STUDIES):
        if name in OTHERS:
            OTHERS[name]()
            continue
        if name in PANELS:
            panels = [
                panel for key in PANELS[name] for panel in CLAIMS[key].run(seed=0, instances=SWEEPS.get(key, 8)).panels
            ]
            panels_figure(panels).savefig(IMAGES / f"{name}.png", dpi=110)
            continue
        result = run_study(name)
        for stem, draw in result.figures.items():
            draw().savefig(IMAGES / f"{stem}.png", dpi=110 if name == "schemes" else 100)
        write_conclusion(name, result)
