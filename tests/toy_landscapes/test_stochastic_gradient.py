"""Noise: unbiased, of the stated covariance, independent over members, repeatable."""

import numpy as np
import pytest
import torch

from discretizations.update_rule import lite_step
from riemannian_ode import RISHD, simulate
from toy_landscapes import (
    BigramModel,
    FiniteSum,
    GaussianNoise,
    LinearRegression,
    MatrixFactorization,
    MiniBatches,
    Quadratic,
    StochasticGradient,
    TinyTransformer,
    TwoLayerNetwork,
)

BOWL = Quadratic([3.0, 1.0, 0.2])
SUMS: dict[str, FiniteSum] = {
    "regression": LinearRegression.synthetic([2.0, 0.5], [1.0, 0.3], samples=6, noise=0.5, seed=0),
    "factorisation": MatrixFactorization(np.random.default_rng(0).normal(size=(3, 2)), rank=1),
    "network": TwoLayerNetwork.teacher_student(inputs=2, width=2, outputs=1, samples=7, noise=0.5, seed=0),
    "transformer": TinyTransformer.on_bigrams(
        BigramModel.two_kinds(certain=2, uncertain=1, vocabulary=3, slip=0.2),
        sequences=5,
        length=3,
        width=2,
        hidden=2,
        seed=0,
    ),
}
COVARIANCES = {
    "scalar": 0.7,
    "diagonal": np.array([0.5, 2.0, 0.0]),
    "full": np.array([[2.0, 1.0, 0.0], [1.0, 1.0, 0.3], [0.0, 0.3, 0.5]]),
    "rank one": np.outer([1.0, -2.0, 0.5], [1.0, -2.0, 0.5]),
}


