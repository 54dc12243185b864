"""A run's folder: whole or absent, read back equal, and never trusted blindly."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from synthetic import head, metrics, run, saved, split_logits

from featcache.errors import OutdatedRunError, RunError
from heads.experiments.runs import RunRecord, load_logits, load_run, run_folders, save_run
from heads.experiments.split_logits import SplitLogits, read_logits
from heads.training.config import HeadConfig

FIGURES = st.floats(0, 1e6)


def same(one: SplitLogits, other: SplitLogits) -> bool:
    arrays = ("logits", "logits_view_mean", "label")
    equal = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
    return equal and one.image_id == other.image_id


def test_what_is_saved_is_read_back_equal(tmp_path: Path) -> None:
    record = run(head(HeadConfig(l2=1e-4)), head(HeadConfig(l2=1e-4, seed=1), penalty=0.25))
    weights = [{"kernel": np.full((3, 2), seed, np.float32), "bias": np.zeros(2, np.float32)} for seed in (1, 2)]
    val, test = split_logits(2, n=7, seed=1), split_logits(2, n=9, seed=2)
    folder = save_run(tmp_path, record, weights, val, test)
    assert folder == tmp_path / "runs" / record.run_id
    assert load_run(folder) == record
    assert same(load_logits(folder), val)
    assert same(read_logits(folder / "test.npz"), test)
    stored = load_file(folder / "weights.safetensors")
    assert sorted(stored) == ["0/bias", "0/kernel", "1/bias", "1/kernel"]
    np.testing.assert_array_equal(stored["1/kernel"], weights[1]["kernel"])


@given(loss=FIGURES, accuracy=FIGURES, auc=st.none() | FIGURES, seconds=FIGURES)
def test_every_figure_comes_back_to_the_last_bit(
    loss: float, accuracy: float, auc: float | None, seconds: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    record = run(head(val=metrics(loss, accuracy, auc=auc, sensitivity=None, confusion=None)), seconds=seconds)
    assert load_run(saved(folder, record)) == record


def test_no_file_of_a_run_needs_pickle(tmp_path: Path) -> None:
    folder = saved(tmp_path, run(head()))
    for split in ("val", "test"):
        with np.load(folder / f"{split}.npz", allow_pickle=False) as arrays:
            assert {name: arrays[name].dtype.kind for name in arrays.files} == {
                "logits": "f",
                "logits_view_mean": "f",
                "label": "i",
                "image_id": "U",
                "patient_id": "U",
            }
    assert {path.suffix for path in folder.iterdir()} == {".json", ".npz", ".safetensors"}


def test_a_run_of_the_same_name_is_replaced_whole(tmp_path: Path) -> None:
    folder = saved(tmp_path, run(head()))
    (folder / "stray").touch()
    newer = run(head(val=metrics(loss=0.1)))
    assert saved(tmp_path, newer) == folder
    assert load_run(folder) == newer
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "test.npz", "val.npz", "weights.safetensors"]


def test_runs_are_listed_by_name_and_half_ones_are_not(tmp_path: Path) -> None:
    assert run_folders(tmp_path) == []
    for name in ("b", "a"):
        saved(tmp_path, run(head(), run_id=name))
    (tmp_path / "runs" / ".partial-0-c").mkdir()
    assert [folder.name for folder in run_folders(tmp_path)] == ["a", "b"]


def test_a_failed_save_leaves_nothing_that_looks_like_a_run(tmp_path: Path) -> None:
    unwritable: Any = {"kernel": np.array(["not", "a", "number"], object)}
    with pytest.raises(Exception, match="object"):
        save_run(tmp_path, run(head()), [unwritable], split_logits(), split_logits())
    assert run_folders(tmp_path) == []
    assert list((tmp_path / "runs").glob("*")) == []


def test_a_folder_without_a_run_is_refused_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run in .*absent: 'cxr fit-head' makes one"):
        load_run(tmp_path / "absent")


def without_val(held: dict[str, Any]) -> None:
    del held["heads"][0]["val"]


def with_text_for_a_number(held: dict[str, Any]) -> None:
    held["heads"][0]["val"]["loss"] = "low"


def with_an_unknown_split(held: dict[str, Any]) -> None:
    held["split_rule"] = "by moonlight"


def with_an_impossible_head(held: dict[str, Any]) -> None:
    held["heads"][0]["config"]["lr"] = -1


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (without_val, "heads.0.val"),
        (with_text_for_a_number, "heads.0.val.loss"),
        (with_an_unknown_split, "split_rule"),
        (with_an_impossible_head, "lr"),
    ],
)
def test_a_record_that_does_not_parse_is_refused_by_file_field_and_remedy(
    damage: Callable[[dict[str, Any]], None], named: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, run(head()))
    held = json.loads((folder / "run.json").read_text())
    damage(held)
    (folder / "run.json").write_text(json.dumps(held))
    with pytest.raises(RunError) as refused:
        load_run(folder)
    message = str(refused.value)
    assert f"{folder / 'run.json'} is damaged" in message
    assert named in message
    assert f"delete {folder} and run 'cxr fit-head' again" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"null"])
def test_a_record_that_is_no_json_object_is_refused_by_file_and_remedy(content: bytes, tmp_path: Path) -> None:
    folder = saved(tmp_path, run(head()))
    (folder / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=r"run\.json is damaged .*delete .* and run 'cxr fit-head' again"):
        load_run(folder)


def test_a_run_of_another_format_is_refused_by_both_versions(tmp_path: Path) -> None:
    folder = saved(tmp_path, run(head(), format_version=1))
    with pytest.raises(OutdatedRunError, match=r"run\.json has format 1, this cxr reads 2: delete .* and fit again"):
        load_run(folder)
    held = json.loads((folder / "run.json").read_text())
    del held["heads"]  # Whatever else an older format holds or lacks.
    (folder / "run.json").write_text(json.dumps(held))
    with pytest.raises(OutdatedRunError, match="has format 1"):
        load_run(folder)


def test_no_figure_of_test_stands_in_run_json(tmp_path: Path) -> None:
    text = (saved(tmp_path, run(head())) / "run.json").read_text(encoding="utf-8")
    held = json.loads(text)
    assert held["n"].pop("test") == 624
    assert "test" not in json.dumps(held)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, SplitLogits]:
    """A run's folder, the bytes of its val.npz, and what they mean."""
    folder = saved(tmp_path_factory.mktemp("cache"), run(head()))
    return folder, (folder / "val.npz").read_bytes(), load_logits(folder)


