/*
 * test_rfc9112.c - HTTP/1.1 as RFC 9112 has it, at both doors, over real sockets.
 *
 * A row is its own cmocka test: a request (or several), and what must come back, to the end of the
 * connection. It runs whole, in pieces of 7 bytes, and byte by byte with the server reading each
 * byte before the next is sent. The rows of a table share one server and one session of the token
 * "here": after each row that session has got exactly the row's messages and is served as before,
 * and /metrics has counted what the row did and nothing else.
 */
#include "server.h"

#define COUNT(rows) (sizeof(rows) / sizeof *(rows))

/* ===== A server, a control session, and what /metrics must say ===== */

static struct fixture {
    struct server server;
    struct peer control;            /* a session of the token "here" */
    struct peer clock;              /* one of another: its pongs tell how far the server is */
    long long opened, closed, refused, pushed;
    int running, whole;             /* whole: the last row came to its end */
} fx;

/* A server for the next row: that of the row before, unless that one failed. */
static int row_setup(void **state)
{
    (void)state;
    if (!fx.running || !fx.whole) {
        server_kill_all();
        conn_close(&fx.control.c);
        conn_close(&fx.clock.c);
        fx.closed = fx.refused = fx.pushed = 0;
        server_start(&fx.server, NULL);
        peer_open(&fx.server, &fx.control, "here", NULL);
        peer_open(&fx.server, &fx.clock, "elsewhere", NULL);
        fx.opened = 2;
        fx.running = 1;
    }
    fx.whole = 0;
    return 0;
}

/* In the end no connection of a row is left, and the server stops as it should. */
static int table_teardown(void **state)
{
    (void)state;
    fx.running = 0;
    if (fx.whole) {
        peer_leave(&fx.control);
        peer_leave(&fx.clock);
        server_metric_wait(&fx.server, "exportws_handshakes", 0);
        server_metric_wait(&fx.server, "exportws_pushers", 1);
        server_stop(&fx.server);
    }
    server_kill_all();
    conn_close(&fx.control.c);
    conn_close(&fx.clock.c);
    return 0;
}

/* The control session is served as before, and the counters are what the rows have made them. */
static void row_done(void)
{
    static struct reply r;
    peer_expect_alive(&fx.control);
    server_page(&fx.server, "/metrics", &r);
    assert_int_equal(metric_in(r.body, "exportws_sessions_opened_total"), fx.opened);
    assert_int_equal(metric_sum_in(r.body, "exportws_sessions_closed_total"), fx.closed);
    assert_int_equal(metric_in(r.body, "exportws_sessions"), fx.opened - fx.closed);
    assert_int_equal(metric_in(r.body, "exportws_sessions"), 2);
    assert_int_equal(metric_sum_in(r.body, "exportws_refused_total"), fx.refused);
    assert_int_equal(metric_in(r.body, "exportws_messages_pushed_total"), fx.pushed);
    assert_int_equal(metric_in(r.body, "exportws_messages_delivered_total"), fx.pushed);
    fx.whole = 1;
}

/* Returns when the server has read what was sent before: the second round is a turn of its own. */
static void server_settle(void)
{
    peer_expect_alive(&fx.clock);
    peer_expect_alive(&fx.clock);
}

/* Sends bytes in pieces, each read before the next is sent when `settled`; the server may close. */
static void pieces_send(struct conn *c, const char *bytes, size_t n, size_t piece, int settled)
{
    size_t at, size;
    for (at = 0; at < n; at += size) {
        size = n - at < piece ? n - at : piece;
        if (conn_send(c, bytes + at, size) != 0)
            return;
        if (settled && size < n)
            server_settle();
    }
}

/* ===== Rows ===== */

/*
 * want: what comes back, in order:
 *     200      a response with this status; 405h: one without a body, since the request was a HEAD
 *     ws       (after 101) the session works, and leaves
 *     c1002    (after 101) the session is closed with this code
 *     eof      the server closes, and had said so with Connection: close
 *     open     the connection goes on: one more request gets its answer, and only that
 *     any      either; in no case is a request's body taken for a request
 *     Header: value    (after a status, in <>) this header field is in the response
 *
 * got: the texts that the session of the token "here" gets, with | between; NULL: none.
 */
struct row {
    const char *name, *request;
    const char *clients, *push;     /* want, at that door; NULL: does not run there */
    const char *got;
};

#define NUL "\x1b"                  /* in a request: a zero byte */

#define TOKEN DEFAULT_PATH "here"
#define G "GET /healthz HTTP/1.1\r\n"
#define H "Host: localhost\r\n"
#define END "\r\n"
#define BAD "400 eof", "400 eof", NULL
#define GOOD "200 eof", "200 open", NULL
#define POST "POST " TOKEN " HTTP/1.1\r\n" H
#define CHUNKED POST "Transfer-Encoding: chunked\r\n\r\n"
#define UPGRADE_FIELDS                                                                             \
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " SAMPLE_KEY "\r\n"
#define UPGRADE(target)                                                                            \
    "GET " target " HTTP/1.1\r\n" H "Connection: Upgrade\r\n" UPGRADE_FIELDS "\r\n"
#define ROW DEFAULT_PATH "row"

