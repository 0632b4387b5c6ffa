"""An optimizer from a declaration: Shampoo with LITE (Gupta et al., arXiv:1802.09568; LITE: arXiv:2602.22681)."""

from discretizations import KroneckerRoot
from discretizations.update_rule import UpdateRule
from lite import LITEOptimizer


class ShampooLITE(LITEOptimizer):
    """F⁻¹X = L^(−1/4) X R^(−1/4) with L = Σ GGᵀ and R = Σ GᵀG; sharp are the top eigenvectors of R."""

    rule = "shampoo"

    def __init__(self, params, lr=0.03, *, momentum=0.9, ridge=1e-6, **settings):
        super().__init__(params, lr, momentum=momentum, ridge=ridge, **settings)

    def update_rule(self, group, shape):
        flow = {name: group[name] for name in ("chi", "chi_sharp", "beta_sharp", "beta_flat")}
        return UpdateRule(
            preconditioner=KroneckerRoot(beta2=None, eps=group["ridge"], sharp_fraction=group["sharp_fraction"]),
            alpha=1.0 - group["momentum"],
            decay=group["weight_decay"],
            **flow,
        )
