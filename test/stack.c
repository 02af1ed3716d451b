/* stack.c - how much stack and memory a server needs: what `make size` prints
 *
 *     cc -pthread -DEXPORTWS_NO_MAIN -Wl,-z,now -o stack test/stack.c exportws.c
 *     ./stack        prints "memory BYTES", "stack BYTES" and how much work that was
 *
 * A thread on a painted stack steps the server, while the main thread keeps it busy with all it
 * has: upgrades, refusals, messages, pings, closes, pushes with a length and in chunks, /metrics,
 * posts, slow readers, timeouts, the log at its longest. Then the paint that is left is counted from
 * below.
 * What stands above the thread's own function (its descriptor, thread-local data) is not the
 * server's; link with -z now, or the dynamic linker's resolver is measured, too. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "../exportws.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { STACK_BYTES = 1 << 18, PAINT = 0xa5, ROUNDS = 60 };

static exportws *server;
static uint8_t *stack, *top; /* top: where the server's thread begins */
static volatile long lines, opened, closed, messages; /* of the server's thread, until it ends */
static char clients_at[64], push_at[64];

/* ===== The server's thread ===== */

static void on_open(void *user, exportws_id session, const char *token)
{
    (void)user, (void)token;
    opened = opened + 1;
    exportws_reply(server, session, "welcome", 7, EXPORTWS_TEXT);
}

static void on_message(void *user, exportws_id session, const char *token, const void *data,
                       size_t size, int kind)
{
    (void)user;
    messages = messages + 1;
    exportws_broadcast(server, data, size, kind);
    exportws_send(server, token, data, size, kind);
    if (size > 3) exportws_close(server, session, 4000, "enough");
}

static void on_close(void *user, exportws_id session, const char *token, int reason, int code)
{
    (void)user, (void)session, (void)reason, (void)code;
    closed = closed + 1;
    exportws_send(server, token, "gone", 4, EXPORTWS_TEXT);
}

static void on_log(void *user, int level, const char *line)
{
    (void)user, (void)level, (void)line;
    lines = lines + 1;
}

static void *server_run(void *argument)
{
    uint8_t here = 0;
    (void)argument;
    top = stack + ((uintptr_t)&here - (uintptr_t)stack);
    while (exportws_step(server, -1) >= 0) {}
    return NULL;
}

/* 8 sessions with messages of 512 bytes. */
static void options_small(exportws_options *o)
{
    exportws_defaults(o);
    o->capacity = 8, o->handshakes = 2, o->pushers = 1;
    o->max_message_bytes = o->max_push_bytes = 512;
    o->buffer_bytes = 2048;
    while (o->buffer_bytes > 256 && exportws_memory(o) > 0) o->buffer_bytes /= 2;
    if (exportws_memory(o) == 0) o->buffer_bytes *= 2;
}

/* ===== Work ===== */

static int dial(const char *address, int receive_buffer)
{
    struct sockaddr_in to;
    struct timeval patience = {1, 0};
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (receive_buffer > 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (const struct sockaddr *)&to, sizeof to) < 0) perror("connect");
    return fd;
}

/* Sends a request and reads the start of the answer. */
static int ask(const char *address, const char *request, int receive_buffer)
{
    char answer[8192];
    int fd = dial(address, receive_buffer);
    send(fd, request, strlen(request), MSG_NOSIGNAL);
    if (recv(fd, answer, sizeof answer, 0) < 0) answer[0] = '\0';
    return fd;
}

static void ask_once(const char *address, const char *request)
{
    close(ask(address, request, 0));
}

#define UPGRADE                                                                                    \
    " HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"            \
    "Origin: http://h\r\nSec-WebSocket-Version: 13\r\n"                                            \
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

static void say(int fd, unsigned first, const char *text)
{
    uint8_t frame[140] = {(uint8_t)first, (uint8_t)(0x80 | strlen(text)), 0, 0, 0, 0};
    memcpy(frame + 6, text, strlen(text));
    send(fd, frame, 6 + strlen(text), MSG_NOSIGNAL);
}

