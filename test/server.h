/*
 * server.h - black-box harness: the real server as a child process, real sockets, strict peers.
 *
 *     static void message_reaches_its_token(void **state)
 *     {
 *         static const char *const args[] = {"--hold", "0", NULL};
 *         static struct server s;
 *         struct peer p;
 *         struct reply r;
 *         (void)state;
 *         server_start(&s, args);
 *         peer_open(&s, &p, "abc", NULL);
 *         push_text(&s, "abc", "37 %", &r);
 *         assert_int_equal(json_number(r.body, "delivered"), 1);
 *         peer_expect_text(&p, "37 %");
 *         peer_close(&p);
 *         server_stop(&s);
 *     }
 *     ... cmocka_unit_test_teardown(message_reaches_its_token, server_teardown)
 *
 * The program is $EXPORTWS (default ./exportws; words are split at blanks, so that an emulator
 * may stand in front). $EXPORTWS_TEST_SLOW multiplies every deadline (valgrind, qemu).
 * $EXPORTWS_KEEP_LOG keeps the logs.
 *
 * Every wait is a poll() with a deadline and ends at once when the thing happens. Every failure is
 * cmocka's fail_msg; in a forked child (harness_fork) it is a line on stderr and exit 1, which
 * harness_join turns into a failure of the test. A struct server is static, since the teardown
 * looks at it after the test function has been left by longjmp.
 *
 * Include this first: it brings the feature macro, the system headers and cmocka.
 */
#ifndef EXPORTWS_TEST_SERVER_H
#define EXPORTWS_TEST_SERVER_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <cmocka.h>

#define SAMPLE_KEY "dGhlIHNhbXBsZSBub25jZQ=="             /* RFC 6455 section 1.3 */
#define SAMPLE_ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
#define DEFAULT_PATH "/app/ws/export-task/"

enum { OP_CONTINUATION = 0, OP_TEXT = 1, OP_BINARY = 2, OP_CLOSE = 8, OP_PING = 9, OP_PONG = 10 };
enum { READ_TIMEOUT = 0, READ_OK = 1, READ_EOF = -1, READ_RESET = -2 };

/* ===== Failing, time, children ===== */

/* 1 in a process made by harness_fork: cmocka's longjmp must not be used there. */
static int harness_is_child;

static inline void harness_fail(const char *format, ...)
{
    char text[1000];                    /* cmocka 1.1 loses one of 1,024 and more */
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (harness_is_child) {
        fprintf(stderr, "child: %s\n", text);
        _exit(1);
    }
    fail_msg("%s", text);
}

/* Milliseconds of the monotonic clock. */
static inline long long now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* $EXPORTWS_TEST_SLOW, at least 1. */
static inline int harness_slow(void)
{
    const char *text = getenv("EXPORTWS_TEST_SLOW");
    int n = text ? atoi(text) : 1;
    return n < 1 ? 1 : n;
}

/* The moment `ms` from now, stretched on slow machines: what the *_until functions take. */
static inline long long deadline_in(int ms)
{
    return now_ms() + (long long)ms * harness_slow();
}

/* The usual generous deadline: 10 s. */
static inline long long deadline_usual(void)
{
    return deadline_in(10000);
}

