/* UTF-8, against a decoder that works another way: it computes the character and asks whether it
 * may be. */
#define EXPORTWS_NO_MAIN
#include "../exportws.c"
#include "test.h"

/* ===== The other decoder ===== */

/* Writes a scalar value as RFC 3629, section 3 has it. Returns the length. */
static size_t scalar_encode(uint32_t c, uint8_t out[4])
{
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t marks[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n; i-- > 1; c >>= 6) out[i] = (uint8_t)(0x80 + c % 64);
    out[0] = (uint8_t)(marks[n] + c);
    return n;
}

static int is_scalar(uint32_t c)
{
    return c <= 0x10ffff && !(c >= 0xd800 && c <= 0xdfff);
}

/* The length of the character at p[0..n): 0 when there is none, whole and as short as it can be. */
static size_t scalar_size(const uint8_t *p, size_t n)
{
    uint8_t again[4];
    size_t ones = 0;
    while (ones < 8 && (p[0] << ones & 0x80)) ones++;
    if (ones == 0) return 1;
    if (ones == 1 || ones > 4 || n < ones) return 0;
    uint32_t c = p[0] & (0x7fU >> ones);
    for (size_t i = 1; i < ones; i++) {
        if (p[i] / 64 != 2) return 0;
        c = c * 64 + p[i] % 64;
    }
    return is_scalar(c) && scalar_encode(c, again) == ones ? ones : 0;
}

static int text_is_valid(const uint8_t *p, size_t n)
{
    while (n > 0) {
        size_t size = scalar_size(p, n);
        if (size == 0) return 0;
        p += size, n -= size;
    }
    return 1;
}

/* ===== Rows ===== */

enum { GOOD = -1, CUT = -2 };

/* at: where the first byte stands that no text has there; or GOOD, or CUT: it ends in the midst of
 * a character. */
static const struct {
    const char *name, *input;
    int at;
} rows[] = {
    {"nothing", "", GOOD},
    {"ASCII", "HEART-BEAT", GOOD},
    {"all of ASCII's ends", "\x01\x7f", GOOD},
    {"eight of ASCII", "12345678", GOOD},
    {"U+0080, the first of two", "\xc2\x80", GOOD},
    {"U+07FF, the last of two", "\xdf\xbf", GOOD},
    {"U+0800, the first of three", "\xe0\xa0\x80", GOOD},
    {"U+0FFF", "\xe0\xbf\xbf", GOOD},
    {"U+1000", "\xe1\x80\x80", GOOD},
    {"U+D7FF, before the surrogates", "\xed\x9f\xbf", GOOD},
    {"U+E000, behind them", "\xee\x80\x80", GOOD},
    {"U+FFFD", "\xef\xbf\xbd", GOOD},
    {"U+FFFF, no character but a scalar value", "\xef\xbf\xbf", GOOD},
    {"U+10000, the first of four", "\xf0\x90\x80\x80", GOOD},
    {"U+3FFFF", "\xf0\xbf\xbf\xbf", GOOD},
    {"U+40000", "\xf1\x80\x80\x80", GOOD},
    {"U+FFFFF", "\xf3\xbf\xbf\xbf", GOOD},
    {"U+100000", "\xf4\x80\x80\x80", GOOD},
    {"U+10FFFF, the last", "\xf4\x8f\xbf\xbf", GOOD},
    {"kosme, in Greek", "\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5", GOOD},
    {"all lengths", "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80z", GOOD},
    {"byte order mark", "\xef\xbb\xbfx", GOOD},
    {"continuation first", "\x80", 0},
    {"last continuation first", "\xbf", 0},
    {"continuation behind ASCII", "abc\x80", 3},
    {"one continuation too many", "\xc3\xa4\xa4", 2},
    {"overlong slash in two", "\xc0\xaf", 0},
    {"overlong in two, its last lead", "\xc1\xbf", 0},
    {"overlong slash in three", "\xe0\x80\xaf", 1},
    {"overlong U+07FF in three", "\xe0\x9f\xbf", 1},
    {"overlong slash in four", "\xf0\x80\x80\xaf", 1},
    {"overlong U+FFFF in four", "\xf0\x8f\xbf\xbf", 1},
    {"overlong NUL", "\xc0\x80", 0},
    {"surrogate U+D800", "\xed\xa0\x80", 1},
    {"surrogate U+DBFF", "\xed\xaf\xbf", 1},
    {"surrogate U+DC00", "\xed\xb0\x80", 1},
    {"surrogate U+DFFF", "\xed\xbf\xbf", 1},
    {"half a pair behind text", "half \xed\xa0\xbd", 6},
    {"a pair of surrogates", "\xed\xa0\xbd\xed\xb8\x80", 1},
    {"U+110000", "\xf4\x90\x80\x80", 1},
    {"U+13FFFF", "\xf4\xbf\xbf\xbf", 1},
    {"U+140000", "\xf5\x80\x80\x80", 0},
    {"lead of five", "\xf8\x88\x80\x80\x80", 0},
    {"lead of six", "\xfc\x84\x80\x80\x80\x80", 0},
    {"0xfe", "\xfe", 0},
    {"0xff", "\xff", 0},
    {"lead of two, then ASCII", "\xc3" "A", 1},
    {"lead of two, then a lead", "\xc3\xc3", 1},
    {"lead of three, then ASCII", "\xe2" "A", 1},
    {"two of three, then ASCII", "\xe2\x82" "A", 2},
    {"lead of four, then ASCII", "\xf0" "A", 1},
    {"two of four, then ASCII", "\xf0\x9f" "A", 2},
    {"three of four, then ASCII", "\xf0\x9f\x98" "A", 3},
    {"three of four, then a lead", "\xf0\x9f\x98\xf0", 3},
    {"Latin-1", "caf\xe9 au lait", 4},
    {"one of two", "\xc3", CUT},
    {"one of three", "\xe2", CUT},
    {"two of three", "ab\xe2\x82", CUT},
    {"one of four", "\xf0", CUT},
    {"two of four", "\xf0\x9f", CUT},
    {"three of four", "12345678\xf0\x9f\x98", CUT},
};

