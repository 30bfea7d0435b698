"""The files of `bilevax tune`: what it reads, writes and prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.table import Table

from bilevax.cli._printing import as_table, quoted, say, show
from bilevax.cli._runs import Run
from bilevax.cli._shared import figure
from bilevax.loop.stages import Stages

if TYPE_CHECKING:  # these pull in pandas and scikit-learn, which `--help` need not wait for
    import pandas as pd

    from bilevax.applications.tuning import TunedGLM
    from bilevax.applications.tuning.table import Job, Nested
    from bilevax.data.samples.types import Options, Samples

READY_MADE = ("diabetes", "breast_cancer")
DATA, MODEL = "data.csv", "model"
MODEL_FILES = tuple(f"{MODEL}/{name}" for name in ("arrays.npz", "estimators.skops", "model.json"))
SHOWN = 15  # columns in the terminal and in the picture
AUTO = "auto"  # of the loss: by the kind of target
WORDS = {"classes": "classes", "quantity": "a quantity", "counts": "counts"}
SCORES = {True: "accuracy", False: "explained part of the deviance"}


class Tuned(NamedTuple):
    """A table with its model, nested scores, and those of other methods.

    Attributes:
        prefix: of the names of the output files.
        title: of the data.
        samples, job, model: of it.
        scores: of the model, on samples that it has not seen.
        others: by method; empty without --compare.
    """

    prefix: str
    title: str
    samples: "Samples"
    job: "Job"
    model: "TunedGLM"
    scores: "Nested"
    others: "dict[str, Nested]"


def files(ready: bool) -> list[str]:
    """The names of the files that the command writes."""
    names = ["strengths.csv", *MODEL_FILES, "path.png", "importance.png"]
    if not ready:
        return [*names, "results.json"]
    return [*(f"{folder}/{name}" for folder in READY_MADE for name in (*names, DATA)), "results.json"]


def ready_made(folder: Path) -> dict[str, Path]:
    """scikit-learn's diabetes and breast cancer data as files."""
    from sklearn import datasets

    found = {}
    for name in READY_MADE:
        bunch: Any = getattr(datasets, f"load_{name}")(as_frame=True)
        frame = bunch.frame.rename(columns={"target": "progression" if name == READY_MADE[0] else "diagnosis"})
        if name == READY_MADE[1]:
            frame["diagnosis"] = bunch.target_names[bunch.target]
        found[name] = folder / f"{name}.csv"
        frame.to_csv(found[name], index=False)
    return found


def read_and_tune(prefix: str, path: Path, options: "Options", settings: dict[str, Any], stages: Stages) -> Tuned:
    """Read a table, fit its model, and score it."""
    from bilevax.applications.tuning.glm.losses import Quantile
    from bilevax.applications.tuning.glm.penalties import penalty_of
    from bilevax.applications.tuning.table import LOSSES, USUAL, job_of
    from bilevax.data.samples.read import read_targets

    if prefix:
        options = options._replace(target="progression" if prefix.startswith("diabetes") else "diagnosis")
    name = settings["loss"]
    samples, kind, why = read_targets(path, None if name == AUTO else LOSSES[name][1], options)
    for note in samples.notes:
        say(note)
    if name == AUTO:
        name = USUAL[kind]
        say(
            f"The target {samples.source.target!r} is taken for {WORDS[kind]} ({why}): {name} loss. Pass "
            "--loss to say otherwise."
        )
    loss = LOSSES[name][0] if settings["quantile"] is None else Quantile(settings["quantile"])
    job = job_of(
        samples,
        kind,
        loss,
        penalty_of(settings["penalty"]),
        strengths=settings["strengths"],
        folds=settings["folds"],
        weight=settings["weight"],
        exposure=settings["exposure"],
        seed=settings["seed"],
    )
    for note in job.notes:
        say(note)
    trials = (settings["trials"] or 0) if settings["compare"] else None
    title = prefix.strip("/").replace("_", " ") if prefix else path.name
    return tuned(prefix, title, samples, job, trials, settings["seed"], stages)


def tuned(
    prefix: str, title: str, samples: "Samples", job: "Job", trials: int | None, seed: int, stages: Stages
) -> Tuned:
    """Fit the model, and score it on outer folds; `trials` of each search, None without a comparison."""
    from bilevax.applications.tuning.comparison import rivals
    from bilevax.applications.tuning.table import Nested, nested

    model: Any = job.model().fit(**job.part(np.arange(len(job.y))), column_names=job.names)

    def stage(name: str, compute: Any) -> "Nested":
        stored = stages.of(f"{prefix.replace('/', '-')}{name}", lambda keep: compute()._asdict())
        return stages.rebuilt(Nested, stored)

    scores = stage("nested", lambda: nested(job, job.model))
    others = {}
    if trials is not None:
        runs = rivals(job, model.strengths_chosen_, trials or model.n_iter_, seed)
        others = {name: stage(f"rival-{i}", compute) for i, (name, compute) in enumerate(runs.items())}
    return Tuned(prefix, title, samples, job, model, scores, others)


