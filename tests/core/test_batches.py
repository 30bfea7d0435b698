"""Sources of batches: what is drawn, how often, and with what."""

import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax import Epochs, Minibatches, Samples, Stacked, whole
from bilevax.loop.feed import prefetch
from bilevax.loop.sources import epoch_indices


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 3), (64, 64), (1025, 200), (5, 9)])
def test_every_sample_once_per_pass(n, size, key):
    """Over any whole number of passes each index comes equally often, batches spanning passes included."""
    turns = n  # n batches of `size` are exactly `size` passes
    indices = np.asarray(jax.jit(jax.vmap(lambda t: epoch_indices(t, size, n, key)))(jnp.arange(turns))).ravel()
    for one_pass in indices.reshape(size, n):
        np.testing.assert_array_equal(np.sort(one_pass), np.arange(n))


def test_passes_are_shuffled_anew_and_look_random(key):
    n = 1000
    passes = np.asarray(jax.jit(jax.vmap(lambda t: epoch_indices(t, n, n, key)))(np.arange(200)))
    assert len({tuple(p) for p in passes}) == 200
    # Correlation of place and index: mean zero, standard deviation 1/sqrt(n - 1) for random orders.
    correlations = np.array([np.corrcoef(p, np.arange(n))[0, 1] for p in passes])
    assert abs(correlations.mean()) < 4 / np.sqrt(n * 200)
    assert 0.8 < correlations.std() * np.sqrt(n) < 1.2
    # How often each sample comes in the first tenth: binomial(200, 0.1).
    counts = np.bincount(passes[:, : n // 10].ravel(), minlength=n)
    assert 0.8 < counts.var() / (200 * 0.1 * 0.9) < 1.2


@pytest.mark.slow
def test_turns_far_out_neither_overflow_nor_repeat(key):
    n, size = 1_000_003, 999
    far = 2_000_000_000
    a, b = (np.asarray(epoch_indices(t, size, n, key)) for t in (far, far + 1))
    assert a.min() >= 0
    assert max(a.max(), b.max()) < n
    assert len(set(a) | set(b)) > 2 * size - 5
    epoch, place = divmod(far * size, n)
    again = np.asarray(epoch_indices(jnp.uint32(far), size, n, key))
    np.testing.assert_array_equal(a, again)
    assert place + size < n or epoch > 0


def test_with_replacement_is_uniform(key):
    source = Minibatches(upper=jnp.zeros(3), lower=jnp.arange(50.0), lower_size=100)
    draws = np.asarray(jax.jit(jax.vmap(lambda t: source.at(t, key).lower.index))(np.arange(400))).ravel()
    counts = np.bincount(draws, minlength=50)
    chi2 = ((counts - 800) ** 2 / 800).sum()
    assert 25 < chi2 < 85  # 49 degrees of freedom


@pytest.mark.parametrize("kind", [Minibatches, Epochs])
def test_indices_travel_with_the_data(kind, key):
    X = jnp.arange(40.0).reshape(20, 2)
    source = kind(upper={"X": X}, lower=(X, jnp.arange(20)), upper_size=4, lower_size=6)
    batch = jax.jit(source.at)(3, key)
    assert isinstance(batch.upper, Samples)
    np.testing.assert_array_equal(batch.upper.data["X"], X[batch.upper.index])
    np.testing.assert_array_equal(batch.lower.data[0], X[batch.lower.index])
    np.testing.assert_array_equal(batch.lower.data[1], batch.lower.index)


@pytest.mark.parametrize("kind", [Minibatches, Epochs])
def test_fresh_batches_per_move(kind, key):
    source = kind(upper=jnp.zeros(2), lower=jnp.arange(100), lower_size=5, per_move=3)
    batch = jax.device_get(jax.jit(source.at)(0, key))
    assert isinstance(batch.lower, bx.PerMove)
    assert batch.lower.data.index.shape == (3, 5)
    assert len({tuple(map(int, row)) for row in batch.lower.data.index}) == 3


@pytest.mark.slow
def test_stacked_gives_each_member_its_own(key):
    data = jnp.arange(30).reshape(3, 10)
    batch = jax.device_get(jax.jit(Stacked(Epochs(upper=data, lower=data, lower_size=4)).at)(0, key))
    assert batch.lower.data.shape == (3, 4)
    for i in range(3):
        np.testing.assert_array_equal(batch.lower.data[i], data[i][batch.lower.index[i]])
    assert len({tuple(map(int, row)) for row in batch.lower.index}) == 3


def test_nothing_is_sorted_and_nothing_of_the_data_s_size_is_written(key):
    """The compiled sampler holds no sort, and allocates next to nothing."""
    source = Epochs(upper=jnp.zeros(1), lower=jnp.zeros((200_000, 4)), lower_size=64)
    compiled = jax.jit(lambda s, t, k: s.at(t, k).lower).lower(source, 0, key).compile()
    assert " sort(" not in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < 64_000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lower_size": 11}, "lower has 10 samples, fewer than one batch of 11"),
        ({"lower_size": 0}, "lower_size is 0, and must be a positive integer"),
        ({"upper_size": 2.5}, "upper_size is 2.5"),
        ({"lower_size": 2, "per_move": 0}, "per_move is 0"),
        ({"lower": (jnp.ones(10), jnp.ones(9)), "lower_size": 2}, r"leading sizes of lower differ .*10.*9"),
    ],
)
@pytest.mark.parametrize("kind", [Minibatches, Epochs])
def test_bad_sizes(kind, fields, message, key):
    problem = bx.Problem(lambda u, v, _: v**2, lambda u, v, _: (u - v) ** 2)

    def made_and_used():
        source = kind(**({"upper": jnp.ones(10), "lower": jnp.ones(10)} | fields))
        bx.solve(bx.Alternating(), problem, jnp.zeros(()), jnp.zeros(()), source, steps=1, key=key)

    with pytest.raises(bx.InputError, match=message):
        made_and_used()


