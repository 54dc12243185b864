"""``cxr report``: runs to the comparison table, pages and pictures."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from cxr.options import Cache, Config, Data, Json, Select, TableFile
from cxr.terminal import note, one_of, out, print_json, print_table
from featcache.errors import UsageError
from featcache.settings import load_settings


def report(
    run: Annotated[list[str] | None, typer.Option("--run", help="Only these runs.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Add the paper's rows.")] = False,
    view_mean: Annotated[bool, typer.Option("--view-mean", help="Figures of the mean over the views.")] = False,
    select: Select = None,
    ensembles: Annotated[
        bool | None, typer.Option("--ensembles/--no-ensembles", help="Add means over seeds and over backbones.")
    ] = None,
    operating_point: Annotated[
        str | None,
        typer.Option(
            metavar="RULE", help="Decide at this rule's threshold, chosen on val: youden, f1, sensitivity>=X, …"
        ),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="table, markdown, csv or json.")] = "table",
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page there.")] = None,
    figures: Annotated[Path | None, typer.Option("--figures", metavar="DIR", help="Write pictures there.")] = None,
    figure_format: Annotated[str, typer.Option("--figure-format", help="png or svg.")] = "png",
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """The comparison table of all runs, the head that val selects marked; test figures are for reading only."""
    one_of("--format", form, ("table", "markdown", "csv", "json"))
    one_of("--figure-format", figure_format, ("png", "svg"))
    flags = {"data": data, "table": table, "cache": cache, "select": select, "ensembles": ensembles}
    settings = load_settings(flags, config)
    from featcache.workspace import dataset_folder
    from heads.reporting.notes import notes
    from heads.reporting.report import build_report
    from heads.reporting.tables import Shown, as_csv, markdown, terminal
    from heads.statistics.operating_point import parse_rule

    try:
        rules = [operating_point] if operating_point and parse_rule(operating_point) else []
    except ValueError as error:
        raise UsageError(f"--operating-point: {error}") from error
    dataset = dataset_folder(settings)
    built = build_report(
        dataset,
        run or (),
        rule=settings.select,
        ensembles=settings.ensembles,
        operating_rules=rules,
    )
    shown = Shown(paper=paper, view_mean=view_mean, rule=operating_point)
    if as_json or form == "json":
        print_json(built.to_json())
    elif form == "table":
        header, lines = terminal(built, shown, out.width)
        print_table(built.dataset, header, lines, text=["Model"])
        for remark in notes(built, paper=paper, view_mean=view_mean, rule=operating_point):
            out.print(f"· {remark}", markup=False, soft_wrap=False)
    else:
        print((markdown if form == "markdown" else as_csv)(built, shown), end="")
    if html is not None:
        from featcache import atomic
        from heads.page.page import build_page
        from heads.page.rendering import render

        page = build_page(built, dataset, shown, command=_command())
        atomic.write_text(html, render(page))
        note(f"wrote {html}")
    if figures is not None:
        from heads.reporting.plots import write_figures

        for row in built.selected:
            # One split's pictures lie in the folder itself, several splits' in a folder each.
            rule, seed = row.row.split
            place = figures if len(built.selected) == 1 else figures / f"{rule}-{seed}"
            for path in write_figures(row, place, "svg" if figure_format == "svg" else "png", view_mean=view_mean):
                note(f"wrote {path}")


def _command() -> str:
    """The command as it was typed, without the folders above what absolute paths name: a page is passed on."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["cxr", *words])
