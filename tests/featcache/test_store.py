from __future__ import annotations

import dataclasses
import functools
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from featcache import open_store
from featcache.check import Scan
from featcache.errors import StoreError
from featcache.images import ImageTable, strings
from featcache.index import COLUMNS, INDEX_NAME, PARTS_NAME, read_index, write_index
from featcache.parts import LIBVER, PartHeader, part_name, read_header, write_part
from featcache.spec import FeatureSpec
from featcache.store import (
    FeatureStore,
    describe_stores,
    part_headers,
    remove_store,
    store_bytes,
    store_folders,
    verify_store,
)

GOLDEN = Path(__file__).parents[1] / "data" / "stores" / "v1"
"""Made once by make_v1.py beside it, never again."""

IMAGES = (
    "test/NORMAL/IM-0001-0001.jpeg",
    "test/PNEUMONIA/person1_virus_1.jpeg",
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "train/PNEUMONIA/person2_bacteria_2.jpeg",
    "val/PNEUMONIA/person3_virus_3.jpeg",
)


def golden_features() -> NDArray[np.float32]:
    """What the golden store holds, [6, 3, 8]: of phantom i, view v, feature d it is i + v/4 + d/64."""
    phantom, view, feature = np.ogrid[:6, :3, :8]
    phantom[5] = 1  # its last image has the same bytes as its second
    features = (phantom + view / 4 + feature / 64).astype(np.float32)
    features[4, 1, 3] = 70_000
    return features


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy of the golden store, to be opened, changed and broken."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "cache" / "films" / "golden-1"))


def parts_of(store: Path) -> list[Path]:
    return sorted((store / PARTS_NAME).iterdir())


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(StoreError) as caught:
        action()
    return str(caught.value)


