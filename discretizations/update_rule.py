r"""LITE's update rule: the flow's semi-implicit Euler step at h = 1.

.. math::
    k_t \leftarrow g_t, \qquad m_t = (1-\alpha) m_{t-1} + c\,g_t, \qquad
    u_t = P F^{-1}(m_t + \beta_1 g_t) + \chi\, Q F^{-1}(m_t + \beta_2 g_t), \qquad
    w_{t+1} = w_t - \eta_t\left(u_t + \lambda(P + \chi Q)w_t\right)

:class:`UpdateRule` is the rule for a preconditioner with memory k. :func:`lite_step` is one step for a map F⁻¹ given as
a function; it accepts arrays and symbols. Flow, rule and optimizers of :mod:`lite` run the same functions of
:mod:`riemannian_ode.preconditioner`.

Source: arXiv:2602.22681, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from discretizations.preconditioners.hypergradient_ratio import FLAT_STEP, HypergradientRatio
from riemannian_ode.flow import Array, Projector, differ, lite_velocity, position_step
from riemannian_ode.preconditioner import Memory, Preconditioner
from riemannian_ode.stages import (
    Directed,
    TakenIn,
    direct,
    direction_on_sphere,
    initial_memory,
    move,
    shrinkage,
    take_in,
    with_cautious_decay,
)


class RuleState(NamedTuple):
    """Parameters and momentum, any shape, the preconditioner's memory, and the number of gradients seen.

    Momentum is in the preconditioner's frame, if there is one.
    """

    w: Array
    m: Array
    memory: Memory
    step: int


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    r"""The update rule of one optimizer at given coefficients, as pure functions of its state.

    Args:
        preconditioner: F⁻¹ and its memory.
        alpha: α = 1 − θ.
        gain: c, 1 for a summed momentum, 1 − θ for an average.
        nesterov: ν, gradient added to the momentum before the metric acts.
        beta_sharp: β₁, relative to F⁻¹m̃.
        beta_flat: β₂.
        chi: χ.
        chi_sharp: χ_s.
        decay: λ of the decoupled decay, which η multiplies.
        damps_inside: Whether β acts before a nonlinear map F⁻¹, see :func:`riemannian_ode.stages.direct`.
        corrects_momentum: Whether momentum is divided by its mass, 1 − θᵗ.
        is_cautious: Whether decay acts only on coordinates where direction and parameter have the same sign. Such decay
            ignores the mask. Source: arXiv:2510.12402.
        keeps_norm: Whether parameters keep their Frobenius norm R and steps have size ηR:
            :func:`riemannian_ode.stages.direction_on_sphere`.
        ratio: χ's factor that sets itself; ``None`` for a χ that is given.
        is_split: Whether sharp and flat directions differ; by default, whether χ or β do.

    Raises:
        ValueError: if they differ and the preconditioner has no sharp directions of its own.

    Source: arXiv:2602.22681, Algorithm 1.
    """

    preconditioner: Preconditioner
    alpha: Any
    gain: Any = 1.0
    nesterov: Any = 0.0
    beta_sharp: Any = 0.0
    beta_flat: Any = 0.0
    chi: Any = 1.0
    chi_sharp: Any = 1.0
    decay: Any = 0.0
    damps_inside: bool = False
    corrects_momentum: bool = False
    is_cautious: bool = False
    keeps_norm: bool = False
    ratio: HypergradientRatio | None = None
    is_split: bool | None = None

    def __post_init__(self) -> None:
        if self.splits and not self.preconditioner.has_split:
            raise self.preconditioner.no_split()

    @property
    def splits(self) -> bool:
        """Whether sharp and flat directions differ."""
        if self.is_split is not None:
            return self.is_split
        return self.ratio is not None or differ(self.chi, self.chi_sharp) or differ(self.beta_flat, self.beta_sharp)

    @property
    def is_damped(self) -> bool:
        """Whether the gradient itself enters the direction."""
        return differ(self.beta_sharp, 0.0) or differ(self.beta_flat, 0.0)

    @property
    def splits_decay(self) -> bool:
        """Whether weight decay differs between sharp and flat directions, so that the mask acts on w."""
        is_plain = self.is_cautious or self.keeps_norm or not self.preconditioner.masks_decay
        has_ratio = self.ratio is not None or differ(self.chi, self.chi_sharp)
        return not is_plain and self.splits and has_ratio and differ(self.decay, 0.0)

    def with_preconditioner(self, preconditioner: Preconditioner) -> UpdateRule:
        """The rule with another preconditioner."""
        return UpdateRule(**(vars(self) | {"preconditioner": preconditioner}))  # twice as fast as `replace`

    def initial_memory(self, w: Array, *, batch: int = 0) -> Memory:
        """Memory before the first gradient, including the momentum's mass.

        Args:
            w: Parameters, shape ``(*batch, *shape)``.
            batch: Number of batch axes.
        """
        memory = initial_memory(self.preconditioner, w, corrects_momentum=self.corrects_momentum, batch=batch)
        return memory if self.ratio is None else memory | self.ratio.initial(w, batch=batch)

    def start(self, w: Array, *, batch: int = 0) -> RuleState:
        """State before the first gradient.

        Args:
            w: Parameters, shape ``(*batch, *shape)``.
            batch: Number of batch axes.

        Raises:
            ValueError: for parameters that are not matrices if the preconditioner needs matrices.
        """
        self.preconditioner.check_shape(tuple(w.shape), batch=batch)
        return RuleState(w, w - w, self.initial_memory(w, batch=batch), 0)

    def step(self, state: RuleState, g: Array, *, eta: Any) -> RuleState:
        """One step of the rule.

        Args:
            state: State before.
            g: Gradient at ``state.w``.
            eta: η.
        """
        w, m, memory, step = state
        if step == 0 and self.preconditioner.skips_first:
            return RuleState(w, m, self.preconditioner.first(memory, g), 1)
        directed = self.direct(self.take_in(m, memory, g), w=w, step=step + (not self.preconditioner.skips_first))
        return RuleState(self.move(w, directed, eta=eta), directed.m, directed.memory, step + 1)

    def take_in(self, m: Array, memory: Memory, g: Array) -> TakenIn:
        """First stage: memory and momentum take in the gradient."""
        return take_in(self.preconditioner, m, memory, g, alpha=self.alpha, gain=self.gain, nesterov=self.nesterov)

    def direct(
        self,
        taken: TakenIn,
        *,
        w: Array | None = None,
        step: int = 0,
        numbers: Sequence[int] = (0,),
        is_phase: bool = False,
        velocity: Callable[..., Array] = lite_velocity,
    ) -> Directed:
        """Second stage: the direction for whole matrices, see :func:`riemannian_ode.stages.direct`."""
        chi = self.chi
        if self.ratio is not None:
            g = self.preconditioner.from_frame(taken.memory, taken.g)
            taken = taken._replace(memory=self.ratio.followed(taken.memory, g))
            chi = chi * self.ratio.of(taken.memory, taken.covector)
        directed = direct(
            self.preconditioner,
            taken,
            chi=chi,
            chi_sharp=self.chi_sharp,
            beta_sharp=self.beta_sharp,
            beta_flat=self.beta_flat,
            damps_inside=self.damps_inside,
            is_split=self.splits,
            shrinkage=None if w is None or self.is_cautious or self.keeps_norm else shrinkage(taken, w, self.decay),
            step=step,
            numbers=numbers,
            is_phase=is_phase,
            velocity=velocity,
            keeps_flat=None if self.ratio is None else FLAT_STEP,
        )
        if self.ratio is not None:
            kept = directed.memory[FLAT_STEP].to(taken.memory[FLAT_STEP].dtype)
            directed = directed._replace(memory=directed.memory | {FLAT_STEP: kept})
        return directed

    def move(self, w: Array, directed: Directed, *, eta: Any) -> Array:
        """Third stage: the new parameters, see :func:`riemannian_ode.stages.move`."""
        if self.keeps_norm:
            return position_step(w, direction_on_sphere(w, directed.u, eta=eta), eta=eta)
        if self.is_cautious:
            directed = with_cautious_decay(directed, w, self.decay)
        return move(w, directed, eta=eta)


class UpdateState(NamedTuple):
    """Parameters w_{k+1} and momentum m_k after a step, any shape."""

    w: Array
    m: Array


def lite_step(
    w: Array,
    m: Array,
    g: Array,
    *,
    eta: Any,
    alpha: Any,
    precondition: Callable[[Array], Array] = lambda x: x,
    split: Callable[[Array, Array], Projector] | None = None,
    chi: Any = 1.0,
    beta_sharp: Any = 0.0,
    beta_flat: Any = 0.0,
    nesterov: Any = 0.0,
    gain: Any = 1.0,
    decay: Array | None = None,
) -> UpdateState:
    """One step of LITE for a map F⁻¹ given as a function.

    Args:
        w: Parameters w_k, any shape.
        m: Momentum m_{k−1}, shape of ``w``.
        g: Gradient g_k at w_k, shape of ``w``.
        eta: Learning rate η_k.
        alpha: α = 1 − momentum coefficient.
        precondition: x ↦ F⁻¹x; the identity by default.
        split: (m̃, a) ↦ (x ↦ Qx), the flat projector for the covector m̃ and a = F⁻¹m̃; ``None`` is the base method.
        chi: χ, learning-rate ratio of flat directions.
        beta_sharp: β₁, relative to F⁻¹m.
        beta_flat: β₂, relative to F⁻¹m.
        nesterov: ν, gradient added to the momentum before preconditioning.
        gain: c, 1 for a summed momentum, α for an EMA.
        decay: c, decoupled weight decay added to the direction: λw where η multiplies it; ``None`` for no decay.

    Returns:
        w_{k+1} and m_k.

    Source: arXiv:2602.22681, Algorithm 1.
    """
    function = _Function(precondition, split)
    taken = take_in(function, m, {}, g, alpha=alpha, gain=gain, nesterov=nesterov)
    directed = direct(
        function,
        taken,
        chi=chi,
        beta_sharp=beta_sharp,
        beta_flat=beta_flat,
        is_split=split is not None,
        shrinkage=decay,
    )
    return UpdateState(move(w, directed, eta=eta), directed.m)


@dataclass(frozen=True)
class _Function(Preconditioner):
    """F⁻¹ and Q as functions, without memory."""

    name = "function"
    is_linear = False

    function: Callable[[Array], Array]
    split: Callable[[Array, Array], Projector] | None

    def raise_index(self, memory: Memory, covector: Array) -> Array:
        return self.function(covector)

    def flat(self, memory: Memory, covector: Array, raised: Array | None, *, h: Any = 1.0) -> tuple[Projector, Memory]:
        assert self.split is not None  # lite_step uses the flat part only with a split
        return self.split(covector, raised), memory
