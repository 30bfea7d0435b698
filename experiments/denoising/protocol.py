"""Shared by Table 2, Figures 4(a) and 5(a), D.1.2 and the comparison with cleanlab: sizes and solvers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from bilevax import Implicit, Penalty
from bilevax.applications import Task
from bilevax.applications.denoising import denoising_task, from_agreement, per_sample
from bilevax.data import corrupted
from bilevax.linear_solve import ByOptimizer
from bilevax.nn import Model, Training
from experiments.common.images import images_of
from experiments.denoising.trial import Trial

LOWER_RATE, U_RATE = 2e-3, 0.2
NU_STEP = 1e-3
NOISE = 0.25  # of Figures 4(a) and 5(a)


@dataclass(frozen=True)
class Plan:
    """The protocol of a data set at some size.

    Args:
        model: the network.
        clean: samples set aside with right labels.
        train: the number of other samples; None for all.
        passes: through the data, in the training of each row; in Table 2 at a fixed rate, as in E.2.
        solve_passes: of the bilevel methods themselves, one step for each minibatch.
        lower_steps: T; also the steps of ApproxGrad's linear solve.
        start_passes: of the model that the bilevel methods start from, on all labels as given; only in Table 2.
        batch: samples of a minibatch, both noisy and clean.
        rate: Adam's in plain training.
        seeds: how many trials.
    """

    model: Model
    clean: int
    train: int | None
    passes: int
    solve_passes: int
    lower_steps: int
    start_passes: int = 0
    batch: int = 200
    rate: float = 1e-3
    seeds: int = 5

    def solve_steps(self, samples: int) -> int:
        """Steps of a bilevel method for this many training samples."""
        return self.solve_passes * -(-samples // self.batch)

    def training(self, passes: int, samples: int) -> Training:
        """Plain training for some passes through this many samples."""
        steps = passes * -(-samples // self.batch)
        return Training(steps=steps, rate=self.rate, batch_size=self.batch, l2=1e-4)


def penalty(lower_steps: int, steps: int, lam: float = 1.0, u_rate: float = U_RATE) -> Penalty:
    """Penalty for networks: v moves down f + lam g with a light penalty, with a falling rate as in the reference rows.

    A minibatch's gamma grad_v g is mostly noise, and its |grad_v g|^2 includes the variance of that noise. So gamma is
    small, and the multipliers add gamma grad_v g at each step: they sum it over all minibatches so far, and they
    determine the direction of u. Once v has converged, lam grad_v g = -(grad_v f + H nu) with H the second derivatives
    of g. So the multipliers move by -gamma/lam times the residual of H nu = -grad_v f: a step of a linear solver, of
    length NU_STEP.
    """
    moves = optax.adam(optax.cosine_decay_schedule(LOWER_RATE, steps * lower_steps))
    return Penalty(
        per_sample(optax.adam(u_rate)),
        moves,
        lower_steps,
        gamma=NU_STEP * lam,
        lam=lam,
        nu=1.0,
        step_scale=1.0,
        stage_steps=1,
    )


def approxgrad(lower_steps: int, steps: int) -> Implicit:
    """ApproxGrad with the same number of lower moves and of steps of the linear solve, which is warm-started.

    Its rate is small enough that a step lowers the residual; with 1e-2 and T = 1 no step did, and u did not move.
    """
    moves = optax.adam(optax.cosine_decay_schedule(LOWER_RATE, steps * lower_steps))
    linear = ByOptimizer(optax.adam(1e-4), steps=lower_steps)
    return Implicit(per_sample(optax.adam(U_RATE)), moves, lower_steps, linear)


SOLVERS: dict[str, Callable[[int, int], Any]] = {"ApproxGrad": approxgrad, "Penalty": penalty}


def samples(plan: Plan) -> str:
    """The numbers of samples, as a phrase for footnotes."""
    return f"{'All' if plan.train is None else plan.train} training and {plan.clean} clean samples"


def draw(plan: Plan, seed: int) -> Trial:
    """One trial of Figures 4(a) and 5(a)."""
    data = corrupted(images_of("mnist"), clean=plan.clean, train=plan.train, noise=NOISE, key=jax.random.key(seed))
    return Trial(data, plan.model, plan.training(plan.passes, len(data.y) + plan.clean), seed)


def task_from(trial: Trial, v: PyTree, plan: Plan) -> Task:
    """The task with the start of appendix E.2: a model v of the clean set, and weights by its predictions."""
    start = from_agreement(trial.agreement(v)), v
    return trial.task(denoising_task, plan.batch, plan.batch, training=trial.training, start=start)
