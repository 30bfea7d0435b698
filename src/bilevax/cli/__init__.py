"""The command line, one file for each command."""

import gc
import sys
from typing import Annotated

import bilevax

try:
    import rich as rich
    import typer
except ImportError as error:
    raise SystemExit(f"The bilevax command needs {error.name}: pip install 'bilevax[apps]'") from error

from bilevax.cli import audit, denoise, fewshot, predict, tune
from bilevax.cli._printing import complain, failed, prepare, say, silence
from bilevax.cli._programs import keep_programs

# What a command imports makes many objects, of which nearly none is garbage. With the usual thresholds the garbage
# collector takes 5 to 11% of the processor time of `denoise` and `tune` on small tables.
FEWER_COLLECTIONS = 100_000, 50, 100

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
app.command()(denoise.denoise)
app.command()(predict.predict)
app.command()(tune.tune)
app.command()(audit.audit)
app.command()(fewshot.fewshot)


def main() -> None:
    """The `bilevax` command.

    Exit codes: 0 done, 1 the solve or an output failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM or SIGUSR1.
    """
    prepare()
    keep_programs()
    gc.set_threshold(*FEWER_COLLECTIONS)
    try:
        app()
    except SystemExit as error:
        if failed() and not error.code:
            raise SystemExit(1) from error
        raise
    except OSError as error:  # the help page had nowhere to go
        complain(str(error))
        raise SystemExit(1) from error
    finally:
        try:
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            silence("stdout", error)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"bilevax {bilevax.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Bilevel optimisation in JAX."""
