#!/usr/bin/env python3
"""README's recipes, taken out of it and run: pushing from a shell, Python, Node, PHP and Java; what
Prometheus is told; the init scripts; the container image, without an engine.

Environment: EXPORTWS, the server (./exportws). Prints a line for every test; arguments pick
tests by a part of their name.
"""
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request

sys.dont_write_bytecode = True
from harness import (HERE, PATH, PROGRAM, READY, TEXT, Failure, Server, Skip, equal,  # noqa: E402
                     free_port, need, poll, readme_block, replace, run, true)

DOOR = "127.0.0.1:8081"  # README's

TESTS = []


def test(function):
    """Registers a test, which gets a folder of its own."""
    def body():
        with tempfile.TemporaryDirectory(prefix="exportws-recipe.") as folder:
            os.chmod(folder, 0o755)
            function(folder)
    TESTS.append((function.__name__, body))
    return function


# ===== Tools =====

def need_root():
    if os.geteuid() != 0:
        raise Skip("not root")


def write(path, text, mode=0o644):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)
    return path


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def call(*words, status=0, seconds=60, **how):
    """Runs a program; what it printed, both outputs."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=seconds, text=True, **how)
    equal("status of %s, which said %r" % (words[0], done.stdout), done.returncode, status)
    return done.stdout


def lint(path):
    """As dash and BusyBox have it: with ulimit -n. What it reads in is the reader's own."""
    call(need("shellcheck"), "-s", "dash", "-e", "SC1091", path)


# ===== Pushing =====

# Each makes of README's lines a program that prints what push(TOKEN, MESSAGE) comes to: "true",
# "false", or nothing and a status. The rest is the command that runs it.

def shell_program(folder, code):
    write(folder + "/bearer", "Authorization: Bearer s3cret\n")
    path = write(folder + "/push.sh", code + '\npush "$@" >said 2>&1\nstatus=$?\n'
                 'case $status in 0) echo true ;;\n'
                 '22) grep -q "error: 404" said && echo false ;; esac\n'
                 'cat said >&2; exit "$status"\n')
    lint(path)
    return [need("curl") and "sh", path]


def python_program(folder, code):
    return [sys.executable, write(folder + "/push.py", code +
                                  "\nimport sys\nprint(str(push(*sys.argv[1:])).lower())\n")]


def node_program(folder, code):
    return [need("node"), write(folder + "/push.js", code +
                                "\npush(...process.argv.slice(2)).then(console.log);\n")]


def php_program(folder, code):
    return [need("php"), "-d", "error_reporting=-1", "-d", "display_errors=stderr",
            write(folder + "/push.php", "<?php\n" + code +
                  "\necho push($argv[1], $argv[2]) ? 'true' : 'false', \"\\n\";\n")]


def java_program(folder, code):
    javac, java = need("javac", "java")
    whole = code.rstrip().removesuffix("}")
    true("README's Java ends with no }", whole != code.rstrip())
    write(folder + "/Push.java", whole + """
    public static void main(String[] words) throws Exception {
        System.out.println(push(words[0], words[1], 3));
    }
}
""")
    call(javac, "--release", "11", "-Xlint:all", "-Werror", "-d", folder, folder + "/Push.java")
    return [java, "-cp", folder, "Push"]


LANGUAGES = {
    "shell": ("push() {", shell_program),
    "python": ("import time, urllib", python_program),
    "node": ("const door = ", node_program),
    "php": ("const DOOR = ", php_program),
    "java": ("import java.net.*;", java_program),
}


