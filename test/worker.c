/* worker.c - four threads post progress while clients come and go
 *
 *     cc -pthread -DEXPORTWS_NO_MAIN -o worker test/worker.c exportws.c
 *     ./worker [--posts N]              1,000,000 posts in all; a few thousand for helgrind
 *
 * The main thread steps the server, which is nobody else's. Four workers each have a token and post
 * "WORKER NUMBER" to it with exportws_post, every 16th to all; EXPORTWS_FULL makes them wait a
 * moment and try again. One more thread plays the clients: a keeper for each token, which reads all
 * the time and has to get every post of its worker, in order, and every 16th of each other; and
 * flappers, which come, say something, read or do not, and go in every way a client can.
 *
 * A worker stops while its keeper is far behind: that is what "a client that keeps up" means here,
 * however slow the machine is. Prints a line for each thing that is checked; exits 0 when all were
 * right. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "../exportws.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    WORKERS = 4,
    FLAPPERS = 4,
    TO_ALL = 16,      /* one post in so many goes to all */
    WINDOW = 4000,    /* posts that a keeper may be behind */
    STALL_MS = 60000, /* without any progress */
    NAME_BYTES = 8
};

static exportws *server; /* set before the threads start */
static long posts_each = 250000;

/* What the threads share, behind the lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static long received[WORKERS]; /* of its own worker's posts, by each keeper */
static int ready, broken;
static long full;

/* Of the server's thread alone. */
static long opened, closed, warned, spoken;

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ===== Workers ===== */

/* Waits until the keeper is near. 0, or -1 when something has gone wrong. */
static int worker_wait(int worker, long posted)
{
    pthread_mutex_lock(&lock);
    while ((!ready || posted - received[worker] >= WINDOW) && !broken)
        pthread_cond_wait(&moved, &lock);
    int stop = broken;
    pthread_mutex_unlock(&lock);
    return stop ? -1 : 0;
}

static void *worker_run(void *argument)
{
    const int worker = *(const int *)argument;
    char token[NAME_BYTES], text[32];
    long waits = 0;
    snprintf(token, sizeof token, "w%d", worker);
    for (long i = 0; i < posts_each; i++) {
        int n = snprintf(text, sizeof text, "%d %ld", worker, i), error;
        if (i % 64 == 0 && worker_wait(worker, i) < 0) break;
        while ((error = exportws_post(server, i % TO_ALL == 0 ? NULL : token, text, (size_t)n,
                                      EXPORTWS_TEXT)) == EXPORTWS_FULL) {
            waits++;
            poll(NULL, 0, 1);
        }
        if (error != 0) {
            printf("not ok post: %s\n", exportws_strerror(error));
            break;
        }
    }
    pthread_mutex_lock(&lock);
    full += waits;
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* ===== Clients ===== */

struct client {
    int fd, upgraded, reads;
    long age;
    size_t size;
    uint8_t bytes[1 << 15];
    long next[WORKERS]; /* what a keeper has to get next of each worker */
};

static struct client keepers[WORKERS], flappers[FLAPPERS];
static struct sockaddr_in door;
static char trouble[160]; /* of the clients' thread */

static void client_join(struct client *c, int token)
{
    char request[256];
    int n = snprintf(request, sizeof request,
                     "GET /app/ws/export-task/w%d HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
                     "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                     token);
    c->upgraded = 0, c->age = 0, c->size = 0;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (const struct sockaddr *)&door, sizeof door) < 0 ||
        send(c->fd, request, (size_t)n, MSG_NOSIGNAL) != n)
        snprintf(trouble, sizeof trouble, "join: %s", strerror(errno));
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
}

static void client_skip(struct client *c, size_t n)
{
    memmove(c->bytes, c->bytes + n, c->size - n);
    c->size -= n;
}

/* Reads what there is: 1 when something came, -1 at the end. */
static int client_read(struct client *c)
{
    ssize_t n = recv(c->fd, c->bytes + c->size, sizeof c->bytes - c->size, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) return -1;
    c->size += (size_t)n;
    for (size_t i = 3; i < c->size && !c->upgraded; i++) {
        if (memcmp(c->bytes + i - 3, "\r\n\r\n", 4) != 0) continue;
        c->upgraded = memcmp(c->bytes, "HTTP/1.1 101 ", 13) == 0;
        if (!c->upgraded) return -1;
        client_skip(c, i + 1);
    }
    return 1;
}

