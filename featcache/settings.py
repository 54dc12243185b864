"""Every setting in one place: ``cxr.toml``, ``CXR_*`` variables, flags, in rising precedence.

The names are one and the same everywhere: ``image_size`` in the file, ``CXR_IMAGE_SIZE`` in the environment,
``--image-size`` on the command line. The study's MODEL_BACKBONE is ``backbone``, its DATA_PATHS are ``data``.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from featcache.errors import SettingsError, UsageError, nearest
from featcache.sharing import parse_share
from featcache.spec import Precision, Runtime
from featcache.splits import SplitRule

CONFIG_NAME = "cxr.toml"
PREFIX = "CXR_"

NO_SETTINGS = ("CXR_TOKEN",)
"""Variables of ours that no file is to hold: what 'cxr serve' asks of those who come from other machines."""

STUDY_NAMES = {"model_backbone": "backbone", "data_paths": "data", "data_path": "data", "lr": "learning_rate"}
"""What the study's central configuration called them: offered when somebody writes these."""


def _listed(value: Any) -> Any:  # noqa: ANN401 - whatever the file or environment holds
    """One value, or several between commas, as a list."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value if isinstance(value, (list, tuple)) else [value]


def _share(value: str | None) -> str | None:
    return value if value is None else str(parse_share(value))


def _of_one_kind(devices: list[str]) -> list[str]:
    """Devices of different kinds would differ in the last bits of their features."""
    if len({name.partition(":")[0] for name in devices}) > 1:
        raise ValueError("all must be of one kind, cpu or cuda")
    return devices


Several = NoDecode, BeforeValidator(_listed)


class Settings(BaseSettings):
    """All settings; each field's description is the comment that ``cxr init`` writes above it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    data: Path | None = Field(None, description="the data set's folder: {train,val,test}/<class>/*.jpeg")
    table: Path | None = Field(None, description="a CSV path,label[,patient_id,split,sha256,…] instead of a layout")
    cache: Path = Field(Path("cache"), description="where feature stores and runs lie")
    positive: str | None = Field(None, description="the class whose recall is the sensitivity (default: the second)")

    backbone: Annotated[list[str], *Several] = Field(
        ["resnet50"], description="networks to extract with: timm names, torchvision:NAME, or module.path:callable"
    )
    weights: Annotated[list[str], *Several] = Field(
        [], description="weights in the order of backbone: a file, 'random' or 'pretrained' (empty: all pretrained)"
    )
    image_size: int | None = Field(
        None, ge=16, le=4096, description="pixels; default: what the weights were trained at"
    )
    views: int = Field(1, ge=1, le=1000, description="views an image, the clean one included")
    view_seed: int = Field(0, ge=0, description="seed of the augmented views")
    extract_batch_size: int | None = Field(
        None, ge=1, le=4096, description="images the network sees at once; default: 8 on a processor, 64 on a GPU"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    devices: Annotated[list[str], *Several, AfterValidator(_of_one_kind)] = Field(
        [], description="extract with a process on each: cuda:0,cuda:1, or all (empty: in one process, on device)"
    )
    worker: Annotated[str | None, AfterValidator(_share)] = Field(
        None, description="this process's share of the extraction, i/n; default: what SLURM or torchrun says, else all"
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="what extracts: this machine (local), or a cluster (ray)"
    )
    ray_gpus: float = Field(0.0, ge=0, allow_inf_nan=False, description="GPUs that Ray gives a task; 0: processors")
    threads: int | None = Field(
        None, ge=1, le=4096, description="threads that decode and compute; default: one a core, under Ray two a task"
    )
    runtime: Runtime | Literal["auto"] = Field("auto", description="auto, torch or openvino")
    precision: Precision | Literal["auto"] = Field("auto", description="auto, float32, bfloat16 or float16")
    strict: bool = Field(False, description="an unreadable image stops the command instead of being listed")

    split: SplitRule = Field("patient", description="patient, paper or folders")
    split_seed: int = Field(0, ge=0, description="seed of the patient split")
    hidden: Annotated[list[Annotated[int, Field(ge=0, le=65_536)]], *Several] = Field(
        [256], description="hidden units of the head; 0: a linear head"
    )
    l2: Annotated[list[Annotated[float, Field(ge=0, allow_inf_nan=False)]], *Several] = Field(
        [1e-4], description="L2 penalty of the Dense kernel, as Keras means it"
    )
    learning_rate: Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], *Several] = Field(
        [1e-3], description="Adam's step"
    )
    epochs: int = Field(50, ge=1, le=100_000, description="epochs at most")
    patience: int = Field(10, ge=1, description="epochs without a better validation loss before a head stops")
    batch_size: int = Field(256, ge=2, description="features a training step")
    class_weights: Literal["balanced", "none"] = Field("balanced", description="balanced or none")
    view_policy: Literal["random", "clean"] = Field("random", description="the view a head sees of an image each epoch")
    memory: ByteSize | None = Field(
        None,
        ge=1,
        description="memory for features while heads are fitted, as 512MiB or 2GB; default: all that they take",
    )
    standardise: bool = Field(
        False, description="train on features less their mean over the train split, divided by their standard deviation"
    )
    adapt: bool = Field(
        False, description="bring val and test to the mean and deviation of train by their own images (transductive)"
    )
    head_precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the heads' products; bfloat16 where the hardware has such products"
    )
    seeds: int = Field(1, ge=1, le=1000, description="heads a configuration, with seeds 0, 1, …")

    select: Literal["clean", "views", "blocks", "series", "worst"] | None = Field(
        None,
        description="select by val loss of the clean view (clean) or of the views' mean (views), or by loss on folds "
        "held out from train and val (blocks, series, or the worst: the default where they can be had)",
    )
    ensembles: bool = Field(False, description="add ensembles over seeds and over backbones to the report")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags over environment over file; no dotenv, no secrets."""
        assert isinstance(init_settings, InitSettingsSource)
        flags = dict(init_settings.init_kwargs)
        file = flags.pop("from_file", {})
        return (
            InitSettingsSource(settings_cls, init_kwargs=flags),
            env_settings,
            InitSettingsSource(settings_cls, init_kwargs=file),
        )


def load_settings(flags: Mapping[str, Any] | None = None, config: Path | None = None) -> Settings:
    """Read file, environment and flags.

    Args:
        flags: what was given on the command line; None values count as not given.
        config: the file; by default ``cxr.toml`` of the working folder, where there is one.

    Raises:
        SettingsError: an unknown key, or a value of the wrong type; the message names key, source and way out.
    """
    given = {key: value for key, value in (flags or {}).items() if value is not None and value != []}
    path = config or Path(CONFIG_NAME)
    file = _read_toml(path, required=config is not None)
    for key in file:
        _known(key, f"{path}: unknown key {key!r}")
    for variable in os.environ:
        if variable.startswith(PREFIX) and variable not in NO_SETTINGS:
            _known(variable.removeprefix(PREFIX).lower(), f"unknown variable {variable}", PREFIX)
    try:
        return Settings(**{**given, "from_file": file})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        said = f"{first['input']!r}: {first['msg'].removeprefix('Value error, ').lower()}"
        if key in given:
            raise UsageError(f"--{key.replace('_', '-')} is {said}") from error
        variable = f"{PREFIX}{key.upper()}"
        source = variable if variable in os.environ else f"{path}: {key}"
        raise SettingsError(f"{source} is {said}") from error


def usable_cores() -> int:
    """The cores that this process may use: of its machine, of what a scheduler gave it, shared by torchrun's ranks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, cores // (int(ranks) if ranks.isdecimal() and int(ranks) else 1))


def weights_of(settings: Settings) -> list[str]:
    """The weights of each backbone asked for: a file, ``random`` or ``pretrained``.

    Raises:
        SettingsError: another number of weights than of backbones.
    """
    weights = settings.weights or ["pretrained"]
    if len(weights) == 1 and (len(settings.backbone) == 1 or weights[0] in ("random", "pretrained")):
        weights = weights * len(settings.backbone)
    if len(weights) != len(settings.backbone):
        raise SettingsError(
            f"{len(settings.backbone)} backbones but {len(weights)} weights: give one --weights for each --backbone in "
            "the same order (a file, 'random' or 'pretrained')"
        )
    return weights


def example_toml(values: Mapping[str, Any] | None = None) -> str:
    """A ``cxr.toml`` with every setting: what it is, and the value given or, as a comment, its default."""
    given = {key: value for key, value in (values or {}).items() if value is not None}
    lines = ["# Settings of cxr. CXR_* variables override this file, flags override both.", ""]
    for name, field in Settings.model_fields.items():
        lines += [f"# {field.description}"]
        if name in given:
            lines += [f"{name} = {_toml(given[name])}", ""]
        else:
            # A default stays a comment: what stands in the file counts as asked for.
            lines += [f"# {name} = {'' if field.default is None else _toml(field.default)}".rstrip(), ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:  # noqa: ANN401 - a default of any field
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, Path)):
        # JSON's escapes are TOML's, which wants one more.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)


def _read_toml(path: Path, *, required: bool) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise SettingsError(f"no settings file {path}; 'cxr init' writes one")
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error


def _known(key: str, complaint: str, prefix: str = "") -> None:
    if key in Settings.model_fields:
        return
    name = key.lower()  # The study writes its names in capitals.
    if name in STUDY_NAMES:
        raise SettingsError(f"{complaint}: it is called {_cased(STUDY_NAMES[name], prefix)} here")
    names = [_cased(field, prefix) for field in Settings.model_fields]
    raise SettingsError(f"{complaint}{nearest(_cased(name, prefix), names, 1)}")


def _cased(name: str, prefix: str) -> str:
    return prefix + name.upper() if prefix else name
