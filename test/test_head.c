/* HTTP head and Targets. */
#define EXPORTWS_NO_MAIN
#include "../exportws.c"
#include "test.h"

#include <ctype.h>

static int parse_head(void *state, const uint8_t *p, size_t n)
{
    return head_parse(state, p, n);
}

/* ===== Heads that are read ===== */

#define ALL(name, input) {name, input, sizeof(input) - 1, (int)sizeof(input) - 1}
#define SEEN(field) (1U << FIELD_##field)

/* What a head says; what is not named is not there. */
struct want {
    const char *method, *target, *host, *origin, *key, *authorization, *forwarded;
    unsigned minor, flags, seen;
    uint64_t length;
};

static const struct {
    struct row row;
    struct want want;
} heads[] = {
    {ALL("least of HTTP/1.1", "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
     {.method = "GET", .target = "/", .minor = 1, .seen = SEEN(HOST)}},
    {ALL("least of HTTP/1.0", "GET / HTTP/1.0\r\n\r\n"), {.method = "GET", .target = "/"}},
    {ALL("HTTP/1.7 is read as 1.1", "GET / HTTP/1.7\r\nHost: h\r\n\r\n"),
     {.method = "GET", .target = "/", .host = "h", .minor = 1, .seen = SEEN(HOST)}},
    {ALL("upgrade as a browser sends it",
         "GET /app/ws/export-task/ab12?last=7 HTTP/1.1\r\nHost: example.com:8080\r\nConnection: "
         "keep-alive, Upgrade\r\n"
         "Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; "
         "Linux)\r\nUpgrade: websocket\r\n"
         "Origin: https://example.com\r\nSec-WebSocket-Version: 13\r\nAccept-Language: "
         "de,en;q=0.5\r\n"
         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: "
         "permessage-deflate\r\n\r\n"),
     {.method = "GET",
      .target = "/app/ws/export-task/ab12?last=7",
      .host = "example.com:8080",
      .origin = "https://example.com",
      .key = "dGhlIHNhbXBsZSBub25jZQ==",
      .minor = 1,
      .flags = HEAD_UPGRADE | HEAD_WEBSOCKET | HEAD_VERSION_13,
      .seen = SEEN(HOST) | SEEN(CONNECTION) | SEEN(UPGRADE) | SEEN(ORIGIN) | SEEN(VERSION) |
              SEEN(KEY)}},
    {ALL("push as curl sends it", "POST /app/ws/export-task/ab12 HTTP/1.1\r\nHost: "
                                  "127.0.0.1:8081\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n"
                                  "Authorization: Bearer s3cret\r\nContent-Length: "
                                  "5\r\nContent-Type: application/octet-stream\r\n"
                                  "Expect: 100-continue\r\n\r\n"),
     {.method = "POST",
      .target = "/app/ws/export-task/ab12",
      .host = "127.0.0.1:8081",
      .authorization = "Bearer s3cret",
      .minor = 1,
      .length = 5,
      .flags = HEAD_BINARY | HEAD_CONTINUE,
      .seen = SEEN(HOST) | SEEN(AUTHORIZATION) | SEEN(LENGTH) | SEEN(TYPE) | SEEN(EXPECT)}},
    {ALL("chunked push", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n"),
     {.method = "POST",
      .target = "/",
      .host = "h",
      .minor = 1,
      .flags = HEAD_CHUNKED,
      .seen = SEEN(HOST) | SEEN(ENCODING)}},
    {ALL("names in any case, blanks of any number",
         "GET / HTTP/1.1\r\nhOST:\t h \t\r\nORIGIN:o\r\nsec-websocket-KEY:  k\r\ncontent-length:  "
         "0007  \r\n\r\n"),
     {.method = "GET",
      .target = "/",
      .host = "h",
      .origin = "o",
      .key = "k",
      .minor = 1,
      .length = 7,
      .seen = SEEN(HOST) | SEEN(ORIGIN) | SEEN(KEY) | SEEN(LENGTH)}},
    {ALL("empty lines before it", "\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n"),
     {.method = "GET", .target = "/x", .host = "h", .minor = 1, .seen = SEEN(HOST)}},
    {ALL("method of all characters", "!#$%&'*+-.^_`|~09azAZ /x HTTP/1.0\r\n\r\n"),
     {.method = "!#$%&'*+-.^_`|~09azAZ", .target = "/x"}},
    {ALL("target of all characters",
         "GET /!\"$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~ HTTP/1.0\r\n\r\n"),
     {.method = "GET", .target = "/!\"$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~"}},
    {ALL("bytes beyond ASCII in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: caf\xe9\xff\r\n\r\n"),
     {.method = "GET", .target = "/", .host = "h", .minor = 1, .seen = SEEN(HOST)}},
    {ALL("tab and colons in a value", "GET / HTTP/1.1\r\nHost: h\r\nOrigin: a:b\tc:d\r\n\r\n"),
     {.method = "GET",
      .target = "/",
      .host = "h",
      .origin = "a:b\tc:d",
      .minor = 1,
      .seen = SEEN(HOST) | SEEN(ORIGIN)}},
    {ALL("fields unknown twice",
         "GET / HTTP/1.1\r\nX: 1\r\nHost: h\r\nX: 2\r\nHosts: i\r\nHos: j\r\n\r\n"),
     {.method = "GET", .target = "/", .host = "h", .minor = 1, .seen = SEEN(HOST)}},
    {ALL("lists may come in several fields",
         "GET / HTTP/1.1\r\nConnection: close\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
         "Upgrade: WebSocket\r\nExpect: x\r\nExpect: 100-Continue\r\n\r\n"),
     {.method = "GET",
      .target = "/",
      .host = "h",
      .minor = 1,
      .flags = HEAD_CLOSE | HEAD_UPGRADE | HEAD_WEBSOCKET | HEAD_CONTINUE,
      .seen = SEEN(HOST) | SEEN(CONNECTION) | SEEN(UPGRADE) | SEEN(EXPECT)}},
    {ALL("of several X-Forwarded-For the last counts",
         "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 10.0.0.1\r\nx-forwarded-for: 10.0.0.2,\t"
         "[::1]:80 \r\nForwarded: for=10.0.0.3\r\n\r\n"),
     {.method = "GET",
      .target = "/",
      .host = "h",
      .forwarded = "10.0.0.2,\t[::1]:80",
      .minor = 1,
      .seen = SEEN(HOST) | SEEN(FORWARDED)}},
    {ALL("length beyond 64 bits is the largest there is",
         "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n"),
     {.method = "POST",
      .target = "/",
      .host = "h",
      .minor = 1,
      .length = UINT64_MAX,
      .seen = SEEN(HOST) | SEEN(LENGTH)}},
    {ALL("two requests: the first", "GET /1 HTTP/1.0\r\n\r\n"), {.method = "GET", .target = "/1"}},
};

static void span_expect(const char *name, const char *what, const uint8_t *p, struct span span,
                        const char *want)
{
    size_t n = want ? strlen(want) : 0;
    if (span.size != n || (n > 0 && memcmp(p + span.at, want, n) != 0))
        fail_msg("%s: %s is '%.*s', not '%s'", name, what, (int)span.size,
                 (const char *)p + span.at, want ? want : "");
}

static void head_reads_what_is_there(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(heads); i++) {
        const struct row *row = &heads[i].row;
        const struct want *want = &heads[i].want;
        const uint8_t *p = guard_copy(row->input, row->size);
        struct head h = {0};
        assert_int_equal(head_parse(&h, p, row->size), row->size);
        span_expect(row->name, "method", p, h.method, want->method);
        span_expect(row->name, "target", p, h.target, want->target);
        span_expect(row->name, "host", p, h.host, want->host);
        span_expect(row->name, "origin", p, h.origin, want->origin);
        span_expect(row->name, "key", p, h.key, want->key);
        span_expect(row->name, "authorization", p, h.authorization, want->authorization);
        span_expect(row->name, "forwarded", p, h.forwarded, want->forwarded);
        if (h.minor != want->minor || h.flags != want->flags || h.seen != want->seen ||
            h.length != want->length)
            fail_msg("%s: minor %u, flags %x, seen %x, length %llu", row->name, h.minor, h.flags,
                     h.seen, (unsigned long long)h.length);
        const char *fields = strstr(row->input, "HTTP/1.");
        assert_ptr_equal(p + h.fields.at, p + (fields - row->input) + 10);
    }
}

static void head_is_the_same_at_every_prefix_and_byte_by_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(heads); i++)
        row_run(&heads[i].row, parse_head, sizeof(struct head));
}

