#!/usr/bin/env python3
"""Attacks the running server in every way at once, while well-behaved peers must notice nothing.

    test/attack.py [SECONDS]     how long (120); EXPORTWS is the server (./exportws)

Each attack is a process of its own, at a lower priority: attackers are other machines, and it is
the server that is measured. A further process holds the steady clients, their pusher, and the
newcomers. The peers are told apart by their addresses in 127.0.0.0/8, so --per-address counts as
it would outside. Prints "ok NAME" or "not ok NAME: WHY" lines, and "# " lines with the figures.
"""
import collections
import concurrent.futures
import json
import multiprocessing
import os
import random
import select
import shlex
import socket
import struct
import sys
import tempfile
import threading
import time

from harness import (CLOSE, PATH, PING, PONG, TEXT, Client, Connection, Failure, Server,
                     dial, equal, log_fault, outcome, poll, read_head, true)

CAPACITY, HANDSHAKES, PUSHERS, PER_ADDRESS = 64, 128, 64, 8
MAX_TOKEN, MAX_MESSAGE, MAX_PUSH = 64, 4096, 65536
CLOSE_SECONDS = 1
OPTIONS = ("--capacity=%d" % CAPACITY, "--handshakes=%d" % HANDSHAKES, "--pushers=%d" % PUSHERS,
           "--per-address=%d" % PER_ADDRESS, "--max-token=%d" % MAX_TOKEN,
           "--max-message=%d" % MAX_MESSAGE, "--max-push=%d" % MAX_PUSH, "--buffer=256k",
           "--hold=3", "--ping=1", "--pong=2", "--handshake-timeout=3", "--write-timeout=3",
           "--close-timeout=%d" % CLOSE_SECONDS)

FLOOD_PER_SECOND = 10000 / 120.0
STEADY = 4                 # well-behaved clients that stay
PUSH_PAUSE = 0.025
BROADCAST_EVERY = 20       # pushes to one token
NEWCOMER_PAUSE, NEWCOMER_SECONDS = 0.5, 3.0
P99_SECONDS = 0.250
GROWTH_KB = 64             # from the first half to the second
CODE_KB = 512              # pages of the program and of libc that are read in when first run

# What each process is told; all times are of the monotonic clock, which they share.
Plan = collections.namedtuple("Plan", "clients push secret begin end squat_begin squat_end")


def running(plan):
    return time.monotonic() < plan.end


def sleep_until(moment):
    time.sleep(max(0.0, moment - time.monotonic()))


def bearer(plan):
    return {"Authorization": "Bearer " + plan.secret}


# ===== Sockets of the attackers =====

def upgrade_head(token, *more):
    return "\r\n".join(["GET %s HTTP/1.1" % (PATH + token), "Host: localhost", "Upgrade: websocket",
                        "Connection: Upgrade", "Sec-WebSocket-Version: 13",
                        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *more, "", ""]).encode()


class Pusher(Connection):
    """A connection to the push door that does not wait for an ACK between head and body."""

    def connect(self):
        super().connect()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def dial_unwaiting(plan, source, counts):
    """A connected non-blocking socket, or None."""
    try:
        sock = dial(plan.clients, source=source)
    except OSError:
        counts["not connected"] += 1
        return None
    sock.setblocking(False)
    counts["connected"] += 1
    return sock


def is_over(sock, counts):
    """Whether the server has answered or hung up; then the status is counted, the socket closed."""
    try:
        data = sock.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        data = b""
    counts[data[9:12].decode() if data.startswith(b"HTTP/1.1 ") else "hung up"] += 1
    sock.close()
    return True


def send_all(sock, data):
    """Sends what the server takes; it may answer and hang up before the end of it."""
    try:
        sock.sendall(data)
    except OSError:
        pass


def status_of(address, data, source=None):
    """The status that these bytes are answered with; 0: hung up without one."""
    with dial(address, source=source) as sock:
        send_all(sock, data)
        try:
            return read_head(sock)[0]
        except ConnectionError:
            return 0


def open_session(plan, token, counts, **how):
    """A session, or None; either way its status is counted."""
    try:
        client = Client(plan.clients, PATH + token, **how)
    except OSError:
        counts["hung up"] += 1
        return None
    counts[str(client.status or "hung up")] += 1
    if client.status == 101:
        return client
    client.close()
    return None


# ===== Attacks: each runs to the end of the plan and returns what it counted =====

