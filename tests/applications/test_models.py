import math
import pickle

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevax import InputError
from bilevax.nn import (
    Method,
    Model,
    as_model,
    augmentation,
    augmented,
    cifar10_network,
    crop_and_flip,
    from_equinox,
    from_flax,
    layers,
    lenet5,
    mlp,
    mnist_network,
    networks,
    representations,
    softmax_head,
    softmax_regression,
    svhn_network,
    wide_resnet,
)
from bilevax.nn import logits as eager_logits
from bilevax.nn import model as nn_model

logits = jax.jit(eager_logits, static_argnums=0)


class Net(nn.Module):
    classes: int = 3
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(8)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


class Counted(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.variable("counts", "calls", jnp.zeros, ())
        return nn.Dense(3)(x)


class Dropped(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.linear = eqx.nn.Linear(4, 3, key=key)
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x, key=None):
        return self.linear(self.dropout(x, key=key))


@pytest.fixture
def x(key):
    return jax.random.normal(key, (5, 4))


@pytest.mark.parametrize("model", [softmax_regression(3), mlp(3), mlp(3, (7, 6))])
def test_built_in_models_start_undecided(model, key, x):
    out = logits(model, model.init(key, x), x)
    np.testing.assert_array_equal(out, np.zeros((5, 3)))


def test_softmax_regression_is_affine(key, x):
    model = softmax_regression(2)
    (layer,) = model.init(key, x)
    params = ({"weight": jnp.ones_like(layer["weight"]), "bias": jnp.array([1.0, 0.0])},)
    np.testing.assert_allclose(logits(model, params, x), x.sum(1)[:, None] + np.array([1.0, 0.0]), atol=1e-12)


@pytest.mark.slow
def test_mlp_flattens_images_and_draws_by_key(key):
    images = jnp.ones((5, 2, 3))
    first, second = mlp(3).init(key, images), mlp(3).init(jax.random.key(1), images)
    assert first[0]["weight"].shape == (6, 64)
    assert float(jnp.abs(first[0]["weight"] - second[0]["weight"]).max()) > 0.1
    assert logits(mlp(3), first, images).shape == (5, 3)


def test_models_of_equal_settings_are_equal():
    assert mlp(3) == mlp(3)
    assert from_flax(Net()) == from_flax(Net())


def test_a_width_must_be_positive():
    with pytest.raises(InputError, match="layer's width is 0"):
        mlp(3, (0,))


@pytest.mark.slow
def test_flax_module_with_dropout(key, x):
    model = from_flax(Net())
    params = model.init(key, x)
    used = logits(model, params, x)
    np.testing.assert_allclose(used, Net().apply({"params": params}, x))
    np.testing.assert_allclose(used, logits(model, params, x))
    trained = logits(model, params, x, jax.random.key(1))
    assert float(jnp.abs(trained - used).max()) > 1e-3


def test_flax_state_is_refused(key, x):
    with pytest.raises(InputError, match="has the variables counts in addition to its parameters"):
        from_flax(Counted()).init(key, x)


@pytest.mark.slow
def test_equinox_module_is_vmapped(key, x):
    net = eqx.nn.MLP(4, 3, 8, 1, key=key)
    model = from_equinox(net)
    params = model.init(jax.random.key(1), x)
    np.testing.assert_allclose(logits(model, params, x), jax.vmap(net)(x))
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params))
    gradient = jax.grad(lambda p: jnp.sum(logits(model, p, x) ** 2))(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)


@pytest.mark.slow
def test_equinox_dropout_and_draws(key, x):
    model = from_equinox(lambda key: Dropped(key))
    params, others = model.init(key, x), model.init(jax.random.key(1), x)
    assert float(jnp.abs(params.linear.weight - others.linear.weight).max()) > 1e-3
    used = logits(model, params, x)
    np.testing.assert_allclose(used, x @ params.linear.weight.T + params.linear.bias, atol=1e-12)
    assert float(jnp.abs(logits(model, params, x, key) - used).max()) > 1e-3


