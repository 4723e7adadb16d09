from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from pyprocrastinate_prometheus import Plugin

Sample = Callable[..., float | None]


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def plugin(registry):
    return Plugin(registry, max_pairs=3)


@pytest.fixture
def sample(registry) -> Sample:
    """Return a function that tells a value of the registry, or None where there is no such series."""

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"procrastinate_{name}", labels)

    return sample
