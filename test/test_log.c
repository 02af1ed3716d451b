/* Log: the shape of its lines, what is escaped, what is cut, who gets to see what.
 *
 * Link with -Wl,--wrap=clock_gettime -Wl,--wrap=time: time stands still but for clock_advance(). */
#define EXPORTWS_NO_MAIN
#include "../exportws.c"
#include "test.h"

#define TIME "time=2026-01-02T03:04:05Z "
#define CUT "\xe2\x80\xa6"

static const time_t start = 1767323045; /* 2026-01-02T03:04:05Z */

static struct unit u;
static struct script peers[2];

static int small_start(void **state)
{
    (void)state;
    unit_defaults(&u);
    fake_clock.realtime_ms = (uint64_t)start * 1000, fake_clock.seconds = start;
    u.o.capacity = 4, u.o.handshakes = 2, u.o.pushers = 2, u.o.hold_ms = 1000;
    unit_start(&u);
    for (size_t i = 0; i < COUNT(peers); i++) peers[i].fd = -1;
    return 0;
}

static int small_end(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(peers); i++) script_close(&peers[i]);
    if (u.w) unit_end(&u);
    return 0;
}

/* The newest lines of the log, the last one last. */
static void expect_line(const char *want)
{
    if (strcmp(unit_line(&u), want) != 0) fail_msg("'%s'\n  not '%s'", unit_line(&u), want);
}

/* Whether a line is logfmt: words of letters, '=', and values that are bare or in quotes, one blank
 * apart. What came from outside can then neither end the line nor make a word of its own. */
static int is_logfmt(const char *p)
{
    while (1) {
        size_t key = strspn(p, "abcdefghijklmnopqrstuvwxyz");
        if (key == 0 || p[key] != '=') return 0;
        p += key + 1;
        if (*p == '"') {
            p++;
            while (*p >= ' ' && *p <= '~' && *p != '"') p++;
            if (*p++ != '"') return 0;
        } else {
            for (int cut; (cut = strncmp(p, CUT, 3) == 0) ||
                          (*p > ' ' && *p <= '~' && *p != '"' && *p != '=');)
                p += cut ? 3 : 1;
        }
        if (*p == '\0') return 1;
        if (*p++ != ' ') return 0;
    }
}

/* ===== Time ===== */

static void time_is_written_as_rfc_3339_has_it(void **state)
{
    static const struct {
        time_t at;
        const char *want;
    } rows[] = {
        {0, "1970-01-01T00:00:00Z"},          {-1, "1969-12-31T23:59:59Z"},
        {59, "1970-01-01T00:00:59Z"},         {951782399, "2000-02-28T23:59:59Z"},
        {951782400, "2000-02-29T00:00:00Z"},  {1767323045, "2026-01-02T03:04:05Z"},
        {1798761599, "2026-12-31T23:59:59Z"}, {1709164800, "2024-02-29T00:00:00Z"},
        {2147483647, "2038-01-19T03:14:07Z"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        char got[64];
        struct text t = {got, 0, sizeof got};
        fake_clock.seconds = rows[i].at;
        log_time(&t);
        text_end(&t);
        assert_string_equal(got, rows[i].want);
    }
}

static void time_that_no_calendar_has_is_no_crash(void **state)
{
    char got[64];
    struct text t = {got, 0, sizeof got};
    (void)state;
    if (sizeof(time_t) < 8) skip();
    fake_clock.seconds = (time_t)INT64_MAX;
    log_time(&t);
    text_end(&t);
    assert_string_equal(got, "1900-01-00T00:00:00Z");
}

/* ===== Levels ===== */

static void lines_below_the_level_are_not_made(void **state)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    (void)state;
    for (int limit = EXPORTWS_LOG_ERROR; limit <= EXPORTWS_LOG_DEBUG; limit++) {
        for (int level = EXPORTWS_LOG_ERROR; level <= EXPORTWS_LOG_DEBUG; level++) {
            struct line l;
            char want[96];
            u.w->o.log_level = limit;
            assert_int_equal(log_begin(u.w, &l, level, "test"), level <= limit);
            if (level > limit) continue;
            log_end(u.w, &l);
            snprintf(want, sizeof want, TIME "level=%s event=test", names[level]);
            expect_line(want);
            assert_int_equal(u.levels[(u.count - 1) % UNIT_LINES], level);
        }
    }
    assert_int_equal(u.count, 4 + 3 + 2 + 1);
}

