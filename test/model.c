/* model.c - what becomes of a message, said a second time: in plain arrays and without haste
 *
 *     build/model [STEPS [SEED]]         10 seconds, and a seed from the clock; both are printed
 *
 * A server in process, with a small buffer and few tokens, is told to do one thing after another at
 * random: pushes to tokens and to all, with an end, in one piece and in two, by API, by post and by
 * request; clients that come - plain, with exportws.v1, with ?last= - take a few bytes, stop in the
 * midst of a frame, go on, die; time that passes, DELETEs, restarts. The model is told the same.
 * After each step every byte that a client has got, every answer, what is held, what is history and
 * what is free of the buffer must be the same.
 *
 * The model knows nothing of exportws.c but what a message takes of the buffer. Sockets and time
 * are this file's: macros take the system calls over. */
#define _POSIX_C_SOURCE 200809L
#define EXPORTWS_NO_MAIN

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* ===== Sockets and time ===== */

enum { WIRES = 12, WIRE_FD = 1000, WIRE_BYTES = 1 << 16 };

/* A socket of the server's: what its peer has said, and has got; window is how much more it takes.
 */
static struct wire {
    int used, fin, reset;
    size_t window, said, read, got;
    uint8_t inbox[4096], bytes[WIRE_BYTES];
} wires[WIRES];

static uint64_t time_ms = 1000000;
static int posted;

static struct wire *wire_of(int fd)
{
    if (fd < WIRE_FD || fd >= WIRE_FD + WIRES || !wires[fd - WIRE_FD].used) abort();
    return &wires[fd - WIRE_FD];
}

static ssize_t wire_send(int fd, const void *p, size_t n)
{
    struct wire *s = wire_of(fd);
    if (n > s->window) n = s->window;
    errno = s->reset ? EPIPE : EAGAIN;
    if (s->reset || n == 0) return -1;
    if (s->got + n > WIRE_BYTES) abort();
    memcpy(s->bytes + s->got, p, n);
    s->got += n, s->window -= n;
    return (ssize_t)n;
}

static ssize_t wire_recv(int fd, void *p, size_t n, int flags)
{
    struct wire *s = wire_of(fd);
    if (n > s->said - s->read) n = s->said - s->read;
    errno = s->reset ? ECONNRESET : EAGAIN;
    if (s->reset || (n == 0 && !s->fin)) return -1;
    if (n > 0) memcpy(p, s->inbox + s->read, n);
    if (!(flags & MSG_PEEK)) s->read += n;
    return (ssize_t)n;
}

static int wire_poll(struct pollfd *fds, size_t n)
{
    int ready = 0;
    for (size_t i = 0; i < n; i++) {
        short in = (short)(posted ? POLLIN : 0);
        if (fds[i].fd >= WIRE_FD) {
            const struct wire *s = wire_of(fds[i].fd);
            in = (short)((s->fin || s->read < s->said ? POLLIN : 0) | (s->window ? POLLOUT : 0));
            if (s->reset) in = POLLIN | POLLOUT | POLLERR | POLLHUP;
        }
        fds[i].revents = (short)(in & (fds[i].events | POLLERR | POLLHUP));
        ready += fds[i].revents != 0;
    }
    return ready;
}

static int wire_close(int fd)
{
    if (fd < WIRE_FD) return close(fd);
    wire_of(fd)->used = 0;
    return 0;
}

static int wire_clock(struct timespec *now)
{
    now->tv_sec = (time_t)(time_ms / 1000), now->tv_nsec = (long)(time_ms % 1000) * 1000000;
    return 0;
}

#define send(fd, p, n, flags) wire_send(fd, p, n)
#define recv(fd, p, n, flags) wire_recv(fd, p, n, flags)
#define poll(fds, n, timeout) wire_poll(fds, n)
#define close(fd) wire_close(fd)
#define shutdown(fd, how) (0)
#define clock_gettime(clock, now) ((void)(clock), wire_clock(now))
#include "../exportws.c"
#undef send
#undef recv
#undef poll
#undef close
#undef clock_gettime

#include "audit.h"

/* ===== The model ===== */

enum { TOKENS = 3, ALL = TOKENS, MOST = 8192, SESSIONS = 5, ITEMS = 512, BYTES = 1200 };

/* All that was said, in the order of ids; what nobody accepted is not among it. */
struct said {
    uint64_t id, due_ms;
    unsigned since; /* when it came to where it is now: the order in which it gives way */
    int to, kind, end, cost;
    int kept, got, ages, waits; /* in the buffer; whole in a kernel; its time runs; for so many */
    int deleted;                /* only those get it who waited for it then */
    size_t size;
    uint8_t bytes[BYTES];
};

/* What waits for a session: a message, or bytes of its own. */
struct item {
    int said, old, cost; /* said: index, or -1; old: from before it came */
    size_t size;
    uint8_t bytes[BYTES];
};

struct session {
    int used, open, dead, cut, token, ids, n; /* cut: there was no room for the rest of a frame */
    unsigned born, slot;
    size_t sent, window, want; /* of the first item; what the socket takes yet; bytes to be got */
    struct item items[ITEMS];
    uint8_t bytes[WIRE_BYTES];
};

