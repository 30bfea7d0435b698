"""Training v at a fixed u."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bilevax._checks import InputError
from bilevax._optimizers import check_optimizer
from bilevax._programs import compiled
from bilevax.loop.sources import Source
from bilevax.problem import Batch, Problem, identity
from bilevax.solvers import base


def trained(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    steps: int,
    u: PyTree,
    v: PyTree,
    source: Source,
    key: PRNGKeyArray,
) -> tuple[PyTree, Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Train v by `steps` steps down g at a fixed u. Pure, for jit and vmap.

    Returns:
        The last v, f on the upper batch of step 0, and g and |grad_v g| on the lower batch of the last step.
    """
    batch_key, start_key, step_key = jax.random.split(key, 3)
    first = source.at(0, batch_key)
    v = v if problem.lower_start is None else problem.lower_start(u, first, start_key)

    def one(carry: Any, t: Any) -> tuple[Any, Any]:
        data = base.lower_data(source.at(t, batch_key), 0)
        return descent.move(carry, data, jax.random.fold_in(step_key, t))

    descent = base.Descent(problem, u, optimizer)
    (v, _), (losses, norms) = jax.lax.scan(one, (v, optimizer.init(v)), jnp.arange(steps))
    return v, problem.upper(u, v, first.upper, start_key), losses[-1], norms[-1]


def check_trainer(owner: str, name: str, optimizer: Any, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
    """Raise InputError for an optimizer that `trained` cannot use for v."""
    if problem.lower_constraints:
        raise InputError(f"{owner}: the problem has lower_constraints, which are not supported. Use BLOCC or BiCGAFFA.")
    data, key = base.lower_data(batch, 0), jax.random.key(0)
    descent = base.Descent(problem, u, optimizer)
    objective = descent.objective(v, data, key, jax.eval_shape(problem.lower, u, v, data, key))
    check_optimizer(owner, name, optimizer, "v", v, objective, problem.project_lower is not identity)


train_lower = compiled("problem", "optimizer", "steps")(trained)
"""`trained`, compiled."""
