"""What the tests of long jobs share."""

from typing import Any

import pytest

import jetgraph as jg


@pytest.fixture(scope="package")
def demo() -> tuple[jg.ResidualGraph, Any]:
    loaded = jg.load_model("demo")
    return loaded.trace(loaded.inputs()), loaded.tokenizer