def test_as_model_takes_what_users_have(key, x):
    def init(key, x):
        return jnp.zeros((x.shape[1], 3))

    def apply(params, x):
        return x @ params

    candidates = (Model(init, apply), (init, apply), Net(), Dropped(key), mlp, softmax_regression)
    for candidate in candidates:
        model = as_model(candidate, 3)
        assert isinstance(model, Model)
        assert logits(model, model.init(key, x), x).shape == (5, 3)


@pytest.mark.parametrize("bad", ["mlp", 3, None, (1, 2), lambda classes: classes, Net])
def test_as_model_refuses_the_rest(bad):
    with pytest.raises(InputError, match="which is not a model"):
        as_model(bad, 3)


# The networks for images.
MNIST, COLOUR = (28, 28), (32, 32, 3)
NETWORKS = [
    (lenet5, MNIST, 61_706),
    (mnist_network, MNIST, 1_389_578),
    (cifar10_network, COLOUR, 1_172_410),
    (svhn_network, COLOUR, 1_341_226),
    (wide_resnet, COLOUR, 36_479_194),
]


def count(model, images):
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(("network", "shape", "parameters"), NETWORKS, ids=lambda x: getattr(x, "__name__", None))
def test_networks_have_the_published_sizes(network, shape, parameters):
    model = network()
    assert count(model, jnp.zeros((1, *shape), jnp.uint8)) == parameters
    # Table 7 of Mehra and Hamm, in millions; LeNet-5 is not in it.
    published = {mnist_network: 1.4, cifar10_network: 1.2, svhn_network: 1.3, wide_resnet: 36}
    if network in published:
        assert round(parameters / 1e6, 1 if parameters < 1e7 else 0) == published[network]
    assert network() == model
    assert network(7) != model


@pytest.mark.parametrize(
    ("network", "shape", "per_class"),
    [(lenet5, MNIST, 85), (mnist_network, MNIST, 257), (cifar10_network, COLOUR, 257), (svhn_network, COLOUR, 513)],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_a_class_costs_one_row_of_the_last_layer(network, shape, per_class):
    images = jnp.zeros((1, *shape))
    assert count(network(12), images) - count(network(10), images) == 2 * per_class


def tiny_resnet(classes=3):
    return wide_resnet(classes, depth=10, width=1)


def small_image_network(classes=3, block_dropout=0.0, dense_dropout=0.0):
    """The blocks of the papers' networks, few and narrow: it runs in no time."""
    blocks = ((layers.Conv(4, 3, "SAME"), layers.Conv(5, 3, "VALID")), (layers.Conv(6, 2, "SAME"),))
    return networks._convolutional("small", blocks, (8,), classes, block_dropout, dense_dropout)


def random_like(tree, seed=0, scale=1.0):
    """Normal entries in the shapes of a tree, drawn by numpy: nothing to compile."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape)), tree)


def somewhere(model, images):
    """Parameters with a last layer other than zero, so that logits tell what goes on before it."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    scale = jax.tree.map(lambda x: math.prod(x.shape[:-1]) ** -0.5 if x.ndim > 1 else 0.2, shapes)
    return jax.tree.map(jnp.multiply, random_like(shapes), scale)


@pytest.mark.parametrize(
    "model",
    [small_image_network(), pytest.param(tiny_resnet(), marks=pytest.mark.slow)],
    ids=["convolutional", "wide_resnet"],
)
def test_bytes_are_pixels_and_floats_are_taken_as_they_are(model):
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 10)).astype(np.uint8)
    params = somewhere(model, images)
    run = jax.jit(lambda params, x: logits(model, params, x))
    out = run(params, images)
    assert out.shape == (2, 3)
    assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, run(params, images[..., None] / 255.0), rtol=1e-10)
    assert float(jnp.abs(out - run(params, images[..., None] / 100.0)).max()) > 1e-3
    assert float(jnp.abs(out[0] - out[1]).max()) > 1e-3
    # The type of the parameters is that of the logits.
    single = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    assert jax.eval_shape(run, single, images).dtype == jnp.float32


