/* faults.h - a server in this process whose system calls fail on demand; its clock and its peers
 * are the test's
 *
 *     static struct world s;
 *     faults_clear();
 *     world_init(&s, "example");       then change s.o
 *     world_doors(&s);
 *     world_start(&s);
 *     faults.plan = (struct fault){CALL_SEND, 3, 1, EPIPE};    the third send() fails, once
 *     struct peer *a = world_join(&s, "a");
 *     peer_frame(a, OP_TEXT, "m1");
 *     world_settle(&s);
 *     want_got(&s, a, "101 ...");
 *     world_end(&s);                   s.wrong is "", or says what was wrong
 *
 * Comes instead of exportws.c, which it includes. Link with FAULTS_WRAP, see below: every system
 * call that the server makes goes through __wrap_*, which counts it and fails it when the plan says
 * so, but only while the server runs (INSIDE); what the test itself does goes to __real_*. Neither
 * poll() nor the clock ever waits: time stands still until clock_pass(). */
#ifndef EXPORTWS_TEST_FAULTS_H
#define EXPORTWS_TEST_FAULTS_H

#ifndef EXPORTWS_NO_MAIN
#define EXPORTWS_NO_MAIN
#endif
#include "../exportws.c"

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "audit.h"

/* FAULTS_WRAP: -Wl,--wrap=NAME for each of
 *     poll accept recv send close fcntl socket bind listen getsockname setsockopt pipe read write
 *     shutdown open connect unlink lstat getsockopt clock_gettime */

enum fault_call {
    CALL_POLL,
    CALL_ACCEPT,
    CALL_RECV,
    CALL_SEND,
    CALL_CLOSE,
    CALL_FCNTL,
    CALL_SOCKET,
    CALL_BIND,
    CALL_LISTEN,
    CALL_GETSOCKNAME,
    CALL_SETSOCKOPT,
    CALL_PIPE,
    CALL_READ,
    CALL_WRITE,
    CALL_SHUTDOWN,
    CALL_OPEN,
    CALL_CONNECT,
    CALL_UNLINK,
    CALL_LSTAT,
    CALL_GETSOCKOPT,
    CALL_CLOCK,
    CALLS
};

static const char *const fault_names[CALLS] = {
    "poll",     "accept", "recv",        "send",       "close", "fcntl",      "socket",
    "bind",     "listen", "getsockname", "setsockopt", "pipe",  "read",       "write",
    "shutdown", "open",   "connect",     "unlink",     "lstat", "getsockopt", "clock_gettime"};

enum {
    FAULT_SHORT = -1, /* comes back short by one byte */
    FAULT_BYTE = -2,  /* comes back with one byte */
    FAULT_HOUR = -3,  /* the clock is an hour further than a moment ago */
    FAULT_STILL = -4, /* the clock stands still */
    FAULT_FDS = 1024,
    FDS_MOST = 96,           /* a run needs fewer descriptors */
    FAULT_USES = 200000,     /* more calls than that in one run is a loop without end */
    CLOCK_START_MS = 5000000 /* the clock of time since boot, at a run's start */
};

/* The uses n, n + 1 .. n + times - 1 of a call fail; times 0: none does, UINT_MAX: all from n on.
 */
struct fault {
    unsigned call, n, times;
    int error;
};

static struct faults {
    struct fault plan;
    int inside; /* the server is running: its calls are counted */
    unsigned uses[CALLS], all;
    unsigned injected;
    uint8_t hit[FAULT_FDS]; /* descriptors whose own call was the one */
    uint64_t monotonic_us, realtime_us, still_us;
    unsigned look_us; /* time that passes with every look at the clock */
    unsigned polled;  /* set it to 0, */
    int poll_timeout; /* and this is what the server asks for next */
} faults;

static inline void faults_clear(void)
{
    memset(&faults, 0, sizeof faults);
    faults.monotonic_us = (uint64_t)CLOCK_START_MS * 1000;
    faults.realtime_us = 1767323045000000; /* 2026-01-02T03:04:05Z */
}

static inline void clock_pass(uint64_t ms)
{
    faults.monotonic_us += ms * 1000;
    faults.realtime_us += ms * 1000;
}

/* INSIDE(exportws_step(w, 0)): what it calls may fail. */
static inline int fault_leave(int result)
{
    faults.inside = 0;
    return result;
}

