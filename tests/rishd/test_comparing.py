"""Comparisons: plans, runs to do, statistics of recorded runs, scaling laws, and real tiny runs."""

import json
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from rishd.commands.application import app
from rishd.comparing.execute import execute, run_one
from rishd.comparing.plan import load_plan, make_plan
from rishd.comparing.record import RecordedRun, append_run, read_runs
from rishd.comparing.rivals import RIVALS
from rishd.comparing.scaling import fit_power_law, scaling_laws
from rishd.comparing.schedule import best_rate, due_runs
from rishd.comparing.statistics import compare, length_reaching, t_interval
from rishd.comparing.transfer import transfers
from rishd.pretraining.config_files import ConfigError
from rishd.pretraining.optimizers import try_optimizer
from rishd.report.compare_figures import (
    comparison_figure,
    curve_figure,
    length_figure,
    scaling_figure,
    transfer_figure,
)

RATES = (1e-3, 1e-2, 1e-1)


def mapping(**changes):
    return {
        "run": {"model": {"preset": "1M"}, "training": {"steps": 100, "batch_size": 2}},
        "seeds": [0, 1, 2],
        "baseline": "muon",
        "variants": {
            "muon": {"set": {"optimizer.name": "muon"}, "lr": list(RATES)},
            "lite": {"set": {"optimizer.name": "muon-lite"}, "lr": [1e-2], "lengths": [0.5, 0.75]},
            "chi": {"like": "lite", "set": {"optimizer.settings.beta_flat": 0.0}},
        },
    } | changes


def recorded(run, loss, *, seconds=1.0, curve=((50, 4.0), (100, None))):
    steps, tokens = run.config.steps, run.config.steps * run.config.tokens_per_step
    diverged = loss is None
    summary = {
        "status": "failed" if diverged else "complete",
        "final_validation_loss": loss,
        "steps": steps,
        "tokens": tokens,
        "cpu_seconds": seconds * steps,
        "non_embedding_parameters": 1000,
    }
    points = [[step, step * run.config.tokens_per_step, loss if value is None else value] for step, value in curve]
    return RecordedRun(run.key, {"key": run.key, "label": run.label, "summary": summary, "validation": points})


def finish(plan, loss_of, **options):
    runs = {}
    while due := due_runs(plan, runs):
        runs[due[0].key] = recorded(due[0], loss_of(due[0]), **options)
    return runs


def test_search_comes_first_then_seeds_and_lengths_at_the_best_rate():
    plan = make_plan(mapping())
    due = due_runs(plan, {})
    assert [(run.variant, run.lr, run.seed, run.length) for run in due[:3]] == [("muon", lr, 0, 1.0) for lr in RATES]
    lite = [run for run in due if run.variant == "lite"]
    assert [(run.seed, run.length) for run in lite] == [
        *((seed, 1.0) for seed in range(3)),
        *((seed, length) for seed in range(3) for length in (0.5, 0.75)),
    ]
    assert {run.config.steps for run in lite} == {100, 50, 75}
    assert [run.lr for run in due if run.variant == "chi"] == [1e-2] * 3
    best = {}
    for run, loss in zip(due[:3], (3.2, 3.1, None), strict=True):
        best[run.key] = recorded(run, loss)
    assert best_rate(plan, best, "muon", "") == 1e-2
    more = [run for run in due_runs(plan, best) if run.variant == "muon"]
    assert [(run.lr, run.seed) for run in more] == [(1e-2, 1), (1e-2, 2)]
    assert due_runs(plan, finish(plan, lambda run: 3.0)) == []


def test_every_rate_diverging_stops_the_variant():
    plan = make_plan(mapping())
    runs = finish(plan, lambda run: None)
    assert best_rate(plan, runs, "muon", "") is None
    assert compare(plan, runs).result("muon", "").loss is None


def test_settings_of_like_and_cells_and_own_ones_go_on_top_of_each_other():
    plan = make_plan(mapping(cells={"small": {"training.steps": 40}, "large": {"training.steps": 80}}))
    config = plan.config("chi", "large", lr=0.5, seed=7, length=0.5)
    assert config.optimizer.settings == {"beta_flat": 0.0}
    assert (config.optimizer.name, config.optimizer.lr, config.seed, config.steps) == ("muon-lite", 0.5, 7, 40)


def test_each_cell_has_its_own_learning_rate():
    plan = make_plan(
        mapping(
            cells={"small": {"optimizer.lr": 1e-2}, "large": {"optimizer.lr": 1e-3}},
            variants={"muon": {"set": {"optimizer.name": "muon"}}},
            seeds=[0],
        )
    )
    assert [(run.cell, run.lr) for run in due_runs(plan, {})] == [("small", 1e-2), ("large", 1e-3)]