@pytest.mark.slow
def test_initialisation_is_he_s_and_differs_by_layer_and_key(key):
    init = jax.jit(lambda key: lenet5().init(key, jnp.zeros((1, 28, 28))))
    params, others = init(key), init(jax.random.key(1))
    for layer in (*params["convolutions"], *params["dense"][:-1]):
        into = layer["weight"][..., 0].size
        assert float(layer["weight"].std()) == pytest.approx((2 / into) ** 0.5, rel=0.15)
        np.testing.assert_array_equal(layer["bias"], 0)
    np.testing.assert_array_equal(params["dense"][-1]["weight"], 0)
    leaves = [layer["weight"].ravel()[:60] for layer in (*params["convolutions"], *params["dense"][:-1])]
    leaves += [layer["weight"].ravel()[:60] for layer in (*others["convolutions"], *others["dense"][:-1])]
    assert np.abs(np.corrcoef(np.stack(leaves)) - np.eye(8)).max() < 0.6


@pytest.mark.slow
def test_lenet5_is_the_network_written_with_xla_s_operations(key):
    model = lenet5()
    images = jax.random.uniform(key, (3, 28, 28, 1))
    params = somewhere(model, images)

    def by_hand(params, x):
        for layer, padding in zip(params["convolutions"], ("SAME", "VALID"), strict=True):
            x = jax.nn.relu(xla_convolution(x, layer["weight"], padding, 1) + layer["bias"])
            x = pooled(x)
        x = x.reshape(len(x), -1)
        for layer in params["dense"][:-1]:
            x = jax.nn.relu(x @ layer["weight"] + layer["bias"])
        return x @ params["dense"][-1]["weight"] + params["dense"][-1]["bias"]

    def derivatives(apply):
        """Values, gradient, and the gradient's derivative along p: what a Penalty move takes."""
        p = random_like(params, 1, 0.1)
        gradient = jax.value_and_grad(lambda params: jnp.sum(jnp.sin(apply(params, images))))
        return jax.jit(lambda params: (apply(params, images), jax.jvp(gradient, (params,), (p,))))(params)

    agree(derivatives(lambda params, x: logits(model, params, x)), derivatives(by_hand))


def agree(a, b, rtol=1e-9):
    def one(x, y):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(one, a, b)