/* ===== Heads that are refused: by their last byte ===== */

#define LINE "GET / HTTP/1.1\r\n"
#define HOST LINE "Host: h\r\n"

static const struct row refused[] = {
    ROW("bare LF", "\n", -400),
    ROW("bare LF behind the request line", "GET / HTTP/1.1\n", -400),
    ROW("bare LF behind a field", LINE "Host: h\n", -400),
    ROW("bare LF for the empty line", HOST "\n", -400),
    ROW("CR and no LF", "GET / HTTP/1.1\rH", -400),
    ROW("two CR", "GET / HTTP/1.1\r\r", -400),
    ROW("CR within a value", LINE "Host: a\rb", -400),
    ROW("two CR before", "\r\r", -400),
    ROW("NUL in the method", "G\0", -400),
    ROW("NUL in a value", LINE "Host: a\0", -400),
    ROW("control in a value", LINE "Host: a\x1f", -400),
    ROW("control in a name", LINE "Ho\x01", -400),
    ROW("DEL in a value", LINE "Host: a\x7f", -400),
    ROW("vertical tab", LINE "Host:\v", -400),
    ROW("TLS", "\x16", -400),
    ROW("one word", "GET\r\n", -400),
    ROW("one word and a blank", "GET \r\n", -400),
    ROW("HTTP/0.9", "GET /\r\n", -400),
    ROW("blank first", " GET / HTTP/1.1\r\n", -400),
    ROW("no method", "/ HTTP/1.1\r\n", -400),
    ROW("no target", "GET HTTP/1.1\r\n", -400),
    ROW("no target, two blanks", "GET  HTTP/1.1\r\n", -400),
    ROW("two blanks before the target", "GET  / HTTP/1.1\r\n", -400),
    ROW("two blanks behind the target", "GET /  HTTP/1.1\r\n", -400),
    ROW("tab for blank", "GET\t/ HTTP/1.1\r\n", -400),
    ROW("tab behind the target", "GET /\tHTTP/1.1\r\n", -400),
    ROW("blank in the target", "GET /a b HTTP/1.1\r\n", -400),
    ROW("blank at the end", "GET / HTTP/1.1 \r\n", -400),
    ROW("byte beyond ASCII in the target", "GET /\xc3\xa4 HTTP/1.1\r\n", -400),
    ROW("byte beyond ASCII first in the target", "CONNECT \xc3-a HTTP/1.1\r\n", -400),
    ROW("no token for method", "G@T / HTTP/1.1\r\n", -400),
    ROW("colon in the method", "GET: / HTTP/1.1\r\n", -400),
    ROW("HTTP/2.0", "GET / HTTP/2.0\r\n", -400),
    ROW("HTTP/1.", "GET / HTTP/1.\r\n", -400),
    ROW("HTTP/1.x", "GET / HTTP/1.x\r\n", -400),
    ROW("HTTP/1.10", "GET / HTTP/1.10\r\n", -400),
    ROW("HTTP/01.1", "GET / HTTP/01.1\r\n", -400),
    ROW("http/1.1", "GET / http/1.1\r\n", -400),
    ROW("ICY/1.1", "GET / ICYY/1.1\r\n", -400),
    ROW("HTTP/2 preface", "PRI * HTTP/2.0\r\n", -400),
    ROW("a response", "HTTP/1.1 200 OK\r\n", -400),
    ROW("folded line", HOST " more\r\n", -400),
    ROW("folded line with tab", HOST "\tmore\r\n", -400),
    ROW("folded line that looks like a field", HOST " X: y\r\n", -400),
    ROW("name begins with a byte beyond ASCII", HOST "\xf6X: y\r\n", -400),
    ROW("name begins with a colon", HOST ":X: y\r\n", -400),
    ROW("field without colon", LINE "Host\r\n", -400),
    ROW("field without name", LINE ": h\r\n", -400),
    ROW("blank before the colon", LINE "Host : h\r\n", -400),
    ROW("blank in the name", LINE "Ho st: h\r\n", -400),
    ROW("byte beyond ASCII in the name", LINE "H\xf6st: h\r\n", -400),
    ROW("two Host", HOST "Host: h\r\n", -400),
    ROW("two Host, one empty", LINE "Host:\r\nHost: h\r\n", -400),
    ROW("two Origin", HOST "Origin: http://a\r\norigin: http://b\r\n", -400),
    ROW("two keys", HOST "Sec-WebSocket-Key: a\r\nSec-WebSocket-Key: a\r\n", -400),
    ROW("two versions", HOST "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n", -400),
    ROW("two lengths", HOST "Content-Length: 5\r\nContent-Length: 5\r\n", -400),
    ROW("two authorizations", HOST "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", -400),
    ROW("two types", HOST "Content-Type: a/b\r\nContent-Type: a/b\r\n", -400),
    ROW("two encodings", HOST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", -400),
    ROW("empty length", HOST "Content-Length:\r\n", -400),
    ROW("blank length", HOST "Content-Length:  \t\r\n", -400),
    ROW("length with sign", HOST "Content-Length: +5\r\n", -400),
    ROW("negative length", HOST "Content-Length: -5\r\n", -400),
    ROW("length list", HOST "Content-Length: 5, 5\r\n", -400),
    ROW("length in hex", HOST "Content-Length: 0x5\r\n", -400),
    ROW("length and words", HOST "Content-Length: 5 bytes\r\n", -400),
    ROW("encoding gzip", HOST "Transfer-Encoding: gzip\r\n", -501),
    ROW("encoding identity", HOST "Transfer-Encoding: identity\r\n", -501),
    ROW("empty encoding", HOST "Transfer-Encoding:\r\n", -501),
    ROW("encoding gzip, chunked", HOST "Transfer-Encoding: gzip, chunked\r\n", -501),
    ROW("chunked twice", HOST "Transfer-Encoding: chunked, chunked\r\n", -501),
    ROW("chunked and more", HOST "Transfer-Encoding: chunked;q=1\r\n", -501),
    ROW("chunke", HOST "Transfer-Encoding: chunke\r\n", -501),
    ROW("HTTP/1.1 without Host", "GET / HTTP/1.1\r\n\r\n", -400),
    ROW("HTTP/1.1 with other fields but Host", "GET / HTTP/1.1\r\nHosts: h\r\nX-Host: h\r\n\r\n",
        -400),
    ROW("length and chunked", HOST "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", -400),
    ROW("chunked and length", HOST "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", -400),
    ROW("length and chunked in HTTP/1.0",
        "POST / HTTP/1.0\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", -400),
};

static void head_refuses_at_the_byte_that_is_wrong(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(refused); i++)
        row_run(&refused[i], parse_head, sizeof(struct head));
}

