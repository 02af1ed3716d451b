/* What is believed: signed tokens, and a trusted proxy. On a clock that is set. */
#define EXPORTWS_NO_MAIN
#include "../exportws.c"
#include "test.h"

/* ===== Signatures ===== */

#define K64 "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"

/* Made by openssl dgst -sha256 -hmac SECRET -binary | basenc --base64url | tr -d = */
static const struct {
    const char *text, *secret, *signature;
} signatures[] = {
    {"export-4711.1767323045", "s3cret", "pc7y0yf_nHWnhLEZ1OEhlxfEdkB4eLs_3BANTtOwnNk"},
    {"a.b.c.9999999999", "correct horse battery staple",
     "Mwi04CqrP6JaEFMn6X9PIQmIbczruGJkE0Gwbbxrf50"},
    {"z\xc3\xbcrich b\xc3\xbcro.1", K64, "abvIqlpvGS01CjWx37MQWpjo2IauR6xgCJ6n1pGULg4"},
    {"export-4711.1767323045", K64 "k", "p6AjI6aWodjp6DVFon_orIpJEWcBBJDG6VLOZM-kOhs"},
};

static void signature_is_that_of_openssl(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(signatures); i++)
        for (size_t k = 0; k < COUNT(signatures); k++)
            assert_int_equal(signature_valid(signatures[k].signature, signatures[i].text,
                                             signatures[i].secret), i == k);
}

/* Any other character at any place, one more, one less: also one that would decode to the same
 * bytes. */
static void signature_is_wrong_in_every_other_byte(void **state)
{
    char given[64];
    (void)state;
    for (size_t at = 0; at < 43; at++) {
        for (int c = 1; c < 256; c++) {
            strcpy(given, signatures[0].signature);
            given[at] = (char)c;
            int same = given[at] == signatures[0].signature[at];
            int got = signature_valid(given, signatures[0].text, signatures[0].secret);
            if (got != same) fail_msg("byte %d at %zu: %d", c, at, got);
        }
    }
    for (size_t n = 0; n < 43; n++) {
        strcpy(given, signatures[0].signature);
        given[n] = '\0';
        assert_int_equal(signature_valid(given, signatures[0].text, signatures[0].secret), 0);
    }
    snprintf(given, sizeof given, "%s=", signatures[0].signature);
    assert_int_equal(signature_valid(given, signatures[0].text, signatures[0].secret), 0);
}

static void signature_by_either_of_two_secrets(void **state)
{
    static const struct {
        const char *secrets;
        int want;
    } rows[] = {
        {"s3cret", 1},         {"s3cret\n", 1},         {"s3cret\r\n", 1},
        {"s3cret\nother", 1},  {"other\ns3cret", 1},    {"other\r\ns3cret\r\n", 1},
        {"other\n\ns3cret", 1}, {"a\nb\ns3cret", 0},    {"a\n\n\nb\ns3cret\n", 0},
        {"s3cret ", 0},        {" s3cret", 0},          {"S3cret", 0},
        {"s3cre\nt", 0},       {"", 0},                 {"\n\n", 0},
        {"\ns3cret", 1},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        int got = signature_valid(signatures[0].signature, signatures[0].text, rows[i].secrets);
        if (got != rows[i].want) fail_msg("'%s': %d", rows[i].secrets, got);
    }
}

/* HMAC takes an empty key; nobody may sign with it. */
static void empty_line_is_no_secret(void **state)
{
    static const char text[] = "a.9999999999",
                      signature[] = "J5fe9jF9VRD0HlchfqAfdj7ABVw0tS5U5o_sK62V4G4";
    uint8_t mac[32];
    char base64[45] = "";
    (void)state;
    hmac_sha256((const uint8_t *)"", 0, (const uint8_t *)text, strlen(text), mac);
    base64_encode(mac, 32, base64);
    for (char *p = base64; *p; p++) *p = *p == '+' ? '-' : *p == '/' ? '_' : *p == '=' ? '\0' : *p;
    assert_string_equal(base64, signature);
    assert_int_equal(signature_valid(signature, text, ""), 0);
    assert_int_equal(signature_valid(signature, text, "\n"), 0);
    assert_int_equal(signature_valid(signature, text, "a\n"), 0);
    assert_int_equal(signature_valid(signature, text, "a\n\n"), 0);
}