def slow_heads(plan):
    """CAPACITY + 100 sockets that send a head at one byte a second."""
    counts, crowd, head = collections.Counter(), [], upgrade_head("slow")
    while running(plan):
        tick = time.monotonic()
        crowd = [pair for pair in crowd if not is_over(pair[0], counts)]
        for _ in range(CAPACITY + 100 - len(crowd)):
            sock = dial_unwaiting(plan, "127.0.10.1", counts)
            if sock:
                crowd.append([sock, 0])
        for pair in crowd:
            send_all(pair[0], head[pair[1]:pair[1] + 1])
            pair[1] += 1
        sleep_until(tick + 1)
    close_all(pair[0] for pair in crowd)
    return counts


def close_all(sockets):
    for sock in sockets:
        sock.close()


def silent_sockets(plan):
    """HANDSHAKES sockets that say nothing, up to 640 new ones a second."""
    counts, crowd = collections.Counter(), []
    while running(plan):
        tick = time.monotonic()
        crowd = [sock for sock in crowd if not is_over(sock, counts)]
        for _ in range(min(64, HANDSHAKES - len(crowd))):
            sock = dial_unwaiting(plan, "127.0.11.1", counts)
            if sock:
                crowd.append(sock)
        sleep_until(tick + 0.1)
    close_all(crowd)
    return counts


def squatters(plan):
    """Silent sessions from as many addresses as it takes: for a while the table is truly full."""
    counts, crowd = collections.Counter(), []
    sleep_until(plan.squat_begin)
    begin = time.monotonic()
    while time.monotonic() < plan.squat_end:
        tick = time.monotonic()
        for i in range(CAPACITY):
            source = "127.0.12.%d" % (1 + (counts["101"] + counts["503"]) % 250)
            client = open_session(plan, "squat-%d" % i, counts, source=source)
            if not client:
                break
            crowd.append(client)
        sleep_until(tick + 0.2)
    close_all(crowd)
    return dict(counts, begin=begin, end=time.monotonic())


def never_readers(plan):
    """Sessions that read nothing while 16 KiB messages are pushed to them, and to absent tokens."""
    counts, mutes = collections.Counter(), {}
    pusher, message = Pusher(plan.push), b"m" * 16384
    for i in range(10 ** 9):
        if not running(plan):
            break
        token = "mute-%d" % (i % 6) if i % 4 else "absent-%d" % (i % 40)
        if i % 4 and token not in mutes:
            mutes[token] = open_session(plan, token, counts, source="127.0.13.1",
                                        receive_buffer=4096)
        answer = pusher.ask("POST", PATH + token, message, bearer(plan))
        counts["push %d" % answer.status] += 1
        if answer.status != 200 and mutes.pop(token, None):
            counts["thrown out"] += 1
        time.sleep(0.01)
    pusher.close()
    close_all(client for client in mutes.values() if client)
    return counts


def is_closed(client):
    """Whether the server has ended this session: reads all that is there."""
    try:
        while True:
            frame = client.receive(0)
            if frame is None or frame[0] == CLOSE:
                return True
    except OSError:
        return False


def flood(plan):
    """10,000 upgrades in two minutes from one address, which keeps every session it gets."""
    counts, mine = collections.Counter(), []
    wanted = int(FLOOD_PER_SECOND * (plan.end - plan.begin))
    begin = time.monotonic()
    for i in range(wanted):
        sleep_until(begin + i * (plan.end - begin) / wanted)
        client = open_session(plan, "flood-%d" % (i % 40), counts, source="127.0.14.1")
        if client:
            mine = [old for old in mine if not is_closed(old)] + [client]
            counts["most at once"] = max(counts["most at once"], len(mine))
        if time.monotonic() > plan.end + 10:
            break
    close_all(mine)
    return counts


def frame_head(first, size):
    """The head of a frame whose mask is zero."""
    if size < 126:
        return struct.pack(">BB4x", first, 0x80 | size)
    if size < 65536:
        return struct.pack(">BBH4x", first, 0xfe, size)
    return struct.pack(">BBQ4x", first, 0xff, size)


def request(line, *headers, body=b""):
    return "\r\n".join([line, "Host: localhost", *headers, "", ""]).encode() + body


