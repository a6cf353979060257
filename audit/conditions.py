"""Nobody overwrites what they have not seen: strong ETags of REST objects, and the preconditions of RFC 9110 (13.1)."""

from __future__ import annotations

from typing import Any

import orjson
from django.db import models, transaction
from django.http import Http404
from django.urls import reverse
from django.utils.crypto import salted_hmac
from django.utils.http import parse_etags
from rest_framework import exceptions, viewsets
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.response import Response

from audit.changes import hidden_state


class PreconditionFailed(exceptions.APIException):
    """The object is not in the state that the request is about."""

    status_code = 412
    default_code = "precondition_failed"
    default_detail = "The object has changed since you read it, or has another ETag. Read it again, then decide anew."


def etag_of(obj: models.Model, shown: Any) -> str:
    """A strong validator of what is shown and of the secrets that are not (RFC 9110, section 8.8.3).

    Keyed, so that nobody who may read the tag can try out what a secret is.
    """
    hidden = {name: value.digest.hex() for name, value in hidden_state(obj).items() if value.digest}
    state = orjson.dumps([shown, hidden], default=str, option=orjson.OPT_SORT_KEYS)
    return f'"{salted_hmac("audit.conditions", state, algorithm="sha256").hexdigest()[:32]}"'


class Tagged(viewsets.GenericViewSet[Any]):
    """Mixed into a viewset: one object is answered with its ETag, or with 304 to whoever has it."""

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The object."""
        return self.answer(self.get_object())

    def answer(self, obj: models.Model, status: int = 200) -> Response:
        """The object as it is now. Only JSON has an ETag: a page in a browser is another representation."""
        shown = self.get_serializer(obj).data
        if self.request.accepted_renderer.format != "json":
            return Response(shown, status)
        tag = etag_of(obj, shown)
        if self.request.method in SAFE_METHODS and _has(self.request, "If-None-Match", tag, weakly=True):
            return Response(status=304, headers={"ETag": tag})
        return Response(shown, status, headers={"ETag": tag})


class Guarded(Tagged):
    """Mixed into a viewset: an object is locked, compared with `If-Match`, and changed in one transaction.

    So of two writers who saw the same state only one wins.
    """

    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The new object, with its address."""
        serializer = checked(self.get_serializer(data=request.data))
        with transaction.atomic():
            self.perform_create(serializer)
            made: Any = serializer.instance
            obj = self.get_queryset().get(pk=made.pk)
            response = self.answer(obj, 201)
        response["Location"] = request.build_absolute_uri(self.address_of(obj))
        return response

    def update(self, request: Request, *args: Any, partial: bool = False, **kwargs: Any) -> Response:
        """The object as it has become."""
        with transaction.atomic():
            obj = self.locked()
            serializer = checked(self.get_serializer(obj, data=request.data, partial=partial))
            self.perform_update(serializer)
            return self.answer(self.get_queryset().get(pk=obj.pk))

    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The object as it has become; what is not named stays."""
        return self.update(request, *args, **{**kwargs, "partial": True})

    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Nothing is left to answer."""
        with transaction.atomic():
            self.perform_destroy(self.locked())
        return Response(status=204)

    def locked(self) -> Any:
        """The request's object: locked, fresh, and in the state that is asked for. Raises PreconditionFailed."""
        found = self.get_object()
        rows = found._meta.concrete_model._base_manager.select_for_update(no_key=True).filter(pk=found.pk)
        # Locked first and read afterwards: what is joined to a row is not read anew after waiting for its lock.
        obj = self.get_queryset().filter(pk=found.pk).first() if rows.values_list("pk").first() else None
        if obj is None:
            raise Http404
        self.admit(obj)
        self._check(obj)
        return obj

    def admit(self, obj: Any) -> None:
        """Refuse a change of this very object; for viewsets whose objects are not for everybody to change."""

    def address_of(self, obj: Any) -> str:
        """The path at which the object is found."""
        field = self.lookup_url_kwarg or self.lookup_field
        return reverse(f"{self.basename}-detail", kwargs={field: getattr(obj, self.lookup_field)})

    def _check(self, obj: models.Model) -> None:
        tag = etag_of(obj, self.get_serializer(obj).data)
        unlike = "If-Match" in self.request.headers and not _has(self.request, "If-Match", tag)
        if unlike or _has(self.request, "If-None-Match", tag, weakly=True):
            raise PreconditionFailed

    def perform_create(self, serializer: Any) -> None:
        """Save."""
        serializer.save()

    def perform_update(self, serializer: Any) -> None:
        """Save."""
        serializer.save()

    def perform_destroy(self, instance: Any) -> None:
        """Delete."""
        instance.delete()


def _has(request: Request, header: str, tag: str, weakly: bool = False) -> bool:
    """Whether the header names this tag; a weak tag counts only where it may (RFC 9110, section 8.8.3.2)."""
    given = parse_etags(request.headers.get(header, ""))
    return "*" in given or tag in ((each.removeprefix("W/") if weakly else each) for each in given)


def checked(serializer: Any) -> Any:
    """The serializer, which is valid. A misspelt field is refused: without its expiry, a token would have none."""
    sent = serializer.initial_data
    unknown = sorted(set(sent) - set(serializer.fields)) if isinstance(sent, dict) else []
    if unknown:
        told = exceptions.ErrorDetail("There is no such field.", code="unknown_field")
        raise exceptions.ValidationError({name[:80]: [told] for name in unknown})
    serializer.is_valid(raise_exception=True)
    return serializer