def xla_convolution(x, weight, padding, stride):
    return jax.lax.conv_general_dilated(
        x, weight, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def pooled(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


# Many and few channels, even and odd sizes, a window as large as the image and one of a single pixel.
@pytest.mark.parametrize(
    ("shape", "side", "out", "stride", "padding"),
    [
        ((2, 7, 8, 1), 5, 3, 1, "VALID"),
        pytest.param((2, 7, 8, 1), 5, 3, 1, "SAME", marks=pytest.mark.slow),
        ((2, 6, 5, 3), 3, 4, 2, "SAME"),
        pytest.param((1, 5, 5, 2), 5, 2, 1, "VALID", marks=pytest.mark.slow),
        ((2, 8, 7, 65), 2, 3, 1, "SAME"),
        pytest.param((2, 7, 9, 30), 3, 5, 1, "VALID", marks=pytest.mark.slow),
        ((2, 7, 9, 30), 3, 5, 2, "SAME"),
        pytest.param((2, 8, 8, 30), 3, 5, 3, "VALID", marks=pytest.mark.slow),
        ((3, 6, 7, 4), 1, 2, 2, "SAME"),
    ],
    ids=str,
)
def test_convolution_by_products_is_xla_s(shape, side, out, stride, padding, key):
    x = jax.random.normal(key, shape)
    weight = jax.random.normal(jax.random.key(1), (side, side, shape[3], out))
    tangents = jax.random.normal(jax.random.key(2), shape), jax.random.normal(jax.random.key(3), weight.shape)
    pads = jax.lax.padtype_to_pads(shape[1:3], (side, side), (stride, stride), padding)

    def derivatives(convolve):
        """The value, the gradients in x and weight of something curved, and their derivatives along the tangents."""
        gradient = jax.value_and_grad(lambda x, weight: jnp.sum(jnp.sin(convolve(x, weight))), (0, 1))
        return jax.jit(lambda: (convolve(x, weight), jax.jvp(gradient, (x, weight), tangents)))()

    ours = derivatives(lambda x, weight: layers._convolve_by_products(x, weight, pads, stride))
    agree(ours, derivatives(lambda x, weight: xla_convolution(x, weight, padding, stride)))


@pytest.mark.parametrize(
    ("shape", "side", "padding"),
    [
        ((2, 7, 8, 1), 5, "SAME"),
        ((2, 8, 9, 30), 3, "VALID"),
        pytest.param((2, 9, 6, 65), 2, "SAME", marks=pytest.mark.slow),
        pytest.param((1, 6, 6, 2), 5, "VALID", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_pooled_convolution_by_products_is_xla_s(shape, side, padding, key):
    """Odd sizes too: the last row or column is left out."""
    x = jax.random.normal(key, shape)
    weight = jax.random.normal(jax.random.key(1), (side, side, shape[3], 4))
    tangents = jax.random.normal(jax.random.key(2), shape), jax.random.normal(jax.random.key(3), weight.shape)
    pads = jax.lax.padtype_to_pads(shape[1:3], (side, side), (1, 1), padding)

    def derivatives(convolve):
        gradient = jax.value_and_grad(lambda x, weight: jnp.sum(jnp.sin(convolve(x, weight))), (0, 1))
        return jax.jit(lambda: (convolve(x, weight), jax.jvp(gradient, (x, weight), tangents)))()

    ours = derivatives(lambda x, weight: layers._pooled_by_products(x, weight, pads))
    agree(ours, derivatives(lambda x, weight: layers.max_pool(xla_convolution(x, weight, padding, 1))))
    np.testing.assert_allclose(ours[0], pooled(xla_convolution(x, weight, padding, 1)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 5, 6, 3), (2, 4, 7, 1), (1, 3, 3, 2), (1, 2, 2, 1)], ids=str)
def test_max_pooling_is_reduce_window_s(shape, key):
    x, tangent = jax.random.normal(key, shape), jax.random.normal(jax.random.key(1), shape)

    def derivatives(pool):
        gradient = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(pool(x))))
        return jax.jit(lambda: (pool(x), jax.jvp(gradient, (x,), (tangent,))))()

    # reduce_window with a general reducer has no derivative; stacked windows have, and no entries are equal here.
    def stacked(x):
        n, high, wide, c = x.shape
        x = x[:, : high // 2 * 2, : wide // 2 * 2].reshape(n, high // 2, 2, wide // 2, 2, c)
        return x.max((2, 4))

    ours = derivatives(layers.max_pool)
    np.testing.assert_array_equal(ours[0], pooled(x))
    agree(ours, derivatives(stacked))


@pytest.mark.slow
def test_of_equal_pixels_one_takes_the_derivative():
    """As with XLA's own pooling: half to each would make the second derivative of a tie wrong."""
    pads = [(0, 0), (0, 0)]
    for channels in (1, 257):  # both forms of the products
        pixel = jnp.ones((1, 1, channels, 1))
        for pool in (layers.max_pool, lambda x, pixel=pixel: layers._pooled_by_products(x, pixel, pads)):
            gradient = jax.jit(jax.grad(lambda x, pool=pool: jnp.sum(pool(x))))(jnp.zeros((1, 4, 4, channels)))
            expected = np.tile(np.array([[1, 0], [0, 0]])[..., None], (2, 2, channels))
            np.testing.assert_array_equal(gradient[0], expected)


@pytest.mark.parametrize("rate", [0.25, 0.3, 0.5])
def test_dropout_keeps_its_share_and_the_mean(rate, key):
    x = jnp.full((200, 1001), 3.0, jnp.float32)
    out = layers.drop_out(key, x, rate)
    assert out.dtype == x.dtype
    np.testing.assert_allclose(np.unique(out), [0, 3 / (1 - rate)], rtol=1e-6)
    # Four standard deviations of 200,200 draws.
    zero = np.asarray(out == 0)
    assert zero.mean() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / x.size) ** 0.5)
    # No row or column is like its neighbour.
    assert np.abs((zero[1:] ^ zero[:-1]).mean() - 2 * rate * (1 - rate)) < 0.01
    assert np.abs((zero[:, 1:] ^ zero[:, :-1]).mean() - 2 * rate * (1 - rate)) < 0.01
    assert (layers.drop_out(jax.random.key(1), x, rate) != out).mean() == pytest.approx(2 * rate * (1 - rate), abs=0.01)
    np.testing.assert_array_equal(layers.drop_out(key, x, rate), out)


def test_dropout_without_key_or_rate_is_nothing(key):
    x = jnp.arange(6.0)
    assert layers.drop_out(None, x, 0.5) is x
    assert layers.drop_out(key, x, 0.0) is x


@pytest.mark.parametrize("rates", [(0.3, 0.0), (0.0, 0.3)], ids=["blocks", "dense"])
def test_networks_drop_out_in_training_alone(rates, key):
    model = small_image_network(3, *rates)
    images = jax.random.uniform(key, (4, 8, 8, 3))
    params = somewhere(model, images)
    used, without = (jax.jit(lambda p, m=m: logits(m, p, images))(params) for m in (model, small_image_network()))
    np.testing.assert_array_equal(used, without)
    masks = jax.jit(jax.vmap(lambda key: logits(model, params, images, key)))(jax.random.split(key, 50))
    assert float(masks.std(0).min()) > 1e-2


@pytest.mark.slow
def test_the_last_dropout_is_right_in_the_mean(key):
    """The last layer is linear in what is dropped: over many masks the mean of the logits is that in use."""
    model = small_image_network(dense_dropout=0.3)
    images = jax.random.uniform(key, (2, 8, 8, 3))
    params = somewhere(model, images)
    masks = jax.jit(jax.vmap(lambda key: logits(model, params, images, key)))(jax.random.split(key, 4000))
    error = masks.std(0) / 4000**0.5
    used = jax.jit(lambda params: logits(model, params, images))(params)
    assert (np.abs(masks.mean(0) - used) < 4.5 * error).all()


@pytest.mark.parametrize(("network", "rates"), [(mnist_network, (0.25, 0.5)), (cifar10_network, (0.25, 0.5))])
def test_published_dropout_rates(network, rates, key, monkeypatch):
    """The rates that each network asks for, layer by layer, and none without a key."""
    asked, drop = [], layers.drop_out

    def spy(key, x, rate):
        asked.append((key is not None, rate))
        return drop(key, x, rate)

    monkeypatch.setattr(networks, "drop_out", spy)
    model, images = network(), jnp.zeros((1, 32, 32, 3))
    params = jax.eval_shape(model.init, key, images)
    jax.eval_shape(lambda params: model.apply(params, images, key), params)
    blocks = {mnist_network: 2, cifar10_network: 3}[network]
    assert asked == [(True, rates[0])] * blocks + [(True, rates[1])] * 2
    asked.clear()
    jax.eval_shape(lambda params: model.apply(params, images), params)
    assert not any(keyed for keyed, _ in asked)


@pytest.mark.slow
def test_group_normalisation(key):
    x = 5 * jax.random.normal(key, (3, 4, 5, 16)) + 2
    params = {"scale": jnp.linspace(0.5, 2, 16), "bias": jnp.linspace(-1, 1, 16)}
    out = layers.group_norm(params, x)
    expected = np.empty(x.shape)
    for n in range(3):
        for group in range(8):
            channels = slice(2 * group, 2 * group + 2)
            part = np.asarray(x)[n, :, :, channels]
            expected[n, :, :, channels] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    np.testing.assert_allclose(out, expected * params["scale"] + params["bias"], rtol=1e-9, atol=1e-9)
    # A sample's normalisation knows nothing of the others.
    np.testing.assert_allclose(layers.group_norm(params, x[:1]), out[:1], rtol=1e-9)


@pytest.mark.slow
def test_wide_resnet_is_residual(key):
    """With zero second convolutions each block is its shortcut; strides halve the picture twice."""
    model = tiny_resnet()
    images = jax.random.uniform(key, (2, 8, 8, 3))
    params = somewhere(model, images)
    blocks = tuple(
        block | {"convolutions": (block["convolutions"][0], jnp.zeros_like(block["convolutions"][1]))}
        for block in params["blocks"]
    )

    def by_hand(params, x):
        x = xla_convolution(x, params["first"], "SAME", 1)
        for stride, block in zip((1, 2, 2), params["blocks"], strict=True):
            inner = jax.nn.relu(layers.group_norm(block["norms"][0], x))
            if "shortcut" in block:
                x = xla_convolution(inner, block["shortcut"], "SAME", stride)
        assert x.shape == (2, 2, 2, 64)
        x = jax.nn.relu(layers.group_norm(params["norm"], x)).mean((1, 2))
        return x @ params["dense"]["weight"] + params["dense"]["bias"]

    bare = params | {"blocks": blocks}
    run = jax.jit(lambda params: logits(model, params, images))
    np.testing.assert_allclose(run(bare), jax.jit(by_hand)(bare, images), rtol=1e-8, atol=1e-9)
    assert np.abs(np.asarray(run(params)) - np.asarray(run(bare))).max() > 0.1
    assert [len(block) for block in params["blocks"]] == [2, 3, 3]


def test_wide_resnet_can_be_deeper_and_wider(key):
    images = jnp.zeros((1, 8, 8, 3))
    shapes = jax.eval_shape(wide_resnet(10, depth=16, width=2).init, key, images)
    channels = [block["convolutions"][1].shape[3] for block in shapes["blocks"]]
    assert channels == [32, 32, 64, 64, 128, 128]
    assert shapes["dense"]["weight"].shape == (128, 10)


@pytest.mark.slow
def test_augmented_images_in_training_alone(key):
    model = small_image_network(dense_dropout=0.3)
    images = jax.random.uniform(key, (4, 8, 8, 3))
    params = somewhere(model, images)

    def flipped(key, x):
        return x[:, :, ::-1]

    together = augmented(model, flipped)
    assert together == augmented(model, flipped)
    assert together.init is model.init
    np.testing.assert_array_equal(logits(together, params, images), logits(model, params, images))
    second = jax.random.split(key)[1]
    expected = logits(model, params, images[:, :, ::-1], second)
    np.testing.assert_allclose(logits(together, params, images, key), expected, rtol=1e-12)
    assert float(jnp.abs(expected - logits(model, params, images, second)).max()) > 1e-2


def test_augmented_takes_a_model_without_key(key, x):
    model = augmented(softmax_regression(2), lambda key, x: -x)
    params = somewhere(model, x)
    np.testing.assert_allclose(logits(model, params, x, key), logits(softmax_regression(2), params, -x), rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32])