static int row_want(size_t row, size_t n)
{
    return rows[row].at >= 0 && n > (size_t)rows[row].at ? -1 : 0;
}

static void utf8_rows_stop_at_the_bad_byte_at_every_prefix(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (size_t n = 0, size = strlen(rows[i].input); n <= size; n++) {
            struct utf8 u = {0, 0, 0}, low = {0, 0, 0};
            int got = utf8_feed(&u, guard_copy(rows[i].input, n), n);
            if (got != row_want(i, n)) fail_msg("%s: %zu bytes: %d", rows[i].name, n, got);
            if (n == size && got == 0) assert_int_equal(u.need > 0, rows[i].at == CUT);
            assert_int_equal(utf8_feed(&low, guard_copy_low(rows[i].input, n), n), got);
        }
    }
}

static void utf8_valid_wants_whole_characters(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t n = strlen(rows[i].input);
        int got = utf8_valid(guard_copy(rows[i].input, n), n);
        if (got != (rows[i].at == GOOD)) fail_msg("%s: %d", rows[i].name, got);
        assert_int_equal(text_is_valid((const uint8_t *)rows[i].input, n), got);
    }
}

static void utf8_rows_are_the_same_split_at_every_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *p = rows[i].input;
        size_t n = strlen(p);
        for (size_t first = 0; first <= n; first++) {
            for (size_t second = first; second <= n; second++) {
                struct utf8 u = {0, 0, 0};
                int got = utf8_feed(&u, guard_copy(p, first), first);
                if (got == 0)
                    got = utf8_feed(&u, guard_copy(p + first, second - first), second - first);
                if (got == 0) got = utf8_feed(&u, guard_copy(p + second, n - second), n - second);
                if (got != row_want(i, n))
                    fail_msg("%s: split at %zu, %zu: %d", rows[i].name, first, second, got);
                if (got == 0) assert_int_equal(u.need > 0, rows[i].at == CUT);
            }
        }
    }
}

static void utf8_rows_stop_at_once_byte_by_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct utf8 u = {0, 0, 0};
        for (size_t n = 0, size = strlen(rows[i].input), bad = 0; n < size && !bad; n++) {
            int got = utf8_feed(&u, guard_copy(rows[i].input + n, 1), 1);
            if (got != row_want(i, n + 1)) fail_msg("%s: byte %zu: %d", rows[i].name, n, got);
            bad = got < 0;
        }
    }
}