class Pusher:
    """README's push() of one language, for a server."""

    def __init__(self, folder, language, server):
        first, program = LANGUAGES[language]
        code = replace(readme_block(first), (DOOR, server.push))
        self.folder, self.words = folder, program(folder, code)

    def start(self, token, text):
        environment = {name: value for name, value in os.environ.items()
                       if not name.lower().endswith("_proxy")}
        return subprocess.Popen([*self.words, token, text], cwd=self.folder, env=environment,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    def end(self, process):
        """(what it printed, "" or "failed"), and what it complained of."""
        try:
            out, complaint = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failure("%s does not end" % self.words) from None
        return (out.strip(), "failed" if process.returncode else ""), complaint

    def push(self, token, text):
        return self.end(self.start(token, text))


def delivered_held_and_to_all(folder, language):
    with Server() as server:
        pusher, odd = Pusher(folder, language, server), "ab 12+%?#&ü"
        name = urllib.request.quote(odd, safe="")
        client = server.session(name)
        # The shell's takes an encoded token, and says so.
        if language == "shell":
            odd = name
        equal("delivered", pusher.push(odd, "37 %: 日本 @x")[0], ("true", ""))
        equal("frame", client.receive(), (TEXT, "37 %: 日本 @x".encode()))
        equal("to all", pusher.push("", "@noon")[0], ("true", ""))
        equal("frame", client.receive(), (TEXT, b"@noon"))
        equal("held", pusher.push("later", "x\ny")[0], ("true", ""))
        equal("frame", server.session("later").receive(), (TEXT, b"x\ny"))


def nobody_is_no_failure_and_a_mistake_is_one(folder, language):
    with Server("--hold", "0", "--max-push", "10") as server:
        pusher = Pusher(folder, language, server)
        equal("nobody", pusher.push("t", "x")[0][0], "false")
        got, complaint = pusher.push("t", "x" * 11)
        equal("too long", got, ("", "failed"))
        true("the reason in %r" % complaint, "longer than --max-push" in complaint)
        equal("tries", server.metric('exportws_refused_total{status="413"}'), 1)
        server.process.kill()
        server.process.wait()
        equal("no server", pusher.push("t", "x")[0], ("", "failed"))
        server.process.returncode = 0  # the kill was ours


def comes_again_when_there_is_no_room(folder, language):
    with Server("--buffer", "8k", "--max-push", "2k", "--hold", "60") as server:
        count = 0
        while server.ask("POST", PATH + "full", "x" * 500).status == 202:
            count += 1
            true("the buffer takes all", count < 100)
        pusher = Pusher(folder, language, server)
        process = pusher.start("t", "x" * 600)
        poll("first try", lambda: server.metric('exportws_refused_total{status="503"}') >= 2, 30)
        equal("made room", server.ask("DELETE", PATH + "full").status, 200)
        equal("then held", pusher.end(process)[0], ("true", ""))
        equal("kept once", json.loads(server.ask("GET", PATH + "t").body)["held"], 1)


def gives_up_after_some_tries(folder, language):
    with Server("--buffer", "8k", "--max-push", "2k", "--hold", "60") as server:
        while server.ask("POST", PATH + "full", "x" * 500).status == 202:
            pass
        got, complaint = Pusher(folder, language, server).push("t", "x" * 600)
        equal("no room", got, ("", "failed"))
        true("the reason in %r" % complaint, "503" in complaint or "no room" in complaint)
        tries = server.metric('exportws_refused_total{status="503"}') - 1
        equal("tries", tries, 4 if language == "shell" else 3)


for _language in LANGUAGES:
    for _what in (delivered_held_and_to_all, nobody_is_no_failure_and_a_mistake_is_one,
                  comes_again_when_there_is_no_room, gives_up_after_some_tries):
        def _test(folder, what=_what, language=_language):
            what(folder, language)
        _test.__name__ = "%s_%s" % (_language, _what.__name__)
        test(_test)


@test
def secret_goes_as_the_shell_shows_it(folder):
    with Server("--push-secret-file", write(folder + "/secret", "s3cret\n")) as server:
        pusher = Pusher(folder, "shell", server)
        equal("held", pusher.push("t", "x")[0], ("true", ""))
        write(folder + "/bearer", "Authorization: Bearer other\n")
        got, complaint = pusher.push("t", "x")
        equal("another secret", got, ("", "failed"))
        true("the reason in %r" % complaint, "Bearer SECRET is needed" in complaint)


@test
def java_table_names_requests_that_work(folder):
    del folder
    rows = readme_block("@ServerEndpoint(")
    asked = re.findall(r"\b(GET|POST|DELETE) (\{path\}\S*|/online)", rows)
    equal("requests of the table", len(asked), 5)
    with Server("--heartbeat-reply") as server:
        for method, target in asked:
            target = replace(target.rstrip(":,"), *[("{path}", PATH)] * ("{path}" in target))
            client = server.session("t")
            answer = server.ask(method, target.replace("{token}", "t"), "x" * (method == "POST"))
            equal("status of %s %s" % (method, target), answer.status, 200)
            if target == "/online":
                equal("count", (json.loads(answer.body)["online"],
                                json.loads(answer.body)["sessions"] > 1), (1, True))
            if method == "DELETE" or target.endswith("?end"):
                equal("close code", client.close_code(), 1000)
        client = server.session("t")
        client.send(TEXT, b"HEART-BEAT")
        equal("sent back", client.receive(), (TEXT, b"HEART-BEAT"))


# ===== Prometheus =====

def promtool(*words, **how):
    return call(need("promtool"), *words, **how)


def write_prometheus(folder, server):
    """README's two files, for this server, whose secret stands beside them."""
    write(folder + "/exportws.rules.yml", readme_block("groups:"))
    return write(folder + "/prometheus.yml", replace(
        readme_block("rule_files:"), (DOOR, server.push),
        ("/etc/prometheus/exportws.secret", folder + "/secret")))


@test
def metrics_please_promtool(folder):
    path = need("promtool")

    def verdict(text):
        done = subprocess.run([path, "check", "metrics"], input=text.encode(), capture_output=True,
                              timeout=60)
        return done.returncode, (done.stdout + done.stderr).decode()
    with Server() as server:
        server.session("t")
        server.send("t", "x")
        text = server.ask("GET", "/metrics").body
        equal("promtool", verdict(text), (0, ""))
        true("no fault in a spoilt one", verdict(text.replace("opened_total", "opened"))[0])


@test
def prometheus_takes_both_files(folder):
    write(folder + "/secret", "s3cret\n")
    with Server() as server:
        said = promtool("check", "config", write_prometheus(folder, server))
        true("rules in %r" % said, "5 rules found" in said)


@test
def prometheus_scrapes_with_the_secret(folder):
    """A real one, until it has seen the server and judged every rule."""
    prometheus, secret = need("prometheus"), write(folder + "/secret", "s3cret\n")
    with Server("--push-secret-file", secret) as server:
        config, port = write_prometheus(folder, server), free_port()
        write(config, "global: {scrape_interval: 1s, evaluation_interval: 1s}\n" + read(config))
        with open(folder + "/said", "wb") as said:
            process = subprocess.Popen(
                [prometheus, "--config.file", config, "--storage.tsdb.path", folder + "/data",
                 "--web.listen-address", "127.0.0.1:%d" % port], stdout=said, stderr=said)

        def ask(what):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            try:
                with opener.open("http://127.0.0.1:%d/api/v1/%s" % (port, what), timeout=10) as got:
                    return json.load(got)["data"]
            except OSError:
                true("prometheus ended: " + read(folder + "/said"), process.poll() is None)
                return {}

        def value(query):
            result = ask("query?query=" + query).get("result")
            return result and result[0]["value"][1]
        try:
            poll("a scrape", lambda: value("up") == "1", 60)
            poll("a sample", lambda: value("exportws_capacity") == "1024", 60)
            poll("rules judged", lambda: [rule["health"] for group in ask("rules").get("groups", ())
                                          for rule in group["rules"]] == 5 * ["ok"], 60)
            equal("alerts", ask("alerts")["alerts"], [])
        finally:
            process.terminate()
            process.wait(60)


# For each alert: series that make it fire after these minutes, and series that don't.
UP = 'up{job="exportws",instance="a"}'
SESSIONS, CAPACITY = 'exportws_sessions{instance="a"}', 'exportws_capacity{instance="a"}'
BUSY = 'exportws_refused_total{instance="a",status="503"}'
LATE, PUSHED = 'exportws_messages_expired_total{instance="a"}', \
    'exportws_messages_pushed_total{instance="a"}'
SLOW, OPENED = 'exportws_sessions_closed_total{instance="a",reason="slow"}', \
    'exportws_sessions_opened_total{instance="a"}'
ALERTS = (
    ("ExportwsDown", 3, {UP: "0x30"}, {UP: "1x30"}),
    ("ExportwsDown", 3, {UP: "1 1 0x30"}, {UP: "1 1 1 0 1x30"}),
    ("ExportwsNearlyFull", 6, {SESSIONS: "820x30", CAPACITY: "1024x30"},
     {SESSIONS: "819x30", CAPACITY: "1024x30"}),
    ("ExportwsNearlyFull", 9, {SESSIONS: "0 1024x30", CAPACITY: "1024x30"},
     {SESSIONS: "1024 1024 1024 1024 0 1024x30", CAPACITY: "1024x30"}),
    ("ExportwsUnavailable", 5, {BUSY: "0 0 0 1x30"}, {BUSY: "7x30"}),
    ("ExportwsUnavailable", 5, {BUSY: "7 7 7 8x30"}, {BUSY.replace("503", "403"): "0+9x30"}),
    ("ExportwsMessagesLost", 30, {LATE: "0+6x40", PUSHED: "0+100x40"},
     {LATE: "0+4x40", PUSHED: "0+100x40"}),
    ("ExportwsMessagesLost", 30, {LATE: "0+1x40", PUSHED: "0+1x40"},
     {LATE: "5x40", PUSHED: "9x40"}),
    ("ExportwsSlowSessions", 30, {SLOW: "0+6x40", OPENED: "0+100x40"},
     {SLOW: "0+4x40", OPENED: "0+100x40"}),
    ("ExportwsSlowSessions", 30, {SLOW: "0+1x40", OPENED: "3x40"},
     {SLOW.replace("slow", "peer"): "0+9x40", OPENED: "0+9x40"}),
)


def alert_test(folder, name, minutes, series, fires, rules):
    """A test for promtool: that it fires, or not, and no other does."""
    labels = {"instance": "a", **({"job": "exportws"} if name == "ExportwsDown" else {})}
    if name == "ExportwsUnavailable":
        labels["status"] = "503"
    # JSON is YAML.
    case = {"rule_files": [rules], "tests": [{
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "alert_rule_test": [
            {"eval_time": "%dm" % minutes, "alertname": other,
             "exp_alerts": [{"exp_labels": labels, "exp_annotations": {"summary": text}}]
             if fires and other == name else []}
            for other, text in summaries().items()]}]}
    return write(folder + "/case.json", json.dumps(case))


def summaries():
    return dict(re.findall(r"- alert: (\w+)\n.*?summary: (.*?)\n", readme_block("groups:"), re.S))


@test
def every_alert_fires_when_it_should_and_only_then(folder):
    rules = write(folder + "/exportws.rules.yml", readme_block("groups:"))
    equal("alerts of README", list(summaries()), list(dict.fromkeys(row[0] for row in ALERTS)))
    for name, minutes, bad, good in ALERTS:
        for series, fires in ((bad, True), (good, False)):
            promtool("test", "rules", alert_test(folder, name, minutes, series, fires, rules))
            promtool("test", "rules", alert_test(folder, name, minutes, series, not fires, rules),
                     status=1)


@test
def alerts_name_metrics_that_there_are(folder):
    del folder
    with Server() as server:
        text = server.ask("GET", "/metrics").body
        for name in set(re.findall(r"exportws_\w+(?:\{[^}]*\})?", readme_block("groups:"))):
            true("no metric " + name, "\n%s " % name in text)


# ===== Services =====

APART = ("--mount", "--propagation", "private", "--pid", "--fork")


def apart(folder, script):
    """What a shell script prints that has mounts and processes of its own: both end with it."""
    return call(need("unshare"), *APART, "--mount-proc", "--kill-child", "sh", "-euc", script,
                cwd=folder)


def need_apart():
    need_root()
    done = subprocess.run([need("unshare"), *APART, "--mount-proc", "true"], capture_output=True,
                          timeout=60)
    if done.returncode:
        raise Skip("unshare: " + done.stderr.decode().strip())


# What every init script must do: $1 is the script. The server is at /usr/local/bin, its options
# where the script looks for them, and nothing of the machine's own is touched.
LIFE = """
wait_for() {
    n=0
    until "$@"; do
        n=$((n + 1))
        [ $n -lt 200 ] || { echo "never: $*"; cat "$log"; exit 1; }
        sleep 0.05
    done
}
said() { [ -s "$log" ] && [ "$(grep -c "$2" "$log")" -ge "$1" ]; }
the_pid() { [ -s "$pidfile" ] && kill -0 "$(cat "$pidfile")"; }
gone() { ! kill -0 "$1" 2>/dev/null; }
$init start
wait_for the_pid
wait_for said 1 event=start
first=$(cat "$pidfile")
echo "program $(readlink /proc/$first/exe)"
echo "user $(stat -c %U /proc/$first)"
echo "files $(awk '/^Max open files/ { print $4 }' /proc/$first/limits)"
echo "words $(tr '\\0' ' ' </proc/$first/cmdline)"
$init reload
wait_for said 1 event=reload
$init restart
wait_for gone $first
wait_for the_pid
wait_for said 2 event=start
second=$(cat "$pidfile")
[ "$first" != "$second" ]
echo "stopped $(grep -c event=stop "$log")"
$init stop
gone $second
echo "stopped $(grep -c event=stop "$log")"
"""


def lead_life(folder, prepare):
    """Starts, reloads, restarts and stops the script that `prepare` puts in place."""
    need_apart()
    write(folder + "/secret", "s3cret\n")
    said = apart(folder, """
        cp -a /etc etc && mount --bind etc /etc
        mkdir bin && cp %s bin/exportws && chmod -R a+rX bin
        mount --bind bin /usr/local/bin
        mkdir log && mount --bind log /var/log
        mount -t tmpfs none /run
        %s %s""" % (shlex.quote(os.path.abspath(PROGRAM)), prepare, LIFE))
    rows = [line.split(" ", 1) for line in said.splitlines() if " " in line]
    for row in (["program", "/usr/local/bin/exportws"], ["user", "nobody"], ["files", str(FILES)],
                ["stopped", "1"], ["stopped", "2"]):
        true("no %r in %r" % (row, said), row in rows)
    true("options in %r" % said, "words /usr/local/bin/exportws --listen 127.0.0.1:0 "
         "--push 127.0.0.1:0 --push-secret-file" in said)
    return said


def init_script(first):
    """README's; where even root may not have so many descriptors it asks for as many as it can."""
    return replace(readme_block(first), ("-n 65536", "-n %d" % FILES))


FILES = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1)
OPTIONS = "--listen 127.0.0.1:0 --push 127.0.0.1:0 --push-secret-file"


