# The everyday commands. They use the environment that the README's commands make.
PYTHON = .venv/bin/python

.PHONY: install test lint format quickstart benchmark clean

install: .venv/installed
.venv/installed: pyproject.toml tested-versions.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet -e '.[dev]' -c tested-versions.txt
	touch $@

test: install
	$(PYTHON) -m pytest

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: install
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

quickstart: install
	$(PYTHON) -m experiments.pretrain --config=configs/quickstart.py --workdir=runs/quickstart

benchmark: install
	.venv/bin/pip install --quiet -e '.[benchmark]' -c tested-versions.txt
	$(PYTHON) -m benchmarks.train_step
	$(PYTHON) -m benchmarks.data_loader

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache
