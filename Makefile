# make fit     trains an agent on CartPole, from nothing but Python 3.11
# make test    runs the tests
# make lint    style, types, import contracts
#
# Another interpreter: make fit PYTHON=/usr/bin/python3.12. Options for pip: make fit PIP_FLAGS=--quiet.

PYTHON ?= python3.11
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS)
STAMP := $(VENV)/.installed
BEGUN := $(VENV)/.begun
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: fit test install lint wheel-test learning faults slow

fit: $(STAMP)
	$(BIN)/python -m rlmods fit --config configs/dqn_cartpole.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

install: $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Builds the wheel, installs it, and uses it from an empty folder.
wheel-test: $(STAMP)
	$(BIN)/python tests/installed_wheel.py

# Toy problems with a known optimum.
learning: $(STAMP)
	$(BIN)/python -m pytest -m learning

# Breaks DQN, TD3, SAC, PPO and an expert's curriculum, one line at a time, under the safeguards.
faults: $(STAMP)
	$(BIN)/python -m benchmarks.faults.run --smoke
	$(BIN)/python -m benchmarks.mutation_bench td3 --smoke
	$(BIN)/python -m benchmarks.mutation_bench ppo --smoke
	$(BIN)/python -m benchmarks.mutation_bench expert --smoke

# Real thresholds; takes minutes to hours.
slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Made once, and again when what it depends on has changed. $(BEGUN) stands for an installation that has not ended: one
# that was killed may have left half a package, so the next one starts from nothing. One that failed is only repeated.
#
# torch comes first and by its exact version. Where pip is set up to also see CPU builds, this takes the pinned
# version's; a range takes the newest torch of all, and with it gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rlmods needs Python 3.11 or newer; type: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@if [ -e $(BEGUN) ]; then echo "the last installation was interrupted: starting again"; rm -rf $(VENV); fi
	@mkdir -p $(VENV) && touch $(BEGUN)
	@echo "installing in $(VENV)"
	@trap 'exit 130' INT TERM; \
		$(PYTHON) -m venv $(VENV) && $(PIP) $(TORCH) && $(PIP) -c constraints.txt -e '.[dev]' || { rm -f $(BEGUN); exit 1; }
	@rm -f $(BEGUN) && touch $@