static void work_pushes(void)
{
    static const char *const requests[] = {
        "POST /app/ws/export-task/t HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        "POST /app/ws/export-task/absent HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        "POST /app/ws/export-task/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n",
        "POST /app/ws/export-task/t HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n"
        "Content-Type: application/octet-stream\r\nExpect: 100-continue\r\n\r\nabc",
        "POST /app/ws/export-task/t HTTP/1.1\r\nHost: h\r\nContent-Length: 9999\r\n\r\n",
        "POST /app/ws/export-task/t HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n\xff",
        "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\nGET /online HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", "GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n",
        "DELETE /app/ws/export-task/absent HTTP/1.1\r\nHost: h\r\n\r\n",
        "PATCH / HTTP/1.1\r\nHost: h\r\n\r\n"};
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) ask_once(push_at, requests[i]);
}

static void work_clients(void)
{
    static const char *const requests[] = {
        "GET /app/ws/export-task/t HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "BAD\r\n\r\n", "GET /app/ws/export-task/%zz" UPGRADE,
        "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /app/ws/export-task/t HTTP/1.1\r\nHost: h\r\nOrigin: http://evil\r\n\r\n"};
    int fd[4];
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++)
        ask_once(clients_at, requests[i]);
    for (int i = 0; i < 4; i++)
        fd[i] = ask(clients_at, "GET /app/ws/export-task/t?q=1" UPGRADE, i == 0 ? 2048 : 0);
    say(fd[0], 0x81, "HEART-BEAT");
    say(fd[1], 0x89, "ping");
    say(fd[2], 0x01, "fra"), say(fd[2], 0x80, "gments");
    say(fd[3], 0x81, "\xff");
    say(fd[1], 0x82, "abc");
    for (int i = 0; i < 200; i++) exportws_post(server, "t", "sixteen bytes ..", 16, EXPORTWS_TEXT);
    work_pushes();
    say(fd[1], 0x88, "\x03\xe8");
    for (int i = 0; i < 4; i++) close(fd[i]);
}

/* ===== Figures ===== */

int main(void)
{
    exportws_options o;
    pthread_attr_t attributes;
    pthread_t thread;
    char why[160];
    options_small(&o);
    printf("memory %lu\n", (unsigned long)exportws_memory(&o));
    o.listen = o.push = "127.0.0.1:0";
    o.queue = 4, o.hold_ms = 50, o.ping_ms = 20, o.handshake_timeout_ms = 100;
    o.log_level = EXPORTWS_LOG_DEBUG;
    o.per_address = 100;
    o.on_open = on_open, o.on_message = on_message, o.on_close = on_close, o.on_log = on_log;
    void *memory = malloc(exportws_memory(&o));
    stack = memory ? malloc(STACK_BYTES) : NULL;
    if (stack) server = exportws_start(&o, memory, exportws_memory(&o), why, sizeof why);
    if (!server) return 1;
    exportws_address(server, EXPORTWS_CLIENTS, clients_at, sizeof clients_at);
    exportws_address(server, EXPORTWS_PUSH, push_at, sizeof push_at);
    uint8_t *bottom = stack + (64 - (uintptr_t)stack % 64); /* threads want it aligned */
    memset(stack, PAINT, STACK_BYTES);
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, bottom, STACK_BYTES - 64);
    if (pthread_create(&thread, &attributes, server_run, NULL) != 0) return 1;
    for (int round = 0; round < ROUNDS; round++) work_clients();
    exportws_stop(server);
    pthread_join(thread, NULL);
    exportws_end(server);
    while (*bottom == PAINT) bottom++;
    printf("stack %ld\n", (long)(top - bottom));
    printf("work %ld opened, %ld closed, %ld messages, %ld log lines\n", opened, closed, messages,
           lines);
    return opened < ROUNDS || opened != closed || messages == 0;
}
