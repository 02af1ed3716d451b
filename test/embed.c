/* embed.c - a fake appliance with a poll() loop of its own, into which exportws is put
 *
 *     cc -DEXPORTWS_NO_MAIN -o embed test/embed.c exportws.c
 *     ./embed                  then say toggle to /app/ws/export-task/boiler at port 8080
 *     ./embed --test           tries itself out, and exits 0 when all was right
 *
 * The appliance waits for three things at once: a serial line (here a pipe) on which a sensor says
 * a number now and then, a timer that ticks ten times a second, and its browsers. There is one
 * poll() for all; exportws adds its descriptors behind the appliance's own and says how long it may
 * last.
 *
 *     fds[0]              the serial line
 *     fds[1 .. 1 + n)     what exportws_pollfds filled in, handed back by exportws_dispatch
 *
 * All memory is static: 8 sessions with messages of 512 bytes. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "../exportws.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SESSIONS = 8, HANDSHAKES = 2, PUSHERS = 1, TICK_MS = 100, LINE_BYTES = 64 };
enum { FDS = 1 + SESSIONS + HANDSHAKES + PUSHERS + 5 }; /* as exportws_pollfds asks for */

struct appliance {
    exportws *web;
    int serial;          /* the sensor's line is read here */
    char line[LINE_BYTES];
    size_t line_size;
    long long tick_ms;   /* when the next is due */
    unsigned ticks, readings, commands, opened, closed;
    int heating;
};

static uint64_t memory[16384 / sizeof(uint64_t)];

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ===== Browsers ===== */

static void browser_opened(void *user, exportws_id session, const char *token)
{
    struct appliance *a = user;
    char text[64];
    int n = snprintf(text, sizeof text, "{\"heating\":%d}", a->heating);
    (void)token;
    a->opened++;
    exportws_reply(a->web, session, text, (size_t)n, EXPORTWS_TEXT);
}

/* The one command there is toggles the heating; everybody sees it. */
static void browser_said(void *user, exportws_id session, const char *token, const void *data,
                         size_t size, int kind)
{
    struct appliance *a = user;
    char text[64];
    (void)token;
    if (kind != EXPORTWS_TEXT || size != 6 || memcmp(data, "toggle", 6) != 0) {
        exportws_close(a->web, session, 1003, "toggle is all I know");
        return;
    }
    a->commands++;
    a->heating = !a->heating;
    int n = snprintf(text, sizeof text, "{\"heating\":%d}", a->heating);
    exportws_broadcast(a->web, text, (size_t)n, EXPORTWS_TEXT);
}

static void browser_closed(void *user, exportws_id session, const char *token, int reason, int code)
{
    struct appliance *a = user;
    (void)session, (void)token, (void)reason, (void)code;
    a->closed++;
}

/* ===== The appliance's own ===== */

/* A line of the sensor goes to all browsers. */
static void serial_line(struct appliance *a)
{
    char text[LINE_BYTES + 32];
    int n = snprintf(text, sizeof text, "{\"celsius\":%d}", atoi(a->line));
    a->readings++;
    exportws_broadcast(a->web, text, (size_t)n, EXPORTWS_TEXT);
}

static void serial_read(struct appliance *a)
{
    char bytes[LINE_BYTES];
    ssize_t n = read(a->serial, bytes, sizeof bytes);
    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] == '\n') {
            a->line[a->line_size] = '\0';
            a->line_size = 0;
            serial_line(a);
        } else if (a->line_size < sizeof a->line - 1) {
            a->line[a->line_size++] = bytes[i];
        }
    }
}

static void timer_tick(struct appliance *a)
{
    char text[64];
    int n = snprintf(text, sizeof text, "{\"tick\":%u}", ++a->ticks);
    a->tick_ms += TICK_MS;
    exportws_send(a->web, "clock", text, (size_t)n, EXPORTWS_TEXT);
}

static exportws *web_start(struct appliance *a, const char *address)
{
    exportws_options o;
    char why[128];
    exportws_defaults(&o);
    o.listen = address;
    o.capacity = SESSIONS, o.handshakes = HANDSHAKES, o.pushers = PUSHERS;
    o.max_message_bytes = o.max_push_bytes = 512;
    o.buffer_bytes = 1024, o.queue = 4;
    o.hold_ms = 0;
    o.on_open = browser_opened, o.on_message = browser_said, o.on_close = browser_closed;
    o.user = a;
    a->web = exportws_start(&o, memory, sizeof memory, why, sizeof why);
    if (!a->web) fprintf(stderr, "embed: %s; %lu bytes are needed\n", why,
                         (unsigned long)exportws_memory(&o));
    return a->web;
}

