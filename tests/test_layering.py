"""How the product is built: who may import whom, and what stands nowhere."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("featcache", "heads", "cxr", "cli")
"""From the ground up: a layer imports those before it."""
SOURCES = [ROOT / "cli.py", *(path for layer in LAYERS[:-1] for path in sorted((ROOT / layer).glob("**/*.py")))]
MAY_PRINT = ("cxr.terminal", "cxr.commands.", "cli")


def module_of(path: Path) -> str:
    """``heads/reporting/report.py`` → ``heads.reporting.report``; a package's ``__init__.py`` keeps that name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {module_of(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in SOURCES}
every_module = pytest.mark.parametrize("module", MODULES)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, wherever: in functions, for types, by name through importlib."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "importlib.import_module", "__import__"):
            yield from ((node.lineno, str(arg.value)) for arg in node.args if isinstance(arg, ast.Constant))


def called(node: ast.Call) -> str:
    """The dotted name of what is called; a method of no name is ``.method``."""
    return dotted(node.func)


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def own(name: str) -> str | None:
    """The module of ours that an imported name is or lies in."""
    while name:
        for candidate in (name, f"{name}.__init__"):
            if candidate in MODULES:
                return candidate
        name = name.rpartition(".")[0]
    return None


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_the_sources_are_found() -> None:
    assert {"cli", "cxr.commands.fit", "featcache.store", "heads.__init__", "heads.reporting.report"} <= MODULES.keys()
    assert {name.partition(".")[0] for name in MODULES} == set(LAYERS)


# ---- layers


@every_module
def test_imports_run_one_way(module: str) -> None:
    layer = LAYERS.index(module.partition(".")[0])
    above = set(LAYERS[layer + 1 :])
    wrong = [f"line {line}: {name}" for line, name in imports(MODULES[module]) if name.partition(".")[0] in above]
    assert wrong == []


def test_inside_a_package_imports_run_downwards() -> None:
    graph: dict[str, set[str]] = {}
    for module, tree in MODULES.items():
        found = {own(name) for _, name in imports(tree)}
        graph[module] = {name for name in found if name is not None and not name.endswith("__init__")} - {module}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert order.index("featcache.errors") < order.index("heads.reporting.report") < order.index("cli")


def reached_from(module: str) -> set[str]:
    """All modules of ours that importing one may load, sooner or later."""
    reached, left = set(), [module]
    while left:
        now = left.pop()
        if now not in reached:
            reached.add(now)
            left += [name for _, full in imports(MODULES[now]) if (name := own(full)) is not None]
    return reached


SEALED = "heads.reporting.sealed"
TEST_FILE = "test.npz"


@pytest.mark.parametrize(
    "module",
    [
        "heads.choosing.selection",
        "heads.choosing.decision",
        "heads.choosing.ensembles",
        "heads.choosing.rows",
        "heads.training.train",
        "heads.prediction.asked",
        "heads.prediction.from_run",
        "heads.prediction.predictor",
    ],
)
def test_what_chooses_cannot_reach_what_opens_test(module: str) -> None:
    reached = reached_from(module)
    assert module in reached
    assert not reached & {SEALED, "heads.reporting.report", "heads.reporting.comparison", "heads.reporting.figures"}


def test_what_reports_can_reach_it_so_the_search_is_not_blind() -> None:
    assert SEALED in reached_from("heads.reporting.report")
    assert {"heads.statistics.calibration", "heads.statistics.intervals"} <= reached_from("heads.choosing.selection")
    assert "heads.experiments.runs" in reached_from("heads.choosing.decision")