def strengths_frame(job: "Job", model: "TunedGLM") -> "pd.DataFrame":
    """A row for each feature: the strength, the coefficients, and how much it moves the prediction."""
    import pandas as pd

    scale = np.concatenate(
        [[c.scale] + [1.0] * c.missing if c.role == "number" else [1.0] * c.width() for c in job.columns if c.width()]
    )
    coef = np.atleast_2d(model.coef_)
    strength = np.broadcast_to(np.atleast_2d(model.alpha_), coef.shape)
    owners = [c.name for c in job.columns for _ in range(c.width())]
    frame = pd.DataFrame({"feature": job.names, "column": owners})
    several = len(coef) > 1
    labels = [f": {label}" for label in np.asarray(job.classes).tolist()] if several else [""]
    if not several or np.ptp(strength, axis=0).max() == 0:
        frame["strength"] = strength[0]
    else:
        frame = frame.assign(**{f"strength{label}": row for label, row in zip(labels, strength, strict=True)})
    frame = frame.assign(**{f"coefficient{label}": row / scale for label, row in zip(labels, coef, strict=True)})
    frame["importance"] = np.abs(coef).max(0) * job.X.std(0)
    return frame.sort_values("importance", ascending=False, kind="stable", ignore_index=True)


def write(found: Tuned, run: Run) -> None:
    """Write the strengths, the model and the data of a demonstration."""
    from bilevax.data.samples.new import form_of
    from bilevax.saved import FileModel
    from bilevax.saved.models import files_of

    job, prefix = found.job, found.prefix
    run.csv(f"{prefix}strengths.csv", strengths_frame(job, found.model))
    task = "classification" if job.classes is not None else "counts" if _counts(job) else "regression"
    model = FileModel(task, form_of(found.samples), found.model, job.classes, method=method(found))
    before = list(run.written)
    for name, content in files_of(model).items():
        run.file(f"{prefix}{MODEL}/{name}", lambda path, content=content: path.write_bytes(content))
    run.written[:] = [*before, f"{prefix}{MODEL}"]
    if prefix:
        source = found.samples.source.path.read_bytes()
        run.file(f"{prefix}{DATA}", lambda path: path.write_bytes(source))


def draw(found: Tuned, run: Run) -> None:
    """Draw the path of the scalar strength, and the importance of the columns."""
    from bilevax import plots

    model, prefix = found.model, found.prefix
    scores = [model.cv_results_[name] for name in model.cv_results_ if name.startswith("split")]
    best = float(model.alphas_[np.argmax(model.cv_results_["mean_test_score"])])
    run.picture(
        f"{prefix}path.png",
        lambda path: plots.loss_against_strength(
            model.alphas_, -np.stack(scores, 1), best, path, f"One strength for all: {found.title}"
        ),
    )
    frame = strengths_frame(found.job, model).head(SHOWN)
    run.picture(
        f"{prefix}importance.png",
        lambda path: plots.bars(
            frame["feature"].astype(str).tolist(),
            {"importance": frame["importance"].to_numpy()},
            path,
            f"The first columns of {found.title}",
            "what one standard deviation adds to the linear predictor",
        ),
    )


def _counts(job: "Job") -> bool:
    return type(job.loss).__name__ == "Poisson"


def method(found: Tuned) -> str:
    """What the model is, in a line."""
    job, model = found.job, found.model
    return (
        f"A linear model with the {_words(type(job.loss).__name__)} loss and the {_words(type(job.penalty).__name__)} "
        f"penalty, {_kind(model)}, fitted to {len(job.y):,} samples."
    )


def _words(name: str) -> str:
    return {"SquaredHinge": "squared hinge", "GroupLasso": "group lasso", "ElasticNet": "elastic net"}.get(
        name, name if name in ("L1", "L2", "Poisson", "Tweedie", "Huber") else name.lower()
    )


def _kind(model: "TunedGLM") -> str:
    if model.strengths_chosen_ == "scalar":
        return f"one strength ({model.strengths_[0]:.4g})"
    each = {"group": "group of columns", "feature": "column", "class": "class"}[model.strengths_chosen_]
    return (
        f"a strength for each {each} ({len(model.strengths_):,} strengths, {model.strengths_.min():.3g} to "
        f"{model.strengths_.max():.3g})"
    )