/* The fast way over eight bytes of ASCII must not step over anything, wherever it stands. */
static void utf8_rows_are_the_same_among_ascii(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t n = strlen(rows[i].input);
        for (size_t before = 0; before <= 17; before++) {
            for (size_t behind = 0; behind <= 17; behind++) {
                uint8_t bytes[64];
                struct utf8 u = {0, 0, 0};
                memset(bytes, '~', sizeof bytes);
                memcpy(bytes + before, rows[i].input, n);
                n += before + behind;
                int got = utf8_valid(guard_copy(bytes, n), n);
                int want = rows[i].at == GOOD;
                if (got != want)
                    fail_msg("%s: %zu before, %zu behind: %d", rows[i].name, before, behind, got);
                got = utf8_feed(&u, guard_copy(bytes, n), n);
                want = rows[i].at >= 0 || (rows[i].at == CUT && behind > 0) ? -1 : 0;
                if (got != want)
                    fail_msg("%s: %zu before, %zu behind: fed %d", rows[i].name, before, behind,
                             got);
                n -= before + behind;
            }
        }
    }
}

static void utf8_accepts_every_scalar_value_and_nothing_between(void **state)
{
    uint8_t *p = guard_copy("1234", 4);
    (void)state;
    for (uint32_t c = 0; c <= 0x1fffff; c++) {
        uint8_t bytes[4];
        size_t n = scalar_encode(c, bytes);
        memcpy(p + 4 - n, bytes, n);
        if (utf8_valid(p + 4 - n, n) != is_scalar(c)) fail_msg("U+%04X", (unsigned)c);
    }
}

static void utf8_of_all_one_and_two_bytes_is_as_the_other_decoder_says(void **state)
{
    uint8_t *p = guard_copy("12", 2);
    (void)state;
    for (unsigned c = 0; c < 256; c++) {
        p[1] = (uint8_t)c;
        if (utf8_valid(p + 1, 1) != text_is_valid(p + 1, 1)) fail_msg("%02x", c);
    }
    for (unsigned c = 0; c < 65536; c++) {
        p[0] = (uint8_t)(c >> 8), p[1] = (uint8_t)(c & 255);
        if (utf8_valid(p, 2) != text_is_valid(p, 2)) fail_msg("%04x", c);
    }
}

static void utf8_of_all_leads_of_three_bytes_is_as_the_other_decoder_says(void **state)
{
    uint8_t *p = guard_copy("123", 3);
    (void)state;
    for (unsigned lead = 0xc0; lead < 256; lead++) {
        for (unsigned c = 0; c < 65536; c++) {
            p[0] = (uint8_t)lead, p[1] = (uint8_t)(c >> 8), p[2] = (uint8_t)(c & 255);
            if (utf8_valid(p, 3) != text_is_valid(p, 3)) fail_msg("%02x%04x", lead, c);
        }
    }
}

/* Each of the last three bytes from both sides of every border there is. */
static void utf8_of_all_leads_of_four_bytes_is_as_the_other_decoder_says(void **state)
{
    static const uint8_t edges[] = {0x00, 0x41, 0x7f, 0x80, 0x81, 0x8f, 0x90,
                                    0x9f, 0xa0, 0xbf, 0xc0, 0xe2, 0xf0, 0xff};
    uint8_t *p = guard_copy("1234", 4);
    (void)state;
    for (unsigned c = 0; c < 65536; c++) {
        p[0] = (uint8_t)(c >> 8), p[1] = (uint8_t)(c & 255);
        if (p[0] < 0xe0) continue;
        for (size_t i = 0; i < COUNT(edges) * COUNT(edges); i++) {
            p[2] = edges[i / COUNT(edges)], p[3] = edges[i % COUNT(edges)];
            if (utf8_valid(p, 4) != text_is_valid(p, 4)) fail_msg("%04x%02x%02x", c, p[2], p[3]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(utf8_rows_stop_at_the_bad_byte_at_every_prefix),
        cmocka_unit_test(utf8_valid_wants_whole_characters),
        cmocka_unit_test(utf8_rows_are_the_same_split_at_every_byte),
        cmocka_unit_test(utf8_rows_stop_at_once_byte_by_byte),
        cmocka_unit_test(utf8_rows_are_the_same_among_ascii),
        cmocka_unit_test(utf8_accepts_every_scalar_value_and_nothing_between),
        cmocka_unit_test(utf8_of_all_one_and_two_bytes_is_as_the_other_decoder_says),
        cmocka_unit_test(utf8_of_all_leads_of_three_bytes_is_as_the_other_decoder_says),
        cmocka_unit_test(utf8_of_all_leads_of_four_bytes_is_as_the_other_decoder_says),
    };
    return cmocka_run_group_tests_name("utf8", tests, NULL, NULL);
}