/* Milliseconds left, for poll(); never negative. */
static inline int time_left(long long deadline)
{
    long long left = deadline - now_ms();
    return left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

/* A pause between two looks at something that cannot be polled (a log file, /proc, a metric). */
static inline void pause_ms(int ms)
{
    poll(NULL, 0, ms);
}

/* fork() for a helper process that uses this harness: 0 in the child, which ends with _exit(0). */
static inline pid_t harness_fork(void)
{
    pid_t pid;
    fflush(NULL);
    pid = fork();
    if (pid < 0)
        harness_fail("fork: %s", strerror(errno));
    if (pid == 0)
        harness_is_child = 1;
    return pid;
}

/* waitpid with a deadline: 1 and *status when it ended, 0 when it still runs. */
static inline int process_wait(pid_t pid, int *status, long long deadline)
{
    for (;;) {
        pid_t got = waitpid(pid, status, WNOHANG);
        if (got == pid)
            return 1;
        if (got < 0 && errno != EINTR)
            return 0;
        if (time_left(deadline) == 0)
            return 0;
        pause_ms(2);
    }
}

/* Waits for a harness_fork child; fails the test when it failed or hangs (then it is killed). */
static inline void harness_join(pid_t pid, long long deadline)
{
    int status = 0;
    if (!process_wait(pid, &status, deadline)) {
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        harness_fail("helper process %ld did not finish in time", (long)pid);
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        harness_fail("helper process %ld failed (wait status %d)", (long)pid, status);
}

/* ===== Connections ===== */

/* What a read brought, in words. */
static inline const char *read_name(int got)
{
    return got == READ_OK      ? "bytes"
         : got == READ_TIMEOUT ? "silence"
         : got == READ_EOF     ? "EOF"
                               : "a reset";
}

/* A buffered non-blocking socket; bytes[start..end) is what was read and not yet taken. */
struct conn {
    int fd;
    unsigned char *bytes;
    size_t start, end, size;
    int ended;                  /* 0, or READ_EOF / READ_RESET once seen */
};

static inline void descriptor_prepare(int fd)
{
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

struct address {
    struct sockaddr_storage name;
    socklen_t size;
};

static inline void address_parse_unix(const char *path, struct address *a)
{
    struct sockaddr_un *u = (struct sockaddr_un *)(void *)&a->name;
    if (strlen(path) >= sizeof u->sun_path)
        harness_fail("socket path too long: %s", path);
    u->sun_family = AF_UNIX;
    strcpy(u->sun_path, path);
    a->size = (socklen_t)sizeof *u;
}

/* "unix:PATH", "[V6]:PORT" or "HOST:PORT" to a socket address; any-addresses become loopback. */
static inline void address_parse(const char *text, struct address *a)
{
    char host[128];
    const char *colon = strrchr(text, ':');
    struct addrinfo hints, *found = NULL;
    memset(a, 0, sizeof *a);
    if (strncmp(text, "unix:", 5) == 0) {
        address_parse_unix(text + 5, a);
        return;
    }
    if (colon == NULL || (size_t)(colon - text) >= sizeof host)
        harness_fail("not an address: '%s'", text);
    snprintf(host, sizeof host, "%.*s", (int)(colon - text), text);
    if (host[0] == '[') {
        memmove(host, host + 1, strlen(host));
        host[strcspn(host, "]")] = '\0';
    }
    if (host[0] == '\0' || strcmp(host, "*") == 0 || strcmp(host, "0.0.0.0") == 0)
        strcpy(host, "127.0.0.1");
    else if (strcmp(host, "::") == 0)
        strcpy(host, "::1");
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    if (getaddrinfo(host, colon + 1, &hints, &found) != 0)
        harness_fail("not an address: '%s'", text);
    memcpy(&a->name, found->ai_addr, found->ai_addrlen);
    a->size = found->ai_addrlen;
    freeaddrinfo(found);
}

/* connect() under a deadline; 0 or an errno. */
static inline int connect_until(int fd, const struct address *a, long long deadline)
{
    for (;;) {
        int error = 0;
        socklen_t size = sizeof error;
        struct pollfd p;
        if (connect(fd, (const struct sockaddr *)(const void *)&a->name, a->size) == 0)
            return 0;
        if (errno == EAGAIN && time_left(deadline) > 0) { /* a Unix socket, backlog full */
            pause_ms(5);
            continue;
        }
        if (errno != EINPROGRESS && errno != EINTR)
            return errno;
        p.fd = fd;
        p.events = POLLOUT;
        if (poll(&p, 1, time_left(deadline)) <= 0)
            return ETIMEDOUT;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
        return error;
    }
}

/*
 * Connects to an address as the ready line prints it. receive_buffer: SO_RCVBUF in
 * bytes, 0 for the system's. from: numeric source host, or NULL. Returns 0, or an errno (the
 * connection is then closed).
 */
static inline int conn_dial(struct conn *c, const char *address, int receive_buffer,
                            const char *from)
{
    struct address to, source;
    int one = 1, error = 0;
    memset(c, 0, sizeof *c);
    address_parse(address, &to);
    c->fd = socket(((struct sockaddr *)(void *)&to.name)->sa_family, SOCK_STREAM, 0);
    if (c->fd < 0)
        return errno;
    descriptor_prepare(c->fd);
    if (receive_buffer > 0)
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    if (to.name.ss_family != AF_UNIX)
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (from != NULL) {
        char text[64];
        snprintf(text, sizeof text, "%s:0", from);
        address_parse(text, &source);
        if (bind(c->fd, (struct sockaddr *)(void *)&source.name, source.size) != 0)
            error = errno;
    }
    if (error == 0)
        error = connect_until(c->fd, &to, deadline_usual());
    if (error != 0) {
        close(c->fd);
        c->fd = -1;
    }
    return error;
}

/* conn_dial that must succeed. */
static inline void conn_open(struct conn *c, const char *address)
{
    int error = conn_dial(c, address, 0, NULL);
    if (error != 0)
        harness_fail("cannot connect to %s: %s", address, strerror(error));
}

/* Closes (FIN, but RST when input was not read) and frees the buffer. Twice is harmless. */
static inline void conn_close(struct conn *c)
{
    if (c->fd >= 0)
        close(c->fd);
    free(c->bytes);
    memset(c, 0, sizeof *c);
    c->fd = -1;
}

/* Closes with RST. */
static inline void conn_rst(struct conn *c)
{
    struct linger hard;
    hard.l_onoff = 1;
    hard.l_linger = 0;
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    conn_close(c);
}

static inline void conn_reserve(struct conn *c, size_t room)
{
    unsigned char *grown;
    if (c->start > 0) {
        memmove(c->bytes, c->bytes + c->start, c->end - c->start);
        c->end -= c->start;
        c->start = 0;
    }
    if (c->size - c->end >= room)
        return;
    grown = realloc(c->bytes, c->end + room > 2 * c->size ? c->end + room : 2 * c->size);
    if (grown == NULL) {
        harness_fail("out of memory");
        return;
    }
    c->size = c->end + room > 2 * c->size ? c->end + room : 2 * c->size;
    c->bytes = grown;
}

/* One recv() without waiting: READ_OK, READ_TIMEOUT (nothing there), READ_EOF or READ_RESET. */
static inline int conn_fill_now(struct conn *c)
{
    ssize_t n;
    if (c->ended)
        return c->ended;
    if (c->size - c->end < 2048)
        conn_reserve(c, 4096);
    n = recv(c->fd, c->bytes + c->end, c->size - c->end, 0);
    if (n > 0) {
        c->end += (size_t)n;
        return READ_OK;
    }
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return READ_TIMEOUT;
    c->ended = n == 0 ? READ_EOF : READ_RESET;
    return c->ended;
}

/* Waits for more input: READ_OK when the buffer grew, else READ_TIMEOUT, READ_EOF or READ_RESET. */
static inline int conn_fill(struct conn *c, long long deadline)
{
    for (;;) {
        struct pollfd p;
        int got = conn_fill_now(c);
        if (got != READ_TIMEOUT)
            return got;
        p.fd = c->fd;
        p.events = POLLIN;
        if (poll(&p, 1, time_left(deadline)) == 0)
            return READ_TIMEOUT;
    }
}

/*
 * Sends everything, reading meanwhile so that two full pipes cannot wait for each other.
 * 0, or an errno (EPIPE, ECONNRESET: the server closed; ETIMEDOUT: it does not read).
 */
static inline int conn_send(struct conn *c, const void *data, size_t size)
{
    const unsigned char *p = data;
    long long deadline = deadline_usual();
    while (size > 0) {
        ssize_t n = send(c->fd, p, size, 0);
        struct pollfd wait;
        if (n >= 0) {
            p += n;
            size -= (size_t)n;
            continue;
        }
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
            return errno;
        wait.fd = c->fd;
        wait.events = (short)(c->ended ? POLLOUT : POLLIN | POLLOUT);
        if (poll(&wait, 1, time_left(deadline)) == 0)
            return ETIMEDOUT;
        if (wait.revents & POLLIN)
            conn_fill_now(c);
    }
    return 0;
}

/* conn_send of a C string that must succeed. */
static inline void conn_send_text(struct conn *c, const char *text)
{
    int error = conn_send(c, text, strlen(text));
    if (error != 0)
        harness_fail("send: %s", strerror(error));
}

/* Nothing more comes and the server closes in an orderly way: EOF, not a reset, not a byte. */
static inline void conn_expect_eof(struct conn *c)
{
    int got = c->end > c->start ? READ_OK : conn_fill(c, deadline_usual());
    if (got == READ_OK)
        harness_fail("%lu unexpected bytes before EOF, from 0x%02x '%.40s'",
                     (unsigned long)(c->end - c->start), c->bytes[c->start],
                     isprint(c->bytes[c->start]) ? (char *)c->bytes + c->start : "");
    else if (got != READ_EOF)
        harness_fail("expected EOF, got %s", read_name(got));
}

/* Nothing arrives for `ms`: still open, still silent. (Costs the time; keep it short.) */
static inline void conn_expect_silence(struct conn *c, int ms)
{
    int got = c->end > c->start ? READ_OK : conn_fill(c, now_ms() + ms);
    if (got != READ_TIMEOUT)
        harness_fail("expected silence, got %s", read_name(got));
}

/* ===== HTTP replies ===== */

enum { REPLY_HEAD = 8192, REPLY_BODY = 262144 };

struct reply {
    int status;
    char head[REPLY_HEAD];         /* status line and header lines, CRLF kept */
    char body[REPLY_BODY];         /* NUL-terminated */
    size_t body_bytes;
    char value[512];               /* what reply_header found last */
};

/* The value of a header (name in any case; the last, when there are several) or NULL; *count. */
static inline const char *reply_header_count(struct reply *r, const char *name, int *count)
{
    size_t length = strlen(name);
    const char *line, *end, *found = NULL;
    int n = 0;
    for (line = strstr(r->head, "\r\n"); line != NULL; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, length) != 0 || line[length] != ':')
            continue;
        end = line + length + 1;
        end += strspn(end, " \t");
        snprintf(r->value, sizeof r->value, "%.*s", (int)strcspn(end, "\r"), end);
        found = r->value;
        n++;
    }
    if (count != NULL)
        *count = n;
    return found;
}

/* The value of a header (name in any case), or NULL. Valid until the next call on this reply. */
static inline const char *reply_header(struct reply *r, const char *name)
{
    return reply_header_count(r, name, NULL);
}

/* Every header line is "Name: value" without bare CR, LF or other control bytes. */
static inline void reply_check_lines(const struct reply *r)
{
    const char *line = strstr(r->head, "\r\n");
    while (line != NULL && line[2] != '\0') {
        size_t name, size;
        line += 2;
        name = strcspn(line, ":\r\n \t");
        size = strcspn(line, "\r\n");
        if (name == 0 || line[name] != ':' || line[size] != '\r' || line[size + 1] != '\n')
            harness_fail("malformed header line in:\n%s", r->head);
        line = strstr(line, "\r\n");
    }
}

/* Takes the head off the connection: READ_OK, or why not (READ_EOF only when not one byte came). */
static inline int reply_read_head(struct conn *c, struct reply *r, long long deadline)
{
    for (;;) {
        size_t i, n = c->end - c->start;
        int got;
        for (i = 3; i < n; i++)
            if (memcmp(c->bytes + c->start + i - 3, "\r\n\r\n", 4) == 0)
                break;
        if (i < n) {
            if (i >= sizeof r->head)
                harness_fail("reply head of %lu bytes", (unsigned long)i);
            memcpy(r->head, c->bytes + c->start, i - 1);     /* keeps the last line's CRLF */
            r->head[i - 1] = '\0';
            c->start += i + 1;
            return READ_OK;
        }
        got = conn_fill(c, deadline);
        if (got == READ_OK)
            continue;
        if (n > 0)
            harness_fail("reply head broken off after %lu bytes (%s): '%.200s'", (unsigned long)n,
                         read_name(got),
                         c->bytes + c->start);
        return got;
    }
}

static inline void reply_read_body(struct conn *c, struct reply *r, long long deadline)
{
    int count;
    const char *length = reply_header_count(r, "Content-Length", &count);
    size_t want;
    r->body_bytes = 0;
    r->body[0] = '\0';
    if (r->status < 200 || r->status == 204) {
        if (length != NULL)
            harness_fail("Content-Length in a %d:\n%s", r->status, r->head);
        return;
    }
    if (count != 1 || !isdigit((unsigned char)length[0])) {
        harness_fail("reply needs exactly one Content-Length:\n%s", r->head);
        return;
    }
    want = (size_t)strtoul(length, NULL, 10);
    if (want >= sizeof r->body)
        harness_fail("reply body of %lu bytes", (unsigned long)want);
    while (c->end - c->start < want) {
        int got = conn_fill(c, deadline);
        if (got != READ_OK)
            harness_fail("reply body broken off at %lu of %lu bytes (%s):\n%s",
                         (unsigned long)(c->end - c->start), (unsigned long)want, read_name(got),
                         r->head);
    }
    if (want > 0)
        memcpy(r->body, c->bytes + c->start, want);
    r->body[want] = '\0';
    r->body_bytes = want;
    c->start += want;
}

/* Reads one response by its Content-Length: READ_OK, or why none begins (TIMEOUT, EOF, RESET). */
static inline int reply_read_until(struct conn *c, struct reply *r, long long deadline)
{
    int got = reply_read_head(c, r, deadline);
    if (got != READ_OK)
        return got;
    if (strncmp(r->head, "HTTP/1.1 ", 9) != 0 || strspn(r->head + 9, "0123456789") != 3 ||
        r->head[12] != ' ' || strcspn(r->head + 13, "\r") == 0)
        harness_fail("malformed status line:\n%s", r->head);
    r->status = atoi(r->head + 9);
    reply_check_lines(r);
    reply_read_body(c, r, deadline);
    return READ_OK;
}

/* Reads one response that must come. */
static inline void reply_read(struct conn *c, struct reply *r)
{
    int got = reply_read_until(c, r, deadline_usual());
    if (got != READ_OK)
        harness_fail("no reply: %s", read_name(got));
}

/* One request on a connection of its own; the response is read whole and the connection closed. */
static inline void http_request(const char *address, const void *request, size_t size,
                                struct reply *r)
{
    struct conn c;
    conn_open(&c, address);
    conn_send(&c, request, size);   /* a refusal may come while we send: the reply decides */
    reply_read(&c, r);
    conn_close(&c);
}

/* The integer after "name": in a flat JSON object, or -1 when it is not there. */
static inline long long json_number(const char *json, const char *name)
{
    char key[80];
    const char *p;
    snprintf(key, sizeof key, "\"%s\":", name);
    p = strstr(json, key);
    if (p == NULL)
        return -1;
    p += strlen(key);
    p += strspn(p, " ");
    return isdigit((unsigned char)*p) ? strtoll(p, NULL, 10) : -1;
}

/* ===== The server process ===== */

struct server {
    pid_t pid;                     /* 0: not running */
    int out;                       /* its stdout */
    int status;                    /* wait status, when it has ended */
    char clients[160], push[160];  /* addresses, for conn_dial; push may be "none" */
    int client_port, push_port;    /* 0 for a Unix socket */
    unsigned long capacity, memory;
    char ready[600];               /* the whole line */
    char path[128];                /* --path */
    char log_path[256];            /* its stderr */
};

static struct server *harness_servers[32];

static inline void server_kill_all(void);

static inline void server_register(struct server *s, int running)
{
    static int prepared;
    size_t i;
    if (!prepared++)
        atexit(server_kill_all);
    for (i = 0; i < sizeof harness_servers / sizeof *harness_servers; i++)
        if (harness_servers[i] == (running ? NULL : s)) {
            harness_servers[i] = running ? s : NULL;
            return;
        }
}

/* Kills what a failed test or an early exit has left running. */
static inline void server_kill_all(void)
{
    size_t i;
    for (i = 0; i < sizeof harness_servers / sizeof *harness_servers && !harness_is_child; i++) {
        struct server *s = harness_servers[i];
        if (s == NULL)
            continue;
        harness_servers[i] = NULL;
        if (s->pid > 0) {
            kill(s->pid, SIGKILL);
            waitpid(s->pid, &s->status, 0);
        }
        if (getenv("EXPORTWS_KEEP_LOG") == NULL)
            unlink(s->log_path);
    }
}

/* For cmocka_unit_test_teardown; the struct server must outlive the test function. */
static inline int server_teardown(void **state)
{
    (void)state;
    server_kill_all();
    return 0;
}

/* $EXPORTWS split into argv, then the given arguments; their count. `words` holds the copy. */
static inline size_t program_words(char words[1024], const char *argv[64], const char *const *args)
{
    const char *program = getenv("EXPORTWS");
    size_t n = 0;
    char *word;
    snprintf(words, 1024, "%s", program && *program ? program : "./exportws");
    for (word = strtok(words, " "); word != NULL && n < 16; word = strtok(NULL, " "))
        argv[n++] = word;
    for (; args != NULL && *args != NULL && n < 58; args++)
        argv[n++] = *args;
    argv[n] = NULL;
    return n;
}

/* The value of "--name value" or "--name=value" in args, or NULL. */
static inline const char *args_value(const char *const *args, const char *name)
{
    size_t length = strlen(name);
    for (; args != NULL && *args != NULL; args++) {
        if (strcmp(*args, name) == 0)
            return args[1];
        if (strncmp(*args, name, length) == 0 && (*args)[length] == '=')
            return *args + length + 1;
    }
    return NULL;
}

/* In the child: stdout and stderr in place, signals as a shell would give them, then exec. */
static inline void program_exec(const char *const *argv, int out, int err, long descriptors)
{
    union { const char *const *in; char *const *out; } arguments;
    if (descriptors > 0) {
        struct rlimit limit;
        limit.rlim_cur = limit.rlim_max = (rlim_t)descriptors;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    signal(SIGPIPE, SIG_DFL);
    /* Both survive exec: no orphan outlives a killed test, or at least not for long. */
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    alarm((unsigned)(600 * harness_slow()));
    dup2(out, 1);
    dup2(err, 2);
    arguments.in = argv;
    execvp(argv[0], arguments.out);
    dprintf(2, "cannot run %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

/* An open, unlinked-by-the-caller temporary file; its name goes to path. */
static inline int temporary_file(char *path, size_t size)
{
    const char *folder = getenv("TMPDIR");
    int fd;
    snprintf(path, size, "%s/exportws-test.XXXXXX", folder && *folder ? folder : "/tmp");
    fd = mkstemp(path);
    if (fd < 0)
        harness_fail("mkstemp %s: %s", path, strerror(errno));
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_APPEND);
    return fd;
}

/* The server's whole log so far; the caller frees it. */
static inline char *server_log_read(const struct server *s)
{
    FILE *f = fopen(s->log_path, "rb");
    long size;
    char *text;
    size_t got;
    if (f == NULL || fseek(f, 0, SEEK_END) != 0 || (size = ftell(f)) < 0)
        return strcpy(calloc(1, 1), "");
    rewind(f);
    text = calloc(1, (size_t)size + 1);
    got = text ? fread(text, 1, (size_t)size, f) : 0;
    fclose(f);
    if (got < (size_t)size)
        text[got] = '\0';
    return text;
}

/* How many lines of the log contain the text. */
static inline int server_log_count(const struct server *s, const char *text)
{
    char *log = server_log_read(s), *p = log;
    int n = 0;
    while ((p = strstr(p, text)) != NULL) {
        n++;
        p += strcspn(p, "\n");
    }
    free(log);
    return n;
}

/* 1 when the log has the text. */
static inline int server_log_contains(const struct server *s, const char *text)
{
    return server_log_count(s, text) > 0;
}

/* Waits until the log has at least n lines with the text. */
static inline void server_log_wait(const struct server *s, const char *text, int n)
{
    long long deadline = deadline_usual();
    while (server_log_count(s, text) < n) {
        if (time_left(deadline) == 0) {
            char *log = server_log_read(s);
            size_t size = strlen(log);
            harness_fail("the log never had %d lines with '%s'; its end:\n%s", n, text,
                         size > 1500 ? log + size - 1500 : log);
        }
        pause_ms(5);
    }
}

static inline void server_read_ready(struct server *s)
{
    long long deadline = deadline_usual();
    size_t n = 0;
    while (n + 1 < sizeof s->ready) {
        struct pollfd p;
        ssize_t got;
        p.fd = s->out;
        p.events = POLLIN;
        if (poll(&p, 1, time_left(deadline)) == 0)
            harness_fail("no ready line");
        got = read(s->out, s->ready + n, 1);
        if (got == 0) {
            char *log = server_log_read(s);
            s->ready[n] = '\0';
            harness_fail("the server ended before it was ready ('%s'), saying:\n%s", s->ready, log);
        }
        if (got == 1 && s->ready[n++] == '\n')
            break;
    }
    s->ready[n > 0 ? n - 1 : 0] = '\0';
}

/* Copies what stands between two marks of the ready line; fails when the line has another shape. */
static inline void ready_field(const struct server *s, const char *before, const char *after,
                               char *to, size_t size)
{
    const char *p = strstr(s->ready, before), *end;
    if (p == NULL || (end = strstr(p + strlen(before), after)) == NULL) {
        harness_fail("ready line '%s' lacks '%s...%s'", s->ready, before, after);
        return;
    }
    p += strlen(before);
    snprintf(to, size, "%.*s", (int)(end - p), p);
}

static inline int address_port(const char *address)
{
    const char *colon = strrchr(address, ':');
    return strncmp(address, "unix:", 5) == 0 || colon == NULL ? 0 : atoi(colon + 1);
}

static inline void server_parse_ready(struct server *s)
{
    char number[40];
    if (strncmp(s->ready, "exportws ", 9) != 0 || s->ready[strlen(s->ready) - 6] != ' ')
        harness_fail("ready line '%s'", s->ready);
    ready_field(s, " ready: clients ", ", push ", s->clients, sizeof s->clients);
    ready_field(s, ", push ", ", capacity ", s->push, sizeof s->push);
    ready_field(s, ", capacity ", ", memory ", number, sizeof number);
    s->capacity = strtoul(number, NULL, 10);
    ready_field(s, ", memory ", " bytes", number, sizeof number);
    s->memory = strtoul(number, NULL, 10);
    s->client_port = address_port(s->clients);
    s->push_port = address_port(s->push);
}

/* server_start with RLIMIT_NOFILE (soft and hard) of the server set to `descriptors`; 0: not. */
static inline void server_start_limited(struct server *s, const char *const *args, long descriptors)
{
    const char *argv[64], *path = args_value(args, "--path");
    char words[1024];
    size_t n = program_words(words, argv, args);
    int pair[2], log;
    memset(s, 0, sizeof *s);
    signal(SIGPIPE, SIG_IGN);
    server_register(s, 1);
    if (args_value(args, "--listen") == NULL)
        argv[n++] = "--listen=127.0.0.1:0";
    if (args_value(args, "--push") == NULL)
        argv[n++] = "--push=127.0.0.1:0";
    argv[n] = NULL;
    snprintf(s->path, sizeof s->path, "%s", path ? path : DEFAULT_PATH);
    log = temporary_file(s->log_path, sizeof s->log_path);
    if (pipe(pair) != 0)
        harness_fail("pipe: %s", strerror(errno));
    fcntl(pair[0], F_SETFD, FD_CLOEXEC);
    fcntl(pair[1], F_SETFD, FD_CLOEXEC);
    s->pid = harness_fork();
    if (s->pid == 0)
        program_exec(argv, pair[1], log, descriptors);
    close(pair[1]);
    close(log);
    s->out = pair[0];
    server_read_ready(s);
    server_parse_ready(s);
}

/*
 * Starts the server (`--listen 127.0.0.1:0 --push 127.0.0.1:0` unless args say otherwise; args
 * may be NULL), waits for the ready line and fills the struct from it.
 */
static inline void server_start(struct server *s, const char *const *args)
{
    server_start_limited(s, args, 0);
}

/* Sends a signal. */
static inline void server_signal(struct server *s, int signal_number)
{
    if (kill(s->pid, signal_number) != 0)
        harness_fail("kill: %s", strerror(errno));
}

/* After the end: nothing more on stdout than the ready line, no sanitizer report in the log. */
static inline void server_check_remains(struct server *s)
{
    static const char *const reports[] = {"Sanitizer", "runtime error:", "== ERROR SUMMARY"};
    char rest[256];
    ssize_t n = read(s->out, rest, sizeof rest - 1);
    size_t i;
    rest[n > 0 ? n : 0] = '\0';
    close(s->out);
    server_register(s, 0);
    for (i = 0; i < sizeof reports / sizeof *reports; i++)
        if (server_log_contains(s, reports[i]) &&
            !server_log_contains(s, "ERROR SUMMARY: 0 errors")) {
            char *log = server_log_read(s);
            harness_fail("the server's log has a report:\n%s", log);
        }
    if (getenv("EXPORTWS_KEEP_LOG") == NULL)
        unlink(s->log_path);
    if (n > 0)
        harness_fail("the server printed more than the ready line: '%s'", rest);
}

/* Waits until the server has ended by itself and checks its exit code. */
static inline void server_wait(struct server *s, int code, long long deadline)
{
    pid_t pid = s->pid;
    if (!process_wait(pid, &s->status, deadline))
        harness_fail("the server did not end in time");
    s->pid = 0;
    server_check_remains(s);
    if (!WIFEXITED(s->status))
        harness_fail("the server died of signal %d", WTERMSIG(s->status));
    else if (WEXITSTATUS(s->status) != code)
        harness_fail("the server ended with %d, not %d", WEXITSTATUS(s->status), code);
}

/* SIGTERM, and exit 0 within the deadline (else it is killed and the test fails). */
static inline void server_stop(struct server *s)
{
    server_signal(s, SIGTERM);
    server_wait(s, 0, deadline_in(15000));
}

/* A run of the program that ends by itself (--help, --memory, a bad option). */
struct run {
    int code;                      /* -1: it had to be killed */
    char out[32768], err[32768];
};

static inline void file_slurp(const char *path, char *to, size_t size)
{
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(to, 1, size - 1, f) : 0;
    to[n] = '\0';
    if (f != NULL)
        fclose(f);
    unlink(path);
}

/* Runs the program with exactly these arguments (nothing added) and collects what it says. */
static inline void program_run(struct run *r, const char *const *args)
{
    const char *argv[64];
    char words[1024], out_path[256], err_path[256];
    int out = temporary_file(out_path, sizeof out_path);
    int err = temporary_file(err_path, sizeof err_path);
    int status = 0;
    pid_t pid;
    program_words(words, argv, args);
    pid = harness_fork();
    if (pid == 0)
        program_exec(argv, out, err, 0);
    if (!process_wait(pid, &status, deadline_usual())) {
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
    }
    r->code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    close(out);
    close(err);
    file_slurp(out_path, r->out, sizeof r->out);
    file_slurp(err_path, r->err, sizeof r->err);
}

/* ===== What /proc knows (everything here is -1 where there is no /proc) ===== */

/* Resident memory in KiB. */
static inline long server_rss_kib(const struct server *s)
{
    char path[64], line[256];
    long kib = -1;
    FILE *f;
    snprintf(path, sizeof path, "/proc/%ld/status", (long)s->pid);
    f = fopen(path, "r");
    if (f == NULL)
        return -1;
    while (kib < 0 && fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, "VmRSS:", 6) == 0)
            kib = strtol(line + 6, NULL, 10);
    fclose(f);
    return kib;
}

/* Open descriptors. */
static inline int server_fds(const struct server *s)
{
    char path[64];
    int n = 0;
    DIR *folder;
    struct dirent *entry;
    snprintf(path, sizeof path, "/proc/%ld/fd", (long)s->pid);
    folder = opendir(path);
    if (folder == NULL)
        return -1;
    while ((entry = readdir(folder)) != NULL)
        n += entry->d_name[0] != '.';
    closedir(folder);
    return n;
}

/* CPU time used so far, in milliseconds (a tick is usually 10). */
static inline long server_cpu_ms(const struct server *s)
{
    char path[64], text[1024];
    unsigned long user = 0, kernel = 0;
    size_t n;
    FILE *f;
    char *p;
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)s->pid);
    f = fopen(path, "r");
    if (f == NULL)
        return -1;
    n = fread(text, 1, sizeof text - 1, f);
    text[n] = '\0';
    fclose(f);
    p = strrchr(text, ')');
    if (p == NULL ||
        sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel) != 2)
        return -1;
    return (long)((user + kernel) * 1000 / (unsigned long)sysconf(_SC_CLK_TCK));
}

