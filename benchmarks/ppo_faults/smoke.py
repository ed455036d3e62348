"""A few short runs that must find what they should, and nothing else: for every change, in less than a minute."""

from .catalogue import FAULTS, HEALTHY
from .experiment import alarms_from, run

SEED = 100
TOTAL_ENV_STEPS = 2_048
SMOKE_FAULTS = (
    "ratio-of-squashed",
    "memory-not-reset",
    "no-bootstrap-truncation",
    "terminals-bootstrap",
    "discount-twice",
    "minibatches-dropped",
    "entropy-in-bits",
)
SMOKE_HEALTHY = ("cartpole", "unbounded", "lstm-segments")


def smoke() -> int:
    """Print what was found; 0 where all is as expected, else 1."""
    cases = {case.id: case for case in [*FAULTS, *HEALTHY]}
    failures = 0
    for name in (*SMOKE_FAULTS, *SMOKE_HEALTHY):
        case = cases[name]
        record = run(case, SEED, total_env_steps=TOTAL_ENV_STEPS)
        said = [alarm["cause"] for alarm in alarms_from(record, "warn" if case.causes else "act")]
        is_right = said[:1] == [] if not case.causes else bool(said) and said[0] in case.causes
        is_right &= record["crash"] is None
        failures += not is_right
        expected = " or ".join(sorted(case.causes)) or "nothing"
        got = record["crash"] or (said[0] if said else "nothing")
        print(f"{'ok' if is_right else 'FAILED'}: {name} was found as {got}, expected {expected}", flush=True)
    return int(failures > 0)
