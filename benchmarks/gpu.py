"""All checks of the optimizers on one GPU: correctness, step times beside peers, memory, and two short trainings.

Run it from the folder of the repository: python -m benchmarks.gpu --json gpu.json
"""

from __future__ import annotations

import argparse
import platform
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_parts import correctness, steps, training
from benchmarks.gpu_parts.report import Report

# Shares of the whole time at whose end a part must be done. What one part leaves, the next ones have.
ENDS = {"correctness": 0.3, "steps": 0.65, "training": 1.0}
CLOSING = 10.0  # seconds for the last evaluation and the end of the process


def run(report: Report, device: torch.device, *, minutes: float, dry: bool) -> bool:
    """Do all parts.

    Args:
        report: Gets the rows.
        device: The GPU, or a CPU in a dry run.
        minutes: Time of the whole run.
        dry: Whether to take tiny sizes.

    Returns:
        Whether all checks of correctness that were made passed.
    """
    begun = time.perf_counter()
    ends = {name: begun + share * (60 * minutes - CLOSING) for name, share in ENDS.items()}
    for name, check in correctness.parts(report, device, dry=dry):
        report.attempt(name, ends["correctness"], check)
    is_right = not report.wrong
    for name, measure in steps.parts(report, device, dry=dry):
        report.attempt(name, ends["steps"], partial(measure, ends["steps"]))
    train = partial(training.trainings, report, ends["training"], dry=dry)
    report.attempt("training", ends["training"], train)
    return is_right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="write rows {name, value, unit} to this file, with every row")
    parser.add_argument("--minutes", type=float, default=8.0, help="time of the whole run")
    parser.add_argument("--dry", action="store_true", help="the same code with tiny sizes on the CPU")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        parser.error("no GPU is found; --dry runs the same code with tiny sizes on the CPU.")
    device = torch.device("cpu" if options.dry else "cuda")
    name = platform.processor() if options.dry else torch.cuda.get_device_name()
    print(
        f"{name}, Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True
    )
    report = Report(options.json)
    is_right = run(report, device, minutes=options.minutes, dry=options.dry)
    print("all checks that were made passed" if is_right else f"wrong: {', '.join(report.wrong)}")
    return 0 if is_right else 1


if __name__ == "__main__":
    raise SystemExit(main())
