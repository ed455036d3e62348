"""Environments: made from an id, read in one way, saved and restored. Importing it registers our own."""

import gymnasium as gym

gym.register("rlmods/CartPoleNoVelocity-v0", entry_point="rlmods.envs.no_velocity:cart_pole", max_episode_steps=500)
gym.register("rlmods/PendulumNoVelocity-v0", entry_point="rlmods.envs.no_velocity:pendulum", max_episode_steps=200)
gym.register("rlmods/DotTracking-v0", entry_point="rlmods.envs.dot_tracking:DotTracking", max_episode_steps=50)
gym.register("rlmods/DroneSwarm-v0", vector_entry_point="rlmods.envs.drone_swarm:DroneSwarm")
gym.register("rlmods/BeamRider-v0", entry_point="rlmods.envs.atari:beam_rider", max_episode_steps=27_000)
gym.register("rlmods/Turmoil-v0", entry_point="rlmods.envs.atari:turmoil", max_episode_steps=27_000)
gym.register("rlmods/LaneShooter-v0", vector_entry_point="rlmods.envs.lane_shooter:LaneShooter")
gym.register("rlmods/TorusGobletGhost-v0", vector_entry_point="rlmods.envs.torus_goblet_ghost:TorusGobletGhost")
