"""Who may import whom (the rules that keep the parts apart)."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENTRY_POINTS = {"train", "record", "evaluate", "report", "run"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def local(path):
    return {name for name in imports(path) if name.split(".")[0] in ("magail", "magail_envs")}


def files(folder):
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def test_types_import_nothing_local():
    assert local(ROOT / "magail/types.py") == set()


def test_environments_import_only_the_types():
    for path in files("envs/magail_envs"):
        ours = {name for name in local(path) if name.startswith("magail.")}
        assert all(name.startswith("magail.types") for name in ours), path


def test_the_framework_never_imports_an_environment():
    for path in files("magail"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & {"magail_envs", "mpe2", "pettingzoo", "supersuit"}, path


def test_generators_and_discriminators_do_not_know_each_other():
    for folder, other in (("generators", "discriminators"), ("discriminators", "generators")):
        for path in files(f"magail/{folder}"):
            assert not any(name.startswith(f"magail.{other}") for name in local(path)), path


def test_only_entry_points_compose():
    """Hydra, and the parts that need it, stay out of the library."""
    for path in files("magail"):
        if path.stem not in ENTRY_POINTS | {"config", "logger", "train"}:
            assert not any(name.split(".")[0] in ("hydra", "omegaconf") for name in imports(path)), path


def test_workers_start_without_torch():
    """A worker's import path must not pull torch in: it would cost seconds a worker."""
    for name in ("worker", "copies", "gymnasium"):
        assert not any(x.split(".")[0] in ("torch", "magail") for x in imports(ROOT / f"envs/magail_envs/{name}.py"))
