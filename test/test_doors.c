/*
 * test_doors.c - every row of the contract's two tables of requests and answers, over real sockets.
 *
 * A row is {name, request, status, header, body fragment}; each runs sent whole and byte by byte.
 * A refusal must be a complete answer, readable to its end, followed by EOF and not by a reset.
 */
#include "server.h"

struct row {
    const char *name, *request; /* each KIB in the request stands for 1,024 letters */
    int status;
    const char *header;         /* "Name", "Name: value", "Name: ~word" (a list has it), NULL */
    const char *fragment;       /* somewhere in the body; NULL: anything */
};

#define T DEFAULT_PATH
#define HOST "Host: localhost\r\n"
#define KEY "Sec-WebSocket-Key: " SAMPLE_KEY "\r\n"
#define V13 "Sec-WebSocket-Version: 13\r\n"
#define WS "Upgrade: websocket\r\nConnection: Upgrade\r\n"
#define UPGRADE(target) "GET " target " HTTP/1.1\r\n" HOST WS KEY V13 "\r\n"
#define X16 "xxxxxxxxxxxxxxxx"
#define X64 X16 X16 X16 X16
#define KIB "\x1a"
#define KIB6 KIB KIB KIB KIB KIB KIB
#define KIB12 KIB6 KIB6
#define KIB60 KIB12 KIB12 KIB12 KIB12 KIB12
#define P16 "%41%42%43%44%45%46%47%48%49%4a%4B%4c%4d%4e%4f%50"

/* ===== Running a row ===== */

/* 1 when a comma list has the word, in any case. */
static int list_has(const char *list, const char *word)
{
    size_t n = strlen(word);
    while (*list != '\0') {
        size_t size;
        list += strspn(list, ", \t");
        size = strcspn(list, ",");
        while (size > 0 && (list[size - 1] == ' ' || list[size - 1] == '\t'))
            size--;
        if (size == n && strncasecmp(list, word, n) == 0)
            return 1;
        list += strcspn(list, ",");
    }
    return 0;
}

/* 1 when one of the reply's header lines is what a row's header column says. */
static int header_matches(const struct reply *r, const char *want)
{
    size_t name = strcspn(want, ":");
    const char *line, *value = want[name] == ':' ? want + name + 2 : NULL;
    for (line = strstr(r->head, "\r\n"); line != NULL; line = strstr(line, "\r\n")) {
        char got[256];
        line += 2;
        if (strncasecmp(line, want, name) != 0 || line[name] != ':')
            continue;
        snprintf(got, sizeof got, "%.*s", (int)strcspn(line + name + 2, "\r"), line + name + 2);
        if (value == NULL || (*value == '~' ? list_has(got, value + 1) : strcmp(got, value) == 0))
            return 1;
    }
    return 0;
}

static void row_read(const struct row *row, struct conn *c, struct reply *r)
{
    int got = reply_read_until(c, r, deadline_usual());
    if (got != READ_OK)
        harness_fail("%s: no reply: %s", row->name, read_name(got));
    if (r->status != row->status)
        harness_fail("%s: wanted %d, got %d: %s", row->name, row->status, r->status, r->body);
    if (row->header != NULL && !header_matches(r, row->header))
        harness_fail("%s: wanted header '%s' in:\n%s", row->name, row->header, r->head);
    if (row->fragment != NULL && strstr(r->body, row->fragment) == NULL)
        harness_fail("%s: wanted '%s' in the body: %s", row->name, row->fragment, r->body);
}

/* A row's request with its KIBs written out; static. */
static const char *request_expand(const char *request, size_t *size)
{
    static char bytes[131072];
    size_t n = 0;
    for (; *request != '\0'; request++) {
        size_t times = *request == KIB[0] ? 1024 : 1;
        assert_true(n + times <= sizeof bytes);
        memset(bytes + n, times > 1 ? 'x' : *request, times);
        n += times;
    }
    *size = n;
    return bytes;
}

/* Sends a request whole (piece 0) or in pieces; an early refusal may end it. */
static void request_send(struct conn *c, const char *request, size_t size, size_t piece)
{
    size_t at, n;
    for (at = 0; at < size; at += n) {
        n = piece == 0 || size - at < piece ? size - at : piece;
        if (conn_send(c, request + at, n) != 0)
            return;
    }
}

/* A refusal of the client door: one line of reason, then the end, not eaten by a reset. */
static void refusal_check(const struct row *row, struct conn *c, struct reply *r)
{
    size_t line = strcspn(r->body, "\r\n");
    if (!header_matches(r, "Connection: ~close"))
        harness_fail("%s: refused without Connection: close:\n%s", row->name, r->head);
    if (line < 4 || strspn(r->body + line, "\r\n") != strlen(r->body + line))
        harness_fail("%s: wanted a one-line reason, got '%s'", row->name, r->body);
    conn_expect_eof(c);
}

static void client_row_run(const struct server *s, const struct row *row, size_t piece)
{
    static struct reply r;
    struct conn c;
    size_t size;
    const char *request = request_expand(row->request, &size);
    conn_open(&c, s->clients);
    request_send(&c, request, size, piece);
    row_read(row, &c, &r);
    if (r.status == 101)
        peer_check_101(&r);
    else if (r.status >= 400)
        refusal_check(row, &c, &r);
    conn_close(&c);
}

static void client_rows_run(const struct server *s, const struct row *rows, size_t n)
{
    size_t i;
    for (i = 0; i < n; i++) {
        client_row_run(s, &rows[i], 0);
        client_row_run(s, &rows[i], 1);
    }
}

static void push_row_run(const struct server *s, const struct row *row, size_t piece)
{
    static struct reply r;
    struct conn c;
    size_t size;
    const char *request = request_expand(row->request, &size);
    conn_open(&c, s->push);
    request_send(&c, request, size, piece);
    row_read(row, &c, &r);
    if (strstr(row->request, "GET /metrics") == NULL &&
        (r.body[0] != '{' || !header_matches(&r, "Content-Type: application/json")))
        harness_fail("%s: not a JSON answer:\n%s\n%s", row->name, r.head, r.body);
    if (r.status >= 400 && strstr(r.body, "\"error\":\"") == NULL && r.status != 503)
        harness_fail("%s: refused without a reason: %s", row->name, r.body);
    if (header_matches(&r, "Connection: ~close"))
        conn_expect_eof(&c);
    conn_close(&c);
}

static void push_rows_run(const struct server *s, const struct row *rows, size_t n)
{
    size_t i;
    for (i = 0; i < n; i++) {
        push_row_run(s, &rows[i], 0);
        push_row_run(s, &rows[i], 1);
        push_row_run(s, &rows[i], 7);
    }
}

#define COUNT(rows) (sizeof(rows) / sizeof *(rows))

/* ===== The client door ===== */