def test_whole():
    samples = whole((jnp.ones((4, 2)), jnp.ones(4)))
    np.testing.assert_array_equal(samples.index, np.arange(4))
    with pytest.raises(bx.InputError, match="leading sizes"):
        whole((jnp.ones(4), jnp.ones(5)))


def test_prefetch_works_ahead_and_hands_on_errors():
    made = []

    def batches():
        for i in itertools.count():
            made.append(i)
            if i == 5:
                raise RuntimeError("the disk is gone")
            yield bx.Batch(upper=np.float64(i))

    feed = prefetch(batches(), depth=2)
    assert float(next(feed).upper) == 0
    assert [float(next(feed).upper) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(feed)
    assert not [t for t in threading.enumerate() if t.name == "bilevax-prefetch"]


def test_prefetch_stops_its_thread_when_left():
    feed = prefetch(bx.Batch(upper=np.zeros(1)) for _ in itertools.count())
    next(feed)
    feed.close()
    assert not [t for t in threading.enumerate() if t.name == "bilevax-prefetch"]


def test_a_stream_whose_structure_changes_is_refused(key):
    """The error names the batch and both structures, and callbacks are finished."""
    problem = bx.Problem(lambda u, v, data: jnp.sum((v - data["x"]) ** 2), lambda u, v, _: (u - v) ** 2)
    batches = [bx.Batch(upper={"x": np.ones(2)}) for _ in range(3)] + [bx.Batch(upper={"x": np.ones(2), "w": 1.0})]
    seen = []
    message = r"a batch 3 with .*\{'w': \*, 'x': \*\}.* batch 0, has the structure .*\{'x': \*\}.* of one structure"
    with pytest.raises(bx.InputError, match=message):
        bx.solve(
            bx.Alternating(), problem, jnp.zeros(()), jnp.zeros(()), batches, steps=9, every=1, key=key,
            callbacks=[lambda visit: seen.append(visit.step)],
        )  # fmt: skip
    assert seen == [1, 2, 3]
