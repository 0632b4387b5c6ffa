r"""The proxy study: sources for a matrix's mask, and metrics for damping the gradient.

Masks act on the input side: a sharp subspace of k right directions. On a two-layer network, trained with mini-batches,
the mask comes from the momentum (as published), from the gradients' second moment, from the samples' (the empirical
Fisher), or from Hessian–vector products. The exact mask is the top eigenspace of the Hessian block's partial trace
:math:`C = \sum_i H_{(i,\cdot),(i,\cdot)}`, the curvature that a right subspace can capture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discretizations.matrices.polar import exact_polar
from discretizations.matrices.roots import inverse_root
from discretizations.matrices.sharp_masks import SubspaceComplement, top_right_subspace
from discretizations.update_rule import UpdateState, lite_step
from riemannian_ode.flow import Projector, momentum_step
from rishd.record import Record
from toy_landscapes import TwoLayerNetwork

ALPHA, CHI = 0.1, 4.0
PROXIES = ("momentum", "second moment", "Fisher", "HVP", "exact")
METRICS = ("own", "momentum's")
_DECAY = 0.95  # EMA coefficient of the Gram matrices
_BATCH = 8
_RANK = 2  # k, of 8 right directions
_PROBES = 2  # random directions of Hessian–vector products per step
_REGULARISATION = 1e-3  # damping of the momentum's Gram matrix relative to its mean eigenvalue
_FAR = 1e3
_CLOSE = 1.1  # times the lowest loss: as good


@dataclass(frozen=True)
class ProxyRow:
    """Results of one mask of LITE over heavy ball.

    Args:
        proxy: A key of :data:`PROXIES`, ``"random"`` or ``"none"`` (the base method).
        captured: Mean captured share of the curvature that k directions can hold, along the base method's run; 0 for
            none.
        loss: Median final loss over seeds at each learning rate, shape ``(rates,)``.
    """

    proxy: str
    captured: float
    loss: np.ndarray


@dataclass(frozen=True)
class MetricRow:
    """Results of one metric for the gradient in Muon's Hessian damping.

    Args:
        metric: A key of :data:`METRICS`: msign(g), or g in the metric of the momentum.
        beta: β relative to the preconditioned EMA.
        loss: Median final loss over seeds at each learning rate, shape ``(rates,)``.
    """

    metric: str
    beta: float
    loss: np.ndarray


@dataclass(frozen=True)
class ProxyStudy(Record):
    """Results of the study.

    Args:
        steps: Number of steps.
        rank: k.
        rates: Learning rates of heavy ball, shape ``(rates,)``.
        muon_rates: Learning rates of Muon.
        proxies: One row per mask.
        metrics: One row per metric and β.
    """

    steps: int
    rank: int
    rates: np.ndarray
    muon_rates: np.ndarray
    proxies: tuple[ProxyRow, ...]
    metrics: tuple[MetricRow, ...]

    @property
    def answer(self) -> str:
        """Whether the momentum is a good source of the mask, and whether the second polar factor is worth it."""
        rows = {row.proxy: row for row in self.proxies}
        lowest = min((name for name in PROXIES if name != "exact"), key=lambda name: rows[name].loss.min())
        ratio = float(rows["momentum"].loss.min() / rows[lowest].loss.min())
        verdict = "Yes, the momentum is" if ratio < _CLOSE else "No, the momentum is not"
        own, shared = (min(_best(row) for row in self.metrics if row.metric == metric) for metric in METRICS)
        worth = "is worth its cost" if own * _CLOSE < shared else "is not worth its cost"
        return (
            f"{verdict} as good a source of the mask as any: with it, as published, the loss ends {ratio:.2g} times as "
            f"high as with the best one tried ({lowest}). A second polar factor for Muon's damping {worth}: loss "
            f"{own:.2g} against {shared:.2g}."
        )

    @property
    def conclusion(self) -> str:
        """The best proxy, and the cost of the metric."""
        real = [row for row in self.proxies if row.proxy in PROXIES and row.proxy != "exact"]
        holds = sorted(real, key=lambda row: -row.captured)
        captured = ", ".join(f"{row.proxy} {row.captured:.2f}" for row in holds)
        losses = ", ".join(
            f"{row.proxy} {row.loss.min():.3g}" for row in sorted(self.proxies, key=lambda r: r.loss.min())
        )
        best = {name: min((row for row in self.metrics if row.metric == name), key=_best) for name in METRICS}
        plain = next(row for row in self.metrics if row.beta == 0)
        own, shared = (best[name] for name in METRICS)
        random = next(row for row in self.proxies if row.proxy == "random")
        return (
            f"Share of the curvature that {self.rank} right directions can hold, by mask: {captured} (random "
            f"{random.captured:.2f}); the lowest final losses over learning rates are: {losses}. "
            f"Muon's lowest loss is {_best(plain):.3g} without damping, {_best(own):.3g} with the gradient under its "
            f"own metric (β = {own.beta:g}, a second polar factor per step) and {_best(shared):.3g} under the "
            f"momentum's (β = {shared.beta:g}, none)."
        )

    def table(self) -> list[dict[str, str]]:
        """One row per mask, then one per metric and β."""
        masks = [
            {"what": f"mask: {row.proxy}", "captured": f"{row.captured:.2f}", "lowest loss": f"{row.loss.min():.3g}"}
            for row in self.proxies
        ]
        return masks + [
            {
                "what": f"Muon, g under {row.metric} metric, β = {row.beta:g}",
                "captured": "",
                "lowest loss": f"{_best(row):.3g}",
            }
            for row in self.metrics
        ]


def _best(row: MetricRow) -> float:
    return float(row.loss.min())


def proxy_study(*, quick: bool = False, seed: int = 0) -> ProxyStudy:
    """Train with every mask and metric from the same starts with the same batches.

    Args:
        quick: Whether to use fewer seeds, learning rates and steps.
        seed: Seed of network, starts and batches.
    """
    network = TwoLayerNetwork.teacher_student(inputs=8, width=8, outputs=4, samples=64, noise=0.1, seed=seed)
    # Inputs have unequal variances, so that some directions are sharp.
    network = TwoLayerNetwork(network.inputs * np.geomspace(3.0, 0.1, 8), network.targets, width=8)
    members, steps = (3, 30) if quick else (4, 80)
    starts = torch.as_tensor(network.initial(seed, (members, 1)))
    rates, muon_rates = (np.geomspace(a, b, 3 if quick else 5) for a, b in ((3e-4, 0.1), (1e-3, 0.3)))
    rows = []
    for proxy in ("none", "random", *PROXIES):
        w = starts.expand(-1, len(rates), -1).clone()
        eta = torch.as_tensor(rates)[:, None]
        loss = _train(network, w, eta, steps, seed, masks=None if proxy == "none" else MaskSource(network, proxy, seed))
        captured = 0.0 if proxy == "none" else captured_curvature(network, starts[:, 0], rates[1], steps, proxy, seed)
        rows.append(ProxyRow(proxy, captured, loss))
    metrics = []
    for metric in METRICS:
        for beta in (0.0, 1.0, 4.0) if quick else (0.0, 0.5, 1.0, 2.0, 4.0):
            w = starts.expand(-1, len(muon_rates), -1).clone()
            eta = torch.as_tensor(muon_rates)[:, None, None]
            metrics.append(MetricRow(metric, beta, _train(network, w, eta, steps, seed, metric=metric, beta=beta)))
    return ProxyStudy(steps, _RANK, rates, muon_rates, tuple(rows), tuple(metrics))


class MaskSource:
    """Sharp right subspaces of a network's matrices, tracked along a run.

    Args:
        network: The landscape.
        proxy: A key of :data:`PROXIES`, or ``"random"``.
        seed: Seed of random probes.
    """

    def __init__(self, network: TwoLayerNetwork, proxy: str, seed: int) -> None:
        self.network, self.proxy = network, proxy
        self.generator = torch.Generator().manual_seed(seed)
        self.grams: dict[str, Tensor] = {}

    def bases(self, w: Tensor, m: dict[str, Tensor], g: dict[str, Tensor], batch: Tensor) -> dict[str, Tensor]:
        """Orthonormal columns V of every matrix, shape ``(*members, n, k)``.

        Args:
            w: Points, shape ``(*members, p)``.
            m: Momenta by matrix.
            g: Gradients by matrix.
            batch: Indices of the batch, shape ``(*members, b)``.
        """
        if self.proxy == "momentum":
            return {name: top_right_subspace(x, _RANK) for name, x in m.items()}
        for name, gram in self._observed(w, g, batch).items():
            old = self.grams.get(name)
            is_new = old is None or self.proxy in ("exact", "random")
            self.grams[name] = gram if old is None or is_new else _DECAY * old + (1.0 - _DECAY) * gram
        return {name: torch.linalg.eigh(gram)[1][..., -_RANK:] for name, gram in self.grams.items()}

    def _observed(self, w: Tensor, g: dict[str, Tensor], batch: Tensor) -> dict[str, Tensor]:
        """The contribution of this step to the n×n Gram matrices."""
        layout = self.network.layout
        if self.proxy == "second moment":
            return {name: x.mT @ x for name, x in g.items()}
        if self.proxy == "Fisher":
            copies = w[..., None, :].expand(*w.shape[:-1], batch.shape[-1], w.shape[-1])
            samples = layout.unpack(self.network.batch_gradient(copies, batch[..., None]))
            return {name: (x.mT @ x).mean(-3) for name, x in samples.items()}
        if self.proxy == "exact":
            return partial_traces(self.network, w)
        grams = {name: torch.zeros_like(x.mT @ x) for name, x in g.items()}
        for name, block in layout.items():  # one block's direction at a time, using that block's part of the product
            for _ in range(_PROBES):
                v = torch.zeros_like(w)
                noise = torch.randn(*w.shape[:-1], block.size, generator=self.generator, dtype=w.dtype)
                v[..., block.coordinates] = noise
                x = layout.unpack(v if self.proxy == "random" else self.network.hvp(w, v))[name]
                grams[name] = grams[name] + x.mT @ x / _PROBES
        return grams


def partial_traces(network: TwoLayerNetwork, w: Tensor) -> dict[str, Tensor]:
    """C of every matrix: the sum over its rows of the Hessian's diagonal blocks, shape ``(*members, n, n)``."""
    hessian = network.hessian(w)
    traces = {}
    for name, block in network.layout.items():
        own = hessian[..., block.coordinates, block.coordinates].reshape(*w.shape[:-1], *block.shape, *block.shape)
        traces[name] = torch.einsum("...iaib->...ab", own)
    return traces


