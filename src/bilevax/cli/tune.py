"""`bilevax tune`: hyperparameters by gradient, beside random and Bayesian search."""

import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import jax
import numpy as np
import optax
import typer
from rich.table import Table

from bilevax._checks import InputError, listed
from bilevax.cli._printing import as_table, say, show
from bilevax.cli._runs import Run as CommandRun
from bilevax.cli._shared import (
    MOST,
    Devices,
    Overwrite,
    Resume,
    Seed,
    digest,
    figure,
    finite,
    in_plain_words,
    laid_out,
    surroundings,
)
from bilevax.cli.lasso import tune_lasso
from bilevax.loop.placement import Layout
from bilevax.loop.solve import solve

if TYPE_CHECKING:  # these pull in pandas and scikit-learn, which `--help` need not wait for
    from bilevax.applications import Task
    from bilevax.data import tables
    from bilevax.loop.checkpoint import Checkpoint
    from bilevax.loop.stages import Keep, Stages

# A trial trains as long as it takes for f at its end to be that of the optimum to three digits, for the strengths
# that matter: shorter ones favour early stopping over what the strengths do.
TRIAL_STEPS = 300
TRIAL_OPTIMIZER = optax.adam(0.1)
# Searches draw log strengths from -2..2. Penalty's own range, -5..5, is too wide for them: on the digits no one of
# 400 random trials within it beat the default; within -2..2 some did.
SEARCH_RANGE = 2.0
GP_SECONDS = 60.0  # a Gaussian process's cost grows with the cube of the trials
VISITS = 20


def tune(
    train: Annotated[
        Path | None,
        typer.Argument(
            metavar="TRAIN",
            help="Labelled samples: CSV, Parquet, or NPZ with arrays X and y.",
            show_default="scikit-learn's breast cancer, and its digits",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="What holds the labels. For NPZ, an array; y unless told."),
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Samples to tune by, in the same columns.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Samples that no method sees, to measure the test loss on.")
    ] = None,
    hold_out: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.45,
            help="Without --validation: set aside this part of TRAIN to tune by. Likewise without --test.",
            metavar="PART",
            callback=finite,
        ),
    ] = 0.25,
    trials: Annotated[int, typer.Option(min=1, max=MOST, help="Of random search and of Bayesian search.")] = 200,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Upper steps of Penalty.", show_default="the estimator's own")
    ] = None,
    seed: Seed = 0,
    lasso: Annotated[
        bool,
        typer.Option(
            "--lasso",
            help="Choose a lasso's strength for a target that is a quantity, beside LassoCV. Without TRAIN: on "
            "scikit-learn's diabetes data. Without --validation: by 5-fold cross-validation.",
        ),
    ] = False,
    per_feature: Annotated[
        bool, typer.Option("--per-feature", help="With --lasso: a strength for each feature, or group, as well.")
    ] = False,
    groups: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --lasso: a group lasso as well; a CSV with columns feature, group."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("tuned"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
) -> None:
    """Tune one L2 strength per feature of logistic regression: by gradient, by random and by Bayesian search.

    Columns of text are one-hot encoded, numeric ones are scaled. Every row of the table is trained to the end on the
    same training samples with the strengths that its method found.

    Writes strengths.csv (Penalty's), tuning.png (validation loss against time) and results.json; with --lasso
    lasso.csv and lasso.png (coefficients of the chosen features) and results.json.
    """
    with in_plain_words() as asked:
        began = time.perf_counter()
        files = {"train": train, "validation": validation, "test": test}
        given = {"--target": target, "--validation": validation, "--test": test, "--groups": groups}
        if train is None:
            for name, value in given.items():
                if value is not None:
                    raise InputError(f"{name} is given without TRAIN. Name the file to train on, too.")
        if not lasso and (per_feature or groups is not None):
            name = "--per-feature" if per_feature else "--groups"
            raise InputError(f"{name} is given without --lasso, which it belongs to. Add --lasso.")
        shared = out
        layout, out = laid_out(devices, out)
        read = files | {"groups": groups} if lasso else files
        settings: dict[str, Any] = {name: None if path is None else digest(name, path) for name, path in read.items()}
        settings |= {"target": target, "hold_out": hold_out, "steps": steps, "seed": seed}
        settings |= {"per_feature": per_feature} if lasso else {"trials": trials}
        prefixes = [""] if train is not None else ["breast_cancer_", "digits_"]
        names = [f"{prefix}{name}" for prefix in prefixes for name in ("strengths.csv", "tuning.png")]
        run = CommandRun(
            "tune --lasso" if lasso else "tune",
            out,
            [*(["lasso.csv", "lasso.png"] if lasso else names), "results.json"],
            settings,
            {"TRAIN": train, "--validation": validation, "--test": test, "--groups": groups},
            resume=resume,
            overwrite=overwrite,
            shared=shared,
            asked=asked,
        )
        if lasso:
            tune_lasso(files, groups, settings, run, layout)
            return
        with run.stages() as stages:
            jobs = _ready_made(hold_out, seed) if train is None else [_from_files(files, target, hold_out, seed)]
            tuned = []
            for data in jobs:
                for note in data.notes:
                    say(note)
                tuned.append(_tune(data, trials, steps, seed, stages, layout))
            seconds = time.perf_counter() - began
            for data, one in zip(jobs, tuned, strict=True):
                _write_strengths(data, one, run)
            report = {
                "settings": settings,
                **surroundings("jax", "optax", "numpy", "scikit-learn", "optuna"),
                "wall_seconds": seconds,
                "data_sets": [one.report for one in tuned],
            }
            run.json("results.json", report)
            for data, one in zip(jobs, tuned, strict=True):
                _draw(data, one, run)
        for data, one in zip(jobs, tuned, strict=True):
            show(_table(data, one.rows))
            for sentence in one.sentences:
                say(sentence)
        run.end(seconds)