/* ===== Signed tokens ===== */

static struct exportws w;

/* NAME.EXPIRES signed with a secret of at most 200 bytes. */
static char *sign(const char *text, const char *secret)
{
    static char token[512];
    uint8_t mac[32];
    char base64[45] = "";
    hmac_sha256((const uint8_t *)secret, strlen(secret), (const uint8_t *)text, strlen(text), mac);
    base64_encode(mac, 32, base64);
    for (char *p = base64; *p; p++) *p = *p == '+' ? '-' : *p == '/' ? '_' : *p;
    snprintf(token, sizeof token, "%s.%.43s", text, base64);
    return token;
}

static void unsign_expect(char *token, int status, const char *why)
{
    char *room = (char *)guard_copy(token, strlen(token) + 1);
    struct refusal no = token_unsign(&w, room);
    if (no.status != status || !strstr(no.why, why))
        fail_msg("%s: %d %s", token, no.status, no.why);
    if (status == 0 && strncmp(room, token, strlen(room)) != 0) fail_msg("%s: now %s", token, room);
}

static void token_is_cut_to_its_name(void **state)
{
    static const struct {
        const char *text, *name;
    } rows[] = {
        {"a.9999999999", "a"},
        {"a.b.c.9999999999", "a.b.c"},
        {"..9999999999", "."},
        {"...9999999999", ".."},
        {"1.9999999999", "1"},
        {"a b\xc3\xa4%.9999999999", "a b\xc3\xa4%"},
        {"12345678.9999999999", "12345678"},
        {"a.0000000000000000000000000000009999999999", "a"},
        {"a.99999999999999999999999999999999999999", "a"},
        {"a.18446744073709551615", "a"},
    };
    (void)state;
    w.o.client_secret = "s3cret", w.o.max_token_bytes = 8;
    for (size_t i = 0; i < COUNT(rows); i++) {
        char *token = (char *)guard_copy(sign(rows[i].text, "s3cret"), strlen(rows[i].text) + 45);
        struct refusal no = token_unsign(&w, token);
        if (no.status != 0) fail_msg("%s: %d %s", rows[i].text, no.status, no.why);
        assert_string_equal(token, rows[i].name);
    }
}