static void head_that_is_incomplete_waits_for_more(void **state)
{
    static const struct row rows[] = {
        ROW("nothing", "", 0),           ROW("CR", "\r", 0),
        ROW("empty line", "\r\n", 0),    ROW("method", "GET", 0),
        ROW("request line", LINE, 0),    ROW("request line's CR", "GET / HTTP/1.1\r", 0),
        ROW("field", HOST, 0),           ROW("half a field", LINE "Host: h", 0),
        ROW("last CR", HOST "\r", 0),    ROW("wrong line without its end", LINE "no field", 0),
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) row_run(&rows[i], parse_head, sizeof(struct head));
}

/* ===== Size ===== */

/* A head of exactly n bytes. */
static const uint8_t *head_of(size_t n)
{
    static uint8_t bytes[HEAD_MAX + 64];
    static const char start[] = HOST "X: ";
    memset(bytes, 'x', n);
    memcpy(bytes, start, sizeof start - 1);
    memcpy(bytes + n - 4, "\r\n\r\n", 4);
    return bytes;
}

static void head_may_be_8_kib_and_no_more(void **state)
{
    (void)state;
    for (size_t n = HEAD_MAX - 2; n <= HEAD_MAX + 2; n++) {
        const uint8_t *p = guard_copy(head_of(n), n);
        struct head h = {0}, before = {0};
        assert_int_equal(head_parse(&h, p, n), n <= HEAD_MAX ? (int)n : -431);
        size_t most = n <= HEAD_MAX ? n - 1 : HEAD_MAX - 1;
        assert_int_equal(head_parse(&before, p, most), 0);
        assert_int_equal(head_parse(&before, p, most + 1), n <= HEAD_MAX ? (int)n : -431);
    }
}

