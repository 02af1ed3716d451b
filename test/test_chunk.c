/* Chunks: chunked bodies, however they are cut. */
#define EXPORTWS_NO_MAIN
#include "../exportws.c"
#include "test.h"

/* ===== A body put together ===== */

struct body {
    uint8_t bytes[70000];
    size_t size, used;
    int failed;
};

/* Feeds p[0..n), which ends at a page that may not be read, in pieces of at most `piece` bytes. */
static void body_feed(struct body *b, struct chunk *k, const char *p, size_t n, size_t piece)
{
    while (n > 0 && !b->failed && k->state != CHUNK_DONE) {
        size_t room = n < piece ? n : piece, data = 77;
        const uint8_t *copy = guard_copy(p, room);
        int used = chunk_feed(k, copy, room, &data);
        if (used < 0) {
            b->failed = 1;
            return;
        }
        assert_true(used > 0 && (size_t)used <= room && data <= (size_t)used);
        memcpy(b->bytes + b->size, copy + used - data, data);
        b->size += data, b->used += (size_t)used;
        p += used, n -= (size_t)used;
    }
}

/* used: of the input when it is done; 0: more is needed; -1: its last byte is refused. data: its
 * body so far. */
struct chunk_row {
    const char *name, *input;
    size_t size;
    int used;
    const char *data;
};

#define DONE(name, input, data) {name, input, sizeof(input) - 1, (int)sizeof(input) - 1, data}
#define MORE(name, input, data) {name, input, sizeof(input) - 1, 0, data}
#define FAIL(name, input, data) {name, input, sizeof(input) - 1, -1, data}