def oversized_heads(plan):
    """(name, door, bytes, right statuses); 0 where a flood may be cut off unread."""
    post = "POST " + PATH + "big HTTP/1.1"
    key = "Authorization: Bearer " + plan.secret
    chunked = "Transfer-Encoding: chunked"
    client = [("head of 9 KiB", upgrade_head("big", "X: " + "x" * 9216), (431,)),
              ("head of 1 MiB", upgrade_head("big", "X: " + "x" * (1 << 20)), (431, 0)),
              ("request line of 9 KiB", upgrade_head("b" * 9216), (414, 431)),
              ("many headers", upgrade_head("big", *["A: b"] * 2000), (431,)),
              ("token", upgrade_head("b" * (MAX_TOKEN + 1)), (414,))]
    push = [("body", request(post, key, "Content-Length: %d" % (MAX_PUSH + 1),
                             body=b"x" * (MAX_PUSH + 1)), (413,)),
            ("announced body", request(post, key, "Content-Length: 9999999999999999999999"),
             (400, 413)),
            ("chunk", request(post, key, chunked, body=b"ffffffffffffffff\r\n"), (400, 413)),
            ("chunk size of 100 digits", request(post, key, chunked, body=b"f" * 100 + b"\r\n"),
             (400, 413)),
            ("chunks", request(post, key, chunked, body=b"1000\r\n%b\r\n" % (b"x" * 4096) * 17),
             (413,)),
            ("push head", request(post, key, "X: " + "x" * 9216), (400, 431)),
            ("body of a stranger", request(post, "Content-Length: 1048576", body=b"x" * (1 << 20)),
             (401, 413, 0))]
    return ([(name, plan.clients, data, right) for name, data, right in client]
            + [(name, plan.push, data, right) for name, data, right in push])


OVERSIZED_FRAMES = (  # (name, bytes, right close codes)
    ("message", frame_head(0x81, MAX_MESSAGE + 1) + b"x" * (MAX_MESSAGE + 1), (1009,)),
    ("announced message", frame_head(0x82, 1 << 62), (1009,)),
    ("bit 63", frame_head(0x82, 1 << 63), (1002, 1009)),
    ("fragments", frame_head(0x01, 2000) + b"x" * 2000 + (frame_head(0x00, 2000) + b"x" * 2000) * 2,
     (1009,)),
    ("ping", frame_head(0x89, 126) + b"x" * 126, (1002,)),
)


def oversized(plan):
    """Everything that has a bound, beyond it; each must be answered with its own refusal."""
    counts = collections.Counter()
    heads = oversized_heads(plan)
    while running(plan):
        for name, door, data, right in heads:
            status = status_of(door, data, "127.0.15.1" if door == plan.clients else None)
            # An incomplete head may be the one that gives way to the silent sockets.
            fair = right + (408,) if door == plan.clients else right
            counts["right" if status in fair else "%s: %d" % (name, status)] += 1
            time.sleep(0.02)
        for name, data, right in OVERSIZED_FRAMES:
            client = open_session(plan, "big", counts, source="127.0.15.1")
            if client:
                send_all(client.sock, data)
                code = client.close_code()
                counts["right" if code in right else "%s: %d" % (name, code)] += 1
                client.close()
            time.sleep(0.02)
    return counts


def ping_flood(plan):
    """Pings as fast as the server takes them, from one that reads the pongs and one that does not.
    """
    counts, peers = collections.Counter(), {}
    block = (frame_head(0x89, 0) + frame_head(0x89, 125) + b"p" * 125) * 480
    while running(plan):
        for reads in (True, False):
            if reads not in peers:
                client = open_session(plan, "ping", counts, source="127.0.16.1")
                if client:
                    client.sock.setblocking(False)
                    peers[reads] = [client.sock, block]
        wanted = [peer[0] for peer in peers.values()]
        if not wanted:
            time.sleep(0.05)
        else:
            select.select(wanted[:1] if True in peers else [], wanted, [], 0.1)
        for reads in list(peers):
            if not ping_on(peers[reads], block, reads, counts):
                peers.pop(reads)[0].close()
    close_all(peer[0] for peer in peers.values())
    return counts


def ping_on(peer, block, reads, counts):
    """Sends what the socket takes and reads what it has; False once the session is over."""
    sock, rest = peer
    try:
        peer[1] = rest[sock.send(rest):]
        if not peer[1]:
            counts["pings"] += 960
            peer[1] = block
    except BlockingIOError:
        pass
    except OSError:
        return False
    try:
        data = sock.recv(65536) if reads else b"-"
        counts["bytes read"] += len(data) if reads else 0
        return bool(data)
    except BlockingIOError:
        return True
    except OSError:
        return False


