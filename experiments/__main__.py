"""Run one table or figure of the papers: `python -m experiments NAME`, from the root of the repository."""

import importlib
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise SystemExit(f"The experiments need {error.name}: pip install -e '.[experiments]'") from error

from experiments.catalog import EXPERIMENTS

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The table or figure; see --list.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List all experiments.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Under two minutes on two cores.")] = False,
    medium: Annotated[bool, typer.Option("--medium", help="Between --quick and full size.")] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of trials.", show_default="that of the experiment")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="Run only this solver of the experiment.")] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run only this data set, if the experiment has several.")
    ] = None,
    noise: Annotated[
        int | None,
        typer.Option(min=0, max=100, metavar="PERCENT", help="Run only this percentage of wrong labels."),
    ] = None,
    way: Annotated[int | None, typer.Option(min=2, help="Run only tasks with this number of classes.")] = None,
    shot: Annotated[int | None, typer.Option(min=1, help="Run only tasks with this number of samples a class.")] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Your images and feature map, for figure3.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.5, help="The time for all cells, for gpu.", show_default="9")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the results go.", show_default="out/NAME")
    ] = None,
) -> None:
    """Run one table or figure of the papers, and compare with the paper's numbers."""
    if list_all:
        table = Table("name", "table or figure", box=None)
        for key, experiment in EXPERIMENTS.items():
            table.add_row(key, experiment.title)
        Console().print(table)
        return
    # Imported here, because --list and --help need no JAX.
    from bilevax import InputError
    from bilevax.cli._shared import check_writable, in_plain_words
    from bilevax.loop.signals import PREEMPTION, deferred
    from experiments.common.settings import Settings

    with in_plain_words(), deferred(*PREEMPTION):  # a solve that is running saves its state
        if quick and medium:
            raise InputError("--quick and --medium are both given. Choose one.")
        names = ", ".join(EXPERIMENTS)
        if name is None:
            raise InputError(f"NAME is missing. Pass one of {names}.")
        if name not in EXPERIMENTS:
            raise InputError(f"NAME is {name!r}, which is not an experiment. Pass one of {names}.")
        out = Path("out") / name if out is None else out
        check_writable(out)
        settings = Settings(
            quick=quick,
            medium=medium,
            seeds=seeds,
            solver=solver,
            dataset=dataset,
            noise=noise,
            way=way,
            shot=shot,
            features=features,
            minutes=minutes,
            out=out,
        )
        importlib.import_module(EXPERIMENTS[name].module).run(settings)


if __name__ == "__main__":
    app()
