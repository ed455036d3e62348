"""Exploration and the expert's share over the budget. Thresholds stand here."""

import math

from rlmods.doctor.line import Line, fail, line_of, of_data, of_model, warn
from rlmods.functional.expert_share import expert_floor_reached, expert_share

_RANDOM_AT_THE_END = 0.2
_LATE_FLOOR = 0.9  # of the budget
_OWN_FRAMES = 0.1  # that the network acts on
_MOSTLY_MIXED = 0.5
_SAMPLES = 10_000


def exploration_rate(
    start: float, end: float, fraction: float, budget: int, first_update: int, care: float, *, noisy: bool
) -> Line:
    """ε in frames.

    Args:
        start: ε at the beginning.
        end: after the phase.
        fraction: part of the budget that the phase takes.
        budget: environment steps.
        first_update: environment step of it.
        care: factor where the environment needs care.
        noisy: whether layers with noise explore besides.
    """
    reached = fraction * budget
    arithmetic = (
        f"{start:g} -> {end:g} over {fraction:g} x {budget:,} = {reached:,.0f} frames"
        if start != end
        else f"{start:g} all the time"
    )
    arithmetic += f", x {care:g} where the environment needs care" * (care != 1.0) + ", and noisy layers" * noisy
    return line_of(
        "exploration",
        arithmetic,
        warn(start == end == 0.0 and not noisy, "Nothing is explored", of_model("exploration_initial_eps", 1.0)),
        warn(
            start == end > 0.0,
            f"An inert schedule: it begins at its end, and {end:.0%} of all actions stay random",
            of_model("exploration_initial_eps", 1.0),
        ),
        warn(start < end, "The schedule rises: more is random at the end", of_model("exploration_final_eps", 0.05)),
        warn(
            end > _RANDOM_AT_THE_END,
            f"{end:.0%} of the actions are random to the end: the data are never those of a good policy",
            of_model("exploration_final_eps", 0.05),
        ),
        warn(
            start > end and reached < first_update,
            f"It has ended before the first update at {first_update:,}: the first policy is hardly explored around",
            of_model("exploration_fraction", f"{min(1.0, 2.0 * first_update / budget):.2g}"),
        ),
    )


def exploration_noise(start: float, end: float, fraction: float, budget: int) -> Line:
    """Standard deviation of the noise on actions, in half action ranges."""
    arithmetic = (
        f"{start:g} all the time" if start == end else f"{start:g} -> {end:g} over {fraction * budget:,.0f} frames"
    )
    clipped = math.erfc(1.0 / (max(start, 1e-12) * math.sqrt(2.0)))
    return line_of(
        "exploration",
        f"noise of {arithmetic}, in half action ranges; around the middle {clipped:.1%} of the first actions leave the "
        "box",
        warn(start == end == 0.0, "Nothing is explored after the warm-up", of_model("exploration_noise", 0.1)),
        warn(start < end, "The noise rises", of_model("final_exploration_noise", start)),
        warn(
            end > 0.5,
            f"The noise is {end:g} of half the range to the end: a good policy's data never come",
            of_model("final_exploration_noise", 0.1),
        ),
    )


def expert(env_id: str, *, exists: bool) -> Line:
    """Whether the environment has the expert that the data module asks."""
    return line_of(
        "expert",
        f"{env_id} has {'an' if exists else 'no'} expert",
        fail(
            not exists,
            "Training cannot begin",
            "type --data.init_args.env_id rlmods/LaneShooter-v0, or --data.class_path rlmods.data.ReplayDataModule",
        ),
    )


