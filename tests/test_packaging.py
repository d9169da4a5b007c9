"""The wheel and the source tree give the same package."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tvmq
from tvmq.records import read_records

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(tvmq.__file__).parents[1]
DATA = [path.relative_to(ROOT) for folder in ("targets", "schedules") for path in (ROOT / folder).rglob("*.*")]
SOURCES = [
    path.relative_to(ROOT) for path in (ROOT / "tvmq").rglob("*") if path.is_file() and "__pycache__" not in path.parts
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that holds the package alone; what it depends on is this interpreter's."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def python(package: Path, *arguments: str) -> str:
    """Standard output of an interpreter that finds ``tvmq`` in ``package``, whatever else is installed."""
    environment = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=package, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_wheel_holds_all_sources_and_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {str(path) for path in SOURCES} <= names
    assert {f"tvmq/{path}" for path in DATA} <= names
    assert any(name.startswith("tvmq/runtime/cpp/") and name.endswith(".cc") for name in names)
    assert "tvmq/py.typed" in names


def test_wheel_holds_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"tvmq", f"tvmq-{tvmq.__version__}.dist-info"}


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = f"tvmq-{tvmq.__version__}.dist-info"
        metadata = archive.read(f"{folder}/METADATA").decode()
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert "tvmq = tvmq.cli:main" in entry_points
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert "Requires-Dist: apache-tvm-ffi<0.1.15,>=0.1.14.post0" in required
    assert not any("torch" in line for line in required)


@pytest.mark.parametrize("kind", ["wheel", "source tree"])
def test_targets_are_found(kind, request):
    package = request.getfixturevalue("installed") if kind == "wheel" else ROOT
    out = python(package, "-c", "import tvmq; print(tvmq.__file__, *[t.name for t in tvmq.targets()])")
    file, *names = out.split()
    assert Path(file) == package / "tvmq" / "__init__.py"
    assert names == [target.name for target in tvmq.targets()]


@pytest.mark.parametrize("kind", ["wheel", "source tree"])
def test_schedules_are_found(kind, request):
    package = request.getfixturevalue("installed") if kind == "wheel" else ROOT
    out = python(package, "-c", "from tvmq.target import data_folder; print(data_folder('schedules'))")
    assert Path(out.strip()) == (package / "tvmq" / "schedules" if kind == "wheel" else ROOT / "schedules")


@pytest.mark.parametrize("kind", ["wheel", "source tree"])
def test_records_are_found(kind, request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    package = request.getfixturevalue("installed") if kind == "wheel" else ROOT
    script = "import tvmq; from tvmq.records import RecordBook\n"
    script += "for target in tvmq.targets(): print(len(RecordBook.of(target).records))"
    shipped = [len(list(read_records(path))) for path in (ROOT / "schedules").rglob("*.json")]
    counts = [int(line) for line in python(package, "-c", script).split()]
    assert sum(counts[1:]) == sum(shipped) > 0  # the first is this machine


def test_command_line_works_from_the_wheel(installed):
    assert "raspberry-pi-4" in python(installed, "-m", "tvmq.cli", "targets")


def test_constraints_fit_the_requirements():
    """Every direct requirement is pinned, so that a test run can be repeated."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    required = [requirement for requirements in lists for requirement in requirements]
    pinned = {
        line.split("==")[0]
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    }
    names = {requirement.split(">=")[0].split("==")[0] for requirement in required}
    assert names <= pinned


def test_setup_script_installs_what_the_targets_need():
    script = (ROOT / "scripts" / "install-cross-tools.sh").read_text(encoding="utf-8")
    for target in tvmq.targets():
        if target.cross_compiler is not None:
            assert f'"{target.cross_compiler} {target.cross_package}"' in script
            assert f'"{target.qemu} qemu-user-static"' in script
