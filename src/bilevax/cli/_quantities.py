"""`bilevax denoise` for a target that is a quantity: what it finds, writes and prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from bilevax.cli import _reviewing
from bilevax.cli._reviewing import DIGITS, Inputs
from bilevax.cli._runs import Run
from bilevax.cli._shared import require
from bilevax.loop.stages import Stages

PREDICTED = "predicted"

if TYPE_CHECKING:  # these pull in pandas and scikit-learn, which `--help` need not wait for
    from bilevax.applications.denoising.quantities import ReviewedTargets
    from bilevax.applications.denoising.reviewing import Model
    from bilevax.data.samples.types import Samples


def review(
    inputs: Inputs, model: "Model", encoder: Path | None, seed: int, stages: Stages
) -> "tuple[ReviewedTargets, dict[str, bytes]]":
    """Rank the targets; the result, and the files of the saved model, are a stage."""
    require(encoder is None, "--encoder is for pictures and texts, and the target is a quantity. Leave it out.")
    from bilevax.applications.denoising.quantities import ReviewedTargets, review_quantities
    from bilevax.applications.denoising.targets import TargetRanking
    from bilevax.data.samples.new import form_of
    from bilevax.saved import FileModel
    from bilevax.saved.models import files_of

    samples = inputs.samples

    def compute(_: Any) -> dict[str, Any]:
        found = review_quantities(samples, model, inputs.embeddings, seed)
        form = form_of(samples, found.vectors)
        files = files_of(FileModel("regression", form, found.ranking.model, method=found.method))
        return {
            "ranking": found.ranking._replace(model=None)._asdict(),
            "suggested": found.suggested,
            "method": found.method,
            "model": {name: np.frombuffer(content, np.uint8) for name, content in files.items()},
        }

    stored = stages.of(f"review-quantity-{samples.source.digest[:12]}", compute)
    fields = {name: value for name, value in stored["ranking"].items() if name != "model"}
    ranking = stages.rebuilt(TargetRanking, fields, model=None)
    found = ReviewedTargets(ranking, stored["suggested"], stored["method"])
    return found, {name: content.tobytes() for name, content in stored["model"].items()}


def as_texts(samples: "Samples", found: "ReviewedTargets") -> "tuple[Samples, np.ndarray]":
    """The samples with their targets as the file writes them, and the suggested ones in the same way.

    The suggestion of a sample that is no suspect is its target. The rows get a column with the predicted ones.
    """
    from bilevax.applications.denoising.quantities import written
    from bilevax.applications.denoising.review.edits import text_of

    assert samples.source.numbers is not None
    style = samples.source.numbers
    given = np.array([text_of(value) for value in samples.rows[samples.source.target].tolist()], dtype=object)
    suggested = np.array(written(found.suggested, samples.labels, style), dtype=object)
    name = PREDICTED if PREDICTED not in samples.rows.columns else f"{PREDICTED} by bilevax"
    rows = samples.rows.assign(**{name: written(found.ranking.predicted, samples.labels, style)})
    return samples._replace(labels=given, rows=rows), np.where(found.suspects(), suggested, given)


def write(inputs: Inputs, found: "ReviewedTargets", title: str, report: dict[str, Any], run: Run) -> None:
    """Write suspects.csv, results.json and the page."""
    from bilevax.applications.denoising.review import Review, page_suspects, review_page, suspects_frame

    samples, suggested = as_texts(inputs.samples, found)
    ranking, source = found.ranking, samples.source
    probability = ranking.probability_wrong
    run.csv("suspects.csv", suspects_frame(samples, probability, suggested).round({"probability_wrong": DIGITS}))
    run.json("results.json", report)
    suspects = page_suspects(samples, probability, suggested)
    values = dict(zip(samples.labels.tolist(), inputs.samples.labels.tolist(), strict=True))
    proposed = np.where(found.suspects(), found.suggested, inputs.samples.labels)
    values |= dict(zip(suggested.tolist(), proposed.tolist(), strict=True))
    shown = {text for one in suspects for text in (one.given, one.suggested)}
    likely, low, high = ranking.expected_wrong
    page = Review(
        title,
        source.digest,
        sorted(shown, key=lambda text: values[text]),
        suspects,
        samples.own,
        likely,
        (low, high),
        None,
        found.method,
        quantity=True,
    )
    run.file("report.html", lambda path: review_page(page, path))


def apply_suggestions(inputs: Inputs, found: "ReviewedTargets", above: float | None, run: Run) -> int:
    """Write the data with all suspects corrected, or those above a probability; the number of changes."""
    from bilevax.applications.denoising.review import automatic_decisions, suspects_frame

    samples, suggested = as_texts(inputs.samples, found)
    frame = suspects_frame(samples, found.ranking.probability_wrong, suggested)
    least = 0.5 if above is None else above
    return _reviewing.apply(samples, automatic_decisions(frame, least, samples.source.digest), run)


def figures(inputs: Inputs, found: "ReviewedTargets", title: str) -> dict[str, Any]:
    """The figures of a review, for results.json."""
    ranking, own = found.ranking, slice(0, inputs.samples.own)
    return {
        **_reviewing.shared_figures(inputs, title, {"target": "quantity"}, found.method, ranking.expected_wrong),
        "suspects": int(found.suspects()[own].sum()),
        "median_deviation": float(np.median(ranking.deviation[own])),
    }


def headline(report: dict[str, Any]) -> str:
    """What a review found, in sentences.

    Args:
        report: of `figures`.
    """
    data, wrong = report["data"], report["expected_wrong"]
    trusted = f", {data['trusted']:,} of the targets trusted" if data["trusted"] else ""
    return (
        f"{data['title']}: {data['samples']:,} samples with a quantity{trusted}.\n"
        f"{report['method']}\n"
        f"About {wrong['number']:,.0f} targets are wrong (90% interval: {wrong['low']:,.0f} to {wrong['high']:,.0f}). "
        f"{report['suspects']:,} are suspects: more probably wrong than right."
    )


def summary(inputs: Inputs, found: "ReviewedTargets") -> Table:
    """The first suspects."""
    samples, suggested = as_texts(inputs.samples, found)
    return _reviewing.first_suspects(samples, found.ranking.probability_wrong, suggested)
