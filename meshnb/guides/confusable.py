"""What looks alike at first sight, by guide: each branch with the evidence that decides.

The first sign, such as a 503, has many reasons. The flag and the details in the log leave some of
them; what the checks look at leaves one.
"""

from __future__ import annotations

from collections.abc import Mapping

from meshnb.guides.branches import Branch, branch

_NO_CONFIGURATION = branch(
    "The proxy never got its configuration, or keeps an old one",
    "readiness of the proxy, its connection to istiod, what it refused",
    "101 102 601 602 603 604 610 611 612 613 614 615 616 617",
)
_JUST_CHANGED = branch(
    "Something was changed or rolled out right before",
    "when each object and ReplicaSet changed, against the first failure",
    "250 251",
)
_OTHER_IDENTITY = branch(
    "Certificates, roots or names do not fit together",
    "the certificates of both ends: root, dates, names",
    "262 450 451 452 453 454 455 605 926",
    "UF",
)
_NETWORK = branch(
    "The network between the pods lets nothing through",
    "NetworkPolicies, 15008 for ambient pods, networks with no gateway between them",
    "260 261 263 714 907 925",
    "UF upstream_reset_before_response_started{connection_timeout} connection",
)
_HIDDEN = branch(
    "The caller's proxy is not told about the host",
    "Sidecar egress, exportTo, outbound policy",
    "231 232 236 640 724",
    "direct_response NR BlackHole UH",
)
_EXTERNAL_ENDPOINTS = branch(
    "A ServiceEntry leads nowhere", "its endpoints, and their DNS", "234 239", "UH UF DF"
)

