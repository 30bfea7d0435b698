"""Comparison of strengths by gradient with random and Bayesian search, on the same data and from the same start."""

import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float
from sklearn.metrics import log_loss

from bilevax.applications.task import Task
from bilevax.applications.tuning.jobs import Job
from bilevax.applications.tuning.logistic import LOGISTIC_RATE, LOGISTIC_STEPS, fit_logistic, logistic_task
from bilevax.applications.tuning.recipes import penalty_solver
from bilevax.loop.checkpoint import Checkpoint
from bilevax.loop.layout import Layout
from bilevax.loop.solve import solve
from bilevax.loop.stages import Keep, Stages, pack
from bilevax.search import GP, TPE, Random, Sampler, search

# A trial trains until f agrees with its value at the optimum to three digits, for the strengths that matter. With
# fewer steps the search would choose strengths that stop early, and not those that generalise.
TRIAL_STEPS = 300
TRIAL_OPTIMIZER = optax.adam(0.1)
# Searches draw log strengths from -2..2. Penalty's own range, -5..5, is too wide for them: on the digits none of
# 400 random trials within it beat the default; within -2..2 some did.
SEARCH_RANGE = 2.0
GP_SECONDS = 60.0  # the cost of a Gaussian process grows with the cube of the trials
VISITS = 20

Path = list[tuple[float, int, Float[Array, " d"] | Float[np.ndarray, " d"]]]


class Row(NamedTuple):
    """A row of the table; None for a figure that does not apply, or a loss that was not reached."""

    method: str
    validation_loss: float
    test_loss: float
    seconds: float | None
    compile_seconds: float | None
    gradient_evaluations: int | None
    trials: int | None
    seconds_to_random: float | None


class Run(NamedTuple):
    """A run of a method.

    Attributes:
        u: the log strengths at the end.
        seconds, compile_seconds: of a run with everything compiled, and of a short run before it, which compiles.
        evaluations: of gradients.
        trials: of a search; None for Penalty.
        path: seconds, evaluations and log strengths during the run.
    """

    u: Float[Array, " d"] | Float[np.ndarray, " d"]
    seconds: float
    compile_seconds: float
    evaluations: int
    trials: int | None
    path: Path


class Losses(NamedTuple):
    """Validation losses of fully trained models at the points of a method's path, (k,) each."""

    seconds: list[float]
    evaluations: list[int]
    losses: list[float]


class Comparison(NamedTuple):
    """The result of `compare` on one data set.

    Attributes:
        rows: of the table, the default first.
        strengths: found by Penalty.
        runs, paths: of each method except the default, by its name.
        default, best: validation losses of the default, and of the best of random search.
        report: everything, for a JSON file.
        sentences: the outcome in words.
    """

    rows: list[Row]
    strengths: Float[np.ndarray, " d"]
    runs: dict[str, Run]
    paths: dict[str, Losses]
    default: float
    best: float
    report: dict[str, Any]
    sentences: list[str]