def wrong_secrets(plan):
    """Pushes to the steady clients without the right secret; all must be 401."""
    counts, connection = collections.Counter(), Pusher(plan.push)
    wrong = [None, "", "Bearer", "Bearer ", plan.secret, "Basic " + plan.secret,
             "Bearer " + plan.secret[:-1], "Bearer " + plan.secret + "x",
             "Bearer " + plan.secret.swapcase(), "Bearer " + "s" * 4000]
    for i in range(10 ** 9):
        if not running(plan):
            break
        value = wrong[i % len(wrong)]
        headers = {} if value is None else {"Authorization": value}
        try:
            answer = connection.ask("POST", PATH + "steady-%d" % (i % STEADY), b"forged", headers)
            counts[str(answer.status)] += 1
        except OSError:
            connection.close()
            counts["hung up"] += 1
        time.sleep(0.01)
    connection.close()
    return counts


def random_bytes(plan):
    """Noise at both doors, and noise behind a good upgrade."""
    counts, dice = collections.Counter(), random.Random(6455)
    while running(plan):
        noise = dice.randbytes(dice.randrange(1, 3000))
        place = dice.randrange(3)
        try:
            if place == 2:
                client = open_session(plan, "noise", counts, source="127.0.17.1")
                sock = client.sock if client else None
            else:
                sock = dial((plan.clients, plan.push)[place],
                            source="127.0.17.1" if place == 0 else None)
        except OSError:
            sock = None
        if sock:
            send_all(sock, noise)
            select.select([sock], [], [], 0.1)
            sock.close()
            counts[("client door", "push door", "session")[place]] += 1
        time.sleep(0.01)
    return counts


ATTACKS = (slow_heads, silent_sockets, squatters, never_readers, flood, oversized, ping_flood,
           wrong_secrets, random_bytes)


def attack(function, plan):
    os.nice(5)
    return function(plan)


# ===== The well-behaved =====

class Steady:
    """A client that stays: answers pings, and notes each message and how long it took."""

    def __init__(self, plan, number):
        self.token = "steady-%d" % number
        self.client = Client(plan.clients, PATH + self.token, source="127.0.1.%d" % (1 + number))
        equal("upgrade of " + self.token, self.client.status, 101)
        self.got, self.seconds, self.fault = [], [], None
        self.thread = threading.Thread(target=self.read, args=(plan,), daemon=True)
        self.thread.start()

    def read(self, plan):
        try:
            while True:
                frame = self.client.receive(max(1.0, plan.end + 20 - time.monotonic()))
                if frame is None or frame[0] == CLOSE:
                    code = "" if frame is None else int.from_bytes(frame[1][:2], "big")
                    self.fault = "%s ended with %r" % (self.token, code)
                    return
                self.take(*frame)
        except (OSError, Failure, ValueError) as error:
            self.fault = "%s: %r" % (self.token, error)

    def take(self, opcode, payload):
        if opcode == PING:
            self.client.send(PONG, payload)
        elif opcode == TEXT:
            to, number, sent = payload.decode().split()[:3]
            self.seconds.append(time.monotonic() - float(sent))
            self.got.append((to, int(number)))

    def end(self):
        """Says goodbye; what comes then is the server's answer to it."""
        fault = self.fault
        self.client.send(CLOSE, struct.pack(">H", 1000))
        self.thread.join(10)
        self.client.close()
        return fault


class Newcomer:
    """Connects, gets one message, and leaves; tries again for NEWCOMER_SECONDS."""

    def __init__(self, plan, number):
        self.plan, self.number = plan, number
        self.token = "new-%d" % number
        self.refusals, self.seconds, self.fault = [], None, None
        self.thread = threading.Thread(target=self.visit, daemon=True)
        self.thread.start()

    def visit(self):
        self.begin = time.monotonic()
        try:
            client = self.enter()
            if client:
                self.fetch(client)
        except (OSError, Failure) as error:
            self.fault = "%s: %r" % (self.token, error)

    def enter(self):
        """Its session, or None; the refusals are (moment, status, how long it took)."""
        source = "127.0.2.%d" % (1 + self.number % 250)
        while time.monotonic() < self.begin + NEWCOMER_SECONDS:
            asked, status = time.monotonic(), 0
            try:
                client = Client(self.plan.clients, PATH + self.token, source=source)
                status = client.status
            except OSError:
                pass
            if status == 101:
                self.seconds = time.monotonic() - self.begin
                return client
            self.refusals.append((time.monotonic(), status, time.monotonic() - asked))
            time.sleep(0.1)
        return None

    def fetch(self, client):
        connection = Pusher(self.plan.push)
        text = self.token + " hello"
        answer = connection.ask("POST", PATH + self.token, text.encode(), bearer(self.plan))
        connection.close()
        equal("push to " + self.token, (answer.status, json.loads(answer.body)["delivered"]),
              (200, 1))
        frame = client.receive()
        while frame and frame[0] != CLOSE and frame[1] != text.encode():
            frame = client.receive()
        equal("message of " + self.token, frame, (TEXT, text.encode()))
        client.send(CLOSE, struct.pack(">H", 1000))
        client.wait_end()
        client.close()

    def report(self):
        """(begin, seconds until its 101 or None, refusals, fault), for another process."""
        return self.begin, self.seconds, self.refusals, self.fault