static const struct row upgrade_rows[] = {
    {"plain", UPGRADE(T "abc"), 101, "Upgrade: websocket", NULL},
    {"query", UPGRADE(T "abc?a=b&c=%20"), 101, NULL, NULL},
    {"encoded token", UPGRADE(T "%61b%63"), 101, NULL, NULL},
    {"any byte", UPGRADE(T "%01%0a%20%25%7f%80%ff"), 101, NULL, NULL},
    {"64 bytes", UPGRADE(T X64), 101, NULL, NULL},
    {"64 encoded bytes", UPGRADE(T P16 P16 P16 P16), 101, NULL, NULL},
    {"names in any case",
     "GET " T "abc HTTP/1.1\r\nHOST: a\r\nuPGRADE: WebSocket\r\nconnection: UPGRADE\r\n"
     "SEC-websocket-KEY: " SAMPLE_KEY "\r\nsec-websocket-version: 13\r\n\r\n", 101, NULL, NULL},
    {"connection is a list",
     "GET " T "abc HTTP/1.1\r\n" HOST KEY V13
     "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n", 101, NULL, NULL},
    {"no blank after the colon",
     "GET " T "abc HTTP/1.1\r\nHost:a\r\nUpgrade:websocket\r\nConnection:Upgrade\r\n"
     "Sec-WebSocket-Key:" SAMPLE_KEY "\r\nSec-WebSocket-Version:13\r\n\r\n", 101, NULL, NULL},
    {"blanks around values",
     "GET " T "abc HTTP/1.1\r\nHost: \t a\r\nUpgrade:  websocket \r\nConnection:\tUpgrade\t\r\n"
     "Sec-WebSocket-Key:  " SAMPLE_KEY "  \r\nSec-WebSocket-Version: 13 \r\n\r\n", 101, NULL, NULL},
    {"large head, but not too large",
     "GET " T "abc HTTP/1.1\r\n" HOST WS KEY V13 "Cookie: " KIB6 "\r\n\r\n", 101,
     NULL, NULL},
    {"extensions and unknown subprotocols are not accepted",
     "GET " T "abc HTTP/1.1\r\n" HOST WS KEY V13
     "Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: chat\r\n\r\n", 101,
     NULL, NULL},
};

static const struct row refused_rows[] = {
    {"no upgrade", "GET " T "abc HTTP/1.1\r\n" HOST "\r\n", 426, "Upgrade: websocket", NULL},
    {"no upgrade: connection", "GET " T "abc HTTP/1.1\r\n" HOST "\r\n", 426, "Connection: ~Upgrade",
     NULL},
    {"no upgrade: version", "GET " T "abc HTTP/1.1\r\n" HOST "\r\n", 426,
     "Sec-WebSocket-Version: 13", NULL},
    {"upgrade to something else",
     "GET " T "abc HTTP/1.1\r\n" HOST "Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n", 426,
     "Upgrade: websocket", NULL},
    {"version 8",
     "GET " T "abc HTTP/1.1\r\n" HOST WS KEY "Sec-WebSocket-Version: 8\r\n\r\n", 426,
     "Sec-WebSocket-Version: 13", NULL},
    {"version 130",
     "GET " T "abc HTTP/1.1\r\n" HOST WS KEY "Sec-WebSocket-Version: 130\r\n\r\n", 426,
     "Sec-WebSocket-Version: 13", NULL},
    {"not HTTP", "hello\r\n\r\n", 400, NULL, NULL},
    {"two words", "GET " T "abc\r\n\r\n", 400, NULL, NULL},
    {"header without a colon", "GET " T "abc HTTP/1.1\r\n" HOST "what\r\n\r\n", 400, NULL, NULL},
    {"blank before the colon", "GET " T "abc HTTP/1.1\r\nHost : a\r\n\r\n", 400, NULL, NULL},
    {"no host", "GET " T "abc HTTP/1.1\r\n" WS KEY V13 "\r\n", 400, NULL, NULL},
    {"two hosts", "GET " T "abc HTTP/1.1\r\n" HOST HOST WS KEY V13 "\r\n", 400, NULL, NULL},
    {"no key", "GET " T "abc HTTP/1.1\r\n" HOST WS V13 "\r\n", 400, NULL, NULL},
    {"two keys", "GET " T "abc HTTP/1.1\r\n" HOST WS KEY KEY V13 "\r\n", 400, NULL, NULL},
    {"empty key", "GET " T "abc HTTP/1.1\r\n" HOST WS "Sec-WebSocket-Key:\r\n" V13 "\r\n", 400,
     NULL, NULL},
    {"short key",
     "GET " T "abc HTTP/1.1\r\n" HOST WS "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n" V13 "\r\n", 400,
     NULL, NULL},
    {"key of 15 bytes",
     "GET " T "abc HTTP/1.1\r\n" HOST WS "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA\r\n" V13 "\r\n",
     400, NULL, NULL},
    {"key that is not base64",
     "GET " T "abc HTTP/1.1\r\n" HOST WS "Sec-WebSocket-Key: !GhlIHNhbXBsZSBub25jZQ==\r\n" V13
     "\r\n", 400, NULL, NULL},
    {"HTTP/1.0", "GET " T "abc HTTP/1.0\r\n" HOST WS KEY V13 "\r\n", 400, NULL, NULL},
    {"HTTP/2.0", "GET " T "abc HTTP/2.0\r\n" HOST WS KEY V13 "\r\n", 400, NULL, NULL},
    {"bad escape", UPGRADE(T "a%zz"), 400, NULL, NULL},
    {"half an escape", UPGRADE(T "a%4"), 400, NULL, NULL},
    {"lone percent", UPGRADE(T "a%"), 400, NULL, NULL},
    {"NUL in the token", UPGRADE(T "a%00b"), 400, NULL, NULL},
    {"slash in the token", UPGRADE(T "a%2Fb"), 400, NULL, NULL},
    {"no token", UPGRADE(T), 404, NULL, NULL},
    {"no token but a query", UPGRADE(T "?x=y"), 404, NULL, NULL},
    {"no token, no slash", UPGRADE("/app/ws/export-task"), 404, NULL, NULL},
    {"two segments", UPGRADE(T "a/b"), 404, NULL, NULL},
    {"another path", UPGRADE("/app/ws/export-tas/abc"), 404, NULL, NULL},
    {"no demo", "GET / HTTP/1.1\r\n" HOST "\r\n", 404, NULL, NULL},
    {"push door's pages are not here", "GET /metrics HTTP/1.1\r\n" HOST "\r\n", 404, NULL, NULL},
    {"token too long", UPGRADE(T X64 "x"), 414, NULL, NULL},
    {"encoded token too long", UPGRADE(T P16 P16 P16 P16 "%41"), 414, NULL, NULL},
    {"POST",
     "POST " T "abc HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nhello", 405, "Allow: GET", NULL},
    {"POST with an upgrade", "POST " T "abc HTTP/1.1\r\n" HOST WS KEY V13 "\r\n", 405, "Allow: GET",
     NULL},
    {"DELETE", "DELETE " T "abc HTTP/1.1\r\n" HOST "\r\n", 405, "Allow: GET", NULL},
    {"OPTIONS", "OPTIONS " T "abc HTTP/1.1\r\n" HOST "\r\n", 405, "Allow: GET", NULL},
    {"get", "get " T "abc HTTP/1.1\r\n" HOST WS KEY V13 "\r\n", 405, "Allow: GET", NULL},
    {"foreign origin",
     "GET " T "abc HTTP/1.1\r\n" HOST WS KEY V13 "Origin: http://evil.example\r\n\r\n", 403, NULL,
     NULL},
    {"one header too large", "GET " T "abc HTTP/1.1\r\n" HOST "A: " KIB12 "\r\n\r\n", 431, NULL,
     NULL},
    {"request line too large", "GET /" KIB12 " HTTP/1.1\r\n" HOST "\r\n", 431, NULL, NULL},
    {"no line end at all", KIB12 KIB12 KIB12 KIB12, 431, NULL, NULL},
};

static void client_door_upgrades(void **state)
{
    static const char *const args[] = {"--per-token", "100", NULL};
    static struct server s;
    (void)state;
    server_start(&s, args);
    client_rows_run(&s, upgrade_rows, COUNT(upgrade_rows));
    server_online_wait(&s, 0, 0);
    assert_int_equal(server_metric(&s, "exportws_sessions_opened_total"), 2 * COUNT(upgrade_rows));
    server_stop(&s);
}

