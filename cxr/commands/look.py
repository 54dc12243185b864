"""What one film is like, and why a head says what it says: ``cxr neighbours`` and ``cxr explain``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from cxr.options import Backbones, Cache, Config, Data, Device, Json, TableFile, WeightsOfStore
from cxr.terminal import bar, note_quarantined, one_of, out, print_json, print_table, show
from featcache.settings import load_settings


def neighbours(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="Files, or image ids of the data set.")],
    backbone: Backbones = None,
    weights: WeightsOfStore = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Films an image.")] = 5,
    among: Annotated[str, typer.Option(help="train, val, test or all, as the split has them.")] = "train",
    other_patients: Annotated[bool, typer.Option("--other-patients", help="Leave the image's patient out.")] = False,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """The films nearest to an image by their features, with labels and patients; never the image itself."""
    from heads.known_cases.neighbours import COLUMNS, USES, look_up

    one_of("--among", among, USES)
    settings = load_settings({"backbone": backbone, "data": data, "table": table, "cache": cache}, config)
    found = look_up(settings, images, weights=weights, k=k, searched=among, other_patients=other_patients)
    if as_json:
        print_json([dataclasses.asdict(one) for one in found])
    for one in [] if as_json else found:
        out.print(one.in_words(), markup=False)
        print_table("", COLUMNS, one.cells(), text=COLUMNS[1:])


def explain(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files.")],
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where pictures and maps go.")],
    run: Annotated[str | None, typer.Option("--run", help="The run (default: the newest).")] = None,
    head: Annotated[int | None, typer.Option("--head", min=0, help="Its head (default: as val selects).")] = None,
    of_class: Annotated[
        str | None, typer.Option("--class", help="Evidence for it (default: the positive one).")
    ] = None,
    weights: WeightsOfStore = None,
    device: Device = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show which places of a film speak for a class, and which against: an exact share of the head's logit each."""
    settings = load_settings({"data": data, "table": table, "cache": cache, "device": device}, config)
    from featcache.images import positive_class
    from featcache.workspace import compute_of, dataset_folder
    from heads.experiments.saved_heads import choose_head, store_of

    dataset = dataset_folder(settings)
    chosen = choose_head(dataset, run, head, rule=settings.select)
    explained_class = positive_class(chosen.run.classes, of_class) if of_class else chosen.run.positive
    store = store_of(dataset, chosen)
    from featcache.maps import FilmMapper  # Not before: what can be wrong above is said without loading torch.
    from featcache.reproduction import backbone_of
    from heads.evidence.explain import explain_films

    mapper = FilmMapper(store, backbone_of(store, settings, weights), compute_of(settings))
    with bar("explaining") as tell:
        explained = explain_films(images, chosen, mapper, explained_class, folder, root=settings.data, on_film=tell)
    note_quarantined(explained.unreadable, "not read")
    show(as_json, explained.to_json(), explained.in_words())
