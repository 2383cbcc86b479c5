"""What stands before the server: proxies that are believed, hosts that are answered for."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network, ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from cdm_serve.settings import Settings

SCHEMES = ("http", "https")
HOST = re.compile(r"([\w.-]+|\[[\da-f:.]+\])(:\d+)?", re.ASCII | re.IGNORECASE)
PREFIX = re.compile(r"(/[\w.~-]+)+", re.ASCII)
LOOPBACK_NAMES = ("localhost", "*.localhost")


def before_proxies(scope: Scope, settings: Settings) -> tuple[Scope, str]:
    """The request as its client sent it, and the path below all prefixes.

    Scheme, host, client and prefix are as the X-Forwarded-* headers of a trusted proxy say. The
    prefix may still be in the path or have been taken off.
    """
    headers = Headers(scope=scope)
    scope = dict(scope)
    prefix = settings.root_path
    trusted = settings.trusted_proxy
    if scope.get("client") and _is_trusted(scope["client"][0], trusted):
        if (scheme := _first(headers, "proto")) in SCHEMES:
            scope["scheme"] = scheme
        if HOST.fullmatch(host := _first(headers, "host")):
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope["headers"] = [(b"host", host.encode()), *others]
        if PREFIX.fullmatch(given := _first(headers, "prefix").rstrip("/")):
            prefix = given
        hops = [hop for hop in _all(headers, "for") if hop]
        if hops:
            # Whatever stands left of the first that is not trusted may be made up.
            strangers = (hop for hop in reversed(hops) if not _is_trusted(hop, trusted))
            scope["client"] = (next(strangers, hops[0]), 0)
    route, own = scope["path"], scope.get("root_path", "")
    for each in (own, prefix):
        if each and (route == each or route.startswith(each + "/")):
            route = route[len(each) :]
    scope["root_path"] = prefix + own
    scope["path"] = scope["root_path"] + route
    return scope, route


def known_hosts(settings: Settings, *, guarded: bool) -> tuple[str, ...]:
    """Patterns of the hosts that are answered for; addresses always are.

    Without keys on this machine alone, a page of any site could otherwise have its name point here
    and use the server: DNS rebinding.
    """
    if not settings.allowed_host and (guarded or not is_loopback(settings.host)):
        return ("*",)
    public = urlsplit(settings.public_url or "").hostname
    return (*LOOPBACK_NAMES, *settings.allowed_host, *([public] if public else []))


def is_known(host: str, known: Iterable[str]) -> bool:
    """Whether a Host header names one of them; one that is missing is no browser's."""
    name = host.lower()
    if found := HOST.fullmatch(name):
        name = found[1].strip("[]")
    if not name or _is_address(name):
        return True
    return any(fnmatchcase(name, pattern.lower()) for pattern in known)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    return ip_address(host).is_loopback if _is_address(host) else host == "localhost"


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_trusted(client: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    if not _is_address(client):
        return False
    address = ip_address(client)
    return address.is_loopback or any(address in network for network in networks)


def _all(headers: Headers, name: str) -> list[str]:
    values = ",".join(headers.getlist(f"x-forwarded-{name}"))
    return [value.strip() for value in values.split(",")]


def _first(headers: Headers, name: str) -> str:
    """What the outermost of several proxies said."""
    return _all(headers, name)[0]
