"""Importance learning (Mehra and Hamm 2021, eq. 3 and appendix E.2) and its kin, as Tasks for any solver.

Each sample i of a training set whose labels are in doubt has a weight. A model trained by these weights
should do well on a small set whose labels are known to be right. The tasks differ in what u is:

| task | u | weight of sample i | lower loss on a batch |
|---|---|---|---|
| `denoising_task` (Mehra and Hamm) | (n,) | (tanh u_i + 1) / 2 | sum_i w_i CE_i / sum_i w_i |
| `reweighting_task` (Ren et al. 2018) | (n,) | u_i | mean_i w_i CE_i |
| `meta_weight_task` (Shu et al. 2019) | a small network V | V(CE_i) | sum_i w_i CE_i / sum_i w_i |

each plus l2/2 |matrices of v|^2; the upper loss is the mean cross-entropy on the clean set. Images of uint8 stay bytes
in memory, and reach the model, whichever it is, as floats in 0..1 (`bilevax.nn.model.pixels`).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.isotonic import IsotonicRegression

from bilevax._checks import InputError, PyTree
from bilevax.applications.task import Task
from bilevax.loop.sources import Epochs, Samples
from bilevax.nn.model import Model, initial
from bilevax.nn.training import Training, cross_entropy, penalised, probabilities, train, weighted_mean
from bilevax.problem import Problem

AGREES, DISAGREES = 0.6, 0.4
SUREST = 0.98
WARM_ROUNDS = 2
META_WIDTH = 100


def per_sample(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` with a state of its own for each entry of u; an entry without a gradient is left alone.

    With minibatches only the samples in the batch have a gradient. Plain Adam would move all others too, by momentum,
    and let their second moments fade between two visits; the step count, with which it corrects its moments' bias,
    would be that of the whole solve and not of the sample's visits. On full batches this is `optimizer` itself.

    Args:
        optimizer: any that treats entries one by one, such as optax.adam; not one that takes norms. u is (n,), or a
            tree of such arrays.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from bilevax.applications.denoising import per_sample
        >>> optimizer = per_sample(optax.adam(0.1))
        >>> updates, _ = optimizer.update(jnp.array([0.0, 2.0]), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
        >>> print(jnp.round(updates, 4))
        [ 0.  -0.1]
    """

    def init(params: Any) -> Any:
        return jax.vmap(optimizer.init)(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(gradient: Any, state: Any, x: Any) -> tuple[Any, Any]:
            moved, new = optimizer.update(gradient, state, x)
            seen = jnp.any(jnp.stack(jax.tree.leaves(gradient)) != 0)
            moved = jax.tree.map(lambda a: jnp.where(seen, a, jnp.zeros_like(a)), moved)
            return moved, jax.tree.map(lambda a, b: jnp.where(seen, a, b), new, state)

        return jax.vmap(one)(updates, state, params)

    return optax.GradientTransformation(init, update)


def weights(u: Any) -> Any:
    """Importance weights (n,) in 0..1 from u: (tanh u + 1) / 2."""
    return (jnp.tanh(u) + 1) / 2


def from_agreement(agrees: Any) -> Any:
    """Where samples start: u (n,) by whether a model predicts their labels (n,)."""
    return jnp.arctanh(2 * jnp.where(agrees, AGREES, DISAGREES).astype(jnp.result_type(float)) - 1)


def from_losses(losses: Any, clean_losses: Any) -> Any:
    """Values u (n,) whose weights are the probability that a label is right, from losses under one model.

    Losses of clean samples are drawn as those of right labels are. So a label of loss s is right with probability
    (1 - r) c(s) / t(s), with c and t the densities of clean and of training losses, and 1 - r the share of right
    labels. Isotonic regression separates clean from training losses, which gives c / t and never rises with s; 1 - r is
    how many training losses, as against clean ones, lie below the clean median, where wrong labels are few.

    Unlike agreement with the model's predictions this keeps right samples that are hard: of Fashion-MNIST with 25% and
    50% wrong labels, after four passes of LeNet-5, the F1 of right labels kept was 0.975 and 0.953 (row `Start` of
    `python -m experiments table2 --medium`, seed 0). The model may have been trained on all samples, but must not have
    fitted wrong labels yet.

    Args:
        losses: (n,) of the training samples, such as the cross-entropy of the given label.
        clean_losses: (m,) of the clean samples; some hundreds, since their quantiles are compared.

    Returns:
        u (n,), with weights within 0.02..0.98, so that they can still move.

    Raises:
        InputError: either is empty or has entries that are not finite.

    Source: density ratios by a classifier: Sugiyama, Suzuki and Kanamori, "Density ratio estimation in machine
    learning", 2012, chapter 4.

    Example:
        >>> from bilevax.applications.denoising import from_losses, weights
        >>> u = from_losses([0.1, 0.2, 0.3, 3.0, 4.0], [0.1, 0.2, 0.3])
        >>> print([round(float(w), 2) for w in weights(u)])
        [0.98, 0.98, 0.98, 0.02, 0.02]
    """
    losses, clean_losses = np.asarray(losses, float), np.asarray(clean_losses, float)
    for name, found in (("losses", losses), ("clean_losses", clean_losses)):
        if not (found.size and np.isfinite(found).all()):
            raise InputError(f"from_losses: {name} must hold one finite loss per sample; {found.size} were given.")
    n, m = len(losses), len(clean_losses)
    is_clean = np.repeat([0.0, 1.0], (n, m))
    shares = np.repeat([1 / n, 1 / m], (n, m))
    classifier = IsotonicRegression(increasing=False, out_of_bounds="clip")
    clean = classifier.fit(np.concatenate([losses, clean_losses]), is_clean, sample_weight=shares).predict(losses)
    median = np.median(clean_losses)
    right = np.mean(losses <= median) / np.mean(clean_losses <= median)
    probability = right * clean / np.maximum(1 - clean, np.finfo(float).tiny ** 0.5)
    clipped = np.clip(probability, 1 - SUREST, SUREST)
    return jnp.arctanh(jnp.asarray(2 * clipped - 1, jnp.result_type(float)))


@dataclass(frozen=True)
class _CleanLoss:
    """The mean cross-entropy on the clean samples; losses are values, so those of equal models share their programs."""

    model: Model

    def __call__(self, u: PyTree, v: PyTree, clean: Samples) -> Any:
        return jnp.mean(cross_entropy(self.model, v, *clean.data))


@dataclass(frozen=True)
class _ImportanceLoss:
    """The lower loss of `denoising_task`."""

    model: Model
    l2: float

    def __call__(self, u: Any, v: PyTree, noisy: Samples, *, key: Any) -> Any:
        losses = cross_entropy(self.model, v, *noisy.data, key=key)
        return penalised(weighted_mean(losses, weights(u[noisy.index])), self.l2, v)


@dataclass(frozen=True)
class _ReweightedLoss:
    """The lower loss of `reweighting_task`."""

    model: Model
    l2: float

    def __call__(self, u: Any, v: PyTree, noisy: Samples, *, key: Any) -> Any:
        losses = cross_entropy(self.model, v, *noisy.data, key=key)
        return penalised(jnp.mean(u[noisy.index] * losses), self.l2, v)


@dataclass(frozen=True)
class _MetaWeightLoss:
    """The lower loss of `meta_weight_task`."""

    model: Model
    l2: float

    def __call__(self, u: PyTree, v: PyTree, noisy: Samples, *, key: Any) -> Any:
        losses = cross_entropy(self.model, v, *noisy.data, key=key)
        # V sees the loss as a feature; v does not learn through it (Shu et al. 2019, eq. 5).
        return penalised(weighted_mean(losses, meta_weights(u, jax.lax.stop_gradient(losses))), self.l2, v)


def meta_weights(u: PyTree, losses: Any) -> Any:
    """V(loss; u) in 0..1 of each sample (n,): one hidden layer of ReLU, then a sigmoid (Shu et al. 2019)."""
    hidden = jax.nn.relu(losses[:, None] * u["into"] + u["bias"])
    return jax.nn.sigmoid(hidden @ u["out"] + u["level"])


class _Data:
    """The arrays of a task on the device, and what all tasks make of them."""

    def __init__(self, X: Any, y: Any, X_clean: Any, y_clean: Any):
        self.x, self.x_clean = _array(X), _array(X_clean)
        self.y, self.y_clean = jnp.asarray(y, jnp.int32), jnp.asarray(y_clean, jnp.int32)

    def batches(self, batch_size: int | None, clean_batch_size: int | None) -> Epochs:
        clean, noisy = (self.x_clean, self.y_clean), (self.x, self.y)
        return Epochs(clean, noisy, upper_size=clean_batch_size, lower_size=batch_size)

    def train(self, model: Model, training: Training, trusted: Any, key: Any) -> PyTree:
        """A model trained on the clean samples and the trusted (n,) others."""
        x, y = jnp.concatenate([self.x, self.x_clean]), jnp.concatenate([self.y, self.y_clean])
        weight = jnp.concatenate([jnp.asarray(trusted, float), jnp.ones(len(self.y_clean))])
        return train(model, training, x, y, weight, key)

    def on_clean(self, model: Model, v: PyTree) -> dict[str, float]:
        """Cross-entropy and accuracy on the clean set."""
        p, truth = probabilities(model, v, self.x_clean), np.asarray(self.y_clean)
        of_truth = p[np.arange(len(truth)), truth]
        return {
            "clean_loss": float(-np.log(np.maximum(of_truth, np.finfo(p.dtype).tiny)).mean()),
            "clean_accuracy": float((p.argmax(1) == truth).mean()),
        }


def _array(x: Any) -> Any:
    """Floats; images as bytes stay so, which is four times less memory: `models.logits` scales them."""
    images = getattr(x, "dtype", None) == np.uint8 and np.ndim(x) > 2
    return jnp.asarray(x) if images else jnp.asarray(x, jnp.result_type(float))


def denoising_task(
    model: Model,
    X: Any,
    y: Any,
    X_clean: Any,
    y_clean: Any,
    *,
    key: Any,
    training: Training = Training(),
    warm_rounds: int = WARM_ROUNDS,
    batch_size: int | None = None,
    clean_batch_size: int | None = None,
    start: tuple[Any, PyTree] | None = None,
) -> Task:
    """Importance learning as a Task. u is (n,), one entry per sample of X; v the model's parameters.

    The start: a model is trained on the clean set, then `warm_rounds` more times on the clean set together with the
    samples whose given label the model of before predicts. v starts there, and u at weight 0.6 where that
    model predicts the given label, else at 0.4. The paper's text starts u from the predicted probability
    of the given label instead. A small network's probabilities are near 0 or 1, where tanh is flat, so a hard
    sample that starts at 0.02 hardly comes back: on digits with 40% wrong labels, without the two
    retrainings, the suspects' precision ended at 0.48 from probabilities and at 0.93 from agreement.

    The clean samples are in the upper loss alone, as in the paper. A lower level that trained on them,
    too, would fit them whatever the weights, and leave the upper level less of a signal: in the same
    trial, precision was 0.92 and not 0.93. The l2 term is not in the paper's (3).

    Args:
        model: maps X to logits (n, classes).
        X, y: features (n, ...) and integer labels 0..classes-1 (n,), in doubt.
        X_clean, y_clean: the same, right.
        key: a jax.random key, for the model's initialisation and its dropout.
        training: how the models of the start are trained; its l2 is that of the lower loss, too.
        warm_rounds: retrainings at the start; 0 is the authors' start, by a model of the clean set alone.
        batch_size, clean_batch_size: samples per lower and upper minibatch; None for all. Move u by
            `per_sample` of an optimizer then.
        start: (u, v) to start from in place of all this; nothing is trained then.

    Metrics: clean_loss and clean_accuracy of v; suspects, the number of weights below 1/2; mean_weight.

    Example:
        >>> import jax
        >>> from bilevax import solve
        >>> from bilevax.applications.denoising import denoising_task, penalty_solver
        >>> from bilevax.data import noisy_digits
        >>> from bilevax.nn import softmax_regression
        >>> d = noisy_digits(seed=100, train=200, clean=100)
        >>> task = denoising_task(softmax_regression(10), d.X, d.y, d.X_clean, d.y_clean, key=jax.random.key(0))
        >>> result = solve(
        ...     penalty_solver(5), task.problem, *task.start, task.batches, steps=5, key=jax.random.key(0)
        ... )
        >>> sorted(task.metrics(result.u, result.v))
        ['clean_accuracy', 'clean_loss', 'mean_weight', 'suspects']
    """
    data = _Data(X, y, X_clean, y_clean)
    start = _agreement_start(model, data, training, warm_rounds, key) if start is None else start

    def metrics(u: Any, v: PyTree) -> dict[str, float]:
        w = np.asarray(weights(u))
        return data.on_clean(model, v) | {"suspects": float((w < 0.5).sum()), "mean_weight": float(w.mean())}

    problem = Problem(_CleanLoss(model), _ImportanceLoss(model, training.l2), random_lower=True)
    return Task(problem, start, data.batches(batch_size, clean_batch_size), metrics)


def _agreement_start(model: Model, data: _Data, training: Training, rounds: int, key: Any) -> tuple[Any, PyTree]:
    def trained(trusted: Any) -> tuple[PyTree, Any]:
        v = data.train(model, training, trusted, key)
        return v, probabilities(model, v, data.x).argmax(1) == np.asarray(data.y)

    v, trusted = trained(np.zeros(len(data.y), bool))
    for _ in range(rounds):
        v, trusted = trained(trusted)
    return from_agreement(trusted), v


def reweighting_task(
    model: Model,
    X: Any,
    y: Any,
    X_clean: Any,
    y_clean: Any,
    *,
    key: Any,
    l2: float = 0.0,
    batch_size: int | None = None,
    clean_batch_size: int | None = None,
) -> Task:
    """Importance learning with weights that enter as they are: what `LearningToReweight` works on.

    u is (n,), the weights themselves, from 1; v the model's parameters, from the model's own start.

    Args:
        model, X, y, X_clean, y_clean, batch_size, clean_batch_size: as for `denoising_task`.
        key: a jax.random key, for the model's initialisation.
        l2: weight of half the squared norm of the model's matrices in the lower loss.

    Metrics: clean_loss and clean_accuracy of v; mean_weight.

    Source: Ren et al., "Learning to reweight examples for robust deep learning", ICML 2018.

    Example:
        >>> import jax, optax
        >>> from bilevax import LearningToReweight, solve
        >>> from bilevax.applications.denoising import reweighting_task
        >>> from bilevax.data import noisy_digits
        >>> from bilevax.nn import softmax_regression
        >>> d = noisy_digits(seed=100, train=200, clean=100)
        >>> model, key = softmax_regression(10), jax.random.key(0)
        >>> task = reweighting_task(model, d.X, d.y, d.X_clean, d.y_clean, key=key, batch_size=50)
        >>> result = solve(
        ...     LearningToReweight(optax.sgd(0.1)), task.problem, *task.start, task.batches, steps=5, key=key
        ... )
        >>> result.state.memory.mean_weight.shape
        (200,)
    """
    data = _Data(X, y, X_clean, y_clean)
    start = jnp.ones(len(data.y)), initial(model, key, data.x[:1])

    def metrics(u: Any, v: PyTree) -> dict[str, float]:
        return data.on_clean(model, v) | {"mean_weight": float(u.mean())}

    problem = Problem(_CleanLoss(model), _ReweightedLoss(model, l2), random_lower=True)
    return Task(problem, start, data.batches(batch_size, clean_batch_size), metrics)


def meta_weight_task(
    model: Model,
    X: Any,
    y: Any,
    X_clean: Any,
    y_clean: Any,
    *,
    key: Any,
    l2: float = 0.0,
    batch_size: int | None = None,
    clean_batch_size: int | None = None,
) -> Task:
    """Meta-Weight-Net as a Task: u is a small network V from a sample's loss to its weight; v the model's parameters.

    Published with `LookAhead`; any solver without finite differences will do. As published, the weights are
    normalised over the batch.

    Args:
        model, X, y, X_clean, y_clean, batch_size, clean_batch_size: as for `denoising_task`.
        key: a jax.random key, for the initialisation of V and of the model.
        l2: weight of half the squared norm of the model's matrices in the lower loss.

    Metrics: clean_loss and clean_accuracy of v.

    Source: Shu et al., "Meta-Weight-Net: learning an explicit mapping for sample weighting", NeurIPS 2019.

    Example:
        >>> import jax, optax
        >>> from bilevax import LookAhead, solve
        >>> from bilevax.applications.denoising import meta_weight_task
        >>> from bilevax.data import noisy_digits
        >>> from bilevax.nn import softmax_regression
        >>> d = noisy_digits(seed=100, train=200, clean=100)
        >>> model, key = softmax_regression(10), jax.random.key(0)
        >>> task = meta_weight_task(model, d.X, d.y, d.X_clean, d.y_clean, key=key, batch_size=50)
        >>> solver = LookAhead(optax.adam(1e-3), optax.sgd(0.1), rate=0.1)
        >>> result = solve(solver, task.problem, *task.start, task.batches, steps=5, key=key)
        >>> result.u["out"].shape
        (100,)
    """
    data = _Data(X, y, X_clean, y_clean)
    *keys, model_key = jax.random.split(key, 5)

    def uniform(key: Any, shape: tuple[int, ...], bound: float) -> Any:
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    # PyTorch's start of linear layers, which the published code has: of a steeper V all weights may be 1 at first.
    u = {
        "into": uniform(keys[0], (META_WIDTH,), 1.0),
        "bias": uniform(keys[1], (META_WIDTH,), 1.0),
        "out": uniform(keys[2], (META_WIDTH,), META_WIDTH**-0.5),
        "level": uniform(keys[3], (), META_WIDTH**-0.5),
    }
    start = u, initial(model, model_key, data.x[:1])

    def metrics(u: PyTree, v: PyTree) -> dict[str, float]:
        return data.on_clean(model, v)

    problem = Problem(_CleanLoss(model), _MetaWeightLoss(model, l2), random_lower=True)
    return Task(problem, start, data.batches(batch_size, clean_batch_size), metrics)
