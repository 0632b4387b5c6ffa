"""The command ``rishd pretrain``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from rishd.commands.console import INTERRUPTED, err, out
from rishd.pretraining.presets import OPTIMIZERS, PRESETS
from rishd.progress import progress_bar

if TYPE_CHECKING:
    from rishd.pretraining.results import RunResult


def pretrain(
    folder: Annotated[Path, typer.Option("--out", help="Output folder: checkpoints, metrics, model.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Run configuration, YAML or TOML; defaults without it.")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help=f"{', '.join(OPTIMIZERS)}, or module:Class of any other.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help=f"Model: {', '.join(PRESETS)}.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per step, over all ranks.")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens per sequence.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation and data order.")] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Text or jsonl files, or folders of them; by default the sources of installed packages."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. optimizer.settings.chi=4."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out; without CONFIG with the settings it has.")
    ] = False,
) -> None:
    """Pre-train a language model from scratch on real text."""
    from rishd.pretraining import require_extra

    require_extra()
    from rishd.pretraining.config_files import load_config
    from rishd.pretraining.results import RECORD
    from rishd.pretraining.run_folder import write_config

    if resume and file is None and (folder / RECORD).exists():
        file = write_config(folder)
    options: dict[str, Any] = {
        "optimizer.name": optimizer,
        "model.preset": preset,
        "optimizer.lr": lr,
        "training.steps": steps,
        "training.batch_size": batch_size,
        "data.sequence_length": seq_len,
        "seed": seed,
        "data.paths": None if data is None else [str(path.resolve()) for path in data],
    }
    given = {key: value for key, value in options.items() if value is not None}
    config = load_config(file, overrides or (), changes=given)
    from rishd.pretraining.ranks import disconnect, leave
    from rishd.pretraining.run import train  # after the settings are checked: transformers takes seconds to load

    with progress_bar(err) as advance:
        result = train(config, folder, resume=resume, progress=advance, say=err.print)
    several = not result.interrupted and disconnect()
    if os.environ.get("RANK", "0") == "0":
        _print_result(result)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
    if several:
        leave()


def _print_result(result: RunResult) -> None:
    table = Table("step", "validation loss (nats per token)")
    for step, loss in result.series("validation_loss"):
        table.add_row(str(step), f"{loss:.4f}")
    out.print(table)
    summary = result.summary
    if summary.tokens_per_second and summary.optimizer_share is not None:
        out.print(
            f"{summary.tokens:,} tokens in {summary.seconds:,.1f} s: {summary.tokens_per_second:,.0f} tokens/s, "
            f"{summary.optimizer_share:.1%} of it in the optimizer; peak memory "
            f"{summary.peak_memory_bytes / 2**30:.2f} GiB",
            highlight=False,
        )
    out.print(f"results in {result.folder}")
