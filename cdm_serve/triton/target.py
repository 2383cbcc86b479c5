"""From ``--triton`` to what gRPC connects to."""

import ipaddress
import socket

from cdm_serve.errors import StartError


def grpc_target(addresses: str) -> str:
    """The target: one address as it is, or a list of numbers for several with commas between.

    One is gRPC's to resolve: all that a name stands for are used, and asked for again when one is
    lost. The names of several are looked up here and now.

    Raises:
        StartError: an address is none, or cannot be found.
    """
    if "," not in addresses:
        return addresses
    found = [_look_up(address.strip()) for address in addresses.split(",")]
    versions = {ipaddress.ip_address(host).version for host, _ in found}
    if len(versions) > 1:
        raise StartError(f"--triton {addresses} mixes IPv4 and IPv6: use one of them")
    if versions == {6}:
        return "ipv6:" + ",".join(f"[{host}]:{port}" for host, port in found)
    return "ipv4:" + ",".join(f"{host}:{port}" for host, port in found)


def _look_up(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise StartError(f"--triton names {address!r}: expected HOST:PORT, with commas between")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise StartError(f"--triton names {address}, which cannot be found: {error}") from error
    # IPv4 where there is both: the addresses of a list must be of one kind.
    _, _, _, _, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return str(where[0]), int(where[1])
