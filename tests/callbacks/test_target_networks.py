import pytest
from lightning.pytorch import LightningModule
from torch import nn

from rlmods.callbacks.target_networks import online_network, target_networks


class Container(LightningModule):
    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


@pytest.mark.parametrize(
    "target", ["target_network", "critic_target", "target_critic", "critic_tgt", "slow_critic", "ema", "critic_targ"]
)
def test_names_of_target_networks(target: str) -> None:
    module = Container(critic=nn.Linear(2, 1), **{target: nn.Linear(2, 1)})
    assert list(target_networks(module)) == [target]
    assert online_network(module, target) is module.critic


@pytest.mark.parametrize("name", ["targets", "retargeted", "slower", "schema", "ematic"])
def test_other_names_are_none(name: str) -> None:
    assert target_networks(Container(**{name: nn.Linear(2, 1)})) == {}


def test_modules_without_parameters_are_none() -> None:
    assert target_networks(Container(target_activation=nn.ReLU())) == {}


def test_the_outermost_module_counts() -> None:
    module = Container(target=nn.ModuleDict({"target_head": nn.Linear(2, 1)}), head=nn.Linear(2, 1))
    assert list(target_networks(module)) == ["target"]


def test_twins_keep_to_their_own_network() -> None:
    agent = nn.ModuleDict({name: nn.Linear(2, 1) for name in ("q1", "q2", "target_q1", "target_q2")})
    module = Container(agent=agent, q1_target1=nn.Linear(3, 1))
    assert online_network(module, "agent.target_q1") is agent["q1"]
    assert online_network(module, "agent.target_q2") is agent["q2"]


def test_a_target_that_is_its_own_online_network_is_found() -> None:
    network = nn.Linear(2, 1)
    module = Container(critic=network, target_critic=network)
    assert list(target_networks(module)) == ["target_critic"]
    assert online_network(module, "target_critic") is network


def test_without_a_network_of_its_shapes_it_follows_none() -> None:
    module = Container(critic=nn.Linear(2, 1), target_critic=nn.Linear(3, 1))
    assert online_network(module, "target_critic") is None
