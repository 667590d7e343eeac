"""The README and docs/ are true: their code runs, their configuration is valid, their links and commands exist."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import meshemu
from meshemu import cli
from meshemu.config import parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert missing == []


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert "[" in capsys.readouterr().out
    assert (tmp_path / "mine.h5").exists()


def test_the_page_on_training_is_true(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "training.md"
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(page, "python")
    exec(compile(code, page.name, "exec"), {})
    assert "a training step takes" in capsys.readouterr().out
    assert (tmp_path / "state.pt").exists()
    (text,) = blocks(page, "toml")
    assert parse(text, origin=page.name, directory=ROOT).training.optimizer.groups[1].options == {"lr": 1e-4}


def test_the_page_on_back_pressure_is_true(tmp_path, capsys):
    """Its run, timed with its routers, is reported with its table, whatever the figures are."""
    page = ROOT / "docs" / "back-pressure.md"
    routers, run = blocks(page, "toml")
    (shown,) = blocks(page, "text")
    config = parse(run + routers, origin=page.name, directory=ROOT)
    meshemu.run(config, tmp_path / "run.h5", execute=False)
    assert cli.main(["report", str(tmp_path / "run.h5"), "--no-png", "--both-modes"]) == 0
    said = capsys.readouterr().out
    assert "Timed with routers: flits of 64 B, 2 virtual channels in each of 2 message classes" in said

    def words(text):
        return [re.sub(r"[\d.,]+( [num]?s)?|\s+", " ", line).split() for line in text.split("Steps")[0].splitlines()]

    told = words(said[said.index("Both modes") :])
    assert [line for line in words(shown)[:7] if line not in told] == []
    keys = {row.split("|")[1].strip(" `") for row in page.read_text().splitlines() if row.startswith("| `")}
    assert keys == {field.name for field in fields(meshemu.Router)}
    commands = re.findall(r"^    meshemu (.*)$", page.read_text(), flags=re.MULTILINE)
    assert len(commands) == 5
    for line in commands:
        cli.parse_arguments(shlex.split(line))


def test_the_configuration_of_the_readme_is_valid():
    (text,) = blocks(ROOT / "README.md", "toml")
    assert parse(text, origin="README", directory=ROOT).plan.data == 25
    plans = re.findall(r"^\| `(\{.*?\}|\"auto\")` \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert len(plans) == 7
    for plan in plans:
        parse(re.sub(r"^plan = .*$", f"plan = {plan}", text, flags=re.MULTILINE), origin="README", directory=ROOT)


def test_the_commands_of_the_readme_exist():
    """Every `meshemu ...` line of the README parses (continuation lines joined, launchers cut off)."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^    (?:mpirun -n \d+ )?meshemu (.*?)(?:  +#.*|   .*)?$", text, flags=re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        words = [word.replace('"', "") for word in re.split(r' (?=(?:[^"]*"[^"]*")*[^"]*$)', line.split("  ")[0])]
        cli.parse_arguments([w for w in words if w])


def test_scripts_and_configurations_of_the_readme_are_there():
    named = re.findall(r"(?:scripts|configs)/\w+\.\w+", (ROOT / "README.md").read_text())
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
