"""A few short runs that must find what they should, and nothing else: for every change, in less than a minute."""

from .catalogue import FAULTS, HEALTHY
from .experiment import alarms_from, run
from .report import found_in

SEED = 100
TOTAL_ENV_STEPS = 4_096
SMOKE_FAULTS = ("share-never-decays", "limiter-ignored", "horizon-ignored", "hard-target-never-copied", "rate-replaced")
SMOKE_HEALTHY = ("curriculum", "imitates")


def smoke() -> int:
    """Print what was found; 0 where all is as expected, else 1."""
    cases = {case.id: case for case in [*FAULTS, *HEALTHY]}
    failures = 0
    for name in (*SMOKE_FAULTS, *SMOKE_HEALTHY):
        case = cases[name]
        record = run(case, SEED, total_env_steps=TOTAL_ENV_STEPS)
        acting = [alarm["cause"] for alarm in alarms_from(record, "act")]
        is_right = record["crash"] is None and (found_in(case, record) is not None if case.causes else not acting)
        failures += not is_right
        expected = " or ".join(sorted(case.causes)) or "nothing"
        got = record["crash"] or ", ".join(alarm["cause"] for alarm in alarms_from(record, "warn")) or "nothing"
        print(f"{'ok' if is_right else 'FAILED'}: {name} was found as {got}, expected {expected}", flush=True)
    return int(failures > 0)
