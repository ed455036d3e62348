"""`python -m rlmods doctor`: the arithmetic of a configuration, before it runs.

Rules are functions of numbers that give a `Line` (`budget`, `targets`, `values`, `replay`, `rollouts`, `schedules`,
`policies`, `linear`, `unread`). `examination` takes the numbers from the objects that a run would be made of, and
`settings` compares what was configured with them.
"""
