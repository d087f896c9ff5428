"""What is installed, and what a maintainer finds: the wheel, versions, files about the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bench", "methods", "attacks", "evaluators", "prompts", "results/paper")


def tracked(*folders: str) -> list[str]:
    """Return the files of the checkout in these folders, as git knows them."""
    done = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("this is no checkout")
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the tracked files, without network."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked(*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        copy = folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*pip, "--no-index", "-w", str(folder), str(folder / "source")], check=True, timeout=300
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(wheel)], check=True, timeout=300)
    return folder


def bench(installed: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_wheel_holds_every_file(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    assert [name for name in tracked(*PACKAGES) if name not in held] == []
    assert [name for name in held if name.startswith(("tests/", "docs/"))] == []


@pytest.mark.slow
def test_the_installed_command_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    command = str(installed / "bin" / "bench")
    listed = bench(installed, command, "list", "methods", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "p-esd" in listed.stdout
    assert "church" in bench(installed, command, "list", "tasks", cwd=tmp_path).stdout
    shown = bench(installed, command, "show", "suites", "emoji-quick", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    where = "import bench, pathlib; print(pathlib.Path(bench.__file__).parents[1])"
    found = bench(installed, sys.executable, "-c", where, cwd=tmp_path)
    assert Path(found.stdout.strip()).samefile(installed)
    run = (
        "run",
        "--model",
        "tiny-random",
        "--method",
        "none",
        "--attack",
        "none",
        "--task",
        "church",
    )
    ran = bench(installed, command, *run, "--limit", "2", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "results" / "local").is_dir()


@pytest.mark.slow
def test_a_package_of_the_users_own(installed: Path, tmp_path: Path) -> None:
    """What docs/install.md says of a folder with a package called ``methods``."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "__init__.py").write_text("MINE = True\n")
    command = str(installed / "bin" / "bench")
    assert "p-esd" in bench(installed, command, "list", "methods", cwd=tmp_path).stdout
    module = (sys.executable, "-m", "bench", "list", "methods")
    refused = bench(installed, *module, cwd=tmp_path)
    assert refused.returncode == 3
    assert str(tmp_path / "methods") in refused.stderr
    assert str(installed / "methods") in refused.stderr
    assert refused.stderr.count("\n") == 1
    safe = bench(installed, sys.executable, "-P", *module[1:], cwd=tmp_path)
    assert "p-esd" in safe.stdout


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation
    headings = re.findall(r"(?m)^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert headings[0].split()[0] in {version, "Unreleased"}
    assert version in {heading.split()[0] for heading in headings}


def test_files_about_the_project_are_well_formed() -> None:
    yaml = pytest.importorskip("yaml")
    files = [
        *(ROOT / ".github").rglob("*.yml"),
        ROOT / "CITATION.cff",
        ROOT / ".pre-commit-config.yaml",
    ]
    assert len(files) >= 6
    known = {path: yaml.safe_load(path.read_text(encoding="utf-8")) for path in files}
    steps = known[ROOT / ".github" / "workflows" / "ci.yml"]["jobs"]["check"]["steps"]
    assert {"run": ".ci/run"} in steps
    for hook in known[ROOT / ".pre-commit-config.yaml"]["repos"][0]["hooks"]:
        assert hook["language"] == "system"  # nothing is fetched
    for name in ("CODE_OF_CONDUCT.md", "SECURITY.md", "LICENSE"):
        assert (ROOT / name).stat().st_size > 500
