#!/usr/bin/env python3
"""README against the program: what it shows is what one gets, and every refusal, close code, event
and metric that there is in exportws.c stands in it.

Environment: EXPORTWS, the server (./exportws). Prints a line for every test; arguments pick
tests by a part of their name.
"""
import os
import pty
import re
import resource
import shutil
import subprocess
import sys
import textwrap

sys.dont_write_bytecode = True
from harness import (DEADLINE, HERE, PROGRAM, TEXT, Failure, Server, Skip,  # noqa: E402
                     attempt, equal, run, true)

ROOT = os.path.dirname(HERE)
TESTS = []


def test(function):
    TESTS.append((function.__name__, function))
    return function


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def words(text):
    """The same on one line."""
    return " ".join(text.split())


def chapter(title):
    found = re.search(r"^%s\n\n(.*?)(?=^[A-Z][A-Z ,]+\n\n|\Z)" % title, read("README"), re.M | re.S)
    true("README has no chapter " + title, found)
    return found[1]


# ===== Symptoms =====

def body_of(function):
    found = re.search(r"^static[^\n;]*\b%s\(.*?^}" % function, read("exportws.c"), re.M | re.S)
    true("no function " + function, found)
    return found[0]


def literal(text):
    """A C string, in pieces or whole; None when it is none."""
    pieces = re.fullmatch(r'\s*((?:"[^"]*"\s*)+)', text)
    return pieces and "".join(re.findall(r'"([^"]*)"', text))


def statuses_of(function):
    """{words: status} of a function that makes one of the other; its last has no status there."""
    return {why: status for status, why in
            re.findall(r'(?:== (\d+) \? |: )"([^"]+)"', body_of(function))}


def refusals():
    """(status, words) of all that refuses, and the door; "" where the status is another's."""
    source, found, calls = read("exportws.c"), set(), 0
    for status, why in re.findall(r'\(struct refusal\)\{([^,]*),\s*"([^"]+)"', source):
        found.add((status if status.isdigit() else "", why, "client"))
    callers = r"\b(client_refuse|push_refuse(?:_message)?|pusher_dismiss|refuse_note)\(w,"
    for call in re.finditer(callers + r" &?[^,]+, (.*?)\);\n", source, re.S):
        door = "push" if call[1] != "client_refuse" else "client"
        parts = re.split(r',\s*(?=(?:[^"]*"[^"]*")*[^"]*$)', call[2])
        said = [text for text in map(literal, parts[1:]) if text and not text.startswith("\\r")]
        calls += 1
        if said:
            found.add((parts[0], said[0], door))
        else:
            true("a refusal that this test does not see: " + call[0],
                 re.search(r"(head|token)_why\(|\bwhy\b", call[0]))
    equal("calls", calls, len(re.findall(callers, source)))
    for door in "client", "push":
        for function in "head_why", "token_why":
            for why, status in statuses_of(function).items():
                found.add((status or "400", why, door))
    busy = re.search(r'pusher_accept.*?\bwhy = "([^"]+)"', source, re.S)
    found.add(("503", busy[1], "push"))
    return found


def told(title, until):
    """(status, words) of the rows below a line of Symptoms; what to do stands further in."""
    text, status, rows = chapter("SYMPTOMS"), "", set()
    part = text[text.index(title):text.index(until)]
    for line in part.splitlines():
        row = re.fullmatch(r"    (\d\d\d|   )  (\S.*)", line)
        if row:
            status = row[1].strip() or status
            rows.add((status, row[2]))
    return rows


@test
def every_refusal_is_a_symptom_and_every_symptom_a_refusal():
    shown = {"client": told("What a client", "What a pusher"),
             "push": told("What a pusher", "How sessions end")}
    there = refusals()
    true("only %d refusals" % len(there), len(there) > 40)
    for status, why, door in sorted(there):
        rows = shown[door]
        true("README's Symptoms lack %s %r at the %s door" % (status, why, door),
             (status, why) in rows or (not status and why in {row[1] for row in rows}))
    for door, rows in shown.items():
        for status, why in sorted(rows):
            true("no %s %r at the %s door" % (status, why, door),
                 (status, why, door) in there or ("", why, door) in there)


