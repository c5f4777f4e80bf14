# Everything runs in $(VENV), made on first use and brought up to date when its inputs change.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PROTOS := $(wildcard proto/fedlora/*/v1/*.proto)
SERVICES := proto/fedlora/registry/v1/registry.proto
PROTOC := $(BIN)/python -m grpc_tools.protoc -I proto

.DEFAULT_GOAL := help
.PHONY: help demo test check format protos descriptors

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## four sites fine-tune one model together, into runs/
	$(BIN)/fedlora simulate

test: $(VENV)/.installed-dev ## run all tests
	$(BIN)/pytest

check: $(VENV)/.installed-dev ## all that CI checks: format, lint, types, layers, tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

format: $(VENV)/.installed-dev ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

protos: $(VENV)/.installed-dev ## generate the protobuf modules from proto/
	$(PROTOC) --python_out=. --pyi_out=. $(PROTOS)
	$(PROTOC) --grpc_python_out=. $(SERVICES)

descriptors: $(VENV)/.installed-dev ## note what was added to proto/ as what others rely on
	for file in $(PROTOS:proto/%.proto=%); do \
		$(PROTOC) --descriptor_set_out=/dev/stdout $$file.proto \
		| $(PROTOC) --decode=google.protobuf.FileDescriptorSet google/protobuf/descriptor.proto \
		> tests/contracts/descriptors/$$(echo $$file | tr / .).txtpb; \
	done

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev,ray]'
	touch $@ $(VENV)/.installed
