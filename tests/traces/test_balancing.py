"""Hosts are chosen by health, priority, locality and panic, as Envoy's documentation has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from meshnb.traces.envoy.balancing import choose
from meshnb.traces.envoy.configs import Drain, ProxyConfig, Taken

Json = dict[str, Any]


def _config(hosts: list[Json], **cluster: Any) -> ProxyConfig:
    raw = msgspec.json.encode
    resource = Taken("c", "active", None, "", msgspec.Raw(raw({"name": "c", **cluster})))
    statuses = {"c": msgspec.Raw(raw({"name": "c", "host_statuses": hosts}))}
    empty: Any = {}
    config = ProxyConfig(
        *("p", {"c": resource}, empty, empty, empty, empty, empty),
        *(frozenset(), None, None, Drain()),
    )
    return replace(config, _statuses=statuses)


def _host(last: int, told: str = "HEALTHY", priority: int = 0, **flags: bool) -> Json:
    return {
        "address": {"socket_address": {"address": f"10.0.0.{last}", "port_value": 80}},
        "health_status": {"eds_health_status": told, **flags},
        "priority": priority,
    }


_NO_PANIC: Json = {"common_lb_config": {"healthy_panic_threshold": {}}}


@pytest.mark.parametrize(
    ("hosts", "cluster", "chosen"),
    [
        ([_host(1), _host(2)], {}, [1, 2]),
        ([_host(1), _host(2), _host(3, "UNHEALTHY")], {}, [1, 2]),
        # fewer than half are healthy: health is ignored
        ([_host(1), _host(2, "UNHEALTHY"), _host(3, "UNHEALTHY")], {}, [1, 2, 3]),
        ([_host(1), _host(2, "UNHEALTHY"), _host(3, "UNHEALTHY")], _NO_PANIC, [1]),
        ([_host(1, "UNHEALTHY")], _NO_PANIC, []),
        ([_host(1, "UNHEALTHY")], {}, [1]),
        # one that drains does not count
        ([_host(1), _host(2, "DRAINING"), _host(3, "DRAINING")], {}, [1]),
        # 71% of a priority are enough for all, with the factor of 1.4
        ([*map(_host, range(5)), _host(8, "UNHEALTHY"), _host(9, priority=1)], {}, range(5)),
        ([_host(1), _host(2, "UNHEALTHY"), _host(9, priority=1)], {}, [1, 9]),
        # degraded ones take what healthy ones cannot
        ([_host(1), _host(2, "DEGRADED")], {}, [1, 2]),
        ([*map(_host, range(5)), _host(9, "DEGRADED")], {}, range(5)),
        ([], {}, []),
    ],
)
def test_hosts_are_chosen(hosts: list[Json], cluster: Json, chosen: Any) -> None:
    found = choose(_config(hosts, **cluster), "c")
    assert [host.name for host in found.chosen] == [f"10.0.0.{last}:80" for last in chosen]
    assert len(found.passed_over) == len(hosts) - len(found.chosen)


def test_an_ejected_host_may_be_back_any_time() -> None:
    found = choose(_config([_host(1, failed_outlier_check=True)], **_NO_PANIC), "c")
    assert [host.name for host in found.chosen] == ["10.0.0.1:80"]
    assert "for a while only" in found.sometimes_none
    assert found.passed_over == (("10.0.0.1:80", "it has failed_outlier_check"),)


def test_outlier_detection_may_eject_a_single_host() -> None:
    detection = {"outlier_detection": {"consecutive_5xx": 1}}
    assert choose(_config([_host(1)], **_NO_PANIC, **detection), "c").sometimes_none
    two = choose(_config([_host(1), _host(2)], **_NO_PANIC, **detection), "c")
    assert not two.sometimes_none  # a tenth of the hosts at most, but one in any case
