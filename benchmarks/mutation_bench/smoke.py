"""A few short runs that must find what they should, and nothing else: for every change, in less than a minute."""

from .case import Bench
from .experiment import alarms_from, run

SEED = 100


def smoke(bench: Bench) -> int:
    """Print what was found; 0 where all is as expected, else 1."""
    failures = 0
    for name in bench.smoke:
        case = bench.cases[name]
        record = run(bench, case, SEED, total_env_steps=bench.smoke_env_steps)
        said = [alarm["cause"] for alarm in alarms_from(record, "warn" if case.causes else "act")]
        is_right = said[:1] == [] if not case.causes else bool(said) and said[0] in case.causes
        is_right &= record["crash"] is None
        failures += not is_right
        expected = " or ".join(sorted(case.causes)) or "nothing"
        got = record["crash"] or (said[0] if said else "nothing")
        print(f"{'ok' if is_right else 'FAILED'}: {name} was found as {got}, expected {expected}", flush=True)
    return int(failures > 0)
