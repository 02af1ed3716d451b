/* Bytes: loads and stores, letters and digits, decimals, text under construction. */
#define EXPORTWS_NO_MAIN
#include "../exportws.c"
#include "test.h"

static void loads_assemble_bytes_in_order(void **state)
{
    static const uint8_t bytes[8] = {0x81, 0x02, 0x03, 0xf4, 0x05, 0x06, 0x07, 0xf8};
    (void)state;
    assert_int_equal(load_be32(guard_copy(bytes, 4)), 0x810203f4);
    assert_true(load_le64(guard_copy(bytes, 8)) == 0xf8070605f4030281);
    assert_int_equal(load_be32(guard_copy_low(bytes, 4)), 0x810203f4);
    assert_true(load_le64(guard_copy_low(bytes, 8)) == 0xf8070605f4030281);
}

static void store_writes_the_low_bytes_only(void **state)
{
    static const uint8_t want[8] = {0x81, 0x02, 0x03, 0xf4, 0x05, 0x06, 0x07, 0xf8};
    (void)state;
    for (size_t n = 0; n <= 8; n++) {
        uint8_t *room = guard_room(n);
        store_be(room, n, 0x810203f4050607f8);
        assert_memory_equal(room, want + 8 - n, n);
        assert_true(guard_room_kept(room));
    }
}

