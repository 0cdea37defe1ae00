"""The README's first screen runs as printed, and all tables are those of the results."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_first_screen(tmp_path):
    lines = [line.split("#")[0].strip() for line in blocks("bash")[0].splitlines()]
    commands = [line for line in lines if line.startswith("gdml ")]
    assert [c.split()[1] for c in commands] == ["demo", "train", "md"]
    program = shutil.which("gdml", path=Path(sys.executable).parent)
    assert program, "the command gdml is not installed"
    for command in commands:
        result = subprocess.run([program, *command.split()[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "md.traj").exists()
    result = subprocess.run([sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    mae = float(re.search(r"forces MAE ([\d.]+)", result.stdout)[1])
    assert 8 < mae < 45


def test_links():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


WITH_TABLES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if "<!-- table:" in path.read_text()
]


@pytest.mark.parametrize("page", WITH_TABLES)
def test_tables_are_those_of_the_results(page):
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = (ROOT / page).read_text()
    assert tables.filled(text) == text, "run python benchmarks/tables.py"
