"""The flags that several commands share, each in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featcache.settings import CONFIG_NAME

Data = Annotated[Path | None, typer.Option("--data", help="The data set's folder.", show_default=False)]
TableFile = Annotated[Path | None, typer.Option("--table", help="CSV path,label[,patient_id,split,sha256,…].")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Where stores and runs lie (default: cache).")]
Config = Annotated[Path | None, typer.Option("--config", help=f"Settings file (default: ./{CONFIG_NAME}).")]
Json = Annotated[bool, typer.Option("--json", help="Print a machine-readable result on stdout.")]
Backbones = Annotated[list[str] | None, typer.Option("--backbone", "-b", help="Frozen network; repeat for several.")]
Weights = Annotated[list[str] | None, typer.Option("--weights", help="A file, random or pretrained, one a backbone.")]
WeightsOfStore = Annotated[
    str | None, typer.Option("--weights", help="File with the backbone's weights, if extraction was given one.")
]
Views = Annotated[int | None, typer.Option("--views", help="Views per image, the clean one included.")]
AveragedViews = Annotated[
    int | None, typer.Option("--views", min=1, max=1000, help="Average the logits of so many views.")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
L2 = Annotated[list[float] | None, typer.Option(help="L2 penalty of the Dense kernel; repeat for several.")]
Seeds = Annotated[int | None, typer.Option(help="Seeds per configuration: one head each.")]
SplitName = Annotated[str | None, typer.Option(help="patient, paper or folders.")]
Select = Annotated[
    str | None,
    typer.Option(help="Rule that selects: clean, views, blocks, series or worst (the last three: on held-out folds)."),
]
SplitSeed = Annotated[int | None, typer.Option(help="Seed of the patient split.")]
Positive = Annotated[str | None, typer.Option("--positive", help="The positive class (default: the second).")]
RunId = Annotated[str | None, typer.Option("--run", help="The run (default: the newest).")]
HeadNumber = Annotated[int | None, typer.Option("--head", min=0, help="Its head (default: as val selects).")]
RowName = Annotated[str | None, typer.Option("--row", help="A row of the report by its name, ensembles too.")]
BundleFolder = Annotated[Path | None, typer.Option("--bundle", metavar="DIR", help="A bundle instead of a run.")]
NetworkWeights = Annotated[
    list[str] | None,
    typer.Option("--weights", help="Files with the networks' weights, if extraction was given them; one each."),
]
OwnNetworks = Annotated[
    list[str] | None, typer.Option("--backbone", help="Your own module:callable that the bundle may name.")
]
OperatingRule = Annotated[
    str | None,
    typer.Option(metavar="RULE", help="Decide at this threshold: youden (default), f1, sensitivity>=X, …, or 0.5."),
]
