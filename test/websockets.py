#!/usr/bin/env python3
"""exportws against a WebSocket client that nobody here wrote: the websockets package of Python.

Environment: EXPORTWS, the server (./exportws). Prints a line for every test; arguments pick
tests by a part of their name.
"""
import asyncio
import signal
import sys
import time
import urllib.parse

sys.dont_write_bytecode = True
HERE = sys.path.pop(0)  # this file is named like the package and must not stand in for it
try:
    import websockets
except ImportError:
    print("skip websockets: this python3 has no websockets package")
    sys.exit(0)
sys.path.append(HERE)
from harness import (PATH, Client, Server, between, dial, equal, poll, read_head,  # noqa: E402
                     run, true)

PATIENCE = 10  # seconds for what should happen at once


# ===== The package, old and new =====

def url(server, token):
    return "ws://" + server.clients + PATH + urllib.parse.quote(token)


def connect(server, token, **how):
    how.setdefault("ping_interval", None)
    return websockets.connect(url(server, token), **how)


async def receive(session):
    return await asyncio.wait_for(session.recv(), PATIENCE)


async def close_code(session):
    """The code that the server closed with."""
    await asyncio.wait_for(session.wait_closed(), PATIENCE)
    return session.close_code


async def refused(server, token, **how):
    """The HTTP status that refused the upgrade, 101 when it was accepted."""
    try:
        async with connect(server, token, **how):
            return 101
    except websockets.exceptions.InvalidHandshake as error:
        return error.status_code if hasattr(error, "status_code") else error.response.status_code


