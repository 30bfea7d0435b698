"""The methods of the race with their settings on each problem."""

from typing import Any

import jax.numpy as jnp
import optax

from bilevax import F2SA, MASOBA, SABA, SOBA, SRBA, VPBGD, AmIGO, Blocks, Minibatches, StocBiO, WithWhole
from bilevax.schedules import Power
from experiments.race.problems import Field

METHODS = ("SABA", "SRBA", "SOBA", "MASOBA", "AmIGO", "StocBiO", "F2SA", "VPBGD")
SIZE = 64  # samples of a block or minibatch
INNER = 10  # moves of v for a move of u, of the methods with an inner loop

# Lower rate and upper rate by problem and method, chosen by `python -m experiments.race.rates` on another seed.
RATES: dict[str, dict[str, tuple[float, float]]] = {
    "quadratics": {
        "SABA": (0.1, 0.003),
        "SRBA": (0.1, 0.003),
        "SOBA": (0.03, 3e-4),
        "MASOBA": (0.03, 3e-4),
        "AmIGO": (0.1, 0.003),
        "StocBiO": (0.1, 0.003),
        "F2SA": (0.1, 0.003),
        "VPBGD": (0.03, 0.01),
    },
    "logistic": {
        "SABA": (0.05, 1.0),
        "SRBA": (0.1, 1.0),
        "SOBA": (0.2, 1.0),
        "MASOBA": (0.2, 1.0),
        "AmIGO": (0.2, 30.0),
        "StocBiO": (0.2, 30.0),
        "F2SA": (0.05, 10.0),
        "VPBGD": (0.1, 3.0),
    },
    # The grid was run for SABA, SRBA and SOBA; see the footnote for the others.
    "cleaning 50%": {label: (0.03, 3000.0 if label in ("AmIGO", "StocBiO", "F2SA") else 300.0) for label in METHODS},
}
RATES["cleaning 90%"] = RATES["cleaning 50%"] | {"SABA": (0.03, 30.0)}
SCALE = {"quadratics": 0.1, "logistic": 0.2, "cleaning": 0.1}  # of the Neumann series of StocBiO
NU = {"quadratics": 0.1, "logistic": 0.1, "cleaning": 0.01}  # of F2SA in the first step


def entrant(label: str, name: str, field: Field, rates: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """A method with its settings on a problem, and its source.

    Args:
        label: the method.
        name: the problem.
        field: the problem.
        rates: lower and upper rate; None for those of the table.
    """
    lower, upper = RATES[name][label] if rates is None else rates
    kind = name.split()[0]  # without the share of wrong labels
    sizes = len(field.upper[0]), len(field.lower[0])
    size = [next(s for s in range(SIZE, 0, -1) if n % s == 0) for n in sizes]
    blocks = Blocks(field.upper, field.lower, *size)
    minibatches = Minibatches(field.upper, field.lower, *size)
    steady = optax.sgd(upper), optax.sgd(lower), optax.sgd(lower)

    def falling(rate: Any) -> optax.GradientTransformation:
        return optax.sgd(lambda k: rate / (1 + k / 1000) ** 0.5)

    down = falling(upper), falling(lower), falling(lower)
    match label:
        case "SABA" if name == "logistic":
            # The best strengths of some features are zero or infinite: at a constant rate the gradient falls as 1 / k.
            rising = optax.sgd(lambda k: upper * jnp.minimum(1 + k / 3000, 8.0))
            return SABA(blocks.blocks, rising, *steady[1:]), blocks
        case "SABA":
            return SABA(blocks.blocks, *steady), blocks
        case "SRBA":
            return SRBA(*steady, period=max(blocks.blocks) // 2), WithWhole(minibatches)
        case "SOBA":
            return SOBA(*down), minibatches
        case "MASOBA":
            return MASOBA(*down), minibatches
        case "AmIGO":
            solver = AmIGO(*down, INNER, INNER)
        case "StocBiO":
            solver = StocBiO(*down[:2], INNER, INNER, SCALE[kind])
        case "F2SA":
            return F2SA(*down[:2], INNER, nu=Power(NU[kind], -0.25)), minibatches
        case _:
            return VPBGD(falling(upper), falling(lower / 2), optax.sgd(lower)), minibatches
    return solver, Minibatches(field.upper, field.lower, *size, per_move=solver.lower_batches)
