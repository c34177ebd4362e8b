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
MOST_BYTES = 1 << 30  # of an answer; 10,000 records take about a tenth of it
EXCERPT = 1 << 16  # bytes of a body that errors are made of: cut after secrets are taken out, not before
RESUME = "what was fetched is kept, run again to go on."
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
    minutes_left: Callable[[], float]
    identity: dict[str, str] = field(repr=False)  # holds the key, so it is kept out of every printed form


def connect(
    settings: Corpus, *, progress=None, sleep=time.sleep, clock=time.monotonic, jitter=random.uniform
) -> Client:
    """Check the settings and make the client; `progress` gets one line of text per step, and nothing is sent yet.

    The rate is `requests_per_second`, but at most NCBI's 3 per second, or 10 with NCBI_API_KEY. The
    `deadline_minutes` begin here. Raises PubmedError for a value that cannot work, and for plain http to anything but
    this machine.
    """
    for name in ("max_records", "batch_size", "requests_per_second", "timeout_seconds", "tries", "deadline_minutes"):
        if (value := getattr(settings, name)) is not None and not value > 0:
            raise PubmedError(f"corpus.{name} must be above 0, not {value!r}.")
    if not (settings.asked.query or "").strip():
        raise PubmedError(
            f"corpus.domains.{settings.domain}.query is empty: write a PubMed query, for example epilepsy[MeSH Terms]."
        )
    address = urllib.parse.urlsplit(settings.base_url)
    if address.scheme != "https" and not (address.scheme == "http" and address.hostname in LOOPBACK):
        raise PubmedError(
            "corpus.base_url must start with https:// (http:// only for this machine): a key is sent there."
        )
    identity = {"tool": TOOL, **_secrets()}
    ends_at = clock() + 60 * settings.deadline_minutes
    allowed = RATE_WITH_KEY if "api_key" in identity else RATE_WITHOUT_KEY
    return Client(
        base_url=settings.base_url.rstrip("/"),
        timeout_seconds=settings.timeout_seconds,
        tries=settings.tries,
        gate=rate_gate(min(settings.requests_per_second, allowed), sleep=sleep, clock=clock),
        sleep=sleep,
        jitter=jitter,
        progress=progress or (lambda line: None),
        minutes_left=lambda: (ends_at - clock()) / 60,
        identity=identity,
    )


def _secrets() -> dict[str, str]:
    """Key and e-mail of the environment, without the line end that a file of settings may have left on them."""
    found = {}
    for name, variable in (("api_key", "NCBI_API_KEY"), ("email", "NCBI_EMAIL")):
        if value := os.environ.get(variable, "").strip():
            if not re.fullmatch(r"[!-~]+", value):  # an echo of anything else could be written in many ways
                raise PubmedError(
                    f"{variable} holds white space or characters that no key or address has: set it again."
                )
            found[name] = value
    return found


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

    429, 5xx, a relayed failure, silence, a cut body and a PubmedError of `check` are tried again, after a doubling,
    jittered pause, or after what Retry-After asks for when that is longer. Raises PubmedError after `tries` attempts,
    for any other refusal (4xx), when PubMed asks for a pause of more than five minutes, and when the deadline has
    passed or would pass in a pause; an answer that is on its way then is still read.
    """
    data = urllib.parse.urlencode({"db": "pubmed", **parameters, **client.identity}).encode()
    url = f"{client.base_url}/{utility}.fcgi"
    local = urllib.parse.urlsplit(url).hostname in LOOPBACK  # a proxy cannot reach this machine's own loopback
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
    for attempt in range(1, client.tries + 1):
        if client.minutes_left() <= 0:
            raise PubmedError(f"corpus.deadline_minutes have passed: {RESUME}")
        client.gate()
        final, asked_to_wait = False, 0.0
        try:
            post = urllib.request.Request(url, data=data, headers={"User-Agent": TOOL})
            with opener.open(post, timeout=client.timeout_seconds) as answer:
                body = _read(answer, client.timeout_seconds * BODY_PATIENCE)
            return check(body, attempt == client.tries)
        except urllib.error.HTTPError as error:
            said = _error_text(error)
            reason = f"HTTP {error.code} {error.reason}{said}"
            # A failure behind NCBI's front comes as 400 with an <ERROR>; its own refusals are JSON.
            final = error.code < 500 and error.code not in (408, 429) and "<ERROR" not in said
            asked_to_wait = _retry_after(error.headers.get("Retry-After"))
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        except PubmedError as error:
            reason = str(error)
        # Errors are raised down here, without their cause: it may repeat what was sent, or hold an echo of the key.
        reason = cleared(client, reason)
        if final:
            raise PubmedError(
                f"{utility} refused the request ({reason}): check the query, corpus.base_url and the key."
            )
        if asked_to_wait > LONGEST_WAIT:
            raise PubmedError(
                f"{utility} asks to wait {asked_to_wait:.0f} seconds ({reason}): run again after that time."
            )
        if attempt < client.tries:
            back_off = min(LONGEST_BACK_OFF, FIRST_WAIT * 2 ** (attempt - 1)) * client.jitter(0.5, 1.5)
            wait = max(back_off, asked_to_wait)
            if wait > 60 * client.minutes_left():
                raise PubmedError(f"corpus.deadline_minutes would pass while waiting ({reason}): {RESUME}")
            client.progress(f"{utility}: {reason}; try {attempt + 1} of {client.tries} in {wait:.1f} s")
            client.sleep(wait)
    raise PubmedError(f"{utility} at {client.base_url} failed {client.tries} times, at last with: {reason}; {RESUME}")


def cleared(client: Client, text: str) -> str:
    """Text from a server or the network, shortened, with key and e-mail taken out."""
    for name in ("api_key", "email"):
        if secret := client.identity.get(name):
            text = text.replace(secret, f"({name})").replace(urllib.parse.quote_plus(secret), f"({name})")
    return text if len(text) <= 300 else f"{text[:300]}…"  # shortened last: half a key would escape the replacement


def _read(answer, patience_seconds: float) -> bytes:
    """Read a body to its announced end; raises TimeoutError for a dripping one and PubmedError for a cut one."""
    pieces, received, deadline = [], 0, time.monotonic() + patience_seconds
    while piece := answer.read1(1 << 16):
        pieces.append(piece)
        received += len(piece)
        if received > MOST_BYTES:
            raise PubmedError(f"the answer has more than {MOST_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the answer was not complete after {patience_seconds:.0f} seconds")
    body, announced = b"".join(pieces), answer.headers.get("Content-Length", "")
    if announced.isdigit() and len(body) != int(announced):
        raise PubmedError(f"the answer was cut after {len(body)} of {announced} bytes")
    return body


def _error_text(error: urllib.error.HTTPError) -> str:
    try:
        with error:
            return f", {excerpt(error.read(EXCERPT))}"
    except (OSError, http.client.HTTPException):
        return ""


def excerpt(body: bytes) -> str:
    """The start of a body as one quoted line, for an error's text."""
    return repr(" ".join(body[:EXCERPT].decode("utf-8", "replace").split())) if body else "an empty body"


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, given as a number or as a date; 0 when absent or unreadable."""
    if value and re.fullmatch(r"\s*\d{1,9}\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value or "").timestamp() - time.time())
    except ValueError:
        return 0.0
