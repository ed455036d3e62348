import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlmods.functional.returns import lambda_return, n_step_return


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)


def test_golden_three_steps() -> None:
    """γ = 0.5, n = 3, rewards 1 2 4 8. t = 0: 1 + 1 + 1 = 3, then γ³ = 0.125. t = 1: 2 + 2 + 2 = 6."""
    none = torch.zeros(4, 1, dtype=torch.bool)
    returns = n_step_return(column(1, 2, 4, 8), none, none, gamma=0.5, n_steps=3)
    assert returns.reward[:2, 0].tolist() == [3.0, 6.0]
    assert returns.discount[:2, 0].tolist() == [0.125, 0.125]
    assert returns.last[:2, 0].tolist() == [2, 3]
    assert not returns.ended.any()


def test_golden_termination_cuts_sum_and_bootstrap() -> None:
    """The episode ends at t = 1: t = 0 sums 1 + 0.5·2 = 2, t = 1 only 2, and neither bootstraps."""
    terminated = torch.tensor([[False], [True], [False], [False]])
    returns = n_step_return(column(1, 2, 4, 8), terminated, torch.zeros_like(terminated), gamma=0.5, n_steps=3)
    assert returns.reward[:2, 0].tolist() == [2.0, 2.0]
    assert returns.discount[:2, 0].tolist() == [0.0, 0.0]
    assert returns.last[:, 0].tolist() == [1, 1, 3, 3]
    assert returns.ended[:, 0].tolist() == [True, True, False, False]


def test_golden_truncation_cuts_the_sum_but_bootstraps_over_the_shorter_horizon() -> None:
    """As above with a time limit: the same sums, then γ² and γ¹ of the value at the final observation."""
    truncated = torch.tensor([[False], [True], [False], [False]])
    returns = n_step_return(column(1, 2, 4, 8), torch.zeros_like(truncated), truncated, gamma=0.5, n_steps=3)
    assert returns.reward[:2, 0].tolist() == [2.0, 2.0]
    assert returns.discount[:2, 0].tolist() == [0.25, 0.5]


steps = st.lists(st.tuples(st.floats(-10, 10), st.booleans(), st.booleans()), min_size=1, max_size=12)


@given(steps)
def test_one_step_is_the_reward_itself(rows: list[tuple[float, bool, bool]]) -> None:
    reward, terminated, truncated = (torch.tensor(values).unsqueeze(1) for values in zip(*rows, strict=True))
    returns = n_step_return(reward, terminated, truncated, gamma=0.9, n_steps=1)
    torch.testing.assert_close(returns.reward, reward)
    torch.testing.assert_close(returns.discount, 0.9 * (~terminated).float())
    assert bool((returns.ended == (terminated | truncated)).all())


@given(steps, st.integers(1, 6), st.floats(0.0, 0.99))
def test_against_a_loop_over_steps(rows: list[tuple[float, bool, bool]], n_steps: int, gamma: float) -> None:
    reward, terminated, truncated = (torch.tensor(values).unsqueeze(1) for values in zip(*rows, strict=True))
    returns = n_step_return(reward, terminated, truncated, gamma, n_steps)
    for t in range(len(rows)):
        total, horizon = 0.0, 0
        for r, is_terminated, is_truncated in rows[t : t + n_steps]:
            total += gamma**horizon * r
            horizon += 1
            if is_terminated or is_truncated:
                break
        is_terminated = rows[t + horizon - 1][1]
        torch.testing.assert_close(returns.reward[t, 0].item(), total, rtol=1e-4, atol=1e-4)
        expected_discount = 0.0 if is_terminated else gamma**horizon
        torch.testing.assert_close(returns.discount[t, 0].item(), expected_discount, rtol=1e-4, atol=1e-6)
        assert returns.last[t, 0].item() == t + horizon - 1


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.floats(0.0, 0.99))
def test_a_horizon_beyond_the_end_is_monte_carlo(rewards: list[float], gamma: float) -> None:
    reward = torch.tensor(rewards).unsqueeze(1)
    terminated = torch.zeros_like(reward, dtype=torch.bool)
    terminated[-1] = True
    returns = n_step_return(reward, terminated, torch.zeros_like(terminated), gamma, len(rewards) + 3)
    monte_carlo, total = [], 0.0
    for r in reversed(rewards):
        total = r + gamma * total
        monte_carlo.append(total)
    torch.testing.assert_close(returns.reward[:, 0], torch.tensor(monte_carlo[::-1]), rtol=1e-4, atol=1e-4)
    assert not returns.discount.any()


