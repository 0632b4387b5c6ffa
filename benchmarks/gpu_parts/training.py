"""Two trainings of a model of 10 million parameters, with Muon and MuonLITE, as long as time is left."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.report import Report
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.config_files import make_config, override
from rishd.pretraining.results import RunResult
from rishd.pretraining.run import train

TRIAL_STEPS = 20
MOST_STEPS = 2000  # of 32 768 tokens: twice the default corpus
RESERVE = 0.8  # of the time left is planned; evaluations, set-up and saving take the rest
LR = 1e-2  # the best of Muon's for a million parameters, not tuned here


def trainings(report: Report, deadline: float, *, dry: bool) -> None:
    """Measure a short trial, which also prepares tokenizer and tokens, then train both for half of the time left.

    Args:
        report: Gets the rows.
        deadline: Time of ``time.perf_counter`` at which both must be done.
        dry: Whether to train a tiny model on a small text for a few steps.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = _config(folder, dry=dry)
        trial = train(override(config, {"training.steps": 2 if dry else TRIAL_STEPS}), folder / "trial")
        report.row("training/parameters", trial.summary.parameters / 1e6, "million")
        first, last = trial.rows[0], trial.rows[-1]
        each = (last["seconds"] - first["seconds"]) / max(1, last["step"] - first["step"])
        left = deadline - time.perf_counter()
        steps = 4 if dry else min(MOST_STEPS, int(RESERVE * left / 2 / max(each, 1e-6)))
        if steps < 2 * TRIAL_STEPS and not dry:
            report.skip("training", f"{left:.0f} s are left, enough for {steps} steps of each")
            return
        for name in ("muon", "muon-lite"):
            with _interrupted_at(deadline):
                run = train(override(config, {"training.steps": steps, "optimizer.name": name}), folder / name)
            _rows(report, f"training/{name}", run)


def _config(folder: Path, *, dry: bool) -> PretrainConfig:
    mapping: dict[str, Any] = {
        "model": {
            "preset": "9M",
            "settings": {
                "hidden_size": 256,
                "intermediate_size": 688,
                "num_hidden_layers": 8,
                "num_attention_heads": 8,
                "num_key_value_heads": 8,
            },
        },
        "data": {"vocab_size": 8192, "sequence_length": 256, "epochs": 4},
        "optimizer": {"lr": LR},
        "training": {"steps": TRIAL_STEPS, "batch_size": 128, "precision": "bfloat16-mixed"},
        "evaluation": {"every": 10**6, "tokens": 262144},
        "checkpoints": {"every": 10**6},
        "logging": {"every": 10, "updates_every": 0, "trackers": []},
    }
    if dry:
        text = folder / "text"
        text.mkdir()
        for i in range(50):
            lines = "\n".join(f"river {i} flows past valley {j} with height {i * j}" for j in range(40))
            (text / f"{i:02}.txt").write_text(lines, encoding="utf-8")
        mapping["model"]["settings"] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        mapping["data"] = {"paths": [str(text)], "vocab_size": 320, "sequence_length": 16, "validation_share": 0.1}
        mapping["training"] |= {"batch_size": 2}
        mapping["evaluation"]["tokens"] = 32
        mapping["logging"]["every"] = 1
    return make_config(mapping)


def _rows(report: Report, name: str, result: RunResult) -> None:
    summary = result.summary
    report.row(f"{name}/steps", summary.steps, "steps")
    report.row(f"{name}/peak_memory", summary.peak_memory_bytes / 2**20, "MiB")
    for what, value, unit in (
        ("validation_loss", summary.final_validation_loss, "nats a token"),
        ("speed", summary.tokens_per_second, "tokens/s"),
        ("optimizer_share", summary.optimizer_share, "ratio"),
    ):
        if value is None:
            report.skip(f"{name}/{what}", f"the run ended early, {summary.status}")
        else:
            report.row(f"{name}/{what}", value, unit)


@contextmanager
def _interrupted_at(deadline: float) -> Iterator[None]:
    """End a run as Ctrl-C does, which leaves its summary."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, deadline - time.perf_counter()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
