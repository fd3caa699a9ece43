"""Faults that no recording has, in meshes with all that a real mesh has: the cause comes first.

Each was labelled before it was diagnosed; see :mod:`tests.faults`. ``python -m
tests.other_meshes_accuracy`` prints all of them, in the other ways as well.
"""

from __future__ import annotations

import pytest

from tests.faults import FAULTS
from tests.other_meshes_accuracy import OLD, PASSED_ON, RENAMED, measure

#: One of each kind of evidence, tried under other names.
UNDER_OTHER_NAMES = (
    "a_database_that_refuses_connections",
    "a_path_that_no_rule_of_the_route_has",
    "an_account_is_misspelt_at_ztunnel",
    "an_external_tls_host_was_forgotten",
    "the_gateway_is_not_admitted",
)
#: One of each way in which a proxy refuses, without anything of the time before.
LONG_AGO = (
    "a_connection_pool_of_one",
    "a_gateway_port_that_no_service_has",
    "a_path_at_the_gateway_is_misspelt",
    "an_issuer_that_nobody_has",
    "plain_text_to_a_port_of_tls",
)
#: One of each way to fail that an application may pass on.
ANSWERED_WITH_500 = (
    "a_deployment_was_scaled_to_nothing",
    "nobody_was_admitted_after_a_default_deny",
    "one_version_of_two_answers_errors",
    "route_to_a_port_that_the_service_lacks",
)


#: Every second one of the others; all of them take more than a minute.
AS_THEY_ARE = [
    name for name in FAULTS if name not in (*UNDER_OTHER_NAMES, *LONG_AGO, *ANSWERED_WITH_500)
][::2]


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_the_cause_is_first_and_alone(name: str) -> None:
    measured = measure(name)

    assert (measured.score.right, measured.beside) == (True, ())


@pytest.mark.parametrize("name", UNDER_OTHER_NAMES)
def test_the_cause_is_first_under_other_names(name: str) -> None:
    measured = measure(name, RENAMED)

    assert (measured.score.right, measured.beside) == (True, ())


@pytest.mark.parametrize("name", LONG_AGO)
def test_the_cause_is_first_when_nothing_is_left_of_the_time_before(name: str) -> None:
    measured = measure(name, OLD)

    assert (measured.score.right, measured.beside) == (True, ())


@pytest.mark.parametrize("name", ANSWERED_WITH_500)
def test_applications_that_pass_an_error_on_are_not_blamed(name: str) -> None:
    measured = measure(name, PASSED_ON)

    assert (measured.score.right, measured.beside) == (True, ())
