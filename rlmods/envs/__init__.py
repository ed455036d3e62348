"""Environments: made from an id, read in one way, saved and restored. Importing it registers our own."""

import gymnasium as gym

gym.register("rlmods/TorusGobletGhost-v0", vector_entry_point="rlmods.envs.torus_goblet_ghost:TorusGobletGhost")
