"""The registry of claims, used by the command line, the tests and the report.

Every module here may register claims (:func:`register_claim`); modules are imported when :data:`CLAIMS` is first read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from riemannian_ode.checks import require_choice
from rishd.claims.claim import CLAIMS, Claim, ClaimResult, claim_keys, register_claim
from rishd.claims.evidence import Bound, Evidence, Hypothesis, Identity, Measurement, Panel, Proof, Verdict, verdict

INSTANCES = 1200  # of the full trial; at least 1000 remain if a tenth of them misses a hypothesis
QUICK_INSTANCES = 24


def validate(
    keys: Sequence[str] | None = None, *, seed: int = 0, instances: int = INSTANCES, jobs: int = 1
) -> Iterator[ClaimResult]:
    """Yield the results of claims as they finish; in order with one job, otherwise the longest claims start first.

    Args:
        keys: Claims to validate, by key or number (C11 is C11a, C11b, …); all by default.
        seed: Random seed of the instances.
        instances: Random instances per numerical part.
        jobs: Processes, through joblib; −1 is one per CPU core.

    Raises:
        ValueError: for an unknown claim (listing the known ones), fewer than one instance, a negative seed, or 0 jobs.
    """
    chosen = list(CLAIMS) if keys is None else list(claim_keys(keys, CLAIMS))
    for key in chosen:
        require_choice("claim", key, CLAIMS)
    if instances < 1:
        raise ValueError(f"instances = {instances!r} must be at least 1.")
    if seed < 0:
        raise ValueError(f"seed = {seed!r} must be at least 0.")
    if jobs == 0 or jobs < -1:
        raise ValueError(f"jobs = {jobs!r} must be a number of processes, or -1 for one per CPU core.")
    return _results(chosen, seed=seed, instances=instances, jobs=jobs)


def _results(keys: Sequence[str], *, seed: int, instances: int, jobs: int) -> Iterator[ClaimResult]:
    if jobs == 1 or len(keys) == 1:
        for key in keys:
            yield CLAIMS[key].run(seed=seed, instances=instances)
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    # Loky replaces workers whose memory has grown. Its warning sounds alarming, but no claim is lost.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given", category=UserWarning)
    left = sorted(keys, key=lambda key: -CLAIMS[key].seconds)
    run = delayed(_run)
    try:
        together = Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")
        for result in together(run(key, seed, instances) for key in tuple(left)):
            left.remove(result.key)
            yield result
    except TerminatedWorkerError:  # one process died (out of memory, killed), and the others' claims were lost with it
        for key in left:
            try:  # two jobs, so that the claim still runs in a separate process
                yield from Parallel(n_jobs=2)([run(key, seed, instances)])
            except TerminatedWorkerError:
                yield CLAIMS[key].failed("its process was killed or crashed", seed=seed)


def _run(key: str, seed: int, instances: int) -> ClaimResult:
    """Run one claim in its process with a single thread, since claims share the cores."""
    import torch

    torch.set_num_threads(1)
    return CLAIMS[key].run(seed=seed, instances=instances)


__all__ = [
    "CLAIMS",
    "INSTANCES",
    "QUICK_INSTANCES",
    "Bound",
    "Claim",
    "ClaimResult",
    "Evidence",
    "Hypothesis",
    "Identity",
    "Measurement",
    "Panel",
    "Proof",
    "Verdict",
    "claim_keys",
    "register_claim",
    "validate",
    "verdict",
]