static struct model {
    struct said said[MOST];
    int count;
    struct session sessions[SESSIONS];
    unsigned moment;
    int blocks, reserve, own, late; /* free blocks; of those in use: in bytes of sessions' own; free
                                       when the turn is over */
    int block_count, gave_way;
    size_t block_bytes, head_bytes;
    unsigned hold_ms, history, queue, per_token;
    uint64_t first_id, next_id, expired;
} model;

static int cost_of(size_t name, size_t size)
{
    return (int)((model.head_bytes + name + size + model.block_bytes - 1) / model.block_bytes);
}

/* It is in the buffer no more. */
static void throw_away(struct said *m)
{
    int expired = !m->got && m->due_ms <= time_ms && model.hold_ms > 0;
    m->kept = 0;
    model.expired += (unsigned)expired;
    *(expired ? &model.late : &model.blocks) += m->cost;
}

/* Room of more than `left` blocks: history gives way, the oldest first. */
static int make_room(int left)
{
    while (model.blocks <= left) {
        struct said *oldest = NULL;
        for (int i = 0; i < model.count; i++) {
            struct said *m = &model.said[i];
            if (m->kept && m->got && m->waits == 0 && (!oldest || m->since < oldest->since))
                oldest = m;
        }
        if (!oldest) return 0;
        throw_away(oldest);
    }
    return 1;
}

static int take(int cost)
{
    for (int n = 0; n < cost; n++) {
        if (!make_room(model.reserve)) {
            model.blocks += n;
            return 0;
        }
        model.blocks--;
    }
    return 1;
}

/* Its time begins: as held, or as history. */
static void start_time(struct said *m)
{
    m->ages = model.hold_ms > 0 && (!m->got || model.history > 0);
    m->due_ms = time_ms + model.hold_ms;
    m->since = ++model.moment;
}

static void set_got(struct said *m)
{
    if (m->got) return;
    m->got = 1;
    start_time(m);
}

/* Of an owner's history only the newest are kept, but for what somebody waits for. */
static void trim(int owner)
{
    unsigned newer = 0;
    for (int i = model.count; i-- > 0;) {
        struct said *m = &model.said[i];
        if (m->to != owner || !m->kept || !m->got || !m->ages) continue;
        if (newer++ >= model.history && m->waits == 0) throw_away(m);
    }
}

static void settle(struct said *m)
{
    if (m->waits == 0 && !m->ages) throw_away(m);
    trim(m->to);
}

/* The buffer gets it; a draft is there already. */
static int store(struct said *m, int draft)
{
    if (m->kept) return 1;
    if (draft ? !make_room(model.reserve - 1) : !take(m->cost)) return 0;
    m->kept = 1, m->got = m->to == ALL;
    start_time(m);
    return 1;
}

/* ----- sessions ----- */

static void pop(struct session *s, int at)
{
    struct item *it = &s->items[at];
    struct said *m = it->said < 0 ? NULL : &model.said[it->said];
    int cost = it->cost;
    memmove(it, it + 1, sizeof *it * (size_t)(--s->n - at));
    if (at == 0) s->sent = 0;
    if (m) m->waits--, settle(m);
    else model.blocks += cost, model.own -= cost;
}

/* All that waits for it but a frame that is partly sent. */
static void drop(struct session *s)
{
    int first = s->sent > 0;
    while (s->n > first) pop(s, first);
    s->items[0].old = 0;
}

/* It is gone at once, for its peer when the turn is over. */
static void lose(struct session *s)
{
    drop(s);
    s->open = 0, s->dead = 1;
}

/* The socket takes what it can of p[from..n): returns up to where. */
static size_t give_bytes(struct session *s, const uint8_t *p, size_t from, size_t n)
{
    size_t size = n - from < s->window ? n - from : s->window;
    memcpy(s->bytes + s->want, p + from, size);
    s->want += size, s->window -= size;
    return from + size;
}

/* Bytes of its own. Returns 0 when there is no room for what the socket does not take. */
static int give_own(struct session *s, const uint8_t *p, size_t n, int share)
{
    size_t sent = s->n == 0 && !s->cut ? give_bytes(s, p, 0, n) : 0;
    struct item *it = &s->items[s->n];
    if (s->cut) return 0;
    if (sent == n) return 1;
    it->cost = cost_of(0, n);
    if (model.own >= share || !take(it->cost)) {
        s->cut = sent > 0;
        return 0;
    }
    model.own += it->cost;
    it->said = -1, it->old = 0, it->size = n;
    memcpy(it->bytes, p, n);
    if (s->n++ == 0) s->sent = sent;
    return 1;
}

static int control_blocks(void)
{
    return (model.block_count - model.reserve) / 4;
}

/* A close frame behind what waits for it. */
static void end(struct session *s, unsigned code, const char *why)
{
    uint8_t frame[128] = {0x88, (uint8_t)(2 + strlen(why)), (uint8_t)(code >> 8),
                          (uint8_t)(code & 255)};
    memcpy(frame + 4, why, strlen(why));
    s->open = 0;
    if (!give_own(s, frame, 4 + strlen(why), control_blocks())) lose(s);
}

