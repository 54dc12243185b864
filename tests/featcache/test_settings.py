"""Settings: one precedence, one set of names, and messages that name key, source and way out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import SettingsError
from featcache.settings import CONFIG_NAME, STUDY_NAMES, Settings, example_toml, load_settings


@pytest.fixture(autouse=True)
def _empty_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cxr.toml but the test's own."""
    monkeypatch.chdir(tmp_path)


def settings(**values: Any) -> Settings:
    """Settings of these values and no file."""
    return Settings(**values)


def complaint(flags: dict[str, Any] | None = None, config: Path | None = None) -> str:
    """The one-line message that these settings are refused with."""
    with pytest.raises(SettingsError) as refused:
        load_settings(flags, config)
    message = str(refused.value)
    assert "\n" not in message
    return message


# ---- precedence


@pytest.mark.parametrize(
    ("key", "default", "in_file", "variable", "flag", "values"),
    [
        ("image_size", None, "128", "160", 192, (128, 160, 192)),
        ("epochs", 50, "5", "6", 7, (5, 6, 7)),
        ("strict", False, "true", "false", True, (True, False, True)),
        ("split", "patient", '"paper"', "folders", "patient", ("paper", "folders", "patient")),
        ("data", None, '"a"', "b", Path("c"), (Path("a"), Path("b"), Path("c"))),
        ("positive", None, '"A"', "B", "C", ("A", "B", "C")),
        ("backbone", ["resnet50"], '["a", "b"]', "c, d", ["e"], (["a", "b"], ["c", "d"], ["e"])),
        ("l2", [1e-4], "[0, 1e-2]", "0.5", [0.25], ([0.0, 1e-2], [0.5], [0.25])),
        ("hidden", [256], "64", "0,32", [16], ([64], [0, 32], [16])),
    ],
)
def test_flags_override_variables_which_override_the_file(
    key: str, default: object, in_file: str, variable: str, flag: object, values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert getattr(load_settings(), key) == default
    Path(CONFIG_NAME).write_text(f"{key} = {in_file}\n")
    assert getattr(load_settings(), key) == values[0]
    monkeypatch.setenv(f"CXR_{key.upper()}", variable)
    assert getattr(load_settings(), key) == values[1]
    assert getattr(load_settings({key: flag}), key) == values[2]


def test_each_key_takes_its_own_highest_source(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(CONFIG_NAME).write_text("epochs = 5\nseeds = 2\nviews = 4\n")
    monkeypatch.setenv("CXR_SEEDS", "3")
    loaded = load_settings({"views": 8})
    assert (loaded.epochs, loaded.seeds, loaded.views, loaded.patience) == (5, 3, 8, 10)


def test_a_flag_that_was_not_given_hides_nothing() -> None:
    Path(CONFIG_NAME).write_text('epochs = 5\nbackbone = ["a"]\nstrict = true\n')
    loaded = load_settings({"epochs": None, "backbone": [], "strict": None})
    assert (loaded.epochs, loaded.backbone, loaded.strict) == (5, ["a"], True)


def test_what_was_asked_for_is_told_from_what_is_default(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(CONFIG_NAME).write_text("views = 1\n")
    monkeypatch.setenv("CXR_SEEDS", "1")
    assert load_settings({"epochs": 50}).model_fields_set == {"views", "seeds", "epochs"}


def test_a_named_file_is_read_instead_of_the_working_folders(tmp_path: Path) -> None:
    Path(CONFIG_NAME).write_text("epochs = 5\n")
    other = tmp_path / "other.toml"
    other.write_text("seeds = 2\n")
    loaded = load_settings(config=other)
    assert (loaded.epochs, loaded.seeds) == (50, 2)


# ---- lists


def test_lists_come_from_commas_in_a_variable_and_from_scalars_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(CONFIG_NAME).write_text('hidden = 32\nl2 = 1e-2\nbackbone = "vgg19"\n')
    monkeypatch.setenv("CXR_LEARNING_RATE", " 1e-3 ,1e-4, ")
    monkeypatch.setenv("CXR_WEIGHTS", "a.pth,random")
    loaded = load_settings()
    assert (loaded.hidden, loaded.l2, loaded.backbone) == ([32], [1e-2], ["vgg19"])
    assert (loaded.learning_rate, loaded.weights) == ([1e-3, 1e-4], ["a.pth", "random"])


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("DATA", "EPOCHS", "L2"):
        monkeypatch.setenv(f"CXR_{key}", "")
    assert load_settings() == settings()


# ---- what is refused


def test_an_unknown_key_is_refused_with_file_and_nearest_name() -> None:
    Path(CONFIG_NAME).write_text("image_sise = 224\n")
    message = complaint()
    assert "cxr.toml" in message
    assert "'image_sise'" in message
    assert message.endswith("did you mean image_size?")


def test_an_unknown_variable_is_refused_with_the_nearest_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_EPOCH", "3")
    message = complaint()
    assert "CXR_EPOCH" in message
    assert message.endswith("did you mean CXR_EPOCHS?")


def test_a_key_near_to_nothing_is_refused_without_a_guess() -> None:
    Path(CONFIG_NAME).write_text("zzz = 1\n")
    message = complaint()
    assert "'zzz'" in message
    assert "did you mean" not in message


def test_a_table_in_the_file_is_an_unknown_key() -> None:
    Path(CONFIG_NAME).write_text("[heads]\nepochs = 3\n")
    assert "unknown key 'heads'" in complaint()


@pytest.mark.parametrize(
    ("study", "ours"), [("model_backbone", "backbone"), ("data_paths", "data"), ("lr", "learning_rate")]
)
def test_the_studys_names_are_answered_with_ours(study: str, ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(CONFIG_NAME).write_text(f'{study.upper()} = "x"\n'.lower())
    message = complaint()
    assert f"'{study}'" in message
    assert re.search(rf"\b{ours}\b", message)
    Path(CONFIG_NAME).unlink()
    monkeypatch.setenv(f"CXR_{study.upper()}", "x")
    message = complaint()
    assert f"CXR_{study.upper()}:" in message
    assert f"CXR_{ours.upper()}" in message


@pytest.mark.parametrize("name", ["MODEL_BACKBONE", "DATA_PATHS", "LR", "IMAGE_SIZE", "EPOCHS"])
def test_the_studys_capitals_in_the_file_are_answered_with_ours(name: str) -> None:
    Path(CONFIG_NAME).write_text(f"{name} = 1\n")
    message = complaint()
    assert f"'{name}'" in message
    assert re.search(rf"\b{STUDY_NAMES.get(name.lower(), name.lower())}\b", message)


def test_what_the_study_called_it_is_a_setting_here() -> None:
    assert set(STUDY_NAMES.values()) <= Settings.model_fields.keys()
    assert not STUDY_NAMES.keys() & Settings.model_fields.keys()


@pytest.mark.parametrize(
    ("key", "bad", "wanted"),
    [
        ("epochs", "many", "integer"),
        ("epochs", "0", "greater than or equal to 1"),
        ("image_size", "8", "greater than or equal to 16"),
        ("strict", "perhaps", "boolean"),
        ("l2", "a bit", "number"),
        ("split", "patients", "'patient', 'paper' or 'folders'"),
        ("class_weights", "equal", "'balanced' or 'none'"),
        ("runtime", "tensorflow", "'openvino'"),
    ],
)
def test_a_bad_value_is_refused_by_key_source_value_and_what_was_wanted(
    key: str, bad: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(CONFIG_NAME).write_text(f'{key} = "{bad}"\n')
    in_file = complaint()
    assert f"cxr.toml: {key}" in in_file
    Path(CONFIG_NAME).unlink()
    monkeypatch.setenv(f"CXR_{key.upper()}", bad)
    in_variable = complaint()
    assert f"CXR_{key.upper()}" in in_variable
    by_flag = complaint({key: bad})
    assert f"--{key.replace('_', '-')}" in by_flag
    for message in (in_file, in_variable, by_flag):
        assert f"'{bad}'" in message
        assert wanted in message


def test_a_bad_value_below_a_good_one_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(CONFIG_NAME).write_text('epochs = "many"\n')
    monkeypatch.setenv("CXR_EPOCHS", "4")
    assert load_settings().epochs == 4


def test_a_file_that_is_not_toml_is_refused_by_name_and_line() -> None:
    Path(CONFIG_NAME).write_text("epochs = 3\nseeds = = 2\n")
    message = complaint()
    assert message.startswith("cxr.toml is not TOML")
    assert "line 2" in message


def test_a_file_that_is_not_text_is_refused_by_name() -> None:
    Path(CONFIG_NAME).write_bytes(b"positive = '\xff\xfe'\n")
    assert complaint().startswith("cxr.toml is not TOML")


def test_a_named_file_that_is_not_there_is_refused_with_what_writes_one(tmp_path: Path) -> None:
    message = complaint(config=tmp_path / "absent.toml")
    assert "absent.toml" in message
    assert "cxr init" in message


# ---- the written example


def assignments(text: str) -> dict[str, Any]:
    """Key and value of each line ``key = value``, commented out or not."""
    lines = re.findall(r"^(?:# )?([a-z_0-9]+ = \S.*)$", text, flags=re.MULTILINE)
    return tomllib.loads("\n".join(lines))


def test_the_example_names_every_setting_with_its_comment_and_default() -> None:
    text = example_toml()
    written = assignments(text)
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"# {field.description}\n" in text
        assert re.search(rf"^(# )?{name} =", text, flags=re.MULTILINE)
        default = str(field.default) if isinstance(field.default, Path) else field.default
        assert written.get(name) == default
    assert settings(**written) == settings()


def test_the_example_as_written_is_valid_and_means_the_defaults() -> None:
    Path(CONFIG_NAME).write_text(example_toml(), encoding="utf-8")
    assert load_settings() == settings()


def test_the_example_with_values_is_read_back_to_them() -> None:
    given_values = {
        "data": Path("some folder/chest_xray"),
        "epochs": 7,
        "l2": [0.0, 1e-5],
        "strict": True,
        "table": None,
    }
    Path(CONFIG_NAME).write_text(example_toml(given_values), encoding="utf-8")
    assert load_settings() == settings(data=Path("some folder/chest_xray"), epochs=7, l2=[0.0, 1e-5], strict=True)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_folder_name_survives_the_example(name: str) -> None:
    assert tomllib.loads(example_toml({"positive": name}))["positive"] == name


# ---- import


def test_nothing_is_read_or_made_at_import(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_text("this is not TOML")
    program = "import featcache.settings as s; print(s.Settings.model_fields['epochs'].default)"
    environment = {**os.environ, "CXR_NO_SUCH_SETTING": "1", "CXR_EPOCHS": "x"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "50\n"
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG_NAME]
