"""Claim C9b: the tightness of the descent certificates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from discretizations.certificate import circle_gradient, cycle_curvature, lookahead_certificate
from discretizations.proofs import lyapunov
from discretizations.stability import descent_limit, stable_limit
from discretizations.update_rule import lite_step
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Attained, Bound, Curve, Evidence, Identity, Measurement, Panel, Proof
from rishd.claims.trial import Box, Inequality, Parameters, Range, try_bounds

_BOX: Box = {
    "alpha": Range(0.01, 0.99, log=True),
    "beta": Range(-0.45, 6.0),
    "share": Range(1e-4, 1e4, log=True),  # values of ω = ℓ/L
}


@dataclass(frozen=True)
class PolygonDistance:
    r"""A two-dimensional objective per member on which the update rule cycles, with curvature bounds L and ℓ.

    .. math:: f(w) = \tfrac{L+\ell}{2}\,\mathrm{dist}^2(w, Y) - \tfrac{\ell}{2}\|w\|^2, \qquad
        -\ell \preceq \nabla^2 f \preceq L

    Y is the regular polygon whose corner k is ``corner``·e^{2πik/K}; points are complex numbers.

    Args:
        curvature: L, shape ``(n,)``.
        negative: ℓ, shape ``(n,)``.
        corner: One corner, complex, shape ``(n,)``.
        corners: K, shape ``(n,)``.
    """

    curvature: np.ndarray
    negative: np.ndarray
    corner: np.ndarray
    corners: np.ndarray

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """∇f(w), complex, shape ``(n,)``."""
        return np.asarray((self.curvature + self.negative) * (w - self.nearest(w)) - self.negative * w)

    def nearest(self, w: np.ndarray) -> np.ndarray:
        """The closest point of the polygon."""
        # The edge that w faces is perpendicular to the direction ``middle`` from the polygon's center.
        step = 2.0 * np.pi / self.corners
        sector = np.floor(np.angle(w / self.corner) / step)
        middle = self.corner / np.abs(self.corner) * np.exp(1j * (sector + 0.5) * step)
        inradius = np.abs(self.corner) * np.cos(0.5 * step)
        half_edge = np.abs(self.corner) * np.sin(0.5 * step)
        local = w / middle
        on_edge = inradius + 1j * np.clip(local.imag, -half_edge, half_edge)
        return np.asarray(np.where(local.real <= inradius, w, on_edge * middle))


@register_claim("C9b", "sharpness of the certificate")
def certificate_sharpness(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Objectives on which the update rule cycles forever show how tight the certificate is.

    Statement: for every :math:`\alpha`, :math:`\beta` and :math:`\omega = \ell/L` there are objectives with
    :math:`-\ell \preceq \nabla^2f \preceq L` on which the update rule has a periodic orbit from a certain
    :math:`\kappa` on. Without a lower bound on the curvature (:math:`\omega \to \infty`) this holds for every
    :math:`\kappa > \frac{2\alpha}{1 + \alpha\beta}`, so the certificate without lookahead cannot be improved. The
    certificate with lookahead lies below these :math:`\kappa` and below the linear limit of C6.

    Hypotheses: :math:`0 < \alpha < 1`, :math:`\beta > -\frac{1}{2 - \alpha}`.

    Proof: docs/theory, claim C9; symbolic: the orbit, and the limit of its threshold for many corners.

    Check: the update rule, applied to the distance to a polygon, maps a point of the orbit to the next one; slopes of
    the gradient between random points respect L and ℓ. Certificates against cycles and linear limit for random α, β, ω.

    Sharpness: without a lower bound on the curvature, cycles begin where the certificate ends, for every :math:`\alpha`
    and :math:`\beta`. With a lower bound, the gap is measured.

    Finding: heavy ball (:math:`\beta = 0`) cycles far below its linear limit even on convex functions; the limiting
    factor is negative curvature, not the certificate.

    Source: derived in docs/theory; the polygon is that of Goujaud, Taylor and Dieuleveut, arXiv:2307.11291.
    """
    alpha, beta = rng.uniform(0.02, 0.98, instances), rng.uniform(-0.45, 4.0, instances)
    share = np.where(rng.random(instances) < 0.2, 0.0, np.exp(rng.uniform(np.log(1e-3), np.log(1e3), instances)))
    orbit, slopes = _orbits(alpha, beta, share, rng)
    ceiling = np.minimum(cycle_curvature(alpha, beta, share).kappa, stable_limit(alpha, beta))
    return [
        Proof("the orbit, and where it begins", lyapunov.circle_threshold()),
        Identity(
            "the update rule's step against the next point of the circle", orbit, 1e-9, "rounding of ĝ at many corners"
        ),
        slopes,
        *try_bounds(_certificates, _BOX, rng, instances),
        Attained(
            "certified κ over the cycle's, curvature without lower bound",
            np.abs(descent_limit(alpha, beta) / cycle_curvature(alpha, beta, np.inf).kappa - 1.0),
            0.012,
            "polygons of at most 2000 corners",
        ),
        Measurement(
            "smallest κ known to fail (cycle or C6) over the certified one, ω random",
            ceiling / lookahead_certificate(alpha, beta, share).limit,
        ),
        Measurement(
            "the same without lookahead: the cost of unknown curvature",
            ceiling / descent_limit(alpha, beta),
        ),
        sharpness_panel(),
    ]


