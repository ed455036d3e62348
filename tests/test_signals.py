import torch

from rlmods.signals import SIGNALS, curves, stack_signals


def test_a_signal_of_an_optimiser_is_drawn_under_its_name() -> None:
    (tag,) = curves("grad_norm/q")
    assert tag == "stability/grad_norm/q"
    assert curves("grad_norm").keys() == {"stability/grad_norm"}


def test_a_name_outside_the_vocabulary_is_not_drawn() -> None:
    assert curves("my_signal") == {}


def test_reductions() -> None:
    td_error = torch.tensor([[-3.0, 1.0]])
    assert curves("td_error")["train/td_error_abs"].of_iteration(td_error).item() == 2.0
    assert curves("q_value")["stability/q_max"].of_iteration(td_error).item() == 1.0
    assert curves("q_value")["train/q_mean"].of_iteration(td_error).item() == -1.0


def test_an_interval_is_a_mean_a_maximum_or_the_latest_value() -> None:
    values = torch.tensor([1.0, 5.0, 3.0])
    assert curves("loss")["train/loss"].of_interval(values).item() == 3.0
    assert curves("q_value")["stability/q_max"].of_interval(values).item() == 5.0
    assert curves("update_steps")["train/n_updates"].of_interval(values).item() == 3.0
    assert curves("loss")["train/loss"].of_interval(torch.tensor([1.0, torch.nan])).isnan()


def test_bounds_are_in_order_and_tags_are_ours() -> None:
    for name, signal in SIGNALS.items():
        assert signal.low < signal.high, name
        assert all(tag.split("/")[0] in ("train", "rollout", "stability", "time") for tag in signal.curves)


def test_stacking_detaches() -> None:
    loss = torch.ones((), requires_grad=True)
    stacked = stack_signals([{"loss": loss * 2}, {"loss": loss * 3}])
    assert stacked["loss"].tolist() == [2.0, 3.0]
    assert not stacked["loss"].requires_grad
