"""The registry of claims: it drives the command line, the tests and the report."""

from __future__ import annotations

import string
import warnings
from collections.abc import Iterator, Sequence

from discretizations.known_optimizers import CORRESPONDENCES
from riemannian_ode.errors import require_choice
from rishd.claims.claim import Claim, ClaimResult, claim_keys
from rishd.claims.convex_rates import convex_flow_rate, convex_update_rate
from rishd.claims.correction_size import correction_laws, correction_size
from rishd.claims.correspondences import row_claim
from rishd.claims.descent import descent_certificate
from rishd.claims.equivalence import optimizer_equivalence
from rishd.claims.evidence import Bound, Evidence, Hypothesis, Identity, Measurement, Panel, Proof, Verdict, verdict
from rishd.claims.exponential import exponential_rate
from rishd.claims.identities import energy_identity, integral_bound, phase_space_identity, shadow_identity
from rishd.claims.inertial import high_resolution_flow, strongly_convex_flow
from rishd.claims.modes import discrete_stability, flow_modes
from rishd.claims.nesterov import accelerated_gradient, heavy_ball
from rishd.claims.phase_volume import conformal_symplecticity, phase_volume
from rishd.claims.river_flow import river_flow
from rishd.claims.river_offset import river_offset
from rishd.claims.river_speed import river_speed
from rishd.claims.sharpness import certificate_sharpness
from rishd.claims.split_energy import split_energy_identity
from rishd.claims.stationary import stationary_noise
from rishd.claims.straight_river import straight_river
from rishd.claims.update_isotropy import update_isotropy
from rishd.claims.vanishing import nesterov_flow, vanishing_damping_flow

INSTANCES = 1200  # of the full trial: at least 1000 are left where a tenth of them misses a hypothesis
QUICK_INSTANCES = 24

CLAIMS: dict[str, Claim] = {
    claim.key: claim
    for claim in (
        Claim("C1", "phase-space identity", phase_space_identity, seconds=2),
        Claim("C2", "energy identity", energy_identity, seconds=7),
        Claim("C3", "integral bound", integral_bound, seconds=7),
        Claim("C4", "energy identity and integral bound with the split", split_energy_identity, seconds=5),
        Claim("C5", "modes of a quadratic", flow_modes),
        Claim("C6", "discrete stability", discrete_stability),
        Claim("C7", "shadow gradient identity", shadow_identity),
        Claim("C8", "convex rate of the flow", convex_flow_rate, seconds=6),
        Claim("C8b", "convex rate of the update rule", convex_update_rate, seconds=4),
        Claim("C9", "descent certificate of the update rule", descent_certificate, seconds=5),
        Claim("C9b", "sharpness of the certificate", certificate_sharpness),
        Claim("C10", "stationary noise", stationary_noise, seconds=2),
        Claim("C11a", "straight rivers", straight_river, seconds=8),
        Claim("C11b", "a curved river is not its floor", river_offset, seconds=8),
        Claim("C11c", "entry, tube and clock of a curved river", river_flow, expected="holds", seconds=15),
        Claim("C11d", "time gained on a river", river_speed, seconds=20),
        Claim(
            "C12", "semi-implicit Euler = update rule = optimizer", optimizer_equivalence, expected="holds", seconds=20
        ),
        Claim("C13", "size of the correction R", correction_size, expected="measured", seconds=12),
        Claim("C13b", "what the size of R depends on", correction_laws, seconds=8),
        Claim("C14", "isotropy and alignment", update_isotropy, expected="holds", seconds=50),
        Claim("C15", "rate under a Polyak–Łojasiewicz inequality", exponential_rate, seconds=5),
        Claim("C16a", "strongly convex flow (Attouch et al.)", strongly_convex_flow, seconds=4),
        Claim("C16b", "vanishing damping (Attouch et al.)", vanishing_damping_flow, seconds=4),
        Claim("C16c", "Nesterov's flow (Su, Boyd, Candès)", nesterov_flow, seconds=3),
        Claim("C16d", "high-resolution flow (Shi et al.)", high_resolution_flow, seconds=4),
        Claim("C16e", "Nesterov's method (Shi et al.)", accelerated_gradient, expected="holds"),
        Claim("C16f", "heavy ball (Shi et al.)", heavy_ball, expected="holds"),
        Claim("C16g", "phase volume (Liouville)", phase_volume, expected="holds"),
        Claim("C16h", "conformal symplecticity of splittings", conformal_symplecticity, expected="holds"),
        *(
            Claim(
                f"C17{letter}",
                f"{row.optimizer} as a row of one rule",
                row_claim(key),
                seconds=20 if letter > "g" else 6,
            )
            for letter, (key, row) in zip(string.ascii_lowercase, CORRESPONDENCES.items(), strict=False)
        ),
    )
}


def validate(
    keys: Sequence[str] | None = None, *, seed: int = 0, instances: int = INSTANCES, jobs: int = 1
) -> Iterator[ClaimResult]:
    """Results of the claims, as they are done: in order with one job, else the longest start first.

    Args:
        keys: Which claims, by key or number (C11 is C11a, C11b, …); all by default.
        seed: Random seed of the instances.
        instances: Random instances per numerical part.
        jobs: Processes, through joblib; −1 is one per CPU core.

    Raises:
        ValueError: for an unknown claim, listing those that exist, fewer than one instance, a negative seed, or 0 jobs.
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

    # Loky replaces workers that have grown; it warns as if something were wrong, and no claim is lost.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given", category=UserWarning)
    left = sorted(keys, key=lambda key: -CLAIMS[key].seconds)
    run = delayed(_run)
    try:
        together = Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")
        for result in together(run(key, seed, instances) for key in tuple(left)):
            left.remove(result.key)
            yield result
    except TerminatedWorkerError:  # one process died (out of memory, killed) and took the others' claims with it
        for key in left:
            try:  # two jobs, so that the claim still runs in a process of its own
                yield from Parallel(n_jobs=2)([run(key, seed, instances)])
            except TerminatedWorkerError:
                yield CLAIMS[key].failed("its process was killed or crashed", seed=seed)


def _run(key: str, seed: int, instances: int) -> ClaimResult:
    """One claim in a process of its own, with one thread: the claims share the cores."""
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
    "validate",
    "verdict",
]
