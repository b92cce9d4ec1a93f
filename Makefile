# make demo and make test do everything on a fresh machine with Python 3.11+ and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROCESSES ?= 2
APT := DEBIAN_FRONTEND=noninteractive apt-get
export HF_HUB_OFFLINE ?= 1
export TRANSFORMERS_VERBOSITY ?= error
export GRADIO_ANALYTICS_ENABLED ?= False

.DEFAULT_GOAL := help
.PHONY: help install demo ui test crash ray deepspeed lint format docs fidelity fuzz load security screenshots clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## make .venv and install Limn into it

demo: $(VENV)/.installed  ## render the shipped examples into outputs/demo
	$(BIN)/limn demo

ui: $(VENV)/.installed  ## open the web page on 127.0.0.1
	$(BIN)/limn ui

test: $(VENV)/.installed $(VENV)/.chromium  ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile

crash: $(VENV)/.installed  ## kill a batch 100 times, then compare every picture
	$(BIN)/python benchmarks/crash.py

ray: $(VENV)/.installed  ## install Ray (400 MB) and run the tests that need it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-cluster.txt "moto[server]"
	$(BIN)/python -m pytest tests/batch/test_cluster.py tests/batch/test_remote.py tests/batch/test_manifest.py

deepspeed: $(VENV)/.installed  ## install DeepSpeed, none of its kernels compiled, and run the tests that need it
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check deepspeed==0.19.8
	$(BIN)/python -m pytest tests/training/test_zero.py tests/training/test_processes.py

lint: $(VENV)/.installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed  ## write again the pages and pictures of docs/ that are made by code
	$(BIN)/python -m controls.documentation
	$(BIN)/python -m tests.pipelines.matrix
	$(BIN)/python -m toyland.sheets

fidelity: $(VENV)/.installed  ## measure again how well the embedded model obeys (docs/controls.md; hours where the machine is busy)
	$(BIN)/python -m evaluation.documentation
	$(BIN)/python -m controls.documentation

fuzz: $(VENV)/.installed  ## 10,000 damaged pictures through the decoder
	$(BIN)/python benchmarks/fuzz.py

load: $(VENV)/.installed  ## twenty programs ask the running page for five pictures each, three times over
	$(BIN)/python -m tests.web.load

security: $(VENV)/.installed  ## what was done to other such pages, tried on this one
	$(BIN)/python -m tests.web.attacks

screenshots: $(VENV)/.installed $(VENV)/.chromium  ## the web page as it is, light, dark and narrow, in outputs/screenshots; two for the README
	$(BIN)/python -m tests.web.screenshots

clean:  ## remove what can be rebuilt; outputs/ and runs/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian ships Python without ensurepip; where we may, we add the missing package.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Limn needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && $(APT) update -qq && $(APT) install -qq -y python3-venv; } \
		|| { echo "Python's venv module is missing; install it (Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt requirements-dev.txt requirements-gpu.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python -c 'import cv2' 2>/dev/null || $(OPENCV_LIBRARIES) || $(OPENCV_HEADLESS)
	@touch $@

# opencv-python links against libGL and GLib, which a bare server lacks: add them where we may, else take the build without windows.
OPENCV_LIBRARIES = { [ "$$(id -u)" = 0 ] && $(APT) update -qq && $(APT) install -qq -y --no-install-recommends libgl1 libglib2.0-0; }
OPENCV_HEADLESS = { $(BIN)/python -m pip uninstall -q -y opencv-python; \
	$(BIN)/python -m pip install -q "$$(sed -n 's/^opencv-python==/opencv-python-headless==/p' requirements.txt)"; }

# The browser test drives a real Chromium: the system's, or Debian's package where we may install it, or Playwright's own.
$(VENV)/.chromium: | $(VENV)/.installed
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get && $(APT) update -qq && $(APT) install -qq -y --no-install-recommends chromium; } \
		|| $(BIN)/playwright install chromium \
		|| { echo "no Chromium for the browser test; install one (Debian: apt-get install chromium)"; exit 1; }
	@touch $@
