#!/usr/bin/env python3
"""Every option: what it does, in both spellings, its line in --help, what it refuses; then the log.

Environment: EXPORTWS, the server (./exportws). Prints a line for every test; arguments pick
tests by a part of their name.
"""
import base64
import fcntl
import functools
import hashlib
import hmac
import html
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections import namedtuple

sys.dont_write_bytecode = True
from harness import (CLOSE, DEADLINE, PATH, PING, PROGRAM, READY, TEXT, Connection,  # noqa: E402
                     Failure, Server, Skip, attempt, between, dial, equal, free_port, log_fault,
                     log_fields, poll, read_head, run, true)

# ===== The table of the contract =====

Option = namedtuple("Option", "name default unit garbage")

NUMBERS = ("", "-1", "x", "1x", " 1", "1.5", "0x10", "1e3", "9" * 30)
COUNT = NUMBERS + ("0",)
BYTES = COUNT + ("4t", "k", "4kb", "1mm", "17179869184g", "18014398509481985k")
SECONDS = ("", "-1", "x", "1x", " 1", "nan", "inf", "1e3", ".", "1.2.3", "1.2345", "1.x",
           "86400.001", "4294967296", "9" * 30)
POSITIVE = SECONDS + ("0", "0.000")
ADDRESS = ("", "nonsense", "127.0.0.1", "127.0.0.1:", "127.0.0.1:8x", "127.0.0.1:65536", "[::1:80",
           "[::1]", "unix:", "unix:/" + "x" * 200)
FILE = ("", "/nonexistent/secret", "/dev/null", "/")
ORIGIN = ("", "app.example.com", "https://", "https://app.example.com/", "https://a.example/b")
FLAG = ("yes", "")
ANYWHERE = ("--listen", "127.0.0.1:0", "--push", "127.0.0.1:0")

OPTIONS = [
    Option("--listen", "127.0.0.1:8080", "ADDR", ADDRESS + ("none",)),
    Option("--push", "127.0.0.1:8081", "ADDR", ADDRESS),
    Option("--push-secret-file", "none", "F", FILE),
    Option("--path", "/app/ws/export-task/", "P", ("", "nope")),
    Option("--capacity", "1024", "N", COUNT),
    Option("--handshakes", "256", "N", COUNT),
    Option("--pushers", "64", "N", COUNT),
    Option("--per-token", "8", "N", COUNT),
    Option("--per-address", "0", "N", NUMBERS),
    Option("--max-token", "64", "BYTES", BYTES),
    Option("--max-message", "4096", "BYTES", BYTES),
    Option("--max-push", "65536", "BYTES", BYTES),
    Option("--queue", "32", "N", COUNT),
    Option("--buffer", "4194304", "BYTES", BYTES),
    Option("--hold", "30", "SECONDS", SECONDS),
    Option("--history", "16", "N", NUMBERS),
    Option("--ping", "25", "SECONDS", POSITIVE),
    Option("--pong", "10", "SECONDS", POSITIVE),
    Option("--handshake-timeout", "10", "SECONDS", POSITIVE),
    Option("--close-timeout", "2", "SECONDS", POSITIVE),
    Option("--write-timeout", "20", "SECONDS", POSITIVE),
    Option("--drain", "5", "SECONDS", SECONDS),
    Option("--origin", "same host", "O", ORIGIN),
    Option("--client-secret-file", "none", "F", FILE),
    Option("--trusted-proxy", "none", "ADDR",
           ("", "unix", "unix:/x", "localhost", "10.0.0.1:80", "10.0.0.0/33", "::/129", "::/", "1")),
    Option("--heartbeat", "HEART-BEAT", "TEXT", ()),
    Option("--heartbeat-reply", "off", "", FLAG),
    Option("--demo", "off", "", FLAG),
    Option("--log", "info", "LEVEL", ("", "loud", "inf", "3")),
    Option("--memory", "", "", FLAG),
    Option("--check", "", "", FLAG),
    Option("--help", "", "", FLAG),
    Option("--version", "", "", FLAG),
]
FLAGS = {"--heartbeat-reply", "--demo", "--memory", "--check", "--help", "--version"}
LATER = set()  # tested elsewhere

TESTS = []
EFFECTS = set()


def test(function):
    TESTS.append((function.__name__, function))
    return function


def effect(option):
    """Registers a test of what an option does, once for each spelling, given as a function."""
    def register(function):
        EFFECTS.add(option)
        for name, give in (("_spelt_apart", lambda value: (option, value)),
                           ("_spelt_joined", lambda value: (option + "=" + value,))):
            TESTS.append((function.__name__ + name, functools.partial(function, give)))
        return function
    return register


def since(began):
    return time.monotonic() - began


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
        return True
    except OSError:
        return False


# ===== Doors =====

