"""What the README shows is at least well-formed."""

import re
import subprocess
import tomllib
from pathlib import Path

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
BLOCKS = re.findall(
    r"^```\n(.*?)^```", re.sub(r"^```\w+\n.*?^```$", "", README, flags=re.M | re.S), re.M | re.S
)


def test_scripts_have_no_syntax_error():
    scripts = [b for b in BLOCKS if b.startswith(("#!/bin/bash", "torchrun", "python", "make"))]
    assert len(scripts) >= 4
    for script in scripts:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stderr}\n{script}"


def test_configurations_are_toml_and_their_parts_are_understood():
    from pydantic import TypeAdapter

    from hard_fast.augment import AugmentorConfig
    from hard_fast.evals.surveyor import EvaluationConfig
    from hard_fast.models.zoo import TeacherConfig

    trees = [tomllib.loads(block) for block in BLOCKS if block.startswith("[")]
    assert len(trees) >= 2
    for tree in trees:
        if "augmentor" in tree:
            TypeAdapter(AugmentorConfig).validate_python(tree["augmentor"])
        if "evaluation" in tree:
            EvaluationConfig(**tree["evaluation"])
        if "teacher" in tree:
            assert len(TeacherConfig(**tree["teacher"]).also) == 1
