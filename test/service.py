#!/usr/bin/env python3
"""The server under a service manager: a stand-in for systemd passes real listening sockets by
LISTEN_FDS and LISTEN_FDNAMES, and listens at NOTIFY_SOCKET.

    test/service.py            EXPORTWS is the server (./exportws), in several words if need be

Prints "ok NAME" or "not ok NAME: WHY" for each test; exits 1 when one failed.
"""
import os
import re
import select
import signal
import socket
import sys
import tempfile
import time

PROGRAM = os.environ.get("EXPORTWS", "./exportws").split()
SLOW = max(1, int(os.environ.get("EXPORTWS_TEST_SLOW", "1") or 1))
DEADLINE = 10.0 * SLOW


class Failure(Exception):
    pass


def expect(right, why):
    if not right:
        raise Failure(why)


class Service:
    """The server as a service manager starts it: its sockets are 3, 4, ... in its process."""

    def __init__(self, arguments=(), sockets=(), names=None, environment=None, pid=None,
                 count=None):
        out, self.out = os.pipe(), None
        err = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self.exec(arguments, sockets, names, environment or {}, pid, count, out[1], err[1])
        os.close(out[1])
        os.close(err[1])
        self.out, self.err = out[0], err[0]
        self.ready = None

    @staticmethod
    def exec(arguments, sockets, names, environment, pid, count, out, err):
        try:
            # All out of the way first: a descriptor that is to be 3 may be another one's place.
            high = [os.dup2(fd, 100 + i) for i, fd in enumerate([s.fileno() for s in sockets])]
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.closerange(3, 100)
            for i, fd in enumerate(high):
                os.dup2(fd, 3 + i, inheritable=True)
                os.close(fd)
            env = {k: v for k, v in os.environ.items() if not k.startswith(("LISTEN_", "NOTIFY_"))}
            env.update(environment)
            if sockets or pid or count is not None:
                env["LISTEN_PID"] = str(os.getpid() if pid in (None, "own") else pid)
            if sockets or count is not None:
                env["LISTEN_FDS"] = str(len(sockets)) if count is None else count
            if names is not None:
                env["LISTEN_FDNAMES"] = names
            os.execvpe(PROGRAM[0], PROGRAM + list(arguments), env)
        finally:
            os._exit(127)

    def read_line(self):
        """The ready line: (clients, push)."""
        line, end = b"", time.monotonic() + DEADLINE
        while not line.endswith(b"\n"):
            left = end - time.monotonic()
            expect(left > 0 and select.select([self.out], [], [], left)[0], "no ready line")
            byte = os.read(self.out, 1)
            if not byte:
                said = os.read(self.err, 4000).decode(errors="replace").strip()
                raise Failure("it ended: " + said)
            line += byte
        self.ready = re.fullmatch(r"exportws \S+ ready: clients (\S+), push (\S+), capacity \d+, "
                                  r"memory \d+ bytes\n", line.decode())
        expect(self.ready, f"the ready line is {line!r}")
        return self.ready.group(1), self.ready.group(2)

    def end(self, number=signal.SIGTERM):
        """Its exit status, after a signal (None: it ends by itself)."""
        if number is not None:
            os.kill(self.pid, number)
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = None
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        raise Failure("it did not end")

    def clean_up(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for fd in (self.out, self.err):
            os.close(fd)


def tcp():
    s = socket.create_server(("127.0.0.1", 0))
    return s, "127.0.0.1:%d" % s.getsockname()[1]


def request(to, text):
    with socket.socket(socket.AF_UNIX if isinstance(to, str) else socket.AF_INET) as s:
        s.settimeout(DEADLINE)
        s.connect(to)
        s.sendall(text.encode())
        return s.recv(4096).decode()


def is_clients(to):
    answer = request(to, "GET /app/ws/export-task/t HTTP/1.1\r\nHost: h\r\n\r\n")
    return answer.startswith("HTTP/1.1 426 ")


def is_push(to):
    answer = request(to, "POST /app/ws/export-task/t HTTP/1.1\r\nHost: h\r\n"
                         "Content-Length: 1\r\n\r\nx")
    return answer.startswith("HTTP/1.1 202 ")


def serves(arguments, sockets, names, clients, push):
    """It says that it listens where the passed sockets do, serves there, and ends well."""
    service = Service(arguments, sockets, names)
    try:
        expect(service.read_line() == (clients[1], push[1]), f"ready: {service.ready.group(0)!r}")
        expect(is_clients(clients[0].getsockname()), "the client door is not where it should be")
        expect(push[0] is None or is_push(push[0].getsockname()), "the push door is not there")
        expect(service.end() == 0, "it did not exit with 0")
    finally:
        service.clean_up()
        for s in sockets:
            s.close()


def sockets_are_taken_by_name():
    clients, push = tcp(), tcp()
    serves([], [clients[0], push[0]], "clients:push", clients, push)


def names_decide_and_not_the_order():
    clients, push = tcp(), tcp()
    serves([], [push[0], clients[0]], "push:clients", clients, push)


def sockets_without_names_are_clients_and_push():
    clients, push = tcp(), tcp()
    serves([], [clients[0], push[0]], None, clients, push)


def one_socket_is_the_client_door():
    clients = tcp()
    serves(["--push", "none"], [clients[0]], "clients", clients, (None, "none"))


def socket_wins_over_the_option():
    clients, push = tcp(), tcp()
    serves(["--listen", "127.0.0.1:1", "--push", "127.0.0.1:1"], [push[0], clients[0]],
           "push:clients", clients, push)


def unix_socket_is_taken_and_not_removed():
    with tempfile.TemporaryDirectory() as folder:
        push = socket.socket(socket.AF_UNIX)
        push.bind(folder + "/push")
        push.listen()
        clients = tcp()
        service = Service([], [clients[0], push], "clients:push")
        try:
            expect(service.read_line()[0] == clients[1], "ready line")
            expect(is_push(folder + "/push"), "no push door at the Unix socket")
            expect(service.end() == 0, "it did not exit with 0")
            expect(os.path.exists(folder + "/push"), "the socket of the manager was removed")
        finally:
            service.clean_up()
            push.close()
            clients[0].close()


def sockets_of_another_process_are_left_alone():
    s, address = tcp()
    service = Service(["--listen", "127.0.0.1:0", "--push", "none"], [s], "clients", pid=1)
    try:
        expect(service.read_line()[0] != address, "it took a socket that was not meant for it")
        expect(service.end() == 0, "it did not exit with 0")
    finally:
        service.clean_up()
        s.close()


def refuses(sockets, names, word):
    service = Service([], sockets, names)
    try:
        expect(service.end(None) == 1, "it did not exit with 1")
        said = os.read(service.err, 4000).decode()
        expect(said.count("\n") == 1 and word in said, f"it said {said!r}")
        expect(os.read(service.out, 100) == b"", "it printed a ready line")
    finally:
        service.clean_up()


def unknown_name_is_refused():
    clients = tcp()
    for name in ("http", "clients2", "another", ""):
        refuses([clients[0]], name, "LISTEN_FDNAMES")
    clients[0].close()


def socket_that_does_not_listen_is_refused():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        refuses([s], "clients", "cannot listen")


def no_sockets_are_no_trouble():
    for pid, count in ((None, "0"), (None, ""), (None, "x"), ("own", None), ("x", "1"), ("", "1")):
        service = Service(["--listen", "127.0.0.1:0", "--push", "127.0.0.1:0"], pid=pid,
                          count=count)
        try:
            service.read_line()
            expect(service.end() == 0, "it did not exit with 0")
        finally:
            service.clean_up()


def notifies(name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(DEADLINE)
        shown = "@" + name[1:] if name.startswith("\0") else name
        service = Service(["--listen", "127.0.0.1:0", "--push", "127.0.0.1:0"],
                          environment={"NOTIFY_SOCKET": shown})
        try:
            said = manager.recv(4096)
            expect("READY=1" in said.decode().split("\n"), f"first it said {said!r}")
            host, port = service.read_line()[0].split(":")
            expect(is_clients((host, int(port))), "it was not ready")
            manager.setblocking(False)
            expect(not select.select([manager], [], [], 0.05)[0], "it said more before its end")
            manager.settimeout(DEADLINE)
            os.kill(service.pid, signal.SIGTERM)
            said = manager.recv(4096)
            expect("STOPPING=1" in said.decode().split("\n"), f"at its end it said {said!r}")
            expect(service.end(None) == 0, "it did not exit with 0")
        finally:
            service.clean_up()


def manager_is_told_at_a_path():
    with tempfile.TemporaryDirectory() as folder:
        notifies(folder + "/notify")


def manager_is_told_at_an_abstract_name():
    if sys.platform.startswith("linux"):
        notifies("\0exportws-test-%d" % os.getpid())


def manager_that_is_not_there_is_no_trouble():
    for name in ("/nowhere/at/all", "", "x", "@", "xyz", "/" + "x" * 200):
        service = Service(["--listen", "127.0.0.1:0", "--push", "none"],
                          environment={"NOTIFY_SOCKET": name})
        try:
            service.read_line()
            expect(service.end() == 0, "it did not exit with 0")
        finally:
            service.clean_up()


TESTS = [sockets_are_taken_by_name, names_decide_and_not_the_order,
         sockets_without_names_are_clients_and_push, one_socket_is_the_client_door,
         socket_wins_over_the_option, unix_socket_is_taken_and_not_removed,
         sockets_of_another_process_are_left_alone, unknown_name_is_refused,
         socket_that_does_not_listen_is_refused, no_sockets_are_no_trouble,
         manager_is_told_at_a_path, manager_is_told_at_an_abstract_name,
         manager_that_is_not_there_is_no_trouble]

if __name__ == "__main__":
    failed = 0
    for test in TESTS:
        try:
            test()
            print("ok", test.__name__)
        except (Failure, OSError) as e:
            failed = 1
            print(f"not ok {test.__name__}: {e}")
        sys.stdout.flush()
    sys.exit(failed)
