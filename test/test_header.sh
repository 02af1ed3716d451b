#!/bin/sh
# exportws.h as its readers meet it: alone in a file, in C99, C11, C23 and C++17, with gcc and
# clang; and the program in its top comment, which is taken out, compiled, run and talked to.
#
#   test/test_header.sh    one line for each check: ok NAME | not ok NAME: WHY | skip NAME: WHY
#
# Environment: CC (cc), CFLAGS, LDFLAGS: for the program; RUN: what to run it with (qemu-...)
set -u
cd "$(dirname "$0")/.." || exit 1

tmp=$(mktemp -d) || exit 1
pid=
clean_up() {
    [ -n "$pid" ] && kill "$pid" 2>/dev/null
    rm -rf "$tmp"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
failed=0
warnings='-pedantic-errors -Wall -Wextra -Wshadow -Wconversion -Wundef -Werror'

ok() { echo "ok $1"; }
not_ok() { # name, why
    echo "not ok $1: $2"
    failed=1
}

# Twice in one file: it guards itself. With a function that uses it, so that C++ has to link it.
cat >"$tmp/alone.c" <<'END'
#include "exportws.h"
#include "exportws.h"
int use(exportws *w, exportws_options *o);
int use(exportws *w, exportws_options *o)
{
    exportws_defaults(o);
    o->capacity = 8;
    return exportws_send(w, "t", "x", 1, EXPORTWS_TEXT) + (int)sizeof(exportws_id);
}
END
cp "$tmp/alone.c" "$tmp/alone.cc"

header_alone() { # compiler, standard, extra warnings
    compiler=$1 standard=$2
    name="header_alone_$(echo "${compiler}_$standard" | sed 's/+/p/g')"
    source=$tmp/alone.c
    case $standard in c++*) source=$tmp/alone.cc ;; esac
    # shellcheck disable=SC2086  # several flags, and meant to be
    if "$compiler" -std="$standard" $warnings ${3:-} -I. -c -o "$tmp/alone.o" "$source" \
        2>"$tmp/errors"; then ok "$name"
    else not_ok "$name" "$(grep -m 1 error "$tmp/errors")"
    fi
}

strict_c='-Wstrict-prototypes -Wmissing-prototypes'
# Those that are here
compilers() { for name; do command -v "$name" >/dev/null && echo "$name"; done; }
for compiler in $(compilers gcc clang); do
    for standard in c99 c11 c17 c2x; do header_alone "$compiler" "$standard" "$strict_c"; done
done
for compiler in $(compilers g++ clang++); do
    for standard in c++98 c++11 c++17 c++20; do
        case $standard in c++98) extra='-Wno-long-long -Wno-c++11-long-long' ;; *) extra='' ;; esac
        header_alone "$compiler" "$standard" "$extra"
    done
done
[ -n "$(compilers g++ clang++)" ] || echo 'skip header_alone_cpp: neither g++ nor clang++'

# ----- what it declares -----

