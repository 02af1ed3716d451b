/* SHA-1, Base64, Sec-WebSocket-Key and -Accept, SipHash. */
#define EXPORTWS_NO_MAIN
#include "../exportws.c"
#include "test.h"

/* ===== SHA-1 ===== */

static void digest_hex(const uint8_t *p, size_t n, char *hex)
{
    for (size_t i = 0; i < n; i++) snprintf(hex + 2 * i, 3, "%02x", p[i]);
}

static void sha1_expect(const char *name, const uint8_t *p, size_t n, const char *want)
{
    uint8_t *digest = guard_room(20);
    char hex[41];
    sha1(p, n, digest);
    digest_hex(digest, 20, hex);
    if (strcmp(hex, want) != 0) fail_msg("%s: %s instead of %s", name, hex, want);
    assert_true(guard_room_kept(digest));
}

static void sha1_gives_the_digests_of_fips_180(void **state)
{
    static const struct {
        const char *name, *input;
        unsigned times;
        const char *want;
    } rows[] = {
        {"nothing", "", 1, "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
        {"abc", "abc", 1, "a9993e364706816aba3e25717850c26c9cd0d89d"},
        {"56 bytes", "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
         "84983e441c3bd26ebaae4aa1f95129e5e54670f1"},
        {"112 bytes",
         "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
         "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
         1, "a49b2446a02c645bf419f995b67091253a04a259"},
        {"ten whole blocks", "0123456701234567012345670123456701234567012345670123456701234567", 10,
         "dea356a2cddd90c7a7ecedc5ebb563934f460452"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint8_t bytes[1024];
        size_t n = 0, piece = strlen(rows[i].input);
        for (unsigned k = 0; k < rows[i].times; k++, n += piece)
            memcpy(bytes + n, rows[i].input, piece);
        sha1_expect(rows[i].name, guard_copy(bytes, n), n, rows[i].want);
    }
}

static void sha1_of_a_million_a(void **state)
{
    static uint8_t million[1000000];
    (void)state;
    memset(million, 'a', sizeof million);
    sha1_expect("a million a", million, sizeof million, "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
}

static void sha1_pads_right_at_every_boundary(void **state)
{
    static const struct {
        size_t n;
        const char *want;
    } rows[] = {
        {1, "86f7e437faa5a7fce15d1ddcb9eaeaea377667b8"},
        {3, "7e240de74fb1ed08fa08d38063f6a6a91462a815"},
        {55, "c1c8bbdc22796e28c0e15163d20899b65621d65a"},
        {56, "c2db330f6083854c99d4b5bfb6e8f29f201be699"},
        {57, "f08f24908d682555111be7ff6f004e78283d989a"},
        {63, "03f09f5b158a7a8cdad920bddc29b81c18a551f5"},
        {64, "0098ba824b5c16427bd7a1122a5a442a25ec644d"},
        {65, "11655326c708d70319be2610e8a57d9a5b959d3b"},
        {119, "ee971065aaa017e0632a8ca6c77bb3bf8b1dfc56"},
        {120, "f34c1488385346a55709ba056ddd08280dd4c6d6"},
        {121, "fa6b5a6f8ac27182f838fe7841ec6d2aef3ade29"},
        {127, "89d95fa32ed44a7c610b7ee38517ddf57e0bb975"},
        {128, "ad5b3fdbcb526778c2839d2f151ea753995e26a0"},
        {129, "d96debf1bdcbc896e6c134ea76e8141f40d78536"},
        {200, "e61cfffe0d9195a525fc6cf06ca2d77119c24a40"},
    };
    uint8_t bytes[200];
    (void)state;
    memset(bytes, 'a', sizeof bytes);
    for (size_t i = 0; i < COUNT(rows); i++) {
        char name[32];
        snprintf(name, sizeof name, "%zu times a", rows[i].n);
        sha1_expect(name, guard_copy(bytes, rows[i].n), rows[i].n, rows[i].want);
    }
}

/* The digests of 201 inputs, byte i of the n-th being 7 i + n, digested once more. */
static void sha1_of_all_lengths_from_0_to_200(void **state)
{
    static uint8_t digests[201 * 20];
    (void)state;
    for (size_t n = 0; n <= 200; n++) {
        uint8_t bytes[200];
        for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)(i * 7 + n);
        sha1(guard_copy(bytes, n), n, digests + 20 * n);
    }
    sha1_expect("all digests", digests, sizeof digests, "d0de06f4c5cb01efe13d538b17bbc0bd8144a1c2");
}

/* ===== Base64 ===== */

static void base64_gives_the_vectors_of_rfc_4648(void **state)
{
    static const struct {
        const char *input, *want;
    } rows[] = {
        {"", ""},         {"f", "Zg=="},         {"fo", "Zm8="},        {"foo", "Zm9v"},
        {"foob", "Zm9vYg=="}, {"fooba", "Zm9vYmE="}, {"foobar", "Zm9vYmFy"},
        {"\xff\xff\xff", "////"}, {"\xfb\xef\xbe", "++++"}, {"\xff", "/w=="}, {"\xff\xff", "//8="},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t n = strlen(rows[i].input), size = strlen(rows[i].want);
        uint8_t *room = guard_room(size);
        base64_encode(guard_copy(rows[i].input, n), n, (char *)room);
        assert_memory_equal(room, rows[i].want, size);
        assert_true(guard_room_kept(room));
    }
}

/* A decoder that knows nothing of the encoder: bits one by one. Returns bytes, or -1. */
static int bits_decode(const uint8_t *text, size_t n, uint8_t *out)
{
    unsigned value = 0, bits = 0;
    size_t used = 0, pad = 0;
    if (n % 4 != 0) return -1;
    for (size_t i = 0; i < n; i++) {
        int c = text[i], six = c >= 'A' && c <= 'Z'   ? c - 'A'
                               : c >= 'a' && c <= 'z' ? c - 'a' + 26
                               : c >= '0' && c <= '9' ? c - '0' + 52
                               : c == '+'             ? 62
                               : c == '/'             ? 63
                                                      : -1;
        if (c == '=') {
            pad++;
            continue;
        }
        if (six < 0 || pad > 0) return -1;
        value = value << 6 | (unsigned)six, bits += 6;
        if (bits < 8) continue;
        bits -= 8;
        out[used++] = (uint8_t)(value >> bits & 255);
    }
    return pad <= 2 && (value & ((1U << bits) - 1)) == 0 ? (int)used : -1;
}

static void base64_of_all_lengths_decodes_to_what_it_was(void **state)
{
    (void)state;
    for (size_t n = 0; n <= 100; n++) {
        uint8_t bytes[100], back[100], *room = guard_room((n + 2) / 3 * 4);
        for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)(i * 37 + n * 11);
        base64_encode(guard_copy(bytes, n), n, (char *)room);
        assert_int_equal(bits_decode(room, (n + 2) / 3 * 4, back), n);
        assert_memory_equal(back, bytes, n);
        assert_true(guard_room_kept(room));
    }
}

/* ===== Key ===== */

static void key_accept_answers_as_rfc_6455_does(void **state)
{
    static const struct {
        const char *key, *want;
    } rows[] = {
        {"dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}, /* RFC 6455, 1.3 */
        {"AQIDBAUGBwgJCgsMDQ4PEC==", "OfS0wDaT5NoxF2gqm7Zj2YtetzM="},
        {"AAAAAAAAAAAAAAAAAAAAAA==", "ICX+Yqv66kxgM0FcWaLWlFLwTAI="},
        {"AAECAwQFBgcICQoLDA0ODw==", "Bz3qJYTGdOe8gUSpLosEdiLKDrk="},
        {"/////////////////////w==", "XXpj4jYzLM2yUE0C7TIgMwTQh2g="},
        {"x3JJHMbDL1EzLkh9GBhXDw==", "HSmrc0sMlYUkAGmm5OPpG2HaGWk="},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint8_t *room = guard_room(28);
        key_accept(guard_copy(rows[i].key, 24), (char *)room);
        assert_memory_equal(room, rows[i].want, 28);
        assert_true(guard_room_kept(room));
    }
}

static void key_of_another_length_is_none(void **state)
{
    static const char key[] = "dGhlIHNhbXBsZSBub25jZQ==dGhlIHNhbXBsZSBub25jZQ==";
    (void)state;
    for (size_t n = 0; n <= 48; n++) assert_int_equal(key_valid(guard_copy(key, n), n), n == 24);
    assert_int_equal(key_valid(guard_copy("dGhlIHNhbXBsZSBub25j====", 24), 24), 0);
    assert_int_equal(key_valid(guard_copy("dGhlIHNhbXBsZSBub25jZQA=", 24), 24), 0);
    assert_int_equal(key_valid(guard_copy("dGhlIHNhbXBsZSBub25jZQ=A", 24), 24), 0);
}

static void key_has_base64_letters_and_two_pads_only(void **state)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    (void)state;
    for (size_t at = 0; at < 24; at++) {
        for (int c = 0; c < 256; c++) {
            char key[25] = "dGhlIHNhbXBsZSBub25jZQ==";
            int letter = c != 0 && strchr(letters, c) != NULL;
            key[at] = (char)c;
            int want = at < 22 ? letter : c == '=';
            if (key_valid(guard_copy(key, 24), 24) != want)
                fail_msg("byte %d at %zu: not %d", c, at, want);
        }
    }
}

/* RFC 4648, 3.5 lets a decoder refuse them. RFC 6455's own example in 4.1, the bytes 1 to 16, has
 * them; and what is not decoded needs no canonical form. */
static void key_may_have_spare_bits_that_are_not_zero(void **state)
{
    (void)state;
    assert_int_equal(key_valid(guard_copy("AQIDBAUGBwgJCgsMDQ4PEC==", 24), 24), 1);
    assert_int_equal(key_valid(guard_copy("AQIDBAUGBwgJCgsMDQ4PEA==", 24), 24), 1);
}

/* ===== SipHash-2-4 ===== */

/* Key 00 01 .. 0f, input 00 01 .. n - 1, the hash as eight bytes, low byte first. */
static const char sip_vectors[64][17] = {
    "310e0edd47db6f72", "fd67dc93c539f874", "5a4fa9d909806c0d", "2d7efbd796666785",
    "b7877127e09427cf", "8da699cd64557618", "cee3fe586e46c9cb", "37d1018bf50002ab",
    "6224939a79f5f593", "b0e4a90bdf82009e", "f3b9dd94c5bb5d7a", "a7ad6b22462fb3f4",
    "fbe50e86bc8f1e75", "903d84c02756ea14", "eef27a8e90ca23f7", "e545be4961ca29a1",
    "db9bc2577fcc2a3f", "9447be2cf5e99a69", "9cd38d96f0b3c14b", "bd6179a71dc96dbb",
    "98eea21af25cd6be", "c7673b2eb0cbf2d0", "883ea3e395675393", "c8ce5ccd8c030ca8",
    "94af49f6c650adb8", "eab8858ade92e1bc", "f315bb5bb835d817", "adcf6b0763612e2f",
    "a5c91da7acaa4dde", "716595876650a2a6", "28ef495c53a387ad", "42c341d8fa92d832",
    "ce7cf2722f512771", "e37859f94623f3a7", "381205bb1ab0e012", "ae97a10fd434e015",
    "b4a31508beff4d31", "81396229f0907902", "4d0cf49ee5d4dcca", "5c73336a76d8bf9a",
    "d0a704536ba93e0e", "925958fcd6420cad", "a915c29bc8067318", "952b79f3bc0aa6d4",
    "f21df2e41d4535f9", "87577519048f53a9", "10a56cf5dfcd9adb", "eb75095ccd986cd0",
    "51a9cb9ecba312e6", "96afadfc2ce666c7", "72fe52975a4364ee", "5a1645b276d592a1",
    "b274cb8ebf87870a", "6f9bb4203de7b381", "eaecb2a30b22a87f", "9924a43cc1315724",
    "bd838d3aafbf8db7", "0b1a2a3265d51aea", "135079a3231ce660", "932b2846e4d70666",
    "e1915f5cb1eca46c", "f325965ca16d629f", "575ff28e60381be5", "724506eb4c328a95",
};

static void siphash_gives_the_reference_vectors(void **state)
{
    uint8_t key[16], bytes[64];
    (void)state;
    for (size_t i = 0; i < 16; i++) key[i] = (uint8_t)i;
    for (size_t n = 0; n < 64; n++) {
        bytes[n] = (uint8_t)n;
        uint64_t hash = siphash(guard_copy_low(key, 16), guard_copy(bytes, n), n);
        char hex[17];
        for (size_t i = 0; i < 8; i++)
            snprintf(hex + 2 * i, 3, "%02x", (unsigned)(hash >> 8 * i & 255));
        assert_string_equal(hex, sip_vectors[n]);
    }
}

static void siphash_depends_on_every_bit_of_the_key(void **state)
{
    uint8_t key[16] = {0};
    const uint64_t plain = siphash(key, (const uint8_t *)"token", 5);
    (void)state;
    for (unsigned bit = 0; bit < 128; bit++) {
        key[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_true(siphash(key, (const uint8_t *)"token", 5) != plain);
        key[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_true(siphash(key, (const uint8_t *)"token", 5) == plain);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha1_gives_the_digests_of_fips_180),
        cmocka_unit_test(sha1_of_a_million_a),
        cmocka_unit_test(sha1_pads_right_at_every_boundary),
        cmocka_unit_test(sha1_of_all_lengths_from_0_to_200),
        cmocka_unit_test(base64_gives_the_vectors_of_rfc_4648),
        cmocka_unit_test(base64_of_all_lengths_decodes_to_what_it_was),
        cmocka_unit_test(key_accept_answers_as_rfc_6455_does),
        cmocka_unit_test(key_of_another_length_is_none),
        cmocka_unit_test(key_has_base64_letters_and_two_pads_only),
        cmocka_unit_test(key_may_have_spare_bits_that_are_not_zero),
        cmocka_unit_test(siphash_gives_the_reference_vectors),
        cmocka_unit_test(siphash_depends_on_every_bit_of_the_key),
    };
    return cmocka_run_group_tests_name("digest", tests, NULL, NULL);
}