static void client_door_refuses(void **state)
{
    static struct server s;
    static struct reply r;
    (void)state;
    server_start(&s, NULL);
    client_rows_run(&s, refused_rows, COUNT(refused_rows));
    server_page(&s, "/metrics", &r);
    assert_int_equal(metric_in(r.body, "exportws_sessions_opened_total"), 0);
    assert_int_equal(metric_sum_in(r.body, "exportws_refused_total"), 2 * COUNT(refused_rows));
    assert_int_equal(metric_in(r.body, "exportws_refused_total{status=\"404\"}"), 2 * 7);
    assert_int_equal(metric_in(r.body, "exportws_refused_total{status=\"431\"}"), 2 * 3);
    server_log_wait(&s, "event=refuse", 2 * COUNT(refused_rows));
    server_stop(&s);
}

static void client_door_is_healthy(void **state)
{
    static const struct row rows[] = {
        {"healthz", "GET /healthz HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n", 200, NULL, "ok"},
    };
    static struct server s;
    (void)state;
    server_start(&s, NULL);
    client_rows_run(&s, rows, COUNT(rows));
    server_stop(&s);
}

/* The client always, the page only with --demo; neither at the push door. */
static void client_door_serves_its_pages(void **state)
{
    static const struct row rows[] = {
        {"client", "GET /exportws.js HTTP/1.1\r\n" HOST "\r\n", 200,
         "Content-Type: text/javascript; charset=utf-8", "globalThis.ExportWS = class ExportWS {\n"},
        {"client: whole", "GET /exportws.js HTTP/1.1\r\n" HOST "\r\n", 200, NULL, "\n};\n"},
        {"client: not kept", "GET /exportws.js HTTP/1.1\r\n" HOST "\r\n", 200,
         "Cache-Control: no-cache", NULL},
        {"client: nothing else", "GET /exportws.js HTTP/1.1\r\n" HOST "\r\n", 200,
         "X-Content-Type-Options: nosniff", NULL},
        {"client: the end", "GET /exportws.js HTTP/1.1\r\n" HOST "\r\n", 200, "Connection: close",
         NULL},
        {"client: query", "GET /exportws.js?v=1 HTTP/1.1\r\n" HOST "\r\n", 200, NULL, NULL},
        {"page", "GET / HTTP/1.1\r\n" HOST "\r\n", 200, "Content-Type: text/html; charset=utf-8",
         "<!doctype html>\n<html lang='en' data-path=\"" T "\" data-push=\"127.0.0.1:"},
        {"page: whole", "GET / HTTP/1.1\r\n" HOST "\r\n", 200, NULL, "start();\n</script>\n"},
        {"page: not kept", "GET / HTTP/1.1\r\n" HOST "\r\n", 200, "Cache-Control: no-cache", NULL},
        {"page: nothing else", "GET / HTTP/1.1\r\n" HOST "\r\n", 200,
         "X-Content-Type-Options: nosniff", NULL},
        {"page: strict", "GET / HTTP/1.1\r\n" HOST "\r\n", 200, "Content-Security-Policy", NULL},
        {"page: query", "GET /?a=b HTTP/1.1\r\n" HOST "\r\n", 200, NULL, "<!doctype html>"},
    };
    static const struct row refused[] = {
        {"PUT of the client", "PUT /exportws.js HTTP/1.1\r\n" HOST "\r\n", 405, "Allow: GET",
         NULL},
        {"POST to the page", "POST / HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nhi", 405,
         "Allow: GET", NULL},
        {"something below", "GET /exportws.js/a HTTP/1.1\r\n" HOST "\r\n", 404, NULL, NULL},
    };
    static const struct row push[] = {
        {"client", "GET /exportws.js HTTP/1.1\r\n" HOST "\r\n", 404, NULL, NULL},
        {"page", "GET / HTTP/1.1\r\n" HOST "\r\n", 404, NULL, NULL},
    };
    static const char *const args[] = {"--demo", NULL};
    static struct server s;
    static struct reply r;
    struct conn c;
    size_t i;
    (void)state;
    server_start(&s, args);
    for (i = 0; i < 2 * COUNT(rows); i++) { /* and once with what nobody asked for behind it */
        const struct row *row = &rows[i % COUNT(rows)];
        conn_open(&c, s.clients);
        request_send(&c, row->request, strlen(row->request), 0);
        if (i >= COUNT(rows))
            conn_send(&c, row->request, strlen(row->request));
        row_read(row, &c, &r);
        conn_expect_eof(&c);
        conn_close(&c);
    }
    client_rows_run(&s, rows, COUNT(rows));
    client_rows_run(&s, refused, COUNT(refused));
    push_rows_run(&s, push, COUNT(push));
    server_stop(&s);
    server_start(&s, NULL);
    client_rows_run(&s, rows, 6); /* those of the client */
    server_stop(&s);
}

/* A frame that comes in the same segment as the upgrade is not lost, nor is one cut by it. */
static void client_door_reads_on_behind_the_upgrade(void **state)
{
    static struct server s;
    static struct reply r;
    struct peer p;
    struct frame f;
    char bytes[4200];
    size_t size, piece;
    (void)state;
    server_start(&s, NULL);
    for (piece = 0; piece < 3; piece++) {
        size = peer_request(&s, "abc", NULL, bytes);
        size += frame_build((unsigned char *)bytes + size, 0x89, "early", 5, 1, 0x12345678u);
        memset(&p, 0, sizeof p);
        conn_open(&p.c, s.clients);
        request_send(&p.c, bytes, size, piece);
        reply_read(&p.c, &r);
        assert_int_equal(r.status, 101);
        assert_int_equal(peer_read_frame(&p, &f, deadline_usual()), READ_OK);
        assert_int_equal(f.opcode, OP_PONG);
        assert_int_equal(f.size, 5);
        assert_memory_equal(f.data, "early", 5);
        peer_close(&p);
    }
    server_stop(&s);
}

static void client_door_full_says_when_to_retry(void **state)
{
    static const struct row rows[] = {
        {"table full", UPGRADE(T "late"), 503, "Retry-After", NULL},
        {"healthz is no session", "GET /healthz HTTP/1.1\r\n" HOST "\r\n", 200, NULL, "ok"},
        {"a bad request is bad all the same", "hello\r\n\r\n", 400, NULL, NULL},
    };
    static const char *const args[] = {"--capacity", "1", NULL};
    static struct server s;
    struct peer p;
    (void)state;
    server_start(&s, args);
    peer_open(&s, &p, "abc", NULL);
    client_rows_run(&s, rows, COUNT(rows));
    peer_expect_alive(&p);
    peer_close(&p);
    server_stop(&s);
}

static void client_door_bounds_an_address(void **state)
{
    static const struct row rows[] = {
        {"too many from there", UPGRADE(T "late"), 429, "Retry-After", NULL},
    };
    static const char *const args[] = {"--per-address=1", NULL};
    static struct server s;
    struct peer p;
    (void)state;
    server_start(&s, args);
    peer_open(&s, &p, "abc", NULL);
    client_rows_run(&s, rows, COUNT(rows));
    peer_leave(&p);
    peer_open(&s, &p, "abc", NULL);
    peer_close(&p);
    server_stop(&s);
}

static void client_door_takes_another_path_and_token_length(void **state)
{
    static const struct row rows[] = {
        {"path", UPGRADE("/ws/abc"), 101, NULL, NULL},
        {"the usual path", UPGRADE(T "abc"), 404, NULL, NULL},
        {"4 bytes", UPGRADE("/ws/abcd"), 101, NULL, NULL},
        {"5 bytes", UPGRADE("/ws/abcde"), 414, NULL, NULL},
    };
    static const char *const args[] = {"--path", "/ws/", "--max-token", "4", NULL};
    static struct server s;
    struct peer p;
    (void)state;
    server_start(&s, args);
    client_rows_run(&s, rows, COUNT(rows));
    peer_open(&s, &p, "x", NULL);
    push_expect(&s, "x", "37 %", 1);
    peer_expect_text(&p, "37 %");
    peer_close(&p);
    server_stop(&s);
}