static void head_of_8_kib_is_found_before_more(void **state)
{
    static uint8_t bytes[20000];
    struct head h = {0};
    (void)state;
    memset(bytes, '\n', sizeof bytes);
    memcpy(bytes, head_of(HEAD_MAX), HEAD_MAX);
    assert_int_equal(head_parse(&h, guard_copy(bytes, sizeof bytes), sizeof bytes), HEAD_MAX);
}

static void head_without_end_is_431_at_8_kib(void **state)
{
    static const struct {
        const char *name, *first, *again;
    } rows[] = {{"a line without end", "GET /", "x"},
                {"empty lines without end", "", "\r\n"},
                {"fields without end", HOST, "X: y\r\n"}};
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        static uint8_t bytes[HEAD_MAX];
        size_t at = strlen(rows[i].first), piece = strlen(rows[i].again);
        struct head h = {0};
        memcpy(bytes, rows[i].first, at);
        for (; at < sizeof bytes; at++)
            bytes[at] = (uint8_t)rows[i].again[(at - strlen(rows[i].first)) % piece];
        assert_int_equal(head_parse(&h, guard_copy(bytes, HEAD_MAX - 1), HEAD_MAX - 1), 0);
        assert_int_equal(head_parse(&h, guard_copy(bytes, HEAD_MAX), HEAD_MAX), -431);
    }
}

/* A head that comes byte by byte costs no more than one that comes at once. */
static void head_is_not_looked_at_twice(void **state)
{
    const uint8_t *p = guard_copy(head_of(HEAD_MAX), HEAD_MAX);
    struct head h = {0};
    (void)state;
    for (size_t n = 0; n < HEAD_MAX; n++) {
        assert_int_equal(head_parse(&h, p, n), 0);
        assert_in_range(n - h.scan, 0, n > 0 && p[n - 1] == '\r');
    }
}

/* ===== Values ===== */

static void head_flags_follow_the_values(void **state)
{
    static const struct {
        const char *field;
        unsigned flags;
    } rows[] = {
        {"Connection: close", HEAD_CLOSE},
        {"Connection: CLOSE", HEAD_CLOSE},
        {"Connection: Keep-Alive", 0},
        {"Connection: upgrade", HEAD_UPGRADE},
        {"Connection: ,, close ,\tUpgrade,", HEAD_CLOSE | HEAD_UPGRADE},
        {"Connection:close,upgrade,keep-alive", HEAD_CLOSE | HEAD_UPGRADE},
        {"Connection: closed", 0},
        {"Connection: not close", 0},
        {"Connection: websocket, 100-continue", 0},
        {"Connection:", 0},
        {"Upgrade: websocket", HEAD_WEBSOCKET},
        {"Upgrade: h2c, WebSocket", HEAD_WEBSOCKET},
        {"Upgrade: websockets", 0},
        {"Upgrade: upgrade, close", 0},
        {"Upgrade: ", 0},
        {"Expect: 100-continue", HEAD_CONTINUE},
        {"Expect: 100-Continue", HEAD_CONTINUE},
        {"Expect: 200-ok", 0},
        {"Expect: upgrade", 0},
        {"Sec-WebSocket-Version: 13", HEAD_VERSION_13},
        {"Sec-WebSocket-Version: 8", 0},
        {"Sec-WebSocket-Version: 13, 8", 0},
        {"Sec-WebSocket-Version: 130", 0},
        {"Sec-WebSocket-Version: 1", 0},
        {"Sec-WebSocket-Version:", 0},
        {"Content-Type: application/octet-stream", HEAD_BINARY},
        {"Content-Type: Application/Octet-Stream ; charset=x", HEAD_BINARY},
        {"Content-Type: application/octet-stream;", HEAD_BINARY},
        {"Content-Type: application/octet-streams", 0},
        {"Content-Type: text/plain; x=application/octet-stream", 0},
        {"Content-Type: text/plain, application/octet-stream", 0},
        {"Content-Type: close", 0},
        {"Content-Type: ;", 0},
        {"Content-Type:", 0},
        {"Transfer-Encoding: chunked", HEAD_CHUNKED},
        {"Transfer-Encoding: \tCHUNKED ", HEAD_CHUNKED},
        {"Origin: close", 0},
        {"X-Connection: close", 0},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        char text[256];
        struct head h = {0};
        size_t n = (size_t)snprintf(text, sizeof text, HOST "%s\r\n\r\n", rows[i].field);
        assert_int_equal(head_parse(&h, guard_copy(text, n), n), n);
        if (h.flags != rows[i].flags)
            fail_msg("%s: flags %x, not %x", rows[i].field, h.flags, rows[i].flags);
    }
}

