"""README.md: its map leads to lines and tests that exist, and its code runs as it stands."""

import ast
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = r"\[`([\w.]+)`\]\(msfn\.py#L\d+-L\d+\)"
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def lines_of(path: Path) -> dict[str, str]:
    """{"MSFN.losses": "L1-L9", ...} of each function, class and method in a file"""
    lines = {}
    for part in ast.parse(path.read_text(encoding="utf-8")).body:
        for inner in [part, *getattr(part, "body", [])]:
            if isinstance(inner, ast.FunctionDef | ast.ClassDef):
                name = inner.name if inner is part else f"{part.name}.{inner.name}"
                lines[name] = f"L{inner.lineno}-L{inner.end_lineno}"
    return lines


def test_the_map_leads_from_every_equation_to_code_and_tests():
    """A failure prints the rows as they should be."""
    section = README.split("## The map")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| \d", line)]
    code, tests = lines_of(ROOT / "msfn.py"), lines_of(ROOT / "test_msfn.py")
    right = [
        re.sub(LINK, lambda link: f"[`{link[1]}`](msfn.py#{code.get(link[1], 'missing')})", row)
        for row in rows
    ]
    if rows != right:
        pytest.fail("README.md's map should be:\n" + "\n".join(right), pytrace=False)
    mapped = set()
    for row in rows:
        first, *last = (int(n) for n in re.findall(r"\d+", row.split("|")[1]))
        mapped |= set(range(first, (last or [first])[0] + 1))
        assert re.search(LINK, row) and set(re.findall(r"`(test_\w+)`", row)) & set(tests), row
        assert set(re.findall(r"`(test_\w+)`", row)) <= set(tests), row
    assert mapped == set(range(1, 17))


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs_as_it_stands(snippet):
    torch.manual_seed(0)
    exec(snippet, {})  # noqa: S102 (our own README)


def test_walls():
    """plumbing/ imports nothing from above; msfn.py torch alone; nobody imports upwards."""
    allowed = {
        "msfn": set(),
        "data": {"plumbing"},
        "train": {"msfn", "data", "plumbing"},
        "plumbing": {"plumbing"},
        "experiments": {"msfn", "data", "train", "plumbing", "experiments"},
    }
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if path.name.startswith("test_") or room not in allowed:
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        roots = {name.split(".")[0] for name in names}
        assert roots & set(allowed) <= allowed[room], path
        assert room != "msfn" or roots == {"torch", "dataclasses", "typing"}
