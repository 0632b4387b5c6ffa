"""A preconditioner and its optimizer: Adafactor's factored second moment (arXiv:1804.04235), with LITE."""

from dataclasses import dataclass

import torch

from discretizations import CoordinateMask, UpdateRule
from lite import LITEOptimizer
from riemannian_ode.preconditioner import Preconditioner, spread


@dataclass(frozen=True)
class FactoredMoment(Preconditioner):
    """F = diag(√v) with v = r cᵀ/mean(r), r and c the averages of the row and column means of g²; large v is sharp."""

    name, needs_matrices = "factored-moment", True
    beta2: float
    mask: CoordinateMask

    def initial(self, w, *, batch=0):
        zero = torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32))
        averages = {"rows": zero.sum(-1), "columns": zero.sum(-2), "mass": self.initial_mass(w, batch=batch)}
        return averages | self.mask.initial(w, batch=batch)

    def rates(self):
        return dict.fromkeys(("rows", "columns", "mass"), 1 - self.beta2)

    def averaged(self, memory, g, frame_g):
        square = g**2 + 1e-30  # ε₁ as published
        return {"rows": square.mean(-1), "columns": square.mean(-2), "mass": torch.ones_like(memory["mass"])}

    def second_moment(self, memory):
        rows, columns = memory["rows"], memory["columns"] / spread(memory["mass"], memory["columns"])
        return (rows / rows.mean(-1, keepdim=True))[..., None] * columns[..., None, :]

    def raise_index(self, memory, covector):
        return covector / self.second_moment(memory).sqrt()

    def flat(self, memory, covector, raised, *, h=1.0):
        return self.mask.flat(memory, self.second_moment(memory), h=h)


class FactoredLITE(LITEOptimizer):
    """Adam's averages with this metric; β₁ and β₂ in the theory's units (for a summed momentum)."""

    rule = "factored-moment"

    def __init__(self, params, lr=0.01, *, betas=(0.9, 0.99), **settings):
        super().__init__(params, lr, betas=betas, **settings)

    def update_rule(self, group, shape):
        gain, mask = 1 - group["betas"][0], CoordinateMask(sharp_fraction=group["sharp_fraction"])
        flow = {name: gain * group[name] for name in ("beta_sharp", "beta_flat")} | {"chi": group["chi"]}
        metric = FactoredMoment(group["betas"][1], mask)
        decay = group["weight_decay"]
        return UpdateRule(preconditioner=metric, alpha=gain, gain=gain, decay=decay, corrects_momentum=True, **flow)
