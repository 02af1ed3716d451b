/* fuzz_frame.c - the parts that read and write frames: heads, masks, UTF-8, close codes
 *
 * The first byte of an input says which part reads it, the second one seeds the splits. A client's
 * side - masked heads, bytewise masks, text read as code points - is written here a second time,
 * from RFC 6455 and RFC 3629. */
#define FUZZ_NAME "frame"
#include "fuzz.h"

#include "../exportws.c"

/* ===== Heads ===== */

/* Writes a client's frame head; returns its length. */
static size_t masked_head(uint8_t out[14], unsigned fin, unsigned opcode, uint64_t size,
                          const uint8_t mask[4])
{
    unsigned extended = size > 65535 ? 8 : size > 125 ? 2 : 0;
    out[0] = (uint8_t)((fin ? 128U : 0U) + opcode);
    out[1] = (uint8_t)(128U + (extended == 8 ? 127U : extended == 2 ? 126U : (unsigned)size));
    for (unsigned i = 0; i < extended; i++) out[2 + i] = (uint8_t)(size >> 8 * (extended - 1 - i));
    memcpy(out + 2 + extended, mask, 4);
    return 6 + extended;
}

/* Whether a whole head keeps the rules of RFC 6455, 5.2 and 5.5, for a client. */
static int head_right(const uint8_t *p, uint64_t size, unsigned extended)
{
    static const char known[] = "\1\1\1\0\0\0\0\0\1\1\1\0\0\0\0\0";
    if (p[0] & 0x70 || !known[p[0] & 15] || p[1] < 128) return 0;
    if ((p[0] & 8) && (p[0] < 128 || p[1] > 128 + 125)) return 0;
    if (extended == 8 && (p[2] > 127 || size <= 65535)) return 0;
    return extended != 2 || size > 125;
}

/* What n bytes of a head must be read as: its length, 0: more, -1002. */
static int head_expected(const uint8_t *p, size_t n, uint64_t *size)
{
    unsigned extended = n > 1 && (p[1] & 127) == 127 ? 8 : n > 1 && (p[1] & 127) == 126 ? 2 : 0;
    const uint8_t first[3] = {n > 0 ? p[0] : 0x81, n > 1 ? p[1] : 128, 0};
    if (!head_right(first, 0, 0)) return -1002; /* as soon as these two say so */
    if (n < 6 + extended) return 0;
    *size = p[1] & 127;
    if (extended > 0) *size = 0;
    for (unsigned i = 0; i < extended; i++) *size += (uint64_t)p[2 + i] << 8 * (extended - 1 - i);
    return head_right(p, *size, extended) ? (int)(6 + extended) : -1002;
}

/* Every prefix says "more" or what the whole says; and encode(decode(x)) = x. */
static void fuzz_decode(struct bytes in)
{
    uint8_t again[14];
    struct frame f = {0, 0, {0}, 0};
    uint64_t size = 0;
    int whole = 0;
    if (in.n > 20) in.n = 20;
    for (size_t n = 0; n <= in.n; n++) {
        struct frame now = {0, 0, {0}, 0};
        int head = frame_decode(fuzz_guard(0, in.p, n), n, &now);
        HOLDS(head == head_expected(in.p, n, &size));
        HOLDS(head <= (int)n && (whole == 0 || head == whole));
        if (whole == 0) f = now;
        if (head > 0)
            HOLDS(f.fin == now.fin && f.opcode == now.opcode && f.size == now.size &&
                  memcmp(f.mask, now.mask, 4) == 0);
        whole = head;
    }
    if (whole <= 0) return;
    HOLDS(f.size == size && f.size < (uint64_t)1 << 63);
    HOLDS(masked_head(again, f.fin, f.opcode, f.size, f.mask) == (size_t)whole);
    HOLDS(memcmp(again, in.p, (size_t)whole) == 0);
}

/* Any head that a client can make is read as it was made; the server's own is the same but for the
 * mask. */
static void fuzz_encode(struct bytes in, uint8_t seed)
{
    static const uint8_t opcodes[] = {OP_TEXT, OP_BINARY, OP_CLOSE,
                                      OP_PING, OP_PONG,   OP_CONTINUATION};
    uint8_t head[14], ours[FRAME_HEAD_MAX + 2], mask[4];
    struct frame f;
    unsigned opcode = opcodes[seed % sizeof opcodes];
    uint64_t size = 0;
    for (unsigned i = 0; i < 4; i++) mask[i] = bytes_next(&in);
    for (unsigned i = 0; i < 8 && in.n > 0; i++) size = size << 8 | bytes_next(&in);
    size = opcode >= OP_CLOSE ? size % 126 : size & INT64_MAX;
    unsigned fin = opcode >= OP_CLOSE || seed & 128;
    size_t n = masked_head(head, fin, opcode, size, mask);
    HOLDS(frame_decode(fuzz_guard(0, head, n), n, &f) == (int)n);
    HOLDS(f.fin == (fin ? 1 : 0) && f.opcode == opcode && f.size == size &&
          memcmp(f.mask, mask, 4) == 0);
    memset(ours, 0xee, sizeof ours);
    size_t ours_n = frame_encode(ours, opcode, size);
    HOLDS(ours_n == frame_head_size(size) && ours_n + 4 == n && ours[ours_n] == 0xee);
    HOLDS(ours[0] == (0x80 | opcode) && ours[1] == (head[1] & 127) &&
          memcmp(ours + 2, head + 2, ours_n - 2) == 0);
}