def test_golden_a_horizon_ends_before_somebody_elses_action() -> None:
    """γ = 0.5, n = 3, rewards 1 2 4 8 16, the expert acts at t = 2. t = 0: 1 + 0.5·2 = 2, then γ². t = 1: 2, then γ.

    t = 2: 4, then γ. t = 3: 8 + 0.5·16 = 16, and its horizon is still open.
    """
    none = torch.zeros(5, 1, dtype=torch.bool)
    actor = torch.tensor([[0], [0], [1], [0], [0]])
    returns = n_step_return(column(1, 2, 4, 8, 16), none, none, gamma=0.5, n_steps=3, actor=actor)
    assert returns.reward[:, 0].tolist() == [2.0, 2.0, 4.0, 16.0, 16.0]
    assert returns.discount[:, 0].tolist() == [0.25, 0.5, 0.5, 0.25, 0.5]
    assert returns.last[:, 0].tolist() == [1, 1, 2, 4, 4]
    assert returns.ended[:, 0].tolist() == [True, True, True, False, False]


def test_golden_an_episode_that_ends_before_somebody_else_acts_does_not_bootstrap() -> None:
    terminated = torch.tensor([[False], [True], [False]])
    actor = torch.tensor([[0], [0], [1]])
    none = torch.zeros_like(terminated)
    returns = n_step_return(column(1, 2, 4), terminated, none, gamma=0.5, n_steps=3, actor=actor)
    assert returns.reward[:, 0].tolist() == [2.0, 2.0, 4.0]
    assert returns.discount[:2, 0].tolist() == [0.0, 0.0]


@given(st.lists(st.tuples(st.floats(-10, 10), st.booleans()), min_size=1, max_size=12), st.integers(1, 6))
def test_an_actors_horizon_is_that_of_episodes_truncated_where_the_actor_changes(
    rows: list[tuple[float, bool]], n_steps: int
) -> None:
    reward, actor = (torch.tensor(values).unsqueeze(1) for values in zip(*rows, strict=True))
    none = torch.zeros_like(actor)
    changes = torch.cat([actor[1:] != actor[:-1], none[:1]])
    mixed = n_step_return(reward, none, none, 0.9, n_steps, actor=actor)
    cut = n_step_return(reward, none, changes, 0.9, n_steps)
    assert torch.equal(mixed.reward, cut.reward)
    assert torch.equal(mixed.discount, cut.discount)
    assert torch.equal(mixed.last, cut.last)


@given(steps, st.integers(1, 6))
def test_one_actor_is_as_nobody_asked(rows: list[tuple[float, bool, bool]], n_steps: int) -> None:
    reward, terminated, truncated = (torch.tensor(values).unsqueeze(1) for values in zip(*rows, strict=True))
    alone = n_step_return(reward, terminated, truncated, 0.9, n_steps, actor=torch.ones_like(terminated))
    for mine, theirs in zip(alone, n_step_return(reward, terminated, truncated, 0.9, n_steps), strict=True):
        assert torch.equal(mine, theirs)


def test_golden_lambda_return() -> None:
    """λ = 0.5 over the states 0 to 3, discounts 0.5: R₂ = 4 + 0.5·16 = 12, R₁ = 2 + 0.5·(0.5·8 + 0.5·12) = 7,

    R₀ = 1 + 0.5·(0.5·2 + 0.5·7) = 3.25. What belongs to state 0 is not read.
    """
    nothing = float("nan")
    returns = lambda_return(column(nothing, 1, 2, 4), column(nothing, 0.5, 0.5, 0.5), column(nothing, 2, 8, 16), 0.5)
    assert returns[:, 0].tolist() == [3.25, 7.0, 12.0]


def test_golden_one_step_takes_the_value_of_the_next_state() -> None:
    """λ = 0: r of the next state + 0.5 · its value, not that of this one or of the one after it."""
    returns = lambda_return(column(9, 1, 2, 4), column(0.5, 0.5, 0.5, 0.5), column(100, 2, 8, 16), 0.0)
    assert returns[:, 0].tolist() == [2.0, 6.0, 12.0]


