/* Options: every row's range, defaults, and what exportws_start says of a wrong one. */
#define EXPORTWS_NO_MAIN
#include "../exportws.c"
#include "test.h"

/* Neither memory nor a server for these options, and the reason names the one at fault (NULL: both
 * there). */
static void options_expect(const char *what, const exportws_options *o, const char *wrong)
{
    static uint64_t memory[4];
    char why[96] = "", want[96];
    size_t bytes = exportws_memory(o);
    if ((bytes == 0) != (wrong != NULL)) fail_msg("%s: %zu bytes", what, bytes);
    /* The memory is too little in any case. */
    assert_null(exportws_start(o, memory, sizeof memory, why, sizeof why));
    snprintf(want, sizeof want, wrong ? "out of range: %s" : "memory is too small", wrong);
    if (strcmp(why, want) != 0) fail_msg("%s: '%s', not '%s'", what, why, want);
}

/* ===== Numbers ===== */

/* Every number there is; the table of options must know each. */
static const struct {
    const char *name;
    size_t at;
    unsigned kind;
} numbers[] = {
    {"capacity", AT(capacity), OPTION_COUNT},
    {"handshakes", AT(handshakes), OPTION_COUNT},
    {"pushers", AT(pushers), OPTION_COUNT},
    {"per-token", AT(per_token), OPTION_COUNT},
    {"per-address", AT(per_address), OPTION_COUNT},
    {"max-token", AT(max_token_bytes), OPTION_BYTES},
    {"max-message", AT(max_message_bytes), OPTION_BYTES},
    {"max-push", AT(max_push_bytes), OPTION_BYTES},
    {"queue", AT(queue), OPTION_COUNT},
    {"history", AT(history), OPTION_COUNT},
    {"buffer", AT(buffer_bytes), OPTION_BYTES},
    {"hold", AT(hold_ms), OPTION_SECONDS},
    {"ping", AT(ping_ms), OPTION_SECONDS},
    {"pong", AT(pong_ms), OPTION_SECONDS},
    {"handshake-timeout", AT(handshake_timeout_ms), OPTION_SECONDS},
    {"close-timeout", AT(close_timeout_ms), OPTION_SECONDS},
    {"write-timeout", AT(write_timeout_ms), OPTION_SECONDS},
    {"drain", AT(drain_ms), OPTION_SECONDS},
};

static const struct option *option_named(const char *name)
{
    for (size_t i = 0; i < OPTIONS; i++)
        if (strcmp(options[i].name, name) == 0) return &options[i];
    fail_msg("no option %s", name);
    return NULL;
}

static void option_set(exportws_options *o, size_t at, unsigned kind, uint64_t value)
{
    unsigned ms = (unsigned)value;
    size_t size = (size_t)value;
    if (kind == OPTION_SECONDS) memcpy((char *)o + at, &ms, sizeof ms);
    else memcpy((char *)o + at, &size, sizeof size);
}

static void every_number_has_its_row(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(numbers); i++) {
        const struct option *row = option_named(numbers[i].name);
        assert_int_equal(row->at, numbers[i].at);
        assert_int_equal(row->kind, numbers[i].kind);
        assert_true(row->least < row->most);
    }
    for (size_t i = 0, n = 0; i < OPTIONS; i++) {
        unsigned kind = options[i].kind;
        n += kind == OPTION_COUNT || kind == OPTION_BYTES || kind == OPTION_SECONDS;
        if (i + 1 == OPTIONS) assert_int_equal(n, COUNT(numbers));
        for (size_t k = 0; k < i; k++) assert_string_not_equal(options[i].name, options[k].name);
    }
}

