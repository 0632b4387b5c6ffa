"""The work of ``rishd demo``: flows, two pre-training runs and the report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from riemannian_ode.atomic import write_json
from rishd.claims.validation import Validation
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.config_files import make_config
from rishd.pretraining.results import RunResult
from rishd.pretraining.run import train
from rishd.pretraining.run_folder import RunFolderError
from rishd.provenance import versions
from rishd.report.figures import energy_figure, loss_figure, stability_figure
from rishd.report.page import Report, Section, write_report
from rishd.report.sections import valley_section
from rishd.report.tables import correspondence_rows
from rishd.studies.energy import EnergyStudy, energy_study
from rishd.studies.valley import valley_flows

# A vocabulary of 4096 keeps two runs of 100 steps within a minute on two cores, since the output layer dominates.
_VOCABULARY = 4096
_EVALUATION_TOKENS = 8192  # of each validation loss
_OPTIMIZERS = ("muon", "muon-lite")
_PACKAGES = ("transformers", "accelerate", "tokenizers")  # for training; the claims record their own


def first_picture(folder: Path) -> tuple[Section, Path]:
    """Simulate base and LITE flows on a valley; draw them, in the report's section and in ``valley.png``."""
    section = valley_section(valley_flows(progress=False))
    path = folder / "valley.png"
    if section.figure is not None:
        section.figure.savefig(path, dpi=110)
    return section, path


def run_demo(
    folder: Path,
    validation: Validation,
    picture: Section,
    *,
    steps: int,
    jobs: int = 1,
    progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> tuple[Path, bool]:
    """Simulate, pre-train with Muon and MuonLITE from the same seed, and write the report.

    Args:
        folder: Receives ``report.html`` and a folder per run; made ready by :func:`prepare`.
        validation: The claims' results.
        picture: Of the first screen.
        steps: Pre-training steps per optimizer.
        jobs: Processes that draw the report; −1 is one per CPU core.
        progress: Called with (what, done, total).
        say: Called with lines for the user.

    Returns:
        Path of the report, and whether Ctrl-C cut the runs short.

    """
    progress("simulating a flow", 0, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on flows as small as these, threads only wait for each other
    energy = energy_study()
    torch.set_num_threads(threads)
    progress("simulating a flow", 1, 1)
    runs: dict[str, RunResult] = {}
    for name in _OPTIMIZERS:
        config = _config(name, steps)
        runs[name] = train(config, folder / name, progress=progress, say=say)
        if runs[name].interrupted:
            break
    report = folder / "report.html"
    content = Report(
        "RISHD: demonstration",
        validation,
        picture=picture,
        sections=_sections(energy, runs, steps),
        correspondence=correspondence_rows(),
        facts={"pre-training seed": 0, **versions(_PACKAGES)},
    )
    write_report(report, content, jobs=jobs, progress=progress)
    return report, any(run.interrupted for run in runs.values())


def _sections(energy: EnergyStudy, runs: dict[str, RunResult], steps: int) -> list[Section]:
    return [
        Section(
            "Energy and its identity",
            [
                "E = f + (η/2)‖m‖² falls at the rate that claim C2 predicts, if the Riemannian correction R is "
                "kept. Dropping it, as every optimizer does, leaves up to "
                f"{float(np.max(energy.residual_without)):.2g} over here; keeping it leaves "
                f"{float(np.max(energy.residual_with)):.1g}, the integrator's error."
            ],
            energy_figure(energy),
            "DOP853, F(w) = diag(0.4 + w²) + 0.2 cos w (cos w)ᵀ on a quadratic.",
        ),
        Section(
            "Stability of the update rule",
            ["Above β = −α/(2 − α)² the stable learning rate shrinks as β grows: why only flat directions get β₂."],
            stability_figure(0.05),
            "Colour: spectral radius of one step, clipped to [0.5, 1.5]. Lines: closed forms of claims C6 and C9.",
        ),
        Section("Pre-training a small Llama", _training_text(runs), loss_figure(runs), _training_caption(runs, steps)),
    ]


def prepare(folder: Path, *, steps: int) -> None:
    """Check the settings and prepare the folder; only runs of an earlier demo are removed.

    Args:
        folder: Output folder, new or marked as a demo's.
        steps: Pre-training steps.

    Raises:
        ValueError: for settings out of range.
        RunFolderError: if ``folder`` holds something else than an earlier demo.
    """
    for name in _OPTIMIZERS:
        _config(name, steps)
    marker = folder / "demo.json"
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file; --out takes a folder.")
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise RunFolderError(f"{folder} is not empty and holds no demo; give another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"written_by": "rishd demo"})
    for name in _OPTIMIZERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _config(name: str, steps: int) -> PretrainConfig:
    return make_config(
        {
            "optimizer": {"name": name},
            "data": {"vocab_size": _VOCABULARY},
            "training": {"steps": steps},
            "schedule": {"warmup_steps": max(0, min(20, steps // 10))},
            "evaluation": {"every": max(1, steps // 5), "tokens": _EVALUATION_TOKENS},
            "checkpoints": {"every": max(1, steps)},
        }
    )


def _training_text(runs: dict[str, RunResult]) -> list[str]:
    finals = {name: run.final_validation_loss for name, run in runs.items()}
    told = ", ".join(f"{name} {loss:.4f}" for name, loss in finals.items() if loss is not None)
    lines = [f"Final validation loss in nats per token: {told}." if told else "No evaluation was reached."]
    if any(run.interrupted for run in runs.values()):
        lines.append("The run was interrupted: what is shown is partial.")
    lines.append(
        "One seed, a hundred steps or so and two thousand tokens a batch show that the path works, not which is "
        "better: neither learning rate was tuned, and the flat directions of MuonLITE move faster at the same one."
    )
    return lines


def _training_caption(runs: dict[str, RunResult], steps: int) -> str:
    parameters = next(iter(runs.values())).summary.parameters
    return (
        f"Llama 9M body with a vocabulary of {_VOCABULARY} ({parameters:,} parameters), {steps} steps, same seed, data "
        "and peak learning rate; Python sources of installed packages, split by file."
    )
