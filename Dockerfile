# syntax=docker/dockerfile:1
# Three stages: what serves, the model it serves with, and both together without the tools that made them.
#   docker build -t semcache .
#   docker run -p 8080:8080 -e SEMCACHE_UPSTREAM=http://host.docker.internal:8000/v1 semcache

ARG PYTHON=python:3.11-slim-bookworm

# The serving environment: no torch, no compiler, 0.34 GB.
FROM ${PYTHON} AS serve
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY constraints.txt ./
COPY requirements/serve.txt requirements/
RUN python -m venv /opt/semcache \
    && /opt/semcache/bin/python -m pip install -c constraints.txt -r requirements/serve.txt
COPY pyproject.toml LICENSE README.md ./
COPY requirements requirements
COPY semcache semcache
RUN /opt/semcache/bin/python -m pip install --no-deps .

# The model: made once with torch, which stays behind. A build of torch without CUDA is 0.2 GB instead of 3: name an index
# that has one with --build-arg TORCH_INDEX=URL.
FROM serve AS model
ARG TORCH_INDEX=
RUN python -m venv /opt/prepare \
    && /opt/prepare/bin/python -m pip install ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} -c constraints.txt .
ENV XDG_CACHE_HOME=/opt/models
RUN /opt/prepare/bin/semcache model prepare all-MiniLM-L6-v2

FROM ${PYTHON}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin semcache \
    && install -d -o semcache -g semcache -m 0700 /var/lib/semcache
COPY --from=serve /opt/semcache /opt/semcache
COPY --from=model /opt/models /opt/models
COPY config/docker.yaml /etc/semcache/semcache.yaml
# ONNX Runtime reports its use to its vendor unless told not to.
ENV PATH=/opt/semcache/bin:$PATH \
    XDG_CACHE_HOME=/opt/models \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1
WORKDIR /var/lib/semcache
VOLUME /var/lib/semcache
USER 10001:10001
EXPOSE 8080 8081
# Running answers get `server.drain` to finish: give the container as long (docker stop --timeout 610).
STOPSIGNAL SIGTERM
# Not ready is not dead: requests are forwarded while the index catches up. http.client, as urllib would go through $http_proxy.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client as h, sys; c = h.HTTPConnection('127.0.0.1', 8080, timeout=2); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["semcache"]
CMD ["serve", "-c", "/etc/semcache/semcache.yaml"]
