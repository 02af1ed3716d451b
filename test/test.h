/* test.h - what the unit tests share: guarded buffers, rows at every prefix, a fake clock, servers
 * and peers in process
 *
 *     #define EXPORTWS_NO_MAIN
 *     #include "../exportws.c"
 *     #include "test.h"
 *
 *     static int parse(void *state, const uint8_t *p, size_t n) { return head_parse(state, p, n); }
 *
 *     static void head_is_read(void **state)
 *     {
 *         static const struct row row = ROW("one line", "GET / HTTP/1.0\r\n\r\n", 18);
 *         (void)state;
 *         row_run(&row, parse, sizeof(struct head));
 *     }
 *
 * A test is one translation unit, so that everything here may be static, and `static inline` keeps
 * compilers silent about what a test does not use. It comes behind exportws.c, which sets the
 * feature macro.
 *
 * The clock is fake where the link says so: -Wl,--wrap=clock_gettime -Wl,--wrap=time. Then nothing
 * moves it but clock_advance(). Without those flags the real clock is used and the functions below
 * are dead weight. */
#ifndef EXPORTWS_TEST_H
#define EXPORTWS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cmocka.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ===== Guards: memory between two pages that may not be touched ===== */

struct guard {
    uint8_t *first, *end; /* usable: [first, end); first[-1] and end[0] fault */
};

/* Maps at least `bytes` bytes. A mapped temporary file is the one way that POSIX itself has. */
static inline struct guard guard_map(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (bytes / page + 1) * page;
    struct guard g;
    FILE *file = tmpfile();
    assert_non_null(file);
    assert_int_equal(ftruncate(fileno(file), (off_t)(size + 2 * page)), 0);
    uint8_t *p = mmap(NULL, size + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fileno(file), 0);
    assert_true(p != MAP_FAILED);
    fclose(file);
    g.first = p + page, g.end = g.first + size;
    assert_int_equal(mprotect(p, page, PROT_NONE), 0);
    assert_int_equal(mprotect(g.end, page, PROT_NONE), 0);
    return g;
}

static inline void guard_unmap(struct guard *g)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (g->first) munmap(g->first - page, (size_t)(g->end - g->first) + 2 * page);
    g->first = g->end = NULL;
}

enum { GUARD_BYTES = 200000 };

/* A copy of bytes[0..n) whose end touches a page that may not be read: p[n] faults. Valid until the
 * next call. */
static inline uint8_t *guard_copy(const void *bytes, size_t n)
{
    static struct guard g;
    if (!g.first) g = guard_map(GUARD_BYTES);
    assert_true(n <= GUARD_BYTES);
    if (n > 0) memcpy(g.end - n, bytes, n);
    return g.end - n;
}

/* The same with its start at such a page: p[-1] faults. */
static inline uint8_t *guard_copy_low(const void *bytes, size_t n)
{
    static struct guard g;
    if (!g.first) g = guard_map(GUARD_BYTES);
    assert_true(n <= GUARD_BYTES);
    if (n > 0) memcpy(g.first, bytes, n);
    return g.first;
}

/* Room for n bytes of output, behind which a write faults; before it stand 64 bytes that
 * guard_room_kept looks after. Valid until the next call. */
static inline uint8_t *guard_room(size_t n)
{
    static struct guard g;
    if (!g.first) g = guard_map(GUARD_BYTES + 64);
    assert_true(n <= GUARD_BYTES);
    memset(g.end - n - 64, 0xa5, n + 64);
    return g.end - n;
}

static inline int guard_room_kept(const uint8_t *room)
{
    size_t i = 0;
    while (i < 64 && room[-1 - (ptrdiff_t)i] == 0xa5) i++;
    return i == 64;
}

/* ===== Rows: a parser's input, whole, at every prefix, in two pieces and byte by byte ===== */

/* Reads p[0..n), in which the bytes of the last call with this state stand first. Bytes used, 0:
 * more is needed, or a negative refusal. A state is all zero at the start. */
typedef int row_parser(void *state, const uint8_t *p, size_t n);

/* want: the bytes used; 0: more is needed, after all of the input; negative: the refusal that the
 * last byte causes. */
struct row {
    const char *name, *input;
    size_t size;
    int want;
};

#define ROW(name, input, want) {name, input, sizeof(input) - 1, want}

enum { ROW_STATE = 512, ROW_JUNK = 24 };

struct row_state {
    uint64_t words[ROW_STATE / 8];
};