static void every_number_is_held_to_its_range(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(numbers); i++) {
        const struct option *row = option_named(numbers[i].name);
        const uint64_t largest = row->kind == OPTION_SECONDS ? UINT32_MAX : SIZE_MAX;
        const uint64_t values[] = {
            0,         row->least - 1, row->least,  row->least + 1, row->most / 2, row->most - 1,
            row->most, row->most + 1,  largest - 1, largest};
        for (size_t k = 0; k < COUNT(values); k++) {
            exportws_options o;
            char what[64];
            if (values[k] > largest) continue;
            exportws_defaults(&o);
            option_set(&o, row->at, row->kind, values[k]);
            snprintf(what, sizeof what, "%s %llu", row->name, (unsigned long long)values[k]);
            int good = values[k] >= row->least && values[k] <= row->most;
            /* Where a size_t has 32 bits, the sum may be more than it can say. */
            if (good && sizeof(size_t) < 8 && values[k] > 1U << 28) continue;
            options_expect(what, &o, good ? NULL : row->name);
        }
    }
}

/* Each in its range, but more than a size_t of 32 bits can say. */
static void sizes_have_to_be_within_reach_together(void **state)
{
    exportws_options o;
    (void)state;
    exportws_defaults(&o);
    o.max_push_bytes = 1U << 30, o.max_message_bytes = 1U << 30, o.buffer_bytes = 1U << 31;
    options_expect("4 GiB", &o, sizeof(size_t) < 8 ? "buffer and all else together" : NULL);
}

static void only_some_numbers_may_be_zero(void **state)
{
    static const char *const may[] = {"per-address", "hold", "history", "drain"};
    (void)state;
    for (size_t i = 0; i < COUNT(numbers); i++) {
        exportws_options o;
        size_t k = 0;
        exportws_defaults(&o);
        option_set(&o, numbers[i].at, numbers[i].kind, 0);
        while (k < COUNT(may) && strcmp(may[k], numbers[i].name) != 0) k++;
        options_expect(numbers[i].name, &o, k < COUNT(may) ? NULL : numbers[i].name);
    }
}

static void option_number_reads_no_neighbour(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(numbers); i++) {
        for (int fill = 0; fill < 256; fill += 255) {
            exportws_options o;
            memset(&o, fill, sizeof o);
            option_set(&o, numbers[i].at, numbers[i].kind, 12345);
            assert_int_equal(option_number(&o, option_named(numbers[i].name)), 12345);
        }
    }
}

/* ===== Defaults ===== */

static void defaults_are_those_of_the_contract(void **state)
{
    exportws_options o;
    (void)state;
    memset(&o, 0xff, sizeof o);
    exportws_defaults(&o);
    assert_null(o.listen), assert_null(o.push);
    assert_string_equal(o.path, "/app/ws/export-task/");
    assert_string_equal(o.heartbeat, "HEART-BEAT");
    assert_null(o.push_secret), assert_null(o.client_secret), assert_null(o.origins),
        assert_null(o.trusted_proxies);
    assert_true(o.origin_count == 0 && o.trusted_proxy_count == 0);
    assert_true(o.capacity == 1024 && o.per_token == 8 && o.per_address == 0);
    assert_true(o.handshakes == 256 && o.pushers == 64 && o.queue == 32 && o.history == 16);
    assert_true(o.max_token_bytes == 64 && o.max_message_bytes == 4096);
    assert_true(o.max_push_bytes == 65536 && o.buffer_bytes == 4194304);
    assert_true(o.hold_ms == 30000 && o.ping_ms == 25000 && o.pong_ms == 10000);
    assert_true(o.handshake_timeout_ms == 10000 && o.close_timeout_ms == 2000 &&
                o.write_timeout_ms == 20000);
    assert_true(o.drain_ms == 5000 && o.heartbeat_reply == 0 && o.demo == 0);
    assert_true(!o.on_upgrade && !o.on_open && !o.on_message && !o.on_close && !o.on_log &&
                !o.user);
    assert_int_equal(o.log_level, EXPORTWS_LOG_INFO);
    options_expect("defaults", &o, NULL);
    exportws_defaults(NULL);
}

static void no_options_at_all_are_refused(void **state)
{
    exportws_options zero;
    (void)state;
    options_expect("NULL", NULL, "options");
    memset(&zero, 0, sizeof zero);
    options_expect("all zero", &zero, "capacity");
}

/* ===== Words ===== */

