#!/bin/sh
# exportws as a back-end developer tries it: curl does the upgrade, curl pushes, curl shows what
# comes back. A waiting curl writes the frames it gets to a file; they are compared byte by byte.
#
# Environment: EXPORTWS, the server (./exportws). Prints "ok NAME" or "not ok NAME: WHY" for each
# test; arguments are the names of the tests to run.

EXPORTWS=${EXPORTWS:-./exportws}
LC_ALL=C
export LC_ALL
path=/app/ws/export-task/
failed=0
pids=
server=
listen=127.0.0.1:0
push_at=127.0.0.1:0

command -v curl >/dev/null || { echo "skip curl: no curl here"; exit 0; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/exportws-curl.XXXXXX") || exit 1

# ===== A test =====

end_processes() {
    for pid in $pids $server; do kill "$pid" 2>/dev/null; done
    for pid in $pids $server; do wait "$pid" 2>/dev/null; done
    pids=
    server=
}
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM

# The head of an upgrade, with the key of RFC 6455, section 1.3; its dot keeps it between tests.
cat >"$dir/.upgrade" <<'END'
Connection: Upgrade
Upgrade: websocket
Sec-WebSocket-Version: 13
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
END

# Notes what is wrong; the test goes on.
fail() { printf '%.1000s; ' "$(echo "$*" | tr '\n' ' ')" >>"$dir/why"; }

# What, what came, what should have come
expect() { [ "$2" = "$3" ] || fail "$1: got '$2', want '$3'"; }

# What, what came, a shell pattern that it should match
# shellcheck disable=SC2254  # the pattern is one
like() { case $2 in $3) ;; *) fail "$1: got '$2', want '$3'" ;; esac; }

# A test is a function in a shell of its own, which ends what it started.
run_test() {
    (
        trap end_processes EXIT
        trap 'exit 1' HUP INT TERM
        "$1"
    )
    if [ -e "$dir/why" ]; then
        failed=1
        echo "not ok $1: $(cat "$dir/why")"
        tail -n 8 "$dir/log" | sed 's/^/#   log: /'
    else
        echo "ok $1"
    fi
    rm -rf "${dir:?}"/*
}

# Runs a command until it succeeds, for ten seconds at most.
await() {
    turn=0
    until "$@"; do
        turn=$((turn + 1))
        [ "$turn" -lt 200 ] || return 1
        sleep 0.05
    done
}

# ===== The server and its two doors =====

# Starts the server and sets $clients and $push, its real addresses. Its only line on stdout is read
# through a pipe: no polling, and a server that dies ends the reading.
serve() {
    mkfifo "$dir/ready"
    "$EXPORTWS" --listen "$listen" --push "$push_at" --close-timeout 0.2 "$@" \
        >"$dir/ready" 2>"$dir/log" &
    server=$!
    ready=
    IFS= read -r ready <"$dir/ready"
    clients=$(echo "$ready" | sed -n 's/.* ready: clients \([^,]*\),.*/\1/p')
    push=$(echo "$ready" | sed -n 's/.*, push \([^,]*\),.*/\1/p')
    [ -n "$push" ] || { fail "no ready line but '$ready'"; exit 1; }
}