#define INSIDE(call) (faults.inside = 1, fault_leave(call))

/* The errnos by name, for the messages. */
static inline const char *fault_error_name(int error)
{
    static const struct {
        int error;
        const char *name;
    } rows[] = {{FAULT_SHORT, "short"},
                {FAULT_BYTE, "byte"},
                {FAULT_HOUR, "hour"},
                {FAULT_STILL, "still"},
                {EINTR, "EINTR"},
                {EAGAIN, "EAGAIN"},
                {ECONNRESET, "ECONNRESET"},
                {EPIPE, "EPIPE"},
                {ECONNABORTED, "ECONNABORTED"},
                {EMFILE, "EMFILE"},
                {ENFILE, "ENFILE"},
                {ENOBUFS, "ENOBUFS"},
                {ENOMEM, "ENOMEM"},
                {ETIMEDOUT, "ETIMEDOUT"},
                {ENOTCONN, "ENOTCONN"},
                {EADDRINUSE, "EADDRINUSE"},
                {EACCES, "EACCES"},
                {EINVAL, "EINVAL"},
                {EAFNOSUPPORT, "EAFNOSUPPORT"},
                {EADDRNOTAVAIL, "EADDRNOTAVAIL"},
                {ENOENT, "ENOENT"},
                {EIO, "EIO"},
                {ECONNREFUSED, "ECONNREFUSED"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].error == error) return rows[i].name;
    return "E?";
}

/* ----- the calls ----- */

/* Counts a use. Whether this one is in the plan; then errno is set when it is to fail. */
static inline int fault_hits(unsigned call, int fd)
{
    if (!faults.inside) return 0;
    if (++faults.all == FAULT_USES) fail_msg("%s: the server calls without end", fault_names[call]);
    unsigned use = ++faults.uses[call];
    const struct fault *plan = &faults.plan;
    if (plan->times == 0 || plan->call != call || use < plan->n || use - plan->n >= plan->times)
        return 0;
    faults.injected++;
    if (fd >= 0 && fd < FAULT_FDS) faults.hit[fd] = 1;
    if (plan->error > 0) errno = plan->error;
    return 1;
}

static inline int fault_fails(unsigned call, int fd)
{
    return fault_hits(call, fd) && faults.plan.error > 0;
}

/* What is left of n bytes when the call comes back short. */
static inline size_t fault_less(size_t n)
{
    return n <= 1 || faults.plan.error == FAULT_BYTE ? n > 0 : n - 1;
}

#define WRAP(type, name, parameters)                                                               \
    extern type __real_##name parameters;                                                          \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters

WRAP(int, poll, (struct pollfd * fds, nfds_t n, int timeout_ms))
{
    if (!faults.inside) return __real_poll(fds, n, timeout_ms);
    if (!faults.polled++) faults.poll_timeout = timeout_ms;
    return fault_fails(CALL_POLL, -1) ? -1 : __real_poll(fds, n, 0);
}

WRAP(int, accept, (int fd, struct sockaddr *from, socklen_t *size))
{
    return fault_fails(CALL_ACCEPT, fd) ? -1 : __real_accept(fd, from, size);
}

/* A short look at what waits is a fault that passes: for ever it would say that no more comes. */
WRAP(ssize_t, recv, (int fd, void *p, size_t n, int flags))
{
    if (!fault_hits(CALL_RECV, fd)) return __real_recv(fd, p, n, flags);
    if (faults.plan.error > 0) return -1;
    ssize_t there = __real_recv(fd, p, n, flags | MSG_PEEK);
    if (there <= 0) return there;
    if (flags & MSG_PEEK) return faults.plan.times > 1 ? there : (ssize_t)fault_less((size_t)there);
    return __real_recv(fd, p, fault_less((size_t)there), flags);
}

WRAP(ssize_t, send, (int fd, const void *p, size_t n, int flags))
{
    if (!fault_hits(CALL_SEND, fd)) return __real_send(fd, p, n, flags);
    return faults.plan.error > 0 ? -1 : __real_send(fd, p, fault_less(n), flags);
}

/* A close() that fails has closed. */
WRAP(int, close, (int fd))
{
    int fails = fault_fails(CALL_CLOSE, fd), error = errno, result = __real_close(fd);
    if (!fails) return result;
    errno = error;
    return -1;
}