def test_crop_and_flip(dtype, key):
    """Each image is one of its shifts, flipped or not, and each of these is drawn about as often."""
    pad, n = 1, 3600
    image = np.arange(1, 25).reshape(3, 4, 2)
    out = np.asarray(crop_and_flip(pad)(key, jnp.broadcast_to(jnp.asarray(image, dtype), (n, 3, 4, 2))))
    assert out.dtype == dtype
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    candidates = [padded[i : i + 3, j : j + 4] for i in range(3) for j in range(3)]
    candidates += [x[:, ::-1] for x in candidates]
    drawn = np.array([(out == x).all((1, 2, 3)).sum() for x in candidates])
    assert drawn.sum() == n
    # 200 of each expected; 4.5 standard deviations.
    assert np.abs(drawn - n / 18).max() < 4.5 * (n / 18 * 17 / 18) ** 0.5


@pytest.mark.slow
def test_no_padding_only_flips(key):
    x = jax.random.uniform(key, (20, 3, 4, 1))
    out = crop_and_flip(0)(key, x)
    flips = [(a == b).all() for a, b in zip(out, x, strict=True)]
    assert 0 < sum(flips) < 20
    for flip, a, b in zip(flips, out, x, strict=True):
        np.testing.assert_array_equal(a, b if flip else b[:, ::-1])
    assert crop_and_flip(0) == crop_and_flip(0)


