#!/usr/bin/env python3
"""exportws behind real proxies, nginx and HAProxy, which end TLS with README's own lines: wss:// by
Python's websockets and by Chromium, idle past the proxy's timeout, the client's real address,
forged headers.

Environment: EXPORTWS, the server (./exportws). Prints a line for every test; arguments pick
tests by a part of their name.
"""
import asyncio
import base64
import hashlib
import socket
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
HERE = sys.path.pop(0)  # websockets.py stands here and is not the package
try:
    import websockets
except ImportError:
    print("skip proxies: this python3 has no websockets package")
    sys.exit(0)
sys.path.append(HERE)
import harness  # noqa: E402
from browser import CHROMIUM, Browser, Page  # noqa: E402
from harness import (PATH, SITE, Server, Skip, equal, poll, readme_block,  # noqa: E402
                     replace, run, sign, true)

PATIENCE = 10  # seconds for what should happen at once
TIMEOUT = 3    # seconds: the proxies'


# ===== Proxies =====

def nginx_site(folder, listens, server):
    site = replace(readme_block("server {"), ("/etc/ssl/", folder + "/"),
                   ("listen 443 ssl;", " ".join("listen %s ssl;" % at for at in listens)),
                   ("proxy_read_timeout 60s;", "proxy_read_timeout %ds;" % TIMEOUT))
    upstream = "proxy_pass http://127.0.0.1:8080;"
    if not server.clients.startswith("unix:"):
        return replace(site, (upstream, "proxy_pass http://%s;" % server.clients))
    line = readme_block("    proxy_pass http://unix:").strip()
    return replace(site, (upstream, replace(
        line, ("unix:/run/exportws/clients", server.clients))))


def haproxy_site(folder, listens, server):
    return replace(readme_block("frontend https"), ("/etc/ssl/", folder + "/"),
                   ("bind :443 ", "bind %s " % ",".join(listens)), ("60s", "%ds" % TIMEOUT),
                   ("127.0.0.1:8080", server.clients))


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
        return True
    except OSError:
        return False


class Proxy(harness.Proxy):
    """A proxy in front of a server, started with README's lines."""

    def __init__(self, kind, server):
        site = {"nginx": nginx_site, "haproxy": haproxy_site}[kind]
        hosts = ["127.0.0.1"] + ["[::1]"] * has_ipv6()
        super().__init__(kind, lambda folder, ports: site(
            folder, ["%s:%d" % (host, ports[0]) for host in hosts], server))
        self.port = self.ports[0]

    def connect(self, token, source="127.0.0.2", **how):
        """A session over TLS: its name is checked against the certificate."""
        how.setdefault("ping_interval", None)
        how.setdefault("origin", "https://" + SITE)
        host = "::1" if ":" in source else "127.0.0.1"
        return websockets.connect("wss://%s:%d%s%s" % (SITE, self.port, PATH, token), host=host,
                                  port=self.port, ssl=self.tls,
                                  server_hostname=SITE, local_addr=(source, 0), **how)

    async def status(self, token, **how):
        """The status that refuses the upgrade, 101 when it is accepted."""
        try:
            async with self.connect(token, **how):
                return 101
        except websockets.exceptions.InvalidHandshake as error:
            return (error.status_code if hasattr(error, "status_code")
                    else error.response.status_code)


async def receive(session):
    return await asyncio.wait_for(session.recv(), PATIENCE)


