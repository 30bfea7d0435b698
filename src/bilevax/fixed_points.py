"""The derivative of v*(u) if v is restricted to a set, or if g has a non-smooth term with a proximal map.

v*(u) is then the fixed point of a projected or proximal descent, v = P(u, v - step grad_v g). `on_set` returns the
linear system that replaces the one of the implicit function theorem; `degenerate` finds points where v*(u) has a kink,
and `require_projection` and `require_symmetric` refuse maps that are no projection and no proximal map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from bilevax._checks import InputError, first_line
from bilevax._programs import compiled
from bilevax.derivatives import Lower, SecondProducts
from bilevax.problem import Problem, identity

Proximal = Callable[[PyTree, PyTree, Any], PyTree]  # (u, v, step) -> v
JUMP = 0.1  # of a derivative of a projection, along a vector of ones and minus ones
PROJECTION_WITHIN = 1e-3  # in float32 a projection has errors of about 1e-6, and an iterative one larger errors


class FixedPoint(NamedTuple):
    """The linear system of a hypergradient if v*(u) is the fixed point of a map; see `fixed_point`."""

    second_products: SecondProducts
    b: PyTree
    direct: PyTree
    moved: PyTree


def fixed_point(
    move: Callable[[PyTree, PyTree], PyTree], u: PyTree, v: PyTree, g: Lower, b: PyTree, step: Any
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
        step: positive; see `step_length`.

    Returns:
        A FixedPoint. The derivative is `direct - cross`, where second_products(q) = (cross, b); with a solver of
        `bilevax.linear_solve` it is `direct - solution.cross`. `moved` is move(u, v - step grad_v g).
    """
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


def on_set(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    g: Lower,
    b: PyTree,
    proximal: Proximal | None = None,
) -> FixedPoint:
    """Return the system for d/du b . v*(u), where v*(u) minimises g on the set of v, or g and a term with `proximal`.

    Without either it is the system of the implicit function theorem.
    """
    if proximal is None and problem.project_lower is identity:
        return FixedPoint(g.second_products, b, optax.tree.zeros_like(u), v)
    step = step_length(g, v)
    return fixed_point(_move(problem, proximal, step), u, v, g, b, step)


def _move(problem: Problem, proximal: Proximal | None, step: Any) -> Callable[[PyTree, PyTree], PyTree]:
    if proximal is None:
        return lambda u, v: problem.lower_set(u)(v)
    return lambda u, v: jax.tree.map(lambda new, old: new.astype(old.dtype), proximal(u, v, step), v)


def degenerate(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    g: Lower,
    proximal: Proximal | None = None,
) -> Bool[Array, ""]:
    """Return whether v*(u) has a kink at u: an active bound has, to rounding, a multiplier of zero.

    There the derivative of the projection, or of the proximal map, jumps. It is compared at two points on either side
    of v - step grad_v g, at a distance of eps^0.4 times the size of its entries.
    """
    if proximal is None and problem.project_lower is identity:
        return jnp.zeros((), bool)
    step = step_length(g, v)
    move = _move(problem, proximal, step)
    before = jax.tree.map(lambda x, d: (x - step * d).astype(x.dtype), v, g.grad_v)
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(v))
    entries = sum(jnp.size(x) for x in jax.tree.leaves(v))
    size = jnp.sqrt(_dot(before, before, dtype) / entries)
    size = jnp.finfo(dtype).eps ** 0.4 * jnp.where(size > 0, size, 1)
    kinks = []
    for key in jax.random.split(jax.random.key(0), 3):
        d, w = (optax.tree.random_like(k, v, jax.random.rademacher) for k in jax.random.split(key))

        def pulled(far: float, d: PyTree = d, w: PyTree = w) -> PyTree:
            near = jax.tree.map(lambda x, d: (x + far * size * d).astype(x.dtype), before, d)
            return jax.tree.map(jnp.nan_to_num, jax.vjp(lambda x: move(u, x), near)[1](w)[0])

        jump, wider = (optax.tree.sub(pulled(far), pulled(-far)) for far in (1.0, 10.0))
        squared = _dot(jump, jump, dtype)
        kinks.append((squared > JUMP**2) & (squared > _dot(wider, wider, dtype) / 4))  # not a mere curvature
    return jnp.any(jnp.stack(kinks))


def transposed_set(problem: Problem, u: PyTree, v: PyTree) -> tuple[PyTree, Callable[[PyTree], tuple[PyTree, PyTree]]]:
    """Return the projection of v, and the products with the transposes of its derivatives in u and in v."""
    if problem.project_lower is identity:
        return v, lambda d: (optax.tree.zeros_like(u), d)
    return jax.vjp(lambda u, v: problem.lower_set(u)(v), u, v)


