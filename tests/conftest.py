import fcntl
import logging
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from installed_wheel import Installed, find_installed, install_wheel
from tensorboard.summary.writer import event_file_writer

# The machine may be busy with other things: a deadline would time it, not the code.
settings.register_profile("rlmods", deadline=None)
settings.load_profile("rlmods")
torch.set_num_threads(1)
# TensorBoard reads the files of one second in the order of their names, which end in this number: 10 before 9.
# A run that is stopped and resumed within a second, as only tests do, must not have its parts exchanged.
event_file_writer._global_uid = event_file_writer.AtomicCounter(100_000)


@pytest.fixture(scope="session")
def installed_wheel(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own, made once for all the processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "installed_wheel"
    with (folder.parent / "installed_wheel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            install_wheel(folder)
    return find_installed(folder)


@pytest.fixture(autouse=True)
def keep_denormal_numbers() -> Iterator[None]:
    """A fit that ended in an exception leaves them flushed to zero, and hypothesis refuses to draw floats then."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def keep_levels_of_loggers() -> Iterator[None]:
    """A program that a test runs in this process silences them for good; the next test looks for what they say."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("lightning", "rlmods")]
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
