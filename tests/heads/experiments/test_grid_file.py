"""Grid files: what they declare is the product of their axes, and what is wrong in them is named."""

from __future__ import annotations

import itertools
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import images, write_store

from featcache.errors import SettingsError, StoreError, UsageError
from featcache.settings import Settings
from heads.experiments.grid_file import SETTING_OF, declared_grid, parse_grid, preset_file
from heads.experiments.grids import DeclaredGrid, bounded
from heads.training.config import ClassWeights, HeadConfig, grid


def settings(**values: Any) -> Settings:
    """Settings of these values and no file."""
    return Settings(**values)


def parsed(text: str, flags: dict[str, Any] | None = None, **others: Any) -> DeclaredGrid:
    """The grid that a text declares, beside these settings."""
    return parse_grid(text, "grid.toml", settings(**others), flags or {})


def refused(text: str, flags: dict[str, Any] | None = None, **others: Any) -> str:
    """The one-line message that a text is refused with."""
    with pytest.raises(SettingsError) as failed:
        parsed(text, flags, **others)
    assert "\n" not in str(failed.value)
    return str(failed.value)


# ---- what a file declares


def test_a_table_declares_the_product_of_its_axes() -> None:
    (table,) = parsed("""
        [[head]]
        backbone = ["resnet50", "vgg19"]
        hidden = [0, 64]
        l2 = [0, 1e-4]
        lr = 3e-3
        epochs = [5, 9]
        patience = 4
        batch_size = [32, 64]
        class_weights = ["balanced", "none"]
        view_policy = "clean"
        views = [1, 4]
        seeds = 2
    """).tables
    assert (table.backbones, table.views) == (("resnet50", "vgg19"), (1, 4))
    by_hand = [
        grid(hidden=[0, 64], l2=[0.0, 1e-4], lr=[3e-3], seeds=[0, 1], epochs=epochs, patience=4, batch_size=batch_size,
             class_weights=weights, view_policy="clean")
        for epochs, batch_size, weights in itertools.product((5, 9), (32, 64), get_args(ClassWeights))
    ]  # fmt: skip
    assert set(table.configs) == {config for one in by_hand for config in one}
    assert len(table.configs) == 2 * 2 * 2 * 2 * 2 * 2
    assert all(isinstance(config.l2, float) for config in table.configs)


def test_what_a_table_leaves_unsaid_is_as_the_settings_have_it() -> None:
    values: dict[str, Any] = {"hidden": [0, 8], "l2": [0.5], "learning_rate": [1e-2], "epochs": 7, "patience": 3}
    values |= {"batch_size": 32, "class_weights": "none", "view_policy": "clean", "seeds": 2, "views": 3}
    said, unsaid = parsed("[[head]]\nl2 = 0.25\n[[head]]", **values).tables
    fixed: dict[str, Any] = {"epochs": 7, "patience": 3, "batch_size": 32, "class_weights": "none"}
    wanted = grid(hidden=[0, 8], l2=[0.5], lr=[1e-2], seeds=[0, 1], view_policy="clean", **fixed)
    assert (unsaid.configs, unsaid.views, unsaid.backbones) == (wanted, (3,), ())
    assert {config.l2 for config in said.configs} == {0.25}
    assert parsed("[[head]]").tables[0].views == (None,)


def test_every_field_of_a_head_can_be_an_axis() -> None:
    # The shuffle window follows from the memory.
    assert set(SETTING_OF) == {field.name for field in fields(HeadConfig)} - {"window"}
    assert set(SETTING_OF.values()) <= Settings.model_fields.keys()


def test_seeds_are_counted_or_listed() -> None:
    counted, listed, one = parsed("[[head]]\nseeds = 3\n[[head]]\nseeds = [4, 9, 4]\n[[head]]\nseeds = [2]").tables
    assert [config.seed for config in counted.configs] == [0, 1, 2]
    assert [config.seed for config in listed.configs] == [4, 9]
    assert [config.seed for config in one.configs] == [2]


def test_the_whole_is_said_at_the_top_and_else_by_the_settings() -> None:
    at_the_top = parsed('split = "paper"\nsplit_seed = 3\npositive = "NORMAL"\n[[head]]', split="folders").settings
    assert (at_the_top.split, at_the_top.split_seed, at_the_top.positive) == ("paper", 3, "NORMAL")
    by_settings = parsed("[[head]]", split="folders", split_seed=5).settings
    assert (by_settings.split, by_settings.split_seed, by_settings.positive) == ("folders", 5, None)


# ---- over stores