/* How many bytes a parser has to see before it may say anything but "more". */
static inline size_t row_decided(const struct row *row)
{
    return row->want > 0 ? (size_t)row->want : row->want < 0 ? row->size : row->size + 1;
}

static inline void row_expect(const struct row *row, const char *how, size_t n, int got)
{
    int want = n >= row_decided(row) ? row->want : 0;
    if (got != want)
        fail_msg("%s: %s, %zu of %zu bytes: %d instead of %d", row->name, how, n, row->size, got,
                 want);
}

static inline void row_prefixes(const struct row *row, row_parser *parse)
{
    for (size_t n = 0; n <= row->size; n++) {
        struct row_state state = {{0}};
        row_expect(row, "prefix", n, parse(&state, guard_copy(row->input, n), n));
        memset(&state, 0, sizeof state);
        row_expect(row, "prefix behind a page", n, parse(&state, guard_copy_low(row->input, n), n));
    }
}

static inline void row_splits(const struct row *row, row_parser *parse)
{
    for (size_t n = 0; n < row_decided(row) && n <= row->size; n++) {
        struct row_state state = {{0}};
        row_expect(row, "first piece", n, parse(&state, guard_copy(row->input, n), n));
        row_expect(row, "both pieces", row->size,
                   parse(&state, guard_copy(row->input, row->size), row->size));
    }
}

/* What one call and many make of the same bytes must be the same. */
static inline void row_bytes(const struct row *row, row_parser *parse, size_t state_size)
{
    struct row_state whole = {{0}}, state = {{0}};
    size_t last = row->want > 0 ? (size_t)row->want : row->size;
    parse(&whole, guard_copy(row->input, row->size), row->size);
    for (size_t n = 0; n <= last; n++)
        row_expect(row, "byte by byte", n, parse(&state, guard_copy(row->input, n), n));
    if (row->want >= 0 && memcmp(&whole, &state, state_size) != 0)
        fail_msg("%s: byte by byte it reads something else", row->name);
}

/* What follows a unit changes nothing. */
static inline void row_behind(const struct row *row, row_parser *parse)
{
    static const uint8_t junk[] = {0, '\r', '\n', 'x', 0xff};
    static uint8_t bytes[GUARD_BYTES];
    if (row->want == 0) return;
    assert_true(row->size + ROW_JUNK <= sizeof bytes);
    memcpy(bytes, row->input, row->size);
    for (size_t i = 0; i < sizeof junk; i++) {
        struct row_state state = {{0}};
        size_t n = row->size + ROW_JUNK;
        memset(bytes + row->size, junk[i], ROW_JUNK);
        row_expect(row, "with more behind it", n, parse(&state, guard_copy(bytes, n), n));
    }
}

/* All of that for one row. */
static inline void row_run(const struct row *row, row_parser *parse, size_t state_size)
{
    assert_true(state_size <= ROW_STATE);
    assert_true(row->want <= (int)row->size);
    row_prefixes(row, parse);
    row_splits(row, parse);
    row_bytes(row, parse, state_size);
    row_behind(row, parse);
}

/* ===== Fake clock ===== */

struct fake_clock {
    uint64_t monotonic_ms, realtime_ms;
    time_t seconds; /* what time() says */
};

enum { CLOCK_START_MS = 5000000 };

/* 2026-01-02T03:04:05Z */
static struct fake_clock fake_clock = {CLOCK_START_MS, 1767323045000, 1767323045};

int __wrap_clock_gettime(clockid_t which, struct timespec *now);
time_t __wrap_time(time_t *now);

int __wrap_clock_gettime(clockid_t which, struct timespec *now)
{
    uint64_t ms = which == CLOCK_MONOTONIC ? fake_clock.monotonic_ms : fake_clock.realtime_ms;
    now->tv_sec = (time_t)(ms / 1000);
    now->tv_nsec = (long)(ms % 1000) * 1000000;
    return 0;
}

time_t __wrap_time(time_t *now)
{
    if (now) *now = fake_clock.seconds;
    return fake_clock.seconds;
}

static inline void clock_advance(uint64_t ms)
{
    fake_clock.monotonic_ms += ms;
    fake_clock.realtime_ms += ms;
    fake_clock.seconds = (time_t)(fake_clock.realtime_ms / 1000);
}

/* ===== A server in process ===== */

/* Its memory ends at a page that may not be touched, and its log is kept. */

enum { UNIT_LINES = 64 };

struct unit {
    exportws_options o;
    exportws *w;
    struct guard memory;
    char why[160];
    char lines[UNIT_LINES][LINE_MAX_BYTES]; /* the newest; line i stands at i % UNIT_LINES */
    int levels[UNIT_LINES];
    unsigned count;
};

