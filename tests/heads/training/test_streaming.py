"""Heads trained from a store that does not fit the memory are the heads that are trained in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from synthetic import images, write_store

from featcache.errors import SettingsError, StoreError
from featcache.index import PARTS_NAME, stored_dtype
from featcache.settings import load_settings
from featcache.store import FeatureStore
from heads.experiments.experiment import run_experiment
from heads.experiments.grids import StoreGrid
from heads.experiments.split_logits import read_logits
from heads.training.config import BLOCK_IMAGES, HeadConfig, ViewPolicy
from heads.training.feeding import clean_and_mean, samples_of, window_for
from heads.training.group import chunk_images
from heads.training.samples import Samples
from heads.training.streaming import StoredSamples, StreamedRows, window_of
from heads.training.train import FittedHead, fit
from heads.training.windows import epoch_windows, images_of

COUNTS = {"train": (300, 900), "val": (4, 4), "test": (40, 60)}
"""960 train images, four blocks, and 240 val images by the ``paper`` rule."""

VIEWS, DIM = 3, 6
POLICIES: tuple[tuple[int, ViewPolicy], ...] = ((0, "random"), (1, "random"), (1, "clean"))
BASE = HeadConfig(hidden=4, l2=1e-3, lr=1e-2, epochs=4, patience=4, batch_size=50, window=2 * BLOCK_IMAGES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small a second thread is only waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Read it, never write to it."""
    return write_store(tmp_path_factory.mktemp("cache") / "films", images(COUNTS), views=VIEWS, dim=DIM)


Pair = tuple[Samples | StoredSamples, Samples | StoredSamples]


def splits(store: FeatureStore, *, stream: bool) -> Pair:
    """960 train and 240 val images, scattered over the store as a split by patient scatters them."""
    table = store.image_table
    rows = np.random.default_rng(0).permutation(np.flatnonzero(np.char.startswith(table.image_id.astype(str), "train")))
    train, val = samples_of(store, table, (np.sort(rows[:960]), np.sort(rows[960:])), VIEWS, stream=stream)
    return train, val


def assert_equal(one: FittedHead, other: FittedHead) -> None:
    assert (one.config, one.history, one.best_epoch) == (other.config, other.history, other.best_epoch)
    for name, tensor in one.weights.tensors().items():
        np.testing.assert_array_equal(tensor, other.weights.tensors()[name])


# ---- the shuffle window


@pytest.mark.parametrize(("count", "window"), [(960, 512), (960, 256), (1, 256), (2561, 1024), (700, 0), (700, 768)])
def test_every_image_is_in_one_window_of_an_epoch(count: int, window: int) -> None:
    for epoch in range(3):
        drawn = [images_of(blocks, count) for blocks in epoch_windows(count, window, epoch)]
        assert sorted(np.concatenate(drawn)) == list(range(count))
        if 0 < window < count:
            assert max(map(len, drawn)) <= window
            assert all(np.array_equal(np.sort(images), images) for images in drawn)  # in the order of the disk
        else:
            assert len(drawn) == 1


def test_each_epoch_has_an_order_of_its_own_and_all_windows_are_of_a_size() -> None:
    epochs = [epoch_windows(100 * BLOCK_IMAGES, 32 * BLOCK_IMAGES, epoch) for epoch in (0, 1, 0)]
    assert [len(blocks) for blocks in epochs[0]] == [25, 25, 25, 25]
    assert np.array_equal(epochs[0][0], epochs[2][0])
    assert not np.array_equal(epochs[0][0], epochs[1][0])


def test_a_window_of_a_sorted_split_holds_its_classes_in_their_share() -> None:
    # A million images, the first quarter of one class; 344 blocks a window.
    shares = [
        float((images_of(blocks, 10**6) < 250_000).mean())
        for epoch in range(3)
        for blocks in epoch_windows(10**6, 88_064, epoch)
    ]
    # The share of a sample of 344 of 3907 blocks without replacement has a standard deviation of 0.022.
    assert np.std(shares) < 0.04
    assert max(abs(share - 0.25) for share in shares) < 4 * 0.022


def test_a_window_is_whole_blocks() -> None:
    with pytest.raises(ValueError, match="wanted window in whole blocks of 256, got 100"):
        replace(BASE, window=100)
    with pytest.raises(ValueError, match="wanted window >= 0, got -256"):
        replace(BASE, window=-256)


# ---- streamed is in memory


@pytest.mark.parametrize("window", [256, 512, 768, 1024, 0])
def test_streamed_heads_are_those_in_memory_to_the_bit(store: FeatureStore, window: int) -> None:
    configs = [
        replace(BASE, window=window, hidden=hidden, seed=seed, view_policy=policy)
        for hidden in (0, 4)
        for seed, policy in POLICIES
    ]
    in_memory, streamed = (fit(*splits(store, stream=stream), configs) for stream in (False, True))
    assert in_memory[0].history.train_loss != in_memory[1].history.train_loss
    for one, other in zip(in_memory, streamed, strict=True):
        assert_equal(one, other)


