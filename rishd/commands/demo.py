"""The command ``rishd demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rishd.commands.console import FAILED, INTERRUPTED, err, out
from rishd.commands.theory import print_claims, print_in_short, run_claims
from rishd.progress import progress_bar

_BEGIN = (
    "An optimizer is a discretised flow on a manifold. This demo draws two flows, puts the theory's claims on trial, "
    "pre-trains a small Llama twice and writes a report: by default two to three minutes on two idle cores."
)


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Folder of the report and the runs.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Pre-training steps per optimizer.")] = 100,
    instances: Annotated[int, typer.Option(help="Random instances per claim.")] = 48,
) -> None:
    """The main job: simulate, validate the claims, pre-train with Muon and MuonLITE, and write an HTML report.

    By default two to three minutes on two idle cores; the first picture comes within half a minute.
    """
    from rishd.pretraining import require_extra

    require_extra()
    from rishd.demo import first_picture, prepare, run_demo

    out.print(_BEGIN, highlight=False)
    prepare(folder, steps=steps)
    picture, path = first_picture(folder)
    out.print(f"{picture.title}: {' '.join(picture.text)}", highlight=False)
    out.print(f"first picture: {path.resolve()}", soft_wrap=True, highlight=False)
    validation = run_claims(None, seed=0, instances=instances, jobs=-1)
    print_claims(validation.results)
    if validation.missing:
        raise typer.Exit(INTERRUPTED)
    with progress_bar(err) as advance:
        report, interrupted = run_demo(
            folder, validation, picture, steps=steps, jobs=-1, progress=advance, say=err.print
        )
    print_in_short(validation)
    out.print(f"report: {report.resolve()}", soft_wrap=True, highlight=False)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if not all(result.as_expected for result in validation.results):
        raise typer.Exit(FAILED)
