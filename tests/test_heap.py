"""Memory that a command frees stays with it."""

import os
import platform
import subprocess
import sys

import pytest

CHILD = """
import ctypes, resource, sys
sys.argv = ["dmvae", "--version"]
{before}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def touched():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun
SIZE = 200 * 2**20
touched()
print(touched())
"""
MANY = 100
"""Of 200 MiB: 51,200 pages, or 100 where all are huge ones."""
MAIN = "from dmvae.cli import main; main()"


def faults(before: str, **environment: str) -> int:
    """Pages that the system gives for a block as large as the one that was freed just before."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    code = CHILD.format(before=before)
    printed = subprocess.run(
        [sys.executable, "-c", code], env=own | environment, capture_output=True, check=True
    ).stdout
    return int(printed.split()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone does this")
def test_a_command_uses_again_what_it_freed() -> None:
    assert faults("") >= MANY
    assert faults(MAIN) < MANY / 5


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone does this")
@pytest.mark.parametrize(
    "setting", [{"MALLOC_TOP_PAD_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_what_the_environment_says_of_malloc_stays(setting: dict[str, str]) -> None:
    assert faults(MAIN, **setting) >= MANY