static void fail_slow(struct session *s, const char *why)
{
    drop(s);
    end(s, 1013, why);
}

/* Whether one that is still being sent what it has missed is to get a message; not who is of the same
 * token as `to`. */
static int reads(const struct session *s, int index, const struct session *to)
{
    if (!s->used || !s->open || s->n == 0 || !s->items[0].old) return 0;
    if (to && s->token == to->token) return 0;
    for (int i = 0; i < s->n; i++)
        if (s->items[i].said == index) return 1;
    return 0;
}

/* All of history but what is newer than one (since 0: than nothing), the oldest first. */
static int next_of_history(unsigned since)
{
    int next = -1;
    for (int i = 0; i < model.count; i++) {
        const struct said *m = &model.said[i];
        if (!m->kept || !m->got || !m->ages || m->since <= since) continue;
        if (next < 0 || m->since < model.said[next].since) next = i;
    }
    return next;
}

/* Whether there were room if all history gave way. */
static int would_suffice(int cost)
{
    int room = model.blocks;
    for (int i = next_of_history(0); i >= 0; i = next_of_history(model.said[i].since))
        room += model.said[i].cost;
    return room >= cost + model.reserve;
}

/* Of the oldest 16 of history the first that only such readers wait for gives way: they have to go,
 * in the order of their slots. */
static int give_way(const struct session *to)
{
    int index = next_of_history(0), readers = 0, slot = 0;
    for (int tries = 0; index >= 0 && tries < 16; tries++) {
        readers = 0;
        for (int i = 0; i < SESSIONS; i++) readers += reads(&model.sessions[i], index, to);
        if (readers == model.said[index].waits) break;
        readers = 0, index = next_of_history(model.said[index].since);
    }
    for (int left = readers; left > 0; slot++)
        for (int i = 0; i < SESSIONS; i++) {
            struct session *s = &model.sessions[i];
            if ((int)s->slot != slot || !reads(s, index, to)) continue;
            model.gave_way++, left--;
            if (s->sent > 0 && s->items[0].said == index) s->sent = 0, lose(s);
            else fail_slow(s, "too slow: history gave way");
        }
    return readers > 0;
}

static int keep(struct said *m, int draft, const struct session *to)
{
    if (store(m, draft)) return 1;
    if (!would_suffice(draft ? 0 : m->cost)) return 0;
    while (give_way(to))
        if (store(m, draft)) return 1;
    return 0;
}

/* The frame of a message for a session. */
static size_t frame_of(const struct said *m, int ids, uint8_t *out)
{
    char line[24];
    size_t id = ids ? (size_t)sprintf(line, "%llu\n", (unsigned long long)m->id) : 0, at = 2;
    size_t size = id + m->size;
    out[0] = (uint8_t)(0x80 | m->kind), out[1] = (uint8_t)(size < 126 ? size : 126);
    if (size >= 126) out[2] = (uint8_t)(size >> 8), out[3] = (uint8_t)(size & 255), at = 4;
    memcpy(out + at, line, id);
    memcpy(out + at + id, m->bytes, m->size);
    return at + size;
}

static void wait_for(struct session *s, int index, int old)
{
    struct item *it = &s->items[s->n++];
    it->said = index, it->old = old;
    it->size = frame_of(&model.said[index], s->ids, it->bytes);
    model.said[index].waits++;
}

/* What waits for it and is not from before it came. */
static unsigned young(const struct session *s)
{
    unsigned n = 0;
    for (int i = 0; i < s->n; i++) n += !s->items[i].old;
    return n;
}

/* The socket takes what waits, as far as it can. */
static void pump(struct session *s)
{
    while (s->n > 0 && s->window > 0) {
        struct item *it = &s->items[0];
        s->sent = give_bytes(s, it->bytes, s->sent, it->size);
        if (s->sent < it->size) return;
        if (it->said >= 0) set_got(&model.said[it->said]);
        pop(s, 0);
    }
}

/* A message for one of its sessions. Returns 1, with *whole when the socket took it, or 0 when the
 * session had to go. */
static int give(struct session *s, int index, int draft, int *whole)
{
    uint8_t frame[BYTES];
    struct said *m = &model.said[index];
    size_t n = frame_of(m, s->ids, frame), sent = s->n == 0 ? give_bytes(s, frame, 0, n) : 0;
    int full = young(s) >= model.queue;
    if (sent == n) return *whole = 1;
    if (full || !keep(m, draft, s)) {
        if (sent > 0) lose(s);
        else fail_slow(s, full ? "too slow: queue full" : "too slow: buffer full");
        return 0;
    }
    wait_for(s, index, 0);
    if (s->n == 1) s->sent = sent;
    return 1;
}

/* ----- what is done to it ----- */

enum { HELD = 0, ABSENT = -1, FULL = -2 };

/* model.said[model.count] is pushed: to `order[0..n)`. Returns the sessions reached, or HELD (or a
 * broadcast that reached nobody), ABSENT, FULL. */