/* ===== The push door ===== */

/* One request to the push door on the caller's keep-alive connection. headers: whole lines, or
 * NULL. */
static inline void push_on(struct conn *c, const char *method, const char *target,
                           const char *headers, const void *body, size_t size, struct reply *r)
{
    char head[2048];
    int n =
        snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: push\r\n%sContent-Length: %lu\r\n\r\n",
                 method, target, headers ? headers : "", (unsigned long)size);
    if (n < 0 || (size_t)n >= sizeof head)
        harness_fail("request head too long");
    conn_send(c, head, (size_t)n);
    if (size > 0)
        conn_send(c, body, size);
    reply_read(c, r);
}

/* One request to the push door on a connection of its own. headers: whole lines, or NULL. */
static inline void push_request(const struct server *s, const char *method, const char *target,
                                const char *headers, const void *body, size_t size, struct reply *r)
{
    struct conn c;
    conn_open(&c, s->push);
    push_on(&c, method, target, headers, body, size, r);
    conn_close(&c);
}

/* The target of a token (percent-encode it yourself where that matters). */
static inline const char *push_target(const struct server *s, const char *token, char target[1024])
{
    snprintf(target, 1024, "%s%s", s->path, token);
    return target;
}

/* POST text to a token; look at r->status and json_number(r->body, "delivered"). */
static inline void push_text(const struct server *s, const char *token, const char *text,
                             struct reply *r)
{
    char target[1024];
    push_request(s, "POST", push_target(s, token, target), NULL, text, strlen(text), r);
}

