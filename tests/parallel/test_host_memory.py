"""What a CPU's process keeps of its memory."""

import platform
import subprocess
import sys

import pytest

# Bytes allocated, touched and freed, twice; the pages that the second time had to be given.
PROGRAM = """
import resource, sys
import numpy as np
from deberta_jax.parallel import host_memory

if sys.argv[1] == "keep":
    host_memory.keep()
np.ones(2**27, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**27, np.uint8)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""


def fresh_bytes(what):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_given_back_is_used_again():
    assert fresh_bytes("keep") < 2**23
    assert fresh_bytes("give back") > 2**20
