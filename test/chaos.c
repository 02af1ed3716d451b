/* Chaos: 200 clients with exportws.v1 behind a proxy that cuts their connections - RST, FIN, a
 * freeze that ends in a cut or goes on - every few hundred milliseconds, while numbered messages
 * are pushed to their tokens and to all. In the end each client's list is complete, in order and
 * without doubles; or it was told of a gap just where the log gave way.
 *
 *     build/chaos [MESSAGES [SEED]]       2000, and a seed from the clock
 *
 * Clients, proxy and pusher are one poll() loop; the server is $EXPORTWS. What happens when is the
 * machine's business: a seed that failed fails again often, not always. */
#include "server.h"

enum {
    CLIENTS = 200,
    TOKENS = 100,
    FAT_TOKENS = 4,
    LINKS = 1500,
    WINDOW = 16, /* requests of the pusher that are not answered yet */
    PIPE_BYTES = 16384,
    CLIENT_BYTES = 65536 + 64,
    SILENCE_MS = 1500, /* then a client takes its connection for dead */
    LAST_MS = 40000,   /* so long the end may take */
    GAPS = 200000,
    MAY_SKIP = 1 << 30
};

/* A message as it was pushed. */
struct pushed {
    uint64_t id;
    int token, accepted; /* TOKENS: to all */
    size_t size;
};

struct stream {
    size_t n;
    unsigned char bytes[PIPE_BYTES];
};

/* A connection through the proxy. */
struct link {
    int near, far; /* the client's side, the server's; -1: closed */
    int frozen, parting; /* nothing is read; what is read goes nowhere */
    long long cut_ms, thaw_ms;
    struct stream up, down;
};

struct client {
    int fd, open, token, gap; /* gap: it was told of one, and is not past all that was there then */
    uint64_t last;            /* id */
    unsigned number, from, sent; /* its last message's; when it came; what was pushed then */
    long long due_ms;
    size_t n, got_n, got_most;
    unsigned *got; /* numbers; with MAY_SKIP: that something is missing before it was told */
    unsigned char in[CLIENT_BYTES];
};

/* A client was told that something is missing between two messages. */
struct gap {
    const struct client *client;
    unsigned from, to;
};

static struct {
    struct server server;
    unsigned messages, sent, answered, refused;
    uint32_t seed, random;
    struct pushed *pushed;
    struct link links[LINKS];
    struct client clients[CLIENTS];
    struct conn pusher;
    size_t out_n, out_at;
    char out[WINDOW * 16384];
    int door, cutting; /* of the proxy; whether it cuts */
    char address[40];
    long long now_ms, begun_ms, length_ms;
    struct gap gaps[GAPS];
    unsigned cuts[4], connects, doubles, gap_n, gap_told;
} run;

static unsigned chance(unsigned n)
{
    run.random = run.random * 1664525U + 1013904223U;
    return (run.random >> 8) % n;
}