/* push_text on a keep-alive connection. */
static inline void push_text_on(struct conn *c, const struct server *s, const char *token,
                                const char *text, struct reply *r)
{
    char target[1024];
    push_on(c, "POST", push_target(s, token, target), NULL, text, strlen(text), r);
}

/* push_text that must be answered `200` with exactly this many deliveries. */
static inline void push_expect(const struct server *s, const char *token, const char *text,
                               int delivered)
{
    struct reply r;
    push_text(s, token, text, &r);
    if (r.status != 200 || json_number(r.body, "delivered") != delivered)
        harness_fail("push to '%s' wanted 200 with %d delivered, got %d %s", token, delivered,
                     r.status, r.body);
}

/* POST text to everybody. */
static inline void broadcast_text(const struct server *s, const char *text, struct reply *r)
{
    push_text(s, "", text, r);
}

/* broadcast_text that must reach exactly this many sessions. */
static inline void broadcast_expect(const struct server *s, const char *text, int delivered)
{
    push_expect(s, "", text, delivered);
}

/* GET of a fixed page of the push door that must answer 200. */
static inline void server_page(const struct server *s, const char *target, struct reply *r)
{
    push_request(s, "GET", target, NULL, NULL, 0, r);
    if (r->status != 200)
        harness_fail("GET %s: %d %s", target, r->status, r->body);
}

