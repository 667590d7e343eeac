"""docs/hardware.md says what the presets say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("generate_hardware_docs", ROOT / "scripts" / "generate_hardware_docs.py")
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)


def test_page_is_current():
    assert (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8") == generate.page()
