/* fuzz_session.c - a whole server on both doors, in a world of the fuzzer's making
 *
 * Descriptors, peers and time are this file's: the system calls that exportws.c makes are taken
 * over by macros. The first byte of an input says what it is:
 *
 *   's'  a scenario: eight bytes of options, then a script of connects, bytes, frames, requests,
 *        errors, short writes, steps of time, pushes by door and by API, callbacks that call back;
 *   'c'  the bytes of one client: delivered whole, then in pieces; the events must be the same, and
 *        those that a second reading of RFC 6455 expects;
 *   'p'  the bytes of one pusher: delivered whole, then in pieces; the answers must be the same.
 *
 * What the server sends goes through a strict reader. A ledger, fed by the server's log, knows what
 * each session must get: everything, in order, once - and where it left off, when it says so, or
 * that something is missing when that is true. After every step the server's books are
 * recounted (audit.h); in the end everything must be free again. */
#define FUZZ_NAME "session"
#include "fuzz.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <time.h>

FUZZ_BLIND

/* ===== The world: descriptors, peers, time ===== */

enum { PEERS = 16, DESCRIPTORS = 32, FD_FIRST = 3, INBOX = 20000, READER = 20000, DUE = 128 };
enum { WINDOW_OPEN = 1 << 30 };
enum fd_kind { FD_FREE, FD_DOOR, FD_PIPE_READ, FD_PIPE_WRITE, FD_RANDOM, FD_PEER };
enum call {
    CALL_ACCEPT,
    CALL_RECV,
    CALL_SEND,
    CALL_POLL,
    CALL_FCNTL,
    CALL_SHUTDOWN,
    CALL_READ,
    CALLS
};

struct descriptor {
    uint8_t kind, index, nonblocking, cloexec; /* index: of the door or the peer */
};

/* A message that a peer is to get, or has got. */
struct item {
    uint64_t id, hash; /* id: 0 when it comes without */
    uint32_t size;
    int entry; /* in the ledger, or -1 */
    uint8_t opcode, maybe;
};

struct items {
    struct item at[DUE];
    unsigned first, n;
};

enum reading { READ_HEAD, READ_BODY, READ_FRAMES, READ_OVER, READ_ANY };

/* What the server sends to a peer, as far as it is not a whole unit. */
struct reader {
    size_t used;
    uint64_t body; /* still to come */
    uint8_t phase, ends, upgraded, ids, closed, reason;
    unsigned code, answers, pongs;
    uint8_t data[READER];
};

struct peer {
    uint8_t used, door, pending, fin, reset, shut, host, known, heads;
    int fd; /* the server's, or -1 */
    size_t window, at, n;
    struct items due, got;
    struct reader reader;
    uint8_t inbox[INBOX];
};

static struct world {
    uint64_t now_ms;
    struct descriptor fds[DESCRIPTORS];
    uint8_t queue[2][PEERS]; /* peers that wait to be accepted */
    unsigned queued[2];
    int error[CALLS];    /* errno of the next call of that kind, or 0 */
    size_t limit[CALLS]; /* most bytes of the next one, or 0 */
    unsigned piped;
    char pipe[64];
    int ready, timeout; /* of this turn's polls: entries that were so; how long it would sleep */
    unsigned polls;
} net;

static struct peer peers[PEERS];

static void reader_feed(struct peer *p, const uint8_t *data, size_t n);

static int net_open_fd(enum fd_kind kind, unsigned index)
{
    for (int i = 0; i < DESCRIPTORS; i++) {
        if (net.fds[i].kind != FD_FREE) continue;
        net.fds[i] = (struct descriptor){(uint8_t)kind, (uint8_t)index, 0, 0};
        return FD_FIRST + i;
    }
    errno = EMFILE;
    return -1;
}

/* The descriptor of a number that the server must have. */
static struct descriptor *net_fd(int fd)
{
    HOLDS(fd >= FD_FIRST && fd < FD_FIRST + DESCRIPTORS);
    HOLDS(net.fds[fd - FD_FIRST].kind != FD_FREE);
    return &net.fds[fd - FD_FIRST];
}

static struct peer *net_peer(int fd)
{
    struct descriptor *d = net_fd(fd);
    HOLDS(d->kind == FD_PEER && d->nonblocking && d->cloexec);
    return &peers[d->index];
}

/* Whether the next call of a kind is to fail: then errno says how. */
static int net_fails(enum call call)
{
    if (net.error[call] == 0) return 0;
    errno = net.error[call];
    net.error[call] = 0;
    return 1;
}

static size_t net_limited(enum call call, size_t n)
{
    size_t limit = net.limit[call];
    net.limit[call] = 0;
    return limit > 0 && limit < n ? limit : n;
}

static int net_close(int fd)
{
    struct descriptor *d = net_fd(fd);
    if (d->kind == FD_PEER) peers[d->index].fd = -1;
    d->kind = FD_FREE;
    return 0;
}

static int net_fcntl(int fd, int command, int value)
{
    struct descriptor *d = net_fd(fd);
    if (net_fails(CALL_FCNTL)) return -1;
    if (command == F_SETFL) d->nonblocking = (value & O_NONBLOCK) != 0;
    if (command == F_SETFD) d->cloexec = (value & FD_CLOEXEC) != 0;
    return 0;
}

static int net_socket(void)
{
    return net_open_fd(FD_DOOR, 0);
}

static int net_setsockopt(int fd, const void *value, socklen_t size)
{
    net_fd(fd);
    HOLDS(value && size == sizeof(int));
    return 0;
}

static int net_bind(int fd, const struct sockaddr *address, socklen_t size)
{
    HOLDS(size == sizeof(struct sockaddr_in));
    const struct sockaddr_in *v4 = (const void *)address;
    net_fd(fd)->index = (uint8_t)(ntohs(v4->sin_port) - 1); /* port 1: clients, port 2: pushers */
    return 0;
}

static int net_listen(int fd)
{
    net_fd(fd);
    return 0;
}

static void net_address(const struct peer *p, struct sockaddr *address, socklen_t *size)
{
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    memset(&v4, 0, sizeof v4), memset(&v6, 0, sizeof v6);
    v4.sin_family = AF_INET, v6.sin6_family = AF_INET6;
    v4.sin_port = v6.sin6_port = htons((uint16_t)(1000 + p->host));
    v4.sin_addr.s_addr = htonl(0x7f000001U + (p->host & 1U));
    v6.sin6_addr.s6_addr[15] = p->host;
    if ((p->host & 3) == 3) *size = sizeof(sa_family_t);
    else if ((p->host & 3) == 2) memcpy(address, &v6, sizeof v6), *size = sizeof v6;
    else memcpy(address, &v4, sizeof v4), *size = sizeof v4;
}

static int net_accept(int fd, struct sockaddr *address, socklen_t *size)
{
    struct descriptor *d = net_fd(fd);
    unsigned door = d->index;
    HOLDS(d->kind == FD_DOOR && d->nonblocking && d->cloexec);
    if (net_fails(CALL_ACCEPT)) return -1;
    errno = EAGAIN;
    if (net.queued[door] == 0) return -1;
    uint8_t index = net.queue[door][0];
    int taken = net_open_fd(FD_PEER, index);
    if (taken < 0) return -1;
    memmove(net.queue[door], net.queue[door] + 1, --net.queued[door]);
    peers[index].fd = taken, peers[index].pending = 0;
    net_address(&peers[index], address, size);
    return taken;
}

static ssize_t net_recv(int fd, void *to, size_t size, int flags)
{
    struct peer *p = net_peer(fd);
    HOLDS(size > 0 &&
          (flags == 0 || flags == MSG_PEEK)); /* of 0 bytes it would look like the end */
    if (net_fails(CALL_RECV)) return -1;
    errno = p->reset ? ECONNRESET : EAGAIN;
    if (p->reset) return -1;
    if (p->at == p->n) return p->fin ? 0 : -1;
    size_t n = net_limited(CALL_RECV, p->n - p->at < size ? p->n - p->at : size);
    memcpy(to, p->inbox + p->at, n);
    if (!(flags & MSG_PEEK)) p->at += n;
    return (ssize_t)n;
}

static ssize_t net_send(int fd, const void *from, size_t size, int flags)
{
    struct peer *p = net_peer(fd);
    HOLDS(size > 0 && flags == MSG_NOSIGNAL && !p->shut);
    if (net_fails(CALL_SEND)) return -1;
    errno = p->reset ? EPIPE : EAGAIN;
    size_t n = net_limited(CALL_SEND, size < p->window ? size : p->window);
    if (p->reset || n == 0) return -1;
    p->window -= p->window == WINDOW_OPEN ? 0 : n;
    reader_feed(p, from, n);
    return (ssize_t)n;
}

static int net_shutdown(int fd, int how)
{
    struct peer *p = net_peer(fd);
    HOLDS(how == SHUT_WR && !p->shut);
    if (net_fails(CALL_SHUTDOWN)) return -1;
    errno = ENOTCONN;
    if (p->reset) return -1;
    p->shut = 1;
    return 0;
}

