"""Claim C11a: on a straight river LITE's flow is RISHD on the floor with learning rate χη."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from discretizations.proofs import rivers
from riemannian_ode import RISHD, ConstantMetric, Metric, StateDependentMetric, Trajectory, simulate
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Curve, Evidence, Hypothesis, Identity, Measurement, Panel, Proof
from rishd.claims.instances import from_spectrum, random_bases
from toy_landscapes import Quadratic, StraightValley

_MEMBERS = 40  # instances that share a valley
_COUPLED = 8  # one in this many instances violates a hypothesis on the metric


@register_claim("C11a", "straight rivers", seconds=8)
def straight_river(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The river of a straight valley is invariant, and the motion on it is RISHD on the floor.

    Statement: let :math:`f = h(u) + \frac{1}{2}s^\top\Lambda(u)s`. Then :math:`s = 0` and :math:`m_s = 0` stay
    zero, and :math:`u` moves as RISHD on :math:`h` with learning rate :math:`\chi\eta`, Hessian damping
    :math:`\beta_2` and the metric :math:`F_{uu}(u, 0)`.

    Hypotheses: :math:`\lambda_{\min}(\Lambda(u)) > \lambda_{\max}(\nabla^2h(u))` along the way; :math:`F`
    block-diagonal in :math:`(u, s)`; if :math:`F` varies and :math:`R` is kept, also :math:`\partial_sF_{uu} = 0` on
    the river.

    Proof: docs/theory, claim C11; symbolic in 2 + 2 dimensions with undetermined h, Λ and both blocks of F.

    Check: random valleys whose walls change width and axes along the river. The update rule with constant metrics
    against the update rule on the floor; the flow with varying metrics, by RK4, against the flow on the floor. Some
    instances violate a hypothesis on F; their distance from the river is measured.

    Finding: a block-diagonal metric is not enough if :math:`R` is kept:
    :math:`R_s = \frac{1}{2}v_u^\top(\partial_sF_{uu})n_u` pushes the flow off the river unless the last hypothesis
    holds.

    Source: derived in docs/theory.
    """
    constant = _runs(rng, instances, varying=False)
    varying = _runs(rng, instances, varying=True)
    block, alone = ("F block-diagonal", "∂F_uu/∂s = 0 on the river")
    return [
        Proof("invariance and motion, any h, Λ and block-diagonal F", rivers.straight_river()),
        *_identities("update rule, F constant", constant, block, 1e-11),
        *_identities("flow with R, F(w) varies", varying, alone, 1e-11),
        *_left_over("distance from the river over the way along it, F not block-diagonal", constant),
        *_left_over("distance from the river over the way along it, F_uu depends on s, R kept", varying),
        _panel(varying),
    ]


class _Runs(NamedTuple):
    """Results of the instances.

    Args:
        off: Largest distance from the river over the distance along u, shape ``(n,)``.
        error: Largest error of u over that distance, shape ``(n,)``.
        met: Whether F meets the hypotheses, shape ``(n,)``.
        steep: Whether the walls are steeper than the floor throughout, shape ``(n,)``.
        times: Save times.
        distance: Relative distance from the river at these times, shape ``(saves, n)``.
    """

    off: np.ndarray
    error: np.ndarray
    met: np.ndarray
    steep: np.ndarray
    times: np.ndarray
    distance: np.ndarray


def _identities(where: str, runs: _Runs, condition: str, tolerance: float) -> list[Identity]:
    hypotheses = (Hypothesis("λ_min(Λ) > λ_max(∇²h)", runs.steep), Hypothesis(condition, runs.met))
    return [
        Identity(
            f"distance from the river over the way along it, {where}", runs.off, tolerance, "rounding", hypotheses
        ),
        Identity(f"u against RISHD on the floor with χη, {where}", runs.error, tolerance, "rounding", hypotheses),
    ]


def _left_over(name: str, runs: _Runs) -> list[Measurement]:
    """Measurements of instances that violate the hypothesis on F, if any."""
    return [] if runs.met.all() else [Measurement(name, runs.off[~runs.met])]


def _runs(rng: np.random.Generator, instances: int, *, varying: bool) -> _Runs:
    sizes = [min(_MEMBERS, instances - start) for start in range(0, instances, _MEMBERS)]
    parts = [_valley_runs(rng, size, varying=varying) for size in sizes]
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts], axis=-1)
        for name in ("off", "error", "met", "steep", "distance")
    }
    return _Runs(times=parts[0].times, **joined)


