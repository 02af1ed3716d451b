/* Every system call that the server makes fails: at its n-th use, for every n of each scenario,
 * with every errno that it can have, once and from then on; reads and writes come back short.
 * Whatever happens, the books balance after every turn, nothing is left behind, the session that
 * has nothing to do with it is served, and so is the next one that comes. A fault that a network
 * gives every day (EINTR, EAGAIN, a short count, no memory just now) changes nothing.
 *
 * A failure names its run, "SCENARIO CALL N ERRNO once|ever" (EINTR: a hundred times, since to try
 * again is right). FAULTS_ONLY="CALL N ERRNO once" test_faults SCENARIO plays that one alone;
 * FAULTS_SHOW=1 prints the name of every run before it begins. */
#include "faults.h"

/* How much harm a fault may do. */
enum harm { HARM, NO_HARM_ONCE, NO_HARM };

static const struct row {
    unsigned call;
    int error;
    enum harm harm;
} rows[] = {
    {CALL_POLL, EINTR, NO_HARM_ONCE},
    {CALL_POLL, EAGAIN, NO_HARM_ONCE},
    {CALL_POLL, ENOMEM, NO_HARM_ONCE},
    {CALL_ACCEPT, EINTR, NO_HARM_ONCE},
    {CALL_ACCEPT, EAGAIN, NO_HARM_ONCE},
    {CALL_ACCEPT, ECONNABORTED, NO_HARM_ONCE},
    {CALL_ACCEPT, EMFILE, NO_HARM_ONCE},
    {CALL_ACCEPT, ENFILE, NO_HARM_ONCE},
    {CALL_ACCEPT, ENOBUFS, NO_HARM_ONCE},
    {CALL_ACCEPT, ENOMEM, NO_HARM_ONCE},
    {CALL_ACCEPT, ETIMEDOUT, NO_HARM_ONCE},
    {CALL_ACCEPT, ECONNRESET, NO_HARM_ONCE},
    {CALL_RECV, EINTR, NO_HARM_ONCE},
    {CALL_RECV, EAGAIN, NO_HARM_ONCE},
    {CALL_RECV, ENOBUFS, NO_HARM_ONCE},
    {CALL_RECV, ENOMEM, NO_HARM_ONCE},
    {CALL_RECV, ECONNRESET, HARM},
    {CALL_RECV, ETIMEDOUT, HARM},
    {CALL_RECV, ENOTCONN, HARM},
    {CALL_RECV, FAULT_SHORT, NO_HARM},
    {CALL_RECV, FAULT_BYTE, NO_HARM},
    {CALL_SEND, EINTR, NO_HARM_ONCE},
    {CALL_SEND, EAGAIN, NO_HARM_ONCE},
    {CALL_SEND, ENOBUFS, NO_HARM_ONCE},
    {CALL_SEND, ENOMEM, NO_HARM_ONCE},
    {CALL_SEND, ECONNRESET, HARM},
    {CALL_SEND, EPIPE, HARM},
    {CALL_SEND, ETIMEDOUT, HARM},
    {CALL_SEND, ENOTCONN, HARM},
    {CALL_SEND, FAULT_SHORT, NO_HARM},
    {CALL_SEND, FAULT_BYTE, NO_HARM},
    {CALL_CLOSE, EINTR, NO_HARM},
    {CALL_CLOSE, ECONNRESET, NO_HARM},
    {CALL_FCNTL, EINTR, HARM},
    {CALL_FCNTL, ENOMEM, HARM},
    {CALL_SETSOCKOPT, ENOBUFS, NO_HARM},
    {CALL_SETSOCKOPT, ENOMEM, NO_HARM},
    {CALL_READ, EINTR, NO_HARM_ONCE},
    {CALL_READ, EAGAIN, NO_HARM_ONCE},
    {CALL_READ, FAULT_BYTE, NO_HARM},
    {CALL_WRITE, EINTR, NO_HARM_ONCE},
    {CALL_WRITE, EAGAIN, HARM},
    {CALL_WRITE, EPIPE, HARM},
    {CALL_SHUTDOWN, ENOTCONN, HARM},
    {CALL_SHUTDOWN, ENOBUFS, HARM},
    {CALL_CLOCK, EINVAL, NO_HARM_ONCE},
    {CALL_CLOCK, FAULT_HOUR, HARM},
    {CALL_CLOCK, FAULT_STILL, HARM},
};

enum { ROWS = sizeof rows / sizeof *rows };

/* ===== Scenarios: each asks for exact results, which are looked at when no harm may come ===== */

static void play_session(struct world *s)
{
    struct peer *a = world_join(s, "a");
    want_got(s, a, "101 ");
    peer_frame(a, OP_TEXT, "m1"), peer_frame(a, OP_BINARY, "m2");
    world_settle(s);
    want_text(s, "heard", s->heard, "m1 m2 ");
    peer_frame(a, OP_TEXT, "echo1"), peer_frame(a, OP_PING, "x"), peer_frame(a, OP_PONG, ""),
        peer_frame(a, OP_TEXT, "HEART-BEAT");
    world_settle(s);
    want_got(s, a, "101 echo1 pong ");
    a->mute = 1;
    peer_frame_close(a, 1000);
    world_settle(s);
    want_got(s, a, "101 echo1 pong close:1000 ");
    want_ended(s, a);
    peer_leave(a);
    world_settle(s);
    want_number(s, "closed by peer", s->w->m->closed[EXPORTWS_BY_PEER], 1);
}

static void play_ended_by_server(struct world *s)
{
    struct peer *a = world_join(s, "a"), *b = world_join(s, "b"), *c = world_join(s, "c");
    uint8_t bytes[64];
    size_t n = peer_frame_put(bytes, 0x80 | OP_TEXT, "bye", 3);
    n += peer_frame_put(bytes + n, 0x80 | OP_TEXT, "m1", 2); /* too late to be heard */
    peer_say_bytes(a, bytes, n);
    world_settle(s);
    want_got(s, a, "101 close:3000 ");
    want_text(s, "heard", s->heard, "bye ");
    INSIDE(exportws_kick(s->w, "b"));
    world_settle(s);
    want_got(s, b, "101 close:1000 ");
    peer_say_bytes(c, "\x83\x80....", 6); /* a reserved opcode */
    world_settle(s);
    want_got(s, c, "101 close:1002 ");
    peer_leave(a), peer_leave(b), peer_leave(c);
    world_settle(s);
    want_number(s, "seats", s->w->seats, 1);
}

/* More bytes behind a close frame: of the server, then of the peer. */
static void play_last_words(struct world *s)
{
    uint8_t bytes[64];
    size_t n;
    struct peer *d = world_join(s, "d"), *e = world_join(s, "e");
    n = peer_frame_put(bytes, 0x80 | OP_TEXT, "bye", 3);
    memcpy(bytes + n, "\x83\x80....", 6);
    peer_say_bytes(d, bytes, n + 6);
    n = peer_frame_put(bytes, 0x80 | OP_CLOSE, "\x03\xe8", 2);
    memcpy(bytes + n, "more", 4);
    e->mute = 1;
    peer_say_bytes(e, bytes, n + 4);
    world_settle(s);
    want_got(s, d, "101 close:3000 ");
    want_got(s, e, "101 close:1000 ");
    want_ended(s, d), want_ended(s, e);
}

