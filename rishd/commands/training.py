"""Commands on models: ``rishd pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rishd.commands.console import INTERRUPTED, err, out
from rishd.progress import progress_bar


def pretrain(
    folder: Annotated[Path, typer.Option("--out", help="Output folder: checkpoints, metrics, model.")],
    optimizer: Annotated[str, typer.Option(help="adamw, muon or muon-lite.")] = "muon-lite",
    preset: Annotated[str, typer.Option(help="Model size: 9M, 60M, 130M, 250M, 350M, 500M, 1B.")] = "9M",
    vocab_size: Annotated[int, typer.Option(help="Tokens of the BPE trained on the corpus.")] = 32000,
    seq_len: Annotated[int, typer.Option(help="Tokens per sequence.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Sequences per step.")] = 8,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 200,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    warmup_steps: Annotated[int, typer.Option(help="Linear warm-up.")] = 20,
    schedule: Annotated[str, typer.Option(help="cosine or wsd.")] = "cosine",
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay.")] = 0.1,
    chi: Annotated[float, typer.Option(help="Learning-rate ratio of flat directions (muon-lite).")] = 2.0,
    beta_sharp: Annotated[float, typer.Option(help="Hessian damping of sharp directions (muon-lite).")] = -0.25,
    beta_flat: Annotated[float, typer.Option(help="Hessian damping of flat directions (muon-lite).")] = 1.0,
    sharp_fraction: Annotated[float, typer.Option(help="Fraction of directions that count as sharp.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of initialisation and data order.")] = 0,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 50,
    eval_blocks: Annotated[int, typer.Option(help="Validation sequences per evaluation.")] = 64,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Text or jsonl files, or folders of them; by default the sources of installed packages."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Pre-train a small Llama on real text."""
    from rishd.pretraining import require_extra

    require_extra()
    from rishd.pretraining.config import PretrainConfig

    config = PretrainConfig(
        optimizer=optimizer,  # type: ignore[arg-type]  # checked by PretrainConfig
        preset=preset,
        vocab_size=vocab_size,
        seq_len=seq_len,
        batch_size=batch_size,
        steps=steps,
        lr=lr,
        warmup_steps=warmup_steps,
        schedule=schedule,  # type: ignore[arg-type]  # checked by PretrainConfig
        weight_decay=weight_decay,
        chi=chi,
        beta_sharp=beta_sharp,
        beta_flat=beta_flat,
        sharp_fraction=sharp_fraction,
        seed=seed,
        eval_every=eval_every,
        eval_blocks=eval_blocks,
        save_every=save_every,
        data=None if data is None else tuple(str(path.resolve()) for path in data),
    )
    from rishd.pretraining.run import pretrain as run  # after the settings are checked: transformers loads for seconds

    with progress_bar(err) as advance:
        result = run(config, folder, resume=resume, progress=advance, say=err.print)
    table = Table("step", "validation loss (nats per token)")
    for step, loss in result.series("eval_loss"):
        table.add_row(str(step), f"{loss:.4f}")
    out.print(table)
    out.print(f"results in {folder}")
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
