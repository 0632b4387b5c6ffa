"""Commands on the claims: ``rishd validate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rishd.commands.console import FAILED, INTERRUPTED, Format, err, out
from rishd.progress import progress_bar
from rishd.report.terminal import claims_table


def validate(
    claims: Annotated[
        list[str] | None, typer.Option("--claim", help="A claim, e.g. C8; may be repeated. All by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few instances: under a minute.")] = False,
    instances: Annotated[
        int | None, typer.Option(help="Random instances per numerical part; 1200 by default, 64 with --quick.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the instances.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes; -1 is one per CPU core.")] = -1,
    figures: Annotated[Path | None, typer.Option(help="Folder for a figure of each claim; none by default.")] = None,
    output: Annotated[Format, typer.Option("--format", help="table for people, json for machines.")] = Format.table,
) -> None:
    """Prove or try the claims of the theory, and print a verdict on each.

    Exits with 1 if a verdict is not the one that the registry expects.
    """
    results, interrupted = run_claims(claims, seed=seed, instances=instances, quick=quick, jobs=jobs)
    if figures is not None:
        write_figures(results, figures)
    if output is Format.json:
        print(json.dumps([result.as_dict() for result in results], indent=2, allow_nan=False))
    else:
        print_claims(results)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if not all(result.as_expected for result in results):
        raise typer.Exit(FAILED)


def run_claims(
    keys: Sequence[str] | None, *, seed: int, instances: int | None = None, quick: bool = False, jobs: int
) -> tuple[list[Any], bool]:
    """Results of the claims in the registry's order with a progress bar, and whether Ctrl-C cut them short.

    Args:
        keys: Which claims; all if ``None`` or empty.
        seed: Random seed.
        instances: Random instances per numerical part; by default the registry's number, or its quick one.
        quick: See ``instances``.
        jobs: Processes; −1 is one per CPU core.

    Raises:
        ValueError: for an unknown claim, or numbers out of range.
    """
    from rishd.claims import CLAIMS, INSTANCES, QUICK_INSTANCES
    from rishd.claims import validate as results_of

    if instances is None:
        instances = QUICK_INSTANCES if quick else INSTANCES
    results: list[Any] = []
    chosen = list(dict.fromkeys(keys)) if keys else list(CLAIMS)
    order = {key: place for place, key in enumerate(CLAIMS)}
    interrupted = False
    with progress_bar(err) as advance:
        advance("validating claims", 0, len(chosen))
        try:
            for result in results_of(chosen, seed=seed, instances=instances, jobs=jobs):
                results.append(result)
                advance("validating claims", len(results), len(chosen))
        except KeyboardInterrupt:
            err.print(f"interrupted after {len(results)} of {len(chosen)} claims")
            interrupted = True
    return sorted(results, key=lambda result: order[result.key]), interrupted


def print_claims(results: Sequence[Any]) -> None:
    """The table, and a line for each verdict that is not the expected one."""
    out.print(claims_table(results))
    for result in results:
        if not result.as_expected:
            reason = f": {result.error}" if result.error else ""
            line = f"{result.key} is {result.verdict}, expected {result.expected}{reason}"
            out.print(line, style="red", markup=False, highlight=False)


def write_figures(results: Sequence[Any], folder: Path) -> None:
    """One PNG a claim, ``C8.png``."""
    from rishd.report.claim_figures import claim_figure

    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        figure = claim_figure(result)
        if figure is not None:
            figure.savefig(folder / f"{result.key}.png", dpi=140)
    err.print(f"figures in {folder}")
