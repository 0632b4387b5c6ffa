"""Results of :func:`rishd.probing.curvature.probe_model` as data, a table and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from riemannian_ode.colours import BLUE, GREEN, ORANGE
from rishd.probing.gradient_noise import NoiseScale
from rishd.probing.lanczos import SpectralMeasure
from rishd.record import Record

_COLOURS = {"hessian": BLUE, "gauss-newton": ORANGE, "fisher": GREEN}


@dataclass(frozen=True)
class OperatorSpectrum:
    """Spectrum of one operator.

    Args:
        operator: ``"hessian"``, ``"gauss-newton"`` or ``"fisher"``.
        eigenvalues: Largest eigenvalues, descending, shape ``(k,)``.
        density: Density of all eigenvalues.
        vectors: Orthonormal eigenvectors of these, shape ``(p, k)``; not saved.
    """

    operator: str
    eigenvalues: np.ndarray
    density: SpectralMeasure
    vectors: np.ndarray = field(repr=False)

    @property
    def mean(self) -> float:
        """Estimate of the trace over p."""
        return float(self.density.nodes @ self.density.weights)


@dataclass(frozen=True)
class UpdateCurvature:
    r"""Curvature along an optimizer's next update, with the mean gradient of the batches and without weight decay.

    Args:
        optimizer: Class of the optimizer.
        lr: Largest learning rate of its groups.
        directional_sharpness: :math:`u^\top\nabla^2L\,u/\|u\|^2`.
        metric_sharpness: :math:`\lambda_{\max}(D^{1/2}\nabla^2L\,D^{1/2})` per unit of ``lr``
            (:mod:`rishd.probing.optimizer_metric`); NaN if the square root is not known.
        refused: Reason why it is not known; else empty.
    """

    optimizer: str
    lr: float
    directional_sharpness: float
    metric_sharpness: float
    refused: str = ""


@dataclass(frozen=True)
class ModelCurvature(Record):
    """All results.

    Args:
        loss: Mean loss over the examples.
        gradient_norm: Norm of the mean loss's gradient over the probed parameters.
        examples: Number of examples.
        shapes: Shapes of the probed parameters, by name, in the order of the vectors.
        spectra: One per operator.
        update: The optimizer's next update; ``None`` without an optimizer.
        noise: Noise scale in examples, inside and outside the first operator's top eigenspace; ``None`` with fewer than
            two batches of equal size.
    """

    loss: float
    gradient_norm: float
    examples: int
    shapes: Mapping[str, tuple[int, ...]]
    spectra: tuple[OperatorSpectrum, ...]
    update: UpdateCurvature | None = None
    noise: NoiseScale | None = None

    @property
    def conclusion(self) -> str:
        """Loss, update and noise as sentences."""
        parts = [f"Loss {self.loss:.4g}, gradient {self.gradient_norm:.3g}, on {self.examples} examples."]
        if self.update is not None:
            u = self.update
            own = u.refused or f"largest eigenvalue in its own metric {u.metric_sharpness:.3g} at learning rate 1"
            parts.append(f"Curvature along the next update of {u.optimizer}: {u.directional_sharpness:.3g}; {own}.")
        if self.noise is not None:
            n = self.noise
            parts.append(f"Gradient noise scale in examples: sharp {n.sharp:.3g}, flat {n.flat:.3g}.")
        return " ".join(parts)

    def spectrum(self, operator: str) -> OperatorSpectrum:
        """The spectrum of an operator.

        Raises:
            KeyError: if it was not measured.
        """
        for found in self.spectra:
            if found.operator == operator:
                return found
        raise KeyError(f"{operator!r} was not measured; there are {', '.join(x.operator for x in self.spectra)}.")

    def eigenvector(self, operator: str, place: int = 0) -> dict[str, np.ndarray]:
        """An eigenvector as arrays of the parameters' shapes.

        Args:
            operator: Its operator.
            place: Rank of its eigenvalue; 0 for the largest.
        """
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = np.split(self.spectrum(operator).vectors[:, place], np.cumsum(sizes)[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def as_dict(self) -> dict[str, Any]:
        """Plain data without eigenvectors; non-finite numbers become ``None``."""
        data = super().as_dict()
        for found in data["spectra"]:
            del found["vectors"]
        return data

    def table(self) -> list[dict[str, str]]:
        """One row per operator."""
        return [
            {
                "operator": found.operator,
                "λ₁": f"{found.eigenvalues[0]:.3g}",
                f"λ{len(found.eigenvalues)}": f"{found.eigenvalues[-1]:.3g}",
                "mean": f"{found.mean:.2g}",
                "lowest": f"{found.density.nodes[0]:.2g}",
            }
            for found in self.spectra
        ]

    def plot(self) -> Any:
        """Plot the share of eigenvalues above each threshold, by operator; returns matplotlib's axes."""
        from matplotlib.figure import Figure

        axes = Figure(figsize=(5.6, 3.6), layout="constrained").subplots()
        for found in self.spectra:
            nodes, shares = found.density.nodes, found.density.weights[::-1].cumsum()[::-1]
            colour = _COLOURS[found.operator]
            axes.step(nodes, shares, where="pre", color=colour, label=found.operator)
            axes.plot(found.eigenvalues, np.full(len(found.eigenvalues), 1e-6), "|", color=colour, ms=9)
        largest = max(abs(float(found.eigenvalues[0])) for found in self.spectra) or 1.0
        axes.set_xscale("symlog", linthresh=1e-3 * largest)
        axes.set(yscale="log", ylim=(5e-7, 2.0), xlabel="eigenvalue λ", ylabel="share of the eigenvalues above λ")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        return axes