static void reset(int fd)
{
    const struct linger now = {1, 0};
    if (fd < 0) return;
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

/* ===== The proxy ===== */

static void proxy_open(void)
{
    struct address a;
    int one = 1;
    address_parse("127.0.0.1:0", &a);
    run.door = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(run.door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(run.door, (struct sockaddr *)(void *)&a.name, a.size) != 0 ||
        listen(run.door, 512) != 0 ||
        getsockname(run.door, (struct sockaddr *)(void *)&a.name, &a.size) != 0)
        harness_fail("proxy: %s", strerror(errno));
    descriptor_prepare(run.door);
    snprintf(run.address, sizeof run.address, "127.0.0.1:%d",
             ntohs(((struct sockaddr_in *)(void *)&a.name)->sin_port));
}

static void link_plan(struct link *l)
{
    l->cut_ms = run.now_ms + 20 + chance(60) * chance(20);
}

/* A connection to the server. Half of them have small segments and buffers: then the server's own
 * buffer in the kernel is small, too, and what does not fit waits in its queue. */
static int proxy_dial(void)
{
    struct address a;
    const int one = 1, segment = 536, buffer = 4096;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    address_parse(run.server.clients, &a);
    descriptor_prepare(fd);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (chance(2)) {
        setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    }
    if (connect_until(fd, &a, deadline_usual()) == 0) return fd;
    close(fd);
    return -1;
}

static void proxy_accept(void)
{
    for (int i = 0; i < LINKS; i++) {
        struct link *l = &run.links[i];
        if (l->near >= 0 || l->far >= 0) continue;
        int near = accept(run.door, NULL, NULL);
        if (near < 0) return;
        descriptor_prepare(near);
        l->near = near, l->far = proxy_dial(), l->frozen = l->parting = 0;
        if (l->far < 0) harness_fail("the server does not listen");
        l->up.n = l->down.n = 0;
        link_plan(l);
    }
}

static void link_close(struct link *l)
{
    if (l->near >= 0) close(l->near);
    if (l->far >= 0) close(l->far);
    l->near = l->far = -1;
}

/* Its time has come. */
static void link_cut(struct link *l)
{
    unsigned how = chance(4);
    run.cuts[how]++;
    if (how == 0) { /* RST */
        reset(l->near), reset(l->far);
        l->near = l->far = -1;
    } else if (how == 1) { /* FIN, whatever is still on its way */
        shutdown(l->near, SHUT_WR), shutdown(l->far, SHUT_WR);
        l->parting = 1;
        l->thaw_ms = run.now_ms + 50;
    } else { /* a freeze: the client knows, and the server does not; or nobody does */
        if (how == 2) reset(l->near), l->near = -1;
        l->frozen = 1;
        l->thaw_ms = run.now_ms + 100 + chance(900);
    }
}

static void link_thaw(struct link *l)
{
    l->frozen = 0;
    if (l->parting) link_close(l);
    else if (l->near < 0) reset(l->far), l->far = -1;
    else link_plan(l);
}

/* Moves bytes one way, at most so many at a time. 0, or -1 at the end. */
static int stream_move(struct stream *s, int from, int to, int readable)
{
    size_t room = sizeof s->bytes - s->n, most = 1 + chance(sizeof s->bytes);
    if (readable && room > 0) {
        ssize_t n = recv(from, s->bytes + s->n, room < most ? room : most, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) return -1;
        if (n > 0) s->n += (size_t)n;
    }
    if (s->n == 0) return 0;
    ssize_t n = send(to, s->bytes, s->n, MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN ? 0 : -1;
    memmove(s->bytes, s->bytes + n, s->n -= (size_t)n);
    return 0;
}

static void link_step(struct link *l, int near_events, int far_events)
{
    static unsigned char nowhere[PIPE_BYTES];
    if (l->frozen) return;
    if (l->parting) {
        while (recv(l->near, nowhere, sizeof nowhere, 0) > 0) {}
        while (recv(l->far, nowhere, sizeof nowhere, 0) > 0) {}
        return;
    }
    int up = stream_move(&l->up, l->near, l->far, near_events & (POLLIN | POLLHUP | POLLERR));
    int down = stream_move(&l->down, l->far, l->near, far_events & (POLLIN | POLLHUP | POLLERR));
    if (up < 0 || (down < 0 && l->down.n == 0)) link_close(l);
}

/* ===== Messages ===== */

/* A new message: to whom, how long. A few tokens get such that a stalled connection does not take
 * many. */
static void message_plan(struct pushed *p)
{
    p->token = chance(20) == 0 ? TOKENS : (int)chance(chance(10) ? TOKENS : FAT_TOKENS);
    p->size = p->token < FAT_TOKENS ? 12000 : 10 + chance(chance(10) ? 290 : 3000);
    p->accepted = 0, p->id = 0;
}

static void message_body(unsigned number, size_t size, char *out)
{
    char digits[16];
    memset(out, 'a' + (int)(number % 26), size);
    memcpy(out, digits, (size_t)snprintf(digits, sizeof digits, "%u ", number));
}

/* ===== The pusher ===== */

/* Behind what is still to be sent, as many as may be on their way. */
static void pusher_fill(void)
{
    while (run.sent < run.messages - (run.cutting ? 1 : 0) && run.sent - run.answered < WINDOW &&
           (run.now_ms - run.begun_ms) * run.messages / run.length_ms >= run.sent) {
        struct pushed *p = &run.pushed[++run.sent];
        char token[16] = "";
        message_plan(p);
        if (run.sent == run.messages) p->token = TOKENS, p->size = 20;
        if (p->token < TOKENS) snprintf(token, sizeof token, "t%d", p->token);
        run.out_n += (size_t)snprintf(
            run.out + run.out_n, sizeof run.out - run.out_n,
            "POST /app/ws/export-task/%s HTTP/1.1\r\nHost: h\r\n%sContent-Length: %zu\r\n\r\n",
            token, run.sent % 5 ? "" : "Content-Type: application/octet-stream\r\n", p->size);
        message_body(run.sent, p->size, run.out + run.out_n);
        run.out_n += p->size;
    }
}

/* An answer: 1, or 0 when it is not whole. */
static int pusher_answer(struct conn *p)
{
    char text[512];
    size_t n = p->end - p->start < sizeof text - 1 ? p->end - p->start : sizeof text - 1;
    memcpy(text, p->bytes + p->start, n);
    text[n] = '\0';
    const char *end = strstr(text, "\r\n\r\n"), *length = strstr(text, "Content-Length: ");
    if (!end || !length) return 0;
    size_t size = (size_t)(end + 4 - text) + strtoul(length + 16, NULL, 10);
    int status = atoi(text + 9);
    if (n < size) return 0;
    struct pushed *m = &run.pushed[++run.answered];
    m->accepted = status == 200 || status == 202;
    if (m->accepted) m->id = (uint64_t)json_number(end, "id");
    else if (status != 503) harness_fail("the pusher got %s", text);
    run.refused += !m->accepted;
    p->start += size;
    return 1;
}

static void pusher_step(int events)
{
    if (run.out_at == run.out_n) run.out_at = run.out_n = 0, pusher_fill();
    if (run.out_at < run.out_n) {
        ssize_t n = send(run.pusher.fd, run.out + run.out_at, run.out_n - run.out_at, MSG_NOSIGNAL);
        if (n > 0) run.out_at += (size_t)n;
    }
    if (!(events & POLLIN)) return;
    if (conn_fill_now(&run.pusher) != READ_OK) harness_fail("the push door closed");
    while (pusher_answer(&run.pusher)) {}
}

/* ===== The clients ===== */

static int is_for(const struct pushed *p, const struct client *k)
{
    return p->token == k->token || p->token == TOKENS;
}

/* The connection is of no use: another one comes soon. */
static void client_drop(struct client *k)
{
    if (k->fd >= 0) reset(k->fd);
    k->fd = -1;
    k->due_ms = run.now_ms + chance(60);
}

static void client_dial(struct client *k)
{
    struct conn dialled;
    char request[512];
    if (conn_dial(&dialled, run.address, 0, NULL) != 0) harness_fail("the proxy does not listen");
    k->fd = dialled.fd, k->open = 0, k->n = 0;
    k->due_ms = run.now_ms + SILENCE_MS;
    int n = snprintf(request, sizeof request,
                     "GET /app/ws/export-task/t%d?last=%llu HTTP/1.1\r\nHost: h\r\n"
                     "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                     "Sec-WebSocket-Protocol: exportws.v1\r\n\r\n",
                     k->token, (unsigned long long)k->last);
    if (send(k->fd, request, (size_t)n, MSG_NOSIGNAL) != n) client_drop(k);
    run.connects++;
}

/* A message: ID, newline, number, blank, filler. */
static void client_message(struct client *k, int opcode, const unsigned char *p, size_t n)
{
    static char want[CLIENT_BYTES];
    char *end, *digits;
    if (n == 3 && memcmp(p, "gap", 3) == 0 && !k->gap && k->number == k->from) {
        k->gap = 1, run.gap_told++;
        return;
    }
    char text[64];
    snprintf(text, sizeof text, "%.*s", (int)(n < 60 ? n : 60), (const char *)p);
    uint64_t id = strtoull(text, &digits, 10);
    unsigned number = *digits == '\n' ? (unsigned)strtoul(digits + 1, &end, 10) : 0;
    size_t line = (size_t)(digits + 1 - text);
    if (number == 0 || number > run.sent) harness_fail("a message that nobody pushed: '%s'", text);
    const struct pushed *m = &run.pushed[number];
    message_body(number, m->size, want);
    if (n - line != m->size || memcmp(p + line, want, m->size) != 0 ||
        opcode != (number % 5 ? OP_TEXT : OP_BINARY) || (m->accepted && m->id != id) ||
        !is_for(m, k))
        harness_fail("message %u came as '%s', %zu bytes", number, text, n);
    run.doubles += number <= k->number || id <= k->last;
    if (k->got_n == k->got_most) {
        k->got_most = k->got_most * 2 + 1024;
        k->got = realloc(k->got, k->got_most * sizeof *k->got);
        if (!k->got) harness_fail("out of memory");
    }
    k->got[k->got_n++] = number | (k->gap ? MAY_SKIP : 0);
    k->number = number, k->last = id;
    if (!k->gap || number <= k->sent) return;
    k->gap = 0; /* from here on it is as any other */
    if (run.gap_n < GAPS) run.gaps[run.gap_n++] = (struct gap){k, k->from, number};
}

/* The 101: 1, 0: it is not whole, or -1: it is another answer. */
static int client_open(struct client *k)
{
    static const char protocol[] = "\r\nSec-WebSocket-Protocol: exportws.v1\r\n";
    char text[1024];
    size_t n = k->n < sizeof text - 1 ? k->n : sizeof text - 1;
    memcpy(text, k->in, n);
    text[n] = '\0';
    char *end = strstr(text, "\r\n\r\n");
    if (!end) return 0;
    if (strncmp(text, "HTTP/1.1 101 ", 13) != 0) return -1;
    if (!strstr(text, protocol)) harness_fail("no subprotocol: %s", text);
    size_t head = (size_t)(end + 4 - text);
    memmove(k->in, k->in + head, k->n -= head);
    k->open = 1, k->gap = 0;
    k->from = k->number, k->sent = run.sent;
    return 1;
}

/* All whole frames. 0, or -1 when one of them closes. */
static int client_frames(struct client *k)
{
    size_t at = 0;
    uint64_t size;
    for (;;) {
        const unsigned char *p = k->in + at;
        size_t head = frame_head(p, k->n - at, &size);
        if (head == 0 || k->n - at - head < size) break;
        if (p[0] == (0x80 | OP_CLOSE)) return -1;
        if (p[0] != 0x81 && p[0] != 0x82) harness_fail("a frame of %02x", p[0]);
        client_message(k, p[0] & 15, p + head, (size_t)size);
        at += head + (size_t)size;
    }
    memmove(k->in, k->in + at, k->n -= at);
    return 0;
}

static void client_step(struct client *k, int events)
{
    if (k->fd < 0 && k->due_ms <= run.now_ms) client_dial(k);
    else if (k->fd >= 0 && k->due_ms <= run.now_ms) client_drop(k);
    if (k->fd < 0 || !events) return;
    ssize_t n = recv(k->fd, k->in + k->n, sizeof k->in - k->n, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) k->n += (size_t)n, k->due_ms = run.now_ms + SILENCE_MS;
    int ended = n <= 0 || (!k->open && client_open(k) < 0);
    if (k->open && client_frames(k) < 0) ended = 1;
    if (ended) client_drop(k);
}

/* ===== All together ===== */

/* Every descriptor once; what is ready is served. */
static void turn(void)
{
    static struct pollfd fds[2 + CLIENTS + 2 * LINKS];
    nfds_t n = 0;
    fds[n++] = (struct pollfd){run.door, POLLIN, 0};
    fds[n++] = (struct pollfd){run.pusher.fd, POLLIN, 0};
    if (run.out_at < run.out_n) fds[1].events |= POLLOUT;
    for (int i = 0; i < CLIENTS; i++) fds[n++] = (struct pollfd){run.clients[i].fd, POLLIN, 0};
    for (int i = 0; i < LINKS; i++) {
        const struct link *l = &run.links[i];
        if (l->near < 0 && l->far < 0) continue;
        int in_near = l->up.n < PIPE_BYTES, in_far = l->down.n < PIPE_BYTES;
        short near = (short)((in_near ? POLLIN : 0) | (l->down.n ? POLLOUT : 0)),
              far = (short)((in_far ? POLLIN : 0) | (l->up.n ? POLLOUT : 0));
        fds[n++] = (struct pollfd){l->frozen ? -1 : l->near, near, 0};
        fds[n++] = (struct pollfd){l->frozen ? -1 : l->far, far, 0};
    }
    if (poll(fds, n, 2) < 0) harness_fail("poll: %s", strerror(errno));
    run.now_ms = now_ms();
    n = 2;
    for (int i = 0; i < CLIENTS; i++) client_step(&run.clients[i], fds[n++].revents);
    for (int i = 0; i < LINKS; i++) {
        struct link *l = &run.links[i];
        if (l->near < 0 && l->far < 0) continue;
        link_step(l, fds[n].revents, fds[n + 1].revents);
        n += 2;
        if (l->near < 0 && l->far < 0) continue;
        if ((l->frozen || l->parting) && l->thaw_ms <= run.now_ms) link_thaw(l);
        else if (run.cutting && !l->frozen && !l->parting && l->cut_ms <= run.now_ms) link_cut(l);
    }
    if (fds[0].revents) proxy_accept();
    pusher_step(fds[1].revents);
}

static void begin(const char *const *args)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    server_start(&run.server, args);
    proxy_open();
    conn_open(&run.pusher, run.server.push);
    for (int i = 0; i < LINKS; i++) run.links[i].near = run.links[i].far = -1;
    run.now_ms = run.begun_ms = now_ms();
    for (int i = 0; i < CLIENTS; i++) {
        struct client *k = &run.clients[i];
        free(k->got);
        memset(k, 0, offsetof(struct client, in));
        k->fd = -1, k->token = i % TOKENS, k->due_ms = run.now_ms + chance(500);
    }
    run.sent = run.answered = run.refused = run.connects = run.doubles = 0;
    run.gap_n = run.gap_told = 0;
    run.out_n = run.out_at = 0, run.cutting = 1;
    memset(run.cuts, 0, sizeof run.cuts);
}

static int everybody_has_the_last(void)
{
    for (int i = 0; i < CLIENTS; i++)
        if (run.clients[i].number != run.messages) return 0;
    return 1;
}

/* All but the last while everything is cut; then the last, to all, which everybody waits for. */
static void play(const char *const *args)
{
    long long deadline = deadline_in((int)run.length_ms * 8 + LAST_MS);
    begin(args);
    while (run.answered < run.messages - 1 && time_left(deadline) > 0) turn();
    run.cutting = 0;
    while (!everybody_has_the_last() && time_left(deadline) > 0) turn();
    if (!everybody_has_the_last())
        harness_fail("%u of %u were pushed; not everybody has the last", run.answered,
                     run.messages);
    server_check_books(&run.server);
    struct reply r;
    server_page(&run.server, "/metrics", &r);
    printf("#");
    static const char *const reasons[] = {"peer", "error", "slow", "replaced"};
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        char name[80];
        snprintf(name, sizeof name, "exportws_sessions_closed_total{reason=\"%s\"}", reasons[i]);
        printf(" %s %lld,", reasons[i], metric_in(r.body, name));
    }
    printf(" held %lld, expired %lld, history %lld\n",
           metric_in(r.body, "exportws_messages_held_total"),
           metric_in(r.body, "exportws_messages_expired_total"),
           metric_in(r.body, "exportws_history_messages"));
}

