#!/usr/bin/env python3
"""Three exportws nodes, and a fourth, behind real HAProxy and nginx with README's own lines: pushes
meet their sessions; a node that dies, drains, hangs, is added or comes back moves its share only.

Environment: EXPORTWS, the server (./exportws). Prints a line for every test; arguments pick
tests by a part of their name.
"""
import collections
import contextlib
import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

sys.dont_write_bytecode = True
from harness import (CLOSE, DEADLINE, PATH, PING, SLOW, TEXT, Client, Connection,  # noqa: E402
                     Failure, Proxy, Server, between, equal, free_port, need, poll, readme_block,
                     replace, run, sign, true)

TOKENS = 300
SECRET = "s3cret"
BEARER = {"Authorization": "Bearer p4ss"}
RIPE = 6  # seconds until a HAProxy has a table to hand over


# ===== Nodes =====

class Node(Server):
    """One of them, which may be killed and started again at the same addresses."""

    def __init__(self, options, listen="127.0.0.1:0", push="127.0.0.1:0"):
        self.options, self.dead = options, False
        super().__init__("--listen", listen, "--push", push, *options)
        self.door = Connection(self.push)
        self.base = json.loads(self.own("POST", "", "first").body)["id"]

    def own(self, method, token, body=None):
        """A request at its own push door, past the proxy."""
        return self.door.ask(method, PATH + urllib.parse.quote(token, safe=""), body, BEARER)

    def has(self, token):
        return self.own("GET", token).status == 200

    def gave(self, number):
        """Whether an id is its; nodes are started 0.1 seconds apart: 100,000 ids."""
        return self.base <= number < self.base + 50000

    def count(self, name):
        text = self.ask("GET", "/metrics", headers=BEARER).body
        return sum(float(value) for value in
                   re.findall(r"^%s(?:\{.*\})? (\S+)$" % name, text, re.M))

    def drain(self):
        self.process.send_signal(signal.SIGTERM)

    def hang(self):
        self.dead = True
        self.process.send_signal(signal.SIGSTOP)

    def die(self):
        self.dead = True
        self.door.close()
        self.kill()

    def finish(self):
        self.door.close()
        if not self.dead:
            super().finish()


def start_nodes(stack, folder, signed, count=3):
    """Their options are README's; no time runs out before the test does: its pages are read when
    their turn comes, and answer no pings."""
    for name, text in (("F", "p4ss\n"), ("G", SECRET + "\n")):
        with open(folder + "/" + name, "w", encoding="utf-8") as file:
            file.write(text)
    words = shlex.split(replace(readme_block("exportws --listen 10.0.0.1:8080"), ("\\\n", ""),
                                (" F ", " %s/F " % folder), ("10.0.0.9", "127.0.0.1")))
    equal("README's doors", words[:5],
          ["exportws", "--listen", "10.0.0.1:8080", "--push", "10.0.0.1:8081"])
    options = words[5:] + ["--hold", "600", "--ping", "600"]
    options += ["--client-secret-file", folder + "/G"] * signed
    nodes = []
    for _ in range(count):
        nodes.append(stack.enter_context(Node(options)))
        time.sleep(0.1)
    return nodes


# ===== README's lines =====

def put_addresses(text, nodes):
    for number, node in enumerate(nodes, 1):
        if node.dead:
            text = re.sub(r"(10.0.0.%d:.*max_fails=0);" % number, r"\1 down;", text)
        for port, door in ((8080, node.clients), (8081, node.push)):
            text = text.replace("10.0.0.%d:%d" % (number, port), door)
    true("addresses are left: " + text, "10.0.0." not in text)
    return text