/* A sample's value in a Prometheus text, by name with {labels}; absent: 0 if labelled, else -1. */
static inline long long metric_in(const char *text, const char *name)
{
    size_t length = strlen(name);
    const char *line;
    for (line = text; line != NULL && *line != '\0';
         line = strchr(line, '\n'), line += line != NULL)
        if (strncmp(line, name, length) == 0 && line[length] == ' ')
            return strtoll(line + length + 1, NULL, 10);
    return strchr(name, '{') != NULL ? 0 : -1;
}

/* The sum of a metric over all its labels. */
static inline long long metric_sum_in(const char *text, const char *name)
{
    size_t length = strlen(name);
    long long sum = 0;
    const char *line;
    for (line = text; line != NULL && *line != '\0';
         line = strchr(line, '\n'), line += line != NULL)
        if (strncmp(line, name, length) == 0 && line[length] == '{' && strstr(line, "} ") != NULL)
            sum += strtoll(strstr(line, "} ") + 2, NULL, 10);
    return sum;
}

/* One metric, read now; fails when an unlabelled one is not there. */
static inline long long server_metric(const struct server *s, const char *name)
{
    struct reply r;
    long long value;
    server_page(s, "/metrics", &r);
    value = metric_in(r.body, name);
    if (value < 0)
        harness_fail("/metrics has no %s", name);
    return value;
}