@pytest.mark.parametrize("pad", [-1, 1.0, True, "4"])
def test_crop_and_flip_refuses(pad):
    with pytest.raises(InputError, match=r"pad is .*, and must be an integer of at least 0"):
        crop_and_flip(pad)


@pytest.mark.parametrize("network", [lenet5, mnist_network, cifar10_network, svhn_network, wide_resnet])
@pytest.mark.parametrize("classes", [1, 0, True, 10.0, "10"])
def test_too_few_classes(network, classes):
    with pytest.raises(InputError, match=f"{network.__name__}: classes is .*, and must be an integer of at least 2"):
        network(classes)


@pytest.mark.parametrize("depth", [4, 12, 27, 10.0, True])
def test_wide_resnet_refuses_a_depth(depth):
    with pytest.raises(InputError, match=r"depth is .*, and must be 6 k \+ 4"):
        wide_resnet(10, depth=depth)


@pytest.mark.parametrize("width", [0, -1, 1.0, True])
def test_wide_resnet_refuses_a_width(width):
    with pytest.raises(InputError, match=r"width is .*, and must be a positive integer"):
        wide_resnet(10, width=width)


@pytest.mark.parametrize("network", [lenet5, mnist_network, cifar10_network, svhn_network, wide_resnet])
@pytest.mark.parametrize("shape", [(28, 28), (5, 784), (1, 2, 28, 28, 1)], ids=str)
def test_images_of_another_rank(network, shape, key):
    with pytest.raises(InputError, match=f"{network.__name__}: images have shape .*must be \\(n, height, width\\)"):
        network().init(key, jnp.zeros(shape))


