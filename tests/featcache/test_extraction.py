from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from stores import bytes_below, parts_of, rows_of

import featcache
from featcache import loading, making
from featcache.backbones import Backbone, load_backbone
from featcache.check import Scan, scan
from featcache.decode import Decoded, decode, decode_for
from featcache.errors import DataError
from featcache.extraction import Summary, extract
from featcache.forward import compile_forward
from featcache.images import ImageTable, discover
from featcache.index import INDEX_NAME, PARTS_NAME
from featcache.loading import are_small, decoders_for
from featcache.parts import read_header
from featcache.planning import spec_of, store_folder
from featcache.progress import Clock, Progress
from featcache.runtime import Compute
from featcache.store import open_store
from featcache.views import Geometry, render

COMPUTE = Compute(device="cpu", runtime="torch", precision="float32", batch_size=8, threads=2)


@pytest.fixture(scope="module")
def other() -> Backbone:
    """The same architecture with other weights."""
    return load_backbone("tiny_network:other")


@pytest.fixture
def films(phantoms: Path, tmp_path: Path) -> Path:
    """Twenty of the phantoms, to be changed at will."""
    root = tmp_path / "films"
    for folder in sorted(phantoms.glob("*/*/")):
        (root / folder.relative_to(phantoms)).mkdir(parents=True)
        for file in sorted(folder.iterdir())[: 2 if folder.parent.name == "val" else 4]:
            shutil.copy(file, root / file.relative_to(phantoms))
    return root


def look(root: Path) -> Scan:
    return scan(discover(root), root)


def run(root: Path, cache: Path, backbone: Backbone, scanned: Scan | None = None, **settings: Any) -> Summary:
    """Extract the images of a folder with one backbone."""
    (summary,) = extract(scanned or look(root), root, cache, [backbone], **{"compute": COMPUTE, **settings})
    return summary


# --- the pass, done once ---


def test_a_store_holds_what_a_plain_loop_over_the_images_gives(films: Path, tmp_path: Path, tiny: Backbone) -> None:
    summary = run(films, tmp_path / "cache", tiny, views=3)
    forward = compile_forward(tiny, 1, runtime="torch", precision="float32", device="cpu")
    geometry = Geometry(image_size=32, resize_side=32, interpolation="bilinear")
    store = open_store(summary.store)
    features = store.views()
    assert features.shape == (20, 3, 16)
    assert features.dtype == np.float16
    for number, image_id in enumerate(store.image_table.image_id):
        data = (films / image_id).read_bytes()
        for view in range(3):
            pixels = render(decode(data, 512), hashlib.sha256(data).hexdigest(), [view], geometry)
            wanted = forward(pixels.expand(1, 3, -1, -1).contiguous().numpy())[0]
            np.testing.assert_array_equal(features[number, view], wanted.astype(np.float16))


def test_the_summary_says_what_was_done(films: Path, tmp_path: Path, tiny: Backbone) -> None:
    seen: list[Progress] = []
    summary = run(films, tmp_path / "cache", tiny, views=2, on_progress=seen.append)
    spec = spec_of(tiny, compute=COMPUTE)
    assert summary.store == str(store_folder(tmp_path / "cache", spec))
    assert Path(summary.store).name == f"tiny_network-tiny-{spec.fingerprint[:12]}"
    assert (summary.backbone, summary.fingerprint) == ("tiny_network:tiny", spec.fingerprint)
    assert (summary.images, summary.extracted, summary.reused, summary.views) == (20, 20, 0, 2)
    assert (summary.quarantined, summary.notes, summary.lacking) == ((), (), 0)
    assert summary.images_per_second > 20 / summary.seconds  # compiling is not counted
    assert summary.limited_by in ("decode", "compute")
    assert [step.images_done for step in seen] == list(range(1, 21))
    assert {step.images_total for step in seen} == {20}
    assert all(before.seconds <= after.seconds for before, after in pairwise(seen))
    assert summary.in_words() == (
        f"tiny_network:tiny: 20 images × 2 views in {summary.store} (20 computed, 0 reused, "
        f"{summary.images_per_second:.1f} img/s, limited by {summary.limited_by})"
    )


def test_the_summary_as_json_has_the_keys_that_scripts_read(
    films: Path, tmp_path: Path, tiny: Backbone, damaged_films: dict[str, str]
) -> None:
    told = json.loads(json.dumps(run(films, tmp_path / "cache", tiny).to_json()))
    keys = "backbone store fingerprint images extracted reused quarantined views seconds images_per_second limited_by"
    keys += " lacking notes"
    assert set(told) == set(keys.split())
    assert [set(row) for row in told["quarantined"]] == [{"image_id", "reason"}] * len(damaged_films)
    assert [row["image_id"] for row in told["quarantined"]] == list(damaged_films)