/* ===== The push door ===== */

#define POST(target, headers, body) "POST " target " HTTP/1.1\r\n" HOST headers "\r\n" body
#define GET(target) "GET " target " HTTP/1.1\r\n" HOST "\r\n"

static const struct row push_rows[] = {
    {"nobody to tell", POST(T, "Content-Length: 2\r\n", "hi"), 200, NULL, "\"delivered\":0"},
    {"nobody to tell, no slash", POST("/app/ws/export-task", "Content-Length: 2\r\n", "hi"), 200,
     NULL, "\"delivered\":0"},
    {"one there", POST(T "here", "Content-Length: 2\r\n", "hi"), 200, NULL, "\"delivered\":1"},
    {"one there, encoded", POST(T "%68%65re", "Content-Length: 2\r\n", "hi"), 200, NULL,
     "\"delivered\":1"},
    {"empty message", POST(T "here", "Content-Length: 0\r\n", ""), 200, NULL, "\"delivered\":1"},
    {"chunked",
     POST(T "here", "Transfer-Encoding: chunked\r\n", "2\r\nhi\r\n1;a=b\r\n!\r\n0\r\nX: y\r\n\r\n"),
     200, NULL, "\"delivered\":1"},
    {"chunked, in capitals",
     POST(T "here", "transfer-encoding: Chunked\r\n", "0A\r\n0123456789\r\n0\r\n\r\n"), 200, NULL,
     "\"delivered\":1"},
    {"nobody there", POST(T "absent", "Content-Length: 2\r\n", "hi"), 202, NULL, "\"held\":true"},
    {"held: delivered 0", POST(T "absent", "Content-Length: 2\r\n", "hi"), 202, NULL,
     "\"delivered\":0"},
    {"sessions", GET(T "here"), 200, NULL, "\"sessions\":1"},
    {"sessions: held", GET(T "here"), 200, NULL, "\"held\":0"},
    {"no sessions", GET(T "nobody"), 404, NULL, NULL},
    {"nothing to delete", "DELETE " T "nobody HTTP/1.1\r\n" HOST "\r\n", 404, NULL, NULL},
    {"online", GET("/online"), 200, NULL, "\"online\":1"},
    {"online: sessions", GET("/online"), 200, NULL, "\"sessions\":1"},
    {"online: capacity", GET("/online"), 200, NULL, "\"capacity\":1024"},
    {"metrics", GET("/metrics"), 200, NULL, "exportws_sessions 1\n"},
    {"healthz", GET("/healthz"), 200, NULL, "{\"status\":\"ok\"}"},
    {"asked to close", "GET /healthz HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n", 200,
     "Connection: ~close", NULL},
    {"too large", POST(T "here", "Content-Length: 65537\r\n", "x"), 413, NULL, NULL},
    {"much too large", POST(T "here", "Content-Length: 18446744073709551617\r\n", "x"), 413, NULL,
     NULL},
    {"chunks too large",
     POST(T "here", "Transfer-Encoding: chunked\r\n", "fc00\r\n" KIB60 KIB KIB KIB "\r\n401\r\n" KIB
     "x\r\n0\r\n\r\n"), 413, NULL, NULL},
    {"chunk size of 17 digits",
     POST(T "here", "Transfer-Encoding: chunked\r\n", "10000000000000002\r\nhi\r\n0\r\n\r\n"), 400,
     NULL, NULL},
    {"no length", POST(T "here", "", ""), 411, NULL, NULL},
    {"broadcast without length", POST(T, "", ""), 411, NULL, NULL},
    {"not UTF-8", POST(T "here", "Content-Length: 3\r\n", "\xed\xa0\x80"), 400, NULL, NULL},
    {"not UTF-8 for the absent", POST(T "gone", "Content-Length: 1\r\n", "\xff"), 400, NULL, NULL},
    {"cut UTF-8", POST(T "here", "Content-Length: 2\r\n", "\xe2\x82"), 400, NULL, NULL},
    {"not UTF-8 in chunks",
     POST(T "here", "Transfer-Encoding: chunked\r\n", "2\r\n\xed\xa0\r\n1\r\n\x80\r\n0\r\n\r\n"),
     400, NULL, NULL},
    {"cut UTF-8 in chunks",
     POST(T "here", "Transfer-Encoding: chunked\r\n", "1\r\n!\r\n2\r\n\xe2\x82\r\n0\r\n\r\n"),
     400, NULL, NULL},
    {"not UTF-8 in chunks, and binary",
     POST(T "absent", "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n",
          "2\r\n\xed\xa0\r\n1\r\n\xe2\r\n0\r\n\r\n"), 202, NULL, NULL},
    {"length is no number", POST(T "here", "Content-Length: 2x\r\n", "hi"), 400, NULL, NULL},
    {"length is negative", POST(T "here", "Content-Length: -2\r\n", "hi"), 400, NULL, NULL},
    {"two lengths", POST(T "here", "Content-Length: 2\r\nContent-Length: 3\r\n", "hi!"), 400, NULL,
     NULL},
    {"length and chunked",
     POST(T "here", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400, NULL,
     NULL},
    {"bad chunk size", POST(T "here", "Transfer-Encoding: chunked\r\n", "x\r\n"), 400, NULL, NULL},
    {"bad chunk end", POST(T "here", "Transfer-Encoding: chunked\r\n", "2\r\nhi!\r\n0\r\n\r\n"),
     400, NULL, NULL},
    {"bad escape", POST(T "a%zz", "Content-Length: 2\r\n", "hi"), 400, NULL, NULL},
    {"no host", "POST " T "here HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", 400, NULL, NULL},
    {"PUT", "PUT " T "here HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nhi", 405, "Allow", NULL},
    {"POST to a page", POST("/online", "Content-Length: 2\r\n", "hi"), 405, "Allow", NULL},
    {"DELETE of a page", "DELETE /metrics HTTP/1.1\r\n" HOST "\r\n", 405, "Allow", NULL},
    {"another path", POST("/nope", "Content-Length: 2\r\n", "hi"), 404, NULL, NULL},
    {"another path, as long", POST("/app/ws/export-tusk", "Content-Length: 2\r\n", "hi"), 404, NULL,
     NULL},
    {"another page", GET("/"), 404, NULL, NULL},
    {"head too large", "GET /healthz HTTP/1.1\r\n" HOST "A: " KIB12 "\r\n\r\n", 431, NULL, NULL},
};

/* Takes whatever has arrived; the rows' deliveries are counted elsewhere. */
static void peer_drain(struct peer *p, int *texts)
{
    struct frame f;
    while (peer_read_message(p, &f, now_ms()) == READ_OK)
        *texts += f.opcode == OP_TEXT;
}

static void push_door_answers(void **state)
{
    static struct server s;
    static struct reply r;
    struct peer p;
    size_t i, delivered = 0, texts;
    int got = 0;
    (void)state;
    server_start(&s, NULL);
    peer_open(&s, &p, "here", NULL);
    for (i = 2; i < COUNT(push_rows); i++) {
        push_rows_run(&s, &push_rows[i], 1);
        if (push_rows[i].fragment && strstr(push_rows[i].fragment, "\"delivered\":1"))
            delivered += 3;             /* each row runs three times */
    }
    server_page(&s, "/metrics", &r);
    assert_int_equal(metric_in(r.body, "exportws_messages_delivered_total"), delivered);
    for (texts = 0; texts < delivered; texts++) {
        struct frame f;
        peer_expect_message(&p, &f, OP_TEXT);
    }
    peer_expect_alive(&p);              /* nothing of the refused ones reached it */
    peer_drain(&p, &got);
    assert_int_equal(got, 0);
    peer_close(&p);
    server_online_wait(&s, 0, 0);
    push_rows_run(&s, push_rows, 2);    /* broadcasts to nobody */
    server_stop(&s);
}

static const char *const metric_names[] = {
    "exportws_sessions", "exportws_tokens", "exportws_handshakes", "exportws_pushers",
    "exportws_capacity", "exportws_memory_bytes", "exportws_buffer_used_bytes",
    "exportws_held_messages", "exportws_sessions_opened_total", "exportws_messages_pushed_total",
    "exportws_messages_delivered_total", "exportws_messages_held_total",
    "exportws_messages_expired_total", "exportws_messages_received_total",
    "exportws_heartbeats_total", "exportws_pings_total", "exportws_bytes_sent_total",
    "exportws_bytes_received_total",
};

/* Every sample has a number for a value, and its family has HELP and TYPE before it. */
static void metrics_check_text(const char *text)
{
    const char *line, *end;
    char name[128], mark[160], *rest;
    for (line = text; *line != '\0'; line = end + 1) {
        end = strchr(line, '\n');
        assert_non_null(end);
        if (*line == '#')
            continue;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(line, "{ "), line);
        snprintf(mark, sizeof mark, "# TYPE %s %s\n", name,
                 strstr(name, "_total") ? "counter" : "gauge");
        if (strstr(text, mark) == NULL || strstr(text, mark) > line)
            harness_fail("no '%s' before its samples", mark);
        snprintf(mark, sizeof mark, "# HELP %s ", name);
        if (strstr(text, mark) == NULL || strstr(text, mark) > line)
            harness_fail("no '%s' before its samples", mark);
        strtod(strchr(line, ' ') ? strchr(line, ' ') : line, &rest);
        assert_ptr_equal(rest, end);
    }
}