def captured_curvature(
    network: TwoLayerNetwork, starts: Tensor, rate: float, steps: int, proxy: str, seed: int
) -> float:
    """tr(VᵀCV) over the largest possible, mean over matrices, members and steps of the base method's run."""
    source, shares = MaskSource(network, proxy, seed), []

    def watch(w: Tensor, bases: dict[str, Tensor]) -> None:
        for name, c in partial_traces(network, w).items():
            held = torch.einsum("...ak,...ab,...bk->...", bases[name], c, bases[name])
            shares.append(float((held / torch.linalg.eigvalsh(c)[..., -_RANK:].sum(-1)).mean()))

    _train(network, starts.clone(), torch.as_tensor(rate), steps, seed, watched=(source, watch))
    return float(np.mean(shares[len(shares) // 10 :]))


def _train(
    network: TwoLayerNetwork,
    w: Tensor,
    eta: Tensor,
    steps: int,
    seed: int,
    *,
    masks: MaskSource | None = None,
    metric: str | None = None,
    beta: float = 0.0,
    watched: tuple[MaskSource, Callable[[Tensor, dict[str, Tensor]], None]] | None = None,
) -> np.ndarray:
    """Median final loss over members: heavy ball with LITE's χ and masks, or Muon with damping β in a metric."""
    generator, layout = torch.Generator().manual_seed(seed + 1), network.layout
    m = torch.zeros_like(w)
    for _ in range(steps):
        keys = torch.rand((len(w), *(1,) * (w.ndim - 2), network.samples), generator=generator)
        batch = keys.argsort(-1)[..., :_BATCH].expand(*w.shape[:-1], _BATCH)
        g = network.batch_gradient(w, batch)
        parts = {key: layout.unpack(x) for key, x in (("w", w), ("m", m), ("g", g))}
        new: dict[str, UpdateState] = {}
        source = masks or (watched[0] if watched else None)
        bases = {}
        if source is not None:
            ahead = layout.unpack(momentum_step(m, g, alpha=ALPHA))
            bases = source.bases(w, ahead, parts["g"], batch)
        if watched is not None:
            watched[1](w, bases)
        for name in layout:
            x, y, z = (parts[key][name] for key in ("w", "m", "g"))
            if metric is not None:
                new[name] = lite_step(
                    x, y, z, eta=eta, alpha=ALPHA, gain=ALPHA, beta_sharp=beta, precondition=_metric(metric, y, z)
                )
            elif masks is None:
                new[name] = lite_step(x, y, z, eta=_column(eta), alpha=ALPHA)
            else:
                split = partial(_held, SubspaceComplement(bases[name]))
                new[name] = lite_step(x, y, z, eta=_column(eta), alpha=ALPHA, chi=CHI, split=split)
        w = layout.pack({name: state.w for name, state in new.items()}).clamp(-_FAR, _FAR)
        m = layout.pack({name: state.m for name, state in new.items()}).clamp(-_FAR, _FAR)
    losses: np.ndarray = network.value(w).median(dim=0).values.numpy()
    return losses


def _held(flat: Projector, covector: Tensor, a: Tensor) -> Projector:
    return flat


def _column(eta: Tensor) -> Tensor:
    return eta[..., None] if eta.ndim else eta


def _metric(name: str, m: Tensor, g: Tensor) -> Callable[[Any], Any]:
    """The map x ↦ F⁻¹x: each covector's own polar factor, or the right factor of the momentum's metric."""
    if name == "own":
        return exact_polar
    ahead = momentum_step(m, g, alpha=ALPHA, gain=ALPHA)
    gram = ahead.mT @ ahead if ahead.shape[-1] <= ahead.shape[-2] else ahead @ ahead.mT
    mean = torch.diagonal(gram, dim1=-2, dim2=-1).mean(-1)[..., None, None]
    root = inverse_root(gram / mean, 2, eps=_REGULARISATION) / mean.sqrt()
    return (lambda x: x @ root) if ahead.shape[-1] <= ahead.shape[-2] else (lambda x: root @ x)
