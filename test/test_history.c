/* Reconnecting without loss: ids, ?last=, gap, history, ?end, and who sees nothing of all that.
 *
 * Link with -Wl,--wrap=clock_gettime -Wl,--wrap=time: time stands still but for clock_advance(). */
#define EXPORTWS_NO_MAIN
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

/* The next send() but `send_after` takes no more than so many bytes; none: it says send_error. */
static size_t send_most = SIZE_MAX;
static unsigned send_after;
static int send_error = EAGAIN;

static ssize_t send_part(int fd, const void *p, size_t n, int flags)
{
    size_t most = send_after > 0 ? SIZE_MAX : send_most;
    if (send_after > 0) send_after--;
    else send_most = SIZE_MAX;
    errno = send_error;
    if (most == 0) return -1;
    return send(fd, p, n < most ? n : most, flags);
}

#define send(fd, p, n, flags) send_part(fd, p, n, flags)
#include "../exportws.c"
#undef send

#include "test.h"

#include "audit.h"

#define LITERAL(text) (text), sizeof(text) - 1
#define V1 "Sec-WebSocket-Protocol: exportws.v1\r\n"

static struct unit u;
static struct script peers[4], pusher;
static int narrow; /* the next client's socket has the smallest buffer there is */

/* A small server: 8 sessions, what is held or history is kept for a second. */
static void history_options(void)
{
    unit_defaults(&u);
    u.o.capacity = 8, u.o.handshakes = 2, u.o.pushers = 2, u.o.history = 4, u.o.queue = 4;
    u.o.max_push_bytes = 70000, u.o.buffer_bytes = 102000, u.o.hold_ms = 1000;
}

static int history_start(void **state)
{
    (void)state;
    history_options();
    unit_start(&u);
    for (size_t i = 0; i < COUNT(peers); i++) peers[i].fd = -1;
    return 0;
}

static int history_end(void **state)
{
    (void)state;
    send_most = SIZE_MAX, send_after = 0, send_error = EAGAIN, narrow = 0;
    unit_end(&u);
    for (size_t i = 0; i < COUNT(peers); i++) script_close(&peers[i]);
    return 0;
}

/* The server starts again; a second has passed. */
static void restart(void)
{
    exportws_options o = u.o;
    unit_end(&u);
    clock_advance(1000);
    unit_defaults(&u);
    u.o = o;
    unit_start(&u);
}

/* With another bound of history; 0 for hold_ms: nothing is held. */
static void restart_with(size_t history, unsigned hold_ms)
{
    u.o.history = history, u.o.hold_ms = hold_ms;
    restart();
}

static void expect_books(uint32_t held, uint32_t history)
{
    const char *wrong = audit(u.w);
    if (wrong) fail_msg("%s", wrong);
    assert_int_equal(u.w->held, held);
    assert_int_equal(u.w->history, history);
}

/* ===== Clients ===== */

/* Asks for target (TOKEN?QUERY) with more header fields; the whole answer is in got, NUL behind it.
 */
static void client_asks(struct script *s, const char *target, const char *fields)
{
    static char request[1024];
    int n = snprintf(request, sizeof request,
                     "GET %s%s HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
                     "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n%s"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                     u.o.path, target, fields);
    struct piece piece = {request, (size_t)n};
    script_attach(s, &u, EXPORTWS_CLIENTS, &piece, 1);
    for (uint32_t i = 0; i < u.w->pushers_at && narrow; i++)
        if (u.w->conns[i].state == CONN_HEAD)
            setsockopt(u.w->conns[i].fd, SOL_SOCKET, SO_SNDBUF, &narrow, sizeof narrow);
    script_send(s);
    unit_settle(&u);
    script_read(s);
    s->pieces = NULL, s->count = s->next = 0;
    s->got[s->got_size] = '\0';
}

/* Becomes a session; what came behind the 101 is left in got. Returns whether the subprotocol was
 * granted. */
static int join(struct script *s, const char *target, const char *fields)
{
    client_asks(s, target, fields);
    char *end = strstr((char *)s->got, "\r\n\r\n");
    if (strncmp((char *)s->got, "HTTP/1.1 101 ", 13) != 0 || !end)
        fail_msg("no session of %s: %s", target, (char *)s->got);
    *end = '\0';
    const char *protocol = strstr((char *)s->got, "Sec-WebSocket-Protocol: ");
    if (protocol) assert_string_equal(protocol, "Sec-WebSocket-Protocol: exportws.v1");
    script_take(s, (size_t)(end + 4 - (char *)s->got));
    return protocol != NULL;
}

/* A session with ids that goes on behind an id. */
static void resume(struct script *s, const char *token, uint64_t last)
{
    char target[128];
    snprintf(target, sizeof target, "%s?last=%llu", token, (unsigned long long)last);
    assert_true(join(s, target, V1));
}

/* It leaves without a word; the server knows. */
static void leave(struct script *s)
{
    script_close(s);
    unit_settle(&u);
}

/* The next is a message with its id. */
static void expect_bytes(struct script *s, uint64_t id, unsigned opcode, const void *p, size_t n)
{
    static uint8_t want[1 << 17];
    size_t line = (size_t)sprintf((char *)want, "%llu\n", (unsigned long long)id);
    if (n > 0) memcpy(want + line, p, n);
    script_expect(s, opcode, want, line + n);
}

static void expect(struct script *s, uint64_t id, const char *text)
{
    expect_bytes(s, id, OP_TEXT, text, strlen(text));
}

static void expect_gap(struct script *s)
{
    script_expect_text(s, "gap");
}

static void expect_nothing(const struct script *s)
{
    if (s->got_size > 0)
        fail_msg("%zu bytes more: %.*s", s->got_size, (int)s->got_size, (const char *)s->got);
}

/* Sends on turns of the server, and reads what comes of them. */
static void play(struct script *s)
{
    script_play(s, &u);
}

/* Pushes to a token (NULL: to all); returns the message's id. */
static uint64_t say(const char *token, const char *text)
{
    int result = token ? exportws_send(u.w, token, text, strlen(text), EXPORTWS_TEXT)
                       : exportws_broadcast(u.w, text, strlen(text), EXPORTWS_TEXT);
    assert_true(result >= 0);
    return exportws_last_id(u.w);
}

/* Asks at the push door; the answer, NUL-terminated. */
static const char *ask(const char *first, const char *second)
{
    const struct piece pieces[] = {{first, strlen(first)}, {second, strlen(second)}};
    script_attach(&pusher, &u, EXPORTWS_PUSH, pieces, *second ? 2 : 1);
    play(&pusher);
    script_close(&pusher);
    unit_settle(&u);
    pusher.got[pusher.got_size] = '\0';
    return (const char *)pusher.got;
}

static void expect_answer(const char *answer, unsigned status, const char *body)
{
    const char *end = strstr(answer, "\r\n\r\n");
    if (strtoul(answer + 9, NULL, 10) != status || !end || strcmp(end + 4, body) != 0)
        fail_msg("%s\ninstead of %u %s", answer, status, body);
}