async def aside(function, *arguments):
    """Runs what blocks in a thread, so that sessions go on answering."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def push_in_pieces(server, token, body):
    """A push whose body leaves only when the server has read the head; its status."""
    with dial(server.push) as sock:
        head = ("POST %s%s HTTP/1.1" % (PATH, token), "Host: localhost", "Expect: 100-continue",
                "Content-Length: %d" % len(body), "", "")
        sock.sendall("\r\n".join(head).encode())
        equal("status before the body", read_head(sock)[0], 100)
        sock.sendall(body)
        return read_head(sock)[0]


def terminate(server):
    server.process.send_signal(signal.SIGTERM)


# ===== The tests: each gets its options by decoration and a running server =====

TESTS = []


def test(*options):
    def register(function):
        def body():
            with Server(*options) as server:
                asyncio.run(asyncio.wait_for(function(server), 20))
        TESTS.append((function.__name__, body))
        return function
    return register


@test()
async def connects_without_extension_or_subprotocol(server):
    async with connect(server, "ab12", compression="deflate", subprotocols=["other"]) as session:
        equal("subprotocol", session.subprotocol, None)
        owner = session if hasattr(session, "extensions") else session.protocol
        equal("extensions", list(owner.extensions), [])
        equal("sessions", server.metric("exportws_sessions"), 1)
    poll("slot comes back", lambda: server.metric("exportws_sessions") == 0)
    closed = server.wait_event("close")
    equal("reason and code", (closed[0]["reason"], closed[0]["code"]), ("peer", "1000"))


@test()
async def direct_push_reaches_its_token_alone(server):
    async with connect(server, "ab12") as mine, connect(server, "cd34") as other:
        server.send("ab12", "37 %")
        equal("message", await receive(mine), "37 %")
        server.send("cd34", "the first for the other")
        equal("message of the other", await receive(other), "the first for the other")


@test()
async def broadcast_reaches_every_session_once(server):
    async with connect(server, "a") as one, connect(server, "b") as two, \
            connect(server, "b") as three:
        answer = server.send("", "back at 5")
        true("answer %s" % answer.body, '"delivered":3' in answer.body)
        server.send("", "end")
        for session in (one, two, three):
            equal("first message", await receive(session), "back at 5")
            equal("second message", await receive(session), "end")


@test()
async def binary_push_arrives_as_bytes(server):
    data = bytes(range(256))
    async with connect(server, "ab12") as session:
        server.send("ab12", data, headers={"Content-Type": "application/octet-stream"})
        equal("message", await receive(session), data)


@test()
async def largest_push_arrives_whole(server):
    text = "".join("%07d " % number for number in range(8192))
    async with connect(server, "ab12") as session:
        server.send("ab12", text)
        true("message differs", await receive(session) == text)


@test()
async def utf8_push_arrives_as_text(server):
    async with connect(server, "ab12") as session:
        server.send("ab12", "fertig: 100 % – готово 🎉".encode())
        equal("message", await receive(session), "fertig: 100 % – готово 🎉")


@test()
async def held_messages_arrive_in_order_on_connect(server):
    for number in range(10):
        server.send("late", "step %d" % number, want=202)
    async with connect(server, "late") as session:
        for number in range(10):
            equal("message", await receive(session), "step %d" % number)


@test()
async def every_session_of_a_token_gets_its_messages(server):
    async with connect(server, "ab12") as first:
        async with connect(server, "ab12") as second:
            server.send("ab12", "both")
            equal("messages", (await receive(first), await receive(second)), ("both", "both"))
        poll("one session left", lambda: server.metric("exportws_sessions") == 1)
        server.send("ab12", "the one that is left")
        equal("message", await receive(first), "the one that is left")


@test("--max-message", "100")
async def message_past_max_is_closed_1009(server):
    async with connect(server, "ab12") as session, connect(server, "other") as other:
        await session.send("x" * 100)
        server.wait_event("message")
        await session.send("x" * 101)
        equal("close code", await close_code(session), 1009)
        server.send("other", "not touched")
        equal("message of the other", await receive(other), "not touched")
        equal("messages received", server.metric("exportws_messages_received_total"), 1)


@test("--max-message", "100")
async def fragments_past_max_are_closed_1009(server):
    async with connect(server, "ab12") as session:
        try:
            await session.send(["x" * 60, "x" * 60])
        except websockets.exceptions.ConnectionClosed:
            pass
        equal("close code", await close_code(session), 1009)


@test("--heartbeat-reply")
async def fragments_from_the_client_are_one_message(server):
    async with connect(server, "ab12") as session:
        await session.send(["HEART", "-", "BEAT"])
        equal("reply", await receive(session), "HEART-BEAT")
        await session.send(["one ", "message"])
        server.wait_event("message")
        equal("messages received", server.metric("exportws_messages_received_total"), 1)


@test("--ping", "0.2", "--pong", "0.3")
async def answering_pings_keeps_a_silent_session(server):
    async with connect(server, "ab12") as session:
        await asyncio.sleep(2)
        sent = server.metric("exportws_pings_total")
        true("%d pings in two seconds" % sent, 4 <= sent <= 10)
        server.send("ab12", "still there")
        equal("message", await receive(session), "still there")


@test()
async def ping_is_answered_with_its_payload(server):
    async with connect(server, "ab12") as session:
        for payload in (b"", b"one", b"x" * 125):
            await asyncio.wait_for(await session.ping(payload), PATIENCE)


@test()
async def heartbeat_is_swallowed(server):
    async with connect(server, "ab12") as session:
        await session.send("HEART-BEAT")
        poll("heartbeat counted", lambda: server.metric("exportws_heartbeats_total") == 1)
        server.send("ab12", "first")
        equal("message", await receive(session), "first")
        await session.send("HEART-BEAT!")
        server.wait_event("message")
        equal("heartbeats", server.metric("exportws_heartbeats_total"), 1)
        equal("messages received", server.metric("exportws_messages_received_total"), 1)


@test("--heartbeat-reply")
async def heartbeat_is_echoed_with_heartbeat_reply(server):
    async with connect(server, "ab12") as session:
        await session.send("HEART-BEAT")
        equal("reply", await receive(session), "HEART-BEAT")
        equal("heartbeats", server.metric("exportws_heartbeats_total"), 1)


@test()
async def delete_closes_1000(server):
    async with connect(server, "ab12") as session, connect(server, "other") as other:
        server.send("ab12", "last")
        equal("answer", server.ask("DELETE", PATH + "ab12").body.strip(), '{"closed":1}')
        equal("message before the close", await receive(session), "last")
        equal("close code", await close_code(session), 1000)
        server.send("other", "not touched")
        equal("message of the other", await receive(other), "not touched")
    closed = server.wait_event("close")
    equal("reason and code", (closed[0]["reason"], closed[0]["code"]), ("ended", "1000"))


@test("--per-token", "2")
async def oldest_session_is_replaced_4001(server):
    async with connect(server, "ab12") as first, connect(server, "ab12") as second:
        async with connect(server, "ab12") as third:
            equal("close code of the oldest", await close_code(first), 4001)
            server.send("ab12", "to two")
            equal("messages", (await receive(second), await receive(third)), ("to two", "to two"))


@test()
async def sigterm_closes_1001_and_exits_0(server):
    async with connect(server, "ab12") as one, connect(server, "cd34") as two:
        began = time.monotonic()
        terminate(server)
        equal("close codes", (await close_code(one), await close_code(two)), (1001, 1001))
        equal("exit status", await aside(server.wait), 0)
        between("seconds until the exit", time.monotonic() - began, 0, 4)
    equal("drain logged", len(server.events("drain")), 1)
    equal("stop logged", len(server.events("stop")), 1)


@test()
async def sigint_drains_too(server):
    async with connect(server, "ab12") as session:
        server.process.send_signal(signal.SIGINT)
        equal("close code", await close_code(session), 1001)
        equal("exit status", await aside(server.wait), 0)


@test("--drain", "30", "--close-timeout", "30")
async def draining_refuses_newcomers_and_says_so(server):
    mute = Client(server.clients, PATH + "mute")  # answers no close: the drain has to wait for it
    terminate(server)
    await aside(poll, "draining", lambda: server.ask("GET", "/healthz").status == 503)
    equal("health", server.ask("GET", "/healthz").body.strip(), '{"status":"draining"}')
    equal("status for a newcomer", await refused(server, "late"), 503)
    true("the server waits", server.process.poll() is None)
    mute.send(8, b"\x03\xe9")
    mute.close()
    equal("exit status", await aside(server.wait), 0)


async def second_signal_exits_at_once():
    server = Server("--drain", "30", "--close-timeout", "30")
    try:
        mute = Client(server.clients, PATH + "mute")
        terminate(server)
        equal("close code", await aside(mute.close_code), 1001)
        true("the server waits", server.process.poll() is None)
        began = time.monotonic()
        terminate(server)
        await aside(server.wait)
        between("seconds until the exit", time.monotonic() - began, 0, 2)
        mute.close()
    finally:
        server.kill()


@test()
async def origin_must_be_the_host(server):
    host, port = server.clients.split(":")
    for origin, want in (("http://" + host, 101), ("https://%s:1" % host, 101),
                         ("http://%s:%s" % (host, port), 101), ("http://evil.example", 403),
                         ("http://%s.evil.example" % host, 403), ("null", 403)):
        equal("status for " + origin, await refused(server, "ab12", origin=origin), want)
    equal("status without", await refused(server, "ab12"), 101)


@test("--origin", "https://app.example.com", "--origin=https://b.example:8443")
async def listed_origins_alone_may_connect(server):
    for origin, want in (("https://app.example.com", 101), ("https://b.example:8443", 101),
                         ("http://app.example.com", 403), ("https://b.example", 403),
                         ("https://app.example.com.evil.example", 403),
                         ("http://" + server.clients, 403)):
        equal("status for " + origin, await refused(server, "ab12", origin=origin), want)


@test("--origin", "*")
async def star_allows_any_origin(server):
    for origin in ("http://evil.example", "null", "https://app.example.com"):
        equal("status for " + origin, await refused(server, "ab12", origin=origin), 101)


@test()
async def token_may_hold_utf8_and_spaces(server):
    token = "zürich büro 東京 %?#&+"
    async with connect(server, token) as session:
        server.send(token, "to the name")
        equal("message", await receive(session), "to the name")
        every_byte = "".join("%%%02x" % byte for byte in token.encode())
        equal("status", server.ask("POST", PATH + every_byte, "to the bytes").status, 200)
        equal("message", await receive(session), "to the bytes")
        longer = urllib.parse.quote(token + " ")
        equal("status of a longer token", server.ask("GET", PATH + longer).status, 404)


@test()
async def held_messages_that_fill_the_buffer_stop_no_live_push(server):
    async with connect(server, "ab12") as session:
        held = 0
        while server.ask("POST", PATH + "absent", "x" * 60000).status == 202:
            held += 1
        true("%d messages held" % held, 30 <= held <= 70)
        for size in (10, 1000, 60000):
            equal("status", push_in_pieces(server, "ab12", b"x" * size), 200)
            equal("length of the message", len(await receive(session)), size)


@test("--capacity", "2")
async def full_table_refuses_503_until_one_leaves(server):
    async with connect(server, "a"):
        async with connect(server, "b"):
            equal("status of the third", await refused(server, "c"), 503)
        poll("slot comes back", lambda: server.metric("exportws_sessions") == 1)
        equal("status once there is room", await refused(server, "c"), 101)


@test()
async def fifty_sessions_get_a_hundred_messages_in_order(server):
    sessions = [await connect(server, "token %d" % number) for number in range(50)]
    for number in range(100):
        token = "" if number % 2 else "token %d" % (number // 2)
        await aside(server.send, token, "message %d" % number)
    for place, session in enumerate(sessions):
        want = ["message %d" % number for number in range(100)
                if number % 2 or number // 2 == place]
        equal("messages of session %d" % place, [await receive(session) for _ in want], want)
    await asyncio.gather(*(session.close() for session in sessions))


TESTS.append(("second_signal_exits_at_once", lambda: asyncio.run(second_signal_exits_at_once())))

if __name__ == "__main__":
    run(TESTS, 3)