def test_images_of_another_rank_in_use(key):
    model = small_image_network()
    params = somewhere(model, jnp.zeros((1, 8, 8)))
    with pytest.raises(InputError, match=r"small: images have shape \(2, 64\)"):
        logits(model, params, jnp.zeros((2, 64)))


# The smallest side that leaves a pixel, and one less.
@pytest.mark.parametrize(
    ("network", "side"), [(lenet5, 12), (mnist_network, 16), (cifar10_network, 22), (svhn_network, 8)]
)
def test_images_that_are_too_small(network, side, key):
    model = network()
    shapes = jax.eval_shape(model.init, key, jnp.zeros((1, side, side + 3)))
    assert shapes["dense"][0]["weight"].shape[0] >= 16
    for shape in ((side - 1, side + 3), (side + 3, side - 1)):
        with pytest.raises(InputError, match=f"images of {shape[0]}x{shape[1]} are too small"):
            model.init(key, jnp.zeros((1, *shape)))
        with pytest.raises(InputError, match=f"images of {shape[0]}x{shape[1]} are too small"):
            jax.eval_shape(lambda params, shape=shape: logits(model, params, jnp.zeros((1, *shape))), shapes)


def test_as_model_takes_the_networks(key):
    for network in (lenet5, wide_resnet):
        assert as_model(network, 4) == network(4)


# Values: equal settings make equal models, which are compiled once, and all can be pickled.
VALUES = {
    "softmax_regression": lambda: nn_model.model_of(layers.DenseNetwork(3, ())),
    "softmax_head": lambda: nn_model.model_of(networks._Head(3)),
    "mlp": lambda: nn_model.model_of(layers.DenseNetwork(3, (8,))),
    "convolutional": small_image_network,
    "wide_resnet": lambda: nn_model.model_of(networks._WideResNet(3, 10, 1)),
    "augmented": lambda: Model(
        mlp(3).init, Method(augmentation._Augmented(mlp(3), augmentation._CropAndFlip(2)), "apply")
    ),
    "representation": lambda: representations._OmniglotNetwork(8).representation(),
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_equal_settings_are_equal_models_and_survive_pickling(make):
    model = make()
    assert make() is not model
    assert make() == model
    assert hash(make()) == hash(model)
    assert pickle.loads(pickle.dumps(model)) == model
    assert mlp(3, (8,)) != mlp(3, (9,)) != softmax_regression(3)


def test_counts_of_numpy_and_lists_of_widths_are_taken():
    assert mlp(np.int64(3), widths=[np.int64(8)]) == mlp(3, (8,))
    assert softmax_regression(np.int64(3)) == softmax_regression(3)
    for bad in ("8", 8, (8.0,)):
        with pytest.raises(InputError, match="width"):
            mlp(3, widths=bad)


def bare(classes):
    """A user's pair, which knows nothing of bytes."""
    return Model(
        lambda key, x: jnp.zeros((math.prod(x.shape[1:]), classes)), lambda v, x: x.reshape(len(x), -1) @ v + 1.0
    )


@pytest.mark.parametrize(
    "model", [mlp(3), softmax_regression(3), softmax_head(3), bare(3)], ids=["mlp", "softmax", "head", "pair"]
)
def test_every_model_takes_images_as_bytes_for_pixels_from_0_to_1(model):
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 2)).astype(np.uint8)
    params = random_like(model.init(jax.random.key(0), jnp.asarray(images)))
    np.testing.assert_allclose(logits(model, params, images), logits(model, params, images / 255), rtol=1e-12)
    # A table of uint8 holds numbers.
    table = images.reshape(4, -1)
    np.testing.assert_allclose(logits(model, params, table), logits(model, params, table.astype(float)), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "on"),
    [
        *(("train", True), ("training", True), ("is_training", True)),
        *(("deterministic", False), ("inference", False), ("use_running_average", False)),
    ],
)
def test_flax_dropout_follows_the_mode_by_any_usual_name(name, on, key):
    scope = {"nn": nn}
    body = f"nn.Dropout(0.5, deterministic={'not ' if on else ''}{name})(x)"
    exec(f"@nn.compact\ndef call(self, x, {name}={not on}):\n    return nn.Dense(3)({body})", scope)
    model = from_flax(type("Made", (nn.Module,), {"__call__": scope["call"]})())
    x = jnp.ones((6, 4))
    params = model.init(key, x)
    np.testing.assert_array_equal(logits(model, params, x), logits(model, params, x))
    assert float(jnp.abs(logits(model, params, x, key) - logits(model, params, x)).max()) > 1e-3


