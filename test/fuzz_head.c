/* fuzz_head.c - the parts that read HTTP: request heads, chunked bodies, tokens, signed ones,
 * targets, origins, lists, keys, X-Forwarded-For
 *
 * The first byte of an input says which part reads it, the second one seeds the splits. What each
 * part says is compared with what a second reader, written here from the RFCs, says of the same
 * bytes; and with what it says itself when it gets them in pieces. */
#define FUZZ_NAME "head"
#include "fuzz.h"

#include <ctype.h>
#include <strings.h>

#include "../exportws.c"

/* ===== A second reader of request heads ===== */

enum { LINES_MOST = 2048 }; /* more than 8 KiB can hold */

struct field_line {
    struct bytes name, value;
};

struct reading {
    int result; /* as head_parse */
    unsigned minor, lines;
    struct bytes method, target;
    struct field_line line[LINES_MOST];
};

static int same_word(struct bytes a, const char *word)
{
    return a.n == strlen(word) && (a.n == 0 || strncasecmp((const char *)a.p, word, a.n) == 0);
}

static struct bytes trimmed(struct bytes b)
{
    while (b.n > 0 && (b.p[0] == ' ' || b.p[0] == '\t')) b.p++, b.n--;
    while (b.n > 0 && (b.p[b.n - 1] == ' ' || b.p[b.n - 1] == '\t')) b.n--;
    return b;
}

static int token_byte(unsigned c)
{
    return c > 0x20 && c < 0x7f && !strchr("\"(),/:;<=>?@[\\]{}", (int)c);
}

static int field_byte(unsigned c)
{
    return c == '\t' || (c >= 0x20 && c != 0x7f);
}

/* HOST[:PORT] or [V6][:PORT], of what RFC 3986 has in a host; what stands between brackets is not
 * read as an address. */
static int authority_right(struct bytes b)
{
    const int v6 = b.n > 0 && b.p[0] == '[';
    size_t at = (size_t)v6;
    while (at < b.n && b.p[at] != (v6 ? ']' : ':')) {
        unsigned c = b.p[at];
        if (c == '%') {
            if (at + 2 >= b.n || !isxdigit(b.p[at + 1]) || !isxdigit(b.p[at + 2])) return 0;
            at += 3;
        } else {
            if (!isalnum((int)c) && (c == 0 || !strchr(":-._~!$&'()*+,;=", (int)c))) return 0;
            at++;
        }
    }
    if (v6 && (at == b.n || at++ == 1)) return 0;
    if (at == b.n) return 1;
    if (b.p[at++] != ':') return 0;
    while (at < b.n && b.p[at] >= '0' && b.p[at] <= '9') at++;
    return at == b.n;
}

/* The authority of "http://AUTHORITY/...", or p is NULL. */
static struct bytes authority_of(struct bytes target)
{
    size_t scheme = 0, end;
    if (target.n > 7 && strncasecmp((const char *)target.p, "http://", 7) == 0) scheme = 7;
    if (target.n > 8 && strncasecmp((const char *)target.p, "https://", 8) == 0) scheme = 8;
    if (scheme == 0) return (struct bytes){NULL, 0};
    for (end = scheme; end < target.n && target.p[end] != '/' && target.p[end] != '?'; end++) {}
    return (struct bytes){target.p + scheme, end - scheme};
}

static int target_right(const struct reading *r)
{
    struct bytes authority = authority_of(r->target);
    if (memchr(r->target.p, '#', r->target.n)) return 0;
    if (authority.p) return authority.n > 0 && authority.p[0] != ':' && authority_right(authority);
    if (r->target.p[0] == '/' || same_word(r->method, "connect")) return 1;
    return same_word(r->method, "options") && same_word(r->target, "*");
}

/* "METHOD SP TARGET SP HTTP/1.DIGIT": 0 or -400. */
static int read_request_line(struct reading *r, struct bytes line)
{
    size_t first = 0, last = line.n;
    while (first < line.n && line.p[first] != ' ') first++;
    while (last > 0 && line.p[last - 1] != ' ') last--;
    if (first == line.n || last < first + 2) return -400;
    struct bytes version = {line.p + last, line.n - last};
    r->method = (struct bytes){line.p, first};
    r->target = (struct bytes){line.p + first + 1, last - first - 2};
    if (r->method.n == 0 || r->target.n == 0 || version.n != 8 ||
        memcmp(version.p, "HTTP/1.", 7) != 0)
        return -400;
    for (size_t i = 0; i < r->method.n; i++)
        if (!token_byte(r->method.p[i])) return -400;
    for (size_t i = 0; i < r->target.n; i++)
        if (r->target.p[i] <= 0x20 || r->target.p[i] >= 0x7f) return -400;
    if (version.p[7] < '0' || version.p[7] > '9' || !target_right(r)) return -400;
    r->minor = version.p[7] != '0';
    return 0;
}

