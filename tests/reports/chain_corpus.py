"""Eleven runs of one afternoon on a drone swarm, each begun from an earlier one, with what was right to do next.

PPO with an unbounded Gaussian over four actions, Muon on every matrix with log σ among them, and a cosine that ended at
a learning rate of 0. Of every run only the last evaluation is known, of about 200 episodes, without its spread. What
was called a success rate was a count.
"""

from typing import Any, NamedTuple

from rlmods.reports.facts import RunFacts, Score

DIMENSIONS, UNIFORM = 4, 2.7726


class Labelled(NamedTuple):
    """A run, and the next step that its successors have shown to be right."""

    facts: RunFacts
    knob: str  # that goes back; empty where the settings were right
    to: float | None
    best: str  # whose checkpoint to begin from; empty where any healthy one would do


def _run(
    name: str,
    parent: RunFacts | None,
    ent_coef: float,
    learning_rate: float,
    n_epochs: int | None,
    reward: float,
    success: float,
    entropy: float | None,
    steps: int = 20_000_000,
) -> RunFacts:
    settings: dict[str, Any] = {
        "seed_everything": 42,
        "model.init_args.ent_coef": ent_coef,
        "model.init_args.learning_rate": learning_rate,
        "model.init_args.n_epochs": n_epochs,
        "model.init_args.action_distribution": "unbounded",
        "model.init_args.optimizer": "muon",
        "model.init_args.muon_parameters": "all_matrices",
        "data.init_args.total_env_steps": steps,
    }
    score = Score(reward, None, 200, steps, f"{name}.ckpt")
    return RunFacts(
        run=name,
        settings=settings,
        scores=(score,),
        best=score,
        start=None if parent is None else parent.last,
        continued="weights" if parent is not None else "fresh",
        parent=parent,
        env_steps=steps,
        action="continuous",
        dimensions=DIMENSIONS,
        entropy=entropy,
        entropy_first=None if parent is None else parent.entropy,
        uniform_entropy=UNIFORM,
        kl_last=0.0,
        learning_rate_peak=learning_rate,
        learning_rate_last=0.0,
        quarantined={"eval/success_rate": success} if success > 1.0 else {},
    )


def labelled_runs() -> list[Labelled]:
    """In the order in which they were made."""
    a = _run("1511", None, 0.02, 3e-3, 16, 438.3, 285.6, 23.8)
    b = _run("1522", a, 0.01, 2.5e-3, 20, 535.2, 894.5, 24.0)
    c = _run("1535", b, 0.12, 3e-3, 12, 7.4, 0.0, 32.73, 10_000_000)
    d = _run("1541", c, 0.10, 3e-3, 16, -4.9, 0.0, 55.98, 10_000_000)
    e = _run("1552", b, 0.02, 2.5e-3, 20, 479.8, 512.4, 27.4)
    f = _run("1604", b, 0.01, 2.5e-3, 12, 496.6, 1258.9, 24.7)
    g = _run("1620", f, 0.12, 2.5e-3, 3, 250.6, 9.4, 28.3)
    h = _run("1626", f, 0.06, 2.5e-3, 4, 139.4, 0.0, 29.5)
    i = _run("1633", f, 0.01, 2.5e-3, None, 462.5, 1647.4, None)
    j = _run("1654", i, 0.12, 3e-3, 6, 0.66, 0.0, 37.7, 10_000_000)
    k = _run("1704", i, 0.01, 1.8e-3, 4, 520.0, 1715.8, 25.0)
    bonus = "model.init_args.ent_coef"
    return [
        *(Labelled(run, "", None, "") for run in (a, b)),
        Labelled(c, bonus, 0.01, "1522"),
        Labelled(d, bonus, 0.01, "1522"),
        *(Labelled(run, "", None, "") for run in (e, f)),
        Labelled(g, bonus, 0.01, "1522"),
        Labelled(h, bonus, 0.01, "1522"),
        Labelled(i, "", None, ""),
        Labelled(j, bonus, 0.01, "1522"),
        Labelled(k, "", None, ""),
    ]
