"""``cxr extract``: images to features."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cxr.options import Backbones, Cache, Config, Data, Device, Json, TableFile, Views, Weights
from cxr.terminal import bar, note, note_quarantined, show
from featcache.errors import UsageError
from featcache.settings import load_settings


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
    share, remark = workspace.share_of(settings)
    if remark:
        note(remark)
    compute = workspace.compute_of(settings)
    backbones = workspace.load_backbones(settings)
    with bar("hashing") as tell:
        scanned = workspace.scan_images(settings, images, on_image=tell)
    what = (scanned, workspace.data_root(settings), workspace.dataset_folder(settings), backbones)
    how: dict[str, Any] = {"views": settings.views, "recipe_seed": settings.view_seed}
    how |= {"compute": compute, "share": share}
    if dry_run:
        expected = estimate(*what, **how)
        show(as_json, expected.to_json(), expected.in_words())
        return
    with bar("extracting") as tell:
        summaries = run(
            *what,
            **how,
            strict=settings.strict,
            on_progress=lambda now: tell(now.images_done, now.images_total, now.remark),
            engine=workspace.engine_of(settings, backbones),
        )
    for line in summaries[0].notes:
        note(line)
    note_quarantined(summaries[0].quarantined)
    results = [summary.to_json() for summary in summaries]
    show(as_json, results if len(results) > 1 else results[0], [summary.in_words() for summary in summaries])