static int model_push(struct session *const *order, int n, int draft)
{
    int index = model.count++, reached = 0, whole = 0;
    struct said *m = &model.said[index];
    m->cost = cost_of(m->to == ALL ? 0 : 1, m->size);
    m->kept = m->got = m->ages = m->waits = m->deleted = 0;
    if (draft) model.blocks -= m->cost;
    for (int i = 0; i < n; i++)
        if (order[i]->open) reached += give(order[i], index, draft, &whole);
    if (model.hold_ms > 0 && reached == 0 && m->to != ALL) keep(m, draft, NULL);
    else if (model.hold_ms > 0 && model.history > 0) store(m, draft);
    if (m->kept && whole) set_got(m);
    if (m->kept) settle(m);
    else if (draft) model.blocks += m->cost;
    int refused = reached == 0 && m->to != ALL && !m->kept;
    if (refused) model.count--;
    for (int i = 0; i < n && m->end && !refused; i++)
        if (order[i]->open) end(order[i], 1000, "ended");
    return refused ? (model.hold_ms > 0 ? FULL : ABSENT) : reached;
}

/* Whether something that came after `last` is not there any more. */
static int model_gap(int token, uint64_t last)
{
    if (last >= model.next_id || (last > 0 && last + 1 < model.first_id)) return 1;
    for (int i = 0; i < model.count; i++) {
        const struct said *m = &model.said[i];
        if ((m->to == token || m->to == ALL) && m->id > last && (!m->kept || m->deleted)) return 1;
    }
    return 0;
}

/* A client comes; p[0..n) is its 101. What nobody has got is new to everybody. */
static void model_connect(struct session *s, int asked, uint64_t last, const char *p, size_t n)
{
    struct item *head = &s->items[s->n++]; /* before all that it missed */
    const struct said *newest = NULL;
    int ends = 0;
    memcpy(head->bytes, p, n);
    if (asked && model_gap(s->token, last)) memcpy(head->bytes + n, "\x81\3gap", 5), n += 5;
    head->said = -1, head->old = 1, head->size = n, head->cost = 0;
    if (last >= model.next_id) last = 0;
    for (int i = 0; i < model.count; i++) {
        const struct said *m = &model.said[i];
        if (!m->kept || m->deleted || (m->to != s->token && m->to != ALL)) continue;
        if (m->to == s->token) newest = m;
        if (m->got && (!asked || m->id <= last)) continue;
        wait_for(s, i, 1);
        ends |= m->end;
    }
    if (asked && newest) ends |= newest->end;
    s->open = 1;
    s->sent = give_bytes(s, head->bytes, 0, n);
    if (s->sent == n) {
        pop(s, 0);
    } else if (model.own < control_blocks() && take(cost_of(0, n))) {
        model.own += head->cost = cost_of(0, n);
    } else {
        s->sent = 0;
        lose(s);
        return;
    }
    pump(s);
    if (ends) end(s, 1000, "ended");
}

/* What is held for a token. */
static int model_held(int token)
{
    int held = 0;
    for (int i = 0; i < model.count; i++) {
        const struct said *m = &model.said[i];
        held += m->kept && !m->got && m->waits == 0 && (m->to == token || token == ALL);
    }
    return held;
}

/* The open sessions of a token in the order in which they came; returns how many. */
static int sessions_of(int token, struct session *order[SESSIONS])
{
    int n = 0;
    for (int i = 0; i < SESSIONS; i++) {
        struct session *s = &model.sessions[i];
        int at = n;
        if (!s->used || !s->open || s->token != token) continue;
        for (n++; at > 0 && order[at - 1]->born > s->born; at--) order[at] = order[at - 1];
        order[at] = s;
    }
    return n;
}

/* DELETE: returns the sessions closed, or ABSENT. What was got by nobody will be by nobody. */
static int model_kick(int token)
{
    struct session *order[SESSIONS];
    int n = sessions_of(token, order), held = model_held(token);
    for (int i = 0; i < model.count; i++) {
        struct said *m = &model.said[i];
        if (!m->kept || m->to != token) continue;
        m->ages = 0, m->got = m->deleted = 1;
        settle(m);
    }
    for (int i = 0; i < n; i++) end(order[i], 1000, "ended");
    return n + held > 0 ? n : ABSENT;
}

/* One session's own message: 1, FULL, or ABSENT when that was its end. */
static int model_reply(struct session *s, const struct said *m)
{
    uint8_t frame[BYTES];
    size_t n = frame_of(m, s->ids, frame);
    if (young(s) >= model.queue) return FULL;
    if (give_own(s, frame, n, model.block_count + 1)) return 1;
    if (!s->cut) return FULL;
    fail_slow(s, "too slow: queue full");
    return ABSENT;
}

/* Time passes. */
static void model_expire(void)
{
    for (int i = 0; i < model.count; i++) {
        struct said *m = &model.said[i];
        if (!m->kept || !m->ages || m->due_ms > time_ms) continue;
        m->ages = 0;
        settle(m);
    }
}

