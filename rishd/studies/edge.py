"""The edge study: does LITE need a larger learning rate than Muon because of the edge of stability (claim C21)?

A tiny transformer is trained with full batches by :class:`lite.Muon` and :class:`lite.MuonLITE` over a ladder of
learning rates. Meanwhile its generalised sharpness is measured in the metric of the optimizer's next step
(:mod:`rishd.probing.edge_sharpness`). For LITE it is that of the flat block, since the sharp block has β₁ < 0 and thus
no oscillation of period 2.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from lite import Muon, MuonLITE
from lite.schedules import learning_rate_factor
from riemannian_ode.colours import BASE_COLOUR, LITE_COLOUR
from rishd.probing.edge_sharpness import EdgeSharpness, edge_sharpness
from rishd.record import Record
from rishd.study import STUDIES, StudyResult
from toy_landscapes import BigramModel, TinyTransformer

METHODS = ("Muon", "MuonLITE")
EDGE = 2.0
_CHI, _BETA_SHARP, _BETA_FLAT, _SHARP_FRACTION = 2.0, -0.25, 1.0, 0.1  # as published
_RECORDS = (2.0, 2.8)  # MuonLITE's best rate over Muon's with 65 536 and 16 384 tokens, docs/results/evidence.md
_MEASURED = (0.5, 0.65, 0.8, 0.95)  # fractions of the run at which the sharpness is measured
_LAST = 0.1  # final fraction of the run over which losses and cosines are averaged
_CLOSE = 1.1  # losses up to this factor of the lowest count as equally good


@dataclass(frozen=True)
class EdgeRow:
    """A method at a learning rate.

    Args:
        method: Of :data:`METHODS`.
        lr: Peak of a cosine schedule that ends at a tenth of it.
        loss: Mean loss over the last steps.
        sharpness: ηS in the method's own metric (for LITE in the flat block); median over the measured steps.
        muon_sharpness: ηS in Muon's metric at the same points and rates.
        cosine: Mean cosine between gradients of successive steps; −1 is an oscillation of period 2.
    """

    method: str
    lr: float
    loss: float
    sharpness: float
    muon_sharpness: float
    cosine: float


@dataclass(frozen=True)
class EdgeStudy(Record):
    """Results of the study.

    Args:
        steps: Number of steps.
        start: Initial loss.
        rows: One row per method and learning rate.
    """

    steps: int
    start: float
    rows: tuple[EdgeRow, ...]

    def of(self, method: str) -> list[EdgeRow]:
        """Rows of a method, by learning rate."""
        return [row for row in self.rows if row.method == method]

    def best(self, method: str) -> EdgeRow:
        """The row with the lowest loss."""
        return min(self.of(method), key=lambda row: row.loss)

    @property
    def edge_ratio(self) -> float:
        """Ratio of LITE's to Muon's learning rate at the edge at the same point; median over LITE's runs' points."""
        return float(np.median([row.muon_sharpness / row.sharpness for row in self.of("MuonLITE")]))

    @property
    def answer(self) -> str:
        """Whether the edge explains LITE's larger learning rate."""
        muon, lite = (self.best(method) for method in METHODS)
        ratio = lite.lr / muon.lr
        verdict = "Yes" if min(ratio, self.edge_ratio) >= _RECORDS[0] else "No"
        return (
            f"{verdict}: with full batches, MuonLITE's best rate is {ratio:.2g} times Muon's; in the recorded "
            f"pre-training runs it is {_RECORDS[0]:g} to {_RECORDS[1]:g} times. Its flat block reaches the edge at "
            f"{self.edge_ratio:.2g} times Muon's rate, so the edge alone would call for a "
            f"{'smaller' if self.edge_ratio < 1 else 'larger'} rate."
        )

    @property
    def conclusion(self) -> str:
        """Loss, sharpness and cosine at the best learning rates."""
        length = _CHI * (1.0 + _BETA_FLAT)
        return (
            "While gradient and momentum agree, flat steps of MuonLITE are "
            f"χ(1 + β₂) = {length:g} times as long at the same rate. {self._method_text('Muon')} "
            f"{self._method_text('MuonLITE')} Training beyond the edge does not diverge: the length of a polar factor "
            "is fixed, so that an oscillation grows to the size of the learning rate and stays there."
        )

    def _method_text(self, method: str) -> str:
        rows, best = self.of(method), self.best(method)
        good = [row.lr for row in rows if row.loss <= _CLOSE * best.loss]
        stable = [row.lr for row in rows if row.sharpness < EDGE]
        lost = [row.lr for row in rows if row.loss > self.start]
        end = best.lr in (rows[0].lr, rows[-1].lr)
        near = f"from {min(good):.2g} to {max(good):.2g}" if len(good) > 1 else "at no other rate"
        return (
            f"{method} is best at {best.lr:.2g}{', an end of the grid,' if end else ''} with the loss {best.loss:.3g} "
            f"(within a tenth of it {near}). There ηS is {best.sharpness:.2g}, and successive gradients have the "
            f"cosine {best.cosine:.2f}. ηS is below 2 {f'up to {max(stable):.2g}' if stable else 'at no tested rate'}, "
            f"and the loss {f'ends above its start from {min(lost):.2g} on' if lost else 'never ends above its start'}."
        )

    def table(self) -> list[dict[str, str]]:
        """One row per method and learning rate."""
        return [
            {
                "method": row.method,
                "lr": f"{row.lr:.3g}",
                "loss": f"{row.loss:.4g}",
                "ηS": f"{row.sharpness:.3g}",
                "ηS in Muon's metric": f"{row.muon_sharpness:.3g}",
                "cosine of successive gradients": f"{row.cosine:.2f}",
            }
            for row in self.rows
        ]


