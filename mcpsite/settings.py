"""Settings of the site. What an installation may change comes from the environment, through `mcpsite.env`."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from audit.outside import sinks, witnesses
from audit.retention import stores
from mcpsite import env
from mcpsite.admin_theme import UNFOLD as UNFOLD
from mcpsite.datadir import OWNER_ROLE, READER_ROLE, SEALER_ROLE, SITE_ROLE, WRITER_ROLE, DataDir
from tools import launchers

BASE_DIR = Path(__file__).resolve().parent.parent
env.load_file(BASE_DIR / ".env")
VERSION: str = tomllib.loads((BASE_DIR / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

DATA_DIR = DataDir(env.data_dir())


def _generated(name: str, variable: str, value: str | None) -> str:
    if value:
        return value
    if DATA_DIR.exists:
        return DATA_DIR.secret(name)
    raise ImproperlyConfigured(
        f"{variable} is not set, and there is no data directory at {DATA_DIR.path}. "
        f"Set {variable} (or {variable}_FILE), or start an installation with engines of its own: make run."
    )


DEBUG = env.flag("DEBUG", "Show error pages with details. Never in production.")
SECRET_KEY = _generated(
    "secret_key",
    "SECRET_KEY",
    env.secret("SECRET_KEY", "Signs sessions, JWTs and cursors. At least 50 random characters."),
)
if len(SECRET_KEY) < 50 and not DEBUG:
    raise ImproperlyConfigured("SECRET_KEY is too short: give it at least 50 random characters.")
ENCRYPTION_KEYS = _generated(
    "encryption_keys",
    "ENCRYPTION_KEYS",
    env.secret(
        "ENCRYPTION_KEYS",
        "Keys of the encryption at rest: `id:base64` of 32 bytes, separated by commas. The first encrypts.",
    ),
)

# --- Addresses -------------------------------------------------------------------------------------------------------
PUBLIC_URL = (
    env.url(
        "PUBLIC_URL", "Address under which clients reach the site.", "http://localhost:8000", schemes=("http", "https")
    )
    or ""
).rstrip("/")
_public = urlsplit(PUBLIC_URL)
_local = _public.hostname in ("localhost", "127.0.0.1", "::1")
ALLOWED_HOSTS = env.words(
    "ALLOWED_HOSTS",
    "Host names that the site answers to, besides the one of PUBLIC_URL.",
    ("localhost", "127.0.0.1", "[::1]") if _local else (),
)
if _public.hostname and _public.hostname not in ALLOWED_HOSTS:
    ALLOWED_HOSTS.append(_public.hostname)
CSRF_TRUSTED_ORIGINS = [f"{_public.scheme}://{_public.netloc}"]
MCP_ALLOWED_ORIGINS = frozenset(
    env.words(
        "MCP_ALLOWED_ORIGINS", "Browser origins that may call /mcp, besides the site's own (`https://app.example`)."
    )
) | {f"{_public.scheme}://{_public.netloc}"}
TRUSTED_PROXIES = env.integer(
    "TRUSTED_PROXIES", "How many reverse proxies in front of the site set X-Forwarded-For.", 0, minimum=0, maximum=5
)
if TRUSTED_PROXIES:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# --- Applications ----------------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "unfold.contrib.forms",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "rest_framework_simplejwt.token_blacklist",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "mcpsite.jobs.JobsConfig",
    "health_check",
    "keyring",
    "audit",
    "tools",
    "access",
    "gateway",
    "agents",
    "mcpsite",
]

MIDDLEWARE = [
    "mcpsite.middleware.request_id",
    "mcpsite.middleware.probes",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "mcpsite.middleware.ContentSecurityPolicy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "mcpsite.middleware.Common",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "mcpsite.urls"
ASGI_APPLICATION = "mcpsite.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

AUTH_USER_MODEL = "access.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "access.passwords.CommonPasswordValidator"},
]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.ScryptPasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
LOGIN_URL = "admin:login"

# --- PostgreSQL ------------------------------------------------------------------------------------------------------
# `default` is what the site runs as: it can neither alter the schema nor change a record. `owner` migrates.
_SCHEMES = ("postgresql", "postgres")


def _database(url: str, **options: Any) -> dict[str, Any]:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    host = parts.netloc.rpartition("@")[2]
    socket = "%2f" in host.lower()
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(host) if socket else parts.hostname or "",
        "PORT": "5432" if socket else str(parts.port or ""),
        "OPTIONS": {"connect_timeout": 5, "application_name": "mcpsite", **query, **options},
    }


EMBEDDED_DATABASE = not env.is_set("DATABASE_URL")
_site_url = env.url(
    "DATABASE_URL", "PostgreSQL as the site uses it: postgresql://user:password@host:5432/name.", schemes=_SCHEMES
)
_owner_url = env.url(
    "DATABASE_OWNER_URL",
    "PostgreSQL as the owner of the schema, for migrations. Default: DATABASE_URL.",
    schemes=_SCHEMES,
)
_ledger_urls = {
    "writer": env.url(
        "LEDGER_WRITER_URL",
        "PostgreSQL for the records of calls, as a role that can only insert. Default: DATABASE_URL.",
        schemes=_SCHEMES,
    ),
    "sealer": env.url(
        "LEDGER_SEALER_URL",
        "PostgreSQL for the sealer, as the role that makes the evidence. Default: DATABASE_URL.",
        schemes=_SCHEMES,
    ),
    "reader": env.url(
        "LEDGER_READER_URL",
        "PostgreSQL for the verifier, as a role that only reads the ledger. Default: DATABASE_URL.",
        schemes=_SCHEMES,
    ),
}
if EMBEDDED_DATABASE:
    _generated("secret_key", "DATABASE_URL", None)
    _site_url, _owner_url = DATA_DIR.database_url(SITE_ROLE), DATA_DIR.database_url(OWNER_ROLE)
    _embedded = {"writer": WRITER_ROLE, "sealer": SEALER_ROLE, "reader": READER_ROLE}
    _ledger_urls = {name: DATA_DIR.database_url(role) for name, role in _embedded.items()}
_pool = env.integer(
    "DATABASE_POOL_SIZE", "Connections that each process keeps for pages and REST.", 8, minimum=1, maximum=100
)
DATABASES = {
    "default": _database(_site_url or "", pool={"min_size": 0, "max_size": _pool, "timeout": 5}),
    "owner": _database(_owner_url or _site_url or ""),
}
# Who works on the ledger: those without a URL of their own do it as the site.
LEDGER_DATABASES = {name: _database(url or _site_url or "") for name, url in _ledger_urls.items()}
ONE_DATABASE_ROLE = DATABASES["default"]["USER"] == DATABASES["owner"]["USER"]
DATABASE_ROUTERS: list[str] = []
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- The ledger's evidence -------------------------------------------------------------------------------------------
_signing_keys = env.late_secret(
    "LEDGER_SIGNING_KEYS",
    "Keys that sign the ledger: `id:base64` of 32 bytes, or `id:awskms:///…` of a key in AWS KMS, separated by commas."
    " The first signs. For the sealer only.",
)


def LEDGER_SIGNING_KEYS() -> str | None:
    """Read by the sealer, each time anew; nobody else asks."""
    return _signing_keys() or (DATA_DIR.secret("ledger_signing_keys") if DATA_DIR.exists else None)


def LEDGER_SIGNING_KEYS_PATH() -> Path | None:
    """The file that the keys are in; None when a variable holds them."""
    if env.is_set("LEDGER_SIGNING_KEYS"):
        return env.secret_path("LEDGER_SIGNING_KEYS")
    return DATA_DIR.path / "secrets/ledger_signing_keys" if DATA_DIR.exists else None


_state_file = env.text(
    "LEDGER_STATE_FILE",
    "Where the sealer remembers its newest head, outside of the database. Default: in the data directory.",
)
LEDGER_STATE_FILE = Path(_state_file) if _state_file else DATA_DIR.path / "sealer.json" if DATA_DIR.exists else None

# --- Redis -----------------------------------------------------------------------------------------------------------
EMBEDDED_REDIS = not env.is_set("REDIS_URL")
REDIS_URL = (
    env.url("REDIS_URL", "Redis or Valkey: redis://:password@host:6379/0.", schemes=("redis", "rediss", "unix")) or ""
)
if EMBEDDED_REDIS:
    _generated("secret_key", "REDIS_URL", None)
    REDIS_URL = DATA_DIR.redis_url
CACHES = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "mcpsite",
        "OPTIONS": {
            "SERIALIZER": "django_redis.serializers.json.JSONSerializer",
            "SOCKET_CONNECT_TIMEOUT": 1,
            "SOCKET_TIMEOUT": 1,
        },
    }
}
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
SESSION_SERIALIZER = "django.contrib.sessions.serializers.JSONSerializer"
SESSION_COOKIE_AGE = 60 * 60 * 12
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"

# --- REST ------------------------------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["access.rest.BearerAuthentication", "access.rest.SessionAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["access.rest.ModelPermissions"],
    "DEFAULT_PAGINATION_CLASS": "access.lists.Pages",
    "DEFAULT_FILTER_BACKENDS": [
        "access.lists.Filters",
        "access.lists.Search",
    ],
    "DEFAULT_RENDERER_CLASSES": [
        "rest_framework.renderers.JSONRenderer",
        "rest_framework.renderers.BrowsableAPIRenderer",
    ],
    "DEFAULT_PARSER_CLASSES": ["access.rest.Parser"],
    "DEFAULT_SCHEMA_CLASS": "access.openapi.Schema",
    "DEFAULT_THROTTLE_RATES": {"login": "20/min"},
    "EXCEPTION_HANDLER": "access.rest.problem",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "mcpsite API",
    "DESCRIPTION": "Govern and call the tools of an organisation.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "SCHEMA_PATH_PREFIX": "/api/v1",
}
SIMPLE_JWT: dict[str, Any] = {
    "ACCESS_TOKEN_LIFETIME": timedelta(
        minutes=env.integer("JWT_ACCESS_MINUTES", "How long an access token is valid.", 10, minimum=1, maximum=60)
    ),
    "REFRESH_TOKEN_LIFETIME": timedelta(
        days=env.integer("JWT_REFRESH_DAYS", "How long a refresh token is valid.", 7, minimum=1, maximum=90)
    ),
    "ROTATE_REFRESH_TOKENS": True,
    "BLACKLIST_AFTER_ROTATION": True,
    "ALGORITHM": "HS256",
    "SIGNING_KEY": SECRET_KEY,
    "AUDIENCE": PUBLIC_URL,
    "ISSUER": PUBLIC_URL,
    "USER_ID_CLAIM": "sub",
    "UPDATE_LAST_LOGIN": False,
}

# --- Calls -----------------------------------------------------------------------------------------------------------
CONNECTORS = [
    "tools.connectors.sql.SqlConnector",
    "tools.connectors.mcp.McpConnector",
    "tools.connectors.mcp_stdio.McpStdioConnector",
]
MCP_LAUNCHERS = env.structure(
    "MCP_LAUNCHERS",
    "Programs that data sources of the kind `mcp-stdio` may run, as JSON: name → launcher.",
    '{"time": {"command": ["python", "-m", "mcp_server_time", "--local-timezone", "UTC"],'
    ' "description": "The time in any time zone."}}',
    parse=launchers.read,
)
CALL_TIMEOUT_SECONDS = env.integer(
    "CALL_TIMEOUT_SECONDS",
    "Longest time that one tool call may take, unless its data source says less.",
    30,
    minimum=1,
    maximum=600,
)
TASK_AFTER_SECONDS = env.integer(
    "TASK_AFTER_SECONDS",
    "After how long a call becomes a task, where its tool becomes one when it is slow and the client knows tasks.",
    5,
    minimum=1,
    maximum=600,
)
TASK_TIMEOUT_SECONDS = env.integer(
    "TASK_TIMEOUT_SECONDS",
    "Longest time that a call may take that is a task from its beginning, with the time that its user takes to answer.",
    3600,
    minimum=10,
    maximum=86_400,
)
TASK_KEPT_SECONDS = env.integer(
    "TASK_KEPT_SECONDS",
    "How much longer than the longest task a client may ask for its result.",
    3600,
    minimum=60,
    maximum=604_800,
)
TASKS_PER_USER = env.integer(
    "TASKS_PER_USER", "Tasks of one user that may be under way at the same time.", 50, minimum=1, maximum=10_000
)
ARGUMENT_READS_PER_HOUR = env.integer(
    "ARGUMENT_READS_PER_HOUR",
    "How often a person may decrypt what records keep, or search it, within an hour; 0: as often as needed.",
    100,
    minimum=0,
    maximum=100_000,
)
RECORDED_ARGUMENTS = env.choice(
    "RECORDED_ARGUMENTS",
    "What the ledger keeps of arguments where no policy of a tool or data source says it.",
    "encrypted",
    ("encrypted", "dropped"),
)
RECORDED_RESULTS_KB = env.integer(
    "RECORDED_RESULTS_KB",
    "How much of a result the ledger keeps, encrypted, where no policy says it; 0: only the commitment.",
    0,
    minimum=0,
    maximum=256,
)
CALLS_PER_MINUTE = env.integer(
    "CALLS_PER_MINUTE", "Budget of a principal per tool where no grant sets one.", 600, minimum=1, maximum=10_000_000
)
MCP_MAX_BODY_BYTES = env.integer(
    "MCP_MAX_BODY_BYTES",
    "Largest request body at /mcp and by REST.",
    4 * 1024 * 1024,
    minimum=1024,
    maximum=64 * 1024 * 1024,
)
MCP_SESSION_SECONDS = env.integer(
    "MCP_SESSION_SECONDS",
    "How long the session of an MCP client of an older revision lives after its last request.",
    3_600,
    minimum=60,
    maximum=7 * 24 * 3_600,
)
MAX_RESULT_BYTES = env.integer(
    "MAX_RESULT_BYTES",
    "Largest answer that is taken from an upstream.",
    16 * 1024 * 1024,
    minimum=1024,
    maximum=256 * 1024 * 1024,
)
MCP_STREAMS_PER_USER = env.integer(
    "MCP_STREAMS_PER_USER",
    "Streams (`subscriptions/listen`, GET) that a user may have open at each web worker.",
    1_000,
    minimum=1,
    maximum=100_000,
)
MCP_STREAMS_PER_WORKER = env.integer(
    "MCP_STREAMS_PER_WORKER",
    "Streams that each web worker keeps open for all users together.",
    10_000,
    minimum=1,
    maximum=100_000,
)
WEB_WORKERS = env.integer("WEB_WORKERS", "Web worker processes.", 2, minimum=1, maximum=64)

# --- The ledger ------------------------------------------------------------------------------------------------------
_spool_dir = env.text(
    "LEDGER_SPOOL_DIR",
    "Where records of calls wait that PostgreSQL did not take in time, on a disk that lasts.",
)
LEDGER_SPOOL_DIR = Path(_spool_dir) if _spool_dir else DATA_DIR.path / "spool" if DATA_DIR.exists else None

# --- Agents ----------------------------------------------------------------------------------------------------------
AGENT_RUNS_AT_ONCE = env.integer(
    "AGENT_RUNS_AT_ONCE", "Runs of agents that one agent worker works on at the same time.", 4, minimum=1, maximum=64
)
AGENT_RUN_DAYS = env.integer(
    "AGENT_RUN_DAYS",
    "Days after which a finished run is deleted with its input, steps and output; its records stay.",
    90,
    minimum=1,
    maximum=3650,
)
LANGSMITH_TRACING = env.flag(
    "LANGSMITH_TRACING",
    "Send everything that agents are asked and answer to LangSmith. Off: the libraries report nothing to anybody.",
)

# --- Ledger: what stands outside of the database ---------------------------------------------------------------------
LEDGER_WITNESSES = witnesses.read(
    env.words(
        "LEDGER_WITNESSES",
        "Keys of the witnesses whose cosignatures count, as `witness.py key` prints them, or paths of files with one.",
    )
)
LEDGER_WITNESS_TOKEN = env.secret(
    "LEDGER_WITNESS_TOKEN",
    "Token of a witness: `mcps_` and at least 43 characters. `first_administrator` makes an account that has it.",
)
LEDGER_ANCHORS = sinks.read(
    env.words(
        "LEDGER_ANCHORS",
        "Where heads are kept outside: `file:///directory`, `s3://bucket/prefix?mode=compliance&days=3650`,"
        " `https://host/path`.",
    ),
    env.secret("LEDGER_ANCHOR_SECRET", "Signs what is sent to webhooks of LEDGER_ANCHORS. At least 20 characters."),
)

# --- Retention -------------------------------------------------------------------------------------------------------
LEDGER_ARCHIVE = env.url(
    "LEDGER_ARCHIVE",
    "Where months of the ledger are exported to: `file:///folder`, or `s3://bucket/prefix` with the options"
    " `region`, `endpoint`, `kms_key`, `lock_mode` and `lock_days`. Unset: nothing is exported, so nothing expires.",
    schemes=("file", "s3"),
)
if LEDGER_ARCHIVE:
    try:
        stores.settle(LEDGER_ARCHIVE)
    except ValueError as error:
        raise ImproperlyConfigured(f"LEDGER_ARCHIVE: {error}.") from error
GAP_WAITING_HOURS = env.integer(
    "GAP_WAITING_HOURS",
    "How long records stay after two persons have approved that they expire. `migrate` writes it to the database.",
    24,
    minimum=1,
    maximum=8760,
)

# --- Exports ---------------------------------------------------------------------------------------------------------
EXPORT_DAYS = env.integer(
    "EXPORT_DAYS", "Days after which the archive of an export or evidence pack is deleted.", 7, minimum=1, maximum=365
)
EXPORT_MAX_MB = env.integer(
    "EXPORT_MAX_MB", "Largest archive of one export or evidence pack.", 1024, minimum=1, maximum=100_000
)
EXPORT_TOTAL_MB = env.integer(
    "EXPORT_TOTAL_MB",
    "Archives that are kept together; beyond that no further one is begun. They are in the database.",
    4096,
    minimum=1,
    maximum=1_000_000,
)

# --- Metrics ---------------------------------------------------------------------------------------------------------
METRICS_TOKEN = env.secret(
    "METRICS_TOKEN",
    "Bearer token that reads /metrics, for Prometheus. At least 20 characters. Unset: only users with the permission.",
)
if METRICS_TOKEN and len(METRICS_TOKEN) < 20:
    raise ImproperlyConfigured("METRICS_TOKEN is too short: give it at least 20 random characters.")
_metrics_dir = env.text("METRICS_DIR", "Where the processes of one machine add up their metrics; best in memory.")
METRICS_DIR = Path(_metrics_dir) if _metrics_dir else DATA_DIR.run_dir / "metrics" if DATA_DIR.exists else None

# --- Pages, logs, security -------------------------------------------------------------------------------------------
SITE_ENVIRONMENT = env.text(
    "SITE_ENVIRONMENT", "Name of this installation, e.g. `Staging`, shown as a ribbon in the admin. Unset: no ribbon."
)
LANGUAGE_CODE = "en"
FORMAT_MODULE_PATH = "mcpsite.formats"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "/static/"
STATIC_ROOT = env.text("STATIC_ROOT", "Where `collectstatic` puts files. Unset: they are served from the packages.")
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

_https = _public.scheme == "https"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _https
SECURE_SSL_REDIRECT = env.flag("SECURE_SSL_REDIRECT", "Behind HTTPS: send plain HTTP there.", True) and _https
SECURE_HSTS_SECONDS = 31_536_000 if _https else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = _https
SECURE_REDIRECT_EXEMPT = [
    *(r"^livez$", r"^readyz$", r"^health$", r"^metrics$"),
    # For a witness inside of a private network.
    r"^api/v1/audit/(heads|consistency|keys|contradictions)/",
]
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
# Unfold's Alpine.js evaluates expressions; the middleware narrows this to /admin/.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "script-src": ["'self'", "'unsafe-inline'", "'unsafe-eval'"],
        "style-src": ["'self'", "'unsafe-inline'"],
        "img-src": ["'self'", "data:"],
        "object-src": ["'none'"],
        "base-uri": ["'self'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
}

LOG_LEVEL = env.choice("LOG_LEVEL", "Least severe level that is logged.", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))
LOG_FORMAT = env.choice("LOG_FORMAT", "One JSON object a line, or lines for people.", "json", ("json", "text"))
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "mcpsite.logs.JsonFormatter"}, "text": {"()": "mcpsite.logs.TextFormatter"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT}},
    "root": {"handlers": ["console"], "level": LOG_LEVEL},
    "loggers": {
        "django.server": {"handlers": ["console"], "propagate": False},
        "uvicorn.access": {"level": "WARNING"},
        "procrastinate": {"level": "WARNING"},
    },
}
