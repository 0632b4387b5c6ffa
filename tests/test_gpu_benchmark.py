"""The benchmark for GPUs on a CPU: all its parts run, and it reports what is skipped, wrong or broken."""

import json
from importlib.util import find_spec

import torch

from benchmarks import gpu
from benchmarks.gpu_parts import correctness, steps, training
from benchmarks.gpu_parts.report import Report
from lite import MuonLITE

CPU = torch.device("cpu")


def skipped(report):
    return {row["name"] for row in report.rows if row["unit"].startswith("skipped: ")}


def test_a_dry_run_does_every_part(tmp_path):
    report = Report(tmp_path / "gpu.json")
    assert gpu.run(report, CPU, minutes=60.0, dry=True) and not report.wrong
    assert json.loads(report.file.read_text()) == report.rows
    values = {row["name"]: row["value"] for row in report.rows}
    missing = {f"steps/dry/{name}" for name, package in steps.PACKAGES.items() if find_spec(package) is None}
    assert skipped(report) == missing | {f"no_sync/{name}" for name in correctness.DRY_RULES}
    assert {name for name, value in values.items() if value is None} == skipped(report)
    checks = {f"{kind}/{name}" for kind in ("against_cpu", "resume", "grad_scaler") for name in correctness.DRY_RULES}
    done = {name.removesuffix(f"/{name.rsplit('/', 1)[1]}") for name in values} | set(values)
    measured = {f"steps/dry/{name}" for name in steps.OPTIMIZERS} - missing
    assert done >= checks | measured | {"graph/muonlite", "matmul_rate/bfloat16", "training/muon", "training/muon-lite"}
    assert values["training/muon/steps"] == values["training/muon-lite/steps"] == 4
    assert values["against_cpu/adamw/float64"] == 0.0 < values["against_cpu/adamw/bfloat16"]


def test_what_has_no_time_left_is_named():
    report = Report(None)
    gpu.run(report, CPU, minutes=0.0, dry=False)
    names = {f"against_cpu/{name}" for name in correctness.RULES} | {f"steps/{size}" for size in steps.SETS}
    assert names | {"matmul_rate", "training"} <= skipped(report)
    assert all(row["value"] is None for row in report.rows)


def test_a_part_that_breaks_is_reported_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    def breaks():
        raise RuntimeError("the kernel is missing\nand more")

    def parts(report, device, *, dry):
        yield "broken", breaks
        yield "far", lambda: report.row("far/value", 0.2, limit=0.1)
        yield "near", lambda: report.row("near/value", 0.1, limit=0.1)
        yield "lost", lambda: report.row("lost/value", float("nan"))

    monkeypatch.setattr(correctness, "parts", parts)
    monkeypatch.setattr(steps, "parts", lambda report, device, *, dry: iter(()))
    monkeypatch.setattr(training, "trainings", lambda report, end, *, dry: report.row("training/value", 1.0))
    report = Report(tmp_path / "gpu.json")
    assert not gpu.run(report, CPU, minutes=60.0, dry=True)
    assert report.wrong == ["broken", "far/value", "lost/value"]
    rows = json.loads(report.file.read_text())
    assert rows[0] == {"name": "broken", "value": None, "unit": "failed: RuntimeError: the kernel is missing"}
    assert [(row["name"], row["value"]) for row in rows[1:]] == [
        ("far/value", 0.2), ("near/value", 0.1), ("lost/value", None), ("training/value", 1.0),
    ]  # fmt: skip
    assert "in breaks" in capsys.readouterr().err  # the traceback


class Forgetting(MuonLITE):
    """Loses its state where a checkpoint is loaded."""

    def load_state_dict(self, state_dict):
        pass


def test_a_lost_state_is_found(monkeypatch):
    report = Report(None)
    monkeypatch.setitem(correctness.RULES, "forgetting", Forgetting)
    correctness.resume(report, "forgetting", CPU)
    assert report.wrong == ["resume/forgetting/cpu_to_gpu", "resume/forgetting/gpu_to_cpu"]


def test_a_captured_step_that_keeps_its_numbers_is_found():
    """With plain numbers as learning rates, a replayed step has that of its capture."""

    class Numbers(MuonLITE):
        def learning_rate(self, group, shape):
            return float(super().learning_rate(group, shape))

    report = Report(None)
    correctness.graph(report, "numbers", Numbers, CPU)
    assert report.wrong == ["graph/numbers"]