# The interface that hosts were written against. A declaration that differs does not compile.
cat >"$tmp/interface.c" <<'END'
#include "exportws.h"
const char *exportws_request_token(const exportws_request *r);
const char *exportws_request_query(const exportws_request *r);
size_t exportws_request_header(const exportws_request *r, const char *name, char *value, size_t n);
void exportws_defaults(exportws_options *o);
size_t exportws_memory(const exportws_options *o);
exportws *exportws_start(const exportws_options *o, void *memory, size_t n, char *why, size_t m);
int exportws_step(exportws *w, int timeout_ms);
int exportws_pollfds(exportws *w, struct pollfd *fds, size_t max, int *timeout_ms);
int exportws_dispatch(exportws *w, const struct pollfd *fds, size_t count);
void exportws_stop(exportws *w);
void exportws_end(exportws *w);
int exportws_send(exportws *w, const char *token, const void *data, size_t size, int kind);
int exportws_broadcast(exportws *w, const void *data, size_t size, int kind);
int exportws_reply(exportws *w, exportws_id session, const void *data, size_t size, int kind);
int exportws_close(exportws *w, exportws_id session, int code, const char *reason);
int exportws_kick(exportws *w, const char *token);
uint64_t exportws_last_id(const exportws *w);
int exportws_online(const exportws *w);
int exportws_sessions(const exportws *w);
int exportws_address(const exportws *w, int door, char *text, size_t size);
int exportws_post(exportws *w, const char *token, const void *data, size_t size, int kind);
const char *exportws_strerror(int error);
static int upgrade(void *user, const exportws_request *r) { return !user && !r; }
static void open_(void *user, exportws_id id, const char *t) { (void)user, (void)id, (void)t; }
static void message(void *user, exportws_id id, const char *t, const void *data, size_t n, int kind)
{ (void)user, (void)id, (void)t, (void)data, (void)n, (void)kind; }
static void close_(void *user, exportws_id id, const char *t, int reason, int code)
{ (void)user, (void)id, (void)t, (void)reason, (void)code; }
static void log_(void *user, int level, const char *line) { (void)user, (void)level, (void)line; }
void use(exportws_options *o);
void use(exportws_options *o)
{
    const char **texts[] = {&o->listen, &o->push, &o->path, &o->heartbeat, &o->push_secret,
                            &o->client_secret};
    const char *const **lists[] = {&o->origins, &o->trusted_proxies};
    size_t *sizes[] = {&o->origin_count, &o->trusted_proxy_count, &o->capacity, &o->per_token,
                       &o->per_address, &o->handshakes, &o->pushers, &o->queue, &o->history,
                       &o->max_token_bytes, &o->max_message_bytes, &o->max_push_bytes,
                       &o->buffer_bytes};
    unsigned *times[] = {&o->hold_ms, &o->ping_ms, &o->pong_ms, &o->handshake_timeout_ms,
                         &o->close_timeout_ms, &o->write_timeout_ms, &o->drain_ms};
    int *flags[] = {&o->heartbeat_reply, &o->demo, &o->log_level};
    (void)texts, (void)lists, (void)sizes, (void)times, (void)flags;
    o->on_upgrade = upgrade, o->on_open = open_, o->on_message = message, o->on_close = close_;
    o->on_log = log_, o->user = o;
}
typedef char errors[EXPORTWS_ABSENT == -1 && EXPORTWS_FULL == -2 && EXPORTWS_TOO_BIG == -3 &&
                    EXPORTWS_NOT_UTF8 == -4 && EXPORTWS_GONE == -5 && EXPORTWS_BAD == -6 &&
                    EXPORTWS_TEXT == 1 && EXPORTWS_BINARY == 2 && EXPORTWS_END == 4 &&
                    sizeof(exportws_id) == 8 ? 1 : -1];
END
if ${CC:-cc} -std=c99 -Wall -Wextra -Werror -I. -c -o "$tmp/interface.o" "$tmp/interface.c" \
    2>"$tmp/errors"; then ok header_declares_the_whole_interface
else not_ok header_declares_the_whole_interface "$(grep -m 1 error "$tmp/errors")"
fi

# ----- without the pages -----

# Compiles as silently, holds nothing of them, and has none to give.
without_pages() {
    # shellcheck disable=SC2086
    ${CC:-cc} -std=c99 -Wall -Wextra -Werror ${CFLAGS:--O2} ${LDFLAGS:-} -DEXPORTWS_NO_PAGES \
        -o "$tmp/bare" exportws.c 2>"$tmp/errors" || { grep -m 1 error "$tmp/errors"; return; }
    grep -q -a -e ExportWS -e '<html' "$tmp/bare" && echo 'a page is in the program'
    command -v curl >/dev/null 2>&1 || return
    # shellcheck disable=SC2086
    ${RUN:-} "$tmp/bare" --demo 2>&1 | grep -q 'demo: is not' || echo 'it takes --demo'
    # shellcheck disable=SC2086
    ${RUN:-} "$tmp/bare" --listen 127.0.0.1:0 --push 127.0.0.1:0 >"$tmp/ready" 2>&1 &
    pid=$!
    turn=0
    while [ "$turn" -lt 200 ]; do
        clients=$(sed -n 's/.*ready: clients \([^,]*\),.*/\1/p' "$tmp/ready")
        [ -n "$clients" ] && break
        turn=$((turn + 1))
        sleep 0.1
    done
    for page in / /exportws.js; do
        said=$(curl -s -m 10 -o /dev/null -w '%{http_code}' "http://$clients$page")
        [ "$said" = 404 ] || echo "$page: $said"
    done
    kill "$pid" && wait "$pid"
}
wrong=$(without_pages | tr '\n' ' ')
if [ -z "$wrong" ]; then ok no_pages_leaves_them_out
else not_ok no_pages_leaves_them_out "$wrong"
fi