static void token_characters_are_those_of_rfc_9110(void **state)
{
    static const char all[] =
        "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    (void)state;
    for (int c = 0; c < 256; c++)
        assert_int_equal(http_tchar((uint8_t)c), c && strchr(all, c) != NULL);
    for (int c = 0; c < 256; c++) assert_int_equal(http_blank((uint8_t)c), c == 32 || c == 9);
}

static void lists_are_taken_apart_at_commas(void **state)
{
    static const struct {
        const char *input, *want; /* each member in brackets */
    } rows[] = {
        {"", ""},          {"a", "[a]"},           {"a,b", "[a][b]"},       {" a , b ", "[a][b]"},
        {",", "[]"},       {",a", "[][a]"},        {"a,", "[a]"},           {"a,,b", "[a][][b]"},
        {" ", "[]"},       {"\t,\t", "[][]"},      {"a b, c", "[a b][c]"},  {"\ta\tb\t", "[a\tb]"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        char got[64] = "";
        struct text t = {got, 0, sizeof got};
        size_t n = strlen(rows[i].input), size;
        const uint8_t *p = guard_copy(rows[i].input, n), *member;
        while (http_list_next(&p, &n, &member, &size))
            text_add(&t, "["), text_bytes(&t, member, size), text_add(&t, "]");
        assert_string_equal(got, rows[i].want);
    }
}

static void blanks_are_taken_off_both_ends(void **state)
{
    static const struct {
        const char *input, *want;
    } rows[] = {{"", ""},    {" ", ""},    {" \t \t", ""},       {"a", "a"},
                {" a", "a"}, {"a\t", "a"}, {"\t a b \t", "a b"}, {"\ra\n", "\ra\n"}};
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t n = strlen(rows[i].input), low_n = n;
        const uint8_t *p = guard_copy(rows[i].input, n), *low = guard_copy_low(rows[i].input, n);
        http_trim(&p, &n), http_trim(&low, &low_n);
        assert_int_equal(n, strlen(rows[i].want));
        assert_int_equal(low_n, n);
        assert_memory_equal(p, rows[i].want, n);
        assert_memory_equal(low, rows[i].want, n);
    }
}

/* The header function that embedders have. */
static void request_header_finds_the_first_of_a_name(void **state)
{
    static const char text[] = "GET / HTTP/1.1\r\nHost: h\r\nCookie:\t a=1; b=2 \r\ncookie: "
                               "c=3\r\nEmpty:\r\nX: y:z\r\n\r\n";
    static const struct {
        const char *name, *want;
    } rows[] = {{"Host", "h"}, {"HOST", "h"}, {"cookie", "a=1; b=2"}, {"empty", ""}, {"x", "y:z"},
                {"absent", ""}, {"Hos", ""}, {"Hosts", ""}, {"", ""}, {"GET / HTTP/1.1", ""}};
    const size_t n = sizeof text - 1;
    const uint8_t *p = guard_copy(text, n);
    struct head h = {0};
    (void)state;
    assert_int_equal(head_parse(&h, p, n), n);
    const struct exportws_request r = {p, p + n, &h, "token", "query", {0, 0}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        const size_t size = strlen(rows[i].want);
        for (size_t room = 0; room <= size + 2; room++) {
            char *value = (char *)guard_room(room);
            assert_int_equal(exportws_request_header(&r, rows[i].name, value, room), size);
            assert_true(guard_room_kept((uint8_t *)value));
            if (room == 0) continue;
            assert_int_equal(strlen(value), room - 1 < size ? room - 1 : size);
            assert_memory_equal(value, rows[i].want, strlen(value));
        }
        assert_int_equal(exportws_request_header(&r, rows[i].name, NULL, 9), size);
    }
    assert_int_equal(exportws_request_header(NULL, "host", NULL, 0), 0);
    assert_int_equal(exportws_request_header(&r, NULL, NULL, 0), 0);
    assert_string_equal(exportws_request_token(&r), "token");
    assert_string_equal(exportws_request_query(&r), "query");
}

/* ===== Targets ===== */

/* Percent-decoding another way: the text is copied and read by strtoul. Returns as token_decode. */
static int reference_decode(const char *p, size_t n, uint8_t *out, size_t size)
{
    static const char hex[] = "0123456789abcdefABCDEF";
    size_t used = 0;
    for (size_t i = 0; i < n; i += p[i] == '%' ? 3 : 1) {
        char two[3] = {0, 0, 0};
        unsigned long c = (uint8_t)p[i];
        if (p[i] == '%') {
            if (i + 3 > n) return -400;
            memcpy(two, p + i + 1, 2);
            if (strspn(two, hex) != 2) return -400;
            c = strtoul(two, NULL, 16);
        }
        if (c == 0 || c == '/') return -400;
        if (used < size) out[used] = (uint8_t)c;
        used++;
    }
    return used <= size ? (int)used : -414;
}

