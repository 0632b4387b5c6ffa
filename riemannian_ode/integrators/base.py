"""The integrator protocol: what a scheme declares, and how the driver gets the next state from it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from riemannian_ode.arrays import namespace, tracks
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array
from riemannian_ode.noise import GradientNoise, NoisyGradient
from riemannian_ode.registry import Registry

Stochastic: TypeAlias = Literal["ito", "stratonovich", "additive"]


class PhaseState(NamedTuple):
    """Position and momentum, each of shape ``(*ensemble, p)``.

    If the preconditioner has memory, ``m`` holds momentum and memory, shape ``(*ensemble, q)``.
    """

    w: Array
    m: Array


class IntegratorError(RuntimeError):
    """A scheme could not continue (step size underflow, a solver that did not converge); the message says where."""


class StepLimitError(IntegratorError):
    """An adaptive scheme used up its steps before the next output time: the flow is stiff for it."""


class Losses:
    """Members that a scheme gave up while it continued with the others.

    Args:
        ensemble: Shape of the ensemble.

    Attributes:
        causes: Why each member was given up, ``"step-limit"`` or ``"integrator-failed"``; empty for the others. Shape
            ``(*ensemble,)``.
        messages: The scheme's message about the first lost member, by cause.
    """

    def __init__(self, ensemble: tuple[int, ...]) -> None:
        self.causes = np.full(ensemble, "", dtype="U17")
        self.messages: dict[str, str] = {}

    def add(self, members: np.ndarray, cause: Literal["step-limit", "integrator-failed"], message: str) -> None:
        """Mark members as given up.

        Args:
            members: True for the members to give up, shape ``(*ensemble,)``.
            cause: Reason, a key of the messages.
            message: Text with the time.
        """
        self.causes[members & (self.causes == "")] = cause
        self.messages.setdefault(cause, message)


class MemberStates(Iterator[PhaseState]):
    """States of a scheme that gives up members one by one; a lost member is NaN from then on.

    Attributes:
        losses: The members lost, and why.
    """

    losses: Losses


class Integrator(ABC):
    """A numerical scheme for RISHD, with its declared properties.

    Attributes:
        name: Its key in :data:`riemannian_ode.INTEGRATORS`.
        order: Global order of convergence in the step size.
        structure: What the scheme preserves, e.g. ``{"optimizer"}`` (h = 1 is an update rule),
            ``{"conformal-symplectic"}``. Also ``"exact-linear"``, ``"variable-order"``, and ``"shared-steps"``: one
            step size for all members, so that an ensemble equals its members' runs only to the tolerance.
        implicit: Whether each step solves a system of equations.
        adaptive: Whether the scheme chooses its own steps; ``h`` is then the spacing of its output.
        differentiable: Whether torch's autograd can record its steps.
        handles_memory: Whether it integrates a preconditioner's memory along with position and momentum, i.e. it needs
            only the rates of the flow.
        stochastic: Calculus in which the scheme converges under multiplicative noise, or ``"additive"`` if it accepts
            additive noise only; ``None`` if it accepts no noise.
        strong_order: Mean-square order of paths under additive noise. Under multiplicative noise it is 1/2.
        weak_order: Order of expectations, under additive noise.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    structure: ClassVar[frozenset[str]] = frozenset()
    implicit: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    handles_memory: ClassVar[bool] = False
    stochastic: ClassVar[Stochastic | None] = None
    strong_order: ClassVar[float | None] = None
    weak_order: ClassVar[float | None] = None

    @abstractmethod
    def states(
        self, system: RISHD, state: PhaseState, *, t0: float, h: float, steps: int, first: int = 0
    ) -> Iterator[PhaseState]:
        """States at t0 + (first + 1)h, …, t0 + steps·h.

        Args:
            system: The dynamics.
            state: State at t0 + first·h.
            t0: Start time.
            h: Step size, in units of time.
            steps: Number of the last step.
            first: Steps already done (in a resumed run).

        Raises:
            IntegratorError: if the scheme cannot continue.
        """

    def partial_step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        """State at t + h, from a separate run that starts at t; used for places inside a step."""
        return next(iter(self.states(system, state, t0=t, h=h, steps=1)))


INTEGRATORS: Registry[type[Integrator]] = Registry(
    "integrator", "riemannian_ode.integrators", entry=lambda cls: (cls.name, cls)
)