static inline void unit_log(void *user, int level, const char *line)
{
    struct unit *u = user;
    struct text t = {u->lines[u->count % UNIT_LINES], 0, LINE_MAX_BYTES};
    text_add(&t, line), text_end(&t);
    u->levels[u->count++ % UNIT_LINES] = level;
}

/* The newest line of the log, "" when there is none. */
static inline const char *unit_line(const struct unit *u)
{
    return u->count > 0 ? u->lines[(u->count - 1) % UNIT_LINES] : "";
}

/* The defaults with both doors shut, and a log: change u->o, then start it. */
static inline void unit_defaults(struct unit *u)
{
    memset(u, 0, sizeof *u);
    exportws_defaults(&u->o);
    u->o.on_log = unit_log;
    u->o.user = u;
}

static inline exportws *unit_start(struct unit *u)
{
    size_t bytes = exportws_memory(&u->o);
    assert_true(bytes > 0 && bytes % sizeof(uint64_t) == 0);
    u->memory = guard_map(bytes);
    memset(u->memory.end - bytes, 0xa5, bytes);
    u->w = exportws_start(&u->o, u->memory.end - bytes, bytes, u->why, sizeof u->why);
    if (!u->w) fail_msg("no start: %s", u->why);
    u->count = 0;
    return u->w;
}

static inline void unit_end(struct unit *u)
{
    exportws_end(u->w);
    u->w = NULL;
    guard_unmap(&u->memory);
}

/* Turns without waiting until nothing happens any more. */
static inline void unit_settle(struct unit *u)
{
    for (int turn = 0; turn < 1000; turn++)
        if (exportws_step(u->w, 0) <= 0) return;
    fail_msg("the server does not come to rest");
}

/* ===== A scripted peer ===== */

/* At the far end of a socketpair: pieces go in one by one, what comes back is gathered. */

struct piece {
    const void *bytes;
    size_t size;
};

#define PIECE(literal) {literal, sizeof(literal) - 1}

struct script {
    const struct piece *pieces;
    size_t count, next;
    int fd;    /* of the peer, or -1 */
    int ended; /* the server has ended its side, or reset */
    size_t got_size;
    uint8_t got[1 << 17];
};

/* Makes the pair. Returns the server's end; both ends don't block. */
static inline int script_open(struct script *s, const struct piece *pieces, size_t count)
{
    int fds[2];
    memset(s, 0, sizeof *s);
    s->pieces = pieces, s->count = count;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    for (int i = 0; i < 2; i++) assert_int_equal(socket_prepare(fds[i]), 0);
    s->fd = fds[0];
    return fds[1];
}

static inline void script_close(struct script *s)
{
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
}

/* Sends the next piece. 1, or 0 when all are sent. */
static inline int script_send(struct script *s)
{
    if (s->next == s->count) return 0;
    const struct piece *piece = &s->pieces[s->next++];
    assert_int_equal(send(s->fd, piece->bytes, piece->size, MSG_NOSIGNAL), (ssize_t)piece->size);
    return 1;
}

/* Gathers what there is. Returns how much was new. */
static inline size_t script_read(struct script *s)
{
    size_t before = s->got_size;
    while (!s->ended && s->got_size < sizeof s->got) {
        ssize_t n = recv(s->fd, s->got + s->got_size, sizeof s->got - s->got_size, 0);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n <= 0) s->ended = 1;
        else s->got_size += (size_t)n;
    }
    return s->got_size - before;
}

/* Connects the peer to a door of a server (its doors may be shut). */
static inline void script_attach(struct script *s, struct unit *u, int door,
                                 const struct piece *pieces, size_t count)
{
    struct sockaddr from;
    int fd = script_open(s, pieces, count);
    memset(&from, 0, sizeof from);
    from.sa_family = AF_UNIX;
    exportws_step(u->w, 0); /* its clock is right only then */
    if (door == EXPORTWS_CLIENTS) client_accept(u->w, fd, &from);
    else pusher_accept(u->w, fd, &from);
}

/* Plays all pieces: the server is at rest after each. */
static inline void script_play(struct script *s, struct unit *u)
{
    do {
        unit_settle(u);
        while (script_read(s) > 0) unit_settle(u);
    } while (script_send(s));
}

/* Takes what was gathered so far off. */
static inline void script_take(struct script *s, size_t n)
{
    memmove(s->got, s->got + n, s->got_size - n);
    s->got_size -= n;
}

