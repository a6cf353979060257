"""A model field whose value is encrypted at rest and bound to its table, row and column."""

from __future__ import annotations

from typing import Any

import orjson
from django.core.exceptions import FieldError
from django.db import models

from keyring.keys import KeyRing, ring

PURPOSE = "field"


class Ciphertext(bytes):
    """What the database holds; it shows nothing of itself."""

    # The row that it was read for, when that is known.
    context: bytes | None = None

    def __repr__(self) -> str:
        return "<encrypted>"

    __str__ = __repr__


class Sealed(Ciphertext):
    """A ciphertext that was made for the row that it is about to be written to."""


def _context(table: str, key: object, column: str | None) -> bytes:
    return f"{table}|{key}|{column}".encode()


def sealed_for(keys: KeyRing, table: str, key: object, column: str, value: Any) -> Sealed:
    """The value as an `EncryptedJSONField` of that row would encrypt it: for rows that are written without a model."""
    return Sealed(keys.encrypt(orjson.dumps(value), purpose=PURPOSE, context=_context(table, key, column)))


def opened_for(keys: KeyRing, table: str, key: object, column: str, value: bytes) -> bytes:
    """The JSON that was sealed so, for rows that are read without a model. Raises DecryptionError."""
    return keys.decrypt(value, purpose=PURPOSE, context=_context(table, key, column))


class _Attribute:
    """Decrypts at first use, since only then is the row's key known."""

    def __init__(self, field: EncryptedJSONField) -> None:
        self.field = field

    def __get__(self, instance: models.Model | None, owner: type[models.Model]) -> Any:
        if instance is None:
            return self
        if self.field.attname not in instance.__dict__:
            instance.refresh_from_db(fields=[self.field.attname])
        value = instance.__dict__[self.field.attname]
        if isinstance(value, Ciphertext):
            value = self.field.opened(value, instance)
            instance.__dict__[self.field.attname] = value
        return value

    def __set__(self, instance: models.Model, value: Any) -> None:
        if isinstance(value, Ciphertext) and value.context is None and instance.pk is not None:
            value.context = self.field.context(instance)
        instance.__dict__[self.field.attname] = value


class EncryptedJSONField(models.BinaryField):  # type: ignore[type-arg]
    """A JSON value, encrypted with AES-256-GCM. The model's primary key must be known before the first save (a UUID).

    It cannot be searched, cannot be set by `QuerySet.update`, is left out of forms (`editable=False`) and of fixtures.
    """

    empty_strings_allowed = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["editable"] = False
        kwargs["serialize"] = False
        super().__init__(*args, **kwargs)

    def deconstruct(self) -> Any:
        """As it is written: what is true of every such field is not repeated in migrations."""
        name, path, args, kwargs = super().deconstruct()
        return name, path, args, {key: value for key, value in kwargs.items() if key != "serialize"}

    def contribute_to_class(self, cls: type[models.Model], name: str, private_only: bool = False) -> None:
        """Install the decrypting attribute."""
        super().contribute_to_class(cls, name, private_only)
        setattr(cls, self.attname, _Attribute(self))

    def get_lookup(self, lookup_name: str) -> Any:
        """Only whether there is a value can be asked for."""
        return super().get_lookup(lookup_name) if lookup_name in ("exact", "isnull") else None

    def context(self, instance: models.Model) -> bytes:
        """What the ciphertext is bound to: table, primary key, column."""
        return _context(self.model._meta.db_table, self.model._meta.pk.to_python(instance.pk), self.column)

    def opened(self, value: Ciphertext, instance: models.Model) -> Any:
        """The value that was encrypted for this row. Raises DecryptionError."""
        context = value.context or self.context(instance)
        return orjson.loads(ring().decrypt(value, purpose=PURPOSE, context=context))

    def sealed(self, value: Any, instance: models.Model) -> Sealed:
        """The value, encrypted for this row with the primary key."""
        return Sealed(ring().encrypt(orjson.dumps(value), purpose=PURPOSE, context=self.context(instance)))

    def from_db_value(self, value: bytes | memoryview | None, *_: Any) -> Ciphertext | None:
        """Leave it encrypted until somebody asks for it."""
        return None if value is None else Ciphertext(value)

    def to_python(self, value: Any) -> Any:
        """Any JSON value is one already; a text is not base64."""
        return value

    def pre_save(self, model_instance: models.Model, add: bool) -> Ciphertext | None:
        """Encrypt for this row. A value that was never decrypted is kept as it is, unless the row has another key."""
        value = model_instance.__dict__.get(self.attname)
        if value is None:
            return None
        if model_instance.pk is None:
            raise FieldError(f"{self.name} is bound to its row: give the row its primary key before saving it.")
        if isinstance(value, Ciphertext):
            if value.context in (None, self.context(model_instance)):
                return Sealed(value)
            value = self.opened(value, model_instance)
        return self.sealed(value, model_instance)

    def get_prep_value(self, value: Any) -> Any:
        """Refuse plaintext, and the ciphertext of another row: only `pre_save` knows the row."""
        if value is not None and not isinstance(value, Sealed):
            raise FieldError(f"{self.name} is encrypted: it cannot be searched or set by update(); save the object.")
        return super().get_prep_value(value)

    def value_from_object(self, obj: models.Model) -> Ciphertext | None:
        """For forms and serialisers, which must not see it: only whether there is one."""
        return None if obj.__dict__.get(self.attname) is None else Ciphertext()

    def value_to_string(self, obj: models.Model) -> str:
        """Never serialised in the clear."""
        return ""