static void path_begins_and_ends_with_a_slash(void **state)
{
    static const struct {
        const char *path;
        int good;
    } rows[] = {{"/", 1},
                {"/a/", 1},
                {"/app/ws/export-task/", 1},
                {"//", 1},
                {"/a~!$&'()*+,;=:@-._/", 1},
                {NULL, 0},
                {"", 0},
                {"a", 0},
                {"/a", 0},
                {"a/", 0},
                {"/a b/", 0},
                {"/a?b/", 0},
                {"/a#b/", 0},
                {"/a%20b/", 0},
                {"/a\tb/", 0},
                {"/a\nb/", 0},
                {"/\x7f/", 0},
                {"/\xc3\xa4/", 0},
                {" /a/", 0},
                {"/a/ ", 0}};
    static char longest[1026];
    exportws_options o;
    (void)state;
    exportws_defaults(&o);
    for (size_t i = 0; i < COUNT(rows); i++) {
        o.path = rows[i].path;
        options_expect(rows[i].path ? rows[i].path : "NULL", &o, rows[i].good ? NULL : "path");
    }
    memset(longest, 'p', sizeof longest);
    longest[0] = longest[1023] = '/', longest[1024] = '\0';
    o.path = longest;
    options_expect("1024 bytes", &o, NULL);
    longest[1023] = 'p', longest[1024] = '/', longest[1025] = '\0';
    options_expect("1025 bytes", &o, "path");
}

static void heartbeat_is_a_text_that_a_control_frame_could_hold(void **state)
{
    static char text[127];
    exportws_options o;
    (void)state;
    exportws_defaults(&o);
    o.heartbeat = NULL, options_expect("NULL", &o, "heartbeat");
    o.heartbeat = "", options_expect("empty", &o, NULL);
    o.heartbeat = "\xc3\xa4", options_expect("UTF-8", &o, NULL);
    o.heartbeat = "\xe4", options_expect("Latin-1", &o, "heartbeat");
    o.heartbeat = "\xc3", options_expect("half a character", &o, "heartbeat");
    memset(text, 'h', 126);
    o.heartbeat = text, options_expect("126 bytes", &o, "heartbeat");
    text[125] = '\0', options_expect("125 bytes", &o, NULL);
}

static void doors_need_an_address_or_none(void **state)
{
    static const struct {
        const char *address;
        int good;
    } rows[] = {
        {NULL, 1},
        {"127.0.0.1:8080", 1},
        {"0.0.0.0:0", 1},
        {"255.255.255.255:65535", 1},
        {":8080", 1},
        {"localhost:80", 1},
        {"[::1]:80", 1},
        {"[::]:0", 1},
        {"[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535", 1},
        {"unix:/run/exportws", 1},
        {"unix:x", 1},
        {"", 0},
        {"8080", 0},
        {":", 0},
        {"127.0.0.1", 0},
        {"127.0.0.1:", 0},
        {"127.0.0.1:65536", 0},
        {"127.0.0.1:99999999999999999999", 0},
        {"127.0.0.1:-1", 0},
        {"127.0.0.1:+1", 0},
        {"127.0.0.1:http", 0},
        {"127.0.0.1:80 ", 0},
        {" 127.0.0.1:80", 0},
        {"127.0.0:80", 0},
        {"256.0.0.1:80", 0},
        {"example.com:80", 0},
        {"*:80", 0},
        {"::1:80", 0},
        {"[::1]", 0},
        {"[::1:80", 0},
        {"::1]:80", 0},
        {"[]:80", 0},
        {"[127.0.0.1]:80", 0},
        {"[::g]:80", 0},
        {"[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.2555]:65535", 0},
        {"a-name-that-is-longer-than-any-address-could-be:80", 0},
        {"11111111111111111111111111111111111111111111111111111111111111111111111111111111111"
         "1111111111111111111111111111111111111111111111111111111111111111111111111111111:80", 0},
        {"unix:", 0},
    };
    exportws_options o;
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *what = rows[i].address ? rows[i].address : "NULL";
        exportws_defaults(&o);
        o.listen = rows[i].address;
        options_expect(what, &o, rows[i].good ? NULL : "listen");
        o.push = rows[i].address, o.listen = NULL;
        options_expect(what, &o, rows[i].good ? NULL : "push");
    }
}

