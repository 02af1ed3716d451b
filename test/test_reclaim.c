/*
 * test_reclaim.c - every slot, byte and descriptor comes back, whatever the peer does or omits.
 */
#include "server.h"

/* ===== What must not grow ===== */

struct footprint {
    long rss_kib;
    int fds;
};

/* Waits until nobody is connected but the one who asks, then measures. */
static void footprint_take(const struct server *s, struct footprint *f)
{
    static struct reply r;
    long long deadline = deadline_usual();
    struct conn c;
    conn_open(&c, s->push);
    for (;; pause_ms(5)) {
        push_on(&c, "GET", "/metrics", NULL, NULL, 0, &r);
        if (metric_in(r.body, "exportws_sessions") == 0 &&
            metric_in(r.body, "exportws_handshakes") == 0 &&
            metric_in(r.body, "exportws_pushers") == 1)
            break;
        if (time_left(deadline) == 0)
            harness_fail("somebody stays connected:\n%s", r.body);
    }
    f->rss_kib = server_rss_kib(s);
    f->fds = server_fds(s);
    conn_close(&c);
}

/* Every slot is free: as many sessions as the capacity says can be open, and not one more. */
static void slots_expect_all_free(const struct server *s, struct peer *all)
{
    static struct reply r;
    struct peer late;
    int i, n = (int)s->capacity;
    for (i = 0; i < n; i++) {
        char token[24];
        snprintf(token, sizeof token, "all-%d", i);
        peer_open(s, &all[i], token, NULL);
    }
    assert_int_equal(peer_try(s, &late, "late", NULL, 0, NULL, &r), 503);
    peer_close(&late);
    server_online_wait(s, n, n);
    for (i = 0; i < n; i++)
        peer_close(&all[i]);
    server_online_wait(s, 0, 0);
}

/* ===== Coming and going ===== */

/* One session that comes, and leaves in one of eight ways. */
static void cycle_run(const struct server *s, struct conn *pusher, int i)
{
    static const unsigned char half_frame[] = {0x81, 0xfe, 0x01};
    static struct reply r;
    struct peer p;
    char token[24];
    snprintf(token, sizeof token, "t%d", i % 5);
    peer_open(s, &p, token, NULL);
    switch (i % 8) {
    case 0:
        peer_leave(&p);
        break;
    case 1:
        peer_close(&p);
        break;
    case 2:
        peer_rst(&p);
        break;
    case 3:                             /* leaves without waiting for the answer */
        peer_send_close(&p, 1001, "away");
        peer_close(&p);
        break;
    case 4:                             /* a message that nobody will read */
        push_text_on(pusher, s, token, "37 %", &r);
        peer_rst(&p);
        break;
    case 5:                             /* in the middle of a frame */
        peer_send_raw(&p, half_frame, sizeof half_frame);
        peer_close(&p);
        break;
    case 6:                             /* in the middle of a message */
        peer_send_frame(&p, OP_TEXT, 0, "HEART", 5, 1);
        peer_rst(&p);
        break;
    default:                            /* wrongly: an unmasked frame */
        peer_send_frame(&p, OP_TEXT, 1, "x", 1, 0);
        peer_expect_close(&p, 1002);
        peer_close(&p);
    }
}

/* Cycles, with a look now and then that the slots came back: there are 64, half of them may lag. */
static void cycles_run(const struct server *s, int from, int to)
{
    struct conn pusher;
    int i;
    conn_open(&pusher, s->push);
    for (i = from; i < to; i++) {
        if (i % 32 == 0)
            server_online_wait(s, 0, 0);
        cycle_run(s, &pusher, i);
    }
    conn_close(&pusher);
}

static void twenty_thousand_cycles_leave_nothing_behind(void **state)
{
    enum { EARLY = 1000, ALL = 20000, SLACK_KIB = 64 };
    static const char *const args[] = {"--capacity", "64",    "--hold",  "0",
                                       "--log",      "error", "--drain", "600", NULL};
    static struct server s;
    static struct peer all[64];
    struct footprint early, late;
    (void)state;
    server_start(&s, args);
    cycles_run(&s, 0, EARLY);
    slots_expect_all_free(&s, all);
    footprint_take(&s, &early);
    cycles_run(&s, EARLY, ALL);
    slots_expect_all_free(&s, all);
    footprint_take(&s, &late);
    assert_int_equal(late.fds, early.fds);
    /* The kernel counts in batches; what valgrind needs for itself grows. */
    if (labs(late.rss_kib - early.rss_kib) > SLACK_KIB && !getenv("EXPORTWS_TEST_VALGRIND"))
        harness_fail("resident memory went from %ld to %ld KiB", early.rss_kib, late.rss_kib);
    assert_int_equal(server_metric(&s, "exportws_sessions_opened_total"), ALL + 2 * 64);
    assert_int_equal(server_metric(&s, "exportws_sessions_closed_total{reason=\"protocol\"}"),
                     ALL / 8);
    assert_int_equal(server_metric(&s, "exportws_buffer_used_bytes"), 0);
    server_check_books(&s);
    server_stop(&s);                    /* at once: it drains, and finds nobody to wait for */
}

