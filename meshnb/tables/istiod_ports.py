"""The table ``istiod_ports``: which of istiod's doors are open, and with which certificate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from meshnb.errors import NotRecorded
from meshnb.sources.base import Answer, HttpQuestion, ProbeQuestion, Question
from meshnb.tables.base import Column, Facts, Row, Table
from meshnb.tables.x509 import chain_keys, read_chain

ISTIOD_PORTS = Table(
    name="istiod_ports",
    grain="one row per istiod pod and port",
    columns={
        "istiod": Column("string", "the istiod pod", key=True),
        "namespace": Column("string", "its namespace", key=True),
        "port": Column("Int64", "the port", key=True),
        "serves": Column("string", "what it is for"),
        "protocol": Column("string", "what istiod speaks there"),
        "answers": Column("boolean", "whether it answered; NA when it was never asked"),
        "how": Column("string", "how it answered, or the error"),
        "error": Column("string", "why it did not answer"),
        "elapsed_ms": Column("Float64", "how long the answer took, in milliseconds", passing=True),
        "tls_version": Column("string", "version of TLS, such as TLSv1.3"),
        "alpn": Column("string", "protocol agreed on within TLS, such as h2"),
        "subject": Column("string", "subject of the certificate that it showed"),
        "sans": Column("object", "tuple: subject alternative names of the certificate"),
        "issuer": Column("string", "issuer of the certificate"),
        "chain_keys": Column("object", "tuple: the keys by any of which its chain can be trusted"),
        "not_before": Column("datetime64[us, UTC]", "when the certificate begins"),
        "not_after": Column("datetime64[us, UTC]", "when the certificate ends"),
        "expires_in_days": Column(
            "Float64",
            "days from the answer to the certificate's end; negative when over",
            passing=True,
        ),
    },
)


@dataclass(frozen=True, slots=True)
class _Port:
    """A port of istiod (https://istio.io/latest/docs/ops/deployment/application-requirements/)."""

    serves: str
    protocol: str
    #: page that says more than a bare connection
    page: str = ""


_PORTS: Mapping[int, _Port] = {
    8080: _Port("readiness and debug pages", "HTTP", "/ready"),
    15010: _Port("xDS for proxies that use no TLS", "gRPC"),
    15012: _Port("xDS and certificate signing for proxies", "gRPC over TLS"),
    15014: _Port("metrics, version and debug pages", "HTTP", "/version"),
    15017: _Port("webhooks: injection and validation", "HTTPS"),
    9876: _Port("ControlZ, on the pod's loopback only", "HTTP"),
}
#: Ports that only an istiod has; a pod with a recorded probe of one is an istiod.
_ONLY_ISTIOD = (15010, 15012, 15017)


def istiod_pods(facts: Facts) -> Mapping[tuple[str, str], Question]:
    """Return namespace and name of each istiod pod, with the question that says so.

    Those are the pods that Kubernetes lists as istiod, and any pod that was asked for a port that
    only istiod has.
    """
    found: dict[tuple[str, str], Question] = {}
    pods = facts["pods"]
    listed = pods[pods["mesh"] == "istiod"]
    for namespace, pod, title in zip(
        listed["namespace"], listed["pod"], listed["question"], strict=True
    ):
        found[str(namespace), str(pod)] = facts.question(str(title))
    for question in facts.source.questions():
        if isinstance(question, ProbeQuestion) and question.port in _ONLY_ISTIOD:
            found.setdefault((question.namespace, question.pod), question)
    return found


@ISTIOD_PORTS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    pods = istiod_pods(facts)
    probes: dict[tuple[str, str, int], Question] = {}
    pages: dict[tuple[str, str, int], Question] = {}
    for question in facts.source.questions():
        if isinstance(question, ProbeQuestion):
            probes[question.namespace, question.pod, question.port] = question
        elif (
            isinstance(question, HttpQuestion)
            and question.port in _PORTS
            and question.path == _PORTS[question.port].page
        ):
            pages[question.namespace, question.pod, question.port] = question
    for (namespace, pod), said_by in pods.items():
        for number, port in _PORTS.items():
            row: Row = {
                "istiod": pod,
                "namespace": namespace,
                "port": number,
                "serves": port.serves,
                "protocol": port.protocol,
                "sans": (),
                "chain_keys": (),
            }
            place = (namespace, pod, number)
            asked = [by[place] for by in (probes, pages) if place in by]
            answers = [
                answer for answer in (_answer(facts, q) for q in asked) if answer is not None
            ]
            if not asked:
                facts.gap(f"PROBE {namespace}/{pod}:{number}", "not asked", "was never asked")
            for answer in answers:
                row.update(_read(facts, answer))
            yield (answers[-1].question if answers else said_by), row


def _answer(facts: Facts, question: Question) -> Answer | None:
    try:
        answer = facts.answer(question)
    except NotRecorded:
        return None
    if answer.undelivered or (answer.refused and not isinstance(question, HttpQuestion)):
        state = "refused" if answer.refused else "silent"
        facts.gap(question, state, answer.error or f"refused with {answer.status}")
        return None
    return answer


def _read(facts: Facts, answer: Answer) -> Row:
    if answer.error is not None and not answer.status:
        return {
            "answers": False,
            "how": answer.error,
            "error": answer.error,
            "elapsed_ms": answer.elapsed_ms,
        }
    row: Row = {"answers": True, "elapsed_ms": answer.elapsed_ms}
    if isinstance(answer.question, HttpQuestion):
        failed = answer.status is not None and answer.status >= 400
        said = answer.content.decode("utf-8", "replace").strip() or answer.error
        row["how"] = f"HTTP {answer.status}" + (f": {said}" if failed and said else "")
        return row
    if not isinstance(answer.question, ProbeQuestion):
        return row
    match answer.question.protocol:
        case "tls":
            version, alpn = answer.detail.get("tls_version"), answer.detail.get("alpn")
            row |= {"tls_version": version, "alpn": alpn}
            row["how"] = ", ".join(str(part) for part in (version, alpn) if part) or "TLS"
            row |= _certificate(facts, answer)
        case "h2c":
            row["how"] = "HTTP/2 without TLS"
        case _:
            row["how"] = "accepts connections"
    return row


def _certificate(facts: Facts, answer: Answer) -> Row:
    try:
        chain = read_chain(answer.content)
    except ValueError as error:
        facts.gap(answer.question, "unreadable", f"has a chain that cannot be used: {error}")
        return {}
    certificate = chain[0]
    left = certificate.not_after - answer.taken_at
    return {
        "subject": certificate.subject,
        "sans": certificate.sans,
        "issuer": certificate.issuer,
        "chain_keys": chain_keys(chain),
        "not_before": certificate.not_before,
        "not_after": certificate.not_after,
        "expires_in_days": left.total_seconds() / 86_400,
    }
