"""docs/analysis.md is true: its blocks run one after the other and print what stands beneath them."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "analysis.md"
BLOCK = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", flags=re.DOTALL)


def masked(text: str) -> list[str]:
    """Lines without their numbers, which a better model of cost may change."""
    return [re.sub(r"\d+(\.\d+)?", "#", line) for line in text.splitlines()]


def test_the_page_on_analysis_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PAGE.read_text()
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```python") >= 10
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for code, shown in blocks:
        exec(compile(code, PAGE.name, "exec"), scope)
        assert masked(capsys.readouterr().out) == masked(shown)
    first = BLOCK.findall(text)[1][1]
    assert "first of all one link, r1c0 -> r2c0 south (die_edge), which alone takes" in first