def test_the_file_of_test_is_named_where_it_is_written_and_where_it_is_opened_and_nowhere_else() -> None:
    named = {
        (module, where.name)
        for module, tree in MODULES.items()
        for where in ast.walk(tree)
        if isinstance(where, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(where)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and TEST_FILE in node.value
    }
    assert named == {("heads.experiments.runs", "save_run"), (SEALED, "_load")}
    # Nor may a name be put together, or a folder be listed, by what reads logits.
    readers = {
        module
        for module, tree in MODULES.items()
        if any(called(node) in ("read_logits", "read_arrays") for node in calls(tree))
    }
    # heads.experiments.held_out reads folds.npz, whose images are of train and val (tests/heads/test_held_out.py).
    assert readers == {"heads.experiments.split_logits", "heads.experiments.runs", "heads.experiments.held_out", SEALED}


def test_selection_opens_no_file_at_all() -> None:
    for module in reached_from("heads.choosing.selection"):
        names = {called(node) for node in calls(MODULES[module])}
        opened = {
            name for name in names if name.rpartition(".")[2] in {"open", "read_bytes", "read_text", "load", "glob"}
        }
        assert opened == set(), module


# ---- what stands nowhere


@every_module
def test_only_the_command_line_prints_or_exits(module: str) -> None:
    if module.startswith(MAY_PRINT):
        return
    names = {"print", "sys.exit", "exit", "quit", "os._exit", "sys.stdout.write", "sys.stderr.write", "Console"}
    assert [f"line {node.lineno}: {called(node)}" for node in calls(MODULES[module]) if called(node) in names] == []
    raised = [dotted(node) for node in ast.walk(MODULES[module]) if isinstance(node, ast.Name)]
    assert "SystemExit" not in raised


@every_module
def test_nothing_is_unpickled_nor_run_by_a_shell(module: str) -> None:
    tree = MODULES[module]
    unsafe = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert [name for _, name in imports(tree) if name.partition(".")[0] in unsafe] == []
    forbidden = {("allow_pickle", True), ("weights_only", False), ("shell", True), ("trust_remote_code", True)}
    for node in calls(tree):
        given = {(word.arg, word.value.value) for word in node.keywords if isinstance(word.value, ast.Constant)}
        assert not given & forbidden, f"line {node.lineno}"
        assert called(node) not in {"yaml.load", "eval", "exec", "os.system", "os.popen"}, f"line {node.lineno}"


@every_module
def test_tensors_and_arrays_are_loaded_without_pickle_said_aloud(module: str) -> None:
    for node in calls(MODULES[module]):
        words = {word.arg for word in node.keywords}
        if called(node) == "torch.load" or called(node).endswith("load_state_dict_from_url"):
            assert "weights_only" in words, f"line {node.lineno}"
        if called(node) in ("np.load", "numpy.load"):
            assert "allow_pickle" in words, f"line {node.lineno}"


@every_module
def test_a_module_says_in_its_name_what_it_is_of(module: str) -> None:
    banned = {"util", "utils", "helper", "helpers", "common", "manager", "handler", "handlers", "misc"}
    assert not set(module.replace("_", ".").split(".")) & banned
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ClassDef):
            assert not node.name.lower().endswith(("utils", "helper", "manager", "handler")), node.name


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_module_stays_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@every_module
def test_what_is_public_has_a_docstring(module: str) -> None:
    tree = MODULES[module]
    assert ast.get_docstring(tree), "module"
    public: list[ast.Module | ast.ClassDef] = [tree]
    public += [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
    for scope in public:
        for node in scope.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name[0] != "_":
                assert ast.get_docstring(node), f"line {node.lineno}: {node.name}"


# ---- import

LOOK_AND_IMPORT = """
import importlib, json, logging, os, random, sys, warnings
from pathlib import Path

ours, theirs = json.loads(sys.argv[1])
for name in theirs:
    importlib.import_module(name)

def state():
    seen = {
        "filters": [str(one) for one in warnings.filters],
        "showwarning": warnings.showwarning.__qualname__,
        "handlers": [str(one) for one in logging.root.handlers],
        "level": logging.root.level,
        "disabled": logging.root.manager.disable,
        "loggers with handlers": sorted(
            name for name, one in logging.root.manager.loggerDict.items()
            if getattr(one, "handlers", []) and name.partition(".")[0] in ("cli", "cxr", "featcache", "heads")
        ),
        "environment": dict(os.environ),
        "hook": sys.excepthook.__qualname__,
        "folder": os.getcwd(),
        "random": str(random.getstate())[:200],
    }
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        seen |= {
            "threads": torch.get_num_threads(),
            "seed": torch.initial_seed(),
            "device": torch.cuda.is_initialized(),
            "grad": torch.is_grad_enabled(),
        }
    if "numpy" in sys.modules:
        seen["numpy"] = str(sys.modules["numpy"].random.get_state())[:200]
    return seen

before = state()
for name in ours:
    importlib.import_module(name)
    assert state() == before, (name, [(k, before[k], v) for k, v in state().items() if before.get(k) != v])
"""


def imported_at_top(tree: ast.Module) -> Iterator[str]:
    """Modules of others that importing this one imports."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def python(program: str, argument: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python of its own, in an empty home and folder."""
    return subprocess.run(
        [sys.executable, "-B", "-c", program, json.dumps(argument)],
        cwd=folder,
        env={**os.environ, "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_happens_at_import(tmp_path: Path) -> None:
    ours = [module.removesuffix(".__init__") for module in MODULES]
    others = {name for tree in MODULES.values() for name in imported_at_top(tree)}
    theirs = sorted(name for name in others if own(name) is None and name != "__future__")
    # Libraries come first: what they do at import is not ours, nor is it to hide what we do.
    result = python(LOOK_AND_IMPORT, [ours, theirs], tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    # Matplotlib and others keep caches in the home folder; we make nothing visible.
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_reading_a_store_and_a_report_need_no_torch(phantom_store: Path, tmp_path: Path) -> None:
    program = """
import json, sys
import featcache, heads, cli
from featcache import open_store
from heads.reporting.report import build_report
(folder,) = json.loads(sys.argv[1])
assert open_store(folder).features().shape[1] == 16
assert "torch" not in sys.modules
"""
    result = python(program, [str(phantom_store)], tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
