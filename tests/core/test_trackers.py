"""Logs in Weights & Biases and MLflow: by small stand-ins, and by the packages themselves where they are installed."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevax import Inequality, InputError, MLflow, Penalty, Problem, SolveError, Vectorized, WandB, solve
from bilevax.loop.result import Run

PROBLEM = Problem(
    lambda u, v, data: jnp.sum((v - 1.0) ** 2),
    lambda u, v, data: jnp.sum((v - u) ** 2),
    constraints=[Inequality(lambda u, v, data: u - 0.5)],
)
BREAKING = Problem(lambda u, v, data: jnp.sum(jnp.log(v)), lambda u, v, data: jnp.sum((v + u) ** 2))
NAMES = {"upper_loss", "lower_loss", "upper_grad_norm", "lower_grad_norm", "stage", "gamma", "stationarity"}


def run(callback, problem=PROBLEM, solver=None, start=None, steps=20):
    x = jnp.ones(1) if start is None else start
    solver = solver or Penalty(stage_steps=5)
    return solve(solver, problem, x, x, steps=steps, every=10, key=jax.random.key(0), callbacks=[callback])


class FakeRun:
    def __init__(self):
        self.metrics, self.lines, self.summary, self.code = {}, [], {}, None

    def define_metric(self, name, **options):
        self.metrics[name] = options

    def log(self, values):
        self.lines.append(values)

    def finish(self, exit_code):
        self.code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    made = types.SimpleNamespace(run=None, init=FakeRun)
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


@pytest.mark.slow
def test_wandb_gets_each_visit(wandb):
    begun = []
    wandb.init = lambda: begun.append(FakeRun()) or begun[-1]
    history = run(WandB()).history
    (own,) = begun
    assert [line["step"] for line in own.lines] == [10, 20]
    assert own.lines[0].keys() == NAMES | {"step", "seconds", "constraint_violation", "multiplier_norm"}
    assert [line["upper_loss"] for line in own.lines] == history.upper_loss[[9, 19]].tolist()
    assert own.metrics["upper_loss"] == {"step_metric": "step"}
    assert own.summary == {"status": "FINISHED", "steps": 20}
    assert own.code == 0


def test_wandb_leaves_runs_of_others_open(wandb):
    given, wandb.run = FakeRun(), FakeRun()
    run(WandB(given))
    run(WandB())
    assert [len(r.lines) for r in (given, wandb.run)] == [2, 2]
    assert given.code is None
    assert wandb.run.code is None


@pytest.mark.slow
def test_wandb_records_how_a_solve_failed(wandb):
    begun = []
    wandb.init = lambda: begun.append(FakeRun()) or begun[-1]
    with pytest.raises(SolveError):
        run(WandB(), BREAKING)
    assert (begun[0].code, begun[0].summary["status"]) == (1, "NON_FINITE")


@pytest.mark.slow
def test_means_over_the_members_that_are_finite(wandb):
    wandb.run = FakeRun()
    starts = jnp.array([[0.0], [1.0], [1e200]])
    history = run(WandB(), solver=Vectorized(Penalty(stage_steps=5)), start=starts).history
    assert wandb.run.lines[-1]["upper_loss"] == pytest.approx(np.nanmean(history.upper_loss[-1]))


def test_errors_of_a_tracker_do_not_end_a_solve(wandb):
    class Broken(FakeRun):
        def log(self, values):
            raise RuntimeError("the service has stopped")

    with pytest.warns(UserWarning, match="WandB: step 10 could not be logged .the service has stopped") as warned:
        assert run(WandB(Broken())).steps == 20
    assert len(warned) == 1


def test_trackers_that_cannot_be_used(monkeypatch, wandb):
    with pytest.raises(InputError, match=r"WandB: run is 'project'. Pass what wandb.init\(...\) returns"):
        WandB("project")
    with pytest.raises(InputError, match=r"MLflow: run_id is 3. Pass the id of a run"):
        MLflow(3)

    def refuse():
        raise RuntimeError("api_key not configured")

    wandb.init = refuse
    with pytest.raises(InputError, match=r"WandB: no run can be opened \(RuntimeError: api_key not .*WANDB_MODE=offl"):
        run(WandB())
    for name, callback in (("wandb", WandB()), ("mlflow", MLflow())):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=rf"needs the package {name}.* pip install 'bilevax\[{name}\]'"):
            run(callback)


def test_only_the_first_process_logs(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    for callback in (WandB(), MLflow()):
        callback.start(Run(0, 1, False, lambda: None, several=True))
        callback.finish(None)


@pytest.fixture
def mlflow(monkeypatch):
    """What MLflow is asked to do, as a list."""
    calls = []
    info = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

    class Client:
        def get_run(self, run_id):
            if run_id != "known":
                raise LookupError(f"Run {run_id!r} not found")
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

        def set_tag(self, run_id, name, value):
            calls.append((run_id, name, value))

    made = types.SimpleNamespace(
        MlflowClient=Client, active_run=lambda: None, start_run=lambda: calls.append("start") or info,
        log_metrics=lambda values, step, run_id: calls.append((run_id, step, values)),
        end_run=lambda status: calls.append(status),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "mlflow", made)
    return calls


def test_mlflow_gets_each_visit(mlflow):
    run(MLflow())
    assert mlflow[0] == "start"
    assert [call[:2] for call in mlflow[1:3]] == [("r1", 10), ("r1", 20)]
    assert mlflow[3:] == [("r1", "bilevax.status", "FINISHED"), "FINISHED"]
    assert mlflow[1][2].keys() > NAMES
    mlflow.clear()
    run(MLflow("known"))
    assert [call[0] for call in mlflow] == ["known"] * 3
    mlflow.clear()
    with pytest.raises(SolveError):
        run(MLflow(), BREAKING)
    assert mlflow[-1] == "FAILED"
    with pytest.raises(InputError, match=r"MLflow: no run can be opened \(LookupError: Run 'other' not found"):
        run(MLflow("other"))


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    own = wandb.init()
    run(WandB(own))
    run(WandB(own))  # a second solve in the same run
    assert own.summary["step"] == 20
    assert own.step >= 4
    own.finish()
    run(WandB())
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 2
    assert wandb.run is None


def test_mlflow_file_store(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    history = run(MLflow()).history
    client = mlflow.MlflowClient()
    (found,) = client.search_runs(["0"])
    assert found.info.status == "FINISHED"
    logged = client.get_metric_history(found.info.run_id, "upper_loss")
    assert {m.step: m.value for m in logged} == {10: history.upper_loss[9], 20: history.upper_loss[19]}
    with pytest.raises(InputError, match="MLflow: no run can be opened"):
        run(MLflow("0" * 32))
