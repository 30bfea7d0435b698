"""The derivatives of a problem. Besides `solvers/unrolled.py`, this is the only file that takes derivatives.

`lower(...)` returns g, its gradient in v, and

    second_products(p) = (grad2_uv g . p, grad2_vv g . p) = d/dt grad_(u,v) g(u, v + t p) at t = 0,

from which most solvers compute their directions. `exact` computes the products by one reverse pass through the
gradient, whose evaluation is shared: grad2_uv g . p is the derivative of <grad_v g, p> in u. A forward pass through the
gradient (Pearlmutter 1994) has the same arithmetic and memory; with convolutions, the compiled reverse pass is up to a
fifth faster. `finite_difference` evaluates two more gradients.

If v is restricted to a set, or has a non-smooth regulariser, v*(u) is the fixed point of a projected or proximal
descent; `fixed_point` returns the products that replace those above.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bilevax._checks import InputError, first_line
from bilevax._programs import compiled
from bilevax.problem import Batch, Problem, identity

SecondProducts = Callable[[PyTree], tuple[PyTree, PyTree]]  # p -> (grad2_uv g . p, grad2_vv g . p)
Curvature = Callable[[Callable[[PyTree, PyTree], Float[Array, ""]], PyTree, PyTree], "Lower"]  # (g, u, v) -> Lower


class Upper(NamedTuple):
    """The upper loss with its gradients; `grad_u` and `grad_v` include the penalty on the constraints, if any."""

    loss: Float[Array, ""]
    constraints: tuple[Float[Array, "..."], ...]
    grad_u: PyTree
    grad_v: PyTree


class Lower(NamedTuple):
    """The lower loss with its gradient in v, and its second products."""

    loss: Float[Array, ""]
    grad_v: PyTree
    second_products: SecondProducts


def upper(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    data: PyTree,
    key: PRNGKeyArray | None,
    penalty: Callable[[tuple[Float[Array, "..."], ...]], Float[ArrayLike, ""]] | None = None,
) -> Upper:
    """Return f(u, v) and its gradients; with a penalty, the gradients of f + penalty(h(u, v))."""

    def total(u: PyTree, v: PyTree) -> tuple[Any, tuple[Any, tuple[Any, ...]]]:
        loss = problem.upper(u, v, data, key)
        if penalty is None:
            return loss, (loss, ())
        values = problem.constraint_values(u, v, data)
        return loss + penalty(values), (loss, values)

    (_, (loss, values)), (grad_u, grad_v) = jax.value_and_grad(total, (0, 1), has_aux=True)(u, v)
    return Upper(loss, values, grad_u, grad_v)


def constraint_gradients(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree
) -> tuple[Float[Array, " m"], PyTree, PyTree]:
    """Return all entries of all h as one vector (m,), and its Jacobians in u and v (leading axis m)."""

    def flat(u: PyTree, v: PyTree) -> Any:
        values = problem.constraint_values(u, v, data)
        return jnp.concatenate([jnp.ravel(x) for x in values])

    values = flat(u, v)
    jacobian_u, jacobian_v = jax.jacrev(flat, (0, 1))(u, v)
    return values, jacobian_u, jacobian_v


def exact(g: Callable[[PyTree, PyTree], Float[Array, ""]], u: PyTree, v: PyTree) -> Lower:
    """Return exact products, by a reverse pass through the gradient in v. Each product costs about two gradients."""

    def gradient(u: PyTree, v: PyTree) -> tuple[PyTree, Any]:
        loss, grad_v = jax.value_and_grad(g, 1)(u, v)
        return grad_v, loss

    grad_v, second_products, loss = jax.vjp(gradient, u, v, has_aux=True)
    return Lower(loss, grad_v, second_products)


def finite_difference(g: Callable[[PyTree, PyTree], Float[Array, ""]], u: PyTree, v: PyTree) -> Lower:
    """Return products by a central difference of two gradients, with first derivatives only and the least memory.

    The step is eps^(1/3) (1 + |v|) / |p|, which balances rounding and truncation. The relative error is about
    eps^(2/3): 1e-5 in float32, 1e-10 in float64.
    """

    def second_products(p: PyTree) -> tuple[PyTree, PyTree]:
        size = optax.tree.norm(p)
        eps = jnp.finfo(size.dtype).eps
        t = eps ** (1 / 3) * (1 + optax.tree.norm(v)) / jnp.where(size > 0, size, 1.0)

        def moved(sign: float) -> PyTree:
            return jax.grad(g, (0, 1))(u, jax.tree.map(lambda x, d: x + (sign * t * d).astype(x.dtype), v, p))

        return jax.tree.map(lambda a, b: (a - b) / (2 * t).astype(a.dtype), moved(1.0), moved(-1.0))

    loss, grad_v = jax.value_and_grad(g, 1)(u, v)
    return Lower(loss, grad_v, second_products)


def lower(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    data: PyTree,
    key: PRNGKeyArray | None,
    *,
    mu: Float[ArrayLike, ""] = 1e-3,
    curvature: Curvature = exact,
) -> Lower:
    """Return g(u, v), its gradient in v, and `second_products`. Under jit, unused results are not computed."""
    return curvature(lambda u, v: problem.lower(u, v, data, key, mu), u, v)


def lower_rows(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    data: PyTree,
    key: PRNGKeyArray | None,
    places: Sequence[int],
    *,
    mu: Float[ArrayLike, ""] = 1e-3,
) -> Lower:
    """As `lower`, for some leaves of v only: `grad_v`, and the argument of `second_products`, are lists of leaves.

    The result of `second_products` is that of `lower` for a p that is zero in the other leaves. The reverse pass ends
    at the first of the leaves, and the forward pass along p starts there, so that the last layers of a network cost
    less than all layers.

    Args:
        problem, u, v, data, key, mu: as for `lower`.
        places: the indices of the leaves.
    """
    leaves, form = jax.tree.flatten(v)
    chosen = [leaves[i] for i in places]

    def loss(u: PyTree, v: PyTree, chosen: list[Any]) -> Any:
        rest = jax.tree.leaves(v)
        for i, x in zip(places, chosen, strict=True):
            rest[i] = x
        return problem.lower(u, jax.tree.unflatten(form, rest), data, key, mu)

    value, rows = jax.value_and_grad(loss, 2)(u, v, chosen)

    def second_products(p: PyTree) -> PyTree:
        def slope(u: PyTree, v: PyTree) -> Any:
            at = [jax.tree.leaves(v)[i] for i in places]
            return jax.jvp(lambda x: loss(u, v, x), (at,), (p,))[1]

        return jax.grad(slope, (0, 1))(u, v)

    return Lower(value, rows, second_products)


def lower_gradient(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: PRNGKeyArray | None, *, mu: Float[ArrayLike, ""] = 1e-3
) -> tuple[Float[Array, ""], PyTree]:
    """Return g(u, v) and its gradient in v, for gradient descent on g."""
    return jax.value_and_grad(problem.lower, 1)(u, v, data, key, mu)


def lower_slopes(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: PRNGKeyArray | None, *, mu: Float[ArrayLike, ""] = 1e-3
) -> tuple[Float[Array, ""], PyTree, PyTree]:
    """Return g(u, v) and its gradients in u and in v, for methods on the value function min over v of g."""
    loss, (grad_u, grad_v) = jax.value_and_grad(problem.lower, (0, 1))(u, v, data, key, mu)
    return loss, grad_u, grad_v


class FixedPoint(NamedTuple):
    """The linear system of a hypergradient if v*(u) is the fixed point of a map; see `fixed_point`."""

    second_products: SecondProducts
    b: PyTree
    direct: PyTree
    moved: PyTree


def fixed_point(
    move: Callable[[PyTree, PyTree], PyTree], u: PyTree, v: PyTree, g: Lower, b: PyTree, step: Any = None
) -> FixedPoint:
    """Return the system second_products(q)[1] = b for the derivative of v*(u) = move(u, v*(u) - step grad_v g).

    `move` is the projection onto the set of v, or the proximal map of a regulariser for the step length `step`. Its
    derivative J in its second argument is symmetric. Differentiating the fixed point gives

        (I - J + step H J) w = b,    d/du b . v*(u) = direct(w) - cross(step J w),    H = grad2_vv g,

    where direct(w) is w times the derivative of `move` in u. With q = step w, and multiplied by J from the left, the
    system is symmetric, and the relevant solutions are unchanged:

        (J H J + J (I - J) / step) q = J b,    w = J q / step + b - H J q.

    If J is a projector (a box, a simplex, soft thresholding), this is the system of the free part of v, for any step.
    Otherwise (a ball, a group lasso), the second term is the curvature of the boundary. Without a set, J is the
    identity.

    Args:
        move: (u, v) -> v.
        u, v: the point; v near the fixed point.
        g: the lower loss at the point, without the regulariser whose proximal map is `move`.
        b: the gradient in v of the function to differentiate, such as the upper loss.
        step: positive; by default |grad_v g|^2 / <grad_v g, H grad_v g>, which does not depend on the units of v or g.

    Returns:
        A FixedPoint. The derivative is `direct - cross`, where second_products(q) = (cross, b); with a solver of
        `bilevax.linear_solve` it is `direct - solution.cross`. `moved` is move(u, v - step grad_v g).
    """
    step = _cauchy_step(g, v) if step is None else step
    before = jax.tree.map(lambda x, d: (x - step * d).astype(x.dtype), v, g.grad_v)
    moved, transposed = jax.vjp(move, u, before)

    def pull(x: PyTree) -> tuple[PyTree, PyTree]:
        """Return the product with the transpose. For a group that stays zero its norm gives NaN, which is set to 0."""
        of_u, of_v = transposed(x)
        return of_u, jax.tree.map(
            lambda d, old, new: jnp.where(jnp.isnan(d) & (old == 0) & (new == 0), 0, d), of_v, before, moved
        )

    def second_products(q: PyTree) -> tuple[PyTree, PyTree]:
        p = pull(q)[1]
        cross, image = g.second_products(p)
        rest = jax.tree.map(lambda p, h: (p / step - h).astype(p.dtype), p, image)
        bent = jax.tree.map(lambda q, p, h: (h + (q - p) / step).astype(q.dtype), q, p, image)
        return optax.tree.sub(cross, pull(rest)[0]), pull(bent)[1]

    direct, inner = pull(b)
    return FixedPoint(second_products, inner, direct, moved)


def on_set(problem: Problem, u: PyTree, v: PyTree, g: Lower, b: PyTree) -> tuple[SecondProducts, PyTree]:
    """Return the products and b of the system for d/du b . v*(u), where v*(u) is the minimiser of g on the set of v."""
    if problem.project_lower is identity:
        return g.second_products, b
    found = fixed_point(lambda _, v: problem.project_lower(v), u, v, g, b)
    return found.second_products, found.b


def transposed(function: Callable[[PyTree], PyTree], x: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Return function(x), and the product with the transpose of its derivative at x."""
    if function is identity:
        return x, identity
    value, pull = jax.vjp(function, x)
    return value, lambda d: pull(d)[0]