/* Counts what a client was to get, did not get, and was not told of. */
static unsigned unexplained(const struct client *k, unsigned *missing, unsigned *delivered)
{
    unsigned count = 0;
    size_t i = 0;
    *delivered += (unsigned)k->got_n;
    for (unsigned number = 1; number <= run.messages; number++) {
        const struct pushed *p = &run.pushed[number];
        int told = i < k->got_n && (k->got[i] & MAY_SKIP);
        if (i < k->got_n && (k->got[i] & ~(unsigned)MAY_SKIP) == number) {
            count += !p->accepted; /* it was refused, and came */
            i++;
        } else if (p->accepted && is_for(p, k)) {
            ++*missing;
            count += !told;
        }
    }
    return count;
}

/* Whether something was missing where a client was told so. */
static int gap_is_true(const struct gap *g)
{
    const struct client *k = g->client;
    size_t i = 0;
    for (unsigned number = g->from + 1; number < g->to; number++) {
        const struct pushed *p = &run.pushed[number];
        while (i < k->got_n && (k->got[i] & ~(unsigned)MAY_SKIP) < number) i++;
        if (p->accepted && is_for(p, k) && (k->got[i] & ~(unsigned)MAY_SKIP) != number) return 1;
    }
    return 0;
}

/* What came of it; returns how many messages are missing. */
static unsigned judge(void)
{
    unsigned lost = 0, missing = 0, delivered = 0, lies = 0;
    for (int i = 0; i < CLIENTS; i++) lost += unexplained(&run.clients[i], &missing, &delivered);
    for (unsigned i = 0; i < run.gap_n; i++) lies += !gap_is_true(&run.gaps[i]);
    printf("# seed %u: %u messages, %u refused; %u connections, cut by RST %u, FIN %u, freeze %u, "
           "stalled %u\n",
           run.seed, run.messages, run.refused, run.connects, run.cuts[0], run.cuts[1],
           run.cuts[2], run.cuts[3]);
    printf("# %u delivered, %u missing, %u times told so; unexplained %u, doubles %u, gaps that "
           "were none %u\n",
           delivered, missing, run.gap_told, lost, run.doubles, lies);
    if (lost + run.doubles + lies > 0) harness_fail("seed %u: see above", run.seed);
    return missing;
}

