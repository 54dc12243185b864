"""A bundle says what the run says, anywhere; and nothing where a byte of it has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_network
import torch
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from test_cli import cxr, done

from featcache.backbones import load_backbone
from featcache.decode import DECODER
from featcache.errors import BackboneError, BundleError, RunError
from featcache.settings import load_settings
from featcache.spec import packages_of
from heads.choosing.decision import decide
from heads.prediction.bundle import load_bundle, write_bundle
from heads.prediction.from_run import model_of_run
from heads.prediction.manifest import MANIFEST_NAME, Manifest
from heads.prediction.measured import Measured
from heads.prediction.model import Model
from heads.prediction.networks import backbones_of
from heads.prediction.predictor import Predictor
from prediction.conftest import BACKBONES, QUICK


@pytest.fixture(scope="module")
def bundled(place: Path) -> Path:
    """A folder that holds a bundle of an ensemble over both networks, weights included; read it, never write to it."""
    (name,) = [row.name for row in decide(place / "cache" / "films", rule=None, ensembles=True).rows[-1:]]
    done("bundle", "--data", "films", "--row", name, "--out", "bundles/whole", "--include-weights", cwd=place, **QUICK)
    return place / "bundles" / "whole"


@pytest.fixture
def copy(bundled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled, tmp_path / "copy"))


def judged(model: Model, place: Path) -> list[tuple[Any, ...]]:
    predictor = Predictor(model, backbones_of(model, load_settings()))
    films = sorted((place / "films" / "test").glob("*/*"))
    return [
        (one.probability, one.decision, one.verdict, None if one.logits is None else one.logits.tobytes())
        for one in predictor.stream(films)
    ]


def refused(folder: Path) -> str:
    with pytest.raises(BundleError) as told:
        load_bundle(folder, code=BACKBONES)
    assert "\n" not in str(told.value)
    return str(told.value)


def rewritten(folder: Path, **changes: Any) -> None:
    """The same bundle with another manifest, every hash made anew: what an attacker would do."""
    manifest = Manifest.from_bytes((folder / MANIFEST_NAME).read_bytes(), "")
    files = {name: _digest(folder / name) for name in manifest.files if (folder / name).is_file()}
    (folder / MANIFEST_NAME).write_bytes(replace(manifest, files=files, **changes).to_bytes())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- it says the same


def test_a_bundles_answers_are_the_runs_bit_for_bit(place: Path, bundled: Path) -> None:
    dataset = place / "cache" / "films"
    row = decide(dataset, rule=None, ensembles=True).rows[-1]
    of_run = model_of_run(dataset, row=row.name, rule=None, root=place / "films")
    of_bundle = load_bundle(bundled, code=BACKBONES)
    assert judged(of_bundle, place) == judged(of_run, place)
    assert (of_bundle.name, of_bundle.classes, of_bundle.choices) == (of_run.name, of_run.classes, of_run.choices)
    assert of_bundle.fingerprint == of_run.fingerprint


def test_predict_by_bundle_needs_no_store_and_no_data_set(place: Path, bundled: Path, tmp_path: Path) -> None:
    shutil.copytree(bundled, tmp_path / "model")
    film = next((place / "films" / "test").glob("*/*"))
    flags = ("--backbone", BACKBONES[0], "--backbone", BACKBONES[1])
    said = done("predict", film, "--bundle", "model", *flags, "--json", cwd=tmp_path)
    name = load_bundle(bundled, code=BACKBONES).name
    by_run = done("predict", film, "--data", "films", "--row", name, "--json", cwd=place)
    assert said.json == by_run.json
    assert "(bundle " in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_weights_that_the_bundle_lacks_are_had_from_where_they_were_and_must_be_the_same(
    place: Path, tmp_path: Path
) -> None:
    done("bundle", "--data", "films", "--head", "0", "--out", tmp_path / "model", cwd=place, **QUICK)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "bundle.json",
        "distance.safetensors",
        "heads.safetensors",
    ]
    model = load_bundle(tmp_path / "model", code=BACKBONES)
    assert judged(model, place) == judged(model_of_run(place / "cache" / "films", head=0, root=place / "films"), place)
    film = next((place / "films" / "test").glob("*/*"))
    flags = ("predict", film, "--bundle", tmp_path / "model", "--backbone", BACKBONES[0])
    wrong = tmp_path / "wrong.pth"
    torch.save(tiny_network.other().state_dict(), wrong)
    assert "name the weights that made it with --weights FILE" in cxr(*flags, "--weights", wrong, cwd=tmp_path).error


def test_a_network_of_a_library_comes_with_its_own_preprocessing(phantoms: Path, tmp_path: Path) -> None:
    quick = {**QUICK, "CXR_IMAGE_SIZE": "64"}
    flags = ("--data", phantoms)
    done("extract", *flags, "--backbone", "torchvision:squeezenet1_1", "--weights", "random", cwd=tmp_path, **quick)
    done("fit-head", *flags, "--hidden", "0", "--epochs", "2", cwd=tmp_path, **QUICK)
    given = ("--weights", "random", "--include-weights")
    done("bundle", *flags, *given, "--out", "model", cwd=tmp_path, **QUICK)
    film = next((phantoms / "test").glob("*/*"))
    said = done("predict", film, "--bundle", "model", "--json", cwd=tmp_path)
    assert said.json == done("predict", film, *flags, "--weights", "random", "--json", cwd=tmp_path).json


# ---- what was tampered with is refused


def test_any_byte_of_the_manifest_counts(copy: Path) -> None:
    path = copy / MANIFEST_NAME
    content = path.read_bytes()
    load_bundle(copy, code=BACKBONES)
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        refused(copy)
    for changed in (content + b"\n", content[:-1], b" " + content, content.replace(b": ", b":")):
        path.write_bytes(changed)
        assert "is damaged or was tampered with" in refused(copy)


@given(data=st.data())
def test_any_byte_of_any_file_counts(bundled: Path, data: st.DataObject, tmp_path_factory: Any) -> None:
    copy = Path(shutil.copytree(bundled, tmp_path_factory.mktemp("tampered") / "copy"))
    path = copy / data.draw(st.sampled_from(sorted(path.name for path in copy.iterdir())))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert path.name in refused(copy)


TAMPERED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file more": (lambda f: (f / "extra.txt").touch(), "nothing else, not so of extra.txt"),
    "a hidden file more": (lambda f: (f / ".hidden").touch(), "not so of .hidden"),
    "a folder more": (lambda f: (f / "deep").mkdir(), "not so of deep"),
    "a file less": (lambda f: (f / "heads.safetensors").unlink(), "not so of heads.safetensors"),
    "no manifest": (lambda f: (f / MANIFEST_NAME).unlink(), "no bundle in"),
    "a link": (lambda f: linked(f / "README.md"), "it is no plain file"),
    "a link for weights": (lambda f: linked(f / "weights-0.safetensors"), "it is no plain file"),
    "a pipe": (lambda f: piped(f / "README.md"), "it is no plain file"),
    "a manifest of another format": (lambda f: edited(f, format_version=2), "has format 2, this cxr reads 1"),
    "a manifest that is no object": (lambda f: (f / MANIFEST_NAME).write_text("[]"), "is damaged"),
    "a manifest too deep": (lambda f: (f / MANIFEST_NAME).write_text("[" * 100_000), "is damaged"),
    "a manifest too large": (lambda f: (f / MANIFEST_NAME).write_bytes(bytes(2**22 + 1)), "more than"),
    "a card too large": (lambda f: (f / "README.md").write_bytes(bytes(2**22 + 1)), "more than"),
}


def linked(path: Path) -> None:
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def edited(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("case", TAMPERED)
def test_what_was_added_taken_or_replaced_is_told(copy: Path, case: str) -> None:
    tamper, words = TAMPERED[case]
    tamper(copy)
    assert words in refused(copy)


def with_files(folder: Path, name: str) -> None:
    """A manifest that names a file outside the folder."""
    (folder.parent / "outside").write_text("x")
    manifest = Manifest.from_bytes((folder / MANIFEST_NAME).read_bytes(), "")
    files = {**manifest.files, name: _digest(folder.parent / "outside")}
    (folder / MANIFEST_NAME).write_bytes(replace(manifest, files=files).to_bytes())


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/x", "weights-0.safetensors/../../outside", ""])
def test_a_path_that_leaves_the_folder_is_refused_though_its_hash_is_right(copy: Path, name: str) -> None:
    with_files(copy, name)
    assert "its files" in refused(copy)


def test_numbers_and_names_that_cannot_be_are_refused_though_every_hash_is_right(copy: Path) -> None:
    manifest = Manifest.from_bytes((copy / MANIFEST_NAME).read_bytes(), "")
    source, member, clean = manifest.sources[0], manifest.members[0], manifest.choices["clean"]
    point = clean.operating_points[0]

    def wrong(words: str, **changes: Any) -> None:
        (copy / MANIFEST_NAME).write_bytes(replace(manifest, **changes).to_bytes())
        assert words in refused(copy), changes

    def with_choice(**changes: Any) -> dict[str, Any]:
        return {"view_mean": manifest.choices["view_mean"], "clean": replace(clean, **changes)}

    wrong("its classes", classes=("NORMAL",))
    wrong("its classes", classes=("NORMAL", "NORMAL"))
    wrong("its classes", positive=2)
    wrong("its views", views=0)
    wrong("its members", members=())
    wrong("its members", members=(replace(member, sources=(5,)),))
    wrong("its members", members=(replace(member, scale={"clean": 0.0, "view_mean": 1.0}),))
    wrong("its members", members=(replace(member, scale={"clean": 1.0}),))
    wrong("its choices", choices=with_choice(temperature=0.0))
    wrong("its choices", choices=with_choice(temperature=float("inf")))
    wrong("its choices", choices=with_choice(operating_points=(replace(point, threshold=float("nan")),)))
    wrong("its choices", choices={"clean": clean})
    measured = manifest.measured
    assert measured is not None
    figure = measured.figures["clean"][0]

    def with_figure(**changes: Any) -> Measured:
        return replace(measured, figures={**measured.figures, "clean": (replace(figure, **changes),)})

    for changed in (
        with_figure(value=1.5),
        with_figure(low=-0.1),
        with_figure(high=float("nan")),
        with_figure(name="wonder"),
        replace(measured, patients=0),
        replace(measured, patients=measured.n + 1),
        replace(measured, flagged=2.0),
        replace(measured, figures={"clean": (figure,)}),
    ):
        wrong("its figures", measured=changed)
    spec = source.parsed
    for parsed in (
        replace(spec, image_size=10**6),
        replace(spec, resize_side=10**9),
        replace(spec, decode_floor=0),
    ):
        entry = replace(source, spec=json.loads(parsed.to_json()), fingerprint=parsed.fingerprint)
        wrong("its sources", sources=(entry, *manifest.sources[1:]))
    wrong("its sources", sources=(replace(source, fingerprint="0" * 64), *manifest.sources[1:]))
    wrong("spec", sources=(replace(source, spec={}), *manifest.sources[1:]))


def test_heads_that_are_no_heads_are_refused_though_every_hash_is_right(copy: Path) -> None:
    path = copy / "heads.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("/kernel"))
    spoiled = {
        "finite": {**tensors, name: np.full_like(tensors[name], np.nan)},
        "float32": {**tensors, name: tensors[name].astype(np.float64)},
        "more than its heads": {**tensors, "9/9/kernel": tensors[name]},
        "wanted": {other: array for other, array in tensors.items() if other != name},
    }
    for words, content in spoiled.items():
        save_file(content, path)
        rewritten(copy)
        assert words in refused(copy)
    # A header that claims more than there is, or than fits any memory.
    for claimed in (2**63, 2**40, 10**8 + 1, 300):
        path.write_bytes(claimed.to_bytes(8, "little") + b"{}")
        rewritten(copy)
        assert "is no safetensors file" in refused(copy)
    header = json.dumps({"0/0/kernel": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    rewritten(copy)
    assert "is no safetensors file" in refused(copy)


def test_distances_that_fit_no_network_are_refused(place: Path, copy: Path) -> None:
    path = copy / "distance.safetensors"
    arrays = load_file(path)
    save_file({**arrays, "units": -arrays["units"]}, path)
    rewritten(copy)
    assert "the distance reference is damaged" in refused(copy)
    short = {**arrays, "centre": arrays["centre"][:-1], "axes": np.ascontiguousarray(arrays["axes"][:-1])}
    save_file(short, path)
    rewritten(copy)
    model = load_bundle(copy, code=BACKBONES)
    with pytest.raises(RunError, match="its heads do not take its networks' features"):
        judged(model, place)


def test_a_bundle_chooses_no_code_and_no_file_of_ours(bundled: Path, copy: Path) -> None:
    with pytest.raises(BundleError, match=r"is code that would be run here: say --backbone tiny_network:"):
        load_bundle(bundled)
    manifest = Manifest.from_bytes((copy / MANIFEST_NAME).read_bytes(), "")
    for name in (
        "resnet18@checkpoint_path=/tmp/x",
        "resnet18@pretrained=true",
        "resnet18@pad_type=same@cache_dir=/",
        "resnet18@num_classes=10000000",
    ):
        parsed = replace(manifest.sources[0].parsed, backbone=name)
        entry = replace(manifest.sources[0], spec=json.loads(parsed.to_json()), fingerprint=parsed.fingerprint)
        (copy / MANIFEST_NAME).write_bytes(replace(manifest, sources=(entry, *manifest.sources[1:])).to_bytes())
        assert "wants a network with the option" in refused(copy)
        assert load_bundle(copy, code=(*BACKBONES, name)).sources[0].spec.backbone == name
    allowed = replace(manifest.sources[0].parsed, backbone="resnet18@pad_type=same")
    entry = replace(manifest.sources[0], spec=json.loads(allowed.to_json()), fingerprint=allowed.fingerprint)
    (copy / MANIFEST_NAME).write_bytes(replace(manifest, sources=(entry, *manifest.sources[1:])).to_bytes())
    assert load_bundle(copy, code=BACKBONES).sources[0].spec == allowed


@pytest.mark.parametrize("odd", ["\x1b[2J", "a\nb", "\u202eolleh", "\x9b31m", "x" * 200_000])
def test_words_that_would_rule_a_terminal_are_refused_though_every_hash_is_right(copy: Path, odd: str) -> None:
    manifest = Manifest.from_bytes((copy / MANIFEST_NAME).read_bytes(), "")
    clean = manifest.choices["clean"]
    point = replace(clean.operating_points[0], rule=odd)
    measured = manifest.measured
    assert measured is not None
    told = {**measured.figures, "clean": (replace(measured.figures["clean"][0], rule=odd),)}
    changes: list[dict[str, Any]] = [
        {"measured": replace(measured, figures=told)},
        {"name": odd},
        {"dataset": odd},
        {"classes": ("NORMAL", odd)},
        {"provenance": {"run": odd}},
        {"provenance": {odd: "run"}},
        {"choices": {**manifest.choices, "clean": replace(clean, operating_points=(point,))}},
    ]
    for change in changes:
        (copy / MANIFEST_NAME).write_bytes(replace(manifest, **change).to_bytes())
        assert "its words" in refused(copy)
    edited(copy, **{odd: 1})
    said = refused(copy)
    assert said.isprintable()
    assert len(said) < 1000


def test_a_model_whose_bundle_could_not_be_read_again_is_not_bundled(place: Path, tmp_path: Path) -> None:
    model = replace(model_of_run(place / "cache" / "films", head=0), classes=("NORMAL", "\x1b[2J"))
    with pytest.raises(BundleError, match=r"cannot be bundled, for it could not be read again \(its words\)"):
        write_bundle(tmp_path / "model", model, "card")
    # Spaces of any width and letters of any script are words.
    fine = replace(model, classes=("gew\u00f6hnlich", "\u80ba\u3000\u708e\u00a0"))
    write_bundle(tmp_path / "model", fine, "card")
    assert load_bundle(tmp_path / "model", code=BACKBONES).classes == fine.classes


# ---- how it is written


def test_a_bundle_is_whole_or_absent_and_replaces_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of_run(place / "cache" / "films", head=0)
    (tmp_path / "there").mkdir()
    refused_by = cxr("bundle", "--data", "films", "--head", "0", "--out", tmp_path / "there", cwd=place, **QUICK)
    assert "File exists" in refused_by.error
    written = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == MANIFEST_NAME:
            raise OSError(28, "No space left on device")
        return written(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Exception, match="No space left"):
        write_bundle(tmp_path / "model", model, "card")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_same_model_is_the_same_bundle(place: Path, tmp_path: Path) -> None:
    model = model_of_run(place / "cache" / "films", head=0)
    first, second = (write_bundle(tmp_path / name, model, "card") for name in ("a", "b"))
    assert first == second == load_bundle(tmp_path / "a", code=BACKBONES).bundle
    assert write_bundle(tmp_path / "c", model, "another card") != first


def test_weights_of_another_network_go_with_no_bundle(place: Path, tmp_path: Path) -> None:
    model = model_of_run(place / "cache" / "films", head=0)
    with pytest.raises(ValueError, match="are not those of the model's spec"):
        write_bundle(tmp_path / "model", model, "card", [load_backbone(BACKBONES[1])])


# ---- the card


def test_the_card_of_a_head_that_was_named_does_not_say_that_val_chose_it(place: Path, tmp_path: Path) -> None:
    row = decide(place / "cache" / "films", ensembles=True).rows[-1].name
    for number, flags in enumerate((("--head", "0"), ("--row", row))):
        done("bundle", "--data", "films", *flags, "--out", tmp_path / str(number), cwd=place, **QUICK)
        text = (tmp_path / str(number) / "README.md").read_text()
        assert "The head was named by hand; whether test had a say in that is not known." in text
        assert "Val chose the head" not in text


def test_a_bundle_decides_by_the_rule_that_it_was_made_with(place: Path, tmp_path: Path) -> None:
    film = next((place / "films" / "test").glob("*/*"))
    own = ("--backbone", BACKBONES[0])
    for rule in ("sensitivity>=0.95", "f1", "0.5"):
        folder = tmp_path / rule
        asked = ("--data", "films", "--head", "0", "--operating-point", rule)
        done("bundle", *asked, "--out", folder, cwd=place, **QUICK)
        by_run = done("predict", film, *asked, "--json", cwd=place, **QUICK).json
        by_bundle = done("predict", film, "--bundle", folder, *own, "--json", cwd=tmp_path).json
        assert by_bundle == by_run
        assert by_bundle[0]["operating_point"] == rule
        # The others are there too.
        asked_of_bundle = ("--bundle", folder, *own, "--operating-point", "youden")
        assert done("predict", film, *asked_of_bundle, "--json", cwd=tmp_path).json[0]["operating_point"] == "youden"
    wrong = ("--data", "films", "--operating-point", "best", "--out", tmp_path / "none")
    assert "no rule 'best'" in cxr("bundle", *wrong, cwd=place, **QUICK).line_of_exit(2)


def test_a_bundle_of_another_decoder_says_which_packages_it_wants(
    place: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.decode.DECODER", "simplejpeg-9 pillow-99")
    with pytest.raises(BackboneError, match=r"another decoder .*: pip install ") as told:
        judged(load_bundle(copy, code=BACKBONES), place)
    assert str(told.value).endswith(f"pip install {packages_of(DECODER)}")
    assert packages_of("simplejpeg-1 pillow-13 dicom-1 pydicom-3 libjpeg_turbo-3") == (
        "'simplejpeg==1.*' 'pillow==13.*' 'pydicom==3.*'"
    )
    assert packages_of("simplejpeg-1'; ls pillow-13$(ls) pydicom-3") == "'pydicom==3.*'"


def test_the_card_is_one_that_the_hub_reads_and_its_figures_are_the_reports(place: Path, tmp_path: Path) -> None:
    flags = ("--license", "cc-by-4.0", "--out", tmp_path / "model")
    said = done("bundle", "--data", "films", *flags, "--json", cwd=place, **QUICK).json
    text = (tmp_path / "model" / "README.md").read_text()
    card = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]  # it says nothing of its types
    assert card["license"] == "cc-by-4.0"
    assert card["model-index"][0]["name"] == said["name"]
    rows = done("report", "--data", "films", "--json", cwd=place).json["rows"]
    (row,) = [row for row in rows if row["selected"]]
    values = {one["type"]: one["value"] for one in card["model-index"][0]["results"][0]["metrics"]}
    for ours, theirs in (("accuracy", "accuracy"), ("auc", "roc_auc"), ("sensitivity", "recall"), ("f1", "f1")):
        figure = row["test"][ours]
        assert values[theirs] == pytest.approx(figure["value"], abs=1e-4)
        assert f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})" in text
    for words in ("Not a medical device", "## Intended use", "## Out of scope", "## Limits", "## When not to trust"):
        assert words in text
    assert "Of the test images it flags " in text
    assert "Val chose the head, its temperature" in text
    assert "only drawn\nlegs were tried" in text
    assert f"`pip install {packages_of(DECODER)}`" in text
    assert said["fingerprint"] in text
    model = load_bundle(tmp_path / "model", code=BACKBONES)
    assert said["sha256"] == model.bundle
    assert model.measured is not None
    (auc,) = [one for one in model.measured.figures["clean"] if one.name == "auc"]
    assert asdict(auc) == {
        "name": "auc",
        "rule": "",
        **{end: row["test"]["auc"][end] for end in ("value", "low", "high")},
    }
    for point in model.choices["clean"].operating_points.values():
        assert f"| {point.rule} | {point.threshold:.3f} |" in text
    assert asdict(model.choices["clean"])["temperature"] == pytest.approx(row["temperature"])