async def aside(function, *arguments):
    """Runs what blocks in a thread, so that sessions go on answering."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


# ===== The tests: each with both proxies, and with nginx over a Unix socket =====

TESTS = []


def test(*options):
    def register(function):
        def body(kind, door):
            with tempfile.TemporaryDirectory() as folder:
                place = ("--listen", "unix:%s/clients" % folder) if door == "unix" else ()
                trust = ("--trusted-proxy", "unix:" if door == "unix" else "127.0.0.1")
                with Server(*place, *trust, *options) as server, Proxy(kind, server) as proxy:
                    asyncio.run(asyncio.wait_for(function(server, proxy), 40))
        for kind, door in (("nginx", "tcp"), ("haproxy", "tcp"), ("nginx", "unix")):
            name = function.__name__ + "_" + kind + "_unix" * (door == "unix")
            TESTS.append((name, lambda kind=kind, door=door: body(kind, door)))
        return function
    return register


@test()
async def messages_pass_over_tls(server, proxy):
    async with proxy.connect("ab12") as session:
        for text in ("37 %", "done: готово", "x" * 65536):
            await aside(server.send, "ab12", text.encode())
            equal("message", await receive(session), text)
        await session.send("from the page")
        message = await aside(server.wait_event, "message")
        equal("size", message[0]["size"], "13")
        await session.send("HEART-BEAT")
        await aside(poll, "counted", lambda: server.metric("exportws_heartbeats_total") == 1)
        equal("delete", (await aside(server.ask, "DELETE", PATH + "ab12")).status, 200)
        await asyncio.wait_for(session.wait_closed(), PATIENCE)
        equal("close code", session.close_code, 1000)


@test("--ping", "1")
async def pings_carry_a_quiet_session_past_the_timeout(server, proxy):
    async with proxy.connect("ab12") as session:
        await asyncio.sleep(2.5 * TIMEOUT)
        await aside(server.send, "ab12", "still there")
        equal("message", await receive(session), "still there")
        true("no pings", server.metric("exportws_pings_total") >= 2 * TIMEOUT)
    equal("sessions that were opened", len(server.events("open")), 1)


@test("--ping", "60")
async def without_pings_the_proxy_cuts_it_off(server, proxy):
    async with proxy.connect("ab12") as session:
        began = time.monotonic()
        await asyncio.wait_for(session.wait_closed(), 5 * TIMEOUT)
        true("it was not the timeout", time.monotonic() - began > TIMEOUT - 0.5)
        equal("close code", session.close_code, 1006)
    await aside(poll, "the slot comes back", lambda: server.metric("exportws_sessions") == 0)


@test("--per-address", "1")
async def address_is_that_of_the_client(server, proxy):
    forged = {"X-Forwarded-For": "203.0.113.66"}
    async with proxy.connect("ab12", extra_headers=forged):
        equal("peer", server.wait_event("open")[0]["peer"], "127.0.0.2")
        for headers in ({}, forged, {"X-Forwarded-For": "203.0.113.67, 203.0.113.68"}):
            equal("status of one more", await proxy.status("b", extra_headers=headers), 429)
        equal("peer", server.wait_event("refuse", 3)[2]["peer"], "127.0.0.2")
        async with proxy.connect("c", source="127.0.0.3", extra_headers=forged):
            equal("peer", server.wait_event("open", 2)[1]["peer"], "127.0.0.3")
        if has_ipv6():
            async with proxy.connect("d", source="::1"):
                equal("peer", server.wait_event("open", 3)[2]["peer"], "[::1]")


@test()
async def origin_of_the_page_is_compared_with_the_host(server, proxy):
    for origin, want in (("https://" + SITE, 101), ("https://%s:8443" % SITE, 101),
                         ("https://evil.example", 403), ("https://127.0.0.1", 403)):
        equal("status for " + origin, await proxy.status("ab12", origin=origin), want)
    equal("refusals", len(server.wait_event("refuse", 2)), 2)


async def signed_tokens_pass(server_kind):
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/secret", "w", encoding="utf-8") as file:
            file.write("s3cret\n")
        with Server("--client-secret-file", folder + "/secret") as server, \
                Proxy(server_kind, server) as proxy:
            token = sign("büro 7-8", 9999999999, "s3cret")
            encoded = "".join("%%%02X" % byte for byte in token.encode())
            equal("status", await proxy.status(encoded), 101)
            equal("status of another", await proxy.status(encoded[:-2] + "5A"), 403)
            peer = server.wait_event("open")[0]["peer"]
            true("peer %s of a proxy that is not trusted" % peer, peer.startswith("127.0.0.1:"))


def chromium_for(proxy):
    """One that finds SITE here and takes its certificate, and no other that it does not know."""
    if CHROMIUM is None:
        raise Skip("no Chromium here")
    key = subprocess.run(["openssl", "pkey", "-in", proxy.folder.name + "/app.key", "-pubout",
                          "-outform", "DER"], capture_output=True, check=True).stdout
    return Browser("--host-resolver-rules=MAP %s 127.0.0.1" % SITE,
                   "--ignore-certificate-errors-spki-list="
                   + base64.b64encode(hashlib.sha256(key).digest()).decode())


def chromium_loads_the_client_and_stays(kind):
    """/exportws.js and wss:// through the proxy; then a silence of twice its timeout. The page is
    the script's own text, whose icon nobody has."""
    with Server("--trusted-proxy", "127.0.0.1", "--ping", "1") as server, \
            Proxy(kind, server) as proxy:
        chromium = chromium_for(proxy)
        try:
            with Page(chromium, "https://%s:%d/exportws.js" % (SITE, proxy.port),
                      complaints=("Failed to load resource",)) as page:
                page.run("""new Promise((resolve, reject) => {
                    const script = document.createElement('script');
                    Object.assign(script, {src: '/exportws.js', onload: resolve, onerror: reject});
                    document.body.append(script);
                }).then(() => undefined)""")
                page.run("""var got = [], states = [], client = new ExportWS('%sab12', {
                    onmessage(data) { got.push(data); }, onstate(state) { states.push(state); }
                })""" % PATH)
                page.wait("client.state === 'open'")
                equal("url", page.run("client.ws.url"),
                      "wss://%s:%d%sab12" % (SITE, proxy.port, PATH))
                equal("peer", server.wait_event("open")[0]["peer"], "127.0.0.1")
                server.send("ab12", "37 %")
                page.wait("got.length === 1")
                page.run("clearInterval(client.timer)")  # it says nothing, but for its pongs
                time.sleep(2.5 * TIMEOUT)
                server.send("ab12", "still there")
                page.wait("got.length === 2")
                equal("got", page.run("[got, states]"),
                      [["37 %", "still there"], ["connecting", "open"]])
        finally:
            chromium.close()


for one in ("nginx", "haproxy"):
    TESTS.append(("chromium_loads_the_client_and_stays_" + one,
                  lambda one=one: chromium_loads_the_client_and_stays(one)))
    TESTS.append(("signed_tokens_pass_" + one,
                  lambda one=one: asyncio.run(asyncio.wait_for(signed_tokens_pass(one), 40))))

if __name__ == "__main__":
    run(TESTS, 6)
