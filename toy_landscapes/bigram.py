r"""A bigram language model, a landscape in which a river valley emerges from data.

The expected next-token cross-entropy of a table of logits. Each context's curvature follows its prediction's
uncertainty: contexts with an uncertain next token stay sharp, contexts with a certain one become flat as they are
learned.

From Wen et al., arXiv:2410.05192: bigram data whose contexts differ in the uncertainty of the next token, and the
interpretation that curvature follows uncertainty near the optimum, with certain contexts as the river and uncertain
ones as the hills. Ours: the expected loss of a free logit table, the family with two kinds of contexts, the closed
forms, and the river's formula.
"""

from __future__ import annotations

import numpy as np

from riemannian_ode.arrays import inner, like, namespace
from riemannian_ode.flow import Array
from toy_landscapes.arguments import checked_sharp_rank, finite_array
from toy_landscapes.landscape import Landscape
from toy_landscapes.layout import Layout


class BigramModel(Landscape):
    r""":math:`f(\theta) = -\sum_c\pi_c\sum_jq_{cj}\log p_{cj}`, with :math:`p_c = \mathrm{softmax}(\theta_c)`.

    w holds θ row by row, a row of V logits for each of C contexts; ``matrix_shape`` is (C, V) and p = CV.

    .. math::
        \nabla_{\theta_c}f = \pi_c(p_c - q_c), \qquad
        \nabla^2f = \mathrm{blockdiag}_c\ \pi_c\left(\mathrm{diag}(p_c) - p_cp_c^\top\right)

    f is convex. Its minimum :math:`f_* = \sum_c\pi_cH(q_c)`, the conditional entropy, is attained at
    :math:`\theta_c = \log q_c` up to a constant per row (C null directions, everywhere).

    Args:
        next_token: q, rows of positive probabilities, shape ``(C, V)``.
        context: π, positive probabilities, shape ``(C,)``; uniform by default.
        sharp_contexts: Contexts whose V − 1 directions each count as sharp; by default those with an entropy above the
            midpoint between the smallest and the largest.

    Raises:
        ValueError: for rows that are not positive probabilities, a single token, or unknown contexts.

    Source: see the module docstring.
    """

    def __init__(
        self, next_token: Array, *, context: Array | None = None, sharp_contexts: tuple[int, ...] | None = None
    ) -> None:
        self.next_token = _probabilities("next_token", finite_array("next_token", next_token, (None, None)))
        self.matrix_shape: tuple[int, int] = (self.next_token.shape[0], self.next_token.shape[1])
        count, vocabulary = self.matrix_shape
        if vocabulary < 2:
            raise ValueError(f"next_token has shape {self.matrix_shape}; give at least two tokens, one per column.")
        weights = np.full(count, 1.0 / count) if context is None else finite_array("context", context, (count,))
        self.context = _probabilities("context", weights)
        self.entropies = -(self.next_token * np.log(self.next_token)).sum(-1)
        if sharp_contexts is None:
            middle = 0.5 * (self.entropies.min() + self.entropies.max())
            sharp_contexts = tuple(int(c) for c in np.flatnonzero(self.entropies > middle))
        if len(set(sharp_contexts)) != len(sharp_contexts) or not set(sharp_contexts) <= set(range(count)):
            raise ValueError(f"sharp_contexts = {sharp_contexts!r} must be different contexts of 0 … {count - 1}.")
        self.sharp_contexts = sharp_contexts
        self.layout = Layout({"logits": self.matrix_shape})
        self.dimension = self.layout.dimension
        self.sharp_rank = checked_sharp_rank(len(sharp_contexts) * (vocabulary - 1), self.dimension)
        self.minimum = float(self.context @ self.entropies)
        logits = np.log(self.next_token)
        #: The minimum whose rows sum to zero, shape ``(p,)``.
        self.minimizer = (logits - logits.mean(-1, keepdims=True)).reshape(-1)

    @classmethod
    def two_kinds(cls, *, certain: int, uncertain: int, vocabulary: int, slip: float = 0.01) -> BigramModel:
        """A model with two kinds of equally frequent contexts: first the certain ones, then the uncertain ones.

        A certain context c is followed by token c mod V with probability 1 − slip, and by each other token with equal
        probability; after an uncertain context all tokens are equally likely. At the minimum a certain context has the
        curvature π·slip/(V−1), V − 2 times, and π·slip(1−slip)V/(V−1) once; an uncertain context has π/V, V − 1 times.

        Args:
            certain: Number of certain contexts.
            uncertain: Number of uncertain contexts.
            vocabulary: V.
            slip: Probability in (0, 1/2) of the other tokens; at 0 the minimum would lie at infinity.

        Raises:
            ValueError: for numbers out of range.
        """
        if certain < 0 or uncertain < 0 or certain + uncertain < 1 or vocabulary < 2:
            raise ValueError(
                f"certain = {certain!r}, uncertain = {uncertain!r}, vocabulary = {vocabulary!r}: give at least one "
                "context and two tokens."
            )
        if not 0 < slip < 0.5:
            raise ValueError(f"slip = {slip!r} must lie between 0 and 1/2, both excluded.")
        rows = np.full((certain + uncertain, vocabulary), 1.0 / vocabulary)
        rows[:certain] = slip / (vocabulary - 1)
        rows[np.arange(certain), np.arange(certain) % vocabulary] = 1.0 - slip
        return cls(rows, sharp_contexts=tuple(range(certain, certain + uncertain)))

    def value(self, w: Array) -> Array:
        weighted = like(self.context[:, None] * self.next_token, w)
        return -(weighted * self._log_probabilities(w)).sum((-2, -1))

    def gradient(self, w: Array) -> Array:
        errors = self.probabilities(w) - like(self.next_token, w)
        return (like(self.context[:, None], w) * errors).reshape(w.shape)

    def hvp(self, w: Array, v: Array) -> Array:
        p, rows = self.probabilities(w), self.layout.unpack(v)["logits"]
        centered = rows - inner(p, rows)[..., None]
        return (like(self.context[:, None], w) * p * centered).reshape(v.shape)

    def hessian(self, w: Array) -> Array:
        same = like(np.eye(self.matrix_shape[0]), w)[:, None, :, None]  # c = c′ in the entry (c, i; c′, j)
        blocks = self.context_hessians(w)[..., :, :, None, :] * same
        return blocks.reshape(*w.shape, self.dimension)

    def probabilities(self, w: Array) -> Array:
        """p = softmax of each row, shape ``(*ensemble, C, V)``."""
        return namespace(w).exp(self._log_probabilities(w))

    def context_hessians(self, w: Array) -> Array:
        """π_c(diag p_c − p_c p_cᵀ), the blocks of the Hessian, shape ``(*ensemble, C, V, V)``."""
        p = self.probabilities(w)
        diagonal = p[..., :, None] * like(np.eye(self.matrix_shape[1]), w)
        return like(self.context[:, None, None], w) * (diagonal - p[..., :, None] * p[..., None, :])

    def context_curvature(self, w: Array) -> Array:
        r"""Mean curvature of each context over its V − 1 directions, :math:`\pi_c(1 - \lVert p_c\rVert^2)/(V - 1)`.

        Returns:
            Shape ``(*ensemble, C)``: equal for all contexts at θ = 0; at p_c = q_c small for a certain context.
        """
        p = self.probabilities(w)
        return like(self.context, w) * (1.0 - inner(p, p)) / (self.matrix_shape[1] - 1)

    def emergence(self, w: Array) -> Array:
        """Smallest curvature of the sharp contexts over the largest of the others, shape ``(*ensemble,)``.

        If it exceeds 1, the top-d_s eigenspace of the Hessian is exactly that of the sharp contexts, and :meth:`river`
        gives the river. At θ = 0 it is 1 for equally frequent contexts: the valley emerges as certain contexts are
        learned.

        Raises:
            ValueError: if all contexts are of one kind.
        """
        values = namespace(w).linalg.eigvalsh(self.context_hessians(w))  # ascending; the first is the null direction
        flat = [c for c in range(self.matrix_shape[0]) if c not in self.sharp_contexts]
        if not flat or not self.sharp_contexts:
            raise ValueError("emergence compares sharp contexts with others; this model has only one kind.")
        return values[..., list(self.sharp_contexts), 1].min(-1) / values[..., flat, -1].max(-1)

    def river(self, w: Array) -> Array:
        """The point w with exact predictions p_c = q_c in the sharp contexts and all else unchanged, shape of ``w``.

        If :meth:`emergence` exceeds 1, it lies on the river: the gradient vanishes in the sharp contexts' rows.
        """
        theta = self.layout.unpack(w)["logits"]
        target = self.minimizer.reshape(self.matrix_shape)
        sharp = np.isin(np.arange(self.matrix_shape[0]), self.sharp_contexts)[:, None].astype(np.float64)
        mean = theta.sum(-1)[..., None] / self.matrix_shape[1]
        return (theta + like(sharp, w) * (like(target, w) + mean - theta)).reshape(w.shape)

    def _log_probabilities(self, w: Array) -> Array:
        theta = self.layout.unpack(w)["logits"]
        shifted = theta - namespace(w).max(theta, axis=-1, keepdims=True)  # exp of large logits would overflow
        return shifted - namespace(w).log(namespace(w).exp(shifted).sum(-1))[..., None]


def _probabilities(name: str, values: np.ndarray) -> np.ndarray:
    if values.min() <= 0 or not np.allclose(values.sum(-1), 1.0, atol=1e-8):
        raise ValueError(
            f"{name} has smallest entry {values.min():g} and sums {np.round(values.sum(-1), 6)}; give positive "
            "probabilities that sum to 1 (a zero would put the minimum at infinity)."
        )
    normalized: np.ndarray = values / values.sum(-1, keepdims=True)
    return normalized
