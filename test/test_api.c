/* test_api.c - every function of exportws.h, every error that it names, and bad use of each
 *
 *     cc -DEXPORTWS_NO_MAIN test/test_api.c exportws.c -lcmocka
 *
 * Only the header is used, as an embedder would: server and clients share one thread, and whoever
 * waits for a client lets the server have its turns meanwhile. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "../exportws.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define LITERAL(text) (text), sizeof(text) - 1

/* ===== A host: a server, its memory, and what its callbacks have seen ===== */

enum { CLIENTS = 400, SEEN = 8192, WAIT_MS = 10000 };

struct host {
    exportws_options o;
    exportws *w;
    uint8_t *block; /* the memory starts 64 bytes into it, and 64 follow */
    size_t bytes;
    char why[160], address[128];
    char seen[SEEN]; /* one line for each callback */
    size_t seen_size;
    exportws_id last; /* the session of the last on_open or on_message */
    int opens, closes, messages, lines, log_wanted;
    void (*act)(struct host *h, const char *where); /* what the callback named `where` does */
    const char *act_where;
    int acting, acts, results[8];
};

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int test_slow(void)
{
    const char *text = getenv("EXPORTWS_TEST_SLOW");
    return text && atoi(text) > 1 ? atoi(text) : 1;
}

static void host_note(struct host *h, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    int n = vsnprintf(h->seen + h->seen_size, SEEN - h->seen_size, format, list);
    va_end(list);
    assert_true(n >= 0);
    h->seen_size += (size_t)n < SEEN - h->seen_size ? (size_t)n : 0;
}

enum { ACTS = 20 };

/* Not for what it sets off itself, and not without end: a post that is logged may cause the next.
 */
static void host_act(struct host *h, const char *where)
{
    if (!h->act || h->acting || h->acts >= ACTS || strcmp(where, h->act_where) != 0) return;
    h->acts++;
    h->acting = 1;
    h->act(h, where);
    h->acting = 0;
}

static int on_upgrade(void *user, const exportws_request *request)
{
    struct host *h = user;
    host_note(h, "upgrade %s\n", exportws_request_token(request));
    host_act(h, "upgrade");
    return 0;
}

static void on_open(void *user, exportws_id session, const char *token)
{
    struct host *h = user;
    h->opens++;
    h->last = session;
    host_note(h, "open %s\n", token);
    host_act(h, "open");
}

static void on_message(void *user, exportws_id session, const char *token, const void *data,
                       size_t size, int kind)
{
    struct host *h = user;
    h->messages++;
    h->last = session;
    host_note(h, "message %s %d %.*s\n", token, kind, (int)size, (const char *)data);
    host_act(h, "message");
}

static void on_close(void *user, exportws_id session, const char *token, int reason, int code)
{
    struct host *h = user;
    h->closes++;
    h->last = session;
    host_note(h, "close %s %d %d\n", token, reason, code);
    host_act(h, "close");
}

static void on_log(void *user, int level, const char *line)
{
    struct host *h = user;
    const char *event = strstr(line, " event=");
    char where[32];
    assert_true(level >= EXPORTWS_LOG_ERROR && level <= EXPORTWS_LOG_DEBUG);
    assert_non_null(event);
    assert_null(strchr(line, '\n'));
    h->lines++;
    if (h->log_wanted) host_note(h, "%s\n", line);
    snprintf(where, sizeof where, "log %.*s", (int)strcspn(event + 7, " "), event + 7);
    host_act(h, where);
}

/* Small, with a client door and all callbacks. */
static void host_defaults(struct host *h)
{
    memset(h, 0, sizeof *h);
    exportws_defaults(&h->o);
    h->o.listen = "127.0.0.1:0";
    h->o.capacity = 8, h->o.handshakes = 4, h->o.pushers = 2;
    h->o.buffer_bytes = 65536, h->o.max_push_bytes = 8192;
    h->o.on_upgrade = on_upgrade, h->o.on_open = on_open, h->o.on_message = on_message;
    h->o.on_close = on_close, h->o.on_log = on_log;
    h->o.user = h;
}

static void host_start(struct host *h)
{
    h->bytes = exportws_memory(&h->o);
    assert_true(h->bytes > 0);
    h->block = malloc(h->bytes + 128);
    assert_non_null(h->block);
    memset(h->block, 0xa5, h->bytes + 128);
    h->w = exportws_start(&h->o, h->block + 64, h->bytes, h->why, sizeof h->why);
    if (!h->w) fail_msg("no start: %s", h->why);
    if (h->o.listen) exportws_address(h->w, EXPORTWS_CLIENTS, h->address, sizeof h->address);
}

static void host_end(struct host *h)
{
    exportws_end(h->w);
    for (size_t i = 0; i < 64; i++) {
        assert_int_equal(h->block[i], 0xa5);
        assert_int_equal(h->block[64 + h->bytes + i], 0xa5);
    }
    free(h->block);
    h->w = NULL;
}

/* Turns until nothing happens for a moment. */
static void host_settle(struct host *h)
{
    for (int turn = 0; turn < 1000; turn++)
        if (exportws_step(h->w, 5) <= 0) return;
    fail_msg("the server does not come to rest");
}

/* ===== Clients ===== */

struct client {
    int fd, ended;
    size_t got;
    uint8_t bytes[1 << 16];
};

static struct client clients[3];
static int crowd[CLIENTS]; /* sockets that nobody reads */