def haproxy_lines(nodes, signed, folder, ports, peer):
    text = replace(readme_block("peers exportws"), ("/etc/ssl/", folder + "/"),
                   ("bind :443 ", "bind 127.0.0.1:%d " % ports[0]),
                   ("127.0.0.1:8081", "127.0.0.1:%d" % ports[1]),
                   ("127.0.0.1:8082", "127.0.0.1:%d" % peer), ("60s", "600s"))
    if signed:
        line = "    http-request set-var(txn.name) path,field(5,/),url_dec\n"
        text = text.replace(line, line + readme_block(
            "    http-request set-var(txn.name) var(txn.name)"), 1)
    if len(nodes) > 3:
        for line in re.findall(r"^    server c .*\n", text, re.M):
            text = text.replace(line, line + line.replace(" c ", " d ").replace("/c", "/d").replace(
                "10.0.0.3", "10.0.0.4").replace("id 3", "id 4"))
    return put_addresses(text, nodes)


def nginx_lines(nodes, signed, folder, ports):
    site = replace(readme_block("server {"), ("/etc/ssl/", folder + "/"),
                   ("listen 443 ssl;", "listen 127.0.0.1:%d ssl;" % ports[0]),
                   ("http://127.0.0.1:8080;", "http://exportws_clients; proxy_connect_timeout 1s;"),
                   ("60s", "600s"))
    ring = replace(readme_block("map $uri"),
                   ("listen 127.0.0.1:8081;", "listen 127.0.0.1:%d;" % ports[1]))
    if signed:
        ring = replace(ring, ("hash $exportws_token;     # with signed tokens: ", ""))
    if len(nodes) > 3:
        three = r"(?:        server 10\.0\.0\..:808. weight=20 max_fails=0;\n|    server 10.*\n){3}"
        four = readme_block("    server 10.0.0.1:8080 weight=15")
        for lines in re.findall(three, ring):
            ring = ring.replace(lines, four.replace(":8080", re.search(r":808\d", lines)[0]))
    return put_addresses(ring + site, nodes)


class Front(Proxy):
    """The proxy in front of nodes; its first port is the browsers', its second the pushers'."""

    def __init__(self, kind, nodes, signed=False, cut=1):
        self.nodes, self.signed, self.peer = nodes, signed, free_port()
        self.main = replace(readme_block("worker_shutdown_timeout 5s;"), ("5s", "%ds" % cut))
        super().__init__(kind, self.lines, doors=2)

    def lines(self, folder, ports):
        if self.kind == "nginx":
            return nginx_lines(self.nodes, self.signed, folder, ports)
        return haproxy_lines(self.nodes, self.signed, folder, ports, self.peer)

    def start(self, *more):
        self.began = time.monotonic()
        return super().start(*(["-L", "one"] if self.kind == "haproxy" else []), *more)

    def reload(self):
        """Reads its lines again, as README says."""
        if self.kind == "haproxy":
            time.sleep(max(0, self.began + RIPE - time.monotonic()))
            true("no reload: " + self.said(), self.start("-sf", str(self.processes[-1].pid)))
            return
        done = subprocess.run(self.command("-s", "reload"), capture_output=True)
        equal("reload: " + done.stderr.decode(), done.returncode, 0)
        poll("the old workers take nothing more", lambda: self.workers() == (2, 2))

    def workers(self):
        """Those of nginx that take connections, and those that are shutting down."""
        said = subprocess.run(["ps", "-A", "-o", "ppid=", "-o", "args="], capture_output=True)
        titles = [line.split(None, 1)[1] for line in said.stdout.decode().splitlines()
                  if line.split(None, 1)[0] == str(self.processes[-1].pid)]
        old = sum("shutting down" in title for title in titles)
        return len(titles) - old, old

    def ask(self, method, token, body=None, path=PATH):
        """A request at the push doors; a connection that breaks is status 0."""
        door = Connection("127.0.0.1:%d" % self.ports[1])
        with contextlib.closing(door):
            try:
                return door.ask(method, path + urllib.parse.quote(token, safe=""),
                                body.encode() if body else None, BEARER)
            except (ConnectionError, OSError):
                door.status = 0
                return door

    def push(self, token, text):
        """Pushes until it is taken, and returns the answer."""
        def attempt():
            answer = self.ask("POST", token, text)
            if answer.status not in (0, 502, 503, 504):
                return answer
            time.sleep(0.05)
            return None
        answer = poll("push to " + token, attempt)
        true("push: %d %s" % (answer.status, answer.body), answer.status in (200, 202))
        return answer.status, json.loads(answer.body)