static void play_refusals(struct world *s)
{
    static const struct {
        const char *request, *got;
    } asked[] = {
        {"GET /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\n\r\n", "426 "},
        {"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n", "404 "},
        {"GET /app/ws/export-task/12345678901234567 HTTP/1.1\r\nHost: h\r\n\r\n", "414 "},
        {"PUT / HTTP/1.1\r\nHost: h\r\n\r\n", "405 "},
        {"GET / HTTP/1.1\r\n\r\n", "400 "},
        {"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", "200 "},
    };
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        struct peer *a = world_dial(s, EXPORTWS_CLIENTS);
        peer_say(a, asked[i].request);
        world_settle(s);
        want_got(s, a, asked[i].got);
        want_ended(s, a);
        peer_leave(a);
    }
    world_settle(s);
    want_number(s, "handshakes", s->w->handshakes, 0);
}

/* How often a peer has got a word. */
static void want_words(struct world *s, const struct peer *p, const char *word, unsigned want)
{
    unsigned n = 0;
    size_t size = strlen(word);
    for (const char *at = p->got; *at; at = strchr(at, ' ') + 1)
        n += strncmp(at, word, size) == 0 && at[size] == ' ';
    if (s->strict && n != want)
        world_wrong(s, "peer %d got %u times %s: %s", (int)(p - s->peers), n, word, p->got);
}

/* How the last answer's body begins; ids may be any. */
static void want_body(struct world *s, const struct peer *p, const char *want)
{
    if (s->strict && strncmp(p->body, want, strlen(want)) != 0)
        world_wrong(s, "answered %s", p->body);
}

static void play_push(struct world *s)
{
    struct peer *a = world_join(s, "a"), *b = world_join(s, "a"), *p = world_pusher(s);
    peer_post(p, "a", "m1");
    world_settle(s);
    want_got(s, p, "200 ");
    want_body(s, p, "{\"delivered\":2,\"id\":17673230450000");
    peer_say(p, "GET /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\n\r\n");
    world_settle(s);
    want_got(s, p, "200 200 ");
    want_body(s, p, "{\"sessions\":2,\"held\":0}\n");
    peer_post(p, "a", "m2");
    peer_say(p, "DELETE /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\n\r\n");
    world_settle(s);
    want_got(s, p, "200 200 200 200 ");
    want_got(s, a, "101 m1 m2 close:1000 ");
    want_got(s, b, "101 m1 m2 close:1000 ");
}

static void play_broadcast(struct world *s)
{
    struct peer *a = world_join(s, "a"), *b = world_join(s, "b"), *p = world_pusher(s);
    peer_post(p, "", "b1");
    world_settle(s);
    int reached = INSIDE(exportws_broadcast(s->w, "b2", 2, EXPORTWS_TEXT));
    want_number(s, "reached", (uint64_t)reached, 3);
    peer_post(p, "", "b3");
    world_settle(s);
    want_got(s, p, "200 200 ");
    want_body(s, p, "{\"delivered\":3,\"id\":17673230450000");
    want_got(s, a, "101 b1 b2 b3 ");
    want_got(s, b, "101 b1 b2 b3 ");
    want_got(s, &s->peers[0], "101 b1 b2 b3 ");
}

static void play_hold(struct world *s)
{
    struct peer *p = world_pusher(s);
    peer_post(p, "a", "m1"), peer_post(p, "a", "m2");
    world_settle(s);
    want_got(s, p, "202 202 ");
    want_number(s, "held", s->w->held, 2);
    struct peer *a = world_join(s, "a");
    want_got(s, a, "101 m1 m2 ");
    peer_post(p, "x", "m1");
    world_settle(s);
    want_number(s, "held", s->w->held, 1);
    clock_pass(5000);
    world_settle(s);
    want_number(s, "held", s->w->held, 0);
    want_number(s, "expired", s->w->m->expired, 1);
    want_number(s, "blocks", s->w->blocks_free, s->w->block_count);
}

/* Chunks in pieces, a body in pieces, Expect: 100-continue, and a body that is too long. */
static void play_chunks(struct world *s)
{
    struct peer *a = world_join(s, "a"), *p = world_pusher(s);
    peer_say(p, "POST /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
                "Expect: 100-continue\r\n\r\n1;x=y\r\nm\r");
    world_settle(s);
    want_got(s, p, "100 ");
    peer_say(p, "\n1\r\n1\r\n0");
    world_settle(s);
    peer_say(p, "\r\nTrailer: x\r\n\r\nPOST /app/ws/export-task/a HTTP/1.1\r\nHost: "
                "h\r\nContent-Length: 300\r\n\r\nm2.");
    world_settle(s);
    want_got(s, a, "101 m1 ");
    for (int i = 0; i < 27; i++) peer_say(p, "...........");
    world_settle(s);
    want_got(s, a, "101 m1 m2 ");
    want_got(s, p, "100 200 200 ");
    peer_say(p, "POST /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: "
                "chunked\r\n\r\n2bd\r\n");
    for (int i = 0; i < 64; i++) peer_say(p, "...........");
    world_settle(s);
    want_got(s, p, "100 200 200 413 ");
    want_ended(s, p);
    want_got(s, a, "101 m1 m2 ");
}

static void set_roomy(exportws_options *o)
{
    o->buffer_bytes = 65536;
    o->queue = 16;
}

static void play_pipeline(struct world *s)
{
    struct peer *a = world_join(s, "a"), *p = world_pusher(s);
    peer_say(p,
             "GET /online HTTP/1.1\r\nHost: h\r\n\r\nGET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"
             "POST /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nm1"
             "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\nGET /app/ws/export-task/none HTTP/1.1\r\nHo");
    world_settle(s);
    want_got(s, p, "200 200 200 200 ");
    peer_say(p,
             "st: h\r\n\r\nPOST /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n"
             "Connection: close\r\n\r\nm2");
    world_settle(s);
    want_got(s, p, "200 200 200 200 404 200 ");
    want_ended(s, p);
    want_got(s, a, "101 m1 m2 ");
    peer_leave(p);
    world_settle(s);
    want_number(s, "pushers", s->w->pushers, 0);
}

/* The session's kernel takes little: what does not fit waits. */
static void make_slow(struct world *s, const char *token)
{
    const struct conn *c = world_slot(s, token);
    const int little = 1;
    if (c) __real_setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &little, sizeof little);
}

/* Sends "m1", "m2" and so on, each `size` bytes long, until `waiting` messages wait. Returns how
 * many it sent. */
static int push_until(struct world *s, const char *token, size_t size, uint32_t waiting)
{
    char text[700];
    int i = 0;
    for (const struct conn *c = world_slot(s, token); c && c->queued < waiting && i < 30;
         c = world_slot(s, token)) {
        memset(text, '.', sizeof text);
        int n = snprintf(text, sizeof text, "m%d", ++i);
        text[n] = '.';
        INSIDE(exportws_send(s->w, token, text, size, EXPORTWS_TEXT));
        world_settle(s);
    }
    return i;
}

static void want_counted(struct world *s, struct peer *p, int messages)
{
    char got[PEER_GOT] = "101 ", word[16];
    for (int i = 1; i <= messages; i++) snprintf(word, sizeof word, "m%d ", i), strcat(got, word);
    want_got(s, p, got);
}

static void play_slow(struct world *s)
{
    struct peer *a = world_join(s, "a");
    make_slow(s, "a");
    a->deaf = 1;
    int sent = push_until(s, "a", 300, 2);
    want_number(s, "waiting", s->w->conns[0].queued + s->w->conns[1].queued, 2);
    a->deaf = 0;
    world_settle(s);
    want_counted(s, a, sent);
    want_number(s, "blocks", s->w->blocks_free, s->w->block_count);
}

/* Two of a token wait for the same messages, and one for its pong too: one leaves, one is kicked,
 * half way. */
