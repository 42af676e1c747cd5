# make demo        a small search from end to end on generated pictures (5 minutes on two idle cores)
# make demo-long   the same, with networks trained alone: is the found one better? (half an hour to 40 minutes)
# make test        the checks and the tests
# make test-slow   the long tests: kills, many processes, whole chains
# make env         .venv only; all of the above call it, and it does nothing when all is there
# make clean       removes what was made, .venv too

PYTHON := .venv/bin/python

.PHONY: env shapes demo demo-long test test-slow clean

env:
	@bash requirements/make_env.sh

demo demo-long: export PYTHONWARNINGS = ignore  # of detectron2 0.5 on a new torch: nothing to be done
shapes: env
	$(PYTHON) -m crnas_d2.data.shapes output/demo/data

demo: shapes
	$(PYTHON) search_net.py --config-file configs/Shapes/search.yaml --resume OUTPUT_DIR output/demo
	@echo "This shows that the chain works, and which paths of one supernet differ on these pictures. It cannot"
	@echo "show that the found network is better: that takes networks trained alone, with seeds: make demo-long"

# make demo-long SEED=1: another search.
SEED = 0
demo-long: shapes
	$(PYTHON) search_net.py --config-file configs/Shapes/search_long.yaml --resume \
	    OUTPUT_DIR output/demo-long-$(SEED) SEED $(SEED)

test: env
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -q -m "not slow"

test-slow: env
	$(PYTHON) -m pytest -q -m slow

clean:
	rm -rf .venv .venv.lock build *.egg-info output/demo* .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
