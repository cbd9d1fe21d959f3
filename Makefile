# make chat    a virtual environment, the default model, a conversation
# make test    the same environment with the test libraries, then every test but the long ones
# make check   format, lint, types, import contracts, spelling, docs
# make models-page  how far every architecture lies from its reference, measured, and docs/models.md written from it and the cards
# make browser  the page in a real Chromium, which must be installed; pictures of it go to build/screenshots
# make soak    the longest tests (more random cases); make bench: the measurements in docs/
# make sanitize  the native library's tests under sanitizers of addresses, undefined behaviour and threads (Linux, GCC, CMake)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PROMPT ?=
MODEL ?= smollm2-135m-instruct
WORKERS ?= 2

.PHONY: chat test fast check models-page browser soak sanitize bench clean
chat: $(VENV)/core.stamp
	@$(BIN)/khola pull --if-missing --yes "$(MODEL)"
	@$(BIN)/khola chat "$(MODEL)" $(if $(PROMPT),--temperature 0 -- "$$PROMPT" < /dev/null)

test: fast
	$(BIN)/python -m pytest -m "slow and not soak" -n $(WORKERS) --dist loadfile

fast: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "not slow and not soak" -n $(WORKERS)

check: $(VENV)/dev.stamp
	PATH="$(abspath $(BIN)):$$PATH" scripts/check

models-page: $(VENV)/dev.stamp
	$(BIN)/python -m pytest tests/models -k equal_to_the_reference --record-parity -n 0 -q
	$(BIN)/python scripts/models_table.py

browser: $(VENV)/browser.stamp
	SCREENSHOTS="$${SCREENSHOTS:-build/screenshots}" $(BIN)/python -m pytest -m browser -n 0

soak: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "soak" -n 0

sanitize: $(VENV)/dev.stamp
	PYTHON="$(abspath $(BIN))/python" scripts/sanitize
	PYTHON="$(abspath $(BIN))/python" scripts/sanitize thread

bench: $(VENV)/dev.stamp
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build dist site

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core.stamp: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[torch,test]"
	@touch $@ $(VENV)/core.stamp

$(VENV)/browser.stamp: tests/serve/browser/requirements.txt $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/serve/browser/requirements.txt
	cd $(VENV) && npm pack --silent axe-core@4.14.1 >/dev/null && tar xzf axe-core-4.14.1.tgz --strip-components=1 package/axe.min.js
	@touch $@