def flip(path: Path, offset: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x55
    path.write_bytes(data)


def flip_features(part: Path) -> None:
    """Change one byte of a part's features."""
    with h5py.File(part) as file:
        offset = file["features"].id.get_offset()
    flip(part, offset + 3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the golden store


def test_the_golden_store_opens_and_gives_its_numbers() -> None:
    store = open_store(GOLDEN)
    assert np.array_equal(store.views(), golden_features())
    for view in range(3):
        features = store.features(view=view)
        assert features.dtype == np.float32
        assert np.array_equal(features, golden_features()[:, view])
    assert store.view_count == 3


def test_the_golden_store_tells_its_images() -> None:
    store = open_store(GOLDEN)
    table = store.image_table
    assert table.classes == ("NORMAL", "PNEUMONIA")
    assert tuple(table.image_id) == IMAGES
    assert table.label.tolist() == [0, 1, 0, 1, 1, 1]
    assert table.split.tolist() == ["test", "test", "train", "train", "train", "val"]
    assert table.patient_id.tolist() == [
        "test/IM-0001",
        "test/person1",
        "train/IM-0115",
        "train/person1",
        "train/person2",
        "train/person3",
    ]
    assert table.sha256[0] == "6ec7ce47aaee3b31f136cacd33253aed9e4f54e6a355dec04dbce0d71129655d"
    assert table.sha256[1] == table.sha256[5]
    assert (table.width.tolist(), table.height.tolist()) == ([64] * 6, [64, 65, 66, 67, 68, 69])
    (left_out,) = store.quarantined
    assert left_out.image_id == "train/NORMAL/Röntgen.jpeg"
    assert left_out.reason == "damaged or truncated: image file is truncated"


def test_the_golden_store_tells_its_spec() -> None:
    spec = open_store(GOLDEN).spec
    assert spec.backbone == "golden@kind=synthetic"
    assert (spec.image_size, spec.resize_side, spec.interpolation) == (32, 36, "bicubic")
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert spec.fingerprint == "dbcbc6676e3c10e0ec87d663d437fdfb5893f9d2b4f99a4af8470743b53f4408"


def test_the_golden_store_verifies_and_reading_changes_no_file() -> None:
    before = contents(GOLDEN)
    assert verify_store(GOLDEN) == []
    open_store(GOLDEN).views()
    assert contents(GOLDEN) == before


# --- reading


def test_features_come_in_the_order_asked_for_and_as_often(store: Path) -> None:
    asked = [4, 0, 5, 1, 0]
    opened = open_store(store)
    assert np.array_equal(opened.features([IMAGES[row] for row in asked], view=1), golden_features()[asked, 1])
    assert np.array_equal(opened.views([IMAGES[row] for row in asked], count=2), golden_features()[asked, :2])


def test_views_are_as_stored_and_float32_only_where_a_part_is(store: Path) -> None:
    opened = open_store(store)
    assert opened.views(IMAGES[:3]).dtype == np.float16
    assert opened.views(IMAGES).dtype == np.float32
    assert opened.features(IMAGES[:3]).dtype == np.float32


def test_a_store_opens_by_its_folder_or_its_index(store: Path) -> None:
    for path in (store, store / INDEX_NAME, str(store)):
        assert open_store(path).path == store


def test_features_h5_is_the_same_to_any_hdf5_reader_from_any_folder(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_store(phantom_store)
    assert len(opened.part_names) == 3
    monkeypatch.chdir(tmp_path)
    with h5py.File(phantom_store / INDEX_NAME) as file:
        features = file["features"][:]
        assert file["features"].is_virtual
        assert file["image_id"].asstr()[:].tolist() == opened.image_table.image_id.tolist()
        assert file["label"][:].tolist() == opened.image_table.label.tolist()
        assert file["image_sha256"].asstr()[:].tolist() == opened.image_table.sha256.tolist()
        assert file["patient_id"].asstr()[:].tolist() == opened.image_table.patient_id.tolist()
        assert file.attrs["fingerprint"].decode() == opened.spec.fingerprint
    assert features.shape == (88, 3, 16)
    assert np.array_equal(features, opened.views())
    assert len(np.unique(features[:, 0], axis=0)) == 88


def test_a_store_may_be_moved_as_a_folder(store: Path, tmp_path: Path) -> None:
    moved = store.rename(tmp_path / "elsewhere")
    assert np.array_equal(open_store(moved).views(), golden_features())
    with h5py.File(moved / INDEX_NAME) as file:
        assert np.array_equal(file["features"][:], golden_features())


def test_reading_a_store_imports_no_torch() -> None:
    program = (
        "import sys; from featcache import open_store; print(open_store(sys.argv[1]).views().sum());"
        "print([name for name in ('torch', 'torchvision', 'timm', 'openvino', 'heads') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(GOLDEN)], capture_output=True, text=True, check=True)
    total, imported = done.stdout.splitlines()
    assert float(total) == pytest.approx(float(golden_features().sum()), rel=1e-6)
    assert imported == "[]"


# --- what is not there


def test_images_that_the_store_lacks_are_counted_with_the_way_out(store: Path) -> None:
    opened = open_store(store)
    asked = [*IMAGES[:3], *(f"train/NORMAL/new-{number}.jpeg" for number in range(12))]
    assert refused(lambda: opened.features(asked)) == (
        f"golden@kind=synthetic has no features for 12 of 15 images in {store} (such as train/NORMAL/new-0.jpeg): "
        "run 'cxr extract --backbone golden@kind=synthetic' again"
    )


def test_a_view_that_no_image_has_is_named(store: Path) -> None:
    opened = open_store(store)
    assert f"{store} has 3 views an image, wanted 4: run 'cxr extract" in refused(lambda: opened.features(view=3))
    assert "--views 5'" in refused(lambda: opened.views(IMAGES[:2], count=5))


def test_images_that_lack_a_view_are_counted_and_are_nan_in_features_h5(store: Path) -> None:
    index = read_index(store)
    scanned = Scan(table=index.image_table, quarantined=(), odd=())
    headers = [header for header in part_headers(store) if isinstance(header, PartHeader)]
    partial = [header for header in headers if header.views[0] == 0 or len(header.image_sha256) < 5]
    later = next(header for header in headers if header.views == (2,))
    # The third view of the first two phantoms alone, in a part of its own.
    few = write_part(
        store / PARTS_NAME, index.spec, later.image_sha256[:2], [2], golden_features()[:2, 2:3], {"cxr": "0.1.0"}
    )
    later.path.unlink()
    write_index(store, index.spec, scanned, [*partial, read_header(few)])
    opened = open_store(store)
    assert opened.view_count == 2
    assert opened.views().shape == (6, 2, 8)
    assert np.array_equal(opened.features(IMAGES[:2], view=2), golden_features()[:2, 2])
    message = refused(lambda: opened.features(view=2))
    assert f"has no features for 3 of 6 images in {store} (such as {IMAGES[2]})" in message
    with h5py.File(store / INDEX_NAME) as file:
        lacking = np.isnan(file["features"][:, 2]).all(axis=1)
    assert lacking.tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize(("images", "view"), [([], 0), (list(IMAGES), -1)])
def test_no_image_or_a_negative_view_is_misuse(store: Path, images: list[str], view: int) -> None:
    with pytest.raises(ValueError, match="wanted one image or more and views from 0 on"):
        open_store(store).features(images, view=view)


def test_no_store_is_told_apart_from_an_unfinished_one(store: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    wanted = f"no feature store in {nowhere}; 'cxr cache list' shows those that exist"
    assert refused(lambda: open_store(nowhere)) == wanted
    (store / INDEX_NAME).unlink()
    assert refused(lambda: open_store(store)) == (
        f"{store} has parts but no features.h5 (an extraction that did not finish?): run its 'cxr extract' again, "
        "which makes only what is missing"
    )


# --- an index and its parts


def test_a_missing_part_is_named(store: Path) -> None:
    part = parts_of(store)[0]
    part.unlink()
    assert str(part) in refused(lambda: open_store(store).views())
    assert verify_store(store) == [f"{part} is missing: run 'cxr extract' again"]


def test_parts_that_hold_something_else_than_the_index_says_are_refused(store: Path) -> None:
    first, second, _ = parts_of(store)
    spare = first.rename(store / "spare")
    second.rename(first)
    spare.rename(second)
    assert " is damaged (its name is not that of its content): " in refused(lambda: open_store(store).views())


def test_a_part_of_another_spec_names_the_field_when_the_store_is_read(store: Path) -> None:
    spec = open_store(store).spec
    part = next(path for path in parts_of(store) if read_header(path).views == (0, 1))
    header = read_header(part)
    other = dataclasses.replace(spec, recipe_seed=5)
    features = np.zeros((len(header.image_sha256), 2, 8), np.float32)
    assert write_part(part.parent, other, header.image_sha256, header.views, features, {}) == part
    message = f"{part} was made by another spec: recipe_seed 5 against 0"
    assert refused(lambda: open_store(store).views()) == message
    assert verify_store(store) == [message]


def test_a_flipped_byte_of_a_part_is_found_when_features_are_read(store: Path) -> None:
    opened = open_store(store)
    part = parts_of(store)[1]
    flip_features(part)
    message = refused(opened.views)
    assert message.startswith(f"{part} is damaged (its checksum does not match): delete it with 'cxr cache verify")


@pytest.mark.parametrize("first_sorts_narrow", [True, False])
def test_two_parts_that_share_a_view_are_both_used(store: Path, tmp_path: Path, *, first_sorts_narrow: bool) -> None:
    """As two processes make them that started together, one with --views 1 and one with --views 3."""
    index = read_index(store)
    made = tmp_path / "made"
    # Names are hashes: look for images for which the part of one view sorts first, or last.
    for seed in range(50):
        digests = [f"{seed:062x}{number:02x}" for number in range(2)]
        if (part_name(digests, range(1)) < part_name(digests, range(3))) == first_sorts_narrow:
            break
    features = golden_features()[:2]
    paths = [write_part(made / PARTS_NAME, index.spec, digests, range(n), features[:, :n], {}) for n in (1, 3)]
    table = index.image_table.take(np.arange(2))
    table = dataclasses.replace(table, sha256=strings(digests))
    headers = [read_header(path) for path in sorted(paths)]
    write_index(made, index.spec, Scan(table=table, quarantined=(), odd=()), headers)
    opened = open_store(made)
    assert opened.view_count == 3
    assert np.array_equal(opened.views(), features)
    with h5py.File(made / INDEX_NAME) as file:
        assert np.array_equal(file["features"][:], features)


def test_an_index_without_parts_has_images_and_no_features(store: Path, tmp_path: Path) -> None:
    index = read_index(store)
    empty = tmp_path / "empty"
    (empty / PARTS_NAME).mkdir(parents=True)
    write_index(empty, index.spec, Scan(table=index.image_table, quarantined=index.quarantined, odd=()), [])
    opened = open_store(empty)
    assert opened.view_count == 0
    assert opened.quarantined == index.quarantined
    assert "has no features for 6 of 6 images" in refused(opened.features)


# --- a damaged index


def same(one: FeatureStore, other: FeatureStore) -> bool:
    columns = [field.name for field in dataclasses.fields(ImageTable) if field.name != "classes"]
    tables = [[getattr(s.image_table, name).tolist() for name in columns] for s in (one, other)]
    facts = [(s.spec, s.quarantined, s.part_names, s.part.tolist(), s.image_table.classes) for s in (one, other)]
    return tables[0] == tables[1] and facts[0] == facts[1]


def test_a_flipped_byte_of_the_index_is_found_or_harmless_wherever_it_is(store: Path) -> None:
    whole = (store / INDEX_NAME).read_bytes()
    before = open_store(store)
    rng = random.Random(2)  # noqa: S311 - no secret is made here
    found = 0
    for offset in rng.sample(range(len(whole)), 250):
        data = bytearray(whole)
        data[offset] ^= rng.choice((1, 16, 128, 255, rng.randrange(1, 256)))
        (store / INDEX_NAME).write_bytes(data)
        try:
            after = open_store(store)
        except StoreError:
            found += 1
        else:
            assert same(after, before), f"byte {offset}"
    assert found > 60


@pytest.mark.parametrize("kept", [0.0, 0.4, 0.99])
def test_a_truncated_index_is_damaged(store: Path, kept: float) -> None:
    path = store / INDEX_NAME
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert refused(lambda: open_store(store)).startswith(f"{path} is damaged (")


def test_a_part_is_no_index(store: Path) -> None:
    shutil.copy(parts_of(store)[0], store / INDEX_NAME)
    assert refused(lambda: open_store(store)) == (
        f"{store / INDEX_NAME} is 'cxr-feature-part' version 1, wanted 'cxr-feature-store' version 1; "
        "it was written by another cxr: extract again into another --cache"
    )


def replaced(store: Path, name: str, values: NDArray[np.generic]) -> str:
    """What is said of an index in which one dataset was exchanged."""
    with h5py.File(store / INDEX_NAME, "r+", libver=LIBVER) as file:
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = values
        for key, value in attributes.items():
            file[name].attrs[key] = value
    message = refused(lambda: open_store(store))
    start, end = f"{store / INDEX_NAME} is damaged (", "): delete it with"
    assert message.startswith(start)
    return message.removeprefix(start).partition(end)[0]


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("label", np.array([0, 1, 0, 1, 1, 2]), "a label is no class"),
        ("label", np.array([0, 1, 0, 1, 1, -1]), "a label is no class"),
        ("label", np.array([0, 1, 0, 1, 1]), "the columns of the image table differ in length"),
        ("width", np.zeros(7, np.int32), "the columns of the image table differ in length"),
        ("part", np.full((6, 3), 3, np.int32), "its table of parts does not fit its images"),
        ("part", np.full((6, 3), -2, np.int32), "its table of parts does not fit its images"),
        ("part", np.zeros((5, 3), np.int32), "its table of parts does not fit its images"),
        ("part", np.zeros(6, np.int32), "its table of parts does not fit its images"),
        ("part", np.zeros((6, 3), np.int64), "its table of parts does not fit its images"),
        ("parts", np.array([b"../../../other.h5"] * 3), "a part's name leads out of the store"),
        ("parts", np.array([b"/etc/other.h5"] * 3), "a part's name leads out of the store"),
    ],
)
def test_an_index_whose_columns_do_not_fit_is_damaged(
    store: Path, name: str, values: NDArray[np.generic], reason: str
) -> None:
    assert replaced(store, name, values) == reason


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_that_leads_out_or_claims_too_much_is_refused_unread(store: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(store, tmp_path / "other")
    whole = (store / INDEX_NAME).read_bytes()

    def link(file: h5py.File) -> None:
        file[name] = h5py.ExternalLink(str(tmp_path / "other" / INDEX_NAME), name)

    def huge(file: h5py.File) -> None:
        file.create_dataset(name, (2**40,), "i8")

    for trap, reason in ((link, "points to other files"), (huge, "claims 8796093022208 bytes, more than the file has")):
        (store / INDEX_NAME).write_bytes(whole)
        with h5py.File(store / INDEX_NAME, "r+", libver=LIBVER) as file:
            del file[name]
            trap(file)
        assert f"is damaged (/{name} {reason})" in refused(lambda: open_store(store))


def test_a_name_that_is_no_utf8_is_found_when_the_image_table_is_asked_for(store: Path) -> None:
    with h5py.File(store / INDEX_NAME, "r+", libver=LIBVER) as file:
        names = file["image_id"][:]
        names[2] = b"\xff"
        file["image_id"][:] = names
    opened = open_store(store)
    assert opened.view_count == 3
    message = refused(lambda: opened.image_table)
    assert message.startswith(f"{store / INDEX_NAME} is damaged ('utf-8' codec can't decode byte 0xff")
    assert [line.partition(" (")[0] for line in verify_store(store)] == [f"{store / INDEX_NAME} is damaged"]


# --- verify


def test_verify_names_everything_that_is_wrong(store: Path) -> None:
    first, second, third = parts_of(store)
    flip_features(first)
    second.write_bytes(b"not a part")
    third.unlink()
    problems = verify_store(store)
    assert [problem.partition(" is ")[0] for problem in problems] == [str(third), str(first), str(second)]
    assert [path.name for path in parts_of(store)] == [first.name, second.name]


def test_verify_removes_what_is_damaged_only_when_told(store: Path) -> None:
    first, second, third = parts_of(store)
    flip_features(second)
    assert len(verify_store(store)) == 1
    assert second.exists()
    assert len(verify_store(store, remove_damaged=True)) == 1
    assert parts_of(store) == [first, third]
    assert (store / INDEX_NAME).exists()


def test_verify_removes_a_damaged_index_and_keeps_the_parts(store: Path) -> None:
    (store / INDEX_NAME).write_bytes(b"")
    parts = parts_of(store)
    (problem,) = verify_store(store, remove_damaged=True)
    assert str(store / INDEX_NAME) in problem
    assert not (store / INDEX_NAME).exists()
    assert parts_of(store) == parts


def test_a_part_left_half_written_is_no_part(store: Path) -> None:
    (store / PARTS_NAME / ".partial-0123-part-1.h5").write_bytes(b"half")
    assert verify_store(store) == []
    assert len(list(part_headers(store))) == 3


# --- listing and removing


def test_cache_list_tells_each_store_and_why_one_cannot_be_opened(store: Path) -> None:
    cache = store.parents[1]
    broken = Path(shutil.copytree(store, cache / "other" / "broken"))
    (broken / INDEX_NAME).unlink()
    (cache / "films" / "notes").mkdir()
    (cache / "a-file").touch()
    good, bad = describe_stores(cache)
    assert good == {
        "store": str(store),
        "bytes": sum(len(data) for data in contents(store).values()),
        "images": 6,
        "views": 3,
        "backbone": "golden@kind=synthetic",
        "fingerprint": open_store(store).spec.fingerprint,
        "state": "complete",
        "quarantined": 1,
    }
    assert (bad["store"], bad["images"]) == (str(broken), 0)
    assert "has parts but no features.h5" in bad["state"]
    assert [row["store"] for row in describe_stores(cache, "other")] == [str(broken)]
    assert (
        refused(lambda: describe_stores(cache, "nothing")) == f"{cache} has no stores of nothing; it holds films, other"
    )
    (store / PARTS_NAME / open_store(store).part_names[0]).unlink()
    assert "parts missing: run 'cxr extract' again" in describe_stores(cache)[0]["state"]


def test_stores_of_a_data_set_are_listed_by_name(store: Path) -> None:
    shutil.copytree(store, store.parent / "another")
    assert store_folders(store.parent) == [store.parent / "another", store]
    assert store_folders(store.parent / "missing") == []


def test_removing_a_store_tells_the_bytes_freed(store: Path) -> None:
    size = store_bytes(store)
    assert remove_store(store, store.parents[1]) == size > 0
    assert not store.exists()
    assert store.parent.exists()


def test_only_stores_below_the_cache_are_removed(store: Path, tmp_path: Path) -> None:
    cache = store.parents[1]
    outside = Path(shutil.copytree(store, tmp_path / "outside"))
    link = cache / "films" / "link"
    link.symlink_to(outside)
    no_store = cache / "films" / "photos"
    no_store.mkdir()
    for path in (outside, link, no_store, cache / "films" / ".." / ".." / "outside", cache / "missing"):
        message = refused(functools.partial(remove_store, path, cache))
        assert message == f"{path} is no feature store below {cache}; 'cxr cache list' shows those that are"
    assert contents(outside) == contents(store)


def test_the_spec_in_the_index_and_in_every_part_is_one(phantom_store: Path) -> None:
    spec = read_index(phantom_store).spec
    assert isinstance(spec, FeatureSpec)
    headers = list(part_headers(phantom_store, spec))
    assert len(headers) == 3
    assert all(isinstance(header, PartHeader) and header.spec == spec for header in headers)
    assert phantom_store.name == f"tiny_network-tiny-{spec.fingerprint[:12]}"
