"""A model field whose value is encrypted at rest and bound to its table, row and column."""

from __future__ import annotations

from typing import Any

import orjson
from django.core.exceptions import FieldError
from django.db import models

from keyring.keys import ring

PURPOSE = "field"


class Ciphertext(bytes):
    """What the database holds; it shows nothing of itself."""

    def __repr__(self) -> str:
        return "<encrypted>"

    __str__ = __repr__


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
            value = orjson.loads(ring().decrypt(value, purpose=PURPOSE, context=self.field.context(instance)))
            instance.__dict__[self.field.attname] = value
        return value

    def __set__(self, instance: models.Model, value: Any) -> None:
        instance.__dict__[self.field.attname] = value


class EncryptedJSONField(models.BinaryField):  # type: ignore[type-arg]
    """A JSON value, encrypted with AES-256-GCM. The model's primary key must be known before the first save (a UUID).

    It cannot be searched, cannot be set by `QuerySet.update`, and is left out of forms (`editable=False`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["editable"] = False
        super().__init__(*args, **kwargs)

    def contribute_to_class(self, cls: type[models.Model], name: str, private_only: bool = False) -> None:
        """Install the decrypting attribute."""
        super().contribute_to_class(cls, name, private_only)
        setattr(cls, self.attname, _Attribute(self))

    def context(self, instance: models.Model) -> bytes:
        """What the ciphertext is bound to: table, primary key, column."""
        return f"{instance._meta.db_table}|{instance.pk}|{self.column}".encode()

    def from_db_value(self, value: bytes | memoryview | None, *_: Any) -> Ciphertext | None:
        """Leave it encrypted until somebody asks for it."""
        return None if value is None else Ciphertext(value)

    def pre_save(self, model_instance: models.Model, add: bool) -> Ciphertext | None:
        """Encrypt for this row. A value that was never decrypted is kept as it is."""
        value = model_instance.__dict__.get(self.attname)
        if value is None or isinstance(value, Ciphertext):
            return value
        if model_instance.pk is None:
            raise FieldError(f"{self.name} is bound to its row: give the row its primary key before saving it.")
        return Ciphertext(ring().encrypt(orjson.dumps(value), purpose=PURPOSE, context=self.context(model_instance)))

    def get_prep_value(self, value: Any) -> Any:
        """Refuse plaintext: only `pre_save` knows the row."""
        if value is not None and not isinstance(value, Ciphertext):
            raise FieldError(f"{self.name} is encrypted: it cannot be searched or set by update(); save the object.")
        return super().get_prep_value(value)

    def value_to_string(self, obj: models.Model) -> str:
        """Never serialised in the clear."""
        return ""