def test_a_second_run_computes_nothing_and_leaves_every_part_alone(
    films: Path, tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(films, tmp_path / "cache", tiny, views=2, part_images=6)
    before = parts_of(first.store)
    assert len(before) == 4

    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be decoded, or compiled")

    monkeypatch.setattr(loading, "decode_for", never)
    monkeypatch.setattr(making, "compile_forward", never)
    second = run(films, tmp_path / "cache", tiny, views=2, part_images=6)
    assert (second.images, second.extracted, second.reused) == (20, 0, 20)
    assert (second.limited_by, second.images_per_second) == ("nothing to do", 0.0)
    assert parts_of(first.store) == before


def test_more_views_later_compute_only_those_that_lack_and_equal_a_run_that_asked_at_once(
    films: Path, tmp_path: Path, tiny: Backbone
) -> None:
    first = run(films, tmp_path / "cache", tiny, views=1)
    before = parts_of(first.store)
    later = run(films, tmp_path / "cache", tiny, views=4)
    assert (later.store, later.extracted) == (first.store, 20)
    after = parts_of(first.store)
    assert {name: after[name] for name in before} == before
    (new,) = after.keys() - before.keys()
    assert read_header(Path(first.store) / PARTS_NAME / new).views == (1, 2, 3)
    at_once = run(films, tmp_path / "at once", tiny, views=4)
    assert rows_of(later.store) == rows_of(at_once.store)
    np.testing.assert_array_equal(open_store(later.store).views(), open_store(at_once.store).views())
    assert open_store(later.store).view_count == 4


def test_a_lost_clean_view_is_made_again_under_the_views_that_were_added(
    films: Path, tmp_path: Path, tiny: Backbone
) -> None:
    clean = run(films, tmp_path / "cache", tiny, views=1)
    (part,) = (Path(clean.store) / PARTS_NAME).iterdir()
    whole = open_store(run(films, tmp_path / "cache", tiny, views=3).store).views()
    part.unlink()
    again = run(films, tmp_path / "cache", tiny, views=3)
    assert again.extracted == 20
    np.testing.assert_array_equal(open_store(again.store).views(), whole)


def test_fewer_views_later_take_nothing_away(films: Path, tmp_path: Path, tiny: Backbone) -> None:
    run(films, tmp_path / "cache", tiny, views=3)
    again = run(films, tmp_path / "cache", tiny, views=1)
    assert (again.extracted, again.views) == (0, 1)
    assert open_store(again.store).view_count == 3


def test_another_seed_of_the_views_is_another_store_with_the_same_clean_view(
    films: Path, tmp_path: Path, tiny: Backbone
) -> None:
    stores = [run(films, tmp_path / "cache", tiny, views=2, recipe_seed=seed).store for seed in (0, 1)]
    assert stores[0] != stores[1]
    zero, one = (open_store(store).views() for store in stores)
    np.testing.assert_array_equal(zero[:, 0], one[:, 0])
    assert (zero[:, 1] != one[:, 1]).any(axis=1).all()


# --- rows are found by content ---


def test_images_added_later_are_the_only_ones_computed(films: Path, tmp_path: Path, tiny: Backbone) -> None:
    scanned = look(films)
    fewer = dataclasses.replace(scanned, table=scanned.table.take(np.arange(20) % 3 != 0))
    first = run(films, tmp_path / "cache", tiny, fewer, views=2, part_images=5)
    before = parts_of(first.store)
    second = run(films, tmp_path / "cache", tiny, scanned, views=2, part_images=5)
    assert (first.images, second.images, second.extracted, second.reused) == (13, 20, 7, 13)
    after = parts_of(first.store)
    assert {name: after[name] for name in before} == before
    assert rows_of(second.store) == rows_of(run(films, tmp_path / "at once", tiny, views=2).store)


def test_renamed_files_keep_their_features(films: Path, tmp_path: Path, tiny: Backbone) -> None:
    first = run(films, tmp_path / "cache", tiny)
    old = open_store(first.store)
    feature_of = dict(zip(old.image_table.sha256, old.features(), strict=True))
    for number, file in enumerate(sorted(films.glob("test/*/*"))):
        file.rename(file.with_name(f"person{99 - number}_bacteria_1.jpeg"))
    second = run(films, tmp_path / "cache", tiny)
    assert (second.images, second.extracted, second.reused) == (20, 0, 20)
    new = open_store(second.store)
    assert set(new.image_table.image_id) == {str(file.relative_to(films)) for file in films.glob("*/*/*")}
    for digest, feature in zip(new.image_table.sha256, new.features(), strict=True):
        np.testing.assert_array_equal(feature, feature_of[digest])


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Content hashes of the images decoded from now on."""
    decoded: list[str] = []

    def counting(data: bytes, floors: Collection[int | None]) -> dict[int | None, Decoded]:
        decoded.append(hashlib.sha256(data).hexdigest())
        return decode_for(data, floors)

    monkeypatch.setattr(loading, "decode_for", counting)
    return decoded


def test_identical_files_are_computed_once_and_each_has_its_features(
    films: Path, tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sorted(films.glob("train/NORMAL/*"))[1]
    copies = [films / "train" / "NORMAL" / "A-1.jpeg", films / "test" / "NORMAL" / "Z-1.jpeg"]
    for copy in copies:
        shutil.copy(original, copy)
    decoded = count_decodes(monkeypatch)
    summary = run(films, tmp_path / "cache", tiny, views=2, part_images=4)
    assert (summary.images, summary.extracted) == (22, 22)
    assert len(decoded) == len(set(decoded)) == len(rows_of(summary.store)) // 2 == 20
    store = open_store(summary.store)
    names = [str(file.relative_to(films)) for file in (original, *copies)]
    features = store.views(names)
    np.testing.assert_array_equal(features[1], features[0])
    np.testing.assert_array_equal(features[2], features[0])
    with h5py.File(Path(summary.store) / INDEX_NAME) as file:
        row_of = {name: row for row, name in enumerate(file["image_id"].asstr()[:])}
        for name in names:
            np.testing.assert_array_equal(file["features"][row_of[name]], features[0])


def test_changed_bytes_are_a_new_row(films: Path, tmp_path: Path, tiny: Backbone) -> None:
    run(films, tmp_path / "cache", tiny)
    source, changed = sorted(films.glob("train/PNEUMONIA/*"))[:2]
    changed.write_bytes(source.read_bytes() + b"a comment after the end")
    second = run(films, tmp_path / "cache", tiny)
    assert (second.images, second.extracted, second.reused) == (20, 1, 19)
    fresh = run(films, tmp_path / "fresh", tiny)
    np.testing.assert_array_equal(open_store(second.store).features(), open_store(fresh.store).features())


# --- images that cannot be read ---


@pytest.fixture
def damaged_films(films: Path) -> dict[str, str]:
    """Damage three images; name → how the reason begins, in the order in which they are found."""
    empty, text, cut = sorted(films.glob("train/PNEUMONIA/*"))[:3]
    empty.write_bytes(b"")
    text.write_text("no picture")
    cut.write_bytes(cut.read_bytes()[:-600])
    reasons = ("empty file", "not a JPEG, PNG or DICOM image", "damaged or truncated: ")
    return dict(zip((str(file.relative_to(films)) for file in (empty, text, cut)), reasons, strict=True))


def test_copies_of_an_unreadable_image_are_listed_like_the_first(films: Path, tmp_path: Path, tiny: Backbone) -> None:
    cut = sorted(films.glob("train/PNEUMONIA/*"))[0]
    cut.write_bytes(cut.read_bytes()[:-600])
    copy = films / "test" / "NORMAL" / "Z-1.jpeg"
    shutil.copy(cut, copy)
    summary = run(films, tmp_path / "cache", tiny, views=2)
    assert {row.image_id for row in summary.quarantined} == {str(file.relative_to(films)) for file in (cut, copy)}
    assert len({row.reason for row in summary.quarantined}) == 1
    assert (summary.images, summary.extracted) == (19, 19)
    assert open_store(summary.store).views().shape == (19, 2, 16)


def test_strict_makes_an_unreadable_image_fatal_and_names_it(
    films: Path, tmp_path: Path, tiny: Backbone, damaged_films: dict[str, str]
) -> None:
    with pytest.raises(DataError) as caught:
        run(films, tmp_path / "cache", tiny, strict=True)
    first, second, _ = damaged_films
    assert str(caught.value) == (
        f"{first}: empty file (and 1 more; 'cxr data check' lists them); --strict wants every image"
    )
    assert not (tmp_path / "cache").exists()
    (films / first).unlink()
    (films / second).unlink()
    with pytest.raises(DataError, match=r": damaged or truncated: .*; --strict wants every image$"):
        run(films, tmp_path / "cache", tiny, strict=True)


def test_strict_keeps_the_parts_that_were_finished_before(films: Path, tmp_path: Path, tiny: Backbone) -> None:
    last = sorted(films.glob("val/PNEUMONIA/*"))[-1]
    last.write_bytes(last.read_bytes()[:-600])
    with pytest.raises(DataError, match="strict wants every image"):
        run(films, tmp_path / "cache", tiny, strict=True, part_images=6)
    last.unlink()
    again = run(films, tmp_path / "cache", tiny, strict=True, part_images=6)
    assert (again.extracted, again.reused) == (0, 19)


def test_a_data_set_without_a_readable_image_is_refused(films: Path, tmp_path: Path, tiny: Backbone) -> None:
    for file in films.glob("*/*/*"):
        file.write_bytes(file.read_bytes()[:-600])
    with pytest.raises(DataError, match=r"\(and 19 more; 'cxr data check' lists them\); no image can be used$"):
        run(films, tmp_path / "cache", tiny)
    for file in films.glob("*/*/*"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r": empty file \(and 19 more; .*\); no image can be used$"):
        run(films, tmp_path / "cache", tiny)


# --- several backbones ---


def test_two_backbones_decode_each_image_once(
    films: Path, tmp_path: Path, tiny: Backbone, other: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = count_decodes(monkeypatch)
    together = extract(look(films), films, tmp_path / "cache", [tiny, other], views=2, compute=COMPUTE, part_images=6)
    assert len(decoded) == len(set(decoded)) == 20
    assert [summary.backbone for summary in together] == ["tiny_network:tiny", "tiny_network:other"]
    for summary, backbone in zip(together, (tiny, other), strict=True):
        alone = run(films, tmp_path / "alone", backbone, views=2, part_images=6)
        assert rows_of(summary.store) == rows_of(alone.store)
    assert rows_of(together[0].store) != rows_of(together[1].store)


def test_a_backbone_that_lacks_less_computes_less(films: Path, tmp_path: Path, tiny: Backbone, other: Backbone) -> None:
    whole = run(films, tmp_path / "cache", tiny, views=3)
    before = parts_of(whole.store)
    run(films, tmp_path / "cache", other, views=1)
    done, more = extract(look(films), films, tmp_path / "cache", [tiny, other], views=3, compute=COMPUTE)
    assert (done.extracted, done.reused, more.extracted, more.reused) == (0, 20, 20, 0)
    assert parts_of(done.store) == before
    assert rows_of(more.store) == rows_of(run(films, tmp_path / "alone", other, views=3).store)


def test_backbones_of_different_size_share_one_pass(films: Path, tmp_path: Path, tiny: Backbone) -> None:
    large = load_backbone("tiny_network:tiny", image_size=48)
    summaries = extract(look(films), films, tmp_path / "cache", [tiny, large], views=2, compute=COMPUTE)
    assert summaries[0].store != summaries[1].store
    for summary, backbone in zip(summaries, (tiny, large), strict=True):
        assert rows_of(summary.store) == rows_of(run(films, tmp_path / "alone", backbone, views=2).store)


# --- a row depends on image, view and spec alone ---


def reversed_table(table: ImageTable) -> ImageTable:
    return table.take(np.arange(len(table))[::-1])


@pytest.mark.parametrize(
    ("batch_size", "threads", "part_images", "order"),
    [
        (1, 1, 256, lambda table: table),
        (3, 2, 7, lambda table: table),
        (64, 5, 3, reversed_table),
        (8, 2, 20, lambda table: table.take(np.random.default_rng(0).permutation(len(table)))),
    ],
)
def test_a_row_does_not_depend_on_batch_part_threads_or_order(
    films: Path,
    tmp_path: Path,
    tiny: Backbone,
    batch_size: int,
    threads: int,
    part_images: int,
    order: Callable[[ImageTable], ImageTable],
) -> None:
    usual = run(films, tmp_path / "usual", tiny, views=3)
    scanned = look(films)
    compute = dataclasses.replace(COMPUTE, batch_size=batch_size, threads=threads)
    changed = run(
        films,
        tmp_path / "changed",
        tiny,
        dataclasses.replace(scanned, table=order(scanned.table)),
        views=3,
        compute=compute,
        part_images=part_images,
    )
    assert rows_of(changed.store) == rows_of(usual.store)


def test_the_same_run_elsewhere_writes_the_same_bytes(films: Path, tmp_path: Path, tiny: Backbone) -> None:
    run(films, tmp_path / "here", tiny, views=2, part_images=6)
    run(films, tmp_path / "there", tiny, views=2, part_images=6)
    assert bytes_below(tmp_path / "here") == bytes_below(tmp_path / "there")


# --- what else others rely on ---


def test_extract_is_had_from_the_package_without_importing_torch_for_readers() -> None:
    assert featcache.extract is extract
    with pytest.raises(AttributeError, match="module 'featcache' has no attribute 'extrakt'"):
        featcache.extrakt  # noqa: B018 - asking is the test


def test_progress_says_what_the_pass_waits_for() -> None:
    def progress(waited: float, total: int = 100) -> Progress:
        return Progress(images_done=50, images_total=total, seconds=10.0, waited_for_images=waited)

    assert progress(1.0).remark == "5 img/s, limited by compute"
    assert progress(9.0).remark == "5 img/s, limited by decode"
    assert progress(0.0, total=0).limited_by == "nothing to do"
    # Ten images were done after two seconds of loading and compiling: forty took the other eight.
    compiled = Progress(
        images_done=50, images_total=100, seconds=10.0, waited_for_images=0.0, starting=2.0, images_at_start=10
    )
    assert compiled.images_per_second == 5.0
    start = Progress(images_done=0, images_total=1, seconds=0.0, waited_for_images=0.0)
    assert start.remark == "0 img/s, limited by compute"


def test_the_spec_says_what_was_chosen_and_not_what_was_asked(films: Path, tmp_path: Path, tiny: Backbone) -> None:
    spec = open_store(run(films, tmp_path / "cache", tiny).store).spec
    assert spec == spec_of(tiny, compute=COMPUTE)
    assert (spec.backbone, spec.weights_sha256) == ("tiny_network:tiny", tiny.weights_sha256)
    assert (spec.image_size, spec.resize_side, spec.interpolation) == (32, 32, "bilinear")
    assert (spec.mean, spec.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert (spec.runtime, spec.precision, spec.dtype, spec.decode_floor) == ("torch", "float32", "float16", 512)
    automatic = spec_of(tiny, compute=Compute(device="cpu"))
    assert automatic.runtime == "openvino"
    assert "auto" not in automatic.to_json()


def test_a_large_backbone_is_decoded_large_enough_for_it() -> None:
    large = load_backbone("tiny_network:tiny", image_size=600)
    assert spec_of(large, compute=COMPUTE).decode_floor == 2048


def test_features_beyond_float16_are_kept(
    films: Path, tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loud(*_: object, **__: object) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        return lambda pixels: pixels.mean((2, 3), dtype=np.float32) * 1e5

    monkeypatch.setattr(making, "compile_forward", loud)
    store = open_store(run(films, tmp_path / "cache", tiny, part_images=6).store)
    features = store.features()
    assert features.dtype == np.float32
    assert features.shape == (20, 3)
    assert features.max() > 65_504
    assert np.isfinite(features).all()


@pytest.mark.parametrize(
    ("threads", "limited_by", "seconds", "told"),
    [
        (8, "decode", 31.0, "4 processes read more than one: --devices cpu,cpu,cpu,cpu"),
        (8, "compute", 31.0, ""),
        (8, "decode", 29.0, ""),
        (2, "decode", 31.0, ""),
    ],
)
def test_who_waits_for_one_process_to_read_is_told_of_several(
    threads: int,
    limited_by: str,
    seconds: float,
    told: str,
    phantoms: Path,
    scanned_phantoms: Scan,
    tiny: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited = seconds if limited_by == "decode" else 0.0
    pace = Progress(images_done=88, images_total=88, seconds=seconds, waited_for_images=waited)
    monkeypatch.setattr(Clock, "progress", lambda _: pace)
    compute = dataclasses.replace(COMPUTE, threads=threads)
    (summary,) = extract(scanned_phantoms, phantoms, tmp_path, [tiny], compute=compute)
    assert bool(summary.notes) == bool(told)
    assert all(told in note for note in summary.notes)


def test_few_threads_read_small_films_and_all_of_them_large_ones() -> None:
    small, large = np.array([224 * 224] * 3 + [4_000_000]), np.array([2_000_000] * 3 + [50_000])
    assert (are_small(small), are_small(large)) == (True, False)
    unknown = np.zeros(5, np.int64)
    assert not are_small(unknown)
    assert are_small(np.concatenate([unknown, small]))
    assert (decoders_for(16, small_films=True), decoders_for(16, small_films=False)) == (4, 16)
    assert decoders_for(2, small_films=True) == 2
