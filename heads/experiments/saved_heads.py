"""One head of a run, ready for use: which it is, its weights, and the store that it was fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from featcache.errors import RunError, StoreError
from featcache.joined import JOINT, part_names
from featcache.store import FeatureStore, open_store, store_folders
from heads.choosing.decision import decide
from heads.choosing.rows import Row
from heads.experiments.runs import HeadRecord, RunRecord, run_folders
from heads.training.model import HeadWeights


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedHead:
    """A head as a run keeps it.

    Attributes:
        name: what the comparison table calls its row, and its seed where the row has several.
        folder: the run's folder.
        run: the run.
        number: its index among the run's heads.
        weights: its weights.
    """

    name: str
    folder: Path
    run: RunRecord
    number: int
    weights: HeadWeights

    @property
    def record(self) -> HeadRecord:
        """Its configuration and figures."""
        return self.run.heads[self.number]


def choose_head(
    dataset: Path, run_id: str | None = None, number: int | None = None, *, rule: str | None = "clean"
) -> SavedHead:
    """The head that is asked for: of the newest run, and the one that val selects in it, unless named.

    Raises:
        RunError: see ``choose_row``; or the weights are damaged.
    """
    row, number = choose_row(dataset, run_id, number, rule=rule)
    folder = row.members[0].folder
    weights = load_weights(folder, number)
    return SavedHead(name=name_of(row, number), folder=folder, run=row.run, number=number, weights=weights)


def choose_row(
    dataset: Path,
    run_id: str | None = None,
    number: int | None = None,
    *,
    rule: str | None = "clean",
    operating_rules: Sequence[str] = (),
) -> tuple[Row, int]:
    """The row of the head that is asked for, and the head's index in its run.

    Val chooses among single heads, as in a report without ensembles: the mean of several heads is no saved head.

    Args:
        dataset: ``cache/<dataset>``.
        run_id: the run; None takes the one that was fitted or asked for last.
        number: index of the head in the run; None takes the best seed of the row that the run's report marks.
        rule: by which that row is selected; see ``heads.choosing.decision.decide``. A head that is named needs none.
        operating_rules: whose thresholds the row has beside those that it always has.

    Raises:
        RunError: no such run or head, or none at all; a run that is damaged, of an older format, or lacks what the rule
            compares; or a head that can judge no film alone.
    """
    folders = run_folders(dataset)
    if run_id is None and folders:
        run_id = max(folders, key=lambda folder: (folder / "run.json").stat().st_mtime_ns).name
    run_ids = [] if run_id is None else [run_id]
    decision = decide(dataset, run_ids, rule=rule if number is None else "clean", operating_rules=operating_rules)
    if number is None:
        row = decision.selected[0]
        number = row.members[0].heads[row.best]
    else:
        found = [row for row in decision.rows if number in row.members[0].heads]
        if not found:
            last = len(decision.rows[0].run.heads) - 1
            raise RunError(
                f"no head {number} in run {run_id}, whose heads are 0 to {last}: 'cxr report --json' lists them"
            )
        row = found[0]
    require_alone(row.run, number)
    return row, number


def require_alone(run: RunRecord, number: int) -> None:
    """Refuse a head whose word on a film hangs on the films around it.

    Raises:
        RunError: it is one of these.
    """
    if run.heads[number].adapted:
        raise RunError(
            f"head {number} of run {run.run_id} judges no film alone: it wants films at train's moments, by all "
            "the films around them: name another with --head N, or run 'cxr fit-head' without --adapt"
        )


def name_of(row: Row, number: int) -> str:
    """What a head of a row is called: as the row, and by its seed where that has several."""
    return f"{row.name}, seed {row.run.heads[number].config.seed}" if row.seeds > 1 else row.name


def load_weights(folder: Path, number: int) -> HeadWeights:
    """Read the weights of one head of a run.

    Args:
        folder: the run's folder.
        number: index of the head in the run.

    Raises:
        RunError: the file is missing or damaged, or holds no such head.
    """
    path, prefix = folder / "weights.safetensors", f"{number}/"
    try:
        with safe_open(path, "np") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is no mapping
            return HeadWeights.from_tensors({name.removeprefix(prefix): file.get_tensor(name) for name in names})
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(
            f"{path} is damaged or lacks head {number} ({error}): delete {folder} and run 'cxr fit-head' again"
        ) from error


def store_of(dataset: Path, head: SavedHead) -> FeatureStore:
    """The store whose features a head was fitted on.

    Args:
        dataset: ``cache/<dataset>``.
        head: the head.

    Raises:
        RunError: it stands on the joined features of several backbones.
        StoreError: the store is not there any more, or cannot be opened.
    """
    if JOINT in head.record.fingerprint:
        raise RunError(
            f"head {head.number} of run {head.run.run_id} stands on the joined features of {head.record.backbone}: "
            "name a head of one backbone with --head N ('cxr report --json' lists them)"
        )
    return stores_behind(dataset, head.run, head.number)[0]


def stores_behind(dataset: Path, run: RunRecord, number: int) -> tuple[FeatureStore, ...]:
    """The stores whose features a head was fitted on: one, or those that were joined, in the order of its features.

    Args:
        dataset: ``cache/<dataset>``.
        run: the head's run.
        number: its index in it.

    Raises:
        StoreError: one is not there any more, or cannot be opened.
    """
    record = run.heads[number]
    return tuple(
        _store_by(dataset, fingerprint, backbone, f"head {number} of run {run.run_id}")
        for backbone, fingerprint in part_names(record.backbone, record.fingerprint)
    )


def _store_by(dataset: Path, fingerprint: str, backbone: str, of: str) -> FeatureStore:
    for folder in store_folders(dataset):
        if folder.name.endswith(fingerprint[:12]):
            store = open_store(folder)
            if store.spec.fingerprint == fingerprint:
                return store
    raise StoreError(
        f"the features of {backbone} that {of} was fitted on (spec {fingerprint[:12]}) are not in {dataset}: run "
        "'cxr extract' and 'cxr fit-head' again"
    )
