"""From flow to update rule: preconditioners, LITE's rule, known optimizers, other schemes, stability and proofs.

Subpackages: ``preconditioners`` (one file each), ``matrices`` (kernels on batches of matrices), ``proofs`` (SymPy).

Names are imported on first use: the parts that ``lite`` needs load only torch, ``stability`` loads numpy, and the
correspondence table SymPy.
"""

from __future__ import annotations

from riemannian_ode.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
