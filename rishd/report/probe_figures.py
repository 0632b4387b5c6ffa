"""Figures of ``rishd probe``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from riemannian_ode.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW
from rishd.probing.findings import BlockProbe, Probe
from rishd.probing.lanczos import SpectralMeasure

_COLOURS = {"adamw": GREEN, "muon": BLUE, "muon-lite": VERMILION, "soap": ORANGE, "soap-lite": PURPLE}
_COLUMNS = 4
_LEAST_SHARE = 1e-5  # number of eigenvalues drawn


def spectrum_figure(probe: Probe) -> Figure:
    """Plot the eigenvalue density of every block, with its largest eigenvalues.

    Args:
        probe: Result of :func:`rishd.probing.probe.probe`.
    """
    figure, panels = _panels(len(probe.blocks))
    for axes, block in zip(panels, probe.blocks, strict=False):
        edges = _edges(block)
        counts = np.histogram(block.density.nodes, edges, weights=block.density.weights)[0] * math.prod(block.shape)
        axes.stairs(np.maximum(counts, 1e-3), edges, color=BLUE, fill=True, alpha=0.6, baseline=1e-3)
        axes.plot(block.eigenvalues, np.full(len(block.eigenvalues), 2e-3), "|", color=VERMILION, ms=9)
        _scale(axes, block)
        axes.set(yscale="log", ylim=(1e-3, 2 * math.prod(block.shape)))
    for axes in panels[::_COLUMNS]:
        axes.set_ylabel("eigenvalues in a bin")
    figure.suptitle("Hessian spectra by stochastic Lanczos quadrature (red: largest eigenvalues)", fontsize=11)
    return figure


def update_figure(probe: Probe) -> Figure:
    """Plot the share of each update at curvatures above a threshold, for every block.

    Args:
        probe: Result of :func:`rishd.probing.probe.probe`.
    """
    figure, panels = _panels(len(probe.blocks))
    for axes, block in zip(panels, probe.blocks, strict=False):
        top = block.eigenvalues[0]
        axes.loglog(*_survival(block.density, top), color=BLACK, lw=1.6, ls=":", label="random direction")
        others = iter((SKY, YELLOW, BLACK))
        for update in block.updates:
            line = "--" if update.optimizer.endswith("-lite") else "-"
            axes.loglog(
                *_survival(update.measure, top),
                color=_COLOURS.get(update.optimizer) or next(others, BLACK),
                lw=1.4,
                ls=line,
                label=update.optimizer,
            )
        axes.set(title=_short(block.name), xlabel="curvature λ/λ₁", xlim=(1e-3, 1.2), ylim=(_LEAST_SHARE, 1.2))
    for axes in panels[::_COLUMNS]:
        axes.set_ylabel("share of ‖u‖² beyond λ")
    panels[0].legend(fontsize=7, loc="lower left")
    figure.suptitle("Where the updates lie in the spectrum", fontsize=11)
    return figure


def certificate_probe_figure(probe: Probe) -> Figure:
    """Plot the masks' coverage of top eigenspaces, the flat speed-up that C9 certifies, and the noise scale.

    Args:
        probe: Result of :func:`rishd.probing.probe.probe`.
    """
    figure = Figure(figsize=(14.0, 2.0 + 0.45 * len(probe.blocks)), layout="constrained")
    covered, speed, noise = figure.subplots(1, 3, sharey=True)
    place = np.arange(len(probe.blocks))
    for offset, optimizer in ((-0.2, "muon-lite"), (0.2, "soap-lite")):
        scales = [{each.optimizer: each for each in block.noise}.get(optimizer) for block in probe.blocks]
        flat, sharp = (
            [probe.noise_tokens / 1e3 * _finite(getattr(scale, part)) if scale else np.nan for scale in scales]
            for part in ("flat", "sharp")
        )
        noise.barh(place + offset, flat, height=0.38, color=_COLOURS[optimizer])
        noise.plot(sharp, place + offset, "|", color=BLACK, ms=13, mew=2, label="sharp part" if offset < 0 else None)
        for axes, value in ((covered, "coverage"), (speed, "speedup")):
            values = [getattr(split, value) if (split := block.split(optimizer)) else np.nan for block in probe.blocks]
            axes.barh(place + offset, values, height=0.38, color=_COLOURS[optimizer], label=optimizer)
    chances = [split.chance for block in probe.blocks for split in block.splits]
    if chances:
        covered.axvline(float(np.mean(chances)), color=BLACK, lw=1.0, ls="--", label="random mask")
    speed.axvline(1.0, color=BLACK, lw=1.0, ls="--")
    covered.set_yticks(place, [_short(block.name) for block in probe.blocks], fontsize=8)
    covered.invert_yaxis()
    covered.set(xlabel="coverage score", title="Top Hessian eigenvectors in the mask", xlim=(0, 1))
    speed.set(xlabel="χ(1 + αβ₂)/(1 + αβ₁)", title="Flat speed-up that C9 certifies at the sharp margin")
    noise.axvline(probe.batch_tokens / 1e3, color=BLACK, lw=1.0, ls=":", label="the run's batch")
    noise.set(xlabel="thousands of tokens", xlim=(0, None), title="Gradient noise scale in flat directions")
    handles = [handle for axes in (covered, noise) for handle in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    for axes in (covered, speed, noise):
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
    return figure


def _finite(value: float) -> float:
    """Replace non-finite values by NaN, which is not drawn."""
    return value if math.isfinite(value) else math.nan


def _panels(count: int) -> tuple[Figure, Any]:
    rows = math.ceil(count / _COLUMNS)
    columns = min(count, _COLUMNS)
    figure = Figure(figsize=(3.4 * columns + 0.6, 2.9 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in panels:
        axes.grid(alpha=0.3)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels


def _threshold(block: BlockProbe) -> float:
    """Curvature up to which the axis is linear: a thousandth of the largest."""
    return max(abs(float(block.eigenvalues[0])), abs(float(block.density.nodes[0])), 1e-30) * 1e-3


def _edges(block: BlockProbe) -> np.ndarray:
    """Bin edges that are evenly spaced on the figure's axis."""
    linear = _threshold(block)
    ends = np.array([block.density.nodes[0], max(block.density.nodes[-1], block.eigenvalues[0])]) / linear
    low, high = np.sign(ends) * np.log1p(np.abs(ends))
    even = np.linspace(low - 0.1, high + 0.1, 41)
    edges: np.ndarray = np.sign(even) * np.expm1(np.abs(even)) * linear
    return edges


def _scale(axes: Any, block: BlockProbe) -> None:
    linear = _threshold(block)
    axes.set_xscale("symlog", linthresh=linear, linscale=0.5)
    decade = 10.0 ** math.floor(math.log10(abs(block.eigenvalues[0]) or 1.0))
    axes.set_xticks([-decade, 0.0, 1e-2 * decade, decade])
    axes.minorticks_off()
    axes.set(title=_short(block.name), xlabel="eigenvalue")
    axes.tick_params(labelsize=7)


def _survival(measure: SpectralMeasure, top: float) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds relative to ``top``, and the share of the measure above each."""
    thresholds = np.geomspace(1e-3, 1.0, 200)
    shares = np.array([measure.weights[measure.nodes > t * top].sum() for t in thresholds])
    return thresholds, np.maximum(shares, 0.1 * _LEAST_SHARE)


def _short(name: str) -> str:
    return name.removesuffix(".weight").removeprefix("model.")
