import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.networks.q_network import DuelingHead
from rlmods.types import EnvSpec, EpisodeBatch, Minibatch, Observation, ReplayBatch, Transition

SPEC: EnvSpec = {
    "env_id": "Toy-v0",
    "observation": {"shape": [2], "dtype": "float32"},
    "action": {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
}


def last_layer(network: torch.nn.Sequential) -> torch.nn.Linear:
    layer = network[-1]
    assert isinstance(layer, torch.nn.Linear)
    return layer


def make_dqn(**arguments: Any) -> DQN:
    """Q(s, ·) = s: a single linear layer with the identity, so that every number can be redone by hand."""
    model = DQN(spec=SPEC, **({"hidden_sizes": ()} | arguments))
    for network, scale in ((model.q_network, 1.0), (model.target_network, 2.0)):
        torch.nn.init.eye_(last_layer(network).weight)
        torch.nn.init.zeros_(last_layer(network).bias)
        last_layer(network).weight.data *= scale
    return model


def make_transition(rows: int = 2) -> Transition:
    """Row 0 goes on with γ = 0.5, row 1 is terminated."""
    return Transition(
        observation=torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:rows],
        action=torch.tensor([0, 1])[:rows],
        reward=torch.tensor([1.0, 1.0])[:rows],
        discount=torch.tensor([0.5, 0.0])[:rows],
        next_observation=torch.tensor([[6.0, 5.0], [9.0, 9.0]])[:rows],
        terminated=torch.tensor([False, True])[:rows],
        truncated=torch.tensor([False, False])[:rows],
    )


def stack_transitions(*transitions: Transition) -> Transition:
    columns: list[Any] = list(zip(*transitions, strict=True))
    fields: list[Any] = [torch.stack(column) for column in columns]
    return Transition(*fields)


def test_golden_signals() -> None:
    """Target network = 2s. Row 0: 1 + 0.5·2·6 = 7 against Q = 1, error 6. Row 1: 1 against 4, error -3."""
    signals = make_dqn(double_q=False).signals(Minibatch(make_transition(), torch.ones(2)))
    assert signals["q_value"].tolist() == [1.0, 4.0]
    assert signals["td_target"].tolist() == [7.0, 1.0]
    assert signals["td_error"].tolist() == [6.0, -3.0]
    # Huber: |e| - 0.5, mean of 5.5 and 2.5.
    assert signals["loss"].item() == 4.0
    assert not signals["td_target"].requires_grad


@pytest.mark.parametrize(("loss", "expected"), [("huber", (0.5 * 5.5 + 1.0 * 2.5) / 2), ("mse", (0.5 * 36 + 9) / 2)])
def test_golden_importance_weights_enter_before_the_mean(loss: Literal["huber", "mse"], expected: float) -> None:
    minibatch = Minibatch(make_transition(), torch.tensor([0.5, 1.0]))
    assert make_dqn(double_q=False, loss=loss).signals(minibatch)["loss"].item() == expected


def test_golden_double_q() -> None:
    """The online network, with its weights swapped, prefers the other action: 1 + 0.5·2·5 = 6."""
    model = make_dqn(double_q=True)
    last_layer(model.q_network).weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert model.td_target(make_transition()).tolist() == [6.0, 1.0]


def test_double_q_with_equal_networks_is_q_learning() -> None:
    transition = make_transition()
    for model in (make_dqn(double_q=True), make_dqn(double_q=False)):
        model.target_network.load_state_dict(model.q_network.state_dict())
        assert model.td_target(transition).tolist() == [4.0, 1.0]


def test_target_transforms_act_in_turn() -> None:
    model = make_dqn(double_q=False)
    model.target_transforms += [lambda target: target.clamp(max=5.0), lambda target: target + 1.0]
    assert model.td_target(make_transition()).tolist() == [6.0, 2.0]


def test_dueling_advantages_are_centred() -> None:
    """Wang et al., equation 9: the mean over the actions is the value."""
    model = DQN(spec=SPEC, dueling=True)
    observation = torch.randn(5, 2)
    *layers, head = model.q_network
    assert isinstance(head, DuelingHead)
    features = torch.nn.Sequential(*layers)(observation)
    torch.testing.assert_close(model.q_network(observation).mean(-1), head.value(features).squeeze(-1))


def test_losses_are_those_that_training_uses() -> None:
    model = make_dqn(double_q=False)
    transition = make_transition()
    losses = model.losses(Minibatch(transition, torch.ones(2)))
    assert losses["loss"].item() == 4.0
    torch.autograd.backward(losses["loss"])
    assert last_layer(model.q_network).weight.grad is not None
    assert last_layer(model.target_network).weight.grad is None
    stack = stack_transitions(transition, transition)
    batch = ReplayBatch(stack, torch.zeros(2, 2, dtype=torch.int64), torch.ones(2, 2), env_steps=0, progress=0.0)
    assert model.losses(batch)["loss"].item() == 4.0