/* The first line so far of that name, or NULL. */
static const struct field_line *line_named(const struct reading *r, struct bytes name)
{
    for (unsigned i = 0; i < r->lines; i++)
        if (r->line[i].name.n == name.n &&
            strncasecmp((const char *)r->line[i].name.p, (const char *)name.p, name.n) == 0)
            return &r->line[i];
    return NULL;
}

static struct bytes field_named(const struct reading *r, const char *name)
{
    const struct field_line *line = line_named(r,
                                               (struct bytes){(const uint8_t *)name, strlen(name)});
    return line ? line->value : (struct bytes){NULL, 0};
}

static int all_digits(struct bytes b)
{
    for (size_t i = 0; i < b.n; i++)
        if (b.p[i] < '0' || b.p[i] > '9') return 0;
    return b.n > 0;
}

/* "NAME: VALUE": 0 or -status. */
static int read_field_line(struct reading *r, struct bytes line)
{
    static const char *const once[] = {
        "host",           "origin",        "sec-websocket-key", "sec-websocket-version",
        "content-length", "authorization", "content-type",      "transfer-encoding"};
    const uint8_t *colon = memchr(line.p, ':', line.n);
    if (!colon || colon == line.p) return -400;
    struct bytes name = {line.p, (size_t)(colon - line.p)};
    struct bytes value = trimmed((struct bytes){colon + 1, line.n - name.n - 1});
    for (size_t i = 0; i < name.n; i++)
        if (!token_byte(name.p[i])) return -400;
    for (size_t i = 0; i < sizeof once / sizeof *once; i++)
        if (same_word(name, once[i]) && line_named(r, name)) return -400;
    r->line[r->lines++] = (struct field_line){name, value};
    if (same_word(name, "content-length") && !all_digits(value)) return -400;
    if (same_word(name, "host") && !authority_right(value)) return -400;
    if (same_word(name, "transfer-encoding") && !same_word(value, "chunked")) return -501;
    return 0;
}

static int read_lines_end(const struct reading *r, size_t end)
{
    if (r->minor > 0 && !field_named(r, "host").p) return -400;
    if (field_named(r, "transfer-encoding").p &&
        (field_named(r, "content-length").p || r->minor == 0))
        return -400;
    return (int)end;
}

/* Reads the whole head in one go. */
static int read_head(struct reading *r, struct bytes in)
{
    size_t at = 0, limit = in.n < 8192 ? in.n : 8192;
    const int more = in.n < 8192 ? 0 : -431;
    for (;;) {
        size_t end = at;
        while (end < limit && field_byte(in.p[end])) end++;
        if (end == limit) return more;
        if (in.p[end] != '\r') return -400;
        if (end + 1 == limit) return more;
        if (in.p[end + 1] != '\n') return -400;
        struct bytes line = {in.p + at, end - at};
        at = end + 2;
        if (line.n == 0 && !r->method.p) continue;
        if (line.n == 0) return read_lines_end(r, at);
        int status = r->method.p ? read_field_line(r, line) : read_request_line(r, line);
        if (status < 0) return status;
    }
}

/* ===== Heads ===== */

static int list_has(struct bytes list, const char *word)
{
    while (list.n > 0) {
        size_t size = 0;
        while (size < list.n && list.p[size] != ',') size++;
        if (same_word(trimmed((struct bytes){list.p, size}), word)) return 1;
        list.p += size + (size < list.n), list.n -= size + (size < list.n);
    }
    return 0;
}

/* Whether any line of that name has the word in its list. */
static unsigned lines_have(const struct reading *r, const char *name, const char *word)
{
    unsigned has = 0;
    for (unsigned i = 0; i < r->lines; i++)
        if (same_word(r->line[i].name, name) && list_has(r->line[i].value, word)) has = 1;
    return has;
}