# One request by curl: sets $status, $head (lower-case names, no CR) and $body.
ask() {
    status=$(curl -sS --noproxy '*' -m 10 -o "$dir/body" -D "$dir/head" -w '%{http_code}' "$@" \
        2>"$dir/error")
    head=$(tr -d '\r' <"$dir/head" | awk '
        /^HTTP/ { print; next }
        { name = $1; $1 = ""; print tolower(name) $0 }')
    body=$(cat "$dir/body" 2>/dev/null)
    [ -s "$dir/error" ] && fail "curl said: $(cat "$dir/error")"
    rm -f "$dir/body" "$dir/head"
}

# The value of a header of the last response
header() { echo "$head" | sed -n "s/^$1: //p"; }

# POST to a token (or to all, when it is empty), with whatever else curl is told
post() {
    token=$1
    shift
    ask "$@" "http://$push$path$token"
}

# The value of a metric in $body
sample() { echo "$body" | awk -v name="$1" '$1 == name { print $2 }'; }

refuses_with() { # status, pattern of the reason
    expect "status" "$status" "$1"
    like "reason" "$body" "$2"
}

# ===== A waiting curl =====

# Opens a session and waits for its 101: $1 a name, $2 the URL, then what else curl is told. The
# head goes to $dir/NAME.head (curl sits on what -i writes to a file), the frames to $dir/NAME.
open_url() {
    name=$1 url=$2
    shift 2
    curl -sSN --noproxy '*' -m 30 -D "$dir/$name.head" -H "@$dir/.upgrade" "$@" "$url" \
        >"$dir/$name" 2>"$dir/$name.error" &
    pids="$pids $!"
    await has_head "$dir/$name.head" || { fail "$name: no response head"; exit 1; }
    like "$name" "$(head -n 1 "$dir/$name.head")" "HTTP/1.1 101 *"
}

# The same by token: $1 a name, $2 the token
open_session() { open_url "$1" "http://$clients$path$2"; }

has_head() { [ -e "$1" ] && tr -d '\r' <"$1" | grep -q '^$'; }
hex() { od -An -v -tx1 | tr -d ' \n'; }

# What the session got, in hex
frames() { hex <"$dir/$1"; }

# The frame of a text of up to 125 bytes, in hex
text_frame() { printf '81%02x%s' ${#1} "$(printf %s "$1" | hex)"; }

got_frames() { [ "$(frames "$1")" = "$2" ]; }

# The session got these frames and no others: $1 its name, $2 the frames in hex
expect_frames() { await got_frames "$1" "$2" || fail "$1: got frames $(frames "$1"), want $2"; }

# $1 bytes of x
filler() {
    awk -v n="$1" 'BEGIN { s = "x"; while (length(s) < n) s = s s; printf "%s", substr(s, 1, n) }'
}

# ===== The tests =====

upgrade_shows_101_and_the_rfc_accept_key() {
    serve
    open_session waiting ab12
    answer=$(tr -d '\r' <"$dir/waiting.head")
    expect "accept key" "$(echo "$answer" | sed -n 's/^[Ss]ec-[Ww]eb[Ss]ocket-[Aa]ccept: //p')" \
        "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    expect "upgrade" "$(echo "$answer" | grep -ic '^upgrade: websocket$')" 1
    expect "connection" "$(echo "$answer" | grep -ic '^connection: upgrade$')" 1
}

push_reaches_the_waiting_session() {
    serve
    open_session mine ab12
    open_session other cd34
    post ab12 -d '37 %'
    expect "status" "$status" 200
    like "answer" "$body" '{"delivered":1,"id":[0-9]*}'
    expect "type" "$(header content-type)" application/json
    post ab12 -d 'done: /files/a.xlsx'
    expect_frames mine "$(text_frame '37 %')$(text_frame 'done: /files/a.xlsx')"
    expect_frames other ""
}

push_ids_only_grow() {
    serve --hold 30
    last=0
    for token in a b a '' b; do
        post "$token" -d x
        id=$(echo "$body" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
        [ "${id:-0}" -gt "$last" ] || fail "id ${id:-none} after $last in $body"
        last=${id:-0}
    done
}

push_reaches_every_session_of_the_token() {
    serve
    open_session first ab12
    open_session second ab12
    post ab12 -d both
    like "answer" "$body" '{"delivered":2,*'
    expect_frames first "$(text_frame both)"
    expect_frames second "$(text_frame both)"
}

binary_push_is_a_binary_frame() {
    serve
    open_session mine ab12
    printf '\000\377\200' >"$dir/x"
    post ab12 -H 'Content-Type: application/octet-stream' --data-binary "@$dir/x"
    expect "status" "$status" 200
    expect_frames mine "820300ff80"
}

broadcast_reaches_everybody() {
    serve
    open_session one ab12
    open_session two cd34
    post '' -d 'back at 5'
    expect "status" "$status" 200
    like "answer" "$body" '{"delivered":2,*'
    ask -d 'no slash' "http://$push${path%/}"
    expect "status without the last slash" "$status" 200
    like "answer without the last slash" "$body" '{"delivered":2,*'
    both=$(text_frame 'back at 5')$(text_frame 'no slash')
    expect_frames one "$both"
    expect_frames two "$both"
}

broadcast_to_nobody_is_200() {
    serve
    post '' -d hello
    expect "status" "$status" 200
    like "answer" "$body" '{"delivered":0,*'
}

held_messages_arrive_on_the_later_connect() {
    serve
    for text in one two three; do
        post late -d "$text"
        expect "status" "$status" 202
        like "answer" "$body" '{"delivered":0,"held":true,*'
    done
    ask "http://$push${path}late"
    expect "status" "$body" '{"sessions":0,"held":3}'
    open_session late late
    expect_frames late "$(text_frame one)$(text_frame two)$(text_frame three)"
    ask "http://$push${path}late"
    expect "status after" "$body" '{"sessions":1,"held":0}'
}

absent_token_is_404_when_holding_is_off() {
    serve --hold 0
    post nobody -d lost
    refuses_with 404 '{"error":"?*"*}'
}

no_room_to_hold_is_503_and_nothing_is_lost() {
    serve --max-push 4096 --buffer 65536
    filler 4000 >"$dir/x"
    held=0
    while [ "$held" -lt 40 ]; do
        post full --data-binary "@$dir/x"
        [ "$status" = 202 ] || break
        held=$((held + 1))
    done
    refuses_with 503 '{"error":"?*"*}'
    like "Retry-After" "$(header retry-after)" '[0-9]*'
    [ "$held" -ge 8 ] && [ "$held" -le 16 ] || fail "$held messages of 4000 bytes held in 65536"
    ask "http://$push${path}full"
    expect "status" "$body" "{\"sessions\":0,\"held\":$held}"
    open_session full full
    one=817e0fa0$(hex <"$dir/x")
    expect_frames full "$(while [ "$held" -gt 0 ]; do
        printf %s "$one"
        held=$((held - 1))
    done)"
    post full -d again
    expect "status once there is room" "$status" 200
}

push_of_max_is_taken_and_one_more_is_413() {
    serve --max-push 1000
    open_session mine ab12
    filler 1000 >"$dir/x"
    post ab12 --data-binary "@$dir/x"
    expect "status at the limit" "$status" 200
    expect_frames mine "817e03e8$(hex <"$dir/x")"
    printf x >>"$dir/x"
    post ab12 --data-binary "@$dir/x"
    refuses_with 413 '{"error":"?*"*}'
    post ab12 -H 'Transfer-Encoding: chunked' --data-binary "@$dir/x"
    refuses_with 413 '{"error":"?*"*}'
    post ab12 -d fine
    expect "status afterwards" "$status" 200
}

body_without_length_is_411() {
    serve
    post ab12 -H 'Content-Length:' -d x
    refuses_with 411 '{"error":"?*"*}'
    post ab12 -X POST
    refuses_with 411 '{"error":"?*"*}'
}

wrong_or_missing_secret_is_401() {
    printf 's3cret\nnot this line\n' >"$dir/secret"
    serve --push-secret-file "$dir/secret"
    open_session mine ab12
    for credentials in '' 'Bearer wrong' 'Bearer s3cre' 'Bearer s3crets' 'Basic s3cret' \
        'Bearer not this line'; do
        post ab12 -H "Authorization: $credentials" -d x
        refuses_with 401 '{"error":"?*"*}'
        like "WWW-Authenticate for $credentials" "$(header www-authenticate)" 'Bearer*'
    done
    for target in /online /metrics "${path}ab12"; do
        ask "http://$push$target"
        expect "$target" "$status" 401
    done
    ask -X DELETE "http://$push${path}ab12"
    expect "DELETE" "$status" 401
    ask "http://$push/healthz"
    expect "/healthz needs no secret" "$status" 200
    post ab12 -H 'Authorization: Bearer s3cret' -d right
    expect "status with the secret" "$status" 200
    expect_frames mine "$(text_frame right)"
}

text_that_is_not_utf8_is_400_and_touches_nobody() {
    serve
    open_session mine ab12
    for poison in '\303\050' '\355\240\275' 'a\300\200' '\364\220\200\200' 'half \342\202'; do
        # shellcheck disable=SC2059  # the octal escapes are for printf
        printf "$poison" >"$dir/x"
        post ab12 --data-binary "@$dir/x"
        refuses_with 400 '{"error":"?*"*}'
        post '' --data-binary "@$dir/x"
        refuses_with 400 '{"error":"?*"*}'
    done
    printf '\342\202\254' >"$dir/x"
    post ab12 --data-binary "@$dir/x"
    expect "status of good text" "$status" 200
    expect_frames mine "8103e282ac"
}

other_methods_are_405_with_allow() {
    serve
    for request in "PUT ${path}ab12 GET,POST,DELETE" "PATCH $path POST" "POST /online GET" \
        "DELETE /metrics GET" "PUT /healthz GET"; do
        # shellcheck disable=SC2086  # three words
        set -- $request
        ask -X "$1" -d x "http://$push$2"
        expect "$1 $2" "$status" 405
        allow=,$(header allow | tr -d ' '),
        for method in $(echo "$3" | tr , ' '); do
            like "Allow of $2" "$allow" "*,$method,*"
        done
    done
    ask -X POST -d x "http://$clients${path}ab12"
    expect "POST at the client door" "$status" 405
    expect "Allow at the client door" "$(header allow)" GET
}

unknown_path_is_404() {
    serve
    for target in / /nothing /app/ws /onlinex "${path}a/b"; do
        ask "http://$push$target"
        refuses_with 404 '{"error":"?*"*}'
        ask "http://$clients$target"
        expect "$target at the client door" "$status" 404
    done
}

get_tells_sessions_and_held() {
    serve
    ask "http://$push${path}ab12"
    expect "status of an unknown token" "$status" 404
    open_session one ab12
    open_session two ab12
    ask "http://$push${path}ab12"
    expect "status" "$status" 200
    expect "body" "$body" '{"sessions":2,"held":0}'
}

delete_closes_1000_and_drops_the_held() {
    serve
    open_session mine ab12
    ask -X DELETE "http://$push${path}ab12"
    expect "status" "$status" 200
    expect "body" "$body" '{"closed":1}'
    await ended_with_close mine 03e8 || fail "frames $(frames mine), want close 1000"
    ask -X DELETE "http://$push${path}nobody"
    expect "status when there is none" "$status" 404
    post later -d held
    expect "status of the push" "$status" 202
    ask -X DELETE "http://$push${path}later"
    ask "http://$push${path}later"
    expect "status once the held are dropped" "$status" 404
    open_session later later
    post later -d new
    expect_frames later "$(text_frame new)"
}

# The session's last frame is a close of this code (hex), the reason may be any.
ended_with_close() { case $(frames "$1") in 88??"$2"*) ;; *) return 1 ;; esac; }

online_counts_tokens_sessions_and_held() {
    serve --capacity 7
    open_session a ab12
    open_session b ab12
    open_session c cd34
    post absent -d x
    ask "http://$push/online"
    expect "status" "$status" 200
    expect "body" "$body" '{"online":2,"sessions":3,"capacity":7,"held":1}'
}

metrics_are_prometheus_text_and_add_up() {
    serve
    open_session a ab12
    open_session b ab12
    ask -X DELETE "http://$push${path}ab12"
    open_session c cd34
    post cd34 -d x
    post '' -d y
    post absent -d z
    ask "http://$push/metrics"
    expect "status" "$status" 200
    like "type" "$(header content-type)" 'text/plain*version=0.0.4*'
    for name in sessions tokens handshakes pushers capacity memory_bytes buffer_used_bytes \
        held_messages sessions_opened_total messages_pushed_total messages_delivered_total \
        messages_held_total messages_expired_total messages_received_total heartbeats_total \
        pings_total bytes_sent_total bytes_received_total; do
        type=gauge
        case $name in *_total) type=counter ;; esac
        expect "samples of $name" "$(echo "$body" | grep -c "^exportws_$name [0-9]*\$")" 1
        expect "type of $name" "$(echo "$body" | sed -n "s/^# TYPE exportws_$name //p")" "$type"
    done
    for reason in peer error timeout slow protocol replaced ended shutdown; do
        label="exportws_sessions_closed_total{reason=\"$reason\"}"
        expect "samples of $label" "$(echo "$body" | grep -c "^$label [0-9]*\$")" 1
    done
    expect "opened - closed - sessions" "$(echo "$body" | awk '
        $1 == "exportws_sessions_opened_total" { n += $2 }
        $1 ~ /^exportws_sessions_closed_total/ || $1 == "exportws_sessions" { n -= $2 }
        END { print n + 0 }')" 0
    for figure in sessions_opened_total=3 messages_pushed_total=3 messages_held_total=1 \
        held_messages=1; do
        expect "${figure%=*}" "$(sample "exportws_${figure%=*}")" "${figure#*=}"
    done
}