static void letters_and_digits_are_those_of_ascii(void **state)
{
    static const char upper[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
                      lower[] = "abcdefghijklmnopqrstuvwxyz";
    static const char digits[] = "0123456789abcdef";
    (void)state;
    for (int c = 0; c < 256; c++) {
        const char *at = c ? strchr(upper, c) : NULL;
        uint8_t small = at ? (uint8_t)lower[at - upper] : (uint8_t)c;
        const char *digit = small ? strchr(digits, small) : NULL;
        assert_int_equal(ascii_lower((uint8_t)c), small);
        assert_int_equal(ascii_digit((uint8_t)c), digit && digit < digits + 10);
        assert_int_equal(hex_value((uint8_t)c), digit ? (int)(digit - digits) : -1);
    }
}

static void ascii_equal_compares_all_bytes_in_any_case(void **state)
{
    static const struct {
        const char *name, *input;
        size_t size;
        const char *lower;
        int want;
    } rows[] = {
        {"nothing and nothing", "", 0, "", 1},
        {"nothing and something", "", 0, "a", 0},
        {"something and nothing", "a", 1, "", 0},
        {"same", "close", 5, "close", 1},
        {"upper case", "CLOSE", 5, "close", 1},
        {"mixed on both sides", "cLoSe", 5, "ClOsE", 1},
        {"shorter", "clos", 4, "close", 0},
        {"longer", "closed", 6, "close", 0},
        {"last byte differs", "closf", 5, "close", 0},
        {"first byte differs", "dlose", 5, "close", 0},
        {"NUL within", "clo\0e", 5, "clo", 0},
        {"NUL at the end", "close\0", 6, "close", 0},
        {"a bit apart but no letters", "a@b", 3, "a`b", 0},
        {"bracket is not brace", "[", 1, "{", 0},
        {"no case beyond ASCII", "\xc0", 1, "\xe0", 0},
        {"high bytes", "\xc3\xa4", 2, "\xc3\xa4", 1},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        int got = ascii_equal(guard_copy(rows[i].input, rows[i].size), rows[i].size, rows[i].lower);
        if (got != rows[i].want) fail_msg("%s: %d", rows[i].name, got);
    }
}

static void decimal_reads_all_or_nothing(void **state)
{
    static const struct {
        const char *name, *input;
        int want;
        uint64_t value;
    } rows[] = {
        {"nothing", "", -1, 0},
        {"zero", "0", 0, 0},
        {"leading zeros", "000000000000000000000000000042", 0, 42},
        {"every digit", "1234567890", 0, 1234567890},
        {"2^32 - 1", "4294967295", 0, UINT32_MAX},
        {"2^32", "4294967296", 0, 4294967296},
        {"2^64 - 2", "18446744073709551614", 0, UINT64_MAX - 1},
        {"2^64 - 1", "18446744073709551615", 0, UINT64_MAX},
        {"2^64", "18446744073709551616", 0, UINT64_MAX},
        {"2^64 + 4, whose last digit fits again", "18446744073709551620", 0, UINT64_MAX},
        {"too large stays so", "184467440737095516150", 0, UINT64_MAX},
        {"far too large", "99999999999999999999999999999999999", 0, UINT64_MAX},
        {"too large, then no digit", "99999999999999999999999x", -1, 0},
        {"plus", "+1", -1, 0},
        {"minus", "-1", -1, 0},
        {"blank before", " 1", -1, 0},
        {"blank behind", "1 ", -1, 0},
        {"hex", "1f", -1, 0},
        {"slash is before the digits", "1/", -1, 0},
        {"colon is behind them", "1:", -1, 0},
        {"point", "1.0", -1, 0},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint64_t value = 7777;
        size_t n = strlen(rows[i].input);
        int got = decimal_parse(guard_copy(rows[i].input, n), n, &value);
        if (got != rows[i].want) fail_msg("%s: %d", rows[i].name, got);
        if (value != (got == 0 ? rows[i].value : 7777)) fail_msg("%s: another value", rows[i].name);
    }
}

static void decimals_read_back_what_they_write(void **state)
{
    (void)state;
    uint64_t ten = 1;
    for (unsigned shift = 0; shift < 64 + 20; shift++) { /* powers of two, then of ten */
        for (int by = -1; by <= 1; by++) {
            uint64_t value = (shift < 64 ? (uint64_t)1 << shift : ten) + (uint64_t)by, back = 7777;
            char want[24];
            uint8_t *room = guard_room(20);
            struct text t = {(char *)room, 0, 20};
            text_decimal(&t, value);
            assert_int_equal(snprintf(want, sizeof want, "%llu", (unsigned long long)value), t.n);
            assert_memory_equal(room, want, t.n);
            assert_int_equal(decimal_parse(room, t.n, &back), 0);
            assert_true(back == value);
        }
        if (shift >= 64) ten *= 10;
    }
    assert_true(ten == 7766279631452241920U); /* 10^20 modulo 2^64: 20 of them were tried */
}

/* Room of every size: what fits is written, all is counted, nothing is written behind. */
static void text_is_cut_to_its_room_and_counted_whole(void **state)
{
    static const char whole[] = "one two42\\x0a07";
    const size_t n = sizeof whole - 1;
    (void)state;
    for (size_t size = 0; size <= n + 4; size++) {
        uint8_t *room = guard_room(size);
        struct text t = {(char *)room, 0, size};
        text_add(&t, "one "), text_bytes(&t, "two!", 3), text_bytes(&t, NULL, 0);
        text_decimal(&t, 42), text_escaped(&t, (const uint8_t *)"\n", 1), text_two(&t, 7);
        assert_int_equal(t.n, n);
        assert_memory_equal(room, whole, size < n ? size : n);
        assert_true(guard_room_kept(room));
        text_end(&t);
        if (size > 0) assert_int_equal(strlen((char *)room), size - 1 < n ? size - 1 : n);
        if (size > 0) assert_memory_equal(room, whole, size - 1 < n ? size - 1 : n);
        assert_true(guard_room_kept(room));
    }
}

static void text_without_room_only_counts(void **state)
{
    struct text t = {NULL, 0, 0};
    (void)state;
    text_add(&t, "abc"), text_decimal(&t, 1000), text_end(&t);
    assert_int_equal(t.n, 7);
}

static void two_digits_are_always_two(void **state)
{
    (void)state;
    for (int value = 0; value < 200; value++) {
        char got[3] = "", want[8];
        struct text t = {got, 0, 2};
        text_two(&t, value);
        snprintf(want, sizeof want, "%02d", value % 100);
        assert_int_equal(t.n, 2);
        assert_string_equal(got, want);
    }
}

static void escaped_text_has_no_byte_that_a_log_reader_minds(void **state)
{
    static const char plain[] = "!#$%&'()*+,-./0123456789:;<>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_`"
                                "abcdefghijklmnopqrstuvwxyz{|}~";
    (void)state;
    for (int c = 0; c < 256; c++) {
        const uint8_t byte = (uint8_t)c;
        char got[8] = "", want[8];
        struct text t = {got, 0, sizeof got};
        text_escaped(&t, guard_copy(&byte, 1), 1);
        snprintf(want, sizeof want, c && strchr(plain, c) ? "%c" : "\\x%02x", c);
        assert_int_equal(t.n, strlen(want));
        assert_string_equal(got, want);
    }
}

static void escaped_text_keeps_the_order(void **state)
{
    static const char input[] = "a=\"b\\c\" \r\n\xe2\x80\xa6";
    char got[64] = "";
    struct text t = {got, 0, sizeof got};
    (void)state;
    text_escaped(&t, guard_copy(input, sizeof input - 1), sizeof input - 1);
    assert_string_equal(got, "a\\x3d\\x22b\\x5cc\\x22\\x20\\x0d\\x0a\\xe2\\x80\\xa6");
}

static void smaller_and_larger_are_what_they_say(void **state)
{
    (void)state;
    assert_true(smaller(1, 2) == 1 && smaller(2, 1) == 1 && smaller(3, 3) == 3);
    assert_true(larger(1, 2) == 2 && larger(2, 1) == 2 && larger(3, 3) == 3);
    assert_true(smaller(0, SIZE_MAX) == 0 && larger(0, SIZE_MAX) == SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loads_assemble_bytes_in_order),
        cmocka_unit_test(store_writes_the_low_bytes_only),
        cmocka_unit_test(letters_and_digits_are_those_of_ascii),
        cmocka_unit_test(ascii_equal_compares_all_bytes_in_any_case),
        cmocka_unit_test(decimal_reads_all_or_nothing),
        cmocka_unit_test(decimals_read_back_what_they_write),
        cmocka_unit_test(text_is_cut_to_its_room_and_counted_whole),
        cmocka_unit_test(text_without_room_only_counts),
        cmocka_unit_test(two_digits_are_always_two),
        cmocka_unit_test(escaped_text_has_no_byte_that_a_log_reader_minds),
        cmocka_unit_test(escaped_text_keeps_the_order),
        cmocka_unit_test(smaller_and_larger_are_what_they_say),
    };
    return cmocka_run_group_tests_name("bytes", tests, NULL, NULL);
}
