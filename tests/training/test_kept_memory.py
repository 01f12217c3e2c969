import subprocess
import sys

PROBE = """
import resource
import numpy as np
from leapray.training.memory import keep_freed_memory

def faults():
    for _ in range(20):
        np.ones(5_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(5_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults()
keep_freed_memory()
print(default, faults())
"""


def test_memory_that_was_freed_is_not_taken_from_the_system_again():
    default, kept = map(int, subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout.split())
    assert kept < 20
    assert default > 20 * kept or default == 0