@test
def every_close_is_a_symptom():
    source = read("exportws.c")
    text = chapter("SYMPTOMS")
    text = words(text[text.index("How sessions end"):text.index("What else the log")])
    closes = set(re.findall(r'session_(?:fail|end)\([^;]*?, (\d{4}),\s*([^;]*?)\);', source))
    true("only %d ways to close" % len(closes), len(closes) > 8)
    for code, said in closes:
        for why in re.findall(r'"([^"]+)"', said):
            true("README's Symptoms lack %s %s" % (code, why), "%s %s" % (code, why) in text)
    for why, code in statuses_of("close_why").items():
        true("README's Symptoms lack " + why, "%s %s" % (code or 1002, why) in text)
    table = re.search(r"close_reasons\[EXPORTWS_REASONS\] = \{(.*?)\}", source, re.S)
    for reason in re.findall(r'"(\w+)"', table[1]):
        true("README's Symptoms lack the reason " + reason, re.search(
            r"^    %s +\d{4}" % reason, chapter("SYMPTOMS"), re.M))
    for code in {code for code, _ in closes} | {"1007", "1009"}:
        true("README's Close codes lack " + code, re.search(
            r"^    %s   " % code, chapter("CLOSE CODES"), re.M))


@test
def every_event_is_a_symptom():
    source = read("exportws.c")
    calls = re.findall(r"(?<!int )log_(?:begin|session)\(([^;{]*)", source)
    events = {event for call in calls for event in re.findall(r'"(\w+)"', call)} | set(
        re.findall(r"\bevent=(\w+)", source))
    true("only %s" % events, len(events) >= 11)
    text = chapter("SYMPTOMS")
    for event in sorted(events):
        true("README's Symptoms lack event=" + event, re.search(
            r"^    %s  |event=%s\b" % (event, event), text, re.M))
    equal("events of Log and metrics", set(re.findall(r"\w+", re.search(
        r"one line an event: (.*?)\.", words(chapter("LOG AND METRICS")))[1])), events)


@test
def every_metric_is_named():
    with Server() as server:
        names = re.findall(r"# TYPE exportws_(\w+)", server.ask("GET", "/metrics").body)
    text = words(chapter("LOG AND METRICS"))
    for group in re.findall(r"exportws_(\w+?)_\w+_total((?:, _\w+_total)+)", text):
        for tail in re.findall(r"_\w+_total", group[1]):
            text += " exportws_%s%s " % (group[0], tail)
    true("only %d" % len(names), len(names) > 20)
    for name in names:
        true("README lacks exportws_" + name, re.search(r"\bexportws_%s\b" % name, text))
    for name in set(re.findall(r"\bexportws_([a-z_]+)", text)) - {"post"}:
        true("no metric exportws_" + name, name in names)


# ===== What it shows =====

def blocks(text):
    """The console blocks: [[(command, what it prints), ...], ...]."""
    for block in re.findall(r"(?:^    .*\n|\n(?=    ))+", text, re.M):
        parts, lines = [], textwrap.dedent(block).splitlines()
        while lines:
            line = lines.pop(0)
            if line.startswith("$ "):
                command = line[2:]
                while command.endswith("\\"):
                    command = command[:-1] + lines.pop(0).strip()
                parts.append([command, []])
            elif parts and not line.startswith("#"):
                parts[-1][1].append(line)
        if parts:
            yield [(command, "\n".join(shown)) for command, shown in parts]


def same(text):
    """Without what is another each time, and where its lines end."""
    for pattern, by in ((r'"id":\d+', '"id":N'), (r"\bid=\d+", "id=N"), (r"time=\S+", "time=T"),
                        (r"peer=127\.0\.0\.1\s*:\d+", "peer=P")):
        text = re.sub(pattern, by, text)
    return "".join(text.split())


def here(server, command):
    """README's ports are those of this server."""
    for old, new in (("127.0.0.1:8080", server.clients), ("127.0.0.1:8081", server.push),
                     ("./exportws", os.path.abspath(PROGRAM))):
        command = command.replace(old, new)
    return command.replace("curl ", "curl -sS --noproxy '*' -m 10 ")


def shell(command, limits=":"):
    if "curl" in command and not shutil.which("curl"):
        raise Skip("no curl here")
    done = subprocess.run(["sh", "-c", limits + "\n" + command], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=3 * DEADLINE)
    return done.stdout.decode("utf-8", "replace")