def _certificates(parameters: Parameters) -> dict[str, Inequality]:
    alpha, beta, share = (parameters[name] for name in ("alpha", "beta", "share"))
    known = lookahead_certificate(alpha, beta, share).limit
    return {
        "certified κ over the cycle's": Inequality(known, cycle_curvature(alpha, beta, share).kappa),
        "certified κ over the linear limit (C6)": Inequality(known, stable_limit(alpha, beta)),
        "κ without lookahead over the cycle's, ω = ∞": Inequality(
            descent_limit(alpha, beta), cycle_curvature(alpha, beta, np.inf + 0.0 * share).kappa
        ),
    }


def _orbits(
    alpha: np.ndarray, beta: np.ndarray, share: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, Bound]:
    """Residual of one step on the circle, and the largest slope of the gradient over its bounds."""
    cycle = cycle_curvature(alpha, beta, share)
    kappa, turn = 1.0001 * cycle.kappa, np.exp(2j * np.pi / cycle.corners)
    gradient = circle_gradient(alpha, beta, 2.0 * np.pi / cycle.corners)  # ηa = 1, so that κ = L and κ₋ = ℓ
    negative = share * kappa
    w = np.exp(2j * np.pi * rng.integers(0, cycle.corners) / cycle.corners)
    corner = w * (1.0 - (gradient + negative) / (kappa + negative))
    objective = PolygonDistance(kappa, negative, corner, cycle.corners)
    # On the circle w_{k+1} − w_k = −(m_k + βg_k), which gives m_{k−1} from the previous step.
    m = w * (1.0 - turn) / turn - beta * gradient * w / turn
    new_w, new_m = lite_step(w, m, objective.gradient(w), eta=1.0, alpha=alpha, nesterov=beta)
    residual = np.maximum(np.abs(new_w - w * turn), np.abs(new_m - m * turn) / np.maximum(np.abs(m), 1.0))

    x, y = (2.0 * (rng.normal(size=len(w)) + 1j * rng.normal(size=len(w))) for _ in range(2))
    difference = objective.gradient(x) - objective.gradient(y)
    slope = (difference * np.conj(x - y)).real / np.abs(x - y) ** 2
    strain = np.maximum(slope / kappa, np.where(negative > 0, -slope / np.where(negative > 0, negative, 1.0), -slope))
    return residual, Bound("slope of the gradient between random points over L or ℓ", strain, np.ones_like(strain))


def limits_panel(beta: float) -> Panel:
    """Plot of every limit on κ against α."""
    alpha = np.geomspace(0.01, 1.0, 60)
    curves = (
        Curve("linear limit (C6)", alpha, stable_limit(alpha, beta)),
        Curve("certified, convex", alpha, lookahead_certificate(alpha, beta).limit),
        Curve("certified, −0.1 L ≼ ∇²f ≼ L", alpha, lookahead_certificate(alpha, beta, 0.1).limit),
        Curve("certified, −L ≼ ∇²f ≼ L", alpha, lookahead_certificate(alpha, beta, 1.0).limit),
        Curve("certified, ∇²f ≼ L", alpha, descent_limit(alpha, beta)),
    )
    title = f"How large a step is certified, β = {beta:g}"
    return Panel(title, "α = 1 − momentum", "largest κ = ηλ_max(A)L", curves, log="xy")


def sharpness_panel() -> Panel:
    """Plot of certificate and cycles against the share of negative curvature at α = 0.05."""
    share, curves = np.geomspace(1e-3, 1e2, 81), []
    for beta in (0.0, 1.0):
        curves += [
            Curve(f"certified, β = {beta:g}", share, lookahead_certificate(0.05, beta, share).limit),
            Curve(f"a cycle is known, β = {beta:g}", share, cycle_curvature(0.05, beta, share).kappa, "bound"),
            Curve(f"linear limit (C6), β = {beta:g}", share, stable_limit(0.05, beta) + 0.0 * share, "reference"),
        ]
    return Panel(
        "Caution that is needed, α = 0.05", "ω = ℓ/L, negative over positive curvature", "κ", tuple(curves), log="xy"
    )