refusals_are_counted_by_status() {
    serve --hold 0
    ask "http://$clients/nothing"
    post nobody -d x
    ask "http://$clients${path}ab12"
    ask "http://$push/metrics"
    expect "426" "$(sample 'exportws_refused_total{status="426"}')" 1
    count=$(sample 'exportws_refused_total{status="404"}')
    [ "${count:-0}" -ge 1 ] || fail "no 404 counted"
}

healthz_answers_at_both_doors() {
    serve
    ask "http://$push/healthz"
    expect "push door" "$status $body" '200 {"status":"ok"}'
    ask "http://$clients/healthz"
    expect "client door" "$status $body" '200 ok'
}

not_an_upgrade_is_426() {
    serve
    ask "http://$clients${path}ab12"
    expect "status" "$status" 426
    expect "Upgrade" "$(header upgrade)" websocket
    names=,$(header connection | tr "\n" , | tr -d " " | tr "[:upper:]" "[:lower:]")
    like "Connection" "$names" '*,upgrade,*'
    like "Connection" "$names" '*,close,*'
    expect "version" "$(header sec-websocket-version)" 13
    expect "one line of reason" "$(echo "$body" | wc -l | tr -d ' ')" 1
}

full_table_is_503_at_the_client_door() {
    serve --capacity 1
    open_session only ab12
    ask -H "@$dir/.upgrade" "http://$clients${path}cd34"
    expect "status" "$status" 503
    like "Retry-After" "$(header retry-after)" '[0-9]*'
    expect "Connection" "$(header connection)" close
    post ab12 -d 'still here'
    expect_frames only "$(text_frame 'still here')"
}