# ===== Pages =====

def encode(token, number):
    """In one of the ways in which it may be: browsers and back ends need not agree."""
    if number % 3 == 0:
        return "".join("%%%02X" % byte for byte in token.encode())
    if number % 3 == 1:
        return "".join("%%%02x" % byte if byte < 48 or byte > 122 else chr(byte)
                       for byte in token.encode())
    return urllib.parse.quote(token, safe="")


class Page:
    """What /exportws.js does, without a browser."""

    def __init__(self, front, name, number):
        self.front, self.name, self.client = front, name, None
        token = sign(name, 9999999999, SECRET) if front.signed else name
        self.target = PATH + encode(token, number)
        self.last, self.got, self.tries = "", [], 0
        self.connect()

    def connect(self):
        """Until it is let in; then nothing may be missed from now on."""
        def attempt():
            self.tries += 1
            self.client = Client("127.0.0.1:%d" % self.front.ports[0], self.target + self.last,
                                 ["Sec-WebSocket-Protocol: exportws.v1"], tls=self.front.tls)
            if self.client.status == 101:
                return True
            self.client.close()
            true("status %d" % self.client.status, self.client.status in (502, 503, 504))
            time.sleep(0.05)
            return False
        poll("connection of " + self.name, attempt)
        self.last = self.last or "?last=0"

    def receive(self):
        """What comes next, which is kept in got: "gap", (id, text); a close code at the end."""
        while True:
            frame = self.client.receive(3 * DEADLINE)
            if frame is None or frame[0] == CLOSE:
                return int.from_bytes(frame[1][:2], "big") if frame else 1006
            if frame[0] == PING:
                continue
            equal("opcode", frame[0], TEXT)
            number, newline, text = frame[1].decode().partition("\n")
            if newline:
                self.last = "?last=" + number
            self.got.append((int(number), text) if newline else number)
            return self.got[-1]

    def read_up_to(self, text):
        """All up to this message; what it has read."""
        before = len(self.got)
        while self.receive()[1] != text:
            pass
        return self.got[before:]

    def end(self):
        """Reads up to the end of the connection: the close code."""
        while True:
            said = self.receive()
            if isinstance(said, int):
                self.client.close()
                return said


class Ring:
    """Nodes, a proxy, and a page for each of many names."""

    def __init__(self, stack, kind, signed=True, count=3, nodes=3, tokens=TOKENS, cut=1):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="exportws-nodes."))
        self.nodes = start_nodes(stack, folder, signed, nodes)
        self.front = stack.enter_context(Front(kind, self.nodes[:count], signed, cut))
        self.names = [name_of(number) for number in range(tokens)]
        self.pages = []
        stack.callback(lambda: [page.client.close() for page in self.pages])
        for number, name in enumerate(self.names):
            self.pages.append(Page(self.front, name, number))

    def where(self):
        """The node of each name's sessions."""
        found = {}
        for name in self.names:
            homes = [node for node in self.nodes if not node.dead and node.has(name)]
            equal("nodes of " + name, len(homes), 1)
            found[name] = homes[0]
        return found

    def shares(self, homes):
        return [list(homes.values()).count(node) for node in self.nodes]

    def meet(self, text, pages=None):
        """A push to each name must reach its page, at once, as its only new message."""
        for page in pages or self.pages:
            status, answer = self.front.push(page.name, text + page.name)
            equal("push to " + page.name, (status, answer["delivered"]), (200, 1))
            equal("got by " + page.name, page.receive(), (answer["id"], text + page.name))


def name_of(number):
    return ("export-%d", "büro %d+%%", "v1.%d", "a.b.%d.9999999999", "%d\n", "?&#;%d")[
        number % 6] % number


# ===== The tests =====

TESTS = []


def test(*kinds, signs=(True,)):
    """Registers a test with each of these proxies, and with plain or signed tokens."""
    def register(function):
        for kind in kinds:
            for signed in signs:
                def body(kind=kind, signed=signed):
                    with contextlib.ExitStack() as stack:
                        function(stack, kind, signed)
                TESTS.append(("_".join([function.__name__, kind] + ["plain"] * (not signed)), body))
        return function
    return register


