# One command each, and each does its own set-up: 'make demo', 'make test', 'make check'.
PYTHON ?= python3
BIN := .venv/bin
PHANTOMS := cache/demo/phantoms
PAGE := cache/demo/report.html
DATA ?= $(PHANTOMS)

.PHONY: install demo test faults check format bench-extract bench-scale bench-loading bench-heads bench-statistics bench-predict bench-serve bench-trust results clean

install: .venv/installed  ## everything into ./.venv, and nothing anywhere else

demo: .venv/installed  ## the whole main job, on synthetic phantoms or on DATA=/path/to/chest_xray
ifeq ($(DATA),$(PHANTOMS))
	$(BIN)/cxr data phantoms $(PHANTOMS)
endif
	$(BIN)/cxr data check $(DATA)
	$(BIN)/cxr extract --data $(DATA) --backbone efficientnet_lite0 --views 4
	$(BIN)/cxr fit-head --data $(DATA) --l2 0 --l2 1e-4 --l2 1e-2 --seeds 3
	$(BIN)/cxr report --data $(DATA) --paper --html $(PAGE) --pictures
	@echo "the page: $(PAGE); drop films on another: $(BIN)/cxr serve --data $(DATA)"

test: .venv/installed  ## every test, two files at a time; those marked 'real' need CXR_DATA=/path/to/chest_xray
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered --durations=10

faults: .venv/installed  ## the fault tests with ten times the random instants of 'make test'
	@echo "kills, interrupts and damage at 100 random instants: some four minutes"
	CXR_FAULT_INSTANTS=100 $(BIN)/python -m pytest tests/faults --durations=5

check: .venv/installed  ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-extract: .venv/installed  ## extraction against the machine's limit and against peers: DATA=chest_xray NATIVE=films DEVICE=cuda
	$(BIN)/python -m bench.extract --data $(DATA) $(if $(DEVICE),--device $(DEVICE)) $(if $(NATIVE),--native $(NATIVE)) $(if $(THINGSVISION),--thingsvision $(THINGSVISION))

bench-scale: .venv/installed  ## a million images: planning, opening, reading; writes its section of docs/benchmarks.md
	$(BIN)/python -m bench.scale --write

bench-loading: .venv/installed  ## loading a store, and training from one that exceeds memory; writes docs/benchmarks.md
	$(BIN)/python -m bench.loading --write

bench-heads: .venv/installed  ## heads against the machine's matrix products, the usual loops and scikit-learn
	$(BIN)/python -m bench.heads $(if $(DEVICE),--device $(DEVICE))

bench-statistics: .venv/installed  ## intervals against peers, and a report of 200 rows; writes its section
	$(BIN)/python -m bench.statistics --write

bench-trust: .venv/installed  ## what is flagged as far from train: DATA=chest_xray FOREIGN=pictures; TEST=1 opens test and writes docs/trust.md
	$(BIN)/python -m bench.trust --data $(DATA) --foreign $(FOREIGN) $(if $(TEST),--test --write)

bench-predict: .venv/installed  ## predict against extract, an ONNX graph against torch and OpenVINO: DATA=chest_xray; writes its section
	$(BIN)/python -m bench.predict --data $(DATA) --write

bench-serve: .venv/installed  ## the web server under 64 clients beside cxr predict: DATA=chest_xray, whose run lies in the cache
	$(BIN)/python -m bench.serve --data $(DATA) --write

results: .venv/installed  ## the heads of bench/kermany.toml, and docs/results.md: DATA=chest_xray, whose stores lie in the cache
	$(BIN)/python -m bench.results --data $(DATA)

clean:  ## remove the environment and the demo's images; feature stores and runs stay
	rm -rf .venv $(PHANTOMS)

# torch and torchvision come as the registry ships them: pip resolves the pair, constraints.txt pins it.
.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv: some minutes and 6 GB, most of it torch"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
