#!/usr/bin/env python3
"""Signed tokens from outside: README's own shell lines make and rotate them; SIGHUP.

Environment: EXPORTWS, the server (./exportws). Prints a line for every test; arguments pick
tests by a part of their name.
"""
import os
import signal
import string
import subprocess
import sys
import tempfile
import time
import urllib.parse

sys.dont_write_bytecode = True
from harness import (PATH, TEXT, Server, dial, equal, need, poll, read_head,  # noqa: E402
                     readme_block, run, sign, true)

LATER = 9999999999

TESTS = []


def test(function):
    """Registers a test, which gets a folder of its own."""
    def body():
        with tempfile.TemporaryDirectory() as folder:
            function(folder)
    TESTS.append((function.__name__, body))
    return function


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def signed_server(folder, secrets, *options):
    return Server("--client-secret-file", write(folder + "/secret", secrets), *options)


def status(server, token):
    """The status for a client with this token, which goes away again."""
    client = server.connect(urllib.parse.quote(token, safe=""))
    client.close()
    return client.status


def refusal(server, token):
    """The status and the one line that says why."""
    with dial(server.clients) as sock:
        sock.sendall(("GET %s%s HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                      "\r\n" % (PATH, token)).encode())
        code, headers, body = read_head(sock)
        while len(body) < int(headers.get("content-length", 0)):
            body += sock.recv(4096)
        return code, body.decode()


def hang_up(server, count):
    """Sends SIGHUP; the fields of the count-th event=reload."""
    server.process.send_signal(signal.SIGHUP)
    return server.wait_event("reload", count)[count - 1]


# ===== README's lines =====

def shell(script, **variables):
    """Runs it as the reader would; what it prints."""
    for tool in ("openssl", "basenc"):
        if tool in script:
            need(tool)
    done = subprocess.run(["sh", "-eu", "-c", script], env={**os.environ, **variables},
                          capture_output=True, timeout=10)
    equal("stderr of README's lines", done.stderr.decode(), "")
    equal("status of README's lines", done.returncode, 0)
    return done.stdout.decode()


def readme_token(path):
    """What README's lines make of the file at `path`."""
    return shell(readme_block("n=export-4711 ").replace("head -n 1 F", 'head -n 1 "$F"') +
                 "echo $token", F=path).strip()


@test
def readme_says_the_one_line(folder):
    del folder
    words = " ".join(readme_block("n=export-4711 ").split())
    line = ('printf %s "$n.$e" | openssl dgst -sha256 -hmac "$secret" -binary | '
            'basenc --base64url | tr -d =')
    true("README's lines are others: " + words, "signature=$(%s)" % line in words)


@test
def token_made_by_readme_gets_in(folder):
    secrets = ("s3cret", "correct horse battery staple", "x" * 64, "x" * 65, "y" * 300, "a'b$c*d%e")
    for number, secret in enumerate(secrets):
        with signed_server(folder, secret + "\n") as server:
            token = readme_token(folder + "/secret")
            equal("as Python signs it", token, sign("export-4711", token.split(".")[1], secret))
            seconds = int(token.split(".")[1]) - time.time()
            true("EXPIRES is %d seconds off" % seconds, 3500 < seconds <= 3600)
            client = server.session(token)
            equal("token in the log", server.wait_event("open")[0]["token"], "expo…")
            server.send("export-4711", "number %d" % number)
            equal("frame", client.receive(), (TEXT, b"number %d" % number))


@test
def rotation_by_readme_disturbs_nobody(folder):
    add, remove = readme_block("(umask 077; { echo ").split("\n\n")
    with signed_server(folder, "old\n") as server:
        def rotate(script, count):
            script = script.replace("F.new", '"$F.new"').replace(" F ", ' "$F" ').replace(
                " F;", ' "$F";')
            shell(script, F=folder + "/secret", new="new", pid=str(server.process.pid))
            fields = server.wait_event("reload", count)[count - 1]
            equal("reload", (fields["level"], fields["option"], fields["secret"]),
                  ("info", "client-secret-file", "read"))
            equal("who else may read it", os.stat(folder + "/secret").st_mode & 0o077, 0)
        old, new = sign("ab12", LATER, "old"), sign("ab12", LATER, "new")
        client = server.session(old)
        for step, want in ((None, (101, 403)), (add, (101, 101)), (remove, (403, 101))):
            if step:
                rotate(step, 1 if step == add else 2)
            equal("statuses", (status(server, old), status(server, new)), want)
            server.send("ab12", "still there")
            equal("frame", client.receive(), (TEXT, b"still there"))


# ===== Tokens =====

@test
def what_is_not_signed_is_refused_and_told_so(folder):
    with signed_server(folder, "s3cret") as server:
        good = sign("ab12", LATER, "s3cret")
        past = sign("ab12", int(time.time()) - 1, "s3cret")
        for token, want, why in (
                ("ab12", 403, "not signed"), ("ab12.%d" % LATER, 403, "not signed"),
                (good.replace(str(LATER), "soon"), 403, "not signed"),
                (sign("ab12", LATER, "other"), 403, "signature"),
                (sign("ab12", LATER, ""), 403, "signature"),
                ("cd34" + good[4:], 403, "signature"),
                (good.replace(str(LATER), str(LATER + 1)), 403, "signature"),
                (good + "=", 403, "signature"), (good[:-1], 403, "signature"),
                ("ab12.%d." % LATER, 403, "signature"), (past, 403, "expired"),
                (past[:-1] + "-", 403, "signature"), (good[4:], 404, "no token"),
                ("", 404, "no token"), (good + "%", 400, "encoded"), (good, 101, "")):
            code, body = refusal(server, token)
            equal("status of " + token, code, want)
            true("reason %r for %s" % (body, token), why in body and body.count("\n") == (want != 101))
        equal("refused by 403", server.metric('exportws_refused_total{status="403"}'), 12)
        def whys():
            return [fields["why"] for fields in server.events("refuse") if fields["status"] == "403"]
        poll("all of them in the log", lambda: len(whys()) == 12)
        equal("reasons in the log", len(set(whys())), 3)
    true("a signature in the log", good[-43:] not in "".join(server.log))


@test
def every_character_of_a_token_counts(folder):
    others = dict(zip(string.ascii_letters + string.digits + "-_.",
                      string.ascii_letters[1:] + string.digits + "-_.a"))
    with signed_server(folder, "s3cret") as server:
        good = sign("ab.12", LATER, "s3cret")
        equal("as it is", status(server, good), 101)
        for at, character in enumerate(good):
            bad = good[:at] + others[character] + good[at + 1:]
            equal("with another character at %d" % at, status(server, bad), 403)


@test
def session_goes_on_when_its_token_expires(folder):
    with signed_server(folder, "s3cret") as server:
        expires = int(time.time()) + 2
        token = sign("ab12", expires, "s3cret")
        client = server.session(token)
        poll("expired", lambda: time.time() >= expires + 0.1)  # time() is coarse
        equal("status for the same again", status(server, token), 403)
        server.send("ab12", "not disturbed")
        equal("frame", client.receive(), (TEXT, b"not disturbed"))


@test
def name_may_hold_dots_and_any_character(folder):
    with signed_server(folder, "s3cret") as server:
        for name in ("a.b.c", ".", "..", "1.2", "zürich büro 東京 %?#&+", "x.%d" % LATER,
                     sign("x", LATER, "s3cret")):
            client = server.session(urllib.parse.quote(sign(name, LATER, "s3cret"), safe=""))
            server.send(name, ("to " + name).encode())
            equal("frame", client.receive(), (TEXT, ("to " + name).encode()))
        encoded = "".join("%%%02x" % byte for byte in sign("ab12", LATER, "s3cret").encode())
        equal("status, all encoded", server.connect(encoded).status, 101)


@test
def bound_is_that_of_the_name(folder):
    with signed_server(folder, "s3cret", "--max-token", "10") as server:
        equal("status at the bound", status(server, sign("x" * 10, LATER, "s3cret")), 101)
        equal("status past it", status(server, sign("x" * 11, LATER, "s3cret")), 414)
        equal("status of one that is not signed", status(server, "x" * 200), 403)
        equal("status of a push at the bound", server.ask("POST", PATH + "x" * 10, "m").status, 202)
        equal("status of a push past it", server.ask("POST", PATH + "x" * 11, "m").status, 414)


@test
def push_door_takes_the_plain_name(folder):
    with signed_server(folder, "s3cret", "--max-token", "100") as server:
        token = sign("ab12", LATER, "s3cret")
        server.send("ab12", "held", want=202)
        client = server.session(token)
        equal("frame", client.receive(), (TEXT, b"held"))
        equal("sessions of the name", server.ask("GET", PATH + "ab12").body.strip(),
              '{"sessions":1,"held":0}')
        server.send(token, "to one of that name", want=202)
        equal("closed", server.ask("DELETE", PATH + "ab12").body.strip(), '{"closed":1}')
        equal("close code", client.close_code(), 1000)


@test
def rules_before_the_signature_are_told_first(folder):
    with signed_server(folder, "s3cret") as server:
        with dial(server.clients) as sock:
            sock.sendall(("GET %sab12 HTTP/1.1\r\nHost: h\r\n\r\n" % PATH).encode())
            equal("status of no upgrade", read_head(sock)[0], 426)
        client = server.connect(sign("ab12", LATER, "s3cret"), headers=["Origin: http://evil"])
        equal("status of another Origin", client.status, 403)


# ===== SIGHUP =====

@test
def file_of_two_lines_is_two_secrets(folder):
    for secrets in ("old\nnew", "old\r\nnew\r\n", "old\n\n\nnew\nthird\n"):
        with signed_server(folder, secrets) as server:
            for secret, want in (("old", 101), ("new", 101), ("third", 403), ("old\r", 403),
                                 ("old\nnew", 403)):
                equal("signed with %r" % secret, status(server, sign("a", LATER, secret)), want)


@test
def file_that_is_no_use_leaves_the_old_secret(folder):
    path = folder + "/secret"
    with signed_server(folder, "old") as server:
        token, count = sign("ab12", LATER, "old"), 0
        for spoil, why in ((lambda: os.remove(path), "No such file"),
                           (lambda: os.mkdir(path), "directory"),
                           (lambda: os.rmdir(path) or write(path, ""), "empty"),
                           (lambda: write(path, "\nnew\n"), "empty"),
                           (lambda: write(path, "new\0\n"), "NUL"),
                           (lambda: write(path, "new\n" + "x" * 2000), "too long"),
                           (lambda: os.remove(path) or os.mkfifo(path), "empty")):
            spoil()
            count += 1
            fields = hang_up(server, count)
            equal("level, option and secret", (fields["level"], fields["option"], fields["secret"]),
                  ("warn", "client-secret-file", "kept"))
            true("why %r" % fields["why"], why in fields["why"])
            equal("status", status(server, token), 101)
        os.remove(path)
        write(path, "new\n")
        equal("level", hang_up(server, count + 1)["level"], "info")
        equal("status with the old one", status(server, token), 403)
        equal("status with the new one", status(server, sign("ab12", LATER, "new")), 101)


@test
def secret_of_the_push_door_is_read_again_too(folder):
    path, clients = write(folder + "/push", "old\nother\n"), write(folder + "/clients", "s3cret")
    with Server("--push-secret-file", path, "--client-secret-file", clients) as server:
        def ask(secret):
            given = {"Authorization": "Bearer " + secret}
            return server.ask("GET", "/online", headers=given).status
        equal("statuses before", (ask("old"), ask("new"), ask("other")), (200, 401, 401))
        write(path, "new\nold\n")
        server.process.send_signal(signal.SIGHUP)
        fields = server.wait_event("reload", 2)
        equal("options", [row["option"] for row in fields],
              ["push-secret-file", "client-secret-file"])
        equal("statuses after", (ask("old"), ask("new")), (401, 200))


@test
def hang_up_ends_no_server(folder):
    quiet = write(folder + "/secret", "old")
    for options in ((), ("--client-secret-file", quiet, "--log", "error")):
        with Server(*options) as server:
            client = server.session(sign("ab12", LATER, "old"))
            if options:
                write(quiet, "new")
            for _ in range(3):
                server.process.send_signal(signal.SIGHUP)
                server.send(sign("ab12", LATER, "old") if not options else "ab12", "still there")
                equal("frame", client.receive(), (TEXT, b"still there"))
            if options:
                poll("read again", lambda: status(server, sign("ab12", LATER, "new")) == 101)
            equal("lines about it", server.events("reload"), [])


@test
def hang_up_while_draining_changes_nothing(folder):
    with signed_server(folder, "s3cret", "--drain", "30", "--close-timeout", "30") as server:
        client = server.session(sign("ab12", LATER, "s3cret"))
        server.process.terminate()
        equal("close code", client.close_code(), 1001)
        hang_up(server, 1)
        true("it waits on", server.process.poll() is None)
        client.close()
        equal("exit status", server.wait(), 0)


if __name__ == "__main__":
    run(TESTS, 4)