static void end(void)
{
    for (int i = 0; i < LINKS; i++) link_close(&run.links[i]);
    for (int i = 0; i < CLIENTS; i++)
        if (run.clients[i].fd >= 0) reset(run.clients[i].fd);
    conn_close(&run.pusher);
    close(run.door);
    server_stop(&run.server);
}

/* The log has room for all of it: nothing at all is missing. */
static void nothing_is_lost_while_the_log_has_it(void **state)
{
    static const char *const args[] = {"--history", "100000", "--hold", "600", "--buffer", "256m",
                                       "--queue", "8", "--ping", "300", "--log", "warn", NULL};
    (void)state;
    play(args);
    if (judge() > 0 || run.gap_told > 0 || run.refused > 0)
        harness_fail("seed %u: something is missing", run.seed);
    end();
}

/* The log has little room: each loss is told, and nothing else is. */
static void gaps_are_where_the_log_gave_way(void **state)
{
    static const char *const args[] = {"--history", "8", "--hold", "2", "--buffer", "2m",
                                       "--queue", "8", "--ping", "300", "--log", "warn", NULL};
    (void)state;
    play(args);
    if (judge() == 0 || run.gap_n == 0) harness_fail("seed %u: nothing was missing", run.seed);
    end();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(nothing_is_lost_while_the_log_has_it, server_teardown),
        cmocka_unit_test_teardown(gaps_are_where_the_log_gave_way, server_teardown),
    };
    run.messages = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 2000;
    run.seed = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : (uint32_t)time(NULL);
    run.random = run.seed;
    run.length_ms = run.messages; /* 1,000 a second */
    run.pushed = calloc(run.messages + 1, sizeof *run.pushed);
    return run.pushed ? cmocka_run_group_tests_name("chaos", tests, NULL, NULL) : 1;
}
