"""The order to look in: guides, as values. Each leads a reader to a cause and its remedy."""

from __future__ import annotations

from collections.abc import Mapping

from meshnb.guides.base import (
    Case,
    Chosen,
    Excerpt,
    Fork,
    Guide,
    Option,
    Page,
    Pick,
    Step,
    Stop,
    Walk,
)
from meshnb.guides.change import CHANGE
from meshnb.guides.check_mesh import CHECK_MESH
from meshnb.guides.connection import CONNECTION
from meshnb.guides.control_plane_config import CONTROL_PLANE_CONFIG
from meshnb.guides.data_plane import DATA_PLANE
from meshnb.guides.data_plane_config import DATA_PLANE_CONFIG
from meshnb.guides.external import EXTERNAL
from meshnb.guides.forbidden import FORBIDDEN
from meshnb.guides.hangs import HANGS
from meshnb.guides.not_found import NOT_FOUND
from meshnb.guides.not_injected import NOT_INJECTED
from meshnb.guides.not_ready import NOT_READY
from meshnb.guides.policy import POLICY
from meshnb.guides.slow import SLOW
from meshnb.guides.triage import TRIAGE
from meshnb.guides.unauthorized import UNAUTHORIZED
from meshnb.guides.unavailable import UNAVAILABLE

__all__ = [
    "GUIDES",
    "Case",
    "Chosen",
    "Excerpt",
    "Fork",
    "Guide",
    "Option",
    "Page",
    "Pick",
    "Step",
    "Stop",
    "Walk",
]

#: Every guide by its name: the one to begin with, one per failure class, one per thing seen.
GUIDES: Mapping[str, Guide] = {
    guide.name: guide
    for guide in (
        *(TRIAGE, CONTROL_PLANE_CONFIG, DATA_PLANE_CONFIG, DATA_PLANE),
        *(UNAVAILABLE, NOT_FOUND, FORBIDDEN, UNAUTHORIZED, CONNECTION, SLOW, HANGS),
        *(NOT_INJECTED, NOT_READY, CHANGE, POLICY, EXTERNAL, CHECK_MESH),
    )
}