/* Waits until a metric has exactly this value. */
static inline void server_metric_wait(const struct server *s, const char *name, long long want)
{
    long long deadline = deadline_usual(), got;
    while ((got = server_metric(s, name)) != want) {
        if (time_left(deadline) == 0)
            harness_fail("%s stays %lld, wanted %lld", name, got, want);
        pause_ms(5);
    }
}

/* opened - sum(closed) == sessions, in one look at /metrics. */
static inline void server_check_books(const struct server *s)
{
    struct reply r;
    long long opened, closed, sessions;
    server_page(s, "/metrics", &r);
    opened = metric_in(r.body, "exportws_sessions_opened_total");
    closed = metric_sum_in(r.body, "exportws_sessions_closed_total");
    sessions = metric_in(r.body, "exportws_sessions");
    if (opened < 0 || sessions < 0 || opened - closed != sessions)
        harness_fail("books: opened %lld - closed %lld != sessions %lld", opened, closed, sessions);
}

struct online {
    long long online, sessions, capacity, held;
};

/* GET /online. */
static inline void server_online(const struct server *s, struct online *o)
{
    struct reply r;
    server_page(s, "/online", &r);
    o->online = json_number(r.body, "online");
    o->sessions = json_number(r.body, "sessions");
    o->capacity = json_number(r.body, "capacity");
    o->held = json_number(r.body, "held");
    if (o->online < 0 || o->sessions < 0 || o->capacity < 0 || o->held < 0)
        harness_fail("/online says %s", r.body);
}

