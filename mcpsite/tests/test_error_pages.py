"""People who get lost in the admin land on a page of ours."""

from __future__ import annotations

import pytest
from django.test import Client


@pytest.mark.django_db
def test_an_address_without_a_page_leads_back():
    answer = Client().get("/nowhere")
    assert answer.status_code == 404
    assert 'href="/admin/"' in answer.content.decode()