static void play_slow_pair(struct world *s)
{
    struct peer *a = world_join(s, "a"), *b = world_join(s, "a"), *p = world_pusher(s);
    for (uint32_t i = 0; i < s->w->capacity; i++) {
        const int little = 1;
        const struct conn *c = &s->w->conns[i];
        if (c->state == CONN_OPEN)
            __real_setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &little, sizeof little);
    }
    a->deaf = b->deaf = 1;
    push_until(s, "a", 300, 1);
    peer_frame(b, OP_PING, "x");
    world_settle(s);
    INSIDE(exportws_broadcast(s->w, "b1", 2, EXPORTWS_TEXT));
    peer_leave(a);
    world_settle(s);
    want_number(s, "sessions", s->w->sessions, 2);
    INSIDE(exportws_kick(s->w, "a"));
    want_number(s, "kicked again", (uint64_t)-INSIDE(exportws_kick(s->w, "a")), -EXPORTWS_ABSENT);
    peer_say(p, "GET /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\n\r\n");
    world_settle(s);
    want_got(s, p, "404 "); /* what waits for b is not held, and b is a session no more */
    b->deaf = 0;
    world_settle(s);
    want_number(s, "seats", s->w->seats, 1);
    if (s->strict && !strstr(b->got, "pong b1 close:1000 "))
        world_wrong(s, "kicked too soon: %s", b->got);
}

/* One that never reads fills its queue and is closed, alone; another is given up after
 * write_timeout. */
static void play_too_slow(struct world *s)
{
    struct peer *a = world_join(s, "a"), *b = world_join(s, "b");
    make_slow(s, "a"), make_slow(s, "b");
    a->deaf = b->deaf = 1;
    push_until(s, "a", 300, 4);
    want_number(s, "closed as slow", s->w->m->closed[EXPORTWS_BY_SLOW], 1);
    push_until(s, "b", 300, 1);
    clock_pass(20000);
    world_settle(s);
    want_number(s, "closed as slow", s->w->m->closed[EXPORTWS_BY_SLOW], 2);
    a->deaf = b->deaf = 0;
    world_settle(s);
    if (s->strict && (!strstr(b->got, "close:1013 "))) world_wrong(s, "no 1013: %s", b->got);
    clock_pass(2000);
    world_settle(s);
    want_number(s, "seats", s->w->seats, 1);
}

/* A message in fragments, in segments that end anywhere, with a ping between. */
static void play_fragments(struct world *s)
{
    struct peer *a = world_join(s, "a");
    uint8_t bytes[256];
    size_t n = peer_frame_put(bytes, OP_TEXT, "", 0);
    peer_say_bytes(a, bytes, n);
    world_settle(s);
    n = peer_frame_put(bytes, OP_CONTINUATION, "m", 1);
    n += peer_frame_put(bytes + n, 0x80 | OP_PING, "x", 1);
    n += peer_frame_put(bytes + n, OP_CONTINUATION, "1234", 4);
    n += peer_frame_put(bytes + n, 0x80 | OP_CONTINUATION, "\xc3\xa9", 2);
    n += peer_frame_put(bytes + n, 0x80 | OP_BINARY, "m2", 2);
    for (size_t at = 0; at < n; at += 3) {
        peer_say_bytes(a, bytes + at, smaller(3, n - at));
        world_settle(s);
    }
    want_text(s, "heard", s->heard, "m1234\xc3\xa9 m2 ");
    want_got(s, a, "101 pong ");
    want_number(s, "free inputs", s->w->free_inputs, s->w->input_count);
}

static void set_one_input(exportws_options *o) { o->max_message_bytes = HEAD_MAX; }

/* Input buffers too small for a head: one that is not whole stays in the kernel and is looked at
 * now and then. */