static void nobody_asked_no_line_made(void **state)
{
    struct line l;
    (void)state;
    u.w->o.on_log = NULL;
    assert_int_equal(log_begin(u.w, &l, EXPORTWS_LOG_ERROR, "test"), 0);
    assert_int_equal(exportws_send(u.w, "abc", "x", 1, EXPORTWS_TEXT), 0);
    assert_int_equal(u.count, 0);
}

static void chatty(void *user, int level, const char *line)
{
    unit_log(user, level, line);
    assert_int_equal(exportws_broadcast(u.w, "again", 5, EXPORTWS_TEXT), 0);
}

/* What a log callback does makes no line, so that it can't run for ever. */
static void log_callback_is_not_called_from_itself(void **state)
{
    (void)state;
    u.w->o.on_log = chatty;
    assert_int_equal(exportws_send(u.w, "abc", "x", 1, EXPORTWS_TEXT), 0);
    assert_int_equal(u.count, 1);
    assert_int_equal(u.w->m->pushed, 2);
    assert_int_equal(exportws_send(u.w, "abc", "x", 1, EXPORTWS_TEXT), 0);
    assert_int_equal(u.count, 2);
}

/* ===== Words ===== */

static const char *token_line(const char *token, size_t n, int level)
{
    struct line l;
    u.w->o.log_level = level;
    assert_int_equal(log_begin(u.w, &l, EXPORTWS_LOG_INFO, "test"), 1);
    log_token(u.w, &l, guard_copy(token, n), n);
    log_end(u.w, &l);
    return unit_line(&u) + sizeof TIME "level=info event=test " - 1;
}

static void token_is_cut_to_four_bytes_and_whole_at_debug(void **state)
{
    static const struct {
        const char *token, *cut, *whole;
    } rows[] = {
        {"ab12cd34", "token=ab12" CUT, "token=ab12cd34"},
        {"ab12c", "token=ab12" CUT, "token=ab12c"},
        {"ab12", "token=ab12" CUT, "token=ab12"},
        {"a", "token=a" CUT, "token=a"},
        {"", "token=" CUT, "token="},
        {"a\nb\"c", "token=a\\x0ab\\x22" CUT, "token=a\\x0ab\\x22c"},
        {"a b=c\\d", "token=a\\x20b\\x3d" CUT, "token=a\\x20b\\x3dc\\x5cd"},
        {CUT CUT, "token=\\xe2\\x80\\xa6\\xe2" CUT, "token=\\xe2\\x80\\xa6\\xe2\\x80\\xa6"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t n = strlen(rows[i].token);
        assert_string_equal(token_line(rows[i].token, n, EXPORTWS_LOG_INFO), rows[i].cut);
        assert_true(is_logfmt(unit_line(&u)));
        assert_string_equal(token_line(rows[i].token, n, EXPORTWS_LOG_DEBUG), rows[i].whole);
        assert_true(is_logfmt(unit_line(&u)));
    }
}

static void outside_text_is_cut_and_told_so(void **state)
{
    static const struct {
        size_t most;
        const char *want;
    } rows[] = {
        {0, "k=" CUT}, {1, "k=a" CUT}, {3, "k=a\\x20b" CUT}, {4, "k=a\\x20bc"}, {5, "k=a\\x20bc"}};
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct line l;
        assert_int_equal(log_begin(u.w, &l, EXPORTWS_LOG_INFO, "test"), 1);
        log_outside(&l, "k", guard_copy("a bc", 4), 4, rows[i].most);
        log_end(u.w, &l);
        assert_string_equal(unit_line(&u) + sizeof TIME "level=info event=test " - 1, rows[i].want);
    }
}