/* A post: it must be the next of its worker. */
static void keeper_message(struct client *c, int keeper, const char *text)
{
    int worker = -1;
    long number = -1;
    if (sscanf(text, "%d %ld", &worker, &number) != 2 || worker < 0 || worker >= WORKERS) {
        snprintf(trouble, sizeof trouble, "keeper %d got '%s'", keeper, text);
        return;
    }
    if (number != c->next[worker])
        snprintf(trouble, sizeof trouble, "keeper %d got %ld of worker %d instead of %ld", keeper,
                 number, worker, c->next[worker]);
    c->next[worker] = number + (worker == keeper ? 1 : TO_ALL);
}

/* Takes all whole frames. */
static void keeper_take(struct client *c, int keeper)
{
    size_t at = 0;
    while (c->size - at >= 2 && c->size - at >= 2U + c->bytes[at + 1]) {
        char text[126];
        size_t n = c->bytes[at + 1];
        if (n > 125) n = 0;
        memcpy(text, c->bytes + at + 2, n), text[n] = '\0';
        if (c->bytes[at] == 0x81) keeper_message(c, keeper, text);
        else if (c->bytes[at] != 0x89) /* a ping */
            snprintf(trouble, sizeof trouble, "keeper %d: frame 0x%02x", keeper, c->bytes[at]);
        if (*trouble) return;
        at += 2 + n;
    }
    client_skip(c, at);
}

/* One look at a keeper: 1 when it has got something. */
static int keeper_turn(int keeper)
{
    struct client *c = &keepers[keeper];
    int got = client_read(c);
    if (got < 0) snprintf(trouble, sizeof trouble, "keeper %d was closed", keeper);
    if (got <= 0 || !c->upgraded) return 0;
    keeper_take(c, keeper);
    return 1;
}

/* Leaves as a tab that is closed, as one that crashed, or in good order. */
static void flapper_leave(struct client *c, int how)
{
    static const uint8_t bye[8] = {0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8};
    struct linger hard = {1, 0};
    if (how == 1) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    if (how == 2) send(c->fd, bye, sizeof bye, MSG_NOSIGNAL);
    close(c->fd);
    c->fd = -1;
}

static void flapper_turn(struct client *c, long number)
{
    static const uint8_t hello[8] = {0x81, 0x82, 0, 0, 0, 0, 'h', 'i'};
    if (c->fd < 0) {
        client_join(c, (int)(number % WORKERS));
        c->reads = number % 3 != 0;
        return;
    }
    int before = c->upgraded, got = before && !c->reads ? 0 : client_read(c);
    if (c->upgraded && !before) send(c->fd, hello, sizeof hello, MSG_NOSIGNAL);
    if (c->upgraded) c->size = 0, c->age++;
    if (got < 0 || c->age > 20 + number % 50) flapper_leave(c, (int)(number / 7 % 3));
}

/* Tells the workers how far their keepers are. */
static void keepers_report(void)
{
    pthread_mutex_lock(&lock);
    ready = 1;
    for (int i = 0; i < WORKERS; i++) {
        if (!keepers[i].upgraded) ready = 0;
        received[i] = keepers[i].next[i];
    }
    if (*trouble) broken = 1;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
}

static int keepers_done(void)
{
    long others = (posts_each + TO_ALL - 1) / TO_ALL * TO_ALL;
    for (int keeper = 0; keeper < WORKERS; keeper++)
        for (int worker = 0; worker < WORKERS; worker++)
            if (keepers[keeper].next[worker] < (keeper == worker ? posts_each : others)) return 0;
    return 1;
}

static void *clients_run(void *argument)
{
    long long progress_ms = now_ms();
    long visits = 0;
    for (int i = 0; i < WORKERS; i++) client_join(&keepers[i], i);
    for (int i = 0; i < FLAPPERS; i++) flappers[i].fd = -1;
    while (!*trouble && !keepers_done()) {
        struct pollfd fds[WORKERS];
        int got = 0;
        for (int i = 0; i < WORKERS; i++)
            fds[i].fd = keepers[i].fd, fds[i].events = POLLIN, fds[i].revents = 0;
        poll(fds, WORKERS, 10);
        for (int i = 0; i < WORKERS; i++) got |= keeper_turn(i);
        for (int i = 0; i < FLAPPERS; i++) {
            if (flappers[i].fd < 0) visits++;
            flapper_turn(&flappers[i], visits + i);
        }
        if (got) progress_ms = now_ms();
        else if (now_ms() - progress_ms > STALL_MS)
            snprintf(trouble, sizeof trouble, "nothing comes any more");
        keepers_report();
    }
    for (int i = 0; i < FLAPPERS; i++)
        if (flappers[i].fd >= 0) flapper_leave(&flappers[i], 0);
    for (int i = 0; i < WORKERS; i++) close(keepers[i].fd);
    *(long *)argument = visits;
    exportws_stop(server); /* the one other call that any thread may make */
    return NULL;
}

