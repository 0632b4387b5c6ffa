"""Commands on the claims: ``rishd validate`` and ``rishd report``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from rishd.commands.console import FAILED, INTERRUPTED, Format, err, out, usable_folder
from rishd.progress import progress_bar
from rishd.report.terminal import claims_table, evidence_table

if TYPE_CHECKING:
    from rishd.claims.validation import Validation

_WITH_EVIDENCE = 3  # each part of the evidence is printed for at most this many claims
_STUDIES = Path("runs/studies")  # output folder of `rishd study`

Claims = Annotated[
    list[str] | None,
    typer.Option("--claim", help="A claim, e.g. C8 or C11a; C11 is all of its parts. May be repeated; all by default."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Use few instances: under 90 seconds on one core.")]
Instances = Annotated[
    int | None, typer.Option(help="Random instances per numerical part; 1200 by default, 24 with --quick.")
]
Seed = Annotated[int, typer.Option(help="Random seed of the instances.")]
Jobs = Annotated[int, typer.Option(help="Processes; -1 is one per CPU core.")]
Save = Annotated[
    Path | None,
    typer.Option("--save", help="File for the complete results, rewritten after each claim; for rishd report --from."),
]


def validate(
    claims: Claims = None,
    quick: Quick = False,
    instances: Instances = None,
    seed: Seed = 0,
    jobs: Jobs = -1,
    save: Save = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the claims that --save's file has.")] = False,
    figures: Annotated[Path | None, typer.Option(help="Folder for a figure of each claim; none by default.")] = None,
    output: Annotated[Format, typer.Option("--format", help="table, or machine-readable json.")] = Format.table,
) -> None:
    """Prove or test the claims of the theory, and print a verdict on each.

    Exits with 1 if a verdict differs from the one that the registry expects.
    """
    if resume and save is None:
        raise ValueError("--resume takes up the results in a file; name it with --save.")
    if figures is not None:
        usable_folder("--figures", figures)
    validation = run_claims(claims, seed=seed, instances=instances, quick=quick, jobs=jobs, save=save, resume=resume)
    if figures is not None:
        write_figures(validation.results, figures)
    if output is Format.json:
        print(json.dumps([result.as_dict() for result in validation.results], indent=2, allow_nan=False))
    else:
        print_claims(validation.results)
        if len(validation.results) <= _WITH_EVIDENCE:
            for result in validation.results:
                out.print(evidence_table(result))
    _exit(validation)


def report(
    path: Annotated[Path, typer.Option("--out", help="The HTML file.")] = Path("runs/report.html"),
    source: Annotated[
        Path | None, typer.Option("--from", help="Results that rishd validate --save wrote; nothing is run then.")
    ] = None,
    claims: Claims = None,
    quick: Quick = False,
    instances: Instances = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the instances; 0 by default.")] = None,
    jobs: Jobs = -1,
    studies: Annotated[
        Path | None,
        typer.Option(help=f"Folder of rishd study's results to include; {_STUDIES} by default, if there are any."),
    ] = None,
) -> None:
    """Validate the claims and write the report, a single self-contained HTML file.

    Exits with 1 if a verdict differs from the one that the registry expects. Ctrl-C writes the finished part, marked as
    partial.
    """
    from rishd.claims.validation import Validation
    from rishd.report.page import Report, write_report
    from rishd.report.sections import valley_section
    from rishd.report.study_records import read_studies
    from rishd.report.tables import correspondence_rows
    from rishd.studies.valley import valley_flows

    if path.is_dir():
        raise ValueError(f"--out {path} is a folder; give the HTML file to write, e.g. {path / 'report.html'}.")
    usable_folder("--out", path.parent)
    found = read_studies(_STUDIES if studies is None else studies, required=studies is not None)
    if source is None:
        validation = run_claims(claims, seed=seed or 0, instances=instances, quick=quick, jobs=jobs)
    else:
        if quick or instances is not None or seed is not None:
            raise ValueError("--from has its own seed and instances; leave out --quick, --instances and --seed.")
        validation = Validation.load(source)
        if claims:
            validation = validation.only(claims)
    with progress_bar(err) as advance:
        content = Report(
            "RISHD: the theory on trial",
            validation,
            picture=valley_section(valley_flows(progress=False)),
            studies=found,
            correspondence=correspondence_rows(),
        )
        write_report(path, content, jobs=jobs, progress=advance)
    print_claims(validation.results)
    print_in_short(validation)
    out.print(f"report: {path.resolve()}", soft_wrap=True, highlight=False)
    _exit(validation)


def run_claims(
    keys: Sequence[str] | None,
    *,
    seed: int,
    instances: int | None = None,
    quick: bool = False,
    jobs: int,
    save: Path | None = None,
    resume: bool = False,
) -> Validation:
    """Results of the claims, with a progress bar; Ctrl-C keeps finished results.

    Args:
        keys: Claims by key or number; all if ``None`` or empty.
        seed: Random seed.
        instances: Random instances per numerical part; by default the registry's number, or its quick one.
        quick: Whether to use the quick number of instances.
        jobs: Processes; −1 is one per CPU core.
        save: File for the results, rewritten after each claim; ``None`` saves nothing.
        resume: Whether to reuse results in ``save``.

    Raises:
        ValueError: for an unknown claim, numbers out of range, or a ``save`` file that cannot be resumed.
    """
    import torch

    from rishd.claims import CLAIMS, INSTANCES, QUICK_INSTANCES, claim_keys
    from rishd.claims import validate as results_of
    from rishd.claims.validation import Validation

    if jobs == 1:
        torch.set_num_threads(1)  # on matrices this small, threads only wait for each other
    if instances is None:
        instances = QUICK_INSTANCES if quick else INSTANCES
    chosen = claim_keys(keys, CLAIMS) if keys else tuple(CLAIMS)
    results_of(list(keys or ()), seed=seed, instances=instances, jobs=jobs)  # raises for values out of range
    validation = Validation.begin(chosen, seed=seed, instances=instances)
    if resume and save is not None and save.exists():
        validation = validation.continuing(Validation.load(save))
    if save is not None:
        usable_folder("--save", save.parent)
    with progress_bar(err) as advance:
        advance("validating claims", len(validation.results), len(chosen))
        try:
            for result in results_of(validation.missing, seed=seed, instances=instances, jobs=jobs):
                validation = validation.with_result(result)
                if save is not None:
                    validation.save(save)
                advance("validating claims", len(validation.results), len(chosen))
        except KeyboardInterrupt:
            err.print(f"interrupted after {len(validation.results)} of {len(chosen)} claims")
    return validation


def print_claims(results: Sequence[Any]) -> None:
    """Print the table, and a line for each unexpected verdict."""
    out.print(claims_table(results))
    for result in results:
        if not result.as_expected:
            reason = f": {result.error}" if result.error else ""
            line = f"{result.key} is {result.verdict}, expected {result.expected}{reason}"
            out.print(line, style="red", markup=False, highlight=False)


def print_in_short(validation: Validation) -> None:
    """What was checked, what came out, and what to run next."""
    from rishd.report.in_short import NEXT_COMMANDS, in_short

    for question, answer in in_short(validation).items():
        out.print(f"[bold]{question}:[/bold] {escape(answer)}", highlight=False)
    out.print("[bold]What to run next:[/bold]", highlight=False)
    for command, why in NEXT_COMMANDS.items():
        out.print(f"  {command}  # {why}", markup=False, highlight=False)


def write_figures(results: Sequence[Any], folder: Path) -> None:
    """Write one PNG per claim, e.g. ``C8.png``."""
    from rishd.report.claim_figures import claim_figure

    for result in results:
        figure = claim_figure(result)
        if figure is not None:
            figure.savefig(folder / f"{result.key}.png", dpi=140)
    err.print(f"figures in {folder}")


def _exit(validation: Validation) -> None:
    if validation.missing:
        raise typer.Exit(INTERRUPTED)
    if not all(result.as_expected for result in validation.results):
        raise typer.Exit(FAILED)