extern int __real_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...)
{
    va_list more;
    va_start(more, command);
    int value = va_arg(more, int);
    va_end(more);
    return fault_fails(CALL_FCNTL, fd) ? -1 : __real_fcntl(fd, command, value);
}

WRAP(int, socket, (int domain, int type, int protocol))
{
    return fault_fails(CALL_SOCKET, -1) ? -1 : __real_socket(domain, type, protocol);
}

WRAP(int, bind, (int fd, const struct sockaddr *at, socklen_t size))
{
    return fault_fails(CALL_BIND, fd) ? -1 : __real_bind(fd, at, size);
}

WRAP(int, listen, (int fd, int backlog))
{
    return fault_fails(CALL_LISTEN, fd) ? -1 : __real_listen(fd, backlog);
}

WRAP(int, getsockname, (int fd, struct sockaddr *at, socklen_t *size))
{
    return fault_fails(CALL_GETSOCKNAME, fd) ? -1 : __real_getsockname(fd, at, size);
}

WRAP(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t size))
{
    return fault_fails(CALL_SETSOCKOPT, fd) ? -1 : __real_setsockopt(fd, level, name, value, size);
}

WRAP(int, pipe, (int fds[2])) { return fault_fails(CALL_PIPE, -1) ? -1 : __real_pipe(fds); }

WRAP(ssize_t, read, (int fd, void *p, size_t n))
{
    if (!fault_hits(CALL_READ, fd)) return __real_read(fd, p, n);
    return faults.plan.error > 0 ? -1 : __real_read(fd, p, fault_less(n));
}

WRAP(ssize_t, write, (int fd, const void *p, size_t n))
{
    return fault_fails(CALL_WRITE, fd) ? -1 : __real_write(fd, p, n);
}

WRAP(int, shutdown, (int fd, int how))
{
    return fault_fails(CALL_SHUTDOWN, fd) ? -1 : __real_shutdown(fd, how);
}

extern int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...)
{
    return fault_fails(CALL_OPEN, -1) ? -1 : __real_open(path, flags);
}

WRAP(int, connect, (int fd, const struct sockaddr *to, socklen_t size))
{
    return fault_fails(CALL_CONNECT, fd) ? -1 : __real_connect(fd, to, size);
}

WRAP(int, unlink, (const char *path))
{
    return fault_fails(CALL_UNLINK, -1) ? -1 : __real_unlink(path);
}

WRAP(int, lstat, (const char *path, struct stat *st))
{
    return fault_fails(CALL_LSTAT, -1) ? -1 : __real_lstat(path, st);
}

WRAP(int, getsockopt, (int fd, int level, int name, void *value, socklen_t *size))
{
    return fault_fails(CALL_GETSOCKOPT, fd) ? -1 : __real_getsockopt(fd, level, name, value, size);
}

WRAP(int, clock_gettime, (clockid_t which, struct timespec *now))
{
    int hit = fault_hits(CALL_CLOCK, -1), still = hit && faults.plan.error == FAULT_STILL;
    if (hit && faults.plan.error > 0) return -1;
    if (hit && faults.plan.error == FAULT_HOUR) clock_pass(3600000);
    faults.monotonic_us += faults.inside ? faults.look_us : 0;
    if (!faults.still_us || !still) faults.still_us = faults.monotonic_us;
    uint64_t us = which != CLOCK_MONOTONIC ? faults.realtime_us
                : still                    ? faults.still_us
                                           : faults.monotonic_us;
    now->tv_sec = (time_t)(us / 1000000);
    now->tv_nsec = (long)(us % 1000000) * 1000;
    return 0;
}

/* Descriptors of this process that are open. */
static inline unsigned fds_open(void)
{
    struct pollfd fds[FDS_MOST];
    unsigned n = 0;
    for (int fd = 0; fd < FDS_MOST; fd++) fds[fd] = (struct pollfd){fd, 0, 0};
    __real_poll(fds, FDS_MOST, 0);
    for (int fd = 0; fd < FDS_MOST; fd++) n += !(fds[fd].revents & POLLNVAL);
    return n;
}

/* ----- peers ----- */

enum { PEERS = 12, PEER_BYTES = 8192, PEER_GOT = 1024 };

/* A client or a pusher that reads what the server says, strictly. Behind its close frame a server
 * may still answer a ping (RFC 6455, 5.5.2). */
