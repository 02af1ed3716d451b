/*
 * peer_lws.c - exportws' job done with libwebsockets, as its examples do things: test/bench.c
 * measures it.
 *
 *     cc -O2 -o build/peer_lws test/peer_lws.c -lwebsockets
 *     build/peer_lws
 *
 * Clients and pushers share one port of loopback, which the ready line names. POST to the path of a
 * token goes to its sessions, POST to the bare path to all. Binary messages are sent back. The
 * loop is libuv's where the library has it, so that idle sessions cost nothing: its own is poll().
 */
#include <libwebsockets.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH "/app/ws/export-task/"

enum { MAX_BODY = 65536, MAX_TOKEN = 64, WAITING = 32, BUCKETS = 16384 };

/* One message and the sessions that are still to send it. */
struct message {
    size_t users, size;
    enum lws_write_protocol kind;
    unsigned char bytes[];                              /* LWS_PRE, then the message */
};

struct session {
    struct lws *wsi;
    char token[MAX_TOKEN];
    struct session *next, **back;                       /* all */
    struct session *same_next, **same_back;             /* of its bucket */
    struct message *queue[WAITING];
    size_t first, waiting;
};

/* What libwebsockets keeps for each connection. A pusher's has but a token and what is coming. */
struct connection {
    struct session session;
    struct message *coming;
};

struct server {
    struct session *all, *bucket[BUCKETS];
};

static struct message *message_new(size_t room)
{
    struct message *m = malloc(sizeof *m + LWS_PRE + room);
    if (m != NULL)
        m->users = 0, m->size = 0, m->kind = LWS_WRITE_TEXT;
    return m;
}

static void message_leave(struct message *m)
{
    if (--m->users == 0)
        free(m);
}

static struct session **server_bucket(struct server *server, const char *token)
{
    size_t hash = 5381;
    for (; *token != '\0'; token++)
        hash = hash * 33 + (unsigned char)*token;
    return &server->bucket[hash % BUCKETS];
}

static void session_open(struct server *server, struct session *s, struct lws *wsi)
{
    struct session **bucket;
    char path[sizeof PATH - 1 + MAX_TOKEN] = PATH;
    lws_hdr_copy(wsi, path, sizeof path, WSI_TOKEN_GET_URI);
    memcpy(s->token, path + sizeof PATH - 1, MAX_TOKEN);
    bucket = server_bucket(server, s->token);
    s->wsi = wsi;
    s->next = server->all, s->back = &server->all;
    s->same_next = *bucket, s->same_back = bucket;
    if (s->next != NULL)
        s->next->back = &s->next;
    if (s->same_next != NULL)
        s->same_next->same_back = &s->same_next;
    server->all = *bucket = s;
}

static void session_close(struct session *s)
{
    if (s->wsi == NULL)
        return;
    for (; s->waiting > 0; s->waiting--)
        message_leave(s->queue[s->first++ % WAITING]);
    *s->back = s->next;
    *s->same_back = s->same_next;
    if (s->next != NULL)
        s->next->back = s->back;
    if (s->same_next != NULL)
        s->same_next->same_back = s->same_back;
    s->wsi = NULL;
}

/* libwebsockets sends when it asks to be given something. 1: it will; 0: the queue is full. */
static size_t session_post(struct session *s, struct message *m)
{
    if (s->waiting == WAITING)
        return 0;
    s->queue[(s->first + s->waiting++) % WAITING] = m;
    m->users++;
    lws_callback_on_writable(s->wsi);
    return 1;
}

static int session_write(struct session *s)
{
    struct message *m;
    int n;
    if (s->waiting == 0)
        return 0;
    m = s->queue[s->first++ % WAITING];
    s->waiting--;
    n = lws_write(s->wsi, m->bytes + LWS_PRE, m->size, m->kind);
    message_leave(m);
    if (s->waiting > 0)
        lws_callback_on_writable(s->wsi);
    return n < 0 ? -1 : 0;
}

/* A message may come in several pieces; binary ones go back. */
static int session_receive(struct connection *c, const void *in, size_t size)
{
    struct lws *wsi = c->session.wsi;
    if (!lws_frame_is_binary(wsi))
        return 0;
    if (c->coming == NULL && (c->coming = message_new(MAX_BODY)) == NULL)
        return -1;
    if (c->coming->size + size > MAX_BODY)
        return -1;
    memcpy(c->coming->bytes + LWS_PRE + c->coming->size, in, size);
    c->coming->size += size;
    if (lws_is_final_fragment(wsi) && lws_remaining_packet_payload(wsi) == 0) {
        c->coming->kind = LWS_WRITE_BINARY;
        if (!session_post(&c->session, c->coming))
            return -1;
        c->coming = NULL;
    }
    return 0;
}

static size_t server_deliver(struct server *server, const char *token, struct message *m)
{
    struct session *s;
    size_t delivered = 0;
    m->users = 1;                                       /* us */
    if (token[0] == '\0') {
        for (s = server->all; s != NULL; s = s->next)
            delivered += session_post(s, m);
    } else {
        for (s = *server_bucket(server, token); s != NULL; s = s->same_next)
            if (strcmp(s->token, token) == 0)
                delivered += session_post(s, m);
    }
    message_leave(m);
    return delivered;
}