static const struct row head_rows[] = {
    /* 2.2: lines */
    {"2.2: a request", G H END, GOOD},
    {"2.2: an empty line before", "\r\n" G H END, GOOD},
    {"2.2: empty lines before", "\r\n\r\n\r\n" G H END, GOOD},
    {"2.2: a line of blanks before", "  \r\n" G H END, BAD},
    {"2.2: bare LF before", "\n" G H END, BAD},
    {"2.2: bare CR before", "\r" G H END, BAD},
    {"2.2: bare LF behind the request line", "GET /healthz HTTP/1.1\n" H END, BAD},
    {"2.2: bare LF behind a field", G "Host: localhost\n\r\n", BAD},
    {"2.2: bare LF as the empty line", G H "\n", BAD},
    {"2.2: bare LF everywhere", "GET /healthz HTTP/1.1\nHost: localhost\n\n", BAD},
    {"2.2: bare LF in a value", G H "X: a\nb\r\n\r\n", BAD},
    {"2.2: bare LF makes no second field", G "X: a\nHost: localhost\r\n\r\n", BAD},
    {"2.2: LF CR", G "Host: localhost\n\r\n\r", BAD},
    {"2.2: bare CR in the request line", "GET /heal\rthz HTTP/1.1\r\n" H END, BAD},
    {"2.2: bare CR behind the request line", "GET /healthz HTTP/1.1\r" H END, BAD},
    {"2.2: bare CR in a value", G H "X: a\rb\r\n\r\n", BAD},
    {"2.2: bare CR in a name", G H "X\rY: a\r\n\r\n", BAD},
    {"2.2: CR CR LF behind a field", G "Host: localhost\r\r\n\r\n", BAD},
    {"2.2: CR CR LF as the empty line", G H "\r\r\n", BAD},
    {"2.2: a blank behind the request line", "GET /healthz HTTP/1.1 \r\n" H END, BAD},
    {"2.2: a field that begins with a blank, first", G " X: a\r\n" H END, BAD},
    {"2.2: a field that begins with a tab, first", G "\tX: a\r\n" H END, BAD},
    {"2.2: a line of blanks behind the request line", G "  \r\n" H END, BAD},
    {"2.2: NUL before", NUL G H END, BAD},
    {"2.2: NUL in the method", "GE" NUL "T /healthz HTTP/1.1\r\n" H END, BAD},
    {"2.2: NUL in the target", "GET /healthz" NUL " HTTP/1.1\r\n" H END, BAD},
    {"2.2: NUL in the version", "GET /healthz HTTP/1.1" NUL "\r\n" H END, BAD},
    {"2.2: NUL in a name", G H "X" NUL "Y: a\r\n\r\n", BAD},
    {"2.2: NUL in a value", G H "X: a" NUL "b\r\n\r\n", BAD},
    {"2.2: NUL alone on a line", G H NUL "\r\n\r\n", BAD},
    {"2.2: TLS", "\x16\x03\x01\x01\x40\x01" NUL "\x01\x3c\x03\x03", BAD},
    {"2.2: nonsense", "\xff\xfe\xfd\r\n\r\n", BAD},
    /* 2.3, 3: the request line */
    {"2.3: HTTP/1.0", "GET /healthz HTTP/1.0\r\n" H END, "400 eof", "200 eof", NULL},
    {"2.3: HTTP/1.0 without Host", "GET /healthz HTTP/1.0\r\n\r\n", "400 eof", "200 eof", NULL},
    {"2.3: HTTP/1.2 is 1.1 to us", "GET /healthz HTTP/1.2\r\n" H END, GOOD},
    {"2.3: HTTP/1.9 is 1.1 to us", "GET /healthz HTTP/1.9\r\n" H END, GOOD},
    {"2.3: HTTP/0.9", "GET /healthz\r\n\r\n", BAD},
    {"2.3: HTTP/2.0", "GET /healthz HTTP/2.0\r\n" H END, BAD},
    {"2.3: HTTP/2", "GET /healthz HTTP/2\r\n" H END, BAD},
    {"2.3: the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BAD},
    {"2.3: HTTP/1", "GET /healthz HTTP/1\r\n" H END, BAD},
    {"2.3: HTTP/1.", "GET /healthz HTTP/1.\r\n" H END, BAD},
    {"2.3: HTTP/1.10", "GET /healthz HTTP/1.10\r\n" H END, BAD},
    {"2.3: HTTP/01.1", "GET /healthz HTTP/01.1\r\n" H END, BAD},
    {"2.3: HTTP/1,1", "GET /healthz HTTP/1,1\r\n" H END, BAD},
    {"2.3: HTTP/1.x", "GET /healthz HTTP/1.x\r\n" H END, BAD},
    {"2.3: http/1.1", "GET /healthz http/1.1\r\n" H END, BAD},
    {"2.3: HTTPS/1.1", "GET /healthz HTTPS/1.1\r\n" H END, BAD},
    {"3: a blank before the method", " GET /healthz HTTP/1.1\r\n" H END, BAD},
    {"3: two blanks behind the method", "GET  /healthz HTTP/1.1\r\n" H END, BAD},
    {"3: two blanks before the version", "GET /healthz  HTTP/1.1\r\n" H END, BAD},
    {"3: tabs for blanks", "GET\t/healthz\tHTTP/1.1\r\n" H END, BAD},
    {"3: four words", "GET /healthz x HTTP/1.1\r\n" H END, BAD},
    {"3: a word behind the version", "GET /healthz HTTP/1.1 x\r\n" H END, BAD},
    {"3: one word", "GET\r\n\r\n", BAD},
    {"3: no method", "/healthz HTTP/1.1\r\n" H END, BAD},
    {"3: no target", "GET HTTP/1.1\r\n" H END, BAD},
    {"3: no target but its blanks", "GET  HTTP/1.1\r\n" H END, BAD},
    {"3: a byte over 127 in the target", "GET /h\xc3\xa9 HTTP/1.1\r\n" H END, BAD},
    {"3: DEL in the target", "GET /healthz\x7f HTTP/1.1\r\n" H END, BAD},
    {"3.1: a method that is no token", "G(T /healthz HTTP/1.1\r\n" H END, BAD},
    {"3.1: a method with a byte over 127", "G\xc9T /healthz HTTP/1.1\r\n" H END, BAD},
    {"3.1: an unknown method", "BREW /healthz HTTP/1.1\r\n" H END, "405 <Allow: GET> eof",
     "405 <Allow: GET> open", NULL},
    {"3.1: methods have a case", "get /healthz HTTP/1.1\r\n" H END, "405 <Allow: GET> eof",
     "405 <Allow: GET> open", NULL},
    {"3.1: HEAD gets no body", "HEAD /healthz HTTP/1.1\r\n" H END, "405h <Allow: GET> eof",
     "405h <Allow: GET> open", NULL},
    {"3.1: HEAD of nothing gets no body", "HEAD /nothing HTTP/1.1\r\n" H END,
     "405h <Allow: GET> eof", "404h open", NULL},
    {"3.1: HEAD of a token gets no body", "HEAD " TOKEN " HTTP/1.1\r\n" H END,
     "405h <Allow: GET> eof", "405h open", NULL},
    {"3.1: HEAD by HTTP/1.0 gets no body", "HEAD /healthz HTTP/1.0\r\n" H END, "400h eof",
     "405h eof", NULL},
    {"3.1: OPTIONS", "OPTIONS /healthz HTTP/1.1\r\n" H END, "405 <Allow: GET> eof",
     "405 <Allow: GET> open", NULL},
    {"3.1: TRACE is not echoed", "TRACE /healthz HTTP/1.1\r\n" H END, "405 <Allow: GET> eof",
     "405 <Allow: GET> open", NULL},
    {"3.2.1: a query", "GET /healthz?x=y HTTP/1.1\r\n" H END, GOOD},
    {"3.2.1: an empty query", "GET /healthz? HTTP/1.1\r\n" H END, GOOD},
    {"3.2.1: a fragment", "GET /healthz#x HTTP/1.1\r\n" H END, BAD},
    {"3.2.1: no slash in front", "GET healthz HTTP/1.1\r\n" H END, BAD},
    {"3.2.2: absolute form", "GET http://localhost/healthz HTTP/1.1\r\n" H END, GOOD},
    {"3.2.2: absolute form in capitals", "GET HTTP://LOCALHOST/healthz HTTP/1.1\r\n" H END, GOOD},
    {"3.2.2: absolute form of https with a port",
     "GET https://localhost:443/healthz HTTP/1.1\r\n" H END, GOOD},
    {"3.2.2: absolute form of IPv6", "GET http://[::1]:8080/healthz HTTP/1.1\r\n" H END, GOOD},
    {"3.2.2: absolute form with a query", "GET http://localhost/healthz?a=/b HTTP/1.1\r\n" H END,
     GOOD},
    {"3.2.2: absolute form without Host", "GET http://localhost/healthz HTTP/1.1\r\n\r\n", BAD},
    {"3.2.2: absolute form without a path", "GET http://localhost HTTP/1.1\r\n" H END, "404 eof",
     "404 open", NULL},
    {"3.2.2: a query behind the authority is no path",
     "GET http://localhost?/healthz HTTP/1.1\r\n" H END, "404 eof", "404 open", NULL},
    {"3.2.2: a host is not empty", "GET http:///healthz HTTP/1.1\r\n" H END, BAD},
    {"3.2.3: authority form is CONNECT's", "CONNECT localhost:80 HTTP/1.1\r\n" H END,
     "405 <Allow: GET> eof", "404 open", NULL},
    {"3.2.4: OPTIONS *", "OPTIONS * HTTP/1.1\r\n" H END, "405 <Allow: GET> eof", "404 open", NULL},
    {"3.2.4: GET *", "GET * HTTP/1.1\r\n" H END, BAD},
    /* 3.2: Host */
    {"3.2: no Host", G END, BAD},
    {"3.2: no Host but others", G "X-Host: localhost\r\nHosts: localhost\r\n\r\n", BAD},
    {"3.2: the same Host twice", G H H END, BAD},
    {"3.2: two Hosts", G H "Host: elsewhere\r\n\r\n", BAD},
    {"3.2: two Hosts in different case", G H "hOST: elsewhere\r\n\r\n", BAD},
    {"3.2: two Hosts by HTTP/1.0", "GET /healthz HTTP/1.0\r\n" H H END, BAD},
    {"3.2: Host with a port", G "Host: localhost:8080\r\n\r\n", GOOD},
    {"3.2: Host with an empty port", G "Host: localhost:\r\n\r\n", GOOD},
    {"3.2: Host of IPv4", G "Host: 127.0.0.1:80\r\n\r\n", GOOD},
    {"3.2: Host of IPv6", G "Host: [::1]:80\r\n\r\n", GOOD},
    {"3.2: Host with an escape and marks", G "Host: a%2db_c~d.example\r\n\r\n", GOOD},
    {"3.2: Host empty", G "Host:\r\n\r\n", GOOD},
    {"3.2: Host with a blank in it", G "Host: local host\r\n\r\n", BAD},
    {"3.2: Host with a path", G "Host: localhost/x\r\n\r\n", BAD},
    {"3.2: Host with a user", G "Host: me@localhost\r\n\r\n", BAD},
    {"3.2: Host with a port that is none", G "Host: localhost:http\r\n\r\n", BAD},
    {"3.2: Host with two ports", G "Host: localhost:80:80\r\n\r\n", BAD},
    {"3.2: Host of IPv6 without its end", G "Host: [::1\r\n\r\n", BAD},
    {"3.2: Host with an escape that is cut off", G "Host: localhost%2\r\n\r\n", BAD},
    {"3.2: Host with an escape that is none", G "Host: local%2ghost\r\n\r\n", BAD},
    {"3.2: Host with a number sign", G "Host: local#host\r\n\r\n", BAD},
    {"3.2: Host with a circumflex", G "Host: local^host\r\n\r\n", BAD},
    {"3.2: Host with a backtick", G "Host: local`host\r\n\r\n", BAD},
    {"3.2: Host with a bar", G "Host: local|host\r\n\r\n", BAD},
    {"3.2: Host of brackets alone", G "Host: []\r\n\r\n", BAD},
    {"3.2.2: absolute form with a bar in its host", "GET http://a|b/healthz HTTP/1.1\r\n" H END,
     BAD},
    {"3.2: Host with a byte over 127", G "Host: l\xc3\xb6""calhost\r\n\r\n", BAD},
    /* 5: fields */
    {"5: names in capitals", G "HOST: localhost\r\n\r\n", GOOD},
    {"5: names in small letters", G "host: localhost\r\n\r\n", GOOD},
    {"5: names in any case", G "hOsT: localhost\r\ncOnNeCtIoN: ClOsE\r\n\r\n", "200 eof", "200 eof",
     NULL},
    {"5: no blank behind the colon", G "Host:localhost\r\n\r\n", GOOD},
    {"5: blanks and tabs around the value", G "Host: \t  localhost \t \r\n\r\n", GOOD},
    {"5: an empty value", G H "X:\r\nY: \t\r\n\r\n", GOOD},
    {"5: a tab in a value", G H "X: a\tb\r\n\r\n", GOOD},
    {"5: bytes over 127 in a value", G H "X: \x80\xc3\xa9\xff\r\n\r\n", GOOD},
    {"5: colons in a value", G H "X: a:b:c\r\n:Y: d\r\n\r\n", BAD},
    {"5: all characters of a name", G H "!#$%&'*+-.^_`|~09azAZ: x\r\n\r\n", GOOD},
    {"5: many fields", G H "A:\r\nB:\r\nC:\r\nD:\r\nE:\r\nF:\r\nG:\r\nH:\r\nI:\r\nJ:\r\nK:\r\n\r\n",
     GOOD},
    {"5.1: a blank before the colon", G "Host : localhost\r\n\r\n", BAD},
    {"5.1: a tab before the colon", G "Host\t: localhost\r\n\r\n", BAD},
    {"5.1: a blank before the colon of another", G H "X : a\r\n\r\n", BAD},
    {"5.1: a blank before Content-Length's colon", G H "Content-Length : 5\r\n\r\n", BAD},
    {"5.1: no colon", G H "what\r\n\r\n", BAD},
    {"5.1: no name", G H ": a\r\n\r\n", BAD},
    {"5.1: a blank in a name", G H "X Y: a\r\n\r\n", BAD},
    {"5.1: a parenthesis in a name", G H "X(: a\r\n\r\n", BAD},
    {"5.1: a slash in a name", G H "X/Y: a\r\n\r\n", BAD},
    {"5.1: a quote in a name", G H "\"X\": a\r\n\r\n", BAD},
    {"5.1: an at sign in a name", G H "X@Y: a\r\n\r\n", BAD},
    {"5.1: a byte over 127 in a name", G H "X\xe9: a\r\n\r\n", BAD},
    {"5.1: DEL in a name", G H "X\x7f: a\r\n\r\n", BAD},
    {"5.5: control byte 1 in a value", G H "X: a\x01\r\n\r\n", BAD},
    {"5.5: vertical tab in a value", G H "X: a\x0b" "b\r\n\r\n", BAD},
    {"5.5: form feed in a value", G H "X: a\x0c" "b\r\n\r\n", BAD},
    {"5.5: control byte 31 in a value", G H "X: a\x1f\r\n\r\n", BAD},
    {"5.5: DEL in a value", G H "X: a\x7f\r\n\r\n", BAD},
    {"5.2: a folded field", G H "X: a\r\n b\r\n\r\n", BAD},
    {"5.2: a field folded with a tab", G H "X: a\r\n\tb\r\n\r\n", BAD},
    {"5.2: Host, folded", G "Host:\r\n localhost\r\n\r\n", BAD},
    {"5.2: a fold that looks like a field", G H "X: a\r\n Content-Length: 5\r\n\r\n", BAD},
    {"5.2: a fold of nothing", G H "X: a\r\n \r\n\r\n", BAD},
    /* 6: what frames a body */
    {"6.2: a length", G H "Content-Length: 5\r\n\r\nhello", "200 eof", "200 eof", NULL},
    {"6.2: length 0", G H "Content-Length: 0\r\n\r\n", GOOD},
    {"6.3: no length is no body", G H END, GOOD},
    {"6.3: a length that is no number", G H "Content-Length: five\r\n\r\n", BAD},
    {"6.3: an empty length", G H "Content-Length:\r\n\r\n", BAD},
    {"6.3: a length with a sign", G H "Content-Length: +5\r\n\r\nhello", BAD},
    {"6.3: a negative length", G H "Content-Length: -5\r\n\r\nhello", BAD},
    {"6.3: a length in hex", G H "Content-Length: 0x5\r\n\r\nhello", BAD},
    {"6.3: a length with a point", G H "Content-Length: 5.0\r\n\r\nhello", BAD},
    {"6.3: a length with a blank in it", G H "Content-Length: 5 5\r\n\r\nhello", BAD},
    {"6.3: a length with letters behind", G H "Content-Length: 5b\r\n\r\nhello", BAD},
    {"6.3: the same length twice", G H "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", BAD},
    {"6.3: two lengths", G H "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", BAD},
    {"6.3: two lengths, 0 first", G H "Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello", BAD},
    {"6.3: two lengths in different case",
     G H "Content-Length: 5\r\nCONTENT-LENGTH: 5\r\n\r\nhello", BAD},
    {"6.3: a list of the same length", G H "Content-Length: 5, 5\r\n\r\nhello", BAD},
    {"6.3: a list of lengths", G H "Content-Length: 5, 6\r\n\r\nhello", BAD},
    {"6.3: a length, and chunked",
     G H "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD},
    {"6.3: chunked, and a length",
     G H "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", BAD},
    {"6.3: chunked, and length 0",
     G H "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", BAD},
    {"6.3: chunked twice", G H "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
     BAD},
    {"6.3: chunked, then another coding",
     G H "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n", BAD},
    {"6.3: a list of chunked twice", G H "Transfer-Encoding: chunked, chunked\r\n\r\n", "501 eof",
     "501 eof", NULL},
    {"6.3: chunked is not last", G H "Transfer-Encoding: chunked, gzip\r\n\r\n", "501 eof",
     "501 eof", NULL},
    {"6.1: gzip, chunked", G H "Transfer-Encoding: gzip, chunked\r\n\r\n", "501 eof", "501 eof",
     NULL},
    {"6.1: gzip", G H "Transfer-Encoding: gzip\r\n\r\n", "501 eof", "501 eof", NULL},
    {"6.1: identity", G H "Transfer-Encoding: identity\r\n\r\n", "501 eof", "501 eof", NULL},
    {"6.1: an empty coding", G H "Transfer-Encoding:\r\n\r\n", "501 eof", "501 eof", NULL},
    {"6.1: xchunked", G H "Transfer-Encoding: xchunked\r\n\r\n", "501 eof", "501 eof", NULL},
    {"6.1: chunked with a parameter", G H "Transfer-Encoding: chunked;a=b\r\n\r\n", "501 eof",
     "501 eof", NULL},
    {"6.1: chunked with a vertical tab", G H "Transfer-Encoding: \x0b" "chunked\r\n\r\n", BAD},
    {"6.1: Transfer-Encoding with a blank before the colon",
     G H "Transfer-Encoding : chunked\r\n\r\n", BAD},
};

static const struct row client_rows[] = {
    {"9.7: an upgrade", UPGRADE(ROW), "101 ws", NULL, NULL},
    {"9.7: Connection: keep-alive, Upgrade",
     "GET " ROW " HTTP/1.1\r\n" H "Connection: keep-alive, Upgrade\r\n" UPGRADE_FIELDS "\r\n",
     "101 ws", NULL, NULL},
    {"9.7: a request pipelined behind an upgrade is a broken frame", UPGRADE(ROW) G H END,
     "101 c1002", NULL, NULL},
    {"9.7: an upgrade pipelined behind an upgrade is a broken frame", UPGRADE(ROW) UPGRADE(ROW),
     "101 c1002", NULL, NULL},
    {"9.7: a request pipelined behind a refused upgrade is not served",
     "GET " ROW " HTTP/1.1\r\n" H END G H END, "426 eof", NULL, NULL},
    {"9.7: an upgrade pipelined behind a request is not served", G H END UPGRADE(ROW), "200 eof",
     NULL, NULL},
    {"9.7: a smuggled request in an upgrade's body is not served",
     "GET " ROW " HTTP/1.1\r\n" H "Connection: Upgrade\r\n" UPGRADE_FIELDS
     "Content-Length: 42\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "400 eof", NULL,
     NULL},
    {"9.7: an upgrade with a chunked body",
     "GET " ROW " HTTP/1.1\r\n" H "Connection: Upgrade\r\n" UPGRADE_FIELDS
     "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 eof", NULL, NULL},
    {"3.1: POST's body is no request", "POST " TOKEN " HTTP/1.1\r\n" H "Content-Length: 42\r\n\r\n"
     G H END, "405 <Allow: GET> eof", NULL, NULL},
    {"9.3: the door keeps no connection", G H "Connection: keep-alive\r\n\r\n" G H END, "200 eof",
     NULL, NULL},
    {"3.2.2: an upgrade in absolute form", UPGRADE("http://localhost" ROW), "101 ws", NULL, NULL},
    {"3.2.2: the target's host counts, not the Host field",
     "GET http://real.example" ROW " HTTP/1.1\r\nHost: other.example\r\nConnection: Upgrade\r\n"
     UPGRADE_FIELDS "Origin: http://real.example\r\n\r\n", "101 ws", NULL, NULL},
    {"3.2.2: the Host field does not count beside the target's",
     "GET http://real.example" ROW " HTTP/1.1\r\nHost: other.example\r\nConnection: Upgrade\r\n"
     UPGRADE_FIELDS "Origin: http://other.example\r\n\r\n", "403 eof", NULL, NULL},
    {"3.2.2: a query behind the authority is no path", UPGRADE("http://localhost?" ROW), "404 eof",
     NULL, NULL},
    {"3.2.1: a fragment in a token's target", UPGRADE(ROW "#x"), "400 eof", NULL, NULL},
    {"3.2.1: a slash behind the token", UPGRADE(ROW "/"), "404 eof", NULL, NULL},
    {"10.1.1: Expect is not in the way of an upgrade",
     "GET " ROW " HTTP/1.1\r\n" H "Connection: Upgrade\r\nExpect: 100-continue\r\n" UPGRADE_FIELDS
     "\r\n", "101 ws", NULL, NULL},
};

#define LENGTH(n) POST "Content-Length: " n "\r\n\r\n"
#define SMUGGLED "GET /online HTTP/1.1\r\nHost: localhost\r\n\r\n"  /* 41 bytes */
#define SMUGGLED_LENGTH "Content-Length: 41\r\n\r\n"

static const struct row push_rows[] = {
    /* 6.2: lengths */
    {"6.2: a body with its length", LENGTH("5") "hello", NULL, "200 open", "hello"},
    {"6.2: a body of no bytes", LENGTH("0"), NULL, "200 open", ""},
    {"6.2: a length with zeros in front", LENGTH("0005") "hello", NULL, "200 open", "hello"},
    {"6.2: a length with blanks around", POST "Content-Length: \t 5 \t\r\n\r\nhello", NULL,
     "200 open", "hello"},
    {"6.2: names and values in any case",
     "POST " TOKEN " HTTP/1.1\r\nhost: a\r\nCONTENT-length:5\r\n\r\nhello", NULL, "200 open",
     "hello"},
    {"6.2: a body that looks like a request", POST SMUGGLED_LENGTH SMUGGLED, NULL, "200 open",
     SMUGGLED},
    {"6.2: no length", POST END, NULL, "411 eof", NULL},
    {"6.2: a length over --max-push", LENGTH("65537"), NULL, "413 eof", NULL},
    {"6.2: a length of 2 to the 32 and 5", LENGTH("4294967301") "hello", NULL, "413 eof", NULL},
    {"6.2: a length of 2 to the 63 and 5", LENGTH("9223372036854775813") "hello", NULL, "413 eof",
     NULL},
    {"6.2: a length of 2 to the 64 and 5", LENGTH("18446744073709551621") "hello", NULL, "413 eof",
     NULL},
    {"6.2: a length of 40 digits", LENGTH("1000000000000000000000000000000000000005") "hello", NULL,
     "413 eof", NULL},
    {"6.3: two lengths, of which one fits", POST "Content-Length: 5\r\nContent-Length: 46\r\n\r\n"
     "hello" SMUGGLED, NULL, "400 eof", NULL},
    {"6.3: a length and chunked, smuggling",
     POST "Content-Length: 46\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" SMUGGLED, NULL,
     "400 eof", NULL},
    {"6.3: chunked and a length, smuggling",
     POST "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" SMUGGLED, NULL,
     "400 eof", NULL},
    {"6.1: an unknown coding, smuggling", POST "Transfer-Encoding: xchunked\r\n\r\n" SMUGGLED, NULL,
     "501 eof", NULL},
    {"6.1: chunked by HTTP/1.0 ends the connection",
     "POST " TOKEN " HTTP/1.0\r\n" H "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" SMUGGLED, NULL,
     "400 eof", NULL},
    /* 7.1: chunks */
    {"7.1: a chunk", CHUNKED "5\r\nhello\r\n0\r\n\r\n", NULL, "200 open", "hello"},
    {"7.1: chunks", CHUNKED "1\r\nh\r\n3\r\nell\r\n1\r\no\r\n0\r\n\r\n", NULL, "200 open", "hello"},
    {"7.1: no chunk but the last", CHUNKED "0\r\n\r\n", NULL, "200 open", ""},
    {"7.1: Chunked in any case", POST "tRANSFER-eNCODING: cHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
     NULL, "200 open", "hello"},
    {"7.1: a size in small hex", CHUNKED "a\r\n0123456789\r\n0\r\n\r\n", NULL, "200 open",
     "0123456789"},
    {"7.1: a size in capital hex", CHUNKED "A\r\n0123456789\r\n0\r\n\r\n", NULL, "200 open",
     "0123456789"},
    {"7.1: zeros before a size", CHUNKED "005\r\nhello\r\n000\r\n\r\n", NULL, "200 open", "hello"},
    {"7.1: a chunk that looks like a last one", CHUNKED "7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", NULL,
     "200 open", "\r\n0\r\n\r\n"},
    {"7.1: a character over two chunks", CHUNKED "1\r\n\xc3\r\n1\r\n\xa9\r\n0\r\n\r\n", NULL,
     "200 open", "\xc3\xa9"},
    {"7.1: no size", CHUNKED "\r\nhello\r\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: a size that is no hex", CHUNKED "g\r\nhello\r\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: a size with 0x", CHUNKED "0x5\r\nhello\r\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: a size with a sign", CHUNKED "+5\r\nhello\r\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: a negative size", CHUNKED "-5\r\nhello\r\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: a blank before the size", CHUNKED " 5\r\nhello\r\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: two sizes", CHUNKED "5 5\r\nhello\r\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: a size and a comma", CHUNKED "5,5\r\nhello\r\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: bare LF behind the size", CHUNKED "5\nhello\r\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: bare CR behind the size", CHUNKED "5\rhello\r\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: bare LF behind the data", CHUNKED "5\r\nhello\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: no line end behind the data", CHUNKED "5\r\nhello0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: data longer than its size", CHUNKED "4\r\nhello\r\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: data shorter than its size", CHUNKED "6\r\nhello\r\n0\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: bare LF behind the last chunk", CHUNKED "5\r\nhello\r\n0\n\n", NULL, "400 eof", NULL},
    {"7.1: bare LF as the empty line", CHUNKED "5\r\nhello\r\n0\r\n\n", NULL, "400 eof", NULL},
    {"7.1: NUL for a size", CHUNKED NUL "\r\n\r\n", NULL, "400 eof", NULL},
    {"7.1: a size of 2 to the 63 and 5", CHUNKED "8000000000000005\r\nhello\r\n0\r\n\r\n", NULL,
     "400 eof", NULL},
    {"7.1: the largest size of 64 bits", CHUNKED "ffffffffffffffff\r\nhello\r\n0\r\n\r\n", NULL,
     "400 eof", NULL},
    {"7.1: a size of 2 to the 64 and 5", CHUNKED "10000000000000005\r\nhello\r\n0\r\n\r\n", NULL,
     "400 eof", NULL},
    {"7.1: a size of 40 digits",
     CHUNKED "1000000000000000000000000000000000000005\r\nhello\r\n0\r\n\r\n", NULL, "400 eof",
     NULL},
    {"7.1.1: an extension", CHUNKED "5;a=b\r\nhello\r\n0\r\n\r\n", NULL, "200 open", "hello"},
    {"7.1.1: extensions without and with values",
     CHUNKED "5;a;b=c;d=\"e f\"\r\nhello\r\n0;z\r\n\r\n", NULL, "200 open", "hello"},
    {"7.1.1: blanks around an extension", CHUNKED "5 ;\ta = b\r\nhello\r\n0\r\n\r\n", NULL,
     "200 open", "hello"},
    {"7.1.1: an extension that looks like a size", CHUNKED "5;6\r\nhello\r\n0\r\n\r\n", NULL,
     "200 open", "hello"},
    {"7.1.1: bare LF in an extension", CHUNKED "5;a\n6\r\nhello\r\n0\r\n\r\n", NULL, "400 eof",
     NULL},
    {"7.1.1: bare CR in an extension", CHUNKED "5;a\rb\r\nhello\r\n0\r\n\r\n", NULL, "400 eof",
     NULL},
    {"7.1.1: NUL in an extension", CHUNKED "5;a" NUL "\r\nhello\r\n0\r\n\r\n", NULL, "400 eof",
     NULL},
    {"7.1.2: a trailer", CHUNKED "5\r\nhello\r\n0\r\nX: a\r\n\r\n", NULL, "200 open", "hello"},
    {"7.1.2: trailers", CHUNKED "5\r\nhello\r\n0\r\nX: a\r\nY:\r\nZ: b: c\r\n\r\n", NULL,
     "200 open", "hello"},
    {"7.1.2: a trailer frames nothing",
     CHUNKED "5\r\nhello\r\n0\r\nContent-Length: 99\r\nTransfer-Encoding: gzip\r\n\r\n", NULL,
     "200 open", "hello"},
    {"7.1.2: a trailer closes nothing",
     CHUNKED "5\r\nhello\r\n0\r\nConnection: close\r\n\r\n", NULL, "200 open", "hello"},
    {"7.1.2: a trailer without a colon", CHUNKED "5\r\nhello\r\n0\r\nwhat\r\n\r\n", NULL, "400 eof",
     NULL},
    {"7.1.2: a trailer without a name", CHUNKED "5\r\nhello\r\n0\r\n: a\r\n\r\n", NULL, "400 eof",
     NULL},
    {"7.1.2: a trailer with a blank before its colon", CHUNKED "5\r\nhello\r\n0\r\nX : a\r\n\r\n",
     NULL, "400 eof", NULL},
    {"7.1.2: a folded trailer", CHUNKED "5\r\nhello\r\n0\r\nX: a\r\n b\r\n\r\n", NULL, "400 eof",
     NULL},
    {"7.1.2: a trailer that begins with a blank", CHUNKED "5\r\nhello\r\n0\r\n X: a\r\n\r\n", NULL,
     "400 eof", NULL},
    {"7.1.2: NUL in a trailer", CHUNKED "5\r\nhello\r\n0\r\nX: a" NUL "\r\n\r\n", NULL, "400 eof",
     NULL},
    {"7.1.2: bare LF in a trailer", CHUNKED "5\r\nhello\r\n0\r\nX: a\n\r\n", NULL, "400 eof", NULL},
    /* 9.3: persistence */
    {"9.3: pipelined", G H END G H END G H END, NULL, "200 200 200 open", NULL},
    {"9.3: pushes, pipelined", LENGTH("1") "a" CHUNKED "1\r\nb\r\n0\r\n\r\n" LENGTH("1") "c", NULL,
     "200 200 200 open", "a|b|c"},
    {"9.3: pushes and questions, pipelined", LENGTH("1") "a" G H END LENGTH("1") "b" SMUGGLED, NULL,
     "200 200 200 200 open", "a|b"},
    {"9.3: an empty line behind a body", LENGTH("5") "hello\r\n" G H END, NULL, "200 200 open",
     "hello"},
    {"9.3: empty lines between requests", G H END "\r\n\r\n" G H END, NULL, "200 200 open", NULL},
    {"9.3: refusals do not end it",
     "GET /nothing HTTP/1.1\r\n" H END "DELETE /online HTTP/1.1\r\n" H END G H END, NULL,
     "404 405 200 open", NULL},
    {"9.3: a text that is not UTF-8 does not end it", LENGTH("1") "\xff" LENGTH("1") "a", NULL,
     "400 200 open", "a"},
    {"9.3: the answers to HEAD have no bodies in a pipeline",
     "HEAD /healthz HTTP/1.1\r\n" H END G H END "HEAD /nothing HTTP/1.1\r\n" H END G H END, NULL,
     "405h 200 404h 200 open", NULL},
    {"9.3: a broken request ends it", G H END "nonsense\r\n\r\n" G H END, NULL, "200 400 eof",
     NULL},
    {"9.3: HTTP/1.0 ends it", "GET /healthz HTTP/1.0\r\n" H END G H END, NULL, "200 eof", NULL},
    {"9.3: HTTP/1.0 with a body ends it",
     "POST " TOKEN " HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello" G H END, NULL, "200 eof", "hello"},
    {"9.6: close ends it", G H "Connection: close\r\n\r\n" G H END, NULL, "200 eof", NULL},
    {"9.6: close in a list ends it", G H "Connection: x, Close ,y\r\n\r\n" G H END, NULL, "200 eof",
     NULL},
    {"9.6: close in a second line ends it",
     G H "Connection: keep-alive\r\nConnection: close\r\n\r\n" G H END, NULL, "200 eof", NULL},
    {"9.6: close with a body ends it",
     POST "Connection: close\r\nContent-Length: 5\r\n\r\nhello" G H END, NULL, "200 eof", "hello"},
    {"9.6: closed is not close", G H "Connection: closed\r\n\r\n" G H END, NULL, "200 200 open",
     NULL},
    {"9.7: an upgrade is not for this door", UPGRADE(TOKEN) G H END, NULL, "200 200 open", NULL},
    /* 11.2: the body of a refused request is not a request */
    {"11.2: smuggling behind 404", "POST /nothing HTTP/1.1\r\n" H SMUGGLED_LENGTH SMUGGLED, NULL,
     "404 any", NULL},
    {"11.2: smuggling behind 404, chunked",
     "POST /nothing HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n29\r\n" SMUGGLED
     "\r\n0\r\n\r\n", NULL, "404 any", NULL},
    {"11.2: smuggling behind 414", "POST " DEFAULT_PATH
     "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx HTTP/1.1\r\n" H
     SMUGGLED_LENGTH SMUGGLED, NULL, "414 any", NULL},
    {"11.2: smuggling behind a bad escape", "POST " TOKEN "%zz HTTP/1.1\r\n" H SMUGGLED_LENGTH
     SMUGGLED, NULL, "400 any", NULL},
    {"11.2: smuggling behind 405", "PUT " TOKEN " HTTP/1.1\r\n" H SMUGGLED_LENGTH SMUGGLED, NULL,
     "405 any", NULL},
    {"11.2: smuggling behind 405 of a page", "POST /online HTTP/1.1\r\n" H SMUGGLED_LENGTH SMUGGLED,
     NULL, "405 any", NULL},
    {"11.2: smuggling behind 413", LENGTH("65578") SMUGGLED, NULL, "413 eof", NULL},
    {"11.2: smuggling behind a GET", G H SMUGGLED_LENGTH SMUGGLED, NULL, "200 any", NULL},
    {"11.2: smuggling behind a chunked GET",
     G H "Transfer-Encoding: chunked\r\n\r\n29\r\n" SMUGGLED "\r\n0\r\n\r\n", NULL, "200 any",
     NULL},
    {"11.2: smuggling behind a DELETE",
     "DELETE " DEFAULT_PATH "absent HTTP/1.1\r\n" H SMUGGLED_LENGTH SMUGGLED, NULL, "404 any",
     NULL},
    {"11.2: smuggling behind a HEAD", "HEAD /healthz HTTP/1.1\r\n" H SMUGGLED_LENGTH SMUGGLED, NULL,
     "405h any", NULL},
    {"11.2: smuggling behind a text that is not UTF-8",
     LENGTH("42") "\xff" SMUGGLED, NULL, "400 any", NULL},
    /* RFC 9110, 10.1.1: Expect */
    {"10.1.1: 100-continue", POST "Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", NULL,
     "100 200 open", "hello"},
    {"10.1.1: 100-Continue in any case, chunked",
     POST "eXPECT: 100-Continue\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", NULL,
     "100 200 open", "hello"},
    {"10.1.1: no 100 before a refusal",
     POST "Expect: 100-continue\r\nContent-Length: 65537\r\n\r\n", NULL, "413 eof", NULL},
    {"10.1.1: no 100 for HTTP/1.0",
     "POST " TOKEN " HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", NULL,
     "200 eof", "hello"},
    {"10.1.1: no 100 without a body", G H "Expect: 100-continue\r\n\r\n", NULL, "200 open", NULL},
};

/* ===== Running a row ===== */

/* A row's request with its NULs in place; static. */
static const char *request_expand(const char *request, size_t *size)
{
    static char bytes[16384];
    size_t i, n = strlen(request);
    assert_true(n < sizeof bytes);
    for (i = 0; i < n; i++)
        bytes[i] = request[i] == NUL[0] ? '\0' : request[i];
    *size = n;
    return bytes;
}

/* 1 when the response says Connection: close, on any of its Connection lines. */
static int reply_says_close(const struct reply *r)
{
    const char *line = r->head;
    while ((line = strstr(line, "\r\n")) != NULL) {
        line += 2;
        if (strncasecmp(line, "Connection: close\r\n", 19) == 0)
            return 1;
    }
    return 0;
}

/* Reads a response with this status; that to a HEAD ends behind its head. */
static void answer_read(struct conn *c, struct reply *r, int status, int head_only)
{
    int count;
    if (!head_only) {
        reply_read(c, r);
    } else {
        assert_int_equal(reply_read_head(c, r, deadline_usual()), READ_OK);
        assert_int_equal(strncmp(r->head, "HTTP/1.1 ", 9), 0);
        r->status = atoi(r->head + 9);
        reply_check_lines(r);
        reply_header_count(r, "Content-Length", &count);
        assert_in_range(count, 0, 1);
    }
    if (r->status != status)
        harness_fail("wanted %d, got %d: %s", status, r->status, head_only ? r->head : r->body);
    assert_null(reply_header(r, "Transfer-Encoding"));
    fx.refused += status >= 400;
}

/* One more request on the connection gets its answer and only that; 0: the connection has ended. */
static int connection_probe(struct conn *c)
{
    static const char probe[] = "GET /healthz HTTP/1.1\r\nHost: probe\r\n\r\n";
    static struct reply r;
    int got;
    conn_send(c, probe, sizeof probe - 1);
    got = reply_read_until(c, &r, deadline_usual());
    if (got != READ_OK)
        return 0;
    if (r.status != 200 || strcmp(r.body, "{\"status\":\"ok\"}\n") != 0)
        harness_fail("one more request got %d: %s", r.status, r.body);
    server_settle();
    assert_int_equal(c->start, c->end);
    assert_int_equal(conn_fill_now(c), READ_TIMEOUT);
    return 1;
}

/* After a 101: the session works and leaves, or is closed with a code. */
static void session_follows(struct conn *c, int code)
{
    struct peer p;
    memset(&p, 0, sizeof p);
    p.c = *c;
    if (code == 0) {
        peer_expect_alive(&p);
        peer_send_close(&p, 1000, "");
        code = 1000;
    }
    peer_expect_close(&p, code);
    peer_expect_eof(&p);
    *c = p.c;
    fx.opened++;
    fx.closed++;
}

/* Takes one word of a want off the connection; see struct row. */
static void want_word(struct conn *c, struct reply *r, const char *word)
{
    size_t digits = strspn(word, "0123456789");
    if (digits == 3)
        answer_read(c, r, atoi(word), word[3] == 'h');
    else if (strcmp(word, "ws") == 0 || word[0] == 'c')
        session_follows(c, word[0] == 'c' ? atoi(word + 1) : 0);
    else if (strcmp(word, "eof") == 0) {
        assert_true(reply_says_close(r));
        conn_expect_eof(c);
    } else if (strcmp(word, "open") == 0) {
        assert_false(reply_says_close(r));
        assert_true(connection_probe(c));
    } else if (strcmp(word, "any") == 0)
        assert_int_equal(connection_probe(c), !reply_says_close(r));
    else
        harness_fail("bad row: '%s'", word);
}

/* All that a row wants of a connection. */
static void want_check(struct conn *c, const char *want)
{
    static struct reply r;
    char word[64], name[64];
    size_t n;
    while (*want != '\0') {
        n = *want == '<' ? strcspn(want, ">") + 1 : strcspn(want, " ");
        snprintf(word, sizeof word, "%.*s", (int)n, want);
        want += n;
        want += strspn(want, " ");
        if (word[0] != '<') {
            want_word(c, &r, word);
            continue;
        }
        word[n - 1] = '\0';
        snprintf(name, sizeof name, "%.*s", (int)strcspn(word + 1, ":"), word + 1);
        assert_non_null(reply_header(&r, name));
        assert_string_equal(r.value, strstr(word, ": ") + 2);
    }
}

/* The control session gets exactly these texts, with | between. */
static void got_check(const char *got)
{
    size_t n;
    for (; got != NULL; got = got[n] == '|' ? got + n + 1 : NULL) {
        n = strcspn(got, "|");
        peer_expect_data(&fx.control, OP_TEXT, got, n);
        fx.pushed++;
    }
    peer_expect_alive(&fx.control);
}

static void row_run(const struct row *row, int door, size_t piece, int settled)
{
    struct conn c;
    size_t n;
    const char *request = request_expand(row->request, &n);
    conn_open(&c, door == 0 ? fx.server.clients : fx.server.push);
    pieces_send(&c, request, n, piece, settled);
    want_check(&c, door == 0 ? row->clients : row->push);
    got_check(row->got);
    conn_close(&c);
}

static void row_test(const struct row *row, int door)
{
    row_run(row, door, 16384, 0);
    row_run(row, door, 7, 0);
    row_run(row, door, 1, 1);
    row_done();
}

static void client_row_test(void **state)
{
    row_test(*(const struct row *const *)*state, 0);
}

static void push_row_test(void **state)
{
    row_test(*(const struct row *const *)*state, 1);
}

/* ===== The head's size (5.4: 431, at 8 KiB) ===== */

enum { HEAD_LIMIT = 8192 };

/* A request head of exactly `size` bytes, which one long field fills. */
static void head_build(char *to, size_t size)
{
    static const char before[] = G H "X: ", behind[] = "\r\n\r\n";
    memset(to, 'x', size);
    memcpy(to, before, sizeof before - 1);
    memcpy(to + size - (sizeof behind - 1), behind, sizeof behind - 1);
}

/* Heads of a size get a want, whole and dripped; what stands behind a head is not part of it. */
static void head_size_run(int door, size_t size, const char *want)
{
    static char head[2 * HEAD_LIMIT];
    static const size_t pieces[] = {2 * HEAD_LIMIT, HEAD_LIMIT, 4096, 97, 1};
    struct conn c;
    size_t i;
    head_build(head, size);
    for (i = 0; i < COUNT(pieces); i++) {
        conn_open(&c, door == 0 ? fx.server.clients : fx.server.push);
        pieces_send(&c, head, size, pieces[i], pieces[i] == 97 || pieces[i] == 4096);
        want_check(&c, want);
        conn_close(&c);
    }
}

static void head_of_8192_bytes(void **state)
{
    (void)state;
    head_size_run(0, HEAD_LIMIT - 1, "200 eof");
    head_size_run(1, HEAD_LIMIT - 1, "200 open");
    head_size_run(0, HEAD_LIMIT, "200 eof");
    head_size_run(1, HEAD_LIMIT, "200 open");
    row_done();
}

static void head_of_8193_bytes(void **state)
{
    (void)state;
    head_size_run(0, HEAD_LIMIT + 1, "431 eof");
    head_size_run(1, HEAD_LIMIT + 1, "431 eof");
    head_size_run(0, 2 * HEAD_LIMIT, "431 eof");
    head_size_run(1, 2 * HEAD_LIMIT, "431 eof");
    row_done();
}

/* 8,191 bytes without an end may become a head; the next one decides. */
static void head_without_end_is_refused_at_8192(void **state)
{
    static char head[2 * HEAD_LIMIT];
    const char *addresses[2];
    struct conn c;
    size_t i;
    (void)state;
    addresses[0] = fx.server.clients;
    addresses[1] = fx.server.push;
    head_build(head, sizeof head);
    for (i = 0; i < COUNT(addresses); i++) {
        conn_open(&c, addresses[i]);
        pieces_send(&c, head, HEAD_LIMIT - 1, 2048, 1);
        server_settle();
        assert_int_equal(conn_fill_now(&c), READ_TIMEOUT);
        conn_send(&c, "x", 1);
        want_check(&c, "431 eof");
        conn_close(&c);
    }
    row_done();
}

/* A head that is one line, or one of empty lines only, has the same limit. */
static void head_of_one_line_is_refused_at_8192(void **state)
{
    static char line[HEAD_LIMIT + 2], empty[HEAD_LIMIT + 2];
    const char *addresses[2];
    struct conn c;
    size_t i;
    (void)state;
    addresses[0] = fx.server.clients;
    addresses[1] = fx.server.push;
    memset(line, 'x', sizeof line);
    memcpy(line, "GET /", 5);
    for (i = 0; i < sizeof empty; i++)
        empty[i] = i % 2 ? '\n' : '\r';
    for (i = 0; i < 2 * COUNT(addresses); i++) {
        conn_open(&c, addresses[i % 2]);
        pieces_send(&c, i < 2 ? line : empty, HEAD_LIMIT, i < 2 ? HEAD_LIMIT : 1000, i >= 2);
        want_check(&c, "431 eof");
        conn_close(&c);
    }
    row_done();
}

/* A large head does not eat the body or the request that follow in the same segment. */
static void head_of_8192_bytes_and_what_follows(void **state)
{
    static char bytes[3 * HEAD_LIMIT];
    static const char post[] = LENGTH("5") "hello" G H END;
    struct conn c;
    size_t piece;
    (void)state;
    for (piece = 1; piece <= sizeof bytes; piece += piece < 2 ? 4095 : 20480) {
        head_build(bytes, HEAD_LIMIT);
        memcpy(bytes + HEAD_LIMIT, post, sizeof post - 1);
        conn_open(&c, fx.server.push);
        pieces_send(&c, bytes, HEAD_LIMIT + sizeof post - 1, piece, 0);
        want_check(&c, "200 200 200 open");
        got_check("hello");
        conn_close(&c);
    }
    row_done();
}

/* ===== Long bodies ===== */

/* Extensions and trailers are read past, but not without end. */
static void chunk_extras_are_bounded(void **state)
{
    static const char *const rows[][2] = {
        {CHUNKED "5;", "\r\nhello\r\n0\r\n\r\n"}, {CHUNKED "5\r\nhello\r\n0\r\nX: ", "\r\n\r\n"}};
    static char bytes[4 * HEAD_LIMIT];
    size_t i, n, most;
    struct conn c;
    (void)state;
    for (i = 0; i < 2 * COUNT(rows); i++) {
        n = strlen(rows[i % 2][0]);
        most = i < 2 ? HEAD_LIMIT / 2 : 2 * HEAD_LIMIT;
        memcpy(bytes, rows[i % 2][0], n);
        memset(bytes + n, 'x', most);
        strcpy(bytes + n + most, rows[i % 2][1]);
        conn_open(&c, fx.server.push);
        pieces_send(&c, bytes, strlen(bytes), 1000, 0);
        want_check(&c, i < 2 ? "200 open" : "400 eof");
        got_check(i < 2 ? "hello" : NULL);
        conn_close(&c);
    }
    row_done();
}

/* Sizes that only a wider integer can hold: what follows is never taken for a whole body. */
static void chunk_sizes_do_not_overflow(void **state)
{
    static const char *const sizes[] = {"10001", "fffff", "80000000", "ffffffff", "100000000",
                                        "100000005", "fffffffffffffff"};
    static char bytes[80000];
    struct conn c;
    size_t i, n;
    (void)state;
    for (i = 0; i < 2 * COUNT(sizes); i++) {
        n = (size_t)sprintf(bytes, "%s%s\r\nhello\r\n0\r\n\r\n", CHUNKED, sizes[i / 2]);
        memset(bytes + n, 'x', sizeof bytes - n);
        conn_open(&c, fx.server.push);
        pieces_send(&c, bytes, sizeof bytes, i % 2 ? sizeof bytes : 1000, 0);
        want_check(&c, "413 eof");
        conn_close(&c);
    }
    row_done();
}

/* 65,536 bytes fit --max-push in any coding, one more does not. */
static void body_of_max_push_fits(void **state)
{
    static char body[65537 + 1];
    static char bytes[8 * sizeof body];
    size_t k, n, at, size;
    struct conn c;
    (void)state;
    memset(body, 'b', sizeof body - 1);
    for (k = 0; k < 3; k++) {
        const size_t chunks[] = {65536, 4095, 1};
        n = (size_t)sprintf(bytes, "%s", CHUNKED);
        for (at = 0; at < 65536; at += size) {
            size = 65536 - at < chunks[k] ? 65536 - at : chunks[k];
            n += (size_t)sprintf(bytes + n, "%lx\r\n%.*s\r\n", (unsigned long)size, (int)size,
                                 body);
        }
        n += (size_t)sprintf(bytes + n, "0\r\n\r\n");
        conn_open(&c, fx.server.push);
        pieces_send(&c, bytes, n, n, 0);
        want_check(&c, "200 open");
        conn_close(&c);
        peer_expect_data(&fx.control, OP_TEXT, body, 65536);
        fx.pushed++;
        memcpy(strstr(bytes + n - 5, "0\r\n"), "1\r\nx\r\n0\r\n\r\n", 11);
        conn_open(&c, fx.server.push);
        pieces_send(&c, bytes, n + 6, n + 6, 0);
        want_check(&c, "413 eof");
        conn_close(&c);
    }
    row_done();
}

/* 9.6: a refusal reaches a client that is still sending, and is not eaten by a reset. */
static void refusals_outlive_what_is_still_sent(void **state)
{
    static const char *const heads[][3] = {
        {"c", "POST /x HTTP/1.1\r\n" H "Content-Length: 2000000\r\n\r\n", "405 eof"},
        {"c", "nonsense\r\n", "400 eof"},
        {"c", "GET /", "431 eof"},
        {"p", LENGTH("2000000"), "413 eof"},
        {"p", "GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n", "200 eof"},
        {"p", POST "Transfer-Encoding: gzip\r\n\r\n", "501 eof"},
        {"p", CHUNKED "zz\r\n", "400 eof"},
    };
    static char junk[2000000];
    struct conn c;
    size_t i;
    (void)state;
    memset(junk, 'j', sizeof junk);
    for (i = 0; i < COUNT(heads); i++) {
        conn_open(&c, heads[i][0][0] == 'c' ? fx.server.clients : fx.server.push);
        conn_send_text(&c, heads[i][1]);
        assert_int_equal(conn_send(&c, junk, sizeof junk), 0);
        want_check(&c, heads[i][2]);
        conn_close(&c);
    }
    row_done();
}

/* 9.3.2: many requests in one segment are all answered, in order. */
static void requests_pipelined_by_the_thousand(void **state)
{
    static char bytes[1000 * 256];
    static struct reply r;
    struct conn c;
    char text[32];
    size_t n = 0;
    int i;
    (void)state;
    for (i = 0; i < 1000; i++)
        n += (size_t)sprintf(bytes + n, "%sContent-Length: 4\r\n\r\n%04d%s", POST, i,
                             i % 3 == 0 ? "\r\n" : "");
    conn_open(&c, fx.server.push);
    pieces_send(&c, bytes, n, n, 0);
    for (i = 0; i < 1000; i++) {
        reply_read(&c, &r);
        assert_int_equal(r.status, 200);
        sprintf(text, "%04d", i);
        peer_expect_text(&fx.control, text);
        fx.pushed++;
    }
    conn_close(&c);
    row_done();
}

/* ===== All of it ===== */

static struct tests {
    struct CMUnitTest tests[512];
    const void *rows[512];          /* each test's initial state points to one */
    char names[512][112];
    size_t n;
} tests;

static void tests_add(const char *door, const char *name, CMUnitTestFunction run, const void *row)
{
    struct CMUnitTest *t = &tests.tests[tests.n];
    assert_true(tests.n < COUNT(tests.tests));
    snprintf(tests.names[tests.n], sizeof tests.names[0], "%s%s", door, name);
    tests.rows[tests.n] = row;
    t->name = tests.names[tests.n];
    t->test_func = run;
    t->setup_func = row_setup;
    t->teardown_func = NULL;
    t->initial_state = &tests.rows[tests.n];
    tests.n++;
}

static void tests_add_rows(const struct row *rows, size_t n)
{
    size_t i;
    for (i = 0; i < n; i++) {
        if (rows[i].clients != NULL)
            tests_add("client door ", rows[i].name, client_row_test, &rows[i]);
        if (rows[i].push != NULL)
            tests_add("push door ", rows[i].name, push_row_test, &rows[i]);
    }
}

static int tests_run(const char *name)
{
    size_t n = tests.n;
    tests.n = 0;
    return _cmocka_run_group_tests(name, tests.tests, n, NULL, table_teardown);
}

int main(void)
{
    int failed;
    tests_add_rows(head_rows, COUNT(head_rows));
    failed = tests_run("rfc9112 heads");
    tests_add_rows(client_rows, COUNT(client_rows));
    tests_add_rows(push_rows, COUNT(push_rows));
    failed += tests_run("rfc9112 doors");
    tests_add("", "5.4: a head of 8192 bytes", head_of_8192_bytes, NULL);
    tests_add("", "5.4: a head of 8193 bytes", head_of_8193_bytes, NULL);
    tests_add("", "5.4: a head without end", head_without_end_is_refused_at_8192, NULL);
    tests_add("", "5.4: a head of one line", head_of_one_line_is_refused_at_8192, NULL);
    tests_add("", "5.4: what follows a large head", head_of_8192_bytes_and_what_follows, NULL);
    tests_add("", "7.1.1: extensions and trailers have a bound", chunk_extras_are_bounded, NULL);
    tests_add("", "7.1: sizes do not overflow", chunk_sizes_do_not_overflow, NULL);
    tests_add("", "6: a body of --max-push", body_of_max_push_fits, NULL);
    tests_add("", "9.6: refusals are not reset", refusals_outlive_what_is_still_sent, NULL);
    tests_add("", "9.3.2: a thousand pipelined", requests_pipelined_by_the_thousand, NULL);
    failed += tests_run("rfc9112 sizes");
    return failed > 0;
}