push_through_a_unix_socket() {
    push_at=unix:$dir/push.sock
    serve
    expect "push address of the ready line" "$push" "$push_at"
    open_session mine ab12
    ask --unix-socket "$dir/push.sock" -d hello "http://localhost${path}ab12"
    expect "status" "$status" 200
    like "answer" "$body" '{"delivered":1,*'
    expect_frames mine "$(text_frame hello)"
}

upgrade_through_a_unix_socket() {
    listen=unix:$dir/clients.sock
    serve
    expect "client address of the ready line" "$clients" "$listen"
    open_url mine "http://localhost${path}ab12" --unix-socket "$dir/clients.sock"
    post ab12 -d hello
    expect_frames mine "$(text_frame hello)"
}

expect_100_continue_is_answered_before_the_body() {
    serve
    open_session mine ab12
    filler 65536 >"$dir/x"
    post ab12 -H 'Expect: 100-continue' --expect100-timeout 9 --data-binary "@$dir/x"
    like "responses" "$head" 'HTTP/1.1 100 *HTTP/1.1 200 *'
    expect_frames mine "817f0000000000010000$(hex <"$dir/x")"
    printf x >>"$dir/x"
    post ab12 -H 'Expect: 100-continue' --expect100-timeout 9 --data-binary "@$dir/x"
    like "response to a body that is too large" "$head" 'HTTP/1.1 413 *'
}