def push_numbered(plan, sent, faults):
    """The pusher: each steady client's own messages, and broadcasts, all numbered."""
    connection, numbers = Pusher(plan.push), collections.Counter()
    due = time.monotonic()
    for i in range(10 ** 9):
        if not running(plan):
            break
        token = "" if i % (BROADCAST_EVERY + 1) == BROADCAST_EVERY else "steady-%d" % (i % STEADY)
        size = 4000 if token == "" else 40
        text = "%s %d %.6f " % (token or "all", numbers[token], time.monotonic())
        answer = connection.ask("POST", PATH + token, text.ljust(size, ".").encode(), bearer(plan))
        delivered = json.loads(answer.body).get("delivered", 0)
        if answer.status != 200 or delivered < (1 if token else STEADY):
            faults.append("%s%d to %r: %d %s" % (token, numbers[token], token, answer.status,
                                                 answer.body))
        sent.append((token or "all", numbers[token]))
        numbers[token] += 1
        due = max(due + PUSH_PAUSE, time.monotonic())
        sleep_until(due)
    connection.close()


def pusher(plan, sent, faults):
    try:
        push_numbered(plan, sent, faults)
    except Exception as error:  # whatever ended it is what the test must report
        faults.append("the pusher ended: %r" % error)


def well_behaved(plan):
    """Steady clients, pusher and newcomers until the end of the plan; what became of them."""
    sent, faults, newcomers = [], [], []
    clients = [Steady(plan, i) for i in range(STEADY)]
    thread = threading.Thread(target=pusher, args=(plan, sent, faults), daemon=True)
    thread.start()
    while running(plan):
        due = time.monotonic() + NEWCOMER_PAUSE
        newcomers.append(Newcomer(plan, len(newcomers)))
        sleep_until(due)
    thread.join(15)
    want = [[pair for pair in sent if pair[0] in (client.token, "all")] for client in clients]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(
            len(client.got) < len(pairs) for client, pairs in zip(clients, want)):
        time.sleep(0.05)
    for newcomer in newcomers:
        newcomer.thread.join(15)
    faults += [fault for fault in [client.end() for client in clients] if fault]
    return {"sent": len(sent), "faults": faults, "want": want,
            "got": [client.got for client in clients],
            "seconds": [second for client in clients for second in client.seconds],
            "newcomers": [newcomer.report() for newcomer in newcomers]}


# ===== Watching =====