static int request_begin(struct connection *c, struct lws *wsi, const char *path)
{
    char length[16];
    if (lws_hdr_total_length(wsi, WSI_TOKEN_POST_URI) == 0 ||
        strncmp(path, PATH, sizeof PATH - 1) != 0 ||
        lws_hdr_copy(wsi, length, sizeof length, WSI_TOKEN_HTTP_CONTENT_LENGTH) <= 0 ||
        atoi(length) > MAX_BODY) {
        if (lws_return_http_status(wsi, HTTP_STATUS_NOT_FOUND, NULL) != 0)
            return -1;
        return lws_http_transaction_completed(wsi) ? -1 : 0;
    }
    snprintf(c->session.token, sizeof c->session.token, "%s", path + sizeof PATH - 1);
    c->coming = message_new((size_t)atoi(length));
    return c->coming != NULL ? 0 : -1;
}

static int request_body(struct connection *c, const void *in, size_t size)
{
    if (c->coming == NULL)
        return -1;
    memcpy(c->coming->bytes + LWS_PRE + c->coming->size, in, size);
    c->coming->size += size;
    return 0;
}

static int request_end(struct server *server, struct connection *c, struct lws *wsi)
{
    unsigned char out[LWS_PRE + 1024], *p = out + LWS_PRE, *end = out + sizeof out;
    char json[64];
    int n;
    if (c->coming == NULL)
        return -1;
    n = snprintf(json, sizeof json, "{\"delivered\":%zu}",
                 server_deliver(server, c->session.token, c->coming));
    c->coming = NULL;
    if (lws_add_http_common_headers(wsi, HTTP_STATUS_OK, "application/json", (lws_filepos_t)n, &p,
                                    end) != 0 ||
        lws_finalize_http_header(wsi, &p, end) != 0)
        return -1;
    memcpy(p, json, (size_t)n);                         /* head and body by one send() */
    p += n;
    if (lws_write(wsi, out + LWS_PRE, (size_t)(p - out) - LWS_PRE, LWS_WRITE_HTTP_HEADERS) < 0)
        return -1;
    return lws_http_transaction_completed(wsi) ? -1 : 0;
}

static void connection_end(struct connection *c)
{
    session_close(&c->session);
    free(c->coming);
    c->coming = NULL;
}

static int on_event(struct lws *wsi, enum lws_callback_reasons why, void *user, void *in,
                    size_t size)
{
    struct server *server = lws_context_user(lws_get_context(wsi));
    struct connection *c = user;
    switch (why) {
    case LWS_CALLBACK_ESTABLISHED: session_open(server, &c->session, wsi); return 0;
    case LWS_CALLBACK_SERVER_WRITEABLE: return session_write(&c->session);
    case LWS_CALLBACK_RECEIVE: return session_receive(c, in, size);
    case LWS_CALLBACK_HTTP: return request_begin(c, wsi, in);
    case LWS_CALLBACK_HTTP_BODY: return request_body(c, in, size);
    case LWS_CALLBACK_HTTP_BODY_COMPLETION: return request_end(server, c, wsi);
    case LWS_CALLBACK_CLOSED:
    case LWS_CALLBACK_CLOSED_HTTP:
        if (c != NULL)
            connection_end(c);
        return 0;
    default: return lws_callback_http_dummy(wsi, why, user, in, size);
    }
}

static int server_run(struct server *server)
{
    static const lws_retry_bo_t no_pings = {.secs_since_valid_ping = 65534,
                                            .secs_since_valid_hangup = 65535};
    static const struct lws_protocols protocols[] = {
        {"push", on_event, sizeof(struct connection), MAX_BODY, 0, NULL, 0},
        {NULL, NULL, 0, 0, 0, NULL, 0}};
    struct lws_context_creation_info info;
    struct lws_context *context;
    struct lws_vhost *vhost;
    memset(&info, 0, sizeof info);
    info.options = LWS_SERVER_OPTION_EXPLICIT_VHOSTS | LWS_SERVER_OPTION_DISABLE_IPV6;
#ifdef LWS_WITH_LIBUV
    info.options |= LWS_SERVER_OPTION_LIBUV;
#endif
    info.protocols = protocols;
    info.iface = "127.0.0.1";
    info.keepalive_timeout = 3600;
    info.retry_and_idle_policy = &no_pings;
    info.user = server;
    context = lws_create_context(&info);
    vhost = context != NULL ? lws_create_vhost(context, &info) : NULL;
    if (vhost == NULL)
        return 1;
    printf("ready: clients 127.0.0.1:%d\n", lws_get_vhost_listen_port(vhost));
    fflush(stdout);
    while (lws_service(context, 0) >= 0)
        continue;
    lws_context_destroy(context);
    return 0;
}

int main(int argc, char **argv)
{
    static struct server server;
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        printf("libwebsockets %s\n", lws_get_library_version());
        return 0;
    }
    lws_set_log_level(LLL_ERR, NULL);
    return server_run(&server);
}