def test_streamed_heads_that_see_clean_views_alone_are_those_in_memory(store: FeatureStore) -> None:
    configs = [replace(BASE, view_policy="clean", seed=seed, window=256 * (1 + seed)) for seed in range(2)]
    in_memory, streamed = (fit(*splits(store, stream=stream), configs) for stream in (False, True))
    for one, other in zip(in_memory, streamed, strict=True):
        assert_equal(one, other)


def test_the_window_is_part_of_what_makes_a_head(store: FeatureStore) -> None:
    small, whole = fit(*splits(store, stream=False), [BASE, replace(BASE, window=0)])
    assert small.history.train_loss != whole.history.train_loss


def test_windows_of_a_split_sorted_by_class_train_as_a_full_shuffle() -> None:
    rng = np.random.default_rng(0)

    def sorted_by_class(count: int) -> Samples:
        labels = np.sort((rng.random(count) < 0.7).astype(np.int64))
        features = rng.standard_normal((count, 1, 8)) + 0.5 * labels[:, None, None]
        return Samples(features=features.astype(np.float16), labels=labels, classes=2)

    train, val = sorted_by_class(120 * BLOCK_IMAGES), sorted_by_class(4000)
    config = HeadConfig(hidden=0, lr=1e-2, epochs=3, class_weights="none")
    whole, windows = fit(train, val, [config, replace(config, window=30 * BLOCK_IMAGES)])
    assert min(windows.history.val_loss) == pytest.approx(min(whole.history.val_loss), rel=0.02)


def test_a_head_of_one_window_is_the_head_that_windows_do_not_concern(store: FeatureStore) -> None:
    wide, whole = fit(*splits(store, stream=False), [replace(BASE, window=1024), replace(BASE, window=0)])
    assert wide.history == whole.history


def test_streamed_logits_are_those_in_memory(store: FeatureStore) -> None:
    heads = fit(*splits(store, stream=False), [BASE, replace(BASE, hidden=0)])
    for split in (0, 1):
        both = [clean_and_mean(heads, splits(store, stream=stream)[split]) for stream in (False, True)]
        for (clean, mean), (streamed_clean, streamed_mean) in zip(*both, strict=True):
            np.testing.assert_array_equal(clean, streamed_clean)
            np.testing.assert_array_equal(mean, streamed_mean)


def test_a_run_within_a_budget_is_the_run_of_its_window_in_memory(tmp_path: Path) -> None:
    store = write_store(tmp_path / "films", images(COUNTS), views=VIEWS, dim=DIM)
    config = replace(BASE, window=0)
    # 1,300 images × 3 views × 6 × 2 bytes are 46,800; two windows of a block and two pieces of val 42,912.
    tight = run_experiment([store], store.path.parent, [config], rule="paper", memory=45_000)
    assert [head.config.window for head in tight.record.heads] == [256]
    again = run_experiment([store], tmp_path / "elsewhere", [replace(config, window=256)], rule="paper")
    assert not again.reused
    assert again.record.run_id == tight.record.run_id
    assert again.record.heads == tight.record.heads
    for split in ("val", "test"):
        one, other = (read_logits(outcome.folder / f"{split}.npz") for outcome in (again, tight))
        np.testing.assert_array_equal(one.logits, other.logits)
        np.testing.assert_array_equal(one.logits_view_mean, other.logits_view_mean)


def test_a_run_whose_features_fit_the_budget_is_the_usual_run(tmp_path: Path) -> None:
    store = write_store(tmp_path / "films", images(COUNTS), views=VIEWS, dim=DIM)
    usual = run_experiment([store], store.path.parent, [replace(BASE, window=0, epochs=1)], rule="paper")
    roomy = run_experiment([store], store.path.parent, [replace(BASE, window=0, epochs=1)], rule="paper", memory=46_800)
    assert roomy.record.heads == usual.record.heads


# ---- reading under way


def test_a_part_that_is_damaged_under_way_is_found(tmp_path: Path) -> None:
    store = write_store(tmp_path / "films", images(COUNTS), views=VIEWS, dim=DIM)
    train, val = splits(store, stream=True)
    part = sorted((store.path / PARTS_NAME).glob("part-*.h5"))[0]
    with h5py.File(part) as held:
        at = held["features"].id.get_offset() + 36 * 300  # in the 300th image
    epochs = []

    def spoil(_: object) -> None:
        epochs.append(1)
        if len(epochs) == 2:
            content = bytearray(part.read_bytes())
            content[at] ^= 4
            other = part.with_suffix(".other")
            other.write_bytes(content)
            other.replace(part)  # at once: the thread that reads ahead would find half a file

    with pytest.raises(StoreError, match=rf"{part.name} is damaged \(its checksum does not match\)"):
        fit(train, val, [replace(BASE, epochs=20, patience=20)], on_epoch=spoil)
    assert len(epochs) < 5