def test_minibatches_are_the_rows_of_the_stack() -> None:
    transition = make_transition()
    other = transition._replace(reward=torch.tensor([7.0, 8.0]))
    stack = stack_transitions(transition, other)
    batch = ReplayBatch(stack, torch.zeros(2, 2, dtype=torch.int64), torch.ones(2, 2), env_steps=0, progress=0.0)
    first, second = batch.minibatches()
    assert torch.equal(first.transition.reward, transition.reward)
    assert torch.equal(second.transition.reward, other.reward)


def test_exploration_follows_the_clock() -> None:
    model = DQN(spec=SPEC, exploration_fraction=0.5, exploration_final_eps=0.1)
    model.total_env_steps = 1000
    assert model.exploration_rate(0) == 1.0
    assert model.exploration_rate(250) == pytest.approx(0.55)
    assert model.exploration_rate(600) == 0.1


def test_acting_without_exploration_is_greedy_and_draws_nothing() -> None:
    model = make_dqn()
    state = torch.get_rng_state()
    assert model.act(torch.tensor([[1.0, 2.0], [4.0, 3.0]]), env_steps=0, deterministic=True).tolist() == [1, 0]
    assert torch.equal(state, torch.get_rng_state())


def test_what_the_network_expects_is_reported_with_the_evaluation() -> None:
    episodes = EpisodeBatch(
        returns=torch.tensor([10.0, 20.0]).double(),
        lengths=torch.tensor([10, 20]),
        discounted_returns=torch.tensor([5.0, 7.0]).double(),
        events={"success": torch.tensor([1.0, 0.0]).double(), "collision": torch.tensor([math.nan, 0.0]).double()},
        start_observation=torch.tensor([[1.0, 2.0], [4.0, 3.0]]),
        final_observation=torch.tensor([[9.0, 9.0], [1.0, 2.0]]),
        final_discount=torch.tensor([0.0, 0.5]),  # the first terminated, the second was truncated
    )
    metrics = {name: float(value) for name, value in make_dqn().evaluation_metrics(episodes).items()}
    assert metrics == {
        "mean_reward": 15.0,
        "std_reward": 5.0,
        "mean_ep_length": 15.0,
        "mean_discounted_reward": 6.0,
        "episodes": 2.0,
        "success_rate": 0.5,
        "success_rate_low": pytest.approx(0.09453, abs=1e-5),  # Wilson's interval of 1 in 2
        "success_rate_high": pytest.approx(0.90547, abs=1e-5),
        "collision_rate": 0.0,
        "collision_rate_low": 0.0,
        "collision_rate_high": pytest.approx(0.79345, abs=1e-5),  # and of 0 in the 1 that is known: z²/(1 + z²)
        "q_start": 3.0,
        "q_gap": -3.5,  # 2 − 5 and 4 − (7 + 0.5 · 2)
        "q_gap_sem": 0.5,
    }


def test_the_optimiser_holds_the_online_network_under_its_name() -> None:
    model = DQN(spec=SPEC)
    (group,) = model.configure_optimizers().param_groups
    assert group["name"] == "q"
    assert {id(parameter) for parameter in group["params"]} == {id(p) for p in model.q_network.parameters()}


def test_dict_observations() -> None:
    spec: EnvSpec = {**SPEC, "observation": {"pos.x": {"shape": [2], "dtype": "float32"}, "image": {"shape": [1, 36, 36], "dtype": "uint8"}}}  # fmt: skip # noqa: E501
    observation: Observation = {"pos.x": torch.randn(3, 2), "image": torch.zeros(3, 1, 36, 36, dtype=torch.uint8)}
    assert DQN(spec=spec).act(observation, env_steps=0, deterministic=True).shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": 0.0}, r"got tau = 0.0, expected a value in \(0, 1\]: type --model.init_args.tau"),
        ({"target_update_interval": 0}, "target_update_interval = 0, expected a value at least 1"),
        ({"exploration_final_eps": 1.5}, "exploration_final_eps = 1.5"),
        ({"learning_rate": -1.0}, "learning_rate = -1.0, expected a value above 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm = 0.0, expected a value above 0, or null"),
    ],
)
def test_values_outside_their_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DQN(spec=SPEC, **arguments)


def test_continuous_actions_are_refused() -> None:
    action: Any = {"kind": "continuous", "n": 0, "shape": [1], "low": [-2.0], "high": [2.0]}
    with pytest.raises(ValueError, match="continuous actions of Toy-v0, expected discrete ones"):
        DQN(spec={**SPEC, "action": action})


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_target_updates(tau: float) -> None:
    """Online 1, target 2: τ = 1/4 gives 2 - 1/4 = 1.75; τ = 1 copies."""
    from rlmods.networks.target import polyak_update

    target = [torch.full((3,), 2.0)]
    polyak_update(target, [torch.ones(3)], tau)
    expected: Tensor = torch.full((3,), 2.0 - tau)
    assert torch.equal(target[0], expected)