def follow(server, block):
    """Each command of a block prints what README shows."""
    for command, shown in block:
        got = shell(here(server, command)).replace(server.push, "127.0.0.1:8081")
        equal(command, same(got), same(shown))


def block_with(title, word):
    for block in blocks(chapter(title) if title else read("README")):
        if any(word in command for command, _ in block):
            return block
    raise Failure("README shows no %r" % word)


@test
def first_screen_is_what_one_gets():
    (upgrade, head), (push, answer) = block_with(None, "Upgrade: websocket")
    with Server() as server:
        near, far = pty.openpty()  # a terminal, as the reader's: curl writes to it at once
        browser = subprocess.Popen(["sh", "-c", "exec " + here(server, upgrade)], stdout=far,
                                   stdin=subprocess.DEVNULL)

        def terminal(until):
            said = b""
            while not said.endswith(until):
                said += os.read(near, 1)  # curl ends after ten seconds, and this with it
            return said
        try:
            os.close(far)
            said = terminal(b"\n\r\r\n")
            said = re.sub(r"\x1b\[\d*m", "", said.decode())  # curl's bold names
            equal("the browser's head", same(said), same(head))
            equal("the push", same(shell(here(server, push))), same(answer))
            equal("the message", terminal(b"%"), b"\x81\x0437 %")
        finally:
            browser.kill()
            browser.wait()
            os.close(near)
        # The log of that is what stands in Log and metrics.
        shown = re.search(r"^    time=.*?delivered=1$", chapter("LOG AND METRICS"), re.M | re.S)
        server.wait_event("push")
        log = [line for line in server.log if "event=open" in line or "event=push" in line]
        equal("log", same("".join(log)), same(shown[0]))


@test
def refusal_is_what_one_gets():
    with Server() as server:
        follow(server, block_with("TWO DOORS", "curl -i"))


@test
def pushes_are_what_one_gets():
    with Server() as server:
        server.session("demo")
        follow(server, block_with("TWO DOORS", "curl -X DELETE"))


@test
def demo_page_line_is_a_push():
    with Server() as server:
        client = server.session("demo")
        (command, shown), = block_with("THE BROWSER CLIENT", "progress")
        equal("shown", shown, "")
        true("an answer", '"delivered":1' in shell(here(server, command)))
        equal("frame", client.receive(), (TEXT, b'{"progress":0.37,"text":"3,700 of 10,000 rows"}'))


@test
def check_says_what_is_shown():
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4096:
        raise Skip("the hard limit of descriptors is below 4096")
    (command, shown), = block_with("OPTIONS", "--check")
    with Server() as server:
        more = " --listen 127.0.0.1:0 --push " + server.push
        said = shell(here(server, command) + more, "ulimit -Sn 1024; ulimit -Hn 4096")
        for real, shows in (("127.0.0.1:0\n", "127.0.0.1:8080\n"), (server.push, "127.0.0.1:8081")):
            said = said.replace(real, shows)
        equal(command, same(said), same(shown))


@test
def help_and_ready_line_are_what_is_shown():
    text = chapter("OPTIONS")
    shown = text[text.index("  --listen ADDR"):text.index("A bad option")]
    status, out, _ = attempt("--help")
    equal("status", status, 0)
    equal("--help", words(out[out.index("  --listen ADDR"):]), words(shown))
    with Server() as server:
        ready = words(re.search(r"^    exportws \S+ ready:.*\n.*", text, re.M)[0])
        mine = server.stdout[0].replace(server.clients, "127.0.0.1:8080").replace(
            server.push, "127.0.0.1:8081")
        equal("ready line", mine, ready)


@test
def contents_are_the_chapters():
    text = read("README")
    listed = re.search(r"^CONTENTS\n(.*?)\n\n", text, re.M | re.S)[1]
    titles = []
    for line in listed.splitlines():
        title = re.split(r"  +", line.strip())[0]
        titles += title.split(", ") if "Portability" in title else [title]
    chapters = re.findall(r"(?:\A|\n\n\n)([A-Z][A-Z @,-]+)\n\n", text)
    equal("chapters", [title.upper() for title in titles], chapters)
    for number, line in enumerate(text.splitlines(), 1):
        true("line %d has %d columns" % (number, len(line)), len(line) <= 80)


if __name__ == "__main__":
    run(TESTS, 4)
