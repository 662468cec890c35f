"""Fetch an image from an http or https URL, with bounds on its size and on the time for all of it.

A server that fetches what strangers name must not be led to its own network, so `public_only` looks every host up
first, refuses one with an address that is not on the public internet, and connects to the address that was looked at: a
second look-up could answer otherwise. Redirects are looked at in the same way.
"""

import asyncio
import ipaddress
import socket

import httpx

from llava_stf.errors import ImageError

MAX_REDIRECTS = 5
_IPV6_UNICAST = ipaddress.ip_network("2000::/3")
_IPV6_TUNNELS = (ipaddress.ip_network("2001::/32"), ipaddress.ip_network("2002::/16"))  # Teredo, 6to4


async def fetch(url: str, *, max_bytes: int, max_seconds: float, public_only: bool = False) -> bytes:
    """The bytes behind an URL.

    Args:
        url: http or https; up to `MAX_REDIRECTS` redirects are followed.
        max_bytes: longest body.
        max_seconds: for everything together, look-ups and redirects included.
        public_only: refuse hosts in private networks, and use no proxy.

    Raises:
        ImageError: the URL may not or cannot be fetched, is too large or too slow; the message names it.
    """
    try:
        # One deadline over everything: httpx's own timeouts start anew with every byte a slow server sends.
        async with asyncio.timeout(max_seconds), httpx.AsyncClient(trust_env=not public_only) as client:
            return await _follow(client, url, max_bytes, public_only)
    except TimeoutError as error:
        raise ImageError(f"{url} did not arrive within {max_seconds} seconds.") from error
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise ImageError(f"{url} cannot be fetched: {error or type(error).__name__}.") from error


async def _follow(client: httpx.AsyncClient, url: str, max_bytes: int, public_only: bool) -> bytes:
    place = httpx.URL(url)
    for _ in range(MAX_REDIRECTS + 1):
        if place.scheme not in ("http", "https") or not place.host:
            raise ImageError(f"{url} cannot be fetched: it leads to {place}, which is no http or https URL.")
        request = await _to_checked_address(client, place) if public_only else client.build_request("GET", place)
        response = await client.send(request, stream=True)
        try:
            if response.has_redirect_location:
                place = place.join(response.headers["location"])
                continue
            if response.is_error:
                raise ImageError(f"{url} answered {response.status_code} {response.reason_phrase}.")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > max_bytes:
                    raise ImageError(f"{url} is larger than {max_bytes // 2**20} MiB and is not fetched.")
            return bytes(body)
        finally:
            await response.aclose()
    raise ImageError(f"{url} cannot be fetched: it redirects more than {MAX_REDIRECTS} times.")


async def _to_checked_address(client: httpx.AsyncClient, url: httpx.URL) -> httpx.Request:
    """A request that connects to a public address of the URL's host; name and certificate stay those of the host."""
    address = await public_address(url.host, url.port or (443 if url.scheme == "https" else 80))
    headers = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"}
    return client.build_request(
        "GET", url.copy_with(host=address), headers=headers, extensions={"sni_hostname": url.host}
    )


async def public_address(host: str, port: int) -> str:
    """The first address of a host.

    Raises:
        ImageError: it has none, or one that is not on the public internet.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ImageError(f"The host {host} is not known.") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise ImageError(f"The host {host} is not on the public internet, and nothing is fetched from elsewhere.")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is a unicast one of the public internet; of IPv4 in IPv6 only the mapped form can be."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip not in _IPV6_UNICAST or any(ip in tunnel for tunnel in _IPV6_TUNNELS):
            return False
    return ip.is_global and not ip.is_multicast
