"""The files of `bilevax denoise`: what it reads, writes and prints."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from rich.table import Table
from tqdm.auto import tqdm

from bilevax.cli._printing import as_table, quoted
from bilevax.cli._runs import Run
from bilevax.cli._shared import CORRECTED
from bilevax.loop.stages import Stages

if TYPE_CHECKING:  # these pull in pandas and scikit-learn, which `--help` need not wait for
    from bilevax.applications.denoising.review import Decisions
    from bilevax.applications.denoising.reviewing import Model, Reviewed
    from bilevax.data.samples.probabilities import Probabilities
    from bilevax.data.samples.types import Options, Samples
    from bilevax.saved import FileModel

SHOWN, ON_SHEET = 10, 50  # suspects: in the terminal, on the contact sheet
DEMO = "digits.npz"
LONGEST = 40  # characters of a cell in the terminal
DIGITS = 6  # of probabilities in files
MODEL = "model"


class Inputs(NamedTuple):
    """What a review reads.

    Attributes:
        samples: the samples.
        wrong: which labels are wrong, where that is known.
        probabilities: of --pred-probs.
        embeddings: of --embeddings.
        notes: in sentences.
    """

    samples: "Samples"
    wrong: Bool[np.ndarray, " n"] | None
    probabilities: "Probabilities | None"
    embeddings: Any
    notes: tuple[str, ...]


def read(
    train: Path | None,
    trusted: Path | None,
    options: "Options",
    pred_probs: Path | None,
    embeddings: Path | None,
    seed: int,
    folder: Path,
) -> Inputs:
    """Read the files of a user, or make the demonstration's in `folder`."""
    from bilevax.data.samples.probabilities import read_embeddings, read_probabilities
    from bilevax.data.samples.read import read_samples

    wrong = None
    if train is None:
        from bilevax.data.corruption import noisy_digits

        digits = noisy_digits(seed)
        train = folder / DEMO
        np.savez(train, X=np.round(digits.images * 255).astype(np.uint8), y=digits.y)
        wrong = digits.y != digits.y_true
    samples = read_samples(train, trusted, options._replace(elsewhere=(pred_probs or embeddings) is not None))
    p = None if pred_probs is None else read_probabilities(pred_probs, samples)
    e = None if embeddings is None else read_embeddings(embeddings, samples)
    return Inputs(samples, wrong, p, e, samples.notes if p is None else (*samples.notes, *p.notes))


def review(
    inputs: Inputs, model: "Model", encoder: Path | None, seed: int, stages: Stages
) -> "tuple[Reviewed, dict[str, bytes]]":
    """Rank the labels; the result, and the files of the saved model, are a stage."""
    from bilevax.applications.denoising.ranking import Ranking
    from bilevax.applications.denoising.reviewing import Reviewed, review
    from bilevax.saved.models import files_of

    def compute(_: Any) -> dict[str, Any]:
        bar: Any = None

        def report(done: int, total: int) -> None:
            nonlocal bar
            bar = bar or tqdm(total=total, desc="Encoding", unit="sample")
            bar.update(done - bar.n)
            if done == total:
                bar.close()

        found = review(inputs.samples, model, inputs.probabilities, inputs.embeddings, encoder, seed, report)
        model_files = {} if found.ranking.model is None else files_of(_model(inputs.samples, found))
        return {
            "ranking": found.ranking._replace(model=None)._asdict(),
            "method": found.method,
            "model": {name: np.frombuffer(content, np.uint8) for name, content in model_files.items()},
        }

    # A folder may have changed since a run was interrupted.
    stored = stages.of(f"review-{inputs.samples.source.digest[:12]}", compute)
    ranking = stages.rebuilt(Ranking, {k: v for k, v in stored["ranking"].items() if k != "model"}, model=None)
    reviewed = Reviewed(ranking, np.unique(inputs.samples.labels), stored["method"])
    return reviewed, {name: content.tobytes() for name, content in stored["model"].items()}


def _model(samples: "Samples", found: "Reviewed") -> "FileModel":
    """What predicts the samples of another file."""
    from bilevax.data.samples.new import form_of
    from bilevax.saved import FileModel
    from bilevax.saved.files import Denoised

    ranking = found.ranking
    assert ranking.model is not None
    assert found.preparation is not None
    predictor = Denoised(ranking.model, ranking.power)
    form = form_of(samples, found.vectors)
    return FileModel("classification", form, predictor, found.classes, found.preparation, found.method)


