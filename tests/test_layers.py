"""The agreed structure: arrows that point down, files of bounded size, a test for each."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*ROOT.glob("hard_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")])
SOURCES = [path for path in SOURCES if "configs" not in path.parts]

# A module's level is that of its longest prefix here; it may import from smaller ones only.
LEVELS = {
    "hard_kernels": 0,
    "hard_fast": 0,
    "hard_fast.types": 1,
    "hard_fast.runtime": 1,
    "hard_fast.models": 2,
    "hard_fast.data": 3,
    "hard_fast.augment": 3,
    "hard_fast.objectives": 3,
    "hard_fast.optim": 3,
    "hard_fast.evals": 4,
    "hard_fast.evals.corruptions": 3,
    "hard_fast.evals.scores": 3,
    "hard_fast.evals.robustness": 7,
    "hard_fast.evals.sharpness": 8,
    "hard_fast.evals.watermark": 8,
    "hard_fast.evals.subject": 6,
    "hard_fast.evals.contenders": 6,
    "hard_fast.step": 4,
    "hard_fast.phases": 4,
    "hard_fast.bank": 4,
    "hard_fast.checkpoint": 4,
    "hard_fast.metrics": 4,
    "hard_fast.train_config": 4,
    "hard_fast.board": 3,
    "hard_fast.journal": 4,
    "hard_fast.guard": 4,
    "hard_fast.report": 4,
    "hard_fast.config": 5,
    "hard_fast.gallery": 5,
    "hard_fast.smoke": 5,
    "hard_fast.batchnorm": 6,
    "hard_fast.build": 6,
    "hard_fast.draws": 6,
    "hard_fast.engine": 6,
    "hard_fast.examiner": 7,
    "hard_fast.rescue": 7,
    "hard_fast.training_row": 7,
    "hard_fast.learning": 8,
    "hard_fast.own_run": 6,
    "hard_fast.rundir": 8,
    "hard_fast.trainer": 9,
    "hard_fast.distiller": 9,
    "hard_fast.train": 10,
    "hard_fast.study_plan": 8,
    "hard_fast.study": 10,
    "hard_fast.evaluate": 10,
    "hard_fast.export": 10,
    "hard_fast.trial": 10,
    "hard_fast.batch_size": 11,
    # A ranking reads what a study or a run describes.
    "hard_fast.rank": 11,
    "hard_fast.estimate": 12,
}
CEILINGS = {
    "hard_fast/train.py": 120,
    "hard_fast/study.py": 150,
    "hard_fast/evaluate.py": 120,
    "hard_fast/rank.py": 140,
    "hard_fast/config.py": 300,
    "hard_fast/build.py": 160,
    "hard_fast/step.py": 200,
    "hard_fast/phases.py": 250,
    "hard_fast/bank.py": 160,
    "hard_fast/checkpoint.py": 220,
    "hard_fast/metrics.py": 120,
    "hard_fast/journal.py": 200,
    "hard_fast/types.py": 120,
    "hard_fast/models/vdvae.py": 400,
    "hard_fast/models/rqvae.py": 400,
}
TOP_LEVEL = {
    ".ci", ".gitignore", "LICENSE", "Makefile", "README.md", "bench", "configs", "hard_fast",
    "kernels", "pyproject.toml", "tests",
}  # fmt: skip


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT / "kernels" if "kernels" in path.parts else ROOT)
    return ".".join(relative.with_suffix("").parts).removesuffix(".__init__")


def prefix(module: str) -> str:
    return max((p for p in LEVELS if f"{module}.".startswith(f"{p}.")), key=len)


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    modules = {module_name(path) for path in SOURCES}
    return {name for name in found if name in modules}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path):
    module = module_name(path)
    here = prefix(module)
    for name in imports(ast.parse(path.read_text())) - {module}:
        there = prefix(name)
        is_inside = here == there or name == here.rpartition(".")[0]
        assert is_inside or LEVELS[there] < LEVELS[here], f"{module} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_only_three_files_touch_torch_distributed(path):
    if path.parent != ROOT / "hard_fast/runtime" or path.stem not in ("dist", "parallel", "pulse"):
        assert "torch.distributed" not in path.read_text()


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_functions_and_lines_are_short(path):
    text = path.read_text()
    lines = text.splitlines()
    key = str(path.relative_to(ROOT))
    assert text.isascii()
    assert len(lines) <= (CEILINGS[key] if key in CEILINGS else 300), f"{key}: {len(lines)} lines"
    assert all(len(line) <= 100 for line in lines)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{key}: {node.name} is too long"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in [*tree.body, *(method for found in classes for method in found.body)]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            is_public = not node.name.startswith("_") and node.name != "forward"
            assert not is_public or ast.get_docstring(node), f"{key}: {node.name}: no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_every_source_file_has_its_test_file(path):
    if path.name == "__init__.py":
        return
    relative = path.relative_to(ROOT / "hard_fast") if "hard_fast" in path.parts else None
    if relative is None:
        relative = Path("kernels") / path.relative_to(ROOT / "kernels/hard_kernels")
    test = ROOT / "tests" / relative.with_name(f"test_{relative.name}")
    assert test.is_file(), f"{test} is missing"


def test_the_top_level_is_as_agreed():
    hidden = {".git", ".venv", ".pytest_cache", ".ruff_cache", ".hypothesis"}
    generated = {"runs", "build", "dist"}
    found = {path.name for path in ROOT.iterdir() if not path.name.endswith(".egg-info")}
    assert found - hidden - generated <= TOP_LEVEL
