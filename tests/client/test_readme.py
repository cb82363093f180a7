"""README's blocks for trainers are what `make trainers` runs, word for word."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TRAINERS = ROOT / "tests" / "trainers"
MARKED = re.compile(r"^ *# README: (?!end)(.+?)\n(.*?)^ *# README: end$", re.M | re.S)
SECTION = "## Use it from your trainer"


def sources() -> dict[str, str]:
    """By where it is from: marked parts of the scripts, and every file of flags."""
    found = {}
    for script in sorted((TRAINERS / "scripts").glob("*.py")):
        for name, text in MARKED.findall(script.read_text()):
            found[f"{script.name}: {name}"] = textwrap.dedent(text).strip()
    for path in sorted((TRAINERS / "flags").iterdir()):
        if path.suffix in (".sh", ".yaml"):
            found[path.name] = path.read_text().strip()
    return found


@pytest.mark.parametrize("source", sources())
def test_readme_prints_what_the_proofs_run(source: str) -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme.split(SECTION)[1].split("\n## ")[0]
    blocks = re.findall(r"```[a-z]*\n(.*?)\n```", section, re.DOTALL)
    assert sources()[source] in blocks


def test_every_block_of_the_section_is_run() -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme.split(SECTION)[1].split("\n## ")[0]
    blocks = re.findall(r"```[a-z]*\n(.*?)\n```", section, re.DOTALL)
    assert len(blocks) > 8
    installs = [block for block in blocks if block.startswith("pip install")]
    assert set(blocks) - set(installs) <= set(sources().values())
