"""What the Python tests share: a server process, requests, a bare WebSocket client, ok lines.

The environment names the server: EXPORTWS (./exportws). Every wait has a deadline and ends as soon
as the thing happens.
"""
import base64
import concurrent.futures
import hmac
import http.client
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import urllib.parse

PROGRAM = os.environ.get("EXPORTWS", "./exportws")
PATH = "/app/ws/export-task/"
HERE = os.path.dirname(os.path.abspath(__file__))
SLOW = max(1, int(os.environ.get("EXPORTWS_TEST_SLOW", "1") or 1))
DEADLINE = 10.0 * SLOW  # seconds for whatever should happen at once

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

READY = re.compile(
    r"exportws (?P<version>\S+) ready: clients (?P<clients>\S+), push (?P<push>\S+), "
    r"capacity (?P<capacity>\d+), memory (?P<memory>\d+) bytes")
LOG_LINE = re.compile(
    r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ level=(error|warn|info|debug) "
    r"event=(open|close|refuse|message|push|hold|expire|drain|start|stop|reload)"
    r'( [a-z_]+=("([^"\\]|\\.)*"|[^\s"=]+))*')
LOG_FIELD = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)')


class Failure(Exception):
    """A test's expectation was not met."""


class Skip(Exception):
    """A tool that the test needs is missing."""


def equal(what, got, want):
    if got != want:
        raise Failure("%s: got %r, want %r" % (what, got, want))


def true(what, condition):
    if not condition:
        raise Failure(what)


def between(what, value, low, high):
    if not low <= value <= high:
        raise Failure("%s: got %.3f, want %.3f to %.3f" % (what, value, low, high))


def poll(what, probe, seconds=DEADLINE):
    """Asks until probe() answers something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Failure("%s: not within %g s" % (what, seconds))
        time.sleep(0.01)


def need(*tools):
    """Their paths, also where only root looks; a test that lacks one is skipped."""
    paths = [shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
             for tool in tools]
    for tool, path in zip(tools, paths):
        if not path:
            raise Skip("no %s here" % tool)
    return paths[0] if len(paths) == 1 else paths


# ===== README's lines =====

def readme():
    with open(os.path.join(os.path.dirname(HERE), "README"), encoding="utf-8") as file:
        return file.read()


def readme_block(first):
    """The indented text of README that begins with the line that begins so, up to other text."""
    found = re.search(r"^    %s.*\n(?:(?:    .*)?\n)*" % re.escape(first), readme(), re.M)
    true("README has no line %r" % first, found)
    return textwrap.dedent(found[0]).rstrip("\n") + "\n"


def replace(text, *pairs):
    """Each must stand there."""
    for old, new in pairs:
        true("README's lines have no %r" % old, old in text)
        text = text.replace(old, new)
    return text


# ===== Tokens =====

def sign(name, expires, secret):
    """The token of that name, as README's lines make it."""
    text = "%s.%s" % (name, expires)
    mac = hmac.new(secret.encode(), text.encode(), "sha256").digest()
    return text + "." + base64.urlsafe_b64encode(mac).decode().rstrip("=")


# ===== Log lines =====

def log_fields(line):
    """The fields of one logfmt line as a dictionary; quotes are taken off, escapes stay."""
    return {name: value.strip('"') for name, value in LOG_FIELD.findall(line)}


def log_fault(line):
    """Why this is no log line, or None."""
    if not LOG_LINE.fullmatch(line):
        return "not a log line: %r" % line
    if not line.isprintable():
        return "raw control character in %r" % line
    return None


# ===== Sockets =====