@test("haproxy", "nginx", signs=(True, False))
def pushes_meet_their_sessions(stack, kind, signed):
    ring = Ring(stack, kind, signed)
    for share in ring.shares(ring.where()):
        between("share of a node", share / TOKENS, 0.2, 0.5)
    ring.meet("one ")
    for page in ring.pages[:12]:
        equal("sessions", ring.front.ask("GET", page.name).body.strip(), '{"sessions":1,"held":0}')
        equal("closed", ring.front.ask("DELETE", page.name).body.strip(), '{"closed":1}')
        equal("close code", page.end(), 1000)
    for name in ("new", "z.9999999999"):  # the push may come first
        equal("push to nobody", ring.front.push(name, "held")[0], 202)
        page = Page(ring.front, name, 1)
        ring.pages.append(page)
        equal("held for " + name, page.receive()[1], "held")
    equal("peer", ring.nodes[0].wait_event("open")[0]["peer"], "127.0.0.1")


def broadcast_by_readme(ring, folder, addresses):
    """README's loop: what it prints, what it complains of."""
    with open(folder + "/bearer", "w", encoding="utf-8") as file:
        file.write("Authorization: " + BEARER["Authorization"])
    script = replace(readme_block("for node in 10.0.0.1:8081"),
                     ("10.0.0.1:8081 10.0.0.2:8081 10.0.0.3:8081", " ".join(addresses)),
                     ("Maintenance at noon", "by the loop"), ("@bearer", "@%s/bearer" % folder))
    need("curl")
    done = subprocess.run(["sh", "-c", script], capture_output=True, timeout=30)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


@test("haproxy", "nginx")
def broadcast_reaches_all(stack, kind, signed):
    ring, folder = Ring(stack, kind, signed, tokens=60), stack.enter_context(
        tempfile.TemporaryDirectory())
    online = [node.count("exportws_sessions") for node in ring.nodes]
    equal("sessions", sum(online), 60)
    for number, path in enumerate((PATH, PATH.rstrip("/"))):
        answer = ring.front.ask("POST", "", "to all %d" % number, path)
        if kind == "haproxy":
            equal("status", answer.status, 501)
            continue
        equal("status", answer.status, 200)
        said = json.loads(answer.body)
        equal("delivered", said["delivered"], online[0])
        true("not the first node's id", ring.nodes[0].gave(said["id"]))
        for page in ring.pages:
            equal("got", page.receive()[1], "to all %d" % number)
    answers, complaint = broadcast_by_readme(ring, folder, [node.push for node in ring.nodes])
    equal("complaint", complaint, "")
    equal("delivered by the loop", [answer["delivered"] for answer in answers], online)
    for page in ring.pages:
        equal("got", page.receive()[1], "by the loop")
    ring.meet("and nothing else ")
    homes, dead = ring.where(), ring.nodes[0].push
    ring.nodes[0].die()
    answers, complaint = broadcast_by_readme(ring, folder, [node.push for node in ring.nodes])
    equal("delivered by the loop", [answer["delivered"] for answer in answers], online[1:])
    true("no complaint: " + complaint, dead + " did not take it" in complaint)
    if kind == "nginx":
        equal("status without the first node", ring.front.ask("POST", "", "to two").status, 502)
    for page in ring.pages:
        if homes[page.name] is ring.nodes[0]:
            equal("close code", page.end(), 1006)
            continue
        equal("got", page.receive()[1], "by the loop")
        if kind == "nginx":
            equal("got", page.receive()[1], "to two")


class Pusher(threading.Thread):
    """Pushes to one name after the other, until it is stopped; each until it is taken."""

    def __init__(self, front, names):
        super().__init__(daemon=True)
        self.front, self.names, self.stopped, self.error = front, names, False, None
        self.taken = collections.defaultdict(list)  # name: [(id, text)], those of 200 and 202
        self.start()

    def run(self):
        try:
            for turn in range(20):
                for name in self.names:
                    if self.stopped:
                        return
                    text = "%d for %s" % (turn, name)
                    self.taken[name].append((self.front.push(name, text)[1]["id"], text))
        except Failure as error:
            self.error = error

    def stop(self):
        self.stopped = True
        self.join(20)
        if self.error:
            raise self.error


