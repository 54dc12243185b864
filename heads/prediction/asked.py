"""What a user asks: which model, by bundle, run, head or row, and how it is to decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from featcache.errors import UsageError
from featcache.runtime import Compute
from featcache.settings import Settings
from featcache.workspace import dataset_folder, films_folder
from heads.choosing.rows import Row
from heads.prediction.bundle import load_bundle
from heads.prediction.from_run import chosen_row, model_of_row
from heads.prediction.measured import Measured
from heads.prediction.model import HALF, Model
from heads.prediction.networks import backbones_of
from heads.prediction.predictor import Predictor
from heads.statistics.operating_point import parse_rule

Tell = Callable[[str], None]

Measure = Callable[[Row, Model, Path | None], Measured]
"""What opens test for a row that is chosen, its model and the films' folder: ``look_at_test.measured_on_test``. It is
handed in, so that nothing here can reach test by itself."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Flags of the commands that put a head to use; without any the head that ``cxr explain`` takes is meant.

    Attributes:
        bundle: a bundle's folder, instead of a run.
        code: networks of the user's own that the bundle may name; see ``bundle.load_bundle``.
        run: see ``from_run.chosen_row``, as for ``head`` and ``row``.
        head: its index in the run.
        row: its name in the report.
        operating_rule: whose threshold decides; None for the first that val chose.
        views: over how many views of a film logits are averaged; None for one, or as ``view_mean`` says.
        view_mean: over as many as the model's heads were trained on.
        weights: see ``networks.backbones_of``.
    """

    bundle: Path | None = None
    code: tuple[str, ...] = ()
    run: str | None = None
    head: int | None = None
    row: str | None = None
    operating_rule: str | None = None
    views: int | None = None
    view_mean: bool = False
    weights: tuple[str, ...] = ()

    @property
    def by_hand(self) -> bool:
        """Whether the user named the head or row, so that it was not val that chose it."""
        return self.head is not None or self.row is not None


def asked_row(settings: Settings, asked: Asked) -> Row:
    """The row of the run that is asked for, with its thresholds chosen.

    Raises:
        UsageError: flags that exclude each other, or an unknown rule.
        RunError: see ``from_run.chosen_row``.
    """
    if asked.head is not None and asked.row is not None:
        raise UsageError("--head and --row each name what is asked: give one of them")
    rules = _chosen_by(asked.operating_rule)
    return chosen_row(
        dataset_folder(settings),
        asked.run,
        head=asked.head,
        row=asked.row,
        rule=settings.select,
        operating_rules=rules,
    )


def asked_model(
    settings: Settings, asked: Asked, tell: Tell = lambda _: None, *, measure: Measure | None = None
) -> Model:
    """The model that is asked for.

    Args:
        settings: name data set, cache and the rule of selection; a bundle needs none of these.
        asked: which.
        tell: see ``reference.reference_of``.
        measure: asked once all is chosen, for the figures that are told beside answers; a bundle has them.

    Raises:
        UsageError: flags that exclude each other, an unknown rule, or one for more than two classes.
        CxrError: no such model; see ``load_bundle``, ``chosen_row`` and ``model_of_row``.
    """
    if asked.bundle is not None and (asked.run is not None or asked.by_hand):
        raise UsageError("--bundle holds its head: leave --run, --head and --row out")
    if asked.code and asked.bundle is None:
        raise UsageError("--backbone says what code a bundle may run: a run knows its networks")
    if asked.bundle is not None:
        _chosen_by(asked.operating_rule)
        model = load_bundle(asked.bundle, code=asked.code)
    else:
        row, root = asked_row(settings, asked), films_folder(settings)
        model = model_of_row(dataset_folder(settings), row, root, tell)
        if measure is not None:
            model = replace(model, measured=measure(row, model, root))
    # Before networks are loaded.
    model.point("clean", asked.operating_rule)
    return model


def asked_predictor(
    settings: Settings, asked: Asked, compute: Compute, tell: Tell, *, measure: Measure | None = None
) -> Predictor:
    """The same with its networks loaded, deciding as it is asked to.

    Raises:
        CxrError: as ``asked_model``, ``networks.backbones_of`` and ``Predictor``.
    """
    if asked.views is not None and asked.view_mean:
        raise UsageError("--views and --view-mean each say how many views are averaged: give one of them")
    model = asked_model(settings, asked, tell, measure=measure)
    if asked.view_mean and model.views == 1:
        tell("--view-mean changes nothing: the head was trained on one view")
    views = asked.views or (model.views if asked.view_mean else 1)
    networks = backbones_of(model, settings, asked.weights)
    return Predictor(model, networks, compute, rule=asked.operating_rule, views=views)


def _chosen_by(rule: str | None) -> list[str]:
    """The rules whose thresholds val must choose for a rule that is asked for: none for the default and for ``0.5``.

    Raises:
        UsageError: an unknown rule.
    """
    if rule is None or rule == HALF.rule:
        return []
    try:
        parse_rule(rule)
    except ValueError as error:
        raise UsageError(f"--operating-point: {error}") from error
    return [rule]
