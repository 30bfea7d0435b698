"""`bilevax reproduce`: the papers' tables and figures."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import bilevax
from bilevax._checks import InputError
from bilevax.cli._shared import check_writable, in_plain_words


def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which table or figure, see --list.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Name them all.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Under two minutes on two cores.")] = False,
    medium: Annotated[bool, typer.Option("--medium", help="Between --quick and full size.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many.", show_default="the experiment's")] = None,
    solver: Annotated[str | None, typer.Option(help="Only this one of the experiment's solvers.")] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this data set, of an experiment on several.")
    ] = None,
    noise: Annotated[
        int | None,
        typer.Option(min=0, max=100, metavar="PERCENT", help="Only this share of wrong labels, of one on several."),
    ] = None,
    way: Annotated[
        int | None, typer.Option(min=2, help="Only tasks of so many classes, of an experiment on several.")
    ] = None,
    shot: Annotated[int | None, typer.Option(min=1, help="Only tasks of so many samples a class, likewise.")] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Images and a feature map of yours, of figure3.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the results go.", show_default="out/NAME")
    ] = None,
) -> None:
    """Run one table or figure of the papers, and compare with the paper's numbers."""
    with in_plain_words():
        if quick and medium:
            raise InputError("--quick and --medium are both given. Choose one.")
        catalog = _catalog()
        experiments = catalog.EXPERIMENTS
        if list_all:
            table = Table("name", "what it reproduces", box=None)
            for key, experiment in experiments.items():
                table.add_row(key, experiment.title)
            Console().print(table)
            return
        names = ", ".join(experiments)
        if name is None:
            raise InputError(f"NAME is missing. Pass one of {names}.")
        if name not in experiments:
            raise InputError(f"NAME is {name!r}, which is not an experiment. Pass one of {names}.")
        out = Path("out") / name if out is None else out
        check_writable(out)
        settings = catalog.Settings(
            quick=quick,
            medium=medium,
            seeds=seeds,
            solver=solver,
            dataset=dataset,
            noise=noise,
            way=way,
            shot=shot,
            features=features,
            out=out,
        )
        experiments[name].run(settings)


def _catalog() -> Any:
    """`experiments.catalog` of the checkout that bilevax itself is imported from, and of no other folder.

    The package is loaded by its location, whatever folders Python looks for modules in.
    """
    package = Path(bilevax.__file__).resolve().parent
    folder = package.parents[1] / "experiments"
    if package.parent.name != "src" or not all((folder / name).is_file() for name in ("__init__.py", "catalog.py")):
        raise InputError(
            f"The experiments are part of the repository and not of the installed package, and bilevax is imported "
            f"from {package}. Clone the repository, install it by pip install -e '.[experiments]', and run this "
            "command again."
        )
    loaded = sys.modules.get("experiments")
    if loaded is None:
        spec = importlib.util.spec_from_file_location(
            "experiments", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        loaded = sys.modules["experiments"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    if [Path(place).resolve() for place in getattr(loaded, "__path__", ())] != [folder]:
        raise InputError(f"Another module named experiments is imported already, and not that of {folder}.")
    return importlib.import_module("experiments.catalog")
