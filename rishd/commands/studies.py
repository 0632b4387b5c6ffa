"""Commands on studies: ``rishd integrators``, ``study`` and ``correspondence``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from riemannian_ode.checks import require_choice
from rishd.commands.console import Format, err, out, usable_folder
from rishd.progress import progress_bar
from rishd.report.terminal import integrator_table, optimizer_step_table, text_table


def integrators(
    schemes: Annotated[list[str] | None, typer.Argument(help="Integrators; all by default.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the figures.")] = Path("runs/integrators"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Two of the three flows and coarse settings: under half a minute.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed of the starts.")] = 0,
    output: Annotated[Format, typer.Option("--format", help="table, or machine-readable json.")] = Format.table,
) -> None:
    """Compare integrators: work against precision, energy drift, stable steps, optimizer steps; tables and figures.

    A run that needs too many gradients is stopped and reported.
    """
    import torch

    from rishd.report.integrator_figures import optimizer_step_figure, stable_step_figure, work_precision_figure
    from rishd.studies.integrator_problems import WORK_LIMIT
    from rishd.studies.integrators import QUICK_TEXT, integrator_study

    usable_folder("--out", folder)
    torch.set_num_threads(1)  # on flows this small, threads only wait for each other
    with progress_bar(err) as advance:
        study = integrator_study(schemes, seed=seed, quick=quick, progress=advance)
    work_precision_figure(study).savefig(folder / "work_precision.png", dpi=140)
    stable_step_figure(study).savefig(folder / "stable_steps.png", dpi=140)
    optimizer_step_figure(study).savefig(folder / "optimizer_steps.png", dpi=140)
    if output is Format.json:
        print(json.dumps(study.as_dict(), indent=2, allow_nan=False))
    else:
        out.print(integrator_table(study))
        out.print(optimizer_step_table(study))
        out.print(study.answer, style="bold", highlight=False, markup=False)
        if study.stopped:
            out.print(
                f"stopped after {WORK_LIMIT} gradient evaluations a run: {', '.join(study.stopped)}", highlight=False
            )
        if quick:
            out.print(QUICK_TEXT, highlight=False)
        out.print(f"figures in {folder}")


def study(
    name: Annotated[str | None, typer.Argument(help="The study to run; without it the studies are listed.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Coarser grids and fewer starts: a first look.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the figures and data; runs/studies/NAME by default.")
    ] = None,
    output: Annotated[Format, typer.Option("--format", help="table, or machine-readable json.")] = Format.table,
) -> None:
    """Run a study: its answer, the numbers behind it, a table, data and figures."""
    from rishd.report.study_records import write_study
    from rishd.study import STUDIES, run_study, summary

    if name is None:
        out.print(text_table([{"study": known, "what": summary(known)} for known in STUDIES]))
        return
    require_choice("study", name, STUDIES)
    import torch

    torch.set_num_threads(1)  # on models this small, threads only wait for each other
    folder = usable_folder("--out", folder or Path("runs/studies") / name)
    with err.status(f"study {name}"):
        result = run_study(name, quick=quick, seed=seed)
        record = write_study(folder, name, result, quick=quick, seed=seed)
    if output is Format.json:
        print(json.dumps(record, indent=2, allow_nan=False))
        return
    out.print(text_table(result.table))
    out.print(result.answer, style="bold", highlight=False, markup=False)
    out.print(result.conclusion, highlight=False, markup=False)
    out.print(f"figures and data in {folder}")


def correspondence(
    output: Annotated[Format, typer.Option("--format", help="table, or machine-readable json.")] = Format.table,
) -> None:
    """Print known optimizers as rows of one update rule: metric, α, β, gain c, η and decay λ'."""
    from discretizations.known_optimizers import CORRESPONDENCES

    rows = [row.as_text() for row in CORRESPONDENCES.values()]
    if output is Format.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    same = rows[0]["scheme"]
    out.print(text_table([{k: v for k, v in row.items() if k not in ("implementation", "scheme")} for row in rows]))
    out.print(
        f"every row: {same} of the flow at h = 1; β in the theory's units; docs/guides/correspondence", highlight=False
    )
