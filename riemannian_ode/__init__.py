"""Riemannian inertial dynamics with Hessian damping (RISHD): geometry, dynamics and integrators.

Index conventions, everywhere in this package: ``w`` and velocities carry an upper index (tangent vectors), gradients
and momenta a lower one (covectors); the metric ``F`` is ``F_ij`` and maps vectors to covectors. The last axis of an
array is the coordinate axis, all axes before it are the ensemble.

Attributes are imported on first use, so that ``riemannian_ode.flow`` loads without SciPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from riemannian_ode.coefficients import TimeDependent as TimeDependent
    from riemannian_ode.compiled import CompiledSteps as CompiledSteps
    from riemannian_ode.compiled import CompileError as CompileError
    from riemannian_ode.dynamics import RISHD as RISHD
    from riemannian_ode.dynamics import Objective as Objective
    from riemannian_ode.energy import dissipation as dissipation
    from riemannian_ode.energy import energy_identity_residual as energy_identity_residual
    from riemannian_ode.energy import total_energy as total_energy
    from riemannian_ode.events import Event as Event
    from riemannian_ode.geometry import geodesic_system as geodesic_system
    from riemannian_ode.geometry import riemannian_gradient as riemannian_gradient
    from riemannian_ode.geometry import riemannian_hvp as riemannian_hvp
    from riemannian_ode.integrators import INTEGRATORS as INTEGRATORS
    from riemannian_ode.integrators import Integrator as Integrator
    from riemannian_ode.integrators import OneStepIntegrator as OneStepIntegrator
    from riemannian_ode.integrators import PhaseState as PhaseState
    from riemannian_ode.integrators import integrator as integrator
    from riemannian_ode.metric import ConstantMetric as ConstantMetric
    from riemannian_ode.metric import DiagonalMetric as DiagonalMetric
    from riemannian_ode.metric import Euclidean as Euclidean
    from riemannian_ode.metric import Metric as Metric
    from riemannian_ode.metric import PreconditionerMetric as PreconditionerMetric
    from riemannian_ode.simulation import simulate as simulate
    from riemannian_ode.split import ConstantSplit as ConstantSplit
    from riemannian_ode.split import MetricSplit as MetricSplit
    from riemannian_ode.split import PhasePoint as PhasePoint
    from riemannian_ode.structured_metric import KroneckerMetric as KroneckerMetric
    from riemannian_ode.structured_metric import LowRankPlusDiagonalMetric as LowRankPlusDiagonalMetric
    from riemannian_ode.trajectory import EventRecord as EventRecord
    from riemannian_ode.trajectory import Trajectory as Trajectory
    from riemannian_ode.varying_metric import GramRootMetric as GramRootMetric
    from riemannian_ode.varying_metric import StateDependentMetric as StateDependentMetric
    from riemannian_ode.varying_metric import VaryingDiagonalMetric as VaryingDiagonalMetric
    from riemannian_ode.varying_metric import VaryingMetric as VaryingMetric

_HOME = {
    "RISHD": "dynamics",
    "Objective": "dynamics",
    "PhasePoint": "split",
    "TimeDependent": "coefficients",
    "CompileError": "compiled",
    "CompiledSteps": "compiled",
    "dissipation": "energy",
    "total_energy": "energy",
    "energy_identity_residual": "energy",
    "INTEGRATORS": "integrators",
    "Integrator": "integrators",
    "OneStepIntegrator": "integrators",
    "PhaseState": "integrators",
    "integrator": "integrators",
    "ConstantMetric": "metric",
    "DiagonalMetric": "metric",
    "Euclidean": "metric",
    "Metric": "metric",
    "PreconditionerMetric": "metric",
    "Event": "events",
    "EventRecord": "trajectory",
    "geodesic_system": "geometry",
    "riemannian_gradient": "geometry",
    "riemannian_hvp": "geometry",
    "KroneckerMetric": "structured_metric",
    "LowRankPlusDiagonalMetric": "structured_metric",
    "GramRootMetric": "varying_metric",
    "StateDependentMetric": "varying_metric",
    "VaryingDiagonalMetric": "varying_metric",
    "VaryingMetric": "varying_metric",
    "simulate": "simulation",
    "ConstantSplit": "split",
    "MetricSplit": "split",
    "Trajectory": "trajectory",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'riemannian_ode' has no attribute {name!r}")
    value = getattr(import_module(f"riemannian_ode.{_HOME[name]}"), name)
    globals()[name] = value
    return value
