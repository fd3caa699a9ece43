# Needs make and a Python from 3.11 on. Everything that is installed goes into .venv.
#
#   MESHNB_PORT=9999   the port of `make run` (default: 8888, or the next free one)
#   PYTHON=python3.13  the Python that .venv is made with (default: the first one that will do)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test accuracy agreement bench kubernetes lint format python clean

VENV := .venv
BIN := $(VENV)/bin
LAB_SETTINGS := $(VENV)/share/jupyter/lab/settings/overrides.json
CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)

# Prints a Python from 3.11 on that can make virtual environments, or says what is missing.
define FIND_PYTHON
found=; old=; \
for python in $(CANDIDATES); do \
    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
    if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then found="$$python"; break; fi; \
    old="$$old $$python"; \
done; \
if [ -z "$$found" ] && [ -n "$$old" ]; then \
    echo "Found$$old, but without the modules venv and ensurepip, which make $(VENV)." >&2; \
    echo "On Debian and Ubuntu they are in a package of their own: apt install python3-venv" >&2; \
    exit 1; \
elif [ -z "$$found" ]; then \
    echo "No Python from 3.11 on was found; looked for: $(strip $(CANDIDATES))." >&2; \
    echo "Install one, or name one: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; \
    exit 1; \
fi
endef

help: ## show this list
	@echo "make TARGET, where TARGET is one of:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/ready $(LAB_SETTINGS) ## open the notebooks in JupyterLab
	@echo "Starting JupyterLab. Control-C stops it."
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m jupyterlab --ServerApp.log_level=WARN \
	    --ServerApp.ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)/notebooks" \
	    --LabApp.default_url=/lab/tree/00_start_here.ipynb --LabApp.extension_manager=readonly \
	    $(if $(MESHNB_PORT),--ServerApp.port=$(MESHNB_PORT) --ServerApp.port_retries=0) \
	    $$(test "$$(id -u)" -ne 0 || echo --allow-root)

test: lint ## check style and types, then run all tests and notebooks
	$(BIN)/python -m pytest -n 2 --dist worksteal
	$(BIN)/python -m pytest -n 2 --dist loadscope --nbval-lax --nbval-current-env notebooks

lint: $(VENV)/ready-to-test ## check style and types only
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

format: $(VENV)/ready-to-test ## write the code in the one style
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

accuracy: $(VENV)/ready-to-test ## how many of the recorded faults are found: a table
	@$(BIN)/python -m tests.accuracy

agreement: $(VENV)/ready-to-test ## how many recorded log lines a followed request agrees with
	@$(BIN)/python -m tests.traces.request_agreement

bench: $(VENV)/ready-to-test ## how long it takes: a table
	@$(BIN)/python -m tests.bench

KUBERNETES := build/kubernetes

kubernetes: $(VENV)/ready-to-test ## ask a real kube-apiserver; needs Go 1.26, builds for 15 minutes
	@mkdir -p $(KUBERNETES)
	cd tests/kubernetes && go build -o $(CURDIR)/$(KUBERNETES)/etcd go.etcd.io/etcd/server/v3
	cd tests/kubernetes && go build -o $(CURDIR)/$(KUBERNETES)/kube-apiserver \
	    k8s.io/kubernetes/cmd/kube-apiserver
	cd tests/kubernetes && go build -o $(CURDIR)/$(KUBERNETES)/node .
	MESHNB_KUBERNETES=$(CURDIR)/$(KUBERNETES) $(BIN)/python -m pytest tests/kubernetes

python: ## print the Python that .venv is made with
	@$(FIND_PYTHON); echo "$$found"

clean: ## remove .venv and everything that the tools have written
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +

$(VENV)/made:
	@$(FIND_PYTHON); \
	echo "Making $(VENV) with $$("$$found" --version)."; \
	"$$found" -m venv --clear $(VENV)
	@touch $@

$(VENV)/ready: pyproject.toml | $(VENV)/made
	@echo "Installing meshnb into $(VENV). This is done once and takes about a minute."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/ready-to-test: pyproject.toml | $(VENV)/made
	@echo "Installing meshnb and what tests it into $(VENV). This is done once."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $@ $(VENV)/ready

# JupyterLab otherwise asks whether it may fetch news, and looks for updates.
$(LAB_SETTINGS): | $(VENV)/ready
	@mkdir -p $(@D)
	@printf '%s\n' '{"@jupyterlab/apputils-extension:notification":' \
	    ' {"fetchNews": "false", "checkForUpdates": false}}' > $@