/* Fills the kernel's buffer of a session with empty pings: what is sent next has to wait. */
static void session_clog(uint32_t slot)
{
    const int size = 1024;
    setsockopt(u.w->conns[slot].fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    for (int i = 0; i < 100000; i++)
        if (send(u.w->conns[slot].fd, "\x89\x00", 2, MSG_NOSIGNAL) != 2) return;
    fail_msg("the kernel takes all");
}

/* Reads until all that waited has come, and takes the pings off. */
static void session_unclog(struct script *s)
{
    script_read(s);
    play(s);
    while (s->got_size >= 2 && s->got[0] == 0x89 && s->got[1] == 0) script_take(s, 2);
}

/* ===== Ids ===== */

static void subprotocol_is_granted_when_it_is_offered(void **state)
{
    static const struct {
        const char *fields;
        int want;
    } rows[] = {
        {V1, 1},
        {"", 0},
        {"Sec-WebSocket-Protocol: chat\r\n", 0},
        {"Sec-WebSocket-Protocol: chat, exportws.v1\r\n", 1},
        {"Sec-WebSocket-Protocol: exportws.v1 , chat\r\n", 1},
        {"Sec-WebSocket-Protocol: a,,exportws.v1,b\r\n", 1},
        {"Sec-WebSocket-Protocol: chat\r\nsec-websocket-protocol:exportws.v1\r\n", 1},
        {"Sec-WebSocket-Protocol: exportws.v1\r\nSec-WebSocket-Protocol: chat\r\n", 1},
        {"Sec-WebSocket-Protocol: exportws.v1\r\nSec-WebSocket-Protocol: exportws.v1\r\n", 1},
        {"Sec-WebSocket-Protocol: Exportws.v1\r\n", 0},
        {"Sec-WebSocket-Protocol: exportws.v10\r\n", 0},
        {"Sec-WebSocket-Protocol: exportws.v\r\n", 0},
        {"Sec-WebSocket-Protocol: exportws.v2\r\n", 0},
        {"Sec-WebSocket-Protocol: \"exportws.v1\"\r\n", 0},
        {"Sec-WebSocket-Protocol:\r\n", 0},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        int granted = join(&peers[0], "abc", rows[i].fields);
        if (granted != rows[i].want) fail_msg("row %zu: %s", i, rows[i].fields);
        uint64_t id = say("abc", "x");
        play(&peers[0]);
        if (granted) expect(&peers[0], id, "x");
        else script_expect_text(&peers[0], "x");
        leave(&peers[0]);
    }
}

/* Text and binary, of every size around those where a frame's head grows. */
static void messages_of_every_size_come_with_their_id(void **state)
{
    static uint8_t bytes[66000];
    static const size_t around[] = {0, 1, 108, 125, 126, 1000, 65518, 65535, 65536};
    const int kinds[] = {EXPORTWS_TEXT, EXPORTWS_BINARY};
    (void)state;
    memset(bytes, 'x', sizeof bytes);
    join(&peers[0], "abc", V1);
    join(&peers[1], "abc", "");
    for (size_t i = 0; i < COUNT(around); i++)
        for (size_t n = around[i] < 3 ? 0 : around[i] - 3; n <= around[i] + 3; n++)
            for (int k = 0; k < 2; k++) {
                assert_int_equal(exportws_send(u.w, "abc", bytes, n, kinds[k]), 2);
                play(&peers[0]), play(&peers[1]);
                expect_bytes(&peers[0], exportws_last_id(u.w), (unsigned)kinds[k], bytes, n);
                script_expect(&peers[1], (unsigned)kinds[k], bytes, n);
            }
    expect_nothing(&peers[0]), expect_nothing(&peers[1]);
}

static void ids_grow_across_restarts(void **state)
{
    uint64_t before = 0;
    (void)state;
    for (int server = 0; server < 3; server++) {
        join(&peers[0], "abc", V1);
        for (int i = 0; i < 20; i++) {
            uint64_t id = say(i % 3 ? "abc" : NULL, "x");
            assert_true(id > before && id > fake_clock.realtime_ms * 1000);
            before = id;
            play(&peers[0]);
            expect(&peers[0], id, "x");
        }
        script_close(&peers[0]);
        restart();
    }
    assert_int_equal(exportws_last_id(NULL), 0);
}

/* A message that has come whole, and was refused: with the id that it would have had. */
static void expect_refused(const char *answer, unsigned status, const char *why)
{
    char want[128];
    snprintf(want, sizeof want, "{\"error\":\"%s\",\"id\":%llu}\n", why,
             (unsigned long long)exportws_last_id(u.w));
    expect_answer(answer, status, want);
}

#define POST(target, size, body) \
    ("POST /app/ws/export-task/" target " HTTP/1.1\r\nHost: h\r\nContent-Length: " size \
     "\r\n\r\n" body)

/* Of one that nobody can get, too; only where there is no message there is no id. */
static void every_refused_message_has_an_id(void **state)
{
    static char filler[69990], rest[300];
    const struct piece pieces[] = {{POST("there", "70000", ""), sizeof POST("there", "70000", "") - 1},
                                   {filler, sizeof filler}};
    (void)state;
    memset(filler, 'x', sizeof filler), memset(rest, 'x', sizeof rest - 1);
    uint64_t before = say("there", "held");
    while (exportws_send(u.w, "full", filler, 300, EXPORTWS_TEXT) == 0) {}
    while (exportws_send(u.w, "full", "x", 1, EXPORTWS_TEXT) == 0) {}
    expect_refused(ask(POST("none", "3", "one"), ""), 503, "nobody there, and no room to hold it");
    assert_true(exportws_last_id(u.w) > before);
    expect_refused(ask(POST("none", "3", "o"), "ne"), 503, "nobody there, and no room to hold it");
    script_attach(&peers[0], &u, EXPORTWS_PUSH, pieces, COUNT(pieces));
    play(&peers[0]);
    before = exportws_last_id(u.w);
    expect_refused(ask(POST("none", "300", "o"), rest), 503,
                   "no room for the message: come again");
    assert_int_equal(exportws_last_id(u.w), before + 1);
    expect_refused(ask(POST("none", "70001", ""), ""), 413,
                   "the message is longer than --max-push");
    expect_refused(ask(POST("none", "1", "\xff"), ""), 400, "the text is not UTF-8");
    expect_refused(ask("POST /app/ws/export-task/none HTTP/1.1\r\nHost: h\r\n\r\n", ""), 411,
                   "a message needs Content-Length, or chunked coding");
    expect_refused(ask("POST /online HTTP/1.1\r\nHost: h\r\n\r\n", ""), 405,
                   "only GET is known here");
    expect_refused(ask("POST /app/ws/export-task/none HTTP/1.1\r\nHost: h\r\n"
                       "Transfer-Encoding: gzip\r\n\r\n", ""), 501,
                   "this Transfer-Encoding is not known");
    assert_int_equal(exportws_last_id(u.w), before + 6);
    expect_answer(ask("GET /app/ws/export-task/none HTTP/1.1\r\nHost: h\r\n\r\n", ""), 404,
                  "{\"error\":\"nobody there, and nothing held\"}\n");
    assert_int_equal(exportws_last_id(u.w), before + 6);
    restart_with(4, 0);
    expect_refused(ask(POST("none", "3", "one"), ""), 404, "nobody there, and holding is off");
    expect_refused(ask(POST("none", "3", "o"), "ne"), 404, "nobody there, and holding is off");
}

static void every_answer_to_a_post_has_the_id(void **state)
{
    char want[64];
    (void)state;
    join(&peers[0], "abc", V1);
    for (int way = 0; way < 4; way++) {
        static const char *const heads[4] = {
            "POST /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none",
            "POST /app/ws/export-task/ HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none",
            "POST /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\no",
            ("POST /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\n"
             "Transfer-Encoding: chunked\r\n\r\n1\r\no\r\n2\r\nne\r\n0\r\n\r\n")};
        const char *answer = ask(heads[way], way == 2 ? "ne" : "");
        uint64_t id = exportws_last_id(u.w);
        snprintf(want, sizeof want, "{\"delivered\":1,\"id\":%llu}\n", (unsigned long long)id);
        expect_answer(answer, 200, want);
        play(&peers[0]);
        expect(&peers[0], id, "one");
    }
    const char *answer = ask(
        "POST /app/ws/export-task/none HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", "");
    snprintf(want, sizeof want, "{\"delivered\":0,\"held\":true,\"id\":%llu}\n",
             (unsigned long long)exportws_last_id(u.w));
    expect_answer(answer, 202, want);
}

/* One broadcast, to those with ids and those without, straight and by way of their queues. */
static void plain_sessions_and_others_get_one_broadcast(void **state)
{
    static const char *const fields[4] = {V1, "", V1, ""};
    (void)state;
    for (uint32_t i = 0; i < 4; i++) join(&peers[i], i < 2 ? "abc" : "abd", fields[i]);
    session_clog(1), session_clog(2);
    uint64_t id = say(NULL, "to all");
    for (uint32_t i = 0; i < 4; i++) {
        session_unclog(&peers[i]);
        if (i % 2 == 0) expect(&peers[i], id, "to all");
        else script_expect_text(&peers[i], "to all");
        expect_nothing(&peers[i]);
    }
    expect_books(0, 1);
}

static void plain_clients_see_nothing_of_all_this(void **state)
{
    (void)state;
    say("abc", "held");
    assert_int_equal(join(&peers[0], "abc?last=x", ""), 0); /* it is their own query */
    script_expect_text(&peers[0], "held");
    say("abc", "live"), say(NULL, "to all");
    play(&peers[0]);
    script_expect_text(&peers[0], "live");
    script_expect_text(&peers[0], "to all");
    join(&peers[1], "abc?last=0", ""); /* somebody got all that */
    expect_nothing(&peers[1]);
    join(&peers[2], "abc", V1); /* who does not say where it left off is no different */
    expect_nothing(&peers[2]);
    expect_books(0, 3);
}

/* The kernel takes any part of the frame first, then the rest. */
static void frames_with_ids_survive_every_split(void **state)
{
    static char text[140];
    (void)state;
    memset(text, 'x', sizeof text);
    join(&peers[0], "abc", V1);
    for (size_t n = 0; n < 130; n += n == 3 ? 105 : 1) {
        size_t size = (n + 17 < 126 ? 2U : 4U) + 17 + n;
        for (size_t part = 0; part <= size; part++) {
            int kind = part % 2 ? EXPORTWS_TEXT : EXPORTWS_BINARY;
            send_most = part;
            assert_int_equal(exportws_send(u.w, "abc", text, n, kind), 1);
            assert_int_equal(u.w->conns[0].queued, part < size);
            play(&peers[0]);
            expect_bytes(&peers[0], exportws_last_id(u.w), (unsigned)kind, text, n);
            expect_nothing(&peers[0]);
        }
    }
    expect_books(0, 4);
}

/* The 101 with its gap, cut anywhere, and what is replayed behind it. */
static void a_101_survives_every_split(void **state)
{
    (void)state;
    for (size_t part = 0; part < 180; part++) {
        uint64_t first = say("abc", "1"), second = say(NULL, "2");
        send_most = part;
        resume(&peers[0], "abc", 1);
        expect_gap(&peers[0]);
        expect(&peers[0], first, "1"), expect(&peers[0], second, "2");
        expect_nothing(&peers[0]);
        leave(&peers[0]);
        clock_advance(1000);
        unit_settle(&u);
        expect_books(0, 0);
    }
}

static exportws_id session_of(uint32_t slot)
{
    return conn_id(u.w, &u.w->conns[slot]);
}

static void replies_have_ids_but_are_no_history(void **state)
{
    (void)state;
    join(&peers[0], "abc", V1);
    uint64_t before = say("abc", "1");
    assert_int_equal(exportws_reply(u.w, session_of(0), "you", 3, EXPORTWS_BINARY), 1);
    uint64_t id = exportws_last_id(u.w);
    assert_true(id > before);
    session_clog(0);
    assert_int_equal(exportws_reply(u.w, session_of(0), "only", 4, EXPORTWS_TEXT), 1);
    uint64_t after = say("abc", "2");
    assert_true(after > id + 1);
    session_unclog(&peers[0]);
    expect(&peers[0], before, "1");
    expect_bytes(&peers[0], id, OP_BINARY, "you", 3);
    while (peers[0].got_size >= 2 && peers[0].got[0] == 0x89) script_take(&peers[0], 2);
    expect(&peers[0], after - 1, "only"), expect(&peers[0], after, "2");
    leave(&peers[0]);
    resume(&peers[0], "abc", id);
    expect(&peers[0], after, "2");
    expect_nothing(&peers[0]);
    assert_int_equal(exportws_reply(u.w, session_of(0), "x", 1, EXPORTWS_TEXT | EXPORTWS_END),
                     EXPORTWS_BAD);
}

/* ===== Replay ===== */

/* Own messages, those of others and those for all: from any of them on, each once, in order. */
static void resume_goes_on_behind_any_id(void **state)
{
    static const char *const to[12] = {"abc", NULL,  "abd", "abc", "abc", NULL,
                                       NULL,  "abd", "abc", NULL,  "abc", "abc"};
    uint64_t ids[12];
    char text[8];
    (void)state;
    restart_with(16, 1000);
    join(&peers[1], "abd", V1);
    join(&peers[2], "abc", "");
    for (int i = 0; i < 12; i++) {
        snprintf(text, sizeof text, "%d", i);
        if (i == 8) leave(&peers[2]); /* what comes now is held, what came is history */
        ids[i] = say(to[i], text);
    }
    for (int from = -1; from < 12; from++) {
        resume(&peers[0], "abc", from < 0 ? 0 : ids[from]);
        for (int i = from + 1; i < 12; i++) {
            snprintf(text, sizeof text, "%d", i);
            if (!to[i] || strcmp(to[i], "abc") == 0) expect(&peers[0], ids[i], text);
        }
        expect_nothing(&peers[0]);
        leave(&peers[0]);
        expect_books(from < 0 ? 0 : u.w->held, 12);
    }
}

/* The n-th message of a long replay: its text. */
static const char *long_text(int i)
{
    static char text[600];
    memset(text, 'a' + i % 26, sizeof text - 1);
    snprintf(text, sizeof text, "%d", i);
    text[strlen(text)] = ' ';
    return text;
}

enum { LONG = 100 };

/* A client of abc whose socket takes little: what it has missed waits. */
static void slow_resume(struct script *s, uint64_t last)
{
    char request[256];
    narrow = 1024;
    int n = snprintf(request, sizeof request,
                     "GET %sabc?last=%llu HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
                     "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n%s"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                     u.o.path, (unsigned long long)last, V1);
    script_attach(s, &u, EXPORTWS_CLIENTS, NULL, 0);
    for (uint32_t i = 0; i < u.w->pushers_at; i++)
        if (u.w->conns[i].state == CONN_HEAD)
            setsockopt(u.w->conns[i].fd, SOL_SOCKET, SO_SNDBUF, &narrow, sizeof narrow);
    assert_int_equal(send(s->fd, request, (size_t)n, MSG_NOSIGNAL), n);
    unit_settle(&u);
}

/* Much history; then a client whose socket takes little of it. Returns the first id. */
static uint64_t long_replay(uint64_t ids[LONG])
{
    restart_with(LONG, 1000);
    join(&peers[3], "abc", "");
    for (int i = 0; i < LONG; i++) {
        ids[i] = say(i % 7 ? "abc" : NULL, long_text(i));
        play(&peers[3]);
    }
    leave(&peers[3]);
    slow_resume(&peers[0], ids[0]);
    assert_true(u.w->conns[0].queued > LONG / 2); /* more than the queue, and than the socket */
    return ids[0];
}

/* Behind the 101 of a long replay. */
static void long_read(void)
{
    play(&peers[0]);
    peers[0].got[peers[0].got_size] = '\0';
    char *end = strstr((char *)peers[0].got, "\r\n\r\n");
    assert_non_null(end);
    script_take(&peers[0], (size_t)(end + 4 - (char *)peers[0].got));
}

static void replay_may_be_larger_than_queue_and_socket(void **state)
{
    uint64_t ids[LONG];
    (void)state;
    long_replay(ids);
    expect_books(0, LONG);
    long_read();
    for (int i = 1; i < LONG; i++) expect(&peers[0], ids[i], long_text(i));
    expect_nothing(&peers[0]);
    expect_books(0, LONG);
}

/* What is pushed while it lasts comes behind it, once. */
static void pushes_during_a_replay_follow_it(void **state)
{
    uint64_t ids[LONG], live[4];
    static const struct piece ping[] = {PIECE("\x89\x81\x00\x00\x00\x00p")};
    (void)state;
    long_replay(ids);
    live[0] = say("abc", "live 0"), live[1] = say(NULL, "live 1");
    say("abd", "not mine");
    peers[0].pieces = ping, peers[0].count = 1;
    script_send(&peers[0]);
    unit_settle(&u);
    live[2] = say(NULL, "live 2");
    long_read();
    live[3] = say("abc", "live 3");
    play(&peers[0]);
    for (int i = 1; i < LONG; i++) expect(&peers[0], ids[i], long_text(i));
    expect(&peers[0], live[0], "live 0"), expect(&peers[0], live[1], "live 1");
    script_expect(&peers[0], OP_PONG, "p", 1);
    expect(&peers[0], live[2], "live 2"), expect(&peers[0], live[3], "live 3");
    expect_nothing(&peers[0]);
}

/* Of what is live it is owed no more than anybody. */
static void live_messages_during_a_replay_fill_the_queue(void **state)
{
    uint64_t ids[LONG];
    (void)state;
    long_replay(ids);
    for (size_t i = 0; i < u.o.queue; i++) say("abc", "live");
    assert_int_equal(exportws_sessions(u.w), 1);
    assert_int_equal(exportws_reply(u.w, session_of(0), "x", 1, EXPORTWS_TEXT), EXPORTWS_FULL);
    say("abc", "one more"); /* nobody is there any more: it is held */
    assert_int_equal(exportws_sessions(u.w), 0);
    assert_int_equal(u.w->m->closed[EXPORTWS_BY_SLOW], 1);
}

static void replay_that_moves_is_not_slow(void **state)
{
    uint64_t ids[LONG];
    int turns = 0;
    (void)state;
    u.o.write_timeout_ms = 500, u.o.hold_ms = 60000;
    long_replay(ids);
    for (; u.w->conns[0].queued > 0; turns++) {
        clock_advance(499);
        unit_settle(&u);
        assert_int_equal(exportws_sessions(u.w), 1);
        script_read(&peers[0]);
        unit_settle(&u);
    }
    assert_true(turns > 4);
    long_read();
    for (int i = 1; i < LONG; i++) expect(&peers[0], ids[i], long_text(i));
    expect_nothing(&peers[0]);
}

static void replay_that_stands_is_slow(void **state)
{
    uint64_t ids[LONG];
    (void)state;
    u.o.write_timeout_ms = 500;
    long_replay(ids);
    clock_advance(500);
    unit_settle(&u);
    assert_int_equal(exportws_sessions(u.w), 0);
    assert_int_equal(u.w->m->closed[EXPORTWS_BY_SLOW], 1);
    script_close(&peers[0]);
    unit_settle(&u);
    resume(&peers[1], "abc", ids[LONG - 2]); /* nothing is lost by that */
    expect(&peers[1], ids[LONG - 1], long_text(LONG - 1));
    expect_nothing(&peers[1]);
}

/* Of messages that nobody has got as many are held as there is room for, up to `most`: returns how
 * many. */
static uint32_t hold(const char *token, size_t size, uint32_t most)
{
    static const char text[600] = {'x'};
    uint32_t n = 0;
    while (n < most && exportws_send(u.w, token, text, size, EXPORTWS_BINARY) == 0) n++;
    return n;
}

/* How many of a long replay have come, behind the 101. */
static int long_came(struct script *s, const uint64_t ids[LONG], int from)
{
    int i = from;
    while (s->got_size > 0 && (s->got[0] & 15) == OP_TEXT)
        expect(s, ids[i], long_text(i)), i++;
    return i - from;
}

/* What nobody has got comes before what somebody is reading: the reader is closed, and loses nothing
 * that is not gone for all. */
static void replay_gives_way_to_what_nobody_has_got(void **state)
{
    uint64_t ids[LONG];
    (void)state;
    long_replay(ids);
    const uint32_t all = u.w->block_count - u.w->reserve;
    uint32_t held = hold("new", 1, UINT32_MAX);
    assert_true(all - held < 8); /* all but the frame that it is in */
    expect_books(held, u.w->history);
    assert_int_equal(exportws_sessions(u.w), 0);
    assert_int_equal(u.w->m->closed[EXPORTWS_BY_SLOW], 1);
    long_read();
    int came = long_came(&peers[0], ids, 1);
    assert_in_range(came, 1, LONG / 2);
    script_expect(&peers[0], OP_CLOSE, LITERAL("\x03\xf5too slow: history gave way"));
    expect_nothing(&peers[0]);
    leave(&peers[0]);
    exportws_kick(u.w, "new");
    narrow = 0;
    resume(&peers[0], "abc", ids[came]);
    expect_gap(&peers[0]);
    expect_nothing(&peers[0]);
}

/* Nothing is won by closing who gets what is held. */
static void replay_of_what_nobody_has_got_is_left_alone(void **state)
{
    (void)state;
    u.o.hold_ms = 60000;
    restart();
    uint32_t held = hold("abc", 600, UINT32_MAX);
    slow_resume(&peers[0], 0);
    assert_true(u.w->conns[0].replay > held / 2);
    hold("new", 1, UINT32_MAX);
    assert_int_equal(hold("new", 1, 1), 0);
    assert_int_equal(exportws_sessions(u.w), 1);
    expect_books(u.w->held, u.w->history);
}

/* The farthest back first, and no more than have to. */
static void replays_give_way_one_by_one(void **state)
{
    uint64_t ids[LONG];
    (void)state;
    long_replay(ids);
    slow_resume(&peers[1], ids[LONG / 2]);
    slow_resume(&peers[2], ids[LONG / 4]);
    for (uint32_t left = 2; left > 0; left--) {
        while (exportws_sessions(u.w) > (int)left) assert_int_equal(hold("new", 1, 1), 1);
        assert_int_equal(u.w->conns[0].state, CONN_CLOSING);
        assert_int_equal(u.w->conns[1].state, CONN_OPEN);
        assert_int_equal(u.w->conns[2].state, left == 2 ? CONN_OPEN : CONN_CLOSING);
        expect_books(u.w->held, u.w->history);
    }
    assert_int_equal(u.w->replays, 1);
    unit_settle(&u);
    play(&peers[1]);
    peers[1].got[peers[1].got_size] = '\0';
    script_take(&peers[1], (size_t)(strstr((char *)peers[1].got, "\r\n\r\n") + 4 -
                                    (char *)peers[1].got));
    assert_int_equal(long_came(&peers[1], ids, LONG / 2 + 1), LONG / 2 - 1);
    expect_nothing(&peers[1]);
}

/* One that is a little behind is not closed for one that is far behind: by messages to it, and to
 * all, which the far one may be gone for before its turn. */
static void replay_gives_way_to_live_messages(void **state)
{
    static char text[300];
    uint64_t ids[LONG];
    (void)state;
    memset(text, 'x', sizeof text - 1);
    for (int all = 0; all < 2; all++) {
        u.o.queue = 1000;
        for (size_t i = 0; i < COUNT(peers); i++) script_close(&peers[i]);
        long_replay(ids);
        join(&peers[1], "abd", ""), join(&peers[2], "abe", "");
        session_clog(1);
        while (exportws_sessions(u.w) == 3) say(all ? NULL : "abd", text);
        assert_int_equal(u.w->conns[0].state, CONN_CLOSING);
        assert_int_equal(u.w->m->closed[EXPORTWS_BY_SLOW], 1);
        expect_books(0, u.w->history);
        restart();
    }
}

/* The token's own message does not: then it is its reader who is too slow. */
static void replay_does_not_give_way_to_its_own_token(void **state)
{
    static char text[300];
    uint64_t ids[LONG];
    (void)state;
    memset(text, 'x', sizeof text - 1);
    u.o.queue = 1000;
    long_replay(ids);
    while (exportws_sessions(u.w) == 1) say("abc", text);
    long_read();
    long_came(&peers[0], ids, 1);
    script_expect(&peers[0], OP_CLOSE, LITERAL("\x03\xf5too slow: buffer full"));
}

/* One that has ended is still owed what came before its end. */
static void replay_of_a_session_that_has_ended_is_left_alone(void **state)
{
    uint64_t ids[LONG];
    (void)state;
    long_replay(ids);
    assert_int_equal(exportws_close(u.w, session_of(0), 4000, "enough"), 0);
    const uint32_t all = u.w->block_count - u.w->reserve;
    assert_in_range(hold("new", 1, UINT32_MAX), 1, all - LONG / 2);
    expect_books(u.w->held, u.w->history);
    long_read();
    for (int i = 1; i < LONG; i++) expect(&peers[0], ids[i], long_text(i));
    script_expect(&peers[0], OP_CLOSE, LITERAL("\x0f\xa0" "enough"));
    assert_int_equal(u.w->m->closed[EXPORTWS_BY_SLOW], 0);
}

/* When what somebody reads would not be enough, nobody is closed for it. */
static void replay_does_not_give_way_in_vain(void **state)
{
    static char text[65536];
    uint64_t ids[LONG];
    (void)state;
    memset(text, 'x', sizeof text);
    long_replay(ids);
    script_close(&peers[0]);
    slow_resume(&peers[1], ids[LONG / 2]);
    while (history_evict(u.w)) {}
    hold("full", 1, u.w->blocks_free - u.w->reserve);
    assert_false(history_suffices(u.w, blocks_of(u.w, 3, sizeof text)));
    assert_int_equal(exportws_send(u.w, "new", text, sizeof text, EXPORTWS_TEXT), EXPORTWS_FULL);
    assert_int_equal(exportws_sessions(u.w), 1);
    expect_books(u.w->held, u.w->history);
}

/* All who are at the same message go for it, also in the midst of its frame, and no other. */
static void replays_at_one_place_give_way_together(void **state)
{
    uint64_t ids[LONG];
    (void)state;
    long_replay(ids);
    slow_resume(&peers[1], ids[0]), slow_resume(&peers[2], ids[0]);
    slow_resume(&peers[3], ids[LONG / 2]);
    const struct conn *c = u.w->conns;
    script_read(&peers[0]);
    send_most = 5;
    exportws_step(u.w, 0);
    assert_int_equal(c[0].sent, 5);
    assert_true(c[0].own == c[1].own && c[0].own == c[2].own);
    while (exportws_sessions(u.w) == 4) assert_int_equal(hold("new", 1, 1), 1);
    assert_int_equal(exportws_sessions(u.w), 1);
    assert_int_equal(c[3].state, CONN_OPEN);
    assert_int_equal(u.w->m->closed[EXPORTWS_BY_SLOW], 3);
    expect_books(u.w->held, u.w->history);
}

/* Where the oldest of history are those of somebody who is live, and slow, it is not looked at
 * without end. */
static void history_that_live_sessions_wait_for_does_not_give_way(void **state)
{
    uint64_t ids[LONG];
    (void)state;
    u.o.queue = 1000;
    restart();
    join(&peers[1], "abd", "");
    session_clog(0);
    for (unsigned i = 0; i < REPLAY_TRIES; i++) say(NULL, "to all");
    for (int i = 0; i < LONG; i++) ids[i] = 0;
    join(&peers[3], "abc", "");
    for (int i = 0; i < LONG; i++) ids[i] = say("abc", long_text(i)), play(&peers[3]);
    leave(&peers[3]);
    slow_resume(&peers[0], ids[0]);
    while (hold("new", 1, 1) == 1) {}
    assert_int_equal(exportws_sessions(u.w), 2);
}

/* A body that comes in pieces has the reserve; when another has it, it is refused, and nobody goes. */
static void replay_does_not_give_way_to_a_body_in_pieces(void **state)
{
    static char filler[69990], rest[4000];
    const struct piece pieces[] = {{POST("there", "70000", ""), sizeof POST("there", "70000", "") - 1},
                                   {filler, sizeof filler}};
    uint64_t ids[LONG];
    (void)state;
    memset(filler, 'x', sizeof filler), memset(rest, 'x', sizeof rest - 1);
    for (uint32_t spare = 0; spare < 2; spare++) {
        for (size_t i = 0; i < COUNT(peers); i++) script_close(&peers[i]);
        long_replay(ids);
        join(&peers[1], "abd", "");
        while (history_evict(u.w)) {} /* what nobody is reading gives way first */
        hold("full", 1, u.w->blocks_free - u.w->reserve - spare);
        script_attach(&peers[2], &u, EXPORTWS_PUSH, pieces, COUNT(pieces));
        play(&peers[2]);
        assert_int_equal(u.w->blocks_free, spare);
        assert_memory_equal(ask(POST("abd", "4000", "o"), rest), "HTTP/1.1 503 ", 13);
        assert_int_equal(exportws_sessions(u.w), 2);
        restart();
    }
}

/* Room that its 101 needs is not taken from what it is about to get. */
static void missed_messages_are_safe_before_the_101_is_sent(void **state)
{
    uint32_t held = 0;
    (void)state;
    u.o.buffer_bytes = 4096;
    restart();
    join(&peers[1], "abc", "");
    uint64_t id = say("abc", "history");
    leave(&peers[1]);
    while (exportws_send(u.w, "else", "x", 1, EXPORTWS_TEXT) == 0) held++;
    assert_int_equal(u.w->history, 0); /* it gave way */
    exportws_kick(u.w, "else");
    join(&peers[1], "abc", "");
    id = say("abc", "history");
    leave(&peers[1]);
    while (--held > 0) assert_int_equal(exportws_send(u.w, "else", "x", 1, EXPORTWS_TEXT), 0);
    expect_books(u.w->held, 1);
    send_most = 10; /* of the 101: the rest of it finds no room */
    client_asks(&peers[0], "abc?last=1", V1);
    assert_int_equal(peers[0].got_size, 10);
    assert_true(peers[0].ended);
    expect_books(u.w->held, 1);
    resume(&peers[1], "abc", id - 1);
    expect(&peers[1], id, "history");
    expect_nothing(&peers[1]);
}

static void last_must_be_an_id(void **state)
{
    static const struct {
        const char *query;
        int status;
    } rows[] = {
        {"last=", 400},          {"last", 400},
        {"last=abc", 400},       {"last=-1", 400},
        {"last=+1", 400},        {"last=1x", 400},
        {"last=%31", 400},       {"last=1.0", 400},
        {"a=b&last=x", 400},     {"last=x&last=1", 400},
        {"last=&a=b", 400},      {"last=0", 101},
        {"last=1", 101},         {"a=b&last=2&c", 101},
        {"last=1&last=x", 101},  {"&&last=18446744073709551615", 101},
        {"xlast=x", 101},        {"last2=x", 101},
        {"las", 101},            {"last=00000000000000000000000001", 101},
        {"LAST=x", 101},         {"last=99999999999999999999999999", 101},
        {"a=last", 101},         {"", 101},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        char target[128];
        snprintf(target, sizeof target, "abc?%s", rows[i].query);
        client_asks(&peers[0], target, V1);
        if (strtol((char *)peers[0].got + 9, NULL, 10) != rows[i].status)
            fail_msg("%s: %s", rows[i].query, (char *)peers[0].got);
        if (rows[i].status == 400)
            assert_non_null(strstr((char *)peers[0].got, "last must be a message's id\n"));
        leave(&peers[0]);
    }
}

/* ===== Gaps ===== */

/* A session of the token was there and has left; returns the ids of what it got. */
static void history_make(const char *token, int n, uint64_t *ids)
{
    static const char *const texts[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
    join(&peers[3], token, "");
    for (int i = 0; i < n; i++) ids[i] = say(token, texts[i]);
    play(&peers[3]);
    leave(&peers[3]);
}

/* From `last` on: a gap or none, then the messages i to n - 1 of those. */
static void expect_resume(const char *token, uint64_t last, int gap, const uint64_t *ids, int i,
                          int n)
{
    char text[12];
    resume(&peers[0], token, last);
    if (gap) expect_gap(&peers[0]);
    for (; i < n; i++) {
        snprintf(text, sizeof text, "%d", i);
        expect(&peers[0], ids[i], text);
    }
    expect_nothing(&peers[0]);
    leave(&peers[0]);
}

static void no_gap_when_nothing_was_thrown_away(void **state)
{
    uint64_t ids[3] = {0};
    (void)state;
    expect_resume("abc", 0, 0, ids, 0, 0); /* nothing was ever said */
    history_make("abc", 3, ids);
    expect_resume("abc", 0, 0, ids, 0, 3);
    expect_resume("abc", ids[0], 0, ids, 1, 3);
    expect_resume("abc", ids[2], 0, ids, 3, 3);
    expect_resume("new", ids[1], 0, ids, 0, 0);
}

static void gap_when_the_id_was_never_given(void **state)
{
    uint64_t ids[3] = {0};
    (void)state;
    expect_resume("abc", exportws_last_id(u.w) + 1, 1, ids, 0, 0);
    history_make("abc", 3, ids);
    expect_resume("abc", ids[2] + 1, 1, ids, 0, 3);
    expect_resume("abc", UINT64_MAX, 1, ids, 0, 3);
}

static void gap_when_the_server_is_a_new_one(void **state)
{
    uint64_t ids[3], more[3];
    (void)state;
    history_make("abc", 3, ids);
    restart();
    expect_resume("abc", ids[2], 1, ids, 0, 0);
    history_make("abc", 3, more);
    expect_resume("abc", ids[2], 1, more, 0, 3);
    expect_resume("abc", 1, 1, more, 0, 3);
    expect_resume("abc", 0, 0, more, 0, 3);
}

static void gap_when_it_expired(void **state)
{
    uint64_t ids[3];
    (void)state;
    history_make("abc", 2, ids);
    clock_advance(500);
    join(&peers[3], "abc", "");
    ids[2] = say("abc", "2");
    leave(&peers[3]);
    clock_advance(499);
    unit_settle(&u);
    expect_resume("abc", ids[0] - 1, 0, ids, 0, 3);
    clock_advance(1);
    unit_settle(&u);
    expect_resume("abc", ids[0], 1, ids, 2, 3);
    expect_resume("abc", ids[1], 0, ids, 2, 3);
    expect_resume("abc", 0, 1, ids, 2, 3);
    assert_int_equal(u.w->m->expired, 0); /* somebody got them */
}

static void gap_when_what_was_held_expired(void **state)
{
    uint64_t ids[2];
    (void)state;
    ids[0] = say("abc", "0");
    clock_advance(1000);
    unit_settle(&u);
    ids[1] = say("abc", "1");
    assert_int_equal(u.w->m->expired, 1);
    expect_resume("abc", ids[0] - 1, 1, ids, 1, 2);
    expect_resume("abc", ids[0], 0, ids, 1, 2);
}

static void gap_past_the_newest_of_history(void **state)
{
    uint64_t ids[9];
    (void)state;
    history_make("abc", 4, ids);
    expect_resume("abc", 0, 0, ids, 0, 4);
    history_make("abd", 4, ids + 4); /* each token has its own */
    expect_resume("abc", 0, 0, ids, 0, 4);
    history_make("abc", 6, ids);
    expect_resume("abc", ids[0], 1, ids, 2, 6);
    expect_resume("abc", ids[1], 0, ids, 2, 6);
    expect_books(0, 8);
}

static void gap_past_the_newest_broadcasts(void **state)
{
    uint64_t ids[6];
    char text[8];
    (void)state;
    for (int i = 0; i < 6; i++) {
        snprintf(text, sizeof text, "%d", i);
        ids[i] = say(NULL, text); /* kept though nobody is there */
    }
    expect_resume("abc", ids[0], 1, ids, 2, 6);
    expect_resume("abd", ids[1], 0, ids, 2, 6);
    expect_books(0, 4);
}

static void gap_when_new_messages_needed_the_room(void **state)
{
    static char large[20000];
    uint64_t ids[3], more;
    (void)state;
    memset(large, 'x', sizeof large);
    history_make("abc", 3, ids);
    for (int i = 0; i < 4; i++) /* not enough to need more than there is */
        assert_int_equal(exportws_send(u.w, "abd", large, sizeof large, EXPORTWS_TEXT), 0);
    expect_resume("abc", ids[0], 0, ids, 1, 3);
    while (exportws_send(u.w, "abd", large, 100, EXPORTWS_TEXT) == 0 && u.w->history == 3) {}
    assert_int_equal(u.w->history, 2); /* the oldest of all went, and no more than needed */
    expect_resume("abc", ids[0] - 1, 1, ids, 1, 3);
    expect_resume("abc", ids[0], 0, ids, 1, 3);
    while ((more = u.w->history, exportws_send(u.w, "abd", large, 100, EXPORTWS_TEXT)) == 0)
        assert_true(u.w->history + 1 >= more);
    expect_books(u.w->held, 0);
    expect_resume("abc", ids[1], 1, ids, 3, 3);
    expect_resume("abc", ids[2], 0, ids, 3, 3);
}

static void gap_when_it_was_deleted(void **state)
{
    uint64_t ids[3];
    (void)state;
    history_make("abc", 2, ids);
    ids[2] = say("abc", "held");
    uint64_t all = say(NULL, "to all");
    expect_answer(ask("DELETE /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\n\r\n", ""), 200,
                  "{\"closed\":0}\n");
    expect_books(0, 1);
    resume(&peers[0], "abc", ids[1]);
    expect_gap(&peers[0]);
    expect(&peers[0], all, "to all"); /* is not the token's */
    expect_nothing(&peers[0]);
    leave(&peers[0]);
    resume(&peers[0], "abc", ids[2]);
    expect(&peers[0], all, "to all");
    expect_nothing(&peers[0]);
}

/* Who waits for it gets it yet, and nobody else does: it is deleted for who comes, as was its end. */
static void deleted_is_only_for_who_waits_already(void **state)
{
    uint64_t ids[2];
    (void)state;
    join(&peers[0], "abc", V1);
    session_clog(0);
    ids[0] = say("abc", "queued");
    assert_int_equal(exportws_send(u.w, "abc", "the end", 7, EXPORTWS_TEXT | EXPORTWS_END), 1);
    ids[1] = exportws_last_id(u.w);
    assert_int_equal(exportws_kick(u.w, "abc"), EXPORTWS_ABSENT);
    resume(&peers[1], "abc", 0);
    expect_gap(&peers[1]);
    expect_nothing(&peers[1]);
    join(&peers[2], "abc", V1);
    uint64_t live = say("abc", "live");
    for (int i = 1; i < 3; i++) {
        play(&peers[i]);
        expect(&peers[i], live, "live");
        expect_nothing(&peers[i]);
        leave(&peers[i]);
    }
    resume(&peers[1], "abc", ids[1]);
    expect(&peers[1], live, "live");
    session_unclog(&peers[0]);
    expect(&peers[0], ids[0], "queued"), expect(&peers[0], ids[1], "the end");
    script_expect_close(&peers[0], 1000, "ended");
    leave(&peers[0]);
    expect_books(0, 1);
}

/* Nobody is there and nothing held: 404, and its history is gone as well. */
static void delete_drops_history_that_is_all_there_is(void **state)
{
    uint64_t ids[2];
    (void)state;
    history_make("abc", 2, ids);
    expect_answer(ask("DELETE /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\n\r\n", ""), 404,
                  "{\"error\":\"nobody there, and nothing held\"}\n");
    expect_books(0, 0);
    expect_resume("abc", ids[0], 1, ids, 2, 2);
    assert_int_equal(exportws_kick(u.w, "abc"), EXPORTWS_ABSENT); /* it is remembered, no more */
    history_make("abc", 2, ids);
    assert_int_equal(exportws_kick(u.w, "abc"), EXPORTWS_ABSENT);
    expect_books(0, 0);
}

static void gap_without_history(void **state)
{
    static const struct {
        size_t history;
        unsigned hold_ms;
    } rows[] = {{0, 1000}, {0, 0}, {4, 0}};
    uint64_t ids[2], all;
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        restart_with(rows[i].history, rows[i].hold_ms);
        history_make("abc", 2, ids);
        expect_books(0, 0);
        expect_resume("abc", ids[0] - 1, 1, ids, 2, 2);
        expect_resume("abc", ids[0], 1, ids, 2, 2);
        expect_resume("abc", ids[1], 0, ids, 2, 2);
        expect_resume("abd", ids[0], 0, ids, 2, 2);
        all = say(NULL, "to all");
        expect_resume("abd", ids[1], 1, ids, 2, 2);
        expect_resume("abc", all, 0, ids, 2, 2);
    }
}

/* What others lose is nobody's gap, in the same bucket neither. */
static void no_gap_for_what_others_lost(void **state)
{
    uint64_t ids[2], others[9];
    (void)state;
    u.w->bucket_mask = 0;
    history_make("abc", 2, ids);
    history_make("abd", 9, others);
    history_make("abe", 9, others);
    exportws_kick(u.w, "abe");
    assert_int_equal(exportws_send(u.w, "abf", "x", 1, EXPORTWS_TEXT), 0);
    assert_int_equal(exportws_kick(u.w, "abf"), 0);
    expect_resume("abc", ids[0], 0, ids, 1, 2);
    expect_resume("abc", 0, 0, ids, 0, 2);
    expect_resume("abg", ids[0], 0, ids, 0, 0);
    u.w->bucket_mask = power_of_two(u.w->token_count / 2) - 1;
}

/* A token of which neither a session nor a message is left. Returns the id of what it lost. */
static uint64_t token_lose(unsigned number)
{
    char name[16];
    snprintf(name, sizeof name, "t%u", number);
    uint64_t id = say(name, "x");
    assert_int_equal(exportws_kick(u.w, name), 0);
    return id;
}

static void loss_is_remembered_when_nothing_is_left_of_a_token(void **state)
{
    static uint64_t ids[1000];
    const uint32_t records = u.w->token_count;
    char name[16];
    (void)state;
    for (uint32_t i = 0; i < records; i++) ids[i] = token_lose(i);
    for (uint32_t i = 0; i < records; i += 7) {
        snprintf(name, sizeof name, "t%u", i);
        expect_resume(name, ids[i] - 1, 1, ids, 0, 0);
        expect_resume(name, ids[i], 0, ids, 0, 0);
    }
    expect_books(0, 0);
}

/* When there are more tokens than records, the oldest loss may have been anybody's that there is no
 * record of; who has a record is not touched by that. */
static void records_that_tell_least_are_used_again_first(void **state)
{
    static uint64_t ids[1000];
    const uint32_t records = u.w->token_count;
    (void)state;
    for (uint32_t i = 0; i < records; i++) ids[i] = token_lose(i);
    const uint64_t before = ids[0] - 1;
    assert_int_equal(u.w->forgotten, u.w->first_id - 1);
    expect_resume("new", before, 1, ids, 0, 0); /* took the record of t0 */
    assert_int_equal(u.w->forgotten, ids[0]);
    expect_resume("new", ids[0], 0, ids, 0, 0);
    expect_resume("newer", ids[0], 0, ids, 0, 0); /* took that of `new`, which had lost nothing */
    assert_int_equal(u.w->forgotten, ids[0]);
    expect_resume("t1", ids[1] - 1, 1, ids, 0, 0);
    expect_resume("t1", ids[1], 0, ids, 0, 0);
    join(&peers[1], "idle", V1); /* its record lives as long as it does */
    assert_int_equal(u.w->forgotten, ids[0]);
    for (uint32_t i = 0; i < 5; i++) token_lose(records + i);
    assert_true(u.w->forgotten >= ids[5]);
    expect_resume("idle", ids[0], 0, ids, 0, 0);
    leave(&peers[1]);
    expect_resume("idle", ids[0], 0, ids, 0, 0); /* and a while longer */
    expect_books(0, 0);
}

/* ===== What is kept, and for how long ===== */

/* It takes a part of a message, and dies; the next one gets the message whole. */
static void held_messages_survive_who_dies_in_their_midst(void **state)
{
    static const char *const fields[2] = {"", V1};
    (void)state;
    for (int v1 = 0; v1 < 2; v1++) {
        const size_t size = v1 ? 2 + 17 + 4 : 2 + 4;
        for (size_t part = 0; part <= size; part++) {
            uint64_t id = say("abc", "37 %");
            char request[512];
            int n = snprintf(request, sizeof request,
                             "GET %sabc HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
                             "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n%s"
                             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                             u.o.path, fields[v1]);
            struct piece piece = {request, (size_t)n};
            script_attach(&peers[0], &u, EXPORTWS_CLIENTS, &piece, 1);
            script_send(&peers[0]);
            send_after = 1, send_most = part; /* the 101 is whole */
            exportws_step(u.w, 0);
            expect_books(0, part == size);
            leave(&peers[0]);
            expect_books(part < size, part == size);
            join(&peers[1], "abc", fields[v1]);
            if (part < size && v1) expect(&peers[1], id, "37 %");
            if (part < size && !v1) script_expect_text(&peers[1], "37 %");
            expect_nothing(&peers[1]);
            expect_books(0, 1);
            leave(&peers[1]);
            exportws_kick(u.w, "abc");
        }
    }
}

/* Its socket fails right behind the 101, or with it. */
static void held_messages_survive_a_socket_that_fails(void **state)
{
    (void)state;
    uint64_t id = say("abc", "37 %");
    send_error = ECONNRESET;
    for (unsigned after = 0; after < 2; after++) {
        send_after = after, send_most = 0;
        client_asks(&peers[0], "abc", V1);
        assert_int_equal(peers[0].got_size > 0, after);
        assert_true(peers[0].ended);
        assert_int_equal(u.w->m->closed[EXPORTWS_BY_ERROR], after + 1);
        expect_books(1, 0);
        script_close(&peers[0]);
    }
    join(&peers[1], "abc", V1);
    expect(&peers[1], id, "37 %");
}

/* The kernel took all of it, the client nothing: with ids it says so. */
static void unread_messages_come_again_to_who_asks(void **state)
{
    (void)state;
    join(&peers[0], "abc", V1);
    uint64_t first = say("abc", "read");
    play(&peers[0]);
    expect(&peers[0], first, "read");
    uint64_t second = say("abc", "unread"), third = say(NULL, "unread, too");
    leave(&peers[0]);
    join(&peers[1], "abc", V1);
    expect_nothing(&peers[1]);
    leave(&peers[1]);
    for (int again = 0; again < 3; again++) { /* as often as it dies */
        resume(&peers[0], "abc", first);
        expect(&peers[0], second, "unread"), expect(&peers[0], third, "unread, too");
        expect_nothing(&peers[0]);
        leave(&peers[0]);
    }
}

static void history_lasts_from_when_it_was_got(void **state)
{
    (void)state;
    uint64_t id = say("abc", "x");
    clock_advance(900);
    unit_settle(&u);
    join(&peers[0], "abc", V1);
    expect(&peers[0], id, "x");
    clock_advance(999);
    unit_settle(&u);
    expect_books(0, 1);
    clock_advance(1);
    unit_settle(&u);
    expect_books(0, 0);
}

/* It outlives its time while somebody waits for it; then it is history for as long again. */
static void message_got_late_becomes_history(void **state)
{
    (void)state;
    join(&peers[0], "abc", V1);
    session_clog(0);
    uint64_t id = say("abc", "late");
    clock_advance(5000);
    unit_settle(&u);
    expect_books(0, 0);
    session_unclog(&peers[0]);
    expect(&peers[0], id, "late");
    expect_books(0, 1);
    session_clog(0);
    leave(&peers[0]);
    resume(&peers[1], "abc", id - 1);
    expect(&peers[1], id, "late");
    clock_advance(1000);
    unit_settle(&u);
    expect_books(0, 0);
    assert_int_equal(u.w->m->expired, 0);
}

/* Its time ends while a newcomer is still reading it: it gets it whole, and then it is gone. */
static void history_that_is_being_read_outlives_its_time(void **state)
{
    uint64_t ids[LONG];
    (void)state;
    long_replay(ids);
    clock_advance(1000);
    unit_settle(&u);
    expect_books(0, 0);
    long_read();
    for (int i = 1; i < LONG; i++) expect(&peers[0], ids[i], long_text(i));
    expect_nothing(&peers[0]);
    assert_int_equal(u.w->blocks_free, u.w->block_count);
}

/* What one that is leaving still waits for takes no place of the newest. */
static void newest_history_is_kept_though_an_older_is_waited_for(void **state)
{
    uint64_t ids[4];
    (void)state;
    restart_with(2, 1000);
    join(&peers[1], "abc", V1), join(&peers[2], "abc", V1);
    session_clog(0);
    ids[0] = say("abc", "0");
    assert_int_equal(exportws_close(u.w, session_of(0), 1000, NULL), 0);
    ids[1] = say("abc", "1"), ids[2] = say("abc", "2");
    expect_books(0, 3);
    leave(&peers[2]);
    expect_resume("abc", ids[0], 0, ids, 1, 3);
    session_unclog(&peers[1]);
    expect(&peers[1], ids[0], "0");
    script_expect_close(&peers[1], 1000, "");
    expect_books(0, 2);
    expect_resume("abc", ids[0], 0, ids, 1, 3);
    expect_resume("abc", ids[0] - 1, 1, ids, 1, 3);
}

static uint64_t metric(const char *name)
{
    const char *answer = ask("GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n", ""), *at;
    char line[80];
    snprintf(line, sizeof line, "\nexportws_%s ", name);
    at = strstr(answer, line);
    assert_non_null(at);
    return strtoull(at + strlen(line), NULL, 10);
}

/* History gives way, what nobody has got does not: the pusher is told. */
static void what_nobody_got_is_never_evicted(void **state)
{
    static const char post[] =
        "POST /app/ws/export-task/abd HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx";
    uint64_t ids[4], first = 0;
    uint32_t held = 0;
    (void)state;
    history_make("abc", 4, ids);
    say(NULL, "all");
    assert_int_equal(metric("history_messages"), 5);
    for (int result = 0; result == 0; held += result == 0) {
        result = exportws_send(u.w, "abd", "x", 1, EXPORTWS_TEXT);
        if (held == 0) first = exportws_last_id(u.w);
        if (result < 0) assert_int_equal(result, EXPORTWS_FULL);
    }
    expect_books(held, 0);
    assert_int_equal(metric("refused_total{status=\"503\"}"), 0);
    expect_refused(ask(post, ""), 503, "nobody there, and no room to hold it");
    assert_int_equal(metric("refused_total{status=\"503\"}"), 1);
    assert_int_equal(metric("held_messages"), held);
    assert_int_equal(metric("messages_held_total"), held);
    assert_int_equal(metric("history_messages"), 0);
    assert_int_equal(metric("messages_expired_total"), 0);
    join(&peers[0], "abc", V1); /* one that is there is served, but nothing is kept of that */
    uint64_t id = say("abc", "live");
    play(&peers[0]);
    expect(&peers[0], id, "live");
    expect_books(held, 0);
    resume(&peers[1], "abd", first - 2);
    expect_gap(&peers[1]); /* the broadcast */
    for (uint32_t i = 0; i < held; i++) {
        play(&peers[1]);
        expect(&peers[1], first + i, "x");
    }
    expect_nothing(&peers[1]);
    clock_advance(1000);
    unit_settle(&u);
    assert_int_equal(u.w->blocks_free, u.w->block_count);
}

/* Whatever is kept, of one token, of another, for all: the oldest goes first. */
static void history_gives_way_oldest_first(void **state)
{
    static char filler[800];
    uint64_t ids[6];
    (void)state;
    u.o.buffer_bytes = 8192;
    restart();
    memset(filler, 'x', sizeof filler);
    join(&peers[0], "abc", ""), join(&peers[1], "abd", "");
    ids[0] = say("abd", "0"), ids[1] = say(NULL, "1"), ids[2] = say("abc", "2");
    ids[3] = say("abd", "3"), ids[4] = say("abc", "4"), ids[5] = say(NULL, "5");
    for (uint32_t gone = 0; gone < 6; gone++) {
        expect_books(u.w->held, 6 - gone);
        uint32_t kept = 0;
        for (uint32_t i = u.w->ages[1].first; i != NONE; i = message_at(u.w, i)->age_next)
            assert_int_equal(message_at(u.w, i)->id, ids[gone + kept++]);
        assert_int_equal(kept, 6 - gone);
        while (u.w->history == 6 - gone)
            assert_int_equal(exportws_send(u.w, "else", filler, 100, EXPORTWS_TEXT), 0);
    }
    expect_books(u.w->held, 0);
}

/* A body in pieces is kept as history, too; not where the reserve would be needed for it. */
static void drafts_become_history_where_there_is_room(void **state)
{
    static const char first[] = "POST /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\n"
                                "Content-Length: 5\r\n\r\nhe";
    (void)state;
    join(&peers[0], "abc", V1);
    ask(first, "llo");
    uint64_t id = exportws_last_id(u.w);
    play(&peers[0]);
    expect(&peers[0], id, "hello");
    expect_books(0, 1);
    while (exportws_send(u.w, "abd", "x", 1, EXPORTWS_TEXT) == 0) {}
    ask(first, "llo");
    expect_books(u.w->held, 0);
    play(&peers[0]);
    expect(&peers[0], exportws_last_id(u.w), "hello");
    leave(&peers[0]);
    resume(&peers[0], "abc", id);
    expect_gap(&peers[0]);
    expect_nothing(&peers[0]);
}

/* ===== The last message ===== */

static void on_open_greets(void *user, exportws_id session, const char *token)
{
    (void)user, (void)token;
    assert_int_equal(exportws_reply(u.w, session, "welcome", 7, EXPORTWS_TEXT), 1);
}

static void expect_end(struct script *s)
{
    play(s);
    script_expect_close(s, 1000, "ended");
    script_close(s);
    unit_settle(&u);
}

static uint64_t say_end(const char *token, const char *text)
{
    assert_true(exportws_send(u.w, token, text, strlen(text), EXPORTWS_TEXT | EXPORTWS_END) >= 0);
    return exportws_last_id(u.w);
}

static void end_closes_all_sessions_of_its_token(void **state)
{
    (void)state;
    join(&peers[0], "abc", V1), join(&peers[1], "abc", ""), join(&peers[2], "abd", "");
    session_clog(0);
    uint64_t before = say("abc", "99 %"), id = say_end("abc", "done");
    assert_int_equal(exportws_sessions(u.w), 1);
    assert_int_equal(u.w->m->closed[EXPORTWS_BY_ENDED], 2);
    session_unclog(&peers[0]); /* what waits comes first */
    expect(&peers[0], before, "99 %"), expect(&peers[0], id, "done");
    expect_end(&peers[0]);
    play(&peers[1]);
    script_expect_text(&peers[1], "99 %"), script_expect_text(&peers[1], "done");
    expect_end(&peers[1]);
    play(&peers[2]);
    expect_nothing(&peers[2]);
    expect_books(0, 2);
}

/* By every way in; its answer is as any. */
static void end_comes_by_every_way(void **state)
{
    static const struct {
        const char *first, *second;
    } rows[] = {
        {"POST /app/ws/export-task/abc?end HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\ndone",
         ""},
        {"POST /app/ws/export-task/abc?end HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nd",
         "one"},
        {"POST /app/ws/export-task/abc?end HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
         "\r\n1\r\nd\r\n",
         "3\r\none\r\n0\r\n\r\n"},
        {"POST /app/ws/export-task/abc?a=b&end=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n"
         "done",
         ""},
        {NULL, "post"},
        {NULL, "send"},
        {"POST /app/ws/export-task/abc?end= HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\ndone",
         ""},
        {"POST /app/ws/export-task/abc?ending=1&x=end HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n"
         "\r\nnot",
         ""},
        {"POST /app/ws/export-task/abc?end=0 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nnot",
         ""},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        int ends = i + 2 < COUNT(rows);
        char want[64];
        join(&peers[0], "abc", V1);
        if (rows[i].first) {
            const char *answer = ask(rows[i].first, rows[i].second);
            snprintf(want, sizeof want, "{\"delivered\":1,\"id\":%llu}\n",
                     (unsigned long long)exportws_last_id(u.w));
            expect_answer(answer, 200, want);
        } else if (rows[i].second[0] == 'p') {
            assert_int_equal(
                exportws_post(u.w, "abc", "done", 4, EXPORTWS_TEXT | EXPORTWS_END), 0);
        } else {
            assert_int_equal(
                exportws_send(u.w, "abc", "done", 4, EXPORTWS_TEXT | EXPORTWS_END), 1);
        }
        play(&peers[0]);
        expect(&peers[0], exportws_last_id(u.w), ends ? "done" : "not");
        if (ends) expect_end(&peers[0]);
        expect_nothing(&peers[0]);
        assert_int_equal(exportws_sessions(u.w), !ends);
        leave(&peers[0]);
    }
}

/* What is neither yes nor no is not guessed at: nothing of it is delivered. */
static void end_is_1_or_0(void **state)
{
    static const char *const values[] = {"2", "00", "10", "true", "false", "no", "%31", "="};
    char request[128];
    (void)state;
    join(&peers[0], "abc", V1);
    for (size_t i = 0; i < COUNT(values); i++) {
        snprintf(request, sizeof request,
                 "POST /app/ws/export-task/abc?end=%s HTTP/1.1\r\nHost: h\r\n"
                 "Content-Length: 4\r\n\r\ndone",
                 values[i]);
        expect_refused(ask(request, ""), 400, "end is 1 or 0");
    }
    ask("GET /app/ws/export-task/abc?end=2 HTTP/1.1\r\nHost: h\r\n\r\n", "");
    expect_answer((const char *)pusher.got, 200, "{\"sessions\":1,\"held\":0}\n");
    play(&peers[0]);
    expect_nothing(&peers[0]);
    expect_books(0, 0);
}

/* The draft goes back to the buffer when all have got it, and their close frames wait in its place:
 * the log still knows whose it was. */
static void end_is_logged_with_its_token(void **state)
{
    (void)state;
    restart_with(0, 0);
    join(&peers[0], "abc", V1);
    send_after = 1, send_most = 0;
    ask("POST /app/ws/export-task/abc?end HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nd",
        "one");
    unsigned named = 0;
    for (unsigned i = 0; i < u.count; i++)
        named += strstr(u.lines[i], " event=push token=abc\xe2\x80\xa6 id=") != NULL;
    assert_int_equal(named, 1);
    play(&peers[0]);
    expect(&peers[0], exportws_last_id(u.w), "done");
    expect_end(&peers[0]);
}

static void end_is_for_one_token(void **state)
{
    (void)state;
    join(&peers[0], "abc", V1);
    expect_refused(
        ask("POST /app/ws/export-task/?end HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx", ""),
        400, "?end is for one token");
    assert_int_equal(exportws_broadcast(u.w, "x", 1, EXPORTWS_TEXT | EXPORTWS_END), EXPORTWS_BAD);
    assert_int_equal(exportws_post(u.w, NULL, "x", 1, EXPORTWS_TEXT | EXPORTWS_END), EXPORTWS_BAD);
    expect_answer(ask("GET /app/ws/export-task/abc?end HTTP/1.1\r\nHost: h\r\n\r\n", ""), 200,
                  "{\"sessions\":1,\"held\":0}\n");
    play(&peers[0]);
    expect_nothing(&peers[0]);
}

/* Nobody was there: the next session gets it, and what on_open says, and then ends. */
static void held_end_closes_the_session_that_gets_it(void **state)
{
    static const char *const fields[2] = {"", V1};
    (void)state;
    u.o.on_open = on_open_greets;
    restart();
    for (int v1 = 0; v1 < 2; v1++) {
        uint64_t before = say("abc", "99 %"), id = say_end("abc", "done");
        expect_books(2, 2U * (unsigned)v1);
        join(&peers[0], "abc", fields[v1]);
        if (v1) {
            expect(&peers[0], before, "99 %"), expect(&peers[0], id, "done");
            expect(&peers[0], exportws_last_id(u.w), "welcome");
        } else {
            script_expect_text(&peers[0], "99 %"), script_expect_text(&peers[0], "done");
            script_expect_text(&peers[0], "welcome");
        }
        expect_end(&peers[0]);
        join(&peers[1], "abc", fields[v1]); /* it does not get it: it stays */
        if (v1) expect(&peers[1], exportws_last_id(u.w), "welcome");
        else script_expect_text(&peers[1], "welcome");
        expect_nothing(&peers[1]);
        leave(&peers[1]);
    }
}

static void end_in_history_closes_who_resumes(void **state)
{
    (void)state;
    join(&peers[0], "abc", V1);
    uint64_t before = say("abc", "99 %"), id = say_end("abc", "done");
    play(&peers[0]);
    expect(&peers[0], before, "99 %"), expect(&peers[0], id, "done");
    expect_end(&peers[0]);
    resume(&peers[0], "abc", before);
    expect(&peers[0], id, "done");
    expect_end(&peers[0]);
    resume(&peers[0], "abc", id); /* it has seen it */
    expect_end(&peers[0]);
    uint64_t all = say(NULL, "to all");
    resume(&peers[0], "abc", id);
    expect(&peers[0], all, "to all");
    expect_end(&peers[0]);
    join(&peers[0], "abc", V1); /* it does not say what it has seen */
    expect_nothing(&peers[0]);
    leave(&peers[0]);
    resume(&peers[0], "abd", id); /* another's end */
    expect(&peers[0], all, "to all");
    expect_nothing(&peers[0]);
    leave(&peers[0]);
    clock_advance(1000);
    unit_settle(&u);
    resume(&peers[0], "abc", id); /* nobody knows any more */
    expect_gap(&peers[0]); /* `to all` */
    expect_nothing(&peers[0]);
}

static void close_at_once(void *user, exportws_id session, const char *token)
{
    (void)user, (void)token;
    assert_int_equal(exportws_close(u.w, session, 3001, "not today"), 0);
}

/* Whom the end would close is closed already. */
static void held_end_leaves_alone_who_is_closed_by_on_open(void **state)
{
    (void)state;
    u.o.on_open = close_at_once;
    restart();
    say_end("abc", "done");
    join(&peers[0], "abc", "");
    script_expect_text(&peers[0], "done");
    play(&peers[0]);
    script_expect_close(&peers[0], 3001, "not today");
    assert_int_equal(u.w->m->closed[EXPORTWS_BY_ENDED], 1);
}

/* Somebody says something after the end: who gets the end is closed behind it, others are not. */
static void messages_behind_the_end_are_delivered(void **state)
{
    (void)state;
    uint64_t end = say_end("abc", "done"), after = say("abc", "oh, and");
    resume(&peers[0], "abc", end - 1);
    expect(&peers[0], end, "done"), expect(&peers[0], after, "oh, and");
    expect_end(&peers[0]);
    resume(&peers[0], "abc", end); /* it has seen the end: that is not its newest any more */
    expect(&peers[0], after, "oh, and");
    expect_nothing(&peers[0]);
    leave(&peers[0]);
    exportws_kick(u.w, "abc");
    end = say_end("abc", "done"), after = say("abc", "oh, and");
    join(&peers[0], "abc", "");
    script_expect_text(&peers[0], "done"), script_expect_text(&peers[0], "oh, and");
    expect_end(&peers[0]);
}

/* What nobody has got is new to everybody, whatever they say that they have seen. */
static void held_messages_come_wherever_a_client_resumes(void **state)
{
    (void)state;
    uint64_t all = say(NULL, "all"), first = say("abc", "1"), second = say("abc", "2");
    resume(&peers[0], "abc", second);
    expect(&peers[0], first, "1"), expect(&peers[0], second, "2");
    expect_nothing(&peers[0]);
    leave(&peers[0]);
    join(&peers[0], "abc", "");
    expect_nothing(&peers[0]);
    leave(&peers[0]);
    resume(&peers[0], "abc", first);
    expect(&peers[0], second, "2");
    expect_nothing(&peers[0]);
    leave(&peers[0]);
    resume(&peers[0], "abc", all - 1);
    expect(&peers[0], all, "all"), expect(&peers[0], first, "1"), expect(&peers[0], second, "2");
    expect_nothing(&peers[0]);
}

/* The end fits into the buffer, the close frames behind it don't. */
static void end_without_room_for_its_close_frames(void **state)
{
    (void)state;
    join(&peers[0], "abc", V1), join(&peers[1], "abc", "");
    session_clog(0), session_clog(1);
    assert_int_equal(exportws_send(u.w, "one", "x", 1, EXPORTWS_TEXT), 0);
    while (exportws_send(u.w, "abd", "x", 1, EXPORTWS_TEXT) == 0) {}
    assert_int_equal(exportws_kick(u.w, "one"), 0);
    const uint32_t held = u.w->held;
    assert_int_equal(exportws_send(u.w, "abc", "done", 4, EXPORTWS_TEXT | EXPORTWS_END), 2);
    assert_int_equal(exportws_sessions(u.w), 0);
    assert_int_equal(u.w->m->closed[EXPORTWS_BY_SLOW], 2); /* what waited for them is lost */
    assert_int_equal(u.w->m->closed[EXPORTWS_BY_ENDED], 0);
    unit_settle(&u);
    assert_non_null(strstr(unit_line(&u), " reason=slow code=1006"));
    expect_books(held + 1, 0); /* nobody has got it */
    join(&peers[2], "abc", "");
    script_expect_text(&peers[2], "done");
    expect_end(&peers[2]);
    expect_books(held, u.w->history);
}

/* The same with nothing held: it goes with the last that waited for it. */
static void end_that_nobody_can_take_is_not_kept_without_hold(void **state)
{
    (void)state;
    u.o.queue = 1000;
    restart_with(4, 0);
    join(&peers[0], "abc", V1), join(&peers[1], "abc", ""), join(&peers[2], "abd", "");
    session_clog(0), session_clog(1), session_clog(2);
    assert_int_equal(exportws_reply(u.w, session_of(2), "x", 1, EXPORTWS_TEXT), 1);
    while (u.w->blocks_free > u.w->reserve + 1)
        assert_int_equal(exportws_send(u.w, "abd", "x", 1, EXPORTWS_TEXT), 1);
    assert_int_equal(exportws_send(u.w, "abc", "done", 4, EXPORTWS_TEXT | EXPORTWS_END), 2);
    assert_int_equal(exportws_sessions(u.w), 1);
    unit_settle(&u);
    expect_books(0, 0);
    leave(&peers[2]);
    assert_int_equal(u.w->blocks_free, u.w->block_count);
}

static void end_for_an_absent_token_is_held_or_refused(void **state)
{
    (void)state;
    restart_with(4, 0);
    assert_int_equal(exportws_send(u.w, "abc", "done", 4, EXPORTWS_TEXT | EXPORTWS_END),
                     EXPORTWS_ABSENT);
    expect_refused(ask(POST("abc?end", "1", "x"), ""), 404, "nobody there, and holding is off");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, history_start, history_end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(subprotocol_is_granted_when_it_is_offered),
        TEST(messages_of_every_size_come_with_their_id),
        TEST(ids_grow_across_restarts),
        TEST(every_answer_to_a_post_has_the_id),
        TEST(every_refused_message_has_an_id),
        TEST(plain_sessions_and_others_get_one_broadcast),
        TEST(plain_clients_see_nothing_of_all_this),
        TEST(frames_with_ids_survive_every_split),
        TEST(a_101_survives_every_split),
        TEST(replies_have_ids_but_are_no_history),
        TEST(resume_goes_on_behind_any_id),
        TEST(replay_may_be_larger_than_queue_and_socket),
        TEST(pushes_during_a_replay_follow_it),
        TEST(live_messages_during_a_replay_fill_the_queue),
        TEST(replay_that_moves_is_not_slow),
        TEST(replay_that_stands_is_slow),
        TEST(replay_gives_way_to_what_nobody_has_got),
        TEST(replay_of_what_nobody_has_got_is_left_alone),
        TEST(replays_give_way_one_by_one),
        TEST(replay_gives_way_to_live_messages),
        TEST(replay_does_not_give_way_to_its_own_token),
        TEST(replay_of_a_session_that_has_ended_is_left_alone),
        TEST(replay_does_not_give_way_in_vain),
        TEST(replays_at_one_place_give_way_together),
        TEST(history_that_live_sessions_wait_for_does_not_give_way),
        TEST(replay_does_not_give_way_to_a_body_in_pieces),
        TEST(missed_messages_are_safe_before_the_101_is_sent),
        TEST(last_must_be_an_id),
        TEST(no_gap_when_nothing_was_thrown_away),
        TEST(gap_when_the_id_was_never_given),
        TEST(gap_when_the_server_is_a_new_one),
        TEST(gap_when_it_expired),
        TEST(gap_when_what_was_held_expired),
        TEST(gap_past_the_newest_of_history),
        TEST(gap_past_the_newest_broadcasts),
        TEST(gap_when_new_messages_needed_the_room),
        TEST(gap_when_it_was_deleted),
        TEST(deleted_is_only_for_who_waits_already),
        TEST(delete_drops_history_that_is_all_there_is),
        TEST(gap_without_history),
        TEST(no_gap_for_what_others_lost),
        TEST(loss_is_remembered_when_nothing_is_left_of_a_token),
        TEST(records_that_tell_least_are_used_again_first),
        TEST(held_messages_survive_who_dies_in_their_midst),
        TEST(held_messages_survive_a_socket_that_fails),
        TEST(unread_messages_come_again_to_who_asks),
        TEST(history_lasts_from_when_it_was_got),
        TEST(message_got_late_becomes_history),
        TEST(history_that_is_being_read_outlives_its_time),
        TEST(newest_history_is_kept_though_an_older_is_waited_for),
        TEST(what_nobody_got_is_never_evicted),
        TEST(history_gives_way_oldest_first),
        TEST(drafts_become_history_where_there_is_room),
        TEST(end_closes_all_sessions_of_its_token),
        TEST(end_comes_by_every_way),
        TEST(end_is_1_or_0),
        TEST(end_is_logged_with_its_token),
        TEST(end_is_for_one_token),
        TEST(held_end_closes_the_session_that_gets_it),
        TEST(end_in_history_closes_who_resumes),
        TEST(held_end_leaves_alone_who_is_closed_by_on_open),
        TEST(messages_behind_the_end_are_delivered),
        TEST(held_messages_come_wherever_a_client_resumes),
        TEST(end_without_room_for_its_close_frames),
        TEST(end_that_nobody_can_take_is_not_kept_without_hold),
        TEST(end_for_an_absent_token_is_held_or_refused),
    };
    return cmocka_run_group_tests_name("history", tests, NULL, NULL);
}