static void token_is_percent_decoded(void **state)
{
    static const struct {
        const char *name, *input;
        size_t size;
        const char *want; /* NULL: refused */
        int status;
    } rows[] = {
        {"plain", "ab12", 64, "ab12", 4},
        {"nothing", "", 64, "", 0},
        {"all that is unreserved", "AZaz09-._~", 64, "AZaz09-._~", 10},
        {"escape", "a%20b", 64, "a b", 3},
        {"escapes of both cases", "%aB%Ba%fF", 64, "\xab\xba\xff", 3},
        {"escapes of the lowest and the highest byte", "%01%fe%ff", 64, "\x01\xfe\xff", 3},
        {"newline", "a%0Ab", 64, "a\nb", 3},
        {"escaped percent is not decoded twice", "%2541", 64, "%41", 3},
        {"plus stays plus", "a+b", 64, "a+b", 3},
        {"bytes beyond ASCII", "\xc3\xa4", 64, "\xc3\xa4", 2},
        {"escape last", "ab%63", 64, "abc", 3},
        {"fits exactly", "abcd", 4, "abcd", 4},
        {"fits exactly when decoded", "%61%62%63%64", 4, "abcd", 4},
        {"one too long", "abcde", 4, NULL, -414},
        {"one too long when decoded", "%61bcd%65", 4, NULL, -414},
        {"far too long", "abcdefghijklmnopqrstuvwxyz", 4, NULL, -414},
        {"percent alone", "%", 64, NULL, -400},
        {"percent and one digit", "a%4", 64, NULL, -400},
        {"percent and a letter too far", "a%4g", 64, NULL, -400},
        {"percent and first no digit", "a%g4", 64, NULL, -400},
        {"percent twice", "a%%41", 64, NULL, -400},
        {"percent and blank", "% 41", 64, NULL, -400},
        {"percent and sign", "%+4", 64, NULL, -400},
        {"NUL", "a%00", 64, NULL, -400},
        {"slash", "a/b", 64, NULL, -400},
        {"escaped slash", "a%2fb", 64, NULL, -400},
        {"escaped slash, upper case", "a%2Fb", 64, NULL, -400},
        {"too long and then wrong", "abcdef%", 4, NULL, -400},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t n = strlen(rows[i].input);
        uint8_t want[64], *out = guard_room(rows[i].size), *in_place;
        int got = token_decode(guard_copy(rows[i].input, n), n, out, rows[i].size);
        if (got != rows[i].status) fail_msg("%s: %d", rows[i].name, got);
        assert_true(guard_room_kept(out));
        if (rows[i].want) assert_memory_equal(out, rows[i].want, strlen(rows[i].want));
        in_place = guard_copy(rows[i].input, n);
        assert_int_equal(token_decode(in_place, n, in_place, rows[i].size < n ? rows[i].size : n),
                         got);
        for (size_t k = 0; k <= n; k++) {
            int expected = reference_decode(rows[i].input, k, want, rows[i].size);
            got = token_decode(guard_copy(rows[i].input, k), k, out, rows[i].size);
            if (got != expected)
                fail_msg("%s: first %zu: %d, not %d", rows[i].name, k, got, expected);
            if (got > 0) assert_memory_equal(out, want, (size_t)got);
        }
    }
}

static void token_with_a_nul_byte_is_refused(void **state)
{
    uint8_t out[8];
    (void)state;
    assert_int_equal(token_decode(guard_copy("a\0b", 3), 3, out, sizeof out), -400);
}

static void target_is_split_into_path_and_query(void **state)
{
    static const struct {
        const char *target, *path, *query;
    } rows[] = {
        {"/", "/", ""},
        {"/a/b", "/a/b", ""},
        {"/a?b=c", "/a", "b=c"},
        {"/a?", "/a", ""},
        {"/a?b?c", "/a", "b?c"},
        {"/?", "/", ""},
        {"//a", "//a", ""},
        {"/http://h/a", "/http://h/a", ""},
        {"http://h/a?b", "/a", "b"},
        {"HTTP://H:80/a", "/a", ""},
        {"https://h/a/b", "/a/b", ""},
        {"http://h/", "/", ""},
        {"http://h", "", ""},
        {"https://h", "", ""},
        {"http://h?x=/app/ws/", "", "x=/app/ws/"},
        {"http://[::1]:80/a?b", "/a", "b"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        char text[128], *path, *query;
        struct head h = {0};
        size_t n = (size_t)snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n",
                                    rows[i].target);
        uint8_t *p = guard_copy(text, n);
        assert_int_equal(head_parse(&h, p, n), n);
        target_split(p, &h, &path, &query);
        if (strcmp(path, rows[i].path) != 0 || strcmp(query, rows[i].query) != 0)
            fail_msg("%s: path '%s', query '%s'", rows[i].target, path, query);
    }
}

static void authority_never_reads_past_the_target(void **state)
{
    static const char target[] = "https://example.com:8080/a/b";
    (void)state;
    for (size_t n = 1; n < sizeof target; n++) {
        const uint8_t *start = guard_copy(target, n);
        size_t at = 0, size = 0;
        int absolute = target_authority(start, n, &at, &size);
        assert_int_equal(absolute, n > 8);
        if (!absolute) continue;
        assert_int_equal(at, 8);
        assert_int_equal(size, n <= 24 ? n - 8 : 16);
    }
}

