"""Every row of the table against the real optimizer, or against a plain implementation of the paper's algorithm."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from discretizations import EigenbasisMoment
from discretizations.known_optimizers import CORRESPONDENCES, correspondence
from discretizations.proofs.correspondences import momentum_units, row_residuals
from rishd.claims.correspondences import rule_path
from rishd.claims.published_optimizers import averaged_shampoo_path, shampoo_path, soap_path, torch_paths

STEPS = 100
TOLERANCE = 1e-12  # relative, of the whole path


def landscape(shape, seed=0):
    """∇f of f = ½‖A vec(w)‖² + Σ log cosh w: nonquadratic, smooth, full-rank gradients."""
    generator = torch.Generator().manual_seed(seed)
    size = int(np.prod(shape))
    matrix = torch.randn(size, size, dtype=torch.float64, generator=generator) / size**0.5
    start = torch.randn(shape, dtype=torch.float64, generator=generator)

    def gradient(w):
        return (matrix.T @ (matrix @ w.reshape(-1))).reshape(shape) + torch.tanh(w)

    return start, gradient


def path_of_row(key, shape, **settings):
    return rule_path(correspondence(key).with_settings(**settings), *landscape(shape), STEPS)


def path_of_torch(optimizer_class, shape, **settings):
    start, gradient = landscape(shape)
    return torch_paths(lambda parameters: optimizer_class(parameters, **settings), [start], [gradient], STEPS)[:, 0]


def assert_same_path(found, expected):
    expected = torch.as_tensor(expected)
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert (expected[-1] - expected[0]).abs().max() > 1e-2  # the parameters moved


SGD, RMSprop, Adam, AdamW, Muon = (
    torch.optim.SGD,
    torch.optim.RMSprop,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Muon,
)


@pytest.mark.parametrize(
    ("key", "peer", "shape", "settings", "peer_settings"),
    [
        ("sgd", SGD, (12,), {"lr": 0.05}, {"lr": 0.05}),
        ("sgd-momentum", SGD, (12,), {"lr": 0.02, "mu": 0.9}, {"lr": 0.02, "momentum": 0.9}),
        ("sgd-nesterov", SGD, (12,), {"lr": 0.02, "mu": 0.9}, {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
        ("rmsprop", RMSprop, (12,), {"lr": 0.01, "beta2": 0.95}, {"lr": 0.01, "alpha": 0.95}),
        (
            "rmsprop-momentum",
            RMSprop,
            (12,),
            {"lr": 1e-3, "beta2": 0.95, "mu": 0.9},
            {"lr": 1e-3, "alpha": 0.95, "momentum": 0.9},
        ),
        ("adam", Adam, (12,), {"lr": 0.02}, {"lr": 0.02}),
        ("adam", Adam, (3, 4), {"lr": 0.01, "eps": 1e-2}, {"lr": 0.01, "eps": 1e-2}),
        ("adamw", AdamW, (12,), {"lr": 0.02, "weight_decay": 0.3}, {"lr": 0.02, "weight_decay": 0.3}),
        ("adamw", AdamW, (12,), {}, {}),
        ("muon", Muon, (6, 4), {"lr": 0.02}, {"lr": 0.02, "nesterov": False}),
        ("muon-nesterov", Muon, (6, 4), {"lr": 0.02}, {"lr": 0.02}),
        ("muon-nesterov", Muon, (4, 6), {"lr": 0.02, "mu": 0.8}, {"lr": 0.02, "momentum": 0.8}),
        ("muon-nesterov", Muon, (5, 5), {"lr": 0.02, "weight_decay": 0.0}, {"lr": 0.02, "weight_decay": 0.0}),
    ],
)
def test_rows_are_the_optimizers_of_torch(key, peer, shape, settings, peer_settings):
    assert_same_path(path_of_row(key, shape, **settings), path_of_torch(peer, shape, **peer_settings))


def test_default_hyperparameters_are_torchs():
    names = {"mu": "momentum", "steps": "ns_steps", "coefficients": "ns_coefficients"}
    for key, peer in (("adam", Adam), ("adamw", AdamW), ("muon-nesterov", Muon), ("rmsprop", RMSprop), ("sgd", SGD)):
        theirs = dict(peer([torch.nn.Parameter(torch.ones(2, 2))]).defaults)
        if "betas" in theirs:
            theirs["beta1"], theirs["beta2"] = theirs["betas"]
        if peer is RMSprop:
            theirs["beta2"] = theirs["alpha"]
        for name, value in correspondence(key).defaults.items():
            if name != "dtype":
                assert theirs[names.get(name, name)] == value, (key, name)


def test_muon_iterates_in_its_own_precision():
    """In float64 the same polynomial gives another path: torch's bfloat16 is part of its algorithm."""
    exact = path_of_row("muon-nesterov", (6, 4), lr=0.02, dtype=torch.float64)
    rounded = path_of_torch(Muon, (6, 4), lr=0.02)
    gap = (exact - rounded).abs().max() / rounded.abs().max()
    assert 1e-6 < gap < 5e-2


def test_shampoo_is_the_papers_algorithm():
    """Against the Kronecker product as a matrix, and a linear solve."""
    settings = {"lr": 0.2, "eps": 1e-2}
    assert_same_path(path_of_row("shampoo", (4, 3), **settings), shampoo_path(*landscape((4, 3)), STEPS, **settings))


