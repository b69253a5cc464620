# packshot. `make help` lists what there is; `make demo` and `make test` set everything up by themselves.

SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN := .venv/bin
INSTALLED := .venv/.installed
STATE := $(or $(PACKSHOT_STATE_DIR),.packshot)
CATALOG ?= pipelines/sample/catalog.csv
SCENE ?= oak-window
LIMIT ?=
JOBS ?= $(or $(shell nproc 2>/dev/null),1)
WORKERS ?= $(shell [ "$(JOBS)" -gt 1 ] && echo 2 || echo 1)
OUT ?= $(STATE)/demo
MOMENTS ?= 200
SEED ?= 1

# What imports no diffusers and starts no service. A single test: make quick QUICK=tests/pipelines/test_scenes.py
QUICK ?= $(addprefix tests/pipelines/,catalogue quality runs) $(wildcard tests/pipelines/test_*.py)

.PHONY: help venv demo pictures test chaos exhaustive lint unit quick chromium fab bench bench-scale bench-photos bench-celery experiment down clean resolve-312

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

venv: $(INSTALLED)  ## virtual environment with everything in it (Python 3.11, else 3.12)
	@:

# The stamp is newer than what decides the versions, so a second call takes no time.
$(INSTALLED): constraints.txt pyproject.toml
	@set -e; \
	for python in $(PYTHON) python3.11 python3.12; do "$$python" -c '' 2>/dev/null && break || python=; done; \
	[ -n "$$python" ] || { echo "packshot needs Python 3.11 or 3.12: apt-get install python3 python3-venv"; exit 1; }; \
	[ -x $(BIN)/python ] || "$$python" -m venv .venv || { rm -rf .venv; echo "apt-get install python3-venv"; exit 1; }; \
	echo "Installing packshot and its models' libraries into .venv (minutes, once)"; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,celery,c2pa,ocr]'; \
	$(BIN)/python -m pip check --disable-pip-version-check; \
	touch $@

demo: $(INSTALLED)  ## the whole walk on the sample catalogue; CATALOG=path.csv SCENE=name LIMIT=n for another
	@$(BIN)/packshot up
	@code=0; $(BIN)/packshot run "$(CATALOG)" --scene "$(SCENE)" $(if $(LIMIT),--limit $(LIMIT)) --wait || code=$$?; \
	if [ $$code -le 1 ]; then $(BIN)/packshot export latest --out "$(OUT)" || code=$$?; fi; \
	$(BIN)/packshot status; exit $$code

pictures: $(INSTALLED)  ## previews of all scenes, the README's picture and the contact sheets, made by the pipeline
	$(BIN)/packshot scenes preview --all
	$(BIN)/packshot shoot pipelines/sample/catalog.csv --scene oak-window --limit 4 --out build/walk
	$(BIN)/python -c "from PIL import Image; sheet = Image.open('build/walk/contact_sheet.png').convert('RGB'); \
	sheet.thumbnail((1800, 1800)); sheet.save('docs/pictures/walk.jpg', quality=88, optimize=True)"
	$(BIN)/packshot shoot pipelines/sample/catalog.csv --scene oak-window --out build/sample
	$(BIN)/python -m pipelines.evaluation.pictures sheet build/sample docs/pictures/contact-sample.jpg
	[ ! -f ../shared/catalog/catalog.csv ] || { \
		$(BIN)/packshot shoot ../shared/catalog/catalog.csv --scene studio-sage --out build/catalog && \
		$(BIN)/python -m pipelines.evaluation.pictures sheet build/catalog docs/pictures/contact-catalog.jpg; }

test: lint chromium  ## ruff, mypy, the import contracts, then the tests, in two processes: fast ones first
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not exhaustive"

chaos: $(INSTALLED)  ## faults at moments inside real runs, and what becomes of them; MOMENTS=200 SEED=1 FAULT="disk full"
	@$(BIN)/python -m tests.chaos.drill $(MOMENTS) $(SEED) build/chaos $(if $(FAULT),"$(FAULT)")