/* Waits until /online shows exactly these. */
static inline void server_online_wait(const struct server *s, int online, int sessions)
{
    long long deadline = deadline_usual();
    struct online o;
    for (;;) {
        server_online(s, &o);
        if (o.online == online && o.sessions == sessions)
            return;
        if (time_left(deadline) == 0)
            harness_fail("/online stays at %lld tokens, %lld sessions; wanted %d, %d", o.online,
                         o.sessions, online, sessions);
        pause_ms(5);
    }
}

/* ===== WebSocket peers ===== */

struct peer {
    struct conn c;
    uint32_t mask;                 /* grows with every frame: never the same key twice, never 0 */
};

struct frame {
    int opcode, fin;
    const unsigned char *data;     /* in the connection's buffer, until the next read */
    size_t size;
};

/* Writes the upgrade request for a token; headers: whole lines, or NULL. Returns its length. */
static inline size_t peer_request(const struct server *s, const char *token, const char *headers,
                                  char to[4096])
{
    int n = snprintf(
        to, 4096,
        "GET %s%s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: " SAMPLE_KEY "\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
        s->path, token, headers ? headers : "");
    if (n < 0 || n >= 4096)
        harness_fail("upgrade request too long");
    return (size_t)n;
}

/* The 101 says what RFC 6455 section 4.2.2 wants, with the accept value of the sample key. */
static inline void peer_check_101(struct reply *r)
{
    const char *value = reply_header(r, "Upgrade");
    if (value == NULL || strcasecmp(value, "websocket") != 0)
        harness_fail("101 without Upgrade: websocket:\n%s", r->head);
    value = reply_header(r, "Connection");
    if (value == NULL || strcasecmp(value, "Upgrade") != 0)
        harness_fail("101 without Connection: Upgrade:\n%s", r->head);
    value = reply_header(r, "Sec-WebSocket-Accept");
    if (value == NULL || strcmp(value, SAMPLE_ACCEPT) != 0)
        harness_fail("101 with a wrong accept value:\n%s", r->head);
    if (reply_header(r, "Sec-WebSocket-Extensions") != NULL)
        harness_fail("101 with an extension:\n%s", r->head);
}

/*
 * Dials and asks for the upgrade. Returns the status, with the whole answer in *r; on 101 the peer
 * is ready, else it can be read to its EOF (peer_expect_eof). receive_buffer, from: see conn_dial.
 */
static inline int peer_try(const struct server *s, struct peer *p, const char *token,
                           const char *headers, int receive_buffer, const char *from,
                           struct reply *r)
{
    char request[4096];
    size_t size = peer_request(s, token, headers, request);
    int error;
    memset(p, 0, sizeof *p);
    error = conn_dial(&p->c, s->clients, receive_buffer, from);
    if (error != 0)
        harness_fail("cannot connect to %s: %s", s->clients, strerror(error));
    conn_send(&p->c, request, size);
    reply_read(&p->c, r);
    if (r->status == 101)
        peer_check_101(r);
    return r->status;
}

/* Opens a session that must be accepted. */
static inline void peer_open(const struct server *s, struct peer *p, const char *token,
                             const char *headers)
{
    struct reply r;
    if (peer_try(s, p, token, headers, 0, NULL, &r) != 101)
        harness_fail("upgrade for '%s' refused with %d: %s", token, r.status, r.body);
}

/* peer_open with a small SO_RCVBUF, for readers that are to fall behind. */
static inline void peer_open_slow(const struct server *s, struct peer *p, const char *token,
                                  int receive_buffer)
{
    struct reply r;
    if (peer_try(s, p, token, NULL, receive_buffer, NULL, &r) != 101)
        harness_fail("upgrade for '%s' refused with %d: %s", token, r.status, r.body);
}

/* Closes the socket with FIN. */
static inline void peer_close(struct peer *p)
{
    conn_close(&p->c);
}

/* Closes the socket with RST. */
static inline void peer_rst(struct peer *p)
{
    conn_rst(&p->c);
}

/* Raw bytes; 0 or an errno. */
static inline int peer_send_raw(struct peer *p, const void *data, size_t size)
{
    return conn_send(&p->c, data, size);
}

/* Builds a frame (first: its whole first byte) in `to`, which has size + 14 bytes; its length. */
static inline size_t frame_build(unsigned char *to, int first, const void *data, size_t size,
                                 int masked, uint32_t key)
{
    const unsigned char *in = data;
    size_t n = 0, i;
    int shift;
    unsigned mask_bit = masked ? 0x80u : 0;
    to[n++] = (unsigned char)first;
    to[n++] = (unsigned char)(mask_bit | (size < 126     ? (unsigned)size
                                          : size < 65536 ? 126u
                                                         : 127u));
    for (shift = size < 126 ? -8 : size < 65536 ? 8 : 56; shift >= 0; shift -= 8)
        to[n++] = (unsigned char)((uint64_t)size >> shift);
    for (shift = 24; masked && shift >= 0; shift -= 8)
        to[n++] = (unsigned char)(key >> shift);
    for (i = 0; i < size; i++)
        to[n + i] = (unsigned char)(in[i] ^ (masked ? key >> (24 - 8 * (i & 3)) & 0xff : 0));
    return n + size;
}

/* Sends one frame; 0, or an errno when the server has closed. */
static inline int peer_send_frame(struct peer *p, int opcode, int fin, const void *data,
                                  size_t size, int masked)
{
    unsigned char *bytes = malloc(size + 14);
    int error;
    if (bytes == NULL)
        return ENOMEM;
    p->mask += 0x9e3779b9u;
    error =
        conn_send(&p->c, bytes,
                  frame_build(bytes, (fin ? 0x80 : 0) | opcode, data, size, masked, p->mask | 1u));
    free(bytes);
    return error;
}

/* Sends a whole masked text message. */
static inline int peer_send_text(struct peer *p, const char *text)
{
    return peer_send_frame(p, OP_TEXT, 1, text, strlen(text), 1);
}

/* Sends a close frame with a code (0: empty) and a reason. */
static inline int peer_send_close(struct peer *p, int code, const char *reason)
{
    unsigned char body[125];
    size_t n = strlen(reason) < 123 ? strlen(reason) : 123;
    body[0] = (unsigned char)(code >> 8);
    body[1] = (unsigned char)code;
    memcpy(body + 2, reason, n);
    return peer_send_frame(p, OP_CLOSE, 1, body, code ? n + 2 : 0, 1);
}