static void push_door_shows_every_metric(void **state)
{
    static const char *const reasons[] = {"peer", "error", "timeout", "slow", "protocol",
                                          "replaced", "ended", "shutdown"};
    static struct server s;
    static struct reply r;
    struct peer p;
    char mark[128];
    size_t i;
    (void)state;
    server_start(&s, NULL);
    peer_open(&s, &p, "abc", NULL);
    peer_send_text(&p, "HEART-BEAT");
    peer_send_text(&p, "hello");
    peer_expect_alive(&p);
    push_expect(&s, "abc", "37 %", 1);
    server_page(&s, "/metrics", &r);
    assert_int_equal(strncmp(reply_header(&r, "Content-Type"), "text/plain; version=0.0.4", 25), 0);
    metrics_check_text(r.body);
    for (i = 0; i < COUNT(metric_names); i++)
        if (metric_in(r.body, metric_names[i]) < 0)
            harness_fail("no metric %s", metric_names[i]);
    for (i = 0; i < COUNT(reasons); i++) {
        snprintf(mark, sizeof mark, "_closed_total{reason=\"%s\"} 0\n", reasons[i]);
        if (strstr(r.body, mark) == NULL)
            harness_fail("no %s", mark);
    }
    assert_int_equal(metric_in(r.body, "exportws_sessions"), 1);
    assert_int_equal(metric_in(r.body, "exportws_tokens"), 1);
    assert_int_equal(metric_in(r.body, "exportws_capacity"), s.capacity);
    assert_int_equal(metric_in(r.body, "exportws_memory_bytes"), s.memory);
    assert_int_equal(metric_in(r.body, "exportws_heartbeats_total"), 1);
    assert_int_equal(metric_in(r.body, "exportws_messages_received_total"), 1);
    assert_int_equal(metric_in(r.body, "exportws_messages_pushed_total"), 1);
    assert_true(metric_in(r.body, "exportws_bytes_sent_total") > 100);
    assert_true(metric_in(r.body, "exportws_bytes_received_total") > 100);
    server_metric_wait(&s, "exportws_pushers", 1);      /* the one who asks */
    peer_close(&p);
    server_stop(&s);
}

static void push_door_keeps_alive_and_pipelines(void **state)
{
    enum { PIPELINED = 200 };
    static struct server s;
    static struct reply r;
    static char bytes[PIPELINED * 200];
    size_t size = 0, piece;
    struct peer p;
    int i;
    (void)state;
    server_start(&s, NULL);
    peer_open(&s, &p, "abc", NULL);
    for (i = 0; i < PIPELINED; i++) {   /* pushes by length and by chunks, and questions between */
        static const char *const shapes[] = {
            POST(T "abc", "Content-Length: 4\r\n", "%04d"),
            POST(T "abc", "Transfer-Encoding: chunked\r\n", "4\r\n%04d\r\n0\r\n\r\n"),
            GET(T "abc?%d"), GET(T "nobody?%d")};
        size += (size_t)snprintf(bytes + size, sizeof bytes - size, shapes[i % 4], i);
    }
    for (piece = 0; piece < 30; piece += 11) {
        struct conn c;
        conn_open(&c, s.push);
        request_send(&c, bytes, size, piece);
        for (i = 0; i < PIPELINED; i++) {
            char text[8];
            reply_read(&c, &r);
            assert_int_equal(r.status, i % 4 == 3 ? 404 : 200);
            snprintf(text, sizeof text, "%04d", i);
            if (i % 4 < 2)
                peer_expect_text(&p, text);
        }
        conn_expect_silence(&c, 20);
        conn_close(&c);
    }
    peer_expect_alive(&p);
    peer_close(&p);
    server_stop(&s);
}

/* Sends without reading an answer until the server reads no more; the bytes sent. */
static size_t send_until_blocked(struct conn *c, const char *bytes, size_t size)
{
    size_t sent = 0;
    while (sent < size) {
        struct pollfd p;
        ssize_t n = send(c->fd, bytes + sent, size - sent, 0);
        if (n > 0) {
            sent += (size_t)n;
            continue;
        }
        if (errno != EAGAIN && errno != EINTR)
            harness_fail("cut off after %lu bytes: %s", (unsigned long)sent, strerror(errno));
        p.fd = c->fd;
        p.events = POLLOUT;
        if (poll(&p, 1, 300) == 0)
            break;
    }
    return sent;
}

/* More answers than any buffer holds, for one who reads them only when he cannot send any more. */
static void push_door_waits_for_who_reads_late(void **state)
{
    enum { REQUESTS = 100000 };
    static const char *const args[] = {"--hold", "0", "--log", "error", NULL};
    static const char request[] = POST(T "abc", "Content-Length: 4\r\n", "37 %");
    static char bytes[REQUESTS * (sizeof request - 1)];
    static struct server s;
    static struct reply r;
    struct conn c, other;
    size_t sent;
    int i, error;
    (void)state;
    server_start(&s, args);
    for (i = 0; i < REQUESTS; i++)
        memcpy(bytes + (size_t)i * (sizeof request - 1), request, sizeof request - 1);
    conn_open(&c, s.push);
    conn_open(&other, s.push);
    sent = send_until_blocked(&c, bytes, sizeof bytes);
    push_text_on(&other, &s, "abc", "x", &r);
    assert_int_equal(r.status, 404);    /* others are served meanwhile */
    error = conn_send(&c, bytes + sent, sizeof bytes - sent);
    assert_int_equal(error, 0);
    for (i = 0; i < REQUESTS; i++) {
        reply_read(&c, &r);
        assert_int_equal(r.status, 404);
    }
    conn_close(&c);
    conn_close(&other);
    server_stop(&s);
}

