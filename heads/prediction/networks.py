"""The networks of a model's sources."""

from __future__ import annotations

from collections.abc import Sequence

from featcache.backbones import Backbone, load_backbone
from featcache.errors import UsageError
from featcache.settings import Settings, weights_of
from heads.prediction.model import Model, Source


def backbones_of(model: Model, settings: Settings, weights: Sequence[str] = ()) -> list[Backbone]:
    """Load the network of each source; whether its weights are those of its spec is for ``Predictor`` to say.

    A spec keeps the hash of its weights and not their place.

    Args:
        model: names networks and image sizes, and the files of its weights where it comes with them.
        settings: name weights for backbones; a source's count, by its name with or without options.
        weights: of each source in order, a file, ``random`` or ``pretrained``, whatever the settings say.

    Raises:
        UsageError: another number of weights than of networks.
        SettingsError: the settings name another number of weights than of backbones.
        BackboneError: a network or its weights cannot be had here.
    """
    if weights and len(weights) != len(model.sources):
        names = ", ".join(source.spec.backbone for source in model.sources)
        raise UsageError(
            f"{len(weights)} weights for {len(model.sources)} networks: give one --weights for each ({names})"
        )
    given = weights or [_weights_of(source, settings) for source in model.sources]
    return [
        load_backbone(source.spec.backbone, None if file == "pretrained" else file, source.spec.image_size)
        for source, file in zip(model.sources, given, strict=True)
    ]


def _weights_of(source: Source, settings: Settings) -> str:
    if source.weights is not None:
        return str(source.weights)
    if settings.weights:
        given = dict(zip(settings.backbone, weights_of(settings), strict=True))
        for name in (source.path.name, source.spec.backbone, source.spec.backbone.partition("@")[0]):
            if name in given:
                return given[name]
    return "pretrained"
