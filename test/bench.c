/*
 * bench.c - what exportws costs, each figure beside its bound or beside a bare twin.
 *
 *     cc -O2 -o build/bench test/bench.c
 *     build/bench [--server ./exportws] [--quick] [ROWS...]
 *
 * The twin is a bare program, in this file: it does the system calls that the work needs and next
 * to nothing else (Linux: epoll; elsewhere: poll over the sockets that talk). Server and twin get
 * the same bytes over loopback from the same load, a process for each that this program forks,
 * and take turns (server, twin, server, twin ...), because machines are noisy: a figure is the
 * median of its runs, a ratio the median of the ratios of neighbouring runs.
 *
 * CPU is the server process's own, user and system, from its CPU clock (clock_getcpuclockid, in
 * nanoseconds). The load's is not in it, but what the kernel does for the receiver inside the
 * server's send() is, for the twin as well. Server and load share one core (--cores one) or have
 * one each (--cores two); both ways hold for the twin too.
 *
 * The load checks all it gets: every message, byte by byte, with its number in it, and every
 * answer. One that is missing, doubled or wrong makes its row FAILED. So does silence for 10 s.
 *
 * Rows:  broadcast  one POST to everybody: CPU a delivery; POST to last receiver
 *        push       one POST to one token, one at a time, against idle sessions: CPU, latency
 *        paced      the same, 200 a second
 *        pipeline   4 connections with 16 POSTs in flight each
 *        idle       sessions that send HEART-BEAT every 30 s; then nothing at all
 *        first      the first message of a session that was silent for long
 *        busy       100 busy sessions, alone and among idle ones: CPU and stalls
 *        memory     bytes a session, resident memory full, emptied, filled again
 *        cycle      connect, upgrade, leave
 *        echo       messages through the library: --echo PROGRAM, made of test/echo.c, started
 *                   with --listen, --push, --capacity and --max-message
 *        start      exec to ready line
 *        size       the stripped program
 *        soak       1,000,000 cycles with memory flat (only when it is named)
 *
 * With --peers, the rows broadcast, push, pipeline, busy, memory, cycle and echo have a column more
 * for each program that somebody might take instead: nginx with nchan (Debian: libnginx-mod-nchan),
 * Node's ws (test/peer_ws.js; npm install --prefix build/node ws) and libwebsockets
 * (test/peer_lws.c; libwebsockets-dev). The same load drives them and checks what they send, in the
 * same turns, but in fewer of them; "-" is one that is not installed or cannot do it. Run it from
 * the folder that test/ is in.
 *
 * Options: --quick (a minute or two), --runs N, --server PROGRAM (or $EXPORTWS; ./exportws),
 *          --cores one|two, --cpu N (the core), --svg FILE (this program's .svg), --echo PROGRAM,
 *          --bars first|final (the bars of a first version, or the real ones),
 *          --peers, --self-check (a twin in the server's place: every ratio has to be about 1).
 * CSV=1 in the environment: every run as a line instead of the table.
 * Exit status: 0, or 1 when a row failed or is over its bar, or 2 for a bad option.
 */
#ifdef __linux__
#define _GNU_SOURCE                                     /* sched_setaffinity */
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <sched.h>
#include <sys/prctl.h>
#endif
#if defined(__linux__) && !defined(BENCH_POLL)          /* -DBENCH_POLL: as on other systems */
#define BENCH_EPOLL 1
#include <sys/epoll.h>
#endif

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0                                  /* SIGPIPE is ignored as well */
#endif
#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

enum {
    MAX_FDS = 32768,
    MAX_RUNS = 45,
    TURNS = 3,                          /* a run of what takes turns is this many short ones */
    TURNS_QUICK = 2,
    MAX_EVENTS = 1024,
    PUSHERS = 4,
    IN_FLIGHT = 16,                     /* pipelined on each of them */
    HEAD_MS = 10000,                    /* --handshake-timeout, as it is by default */
    BUSY = 100,
    SPARE_FDS = 400,                    /* what a server needs beside its sessions */
    PATIENCE_MS = 10000,
    JOB_MS = 120000,                    /* the longest that one job may take */
    LIFETIME_S = 3600,                  /* of any process of this program, whatever happens */
    BEAT_EVERY_S = 30,
    IO_BYTES = 65536
};

#define PATH "/app/ws/export-task/"
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

/* ===== Time, figures ===== */

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void sleep_ms(int ms)
{
    poll(NULL, 0, ms);
}

static int order_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int order_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* NAN is "no such figure here"; without libm. */
static int is_none(double v)
{
    return v != v;
}

static double median(const double *v, size_t n)
{
    double sorted[MAX_RUNS];
    if (n == 0)
        return NAN;
    memcpy(sorted, v, n * sizeof *v);
    qsort(sorted, n, sizeof *sorted, order_double);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

/* ===== The machine ===== */

/* Raises the soft descriptor limit to the hard one; answers what there is now. */
static size_t machine_descriptors(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return 256;
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
    getrlimit(RLIMIT_NOFILE, &r);
    return r.rlim_cur > MAX_FDS ? MAX_FDS : (size_t)r.rlim_cur;
}

/* The core that counts from the last one of those we may use: 0 is the last. -1: cannot pin. */
static int machine_core(int from_last)
{
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return -1;
    for (int i = CPU_SETSIZE - 1; i >= 0; i--)
        if (CPU_ISSET((size_t)i, &set) && from_last-- == 0)
            return i;
#else
    (void)from_last;
#endif
    return -1;
}

/* For a child, straight after fork: its core, and a bound on its life whatever becomes of us. */
static void machine_settle(int core)
{
#ifdef __linux__
    if (core >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)core, &set);
        sched_setaffinity(0, sizeof set, &set);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#else
    (void)core;
#endif
    alarm(LIFETIME_S);                  /* survives exec */
}

/* CPU time that process PID has used; 0 where one process cannot ask for another's. */
static uint64_t process_cpu_ns(pid_t pid)
{
#if defined(_POSIX_CPUTIME) && _POSIX_CPUTIME >= 0
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(pid, &clock) == 0 && clock_gettime(clock, &t) == 0)
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
#else
    (void)pid;
#endif
    return 0;
}

/* A number of /proc/PID/status, such as "VmRSS:"; -1 where there is none. */
static long process_status(pid_t pid, const char *name)
{
    char path[64], line[256];
    long value = -1;
    snprintf(path, sizeof path, "/proc/%ld/status", (long)pid);
    FILE *f = fopen(path, "r");
    if (f == NULL)
        return -1;
    while (fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, name, strlen(name)) == 0)
            value = strtol(line + strlen(name), NULL, 10);
    fclose(f);
    return value;
}

static double process_resident(pid_t pid)
{
    long kib = process_status(pid, "VmRSS:");
    return kib < 0 ? NAN : (double)kib * 1024;
}

/* A child of ours has not ended; when it has, it is still to be waited for. */
static int process_lives(pid_t pid)
{
    siginfo_t end = {0};
    return waitid(P_PID, (id_t)pid, &end, WEXITED | WNOHANG | WNOWAIT) == 0 && end.si_pid == 0;
}

/* Waits for a child of ours, asks it to end after GRACE_MS, then ends it. Answers its status. */
static int process_reap(pid_t pid, int grace_ms)
{
    int status = 0;
    for (uint64_t end = now_ns() + (uint64_t)grace_ms * 1000000u; now_ns() < end; sleep_ms(2))
        if (waitpid(pid, &status, WNOHANG) == pid)
            return status;
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return status;
}

/* ===== Sockets ===== */

/* A listener on a free port of loopback. Accepted sockets inherit TCP_NODELAY on Linux. */
static int socket_listen(int *port)
{
    struct sockaddr_in a = {0};
    socklen_t size = sizeof a;
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, size) != 0 || listen(fd, 1024) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &size) != 0) {
        perror("bench: listen");
        exit(1);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    *port = ntohs(a.sin_port);
    return fd;
}

/* Linux takes milliseconds to find a free port when half of them are in use: so every 10,000
 * connections come from a loopback address of their own. Elsewhere there is but one. */
static void socket_from(int fd, size_t number)
{
#ifdef IP_BIND_ADDRESS_NO_PORT
    struct sockaddr_in a = {0};
    int on = 1;
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(number / 10000));
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (number >= 10000 && bind(fd, (struct sockaddr *)&a, sizeof a) != 0)
        perror("bench: bind");
#else
    (void)fd, (void)number;
#endif
}

/* A blocking connection, the client's so-manieth, whose reads and writes give up after
 * PATIENCE_MS. <0: errno says why. */