def test_golden_a_terminal_state_cuts_the_return() -> None:
    """State 2 is terminal: R₁ = 2, whatever follows, and R₀ = 1 + 0.5·(0.5·2 + 0.5·2) = 2."""
    returns = lambda_return(column(0, 1, 2, 4), column(0.5, 0.5, 0.0, 0.5), column(0, 2, 1e9, 1e9), 0.5)
    assert returns[:2, 0].tolist() == [2.0, 2.0]


def test_golden_a_row_with_lambda_zero_cuts_the_trace_and_bootstraps() -> None:
    """State 2 ends an episode by a time limit: R₁ = 2 + 0.5·8 = 6, R₀ = 1 + 0.5·(0.5·2 + 0.5·6) = 3."""
    gae_lambda = column(0.5, 0.5, 0.0, 0.5)
    returns = lambda_return(column(0, 1, 2, 1e9), column(0, 0.5, 0.5, 0.5), column(0, 2, 8, 1e9), gae_lambda)
    assert returns[:2, 0].tolist() == [3.0, 6.0]


chains = st.lists(st.tuples(*[st.floats(-10, 10), st.floats(0, 1), st.floats(-10, 10)]), min_size=2, max_size=12)


@given(chains, st.floats(0.0, 1.0))
def test_lambda_returns_against_the_recursion_in_plain_numbers(
    rows: list[tuple[float, float, float]], gae_lambda: float
) -> None:
    reward, discount, value = (torch.tensor(values).unsqueeze(1) for values in zip(*rows, strict=True))
    following, expected = rows[-1][2], []
    for r, d, v in reversed(rows[1:]):
        following = r + d * ((1.0 - gae_lambda) * v + gae_lambda * following)
        expected.append(following)
    returns = lambda_return(reward, discount, value, gae_lambda)
    assert returns[:, 0].tolist() == pytest.approx(expected[::-1], rel=1e-4, abs=1e-4)
    varying = lambda_return(reward, discount, value, torch.full_like(reward, gae_lambda))
    torch.testing.assert_close(varying, returns)


@given(chains)
def test_lambda_one_is_monte_carlo(rows: list[tuple[float, float, float]]) -> None:
    """Σ of the rewards, each times all discounts before it, and at the end the last value; no other value is read."""
    reward, discount, value = (torch.tensor(values).unsqueeze(1) for values in zip(*rows, strict=True))
    expected = []
    for start in range(len(rows) - 1):
        total, so_far = 0.0, 1.0
        for r, d, _ in rows[start + 1 :]:
            total += so_far * r
            so_far *= d
        expected.append(total + so_far * rows[-1][2])
    returns = lambda_return(reward, discount, value, 1.0)
    assert returns[:, 0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(chains)
def test_a_value_function_that_fits_is_the_return_for_every_lambda(rows: list[tuple[float, float, float]]) -> None:
    """Where v is the one-step target of itself, mixing horizons changes nothing."""
    reward, discount, _ = (torch.tensor(values).unsqueeze(1) for values in zip(*rows, strict=True))
    end = torch.cat([torch.zeros_like(reward[1:]), torch.full_like(reward[:1], rows[-1][2])])
    value = torch.cat([lambda_return(reward, discount, end, 1.0), end[-1:]])
    for gae_lambda in (0.0, 0.3, 0.95):
        torch.testing.assert_close(lambda_return(reward, discount, value, gae_lambda), value[:-1], rtol=1e-4, atol=1e-4)


def test_lambda_returns_of_many_sequences_are_those_of_each() -> None:
    torch.manual_seed(0)
    reward, discount, value = torch.randn(6, 2, 3), torch.rand(6, 2, 3), torch.randn(6, 2, 3)
    together = lambda_return(reward, discount, value, 0.95)
    assert together.shape == (5, 2, 3)
    alone = lambda_return(reward[:, 1, 2], discount[:, 1, 2], value[:, 1, 2], 0.95)
    torch.testing.assert_close(together[:, 1, 2], alone)


def test_a_single_state_has_no_return() -> None:
    assert lambda_return(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2), 0.95).shape == (0, 2)