@test
def openrc_runs_it(folder):
    need("openrc-run")
    write(folder + "/script", init_script("#!/sbin/openrc-run"), 0o755)
    true("shell", call("sh", "-n", folder + "/script") == "")
    write(folder + "/conf", 'OPTIONS="%s %s/secret"\n' % (OPTIONS, folder))
    lead_life(folder, """
        mkdir init && cp script init/exportws
        printf '#!/sbin/openrc-run\\nstart() { :; }\\ndepend() { provide net; }\\n' >init/wire
        chmod 755 init/wire
        mount --bind init /etc/init.d
        mkdir -p /etc/conf.d && cp conf /etc/conf.d/exportws
        for state in starting started stopping stopped inactive wasinactive failed hotplugged \\
            daemons options exclusive scheduled tmp; do mkdir -p /run/openrc/$state; done
        touch /run/openrc/softlevel    # as it is after booting
        log=/var/log/exportws.log init=/etc/init.d/exportws
        pidfile=/run/openrc/options/exportws/child_pid""")


@test
def busybox_runs_it(folder):
    busybox = need("busybox")
    path = write(folder + "/script", init_script("#!/bin/sh"), 0o755)
    lint(path)
    write(folder + "/default", 'OPTIONS="%s %s/secret"\n' % (OPTIONS, folder))
    lead_life(folder, """
        mkdir box && %s --install -s box && export PATH="$PWD/box"
        mount --bind box/sh /bin/sh 2>/dev/null || :
        mkdir -p /etc/default && cp default /etc/default/exportws
        log=/var/log/exportws.log pidfile=/var/run/exportws.pid init="sh $PWD/script" """ % busybox)
    write(folder + "/default", "")
    call(busybox, "sh", path, "nonsense", status=2)


