"""LITE optimizers for PyTorch, which use a larger learning rate and Hessian damping in flat directions.

``MuonLITE(param_groups(model))`` is all that a training script needs; ``LITESchedule`` adds the published schedules of
χ and β_flat. Source: arXiv:2602.22681.
"""

from __future__ import annotations

from riemannian_ode.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