def test_keys_depend_on_what_numbers_depend_on():
    plan = make_plan(mapping())
    other = make_plan(mapping(run=mapping()["run"] | {"logging": {"every": 5}}))
    assert due_runs(plan, {})[0].key == due_runs(other, {})[0].key
    assert len({run.key for run in due_runs(plan, {})}) == len(due_runs(plan, {}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {}}, "variants is empty"),
        ({"baseline": "muom"}, "Did you mean 'muon'"),
        ({"sedes": [1]}, "sedes is not a known setting"),
        ({"seeds": []}, "seeds"),
        ({"variants": {"a": {"like": "b"}, "b": {"like": "a"}}, "baseline": None}, "in a circle"),
        ({"variants": {"muon": {"lr": [1e-2, 1e-2]}}}, "each once"),
        ({"variants": {"muon": {"lengths": [1.5]}}}, "lengths"),
        ({"variants": {"muon": {"set": {"optimizer.nam": "muon"}}}}, r"variant muon: optimizer\.nam is not a known"),
        ({"variants": {"muon": {"set": {"training.steps": 0}}}}, r"training\.steps = 0"),
        ({"variants": {"muon": {"cells": ["huge"]}}}, "huge"),
        ({"variants": {"muon": {"set": {"optimizer.lr": 1e-2}}}}, "give lr instead"),
        ({"variants": {"muon": {"set": {"seed": 3}}}}, "give seeds instead"),
        (
            {"variants": {"muon": {"set": {"schedule.warmup_steps": 60}, "lengths": [0.5]}}},
            r"variant muon with 0\.5 of the steps: .*warmup_steps = 60",
        ),
        ({"run": {"training": {"steps": "many"}}}, r"training\.steps = 'many'"),
        ({"rivals": "all"}, "rivals = 'all' must be true, false, or a list"),
        ({"rivals": ["adam"]}, "Did you mean 'adamw'"),
        ({"rivals": True, "baseline": None}, "name a baseline with its own lr"),
        ({"rivals": True, "baseline": "chi"}, "name a baseline with its own lr"),
    ],
)
def test_bad_plans_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(mapping(**changes))