static unsigned expected_flags(const struct reading *r)
{
    struct bytes type = field_named(r, "content-type");
    const uint8_t *semicolon = type.n > 0 ? memchr(type.p, ';', type.n) : NULL;
    if (semicolon) type.n = (size_t)(semicolon - type.p);
    return lines_have(r, "connection", "close") * HEAD_CLOSE |
           lines_have(r, "connection", "upgrade") * HEAD_UPGRADE |
           lines_have(r, "upgrade", "websocket") * HEAD_WEBSOCKET |
           lines_have(r, "expect", "100-continue") * HEAD_CONTINUE |
           (field_named(r, "transfer-encoding").p ? HEAD_CHUNKED : 0U) |
           (same_word(trimmed(type), "application/octet-stream") ? HEAD_BINARY : 0U) |
           (same_word(field_named(r, "sec-websocket-version"), "13") ? HEAD_VERSION_13 : 0U);
}

/* The value of digits, UINT64_MAX when it is larger. */
static uint64_t saturated(struct bytes digits)
{
    static const char most[] = "18446744073709551615";
    uint64_t value = 0;
    while (digits.n > 0 && *digits.p == '0') digits.p++, digits.n--;
    if (digits.n > 20 || (digits.n == 20 && memcmp(digits.p, most, 20) > 0)) return UINT64_MAX;
    for (size_t i = 0; i < digits.n; i++) value = value * 10 + (uint64_t)(digits.p[i] - '0');
    return value;
}

static void check_span(const struct head *h, unsigned field, struct span span, struct bytes head,
                       struct bytes want)
{
    HOLDS((size_t)span.at + span.size <= head.n);
    if (!want.p) HOLDS(span.size == 0 && !(h->seen & 1U << field));
    else HOLDS(bytes_equal(want, head.p + span.at, span.size) && (h->seen & 1U << field));
}

/* What was read of a whole head is what the second reader has. */
static void check_head(const struct head *h, const struct reading *r, struct bytes head)
{
    struct bytes length = field_named(r, "content-length");
    HOLDS(h->minor == r->minor);
    HOLDS(bytes_equal(r->method, head.p + h->method.at, h->method.size));
    HOLDS(bytes_equal(r->target, head.p + h->target.at, h->target.size));
    HOLDS(h->fields.at < head.n && head.p[h->fields.at - 1] == '\n');
    HOLDS(h->flags == expected_flags(r));
    HOLDS(h->length == (length.p ? saturated(length) : 0));
    struct bytes authority = authority_of(r->target),
                 host = authority.p ? authority : field_named(r, "host");
    if (authority.p) HOLDS(bytes_equal(host, head.p + h->host.at, h->host.size));
    else check_span(h, FIELD_HOST, h->host, head, host);
    check_span(h, FIELD_ORIGIN, h->origin, head, field_named(r, "origin"));
    check_span(h, FIELD_KEY, h->key, head, field_named(r, "sec-websocket-key"));
    check_span(h, FIELD_AUTHORIZATION, h->authorization, head, field_named(r, "authorization"));
}

/* exportws_request_header finds what is there, in any case, and nothing else. */
static void check_request_header(const struct head *h, const struct reading *r, struct bytes head)
{
    const exportws_request request = {head.p, head.p + head.n, h, "", "", {0, 0}};
    char name[256], value[64];
    HOLDS(exportws_request_header(&request, "no-such-header-", NULL, 0) == 0 ||
          field_named(r, "no-such-header-").n > 0);
    for (unsigned i = 0; i < r->lines && i < 8; i++) {
        struct bytes want = line_named(r, r->line[i].name)->value;
        if (r->line[i].name.n >= sizeof name) continue;
        for (size_t k = 0; k < r->line[i].name.n; k++)
            name[k] = (char)(r->line[i].name.p[k] ^
                             (r->line[i].name.p[k] > '@' && r->line[i].name.p[k] < '[' ? 32 : 0));
        name[r->line[i].name.n] = '\0';
        size_t shown = want.n < sizeof value ? want.n : sizeof value - 1;
        HOLDS(exportws_request_header(&request, name, value, sizeof value) == want.n);
        HOLDS(bytes_equal((struct bytes){want.p, shown}, value, strlen(value)));
    }
}