/* The dead are buried; who has got its close frame leaves. */
static void model_turn(void)
{
    for (int i = 0; i < SESSIONS; i++) {
        struct session *s = &model.sessions[i];
        while (s->used && s->dead && s->n > 0) pop(s, 0);
        if (s->used && !s->open && s->n == 0) s->used = 0;
    }
    model.blocks += model.late;
    model.late = 0;
}

/* ===== Both ===== */

enum { SPARE_WIRE = SESSIONS, PUSH_WIRE, TOLD = 24, TOLD_BYTES = 160 };

static const char *const names[TOKENS] = {"a", "b", "c"};

static struct {
    exportws_options o;
    exportws *w;
    uint64_t seed, random, step;
    unsigned born;
    char told[TOLD][TOLD_BYTES]; /* the last steps, in words */
    int pushes, refused, connects, gaps, cuts;
} run;

static uint64_t memory[1 << 15];

static unsigned pick(unsigned n)
{
    run.random ^= run.random << 13, run.random ^= run.random >> 7, run.random ^= run.random << 17;
    return (unsigned)((run.random * 0x2545f4914f6cdd1d) >> 33) % n;
}

static void tell(const char *what, uint64_t a, uint64_t b, uint64_t c)
{
    snprintf(run.told[run.step % TOLD], TOLD_BYTES, "%llu: %s %llu %llu %llu",
             (unsigned long long)run.step, what, (unsigned long long)a, (unsigned long long)b,
             (unsigned long long)c);
}

static void differ(const char *what, uint64_t server, uint64_t said)
{
    for (uint64_t i = run.step < TOLD ? 0 : run.step - TOLD + 1; i <= run.step; i++)
        printf("# %s\n", run.told[i % TOLD]);
    printf("# hold %u, history %zu, queue %zu, buffer %zu, per token %zu, %d blocks of %zu\n",
           run.o.hold_ms, run.o.history, run.o.queue, run.o.buffer_bytes, run.o.per_token,
           model.block_count, model.block_bytes);
    printf("not ok model: step %llu, seed %llu: %s: the server has %llu, the model %llu\n",
           (unsigned long long)run.step, (unsigned long long)run.seed, what,
           (unsigned long long)server, (unsigned long long)said);
    exit(1);
}

static void same(const char *what, uint64_t server, uint64_t said)
{
    if (server != said) differ(what, server, said);
}

static void settle_server(void)
{
    int events, turns = 0;
    do {
        if (pick(4) == 0) run.w->sends = TURN_SENDS; /* one request of each pusher */
        events = exportws_step(run.w, 0);
        posted = 0;
        if (++turns > 1000) differ("turns without rest", 0, 0);
    } while (events > 0);
}

/* ----- the push door ----- */

static void wire_open(int index, size_t window)
{
    struct wire *s = &wires[index];
    s->used = 1, s->fin = s->reset = 0;
    s->said = s->read = s->got = 0;
    s->window = window;
}

/* Asks at the push door: p[0..cut), then the rest. */
static void ask(const char *p, size_t n, size_t cut)
{
    struct wire *s = &wires[PUSH_WIRE];
    const struct sockaddr from = {.sa_family = AF_UNIX};
    if (!s->used) {
        wire_open(PUSH_WIRE, 1U << 30);
        pusher_accept(run.w, WIRE_FD + PUSH_WIRE, &from);
    }
    s->said = s->read = s->got = 0;
    for (size_t at = 0; at < n; at = cut) {
        if (at == cut) cut = n;
        memcpy(s->inbox + at, p + at, cut - at);
        s->said = cut;
        settle_server();
    }
}

/* What it was told is this. */
static void answered(unsigned status, const char *body)
{
    struct wire *s = &wires[PUSH_WIRE];
    s->bytes[s->got] = '\0';
    const char *got = strstr((char *)s->bytes, "\r\n\r\n");
    if (strtoul((char *)s->bytes + 9, NULL, 10) == status && got && strcmp(got + 4, body) == 0)
        return;
    printf("# %s\n# instead of %u %s\n", (char *)s->bytes, status, body);
    differ("the answer", 0, 1);
}

/* ----- steps ----- */

/* What is pushed next: its content is like no other's. */
static struct said *message_make(int to)
{
    static const uint16_t sizes[16] = {0,  1,   2,   3,   10,  20,  50,  100,
                                       90, 108, 109, 125, 126, 200, 400, 1000};
    struct said *m = &model.said[model.count];
    m->to = to, m->kind = 1 + (pick(4) == 0), m->end = 0;
    m->size = sizes[pick(16)];
    for (size_t i = 0; i < m->size; i++)
        m->bytes[i] = (uint8_t)(m->kind == 2 ? run.step + i : 'a' + (run.step + i) % 26);
    return m;
}

/* The message has got its id, if a new one was given out. */
static void message_named(struct said *m, const char *what)
{
    m->id = exportws_last_id(run.w);
    if (m->id < model.next_id) differ(what, m->id, model.next_id);
    model.next_id = m->id + 1;
}

/* A request that pushes: the body whole, or (chunked) in chunks. Returns its size; *head is that of
 * its head. */
