"""A small model behind a server: in this process for most tests, in one of its own for those of its life."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from test_cli import done, environment

from cxr.serving.limits import Limits
from cxr.serving.service import Service
from featcache.runtime import Compute
from featcache.settings import load_settings
from heads.prediction.from_run import chosen_row, model_of_row
from heads.prediction.known_films import KnownFilms, Thumbnails
from heads.prediction.look_at_test import measured_on_test
from heads.prediction.networks import backbones_of
from heads.prediction.predictor import Predictor
from heads.prediction.saliency import Explainer

QUICK = {"CXR_DEVICE": "cpu", "CXR_RUNTIME": "torch", "CXR_PRECISION": "float32"}
ROOT = Path(__file__).parents[1]


def make_place(folder: Path, phantoms: Path) -> Path:
    """``films``, and in ``cache`` a store of a tiny network and a run of two heads, linear and hidden."""
    shutil.copytree(phantoms, folder / "films")
    backbone = ("--backbone", "tiny_network:tiny")
    done("extract", "--data", "films", *backbone, "--views", "3", cwd=folder, **QUICK)
    flags = ("--hidden", "0", "--hidden", "8", "--epochs", "3", "--batch-size", "16")
    done("fit-head", "--data", "films", *backbone, *flags, cwd=folder, **QUICK)
    return folder


def make_service(place: Path, limits: Limits | None = None, *, head: int = 1, views: int = 1) -> Service:
    """A service of one of the place's heads; whoever makes it closes it, or has an app do so."""
    dataset, root = place / "cache" / "films", place / "films"
    row = chosen_row(dataset, head=head)
    model = model_of_row(dataset, row, root)
    model = replace(model, measured=measured_on_test(row, model, root))
    networks, compute = backbones_of(model, load_settings()), Compute(device="cpu", threads=2, batch_size=4)
    return Service(
        Predictor(model, networks, compute, views=views),
        limits or Limits(),
        decoders=2,
        explainer=Explainer(model, networks, compute),
        known=KnownFilms.of_run(dataset, model),
        thumbnails=Thumbnails(root),
    )


def films_of(place: Path) -> list[Path]:
    """All films, test before train before val, by name."""
    return sorted((place / "films").rglob("*.jpeg"))


@contextlib.contextmanager
def running(place: Path, *flags: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """``cxr serve --json --port 0`` in a process of its own, and what it said of itself; killed at the end."""
    program = [sys.executable, "-c", "import cli; cli.main()", "serve", "--json", "--port", "0"]
    environ = environment(**QUICK, **variables)
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), environ["PYTHONPATH"]])
    given = () if "--bundle" in flags else ("--data", "films")
    with subprocess.Popen(
        [*program, *given, *flags], cwd=place, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            while line := process.stdout.readline():
                said += line
                if line == "}\n":
                    break
            assert said, process.communicate()[1]
            yield process, json.loads(said)
        finally:
            process.kill()