def check_door(give, member):
    """Both doors take the same forms of address; `member` names the one that `give` sets."""
    def address(form):
        with Server(*give(form)) as server:
            real = getattr(server, member)
            with dial(real):
                return real
    port = free_port()
    equal("fixed port", address("127.0.0.1:%d" % port), "127.0.0.1:%d" % port)
    true("port picked", re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", address("127.0.0.1:0")))
    true("port picked on all addresses", re.search(r":[1-9]\d*$", address(":0")))
    if has_ipv6():
        true("IPv6 address", re.fullmatch(r"\[::1\]:[1-9]\d*", address("[::1]:0")))
    with tempfile.TemporaryDirectory() as folder:
        equal("Unix socket", address("unix:" + folder + "/door"), "unix:" + folder + "/door")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(folder + "/door")
        os.utime(folder + "/door", (2**32, 2**32)) # no 32-bit time
        equal("one that was left", address("unix:" + folder + "/door"), "unix:" + folder + "/door")


@effect("--listen")
def listen_sets_the_client_door(give):
    check_door(give, "clients")
    with tempfile.TemporaryDirectory() as folder:
        with Server(*give("unix:" + folder + "/door")) as server:
            server.session("ab12")
            equal("sessions", server.metric("exportws_sessions"), 1)


@effect("--push")
def push_sets_the_push_door(give):
    check_door(give, "push")
    with tempfile.TemporaryDirectory() as folder:
        with Server(*give("unix:" + folder + "/door")) as server:
            equal("health", server.ask("GET", "/healthz").status, 200)
    with Server(*give("none")) as server:
        equal("push door of the ready line", server.push, "none")
        server.session("ab12")


@effect("--push-secret-file")
def push_secret_file_guards_the_push_door(give):
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/secret", "w", encoding="utf-8") as file:
            file.write("s3cret\nsecond line\n")
        with Server(*give(folder + "/secret")) as server:
            equal("without", server.ask("GET", "/online").status, 401)
            for secret, want in (("s3cret", 200), ("second line", 401), ("s3cretsecond line", 401)):
                answer = server.ask("GET", "/online", headers={"Authorization": "Bearer " + secret})
                equal("with " + secret, answer.status, want)


@effect("--path")
def path_moves_both_doors(give):
    with Server(*give("/x/y/")) as server:
        client = server.connect("ab12", path="/x/y/")
        equal("status at the new path", client.status, 101)
        equal("status at the old path", server.connect("ab12").status, 404)
        server.send("ab12", "hello", path="/x/y/")
        equal("frame", client.receive(), (TEXT, b"hello"))
        equal("push at the old path", server.ask("POST", PATH + "ab12", "x").status, 404)


# ===== Bounds =====

@effect("--capacity")
def capacity_bounds_sessions(give):
    with Server(*give("2")) as server:
        equal("capacity of the ready line", server.ready["capacity"], "2")
        equal("capacity of /metrics", server.metric("exportws_capacity"), 2)
        server.session("a")
        second = server.session("b")
        third = server.connect("c")
        equal("status of the third", third.status, 503)
        true("Retry-After %r" % third.headers, third.headers.get("retry-after", "").isdigit())
        second.close()
        poll("the slot comes back", lambda: server.connect("d").status == 101)


@effect("--handshakes")
def handshakes_bounds_silent_connections(give):
    with Server(*give("2")) as server:
        began = time.monotonic()
        silent = [dial(server.clients) for _ in range(3)]
        equal("the oldest gives way", read_head(silent[0])[0], 408)
        between("seconds until then", since(began), 0, 5)
        for sock in silent[1:]:
            sock.settimeout(0.1)
            try:
                raise Failure("the others stay, but one got %r" % sock.recv(100))
            except socket.timeout:
                pass
        server.session("newcomer")
        for sock in silent:
            sock.close()


@effect("--pushers")
def pushers_bounds_push_connections(give):
    with Server(*give("1")) as server:
        first = Connection(server.push)
        equal("status of the first", first.ask("GET", "/healthz").status, 200)
        equal("status of one more", server.ask("GET", "/healthz").status, 503)
        equal("the first goes on", first.ask("GET", "/healthz").status, 200)
        first.close()
        poll("its place comes back", lambda: server.ask("GET", "/healthz").status == 200)


@effect("--per-token")
def per_token_replaces_the_oldest(give):
    with Server(*give("2")) as server:
        first, second, third = (server.session("ab12") for _ in range(3))
        equal("close code of the oldest", first.close_code(), 4001)
        server.send("ab12", "to two")
        equal("frames", (second.receive(), third.receive()), ((TEXT, b"to two"), (TEXT, b"to two")))


@effect("--per-address")
def per_address_bounds_sessions_of_a_peer(give):
    with Server(*give("2")) as server:
        server.session("a")
        second = server.session("b")
        third = server.connect("c")
        equal("status of the third", third.status, 429)
        true("Retry-After %r" % third.headers, third.headers.get("retry-after", "").isdigit())
        if sys.platform == "linux":  # where all of 127/8 is the loopback's
            equal("status from elsewhere", server.connect("c", source="127.0.0.2").status, 101)
        second.close()
        poll("its place comes back", lambda: server.connect("d").status == 101)


@effect("--max-token")
def max_token_bounds_the_decoded_token(give):
    with Server(*give("5")) as server:
        equal("status at the bound", server.connect("abcde").status, 101)
        equal("status at the bound, encoded", server.connect("%61%62%63%64%65").status, 101)
        equal("status past it", server.connect("abcdef").status, 414)


@effect("--max-message")
def max_message_bounds_what_a_client_sends(give):
    with Server(*give("10")) as server:
        client = server.session("ab12")
        client.send(TEXT, b"x" * 10)
        server.wait_event("message")
        client.send(TEXT, b"x" * 11)
        equal("close code", client.close_code(), 1009)


@effect("--max-push")
def max_push_bounds_a_push(give):
    with Server(*give("10")) as server:
        client = server.session("ab12")
        server.send("ab12", "x" * 10)
        equal("frame", client.receive(), (TEXT, b"x" * 10))
        server.send("ab12", "x" * 11, want=413)


def clog(server, token):
    """A session that does not read, pushed to until the kernel takes no more: one message waits. (The
    server keeps no history.)"""
    client = server.session(token, receive_buffer=4096)
    for _ in range(200):
        pushed = time.monotonic()
        server.send(token, "x" * 60000)
        if server.metric("exportws_buffer_used_bytes") > 0:
            return client, pushed
    raise Failure("200 pushes of 60000 bytes, and nothing waits")


@effect("--queue")
def queue_bounds_messages_waiting_for_a_session(give):
    for size in (4, 12):
        with Server(*give(str(size)), "--history=0") as server:
            other = server.session("other")
            clog(server, "slow")
            taken = 1
            while taken < 50 and server.ask("POST", PATH + "slow", "more").status == 200:
                taken += 1
            closed = server.wait_event("close")[0]
            equal("reason and code", (closed["reason"], closed["code"]), ("slow", "1013"))
            between("messages that waited", taken, size - 1, size + 1)
            server.send("other", "not touched")
            equal("frame of the other", other.receive(), (TEXT, b"not touched"))


def hold_until_full(server, size):
    """Pushes to nobody until there is no room; how many were held."""
    for held in range(1000):
        answer = server.ask("POST", PATH + "absent", "x" * size)
        if answer.status != 202:
            equal("status without room", answer.status, 503)
            true("no Retry-After", (answer.getheader("Retry-After") or "").isdigit())
            equal("held", server.metric("exportws_held_messages"), held)
            return held
    raise Failure("1000 messages of %d bytes held" % size)


@effect("--buffer")
def buffer_bounds_held_messages(give):
    for value, size in (("64k", 65536), ("131072", 131072)):
        with Server(*give(value), "--max-push=4096") as server:
            between("messages of 4000 bytes held", hold_until_full(server, 4000),
                    size / 4096 / 2, size / 4000)


@effect("--buffer")
def buffer_takes_suffixes(give):
    for value, same in (("65536", "64k"), ("1024k", "1m"), ("1048576", "1m"), ("1g", "1024m")):
        equal("memory for " + value, memory_of(*give(value)), memory_of(*give(same)))
    more = memory_of(*give("2m")) - memory_of(*give("1m"))
    between("memory for 1m more", more, 1048576 * 0.95, 1048576 * 1.25)


@effect("--history")
def history_is_kept_for_clients_that_reconnect(give):
    for size in (0, 3):
        with Server(*give(str(size))) as server:
            client = server.session("ab12")
            ids = [json.loads(server.send("ab12", "m%d" % i).body)["id"] for i in range(5)]
            for i in range(5):
                equal("live", client.receive(), (TEXT, b"m%d" % i))
            equal("history", server.metric("exportws_history_messages"), size)
            again = server.session("ab12?last=%d" % ids[0],
                                   headers=["Sec-WebSocket-Protocol: exportws.v1"])
            equal("what came first", again.receive(), (TEXT, b"gap"))
            for i in range(5 - size, 5):
                equal("again", again.receive(), (TEXT, b"%d\nm%d" % (ids[i], i)))
            plain = server.session("ab12")
            server.send("ab12", "live")
            equal("a plain client's first", plain.receive(), (TEXT, b"live"))
            equal("the other's next", again.receive()[1].split(b"\n")[1], b"live")


# ===== Times =====

@effect("--hold")
def hold_ends_by_expiry(give):
    with Server(*give("0.4")) as server:
        began = time.monotonic()
        server.send("absent", "x", want=202)
        poll("expired", lambda: server.metric("exportws_messages_expired_total") == 1)
        between("seconds held", since(began), 0.35, 5)
        equal("held", server.metric("exportws_held_messages"), 0)
        equal("status of the token", server.ask("GET", PATH + "absent").status, 404)
        server.wait_event("expire")
    with Server(*give("0")) as server:
        server.send("absent", "x", want=404)


@effect("--ping")
def ping_comes_after_the_quiet_time(give):
    with Server(*give("0.4")) as server:
        began = time.monotonic()  # not later than the server's own moment, however slow both are
        client = server.session("ab12")
        equal("first frame", client.receive(5)[0], PING)
        between("seconds until the ping", since(began), 0.39, 5)
        busy = server.session("busy")
        began = time.monotonic()
        while since(began) < 1:
            busy.send(TEXT, b"HEART-BEAT")
            try:
                raise Failure("a session that speaks got %r" % (busy.receive(0.1),))
            except socket.timeout:
                pass


@effect("--pong")
def pong_is_awaited_that_long(give):
    with Server(*give("0.5"), "--ping", "0.2", "--close-timeout", "0.2") as server:
        client = server.session("ab12")
        equal("first frame", client.receive(5)[0], PING)
        began = time.monotonic()
        equal("close code", client.close_code(5), 1008)
        between("seconds after the ping", since(began), 0.4, 5)
        closed = server.wait_event("close")[0]
        equal("reason and code", (closed["reason"], closed["code"]), ("timeout", "1008"))


@effect("--handshake-timeout")
def handshake_timeout_ends_slow_heads(give):
    with Server(*give("0.4")) as server:
        for head in (b"", b"GET " + PATH.encode() + b"ab12 HTTP/1.1\r\nHost: x\r\n"):
            began = time.monotonic()
            with dial(server.clients) as sock:
                sock.sendall(head)
                equal("status", read_head(sock)[0], 408)
                between("seconds", since(began), 0.3, 5)


@effect("--close-timeout")
def close_timeout_ends_sessions_that_do_not_answer(give):
    with Server(*give("2.6")) as server:  # the default would be over by then
        client = server.session("ab12")
        began = time.monotonic()
        equal("status", server.ask("DELETE", PATH + "ab12").status, 200)
        equal("close code", client.close_code(), 1000)
        client.wait_end()
        between("seconds until the end", since(began), 2.5, 8)


@effect("--write-timeout")
def write_timeout_ends_sessions_that_take_nothing(give):
    with Server(*give("0.6"), "--close-timeout", "0.2", "--history=0") as server:
        other = server.session("other")
        _, pushed = clog(server, "slow")
        closed = server.wait_event("close")[0]
        between("seconds since the last push", since(pushed), 0.55, 8)
        equal("reason and code", (closed["reason"], closed["code"]), ("slow", "1013"))
        server.send("other", "not touched")
        equal("frame of the other", other.receive(), (TEXT, b"not touched"))


@effect("--drain")
def drain_waits_that_long_for_sessions(give):
    with Server(*give("0.5"), "--close-timeout", "30") as server:
        client = server.session("ab12")
        server.process.terminate()
        began = time.monotonic()
        equal("close code", client.close_code(), 1001)
        equal("exit status", server.wait(), 0)
        between("seconds until the exit", since(began), 0.3, 5)


# ===== Who may, and what is said =====

@effect("--origin")
def origin_replaces_the_same_host_rule(give):
    def status(server, origin):
        return server.connect("ab12", headers=["Origin: " + origin]).status
    with Server(*give("https://app.example.com"), *give("https://b.example")) as server:
        equal("listed", status(server, "https://app.example.com"), 101)
        equal("listed second", status(server, "https://b.example"), 101)
        equal("other scheme", status(server, "http://app.example.com"), 403)
        equal("same host", status(server, "http://127.0.0.1"), 403)
    with Server(*give("*")) as server:
        equal("any", status(server, "https://evil.example"), 101)
    with Server() as server:
        equal("same host by default", status(server, "https://127.0.0.1:1"), 101)
        equal("another by default", status(server, "https://app.example.com"), 403)


@effect("--client-secret-file")
def client_secret_file_lets_in_who_is_signed(give):  # and more in signed.py
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/secret", "w", encoding="utf-8") as file:
            file.write("s3cret\nother\nthird\n")
        with Server(*give(folder + "/secret")) as server:
            equal("without", server.connect("ab12").status, 403)
            for secret, want in (("s3cret", 101), ("other", 101), ("third", 403)):
                mac = hmac.new(secret.encode(), b"ab12.9999999999", "sha256").digest()
                signature = base64.urlsafe_b64encode(mac).decode().rstrip("=")
                client = server.connect("ab12.9999999999." + signature)
                equal("signed with " + secret, client.status, want)


def forwarded(server, *lines, source=None):
    """The status for a client with these X-Forwarded-For, and the peer that the log has for it."""
    headers = ["X-Forwarded-For: " + line for line in lines]
    before = len(server.events("open")) + len(server.events("refuse"))
    status = server.connect("ab12", headers=headers, source=source).status
    event = "open" if status == 101 else "refuse"
    poll("logged", lambda: len(server.events("open")) + len(server.events("refuse")) > before)
    return status, server.events(event)[-1]["peer"]


@effect("--trusted-proxy")
def trusted_proxy_names_the_peer(give):
    with Server(*give("127.0.0.1"), "--per-address", "2") as server:
        equal("rightmost", forwarded(server, "1.1.1.1, 203.0.113.7"), (101, "203.0.113.7"))
        equal("of the last line", forwarded(server, "1.1.1.1", "2.2.2.2,203.0.113.7:99"),
              (101, "203.0.113.7:99"))
        equal("one too many", forwarded(server, "203.0.113.7"), (429, "203.0.113.7"))
        equal("another", forwarded(server, "203.0.113.7, [2001:db8::1]:5"),
              (101, "[2001:db8::1]:5"))
        for words in ((), ("",), ("203.0.113.7, unknown",), ("203.0.113.7", "x")):
            status, peer = forwarded(server, *words)
            true("peer %s with %r" % (peer, words), peer.startswith("127.0.0.1:"))
            server.peers.pop().close()
            poll("gone", lambda: server.metric("exportws_sessions") == 3)
            equal("status with %r" % (words,), status, 101)
        if sys.platform == "linux":
            for _ in range(2):
                status, peer = forwarded(server, "203.0.113.7", source="127.0.0.2")
                true("peer %s of nobody's proxy" % peer, peer.startswith("127.0.0.2:"))
                equal("status of nobody's proxy", status, 101)
            equal("one too many of those", forwarded(server, "203.0.113.8", source="127.0.0.2")[0],
                  429)
        server.peers[0].close()
        poll("its place comes back", lambda: forwarded(server, "203.0.113.7")[0] == 101)


@effect("--trusted-proxy")
def trusted_proxy_may_be_a_network_or_a_unix_socket(give):
    with Server(*give("10.0.0.0/8"), *give("126.0.0.0/7")) as server:
        equal("network", forwarded(server, "203.0.113.7"), (101, "203.0.113.7"))
    with Server(*give("10.0.0.0/8"), *give("::1"), *give("unix:")) as server:
        status, peer = forwarded(server, "203.0.113.7")
        equal("status from elsewhere", status, 101)
        true("peer %s" % peer, peer.startswith("127.0.0.1:"))
    with tempfile.TemporaryDirectory() as folder:
        for proxy, peer in ((("127.0.0.1",), "unix"), (("127.0.0.1", "unix:"), "203.0.113.7")):
            options = [word for name in proxy for word in give(name)]
            with Server("--listen", "unix:%s/door" % folder, *options) as server:
                equal("over a Unix socket", forwarded(server, "203.0.113.7"), (101, peer))
    with tempfile.TemporaryDirectory() as folder:  # who is not named is one address with all others
        for options, want in (((), 429), (give("unix:"), 101)):
            with Server("--listen", "unix:%s/door" % folder, "--per-address", "1",
                        *options) as server:
                equal("the first", forwarded(server, "203.0.113.7")[0], 101)
                equal("another", forwarded(server, "203.0.113.8")[0], want)
    if has_ipv6():
        with Server("--listen", "[::1]:0", *give("::/64")) as server:
            equal("IPv6", forwarded(server, "::ffff:203.0.113.7"), (101, "203.0.113.7"))


@effect("--heartbeat")
def heartbeat_sets_the_text(give):
    with Server(*give("are you there?"), "--heartbeat-reply") as server:
        client = server.session("ab12")
        client.send(TEXT, b"HEART-BEAT")
        server.wait_event("message")
        client.send(TEXT, b"are you there?")
        equal("reply", client.receive(), (TEXT, b"are you there?"))
        equal("heartbeats", server.metric("exportws_heartbeats_total"), 1)


@test
def heartbeat_reply_sends_it_back():
    EFFECTS.add("--heartbeat-reply")
    for options, want in ((("--heartbeat-reply",), b"HEART-BEAT"), ((), b"pushed")):
        with Server(*options) as server:
            client = server.session("ab12")
            client.send(TEXT, b"HEART-BEAT")
            poll("counted", lambda: server.metric("exportws_heartbeats_total") == 1)
            server.send("ab12", "pushed")
            equal("first frame", client.receive(), (TEXT, want))


def demo(*options):
    """What a server with --demo serves at /, what that tells its script, and the server's hints."""
    with Server("--demo", *options) as server:
        page = Connection(server.clients).ask("GET", "/")
    tag = re.search('<html lang=\'en\' (?:[^>"]|"[^"]*")*>\n', page.body).group()
    told = {name: html.unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', tag)}
    hints = [line.split("event=start ")[1] for line in server.log if "event=start" in line][1:]
    return page, told, server, hints


@test
def demo_serves_a_page_that_knows_the_doors():
    EFFECTS.add("--demo")
    page, told, server, hints = demo()
    equal("status", page.status, 200)
    equal("told", told, {"path": PATH, "push": server.push})
    equal("hints", hints, ["page=http://%s/#demo" % server.clients,
                           "try=\"curl -d '37 %%' http://%s%sdemo\"" % (server.push, PATH)])
    with tempfile.TemporaryDirectory() as folder:
        secret, odd = os.path.join(folder, "secret"), '/a"&quot;&<b>\'/'
        with open(secret, "w") as file:
            file.write("s3cret\n")
        page, told, server, hints = demo("--push-secret-file", secret, "--path", odd,
                                         "--client-secret-file", secret,
                                         "--push", "unix:%s/a&\"b" % folder)
        equal("told of odd ones", told,
              {"path": odd, "push": 'unix:%s/a&"b' % folder, "secret": "1", "signed": "1"})
        equal("hints of a Unix socket", hints, ["page=http://%s/#demo" % server.clients])
        true("secret in the page", "s3cret" not in page.body)
        with Server("--demo", "--listen", "unix:" + folder + "/door") as server:
            equal("Unix socket", Connection(server.clients).ask("GET", "/").status, 200)
        true("page= of a Unix socket", not any(" page=" in line for line in server.log))
    equal("told of a shut door", demo("--push", "none")[1], {"path": PATH, "push": ""})
    equal("hints at --log warn", demo("--log", "warn")[3], [])
    with Server() as server:
        equal("without", Connection(server.clients).ask("GET", "/").status, 404)
    true("hints without", not any(" page=" in line for line in server.log))


@test
def demo_page_runs_nothing_but_itself():
    """The hashes in its policy are those of its one style and its one script."""
    page = demo()[0]
    policy = page.getheader("Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for name, sources, others in (("style", "style-src", ""), ("script", "script-src", "'self' ")):
        parts = re.findall("<%s>(.*?)</%s>" % (name, name), page.body, re.DOTALL)
        equal("number of " + name, len(parts), 1)
        digest = base64.b64encode(hashlib.sha256(parts[0].encode()).digest()).decode()
        equal(sources, rules.pop(sources), others + "'sha256-%s'" % digest)
    equal("other rules", rules, {"default-src": "'none'", "connect-src": "'self'",
                                 "img-src": "data:", "base-uri": "'none'",
                                 "form-action": "'none'", "frame-ancestors": "'none'"})
    equal("scripts from elsewhere", re.findall("<script src='(.*?)'>", page.body), ["/exportws.js"])
    true("inline style or handler", not re.search(r"<[^>]* (style|on\w+)=", page.body))


@effect("--log")
def log_filters_by_level(give):
    order = ("error", "warn", "info", "debug")
    lines = {}
    for level in order:
        with Server(*give(level), "--hold", "0") as server:
            client = server.session("abcdefgh")
            server.connect("abcdefgh", headers=["Origin: https://evil.example"])
            server.send("abcdefgh", "text")
            client.send(TEXT, b"text")
            poll("received", lambda: server.metric("exportws_messages_received_total") == 1)
        lines[level] = [log_fields(line) for line in server.log]
        for fields in lines[level]:
            heard = order[:order.index(level) + 1]
            true("%r at --log %s" % (fields, level), fields["level"] in heard)
    equal("lines of a good day at --log error", lines["error"], [])
    events = {fields["event"] for fields in lines["info"]}
    true("info lacks an event: %r" % events,
         {"start", "open", "refuse", "push", "message", "close", "stop"} <= events)
    for level, want in (("info", "abcd…"), ("debug", "abcdefgh")):
        tokens = {fields["token"] for fields in lines[level] if fields["event"] == "open"}
        equal("tokens at --log " + level, tokens, {want})


@test
def secret_files_that_are_no_secret_are_refused():
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/secret"
        for option in ("--push-secret-file", "--client-secret-file"):
            for content, why in ((b"", "empty"), (b"\n", "empty"), (b"\r\nx\n", "empty"),
                                 (b"\nsecret\n", "empty"), (b"x\0y\n", "NUL"), (b"\0", "NUL"),
                                 (b"x" * 1023, "too long"), (b"x" * 5000 + b"\n", "too long")):
                with open(path, "wb") as file:
                    file.write(content)
                refused(option, 2, *ANYWHERE, option, path)
                true("no reason %r" % why, why in attempt(*ANYWHERE, option, path)[2])
            refused(option, 2, *ANYWHERE, option, folder)
        with open(path, "wb") as file:
            file.write(b"x" * 500 + b"\n" + b"y" * 600 + b"\n")
        refused("--client-secret-file", 2, *ANYWHERE, "--client-secret-file", path)
        with Server("--push-secret-file", path) as server:  # one line counts
            given = {"Authorization": "Bearer " + "x" * 500}
            equal("status", server.ask("GET", "/online", headers=given).status, 200)


@test
def lists_end_at_64():
    for name, value in (("--origin", "http://a"), ("--trusted-proxy", "127.0.0.1")):
        equal("64 times " + name, attempt("--memory", *[name, value] * 64)[0], 0)
        refused(name, 2, *ANYWHERE, *[name, value] * 65)


# ===== --check =====

def check(*options, limits=":"):
    """What --check says: its status, and {what: (ok or FAIL, value)}."""
    status, out, err = attempt("--check", *options, limits=limits)
    equal("stderr of --check", err, "")
    rows = {}
    for line in out.splitlines():
        row = re.fullmatch(r"(ok|FAIL)  +(\w+) +(.*)", line)
        true("line of --check: %r" % line, row)
        rows[row[2]] = (row[1], row[3])
    return status, rows


@test
def check_says_what_is_needed_and_leaves_nothing():
    EFFECTS.add("--check")
    with tempfile.TemporaryDirectory() as folder:
        port, door = free_port(), "unix:" + folder + "/door"
        options = ("--listen", "127.0.0.1:%d" % port, "--push", door, "--capacity", "500")
        for _ in range(2):
            status, rows = check(*options, limits="ulimit -Sn 64")
            need = re.fullmatch(r"(\d+) needed, soft limit 64, hard limit \d+",
                                rows["descriptors"][1])
            true("descriptors: %r" % (rows["descriptors"],), need)
            equal("descriptors", int(need[1]), 500 + 256 + 64 + 2 + 16)
            del rows["descriptors"]
            equal("the rest", (status, rows), (0, {
                "memory": ("ok", "%d bytes" % memory_of(*options)),
                "clients": ("ok", "127.0.0.1:%d" % port), "push": ("ok", door)}))
            equal("left in the folder", os.listdir(folder), [])
        equal("push door closed", check(*ANYWHERE, "--push=none")[1].keys(),
              {"memory", "clients", "descriptors"})
        with Server(*options) as server:
            server.session("ab12")


@test
def check_names_the_door_that_is_taken():
    with tempfile.TemporaryDirectory() as folder:
        with Server("--push", "unix:" + folder + "/door") as server:
            client = server.session("ab12")
            for listen, push, want in (
                    (server.clients, "127.0.0.1:0", ("FAIL", "ok")),
                    ("127.0.0.1:0", server.push, ("ok", "FAIL")),
                    (server.clients, server.push, ("FAIL", "FAIL")),
                    (server.clients, "none", ("FAIL", None))):
                status, rows = check("--listen", listen, "--push", push)
                got = rows["clients"][0], rows.get("push", (None,))[0]
                equal("with %s and %s" % (listen, push), (status, got), (1, want))
                for name, address in (("clients", listen), ("push", push)):
                    if rows.get(name, ("",))[0] == "FAIL":
                        reason = rows[name][1] # the last words are the C library's own
                        true(reason, reason.startswith("%s: cannot listen on %s: Address " %
                                                       (address, address)) and "in use" in reason)
            server.send("ab12", "not disturbed")
            equal("frame", client.receive(), (TEXT, b"not disturbed"))
    address = "127.0.0.1:%d" % free_port()
    status, rows = check("--listen", address, "--push", address)
    equal("the same for both", (status, rows["both"][0]), (1, "FAIL"))
    true("reason %r" % rows["both"][1], "in use" in rows["both"][1])


@test
def check_tells_of_too_few_descriptors():
    status, rows = check(*ANYWHERE, "--capacity", "500", limits="ulimit -n 64")
    equal("status and row", (status, rows["descriptors"]), (
        1, ("FAIL", "838 needed, soft limit 64, hard limit 64: raise the hard limit")))
    status, rows = check(*ANYWHERE, "--capacity", "500", limits="ulimit -n 838")
    equal("just enough", (status, rows["descriptors"][0]), (0, "ok"))
    status, rows = check(*ANYWHERE, "--capacity", "500", limits="ulimit -n 837")
    equal("one less", (status, rows["descriptors"][0]), (1, "FAIL"))


@test
def check_tells_of_too_little_memory():
    limits = "ulimit -v 300000"
    if attempt("--version", limits=limits)[0] != 0:
        raise Skip("this build does not run under a memory limit")
    status, rows = check(*ANYWHERE, "--buffer", "1g", limits=limits)
    equal("status and row", (status, rows["memory"][0]), (1, "FAIL"))
    true("reason %r" % rows["memory"][1], rows["memory"][1].endswith(" bytes: out of memory"))


@test
def check_takes_and_refuses_the_same_options():
    for words in (("--capacity", "0"), ("--listen", "nonsense"), ("--nope",), ("--check=1",)):
        refused(words[0].split("=")[0], 2, "--check", *words)


# ===== Memory, version, help =====

def memory_of(*options):
    status, out, err = attempt("--memory", *options)
    equal("--memory", (status, err, bool(re.fullmatch(r"[1-9]\d*\n", out))), (0, "", True))
    return int(out)


@test
def memory_is_what_the_server_then_says():
    EFFECTS.add("--memory")
    for options in ((), ("--capacity", "10"), ("--capacity=5000", "--buffer=1m", "--queue=100")):
        told = memory_of(*options)
        with Server(*options) as server:
            equal("memory of the ready line", int(server.ready["memory"]), told)
            equal("memory of /metrics", server.metric("exportws_memory_bytes"), told)


@test
def memory_of_a_session_is_at_most_256_bytes():
    more = memory_of("--capacity", "20000") - memory_of("--capacity", "10000")
    between("bytes", more / 10000, 1, 256)


@test
def version_is_that_of_the_ready_line():
    EFFECTS.add("--version")
    with Server() as server:
        equal("--version", attempt("--version"), (0, "exportws %s\n" % server.ready["version"], ""))


def help_entries():
    """The part of --help that belongs to each option, on one line."""
    status, out, err = attempt("--help")
    equal("status and stderr of --help", (status, err), (0, ""))
    parts = re.split(r"^ *(--[a-z-]+)", out, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2])}


@test
def help_lists_every_option_and_no_other():
    EFFECTS.add("--help")
    want = {option.name for option in OPTIONS} | LATER
    equal("options", sorted(set(help_entries()) | LATER), sorted(want))


@test
def help_shows_defaults_and_units():
    entries = help_entries()
    for option in OPTIONS:
        text = entries.get(option.name, "")
        for what in (option.default, option.unit):
            pattern = r"(?<![\w.])" + re.escape(what) + r"(?![\w.])" if what else ""
            true("help of %s lacks %s: %s" % (option.name, what, text), re.search(pattern, text))


@test
def bounds_without_options_are_those_of_help():
    with Server() as server:
        equal("capacity", server.ready["capacity"], "1024")
        equal("longest token", server.connect("x" * 64).status, 101)
        equal("longer token", server.connect("x" * 65).status, 414)
        server.send("absent", "x" * 65536, want=202)
        server.send("absent", "x" * 65537, want=413)
        client = server.session("talker")
        client.send(TEXT, b"x" * 4096)
        server.wait_event("message")
        client.send(TEXT, b"x" * 4097)
        equal("close code", client.close_code(), 1009)
        sessions = [server.session("ab12") for _ in range(9)]
        equal("close code of the first of nine", sessions[0].close_code(), 4001)
        pushers = [Connection(server.push) for _ in range(65)]
        statuses = [pusher.ask("GET", "/healthz").status for pusher in pushers]
        equal("pushers served and refused", (statuses.count(200), statuses[64]), (64, 503))
        for pusher in pushers:
            pusher.close()


@test
def every_option_is_tested_for_its_effect():
    equal("options without", {option.name for option in OPTIONS} - EFFECTS, set())


# ===== Errors =====

def refused(name, status, *options, limits=":"):
    """The program ends with this status and one line on stderr, which holds `name`."""
    got, out, err = attempt(*options, limits=limits)
    shown = " ".join(options[-2:])[:80]
    equal("status of " + shown, got, status)
    equal("stdout of " + shown, out, "")
    true("stderr of %s is not one line that names %s: %r" % (shown, name, err),
         err.count("\n") == 1 and err.endswith("\n") and name in err)


def register_garbage(option):
    spellings = [(option.name + "=" + value,) for value in option.garbage]
    if option.name not in FLAGS:
        spellings += [(option.name, value) for value in option.garbage] + [(option.name,)]

    def body():
        faults = []
        for words in spellings:
            try:
                refused(option.name, 2, *ANYWHERE, *words)
            except Failure as fault:
                faults.append(str(fault))
        true("; ".join(faults), not faults)
    TESTS.append((option.name.strip("-").replace("-", "_") + "_refuses_garbage", body))


for row in OPTIONS:
    register_garbage(row)


@test
def unknown_options_and_operands_are_refused():
    for name, words in (("--nope", ("--nope",)), ("--nope", ("--nope=1",)), ("-h", ("-h",)),
                        ("-c", ("-c", "1")), ("--capac", ("--capac", "3")),
                        ("--capac", ("--capac=3",)), ("--Capacity", ("--Capacity", "3")),
                        ("stray", ("stray",)), ("stray", ("--capacity", "3", "stray")),
                        ("", ("",))):
        refused(name, 2, *words)


@test
def errors_name_the_range():
    for name, value, want in (
            ("--capacity", "0", "1 to 1000000"), ("--ping", "0", "0.001 to 86400"),
            ("--hold", "86401", "0 to 86400"), ("--buffer", "1", "1024 to 68719476736")):
        refused("'%s' is out of range: %s\n" % (value, want), 2, name, value)


@test
def secret_longer_than_a_line_is_refused():
    with tempfile.TemporaryDirectory() as folder:
        for size, status in ((1022, 0), (1023, 2), (5000, 2)):
            with open(folder + "/secret", "w", encoding="ascii") as file:
                file.write("s" * size)
            words = ("--memory", "--push-secret-file", folder + "/secret")
            if status == 0:
                memory_of(*words)
            else:
                refused("has too long a first line", status, *words)


@test
def origins_are_64_at_most():
    words = ["--origin=https://%d.example" % i for i in range(65)]
    memory_of(*words[:64])
    refused("'https://64.example' is one too many", 2, *words)


@test
def closed_output_is_no_trouble():
    for words in (("--help",), ("--version",), ("--memory",)):
        equal(words[0], attempt(*words, limits="exec >&-"), (0, "", ""))
    equal("--nope", attempt("--nope", limits="exec 2>&-"), (2, "", ""))


@test
def errors_escape_what_was_typed():
    status, out, err = attempt("--capacity=1\x1b[31m\n2")
    equal("status and stdout", (status, out), (2, ""))
    true("stderr %r" % err, err.count("\n") == 1 and err.rstrip("\n").isprintable())


@test
def address_in_use_is_one_line_and_exit_1():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        refused(address, 1, "--listen", address, "--push", "127.0.0.1:0")
        refused(address, 1, "--listen", "127.0.0.1:0", "--push", address)
    missing = "unix:/nonexistent/folder/door"
    refused(missing, 1, "--listen", missing, "--push", "127.0.0.1:0")


@test
def out_of_memory_at_start_is_one_line_and_exit_1():
    limits = "ulimit -v 300000"
    if attempt("--version", limits=limits)[0] != 0:
        raise Skip("this build does not run under a memory limit")
    refused("memory", 1, *ANYWHERE, "--buffer", "1g", limits=limits)


@test
def soft_descriptor_limit_is_raised():
    if not os.path.exists("/proc/self/limits"):
        raise Skip("no /proc to read limits from")
    with Server("--capacity", "500", limits="ulimit -Sn 64") as server:
        with open("/proc/%d/limits" % server.process.pid, encoding="ascii") as file:
            soft = int(re.search(r"Max open files +(\d+)", file.read())[1])
        between("soft limit", soft, 500 + 256 + 64, 65536)
    equal("warnings", [line for line in server.log if "level=warn" in line], [])


@test
def hard_descriptor_limit_is_warned_of_with_the_figure():
    with Server("--capacity", "500", limits="ulimit -n 64") as server:
        server.session("ab12")
    warnings = [line for line in server.log if "level=warn" in line]
    equal("warnings", len(warnings), 1)
    fields = log_fields(warnings[0])
    equal("figures", (fields["descriptors"], fields["needed"]), ("64", "838"))
    with Server("--capacity", "500", "--log", "error", limits="ulimit -n 64") as server:
        server.session("ab12")
    equal("lines at --log error", server.log, [])


@test
def push_door_that_others_reach_without_a_secret_is_warned_of():
    def warnings(*options):
        with Server(*options) as server:
            server.session("ab12")
        return [log_fields(line) for line in server.log if "level=warn" in line], server
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/secret", "w", encoding="utf-8") as file:
            file.write("s3cret\n")
        for door in (":0", "0.0.0.0:0"):
            told, server = warnings("--push", door)
            equal("warnings", [(row["event"], row["push"]) for row in told],
                  [("start", server.push)])
            true("no --push-secret-file: %r" % told, "--push-secret-file" in told[0]["why"])
            equal("with a secret", warnings("--push", door, "--push-secret-file",
                                            folder + "/secret")[0], [])
            equal("at --log error", warnings("--push", door, "--log", "error")[0], [])
        for door in ("127.0.0.1:0", "127.0.0.2:0", "[::1]:0", "unix:" + folder + "/door", "none"):
            equal(door, warnings("--push", door)[0], [])


# ===== The log =====

@test
def every_event_is_logged():
    with Server("--hold", "0.2", "--close-timeout", "0.2") as server:
        client = server.session("abcdefgh")
        equal("refused", server.connect("", path="/nothing").status, 404)
        client.send(TEXT, b"from the client")
        server.send("abcdefgh", "to the client")
        server.send("absent-token", "held", want=202)
        server.wait_event("expire")
        client.send(CLOSE, b"\x03\xe8")
        client.wait_end()
        server.wait_event("close")
    for name in ("start", "open", "refuse", "message", "push", "hold", "expire", "close", "drain",
                 "stop"):
        true("no event=" + name, server.events(name))
    opened, closed, refuse = (server.events(name)[0] for name in ("open", "close", "refuse"))
    equal("open", (opened["token"], opened["online"], opened["sessions"]), ("abcd…", "1", "1"))
    true("peer %r" % opened["peer"], re.fullmatch(r"127\.0\.0\.1:\d+", opened["peer"]))
    equal("close", (closed["token"], closed["reason"], closed["code"]), ("abcd…", "peer", "1000"))
    true("refuse without 404: %r" % refuse, "404" in refuse.values())
    ends = [log_fields(server.log[place])["event"] for place in (0, -1)]
    equal("first and last event", ends, ["start", "stop"])


def settled(probe):
    """What probe() answers once it has not changed for a while."""
    answers = [probe()]
    for _ in range(1000):
        time.sleep(0.02)
        answers.append(probe())
        if len(set(answers[-10:])) == 1 and len(answers) >= 10:
            break
    return answers[-1]


@test
def signal_loses_no_line_of_a_log_that_is_read_slowly():
    """The pipe is full, the server waits in write(), and then is told to stop."""
    asked = b"".join(b"POST %s%04d HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n" %
                     (PATH.encode(), i) for i in range(1500))
    reading, writing = os.pipe()
    with subprocess.Popen([PROGRAM, *ANYWHERE], stdout=subprocess.PIPE, stderr=writing) as process:
        os.close(writing)
        try:
            ready = READY.fullmatch(process.stdout.readline().decode().rstrip("\n"))
            with dial(ready["push"]) as sock:
                sock.sendall(asked)
                waiting = settled(lambda: fcntl.ioctl(reading, termios.FIONREAD, b"\0" * 4))
                true("the log's pipe is empty", int.from_bytes(waiting, sys.byteorder) > 4000)
                process.terminate()
                time.sleep(0.1)
            with open(reading, encoding="utf-8") as pipe:
                lines = pipe.read().split("\n")
            equal("exit status", process.wait(DEADLINE), 0)
        finally:
            process.kill()
    faults = [fault for fault in map(log_fault, lines[:-1]) if fault]
    equal("faults of the log", (faults, lines[-1]), ([], ""))
    events = [log_fields(line) for line in lines[:-1]]
    tokens = [fields["token"] for fields in events if fields["event"] == "hold"]
    true("only %d lines" % len(tokens), len(tokens) > 100)
    equal("lost", [i for i in range(len(tokens)) if "%04d…" % i not in tokens], [])
    equal("last event", events[-1]["event"], "stop")


@test
def tokens_are_cut_and_bodies_left_out():
    with Server("--hold", "0.2") as server:
        client = server.session("abcd-secret-1")
        server.send("abcd-secret-1", "https://files/link-of-the-file")
        server.send("efgh-secret-2", "https://files/link-of-the-file", want=202)
        server.connect("ijkl-secret-3", headers=["Origin: https://evil.example"])
        server.ask("GET", PATH + "mnop-secret-4")
        server.ask("PUT", PATH + "mnop-secret-4", "x")
        server.ask("DELETE", PATH + "abcd-secret-1")
        equal("frame", client.receive(), (TEXT, b"https://files/link-of-the-file"))
        server.wait_event("expire")
    log = "\n".join(server.log)
    for text in ("secret", "link-of"):
        true("the log shows %r" % text, text not in log)
    true("the log lacks the cut token", "token=abcd… " in log + " ")


@test
def broadcast_is_one_log_line():
    with Server() as server:
        for number in range(20):
            server.session("token-%d" % number)
        before = len(server.wait_event("open", 20))
        server.send("", "x" * 60000)
        server.wait_event("push")
        equal("lines", (before, len(server.events("push"))), (20, 1))
        true("a line of the log is long", max(map(len, server.log)) < 300)


@test
def text_from_outside_cannot_forge_log_lines():
    line = "x\r\ntime=2026-01-01T00:00:00Z level=error event=open token=forged\x1b[2J\x7f\" \\ "
    encoded = "".join("%%%02X" % byte for byte in line.encode())
    with Server("--log", "debug", "--max-token", "200") as server:
        client = server.session(encoded)
        server.session("caf%C3%A9%FF")
        client.send(TEXT, line.encode())
        client.send(2, b"\x00\xff" + line.encode())
        server.wait_event("message", 2)
        server.ask("POST", PATH + encoded, line)
        server.ask("GET", "/" + encoded)
        server.connect(encoded, path="/")
        server.connect(encoded + "?" + encoded)
        server.connect("ab12", headers=['Origin: http://"evil\t forged=1', "X: \x1b[2J\xff"])
        client.send(CLOSE, b"\x03\xe8" + line.encode()[:100])
        client.wait_end()
    for entry in server.log:  # their shape is checked when the server ends
        fields = log_fields(entry)
        true("forged line %r" % entry, fields.get("token") != "forged" and "forged" not in fields)
        true("forged time %r" % entry, not entry.startswith("time=2026-01-01T00:00:00Z"))


# A sanitizer or valgrind needs more address space than these leave it.
WITH_A_MEMORY_LIMIT = (check_tells_of_too_little_memory,
                       out_of_memory_at_start_is_one_line_and_exit_1)

if __name__ == "__main__":
    run([pair for pair in TESTS
         if not (os.environ.get("EXPORTWS_TEST_WATCHED") and pair[1] in WITH_A_MEMORY_LIMIT)], 4)