static const struct chunk_row rows[] = {
    DONE("nothing", "0\r\n\r\n", ""),
    DONE("one chunk", "5\r\nhello\r\n0\r\n\r\n", "hello"),
    DONE("three chunks", "1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n0\r\n\r\n", "abcdef"),
    DONE("size in upper case hex", "A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
    DONE("size in lower case hex", "a\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
    DONE("size of two digits", "10\r\n0123456789abcdef\r\n0\r\n\r\n", "0123456789abcdef"),
    DONE("leading zeros", "0000000000000A\r\n0123456789\r\n000000000000000\r\n\r\n", "0123456789"),
    DONE("data that looks like chunks", "8\r\n0\r\n\r\n5\r\n\r\n0\r\n\r\n", "0\r\n\r\n5\r\n"),
    DONE("extension", "3;a=b\r\nabc\r\n0;last\r\n\r\n", "abc"),
    DONE("quoted extension", "3;a=\"x;y\"\r\nabc\r\n0\r\n\r\n", "abc"),
    DONE("blanks behind the size", "3 \t\r\nabc\r\n0 \r\n\r\n", "abc"),
    DONE("tab in an extension", "3;a\tb\r\nabc\r\n0\r\n\r\n", "abc"),
    DONE("blanks, then an extension", "3\t ;a\r\nabc\r\n0\r\n\r\n", "abc"),
    DONE("bytes beyond ASCII in an extension", "3;\xc3\xa4\r\nabc\r\n0\r\n\r\n", "abc"),
    DONE("trailer", "3\r\nabc\r\n0\r\nX: y\r\n\r\n", "abc"),
    DONE("two trailers", "0\r\nX: y\r\nLonger-Name:\tz\xff\r\n\r\n", ""),
    DONE("trailer without a value", "0\r\nX:\r\n\r\n", ""),
    MORE("empty", "", ""),
    MORE("size only", "5", ""),
    MORE("size and CR", "5\r", ""),
    MORE("size line", "5\r\n", ""),
    MORE("half the data", "5\r\nhel", "hel"),
    MORE("all the data", "5\r\nhello", "hello"),
    MORE("data and CR", "5\r\nhello\r", "hello"),
    MORE("one chunk, and no last", "5\r\nhello\r\n", "hello"),
    MORE("last size", "0\r\n", ""),
    MORE("last CR", "0\r\n\r", ""),
    MORE("in the extension", "3;abc", ""),
    MORE("in the trailer", "0\r\nX: y", ""),
    MORE("largest size there is", "FFFFFFFFFFFFFFF\r\nabc", "abc"),
    FAIL("no size", "\r", ""),
    FAIL("DEL in an extension", "3;a\x7f", ""),
    FAIL("DEL in a trailer", "0\r\nX: \x7f", ""),
    FAIL("LF for CR", "5\n", ""),
    FAIL("no hex digit", "g", ""),
    FAIL("digit, then none", "5g", ""),
    FAIL("minus", "-", ""),
    FAIL("plus", "+", ""),
    FAIL("0x", "0x", ""),
    FAIL("blank first", " ", ""),
    FAIL("extension without size", ";", ""),
    FAIL("sixteen digits", "0000000000000005", ""),
    FAIL("sixteen digits, large", "1000000000000000", ""),
    FAIL("CR and no LF", "5\rh", ""),
    FAIL("CR twice", "5\r\r", ""),
    FAIL("extension with LF", "5;a\n", ""),
    FAIL("extension with NUL", "5;a\0", ""),
    FAIL("extension, CR and no LF", "5;a\rb", ""),
    FAIL("data longer than said", "3\r\nabcd", "abc"),
    FAIL("data, then LF", "3\r\nabc\n", "abc"),
    FAIL("data, then CR and no LF", "3\r\nabc\rx", "abc"),
    FAIL("no size behind data", "3\r\nabc\r\n\r", "abc"),
    FAIL("second size is none", "3\r\nabc\r\nx", "abc"),
    FAIL("size of two chunks runs on", "3\r\nabc\r\n0000000000000000", "abc"),
    FAIL("blank, then no extension", "5 a", ""),
    FAIL("blank, then LF", "5 \n", ""),
    FAIL("blank, CR and no LF", "5 \r5", ""),
    FAIL("trailer's name beyond ASCII", "0\r\nX\xff", ""),
    FAIL("trailer begins with a blank", "0\r\n ", ""),
    FAIL("trailer without a colon", "0\r\nX\r", ""),
    FAIL("blank before a trailer's colon", "0\r\nX ", ""),
    FAIL("two sizes", "5 5", ""),
    FAIL("trailer begins with a colon", "0\r\n:", ""),
    FAIL("trailer begins with LF", "0\r\n\n", ""),
    FAIL("trailer with LF", "0\r\nX: y\n", ""),
    FAIL("trailer with control", "0\r\nX: y\x01", ""),
    FAIL("trailer, CR and no LF", "0\r\nX: y\rz", ""),
    FAIL("end, CR and no LF", "0\r\n\rx", ""),
};

static void row_feed(const struct chunk_row *row, size_t n, size_t first, size_t piece)
{
    static struct body b;
    struct chunk k = {0};
    b.size = b.used = 0, b.failed = 0;
    body_feed(&b, &k, row->input, first, piece);
    body_feed(&b, &k, row->input + first, n - first, piece);
    int whole = n == row->size;
    if (b.failed != (whole && row->used < 0))
        fail_msg("%s: %zu bytes, %zu a piece: failed %d", row->name, n, piece, b.failed);
    if ((k.state == CHUNK_DONE) != (whole && row->used > 0))
        fail_msg("%s: %zu bytes: done or not", row->name, n);
    if (!b.failed && b.used != n) fail_msg("%s: %zu bytes, %zu used", row->name, n, b.used);
    if (whole && b.size != strlen(row->data)) fail_msg("%s: %zu bytes of data", row->name, b.size);
    if (b.size > strlen(row->data) || memcmp(b.bytes, row->data, b.size) != 0)
        fail_msg("%s: other data", row->name);
}

static void chunked_rows_at_every_prefix(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++)
        for (size_t n = 0; n <= rows[i].size; n++) row_feed(&rows[i], n, 0, SIZE_MAX);
}

static void chunked_rows_byte_by_byte_and_in_small_pieces(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++)
        for (size_t piece = 1; piece <= 7; piece++) row_feed(&rows[i], rows[i].size, 0, piece);
}

static void chunked_rows_split_at_every_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++)
        for (size_t first = 0; first <= rows[i].size; first++)
            row_feed(&rows[i], rows[i].size, first, SIZE_MAX);
}

static void chunked_body_ends_before_the_next_request(void **state)
{
    static const char next[] = "GET / HTTP/1.1\r\n";
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        char text[256];
        struct chunk k = {0};
        static struct body b;
        if (rows[i].used <= 0) continue;
        memcpy(text, rows[i].input, rows[i].size);
        memcpy(text + rows[i].size, next, sizeof next - 1);
        b.size = b.used = 0, b.failed = 0;
        body_feed(&b, &k, text, rows[i].size + sizeof next - 1, SIZE_MAX);
        if (b.used != rows[i].size) fail_msg("%s: %zu bytes used", rows[i].name, b.used);
    }
}

