"""``cxr data``: look at a data set, place one, or draw one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from cxr.options import Backbones, Cache, Config, Data, Json, TableFile
from cxr.terminal import bar, note, note_quarantined, one_of, out, print_json, print_table, show
from featcache.settings import load_settings


def check(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="The data set's folder.")] = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Read every image: counts, patients, duplicates, unreadable and odd images, class weights."""
    from featcache.check import summarise, summary_lines
    from featcache.workspace import scan_images

    settings = load_settings({"data": folder or data, "table": table, "cache": cache}, config)
    with bar("reading") as tell:
        summary = summarise(scan_images(settings, whole=True, on_image=tell))
    show(as_json, summary, summary_lines(summary))


def table(
    file: Annotated[Path, typer.Option("--out", metavar="FILE", help="CSV to write.", show_default=False)],
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Hash every image once and write the image table, so that no other command has to; for --table."""
    from featcache.images import write_csv
    from featcache.workspace import data_root, hashed_table

    settings = load_settings({"data": data, "table": table, "cache": cache}, config)
    with bar("hashing") as tell:
        images, unreadable = hashed_table(settings, on_image=tell)
    write_csv(file, images)
    note_quarantined(unreadable, "without a hash")
    result = {"file": str(file), "images": len(images), "quarantined": list(map(dataclasses.asdict, unreadable))}
    use = f"--data {data_root(settings)} --table {file}"
    show(as_json, result, [f"{len(images) - len(unreadable)} of {len(images)} images hashed in {file}: use {use}"])


def audit(
    backbone: Backbones = None,
    shown: Annotated[int, typer.Option("--show", metavar="N", min=1, help="Findings of each kind to print.")] = 20,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write all findings there.")] = None,
    thumbnails: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw the first N on sheets there.")] = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """By cached features: near-duplicates across splits and patients, and labels that other patients contradict."""
    settings = load_settings({"backbone": backbone, "data": data, "table": table, "cache": cache}, config)
    from heads.known_cases.audit import run_audit, write_findings

    found = run_audit(settings)
    if as_json:
        print_json(found.to_json())
    else:
        for title, columns, lines in found.tables(shown):
            print_table(title, columns, lines, text=columns[1:])
        out.print("\n".join(found.remarks(shown)), markup=False, soft_wrap=False)
    for path in write_findings(found, settings, csv_file, thumbnails, shown):
        note(f"wrote {path}")


def phantoms(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    train: Annotated[int, typer.Option(help="Train images.", min=8)] = 320,
    test: Annotated[int, typer.Option(help="Test images.", min=4)] = 120,
    seed: Annotated[int, typer.Option(help="Seed.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Draw synthetic radiographs, laid out as the real set; for the demo and for trying things out."""
    from featcache.phantom import write_phantoms

    write_phantoms(folder, train=train, test=test, seed=seed)
    line = f"{train} train, 16 val and {test} test phantoms (synthetic, no patients) in {folder}"
    show(as_json, {"folder": str(folder), "images": train + 16 + test}, [line])


def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The data set: kermany.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to make.")] = Path("chest_xray"),
    zip_file: Annotated[
        Path | None,
        typer.Option("--zip", metavar="FILE", help="The set as downloaded by hand, from Mendeley or Kaggle."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Place Kermany's 5,856 radiographs, from Kaggle or out of a zip: counted, and each decoded."""
    one_of("NAME", name, ("kermany",))
    from featcache.fetch import fetch_kermany

    with bar("fetching") as tell:
        fetched = fetch_kermany(to, zip_file, on_image=tell)
    show(as_json, dataclasses.asdict(fetched), [*fetched.in_words(), f"'cxr data check {to}' looks closer"])