static void refused_and_unfinished_requests_leave_nothing_behind(void **state)
{
    static const char *const args[] = {"--capacity", "8", "--handshake-timeout", "60", NULL};
    static struct server s;
    static struct peer all[8];
    static struct reply r;
    struct footprint before, after;
    int i;
    (void)state;
    server_start(&s, args);
    footprint_take(&s, &before);
    for (i = 0; i < 400; i++) {
        struct conn c;
        conn_open(&c, i % 4 == 3 ? s.push : s.clients);
        conn_send_text(&c, i % 2 ? "GET / HT" : "GET /nobody HTTP/1.1\r\nHost: localhost\r\n\r\n");
        if (i % 4 == 0)
            reply_read(&c, &r);
        if (i % 3 == 0)
            conn_rst(&c);
        else
            conn_close(&c);
    }
    footprint_take(&s, &after);
    assert_int_equal(after.fds, before.fds);
    slots_expect_all_free(&s, all);
    server_check_books(&s);
    server_stop(&s);
}

/* ===== Timeouts ===== */

static void handshake_timeout_answers_408(void **state)
{
    static const char *const starts[] = {"", "GET ", "GET /app/ws/export-task/x HTTP/1.1\r\n"};
    static const char *const args[] = {"--handshake-timeout", "0.3", NULL};
    static struct server s;
    static struct reply r;
    size_t i;
    (void)state;
    server_start(&s, args);
    for (i = 0; i < sizeof starts / sizeof *starts; i++) {
        struct conn c;
        long long begin = now_ms();
        conn_open(&c, s.clients);
        conn_send_text(&c, starts[i]);
        reply_read(&c, &r);
        assert_int_equal(r.status, 408);
        assert_true(now_ms() - begin >= 250);
        conn_expect_eof(&c);
        conn_close(&c);
    }
    server_metric_wait(&s, "exportws_handshakes", 0);
    assert_int_equal(server_metric(&s, "exportws_refused_total{status=\"408\"}"), 3);
    server_stop(&s);
}

/* A byte now and then does not buy more time: the head as a whole has a deadline. */
static void handshake_timeout_is_not_fooled_by_a_drip(void **state)
{
    static const char *const args[] = {"--handshake-timeout", "0.5", NULL};
    static struct server s;
    static struct reply r;
    struct conn c;
    long long deadline = deadline_usual();
    int got;
    (void)state;
    server_start(&s, args);
    conn_open(&c, s.clients);
    conn_send_text(&c, "GET /app/ws/export-task/");
    while ((got = conn_fill(&c, now_ms() + 40)) == READ_TIMEOUT && time_left(deadline) > 0)
        conn_send(&c, "x", 1);
    assert_int_equal(got, READ_OK);
    reply_read(&c, &r);
    assert_int_equal(r.status, 408);
    conn_expect_eof(&c);
    conn_close(&c);
    server_stop(&s);
}

static void close_timeout_frees_the_slot_of_a_mute_peer(void **state)
{
    static const char *const args[] = {"--capacity", "1", "--close-timeout", "0.3", NULL};
    static struct server s;
    static struct reply r;
    struct peer mute, fresh;
    long long begin, deadline = deadline_usual();
    int refused = 0;
    (void)state;
    server_start(&s, args);
    begin = now_ms();
    peer_open(&s, &mute, "export", NULL);
    push_request(&s, "DELETE", DEFAULT_PATH "export", NULL, NULL, 0, &r);
    assert_int_equal(r.status, 200);
    assert_int_equal(json_number(r.body, "closed"), 1);
    peer_expect_close(&mute, 1000);     /* and never answers it */
    while (peer_try(&s, &fresh, "export", NULL, 0, NULL, &r) == 503 && time_left(deadline) > 0) {
        peer_close(&fresh);             /* its slot is still its own */
        refused++;
        pause_ms(5);
    }
    assert_int_equal(r.status, 101);
    assert_true(refused > 0 || now_ms() - begin >= 250);
    peer_expect_alive(&fresh);
    peer_expect_eof(&mute);
    assert_int_equal(server_metric(&s, "exportws_sessions_closed_total{reason=\"ended\"}"), 1);
    server_check_books(&s);
    peer_close(&mute);
    peer_close(&fresh);
    server_stop(&s);
}