def test_a_part_that_is_removed_under_way_is_named(tmp_path: Path) -> None:
    store = write_store(tmp_path / "films", images(COUNTS), views=VIEWS, dim=DIM)
    train, val = splits(store, stream=True)
    part = sorted((store.path / PARTS_NAME).glob("part-*.h5"))[1]
    with pytest.raises(StoreError, match=f"{part.name} is missing"):
        fit(train, val, [replace(BASE, epochs=20, patience=20)], on_epoch=lambda _: part.unlink(missing_ok=True))


def test_a_feed_that_is_broken_off_starts_again_where_it_should(store: FeatureStore) -> None:
    train, _ = splits(store, stream=True)
    assert isinstance(train, StoredSamples)
    feed = StreamedRows(train, torch.device("cpu"), 256)
    first = [window.features.clone() for window in feed.windows(0, 256)]
    next(iter(feed.windows(1, 256)))
    for window, expected in zip(feed.windows(0, 256), first, strict=True):
        assert torch.equal(window.features, expected)


def test_the_buffers_of_a_feed_are_what_the_budget_counts(store: FeatureStore) -> None:
    (train, val), budget = splits(store, stream=True), 45_000
    assert isinstance(train, StoredSamples)
    assert isinstance(val, StoredSamples)
    window = window_of(budget, train.shape, val.shape, 2)
    feeds = [StreamedRows(train, torch.device("cpu"), window), StreamedRows(val, torch.device("cpu"), window)]
    taken = {}
    for _ in feeds[0].windows(0, window):
        for rows, _labels in feeds[1].chunks(chunk_images(VIEWS)):
            taken[rows.untyped_storage().data_ptr()] = rows.untyped_storage().nbytes()
    for read in feeds[0].windows(1, window):
        taken[read.features.untyped_storage().data_ptr()] = read.features.untyped_storage().nbytes()
    assert sum(sorted(taken.values())[-4:]) <= budget


# ---- the budget


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("100", 100), ("5KiB", 5120), ("10kB", 10_000), ("512MiB", 2**29), ("3 MB", 3 * 10**6), ("2GB", 2 * 10**9),
        ("1.5 GiB", 3 * 2**29),
    ],
)  # fmt: skip
def test_a_size_is_read_with_its_unit(said: str, meant: int) -> None:
    assert load_settings({"memory": said}).memory == meant


def test_without_a_budget_there_is_no_window(store: FeatureStore) -> None:
    assert load_settings().memory is None
    assert window_for(StoreGrid.of(store, [BASE]), (960, 240, 100), None) is None


@pytest.mark.parametrize("said", ["much", "-1", "0", "12 parsecs"])
def test_a_size_that_is_none_is_wrong_usage(said: str) -> None:
    with pytest.raises(SettingsError, match=rf"--memory is '{said}'"):
        load_settings({"memory": said})


def test_a_window_is_as_large_as_the_budget_allows() -> None:
    train, val = (10**6, 1, 1280), (10**5, 1, 1280)
    window = window_of(2**29, train, val, 2)
    row = 2 * 1280 * 2  # two of each
    assert window % BLOCK_IMAGES == 0
    assert (window + 512) * row <= 2**29 < (window + BLOCK_IMAGES + 512) * row


def test_a_budget_without_room_for_a_window_names_the_least() -> None:
    with pytest.raises(SettingsError, match=r"--memory 1.0KiB is too little for .* 4 views × 1280: .* takes 10MiB"):
        window_of(2**10, (5000, 4, 1280), (1000, 4, 1280), 2)
    assert window_of(10 * 2**20, (5000, 4, 1280), (1000, 4, 1280), 2) == BLOCK_IMAGES


def test_heads_of_the_clean_view_alone_have_windows_of_it_alone(store: FeatureStore) -> None:
    clean = replace(BASE, view_policy="clean")
    sizes = (960, 240, 100)
    assert window_for(StoreGrid.of(store, [BASE]), sizes, 45_000) == 256
    assert window_for(StoreGrid.of(store, [clean]), sizes, 45_000) == 768


def test_the_type_of_the_features_is_known_before_they_are_read(store: FeatureStore) -> None:
    assert stored_dtype(store.path) == np.float16
    assert stored_dtype(Path(__file__).parents[2] / "data" / "stores" / "v1") == np.float32