static void play_small_inputs(struct world *s)
{
    struct peer *a = world_dial(s, EXPORTWS_CLIENTS), *p = world_pusher(s);
    peer_say(a, "GET /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\n");
    peer_say(p, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\nPOST /app/ws/export-task/a "
                "HTTP/1.1\r\nHost: h\r\n");
    world_settle(s);
    want_number(s, "waiting", s->w->waiting, 2);
    want_number(s, "free inputs", s->w->free_inputs, s->w->input_count);
    want_got(s, p, "200 ");
    peer_say(a, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    world_settle(s);
    want_got(s, a, "101 ");
    peer_say(p, "Content-Length: 2\r\n\r\nm");
    world_settle(s);
    peer_say(p, "1GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    world_settle(s);
    want_got(s, p, "200 200 200 ");
    want_got(s, a, "101 m1 ");
    want_number(s, "waiting", s->w->waiting, 0);
}

/* The one input buffer is in use: others are only peeked at, and wait when they are not whole. */
static void play_no_input(struct world *s)
{
    uint8_t bytes[64];
    struct peer *a = world_join(s, "a"), *p = world_pusher(s), *b = world_dial(s, EXPORTWS_CLIENTS);
    peer_say(b, "GET /app/ws/export-task/b HTTP/1.1\r\n");
    world_settle(s);
    want_number(s, "free inputs", s->w->free_inputs, 0);
    peer_frame(a, OP_TEXT, "m1"), peer_post(p, "a", "m1");
    world_settle(s);
    want_text(s, "heard", s->heard, "m1 ");
    want_got(s, a, "101 m1 ");
    struct peer *c = world_join(s, "c");
    want_got(s, c, "101 ");
    size_t n = peer_frame_put(bytes, 0x80 | OP_TEXT, "m2", 2);
    n += peer_frame_put(bytes + n, OP_TEXT, "m3", 2);
    peer_say_bytes(a, bytes, n);
    peer_say(p, "GET /online HTTP/1.1\r\nHost: h\r\n\r\nGET /onl");
    world_settle(s);
    want_text(s, "heard", s->heard, "m1 m2 ");
    want_number(s, "waiting", s->w->waiting, 2);
    peer_say(b,
             "Host: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    world_settle(s);
    want_got(s, b, "101 ");
    n = peer_frame_put(bytes, 0x80 | OP_CONTINUATION, "!", 1);
    peer_say_bytes(a, bytes, n);
    peer_say(p, "ine HTTP/1.1\r\nHost: h\r\n\r\n");
    world_settle(s);
    want_text(s, "heard", s->heard, "m1 m2 m3! ");
    want_got(s, p, "200 200 200 ");
    want_number(s, "free inputs", s->w->free_inputs, s->w->input_count);
}

/* Whoever keeps the input buffer for handshake_timeout gives way. */
static void play_input_gives_way(struct world *s)
{
    uint8_t bytes[64];
    struct peer *a = world_join(s, "a"), *b = world_dial(s, EXPORTWS_CLIENTS);
    peer_say(b, "GET /app/ws/export-task/b HTTP/1.1\r\n");
    world_settle(s);
    size_t n = peer_frame_put(bytes, OP_TEXT, "m1", 2);
    peer_say_bytes(a, bytes, n);
    world_settle(s);
    want_number(s, "waiting", s->w->waiting, 1);
    clock_pass(10000);
    world_settle(s);
    want_got(s, b, "408 ");
    struct peer *p = world_pusher(s);
    peer_say(p, "GET /onl");
    world_settle(s);
    want_number(s, "waiting", s->w->waiting, 1);
    clock_pass(10000);
    world_settle(s);
    want_got(s, a, "101 close:1008 ");
    want_got(s, p, "408 ");
}

static void play_heartbeat(struct world *s)
{
    struct peer *a = world_join(s, "a"), *b = world_join(s, "b");
    peer_frame(a, OP_TEXT, "HEART-BEAT");
    world_settle(s);
    want_got(s, a, "101 HEART-BEAT ");
    b->mute = 1;
    clock_pass(25000);
    world_settle(s);
    want_got(s, a, "101 HEART-BEAT ping ");
    want_got(s, b, "101 ping ");
    clock_pass(10000);
    world_settle(s);
    want_got(s, b, "101 ping close:1008 ");
    clock_pass(2000);
    world_settle(s);
    want_ended(s, b);
    want_got(s, a, "101 HEART-BEAT ping ");
    want_number(s, "closed for silence", s->w->m->closed[EXPORTWS_BY_TIMEOUT], 1);
    want_number(s, "seats", s->w->seats, 2);
}

/* Requests that are not complete in time, at both doors, and a pusher that is idle for long. */
static void play_late_requests(struct world *s)
{
    struct peer *a = world_dial(s, EXPORTWS_CLIENTS), *p = world_pusher(s), *q = world_pusher(s);
    peer_say(p, "POST /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nm1");
    peer_say(q, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    world_settle(s);
    clock_pass(10000);
    world_settle(s);
    want_got(s, a, "408 ");
    want_got(s, p, "408 ");
    want_ended(s, a), want_ended(s, p);
    clock_pass(2000);
    world_settle(s);
    want_number(s, "handshakes", s->w->handshakes, 0);
    want_number(s, "pushers", s->w->pushers, 1);
    clock_pass(25000);
    world_settle(s);
    clock_pass(23000);
    world_settle(s);
    want_got(s, q, "200 ");
    want_ended(s, q);
}

/* A session that does not answer its close is dropped after close_timeout. */
static void play_mute(struct world *s)
{
    struct peer *a = world_join(s, "a");
    a->mute = 1;
    INSIDE(exportws_kick(s->w, "a"));
    world_settle(s);
    want_got(s, a, "101 close:1000 ");
    want_number(s, "seats", s->w->seats, 2);
    clock_pass(2000);
    world_settle(s);
    want_ended(s, a);
    want_number(s, "seats", s->w->seats, 1);
}

static void play_drain(struct world *s)
{
    struct peer *a = world_join(s, "a"), *b = world_join(s, "b"), *p = world_pusher(s),
                *d = world_join(s, "d");
    b->mute = d->mute = 1;
    INSIDE(exportws_kick(s->w, "d"));
    INSIDE(exportws_send(s->w, "x", "m1", 2, EXPORTWS_TEXT));
    INSIDE(exportws_post(s->w, "a", "late", 4, EXPORTWS_TEXT));
    for (int i = 0; i < 2; i++) {
        faults.inside = 1;
        exportws_stop(s->w);
        faults.inside = 0;
        world_settle(s);
    }
    want_number(s, "stopping", s->w->stopping, 1);
    want_number(s, "another post", (uint64_t)-exportws_post(s->w, "a", "later", 5, EXPORTWS_TEXT),
                -EXPORTWS_GONE);
    want_number(s, "what became of the post",
                s->w->m->posts_refused + (strstr(a->got, "late ") != NULL), 1);
    want_words(s, a, "close:1001", 1);
    want_got(s, b, "101 close:1001 ");
    want_got(s, &s->peers[0], "101 close:1001 ");
    peer_say(p, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"), peer_post(p, "a", "m1");
    struct peer *c = world_join(s, "c");
    world_settle(s);
    want_got(s, p, "503 503 ");
    want_got(s, c, "503 ");
    want_number(s, "gone", (uint64_t)s->gone, 0);
    clock_pass(5000);
    world_settle(s);
    want_number(s, "gone", (uint64_t)s->gone, 1);
}

static void play_post(struct world *s)
{
    struct peer *a = world_join(s, "a");
    want_number(s, "post", (uint64_t)INSIDE(exportws_post(s->w, "a", "m1", 2, EXPORTWS_TEXT)), 0);
    want_number(s, "post", (uint64_t)INSIDE(exportws_post(s->w, NULL, "b1", 2, EXPORTWS_TEXT)), 0);
    world_settle(s);
    want_number(s, "post", (uint64_t)INSIDE(exportws_post(s->w, "x", "m2", 2, EXPORTWS_TEXT)), 0);
    world_settle(s);
    want_number(s, "post", (uint64_t)INSIDE(exportws_post(s->w, "a", "m2", 2, EXPORTWS_TEXT)), 0);
    world_settle(s);
    want_got(s, a, "101 m1 b1 m2 ");
    want_got(s, &s->peers[0], "101 b1 ");
    want_number(s, "held", s->w->held, 1);
    want_number(s, "ring", s->w->ring.used, 0);
}

static void set_per_address(exportws_options *o) { o->per_address = 4; }

/* Past per_token the oldest goes; past per_address and capacity the newcomer. */
static void play_bounds(struct world *s)
{
    struct peer *a = world_join(s, "a"), *b = world_join(s, "a"), *c = world_join(s, "a");
    want_got(s, a, "101 close:4001 ");
    want_got(s, b, "101 ");
    want_got(s, c, "101 ");
    peer_leave(a);
    world_settle(s);
    struct peer *d = world_join(s, "d"), *e = world_join(s, "e");
    want_got(s, d, "101 ");
    want_got(s, e, s->o.per_address > 0 ? "429 " : "503 ");
    peer_leave(d);
    world_settle(s);
    struct peer *f = world_join(s, "f");
    want_got(s, f, "101 ");
}

/* Handshakes and pushers past their number. */
static void play_crowd(struct world *s)
{
    struct peer *silent[4], *p[3];
    for (int i = 0; i < 3; i++) silent[i] = world_dial(s, EXPORTWS_CLIENTS), world_settle(s);
    want_number(s, "handshakes", s->w->handshakes, 3);
    struct peer *a = world_join(s, "a");
    want_got(s, a, "101 ");
    want_got(s, silent[0], "408 ");
    want_ended(s, silent[0]);
    for (int i = 0; i < 3; i++) p[i] = world_pusher(s), world_settle(s);
    want_got(s, p[2], "503 ");
    want_ended(s, p[2]);
    peer_post(p[0], "a", "m1");
    world_settle(s);
    want_got(s, a, "101 m1 ");
}

/* Peers that go without a word: with a FIN, in the midst of a frame, with a reset. */
static void play_vanish(struct world *s)
{
    struct peer *a = world_join(s, "a"), *b = world_join(s, "b"), *c = world_join(s, "c");
    struct peer *p = world_pusher(s), *d = world_dial(s, EXPORTWS_CLIENTS);
    peer_say_bytes(b, "\x81\x85....ab", 8);
    peer_say(p, "POST /app/ws/export-task/c HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nm1");
    peer_say(d, "GET ");
    world_settle(s);
    c->deaf = 1;
    INSIDE(
        exportws_send(s->w, "c", "m1", 2, EXPORTWS_TEXT)); /* unread bytes make its end a reset */
    peer_leave(a), peer_leave(b), peer_leave(c), peer_leave(d), peer_leave(p);
    INSIDE(exportws_send(s->w, "a", "m1", 2, EXPORTWS_TEXT));
    INSIDE(exportws_broadcast(s->w, "b1", 2, EXPORTWS_TEXT));
    world_settle(s);
    want_got(s, &s->peers[0], "101 b1 ");
    want_number(s, "seats", s->w->seats, 1);
    want_number(s, "handshakes", s->w->handshakes, 0);
    want_number(s, "pushers", s->w->pushers, 0);
    want_number(s, "free inputs", s->w->free_inputs, s->w->input_count);
}

static void set_three_pushers(exportws_options *o) { o->pushers = 3; }

/* Holds messages for "x" until `left` blocks are free for what is no draft. */
static void fill_buffer(struct world *s, uint32_t left)
{
    char text[600];
    memset(text, '.', sizeof text);
    for (int i = 0; i < 99 && s->w->blocks_free > s->w->reserve + left; i++) {
        size_t n = s->w->blocks_free > s->w->reserve + left + 3 ? sizeof text : 0;
        exportws_send(s->w, "x", text, n, EXPORTWS_TEXT);
    }
    want_number(s, "free blocks", s->w->blocks_free, s->w->reserve + left);
}

/* No room in the buffer: to hold, to draft, and for what kernels do not take. */
static void play_no_room(struct world *s)
{
    static const char head[] =
        "POST /app/ws/export-task/a HTTP/1.1\r\nHost: h\r\nContent-Length: 700\r\n\r\n";
    char text[700];
    struct peer *p = world_pusher(s), *q = world_pusher(s), *r = world_pusher(s),
                *b = world_join(s, "b");
    memset(text, '.', sizeof text);
    fill_buffer(s, 0);
    peer_post(p, "a", "m1");
    peer_say(q, head);
    peer_say_bytes(q, text, 600);
    world_settle(s);
    want_got(s, p, "503 ");
    peer_say(p, head);
    peer_say_bytes(p, text, 100);
    world_settle(s);
    want_number(s, "free blocks", s->w->blocks_free, 0);
    peer_say(r, head);
    world_settle(s);
    peer_say_bytes(p, text, 600), peer_say_bytes(q, text, 100), peer_say_bytes(r, text, 700);
    world_settle(s);
    want_got(s, p, "503 503 ");
    want_got(s, q, "503 ");
    want_got(s, r, "503 ");
    peer_post(p, "innocent", "m1"); /* what can go straight out needs no room */
    peer_frame(b, OP_PING, "x");
    world_settle(s);
    want_got(s, p, "503 503 200 ");
    want_got(s, &s->peers[0], "101 m1 ");
    want_got(s, b, "101 pong ");
    INSIDE(exportws_kick(s->w, "x"));
    fill_buffer(s, 1);
    peer_say(q, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    memcpy(text, "m2", 2);
    INSIDE(exportws_send(s->w, "b", text, sizeof text, EXPORTWS_TEXT));
    world_settle(s);
    want_got(s, q, "503 200 ");
    want_got(s, b, "101 pong m2 ");
    INSIDE(exportws_kick(s->w, "x"));
    want_number(s, "blocks", s->w->blocks_free, s->w->block_count);
}

/* Much at once for one session each: messages, broadcasts, pongs, replies. What is sent in part,
 * when the rest has to wait and the queue is short, must still be whole frames for the peer. */
static void play_burst(struct world *s)
{
    uint8_t bytes[256];
    char text[8];
    size_t n = 0;
    struct peer *a = world_join(s, "a"), *b = world_join(s, "b"), *c = world_join(s, "c");
    for (int i = 1; i <= 6; i++) {
        snprintf(text, sizeof text, "m%d", i);
        INSIDE(exportws_send(s->w, "a", text, 2, EXPORTWS_TEXT));
    }
    for (int i = 1; i <= 6; i++) n += peer_frame_put(bytes + n, 0x80 | OP_PING, "x", 1);
    peer_say_bytes(b, bytes, n);
    n = 0;
    for (int i = 1; i <= 3; i++) n += peer_frame_put(bytes + n, 0x80 | OP_TEXT, "echo", 4);
    for (int i = 1; i <= 3; i++) n += peer_frame_put(bytes + n, 0x80 | OP_PING, "x", 1);
    peer_say_bytes(c, bytes, n);
    world_turn(s);
    for (int i = 1; i <= 5; i++) {
        snprintf(text, sizeof text, "b%d", i);
        INSIDE(exportws_broadcast(s->w, text, 2, EXPORTWS_TEXT));
    }
    world_settle(s);
    want_got(s, a, "101 m1 m2 m3 m4 m5 m6 b1 b2 b3 b4 b5 ");
    want_words(s, b, "pong", 6), want_words(s, b, "b5", 1);
    want_words(s, c, "echo", 3), want_words(s, c, "pong", 3), want_words(s, c, "b5", 1);
}

/* A message for a session whose 101 has just been sent, or not quite. */
static void play_burst_at_once(struct world *s)
{
    struct peer *a = world_dial(s, EXPORTWS_CLIENTS);
    peer_ask(a, "a");
    world_turn(s);
    for (int i = 1; i <= 5; i++) INSIDE(exportws_send(s->w, "a", "x", 1, EXPORTWS_TEXT));
    world_settle(s);
    want_got(s, a, "101 x x x x x ");
}

static const char metrics_asked[] = "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n";

/* Pushers that ask for much and do not read: they are not read meanwhile; then they get all, and
 * one is let go. */
static void play_slow_pushers(struct world *s)
{
    const int little = 1;
    struct peer *p = world_pusher(s), *q = world_pusher(s);
    peer_say(p, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"),
        peer_say(q, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    world_settle(s);
    want_got(s, p, "200 ");
    for (uint32_t i = s->w->pushers_at; i < s->w->conns_end; i++)
        if (s->w->conns[i].state == CONN_PUSH)
            __real_setsockopt(s->w->conns[i].fd, SOL_SOCKET, SO_SNDBUF, &little, sizeof little);
    p->deaf = q->deaf = 1;
    peer_say(p, metrics_asked);
    peer_say(q, "GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    world_settle(s);
    want_number(s, "blocked", s->w->blocks_free < s->w->block_count, 1);
    peer_say(p, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"), peer_say(q, "more");
    world_settle(s);
    p->deaf = q->deaf = 0;
    for (int i = 0; i < 6; i++) peer_say(q, "and more"), world_turn(s);
    world_settle(s);
    want_got(s, p, "200 200 200 ");
    want_got(s, q, "200 200 ");
    want_ended(s, q);
}

/* In one turn a session's kernel has room again, and another message for it finds its queue full.
 */
static void play_relief(struct world *s)
{
    struct peer *a = world_join(s, "a"), *b = world_join(s, "b");
    make_slow(s, "b");
    b->deaf = 1;
    push_until(s, "b", 300, 3);
    b->deaf = 0;
    world_pump(s);
    peer_frame(a, OP_TEXT, "push");
    world_settle(s);
    want_text(s, "heard", s->heard, "push ");
    if (s->strict && !strstr(b->got, "close:1013 "))
        world_wrong(s, "not closed as slow: %s", b->got);
    want_number(s, "sessions", s->w->sessions, 2);
}

static void set_three_of_a_token(exportws_options *o)
{
    o->per_token = 3;
    o->history = 0;
}

/* Whoever comes while others of the token are slow gets what nobody has got, and only that. */
static void play_beside_slow(struct world *s)
{
    struct peer *a = world_join(s, "a");
    make_slow(s, "a");
    a->deaf = 1;
    int sent = push_until(s, "a", 300, 2);
    struct peer *b = world_join(s, "a");
    if (s->strict && b->got[0] != '1') world_wrong(s, "no 101: %s", b->got);
    struct peer *c = world_join(s, "a");
    want_got(s, c, "101 ");
    a->deaf = 0;
    world_settle(s);
    want_counted(s, a, sent);
    want_number(s, "blocks", s->w->blocks_free, s->w->block_count);
}

/* Refused clients and pushers, and a session, that linger: the oldest client gives way; a pusher
 * past the spare slots is told so and gone. */
static void play_crowd_lingers(struct world *s)
{
    enum { PUSHERS = 2 + PUSHERS_SPARE };
    struct peer *a = world_join(s, "a"), *p[PUSHERS + 1], *refused[4];
    a->mute = 1;
    INSIDE(exportws_kick(s->w, "a"));
    for (int i = 0; i <= PUSHERS; i++) {
        p[i] = world_pusher(s);
        world_settle(s);
    }
    want_got(s, p[2], "503 ");
    want_got(s, p[PUSHERS - 1], "503 ");
    want_got(s, p[PUSHERS], "503 ");
    want_ended(s, p[PUSHERS]);
    for (int i = 0; i < 3; i++) {
        refused[i] = world_dial(s, EXPORTWS_CLIENTS);
        peer_say(refused[i], "GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n");
        world_settle(s);
        want_got(s, refused[i], "404 ");
    }
    want_number(s, "handshakes", s->w->handshakes, 3);
    refused[3] = world_join(s, "b");
    want_got(s, refused[3], "101 ");
    want_number(s, "handshakes", s->w->handshakes, 2);
}

static void set_no_hold(exportws_options *o) { o->hold_ms = 0; }

static void set_no_history(exportws_options *o) { o->history = 0; }

/* Without holding, what waits for a session goes with it. */
static void play_no_hold(struct world *s)
{
    struct peer *p = world_pusher(s), *a = world_join(s, "a");
    peer_post(p, "x", "m1");
    world_settle(s);
    want_got(s, p, "404 ");
    make_slow(s, "a");
    a->deaf = 1;
    push_until(s, "a", 300, 2);
    peer_leave(a);
    world_settle(s);
    want_number(s, "blocks", s->w->blocks_free, s->w->block_count);
    want_number(s, "seats", s->w->seats, 1);
}

/* Sessions that are swept, not polled, as if they were hundreds. */
static void make_cold(struct world *s)
{
    struct exportws *w = s->w;
    s->tick_ms = 1;
    w->cool_due_ms = UINT64_MAX;
    for (uint32_t at = w->hot; at-- > 0;) {
        if (w->owners[at] >= w->capacity) continue;
        const struct conn *c = &w->conns[w->owners[at]];
        if (c->state == CONN_OPEN && c->queued == 0) poll_cool(w, at);
    }
}

static void play_cold(struct world *s)
{
    struct peer *a = world_join(s, "a"), *b = world_join(s, "b"), *c = world_join(s, "c");
    make_cold(s);
    want_number(s, "cold", s->w->poll_count - s->w->hot, 4);
    peer_frame(b, OP_TEXT, "echo1");
    world_settle(s);
    want_got(s, b, "101 echo1 ");
    INSIDE(exportws_send(s->w, "c", "m1", 2, EXPORTWS_TEXT));
    peer_leave(a);
    struct peer *p = world_pusher(s);
    peer_say(p, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    world_settle(s);
    want_got(s, p, "200 ");
    peer_leave(p);
    world_settle(s);
    want_got(s, c, "101 m1 ");
    want_number(s, "seats", s->w->seats, 3);
    make_cold(s);
    make_slow(s, "b");
    b->deaf = 1;
    push_until(s, "b", 300, 1);
    INSIDE(exportws_broadcast(s->w, "b1", 2, EXPORTWS_TEXT));
    peer_frame(c, OP_TEXT, "m2");
    world_settle(s);
    want_text(s, "heard", s->heard, "echo1 m2 ");
    want_got(s, c, "101 m1 b1 ");
    want_got(s, &s->peers[0], "101 b1 ");
    s->w->cool_due_ms = 0;
    b->deaf = 0;
    world_settle(s);
    want_number(s, "cold", s->w->poll_count - s->w->hot, 0);
}

static void set_heartbeat_reply(exportws_options *o) { o->heartbeat_reply = 1; }

/* Without callbacks the log tells what clients say. */
static void set_log_only(exportws_options *o)
{
    o->on_open = NULL, o->on_message = NULL, o->on_close = NULL;
    o->log_level = EXPORTWS_LOG_INFO;
}

static void set_silent(exportws_options *o)
{
    set_log_only(o);
    o->log_level = EXPORTWS_LOG_ERROR;
}

static void play_unheard(struct world *s)
{
    struct peer *a = world_join(s, "a-long-token");
    peer_frame(a, OP_TEXT, "a message that is too long for the log: the end of it is cut"),
        peer_frame(a, OP_BINARY, "m2");
    peer_frame(a, OP_PING, "");
    world_settle(s);
    want_got(s, a, "101 pong ");
    want_number(s, "received", s->w->m->received, 2);
}

static const struct scenario {
    const char *name;
    void (*play)(struct world *);
    void (*set)(exportws_options *);
    int doors, by_host;
    int ends; /* in the end the server has stopped */
    enum {
        NARROW = 1, /* a kernel that takes or gives single bytes for ever does harm here */
        CURT = 2,   /* what a kernel does not take at once is not kept here */
        LOOSE = 4,  /* what comes later than it could makes a difference here */
        PLAIN = 8   /* played without faults only: another one like it has them */
    } frail;
} scenarios[] = {
    {"session", play_session, NULL, DOOR_UNIX, 0, 0, 0},
    {"session_over_tcp", play_session, NULL, DOOR_TCP, 0, 0, 0},
    {"session_in_a_hosts_loop", play_session, NULL, DOOR_UNIX, 1, 0, 0},
    {"ended_by_server", play_ended_by_server, NULL, DOOR_UNIX, 0, 0, 0},
    {"last_words", play_last_words, NULL, DOOR_UNIX, 0, 0, CURT},
    {"refusals", play_refusals, NULL, DOOR_UNIX, 0, 0, 0},
    {"push", play_push, NULL, DOOR_UNIX, 0, 0, 0},
    {"push_over_tcp", play_push, NULL, DOOR_TCP, 0, 0, 0},
    {"broadcast", play_broadcast, NULL, DOOR_UNIX, 0, 0, 0},
    {"hold", play_hold, NULL, DOOR_UNIX, 0, 0, 0},
    {"chunks", play_chunks, NULL, DOOR_UNIX, 0, 0, 0},
    {"pipeline", play_pipeline, set_roomy, DOOR_UNIX, 0, 0, NARROW},
    {"slow", play_slow, set_no_history, DOOR_UNIX, 0, 0, NARROW},
    {"slow_pair", play_slow_pair, set_roomy, DOOR_UNIX, 0, 0, NARROW},
    {"too_slow", play_too_slow, NULL, DOOR_UNIX, 0, 0, NARROW},
    {"fragments", play_fragments, NULL, DOOR_UNIX, 0, 0, 0},
    {"small_inputs", play_small_inputs, NULL, DOOR_UNIX, 0, 0, NARROW},
    {"no_input", play_no_input, set_one_input, DOOR_UNIX, 0, 0, NARROW},
    {"input_gives_way", play_input_gives_way, set_one_input, DOOR_UNIX, 0, 0, NARROW},
    {"heartbeat", play_heartbeat, set_heartbeat_reply, DOOR_UNIX, 0, 0, 0},
    {"late_requests", play_late_requests, NULL, DOOR_UNIX, 0, 0, 0},
    {"mute", play_mute, NULL, DOOR_UNIX, 0, 0, 0},
    {"drain", play_drain, NULL, DOOR_UNIX, 0, 1, 0},
    {"post", play_post, NULL, DOOR_UNIX, 0, 0, 0},
    {"drain_silently", play_drain, set_silent, DOOR_UNIX, 0, 1, PLAIN},
    {"hold_silently", play_hold, set_silent, DOOR_UNIX, 0, 0, PLAIN},
    {"unheard", play_unheard, set_log_only, DOOR_UNIX, 0, 0, 0},
    {"bounds", play_bounds, NULL, DOOR_UNIX, 0, 0, 0},
    {"bounds_per_address", play_bounds, set_per_address, DOOR_UNIX, 0, 0, 0},
    {"crowd", play_crowd, NULL, DOOR_UNIX, 0, 0, CURT},
    {"vanish", play_vanish, NULL, DOOR_UNIX, 0, 0, 0},
    {"no_room", play_no_room, set_three_pushers, DOOR_UNIX, 0, 0, CURT},
    {"burst", play_burst, NULL, DOOR_UNIX, 0, 0, CURT},
    {"burst_with_room", play_burst, set_roomy, DOOR_UNIX, 0, 0, NARROW},
    {"burst_at_once", play_burst_at_once, NULL, DOOR_UNIX, 0, 0, LOOSE},
    {"slow_pushers", play_slow_pushers, set_roomy, DOOR_UNIX, 0, 0, NARROW},
    {"relief", play_relief, NULL, DOOR_UNIX, 0, 0, LOOSE},
    {"beside_slow", play_beside_slow, set_three_of_a_token, DOOR_UNIX, 0, 0, NARROW},
    {"crowd_lingers", play_crowd_lingers, NULL, DOOR_UNIX, 0, 0, CURT},
    {"cold", play_cold, NULL, DOOR_UNIX, 0, 0, NARROW},
    {"no_hold", play_no_hold, set_no_hold, DOOR_UNIX, 0, 0, NARROW},
};

/* ===== One run ===== */

/* Messages "m1", "m2" (and "b1", "b2") come in order and once. */
static void want_order(struct world *s, const struct peer *p)
{
    long last[2] = {0, 0};
    for (const char *word = p->got; *word; word = strchr(word, ' ') + 1) {
        if ((*word != 'm' && *word != 'b') || !ascii_digit((uint8_t)word[1])) continue;
        long number = strtol(word + 1, NULL, 10);
        if (number <= last[*word == 'b']) world_wrong(s, "out of order, or twice: %s", p->got);
        last[*word == 'b'] = number;
    }
}

/* The session that has nothing to do with it is there and gets what is sent. */
static void want_innocent(struct world *s, int fd)
{
    struct peer *p = &s->peers[0];
    char want[PEER_GOT + 8];
    if (faults.hit[fd]) return;
    if (p->ended || p->closing || !world_slot(s, "innocent")) {
        world_wrong(s, "the innocent session was closed: %s", p->got);
        return;
    }
    world_settle(s);
    snprintf(want, sizeof want, "%safter ", p->got);
    if (exportws_send(s->w, "innocent", "after", 5, EXPORTWS_TEXT) != 1)
        world_wrong(s, "the innocent was not reached");
    world_settle(s);
    want_got(s, p, want);
}

/* Somebody who comes afterwards is let in and gets a message. */
static void want_newcomer(struct world *s)
{
    struct peer *p = world_join(s, "new");
    want_got(s, p, "101 ");
    if (exportws_send(s->w, "new", "m1", 2, EXPORTWS_TEXT) != 1)
        world_wrong(s, "the newcomer was not reached");
    world_settle(s);
    want_got(s, p, "101 m1 ");
    peer_leave(p);
    world_settle(s);
}

static void want_nothing_left(struct world *s, uint32_t sessions)
{
    unsigned rounds = 0;
    const char *wrong;
    while ((wrong = audit_left(s->w, sessions)) != NULL && world_wait(s, &rounds)) {}
    if (wrong) world_wrong(s, "%s", wrong);
}

/* The fault is over: all but the innocent leave, time passes, and everything is as in the
 * beginning. */
static void run_verify(struct world *s, int innocent_fd)
{
    faults.plan.times = 0;
    for (size_t i = 0; i < s->peer_count; i++) {
        const struct peer *p = &s->peers[i];
        if (p->broken) world_wrong(s, "peer %d: %s: %s", (int)i, p->broken, p->got);
        want_order(s, p);
    }
    for (size_t i = 1; i < s->peer_count; i++) peer_leave(&s->peers[i]);
    s->peer_count = 1;
    s->strict = 1;
    world_settle(s);
    for (int i = 0; i < 2 && !s->gone; i++)
        clock_pass(5000), world_settle(s); /* held messages expire */
    if (s->gone) return;
    want_innocent(s, innocent_fd);
    want_nothing_left(s, faults.hit[innocent_fd] ? s->w->sessions : 1);
    want_newcomer(s);
    peer_leave(&s->peers[0]);
    world_settle(s);
    want_nothing_left(s, 0);
    want_number(s, "on_close", s->closes, s->opens);
    want_number(s, "descriptors", fds_open(), s->fds_idle);
}

/* Plays a scenario with one fault. How often each call was used stays in `faults`. */
static void run(struct world *s, const struct scenario *scenario, const struct fault *plan,
                enum harm harm, const char *name)
{
    faults_clear();
    world_init(s, name);
    if (scenario->set) scenario->set(&s->o);
    s->doors = scenario->doors;
    s->by_host = scenario->by_host;
    world_doors(s);
    world_start(s);
    world_join(s, "innocent");
    const struct conn *innocent = world_slot(s, "innocent");
    assert_non_null(innocent);
    int fd = innocent->fd;
    /* who can't poll for a minute can't hear anybody: nobody is innocent then */
    faults.hit[fd] = plan->call == CALL_POLL && plan->times > 1;
    memset(faults.uses, 0, sizeof faults.uses);
    faults.plan = *plan;
    s->spins = 0;
    s->strict = harm != HARM;
    scenario->play(s);
    if (harm != HARM && s->spins > 4) world_wrong(s, "%u turns in vain", s->spins);
    if (scenario->ends && !s->gone && harm != HARM) world_wrong(s, "the server did not stop");
    run_verify(s, fd);
    world_end(s);
}

/* ===== All runs of a scenario ===== */

enum { SHOWN = 12 }; /* failures; then the scenario is given up */

struct tally {
    unsigned runs, failed;
};

/* What a row allows here. */
static enum harm harm_of(const struct scenario *scenario, const struct row *row,
                         const struct fault *plan)
{
    if (scenario->frail & LOOSE) return HARM;
    if ((scenario->frail & CURT) && plan->call == CALL_SEND) return HARM;
    if (plan->times == 1) return row->harm == NO_HARM ? NO_HARM_ONCE : row->harm;
    if (row->harm != NO_HARM) return HARM;
    return row->error < 0 && scenario->frail ? HARM : NO_HARM;
}

static void run_row(struct world *s, const struct scenario *scenario, const struct row *row,
                    struct fault plan, struct tally *t)
{
    char name[96];
    const char *only = getenv("FAULTS_ONLY");
    int start = snprintf(name, sizeof name, "%s ", scenario->name);
    snprintf(name + start, sizeof name - (size_t)start, "%s %u %s %s", fault_names[row->call],
             plan.n, fault_error_name(row->error), plan.times == 1 ? "once" : "ever");
    if (only && strcmp(name + start, only) != 0) return;
    if (getenv("FAULTS_SHOW")) fprintf(stderr, "%s\n", name);
    t->runs++;
    run(s, scenario, &plan, harm_of(scenario, row, &plan), name);
    if (s->wrong[0] == '\0') return;
    t->failed++;
    world_patience_ms = 300; /* it is no matter of time, as it seems */
    fprintf(stderr, "%s: %s\n", name, s->wrong);
}

/* What "ever" is: to try an interrupted call again is right, and a day has no more hours. */
static unsigned times_ever(int error)
{
    return error == EINTR ? 100 : error == FAULT_HOUR ? 24 : UINT_MAX;
}

static void run_all(void **state)
{
    static struct world s;
    const struct scenario *scenario = *state;
    const struct fault none = {0, 0, 0, 0};
    unsigned uses[CALLS];
    struct tally t = {0, 0};
    run(&s, scenario, &none, NO_HARM, scenario->name);
    if (s.wrong[0] != '\0') fail_msg("%s, without a fault: %s", scenario->name, s.wrong);
    memcpy(uses, faults.uses, sizeof uses);
    if (scenario->frail & PLAIN) return;
    for (const struct row *row = rows; row < rows + ROWS; row++)
        for (unsigned n = 1; n <= uses[row->call] && t.failed < SHOWN; n++) {
            if (row->error != FAULT_STILL)
                run_row(&s, scenario, row, (struct fault){row->call, n, 1, row->error}, &t);
            run_row(&s, scenario, row,
                    (struct fault){row->call, n, times_ever(row->error), row->error}, &t);
        }
    world_patience_ms = 10000;
    if (t.failed > 0) fail_msg("%s: %u of %u runs failed", scenario->name, t.failed, t.runs);
}

/* ===== Failing for ever must not keep the loop busy ===== */

/* Turns with events, and how often a call was made, in 100 turns during which no time passes. */
static unsigned busy_turns(struct world *s)
{
    unsigned busy = 0;
    for (int turn = 0; turn < 100; turn++) busy += INSIDE(exportws_step(s->w, -1)) > 0;
    return busy;
}

static void accept_without_descriptors_does_not_spin(void **state)
{
    static const int errors[] = {EMFILE, ENFILE, ENOBUFS, ENOMEM};
    static struct world s;
    (void)state;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        faults_clear();
        world_init(&s, fault_error_name(errors[i]));
        world_doors(&s);
        world_start(&s);
        struct peer *a = world_dial(&s, EXPORTWS_CLIENTS), *p = world_pusher(&s);
        peer_ask(a, "a"), peer_post(p, "x", "m1");
        memset(faults.uses, 0, sizeof faults.uses);
        faults.plan = (struct fault){CALL_ACCEPT, 1, UINT_MAX, errors[i]};
        assert_int_equal(busy_turns(&s), 1);
        assert_int_equal(faults.uses[CALL_ACCEPT], 1);
        faults.polled = 0;
        assert_int_equal(INSIDE(exportws_step(s.w, -1)), 0);
        assert_int_equal(faults.poll_timeout, 1000);
        clock_pass(1000); /* then it looks again, once */
        assert_int_equal(busy_turns(&s), 1);
        assert_int_equal(faults.uses[CALL_ACCEPT], 2);
        faults.plan.times = 0;
        clock_pass(1000);
        world_settle(&s);
        want_got(&s, a, "101 ");
        want_got(&s, p, "202 ");
        world_end(&s);
        if (s.wrong[0] != '\0') fail_msg("%s: %s", s.name, s.wrong);
    }
}

/* A descriptor of ours that is closed is a reason to look again at once. */
static void accept_goes_on_when_a_descriptor_is_freed(void **state)
{
    static struct world s;
    (void)state;
    faults_clear();
    world_init(&s, "freed");
    world_doors(&s);
    s.o.push = NULL;
    world_start(&s);
    struct peer *a = world_join(&s, "a"), *b = world_dial(&s, EXPORTWS_CLIENTS);
    peer_ask(b, "b");
    s.strict = 0; /* the door is not waited for */
    faults.uses[CALL_ACCEPT] = 0;
    faults.plan = (struct fault){CALL_ACCEPT, 1, 1, EMFILE};
    world_settle(&s);
    assert_int_equal(s.w->accept_paused, 1);
    peer_leave(a);
    world_settle(&s);
    assert_string_equal(b->got, "101 ");
    world_end(&s);
    if (s.wrong[0] != '\0') fail_msg("%s", s.wrong);
}

/* A long queue is sent in pieces, so that one session does not hold up all others; nothing of it is
 * lost. */
static void long_queue_goes_out_in_turns(void **state)
{
    static struct world s;
    (void)state;
    faults_clear();
    world_init(&s, "long queue");
    s.o.queue = 200, s.o.buffer_bytes = 1 << 18, s.o.max_push_bytes = 5000;
    world_doors(&s);
    world_start(&s);
    struct peer *a = world_join(&s, "a");
    faults.plan = (struct fault){CALL_SEND, faults.uses[CALL_SEND] + 1, 1, EAGAIN};
    for (int i = 0; i < 150; i++)
        assert_int_equal(INSIDE(exportws_send(s.w, "a", "x", 1, EXPORTWS_TEXT)), 1);
    unsigned before = faults.uses[CALL_SEND];
    INSIDE(exportws_step(s.w, 0));
    assert_int_equal(faults.uses[CALL_SEND] - before, 64);
    world_settle(&s);
    want_words(&s, a, "x", 150);
    world_end(&s);
    if (s.wrong[0] != '\0') fail_msg("%s", s.wrong);
}

/* A reply that there is no room to keep is refused, and the session is as before; but when the
 * kernel took a part of it, the rest can't be sent any more. */
static void reply_without_room_is_refused(void **state)
{
    static struct world s;
    (void)state;
    faults_clear();
    world_init(&s, "reply");
    world_doors(&s);
    world_start(&s);
    struct peer *a = world_join(&s, "a");
    exportws_id id = conn_id(s.w, world_slot(&s, "a"));
    fill_buffer(&s, 0);
    faults.plan = (struct fault){CALL_SEND, faults.uses[CALL_SEND] + 1, 1, EAGAIN};
    assert_int_equal(INSIDE(exportws_reply(s.w, id, "m1", 2, EXPORTWS_TEXT)), EXPORTWS_FULL);
    assert_int_equal(INSIDE(exportws_reply(s.w, id, "m2", 2, EXPORTWS_TEXT)), 1);
    world_settle(&s);
    want_got(&s, a, "101 m2 ");
    faults.plan = (struct fault){CALL_SEND, faults.uses[CALL_SEND] + 1, 1, FAULT_SHORT};
    assert_int_equal(INSIDE(exportws_reply(s.w, id, "m3", 2, EXPORTWS_TEXT)), EXPORTWS_GONE);
    assert_int_equal(INSIDE(exportws_reply(s.w, id, "m4", 2, EXPORTWS_TEXT)), EXPORTWS_GONE);
    world_settle(&s);
    want_got(&s, a, "101 m2 ");
    want_ended(&s, a);
    assert_int_equal(s.w->m->closed[EXPORTWS_BY_SLOW], 1);
    assert_int_equal(exportws_kick(s.w, "x"), 0);
    want_number(&s, "blocks", s.w->blocks_free, s.w->block_count);
    world_end(&s);
    if (s.wrong[0] != '\0') fail_msg("%s", s.wrong);
}

enum { SCENARIOS = sizeof scenarios / sizeof *scenarios };

int main(int argc, char **argv)
{
    static struct CMUnitTest tests[SCENARIOS + 4];
    for (size_t i = 0; i < SCENARIOS; i++)
        tests[i] = (struct CMUnitTest){scenarios[i].name, run_all, NULL, NULL,
                                       (void *)(uintptr_t)&scenarios[i]};
    tests[SCENARIOS] =
        (struct CMUnitTest)cmocka_unit_test(accept_without_descriptors_does_not_spin);
    tests[SCENARIOS + 1] =
        (struct CMUnitTest)cmocka_unit_test(accept_goes_on_when_a_descriptor_is_freed);
    tests[SCENARIOS + 2] = (struct CMUnitTest)cmocka_unit_test(long_queue_goes_out_in_turns);
    tests[SCENARIOS + 3] = (struct CMUnitTest)cmocka_unit_test(reply_without_room_is_refused);
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("faults", tests, NULL, world_folder_remove);
}
