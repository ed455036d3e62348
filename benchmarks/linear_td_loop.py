"""Linear off-policy TD as one would write it down first: one environment, one step, one feature vector at a time.

numpy in float64, from the published description: a step evaluates the critic's features six times (of the state,
of the next state with the old action, which nobody uses, and of four actions of the target policy in the next state).
It is what `benchmarks/linear_td.py` measures against, and a second program that must make the same numbers.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

NUM_GOBLETS = 3
OBSERVATION_SIZE, ACTION_SIZE, NUM_EVENTS = 18, 2, 4
DT, V_MAX, V_GHOST = 0.05, 0.4, 0.3
JOSTLE = 0.01
EPS_CATCH, EPS_PICK = 0.05, 0.04
TYPE_RESAMPLE_P, TYPE_POSITIVE_P = 0.5, 0.5
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class LoopSettings:
    """Of the published run that is called `instability`."""

    num_trajectories: int = 16
    horizon: int = 200
    feature_dim: int = 2048
    actor_feature_dim: int = 512
    gamma: float = 0.99
    learning_rate: float = 0.2
    actor_learning_rate: float = 0.12
    beta: float = 0.01
    behaviour_std: float = 0.25
    target_std: float = 0.4
    num_bootstrap_samples: int = 4
    theta_radius: float = 8.0
    initial_scale: float = 0.2
    p_mix: float = 0.01


class Torus:
    """An adventurer, a ghost and three goblets on a periodic square of side 1."""

    def __init__(self, seed: int, p_mix: float) -> None:
        self.generator = np.random.default_rng(np.random.SeedSequence(seed))
        self.p_mix = p_mix
        self.events = np.zeros(NUM_EVENTS)
        self.restart()

    def restart(self) -> None:
        """Draw everything anew."""
        self.position = self.generator.random(2)
        self.ghost = self.generator.random(2)
        self.goblets = self.generator.random((NUM_GOBLETS, 2))
        self.types = np.where(self.generator.random(NUM_GOBLETS) < TYPE_POSITIVE_P, 1.0, -1.0)

    def step(self, action: Array) -> None:
        """Move both, see who meets whom, perhaps begin anew."""
        draw = self.generator
        self.position = (self.position + DT * action + JOSTLE * draw.standard_normal(2)) % 1.0
        chase = way(self.ghost, self.position)
        distance = np.linalg.norm(chase)
        direction = chase / distance if distance >= 1e-12 else np.zeros(2)
        self.ghost = (self.ghost + DT * V_GHOST * direction + JOSTLE * draw.standard_normal(2)) % 1.0
        self.events = np.zeros(NUM_EVENTS)
        if np.linalg.norm(way(self.ghost, self.position)) <= EPS_CATCH:
            self.events[0] = 1.0
            self.ghost = draw.random(2)
        for goblet in range(NUM_GOBLETS):
            if np.linalg.norm(way(self.goblets[goblet], self.position)) <= EPS_PICK:
                self.pick(goblet)
                break
        if draw.random() < self.p_mix:
            self.restart()
            self.events = np.array([0.0, 0.0, 0.0, 1.0])

    def pick(self, goblet: int) -> None:
        """It appears elsewhere, perhaps with another type."""
        self.events[1 if self.types[goblet] > 0 else 2] = 1.0
        self.goblets[goblet] = self.generator.random(2)
        if self.generator.random() < TYPE_RESAMPLE_P:
            self.types[goblet] = 1.0 if self.generator.random() < TYPE_POSITIVE_P else -1.0

    def observation(self) -> Array:
        """Eighteen numbers."""
        ways = np.array([way(self.position, goblet) for goblet in self.goblets])
        nearest = int(np.argmin([np.linalg.norm(each) for each in ways]))
        angles, ghost_angles = 2.0 * np.pi * self.position, 2.0 * np.pi * self.ghost
        numbers = [np.sin(angles), np.cos(angles), np.sin(ghost_angles), np.cos(ghost_angles)]
        numbers += [way(self.position, self.ghost), ways[nearest], np.array([self.types[nearest], self.types.mean()])]
        return np.concatenate([*numbers, self.events])


def way(start: Array, end: Array) -> Array:
    """The shortest way on the torus."""
    return (end - start + 0.5) % 1.0 - 0.5


def projected(action: Array) -> Array:
    """On the disc of the largest speed."""
    norm = float(np.linalg.norm(action))
    return action if norm <= V_MAX else action * (V_MAX / norm)


class Loop:
    """The training, with feature seed 0.

    Args:
        settings: of the run.
        seed: of the initial parameters and of the rollouts.
    """

    def __init__(self, settings: LoopSettings, seed: int = 0) -> None:
        self.settings = settings
        actor, critic, teacher = (np.random.default_rng(child) for child in np.random.SeedSequence(0).spawn(3))
        inputs, num_cosines = OBSERVATION_SIZE + ACTION_SIZE + 1, settings.feature_dim - NUM_EVENTS
        self.actor_weight = actor.standard_normal((settings.actor_feature_dim, OBSERVATION_SIZE)) / np.sqrt(18)
        self.actor_bias = 0.1 * actor.standard_normal(settings.actor_feature_dim)
        self.critic_weight = critic.standard_normal((num_cosines, inputs))
        self.critic_phase = critic.uniform(0.0, 2.0 * np.pi, num_cosines)
        self.teacher = np.concatenate([0.05 * teacher.standard_normal(num_cosines), [-1.0, 1.0, -1.0, -0.1]])
        initial, self.stream = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
        self.theta = settings.initial_scale * initial.standard_normal((settings.actor_feature_dim, ACTION_SIZE))
        self.behaviour_theta = self.theta.copy()
        self.weight = settings.initial_scale * initial.standard_normal(settings.feature_dim)

    def critic_features(self, observation: Array, action: Array) -> Array:
        """φ(s, a), `[D]`."""
        inputs = np.concatenate([observation, action, [1.0]])
        cosines = np.sqrt(2.0 / len(self.critic_phase)) * np.cos(self.critic_weight @ inputs + self.critic_phase)
        return np.concatenate([cosines, observation[14:17], [action @ action]])

    def actor_features(self, observation: Array) -> Array:
        """ψ(s), `[D_a]`, of norm at most 1."""
        feature: Array = np.tanh(self.actor_weight @ observation + self.actor_bias)
        return feature * min(1.0, 1.0 / (float(np.linalg.norm(feature)) + 1e-12))

    def iterate(self) -> dict[str, float]:
        """Sample, update, and say what came of it."""
        settings = self.settings
        self.weight_sum, self.theta_sum = np.zeros_like(self.weight), np.zeros_like(self.theta)
        self.ratios: list[float] = []
        self.td_errors: list[float] = []
        for _ in range(settings.num_trajectories):
            torus = Torus(int(self.stream.integers(0, LARGEST_SEED)), settings.p_mix)
            for _ in range(settings.horizon):
                self.step(torus)
        scale = 1.0 / (settings.num_trajectories * settings.horizon)
        self.weight = self.weight + settings.learning_rate * scale * self.weight_sum
        self.theta = self.theta + settings.actor_learning_rate * scale * self.theta_sum
        self.behaviour_theta = (1.0 - settings.beta) * self.behaviour_theta + settings.beta * self.theta
        self.theta, self.behaviour_theta = self.in_ball(self.theta), self.in_ball(self.behaviour_theta)
        gap = self.theta - self.behaviour_theta
        return {
            "td_loss": float(np.mean(np.square(self.td_errors))),
            "critic_teacher_error": float(np.mean((self.weight - self.teacher) ** 2)),
            "tracking_gap": float(np.sum(gap**2) / settings.actor_feature_dim),
            "mean_rho": float(np.mean(self.ratios)),
            "mean_rho2": float(np.mean(np.square(self.ratios))),
            "w_norm": float(np.linalg.norm(self.weight)),
        }

    def step(self, torus: Torus) -> None:
        """One transition, and what it adds to the sums."""
        settings, root = self.settings, np.sqrt(self.settings.feature_dim)
        observation = torus.observation()
        feature_of_actor = self.actor_features(observation)
        behaviour_mean, target_mean = (self.mean(theta, feature_of_actor) for theta in self.policies())
        action = projected(behaviour_mean + settings.behaviour_std * self.stream.standard_normal(2))
        ratio = self.density_ratio(action, behaviour_mean, target_mean)
        feature = self.critic_features(observation, action)
        torus.step(action)
        following = torus.observation()
        self.critic_features(following, action)
        next_mean = self.mean(self.theta, self.actor_features(following))
        bootstrap = np.zeros_like(feature)
        for _ in range(settings.num_bootstrap_samples):
            next_action = projected(next_mean + settings.target_std * self.stream.standard_normal(2))
            bootstrap += self.critic_features(following, next_action) / settings.num_bootstrap_samples
        reward = self.teacher @ feature / root
        td_error = reward + settings.gamma * (self.weight @ bootstrap) / root - self.weight @ feature / root
        score = np.outer(feature_of_actor, action - target_mean)
        score /= settings.target_std**2 * np.sqrt(settings.actor_feature_dim)
        self.weight_sum += ratio * td_error * feature
        self.theta_sum += ratio * td_error * score
        self.ratios.append(float(ratio))
        self.td_errors.append(float(td_error))

    def policies(self) -> tuple[Array, Array]:
        """θ of behaviour and of target."""
        return self.behaviour_theta, self.theta

    def mean(self, theta: Array, feature: Array) -> Array:
        """Of the action, `[2]`."""
        mean: Array = theta.T @ feature / np.sqrt(self.settings.actor_feature_dim)
        return mean

    def density_ratio(self, action: Array, behaviour_mean: Array, target_mean: Array) -> float:
        """π(a)/μ(a) of the Gaussians, taken at the projected action as the published runs took it."""
        mu, pi = self.settings.behaviour_std, self.settings.target_std
        exponent = float(np.sum((action - behaviour_mean) ** 2)) / (2.0 * mu**2)
        exponent -= float(np.sum((action - target_mean) ** 2)) / (2.0 * pi**2)
        return (mu / pi) ** 2 * math.exp(exponent)

    def in_ball(self, theta: Array) -> Array:
        """Projected on the ball of θ."""
        norm = float(np.linalg.norm(theta))
        return theta if norm <= self.settings.theta_radius else theta * (self.settings.theta_radius / (norm + 1e-12))