static int net_pipe(int fds[2])
{
    fds[0] = net_open_fd(FD_PIPE_READ, 0);
    fds[1] = net_open_fd(FD_PIPE_WRITE, 0);
    return 0;
}

static int net_open(void)
{
    return net_open_fd(FD_RANDOM, 0);
}

static ssize_t net_read(int fd, void *to, size_t size)
{
    struct descriptor *d = net_fd(fd);
    if (d->kind == FD_RANDOM) return memset(to, 0x5a, size) ? (ssize_t)size : -1;
    HOLDS(d->kind == FD_PIPE_READ && d->nonblocking);
    if (net_fails(CALL_READ)) return -1;
    size_t n = net.piped < size ? net.piped : size;
    errno = EAGAIN;
    if (n == 0) return -1;
    memcpy(to, net.pipe, n);
    memmove(net.pipe, net.pipe + n, net.piped -= (unsigned)n);
    return (ssize_t)n;
}

static ssize_t net_write(int fd, const void *from, size_t size)
{
    struct descriptor *d = net_fd(fd);
    HOLDS(d->kind == FD_PIPE_WRITE && d->nonblocking && size == 1);
    errno = EAGAIN;
    if (net.piped == sizeof net.pipe) return -1;
    memcpy(net.pipe + net.piped++, from, 1);
    return 1;
}

/* What poll() says of a descriptor. */
static short net_ready(const struct pollfd *fd)
{
    const struct descriptor *d = net_fd(fd->fd);
    const struct peer *p = &peers[d->index];
    int in = 0, out = 0, err = 0;
    if (d->kind == FD_DOOR) in = net.queued[d->index] > 0;
    else if (d->kind == FD_PIPE_READ) in = net.piped > 0;
    else if (p->reset) in = out = err = 1;
    else in = p->at < p->n || p->fin, out = p->window > 0;
    return (short)((in ? fd->events & POLLIN : 0) | (out ? fd->events & POLLOUT : 0) |
                   (err ? POLLERR | POLLHUP : 0) |
                   (d->kind == FD_PEER && p->fin && p->shut ? POLLHUP : 0));
}

/* When nothing is ready the time passes that the server wants to sleep. */
static int net_poll(struct pollfd *fds, size_t n, int timeout)
{
    int ready = 0;
    for (size_t i = 0; i < n; i++) {
        fds[i].revents = net_ready(&fds[i]);
        ready += fds[i].revents != 0;
    }
    if (net.polls++ == 0) net.timeout = timeout;
    net.ready += ready;
    if (net_fails(CALL_POLL)) return -1;
    if (ready == 0 && timeout > 0) net.now_ms += (uint64_t)timeout;
    return ready;
}

static int net_clock(clockid_t clock, struct timespec *now)
{
    uint64_t ms = net.now_ms + (clock == CLOCK_MONOTONIC ? 0 : 1700000000000);
    now->tv_sec = (time_t)(ms / 1000);
    now->tv_nsec = (long)(ms % 1000) * 1000000;
    return 0;
}

static time_t net_time(void)
{
    return (time_t)(1700000000 + net.now_ms / 1000);
}

#define accept(fd, address, size) net_accept(fd, address, size)
#define recv(fd, to, size, flags) net_recv(fd, to, size, flags)
#define send(fd, from, size, flags) net_send(fd, from, size, flags)
#define poll(fds, n, timeout) net_poll(fds, n, timeout)
#define close(fd) net_close(fd)
#define fcntl(fd, command, value) net_fcntl(fd, command, value)
#define shutdown(fd, how) net_shutdown(fd, how)
#define socket(family, type, protocol) net_socket()
#define bind(fd, address, size) net_bind(fd, address, size)
#define listen(fd, backlog) net_listen(fd)
#define setsockopt(fd, level, name, value, size) net_setsockopt(fd, value, size)
#define pipe(fds) net_pipe(fds)
#define open(path, flags) net_open()
#define read(fd, to, size) net_read(fd, to, size)
#define write(fd, from, size) net_write(fd, from, size)
#define clock_gettime(clock, now) net_clock(clock, now)
#define time(now) net_time()

FUZZ_SEEING
#include "../exportws.c"
FUZZ_BLIND

#include "audit.h"

/* ===== The server, and what one run of it knows ===== */

enum { ARENA = 1 << 19, ENTRIES = 512, ENTRY_TOKEN = 80, SESSIONS = 64, ARMED = 4 };

enum entry_state { ENTRY_KEPT, ENTRY_GOT, ENTRY_OVER };

/* A message to a token. */
struct entry {
    uint64_t id;
    struct item item;
    uint8_t state;
    char token[ENTRY_TOKEN]; /* as the log shows it */
};

/* A callback is to call the API. */
struct armed {
    uint8_t where, act, token, size;
};

static struct run {
    exportws *w;
    exportws_options o;
    struct entry entries[ENTRIES];
    unsigned entry_count, armed_count, serial;
    int untracked; /* too much to keep the ledger of */
    int removals;  /* a DELETE may have come */
    struct armed armed[ARMED];
    exportws_id sessions[SESSIONS];
    unsigned session_count, opened, closed, turns;
    int finishing;
} run;

static uint64_t memory[ARENA / 8];

static uint64_t hash_bytes(const uint8_t *p, size_t n)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < n; i++) hash = (hash ^ p[i]) * 0x100000001b3;
    return hash;
}

/* The connection that the server has for a peer, or NULL. */
static const struct conn *peer_conn(const struct peer *p)
{
    for (uint32_t i = 0; p->fd >= 0 && i < run.w->conns_end; i++)
        if (run.w->conns[i].state != CONN_FREE && run.w->conns[i].fd == p->fd)
            return &run.w->conns[i];
    return NULL;
}

/* ===== The strict reader of what the server sends ===== */

/* The value of a field in a response head, or NULL; *count is how often it is there. */
static const char *response_field(const char *head, const char *name, unsigned *count)
{
    const char *value = NULL;
    size_t n = strlen(name);
    *count = 0;
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
        if (strncmp(line + 2, name, n) != 0 || strncmp(line + 2 + n, ": ", 2) != 0) continue;
        if (++*count == 1) value = line + 2 + n + 2;
    }
    return value;
}

static int response_has(const char *head, const char *line)
{
    const char *at = strstr(head, line);
    return at && at[-1] == '\n' && at[strlen(line)] == '\r';
}

