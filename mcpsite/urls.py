"""Where pages and REST resources are. `/mcp` is not here: `mcpsite.asgi` gives it to the gateway."""

from django.contrib import admin
from django.urls import path

urlpatterns = [
    path("admin/", admin.site.urls),
]