static void token_that_is_not_signed_is_refused(void **state)
{
    static const char *const rows[] = {
        "a", "a.", ".", "..", "...", "a.b", "a.b.c", "a.1x.c", "a.-1.c", "a.+1.c", "a..c", "a. 1.c",
        "a.1 .c", ".c", "9999999999.c", "a-9999999999.pc7y0yf_nHWnhLEZ1OEhlxfEdkB4eLs_3BANTtOwnNk",
        "a.0x1.c", "a.1e9.c",
        /* too long only as long as it is not looked at: it has no name */
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    (void)state;
    w.o.client_secret = "s3cret", w.o.max_token_bytes = 8;
    for (size_t i = 0; i < COUNT(rows); i++)
        unsign_expect((char *)guard_copy_low(rows[i], strlen(rows[i]) + 1), 403, "not signed");
}

static void name_is_held_to_its_bound(void **state)
{
    (void)state;
    w.o.client_secret = "s3cret", w.o.max_token_bytes = 8;
    unsign_expect(sign("123456789.9999999999", "s3cret"), 414, "too long");
    unsign_expect(sign("123456.89.9999999999", "s3cret"), 414, "too long");
    unsign_expect(sign(".9999999999", "s3cret"), 404, "no token");
    w.o.max_token_bytes = 9;
    unsign_expect(sign("123456789.9999999999", "s3cret"), 0, "");
}

static void token_ends_in_the_second_it_expires(void **state)
{
    char text[32];
    (void)state;
    w.o.client_secret = "s3cret", w.o.max_token_bytes = 8;
    for (int late = -3; late <= 3; late++) {
        snprintf(text, sizeof text, "a.%lld", (long long)fake_clock.seconds - late);
        unsign_expect(sign(text, "s3cret"), late >= 0 ? 403 : 0, late >= 0 ? "expired" : "");
    }
    unsign_expect(sign("a.0", "s3cret"), 403, "expired");
    snprintf(text, sizeof text, "a.%lld", (long long)fake_clock.seconds + 2);
    unsign_expect(sign(text, "s3cret"), 0, "");
    clock_advance(1999);
    unsign_expect(sign(text, "s3cret"), 0, "");
    clock_advance(1);
    unsign_expect(sign(text, "s3cret"), 403, "expired");
}

/* A clock that fails says -1: nobody gets in who should not. */
static void token_is_expired_for_a_clock_that_fails(void **state)
{
    const time_t now = fake_clock.seconds;
    (void)state;
    w.o.client_secret = "s3cret", w.o.max_token_bytes = 8;
    fake_clock.seconds = (time_t)-1;
    unsign_expect(sign("a.18446744073709551615", "s3cret"), 403, "expired");
    fake_clock.seconds = now;
}

static void every_byte_of_a_token_counts(void **state)
{
    char token[80], *good = sign("ab.9999999999", "s3cret");
    size_t n = strlen(good);
    (void)state;
    w.o.client_secret = "s3cret", w.o.max_token_bytes = 8;
    memcpy(token, good, n + 1);
    unsign_expect(token, 0, "");
    for (size_t at = 0; at < n; at++) {
        for (int bit = 0; bit < 8; bit++) {
            token[at] = (char)(token[at] ^ 1 << bit);
            struct refusal no = {403, ""};
            if (token[at] != '\0') no = token_unsign(&w, (char *)guard_copy(token, n + 1));
            if (no.status != 403) fail_msg("bit %d at %zu: %d", bit, at, no.status);
            token[at] = (char)(token[at] ^ 1 << bit);
        }
    }
}

static void secrets_of_every_length_sign(void **state)
{
    char secret[201] = "";
    (void)state;
    w.o.max_token_bytes = 8;
    for (size_t n = 1; n <= 200; n++) {
        secret[n - 1] = (char)('!' + n % 90);
        w.o.client_secret = secret;
        char *token = sign("a.9999999999", secret);
        unsign_expect(token, 0, "");
        secret[n - 1] ^= 1;
        unsign_expect(token, 403, "signature");
        secret[n - 1] ^= 1;
    }
}

static void secret_may_change_in_place(void **state)
{
    char secret[32] = "old";
    (void)state;
    w.o.client_secret = secret, w.o.max_token_bytes = 8;
    unsign_expect(sign("a.9999999999", "old"), 0, "");
    unsign_expect(sign("a.9999999999", "new"), 403, "signature");
    strcpy(secret, "new\nold");
    unsign_expect(sign("a.9999999999", "old"), 0, "");
    unsign_expect(sign("a.9999999999", "new"), 0, "");
    strcpy(secret, "new");
    unsign_expect(sign("a.9999999999", "old"), 403, "signature");
    unsign_expect(sign("a.9999999999", "new"), 0, "");
}

/* ===== Proxies ===== */

static void bytes_of(const char *text, uint8_t ip[16])
{
    memset(ip, 0, 16);
    if (*text && ip_parse((const uint8_t *)text, strlen(text), ip) < 0) fail_msg("%s", text);
}

static void ip_is_read_as_16_bytes(void **state)
{
    static const struct {
        const char *text, *bytes;
        int family;
    } rows[] = {
        {"127.0.0.1", "\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\1", AF_INET},
        {"255.1.2.3", "\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\1\2\3", AF_INET},
        {"::1", "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", AF_INET6},
        {"[::1]", "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", AF_INET6},
        {"1:2::fffe", "\0\1\0\2\0\0\0\0\0\0\0\0\0\0\xff\xfe", AF_INET6},
        {"::ffff:1.2.3.4", "\0\0\0\0\0\0\0\0\0\0\xff\xff\1\2\3\4", AF_INET6},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t n = strlen(rows[i].text);
        uint8_t *ip = guard_room(16);
        assert_int_equal(ip_parse(guard_copy(rows[i].text, n), n, ip), rows[i].family);
        assert_memory_equal(ip, rows[i].bytes, 16);
        assert_true(guard_room_kept(ip));
        for (size_t k = 0; k < n; k++) ip_parse(guard_copy(rows[i].text, k), k, ip);
    }
}

static void proxy_is_trusted_by_its_first_bits(void **state)
{
    static const struct {
        const char *proxy, *peer; /* an empty peer: one on a Unix socket */
        int want;
    } rows[] = {
        {"127.0.0.1", "127.0.0.1", 1},      {"127.0.0.1", "127.0.0.2", 0},
        {"127.0.0.1", "::1", 0},            {"127.0.0.1", "::ffff:127.0.0.1", 1},
        {"::ffff:127.0.0.1", "127.0.0.1", 1}, {"127.0.0.1", "", 0},
        {"10.0.0.0/8", "10.255.255.255", 1}, {"10.0.0.0/8", "11.0.0.0", 0},
        {"10.0.0.0/8", "9.255.255.255", 0}, {"10.9.9.9/8", "10.1.2.3", 1},
        {"10.0.0.0/8", "a00::", 0},         {"192.168.4.0/22", "192.168.7.255", 1},
        {"192.168.4.0/22", "192.168.8.0", 0}, {"192.168.4.0/22", "192.168.3.255", 0},
        {"1.2.3.4/32", "1.2.3.4", 1},       {"1.2.3.4/32", "1.2.3.5", 0},
        {"1.2.3.4/31", "1.2.3.5", 1},       {"1.2.3.4/31", "1.2.3.6", 0},
        {"0.0.0.0/0", "203.0.113.7", 1},    {"0.0.0.0/0", "2001:db8::1", 0},
        {"0.0.0.0/0", "", 0},               {"::1", "::1", 1},
        {"::1", "::2", 0},                  {"[2001:db8::]/32", "2001:db8:ffff::1", 1},
        {"2001:db8::/32", "2001:db9::", 0}, {"2001:db8::/33", "2001:db8:8000::", 0},
        {"2001:db8::/33", "2001:db8:7fff::", 1}, {"unix:", "", 1},
        {"unix:", "127.0.0.1", 0},          {"unix:", "::1", 0},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *both[] = {"203.0.113.99", rows[i].proxy};
        uint8_t peer[16];
        bytes_of(rows[i].peer, peer);
        w.o.trusted_proxies = both + 1, w.o.trusted_proxy_count = 1;
        int got = proxy_trusted(&w, peer);
        if (got != rows[i].want) fail_msg("%s for %s: %d", rows[i].proxy, rows[i].peer, got);
        w.o.trusted_proxies = both, w.o.trusted_proxy_count = 2;
        assert_int_equal(proxy_trusted(&w, peer), rows[i].want);
        w.o.trusted_proxy_count = 0;
        assert_int_equal(proxy_trusted(&w, peer), 0);
    }
}

static void last_entry_of_the_header_is_the_peer(void **state)
{
    static const struct {
        const char *header, *peer; /* NULL: the proxy's own address stays */
        unsigned port;
    } rows[] = {
        {"203.0.113.7", "203.0.113.7", 0},
        {"203.0.113.7:4242", "203.0.113.7", 4242},
        {"203.0.113.7:65535", "203.0.113.7", 65535},
        {"1.1.1.1, 2.2.2.2", "2.2.2.2", 0},
        {"1.1.1.1,2.2.2.2:5\t", "2.2.2.2", 5},
        {"unknown, ,\t1.1.1.1", "1.1.1.1", 0},
        {"2001:db8::1", "2001:db8::1", 0},
        {"[2001:db8::1]", "2001:db8::1", 0},
        {"[2001:db8::1]:443", "2001:db8::1", 443},
        {"1.1.1.1, ::1", "::1", 0},
        {"::ffff:1.2.3.4", "1.2.3.4", 0},
        {"", NULL, 0},
        {" ", NULL, 0},
        {",", NULL, 0},
        {"1.1.1.1, ", NULL, 0},
        {"unknown", NULL, 0},
        {"1.1.1.1, unknown", NULL, 0},
        {"1.1.1.1, _hidden:80", NULL, 0},
        {"unix:", NULL, 0},
        {"example.com", NULL, 0},
        {"localhost", NULL, 0},
        {"1.1.1", NULL, 0},
        {"1.1.1.256", NULL, 0},
        {"1.1.1.1:", NULL, 0},
        {"1.1.1.1:x", NULL, 0},
        {"1.1.1.1:65536", NULL, 0},
        {"1.1.1.1:-1", NULL, 0},
        {"1.1.1.1 2.2.2.2", NULL, 0},
        {"1.1.1.1/8", NULL, 0},
        {"\"1.1.1.1\"", NULL, 0},
        {"[1.1.1.1]", NULL, 0},
        {"[1.1.1.1]:80", NULL, 0},
        {"[::1", NULL, 0},
        {"[::1]80", NULL, 0},
        {"[::1]:", NULL, 0},
        {"[::1]:65536", NULL, 0},
        {"[]", NULL, 0},
        {"[]:80", NULL, 0},
        {":80", NULL, 0},
        {"[", NULL, 0},
        {"fe80::1%lo", NULL, 0},
        {"for=1.1.1.1", NULL, 0},
        {"1.1.1.1;2.2.2.2", NULL, 0},
        {"1111111111111111111111111111111111111111111111111111111111111111111111111", NULL, 0},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct conn c = {.port = 99};
        uint8_t want[16];
        size_t n = strlen(rows[i].header);
        bytes_of("10.0.0.1", c.address);
        bytes_of(rows[i].peer ? rows[i].peer : "10.0.0.1", want);
        client_forwarded(&c, guard_copy(rows[i].header, n), n);
        if (memcmp(c.address, want, 16) != 0 || c.port != (rows[i].peer ? rows[i].port : 99))
            fail_msg("'%s'", rows[i].header);
        for (size_t k = 0; k < n; k++) client_forwarded(&c, guard_copy(rows[i].header, k), k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(signature_is_that_of_openssl),
        cmocka_unit_test(signature_is_wrong_in_every_other_byte),
        cmocka_unit_test(signature_by_either_of_two_secrets),
        cmocka_unit_test(empty_line_is_no_secret),
        cmocka_unit_test(token_is_cut_to_its_name),
        cmocka_unit_test(token_that_is_not_signed_is_refused),
        cmocka_unit_test(name_is_held_to_its_bound),
        cmocka_unit_test(token_ends_in_the_second_it_expires),
        cmocka_unit_test(token_is_expired_for_a_clock_that_fails),
        cmocka_unit_test(every_byte_of_a_token_counts),
        cmocka_unit_test(secrets_of_every_length_sign),
        cmocka_unit_test(secret_may_change_in_place),
        cmocka_unit_test(ip_is_read_as_16_bytes),
        cmocka_unit_test(proxy_is_trusted_by_its_first_bits),
        cmocka_unit_test(last_entry_of_the_header_is_the_peer),
    };
    return cmocka_run_group_tests_name("trust", tests, NULL, NULL);
}