/* ===== Masks ===== */

/* In pieces, in place, moved down or not: every byte is what bytewise masking makes it; twice is
 * not at all. */
static void fuzz_mask(struct bytes in, uint8_t seed)
{
    static uint8_t want[FUZZ_MOST];
    uint8_t mask[4];
    struct splits s = {seed * 17U};
    for (unsigned i = 0; i < 4; i++) mask[i] = bytes_next(&in);
    for (size_t i = 0; i < in.n; i++) want[i] = in.p[i] ^ mask[i % 4];
    uint8_t *from = fuzz_guard(0, in.p, in.n), *moved = fuzz_guard(1, in.p, in.n), *to = moved;
    for (size_t at = 0; at < in.n;) {
        size_t piece = splits_next(&s, in.n - at);
        frame_unmask(from + at, from + at, piece, mask, at);
        frame_unmask(to + at, moved + at, piece, mask, at);
        at += piece;
    }
    HOLDS(in.n == 0 || (memcmp(from, want, in.n) == 0 && memcmp(to, want, in.n) == 0));
    frame_unmask(from, from, in.n, mask, 0);
    HOLDS(in.n == 0 || memcmp(from, in.p, in.n) == 0);
    size_t down = 1 + seed % 31;
    if (in.n <= down) return;
    moved = fuzz_guard(1, in.p, in.n);
    frame_unmask(moved, moved + down, in.n - down, mask, down);
    HOLDS(memcmp(moved, want + down, in.n - down) == 0);
}

/* ===== UTF-8 ===== */

/* How long the character is that starts with c; 0: none does. */
static size_t character_size(unsigned c)
{
    return c < 0x80                ? 1
           : c >= 0xc0 && c < 0xe0 ? 2
           : c >= 0xe0 && c < 0xf0 ? 3
           : c >= 0xf0 && c < 0xf8 ? 4
                                   : 0;
}

/* Whether p[0..n), the start of a character of `size` bytes, can become one: some code point that
 * it can still be must need that many bytes and be one that Unicode has. */
static int character_possible(const uint8_t *p, size_t n, size_t size)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t low = size == 1 ? p[0] : p[0] & (0xffU >> (size + 1)), high;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0;
        low = low << 6 | (p[i] & 0x3f);
    }
    high = low;
    for (size_t i = n; i < size; i++) low <<= 6, high = high << 6 | 0x3f;
    if (high < least[size] || low > 0x10ffff) return 0;
    return low < 0xd800 || high > 0xdfff;
}

/* How many bytes of p[0..n) some text starts with; *whole: the text may end there. */
static size_t text_possible(const uint8_t *p, size_t n, int *whole)
{
    size_t at = 0;
    *whole = 1;
    while (at < n) {
        size_t size = character_size(p[at]), have = 1;
        while (size > 0 && have <= size && at + have <= n && character_possible(p + at, have, size))
            have++;
        have--;
        if (have == size && size > 0) {
            at += size;
            continue;
        }
        *whole = 0;
        return at + have;
    }
    return n;
}

/* Any split gives the same verdict, at the first byte that no text has there. */
static void fuzz_utf8(struct bytes in, uint8_t seed)
{
    int whole;
    size_t good = text_possible(in.p, in.n, &whole);
    for (unsigned i = 0; i < 3; i++) {
        struct splits s = {seed * 7U + i * 0x40000000U};
        struct utf8 u = {0, 0, 0};
        size_t at = 0;
        int result = 0;
        while (at < in.n && result == 0) {
            size_t piece = splits_next(&s, in.n - at);
            result = utf8_feed(&u, fuzz_guard(0, in.p + at, piece), piece);
            at += piece;
            HOLDS(result == (at > good ? -1 : 0));
        }
        if (result == 0) HOLDS((u.need == 0) == whole);
    }
    HOLDS(utf8_valid(fuzz_guard(0, in.p, in.n), in.n) == (good == in.n && whole));
    struct utf8 u = {0, 0, 0};
    HOLDS(utf8_feed(&u, in.p, good) == 0);
    if (good < in.n) HOLDS(utf8_feed(&u, in.p + good, 1) == -1);
}

/* The codes that may stand in a close frame (RFC 6455, 7.4, and its registry). */
static void fuzz_close_code(struct bytes in)
{
    static const uint16_t ranges[][2] = {{1000, 1003}, {1007, 1014}, {3000, 4999}};
    unsigned code = (unsigned)bytes_next(&in) << 8, inside = 0;
    code |= bytes_next(&in);
    for (unsigned i = 0; i < 3; i++) inside |= code >= ranges[i][0] && code <= ranges[i][1];
    HOLDS(close_code_valid(code) == (int)inside);
}

static void fuzz_one(const uint8_t *p, size_t n)
{
    static const char parts[] = "demuc";
    struct bytes in = {p, n};
    uint8_t part = bytes_next(&in), seed = bytes_next(&in);
    if (n < 2) return;
    if (!part || !strchr(parts, part)) part = (uint8_t)parts[part % (sizeof parts - 1)];
    switch (part) {
    case 'd': fuzz_decode(in); return;
    case 'e': fuzz_encode(in, seed); return;
    case 'm': fuzz_mask(in, seed); return;
    case 'u': fuzz_utf8(in, seed); return;
    default: fuzz_close_code(in); return;
    }
}