# ----- the program in the top comment -----

# From its #include to the end of main, without the comment's stars. Its port is the one thing that
# is changed: another server may have 8080, so the kernel is asked for one, and it is looked up.
awk '/^ \*   #include/ { on = 1 }
     on && /main\(/ { last = 1 }
     on { print substr($0, 6) }
     last && substr($0, 6) == "}" { exit }' exportws.h >"$tmp/example.as-is.c"
lines=$(grep -c . "$tmp/example.as-is.c")
if [ "$lines" -ge 10 ] && [ "$lines" -le 20 ]; then ok "example_is_about_14_lines"
else not_ok "example_is_about_14_lines" "$lines lines"
fi
sed 's/127\.0\.0\.1:8080/127.0.0.1:0/' "$tmp/example.as-is.c" >"$tmp/example.c"

case ${CC:-cc} in
tcc*) pedantic= ;;
*) pedantic=-pedantic-errors ;;
esac
python=$(sh test/deps --python 2>/dev/null || command -v python3) || python=
# shellcheck disable=SC2086  # several flags, and meant to be
if ! ${CC:-cc} -std=c99 $pedantic -Wall -Wextra -Werror ${CFLAGS:--O2} ${LDFLAGS:-} \
    -DEXPORTWS_NO_MAIN -I. -o "$tmp/as-is" "$tmp/example.as-is.c" exportws.c 2>"$tmp/errors"; then
    not_ok example_compiles_as_it_stands "$(grep -m 1 -E 'error|undefined' "$tmp/errors")"
    exit 1
fi
ok example_compiles_as_it_stands
# shellcheck disable=SC2086
${CC:-cc} ${CFLAGS:--O2} ${LDFLAGS:-} -DEXPORTWS_NO_MAIN -I. -o "$tmp/example" "$tmp/example.c" \
    exportws.c || exit 1
if ! cmp -s "$tmp/as-is" "$tmp/example"; then ok example_port_was_replaced
else not_ok example_port_was_replaced "no 127.0.0.1:8080 in it"
fi
if [ -z "$python" ] || [ ! -r /proc/self/net/tcp ]; then
    echo "skip example_says_welcome: needs python3 and /proc/net/tcp"
    exit "$failed"
fi

# shellcheck disable=SC2086
${RUN:-} "$tmp/example" &
pid=$!

# Finds the port of its listening socket, connects, and prints the first message.
cat >"$tmp/client.py" <<'END'
import os, socket, sys, time

def port_of(pid):
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try: inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError: pass
    for line in open("/proc/net/tcp").read().splitlines()[1:]:
        word = line.split()
        if word[3] == "0A" and f"socket:[{word[9]}]" in inodes:
            return int(word[1].split(":")[1], 16)

deadline = time.monotonic() + 20
port = None
while port is None and time.monotonic() < deadline:
    port = port_of(sys.argv[1])
    if port is None: time.sleep(0.02)
s = socket.create_connection(("127.0.0.1", port), timeout=20)
s.sendall(b"GET /app/ws/export-task/t1 HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
          b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
          b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
want = b"\r\n\r\n\x81\x07welcome"
got = b""
while want not in got:
    piece = s.recv(4096)
    if not piece: break
    got += piece
print("welcome" if got.startswith(b"HTTP/1.1 101 ") and got.endswith(want) else repr(got))
END
said=$("$python" "$tmp/client.py" "$pid" 2>&1 | tail -n 1)
if [ "$said" = welcome ]; then ok example_says_welcome
else not_ok example_says_welcome "$said"
fi
exit "$failed"