static void path_gives_its_token_or_the_status(void **state)
{
    static struct exportws w;
    static const struct {
        const char *path;
        int status;
        const char *token;
    } rows[] = {
        {"/p/abc", 3, "abc"},     {"/p/%61b", 2, "ab"},     {"/p/12345678", 8, "12345678"},
        {"/p/123456789", -414, 0}, {"/p/1234567%38", 8, "12345678"}, {"/p/", -404, 0},
        {"/p", -404, 0},          {"/", -404, 0},            {"", -404, 0},
        {"/P/abc", -404, 0},      {"/q/abc", -404, 0},       {"/p/a/b", -404, 0},
        {"/p/abc/", -404, 0},     {"/p//", -404, 0},         {"/p/a%2fb", -400, 0},
        {"/p/%", -400, 0},        {"/p/%zz", -400, 0},       {"/p/%00", -400, 0},
        {"x/p/abc", -404, 0},     {"/p/.", 1, "."},          {"/p/..", 2, ".."},
    };
    (void)state;
    w.o.path = "/p/";
    for (size_t i = 0; i < COUNT(rows); i++) {
        char *path = (char *)guard_copy(rows[i].path, strlen(rows[i].path) + 1), *token = NULL;
        int got = path_token(&w, path, &token, 8);
        if (got != rows[i].status) fail_msg("%s: %d", rows[i].path, got);
        if (got > 0) assert_string_equal(token, rows[i].token);
    }
}

/* The status that a line gets, in a head that is well otherwise. */
static int line_status(const char *request_line, const char *field)
{
    char text[256];
    struct head h = {0};
    size_t n = (size_t)snprintf(text, sizeof text, "%s\r\n%s\r\n\r\n", request_line, field);
    int got = head_parse(&h, guard_copy(text, n), n);
    return got == (int)n ? 0 : got;
}

static void host_is_a_name_or_an_address_with_its_port(void **state)
{
    static const char *const good[] = {"",      "h",        "h:80",   "h:",        ":80",
                                       "[::1]", "[::1]:80", "[::1]:", "1.2.3.4:5", "a-b_c.d~e",
                                       "a%20b", "a!$&'*+b", "(a),;=", "[fe80::1]", "h:0123456789",
                                       "%2F",   "a%fa%AF0", "%41:80", "[v7.a:b]",
                                       "[::ffff:1.2.3.4]",  "[fe80::1%25en0]:80"};
    static const char *const bad[] = {"h:x",  "h:8x", "h:80:80", "h h",     "h\th",   "[::1",
                                      "[",    "[]x",  "[::1]x",  "[::1]80", "[::1]:x", "[::1]]",
                                      "h/",   "h?",   "h<",      "u@h",     "h\"",    "h\\",
                                      "a]",   "a[b",  "h:-1",    "h: 80",   "\xc3\xa4", "<h>",
                                      "%",    "a%",   "a%2",     "a%2:80",  "a%2g",   "a%g2",
                                      "%%20", "a%2%", "[]",      "[]:80",   "[a[b]",  "[::1%en0]",
                                      "[%]",  "[a%2]"};
    (void)state;
    for (size_t i = 0; i < COUNT(good) + COUNT(bad); i++) {
        const char *host = i < COUNT(good) ? good[i] : bad[i - COUNT(good)];
        char field[64], line[64];
        int want = i < COUNT(good) ? 0 : -400;
        snprintf(field, sizeof field, "Host: %s", host);
        int got = line_status("GET / HTTP/1.1", field);
        if (got != want) fail_msg("Host '%s': %d", host, got);
        if (strpbrk(host, " \t/?\xc3")) continue; /* another target, or none */
        snprintf(line, sizeof line, "GET http://%s/ HTTP/1.1", host);
        if (*host == '\0' || *host == ':') want = -400;
        got = line_status(line, "Host: h");
        if (got != want) fail_msg("%s: %d", line, got);
    }
}

/* RFC 3986, 3.2.2: a reg-name has these and escapes, an IP literal in brackets a colon beside. */
static void host_has_letters_digits_and_these_marks(void **state)
{
    static const char marks[] = ":-._~!$&'()*+,;=";
    (void)state;
    for (int c = 0; c < 256; c++) {
        const char name[3] = {'a', (char)c, 'b'}, literal[5] = {'[', 'a', (char)c, 'b', ']'};
        int letter = c < 128 && (isalnum(c) || (c != 0 && strchr(marks, c)));
        if (host_valid(guard_copy(name, 3), 3) != (letter && c != ':')) fail_msg("a %d b", c);
        if (host_valid(guard_copy(literal, 5), 5) != letter) fail_msg("[a %d b]", c);
    }
}

static void host_with_a_nul_byte_is_refused(void **state)
{
    (void)state;
    assert_int_equal(host_valid(guard_copy("a\0b", 3), 3), 0);
    assert_int_equal(host_valid(guard_copy("[\0]", 3), 3), 0);
    assert_int_equal(host_valid(guard_copy("ab", 2), 2), 1);
}

static void target_has_a_form_that_its_method_may_have(void **state)
{
    static const struct {
        const char *method, *target;
        int status;
    } rows[] = {
        {"GET", "/", 0},          {"GET", "//", 0},           {"GET", "/a?b", 0},
        {"GET", "http://h", 0},   {"GET", "https://h/", 0},   {"GET", "HTTP://h/", 0},
        {"OPTIONS", "*", 0},      {"CONNECT", "h:80", 0},     {"GET", "*", -400},
        {"POST", "*", -400},      {"OPTIONS", "**", -400},    {"OPTIONS", "h", -400},
        {"GET", "a", -400},       {"GET", "h:80", -400},      {"GET", "?x", -400},
        {"GET", "/a#b", -400},    {"GET", "#", -400},         {"GET", "http://h/#", -400},
        {"GET", "http://", -400}, {"GET", "https://", -400},  {"GET", "http:///a", -400},
        {"GET", "http:/a", -400}, {"GET", "http://?x", -400}, {"GET", "ftp://h/a", -400},
        {"GET", "http://:80/", -400},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        char line[64];
        snprintf(line, sizeof line, "%s %s HTTP/1.1", rows[i].method, rows[i].target);
        int got = line_status(line, "Host: h");
        if (got != rows[i].status) fail_msg("%s: %d", line, got);
    }
}

