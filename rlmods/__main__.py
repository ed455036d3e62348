"""`python -m rlmods`: answers what needs no torch at once, and hands the rest to the command line proper."""

import sys
from importlib import import_module

from rlmods import __version__

HELP = """\
usage: python -m rlmods {fit,validate,test,predict,doctor,report,next,sanity,replay,configs} ...

Deep-RL agents trained with PyTorch Lightning, by a package that tells the truth about the training.

  fit       train an agent          python -m rlmods fit --config dqn_cartpole
  validate  evaluate a checkpoint as training does
  test      evaluate it on other seeds, --video DIR for a video
  predict   actions for given observations, or a roll-out written to disk
  doctor    the arithmetic of a configuration, before it runs
  report    health, tables and plots of a run folder; of several, a comparison
  next      one change for the run after this one, with its reason and evidence, as a configuration
  sanity    four short runs of the off-policy laboratory whose answers are known
  replay    repeat the update for which a run left a folder in failures/
  configs   list the configurations that come with the package

Each of the first four explains its options: python -m rlmods fit --help
A configuration is a file, or the name of one that comes with the package; several --config are merged in order.
Go on with a stopped run: repeat its command with --ckpt_path last
Continue a run in a new one, its configuration as the base: fit --from RUN, --from best or --from latest
"""


# Imported when they are asked for.
_MODULES = {
    "doctor": "rlmods.doctor.command",
    "report": "rlmods.reports.command",
    "next": "rlmods.reports.next_command",
    "sanity": "rlmods.sanity",
    "replay": "rlmods.replay_failure",
}
COMMANDS = ("fit", "validate", "test", "predict", "doctor", "report", "next", "sanity", "replay", "configs")


def main() -> None:
    """Run the command in `sys.argv`."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
    elif arguments[0] == "--version":
        print(__version__)
    elif arguments[0] == "configs":
        from rlmods.configs import describe_configs

        print(describe_configs(), end="")
    elif arguments[0] in _MODULES:
        command = import_module(_MODULES[arguments[0]])
        raise SystemExit(command.main(arguments[1:]))
    elif not any(argument in COMMANDS for argument in arguments):
        print(f"error: got the command {arguments[0]!r}, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    else:
        from rlmods.memory_allocator import keep_freed_memory

        keep_freed_memory()
        try:
            from rlmods.cli import run

            run(arguments)
        except KeyboardInterrupt:
            # During training a callback saves first; before that there is nothing to save.
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
