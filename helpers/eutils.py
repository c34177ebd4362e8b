"""The E-utilities over HTTP: one rate gate, patience with faults, and a key that is never written anywhere.

NCBI_API_KEY and NCBI_EMAIL are read from the environment and sent in the body of a POST, so that they stand in no URL;
every text that a server or the network supplied is cleared of them before it enters an error or a line of progress.
Source: NCBI, E-utilities Help (NBK25497), "Usage Guidelines and Requirements".
"""

from __future__ import annotations

import email.utils
import http.client
import os
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field

from helpers.config import Corpus

RATE_WITHOUT_KEY, RATE_WITH_KEY = 3.0, 10.0  # requests per second, NCBI's policy
GATE_MARGIN = 1.1  # requests spaced at exactly 1/rate sometimes meet the limit
FIRST_WAIT, LONGEST_BACK_OFF, LONGEST_WAIT = 1.0, 60.0, 300.0  # seconds
BODY_PATIENCE = 10  # a whole answer may take this many times timeout_seconds, which bounds each silence
TOOL = "clap-notebooks"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class PubmedError(RuntimeError):
    """PubMed could not be asked, or what it answered cannot be used."""


@dataclass(frozen=True)
class Client:
    """One connection's manners: where to ask, how patiently, and the one gate every attempt passes."""

    base_url: str
    timeout_seconds: float
    tries: int
    gate: Callable[[], None]
    sleep: Callable[[float], None]
    jitter: Callable[[float, float], float]
    progress: Callable[[str], None]
    identity: dict[str, str] = field(repr=False)  # holds the key, so it is kept out of every printed form


def connect(
    settings: Corpus, *, progress=None, sleep=time.sleep, clock=time.monotonic, jitter=random.uniform
) -> Client:
    """Check the settings and make the client; `progress` gets one line of text per step, and nothing is sent yet.

    The rate is `requests_per_second`, but at most NCBI's 3 per second, or 10 with NCBI_API_KEY.
    Raises PubmedError for a value that cannot work, and for plain http to anything but this machine.
    """
    for name in ("max_records", "batch_size", "requests_per_second", "timeout_seconds", "tries"):
        if not getattr(settings, name) > 0:
            raise PubmedError(f"corpus.{name} must be above 0, not {getattr(settings, name)!r}.")
    if not settings.query.strip():
        raise PubmedError("corpus.query is empty: write a PubMed query, for example epilepsy[MeSH Terms].")
    address = urllib.parse.urlsplit(settings.base_url)
    if address.scheme != "https" and not (address.scheme == "http" and address.hostname in LOOPBACK):
        raise PubmedError(
            "corpus.base_url must start with https:// (http:// only for this machine): a key is sent there."
        )
    secrets = {"api_key": os.environ.get("NCBI_API_KEY"), "email": os.environ.get("NCBI_EMAIL")}
    identity = {"tool": TOOL, **{name: value for name, value in secrets.items() if value}}
    allowed = RATE_WITH_KEY if "api_key" in identity else RATE_WITHOUT_KEY
    return Client(
        base_url=settings.base_url.rstrip("/"),
        timeout_seconds=settings.timeout_seconds,
        tries=settings.tries,
        gate=rate_gate(min(settings.requests_per_second, allowed), sleep=sleep, clock=clock),
        sleep=sleep,
        jitter=jitter,
        progress=progress or (lambda line: None),
        identity=identity,
    )


def rate_gate(per_second: float, *, sleep=time.sleep, clock=time.monotonic) -> Callable[[], None]:
    """Make a function that returns at most `per_second` times a second (less a margin), sleeping until it may."""
    lock, opens_at = threading.Lock(), [clock()]

    def gate() -> None:
        with lock:
            if (pause := opens_at[0] - clock()) > 0:
                sleep(pause)
            opens_at[0] = clock() + GATE_MARGIN / per_second

    return gate


