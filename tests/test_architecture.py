"""The layers of the house: which package may import which, and how large its rooms are."""

import ast
import collections

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "ancra_jax"

# A part imports only parts of earlier lines; docs/architecture.md shows the same lines.
LAYERS = (
    {"errors", "types", "registry", "urls"},
    {"ops", "config"},
    {"attacks", "models", "data"},
    {"losses", "defences", "cli", "interop"},
    {"methods"},
    {"run"},
    {"results", "leaderboard"},
    {"train", "evaluate", "report", "predict", "convert"},
    {"paper"},
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}


def modules():
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "tools").rglob("*.py")])


def imports_of(path):
    """Names of all modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def parts_imported(path):
    names = [name.split(".") for name in imports_of(path) if name.startswith("ancra_jax.")]
    return {parts[1] for parts in names if parts[1] in LAYER}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path):
    assert not any(name.startswith(("tools", "benchmarks")) for name in imports_of(path)) or (
        path.is_relative_to(ROOT / "tools")
    )
    if path.is_relative_to(PACKAGE) and (part := part_of(path)) != "__init__":
        others = parts_imported(path) - {part}
        assert all(LAYER[other] < max(LAYER[part], 1) for other in others), others


def test_attacks_can_be_lifted_out():
    for path in (PACKAGE / "attacks").rglob("*.py"):
        assert parts_imported(path) <= {"attacks", "ops"}, path


def test_only_models_know_linen():
    for path in set(modules()) - set((PACKAGE / "models").rglob("*.py")):
        assert not any(name.startswith(("flax.linen", "flax.nnx")) for name in imports_of(path))


def test_configs_are_plain_data():
    allowed = ("ml_collections", "configs", "dataclasses", "ancra_jax.config", "ancra_jax.registry")
    for path in (ROOT / "configs").glob("*.py"):
        assert all(name.startswith(allowed) for name in imports_of(path)), path


def test_modules_and_functions_are_short():
    for path in modules():
        text = path.read_text()
        assert len(text.splitlines()) < 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 79, f"{path}: {node.name}"


def test_rooms_are_small_and_their_names_repeat_nothing():
    neighbours = collections.defaultdict(set)
    for path in modules():
        folder = path.parent
        neighbours[folder].add(path.stem)
        if path.stem == "__init__" and folder not in (PACKAGE, ROOT / "tools"):
            neighbours[folder.parent].add(folder.name)
    for folder, names in neighbours.items():
        assert len(names) <= 24, folder
        prefixes = tuple(f"{name}_" for name in {*names, folder.name})
        assert not [name for name in names if name.startswith(prefixes)], folder
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_the_layers_are_those_of_the_page():
    page = (ROOT / "docs/architecture.md").read_text()
    for parts in LAYERS:
        assert any(all(part in line for part in parts) for line in page.splitlines()), parts