class Data(NamedTuple):
    """Three sets of samples, features scaled by the first, labels as 0..classes-1.

    Attributes:
        title: what the data are, in a few words.
        prefix: of the names of its files.
        features: a name for each column.
        classes: how many.
        notes: what was done to the data, in sentences.
    """

    title: str
    prefix: str
    features: list[str]
    classes: int
    X: np.ndarray
    y: np.ndarray
    X_validation: np.ndarray
    y_validation: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    notes: tuple[str, ...]


class Run(NamedTuple):
    """What a method did: its strengths' logarithms at last, and on the way at the given seconds and evaluations."""

    u: Any
    seconds: float
    compile_seconds: float
    evaluations: int
    trials: int | None
    way: list[tuple[float, int, Any]]


class Tuned(NamedTuple):
    """All that was found on one data set.

    Attributes:
        rows: of the table.
        runs, ways: by the method's name.
        default, best: validation losses, of the default and the best of random search.
        report: for results.json.
        sentences: to print below the table.
    """

    rows: "list[Row]"
    runs: dict[str, Run]
    ways: "dict[str, Losses]"
    default: float
    best: float
    report: dict[str, Any]
    sentences: list[str]


class Row(NamedTuple):
    """One line of the table; None where a figure does not apply, or was not reached."""

    method: str
    validation_loss: float
    test_loss: float
    seconds: float | None
    compile_seconds: float | None
    gradient_evaluations: int | None
    trials: int | None
    seconds_to_random: float | None


class Losses(NamedTuple):
    """A method's true validation losses on its way, (k,) each."""

    seconds: list[float]
    evaluations: list[int]
    losses: list[float]


def _ready_made(hold_out: float, seed: int) -> list[Data]:
    import pandas as pd
    from sklearn.datasets import load_breast_cancer, load_digits

    from bilevax.data import tables

    jobs = []
    for title, load in (("breast cancer", load_breast_cancer), ("digits", load_digits)):
        bunch: Any = load()
        features = pd.DataFrame(bunch.data, columns=[str(name) for name in bunch.feature_names])
        table = tables.Table(f"scikit-learn's {title}", features, bunch.target, None)
        data = _split(table, {}, hold_out, seed)
        jobs.append(data._replace(prefix=title.replace(" ", "_") + "_"))
    return jobs