static size_t request_make(char *p, const struct said *m, int chunked, size_t *head)
{
    size_t n = (size_t)sprintf(p, "POST /t/%s%s HTTP/1.1\r\nHost: h\r\n%s",
                               m->to == ALL ? "" : names[m->to], m->end ? "?end" : "",
                               m->kind == 2 ? "Content-Type: application/octet-stream\r\n" : "");
    if (!chunked) {
        *head = n += (size_t)sprintf(p + n, "Content-Length: %zu\r\n\r\n", m->size);
        memcpy(p + n, m->bytes, m->size);
        return n + m->size;
    }
    *head = n += (size_t)sprintf(p + n, "Transfer-Encoding: chunked\r\n\r\n");
    for (size_t at = 0, piece; at < m->size; at += piece) {
        piece = m->size - at < 300 ? m->size - at : 300;
        n += (size_t)sprintf(p + n, "%zx\r\n", piece);
        memcpy(p + n, m->bytes + at, piece);
        n += piece + (size_t)sprintf(p + n + piece, "\r\n");
    }
    return n + (size_t)sprintf(p + n, "0\r\n\r\n");
}

/* Those whom a message reaches, in the order in which it does: of a broadcast that is the server's
 * business. */
static int order_of(int to, struct session *order[SESSIONS])
{
    int n = 0;
    if (to != ALL) return sessions_of(to, order);
    for (uint32_t slot = 0; slot < run.w->capacity; slot++) {
        int index = run.w->conns[slot].fd - WIRE_FD;
        if (index >= 0 && index < SESSIONS && model.sessions[index].open)
            order[n++] = &model.sessions[index];
    }
    return n;
}

static void answered_push(const struct said *m, int result)
{
    char body[96];
    sprintf(body, "{\"error\":\"nobody there, and %s\",\"id\":%llu}\n",
            result == FULL ? "no room to hold it" : "holding is off", (unsigned long long)m->id);
    if (result < 0) answered(result == FULL ? 503 : 404, body);
    if (result < 0) return;
    sprintf(body, "{\"delivered\":%d%s,\"id\":%llu}\n", result,
            m->to != ALL && result == HELD ? ",\"held\":true" : "", (unsigned long long)m->id);
    answered(m->to != ALL && result == HELD ? 202 : 200, body);
}

enum { BY_API, BY_POST, BY_REQUEST, BY_CHUNKS, WAYS };

static void step_push(int to)
{
    static char request[4096];
    struct session *order[SESSIONS];
    struct said *m = message_make(to);
    const unsigned way = pick(WAYS);
    const char *token = to == ALL ? NULL : names[to];
    uint64_t refused = run.w->m->posts_refused;
    size_t n, head, cut;
    int result = 0, draft = 0, count = order_of(to, order);
    m->end = to != ALL && pick(12) == 0;
    int kind = m->kind | (m->end ? EXPORTWS_END : 0);
    tell("push: to, way, size", (uint64_t)to, way, m->size);
    if (way == BY_API) {
        result = token ? exportws_send(run.w, token, m->bytes, m->size, kind)
                       : exportws_broadcast(run.w, m->bytes, m->size, kind);
    } else if (way == BY_POST) {
        same("post", (uint64_t)exportws_post(run.w, token, m->bytes, m->size, kind), 0);
        posted = 1;
        settle_server();
    } else {
        n = request_make(request, m, way == BY_CHUNKS, &head);
        cut = pick(2) ? n : 1 + pick((unsigned)n);
        draft = way == BY_CHUNKS || (cut >= head && cut < n);
        ask(request, n, cut);
    }
    message_named(m, "a push's id");
    int want = model_push(order, count, draft);
    if (way == BY_API) same("result", (uint64_t)result, (uint64_t)want);
    else if (way == BY_POST) same("posts refused", run.w->m->posts_refused - refused, want < 0);
    else answered_push(m, want);
    run.pushes++, run.refused += want < 0;
}

/* Where a client says that it left off. */
static uint64_t last_make(void)
{
    switch (pick(8)) {
    case 0: return 0;
    case 1: return model.next_id - 1 + pick(3);
    case 2: return model.first_id - 1 - pick(3);
    case 3: return UINT64_MAX;
    case 4: return model.first_id + pick((unsigned)(model.next_id - model.first_id) + 1);
    default:
        if (model.count == 0) return 0;
        unsigned back = pick((unsigned)model.count < 12 ? (unsigned)model.count : 12);
        return model.said[model.count - 1 - (int)back].id - (pick(4) == 0);
    }
}