def _valley_runs(rng: np.random.Generator, n: int, *, varying: bool) -> _Runs:
    """Runs in one valley with different metrics, coefficients and starts."""
    d_f, d_s = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    floor = Quadratic.random(rng.uniform(-0.2, 0.5, d_f), seed=rng)
    turn = from_spectrum(random_bases(rng, 1, d_s), rng.uniform(-1.0, 1.0, (1, d_s)))[0] if d_s > 1 else np.eye(1)
    walls = from_spectrum(random_bases(rng, 1, d_s), rng.uniform(2.0, 10.0, (1, d_s)))[0] if d_s > 1 else 4.0 * turn
    valley = StraightValley(floor, walls, variation=turn, frequency=rng.normal(size=d_f), phase=rng.normal())
    broken = np.arange(n) % _COUPLED == _COUPLED - 1
    metric, inner = (_varying if varying else _constant)(rng, n, d_f, d_f + d_s, broken)
    alpha, eta, chi = rng.uniform(0.1, 1.0, n), rng.uniform(0.005, 0.05, n), rng.uniform(1.0, 5.0, n)
    beta_sharp = rng.uniform(0.0, 1.0, n)
    beta_flat = beta_sharp + rng.uniform(0.0, 2.0, n)
    lite = RISHD.from_optimizer(
        valley,
        metric,
        alpha=alpha,
        eta=eta,
        beta=beta_sharp,
        beta_flat=beta_flat,
        chi=chi,
        flat=valley.flat_split,
        check_split=False,  # some members violate the hypothesis on purpose
    )
    base = RISHD.from_optimizer(floor, inner, alpha=alpha, eta=chi * eta, beta=beta_flat)
    u, m_u = rng.normal(0.0, 2.0, (n, d_f)), rng.normal(size=(n, d_f))
    w, m = (np.concatenate([x, np.zeros((n, d_s))], axis=-1) for x in (u, m_u))
    settings: dict[str, Any] = {"integrator": "rk4", "h": 0.25} if varying else {"h": 1.0}
    on_river, on_floor = (
        simulate(system, *state, steps=20, progress=False, **settings).checked()
        for system, state in ((lite, (w, m)), (base, (u, m_u)))
    )
    along, distance = _way(on_floor), _distance(on_river, d_f)
    error = np.abs(on_river.w[..., :d_f] - on_floor.w).max(axis=(0, -1)) / along
    curvature = np.linalg.eigvalsh(valley.wall_matrix(on_river.w[..., :d_f]))[..., 0].min(0)
    steep = curvature > floor.eigenvalues[0]
    return _Runs(distance.max(0) / along, error, ~broken, steep, on_river.times, distance / along)


def _constant(rng: np.random.Generator, n: int, d_f: int, p: int, broken: np.ndarray) -> tuple[Metric, Metric]:
    """Constant metrics, block-diagonal except where violated, and their flat blocks."""
    whole = from_spectrum(random_bases(rng, n, p), rng.uniform(0.5, 2.0, (n, p)))
    matrix = np.where(broken[:, None, None], whole, whole * _blocks(d_f, p))
    return ConstantMetric(matrix), ConstantMetric(np.ascontiguousarray(whole[:, :d_f, :d_f]))


def _varying(rng: np.random.Generator, n: int, d_f: int, p: int, broken: np.ndarray) -> tuple[Metric, Metric]:
    r"""Block-diagonal metrics :math:`\tfrac12I + BB^\top`, :math:`B_{ij} = a_{ij} + b_{ij}\sin(c_i^\top w)`.

    In the flat rows c has no sharp entries, except where violated.
    """
    import torch

    constant, swing, waves = rng.normal(0.0, 0.4, (3, n, p, p))
    flat_rows = np.zeros((p, p), dtype=bool)
    flat_rows[:d_f, d_f:] = True
    waves = np.where(flat_rows & ~broken[:, None, None], 0.0, waves)
    blocks = torch.as_tensor(_blocks(d_f, p))

    def whole(w: Any, a: Any, b: Any, c: Any) -> Any:
        root = a + b * torch.sin(c @ w)[:, None]
        return 0.5 * torch.eye(p, dtype=w.dtype) + blocks * (root @ root.T)

    def flat_block(u: Any, a: Any, b: Any, c: Any) -> Any:
        root = (a + b * torch.sin(c[:, :d_f] @ u)[:, None])[:d_f]
        return 0.5 * torch.eye(d_f, dtype=u.dtype) + root @ root.T

    parameters = (constant, swing, waves)
    return StateDependentMetric(whole, parameters), StateDependentMetric(flat_block, parameters)


def _blocks(d_f: int, p: int) -> np.ndarray:
    """1 in both diagonal blocks, 0 elsewhere, shape ``(p, p)``."""
    is_flat = np.arange(p) < d_f
    return np.asarray(is_flat[:, None] == is_flat, dtype=np.float64)


def _way(flow: Trajectory) -> np.ndarray:
    """Largest ‖u(t) − u(0)‖ of every member."""
    return np.asarray(np.linalg.norm(flow.w - flow.w[0], axis=-1).max(0))


def _distance(flow: Trajectory, d_f: int) -> np.ndarray:
    """‖s‖ + ‖m_s‖, shape ``(saves, n)``."""
    return np.asarray(np.linalg.norm(flow.w[..., d_f:], axis=-1) + np.linalg.norm(flow.m[..., d_f:], axis=-1))


def _panel(runs: _Runs) -> Panel:
    """Plot of the distance from the river over time, one line per instance, up to 12 of each kind."""
    curves = []
    for label, chosen, role in (("F_uu depends on s", ~runs.met, "measured"), ("it does not", runs.met, "reference")):
        for k, member in enumerate(np.flatnonzero(chosen)[:12]):
            shown = np.maximum(runs.distance[1:, member], 1e-18)
            curves.append(Curve(label if k == 0 else "", runs.times[1:], shown, role))  # type: ignore[arg-type]
    return Panel(
        "Leaving a straight river (R kept)", "time t", "(‖s‖ + ‖m_s‖) / way along the river", tuple(curves), log="y"
    )