/* Whatever becomes of a request, its body is not taken for the next one. */
static void push_door_takes_no_body_for_a_request(void **state)
{
    static const struct row rows[] = {
        {"another path", POST("/nope", "Content-Length: 42\r\n", GET("/healthz")), 404, NULL, NULL},
        {"bad token", POST(T "%zz", "Content-Length: 42\r\n", GET("/healthz")), 400, NULL, NULL},
        {"two segments", POST(T "a/b", "Content-Length: 42\r\n", GET("/healthz")), 404, NULL, NULL},
        {"a page", POST("/online", "Content-Length: 42\r\n", GET("/healthz")), 405, NULL, NULL},
        {"another method",
         "PUT " T "abc HTTP/1.1\r\n" HOST "Content-Length: 42\r\n\r\n" GET("/healthz"), 405, NULL,
         NULL},
        {"GET with a body",
         "GET " T "abc HTTP/1.1\r\n" HOST "Content-Length: 42\r\n\r\n" GET("/healthz"), 404, NULL,
         NULL},
        {"DELETE with a body",
         "DELETE " T "abc HTTP/1.1\r\n" HOST "Content-Length: 42\r\n\r\n" GET("/healthz"), 404,
         NULL, NULL},
        {"healthz with a body",
         "GET /healthz HTTP/1.1\r\n" HOST "Content-Length: 42\r\n\r\n" GET("/healthz"), 200, NULL,
         NULL},
        {"chunks", POST("/nope", "Transfer-Encoding: chunked\r\n",
                        "2a\r\n" GET("/healthz") "\r\n0\r\n\r\n"), 404, NULL, NULL},
        {"not held", POST(T "abc", "Content-Length: 42\r\n", GET("/healthz")), 404, NULL, NULL},
    };
    static const char *const args[] = {"--hold", "0", NULL};
    static struct server s;
    static struct reply r;
    size_t i;
    (void)state;
    assert_int_equal(strlen(GET("/healthz")), 42);
    server_start(&s, args);
    for (i = 0; i < COUNT(rows); i++) {
        struct conn c;
        conn_open(&c, s.push);
        request_send(&c, rows[i].request, strlen(rows[i].request), 0);
        conn_send(&c, GET("/online"), strlen(GET("/online")));
        row_read(&rows[i], &c, &r);
        if (header_matches(&r, "Connection: ~close"))
            conn_expect_eof(&c);
        else {
            reply_read(&c, &r);
            if (json_number(r.body, "sessions") != 0)
                harness_fail("%s: a body answered as a request: %s", rows[i].name, r.body);
        }
        conn_close(&c);
    }
    server_stop(&s);
}

/* The largest push there may be, in chunks of every size, in pieces that never fit them. */
static void push_door_takes_chunks_in_odd_splits(void **state)
{
    enum { SIZE = 65536 };
    static const size_t pieces[] = {0, 1021, 4096};
    static char bytes[SIZE * 2], body[SIZE];
    static struct server s;
    static struct reply r;
    struct peer p;
    size_t size, at, n, i;
    (void)state;
    server_start(&s, NULL);
    peer_open(&s, &p, "abc", NULL);
    for (i = 0; i < SIZE; i++)
        body[i] = (char)('a' + i % 23);
    size = (size_t)snprintf(bytes, sizeof bytes, "%s",
                            POST(T "abc", "Transfer-Encoding: chunked\r\n", ""));
    for (at = 0, n = 1; at < SIZE; at += n, n = n * 2 % 4093) {
        n = SIZE - at < n ? SIZE - at : n;
        size += (size_t)snprintf(bytes + size, 64, n & 1 ? "%04lx\r\n" : "%lX;x=\"y\"\r\n",
                                 (unsigned long)n);
        memcpy(bytes + size, body + at, n);
        memcpy(bytes + size + n, "\r\n", 2);
        size += n + 2;
    }
    memcpy(bytes + size, "0\r\n\r\n", 5);
    for (i = 0; i < COUNT(pieces); i++) {
        struct conn c;
        conn_open(&c, s.push);
        request_send(&c, bytes, size + 5, pieces[i]);
        reply_read(&c, &r);
        assert_int_equal(r.status, 200);
        peer_expect_data(&p, OP_TEXT, body, SIZE);
        conn_close(&c);
    }
    peer_close(&p);
    server_stop(&s);
}

static void push_door_says_continue(void **state)
{
    static struct server s;
    static struct reply r;
    struct peer p;
    struct conn c;
    (void)state;
    server_start(&s, NULL);
    peer_open(&s, &p, "abc", NULL);
    conn_open(&c, s.push);
    conn_send_text(&c, POST(T "abc", "Content-Length: 4\r\nExpect: 100-continue\r\n", ""));
    reply_read(&c, &r);
    assert_int_equal(r.status, 100);
    conn_send_text(&c, "37 %");
    reply_read(&c, &r);
    assert_int_equal(r.status, 200);
    peer_expect_text(&p, "37 %");
    conn_send_text(&c, POST(T "abc", "Content-Length: 65537\r\nExpect: 100-Continue\r\n", ""));
    reply_read(&c, &r);                 /* refused before a byte of it was sent */
    assert_int_equal(r.status, 413);
    conn_close(&c);
    conn_open(&c, s.push);              /* who does not wait is not told twice */
    conn_send_text(&c, POST(T "abc", "Content-Length: 4\r\nExpect: 100-continue\r\n", "38 %"));
    do
        reply_read(&c, &r);
    while (r.status == 100);
    assert_int_equal(r.status, 200);
    peer_expect_text(&p, "38 %");
    conn_expect_silence(&c, 20);
    conn_close(&c);
    peer_close(&p);
    server_stop(&s);
}

static void push_door_sends_binary(void **state)
{
    static const unsigned char bytes[] = {0, 0xff, 0xed, 0xa0, 0x80, '\n'};
    static const char *const types[] = {
        "Content-Type: application/octet-stream\r\n",
        "content-type: Application/Octet-Stream; x=y\r\n",
    };
    static struct server s;
    static struct reply r;
    struct peer p;
    size_t i;
    (void)state;
    server_start(&s, NULL);
    peer_open(&s, &p, "abc", NULL);
    for (i = 0; i < COUNT(types); i++) {
        push_request(&s, "POST", T "abc", types[i], bytes, sizeof bytes, &r);
        assert_int_equal(r.status, 200);
        peer_expect_data(&p, OP_BINARY, bytes, sizeof bytes);
        push_request(&s, "POST", T, types[i], bytes, sizeof bytes, &r);
        assert_int_equal(r.status, 200);
        peer_expect_data(&p, OP_BINARY, bytes, sizeof bytes);
    }
    push_request(&s, "POST", T "abc", "Content-Type: application/json\r\n", "{}", 2, &r);
    peer_expect_text(&p, "{}");
    peer_leave(&p);
    push_request(&s, "POST", T "abc", types[0], bytes, sizeof bytes, &r);
    assert_int_equal(r.status, 202);
    peer_open(&s, &p, "abc", NULL);     /* held as what it is */
    peer_expect_data(&p, OP_BINARY, bytes, sizeof bytes);
    peer_close(&p);
    server_stop(&s);
}

/* ===== Holding, ending ===== */