def expert_curriculum(
    start: float, decay: float, decay_steps: int, floor: float, care_scale: float, *, budget: int
) -> Line:
    """The frame at which the expert's share reaches its floor, and how many frames the network has to itself.

    Args:
        start: the share at the beginning.
        decay: factor of a step of the schedule.
        decay_steps: environment steps between two of them.
        floor: what the share falls to.
        care_scale: factor where the environment needs care.
        budget: environment steps.
    """

    def share(env_steps: int) -> float:
        return expert_share(env_steps, start=start, decay=decay, decay_steps=decay_steps, floor=floor)

    reached = expert_floor_reached(start=start, decay=decay, decay_steps=decay_steps, floor=floor)
    own = 1.0 - sum(share(budget * i // _SAMPLES) for i in range(_SAMPLES)) / _SAMPLES
    at = "never" if math.isinf(reached) else f"at frame {reached:,.0f}"
    arithmetic = (
        f"share {start:g} x {decay:g} every {decay_steps:,} frames, floor {floor:g} {at}; at the end of the budget of "
        f"{budget:,} it is {share(budget):.3g}, and the network acts on {own:.0%} of all frames"
    )
    arithmetic += f"; x {care_scale:g} where the environment needs care" * (care_scale != 1.0)
    # Brings the share to the floor, or to a hundredth, in half of the budget.
    faster = f"{(max(floor, 0.01) / start) ** (decay_steps / (0.5 * budget)):.4g}" if start > 0.0 else ""
    advice = of_data("expert_share_decay", faster)
    if decay_steps > 0.1 * budget:
        advice = of_data("expert_share_decay_steps", max(budget // 100, 1))
    inert = start > floor and (decay == 1.0 or decay_steps > budget)
    return line_of(
        "expert_curriculum",
        arithmetic,
        warn(start == 0.0, "The expert never acts", of_data("expert_share", 0.95)),
        warn(inert, "An inert schedule: the share never falls, and the floor is not in effect", advice),
        warn(
            0.0 < floor < start and reached > _LATE_FLOOR * budget,
            "The floor comes at the end of the budget or not at all: the expert carries the run",
            advice,
        ),
        warn(
            own < _OWN_FRAMES,
            "The network acts on less than a tenth of the frames: it learns of states that it never brings about",
            advice,
        ),
        note="While the share falls the reward of a frame moves by bookkeeping alone: look at evaluations",
    )


def mixed_returns(n_steps: int, share: float, *, through_expert: bool) -> Line:
    """How many n-step returns are of network and expert both: 1 − (1 − s)ⁿ − sⁿ for a share s of coins.

    Args:
        n_steps: n.
        share: s, at the end of the budget.
        through_expert: whether a return goes on where somebody else acts than at its first step.
    """
    mixed = 1.0 - (1.0 - share) ** n_steps - share**n_steps
    arithmetic = f"n {n_steps} with a share of {share:.3g}: {mixed:.0%} of the returns have steps of both"
    if not through_expert:
        return Line(
            "PASS", "mixed_returns", f"{arithmetic}; they end before the other acts, with a discount of their own"
        )
    return line_of(
        "mixed_returns",
        arithmetic,
        warn(
            mixed > _MOSTLY_MIXED,
            "Most targets at the end are returns of a policy that is neither the network's nor the expert's",
            of_data("n_step_through_expert", "false"),
        ),
    )


def cloning(coef: float, final: float, fraction: float, budget: int, first_update: int, *, has_expert: bool) -> Line:
    """The weight of behavioural cloning over the budget."""
    return line_of(
        "cloning",
        f"bc_coef {coef:g} -> {final:g} over {fraction:g} x {budget:,} = {fraction * budget:,.0f} frames",
        warn(
            not has_expert,
            "No transition says that an expert chose its action: nothing is cloned",
            "type --data rlmods.data.ExpertDataModule, or --model.init_args.bc_coef 0",
        ),
        warn(
            final == 0.0 and fraction * budget <= first_update,
            f"It is 0 by the first update, at {first_update:,}: nothing is cloned",
            of_model("bc_fraction", f"{min(1.0, 0.5 + first_update / budget):.2g}"),
        ),
        warn(
            final >= coef and coef > 0.0,
            "The weight never falls: the policy stays bound to the expert's",
            of_model("bc_final_coef", 0.0),
        ),
    )