def figures(found: Tuned) -> dict[str, Any]:
    """The figures of one table, for results.json."""
    from bilevax.applications.tuning.table import mean_and_error

    job, model, scores = found.job, found.model, found.scores

    def scored(one: "Nested") -> dict[str, Any]:
        mean, error = mean_and_error(job, one.losses)
        gap, gap_error = mean_and_error(job, one.losses - scores.losses)
        return {
            "held_out_loss": mean,
            "standard_error": error,
            "difference_from_tuned": gap,
            "standard_error_of_difference": gap_error,
            "score_of_folds": one.scores,
            "strengths_of_folds": one.kinds,
            "seconds": one.seconds,
        }

    return {
        "title": found.title,
        "samples": len(job.y),
        "features": len(job.names),
        "columns": int(job.groups.max()) + 1,
        "classes": None if job.classes is None else [str(label) for label in job.classes.tolist()],
        "loss": type(job.loss).__name__,
        "penalty": type(job.penalty).__name__,
        "strengths_chosen": model.strengths_chosen_,
        "strengths": model.strengths_,
        "candidates": [candidate._asdict() for candidate in model.candidates_],
        "evaluations": model.n_iter_,
        "cross_validated_loss": model.held_out_loss_,
        "score": SCORES[job.classes is not None],
        "nested": scored(scores),
        "comparison": {name: scored(one) for name, one in found.others.items()},
        "sha256": found.samples.source.digest,
        "notes": [*found.samples.notes, *job.notes],
    }


def tell(found: Tuned) -> None:
    """Print what was chosen, and how sure that is."""
    from bilevax.applications.tuning.table import mean_and_error

    job, model, scores = found.job, found.model, found.scores
    say(f"{found.title}: {method(found)}")
    for sentence in _considered(model):
        say(sentence)
    mean, error = mean_and_error(job, scores.losses)
    name = SCORES[job.classes is not None]
    say(
        f"On samples that neither the fit nor the tuning has seen ({len(scores.scores)} outer folds): {name} "
        f"{scores.scores.mean():.3f} ({scores.scores.min():.3f} to {scores.scores.max():.3f} by fold), loss "
        f"{mean:.5g} ± {error:.2g}. Chosen without each fold: {', '.join(scores.kinds)}."
    )
    show(_table(found))
    if found.others:
        show(_comparison(found))


def _considered(model: "TunedGLM") -> list[str]:
    """How each kind of strengths compared with one strength, at the widest prior that was tried or taken."""
    names = {"group": "group of columns", "feature": "column", "class": "class"}
    last: dict[str, Any] = {}
    for one in model.candidates_:
        if one.kind != model.strengths_chosen_ or one.deviation <= model.prior_deviation_:
            last[one.kind] = one
    return [
        f"A strength for each {names[kind]} changed the loss by {one.difference:+.3g} ± {one.standard_error:.2g} on "
        f"folds that its tuning had not seen: {'taken' if kind == model.strengths_chosen_ else 'not taken'}."
        for kind, one in last.items()
    ]


def _table(found: Tuned) -> Table:
    frame = strengths_frame(found.job, found.model)
    chosen = [name for name in frame.columns if name.startswith("strength")][:1]
    coefficients = [name for name in frame.columns if name.startswith("coefficient")][:1]
    several = len(np.atleast_2d(found.model.coef_)) > 1
    names = ["feature", "strength", *([] if several else ["coefficient"]), "importance"]
    keys = ["feature", *chosen, *([] if several else coefficients), "importance"]
    rows = [
        [str(row[keys[0]]), *(f"{row[key]:.4g}" for key in keys[1:])] for row in frame.head(SHOWN).to_dict("records")
    ]
    rest = f" The other {len(frame) - SHOWN:,} are in strengths.csv." if len(frame) > SHOWN else ""
    caption = f"Importance: what one standard deviation adds to the linear predictor.{rest}"
    return as_table("The features that matter most", names, rows, caption, whole=False)


def _comparison(found: Tuned) -> Table:
    from bilevax.applications.tuning.table import mean_and_error

    job, scores = found.job, found.scores
    rows = []
    for name, one in {"bilevax tune": scores, **found.others}.items():
        mean, error = mean_and_error(job, one.losses)
        gap, gap_error = mean_and_error(job, one.losses - scores.losses)
        difference = "–" if one is scores else f"{gap:+.3g} ± {gap_error:.2g}"
        rows.append(
            [name, f"{mean:.5g} ± {error:.2g}", difference, f"{one.scores.mean():.3f}", figure(one.seconds, ".1f")]
        )
    names = ["method", "held-out loss", "difference", "mean\nscore", "seconds"]
    caption = (
        f"Nested folds, the same rows for all. Score: {SCORES[job.classes is not None]}. Seconds: of all outer folds."
    )
    return as_table(f"Comparison: {found.title}", names, rows, caption)


def next_step(found: Tuned, run: Run) -> str:
    """The command that predicts another file."""
    out = run.out if run.elsewhere is None else run.elsewhere
    return f"Predict other samples:\n  {quoted(['bilevax', 'predict', str(out / f'{found.prefix}{MODEL}'), 'FILE'])}"
