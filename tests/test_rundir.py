import os
import subprocess
import sys

import pytest
import torch

from hard_fast.rundir import RunDir, agree_on
from hard_fast.runtime.configfile import dump, merge
from hard_fast.runtime.dist import World
from hard_fast.train import load_config

ALONE = World(0, 1, torch.device("cpu"))


def config_of(tree, tmp_path, **changes):
    path = tmp_path / "in.toml"
    path.write_text(dump(merge(tree, changes)))
    return load_config(str(path), [])


def claim(config, resume=True):
    return RunDir(
        config,
        ALONE,
        resume=resume,
        fingerprint_of=lambda path: load_config(str(path), []).fingerprint,
    )


def test_a_directory_in_use_is_refused_until_its_process_has_ended(tiny_run, tmp_path):
    config = config_of(tiny_run, tmp_path)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys, time\n"
            "os.makedirs(sys.argv[1])\n"
            "lock = open(sys.argv[1] + '/.lock', 'a+')\n"
            "fcntl.flock(lock, fcntl.LOCK_EX)\n"
            "lock.write(str(os.getpid())); lock.flush()\n"
            "print('locked', flush=True)\n"
            "time.sleep(60)",
            config.run_dir,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"run' is in use by process {holder.pid}; wait"):
            claim(config)
        # Nor is it moved aside under the other's feet.
        with pytest.raises(ValueError, match="in use by process"):
            claim(config, resume=False)
    finally:
        holder.kill()
        holder.wait()
    place = claim(config)
    assert (place.path / ".lock").read_text() == str(os.getpid())
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        claim(config)
    place.release()
    claim(config).release()


def test_another_configuration_is_refused_and_moved_aside_when_asked(tiny_run, tmp_path):
    config = config_of(tiny_run, tmp_path)
    place = claim(config)
    place.config_file.write_text(dump(config.model_dump(mode="json")))
    place.release()
    other = config_of(tiny_run, tmp_path, seed=1)
    with pytest.raises(ValueError, match="holds a run of another configuration"):
        claim(other)
    claim(config).release()
    moved = claim(other, resume=False)
    assert not moved.config_file.exists() and (tmp_path / "run.old-1" / "config.toml").is_file()
    # It is the new directory that is locked.
    with pytest.raises(ValueError, match="in use"):
        claim(other)
    moved.release()


def test_a_place_that_cannot_be_written_is_one_line(tiny_run, tmp_path):
    (tmp_path / "file").write_text("")
    config = config_of(tiny_run, tmp_path, run_dir=str(tmp_path / "file" / "run"))
    with pytest.raises(ValueError, match="file/run' cannot be used: Not a directory"):
        claim(config)


def test_one_process_agrees_with_itself(tiny_run, tmp_path):
    agree_on(config_of(tiny_run, tmp_path))