def assert_moments(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Mean and covariance of many draws within 5 standard errors (bounded by the fourth moments found)."""
    count, deviations = len(draws), draws - mean
    errors = np.sqrt(np.diag(covariance) / count)
    assert (np.abs(deviations.mean(0)) <= 5 * errors + 1e-12).all()
    products = deviations[:, :, None] * deviations[:, None, :]
    spread = products.std(0) / np.sqrt(count)
    assert (np.abs(products.mean(0) - covariance) <= 5 * spread + 1e-12).all()


@pytest.mark.parametrize("kind", sorted(COVARIANCES))
@pytest.mark.parametrize("backend", ["numpy", "torch", "numpy generator, torch arrays"])
def test_gaussian_noise_has_its_covariance(kind, backend, rng):
    covariance = COVARIANCES[kind]
    generator = torch.Generator().manual_seed(0) if backend == "torch" else np.random.default_rng(0)
    point = rng.normal(size=3)
    w = np.tile(point, (20_000, 1))
    noisy = StochasticGradient(BOWL, GaussianNoise(covariance), generator=generator)
    draws = noisy.gradient(w if backend == "numpy" else torch.as_tensor(w))
    matrix = np.diag(np.broadcast_to(covariance, 3)) if np.ndim(covariance) < 2 else covariance
    assert_moments(np.asarray(draws), BOWL.gradient(point), matrix)


@pytest.mark.parametrize("name", sorted(SUMS))
def test_sample_gradients_average_to_the_gradient(name, rng):
    landscape = SUMS[name]
    w = rng.normal(size=(2, landscape.dimension))
    samples = landscape.sample_gradients(w)
    assert samples.shape == (2, landscape.samples, landscape.dimension)
    np.testing.assert_allclose(samples.mean(1), landscape.gradient(w), atol=1e-12)
    tensors = landscape.sample_gradients(torch.as_tensor(w))
    np.testing.assert_allclose(samples, tensors.numpy(), atol=1e-12)
    # A batch is the mean of its samples, drawn twice counts twice.
    batch = landscape.batch_gradient(w, np.array([[0, 2, 2], [1, 3, 4]]))
    np.testing.assert_allclose(batch[0], (samples[0, 0] + 2 * samples[0, 2]) / 3, atol=1e-12)
    np.testing.assert_allclose(batch[1], samples[1, [1, 3, 4]].mean(0), atol=1e-12)


@pytest.mark.parametrize("name", sorted(SUMS))
@pytest.mark.parametrize("replacement", [False, True])
def test_mini_batches_are_unbiased_with_the_stated_covariance(name, replacement, rng):
    landscape, size = SUMS[name], 2
    point = rng.normal(size=landscape.dimension)
    noise = MiniBatches(size, replacement=replacement)
    noisy = StochasticGradient(landscape, noise, generator=np.random.default_rng(1))
    draws = noisy.gradient(np.tile(point, (2000, 1)))
    n = landscape.samples
    factor = 1 / size if replacement else (n - size) / (n - 1) / size
    assert_moments(draws, landscape.gradient(point), factor * landscape.gradient_covariance(point))


@pytest.mark.parametrize("name", sorted(SUMS))
@pytest.mark.parametrize("replacement", [False, True])
def test_the_flow_of_mini_batches_has_their_covariance(name, replacement, rng):
    landscape, size = SUMS[name], 2
    points = rng.normal(size=(2, landscape.dimension))
    noise = MiniBatches(size, replacement=replacement).flow_noise(landscape, seed=3)
    sigma, n = noise.factor_at(0.0, points), landscape.samples
    share = 1 / size if replacement else (n - size) / (n - 1) / size
    np.testing.assert_allclose(
        sigma @ sigma.swapaxes(-1, -2), share * landscape.gradient_covariance(points), atol=1e-12
    )
    system = RISHD.from_optimizer(landscape, alpha=0.3, eta=0.01)
    together = simulate(system, points, steps=3, noise=noise).w[-1, 0]
    np.testing.assert_allclose(simulate(system, points[0], steps=3, noise=noise).w[-1], together, rtol=1e-10)


def test_torch_generator_draws_unbiased_batches(rng):
    landscape = SUMS["regression"]
    point = torch.as_tensor(rng.normal(size=landscape.dimension))
    for replacement in (False, True):
        noise = MiniBatches(3, replacement=replacement)
        noisy = StochasticGradient(landscape, noise, generator=torch.Generator().manual_seed(0))
        draws = noisy.gradient(point.expand(4000, -1)).numpy()
        factor = 1 / 3 if replacement else (6 - 3) / 5 / 3
        covariance = factor * landscape.gradient_covariance(point).numpy()
        assert_moments(draws, landscape.gradient(point).numpy(), covariance)


def test_a_batch_of_all_samples_is_the_gradient(rng):
    landscape = SUMS["network"]
    w = rng.normal(size=(3, landscape.dimension))
    noisy = StochasticGradient(landscape, MiniBatches(landscape.samples), generator=np.random.default_rng(0))
    np.testing.assert_allclose(noisy.gradient(w), landscape.gradient(w), atol=1e-13)


@pytest.mark.parametrize("noise", [GaussianNoise(0.5), MiniBatches(2)], ids=["gaussian", "batches"])
def test_members_are_independent_calls_differ_and_seeds_repeat(noise):
    landscape = SUMS["regression"]
    w = np.tile(np.ones(landscape.dimension), (4000, 2, 1))
    first, second = (StochasticGradient(landscape, noise, generator=np.random.default_rng(7)) for _ in range(2))
    draws, again = first.gradient(w), first.gradient(w)
    np.testing.assert_array_equal(draws, second.gradient(w))
    assert not np.array_equal(draws, again)
    deviations = (draws - landscape.gradient(w)) / draws.std((0, 1))
    between_members = np.abs((deviations[:, 0, :, None] * deviations[:, 1, None, :]).mean(0))
    between_calls = np.abs((deviations * (again - draws.mean((0, 1))) / again.std((0, 1))).mean((0, 1)))
    assert between_members.max() < 5 / np.sqrt(4000)
    assert between_calls.max() < 5 / np.sqrt(8000)


def test_everything_but_the_gradient_is_exact(rng):
    noisy = StochasticGradient(BOWL, GaussianNoise(1.0), generator=np.random.default_rng(0))
    w, v = rng.normal(size=(2, 3))
    assert noisy.value(w) == BOWL.value(w)
    np.testing.assert_array_equal(noisy.hvp(w, v), BOWL.hvp(w, v))
    np.testing.assert_array_equal(noisy.hessian(w), BOWL.hessian(w))
    np.testing.assert_array_equal(noisy.sharp_projection(w, v), BOWL.sharp_projection(w, v))


def test_it_drives_the_update_rule_and_its_integrator_alike():
    """With the same draws, semi-implicit Euler at h = 1 is the noisy optimizer, to the last bit (C12)."""
    noise, start = GaussianNoise(0.01), np.array([1.0, -1.0, 2.0])
    driven = StochasticGradient(BOWL, noise, generator=np.random.default_rng(3))
    system = RISHD.from_optimizer(driven, alpha=0.2, eta=0.1)
    run = simulate(system, start, integrator="semi-implicit-euler", h=1.0, steps=30, progress=False)
    stepped = StochasticGradient(BOWL, noise, generator=np.random.default_rng(3))
    stepped.gradient(start)  # simulate's check of shapes
    w, m = start, np.zeros(3)
    for _ in range(30):
        w, m = lite_step(w, m, stepped.gradient(w), eta=0.1, alpha=0.2)
    np.testing.assert_array_equal(run.w[-1], w)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianNoise(-1.0), "covariance has the eigenvalue -1"),
        (lambda: GaussianNoise([1.0, -1.0]), "covariance has the eigenvalue -1"),
        (lambda: GaussianNoise(np.diag([1.0, -1.0])), "covariance has the eigenvalue -1"),
        (lambda: GaussianNoise([[1.0, 2.0], [0.0, 1.0]]), "not symmetric"),
        (lambda: MiniBatches(0), "batch_size = 0"),
        (lambda: StochasticGradient(BOWL, MiniBatches(1), generator=np.random.default_rng(0)), "GaussianNoise for"),
        (lambda: MiniBatches(1).flow_noise(BOWL), "GradientNoise for flows"),
        (
            lambda: StochasticGradient(SUMS["network"], MiniBatches(8), generator=np.random.default_rng(0)),
            "exceeds the 7 samples",
        ),
        (lambda: StochasticGradient(BOWL, GaussianNoise(np.ones(2)), generator=np.random.default_rng(0)), "3 coord"),
        (lambda: StochasticGradient(BOWL, GaussianNoise(1.0), generator=0), "generator is a int"),
        (
            lambda: StochasticGradient(BOWL, GaussianNoise(1.0), generator=torch.Generator()).gradient(np.zeros(3)),
            "w is a numpy array",
        ),
        (
            lambda: StochasticGradient(BOWL, GaussianNoise(1.0), generator=np.random.default_rng(0)).gradient(
                np.zeros(2)
            ),
            "must hold 3 coordinates",
        ),
    ],
)
def test_bad_noise_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
