# Each target does its own set-up: a virtual environment in .venv, filled under constraints.txt.
PYTHON ?= python3
BUNDLE ?= runs/demo/bundle
TARGET ?= all
RUNTIME ?= cpu
BIN := .venv/bin
STAMP := .venv/installed
SERVING := .venv-serving
EXTRAS := cpu,serve,train,loadtest,dev
PROTO := service/proto/reward/v1/reward.proto
DESCRIPTOR := service/client/reward_client/reward.binpb
PROTOC = $(BIN)/python -m grpc_tools.protoc -I . --python_out

.PHONY: help setup demo test check proto image image-check k8s-check load bench bench-gpu trainers serve lock clean
help:
	@echo "make demo     data, training, export, serving, rewards over HTTP, on this machine"
	@echo "make test     the whole test suite"
	@echo "make check    format, lint, types, import arrows"
	@echo "make proto    generate the gRPC stubs again"
	@echo "make image    the container images, with docker, podman or buildah"
	@echo "make image-check  the serve image, non-root and read-only, on $(BUNDLE)"
	@echo "make k8s-check  render the Kubernetes overlays and check every object (CRDS=DIR: KubeRay's)"
	@echo "make load     one minute of load on $(BUNDLE), every reward checked"
	@echo "make bench    ten to twenty minutes: throughput against baselines, the offline limit and the roofline"
	@echo "make bench-gpu  the same on one NVIDIA GPU: ceilings, engine, HTTP, PyTorch (README, GPU)"
	@echo "make trainers  the trainers' own code against the service, each in its own environment"
	@echo "make serve    serve $(BUNDLE) on http://127.0.0.1:8000"
	@echo "make lock     make constraints.txt again from pyproject.toml"

setup: $(STAMP)
$(STAMP): pyproject.toml constraints.txt service/client/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]' -e service/client
	touch $(STAMP)

demo: $(STAMP)
	rm -rf runs/demo
	$(BIN)/reward-train demo --out runs/demo

# Exports are one thread's work. Whatever starts services runs alone.
SIDE_BY_SIDE := tests/training tests/contract tests/service tests/k8s tests/bench/test_bench_gpu.py
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest $(addprefix --ignore=,$(SIDE_BY_SIDE))

proto: $(STAMP)
	$(PROTOC)=. --grpc_python_out=. --pyi_out=. --descriptor_set_out=$(DESCRIPTOR) $(PROTO)

check: $(STAMP)
	mkdir -p build/proto
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict service
	$(BIN)/mypy --config-file service/client/pyproject.toml -p reward_client
	$(BIN)/buf lint
	$(PROTOC)=build/proto --grpc_python_out=build/proto --pyi_out=build/proto \
		--descriptor_set_out=build/proto/reward.binpb $(PROTO)
	cmp build/proto/reward.binpb $(DESCRIPTOR)
	diff -r build/proto/service/proto/reward/v1 service/proto/reward/v1 -x __init__.py -x '*.proto' -x __pycache__
	$(BIN)/lint-imports

k8s-check: $(STAMP)
	$(BIN)/python k8s/check.py $(if $(CRDS),--crds $(CRDS))

image:
	deploy/image.sh $(TARGET) $(RUNTIME)

image-check:
	deploy/image_check.sh $(BUNDLE) $(RUNTIME)

load: $(STAMP)
	test -d $(BUNDLE) || $(MAKE) demo
	$(BIN)/python -m loadtests.run $(BUNDLE)

# The service in an environment as the image has it: Serve imports pandas wherever it is installed.
$(SERVING)/installed: pyproject.toml constraints.txt
	test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[cpu,serve]'
	touch $@

bench: $(STAMP) $(SERVING)/installed
	$(BIN)/python -m loadtests.bench.run --service-python $(SERVING)/bin/python $(BENCH)

bench-gpu: $(STAMP)
	$(BIN)/python -m loadtests.bench_gpu.run $(BENCH)

trainers: $(STAMP)
	test -d $(BUNDLE) || $(MAKE) demo
	$(BIN)/python -m pytest tests/trainers -o python_files='prove_*.py' -x -v --durations=0
	$(BIN)/python -m tests.trainers.curve build/trainers/grpo

serve: $(STAMP)
	$(BIN)/reward-serve run $(BUNDLE)

lock: $(STAMP)
	$(BIN)/uv pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-header --no-annotate --upgrade -o constraints.txt

clean:
	rm -rf .venv $(SERVING) runs
