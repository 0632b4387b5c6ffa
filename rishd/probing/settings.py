"""Settings of a probe."""

from __future__ import annotations

from dataclasses import dataclass

from riemannian_ode.checks import require_choice
from rishd.pretraining.presets import OPTIMIZERS

PROBED = ("adamw", "muon", "muon-lite", "soap", "soap-lite")


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Settings of :func:`rishd.probing.probe.probe`.

    Args:
        blocks: Patterns of parameter names (``*`` matches anything); ``None`` is every matrix of the middle layer.
        tokens: Tokens of the training split that define the Hessian.
        eigenvalues: Number of top eigenpairs per block.
        probes: Number of random vectors for the spectral density.
        lanczos_steps: Lanczos steps per random vector.
        gradients: Number of mini-batches, of the run's size, used to build the optimizers' memories.
        noise_batches: Number of other, small batches of 16 sequences used to measure gradient noise.
        optimizers: Names of the optimizers to compare; masks and noise need the first five.
        sharp_fraction: r of the masks if the run does not set it.
        seed: Seed of the random vectors.
    """

    blocks: tuple[str, ...] | None = None
    tokens: int = 2048
    eigenvalues: int = 10
    probes: int = 4
    lanczos_steps: int = 30
    gradients: int = 20
    noise_batches: int = 32
    optimizers: tuple[str, ...] = PROBED
    sharp_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("tokens", 2),
            ("eigenvalues", 1),
            ("probes", 1),
            ("lanczos_steps", 2),
            ("gradients", 2),  # the first gradient of SOAP only sets its basis
            ("noise_batches", 2),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be at least {least}.")
        for name in self.optimizers:
            require_choice("optimizer", name, OPTIMIZERS)
        if missing := [name for name in PROBED if name not in self.optimizers]:
            raise ValueError(
                f"optimizers lacks {', '.join(missing)}, which masks and noise are measured with; add them."
            )
        if not 0 < self.sharp_fraction < 1:
            raise ValueError(f"sharp_fraction = {self.sharp_fraction!r} must lie between 0 and 1.")
