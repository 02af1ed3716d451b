#!/bin/sh
# How small it is: a table, and a failure past the figures that README promises. What README shows of
# --memory, on a 64-bit machine, is compared to the byte.
#
#   test/size.sh           the table; each line says "over" where it is
#
# Environment: CC (cc)
set -u
cd "$(dirname "$0")/.." || exit 1

MEMORY_MAX=16384   # a server for 8 sessions with messages of 512 bytes
FRAME_MAX=1024     # the stack of any one function
STACK_MAX=8192     # the deepest path, measured
TEXT_MAX=49152     # code and constants of the object at -Os, without the pages
PAGES_MAX=13312    # the browser client, the demo page, and what sends them
STATIC_MAX=131072  # a stripped static musl binary

cc=${CC:-cc}
tmp=$(mktemp -d) || exit 1
pid=
clean_up() {
    [ -n "$pid" ] && kill "$pid" 2>/dev/null
    rm -rf "$tmp"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
failed=0

row() { # what, bytes, at most, remark
    case $2 in
    '' | *[!0-9]*) verdict='FAILED: no figure'; failed=1 ;;
    *) if [ "$2" -le "$3" ]; then verdict=ok; else verdict=over; failed=1; fi ;;
    esac
    printf '%-46s %8s %8s  %-5s %s\n' "$1" "$2" "$3" "$verdict" "$4"
}

# The largest frame of an object: bytes and function. One whose size is not known at compile time
# counts as too large.
largest_frame() { # flags...
    rm -f "$tmp"/o.su
    # shellcheck disable=SC2086
    $cc -std=c99 "$@" -fstack-usage -DEXPORTWS_NO_MAIN -c -o "$tmp/o.o" exportws.c || return
    awk -F '\t' '{ n = $2 + 0; if ($3 ~ /dynamic/ && $3 !~ /bounded/) n += 1000000
                   sub(/.*:/, "", $1); if (n > most) { most = n; who = $1 } }
                 END { print most, who }' "$tmp/o.su"
}

printf '%-46s %8s %8s\n' '' bytes 'at most'

# shellcheck disable=SC2086
$cc -std=c99 -O2 -pthread -DEXPORTWS_NO_MAIN -Wl,-z,now -o "$tmp/stack" test/stack.c exportws.c ||
    exit 1
"$tmp/stack" >"$tmp/figures" || { echo "test/stack.c failed"; failed=1; }
figure() { sed -n "s/^$1 //p" "$tmp/figures"; }
row 'memory, 8 sessions, 512-byte messages' "$(figure memory)" $MEMORY_MAX ''
row 'stack, deepest path, measured at -O2' "$(figure stack)" $STACK_MAX "$(figure work)"

for level in -O0 -O2 -Os; do
    frame=$(largest_frame "$level")
    row "stack, largest function at $level" "${frame%% *}" $FRAME_MAX "${frame#* }"
done

# Nothing unwinds C.
object_text() { # flags...: code and constants of the object
    $cc -std=c99 -Os -fno-asynchronous-unwind-tables -DEXPORTWS_NO_MAIN "$@" -c -o "$tmp/os.o" exportws.c || return
    size "$tmp/os.o" | awk 'NR == 2 { print $1 }'
}

whole=$(object_text)
bare=$(object_text -DEXPORTWS_NO_PAGES)
row 'object at -Os, without the pages' "$bare" $TEXT_MAX \
    "$(size "$tmp/os.o" | awk 'NR == 2 { print "data " $2 ", bss " $3 }')"
row 'the pages' $((${whole:-0} - ${bare:-0})) $PAGES_MAX ''

# Small is worth nothing unless it serves: its own /healthz is asked for.
static_serves() {
    "$tmp/static" --listen 127.0.0.1:0 --push 127.0.0.1:0 >"$tmp/ready" 2>/dev/null &
    pid=$!
    turn=0
    while [ ! -s "$tmp/ready" ] && [ "$turn" -lt 200 ]; do
        turn=$((turn + 1))
        sleep 0.1
    done
    port=$(sed -n 's/.*push 127\.0\.0\.1:\([0-9]*\),.*/\1/p' "$tmp/ready")
    curl -s -m 10 "http://127.0.0.1:${port:-1}/healthz" | grep -q '"ok"' && echo 'and it serves'
    kill "$pid" && wait "$pid"
    pid=
}

if command -v musl-gcc >/dev/null 2>&1; then
    musl-gcc -std=c99 -Os -static -s -Wl,--gc-sections -ffunction-sections -fdata-sections \
        -o "$tmp/static" exportws.c || exit 1
    serves=$(static_serves)
    [ -n "$serves" ] || failed=1
    row 'static binary with musl, stripped, at -Os' "$(wc -c <"$tmp/static" | tr -d ' ')" \
        $STATIC_MAX "${serves:-DOES NOT SERVE}"
else
    echo 'static binary with musl: skipped, no musl-gcc here'
    if [ "${CI:-}" = true ]; then failed=1; fi
fi

# README's "$ ./exportws --memory ...", each with the line that follows it.
$cc -std=c99 -O1 -o "$tmp/exportws" exportws.c || exit 1
awk '/^ *[$] [.]\/exportws --memory/ { on = 1; line = "" }
     on == 2 { print $1 line; on = 0 }
     on { more = sub(/\\$/, ""); sub(/^ *[$] [.]\/exportws/, ""); line = line " " $0; on = 2 - more }
    ' README >"$tmp/readme"
[ -s "$tmp/readme" ] || { echo 'README shows no --memory'; failed=1; }
while read -r want options; do
    # shellcheck disable=SC2086  # words, and meant to be
    got=$("$tmp/exportws" $options)
    [ "$got" = "$want" ] && continue
    echo "README says $want for" $options": it is $got"
    failed=1
done <"$tmp/readme"
exit "$failed"
