"""The ``rishd`` command."""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rishd.progress import progress_bar
from rishd.report.terminal import claims_table, integrator_table, optimizer_step_table, text_table

app = typer.Typer(
    name="rishd",
    help="From the ODE of an optimizer to the optimizer that trains a language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Console(), Console(stderr=True)

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130  # exit codes: a check failed, bad input, Ctrl-C (128 + SIGINT)


class Format(enum.StrEnum):
    """Output formats."""

    table = "table"
    json = "json"


@app.command()
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
        raise typer.Exit(_INTERRUPTED)
    if not all(result.as_expected for result in results):
        raise typer.Exit(_FAILED)


@app.command()
def integrators(
    schemes: Annotated[list[str] | None, typer.Argument(help="Integrators; all by default.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the figures.")] = Path("runs/integrators"),
    seed: Annotated[int, typer.Option(help="Random seed of the starts.")] = 0,
    output: Annotated[Format, typer.Option("--format", help="table for people, json for machines.")] = Format.table,
) -> None:
    """Compare integrators: work against precision, energy drift, stable steps, optimizer steps; tables and figures."""
    from rishd.report.integrator_figures import optimizer_step_figure, stable_step_figure, work_precision_figure
    from rishd.studies.integrators import integrator_study

    with progress_bar(err) as advance:
        study = integrator_study(schemes, seed=seed, progress=advance)
    folder.mkdir(parents=True, exist_ok=True)
    work_precision_figure(study).savefig(folder / "work_precision.png", dpi=140)
    stable_step_figure(study).savefig(folder / "stable_steps.png", dpi=140)
    optimizer_step_figure(study).savefig(folder / "optimizer_steps.png", dpi=140)
    if output is Format.json:
        print(json.dumps(study.as_dict(), indent=2, allow_nan=False))
    else:
        out.print(integrator_table(study))
        out.print(optimizer_step_table(study))
        out.print(f"figures in {folder}")


@app.command()
def study(
    name: Annotated[str | None, typer.Argument(help="Which study; without it they are listed.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Coarser grids and fewer starts: a first look.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the figures and data; runs/studies/NAME by default.")
    ] = None,
    output: Annotated[Format, typer.Option("--format", help="table for people, json for machines.")] = Format.table,
) -> None:
    """Run a study: a table, its conclusion, data and figures."""
    from rishd.study import STUDIES, run_study, summary

    if name is None:
        out.print(text_table([{"study": known, "what": summary(known)} for known in STUDIES]))
        return
    with err.status(f"study {name}"):
        result = run_study(name, quick=quick, seed=seed)
        folder = folder or Path("runs/studies") / name
        folder.mkdir(parents=True, exist_ok=True)
        for stem, draw in result.figures.items():
            draw().savefig(folder / f"{stem}.png", dpi=140)
    record = json.dumps(
        {"study": name, "quick": quick, "seed": seed, "conclusion": result.conclusion, "data": result.data},
        indent=2,
        allow_nan=False,
    )
    (folder / f"{name}.json").write_text(record + "\n", encoding="utf-8")
    if output is Format.json:
        print(record)
        return
    out.print(text_table(result.table))
    out.print(result.conclusion, highlight=False)
    out.print(f"figures and data in {folder}")


@app.command()
def correspondence(
    output: Annotated[Format, typer.Option("--format", help="table for people, json for machines.")] = Format.table,
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
        f"every row: {same} of the flow at h = 1; β in theory's units; docs/guides/correspondence", highlight=False
    )


@app.command()
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
        raise typer.Exit(_INTERRUPTED)


@app.command()
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
    results, interrupted = run_claims(None, seed=0, instances=instances, jobs=-1)
    print_claims(results)
    if interrupted:
        raise typer.Exit(_INTERRUPTED)
    with progress_bar(err) as advance:
        report, interrupted = run_demo(folder, results, steps=steps, progress=advance, say=err.print)
    out.print(f"report: {report.resolve()}")
    if interrupted:
        raise typer.Exit(_INTERRUPTED)
    if not all(result.as_expected for result in results):
        raise typer.Exit(_FAILED)


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


def main() -> None:
    """Run the command; expected errors become one plain line. RISHD_TRACEBACK=1 shows where they came from."""
    from lite import NonFiniteError
    from rishd.pretraining import MissingExtraError

    try:
        app()
    except (ValueError, OSError, MissingExtraError, NonFiniteError) as problem:
        if os.environ.get("RISHD_TRACEBACK"):
            raise
        err.print(f"error: {problem}", style="red", markup=False, highlight=False)
        sys.exit(_FAILED if isinstance(problem, NonFiniteError) else _USAGE)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