static void step_connect(void)
{
    static const char accepted[] =
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    const struct sockaddr from = {.sa_family = AF_UNIX};
    const int token = (int)pick(TOKENS), ids = pick(3) > 0, asked = pick(3) > 0;
    const uint64_t last = last_make();
    struct session *order[SESSIONS], *s;
    char head[256], query[40] = "";
    int i = 0, n;
    while (i < SESSIONS && model.sessions[i].used) i++;
    int wire = i < SESSIONS ? i : SPARE_WIRE;
    size_t window = pick(2) ? 1U << 30 : 1 + pick(400);
    tell("connect: token, ids, last", (uint64_t)token, (uint64_t)ids, asked ? last : 1);
    if (asked) sprintf(query, "?x=1&last=%llu", (unsigned long long)last);
    wire_open(wire, wire == SPARE_WIRE ? 4096 : window);
    wires[wire].said = (size_t)sprintf(
        (char *)wires[wire].inbox,
        "GET /t/%s%s HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n",
        names[token], query, ids ? "Sec-WebSocket-Protocol: x, exportws.v1\r\n" : "");
    client_accept(run.w, WIRE_FD + wire, &from);
    if (wire == SPARE_WIRE) {
        settle_server();
        same("a full table's status", memcmp(wires[wire].bytes, "HTTP/1.1 503", 12) == 0, 1);
        wires[wire].fin = 1;
        return;
    }
    s = &model.sessions[i];
    memset(s, 0, offsetof(struct session, items));
    s->used = 1, s->token = token, s->ids = ids, s->window = window, s->born = ++run.born;
    n = sessions_of(token, order);
    if ((unsigned)n >= model.per_token) end(order[0], 4001, "replaced");
    n = sprintf(head, "%s%s\r\n", accepted,
                ids ? "Sec-WebSocket-Protocol: exportws.v1\r\n" : "");
    run.gaps += ids && asked && model_gap(token, last), run.connects++;
    model_connect(s, ids && asked, last, head, (size_t)n);
    settle_server();
    for (uint32_t k = 0; k < run.w->capacity; k++)
        if (run.w->conns[k].fd == WIRE_FD + i) s->slot = k;
}

/* A client's socket takes more, or its client dies. */
static void step_client(void)
{
    static const uint16_t sizes[8] = {1, 2, 3, 9, 20, 100, 1000, 0};
    int i = (int)pick(SESSIONS);
    struct session *s = &model.sessions[i];
    unsigned how = pick(8);
    size_t more = sizes[pick(8)];
    if (!s->used) return;
    tell("client: which, how, bytes", (uint64_t)i, how, more);
    run.cuts += how < 2 && s->sent > 0;
    if (how < 2) {
        wires[i].fin = how == 0, wires[i].reset = how == 1;
        lose(s);
    } else {
        if (more == 0) more = 1U << 30;
        s->window += more, wires[i].window += more;
        pump(s);
    }
    settle_server();
}

static void step_reply(void)
{
    int i = (int)pick(SESSIONS), result;
    struct session *s = &model.sessions[i];
    struct said *m = message_make(s->token);
    exportws_id id = 0;
    if (!s->used || !s->open) return;
    for (uint32_t k = 0; k < run.w->capacity; k++)
        if (run.w->conns[k].fd == WIRE_FD + i) id = conn_id(run.w, &run.w->conns[k]);
    tell("reply: which, size", (uint64_t)i, m->size, 0);
    uint64_t before = exportws_last_id(run.w);
    result = exportws_reply(run.w, id, m->bytes, m->size, m->kind);
    if (exportws_last_id(run.w) > before) message_named(m, "a reply's id");
    int want = model_reply(s, m);
    same("reply", (uint64_t)result, (uint64_t)(want == ABSENT ? EXPORTWS_GONE : want));
}

static void step_kick(void)
{
    int token = (int)pick(TOKENS);
    char text[64];
    int api = pick(2) == 0, result = 0;
    tell("delete: token", (uint64_t)token, 0, 0);
    size_t n = (size_t)sprintf(text, "DELETE /t/%s HTTP/1.1\r\nHost: h\r\n\r\n", names[token]);
    if (api) result = exportws_kick(run.w, names[token]);
    else ask(text, n, n);
    int want = model_kick(token);
    if (api) same("kick", (uint64_t)result, (uint64_t)want);
    else if (want < 0) answered(404, "{\"error\":\"nobody there, and nothing held\"}\n");
    else sprintf(text, "{\"closed\":%d}\n", want), answered(200, text);
}

static void step_status(void)
{
    struct session *order[SESSIONS];
    int token = (int)pick(TOKENS), sessions = sessions_of(token, order), held = model_held(token);
    char text[64];
    tell("status: token", (uint64_t)token, 0, 0);
    size_t n = (size_t)sprintf(text, "GET /t/%s HTTP/1.1\r\nHost: h\r\n\r\n", names[token]);
    ask(text, n, n);
    sprintf(text, "{\"sessions\":%d,\"held\":%d}\n", sessions, held);
    if (sessions + held > 0) answered(200, text);
    else answered(404, "{\"error\":\"nobody there, and nothing held\"}\n");
}

static void step_time(void)
{
    static const uint16_t steps[8] = {1, 10, 250, 500, 999, 1000, 1001, 5000};
    unsigned ms = steps[pick(8)];
    tell("time", ms, 0, 0);
    time_ms += ms;
    settle_server();
    model_expire();
}

/* ----- start, and after every step ----- */

