"""Where pages and REST resources are. `/mcp` is not here: `mcpsite.asgi` gives it to the gateway."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.urls import include, path
from rest_framework.permissions import IsAuthenticated
from rest_framework.routers import APIRootView, DefaultRouter

from access import api as access_api
from access import pages, user_api
from agents import api as agents_api
from audit import api as audit_api
from audit.export.api import ExportViewSet
from audit.outside import api as outside_api
from audit.packs.api import EvidencePackViewSet
from audit.privacy import api as privacy_api
from audit.proofs import api as proofs_api
from audit.retention import api as retention_api
from audit.streams import api as streams_api
from gateway.admin import try_tool
from gateway.api import CallToolView, MetricsView
from gateway.task_api import TaskViewSet
from mcpsite import auditing, health, landing, palette
from mcpsite import pages as site_pages
from mcpsite.api import DoctorView, SchemaView
from tools import api as tools_api

handler400 = "mcpsite.errors.bad_request"
handler403 = "mcpsite.errors.permission_denied"
handler404 = "mcpsite.errors.not_found"
handler500 = "mcpsite.errors.server_error"


class Resources(APIRootView):
    """What there is. Tools are called at `tools/{name}/call/`; the whole interface is described at `schema/`."""

    permission_classes = (IsAuthenticated,)


resources = DefaultRouter()
resources.APIRootView = Resources
resources.include_format_suffixes = False
resources.register("tools", tools_api.ToolViewSet, "tool")
resources.register("data-sources", tools_api.DataSourceViewSet, "data-source")
resources.register("prompts", tools_api.PromptViewSet, "prompt")
resources.register("resources", tools_api.ResourceViewSet, "resource")
resources.register("toolsets", tools_api.ToolsetViewSet, "toolset")
resources.register("users", user_api.UserViewSet, "user")
resources.register("service-accounts", user_api.ServiceAccountViewSet, "service-account")
resources.register("roles", access_api.RoleViewSet, "role")
resources.register("grants", access_api.GrantViewSet, "grant")
resources.register("tokens", access_api.TokenViewSet, "token")
resources.register("agents", agents_api.AgentViewSet, "agent")
resources.register("runs", agents_api.RunViewSet, "run")
resources.register("tasks", TaskViewSet, "task")
resources.register("model-providers", agents_api.ModelProviderViewSet, "model-provider")
resources.register("retention/classes", retention_api.RetentionClassViewSet, "retention-class")
resources.register("retention/holds", retention_api.LegalHoldViewSet, "legal-hold")
resources.register("retention/months", retention_api.MonthViewSet, "month")
resources.register("retention/archives", retention_api.ArchiveViewSet, "archive")
resources.register("retention/expiries", retention_api.ExpiryViewSet, "expiry")
resources.register("audit/records", audit_api.RecordViewSet, "record")
resources.register("audit/streams", streams_api.StreamViewSet, "stream")
resources.register("audit/stream", streams_api.PullViewSet, "pull")
resources.register("audit/exports", ExportViewSet, "export")
resources.register("audit/erasures", privacy_api.ErasureViewSet, "erasure")
resources.register("audit/occurrences", privacy_api.OccurrenceViewSet, "occurrence")
resources.register("audit/contradictions", outside_api.ContradictionViewSet, "contradiction")
resources.register("audit/anchors", outside_api.AnchorViewSet, "anchor")
resources.register("audit/heads", proofs_api.HeadViewSet, "head")
resources.register("audit/evidence-packs", EvidencePackViewSet, "evidence-pack")

api = [
    path("auth/token/", access_api.ObtainView.as_view(), name="token-obtain"),
    path("auth/token/refresh/", access_api.RefreshView.as_view(), name="token-refresh"),
    path("auth/token/verify/", access_api.VerifyView.as_view(), name="token-verify"),
    path("auth/token/revoke/", access_api.RevokeView.as_view(), name="token-revoke"),
    path("tools/<str:name>/call/", CallToolView.as_view(), name="tool-call"),
    path("audit/heads/<int:number>/cosignatures/", outside_api.CosignaturesView.as_view(), name="cosignatures"),
    path("audit/records/<uuid:rid>/proof/", proofs_api.ProofView.as_view(), name="record-proof"),
    path("audit/consistency/", proofs_api.ConsistencyView.as_view(), name="consistency"),
    path("audit/keys/", proofs_api.KeysView.as_view(), name="ledger-keys"),
    path("audit/verify.py", proofs_api.VerifierView.as_view(), name="verifier"),
    path("doctor/", DoctorView.as_view(), name="doctor"),
    path("schema/", SchemaView.as_view(), name="api-schema"),
    *resources.urls,
]

urlpatterns = [
    path("", landing.home, name="home"),
    path("admin/login/", pages.show_login),
    path("admin/logout/", admin.site.admin_view(pages.log_out)),
    path("admin/password_change/", admin.site.admin_view(pages.change_password)),
    path("admin/tools/tool/<uuid:pk>/try/", admin.site.admin_view(try_tool), name="try-tool"),
    path("admin/doctor/", admin.site.admin_view(site_pages.doctor), name="doctor-page"),
    path("admin/search/", admin.site.admin_view(palette.search)),
    path("admin/audit/overview/", admin.site.admin_view(auditing.overview), name="audit-overview"),
    path("admin/", admin.site.admin_view(auditing.index)),
    path("admin/", admin.site.urls),
    path("api/v1/", include(api)),
    path("api/docs/", login_required(landing.api_docs), name="api-docs"),
    path("metrics", MetricsView.as_view(), name="metrics"),
    path("health", health.health, name="health"),
    path("livez", health.livez, name="livez"),
    path("readyz", health.ready, name="readyz"),
]
