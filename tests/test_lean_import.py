"""Importing the commands costs neither a GPU nor the packages that only some runs need."""

import json
import subprocess
import sys

CODE = """
import json, sys
import hard_fast.train, hard_fast.study, hard_fast.evaluate, hard_fast.estimate, hard_kernels, torch
heavy = ["timm", "bitsandbytes", "triton", "nvidia.dali", "sklearn", "matplotlib", "tensorboard"]
print(json.dumps({
    "loaded": [name for name in heavy if name in sys.modules],
    "cuda": torch.cuda.is_initialized(),
}))
"""


def test_the_package_itself_loads_nothing_until_it_is_used():
    code = "import sys, hard_fast; has = lambda name: print(name in sys.modules); has('torch')"
    code += "; has('pydantic'); from hard_fast import Distiller; has('torch'); has('timm')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "False"]


def test_pydoc_shows_what_is_public():
    said = subprocess.run(
        [sys.executable, "-m", "pydoc", "hard_fast"], capture_output=True, text=True, check=True
    ).stdout
    for line in ("class Distiller", "class Network", "step(self, image", "VERSION"):
        assert line in said
    assert "partially initialized" not in said


def test_importing_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"loaded": [], "cuda": False}
