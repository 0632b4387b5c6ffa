"""What the pages of ``rishd explore`` compute, without a browser."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riemannian_ode.errors import MissingExtraError
from rishd.exploring import require_extra
from rishd.exploring.choices import GEOMETRIES, RANGES, SCENES, integrators
from rishd.exploring.computing import Mode, compute, contraction, heights
from rishd.exploring.drawing import Pictures
from rishd.exploring.flow_page import FlowPage
from rishd.exploring.program import program
from rishd.exploring.results import Selection, best_rate, chosen, curves, read_results, table, variants
from rishd.exploring.results_page import ResultsPage
from rishd.exploring.view import View

RESULTS = Path(__file__).parent.parent.parent / "docs" / "results"


def executed(text, folder):
    """The names that a program has made, run by itself in an interpreter of its own."""
    code = f"{text}\nnp.savez('numbers.npz', times=flows.times, w=flows.w, loss=landscape.value(flows.w))\n"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, env=os.environ)
    return np.load(folder / "numbers.npz")


@pytest.mark.parametrize(
    "view",
    [
        View(eta=0.07, chi=2.5, steps=40),
        View(landscape="quadratic", metric="polar-factor", noise=0.3, sharp=2, steps=12, beta_sharp=-0.25),
    ],
)
def test_the_program_of_a_view_gives_its_numbers(view, tmp_path):
    numbers, picture = executed(program(view), tmp_path), compute(view)
    assert np.array_equal(numbers["w"], picture.flows.w)
    assert np.array_equal(numbers["times"], picture.flows.times)
    by_method = np.moveaxis(numbers["loss"].reshape(len(numbers["times"]), 2, -1), 0, 2)
    assert np.allclose(by_method - by_method.min(), picture.losses - picture.losses.min(), rtol=0, atol=1e-12)
    assert (tmp_path / "flows.png").stat().st_size > 5000


@pytest.mark.parametrize("metric", GEOMETRIES)
@pytest.mark.parametrize("landscape", SCENES)
def test_every_pair_is_simulated_and_drawn(landscape, metric):
    view = View(landscape=landscape, metric=metric, steps=10, noise=0.1 if metric == "sign" else 0.0)
    picture, pictures = compute(view), Pictures()
    pictures.show(picture, heights(View(landscape=landscape)))
    assert picture.flows.ok
    assert np.isfinite(picture.losses).all()
    for name, k in (("base", 0), ("LITE", 1)):
        drawn = pictures.numbers(f"path {name}")
        assert np.array_equal(np.stack([drawn["xs"], drawn["ys"]], axis=-1), picture.paths[k], equal_nan=True)
        assert len(pictures.numbers(f"loss {name}")["ys"]) == view.copies
    for plot in (pictures.loss, pictures.energy, pictures.stability, pictures.modes):
        for reach in (plot.x_range, plot.y_range):
            assert np.isfinite([reach.start, reach.end]).all()
            assert reach.start < reach.end
    assert picture.modes or picture.no_modes
    assert not np.array_equal(picture.losses[0], picture.losses[1])  # LITE is another method


@pytest.mark.parametrize("name", integrators(geometry=GEOMETRIES["euclidean"], noisy=False))
def test_every_integrator_on_offer_runs(name):
    assert compute(View(landscape="saddle", integrator=name, steps=10, h=0.5)).flows.ok


def test_base_with_the_settings_of_lite_is_lite():
    picture = compute(View(chi=1.0, beta_flat=0.5, beta_sharp=0.5, steps=30))
    assert np.array_equal(picture.losses[0], picture.losses[1])


def test_a_run_that_diverges_is_told_with_time_and_place_and_still_drawn():
    picture = compute(View(eta=2.0, steps=400))
    for name, message in zip(("base", "LITE"), picture.messages, strict=True):
        assert message.startswith(f"{name} runs away: at t = ")
        assert "w = (" in message
        assert "not finite" in message
    pictures = Pictures()
    pictures.show(picture, heights(View()))
    for what in ("loss", "energy"):
        drawn = np.array(pictures.numbers(f"{what} LITE")["ys"])
        assert np.nanmax(drawn) < 1e12
        assert not np.isinf(drawn).any()  # the browser finds no range for infinity
    assert "runs away" in FlowPage({"eta": "2"}).alert.object


def test_the_present_modes_are_those_of_the_landscape():
    view = View(eta=0.3)
    modes = compute(view).modes
    hessian = executed_landscape(view).hessian(np.zeros(2))
    flat, sharp = 0.3 * np.linalg.eigvalsh(hessian)
    assert [mode.kappa for mode in modes] == pytest.approx([sharp, flat, view.chi * flat])
    assert [mode.beta for mode in modes] == [0.0, 0.0, 2.0]
    assert contraction(view, modes[0]).startswith("unstable" if sharp >= 3.0 else "stable")
    assert contraction(view, Mode("both", "sharp", 3.01, 0.0)) == "unstable: κ is above its limit 3"


def executed_landscape(view):
    names = {}
    exec(program(view).computes, names)
    return names["landscape"]


@st.composite
def views(draw):
    scene, metric = draw(st.sampled_from(list(SCENES))), draw(st.sampled_from(list(GEOMETRIES)))
    noise = draw(st.sampled_from([0.0, 0.25]))
    number = {name: draw(st.floats(RANGES[name].low, RANGES[name].high)) for name in ("chi", "eta", "alpha", "h")}
    low, high = sorted(draw(st.floats(-0.9, 5.0)) for _ in range(2))
    return View(
        landscape=scene,
        metric=metric,
        integrator=draw(st.sampled_from(integrators(geometry=GEOMETRIES[metric], noisy=noise > 0))),
        sharp=draw(st.integers(0, GEOMETRIES[metric].directions(SCENES[scene]))),
        steps=draw(st.integers(10, 1000)),
        beta_sharp=low,
        beta_flat=high,
        noise=noise,
        **number,
    )


@given(views())
def test_a_url_holds_the_whole_view(view):
    assert View.from_query(view.query()) == (view, [])
    compile(str(program(view)), "program", "exec")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"chi": "many"}, "chi = 'many' is not a number. The default is shown."),
        ({"eta": "nan"}, "eta = nan is out of range; give 0.0001 to 10. The default is shown."),
        ({"steps": "1e3"}, "steps = '1e3' is not a whole number."),
        ({"steps": "100000"}, "steps = 100000 is out of range; give 10 to 1000."),
        ({"landscape": "rivr"}, "Did you mean 'river'?"),
        ({"integrator": "rk45"}, "Choose one of: explicit-euler"),
        ({"metric": "polar-factor", "sharp": "2"}, "sharp = 2 exceeds the 1 singular directions"),
        ({"metric": "sign", "integrator": "strang"}, "integrator (for Sign (Lion)) = 'strang' is unknown"),
        ({"beta_sharp": "3"}, "beta_flat = 2 is below beta_sharp = 3"),
        ({"__import__('os')": "1"}, "is no setting of this page"),
    ],
)
def test_a_bad_url_gets_a_plain_message_and_defaults(query, message):
    view, problems = View.from_query(query)
    assert view == View()
    assert len(problems) == 1
    assert message in problems[0]
    assert problems[0] in FlowPage(query).alert.object


def test_what_is_usable_of_a_bad_url_is_used():
    view, problems = View.from_query({"chi": "5", "eta": "x"})
    assert view == View(chi=5.0)
    assert len(problems) == 1


def test_controls_change_pictures_words_and_code_and_refuse_what_does_not_fit():
    page = FlowPage({})
    before = page.pictures.numbers("loss LITE")["ys"][0]
    page.controls["chi"].value = 6.0
    assert page.view == View(chi=6.0)
    assert page.code.value == str(program(page.view))
    assert page.pictures.numbers("loss LITE")["ys"][0][-1] < before[-1]
    page.controls["beta_sharp"].value = 4.0
    assert "beta_flat = 2 is below beta_sharp = 4" in page.alert.object
    assert page.view == View(chi=6.0)  # the last one that fits
    page.controls["beta_sharp"].value = 0.0
    assert not page.alert.visible
    page.controls["sharp"].value = 2
    page.controls["integrator"].value = "strang"
    page.controls["metric"].value = "polar-factor"  # takes neither
    assert (page.view.sharp, page.view.integrator) == (1, "semi-implicit-euler")
    assert (page.controls["sharp"].value, page.controls["integrator"].value) == (1, "semi-implicit-euler")
    assert "strang does not take" in page.alert.object
    assert "strang" not in page.controls["integrator"].options


def test_results_are_grouped_and_filtered():
    runs = read_results(RESULTS / "damping")
    assert variants(runs) == ("muon", "outside", "outside (2)", "inside", "graded")
    best = Selection(variants=("muon", "inside"))
    recorded = json.loads((RESULTS / "damping" / "comparison.json").read_text())["results"][0]
    muon = chosen(runs, best)["muon"]
    assert best_rate([run for run in runs if run.variant == "muon"]) == recorded["lr"]
    assert sorted(run.loss for run in muon) == sorted(recorded["losses"].values())
    assert [row["seeds"] for row in table(runs, best)] == ["3", "3"]
    assert table(runs, best)[0]["final validation loss"] == "2.9734 ± 0.0016"
    means, each = curves(runs, best), curves(runs, Selection(variants=("muon", "inside"), seeds="each"))
    assert (len(means), len(each)) == (2, 6)
    assert means[0].loss == pytest.approx(np.mean([line.loss for line in each[:3]], axis=0))
    everything = Selection(variants=("muon",), rates="all", seeds="each", curve="training", over="tokens")
    lines = curves(runs, everything)
    assert len(lines) == 5
    assert lines[0].x[-1] == muon[0].steps * muon[0].tokens_per_step


def test_diverged_runs_are_counted_and_do_not_break_the_page():
    runs = read_results(RESULTS / "damping")
    runs = (runs[0]._replace(loss=math.inf, validation=np.empty((0, 2))), *runs[1:])
    rows = table(runs, Selection(variants=("muon",), rates="all"))
    assert rows[0]["final validation loss"] == "1 diverged"
    page = ResultsPage({"variants": "muon;graded", "rates": "all", "curve": "loss"}, runs, "folder")
    assert "curve = 'loss' is unknown" in page.alert.object
    page.controls["seeds"].value = "each"
    assert page.selection == Selection(variants=("muon", "graded"), rates="all", seeds="each")
    assert Selection.from_query(page.selection.query(), variants(runs)) == (page.selection, [])
    page.controls["variants"].value = []
    assert "muon" in page.words.object  # none chosen: the first ones


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no recorded runs \(runs.jsonl\); give the --out folder"):
        read_results(tmp_path)
    assert "rishd explore --results" in ResultsPage({}, ()).words.object


def test_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("riemannian_ode.checks.find_spec", lambda name: None if name == "panel" else object())
    with pytest.raises(MissingExtraError, match=r"rishd explore needs panel: pip install 'rishd\[explore\]'"):
        require_extra()


def test_a_port_that_is_taken_and_help_without_panel():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "rishd", "explore", "--no-open", "--port", str(port)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert result.returncode == 2
    assert f"error: --port {port} is not free" in result.stderr
    code = (
        "import sys, rishd.commands.application as a\n"
        "assert not {'panel', 'bokeh', 'panel_material_ui'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