def check_undisturbed(page, taken):
    """It has got what was taken for it: all, in order, once, and nothing else."""
    if taken:
        page.read_up_to(taken[-1][1])
    equal("got by " + page.name, page.got, taken)


def check_moved(page, taken, gone):
    """One that has changed nodes: nothing twice, and missing is only what the node that is gone had
    been given; gap at the seam, if the page had got anything before."""
    if taken[-1] not in page.got:
        page.read_up_to(taken[-1][1])
    seam = page.got.index("gap") if "gap" in page.got else 0
    before, after = page.got[:seam], page.got[seam + ("gap" in page.got):]
    true("no gap: %r" % page.got, "gap" in page.got or not any(gone.gave(n) for n, _ in page.got))
    old = [pair for pair in taken if gone.gave(pair[0])]
    equal("before the gap", before, old[:len(before)] if gone.dead else old)
    equal("after it", [pair for pair in after if pair[1] != "first"], taken[len(old):])


def watch(ring, gone, hit, code):
    """Hits a node while messages flow: who moves, and what everybody gets."""
    homes = ring.where()
    opened = [node.count("exportws_sessions_opened_total") for node in ring.nodes]
    pusher = Pusher(ring.front, ring.names)
    poll("messages flow", lambda: len(pusher.taken) >= len(ring.names) / 2)
    hit(gone)
    moved = [page for page in ring.pages if homes[page.name] is gone]
    for page in moved:
        equal("close code of " + page.name, page.end(), code)
        page.connect()
    poll("a round of messages", lambda: all(len(pusher.taken[page.name]) > 1 and not gone.gave(
        pusher.taken[page.name][-1][0]) for page in moved), 20)
    pusher.stop()
    for page in ring.pages:
        if page in moved:
            check_moved(page, pusher.taken[page.name], gone)
        else:
            check_undisturbed(page, pusher.taken[page.name])
    for node, before in zip(ring.nodes, opened):
        if node is not gone:
            came = node.count("exportws_sessions_opened_total") - before
            between("came to another node", came, 1, len(moved) - 1)
            equal("closed there", node.count("exportws_sessions_closed_total"), 0)
            equal("stayed", node.count("exportws_sessions"), before + came)
    equal("came in all", sum(node.count("exportws_sessions") for node in ring.nodes
                             if node is not gone), len(ring.pages))
    return moved


@test("haproxy", "nginx", signs=(True, False))
def a_node_that_dies_moves_its_share_only(stack, kind, signed):
    ring = Ring(stack, kind, signed)
    gone = ring.nodes[0 if signed else 2]  # its ids are from before the others' start, or beyond
    moved = watch(ring, gone, Node.die, 1006)
    between("share", len(moved) / TOKENS, 0.2, 0.5)
    ring.meet("after all ")
    if kind == "nginx":  # marked down, its share stays where it went
        homes = ring.where()
        ring.front.reload()
        check_all_come_again(ring, gone, {})
        true("others have moved", ring.where() == homes)


@test("haproxy", "nginx")
def a_node_that_drains_loses_nothing(stack, kind, signed):
    ring = Ring(stack, kind, signed)
    watch(ring, ring.nodes[1], Node.drain, 1001)
    equal("exit status", ring.nodes[1].wait(), 0)


@test("haproxy")
def a_node_that_hangs_is_left(stack, kind, signed):
    ring = Ring(stack, kind, signed)
    watch(ring, ring.nodes[1], Node.hang, 1006)


