"""What a credential looks like in text: in a log line, an argument, an annotation, a page.

Patterns only, without knowledge of Kubernetes or Envoy. A text keeps its shape: quotes, names and
everything around the credential stay, so that a line of JSON or YAML remains one.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

#: What stands in the place of something that was taken out.
MARK = "REDACTED"
#: The mark as this package, other recorders and Envoy itself write it.
MARKED = re.compile(
    r"REDACTED(?::sha256:[0-9a-f]{16}:[0-9]+B)?|REDACTED PRIVATE KEY|\[redacted\]|W3JlZGFjdGVkXQ=="
)
_KEY_MARK = "REDACTED PRIVATE KEY"

HEADERS, TOKENS, CREDENTIALS, KEYS = (
    "authorization headers and cookies",
    "tokens",
    "passwords and other credentials",
    "private keys",
)

#: Headers whose whole value is a credential.
_HEADER = (
    r"(?:proxy-)?authorization|(?:set-)?cookie2?|(?:[a-z0-9]+-)*(?:api-?key|token|jwt-assertion|"
    r"session(?:-id)?|secret|password)"
)
_HEADER_NAME = re.compile(rf"(?:{_HEADER})", re.IGNORECASE)
#: Names whose value is a credential wherever they stand.
_STRONG = (
    r"password|passwd|passphrase|api[_-]?key|(?:client|shared|hmac|token|jwt|session|app)[_-]?"
    r"secret|(?:secret|access|private|signing|encryption|shared|account)[_-]?key|secret[_-]?access"
    r"[_-]?key|(?:access|refresh|id|bearer|auth|session|security|api)[_-]?token|connection[_-]?"
    r"string"
)
_STRONG_NAME = re.compile(rf"(?:.*[_.\-/]|.*(?<=[a-z])(?=[A-Z]))?(?i:{_STRONG})s?")
#: Names that are credentials where an assignment says so: ``token=…``, ``--secret=…``.
_WEAK = (
    r"token|secret|pwd|credentials?|session(?:[_-]?id)?|sess[_-]?id|\bsid|csrf|xsrf|signature|\bsig|"
    r"(?<![a-z])pass(?![a-z])"
)
#: Endings that make of such a name the name of something else.
_ELSEWHERE = re.compile(
    r"[\w.-]*(?:file|path|dir|directory|name|names|audience|audiences|url|uri|ttl|type|policy|"
    r"lifetime|expiry|expiration|duration|issuer|namespace|ref|id|version|algorithm|enabled|count|"
    r"timeout|interval|period|location|endpoint|size|hash|length|nodes?_?accounts)",
    re.IGNORECASE,
)
_SESSION = re.compile(r"(?:session|sess)[_-]?id|sid", re.IGNORECASE)
#: Values that are no credential whatever their name is.
_HARMLESS = re.compile(
    r"|true|false|null|nil|none|yes|no|-|\*+|REDACTED.*|\[redacted\]|W3JlZGFjdGVkXQ==|"
    r"\{\{.*\}\}|\$\(\w+\)|\$\{[\w.]+\}|\$[A-Za-z_]\w*|%[A-Z_]+(?:\(.*\))?%|<[\w .-]*>|"
    r"\.{0,2}/(?:etc|var|run|tmp|usr|opt|home|mnt|secrets?|certs?|app|data|config|srv|root)"
    r"(?:/[\w. -]*)*|(?:file|https?|kubernetes|kubernetes-gateway|spiffe|unix)://[^@?]*",
    re.IGNORECASE | re.DOTALL,
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:ns|us|ms|s|m|h|d)?")
_SCHEMES = re.compile(r"\s*(?:bearer|basic|digest|negotiate|token)?\s*", re.IGNORECASE)

_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?"
    r"(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
_PUTTY = re.compile(r"Private-Lines:.*?(?=Private-MAC|\Z)", re.DOTALL)
#: Long runs of base64, over several lines where it is wrapped.
_BASE64_RUN = re.compile(
    r"[A-Za-z0-9+/_-]{24,}+={0,2}"
    r"(?:\r?\n[ \t]*+[A-Za-z0-9+/_-]++={0,2}(?=[ \t]*(?:[\r\n\"\\]|\Z)))*+"
)
#: "-----BEGIN" in base64, at each of the three offsets.
_BASE64_PEM = ("LS1CRUdJT", "tLUJFR0lO", "tQkVHSU")
#: The beginning of DER that holds a private key (RFC 5958, RFC 8017, RFC 5915), in base64.
_BASE64_DER = re.compile(
    r"(?<![A-Za-z0-9+/_-])(?:MII[\w+/-]{2}[AQgw]IBA|MIG[\w+/-]AgEA|MH[a-z]CAQE|M[CDEF][0-9A-Za-z]C"
    r"AQAw|/u3\+7QAAAA)[A-Za-z0-9+/_-]{20,}={0,2}"
)
_JWT = re.compile(r"(?<![A-Za-z0-9_])eyJ[A-Za-z0-9_+/=-]{16,}(?:\.[A-Za-z0-9_+/=-]*){0,4}")
_SHAPES = re.compile(
    r"\b(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[abeoprs]-[\w-]{8,}|"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}|[rs]k_(?:live|test)_\w{8,}|AIza[\w-]{30,}|hv[sbr]\.[\w-]{16,}|"
    r"npm_\w{20,}|dckr_pat_[\w-]{16,}|ya29\.[\w-]{16,}|SG\.[\w-]{16,}\.[\w-]{16,})"
)
_BEARER = re.compile(r"\b(bearer|negotiate)(\s+|%20)([A-Za-z0-9._~+/=-]{4,})", re.IGNORECASE)
_BASIC = re.compile(r"\b(basic)(\s+|%20)([A-Za-z0-9+/_-]{4,}={0,2})", re.IGNORECASE)
#: A value: quoted, also where the quotes are escaped, or up to what ends a bare one.
_QUOTED = r"(?P<quote>\\*[\"'])(?P<quoted>(?:(?!(?P=quote)).)*?)(?:(?P=quote)|(?=\n)|\Z)|(?P<bare>"
_BARE_LINE = r"[^\"'\n\[{(|]+)"
_BARE_WORD = r"[^\s\"',;&|)}]+)"
_HEADER_LINE = re.compile(
    r"(?P<name>\b(?:proxy-)?authorization|\b(?:set-)?cookie|\bx-(?:[a-z]{1,30}-){0,4}(?:api-?key|token|"
    r"secret|jwt-assertion))(?P<between>\\*[\"']?\s*(?:[:=]\s*|,\s*(?=\\*[\"'])))(?:"
    + _QUOTED
    + _BARE_LINE
    + ")",
    re.IGNORECASE,
)
_STRONG_LINE = re.compile(
    rf"(?P<name>(?:{_STRONG})[\w.]{{0,64}}+)(?P<between>\\*[\"']?\s*[:=]\s*)(?:"
    + _QUOTED
    + _BARE_WORD
    + ")",
    re.IGNORECASE,
)
_WEAK_LINE = re.compile(
    rf"(?P<name>(?:{_WEAK})[\w.-]{{0,64}}+)"
    r"(?P<between>=|\\*[\"']?\s*[:=]\s*(?=\\*[\"']))(?:" + _QUOTED + _BARE_WORD + ")",
    re.IGNORECASE,
)
#: An option with its value after a blank, as in a script.
_OPTION = re.compile(
    rf"(?P<name>(?<![\w-])--?[\w-]{{0,60}}?(?:{_STRONG}|token|secret|credentials?)[\w-]{{0,64}}+)(?P<between>\s+)"
    r"(?![-|&;])(?:" + _QUOTED + _BARE_WORD + ")",
    re.IGNORECASE,
)
_USER = re.compile(r"(?P<lead>(?<!\S)(?:-u|--user|--proxy-user)[ =][\"']?[^\s:\"']+:)[^\s\"']+")
#: In YAML; what is no word and no name.
_YAML_TOKEN = re.compile(
    r"(?P<lead>(?:^|[\s_-])(?:token|pwd|credentials?):[ \t]+)"
    r"(?=[A-Za-z_./+=-]*\d)(?!/)[A-Za-z0-9_./+=-]{16,}",
    re.IGNORECASE | re.MULTILINE,
)
_ELEMENT = re.compile(
    rf"(?P<lead><(?:[\w.-]{{0,40}})(?:{_STRONG}|secret|token)>)[^<]+(?=</)", re.IGNORECASE
)
#: As .netrc has it.
_LOGIN = re.compile(r"(?P<lead>\blogin\s+\S+\s+password\s+)\S+", re.IGNORECASE)
_QUERY = re.compile(r"(?P<lead>[?&](?:key|code|auth|sid|sig)=)[^\s&\"'\\]+", re.IGNORECASE)
_URL = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@\"'?#\\<>]+@")


@dataclass(frozen=True, slots=True)
class _Rule:
    """One pattern. ``words`` are in lower case; a text with none of them cannot match."""

    words: tuple[str, ...]
    pattern: re.Pattern[str]
    replace: Callable[[re.Match[str]], str]
    what: str
    #: whether what it takes out may stand on several lines
    lines: bool = False


#: What follows "bearer" and "basic" in a sentence about them.
_SENTENCE = re.compile(
    r"tokens?|auth|authentication|authorization|credentials?|schemes?|realm|headers?|errors?|is|was|"
    r"not|missing|must|invalid|settings?|usage|checks?|info|mode|example",
    re.IGNORECASE,
)


def _bearer(match: re.Match[str]) -> str:
    if MARKED.fullmatch(match[3]) or _SENTENCE.fullmatch(match[3].rstrip(".,")):
        return match[0]
    return f"{match[1]}{match[2]}{MARK}"


def _basic(match: re.Match[str]) -> str:
    if (
        MARKED.fullmatch(match[3])
        or _SENTENCE.fullmatch(match[3].rstrip(".,"))
        or b":" not in (_decoded(match[3]) or b"")
    ):
        return match[0]
    return f"{match[1]}{match[2]}{MARK}"


def _decoded(text: str) -> bytes | None:
    """Return what base64 of any alphabet holds, or nothing."""
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4))
    except (binascii.Error, ValueError):
        return None


def _base64_pem(match: re.Match[str]) -> str:
    if not any(begin in match[0] for begin in _BASE64_PEM):
        wrapped = "".join(match[0].split())
        if not any(begin in wrapped for begin in _BASE64_PEM):
            return match[0]
    plain = "".join(match[0].split())
    for skipped in range(4):
        part = plain[skipped:]
        if b"PRIVATE KEY" in (_decoded(part[: len(part) // 4 * 4]) or b""):
            return _KEY_MARK
    return match[0]


def _value(match: re.Match[str]) -> str:
    """Replace the value of a name, and keep its quotes."""
    quote = match["quote"] or ""
    value = match["quoted"] if quote else match["bare"]
    if _HARMLESS.fullmatch(value.strip()) or (not quote and _NUMBER.fullmatch(value)):
        return match[0]
    closed = quote if quote and match[0].endswith(quote) else ""
    return f"{match['name']}{match['between']}{quote}{MARK}{closed}"


def _named(match: re.Match[str]) -> str:
    """Replace the value of a name, unless the name is that of a file, an audience, or so."""
    name = match["name"]
    if _ELSEWHERE.fullmatch(name) and not _SESSION.fullmatch(name):
        return match[0]
    return _value(match)


def _header(match: re.Match[str]) -> str:
    """Replace the value of a header; a format operator, and a scheme alone, are none."""
    quoted = match["quote"] is not None
    value = (match["quoted"] if quoted else match["bare"]).strip()
    if _SCHEMES.fullmatch(value) or "%REQ(" in value or is_header(value):
        return match[0]
    first = value.split(" ", 1)[0].rstrip(",.")
    sentence = not quoted and " " in value and first.islower() and first.isalpha()
    if sentence and not _SCHEMES.fullmatch(first):
        return match[0]  # "authorization: no policy matched"
    return _value(match)


def _lead(match: re.Match[str]) -> str:
    return f"{match['lead']}{MARK}"


def _url(match: re.Match[str]) -> str:
    return f"{match['scheme']}{MARK}@"


_RULES = (
    _Rule(("private key",), _PEM, lambda _: _KEY_MARK, KEYS, lines=True),
    _Rule(("private-lines:",), _PUTTY, lambda _: f"{_KEY_MARK}\n", KEYS, lines=True),
    _Rule(("ls1crudjt", "tlujfr0lo", "tqkvhsu"), _BASE64_RUN, _base64_pem, KEYS, lines=True),
    _Rule(("iba", "agea", "caqe", "caqaw", "/u3+7q"), _BASE64_DER, lambda _: _KEY_MARK, KEYS),
    _Rule(("authorization", "cookie", "x-"), _HEADER_LINE, _header, HEADERS),
    _Rule(("bearer", "negotiate"), _BEARER, _bearer, HEADERS),
    _Rule(("basic",), _BASIC, _basic, HEADERS),
    _Rule(("eyj",), _JWT, lambda _: MARK, TOKENS),
    _Rule(
        (
            *("gh", "glpat-", "xox", "akia", "asia", "k_live_", "k_test_", "aiza", "hvs.", "hvb."),
            *("hvr.", "npm_", "dckr_pat_", "ya29.", "sg."),
        ),
        _SHAPES,
        lambda _: MARK,
        TOKENS,
    ),
    _Rule(
        ("password", "passwd", "passphrase", "secret", "key", "token", "string"),
        _STRONG_LINE,
        _named,
        CREDENTIALS,
    ),
    _Rule(
        ("token", "secret", "pwd", "pass", "credential", "sess", "sid", "csrf", "xsrf", "sig"),
        _WEAK_LINE,
        _named,
        CREDENTIALS,
    ),
    _Rule(
        ("password", "passwd", "passphrase", "secret", "key", "token", "credential", "string"),
        _OPTION,
        _named,
        CREDENTIALS,
    ),
    _Rule(("</",), _ELEMENT, _lead, CREDENTIALS),
    _Rule(("login",), _LOGIN, _lead, CREDENTIALS),
    _Rule(("-u", "--user", "--proxy-user"), _USER, _lead, CREDENTIALS),
    _Rule(("token:", "pwd:", "credential"), _YAML_TOKEN, _lead, CREDENTIALS),
    _Rule(("key=", "code=", "auth=", "sid=", "sig="), _QUERY, _lead, TOKENS),
    _Rule(("://",), _URL, _url, CREDENTIALS),
)
#: A text with none of these words, in lower case, holds nothing that a rule would take out.
WORDS = tuple(sorted({word for rule in _RULES for word in rule.words}))
_ANY = re.compile("|".join(map(re.escape, WORDS)))
#: Short texts come again and again; so many of those without a credential are remembered.
_REMEMBERED, _SHORT = 1 << 16, 256
#: In a text that is longer, only the lines that may hold something are looked at.
_LONG = 1 << 14


class Credentials:
    """Takes credentials out of texts, and counts them."""

    def __init__(self, keep: Iterable[str] = ()) -> None:
        """``keep`` names what is not taken out; private keys always are."""
        kept = frozenset(keep) - {KEYS}
        self.counts: dict[str, int] = {}
        self._rules = tuple(rule for rule in _RULES if rule.what not in kept)
        self._clean: set[str] = set()

    def count(self, what: str, number: int = 1) -> None:
        """Count something that was taken out."""
        self.counts[what] = self.counts.get(what, 0) + number

    def without(self, text: str) -> str:
        """Return a text without the credentials in it."""
        if text in self._clean:
            return text
        lower, cleaned = text.lower(), text
        if _ANY.search(lower):
            for rule in self._rules:
                if any(word in lower for word in rule.words):
                    if len(text) < _LONG or rule.lines:
                        cleaned = self._applied(rule, cleaned)
                    else:
                        cleaned = self._applied_to_lines(rule, cleaned)
        if cleaned == text and len(text) < _SHORT:
            if len(self._clean) >= _REMEMBERED:
                self._clean.clear()
            self._clean.add(text)
        return cleaned

    def _applied_to_lines(self, rule: _Rule, text: str) -> str:
        """Apply a rule to the lines that have one of its words, and to the line after each."""
        lower = text.lower()
        if len(lower) != len(text):  # of a few letters the small form is longer
            return self._applied(rule, text)
        parts, done = [], 0
        for start, end in _lines_with(lower, rule.words):
            parts += [text[done:start], self._applied(rule, text[start:end])]
            done = end
        return "".join([*parts, text[done:]])

    def _applied(self, rule: _Rule, text: str) -> str:
        def replace(match: re.Match[str]) -> str:
            new = rule.replace(match)
            if new != match[0]:
                self.count(rule.what)
            return new

        return rule.pattern.sub(replace, text)


def _lines_with(text: str, words: Iterable[str]) -> list[tuple[int, int]]:
    """Return where lines with one of these words begin, and where the line after them ends."""
    found: list[tuple[int, int]] = []
    for word in words:
        place = text.find(word)
        while place >= 0:
            start = text.rfind("\n", 0, place) + 1
            line_end = text.find("\n", place)
            end = text.find("\n", line_end + 1) + 1 if line_end >= 0 else 0
            found.append((start, end or len(text)))
            place = text.find(word, line_end) if line_end >= 0 else -1
    merged: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


@lru_cache(maxsize=4096)
def is_header(name: str) -> bool:
    """Whether the value of a header of this name is a credential."""
    return _HEADER_NAME.fullmatch(name) is not None


@lru_cache(maxsize=65536)
def is_credential(name: str) -> bool:
    """Whether what stands under a field of this name is a credential: ``clientSecret``."""
    return _STRONG_NAME.fullmatch(name) is not None and not _ELSEWHERE.fullmatch(name)


@lru_cache(maxsize=4096)
def may_be_credential(name: str) -> bool:
    """Whether an option or variable of this name may hold a credential: ``--token``."""
    return re.search(
        rf"(?i:{_STRONG}|{_WEAK}|_key\b|passw|\bpass\b|_pass\b|\bauth\b)", name
    ) is not None and not _ELSEWHERE.fullmatch(name)


def is_harmless(value: str) -> bool:
    """Whether a value is none whatever its name: a path, a mark, a placeholder."""
    return _HARMLESS.fullmatch(value) is not None


def without_scheme(value: str) -> str:
    """Return what follows ``Bearer`` or ``Basic`` in a header's value."""
    return value[match.end() :] if (match := _SCHEMES.match(value)) else value