static void write_timeout_frees_the_slot_of_a_stuck_peer(void **state)
{
    enum { SIZE = 65000, MESSAGES = 200 };
    static const char *const args[] = {"--write-timeout", "0.5", "--close-timeout", "0.5",
                                       "--queue", "1000", "--buffer", "32m", "--hold", "0.5", NULL};
    static char body[SIZE + 1];
    static struct server s;
    static struct reply r;
    struct peer stuck, well;
    struct conn pusher;
    int i;
    (void)state;
    memset(body, 'x', SIZE);
    server_start(&s, args);
    peer_open_slow(&s, &stuck, "stuck", 4096);
    peer_open(&s, &well, "well", NULL);
    conn_open(&pusher, s.push);
    for (i = 0; i < MESSAGES; i++) {    /* more than the kernel takes, less than the queue */
        push_text_on(&pusher, &s, "stuck", body, &r);
        if (r.status != 200)
            break;                      /* already closed: a slow machine */
    }
    conn_close(&pusher);
    server_online_wait(&s, 1, 1);
    peer_expect_alive(&well);
    assert_int_equal(server_metric(&s, "exportws_sessions_closed_total{reason=\"slow\"}"), 1);
    server_log_wait(&s, "reason=slow", 1);
    server_metric_wait(&s, "exportws_buffer_used_bytes", 0);
    server_check_books(&s);
    peer_close(&stuck);
    peer_close(&well);
    server_stop(&s);
}

/* ===== Draining ===== */

static void drain_closes_with_1001_and_ends_at_once(void **state)
{
    static const char *const args[] = {"--drain", "60", "--close-timeout", "60", NULL};
    static struct server s;
    struct peer p[3];
    long long begin;
    int i;
    (void)state;
    server_start(&s, args);
    for (i = 0; i < 3; i++)
        peer_open(&s, &p[i], "export", NULL);
    begin = now_ms();
    server_signal(&s, SIGTERM);
    for (i = 0; i < 3; i++) {
        peer_expect_close(&p[i], 1001);
        peer_send_close(&p[i], 1001, "");
        peer_expect_eof(&p[i]);
        peer_close(&p[i]);
    }
    server_wait(&s, 0, deadline_usual());
    assert_true(now_ms() - begin < 20000 * harness_slow());
}

static void drain_does_not_wait_for_a_mute_peer(void **state)
{
    static const char *const args[] = {"--drain", "0.4", "--close-timeout", "60", NULL};
    static struct server s;
    struct peer p;
    long long begin;
    (void)state;
    server_start(&s, args);
    peer_open(&s, &p, "export", NULL);
    begin = now_ms();
    server_signal(&s, SIGINT);
    server_wait(&s, 0, deadline_usual());
    assert_true(now_ms() - begin >= 300);
    peer_expect_close(&p, 1001);
    peer_close(&p);
}

static void second_signal_ends_at_once(void **state)
{
    static const char *const args[] = {"--drain", "60", "--close-timeout", "60", NULL};
    static struct server s;
    struct peer p;
    int status = 0;
    (void)state;
    server_start(&s, args);
    peer_open(&s, &p, "export", NULL);
    server_signal(&s, SIGTERM);
    peer_expect_close(&p, 1001);        /* it drains, and would for a minute */
    server_signal(&s, SIGTERM);
    assert_true(process_wait(s.pid, &status, deadline_usual()));
    s.pid = 0;
    server_check_remains(&s);
    assert_true(WIFEXITED(status));
    peer_close(&p);
}

/* ===== Shortages ===== */

