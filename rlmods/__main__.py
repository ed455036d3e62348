"""`python -m rlmods`: answers what needs no torch at once, and hands the rest to the command line proper."""

import sys

from rlmods import __version__

HELP = """\
usage: python -m rlmods {fit,validate,test,predict,report,next,sanity,replay,configs} ...

Deep-RL agents trained with PyTorch Lightning, by a package that tells the truth about the training.

  fit       train an agent          python -m rlmods fit --config dqn_cartpole
  validate  evaluate a checkpoint as training does
  test      evaluate it on other seeds, --video DIR for a video
  predict   actions for given observations, or a roll-out written to disk
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


COMMANDS = ("fit", "validate", "test", "predict", "report", "next", "sanity", "replay", "configs")


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
    elif arguments[0] == "report":
        from rlmods.reports.command import main as report

        raise SystemExit(report(arguments[1:]))
    elif arguments[0] == "next":
        from rlmods.reports.next_command import main as advise

        raise SystemExit(advise(arguments[1:]))
    elif arguments[0] == "sanity":
        from rlmods.sanity import main as sanity

        raise SystemExit(sanity(arguments[1:]))
    elif arguments[0] == "replay":
        from rlmods.replay_failure import main as replay

        raise SystemExit(replay(arguments[1:]))
    elif not any(argument in COMMANDS for argument in arguments):
        print(f"error: got the command {arguments[0]!r}, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    else:
        try:
            from rlmods.cli import run

            run(arguments)
        except KeyboardInterrupt:
            # During training a callback saves first; before that there is nothing to save.
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
