"""The things that a real mesh has beside its fault, by name, and recordings with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from meshnb.sources import Bundle
from meshnb.tables import Facts
from tests.conftest import truth_of, unpacked
from tests.enriching.base import Enriched, Ingredient
from tests.enriching.control_planes import revision, second_istiod
from tests.enriching.gateways import internet, tls_gateway
from tests.enriching.neighbours import (
    meant_outside,
    monitoring,
    network_policies,
    pending,
    platform,
    quotas,
)
from tests.enriching.noise import application_errors, jobs, meant_limit, retries, rolling_update
from tests.enriching.proxies import (
    classic_sidecars,
    istio_filters,
    json_logs,
    no_logs,
    own_format,
    short_logs,
)
from tests.enriching.security import default_deny, meant_deny, strict
from tests.enriching.traffic import canary, database, external, ports, registry_only, subsets

__all__ = ["ALL", "INGREDIENTS", "Enriched", "enriched"]

_EVERY: tuple[Ingredient, ...] = (
    second_istiod,
    revision,
    subsets,
    canary,
    ports,
    database,
    external,
    registry_only,
    tls_gateway,
    internet,
    application_errors,
    retries,
    rolling_update,
    jobs,
    platform,
    monitoring,
    pending,
    meant_outside,
    network_policies,
    quotas,
    meant_limit,
    strict,
    default_deny,
    meant_deny,
    istio_filters,
    classic_sidecars,
    json_logs,
    own_format,
    short_logs,
    no_logs,
)

#: Each ingredient by its name, in the order in which they are added.
INGREDIENTS: Mapping[str, Ingredient] = {one.__name__: one for one in _EVERY}

#: With these the logs say less, or nothing.
LESS = ("own_format", "short_logs", "no_logs")

#: What a mesh may have all at once, with logs to show it.
ALL = tuple(name for name in INGREDIENTS if name not in LESS)


def enriched(name: str, ingredients: Iterable[str]) -> Enriched:
    """Return a recording as a source, with these ingredients added in their own order."""
    wanted = set(ingredients)
    mesh = Enriched(Bundle(unpacked() / name, label=name), tuple(truth_of(name)["truth"]))
    for title, add in INGREDIENTS.items():
        if title in wanted:
            add(mesh)
    return mesh


def enriched_facts(name: str, ingredients: Iterable[str]) -> Facts:
    """Return the facts of a recording with these ingredients."""
    return Facts(enriched(name, ingredients))
