"""Callbacks that log to experiment trackers: Weights & Biases, and MLflow.

Their packages are imported when a solve starts. In a solve over several processes only the first process logs. An error
of a tracker does not end a solve: a warning names it once.
"""

from typing import Any

from bilevax._checks import InputError, described, optional, short_reason
from bilevax.loop.callbacks import warn
from bilevax.loop.result import Result, Run, Visit
from bilevax.loop.scalars import last, mean
from bilevax.loop.status import Status


class WandB:
    """Every scalar of Info, at each visit, in a run of Weights & Biases.

    For a `Vectorized` solver means over the members whose values are finite are logged. The scalars are drawn against
    `step`, which is logged beside them, so that a run may hold several solves. Set the project, the folder and offline
    mode as W&B does: by `wandb.init`, or by WANDB_PROJECT, WANDB_DIR and WANDB_MODE. Needs the extra `wandb`.

    A resumed solve logs its steps once more from the save on, with equal values; to continue the run of an earlier
    process pass `wandb.init(id=..., resume="must")`.

    Args:
        run: from `wandb.init`; it stays open. None for the active run, or, if there is none, a run that begins and ends
            with the solve.

    Raises:
        InputError: run is not a run of W&B.

    Example:
        >>> from bilevax import WandB
        >>> log = WandB()  # then solve(..., callbacks=[log])
    """

    def __init__(self, run: Any = None):
        if run is not None and not (callable(getattr(run, "log", None)) and hasattr(run, "define_metric")):
            raise InputError(f"WandB: run is {described(run)}. Pass what wandb.init(...) returns.")
        self.run = run
        self._open: Any = None
        self._owned, self._failed = False, False
        self._known: set[str] = set()

    def start(self, run: Run) -> None:
        """Open a run, if none is given or active.

        Raises:
            InputError: wandb is not installed, or no run can be opened.
        """
        self._open, self._failed, self._known = None, False, set()
        if not run.writes:
            return
        wandb = optional("wandb", "WandB", "wandb")
        active = self.run if self.run is not None else wandb.run
        self._owned = active is None
        try:
            self._open = wandb.init() if active is None else active
            self._open.define_metric("step", hidden=True)
        except Exception as error:  # of the tracker: no login, no network
            raise _unopened("WandB", error, "Log in by `wandb login`, or set WANDB_MODE=offline.") from error

    def visit(self, visit: Visit) -> None:
        """Log the scalars."""
        if self._open is None:
            return
        scalars = {name: mean(x) for name, x in last(visit.info, reserved=("step", "seconds")).items()}
        try:
            for name in scalars.keys() - self._known:
                self._open.define_metric(name, step_metric="step")
            self._known |= scalars.keys()
            self._open.log({"step": visit.step, "seconds": visit.seconds, **scalars})
        except Exception as error:
            self._failed = _complain("WandB", visit.step, error, self._failed)

    def finish(self, result: Result | None) -> None:
        """End the run if the solve has begun it, after an error or a value that is not finite with exit code 1."""
        run, self._open = self._open, None
        if run is None:
            return
        try:
            if result is not None:
                run.summary.update({"status": result.status.name, "steps": result.steps})
            if self._owned:
                run.finish(exit_code=0 if _ended(result) == "FINISHED" else 1)
        except Exception as error:
            _complain("WandB", "the end", error, False)


class MLflow:
    """Every scalar of Info, at each visit, as metrics of an MLflow run.

    For a `Vectorized` solver means over the members whose values are finite are logged. Characters that MLflow does not
    take in a name become underscores. Set the store and the experiment as MLflow does: by `mlflow.set_tracking_uri` and
    `mlflow.set_experiment`, or by MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME. Needs the extra `mlflow`.

    A resumed solve logs its steps once more from the save on, with equal values.

    Args:
        run_id: of an existing run, which stays open. None for the active run, or, if there is none, a run that begins
            and ends with the solve.

    Raises:
        InputError: run_id is not a text.

    Example:
        >>> from bilevax import MLflow
        >>> log = MLflow()  # then solve(..., callbacks=[log])
    """

    def __init__(self, run_id: str | None = None):
        if run_id is not None and (not isinstance(run_id, str) or not run_id):
            raise InputError(f"MLflow: run_id is {described(run_id)}. Pass the id of a run: run.info.run_id.")
        self.run_id = run_id
        self._client: Any = None
        self._run_id = ""
        self._owned, self._failed = False, False

    def start(self, run: Run) -> None:
        """Open a run, if none is given or active.

        Raises:
            InputError: mlflow is not installed, or no run can be opened.
        """
        self._client, self._failed = None, False
        if not run.writes:
            return
        mlflow = optional("mlflow", "MLflow", "mlflow")
        try:
            active = mlflow.active_run() if self.run_id is None else None
            self._owned = self.run_id is None and active is None
            if self.run_id is not None:
                self._run_id = mlflow.MlflowClient().get_run(self.run_id).info.run_id
            else:
                self._run_id = (mlflow.start_run() if active is None else active).info.run_id
            self._client = mlflow.MlflowClient()
        except Exception as error:  # of the tracker: no server, no such run
            remedy = "Check MLFLOW_TRACKING_URI, or the argument of mlflow.set_tracking_uri."
            raise _unopened("MLflow", error, remedy) from error

    def visit(self, visit: Visit) -> None:
        """Log the scalars."""
        if self._client is None:
            return
        mlflow = optional("mlflow", "MLflow", "mlflow")
        scalars = {name: mean(x) for name, x in last(visit.info, reserved=("seconds",)).items()}
        values = {_allowed(name): x for name, x in (scalars | {"seconds": visit.seconds}).items()}
        try:
            mlflow.log_metrics(values, step=visit.step, run_id=self._run_id)
        except Exception as error:
            self._failed = _complain("MLflow", visit.step, error, self._failed)

    def finish(self, result: Result | None) -> None:
        """End the run if the solve has begun it: as FINISHED, as KILLED after a signal, as FAILED after an error."""
        client, self._client = self._client, None
        if client is None:
            return
        mlflow = optional("mlflow", "MLflow", "mlflow")
        try:
            if result is not None:
                client.set_tag(self._run_id, "bilevax.status", result.status.name)
            if self._owned:
                mlflow.end_run(_ended(result))
        except Exception as error:
            _complain("MLflow", "the end", error, False)


def _ended(result: Result | None) -> str:
    """How the solve ended, in the words of MLflow."""
    if result is None or result.status is Status.NON_FINITE:
        return "FAILED"
    return "KILLED" if result.status in (Status.INTERRUPTED, Status.TERMINATED) else "FINISHED"


def _allowed(name: str) -> str:
    """A name that MLflow takes."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _unopened(owner: str, error: Exception, remedy: str) -> InputError:
    return InputError(f"{owner}: no run can be opened ({type(error).__name__}: {short_reason(error)}). {remedy}")


def _complain(owner: str, step: Any, error: Exception, failed: bool) -> bool:
    """Warn of the first of several errors in a row of visits."""
    if not failed:
        at = f"step {step}" if isinstance(step, int) else step
        warn(f"{owner}: {at} could not be logged ({short_reason(error)}). The solve goes on.")
    return True
