"""The command line ``cxr``: the list of its commands, and the one boundary where an error becomes a line and an exit.

Libraries are imported inside the commands, so that ``cxr --help`` loads no torch.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Annotated

import typer

from cxr.commands import bundle, cache, data, export, extract, fit, look, predict, report, serve, setup
from cxr.terminal import err, note, spell
from featcache.errors import CxrError, UsageError, printable

app = typer.Typer(
    name="cxr",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at a data set, or make a synthetic one.", no_args_is_help=True)
cache_app = typer.Typer(help="List, verify and remove feature stores.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")

INTERRUPTED = 130
INTERRUPTION = "cxr: interrupted"
KEPT = f"{INTERRUPTION}; finished parts, heads and runs are kept, the same command again goes on from there"

KEEPING_NOTHING = {"predict", "bundle", "export", "serve"}
"""Commands that begin anew: what they write is whole or absent."""


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("cxr"))
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Run frozen backbones once over chest radiographs; fit whole grids of heads on the cached features."""


app.command()(setup.init)
app.command()(setup.doctor)
data_app.command()(data.check)
data_app.command()(data.table)
data_app.command()(data.audit)
data_app.command()(data.phantoms)
data_app.command()(data.fetch)
app.command()(extract.extract)
app.command()(fit.fit_head)
app.command()(fit.grid)
app.command()(report.report)
app.command()(look.neighbours)
app.command()(look.explain)
app.command()(predict.predict)
app.command()(bundle.bundle)
app.command()(export.export)
app.command()(serve.serve)
cache_app.command("list")(cache.list_stores)
cache_app.command()(cache.verify)
cache_app.command()(cache.remove)


def main() -> None:
    """Run ``cxr``: a CxrError becomes one red line and exit 1 (2 for wrong usage); a bug keeps its traceback.

    typer too exits 2 on wrong usage, and 130 on Ctrl-C; of the latter we say what it means for the work.
    """
    codecs.register_error("cxr.spell", spell)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no × shows x, and the work is not lost for it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="cxr.spell")
    # Before torch is loaded: OpenMP threads that wait without spinning train heads several times faster where other
    # processes want the same cores, and a quarter slower where none do (docs/log.md).
    # In small letters: libgomp compares them by the rules of the locale, and a Turkish I is another letter.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except CxrError as error:
        # Names of files and what stands in files may hold anything.
        err.print(printable(f"cxr: {error}"), style="red", markup=False)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        # typer makes it an exit, but not yet while it reads the commands' signatures.
        note(_interruption())
        sys.exit(INTERRUPTED)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            note(_interruption())
        raise


def _interruption() -> str:
    return INTERRUPTION if KEEPING_NOTHING.intersection(sys.argv[1:2]) else KEPT
