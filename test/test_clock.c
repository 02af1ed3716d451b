/* Time: how long the server would sleep, that each deadline comes when it is due and not before, a
 * clock that jumps an hour ahead, one that stands still, and one that has run for very long. The
 * clock is the test's: see faults.h. */
#include "faults.h"

static struct world s;

static void begin(int doors_by_host)
{
    faults_clear();
    world_init(&s, "clock");
    s.by_host = doors_by_host;
    world_doors(&s);
}

static int teardown(void **state)
{
    (void)state;
    if (s.w) world_end(&s);
    return 0;
}

static void finish(void)
{
    world_end(&s);
    if (s.wrong[0] != '\0') fail_msg("%s", s.wrong);
}

/* How long the server would wait for events, at most `most`. */
static int sleeps(int most)
{
    faults.polled = 0;
    INSIDE(exportws_step(s.w, most));
    return faults.poll_timeout;
}

/* ===== What is due when: each row makes something wait, for `ms` in all ===== */

static void await_handshake(void) { world_dial(&s, EXPORTWS_CLIENTS); }

static void await_ping(void) { world_join(&s, "a"); }

static void await_pong(void)
{
    struct peer *a = world_join(&s, "a");
    a->mute = 1;
    clock_pass(25000);
}

static void await_close(void)
{
    struct peer *a = world_join(&s, "a");
    a->mute = 1;
    exportws_kick(s.w, "a");
}

/* A session of a token whose peer takes nothing more, and for which so many messages wait. */
static struct peer *clogged(const char *token, uint32_t queued)
{
    char text[600];
    const int little = 1;
    struct peer *p = world_join(&s, token);
    const struct conn *c = world_slot(&s, token);
    p->deaf = 1;
    __real_setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &little, sizeof little);
    memset(text, '.', sizeof text);
    for (int i = 0; i < 60 && c->queued < queued; i++)
        exportws_send(s.w, token, text, sizeof text, EXPORTWS_TEXT);
    assert_int_equal(c->queued, queued);
    return p;
}

static void await_write(void)
{
    clogged("a", 1);
}

static void await_body(void)
{
    peer_say(world_pusher(&s),
             "POST /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nm1");
}

