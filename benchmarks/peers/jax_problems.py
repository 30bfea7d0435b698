"""The works in JAX, from the library's applications; for bilevax's rows, for JAXopt's and for the judge."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

import bilevax as bx
from benchmarks.peers.works import (
    CLASSES,
    DENOISING,
    FEATURES,
    FILTERS,
    HEADS,
    HIDDEN,
    L2,
    QUERIES,
    SHOT,
    TASKS,
    WAY,
    Arrays,
    leaves,
)
from bilevax.applications.denoising import denoising_task
from bilevax.applications.fewshot import episodes, features_of, fewshot_task, unit
from bilevax.applications.fewshot.tasks import SCALE, cross_entropies
from bilevax.applications.poisoning import Points, untargeted_task
from bilevax.loop.sources import Fixed
from bilevax.nn import Model, Training, mlp, mnist_network, omniglot_network, softmax_head
from bilevax.solvers import base


class Setup(NamedTuple):
    """A work in JAX.

    Attributes:
        problem, source, u, v: what `solve` takes.
        data: the batch of every iteration.
        shared: (u, data) -> what both losses compute from u alone; u itself, except features in few-shot learning.
        f, g: (shared, v, data) -> loss.
        restart: (shared, data) -> where v starts in each upper iteration; None: where it stopped.
    """

    problem: bx.Problem
    source: Any
    u: PyTree
    v: PyTree
    data: bx.Batch
    shared: Callable[[Any, bx.Batch], Any]
    f: Callable[[Any, Any, bx.Batch], Any]
    g: Callable[[Any, Any, bx.Batch], Any]
    restart: Callable[[Any, bx.Batch], Any] | None


class Pool(NamedTuple):
    """Batches on the device, of which a step takes one by number, as `Episodes` draws them; here all are the same.

    If the batch were fixed for the whole loop, XLA would move the first layer's output out of the loop, once for each
    use of the features, and no longer detect that these are the same features: a third more arithmetic. If a batch is
    drawn in each step, as in few-shot learning, the features are computed once.
    """

    batches: bx.Batch

    def at(self, step: Any, key: PRNGKeyArray) -> bx.Batch:
        """The batch of a step."""
        count = jax.tree.leaves(self.batches)[0].shape[0]
        return jax.tree.map(lambda x: x[step % count], self.batches)


def quiet(model: Model) -> Model:
    """The model without its dropout: random numbers differ between libraries."""
    return Model(model.init, lambda params, x: model.apply(params, x))


def _normalised(x: Any) -> Any:
    """Of mean 0 and variance 1 along the last axis."""
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)


def _attended(qkv: Any) -> Any:
    """Softmax attention of (n, tokens, 3 features), without a mask."""
    q, k, v = (jnp.swapaxes(x.reshape(*x.shape[:2], HEADS, -1), 1, 2) for x in jnp.split(qkv, 3, -1))
    shares = jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) * (FEATURES / HEADS) ** -0.5, -1)
    return jnp.swapaxes(shares @ v, 1, 2).reshape(*qkv.shape[:2], FEATURES)


def _block(params: PyTree, x: Any) -> Any:
    """Logits (n, classes) of sequences (n, tokens, features): attention, an MLP, the mean of the tokens."""
    attention, out, into, back, head = params
    x = x + _attended(_normalised(x) @ attention) @ out
    x = x + jax.nn.gelu(_normalised(x) @ into) @ back
    return jnp.mean(_normalised(x), 1) @ head


def _zeros(key: PRNGKeyArray, x: Any) -> PyTree:
    shapes = ((FEATURES, 3 * FEATURES), (FEATURES, FEATURES), (FEATURES, 4 * FEATURES), (4 * FEATURES, FEATURES))
    return tuple(jnp.zeros(shape) for shape in (*shapes, (FEATURES, CLASSES)))


BLOCK = Model(_zeros, _block)


def _like(tree: Any, arrays: Arrays, name: str) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), [jnp.asarray(x) for x in leaves(arrays, name)])


def _synthetic(arrays: Arrays) -> Setup:
    # Without the box of the paper, which its solution does not touch: not every library can project v.
    problem = bx.Problem(lambda u, v, data: jnp.sum(u**2) + jnp.sum(v**2), lambda u, v, data: jnp.sum((1 - u - v) ** 2))
    (u,), (v,) = ([jnp.asarray(x) for x in leaves(arrays, name)] for name in "uv")
    return _plain(problem, Fixed(bx.Batch()), u, v)


def _plain(problem: bx.Problem, source: Any, u: PyTree, v: PyTree) -> Setup:
    """A problem in which nothing is computed from u alone."""

    def f(u: PyTree, v: PyTree, data: bx.Batch) -> Any:
        return problem.upper(u, v, data.upper, None)

    def g(u: PyTree, v: PyTree, data: bx.Batch) -> Any:
        return problem.lower(u, v, data.lower, None)

    return Setup(problem, source, u, v, source.at(0, jax.random.key(0)), lambda u, data: u, f, g, None)


def _of_task(task: Any) -> Setup:
    return _plain(task.problem, task.batches, *task.start)


def _poisoning(arrays: Arrays) -> Setup:
    (u,), (v,) = leaves(arrays, "u"), leaves(arrays, "v")
    x, y, x_val, y_val = (arrays[name] for name in ("x", "y", "x_val", "y_val"))
    points, training = Points(u, arrays["labels"]), Training(l2=L2["poisoning"])
    key = jax.random.key(0)
    head, start = softmax_head(int(y.max()) + 1), jnp.asarray(v)
    return _of_task(untargeted_task(head, x, y, x_val, y_val, points, key=key, training=training, start=start))


def _denoising(arrays: Arrays, model: Model, l2: float) -> Setup:
    x, y, x_val, y_val = (arrays[name] for name in ("x", "y", "x_val", "y_val"))
    (u,) = leaves(arrays, "u")
    key = jax.random.key(0)
    v = _like(jax.eval_shape(model.init, key, x[:1]), arrays, "v")
    start = jnp.asarray(u), v
    return _of_task(denoising_task(model, x, y, x_val, y_val, key=key, training=Training(l2=l2), start=start))


def _fewshot(arrays: Arrays) -> Setup:
    network, key = omniglot_network(FILTERS), jax.random.key(0)
    support, queries = (jnp.asarray(arrays[name]) for name in ("support", "queries"))
    labels = [jnp.tile(jnp.repeat(jnp.arange(WAY), each), (TASKS, 1)) for each in (SHOT, QUERIES)]
    batch = bx.Batch(episodes.Episode(queries, labels[1]), episodes.Episode(support, labels[0]))
    some = jnp.zeros((WAY, SHOT + QUERIES, *support.shape[2:]))
    sizes = {"way": WAY, "shot": SHOT, "queries": QUERIES, "tasks": TASKS}
    task = fewshot_task(network, some, key=key, **sizes).task
    u, v = _like(task.start[0], arrays, "u"), jnp.asarray(leaves(arrays, "v")[0])

    def shared(u: PyTree, data: bx.Batch) -> Any:
        return [features_of(network, u, part) for part in (data.lower, data.upper)]

    def losses(features: Any, v: PyTree, part: episodes.Episode) -> Any:
        return cross_entropies(SCALE * unit(features) @ jnp.swapaxes(unit(v), 1, 2), part.y)

    def restart(s: Any, data: bx.Batch) -> Any:
        return unit(episodes.class_means(s[0], data.lower.y, WAY))

    return Setup(
        task.problem,
        Pool(jax.tree.map(lambda x: jnp.stack([x, x]), batch)),
        u,
        v,
        batch,
        shared,
        lambda s, v, data: jnp.mean(losses(s[1], v, data.upper)),
        lambda s, v, data: jnp.sum(losses(s[0], v, data.lower)),
        restart,
    )


def setup(work: str, arrays: Arrays) -> Setup:
    """A work of `works.WORKS` with its arrays."""
    match work:
        case "synthetic":
            return _synthetic(arrays)
        case "poisoning":
            return _poisoning(arrays)
        case "mlp":
            return _denoising(arrays, quiet(mlp(10, (HIDDEN,))), L2["mlp"])
        case "mnist":
            return _denoising(arrays, quiet(mnist_network()), L2["mnist"])
        case "transformer":
            return _denoising(arrays, BLOCK, L2["transformer"])
        case "fewshot":
            return _fewshot(arrays)
    raise ValueError(f"there is no work {work!r}")


@functools.partial(jax.jit, static_argnames=("problem", "optimizer", "moves"))
def descended(
    problem: bx.Problem, data: bx.Batch, u: PyTree, v: PyTree, optimizer: optax.GradientTransformation, moves: int
) -> Any:
    """V after so many moves down g."""
    return base.Descent(problem, u, optimizer).moves(v, optimizer.init(v), data, moves, jax.random.key(0))[0]


@functools.cache
def _on_clean(problem: bx.Problem) -> bx.Problem:
    """The problem whose lower level is the upper loss."""
    return bx.Problem(problem.upper_loss, problem.upper_loss)


def warmed(work: str, arrays: Arrays, moves: int) -> Arrays:
    """The arrays, v some moves of Adam from where it was: down g, in denoising down the loss on the clean samples."""
    if moves == 0:
        return arrays
    made = setup(work, arrays)
    problem, data = made.problem, made.data
    if work in DENOISING:
        problem, data = _on_clean(problem), bx.Batch(data.upper, data.upper)
    v = descended(problem, data, made.u, made.v, optax.adam(1e-3), moves)
    return arrays | {f"v_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(v))}


def judge(work: str, arrays: Arrays) -> Callable[[list[np.ndarray]], float]:
    """(u as a list of arrays) -> what `Work.measure` names. It retrains v, so a v far from v*(u) is no gain."""
    if work == "synthetic":
        return lambda u: float(np.linalg.norm(u[0] - 0.5))
    if work in DENOISING:
        return lambda u: float(np.mean((u[0] > 0) == (arrays["right"] == 1)))
    made = setup(work, arrays)

    if made.restart is None:
        optimizer, moves = optax.adam(optax.cosine_decay_schedule(1e-2, 200)), 200
    else:
        optimizer, moves = optax.sgd(0.1), 100
    f = jax.jit(made.f)

    def after_training(u: list[np.ndarray]) -> float:
        u = jax.tree.unflatten(jax.tree.structure(made.u), u)
        s, v = made.shared(u, made.data), made.v
        v = v if made.restart is None else made.restart(s, made.data)
        return float(f(s, descended(made.problem, made.data, u, v, optimizer, moves), made.data))

    return after_training
