"""A tiny transformer as a landscape: the smallest model that trains like a language model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from riemannian_ode.arrays import to_numpy
from riemannian_ode.flow import Array
from toy_landscapes.bigram import BigramModel
from toy_landscapes.finite_sum import FiniteSum
from toy_landscapes.layout import Layout
from toy_landscapes.torch_landscape import TorchLandscape

_EPSILON = 1e-6  # added to the mean square in RMSNorm, as in the first Llama models


class TinyTransformer(TorchLandscape, FiniteSum):
    r"""Mean next-token cross-entropy of a one-block transformer on a fixed corpus, in nats.

    The model is pre-norm: embedding + position, one causal attention head, an MLP with tanh-GELU, each after an
    RMSNorm and added to the stream, a final RMSNorm and an untied head; no biases. w holds all parameters in the
    order of ``layout``, whose blocks have the names and shapes of ``module.named_parameters()``: use
    ``layout["mlp.up.weight"]`` for a layer's slice, ``layout.mask(...)`` for a layer's mask. The dtype is that of w;
    use float64 for theory.

    Each of the N sequences is one sample of the finite sum.

    Args:
        tokens: Corpus, integers of shape ``(N, T + 1)``: T inputs and their T next tokens.
        vocabulary: V; 1 + the largest token by default.
        width: d of the stream, the queries, keys and values.
        hidden: Width of the MLP; 2d by default.
        sharp_rank: d_s; a tenth of p by default, at least 1.

    Raises:
        ValueError: for tokens that are not integers in 0 … V − 1, or sequences that are too short.

    Source: the decoder block of GPT-2 and Llama (pre-norm, RMSNorm: arXiv:1910.07467), one head.
    """

    def __init__(
        self,
        tokens: Array,
        *,
        vocabulary: int | None = None,
        width: int = 8,
        hidden: int | None = None,
        sharp_rank: int | None = None,
    ) -> None:
        array = to_numpy(tokens)
        if array.ndim != 2 or array.shape[1] < 2 or array.shape[0] < 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"tokens has shape {array.shape} and dtype {array.dtype}; give integers of shape (N, T + 1)."
            )
        size = int(array.max()) + 1 if vocabulary is None else vocabulary
        if array.min() < 0 or array.max() >= size:
            raise ValueError(f"tokens lie in {array.min()} … {array.max()}; they must lie in 0 … V − 1 = {size - 1}.")
        hidden = 2 * width if hidden is None else hidden
        if width < 1 or hidden < 1:
            raise ValueError(f"width = {width!r} and hidden = {hidden!r} must be at least 1.")
        self.tokens = torch.as_tensor(np.array(array, dtype=np.int64))
        self.samples, self.length = array.shape[0], array.shape[1] - 1
        # torch.nn draws initial values; a separate stream leaves the caller's random state unchanged.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            #: The model. Its own parameters are not used; values come from w. An optimizer may train it after
            #: ``torch.nn.utils.vector_to_parameters(w, module.parameters())``.
            self.module = _Block(size, self.length, width, hidden).double()
        self.layout = Layout({name: tuple(p.shape) for name, p in self.module.named_parameters()})
        super().__init__(self._corpus_loss, dimension=self.layout.dimension, sharp_rank=sharp_rank)

    @classmethod
    def on_bigrams(
        cls,
        model: BigramModel,
        *,
        sequences: int = 16,
        length: int = 8,
        width: int = 8,
        hidden: int | None = None,
        seed: int | np.random.Generator,
        sharp_rank: int | None = None,
    ) -> TinyTransformer:
        """A transformer on a corpus drawn from a bigram model (a Markov chain, started uniformly).

        Args:
            model: Bigram model with the chain's next-token probabilities; it has as many contexts as tokens.
            sequences: N.
            length: T.
            width: d.
            hidden: Width of the MLP.
            seed: Random seed or generator of the corpus.
            sharp_rank: d_s.

        Raises:
            ValueError: if the numbers of contexts and tokens differ.
        """
        contexts, vocabulary = model.matrix_shape
        if contexts != vocabulary:
            raise ValueError(f"model has {contexts} contexts and {vocabulary} tokens; a chain needs equally many.")
        rng = np.random.default_rng(seed)
        cumulative = np.cumsum(model.next_token, axis=1)
        tokens = np.empty((sequences, length + 1), dtype=np.int64)
        tokens[:, 0] = rng.integers(vocabulary, size=sequences)
        for t in range(length):
            drawn = (cumulative[tokens[:, t]] < rng.random((sequences, 1))).sum(1)
            tokens[:, t + 1] = np.minimum(drawn, vocabulary - 1)  # the last cumulative sum may round below 1
        return cls(tokens, vocabulary=vocabulary, width=width, hidden=hidden, sharp_rank=sharp_rank)

    def initial(self, seed: int | np.random.Generator, ensemble: tuple[int, ...] = ()) -> np.ndarray:
        """Gains of 1 and normal weights with variance 1/d (1/fan-in for matrices), shape ``(*ensemble, p)``.

        Args:
            seed: Random seed or generator.
            ensemble: Axes of the ensemble.
        """
        rng = np.random.default_rng(seed)
        parts = []
        for block in self.layout.values():
            shape = (*ensemble, block.size)
            if len(block.shape) == 1:
                parts.append(np.ones(shape))
            else:
                parts.append(rng.normal(size=shape) / math.sqrt(block.shape[1]))
        return np.concatenate(parts, axis=-1)

    def batch_gradient(self, w: Array, indices: Array) -> Array:
        return self.mapped(lambda x, batch: grad(self._loss)(x, self.tokens.to(x.device)[batch]), w, indices)

    def _corpus_loss(self, w: Tensor) -> Tensor:
        return self._loss(w, self.tokens.to(w.device))

    def _loss(self, w: Tensor, tokens: Tensor) -> Tensor:
        parameters = {name: w[block.coordinates].reshape(block.shape) for name, block in self.layout.items()}
        logits: Tensor = functional_call(self.module, parameters, (tokens[:, :-1],))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class _Attention(nn.Module):
    """One causal head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT / math.sqrt(x.shape[-1])
        future = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).triu(1)
        attended: Tensor = self.output(scores.masked_fill(future, -math.inf).softmax(-1) @ self.value(x))
        return attended


class _MLP(nn.Module):
    """Up, GELU (tanh form, smooth), down."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(nn.functional.gelu(self.up(x), approximate="tanh"))
        return result


class _Block(nn.Module):
    """Tokens (N, T) to logits (N, T, V)."""

    def __init__(self, vocabulary: int, length: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.attention_norm, self.attention = nn.RMSNorm(width, eps=_EPSILON), _Attention(width)
        self.mlp_norm, self.mlp = nn.RMSNorm(width, eps=_EPSILON), _MLP(width, hidden)
        self.final_norm = nn.RMSNorm(width, eps=_EPSILON)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Any = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        x = x + self.attention(self.attention_norm(x))
        x = x + self.mlp(self.mlp_norm(x))
        logits: Tensor = self.head(self.final_norm(x))
        return logits
