"""What `bilevax denoise` runs, prints and writes, from the samples to the page."""

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bilevax.applications.denoising.review import read_decisions
from bilevax.applications.denoising.reviewing import Model
from bilevax.cli import _comparing, _quantities, _reviewing
from bilevax.cli._printing import say, show
from bilevax.cli._runs import Run
from bilevax.cli._shared import surroundings
from bilevax.data.samples.types import Options
from bilevax.loop.layout import Layout


class Request(NamedTuple):
    """What is asked for; the fields are options of the command."""

    train: Path | None
    trusted: Path | None
    pred_probs: Path | None
    embeddings: Path | None
    options: Options
    kind: str
    model: str
    encoder: Path | None
    apply: str | None
    above: float | None
    seed: int


def names(request: Request, compare: bool) -> list[str]:
    """The files that will be written."""
    return _reviewing.files(request.train, _comparing.FILES if compare else (), request.apply)


def correct(request: Request, run: Run) -> None:
    """Write the data corrected by a file of decisions, and print what changed."""
    with run.stages(), tempfile.TemporaryDirectory(prefix="bilevax-") as folder:
        inputs = _read(request, folder)
        changes = _reviewing.apply(inputs.samples, read_decisions(Path(str(request.apply))), run)
        say(_reviewing.changed(changes, inputs.samples))


def review(
    request: Request,
    run: Run,
    known: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    layout: Layout | None,
    began: float,
) -> str:
    """Rank the samples, write the page and the other files, and print a summary. Returns what to do next.

    Args:
        known: the settings for results.json.
        comparison: options of the comparison; None without it.
        began: the time by `time.perf_counter` when the command began.
    """
    title = "scikit-learn's handwritten digits" if request.train is None else request.train.name
    compared = changes = None
    settings = None if comparison is None else _comparing.Settings(**comparison)
    with run.stages() as stages, tempfile.TemporaryDirectory(prefix="bilevax-") as folder:
        inputs = _read(request, folder)
        for note in inputs.notes:
            say(note)
        tool: Any = _reviewing if inputs.samples.source.numbers is None else _quantities
        found, model_files = tool.review(inputs, Model(request.model), request.encoder, request.seed, stages)
        if settings is not None:
            target = request.options.target
            compared = _comparing.compare(
                request.train, request.trusted, target, settings, request.seed, stages, layout
            )
        report = {
            "settings": known,
            "seed": request.seed,
            "resumed": stages.resumed,
            **surroundings("jax", "optax", "numpy", "scikit-learn"),
            **tool.figures(inputs, found, title),
            "comparison": None if compared is None else compared.report(),
            "wall_seconds": time.perf_counter() - began,
        }
        tool.write(inputs, found, title, report, run)
        _reviewing.write_model(model_files, run)
        if request.train is None:
            run.file(_reviewing.DEMO, lambda path: shutil.copyfile(inputs.samples.source.path, path))
        if compared is not None:
            _comparing.write(compared, run)
        if request.apply is not None:
            changes = tool.apply_suggestions(inputs, found, request.above, run)
    say(tool.headline(report))
    show(tool.summary(inputs, found))
    if changes is not None:
        say(_reviewing.changed(changes, inputs.samples))
    if compared is not None and settings is not None:
        show(_comparing.table(compared.job, compared.found.rows, settings.hold_out))
    return _reviewing.next_step(request.train, request.options, request.kind, bool(model_files), run)


def _read(request: Request, folder: str) -> _reviewing.Inputs:
    return _reviewing.read(
        request.train,
        request.trusted,
        request.options,
        request.pred_probs,
        request.embeddings,
        request.seed,
        Path(folder),
    )