class Field(nn.Module):
    training: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=not self.training)(nn.Dense(3)(x))


class Unknown(nn.Module):
    @nn.compact
    def __call__(self, x, wild: bool = False):
        return nn.Dropout(0.5, deterministic=not wild)(nn.Dense(3)(x))


class AlwaysOn(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(x))


class Attending(nn.Module):
    @nn.compact
    def __call__(self, x, wild: bool = False):
        x = nn.MultiHeadDotProductAttention(1, dropout_rate=0.5, deterministic=not wild)(x[:, None])
        return nn.Dense(3)(x[:, 0])


def test_flax_dropout_that_is_switched_by_a_field(key):
    model, x = from_flax(Field()), jnp.ones((6, 4))
    params = model.init(key, x)
    assert float(jnp.abs(logits(model, params, x, key) - logits(model, params, x)).max()) > 1e-3


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Unknown(), "model Unknown has dropout that stays off in training"),
        (AlwaysOn(), "model AlwaysOn has dropout that stays on in predictions"),
        (Attending(), "model Attending has dropout that stays off in training"),
        (nn.Sequential([nn.Dense(3), nn.Dropout(0.5)]), "model Sequential cannot be initialised"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_flax_dropout_that_cannot_be_switched_is_refused(module, sentence, key):
    with pytest.raises(InputError, match=sentence):
        from_flax(module).init(key, jnp.ones((6, 4)))


class Keyless(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __call__(self, x):
        return self.linear(self.dropout(x))


def test_equinox_dropout_without_a_key_is_refused(key):
    with pytest.raises(InputError, match="model Keyless has dropout, and its __call__ takes no key"):
        from_equinox(Keyless(eqx.nn.Linear(4, 3, key=key), eqx.nn.Dropout(0.5)))
    from_equinox(Keyless(eqx.nn.Linear(4, 3, key=key), eqx.nn.Dropout(0.0)))  # which never drops


def foreign(module):
    """An instance of a class that says it comes from another library."""
    return type("Net", (), {"__module__": module, "__call__": lambda self, x: 1 / 0})()


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (foreign("tensorflow.python.module.module"), "model is a TensorFlow model, which is not a model of JAX"),
        (foreign("tf_keras.src.models"), "model is a TensorFlow model, which is not a model of JAX"),
        (Net, r"model is the class Net, which is not a model: call it, Net\(\.\.\.\)"),
        (lambda: mlp(3), r"model\(3\) raises TypeError"),
        (lambda classes: 1 / 0, r"model\(3\) raises ZeroDivisionError"),
        (None, "which is not a model"),
    ],
)
def test_other_libraries_models_are_refused_by_name(bad, sentence):
    with pytest.raises(InputError, match=sentence):
        as_model(bad, 3)


def test_a_function_of_the_classes_may_return_a_module():
    assert as_model(lambda classes: Net(classes), 4) == from_flax(Net(4))