static void words_and_numbers_have_their_keys(void **state)
{
    struct line l;
    (void)state;
    assert_int_equal(log_begin(u.w, &l, EXPORTWS_LOG_WARN, "test"), 1);
    log_word(&l, "reason", "slow"), log_words(&l, "why", "two words");
    log_number(&l, "zero", 0), log_number(&l, "most", UINT64_MAX);
    log_end(u.w, &l);
    expect_line(TIME "level=warn event=test reason=slow why=\"two words\" zero=0 "
                     "most=18446744073709551615");
    assert_true(is_logfmt(unit_line(&u)));
}

static void line_is_cut_to_its_room(void **state)
{
    static uint8_t bytes[1000];
    struct line l;
    (void)state;
    memset(bytes, '\n', sizeof bytes);
    assert_int_equal(log_begin(u.w, &l, EXPORTWS_LOG_INFO, "test"), 1);
    log_outside(&l, "text", bytes, sizeof bytes, sizeof bytes);
    log_number(&l, "behind", 1);
    log_end(u.w, &l);
    assert_int_equal(strlen(unit_line(&u)), LINE_MAX_BYTES - 1);
    static const char begins[] = TIME "level=info event=test text=\\x0a\\x0a";
    assert_memory_equal(unit_line(&u), begins, sizeof begins - 1);
    assert_null(strchr(unit_line(&u), '\n'));
}

