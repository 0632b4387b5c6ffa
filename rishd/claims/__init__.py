"""The registry of claims: it drives the command line, the tests and the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from riemannian_ode.errors import require_choice
from rishd.claims.claim import Bound, Claim, ClaimResult, Evidence, Identity, Measurement, Proof, Verdict, verdict
from rishd.claims.equivalence import optimizer_equivalence
from rishd.claims.identities import energy_identity, integral_bound, phase_space_identity, shadow_identity
from rishd.claims.modes import discrete_stability, flow_modes

CLAIMS: dict[str, Claim] = {
    claim.key: claim
    for claim in (
        Claim("C1", "phase-space identity", phase_space_identity),
        Claim("C2", "energy identity", energy_identity),
        Claim("C3", "integral bound", integral_bound),
        Claim("C5", "modes of a quadratic", flow_modes),
        Claim("C6", "discrete stability", discrete_stability),
        Claim("C7", "shadow gradient identity", shadow_identity),
        Claim("C12", "semi-implicit Euler = update rule = optimizer", optimizer_equivalence),
    )
}


def validate(keys: Sequence[str] | None = None, *, seed: int = 0, instances: int = 256) -> Iterator[ClaimResult]:
    """Results of the claims, one after the other.

    Args:
        keys: Which claims; all by default.
        seed: Random seed of the instances.
        instances: Random instances per numerical part.

    Raises:
        ValueError: for an unknown claim, listing those that exist, fewer than one instance, or a negative seed.
    """
    chosen = list(CLAIMS) if keys is None else list(keys)
    for key in chosen:
        require_choice("claim", key, CLAIMS)
    if instances < 1:
        raise ValueError(f"instances = {instances!r} must be at least 1.")
    if seed < 0:
        raise ValueError(f"seed = {seed!r} must be at least 0.")
    return (CLAIMS[key].run(seed=seed, instances=instances) for key in chosen)


__all__ = [
    "CLAIMS",
    "Bound",
    "Claim",
    "ClaimResult",
    "Evidence",
    "Identity",
    "Measurement",
    "Proof",
    "Verdict",
    "validate",
    "verdict",
]
