# kvorum's image: the server, the command line, and nothing to build with.
#
#   docker build -t kvorum:dev .
#
# Both base images may be replaced by others with the same Python at the same path.
ARG BASE_BUILD=python:3.11-slim-bookworm
ARG BASE_RUN=python:3.11-slim-bookworm

# --- build: a virtual environment, whose Python both stages have at /usr/local/bin/python -------------------------------
FROM ${BASE_BUILD} AS build
WORKDIR /src

# The environment gets no pip of its own: the build stage's installs into it.
RUN python -m venv --without-pip /opt/kvorum
COPY .ci/requirements.lock ./
RUN pip --disable-pip-version-check --python /opt/kvorum/bin/python install --no-cache-dir --no-deps --only-binary :all: \
    --requirement requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY service service
RUN pip --disable-pip-version-check --python /opt/kvorum/bin/python install --no-cache-dir --no-deps .

# Not needed to run: tests, sources of compiled modules, and the second half of the Kubernetes client (68 MB), which is
# the same again for asyncio.
RUN cd /opt/kvorum/lib/python3.11/site-packages \
    && rm -r kubernetes/aio \
    && find . -depth -type d -name tests -exec rm -rf {} + \
    && find . -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.c' -o -name '*.h' \) -delete

# --- run ----------------------------------------------------------------------------------------------------------------
FROM ${BASE_RUN}

# PYTHONDONTWRITEBYTECODE: the byte code is there already, and the root file system may be read-only.
ENV PATH=/opt/kvorum/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

RUN groupadd --gid 10001 kvorum \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/kvorum --shell /usr/sbin/nologin kvorum \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/kvorum

COPY --from=build /opt/kvorum /opt/kvorum

# Numeric, so that Kubernetes can tell it is not root.
USER 10001:10001
WORKDIR /var/lib/kvorum

# Clients, peers, HTTP (health, metrics, status, administration).
EXPOSE 9090 7090 8090

# No HEALTHCHECK: ask /livez and /readyz on the HTTP port, as the chart's probes do. Without a configuration file: one
# node with its data below /var/lib/kvorum. The log goes to standard error alone.
ENTRYPOINT ["kvorum"]
CMD ["serve", "--log-dir", "-"]
