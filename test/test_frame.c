/* Frames: head decode and encode, unmasking, close codes. */
#define EXPORTWS_NO_MAIN
#include "../exportws.c"
#include "test.h"

static int parse_frame(void *state, const uint8_t *p, size_t n)
{
    return frame_decode(p, n, state);
}

/* ===== Heads ===== */

#define MASK "\x37\xfa\x21\x3d"

static const struct {
    struct row row;
    unsigned fin, opcode;
    uint64_t size;
} heads[] = {
    {ROW("Hello of RFC 6455, 5.7, masked", "\x81\x85" MASK "\x7f\x9f\x4d\x51\x58", 6), 1, OP_TEXT,
     5},
    {ROW("pong of RFC 6455, 5.7, masked", "\x8a\x85" MASK "\x7f\x9f\x4d\x51\x58", 6), 1, OP_PONG,
     5},
    {ROW("ping of 5.7, masked", "\x89\x85" MASK, 6), 1, OP_PING, 5},
    {ROW("first fragment of 5.7, masked", "\x01\x83" MASK, 6), 0, OP_TEXT, 3},
    {ROW("last fragment of 5.7, masked", "\x80\x82" MASK, 6), 1, OP_CONTINUATION, 2},
    {ROW("256 bytes of 5.7, masked", "\x82\xfe\x01\x00" MASK, 8), 1, OP_BINARY, 256},
    {ROW("64 KiB of 5.7, masked", "\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00" MASK, 14), 1,
     OP_BINARY, 65536},
    {ROW("empty text", "\x81\x80" MASK, 6), 1, OP_TEXT, 0},
    {ROW("empty fragment in between", "\x00\x80" MASK, 6), 0, OP_CONTINUATION, 0},
    {ROW("empty close", "\x88\x80" MASK, 6), 1, OP_CLOSE, 0},
    {ROW("close of 125", "\x88\xfd" MASK, 6), 1, OP_CLOSE, 125},
    {ROW("125 bytes", "\x81\xfd" MASK, 6), 1, OP_TEXT, 125},
    {ROW("126 bytes", "\x81\xfe\x00\x7e" MASK, 8), 1, OP_TEXT, 126},
    {ROW("127 bytes", "\x81\xfe\x00\x7f" MASK, 8), 1, OP_TEXT, 127},
    {ROW("65535 bytes", "\x81\xfe\xff\xff" MASK, 8), 1, OP_TEXT, 65535},
    {ROW("65536 bytes", "\x81\xff\x00\x00\x00\x00\x00\x01\x00\x00" MASK, 14), 1, OP_TEXT, 65536},
    {ROW("every byte of the length counts", "\x02\xff\x01\x23\x45\x67\x89\xab\xcd\xef" MASK, 14), 0,
     OP_BINARY, 0x0123456789abcdef},
    {ROW("2^63 - 1 bytes", "\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff" MASK, 14), 1, OP_TEXT,
     INT64_MAX},
};

static void frame_heads_are_read(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(heads); i++) {
        const struct row *row = &heads[i].row;
        struct frame f;
        memset(&f, 0x5a, sizeof f); /* nothing may be left of what was there */
        assert_int_equal(frame_decode(guard_copy(row->input, row->size), row->size, &f), row->want);
        if (f.fin != heads[i].fin || f.opcode != heads[i].opcode || f.size != heads[i].size)
            fail_msg("%s: fin %u, opcode %u, size %llu", row->name, f.fin, f.opcode,
                     (unsigned long long)f.size);
        assert_memory_equal(f.mask, MASK, 4);
    }
}

static void frame_heads_are_the_same_at_every_prefix(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(heads); i++)
        row_run(&heads[i].row, parse_frame, sizeof(struct frame));
}