/* The target's path and query lie in it, one behind the other; its token is what it says. */
static void check_target(const struct exportws *w, const struct head *h, struct bytes head)
{
    uint8_t *p = fuzz_guard(1, head.p, head.n);
    struct bytes target = {head.p + h->target.at, h->target.size}, authority = authority_of(target);
    char *path, *query, *token = NULL;
    if (authority.p) bytes_take(&target, (size_t)(authority.p - target.p) + authority.n);
    const uint8_t *mark = target.n > 0 ? memchr(target.p, '?', target.n) : NULL;
    size_t size = mark ? (size_t)(mark - target.p) : target.n;
    target_split(p, h, &path, &query);
    HOLDS((uint8_t *)path == p + (target.p - head.p));
    HOLDS(strlen(path) == size && memcmp(path, target.p, size) == 0);
    HOLDS(strlen(query) == target.n - size - (mark != NULL));
    HOLDS(!mark || memcmp(query, mark + 1, strlen(query)) == 0);
    int n = path_token(w, path, &token, w->o.max_token_bytes);
    HOLDS(n == -404 || n == -400 || n == -414 || (n > 0 && (size_t)n <= w->o.max_token_bytes));
    if (n > 0) HOLDS(strlen(token) == (size_t)n && !strchr(token, '/'));
}

/* The handshake lets in exactly what RFC 6455 4.2.1 wants. */
static void check_handshake(const struct exportws *w, const struct head *h, const struct reading *r,
                            struct bytes head)
{
    const struct refusal no = handshake_check(w, h, head.p);
    int body = field_named(r, "transfer-encoding").p ||
               saturated(field_named(r, "content-length")) > 0;
    int upgrade = lines_have(r, "connection", "upgrade") && lines_have(r, "upgrade", "websocket");
    int version = same_word(field_named(r, "sec-websocket-version"), "13");
    HOLDS(no.status == 0 || no.status == 400 || no.status == 403 || no.status == 426);
    HOLDS((no.status == 426) == (!body && !(upgrade && version)));
    HOLDS(no.status != 0 ||
          (!body && upgrade && version && field_named(r, "sec-websocket-key").n == 24));
    HOLDS(no.status != 403 || field_named(r, "origin").p);
}

static void check_bearer(const struct exportws *w, const struct head *h, const struct reading *r,
                         struct bytes head)
{
    struct bytes given = field_named(r, "authorization");
    int right = given.n >= 7 && strncasecmp((const char *)given.p, "bearer ", 7) == 0;
    if (right)
        right = bytes_equal(trimmed((struct bytes){given.p + 7, given.n - 7}), w->o.push_secret,
                            strlen(w->o.push_secret));
    HOLDS(push_allowed(w, h, head.p) == right);
}

/* The same bytes in pieces: "more" until the last byte that matters, then the same words. */
static void split_head(struct bytes in, struct splits s, int result, const struct head *want)
{
    struct head h;
    size_t have = 0, before = 0;
    int n = 0;
    memset(&h, 0, sizeof h);
    while (n == 0 && have < in.n) {
        before = have;
        have += splits_next(&s, in.n - have);
        n = head_parse(&h, fuzz_guard(1, in.p, have), have);
        HOLDS(n <= (int)have);
    }
    HOLDS(n == result);
    if (n > 0) HOLDS(before < (size_t)n && memcmp(&h, want, sizeof h) == 0);
}

static void fuzz_head(struct bytes in, uint8_t seed)
{
    static const char secret[] = "secret";
    static struct exportws w;
    struct head h;
    static struct reading r;
    memset(&h, 0, sizeof h);
    memset(&r, 0, offsetof(struct reading, line));
    exportws_defaults(&w.o);
    w.o.path = "/t/", w.o.push_secret = secret;
    r.result = read_head(&r, in);
    int n = head_parse(&h, fuzz_guard(0, in.p, in.n), in.n);
    HOLDS(n == r.result);
    for (unsigned i = 0; i < 3; i++)
        split_head(in, (struct splits){seed * 7U + i * 0x40000000U}, n, &h);
    if (n <= 0) return;
    struct bytes head = {fuzz_guard(0, in.p, (size_t)n), (size_t)n};
    check_head(&h, &r, head);
    check_request_header(&h, &r, head);
    check_handshake(&w, &h, &r, head);
    check_bearer(&w, &h, &r, head);
    check_target(&w, &h, head);
}

/* ===== Chunked bodies ===== */

struct body {
    int result; /* 1: whole, 0: more, -1: bad */
    size_t used, size;
    uint8_t data[FUZZ_MOST];
};

