"""Nystrom with ten columns beside CG, on the weights of training samples of MNIST and a network.

python -m benchmarks.nystrom

The network 784-256-10 is trained by Adam for 300 minibatches. The hypergradient of the loss of 1,000 clean samples in
the weights of 1,000 training samples, half of which have a random label, is computed by each solve of
(H + damping I) q = grad_v f. Its cosine is with that of CG after 100 steps.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from benchmarks.memory import PROBLEM, WIDTHS, losses
from bilevax import derivatives
from bilevax.data import mnist
from bilevax.linear_solve import CG, Nystrom

N, STEPS, BATCH, DAMPINGS, REPEATS = 1000, 300, 250, (0.01, 0.1, 1.0), 3


def trained(x: Any, y: Any) -> Any:
    """The network after its minibatches."""
    a, b = jax.random.split(jax.random.key(0))
    v = {
        "w1": jax.random.normal(a, WIDTHS[:2]) * (2 / WIDTHS[0]) ** 0.5,
        "b1": jnp.zeros(WIDTHS[1]),
        "w2": jax.random.normal(b, WIDTHS[1:]) * (2 / WIDTHS[1]) ** 0.5,
        "b2": jnp.zeros(WIDTHS[2]),
    }
    adam = optax.adam(1e-3)

    def move(carry: Any, k: Any) -> tuple[Any, None]:
        v, state = carry
        at = jax.random.choice(jax.random.fold_in(a, k), len(x), (BATCH,))
        slope = jax.grad(lambda v: jnp.mean(losses(v, (x[at], y[at]))))(v)
        updates, state = adam.update(slope, state, v)
        return (optax.apply_updates(v, updates), state), None

    return jax.jit(lambda v: jax.lax.scan(move, (v, adam.init(v)), jnp.arange(STEPS))[0][0])(v)


def main() -> None:
    images, rng = mnist(), np.random.default_rng(0)
    at = rng.permutation(len(images.x_train))[: 2 * N]
    x, y = images.x_train[at].reshape(2 * N, -1).astype(np.float32) / 255, images.y_train[at].astype(np.int32)
    y[: N // 2] = rng.integers(0, 10, N // 2)
    x, y = jnp.asarray(x), jnp.asarray(y)
    upper, lower = (x[N:], y[N:]), (x[:N], y[:N])
    point = jnp.zeros(N), trained(*lower), upper, lower

    def hypergradient(solve: Any) -> Callable[..., tuple[Any, Any]]:
        def of(u: Any, v: Any, upper: Any, lower: Any) -> tuple[Any, Any]:
            f = derivatives.upper(PROBLEM, u, v, upper, jax.random.key(0))
            g = derivatives.lower(PROBLEM, u, v, lower, jax.random.key(0))
            found = solve(g.second_products, f.grad_v, optax.tree.zeros_like(v))
            return found.cross, ravel_pytree(found.q)[0]

        return jax.jit(of)

    print(f"network {WIDTHS}, {N} samples a level, float32, jax {jax.__version__}; best of {REPEATS} runs")
    print(f"{'damping':<10}{'solve':<20}{'cosine of du':>14}{'cosine of q':>14}{'seconds':>10}")
    for damping in DAMPINGS:
        wanted = hypergradient(CG(100, damping=damping))(*point)
        for solve in (CG(10, damping=damping), Nystrom(10, damping)):
            run, seconds = hypergradient(solve), []
            found = jax.block_until_ready(run(*point))
            for _ in range(REPEATS):
                began = time.process_time()
                jax.block_until_ready(run(*point))
                seconds.append(time.process_time() - began)
            cosines = [
                float(jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b))
                for a, b in zip(found, wanted, strict=True)
            ]
            name = f"{type(solve).__name__}({solve.rank if isinstance(solve, Nystrom) else solve.steps})"
            print(f"{damping:<10g}{name:<20}{cosines[0]:>14.4f}{cosines[1]:>14.4f}{min(seconds):>10.3f}", flush=True)


if __name__ == "__main__":
    main()
