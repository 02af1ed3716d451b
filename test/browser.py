#!/usr/bin/env python3
"""The demo page and the browser client, in a real Chromium that is driven by its DevTools protocol.

Environment: EXPORTWS, the server (./exportws). Prints a line for every test; arguments pick tests
by a part of their name. Screenshots go to build/ (or $SHOTS).
"""
import base64
import contextlib
import fcntl
import hmac
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
from harness import (DEADLINE, HERE, PATH, Failure, Server, dial, equal, poll, run,  # noqa: E402
                     true)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
SHOTS = os.environ.get("SHOTS", "build")


# ===== The browser: JSON with a NUL behind it through a pair of pipes =====

class Browser:
    """A Chromium without a window, and without anybody's profile."""

    def __init__(self, *flags):
        self.folder = tempfile.mkdtemp(prefix="exportws-browser.")
        there, self.to = (high(fd) for fd in os.pipe())
        self.source, back = (high(fd) for fd in os.pipe())
        self.process = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--remote-debugging-pipe",
             "--no-first-run", "--disable-gpu", "--disable-extensions",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--no-proxy-server", "--user-data-dir=" + self.folder, *flags, "about:blank"],
            preexec_fn=lambda: (os.dup2(there, 3), os.dup2(back, 4)), pass_fds=(3, 4),
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        os.close(there)
        os.close(back)
        self.grown, self.count, self.answers, self.events = threading.Condition(), 0, {}, []
        threading.Thread(target=self.gather, daemon=True).start()

    def gather(self):
        """Sorts what the browser says: answers by number, the rest in order."""
        data = b""
        while piece := os.read(self.source, 65536):
            data += piece
            *whole, data = data.split(b"\0")
            with self.grown:
                for said in map(json.loads, whole):
                    if "id" in said:
                        self.answers[said["id"]] = said
                    else:
                        self.events.append(said)
                self.grown.notify_all()

    def call(self, method, session=None, **params):
        with self.grown:
            self.count += 1
            number = self.count
        asked = {"id": number, "method": method, "params": params}
        if session:
            asked["sessionId"] = session
        os.write(self.to, json.dumps(asked).encode() + b"\0")
        with self.grown:
            if not self.grown.wait_for(lambda: number in self.answers, 3 * DEADLINE):
                raise Failure("%s: the browser does not answer" % method)
            said = self.answers.pop(number)
        if "error" in said:
            raise Failure("%s: %s" % (method, said["error"]))
        return said["result"]

    def close(self):
        with contextlib.suppress(Failure, OSError):
            self.call("Browser.close")
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)  # a session of its own, which we have made
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def high(fd):
    """The same descriptor, out of the way of 3 and 4."""
    other = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return other