static void silent_sockets_keep_nobody_out(void **state)
{
    static const char *const args[] = {"--handshakes", "4", "--handshake-timeout", "60", NULL};
    static struct server s;
    static struct reply r;
    struct conn silent[12];
    struct peer p[3];
    int i;
    (void)state;
    server_start(&s, args);
    for (i = 0; i < 12; i++)
        conn_open(&silent[i], s.clients);
    for (i = 0; i < 3; i++)
        peer_open(&s, &p[i], "export", NULL);
    for (i = 0; i < 8; i++) {           /* the oldest gave way, and were told */
        reply_read(&silent[i], &r);
        assert_int_equal(r.status, 408);
        conn_expect_eof(&silent[i]);
    }
    assert_in_range(server_metric(&s, "exportws_handshakes"), 1, 4);
    conn_send_text(&silent[11], "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    reply_read(&silent[11], &r);        /* the newest was merely slow */
    assert_int_equal(r.status, 200);
    push_expect(&s, "export", "37 %", 3);
    for (i = 0; i < 3; i++) {
        peer_expect_text(&p[i], "37 %");
        peer_close(&p[i]);
    }
    for (i = 0; i < 12; i++)
        conn_close(&silent[i]);
    server_stop(&s);
}

enum { DESCRIPTORS = 24, CROWDED = 40 };

/* Sends every upgrade; those that do not fit wait in the backlog, unanswered. */
static void crowded_send(const struct server *s, struct peer *p)
{
    int i;
    for (i = 0; i < CROWDED; i++) {
        char request[4096];
        size_t size = peer_request(s, "export", NULL, request);
        memset(&p[i], 0, sizeof p[i]);
        conn_open(&p[i].c, s->clients);
        assert_int_equal(conn_send(&p[i].c, request, size), 0);
    }
}

/* Reads the 101 of those who get one, from the first on, until there are as many as wanted or nobody
 * has got one for a while; how many they are. */
static int crowded_count(struct peer *p, int from, int want)
{
    static struct reply r;
    int n = from;
    while (n < CROWDED && (want == 0 || n < want) &&
           reply_read_until(&p[n].c, &r, deadline_in(want > 0 ? 10000 : 300)) == READ_OK) {
        assert_int_equal(r.status, 101);
        n++;
    }
    return n;
}

static void no_descriptors_pauses_accept_and_resumes(void **state)
{
    static const char *const args[] = {"--capacity", "64", "--per-token", "64", NULL};
    static struct server s;
    struct peer p[CROWDED];
    struct conn pusher;
    static struct reply r;
    int inside, i;
    long cpu;
    (void)state;
    server_start_limited(&s, args, DESCRIPTORS);
    assert_true(server_log_contains(&s, "level=warn"));
    conn_open(&pusher, s.push);
    push_on(&pusher, "GET", "/healthz", NULL, NULL, 0, &r);
    crowded_send(&s, p);
    inside = crowded_count(p, 0, 0);
    assert_in_range(inside, 4, DESCRIPTORS - 4);
    cpu = server_cpu_ms(&s);
    pause_ms(1000);                     /* a server that spins burns all of this */
    if (cpu >= 0)
        assert_in_range(server_cpu_ms(&s) - cpu, 0, 250);
    push_text_on(&pusher, &s, "export", "37 %", &r);
    assert_int_equal(r.status, 200);    /* those inside are served meanwhile */
    assert_int_equal(json_number(r.body, "delivered"), inside);
    for (i = 0; i < inside; i++) {
        peer_expect_text(&p[i], "37 %");
        peer_close(&p[i]);              /* each makes room for one who waits */
        assert_int_equal(crowded_count(p, inside + i, inside + i + 1), inside + i + 1);
    }
    for (i = inside; i < CROWDED; i++)
        peer_close(&p[i]);
    push_on(&pusher, "GET", "/healthz", NULL, NULL, 0, &r);
    assert_int_equal(r.status, 200);
    conn_close(&pusher);
    server_online_wait(&s, 0, 0);
    server_check_books(&s);
    server_stop(&s);
}

#define ROW(name) cmocka_unit_test_teardown(name, server_teardown)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        ROW(handshake_timeout_answers_408),
        ROW(handshake_timeout_is_not_fooled_by_a_drip),
        ROW(close_timeout_frees_the_slot_of_a_mute_peer),
        ROW(write_timeout_frees_the_slot_of_a_stuck_peer),
        ROW(drain_closes_with_1001_and_ends_at_once),
        ROW(drain_does_not_wait_for_a_mute_peer),
        ROW(second_signal_ends_at_once),
        ROW(silent_sockets_keep_nobody_out),
        ROW(refused_and_unfinished_requests_leave_nothing_behind),
        ROW(twenty_thousand_cycles_leave_nothing_behind),
    };
    /* Not under valgrind: out of descriptors, its accept() takes a connection all the same, closes
     * it and says EMFILE, so that nobody is left to wait. */
    static const struct CMUnitTest crowded[] = {ROW(no_descriptors_pauses_accept_and_resumes)};
    int failed = cmocka_run_group_tests_name("reclaim", tests, NULL, NULL);
    if (getenv("EXPORTWS_TEST_VALGRIND") == NULL)
        failed += cmocka_run_group_tests_name("crowded", crowded, NULL, NULL);
    return failed;
}
