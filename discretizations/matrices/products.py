"""Matrix products and orthonormal bases by the fastest float32 kernels of the device.

On AMD processors with AVX-512, torch's float32 CPU products run in MKL at half of the machine's peak rate, and LAPACK's
QR at a fifth. oneDNN's products, which torch uses for the linear layers of compiled models, reach the peak. Both
multiply and add in float32 and differ only by rounding. Elsewhere the functions are torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SMALLEST = 2**22  # multiplications per product from which oneDNN's overhead pays off (measured)
_PANEL = 128  # columns per panel of Householder reflections (measured best of 32 … 256)
_SMALLEST_QR = 384  # columns from which panels pay off (measured)


def _mkl_is_slow() -> bool:
    """Whether MKL leaves this processor's wide vector units unused and oneDNN is available to use them."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return (
        "AMD" in capabilities.get("cpu_name", "")
        and bool(capabilities.get("avx512_f"))
        and bool(torch._C.has_mkl)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


_MKL_IS_SLOW = _mkl_is_slow()  # known on import, so that torch.compile sees a constant


def product(a: Tensor, b: Tensor) -> Tensor:
    """AB.

    Args:
        a: A, shape ``(*batch, m, k)``, at most one batch dimension.
        b: B, shape ``(*batch, k, n)``.

    Returns:
        AB, shape ``(*batch, m, n)``, possibly stored in column order.
    """
    is_small = not torch.compiler.is_compiling() and a.size(-2) * a.size(-1) * b.size(-1) < _SMALLEST
    if is_small or not _prefers_onednn(a, b):
        return a @ b
    if a.ndim == 3:
        return torch.stack([_onednn_product(x, y) for x, y in zip(a, b, strict=True)])
    return _onednn_product(a, b)


def orthonormal_columns(a: Tensor) -> Tensor:
    r"""Q of A = QR by Householder's reflections, orthogonal even if A is singular.

    With oneDNN, reflections are gathered in panels, :math:`H_1\cdots H_k = I - VTV^\top`, and applied as products.

    Args:
        a: A, shape ``(*batch, n, n)``.

    Source: Schreiber and Van Loan, SIAM J. Sci. Stat. Comput. 10 (1989), 53–57; T is the inverse of
    :math:`\mathrm{striu}(V^\top V) + \mathrm{diag}(1/\tau)`, Joffrain et al., ACM TOMS 32 (2006), 169–179.
    """
    n = a.size(-1)
    if not (_prefers_onednn(a, a) and a.ndim == 2 and n >= _SMALLEST_QR):
        q: Tensor = torch.linalg.qr(a)[0]
        return q
    panels: list[tuple[Tensor, Tensor]] = []
    for start in range(0, n, _PANEL):
        k = min(_PANEL, n - start)
        v, t = _reflections(a[:, :k])
        panels.append((v, t))
        if start + k < n:  # R is not kept: only the part below and to the right of the panel is needed further on
            a = (a[:, k:] - product(v, t.mT @ product(v.mT, a)[:, k:]))[k:]
    # Go back through the panels; each acts on [[1, 0], [0, Q so far]].
    q = a.new_zeros(0, 0)
    for v, t in reversed(panels):
        k = v.size(1)
        image = torch.cat([v[:k].mT, product(v[k:].mT, q)], dim=1)
        grown = product(v, -(t @ image))
        grown[:k, :k].diagonal().add_(1.0)
        grown[k:, k:].add_(q)
        q = grown
    return q


def _reflections(panel: Tensor) -> tuple[Tensor, Tensor]:
    """V and T of a panel's QR."""
    packed, tau = torch.geqrf(panel)
    v = packed.tril(-1)
    v.diagonal().fill_(1.0)
    v = v * (tau != 0)  # a column that needs no reflection
    inverse = (v.mT @ v).triu(1) + torch.diag(torch.where(tau == 0, 1.0, 1.0 / tau))
    identity = torch.eye(tau.numel(), dtype=v.dtype, device=v.device)
    return v, torch.linalg.solve_triangular(inverse, identity, upper=True)


def _onednn_product(a: Tensor, b: Tensor) -> Tensor:
    if _is_transposed(a) and a.numel() > 2 * b.numel():  # either a is copied to row order, or b and the result are
        return _onednn_product(b.mT, a.mT).mT
    if not (b.is_contiguous() or _is_transposed(b)):
        b = b.contiguous()
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.mT, None, "none", [], "")
    return result


def _is_transposed(x: Tensor) -> bool:
    return x.mT.is_contiguous() and not x.is_contiguous()


def _prefers_onednn(a: Tensor, b: Tensor) -> bool:
    return (
        _MKL_IS_SLOW
        and a.dtype == b.dtype == torch.float32
        and a.device.type == b.device.type == "cpu"
        and a.ndim == b.ndim <= 3
        and not (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad))
        and not torch.compiler.is_compiling()  # the compiler chooses its kernels itself
    )
