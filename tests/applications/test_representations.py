"""Representations: their sizes, batch normalisation by hand and by flax, and what `statistics` are for."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevax import InputError
from bilevax.nn import layers, mini_imagenet_network, omniglot_network, representations

OMNIGLOT, MINI = (28, 28), (84, 84, 3)
BOTH = [omniglot_network(5), mini_imagenet_network(6)]
IDS = ["omniglot", "mini_imagenet"]
ONE_QUICK = [BOTH[0], pytest.param(BOTH[1], marks=pytest.mark.slow)]


def pictures(n, *shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(n, *shape)))


def somewhere(network, x, seed=0):
    """Parameters with shifts other than zero, drawn by numpy: nothing to compile."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(network.init, jax.random.key(0), x)
    scales = jax.tree.map(lambda leaf: math.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.5, shapes)
    return jax.tree.map(lambda leaf, scale: jnp.asarray(scale * rng.normal(size=leaf.shape)), shapes, scales)


def hasty(function):
    """Compiled without LLVM's optimisations: it runs a few times only."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def compiled(network):
    return hasty(network.apply), hasty(network.statistics)


def run(network, params, x, statistics=None, key=None):
    return compiled(network)[0](params, x, statistics, key)


def statistics_of(network, params, x):
    return compiled(network)[1](params, x)


@pytest.mark.parametrize(
    ("network", "shape", "features", "parameters", "table_7"),
    [
        (omniglot_network(), OMNIGLOT, 64, 111_424, "0.111M"),
        (omniglot_network(), (32, 47, 3), 64 * 2 * 2, 111_424 + 2 * 9 * 64, None),
        (omniglot_network(5), (16, 31), 5, 5 * 9 * 16 + 4 * 5, None),
        (mini_imagenet_network(), MINI, 512, 3_805_152, "3.8M"),
        (mini_imagenet_network(384), MINI, 384, 3_542_880, None),
        (mini_imagenet_network(384), (17, 40), 384, 3_542_880 - 2 * (9 + 1) * 64, None),
    ],
    ids=["omniglot", "colour", "few filters", "mini_imagenet", "mini_imagenet of the text", "grey"],
)
def test_networks_have_the_published_sizes(network, shape, features, parameters, table_7, key):
    x = jnp.zeros((2, *shape), jnp.uint8)
    params = jax.eval_shape(network.init, key, x)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert size == parameters
    assert table_7 in (None, f"{size / 1e6:.{3 if size < 1e6 else 1}f}M")
    assert jax.eval_shape(network.apply, params, x).shape == (2, features)


def test_the_same_network_is_the_same_object():
    assert omniglot_network(5) == omniglot_network(5)
    assert mini_imagenet_network(6) == mini_imagenet_network(6)
    assert omniglot_network(5) != omniglot_network(6)


@pytest.mark.slow
def test_initialisation_is_he_s_and_differs_by_layer_and_key(key):
    def omniglot(key):
        return omniglot_network(16).init(key, jnp.zeros((1, 16, 16)))

    def mini_imagenet(key):
        params = mini_imagenet_network(8).init(key, jnp.zeros((1, 16, 16, 3)))
        return params["blocks"][:2], params["last"]  # the others would take seconds to draw

    for init in (hasty(omniglot), hasty(mini_imagenet)):
        params, other_params = map(jax.device_get, (init(key), init(jax.random.key(1))))
        weights = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
        for weight in weights:
            fan_in, n = math.prod(weight.shape[:3]), weight.size
            # Five standard deviations of the estimate.
            assert float(weight.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=5 * (2 * n) ** -0.5)
        assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(params) if leaf.ndim == 1)
        others = [leaf for leaf in jax.tree.leaves(other_params) if leaf.ndim == 4]
        drawn = np.stack([(x / x.std()).ravel()[:100] for x in (*weights, *others)])
        assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 0.55


@pytest.mark.slow
def test_a_block_by_numpy():
    """Convolution by its sums, normalisation, maxima of four; as the last block it has no ReLU."""
    network, x = omniglot_network(4), pictures(3, 16, 18, 2)
    (block,) = params = somewhere(network, x)[:1]
    weight, shift = np.asarray(block["weight"]), np.asarray(block["shift"])
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((3, 16, 18, 4))
    for i in range(3):
        for j in range(3):
            y += np.einsum("nhwc,co->nhwo", padded[:, i : i + 16, j : j + 18], weight[i, j])
    mean, variance = y.mean((0, 1, 2)), (y**2).mean((0, 1, 2)) - y.mean((0, 1, 2)) ** 2
    y = (y - mean) / np.sqrt(variance + 1e-5) + shift
    y = np.maximum.reduce([y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    features = run(network, params, x)
    np.testing.assert_allclose(features, y.reshape(3, -1), rtol=1e-9, atol=1e-10)
    assert (np.asarray(features) < 0).any()
    ((found_mean, found_variance),) = statistics_of(network, params, x)
    np.testing.assert_allclose(found_mean, mean, rtol=1e-9)
    np.testing.assert_allclose(found_variance, variance, rtol=1e-9)


class Blocks(nn.Module):
    """The network for Omniglot in flax."""

    filters: int
    given: bool

    @nn.compact
    def __call__(self, x):
        for i in range(4):
            x = nn.Conv(self.filters, (3, 3), use_bias=False, name=f"conv_{i}")(x)
            x = nn.BatchNorm(self.given, epsilon=1e-5, use_scale=False, name=f"norm_{i}")(x)
            x = nn.relu(x) if i < 3 else x
            x = nn.max_pool(x, (2, 2), (2, 2))
        return x.reshape(len(x), -1)


def by_flax(params, x, statistics=None):
    given = {}
    for i, block in enumerate(params):
        given |= {f"conv_{i}": {"kernel": block["weight"]}, f"norm_{i}": {"bias": block["shift"]}}
    size = params[0]["shift"].shape
    pairs = [(jnp.zeros(size), jnp.ones(size))] * 4 if statistics is None else statistics
    known = {f"norm_{i}": {"mean": mean, "var": variance} for i, (mean, variance) in enumerate(pairs)}
    module = Blocks(*size, given=statistics is not None)
    return module.apply({"params": given, "batch_stats": known}, x, mutable=["batch_stats"])[0]


@pytest.mark.slow
def test_the_omniglot_network_is_flax_s():
    """Values, gradients, and by either kind of statistics; an odd side loses its last row in a pooling."""
    network, x = omniglot_network(5), pictures(4, 16, 19, 1)
    params = somewhere(network, x)
    known = jax.tree.map(lambda s: 1.1 * s + 0.1, statistics_of(network, params, pictures(3, 16, 19, 1, seed=1)))

    def derivatives(apply):
        def value(params, x, statistics):
            features = apply(params, x, statistics)
            return jnp.sum(jnp.sin(features)), features

        both = jax.value_and_grad(value, has_aux=True)
        return hasty(lambda: [both(params, x, statistics) for statistics in (None, known)])()

    ours, flax_s = derivatives(network.apply), derivatives(by_flax)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), ours, flax_s)
    assert float(jnp.abs(ours[0][0][1] - ours[1][0][1]).max()) > 0.01


@pytest.mark.slow
def test_the_mini_imagenet_network_is_that_of_xla_s_operations():
    network, x = mini_imagenet_network(6), pictures(3, 16, 21, 3)
    params = somewhere(network, x)

    def convolution(x, weight):
        return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def normal(x, shift):
        return (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5) + shift

    def leaky(x):
        return jnp.where(x > 0, x, 0.1 * x)

    def by_hand(params, x):
        for block in params["blocks"]:
            y = x
            for weight, shift in zip(block["weights"], block["shifts"], strict=True):
                y = leaky(normal(convolution(y, weight), shift))
            x = nn.max_pool(y + convolution(x, block["shortcut"]), (2, 2), (2, 2))
        x = leaky(normal(convolution(x, params["wide"]["weight"]), params["wide"]["shift"]))
        last = params["last"]
        return jnp.mean(convolution(x, last["weight"]) + last["bias"], (1, 2))

    np.testing.assert_allclose(run(network, params, x), hasty(by_hand)(params, x), rtol=1e-8, atol=1e-9)


@pytest.mark.slow
def test_a_weight_s_scale_does_not_matter():
    """Which is why normalisation has no scale of its own; what is left is its 1e-5."""
    network, x = omniglot_network(5), pictures(6, 16, 16)
    params = somewhere(network, x)
    scaled = tuple(
        block | {"weight": factor * block["weight"]} for factor, block in zip((30, 3, 50, 7), params, strict=True)
    )
    features, others = run(network, params, x), run(network, scaled, x)
    np.testing.assert_allclose(features, others, atol=2e-3)
    assert float(features.std()) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("network", ONE_QUICK, ids=IDS)
def test_the_statistics_of_a_batch_are_those_it_is_normalised_by(network):
    x = pictures(4, 16, 16)
    params = somewhere(network, x)
    known = statistics_of(network, params, x)
    assert all(float(variance.min()) > 0 for _, variance in known)
    np.testing.assert_allclose(run(network, params, x, known), run(network, params, x), rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("network", ONE_QUICK, ids=IDS)
def test_by_given_statistics_a_picture_knows_nothing_of_the_others(network):
    x, other = pictures(4, 16, 16), pictures(4, 16, 16, seed=1)
    params = somewhere(network, x)
    known = statistics_of(network, params, other)
    together = run(network, params, x, known)
    beside = run(network, params, jnp.concatenate([x[:1], 3 * other[1:]]), known)
    np.testing.assert_allclose(together[:1], beside[:1], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(together[:1], run(network, params, x[:1], known), rtol=1e-9, atol=1e-10)
    # By its own batch's it does know of them.
    alone = run(network, params, x)[:1]
    assert float(jnp.abs(alone - run(network, params, jnp.concatenate([x[:1], 3 * other[1:]]))[:1]).max()) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("network", ONE_QUICK, ids=IDS)
def test_bytes_are_pixels_and_floats_are_taken_as_they_are(network, key):
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16)).astype(np.uint8)
    params = somewhere(network, images)
    known = jax.eval_shape(network.statistics, params, images)
    known = tuple((jnp.full(mean.shape, 0.1), jnp.ones(mean.shape)) for mean, _ in known)
    features = run(network, params, images, known)
    assert features.dtype == jnp.float64
    np.testing.assert_allclose(features, run(network, params, images[..., None] / 255.0, known), rtol=1e-9, atol=1e-9)
    assert float(jnp.abs(features - run(network, params, images[..., None] / 100.0, known)).max()) > 1e-2
    # The type of the parameters is that of the features.
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    assert jax.eval_shape(network.apply, single, images).dtype == jnp.float32


@pytest.mark.slow
def test_dropout_in_training_alone(key, monkeypatch):
    """A tenth, four times, by keys that differ; without a key nothing, and the other network has none."""
    asked, drop = [], layers.drop_out

    def spy(key, x, rate):
        asked.append((key, rate, x.shape))
        return drop(key, x, rate)

    monkeypatch.setattr(representations, "drop_out", spy)
    network, x = mini_imagenet_network(6), pictures(2, 16, 16)
    params = somewhere(network, x)
    jax.eval_shape(network.apply, params, x)
    jax.eval_shape(network.statistics, params, x)
    assert [key for key, _, _ in asked] == [None] * 8
    asked.clear()

    def keys(key):
        network.apply(params, x, None, key)
        return jnp.stack([jax.random.key_data(key) for key, _, _ in asked])

    assert len(np.unique(hasty(keys)(key), axis=0)) == 4
    sides = [(2, side, side, out) for side, out in ((8, 64), (4, 96), (2, 128), (1, 256))]
    assert [(rate, shape) for _, rate, shape in asked] == [(0.1, shape) for shape in sides]
    asked.clear()
    other = omniglot_network(5)
    jax.eval_shape(lambda params: other.apply(params, x, None, key), somewhere(other, x))
    assert not asked


@pytest.mark.slow
def test_dropout_is_by_its_key(key):
    network, x = mini_imagenet_network(6), pictures(2, 16, 16)
    params = somewhere(network, x)
    keys = jax.random.split(key, 20)
    many = np.stack([run(network, params, x, None, key) for key in keys])
    assert many.std(0).min() > 1e-2
    np.testing.assert_array_equal(run(network, params, x, None, key), run(network, params, x, None, key))


@pytest.mark.parametrize("make", [omniglot_network, mini_imagenet_network])
@pytest.mark.parametrize("size", [0, -3, True, 64.0, "64"])
def test_a_network_refuses_a_size(make, size):
    with pytest.raises(InputError, match=f"{make.__name__}: (filters|features) is {size!r}, and must be a positive"):
        make(size)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((16, 256), r"images have shape \(16, 256\), and must be \(n, height, width\)"),
        ((1, 2, 16, 16, 1), r"images have shape \(1, 2, 16, 16, 1\)"),
        ((2, 15, 40), "images of 15x40 are too small for four poolings. Pass images of at least 16x16"),
        ((2, 40, 15, 3), "images of 40x15 are too small"),
    ],
    ids=str,
)
@pytest.mark.parametrize("network", BOTH, ids=IDS)
def test_pictures_that_do_not_fit_are_refused_at_the_start_and_in_use(network, shape, sentence, key):
    params = jax.eval_shape(network.init, key, jnp.zeros((1, 16, 16)))
    for call in (
        lambda: network.init(key, jnp.zeros(shape)),
        lambda: jax.eval_shape(lambda params: network.apply(params, jnp.zeros(shape)), params),
        lambda: jax.eval_shape(lambda params: network.statistics(params, jnp.zeros(shape)), params),
    ):
        with pytest.raises(InputError, match=f"network: {sentence}"):
            call()