def step_length(g: Lower, v: PyTree) -> Float[Array, ""]:
    """Return |d|^2 / |<d, H d>| for d = grad_v g, the inverse of a curvature of g; |v| / |d| if that is zero.

    It does not depend on the units of v and g.
    """
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(v))
    largest: Any = optax.tree.max(jax.tree.map(lambda x: jnp.abs(x).astype(dtype), g.grad_v))
    largest = jnp.where(largest > 0, largest, 1)
    d = jax.tree.map(lambda x: (x.astype(dtype) / largest).astype(x.dtype), g.grad_v)
    size, curvature = _dot(d, d, dtype), jnp.abs(_dot(d, g.second_products(d)[1], dtype))
    flat = curvature <= jnp.finfo(dtype).tiny
    length = jnp.sqrt(_dot(v, v, dtype) / jnp.where(size > 0, size, 1)) / largest
    step = jnp.where(flat, length, size / jnp.where(flat, 1, curvature))
    return jnp.where((step > 0) & jnp.isfinite(step), step, 1)


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


def require_projection(
    owner: str,
    name: str,
    problem: Problem,
    u: PyTree,
    v: PyTree,
    reason: str = "It differentiates the fixed point of a projected descent, which needs",
) -> None:
    """Refuse a `project_lower` that is not an orthogonal projection: derivatives at its boundary would be wrong.

    Under jit the projection is not tested. `reason` is the start of the advice in the message.

    Raises:
        InputError: projecting twice changes the result; the derivative is not symmetric; the function cannot be
            differentiated; it returns values that are not finite.
    """
    if problem.project_lower is identity:
        return
    advice = (
        f"{reason} an orthogonal projection onto a set, such as those of optax.projections. Use ReverseMode, which "
        "differentiates the moves themselves."
    )
    again = _require_defects(owner, name, _Projection(problem), (u,), v, advice)
    _require_still(owner, name, again, advice, v)


def require_idempotent(owner: str, problem: Problem, u: PyTree) -> None:
    """Refuse a `project_upper` that changes a projected u: u would move even without a gradient.

    It is tested at one random point near u; under jit it is not.

    Raises:
        InputError: projecting twice changes the result, or it is not finite.
    """
    if problem.project_upper is not identity:
        advice = "u is projected after each move. Pass a projection onto a set, such as those of optax.projections."
        _require_still(owner, "project_upper", _moved_again(problem.project_upper, u), advice, u)


def _require_still(owner: str, name: str, again: Any, advice: str, x: PyTree) -> None:
    """Refuse a projection of such an x that moves its results by this relative amount."""
    rounding = 4 * max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(x))
    if not isinstance(again, Tracer) and not again <= max(PROJECTION_WITHIN, rounding):
        raise InputError(
            f"{owner}: {name} moves a point that is already projected, or returns one that is not finite. {advice}"
        )


@dataclass(frozen=True)
class _Projection:
    """The projection onto the set of v; equal for equal problems, so that its check is compiled once."""

    problem: Problem

    def __call__(self, u: PyTree, v: PyTree) -> PyTree:
        return self.problem.lower_set(u)(v)


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
    keys = jax.random.split(jax.random.key(0), 3)
    a, b = (optax.tree.random_like(key, v, jax.random.normal) for key in keys[1:])
    x = _near(v, keys[0])
    found, pull = jax.vjp(project, x)
    moved = _change(x, found, project(found))
    (of_a,), (of_b,) = pull(a), pull(b)
    skew = jnp.abs(_dot(a, of_b, dtype) - _dot(b, of_a, dtype))
    scale = jnp.sqrt(_dot(of_a, of_a, dtype) * _dot(b, b, dtype)) + jnp.sqrt(
        _dot(of_b, of_b, dtype) * _dot(a, a, dtype)
    )
    return moved, skew / jnp.where(scale > 0, scale, 1)


@compiled("project")
def _moved_again(project: Callable[[PyTree], PyTree], x: PyTree) -> Float[Array, ""]:
    """Return the relative change by a second projection, of a random point near x."""
    x = _near(x, jax.random.key(0))
    found = project(x)
    return _change(x, found, project(found))


def _near(v: PyTree, key: PRNGKeyArray) -> PyTree:
    """Return v plus noise of the size of its entries, or of size 1 if v is zero."""
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(v))
    size = jnp.sqrt(_dot(v, v, dtype) / sum(jnp.size(x) for x in jax.tree.leaves(v)))
    size = jnp.where(size > 0, size, 1)
    noise = optax.tree.random_like(key, v, jax.random.normal)
    return jax.tree.map(lambda x, d: (x + size * d).astype(x.dtype), v, noise)


def _change(x: PyTree, once: PyTree, twice: PyTree) -> Float[Array, ""]:
    """Return |twice - once| relative to the sizes of x and once."""
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(x))
    again = optax.tree.sub(twice, once)
    return jnp.sqrt(_dot(again, again, dtype) / (_dot(x, x, dtype) + _dot(once, once, dtype)))


def _dot(a: PyTree, b: PyTree, dtype: DTypeLike) -> Float[Array, ""]:
    terms = [
        jnp.vdot(x.astype(dtype), y.astype(dtype)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return sum(terms[1:], terms[0])