class Page:
    """One tab. Leaving the `with` closes it and checks that nothing went to its console."""

    def __init__(self, browser, url, width=1280, height=800, scheme="light", complaints=()):
        self.browser, self.complaints = browser, complaints
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.target = target
        self.session = browser.call("Target.attachToTarget", targetId=target,
                                    flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.look(width, height, scheme)
        self.open(url)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None:
            equal("lines on the console", self.console(), [])
        self.browser.call("Target.closeTarget", targetId=self.target)

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def look(self, width, height, scheme):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def events(self, method):
        with self.browser.grown:
            return [event["params"] for event in self.browser.events
                    if event.get("sessionId") == self.session and event["method"] == method]

    def console(self):
        """All that a developer would see in the console, but for lost connections, which tests
        cause, and what the test expects."""
        said = [entry["entry"]["text"] for entry in self.events("Log.entryAdded")]
        said += [error["exceptionDetails"]["text"] + " "
                 + error["exceptionDetails"].get("exception", {}).get("description", "")
                 for error in self.events("Runtime.exceptionThrown")]
        said += [str([part.get("value") for part in call["args"]])
                 for call in self.events("Runtime.consoleAPICalled")]
        return [text for text in said if not any(word in text for word in self.complaints)]

    def run(self, expression):
        """What a JavaScript expression comes to; a promise is waited for."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                         awaitPromise=True, userGesture=True)
        if "exceptionDetails" in said:
            raise Failure("%s: %s" % (expression, said["exceptionDetails"]))
        return said["result"].get("value")

    def wait(self, expression, seconds=DEADLINE):
        return poll(expression, lambda: self.run(expression), seconds)

    def text(self, selector):
        return self.run("document.querySelector(%s).innerText" % json.dumps(selector))

    def wait_text(self, selector, want):
        try:
            poll(want, lambda: self.text(selector) == want)
        except Failure:
            equal(selector, self.text(selector), want)

    def messages(self):
        """The texts in the list, oldest first."""
        return self.run("[...document.querySelectorAll('li p')].map(p => p.innerText).reverse()")

    def wait_messages(self, *want):
        with contextlib.suppress(Failure):
            poll("messages", lambda: self.messages() == list(want))
        equal("messages", self.messages(), list(want))

    def press(self, key):
        for kind in ("rawKeyDown", "char", "keyUp"):
            if kind != "char" or key == "Enter":
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                          windowsVirtualKeyCode={"Tab": 9, "Enter": 13}[key],
                          text="\r" if key == "Enter" else "")

    def scrolls_sideways(self):
        return self.run("document.documentElement.scrollWidth > document.documentElement."
                        "clientWidth")

    def shoot(self, name):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True,
                         clip={"x": 0, "y": 0, "width": size["width"], "height": size["height"],
                               "scale": 1})
        os.makedirs(SHOTS, exist_ok=True)
        with open(os.path.join(SHOTS, name + ".png"), "wb") as file:
            file.write(base64.b64decode(shot["data"]))


# ===== What stands between, and elsewhere =====

class Wire:
    """A TCP proxy to the client door that can lose what it carries, and be cut."""

    def __init__(self, address):
        self.address, self.losing, self.pairs = address, False, []
        self.door = socket.create_server(("127.0.0.1", 0))
        self.name = "127.0.0.1:%d" % self.door.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.door.close()
        self.cut()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                near = self.door.accept()[0]
                far = dial(self.address)
                far.settimeout(None)
                self.pairs.append((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self.carry, args=pair, daemon=True).start()

    def carry(self, source, to):
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if not self.losing:
                    to.sendall(piece)
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_WR)

    def cut(self):
        while self.pairs:
            for sock in self.pairs.pop():
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()


@contextlib.contextmanager
def other_site():
    """A site of its own on another host name: its empty page."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>other</title><link rel=icon href='data:,'>")

        def log_message(self, *_):
            pass
    class Site(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):  # a browser may open connections that it does not need
            pass
    with Site(("127.0.0.1", 0), Handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield "http://localhost:%d" % site.server_port
        site.shutdown()


GAP = "Something may be missing here: it is no longer kept."
LOST = ("WebSocket connection to ",)  # what the browser says of a connection that failed


# ===== The tests: each gets the browser =====

TESTS, BROWSERS = [], []


def test(function):
    TESTS.append((function.__name__, lambda: function(browser())))
    return function


def browser():
    """One for all of them."""
    if not BROWSERS:
        BROWSERS.append(Browser())
    return BROWSERS[0]


def url(server, token):
    return "http://%s/#%s" % (server.clients, token)


@test
def page_shows_what_its_own_curl_line_pushes(chromium):
    """Token and path are such that the shell and HTML have to be kept from them."""
    path = "/a'b&amp;$(c)/"
    with Server("--demo", "--path", path) as server, \
            Page(chromium, url(server, "it%27s%20%22%24x%C3%BC")) as page:
        page.wait_text("#state", "Connected")
        equal("token field", page.run("token"), "it's \"$xü")
        said = subprocess.run(["sh", "-c", page.text("#curl")], capture_output=True, check=True)
        equal("delivered", json.loads(said.stdout)["delivered"], 1)
        page.wait_messages("3,700 of 10,000 rows")
        equal("bar", page.run("[document.querySelector('progress').value,"
                              " document.querySelector('li b').innerText, document.title]"),
              [0.37, "37 %", "37 % - exportws"])
        equal("id", page.text("li code"), "id %d" % json.loads(said.stdout)["id"])


@test
def page_names_the_way_through_secrets_and_a_socket(chromium):
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/secret", "w") as file:
            file.write("s3cret\n")
        door, name = folder + "/it's&;$door", "a.b.%d" % (time.time() + 600)
        signature = base64.urlsafe_b64encode(hmac.digest(b"s3cret", name.encode(), "sha256"))
        with Server("--demo", "--push", "unix:" + door, "--push-secret-file", folder + "/secret",
                    "--client-secret-file", folder + "/secret") as server, \
                Page(chromium, url(server, name + "." + signature.decode().strip("="))) as page:
            page.wait_text("#state", "Connected")
            said = subprocess.run(["sh", "-c", page.text("#curl")], capture_output=True, check=True,
                                  env=dict(os.environ, SECRET="s3cret"))
            equal("delivered", json.loads(said.stdout)["delivered"], 1)
            page.wait_messages("3,700 of 10,000 rows")
    with Server("--demo", "--push", "none") as server, Page(chromium, url(server, "t")) as page:
        equal("no door", page.text("#curl"), "The push door of this server is shut.")


@test
def page_shows_all_kinds_of_messages(chromium):
    with Server("--demo") as server, Page(chromium, url(server, "t")) as page:
        page.wait_text("#state", "Connected")
        texts = ['{"progress":0}', '{"progress":1,"text":"all"}', '{"progress":1.01}',
                 '{"progress":"0.5"}', '{"progress":null}', "null", "[0.5]", "{", "", "a\nb",
                 "<b>no markup</b>", "ünï", "a" * 3000]
        for text in texts:
            server.send("t", text.encode())
        server.send("t", b"\n\0\xff", headers={"Content-Type": "application/octet-stream"})
        page.wait("document.querySelectorAll('li').length === %d" % (len(texts) + 1))
        equal("messages", page.messages(), [texts[0], "all", *texts[2:], "3 bytes of binary data"])
        equal("bars", page.run("[...document.querySelectorAll('progress')].map(p => p.value)"),
              [1, 0])
        true("scroll", not page.scrolls_sideways())
        page.look(360, 800, "light")
        true("scroll at 360", not page.scrolls_sideways())
        for number in range(500):
            server.send("t", "%d" % number)
        page.wait("document.querySelector('li p').innerText === '499'")
        equal("kept", page.run("document.querySelectorAll('li').length"), 500)


@test
def page_keeps_its_token_in_the_address(chromium):
    with Server("--demo") as server, Page(chromium, url(server, "")) as page:
        page.wait_text("#state", "Connected")
        equal("token without one", page.run("$('token').value"), "demo")
        page.press("Tab")
        equal("first stop", page.run("document.activeElement.id"), "token")
        page.call("Input.insertText", text="4711 & ü")
        page.press("Enter")
        page.wait("location.hash === '#4711%20%26%20%C3%BC'")
        poll("new session", lambda: server.metric("exportws_sessions_opened_total") == 2)
        poll("old session gone", lambda: server.metric("exportws_tokens") == 1)
        server.send("4711 & ü", "one")
        page.wait_messages("one")
        page.call("Page.reload")
        page.wait("document.readyState === 'complete' && !document.querySelector('li')")
        page.wait_text("#state", "Connected")
        equal("token", page.run("$('token').value"), "4711 & ü")
        server.send("4711 & ü", "two")
        page.wait_messages("two")
        page.run("$('token').value = ''; $('form').requestSubmit()")
        page.run("$('token').value = 'a/b'; $('form').requestSubmit()")
        equal("hash", page.run("location.hash"), "#4711%20%26%20%C3%BC")


@test
def page_comes_back_to_a_server_that_was_killed(chromium):
    with Server("--demo") as server, \
            Page(chromium, url(server, "t"), complaints=LOST) as page:
        page.wait_text("#state", "Connected")
        server.send("t", "before")
        page.wait_messages("before")
        server.process.kill()
        server.process.wait()
        page.wait_text("#state", "Offline")
        true("countdown", page.wait("/^\\(retry in \\d+ s\\)$/.test($('wait').textContent)"))
        page.shoot("demo-offline")
        with Server("--demo", "--listen", server.clients, "--push", server.push) as again:
            again.send("t", "while it was away", 202)
            page.wait_text("#state", "Connected")
            equal("countdown", page.text("#wait"), "")
            again.send("t", "after")
            page.wait_messages("before", GAP, "while it was away", "after")  # it can't know
            page.run("client.close()")
        server.process.returncode = 0  # the kill was ours


@test
def page_misses_nothing_that_a_broken_line_swallowed(chromium):
    with Server("--demo") as server, Wire(server.clients) as wire, \
            Page(chromium, "http://%s/#t" % wire.name, complaints=LOST) as page:
        page.wait_text("#state", "Connected")
        server.send("t", "1")
        page.wait_messages("1")
        wire.losing = True
        for body in ("2", "3"):
            server.send("t", body)
        wire.cut()
        wire.losing = False
        page.wait_messages("1", "2", "3")
        server.send("", "4")
        page.wait_messages("1", "2", "3", "4")
        page.run("client.close()")


@test
def page_misses_nothing_before_its_first_message(chromium):
    with Server("--demo") as server, Wire(server.clients) as wire, \
            Page(chromium, "http://%s/#t" % wire.name, complaints=LOST) as page:
        page.wait_text("#state", "Connected")
        wire.losing = True
        server.send("t", "1")
        wire.cut()
        wire.losing = False
        page.wait_messages("1")
        page.run("client.close()")


@test
def page_says_when_something_is_gone(chromium):
    with Server("--demo", "--history", "1") as server, Wire(server.clients) as wire, \
            Page(chromium, "http://%s/#t" % wire.name, complaints=LOST) as page:
        page.wait_text("#state", "Connected")
        server.send("t", "1")
        page.wait_messages("1")
        wire.losing = True
        for body in ("2", "3"):
            server.send("t", body)
        wire.cut()
        wire.losing = False
        page.wait_messages("1", GAP, "3")
        page.run("client.close()")


@test
def page_that_was_replaced_stays_quiet(chromium):
    with Server("--demo", "--per-token", "1") as server, \
            Page(chromium, url(server, "t")) as old:
        old.wait_text("#state", "Connected")
        with Page(chromium, url(server, "t")) as new:
            new.wait_text("#state", "Connected")
            old.wait_text("#state", "Replaced by a newer page")
            old.run("dispatchEvent(new Event('online')), "
                    "document.dispatchEvent(new Event('visibilitychange', {bubbles: true}))")
            time.sleep(1.2)  # twice the longest first pause and more
            equal("opened", server.metric("exportws_sessions_opened_total"), 2)
            server.send("t", "hello")
            new.wait_messages("hello")
            equal("old one", old.messages(), [])
            server.ask("DELETE", PATH + "t")
            new.wait_text("#state", "Ended by the server")
            time.sleep(1.2)
            equal("opened", server.metric("exportws_sessions_opened_total"), 2)


@contextlib.contextmanager
def guest(chromium, *options):
    """A page of another site, without a policy, that has loaded the client; and the server."""
    with other_site() as site, Server(*options or ("--origin", site)) as server, \
            Page(chromium, site, complaints=LOST) as page:
        page.run("new Promise(done => document.head.append(Object.assign(document.createElement("
                 "'script'), {src: 'http://%s/exportws.js', onload: done})))" % server.clients)
        page.run("""
            globalThis.states = [];
            globalThis.got = [];
            const show = data => typeof data === 'string' ? data
              : data.constructor.name + ' ' + new Uint8Array(data);
            const call = {
              onstate: (state, detail) => states.push(detail === undefined ? state
                : state + ' ' + detail),
              onmessage: (data, id) => got.push([show(data), id ?? null])
            };
            const door = 'http://%s%s';""" % (server.clients, PATH))
        yield server, page
        page.run("one?.close()")


@test
def page_of_another_origin_is_refused(chromium):
    for options, want in ((("--origin", "https://another.example"), "waiting"), ((), "open"),
                          (("--log", "info"), "waiting")):  # the last: no list, and another host
        with guest(chromium, *options) as (server, page):
            page.run("Math.random = () => 0.5; var one = new ExportWS(door + 't', call)")
            page.wait("states.length >= 2")
            equal("states", page.run("states.slice(0, 2).map(s => s.split(' ')[0])"),
                  ["connecting", want])
            page.run("one.close()")
            equal("after close", page.run("states.at(-1)"), "closed 1000")
            equal("refused", server.metric('exportws_refused_total{status="403"}') > 0,
                  want == "waiting")


# ----- the client by itself, in a page of somebody else -----

def readme_script(first):
    """README's lines from the one that begins so to the next text."""
    with open(os.path.join(os.path.dirname(HERE), "README"), encoding="utf-8") as file:
        found = re.search(r"^    %s.*\n(?:    .*\n)*" % re.escape(first), file.read(), re.M)
    true("README has no line %r" % first, found)
    return found[0]


@test
def plain_lines_of_readme_show_a_message(chromium):
    with guest(chromium) as (server, page):
        lines = readme_script("const s = new WebSocket").replace("127.0.0.1:8080", server.clients)
        page.run("var got = [], beat; console.log = text => got.push(text);"
                 "globalThis.setInterval = f => beat = f;" + lines.replace("const s", "var s"))
        page.wait("Boolean(beat)")
        server.send("demo", "37 %")
        page.wait("got.length === 1")
        equal("got", page.run("got"), ["37 %"])
        page.run("beat()")
        poll("heartbeat", lambda: server.metric("exportws_heartbeats_total") == 1)
        page.run("s.close(); var one")


@test
def client_of_readme_shows_a_message(chromium):
    with guest(chromium) as (server, page):
        lines = readme_script("<script src=").replace("https://push.example.com",
                                                      "http://" + server.clients)
        script = lines[lines.index("<script>\n") + 9:lines.rindex("</script>")]
        page.run("var shown = [], said = [], one; console.log = (...words) => said.push(words);"
                 "{ const token = 'a b', show = data => shown.push(data);" + script +
                 "one = client; } 0")
        page.wait("one.state === 'open'")
        server.send("a b", "37 %")
        page.wait("shown.length === 1")
        equal("shown", page.run("shown"), ["37 %"])
        equal("said", page.run("said"), [["connecting", None], ["open", None]])


@test
def client_makes_its_url_of_what_it_is_given(chromium):
    with guest(chromium) as (_, page):
        here = "ws" + page.run("location.origin")[4:]
        for given, want in (("/a/b", here + "/a/b"), ("a?b=c", here + "/a?b=c"),
                            ("http://127.0.0.1:9/a#f", "ws://127.0.0.1:9/a"),
                            ("https://127.0.0.1:9/a", "wss://127.0.0.1:9/a"),
                            ("ws://127.0.0.1:9/a?x=y", "ws://127.0.0.1:9/a?x=y"),
                            ("wss://127.0.0.1:9/a", "wss://127.0.0.1:9/a")):
            equal(given, page.run("var one = new ExportWS(%s); one.close(); one.ws.url"
                                  % json.dumps(given)), want)
        for bad in ("ftp://127.0.0.1/", "http://[/"):
            true(bad, page.run("try { new ExportWS(%s); } catch (e) { e.name; }"
                               % json.dumps(bad)).endswith("Error"))


@test
def client_waits_longer_each_time_and_comes_at_once_when_it_can(chromium):
    """Where nobody listens; chance and timers are ours."""
    with socket.socket() as deaf, guest(chromium) as (_, page):
        deaf.bind(("127.0.0.1", 0))
        page.run("""Math.random = () => 0.5;
            globalThis.setTimeout = () => 0;
            var nobody = 'http://127.0.0.1:%d/a?b=c';
            var one = new ExportWS(nobody, call);""" % deaf.getsockname()[1])
        want = ["connecting"]
        for number, ms in enumerate([500, 1000, 2000, 4000, 8000, 16000, 20000, 20000]):
            page.wait("states.length === %d" % (len(want) + 1))
            want += ["waiting %d" % ms, "connecting"]
            page.run("dispatchEvent(new Event('%s'))" % ("online", "visibilitychange")[number % 2])
        equal("states", page.run("states"), want)
        page.run("states.length = 0; one.close(); one.close(); dispatchEvent(new Event('online'))")
        equal("closed", page.run("states"), ["closed 1000"])
        for random, ms in ((0, 250), (1, 750)):
            page.run("Math.random = () => %d; states.length = 0; one = new ExportWS(nobody, call)"
                     % random)
            page.wait("states.length === 2")
            equal("pause", page.run("states[1]"), "waiting %d" % ms)
            page.run("one.close()")


@test
def client_begins_anew_after_a_connection_that_held(chromium):
    with guest(chromium) as (server, page):
        page.run("""var clock = 0;
            Date.now = () => clock;
            Math.random = () => 0.5;
            var one = new ExportWS(door + 'u', call);""")
        page.wait("one.state === 'open'")
        for held, want in ((0, 500), (10000, 1000), (10001, 500)):
            page.run("states.length = 0; clock += %d; one.ws.close()" % held)
            page.wait("states.length > 0 && one.state === 'open'")
            equal("pause", page.run("states[0]"), "waiting %d" % want)


@test
def client_asks_for_what_follows_the_last_message(chromium):
    with guest(chromium) as (server, page):
        page.run("var one = new ExportWS(door + 'u?a=b&last=0', call)")
        page.wait("one.state === 'open'")
        first = json.loads(server.send("u", "x\ny").body)["id"]
        page.wait("got.length === 1")
        page.run("one.ws.close()")
        page.wait("states.length === 5")
        equal("url", page.run("one.ws.url"),
              "ws://%s%su?a=b&last=%d" % (server.clients, PATH, first))
        second = json.loads(server.send("u", b"\n\0\xff", headers={
            "Content-Type": "application/octet-stream"}).body)["id"]
        page.wait("got.length === 2")
        equal("got", page.run("got"), [["x\ny", str(first)], ["ArrayBuffer 10,0,255", str(second)]])


@test
def client_understands_a_server_without_ids(chromium):
    with guest(chromium) as (server, page):
        page.run("""
            var Whole = WebSocket;
            WebSocket = class extends Whole { constructor(url) { super(url); } };
            var one = new ExportWS(door + 'u', call);""")
        page.wait("one.state === 'open'")
        server.send("u", "1\n2")
        server.send("u", "gap")
        server.send("u", b"\0\n", headers={"Content-Type": "application/octet-stream"})
        page.wait("got.length === 3")
        equal("got", page.run("got"), [["1\n2", None], ["gap", None], ["ArrayBuffer 0,10", None]])


@test
def client_ends_when_it_is_told_to(chromium):
    with guest(chromium) as (server, page):
        page.run("var one = new ExportWS(door + 'u', call)")
        page.wait("one.state === 'open'")
        server.ask("DELETE", PATH + "u")
        page.wait("one.state === 'closed'")
        page.run("one.close(), dispatchEvent(new Event('online'))")
        equal("states", page.run("states"), ["connecting", "open", "closed 1000"])
        page.run("var one = new ExportWS(door + 'u', {onstate() { this.close(); }})")
        equal("closed by its first call", page.run("one.state"), "closed")
        page.run("var one = new ExportWS(door + 'u')")
        page.wait("one.state === 'open'")
        server.send("u", "nobody listens")


@test
def client_beats_and_knows_a_dead_line(chromium):
    """The clock is ours; a server that has answered once must go on."""
    with Server("--demo", "--heartbeat-reply") as server, Wire(server.clients) as wire, \
            Page(chromium, "http://%s/#t" % wire.name, complaints=LOST) as page:
        page.wait_text("#state", "Connected")
        page.run("client.beat()")
        page.wait("client.answers")
        equal("heartbeats", server.metric("exportws_heartbeats_total"), 1)
        equal("messages", page.messages(), [])
        page.run("client.beat()")
        page.wait("client.heard")
        equal("state", page.run("client.state"), "open")
        wire.losing = True
        page.run("client.beat()")
        page.run("client.beat()")
        equal("closing", page.run("client.ws.readyState"), 2)
        wire.cut()
        wire.losing = False
        page.wait_text("#state", "Connected")
        page.run("client.close()")
    with guest(chromium) as (server, page):
        page.run("var one = new ExportWS(door + 'u', {...call, heartbeat: 'x'})")
        page.wait("one.state === 'open'")
        page.run("one.beat(), one.beat()")
        server.wait_event("message", 2)
        equal("state", page.run("one.state"), "open")
        page.run("""one.close();
            globalThis.setInterval = (beat, ms) => { states.push('every ' + ms); beat(); };
            one = new ExportWS(door + 'u');""")
        poll("heartbeat", lambda: server.metric("exportws_heartbeats_total") == 1)
        equal("pause", page.run("states.at(-1)"), "every 20000")


# ----- how it looks, and to whom -----

LIGHT = """
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
"""

CONTRAST = "(() => {" + LIGHT + """
  return [...document.querySelectorAll('body *')]
    .filter(e => e.checkVisibility() && (e.value || [...e.childNodes].some(
      n => n.nodeType === 3 && n.data.trim())) && !['SCRIPT', 'STYLE'].includes(e.tagName))
    .map(e => [e.tagName + '#' + e.id,
      ratio(light(rgb(getComputedStyle(e).color)), light(ground(e)))]);
})()"""


# What is no text, beside what is behind it: a field's edge, a ring, the bar, the state's dot.
EDGES = "(() => {" + LIGHT + """
  const $ = id => document.querySelector(id);
  const of = (e, what) => light(rgb(getComputedStyle(e)[what]));
  const card = light(ground($('form'))), bar = $('progress');
  $('#copy').focus();
  return [
    ['edge of the field, outside', ratio(of($('input'), 'borderColor'), card)],
    ['edge of the field, inside', ratio(of($('input'), 'borderColor'), light(ground($('input'))))],
    ['edge of a button', ratio(of($('#copy'), 'borderColor'), card)],
    ['focus ring', ratio(of($('#copy'), 'outlineColor'), card)],
    ['bar', ratio(of($('form button'), 'backgroundColor'), of(bar, 'backgroundColor'))],
    ['dot of the state', ratio(of($('#state'), 'color'), light(ground($('#state'))))]];
})()"""


def speaking(page):
    """What a screen reader gets: role and name of all that is not ignored."""
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    return [(node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in tree if not node["ignored"] and "role" in node]


def look_at(chromium, width, scheme):
    """The page with and without messages: contrast, width, names, keyboard; pictures of both."""
    with Server("--demo") as server, Page(chromium, url(server, "demo"), width,
                                          scheme=scheme) as page:
        page.wait_text("#state", "Connected")
        page.shoot("demo-%d-%s-empty" % (width, scheme))
        asked = {event["request"]["url"].split("/")[2] for event in page.events(
            "Network.requestWillBeSent") if not event["request"]["url"].startswith("data:")}
        equal("hosts that it needs", asked, {server.clients})
        for body in ("Collecting rows", '{"progress":0.08,"text":"800 of 10,000 rows"}',
                     '{"progress":0.37,"text":"3,700 of 10,000 rows"}',
                     '{"progress":1,"text":"Packing"}', "done: https://a.example.com/" + 60 * "x"):
            server.send("demo", body)
        page.wait("document.querySelectorAll('li').length === 5")
        page.shoot("demo-%d-%s" % (width, scheme))
        true("scroll", not page.scrolls_sideways())
        for name, ratio in page.run(CONTRAST):
            true("contrast of %s at %s: %.2f" % (name, scheme, ratio), ratio >= 4.5)
        for state in ("waiting", "closed"):
            page.run("onstate('%s', 4001)" % state)
            worst = min(ratio for _, ratio in page.run(CONTRAST))
            true("contrast %s: %.2f" % (state, worst), worst >= 4.5)
        page.run("onstate('open')")
        heard = speaking(page)
        for role in ("textbox", "button", "progressbar", "log", "region", "heading", "main"):
            names = [name for kind, name in heard if kind == role]
            true("no %s in %r" % (role, heard), names)
            true("a %s without a name" % role, role == "main" or all(names))
        equal("languages", page.run("document.documentElement.lang"), "en")
        stops = []
        for _ in range(3):
            page.press("Tab")
            stops.append(page.run("[document.activeElement.id || document.activeElement.innerText,"
                                  " getComputedStyle(document.activeElement).outlineStyle]"))
        equal("stops of Tab", stops, [["token", "solid"], ["Connect", "solid"], ["copy", "solid"]])
        page.shoot("demo-%d-%s-focus" % (width, scheme))
        edges = page.run(EDGES)
        equal("edges", len(edges), 6)
        for name, ratio in edges:
            true("contrast of the %s at %s: %.2f" % (name, scheme, ratio), ratio >= 3)


for size in (1280, 360):
    for colours in ("light", "dark"):
        TESTS.append(("page_is_for_everybody_%d_%s" % (size, colours),
                      lambda size=size, colours=colours: look_at(browser(), size, colours)))


@test
def page_copies_its_curl_line(chromium):
    with Server("--demo") as server, Page(chromium, url(server, "t")) as page:
        chromium.call("Browser.grantPermissions", origin="http://" + server.clients,
                      permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        page.run("$('copy').click()")
        page.wait_text("#copy", "Copied")
        equal("clipboard", page.run("navigator.clipboard.readText()"), page.text("#curl"))
        page.run("navigator.clipboard.writeText = () => Promise.reject(); $('copy').click()")
        equal("selected", page.run("getSelection().toString()"), page.text("#curl"))


if __name__ == "__main__" and CHROMIUM is None:
    print("skip browser: no Chromium here")
elif __name__ == "__main__":
    try:
        run(TESTS, 1)
    finally:
        for one in BROWSERS:
            one.close()