def files(train: Path | None, compared: tuple[str, ...], apply: str | None) -> list[str]:
    """The files that the command writes."""
    reviewed = ["report.html", "suspects.csv", "noise_matrix.csv", "results.json", "contact_sheet.png", *compared]
    reviewed += [f"{MODEL}/{name}" for name in ("arrays.npz", "estimators.skops", "model.json")]
    names = reviewed if apply in (None, "auto") else []
    if train is None:
        return [*names, DEMO]
    if apply is None:
        return names
    return [*names, "changes.csv", *([] if train.is_dir() else [corrected_name(train)])]


def corrected_name(train: Path) -> str:
    """The name of the corrected data: `corrected` with the suffixes of the file."""
    known = [suffix for suffix in train.suffixes if suffix[1:].isalnum()]
    return CORRECTED + "".join(
        known[-2:] if len(known) > 1 and known[-1] in (".gz", ".bz2", ".xz", ".zst", ".zip") else known[-1:]
    )


def write_model(model_files: dict[str, bytes], run: Run) -> None:
    """Write the folder of the model."""
    before = list(run.written)
    for name, content in model_files.items():
        run.file(f"{MODEL}/{name}", lambda path, content=content: path.write_bytes(content))
    run.written[:] = [*before, *[MODEL] * bool(model_files)]


def write(inputs: Inputs, found: "Reviewed", title: str, report: dict[str, Any], run: Run) -> None:
    """Write the tables, the page, and a picture of the first suspects where the samples are pictures."""
    import pandas as pd

    from bilevax.applications.denoising.review import Review, page_suspects, review_page, suspects_frame
    from bilevax.applications.denoising.review.sheet import contact_sheet

    samples, ranking, suggested = inputs.samples, found.ranking, found.suggested()
    probability = ranking.probability_wrong
    names = [str(name) for name in found.classes.tolist()]
    run.csv("suspects.csv", suspects_frame(samples, probability, suggested).round({"probability_wrong": DIGITS}))
    matrix = pd.DataFrame(ranking.noise_matrix.round(DIGITS), columns=names)
    run.csv("noise_matrix.csv", matrix.set_axis(pd.Index(names, name="true")).reset_index())
    run.json("results.json", report)
    likely, low, high = ranking.expected_wrong
    page = Review(
        title,
        samples.source.digest,
        names,
        page_suspects(samples, probability, suggested),
        samples.own,
        likely,
        (low, high),
        ranking.noise_matrix,
        found.method,
    )
    run.file("report.html", lambda path: review_page(page, path))
    if samples.kind == "images":
        first = np.argsort(-probability[: samples.own], kind="stable")[:ON_SHEET]
        pictures = np.asarray(samples.features)[first]
        titles = [f"row {samples.record[i]}\n{str(samples.labels[i])[:9]} → {str(suggested[i])[:9]}" for i in first]
        heading = f"The {len(first)} most suspicious of {samples.own:,}: given → suggested"
        wrong = None if inputs.wrong is None else inputs.wrong[first].tolist()
        if wrong is not None:
            heading += "   (orange: wrong, blue: right)"
        run.picture("contact_sheet.png", lambda path: contact_sheet(pictures, titles, path, heading, wrong))


def apply(samples: "Samples", decisions: "Decisions", run: Run) -> int:
    """Write the corrected data and the change log; the number of changes."""
    from bilevax.applications.denoising.review import apply_decisions

    logs = []
    source = samples.source
    if source.path.is_dir():
        logs.append(apply_decisions(source, decisions, run.out / CORRECTED))
        run.written.append(CORRECTED)
    else:
        # Under a temporary name: apply_decisions writes only what does not exist.
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / corrected_name(source.path)
            logs.append(apply_decisions(source, decisions, made))
            run.file(made.name, lambda path: shutil.copyfile(made, path))
    run.csv("changes.csv", logs[0])
    return len(logs[0])


def apply_suggestions(inputs: Inputs, found: "Reviewed", above: float | None, run: Run) -> int:
    """Write the data with the suggestions that are sure, or with all above a probability; the number of changes."""
    from bilevax.applications.denoising.review import automatic_decisions, suspects_frame

    samples = inputs.samples
    frame = suspects_frame(samples, found.ranking.probability_wrong, found.suggested())
    if above is None:
        sure = samples.record[: samples.own][found.ranking.sure[: samples.own]]
        frame = frame.loc[frame["row"].isin(sure.tolist())]
    return apply(inputs.samples, automatic_decisions(frame, above, inputs.samples.source.digest), run)


def changed(changes: int, samples: "Samples") -> str:
    """How many samples decisions changed, in a sentence."""
    return f"{changes:,} of {samples.own:,} samples are corrected or left out."


