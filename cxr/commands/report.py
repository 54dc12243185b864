"""``cxr report``: runs to the comparison table, pages and pictures."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxr.options import Cache, Config, Data, Device, Json, Select, TableFile, WeightsOfStore
from cxr.terminal import bar, note, one_of, out, print_curves, print_json, print_table
from featcache.errors import UsageError, nearest
from featcache.settings import Settings, load_settings

if TYPE_CHECKING:
    from heads.page.pictures import Pictures
    from heads.reporting.report import Report, ReportRow
    from heads.reporting.tables import Shown


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
    curves: Annotated[
        bool, typer.Option("--curves", help="Draw loss by epoch of the selected row, or of --row, in the terminal.")
    ] = False,
    row: Annotated[str | None, typer.Option("--row", metavar="NAME", help="Whose curves, as the table says.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page there.")] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="In the page: films that are judged wrongly or barely, with evidence.")
    ] = False,
    weights: WeightsOfStore = None,
    device: Device = None,
    figures: Annotated[Path | None, typer.Option("--figures", metavar="DIR", help="Write pictures there.")] = None,
    figure_format: Annotated[str, typer.Option("--figure-format", help="png or svg.")] = "png",
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """The comparison table of all runs, the head that val selects marked; test figures are for reading only."""
    _require_usage(
        form, figure_format, curves=curves, row=row, html=html, pictures=pictures, weights=weights, device=device
    )
    flags = {"data": data, "table": table, "cache": cache, "select": select, "ensembles": ensembles, "device": device}
    settings = load_settings(flags, config)
    rules = _rules(operating_point)
    from featcache.workspace import dataset_folder
    from heads.reporting.report import build_report
    from heads.reporting.tables import Shown

    dataset = dataset_folder(settings)
    if pictures:
        _require_films(settings)
    built = build_report(dataset, run or (), rule=settings.select, ensembles=settings.ensembles, operating_rules=rules)
    shown = Shown(paper=paper, view_mean=view_mean, rule=operating_point)
    _print(built, shown, "json" if as_json else form, _trained(built, row) if curves else None)
    if html is not None:
        _write_page(html, built, dataset, settings, shown, pictures=pictures, weights=weights)
    if figures is not None:
        _write_figures(figures, built, figure_format, view_mean=view_mean)


def _require_usage(
    form: str,
    figure_format: str,
    *,
    curves: bool,
    row: str | None,
    html: Path | None,
    pictures: bool,
    weights: str | None,
    device: str | None,
) -> None:
    """Check that the flags go together.

    Raises:
        UsageError: they do not.
    """
    one_of("--format", form, ("table", "markdown", "csv", "json"))
    one_of("--figure-format", figure_format, ("png", "svg"))
    if curves and form in ("markdown", "csv"):
        raise UsageError(f"--curves are drawn below the table or told in JSON, not in --format {form}")
    if row is not None and not curves:
        raise UsageError("--row says whose curves are drawn: say --curves too")
    if html is None and (pictures or weights):
        raise UsageError("--pictures and --weights are of the page: say --html FILE too")
    if not pictures and (weights or device) is not None:
        raise UsageError("--weights and --device are those of --pictures: say it too")


def _rules(operating_point: str | None) -> list[str]:
    from heads.statistics.operating_point import parse_rule

    try:
        return [operating_point] if operating_point and parse_rule(operating_point) else []
    except ValueError as error:
        raise UsageError(f"--operating-point: {error}") from error


def _require_films(settings: Settings) -> None:
    """Say that the films are missing before anything is computed.

    Raises:
        DataError: their folder is not there.
    """
    from heads.page.picture_lists import films_root

    films_root(settings)


def _print(built: Report, shown: Shown, form: str, drawn: Sequence[ReportRow] | None) -> None:
    """The table with its notes, and the curves where they are wanted."""
    from heads.reporting.notes import notes
    from heads.reporting.tables import as_csv, markdown, terminal

    if form == "json":
        print_json(built.to_json() | ({} if drawn is None else _curves_json(drawn)))
    elif form == "table":
        header, lines = terminal(built, shown, out.width)
        print_table(built.dataset, header, lines, text=["Model"])
        for remark in notes(built, paper=shown.paper, view_mean=shown.view_mean, rule=shown.rule):
            out.print(f"· {remark}", markup=False, soft_wrap=False)
        _draw(drawn or ())
    else:
        print((markdown if form == "markdown" else as_csv)(built, shown), end="")


def _write_page(
    html: Path,
    built: Report,
    dataset: Path,
    settings: Settings,
    shown: Shown,
    *,
    pictures: bool,
    weights: str | None,
) -> None:
    from featcache import atomic
    from heads.page.page import build_page
    from heads.page.rendering import render

    with bar("page") as tell:
        page = build_page(built, dataset, shown, command=_command(), on_row=tell)
    films = _pictures(built, dataset, settings, shown, weights) if pictures else None
    atomic.write_text(html, render(page, films))
    note(f"wrote {html}")


def _write_figures(figures: Path, built: Report, figure_format: str, *, view_mean: bool) -> None:
    from heads.reporting.plots import write_figures

    for one in built.selected:
        # One split's pictures lie in the folder itself, several splits' in a folder each.
        rule, seed = one.row.split
        place = figures if len(built.selected) == 1 else figures / f"{rule}-{seed}"
        for path in write_figures(one, place, "svg" if figure_format == "svg" else "png", view_mean=view_mean):
            note(f"wrote {path}")


def _trained(built: Report, name: str | None) -> list[ReportRow]:
    """The rows whose curves are wanted: that of a name, or the selected ones; an ensemble's are its members'.

    Raises:
        UsageError: no row has that name.
    """
    wanted = [one for one in built.rows if one.name == name] if name is not None else built.selected
    if not wanted:
        raise UsageError(f"--row: no row {name!r} in the table{nearest(name or '', [one.name for one in built.rows])}")
    return [trained for one in wanted for trained in built.trained(one)]


def _draw(rows: Sequence[ReportRow]) -> None:
    for row in rows:
        from heads.reporting.terminal_curves import terminal_curves

        print_curves(terminal_curves(row, out.width, plain=out.options.ascii_only))


def _curves_json(rows: Sequence[ReportRow]) -> dict[str, object]:
    from heads.reporting.terminal_curves import curves_json

    return {"curves": [curves_json(row) for row in rows]}


def _pictures(built: Report, dataset: Path, settings: Settings, shown: Shown, weights: str | None) -> Pictures:
    from heads.page.picture_lists import build_pictures

    with bar("pictures") as tell:
        return build_pictures(built, dataset, settings, shown, weights=weights, on_step=tell)


def _command() -> str:
    """The command as it was typed, without the folders of what it names: a page is passed on."""
    return shlex.join(["cxr", *map(_passed_on, sys.argv[1:])])


def _passed_on(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if "/" in value or os.sep in value:
        value = Path(value).name or value[:1]
    # A name that is no UTF-8 is told as far as it is: the page is.
    return (flag + equals + value).encode("utf-8", "replace").decode()