static void chunk_feed_uses_nothing_when_done_or_given_nothing(void **state)
{
    struct chunk k = {0};
    size_t data = 77;
    (void)state;
    assert_int_equal(chunk_feed(&k, guard_copy("", 0), 0, &data), 0);
    assert_int_equal(data, 0);
    assert_int_equal(chunk_feed(&k, guard_copy("0\r\n\r\n", 5), 5, &data), 5);
    assert_int_equal(k.state, CHUNK_DONE);
    data = 77;
    assert_int_equal(chunk_feed(&k, guard_copy("0\r\n\r\n", 5), 5, &data), 0);
    assert_int_equal(data, 0);
}

/* The data's place and size are told so that nobody copies: it is the last of the bytes used. */
static void chunk_feed_stops_behind_every_piece_of_data(void **state)
{
    static const uint8_t input[] = "3;x\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    static const struct {
        int used;
        size_t data;
    } steps[] = {{8, 3}, {7, 2}, {7, 0}};
    struct chunk k = {0};
    size_t at = 0, n = sizeof input - 1;
    (void)state;
    for (size_t i = 0; i < COUNT(steps); i++) {
        size_t data = 77;
        assert_int_equal(chunk_feed(&k, guard_copy(input + at, n - at), n - at, &data),
                         steps[i].used);
        assert_int_equal(data, steps[i].data);
        at += (size_t)steps[i].used;
    }
    assert_int_equal(at, n);
    assert_int_equal(k.state, CHUNK_DONE);
}

static void large_chunk_is_told_in_the_pieces_it_comes_in(void **state)
{
    static char text[66000];
    static struct body b;
    struct chunk k = {0};
    (void)state;
    memset(text, 'd', sizeof text);
    memcpy(text, "10000\r\n", 7);
    memcpy(text + 7 + 65536, "\r\n0\r\n\r\n", 7);
    body_feed(&b, &k, text, 7 + 65536 + 7, 1500);
    assert_int_equal(k.state, CHUNK_DONE);
    assert_int_equal(b.size, 65536);
    for (size_t i = 0; i < b.size; i++) assert_int_equal(b.bytes[i], 'd');
}

/* What nobody wants, an extension, a trailer or blanks, may be 8 KiB in all. */
static void extensions_and_trailers_have_an_end(void **state)
{
    static const struct {
        const char *name, *start;
        size_t counted; /* of start */
        char fill;
    } limits[] = {{"extension", "0;", 0, 'x'},
                  {"blanks", "0 ", 0, ' '},
                  {"trailer's name", "0\r\nX", 0, 'x'},
                  {"trailer's value", "0\r\nX:", 1, 'x'},
                  {"extension and trailer", "0;ab\r\nX:", 4, 'x'}};
    (void)state;
    for (size_t i = 0; i < COUNT(limits); i++) {
        for (size_t over = 0; over < 2; over++) {
            static char text[HEAD_MAX + 64];
            static struct body b;
            struct chunk k = {0};
            size_t at = strlen(limits[i].start), fill = HEAD_MAX - limits[i].counted + over;
            memcpy(text, limits[i].start, at);
            memset(text + at, limits[i].fill, fill);
            b.failed = 0, b.used = 0;
            body_feed(&b, &k, text, at + fill, 100);
            if (b.failed != (int)over) fail_msg("%s of %zu: %d", limits[i].name, fill, b.failed);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunked_rows_at_every_prefix),
        cmocka_unit_test(chunked_rows_byte_by_byte_and_in_small_pieces),
        cmocka_unit_test(chunked_rows_split_at_every_byte),
        cmocka_unit_test(chunked_body_ends_before_the_next_request),
        cmocka_unit_test(chunk_feed_uses_nothing_when_done_or_given_nothing),
        cmocka_unit_test(chunk_feed_stops_behind_every_piece_of_data),
        cmocka_unit_test(large_chunk_is_told_in_the_pieces_it_comes_in),
        cmocka_unit_test(extensions_and_trailers_have_an_end),
    };
    return cmocka_run_group_tests_name("chunk", tests, NULL, NULL);
}