@test("haproxy", "nginx")
def a_page_that_has_got_nothing_sees_no_gap(stack, kind, signed):
    ring = Ring(stack, kind, signed, tokens=40)
    homes = ring.where()
    ring.nodes[0].die()
    moved = [page for page in ring.pages if homes[page.name] is ring.nodes[0]]
    for page in moved:
        equal("close code", page.end(), 1006)
        equal("held", ring.front.push(page.name, "0 %")[1].get("held"), True)
        page.connect()
        page.read_up_to("0 %")
        equal("got", [text for _, text in page.got], ["first", "0 %"])
    ring.meet("after all ")


def wait_for(ring, node):
    """Until the proxy gives it new tokens."""
    new = ("%x" % number for number in range(10000))
    poll("the proxy sees it", lambda: node.gave(ring.front.push(next(new), "new")[1]["id"]))


def push_to_all(ring, node, missing):
    """A push to each: those of one node's share find nobody there. Returns that share's pages, each
    with what is held for it."""
    moved = {}
    for page in ring.pages:
        status, answer = ring.front.push(page.name, "now " + page.name)
        if status == 202 and missing:
            true("held on another node", node.gave(answer["id"]))
            moved[page] = (answer["id"], "now " + page.name)
        else:
            equal("push to " + page.name, (status, answer["delivered"]), (200, 1))
            equal("got by " + page.name, page.receive(), (answer["id"], "now " + page.name))
    return moved


def check_all_come_again(ring, node, moved):
    """All sessions are cut. Who changes nodes sees gap and gets what is held."""
    for page in ring.pages:
        equal("close code of " + page.name, page.end(), 1006)
        before = len(page.got)
        page.connect()
        if page in moved:
            page.read_up_to(moved[page][1])
            equal("got by " + page.name, page.got[before:],
                  ["gap", (node.base, "first"), moved[page]])
    ring.meet("after all ")
    homes = ring.where()
    equal("on the node", {name for name in homes if homes[name] is node},
          {page.name for page in moved})


@test("haproxy", "nginx")
def a_node_that_comes_back(stack, kind, signed):
    ring = Ring(stack, kind, signed)
    ring.meet("before ")
    homes, node = ring.where(), ring.nodes[0]
    node.die()
    away = [page for page in ring.pages if homes[page.name] is node]
    for page in away:
        equal("close code", page.end(), 1006)
        page.connect()
        equal("gap", (page.receive(), page.receive()[1]), ("gap", "first"))
    ring.meet("away ")
    homes = ring.where()
    node = stack.enter_context(Node(node.options, node.clients, node.push))
    ring.nodes[0] = ring.front.nodes[0] = node
    wait_for(ring, node)
    moved = push_to_all(ring, node, kind == "nginx")
    if kind == "haproxy":
        true("others have moved", ring.where() == homes)
        return
    equal("those that miss their sessions", set(moved), set(away))
    ring.front.reload()
    check_all_come_again(ring, node, moved)


@test("haproxy")
def a_node_is_added(stack, kind, signed):
    ring = Ring(stack, kind, signed, nodes=4)
    ring.meet("before ")
    homes, node = ring.where(), ring.nodes[3]
    ring.front.nodes = ring.nodes
    ring.front.reload()
    wait_for(ring, node)
    push_to_all(ring, node, False)
    true("others have moved", ring.where() == homes)
    new = [ring.front.push("new %d" % number, "new")[1]["id"] for number in range(TOKENS)]
    between("share of new tokens", sum(map(node.gave, new)) / TOKENS, 0.12, 0.38)
    # a proxy that has no table yet
    ring.front = stack.enter_context(Front(kind, ring.nodes, signed))
    between("share without the table", len(push_to_all(ring, node, True)) / TOKENS, 0.12, 0.38)


@test("nginx")
def a_node_is_added_by_weights(stack, kind, signed):
    ring = Ring(stack, kind, signed, nodes=4, cut=9 * SLOW)  # all are pushed to before it
    ring.meet("before ")
    ring.front.nodes = ring.nodes
    ring.front.reload()
    node = ring.nodes[3]
    wait_for(ring, node)
    moved = push_to_all(ring, node, True)
    between("share", len(moved) / TOKENS, 0.15, 0.35)
    check_all_come_again(ring, node, moved)


if __name__ == "__main__":
    run(TESTS, 2)