/* Opens a session of a token: what came behind the 101 is left in got. */
static inline void script_join(struct script *s, struct unit *u, const char *token)
{
    static const char behind[] = "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    char request[512];
    int n = snprintf(request, sizeof request,
                     "GET %s%s HTTP/1.1\r\nHost: h\r\n"
                     "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                     u->o.path, token);
    struct piece piece = {request, (size_t)n};
    script_attach(s, u, EXPORTWS_CLIENTS, &piece, 1);
    script_play(s, u);
    s->pieces = NULL, s->count = s->next = 0;
    char *end = NULL;
    for (size_t i = 0; i + sizeof behind - 1 <= s->got_size && !end; i++)
        if (memcmp(s->got + i, behind, sizeof behind - 1) == 0) end = (char *)s->got + i;
    if (!end || memcmp(s->got, "HTTP/1.1 101 ", 13) != 0)
        fail_msg("no session of %s: %.*s", token, (int)s->got_size, (const char *)s->got);
    script_take(s, (size_t)((uint8_t *)end - s->got) + sizeof behind - 1);
}

/* A server's frame. */
struct script_message {
    unsigned opcode;
    size_t size;
    const uint8_t *payload;
};

/* Takes the next frame off what was gathered, the payload of the last one with it: 1, or 0 when
 * there is no whole one. It must be final and unmasked. The payload is copied to `room`. */
static inline int script_message(struct script *s, struct script_message *m, uint8_t *room)
{
    const uint8_t *p = s->got;
    size_t head = 2;
    if (s->got_size < 2) return 0;
    assert_int_equal(p[0] & 0xf0, 0x80);
    m->opcode = p[0] & 15U, m->size = p[1];
    assert_true(p[1] < 128);
    if (m->size >= 126) {
        size_t more = m->size == 126 ? 2 : 8;
        head += more, m->size = 0;
        for (size_t i = 0; i < more && s->got_size >= head; i++) m->size = m->size << 8 | p[2 + i];
    }
    if (s->got_size < head || s->got_size - head < m->size) return 0;
    if (m->size > 0) memcpy(room, p + head, m->size);
    m->payload = room;
    script_take(s, head + m->size);
    return 1;
}

/* The next frame is this text. */
static inline void script_expect(struct script *s, unsigned opcode, const void *want, size_t n)
{
    static uint8_t room[1 << 17];
    struct script_message m = {0};
    if (!script_message(s, &m, room))
        fail_msg("no frame where '%.*s' should come", (int)n, (const char *)want);
    if (m.opcode != opcode || m.size != n || (n > 0 && memcmp(m.payload, want, n) != 0))
        fail_msg("opcode %u, '%.*s' instead of '%.*s'", m.opcode, (int)m.size,
                 (const char *)m.payload, (int)n, (const char *)want);
}

static inline void script_expect_text(struct script *s, const char *want)
{
    script_expect(s, OP_TEXT, want, strlen(want));
}

/* A close frame with this code, and nothing behind it. */
static inline void script_expect_close(struct script *s, unsigned code, const char *why)
{
    uint8_t payload[CONTROL_MAX];
    size_t n = strlen(why);
    payload[0] = (uint8_t)(code >> 8), payload[1] = (uint8_t)(code & 255);
    memcpy(payload + 2, why, n);
    script_expect(s, OP_CLOSE, payload, 2 + n);
    assert_int_equal(s->got_size, 0);
}

/* A client's frame: first byte (FIN, RSV, opcode), mask and payload, as RFC 6455 draws it. Returns
 * its length. */
static inline size_t script_frame(uint8_t *out, unsigned first, const void *payload, size_t n,
                                  const uint8_t mask[4])
{
    const uint8_t *from = payload;
    size_t at = 0;
    out[at++] = (uint8_t)first;
    if (n < 126) {
        out[at++] = (uint8_t)(0x80 + n);
    } else if (n < 65536) {
        out[at++] = 0xfe;
        out[at++] = (uint8_t)(n / 256), out[at++] = (uint8_t)(n % 256);
    } else {
        out[at++] = 0xff;
        for (int shift = 56; shift >= 0; shift -= 8)
            out[at++] = (uint8_t)((uint64_t)n >> shift & 255);
    }
    for (int i = 0; i < 4; i++) out[at++] = mask[i];
    for (size_t i = 0; i < n; i++) out[at++] = (uint8_t)(from[i] ^ mask[i % 4]);
    return at;
}

#endif
