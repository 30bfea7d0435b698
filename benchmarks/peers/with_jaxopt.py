"""JAXopt: `GradientDescent`, differentiated implicitly (its `solve_cg`) or through its unrolled iterations.

One upper iteration is one jitted function, called from a loop in Python as in JAXopt's documentation. It runs on the
same jax as bilevax, and uses the same networks.
"""

import functools
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt  # pyright: ignore[reportMissingImports]
import numpy as np
import optax
from jaxtyping import PyTree

from benchmarks.peers import jax_problems
from benchmarks.peers.works import Arrays


class Runner:
    """A solver of the lower level inside a gradient in u."""

    def __init__(self, work: str, arrays: Arrays, method: str, settings: dict[str, Any]):
        self.setup, self.method, self.settings = jax_problems.setup(work, arrays), method, settings
        self.versions = {"jax": jax.__version__, "jaxopt": version("jaxopt")}

    def start(self, moves: int) -> None:
        """A solver with this many iterations, at the start."""
        made, settings, implicit = self.setup, self.settings, self.method != "unrolled"
        options: dict[str, Any] = {}
        if implicit:
            options["implicit_diff_solve"] = functools.partial(
                jaxopt.linear_solve.solve_cg,
                maxiter=settings["solve_steps"],
                tol=1e-6,
                ridge=settings["damping"] or None,
            )
        solver = jaxopt.GradientDescent(
            lambda v, s, data: made.g(s, v, data),
            stepsize=settings["lower_rate"],
            maxiter=moves,
            tol=0.0,
            acceleration=False,
            implicit_diff=implicit,
            **options,
        )
        optimizer, project = optax.adam(settings["upper_rate"]), made.problem.project_upper

        def upper_loss(u: PyTree, v: PyTree, data: Any) -> Any:
            s = made.shared(u, data)
            start = v if made.restart is None else jax.lax.stop_gradient(made.restart(s, data))
            v = solver.run(start, s, data).params
            return made.f(s, v, data), v

        self.gradient = jax.jit(jax.grad(upper_loss, has_aux=True))

        @jax.jit
        def iteration(u: PyTree, v: PyTree, state: Any, data: Any) -> Any:
            gradient, v = jax.grad(upper_loss, has_aux=True)(u, v, data)
            updates, state = optimizer.update(gradient, state, u)
            return project(optax.apply_updates(u, updates)), v, state

        self.iteration, self.u, self.v = iteration, made.u, made.v
        self.state = optimizer.init(self.u)

    def advance(self, iterations: int) -> None:
        """Upper iterations."""
        for _ in range(iterations):
            self.u, self.v, self.state = self.iteration(self.u, self.v, self.state, self.setup.data)
        jax.block_until_ready(self.u)

    def upper(self) -> list[np.ndarray]:
        """U."""
        return [np.asarray(x) for x in jax.tree.leaves(self.u)]

    def direction(self) -> list[np.ndarray]:
        """The first gradient in u."""
        return [np.asarray(x) for x in jax.tree.leaves(self.gradient(self.u, self.v, self.setup.data)[0])]


def warm_up(threads: int) -> None:
    """Start XLA's threads."""
    jax.config.update("jax_platforms", "cpu")
    jax.block_until_ready(jnp.ones(8) + 1)


def make(work: str, arrays: Arrays, method: str, settings: dict[str, Any]) -> Runner:
    """A row."""
    return Runner(work, arrays, method, settings)