def dial(address, receive_buffer=None, source=None):
    """Connects to HOST:PORT, [V6]:PORT or unix:PATH as the ready line writes them."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        target = address[len("unix:"):]
    else:
        host, port = address.rsplit(":", 1)
        sock = socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET)
        target = (host.strip("[]") or "127.0.0.1", int(port))
        if source:
            sock.bind((source, 0))
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(DEADLINE)
    try:
        sock.connect(target)
    except OSError:
        sock.close()
        raise
    return sock


class Connection(http.client.HTTPConnection):
    """An HTTP connection that also takes a Unix socket."""

    def __init__(self, address):
        super().__init__("localhost", timeout=DEADLINE)
        self.address = address

    def connect(self):
        self.sock = dial(self.address)

    def ask(self, method, target, body=None, headers=None):
        """One request; its response gains .body (text)."""
        self.request(method, target, body, headers or {})
        response = self.getresponse()
        response.body = response.read().decode()
        return response


def read_head(sock):
    """Reads the head of a response: (status, {name: value}, bytes behind it); 0 at end of file."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(4096)
        if not piece:
            return 0, {}, data
        data += piece
    head, rest = data.split(b"\r\n\r\n", 1)
    lines = head.decode("latin-1").split("\r\n")
    fields = (line.split(":", 1) for line in lines[1:])
    return int(lines[0].split()[1]), {name.lower(): value.strip() for name, value in fields}, rest


class Client:
    """A WebSocket client that does nothing by itself: no pong, no answer to a close."""

    def __init__(self, address, target, headers=(), receive_buffer=None, source=None, tls=None):
        self.sock = dial(address, receive_buffer, source)
        if tls:
            self.sock = tls.wrap_socket(self.sock, server_hostname=SITE)
        key = base64.b64encode(os.urandom(16)).decode()
        host = "localhost" if address.startswith("unix:") else address
        lines = ["GET %s HTTP/1.1" % target, "Host: " + host, "Upgrade: websocket",
                 "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + key,
                 *headers, "", ""]
        self.sock.sendall("\r\n".join(lines).encode("latin-1"))
        self.status, self.headers, self.pending = read_head(self.sock)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def fill(self, size, seconds):
        """Gathers size bytes; False at end of file or reset."""
        deadline = time.monotonic() + seconds
        while len(self.pending) < size:
            self.sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                piece = self.sock.recv(65536)
            except ConnectionError:
                return False
            if not piece:
                return False
            self.pending += piece
        return True

    def take(self, size):
        data, self.pending = self.pending[:size], self.pending[size:]
        return data

    def receive(self, seconds=DEADLINE):
        """The next frame: (opcode, payload), None at end of file; else socket.timeout."""
        if not self.fill(2, seconds):
            return None
        size, extra = self.pending[1] & 127, 0
        if size > 125:
            extra = 2 if size == 126 else 8
            if not self.fill(2 + extra, seconds):
                return None
            size = int.from_bytes(self.pending[2:2 + extra], "big")
        if not self.fill(2 + extra + size, seconds):
            return None
        head = self.take(2 + extra)
        equal("FIN, reserved and mask bits", (head[0] & 0xf0, head[1] & 0x80), (0x80, 0))
        return head[0] & 15, self.take(size)

    def send(self, opcode, payload, fin=True):
        """Sends one masked frame."""
        size = len(payload)
        head = bytes([(0x80 if fin else 0) | opcode])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 65536:
            head += bytes([0x80 | 126]) + struct.pack(">H", size)
        else:
            head += bytes([0x80 | 127]) + struct.pack(">Q", size)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i & 3] for i, byte in enumerate(payload))
        self.sock.sendall(head + mask + masked)

    def close_code(self, seconds=DEADLINE):
        """Reads up to the close frame and returns its code; 1006 when there was none."""
        while True:
            frame = self.receive(seconds)
            if frame is None:
                return 1006
            if frame[0] == CLOSE:
                return int.from_bytes(frame[1][:2], "big")

    def wait_end(self, seconds=DEADLINE):
        """Reads up to the end of the connection."""
        while self.receive(seconds) is not None:
            pass


# ===== The server =====

def command_line(limits, *options):
    """The server's argument list, under what the shell's ulimit does first."""
    return ["sh", "-c", limits + '; exec "$0" "$@"', PROGRAM, *options]