def test_heads_that_two_tables_declare_are_fitted_once(tmp_path: Path) -> None:
    for name, views in (("resnet50", 2), ("vgg19", 1)):
        write_store(tmp_path, images(), name, views=views)
    declared = parsed("""
        [[head]]
        backbone = ["resnet50", "resnet50+vgg19"]
        l2 = [0, 1e-4]
        [[head]]
        l2 = [1e-4, 1e-2]
        [[head]]
        backbone = "resnet50"
        views = [1, 2]
        l2 = 0
    """)
    found = {(one.source.backbone, one.views): [config.l2 for config in one.configs] for one in declared.over(tmp_path)}
    assert found == {
        ("resnet50", 2): [0, 1e-4, 1e-2],
        ("resnet50+vgg19", 1): [0, 1e-4],
        ("vgg19", 1): [1e-4, 1e-2],
        ("resnet50", 1): [0],
    }


def test_missing_stores_are_named_together_with_what_makes_them(tmp_path: Path) -> None:
    write_store(tmp_path, images(), "resnet50")
    with pytest.raises(StoreError) as failed:
        declared_grid(None, "paper", settings(), {}).over(tmp_path)
    assert "no features of 'inception_v3', 'vgg19', 'efficientnet_b4' in" in str(failed.value)
    wanted = "cxr extract --backbone inception_v3 --backbone vgg19 --backbone efficientnet_b4"
    assert f"run '{wanted}' first" in str(failed.value)


# ---- the preset


def test_the_paper_has_six_rows_of_three_seeds(tmp_path: Path) -> None:
    for name in ("inception_v3", "vgg19", "efficientnet_b4", "resnet50"):
        write_store(tmp_path, images(), name)
    grids = declared_grid(None, "paper", settings(l2=[7], seeds=9, epochs=4), {}).over(tmp_path)
    heads = [(one.source.backbone, config) for one in grids for config in one.configs]
    rows = {(backbone, config.l2) for backbone, config in heads}
    assert rows == {(name, 0) for name in ("inception_v3", "vgg19", "efficientnet_b4", "resnet50")} | {
        (name, 1e-4) for name in ("efficientnet_b4", "resnet50")
    }
    assert len(heads) == 6 * 3
    assert {config.epochs for _, config in heads} == {4}


def test_the_presets_penalty_and_seeds_are_those_of_the_flags() -> None:
    plain, penalised = declared_grid(None, "paper", settings(), {"l2": [1e-3, 1e-5], "seeds": 5}).tables
    assert {config.l2 for config in penalised.configs} == {1e-3, 1e-5}
    assert {config.l2 for config in plain.configs} == {0}
    assert {config.seed for config in (*plain.configs, *penalised.configs)} == set(range(5))
    with pytest.raises(UsageError, match="--backbone would change nothing: the preset says backbone"):
        declared_grid(None, "paper", settings(), {"backbone": ["vgg16"]})