exhaustive: $(INSTALLED)  ## thousands of damaged photos and of feeds, and a sampler step of SD 1.5 in full size
	$(BIN)/pytest -m exhaustive

lint: $(INSTALLED)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pipelines operators dags plugins benchmarks
	PYTHONPATH=plugins $(BIN)/lint-imports

quick: $(INSTALLED)  ## hundreds of tests in under a minute: catalogue, quality, runs and the flat modules
	$(BIN)/pytest -m "not slow and not medium and not services and not airflow and not browser" $(QUICK)

unit: $(INSTALLED)  ## the tests that take less than ten seconds each
	$(BIN)/pytest -m "not slow"

chromium:
	@command -v chromium >/dev/null && exit 0; \
	root=; [ "$$(id -u)" = 0 ] || root="sudo -n"; \
	if command -v apt-get >/dev/null && $$root true 2>/dev/null; then \
		echo "Installing Debian's chromium through apt, for the test of the run page"; \
		{ $$root apt-get update -qq && $$root apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
			|| echo "apt could not install chromium: the test of the run page will skip"; \
	else echo "No chromium, and no right to install it through apt: the test of the run page will skip"; fi

# An environment of its own: the provider wants an older python-dateutil than constraints.txt has.
fab: $(INSTALLED)  ## build/fab: Airflow's FAB auth manager beside packshot, for the tests of who may do what
	$(BIN)/python -m venv build/fab
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > "$$(build/fab/bin/python -c 'import site; print(site.getsitepackages()[0])')/packshot.pth"
	build/fab/bin/python -m pip install -qq --disable-pip-version-check apache-airflow==3.3.2 'apache-airflow-providers-fab==3.10.2'

bench: $(INSTALLED)  ## what the sampler and `shoot` cost: tables, build/bench.json and build/shoot.svg
	@$(BIN)/python -m benchmarks.sampler build/bench.json
	@$(BIN)/python -m benchmarks.shoot --plot build/shoot.svg

bench-scale: $(INSTALLED)  ## what a large catalogue costs beside its images; PRODUCTS=n, 2,000 by default
	@$(BIN)/python -m benchmarks.scale $(PRODUCTS)

bench-photos: $(INSTALLED)  ## photos a second from a server that answers after 100 ms; PHOTOS=n, 20,000 by default
	@$(BIN)/python -m benchmarks.photos $(PHOTOS)

bench-celery: $(INSTALLED)  ## throughput of two Celery workers against one, stages simulated by sleep; SHARDS=n SECONDS=n
	@$(BIN)/python -m benchmarks.celery $(SHARDS) $(SECONDS)

bench-memory: $(INSTALLED)  ## the demo, and the peak memory of all its processes; CATALOG=, SCENE=, LIMIT= as there
	@$(BIN)/python benchmarks/peak_memory.py $(MAKE) --no-print-directory demo

experiment: $(INSTALLED)  ## the table of the paper's claims, resumed where it stopped; PAIRS=n for a shorter one, JOBS=n processes
	@$(BIN)/packshot experiment overcompletion $(if $(PAIRS),--pairs $(PAIRS)) --jobs $(JOBS) --out build/experiment

down:  ## stop Postgres, the S3 store and Airflow; the data stay
	@[ ! -x $(BIN)/packshot ] || $(BIN)/packshot down

clean: down  ## stop the services and remove their data, the demo's output with them
	@[ ! -f "$(STATE)/services.json" ] || rm -rf "$(STATE)"

resolve-312: $(INSTALLED)  ## show that the same versions install on Python 3.12 (downloads, installs nothing)
	@set -e; target=$$(mktemp -d); trap 'rm -rf "$$target"' EXIT; \
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*p["dependencies"], *sum(p["optional-dependencies"].values(), []), sep="\n")' > "$$target/requirements.txt"; \
	$(BIN)/python -m pip install --dry-run --ignore-installed --python-version 3.12 --only-binary=:all: \
		--target "$$target/site" -c constraints.txt -r "$$target/requirements.txt"
