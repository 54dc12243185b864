"""One head of a run: which it is, and that its weights are the ones that were saved."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import synthetic
from safetensors.numpy import save_file

from featcache.errors import RunError, StoreError
from heads.experiments.runs import HeadRecord
from heads.experiments.saved_heads import choose_head, load_weights, store_of
from heads.training.config import HeadConfig
from heads.training.model import HeadWeights


def weights(number: int, hidden: int = 0) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    rng = np.random.default_rng(number)
    kernel = rng.standard_normal((hidden or 6, 2)).astype(np.float32)
    layer = {name: rng.standard_normal(hidden).astype(np.float32) for name in ("bias", "gamma", "beta")}
    layer |= {"running_mean": layer["bias"], "running_var": layer["gamma"] ** 2}
    layer["kernel"] = rng.standard_normal((6, hidden)).astype(np.float32)
    named = {f"hidden.{name}": array for name, array in layer.items()} if hidden else {}
    return {**named, "kernel": kernel, "bias": np.zeros(2, np.float32)}


def heads_of_losses(*losses: float) -> list[HeadRecord]:
    """Two seeds a configuration."""
    return [
        synthetic.head(HeadConfig(l2=10.0 ** -(n // 2), seed=n % 2), synthetic.metrics(loss))
        for n, loss in enumerate(losses)
    ]


def test_the_head_is_the_one_that_val_selects_of_the_run_that_is_newest(tmp_path: Path) -> None:
    old = synthetic.saved(tmp_path, synthetic.run(*heads_of_losses(0.3, 0.2), run_id="old"))
    # Of the second configuration the mean is the lowest, and its second seed is the better one.
    new = synthetic.saved(tmp_path, synthetic.run(*heads_of_losses(0.1, 0.9, 0.45, 0.4), run_id="new"))
    os.utime(old / "run.json", ns=(1, 1))
    chosen = choose_head(tmp_path)
    assert (chosen.folder, chosen.number, chosen.record.config.seed) == (new, 3, 1)
    assert chosen.name.endswith("seed 1")
    assert choose_head(tmp_path, "old").number == 1
    os.utime(new / "run.json", ns=(0, 0))
    assert choose_head(tmp_path).run.run_id == "old"


def test_a_head_can_be_named_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    synthetic.saved(tmp_path, synthetic.run(*heads_of_losses(0.1, 0.9, 0.45, 0.4)))
    assert [choose_head(tmp_path, number=number).number for number in range(4)] == [0, 1, 2, 3]
    with pytest.raises(RunError, match="no head 4 in run patient-0, whose heads are 0 to 3"):
        choose_head(tmp_path, number=4)
    with pytest.raises(RunError, match="no run nine"):
        choose_head(tmp_path, "nine")
    with pytest.raises(RunError, match="no runs in"):
        choose_head(tmp_path / "nothing")


def test_val_selects_by_the_rule_and_a_named_head_needs_none(tmp_path: Path) -> None:
    synthetic.saved(tmp_path, synthetic.run(*heads_of_losses(0.1, 0.9, 0.45, 0.4)))
    with pytest.raises(RunError, match=r"no head in .* has what --select worst compares"):
        choose_head(tmp_path, rule="worst")
    assert choose_head(tmp_path, number=2, rule="worst").number == 2


def test_a_head_that_wants_films_adapted_by_others_is_refused(tmp_path: Path) -> None:
    adapted, plain = (dataclasses.replace(head, adapted=n == 0) for n, head in enumerate(heads_of_losses(0.1, 0.2)))
    synthetic.saved(tmp_path, synthetic.run(adapted, plain))
    with pytest.raises(RunError, match=r"head 0 of run .* judges no film alone"):
        choose_head(tmp_path)
    assert choose_head(tmp_path, number=1).record == plain


def test_weights_are_read_back_as_they_were_saved(tmp_path: Path) -> None:
    states = [weights(0), weights(1, hidden=3)] + [weights(number) for number in range(2, 11)]
    tensors = {f"{number}/{name}": array for number, state in enumerate(states) for name, array in state.items()}
    save_file(tensors, tmp_path / "weights.safetensors")
    for number, state in enumerate(states):
        read = load_weights(tmp_path, number)
        assert isinstance(read, HeadWeights)
        assert read.tensors().keys() == state.keys()
        for name, array in read.tensors().items():
            np.testing.assert_array_equal(array, state[name])


def test_damaged_or_missing_weights_are_told(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(RunError, match="is damaged or lacks head 0"):
        load_weights(tmp_path, 0)
    save_file({"0/kernel": np.ones((3, 2), np.float32)}, path)
    for number in (0, 1):
        with pytest.raises(RunError, match=f"is damaged or lacks head {number} .*: delete .* run 'cxr fit-head' again"):
            load_weights(tmp_path, number)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(RunError, match="is damaged"):
        load_weights(tmp_path, 0)


def test_a_heads_store_is_found_by_its_spec_and_not_by_its_name(tmp_path: Path) -> None:
    table = synthetic.images()
    stores = [synthetic.write_store(tmp_path, table, name) for name in ("first", "second")]
    records = [synthetic.head(backbone="any", fingerprint=store.spec.fingerprint) for store in stores]
    synthetic.saved(tmp_path, synthetic.run(*records))
    for number, store in enumerate(stores):
        assert store_of(tmp_path, choose_head(tmp_path, number=number)).path == store.path


def test_a_head_on_joined_features_and_one_whose_store_is_gone_are_refused(tmp_path: Path) -> None:
    records = [
        synthetic.head(val=synthetic.metrics(0.1), backbone="one+other", fingerprint="e" * 64 + "+" + "f" * 64),
        synthetic.head(val=synthetic.metrics(0.2), backbone="gone"),
    ]
    synthetic.saved(tmp_path, synthetic.run(*records))
    with pytest.raises(RunError, match=r"head 0 .* joined features of one\+other: name a head of one backbone"):
        store_of(tmp_path, choose_head(tmp_path, number=0))
    # Nor is one taken that nobody asked for, where val selects the joined one.
    assert choose_head(tmp_path).number == 0
    with pytest.raises(StoreError, match=r"features of gone that head 1 .* are not in"):
        store_of(tmp_path, choose_head(tmp_path, number=1))