@given(data=st.data())
def test_a_changed_bit_of_the_logits_is_found_or_without_effect(
    data: st.DataObject, one_run: tuple[Path, bytes, SplitLogits]
) -> None:
    folder, whole, meaning = one_run
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "val.npz").write_bytes(changed)
    with contextlib.suppress(RunError):
        assert same(load_logits(folder), meaning)


@given(share=st.floats(0, 1, exclude_max=True))
def test_logits_cut_short_are_refused(share: float, one_run: tuple[Path, bytes, SplitLogits]) -> None:
    folder, whole, _ = one_run
    (folder / "val.npz").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RunError, match=r"val\.npz is damaged .*delete .* and run 'cxr fit-head' again"):
        load_logits(folder)


def rewritten(folder: Path, **arrays: Any) -> None:
    """Write a val.npz of the right arrays but for those given; None leaves one out."""
    good = split_logits()
    every = {**vars(good), "image_id": np.array(good.image_id), **arrays}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in every.items() if array is not None})
    (folder / "val.npz").write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    "arrays",
    [
        {"label": None},
        {"label": np.zeros(3, np.int64)},
        {"image_id": np.array(["one"])},
        {"logits": np.zeros((10, 2), np.float32)},
        {"logits_view_mean": np.zeros((1, 9, 2), np.float32)},
        {"image_id": np.array([{"an": "object"}] * 10)},
    ],
    ids=["missing", "short labels", "short names", "flat logits", "short means", "pickled object"],
)
def test_logits_of_the_wrong_shape_or_kind_are_refused(arrays: dict[str, Any], tmp_path: Path) -> None:
    folder = saved(tmp_path, run(head()))
    rewritten(folder)
    assert load_logits(folder).logits.shape == (1, 10, 2)
    rewritten(folder, **arrays)
    with pytest.raises(RunError, match=r"val\.npz is damaged"):
        load_logits(folder)


def test_logits_of_one_split_are_read_without_the_other(tmp_path: Path) -> None:
    folder = saved(tmp_path, run(head()))
    (folder / "test.npz").unlink()
    assert load_logits(folder).logits.shape == (1, 24, 2)
    with pytest.raises(RunError, match=r"test\.npz is damaged"):
        read_logits(folder / "test.npz")


def test_run_json_is_what_other_tools_read(tmp_path: Path) -> None:
    record = run(head())
    text = (saved(tmp_path, record) / "run.json").read_text(encoding="utf-8")
    held = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert held.keys() == RunRecord.__dataclass_fields__.keys()
    assert held["heads"][0]["config"] == record.heads[0].config.to_json()
