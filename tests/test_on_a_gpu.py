"""The tests of on_a_gpu.py, in a process of their own: torch's autograd must know of a device before it first runs, and
other tests must not find one."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_stage_keeps_its_tensors_on_the_device():
    file = Path(__file__).with_name("on_a_gpu.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