static int socket_dial(int port, size_t number)
{
    struct sockaddr_in a = {0};
    struct timeval patience = {PATIENCE_MS / 1000, 0};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0)
        return -1;
    a.sin_family = AF_INET;
    a.sin_port = htons((uint16_t)port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socket_from(fd, number);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* So that thousands of closed sessions do not keep their ports in TIME_WAIT. */
static void socket_close_hard(int fd)
{
    struct linger hard = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close(fd);
}

/* 0, or -1. */
static int socket_send(int fd, const void *data, size_t size)
{
    const char *p = data;
    while (size > 0) {
        ssize_t n = send(fd, p, size, MSG_NOSIGNAL);
        if (n <= 0)
            return -1;
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

/* Exactly SIZE bytes: 0, or -1 (end, error, or out of patience). */
static int socket_receive(int fd, void *data, size_t size)
{
    char *p = data;
    while (size > 0) {
        ssize_t n = recv(fd, p, size, 0);
        if (n <= 0)
            return -1;
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

/* ===== Watching many sockets: epoll, or poll where there is none ===== */

struct watch {
#ifdef BENCH_EPOLL
    int epoll;
#else
    struct pollfd set[MAX_FDS];
    size_t tag[MAX_FDS];
    size_t count, fixed;
#endif
};

/* FIXED (poll only): the newest socket stands after the first so many, the others in order. */
static void watch_init(struct watch *w, size_t fixed)
{
#ifdef BENCH_EPOLL
    (void)fixed;
    w->epoll = epoll_create1(0);
#else
    w->count = 0;
    w->fixed = fixed;
#endif
}

static void watch_add(struct watch *w, int fd, size_t tag)
{
#ifdef BENCH_EPOLL
    struct epoll_event e = {0};
    e.events = EPOLLIN;
    e.data.u64 = tag;
    epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &e);
#else
    size_t at = w->count;
    if (at > w->fixed) {
        w->set[at] = w->set[w->fixed];
        w->tag[at] = w->tag[w->fixed];
        at = w->fixed;
    }
    w->count++;
    w->set[at].fd = fd;
    w->set[at].events = POLLIN;
    w->tag[at] = tag;
#endif
}

/* Call before closing a socket. epoll needs no call: it forgets what is closed. */
static void watch_forget(struct watch *w, int fd)
{
#ifdef BENCH_EPOLL
    (void)w, (void)fd;
#else
    for (size_t i = 0; i < w->count; i++)
        if (w->set[i].fd == fd) {
            w->set[i] = w->set[--w->count];
            w->tag[i] = w->tag[w->count];
            return;
        }
#endif
}

/* Tags of what is readable, at most MAX_EVENTS. LIVE (poll only): looks just at the first so many,
 * since the others are known to be silent. */
static size_t watch_wait(struct watch *w, size_t *tags, size_t live, int timeout_ms)
{
    size_t found = 0;
#ifdef BENCH_EPOLL
    struct epoll_event events[MAX_EVENTS];
    int n = epoll_wait(w->epoll, events, MAX_EVENTS, timeout_ms);
    (void)live;
    for (int i = 0; i < n; i++)
        tags[found++] = (size_t)events[i].data.u64;
#else
    size_t n = live < w->count ? live : w->count;
    if (poll(w->set, (nfds_t)n, timeout_ms) > 0)
        for (size_t i = 0; i < n && found < MAX_EVENTS; i++)
            if (w->set[i].revents != 0)
                tags[found++] = w->tag[i];
#endif
    return found;
}

/* ===== Bytes on the wire ===== */

/* A frame's head, unmasked or (mask bit set, key to follow) masked. Answers its length. */
static size_t frame_head(unsigned char head[10], unsigned opcode, size_t size, int masked)
{
    unsigned bit = masked ? 0x80 : 0;
    head[0] = (unsigned char)(0x80 | opcode);
    if (size < 126) {
        head[1] = (unsigned char)(bit | size);
        return 2;
    }
    head[1] = (unsigned char)(bit | 126);
    head[2] = (unsigned char)(size >> 8);
    head[3] = (unsigned char)size;
    return 4;
}

/* A client's frame around SIZE bytes. Answers its length. */
static size_t frame_mask(unsigned char *out, unsigned opcode, const void *data, size_t size)
{
    static const unsigned char key[4] = {0x37, 0xfa, 0x21, 0x3d};
    const unsigned char *p = data;
    size_t n = frame_head(out, opcode, size, 1);
    memcpy(out + n, key, 4);
    n += 4;
    for (size_t i = 0; i < size; i++)
        out[n + i] = p[i] ^ key[i % 4];
    return n + size;
}

/* SIZE bytes of text that begin with a number of eight digits. */
static void body_fill(unsigned char *out, size_t size, size_t number)
{
    char digits[32];
    for (size_t i = 8; i < size; i++)
        out[i] = (unsigned char)('a' + i % 23);
    snprintf(digits, sizeof digits, "%08zu", number % 100000000u);
    memcpy(out, digits, 8);
}

/* A POST of SIZE bytes to a token (NULL: to all), without the body. Answers its length with it. */
static size_t request_write(char *out, size_t room, const char *token, size_t size)
{
    int n = snprintf(out, room, "POST " PATH "%s HTTP/1.1\r\nHost: bench\r\n"
                     "Content-Length: %zu\r\n\r\n", token ? token : "", size);
    return (size_t)n + size;
}

/* ===== The bare twin ===== */

enum { TALK_SWALLOW, TALK_ECHO, TALK_CLOSE };           /* what to do with a session's bytes */

/* What the next job is, in memory that load and twin share: the twin has nothing to parse. */
struct plan {
    volatile int talk;
    volatile int everybody;             /* a request is a broadcast */
    volatile size_t request_bytes, body_bytes;
    volatile size_t live;               /* see watch_wait */
    volatile size_t pushers;            /* that the twin has accepted */
};

enum { TWIN_FIXED = 2 + PUSHERS };      /* what the twin always looks at: listeners, pushers */

struct twin_pusher {
    int fd;
    size_t have;
    unsigned char in[IO_BYTES];
};

struct twin {
    struct plan *plan;
    struct watch watch;
    int clients, push;
    int session[MAX_FDS];               /* in the order of their upgrades */
    size_t sessions;
    size_t place[MAX_FDS];              /* of a descriptor in session[], plus 1; 0: not there */
    struct twin_pusher pusher[PUSHERS];
    size_t pushers;
    unsigned char in[IO_BYTES];
};

static const char twin_101[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: " ACCEPT "\r\n\r\n";
static const char twin_200[] =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 37\r\n\r\n"
    "{\"delivered\":1,\"id\":1234567890123456}";

/* A short send would show as a missing message at the load; here it says where. */
static void twin_send(int fd, const void *data, size_t size)
{
    if (send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)size)
        fprintf(stderr, "bench: twin: send of %zu bytes: %s\n", size, strerror(errno));
}

static void twin_drop(struct twin *t, int fd)
{
    size_t at = t->place[fd];
    if (at > 0) {
        t->session[at - 1] = t->session[--t->sessions];
        t->place[t->session[at - 1]] = at;
        t->place[fd] = 0;
    }
    watch_forget(&t->watch, fd);
    close(fd);
}

static void twin_accept(struct twin *t, int listener)
{
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        return;
    t->place[fd] = 0;
    watch_add(&t->watch, fd, (size_t)fd);
    if (listener == t->push && t->pushers < PUSHERS) {
        t->pusher[t->pushers++].fd = fd;
        t->plan->pushers = t->pushers;
    }
}

/* One request: its body, as a frame, to the pusher's own session or to all. */
static void twin_deliver(struct twin *t, size_t pusher, const unsigned char *body, size_t size)
{
    unsigned char frame[IO_BYTES];
    size_t n = frame_head(frame, 1, size, 0);
    memcpy(frame + n, body, size);
    n += size;
    if (t->plan->everybody) {
        for (size_t i = 0; i < t->sessions; i++)
            twin_send(t->session[i], frame, n);
    } else {
        twin_send(t->session[pusher], frame, n);
    }
}

/* One recv, a send for each message, one send for all the answers. */
static void twin_push(struct twin *t, size_t index)
{
    struct twin_pusher *p = &t->pusher[index];
    size_t request = t->plan->request_bytes, body = t->plan->body_bytes, used = 0, answers = 0;
    char out[IO_BYTES];
    ssize_t n = recv(p->fd, p->in + p->have, sizeof p->in - p->have, MSG_DONTWAIT);
    if (n <= 0) {
        if (n == 0)
            twin_drop(t, p->fd);
        return;
    }
    for (p->have += (size_t)n; p->have - used >= request; used += request) {
        twin_deliver(t, index, p->in + used + request - body, body);
        memcpy(out + answers, twin_200, sizeof twin_200 - 1);
        answers += sizeof twin_200 - 1;
    }
    p->have -= used;
    memmove(p->in, p->in + used, p->have);
    if (answers > 0)
        twin_send(p->fd, out, answers);
}

static void twin_session(struct twin *t, int fd)
{
    ssize_t n = recv(fd, t->in, sizeof t->in, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        twin_drop(t, fd);
    } else if (t->place[fd] == 0) {
        t->session[t->sessions++] = fd;
        t->place[fd] = t->sessions;
        twin_send(fd, twin_101, sizeof twin_101 - 1);
    } else if (t->plan->talk == TALK_ECHO) {
        twin_send(fd, t->in, (size_t)n);
    } else if (t->plan->talk == TALK_CLOSE) {
        twin_send(fd, "\x88\x02\x03\xe8", 4);
        twin_drop(t, fd);
    }
}

static void twin_wake(int signal_number)
{
    (void)signal_number;
}

static void twin_run(struct twin *t)
{
    size_t tags[MAX_EVENTS];
    struct sigaction wake = {0};
    wake.sa_handler = twin_wake;                        /* without SA_RESTART */
    sigaction(SIGUSR1, &wake, NULL);
    watch_init(&t->watch, TWIN_FIXED);
    watch_add(&t->watch, t->clients, (size_t)t->clients);
    watch_add(&t->watch, t->push, (size_t)t->push);
    for (;;) {
        size_t n = watch_wait(&t->watch, tags, t->plan->live, -1);
        for (size_t i = 0; i < n; i++) {
            int fd = (int)tags[i];
            size_t pusher = 0;
            while (pusher < t->pushers && t->pusher[pusher].fd != fd)
                pusher++;
            if (fd == t->clients || fd == t->push)
                twin_accept(t, fd);
            else if (pusher < t->pushers)
                twin_push(t, pusher);
            else
                twin_session(t, fd);
        }
    }
}

/* ===== Who is at the other end ===== */

enum what { TWIN, SERVER, ECHO, NCHAN, WS, LWS };

enum { PEERS = 3 };                     /* from NCHAN on */

/* How it answers a POST, as far as they differ: the status line's beginning, how it writes
 * Content-Length, and what stands before the number of sessions that got the message. */
struct dialect {
    const char *name, *status, *length, *figure;
};

static const struct dialect dialects[] = {
    {"twin", "HTTP/1.1 200", "Content-Length:", "\"delivered\":"},
    {"server", "HTTP/1.1 200", "Content-Length:", "\"delivered\":"},
    {"echo", "HTTP/1.1 200", "Content-Length:", "\"delivered\":"},
    {"nchan", "HTTP/1.1 201", "Content-Length:", "active subscribers:"},
    {"ws", "HTTP/1.1 200", "Content-Length:", "\"delivered\":"},
    {"lws", "HTTP/1.1 200", "content-length:", "\"delivered\":"},
};

/* ===== The load: a process that is all the clients and pushers of one server ===== */

enum {
    JOB_CONNECT,                        /* rounds: sessions; pings: to be answered */
    JOB_REFILL,                         /* all leave, slots come back, rounds: sessions come */
    JOB_BROADCAST,                      /* rounds, bytes, attentive */
    JOB_PUSH,                           /* rounds, bytes, gap_ms */
    JOB_PIPELINE,                       /* rounds, bytes */
    JOB_IDLE,                           /* seconds, beats */
    JOB_FIRST,                          /* rounds, gap_ms, pushes */
    JOB_SERIAL,                         /* rounds: pings, one at a time over BUSY sessions */
    JOB_ECHO,                           /* rounds, bytes, opcode: BUSY sessions at once */
    JOB_CYCLE,                          /* rounds, polite: by close frame instead of FIN */
    JOB_QUIT
};

struct job {
    int kind;
    size_t rounds, bytes;
    int gap_ms, attentive, beats, pushes, polite, pings;
    unsigned opcode;
    double seconds;                     /* where it has rounds: no more of them after that */
};

struct sample {
    int ok;
    char why[120];
    uint64_t cpu_ns, wall_ns, count;    /* of the server; of it all; things that were done */
    double p50_us, p99_us, p999_us, max_us;
    double wakeups;
};

struct answers {
    char text[IO_BYTES + 1];
    size_t have;
};

struct load {
    struct plan *plan;
    int twin;                           /* the other end is the bare twin */
    const struct dialect *dialect;
    pid_t pid;                          /* of the server */
    int clients_port, push_port;
    int session[MAX_FDS];
    size_t sessions, watched;
    size_t got[MAX_FDS];                /* bytes of the message that is due */
    uint64_t since[MAX_FDS];
    int pusher[PUSHERS];
    struct answers answers[PUSHERS];
    struct watch watch;
    size_t number;                      /* of the next message */
    uint64_t *lap;                      /* latencies of this job */
    size_t laps, lap_room;
    unsigned char in[IO_BYTES], out[IO_BYTES], want[IO_BYTES];
    char why[120];
};

/* A slow server gets fewer rounds, not an endless bench: 1 while there is to be another one. */
static int job_goes_on(const struct job *j, size_t round, uint64_t start)
{
    enum { AT_LEAST = 3 };
    return round < j->rounds &&
           (round < AT_LEAST || (double)(now_ns() - start) * 1e-9 < j->seconds);
}

static int load_fail(struct load *l, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(l->why, sizeof l->why, format, ap);
    va_end(ap);
    return -1;
}

static void load_lap(struct load *l, uint64_t ns)
{
    if (l->laps == l->lap_room) {
        l->lap_room = l->lap_room ? 2 * l->lap_room : 65536;
        l->lap = realloc(l->lap, l->lap_room * sizeof *l->lap);
        if (l->lap == NULL)
            exit(1);
    }
    l->lap[l->laps++] = ns;
}

/* Puts the first N sessions under watch; tags are their indexes. */
static void load_watch(struct load *l, size_t n)
{
    for (; l->watched < n && l->watched < l->sessions; l->watched++)
        watch_add(&l->watch, l->session[l->watched], l->watched);
}

/* What the twin does with a session's bytes; that just so many sessions, the first, will talk.
 * The twin is between jobs, asleep: the signal has it look at the plan again. */
static void load_plan(struct load *l, int talk, size_t talking)
{
    l->plan->talk = talk;
    l->plan->live = TWIN_FIXED + 1 + talking;
#ifndef BENCH_EPOLL
    if (l->twin)
        kill(l->pid, SIGUSR1);
#endif
}

/* Reads a response's head, byte counts as they come; nothing may follow it. 0, or -1. */
static int load_upgrade(struct load *l, int fd, size_t number)
{
    char text[2048];
    size_t have = 0;
    int n = snprintf(text, sizeof text, "GET " PATH "s%05zu HTTP/1.1\r\nHost: bench\r\n"
                     "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                     "Sec-WebSocket-Key: " KEY "\r\n\r\n", number);
    if (socket_send(fd, text, (size_t)n) != 0)
        return load_fail(l, "upgrade %zu: send: %s", number, strerror(errno));
    do {
        ssize_t got = recv(fd, text + have, sizeof text - 1 - have, 0);
        if (got <= 0)
            return load_fail(l, "upgrade %zu: no 101", number);
        have += (size_t)got;
        text[have] = '\0';
    } while (strstr(text, "\r\n\r\n") == NULL && have < sizeof text - 1);
    if (strncmp(text, "HTTP/1.1 101 ", 13) != 0 || strstr(text, ACCEPT) == NULL)
        return load_fail(l, "upgrade %zu: %.40s", number, text);
    if (strstr(text, "\r\n\r\n")[4] != '\0')
        return load_fail(l, "upgrade %zu: something follows the 101", number);
    return 0;
}

/* Push connections are kept from job to job; a server may have closed them in between. */
static int load_pushers(struct load *l)
{
    for (size_t i = 0; i < PUSHERS; i++) {
        char byte;
        if (l->pusher[i] >= 0 && recv(l->pusher[i], &byte, 1, MSG_DONTWAIT) >= 0) {
            close(l->pusher[i]);
            l->pusher[i] = -1;
        }
        if (l->pusher[i] >= 0)
            continue;
        l->answers[i].have = 0;
        if ((l->pusher[i] = socket_dial(l->push_port, 0)) < 0)
            return load_fail(l, "push door: %s", strerror(errno));
    }
    for (int ms = 0; l->twin && l->plan->pushers < PUSHERS; ms++) {
        if (ms == PATIENCE_MS)
            return load_fail(l, "the twin does not accept pushers");
        sleep_ms(1);
    }
    return 0;
}

/* Answers the server's pings on session I. */
static int load_pong(struct load *l, size_t i)
{
    unsigned char pong[16];
    ssize_t n = recv(l->session[i], l->in, sizeof l->in, MSG_DONTWAIT);
    if (n <= 0)
        return load_fail(l, "session %zu: %s", i, n ? strerror(errno) : "closed");
    for (size_t used = 0; used < (size_t)n; used += 2 + l->in[used + 1]) {
        const unsigned char *ping = l->in + used;
        if (ping[0] != 0x89 || ping[1] > 8 || used + 2 + ping[1] > (size_t)n)
            return load_fail(l, "session %zu: %02x%02x.. is no ping", i, ping[0], ping[1]);
        size_t size = frame_mask(pong, 0xA, ping + 2, ping[1]);
        if (socket_send(l->session[i], pong, size) != 0)
            return load_fail(l, "session %zu: send: %s", i, strerror(errno));
    }
    return 0;
}

/* Waits for pings and answers them. */
static int load_pongs(struct load *l, int timeout_ms)
{
    size_t tags[MAX_EVENTS];
    for (size_t i = 0, n = watch_wait(&l->watch, tags, MAX_FDS, timeout_ms); i < n; i++)
        if (load_pong(l, tags[i]) != 0)
            return -1;
    return 0;
}

/* With PINGS this may take longer than the server's patience. */
static int load_connect(struct load *l, size_t count, int pings)
{
    load_plan(l, TALK_SWALLOW, 0);
    while (l->sessions < count) {
        int fd = socket_dial(l->clients_port, l->sessions);
        if (fd < 0)
            return load_fail(l, "session %zu: %s", l->sessions, strerror(errno));
        if (fd >= MAX_FDS || load_upgrade(l, fd, l->sessions) != 0) {
            close(fd);
            return -1;
        }
        l->session[l->sessions++] = fd;
        if (!pings)
            continue;
        load_watch(l, l->sessions);
        if (l->sessions % 100 == 0 && load_pongs(l, 0) != 0)
            return -1;
    }
    return 0;
}

/* One whole answer at the front of what came: its length, 0 for more, -1 for one that does not say
 * it was done. *delivered is its figure. */
static int answers_take(struct answers *a, const struct dialect *d, size_t *delivered)
{
    a->text[a->have] = '\0';
    char *end = strstr(a->text, "\r\n\r\n"), *length = strstr(a->text, d->length);
    if (end == NULL)
        return 0;
    if (strncmp(a->text, d->status, strlen(d->status)) != 0 || length == NULL || length > end)
        return -1;
    size_t size = (size_t)(end + 4 - a->text) +
                  (size_t)strtoul(length + strlen(d->length), NULL, 10);
    if (a->have < size)
        return 0;
    const char *figure = strstr(end, d->figure);
    *delivered = figure ? (size_t)strtoul(figure + strlen(d->figure), NULL, 10) : 0;
    a->have -= size;
    memmove(a->text, a->text + size, a->have);
    return (int)size;
}

/* The one answer that is due on a push connection; it says that EXPECT got the message. */
static int load_answer(struct load *l, size_t pusher, size_t expect)
{
    struct answers *a = &l->answers[pusher];
    size_t delivered = 0;
    for (;;) {
        int n = answers_take(a, l->dialect, &delivered);
        if (n < 0)
            return load_fail(l, "push: %.60s", a->text);
        if (n > 0)
            break;
        ssize_t got = recv(l->pusher[pusher], a->text + a->have, IO_BYTES - a->have, 0);
        if (got <= 0)
            return load_fail(l, "push: no answer");
        a->have += (size_t)got;
    }
    if (delivered != expect && !l->twin)
        return load_fail(l, "push: delivered to %zu of %zu", delivered, expect);
    return 0;
}

/* Reads what is there for session I of the WANT bytes that are due in l->want.
 * 1: that was all of it, 0: more to come, -1: failed. */
static int load_take(struct load *l, size_t i, size_t want)
{
    ssize_t n = recv(l->session[i], l->in, sizeof l->in, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0)
        return load_fail(l, "session %zu: %s", i, n ? strerror(errno) : "closed");
    if (l->got[i] + (size_t)n > want || memcmp(l->want + l->got[i], l->in, (size_t)n) != 0)
        return load_fail(l, "session %zu: %zd bytes that are not the message", i, n);
    l->got[i] += (size_t)n;
    return l->got[i] == want;
}

/* ===== Jobs of the load: each answers 0, or -1 with l->why ===== */

/* Writes request and expected frame for a POST to a token (NULL: all). Answers the request's
 * length, *want the frame's. The number of the message is still to be put in. */
static size_t push_prepare(struct load *l, const char *token, size_t bytes, size_t *want)
{
    size_t size = request_write((char *)l->out, sizeof l->out, token, bytes);
    *want = frame_head(l->want, 1, bytes, 0) + bytes;
    l->plan->everybody = token == NULL;
    l->plan->request_bytes = size;
    l->plan->body_bytes = bytes;
    return size;
}

static void push_number(struct load *l, size_t size, size_t want, size_t bytes)
{
    body_fill(l->out + size - bytes, bytes, l->number);
    body_fill(l->want + want - bytes, bytes, l->number++);
}

/* The receivers read as messages come (attentive), or, so that the server's CPU is its own and not
 * that of a thousand changes of process, when the server is through with all of them. */
static int broadcast_once(struct load *l, size_t bytes, size_t size, size_t want, int attentive)
{
    size_t tags[MAX_EVENTS], done = 0;
    push_number(l, size, want, bytes);
    memset(l->got, 0, l->sessions * sizeof *l->got);
    uint64_t start = now_ns();
    if (socket_send(l->pusher[0], l->out, size) != 0)
        return load_fail(l, "broadcast: send: %s", strerror(errno));
    if (!attentive && load_answer(l, 0, l->sessions) != 0)
        return -1;
    while (done < l->sessions) {
        size_t n = watch_wait(&l->watch, tags, MAX_FDS, PATIENCE_MS);
        if (n == 0)
            return load_fail(l, "broadcast: %zu of %zu got it", done, l->sessions);
        for (size_t i = 0; i < n; i++) {
            int r = load_take(l, tags[i], want);
            if (r < 0)
                return -1;
            done += (size_t)r;
        }
    }
    load_lap(l, now_ns() - start);
    return attentive ? load_answer(l, 0, l->sessions) : 0;
}

static int job_broadcast(struct load *l, const struct job *j, struct sample *s)
{
    size_t want, size = push_prepare(l, NULL, j->bytes, &want);
    load_plan(l, TALK_SWALLOW, 0);
    load_watch(l, l->sessions);
    if (broadcast_once(l, j->bytes, size, want, j->attentive) != 0)
        return -1;
    l->laps = 0;
    s->cpu_ns = process_cpu_ns(l->pid);
    for (uint64_t start = now_ns(); job_goes_on(j, l->laps, start); )
        if (broadcast_once(l, j->bytes, size, want, j->attentive) != 0)
            return -1;
    s->cpu_ns = process_cpu_ns(l->pid) - s->cpu_ns;
    s->count = l->laps * l->sessions;
    return 0;
}

/* Prepared by push_prepare for session 0. */
static int push_once(struct load *l, size_t bytes, size_t size, size_t want, int timed)
{
    push_number(l, size, want, bytes);
    uint64_t start = now_ns();
    if (socket_send(l->pusher[0], l->out, size) != 0)
        return load_fail(l, "push: send: %s", strerror(errno));
    if (socket_receive(l->session[0], l->in, want) != 0)
        return load_fail(l, "push: message %zu did not come", l->number - 1);
    if (timed)
        load_lap(l, now_ns() - start);
    if (memcmp(l->in, l->want, want) != 0)
        return load_fail(l, "push: message %zu is not what was pushed", l->number - 1);
    return load_answer(l, 0, 1);
}

static int job_push(struct load *l, const struct job *j, struct sample *s)
{
    size_t want, size = push_prepare(l, "s00000", j->bytes, &want);
    load_plan(l, TALK_SWALLOW, 0);
    for (size_t i = 0; i < (j->gap_ms ? 2 : 50); i++)           /* not counted: waking up */
        if (push_once(l, j->bytes, size, want, 0) != 0)
            return -1;
    s->cpu_ns = process_cpu_ns(l->pid);
    for (uint64_t start = now_ns(); job_goes_on(j, l->laps, start); ) {
        if (j->gap_ms > 0)
            sleep_ms(j->gap_ms);
        if (push_once(l, j->bytes, size, want, 1) != 0)
            return -1;
    }
    s->cpu_ns = process_cpu_ns(l->pid) - s->cpu_ns;
    s->count = l->laps;
    return 0;
}

/* One push connection with many requests under way, and the session they go to. */
struct stream {
    size_t sent, answered, received;
    size_t size, want;                  /* of a request, of a frame */
    char request[512];
    unsigned char in[IO_BYTES];
    size_t have;
};

/* Sends COUNT requests at once. */
static int stream_send(struct load *l, struct stream *s, size_t i, size_t count, size_t bytes)
{
    size_t n = 0;
    for (size_t k = 0; k < count; k++, n += s->size) {
        memcpy(l->out + n, s->request, s->size);
        body_fill(l->out + n + s->size - bytes, bytes, s->sent++);
    }
    return socket_send(l->pusher[i], l->out, n) == 0 ? 0 : load_fail(l, "pipeline: send");
}

/* Answers came: as many requests more as were answered, while any are left. */
static int stream_answers(struct load *l, struct stream *s, size_t i, const struct job *j)
{
    struct answers *a = &l->answers[i];
    size_t count = 0, delivered;
    ssize_t n = recv(l->pusher[i], a->text + a->have, IO_BYTES - a->have, MSG_DONTWAIT);
    int taken;
    if (n <= 0)
        return load_fail(l, "pipeline: push connection closed");
    for (a->have += (size_t)n; (taken = answers_take(a, l->dialect, &delivered)) > 0; count++)
        if (!l->twin && delivered != 1)
            return load_fail(l, "pipeline: delivered to %zu", delivered);
    if (taken < 0)
        return load_fail(l, "pipeline: %.60s", a->text);
    s->answered += count;
    if (count > j->rounds - s->sent)
        count = j->rounds - s->sent;
    return count > 0 ? stream_send(l, s, i, count, j->bytes) : 0;
}

/* Frames came: each is the next number. */
static int stream_frames(struct load *l, struct stream *s, size_t i, const struct job *j)
{
    size_t used = 0;
    ssize_t n = recv(l->session[i], s->in + s->have, sizeof s->in - s->have, MSG_DONTWAIT);
    if (n <= 0)
        return load_fail(l, "pipeline: session %zu closed", i);
    for (s->have += (size_t)n; s->have - used >= s->want; used += s->want) {
        body_fill(l->want + s->want - j->bytes, j->bytes, s->received);
        if (memcmp(s->in + used, l->want, s->want) != 0)
            return load_fail(l, "pipeline: session %zu: message %zu is not next", i, s->received);
        s->received++;
    }
    s->have -= used;
    memmove(s->in, s->in + used, s->have);
    return 0;
}

static int pipeline_run(struct load *l, struct stream *s, const struct job *j)
{
    struct pollfd p[2 * PUSHERS];
    size_t left = PUSHERS;
    for (size_t i = 0; i < PUSHERS; i++) {
        p[i].fd = l->pusher[i];
        p[PUSHERS + i].fd = l->session[i];
        p[i].events = p[PUSHERS + i].events = POLLIN;
        if (stream_send(l, &s[i], i, IN_FLIGHT, j->bytes) != 0)
            return -1;
    }
    while (left > 0) {
        if (poll(p, 2 * PUSHERS, PATIENCE_MS) <= 0)
            return load_fail(l, "pipeline: nothing comes any more");
        left = 0;
        for (size_t i = 0; i < PUSHERS; i++) {
            if (p[i].revents && stream_answers(l, &s[i], i, j) != 0)
                return -1;
            if (p[PUSHERS + i].revents && stream_frames(l, &s[i], i, j) != 0)
                return -1;
            left += s[i].answered < j->rounds || s[i].received < j->rounds;
        }
    }
    return 0;
}

static int job_pipeline(struct load *l, const struct job *j, struct sample *s)
{
    struct stream *streams = calloc(PUSHERS, sizeof *streams);
    char token[16];
    if (streams == NULL)
        return load_fail(l, "out of memory");
    load_plan(l, TALK_SWALLOW, 0);
    for (size_t i = 0; i < PUSHERS; i++) {
        snprintf(token, sizeof token, "s%05zu", i);
        streams[i].size = push_prepare(l, token, j->bytes, &streams[i].want);
        memcpy(streams[i].request, l->out, streams[i].size - j->bytes);
    }
    s->cpu_ns = process_cpu_ns(l->pid);
    int r = pipeline_run(l, streams, j);
    s->cpu_ns = process_cpu_ns(l->pid) - s->cpu_ns;
    s->count = PUSHERS * j->rounds;
    free(streams);
    return r;
}

/* Sessions speak in turn, evenly over BEAT_EVERY_S; not everybody at once. */
static int job_idle(struct load *l, const struct job *j, struct sample *s)
{
    unsigned char beat[32];
    size_t size = frame_mask(beat, 1, "HEART-BEAT", 10), sent = 0;
    double rate = j->beats ? (double)l->sessions / BEAT_EVERY_S : 0;
    uint64_t start = now_ns(), end = start + (uint64_t)(j->seconds * 1e9);
    load_plan(l, TALK_SWALLOW, l->sessions);
    load_watch(l, l->sessions);
    s->cpu_ns = process_cpu_ns(l->pid);
    s->wakeups = (double)process_status(l->pid, "voluntary_ctxt_switches:");
    for (uint64_t now = start; now < end; now = now_ns()) {
        size_t due = (size_t)((double)(now - start) * 1e-9 * rate);
        for (; sent < due; sent++)
            if (socket_send(l->session[l->number++ % l->sessions], beat, size) != 0)
                return load_fail(l, "idle: send: %s", strerror(errno));
        int wait = rate > 0 ? 2 : (int)((end - now) / 1000000u) + 1;
        if (load_pongs(l, wait) != 0)
            return -1;
    }
    s->cpu_ns = process_cpu_ns(l->pid) - s->cpu_ns;
    s->wakeups = (double)process_status(l->pid, "voluntary_ctxt_switches:") - s->wakeups;
    s->wall_ns = now_ns() - start;
    s->count = sent;
    return 0;
}

/* A ping of BYTES on session I, in l->out; what comes back, in l->want. Answers its length. */
static size_t ping_prepare(struct load *l, unsigned opcode, size_t bytes, size_t *want)
{
    unsigned char body[IO_BYTES];
    body_fill(body, bytes, l->number++);
    size_t size = frame_mask(l->out, opcode, body, bytes);
    if (l->twin) {                                      /* it sends back what it gets */
        memcpy(l->want, l->out, size);
        *want = size;
    } else {
        *want = frame_head(l->want, opcode == 9 ? 0xA : opcode, bytes, 0);
        memcpy(l->want + *want, body, bytes);
        *want += bytes;
    }
    return size;
}

/* Waits for the pong that is due on session I; with PUSHES the push door is kept busy meanwhile. */
static int first_await(struct load *l, size_t i, size_t want, int pushes)
{
    unsigned char expect[64];
    uint64_t end = now_ns() + PATIENCE_MS * 1000000ull;
    memcpy(expect, l->want, want);
    l->got[i] = 0;
    for (;;) {
        struct pollfd p = {l->session[i], POLLIN, 0};
        if (pushes) {
            size_t frame, size = push_prepare(l, "s00000", 64, &frame);
            if (push_once(l, 64, size, frame, 0) != 0)
                return -1;
        }
        poll(&p, 1, pushes ? 0 : PATIENCE_MS);
        memcpy(l->want, expect, want);
        int r = p.revents ? load_take(l, i, want) : 0;
        if (r != 0)
            return r < 0 ? -1 : 0;
        if (now_ns() > end)
            return load_fail(l, "first message: session %zu was not heard", i);
    }
}

/* Silence, or pushes, for a while. */
static int first_pause(struct load *l, const struct job *j)
{
    if (!j->pushes) {
        sleep_ms(j->gap_ms);
        return 0;
    }
    for (uint64_t end = now_ns() + (uint64_t)j->gap_ms * 1000000u; now_ns() < end; ) {
        size_t want, size = push_prepare(l, "s00000", 64, &want);
        if (push_once(l, 64, size, want, 0) != 0)
            return -1;
    }
    return 0;
}

static int job_first(struct load *l, const struct job *j, struct sample *s)
{
    load_plan(l, TALK_ECHO, l->sessions);
    for (size_t k = 0; k < j->rounds; k++) {
        size_t want, size, i = PUSHERS + l->number * 7919u % (l->sessions - PUSHERS);
        if (first_pause(l, j) != 0)
            return -1;
        size = ping_prepare(l, 9, 8, &want);
        uint64_t start = now_ns();
        if (socket_send(l->session[i], l->out, size) != 0)
            return load_fail(l, "first message: send: %s", strerror(errno));
        if (first_await(l, i, want, j->pushes) != 0)
            return -1;
        load_lap(l, now_ns() - start);
    }
    s->count = j->rounds;
    return 0;
}

static int echo_start(struct load *l, size_t i, size_t size)
{
    l->got[i] = 0;
    l->since[i] = now_ns();
    if (socket_send(l->session[i], l->out, size) != 0)
        return load_fail(l, "echo: send: %s", strerror(errno));
    return 0;
}

/* Each of the busy sessions has one message under way, until there were ROUNDS in all. */
static int echo_run(struct load *l, const struct job *j, size_t busy, size_t size, size_t want)
{
    size_t tags[MAX_EVENTS], sent = 0, done = 0;
    uint64_t start = now_ns();
    for (; sent < busy; sent++)
        if (echo_start(l, sent, size) != 0)
            return -1;
    while (done < sent) {
        size_t n = watch_wait(&l->watch, tags, busy, PATIENCE_MS);
        if (n == 0)
            return load_fail(l, "echo: %zu of %zu came back", done, sent);
        for (size_t k = 0; k < n; k++) {
            int r = load_take(l, tags[k], want);
            if (r < 0)
                return -1;
            if (r == 0)
                continue;
            load_lap(l, now_ns() - l->since[tags[k]]);
            done++;
            if (!job_goes_on(j, sent, start))
                continue;
            if (echo_start(l, tags[k], size) != 0)
                return -1;
            sent++;
        }
    }
    return 0;
}

/* So that the busy are known to be busy before anything is counted. */
static int echo_warm(struct load *l, unsigned opcode, size_t busy)
{
    struct job warm = {0};
    size_t want, size = ping_prepare(l, opcode, 8, &want);
    load_plan(l, TALK_ECHO, busy);
    load_watch(l, busy);
    warm.rounds = 3 * busy;
    warm.seconds = PATIENCE_MS / 1000;
    int r = echo_run(l, &warm, busy, size, want);
    l->laps = 0;
    return r;
}

static int job_echo(struct load *l, const struct job *j, struct sample *s)
{
    size_t want, size, busy = l->sessions < BUSY ? l->sessions : BUSY;
    if (echo_warm(l, j->opcode, busy) != 0)
        return -1;
    size = ping_prepare(l, j->opcode, j->bytes, &want);
    s->cpu_ns = process_cpu_ns(l->pid);
    if (echo_run(l, j, busy, size, want) != 0)
        return -1;
    s->cpu_ns = process_cpu_ns(l->pid) - s->cpu_ns;
    s->count = l->laps;
    return 0;
}

/* One ping on the next of the busy sessions. */
static int serial_once(struct load *l, size_t busy)
{
    size_t i = l->number % busy, want, size = ping_prepare(l, 9, 8, &want);
    uint64_t start = now_ns();
    if (socket_send(l->session[i], l->out, size) != 0 ||
        socket_receive(l->session[i], l->in, want) != 0)
        return load_fail(l, "busy: session %zu is not answered", i);
    load_lap(l, now_ns() - start);
    return memcmp(l->in, l->want, want) == 0 ? 0 : load_fail(l, "busy: %zu: not its pong", i);
}

static int job_serial(struct load *l, const struct job *j, struct sample *s)
{
    size_t busy = l->sessions < BUSY ? l->sessions : BUSY;
    if (echo_warm(l, 9, busy) != 0)
        return -1;
    s->cpu_ns = process_cpu_ns(l->pid);
    for (uint64_t start = now_ns(); job_goes_on(j, l->laps, start); )
        if (serial_once(l, busy) != 0)
            return -1;
    s->cpu_ns = process_cpu_ns(l->pid) - s->cpu_ns;
    s->count = l->laps;
    return 0;
}

/* Leaves as a browser does: close, the server's close, the server's FIN. */
static int cycle_goodbye(struct load *l, int fd)
{
    unsigned char bye[16], back[5];
    size_t size = frame_mask(bye, 8, "\x03\xe8", 2);
    if (socket_send(fd, bye, size) != 0)
        return load_fail(l, "cycle: send: %s", strerror(errno));
    if (socket_receive(fd, back, 4) != 0 || memcmp(back, "\x88\x02\x03\xe8", 4) != 0)
        return load_fail(l, "cycle: close was not answered by close 1000");
    if (recv(fd, back, 1, 0) != 0)
        return load_fail(l, "cycle: no FIN after the close");
    return 0;
}

static int job_cycle(struct load *l, const struct job *j, struct sample *s)
{
    load_plan(l, j->polite ? TALK_CLOSE : TALK_SWALLOW, MAX_FDS);
    s->cpu_ns = process_cpu_ns(l->pid);
    for (uint64_t start = now_ns(); job_goes_on(j, l->laps, start); ) {
        uint64_t begin = now_ns();
        int fd = socket_dial(l->clients_port, 0);
        if (fd < 0)
            return load_fail(l, "cycle %zu: %s", l->laps, strerror(errno));
        int r = load_upgrade(l, fd, 90000 + l->laps % 1000);
        if (r == 0 && j->polite)
            r = cycle_goodbye(l, fd);
        close(fd);
        if (r != 0)
            return -1;
        load_lap(l, now_ns() - begin);
    }
    sleep_ms(5);                                        /* the last ones' ends */
    s->cpu_ns = process_cpu_ns(l->pid) - s->cpu_ns;
    s->count = l->laps;
    return 0;
}

/* Asks the push door until no session is left. */
static int refill_wait_empty(struct load *l)
{
    static const char ask[] = "GET /online HTTP/1.1\r\nHost: bench\r\n\r\n";
    struct answers *a = &l->answers[0];
    for (uint64_t end = now_ns() + PATIENCE_MS * 1000000ull; now_ns() < end; sleep_ms(10)) {
        size_t unused;
        if (socket_send(l->pusher[0], ask, sizeof ask - 1) != 0)
            return load_fail(l, "refill: send");
        ssize_t n = recv(l->pusher[0], a->text, IO_BYTES, 0);
        if (n <= 0)
            return load_fail(l, "refill: no answer to GET /online");
        a->have = (size_t)n;
        a->text[n] = '\0';
        int empty = strstr(a->text, "\"sessions\":0,") != NULL;
        if (answers_take(a, l->dialect, &unused) <= 0)
            return load_fail(l, "refill: %.60s", a->text);
        if (empty)
            return 0;
    }
    return load_fail(l, "refill: sessions that left still count");
}

static int job_refill(struct load *l, const struct job *j, struct sample *s)
{
    for (size_t i = 0; i < l->sessions; i++) {
        watch_forget(&l->watch, l->session[i]);
        socket_close_hard(l->session[i]);
    }
    l->sessions = l->watched = 0;
    s->count = j->rounds;
    if (!l->twin && refill_wait_empty(l) != 0)
        return -1;
    return load_connect(l, j->rounds, 0);
}

static int job_run(struct load *l, const struct job *j, struct sample *s)
{
    switch (j->kind) {
    case JOB_CONNECT: return load_connect(l, j->rounds, j->pings);
    case JOB_REFILL: return job_refill(l, j, s);
    case JOB_BROADCAST: return job_broadcast(l, j, s);
    case JOB_PUSH: return job_push(l, j, s);
    case JOB_PIPELINE: return job_pipeline(l, j, s);
    case JOB_IDLE: return job_idle(l, j, s);
    case JOB_FIRST: return job_first(l, j, s);
    case JOB_SERIAL: return job_serial(l, j, s);
    case JOB_ECHO: return job_echo(l, j, s);
    case JOB_CYCLE: return job_cycle(l, j, s);
    default: return load_fail(l, "no such job");
    }
}

static void load_laps(struct load *l, struct sample *s)
{
    if (l->laps == 0)
        return;
    qsort(l->lap, l->laps, sizeof *l->lap, order_u64);
    s->p50_us = (double)l->lap[l->laps / 2] / 1e3;
    s->p99_us = (double)l->lap[l->laps * 99 / 100] / 1e3;
    s->p999_us = (double)l->lap[l->laps * 999 / 1000] / 1e3;
    s->max_us = (double)l->lap[l->laps - 1] / 1e3;
}

/* Takes jobs from the control socket until there are none. */
static void load_serve(struct load *l, int control)
{
    struct job j;
    watch_init(&l->watch, MAX_FDS);
    for (size_t i = 0; i < PUSHERS; i++)
        l->pusher[i] = -1;
    while (read(control, &j, sizeof j) == (ssize_t)sizeof j && j.kind != JOB_QUIT) {
        struct sample s = {0};
        uint64_t start = now_ns();
        l->laps = 0;
        s.ok = load_pushers(l) == 0 && job_run(l, &j, &s) == 0;
        if (s.wall_ns == 0)
            s.wall_ns = now_ns() - start;
        memcpy(s.why, l->why, sizeof s.why);
        load_laps(l, &s);
        if (write(control, &s, sizeof s) != (ssize_t)sizeof s)
            break;
    }
    for (size_t i = 0; i < l->sessions; i++)
        socket_close_hard(l->session[i]);
}

/* ===== A site: a server or a twin, and its load ===== */

struct bench {
    const char *server, *echo, *svg;
    char folder[256];                   /* this program's: what the peers need is built there */
    int peers;                          /* wanted */
    char version[PEERS][80];            /* of those that are here; else "" */
    int quick, self_check, two_cores, csv, first_bars;
    size_t runs, descriptors;
    int server_core, load_core;
    int failed, over, headed;
    unsigned wanted;                    /* groups by bit; 0: all but those that want to be named */
};

struct site {
    enum what what;
    pid_t pid, load;
    int control, out;                   /* to the load; the server's stdout */
    int clients_port, push_port;
    double memory;                      /* what its ready line says */
    double resident;                    /* when it was ready and empty */
    double start_ms;
    struct plan *plan;
    char why[160];
};

/* Reads the line that says where the program listens. 0, or -1. */
static int site_ready(struct site *s)
{
    char line[512];
    size_t have = 0;
    struct pollfd p = {s->out, POLLIN, 0};
    for (;;) {
        ssize_t n = 0;
        if (poll(&p, 1, PATIENCE_MS) <= 0 ||
            (n = read(s->out, line + have, sizeof line - 1 - have)) <= 0) {
            snprintf(s->why, sizeof s->why, "the program did not get ready");
            return -1;
        }
        have += (size_t)n;
        line[have] = '\0';
        if (strchr(line, '\n') != NULL)
            break;
    }
    const char *clients = strstr(line, "127.0.0.1:"), *push = strstr(line, "push 127.0.0.1:"),
               *memory = strstr(line, "memory ");
    s->clients_port = clients ? atoi(clients + 10) : 0;
    s->push_port = push ? atoi(push + 15) : 0;
    s->memory = memory ? strtod(memory + 7, NULL) : NAN;
    return clients ? 0 : -1;
}

/* nginx says nothing when it is ready: it is asked. */
static int nchan_ready(struct site *s)
{
    char byte;
    for (int ms = 0; ms < PATIENCE_MS && process_lives(s->pid); ms += 10) {
        int fd = socket_dial(s->clients_port, 0);
        int answered = fd >= 0 && socket_send(fd, "GET / HTTP/1.0\r\n\r\n", 18) == 0 &&
                       socket_receive(fd, &byte, 1) == 0;
        if (fd >= 0)
            close(fd);
        if (answered)
            return 0;
        sleep_ms(10);
    }
    snprintf(s->why, sizeof s->why, "nginx did not get ready");
    return -1;
}

/* Starts a program with these arguments, its stdout in s->out, and waits until it is ready. */
static int site_exec(const struct bench *b, struct site *s, char *const argv[])
{
    int out[2];
    if (pipe(out) != 0)
        return -1;
    fcntl(out[0], F_SETFD, FD_CLOEXEC);
    uint64_t start = now_ns();
    s->pid = fork();
    if (s->pid == 0) {
        machine_settle(b->server_core);
        signal(SIGPIPE, SIG_DFL);
        dup2(out[1], 1);
        close(out[1]);
        if (s->what == ECHO)                            /* its log has no level */
            dup2(open("/dev/null", O_WRONLY), 2);
        execv(argv[0], argv);
        fprintf(stderr, "bench: %s: %s\n", argv[0], strerror(errno));
        _exit(127);
    }
    close(out[1]);
    s->out = out[0];
    int r = s->what == NCHAN ? nchan_ready(s) : site_ready(s);
    s->start_ms = (double)(now_ns() - start) / 1e6;
    return r;
}

static int site_start_server(const struct bench *b, struct site *s, size_t capacity, int pings)
{
    char server[512], room[32];
    char zero[] = "127.0.0.1:0", listen_[] = "--listen", push[] = "--push", cap[] = "--capacity",
         log_[] = "--log", error[] = "error", ping[] = "--ping", hour[] = "3600";
    char *argv[] = {server, listen_, zero, push, zero, cap, room, log_, error, ping, hour, NULL};
    if (pings)
        argv[9] = NULL;                                 /* the default */
    snprintf(server, sizeof server, "%s", b->server);
    snprintf(room, sizeof room, "%zu", capacity);
    return site_exec(b, s, argv);
}

static int site_start_echo(const struct bench *b, struct site *s, size_t capacity)
{
    char echo[512], room[32], zero[] = "127.0.0.1:0", listen_[] = "--listen", push[] = "--push",
         cap[] = "--capacity", most[] = "--max-message", bytes[] = "64k";
    char *argv[] = {echo, listen_, zero, push, zero, cap, room, most, bytes, NULL};
    snprintf(echo, sizeof echo, "%s", b->echo);
    snprintf(room, sizeof room, "%zu", capacity);
    return site_exec(b, s, argv);
}

static int site_start_twin(const struct bench *b, struct site *s)
{
    int clients = socket_listen(&s->clients_port), push = socket_listen(&s->push_port);
    s->memory = NAN;
    s->pid = fork();
    if (s->pid == 0) {
        struct twin *t = calloc(1, sizeof *t);
        machine_settle(b->server_core);
        if (t == NULL)
            _exit(1);
        t->plan = s->plan;
        t->clients = clients;
        t->push = push;
        twin_run(t);
    }
    close(clients);
    close(push);
    return s->pid > 0 ? 0 : -1;
}

/* ===== Peers ===== */

/* Prints its version when it is here; starts it. %s: the bench's folder. */
static const struct peer {
    const char *version, *start;
} peers[PEERS] = {
    {"mkdir -p '%s/nchan' && for m in /usr/lib /usr/lib64 /usr/local/libexec; do\n"
     "test -f $m/nginx/modules/ngx_nchan_module.so && ln -sfn $m/nginx/modules '%s/nchan/modules'"
     " && nginx -v 2>&1 | sed 's/.*nginx/nginx/; s/$/ with nchan/'\ndone",
     "exec nginx -e stderr -p '%s/nchan' -c nginx.conf"},
    {"NODE_PATH='%s/node/node_modules' node -p '`ws ${require(\"ws/package.json\").version}, "
     "node ${process.version}`' 2>/dev/null",
     "NODE_PATH='%s/node/node_modules' exec node test/peer_ws.js"},
    {"'%s/peer_lws' --version 2>/dev/null", "exec '%s/peer_lws'"},
};

/* Which of them are here. Programs of the system's folders are found without those in the PATH. */
static void peers_find(struct bench *b, const char *program)
{
    char path[2048], command[1024];
    const char *old = getenv("PATH"), *slash = strrchr(program, '/');
    snprintf(b->folder, sizeof b->folder, "%.*s", slash ? (int)(slash - program) : 1,
             slash ? program : ".");
    snprintf(path, sizeof path, "%s:/usr/sbin:/usr/local/sbin", old ? old : "/usr/bin:/bin");
    setenv("PATH", path, 1);
    for (size_t i = 0; i < PEERS; i++) {
        snprintf(command, sizeof command, peers[i].version, b->folder, b->folder);
        FILE *f = popen(command, "r");
        if (f != NULL && fgets(b->version[i], sizeof b->version[i], f) == NULL)
            b->version[i][0] = '\0';
        if (f != NULL)
            pclose(f);
        b->version[i][strcspn(b->version[i], "\n")] = '\0';
        if (!b->csv)
            printf("%s: %s\n", dialects[NCHAN + i].name,
                   b->version[i][0] ? b->version[i] : "not installed");
    }
}

/* One process, so that its CPU and memory are the program's, as with the others. Messages are not
 * kept, which is what costs it the least. A session hears its token's channel and everybody's. */
static int nchan_configure(const struct bench *b, const struct site *s, size_t capacity)
{
    char path[300];
    snprintf(path, sizeof path, "%s/nchan/nginx.conf", b->folder);
    FILE *f = fopen(path, "w");
    if (f == NULL)
        return -1;
    fprintf(f, "daemon off;\nmaster_process off;\npid nginx.pid;\n"
               "load_module modules/ngx_nchan_module.so;\n"
               "events { worker_connections %zu; }\nhttp {\n"
               "access_log off;\nkeepalive_requests 1000000000;\nkeepalive_timeout 1h;\n"
               "client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n"
               "uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n"
               "nchan_shared_memory_size 512m;\nnchan_message_buffer_length 0;\n",
            capacity + capacity / 8 + SPARE_FDS);       /* with few left it closes idle ones */
    fprintf(f, "server { listen 127.0.0.1:%d; location / { return 404; }\n"
               "location ~ ^" PATH "(.+)$ {\n"
               "nchan_subscriber websocket;\nnchan_channel_id t$1 t;\n} }\n"
               "server { listen 127.0.0.1:%d; location ~ ^" PATH "(.*)$ {\n"
               "nchan_publisher http;\nnchan_channel_id t$1;\n} }\n}\n",
            s->clients_port, s->push_port);
    return fclose(f) == 0 ? 0 : -1;
}

static int site_start_peer(const struct bench *b, struct site *s, size_t capacity)
{
    char shell[] = "/bin/sh", c[] = "-c", command[1024];
    char *argv[] = {shell, c, command, NULL};
    snprintf(command, sizeof command, peers[s->what - NCHAN].start, b->folder);
    if (s->what == NCHAN) {                             /* it takes no port 0 */
        int clients = socket_listen(&s->clients_port), push = socket_listen(&s->push_port);
        close(clients);
        close(push);
        if (nchan_configure(b, s, capacity) != 0)
            return -1;
    }
    return site_exec(b, s, argv);
}

static int site_start_load(const struct bench *b, struct site *s)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
        return -1;
    fcntl(pair[0], F_SETFD, FD_CLOEXEC);
    fcntl(pair[1], F_SETFD, FD_CLOEXEC);
    s->load = fork();
    if (s->load == 0) {
        struct load *l = calloc(1, sizeof *l);
        machine_settle(b->load_core);
        if (l == NULL)
            _exit(1);
        close(pair[0]);
        l->plan = s->plan;
        l->twin = s->what == TWIN;
        l->dialect = &dialects[s->what];
        l->pid = s->pid;
        l->clients_port = s->clients_port;
        l->push_port = s->push_port ? s->push_port : s->clients_port;
        load_serve(l, pair[1]);
        _exit(0);
    }
    close(pair[1]);
    s->control = pair[0];
    return s->load > 0 ? 0 : -1;
}

static void site_begin(struct site *s, const struct job *j)
{
    if (write(s->control, j, sizeof *j) != (ssize_t)sizeof *j)
        snprintf(s->why, sizeof s->why, "the load is gone");
}

static int site_finish(struct site *s, struct sample *sample)
{
    struct pollfd p = {s->control, POLLIN, 0};
    memset(sample, 0, sizeof *sample);
    if (poll(&p, 1, JOB_MS) <= 0 ||
        read(s->control, sample, sizeof *sample) != (ssize_t)sizeof *sample) {
        sample->ok = 0;
        snprintf(sample->why, sizeof sample->why, "the load is gone, or takes for ever");
    }
    if (!sample->ok)
        snprintf(s->why, sizeof s->why, "%s: %s%s", dialects[s->what].name, sample->why,
                 process_lives(s->pid) ? "" : " (it has died)");
    return sample->ok ? 0 : -1;
}

static int site_run(struct site *s, const struct job *j, struct sample *sample)
{
    site_begin(s, j);
    return site_finish(s, sample);
}

/* Everything up to SESSIONS sessions that are open. The site is to be closed even after -1. */
static int site_open(const struct bench *b, struct site *s, enum what what, size_t sessions,
                     size_t capacity, int pings)
{
    struct job connect_all = {0};
    struct sample sample;
    int r;
    memset(s, 0, sizeof *s);
    s->what = what;
    s->control = s->out = -1;
    s->plan = mmap(NULL, sizeof *s->plan, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                   -1, 0);
    if (s->plan == MAP_FAILED)
        return -1;
    s->plan->live = TWIN_FIXED + 1;
    r = what == TWIN ? site_start_twin(b, s)
        : what == ECHO ? site_start_echo(b, s, capacity)
        : what >= NCHAN ? site_start_peer(b, s, capacity)
                        : site_start_server(b, s, capacity, pings);
    if (r != 0 || site_start_load(b, s) != 0)
        return -1;
    s->resident = process_resident(s->pid);
    connect_all.kind = JOB_CONNECT;
    connect_all.rounds = sessions;
    connect_all.pings = pings;
    return site_run(s, &connect_all, &sample);
}

static void site_close(struct site *s)
{
    struct job quit = {0};
    int status;
    quit.kind = JOB_QUIT;
    if (s->load > 0) {
        site_begin(s, &quit);
        process_reap(s->load, PATIENCE_MS);
    }
    if (s->pid > 0) {
        kill(s->pid, s->what == SERVER || s->what == ECHO ? SIGTERM : SIGKILL);
        status = process_reap(s->pid, PATIENCE_MS);
        if (s->what == SERVER && (!WIFEXITED(status) || WEXITSTATUS(status) != 0))
            fprintf(stderr, "bench: the server ended with status 0x%x\n", (unsigned)status);
    }
    if (s->control >= 0)
        close(s->control);
    if (s->out >= 0)
        close(s->out);
    if (s->plan != NULL && s->plan != MAP_FAILED)
        munmap(s->plan, sizeof *s->plan);
}

/* ===== A pair: server and twin, in turns; and the peers ===== */

struct pair {
    struct site ours, bare, peer[PEERS];
    int there[PEERS];                   /* that peer is open and has not failed */
};

struct runs {
    struct sample ours[MAX_RUNS], bare[MAX_RUNS], peer[PEERS][MAX_RUNS];
    size_t n, peer_n[PEERS];
    const char *peer_why[PEERS];        /* it failed */
    int failed;
};

/* The twin first: the server's load is then at its job, and answers pings, before they are due. */
static int pair_open(struct bench *b, struct pair *p, enum what what, size_t sessions,
                     size_t capacity, int pings)
{
    memset(p->there, 0, sizeof p->there);
    memset(&p->ours, 0, sizeof p->ours);
    p->ours.control = p->ours.out = -1;
    int r = site_open(b, &p->bare, TWIN, sessions, capacity, pings);
    return r == 0 ? site_open(b, &p->ours, b->self_check ? TWIN : what, sessions, capacity, pings)
                  : r;
}

static const char *pair_why(const struct pair *p)
{
    return p->ours.why[0] ? p->ours.why : p->bare.why[0] ? p->bare.why : "could not start";
}

static void pair_close_peer(struct pair *p, size_t i)
{
    if (p->there[i])
        site_close(&p->peer[i]);
    p->there[i] = 0;
}

static void pair_close(struct pair *p)
{
    site_close(&p->ours);
    site_close(&p->bare);
    for (size_t i = 0; i < PEERS; i++)
        pair_close_peer(p, i);
}

/* RUNS times the job on both at once: for jobs that mostly wait. */
static void pair_run_together(struct pair *p, const struct job *j, size_t runs, struct runs *r)
{
    memset(r, 0, sizeof *r);
    for (; r->n < runs && !r->failed; r->n++) {
        site_begin(&p->ours, j);
        site_begin(&p->bare, j);
        r->failed |= site_finish(&p->ours, &r->ours[r->n]) != 0;
        r->failed |= site_finish(&p->bare, &r->bare[r->n]) != 0;
    }
}

/* A turn of a peer's. One that fails takes no further part in what the pair does. */
static void pair_run_peer(struct pair *p, const struct job *j, struct runs *r, size_t i)
{
    if (!p->there[i])
        return;
    if (site_run(&p->peer[i], j, &r->peer[i][r->peer_n[i]]) == 0) {
        r->peer_n[i]++;
    } else {
        r->peer_n[i] = 0;
        r->peer_why[i] = p->peer[i].why;
        pair_close_peer(p, i);
    }
}

/* A peer whose code is compiled as it runs is given time for that. */
static void pair_warm_peer(struct pair *p, const struct job *j, struct runs *r, size_t i)
{
    struct job warm = *j;
    warm.rounds = 10 * j->rounds;
    warm.seconds = 2;
    if (j->kind == JOB_PIPELINE)
        warm.rounds = j->rounds;                        /* it knows no time */
    pair_run_peer(p, &warm, r, i);
    r->peer_n[i] = 0;
}

/* All the runs of the job, one after the other. The shorter the turns, the more alike is the
 * machine for both: so each run is several. */
static void pair_run(const struct bench *b, struct pair *p, const struct job *j, struct runs *r)
{
    struct job timed = *j;
    size_t turns = b->quick ? TURNS_QUICK : TURNS;
    memset(r, 0, sizeof *r);
    timed.seconds = b->quick ? 0.2 : 0.6;
    for (size_t i = 0; i < PEERS; i++)
        pair_warm_peer(p, &timed, r, i);
    j = &timed;
    for (; r->n < b->runs * turns && !r->failed; r->n++) {
        r->failed |= site_run(&p->ours, j, &r->ours[r->n]) != 0;
        r->failed |= !r->failed && site_run(&p->bare, j, &r->bare[r->n]) != 0;
        for (size_t i = 0; i < PEERS && r->n % turns == 0 && !r->failed; i++)
            pair_run_peer(p, j, r, i);
    }
}

/* ===== The table ===== */

enum of { NO_BAR, RATIO, VALUE, EXCESS };               /* EXCESS: over the twin's figure */

struct bar {
    enum of of;
    double final, first;                /* first 0: a first version is not judged by this row */
};

typedef double (*figure)(const struct sample *s);

static double cpu_us(const struct sample *s)
{
    return s->cpu_ns && s->count ? (double)s->cpu_ns / (double)s->count / 1e3 : NAN;
}

static double cpu_percent(const struct sample *s)
{
    return process_cpu_ns(getpid()) ? (double)s->cpu_ns / (double)s->wall_ns * 100 : NAN;
}

static double wakeups(const struct sample *s)
{
    return s->wakeups / ((double)s->wall_ns / 1e9);
}

static double p50_us(const struct sample *s) { return s->p50_us; }
static double p99_us(const struct sample *s) { return s->p99_us; }
static double p999_us(const struct sample *s) { return s->p999_us; }
static double p50_ms(const struct sample *s) { return s->p50_us / 1e3; }
static double max_ms(const struct sample *s) { return s->max_us / 1e3; }

static void table_head(struct bench *b)
{
    if (b->headed)
        return;
    b->headed = 1;
    if (b->csv)
        printf("row,unit,run,ours,bare");
    else
        printf("%-54s %-7s %9s %9s %7s %9s%s", "", "", b->self_check ? "bare" : "exportws",
               "bare", "ratio", "bar", b->peers ? "      " : "");
    for (size_t i = 0; i < PEERS && b->peers; i++)
        printf(b->csv ? ",%s" : " %8s", dialects[NCHAN + i].name);
    printf("\n");
}

/* A number in as many characters as tell something. */
static const char *number(double v, char text[32])
{
    int whole = v > -1e15 && v < 1e15 && v == (double)(int64_t)v;
    if (is_none(v))
        return "-";
    snprintf(text, 32, whole || v >= 10000 ? "%.0f" : v < 10 ? "%.2f" : "%.1f", v);
    return text;
}

/* The word for a row and, in AT, what it had to be. Remembers what was over. */
static const char *verdict(struct bench *b, double value, double ratio, double excess,
                           const struct bar *bar, char at[32])
{
    double limit = b->first_bars ? bar->first : bar->final;
    double v = bar->of == RATIO ? ratio : bar->of == EXCESS ? excess : value;
    char digits[32];
    at[0] = '\0';
    if (b->self_check) {
        if (bar->of != RATIO || is_none(ratio))
            return "";
        snprintf(at, 32, "0.9-1.1");
        b->over |= ratio < 0.9 || ratio > 1.1;
        return ratio < 0.9 || ratio > 1.1 ? "OFF" : "ok";
    }
    if (bar->of == NO_BAR || (b->first_bars && limit <= 0) || is_none(v))
        return "";
    snprintf(at, 32, bar->of == RATIO ? "<= %s x" : bar->of == EXCESS ? "<= +%s" : "<= %s",
             number(limit, digits));
    b->over |= v > limit;
    return v > limit ? "OVER" : "ok";
}

/* The peers' figures in a row; NULL for a row they have no part in. */
struct others {
    double v[PEERS][MAX_RUNS];
    size_t n[PEERS];
};

/* Their columns: the run's figures, or medians. Ends the line. */
static void table_others(const struct bench *b, const struct others *o, size_t run)
{
    char digits[32];
    for (size_t i = 0; i < PEERS && b->peers; i++) {
        size_t n = o ? o->n[i] : 0;
        if (b->csv)
            printf(",%.6g", run < n ? o->v[i][run] : NAN);
        else
            printf(" %8s", n > 0 ? number(median(o->v[i], n), digits) : "-");
    }
    printf("\n");
}

static void table_csv(const struct bench *b, const char *what, const char *unit,
                      const double *ours, const double *bare, size_t n, const struct others *o)
{
    for (size_t i = 0; i < n; i++) {
        printf("\"%s\",%s,%zu,%.6g,%.6g", what, unit, i, ours[i], bare ? bare[i] : NAN);
        table_others(b, o, i);
    }
}

static void table_line(struct bench *b, const char *what, const char *unit, const double *ours,
                       const double *bare, size_t n, struct bar bar, const struct others *o)
{
    double ratios[MAX_RUNS], excesses[MAX_RUNS], ratio = NAN;
    char a[32], c[32], d[32], at[32];
    table_head(b);
    if (b->csv)
        table_csv(b, what, unit, ours, bare, n, o);
    if (bare != NULL && n > 0) {
        for (size_t i = 0; i < n; i++) {
            ratios[i] = ours[i] / bare[i];
            excesses[i] = ours[i] - bare[i];
        }
        ratio = median(ratios, n);
    }
    if (!(ratio - ratio <= 0))                          /* by 0 */
        ratio = NAN;
    double excess = bare ? median(excesses, n) : NAN;
    const char *word = verdict(b, median(ours, n), ratio, excess, &bar, at);
    snprintf(d, sizeof d, "%.2f", ratio);
    if (!b->csv) {
        printf("%-54s %-7s %9s %9s %7s %9s  %-*s", what, unit, number(median(ours, n), a),
               bare ? number(median(bare, n), c) : "-", is_none(ratio) ? "-" : d, at,
               b->peers ? 4 : 0, word);
        table_others(b, o, 0);
    }
    fflush(stdout);
}

static void table_row(struct bench *b, const char *what, const char *unit, const double *ours,
                      const double *bare, size_t n, struct bar bar)
{
    table_line(b, what, unit, ours, bare, n, bar, NULL);
}

static void table_failed(struct bench *b, const char *what, const char *why)
{
    char line[200];
    size_t n = 0;
    for (; why[n] != '\0' && n + 1 < sizeof line; n++)
        line[n] = why[n] < ' ' ? ' ' : why[n];
    line[n] = '\0';
    table_head(b);
    b->failed = 1;
    printf(b->csv ? "\"%s\",\"FAILED %s\",,,\n" : "%-54s FAILED: %s\n", what, line);
    fflush(stdout);
}

static void table_skip(struct bench *b, const char *what, const char *why)
{
    table_head(b);
    if (!b->csv)
        printf("%-54s skipped: %s\n", what, why);
    fflush(stdout);
}

/* One figure of all the runs as a row. */
static void table_figure(struct bench *b, const char *what, const char *unit, const struct runs *r,
                         figure f, struct bar bar)
{
    double ours[MAX_RUNS], bare[MAX_RUNS];
    struct others others;
    for (size_t i = 0; i < r->n; i++) {
        ours[i] = f(&r->ours[i]);
        bare[i] = f(&r->bare[i]);
    }
    for (size_t i = 0; i < PEERS; i++) {
        others.n[i] = r->peer_n[i];
        for (size_t k = 0; k < r->peer_n[i]; k++)
            others.v[i][k] = f(&r->peer[i][k]);
    }
    table_line(b, what, unit, ours, bare, r->n, bar, &others);
    for (size_t i = 0; i < PEERS; i++)
        if (r->peer_why[i] != NULL)
            table_failed(b, "  (one of the peers)", r->peer_why[i]);
}

static double runs_median(const struct sample *s, size_t n, figure f)
{
    double v[MAX_RUNS];
    for (size_t i = 0; i < n; i++)
        v[i] = f(&s[i]);
    return median(v, n);
}

/* ===== Rows ===== */

static const struct bar no_bar = {NO_BAR, 0, 0};

/* Opens a pair, or says why the row is not there. */
static int row_open(struct bench *b, struct pair *p, enum what what, const char *name,
                    size_t sessions, int pings)
{
    char why[160];
    if (sessions + SPARE_FDS > b->descriptors) {
        snprintf(why, sizeof why, "%zu sessions need a hard descriptor limit of %zu (it is %zu)",
                 sessions, sessions + SPARE_FDS, b->descriptors);
        table_skip(b, name, why);
        return -1;
    }
    if (pair_open(b, p, what, sessions, sessions + 64, pings) == 0)
        return 0;
    table_failed(b, name, pair_why(p));
    pair_close(p);
    return -1;
}

/* Opens the peers, too, as many of them as are here. */
static void row_peers(struct bench *b, struct pair *p, size_t sessions)
{
    for (size_t i = 0; i < PEERS && b->peers && !b->self_check; i++) {
        if (b->version[i][0] == '\0')
            continue;
        p->there[i] = 1;
        if (site_open(b, &p->peer[i], (enum what)(NCHAN + i), sessions, sessions + 64,
                      0) != 0) {
            table_failed(b, dialects[NCHAN + i].name,
                         p->peer[i].why[0] ? p->peer[i].why : "could not start");
            pair_close_peer(p, i);
        }
    }
}

static void rows_broadcast_of(struct bench *b, struct pair *p, size_t bytes, size_t sessions)
{
    static struct runs r;
    char name[100];
    struct job j = {0};
    struct bar bar = {RATIO, 1.1, sessions == 1000 && bytes == 64 ? 1.3 : 0};
    j.kind = JOB_BROADCAST;
    j.bytes = bytes;
    snprintf(name, sizeof name, "broadcast of %zu bytes to %zu: CPU a delivery", bytes, sessions);
    for (j.attentive = 0; j.attentive < 2; j.attentive++) {
        j.rounds = (b->quick ? 10000 : j.attentive ? 10000 : 30000) / sessions;
        pair_run(b, p, &j, &r);
        if (r.failed)
            table_failed(b, name, pair_why(p));
        else if (!j.attentive)
            table_figure(b, name, "us", &r, cpu_us, bar);
        else
            table_figure(b, "  POST to last receiver, median", "ms", &r, p50_ms, no_bar);
        if (r.failed)
            return;
    }
}

static void rows_broadcast_to(struct bench *b, size_t sessions)
{
    static struct pair p;
    char name[100];
    snprintf(name, sizeof name, "broadcast to %zu", sessions);
    if (row_open(b, &p, SERVER, name, sessions, 0) != 0)
        return;
    row_peers(b, &p, sessions);
    rows_broadcast_of(b, &p, 64, sessions);
    rows_broadcast_of(b, &p, 1024, sessions);
    pair_close(&p);
}

static void rows_broadcast(struct bench *b)
{
    rows_broadcast_to(b, 1000);
    rows_broadcast_to(b, 10000);
}

/* What the picture of growth is drawn from: [0] exportws, [1] bare, then the peers. */
enum { MAX_POINTS = 8, SIDES = 2 + PEERS };

struct growth {
    size_t count, sessions[MAX_POINTS];
    double cpu[SIDES][MAX_POINTS], p50[SIDES][MAX_POINTS], p99[SIDES][MAX_POINTS];
};

static void growth_copy(struct growth *g, size_t to, size_t from)
{
    g->sessions[to] = g->sessions[from];
    for (size_t i = 0; i < SIDES; i++) {
        g->cpu[i][to] = g->cpu[i][from];
        g->p50[i][to] = g->p50[i][from];
        g->p99[i][to] = g->p99[i][from];
    }
}

/* In order of sessions, whatever order they were measured in. */
static void growth_add(struct growth *g, size_t sessions, const struct runs *r)
{
    size_t at = g->count++;
    for (; at > 0 && g->sessions[at - 1] > sessions; at--)
        growth_copy(g, at, at - 1);
    g->sessions[at] = sessions;
    for (size_t i = 0; i < SIDES; i++) {
        const struct sample *side = i == 0 ? r->ours : i == 1 ? r->bare : r->peer[i - 2];
        size_t n = i < 2 ? r->n : r->peer_n[i - 2];
        g->cpu[i][at] = runs_median(side, n, cpu_us);
        g->p50[i][at] = runs_median(side, n, p50_us);
        g->p99[i][at] = runs_median(side, n, p99_us);
    }
}

static void rows_push_at(struct bench *b, size_t sessions, struct growth *g)
{
    static struct pair p;
    static struct runs r;
    char name[100];
    struct job j = {0};
    struct bar bar = {sessions == 10 || sessions == 1000 || sessions == 10000 ? RATIO : NO_BAR,
                      sessions == 10000 ? 1.25 : 1.15, 0};
    snprintf(name, sizeof name, "push to one of %zu: CPU a push", sessions);
    if (row_open(b, &p, SERVER, name, sessions, 0) != 0)
        return;
    row_peers(b, &p, sessions);
    j.kind = JOB_PUSH;
    j.bytes = 64;
    j.rounds = b->quick ? 1000 : 4000;
    pair_run(b, &p, &j, &r);
    if (r.failed) {
        table_failed(b, name, pair_why(&p));
    } else {
        table_figure(b, name, "us", &r, cpu_us, bar);
        table_figure(b, "  POST to receipt, p50", "us", &r, p50_us, no_bar);
        table_figure(b, "  POST to receipt, p99", "us", &r, p99_us, no_bar);
        growth_add(g, sessions, &r);
    }
    pair_close(&p);
}

static int growth_draw(const struct growth *g, const char *path);

static void rows_push(struct bench *b)
{
    static const size_t sessions[] = {10, 1000, 10000, 100, 3000, 19000};
    static struct growth g;
    size_t first = MAX_POINTS;
    for (size_t i = 0; i < (b->quick ? 3 : 6); i++)
        rows_push_at(b, sessions[i], &g);
    for (size_t i = 0; i < g.count; i++) {
        if (g.sessions[i] == 10)
            first = i;
        if (g.sessions[i] == 10000 && first < MAX_POINTS) {
            struct bar bar = {VALUE, 1.5, 0};
            double ours = g.p99[0][i] / g.p99[0][first], bare = g.p99[1][i] / g.p99[1][first];
            table_row(b, "p99 of a push among 10000 / among 10", "times", &ours, &bare, 1,
                      b->self_check ? no_bar : bar);
        }
    }
    if (g.count > 1 && growth_draw(&g, b->svg) == 0 && !b->csv)
        printf("  growth of a push drawn to %s\n", b->svg);
}

static void rows_paced(struct bench *b)
{
    static const size_t sessions[] = {10, 10000};
    static struct pair p;
    static struct runs r;
    for (size_t i = 0; i < 2; i++) {
        char name[100];
        struct job j = {0};
        snprintf(name, sizeof name, "push to one of %zu, 200 a second: CPU a push", sessions[i]);
        if (row_open(b, &p, SERVER, name, sessions[i], 0) != 0)
            continue;
        j.kind = JOB_PUSH;
        j.bytes = 64;
        j.gap_ms = 5;
        j.rounds = b->quick ? 100 : 300;
        pair_run_together(&p, &j, b->runs, &r);
        if (r.failed) {
            table_failed(b, name, pair_why(&p));
        } else {
            table_figure(b, name, "us", &r, cpu_us, no_bar);
            table_figure(b, "  POST to receipt, p50", "us", &r, p50_us, no_bar);
            table_figure(b, "  POST to receipt, p99", "us", &r, p99_us, no_bar);
        }
        pair_close(&p);
    }
}

static void rows_pipeline(struct bench *b)
{
    static struct pair p;
    static struct runs r;
    const char *name = "push, 4 connections x 16 in flight: CPU a push";
    struct job j = {0};
    struct bar bar = {RATIO, 1.5, 0};
    if (row_open(b, &p, SERVER, name, 1000, 0) != 0)
        return;
    row_peers(b, &p, 1000);
    pair_close_peer(&p, LWS - NCHAN);                   /* 4.1 stalls on pipelined POSTs */
    j.kind = JOB_PIPELINE;
    j.bytes = 64;
    j.rounds = b->quick ? 1000 : 4000;
    pair_run(b, &p, &j, &r);
    if (r.failed)
        table_failed(b, name, pair_why(&p));
    else
        table_figure(b, name, "us", &r, cpu_us, bar);
    pair_close(&p);
}

static void rows_idle_at(struct bench *b, size_t sessions, double percent)
{
    static struct pair p;
    static struct runs r;
    char name[100];
    struct job j = {0};
    struct bar bar = {VALUE, percent, 0};
    snprintf(name, sizeof name, "%zu idle, HEART-BEAT every 30 s: of a core", sessions);
    if (row_open(b, &p, SERVER, name, sessions, 1) != 0)
        return;
    j.kind = JOB_IDLE;
    j.beats = 1;
    j.seconds = b->quick ? 1 : BEAT_EVERY_S + 2;
    pair_run_together(&p, &j, 1, &r);                   /* until pings come as they do for ever */
    j.seconds = b->quick ? 1 : 4;
    if (!r.failed)
        pair_run_together(&p, &j, b->runs, &r);
    if (r.failed) {
        table_failed(b, name, pair_why(&p));
    } else {
        table_figure(b, name, "%", &r, cpu_percent, bar);
        table_figure(b, "  CPU a heartbeat (the server pings as well)", "us", &r, cpu_us, no_bar);
    }
    pair_close(&p);
}

/* Pings are put off (--ping 3600): what is left is what the server does for nothing. */
static void rows_silent_at(struct bench *b, size_t sessions)
{
    static struct pair p;
    static struct runs r;
    char name[100];
    struct job j = {0};
    struct bar asleep = {VALUE, 1, 0};
    snprintf(name, sizeof name, "%zu silent, no ping due: of a core", sessions);
    if (row_open(b, &p, SERVER, name, sessions, 0) != 0)
        return;
    j.kind = JOB_IDLE;
    j.seconds = b->quick ? 1 : 2;
    pair_run_together(&p, &j, 1, &r);
    j.seconds = b->quick ? 0.5 : 2;
    if (!r.failed)
        pair_run_together(&p, &j, b->runs, &r);
    if (r.failed) {
        table_failed(b, name, pair_why(&p));
    } else {
        table_figure(b, name, "%", &r, cpu_percent, no_bar);
        table_figure(b, "  wake-ups a second", "", &r, wakeups, asleep);
    }
    pair_close(&p);
}

static void rows_idle(struct bench *b)
{
    rows_idle_at(b, 10000, 3);
    rows_silent_at(b, 10000);
    if (b->quick)
        return;
    rows_idle_at(b, 19000, 5);
    rows_silent_at(b, 19000);
}

static void rows_first_at(struct bench *b, size_t sessions, double bar_ms)
{
    static struct pair p;
    static struct runs r;
    char name[100];
    struct bar bar = {VALUE, bar_ms, 0};
    snprintf(name, sizeof name, "first message of %zu after silence", sessions);
    if (row_open(b, &p, SERVER, name, sessions, 0) != 0)
        return;
    for (int pushes = 0; pushes < 2; pushes++) {
        struct job j = {0};
        j.kind = JOB_FIRST;
        j.pushes = pushes;
        j.gap_ms = b->quick ? 100 : 300;
        j.rounds = pushes ? 2 : b->quick ? 3 : 6;
        if (pushes)
            pair_run(b, &p, &j, &r);
        else
            pair_run_together(&p, &j, b->runs, &r);
        snprintf(name, sizeof name, "first message of %zu, %s: worst", sessions,
                 pushes ? "while pushes go on" : "all silent");
        if (r.failed) {
            table_failed(b, name, pair_why(&p));
            break;
        }
        table_figure(b, name, "ms", &r, max_ms, bar);
        table_figure(b, "  median", "ms", &r, p50_ms, no_bar);
    }
    pair_close(&p);
}

static void rows_first(struct bench *b)
{
    rows_first_at(b, 1000, 20);
    rows_first_at(b, 10000, 300);
}

/* Nobody busy waits for more than 1 ms because of the idle: judged by one in a thousand, and by
 * what that is more than the twin's, since the machine has pauses of its own; see both worst. */
static void rows_busy_at(struct bench *b, size_t sessions)
{
    static struct pair p;
    static struct runs r;
    char name[100];
    struct job j = {0};
    struct bar stall = {EXCESS, 1000, 0}, cpu = {RATIO, 1.25, 0};
    snprintf(name, sizeof name, "100 busy of %zu: ping to pong, p99.9", sessions);
    if (row_open(b, &p, SERVER, name, sessions, 0) != 0)
        return;
    row_peers(b, &p, sessions);
    j.kind = JOB_SERIAL;
    j.rounds = b->quick ? 3000 : 8000;
    pair_run(b, &p, &j, &r);
    if (r.failed) {
        table_failed(b, name, pair_why(&p));
    } else {
        table_figure(b, name, "us", &r, p999_us, stall);
        table_figure(b, "  p50", "us", &r, p50_us, no_bar);
        table_figure(b, "  worst", "ms", &r, max_ms, no_bar);
        j.kind = JOB_ECHO;
        j.opcode = 9;
        j.bytes = 64;
        pair_run(b, &p, &j, &r);
        snprintf(name, sizeof name, "ping of 64 bytes, 100 at once of %zu: CPU a pong",
                 sessions);
        if (r.failed)
            table_failed(b, name, pair_why(&p));
        else
            table_figure(b, name, "us", &r, cpu_us, cpu);
    }
    pair_close(&p);
}

static void rows_busy(struct bench *b)
{
    rows_busy_at(b, BUSY);
    rows_busy_at(b, 10000);
}

/* What --memory says for a capacity; NAN when it says nothing. */
static double memory_asked(const struct bench *b, size_t capacity)
{
    char command[700], line[100] = "";
    snprintf(command, sizeof command, "'%s' --capacity %zu --memory", b->server, capacity);
    FILE *f = popen(command, "r");
    if (f == NULL)
        return NAN;
    char *got = fgets(line, sizeof line, f);
    return pclose(f) == 0 && got != NULL ? strtod(line, NULL) : NAN;
}

static double site_grown(const struct site *s, size_t sessions)
{
    return (process_resident(s->pid) - s->resident) / (double)sessions;
}

static const struct others *memory_of_peers(struct bench *b, struct pair *p, size_t sessions)
{
    static struct others others;
    row_peers(b, p, sessions);
    for (size_t i = 0; i < PEERS; i++) {
        others.n[i] = (size_t)p->there[i];
        others.v[i][0] = p->there[i] ? site_grown(&p->peer[i], sessions) : NAN;
        pair_close_peer(p, i);
    }
    return &others;
}

static void rows_memory(struct bench *b)
{
    static struct pair p;
    struct bar bytes = {VALUE, 224, 256}, extra = {VALUE, 1048576, 1048576}, flat = {VALUE, 0, 0};
    size_t n = b->quick || b->descriptors < 19000 + SPARE_FDS ? 10000 : 19000;
    double v = (memory_asked(b, 11000) - memory_asked(b, 1000)) / 10000, bare;
    struct job refill = {0};
    struct sample sample;
    char name[100];
    if (b->self_check || n + SPARE_FDS > b->descriptors) {
        table_skip(b, "memory", b->self_check ? "nothing to compare" : "too few descriptors");
        return;
    }
    table_row(b, "memory a session (--memory, 11000 less 1000)", "bytes", &v, NULL, 1, bytes);
    snprintf(name, sizeof name, "resident with all %zu slots full", n);
    if (pair_open(b, &p, SERVER, n, n, 0) != 0) {
        table_failed(b, name, pair_why(&p));
        pair_close(&p);
        return;
    }
    double full = process_resident(p.ours.pid);
    table_row(b, name, "bytes", &full, NULL, 1, no_bar);
    v = full - p.ours.memory;
    table_row(b, "  more than the ready line says", "bytes", &v, NULL, 1, extra);
    v = site_grown(&p.ours, n), bare = site_grown(&p.bare, n);
    table_line(b, "  grown by, a session", "bytes", &v, &bare, 1, no_bar,
               memory_of_peers(b, &p, n));
    refill.kind = JOB_REFILL;
    refill.rounds = n;
    int r = site_run(&p.ours, &refill, &sample);        /* the first time, code gets resident */
    full = process_resident(p.ours.pid);
    if (r != 0 || site_run(&p.ours, &refill, &sample) != 0) {
        table_failed(b, "  all leave, all slots filled again", pair_why(&p));
    } else {
        v = process_resident(p.ours.pid) - full;
        table_row(b, "  all leave, all slots filled again: grown by", "bytes", &v, NULL, 1, flat);
    }
    pair_close(&p);
}

static void rows_cycle(struct bench *b)
{
    static struct pair p;
    static struct runs r;
    struct bar bar = {RATIO, 1.3, 0};
    if (row_open(b, &p, SERVER, "connect, upgrade, leave", 10, 0) != 0)
        return;
    row_peers(b, &p, 10);
    for (int polite = 0; polite < 2; polite++) {
        struct job j = {0};
        const char *name = polite ? "connect, upgrade, leave by close frame: CPU a cycle"
                                  : "connect, upgrade, leave by FIN: CPU a cycle";
        j.kind = JOB_CYCLE;
        j.polite = polite;
        j.rounds = b->quick ? 400 : 1500;
        pair_run(b, &p, &j, &r);
        if (r.failed) {
            table_failed(b, name, pair_why(&p));
            break;
        }
        table_figure(b, name, "us", &r, cpu_us, bar);
    }
    pair_close(&p);
}

static void rows_soak(struct bench *b)
{
    static struct site s;
    struct job j = {0};
    struct sample sample;
    struct bar flat = {VALUE, 0, 0};
    size_t warm = b->quick ? 1 : 10, batches = b->quick ? 5 : 100;
    int r = site_open(b, &s, b->self_check ? TWIN : SERVER, 10, 100, 0);
    j.kind = JOB_CYCLE;
    j.seconds = 60;
    j.rounds = 10000;
    for (size_t i = 0; i < warm && r == 0; i++)
        r = site_run(&s, &j, &sample);
    if (r == 0 && !b->self_check)
        sleep_ms(HEAD_MS + 1000);   /* our silent push connection is refused: the last first time */
    double before = process_resident(s.pid);
    for (size_t i = 0; i < batches && r == 0; i++)
        r = site_run(&s, &j, &sample);
    double grown = process_resident(s.pid) - before;
    char name[100];
    snprintf(name, sizeof name, "%zu cycles after the first %zu: grown by",
             batches * j.rounds, warm * j.rounds);
    if (r != 0)
        table_failed(b, name, s.why);
    else
        table_row(b, name, "bytes", &grown, NULL, 1, flat);
    site_close(&s);
}

static void rows_echo(struct bench *b)
{
    static const size_t sessions[] = {BUSY, 10000}, bytes[] = {64, 16384};
    static struct pair p;
    static struct runs r;
    if (b->echo == NULL || access(b->echo, X_OK) != 0) {
        table_skip(b, "echo", "no --echo PROGRAM");
        return;
    }
    for (size_t i = 0; i < 4; i++) {
        char name[100];
        struct job j = {0};
        struct bar cpu = {RATIO, 1.25, 0}, p99 = {RATIO, 2, 0};
        j.kind = JOB_ECHO;
        j.opcode = 2;
        j.bytes = bytes[i % 2];
        j.rounds = b->quick ? 2000 : 8000;
        snprintf(name, sizeof name, "echo of %zu bytes, 100 busy of %zu: CPU a message", j.bytes,
                 sessions[i / 2]);
        if (row_open(b, &p, ECHO, name, sessions[i / 2], 0) != 0)
            continue;
        row_peers(b, &p, sessions[i / 2]);
        pair_close_peer(&p, NCHAN - NCHAN);             /* its sessions only listen */
        pair_run(b, &p, &j, &r);
        if (r.failed) {
            table_failed(b, name, pair_why(&p));
        } else {
            table_figure(b, name, "us", &r, cpu_us, cpu);
            table_figure(b, "  there and back, p99", "us", &r, p99_us, p99);
        }
        pair_close(&p);
    }
}

static void rows_start(struct bench *b)
{
    struct bar bar = {VALUE, 5, 0};
    double ms[MAX_RUNS];
    if (b->self_check) {
        table_skip(b, "start", "nothing to compare");
        return;
    }
    for (size_t i = 0; i < b->runs; i++) {
        struct site s;
        memset(&s, 0, sizeof s);
        s.what = SERVER;
        s.control = s.out = -1;
        int r = site_start_server(b, &s, 10000, 1);
        ms[i] = s.start_ms;
        site_close(&s);
        if (r != 0) {
            table_failed(b, "start", s.why);
            return;
        }
    }
    table_row(b, "start to ready line, capacity 10000", "ms", ms, NULL, b->runs, bar);
}

static void rows_size(struct bench *b)
{
    struct bar bar = {VALUE, 96, 96};
    char path[] = "/tmp/bench-XXXXXX", command[700];
    struct stat st;
    int fd = mkstemp(path);
    if (fd < 0)
        return;
    close(fd);
    snprintf(command, sizeof command, "strip -o '%s' '%s' 2>/dev/null", path, b->server);
    if (system(command) == 0 && stat(path, &st) == 0) {
        double kib = (double)st.st_size / 1024;
        table_row(b, "the program, stripped", "KiB", &kib, NULL, 1, bar);
    } else {
        table_skip(b, "size", "strip did not work");
    }
    unlink(path);
}

/* ===== The picture: CPU and latency of a push against idle sessions ===== */

struct panel {
    double left, top, width, height, peak;
    const char *title;
};

/* log10 of V >= 1, without libm. */
static double decades(double v)
{
    double log = 0;
    for (; v >= 10; v /= 10)
        log++;
    for (double bit = 0.5; bit > 1e-6; bit /= 2) {
        v *= v;
        if (v >= 10) {
            v /= 10;
            log += bit;
        }
    }
    return log;
}

static double panel_x(const struct panel *p, double sessions)
{
    return p->left + p->width * (decades(sessions) - 1) / (decades(20000) - 1);
}

static double panel_y(const struct panel *p, double v)
{
    return p->top + p->height * (1 - v / p->peak);
}

/* The next of 1, 2, 5, 10 ... so that five steps cover V. */
static double panel_step(double v)
{
    double step = 0.1;
    for (int i = 0; step * 5 < v; i++)
        step *= i % 3 == 1 ? 2.5 : 2;
    return step;
}

static void panel_axes(FILE *f, const struct panel *p)
{
    static const double at[] = {10, 100, 1000, 10000};
    fprintf(f, "<text x='%.0f' y='%.0f' font-weight='bold'>%s</text>\n", p->left, p->top - 14,
            p->title);
    for (double v = 0; v <= p->peak * 1.001; v += p->peak / 5) {
        fprintf(f, "<line x1='%.0f' x2='%.0f' y1='%.1f' y2='%.1f' stroke='#ddd'/>\n", p->left,
                p->left + p->width, panel_y(p, v), panel_y(p, v));
        fprintf(f, "<text x='%.0f' y='%.1f' text-anchor='end'>%g</text>\n", p->left - 6,
                panel_y(p, v) + 4, v);
    }
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        fprintf(f, "<text x='%.1f' y='%.0f' text-anchor='middle'>%g</text>\n", panel_x(p, at[i]),
                p->top + p->height + 18, at[i]);
    fprintf(f, "<text x='%.0f' y='%.0f' text-anchor='middle'>idle sessions</text>\n",
            p->left + p->width / 2, p->top + p->height + 36);
}

/* One line, and its name beside the panel, in the so-manieth row. */
static void panel_line(FILE *f, const struct panel *p, const struct growth *g, const double *v,
                       const char *style, const char *name, unsigned row)
{
    double x = p->left + p->width + 8, y = p->top + 14 + 16 * row;
    fprintf(f, "<polyline fill='none' stroke-width='2' %s points='", style);
    for (size_t i = 0; i < g->count; i++)
        if (!is_none(v[i]))
            fprintf(f, "%.1f,%.1f ", panel_x(p, (double)g->sessions[i]), panel_y(p, v[i]));
    fprintf(f, "'/>\n<line x1='%.0f' x2='%.0f' y1='%.0f' y2='%.0f' stroke-width='2' %s/>\n", x,
            x + 20, y, y, style);
    fprintf(f, "<text x='%.0f' y='%.0f'>%s</text>\n", x + 26, y + 4, name);
}

static double growth_peak(const struct growth *g, double v[SIDES][MAX_POINTS])
{
    double peak = 0;
    for (size_t i = 0; i < SIDES * g->count; i++)
        if (v[i / g->count][i % g->count] > peak)
            peak = v[i / g->count][i % g->count];
    return 5 * panel_step(peak);
}

/* The peers' lines, from the so-manieth row on: those that were measured at all. */
static void panel_peers(FILE *f, const struct panel *p, const struct growth *g,
                        double v[SIDES][MAX_POINTS], const char *what, unsigned row)
{
    static const char *const colours[PEERS] = {"#2a2", "#c60", "#a3a"};
    for (size_t i = 0; i < PEERS; i++) {
        char style[40], name[40];
        if (is_none(v[2 + i][0]) && is_none(v[2 + i][g->count - 1]))
            continue;
        snprintf(style, sizeof style, "stroke='%s'", colours[i]);
        snprintf(name, sizeof name, "%s%s", dialects[NCHAN + i].name, what);
        panel_line(f, p, g, v[2 + i], style, name, row++);
    }
}

static int growth_draw(const struct growth *growth, const char *path)
{
    struct growth g = *growth;
    struct panel cpu = {60, 50, 380, 260, growth_peak(&g, g.cpu), "CPU a push, microseconds"};
    struct panel late = {580, 50, 380, 260, growth_peak(&g, g.p99),
                         "POST to receipt, microseconds"};
    FILE *f = fopen(path, "w");
    if (f == NULL)
        return -1;
    fprintf(f, "<svg xmlns='http://www.w3.org/2000/svg' width='1100' height='370' "
               "font-family='sans-serif' font-size='12'>\n"
               "<rect width='1100' height='370' fill='#fff'/>\n");
    panel_axes(f, &cpu);
    panel_line(f, &cpu, &g, g.cpu[1], "stroke='#888'", "bare", 1);
    panel_line(f, &cpu, &g, g.cpu[0], "stroke='#06c'", "exportws", 0);
    panel_peers(f, &cpu, &g, g.cpu, "", 2);
    panel_axes(f, &late);
    panel_line(f, &late, &g, g.p50[1], "stroke='#888'", "bare p50", 2);
    panel_line(f, &late, &g, g.p99[1], "stroke='#888' stroke-dasharray='5 3'", "bare p99", 3);
    panel_line(f, &late, &g, g.p50[0], "stroke='#06c'", "exportws p50", 0);
    panel_line(f, &late, &g, g.p99[0], "stroke='#06c' stroke-dasharray='5 3'", "exportws p99", 1);
    panel_peers(f, &late, &g, g.p50, " p50", 4);
    fprintf(f, "</svg>\n");
    return fclose(f) == 0 ? 0 : -1;
}

/* ===== Program ===== */

static const struct {
    const char *name;
    void (*run)(struct bench *b);
    int named_only;
} groups[] = {
    {"broadcast", rows_broadcast, 0}, {"push", rows_push, 0},     {"paced", rows_paced, 0},
    {"pipeline", rows_pipeline, 0},   {"idle", rows_idle, 0},     {"first", rows_first, 0},
    {"busy", rows_busy, 0},           {"memory", rows_memory, 0}, {"cycle", rows_cycle, 0},
    {"echo", rows_echo, 0},           {"start", rows_start, 0},   {"size", rows_size, 0},
    {"soak", rows_soak, 1},
};

static void usage(const char *what)
{
    fprintf(stderr, "bench: %s: not an option or row\n"
            "usage: bench [--server PROGRAM] [--echo PROGRAM] [--quick] [--runs N]\n"
            "             [--cores one|two] [--cpu N] [--bars first|final] [--svg FILE]\n"
            "             [--peers] [--self-check] [ROWS...]\nrows:", what);
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        fprintf(stderr, " %s", groups[i].name);
    fprintf(stderr, "\n");
    exit(2);
}

static int bench_group(struct bench *b, const char *name)
{
    size_t i = 0;
    while (i < sizeof groups / sizeof *groups && strcmp(groups[i].name, name) != 0)
        i++;
    if (i == sizeof groups / sizeof *groups)
        usage(name);
    b->wanted |= 1u << i;
    return 1;
}

static int one_of(const char *value, const char *a, const char *b)
{
    return strcmp(value, a) == 0 ? 0 : strcmp(value, b) == 0 ? 1 : -1;
}

/* Takes one option; answers how many arguments it was. */
static int bench_option(struct bench *b, const char *name, const char *value)
{
    if (strcmp(name, "--quick") == 0) {
        b->quick = 1;
        return 1;
    }
    if (strcmp(name, "--peers") == 0) {
        b->peers = 1;
        return 1;
    }
    if (strcmp(name, "--self-check") == 0) {
        b->self_check = 1;
        return 1;
    }
    if (value == NULL)
        usage(name);
    if (strcmp(name, "--server") == 0)
        b->server = value;
    else if (strcmp(name, "--echo") == 0)
        b->echo = value;
    else if (strcmp(name, "--svg") == 0)
        b->svg = value;
    else if (strcmp(name, "--runs") == 0 && atoi(value) >= 1 && atoi(value) <= MAX_RUNS / TURNS)
        b->runs = (size_t)atoi(value);
    else if (strcmp(name, "--cpu") == 0)
        b->server_core = b->load_core = atoi(value);
    else if (strcmp(name, "--cores") == 0 && one_of(value, "one", "two") >= 0)
        b->two_cores = one_of(value, "one", "two");
    else if (strcmp(name, "--bars") == 0 && one_of(value, "final", "first") >= 0)
        b->first_bars = one_of(value, "final", "first");
    else
        usage(name);
    return 2;
}

static void bench_say(const struct bench *b)
{
    if (b->csv)
        return;
    if (b->load_core < 0)
        printf("server and load are not pinned to cores; ");
    else if (b->two_cores)
        printf("server on core %d, load on core %d; ", b->server_core, b->load_core);
    else
        printf("server and load share core %d; ", b->load_core);
    printf("medians of %zu runs,\nof %d short ones each where server and twin take turns; "
           "ratio: the median of theirs\n", b->runs, b->quick ? TURNS_QUICK : TURNS);
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    char svg[512];
    const char *csv = getenv("CSV"), *server = getenv("EXPORTWS");
    b.server = server ? server : "./exportws";
    snprintf(svg, sizeof svg, "%s.svg", argv[0]);
    b.svg = svg;
    b.csv = csv != NULL && csv[0] == '1';
    b.runs = 5;
    b.server_core = b.load_core = machine_core(0);
    for (int i = 1; i < argc; )
        i += strncmp(argv[i], "--", 2) != 0
                 ? bench_group(&b, argv[i])
                 : bench_option(&b, argv[i], i + 1 < argc ? argv[i + 1] : NULL);
    if (b.two_cores && machine_core(1) >= 0)
        b.server_core = machine_core(1);
    if (!b.self_check && access(b.server, X_OK) != 0) {
        fprintf(stderr, "bench: %s: %s\n", b.server, strerror(errno));
        return 2;
    }
    b.descriptors = machine_descriptors();
    signal(SIGPIPE, SIG_IGN);
    alarm(LIFETIME_S);
    bench_say(&b);
    if (b.peers)
        peers_find(&b, argv[0]);
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        if (b.wanted ? b.wanted >> i & 1 : !groups[i].named_only)
            groups[i].run(&b);
    return b.failed || b.over;
}
