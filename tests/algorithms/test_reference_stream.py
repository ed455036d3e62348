import io

import numpy as np
import pytest
import torch

from rlmods.algorithms.reference_stream import ReferenceStream

# Of the published run: seed 0, horizon 200, 4 bootstrap samples.
FIRST_SEEDS = [1421746521, 1454269175, 1621906120, 293008971]


def test_golden_seeds_of_the_environments() -> None:
    assert ReferenceStream(0).begin_rollout(4, 200, 4) == FIRST_SEEDS


def test_golden_initial_numbers() -> None:
    """θ of the published run is 0.2 times these."""
    numbers = ReferenceStream(0).initial_normal(512, 2).flatten()[:3]
    expected = [0.2887381909396251 / 0.2, -0.17918919527714827 / 0.2, 0.1471911340354076 / 0.2]
    np.testing.assert_allclose(numbers, expected, rtol=1e-15)


@pytest.mark.parametrize("num_samples", [0, 1, 4])
def test_numbers_come_in_the_order_of_a_loop_over_trajectories_and_steps(num_samples: int) -> None:
    num_envs, num_steps = 3, 5
    stream = ReferenceStream(7)
    generator = np.random.default_rng(np.random.SeedSequence(7).spawn(2)[1])
    for _ in range(2):
        seeds = stream.begin_rollout(num_envs, num_steps, num_samples)
        actions = torch.stack([stream.next_action_noise() for _ in range(num_steps)])
        bootstrap = stream.bootstrap_noise(torch.Size((num_steps, num_envs))).view(num_steps, num_envs, num_samples, 2)
        for env in range(num_envs):
            assert seeds[env] == generator.integers(0, 2**31 - 1)
            for step in range(num_steps):
                assert actions[step, env].tolist() == generator.standard_normal(2).tolist()
                for sample in range(num_samples):
                    assert bootstrap[step, env, sample].tolist() == generator.standard_normal(2).tolist()


def test_initial_numbers_leave_the_rollouts_alone() -> None:
    stream, other = ReferenceStream(3), ReferenceStream(3)
    first = stream.initial_normal(5)
    assert not torch.equal(first, stream.initial_normal(5))
    assert stream.begin_rollout(2, 3, 1) == other.begin_rollout(2, 3, 1)


def test_a_rollout_of_another_shape_is_refused() -> None:
    stream = ReferenceStream(0)
    stream.begin_rollout(2, 3, 1)
    with pytest.raises(ValueError, match=r"got a rollout \(3, 3\), expected the one drawn last, \(3, 2\)"):
        stream.bootstrap_noise(torch.Size((3, 3)))


def test_a_saved_stream_goes_on_bit_for_bit() -> None:
    stream = ReferenceStream(5)
    stream.begin_rollout(3, 2, 1)
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    file.seek(0)
    restored = ReferenceStream(6)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(2):
        assert restored.begin_rollout(2, 4, 3) == stream.begin_rollout(2, 4, 3)
        assert torch.equal(restored.next_action_noise(), stream.next_action_noise())
        shape = torch.Size((4, 2))
        assert torch.equal(restored.bootstrap_noise(shape), stream.bootstrap_noise(shape))
