"""The command line: parse, call one library function, print. The only place that prints or exits.

Results go to stdout, progress and notes to stderr. Libraries are imported inside the commands, so that
``cxr --help`` loads no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from featcache.errors import CxrError, SettingsError, UsageError, nearest
from featcache.settings import CONFIG_NAME, Settings, example_toml, load_settings

if TYPE_CHECKING:
    from featcache.check import Quarantined
    from heads.grids import StoreGrid

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
KEPT = "cxr: interrupted; finished parts, heads and runs are kept, the same command again goes on from there"
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}

Data = Annotated[Path | None, typer.Option("--data", help="The data set's folder.", show_default=False)]
TableFile = Annotated[Path | None, typer.Option("--table", help="CSV path,label[,patient_id,split,sha256,…].")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Where stores and runs lie (default: cache).")]
Config = Annotated[Path | None, typer.Option("--config", help=f"Settings file (default: ./{CONFIG_NAME}).")]
Json = Annotated[bool, typer.Option("--json", help="Print a machine-readable result on stdout.")]
Backbones = Annotated[list[str] | None, typer.Option("--backbone", "-b", help="Frozen network; repeat for several.")]
Weights = Annotated[list[str] | None, typer.Option("--weights", help="A file, random or pretrained, one a backbone.")]
WeightsOfStore = Annotated[str | None, typer.Option("--weights", help="The store's, where they were a file.")]
Views = Annotated[int | None, typer.Option("--views", help="Views an image, the clean one included.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
L2 = Annotated[list[float] | None, typer.Option(help="L2 penalty of the Dense kernel; repeat for several.")]
Seeds = Annotated[int | None, typer.Option(help="Heads a configuration.")]
SplitName = Annotated[str | None, typer.Option(help="patient, paper or folders.")]
Select = Annotated[str | None, typer.Option(help="Select by clean, views, or held-out blocks, series, worst.")]
SplitSeed = Annotated[int | None, typer.Option(help="Seed of the patient split.")]
Positive = Annotated[str | None, typer.Option("--positive", help="The positive class (default: the second).")]


class Tell(Protocol):
    """What a progress bar is told: pieces done, pieces in all, and how it goes."""

    def __call__(self, done: int, total: int, remark: str = "") -> None:
        """Move the bar."""


out = Console(highlight=False, emoji=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
for console in (out, err):
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # A file or a pipe has no width: give tables room.
        console.width = 180


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("cxr"))
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Run frozen backbones once over chest radiographs; fit whole grids of heads on the cached features."""