def test_the_presets_file_declares_what_the_preset_does(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(preset_file("paper", {}))
    file = declared_grid(tmp_path / "grid.toml", None, settings(), {})
    assert file.tables == declared_grid(None, "paper", settings(), {}).tables


def test_a_preset_or_a_file_and_not_both(tmp_path: Path) -> None:
    for file, preset in ((None, None), (tmp_path / "grid.toml", "paper")):
        with pytest.raises(UsageError, match="either --file"):
            declared_grid(file, preset, settings(), {})
    with pytest.raises(UsageError, match="'papers', wanted paper"):
        declared_grid(None, "papers", settings(), {})


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[head]]\nl2 = 0\n[[head]]\nhiden = 3", "grid.toml, head 2: unknown key 'hiden'; did you mean hidden?"),
        ("heads = 3\n[[head]]", "grid.toml: unknown key 'heads'; did you mean head?"),
        ("l2 = 3\n[[head]]", "grid.toml: l2 stands outside the tables: it belongs below a [[head]]"),
        ("[[head]]\nl2 = 'strong'", "grid.toml, head 1: l2 is 'strong': input should be a valid number"),
        ("[[head]]\nl2 = [0, true]", "grid.toml, head 1: l2 is True: input should be a valid number"),
        ("[[head]]\nl2 = -1", "grid.toml, head 1: l2 is -1: input should be greater than or equal to 0"),
        ("[[head]]\nl2 = inf", "grid.toml, head 1: l2 is inf: input should be a finite number"),
        ("[[head]]\nl2 = []", "grid.toml, head 1: l2 is []: value should have at least 1 item"),
        ("[[head]]\nlr = 0", "grid.toml, head 1: learning_rate is 0: input should be greater than 0"),
        ("[[head]]\nlr = 1\nlearning_rate = 2", "grid.toml, head 1: unknown key 'lr'"),
        ("[[head]]\nepochs = 2.5", "grid.toml, head 1: epochs is 2.5: input should be a valid integer"),
        ("[[head]]\nhidden = '8'", "grid.toml, head 1: hidden is '8': input should be a valid integer"),
        ("[[head]]\nseeds = 0", "grid.toml, head 1: seeds is 0: input should be greater than or equal to 1"),
        ("[[head]]\nseeds = [3, -1]", "grid.toml, head 1: seeds is -1: input should be greater than or equal to 0"),
        ("[[head]]\nseeds = 'many'", "grid.toml, head 1: seeds is 'many': input should be a valid integer"),
        ("[[head]]\nviews = 0", "grid.toml, head 1: views is 0: input should be greater than or equal to 1"),
        (
            "[[head]]\nclass_weights = 'equal'",
            "grid.toml, head 1: class_weights is 'equal': input should be 'balanced'",
        ),
        ("[[head]]\nbackbone = 3", "grid.toml, head 1: backbone is 3: input should be a valid string"),
        ("split = 'patients'\n[[head]]", "grid.toml: split is 'patients': input should be 'patient', 'paper' or"),
        ("split_seed = '1'\n[[head]]", "grid.toml: split_seed is '1': input should be a valid integer"),
        ("[head]\nl2 = 0", "grid.toml: head is no table of a list: write [[head]] above it"),
        ("head = [3]", "grid.toml: head is no table of a list"),
        ("", "grid.toml declares no heads: write a [[head]]"),
        ("[[head]", "grid.toml is not TOML: "),
    ],
)
def test_what_is_wrong_is_named_by_table_and_key_with_what_was_wanted(text: str, said: str) -> None:
    assert refused(text).startswith(said)


def test_a_grid_too_large_is_refused_with_its_count_before_it_is_made() -> None:
    digits = ", ".join(map(str, range(1, 1001)))
    axes = "\n".join(f"{name} = [{digits}]" for name in ("hidden", "l2", "lr", "epochs", "patience", "seeds"))
    assert "declare 1,000,000,000,000,000,000 heads, and 100,000 at most" in refused(f"[[head]]\n{axes}")
    half = f"[[head]]\nhidden = [{digits}]\nseeds = 60\n"
    assert len(parsed(half).tables[0].configs) == 60_000
    assert "up to head 2 declare 120,000 heads" in refused(half + half)
    bounded(100_000, "they")
    with pytest.raises(SettingsError, match="they declare 100,001 heads"):
        bounded(100_001, "they")


@given(st.sampled_from(["l2", "seeds", "backbone", "split", "split_seed"]), st.booleans())
def test_a_flag_holds_where_the_file_says_nothing_and_is_refused_where_it_would_change_nothing(
    name: str, other: bool
) -> None:
    value: Any = {"l2": [0.5], "seeds": 2, "backbone": ["vgg19"], "split": "paper", "split_seed": 3}[name]
    toml = {"l2": "0.1", "seeds": "[7]", "backbone": '"resnet50"', "split": '"folders"', "split_seed": "1"}[name]
    given_settings = {} if name == "backbone" else {name: value}
    line = f"{name} = {toml}"
    says = f"{line}\n[[head]]" if name.startswith("split") else f"[[head]]\n{line}"
    assert f"--{name.replace('_', '-')} would change nothing" in refused(says, {name: value}, **given_settings)
    if not name.startswith("split"):
        said, unsaid = parsed(f"{says}\n[[head]]", {name: value}, **given_settings).tables
        for table, wanted in ((unsaid, ({0.5}, {0, 1}, {"vgg19"})), (said, ({0.1}, {7}, {"resnet50"}))):
            seen: tuple[set[Any], ...] = ({c.l2 for c in table.configs}, {c.seed for c in table.configs})
            place = ("l2", "seeds", "backbone").index(name)
            assert (*seen, set(table.backbones))[place] == wanted[place]
    elif other:
        assert getattr(parsed("[[head]]", {name: value}, **given_settings).settings, name) == value


def test_a_file_that_is_not_there_or_no_text_is_refused_with_the_way_to_one(tmp_path: Path) -> None:
    for content, said in ((None, "cxr grid --preset paper --show > "), (b"\xff\xfe", "cannot be read")):
        if content is not None:
            (tmp_path / "grid.toml").write_bytes(content)
        with pytest.raises(SettingsError, match=said):
            declared_grid(tmp_path / "grid.toml", None, settings(), {})