def request(client: Client, utility: str, parameters: dict, check: Callable):
    """POST to one E-utility until `check(body, last_try)` accepts the answer, and return what it made of it.

    429, 5xx, silence, a cut body and a PubmedError of `check` are tried again, after a doubling, jittered pause, or
    after what Retry-After asks for when that is longer. Raises PubmedError after `tries` attempts, for any other
    refusal (4xx), and when PubMed asks for a pause of more than five minutes.
    """
    data = urllib.parse.urlencode({"db": "pubmed", **parameters, **client.identity}).encode()
    url = f"{client.base_url}/{utility}.fcgi"
    local = urllib.parse.urlsplit(url).hostname in LOOPBACK  # a proxy cannot reach this machine's own loopback
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
    for attempt in range(1, client.tries + 1):
        client.gate()
        final, asked_to_wait = False, 0.0
        try:
            post = urllib.request.Request(url, data=data, headers={"User-Agent": TOOL})
            with opener.open(post, timeout=client.timeout_seconds) as answer:
                body = _read(answer, client.timeout_seconds * BODY_PATIENCE)
            return check(body, attempt == client.tries)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}{_error_text(error)}"
            final = error.code < 500 and error.code not in (408, 429)
            asked_to_wait = _retry_after(error.headers.get("Retry-After"))
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        except PubmedError as error:
            reason = str(error)
        # Errors are raised down here, without their cause: it may repeat what was sent, or hold an echo of the key.
        reason = _redact(client, reason)
        if final:
            raise PubmedError(
                f"{utility} refused the request ({reason}): check corpus.query, corpus.base_url and the key."
            )
        if asked_to_wait > LONGEST_WAIT:
            raise PubmedError(
                f"{utility} asks to wait {asked_to_wait:.0f} seconds ({reason}): run again after that time."
            )
        if attempt < client.tries:
            back_off = min(LONGEST_BACK_OFF, FIRST_WAIT * 2 ** (attempt - 1)) * client.jitter(0.5, 1.5)
            wait = max(back_off, asked_to_wait)
            client.progress(f"{utility}: {reason}; try {attempt + 1} of {client.tries} in {wait:.1f} s")
            client.sleep(wait)
    raise PubmedError(
        f"{utility} failed {client.tries} times, at last with: {reason}; what was fetched is kept, run again."
    )


def _redact(client: Client, text: str) -> str:
    for name in ("api_key", "email"):
        if secret := client.identity.get(name):
            text = text.replace(secret, f"({name})").replace(urllib.parse.quote_plus(secret), f"({name})")
    return text if len(text) <= 300 else f"{text[:300]}…"  # shortened last: half a key would escape the replacement


def _read(answer, patience_seconds: float) -> bytes:
    """Read a body to its announced end; raises TimeoutError for a dripping one and PubmedError for a cut one."""
    pieces, deadline = [], time.monotonic() + patience_seconds
    while piece := answer.read1(1 << 16):
        pieces.append(piece)
        if time.monotonic() > deadline:
            raise TimeoutError(f"the answer was not complete after {patience_seconds:.0f} seconds")
    body, announced = b"".join(pieces), answer.headers.get("Content-Length", "")
    if announced.isdigit() and len(body) != int(announced):
        raise PubmedError(f"the answer was cut after {len(body)} of {announced} bytes")
    return body


def _error_text(error: urllib.error.HTTPError) -> str:
    try:
        with error:
            return f", {excerpt(error.read(2000))}"
    except (OSError, http.client.HTTPException):
        return ""


def excerpt(body: bytes) -> str:
    """The start of a body as one quoted line, for an error's text."""
    return repr(" ".join(body[:2000].decode("utf-8", "replace").split())) if body else "an empty body"


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, given as a number or as a date; 0 when absent or unreadable."""
    if value and re.fullmatch(r"\s*\d{1,9}\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value or "").timestamp() - time.time())
    except ValueError:
        return 0.0
