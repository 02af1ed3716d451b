#!/bin/sh
# A real export, end to end: a CSV of 200,000 rows is compressed in 20 steps, and after each the
# progress goes to the person who waits, by curl. A client (python3-websockets) listens as the
# browser would; then its notes are checked: every step once, in order, the last with the place of
# the file - and the file itself.
#
# Environment: EXPORTWS, the server (./exportws); PYTHON, a python3 with websockets. Prints a line
# for every check: ok, not ok or skip.

EXPORTWS=${EXPORTWS:-./exportws}
here=$(dirname "$0")
PYTHON=${PYTHON:-$(sh "$here/deps" --python 2>/dev/null || command -v python3)}
path=/app/ws/export-task/
rows=200000
steps=20
failed=0

for tool in curl gzip; do
    command -v $tool >/dev/null || { echo "skip export: no $tool here"; exit 0; }
done
# From another folder: websockets.py beside this file is a test, not the package.
(cd / && "${PYTHON:-python3}" -c 'import websockets') 2>/dev/null || {
    echo "skip export: no python3 with the websockets package here"
    exit 0
}

dir=$(mktemp -d "${TMPDIR:-/tmp}/exportws-export.XXXXXX") || exit 1
server=
client=
clean_up() {
    for pid in $client $server; do kill "$pid" 2>/dev/null; done
    for pid in $client $server; do wait "$pid" 2>/dev/null; done
    rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

# Name, what came, what should have come
check() {
    if [ "$2" = "$3" ]; then
        echo "ok $1"
    else
        failed=1
        echo "not ok $1: got '$2', want '$3'"
    fi
}

give_up() {
    echo "not ok export: $1"
    sed 's/^/#   log: /' "$dir/log"
    exit 1
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

# A task's table, the same on every machine: id, name, a figure with two digits behind the point
make_rows() {
    awk -v n="$rows" 'BEGIN {
        print "id,name,amount"
        for (i = 1; i <= n; i++)
            printf "%d,customer %05d,%d.%02d\n", i, i * 7919 % 99991, i * 31 % 10007, i * 17 % 100
    }' >"$1"
}

# ===== The server, and the person who waits =====

mkfifo "$dir/ready"
"$EXPORTWS" --listen 127.0.0.1:0 --push 127.0.0.1:0 >"$dir/ready" 2>"$dir/log" &
server=$!
ready=
IFS= read -r ready <"$dir/ready"
clients=$(echo "$ready" | sed -n 's/.* ready: clients \([^,]*\),.*/\1/p')
push=$(echo "$ready" | sed -n 's/.*, push \([^,]*\),.*/\1/p')
[ -n "$push" ] || give_up "no ready line but '$ready'"

task=export-2024-0042
"$PYTHON" "$here/export_client.py" "ws://$clients$path$task" >"$dir/notes" 2>"$dir/client.error" &
client=$!
await grep -q '^open$' "$dir/notes" || give_up "no connection: $(cat "$dir/client.error")"

# ===== The back end: compress, push, compress, push =====

make_rows "$dir/task.csv"
file=$dir/task.csv.gz
total=$((rows + 1))
done_rows=0
step=0
echo open >"$dir/want"
: >"$dir/answers"
while [ "$step" -lt "$steps" ]; do
    step=$((step + 1))
    upto=$((total * step / steps))
    # Members of a gzip file may simply follow each other.
    sed -n "$((done_rows + 1)),${upto}p;${upto}q" "$dir/task.csv" | gzip -c >>"$file"
    done_rows=$upto
    progress=$(awk -v s="$step" -v n="$steps" 'BEGIN { printf "%.2f", s / n }')
    message="{\"progress\":$progress,\"rows\":$done_rows}"
    [ "$step" -lt "$steps" ] || message="{\"progress\":1,\"rows\":$done_rows,\"file\":\"$file\"}"
    echo "$message" >>"$dir/want"
    answer=$(curl -sS --noproxy '*' -m 10 -w ' %{http_code}' --data-binary "$message" \
        "http://$push$path$task" | tr -d '\n')
    echo "$answer" | sed 's/"id":[0-9]*/"id":N/' >>"$dir/answers"
done
closed=$(curl -sS --noproxy '*' -m 10 -X DELETE "http://$push$path$task")
await grep -q '^closed' "$dir/notes"
echo "closed 1000" >>"$dir/want"

# ===== What the person saw, and what the file holds =====

check every_push_was_delivered_to_one_session "$(uniq -c "$dir/answers" | tr -s ' ')" \
    " $steps {\"delivered\":1,\"id\":N} 200"
check task_ended_by_delete "$closed" '{"closed":1}'
check every_step_arrived_once_and_in_order "$(cat "$dir/notes")" "$(cat "$dir/want")"
place=$(sed -n 's/.*"file":"\([^"]*\)".*/\1/p' "$dir/notes")
check the_last_step_says_where_the_file_is "$place" "$file"
check the_file_is_sound "$(gzip -t "$place" 2>&1 && echo sound)" sound
check the_file_holds_every_row "$(gzip -dc "$place" | wc -l | tr -d ' ')" "$total"
check the_file_holds_the_table "$(gzip -dc "$place" | cksum)" "$(cksum <"$dir/task.csv")"
exit "$failed"