static void frame_refuses_at_the_byte_that_is_wrong(void **state)
{
    static const struct row rows[] = {
        ROW("unmasked Hello of RFC 6455, 5.7", "\x81\x05", -1002),
        ROW("unmasked ping", "\x89\x00", -1002),
        ROW("unmasked, 126", "\x81\x7e", -1002),
        ROW("unmasked, 127", "\x81\x7f", -1002),
        ROW("RSV1", "\xc1", -1002),
        ROW("RSV2", "\xa1", -1002),
        ROW("RSV3", "\x91", -1002),
        ROW("all RSV", "\xf1", -1002),
        ROW("RSV1 on a continuation", "\x40", -1002),
        ROW("RSV1 on a ping", "\xc9", -1002),
        ROW("close of 126", "\x88\xfe", -1002),
        ROW("ping of 126", "\x89\xfe", -1002),
        ROW("ping of 127", "\x89\xff", -1002),
        ROW("pong of 126", "\x8a\xfe", -1002),
        ROW("close in fragments", "\x08", -1002),
        ROW("ping in fragments", "\x09", -1002),
        ROW("pong in fragments", "\x0a", -1002),
        ROW("bit 63", "\x81\xff\x80\x00\x00\x00\x00\x00\x00\x00" MASK, -1002),
        ROW("all bits", "\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff" MASK, -1002),
        ROW("0 in two bytes", "\x81\xfe\x00\x00" MASK, -1002),
        ROW("125 in two bytes", "\x81\xfe\x00\x7d" MASK, -1002),
        ROW("0 in eight bytes", "\x81\xff\x00\x00\x00\x00\x00\x00\x00\x00" MASK, -1002),
        ROW("126 in eight bytes", "\x81\xff\x00\x00\x00\x00\x00\x00\x00\x7e" MASK, -1002),
        ROW("65535 in eight bytes", "\x81\xff\x00\x00\x00\x00\x00\x00\xff\xff" MASK, -1002),
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) row_run(&rows[i], parse_frame, sizeof(struct frame));
}

static void frame_knows_six_opcodes_and_no_reserved_bit(void **state)
{
    (void)state;
    for (unsigned first = 0; first < 256; first++) {
        unsigned opcode = first % 16, data = opcode <= 2, control = opcode >= 8 && opcode <= 10;
        int want = first / 16 % 8 == 0 && (data || (control && first >= 128)) ? 6 : -1002;
        uint8_t head[6] = {0, 0x80, 1, 2, 3, 4};
        struct frame f;
        head[0] = (uint8_t)first;
        assert_int_equal(frame_decode(guard_copy(head, 6), 6, &f), want);
        assert_int_equal(frame_decode(guard_copy(head, 1), 1, &f), want == 6 ? 0 : want);
    }
}

static void frame_takes_every_small_length(void **state)
{
    (void)state;
    for (unsigned second = 0; second < 256; second++) {
        uint8_t head[14] = {0x82, 0, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff};
        struct frame f = {0};
        head[1] = (uint8_t)second;
        if (second == 0xfe) head[2] = 1;
        int want = second < 0x80 ? -1002 : second == 0xfe ? 8 : second == 0xff ? 14 : 6;
        assert_int_equal(frame_decode(guard_copy(head, 14), 14, &f), want);
        if (want == 6) assert_int_equal(f.size, second - 0x80);
    }
}

/* ===== Heads that are written ===== */

static void frame_encode_writes_the_frames_of_rfc_6455(void **state)
{
    static const struct {
        const char *name;
        unsigned opcode;
        uint64_t size;
        const char *want;
        size_t n;
    } rows[] = {
        {"Hello", OP_TEXT, 5, "\x81\x05", 2},
        {"ping", OP_PING, 5, "\x89\x05", 2},
        {"256 bytes", OP_BINARY, 256, "\x82\x7e\x01\x00", 4},
        {"64 KiB", OP_BINARY, 65536, "\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00", 10},
        {"empty", OP_TEXT, 0, "\x81\x00", 2},
        {"close", OP_CLOSE, 2, "\x88\x02", 2},
        {"125", OP_TEXT, 125, "\x81\x7d", 2},
        {"126", OP_TEXT, 126, "\x81\x7e\x00\x7e", 4},
        {"65535", OP_TEXT, 65535, "\x81\x7e\xff\xff", 4},
        {"every byte", OP_TEXT, 0x0123456789abcdef, "\x81\x7f\x01\x23\x45\x67\x89\xab\xcd\xef", 10},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint8_t *room = guard_room(rows[i].n);
        assert_int_equal(frame_head_size(rows[i].size), rows[i].n);
        assert_int_equal(frame_encode(room, rows[i].opcode, rows[i].size), rows[i].n);
        if (memcmp(room, rows[i].want, rows[i].n) != 0) fail_msg("%s", rows[i].name);
        assert_true(guard_room_kept(room));
    }
}