def _from_files(files: dict[str, Path | None], target: str | None, hold_out: float, seed: int) -> Data:
    from bilevax.data import tables

    paths = {name: path for name, path in files.items() if path is not None}
    roles = {"TRAIN" if name == "train" else f"--{name}": path for name, path in paths.items()}
    read = dict(zip(paths, tables.read_together(roles, target), strict=True))
    train = read.pop("train")
    return _split(train, read, hold_out, seed)._replace(title=str(files["train"]))


def _split(train: "tables.Table", others: dict[str, "tables.Table"], hold_out: float, seed: int) -> Data:
    """Set aside what has no table of its own, then scale all by what is left to train on."""
    from bilevax.data import tables

    title = train.name
    for table in others.values():
        tables.check_known_labels(table, train)
    wanted = [name for name in ("validation", "test") if name not in others]
    train, parts = _set_aside(train, wanted, hold_out, seed)
    parts |= others
    validation, test = parts["validation"], parts["test"]
    for table in (validation, test):
        tables.check_known_labels(table, train)
    encoded = tables.encode(train, validation, test)
    X, X_validation, X_test = encoded.matrices
    labels = [table.labels for table in (train, validation, test)]
    classes, codes = np.unique(np.concatenate(labels), return_inverse=True)
    y, y_validation, y_test = np.split(codes, np.cumsum([len(part) for part in labels])[:-1])
    return Data(
        title,
        "",
        tables.encoded_names(train)[0],
        len(classes),
        X,
        y,
        X_validation,
        y_validation,
        X_test,
        y_test,
        encoded.notes,
    )


def _set_aside(
    table: "tables.Table", wanted: list[str], hold_out: float, seed: int
) -> tuple["tables.Table", dict[str, "tables.Table"]]:
    """The table without the wanted parts, and these by name; each stratified by class."""
    from bilevax.applications.tuning.logistic import set_aside
    from bilevax.data import tables

    if not wanted:
        return table, {}
    labels, codes, counts = np.unique(table.labels, return_inverse=True, return_counts=True)
    if counts.min() <= len(wanted):
        few = [f"{label!r}: {n}" for label, n in zip(labels.tolist(), counts, strict=True) if n <= len(wanted)]
        raise InputError(
            f"{table.name} has classes with too few samples ({listed(few, quote=False)}): to train on some and set "
            f"some aside for {' and '.join(wanted)}, at least {len(wanted) + 1} of each are needed. Add samples, leave "
            "rare classes out, or pass files of their own by --validation and --test."
        )
    random_state, kept, parts = np.random.RandomState(seed), np.arange(len(codes)), {}
    for i, name in enumerate(wanted):
        # Each part is one of the whole, whatever was set aside before it.
        aside = set_aside(codes[kept], hold_out / (1 - i * hold_out), random_state)
        parts[name], kept = tables.part_of(table, kept[aside], name), kept[~aside]
    return tables.part_of(table, kept, "training"), parts


