"""A model from a run: the head that is asked for, or a whole row of the table, with what val chose for it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featcache.errors import RunError, nearest
from featcache.store import FeatureStore
from heads.choosing.decision import decide
from heads.choosing.rows import Member, Row
from heads.choosing.selection import OPERATING_RULES, settle
from heads.experiments.runs import RunRecord, load_run
from heads.experiments.saved_heads import choose_row, load_weights, name_of, require_alone, stores_behind
from heads.experiments.split_logits import KINDS
from heads.prediction.model import Model, ModelChoices, ModelMember, Source
from heads.prediction.reference import reference_of


def model_of_run(
    dataset: Path,
    run_id: str | None = None,
    *,
    head: int | None = None,
    row: str | None = None,
    rule: str | None = "clean",
    operating_rules: Sequence[str] = (),
    root: Path | None = None,
) -> Model:
    """The model of a fitted head, or of a row of the table; nothing here can reach the logits of test.

    Args:
        dataset: ``cache/<dataset>``.
        run_id: the run; None takes the newest, and for a row all of them.
        head: index of the head in the run; None takes the one that ``cxr explain`` takes, which val selects.
        row: name of a row as ``cxr report --ensembles`` calls it: of a row of several seeds the one that stands for it,
            of an ensemble all its heads.
        rule: by which val selects; see ``heads.choosing.decision.decide``.
        operating_rules: whose thresholds are chosen on val beside ``heads.choosing.selection.OPERATING_RULES``.
        root: the data set's folder, where it is at hand; see ``reference.reference_of``.

    Raises:
        RunError: no such run, head or row, a damaged one, or a head that can judge no film alone.
        StoreError: the features that it was fitted on are not there any more.
        ValueError: an unknown rule, or a head and a row.
    """
    if row is None:
        found, number = choose_row(dataset, run_id, head, rule=rule, operating_rules=operating_rules)
        return _of_head(dataset, found, number, operating_rules, root)
    if head is not None:
        raise ValueError("model_of_run: wanted a head or a row, got both")
    run_ids = [] if run_id is None else [run_id]
    decision = decide(dataset, run_ids, rule=rule, ensembles=True, operating_rules=operating_rules)
    matching = [one for one in decision.rows if one.name == row]
    if not matching:
        names = [one.name for one in decision.rows]
        raise RunError(f"no row {row!r} in the report{nearest(row, names)} ('cxr report --ensembles' shows them)")
    found = matching[0]
    if found.ensemble is None:
        return _of_head(dataset, found, found.members[0].heads[found.best], operating_rules, root)
    return _model(dataset, found, found.members, found.name, root)


def _of_head(dataset: Path, row: Row, number: int, operating_rules: Sequence[str], root: Path | None) -> Model:
    """One head of a row; the temperature and thresholds are its own, whichever head stands for the row."""
    place = row.members[0].heads.index(number)
    rules = tuple(dict.fromkeys((*OPERATING_RULES, *operating_rules)))
    choices = {
        kind: settle(row.val.of(kind)[[place]], row.val.label, positive=row.run.positive, best=0, rules=rules)
        for kind in KINDS
    }
    alone = replace(row, choices=choices)
    return _model(dataset, alone, (Member(folder=row.members[0].folder, heads=(number,)),), name_of(row, number), root)


def _model(dataset: Path, row: Row, members: Sequence[Member], name: str, root: Path | None) -> Model:
    load = functools.cache(load_run)
    sources: dict[str, FeatureStore] = {}
    made: list[ModelMember] = []
    said: list[str] = []
    for member in members:
        run = load(member.folder)
        for number in member.heads:
            require_alone(run, number)
        # Heads of a member differ in the seed alone: they stand on the same stores.
        stores = stores_behind(dataset, run, member.heads[0])
        sources |= {store.fingerprint: store for store in stores}
        order = list(sources)
        made.append(
            ModelMember(
                sources=tuple(order.index(store.fingerprint) for store in stores),
                heads=tuple(load_weights(member.folder, number) for number in member.heads),
                scale=member.scale,
            )
        )
        said.append(f"{run.run_id}: {', '.join(map(str, member.heads))}")
    distance, remark = reference_of(dataset, members[0].folder, row.run, tuple(sources.values()), root)
    return Model(
        name=name,
        dataset=dataset.name,
        classes=row.run.classes,
        positive=row.run.positive,
        views=_views(members, load),
        sources=tuple(Source(spec=store.spec, path=store.path) for store in sources.values()),
        members=tuple(made),
        choices={
            kind: ModelChoices(
                temperature=chosen.temperature,
                operating_points={rule: points[0] for rule, points in chosen.operating_points.items()},
            )
            for kind, chosen in row.choices.items()
        },
        distance=distance,
        notes=(remark,) if remark else (),
        provenance={
            "run": row.run.run_id,
            "heads": "; ".join(said),
            "backbones": ", ".join(store.backbone for store in sources.values()),
            "fingerprints": ", ".join(sources),
            "created": row.run.created,
            "split": f"{row.run.split_rule} {row.run.split_seed}",
            **{f"fitted with {name}": version for name, version in row.run.provenance.items()},
        },
    )


def _views(members: Sequence[Member], load: functools._lru_cache_wrapper[RunRecord]) -> int:
    """Views that every member was trained on, and whose mean its val logits are."""
    return min(load(member.folder).heads[member.heads[0]].views for member in members)