def edge_study(*, quick: bool = False, seed: int = 0) -> EdgeStudy:
    """Train over the ladder of learning rates.

    Args:
        quick: Whether to use fewer rates and steps.
        seed: Seed of corpus and start.
    """
    chain = np.random.default_rng(seed).dirichlet(np.full(8, 0.3), size=8) + 0.01
    model = BigramModel(chain / chain.sum(1, keepdims=True))
    network = TinyTransformer.on_bigrams(model, sequences=16, length=8, width=8, seed=seed)
    start = torch.as_tensor(network.initial(seed + 1))
    rates = 0.01 * 8.0 ** np.arange(3) if quick else 0.0025 * 2.0 ** (0.5 * np.arange(19))
    steps = 24 if quick else 150
    rows = tuple(_row(network, start, method, float(lr), steps, seed) for method in METHODS for lr in rates)
    return EdgeStudy(steps, float(network.value(start)), rows)


def _row(network: TinyTransformer, start: Tensor, method: str, lr: float, steps: int, seed: int) -> EdgeRow:
    model = copy.deepcopy(network.module)
    nn.utils.vector_to_parameters(start.clone(), model.parameters())
    for p in model.parameters():
        p.requires_grad_(p.ndim == 2)  # the next matrix can absorb a norm's gains
    matrices = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(method, matrices, lr)
    measured = {round(share * steps) for share in _MEASURED}
    losses, cosines, before = np.empty(steps), [], None
    found: list[tuple[float, EdgeSharpness]] = []
    for k in range(steps):
        eta = lr * learning_rate_factor(k, schedule="cosine", warmup_steps=0, total_steps=steps, min_ratio=0.1)
        optimizer.param_groups[0]["lr"] = eta
        loss = cross_entropy(model(network.tokens[:, :-1]).flatten(0, 1), network.tokens[:, 1:].flatten())
        graph = torch.autograd.grad(loss, matrices, create_graph=k in measured)
        for p, g in zip(matrices, graph, strict=True):
            p.grad = g.detach()
        whole = nn.utils.parameters_to_vector(graph).detach()
        losses[k] = float(loss.detach())
        if before is not None:
            cosines.append(float(cosine_similarity(whole, before, dim=0)))
        before = whole
        if k in measured:
            settings = {"chi": _CHI, "beta_flat": _BETA_FLAT, "sharp_fraction": _SHARP_FRACTION}
            found.append((eta, edge_sharpness(model, optimizer, graph, **settings, seed=seed)))
        optimizer.step()
    last = -max(1, round(_LAST * steps))
    in_muon, in_flat = (float(np.median([eta * each[i] for eta, each in found])) for i in range(2))
    return EdgeRow(
        method,
        lr,
        float(losses[last:].mean()),
        in_muon if method == "Muon" else in_flat,
        in_muon,
        float(np.mean(cosines[last:])),
    )


def _optimizer(method: str, matrices: list[nn.Parameter], lr: float) -> MuonLITE:
    """A method of :data:`METHODS` with exact polar factors and mask."""
    if method == "Muon":
        return Muon(matrices, lr, weight_decay=0.0, ns_steps=0)
    return MuonLITE(
        matrices,
        lr,
        weight_decay=0.0,
        chi=_CHI,
        beta_sharp=_BETA_SHARP,
        beta_flat=_BETA_FLAT,
        sharp_fraction=_SHARP_FRACTION,
        ns_steps=0,
        mask="exact",
    )


def edge_figure(study: EdgeStudy) -> Figure:
    """Plot loss, generalised sharpness and the cosine of successive gradients against the learning rate.

    Args:
        study: Result of :func:`edge_study`.
    """
    figure = Figure(figsize=(14.0, 4.2), layout="constrained")
    losses, sharpness, cosines = figure.subplots(1, 3)
    for method, colour in zip(METHODS, (BASE_COLOUR, LITE_COLOUR), strict=True):
        rows = study.of(method)
        rates = [row.lr for row in rows]
        losses.loglog(rates, [row.loss for row in rows], "o-", color=colour, label=method)
        label = "Muon" if method == "Muon" else "MuonLITE, flat block"
        sharpness.loglog(rates, [row.sharpness for row in rows], "o-", color=colour, label=label)
        cosines.semilogx(rates, [row.cosine for row in rows], "o-", color=colour, label=method)
        for axes in (losses, sharpness, cosines):
            axes.axvline(study.best(method).lr, color=colour, lw=1.0, ls=":")
    losses.axhline(study.start, color="0.5", lw=0.8, label="at the start")
    sharpness.axhline(EDGE, color="0.3", lw=1.0, label="edge of stability")
    cosines.axhline(0.0, color="0.5", lw=0.8)
    losses.set(ylabel=f"loss after {study.steps} steps", title="Loss (dotted: best learning rate)")
    sharpness.set(ylabel="ηS in the optimizer's own metric", title="Generalised sharpness")
    cosines.set(ylabel="cosine", title="Gradients of successive steps", ylim=(-1.05, 1.05))
    for axes in (losses, sharpness, cosines):
        axes.set_xlabel("learning rate")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


@STUDIES.register(place=120)
def edge(quick: bool, seed: int) -> StudyResult:
    """Whether the edge of stability explains LITE's larger learning rate than Muon's (transformer, full batch)."""
    study = edge_study(quick=quick, seed=seed)
    return StudyResult.of(study, edge=lambda: edge_figure(study))
