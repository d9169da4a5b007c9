"""The house of seven floors: an import only ever runs down, and there is no circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tvmq

PACKAGE = Path(tvmq.__file__).parent

FLOORS = {
    "cli": 7,
    "__init__": 6,
    "nn": 5,
    "tuning": 5,
    "benchmark": 5,
    "kernel_rates": 5,
    "frontend": 4,
    "rivals": 4,
    "methods": 4,
    "compiler": 4,
    "model": 3.5,
    "verification": 3.8,
    "build": 3.5,
    "layers": 3.5,
    "transform": 3,
    "golden": 3,
    "clock": 2,
    "dialect": 2,
    "kernels": 2,
    "runtime": 2,
    "bitplanes": 1,
    "target": 1,
    "records": 1,
    "report": 1,
    "machine": 1,
    "errors": 1,
}

# The lazy face loads every room by name, and only when asked; the rooms below it are not its imports.
FACE = "tvmq/__init__.py"


def module_name(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path, module: str, known: set[str]) -> set[str]:
    """Modules of tvmq that ``path`` imports anywhere, also inside functions."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            # `from tvmq import errors` imports a module, `from tvmq.errors import nearest` a name.  The version is a
            # fact of the package, whose __init__ has run before any of its modules: it is on no floor.
            names = [alias.name for alias in node.names if (source, alias.name) != ("tvmq", "__version__")]
            found.update(f"{source}.{name}" if f"{source}.{name}" in known else source for name in names)
    return {name for name in found if name.split(".")[0] == "tvmq"}


def executed_imports(path: Path) -> set[str]:
    """Everything that ``path`` imports, by its full name, except under ``if TYPE_CHECKING``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    finished: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, " -> ".join([*trail[trail.index(node) :], node])
        if node in finished:
            return
        for following in graph.get(node, ()):
            visit(following, (*trail, node))
        finished.add(node)

    for node in graph:
        visit(node, ())


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} <= set(FLOORS)


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if not str(path).endswith(FACE)])
def test_imports_run_down(module):
    here = FLOORS[room(module)]
    for imported in imports(MODULES[module], module, set(MODULES)):
        if room(imported) == room(module):
            continue
        there = FLOORS[room(imported)]
        assert there <= here, f"{module} (floor {here}) imports {imported} (floor {there})"


def test_no_circle_of_modules():
    graph = {name: imports(path, name, set(MODULES)) - {name} for name, path in MODULES.items()}
    del graph["tvmq"]
    assert_no_circle(graph)


def test_no_circle_of_rooms():
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if name != "tvmq":
            graph.setdefault(room(name), set()).update(map(room, imports(path, name, set(MODULES))))
    for name, following in graph.items():
        following -= {name, "__init__"}
    assert_no_circle(graph)


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in ("runtime", "report", "cli")])
def test_a_device_needs_no_compiler(module):
    """Where only TVM's runtime is installed, ``from tvm import relax`` and the like fail."""
    of_the_runtime = ("tvm.runtime", "tvm.rpc", "tvm.support")
    compiler = {
        name
        for name in executed_imports(MODULES[module])
        if name.startswith("tvm.") and not name.startswith(of_the_runtime)
    }
    assert not compiler


@pytest.mark.parametrize("module", list(MODULES))
def test_torch_is_an_extra(module):
    if room(module) == "nn" or module == "tvmq.frontend.torch":
        return
    assert not {name for name in executed_imports(MODULES[module]) if name.split(".")[0] == "torch"}