def test_rivals_search_from_the_baselines_rates(monkeypatch):
    plan = make_plan(mapping(rivals=["adamw", "muon, constant norm", "kl-soap"]))
    assert list(plan.variants) == ["muon", "lite", "chi", "adamw", "muon, constant norm", "kl-soap"]
    assert plan.grid("adamw", "") == tuple(0.25 * rate for rate in RATES)
    assert plan.grid("muon, constant norm", "") == (4e-3, 4e-2, 4e-1)
    assert plan.config("kl-soap", "").optimizer.settings == {"divergence": "kl"}
    own = mapping(rivals=["adamw"])
    own["variants"]["adamw"] = {"set": {"optimizer.name": "adamw"}, "lr": 0.5}
    assert make_plan(own).grid("adamw", "") == (0.5,)
    everyone = make_plan(mapping(rivals=True)) if find_spec("pytorch_optimizer") else None
    assert everyone is None or set(RIVALS) <= set(everyone.variants)
    monkeypatch.setattr("rishd.comparing.rivals.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="rivals has ademamix, which needs pytorch_optimizer"):
        make_plan(mapping(rivals=True))


@pytest.mark.parametrize("name", [name for name, rival in RIVALS.items() if rival.module is None])
def test_every_rival_trains(name):
    plan = make_plan(mapping(rivals=[name]))
    try_optimizer(plan.config(name, "", lr=1e-2).optimizer, torch.device("cpu"))


def test_transfer_of_the_best_rate_from_the_smallest_model_to_the_largest():
    """The large model's best rate is a tenth of the small one's under one variant, and the same under the other."""
    cells = {"wide": {"model.preset": "9M"}, "narrow": {"model.preset": "1M"}}
    variants = {
        name: {"set": {"optimizer.name": "muon", "optimizer.settings.scale": scale}, "lr": list(RATES)}
        for name, scale in (("rms", "rms"), ("spectral", "spectral"))
    }
    plan = make_plan(mapping(cells=cells, variants=variants, baseline=None, seeds=[0]))

    def loss(run):
        best = 1e-3 if (run.variant, run.cell) == ("rms", "wide") else 1e-2
        return 3.0 + 0.1 * abs(math.log10(run.lr / best))

    runs = finish(plan, loss)
    for run in runs.values():
        run.data["summary"]["non_embedding_parameters"] = 100 if "narrow" in run.data["label"] else 900
    found = {each.variant: each for each in transfers(compare(plan, runs))}
    assert found["rms"].cells == ("narrow", "wide")
    assert found["rms"].best == (1e-2, 1e-3)
    assert found["rms"].lost == pytest.approx(0.1)
    assert (found["spectral"].best, found["spectral"].lost) == ((1e-2, 1e-2), 0.0)
    assert found["rms"].row()["lost by transfer"] == "0.1000"
    transfer_figure(list(found.values())).canvas.draw()
    one_size = make_plan(mapping(variants=variants, baseline=None, seeds=[0]))
    assert transfers(compare(one_size, finish(one_size, loss))) == []


def test_plan_files_may_name_a_run_configuration(tmp_path):
    (tmp_path / "run.yaml").write_text("training: {steps: 7}\n")
    (tmp_path / "plan.toml").write_text('run = "run.yaml"\n[variants.a]\nlr = 1e-2\n')
    assert due_runs(load_plan(tmp_path / "plan.toml"), {})[0].config.steps == 7
    with pytest.raises(ConfigError, match="cannot be read"):
        load_plan(tmp_path / "missing.yaml")


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_t_interval_is_that_of_scipy(values):
    found = t_interval(values)
    spread = np.std(values, ddof=1) / len(values) ** 0.5
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.half == pytest.approx(stats.t.interval(0.95, len(values) - 1, scale=1.0)[1] * spread, abs=1e-12)


def test_t_interval_of_few_values():
    assert t_interval([]) is None
    assert t_interval([3.0]).mean == 3.0
    assert math.isnan(t_interval([3.0]).half)


@given(
    lengths=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=5, unique=True),
    slope=st.floats(0.1, 5.0),
    target=st.floats(0.01, 1.2),
)
def test_length_reaching_inverts_a_line(lengths, slope, target):
    points = [(length, 4.0 - slope * length) for length in lengths]
    found = length_reaching(points, 4.0 - slope * target)
    if target > max(lengths) + 1e-9:
        assert found is None
    elif target < min(lengths):
        assert found == min(lengths)
    elif target <= max(lengths) - 1e-9:
        assert found == pytest.approx(target, abs=1e-6)


def test_statistics_compare_equal_seeds():
    plan = make_plan(mapping())
    offset = {0: 0.0, 1: 0.1, 2: 0.3}

    def loss(run):
        base = {1e-3: 3.5, 1e-2: 3.2, 1e-1: 3.3}[run.lr] + offset[run.seed]
        if run.variant == "muon":
            return base
        return base - 0.4 * (run.length - 0.6) - (0.01 if run.variant == "chi" else 0.0)

    runs = finish(plan, loss)
    for run in runs.values():  # LITE's steps take a quarter longer
        if run.data["label"].startswith("lite"):
            run.data["summary"]["cpu_seconds"] *= 1.25
    comparison = compare(plan, runs)
    base, lite, chi = (comparison.result(name, "") for name in ("muon", "lite", "chi"))
    assert (base.lr, base.at_edge, base.baseline) == (1e-2, False, None)
    assert base.loss.mean == pytest.approx(3.2 + 0.4 / 3)
    # The seeds' common offset leaves the differences.
    assert lite.difference == pytest.approx((-0.16, 0.0), abs=1e-9)
    assert chi.difference.mean == pytest.approx(-0.17)
    assert lite.step_ratio == pytest.approx((0.6, 0.0), abs=1e-9)
    assert lite.time_ratio.mean == pytest.approx(0.75)
    # Within the run: 4.0 at step 50, final loss at step 100.
    expected = np.mean([0.5 + 0.5 * (4.0 - (3.2 + o)) / (4.0 - (3.04 + o)) for o in offset.values()])
    assert lite.steps_to.mean == pytest.approx(expected)
    assert (lite.reached, base.reached) == (3, 0)
    assert comparison.warnings() == []
    rows = comparison.table()
    assert rows[1]["annealed steps"] == "0.600 ± 0.000"
    assert "cell" not in rows[0]


