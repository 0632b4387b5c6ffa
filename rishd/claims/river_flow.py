"""Claim C11c: flows enter a tube around a curved river; its width, and their speed in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from discretizations.stability import stable_limit
from riemannian_ode import RISHD, Trajectory, simulate
from riemannian_ode.arrays import matvec
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Curve, Evidence, Hypothesis, Identity, Measurement, Panel
from rishd.claims.flows import solve
from toy_landscapes import RiverValley

_MEMBERS = 4  # flows with different coefficients in one valley
_VALLEYS = (2, 12)  # fewest and most valleys
_UPSTREAM, _WAY = -6.0, 2.5  # start and length of a flow, in units of u
_DURATION = 500.0  # time for that distance: slow compared with every α and sharp rate below
_DISPLACEMENT = 1e-3  # displacement across the river in units of s, in the linear range
_ENTRY_SAVES, _SAVES = 60, 240
_NEXT = "next order in slowness"
_SLOW = 0.05  # largest slowness parameter: fall and rotation of the river during the times 1/α and 1/sharp rate


@register_claim("C11c", "entry, tube and clock of a curved river", expected="holds", seconds=15)
def river_flow(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Slow flows near a curved river: entry, tube and clock.

    Statement: to leading order in slowness, a displacement across the river follows the sharp modes of C5. After that,
    the sharp gradient stays at

    .. math::

       Pg = -\frac{\chi(\frac{1}{\alpha} + \beta_2)}{\frac{1}{\alpha} + \beta_1}
       \left(H_s^{-1} - \frac{\eta}{\alpha^2}\right)(D_gP)\,g

    with the Hessian :math:`H_s` on the sharp space, and the closest point on the river follows the river's gradient
    flow in time :math:`\tau = \chi\eta(\frac{1}{\alpha} + \beta_2)t`.

    Hypotheses: the flow is slow, i.e. :math:`f` and the sharp space change little during the times
    :math:`\frac{1}{\alpha}` and one over the sharp rate; :math:`F = I`.

    Proof: none; docs/theory, claim C11, derives it by a formal expansion.

    Check: random valleys with one or two walls, whose rivers are solved point by point, with four flows each by DOP853;
    an instance is a whole flow, so there are at most 48. The difference of a displaced and an undisplaced flow against
    the linear mode; Pg against its closed form with derivatives of P by differences; the clock. Then the ratio of the
    update rule's pace at h = 1 to the predicted pace, with the settings of the studies.

    Finding: LITE's tube is wider by the same factor by which its flat directions are faster. On a bending river
    momentum overshoots if :math:`\eta\lambda_s > \alpha^2`, far below the largest stable learning rate.

    Source: derived in docs/theory; rivers and their flow as in arXiv:2410.05192.
    """
    count = int(np.clip(instances // 100, *_VALLEYS))
    cases = [_case(rng, walls=1 + k % 2) for k in range(count)]
    slow = (Hypothesis(f"slowness at most {_SLOW:g}", np.concatenate([case.slowness for case in cases]) <= _SLOW),)
    entry, tube, clock = (
        np.concatenate([getattr(case, name) for case in cases]) for name in ("entry_error", "tube_error", "clock_error")
    )
    pace = _pace(rng)
    return [
        Identity("displacement against the sharp mode of C5, over its start", entry, 0.02, _NEXT, slow),
        Identity("Pg against its closed form, over the sum of both terms", tube, 0.1, _NEXT, slow),
        Identity("τ over χη(1/α + β₂)t, minus 1", clock, 0.005, _NEXT, slow),
        Measurement("pace of the update rule over the predicted one, base method, κ = 0.1 of C6", pace[0]),
        Measurement("pace of the update rule over the predicted one, LITE with χ = 4, β₂ = 5", pace[1]),
        *_panels(cases[0]),
    ]


@dataclass(frozen=True)
class _River:
    """A valley's river over u, with its gradient flow.

    Args:
        valley: One floor coordinate.
        point: u ↦ w, a spline.
        time: u ↦ τ, time of the river's gradient flow, a spline.
    """

    valley: RiverValley
    point: Any
    time: Any

    def nearest(self, w: np.ndarray) -> np.ndarray:
        """u of the closest point of the river, shape of ``w`` without its last axis."""
        u = np.array(w[..., 0])
        for _ in range(20):  # Gauss–Newton; the points are close to the river
            tangent = self.point(u, 1)
            u += ((w - self.point(u)) * tangent).sum(-1) / (tangent**2).sum(-1)
        return u


def _river(valley: RiverValley) -> _River:
    u = np.linspace(_UPSTREAM - 1.0, _UPSTREAM + _WAY + 1.5, 81)
    points = valley.river(u[:, None])
    spline = CubicSpline(u, points)
    tangent = spline(u, 1)
    fall = (valley.gradient(points) * tangent).sum(-1)  # df/du along the river
    # u̇ = −(df/du)/|dw/du|² is gradient flow on the curve.
    clock = CubicSpline(u, (tangent**2).sum(-1) / -fall).antiderivative()
    return _River(valley, spline, clock)


@dataclass(frozen=True)
class _Case:
    """Flows in one valley; arrays have one entry per member, or one row per save time."""

    slowness: np.ndarray
    entry_error: np.ndarray
    tube_error: np.ndarray
    clock_error: np.ndarray
    entry_times: np.ndarray
    displacement: np.ndarray
    mode: np.ndarray
    place: np.ndarray
    sharp_gradient: np.ndarray
    closed_form: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Coefficients of every member, shape ``(members,)``."""

    alpha: np.ndarray
    eta: np.ndarray
    chi: np.ndarray
    beta_sharp: np.ndarray
    beta_flat: np.ndarray

    @property
    def speed(self) -> np.ndarray:
        """χη(1/α + β₂)."""
        return np.asarray(self.chi * self.eta * (1.0 / self.alpha + self.beta_flat))

    def system(self, valley: RiverValley) -> RISHD:
        """LITE's flow with the valley's split."""
        return RISHD.from_optimizer(
            valley,
            alpha=self.alpha,
            eta=self.eta,
            beta=self.beta_sharp,
            beta_flat=self.beta_flat,
            chi=self.chi,
            flat=valley.flat_split,
        )


def _case(rng: np.random.Generator, *, walls: int) -> _Case:
    frequency = rng.uniform(0.3, 0.7)
    valley = RiverValley(
        np.sort(rng.uniform(20.0, 60.0, walls))[::-1] * np.array([1.0, 0.5])[:walls],
        floor_curvatures=[rng.uniform(0.03, 0.1)],
        floor_width=2.0,
        amplitudes=rng.uniform(0.3, 0.8, walls),
        frequency=frequency,
        phases=rng.uniform(-3.0, 3.0, walls),
    )
    river = _river(valley)
    alpha, chi = rng.uniform(0.3, 1.0, _MEMBERS), rng.uniform(1.0, 4.0, _MEMBERS)
    beta_sharp = rng.uniform(0.0, 1.0, _MEMBERS)
    beta_flat = beta_sharp + rng.uniform(0.0, 2.0, _MEMBERS)
    speed = (river.time(_UPSTREAM + _WAY) - river.time(_UPSTREAM)) / _DURATION
    eta = speed / (chi * (1.0 / alpha + beta_flat))
    settings = _Settings(alpha=alpha, eta=eta, chi=chi, beta_sharp=beta_sharp, beta_flat=beta_flat)
    start = np.tile(river.point(_UPSTREAM), (_MEMBERS, 1))
    values, vectors = np.linalg.eigh(valley.hessian(start))
    steepest, across = values[:, -1], vectors[..., -1]

    rate = _sharp_rate(settings, steepest)
    span = float(5.0 / rate.min())
    phases = ((span, _ENTRY_SAVES), (_DURATION - span, _SAVES))
    flow = solve(settings.system(valley), start, phases=phases, rtol=1e-8)
    moved = solve(settings.system(valley), start + _DISPLACEMENT * across, phases=phases[:1], rtol=1e-8)
    displacement = ((moved.w - flow.w[: _ENTRY_SAVES + 1]) * across).sum(-1) / _DISPLACEMENT
    mode = _sharp_mode(settings, steepest, moved.times)

    settled = flow.times > 3.0 * span
    w = flow.w[settled]
    sharp, closed, scale = _sharp_gradients(valley, settings, w)
    u = river.nearest(w)
    elapsed = flow.times[settled][-1] - flow.times[settled][0]
    clock = (river.time(u[-1]) - river.time(u[0])) / (settings.speed * elapsed)
    pace = _WAY / _DURATION
    return _Case(
        pace * frequency / np.minimum(alpha, rate),
        np.abs(displacement - mode).max(0),
        np.linalg.norm(sharp - closed, axis=-1).max(0) / scale.max(0),
        np.abs(clock - 1.0),
        moved.times,
        displacement,
        mode,
        u,
        np.linalg.norm(sharp, axis=-1),
        np.linalg.norm(closed, axis=-1),
    )


def _mode_matrix(settings: _Settings, curvature: np.ndarray) -> np.ndarray:
    """Rates of (n, m) of a sharp mode, shape ``(members, 2, 2)``."""
    matrix = np.empty((len(curvature), 2, 2))
    matrix[:, 0, 0] = -settings.eta * settings.beta_sharp * curvature
    matrix[:, 0, 1] = -settings.eta
    matrix[:, 1, 0], matrix[:, 1, 1] = curvature, -settings.alpha
    return matrix


def _sharp_rate(settings: _Settings, curvature: np.ndarray) -> np.ndarray:
    """Decay rate of the sharp mode."""
    return np.asarray(-np.linalg.eigvals(_mode_matrix(settings, curvature)).real.max(-1))


def _sharp_mode(settings: _Settings, curvature: np.ndarray, times: np.ndarray) -> np.ndarray:
    """n(t) of the mode from n = 1 at rest, shape ``(times, members)``."""
    values, vectors = np.linalg.eig(_mode_matrix(settings, curvature))
    weights = np.linalg.inv(vectors)[..., 0]
    return np.asarray((vectors[:, 0] * weights * np.exp(values * times[:, None, None])).sum(-1).real)


def _sharp_gradients(
    valley: RiverValley, settings: _Settings, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pg, its closed form, and the sum of its terms' norms, shapes ``(saves, members, p)``, the last without p."""
    g = valley.gradient(w)
    h = 1e-4 / np.linalg.norm(g, axis=-1, keepdims=True)
    turning = (valley.sharp_projection(w + h * g, g) - valley.sharp_projection(w - h * g, g)) / (2.0 * h)
    values, vectors = np.linalg.eigh(valley.hessian(w))
    basis, curvature = vectors[..., -valley.sharp_rank :], values[..., -valley.sharp_rank :]
    components = matvec(np.swapaxes(basis, -1, -2), turning)
    overshoot = (settings.eta / settings.alpha**2)[:, None]
    faster = settings.chi * (1.0 / settings.alpha + settings.beta_flat) / (1.0 / settings.alpha + settings.beta_sharp)
    closed = -faster[:, None] * matvec(basis, (1.0 / curvature - overshoot) * components)
    scale = faster * np.linalg.norm((1.0 / curvature + overshoot) * components, axis=-1)
    return valley.sharp_projection(w, g), closed, scale


def _pace(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pace along the river of the base method and of LITE at h = 1, relative to C11c's prediction, for three bends."""
    out: tuple[list[float], list[float]] = ([], [])
    for frequency in (0.35, 0.7, 1.4):
        valley = RiverValley([8.0], floor_curvatures=[0.05], floor_width=2.0, amplitudes=0.8, frequency=frequency)
        river = _river(valley)
        steepest = float(np.linalg.eigvalsh(valley.hessian(river.point(river.point.x))).max())
        eta = 0.1 * float(stable_limit(0.1, 0.0)) / steepest
        start = _UPSTREAM + rng.uniform(-0.5, 0.5, 4)
        for place, chi, beta in ((0, 1.0, 0.0), (1, 4.0, 5.0)):
            one = np.ones(len(start))
            settings = _Settings(
                alpha=0.1 * one, eta=eta * one, chi=chi * one, beta_sharp=0.0 * one, beta_flat=beta * one
            )
            out[place].extend(_steps_pace(river, settings, start))
    return np.array(out[0]), np.array(out[1])


def _steps_pace(river: _River, settings: _Settings, start: np.ndarray) -> list[float]:
    """τ gained along the river, after steps in which the momentum builds up, over χη(1/α + β₂) per step."""
    steps = max(20, round(float((river.time(_UPSTREAM + 1.5) - river.time(_UPSTREAM)) / settings.speed[0])))
    warm = 30
    flow: Trajectory = simulate(
        settings.system(river.valley), river.point(start), steps=warm + steps, progress=False
    ).checked()
    u = river.nearest(flow.w)
    inside = (u <= river.point.x[-1]).all(-1)
    last = int(np.flatnonzero(inside)[-1])
    first = min(warm, last - 1)
    pace = (river.time(u[last]) - river.time(u[first])) / (settings.speed * (last - first))
    return [float(value) for value in pace]


def _panels(case: _Case) -> list[Panel]:
    entry, tube = [], []
    for k in range(_MEMBERS):
        first = k == 0
        entry += [
            Curve("difference of flows" if first else "", case.entry_times, case.displacement[:, k]),
            Curve("sharp mode of C5" if first else "", case.entry_times, case.mode[:, k], "bound"),
        ]
        tube += [
            Curve("flow" if first else "", case.place[:, k], case.sharp_gradient[:, k]),
            Curve("closed form" if first else "", case.place[:, k], case.closed_form[:, k], "bound"),
        ]
    return [
        Panel("Entry: displacement across the river", "time t", "over its start", tuple(entry)),
        Panel("Tube: gradient across the river", "u along the river", "‖P∇f‖", tuple(tube), log="y"),
    ]