static void start(void)
{
    static const uint16_t buffers[8] = {1024, 1500, 2048, 3000, 4096, 8192, 16384, 32768};
    static const uint8_t histories[8] = {0, 1, 2, 2, 3, 5, 16, 100}, queues[4] = {1, 2, 4, 8};
    exportws_options *o = &run.o;
    char why[128];
    if (run.w) exportws_end(run.w);
    for (int i = 0; i < WIRES; i++) wires[i].used = 0, wires[i].got = 0;
    time_ms += 1000;
    exportws_defaults(o);
    o->path = "/t/", o->log_level = EXPORTWS_LOG_ERROR;
    o->capacity = SESSIONS, o->handshakes = 2, o->pushers = 1, o->per_token = 1 + pick(4);
    o->max_token_bytes = 8, o->max_message_bytes = 8192, o->max_push_bytes = 1000;
    o->queue = queues[pick(4)], o->history = histories[pick(8)], o->hold_ms = pick(6) ? 1000 : 0;
    o->buffer_bytes = buffers[pick(8)];
    o->ping_ms = o->pong_ms = o->write_timeout_ms = o->close_timeout_ms = 86400000;
    run.w = exportws_start(o, memory, sizeof memory, why, sizeof why);
    if (!run.w) printf("# %s\n", why), differ("start", 0, 1);
    uint64_t before = model.next_id;
    memset(&model, 0, offsetof(struct model, said));
    model.count = 0, model.moment = 0, model.own = model.late = 0, model.expired = 0;
    for (int i = 0; i < SESSIONS; i++) model.sessions[i].used = 0;
    model.blocks = model.block_count = (int)run.w->block_count;
    model.reserve = (int)run.w->reserve;
    model.block_bytes = run.w->block_bytes, model.head_bytes = sizeof(struct message);
    model.hold_ms = o->hold_ms, model.history = (unsigned)o->history;
    model.queue = (unsigned)o->queue, model.per_token = (unsigned)o->per_token;
    model.first_id = model.next_id = exportws_last_id(run.w) + 1;
    if (model.first_id < before) differ("an id after a restart", model.first_id, before);
}

static void compare_client(int i)
{
    struct wire *wire = &wires[i];
    struct session *s = &model.sessions[i];
    size_t at = 0;
    while (at < wire->got && at < s->want && wire->bytes[at] == s->bytes[at]) at++;
    if (at < wire->got || at < s->want) {
        printf("# client %d got: %.*s\n# instead of: %.*s\n", i, (int)(wire->got - at),
               (char *)wire->bytes + at, (int)(s->want - at), (char *)s->bytes + at);
        differ("what a client got, bytes", wire->got, s->want);
    }
    same("a client's connection", (uint64_t)wire->used, (uint64_t)s->used);
    wire->got = s->want = 0;
}

static void compare(void)
{
    int open = 0, history = 0;
    for (int i = 0; i < SESSIONS; i++) { /* who has got its close frame leaves */
        const struct session *s = &model.sessions[i];
        if (s->used && !s->open && !s->dead && s->n == 0) wires[i].fin = 1;
    }
    settle_server();
    model_turn();
    for (int i = 0; i < SESSIONS; i++) {
        compare_client(i);
        open += model.sessions[i].used && model.sessions[i].open;
    }
    for (int i = 0; i < model.count; i++) {
        const struct said *m = &model.said[i];
        history += m->kept && m->got && m->ages;
    }
    same("sessions", (uint64_t)exportws_sessions(run.w), (uint64_t)open);
    same("held", run.w->held, (uint64_t)model_held(ALL));
    same("history", run.w->history, (uint64_t)history);
    same("free blocks", run.w->blocks_free, (uint64_t)model.blocks);
    same("expired", run.w->m->expired, model.expired);
    if (run.step % 64 != 0) return;
    const char *wrong = audit(run.w);
    if (wrong) printf("# %s\n", wrong), differ("the books", 0, 1);
}

static void step(void)
{
    unsigned what = pick(100);
    if (run.step % 1500 == 0 || model.count == MOST) start();
    tell("nothing", 0, 0, 0);
    if (what < 30) step_push((int)pick(TOKENS));
    else if (what < 40) step_push(ALL);
    else if (what < 58) step_connect();
    else if (what < 82) step_client();
    else if (what < 87) step_reply();
    else if (what < 90) step_kick();
    else if (what < 93) step_status();
    else step_time();
    compare();
}

static uint64_t real_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
    const uint64_t begun = real_ms(), steps = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    run.seed = argc > 2 ? strtoull(argv[2], NULL, 10) : begun;
    run.random = run.seed * 0x9e3779b97f4a7c15 | 1;
    for (; steps > 0 ? run.step < steps : run.step % 1000 != 0 || real_ms() - begun < 10000;
         run.step++)
        step();
    printf("# %d pushes, %d refused; %d connects, %d gaps, %d gave way; %d clients left in a frame\n",
           run.pushes, run.refused, run.connects, run.gaps, model.gave_way, run.cuts);
    printf("ok model_and_server_agree: %llu steps, seed %llu\n", (unsigned long long)run.step,
           (unsigned long long)run.seed);
    exportws_end(run.w);
    return 0;
}