/* The length of a frame's head at p (n bytes there), 0: more is needed. Checks it, too. */
static inline size_t frame_head(const unsigned char *p, size_t n, uint64_t *size)
{
    size_t head, i;
    if (n < 2)
        return 0;
    if (p[0] & 0x70)
        harness_fail("server frame with RSV bits: %02x", p[0]);
    if (p[1] & 0x80)
        harness_fail("server frame is masked");
    head = p[1] == 127 ? 10 : p[1] == 126 ? 4 : 2;
    if (n < head)
        return 0;
    *size = head == 2 ? p[1] : 0;
    for (i = 2; i < head; i++)
        *size = *size << 8 | p[i];
    if ((head == 4 && *size < 126) || (head == 10 && *size < 65536))
        harness_fail("server frame's length %llu is not minimal", (unsigned long long)*size);
    if ((p[0] & 8) && (head != 2 || !(p[0] & 0x80)))
        harness_fail("server control frame too long or fragmented");
    if ((p[0] & 15) == 0 || strchr("\x01\x02\x08\x09\x0a", p[0] & 15) == NULL)
        harness_fail("server frame with opcode %d", p[0] & 15);
    return head;
}

/* A frame that is already in the buffer: 1, else 0. Never reads from the socket. */
static inline int peer_take_frame(struct peer *p, struct frame *f)
{
    struct conn *c = &p->c;
    size_t n = c->end - c->start;
    uint64_t size = 0;
    size_t head = n > 0 ? frame_head(c->bytes + c->start, n, &size) : 0;
    if (head == 0 || n - head < size)
        return 0;
    f->opcode = c->bytes[c->start] & 15;
    f->fin = c->bytes[c->start] >> 7;
    f->data = c->bytes + c->start + head;
    f->size = (size_t)size;
    c->start += head + f->size;
    return 1;
}

/*
 * Reads one raw frame, strictly checked (unmasked, minimal length, no RSV, known opcode, whole
 * messages): READ_OK, READ_TIMEOUT, READ_EOF or READ_RESET.
 */
static inline int peer_read_frame(struct peer *p, struct frame *f, long long deadline)
{
    memset(f, 0, sizeof *f);
    while (!peer_take_frame(p, f)) {
        int got = conn_fill(&p->c, deadline);
        if (got == READ_EOF && p->c.end > p->c.start)
            harness_fail("EOF inside a frame");
        if (got != READ_OK)
            return got;
    }
    if (f->opcode < 8 && !f->fin)
        harness_fail("server fragmented a message");
    return READ_OK;
}

/* peer_read_frame that answers pings and passes over pongs. */
static inline int peer_read_message(struct peer *p, struct frame *f, long long deadline)
{
    for (;;) {
        int got = peer_read_frame(p, f, deadline);
        if (got != READ_OK || (f->opcode != OP_PING && f->opcode != OP_PONG))
            return got;
        if (f->opcode == OP_PING)
            peer_send_frame(p, OP_PONG, 1, f->data, f->size, 1);
    }
}

static inline void peer_expect_message(struct peer *p, struct frame *f, int opcode)
{
    int got = peer_read_message(p, f, deadline_usual());
    if (got != READ_OK)
        harness_fail("expected a frame of opcode %d, got %s", opcode,
                     read_name(got));
    else if (f->opcode != opcode)
        harness_fail("expected a frame of opcode %d, got %d: %.*s (0x%02x%02x)", opcode, f->opcode,
                     (int)(f->size < 100 ? f->size : 100), (const char *)f->data,
                     f->size > 0 ? f->data[0] : 0, f->size > 1 ? f->data[1] : 0);
}

/* The next message is exactly this one. */
static inline void peer_expect_data(struct peer *p, int opcode, const void *data, size_t size)
{
    struct frame f;
    peer_expect_message(p, &f, opcode);
    if (f.size != size || (size > 0 && memcmp(f.data, data, size) != 0))
        harness_fail("expected '%.*s' (%lu bytes), got '%.*s' (%lu bytes)",
                     (int)(size < 100 ? size : 100), (const char *)data, (unsigned long)size,
                     (int)(f.size < 100 ? f.size : 100), (const char *)f.data,
                     (unsigned long)f.size);
}

/* The next message is exactly this text. */
static inline void peer_expect_text(struct peer *p, const char *text)
{
    peer_expect_data(p, OP_TEXT, text, strlen(text));
}

/* The next frame that is neither ping nor pong is a close with this code (0: an empty one). */
static inline void peer_expect_close(struct peer *p, int code)
{
    struct frame f;
    int got;
    peer_expect_message(p, &f, OP_CLOSE);
    got = f.size >= 2 ? f.data[0] << 8 | f.data[1] : 0;
    if (got != code || f.size == 1)
        harness_fail("expected close %d, got %d (%lu bytes)", code, got, (unsigned long)f.size);
}

/* The connection ends in an orderly way, with nothing more before it. */
static inline void peer_expect_eof(struct peer *p)
{
    conn_expect_eof(&p->c);
}

/* Nothing (but pings, which are not answered) for `ms`, and still open. */
static inline void peer_expect_silence(struct peer *p, int ms)
{
    long long deadline = now_ms() + ms;
    struct frame f;
    int got;
    do
        got = peer_read_frame(p, &f, deadline);
    while (got == READ_OK && (f.opcode == OP_PING || f.opcode == OP_PONG));
    if (got == READ_OK)
        harness_fail("expected silence, got opcode %d: '%.*s'", f.opcode,
                     (int)(f.size < 100 ? f.size : 100), (const char *)f.data);
    else if (got != READ_TIMEOUT)
        harness_fail("expected silence, got %s", read_name(got));
}

/* The session is alive: a ping is answered with the same bytes, and nothing comes before it. */
static inline void peer_expect_alive(struct peer *p)
{
    struct frame f;
    int got;
    peer_send_frame(p, OP_PING, 1, "alive?", 6, 1);
    do
        got = peer_read_frame(p, &f, deadline_usual());
    while (got == READ_OK && f.opcode == OP_PING);
    if (got != READ_OK || f.opcode != OP_PONG || f.size != 6 || memcmp(f.data, "alive?", 6) != 0)
        harness_fail("ping not answered: %s, opcode %d '%.*s'",
                     read_name(got), f.opcode,
                     (int)(f.size < 100 ? f.size : 100), f.size > 0 ? (const char *)f.data : "");
}

/* Leaves as a browser does: close 1000, the answer, EOF. */
static inline void peer_leave(struct peer *p)
{
    peer_send_close(p, 1000, "");
    peer_expect_close(p, 1000);
    peer_expect_eof(p);
    peer_close(p);
}

#endif
