# Servers (Prefect, MLflow), the one-off jobs and the CPU worker: one image, so that client and server are of one lock.
#
#   docker build -f infra/docker/cpu.Dockerfile --build-arg PIP_EXTRA_INDEX_URL="$TORCH_CPU_INDEX_URL" -t ballast-cpu:0.1.0 .
#
# TORCH_CPU_INDEX_URL is PyTorch's CPU package index (its install page has the address). Package sources that need a password:
# add `--secret id=pip_conf,src=<your pip.conf>`; it is there during the install only, and in no layer.
# The image holds the commit that is checked out, whatever else lies in the folder; build it in a clone, not in a git worktree.
ARG PYTHON_IMAGE=python:3.11.17-slim
FROM ${PYTHON_IMAGE} AS base
# Not pinned: Debian keeps only the newest build of a stable release's package, an exact version would stop the image from building.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git tini \
    && rm -rf /var/lib/apt/lists/*

FROM base AS dependencies
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /build
COPY requirements.lock requirements-infra.lock ./
COPY infra/install_lock.sh infra/
RUN --mount=type=cache,target=/root/.cache --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python -m venv /opt/venv \
    && infra/install_lock.sh /opt/venv/bin/python requirements.lock requirements-infra.lock \
    && /opt/venv/bin/python -c "import sys, torch; sys.exit(torch.version.cuda and 'this is the CUDA build: set PIP_EXTRA_INDEX_URL')"

# A clone of the clone: what is not committed (.env, data, results) cannot get in, nor the remote's address with its token.
FROM base AS checkout
COPY .git /source/.git
RUN git clone --quiet --no-local /source /opt/ballast \
    && git -C /opt/ballast remote remove origin \
    && git -C /opt/ballast rev-parse HEAD > /opt/ballast.commit \
    && mkdir -p /opt/ballast/.work/post_train /opt/ballast/.work/score_tokens /opt/ballast/.dvc/cache

FROM base AS image
RUN groupadd --gid 10001 ballast && useradd --uid 10001 --gid 10001 --create-home ballast
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=checkout --chown=10001:10001 /opt/ballast /opt/ballast
COPY --from=checkout /opt/ballast.commit /opt/ballast.commit
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/ballast \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DO_NOT_TRACK=true \
    ITERATIVE_DO_NOT_TRACK=true \
    DVC_NO_ANALYTICS=1 \
    GX_ANALYTICS_ENABLED=false \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    PREFECT_HOME=/tmp/prefect \
    PREFECT_SERVER_UI_STATIC_DIRECTORY=/tmp/prefect-ui \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    DVC_SITE_CACHE_DIR=/tmp/dvc \
    HF_HOME=/opt/ballast/.work/huggingface
WORKDIR /opt/ballast
USER 10001:10001
# No VOLUME: the teacher cache is renamed from .work into artifacts, which works on one file system only. What mounts there are finds
# folders of this user's above: a new named volume takes its owner from them.
# One image for servers, workers and stages: each role's own check stands where the role is given to it (compose, Kubernetes).
HEALTHCHECK NONE
ENTRYPOINT ["tini", "--", "/opt/ballast/infra/docker/entrypoint.sh"]
# Not `prefect worker start`: told to stop, that kills its stages within seconds and leaves their runs Running.
CMD ["python", "-m", "infra.local_stack.worker", "--pool", "cpu", "--type", "process", "--with-healthcheck"]
