"""Other ways to the strengths: scikit-learn's CV classes, random search and Bayesian search."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike
from sklearn.linear_model import ElasticNetCV, LassoCV, LogisticRegressionCV, RidgeCV
from sklearn.preprocessing import StandardScaler

from bilevax.applications.tuning.glm.choice import Chosen
from bilevax.applications.tuning.glm.faces import TunedGLM
from bilevax.applications.tuning.glm.losses import Logistic, Squared
from bilevax.applications.tuning.glm.penalties import L1, L2, ElasticNet, GroupLasso, Penalty
from bilevax.applications.tuning.glm.search import Path, Point
from bilevax.applications.tuning.glm.tuner import Tuner, strength_codes
from bilevax.applications.tuning.table import Job, Nested, nested

GRID = np.logspace(-3, 5, 25)  # of strengths relative to the sum of the losses
ONE, RANDOM, BAYESIAN = "one strength", "random search", "Bayesian search, TPE"


class Scaled:
    """A model of scikit-learn on standardised features."""

    def __init__(self, model: Any):
        self.model, self.scaler = model, StandardScaler()

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "Scaled":
        """Fit both."""
        self.model.fit(self.scaler.fit_transform(X), y, sample_weight=sample_weight)
        return self

    def predict(self, X: ArrayLike) -> Shaped[np.ndarray, " n"]:
        """The predictions of the model."""
        return self.model.predict(self.scaler.transform(X))

    def predict_proba(self, X: ArrayLike) -> Float[np.ndarray, "n classes"]:
        """The probabilities of the model."""
        return self.model.predict_proba(self.scaler.transform(X))


def scikit_learns(job: Job) -> tuple[str, Callable[[], Any]] | None:
    """The CV class of scikit-learn for a job, and how to make it; None where there is none."""
    if job.exposure is not None:
        return None
    match job.loss, job.penalty:
        case Squared(), L2():
            return "RidgeCV", lambda: Scaled(RidgeCV(GRID, cv=job.folds, scoring="neg_mean_squared_error"))
        case Squared(), L1():
            return "LassoCV", lambda: Scaled(LassoCV(cv=job.folds, max_iter=10_000))
        case Squared(), ElasticNet(ratio):
            return "ElasticNetCV", lambda: Scaled(ElasticNetCV(l1_ratio=ratio, cv=job.folds, max_iter=10_000))
        case Logistic(), L2():
            settings = {"Cs": (1 / GRID).tolist(), "cv": job.folds, "scoring": "neg_log_loss", "max_iter": 1000}
            return "LogisticRegressionCV", lambda: Scaled(LogisticRegressionCV(**settings))
    return None


class SearchedGLM(TunedGLM):
    """`TunedGLM` whose strengths of one kind are searched by Optuna, each by the cross-validated loss.

    Args:
        loss, penalty, groups, cv: as of `TunedGLM`.
        strengths: "scalar", "group", "feature" or "class".
        trials: evaluations of the cross-validated loss.
        bayesian: by the tree-structured Parzen estimator, Optuna's default; else at random.
        seed: of the search.
    """

    def __init__(
        self,
        loss: Any = "squared",
        penalty: Any = "l2",
        strengths: str = "scalar",
        groups: Any = None,
        cv: Any = 5,
        trials: int = 100,
        bayesian: bool = True,
        seed: int = 0,
    ):
        super().__init__(loss, penalty, strengths, groups, cv)
        self.trials = trials
        self.bayesian = bayesian
        self.seed = seed

    def _choose(self, tuner: Tuner, codes: Int[np.ndarray, " d"], penalty: Penalty) -> Chosen:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        samplers = optuna.samplers
        sampler = samplers.TPESampler(seed=self.seed) if self.bayesian else samplers.RandomSampler(seed=self.seed)
        kind = strength_codes(self.strengths, len(codes), tuner.y.shape[1], codes)
        criterion = tuner.criterion(kind)
        low, high, _ = tuner.bounds
        count = int(kind.codes.max()) + 1
        points: list[Point] = []

        def objective(trial: Any) -> float:
            u = np.array([trial.suggest_float(str(j), low, high) for j in range(count)])
            values = criterion.held_out(criterion.fit(u))
            points.append(Point(u, float(values.sum()), values))
            return points[-1].value

        optuna.create_study(sampler=sampler).optimize(objective, n_trials=self.trials)
        path = Path(points, min(points, key=lambda point: point.value))
        return Chosen(kind, path.best.u, path, None, [], criterion.start)


def rivals(job: Job, kind: str, trials: int, seed: int) -> dict[str, Callable[[], Nested]]:
    """The nested scores of the other ways, by name, each computed by a call.

    Args:
        job: the table.
        kind: of the strengths that searches look for.
        trials: of each search.
        seed: of the searches.
    """
    makes: dict[str, Callable[[], Any]] = {}
    if job.strengths != "scalar":
        makes[ONE] = lambda: job.model(strengths="scalar")
    if (theirs := scikit_learns(job)) is not None:
        makes[theirs[0]] = theirs[1]
    if isinstance(job.penalty, GroupLasso) and kind not in ("scalar", "group"):
        kind = "scalar"
    for name, bayesian in ((RANDOM, False), (BAYESIAN, True)):
        makes[name] = lambda bayesian=bayesian: SearchedGLM(
            job.loss, job.penalty, kind, job.groups, job.folds, trials, bayesian, seed
        )
    return {name: lambda make=make: nested(job, make) for name, make in makes.items()}