def test_shampoo_with_averages_is_the_papers_algorithm():
    settings = {"lr": 0.02, "eps": 1e-2, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1}
    expected = averaged_shampoo_path(*landscape((3, 5)), STEPS, **settings)
    assert_same_path(path_of_row("shampoo-ema", (3, 5), **settings), expected)


@pytest.mark.parametrize("frequency", [1, 7])
def test_soap_is_the_papers_algorithm(frequency):
    """Adam on the coefficients ⟨q_i, G q_j⟩, with Gram–Schmidt; the parameters decay after the step."""
    # A smaller ε makes the path itself chaotic near the minimum.
    settings = {"lr": 0.02, "eps": 1e-2, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "frequency": frequency}
    assert_same_path(path_of_row("soap", (4, 3), **settings), soap_path(*landscape((4, 3)), STEPS, **settings))


def test_soap_depends_on_the_eigensolver_where_the_first_gradient_leaves_its_bases_open():
    """A 2×5 gradient has a null space of three dimensions: its basis is the solver's choice, and the path with it."""
    settings = {"lr": 0.02, "eps": 1e-2, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "frequency": 1}
    found = path_of_row("soap", (2, 5), **settings)
    expected = soap_path(*landscape((2, 5)), STEPS, **settings)
    assert 1e-8 < (found - expected).abs().max() / expected.abs().max() < 0.1


@pytest.mark.parametrize("row", CORRESPONDENCES.values(), ids=list(CORRESPONDENCES))
def test_rows_are_proved_symbolically(row):
    assert row_residuals(row) == [0, 0]


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("sgd-nesterov", {"nesterov": "1"}),
        ("sgd-nesterov", {"eta": "lr"}),
        ("adamw", {"decay": "weight_decay*beta1"}),
        ("adamw", {"corrects_momentum": False}),
        ("muon-nesterov", {"nesterov": "(1 - mu)/mu"}),
        ("rmsprop-momentum", {"momentum": "covector"}),
        ("soap", {"eta": "lr"}),
    ],
)
def test_wrong_rows_are_not_proved(key, change):
    assert any(residual != 0 for residual in row_residuals(replace(correspondence(key), **change)))


def test_units_of_beta():
    assert momentum_units() == [0, 0, 0, 0]
    assert str(correspondence("sgd-nesterov").beta) == str(correspondence("muon-nesterov").beta) == "1/mu"
    assert str(correspondence("lion").beta) == "(beta1 - beta2)/(beta1*(beta2 - 1))"
    for key in set(CORRESPONDENCES) - {"sgd-nesterov", "muon-nesterov", "lion"}:
        assert correspondence(key).beta == 0


def test_a_momentum_of_vectors_is_another_optimizer():
    """RMSprop's buffer sums F⁻¹g; the same row with a covector's momentum takes another path."""
    row = correspondence("rmsprop-momentum")
    start, gradient = landscape((12,))
    ends = []
    for kind in ("vector", "covector"):
        rule = replace(row, momentum=kind).with_settings(lr=1e-3, beta2=0.9)
        state = rule.start(start)
        for _ in range(STEPS):
            state = rule.step(state, gradient(state.w))
        ends.append(state.w)
    assert (ends[0] - ends[1]).norm() > 0.01 * (ends[0] - start).norm()


@pytest.mark.parametrize(
    ("key", "settings", "message"),
    [
        ("adamw", {"mu": 0.9}, "hyperparameter of adamw = 'mu' is unknown. Choose one of: beta1, beta2"),
        ("adamw", {"beta2": 1.0}, r"beta2 = 1.0 must lie in \[0, 1\)"),
        ("sgd-nesterov", {"mu": 0.0}, "mu = 0 has no Nesterov form"),
        ("muon", {"steps": 0}, "steps = 0 must be a whole number"),
        ("sgd", {"lr": float("nan")}, "lr = nan must be finite"),
        ("sgd", {"lr": "fast"}, "lr = 'fast' must be a number"),
        ("shampoo", {"eps": 0.0}, "eps = 0.0 must be finite and positive; it keeps the roots"),
    ],
)
def test_impossible_hyperparameters_are_refused(key, settings, message):
    with pytest.raises(ValueError, match=message):
        correspondence(key).with_settings(**settings)


def test_unknown_optimizers_and_shapes_are_refused():
    with pytest.raises(ValueError, match=r"optimizer = 'adm' is unknown.*Did you mean 'adam'"):
        correspondence("adm")
    with pytest.raises(ValueError, match="made for matrices"):
        correspondence("muon").with_settings().start(torch.zeros(3))


def test_soap_s_moments_move_with_the_columns_of_the_basis():
    """A refresh that only sorts eigenvectors does not change the metric."""
    metric = EigenbasisMoment(beta2=0.9, frequency=1)
    v = torch.tensor([[1.0, 4.0], [9.0, 16.0], [25.0, 36.0]], dtype=torch.float64)
    memory = metric.initial(v) | {
        "left": torch.diag(torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)),
        "right": torch.diag(torch.tensor([1.0, 5.0], dtype=torch.float64)),
        "v": v.clone(),
        "v_mass": torch.tensor(1 - 0.9**2, dtype=torch.float64),
    }
    x = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(3, 2)
    after, m = metric.jump(memory, x.clone(), step=2)
    direction = x / (v / (1 - 0.9**2)).sqrt()
    torch.testing.assert_close(metric.from_frame(after, m), x)
    raised = metric.from_frame(after, metric.raise_index(after, m))
    torch.testing.assert_close(raised, direction, rtol=1e-6, atol=0.0)
    assert not torch.equal(after["left_basis"], memory["left_basis"])