struct peer {
    int fd;             /* -1: none */
    uint8_t web;        /* it is a WebSocket by now */
    uint8_t deaf, mute; /* does not read; does not answer pings and closes */
    uint8_t closing;    /* a close frame came */
    uint8_t ended;      /* the server has ended the connection, */
    uint8_t reset;      /* by a reset */
    size_t n, total;    /* bytes that are not parsed yet, and all that came */
    uint8_t bytes[PEER_BYTES];
    char got[PEER_GOT];  /* statuses and messages, each with a space behind it */
    char body[PEER_GOT]; /* of the last response */
    const char *broken;  /* what it said that no server may */
};

static inline void peer_add(struct peer *p, const char *words, size_t n)
{
    size_t used = strlen(p->got);
    if (used + n + 2 > sizeof p->got) {
        p->broken = "more words than the test can take";
        return;
    }
    memcpy(p->got + used, words, n);
    memcpy(p->got + used + n, " ", 2);
}

static inline void peer_say_bytes(struct peer *p, const void *bytes, size_t n)
{
    if (p->fd >= 0 && n > 0) (void)!__real_send(p->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static inline void peer_say(struct peer *p, const char *text)
{
    peer_say_bytes(p, text, strlen(text));
}

/* Puts a client's frame to out: first is FIN, RSV and opcode. Returns its length. */
static inline size_t peer_frame_put(uint8_t *out, unsigned first, const void *payload, size_t n)
{
    static const uint8_t mask[4] = {0x5a, 0x00, 0xff, 0x21};
    size_t at = 0;
    out[at++] = (uint8_t)first;
    out[at++] = (uint8_t)(0x80 | (n < 126 ? n : 126));
    if (n >= 126) out[at++] = (uint8_t)(n >> 8), out[at++] = (uint8_t)n;
    memcpy(out + at, mask, 4), at += 4;
    for (size_t i = 0; i < n; i++) out[at++] = ((const uint8_t *)payload)[i] ^ mask[i & 3];
    return at;
}

static inline void peer_frame(struct peer *p, unsigned opcode, const char *payload)
{
    uint8_t frame[1024];
    peer_say_bytes(p, frame, peer_frame_put(frame, 0x80 | opcode, payload, strlen(payload)));
}

static inline void peer_frame_close(struct peer *p, unsigned code)
{
    const uint8_t payload[2] = {(uint8_t)(code >> 8), (uint8_t)code};
    uint8_t frame[16];
    peer_say_bytes(p, frame, peer_frame_put(frame, 0x88, payload, 2));
}

/* Notes a message up to its first '.', which is padding. */
static inline void peer_note(struct peer *p, const uint8_t *text, size_t n)
{
    const uint8_t *dot = n > 0 ? memchr(text, '.', n) : NULL;
    peer_add(p, (const char *)text, dot ? (size_t)(dot - text) : n);
}

static inline void peer_close_came(struct peer *p, const uint8_t *payload, size_t n)
{
    char word[16];
    unsigned code = n >= 2 ? (unsigned)payload[0] << 8 | payload[1] : 1005;
    snprintf(word, sizeof word, "close:%u", code);
    peer_add(p, word, strlen(word));
    if (n == 1 || (n >= 2 && !utf8_valid(payload + 2, n - 2)))
        p->broken = "a close frame that is none";
    if (!p->mute) peer_frame_close(p, n >= 2 ? code : 1000);
    p->closing = 1;
}

/* Takes one frame. Returns its length, 0: more is needed. */
static inline size_t peer_frame_take(struct peer *p)
{
    const uint8_t *b = p->bytes;
    size_t head = 2, size = p->n < 2 ? 0 : b[1];
    if (p->n < 2) return 0;
    unsigned opcode = b[0] & 15;
    if ((b[0] & 0xf0) != 0x80 || size > 126) p->broken = "a frame's head that no server sends";
    if (opcode != 1 && opcode != 2 && opcode != 8 && opcode != 9 && opcode != 10)
        p->broken = "an unknown opcode";
    if (opcode >= 8 && size > 125) p->broken = "a control frame that is too long";
    if (p->broken) return 0;
    if (size == 126) {
        head = 4;
        if (p->n < head) return 0;
        size = (size_t)b[2] << 8 | b[3];
        if (size < 126) p->broken = "a length that is not minimal";
    }
    if (p->n < head + size) return 0;
    if (opcode == 1 && !utf8_valid(b + head, size)) p->broken = "a text that is not UTF-8";
    if (opcode <= 2) peer_note(p, b + head, size);
    if (opcode == 8) peer_close_came(p, b + head, size);
    if (opcode == 9) peer_add(p, "ping", 4);
    if (opcode == 9 && !p->mute) peer_frame(p, OP_PONG, "");
    if (opcode == 10) peer_add(p, "pong", 4);
    return head + size;
}

/* Takes one response. Returns its length, 0: more is needed. */
static inline size_t peer_response_take(struct peer *p)
{
    const char *text = (const char *)p->bytes, *end, *length;
    size_t size = 0;
    p->bytes[p->n] = '\0';
    if (p->n >= 13 && strncmp(text, "HTTP/1.1 ", 9) != 0) p->broken = "a response that is none";
    end = strstr(text, "\r\n\r\n");
    if (p->broken || !end) return 0;
    length = strstr(text, "\r\nContent-Length: ");
    if (length && length < end) size = (size_t)strtoul(length + 18, NULL, 10);
    else if (text[9] != '1') p->broken = "a response without Content-Length";
    end += 4;
    if (p->n < (size_t)(end - text) + size) return 0;
    snprintf(p->body, sizeof p->body, "%.*s", (int)size, end);
    peer_add(p, text + 9, 3);
    if (strncmp(text + 9, "101", 3) == 0) p->web = 1;
    return (size_t)(end - text) + size;
}

static inline void peer_parse(struct peer *p)
{
    size_t used = 1;
    while (p->n > 0 && used > 0 && !p->broken) {
        if (p->closing && p->bytes[0] != (0x80 | OP_PONG)) p->broken = "more behind a close frame";
        used = p->web ? peer_frame_take(p) : peer_response_take(p);
        p->n -= used;
        memmove(p->bytes, p->bytes + used, p->n);
    }
}

/* Reads all that is there. */
static inline void peer_pump(struct peer *p)
{
    while (p->fd >= 0 && !p->deaf && !p->ended) {
        ssize_t n = __real_recv(p->fd, p->bytes + p->n, sizeof p->bytes - 1 - p->n, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (n <= 0) {
            p->ended = 1;
            p->reset = n < 0;
            return;
        }
        p->n += (size_t)n, p->total += (size_t)n;
        peer_parse(p);
        if (p->n == sizeof p->bytes - 1) p->broken = "a unit that is too long";
        if (p->broken) return;
    }
}

static inline void peer_leave(struct peer *p)
{
    if (p->fd >= 0) __real_close(p->fd);
    p->fd = -1;
}

/* ----- worlds ----- */

enum world_door { DOOR_UNIX, DOOR_TCP };

enum { WORLD_POLLS = 512 };

/* One server and those around it. */
struct world {
    const char *name; /* of the run, for the messages */
    exportws *w;
    exportws_options o;
    int doors;        /* DOOR_UNIX or DOOR_TCP */
    int by_host;      /* the test's own poll() drives it: pollfds and dispatch */
    unsigned tick_ms; /* time that passes with every turn */
    int strict;       /* what is wanted must come true */
    int gone;         /* exportws_step said so */
    char paths[2][108];
    unsigned fds_before,
        fds_idle; /* descriptors without the server, and with it but nobody there */
    unsigned opens, closes, messages, spins;
    char heard[PEER_GOT]; /* what clients said to the server */
    char wrong[256];      /* the first thing that was not as it should be */
    size_t peer_count;
    struct peer peers[PEERS];
};

static inline void world_wrong(struct world *s, const char *format, ...)
{
    va_list more;
    va_start(more, format);
    if (s->wrong[0] == '\0') vsnprintf(s->wrong, sizeof s->wrong, format, more);
    va_end(more);
}

static void world_on_open(void *user, exportws_id session, const char *token)
{
    struct world *s = user;
    s->opens++;
    if (!session_find(s->w, session) || *token == '\0')
        world_wrong(s, "on_open for what is no session");
}

/* "echo..." is sent back, "bye" ends the session, "push" sends something to "b". */
static void world_on_message(void *user, exportws_id session, const char *token, const void *data,
                             size_t size, int kind)
{
    struct world *s = user;
    size_t used = strlen(s->heard);
    (void)token;
    s->messages++;
    if (used + size + 2 < sizeof s->heard)
        snprintf(s->heard + used, size + 2, "%.*s ", (int)size, (const char *)data);
    if (size >= 4 && memcmp(data, "echo", 4) == 0) exportws_reply(s->w, session, data, size, kind);
    if (size == 3 && memcmp(data, "bye", 3) == 0) exportws_close(s->w, session, 3000, "bye");
    if (size == 4 && memcmp(data, "push", 4) == 0)
        exportws_send(s->w, "b", "b", 1, EXPORTWS_BINARY);
}

static void world_on_close(void *user, exportws_id session, const char *token, int reason, int code)
{
    struct world *s = user;
    s->closes++;
    if (session_find(s->w, session) || *token == '\0')
        world_wrong(s, "on_close for a session that is open");
    if (reason < 0 || reason >= EXPORTWS_REASONS || code < 1000 || code > 4999)
        world_wrong(s, "on_close: code %d", code);
}

static void world_on_log(void *user, int level, const char *line)
{
    struct world *s = user;
    if (level < EXPORTWS_LOG_ERROR || level > EXPORTWS_LOG_DEBUG || strncmp(line, "time=", 5) != 0)
        world_wrong(s, "a strange line in the log: %s", line);
}

/* Small enough that everything runs out at once. */
static inline void world_options(struct world *s)
{
    exportws_options *o = &s->o;
    exportws_defaults(o);
    o->capacity = 4, o->handshakes = 3, o->pushers = 2, o->per_token = 2, o->queue = 3;
    o->max_token_bytes = 16, o->max_message_bytes = 64, o->max_push_bytes = 700,
    o->buffer_bytes = 8192;
    o->hold_ms = 5000;
    o->on_open = world_on_open, o->on_message = world_on_message, o->on_close = world_on_close;
    o->on_log = world_on_log;
    o->log_level = EXPORTWS_LOG_DEBUG;
    o->user = s;
}

enum { WORLD_MEMORY = 1 << 20 };

/* Memory whose end touches a page that may not be touched; it is always the same, filled with
 * rubbish. */
static inline uint8_t *world_memory(size_t bytes)
{
    static uint8_t *end;
    if (!end) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        int fd = __real_open("/dev/zero", O_RDWR);
        uint8_t *p = mmap(NULL, WORLD_MEMORY + page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
        assert_true(p != MAP_FAILED);
        assert_int_equal(mprotect(p + WORLD_MEMORY, page, PROT_NONE), 0);
        end = p + WORLD_MEMORY;
        __real_close(fd);
    }
    assert_true(bytes <= WORLD_MEMORY);
    memset(end - bytes, 0xa5, bytes);
    return end - bytes;
}

/* A folder for the Unix doors; gone when the process ends. */
static inline const char *world_folder(void)
{
    static char folder[64];
    if (folder[0] == '\0') {
        const char *memory =
            access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp"; /* there a bind() costs less */
        snprintf(folder, sizeof folder, "%s/exportws-faults.XXXXXX", memory);
        assert_non_null(mkdtemp(folder));
    }
    return folder;
}

static inline void world_doors(struct world *s)
{
    static unsigned count;
    for (int i = 0; i < 2; i++) {
        if (s->doors == DOOR_TCP) snprintf(s->paths[i], sizeof s->paths[i], "127.0.0.1:0");
        else snprintf(s->paths[i], sizeof s->paths[i], "unix:%s/%u", world_folder(), ++count);
    }
    s->o.listen = s->paths[0], s->o.push = s->paths[1];
}

/* Starts the server of s->o; it must. */
static inline void world_start(struct world *s)
{
    char why[128] = "";
    size_t bytes = exportws_memory(&s->o);
    s->fds_before = fds_open();
    s->w = exportws_start(&s->o, world_memory(bytes), bytes, why, sizeof why);
    if (!s->w) fail_msg("%s: no start: %s", s->name, why);
    s->fds_idle = fds_open();
}

/* Defaults for a world; change s->o, then world_start. */
static inline void world_init(struct world *s, const char *name)
{
    memset(s, 0, sizeof *s);
    s->name = name;
    s->strict = 1;
    for (size_t i = 0; i < PEERS; i++) s->peers[i].fd = -1;
    world_options(s);
}

static inline int world_turn_by_host(struct world *s)
{
    static struct pollfd fds[WORLD_POLLS];
    int timeout_ms = 0, n = INSIDE(exportws_pollfds(s->w, fds, WORLD_POLLS, &timeout_ms));
    if (n < 0) return n;
    __real_poll(fds, (nfds_t)n, 0);
    return INSIDE(exportws_dispatch(s->w, fds, (size_t)n));
}

/* All that changes when something was done; a turn with events and without that is a turn in vain.
 */
static inline uint64_t world_progress(const struct world *s)
{
    const struct exportws *w = s->w;
    uint64_t sum =
        w->m->bytes_sent + w->m->bytes_received + w->m->pushed + w->m->posts_refused + w->m->opened;
    for (unsigned i = 0; i < EXPORTWS_REASONS; i++) sum = sum * 3 + w->m->closed[i];
    for (unsigned i = 0; i < STATUSES; i++) sum = sum * 3 + w->m->refused[i];
    sum = sum * 31 + w->poll_count, sum = sum * 31 + w->blocks_free,
    sum = sum * 31 + w->free_inputs;
    sum = sum * 31 + w->waiting, sum = sum * 31 + w->held, sum = sum * 31 + w->seats,
    sum = sum * 31 + w->stopping;
    sum = sum * 31 + w->accept_paused;
    for (size_t i = 0; i < s->peer_count; i++)
        sum = sum * 7 + s->peers[i].total + s->peers[i].ended;
    return sum;
}

/* Everybody reads for whom there is something. */
static inline void world_pump(struct world *s)
{
    struct pollfd fds[PEERS];
    for (size_t i = 0; i < s->peer_count; i++) {
        const struct peer *p = &s->peers[i];
        fds[i] = (struct pollfd){p->deaf || p->ended ? -1 : p->fd, POLLIN, 0};
    }
    if (__real_poll(fds, (nfds_t)s->peer_count, 0) <= 0) return;
    for (size_t i = 0; i < s->peer_count; i++)
        if (fds[i].revents != 0) peer_pump(&s->peers[i]);
}

/* One turn, then everybody reads. 2: something moved; 1: there were events, but in vain; 0:
 * nothing. */
static inline int world_turn(struct world *s)
{
    uint64_t before = world_progress(s);
    int events = s->by_host ? world_turn_by_host(s) : INSIDE(exportws_step(s->w, 0));
    if (events == EXPORTWS_GONE) s->gone = 1;
    else if (events < 0) world_wrong(s, "a turn came to %d", events);
    const char *wrong = audit(s->w);
    if (wrong) world_wrong(s, "%s", wrong);
    clock_pass(s->tick_ms);
    world_pump(s);
    int moved = world_progress(s) != before;
    if (events > 0 && !moved) s->spins++;
    return moved ? 2 : events > 0;
}

/* Turns until nothing moves any more; a door that is paused is waited for, and so is, for three
 * rounds, who waits for an input buffer. */
static inline void world_settle(struct world *s)
{
    unsigned idle = 0, vain = 0, waited = 0, most = 1;
    for (unsigned turn = 0; turn < 20000 && idle < most && !s->gone; turn++) {
        int whole = faults.injected >= faults.plan.times;
        int did = world_turn(s);
        if (did == 2) idle = 0;
        else if (did == 0 || vain++ > 1) idle++;
        /* one more idle turn where a call may have failed, and some where only sweeps hear
         * everybody */
        most = s->tick_ms > 0 ? 6 : s->w->accept_paused || s->w->waiting > 0 || !whole ? 2 : 1;
        if (idle == 1 && s->w->accept_paused && s->strict) clock_pass(ACCEPT_RETRY_MS);
        if (idle == most && s->w->waiting > 0 && waited++ < 3) clock_pass(WAIT_RETRY_MS), idle = 0;
    }
    if (idle < most && !s->gone) world_wrong(s, "it does not come to rest");
}

static inline struct peer *world_dial(struct world *s, int door)
{
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
        struct sockaddr_un un;
    } to;
    socklen_t size = sizeof to;
    assert_true(s->peer_count < PEERS);
    struct peer *p = &s->peers[s->peer_count++];
    memset(p, 0, sizeof *p);
    memset(&to, 0, sizeof to);
    assert_int_equal(__real_getsockname(s->w->doors[door].fd, &to.any, &size), 0);
    p->fd = __real_socket(to.any.sa_family, SOCK_STREAM, 0);
    assert_true(p->fd >= 0);
    if (__real_connect(p->fd, &to.any, size) < 0)
        fail_msg("%s: connect: %s", s->name, strerror(errno));
    return p;
}

static inline void peer_ask(struct peer *p, const char *token)
{
    char text[256];
    snprintf(text, sizeof text,
             "GET /app/ws/export-task/%s HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
             "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
             token);
    peer_say(p, text);
}

/* A client that has asked to be let in. */
static inline struct peer *world_join(struct world *s, const char *token)
{
    struct peer *p = world_dial(s, EXPORTWS_CLIENTS);
    peer_ask(p, token);
    world_settle(s);
    return p;
}

static inline struct peer *world_pusher(struct world *s) { return world_dial(s, EXPORTWS_PUSH); }

/* POST with a body; token "": to all. */
static inline void peer_post(struct peer *p, const char *token, const char *body)
{
    char text[1024];
    snprintf(text, sizeof text,
             "POST /app/ws/export-task/%s HTTP/1.1\r\nHost: h\r\nContent-Length: %u\r\n\r\n%s",
             token, (unsigned)strlen(body), body);
    peer_say(p, text);
}

/* The server's slot of a peer's session, by its token, or NULL. */
static inline struct conn *world_slot(struct world *s, const char *token)
{
    for (uint32_t i = 0; i < s->w->capacity; i++)
        if (s->w->conns[i].state == CONN_OPEN && strcmp(audit_name(s->w, i), token) == 0)
            return &s->w->conns[i];
    return NULL;
}

static unsigned world_patience_ms = 10000;

/* Gives loopback TCP, which may be late on a busy machine, some time. */
static inline int world_wait(struct world *s, unsigned *rounds)
{
    if (s->doors != DOOR_TCP || *rounds >= world_patience_ms || s->wrong[0] != '\0') return 0;
    ++*rounds;
    __real_poll(NULL, 0, 1);
    world_settle(s);
    return 1;
}

/* What a peer must have got by now, all of it. */
static inline void want_got(struct world *s, struct peer *p, const char *got)
{
    unsigned rounds = 0;
    if (!s->strict) return;
    while (strcmp(p->got, got) != 0 && world_wait(s, &rounds)) {}
    if (strcmp(p->got, got) != 0)
        world_wrong(s, "peer %d got \"%s\" instead of \"%s\"", (int)(p - s->peers), p->got, got);
}

static inline void want_ended(struct world *s, struct peer *p)
{
    unsigned rounds = 0;
    if (!s->strict) return;
    while (!p->ended && world_wait(s, &rounds)) {}
    if (!p->ended) world_wrong(s, "peer %d was not let go", (int)(p - s->peers));
}

static inline void want_number(struct world *s, const char *what, uint64_t got, uint64_t want)
{
    if (s->strict && got != want)
        world_wrong(s, "%s: %lu instead of %lu", what, (unsigned long)got, (unsigned long)want);
}

static inline void want_text(struct world *s, const char *what, const char *got, const char *want)
{
    unsigned rounds = 0;
    if (!s->strict) return;
    while (strcmp(got, want) != 0 && world_wait(s, &rounds)) {}
    if (strcmp(got, want) != 0) world_wrong(s, "%s: \"%s\" instead of \"%s\"", what, got, want);
}

/* Ends the server and looks at what it leaves. */
static inline void world_end(struct world *s)
{
    for (size_t i = 0; i < s->peer_count; i++) peer_leave(&s->peers[i]);
    if (s->w) exportws_end(s->w);
    s->w = NULL;
    unsigned fds = fds_open();
    if (fds != s->fds_before) world_wrong(s, "%u descriptors before, %u after", s->fds_before, fds);
    for (int i = 0; i < 2 && s->doors == DOOR_UNIX; i++)
        if (access(s->paths[i] + 5, F_OK) == 0) {
            world_wrong(s, "%s was left behind", s->paths[i]);
            __real_unlink(s->paths[i] + 5);
        }
}

static inline int world_folder_remove(void **state)
{
    (void)state;
    if (rmdir(world_folder()) < 0) fprintf(stderr, "something is left in %s\n", world_folder());
    return 0;
}

#endif
