"""Overhead of ``rishd pretrain`` over a hand-written loop with the same model, batches, optimizer and clipping."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "every_10_steps": {"logging.every": 10},
    "bare": {"logging.every": 10, "logging.updates_every": 0, "logging.trackers": []},
}
Seconds = dict[str, float]  # per step: processor time and wall-clock time


def base_config(options: argparse.Namespace, text: Path) -> Any:
    from rishd.pretraining.config_files import make_config

    for i in range(200):  # enough for a tokenizer of 320 tokens; the model still has its preset's vocabulary
        lines = "\n".join(f"river {i} flows past valley {j} with height {i * j}" for j in range(100))
        (text / f"{i:03}.txt").write_text(lines, encoding="utf-8")
    return make_config(
        {
            "model": {"preset": options.preset, "settings": {"vocab_size": 32000}},
            "data": {
                "paths": [str(text)],
                "vocab_size": 320,
                "sequence_length": options.sequence_length,
                "epochs": 1000,
            },
            "training": {"steps": options.steps, "batch_size": options.batch_size},
            "optimizer": {"name": options.optimizer},
            "evaluation": {"every": 10**6, "tokens": options.sequence_length},
            "checkpoints": {"every": 10**6},
        }
    )


def by_hand(config: Any) -> Seconds:
    """A hand-written training loop, timed from the second step on."""
    from rishd.pretraining.blocks import make_collator, training_blocks
    from rishd.pretraining.corpus import load_corpus
    from rishd.pretraining.models import build_model, model_config
    from rishd.pretraining.optimizers import build_optimizer, build_scheduler
    from rishd.pretraining.tokenizer import load_tokenizer

    def quiet(*_: Any) -> None:
        pass

    corpus = load_corpus(config.data)
    tokenizer = load_tokenizer(config.data, corpus, quiet)
    blocks = training_blocks(config, corpus, tokenizer, quiet)
    made = model_config(
        config.model, tokenizer=None, vocab_size=config.data.vocab_size, sequence_length=config.data.sequence_length
    )
    model = build_model(config, made)
    optimizer = build_optimizer(config.optimizer, model)
    scheduler = build_scheduler(config, optimizer)
    collate = make_collator(config.data.packing, blocks.store.end)
    size = config.training.batch_size
    model.train()
    for step in range(config.steps):
        if step == 1:
            begun = time.process_time(), time.perf_counter()
        batch = collate([blocks[i] for i in range(step * size, (step + 1) * size)])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        loss.item()
    steps = config.steps - 1
    return {
        "processor": (time.process_time() - begun[0]) / steps,
        "clock": (time.perf_counter() - begun[1]) / steps,
    }


def by_rishd(config: Any, folder: Path) -> Seconds:
    """The same run by ``rishd pretrain``, timed from the second step on; evaluation and checkpoint are not counted."""
    from rishd.pretraining.run import train

    rows = [row for row in train(config, folder).rows if "loss" in row]
    first, last = rows[0], rows[-1]
    steps = last["step"] - first["step"]
    return {
        "processor": (last["cpu_seconds"] - first["cpu_seconds"]) / steps,
        "clock": (last["seconds"] - first["seconds"]) / steps,
    }


def measure(options: argparse.Namespace, row: Callable[..., None]) -> None:
    from rishd.pretraining.config_files import override

    taken: dict[str, list[Seconds]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["RISHD_CACHE"] = str(folder / "cache")
        (folder / "text").mkdir()
        config = base_config(options, folder / "text")
        changed = {name: override(config, VARIANTS[name]) for name in options.variants}
        for repeat in range(options.repeats + 1):  # the first pays for set-up
            round_of = {"by_hand": by_hand(config)}
            for name, own in changed.items():
                round_of[name] = by_rishd(own, folder / f"{name}-{repeat}")
            if repeat:
                for name, seconds in round_of.items():
                    taken.setdefault(name, []).append(seconds)
    for clock in ("processor", "clock"):
        base = statistics.median(seconds[clock] for seconds in taken["by_hand"])
        row(f"milliseconds_by_hand_{clock}", 1e3 * base, "ms")
        for name in options.variants:
            row(f"{name}_vs_by_hand_{clock}", statistics.median(seconds[clock] for seconds in taken[name]) / base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="write rows {name, value, unit} to this file")
    parser.add_argument("--preset", default="9M")
    parser.add_argument("--optimizer", default="muon-lite")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=31, help="steps of each run; the first is not counted")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs of each variant (odd)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor()}, 1 thread, Python {platform.python_version()}, torch {torch.__version__}")
    rows: list[dict[str, Any]] = []
    suffix = f"/{options.preset}/{options.optimizer}/{options.batch_size}x{options.sequence_length}"

    def row(name: str, value: float, unit: str = "ratio") -> None:
        rows.append({"name": name + suffix, "value": value, "unit": unit})
        print(f"  {name + suffix:64} {value:10.3f} {unit}", flush=True)

    measure(options, row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
