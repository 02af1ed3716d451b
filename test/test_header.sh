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
    if ! command -v "$compiler" >/dev/null 2>&1; then
        echo "skip $name: no $compiler"
        return
    fi
    # shellcheck disable=SC2086  # several flags, and meant to be
    if "$compiler" -std="$standard" $warnings ${3:-} -I. -c -o "$tmp/alone.o" "$source" \
        2>"$tmp/errors"; then ok "$name"
    else not_ok "$name" "$(grep -m 1 error "$tmp/errors")"
    fi
}

strict_c='-Wstrict-prototypes -Wmissing-prototypes'
for compiler in gcc clang; do
    for standard in c99 c11 c17 c2x; do header_alone "$compiler" "$standard" "$strict_c"; done
done
for compiler in g++ clang++; do
    for standard in c++98 c++11 c++17 c++20; do
        case $standard in c++98) extra='-Wno-long-long -Wno-c++11-long-long' ;; *) extra='' ;; esac
        header_alone "$compiler" "$standard" "$extra"
    done
done

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