/* Feeds all pieces; nothing may be said to be used or data that was not given. */
static void feed_chunks(struct body *b, struct bytes in, struct splits *s)
{
    struct chunk k;
    memset(&k, 0, sizeof k);
    memset(b, 0, sizeof *b);
    while (b->result == 0 && b->used < in.n) {
        size_t piece = s ? splits_next(s, in.n - b->used) : in.n - b->used, at = 0;
        const uint8_t *p = fuzz_guard(1, in.p + b->used, piece);
        while (at < piece && b->result == 0) {
            size_t data;
            int used = chunk_feed(&k, p + at, piece - at, &data);
            if (used < 0) b->result = -1;
            if (used < 0) break;
            HOLDS(used > 0 && (size_t)used <= piece - at && data <= (size_t)used);
            if (data > 0) memcpy(b->data + b->size, p + at + (size_t)used - data, data);
            b->size += data, at += (size_t)used;
            if (k.state == CHUNK_DONE) b->result = 1;
        }
        b->used += at;
    }
}

static int hex_digit(unsigned c)
{
    static const char digits[] = "0123456789abcdef";
    const char *at = c ? strchr(digits, c >= 'A' && c <= 'F' ? (int)c + 32 : (int)c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* A line from `at` on, of bytes that a field may have: where it ends behind its CRLF, 0: more, or
 * -1. */
static ptrdiff_t line_end(struct bytes in, size_t at)
{
    while (at < in.n && field_byte(in.p[at])) at++;
    if (at == in.n) return 0;
    if (in.p[at] != '\r') return -1;
    if (at + 1 == in.n) return 0;
    return in.p[at + 1] == '\n' ? (ptrdiff_t)at + 2 : -1;
}

/* Reads "SIZE[ ][;...]CRLF". Returns as line_end. */
static ptrdiff_t read_chunk_size(struct bytes in, size_t at, uint64_t *size)
{
    size_t digits = 0;
    *size = 0;
    for (; at < in.n && hex_digit(in.p[at]) >= 0; at++) {
        if (++digits > 15) return -1;
        *size = *size * 16 + (uint64_t)hex_digit(in.p[at]);
    }
    if (at == in.n) return 0;
    if (digits == 0) return -1;
    while (at < in.n && (in.p[at] == ' ' || in.p[at] == '\t')) at++;
    if (at < in.n && in.p[at] != '\r' && in.p[at] != ';') return -1;
    return line_end(in, at);
}

/* Reads "NAME: VALUE CRLF" lines and the empty one. Returns as line_end. */
static ptrdiff_t read_trailers(struct bytes in, size_t at)
{
    while (at < in.n && in.p[at] != '\r') {
        size_t name = 0;
        while (at + name < in.n && token_byte(in.p[at + name])) name++;
        if (at + name == in.n) return 0;
        if (name == 0 || in.p[at + name] != ':') return -1;
        ptrdiff_t end = line_end(in, at + name);
        if (end <= 0) return end;
        at = (size_t)end;
    }
    return line_end(in, at);
}

/* The second reader of chunked bodies: extensions and trailers are few here, their bound is not
 * looked at. */
static int read_chunks(struct body *b, struct bytes in)
{
    memset(b, 0, sizeof *b);
    for (size_t at = 0;;) {
        uint64_t size;
        ptrdiff_t end = read_chunk_size(in, at, &size);
        if (end <= 0) return (int)end;
        at = (size_t)end;
        if (size == 0) {
            end = read_trailers(in, at);
            b->used = end > 0 ? (size_t)end : 0;
            return end > 0 ? 1 : (int)end;
        }
        size_t piece = in.n - at < size ? in.n - at : (size_t)size;
        if (piece > 0) memcpy(b->data + b->size, in.p + at, piece);
        b->size += piece, at += piece;
        if (at == in.n) return 0;
        if (in.p[at++] != '\r') return -1;
        if (at == in.n) return 0;
        if (in.p[at++] != '\n') return -1;
    }
}

static void check_body(const struct body *a, const struct body *b)
{
    HOLDS(a->result == b->result && a->size == b->size && memcmp(a->data, b->data, a->size) == 0);
    HOLDS(a->result != 1 || a->used == b->used);
}

static void fuzz_chunks(struct bytes in, uint8_t seed)
{
    static struct body whole, other;
    if (in.n > 8000) in.n = 8000; /* below the bound of extensions and trailers */
    feed_chunks(&whole, in, NULL);
    for (unsigned i = 0; i < 3; i++) {
        struct splits s = {seed * 7U + i * 0x40000000U};
        feed_chunks(&other, in, &s);
        check_body(&whole, &other);
    }
    other.result = read_chunks(&other, in);
    int result = other.result;
    other.result = result;
    check_body(&whole, &other);
}

/* Any bytes, cut into chunks as the seed says, come out again; what follows them is not touched. */
static void fuzz_chunks_made(struct bytes in, uint8_t seed)
{
    static uint8_t made[FUZZ_MOST];
    static struct body b;
    struct splits s = {seed * 11U}, feed = {seed * 13U + 1};
    size_t n = 0, want = in.n < 1000 ? in.n : 1000;
    for (size_t at = 0; at < want;) {
        size_t piece = splits_next(&s, want - at);
        n += (size_t)snprintf((char *)made + n, 32, seed & 1 ? "%zX;x=\"y\"\r\n" : "%zx\r\n",
                              piece);
        memcpy(made + n, in.p + at, piece);
        memcpy(made + n + piece, "\r\n", 2);
        n += piece + 2, at += piece;
    }
    n += (size_t)snprintf((char *)made + n, 64,
                          seed & 2 ? "000\r\nTrailer: 1\r\n\r\n" : "0\r\n\r\n");
    memcpy(made + n, "GET", 3);
    feed_chunks(&b, (struct bytes){made, n + 3}, &feed);
    HOLDS(b.result == 1 && b.used == n && bytes_equal((struct bytes){in.p, want}, b.data, b.size));
}

/* ===== Tokens, origins, lists, keys ===== */

/* The second reader of percent-encoding; out has room for all. */
static int read_token(struct bytes in, uint8_t *out, size_t most)
{
    size_t used = 0;
    for (size_t i = 0; i < in.n; i++) {
        unsigned c = in.p[i];
        if (c == '%' && (in.n - i < 3 || hex_digit(in.p[i + 1]) < 0 || hex_digit(in.p[i + 2]) < 0))
            return -400;
        if (c == '%') c = (unsigned)(hex_digit(in.p[i + 1]) * 16 + hex_digit(in.p[i + 2])), i += 2;
        if (c == 0 || c == '/') return -400;
        out[used++] = (uint8_t)c;
    }
    return used > most ? -414 : (int)used;
}

static void fuzz_token(struct bytes in, uint8_t seed)
{
    static uint8_t want[FUZZ_MOST], coded[3 * 64 + 1];
    const size_t most = 1 + seed % 64;
    uint8_t *out = fuzz_guard(1, coded, most), *same = fuzz_guard(2, in.p, in.n);
    int n = token_decode(fuzz_guard(0, in.p, in.n), in.n, out, most),
        second = read_token(in, want, most);
    HOLDS(n == second);
    HOLDS(n <= 0 || memcmp(out, want, (size_t)n) == 0);
    if (n < 0) return;
    HOLDS(token_decode(same, in.n, same, most) == n && memcmp(same, want, (size_t)n) == 0);
    for (size_t i = 0; i < (size_t)n; i++)
        snprintf((char *)coded + 3 * i, 4, seed & 64 ? "%%%02X" : "%%%02x", want[i]);
    HOLDS(token_decode(coded, 3 * (size_t)n, out, most) == n && memcmp(out, want, (size_t)n) == 0);
}

/* An Origin made of a host names that host, whatever the ports; with another letter it does not. */
static void fuzz_origin(struct bytes in, uint8_t seed)
{
    static uint8_t made[FUZZ_MOST];
    struct bytes host = bytes_take(&in, seed);
    const uint8_t *p = fuzz_guard(0, host.p, host.n);
    size_t size = host_size(p, host.n);
    HOLDS(size <= host.n &&
          (size == host.n || p[size] == ':' || (size > 1 && p[0] == '[' && p[size - 1] == ']')));
    memcpy(made, "https://", 8);
    if (host.n > 0) memcpy(made + 8, host.p, host.n);
    HOLDS(origin_is_host(fuzz_guard(1, made, 8 + host.n), 8 + host.n, p, host.n) == (size > 0));
    if (size > 0) made[8] ^= 1;
    if (size > 0 && host.p[0] != '[' && made[8] != '[' && made[8] != ':')
        HOLDS(!origin_is_host(fuzz_guard(1, made, 8 + size), 8 + size, p, host.n));
    HOLDS(host_valid(p, host.n) == authority_right(host));
    origin_is_host(fuzz_guard(2, in.p, in.n), in.n, p, host.n);
}

static void fuzz_lists(struct bytes in, uint8_t seed)
{
    static char secret[256];
    const uint8_t *p = fuzz_guard(0, in.p, in.n), *list = p, *member;
    size_t left = in.n, size, past = 0;
    uint64_t value = 7;
    while (http_list_next(&list, &left, &member, &size)) {
        HOLDS(list + left == p + in.n &&
              (size == 0 || (member >= p + past && member + size <= p + in.n)));
        HOLDS(size == 0 || (!memchr(member, ',', size) && !http_blank(member[0]) &&
                            !http_blank(member[size - 1])));
        past = (size_t)(list - p);
    }
    HOLDS(left == 0);
    HOLDS(!!(http_list_flags(p, in.n) & HEAD_UPGRADE) == list_has(in, "upgrade"));
    HOLDS((decimal_parse(p, in.n, &value) == 0) == all_digits(in));
    HOLDS(value == (all_digits(in) ? saturated(in) : 7));
    struct bytes word = bytes_take(&in, seed);
    if (word.n > 0) memcpy(secret, word.p, word.n);
    secret[word.n] = '\0';
    const uint8_t *given = fuzz_guard(0, in.p, in.n);
    HOLDS(secret_equal(given, in.n, secret) == bytes_equal(in, secret, strlen(secret)));
    HOLDS(secret_equal((const uint8_t *)secret, strlen(secret), secret));
}

/* The value of a base64 digit, or -1. */
static int base64_digit(unsigned c)
{
    return c >= 'A' && c <= 'Z'   ? (int)c - 'A'
           : c >= 'a' && c <= 'z' ? (int)c - 'a' + 26
           : c >= '0' && c <= '9' ? (int)c - '0' + 52
           : c == '+'             ? 62
           : c == '/'             ? 63
                                  : -1;
}

/* What is encoded decodes to the same; what is taken for a key is the base64 of 16 bytes. */
static void fuzz_base64(struct bytes in)
{
    static char coded[FUZZ_MOST * 2];
    char accept[28];
    if (in.n > 3000) in.n = 3000;
    size_t size = (in.n + 2) / 3 * 4, pads = (3 - in.n % 3) % 3, at = 0;
    memset(coded, '!', size + 1);
    base64_encode(fuzz_guard(0, in.p, in.n), in.n, coded);
    HOLDS(coded[size] == '!');
    for (size_t i = 0; i < size; i++)
        HOLDS(i < size - pads ? base64_digit((uint8_t)coded[i]) >= 0 : coded[i] == '=');
    for (size_t i = 0; i + 1 < size && at < in.n; i++) {
        if (i % 4 == 3) continue;
        unsigned low = (unsigned)base64_digit((uint8_t)coded[i + 1]),
                 two = (unsigned)base64_digit((uint8_t)coded[i]) << 6;
        two |= coded[i + 1] == '=' ? 0 : low;
        HOLDS(in.p[at++] == (uint8_t)(two >> (4 - 2 * (i % 4))));
    }
    int valid = in.n == 24 && in.p[22] == '=' && in.p[23] == '=';
    for (size_t i = 0; i < 22 && valid; i++) valid = base64_digit(in.p[i]) >= 0;
    const uint8_t *p = fuzz_guard(0, in.p, in.n);
    HOLDS(key_valid(p, in.n) == valid);
    if (valid) key_accept(p, accept);
}

/* Where X-Forwarded-For says that a request comes from, read another way: the last entry is
 * [IPv6], [IPv6]:PORT, IPv6, IPv4 or IPv4:PORT. 0 and the port, or -1. */
static int read_forwarded(struct bytes in, uint8_t ip[16], unsigned *port)
{
    char text[64], *end = NULL, *number = NULL;
    while (in.n > 0 && memchr(in.p, ',', in.n)) {
        size_t past = (size_t)((const uint8_t *)memchr(in.p, ',', in.n) - in.p) + 1;
        if (past == in.n) break; /* an empty last one, which http_list_next does not tell of */
        in.p += past, in.n -= past;
    }
    if (in.n > 0 && in.p[in.n - 1] == ',') in.n--;
    in = trimmed(in);
    if (in.n >= sizeof text) return -1;
    if (in.n > 0) memcpy(text, in.p, in.n);
    text[in.n] = '\0';
    int six = text[0] == '[' || (strchr(text, ':') && strchr(text, ':') != strrchr(text, ':'));
    if (text[0] == '[') end = strchr(text, ']');
    if (text[0] == '[' && !end) return -1;
    if (end) *end++ = '\0';
    else if (!six) end = strchr(text, ':');
    if (end && *end == ':') *end = '\0', number = end + 1;
    else if (end && *end) return -1;
    *port = 0;
    if (number) {
        struct bytes digits = {(const uint8_t *)number, strlen(number)};
        if (!all_digits(digits) || saturated(digits) > 65535) return -1;
        *port = (unsigned)saturated(digits);
    }
    if (six) return inet_pton(AF_INET6, text + (text[0] == '['), ip) == 1 ? 0 : -1;
    memcpy(ip, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
    return inet_pton(AF_INET, text, ip + 12) == 1 ? 0 : -1;
}

static void fuzz_forwarded(struct bytes in)
{
    struct conn c;
    uint8_t ip[16] = {0};
    unsigned port = 0;
    if (in.n > 0 && memchr(in.p, '\0', in.n)) return; /* no head has it */
    memset(&c, 0x5a, sizeof c);
    client_forwarded(&c, fuzz_guard(0, in.p, in.n), in.n);
    if (read_forwarded(in, ip, &port) < 0) {
        memset(ip, 0x5a, sizeof ip);
        port = 0x5a5a;
    }
    HOLDS(memcmp(c.address, ip, sizeof ip) == 0 && c.port == port);
}

/* No text is a signed token by chance; a name that is signed gets in, and with another bit not. */
static void fuzz_signed(struct bytes in, uint8_t seed)
{
    static struct exportws w;
    static char secret[256], token[FUZZ_MOST + 128];
    uint8_t mac[32];
    char base64[45] = "";
    struct bytes key = bytes_take(&in, seed);
    if (key.n > 0) memcpy(secret, key.p, key.n);
    secret[key.n] = '\0';
    w.o.client_secret = secret;
    w.o.max_token_bytes = 64;
    if (in.n == 0 || memchr(in.p, '\0', in.n)) return; /* no token is, or has it */
    memcpy(token, in.p, in.n);
    token[in.n] = '\0';
    int status = token_unsign(&w, (char *)fuzz_guard(0, (uint8_t *)token, in.n + 1)).status;
    HOLDS(status == 403 || status == 414 || status == 404);
    if (strcspn(secret, "\r\n") == 0 || in.n > 64) return;
    int n = snprintf(token, sizeof token, "%.*s.9999999999", (int)in.n, (const char *)in.p);
    hmac_sha256((uint8_t *)secret, strcspn(secret, "\r\n"), (uint8_t *)token, (size_t)n, mac);
    base64_encode(mac, sizeof mac, base64);
    for (char *p = base64; *p; p++) *p = *p == '+' ? '-' : *p == '/' ? '_' : *p;
    n += snprintf(token + n, sizeof token - (size_t)n, ".%.43s", base64);
    char *copy = (char *)fuzz_guard(0, (uint8_t *)token, (size_t)n + 1);
    HOLDS(token_unsign(&w, copy).status == 0);
    HOLDS(strlen(copy) == in.n && memcmp(copy, in.p, in.n) == 0);
    token[seed % (unsigned)n] ^= 1;
    copy = (char *)fuzz_guard(0, (uint8_t *)token, (size_t)n + 1);
    HOLDS(token_unsign(&w, copy).status != 0);
}

static void fuzz_one(const uint8_t *p, size_t n)
{
    static const char parts[] = "hcmtolkfs";
    struct bytes in = {p, n};
    uint8_t part = bytes_next(&in), seed = bytes_next(&in);
    if (n < 2) return;
    if (!part || !strchr(parts, part)) part = (uint8_t)parts[part % (sizeof parts - 1)];
    switch (part) {
    case 'h': fuzz_head(in, seed); return;
    case 'c': fuzz_chunks(in, seed); return;
    case 'm': fuzz_chunks_made(in, seed); return;
    case 't': fuzz_token(in, seed); return;
    case 'o': fuzz_origin(in, seed); return;
    case 'l': fuzz_lists(in, seed); return;
    case 'f': fuzz_forwarded(in); return;
    case 's': fuzz_signed(in, seed); return;
    default: fuzz_base64(in); return;
    }
}