def next_step(train: Path | None, options: "Options", kind: str, saved: bool, run: Run) -> str:
    """What a person does with the page and with the model, and the commands for that."""
    out = run.out if run.elsewhere is None else run.elsewhere
    command = ["bilevax", "denoise", str(out / DEMO if train is None else train)]
    for name in ("target", "labels", "separator", "encoding"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name}", str(value)]
    if kind != "auto":
        command += ["--kind", kind]
    predict = f"  {quoted(['bilevax', 'predict', str(out / MODEL), 'FILE'])}"
    return (
        f"Decide about the suspects in {out / 'report.html'}, and apply the decisions that it exports:\n"
        f"  {quoted([*command, '--apply', 'decisions.csv'])}\n"
        + (
            f"Predict other samples by the model that was fitted in spite of the wrong labels:\n{predict}"
            if saved
            else "No model is saved: the predictions of --pred-probs are those of your own."
        )
    )


def headline(report: dict[str, Any]) -> str:
    """What a review found, in sentences.

    Args:
        report: of `figures`.
    """
    data, wrong = report["data"], report["expected_wrong"]
    known = ""
    if "known" in report:
        truth = report["known"]
        known = f" In fact {truth['wrong']:,} are, {truth['suspects_wrong']:,} of the suspects among them."
    trusted = f", {data['trusted']:,} of the labels trusted" if data["trusted"] else ""
    return (
        f"{data['title']}: {data['samples']:,} samples of {len(data['classes'])} classes{trusted}.\n"
        f"{report['method']}\n"
        f"About {wrong['number']:,.0f} labels are wrong (90% interval: {wrong['low']:,.0f} to {wrong['high']:,.0f}). "
        f"{report['suspects']:,} are suspects: another label is more probable.{known}"
    )


def summary(inputs: Inputs, found: "Reviewed") -> Table:
    """The first suspects."""
    return first_suspects(inputs.samples, found.ranking.probability_wrong, found.suggested())


def first_suspects(samples: "Samples", probability: np.ndarray, suggested: np.ndarray) -> Table:
    """A table of the samples whose labels or targets are most probably wrong.

    Args:
        samples: with what was given as labels.
        probability: (n,) that the given one is wrong.
        suggested: (n,) what is suggested.
    """
    order = np.argsort(-probability[: samples.own], kind="stable")[:SHOWN]
    where = "line" if samples.source.encoding else "row"
    places = samples.lines if samples.source.encoding else samples.record
    rows = [
        [
            str(places[i]) if samples.identifiers is None else samples.identifiers[i][-LONGEST:],
            str(samples.labels[i])[:LONGEST],
            str(suggested[i])[:LONGEST],
            f"{probability[i]:.3f}",
        ]
        for i in order.tolist()
    ]
    names = [where if samples.identifiers is None else "sample", "given", "suggested", "probability\nwrong"]
    return as_table(f"The first {len(rows)}", names, rows, whole=False)


def figures(inputs: Inputs, found: "Reviewed", title: str) -> dict[str, Any]:
    """The figures of a review, for results.json."""
    from sklearn.metrics import average_precision_score

    samples, ranking = inputs.samples, found.ranking
    suspects = found.suggested()[: samples.own] != samples.labels[: samples.own]
    target = {"classes": [str(name) for name in found.classes.tolist()]}
    report = {
        **shared_figures(inputs, title, target, found.method, ranking.expected_wrong),
        "suspects": int(suspects.sum()),
        "sure": int(ranking.sure[: samples.own].sum()),
        "noise_matrix": ranking.noise_matrix,
    }
    if inputs.wrong is not None:
        report["known"] = {
            "wrong": int(inputs.wrong.sum()),
            "average_precision": float(average_precision_score(inputs.wrong, ranking.probability_wrong)),
            "suspects_wrong": int((suspects & inputs.wrong).sum()),
        }
    return report


def shared_figures(
    inputs: Inputs, title: str, target: dict[str, Any], method: str, expected_wrong: tuple[float, float, float]
) -> dict[str, Any]:
    """The figures that reviews of labels and of quantities have in common.

    Args:
        inputs: what was reviewed.
        title: of the data.
        target: what describes the target.
        method: in a sentence.
        expected_wrong: the number of wrong ones, and the ends of its interval.
    """
    samples = inputs.samples
    return {
        "data": {
            "title": title,
            "kind": samples.kind,
            "samples": samples.own,
            "records": samples.source.records,
            "trusted": int(samples.trusted.sum()),
            **target,
            "sha256": samples.source.digest,
            "notes": list(inputs.notes),
        },
        "method": method,
        "expected_wrong": dict(zip(("number", "low", "high"), expected_wrong, strict=True)),
    }
