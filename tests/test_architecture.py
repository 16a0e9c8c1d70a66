"""The direction of imports, which keeps the parts liftable."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "ancra_jax"

LAYERS = [
    {"types", "errors", "config", "recipes", "compact"},
    {
        "models",
        "attacks",
        "losses",
        "negatives",
        "data",
        "optim",
        "sharding",
        "interop",
        "interruption",
        "multihost",
    },
    {
        "methods",
        "averaging",
        "components",
        "selection",
        "defences",
        "compilation_cache",
        "cpu_devices",
    },
    {"train_state", "checkpoint", "metrics", "progress", "results", "workdir", "training_log"},
    {"weights", "teacher"},
    {"paper_suite", "autoattack_suite", "adaptive_suite", "diagnostics_suite"},
    {"cli", "evaluation_table"},
    {"train", "evaluate", "report"},
    {"reproduce"},
    {"publish", "campaign"},
]


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


def files():
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(part):
    for number, parts in enumerate(LAYERS):
        if part in parts or any(part.startswith(f"{name}_") for name in parts):
            return number
    raise AssertionError(f"ancra_jax.{part} has no place in the layers")


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    part = part_of(path)
    if part == "__init__":
        return
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "ancra_jax" or len(parts) < 2 or not is_part(parts[1]):
            continue
        if parts[1] != part:
            assert layer_of(parts[1]) <= layer_of(part), f"{path} imports {name}"


def is_part(name):
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()


def test_attacks_can_be_lifted_out():
    for path in (PACKAGE / "attacks").glob("*.py"):
        ours = {name for name in imports_of(path) if name.startswith("ancra_jax")}
        assert all(name.startswith("ancra_jax.attacks") for name in ours), path


def test_only_models_know_linen():
    for path in files():
        if part_of(path) not in ("models", "interop"):
            assert not any(name.startswith(("flax.linen", "flax.nnx")) for name in imports_of(path))


def test_configs_are_plain_data():
    for path in (ROOT / "configs").glob("*.py"):
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert roots <= {"ml_collections", "configs", "difflib"}, path


def test_modules_are_short():
    long = {str(path): n for path in files() if (n := len(path.read_text().splitlines())) > 320}
    assert not long
