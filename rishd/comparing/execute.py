"""Run the due runs through joblib: one process per run, each with few threads."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from joblib import Parallel, cpu_count, delayed

from rishd.comparing.plan import Plan, PlannedRun
from rishd.comparing.record import RecordedRun, append_run, collect, read_runs
from rishd.comparing.schedule import due_runs
from rishd.pretraining.results import METRICS, read_metrics
from rishd.progress import Advance, silent

_POLL = 1.0  # seconds between checks of the progress of runs in other processes


def execute(
    plan: Plan,
    results: Path,
    work: Path,
    *,
    only: Sequence[str] = (),
    limit: int | None = None,
    jobs: int = 1,
    threads: int | None = None,
    keep: bool = False,
    progress: Advance = silent,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, RecordedRun]:
    """Run due runs until none is left, recording each run when it ends.

    Args:
        plan: The comparison.
        results: Folder of the records; recorded runs are not repeated.
        work: Folder of the runs' folders; an interrupted run continues from its last checkpoint.
        only: Variants to run; all if empty.
        limit: Largest number of runs.
        jobs: Processes; −1 is one per core, or a single one on an accelerator, which all would share.
        threads: Threads per process; by default the cores divided by the processes.
        keep: Whether to keep models and checkpoints after a run is recorded.
        progress: Called with (what, done, total).
        say: Called with lines that the user should read.

    Returns:
        All recorded runs by key.

    Raises:
        ValueError: for an unknown variant.
    """
    import torch

    by_default = 1 if torch.accelerator.is_available() else cpu_count()
    count = by_default if jobs < 0 else jobs
    each = threads or max(1, cpu_count() // count)
    recorded, made = read_runs(results), 0
    while True:
        due = due_runs(plan, recorded, only=only)
        # As many as run at once, since each result may determine the next runs.
        wave = due[: count if limit is None else min(count, limit - made)]
        if not wave:
            return recorded
        progress("runs that are due", made, made + len(due))
        for line in _run_wave(wave, work, count, each, progress):
            run = append_run(results, line)
            recorded[run.key] = run
            made += 1
            say(f"{line['label']}: {_ending(run)}")
            progress("runs that are due", made, made + len(due))
            if not keep:
                shutil.rmtree(work / run.key, ignore_errors=True)


def _run_wave(
    wave: Sequence[PlannedRun], work: Path, jobs: int, threads: int, progress: Advance
) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        for run in wave:
            yield run_one(run, work / run.key, threads, progress)
        return
    calls = (delayed(run_one)(run, work / run.key, threads) for run in wave)
    with _followed(wave, work, progress):
        yield from Parallel(n_jobs=jobs, return_as="generator_unordered")(calls)


def run_one(run: PlannedRun, folder: Path, threads: int, progress: Advance | None = None) -> dict[str, Any]:
    """Start or continue one run, and collect its results.

    Args:
        run: The run.
        folder: Its output folder.
        threads: Threads of torch and the libraries below it.
        progress: Called with (what, done, total).

    Raises:
        KeyboardInterrupt: if Ctrl-C ended it; its checkpoints are kept.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers may be forks of a process that has used it
    import torch

    from lite import NonFiniteError
    from rishd.pretraining.run import train

    torch.set_num_threads(threads)

    def report(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(run.label if what.startswith("training") else what, done, total)

    try:
        if train(run.config, folder, resume="auto", progress=report).interrupted:
            raise KeyboardInterrupt
    except NonFiniteError:
        pass  # recorded as failed: it would diverge again
    return collect(run.key, run.label, folder)


@contextmanager
def _followed(wave: Sequence[PlannedRun], work: Path, progress: Advance) -> Iterator[None]:
    """Report the progress of runs in other processes from their metrics files."""
    done = threading.Event()

    def follow() -> None:
        while not done.wait(_POLL):
            for run in wave:
                if (work / run.key / METRICS).exists():
                    rows = read_metrics(work / run.key)
                    if rows:
                        progress(run.label, int(rows[-1]["step"]), run.config.steps)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _ending(run: RecordedRun) -> str:
    summary = run.summary
    if summary["status"] == "failed":
        return f"diverged at step {summary['steps']}"
    return f"validation loss {run.loss:.4f} after {summary['steps']} steps, {summary['cpu_seconds']:.0f} CPU seconds"