static void host_ends_before_its_port(void **state)
{
    static const struct {
        const char *input;
        size_t want;
    } rows[] = {
        {"", 0},          {"h", 1},        {"example.com", 11}, {"example.com:80", 11}, {"h:", 1},
        {":80", 0},       {"[::1]", 5},    {"[::1]:80", 5},     {"[::1", 4},            {"[", 1},
        {"[]", 2},        {"1.2.3.4:5", 7}, {"a]:1", 2},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t n = strlen(rows[i].input), got = host_size(guard_copy(rows[i].input, n), n);
        if (got != rows[i].want) fail_msg("%s: %zu", rows[i].input, got);
    }
}

static void origin_is_allowed_when_its_host_is_the_host(void **state)
{
    static const struct {
        const char *origin, *host;
        int want;
    } rows[] = {
        {"http://example.com", "example.com", 1},
        {"https://example.com", "example.com", 1},
        {"https://example.com:8443", "example.com:8080", 1},
        {"https://example.com", "example.com:8080", 1},
        {"https://EXAMPLE.com", "example.COM", 1},
        {"http://127.0.0.1:3000", "127.0.0.1:8080", 1},
        {"http://[::1]:3000", "[::1]:8080", 1},
        {"http://[::1]", "[::2]", 0},
        {"http://localhost", "127.0.0.1", 0},
        {"http://evil.com", "example.com", 0},
        {"http://example.com.evil.com", "example.com", 0},
        {"http://evilexample.com", "example.com", 0},
        {"http://example.co", "example.com", 0},
        {"http://app.example.com", "example.com", 0},
        {"http://example.com", "app.example.com", 0},
        {"http://evil.com://example.com", "example.com", 0},
        {"http://example.com/", "example.com", 0},
        {"null", "null", 0},
        {"null", "", 0},
        {"", "", 0},
        {"http://", "", 0},
        {"http://:80", ":80", 0},
        {"http://example.com", "", 0},
        {"example.com", "example.com", 0},
        {"//example.com", "example.com", 0},
        {"http:/example.com", "example.com", 0},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t n = strlen(rows[i].origin), host_n = strlen(rows[i].host);
        uint8_t *host = guard_room(host_n);
        memcpy(host, rows[i].host, host_n);
        for (size_t k = 0; k < n; k++)
            origin_is_host(guard_copy(rows[i].origin, k), k, host, host_n);
        int got = origin_is_host(guard_copy(rows[i].origin, n), n, host, host_n);
        if (got != rows[i].want) fail_msg("%s at %s: %d", rows[i].origin, rows[i].host, got);
    }
}

static void secret_is_equal_in_every_byte_or_not(void **state)
{
    static const char horse[] = "correct horse";
    const size_t n = sizeof horse - 1;
    const char *secret = memcpy(guard_room(sizeof horse), horse, sizeof horse);
    uint8_t longer[32] = {0};
    (void)state;
    memcpy(longer, secret, n);
    for (size_t k = 0; k <= sizeof longer; k++)
        assert_int_equal(secret_equal(guard_copy(longer, k), k, secret), k == n);
    for (size_t at = 0; at < n; at++) {
        for (int bit = 0; bit < 8; bit++) {
            uint8_t *given = guard_copy(secret, n);
            given[at] ^= (uint8_t)(1 << bit);
            assert_int_equal(secret_equal(given, n, secret), 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(head_reads_what_is_there),
        cmocka_unit_test(head_is_the_same_at_every_prefix_and_byte_by_byte),
        cmocka_unit_test(head_refuses_at_the_byte_that_is_wrong),
        cmocka_unit_test(head_that_is_incomplete_waits_for_more),
        cmocka_unit_test(head_may_be_8_kib_and_no_more),
        cmocka_unit_test(head_of_8_kib_is_found_before_more),
        cmocka_unit_test(head_without_end_is_431_at_8_kib),
        cmocka_unit_test(head_is_not_looked_at_twice),
        cmocka_unit_test(head_flags_follow_the_values),
        cmocka_unit_test(token_characters_are_those_of_rfc_9110),
        cmocka_unit_test(lists_are_taken_apart_at_commas),
        cmocka_unit_test(blanks_are_taken_off_both_ends),
        cmocka_unit_test(request_header_finds_the_first_of_a_name),
        cmocka_unit_test(token_is_percent_decoded),
        cmocka_unit_test(token_with_a_nul_byte_is_refused),
        cmocka_unit_test(target_is_split_into_path_and_query),
        cmocka_unit_test(authority_never_reads_past_the_target),
        cmocka_unit_test(path_gives_its_token_or_the_status),
        cmocka_unit_test(host_is_a_name_or_an_address_with_its_port),
        cmocka_unit_test(host_has_letters_digits_and_these_marks),
        cmocka_unit_test(host_with_a_nul_byte_is_refused),
        cmocka_unit_test(target_has_a_form_that_its_method_may_have),
        cmocka_unit_test(host_ends_before_its_port),
        cmocka_unit_test(origin_is_allowed_when_its_host_is_the_host),
        cmocka_unit_test(secret_is_equal_in_every_byte_or_not),
    };
    return cmocka_run_group_tests_name("head", tests, NULL, NULL);
}
