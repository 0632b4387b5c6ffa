"""Claim C18c: energy spent by Muon-LITE's negative damping of sharp directions in real training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from discretizations.matrices.polar import exact_polar
from discretizations.matrices.sharp_masks import top_right_subspace
from lite import MuonLITE, param_groups
from riemannian_ode.flow import lookahead
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Curve, Evidence, Measurement, Panel
from rishd.claims.norms import ky_fan_norms
from toy_landscapes import BigramModel, TinyTransformer

_STEPS, _BATCH, _RATE = 200, 16, 3e-3
_WIDTH, _VOCABULARY = 24, 32
_FULL = 100  # instances from which there are several trainings


class Spent(NamedTuple):
    """Shares of αφ(m), the energy that momentum loses per unit time; one row per step and one column per matrix.

    Args:
        limit: c|β₁|‖g‖_(k), the most that damping can spend if β₂ ≥ 0.
        sharp: Energy actually spent by β₁.
        damping: Energy spent by all damping, including flat directions; negative if damping removes energy.
        lookahead: Energy spent by look-ahead.
    """

    limit: np.ndarray
    sharp: np.ndarray
    damping: np.ndarray
    lookahead: np.ndarray


@register_claim("C18c", "energy spent by β₁ = −0.25 in training", expected="measured", seconds=12)
def damping_spent(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The share of the momentum's energy loss that negative damping spends in training with Muon-LITE.

    Statement: measurements only. By C18 the energy falls, whatever the sharp damping does, if
    :math:`\alpha\varphi(m) \ge c\lvert\beta_1\rvert\lVert g\rVert_{(k)}`.

    Hypotheses: a one-block transformer of width 24 on a Markov chain, trained by `lite.MuonLITE` as published
    (:math:`\theta = 0.95`, :math:`\chi = 2`, :math:`\beta_1 = -0.25`, :math:`\beta_2 = 1`, r = 0.1), with
    mini-batches of 16.

    Proof: none.

    Check: every step and matrix of one to four trainings, with the optimizer's momentum and gradient.

    Source: measured here; the condition is derived in docs/theory, claim C18.
    """
    runs = [_training(int(seed)) for seed in rng.integers(2**31, size=4 if instances >= _FULL else 1)]
    spent = Spent(*(np.concatenate(parts) for parts in zip(*runs, strict=True)))
    steps = np.arange(_STEPS)
    of_first = Spent(*(np.median(part, axis=1) for part in runs[0]))
    return [
        Measurement("c|β₁|‖g‖_(k) over αφ(m); below 1 the energy must fall", spent.limit.ravel()),
        Measurement(
            "share of steps and matrices above 1, one number per training",
            np.array([(run.limit > 1.0).mean() for run in runs]),
        ),
        Measurement("spent by β₁ over αφ(m)", spent.sharp.ravel()),
        Measurement("spent by all damping over αφ(m)", spent.damping.ravel()),
        Measurement("spent by look-ahead over αφ(m)", spent.lookahead.ravel()),
        Panel(
            "What β₁ = −0.25 may spend and does spend",
            "step",
            "share of αφ(m), median of the matrices",
            (
                Curve("c|β₁|‖g‖₍ₖ₎, the limit", steps, of_first.limit),
                Curve("spent by β₁", steps, of_first.sharp),
                Curve("taken by all damping", steps, -of_first.damping),
                Curve("αφ(m) itself, what α takes", steps, np.ones(_STEPS), "reference"),
            ),
            log="y",
        ),
    ]


def _training(seed: int) -> Spent:
    chain = np.random.default_rng(seed).dirichlet(np.full(_VOCABULARY, 0.3), size=_VOCABULARY) + 0.01
    model = BigramModel(chain / chain.sum(1, keepdims=True))
    network = TinyTransformer.on_bigrams(model, sequences=128, length=16, width=_WIDTH, seed=seed)
    module = network.module
    nn.utils.vector_to_parameters(torch.as_tensor(network.initial(seed)), module.parameters())
    optimizer = MuonLITE(param_groups(module, head=module.head), lr=_RATE)
    generator, rows = torch.Generator().manual_seed(seed), []
    for _ in range(_STEPS):
        batch = torch.randperm(network.samples, generator=generator)[:_BATCH]
        w = nn.utils.parameters_to_vector(module.parameters()).detach()
        gradients = network.layout.unpack(network.batch_gradient(w, batch))
        for name, parameter in module.named_parameters():
            parameter.grad = gradients[name]
        optimizer.step()
        rows.append([_spent(group, w, optimizer.state[w]["momentum"]) for group, w in _matrices(optimizer)])
    return Spent(*np.moveaxis(np.array(rows), -1, 0))


def _matrices(optimizer: MuonLITE) -> list[tuple[dict[str, float], Tensor]]:
    return [(group, w) for group in optimizer.param_groups if group["rule"] == "muon" for w in group["params"]]


def _spent(group: dict[str, float], w: Tensor, m: Tensor) -> tuple[float, float, float, float]:
    """The shares of :class:`Spent` for one matrix; α = c, so both drop out."""
    g, theta = w.grad, group["momentum"]
    if g is None:
        raise RuntimeError("the parameter has no gradient")
    rank, chi = round(group["sharp_fraction"] * min(m.shape)), group["chi"]
    ahead = lookahead(m, g, (1.0 - theta) / theta)
    sharp = top_right_subspace(ahead, rank)
    d, own = exact_polar(g), top_right_subspace(m, rank)

    def work(direction: Tensor, basis: Tensor) -> tuple[float, float]:
        """⟨g, ·⟩ with a direction's sharp and flat part."""
        part = float((g * ((direction @ basis) @ basis.mT)).sum())
        return part, float((g * direction).sum()) - part

    sharp_d, flat_d = work(d, sharp)
    sharp_now, flat_now = work(exact_polar(m), own)
    sharp_ahead, flat_ahead = work(exact_polar(ahead), sharp)
    top, rest = ky_fan_norms(m, rank)
    phi = float(top + chi * rest)
    damping = group["beta_sharp"] * sharp_d + chi * group["beta_flat"] * flat_d
    gained = sharp_ahead + chi * flat_ahead - sharp_now - chi * flat_now
    limit = abs(group["beta_sharp"]) * float(ky_fan_norms(g, rank)[0])
    return limit / phi, -group["beta_sharp"] * sharp_d / phi, -damping / phi, -gained / phi
