"""Which model a user means: by bundle, run, head or row, each with the operating point that he asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from featcache.errors import UsageError
from featcache.settings import Settings
from featcache.workspace import dataset_folder, films_folder
from heads.prediction.bundle import load_bundle
from heads.prediction.from_run import chosen_row, model_of_row
from heads.prediction.model import HALF, Model
from heads.statistics.operating_point import parse_rule


def asked_model(
    settings: Settings,
    *,
    bundle: Path | None = None,
    code: Sequence[str] = (),
    run: str | None = None,
    head: int | None = None,
    row: str | None = None,
    operating_rule: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Model:
    """The model that flags name; without any the head that ``cxr explain`` takes.

    Args:
        settings: name data set, cache and the rule of selection.
        bundle: a bundle's folder, which needs none of these.
        code: networks of the user's own that the bundle may name; see ``bundle.load_bundle``.
        run: see ``from_run.chosen_row``, as for ``head`` and ``row``.
        head: its index in the run.
        row: its name in the report.
        operating_rule: whose threshold is wanted; None for the first that val chose.
        tell: see ``reference.reference_of``.

    Raises:
        UsageError: flags that exclude each other, an unknown rule, or one for more than two classes.
        CxrError: no such model; see ``load_bundle``, ``chosen_row`` and ``model_of_row``.
    """
    if head is not None and row is not None:
        raise UsageError("--head and --row each name what is asked: give one of them")
    if bundle is not None and (run is not None or head is not None or row is not None):
        raise UsageError("--bundle holds its head: leave --run, --head and --row out")
    if code and bundle is None:
        raise UsageError("--backbone says what code a bundle may run: a run knows its networks")
    rules = chosen_by(operating_rule)
    if bundle is not None:
        model = load_bundle(bundle, code=code)
    else:
        dataset, root = dataset_folder(settings), films_folder(settings)
        found = chosen_row(dataset, run, head=head, row=row, rule=settings.select, operating_rules=rules)
        model = model_of_row(dataset, found, root, tell)
    # Before networks are loaded.
    model.point("clean", operating_rule)
    return model


def asked_views(model: Model, views: int | None, *, view_mean: bool, tell: Callable[[str], None]) -> int:
    """Over how many views of a film logits are averaged.

    Args:
        model: the model.
        views: so many; None for one, or as ``view_mean`` says.
        view_mean: for as many as the model's heads were trained on.
        tell: is told where that changes nothing.

    Raises:
        UsageError: both are asked for.
    """
    if views is not None and view_mean:
        raise UsageError("--views and --view-mean each say how many views are averaged: give one of them")
    if view_mean and model.views == 1:
        tell("--view-mean changes nothing: the head was trained on one view")
    return views or (model.views if view_mean else 1)


def chosen_by(rule: str | None) -> list[str]:
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