def test_edges_missing_runs_and_unreached_losses_are_said():
    plan = make_plan(mapping())
    runs = finish(plan, lambda run: 3.0 + run.lr + 0.2 * (run.variant != "muon"))
    comparison = compare(plan, runs, missing=4)
    assert comparison.result("muon", "").at_edge
    assert "0.001 is at the edge of its grid 0.001, 0.01, 0.1" in comparison.warnings()[0]
    assert "4 runs are due" in comparison.warnings()[1]
    assert comparison.table()[0]["lr"] == "0.001 (edge)"
    lite = comparison.result("lite", "")
    assert (lite.unreached, lite.step_ratio, lite.reached) == (3, None, 0)
    assert json.dumps(comparison.as_dict(), allow_nan=False)


@given(exponent=st.floats(0.05, 0.6), height=st.floats(0.2, 4.0), floor=st.floats(0.0, 2.0))
def test_power_laws_are_recovered(exponent, height, floor):
    x = np.geomspace(1e5, 1e8, 6)
    loss = floor + height * (x / 3e6) ** -exponent
    law = fit_power_law("a", "tokens", x, loss)
    assert np.allclose(law(x), loss, rtol=1e-3)
    two = fit_power_law("a", "tokens", x[:2], loss[:2])
    assert np.allclose(two(x[:2]), loss[:2], rtol=1e-6)
    assert two.inverse(float(loss[0])) == pytest.approx(x[0], rel=1e-3)


def test_scaling_laws_over_budgets_with_the_baselines_disadvantage():
    cells = {f"{steps} steps": {"training.steps": steps} for steps in (50, 100, 200, 400)}
    plan = make_plan(mapping(cells=cells, seeds=[0]))

    def loss(run):
        tokens = run.config.steps * run.config.tokens_per_step
        return 1.5 + (tokens * (2.0 if run.variant == "lite" else 1.0) / 1e3) ** -0.3

    comparison = compare(plan, finish(plan, loss))
    found, complaints = scaling_laws(comparison)
    laws = {law.variant: law for law in found}
    assert not complaints
    assert laws["muon"].exponent == pytest.approx(0.3, abs=0.01)
    assert laws["lite"].advantage == pytest.approx(2.0, rel=0.02)
    assert "the baseline needs 2.0" in laws["lite"].sentence
    scaling_figure(list(laws.values()))
    with pytest.raises(ValueError, match="do not fall"):
        fit_power_law("a", "tokens", np.array([1.0, 2.0]), np.array([3.0, 3.1]))


def test_a_variant_without_scaling_law_does_not_hide_the_others():
    cells = {f"{steps} steps": {"training.steps": steps} for steps in (50, 100, 200)}
    plan = make_plan(mapping(cells=cells, seeds=[0]))
    comparison = compare(
        plan, finish(plan, lambda run: 2.0 + (1 if run.variant == "lite" else -1) * run.config.steps / 1e3)
    )
    laws, complaints = scaling_laws(comparison)
    assert "lite" not in {law.variant for law in laws} >= {"muon"}
    assert any("lite has no scaling law: the losses of lite do not fall with its tokens" in line for line in complaints)


def test_runs_that_begin_differently_are_said():
    plan = make_plan(mapping())
    runs = finish(plan, lambda run: 3.0)
    due = {run.key: run for run in due_runs(plan, {})}
    for key, run in runs.items():
        if key in due:
            run.data["config"] = due[key].config.to_mapping()
            run.data["first_loss"] = 8.3 + 1e-4 * (due[key].variant == "lite")
    assert compare(plan, runs).unequal == ()
    odd = next(run for key, run in runs.items() if key in due and due[key].variant == "lite")
    odd.data["first_loss"] = 8.2
    (line,) = compare(plan, runs).warnings()[-1:]
    assert line.startswith(odd.data["label"])
    assert "8.2000" in line
    assert "8.3001" in line