class OneStepIntegrator(Integrator):
    """A scheme whose step depends on the current state only: implement :meth:`step` and declare the order.

    A scheme with ``stochastic`` set also takes steps with noise. By default such a step is :meth:`step` with the
    gradient g + σΔB/h throughout.

    Attributes:
        normals: Normal numbers per Brownian motion that a step with noise uses.
        noise_place: Place in the step, from 0 to 1, at which a time-dependent σ is evaluated.
    """

    normals: ClassVar[int] = 1
    noise_place: ClassVar[float] = 0.0

    @abstractmethod
    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        """State at t + h from the state at t."""

    def noisy_step(
        self, system: RISHD, t: float, state: PhaseState, h: float, *, noise: GradientNoise, normals: Array
    ) -> PhaseState:
        """State at t + h of the flow with noise.

        Args:
            system: The dynamics.
            t: Time before the step.
            state: State there.
            h: Step size.
            noise: σ.
            normals: Standard normal numbers, shape ``(*ensemble, normals · r)`` for r Brownian motions.
        """
        seen = NoisyGradient(system.objective, noise, t + self.noise_place * h, normals / math.sqrt(h))
        return self.step(replace(system, objective=seen), t, state, h)

    def states(
        self, system: RISHD, state: PhaseState, *, t0: float, h: float, steps: int, first: int = 0
    ) -> Iterator[PhaseState]:
        return self._repeated(lambda k, state: self.step(system, t0 + k * h, state, h), state, first, steps)

    def noisy_states(
        self,
        system: RISHD,
        state: PhaseState,
        noise: GradientNoise,
        *,
        t0: float,
        h: float,
        steps: int,
        first: int = 0,
    ) -> Iterator[PhaseState]:
        """States at t0 + (first + 1)h, …, t0 + steps·h of the flow with noise.

        Args:
            system: The dynamics.
            state: State at t0 + first·h.
            noise: σ; step k uses the normal numbers with index k.
            t0: Start time.
            h: Step size, in units of time.
            steps: Number of the last step.
            first: Steps already done (in a resumed run).
        """
        fixed = noise.for_arrays(state.w)
        count = self.normals * fixed.columns(t0, state.w)

        def one_step(k: int, state: PhaseState) -> PhaseState:
            normals = fixed.normals(k, state.w, count)
            return self.noisy_step(system, t0 + k * h, state, h, noise=fixed, normals=normals)

        return self._repeated(one_step, state, first, steps)

    def _repeated(
        self, step: Callable[[int, PhaseState], PhaseState], state: PhaseState, first: int, steps: int
    ) -> Iterator[PhaseState]:
        for k in range(first, steps):
            new = step(k, state)
            if is_tracked(new):
                new = without_lost_members(partial(step, k), state, new)
            elif is_tracked(state):
                raise ValueError(
                    f"integrator {self.name!r} returns a state cut off from autograd, but w0 or m0 requires gradients; "
                    "write its step with torch operations, or call simulate under torch.no_grad()."
                )
            state = new
            yield state


def is_tracked(state: PhaseState) -> bool:
    """Whether torch's autograd records what is computed from a state."""
    return tracks(state.w) or tracks(state.m)


def without_lost_members(step: Callable[[PhaseState], PhaseState], state: PhaseState, new: PhaseState) -> PhaseState:
    """The state after a step with lost members removed from the graph, where their zero gradients times ∞ would be NaN.

    Lost members repeat the step from a sound member's state and are NaN after it.
    """
    if math.isfinite(float(new.w.detach().sum() + new.m.detach().sum())):
        return new
    xp = namespace(new.w)
    sound = xp.isfinite(new.w).all(-1) & xp.isfinite(new.m).all(-1)
    if not bool(sound.any()) or bool(sound.all()):
        return new
    again = step(with_stand_ins(state, sound))
    return PhaseState(*(xp.where(sound[..., None], x, math.nan) for x in again))


def with_stand_ins(state: PhaseState, sound: Array) -> PhaseState:
    """The state with lost members replaced by a copy, without a graph, of the first sound member.

    Args:
        state: Tensors of shape ``(*ensemble, p)``.
        sound: True for sound members, shape ``(*ensemble,)``; at least one.
    """
    first = int(sound.reshape(-1).nonzero()[0])
    rows = (part.detach().reshape(-1, part.shape[-1])[first] for part in state)
    return PhaseState(*(namespace(x).where(sound[..., None], x, row) for x, row in zip(state, rows, strict=True)))


def states_with_jumps(
    scheme: Integrator, system: RISHD, state: PhaseState, *, t0: float, h: float, steps: int, first: int
) -> Iterator[PhaseState]:
    """States of a flow whose memory changes between steps (frames jump, masks adapt); every step restarts the scheme.

    Args:
        scheme: A scheme that handles memory.
        system: A flow with memory.
        state: State at t0 + first·h.
        t0: Start time.
        h: Step size.
        steps: Number of the last step.
        first: Steps already done.
    """
    memory = system.memory
    assert memory is not None
    for k in range(first, steps):
        t = t0 + k * h
        w, z = scheme.partial_step(system, t, state, h)
        z = memory.settle(system.coefficients(t + h), t, w, z, system.objective.gradient(w), h)
        state = PhaseState(w, z)
        yield state
