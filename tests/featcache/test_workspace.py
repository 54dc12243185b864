"""From settings to data sets, backbones and stores, and what is said where one of them is missing."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from PIL import Image
from synthetic import images, write_store

from featcache.check import Scan
from featcache.errors import BackboneError, CxrError, DataError, SettingsError, StoreError
from featcache.settings import Settings
from featcache.store import open_store
from featcache.workspace import (
    compute_of,
    data_root,
    dataset_folder,
    image_table,
    load_backbones,
    open_sources,
    open_stores,
    present_table,
    scan_images,
)


def settings(**values: Any) -> Settings:
    """Settings of these values and no file."""
    return Settings(**values)


def refused(kind: type[CxrError], function: Any, *arguments: Any) -> str:
    """The one-line message that a call fails with."""
    with pytest.raises(kind) as failed:
        function(*arguments)
    assert "\n" not in str(failed.value)
    return str(failed.value)


# ---- the data set's name


def test_a_data_set_is_named_after_its_folder(tmp_path: Path) -> None:
    assert dataset_folder(settings(data=tmp_path / "chest_xray", cache=tmp_path / "c")) == tmp_path / "c" / "chest_xray"


def test_a_relative_folder_and_one_with_a_slash_give_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "films").mkdir()
    monkeypatch.chdir(tmp_path / "films")
    for spelled in (".", "../films", "../films/", str(tmp_path / "films")):
        assert dataset_folder(settings(data=Path(spelled))).name == "films"


def test_a_table_without_a_folder_stands_for_the_folder_it_lies_in(tmp_path: Path) -> None:
    by_table = settings(table=tmp_path / "films" / "images.csv")
    assert data_root(by_table) == tmp_path / "films"
    assert dataset_folder(by_table).name == "films"
    both = settings(table=tmp_path / "elsewhere" / "images.csv", data=tmp_path / "films")
    assert data_root(both) == tmp_path / "films"


def test_no_data_set_is_refused_with_every_way_to_name_one() -> None:
    message = refused(DataError, data_root, settings())
    for way in ("--data DIR", "CXR_DATA", "cxr.toml"):
        assert way in message


def test_the_only_data_set_of_the_cache_needs_no_name(tmp_path: Path) -> None:
    write_store(tmp_path / "films", images(), "one")
    write_store(tmp_path / "films", images(), "two")
    assert dataset_folder(settings(cache=tmp_path)) == tmp_path / "films"


def test_of_several_data_sets_one_must_be_named(tmp_path: Path) -> None:
    for name in ("films", "phantoms"):
        write_store(tmp_path / name, images())
    message = refused(DataError, dataset_folder, settings(cache=tmp_path))
    assert "--data DIR" in message
    assert message.endswith(f"{tmp_path} holds films, phantoms")
    assert dataset_folder(settings(cache=tmp_path, data=Path("phantoms"))) == tmp_path / "phantoms"


def test_an_empty_or_absent_cache_holds_no_data_set(tmp_path: Path) -> None:
    for cache in (tmp_path, tmp_path / "absent"):
        message = refused(DataError, dataset_folder, settings(cache=cache))
        assert message.startswith("no data set")
        assert "holds" not in message


# ---- images


def test_images_come_from_the_folder_or_from_the_table(phantoms: Path, tmp_path: Path) -> None:
    assert len(image_table(settings(data=phantoms))) == 48 + 16 + 24
    (tmp_path / "few.csv").write_text("path,label\ntrain/NORMAL/a.jpeg,NORMAL\ntrain/PNEUMONIA/b.jpeg,PNEUMONIA\n")
    assert list(image_table(settings(data=phantoms, table=tmp_path / "few.csv")).image_id) == [
        "train/NORMAL/a.jpeg",
        "train/PNEUMONIA/b.jpeg",
    ]
    assert "no such folder" in refused(DataError, image_table, settings(data=tmp_path / "absent"))


def test_a_scan_tells_images_done_and_in_all(phantoms: Path) -> None:
    told: list[tuple[int, int]] = []
    scanned = scan_images(settings(data=phantoms), on_image=lambda done, total: told.append((done, total)))
    assert told == [(done, 88) for done in range(1, 89)]
    assert all(len(digest) == 64 for digest in scanned.table.sha256)


# ---- backbones and weights


def test_backbones_come_in_the_order_asked_for() -> None:
    loaded = load_backbones(settings(backbone=["tiny_network:other", "tiny_network:tiny"]))
    assert [backbone.name for backbone in loaded] == ["tiny_network:other", "tiny_network:tiny"]


def test_one_word_of_weights_stands_for_every_backbone() -> None:
    names = ["torchvision:squeezenet1_1", "tiny_network:tiny"]
    assert [one.name for one in load_backbones(settings(backbone=names, weights=["random"]))] == names


def test_a_file_of_weights_goes_to_the_backbone_in_its_place(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from tiny_network import Tiny

    save_file(Tiny(seed=3).state_dict(), tmp_path / "third.safetensors")
    names = ["tiny_network:tiny", "tiny_network:other"]
    plain = load_backbones(settings(backbone=names))
    given = load_backbones(settings(backbone=names, weights=["pretrained", str(tmp_path / "third.safetensors")]))
    assert given[0].weights_sha256 == plain[0].weights_sha256
    assert given[1].weights_sha256 not in {one.weights_sha256 for one in plain}


@pytest.mark.parametrize(
    ("backbones", "weights"), [(2, ["a.safetensors"]), (2, ["random"] * 3), (1, ["random", "random"])]
)
def test_another_number_of_weights_than_of_backbones_is_refused(backbones: int, weights: list[str]) -> None:
    message = refused(
        SettingsError, load_backbones, settings(backbone=["tiny_network:tiny"] * backbones, weights=weights)
    )
    assert f"{backbones} backbones but {len(weights)} weights" in message
    assert "--weights for each --backbone" in message


def test_an_image_size_reaches_the_backbone() -> None:
    (backbone,) = load_backbones(settings(backbone=["tiny_network:tiny"], image_size=48))
    assert (backbone.preprocessing.image_size, backbone.preprocessing.resize_side) == (48, 48)


def test_an_unknown_backbone_is_refused_with_near_names() -> None:
    message = refused(BackboneError, load_backbones, settings(backbone=["resnet5O"], weights=["random"]))
    assert "'resnet5O'" in message
    assert "resnet50" in message


def test_how_to_compute_is_what_the_settings_say() -> None:
    compute = compute_of(
        settings(device="cpu", runtime="torch", precision="float32", extract_batch_size=5, batch_size=99)
    )
    assert (compute.device, compute.runtime, compute.precision, compute.batch_size) == ("cpu", "torch", "float32", 5)


# ---- stores


@pytest.fixture
def two_stores(tmp_path: Path) -> Settings:
    """A data set ``films`` with stores of two backbones."""
    for name in ("resnet50", "mobilenetv2_100@pad_type=same"):
        write_store(tmp_path / "films", images(), name)
    return settings(cache=tmp_path)


def test_without_a_backbone_every_store_is_opened(two_stores: Settings) -> None:
    opened = open_stores(two_stores)
    assert [store.spec.backbone for store in opened] == ["mobilenetv2_100@pad_type=same", "resnet50"]


def test_a_store_is_named_by_its_backbone_or_by_its_folder(two_stores: Settings) -> None:
    both = open_stores(two_stores)
    assert [store.path for store in open_stores(two_stores, ["resnet50"])] == [both[1].path]
    assert [store.path for store in open_stores(two_stores, [both[0].path.name])] == [both[0].path]
    assert [store.path for store in open_stores(two_stores, ["resnet50", both[1].path.name])] == [both[1].path]


def test_an_unknown_backbone_is_answered_with_the_nearest_and_with_those_there_are(two_stores: Settings) -> None:
    message = refused(StoreError, open_stores, two_stores, ["resnet5"])
    assert "no features of 'resnet5'" in message
    assert "did you mean resnet50?" in message
    assert "there are: mobilenetv2_100@pad_type=same, resnet50" in message
    assert "cxr extract --backbone resnet5" in message


def test_a_data_set_without_stores_is_answered_with_what_makes_one(tmp_path: Path) -> None:
    message = refused(StoreError, open_stores, settings(cache=tmp_path, data=tmp_path / "films"))
    assert f"no feature stores in {tmp_path / 'films'}" in message
    assert "cxr extract" in message


def test_an_unfinished_store_is_passed_over_until_it_is_named_or_alone(two_stores: Settings) -> None:
    unfinished, finished = open_stores(two_stores)
    (unfinished.path / "features.h5").unlink()
    assert [store.path for store in open_stores(two_stores)] == [finished.path]
    for name in (unfinished.path.name, "mobilenetv2_100@pad_type=same"):
        message = refused(StoreError, open_stores, two_stores, [name])
        assert f"{unfinished.path} has parts but no features.h5" in message
        assert "cxr extract" in message
    shutil.rmtree(finished.path)
    assert "has parts but no features.h5" in refused(StoreError, open_stores, two_stores)


def test_stores_joined_by_plus_are_one_source_and_two_stores(two_stores: Settings) -> None:
    first, second = open_stores(two_stores)
    names = ["resnet50+mobilenetv2_100", "resnet50", f"{first.path.name}+{second.path.name}"]
    joined, single, reverse = open_sources(two_stores, names)
    assert joined.backbone == "resnet50+mobilenetv2_100@pad_type=same"
    assert joined.fingerprint == f"{second.fingerprint}+{first.fingerprint}"
    assert (single.path, reverse.backbone) == (second.path, "mobilenetv2_100@pad_type=same+resnet50")
    assert [store.path for store in open_stores(two_stores, names)] == [second.path, first.path]


def test_a_store_whose_own_name_holds_a_plus_is_found_by_it(two_stores: Settings) -> None:
    own = write_store(two_stores.cache / "films", images(), "resnet50+mobilenetv2_100")
    assert [store.path for store in open_sources(two_stores, [own.backbone])] == [own.path]


def test_all_that_is_missing_is_named_with_one_command_that_makes_it(two_stores: Settings) -> None:
    message = refused(StoreError, open_sources, two_stores, ["vgg19", "resnet50", "vgg19+inception_v3"])
    assert "no features of 'vgg19', 'inception_v3' in" in message
    assert "run 'cxr extract --backbone vgg19 --backbone inception_v3' first" in message
    assert "lacks a name" in refused(StoreError, open_sources, two_stores, ["resnet50+"])


def test_of_several_stores_of_a_name_one_must_be_chosen_to_join(
    two_stores: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "SPEC", replace(synthetic.SPEC, image_size=64))
    larger = write_store(two_stores.cache / "films", images(), "resnet50")
    message = refused(StoreError, open_sources, two_stores, ["mobilenetv2_100+resnet50"])
    assert "2 stores are called 'resnet50'" in message
    assert larger.path.name in message
    (joined,) = open_sources(two_stores, [f"mobilenetv2_100+{larger.path.name}"])
    assert joined.fingerprint.endswith(larger.fingerprint)


# ---- the images as they are now


@pytest.fixture
def films(phantoms: Path, tmp_path: Path) -> Settings:
    """A writable copy of the phantoms, named as the data set ``phantoms``, and an empty cache."""
    shutil.copytree(phantoms, tmp_path / "phantoms")
    return settings(data=tmp_path / "phantoms", cache=tmp_path / "cache")


def test_images_that_are_here_are_hashed_again(films: Settings, phantom_store: Path, scanned_phantoms: Scan) -> None:
    table, note = present_table(films, [open_store(phantom_store)])
    assert table is not None
    assert list(table.sha256) == list(scanned_phantoms.table.sha256)
    assert note == ""


def test_a_changed_image_has_its_new_hash(films: Settings, phantom_store: Path) -> None:
    store = open_store(phantom_store)
    changed = str(store.image_table.image_id[3])
    assert films.data is not None
    Image.new("L", (64, 64), 90).save(films.data / changed)
    table, _ = present_table(films, [store])
    assert table is not None
    different = table.sha256 != store.image_table.sha256
    assert table.image_id[different].tolist() == [changed]


def test_a_new_image_is_in_the_table_and_a_removed_one_is_not(films: Settings, phantom_store: Path) -> None:
    assert films.data is not None
    removed, new = films.data / "test" / "NORMAL" / "new.jpeg", films.data / "train" / "NORMAL"
    old = sorted(new.iterdir())[0]
    old.rename(removed)
    table, _ = present_table(films, [open_store(phantom_store)])
    assert table is not None
    assert len(table) == 88
    assert "test/NORMAL/new.jpeg" in set(table.image_id)
    assert old.relative_to(films.data).as_posix() not in set(table.image_id)


@pytest.mark.parametrize("data", [None, Path("not here")])
def test_images_that_are_not_here_are_those_of_the_store(data: Path | None, phantom_store: Path) -> None:
    table, note = present_table(settings(data=data), [open_store(phantom_store)])
    assert table is None
    assert note == f"the images are not here: using the image table kept in {phantom_store}"


def test_a_folder_without_images_is_refused_though_a_store_has_them(tmp_path: Path, phantom_store: Path) -> None:
    message = refused(DataError, present_table, settings(data=tmp_path), [open_store(phantom_store)])
    assert message.startswith(f"no images in {tmp_path}")


def test_unreadable_images_are_left_out_and_counted(films: Settings, phantom_store: Path) -> None:
    assert films.data is not None
    store = open_store(phantom_store)
    broken, quarantined = (str(name) for name in store.image_table.image_id[:2])
    (films.data / broken).write_bytes(b"not an image")
    # Unreadable when it was extracted, though its header looks sound now.
    from featcache.check import Quarantined

    held = replace(store, quarantined=(Quarantined(image_id=quarantined, reason="truncated"),))
    table, note = present_table(films, [held])
    assert table is not None
    assert len(table) == 86
    assert not {broken, quarantined} & set(table.image_id)
    assert note == "2 unreadable images are left out; 'cxr data check' lists them"


def test_a_table_alone_says_which_images_there_are(films: Settings, phantom_store: Path, tmp_path: Path) -> None:
    store = open_store(phantom_store)
    names, classes = store.image_table, store.image_table.classes
    rows = [f"{name},{classes[label]}" for name, label in zip(names.image_id, names.label, strict=True)]
    assert films.data is not None
    (films.data / "images.csv").write_text("\n".join(["path,label", *rows[:10], rows[-1]]))
    table, _ = present_table(settings(table=films.data / "images.csv"), [store])
    assert table is not None
    assert len(table) == 11
    np.testing.assert_array_equal(table.sha256[:10], store.image_table.sha256[:10])
    assert os.fspath(tmp_path) not in table.image_id[0]
