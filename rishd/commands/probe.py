"""The command ``rishd probe``: curvature of a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from riemannian_ode.atomic import write_text
from rishd.commands.console import INTERRUPTED, Format, err, out
from rishd.probing.settings import PROBED, ProbeSettings
from rishd.progress import progress_bar
from rishd.report.terminal import text_table


def probe(
    checkpoint: Annotated[
        Path, typer.Argument(help="Output folder of a run, or its checkpoint-N or model folder.", show_default=False)
    ],
    blocks: Annotated[
        list[str] | None,
        typer.Option("--block", help="Pattern of parameter names; may be repeated. By default the middle layer."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Training tokens that define the Hessian.")] = ProbeSettings.tokens,
    eigenvalues: Annotated[int, typer.Option(help="Top eigenpairs of each block.")] = ProbeSettings.eigenvalues,
    probes: Annotated[int, typer.Option(help="Random vectors of the spectral density.")] = ProbeSettings.probes,
    lanczos_steps: Annotated[int, typer.Option(help="Lanczos steps per random vector.")] = ProbeSettings.lanczos_steps,
    gradients: Annotated[
        int, typer.Option(help="Mini-batches used to build the optimizers' memories.")
    ] = ProbeSettings.gradients,
    noise_batches: Annotated[
        int, typer.Option(help="Batches of 16 sequences used to measure gradient noise.")
    ] = ProbeSettings.noise_batches,
    optimizers: Annotated[
        list[str] | None,
        typer.Option("--optimizer", help="Another optimizer whose update is compared; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random vectors.")] = ProbeSettings.seed,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of data and figures; CHECKPOINT/probe by default.")
    ] = None,
    output: Annotated[Format, typer.Option("--format", help="table, or machine-readable json.")] = Format.table,
) -> None:
    """Measure a trained model's Hessian by block: spectra, updates, masks, and the step that certificate C9 allows."""
    from rishd.pretraining import require_extra

    require_extra()

    settings = ProbeSettings(
        blocks=tuple(blocks) if blocks else None,
        tokens=tokens,
        eigenvalues=eigenvalues,
        probes=probes,
        lanczos_steps=lanczos_steps,
        gradients=gradients,
        noise_batches=noise_batches,
        optimizers=tuple(dict.fromkeys((*PROBED, *(optimizers or ())))),
        seed=seed,
    )
    from rishd.probing.probe import probe as measure
    from rishd.report.probe_figures import certificate_probe_figure, spectrum_figure, update_figure

    with progress_bar(err) as advance:
        result = measure(checkpoint, settings, advance)
    if not result.blocks:
        err.print("interrupted before the first block was done")
        raise typer.Exit(INTERRUPTED)
    folder = folder or checkpoint / "probe"
    record = json.dumps(result.as_dict() | {"conclusion": result.conclusion}, indent=2, allow_nan=False)
    write_text(folder / "probe.json", record + "\n")
    spectrum_figure(result).savefig(folder / "spectra.png", dpi=140)
    update_figure(result).savefig(folder / "updates.png", dpi=140)
    certificate_probe_figure(result).savefig(folder / "certificate.png", dpi=140)
    if output is Format.json:
        print(record)
    else:
        out.print(
            f"{result.checkpoint}: step {result.step} of {result.optimizer}, lr {result.lr:g}, loss {result.loss:.4f} "
            f"on {result.tokens:,} tokens",
            highlight=False,
        )
        tables = {
            "Hessian blocks; the top eigenvectors' coverage by the mask (by a random one); certified speed-up": (
                result.summary_table()
            ),
            "Curvature along each update over the mean curvature (share of the update above λ₁/10)": (
                result.update_table()
            ),
            "Least over blocks: certified lr of the base method; χ at the sharp block's margin / at the run's lr": (
                result.allowance_table()
            ),
            "Tokens at which a gradient's noise is as large as it, whitened; its squared share in sharp directions": (
                result.noise_table()
            ),
        }
        for title, rows in tables.items():
            if rows:
                table = text_table(rows)
                table.title = title
                out.print(table)
        out.print(result.conclusion, highlight=False)
        out.print(f"figures and data in {folder}")
    if result.interrupted:
        err.print(f"interrupted after {len(result.blocks)} blocks")
        raise typer.Exit(INTERRUPTED)