/* One turn of the appliance's loop: 0, or -1 when the server has stopped. */
static int appliance_turn(struct appliance *a)
{
    struct pollfd fds[FDS];
    long long left = a->tick_ms - now_ms();
    int timeout_ms = left > 0 ? (int)left : 0;
    fds[0].fd = a->serial, fds[0].events = POLLIN, fds[0].revents = 0;
    int n = exportws_pollfds(a->web, fds + 1, FDS - 1, &timeout_ms);
    if (n < 0) return -1;
    if (poll(fds, 1 + (nfds_t)n, timeout_ms) < 0 && errno != EINTR) return -1;
    if (fds[0].revents) serial_read(a);
    if (now_ms() >= a->tick_ms) timer_tick(a);
    return exportws_dispatch(a->web, fds + 1, (size_t)n) < 0 ? -1 : 0;
}

/* ===== It tries itself out ===== */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

struct browser {
    int fd;
    size_t size;
    char bytes[4096];
};

static int dial(const char *address)
{
    struct sockaddr_in to;
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&to, sizeof to) < 0) return -1;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static int browser_join(struct browser *b, const char *address, const char *token)
{
    char request[256];
    int n = snprintf(request, sizeof request,
                     "GET /app/ws/export-task/%s HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
                     "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                     token);
    b->size = 0;
    b->fd = dial(address);
    return b->fd >= 0 && send(b->fd, request, (size_t)n, 0) == n;
}

static void browser_say(struct browser *b, const char *text)
{
    char frame[64] = {(char)0x81, (char)(0x80 | strlen(text)), 0, 0, 0, 0};
    memcpy(frame + 6, text, strlen(text)); /* the mask is 0: it may be */
    if (send(b->fd, frame, 6 + strlen(text), 0) < 0) b->fd = -1;
}

/* Turns until the browser has been sent this: 1, or 0 when ten seconds were not enough. */
static int browser_sees(struct appliance *a, struct browser *b, const char *want)
{
    const char *slow = getenv("EXPORTWS_TEST_SLOW");
    long long deadline = now_ms() + 10000LL * (slow && atoi(slow) > 1 ? atoi(slow) : 1);
    while (now_ms() < deadline && appliance_turn(a) == 0) {
        ssize_t n = recv(b->fd, b->bytes + b->size, sizeof b->bytes - 1 - b->size, 0);
        if (n > 0) b->size += (size_t)n;
        for (size_t i = 0; i + strlen(want) <= b->size; i++) {
            size_t rest = b->size - i - strlen(want);
            if (memcmp(b->bytes + i, want, strlen(want)) != 0) continue;
            memmove(b->bytes, b->bytes + b->size - rest, rest);
            b->size = rest;
            return 1;
        }
    }
    return 0;
}

static int failed;

static void check(int right, const char *name)
{
    printf(right ? "ok %s\n" : "not ok %s: it did not come\n", name);
    if (!right) failed = 1;
}

static void appliance_try(struct appliance *a, int sensor)
{
    struct browser one, clock_face;
    char address[64];
    exportws_address(a->web, EXPORTWS_CLIENTS, address, sizeof address);
    check(browser_join(&one, address, "boiler") && browser_sees(a, &one, "{\"heating\":0}"),
          "browser_is_greeted");
    check(write(sensor, "2", 1) == 1 && write(sensor, "1\n-4\n", 5) == 5 &&
              browser_sees(a, &one, "{\"celsius\":21}") && browser_sees(a, &one, "{\"celsius\":-4}"),
          "serial_line_reaches_browsers");
    check(browser_join(&clock_face, address, "clock") && browser_sees(a, &clock_face, "{\"tick\":"),
          "timer_goes_on_beside_the_server");
    browser_say(&one, "toggle");
    check(browser_sees(a, &one, "{\"heating\":1}") &&
              browser_sees(a, &clock_face, "{\"heating\":1}"),
          "command_reaches_the_appliance");
    browser_say(&one, "explode");
    check(browser_sees(a, &one, "toggle is all I know"), "unknown_command_ends_the_session");
    close(one.fd), close(clock_face.fd);
    exportws_stop(a->web);
    while (appliance_turn(a) == 0) {}
    check(a->opened == 2 && a->closed == 2 && exportws_sessions(a->web) == 0,
          "sessions_are_told_of_once");
    check(a->ticks > 0 && a->readings == 2 && a->commands == 1, "appliance_has_counted");
}

int main(int argc, char **argv)
{
    static struct appliance a;
    int serial[2], testing = argc > 1 && strcmp(argv[1], "--test") == 0;
    if (pipe(serial) < 0) return 1;
    a.serial = serial[0];
    a.tick_ms = now_ms() + TICK_MS;
    if (!web_start(&a, testing ? "127.0.0.1:0" : "127.0.0.1:8080")) return 1;
    if (testing) appliance_try(&a, serial[1]);
    else while (appliance_turn(&a) == 0) {}
    exportws_end(a.web);
    close(serial[0]), close(serial[1]);
    return failed;
}
