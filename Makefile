PYTHON ?= python3
VENV := .venv/bin/python
UV := 0.13.9
COMPILE := $(VENV) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock"

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup-run  ## everything from nothing: a real Triton, its models, the gateway, a workspace and its key
	@$(VENV) scripts/run.py $(ARGS)

serve: setup-run  ## the gateway only, by config/conch.toml
	@$(VENV) app.py serve $(ARGS)

triton: setup-run  ## Triton only, with the repository models/
	@$(VENV) scripts/triton.py serve --repository models $(ARGS)

test: setup-test  ## every test; make test ARGS="-k chat -x"
	@$(VENV) -m pytest -n 3 --dist loadfile $(ARGS)

test-sdk: setup-test setup-sdk  ## every client of docs/clients.md, for real; ARGS=--write writes what works into it
	@$(VENV) -m pytest -m sdk tests/sdk $(ARGS)

chaos: setup-test  ## Triton fails in every way, under hundreds of clients; ARGS=--write writes the README's table
	@$(VENV) -m pytest tests/chaos --long -o log_cli=true --log-cli-level=INFO $(ARGS)

fuzz: setup-fuzz  ## bad input: every operation of the API, and three parsers; ARGS="api --cases 2000" or "sse --minutes 10"
	@.venv-fuzz/bin/python -m tests.fuzz $(ARGS)

check: setup-check  ## lint, format, types, and the advisories on what is locked
	@$(VENV) -m ruff check
	@$(VENV) -m ruff format --check
	@$(VENV) -m mypy
	@$(VENV) scripts/audit.py

check-deploy: setup-check  ## deploy/ by hadolint, and by the schemas of Compose and Kubernetes
	@$(VENV) -m pip install --quiet --require-hashes -r requirements/deploy.txt
	@.venv/bin/hadolint deploy/Dockerfile
	@$(VENV) -m check_jsonschema --builtin-schema vendor.compose-spec deploy/compose/compose.yaml
	@for file in conch secret; do $(VENV) -m kubernetes_validate --strict deploy/kubernetes/$$file.yaml || exit; done

bench: setup-bench  ## speed against nginx; ARGS="--only unary-16,stream-burst"; BASE=<revision> runs beside this
	@$(VENV) -m bench $(if $(BASE),--base $(BASE)) $(ARGS)

bench-peers: setup-peers  ## the same beside LiteLLM, Portkey and TensorZero, in an environment of their own
	@$(VENV) -m bench --peers $(ARGS)

profile: setup-profile  ## where the time goes: make profile SCENARIO=unary-16; a flamegraph too
	@$(VENV) -m bench.profiling $(or $(SCENARIO),unary-16) $(ARGS)

bench-cold: setup-run  ## from exec to the first answer, for app.py and the binary, beside python -c pass
	@$(VENV) -m bench.cold $(ARGS)

binary: setup-binary  ## dist/conch, one file that needs nothing installed, and its checksum; then its own tests
	@$(VENV) scripts/binary.py
	@$(VENV) -m pytest -m binary $(ARGS)

screenshots: setup-test  ## docs/screenshots anew, from the dashboard's tests
	@SCREENSHOTS=docs/screenshots $(VENV) -m pytest tests/dashboard $(ARGS)

crash: setup-run  ## kill -9 the gateway 50 times under load, and reconcile its books
	@$(VENV) scripts/crash.py $(ARGS)

soak: setup-run  ## every endpoint for MINUTES=30, some abandoned, some broken: what grows, and whether the books are right
	@$(VENV) scripts/soak.py $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

docs: setup-check  ## docs/configuration.md, from the settings' own types and comments
	@$(VENV) scripts/settings.py

lock: setup-check  ## resolve requirements/*.txt anew from pyproject.toml and the *.in there
	@$(VENV) -m pip install --quiet uv==$(UV)
	@$(COMPILE) pyproject.toml -o requirements/run.txt
	@$(COMPILE) pyproject.toml --extra tracing -c requirements/run.txt -o requirements/tracing.txt
	@$(COMPILE) pyproject.toml --extra dev --extra tracing -c requirements/run.txt -o requirements/dev.txt
	@$(COMPILE) requirements/deploy.in -c requirements/dev.txt -o requirements/deploy.txt
	@$(COMPILE) requirements/sdk.in -o requirements/sdk.txt
	@$(COMPILE) pyproject.toml requirements/fuzz.in -c requirements/run.txt -o requirements/fuzz.txt
	@$(COMPILE) requirements/models.in --no-deps -o requirements/models.txt

lock-peers: setup-check  ## the same for the gateways of bench-peers; needs npm
	@$(VENV) -m pip install --quiet uv==$(UV)
	@$(subst make lock,make lock-peers,$(COMPILE)) requirements/peers.in -o requirements/peers.txt
	@cd requirements/peers && npm install --package-lock-only --ignore-scripts --no-audit --no-fund

clean:  ## remove the virtual environments, caches and var/
	@rm -rf .venv .venv-peers .venv-sdk .venv-fuzz tests/sdk/node_modules var dist .mypy_cache .pytest_cache .ruff_cache .hypothesis bench/results
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup-%:
	@$(PYTHON) scripts/setup.py $*

.PHONY: help run serve triton test test-sdk chaos check check-deploy bench bench-peers profile binary crash lock lock-peers clean docs bench-cold screenshots fuzz soak
.DEFAULT_GOAL := help
