# make demo        a small search from end to end on generated pictures (minutes)
# make test        the checks and the tests
# make test-slow   the long tests: kills, many processes, whole chains
# make env         .venv only; all of the above call it, and it does nothing when all is there
# make clean       removes what was made, .venv too

PYTHON := .venv/bin/python

.PHONY: env demo test test-slow clean

env:
	@bash requirements/make_env.sh

demo: export PYTHONWARNINGS = ignore  # of detectron2 0.5 on a new torch: nothing to be done about
demo: env
	$(PYTHON) -m crnas_d2.data.shapes output/demo/data
	$(PYTHON) search_net.py --config-file configs/Shapes/search.yaml --resume OUTPUT_DIR output/demo

test: env
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -q -m "not slow"

test-slow: env
	$(PYTHON) -m pytest -q -m slow

clean:
	rm -rf .venv .venv.lock build *.egg-info output/demo .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