static void held_messages_arrive_in_order_and_once(void **state)
{
    static struct server s;
    static struct reply r;
    struct peer first, second;
    struct online o;
    char text[16];
    int i;
    (void)state;
    server_start(&s, NULL);
    for (i = 0; i < 8; i++) {
        snprintf(text, sizeof text, "held %d", i);
        push_text(&s, i < 7 ? "abc" : "other", text, &r);
        assert_int_equal(r.status, 202);
    }
    push_request(&s, "GET", T "abc", NULL, NULL, 0, &r);
    assert_int_equal(r.status, 200);
    assert_int_equal(json_number(r.body, "held"), 7);
    assert_int_equal(json_number(r.body, "sessions"), 0);
    server_online(&s, &o);
    assert_int_equal(o.held, 8);
    peer_open(&s, &first, "abc", NULL);
    push_expect(&s, "abc", "live", 1);
    peer_open(&s, &second, "abc", NULL);
    for (i = 0; i < 7; i++) {
        snprintf(text, sizeof text, "held %d", i);
        peer_expect_text(&first, text);
    }
    peer_expect_text(&first, "live");
    peer_expect_alive(&first);
    peer_expect_alive(&second);         /* got nothing: somebody had it before */
    server_online(&s, &o);
    assert_int_equal(o.held, 1);
    assert_int_equal(server_metric(&s, "exportws_held_messages"), 1);
    assert_int_equal(server_metric(&s, "exportws_messages_held_total"), 8);
    assert_int_equal(server_log_count(&s, "event=hold"), 8);
    peer_close(&first);
    peer_close(&second);
    server_stop(&s);
}

static void held_messages_expire_and_are_counted(void **state)
{
    static const char *const args[] = {"--hold", "0.4", NULL};
    static struct server s;
    static struct reply r;
    struct peer p;
    (void)state;
    server_start(&s, args);
    push_text(&s, "abc", "one", &r);
    assert_int_equal(r.status, 202);
    push_text(&s, "abc", "two", &r);
    assert_int_equal(r.status, 202);
    server_log_wait(&s, "event=expire", 1);     /* by itself, with nobody asking */
    server_metric_wait(&s, "exportws_messages_expired_total", 2);
    assert_int_equal(server_metric(&s, "exportws_held_messages"), 0);
    push_request(&s, "GET", T "abc", NULL, NULL, 0, &r);
    assert_int_equal(r.status, 404);
    peer_open(&s, &p, "abc", NULL);
    peer_expect_alive(&p);
    assert_int_equal(server_metric(&s, "exportws_buffer_used_bytes"), 0);
    peer_close(&p);
    server_stop(&s);
}

static void delete_closes_sessions_and_drops_what_is_held(void **state)
{
    static struct server s;
    static struct reply r;
    struct peer p[3], other;
    int i;
    (void)state;
    server_start(&s, NULL);
    peer_open(&s, &other, "other", NULL);
    for (i = 0; i < 3; i++)
        peer_open(&s, &p[i], "abc", NULL);
    push_expect(&s, "abc", "last", 3);
    push_request(&s, "DELETE", T "abc", NULL, NULL, 0, &r);
    assert_int_equal(r.status, 200);
    assert_int_equal(json_number(r.body, "closed"), 3);
    for (i = 0; i < 3; i++) {
        peer_expect_text(&p[i], "last");
        peer_expect_close(&p[i], 1000);
        peer_send_close(&p[i], 1000, "");
        peer_expect_eof(&p[i]);
        peer_close(&p[i]);
    }
    assert_int_equal(server_metric(&s, "exportws_sessions_closed_total{reason=\"ended\"}"), 3);
    push_text(&s, "abc", "held", &r);
    assert_int_equal(r.status, 202);
    push_request(&s, "DELETE", T "abc", NULL, NULL, 0, &r);
    assert_int_equal(r.status, 200);
    assert_int_equal(json_number(r.body, "closed"), 0);
    push_request(&s, "DELETE", T "abc", NULL, NULL, 0, &r);
    assert_int_equal(r.status, 404);
    peer_open(&s, &p[0], "abc", NULL);
    peer_expect_alive(&p[0]);
    peer_expect_alive(&other);
    peer_close(&p[0]);
    peer_close(&other);
    server_stop(&s);
}

/* How many pushes are answered 200 before a session that reads nothing is given up. */
static int pushes_until_slow(const char *queue)
{
    enum { SIZE = 65000 };
    const char *const args[] = {"--queue", queue, "--buffer", "16m", "--hold", "0", NULL};
    static char body[SIZE + 1];
    static struct server s;
    static struct reply r;
    struct peer p;
    struct conn c;
    int n;
    memset(body, 'x', SIZE);
    server_start(&s, args);
    peer_open_slow(&s, &p, "abc", 4096);
    conn_open(&c, s.push);
    for (n = 0; n < 2000; n++) {
        push_on(&c, "POST", T "abc", NULL, body, SIZE, &r);
        if (r.status != 200)
            break;
    }
    assert_int_equal(r.status, 404);
    peer_rst(&p);
    conn_close(&c);
    server_metric_wait(&s, "exportws_sessions", 0);
    assert_int_equal(server_metric(&s, "exportws_sessions_closed_total{reason=\"slow\"}"), 1);
    server_stop(&s);
    return n;
}

/* What the kernel takes is the same for both, so the difference is what the queues hold. */
static void queue_is_as_long_as_it_says(void **state)
{
    int short_queue, long_queue;
    (void)state;
    short_queue = pushes_until_slow("2");
    long_queue = pushes_until_slow("152");
    assert_in_range(long_queue - short_queue, 100, 200);
}

/* ===== Secrets, bounds, draining ===== */

#define BEARER(value) "GET /online HTTP/1.1\r\n" HOST "Authorization: " value "\r\n\r\n"

static void push_door_wants_its_secret(void **state)
{
    static const struct row rows[] = {
        {"none", GET("/online"), 401, "WWW-Authenticate: Bearer", NULL},
        {"none for a push", POST(T "abc", "Content-Length: 2\r\n", "hi"), 401,
         "WWW-Authenticate: Bearer", NULL},
        {"none for another path", GET("/nope"), 401, NULL, NULL},
        {"right", BEARER("Bearer s3cr3t word"), 200, NULL, NULL},
        {"right, scheme in any case", BEARER("bearer s3cr3t word"), 200, NULL, NULL},
        {"wrong", BEARER("Bearer s3cr3t worD"), 401, "WWW-Authenticate: Bearer", NULL},
        {"prefix", BEARER("Bearer s3cr3t wor"), 401, NULL, NULL},
        {"longer", BEARER("Bearer s3cr3t word2"), 401, NULL, NULL},
        {"empty", BEARER("Bearer "), 401, NULL, NULL},
        {"second line", BEARER("Bearer other"), 401, NULL, NULL},
        {"another scheme", BEARER("Basic s3cr3t word"), 401, NULL, NULL},
        {"healthz needs none", GET("/healthz"), 200, NULL, "ok"},
    };
    char path[256];
    const char *const args[] = {"--push-secret-file", path, NULL};
    static struct server s;
    struct peer p;
    int fd = temporary_file(path, sizeof path);
    (void)state;
    assert_int_equal(write(fd, "s3cr3t word\nother\n", 18), 18);
    close(fd);
    server_start(&s, args);
    peer_open(&s, &p, "abc", NULL);
    push_rows_run(&s, rows, COUNT(rows));
    peer_expect_alive(&p);              /* no push got through */
    assert_false(server_log_contains(&s, "s3cr3t"));
    peer_close(&p);
    server_stop(&s);
    unlink(path);
}