def attempt(*options, limits=":"):
    """Runs the program to its end: (status, stdout, stderr)."""
    try:
        done = subprocess.run(command_line(limits, *options), stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        raise Failure("%s: the program still runs" % " ".join(options)) from None
    return done.returncode, done.stdout.decode(), done.stderr.decode("utf-8", "backslashreplace")


class Server:
    """The server process on free ports. Leaving the `with` ends it and checks how it went."""

    def __init__(self, *options, limits=":"):
        given = {option.split("=", 1)[0] for option in options}
        doors = [part for door in ("--listen", "--push") if door not in given
                 for part in (door, "127.0.0.1:0")]
        self.process = subprocess.Popen(command_line(limits, *doors, *options),
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)
        self.stdout, self.log = [], []
        self.grown = threading.Condition()
        self.peers = []
        self.readers = [threading.Thread(target=self.gather, args=pair, daemon=True)
                        for pair in ((self.process.stdout, self.stdout),
                                     (self.process.stderr, self.log))]
        for reader in self.readers:
            reader.start()
        self.read_ready()

    def read_ready(self):
        try:
            poll("ready line", lambda: self.stdout or not self.readers[0].is_alive())
        except Failure:
            self.kill()
            raise
        first = self.stdout[0] if self.stdout else ""
        self.ready = READY.fullmatch(first)
        if not self.ready:
            self.kill()
            self.readers[1].join(DEADLINE)
            raise Failure("no ready line but %r; stderr %r" % (first, self.log))
        self.clients, self.push = self.ready["clients"], self.ready["push"]

    def gather(self, pipe, lines):
        for line in pipe:
            with self.grown:
                lines.append(line.decode("utf-8", "backslashreplace").rstrip("\n"))
                self.grown.notify_all()
        pipe.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            self.finish()
        except Failure:
            if error is None:
                raise
        finally:
            if error is not None:
                error.server_log = list(self.log)
            self.kill()

    def finish(self):
        """Ends it if it still runs: status 0, one line on stdout, only log lines on stderr."""
        for peer in self.peers:
            peer.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.wait()
        if status in (0, -signal.SIGTERM):  # a second SIGTERM may end it in either way
            equal("lines on stdout", len(self.stdout), 1)
            for line in self.log:
                fault = log_fault(line)
                true(fault, fault is None)
        equal("exit status", status, 0)

    def wait(self, seconds=DEADLINE):
        """The exit status, once the process has ended and its output is read."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure("the server still runs after %g s" % seconds) from None
        for reader in self.readers:
            reader.join(DEADLINE)
        return status

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def connect(self, token, headers=(), receive_buffer=None, source=None, path=PATH):
        """A bare client; it is closed before the server is ended."""
        client = Client(self.clients, path + token, headers, receive_buffer, source)
        self.peers.append(client)
        return client

    def session(self, token, **how):
        """A bare client that must get its 101."""
        client = self.connect(token, **how)
        equal("status of the upgrade", client.status, 101)
        return client

    def ask(self, method, target, body=None, headers=None):
        """One request at the push door, on a connection of its own."""
        connection = Connection(self.push)
        try:
            return connection.ask(method, target, body, headers)
        finally:
            connection.close()

    def send(self, token, body, want=200, headers=None, path=PATH):
        """Pushes to a token (to all when it is empty), checks the status, returns the response."""
        response = self.ask("POST", path + urllib.parse.quote(token), body, headers)
        equal("status of the push", response.status, want)
        return response

    def metric(self, name):
        """The value of one line of /metrics; the name includes its label, if it has one."""
        for line in self.ask("GET", "/metrics").body.splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def events(self, name):
        """The fields of every log line of this event so far."""
        with self.grown:
            return [fields for fields in map(log_fields, self.log) if fields.get("event") == name]

    def wait_event(self, name, count=1, seconds=DEADLINE):
        """Waits until the log holds so many lines of this event and returns them."""
        with self.grown:
            if not self.grown.wait_for(lambda: len(self.events(name)) >= count, seconds):
                raise Failure("event=%s: %d of %d within %g s"
                              % (name, len(self.events(name)), count, seconds))
            return self.events(name)


# ===== A proxy in front =====

SITE = "app.example.com"  # README's


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def make_certificate(folder):
    """app.key, and app.pem with the certificate and the key; what trusts it."""
    done = subprocess.run(
        [need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=" + SITE,
         "-addext", "subjectAltName=DNS:" + SITE, "-keyout", folder + "/app.key",
         "-out", folder + "/cert.pem"], capture_output=True)
    equal("openssl: " + done.stderr.decode(), done.returncode, 0)
    with open(folder + "/app.pem", "wb") as out:
        for part in ("cert.pem", "app.key"):
            with open(folder + "/" + part, "rb") as file:
                out.write(file.read())
    return ssl.create_default_context(cafile=folder + "/cert.pem")


def nginx_file(folder, main, site):
    """Workers of root's nginx would not get at a test's sockets."""
    temporary = "".join("%s_temp_path %s;" % (what, folder)
                        for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return ("%sdaemon off; worker_processes 2; pid %s/pid; %s\nevents {}\n"
            "http { access_log off; %s\n%s}\n"
            % ("user root; " * (os.geteuid() == 0), folder, main, temporary, site))


def listening(port):
    try:
        dial("127.0.0.1:%d" % port).close()
        return True
    except ConnectionRefusedError:
        return False


class Proxy:
    """nginx or HAProxy, with a certificate for SITE. configure(folder, ports) answers what it is
    to do: for nginx, what stands in its http block; main, outside of it."""

    main = ""

    def __init__(self, kind, configure, doors=1):
        self.kind, self.configure, self.path = kind, configure, need(kind)
        self.folder = tempfile.TemporaryDirectory(prefix="exportws-proxy.")
        self.processes = []
        try:
            self.tls = make_certificate(self.folder.name)
            for _ in range(5):  # somebody else may take a port meanwhile
                self.ports = [free_port() for _ in range(doors)]
                if self.start():
                    return
            raise Failure("%s does not start: %s" % (kind, self.said()))
        except BaseException:
            self.__exit__()
            raise

    def command(self, *more):
        """Its command line; the file is written anew."""
        folder = self.folder.name
        text = self.configure(folder, self.ports)
        words = ["-db", "-f", folder + "/conf"]
        if self.kind == "nginx":
            text = nginx_file(folder, self.main, text)
            words = ["-p", folder, "-c", folder + "/conf", "-e", "stderr"]
        with open(folder + "/conf", "w", encoding="utf-8") as file:
            file.write(text)
        return [self.path, *words, *more]

    def start(self, *more):
        """Whether it listens on all of its ports."""
        with open(self.folder.name + "/said", "wb") as said:
            process = subprocess.Popen(self.command(*more), stdin=subprocess.DEVNULL, stdout=said,
                                       stderr=said, start_new_session=True)
        self.processes.append(process)
        poll("the proxy listens", lambda: process.poll() is not None or
             all(map(listening, self.ports)))
        return process.poll() is None

    def said(self):
        with open(self.folder.name + "/said", encoding="utf-8") as file:
            return file.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Ends it, and the workers that it may have left: each is a session of its own."""
        for process in self.processes:
            process.terminate()
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.folder.cleanup()


# ===== Running tests =====

def explain(error):
    """Where in the test it failed and what the server logged, each line marked as a comment."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if os.path.dirname(frame.filename) == HERE and frame.filename != __file__]
    lines = ["at line %d: %s" % (frame.lineno, frame.line) for frame in frames[-3:]]
    lines += ["log: " + line for line in getattr(error, "server_log", [])[-20:]]
    return "".join("\n#   " + line for line in lines)


def outcome(name, test):
    """Runs one test; its line and whether it failed."""
    try:
        test()
    except Skip as why:
        return "skip %s: %s" % (name, why), False
    except Exception as error:  # a test may fail in any way; all are reported
        why = str(error) if isinstance(error, Failure) else "%s: %s" % (type(error).__name__, error)
        return "not ok %s: %s%s" % (name, why.replace("\n", " "), explain(error)), True
    return "ok " + name, False


def run(tests, workers):
    """Runs (name, function) pairs, several at a time, prints their lines in order, and exits."""
    words = sys.argv[1:] or [""]
    wanted = [pair for pair in tests if any(word in pair[0] for word in words)]
    failed = False
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for line, bad in pool.map(lambda pair: outcome(*pair), wanted):
            failed = failed or bad
            print(line, flush=True)
    sys.exit(1 if failed else 0)