/* Every length up to 70,000: what is written, with a mask put in, reads back. */
static void frame_heads_read_back_what_they_write(void **state)
{
    static const uint8_t opcodes[] = {OP_CONTINUATION, OP_TEXT, OP_BINARY};
    (void)state;
    for (uint64_t size = 0; size < 70000; size++) {
        uint8_t head[FRAME_HEAD_MAX];
        struct frame f;
        size_t n = frame_encode(head, opcodes[size % 3], size);
        head[1] |= 0x80;
        memcpy(head + n, MASK, 4);
        assert_true(frame_decode(head, n + 3, &f) == 0);
        assert_true(frame_decode(head, n + 4, &f) == (int)n + 4);
        assert_true(f.fin && f.opcode == opcodes[size % 3] && f.size == size &&
                    memcmp(f.mask, MASK, 4) == 0);
    }
}

/* A client's frame built by hand reads back, too. */
static void frames_of_the_scripted_peer_are_frames(void **state)
{
    static const size_t sizes[] = {0, 1, 125, 126, 65535, 65536};
    static uint8_t payload[65536], out[65536 + FRAME_HEAD_MAX];
    (void)state;
    for (size_t i = 0; i < sizeof payload; i++) payload[i] = (uint8_t)(i * 7);
    for (size_t i = 0; i < COUNT(sizes); i++) {
        struct frame f;
        size_t n = script_frame(out, 0x82, payload, sizes[i], (const uint8_t *)MASK);
        int head = frame_decode(out, n, &f);
        assert_int_equal(n, (size_t)head + sizes[i]);
        assert_int_equal(f.size, sizes[i]);
        frame_unmask(out, out + head, sizes[i], f.mask, 0);
        assert_memory_equal(out, payload, sizes[i]);
    }
}

/* ===== Unmasking ===== */

static void naive_unmask(uint8_t *dst, const uint8_t *src, size_t n, const uint8_t mask[4],
                         uint64_t phase)
{
    for (size_t i = 0; i < n; i++) dst[i] = (uint8_t)(src[i] ^ mask[(i + phase) % 4]);
}

static void fill(uint8_t *p, size_t n)
{
    uint32_t x = 12345;
    for (size_t i = 0; i < n; i++) {
        x = x * 1103515245 + 12345;
        p[i] = (uint8_t)(x >> 16);
    }
}

static void unmask_gives_hello(void **state)
{
    uint8_t *p = guard_copy("\x7f\x9f\x4d\x51\x58", 5);
    (void)state;
    frame_unmask(p, p, 5, (const uint8_t *)MASK, 0);
    assert_memory_equal(p, "Hello", 5);
}

static void unmask_is_the_naive_loop_at_every_alignment(void **state)
{
    static const uint8_t mask[4] = {0x01, 0x80, 0x5a, 0xff};
    uint8_t bytes[96], want[96];
    (void)state;
    fill(bytes, sizeof bytes);
    for (size_t n = 0; n <= 70; n++) {
        for (size_t at = 0; at < 8; at++) { /* src at every alignment, dst ending at a page */
            for (uint64_t phase = 0; phase < 8; phase++) {
                uint8_t *dst = guard_room(n), *src = guard_copy_low(bytes, sizeof bytes) + at;
                naive_unmask(want, src, n, mask, phase);
                frame_unmask(dst, src, n, mask, phase);
                if (memcmp(dst, want, n) != 0)
                    fail_msg("%zu bytes, %zu, phase %d", n, at, (int)phase);
                assert_true(guard_room_kept(dst));
                assert_memory_equal(src, bytes + at, n);
            }
        }
        for (size_t at = 0; at < 8; at++) { /* dst at every alignment, src ending at a page */
            uint8_t *src = guard_copy(bytes, n), *dst = guard_room(96) + at;
            naive_unmask(want, src, n, mask, at);
            frame_unmask(dst, src, n, mask, at);
            assert_memory_equal(dst, want, n);
            for (size_t i = n; i < 96 - at; i++) assert_int_equal(dst[i], 0xa5);
        }
    }
}