@app.command()
def init(
    data: Data = None,
    cache: Cache = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the one that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented cxr.toml with every setting."""
    from featcache import atomic

    path = Path(CONFIG_NAME)
    if path.exists() and not force:
        raise SettingsError(f"{path} exists already: edit it, or overwrite it with --force")
    atomic.write_text(path, example_toml({"data": data, "cache": cache}))
    _show(as_json, {"file": str(path)}, [f"wrote {path}: every setting and its default, to be uncommented and changed"])


@app.command()
def doctor(
    backbone: Backbones = None,
    weights: Weights = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    views: Views = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Try what the other commands stand on, and say the way out of what fails; exits 1 then.

    Interpreter, torch, devices, decoders, data set, weights, cache, locks, free space; nothing is left behind.
    """
    flags = {"backbone": backbone, "weights": weights, "data": data, "table": table, "cache": cache, "views": views}
    settings = load_settings(flags, config)
    from featcache.doctor import examine

    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            words = Text(finding.in_words())
            words.stylize(COLOURS[finding.state], 0, len(finding.state))
            out.print(words)
    if as_json:
        _print_json([dataclasses.asdict(finding) for finding in findings])
    failed = [finding.checked for finding in findings if finding.state == "failed"]
    if failed:
        names = ", ".join(dict.fromkeys(failed))
        raise CxrError(f"{len(failed)} of {len(findings)} checks failed ({names}); each says what to do")


@data_app.command("check")
def data_check(
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
    with _bar("reading") as tell:
        summary = summarise(scan_images(settings, whole=True, on_image=tell))
    _show(as_json, summary, summary_lines(summary))


@data_app.command("table")
def data_table(
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
    with _bar("hashing") as tell:
        images, unreadable = hashed_table(settings, on_image=tell)
    write_csv(file, images)
    _note_quarantined(unreadable, "without a hash")
    result = {"file": str(file), "images": len(images), "quarantined": list(map(dataclasses.asdict, unreadable))}
    use = f"--data {data_root(settings)} --table {file}"
    _show(as_json, result, [f"{len(images) - len(unreadable)} of {len(images)} images hashed in {file}: use {use}"])


@data_app.command("audit")
def data_audit(
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
    from heads.audit import run_audit, write_findings

    found = run_audit(settings)
    if as_json:
        _print_json(found.to_json())
    else:
        for title, columns, lines in found.tables(shown):
            _print_table(title, columns, lines, text=columns[1:])
        out.print("\n".join(found.remarks(shown)), markup=False, soft_wrap=False)
    for path in write_findings(found, settings, csv_file, thumbnails, shown):
        _note(f"wrote {path}")


@data_app.command("phantoms")
def data_phantoms(
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
    _show(as_json, {"folder": str(folder), "images": train + 16 + test}, [line])


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The data set: kermany.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to make.")] = Path("chest_xray"),
    zip_file: Annotated[
        Path | None,
        typer.Option("--zip", metavar="FILE", help="The set as downloaded by hand, from Mendeley or Kaggle."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Place Kermany's 5,856 radiographs, from Kaggle or out of a zip: counted, and each decoded."""
    _one_of("NAME", name, ("kermany",))
    from featcache.fetch import fetch_kermany

    with _bar("fetching") as tell:
        fetched = fetch_kermany(to, zip_file, on_image=tell)
    _show(as_json, dataclasses.asdict(fetched), [*fetched.in_words(), f"'cxr data check {to}' looks closer"])


@app.command()
def extract(
    backbone: Backbones = None,
    weights: Weights = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    views: Views = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels (default: as the weights were trained).")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--extract-batch-size", help="Images the network sees at once (default: 8, on a GPU 64)."),
    ] = None,
    device: Device = None,
    devices: Annotated[
        list[str] | None, typer.Option(help="A process on each: cuda:0,cuda:1, or all GPUs (all); repeat at will.")
    ] = None,
    worker: Annotated[
        str | None, typer.Option(metavar="I/N", help="The I-th of N shares (default: as SLURM or torchrun says).")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="local, or ray for a cluster.")] = None,
    ray_gpus: Annotated[float | None, typer.Option(help="GPUs that Ray gives a task; 0: processors.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that decode and compute (default: a core each).")] = None,
    runtime: Annotated[str | None, typer.Option(help="auto, torch or openvino.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="An unreadable image is an error.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and how long it takes.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Run frozen backbones over the images and keep the features; computes only what is missing.

    A backbone is a timm name (resnet50), torchvision:NAME, or your own module.path:callable; options of timm's follow
    an @, as in mobilenetv2_100@pad_type=same.
    """
    flags: dict[str, Any] = {"backbone": backbone, "weights": weights, "data": data, "table": table, "cache": cache}
    flags |= {"views": views, "image_size": image_size, "extract_batch_size": batch_size, "device": device}
    if devices and (device or engine == "ray"):
        raise UsageError("--devices goes with neither --device nor --engine ray: say where once")
    flags |= {"devices": ",".join(devices) if devices else None, "worker": worker, "engine": engine}
    flags |= {"ray_gpus": ray_gpus, "threads": threads, "runtime": runtime, "precision": precision, "strict": strict}
    settings = load_settings(flags, config)
    if dry_run and settings.engine == "ray":
        raise UsageError("--dry-run tries the speed of this machine, not of a cluster: say --engine local")
    from featcache import workspace
    from featcache.estimate import estimate
    from featcache.extraction import extract as run

    images = workspace.image_table(settings)  # Says what is wrong with the folder before weights are fetched.
    share, note = workspace.share_of(settings)
    if note:
        _note(note)
    compute = workspace.compute_of(settings)
    backbones = workspace.load_backbones(settings)
    with _bar("hashing") as tell:
        scanned = workspace.scan_images(settings, images, on_image=tell)
    what = (scanned, workspace.data_root(settings), workspace.dataset_folder(settings), backbones)
    how: dict[str, Any] = {"views": settings.views, "recipe_seed": settings.view_seed}
    how |= {"compute": compute, "share": share}
    if dry_run:
        expected = estimate(*what, **how)
        _show(as_json, expected.to_json(), expected.in_words())
        return
    with _bar("extracting") as tell:
        summaries = run(
            *what,
            **how,
            strict=settings.strict,
            on_progress=lambda now: tell(now.images_done, now.images_total, now.remark),
            engine=workspace.engine_of(settings, backbones),
        )
    for line in summaries[0].notes:
        _note(line)
    _note_quarantined(summaries[0].quarantined)
    results = [summary.to_json() for summary in summaries]
    _show(as_json, results if len(results) > 1 else results[0], [summary.in_words() for summary in summaries])


@app.command("fit-head")
def fit_head(
    backbone: Backbones = None,
    l2: L2 = None,
    lr: Annotated[list[float] | None, typer.Option("--lr", "--learning-rate", help="Adam's step.")] = None,
    hidden: Annotated[list[int] | None, typer.Option(help="Hidden units; 0 is a linear head.")] = None,
    seeds: Seeds = None,
    split: SplitName = None,
    split_seed: SplitSeed = None,
    select: Select = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs at most.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without improvement before a head stops.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Features a training step.")] = None,
    class_weights: Annotated[str | None, typer.Option(help="balanced or none.")] = None,
    view_policy: Annotated[str | None, typer.Option(help="random or clean.")] = None,
    standardise: Annotated[
        bool | None, typer.Option("--standardise/--no-standardise", help="Standardise features by the train split.")
    ] = None,
    adapt: Annotated[
        bool | None, typer.Option("--adapt/--no-adapt", help="Bring val and test to train's moments (transductive).")
    ] = None,
    head_precision: Annotated[str | None, typer.Option(help="float32, or bfloat16 where it is fast.")] = None,
    views: Views = None,
    positive: Positive = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="For features at most, as 512MiB or 2GB; the rest stays on disk.")
    ] = None,
    device: Device = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Fit heads on cached features: every value of every flag, on every store, trained together.

    A backbone may be several joined by +, as in resnet50+vgg19: heads on the features of both.
    """
    flags: dict[str, Any] = {"l2": l2, "learning_rate": lr, "hidden": hidden, "seeds": seeds, "split": split}
    flags |= {"split_seed": split_seed, "device": device, "cache": cache, "data": data, "table": table}
    flags |= {"epochs": epochs, "patience": patience, "batch_size": batch_size, "class_weights": class_weights}
    flags |= {"view_policy": view_policy, "standardise": standardise, "adapt": adapt}
    flags |= {"head_precision": head_precision}
    flags |= {"views": views, "positive": positive, "memory": memory, "select": select}
    settings = load_settings(flags, config)
    from featcache.workspace import open_sources
    from heads.grids import StoreGrid, configs_of

    configs, count = configs_of(settings), settings.views if "views" in settings.model_fields_set else None
    _fit(settings, [StoreGrid.of(store, configs, count) for store in open_sources(settings, backbone or ())], as_json)


@app.command()
def grid(
    file: Annotated[Path | None, typer.Option("--file", help="TOML: [[head]] tables; a list is an axis.")] = None,
    preset: Annotated[str | None, typer.Option(help="paper: the six rows of the study's table.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the preset's file, to start one of your own.")] = False,
    backbone: Backbones = None,
    l2: L2 = None,
    seeds: Seeds = None,
    split: SplitName = None,
    split_seed: SplitSeed = None,
    select: Select = None,
    device: Device = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Fit the grids of heads that a file declares, over several backbones, as one run; interrupted, it goes on.

    What the file leaves unsaid is as flags, CXR_* variables and cxr.toml have it.
    """
    given = {"backbone": backbone, "l2": l2, "seeds": seeds, "split": split, "split_seed": split_seed}
    given = {key: value for key, value in given.items() if value not in (None, [])}
    settings = load_settings(
        {**given, "data": data, "table": table, "cache": cache, "device": device, "select": select}, config
    )
    from featcache.workspace import dataset_folder
    from heads.grid_file import declared_grid, preset_file

    if show:
        print(preset_file(preset, given), end="")
        return
    declared = declared_grid(file, preset, settings, given)
    _fit(declared.settings, declared.over(dataset_folder(settings)), as_json)


def _fit(settings: Settings, grids: Sequence[StoreGrid], as_json: bool) -> None:
    """Train, save the run, and say what val selects of it."""
    from featcache.runtime import choose_device
    from featcache.workspace import dataset_folder, present_table
    from heads.decision import decide
    from heads.experiment import run_grids

    images, note = present_table(settings, [grid.source for grid in grids])
    if note:
        _note(note)
    with _bar("fitting") as tell:
        outcome = run_grids(
            grids,
            dataset_folder(settings),
            table=images,
            rule=settings.split,
            split_seed=settings.split_seed,
            positive=settings.positive,
            device=choose_device(settings.device),
            memory=settings.memory,
            select=settings.select,
            adapt=settings.adapt,
            on_progress=tell,
        )
    for head in {head.backbone: head for head in outcome.record.heads if head.config.window}.values():
        _note(f"{head.backbone}: shuffled in windows of {head.config.window:,} images, which are read from the disk")
    chosen = decide(dataset_folder(settings), [outcome.record.run_id], rule=settings.select).selected[0]
    result = {**outcome.to_json(), "selected": chosen.name, "val_loss": chosen.metrics["clean"][chosen.best].loss}
    _show(as_json, result, [f"{outcome.in_words()}; selected: {chosen.name}", "'cxr report' shows the table"])


@app.command()
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
    figures: Annotated[Path | None, typer.Option("--figures", metavar="DIR", help="Write pictures there.")] = None,
    figure_format: Annotated[str, typer.Option("--figure-format", help="png or svg.")] = "png",
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """The comparison table of all runs, the head that val selects marked; test figures are for reading only."""
    _one_of("--format", form, ("table", "markdown", "csv", "json"))
    _one_of("--figure-format", figure_format, ("png", "svg"))
    flags = {"data": data, "table": table, "cache": cache, "select": select, "ensembles": ensembles}
    settings = load_settings(flags, config)
    from featcache.workspace import dataset_folder
    from heads.notes import notes
    from heads.operating_point import parse_rule
    from heads.report import build_report
    from heads.tables import Shown, as_csv, markdown, terminal

    try:
        rules = [operating_point] if operating_point and parse_rule(operating_point) else []
    except ValueError as error:
        raise UsageError(f"--operating-point: {error}") from error
    built = build_report(
        dataset_folder(settings),
        run or (),
        rule=settings.select,
        ensembles=settings.ensembles,
        operating_rules=rules,
    )
    shown = Shown(paper=paper, view_mean=view_mean, rule=operating_point)
    if as_json or form == "json":
        _print_json(built.to_json())
    elif form == "table":
        header, lines = terminal(built, shown, out.width)
        _print_table(built.dataset, header, lines, text=["Model"])
        for note in notes(built, paper=paper, view_mean=view_mean, rule=operating_point):
            out.print(f"· {note}", markup=False, soft_wrap=False)
    else:
        print((markdown if form == "markdown" else as_csv)(built, shown), end="")
    if figures is not None:
        from heads.plots import write_figures

        for row in built.selected:
            # One split's pictures lie in the folder itself, several splits' in a folder each.
            rule, seed = row.row.split
            place = figures if len(built.selected) == 1 else figures / f"{rule}-{seed}"
            for path in write_figures(row, place, "svg" if figure_format == "svg" else "png", view_mean=view_mean):
                _note(f"wrote {path}")


@app.command()
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
    from heads.neighbours import COLUMNS, USES, look_up

    _one_of("--among", among, USES)
    settings = load_settings({"backbone": backbone, "data": data, "table": table, "cache": cache}, config)
    found = look_up(settings, images, weights=weights, k=k, searched=among, other_patients=other_patients)
    if as_json:
        _print_json([dataclasses.asdict(one) for one in found])
    for one in [] if as_json else found:
        out.print(one.in_words(), markup=False)
        _print_table("", COLUMNS, one.cells(), text=COLUMNS[1:])


@app.command()
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
    from heads.saved_heads import choose_head, store_of

    dataset = dataset_folder(settings)
    chosen = choose_head(dataset, run, head, rule=settings.select)
    explained_class = positive_class(chosen.run.classes, of_class) if of_class else chosen.run.positive
    store = store_of(dataset, chosen)
    from featcache.maps import FilmMapper  # Not before: what can be wrong above is said without loading torch.
    from featcache.reproduction import backbone_of
    from heads.explain import explain_films

    mapper = FilmMapper(store, backbone_of(store, settings, weights), compute_of(settings))
    with _bar("explaining") as tell:
        explained = explain_films(images, chosen, mapper, explained_class, folder, root=settings.data, on_film=tell)
    _note_quarantined(explained.unreadable, "not read")
    _show(as_json, explained.to_json(), explained.in_words())


@cache_app.command("list")
def cache_list(data: Data = None, cache: Cache = None, config: Config = None, as_json: Json = False) -> None:
    """The stores in the cache."""
    from featcache.store import describe_stores

    settings = load_settings({"data": data, "cache": cache}, config)
    rows = describe_stores(settings.cache, settings.data.resolve().name if settings.data else None)
    if as_json:
        _print_json(rows)
        return
    lines = [(r["store"], str(r["images"]), str(r["views"]), f"{r['bytes'] / 2**20:.1f}", r["state"]) for r in rows]
    columns = ("store", "images", "views", "MiB", "state")
    _print_table(str(settings.cache), columns, lines, text=["store", "state"])


@cache_app.command("verify")
def cache_verify(
    data: Data = None,
    cache: Cache = None,
    config: Config = None,
    remove_damaged: Annotated[bool, typer.Option("--remove-damaged", help="Delete what is damaged.")] = False,
    recompute: Annotated[
        int, typer.Option("--recompute", metavar="K", min=0, help="Compute K random rows of each store again.")
    ] = 0,
    backbone: Backbones = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Read every byte of every store and compare checksums; exits 1 where something is damaged.

    With --recompute also some rows are computed again from their images: of the stores of the data set, or of the
    named backbones, with --weights for those whose weights were a file.
    """
    from featcache.errors import StoreError
    from featcache.store import dataset_folders, store_folders, verify_store

    settings = load_settings({"data": data, "cache": cache, "backbone": backbone, "weights": weights}, config)
    datasets = dataset_folders(settings.cache, settings.data.resolve().name if settings.data else None)
    stores = [store for dataset in datasets for store in store_folders(dataset)]
    problems = {str(store): verify_store(store, remove_damaged=remove_damaged) for store in stores}
    damage, wrong = [line for found in problems.values() for line in found], []
    lines = [f"{store}: {f'{len(found)} damaged' if found else 'sound'}" for store, found in problems.items()]
    again: list[Any] = []
    if recompute and not damage:
        from featcache.workspace import recompute_stores

        with _bar("computing") as tell:
            again = recompute_stores(settings, backbone or (), recompute, tell)
        lines += [found.in_words() for found in again]
        wrong = [line for found in again for line in (*found.wrong, *filter(None, [found.refused]))]
    result = {"damaged": problems, "recomputed": [dataclasses.asdict(found) for found in again]}
    _show(as_json, result if recompute else problems, lines)
    for line in (*damage, *wrong):
        _note(line)
    if recompute and damage:
        _note("no row was computed again: first the damage, then 'cxr extract', then this command once more")
    if wrong or (damage and not remove_damaged):
        raise StoreError(
            f"{len(damage) + len(wrong)} of the cache's files or rows are damaged, missing or wrong; see above"
        )


@cache_app.command("remove")
def cache_remove(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE…", help="Folders, as 'cxr cache list' names them.")],
    data: Data = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Delete feature stores."""
    from featcache.store import remove_store

    settings = load_settings({"data": data, "cache": cache}, config)
    freed = {str(store): remove_store(store, settings.cache) for store in stores}
    _show(as_json, freed, [f"removed {name} ({size / 2**20:.1f} MiB)" for name, size in freed.items()])


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Tell]:
    """A progress bar on stderr, told (done, total, remark)."""
    remarks = TextColumn("{task.fields[remark]}", "dim", markup=False)
    columns = (TextColumn(what), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), remarks)
    with Progress(*columns, console=err) as progress:
        # A log file gets the bar once, at its end, and only if there was anything to do.
        task = progress.add_task(what, total=None, remark="", visible=err.is_terminal)

        def tell(done: int, total: int, remark: str = "") -> None:
            progress.update(task, completed=done, total=total, remark=remark, visible=True)

        yield tell


def _note(line: str) -> None:
    err.print(line, style="yellow", markup=False)


def _note_quarantined(rows: Sequence[Quarantined], what: str = "left out") -> None:
    from featcache.quarantine import in_lines

    for line in in_lines(rows, 10):
        _note(f"{what}: {line}")


def _show(as_json: bool, value: object, lines: Sequence[str]) -> None:
    """Print a command's result: as JSON, or in words."""
    if as_json:
        _print_json(value)
    else:
        out.print("\n".join(lines), markup=False, emoji=False)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=str, allow_nan=False))


def _print_table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]], text: Sequence[str]) -> None:
    """A table on stdout; ``text`` names the columns that are not numbers."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        worded = name in text
        table.add_column(name, justify="left" if worded else "right", overflow="fold", no_wrap=not worded)
    for line in lines:
        table.add_row(*map(escape, line))
    out.print(table, soft_wrap=False)


def _one_of(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{flag} is {value!r}, wanted {', '.join(known)}{nearest(value, known, 1)}")


def main() -> None:
    """Run ``cxr``: a CxrError becomes one red line and exit 1 (2 for wrong usage); a bug keeps its traceback.

    typer too exits 2 on wrong usage, and 130 on Ctrl-C; of the latter we say what it means for the work.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no × shows ?, and the work is not lost for it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Before torch is loaded: OpenMP threads that wait without spinning train heads several times faster where other
    # processes want the same cores, and a quarter slower where none do (docs/log.md).
    # In small letters: libgomp compares them by the rules of the locale, and a Turkish I is another letter.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except CxrError as error:
        err.print(f"cxr: {error}", style="red", markup=False)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        # typer makes it an exit, but not yet while it reads the commands' signatures.
        _note(KEPT)
        sys.exit(INTERRUPTED)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            _note(KEPT)
        raise