/* ===== The server's thread ===== */

static void on_open(void *user, exportws_id session, const char *token)
{
    (void)user, (void)session, (void)token;
    opened++;
}

static void on_close(void *user, exportws_id session, const char *token, int reason, int code)
{
    (void)user, (void)session, (void)token, (void)reason, (void)code;
    closed++;
}

/* A flapper said something: it is answered, between all the posts. */
static void on_message(void *user, exportws_id session, const char *token, const void *data,
                       size_t size, int kind)
{
    (void)user, (void)token;
    spoken++;
    exportws_reply(server, session, data, size, kind);
}

/* Posts that were refused are logged as warnings: there must be none while the keepers are there.
 */
static void on_log(void *user, int level, const char *line)
{
    (void)user;
    if (level > EXPORTWS_LOG_WARN || strstr(line, "event=stop")) return;
    if (warned++ == 0) printf("%s\n", line);
}

static void *server_start(void)
{
    exportws_options o;
    char why[128], address[64];
    exportws_defaults(&o);
    o.listen = "127.0.0.1:0";
    o.capacity = 64, o.per_token = 64;
    o.queue = 4 * WINDOW, o.buffer_bytes = 1 << 25, o.max_push_bytes = 16384;
    o.on_open = on_open, o.on_message = on_message, o.on_close = on_close, o.on_log = on_log;
    o.log_level = EXPORTWS_LOG_WARN;
    void *memory = malloc(exportws_memory(&o));
    if (memory) server = exportws_start(&o, memory, exportws_memory(&o), why, sizeof why);
    if (!server) {
        printf("not ok start: %s\n", memory ? why : "out of memory");
        exit(1);
    }
    exportws_address(server, EXPORTWS_CLIENTS, address, sizeof address);
    door.sin_family = AF_INET;
    door.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
    door.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return memory;
}

static int failures;

static void check(int right, const char *name, const char *why)
{
    if (right) printf("ok %s\n", name);
    else printf("not ok %s: %s\n", name, why), failures++;
}

int main(int argc, char **argv)
{
    static const int numbers[WORKERS] = {0, 1, 2, 3};
    pthread_t threads[WORKERS], clients;
    long visits = 0;
    if (argc == 3 && strcmp(argv[1], "--posts") == 0) posts_each = atol(argv[2]) / WORKERS;
    else if (argc > 1) posts_each = 0;
    if (posts_each < 1) {
        fprintf(stderr, "usage: worker [--posts N]\n");
        return 2;
    }
    void *memory = server_start();
    long long start_ms = now_ms();
    pthread_create(&clients, NULL, clients_run, &visits);
    for (int i = 0; i < WORKERS; i++)
        pthread_create(&threads[i], NULL, worker_run, (void *)(uintptr_t)&numbers[i]);
    while (exportws_step(server, -1) >= 0) {}
    pthread_join(clients, NULL);
    for (int i = 0; i < WORKERS; i++) pthread_join(threads[i], NULL);
    printf("%ld posts by %d workers in %lld ms; the ring was full %ld times; %ld sessions\n",
           posts_each * WORKERS, WORKERS, now_ms() - start_ms, full, opened);
    check(!*trouble, "every_post_came_in_order", trouble);
    check(warned == 0, "no_post_was_refused", "the loop has refused some, or warned");
    check(opened == closed && exportws_sessions(server) == 0, "sessions_are_told_of_once",
          "opened and closed differ");
    check(visits > 0 && opened > WORKERS && spoken > 0, "clients_came_and_went", "they did not");
    check(posts_each < 100000 || full > 0, "ring_was_full_now_and_then", "never");
    exportws_end(server);
    free(memory);
    return failures > 0;
}
