"""The tiny transformer: the loss of its module, its blocks, and its ability to learn."""

import numpy as np
import pytest
import torch

from riemannian_ode import RISHD, simulate
from toy_landscapes import BigramModel, TinyTransformer

CHAIN = BigramModel.two_kinds(certain=3, uncertain=1, vocabulary=4, slip=0.02)
LANDSCAPE = TinyTransformer.on_bigrams(CHAIN, sequences=12, length=5, width=4, seed=0)


def test_value_and_gradient_equal_the_module_with_these_parameters():
    w = LANDSCAPE.initial(1)
    module = LANDSCAPE.module
    torch.nn.utils.vector_to_parameters(torch.as_tensor(w), module.parameters())
    for name, parameter in module.named_parameters():
        np.testing.assert_array_equal(LANDSCAPE.layout.unpack(w)[name], parameter.detach().numpy())
    tokens = LANDSCAPE.tokens
    loss = torch.nn.functional.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    assert LANDSCAPE.value(w) == pytest.approx(loss.item(), rel=1e-13)
    flat = torch.cat([g.reshape(-1) for g in gradients]).numpy()
    np.testing.assert_allclose(LANDSCAPE.gradient(w), flat, atol=1e-14)


def test_layout_names_every_parameter_once():
    shapes = {name: block.shape for name, block in LANDSCAPE.layout.items()}
    assert shapes == {name: tuple(p.shape) for name, p in LANDSCAPE.module.named_parameters()}
    assert shapes["mlp.up.weight"] == (8, 4)
    masks = np.stack([LANDSCAPE.layout.mask(name) for name in shapes])
    np.testing.assert_array_equal(masks.sum(0), 1)


def test_building_one_leaves_torchs_random_state_alone():
    before = torch.get_rng_state()
    TinyTransformer(np.array([[0, 1, 2]]))
    assert torch.equal(torch.get_rng_state(), before)


def test_it_cannot_see_the_future():
    module = LANDSCAPE.module
    tokens = LANDSCAPE.tokens[:1, :-1]
    changed = tokens.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 4
    with torch.no_grad():
        before, after = module(tokens), module(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().max() > 1e-3


def test_corpus_follows_its_chain():
    tokens = TinyTransformer.on_bigrams(CHAIN, sequences=2000, length=5, seed=3).tokens.numpy()
    pairs = np.stack([tokens[:, :-1].reshape(-1), tokens[:, 1:].reshape(-1)])
    counts = np.zeros((4, 4))
    np.add.at(counts, tuple(pairs), 1)
    np.testing.assert_allclose(counts / counts.sum(1, keepdims=True), CHAIN.next_token, atol=0.05)


def test_momentum_learns_the_corpus_in_an_ensemble():
    system = RISHD.from_optimizer(LANDSCAPE, alpha=0.1, eta=0.05)
    start = LANDSCAPE.initial(2, (2,))
    run = simulate(system, start, steps=150, progress=False)
    assert (LANDSCAPE.value(start) > 1.2).all()
    assert (LANDSCAPE.value(run.w[-1]) < 0.6).all()


def test_float32_stays_float32():
    w = torch.as_tensor(LANDSCAPE.initial(1), dtype=torch.float32)
    assert LANDSCAPE.gradient(w).dtype == torch.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TinyTransformer(np.zeros((2, 1), dtype=int)), r"\(N, T \+ 1\)"),
        (lambda: TinyTransformer(np.zeros((2, 3))), "give integers"),
        (lambda: TinyTransformer(np.array([[0, 5, 1]]), vocabulary=4), "must lie in 0 … V − 1 = 3"),
        (lambda: TinyTransformer(np.array([[0, 5, 1]]), width=0), "width = 0"),
        (lambda: TinyTransformer(np.array([[0, 5, 1]]), hidden=0), "hidden = 0"),
        (
            lambda: TinyTransformer.on_bigrams(BigramModel.two_kinds(certain=1, uncertain=1, vocabulary=3), seed=0),
            "a chain needs equally many",
        ),
    ],
)
def test_bad_transformers_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