/* A socket connected to "127.0.0.1:PORT". */
static int dial(const char *address, int receive_buffer)
{
    struct sockaddr_in to;
    const char *colon = strrchr(address, ':');
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_port = htons((uint16_t)atoi(colon + 1));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    if (receive_buffer > 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    return fd;
}

/* A turn for the server, then what came of it. 1: something did. */
static int client_turn(struct host *h, struct client *c)
{
    exportws_step(h->w, 2);
    if (c->ended || c->got == sizeof c->bytes) return 0;
    ssize_t n = recv(c->fd, c->bytes + c->got, sizeof c->bytes - c->got, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) c->ended = 1;
    else c->got += (size_t)n;
    return 1;
}

/* Waits until n bytes are there: 1, or 0 when the end is. */
static int client_want(struct host *h, struct client *c, size_t n)
{
    long long deadline = now_ms() + (long long)WAIT_MS * test_slow();
    while (c->got < n && !c->ended) {
        client_turn(h, c);
        if (now_ms() > deadline)
            fail_msg("only %zu of %zu bytes came; seen:\n%s", c->got, n, h->seen);
    }
    return c->got >= n;
}

static void client_take(struct client *c, size_t n)
{
    memmove(c->bytes, c->bytes + n, c->got - n);
    c->got -= n;
}

static void client_close(struct client *c)
{
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static void client_write(struct client *c, const void *p, size_t n)
{
    assert_int_equal(send(c->fd, p, n, MSG_NOSIGNAL), (ssize_t)n);
}

/* Asks for the upgrade. Returns the status of the answer, which stays in bytes (cut off behind a
 * 101). */
static int client_ask(struct host *h, struct client *c, const char *target, const char *headers)
{
    char request[1024];
    int n = snprintf(request, sizeof request,
                     "GET /app/ws/export-task/%s HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
                     "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n",
                     target, headers);
    memset(c, 0, sizeof *c);
    c->fd = dial(h->address, 0);
    client_write(c, request, (size_t)n);
    for (size_t have = 12;; have = c->got + 1) {
        assert_true(client_want(h, c, have));
        for (size_t i = 3; i < c->got; i++) {
            if (memcmp(c->bytes + i - 3, "\r\n\r\n", 4) != 0) continue;
            int status = atoi((const char *)c->bytes + 9);
            if (status == 101) client_take(c, i + 1);
            return status;
        }
    }
}

static void client_join(struct host *h, struct client *c, const char *token)
{
    assert_int_equal(client_ask(h, c, token, ""), 101);
}

/* A client that will read nothing. */
static int crowd_join(struct host *h, const char *token, int receive_buffer)
{
    struct client c;
    char request[256];
    int before = exportws_sessions(h->w), turns = 0;
    int n = snprintf(request, sizeof request,
                     "GET /app/ws/export-task/%s HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
                     "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                     token);
    c.fd = dial(h->address, receive_buffer);
    client_write(&c, request, (size_t)n);
    while (exportws_sessions(h->w) == before && turns++ < 1000) exportws_step(h->w, 10);
    assert_int_equal(exportws_sessions(h->w), before + 1);
    return c.fd;
}

/* A client's frame; the mask is 1, 2, 3, 4. */
static void client_say(struct client *c, unsigned opcode, const void *p, size_t n)
{
    uint8_t frame[256] = {(uint8_t)(0x80 | opcode), (uint8_t)(0x80 | n), 1, 2, 3, 4};
    assert_true(n < 126);
    for (size_t i = 0; i < n; i++) frame[6 + i] = ((const uint8_t *)p)[i] ^ frame[2 + i % 4];
    client_write(c, frame, 6 + n);
}

/* Waits for a frame: its opcode, its payload at *p until the next one is wanted; -1 at the end. */
static int client_frame(struct host *h, struct client *c, const uint8_t **p, size_t *n)
{
    static uint8_t payload[1 << 16];
    size_t head = 2;
    if (!client_want(h, c, 2)) return -1;
    int opcode = c->bytes[0] & 15;
    assert_int_equal(c->bytes[0] & 0xf0, 0x80);
    *n = c->bytes[1];
    if (*n == 126) {
        head = 4;
        assert_true(client_want(h, c, 4));
        *n = (size_t)(c->bytes[2] << 8 | c->bytes[3]);
    }
    assert_true(client_want(h, c, head + *n));
    memcpy(payload, c->bytes + head, *n);
    client_take(c, head + *n);
    *p = payload;
    return opcode;
}

static void client_expect(struct host *h, struct client *c, int opcode, const void *want, size_t n)
{
    const uint8_t *p = NULL;
    size_t size = 0;
    int got = client_frame(h, c, &p, &size);
    if (got != opcode || size != n || (n > 0 && memcmp(p, want, n) != 0))
        fail_msg("opcode %d, %zu bytes '%.*s' instead of '%.*s'; seen:\n%s", got, size,
                 got < 0 ? 0 : (int)size, (const char *)p, (int)n, (const char *)want, h->seen);
}

static void client_expect_text(struct host *h, struct client *c, const char *want)
{
    client_expect(h, c, EXPORTWS_TEXT, want, strlen(want));
}

/* A close frame with this code and reason; it is answered, and the end follows. */
static void client_expect_close(struct host *h, struct client *c, int code, const char *reason)
{
    uint8_t want[125] = {(uint8_t)(code >> 8), (uint8_t)(code & 255)};
    memcpy(want + 2, reason, strlen(reason));
    client_expect(h, c, 8, want, 2 + strlen(reason));
    client_say(c, 8, want, 2);
    assert_false(client_want(h, c, 1));
    client_close(c);
}

/* Nothing is on its way. */
static void client_expect_nothing(struct host *h, struct client *c)
{
    for (int turn = 0; turn < 5; turn++) client_turn(h, c);
    assert_int_equal(c->got, 0);
    assert_false(c->ended);
}

/* Every session that was opened is closed again, each told of once. */
static void host_expect_empty(struct host *h)
{
    for (int turn = 0; turn < 1000 && exportws_sessions(h->w) > 0; turn++) exportws_step(h->w, 10);
    host_settle(h);
    assert_int_equal(exportws_sessions(h->w), 0);
    assert_int_equal(exportws_online(h->w), 0);
    assert_int_equal(h->opens, h->closes);
}

static int descriptors_open(void)
{
    int n = 0;
    for (int fd = 0; fd < 1024; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* ===== Options, memory, start ===== */

static void defaults_are_those_of_the_command_line(void **state)
{
    exportws_options o;
    (void)state;
    memset(&o, 0x5a, sizeof o);
    exportws_defaults(&o);
    assert_null(o.listen);
    assert_null(o.push);
    assert_string_equal(o.path, "/app/ws/export-task/");
    assert_string_equal(o.heartbeat, "HEART-BEAT");
    assert_null(o.push_secret);
    assert_null(o.client_secret);
    assert_int_equal(o.origin_count, 0);
    assert_int_equal(o.trusted_proxy_count, 0);
    assert_int_equal(o.capacity, 1024);
    assert_int_equal(o.per_token, 8);
    assert_int_equal(o.per_address, 0);
    assert_int_equal(o.handshakes, 256);
    assert_int_equal(o.pushers, 64);
    assert_int_equal(o.queue, 32);
    assert_int_equal(o.history, 16);
    assert_int_equal(o.max_token_bytes, 64);
    assert_int_equal(o.max_message_bytes, 4096);
    assert_int_equal(o.max_push_bytes, 65536);
    assert_int_equal(o.buffer_bytes, 4194304);
    assert_int_equal(o.hold_ms, 30000);
    assert_int_equal(o.ping_ms, 25000);
    assert_int_equal(o.pong_ms, 10000);
    assert_int_equal(o.handshake_timeout_ms, 10000);
    assert_int_equal(o.close_timeout_ms, 2000);
    assert_int_equal(o.write_timeout_ms, 20000);
    assert_int_equal(o.drain_ms, 5000);
    assert_int_equal(o.heartbeat_reply, 0);
    assert_int_equal(o.demo, 0);
    assert_true(!o.on_upgrade && !o.on_open && !o.on_message && !o.on_close && !o.on_log);
    assert_null(o.user);
    assert_int_equal(o.log_level, EXPORTWS_LOG_INFO);
    assert_true(exportws_memory(&o) > 0);
    exportws_defaults(NULL);
}

enum wrong_type { WRONG_SIZE, WRONG_MS, WRONG_TEXT, WRONG_ONE, WRONG_LEVEL };

/* A value that an option must not have, and what the refusal calls the option. */
static const struct wrong {
    size_t at;
    int type;
    size_t number;
    const char *text, *name;
} wrongs[] = {
    {offsetof(exportws_options, capacity), WRONG_SIZE, 0, NULL, "capacity"},
    {offsetof(exportws_options, capacity), WRONG_SIZE, 1000001, NULL, "capacity"},
    {offsetof(exportws_options, capacity), WRONG_SIZE, SIZE_MAX, NULL, "capacity"},
    {offsetof(exportws_options, handshakes), WRONG_SIZE, 0, NULL, "handshakes"},
    {offsetof(exportws_options, handshakes), WRONG_SIZE, SIZE_MAX, NULL, "handshakes"},
    {offsetof(exportws_options, pushers), WRONG_SIZE, 0, NULL, "pushers"},
    {offsetof(exportws_options, pushers), WRONG_SIZE, SIZE_MAX, NULL, "pushers"},
    {offsetof(exportws_options, per_token), WRONG_SIZE, 0, NULL, "per-token"},
    {offsetof(exportws_options, per_token), WRONG_SIZE, SIZE_MAX, NULL, "per-token"},
    {offsetof(exportws_options, per_address), WRONG_SIZE, SIZE_MAX, NULL, "per-address"},
    {offsetof(exportws_options, queue), WRONG_SIZE, 0, NULL, "queue"},
    {offsetof(exportws_options, queue), WRONG_SIZE, SIZE_MAX, NULL, "queue"},
    {offsetof(exportws_options, max_token_bytes), WRONG_SIZE, 0, NULL, "max-token"},
    {offsetof(exportws_options, max_token_bytes), WRONG_SIZE, 1025, NULL, "max-token"},
    {offsetof(exportws_options, max_message_bytes), WRONG_SIZE, 0, NULL, "max-message"},
    {offsetof(exportws_options, max_message_bytes), WRONG_SIZE, SIZE_MAX, NULL, "max-message"},
    {offsetof(exportws_options, max_push_bytes), WRONG_SIZE, 0, NULL, "max-push"},
    {offsetof(exportws_options, max_push_bytes), WRONG_SIZE, SIZE_MAX, NULL, "max-push"},
    {offsetof(exportws_options, buffer_bytes), WRONG_SIZE, 0, NULL, "buffer"},
    {offsetof(exportws_options, hold_ms), WRONG_MS, 86400001, NULL, "hold"},
    {offsetof(exportws_options, ping_ms), WRONG_MS, 0, NULL, "ping"},
    {offsetof(exportws_options, ping_ms), WRONG_MS, UINT_MAX, NULL, "ping"},
    {offsetof(exportws_options, pong_ms), WRONG_MS, 0, NULL, "pong"},
    {offsetof(exportws_options, handshake_timeout_ms), WRONG_MS, 0, NULL, "handshake-timeout"},
    {offsetof(exportws_options, close_timeout_ms), WRONG_MS, 0, NULL, "close-timeout"},
    {offsetof(exportws_options, write_timeout_ms), WRONG_MS, 0, NULL, "write-timeout"},
    {offsetof(exportws_options, drain_ms), WRONG_MS, UINT_MAX, NULL, "drain"},
    {offsetof(exportws_options, path), WRONG_TEXT, 0, NULL, "path"},
    {offsetof(exportws_options, path), WRONG_TEXT, 0, "", "path"},
    {offsetof(exportws_options, path), WRONG_TEXT, 0, "x/", "path"},
    {offsetof(exportws_options, path), WRONG_TEXT, 0, "/x", "path"},
    {offsetof(exportws_options, path), WRONG_TEXT, 0, "/a b/", "path"},
    {offsetof(exportws_options, path), WRONG_TEXT, 0, "/a?b/", "path"},
    {offsetof(exportws_options, heartbeat), WRONG_TEXT, 0, NULL, "heartbeat"},
    {offsetof(exportws_options, heartbeat), WRONG_TEXT, 0, "\xff", "heartbeat"},
    {offsetof(exportws_options, push_secret), WRONG_TEXT, 0, "", "push-secret"},
    {offsetof(exportws_options, listen), WRONG_TEXT, 0, "", "listen"},
    {offsetof(exportws_options, listen), WRONG_TEXT, 0, "nowhere", "listen"},
    {offsetof(exportws_options, listen), WRONG_TEXT, 0, "127.0.0.1:65536", "listen"},
    {offsetof(exportws_options, listen), WRONG_TEXT, 0, "unix:", "listen"},
    {offsetof(exportws_options, listen), WRONG_TEXT, 0, "fd:x", "listen"},
    {offsetof(exportws_options, push), WRONG_TEXT, 0, "[::1:1", "push"},
    {offsetof(exportws_options, origin_count), WRONG_ONE, 0, NULL, "origin"},
    {offsetof(exportws_options, log_level), WRONG_LEVEL, 0, "-1", "log"},
    {offsetof(exportws_options, log_level), WRONG_LEVEL, 0, "4", "log"},
    {offsetof(exportws_options, log_level), WRONG_LEVEL, 0, "2147483647", "log"},
};

static void wrong_set(exportws_options *o, const struct wrong *row)
{
    char *member = (char *)o + row->at;
    unsigned ms = (unsigned)row->number;
    size_t one = 1;
    if (row->type == WRONG_SIZE) memcpy(member, &row->number, sizeof row->number);
    if (row->type == WRONG_MS) memcpy(member, &ms, sizeof ms);
    if (row->type == WRONG_TEXT) memcpy(member, &row->text, sizeof row->text);
    if (row->type == WRONG_ONE) memcpy(member, &one, sizeof one);
    if (row->type == WRONG_LEVEL) o->log_level = atoi(row->text);
}

static void option_out_of_range_is_named(void **state)
{
    static uint64_t memory[1 << 17];
    int open = descriptors_open();
    (void)state;
    for (size_t i = 0; i < COUNT(wrongs); i++) {
        struct host h;
        char want[64];
        host_defaults(&h);
        wrong_set(&h.o, &wrongs[i]);
        snprintf(want, sizeof want, "out of range: %s", wrongs[i].name);
        if (exportws_memory(&h.o) != 0)
            fail_msg("row %zu (%s) is not refused", i, wrongs[i].name);
        assert_null(exportws_start(&h.o, memory, sizeof memory, h.why, sizeof h.why));
        assert_string_equal(h.why, want);
        assert_int_equal(h.lines, 0);
    }
    assert_int_equal(exportws_memory(NULL), 0);
    assert_int_equal(descriptors_open(), open);
}

static void origin_that_is_null_is_named(void **state)
{
    static const char *const origins[2] = {"https://a.example", NULL};
    struct host h;
    (void)state;
    host_defaults(&h);
    h.o.origins = origins, h.o.origin_count = 1;
    assert_true(exportws_memory(&h.o) > 0);
    h.o.origin_count = 2;
    assert_int_equal(exportws_memory(&h.o), 0);
}

static void memory_grows_with_each_option(void **state)
{
    static const size_t members[] = {
        offsetof(exportws_options, capacity),        offsetof(exportws_options, handshakes),
        offsetof(exportws_options, pushers),         offsetof(exportws_options, max_token_bytes),
        offsetof(exportws_options, max_push_bytes),  offsetof(exportws_options, max_message_bytes),
        offsetof(exportws_options, buffer_bytes)};
    exportws_options o;
    (void)state;
    for (size_t i = 0; i < COUNT(members); i++) {
        size_t value, before;
        exportws_defaults(&o);
        o.max_message_bytes = 32768; /* larger than a head, so that it counts */
        before = exportws_memory(&o);
        assert_int_equal(before % sizeof(uint64_t), 0);
        memcpy(&value, (char *)&o + members[i], sizeof value);
        value *= 4;
        memcpy((char *)&o + members[i], &value, sizeof value);
        if (exportws_memory(&o) <= before) fail_msg("row %zu needs no memory", i);
    }
}

static void start_refuses_memory_that_will_not_do(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    size_t need = exportws_memory(&h.o);
    uint8_t *block = malloc(need + 64);
    assert_non_null(block);
    int open = descriptors_open();
    memset(block, 0x3c, need + 64);
    assert_null(exportws_start(&h.o, NULL, need, h.why, sizeof h.why));
    assert_string_equal(h.why, "memory is NULL");
    assert_null(exportws_start(&h.o, block, need - 1, h.why, sizeof h.why));
    assert_string_equal(h.why, "memory is too small");
    assert_null(exportws_start(&h.o, block, 0, h.why, sizeof h.why));
    assert_string_equal(h.why, "memory is too small");
    for (size_t shift = 1; shift < sizeof(uint64_t); shift++) {
        assert_null(exportws_start(&h.o, block + shift, need + 32, h.why, sizeof h.why));
        assert_string_equal(h.why, "memory is not aligned for uint64_t");
    }
    for (size_t i = 0; i < need + 64; i++) assert_int_equal(block[i], 0x3c);
    assert_int_equal(descriptors_open(), open);
    free(block);
}

static void start_says_why_as_far_as_it_fits(void **state)
{
    struct host h;
    char why[8] = "?";
    uint64_t memory[4];
    (void)state;
    host_defaults(&h);
    assert_null(exportws_start(&h.o, memory, sizeof memory, NULL, 0));
    assert_null(exportws_start(&h.o, memory, sizeof memory, NULL, 99));
    assert_null(exportws_start(&h.o, memory, sizeof memory, why, 0));
    assert_string_equal(why, "?");
    assert_null(exportws_start(&h.o, memory, sizeof memory, why, 1));
    assert_string_equal(why, "");
    assert_null(exportws_start(&h.o, memory, sizeof memory, why, sizeof why));
    assert_string_equal(why, "memory ");
    assert_null(exportws_start(NULL, memory, sizeof memory, h.why, sizeof h.why));
    assert_true(strlen(h.why) > 0);
}

static void start_leaves_nothing_open_when_a_door_cannot(void **state)
{
    struct host first, h;
    int open;
    (void)state;
    host_defaults(&first);
    host_start(&first);
    host_defaults(&h);
    open = descriptors_open();
    h.o.push = first.address;
    h.block = malloc(exportws_memory(&h.o));
    assert_non_null(h.block);
    assert_null(exportws_start(&h.o, h.block, exportws_memory(&h.o), h.why, sizeof h.why));
    assert_non_null(strstr(h.why, first.address));
    assert_non_null(strstr(h.why, strerror(EADDRINUSE)));
    h.o.push = "fd:1000";
    assert_null(exportws_start(&h.o, h.block, exportws_memory(&h.o), h.why, sizeof h.why));
    assert_non_null(strstr(h.why, "fd:1000"));
    h.o.push = "unix:/nowhere/at/all";
    assert_null(exportws_start(&h.o, h.block, exportws_memory(&h.o), h.why, sizeof h.why));
    assert_non_null(strstr(h.why, "/nowhere/at/all"));
    assert_int_equal(descriptors_open(), open);
    free(h.block);
    host_end(&first);
}

static void end_gives_all_back_and_calls_nobody(void **state)
{
    struct host h;
    int open = descriptors_open();
    (void)state;
    host_defaults(&h);
    h.o.push = "127.0.0.1:0";
    host_start(&h);
    client_join(&h, &clients[0], "t");
    client_join(&h, &clients[1], "t");
    int lines = h.lines;
    exportws_end(h.w);
    assert_int_equal(h.closes, 0);
    assert_int_equal(h.lines, lines);
    assert_int_equal(descriptors_open(), open + 2);
    h.w = exportws_start(&h.o, h.block + 64, h.bytes, h.why, sizeof h.why); /* the same memory */
    assert_non_null(h.w);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(client_want(&h, &clients[i], 1), 0);
        client_close(&clients[i]);
    }
    host_end(&h);
    exportws_end(NULL);
    assert_int_equal(descriptors_open(), open);
}

/* What was the server's may be somebody else's by then. */
static void end_twice_closes_nobody_elses_descriptors(void **state)
{
    struct host h;
    int fds[16], open;
    (void)state;
    host_defaults(&h);
    h.o.push = "127.0.0.1:0";
    host_start(&h);
    client_join(&h, &clients[0], "t");
    exportws_end(h.w);
    open = descriptors_open();
    for (size_t i = 0; i < COUNT(fds); i++) assert_true((fds[i] = dup(clients[0].fd)) >= 0);
    exportws_end(h.w);
    assert_int_equal(descriptors_open(), open + (int)COUNT(fds));
    for (size_t i = 0; i < COUNT(fds); i++) close(fds[i]);
    client_close(&clients[0]);
    host_end(&h);
}

/* ===== Doors ===== */

static void address_is_the_real_one(void **state)
{
    struct host h;
    char text[128], path[64];
    int port = 0;
    (void)state;
    host_defaults(&h);
    snprintf(path, sizeof path, "unix:/tmp/exportws-test-%ld", (long)getpid());
    h.o.push = path;
    host_start(&h);
    int n = exportws_address(h.w, EXPORTWS_CLIENTS, text, sizeof text);
    assert_int_equal(n, strlen(text));
    assert_int_equal(sscanf(text, "127.0.0.1:%d", &port), 1);
    assert_true(port > 0 && port < 65536);
    assert_int_equal(exportws_address(h.w, EXPORTWS_CLIENTS, NULL, 0), n);
    assert_int_equal(exportws_address(h.w, EXPORTWS_CLIENTS, text, 4), n);
    assert_string_equal(text, "127");
    assert_int_equal(exportws_address(h.w, EXPORTWS_PUSH, text, sizeof text), strlen(path));
    assert_string_equal(text, path);
    assert_int_equal(exportws_address(h.w, 2, text, sizeof text), EXPORTWS_BAD);
    assert_int_equal(exportws_address(h.w, -1, text, sizeof text), EXPORTWS_BAD);
    assert_int_equal(exportws_address(NULL, EXPORTWS_PUSH, text, sizeof text), EXPORTWS_BAD);
    host_end(&h);
    assert_int_equal(access(path + 5, F_OK), -1);
    host_defaults(&h);
    h.o.listen = NULL;
    host_start(&h);
    assert_int_equal(exportws_address(h.w, EXPORTWS_CLIENTS, text, sizeof text), EXPORTWS_ABSENT);
    host_end(&h);
}

static void door_takes_a_socket_that_listens(void **state)
{
    struct host h;
    struct sockaddr_in at;
    char name[16];
    (void)state;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    host_defaults(&h);
    snprintf(name, sizeof name, "fd:%d", fd);
    h.o.listen = name;
    h.block = malloc(exportws_memory(&h.o));
    assert_null(exportws_start(&h.o, h.block, exportws_memory(&h.o), h.why, sizeof h.why));
    free(h.block);
    assert_int_equal(listen(fd, 5), 0);
    host_start(&h);
    client_join(&h, &clients[0], "t");
    assert_int_equal(exportws_sessions(h.w), 1);
    client_close(&clients[0]);
    host_end(&h);
    assert_int_equal(fcntl(fd, F_GETFD), -1); /* it was the server's */
}

/* ===== Pages ===== */

/* A listening socket whose connections have small buffers, as the option that names it. */
static void narrow_door(struct host *h, char name[16])
{
    const int small = 1;
    struct sockaddr_in at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(fd, 5), 0);
    snprintf(name, 16, "fd:%d", fd);
    host_defaults(h);
    h->o.listen = name, h->o.demo = 1, h->o.log_level = EXPORTWS_LOG_ERROR;
}

/* Asks for a page, and reads nothing of it. */
static void page_ask(struct host *h, struct client *c, const char *path, int receive_buffer)
{
    char request[64];
    int n = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", path);
    memset(c, 0, sizeof *c);
    c->fd = dial(h->address, receive_buffer);
    client_write(c, request, (size_t)n);
    host_settle(h);
}

/* What has come so far, without another turn of the server. */
static size_t page_arrived(struct client *c)
{
    ssize_t n;
    while ((n = recv(c->fd, c->bytes + c->got, sizeof c->bytes - c->got, 0)) > 0)
        c->got += (size_t)n;
    return c->got;
}

/* Reads to the end of the connection; the answer must be as long as it says. */
static void page_read(struct host *h, struct client *c)
{
    assert_false(client_want(h, c, sizeof c->bytes));
    c->bytes[c->got] = '\0';
    const char *length = strstr((const char *)c->bytes, "Content-Length: ");
    const char *body = strstr((const char *)c->bytes, "\r\n\r\n");
    assert_true(length && body && length < body);
    assert_int_equal(strtoul(length + 16, NULL, 10), strlen(body + 4));
    client_close(c);
}

/* Waits until no connection is left: the door and the wake-up pipe. */
static void page_gone(struct host *h)
{
    struct pollfd fds[64];
    long long deadline = now_ms() + (long long)WAIT_MS * test_slow();
    int timeout = 0;
    while (exportws_pollfds(h->w, fds, COUNT(fds), &timeout) > 2) {
        assert_true(now_ms() < deadline);
        exportws_step(h->w, 10);
    }
}

static void page_comes_whole_through_narrow_sockets(void **state)
{
    static const char *const paths[] = {"/", "/exportws.js"};
    static const size_t stages[] = {1, 8192, 65536}; /* 157 bytes, and more than a page */
    struct host h;
    char name[16];
    (void)state;
    for (size_t i = 0; i < COUNT(stages) * COUNT(paths); i++) {
        narrow_door(&h, name);
        h.o.max_push_bytes = stages[i / COUNT(paths)];
        h.o.client_secret = i == 0 ? "s" : NULL;
        host_start(&h);
        page_ask(&h, &clients[0], paths[i % COUNT(paths)], 0);
        page_read(&h, &clients[0]);
        page_ask(&h, &clients[1], paths[i % COUNT(paths)], 1);
        assert_in_range(page_arrived(&clients[1]), 1, clients[0].got - (clients[0].got > 6000));
        page_read(&h, &clients[1]);
        assert_string_equal((const char *)clients[1].bytes, (const char *)clients[0].bytes);
        page_gone(&h);
        assert_int_equal(strstr((const char *)clients[0].bytes, " data-signed=\"1\">\n") != NULL,
                         i == 0);
        host_end(&h);
    }
}

/* Nobody takes it any more: its slot comes back, by reset at once, else in close_timeout. */
static void page_that_nobody_takes_is_given_up(void **state)
{
    const struct linger abrupt = {1, 0};
    struct host h;
    char name[16];
    (void)state;
    narrow_door(&h, name);
    h.o.close_timeout_ms = 60000;
    host_start(&h);
    page_ask(&h, &clients[0], "/", 1);
    setsockopt(clients[0].fd, SOL_SOCKET, SO_LINGER, &abrupt, sizeof abrupt);
    client_close(&clients[0]);
    page_gone(&h);
    host_end(&h);
    narrow_door(&h, name);
    h.o.close_timeout_ms = 50;
    host_start(&h);
    page_ask(&h, &clients[0], "/", 1);
    page_gone(&h);
    client_close(&clients[0]);
    host_end(&h);
}

/* It keeps nobody out: with all handshakes in use the oldest page gives way. */
static void page_gives_way_to_a_newcomer(void **state)
{
    struct host h;
    char name[16];
    (void)state;
    narrow_door(&h, name);
    h.o.handshakes = 1, h.o.close_timeout_ms = 60000;
    host_start(&h);
    page_ask(&h, &clients[0], "/", 1);
    client_join(&h, &clients[1], "t");
    assert_int_equal(exportws_sessions(h.w), 1);
    client_close(&clients[0]), client_close(&clients[1]);
    host_end(&h);
}

/* ===== Sending ===== */

/* Arguments that no function that sends may take, and the error. */
static const struct bad_send {
    const char *name, *token;
    const void *data;
    size_t size;
    int kind, want;
    int about_token;
} bad_sends[] = {
    {"no token", NULL, "x", 1, EXPORTWS_TEXT, EXPORTWS_BAD, 2},
    {"empty token", "", "x", 1, EXPORTWS_TEXT, EXPORTWS_BAD, 1},
    {"slash in the token", "a/b", "x", 1, EXPORTWS_TEXT, EXPORTWS_BAD, 1},
    {"token too long", "12345678901234567", "x", 1, EXPORTWS_TEXT, EXPORTWS_TOO_BIG, 1},
    {"no data", "t", NULL, 1, EXPORTWS_TEXT, EXPORTWS_BAD, 0},
    {"kind 0", "t", "x", 1, 0, EXPORTWS_BAD, 0},
    {"kind 3", "t", "x", 1, 3, EXPORTWS_BAD, 0},
    {"the end of nothing", "t", "x", 1, EXPORTWS_END, EXPORTWS_BAD, 0},
    {"all kinds at once", "t", "x", 1, 7, EXPORTWS_BAD, 0},
    {"kind of a close frame", "t", "x", 1, 8, EXPORTWS_BAD, 0},
    {"kind -1", "t", "x", 1, -1, EXPORTWS_BAD, 0},
    {"too big", "t", "12345678901234567890123456789012345", 33, EXPORTWS_TEXT, EXPORTWS_TOO_BIG, 0},
    {"very big", "t", "x", SIZE_MAX, EXPORTWS_BINARY, EXPORTWS_TOO_BIG, 0},
    {"a lone byte", "t", "\xff", 1, EXPORTWS_TEXT, EXPORTWS_NOT_UTF8, 0},
    {"half a surrogate pair", "t", "\xed\xa0\x80", 3, EXPORTWS_TEXT, EXPORTWS_NOT_UTF8, 0},
    {"a character cut off", "t", "a\xe2\x82", 3, EXPORTWS_TEXT, EXPORTWS_NOT_UTF8, 0},
    {"overlong", "t", "\xc0\x80", 2, EXPORTWS_TEXT, EXPORTWS_NOT_UTF8, 0},
};

static void bad_message_touches_nobody(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    h.o.max_token_bytes = 16, h.o.max_push_bytes = 32;
    host_start(&h);
    client_join(&h, &clients[0], "t");
    for (size_t i = 0; i < COUNT(bad_sends); i++) {
        const struct bad_send *row = &bad_sends[i];
        int got[4] = {row->want, row->want, row->want, row->want};
        got[0] = exportws_send(h.w, row->token, row->data, row->size, row->kind);
        if (row->about_token < 2)
            got[1] = exportws_post(h.w, row->token, row->data, row->size, row->kind);
        if (!row->about_token) {
            got[2] = exportws_broadcast(h.w, row->data, row->size, row->kind);
            got[3] = exportws_reply(h.w, h.last, row->data, row->size, row->kind);
        }
        for (int j = 0; j < 4; j++)
            if (got[j] != row->want) fail_msg("%s: %d: %d", row->name, j, got[j]);
        if (row->about_token) assert_int_equal(exportws_kick(h.w, row->token), row->want);
    }
    client_expect_nothing(&h, &clients[0]);
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

static void null_server_is_an_error_everywhere(void **state)
{
    struct pollfd fds[1];
    int timeout = 0;
    (void)state;
    assert_int_equal(exportws_step(NULL, 0), EXPORTWS_BAD);
    assert_int_equal(exportws_pollfds(NULL, fds, 1, &timeout), EXPORTWS_BAD);
    assert_int_equal(exportws_dispatch(NULL, fds, 1), EXPORTWS_BAD);
    assert_int_equal(exportws_send(NULL, "t", "x", 1, EXPORTWS_TEXT), EXPORTWS_BAD);
    assert_int_equal(exportws_broadcast(NULL, "x", 1, EXPORTWS_TEXT), EXPORTWS_BAD);
    assert_int_equal(exportws_reply(NULL, 1, "x", 1, EXPORTWS_TEXT), EXPORTWS_BAD);
    assert_int_equal(exportws_close(NULL, 1, 1000, NULL), EXPORTWS_BAD);
    assert_int_equal(exportws_kick(NULL, "t"), EXPORTWS_BAD);
    assert_int_equal(exportws_online(NULL), EXPORTWS_BAD);
    assert_int_equal(exportws_last_id(NULL), 0);
    assert_int_equal(exportws_sessions(NULL), EXPORTWS_BAD);
    assert_int_equal(exportws_post(NULL, "t", "x", 1, EXPORTWS_TEXT), EXPORTWS_BAD);
    assert_int_equal(exportws_post(NULL, NULL, "x", 1, EXPORTWS_TEXT), EXPORTWS_BAD);
    exportws_stop(NULL);
    exportws_end(NULL);
    assert_string_equal(exportws_request_token(NULL), "");
    assert_string_equal(exportws_request_query(NULL), "");
    assert_int_equal(exportws_request_header(NULL, "host", NULL, 0), 0);
}

static void send_tells_how_many_it_reached(void **state)
{
    static const uint8_t binary[4] = {0xff, 0, 0xfe, 0x80};
    struct host h;
    (void)state;
    host_defaults(&h);
    host_start(&h);
    for (int i = 0; i < 3; i++) client_join(&h, &clients[i], i < 2 ? "two" : "one");
    assert_int_equal(exportws_sessions(h.w), 3);
    assert_int_equal(exportws_online(h.w), 2);
    assert_int_equal(exportws_send(h.w, "two", LITERAL("\xe2\x82\xac"), EXPORTWS_TEXT), 2);
    assert_int_equal(exportws_send(h.w, "one", binary, sizeof binary, EXPORTWS_BINARY), 1);
    assert_int_equal(exportws_send(h.w, "one", NULL, 0, EXPORTWS_TEXT), 1);
    assert_int_equal(exportws_broadcast(h.w, LITERAL("all"), EXPORTWS_TEXT), 3);
    for (int i = 0; i < 2; i++) {
        client_expect_text(&h, &clients[i], "\xe2\x82\xac");
        client_expect_text(&h, &clients[i], "all");
    }
    client_expect(&h, &clients[2], EXPORTWS_BINARY, binary, sizeof binary);
    client_expect_text(&h, &clients[2], "");
    client_expect_text(&h, &clients[2], "all");
    for (int i = 0; i < 3; i++) client_close(&clients[i]);
    host_expect_empty(&h);
    assert_int_equal(exportws_broadcast(h.w, LITERAL("nobody"), EXPORTWS_TEXT), 0);
    host_end(&h);
}

static void send_holds_for_the_absent(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    host_start(&h);
    assert_int_equal(exportws_send(h.w, "t", LITERAL("one"), EXPORTWS_TEXT), 0);
    assert_int_equal(exportws_send(h.w, "t", LITERAL("two"), EXPORTWS_BINARY), 0);
    assert_int_equal(exportws_online(h.w), 0);
    client_join(&h, &clients[0], "t");
    client_expect_text(&h, &clients[0], "one");
    client_expect(&h, &clients[0], EXPORTWS_BINARY, "two", 3);
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

static void send_to_the_absent_without_holding_is_absent(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    h.o.hold_ms = 0;
    host_start(&h);
    assert_int_equal(exportws_send(h.w, "t", LITERAL("x"), EXPORTWS_TEXT), EXPORTWS_ABSENT);
    client_join(&h, &clients[0], "t");
    client_expect_nothing(&h, &clients[0]);
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

/* How many messages of a token the buffer holds; they are dropped again. */
static int buffer_room(struct host *h)
{
    static const char piece[200] = "x";
    int n = 0, got;
    while ((got = exportws_send(h->w, "room", piece, sizeof piece, EXPORTWS_BINARY)) == 0) n++;
    assert_int_equal(got, EXPORTWS_FULL);
    assert_int_equal(exportws_kick(h->w, "room"), 0);
    assert_int_equal(exportws_kick(h->w, "room"), EXPORTWS_ABSENT);
    return n;
}

static void full_buffer_is_told_and_comes_back(void **state)
{
    struct host h;
    char text[32];
    int n = 0, got;
    (void)state;
    host_defaults(&h);
    h.o.buffer_bytes = 4096, h.o.queue = 1000;
    host_start(&h);
    int room = buffer_room(&h);
    assert_true(room > 4);
    for (int round = 0; round < 50; round++) assert_int_equal(buffer_room(&h), room);
    do {
        snprintf(text, sizeof text, "held %d", n);
        got = exportws_send(h.w, "t", text, strlen(text), EXPORTWS_TEXT);
    } while (got == 0 && n++ < 1000);
    assert_int_equal(got, EXPORTWS_FULL);
    client_join(&h, &clients[0], "t");
    for (int i = 0; i < n; i++) {
        snprintf(text, sizeof text, "held %d", i);
        client_expect_text(&h, &clients[0], text);
    }
    client_expect_nothing(&h, &clients[0]); /* what was refused was not kept */
    client_close(&clients[0]);
    host_expect_empty(&h);
    assert_int_equal(buffer_room(&h), room);
    host_end(&h);
}

/* ===== One session ===== */

static void reply_reaches_one_session_alone(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    host_start(&h);
    client_join(&h, &clients[0], "t");
    client_join(&h, &clients[1], "t");
    client_say(&clients[0], EXPORTWS_TEXT, "hi", 2);
    while (h.messages == 0) exportws_step(h.w, 10);
    assert_int_equal(exportws_reply(h.w, h.last, LITERAL("you"), EXPORTWS_TEXT), 1);
    client_expect_text(&h, &clients[0], "you");
    client_expect_nothing(&h, &clients[1]);
    client_close(&clients[0]), client_close(&clients[1]);
    host_expect_empty(&h);
    host_end(&h);
}

static void stale_id_is_gone_and_not_somebody_elses(void **state)
{
    static const exportws_id never[] = {0, 1, 7, 1000000, UINT64_MAX, 0xffffffff, 1ULL << 63};
    struct host h;
    (void)state;
    host_defaults(&h);
    h.o.capacity = 1;
    host_start(&h);
    client_join(&h, &clients[0], "t");
    exportws_id stale = h.last;
    assert_true(stale != 0);
    client_close(&clients[0]);
    host_expect_empty(&h);
    assert_int_equal(exportws_reply(h.w, stale, "x", 1, EXPORTWS_TEXT), EXPORTWS_GONE);
    client_join(&h, &clients[0], "t");
    assert_true(h.last != stale);
    assert_int_equal(exportws_reply(h.w, stale, "x", 1, EXPORTWS_TEXT), EXPORTWS_GONE);
    assert_int_equal(exportws_close(h.w, stale, 1000, NULL), EXPORTWS_GONE);
    for (size_t i = 0; i < COUNT(never); i++) {
        assert_int_equal(exportws_reply(h.w, never[i], "x", 1, EXPORTWS_TEXT), EXPORTWS_GONE);
        assert_int_equal(exportws_close(h.w, never[i], 1000, NULL), EXPORTWS_GONE);
    }
    client_expect_nothing(&h, &clients[0]);
    assert_int_equal(exportws_sessions(h.w), 1);
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

static void reply_that_does_not_fit_leaves_the_session_as_it_was(void **state)
{
    static const char piece[8000] = "x";
    struct host h;
    int fd, n = 0, got;
    (void)state;
    host_defaults(&h);
    h.o.queue = 3, h.o.buffer_bytes = 262144;
    host_start(&h);
    fd = crowd_join(&h, "slow", 4096);
    do got = exportws_reply(h.w, h.last, piece, sizeof piece, EXPORTWS_BINARY);
    while (got == 1 && n++ < 100000);
    assert_int_equal(got, EXPORTWS_FULL);
    assert_int_equal(exportws_reply(h.w, h.last, "y", 1, EXPORTWS_TEXT), EXPORTWS_FULL);
    assert_int_equal(exportws_sessions(h.w), 1);
    assert_int_equal(h.closes, 0);
    memset(&clients[0], 0, sizeof clients[0]);
    clients[0].fd = fd;
    size_t head = 0, want = (size_t)n * (4 + sizeof piece), read = 0;
    while (read < want + head) {
        assert_true(client_want(&h, &clients[0], 1));
        for (size_t i = 3; head == 0 && i < clients[0].got; i++)
            if (memcmp(clients[0].bytes + i - 3, "\r\n\r\n", 4) == 0) head = i + 1;
        read += clients[0].got;
        clients[0].got = 0;
    }
    assert_int_equal(read, want + head); /* every reply that was taken, and not a byte more */
    assert_int_equal(exportws_reply(h.w, h.last, "z", 1, EXPORTWS_TEXT), 1);
    client_expect_text(&h, &clients[0], "z");
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

static void close_sends_the_code_and_is_told_once(void **state)
{
    static const int codes[] = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010,
                                1011, 1012, 1013, 1014, 3000, 4999};
    char reason[124];
    struct host h;
    (void)state;
    host_defaults(&h);
    host_start(&h);
    memset(reason, 'r', 123), reason[123] = '\0';
    for (size_t i = 0; i < COUNT(codes); i++) {
        char want[64];
        client_join(&h, &clients[0], "t");
        assert_int_equal(exportws_close(h.w, h.last, codes[i], i % 2 ? reason : NULL), 0);
        assert_int_equal(exportws_close(h.w, h.last, 1000, NULL), EXPORTWS_GONE);
        assert_int_equal(exportws_reply(h.w, h.last, "x", 1, EXPORTWS_TEXT), EXPORTWS_GONE);
        assert_int_equal(exportws_sessions(h.w), 0);
        client_expect_close(&h, &clients[0], codes[i], i % 2 ? reason : "");
        host_expect_empty(&h);
        snprintf(want, sizeof want, "close t %d %d\n", EXPORTWS_BY_ENDED, codes[i]);
        assert_non_null(strstr(h.seen, want));
    }
    host_end(&h);
}

static void close_that_is_not_proper_leaves_the_session_alone(void **state)
{
    static const int codes[] = {INT_MIN, -1,   0,    1,    999,  1004,
                                1005,    1006, 1015, 2999, 5000, INT_MAX};
    char reason[125];
    struct host h;
    (void)state;
    host_defaults(&h);
    host_start(&h);
    client_join(&h, &clients[0], "t");
    for (size_t i = 0; i < COUNT(codes); i++)
        assert_int_equal(exportws_close(h.w, h.last, codes[i], NULL), EXPORTWS_BAD);
    memset(reason, 'r', 124), reason[124] = '\0';
    assert_int_equal(exportws_close(h.w, h.last, 1000, reason), EXPORTWS_TOO_BIG);
    assert_int_equal(exportws_close(h.w, h.last, 1000, "\xc3"), EXPORTWS_NOT_UTF8);
    assert_int_equal(exportws_reply(h.w, h.last, "on", 2, EXPORTWS_TEXT), 1);
    client_expect_text(&h, &clients[0], "on");
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

static void kick_ends_all_of_a_token_and_no_other(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    host_start(&h);
    assert_int_equal(exportws_kick(h.w, "two"), EXPORTWS_ABSENT);
    for (int i = 0; i < 3; i++) client_join(&h, &clients[i], i < 2 ? "two" : "one");
    assert_int_equal(exportws_send(h.w, "gone", LITERAL("held"), EXPORTWS_TEXT), 0);
    assert_int_equal(exportws_kick(h.w, "two"), 2);
    assert_int_equal(exportws_kick(h.w, "two"), EXPORTWS_ABSENT);
    assert_int_equal(exportws_kick(h.w, "gone"), 0);
    assert_int_equal(exportws_kick(h.w, "gone"), EXPORTWS_ABSENT);
    assert_int_equal(exportws_sessions(h.w), 1);
    assert_int_equal(exportws_send(h.w, "one", LITERAL("still here"), EXPORTWS_TEXT), 1);
    client_expect_close(&h, &clients[0], 1000, "ended");
    client_expect_close(&h, &clients[1], 1000, "ended");
    client_expect_text(&h, &clients[2], "still here");
    client_join(&h, &clients[0], "gone");
    client_expect_nothing(&h, &clients[0]);
    client_close(&clients[0]), client_close(&clients[2]);
    host_expect_empty(&h);
    host_end(&h);
}

/* ===== Callbacks ===== */

static void message_comes_whole_and_heartbeat_does_not(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    h.o.heartbeat_reply = 1;
    host_start(&h);
    client_join(&h, &clients[0], "t");
    client_say(&clients[0], EXPORTWS_TEXT, LITERAL("HEART-BEAT"));
    client_expect_text(&h, &clients[0], "HEART-BEAT");
    client_say(&clients[0], EXPORTWS_TEXT, LITERAL("text"));
    client_say(&clients[0], EXPORTWS_BINARY, LITERAL("HEART-BEAT"));
    client_say(&clients[0], EXPORTWS_TEXT, LITERAL(""));
    while (h.messages < 3) exportws_step(h.w, 10);
    assert_string_equal(h.seen, "upgrade t\nopen t\nmessage t 1 text\nmessage t 2 HEART-BEAT\n"
                                "message t 1 \n");
    client_say(&clients[0], 8, "\x03\xe9 bye", 6);
    client_expect(&h, &clients[0], 8, "\x03\xe9", 2);
    client_close(&clients[0]);
    host_expect_empty(&h);
    assert_non_null(strstr(h.seen, "close t 0 1001\n"));
    host_end(&h);
}

static void callbacks_may_all_be_missing(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    h.o.on_upgrade = NULL, h.o.on_open = NULL, h.o.on_message = NULL;
    h.o.on_close = NULL, h.o.on_log = NULL;
    host_start(&h);
    client_join(&h, &clients[0], "t");
    client_say(&clients[0], EXPORTWS_TEXT, LITERAL("x"));
    assert_int_equal(exportws_send(h.w, "t", LITERAL("y"), EXPORTWS_TEXT), 1);
    client_expect_text(&h, &clients[0], "y");
    assert_int_equal(exportws_kick(h.w, "t"), 1);
    client_expect_close(&h, &clients[0], 1000, "ended");
    host_end(&h);
}

static void look_at_request(void *user, const exportws_request *r)
{
    struct host *h = user;
    char value[16] = "?", tiny[3];
    host_note(h, "token=%s query=%s ", exportws_request_token(r), exportws_request_query(r));
    assert_int_equal(exportws_request_header(r, "x-Name", value, sizeof value), 11);
    assert_string_equal(value, "first value");
    assert_int_equal(exportws_request_header(r, "X-NAME", tiny, sizeof tiny), 11);
    assert_string_equal(tiny, "fi");
    assert_int_equal(exportws_request_header(r, "x-name", value, 0), 11);
    assert_int_equal(exportws_request_header(r, "x-name", NULL, 0), 11);
    assert_int_equal(exportws_request_header(r, "x-name", NULL, 9), 11);
    assert_int_equal(exportws_request_header(r, "x-empty", value, sizeof value), 0);
    assert_string_equal(value, "");
    value[0] = '?';
    assert_int_equal(exportws_request_header(r, "x-nam", value, sizeof value), 0);
    assert_string_equal(value, "");
    assert_int_equal(exportws_request_header(r, "", value, sizeof value), 0);
    assert_int_equal(exportws_request_header(r, NULL, value, sizeof value), 0);
    assert_int_equal(exportws_request_header(r, "host", value, sizeof value), 1);
    assert_string_equal(value, "h");
}

static int refuse_as_asked(void *user, const exportws_request *r)
{
    char value[16];
    look_at_request(user, r);
    exportws_request_header(r, "x-status", value, sizeof value);
    return atoi(value);
}

static void upgrade_sees_the_request_and_may_refuse_it(void **state)
{
    static const struct {
        int answer, status;
    } rows[] = {{400, 400}, {401, 401}, {403, 403}, {404, 404}, {429, 429}, {503, 503},
                {599, 599}, {399, 403}, {600, 403}, {1, 403},   {-1, 403},  {101, 403}};
    struct host h;
    (void)state;
    host_defaults(&h);
    h.o.on_upgrade = refuse_as_asked;
    host_start(&h);
    for (size_t i = 0; i <= COUNT(rows); i++) {
        char headers[128];
        snprintf(headers, sizeof headers,
                 "X-Empty:\r\nX-Name:   first value \r\nX-Name: second\r\nX-Status: %d\r\n",
                 i < COUNT(rows) ? rows[i].answer : 0);
        int status = client_ask(&h, &clients[0], "a%20b%C3%A9?q=%41&r", headers);
        assert_int_equal(status, i < COUNT(rows) ? rows[i].status : 101);
        assert_string_equal(h.seen, i < COUNT(rows)
                                        ? "token=a b\xc3\xa9 query=q=%41&r "
                                        : "token=a b\xc3\xa9 query=q=%41&r open a b\xc3\xa9\n");
        client_close(&clients[0]);
        host_settle(&h);
        memset(h.seen, 0, h.seen_size);
        h.seen_size = 0;
    }
    host_expect_empty(&h);
    host_end(&h);
}

/* ----- what a callback does ----- */

static void act_send(struct host *h, const char *where)
{
    (void)where;
    h->results[0] = exportws_send(h->w, "t", LITERAL("sent"), EXPORTWS_TEXT);
}

static void act_reply(struct host *h, const char *where)
{
    (void)where;
    h->results[0] = exportws_reply(h->w, h->last, LITERAL("replied"), EXPORTWS_TEXT);
}

static void act_broadcast(struct host *h, const char *where)
{
    (void)where;
    h->results[0] = exportws_broadcast(h->w, LITERAL("to all"), EXPORTWS_TEXT);
}

static void act_post(struct host *h, const char *where)
{
    (void)where;
    h->results[0] = exportws_post(h->w, NULL, LITERAL("posted"), EXPORTWS_TEXT);
}

static void act_close(struct host *h, const char *where)
{
    (void)where;
    h->results[0] = exportws_close(h->w, h->last, 4000, "in the callback");
}

static void act_kick(struct host *h, const char *where)
{
    (void)where;
    h->results[0] = exportws_kick(h->w, "t");
}

static void act_kick_all(struct host *h, const char *where)
{
    (void)where;
    h->results[0] = exportws_kick(h->w, "other");
    h->results[1] = exportws_kick(h->w, "t");
}

static void act_all(struct host *h, const char *where)
{
    act_send(h, where), act_broadcast(h, where), act_reply(h, where), act_post(h, where);
    act_close(h, where), act_send(h, where), act_kick_all(h, where), act_send(h, where);
    act_kick(h, where);
}

static void act_stop(struct host *h, const char *where)
{
    (void)where;
    h->results[0] = 0;
    for (int i = 0; i < 100; i++) exportws_stop(h->w);
}

/* What must not be done in a callback: it is refused, and does nothing. */
static void act_forbidden(struct host *h, const char *where)
{
    struct pollfd fds[64];
    int timeout = -1, n = exportws_pollfds(h->w, fds, COUNT(fds), &timeout);
    (void)where;
    if (n < 0) assert_int_equal(n, EXPORTWS_GONE); /* in the last line */
    h->results[0] = exportws_step(h->w, 0);
    h->results[1] = exportws_step(h->w, -1);
    h->results[2] = exportws_dispatch(h->w, fds, n < 0 ? 0 : (size_t)n);
    h->results[3] = EXPORTWS_BAD;
    exportws_end(h->w);
}

static const char *const places[] = {"upgrade",     "open",      "message",    "close",
                                     "log open",    "log close", "log push",   "log hold",
                                     "log drain",   "log stop",  "log refuse"};

/* A life of two sessions with `act` in one callback; all ends well whatever it does. */
static void play(struct host *h, void (*act)(struct host *, const char *), const char *where)
{
    host_defaults(h);
    h->o.close_timeout_ms = 20, h->o.drain_ms = 200;
    host_start(h);
    client_join(h, &clients[1], "other");
    h->act = act, h->act_where = where;
    for (int i = 0; i < 8; i++) h->results[i] = 99;
    client_ask(h, &clients[0], "t", "");
    client_say(&clients[0], EXPORTWS_TEXT, LITERAL("speaks"));
    client_say(&clients[1], EXPORTWS_TEXT, LITERAL("speaks, too"));
    host_settle(h);
    if (strcmp(where, "log refuse") == 0) {
        assert_int_equal(client_ask(h, &clients[2], "a/b", ""), 404);
        client_close(&clients[2]);
    }
    exportws_send(h->w, "t", LITERAL("a push"), EXPORTWS_TEXT);
    exportws_send(h->w, "absent", LITERAL("a push"), EXPORTWS_TEXT);
    exportws_kick(h->w, "t");
    host_settle(h);
    client_close(&clients[0]), client_close(&clients[1]);
    host_settle(h);
    exportws_stop(h->w);
    for (int turn = 0; turn < 1000 && exportws_step(h->w, 10) >= 0; turn++) {}
    assert_int_equal(exportws_step(h->w, 0), EXPORTWS_GONE);
    assert_int_equal(exportws_sessions(h->w), 0);
    assert_int_equal(exportws_online(h->w), 0);
    if (h->results[0] == 99) fail_msg("%s was never called", where);
}

/* Everything may be done everywhere: nothing crashes, each session is told of once, all slots and
 * blocks come back. */
static void callback_may_do_anything(void **state)
{
    static void (*const acts[])(struct host *, const char *) = {
        act_send, act_reply, act_broadcast, act_post, act_close, act_kick, act_kick_all, act_all,
        act_stop};
    int open = descriptors_open();
    (void)state;
    for (size_t place = 0; place < COUNT(places); place++)
        for (size_t i = 0; i < COUNT(acts); i++) {
            struct host h;
            play(&h, acts[i], places[place]);
            if (h.opens != h.closes)
                fail_msg("%s, act %zu: %d opened, %d closed:\n%s", places[place], i, h.opens,
                         h.closes, h.seen);
            host_end(&h);
            assert_int_equal(descriptors_open(), open);
        }
}

static void callback_that_does_the_forbidden_is_told_so(void **state)
{
    (void)state;
    for (size_t place = 0; place < COUNT(places); place++) {
        struct host h;
        play(&h, act_forbidden, places[place]);
        for (int i = 0; i < 4; i++)
            if (h.results[i] != EXPORTWS_BAD)
                fail_msg("%s: %d is %d", places[place], i, h.results[i]);
        assert_int_equal(h.opens, 2);
        assert_int_equal(h.closes, 2);
        host_end(&h);
    }
}

/* What is done to the session whose callback runs is seen by its client, in order. */
static void callback_reaches_its_own_session(void **state)
{
    static const struct {
        const char *where;
        void (*act)(struct host *, const char *);
        const char *want;
        int result, code;
        const char *reason;
    } rows[] = {
        {"open", act_send, "sent", 1, 0, ""},
        {"open", act_reply, "replied", 1, 0, ""},
        {"open", act_broadcast, "to all", 1, 0, ""},
        {"open", act_post, "posted", 0, 0, ""},
        {"open", act_close, NULL, 0, 4000, "in the callback"},
        {"open", act_kick, NULL, 1, 1000, "ended"},
        {"open", act_kick_all, NULL, EXPORTWS_ABSENT, 1000, "ended"},
        {"open", act_stop, NULL, 0, 1001, "server shutting down"},
        {"message", act_send, "sent", 1, 0, ""},
        {"message", act_broadcast, "to all", 1, 0, ""},
        {"message", act_post, "posted", 0, 0, ""},
        {"message", act_kick_all, NULL, EXPORTWS_ABSENT, 1000, "ended"},
        {"message", act_stop, NULL, 0, 1001, "server shutting down"},
        {"message", act_reply, "replied", 1, 0, ""},
        {"message", act_close, NULL, 0, 4000, "in the callback"},
        {"message", act_kick, NULL, 1, 1000, "ended"},
        {"log open", act_send, "sent", 1, 0, ""},
        {"log open", act_kick, NULL, 1, 1000, "ended"},
        {"upgrade", act_send, "sent", 0, 0, ""},
        {"close", act_reply, NULL, EXPORTWS_GONE, -1, ""},
        {"close", act_close, NULL, EXPORTWS_GONE, -1, ""},
        {"close", act_kick, NULL, EXPORTWS_ABSENT, -1, ""},
        {"close", act_send, NULL, 0, -1, ""},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct host h;
        host_defaults(&h);
        host_start(&h);
        h.act = rows[i].act, h.act_where = rows[i].where;
        client_join(&h, &clients[0], "t");
        if (rows[i].code >= 0) client_say(&clients[0], EXPORTWS_TEXT, LITERAL("hi"));
        if (rows[i].want) client_expect_text(&h, &clients[0], rows[i].want);
        if (rows[i].code > 0) client_expect_close(&h, &clients[0], rows[i].code, rows[i].reason);
        client_close(&clients[0]);
        h.act = rows[i].code < 0 ? h.act : NULL;
        host_expect_empty(&h);
        if (h.results[0] != rows[i].result)
            fail_msg("row %zu: %d instead of %d", i, h.results[0], rows[i].result);
        host_end(&h);
    }
}

/* The callback's own session, used on after it was closed. */
static void act_close_and_go_on(struct host *h, const char *where)
{
    act_close(h, where);
    h->results[1] = exportws_reply(h->w, h->last, LITERAL("late"), EXPORTWS_TEXT);
    h->results[2] = exportws_close(h->w, h->last, 4001, "again");
    h->results[3] = exportws_broadcast(h->w, LITERAL("late"), EXPORTWS_TEXT);
    h->results[4] = exportws_send(h->w, "t", LITERAL("for the next"), EXPORTWS_TEXT);
    h->results[5] = exportws_kick(h->w, "t");
    h->results[6] = exportws_sessions(h->w);
}

static void session_closed_in_its_callback_is_gone_at_once(void **state)
{
    static const int want[] = {0, EXPORTWS_GONE, EXPORTWS_GONE, 0, 0, 0, 0};
    static const char *const where[] = {"open", "message", "log message"};
    (void)state;
    for (size_t i = 0; i < COUNT(where); i++) {
        struct host h;
        host_defaults(&h);
        if (i == 2) h.o.on_message = NULL; /* only then is it logged */
        host_start(&h);
        h.act = act_close_and_go_on, h.act_where = where[i];
        client_join(&h, &clients[0], "t");
        client_say(&clients[0], EXPORTWS_TEXT, LITERAL("hi"));
        client_expect_close(&h, &clients[0], 4000, "in the callback");
        host_expect_empty(&h);
        for (size_t j = 0; j < COUNT(want); j++)
            if (h.results[j] != want[j])
                fail_msg("%s: answer %zu is %d, not %d", where[i], j, h.results[j], want[j]);
        assert_int_equal(h.closes, 1);
        host_end(&h);
    }
}

/* What a callback is given it may pass on to any function, and it stays what it is until the
 * callback returns, whatever becomes of its session meanwhile. */
static void pass_on(void *user, exportws_id session, const char *token, const void *data,
                    size_t size, int kind)
{
    struct host *h = user;
    h->messages++;
    h->results[0] = exportws_send(h->w, token, data, size, kind);
    h->results[1] = exportws_post(h->w, token, data, size, kind);
    h->results[2] = exportws_reply(h->w, session, token, strlen(token), EXPORTWS_TEXT);
    h->results[3] = exportws_kick(h->w, token);
    h->results[4] = exportws_broadcast(h->w, data, size, kind);
    h->results[5] = exportws_send(h->w, token, data, size, kind);
    host_note(h, "%s %.*s\n", token, (int)size, (const char *)data);
}

static void callback_may_pass_on_what_it_is_given(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    h.o.on_message = pass_on;
    host_start(&h);
    client_join(&h, &clients[0], "the-token");
    client_join(&h, &clients[1], "other");
    memset(h.seen, 0, h.seen_size), h.seen_size = 0;
    client_say(&clients[0], EXPORTWS_TEXT, LITERAL("the message"));
    client_expect_text(&h, &clients[0], "the message");
    client_expect_text(&h, &clients[0], "the-token");
    client_expect_close(&h, &clients[0], 1000, "ended");
    client_expect_text(&h, &clients[1], "the message");
    assert_int_equal(strncmp(h.seen, "the-token the message\n", 22), 0);
    static const int want[] = {1, 0, 1, 1, 1, 0};
    for (size_t i = 0; i < COUNT(want); i++)
        if (h.results[i] != want[i]) fail_msg("answer %zu is %d", i, h.results[i]);
    client_join(&h, &clients[0], "the-token"); /* what was sent and posted after the kick is held */
    client_expect_text(&h, &clients[0], "the message");
    client_expect_text(&h, &clients[0], "the message");
    client_expect_nothing(&h, &clients[0]);
    client_close(&clients[0]), client_close(&clients[1]);
    host_expect_empty(&h);
    host_end(&h);
}

/* The first line is said before exportws_start has returned: the host has no server yet, or, in the
 * same memory, takes it for the one before. */
static void start_may_be_told_of_before_it_returns(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    h.act = act_all, h.act_where = "log start", h.results[7] = 99;
    host_start(&h);
    assert_int_equal(h.acts, 1);
    assert_int_equal(h.results[0], EXPORTWS_BAD);
    exportws_end(h.w);
    h.act = act_forbidden;
    h.w = exportws_start(&h.o, h.block + 64, h.bytes, h.why, sizeof h.why);
    assert_ptr_equal(h.w, h.block + 64);
    assert_int_equal(h.acts, 2);
    for (int i = 0; i < 3; i++) assert_int_equal(h.results[i], EXPORTWS_BAD);
    exportws_address(h.w, EXPORTWS_CLIENTS, h.address, sizeof h.address);
    client_join(&h, &clients[0], "t");
    assert_int_equal(exportws_send(h.w, "t", LITERAL("x"), EXPORTWS_TEXT), 1);
    client_expect_text(&h, &clients[0], "x");
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

/* What was held is older than what the log's reader sends when it sees the session open. */
static void held_messages_come_before_what_on_log_sends(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    host_start(&h);
    assert_int_equal(exportws_send(h.w, "t", LITERAL("held"), EXPORTWS_TEXT), 0);
    h.act = act_send, h.act_where = "log open";
    client_join(&h, &clients[0], "t");
    client_expect_text(&h, &clients[0], "held");
    client_expect_text(&h, &clients[0], "sent");
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

/* A message expires, the log says so, and its reader drops what else is held for the token. */
static void kick_from_the_line_of_an_expiry_drops_each_message_once(void **state)
{
    struct host h;
    int turns = 0;
    (void)state;
    host_defaults(&h);
    h.o.hold_ms = 600; /* both at once would be another test: no turn is half a second late */
    host_start(&h);
    int room = buffer_room(&h);
    assert_int_equal(exportws_send(h.w, "t", LITERAL("one"), EXPORTWS_TEXT), 0);
    exportws_step(h.w, 500);
    assert_int_equal(exportws_send(h.w, "t", LITERAL("two"), EXPORTWS_TEXT), 0);
    h.act = act_kick, h.act_where = "log expire", h.results[0] = 99;
    while (h.results[0] == 99 && turns++ < 1000) exportws_step(h.w, 10);
    assert_int_equal(h.results[0], 0);
    h.act = NULL;
    exportws_step(h.w, 600);
    assert_int_equal(exportws_kick(h.w, "t"), EXPORTWS_ABSENT);
    assert_int_equal(buffer_room(&h), room);
    client_join(&h, &clients[0], "t");
    client_expect_nothing(&h, &clients[0]);
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

/* ... and ends the sessions of another token: the turn that told of the one tells of the other. */
static void session_ended_in_the_line_of_an_expiry_is_told_of_in_that_turn(void **state)
{
    struct host h;
    int turns = 0;
    (void)state;
    host_defaults(&h);
    h.o.hold_ms = 50;
    host_start(&h);
    client_join(&h, &clients[0], "t");
    assert_int_equal(exportws_send(h.w, "other", LITERAL("one"), EXPORTWS_TEXT), 0);
    h.act = act_kick, h.act_where = "log expire", h.results[0] = 99;
    while (h.results[0] == 99 && turns++ < 1000) exportws_step(h.w, 10);
    assert_int_equal(h.results[0], 1);
    assert_int_equal(h.closes, 1);
    client_expect_close(&h, &clients[0], 1000, "ended");
    host_expect_empty(&h);
    host_end(&h);
}

static void log_lines_come_only_as_wanted(void **state)
{
    struct host h;
    (void)state;
    for (int level = EXPORTWS_LOG_ERROR; level <= EXPORTWS_LOG_DEBUG; level++) {
        host_defaults(&h);
        h.o.log_level = level;
        h.log_wanted = 1;
        host_start(&h);
        client_join(&h, &clients[0], "secret-token");
        client_close(&clients[0]);
        host_expect_empty(&h);
        assert_int_equal(h.lines > 0, level >= EXPORTWS_LOG_INFO);
        int whole = strstr(h.seen, "token=secret-token") != NULL;
        assert_int_equal(whole, level == EXPORTWS_LOG_DEBUG);
        host_end(&h);
    }
}

/* ===== Other threads' door ===== */

static void post_is_delivered_in_order_in_a_turn(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    host_start(&h);
    client_join(&h, &clients[0], "t");
    client_join(&h, &clients[1], "u");
    assert_int_equal(exportws_post(h.w, "t", LITERAL("one"), EXPORTWS_TEXT), 0);
    assert_int_equal(exportws_post(h.w, NULL, LITERAL("all"), EXPORTWS_BINARY), 0);
    assert_int_equal(exportws_post(h.w, "t", NULL, 0, EXPORTWS_TEXT), 0);
    client_expect_text(&h, &clients[0], "one");
    client_expect(&h, &clients[0], EXPORTWS_BINARY, "all", 3);
    client_expect_text(&h, &clients[0], "");
    client_expect(&h, &clients[1], EXPORTWS_BINARY, "all", 3);
    client_expect_nothing(&h, &clients[1]);
    client_close(&clients[0]), client_close(&clients[1]);
    host_expect_empty(&h);
    host_end(&h);
}

static void post_is_full_until_the_loop_has_had_a_turn(void **state)
{
    struct host h;
    char text[32], want[32];
    int n, got;
    (void)state;
    host_defaults(&h);
    host_start(&h);
    client_join(&h, &clients[0], "t");
    for (int round = 0, at = 0; round < 20; round++) {
        n = 0;
        do {
            snprintf(text, sizeof text, "post %d", at + n);
            got = exportws_post(h.w, "t", text, strlen(text), EXPORTWS_TEXT);
        } while (got == 0 && n++ < 100000);
        assert_int_equal(got, EXPORTWS_FULL);
        assert_true(n > 100);
        for (int end = at + n; at < end; at++) {
            snprintf(want, sizeof want, "post %d", at);
            client_expect_text(&h, &clients[0], want);
        }
    }
    client_expect_nothing(&h, &clients[0]);
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

static void post_as_long_as_can_be_goes_through(void **state)
{
    static char text[8192];
    char token[65];
    struct host h;
    (void)state;
    memset(text, 'm', sizeof text);
    memset(token, 't', 64), token[64] = '\0';
    host_defaults(&h);
    host_start(&h);
    client_join(&h, &clients[0], token);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(exportws_post(h.w, token, text, sizeof text, EXPORTWS_TEXT), 0);
        client_expect(&h, &clients[0], EXPORTWS_TEXT, text, sizeof text);
    }
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

static void post_that_nobody_can_get_is_logged(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    h.o.hold_ms = 0, h.log_wanted = 1;
    host_start(&h);
    assert_int_equal(exportws_post(h.w, "absent", LITERAL("x"), EXPORTWS_TEXT), 0);
    host_settle(&h);
    assert_non_null(strstr(h.seen, "event=refuse token=abse"));
    assert_non_null(strstr(h.seen, exportws_strerror(EXPORTWS_ABSENT)));
    host_end(&h);
}

/* ===== Stop ===== */

static exportws *to_stop;

static void stop_in_handler(int number)
{
    (void)number;
    exportws_stop(to_stop);
}

static void stopped_server_is_gone_for_all(void **state)
{
    struct host h;
    struct pollfd fds[64];
    struct sigaction act;
    int timeout = 0;
    (void)state;
    host_defaults(&h);
    host_start(&h);
    client_join(&h, &clients[0], "t");
    memset(&act, 0, sizeof act);
    act.sa_handler = stop_in_handler;
    to_stop = h.w;
    sigaction(SIGUSR1, &act, NULL);
    errno = 1234;
    raise(SIGUSR1);
    assert_int_equal(errno, 1234);
    exportws_step(h.w, 1000);
    assert_int_equal(exportws_send(h.w, "t", "x", 1, EXPORTWS_TEXT), EXPORTWS_GONE);
    assert_int_equal(exportws_send(h.w, "absent", "x", 1, EXPORTWS_TEXT), EXPORTWS_GONE);
    assert_int_equal(exportws_post(h.w, "t", "x", 1, EXPORTWS_TEXT), EXPORTWS_GONE);
    assert_int_equal(exportws_post(h.w, NULL, "x", 1, EXPORTWS_TEXT), EXPORTWS_GONE);
    client_expect_close(&h, &clients[0], 1001, "server shutting down");
    for (int turn = 0; turn < 1000 && exportws_step(h.w, 10) >= 0; turn++) {}
    assert_int_equal(exportws_step(h.w, 0), EXPORTWS_GONE);
    assert_int_equal(exportws_step(h.w, -1), EXPORTWS_GONE);
    assert_int_equal(exportws_pollfds(h.w, fds, COUNT(fds), &timeout), EXPORTWS_GONE);
    assert_int_equal(exportws_dispatch(h.w, fds, 1), EXPORTWS_GONE);
    assert_int_equal(exportws_send(h.w, "t", "x", 1, EXPORTWS_TEXT), EXPORTWS_GONE);
    assert_int_equal(exportws_broadcast(h.w, "x", 1, EXPORTWS_TEXT), EXPORTWS_GONE);
    assert_int_equal(exportws_reply(h.w, h.last, "x", 1, EXPORTWS_TEXT), EXPORTWS_GONE);
    assert_int_equal(exportws_close(h.w, h.last, 1000, NULL), EXPORTWS_GONE);
    assert_int_equal(exportws_post(h.w, NULL, "x", 1, EXPORTWS_TEXT), EXPORTWS_GONE);
    assert_int_equal(exportws_kick(h.w, "t"), EXPORTWS_ABSENT);
    assert_int_equal(h.closes, 1);
    exportws_stop(h.w);
    host_end(&h);
}

static void drain_ends_with_who_does_not_answer(void **state)
{
    struct host h;
    long long start;
    (void)state;
    host_defaults(&h);
    h.o.drain_ms = 100;
    host_start(&h);
    int fd = crowd_join(&h, "mute", 0);
    start = now_ms();
    exportws_stop(h.w);
    while (exportws_step(h.w, -1) >= 0) {}
    assert_in_range(now_ms() - start, 90, 5000);
    assert_int_equal(h.closes, 1);
    close(fd);
    host_end(&h);
}

/* ===== A host's own loop ===== */

/* One turn of a poll() loop such as a host would have. */
static int host_poll(struct host *h, struct pollfd *fds, size_t max, int timeout_ms)
{
    int n = exportws_pollfds(h->w, fds, max, &timeout_ms);
    if (n < 0) return n;
    poll(fds, (nfds_t)n, timeout_ms);
    return exportws_dispatch(h->w, fds, (size_t)n);
}

static void host_loop_serves(void **state)
{
    struct pollfd fds[32];
    struct host h;
    struct client *c = &clients[0];
    long long deadline = now_ms() + (long long)WAIT_MS * test_slow();
    char request[] = "GET /app/ws/export-task/t HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
                     "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    (void)state;
    host_defaults(&h);
    host_start(&h);
    h.act = act_reply, h.act_where = "message";
    memset(c, 0, sizeof *c);
    c->fd = dial(h.address, 0);
    client_write(c, request, sizeof request - 1);
    while (h.opens == 0 && now_ms() < deadline) host_poll(&h, fds, COUNT(fds), 100);
    assert_int_equal(h.opens, 1);
    client_say(c, EXPORTWS_TEXT, LITERAL("hi"));
    while (h.messages == 0 && now_ms() < deadline) host_poll(&h, fds, COUNT(fds), 100);
    assert_int_equal(h.results[0], 1);
    assert_int_equal(exportws_post(h.w, "t", LITERAL("posted"), EXPORTWS_TEXT), 0);
    assert_int_equal(host_poll(&h, fds, COUNT(fds), 1000), 1); /* the post wakes it */
    exportws_stop(h.w);
    client_close(c);
    while (host_poll(&h, fds, COUNT(fds), 100) >= 0 && now_ms() < deadline) {}
    assert_int_equal(host_poll(&h, fds, COUNT(fds), 100), EXPORTWS_GONE);
    assert_int_equal(h.closes, 1);
    host_end(&h);
}

static void pollfds_lowers_the_timeout_and_refuses_bad_use(void **state)
{
    struct pollfd fds[32];
    struct host h;
    int timeout = -1, n;
    (void)state;
    host_defaults(&h);
    h.o.ping_ms = 5000;
    host_start(&h);
    n = exportws_pollfds(h.w, fds, COUNT(fds), &timeout);
    assert_true(n > 0);
    assert_int_equal(timeout, -1); /* nothing is due */
    timeout = 777;
    assert_int_equal(exportws_pollfds(h.w, fds, COUNT(fds), &timeout), n);
    assert_int_equal(timeout, 777);
    client_join(&h, &clients[0], "t");
    timeout = -1;
    assert_int_equal(exportws_pollfds(h.w, fds, COUNT(fds), &timeout), n + 1);
    assert_in_range(timeout, 1, 5000);
    timeout = 3;
    exportws_pollfds(h.w, fds, COUNT(fds), &timeout);
    assert_int_equal(timeout, 3);
    assert_int_equal(exportws_pollfds(h.w, fds, (size_t)n, &timeout), EXPORTWS_TOO_BIG);
    assert_int_equal(exportws_pollfds(h.w, fds, 0, &timeout), EXPORTWS_TOO_BIG);
    assert_int_equal(exportws_pollfds(h.w, NULL, 32, &timeout), EXPORTWS_BAD);
    assert_int_equal(exportws_pollfds(h.w, fds, 32, NULL), EXPORTWS_BAD);
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

static void dispatch_wants_the_fds_of_the_last_pollfds(void **state)
{
    struct pollfd fds[32];
    struct host h;
    int timeout = 0;
    (void)state;
    host_defaults(&h);
    host_start(&h);
    client_join(&h, &clients[0], "t");
    int n = exportws_pollfds(h.w, fds, COUNT(fds), &timeout);
    for (int i = 0; i < n; i++) fds[i].revents = 0;
    assert_int_equal(exportws_dispatch(h.w, NULL, (size_t)n), EXPORTWS_BAD);
    for (int i = 0; i < n; i++) {
        int fd = fds[i].fd;
        fds[i].fd = 1000, fds[i].revents = POLLIN;
        assert_int_equal(exportws_dispatch(h.w, fds, (size_t)n), EXPORTWS_BAD);
        fds[i].fd = fd, fds[i].revents = 0;
    }
    fds[n] = (struct pollfd){.fd = 1000, .events = POLLIN, .revents = POLLIN};
    assert_int_equal(exportws_dispatch(h.w, fds, (size_t)n + 1), EXPORTWS_BAD);
    assert_int_equal(exportws_dispatch(h.w, fds, (size_t)n), 0);
    assert_int_equal(exportws_sessions(h.w), 1);
    client_close(&clients[0]);
    host_expect_empty(&h);
    host_end(&h);
}

/* The bound that the header promises, with every slot taken and the push door overrun. */
static void pollfds_never_needs_more_than_the_header_says(void **state)
{
    struct pollfd fds[64];
    struct host h;
    char push[128];
    int fd[16], count = 0, timeout = 0;
    (void)state;
    host_defaults(&h);
    h.o.capacity = 2, h.o.handshakes = 2, h.o.pushers = 2;
    h.o.push = "127.0.0.1:0";
    host_start(&h);
    exportws_address(h.w, EXPORTWS_PUSH, push, sizeof push);
    for (int i = 0; i < 2; i++) fd[count++] = crowd_join(&h, "t", 0);
    for (int i = 0; i < 2; i++) fd[count++] = dial(h.address, 0);
    for (int i = 0; i < 10; i++) fd[count++] = dial(push, 0);
    for (int turn = 0; turn < 10; turn++) {
        size_t max = h.o.capacity + h.o.handshakes + h.o.pushers + 5;
        int n = exportws_pollfds(h.w, fds, max, &timeout);
        if (n < 0) fail_msg("turn %d: %zu are not enough: %d", turn, max, n);
        exportws_step(h.w, 0);
    }
    while (count > 0) close(fd[--count]);
    host_end(&h);
}

/* Between poll() and dispatch the host sends to sessions that were asleep. */
static void host_may_send_between_poll_and_dispatch(void **state)
{
    static struct pollfd fds[CLIENTS + 32];
    static char text[8000];
    struct host h;
    char token[16];
    int count = 0, timeout = 0;
    (void)state;
    memset(text, 'x', sizeof text);
    host_defaults(&h);
    h.o.capacity = CLIENTS, h.o.queue = 1000, h.o.buffer_bytes = 1 << 22;
    host_start(&h);
    for (; count < CLIENTS; count++) {
        snprintf(token, sizeof token, "t%d", count);
        crowd[count] = crowd_join(&h, token, 4096);
    }
    for (int turn = 0; turn < 40; turn++) exportws_step(h.w, 10); /* they go cold */
    int n = exportws_pollfds(h.w, fds, COUNT(fds), &timeout);
    assert_true(n > CLIENTS);
    poll(fds, (nfds_t)n, 0);
    for (int i = 0; i < 1000; i++) /* more than its socket takes */
        exportws_send(h.w, "t200", text, sizeof text, EXPORTWS_TEXT);
    assert_true(exportws_dispatch(h.w, fds, (size_t)n) >= 0);
    while (count > 0) close(crowd[--count]);
    host_end(&h);
}

/* ===== Several servers, and the rest ===== */

static void two_servers_do_not_know_each_other(void **state)
{
    struct host a, b;
    (void)state;
    host_defaults(&a), host_start(&a);
    host_defaults(&b), host_start(&b);
    client_join(&a, &clients[0], "t");
    client_join(&b, &clients[1], "t");
    assert_int_equal(exportws_sessions(a.w), 1);
    assert_int_equal(exportws_broadcast(a.w, LITERAL("of a"), EXPORTWS_TEXT), 1);
    assert_int_equal(exportws_send(b.w, "t", LITERAL("of b"), EXPORTWS_TEXT), 1);
    client_expect_text(&a, &clients[0], "of a");
    client_expect_text(&b, &clients[1], "of b");
    exportws_stop(a.w);
    client_expect_close(&a, &clients[0], 1001, "server shutting down");
    for (int turn = 0; turn < 1000 && exportws_step(a.w, 10) >= 0; turn++) {}
    assert_int_equal(exportws_step(a.w, 0), EXPORTWS_GONE);
    host_end(&a);
    assert_int_equal(exportws_send(b.w, "t", LITERAL("on"), EXPORTWS_TEXT), 1);
    client_expect_text(&b, &clients[1], "on");
    client_close(&clients[1]);
    host_expect_empty(&b);
    host_end(&b);
}

/* One server pushes to the other's sessions from inside its own callback. */
static struct host *other_host;

static void act_other(struct host *h, const char *where)
{
    (void)where;
    h->results[0] = exportws_send(other_host->w, "t", LITERAL("from the other"), EXPORTWS_TEXT);
    h->results[1] = exportws_step(other_host->w, 0);
}

static void server_may_be_turned_in_a_callback_of_another(void **state)
{
    struct host a, b;
    (void)state;
    host_defaults(&a), host_start(&a);
    host_defaults(&b), host_start(&b);
    client_join(&b, &clients[1], "t");
    other_host = &b;
    a.act = act_other, a.act_where = "open";
    client_join(&a, &clients[0], "x");
    assert_int_equal(a.results[0], 1);
    assert_true(a.results[1] >= 0);
    client_expect_text(&b, &clients[1], "from the other");
    client_close(&clients[0]), client_close(&clients[1]);
    host_expect_empty(&a), host_expect_empty(&b);
    host_end(&a), host_end(&b);
}

static void error_has_words(void **state)
{
    static const int unknown[] = {1, -7, 100, INT_MAX, INT_MIN};
    (void)state;
    for (int i = 0; i >= EXPORTWS_BAD; i--) {
        assert_true(strlen(exportws_strerror(i)) > 0);
        for (int j = 0; j > i; j--)
            assert_string_not_equal(exportws_strerror(i), exportws_strerror(j));
    }
    for (size_t i = 0; i < COUNT(unknown); i++)
        assert_string_equal(exportws_strerror(unknown[i]), "unknown error");
}

static void step_waits_no_longer_than_told(void **state)
{
    struct host h;
    (void)state;
    host_defaults(&h);
    host_start(&h);
    long long start = now_ms();
    assert_int_equal(exportws_step(h.w, 0), 0);
    assert_true(now_ms() - start < 1000LL * test_slow());
    start = now_ms();
    assert_int_equal(exportws_step(h.w, 60), 0);
    assert_in_range(now_ms() - start, 59, 3000 * test_slow());
    host_end(&h);
}

static void nothing(int number)
{
    (void)number;
}

/* A session speaks without a pause and leaves, then somebody knocks, while nothing at all is due:
 * were turns that follow each other closely of a part of the poll set, this one would not end. */
static void step_without_a_deadline_misses_nobody(void **state)
{
    const int seconds = 10 * test_slow();
    struct sigaction act, before;
    struct host h;
    (void)state;
    memset(&act, 0, sizeof act);
    act.sa_handler = nothing;
    sigaction(SIGALRM, &act, &before);
    host_defaults(&h);
    h.o.log_level = EXPORTWS_LOG_ERROR;
    host_start(&h);
    for (int round = 0; round < 5; round++) {
        long long start = now_ms();
        client_join(&h, &clients[0], "t");
        while (now_ms() < start + 250) {
            client_say(&clients[0], 1, LITERAL("x"));
            exportws_step(h.w, -1);
        }
        client_close(&clients[0]);
        while (exportws_sessions(h.w) > 0) exportws_step(h.w, -1);
        clients[0].fd = dial(h.address, 0);
        start = now_ms();
        alarm((unsigned)seconds);
        assert_true(exportws_step(h.w, -1) >= 0);
        client_close(&clients[0]);
        exportws_step(h.w, -1);
        alarm(0);
        assert_in_range(now_ms() - start, 0, seconds * 1000 - 100);
    }
    sigaction(SIGALRM, &before, NULL);
    host_end(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_command_line),
        cmocka_unit_test(option_out_of_range_is_named),
        cmocka_unit_test(origin_that_is_null_is_named),
        cmocka_unit_test(memory_grows_with_each_option),
        cmocka_unit_test(start_refuses_memory_that_will_not_do),
        cmocka_unit_test(start_says_why_as_far_as_it_fits),
        cmocka_unit_test(start_leaves_nothing_open_when_a_door_cannot),
        cmocka_unit_test(end_gives_all_back_and_calls_nobody),
        cmocka_unit_test(end_twice_closes_nobody_elses_descriptors),
        cmocka_unit_test(address_is_the_real_one),
        cmocka_unit_test(door_takes_a_socket_that_listens),
        cmocka_unit_test(page_comes_whole_through_narrow_sockets),
        cmocka_unit_test(page_that_nobody_takes_is_given_up),
        cmocka_unit_test(page_gives_way_to_a_newcomer),
        cmocka_unit_test(bad_message_touches_nobody),
        cmocka_unit_test(null_server_is_an_error_everywhere),
        cmocka_unit_test(send_tells_how_many_it_reached),
        cmocka_unit_test(send_holds_for_the_absent),
        cmocka_unit_test(send_to_the_absent_without_holding_is_absent),
        cmocka_unit_test(full_buffer_is_told_and_comes_back),
        cmocka_unit_test(reply_reaches_one_session_alone),
        cmocka_unit_test(stale_id_is_gone_and_not_somebody_elses),
        cmocka_unit_test(reply_that_does_not_fit_leaves_the_session_as_it_was),
        cmocka_unit_test(close_sends_the_code_and_is_told_once),
        cmocka_unit_test(close_that_is_not_proper_leaves_the_session_alone),
        cmocka_unit_test(kick_ends_all_of_a_token_and_no_other),
        cmocka_unit_test(message_comes_whole_and_heartbeat_does_not),
        cmocka_unit_test(callbacks_may_all_be_missing),
        cmocka_unit_test(upgrade_sees_the_request_and_may_refuse_it),
        cmocka_unit_test(callback_may_do_anything),
        cmocka_unit_test(callback_that_does_the_forbidden_is_told_so),
        cmocka_unit_test(callback_reaches_its_own_session),
        cmocka_unit_test(session_closed_in_its_callback_is_gone_at_once),
        cmocka_unit_test(callback_may_pass_on_what_it_is_given),
        cmocka_unit_test(start_may_be_told_of_before_it_returns),
        cmocka_unit_test(held_messages_come_before_what_on_log_sends),
        cmocka_unit_test(session_ended_in_the_line_of_an_expiry_is_told_of_in_that_turn),
        cmocka_unit_test(kick_from_the_line_of_an_expiry_drops_each_message_once),
        cmocka_unit_test(log_lines_come_only_as_wanted),
        cmocka_unit_test(post_is_delivered_in_order_in_a_turn),
        cmocka_unit_test(post_is_full_until_the_loop_has_had_a_turn),
        cmocka_unit_test(post_as_long_as_can_be_goes_through),
        cmocka_unit_test(post_that_nobody_can_get_is_logged),
        cmocka_unit_test(stopped_server_is_gone_for_all),
        cmocka_unit_test(drain_ends_with_who_does_not_answer),
        cmocka_unit_test(host_loop_serves),
        cmocka_unit_test(pollfds_lowers_the_timeout_and_refuses_bad_use),
        cmocka_unit_test(dispatch_wants_the_fds_of_the_last_pollfds),
        cmocka_unit_test(pollfds_never_needs_more_than_the_header_says),
        cmocka_unit_test(host_may_send_between_poll_and_dispatch),
        cmocka_unit_test(two_servers_do_not_know_each_other),
        cmocka_unit_test(server_may_be_turned_in_a_callback_of_another),
        cmocka_unit_test(error_has_words),
        cmocka_unit_test(step_waits_no_longer_than_told),
        cmocka_unit_test(step_without_a_deadline_misses_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