def _tune(
    data: Data,
    trials: int,
    steps: int | None,
    seed: int,
    stages: "Stages",
    layout: Layout | None,
) -> Tuned:
    """Run all methods, a stage each. A search that was interrupted starts over; Penalty resumes."""
    from bilevax.applications.tuning.logistic import LOGISTIC_RATE, LOGISTIC_STEPS, logistic_task
    from bilevax.applications.tuning.recipes import penalty_solver
    from bilevax.search import GP, TPE, Random

    steps = LOGISTIC_STEPS if steps is None else steps
    task = logistic_task(data.X, data.y, data.X_validation, data.y_validation, data.classes)
    # g, the pass back through it, and f: each once in every move of v and in that of u.
    passes = (penalty_solver(steps, lower_rate=LOGISTIC_RATE).lower_steps + 1) * steps
    least = -(-3 * passes // TRIAL_STEPS)
    if trials < least:
        say(f"--trials is raised from {trials} to {least}: searches get at least Penalty's gradient evaluations.")
    trials = max(trials, least)
    say(f"{data.title}: {len(data.features)} strengths by {steps} steps of Penalty, or {trials} trials of a search ...")
    samplers: dict[str, tuple[Any, float | None]] = {
        "random search": (Random(), None),
        "Bayesian, TPE": (TPE(), None),
    }
    if _has_torch():
        samplers["Bayesian, GP"] = (GP(), GP_SECONDS)

    def searched(name: str) -> dict[str, Any]:
        sampler, seconds = samplers[name]
        return _as_stage(_search(task, sampler, trials, seed, seconds), data)

    found = {name: stages.of(_stage_name(data, name), lambda keep, name=name: searched(name)) for name in samplers}
    place = _stage_name(data, "Penalty")
    found["Penalty"] = stages.of(
        place, lambda keep: _as_stage(_penalty(task, steps, seed, stages, place, layout), data)
    )
    runs = {name: Run(u=stage["u"], way=[], **stage["run"]) for name, stage in found.items()}
    ways = {name: Losses(**stage["losses"]) for name, stage in found.items()}
    default = _evaluate(np.zeros(len(data.features)), data)
    best = min(ways["random search"].losses)
    rows = [Row("default (C=1)", *default, None, None, None, None, None)]
    for name, one in runs.items():
        losses = _evaluate(one.u, data)
        reached = _first_at(ways[name], best)
        rows.append(Row(name, *losses, one.seconds, one.compile_seconds, one.evaluations, one.trials, reached))
    comparison = _compare(rows, ways, runs, best)
    report = {
        "title": data.title,
        "train": len(data.y),
        "validation": len(data.y_validation),
        "test": len(data.y_test),
        "features": len(data.features),
        "classes": data.classes,
        "steps": steps,
        "trials": trials,
        "trial_steps": TRIAL_STEPS,
        "search_range": [-SEARCH_RANGE, SEARCH_RANGE],
        "penalty_evaluations": {"gradients_of_g": passes, "along": passes, "gradients_of_f": passes},
        "methods": [row._asdict() for row in rows],
        "comparison": comparison,
        "curves": {name: way._asdict() for name, way in ways.items()},
    }
    return Tuned(rows, runs, ways, default[0], best, report, _sentences(comparison, data, runs, passes))


def _stage_name(data: Data, method: str) -> str:
    return data.prefix + method.lower().replace(", ", "_").replace(" ", "_")


def _as_stage(run: Run, data: Data) -> dict[str, Any]:
    """A run and its true losses as a stage's result."""
    fields = {name: value for name, value in run._asdict().items() if name not in ("u", "way")}
    losses = _losses_on_the_way(run, data)
    return {"u": np.asarray(run.u), "run": fields, "losses": losses._asdict()}


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _search(task: "Task", sampler: Any, trials: int, seed: int, seconds: float | None) -> Run:
    from bilevax.search import search

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
    way = []
    for i, loss in enumerate(result.history.upper_loss):
        if loss < best:
            best = loss
            way.append((float(extra["seconds"][i]), int(extra["gradient_evaluations"][i]), result.state[i]))
    return Run(result.u, taken, warm, TRIAL_STEPS * result.steps, result.steps, way)


def _penalty(task: "Task", steps: int, seed: int, stages: "Stages", place: str, layout: Layout | None) -> Run:
    from bilevax.applications.tuning.logistic import LOGISTIC_RATE
    from bilevax.applications.tuning.recipes import penalty_solver

    solver, every = penalty_solver(steps, lower_rate=LOGISTIC_RATE), max(1, steps // VISITS)
    passes = 3 * (solver.lower_steps + 1)
    keep = stages.checkpoint(place)
    trail = Trail(stages, f"{place}-way", passes, keep)

    def run(steps: int, callbacks: list[Any], resume: "Checkpoint | None") -> Any:
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
            mesh=layout,
        )

    _, warm = _timed(lambda: run(1, [], None))
    # The way before the checkpoint: what is resumed from a save needs the way until there.
    result = run(steps, [trail, keep], keep)
    return Run(result.u, trail.seconds(), warm, passes * result.steps, None, trail.way)


class Trail:
    """A callback: log strengths at each visit, with the seconds and gradients until then; kept among the stages.

    The seconds of a solve that was resumed are those of its parts; those that `keep` takes do not count.
    """

    def __init__(self, stages: "Stages", name: str, passes: int, keep: "Keep"):
        self.way: list[tuple[float, int, Any]] = []
        self._stages, self._name, self._passes, self._keep = stages, name, passes, keep
        self._before = self._began = self._apart = 0.0

    def start(self, run: Any) -> None:
        """Read back what a solve that is resumed has passed."""
        kept = self._stages.read(self._name) if run.step else None
        if kept is not None:
            evaluations = self._passes * run.step
            points = kept["points"] if kept["at"] else []
            self.way = [(s, n, u) for (s, n), u in zip(kept["at"], points, strict=True) if n <= evaluations]
            self._before = self.way[-1][0] if self.way else 0.0
        self._began = time.perf_counter()

    def visit(self, visit: Any) -> None:
        """Note a point, and keep it."""
        from bilevax.loop.stages import pack

        self.way.append((self.seconds(), self._passes * visit.step, np.array(visit.state.u)))
        began = time.perf_counter()
        points = np.stack([u for _, _, u in self.way])
        self._stages.write(self._name, pack({"at": [[s, n] for s, n, _ in self.way], "points": points}))
        self._apart += time.perf_counter() - began

    def finish(self, result: Any) -> None:
        """Nothing is left to do."""

    def seconds(self) -> float:
        """Since the start, but for what keeping takes."""
        return self._before + time.perf_counter() - self._began - self._apart - self._keep.seconds


def _timed(run: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    result = run()
    return result, time.perf_counter() - began


def _evaluate(u: Any, data: Data) -> tuple[float, float]:
    """Validation and test loss of the model that is trained to the end with these log strengths."""
    from sklearn.metrics import log_loss

    from bilevax.applications.tuning.logistic import fit_logistic

    model = fit_logistic(np.exp(np.asarray(u, np.float64)), data.X, data.y)
    sets = ((data.X_validation, data.y_validation), (data.X_test, data.y_test))
    validation, test = (float(log_loss(y, model.predict_proba(x), labels=range(data.classes))) for x, y in sets)
    return validation, test


def _losses_on_the_way(run: Run, data: Data) -> Losses:
    """What the losses truly were: measured after the run, so that its clock has no part in it."""
    seconds, evaluations, points = zip(*run.way, strict=True)
    return Losses(list(seconds), list(evaluations), [_evaluate(u, data)[0] for u in points])


def _first_at(way: Losses, level: float) -> float | None:
    return next((s for s, loss in zip(way.seconds, way.losses, strict=True) if loss <= level), None)


def _compare(rows: list[Row], ways: dict[str, Losses], runs: dict[str, Run], best: float) -> dict[str, Any]:
    """Penalty against random search, in seconds and in gradient evaluations."""
    at = {row.method: row for row in rows}
    penalty, random = at["Penalty"], at["random search"]
    reached, way, search = penalty.seconds_to_random, ways["random search"], runs["random search"]
    within = [i for i, n in enumerate(way.evaluations) if n <= runs["Penalty"].evaluations]
    told = {
        "random_best_validation_loss": best,
        "random_seconds": search.seconds,
        "random_seconds_to_its_best": random.seconds_to_random,
        "penalty_seconds_to_it": reached,
        "ratio": None,
        "ratio_to_the_moment_it_was_found": None,
        "ratio_with_compilation": None,
        "random_loss_at_penalty_evaluations": way.losses[within[-1]] if within else None,
    }
    if reached is not None and random.seconds_to_random is not None:
        told["ratio"] = reached / search.seconds
        told["ratio_to_the_moment_it_was_found"] = reached / random.seconds_to_random
        told["ratio_with_compilation"] = (runs["Penalty"].compile_seconds + reached) / (
            search.compile_seconds + search.seconds
        )
    return told


def _sentences(told: dict[str, Any], data: Data, runs: dict[str, Run], passes: int) -> list[str]:
    best = told["random_best_validation_loss"]
    if told["ratio"] is None:
        first = f"Penalty did not reach random search's best validation loss, {best:.4f}. Try more --steps."
    else:
        first = (
            f"Penalty reached random search's best validation loss ({best:.4f}) in {told['penalty_seconds_to_it']:.3f} "
            f"s: {told['ratio']:.3f} of the {told['random_seconds']:.2f} s that random search took, "
            f"{told['ratio_to_the_moment_it_was_found']:.3f} of the {told['random_seconds_to_its_best']:.2f} s after "
            f"which it had found it; {told['ratio_with_compilation']:.2f} with the compilation of both."
        )
    count = (
        f"Gradients: of g in a search; in Penalty {passes:,} each of gradients of g, of passes back through them "
        "(along) and of gradients of f, all counted."
    )
    if told["random_loss_at_penalty_evaluations"] is not None:
        count += (
            f" After as many as Penalty's {runs['Penalty'].evaluations:,}, random search was at "
            f"{told['random_loss_at_penalty_evaluations']:.4f}."
        )
    caution = (
        f"{len(data.features)} strengths fit {len(data.y_validation)} validation samples in part: the test loss tells "
        "what tuning is worth."
    )
    return [first, count, caution]


def _write_strengths(data: Data, tuned: Tuned, run: CommandRun) -> None:
    import pandas as pd

    strength = np.exp(np.asarray(tuned.runs["Penalty"].u, np.float64))
    run.csv(f"{data.prefix}strengths.csv", pd.DataFrame({"feature": data.features, "strength": strength}))


def _draw(data: Data, tuned: Tuned, run: CommandRun) -> None:
    from bilevax import plots

    curves = {}
    for name in sorted(tuned.ways, key=lambda name: name != "Penalty"):  # Penalty first: in blue, as in all figures
        way = tuned.ways[name]
        # To the end of the run, where nothing better was found.
        curves[name] = plots.TimedLosses([*way.seconds, tuned.runs[name].seconds], [*way.losses, way.losses[-1]])
    levels = {"default (C=1)": tuned.default, "random search's best": tuned.best}
    title = f"Validation loss: {Path(data.title).name}, {len(data.features)} strengths"
    run.picture(f"{data.prefix}tuning.png", lambda path: plots.loss_against_time(curves, path, title, levels))


def _table(data: Data, rows: list[Row]) -> Table:
    # Broken by hand, so that a terminal of 80 columns shows all figures on one line.
    names = (
        "method",
        "validation\nloss",
        "test\nloss",
        "seconds\n(+ compile)",
        "gradients",
        "seconds\nto reach\nrandom's",
    )
    return as_table(
        f"{data.title}: {len(data.y):,} training, {len(data.y_validation):,} validation, {len(data.y_test):,} "
        f"test samples, {len(data.features)} strengths, {data.classes} classes",
        names,
        [
            (
                row.method,
                f"{row.validation_loss:.4f}",
                f"{row.test_loss:.4f}",
                "–" if row.seconds is None else f"{row.seconds:.2f} (+{row.compile_seconds:.1f})",
                figure(row.gradient_evaluations, ",d"),
                figure(row.seconds_to_random, ".3f"),
            )
            for row in rows
        ],
        "Losses: mean cross-entropy of logistic regression trained to the end with each method's strengths. "
        "Seconds: of a second run, with all compiled (+ those of a first, short one, which compiles). "
        "Last column: until random search's best validation loss was reached.",
    )