#: What can be behind what people see, by the name of the guide.
CONFUSABLE: Mapping[str, tuple[Branch, ...]] = {
    "unavailable": (
        branch(
            "A route leads to a subset that nobody defined",
            "clusters of the caller's proxy, subsets of DestinationRules",
            "210",
            "NC",
        ),
        branch(
            "A route leads to a host or port that does not exist",
            "hosts of routes against Services and ServiceEntries",
            "201 202",
            "NC",
        ),
        branch(
            "The controller refused a route of the Gateway API",
            "status conditions of the route",
            "351 352 353 354",
            "NC NR",
        ),
        branch(
            "The Service selects no pod, or names a port that they do not have",
            "selector and port names against labels and ports of pods",
            "701 832",
            "UH",
        ),
        branch(
            "The labels of a subset select no pod", "labels of subsets against pods", "211", "UH"
        ),
        branch("The pods are not ready", "readiness of the pods behind it", "702", "UH UF UC"),
        branch(
            "Outlier detection or a limit took the endpoints out",
            "health flags of endpoints, circuit breakers of the cluster",
            "851 852",
            "UH UO",
        ),
        _EXTERNAL_ENDPOINTS,
        branch(
            "The application does not listen where the Service sends",
            "connection refused inside the pod, ports of its containers",
            "710 902",
            "UF",
        ),
        _NETWORK,
        branch(
            "One end speaks TLS and the other one does not",
            "the client's cluster against the server's filter chains",
            "401 402 403 432 440 441 442 443 445 235 770 771",
            "UC UF UR",
        ),
        _OTHER_IDENTITY,
        branch(
            "The application ends connections before it answers",
            "who closed, restarts, idle time-outs of the application",
            "711 830 833",
            "UC UR",
        ),
        branch(
            "Proxy and application speak different protocols",
            "the port's declared protocol against what is spoken",
            "721 801 804 806 808",
            "UPE",
        ),
        _HIDDEN,
        branch("A fault was injected on purpose", "fault of routes", "230", "FI"),
        branch(
            "The application itself answers so",
            "via_upstream in the server's own log",
            "712 720 835",
            "via_upstream",
        ),
        branch("An external authorizer fails", "its answers, UAEX", "530 531", "UAEX ext_authz"),
        _NO_CONFIGURATION,
        _JUST_CHANGED,
    ),
    "not_found": (
        branch(
            "No VirtualService is bound to this gateway",
            "gateways of VirtualServices against Gateways",
            "302 320 329",
            "NR",
        ),
        branch(
            "Gateway and VirtualService have no host in common",
            "hosts of both against the authority in the log",
            "303 321",
            "NR",
        ),
        branch(
            "The Gateway's selector chooses other pods, or none",
            "listeners of the gateway's pods",
            "301",
            "NR",
        ),
        branch(
            "A connection opened for one host is used for another",
            "SNI against authority",
            "324",
            "NR",
        ),
        branch(
            "Two servers or routes compete, or are of the wrong kind",
            "ports and protocols of servers, order of routes",
            "224 325 326 356",
            "NR",
        ),
        branch(
            "The route of the Gateway API is not attached",
            "parentRefs, status conditions, rules",
            "351 352 353 354 355",
            "NR",
        ),
        branch("An Ingress is not served", "its class, the settings of istiod", "328", "NR"),
        branch("No route of the host matches", "matches of routes against path", "233", "NR"),
        branch(
            "The object is stored and no istiod reads it",
            "definitions, discovery selectors, revisions",
            "131 132",
            "NR",
        ),
        _HIDDEN,
        branch(
            "The application itself answers so", "via_upstream in the log", "712", "via_upstream"
        ),
        _NO_CONFIGURATION,
        _JUST_CHANGED,
    ),
    "forbidden": (
        branch(
            "A DENY policy matches the callers",
            "the policy and rule named in the details",
            "501",
            "rbac_access_denied_matched_policy[ns",
        ),
        branch(
            "ALLOW policies exist, and no rule of them matches",
            "rules in the proxy against the caller's identity",
            "502 722",
            "rbac_access_denied_matched_policy[none]",
        ),
        branch(
            "The caller shows no identity, or one of another trust domain",
            "the peer's name in the certificate, plain text",
            "450 503 551 904",
            "rbac_access_denied",
        ),
        branch(
            "A Wasm module is missing, and its filter denies all",
            "filters from ECDS, log of the proxy",
            "550",
            "rbac_access_denied_matched_policy[none] wasm",
        ),
        branch(
            "An EnvoyFilter brings rules of its own",
            "rules in the proxy that no policy made",
            "553",
            "rbac_access_denied",
        ),
        branch(
            "Another server decides, and says no",
            "CUSTOM policies, extensionProviders, UAEX",
            "530 531 532",
            "UAEX ext_authz rbac_access_denied",
        ),
        branch(
            "A policy of ztunnel refuses the connection",
            "policies that ztunnel holds, its log",
            "901 905 906",
            "connection",
        ),
        branch(
            "A rate limit is used up", "rate limits in filters, flag RL", "850", "RL local_rate"
        ),
        branch(
            "The application itself answers so", "via_upstream in the log", "712", "via_upstream"
        ),
        _JUST_CHANGED,
    ),
    "unauthorized": (
        branch(
            "The token is missing, over, or of somebody unknown",
            "the reason in the details, issuers of RequestAuthentications",
            "510",
            "jwt_authn_access_denied",
        ),
        branch(
            "istiod could not fetch the keys of the issuer",
            "log of istiod, keys in the proxy",
            "511",
            "jwt_authn_access_denied",
        ),
        branch("A gateway routes by claims that it does not verify", "its policies", "513", "NR"),
        branch(
            "Another server decides, and says no",
            "CUSTOM policies, extensionProviders, UAEX",
            "530 531 532",
            "UAEX ext_authz",
        ),
        branch(
            "The application itself answers so", "via_upstream in the log", "712", "via_upstream"
        ),
        _JUST_CHANGED,
    ),
    "connection": (
        branch(
            "The server demands mutual TLS, and the caller has no proxy",
            "PeerAuthentication of the server, injection of the caller",
            "403 904",
            "NR filter_chain_not_found",
        ),
        branch(
            "Settings turn mutual TLS off at one end only",
            "DestinationRule against PeerAuthentication, transport of the client's cluster",
            "401 432 440 441 442 443 770 771",
            "NR filter_chain_not_found UC UR UF connection_termination",
        ),
        branch(
            "One end begins TLS where the other expects plain text, or TLS twice",
            "the port's protocol, TLS mode of DestinationRules",
            "235 323 402 404 444 445",
            "NR filter_chain_not_found DPE http1. UR UF",
        ),
        branch(
            "The gateway opens no listener for the port",
            "listeners of the gateway's pods, ports of its Service",
            "301 305 306 307 327 354",
            "NR",
            silent=True,
        ),
        branch(
            "The gateway has no certificate to show",
            "Secrets named by the Gateway, in its pods' namespace",
            "304 352",
            "NR filter_chain_not_found",
        ),
        branch(
            "No server of the gateway is for the name that clients ask for",
            "SNI in the log against hosts of servers",
            "322 325",
            "NR filter_chain_not_found",
        ),
        _OTHER_IDENTITY,
        branch(
            "A policy refuses the connection",
            "policies for the server, in its proxy or in ztunnel",
            "501 502 503 901 905 906",
            "rbac_access_denied connection",
        ),
        branch(
            "The application does not listen, or ends connections",
            "who closed; connection refused at the server",
            "710 711 830 902",
            "UF UC connection",
        ),
        _NETWORK,
        branch(
            "The caller or the port speaks another protocol",
            "protocols of ports against the first bytes",
            "270 723 803 805 807 808",
            "DPE http1. DC",
        ),
        branch(
            "A probe or a scraper comes without mutual TLS",
            "address of the caller, ports of probes",
            "755 757 772",
            "NR filter_chain_not_found",
        ),
        branch("An EnvoyFilter broke a listener", "filter chains, refusals", "601 621", "NR"),
        _HIDDEN,
        _JUST_CHANGED,
    ),
    "slow": (
        branch(
            "The application takes longer than the route allows",
            "duration at the server against the time-out of the route",
            "713",
            "UT response_timeout max_duration SI UMSDR",
        ),
        branch(
            "Callers lose patience before the answer",
            "DC with the time that it took",
            "834",
            "DC DR downstream",
        ),
        branch("A delay is injected on purpose", "fault of routes", "230", "DI"),
        branch(
            "Requests wait for a connection, or for healthy endpoints",
            "limits of the cluster, outlier detection",
            "851 852",
            "UO UH UT",
        ),
        branch(
            "The sidecar has too little memory or time",
            "restarts and limits of istio-proxy, size of its configuration",
            "756",
        ),
        _NETWORK,
        _JUST_CHANGED,
    ),
    "hangs": (
        branch(
            "The server speaks first, and the port does not say so",
            "declared protocol of the port, bytes in the log",
            "802 820",
        ),
        branch(
            "HTTP is treated as bytes, or bytes as HTTP",
            "declared protocol against what is spoken",
            "270 807 808",
        ),
        branch(
            "One host without addresses takes all connections to a port",
            "listeners of the port, addresses of ServiceEntries",
            "237",
        ),
        _NETWORK,
        branch(
            "The application answers late or never",
            "duration and DC at the server",
            "713 834",
            "UT DC SI",
        ),
        branch(
            "A container waits for its proxy, or a job for its sidecar to end",
            "order of containers, state of the job",
            "750 754",
        ),
    ),
    "not_injected": (
        branch(
            "The pod or its template opts out",
            "label and annotation sidecar.istio.io/inject of the pod",
            "151",
        ),
        branch(
            "No webhook serves the revision that is asked for",
            "labels of the namespace against revisions and tags of webhooks",
            "150",
        ),
        branch("The namespace does not ask any more", "labels of the namespace", "154"),
        branch(
            "The namespace asks twice", "labels of the namespace, selectors of webhooks", "155 156"
        ),
        branch(
            "The pod was made before injection worked",
            "creation of the pod against label and webhook",
            "152",
        ),
        branch(
            "The injector itself leaves the pod out",
            "ConfigMap istio-sidecar-injector, hostNetwork",
            "157",
        ),
        branch(
            "The webhook could not be called, and the pod was made all the same",
            "Service, endpoints and failurePolicy of the webhook",
            "101 153 170 171",
        ),
        branch("Ztunnel does not take the pod in", "enrolment, ztunnel's workloads", "920"),
    ),
    "not_ready": (
        branch(
            "The injection webhook cannot be called, so no pod is made",
            "events FailedCreate, pods of istiod, CA bundle of the webhook",
            "101 153 170 171 172",
        ),
        branch(
            "Kubernetes refuses the pod", "text of the event: quota, policy, limits", "173 174 175"
        ),
        branch(
            "istio-init or the CNI plugin fails",
            "state and log of istio-init, events FailedCreatePodSandBox",
            "751 752 753",
        ),
        branch(
            "The proxy is not ready: it has no configuration",
            "its readiness message, where it looks for istiod, its log",
            "452 601 602 604 605 610 611 612 613 614 615 616 617",
        ),
        branch(
            "A probe cannot get through to the application",
            "rewritten probes, ports left out, mutual TLS",
            "755 757",
        ),
        branch(
            "A container starts before its proxy, or takes its port or user",
            "order of containers, ports, runAsUser",
            "754 770 831",
        ),
        branch("The sidecar has too little memory", "OOMKilled of istio-proxy", "756"),
        branch(
            "The application itself does not start, or its probe fails",
            "state, exit code and probe of its container",
            "702",
        ),
        branch("A job waits for its sidecar", "containers that have ended", "750"),
        branch("A gateway waits for its load balancer", "status of its Service", "306 307"),
    ),
    "change": (
        branch(
            "No istiod is there to take it, or it does not keep up",
            "pods, ports and certificate of istiod, its memory and queue",
            "101 102 103 104 105 134",
        ),
        branch(
            "No istiod reads the object, or its settings",
            "definitions, revisions, discovery selectors, /debug/configz",
            "130 131 132 133 137",
        ),
        branch("Proxies refuse what istiod sends", "ERROR in syncz, with Envoy's words", "601 614"),
        branch(
            "A proxy is out of step with istiod",
            "connections and acknowledgements",
            "602 603 604 610 611 612 613 615 616 617 680 681",
        ),
        branch("An earlier route takes the requests", "order of routes", "220 224"),
        branch(
            "Another object for the same host counts",
            "age of VirtualServices, DestinationRules and entries",
            "221 223 225 238 356",
        ),
        branch(
            "It is for a name or a place that nobody calls",
            "hosts, gateways and subsets of the object",
            "203 212 222 282",
        ),
        branch("exportTo or a Sidecar hides it", "scope of the caller's proxy", "231 640"),
        branch(
            "A waypoint would have to enforce it",
            "labels for waypoints, Gateways, what ztunnel knows",
            "903 930 931 933",
        ),
        branch(
            "EnvoyFilter or Telemetry changes nothing",
            "filters of the listeners, providers",
            "620 622 623",
        ),
        branch("Load is shared otherwise than was meant", "localities, detection", "280 281 283"),
    ),
    "policy": (
        branch(
            "It selects nobody, or another one counts",
            "selector and namespace against labels of pods",
            "430 431 505",
        ),
        branch(
            "Its rules say less than was meant",
            "rules: joined by or, paths, names of nobody",
            "506 508 509",
        ),
        branch("It is only tried", "annotation istio.io/dry-run", "507"),
        branch("Tokens are verified and not demanded", "policies beside it", "512 513"),
        branch("The proxy does not hold it", "rules in the proxy, refusals", "552 601 602 603"),
        branch(
            "It needs a waypoint, and there is none on the way",
            "labels for waypoints, Gateways, what ztunnel knows",
            "357 903 930 931 932",
        ),
        branch("ztunnel leaves out what only HTTP has", "rules as ztunnel has them", "905 906"),
        branch("It names a provider that is not there", "extensionProviders", "530"),
        branch(
            "The traffic goes past the proxy",
            "ports left out, capture, user of the application",
            "442 770 771 920",
        ),
        branch("No istiod reads it", "definitions, discovery selectors", "131 132"),
    ),
    "external": (
        branch(
            "The host is not registered, and only registered ones are allowed",
            "outboundTrafficPolicy, ServiceEntries, BlackHoleCluster",
            "232",
            "direct_response UH NR BlackHole",
        ),
        branch(
            "Its port is not registered, or another host takes it",
            "ports of ServiceEntries, listeners of the port",
            "236 237 238 240",
        ),
        _EXTERNAL_ENDPOINTS,
        branch(
            "TLS is begun twice, not at all, or with the wrong certificate",
            "DestinationRule, protocol of the port, TLS error in the log",
            "235 444 445 455",
            "UF UC UR",
        ),
        branch("Its name is hidden from the caller", "Sidecar egress, exportTo", "231 640"),
        branch("The host itself ends connections", "UC, UR and durations", "830", "UC UR"),
        _NETWORK,
    ),
}
