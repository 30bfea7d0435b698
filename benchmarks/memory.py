"""Temporary memory of one compiled step against `lower_steps`, from XLA's own analysis.

python -m benchmarks.memory
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

import bilevax as bx
from bilevax import linear_solve

WIDTHS = (784, 256, 10)
ADAM, SGD = optax.adam(1e-3), optax.sgd(1e-2)


def logits(v: PyTree, x: Any) -> Any:
    """A network of one hidden layer."""
    return jax.nn.relu(x @ v["w1"] + v["b1"]) @ v["w2"] + v["b2"]


def losses(v: PyTree, data: Any) -> Any:
    """Cross-entropy of each sample."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits(v, data[0]), data[1])


PROBLEM = bx.Problem(
    lambda u, v, data: jnp.mean(losses(v, data)),
    lambda u, v, data: jnp.mean(jax.nn.sigmoid(u) * losses(v, data)),
)


def temporary_bytes(solver: Any) -> int:
    """Temporary memory of the compiled step."""
    n = 256
    data = jnp.zeros((n, WIDTHS[0])), jnp.zeros(n, jnp.int32)
    v = {
        "w1": jnp.zeros(WIDTHS[:2]),
        "b1": jnp.zeros(WIDTHS[1]),
        "w2": jnp.zeros(WIDTHS[1:]),
        "b2": jnp.zeros(WIDTHS[2]),
    }
    batch = bx.Batch(data, data)
    state = solver.init(PROBLEM, jnp.zeros(n), v, batch)
    step = jax.jit(functools.partial(solver.step, PROBLEM), donate_argnums=0)
    analysis = step.lower(state, batch, jax.random.key(0)).compile().memory_analysis()
    assert analysis is not None, "this backend reports nothing about its memory"
    return analysis.temp_size_in_bytes


ROWS = {
    "Penalty": lambda t: bx.Penalty(ADAM, ADAM, t),
    "Implicit (CG, 20)": lambda t: bx.Implicit(ADAM, ADAM, t, linear_solve.CG(20)),
    "Implicit (Adam, 20)": lambda t: bx.Implicit(ADAM, ADAM, t, linear_solve.ByOptimizer(ADAM, 20)),
    "ReverseMode": lambda t: bx.ReverseMode(ADAM, SGD, t),
    "ReverseMode, segment=10": lambda t: bx.ReverseMode(ADAM, SGD, t, segment=10),
    "ReverseMode, last=5": lambda t: bx.ReverseMode(ADAM, SGD, t, last=min(t, 5)),
}


def main() -> None:
    print(f"network {WIDTHS}, 256 samples a level, float32, jax {jax.__version__}; MiB of temporaries in a step")
    print(f"{'solver':<25}{'T = 1':>10}{'T = 10':>10}{'T = 100':>10}{'100 / 1':>10}")
    for name, make in ROWS.items():
        one, ten, hundred = (temporary_bytes(make(t)) for t in (1, 10, 100))
        print(f"{name:<25}{one / 2**20:>10.2f}{ten / 2**20:>10.2f}{hundred / 2**20:>10.2f}{hundred / one:>10.2f}")


if __name__ == "__main__":
    main()
