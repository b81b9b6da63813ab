"""Fixtures of the tests of n-grams."""

from __future__ import annotations

import pytest

from jetgraph.applications.subject import subject
from jetgraph.loading import load


@pytest.fixture(scope="session")
def demo():
    return subject(load("demo"))
