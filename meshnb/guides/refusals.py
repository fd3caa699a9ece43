"""What guides for refused requests share: who refused, by the words in the log."""

from __future__ import annotations

from collections.abc import Mapping

from meshnb.guides.asking import first_ask, said
from meshnb.guides.base import Case, Page
from meshnb.guides.pictures import State
from meshnb.guides.shared import (
    latest_lines,
    quiet,
    symptom_command,
    symptom_rows,
    what_it_says,
)
from meshnb.symptoms import Symptom

#: How the words in a log begin, or a flag, and who refused then: key of the answers, and meaning.
_WORDS: tuple[tuple[str, str, str], ...] = (
    (
        "rbac_access_denied_matched_policy[none]",
        "none",
        "rules exist that admit some, and none of them matches this caller",
    ),
    ("rbac_access_denied", "deny", "the rule that is named there forbids it"),
    ("connection closed due to policy", "ztunnel", "ztunnel closed it because of a policy"),
    ("jwt_authn_access_denied{Jwt_is_missing", "missing", "a token is demanded and there is none"),
    ("jwt_authn_access_denied", "token", "a token is there and is not accepted"),
    ("ext_authz", "asked", "a server that the proxy asks said no, or nothing"),
    ("local_rate_limited", "limit", "a rate limit is used up"),
    ("via_upstream", "application", "proxies only carried its answer"),
)
_FLAGS = {"UAEX": "ext_authz", "RL": "local_rate_limited"}


def ask_refuser(
    case: Case, symptom: Symptom | None, picked: str | None, options: Mapping[str, str]
) -> Page:
    """Ask by what a request was refused; ``options`` are those to choose from."""
    if symptom is None:
        return quiet(
            case, "access_log", "No request is refused.", "No log line has such an answer."
        )
    words = next((_FLAGS[flag] for flag in symptom.flags if flag in _FLAGS), symptom.details)
    right, meaning = next(
        ((name, told) for beginning, name, told in _WORDS if words.startswith(beginning)),
        ("application", "the log gives no reason that is known here"),
    )
    if right not in options:
        right = next(iter(options))
    answer = Page(
        f"It was refused by {options[right]}.",
        State.BROKEN,
        f"{said(symptom)} means that {meaning}. {what_it_says(symptom)}",
        (latest_lines(case, symptom),)
        if symptom.table == "access_log"
        else (symptom_rows(case, symptom),),
        command=symptom_command(symptom),
    )
    return first_ask(
        picked,
        f"The log says {said(symptom)}. What refused it?",
        options,
        right,
        answer,
        "Think first: the words in the log line say it.",
    )
