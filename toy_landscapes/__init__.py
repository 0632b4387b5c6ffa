"""Landscapes for testing theoretical bounds, from quadratics to a small transformer.

Arrays are numpy or torch with shape ``(*ensemble, p)``: the last axis holds the coordinates. Names are imported on
first use; only :class:`TorchLandscape` and :class:`TinyTransformer` load torch.
"""

from __future__ import annotations

from riemannian_ode.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