def memory_kb(pid):
    """(VmRSS, RssAnon, VmData) of the process."""
    with open("/proc/%d/status" % pid, encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return tuple(int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon", "VmData"))


def cpu_seconds(pid):
    with open("/proc/%d/stat" % pid, encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(pid):
    return len(os.listdir("/proc/%d/fd" % pid))


def metrics(connection, plan):
    """Every line of /metrics by its name."""
    text = connection.ask("GET", "/metrics", headers=bearer(plan)).body
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def total(values, name):
    """A counter over all its labels."""
    return sum(value for key, value in values.items() if key.startswith(name + "{"))


def imbalance(values):
    """opened - sum(closed) - sessions: 0 at any moment."""
    return (values["exportws_sessions_opened_total"]
            - total(values, "exportws_sessions_closed_total") - values["exportws_sessions"])


Sample = collections.namedtuple("Sample", "moment rss anon data values")


def watch(server, plan, futures):
    """Samples the server until the processes are done, and at least a bit beyond the plan."""
    samples, connection = [], Pusher(plan.push)
    while time.monotonic() < plan.end + 40:
        waiting = concurrent.futures.wait(futures, timeout=0.5).not_done
        samples.append(Sample(time.monotonic(), *memory_kb(server.process.pid),
                              metrics(connection, plan)))
        if not waiting:
            break
    connection.close()
    return samples


def is_at_rest(values, before):
    return (values["exportws_sessions"] == 0 and values["exportws_handshakes"] == 0
            and values["exportws_tokens"] == 0 and values["exportws_pushers"] == 1
            and values["exportws_held_messages"] == 0
            and values["exportws_buffer_used_bytes"] == before["exportws_buffer_used_bytes"])


def settle(plan, before):
    """Waits until everything is given back; the metrics then, or the last ones."""
    deadline = time.monotonic() + 15
    while True:
        connection = Pusher(plan.push)
        values = metrics(connection, plan)
        connection.close()
        if is_at_rest(values, before) or time.monotonic() > deadline:
            return values
        time.sleep(0.1)


def settled_in(plan):
    """Whether the steady clients are there: those who come later are newcomers."""
    connection = Pusher(plan.push)
    values = metrics(connection, plan)
    connection.close()
    return values["exportws_sessions"] >= STEADY


def warm_up(plan):
    """Uses every slot and the whole buffer once: the kernel gives pages when first written to."""
    equal("statuses of capacity + 1", collections.Counter(fill_table(plan)),
          {101: CAPACITY, 503: 1})
    counts, head = collections.Counter(), upgrade_head("warm", "X: " + "x" * 7800)[:-4]
    crowd = [dial_unwaiting(plan, "127.0.3.1", counts) for _ in range(HANDSHAKES)]
    for sock in crowd:
        send_all(sock, head)
    close_all(crowd)
    connection, status = Pusher(plan.push), 202
    for i in range(200):
        answer = connection.ask("POST", PATH + "warm-%d" % (i % 50), b"w" * 8192, bearer(plan))
        status = answer.status
        if status != 202:
            break
    connection.close()
    equal("status of the push that finds no room", status, 503)


def fill_table(plan):
    """How many sessions fit after all this, and the status of one more."""
    clients = [Client(plan.clients, PATH + "slot-%d" % i, source="127.0.3.%d" % (1 + i))
               for i in range(CAPACITY + 1)]
    statuses = [client.status for client in clients]
    close_all(clients)
    return statuses


# ===== Judging =====

class Result:
    """All that was measured in one attack, and the tests of it."""

    def __init__(self, seconds):
        self.seconds = seconds
        with tempfile.TemporaryDirectory() as folder:
            self.log_file = os.path.join(folder, "log")
            self.secret = os.urandom(24).hex() + "aZ"
            with open(os.path.join(folder, "secret"), "w", encoding="ascii") as file:
                file.write(self.secret + "\n")
            # A log in a file: no reader that could be late and hold the server up.
            with Server(*OPTIONS, "--push-secret-file", file.name,
                        limits="exec 2>" + shlex.quote(self.log_file)) as server:
                self.attack(server)
            with open(self.log_file, encoding="utf-8", errors="backslashreplace",
                      newline="\n") as log:
                self.log_lines = log.read().split("\n")[:-1]

    def attack(self, server):
        pid = server.process.pid
        self.fds_before, self.ready_kb = descriptors(pid), memory_kb(pid)
        self.block_kb = int(server.ready["memory"]) / 1024
        plan = Plan(server.clients, server.push, self.secret, 0, 0, 0, 0)
        self.before = settle(plan, {"exportws_buffer_used_bytes": 0})
        warm_up(plan)
        settle(plan, self.before)
        self.warm_kb, now = memory_kb(pid), time.monotonic()
        self.plan = plan = plan._replace(begin=now, end=now + self.seconds,
                                         squat_begin=now + self.seconds * 0.5,
                                         squat_end=now + self.seconds * 0.7)
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(len(ATTACKS) + 1, spawn) as pool:
            good = pool.submit(well_behaved, plan)
            poll("steady clients", lambda: good.done() or settled_in(plan))
            futures = {attacker.__name__: pool.submit(attack, attacker, plan)
                       for attacker in ATTACKS}
            self.samples = watch(server, plan, [good, *futures.values()])
            self.counts = {name: future.result(30) for name, future in futures.items()}
            self.good = good.result(30)
        self.cpu = cpu_seconds(pid)
        self.after = settle(plan, self.before)
        self.fds_after = self.settled_descriptors(pid)
        self.slots = fill_table(plan)
        self.last = settle(plan, self.before)

    def settled_descriptors(self, pid):
        """The count once the last connection of this script is closed there too."""
        try:
            poll("descriptors", lambda: descriptors(pid) == self.fds_before)
        except Failure:
            pass
        return descriptors(pid)

    # ----- figures -----

    def figures(self):
        good = sorted(self.good["seconds"])
        entered = sorted(row[1] for row in self.good["newcomers"] if row[1] is not None)
        refusals = collections.Counter(status for row in self.good["newcomers"]
                                       for _, status, _ in row[2])
        yield "pushes %d, receipts %d: %s" % (self.good["sent"], len(good), spread(good))
        yield "newcomers %d, in %d: %s; refusals on the way %s" % (
            len(self.good["newcomers"]), len(entered), spread(entered), dict(refusals))
        most = [max(column) for column in zip(*(sample[1:4] for sample in self.samples))]
        yield "kB of VmRSS, RssAnon, VmData: ready %s, warm %s, most %s, end %s; block %d" % (
            self.ready_kb, self.warm_kb, tuple(most), self.samples[-1][1:4], self.block_kb)
        yield "buffer at most %d bytes; server CPU %.1f s; load %.1f; log %d lines" % (
            max(s.values["exportws_buffer_used_bytes"] for s in self.samples), self.cpu,
            os.getloadavg()[0], len(self.log_lines))
        for name, counts in self.counts.items():
            yield "%s: %s" % (name, ", ".join("%s %d" % pair for pair in sorted(counts.items())
                                              if pair[0] not in ("begin", "end")))
        yield "closed: " + ", ".join("%s %d" % (key.split('"')[1], value)
                                     for key, value in sorted(self.last.items())
                                     if key.startswith("exportws_sessions_closed_total{"))

    # ----- tests -----

    def no_message_is_lost(self):
        equal("faults of the steady clients and their pusher", self.good["faults"][:5], [])
        for number, (got, want) in enumerate(zip(self.good["got"], self.good["want"])):
            equal("messages missing at steady-%d" % number,
                  sorted(set(want) - set(got))[:5], [])
            true("steady-%d: not in order, or not once" % number, got == want)
        true("nothing was pushed", self.good["sent"] >= self.seconds)

    def p99_stays_under_250_ms(self):
        p99 = percentile(sorted(self.good["seconds"]), 0.99)
        true("p99 is %.1f ms" % (p99 * 1000), p99 < P99_SECONDS)

    def newcomers_enter_within_3_s(self):
        rows = self.good["newcomers"]
        equal("faults of newcomers", [row[3] for row in rows if row[3]][:5], [])
        late = [row for row in rows if (row[1] is None or row[1] > NEWCOMER_SECONDS)
                and not any(self.is_full(moment) for moment, status, _ in row[2] if status == 503)]
        equal("late newcomers, of %d" % len(rows),
              [(round(row[0] - self.plan.begin, 1), row[1], [r[1] for r in row[2]])
               for row in late[:5]], [])
        true("fewer newcomers than one a second", len(rows) >= self.seconds / 2)

    def is_full(self, moment):
        squat = self.counts["squatters"]
        return squat["begin"] <= moment <= squat["end"] + CLOSE_SECONDS

    def only_a_full_table_answers_503(self):
        refusals = [refusal for row in self.good["newcomers"] for refusal in row[2]]
        equal("503 while there was room, seconds after the start",
              [round(moment - self.plan.begin, 1) for moment, status, _ in refusals
               if status == 503 and not self.is_full(moment)][:5], [])
        equal("other refusals than 408, 503 and a hang-up",
              sorted({status for _, status, _ in refusals} - {0, 408, 503}), [])
        true("the table was never full", self.counts["squatters"].get("503", 0) > 0)
        slow = [took for _, status, took in refusals if status == 503 and took > NEWCOMER_SECONDS]
        equal("slow 503", slow, [])

    def one_address_keeps_to_its_bound(self):
        counts = self.counts["flood"]
        equal("most sessions of one address", counts["most at once"], PER_ADDRESS)
        tried = sum(counts[key] for key in ("101", "429", "408", "503", "hung up"))
        equal("other answers", sum(counts.values()) - counts["most at once"] - tried, 0)
        true("only %d upgrades were tried" % tried,
             tried >= 0.9 * FLOOD_PER_SECOND * self.seconds)
        true("hardly anyone got 429: %d" % counts["429"], counts["429"] > tried / 2)
        refused = self.last.get('exportws_refused_total{status="429"}', 0)
        equal("429 in the metrics", refused, counts["429"])

    def slow_heads_and_silence_give_way(self):
        for name in ("slow_heads", "silent_sockets"):
            counts = self.counts[name]
            true("%s: %s" % (name, dict(counts)), counts["408"] > 0)
            equal(name + " in", counts["101"], 0)
        true("there were never as many as --handshakes",
             max(s.values["exportws_handshakes"] for s in self.samples) >= HANDSHAKES * 0.9)

    def never_readers_are_thrown_out(self):
        true("nobody was", self.counts["never_readers"]["thrown out"] > 0)
        slow = self.last.get('exportws_sessions_closed_total{reason="slow"}', 0)
        true("none was closed as slow", slow > 0)

    def oversized_is_refused_by_name(self):
        counts = self.counts["oversized"]
        wrong = {key: n for key, n in counts.items() if ": " in key}
        equal("wrong answers", wrong, {})
        true("hardly any were tried", counts["right"] >= self.seconds)

    def wrong_secrets_get_401(self):
        counts = self.counts["wrong_secrets"]
        equal("answers", sorted(counts), ["401"])

    def pings_are_answered(self):
        counts = self.counts["ping_flood"]
        true("%d pings, %d bytes" % (counts["pings"], counts["bytes read"]),
             counts["pings"] > 1000 and counts["bytes read"] > 1000)

    def noise_came_through_every_door(self):
        counts = self.counts["random_bytes"]
        for place in ("client door", "push door", "session"):
            true("none at the " + place, counts[place] > 0)

    def memory_does_not_grow(self):
        _, anon, data = self.ready_kb
        equal("VmData in kB", {sample.data for sample in self.samples}, {data})
        most = max(sample.anon for sample in self.samples)
        true("RssAnon %d kB, ready %d, block %d" % (most, anon, self.block_kb),
             most <= anon + self.block_kb + GROWTH_KB)
        most, ready = max(sample.rss for sample in self.samples), self.ready_kb[0]
        true("VmRSS %d kB, ready %d, block %d" % (most, ready, self.block_kb),
             most <= ready + self.block_kb + GROWTH_KB + CODE_KB)
        # With VmData still, only pages of the block written to for the first time can be new. That
        # takes a while to end: in a short run it would be taken for growth.
        if self.seconds < 60:
            return
        half = self.plan.begin + self.seconds / 2.0
        first, second = ([s.rss for s in self.samples if (s.moment < half) == early]
                         for early in (True, False))
        true("VmRSS up to %d kB in the first half, %d in the second" % (max(first), max(second)),
             max(second) <= max(first) + GROWTH_KB)

    def counters_agree(self):
        every = [sample.values for sample in self.samples] + [self.after, self.last]
        equal("opened - closed - sessions", sorted({imbalance(values) for values in every}), [0.0])
        for values in every:
            true("more sessions than capacity", values["exportws_sessions"] <= CAPACITY)
            true("more handshakes than there are",
                 values["exportws_handshakes"] <= HANDSHAKES)

    def all_is_given_back(self):
        for values in (self.after, self.last):
            for name in ("sessions", "tokens", "handshakes", "held_messages", "buffer_used_bytes"):
                name = "exportws_" + name
                equal(name, values[name], self.before[name])
        equal("descriptors", self.fds_after, self.fds_before)
        equal("statuses of capacity + 1", collections.Counter(self.slots), {101: CAPACITY, 503: 1})

    def log_is_clean(self):
        faults = [fault for fault in map(log_fault, self.log_lines) if fault]
        equal("broken lines", faults[:3], [])
        true("no log", len(self.log_lines) > 0)

    def tests(self):
        return [(test.__name__, test) for test in (
            self.no_message_is_lost, self.p99_stays_under_250_ms, self.newcomers_enter_within_3_s,
            self.only_a_full_table_answers_503, self.one_address_keeps_to_its_bound,
            self.slow_heads_and_silence_give_way, self.never_readers_are_thrown_out,
            self.oversized_is_refused_by_name, self.wrong_secrets_get_401, self.pings_are_answered,
            self.noise_came_through_every_door, self.memory_does_not_grow, self.counters_agree,
            self.all_is_given_back, self.log_is_clean)]


def percentile(ordered, part):
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else float("inf")


def spread(ordered):
    return "ms p50 %.1f, p99 %.1f, p99.9 %.1f, most %.1f" % tuple(
        percentile(ordered, part) * 1000 for part in (0.5, 0.99, 0.999, 1.0))


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
    results = []
    line, failed = outcome("attack_server_survives", lambda: results.append(Result(seconds)))
    print(line, flush=True)
    for result in results:
        for figure in result.figures():
            print("# " + figure)
        for line, bad in [outcome("attack_" + name, test) for name, test in result.tests()]:
            failed = failed or bad
            print(line)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