static void addresses_are_read_to_the_last_bit(void **state)
{
    static const struct {
        const char *text;
        int family;
        unsigned port;
        const char *bytes;
    } rows[] = {
        {"127.0.0.1:8080", AF_INET, 8080, "\x7f\0\0\1"},
        {"255.1.2.3:65535", AF_INET, 65535, "\xff\1\2\3"},
        {"localhost:0", AF_INET, 0, "\x7f\0\0\1"},
        {":8081", AF_INET6, 8081, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"},
        {"[::1]:258", AF_INET6, 258, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1"},
        {"[1:2::fffe]:1", AF_INET6, 1, "\0\1\0\2\0\0\0\0\0\0\0\0\0\0\xff\xfe"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct sockaddr_storage to;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        int is_v4 = rows[i].family == AF_INET;
        memset(&to, 0xff, sizeof to);
        assert_int_equal(address_parse(rows[i].text, &to), is_v4 ? sizeof v4 : sizeof v6);
        assert_int_equal(to.ss_family, rows[i].family);
        memcpy(&v4, &to, sizeof v4), memcpy(&v6, &to, sizeof v6);
        assert_int_equal(ntohs(is_v4 ? v4.sin_port : v6.sin6_port), rows[i].port);
        if (is_v4) assert_memory_equal(&v4.sin_addr, rows[i].bytes, 4);
        else assert_memory_equal(&v6.sin6_addr, rows[i].bytes, 16);
        if (!is_v4) assert_true(v6.sin6_scope_id == 0 && v6.sin6_flowinfo == 0);
    }
}

static void unix_path_must_fit_an_address(void **state)
{
    static char address[5 + 200];
    const size_t room = sizeof((struct sockaddr_un *)0)->sun_path;
    exportws_options o;
    (void)state;
    exportws_defaults(&o);
    memset(address, 'p', sizeof address - 1);
    memcpy(address, "unix:", 5);
    o.listen = address;
    address[5 + room] = '\0';
    options_expect("no room for its end", &o, "listen");
    address[5 + room - 1] = '\0';
    options_expect("just fits", &o, NULL);
}

static void inherited_descriptor_is_a_small_number(void **state)
{
    static const struct {
        const char *address;
        int good;
    } rows[] = {{"fd:0", 1},  {"fd:3", 1}, {"fd:32767", 1}, {"fd:32768", 0}, {"fd:4294967296", 0},
                {"fd:-1", 0}, {"fd:", 0},  {"fd:x", 0},     {"fd:3x", 0},    {"fd: 3", 0}};
    exportws_options o;
    (void)state;
    exportws_defaults(&o);
    for (size_t i = 0; i < COUNT(rows); i++) {
        o.listen = rows[i].address;
        options_expect(rows[i].address, &o, rows[i].good ? NULL : "listen");
    }
}

static void secrets_and_origins_are_there_or_not(void **state)
{
    static const char *const origins[] = {"https://example.com", "*", NULL};
    exportws_options o;
    (void)state;
    exportws_defaults(&o);
    o.push_secret = "", options_expect("empty secret", &o, "push-secret");
    o.push_secret = "s", options_expect("secret", &o, NULL);
    o.client_secret = "", options_expect("empty client secret", &o, "client-secret");
    o.client_secret = "\ns", options_expect("empty first line", &o, "client-secret");
    o.client_secret = "\r\ns", options_expect("empty first line", &o, "client-secret");
    o.client_secret = "s", options_expect("client secret", &o, NULL);
    o.client_secret = "s\nt\n", options_expect("two client secrets", &o, NULL);
    o.origin_count = 1, options_expect("count without origins", &o, "origin");
    o.origins = origins, options_expect("origin", &o, NULL);
    o.origin_count = 2, options_expect("two origins", &o, NULL);
    o.origin_count = 3, options_expect("an origin that is NULL", &o, "origin");
    o.origins = origins + 2, o.origin_count = 1, options_expect("NULL first", &o, "origin");
    o.origin_count = 0, options_expect("origins without count", &o, NULL);
}

static void trusted_proxies_are_addresses_networks_or_unix(void **state)
{
    static const struct {
        const char *text;
        int good;
    } rows[] = {
        {"127.0.0.1", 1},     {"::1", 1},           {"[::1]", 1},         {"10.0.0.0/8", 1},
        {"10.1.2.3/0", 1},    {"10.1.2.3/32", 1},   {"2001:db8::/32", 1}, {"::/0", 1},
        {"[2001::]/16", 1},   {"2001:db8::/128", 1}, {"unix:", 1},        {"::ffff:1.2.3.4", 1},
        {NULL, 0},            {"", 0},              {"unix", 0},          {"unix:/run/x", 0},
        {"localhost", 0},     {"example.com", 0},   {"10.0.0.0/33", 0},   {"::/129", 0},
        {"10.0.0.0/", 0},     {"10.0.0.0/8x", 0},   {"10.0.0.0/-1", 0},   {"10.0.0.0/8/8", 0},
        {"/8", 0},            {"10.0.0/8", 0},      {"10.0.0.1:80", 0},   {"[10.0.0.1]", 0},
        {"[::1", 0},          {"[::1]:80", 0},      {" ::1", 0},          {"::1%lo", 0},
        {"10.0.0.0/99999999999999999999", 0},       {"x/8", 0},
        {"[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]/128", 1},
        {"[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.2555]/128", 0},
    };
    const char *proxies[2] = {"127.0.0.1", NULL};
    exportws_options o;
    (void)state;
    exportws_defaults(&o);
    o.trusted_proxy_count = 1, options_expect("count without proxies", &o, "trusted-proxy");
    o.trusted_proxies = proxies;
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *what = rows[i].text ? rows[i].text : "NULL";
        o.trusted_proxy_count = 2, proxies[1] = rows[i].text;
        options_expect(what, &o, rows[i].good ? NULL : "trusted-proxy");
        o.trusted_proxy_count = 1, options_expect("the first alone", &o, NULL);
    }
}

/* ===== The reason ===== */

static void reason_is_cut_to_its_room(void **state)
{
    static const char whole[] = "out of range: capacity";
    exportws_options o;
    uint64_t memory[4];
    (void)state;
    exportws_defaults(&o);
    o.capacity = 0;
    for (size_t size = 0; size <= sizeof whole + 3; size++) {
        char *why = (char *)guard_room(size);
        assert_null(exportws_start(&o, memory, sizeof memory, why, size));
        assert_true(guard_room_kept((uint8_t *)why));
        if (size == 0) continue;
        size_t n = size - 1 < sizeof whole - 1 ? size - 1 : sizeof whole - 1;
        assert_int_equal(strlen(why), n);
        assert_memory_equal(why, whole, n);
    }
    assert_null(exportws_start(&o, memory, sizeof memory, NULL, 100));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_number_has_its_row),
        cmocka_unit_test(every_number_is_held_to_its_range),
        cmocka_unit_test(sizes_have_to_be_within_reach_together),
        cmocka_unit_test(only_some_numbers_may_be_zero),
        cmocka_unit_test(option_number_reads_no_neighbour),
        cmocka_unit_test(defaults_are_those_of_the_contract),
        cmocka_unit_test(no_options_at_all_are_refused),
        cmocka_unit_test(path_begins_and_ends_with_a_slash),
        cmocka_unit_test(heartbeat_is_a_text_that_a_control_frame_could_hold),
        cmocka_unit_test(doors_need_an_address_or_none),
        cmocka_unit_test(addresses_are_read_to_the_last_bit),
        cmocka_unit_test(unix_path_must_fit_an_address),
        cmocka_unit_test(inherited_descriptor_is_a_small_number),
        cmocka_unit_test(secrets_and_origins_are_there_or_not),
        cmocka_unit_test(trusted_proxies_are_addresses_networks_or_unix),
        cmocka_unit_test(reason_is_cut_to_its_room),
    };
    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