def compare(
    job: Job,
    *,
    trials: int,
    steps: int | None,
    seed: int,
    stages: Stages,
    mesh: Layout | None = None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> Comparison:
    """Tune one L2 strength per feature of logistic regression by Penalty and by searches.

    Each method is a stage: a search that was interrupted starts again, and Penalty continues from its last checkpoint.

    Args:
        job: the job.
        trials: of each search; raised where Penalty would have more gradient evaluations.
        steps: of Penalty; None for the estimator's own.
        seed: of everything drawn.
        stages: keeps what is finished.
        mesh: passed to `bilevax.solve`.
        notice: called with a sentence before a part runs.
    """
    steps = LOGISTIC_STEPS if steps is None else steps
    task = logistic_task(job.X, job.y, job.X_validation, job.y_validation, job.classes)
    # One gradient of g, one of f and one second product in each update of v and of u.
    passes = (penalty_solver(steps, lower_rate=LOGISTIC_RATE).lower_steps + 1) * steps
    least = -(-3 * passes // TRIAL_STEPS)
    if trials < least:
        notice(f"--trials is raised from {trials} to {least}: searches get at least Penalty's gradient evaluations.")
    trials = max(trials, least)
    notice(
        f"{job.title}: {len(job.features)} strengths by {steps} steps of Penalty, or {trials} trials of a search ..."
    )
    runs, paths = _runs(task, job, trials, steps, seed, stages, mesh)
    default = _evaluate(np.zeros(len(job.features)), job)
    best = min(paths["random search"].losses)
    rows = [Row("default (C=1)", *default, None, None, None, None, None)]
    for name, one in runs.items():
        losses = _evaluate(one.u, job)
        reached = _first_at(paths[name], best)
        rows.append(Row(name, *losses, one.seconds, one.compile_seconds, one.evaluations, one.trials, reached))
    comparison = _ratios(rows, paths, runs, best)
    report = {
        "title": job.title,
        "train": len(job.y),
        "validation": len(job.y_validation),
        "test": len(job.y_test),
        "features": len(job.features),
        "classes": job.classes,
        "steps": steps,
        "trials": trials,
        "trial_steps": TRIAL_STEPS,
        "search_range": [-SEARCH_RANGE, SEARCH_RANGE],
        "penalty_evaluations": {"gradients_of_g": passes, "second_products": passes, "gradients_of_f": passes},
        "methods": [row._asdict() for row in rows],
        "comparison": comparison,
        "curves": {name: path._asdict() for name, path in paths.items()},
    }
    strengths = np.exp(np.asarray(runs["Penalty"].u, np.float64))
    sentences = _sentences(comparison, job, runs, passes)
    return Comparison(rows, strengths, runs, paths, default[0], best, report, sentences)


def _runs(
    task: Task, job: Job, trials: int, steps: int, seed: int, stages: Stages, mesh: Layout | None
) -> tuple[dict[str, Run], dict[str, Losses]]:
    """The run of each method and the losses on its path, by its name; each is a stage."""
    samplers: dict[str, tuple[Sampler, float | None]] = {
        "random search": (Random(), None),
        "Bayesian, TPE": (TPE(), None),
    }
    if _has_torch():
        samplers["Bayesian, GP"] = (GP(), GP_SECONDS)

    def searched(name: str) -> dict[str, Any]:
        sampler, seconds = samplers[name]
        return _as_stage(_search(task, sampler, trials, seed, seconds), job)

    found = {name: stages.of(_stage_name(job, name), lambda keep, name=name: searched(name)) for name in samplers}
    name = _stage_name(job, "Penalty")
    found["Penalty"] = stages.of(name, lambda keep: _as_stage(_penalty(task, steps, seed, stages, name, mesh), job))
    runs = {name: stages.rebuilt(Run, stage["run"], u=stage["u"], path=[]) for name, stage in found.items()}
    return runs, {name: stages.rebuilt(Losses, stage["losses"]) for name, stage in found.items()}


def _stage_name(job: Job, method: str) -> str:
    return job.prefix + method.lower().replace(", ", "_").replace(" ", "_")


def _as_stage(run: Run, job: Job) -> dict[str, Any]:
    """A run and the losses on its path, as a stage stores them; the losses are measured outside the run's clock."""
    fields = {name: value for name, value in run._asdict().items() if name not in ("u", "path")}
    seconds, evaluations, points = zip(*run.path, strict=True)
    losses = Losses(list(seconds), list(evaluations), [_evaluate(u, job)[0] for u in points])
    return {"u": np.asarray(run.u), "run": fields, "losses": losses._asdict()}


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _search(task: Task, sampler: Sampler, trials: int, seed: int, seconds: float | None) -> Run:
    u, v = task.start

    def run(trials: int) -> Any:
        return search(
            sampler,
            task.problem,
            u - SEARCH_RANGE,
            u + SEARCH_RANGE,
            v,
            task.batches,
            trials=trials,
            key=jax.random.key(seed),
            lower_steps=TRIAL_STEPS,
            lower_optimizer=TRIAL_OPTIMIZER,
            first=u,
            seconds=seconds,
        )

    _, warm = _timed(lambda: run(sampler.together))
    result, taken = _timed(lambda: run(trials))
    extra, best = result.history.extra, np.inf
    path = []
    for i, loss in enumerate(result.history.upper_loss):
        if loss < best:
            best = loss
            path.append((float(extra["seconds"][i]), int(extra["gradient_evaluations"][i]), result.state[i]))
    return Run(result.u, taken, warm, TRIAL_STEPS * result.steps, result.steps, path)


def _penalty(task: Task, steps: int, seed: int, stages: Stages, name: str, mesh: Layout | None) -> Run:
    solver, every = penalty_solver(steps, lower_rate=LOGISTIC_RATE), max(1, steps // VISITS)
    passes = 3 * (solver.lower_steps + 1)
    keep = stages.checkpoint(name)
    trail = _Trail(stages, f"{name}-way", passes, keep)

    def run(steps: int, callbacks: list[Any], resume: Checkpoint | None) -> Any:
        return solve(
            solver,
            task.problem,
            *task.start,
            task.batches,
            steps=steps,
            every=every,
            key=jax.random.key(seed),
            callbacks=callbacks,
            resume=resume,
            mesh=mesh,
        )

    _, warm = _timed(lambda: run(1, [], None))
    # The trail is written before the checkpoint, since a run resumed from a checkpoint needs the path up to it.
    result = run(steps, [trail, keep], keep)
    return Run(result.u, trail.seconds(), warm, passes * result.steps, None, trail.path)


class _Trail:
    """A callback that records log strengths at each visit, with seconds and gradient evaluations, among the stages.

    The seconds of a resumed solve are the sum over its parts; the time that `keep` takes is not counted.
    """

    def __init__(self, stages: Stages, name: str, passes: int, keep: Keep):
        self.path: Path = []
        self._stages, self._name, self._passes, self._keep = stages, name, passes, keep
        self._before = self._began = self._apart = 0.0

    def start(self, run: Any) -> None:
        """Read back the path of a resumed solve."""
        kept = self._stages.read(self._name) if run.step else None
        if kept is not None:
            evaluations = self._passes * run.step
            points = kept["points"] if kept["at"] else []
            self.path = [(s, n, u) for (s, n), u in zip(kept["at"], points, strict=True) if n <= evaluations]
            self._before = self.path[-1][0] if self.path else 0.0
        self._began = time.perf_counter()

    def visit(self, visit: Any) -> None:
        """Add a point to the path, and write the path."""
        self.path.append((self.seconds(), self._passes * visit.step, np.array(visit.state.u)))
        began = time.perf_counter()
        points = np.stack([u for _, _, u in self.path])
        self._stages.write(self._name, pack({"at": [[s, n] for s, n, _ in self.path], "points": points}))
        self._apart += time.perf_counter() - began

    def finish(self, result: Any) -> None:
        """Do nothing."""

    def seconds(self) -> float:
        """Seconds since the start, without the time that writing takes."""
        return self._before + time.perf_counter() - self._began - self._apart - self._keep.seconds


def _timed(run: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    result = run()
    return result, time.perf_counter() - began


def _evaluate(u: Float[Array, " d"] | Float[np.ndarray, " d"], job: Job) -> tuple[float, float]:
    """Validation and test loss of the model that is fully trained with log strengths u."""
    model = fit_logistic(np.exp(np.asarray(u, np.float64)), job.X, job.y)
    sets = ((job.X_validation, job.y_validation), (job.X_test, job.y_test))
    validation, test = (float(log_loss(y, model.predict_proba(x), labels=range(job.classes))) for x, y in sets)
    return validation, test


def _first_at(path: Losses, level: float) -> float | None:
    return next((s for s, loss in zip(path.seconds, path.losses, strict=True) if loss <= level), None)


def _ratios(rows: list[Row], paths: dict[str, Losses], runs: dict[str, Run], best: float) -> dict[str, Any]:
    """Penalty relative to random search, in seconds and in gradient evaluations."""
    at = {row.method: row for row in rows}
    penalty, random = at["Penalty"], at["random search"]
    reached, path, random_run = penalty.seconds_to_random, paths["random search"], runs["random search"]
    within = [i for i, n in enumerate(path.evaluations) if n <= runs["Penalty"].evaluations]
    found = {
        "random_best_validation_loss": best,
        "random_seconds": random_run.seconds,
        "random_seconds_to_its_best": random.seconds_to_random,
        "penalty_seconds_to_it": reached,
        "ratio": None,
        "ratio_to_the_moment_it_was_found": None,
        "ratio_with_compilation": None,
        "random_loss_at_penalty_evaluations": path.losses[within[-1]] if within else None,
    }
    if reached is not None and random.seconds_to_random is not None:
        found["ratio"] = reached / random_run.seconds
        found["ratio_to_the_moment_it_was_found"] = reached / random.seconds_to_random
        found["ratio_with_compilation"] = (runs["Penalty"].compile_seconds + reached) / (
            random_run.compile_seconds + random_run.seconds
        )
    return found


def _sentences(found: dict[str, Any], job: Job, runs: dict[str, Run], passes: int) -> list[str]:
    best = found["random_best_validation_loss"]
    if found["ratio"] is None:
        first = f"Penalty did not reach random search's best validation loss, {best:.4f}. Try more --steps."
    else:
        first = (
            f"Penalty reached random search's best validation loss ({best:.4f}) in "
            f"{found['penalty_seconds_to_it']:.3f} s: {found['ratio']:.3f} of the {found['random_seconds']:.2f} s that "
            f"random search took, and {found['ratio_to_the_moment_it_was_found']:.3f} of the "
            f"{found['random_seconds_to_its_best']:.2f} s after which random search found it; "
            f"{found['ratio_with_compilation']:.2f} with the compilation of both."
        )
    count = (
        f"Gradient evaluations: a search takes gradients of g; Penalty takes {passes:,} gradients of g, {passes:,} "
        f"second products and {passes:,} gradients of f, which are all counted."
    )
    if found["random_loss_at_penalty_evaluations"] is not None:
        count += (
            f" After as many as Penalty's {runs['Penalty'].evaluations:,}, random search was at "
            f"{found['random_loss_at_penalty_evaluations']:.4f}."
        )
    caution = (
        f"{len(job.features)} strengths can overfit {len(job.y_validation)} validation samples: the test loss shows "
        "how much tuning helps."
    )
    return [first, count, caution]