static void unmask_in_place_and_downwards_over_itself(void **state)
{
    static const uint8_t mask[4] = {0x01, 0x80, 0x5a, 0xff};
    uint8_t bytes[70 + 24], want[70];
    (void)state;
    fill(bytes, sizeof bytes);
    for (size_t down = 0; down <= 16; down++) {
        for (size_t n = 0; n <= 70; n++) {
            for (uint64_t phase = 0; phase < 5; phase++) {
                uint8_t *dst = guard_copy(bytes, down + n);
                naive_unmask(want, bytes + down, n, mask, phase);
                frame_unmask(dst, dst + down, n, mask, phase);
                if (memcmp(dst, want, n) != 0)
                    fail_msg("%zu bytes, %zu down, phase %d", n, down, (int)phase);
                assert_memory_equal(dst + n, bytes + n,
                                    down); /* behind it stands what stood there */
            }
        }
    }
}

/* A payload that comes in pieces is unmasked as one, and the phase may be past 2^32. */
static void unmask_goes_on_in_the_midst(void **state)
{
    static const uint8_t mask[4] = {0x01, 0x80, 0x5a, 0xff};
    static const uint64_t far[] = {0, 0xffffffff, 0xfffffffffffffff0};
    uint8_t bytes[70], want[70], got[70];
    (void)state;
    fill(bytes, sizeof bytes);
    for (size_t k = 0; k < COUNT(far); k++) {
        naive_unmask(want, bytes, 70, mask, far[k] % 4);
        for (size_t first = 0; first <= 70; first++) {
            frame_unmask(got, bytes, first, mask, far[k]);
            frame_unmask(got + first, bytes + first, 70 - first, mask, far[k] + first);
            assert_memory_equal(got, want, 70);
        }
    }
}

/* ===== Close codes ===== */

static void close_codes_are_those_that_may_be_sent(void **state)
{
    (void)state;
    for (unsigned code = 0; code < 65536; code++) {
        int want = (code >= 3000 && code < 5000) || code == 1000 || code == 1001 || code == 1002 ||
                   code == 1003 || code == 1007 || code == 1008 || code == 1009 || code == 1010 ||
                   code == 1011 || code == 1012 || code == 1013 || code == 1014;
        if (close_code_valid(code) != want) fail_msg("%u", code);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frame_heads_are_read),
        cmocka_unit_test(frame_heads_are_the_same_at_every_prefix),
        cmocka_unit_test(frame_refuses_at_the_byte_that_is_wrong),
        cmocka_unit_test(frame_knows_six_opcodes_and_no_reserved_bit),
        cmocka_unit_test(frame_takes_every_small_length),
        cmocka_unit_test(frame_encode_writes_the_frames_of_rfc_6455),
        cmocka_unit_test(frame_heads_read_back_what_they_write),
        cmocka_unit_test(frames_of_the_scripted_peer_are_frames),
        cmocka_unit_test(unmask_gives_hello),
        cmocka_unit_test(unmask_is_the_naive_loop_at_every_alignment),
        cmocka_unit_test(unmask_in_place_and_downwards_over_itself),
        cmocka_unit_test(unmask_goes_on_in_the_midst),
        cmocka_unit_test(close_codes_are_those_that_may_be_sent),
    };
    return cmocka_run_group_tests_name("frame", tests, NULL, NULL);
}