static void peers_are_written_as_addresses(void **state)
{
    static const struct {
        const char *bytes;
        unsigned port;
        const char *want;
    } rows[] = {
        {"\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\1", 4242, "127.0.0.1:4242"},
        {"\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff", 65535, "255.255.255.255:65535"},
        {"\0\0\0\0\0\0\0\0\0\0\xff\xff\0\0\0\0", 0, "0.0.0.0"},
        {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 80, "[::1]:80"},
        {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 0, "[::1]"},
        {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 8080, "[::]:8080"},
        {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 0, "unix"},
        {"\x20\1\xd\xb8\0\0\0\0\0\0\0\0\0\0\xab\xcd", 1, "[2001:db8::abcd]:1"},
        {"\x20\1\xd\xb8\1\2\3\4\5\6\7\x8\x9\xa\xb\xc", 1, "[2001:db8:102:304:506:708:90a:b0c]:1"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        char got[80];
        struct text t = {got, 0, sizeof got};
        text_address(&t, guard_copy(rows[i].bytes, 16), rows[i].port);
        text_end(&t);
        assert_string_equal(got, rows[i].want);
    }
}

/* ===== Events ===== */

/* A session's life, line by line. */
static void events_of_a_session(void **state)
{
    static uint8_t frame[64];
    static const uint8_t mask[4] = {1, 2, 3, 4};
    struct piece piece = {frame, 0};
    (void)state;
    script_join(&peers[0], &u, "ab12cd34");
    expect_line(TIME "level=info event=open token=ab12" CUT " peer=unix online=1 sessions=1");
    script_join(&peers[1], &u, "ab12cd34");
    expect_line(TIME "level=info event=open token=ab12" CUT " peer=unix online=1 sessions=2");
    piece.size = script_frame(frame, 0x81, "hi \"there\"\n", 11, mask);
    peers[0].pieces = &piece, peers[0].count = 1;
    script_play(&peers[0], &u);
    expect_line(TIME "level=info event=message token=ab12" CUT
                     " peer=unix size=11 text=hi\\x20\\x22there\\x22\\x0a");
    piece.size = script_frame(frame, 0x82, "\1\2\3", 3, mask);
    peers[0].next = 0;
    script_play(&peers[0], &u);
    expect_line(TIME "level=info event=message token=ab12" CUT " peer=unix size=3");
    piece.size = script_frame(frame, 0x88, "\x0f\xa0" "bye", 5, mask);
    peers[0].next = 0;
    script_play(&peers[0], &u);
    expect_line(TIME "level=info event=close token=ab12" CUT
                     " peer=unix reason=peer code=4000 online=1 sessions=1");
    script_close(&peers[1]);
    unit_settle(&u);
    expect_line(TIME "level=info event=close token=ab12" CUT
                     " peer=unix reason=peer code=1006 online=0 sessions=0");
    assert_int_equal(u.count, 6);
}

static void events_of_pushes_have_no_body(void **state)
{
    char want[200];
    unsigned long long id = u.w->next_id;
    (void)state;
    assert_int_equal(exportws_send(u.w, "ab12cd34", "https://secret", 14, EXPORTWS_TEXT), 0);
    snprintf(want, sizeof want, TIME "level=info event=hold token=ab12" CUT " id=%llu size=14", id);
    expect_line(want);
    clock_advance(1000);
    exportws_step(u.w, 0);
    snprintf(want, sizeof want,
             "time=2026-01-02T03:04:06Z level=info event=expire token=ab12" CUT " id=%llu size=14",
             id);
    expect_line(want);
    script_join(&peers[0], &u, "ab12cd34");
    id = u.w->next_id;
    assert_int_equal(exportws_send(u.w, "ab12cd34", "https://secret", 14, EXPORTWS_TEXT), 1);
    snprintf(want, sizeof want, "time=2026-01-02T03:04:06Z level=info event=push token=ab12" CUT
             " id=%llu size=14 delivered=1", id);
    expect_line(want);
    assert_int_equal(exportws_broadcast(u.w, "https://secret", 14, EXPORTWS_TEXT), 1);
    snprintf(want, sizeof want,
             "time=2026-01-02T03:04:06Z level=info event=push id=%llu size=14 delivered=1", id + 1);
    expect_line(want);
    for (unsigned i = 0; i < u.count; i++) assert_null(strstr(u.lines[i], "secret"));
}

static void events_of_refusals_have_status_and_reason(void **state)
{
    static const struct piece broken[] = {PIECE("GET / HTTP/1.1\r\n\r\n")};
    static const struct piece nowhere[] = {PIECE("GET /a HTTP/1.1\r\nHost: h\r\n\r\n")};
    (void)state;
    script_attach(&peers[0], &u, EXPORTWS_CLIENTS, broken, 1);
    script_play(&peers[0], &u);
    expect_line(TIME "level=info event=refuse status=400 peer=unix "
                     "why=\"this is not a proper HTTP/1.1 request\"");
    script_attach(&peers[1], &u, EXPORTWS_PUSH, nowhere, 1);
    script_play(&peers[1], &u);
    assert_non_null(strstr(unit_line(&u), " event=refuse status=404 peer=unix why=\""));
    assert_true(is_logfmt(unit_line(&u)));
}

static void events_of_the_end(void **state)
{
    (void)state;
    assert_int_equal(exportws_send(u.w, "ab12cd34", "x", 1, EXPORTWS_TEXT), 0);
    exportws_stop(u.w);
    while (exportws_step(u.w, 0) >= 0) {}
    assert_string_equal(u.lines[u.count - 2], TIME "level=info event=drain online=0 sessions=0");
    /* A message is lost: that is a warning. */
    expect_line(TIME "level=warn event=stop online=0 sessions=0 held=1");
    assert_int_equal(u.levels[u.count - 1], EXPORTWS_LOG_WARN);
}

static void stop_with_nothing_held_is_no_warning(void **state)
{
    (void)state;
    exportws_stop(u.w);
    while (exportws_step(u.w, 0) >= 0) {}
    expect_line(TIME "level=info event=stop online=0 sessions=0 held=0");
}

static void start_tells_version_and_memory(void **state)
{
    char want[160];
    (void)state;
    snprintf(want, sizeof want,
             TIME "level=info event=start version=" EXPORTWS_VERSION " capacity=4 memory=%zu",
             exportws_memory(&u.o));
    expect_line(""); /* unit_start forgets it, but keeps it */
    assert_string_equal(u.lines[0], want);
}

static void post_that_nobody_could_get_is_a_warning(void **state)
{
    (void)state;
    unit_end(&u);
    u.o.hold_ms = 0;
    unit_start(&u);
    assert_int_equal(exportws_post(u.w, "ab12cd34", "x", 1, EXPORTWS_TEXT), 0);
    unit_settle(&u);
    expect_line(TIME "level=warn event=refuse token=ab12" CUT " why=\"nobody there\"");
    assert_int_equal(u.w->m->posts_refused, 1);
}

/* ===== Forgery ===== */

/* The Java endpoint's fault: a newline in what a client sends makes a line of its own. */
static void forged_line_stays_in_its_value(void **state)
{
    static const char *const tokens[] = {"a%0Atime=2026-01-01T00:00:00Z%20level=error",
                                         "%22%20level%3derror",
                                         "%0d%0a",
                                         "%c2%85%e2%80%a8",
                                         "%1b%5b2J",
                                         "a%20b"};
    static const char *const texts[] = {"x\nlevel=error event=close",
                                        "\"",
                                        "a=b c=d",
                                        "\x1b[2J",
                                        "\xe2\x80\xa8",
                                        "\xc2\x9b;2J",
                                        "\x7f\x01",
                                        "\\x0a"};
    static uint8_t frame[64];
    static const uint8_t mask[4] = {1, 2, 3, 4};
    (void)state;
    for (size_t i = 0; i < COUNT(tokens); i++) {
        for (size_t k = 0; k < COUNT(texts); k++) {
            u.count = 0;
            u.w->o.log_level = k % 2 ? EXPORTWS_LOG_DEBUG : EXPORTWS_LOG_INFO;
            script_join(&peers[0], &u, tokens[i]);
            struct piece piece = {frame,
                                  script_frame(frame, 0x81, texts[k], strlen(texts[k]), mask)};
            peers[0].pieces = &piece, peers[0].count = 1;
            script_play(&peers[0], &u);
            script_close(&peers[0]);
            unit_settle(&u);
            assert_int_equal(u.count, 3); /* open, message, close */
            for (unsigned n = 0; n < u.count; n++)
                if (!is_logfmt(u.lines[n])) fail_msg("no logfmt: %s", u.lines[n]);
            assert_null(strstr(u.lines[1], "level=error"));
        }
    }
}

static void long_message_is_cut(void **state)
{
    static uint8_t frame[1100];
    static char text[1000];
    static const uint8_t mask[4] = {1, 2, 3, 4};
    char want[400];
    struct text t = {want, 0, sizeof want};
    (void)state;
    memset(text, ' ', sizeof text);
    text_add(&t, TIME "level=info event=message token=abc" CUT " peer=unix size=1000 text=");
    for (int i = 0; i < 48; i++) text_add(&t, "\\x20");
    text_add(&t, CUT), text_end(&t);
    script_join(&peers[0], &u, "abc");
    struct piece piece = {frame, script_frame(frame, 0x81, text, sizeof text, mask)};
    peers[0].pieces = &piece, peers[0].count = 1;
    script_play(&peers[0], &u);
    expect_line(want);
}

static void lines_of_the_test_itself_are_judged(void **state)
{
    (void)state;
    assert_true(is_logfmt("a=b"));
    assert_true(is_logfmt("a=b c=\"d e\" f=g" CUT " h="));
    assert_false(is_logfmt("a=b "));
    assert_false(is_logfmt("a=b  c=d"));
    assert_false(is_logfmt("a"));
    assert_false(is_logfmt("a=b\nc=d"));
    assert_false(is_logfmt("a=b=c"));
    assert_false(is_logfmt("a=\"b"));
    assert_false(is_logfmt("a=b\xc3\xa4"));
    assert_false(is_logfmt("a=b\x7f"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, small_start, small_end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(time_is_written_as_rfc_3339_has_it),
        TEST(time_that_no_calendar_has_is_no_crash),
        TEST(lines_below_the_level_are_not_made),
        TEST(nobody_asked_no_line_made),
        TEST(log_callback_is_not_called_from_itself),
        TEST(token_is_cut_to_four_bytes_and_whole_at_debug),
        TEST(outside_text_is_cut_and_told_so),
        TEST(words_and_numbers_have_their_keys),
        TEST(line_is_cut_to_its_room),
        TEST(peers_are_written_as_addresses),
        TEST(events_of_a_session),
        TEST(events_of_pushes_have_no_body),
        TEST(events_of_refusals_have_status_and_reason),
        TEST(events_of_the_end),
        TEST(stop_with_nothing_held_is_no_warning),
        TEST(start_tells_version_and_memory),
        TEST(post_that_nobody_could_get_is_a_warning),
        TEST(forged_line_stays_in_its_value),
        TEST(long_message_is_cut),
        TEST(lines_of_the_test_itself_are_judged),
    };
    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
