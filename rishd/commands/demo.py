"""The command ``rishd demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rishd.commands.console import FAILED, INTERRUPTED, err, out
from rishd.commands.theory import print_claims, run_claims
from rishd.progress import progress_bar


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Folder of the report and the runs.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Pre-training steps per optimizer.")] = 200,
    instances: Annotated[int, typer.Option(help="Random instances per claim.")] = 200,
) -> None:
    """The main job: validate the claims, simulate, pre-train with Muon and MuonLITE, and write an HTML report."""
    from rishd.pretraining import require_extra

    require_extra()
    from rishd.demo import prepare, run_demo

    prepare(folder, steps=steps)
    validation = run_claims(None, seed=0, instances=instances, jobs=-1)
    print_claims(validation.results)
    if validation.missing:
        raise typer.Exit(INTERRUPTED)
    with progress_bar(err) as advance:
        report, interrupted = run_demo(folder, validation, steps=steps, progress=advance, say=err.print)
    out.print(f"report: {report.resolve()}")
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if not all(result.as_expected for result in validation.results):
        raise typer.Exit(FAILED)
