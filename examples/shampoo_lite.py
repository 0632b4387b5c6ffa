"""A preconditioner of one's own: Shampoo with LITE (Gupta et al., arXiv:1802.09568; LITE: arXiv:2602.22681)."""

import torch

from discretizations.matrices.sharp_masks import subspace_complement
from lite import LITEOptimizer
from riemannian_ode.flow import lite_velocity, momentum_step, position_step


class ShampooLITE(LITEOptimizer):
    """F⁻¹X = L^(−1/4) X R^(−1/4) with L = Σ GGᵀ and R = Σ GᵀG; sharp are the top eigenvectors of R."""

    rule = "shampoo"

    def __init__(self, params, lr=0.03, *, momentum=0.9, ridge=1e-6, **settings):
        super().__init__(params, lr, momentum=momentum, ridge=ridge, **settings)

    def matrix_state(self, group, w):
        wide = torch.promote_types(w.dtype, torch.float32)  # sums and squares of float16 gradients overflow
        eyes = (torch.eye(n, dtype=wide, device=w.device).repeat(*w.shape[:-2], 1, 1) for n in w.shape[-2:])
        factors = zip(("left", "right"), (group["ridge"] * eye for eye in eyes), strict=True)
        return {"momentum": torch.zeros_like(w, dtype=wide), **dict(factors)}

    def matrix_update(self, group, w, g, state, *, step, numbers):
        w, g = (x.to(state["momentum"].dtype) for x in (w, g))
        m = momentum_step(state["momentum"], g, alpha=1.0 - group["momentum"])
        left, right = state["left"] + g @ g.mT, state["right"] + g.mT @ g
        powers = []
        for factor in (left, right):
            values, vectors = torch.linalg.eigh(factor)
            root = values.clamp(min=group["ridge"]) ** -0.25  # rounding may make small eigenvalues negative
            powers.append(vectors * root[..., None, :] @ vectors.mT)
        a, d = (powers[0] @ x @ powers[1] for x in (m, g))
        flat = subspace_complement(vectors[..., round((1.0 - group["sharp_fraction"]) * w.size(-1)) :])
        lite = {name: group[name] for name in ("chi", "beta_sharp", "beta_flat")}
        u = lite_velocity(a, d, flat=flat, decay=group["weight_decay"] * w, **lite)
        return position_step(w, u, eta=group["lr"]), {"momentum": m, "left": left, "right": right}