static void await_request(void)
{
    peer_say(world_pusher(&s), "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
}

static void await_somebody(void)
{
    assert_int_equal(exportws_send(s.w, "a", "m1", 2, EXPORTWS_TEXT), 0);
}

static void await_descriptor(void)
{
    s.strict = 0; /* else the door would be waited for */
    faults.plan = (struct fault){CALL_ACCEPT, faults.uses[CALL_ACCEPT] + 1, 1, EMFILE};
    peer_ask(world_dial(&s, EXPORTWS_CLIENTS), "b");
}

static void await_somebody_and_descriptor(void)
{
    await_descriptor();
    assert_int_equal(exportws_send(s.w, "a", "m1", 2, EXPORTWS_TEXT), 0);
}

static void await_drain(void)
{
    struct peer *a = world_join(&s, "a");
    a->mute = 1;
    exportws_stop(s.w);
}

/* What shows that it has happened; 0 before. */
static uint64_t seen_408(void) { return s.w->m->refused[status_row(408)]; }
static uint64_t seen_ping(void) { return s.w->m->pings; }
static uint64_t seen_timeout(void) { return s.w->m->closed[EXPORTWS_BY_TIMEOUT]; }
static uint64_t seen_no_seat(void) { return s.w->seats == 0; }
static uint64_t seen_slow(void) { return s.w->m->closed[EXPORTWS_BY_SLOW]; }
static uint64_t seen_no_pusher(void) { return s.w->pushers == 0; }
static uint64_t seen_expired(void) { return s.w->m->expired; }
static uint64_t seen_opened(void) { return s.w->m->opened; }
static uint64_t seen_stopped(void) { return s.w->stopped; }

static void set_long_close(exportws_options *o) { o->close_timeout_ms = 9000; }

static void set_long_hold(exportws_options *o) { o->hold_ms = 90000; }

static void set_short_hold(exportws_options *o) { o->hold_ms = 700; }

static void set_no_log(exportws_options *o) { o->on_log = NULL; }

static const struct due {
    const char *name;
    void (*wait)(void);
    int ms;
    uint64_t (*seen)(void);
    void (*set)(exportws_options *);
} dues[] = {
    {"a head that is not complete", await_handshake, 10000, seen_408, NULL},
    {"a quiet session", await_ping, 25000, seen_ping, NULL},
    {"a session that was pinged", await_pong, 10000, seen_timeout, NULL},
    {"a close that is not answered", await_close, 2000, seen_no_seat, NULL},
    {"a session that takes nothing", await_write, 20000, seen_slow, set_long_hold},
    {"a body that is not complete", await_body, 10000, seen_408, NULL},
    {"a pusher between two requests", await_request, 60000, seen_no_pusher, NULL},
    {"a held message", await_somebody, 5000, seen_expired, NULL},
    {"a door without descriptors", await_descriptor, 1000, seen_opened, NULL},
    {"a door without descriptors, unheard", await_descriptor, 1000, seen_opened, set_no_log},
    {"a held message before the door", await_somebody_and_descriptor, 700, seen_expired,
     set_short_hold},
    {"draining", await_drain, 5000, seen_stopped, set_long_close},
};

/* The loop would sleep just so long, and less only when it is told to; then it happens, not a
 * millisecond before. */
static void deadlines_come_when_due(void **state)
{
    (void)state;
    for (const struct due *due = dues; due < dues + sizeof dues / sizeof *dues; due++) {
        begin(0);
        if (due->set) due->set(&s.o);
        world_start(&s);
        due->wait();
        world_settle(&s);
        if (sleeps(-1) != due->ms) fail_msg("%s: sleeps %d ms", due->name, faults.poll_timeout);
        if (sleeps(due->ms + 1) != due->ms)
            fail_msg("%s: sleeps %d ms, not less", due->name, faults.poll_timeout);
        if (sleeps(7) != 7)
            fail_msg("%s: sleeps %d instead of 7 ms", due->name, faults.poll_timeout);
        clock_pass((uint64_t)due->ms - 1);
        world_settle(&s);
        if (due->seen() != 0) fail_msg("%s: too early", due->name);
        if (sleeps(-1) != 1)
            fail_msg("%s: sleeps %d instead of 1 ms", due->name, faults.poll_timeout);
        clock_pass(1);
        world_settle(&s);
        if (due->seen() != 1) fail_msg("%s: too late", due->name);
        finish();
    }
}

static void nothing_due_sleeps_for_ever(void **state)
{
    (void)state;
    begin(0);
    world_start(&s);
    assert_int_equal(sleeps(-1), -1);
    assert_int_equal(sleeps(0), 0);
    assert_int_equal(sleeps(INT_MAX), INT_MAX);
    finish();
}

/* Somebody waits for an input buffer, though all is quiet: looked at ten times a second. */
static void waiting_for_an_input_sleeps_100_ms(void **state)
{
    (void)state;
    begin(0);
    world_start(&s);
    peer_say(world_dial(&s, EXPORTWS_CLIENTS), "GET / HTTP/1.1\r\n");
    INSIDE(exportws_step(s.w, 0));
    assert_int_equal(s.w->waiting, 1);
    assert_int_equal(sleeps(-1), WAIT_RETRY_MS);
    finish();
}

/* What a callback or another thread has left to do is done at once. */
static void work_that_is_left_does_not_sleep(void **state)
{
    (void)state;
    begin(0);
    s.o.max_push_bytes = 65536, s.o.history = 0;
    world_start(&s);
    for (int i = 0; i < POSTS_A_TURN + 1; i++)
        assert_int_equal(exportws_post(s.w, NULL, "m", 1, EXPORTWS_TEXT), 0);
    assert_int_equal(sleeps(-1), -1);
    assert_int_equal(s.w->m->pushed, POSTS_A_TURN);
    assert_int_equal(sleeps(-1), 0);
    assert_int_equal(s.w->m->pushed, POSTS_A_TURN + 1);
    assert_int_equal(sleeps(-1), -1);
    finish();
}

/* What was done outside of a turn is told of in the next, at once. */
static void sessions_that_left_do_not_sleep(void **state)
{
    (void)state;
    begin(0);
    world_start(&s);
    struct peer *a = world_join(&s, "a"), *b = world_join(&s, "b");
    a->mute = 1;
    exportws_kick(s.w, "a");
    assert_int_equal(sleeps(-1), 0);
    assert_int_equal(s.closes, 1);
    assert_int_equal(sleeps(-1), 2000);
    peer_leave(b);
    assert_int_equal(exportws_send(s.w, "b", "m1", 2, EXPORTWS_TEXT), 0);
    assert_int_equal(sleeps(-1), 0);
    assert_int_equal(s.closes, 2);
    finish();
}

/* A server that drains says of every post what came of it, before it is gone. */
static void draining_outlasts_the_posts(void **state)
{
    (void)state;
    begin(0);
    s.o.max_push_bytes = 65536;
    world_start(&s);
    for (int i = 0; i < POSTS_A_TURN + 1; i++)
        assert_int_equal(exportws_post(s.w, NULL, "m", 1, EXPORTWS_TEXT), 0);
    exportws_stop(s.w);
    assert_in_range(INSIDE(exportws_step(s.w, -1)), 0, 1);
    assert_int_equal(s.w->m->posts_refused, POSTS_A_TURN);
    assert_int_equal(sleeps(-1), 0);
    assert_int_equal(s.w->m->posts_refused, POSTS_A_TURN + 1);
    assert_int_equal(exportws_step(s.w, -1), EXPORTWS_GONE);
    finish();
}

/* A session that waits for an input buffer may have said something that was not heard: it is not
 * blamed for silence. */
static void waiting_session_is_not_silent(void **state)
{
    uint8_t bytes[64];
    (void)state;
    begin(0);
    s.o.max_message_bytes = HEAD_MAX, s.o.ping_ms = 20, s.o.pong_ms = 20;
    world_start(&s);
    struct peer *a = world_join(&s, "a"), *b = world_dial(&s, EXPORTWS_CLIENTS);
    peer_say(b, "GET / HTTP/1.1\r\n");
    world_turn(&s);
    peer_say_bytes(a, bytes, peer_frame_put(bytes, OP_TEXT, "m1", 2));
    s.tick_ms = 10;
    for (int turn = 0; turn < 100; turn++) world_turn(&s);
    want_number(&s, "sessions", s.w->sessions, 1);
    peer_leave(b);
    for (int turn = 0; turn < 20; turn++) world_turn(&s);
    peer_say_bytes(a, bytes, peer_frame_put(bytes, 0x80 | OP_CONTINUATION, "!", 1));
    for (int turn = 0; turn < 20; turn++) world_turn(&s);
    want_text(&s, "heard", s.heard, "m1! ");
    finish();
}

/* One that waits and never says the rest has as long as others may keep the buffers, and no longer,
 * however often it was looked at. What is served of another meanwhile is life. */
static void waiting_for_ever_ends(void **state)
{
    uint8_t bytes[64];
    (void)state;
    begin(0);
    s.o.max_message_bytes = HEAD_MAX, s.o.ping_ms = 1000, s.o.pong_ms = 1000;
    world_start(&s);
    struct peer *a = world_join(&s, "a"), *b = world_join(&s, "b");
    struct peer *keeper = world_dial(&s, EXPORTWS_CLIENTS), *next = NULL;
    a->mute = b->mute = 1;
    peer_say(keeper, "GET / HTTP/1.1\r\n");
    world_turn(&s);
    peer_say_bytes(a, bytes, peer_frame_put(bytes, 0x80 | OP_TEXT, "m1", 2) - 1);
    s.tick_ms = 10;
    for (int turn = 0; turn < 1180; turn++) {
        if (turn % 50 == 0) peer_frame(b, OP_TEXT, "HEART-BEAT");
        if (turn == 990) peer_say(next = world_dial(&s, EXPORTWS_CLIENTS), "GET / HTTP/1.1\r\n");
        world_turn(&s);
    }
    want_got(&s, keeper, "408 ");
    want_number(&s, "sessions", s.w->sessions, 2);
    for (int turn = 0; turn < 40; turn++) world_turn(&s);
    want_got(&s, a, "101 ping close:1008 ");
    want_number(&s, "sessions", s.w->sessions, 1);
    want_number(&s, "pings", s.w->m->pings, 1);
    peer_leave(next);
    finish();
}

/* Who keeps the buffer while others wait has to go, though each of its messages comes to an end. Where
 * nobody waits it may go on so. */
static void keeper_of_an_input_gives_way(void **state)
{
    uint8_t bytes[64];
    (void)state;
    begin(0);
    s.o.max_message_bytes = HEAD_MAX;
    world_start(&s);
    struct peer *a = world_join(&s, "a"), *keeper = world_join(&s, "k");
    a->mute = 1;
    size_t n = peer_frame_put(bytes, 0x80 | OP_TEXT, "m1", 2);
    memcpy(bytes + n, bytes, 1);
    peer_say_bytes(keeper, bytes, 1);
    s.tick_ms = 100;
    for (int turn = 0; turn < 320; turn++) {
        if (turn == 200) peer_say_bytes(a, bytes, n - 1);
        peer_say_bytes(keeper, bytes + 1, n);
        world_turn(&s);
        if (turn == 290) want_number(&s, "sessions", s.w->sessions, 2);
    }
    want_number(&s, "sessions", s.w->sessions, 1);
    want_number(&s, "by timeout", s.w->m->closed[EXPORTWS_BY_TIMEOUT], 1);
    peer_say_bytes(a, bytes + n - 1, 1);
    for (int turn = 0; turn < 5; turn++) world_turn(&s);
    want_number(&s, "free inputs", s.w->free_inputs, s.w->input_count);
    finish();
}

/* ===== Closing ===== */

/* A session that is closing is counted at its address until its slot is free. */
static void closing_session_counts_at_its_address(void **state)
{
    (void)state;
    begin(0);
    s.o.per_address = 2;
    world_start(&s);
    struct peer *a = world_join(&s, "a"), *b = world_join(&s, "b");
    a->mute = 1;
    exportws_kick(s.w, "a");
    want_got(&s, world_join(&s, "c"), "429 ");
    clock_pass(2000);
    world_settle(&s);
    want_ended(&s, a);
    want_got(&s, world_join(&s, "d"), "101 ");
    want_got(&s, world_join(&s, "e"), "429 ");
    peer_leave(b);
    world_settle(&s);
    want_got(&s, world_join(&s, "f"), "101 ");
    finish();
}

/* Takes what the kernel has for a peer, which makes room for a few more messages of 600 bytes. */
static void take_little(const struct peer *p)
{
    char bytes[600];
    int n = 0;
    while (__real_recv(p->fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0) n++;
    assert_in_range(n, 1, 8);
    world_settle(&s);
}

/* It may take its time as long as it takes something; but who comes to a full table finds a place the
 * next time, if one has been closing for more than write_timeout: the one that began first. */
static void closing_session_gives_way_to_newcomers(void **state)
{
    (void)state;
    begin(0);
    s.o.capacity = 3, s.o.queue = 32, s.o.buffer_bytes = 131072;
    world_start(&s);
    struct peer *a = clogged("a", 24), *b = clogged("b", 24), *open = clogged("o", 24);
    exportws_kick(s.w, "a");
    world_settle(&s);
    clock_pass(1000);
    exportws_step(s.w, 0);
    exportws_kick(s.w, "b");
    for (int i = 0; i < 3; i++) {
        clock_pass(6500);
        take_little(b), take_little(a), take_little(open);
        if (i < 2) want_got(&s, world_join(&s, "n"), "503 ");
    }
    want_number(&s, "slots", s.w->seats, 3);
    want_got(&s, world_join(&s, "n"), "503 ");
    want_number(&s, "slots", s.w->seats, 2);
    want_got(&s, world_join(&s, "n"), "101 ");
    want_got(&s, world_join(&s, "m"), "503 "); /* b has not been closing for so long yet */
    want_number(&s, "slots", s.w->seats, 3);
    take_little(b), take_little(open);
    clock_pass(6500);
    want_got(&s, world_join(&s, "m"), "503 ");
    want_got(&s, world_join(&s, "m"), "101 ");
    want_number(&s, "slow ones", s.w->m->closed[EXPORTWS_BY_SLOW], 0);
    finish();
}

/* ===== Handshakes ===== */

/* Who has got an answer and stays makes room before those whose request is on its way. */
static void answered_give_way_before_newcomers(void **state)
{
    (void)state;
    begin(0);
    world_start(&s);
    struct peer *slow = world_dial(&s, EXPORTWS_CLIENTS), *done[4];
    peer_say(slow, "GET /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n");
    world_settle(&s);
    for (int i = 0; i < 4; i++) {
        done[i] = world_dial(&s, EXPORTWS_CLIENTS);
        peer_say(done[i], "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
        world_settle(&s);
    }
    for (int i = 0; i < 4; i++) want_got(&s, done[i], "200 ");
    want_number(&s, "handshakes", s.w->handshakes, 3);
    peer_say(slow, "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                   "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    world_settle(&s);
    want_got(&s, slow, "101 ");
    finish();
}

/* ===== An hour ahead ===== */

/* All that has a deadline is there when the hour is gone: those who answer stay, all else has timed
 * out. */
static void hour_ahead_keeps_those_who_answer(void **state)
{
    (void)state;
    begin(0);
    world_start(&s);
    struct peer *a = world_join(&s, "a"), *mute = world_join(&s, "m");
    struct peer *silent = world_dial(&s, EXPORTWS_CLIENTS), *idle = world_pusher(&s),
                *body = world_pusher(&s);
    mute->mute = 1;
    peer_say(idle, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    peer_say(body, "POST /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nm1");
    exportws_send(s.w, "a", "m1", 2, EXPORTWS_TEXT),
        exportws_send(s.w, "x", "m1", 2, EXPORTWS_TEXT);
    world_settle(&s);
    clock_pass(3600000);
    world_settle(&s);
    want_got(&s, a, "101 m1 ping ");
    want_got(&s, mute, "101 ping ");
    want_got(&s, silent, "408 ");
    want_got(&s, idle, "200 ");
    want_ended(&s, idle);
    want_got(&s, body, "408 ");
    want_number(&s, "expired", s.w->m->expired, 1);
    want_number(&s, "sessions", s.w->sessions, 2);
    clock_pass(3600000);
    world_settle(&s);
    want_got(&s, a, "101 m1 ping ping ");
    want_got(&s, mute, "101 ping close:1008 ");
    assert_int_equal(exportws_send(s.w, "a", "m2", 2, EXPORTWS_TEXT), 1);
    world_settle(&s);
    want_got(&s, a, "101 m1 ping ping m2 ");
    finish();
}

/* What is in the kernel when the hour is over counts as in time: a pong, the rest of a request, a
 * close. */
static void hour_ahead_hears_first_what_was_said(void **state)
{
    (void)state;
    begin(0);
    world_start(&s);
    struct peer *a = world_join(&s, "a"), *b = world_join(&s, "b"), *p = world_pusher(&s);
    b->mute = 1;
    exportws_kick(s.w, "b");
    peer_say(p, "POST /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nm");
    clock_pass(9000);
    world_settle(&s);
    a->mute = 1;
    clock_pass(16000);
    INSIDE(exportws_step(s.w, 0));
    world_settle(&s);
    want_got(&s, a, "101 ping ");
    want_got(&s, p, "408 ");
    struct peer *q = world_pusher(&s);
    peer_say(q, "POST /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nm");
    world_settle(&s);
    peer_frame(a, OP_PONG, ""), peer_say(q, "1");
    clock_pass(3600000);
    world_settle(&s);
    want_got(&s, a, "101 ping m1 ");
    want_got(&s, q, "200 ");
    finish();
}

/* The hour passes while a host looks at its own poll(). */
static void hour_ahead_in_a_hosts_loop(void **state)
{
    (void)state;
    begin(1);
    world_start(&s);
    struct pollfd fds[16];
    int timeout_ms = -1;
    struct peer *a = world_join(&s, "a");
    assert_int_equal(exportws_pollfds(s.w, fds, 16, &timeout_ms), 4);
    assert_int_equal(timeout_ms, 25000);
    clock_pass(3600000);
    assert_int_equal(exportws_dispatch(s.w, fds, 4), 1);
    world_settle(&s);
    want_got(&s, a, "101 ping ");
    clock_pass(3600000);
    world_settle(&s);
    want_got(&s, a, "101 ping ping ");
    finish();
}

/* ===== Standing still ===== */

static void clock_standing_still_serves_everybody(void **state)
{
    (void)state;
    begin(0);
    world_start(&s);
    struct peer *a = world_join(&s, "a"), *p = world_pusher(&s),
                *silent = world_dial(&s, EXPORTWS_CLIENTS);
    peer_post(p, "a", "m1"), peer_frame(a, OP_TEXT, "echo1");
    world_settle(&s);
    want_got(&s, a, "101 echo1 m1 ");
    peer_post(p, "x", "m1");
    for (int turn = 0; turn < 1000; turn++) {
        int events = exportws_step(s.w, 0);
        if (events > 0 && turn > 2) fail_msg("turn %d: %d events", turn, events);
    }
    assert_true(sleeps(-1) > 0);
    world_settle(&s);
    want_got(&s, p, "200 202 ");
    want_got(&s, silent, "");
    want_number(&s, "held", s.w->held, 1);
    exportws_stop(s.w);
    world_settle(&s);
    want_got(&s, a, "101 echo1 m1 close:1001 ");
    want_number(&s, "gone", (uint64_t)s.gone, 1);
    finish();
}

/* More sessions than are polled all the time: those that have been quiet are swept now and then. */
enum { MANY = POLL_FEW + 20 };

static int many_fds[MANY];

static void many_say(int i, const char *bytes, size_t n)
{
    assert_int_equal(__real_send(many_fds[i], bytes, n, MSG_NOSIGNAL), n);
}

static void many_join(void)
{
    s.o.capacity = MANY, s.o.per_token = MANY, s.o.handshakes = 16;
    world_start(&s);
    for (int i = 0; i < MANY; i++) {
        struct peer *p = world_dial(&s, EXPORTWS_CLIENTS);
        many_fds[i] = p->fd;
        s.peer_count = 0;
        peer_ask(p, "b");
        if (i % 8 == 7) world_settle(&s);
    }
    world_settle(&s);
    assert_int_equal(s.w->sessions, MANY);
}

static void many_end(void)
{
    for (int i = 0; i < MANY; i++) __real_close(many_fds[i]);
    finish();
}

static const char many_beat[] = "\x81\x8a\0\0\0\0HEART-BEAT"; /* masked with zeros */
static const char many_ping[] = "\x89\x80\0\0\0";

/* All of them, and long enough silent to be cold. */
static void many_cold(void)
{
    begin(0);
    many_join();
    for (int i = 0; i < 3; i++) clock_pass(COOL_MS), world_settle(&s);
    assert_true(s.w->hot < POLL_FEW);
}

/* Then the first keeps the server busy. */
static void many_dense(void)
{
    many_cold();
    for (int i = 0; i <= DENSE_TURNS; i++) many_say(0, many_ping, 6), world_turn(&s);
    assert_true(loop_dense(s.w));
}

static void cold_sessions_are_heard(void **state)
{
    (void)state;
    many_cold();
    for (int i = 0; i < MANY; i++) many_say(i, many_beat, 16);
    s.tick_ms = 1;
    for (int turn = 0; turn < 20; turn++) world_turn(&s);
    assert_int_equal(s.w->m->heartbeats, MANY);
    many_end();
}

/* A pong that no sweep has come to yet is one: before a session is given up it is listened to. */
static void pongs_of_cold_sessions_are_heard_in_time(void **state)
{
    (void)state;
    many_cold();
    clock_pass(s.o.ping_ms), world_settle(&s);
    assert_int_equal(s.w->m->pings, MANY);
    for (int i = 0; i < MANY; i += 2) many_say(i, "\x8a\x80\0\0\0", 6);
    many_say(1, "\x88\x80\0\0\0", 6); /* and it may have left */
    assert_true(s.w->hot < POLL_FEW);
    clock_pass(s.o.pong_ms);
    INSIDE((loop_time(s.w), loop_timers(s.w)));
    assert_int_equal(s.w->sessions, MANY / 2);
    assert_int_equal(s.w->m->closed[EXPORTWS_BY_PEER], 1);
    assert_int_equal(s.w->m->closed[EXPORTWS_BY_TIMEOUT], MANY / 2 - 1);
    many_end();
}

/* What a sweep costs sets when the next one comes: never more often than every four milliseconds,
 * never later than in six. */
static void sweeps_keep_their_share(void **state)
{
    static const struct {
        unsigned cost_us;
        uint32_t gap_us;
    } paces[] = {{0, SWEEP_FASTEST_US},    {100, SWEEP_FASTEST_US}, {101, 101 * SWEEP_SHARE},
                 {149, 149 * SWEEP_SHARE}, {150, SWEEP_SLOWEST_US}, {151, SWEEP_SLOWEST_US},
                 {1000, SWEEP_SLOWEST_US}};
    (void)state;
    many_cold();
    for (int i = 0; i < 2; i++) many_say(0, many_ping, 6), world_turn(&s);
    for (size_t i = 0; i < sizeof paces / sizeof *paces; i++) {
        clock_pass(6); /* a sweep is due, but it is not quiet */
        s.w->busy_us = faults.monotonic_us, s.w->sweep_us = s.w->swept = 1000;
        many_say(0, many_ping, 6);
        faults.look_us = paces[i].cost_us;
        INSIDE(exportws_step(s.w, 0));
        faults.look_us = 0;
        assert_int_equal(s.w->unswept, 0);
        assert_int_equal(s.w->swept, 1000 + MANY - 1);
        assert_int_equal(s.w->sweep_us, 1000 + paces[i].cost_us);
        assert_int_equal(s.w->sweep_due_us - faults.monotonic_us, paces[i].gap_us);
    }
    many_end();
}

/* A sweep that took no time says little about what the next will take: the whole set is not polled
 * because of it. What counts is the average, of what was swept lately. */
static void free_sweep_is_no_silence(void **state)
{
    (void)state;
    many_cold();
    s.w->sweep_us = s.w->swept = SWEPT_MOST - 10;
    for (int i = 0; i < 4; i++) {
        clock_pass(6);
        s.w->busy_us = faults.monotonic_us, s.w->calm_us = 0;
        many_say(0, many_ping, 6);
        INSIDE(exportws_step(s.w, 0));
        assert_false(loop_quiet(s.w));
    }
    assert_in_range(s.w->swept, SWEPT_MOST / 2, SWEPT_MOST);
    assert_in_range(s.w->sweep_us, 1, SWEPT_MOST / 2);
    many_end();
}

/* Where turns follow each other closely only the busy are polled; but everybody else is looked at in
 * one turn of a few, and no sleep is a long one. */
static void dense_turns_keep_the_doors_open(void **state)
{
    (void)state;
    many_dense();
    assert_true(s.w->live < s.w->hot);
    world_dial(&s, EXPORTWS_PUSH);
    for (int i = 0; i < LOOK_TURNS; i++) many_say(0, many_ping, 6), world_turn(&s);
    assert_int_equal(s.w->pushers, 1);
    assert_int_equal(sleeps(-1), SWEEP_LAZY_MS);
    assert_false(loop_dense(s.w));
    many_end();
}

/* A host that polls itself is told how long from now, whatever turns came before. */
static void hosts_sleep_from_now(void **state)
{
    static struct pollfd fds[100];
    (void)state;
    many_dense();
    clock_pass(1000);
    int before = -1, after = -1;
    assert_true(exportws_pollfds(s.w, fds, 100, &before) > 0);
    clock_pass(700);
    assert_true(exportws_pollfds(s.w, fds, 100, &after) > 0);
    assert_int_equal(before - after, 700);
    many_end();
}

/* Not even where nothing has a deadline: posts that nobody is there for, say. */
static void dense_posts_keep_the_doors_open(void **state)
{
    (void)state;
    begin(0);
    s.o.hold_ms = 0;
    world_start(&s);
    clock_pass(COOL_MS), world_settle(&s);
    clock_pass(COOL_MS), world_settle(&s);
    for (int i = 0; i <= DENSE_TURNS; i++) {
        assert_int_equal(exportws_post(s.w, "a", "x", 1, EXPORTWS_TEXT), 0);
        world_turn(&s);
    }
    assert_true(loop_dense(s.w));
    assert_int_equal(s.w->live, 1);
    assert_int_equal(sleeps(-1), SWEEP_LAZY_MS);
    finish();
}

/* While something hot has to be served a sweep is not waited for: it comes with the turns. Then it
 * is, to the millisecond. */
static void sleeps_last_until_the_next_sweep(void **state)
{
    static const struct {
        int most, lively, ms;
    } rows[] = {{-1, 1, SWEEP_LAZY_MS}, {-1, 0, 4}, {3, 1, 3}, {3, 0, 3}, {0, 0, 0}};
    (void)state;
    many_cold();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int k = 0; k < 2; k++) many_say(0, many_ping, 6), world_turn(&s);
        s.w->sweep_us = s.w->swept = 1000; /* it is not quiet */
        s.w->sweep_due_us = faults.monotonic_us + 3001;
        assert_int_equal(s.w->lively, 1);
        s.w->lively = rows[i].lively != 0;
        assert_int_equal(sleeps(rows[i].most), rows[i].ms);
        assert_int_equal(s.w->lively, 0);
    }
    many_end();
}

/* Only what is quiet goes cold: not one that closes, not one that has something waiting, nor, for a
 * while, one that has said something. */
static void cold_is_only_who_is_quiet(void **state)
{
    (void)state;
    begin(0);
    many_join();
    faults.plan = (struct fault){CALL_SEND, faults.uses[CALL_SEND] + 1, UINT_MAX, EAGAIN};
    exportws_id first = conn_id(s.w, &s.w->conns[0]), second = conn_id(s.w, &s.w->conns[1]);
    INSIDE(exportws_reply(s.w, first, "x", 1, EXPORTWS_TEXT));
    INSIDE(exportws_close(s.w, second, 1000, NULL));
    for (int i = 0; i < 3; i++) clock_pass(COOL_MS), world_turn(&s);
    assert_true(s.w->hot < POLL_FEW);
    assert_true(s.w->conns[0].at < s.w->hot);
    assert_true(s.w->conns[1].at < s.w->hot);
    assert_true(s.w->conns[2].at >= s.w->hot);
    many_say(2, "\x81\x82\0\0\0\0hi", 8);
    s.tick_ms = 1;
    for (int turn = 0; turn < 20 && s.messages == 0; turn++) world_turn(&s);
    assert_int_equal(s.messages, 1);
    for (int i = 0; i < 2; i++) {
        s.w->cool_due_ms = 0;
        world_turn(&s);
        assert_int_equal(s.w->conns[2].at < s.w->hot, i == 0);
    }
    many_end();
}

/* One turn, before its sweep, may leave nobody cold. */
static void sweeps_of_nobody_are_not_made(void **state)
{
    (void)state;
    many_cold();
    for (int i = 0; i < 3; i++) many_say(0, many_ping, 6), world_turn(&s);
    assert_true(s.w->hot < POLL_FEW);
    clock_pass(1); /* the next sweep is due */
    faults.plan = (struct fault){CALL_SEND, faults.uses[CALL_SEND] + 1, MANY, EAGAIN};
    many_say(0, "\x81\x84\0\0\0\0push", 10); /* to all of them, and none takes it */
    world_turn(&s);
    assert_int_equal(s.w->hot, s.w->poll_count);
    world_settle(&s);
    assert_int_equal(s.w->m->delivered, MANY);
    many_end();
}

/* Even when no time passes that would make the next sweep due, and one that is hot keeps the server
 * busy. */
static void clock_standing_still_hears_cold_sessions(void **state)
{
    (void)state;
    many_cold();
    for (int turn = 0; turn < 10; turn++) many_say(0, many_ping, 6), world_turn(&s);
    s.w->calm_us = 0, s.w->unswept = 0; /* it is not quiet, and the next sweep is never due */
    s.w->sweep_due_us = faults.monotonic_us + 1;
    for (int i = 1; i < MANY; i++) many_say(i, many_beat, 16);
    for (int turn = 1; turn <= SWEEP_TURNS; turn++) {
        assert_int_equal(s.w->m->heartbeats, 0);
        many_say(0, many_ping, 6), world_turn(&s);
    }
    assert_int_equal(s.w->m->heartbeats, MANY - 1);
    many_end();
}

/* The host may do anything between pollfds and dispatch: what it changes is seen in the next round.
 */
static void host_may_send_between_pollfds_and_dispatch(void **state)
{
    static struct pollfd fds[MANY + 32];
    int timeout_ms = 0;
    (void)state;
    begin(1);
    many_join();
    for (int i = 0; i < 3; i++) {
        clock_pass(COOL_MS);
        int n = exportws_pollfds(s.w, fds, MANY + 32, &timeout_ms);
        assert_int_equal(exportws_dispatch(s.w, fds, (size_t)n), 0);
    }
    assert_true(s.w->hot < POLL_FEW);
    many_say(MANY - 1, many_beat, 16);
    int n = exportws_pollfds(s.w, fds, MANY + 32, &timeout_ms);
    assert_int_equal(__real_poll(fds, (nfds_t)n, 0), 1);
    /* the last of them has to wait for its kernel, so that it goes hot */
    faults.plan = (struct fault){CALL_SEND, faults.uses[CALL_SEND] + MANY, 1, EAGAIN};
    assert_int_equal(INSIDE(exportws_send(s.w, "b", "m1", 2, EXPORTWS_TEXT)), MANY);
    assert_in_range(exportws_dispatch(s.w, fds, (size_t)n), 0, 1);
    world_turn(&s);
    assert_int_equal(s.w->m->heartbeats, 1);
    many_end();
}

/* ===== Far on ===== */

/* 49.7 days, 292 years: counters of 32 bits, or of nanoseconds, would turn over. */
static void clock_far_on_keeps_deadlines(void **state)
{
    static const uint64_t starts_ms[] = {0, 1, INT32_MAX - 5000ULL, UINT32_MAX - 5000ULL,
                                         9223372036854ULL - 5000};
    (void)state;
    for (size_t i = 0; i < sizeof starts_ms / sizeof *starts_ms; i++) {
        begin(0);
        faults.monotonic_us = starts_ms[i] * 1000;
        world_start(&s);
        struct peer *a = world_join(&s, "a"), *silent = world_dial(&s, EXPORTWS_CLIENTS);
        world_settle(&s);
        assert_int_equal(sleeps(-1), 10000);
        clock_pass(9999);
        world_settle(&s);
        want_got(&s, silent, "");
        clock_pass(1);
        world_settle(&s);
        want_got(&s, silent, "408 ");
        clock_pass(15000);
        world_settle(&s);
        want_got(&s, a, "101 ping ");
        finish();
    }
}

#define TEST(name) cmocka_unit_test_teardown(name, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(deadlines_come_when_due),
        TEST(nothing_due_sleeps_for_ever),
        TEST(waiting_for_an_input_sleeps_100_ms),
        TEST(work_that_is_left_does_not_sleep),
        TEST(sessions_that_left_do_not_sleep),
        TEST(draining_outlasts_the_posts),
        TEST(waiting_session_is_not_silent),
        TEST(waiting_for_ever_ends),
        TEST(keeper_of_an_input_gives_way),
        TEST(closing_session_counts_at_its_address),
        TEST(closing_session_gives_way_to_newcomers),
        TEST(answered_give_way_before_newcomers),
        TEST(hour_ahead_keeps_those_who_answer),
        TEST(hour_ahead_hears_first_what_was_said),
        TEST(hour_ahead_in_a_hosts_loop),
        TEST(clock_standing_still_serves_everybody),
        TEST(cold_sessions_are_heard),
        TEST(pongs_of_cold_sessions_are_heard_in_time),
        TEST(sweeps_keep_their_share),
        TEST(free_sweep_is_no_silence),
        TEST(dense_turns_keep_the_doors_open),
        TEST(dense_posts_keep_the_doors_open),
        TEST(hosts_sleep_from_now),
        TEST(cold_is_only_who_is_quiet),
        TEST(sleeps_last_until_the_next_sweep),
        TEST(sweeps_of_nobody_are_not_made),
        TEST(clock_standing_still_hears_cold_sessions),
        TEST(host_may_send_between_pollfds_and_dispatch),
        TEST(clock_far_on_keeps_deadlines),
    };
    return cmocka_run_group_tests_name("clock", tests, NULL, world_folder_remove);
}