@test
def image_is_small_and_serves_as_process_1(folder):
    """The build stage's commands by hand; then the program as the last stage would start it."""
    need_apart()
    need("musl-gcc")
    lines = readme_block("FROM debian").replace("\\\n", " ").splitlines()
    stage = [line.split(" ", 1) for line in lines]
    equal("instructions", [word for word, _ in stage],
          ["FROM", "RUN", "COPY", "RUN", "FROM", "COPY", "USER", "EXPOSE", "ENTRYPOINT"])
    equal("sources", stage[2][1], "exportws.c exportws.h /")
    for name in stage[2][1].split()[:-1]:
        shutil.copy(os.path.join(os.path.dirname(HERE), name), folder)
    call("sh", "-euc", stage[3][1].replace(" /export", " %s/export" % folder))
    size = os.path.getsize(folder + "/exportws")
    true("%d bytes" % size, size < 128 * 1024)
    os.mkdir(folder + "/root")
    shutil.copy(folder + "/exportws", folder + "/root")
    user, group = stage[6][1].split(":")
    words = json.loads(stage[8][1])
    equal("ports", stage[7][1].split(), [words[2].strip(":"), words[4].strip(":")])
    words = ["127.0.0.1:0" if word.startswith(":") else word for word in words]
    process = subprocess.Popen(
        [need("unshare"), *APART, "--kill-child", "sh", "-euc",
         "mkdir root/dev; : >root/dev/urandom; mount --bind /dev/urandom root/dev/urandom\n"
         'exec "$@"', "sh", need("chroot"), "--userspec=%s:%s" % (user, group), "root", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        ready = READY.fullmatch(process.stdout.readline().strip())
        true("no ready line; " + ("" if ready else process.stderr.read()), ready)
        with urllib.request.urlopen("http://%s/healthz" % ready["push"], timeout=10) as answer:
            equal("health", answer.read(), b'{"status":"ok"}\n')
        children = call("ps", "-o", "pid=,uid=", "--ppid", str(process.pid)).split()
        equal("user", children[1], user)
        os.kill(int(children[0]), signal.SIGTERM)
        equal("exit status", process.wait(10), 0)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


if __name__ == "__main__":
    run(TESTS, 4)