chunked_body_is_one_message() {
    serve
    open_session mine ab12
    filler 50000 >"$dir/x"
    post ab12 -H 'Transfer-Encoding: chunked' --data-binary "@$dir/x"
    expect "status" "$status" 200
    expect_frames mine "817ec350$(hex <"$dir/x")"
    echo stdin >"$dir/x.2"
    post ab12 -X POST -T - <"$dir/x.2"
    expect "status of an upload from stdin" "$status" 200
    expect_frames mine "817ec350$(hex <"$dir/x")8106737464696e0a"
}

keep_alive_serves_many_pushes_on_one_connection() {
    serve
    open_session mine ab12
    url="http://$push${path}ab12"
    set -- -sS --noproxy '*' -m 10 -o /dev/null -w '%{http_code}/%{num_connects} '
    opened=$(curl "$@" -d one "$url" --next "$@" -d two "$url" --next "$@" -d three "$url")
    expect "statuses and connections opened" "$opened" "200/1 200/0 200/0 "
    expect_frames mine "$(text_frame one)$(text_frame two)$(text_frame three)"
}

tests=$(sed -n '/^# ===== The tests/,$s/^\([a-z0-9_]*\)() {$/\1/p' "$0")
[ $# -gt 0 ] && tests=$*
for test in $tests; do run_test "$test"; done
exit "$failed"