static void push_door_bounds_pushers(void **state)
{
    static const char *const args[] = {"--pushers", "2", NULL};
    static struct server s;
    static struct reply r;
    struct conn c[2], late;
    int i;
    (void)state;
    server_start(&s, args);
    for (i = 0; i < 2; i++) {
        conn_open(&c[i], s.push);
        push_on(&c[i], "GET", "/healthz", NULL, NULL, 0, &r);
    }
    conn_open(&late, s.push);
    reply_read(&late, &r);              /* told at once, without having to ask */
    assert_int_equal(r.status, 503);
    conn_expect_eof(&late);
    conn_close(&late);
    conn_close(&c[0]);
    for (i = 0; i < 1000; i++) {        /* its place comes back */
        conn_open(&c[0], s.push);
        conn_send_text(&c[0], GET("/healthz"));
        reply_read(&c[0], &r);
        if (r.status == 200)
            break;
        conn_close(&c[0]);
        pause_ms(5);
    }
    assert_int_equal(r.status, 200);
    push_on(&c[1], "GET", "/online", NULL, NULL, 0, &r);
    assert_int_equal(r.status, 200);
    conn_close(&c[0]);
    conn_close(&c[1]);
    server_stop(&s);
}

static void draining_says_so_at_both_doors(void **state)
{
    static const char *const args[] = {"--drain", "60", "--close-timeout", "60", NULL};
    static const struct row late = {"late", UPGRADE(T "late"), 503, "Retry-After", NULL};
    static struct server s;
    static struct reply r;
    struct conn early;
    struct peer p;
    (void)state;
    server_start(&s, args);
    peer_open(&s, &p, "abc", NULL);
    conn_open(&early, s.push);
    push_on(&early, "GET", "/healthz", NULL, NULL, 0, &r);
    assert_non_null(strstr(r.body, "{\"status\":\"ok\"}"));
    server_signal(&s, SIGTERM);
    peer_expect_close(&p, 1001);        /* and waits, since this is not answered */
    push_on(&early, "GET", "/healthz", NULL, NULL, 0, &r);
    assert_int_equal(r.status, 503);
    assert_non_null(strstr(r.body, "{\"status\":\"draining\"}"));
    push_request(&s, "GET", "/healthz", NULL, NULL, 0, &r);
    assert_int_equal(r.status, 503);
    client_row_run(&s, &late, 0);
    peer_send_close(&p, 1001, "");
    peer_expect_eof(&p);
    peer_close(&p);
    conn_close(&early);
    server_wait(&s, 0, deadline_usual());
}

/* ===== Other ways in ===== */

/* A session and a push through a server's two doors, wherever they are. */
static void doors_work(const struct server *s)
{
    struct peer p;
    peer_open(s, &p, "abc", NULL);
    push_expect(s, "abc", "37 %", 1);
    peer_expect_text(&p, "37 %");
    server_check_books(s);
    peer_leave(&p);
}

static void doors_listen_on_unix_sockets(void **state)
{
    char folder[200] = "/tmp/exportws-test.XXXXXX", listen[256], push[256];
    const char *const args[] = {"--listen", listen, "--push", push, NULL};
    static struct server s;
    (void)state;
    assert_non_null(mkdtemp(folder));
    snprintf(listen, sizeof listen, "unix:%s/clients", folder);
    snprintf(push, sizeof push, "unix:%s/push", folder);
    server_start(&s, args);
    assert_string_equal(s.clients, listen);
    assert_string_equal(s.push, push);
    doors_work(&s);
    server_stop(&s);
    server_start(&s, args);             /* the name left behind is no obstacle */
    doors_work(&s);
    server_stop(&s);
    unlink(listen + 5);
    unlink(push + 5);
    assert_int_equal(rmdir(folder), 0);
}

static void doors_listen_on_ipv6(void **state)
{
    static const char *const args[] = {"--listen", "[::1]:0", "--push=[::1]:0", NULL};
    static struct server s;
    struct sockaddr_in6 name;
    int fd = socket(AF_INET6, SOCK_STREAM, 0), there;
    (void)state;
    memset(&name, 0, sizeof name);
    name.sin6_family = AF_INET6;
    name.sin6_addr = in6addr_loopback;
    there = fd >= 0 && bind(fd, (struct sockaddr *)(void *)&name, sizeof name) == 0;
    if (fd >= 0)
        close(fd);
    if (!there)
        skip();
    server_start(&s, args);
    assert_int_equal(strncmp(s.clients, "[::1]:", 6), 0);
    assert_int_equal(strncmp(s.push, "[::1]:", 6), 0);
    assert_true(s.client_port > 0 && s.push_port > 0);
    doors_work(&s);
    server_log_wait(&s, "peer=[::1]:", 1);
    server_stop(&s);
}

static void doors_listen_on_all_addresses(void **state)
{
    static const char *const args[] = {"--listen", ":0", NULL};
    static struct server s;
    static struct reply r;
    char address[64];
    (void)state;
    server_start(&s, args);
    assert_true(s.client_port > 0);
    snprintf(address, sizeof address, "127.0.0.1:%d", s.client_port);
    http_request(address, GET("/healthz"), strlen(GET("/healthz")), &r);
    assert_int_equal(r.status, 200);
    server_stop(&s);
}

static void push_door_may_stay_shut(void **state)
{
    static const char *const args[] = {"--push", "none", NULL};
    static struct server s;
    struct peer p;
    (void)state;
    server_start(&s, args);
    assert_string_equal(s.push, "none");
    peer_open(&s, &p, "abc", NULL);
    peer_expect_alive(&p);
    peer_leave(&p);
    server_stop(&s);
}

static void heartbeat_text_is_echoed_when_asked(void **state)
{
    static const char *const args[] = {"--heartbeat", "tick", "--heartbeat-reply", NULL};
    static struct server s;
    struct peer p;
    (void)state;
    server_start(&s, args);
    peer_open(&s, &p, "abc", NULL);
    peer_send_text(&p, "HEART-BEAT");   /* now a message like any other */
    peer_send_text(&p, "tick");
    peer_expect_text(&p, "tick");
    assert_int_equal(server_metric(&s, "exportws_heartbeats_total"), 1);
    assert_int_equal(server_metric(&s, "exportws_messages_received_total"), 1);
    peer_leave(&p);
    server_stop(&s);
}

#define ROW(name) cmocka_unit_test_teardown(name, server_teardown)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        ROW(client_door_upgrades),
        ROW(client_door_refuses),
        ROW(client_door_is_healthy),
        ROW(client_door_serves_its_pages),
        ROW(client_door_reads_on_behind_the_upgrade),
        ROW(client_door_full_says_when_to_retry),
        ROW(client_door_bounds_an_address),
        ROW(client_door_takes_another_path_and_token_length),
        ROW(push_door_answers),
        ROW(push_door_shows_every_metric),
        ROW(push_door_keeps_alive_and_pipelines),
        ROW(push_door_waits_for_who_reads_late),
        ROW(push_door_takes_no_body_for_a_request),
        ROW(push_door_takes_chunks_in_odd_splits),
        ROW(push_door_says_continue),
        ROW(push_door_sends_binary),
        ROW(held_messages_arrive_in_order_and_once),
        ROW(held_messages_expire_and_are_counted),
        ROW(delete_closes_sessions_and_drops_what_is_held),
        ROW(queue_is_as_long_as_it_says),
        ROW(push_door_wants_its_secret),
        ROW(push_door_bounds_pushers),
        ROW(draining_says_so_at_both_doors),
        ROW(doors_listen_on_unix_sockets),
        ROW(doors_listen_on_ipv6),
        ROW(doors_listen_on_all_addresses),
        ROW(push_door_may_stay_shut),
        ROW(heartbeat_text_is_echoed_when_asked),
    };
    return cmocka_run_group_tests_name("doors", tests, NULL, NULL);
}
