import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import torch
from rlmods.memory_allocator import keep_freed_memory

def resident_pages():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])

if {keeps}:
    keep_freed_memory()
before = resident_pages()
tensor = torch.ones(2**26)
del tensor
print((resident_pages() - before) * 4096)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc knows the options")
@pytest.mark.parametrize("keeps", [True, False])
def test_freed_memory_stays_where_it_was_asked_for(keeps: bool) -> None:
    program = [sys.executable, "-c", _PROGRAM.format(keeps=keeps)]
    left = int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    assert (left > 2**27) == keeps