/* Every line is NAME ": " VALUE, of printable bytes, and ends with CRLF. */
static void check_response_lines(const char *head)
{
    const char *line = strstr(head, "\r\n") + 2;
    for (const char *p = head; *p; p++) {
        HOLDS((*p >= ' ' && *p <= '~') || (*p == '\r' && p[1] == '\n') ||
              (*p == '\n' && p[-1] == '\r'));
    }
    while (*line != '\r') {
        size_t name = strspn(line, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-");
        HOLDS(name > 0 && line[name] == ':' && line[name + 1] == ' ' && line[name + 2] > ' ');
        line = strstr(line, "\r\n") + 2;
    }
}

static void check_upgraded(struct peer *p, const char *head)
{
    unsigned count;
    const char *accept_key = response_field(head, "Sec-WebSocket-Accept", &count);
    HOLDS(p->door == 0 && p->reader.answers == 0 && count == 1);
    HOLDS(accept_key && strspn(accept_key, base64_alphabet) == 27 &&
          strncmp(accept_key + 27, "=\r", 2) == 0);
    HOLDS(response_has(head, "Upgrade: websocket") && response_has(head, "Connection: Upgrade"));
    response_field(head, "Content-Length", &count);
    HOLDS(count == 0);
    const char *protocol = response_field(head, "Sec-WebSocket-Protocol", &count);
    HOLDS(!protocol || (count == 1 && strncmp(protocol, "exportws.v1\r", 12) == 0));
    p->reader.ids = protocol != NULL;
    p->reader.upgraded = 1;
    p->reader.phase = READ_FRAMES;
}

/* A whole response head, NUL-terminated. */
static void check_response(struct peer *p, const char *head)
{
    struct reader *r = &p->reader;
    unsigned count;
    HOLDS(strncmp(head, "HTTP/1.1 ", 9) == 0 && strspn(head + 9, "0123456789") == 3);
    HOLDS(head[12] == ' ' && head[13] > ' ');
    long status = strtol(head + 9, NULL, 10);
    check_response_lines(head);
    if (status == 101) {
        check_upgraded(p, head);
        return;
    }
    const char *length = response_field(head, "Content-Length", &count);
    if (status == 100) {
        HOLDS(p->door == 1 && count == 0);
        return;
    }
    HOLDS(status >= 200 && status < 600 && length && count == 1);
    HOLDS(strspn(length, "0123456789") > 0 && length[strspn(length, "0123456789")] == '\r');
    r->body = strtoull(length, NULL, 10);
    r->ends = response_has(head, "Connection: close") ? 1 : 0;
    HOLDS(p->door == 1 || r->ends);
    HOLDS(status != 405 || strstr(head, "\r\nAllow: "));
    HOLDS((status != 503 && status != 429) || strstr(head, "\r\nRetry-After: "));
    HOLDS(status != 426 || response_has(head, "Sec-WebSocket-Version: 13"));
    r->answers++;
    r->phase = p->heads ? READ_ANY : READ_BODY; /* a HEAD's answer has no body */
}

/* Takes a response head off what has come: its size, or 0. */
static size_t reader_head(struct peer *p)
{
    struct reader *r = &p->reader;
    for (size_t i = 3; i < r->used; i++) {
        if (memcmp(r->data + i - 3, "\r\n\r\n", 4) != 0) continue;
        char head[1024];
        HOLDS(i + 1 < sizeof head && !memchr(r->data, '\0', i + 1));
        memcpy(head, r->data, i + 1);
        head[i + 1] = '\0';
        check_response(p, head);
        return i + 1;
    }
    return 0;
}

static size_t reader_body(struct peer *p)
{
    struct reader *r = &p->reader;
    size_t n = r->body < r->used ? (size_t)r->body : r->used;
    r->body -= n;
    if (r->body == 0) r->phase = r->ends ? READ_OVER : READ_HEAD;
    return n;
}

static void check_close(struct peer *p, const uint8_t *payload, size_t n)
{
    struct reader *r = &p->reader;
    const struct conn *c = peer_conn(p);
    HOLDS(n != 1);
    r->code = n >= 2 ? (unsigned)payload[0] << 8 | payload[1] : 1005;
    HOLDS(n == 0 || close_code_valid(r->code));
    if (n > 2) HOLDS(utf8_valid(payload + 2, n - 2));
    HOLDS(c && c->code == r->code);
    r->reason = c->reason;
    HOLDS(!r->closed);
    r->closed = 1;
}

/* The length of the id and the newline that a message starts with; 0: it has none. */
static size_t message_line(const uint8_t *p, size_t n)
{
    size_t digits = 0;
    while (digits < n && digits < 20 && p[digits] >= '0' && p[digits] <= '9') digits++;
    return digits > 0 && digits < n && p[digits] == '\n' ? digits + 1 : 0;
}

/* Takes a frame off what has come: its size, or 0. */
static size_t reader_frame(struct peer *p)
{
    struct reader *r = &p->reader;
    const uint8_t *d = r->data;
    size_t head = 2, size = d[1] & 127U;
    if (r->used < 1) return 0;
    HOLDS((d[0] & 0xf0) == 0x80); /* final, nothing reserved: we never fragment */
    unsigned opcode = d[0] & 15;
    HOLDS(opcode == 1 || opcode == 2 || opcode == 8 || opcode == 9 || opcode == 10);
    if (r->used < 2) return 0;
    HOLDS(!(d[1] & 128) && (opcode < 8 || size < 126));
    head += size == 126 ? 2 : size == 127 ? 8 : 0;
    if (r->used < head) return 0;
    if (head > 2) size = 0;
    for (size_t i = 2; i < head; i++) size = size << 8 | d[i];
    HOLDS(head == (size < 126 ? 2 : size < 65536 ? 4 : 10));
    HOLDS(size <= larger(run.o.max_push_bytes, 125) + (r->ids ? 21 : 0));
    if (r->used - head < size) return 0;
    d += head;
    if (opcode == 8) check_close(p, d, size);
    if (opcode == 9) HOLDS(size == 0);
    if (opcode == 10) r->pongs++;
    HOLDS(!p->reader.closed || opcode == 8 || opcode == 10); /* pings get their pong (5.5.2) */
    if (opcode > 2) return head + size;
    HOLDS(opcode == 2 || utf8_valid(d, size));
    HOLDS(p->got.n < DUE);
    size_t line = r->ids ? message_line(d, size) : 0;
    p->got.at[(p->got.first + p->got.n++) % DUE] = (struct item){
        line > 0 ? strtoull((const char *)d, NULL, 10) : 0, hash_bytes(d + line, size - line),
        (uint32_t)(size - line), -1, (uint8_t)opcode, 0};
    return head + size;
}

static void transcript_sent(const uint8_t *data, size_t n);

static void reader_feed(struct peer *p, const uint8_t *data, size_t n)
{
    struct reader *r = &p->reader;
    transcript_sent(data, n);
    HOLDS(r->phase != READ_OVER && n <= sizeof r->data - r->used);
    memcpy(r->data + r->used, data, n);
    r->used += n;
    for (size_t taken = 1; taken > 0 && r->used > 0;) {
        HOLDS(r->phase != READ_OVER);
        switch (r->phase) {
        case READ_HEAD: taken = reader_head(p); break;
        case READ_BODY: taken = reader_body(p); break;
        case READ_FRAMES: taken = reader_frame(p); break;
        default: taken = r->used; break;
        }
        r->used -= taken;
        if (taken > 0) memmove(r->data, r->data + taken, r->used);
        if (r->phase == READ_BODY && r->body == 0) r->phase = r->ends ? READ_OVER : READ_HEAD;
    }
}

/* ===== The ledger: who must get what ===== */

static void item_add(struct peer *p, struct item item)
{
    if (p->due.n == DUE) run.untracked = 1;
    else p->due.at[(p->due.first + p->due.n++) % DUE] = item;
}

static int item_is(const struct item *a, const struct item *b)
{
    return a->id == b->id && a->hash == b->hash && a->size == b->size && a->opcode == b->opcode;
}

static int item_is_heartbeat(const struct item *a)
{
    size_t n = strlen(run.o.heartbeat);
    return run.o.heartbeat_reply && a->opcode == OP_TEXT && a->size == n &&
           a->hash == hash_bytes((const uint8_t *)run.o.heartbeat, n);
}

static struct item items_first(struct items *list)
{
    list->n--;
    return list->at[list->first++ % DUE];
}

/* It got what it was to get next. One that only may come can't be told from its like. */
static void peer_got(struct peer *p, const struct item *due)
{
    if (due->entry >= 0) run.entries[due->entry].state = ENTRY_GOT;
    for (unsigned i = 0; due->maybe && i < p->due.n; i++) {
        struct item *later = &p->due.at[(p->due.first + i) % DUE];
        if (!item_is(later, due)) continue;
        later->maybe = 1;
        if (later->entry >= 0) run.entries[later->entry].item.maybe = 1;
    }
}

/* What a peer got is what it was to get, in this order. */
static void peer_match(struct peer *p)
{
    while (p->got.n > 0 && !run.untracked) {
        struct item got = items_first(&p->got), due = {0, 0, 0, -1, 0, 1};
        while (p->due.n > 0 && due.maybe && !item_is(&got, &due)) {
            due = p->due.at[p->due.first % DUE];
            if (due.maybe || item_is(&got, &due)) items_first(&p->due);
        }
        if (item_is(&got, &due)) peer_got(p, &due);
        else HOLDS(item_is_heartbeat(&got) && "a session got what it was not to get, or not now");
    }
    if (run.untracked) p->got.n = 0;
}

static unsigned peer_missing(const struct peer *p)
{
    unsigned missing = 0;
    for (unsigned i = 0; i < p->due.n; i++) missing += !p->due.at[(p->due.first + i) % DUE].maybe;
    return missing;
}

/* Everybody's; a session that was ended in good order got everything before its close. */
static void ledger_match(void)
{
    for (unsigned i = 0; i < PEERS; i++) {
        struct peer *p = &peers[i];
        if (!p->used || !p->known) continue;
        peer_match(p);
        const struct reader *r = &p->reader;
        int ordered = r->reason == EXPORTWS_BY_ENDED || r->reason == EXPORTWS_BY_REPLACED ||
                      r->reason == EXPORTWS_BY_SHUTDOWN;
        if (r->closed && ordered && !run.untracked) HOLDS(peer_missing(p) == 0);
    }
}

/* The token of a session as the log shows it. */
static void token_shown(const uint8_t *name, size_t n, char shown[ENTRY_TOKEN])
{
    struct text t = {shown, 0, ENTRY_TOKEN};
    text_escaped(&t, name, n);
    text_end(&t);
}

static int entry_add(uint64_t id, struct item item, const char *token)
{
    if (run.entry_count == ENTRIES) run.untracked = 1;
    if (run.untracked) return -1;
    struct entry *e = &run.entries[run.entry_count];
    e->id = id, e->item = item, e->state = ENTRY_KEPT;
    HOLDS(strlen(token) < sizeof e->token);
    memcpy(e->token, token, strlen(token) + 1);
    return e->item.entry = (int)run.entry_count++;
}

static void ledger_owe(const struct conn *c, struct item item)
{
    if (!c->ids) item.id = 0;
    item_add(net_peer(c->fd), item);
}

/* A token's last message has ended its sessions, the last that have left: all of them got it. */
static unsigned ledger_ended(struct item item, const char *token, unsigned count)
{
    const struct exportws *w = run.w;
    char shown[ENTRY_TOKEN];
    unsigned left = 0, ended = 0;
    for (uint32_t i = w->left_first; i != NONE; i = w->conns[i].next) left++;
    for (uint32_t i = w->left_first; i != NONE; i = w->conns[i].next) {
        if (left-- > count) continue;
        const struct conn *c = &w->conns[i];
        if (c->code == 1006) HOLDS(c->reason == EXPORTWS_BY_SLOW || c->reason == EXPORTWS_BY_ENDED);
        else HOLDS(c->code == 1000 && c->reason == EXPORTWS_BY_ENDED);
        token_shown((const uint8_t *)conn_name(w, &w->conns[i]), w->conns[i].name_size, shown);
        HOLDS(strcmp(shown, token) == 0);
        ledger_owe(&w->conns[i], item);
        ended++;
    }
    return ended;
}

/* A message was accepted, for a token or (NULL) for all: every open session is to get it, or those
 * whose last it was. Returns how many those are. */
static unsigned ledger_push(uint64_t id, const char *token, const uint8_t *data, size_t n,
                            unsigned kind, unsigned delivered)
{
    struct item item = {id, hash_bytes(data, n), (uint32_t)n, -1, (uint8_t)kind, 0};
    unsigned count = 0;
    item.entry = entry_add(id, item, token ? token : "");
    if (!token && item.entry >= 0) run.entries[item.entry].state = ENTRY_GOT; /* history at once */
    for (uint32_t i = 0; i < run.w->capacity; i++) {
        const struct conn *c = &run.w->conns[i];
        char shown[ENTRY_TOKEN];
        if (c->state != CONN_OPEN) continue;
        token_shown((const uint8_t *)conn_name(run.w, c), c->name_size, shown);
        if (token && strcmp(shown, token) != 0) continue;
        ledger_owe(c, item);
        count++;
    }
    return token && count == 0 ? ledger_ended(item, token, delivered) : count;
}

/* The message in a chain that has an id, or NULL. */
static const struct message *chain_find(uint32_t index, uint64_t id)
{
    while (index != NONE && message_at(run.w, index)->id != id)
        index = message_at(run.w, index)->next;
    return index == NONE ? NULL : message_at(run.w, index);
}

/* The message with an id where a newcomer could get it, or NULL. */
static const struct message *message_chained(uint64_t id)
{
    const struct exportws *w = run.w;
    const struct message *found = chain_find(w->all->messages.first, id);
    for (uint32_t bucket = 0; bucket <= w->bucket_mask; bucket++)
        for (uint32_t t = w->buckets[bucket]; t != NONE && !found; t = w->tokens[t].next)
            if (w->tokens[t].first_session != REMEMBERED)
                found = chain_find(w->tokens[t].messages.first, id);
    return found;
}

/* The message with an id where the server keeps it, or NULL. */
static const struct message *message_kept(uint64_t id)
{
    const struct message *found = message_chained(id);
    return found ? found : chain_find(run.w->expired, id); /* the log will tell */
}

/* Where a client's request wants to go on: 1 and the id, or 0. The server has accepted it. */
static int peer_last(const struct peer *p, uint64_t *last)
{
    size_t at = 0, n = p->n;
    while (at < n && p->inbox[at] != '?' && (p->inbox[at] != '\r' || at < 4)) at++;
    if (at == n || p->inbox[at] != '?') return 0;
    for (at++; at < n && p->inbox[at] != ' '; at++) {
        size_t size = 0;
        while (at + size < n && !strchr("& ", p->inbox[at + size])) size++;
        if (size > 5 && memcmp(p->inbox + at, "last=", 5) == 0)
            return decimal_parse(p->inbox + at + 5, size - 5, last) == 0;
        at += size;
        if (at < n && p->inbox[at] == ' ') return 0;
    }
    return 0;
}

static int peer_has(const struct peer *p, uint64_t id)
{
    for (unsigned i = 0; i < p->got.n; i++)
        if (p->got.at[(p->got.first + i) % DUE].id == id) return 1;
    return 0;
}

/* The text that says that something is missing, if so. *last becomes where it goes on from. */
static void ledger_gap(struct peer *p, const struct conn *c, const char *token, uint64_t *last)
{
    struct item gap = {0, hash_bytes((const uint8_t *)"gap", 3), 3, -1, OP_TEXT, 0};
    int missing = *last >= run.w->next_id || (*last > 0 && *last + 1 < run.w->first_id);
    if (*last >= run.w->next_id) *last = 0;
    for (unsigned i = 0; i < run.entry_count; i++) {
        const struct entry *e = &run.entries[i];
        if ((*e->token == '\0' || strcmp(e->token, token) == 0) && e->id > *last)
            missing |= !message_chained(e->id) && !peer_has(p, e->id);
    }
    /* One that went at once, or a token that was forgotten for others: nobody knows. */
    gap.maybe = c->state != CONN_OPEN || run.w->forgotten + 1 != run.w->first_id;
    if (missing || gap.maybe) item_add(p, gap);
}

/* The session that is new: it is to get what nobody has got, and what it has missed. */
static void ledger_open(const char *token)
{
    const struct conn *c = NULL;
    uint64_t last = UINT64_MAX;
    ledger_match();
    for (uint32_t i = 0; i < run.w->capacity; i++) {
        if (run.w->conns[i].state == CONN_FREE || net_peer(run.w->conns[i].fd)->known) continue;
        HOLDS(!c);
        c = &run.w->conns[i];
    }
    HOLDS(c);
    struct peer *newcomer = net_peer(c->fd);
    newcomer->known = 1;
    int asked = c->ids && peer_last(newcomer, &last);
    if (asked) ledger_gap(newcomer, c, token, &last);
    for (unsigned i = 0; i < run.entry_count; i++) {
        const struct entry *e = &run.entries[i];
        struct item item = e->item;
        int own = strcmp(e->token, token) == 0, missed = asked && e->id > last;
        if (!(own && e->state == ENTRY_KEPT) && !(missed && (own || *e->token == '\0'))) continue;
        if (!missed && (run.o.hold_ms == 0 || run.removals)) item.maybe = 1;
        if (!message_chained(e->id)) item.maybe = 1; /* it may just have got it */
        else if (missed) item.maybe = 0;
        ledger_owe(c, item);
    }
}

static struct entry *entry_find(uint64_t id)
{
    for (unsigned i = 0; i < run.entry_count; i++)
        if (run.entries[i].id == id) return &run.entries[i];
    return NULL;
}

static void ledger_expire(uint64_t id)
{
    struct entry *e = entry_find(id);
    ledger_match();
    HOLDS(run.untracked || (e && e->state == ENTRY_KEPT));
    if (e) e->state = ENTRY_OVER;
}

/* What was taken back may come or not; none of it is missed. */
static void ledger_remove(const char *token)
{
    for (unsigned i = 0; i < run.entry_count; i++)
        if (strcmp(run.entries[i].token, token) == 0) run.entries[i].item.maybe = 1;
}

/* Nothing that was accepted has gone without a word. */
static void ledger_check(void)
{
    ledger_match();
    if (run.o.hold_ms == 0 || run.removals || run.untracked) return;
    for (unsigned i = 0; i < run.entry_count; i++) {
        const struct entry *e = &run.entries[i];
        if (e->state == ENTRY_KEPT && !e->item.maybe) HOLDS(message_kept(e->id));
    }
}

/* ===== Events of both runs of a split ===== */

static struct transcript {
    size_t sent_n, events_n;
    int on;
    uint8_t sent[1 << 17];
    char events[1 << 16];
} transcripts[2], *transcript = transcripts;

static void transcript_sent(const uint8_t *data, size_t n)
{
    if (!transcript->on) return;
    HOLDS(n <= sizeof transcript->sent - transcript->sent_n);
    memcpy(transcript->sent + transcript->sent_n, data, n);
    transcript->sent_n += n;
}

static void transcript_event(struct transcript *t, const char *what, unsigned a, unsigned b,
                             uint64_t hash)
{
    size_t room = sizeof t->events - t->events_n;
    if (!t->on) return;
    int n = snprintf(t->events + t->events_n, room, "%s %u %u %llx\n", what, a, b,
                     (unsigned long long)hash);
    HOLDS(n > 0 && (size_t)n < room);
    t->events_n += (size_t)n;
}

/* ===== The script: what is done to the server ===== */

static const char *const tokens[4] = {"a", "b", "ab", "c d"};
static const char *const coded[4] = {"a", "%62", "ab", "c%20d"};

static const uint16_t sizes[16] = {0,   1,   2,   3,   5,   20,   50,   124,
                                   125, 126, 200, 255, 300, 1000, 1500, 4000};

/* A text or bytes like no other before it. */
static size_t payload_make(uint8_t *out, unsigned size)
{
    size_t n = sizes[size & 15];
    char serial[16];
    size_t digits = (size_t)snprintf(serial, sizeof serial, "%u,", ++run.serial);
    for (size_t i = 0; i < n; i++) out[i] = (uint8_t)(i < digits ? serial[i] : 'x');
    return n;
}

static void removed(unsigned token)
{
    char shown[ENTRY_TOKEN];
    token_shown((const uint8_t *)tokens[token], strlen(tokens[token]), shown);
    ledger_remove(shown);
}

/* A push by the API. From inside on_log there is no line in the log that tells of it. */
static void act_push(unsigned act, unsigned token, int end, const uint8_t *data, size_t n,
                     int in_log)
{
    const unsigned kind = act & 1 ? EXPORTWS_BINARY : EXPORTWS_TEXT;
    const char *name = act < 2 ? tokens[token] : NULL;
    char shown[ENTRY_TOKEN];
    uint64_t id = run.w->next_id;
    int stopping = run.w->stopping;
    int result = name ? exportws_send(run.w, name, data, n, (int)kind | (end ? EXPORTWS_END : 0))
                      : exportws_broadcast(run.w, data, n, (int)kind);
    if (n > run.o.max_push_bytes) HOLDS(result == EXPORTWS_TOO_BIG);
    else if (stopping) HOLDS(result == EXPORTWS_GONE);
    else
        HOLDS(result >= 0 ||
              (name && result == (run.o.hold_ms > 0 ? EXPORTWS_FULL : EXPORTWS_ABSENT)));
    if (!in_log || result < 0) return;
    if (name) token_shown((const uint8_t *)name, strlen(name), shown);
    HOLDS(ledger_push(id, name ? shown : NULL, data, n, kind, (unsigned)result) ==
          (unsigned)result);
}

static void act_reply(unsigned which, const uint8_t *data, size_t n)
{
    if (run.session_count == 0 || n > run.o.max_push_bytes) return;
    exportws_id id = run.sessions[which % run.session_count];
    const struct conn *c = session_find(run.w, id);
    int result = exportws_reply(run.w, id, data, n, EXPORTWS_TEXT);
    HOLDS(result == 1 || result == EXPORTWS_GONE || result == EXPORTWS_FULL);
    HOLDS(c || result == EXPORTWS_GONE);
    HOLDS(result != EXPORTWS_FULL || c->state == CONN_OPEN);
    if (result != 1) return;
    ledger_owe(c, (struct item){exportws_last_id(run.w), hash_bytes(data, n), (uint32_t)n, -1,
                                OP_TEXT, 0});
}

static void act_close(unsigned which, unsigned code)
{
    static const int codes[4] = {1000, 1013, 4000, 1005};
    if (run.session_count == 0) return;
    exportws_id id = run.sessions[which % run.session_count];
    const struct conn *c = session_find(run.w, id);
    int result = exportws_close(run.w, id, codes[code & 3], code & 4 ? "g\xc3\xb6" : NULL);
    HOLDS(result == ((code & 3) == 3 ? EXPORTWS_BAD : c ? 0 : EXPORTWS_GONE));
}

/* One call of the API, from the script or from inside a callback. */
static void act(unsigned what, unsigned token, unsigned size, int in_log)
{
    static uint8_t data[4096];
    size_t n = payload_make(data, size);
    int before = exportws_sessions(run.w), result, end = token >> 2 & 1;
    token &= 3, what = (what & 15) % 10;
    switch (what) {
    case 0:
    case 1:
    case 2:
    case 3: act_push(what, token, end, data, n, in_log); break;
    case 4: act_reply(token + size, data, n); break;
    case 5: act_close(token, size); break;
    case 6:
        removed(token);
        result = exportws_kick(run.w, tokens[token]);
        HOLDS(result >= 0 || result == EXPORTWS_ABSENT);
        HOLDS(exportws_sessions(run.w) == before - (result > 0 ? result : 0));
        break;
    case 7:
    case 8:
        result = exportws_post(run.w, what == 7 ? tokens[token] : NULL, data, n,
                               EXPORTWS_TEXT | (end && what == 7 ? EXPORTWS_END : 0));
        if (n > run.o.max_push_bytes) HOLDS(result == EXPORTWS_TOO_BIG);
        else if (run.w->stopping) HOLDS(result == EXPORTWS_GONE || !run.w->ring.closed);
        else HOLDS(result == 0 || result == EXPORTWS_FULL);
        break;
    default: HOLDS(exportws_step(run.w, 0) == EXPORTWS_BAD || !run.w->in_turn); break;
    }
}

/* Where a callback may be armed. */
enum where { IN_UPGRADE, IN_OPEN, IN_MESSAGE, IN_CLOSE, IN_LOG, WHERES };

static void callback_acts(enum where where)
{
    for (unsigned i = 0; i < run.armed_count; i++) {
        struct armed a = run.armed[i];
        if (a.where != where) continue;
        run.armed[i] = run.armed[--run.armed_count];
        if (a.act % 10 == 9 && !run.w->in_turn) return; /* a turn would be a turn too many */
        act(a.act, a.token, a.size, where == IN_LOG);
        return;
    }
}

/* ----- callbacks ----- */

static int on_upgrade(void *user, const exportws_request *request)
{
    char value[32];
    HOLDS(user == &run && strlen(exportws_request_token(request)) > 0);
    HOLDS(exportws_request_header(request, "SEC-WEBSOCKET-VERSION", value, sizeof value) == 2);
    HOLDS(strcmp(value, "13") == 0 && strlen(exportws_request_query(request)) < HEAD_MAX);
    callback_acts(IN_UPGRADE);
    return strcmp(exportws_request_query(request), "no") == 0 ? 418 : 0;
}

static void on_open(void *user, exportws_id session, const char *token)
{
    HOLDS(user == &run && session != 0 && session_find(run.w, session));
    run.opened++;
    run.sessions[run.session_count++ % SESSIONS] = session;
    if (run.session_count > SESSIONS) run.session_count = SESSIONS;
    transcript_event(transcript, "open", 0, 0, hash_bytes((const uint8_t *)token, strlen(token)));
    callback_acts(IN_OPEN);
}

static void on_message(void *user, exportws_id session, const char *token, const void *data,
                       size_t n, int kind)
{
    HOLDS(user == &run && session_find(run.w, session) && *token && n <= run.o.max_message_bytes);
    HOLDS(kind == EXPORTWS_BINARY || (kind == EXPORTWS_TEXT && utf8_valid(data, n)));
    transcript_event(transcript, "message", (unsigned)kind, (unsigned)n, hash_bytes(data, n));
    callback_acts(IN_MESSAGE);
}

static void on_close(void *user, exportws_id session, const char *token, int reason, int code)
{
    unsigned i = 0;
    HOLDS(user == &run && !session_find(run.w, session) && *token);
    while (i < run.session_count && run.sessions[i] != session) i++;
    HOLDS(i < run.session_count || run.session_count == SESSIONS); /* on_open told of it */
    HOLDS(reason >= 0 && reason < EXPORTWS_REASONS && code >= 1000 && code <= 4999);
    run.closed++;
    transcript_event(transcript, "close", (unsigned)reason, (unsigned)code, 0);
    callback_acts(IN_CLOSE);
}

/* The number behind " key=" in a line of the log. */
static uint64_t line_number(const char *line, const char *key)
{
    char name[24];
    snprintf(name, sizeof name, " %s=", key);
    const char *at = strstr(line, name);
    HOLDS(at != NULL);
    return strtoull(at + strlen(name), NULL, 10);
}

/* The word behind " key=", or NULL. */
static const char *line_word(const char *line, const char *key, char word[ENTRY_TOKEN])
{
    char name[24];
    snprintf(name, sizeof name, " %s=", key);
    const char *at = strstr(line, name);
    if (!at) return NULL;
    size_t n = strcspn(at + strlen(name), " ");
    HOLDS(n < ENTRY_TOKEN);
    memcpy(word, at + strlen(name), n);
    word[n] = '\0';
    return word;
}

/* The opcode of the message that the stage has: of it where it is kept, else of the frame that was
 * built for the last session that took it, without an id or with one. */
static unsigned staged_kind(uint64_t id, size_t n)
{
    const uint8_t *data = run.w->stage + MESSAGE_HEAD_MAX;
    const struct message *kept = message_kept(id);
    char line[24];
    size_t size = (size_t)snprintf(line, sizeof line, "%llu\n", (unsigned long long)id);
    if (kept) return kept->kind;
    if (memcmp(data - size, line, size) != 0) size = 0;
    n += size;
    return data[-(ptrdiff_t)(size + (n < 126 ? 2 : n < 65536 ? 4 : 10))] & 15U;
}

/* The message of a push stands in the stage when the log tells of it. */
static void logged_push(const char *line, const char *event, const char *token)
{
    uint64_t id = line_number(line, "id");
    size_t n = (size_t)line_number(line, "size");
    unsigned delivered =
        strcmp(event, "push") == 0 ? (unsigned)line_number(line, "delivered") : 0;
    HOLDS(ledger_push(id, token, run.w->stage + MESSAGE_HEAD_MAX, n, staged_kind(id, n),
                      delivered) == delivered);
}

static void on_log(void *user, int level, const char *line)
{
    char event[ENTRY_TOKEN], word[ENTRY_TOKEN];
    const char *token = line_word(line, "token", word);
    HOLDS(user == &run && level >= 0 && level <= EXPORTWS_LOG_DEBUG &&
          strlen(line) < LINE_MAX_BYTES);
    HOLDS(strncmp(line, "time=", 5) == 0 && line_word(line, "event", event));
    for (const char *p = line; *p; p++) HOLDS((*p >= ' ' && *p <= '~') || (*p & 0x80));
    if (strcmp(event, "push") == 0 || strcmp(event, "hold") == 0) logged_push(line, event, token);
    if (strcmp(event, "open") == 0) ledger_open(token);
    if (strcmp(event, "expire") == 0) ledger_expire(line_number(line, "id"));
    if (run.w->conns) callback_acts(IN_LOG);
}

/* ----- peers ----- */

static struct peer *peer_connect(unsigned door, unsigned host)
{
    for (unsigned i = 0; i < PEERS; i++) {
        struct peer *p = &peers[i];
        if (p->used && (p->fd >= 0 || p->pending)) continue;
        memset(p, 0, offsetof(struct peer, reader));
        memset(&p->reader, 0, offsetof(struct reader, data));
        p->used = p->pending = 1;
        p->door = (uint8_t)door, p->host = (uint8_t)host;
        p->fd = -1, p->window = WINDOW_OPEN;
        net.queue[door][net.queued[door]++] = (uint8_t)i;
        return p;
    }
    return NULL;
}

static void peer_says(struct peer *p, const void *data, size_t n)
{
    if (!p->used || p->fin || p->reset || n > INBOX - p->n) return;
    if (n > 0) memcpy(p->inbox + p->n, data, n);
    p->n += n;
    for (size_t i = p->n - n < 8 ? 0 : p->n - n - 8; i + 4 <= p->n; i++)
        if (memcmp(p->inbox + i, "HEAD", 4) == 0) p->heads = 1;
    for (size_t i = p->n - n < 8 ? 0 : p->n - n - 8; p->door == 1 && i + 6 <= p->n; i++)
        if (memcmp(p->inbox + i, "DELETE", 6) == 0) run.removals = 1;
}

static void peer_says_text(struct peer *p, const char *text)
{
    peer_says(p, text, strlen(text));
}

/* A query: none, or where the client left off, of every kind. */
static void query_make(unsigned kind, char query[32])
{
    const uint64_t next = run.w ? run.w->next_id : 1, first = run.w ? run.w->first_id : 1;
    const uint64_t lasts[8] = {0, next - 1, next - 2, next - 4, first, next + 3, first - 9, 0};
    query[0] = '\0';
    if (kind == 15) snprintf(query, 32, "?last=x");
    else if (kind >= 8) snprintf(query, 32, "?last=%llu", (unsigned long long)lasts[kind & 7]);
}

/* token: 4: it asks not to be let in, 8: it wants ids; the rest says where it left off. */
static void peer_upgrades(struct peer *p, unsigned token)
{
    char head[400], query[32];
    query_make(token >> 4 & 15, query);
    snprintf(head, sizeof head,
             "GET /t/%s%s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
             coded[token & 3], token & 4 ? "?no" : query,
             token & 8 ? "Sec-WebSocket-Protocol: exportws.v1\r\n" : "");
    peer_says_text(p, head);
}

/* A masked frame; kind's low bits choose the opcode, 16 clears FIN, 32 the mask, 64 sets RSV1. */
static void peer_frame(struct peer *p, unsigned kind, const uint8_t *data, size_t n)
{
    static const uint8_t opcodes[8] = {1, 2, 0, 8, 9, 10, 3, 1}, mask[4] = {0x11, 0xa2, 0x33, 0xc4};
    uint8_t head[14] = {0}, byte;
    size_t size = 2;
    head[0] = (uint8_t)(opcodes[kind & 7] | (kind & 16 ? 0 : 128) | (kind & 64));
    head[1] = (uint8_t)((kind & 32 ? 0 : 128) | (n < 126 ? n : 126));
    if (n >= 126) head[size++] = (uint8_t)(n >> 8), head[size++] = (uint8_t)(n & 255);
    if (!(kind & 32)) memcpy(head + size, mask, 4), size += 4;
    peer_says(p, head, size);
    for (size_t i = 0; i < n; i++) {
        byte = (uint8_t)(data[i] ^ (kind & 32 ? 0 : mask[i & 3]));
        peer_says(p, &byte, 1);
    }
}

/* One request at the push door. */
static void peer_requests(struct peer *p, unsigned which, unsigned token, unsigned size)
{
    static uint8_t data[4096];
    static const char *const heads[16] = {
        "POST /t/%s HTTP/1.1\r\n",
        "POST /t/%.0s HTTP/1.1\r\n",
        "POST /t%.0s HTTP/1.1\r\nContent-Type: text/plain\r\n",
        "GET /t/%s HTTP/1.1\r\n",
        "DELETE /t/%s HTTP/1.1\r\n",
        "GET /online%.0s HTTP/1.1\r\n",
        "GET /metrics%.0s HTTP/1.1\r\n",
        "GET /healthz%.0s HTTP/1.1\r\n",
        "POST /t/%s HTTP/1.1\r\nContent-Type: application/octet-stream\r\n",
        "POST /t/%s HTTP/1.1\r\nExpect: 100-continue\r\n",
        "POST /t/%s HTTP/1.1\r\nConnection: close\r\n",
        "POST /t/%s HTTP/1.0\r\n",
        "PUT /t/%s HTTP/1.1\r\n",
        "POST /u/%s HTTP/1.1\r\n",
        "POST /t/%s HTTP/1.1\r\nTransfer-Encoding: chunked\r\n",
        "POST /t/%s HTTP/1.1\r\nX-Half: 1\r\n"};
    char head[256], name[16];
    size_t n = payload_make(data, size);
    which &= 15;
    snprintf(name, sizeof name, "%s%s", coded[token & 3], token & 8 ? "?end" : "");
    snprintf(head, sizeof head, heads[which], name);
    peer_says_text(p, head);
    peer_says_text(p, "Host: x\r\nAuthorization: Bearer key\r\n");
    if ((which >= 3 && which <= 7)) n = 0;
    if (which != 14) {
        snprintf(head, sizeof head,
                 n > 0 || (which < 3 || which > 7) ? "Content-Length: %zu\r\n\r\n" : "\r\n", n);
        peer_says_text(p, head);
        peer_says(p, data, which == 15 ? n / 2 : n);
        return;
    }
    peer_says_text(p, "\r\n");
    for (size_t at = 0; at < n;) {
        size_t piece = n - at < 100 ? n - at : 100;
        snprintf(head, sizeof head, "%zx\r\n", piece);
        peer_says_text(p, head), peer_says(p, data + at, piece), peer_says_text(p, "\r\n");
        at += piece;
    }
    peer_says_text(p, token & 4 ? "0\r\nTrailer: 1\r\n\r\n" : "0\r\n\r\n");
}

/* ----- turns ----- */

/* The books are recounted: after every step of a scenario, in the end of a split. */
static void server_check(void)
{
    const char *wrong = transcript->on ? NULL : audit(run.w);
    if (wrong) fuzz_fail("audit.h", 0, wrong);
    ledger_check();
    for (uint32_t i = 0; i < run.w->conns_end; i++)
        if (run.w->conns[i].state != CONN_FREE) net_peer(run.w->conns[i].fd);
    unsigned open_fds = 0;
    for (unsigned i = 0; i < DESCRIPTORS; i++) open_fds += net.fds[i].kind == FD_PEER;
    unsigned used = 0;
    for (uint32_t i = 0; i < run.w->conns_end; i++) used += run.w->conns[i].state != CONN_FREE;
    HOLDS(open_fds == used);
}

static int server_turn(int timeout)
{
    net.ready = 0, net.polls = 0;
    if (!transcript->on && run.turns++ % 2 == 1) run.w->sends = TURN_SENDS; /* one request each */
    int events = exportws_step(run.w, timeout);
    server_check();
    HOLDS(run.w->left_first == NONE && run.opened - run.closed == run.w->sessions);
    HOLDS(events >= 0 || events == EXPORTWS_GONE);
    return events;
}

/* A turn of a host that polls itself, and tells of more than there was. */
static void server_dispatch(unsigned spurious)
{
    static struct pollfd fds[DESCRIPTORS];
    int timeout = 0, n = exportws_pollfds(run.w, fds, DESCRIPTORS, &timeout);
    if (n == EXPORTWS_GONE) return;
    HOLDS(n > 0 && timeout == 0);
    net_poll(fds, (size_t)n, 0);
    struct pollfd *one = &fds[(spurious >> 2) % (unsigned)n];
    one->revents = (short)(one->revents | (one->events & (spurious & 1 ? POLLIN : POLLOUT)));
    HOLDS(exportws_dispatch(run.w, fds, (size_t)n) != EXPORTWS_BAD);
    server_check();
}

/* Sessions that are idle go cold, as they would among many. */
static void server_cool(void)
{
    for (uint32_t i = 0; i < run.w->capacity; i++) {
        const struct conn *c = &run.w->conns[i];
        if (c->state == CONN_OPEN && c->queued == 0 && c->at < run.w->hot) poll_cool(run.w, c->at);
    }
    server_check();
}

/* ----- the script ----- */

static void script_error(struct bytes *in)
{
    static const int errors[] = {EINTR,  EAGAIN,  ECONNRESET, EPIPE,     ECONNABORTED, EMFILE,
                                 ENFILE, ENOBUFS, ENOMEM,     ETIMEDOUT, ENOTCONN};
    unsigned call = (bytes_next(in) & 15) % CALLS, error = bytes_next(in) & 15;
    net.error[call] = errors[error % (sizeof errors / sizeof *errors)];
    if (call == CALL_POLL) net.error[call] = error & 1 ? EINTR : ENOMEM;
}

static void script_peer(struct bytes *in, uint8_t op)
{
    static const uint16_t windows[16] = {0,   1,   2,   3,   5,   7,   10,   64,
                                         125, 127, 129, 130, 256, 300, 1000, 65535};
    struct peer *p = &peers[bytes_next(in) % PEERS];
    uint8_t a = op == 'x' || op == 'X' || op == 'h' ? 0 : bytes_next(in), b;
    struct bytes data;
    if (!p->used) return;
    switch (op) {
    case 'd': data = bytes_take(in, a), peer_says(p, data.p, data.n); return;
    case 'u': peer_upgrades(p, a); return;
    case 'f': data = bytes_take(in, bytes_next(in)), peer_frame(p, a, data.p, data.n); return;
    case 'h': peer_frame(p, 0, (const uint8_t *)run.o.heartbeat, strlen(run.o.heartbeat)); return;
    case 'q': b = bytes_next(in), peer_requests(p, a, b, b >> 4); return;
    case 'x': p->fin = 1; return;
    case 'X': p->reset = 1; return;
    default: p->window = (a & 15) == 15 ? WINDOW_OPEN : windows[a & 15]; return;
    }
}

static void script_step(struct bytes *in, uint8_t op)
{
    static const uint32_t steps[16] = {0,   1,    9,    50,   99,   100,   101,   499,
                                       500, 1000, 1001, 2000, 5000, 10000, 60000, 3600000};
    uint8_t a, b;
    switch (op) {
    case 'C':
    case 'P': peer_connect(op == 'P', bytes_next(in)); return;
    case 'e': script_error(in); return;
    case 'l':
        a = bytes_next(in), b = bytes_next(in), net.limit[a & 1 ? CALL_SEND : CALL_RECV] = b;
        return;
    case 't': net.now_ms += steps[bytes_next(in) & 15]; return;
    case '.': server_turn(0); return;
    case '~': server_turn(-1); return;
    case 'y': server_dispatch(bytes_next(in)); return;
    case 's': exportws_stop(run.w); return;
    case 'k': server_cool(); return;
    case 'a':
        a = bytes_next(in), b = bytes_next(in);
        if ((a & 15) % 10 != 9) act(a, b, b >> 4, 0);
        server_check();
        return;
    case 'B':
        a = bytes_next(in), b = bytes_next(in);
        if (run.armed_count < ARMED)
            run.armed[run.armed_count++] = (struct armed){(uint8_t)((a >> 4) % WHERES), a & 15,
                                                          b & 7, (uint8_t)(b >> 4)};
        return;
    default: script_peer(in, op); return;
    }
}

/* ----- start and end ----- */

static void options_set(struct bytes *in)
{
    static const uint16_t messages[4] = {125, 126, 1000, 4000}, pushes[4] = {16, 300, 1500, 4000};
    static const uint16_t buffers[4] = {2048, 4096, 8192, 32768}, queues[4] = {1, 2, 3, 8};
    static const uint16_t holds[4] = {0, 1000, 5000, 30000}, histories[4] = {16, 0, 1, 3};
    exportws_options *o = &run.o;
    uint8_t a = bytes_next(in), b = bytes_next(in);
    exportws_defaults(o);
    o->listen = "127.0.0.1:1", o->push = "127.0.0.1:2", o->path = "/t/";
    o->user = &run, o->log_level = EXPORTWS_LOG_DEBUG;
    o->on_upgrade = on_upgrade, o->on_open = on_open, o->on_message = on_message;
    o->on_close = on_close, o->on_log = on_log;
    o->capacity = 1 + (a & 3), o->handshakes = 1 + (a >> 2 & 3);
    o->pushers = 1 + (b & 1), o->per_token = 1 + (b >> 1 & 3);
    a = bytes_next(in), b = bytes_next(in);
    o->queue = queues[a & 3], o->per_address = a >> 2 & 3, o->max_token_bytes = 16;
    o->history = histories[a >> 4 & 3];
    o->max_message_bytes = messages[b & 3], o->max_push_bytes = pushes[b >> 2 & 3];
    a = bytes_next(in), b = bytes_next(in);
    o->buffer_bytes = buffers[a & 3], o->heartbeat_reply = a >> 2 & 1;
    o->push_secret = a & 8 ? "key" : NULL;
    o->hold_ms = holds[b & 3], o->on_upgrade = b & 4 ? NULL : on_upgrade;
    a = bytes_next(in);
    o->ping_ms = a & 1 ? 500 : 2000, o->pong_ms = a & 2 ? 1000 : 300;
    o->handshake_timeout_ms = a & 4 ? 1000 : 150, o->write_timeout_ms = a & 8 ? 1500 : 400;
    o->close_timeout_ms = 500, o->drain_ms = 800;
}

/* A server with run.o, in memory that is not clean. */
static void server_start(void)
{
    char why[128];
    memset(&net, 0, sizeof net);
    for (unsigned i = 0; i < PEERS; i++) peers[i].used = 0, peers[i].fd = -1;
    net.now_ms = 1000000;
    size_t bytes = exportws_memory(&run.o);
    HOLDS(bytes > 0 && bytes <= sizeof memory);
    memset(memory, 0xa5, bytes);
    run.w = (void *)memory; /* on_log looks at it before exportws_start has returned */
    HOLDS(exportws_start(&run.o, memory, bytes, why, sizeof why) == run.w);
    server_check();
}

/* Until nothing is ready any more, among those that are cold neither. */
static void settle(void)
{
    for (unsigned turn = 0, idle = 0; idle < 3; turn++) {
        HOLDS(turn < 3000);
        int events = server_turn(0);
        if (events < 0) return;
        idle = events == 0 && net.ready == 0 ? idle + 1 : 0;
        if (run.w->hot == run.w->poll_count && idle > 1) return;
        net.now_ms += 10;
    }
}

/* The last act: no more errors, everybody reads; then all leave (or stay silent), and time passes
 * until nothing is to happen any more. */
static void finish(unsigned how)
{
    memset(net.error, 0, sizeof net.error), memset(net.limit, 0, sizeof net.limit);
    run.armed_count = 0, run.finishing = 1;
    for (unsigned i = 0; i < PEERS; i++) peers[i].window = WINDOW_OPEN;
    settle();
    for (unsigned i = 0; i < PEERS; i++) {
        struct peer *p = &peers[i];
        const struct conn *c = peer_conn(p);
        if (c && c->state == CONN_OPEN && !run.untracked) HOLDS(peer_missing(p) == 0);
        if (how == 1) p->fin = 1;
        if (how == 2) p->reset = 1;
    }
    if (how == 3) exportws_stop(run.w);
    for (unsigned turn = 0, idle = 0;; turn++) {
        HOLDS(turn < 20000);
        int events = server_turn(-1);
        if (events < 0 || (events == 0 && net.ready == 0 && net.timeout < 0)) break;
        idle = events == 0 && net.ready == 0 && net.timeout == 0 ? idle + 1 : 0;
        HOLDS(idle < 4); /* it wants to be called again at once, and does nothing */
    }
    if (how == 3) HOLDS(exportws_step(run.w, 0) == EXPORTWS_GONE);
    else if (!run.w->stopped) {
        const char *left = audit_left(run.w, 0);
        if (left) fuzz_fail("audit.h", 0, left);
        HOLDS(net.queued[0] == 0 && net.queued[1] == 0);
    }
}

static void server_end(void)
{
    exportws_end(run.w);
    for (unsigned i = 0; i < DESCRIPTORS; i++) HOLDS(net.fds[i].kind == FD_FREE);
}

static void run_reset(void)
{
    unsigned kept = offsetof(struct run, entry_count);
    memset((char *)&run + kept, 0, sizeof run - kept);
}

static void fuzz_scenario(struct bytes in)
{
    static const char ops[] = "CPdufhqxXwelt.~yaBks";
    run_reset();
    options_set(&in);
    uint8_t end = bytes_next(&in);
    transcript->on = 0;
    server_start();
    for (unsigned step = 0; in.n > 0 && step < 400 && !run.w->stopped; step++) {
        uint8_t op = bytes_next(&in);
        if (!op || !strchr(ops, op)) op = (uint8_t)ops[op % (sizeof ops - 1)];
        script_step(&in, op);
    }
    finish(end & 3);
    server_end();
}

/* ===== One connection, whole and in pieces ===== */

/* What a client's frames must lead to: the second reading of RFC 6455. */
struct model {
    struct transcript *t;
    uint8_t message[4096];
    size_t size;
    unsigned kind;
};

static void model_close(struct model *m, unsigned reason, unsigned code)
{
    transcript_event(m->t, "close", reason, code, 0);
}

/* A control frame; 0: the session is over. */
static int model_control(struct model *m, unsigned opcode, const uint8_t *p, size_t n)
{
    unsigned code = n >= 2 ? (unsigned)p[0] << 8 | p[1] : 1005;
    if (opcode != 8) return 1;
    if (n == 1 || (n >= 2 && !close_code_valid(code))) model_close(m, EXPORTWS_BY_PROTOCOL, 1002);
    else if (n > 2 && !utf8_valid(p + 2, n - 2)) model_close(m, EXPORTWS_BY_PROTOCOL, 1007);
    else model_close(m, EXPORTWS_BY_PEER, code);
    return 0;
}

/* The payload so far is no start of a text. */
static int model_not_text(const struct model *m)
{
    struct utf8 u = {0, 0, 0};
    return m->kind == 1 && utf8_feed(&u, m->message, m->size) < 0;
}

/* The end of a message; 0: the session is over. */
static int model_message(struct model *m)
{
    size_t n = strlen(run.o.heartbeat);
    if (m->kind == 1 && !utf8_valid(m->message, m->size)) {
        model_close(m, EXPORTWS_BY_PROTOCOL, 1007);
        return 0;
    }
    if (m->kind != 1 || m->size != n || memcmp(m->message, run.o.heartbeat, n) != 0)
        transcript_event(m->t, "message", m->kind, (unsigned)m->size,
                         hash_bytes(m->message, m->size));
    m->kind = 0, m->size = 0;
    return 1;
}

/* Takes one frame; returns its size, 0: it is not whole, or -code. */
static ptrdiff_t model_frame(struct model *m, const uint8_t *p, size_t n)
{
    unsigned opcode = p[0] & 15, control = opcode & 8, extended;
    if ((p[0] & 0x70) || (opcode > 2 && opcode < 8) || opcode > 10 || (control && !(p[0] & 128)))
        return -1002;
    if (n < 2) return 0;
    extended = (p[1] & 127) == 126 ? 2 : (p[1] & 127) == 127 ? 8 : 0;
    if (!(p[1] & 128) || (control && extended)) return -1002;
    size_t head = 6 + extended, have;
    uint64_t size = extended ? 0 : p[1] & 127;
    if (n < head) return 0;
    for (unsigned i = 0; i < extended; i++) size = size << 8 | p[2 + i];
    if (size >> 63 || (extended == 2 && size < 126) || (extended == 8 && size < 65536))
        return -1002;
    if (!control && (opcode == 0) != (m->kind != 0)) return -1002;
    if (!control && size > run.o.max_message_bytes - m->size) return -1009;
    have = n - head < size ? n - head : (size_t)size;
    if (control && have < size) return 0;
    uint8_t *to = m->message + (control ? 0 : m->size), payload[125];
    if (control) to = payload;
    for (size_t i = 0; i < have; i++) to[i] = (uint8_t)(p[head + i] ^ p[head - 4 + i % 4]);
    if (control) return model_control(m, opcode, payload, have) ? (ptrdiff_t)(head + have) : -1;
    if (opcode) m->kind = opcode;
    m->size += have;
    if (model_not_text(m)) return -1007;
    if (have < size) return 0;
    return !(p[0] & 128) || model_message(m) ? (ptrdiff_t)(head + have) : -1;
}

/* All that a client says behind its upgrade, and then its end. */
static void model_client(struct transcript *t, struct bytes in, const char *token)
{
    static struct model m;
    ptrdiff_t used = 1;
    memset(&m, 0, offsetof(struct model, message)), m.size = 0, m.kind = 0;
    m.t = t;
    transcript_event(t, "open", 0, 0, hash_bytes((const uint8_t *)token, strlen(token)));
    while (used > 0 && in.n > 0) {
        used = model_frame(&m, in.p, in.n);
        if (used > 0) bytes_take(&in, (size_t)used);
    }
    if (used < -1) model_close(&m, EXPORTWS_BY_PROTOCOL, (unsigned)-used);
    if (used >= 0) model_close(&m, EXPORTWS_BY_PEER, 1006);
}

/* Turns until nothing is ready and nobody waits for an input buffer. */
static void settle_split(void)
{
    for (unsigned turn = 0; turn < 2; turn++) {
        settle();
        if (run.w->waiting == 0) return;
        net.now_ms += WAIT_RETRY_MS + 1;
    }
    settle();
}

static void split_run(struct transcript *t, unsigned door, struct bytes in, struct splits *s)
{
    transcript = t;
    t->on = 1, t->sent_n = t->events_n = 0;
    server_start();
    struct peer *p = peer_connect(door, 0);
    settle_split();
    while (in.n > 0) {
        size_t most = s ? splits_next(s, in.n) : in.n;
        struct bytes piece = bytes_take(&in, most);
        peer_says(p, piece.p, piece.n);
        if (s) net.limit[CALL_RECV] = s->state >> 28;
        settle_split();
    }
    p->fin = 1;
    settle_split();
    t->on = 0;
    finish(2);
    server_end();
}

static void split_options(struct bytes *in, unsigned door)
{
    uint8_t size;
    run_reset();
    options_set(in);
    size = bytes_next(in);
    run.o.hold_ms = 3600000, run.o.buffer_bytes = 65536, run.o.queue = 64;
    run.o.handshake_timeout_ms = run.o.ping_ms = run.o.write_timeout_ms = 3600000;
    if (size & 1) run.o.capacity = run.o.handshakes = 64; /* then heads get an input buffer */
    run.untracked = 1;
    run.o.max_message_bytes = run.o.max_message_bytes < 4000 ? run.o.max_message_bytes : 4000;
    if (door == 0) run.o.heartbeat_reply = 0;
}

/* Whether the events are the same; tells both when they are not. */
static int events_equal(const struct transcript *a, const struct transcript *b)
{
    if (a->events_n == b->events_n && memcmp(a->events, b->events, a->events_n) == 0) return 1;
    fprintf(stderr, "events:\n%.*s-- and:\n%.*s", (int)a->events_n, a->events, (int)b->events_n,
            b->events);
    return 0;
}

static int sent_equal(const struct transcript *a, const struct transcript *b)
{
    if (a->sent_n == b->sent_n && memcmp(a->sent, b->sent, a->sent_n) == 0) return 1;
    fprintf(stderr, "sent:\n%.*s\n-- and:\n%.*s\n", (int)a->sent_n, a->sent, (int)b->sent_n,
            b->sent);
    return 0;
}

/* Both runs, and (a client that upgrades properly first) the model. */
static void fuzz_split(struct bytes in, unsigned door)
{
    static struct transcript model;
    static uint8_t data[INBOX];
    split_options(&in, door);
    uint8_t seed = bytes_next(&in), upgrades = bytes_next(&in) & 1 && door == 0;
    struct splits s = {seed * 0x01010101U};
    struct peer *p = &peers[0];
    memset(p, 0, offsetof(struct peer, reader));
    p->used = 1;
    if (upgrades) peer_upgrades(p, 0);
    size_t head = p->n;
    memcpy(data, p->inbox, head);
    if (in.n > 0) memcpy(data + head, in.p, in.n);
    struct bytes all = {data, head + in.n};
    exportws_options o = run.o;
    for (unsigned i = 0; i < 2; i++) {
        run_reset();
        run.o = o, run.untracked = 1;
        split_run(&transcripts[i], door, all, i > 0 ? &s : NULL);
        run.untracked = 1;
    }
    for (size_t i = 0; i + 7 <= all.n && door == 1; i++)
        if (memcmp(data + i, "metrics", 7) == 0) return; /* they tell of the bytes that have come */
    HOLDS(events_equal(&transcripts[0], &transcripts[1]));
    HOLDS(sent_equal(&transcripts[0], &transcripts[1]));
    if (!upgrades) return;
    model.on = 1, model.events_n = 0;
    model_client(&model, in, tokens[0]);
    HOLDS(events_equal(&transcripts[0], &model));
}

static void fuzz_one(const uint8_t *p, size_t n)
{
    struct bytes in = {p, n};
    uint8_t mode = bytes_next(&in);
    if (n < 10) return;
    if (mode == 'c' || mode == 'p') fuzz_split(in, mode == 'p');
    else fuzz_scenario(in);
}

FUZZ_SEEING