def test_records_survive_a_cut_line(tmp_path):
    plan = make_plan(mapping())
    first, second = due_runs(plan, {})[:2]
    append_run(tmp_path, dict(recorded(first, 3.0).data))
    with (tmp_path / "runs.jsonl").open("a") as stream:
        stream.write('{"key": "ab')
    assert list(read_runs(tmp_path)) == [first.key]
    append_run(tmp_path, dict(recorded(second, 3.0).data))
    assert list(read_runs(tmp_path)) == [first.key, second.key]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("RISHD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    for i in range(60):
        lines = "\n".join(f"river {i} flows past valley {j} with height {i * j}" for j in range(30))
        (tmp_path / "text" / f"{i:02}.txt").write_text(lines)
    run = {
        "model": {"preset": "1M"},
        "data": {"paths": [str(tmp_path / "text")], "vocab_size": 320, "sequence_length": 16},
        "training": {"steps": 4, "batch_size": 2},
        "evaluation": {"every": 2, "tokens": 32},
        "checkpoints": {"every": 2},
    }
    variants = {
        "adamw": {"set": {"optimizer.name": "adamw"}, "lr": [1e-3, 1e-2]},
        "muon": {"set": {"optimizer.name": "muon"}, "lr": 1e-2, "lengths": [0.5]},
    }
    plan = {"run": run, "variants": variants, "baseline": "adamw", "seeds": [0, 1]}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    return tmp_path


def test_command_runs_what_is_missing_and_reports(tiny):
    file, out = str(tiny / "plan.yaml"), tiny / "out"
    options = ["--out", str(out), "--jobs", "1"]
    dry = CliRunner().invoke(app, ["compare", file, *options, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert dry.stdout.splitlines()[0] == "adamw, lr 0.001, seed 0"
    few = CliRunner().invoke(app, ["compare", file, *options, "--dry-run", "--limit", "1"])
    assert few.stdout.splitlines() == dry.stdout.splitlines()[:1]
    none = CliRunner().invoke(app, ["compare", file, *options, "--dry-run", "--only", "nobody"])
    assert isinstance(none.exception, ValueError)
    one = CliRunner().invoke(app, ["compare", file, *options, "--limit", "1"])
    assert one.exit_code == 0, one.output
    assert len(read_runs(out)) == 1
    before = (out / "runs.jsonl").read_bytes()
    whole = CliRunner().invoke(app, ["compare", file, *options, "--format", "json"])
    assert whole.exit_code == 0, whole.output
    data = json.loads(whole.stdout)
    assert (out / "runs.jsonl").read_bytes().startswith(before)
    assert [row["variant"] for row in data["results"]] == ["adamw", "muon"]
    assert data["missing"] == 0
    assert len(read_runs(out)) == 7
    line = json.loads((out / "runs.jsonl").read_text().splitlines()[0])
    assert [step for step, _, _ in line["validation"]] == [2, 4]
    assert line["summary"]["cpu_seconds"] > 0
    assert {"losses.png", "curves.png", "lengths.png", "comparison.json"} <= {path.name for path in out.iterdir()}
    assert list((out / "work").iterdir()) == []
    again = CliRunner().invoke(app, ["compare", file, *options])
    assert "at the edge of its grid" in " ".join(again.stdout.split())


def test_interrupted_runs_go_on_and_parallel_ones_give_the_same_numbers(tiny, monkeypatch):
    from rishd.pretraining.trainer import PretrainTrainer

    plan = load_plan(tiny / "plan.yaml")
    right = PretrainTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return right(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(plan, tiny / "a", tiny / "work", only=["muon"], jobs=1)
    assert read_runs(tiny / "a") == {}
    (folder,) = (tiny / "work").iterdir()
    assert (folder / "checkpoint-2").is_dir()
    resumed = execute(plan, tiny / "a", tiny / "work", only=["muon"], limit=1, jobs=1)
    parallel = execute(plan, tiny / "b", tiny / "work-b", only=["muon"], jobs=2)
    assert len(parallel) == 4
    for key, run in resumed.items():
        assert parallel[key].loss == run.loss
    with pytest.raises(ValueError, match="no variant is called 'soap'"):
        execute(plan, tiny / "b", tiny / "work", only=["soap"])


def test_divergence_is_recorded_and_not_repeated(tiny):
    mapping = json.loads((tiny / "plan.yaml").read_text())
    mapping["variants"] = {"muon": {"set": {"optimizer.name": "muon", "schedule.warmup_steps": 0}, "lr": [1e-2, 1e30]}}
    plan = make_plan(mapping | {"baseline": "muon"})
    said = []
    runs = execute(plan, tiny / "out", tiny / "work", jobs=1, say=said.append)
    assert any("diverged" in line for line in said)
    assert best_rate(plan, runs, "muon", "") == 1e-2
    assert due_runs(plan, runs) == []
    bad = next(run for run in due_runs(plan, {}) if run.lr == 1e30)
    assert run_one(bad, tiny / "work" / "again", 1)["summary"]["status"] == "failed"


def test_figures_of_partial_results():
    plan = make_plan(mapping())
    runs = finish(plan, lambda run: 3.0 + abs(math.log10(run.lr) + 2) - 0.1 * run.length)
    some = dict(list(runs.items())[:4])
    for known in (some, runs):
        comparison = compare(plan, known)
        for figure in (comparison_figure(comparison), curve_figure(plan, known, comparison), length_figure(comparison)):
            figure.canvas.draw()
