"""A few short runs that must find what they should, and nothing else: for every change, in under three minutes."""

from .catalogue import FAULTS
from .experiment import Task, run
from .measures import detection

BUDGET = 4_096
SEED = 100
SMOKE_FAULTS = (
    "C16-clip-not-used",
    "X07-terminals-in-target",
    "n-step-exponent",
    "stale-successor",
    "X23-stale-optimizer",
    "X26-detached-trunk",
    "X24-averaged-twice",
    "X27-reward-nan",
)
SMOKE_CONFIGURATIONS = ("small", "shipped")


def smoke() -> int:
    """Print what was found; 0 where all is as expected, else 1."""
    failures = 0
    for name in SMOKE_FAULTS:
        record = run(Task("faulty-guarded", name, SEED, BUDGET))
        fault = FAULTS[name]
        found = detection(record, fault, "info" if fault.information_is_enough else "warn")
        named = None if found is None else found.first_cause
        is_right = named in fault.causes
        failures += not is_right
        expected = " or ".join(sorted(fault.causes))
        print(f"{'ok' if is_right else 'FAILED'}: {name} was found as {named}, expected {expected}", flush=True)
    for name in SMOKE_CONFIGURATIONS:
        record = run(Task("healthy-guarded", name, SEED, BUDGET))
        acting = [alarm["cause"] for alarm in record["alarms"] if alarm["severity"] in ("act", "fatal")]
        is_quiet = not acting and record["crash"] is None
        failures += not is_quiet
        print(f"{'ok' if is_quiet else 'FAILED'}: healthy {name} raised {acting or 'no acting alarm'}", flush=True)
    return int(failures > 0)
