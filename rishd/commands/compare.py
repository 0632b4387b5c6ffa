"""``rishd compare``: several pre-training runs from one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from riemannian_ode.atomic import write_text
from rishd.commands.console import INTERRUPTED, Format, err, out
from rishd.progress import progress_bar
from rishd.report.terminal import text_table


def compare(
    file: Annotated[Path, typer.Argument(help="The comparison, YAML or TOML.", show_default=False)],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of records, table and figures; runs/compare/FILE by default.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder of the runs' checkpoints; OUT/work by default. Emptied run by run.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Run this variant; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Largest number of runs to make; 0 only reports.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes; -1 is one per core, or a single one on an accelerator.")] = -1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each process; by default its share of the cores.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep models and checkpoints of recorded runs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs to do and stop.")] = False,
    output: Annotated[Format, typer.Option("--format", help="table, or machine-readable json.")] = Format.table,
) -> None:
    """Run the missing runs of a comparison, and print which variant is ahead, by how much and how surely.

    Recorded runs are not repeated; interrupted runs continue from their last checkpoint.
    """
    from rishd.pretraining import require_extra

    require_extra()
    from rishd.comparing.plan import load_plan
    from rishd.comparing.record import read_runs
    from rishd.comparing.schedule import due_runs

    plan = load_plan(file)
    folder = folder or Path("runs/compare") / file.stem
    if dry_run:
        for run in due_runs(plan, read_runs(folder), only=only or ())[:limit]:
            out.print(run.label, highlight=False)
        return
    from rishd.comparing.execute import execute

    interrupted = False
    with progress_bar(err) as advance:
        try:
            execute(
                plan,
                folder,
                work or folder / "work",
                only=only or (),
                limit=limit,
                jobs=jobs,
                threads=threads,
                keep=keep,
                progress=advance,
                say=lambda line: err.print(line, highlight=False),
            )
        except KeyboardInterrupt:
            interrupted = True
    report(plan, folder, output)
    if interrupted:
        err.print("interrupted; run the same command to continue")
        raise typer.Exit(INTERRUPTED)


def report(plan: object, folder: Path, output: Format) -> None:
    """Print and write the results of the records in a folder.

    Args:
        plan: The comparison.
        folder: Folder of the records; ``comparison.json`` and figures are written there.
        output: Output format.
    """
    from rishd.comparing.plan import Plan
    from rishd.comparing.record import read_runs
    from rishd.comparing.scaling import scaling_laws
    from rishd.comparing.schedule import due_runs
    from rishd.comparing.statistics import compare as statistics
    from rishd.comparing.transfer import transfers
    from rishd.report.compare_figures import (
        comparison_figure,
        curve_figure,
        length_figure,
        scaling_figure,
        transfer_figure,
    )

    assert isinstance(plan, Plan)
    recorded = read_runs(folder)
    comparison = statistics(plan, recorded, missing=len(due_runs(plan, recorded)))
    if not comparison.results:
        err.print("no run is recorded yet")
        return
    laws, lawless = scaling_laws(comparison)
    transferred = transfers(comparison)
    warnings = [*comparison.warnings(), *lawless]
    figures = {
        "losses": comparison_figure(comparison),
        "curves": curve_figure(plan, recorded, comparison),
        "lengths": length_figure(comparison) if any(row.lengths for row in comparison.results) else None,
        "scaling": scaling_figure(laws) if laws else None,
        "transfer": transfer_figure(transferred) if transferred else None,
    }
    for stem, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / f"{stem}.png", dpi=120)
    data = comparison.as_dict() | {
        "scaling": [law.as_dict() for law in laws],
        "transfer": [each.as_dict() for each in transferred],
        "warnings": warnings,
    }
    text = json.dumps(data, indent=2, allow_nan=False)
    write_text(folder / "comparison.json", text + "\n")
    if output is Format.json:
        print(text)
        return
    out.print(text_table(comparison.table()))
    for law in laws:
        out.print(law.sentence, highlight=False)
    if transferred:
        out.print("\nDoes the best learning rate of the smallest model hold for the largest?")
        out.print(text_table([each.row() for each in transferred]))
    for line in warnings:
        out.print(line, style="yellow", highlight=False)
    out.print(f"records, data and figures in {folder}")