def _cauchy_step(g: Lower, v: PyTree) -> Float[Array, ""]:
    """Return |d|^2 / |<d, H d>| for d = grad_v g, the inverse of a curvature of g; |v| / |d| if that is zero."""
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(v))
    largest: Any = optax.tree.max(jax.tree.map(lambda x: jnp.abs(x).astype(dtype), g.grad_v))
    largest = jnp.where(largest > 0, largest, 1)
    d = jax.tree.map(lambda x: (x.astype(dtype) / largest).astype(x.dtype), g.grad_v)
    size, curvature = _dot(d, d, dtype), jnp.abs(_dot(d, g.second_products(d)[1], dtype))
    flat = curvature <= jnp.finfo(dtype).tiny
    length = jnp.sqrt(_dot(v, v, dtype) / jnp.where(size > 0, size, 1)) / largest
    step = jnp.where(flat, length, size / jnp.where(flat, 1, curvature))
    return jnp.where((step > 0) & jnp.isfinite(step), step, 1)


def _dot(a: PyTree, b: PyTree, dtype: DTypeLike) -> Float[Array, ""]:
    terms = [
        jnp.vdot(x.astype(dtype), y.astype(dtype)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return sum(terms[1:], terms[0])


def require_start(owner: str, problem: Problem, u: PyTree, batch: Batch, test_dependence: bool = False) -> bool:
    """Check that `lower_start` can be differentiated, and return whether it depends on u.

    Args:
        owner: the solver, for the message.
        problem, u, batch: as for `Solver.check`.
        test_dependence: whether to evaluate the derivative; without it the result is False.

    Raises:
        InputError: `lower_start` cannot be differentiated.
    """
    if problem.lower_start is None:
        return False
    start, key = problem.lower_start, jax.random.key(0)

    def slope(u: PyTree, batch: Batch) -> PyTree:
        v, pull_back = jax.vjp(lambda u: start(u, batch, key), u)
        return pull_back(optax.tree.random_like(key, v))[0]

    try:
        found = jax.jit(slope)(u, batch) if test_dependence else jax.eval_shape(slope, u, batch)
    except Exception as error:  # whatever the user's function raises
        raise InputError(
            f"{owner} differentiates through the start of v, and lower_start cannot be differentiated: "
            f"{first_line(error)} To treat the start as a constant, use jax.lax.stop_gradient(u) in lower_start."
        ) from error
    return test_dependence and any(bool(jnp.any(x != 0)) for x in jax.tree.leaves(found))


PROJECTION_WITHIN = 1e-3  # in float32 a projection has errors of about 1e-6, and an iterative one larger errors


def require_symmetric(owner: str, name: str, move: Callable[[PyTree, PyTree], PyTree], u: PyTree, v: PyTree) -> None:
    """Refuse a move(u, v) whose derivative in v, near v, is not symmetric: it is not a proximal map.

    Raises:
        InputError: the derivative is not symmetric, or `move` cannot be differentiated.
    """
    advice = (
        f"{owner} differentiates the fixed point of a proximal descent, which needs the proximal map of a function: "
        "the minimiser of step r(x) + |x - v|^2 / 2 over x."
    )
    _require_defects(owner, name, move, (u,), v, advice)


def require_projection(owner: str, name: str, project: Callable[[PyTree], PyTree], v: PyTree) -> None:
    """Refuse a function that is not an orthogonal projection, since derivatives at its boundary would be wrong.

    Under jit the projection is not tested.

    Raises:
        InputError: projecting twice changes the result; the derivative is not symmetric; the function cannot be
            differentiated.
    """
    if project is identity:
        return
    advice = (
        f"{owner} differentiates the fixed point of a projected descent, which needs an orthogonal projection onto a "
        "set, such as those of optax.projections. Use ReverseMode, which differentiates the moves themselves."
    )
    again = _require_defects(owner, name, project, (), v, advice)
    if not isinstance(again, Tracer) and not again <= PROJECTION_WITHIN:
        raise InputError(f"{owner}: {name} moves a point that is already projected. {advice}")


def _require_defects(
    owner: str, name: str, move: Callable[..., PyTree], given: tuple[PyTree, ...], v: PyTree, advice: str
) -> Any:
    """Return the relative change by a second `move`; refuse a derivative that is not symmetric or does not exist."""
    try:
        again, skew = _defects(move, given, v)
    except InputError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise InputError(f"{owner}: {name} cannot be differentiated: {first_line(error)} {advice}") from error
    if not isinstance(skew, Tracer) and not skew <= PROJECTION_WITHIN:
        raise InputError(f"{owner}: {name} has a derivative that is not symmetric. {advice}")
    return again


@compiled("move")
def _defects(move: Callable[..., PyTree], given: tuple[PyTree, ...], v: PyTree) -> tuple[Any, Any]:
    """Return the relative change by a second move(*given, v), and the relative asymmetry of its derivative."""

    def project(v: PyTree) -> PyTree:
        return move(*given, v)

    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(v))
    size = jnp.sqrt(_dot(v, v, dtype) / sum(jnp.size(x) for x in jax.tree.leaves(v)))
    size = jnp.where(size > 0, size, 1)
    keys = jax.random.split(jax.random.key(0), 3)
    noise, a, b = (optax.tree.random_like(key, v, jax.random.normal) for key in keys)
    x = jax.tree.map(lambda x, d: (x + size * d).astype(x.dtype), v, noise)
    found, pull = jax.vjp(project, x)
    again = optax.tree.sub(project(found), found)
    moved = jnp.sqrt(_dot(again, again, dtype) / (_dot(x, x, dtype) + _dot(found, found, dtype)))
    (of_a,), (of_b,) = pull(a), pull(b)
    skew = jnp.abs(_dot(a, of_b, dtype) - _dot(b, of_a, dtype))
    scale = jnp.sqrt(_dot(of_a, of_a, dtype) * _dot(b, b, dtype)) + jnp.sqrt(
        _dot(of_b, of_b, dtype) * _dot(a, a, dtype)
    )
    return moved, skew / jnp.where(scale > 0, scale, 1)
