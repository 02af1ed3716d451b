/*
 * test_java.c - the faults of the Java endpoint that this server replaces, each a test by its name.
 *
 * Every row of the contract's table is here, against the real server process over real sockets.
 */
#include "server.h"

enum { CROWD = 100 };

/* A text of `size` bytes that begins with a number, so that order and loss show; static. */
static const char *numbered_text(int number, size_t size)
{
    static char text[70000];
    int n = snprintf(text, sizeof text, "%06d ", number);
    memset(text + n, 'x', size - (size_t)n);
    text[size] = '\0';
    return text;
}

/* The number at the front of a numbered_text that arrived whole, else -1. */
static int frame_number(const struct frame *f, size_t size)
{
    char digits[8];
    if (f->opcode != OP_TEXT || f->size != size)
        return -1;
    memcpy(digits, f->data, 6);
    digits[6] = '\0';
    return atoi(digits);
}

static void crowd_open(const struct server *s, struct peer *crowd, int n)
{
    int i;
    for (i = 0; i < n; i++) {
        char token[24];
        snprintf(token, sizeof token, "crowd-%d", i);
        peer_open(s, &crowd[i], token, NULL);
    }
}

static void crowd_close(struct peer *crowd, int n)
{
    int i;
    for (i = 0; i < n; i++)
        peer_close(&crowd[i]);
}

/* ===== Sessions that stayed ===== */

static void java_close_left_session_in_list(void **state)
{
    static const char *const args[] = {"--capacity", "4", NULL};
    static struct server s;
    struct peer p, all[4];
    int i;
    (void)state;
    server_start(&s, args);
    for (i = 0; i < 400; i++) {
        peer_open(&s, &p, "export", NULL);
        peer_leave(&p);
    }
    server_online_wait(&s, 0, 0);
    assert_int_equal(server_metric(&s, "exportws_sessions_opened_total"), 400);
    assert_int_equal(server_metric(&s, "exportws_sessions_closed_total{reason=\"peer\"}"), 400);
    crowd_open(&s, all, 4);             /* every slot came back */
    server_online_wait(&s, 4, 4);
    server_check_books(&s);
    crowd_close(all, 4);
    server_stop(&s);
}

static void java_error_left_session(void **state)
{
    static const char *const args[] = {"--capacity", "4", NULL};
    static struct server s;
    struct peer p, all[4];
    int i;
    (void)state;
    server_start(&s, args);
    for (i = 0; i < 200; i++) {
        peer_open(&s, &p, "export", NULL);
        if (i & 1)
            push_expect(&s, "export", "never read", 1);
        peer_rst(&p);
        server_online_wait(&s, 0, 0);
    }
    assert_int_equal(server_metric(&s, "exportws_sessions_opened_total"), 200);
    server_check_books(&s);
    crowd_open(&s, all, 4);
    server_online_wait(&s, 4, 4);
    crowd_close(all, 4);
    server_stop(&s);
}

static void java_vanished_peer_stays_for_ever(void **state)
{
    static const char *const args[] = {"--capacity", "4",      "--ping",          "0.2", "--pong",
                                       "0.3",        "--close-timeout", "0.2", NULL};
    static struct server s;
    struct peer vanished[3], present, late;
    struct online o;
    struct frame f;
    long long deadline = deadline_usual();
    int i;
    (void)state;
    server_start(&s, args);
    crowd_open(&s, vanished, 3);
    peer_open(&s, &present, "present", NULL);
    do {                                /* answers its pings meanwhile; the others are deaf */
        assert_int_equal(peer_read_message(&present, &f, now_ms() + 20), READ_TIMEOUT);
        server_online(&s, &o);
    } while (o.sessions > 1 && time_left(deadline) > 0);
    assert_int_equal(o.sessions, 1);
    assert_int_equal(server_metric(&s, "exportws_sessions_closed_total{reason=\"timeout\"}"), 3);
    for (i = 0; i < 3; i++) {
        assert_int_equal(peer_read_frame(&vanished[i], &f, deadline_usual()), READ_OK);
        assert_int_equal(f.opcode, OP_PING);
        peer_expect_close(&vanished[i], 1008);
        peer_expect_eof(&vanished[i]);
        peer_close(&vanished[i]);
    }
    push_expect(&s, "present", "still here", 1);
    peer_expect_text(&present, "still here");
    peer_open(&s, &late, "crowd-0", NULL);
    server_check_books(&s);
    peer_close(&late);
    peer_close(&present);
    server_stop(&s);
}

static void java_heartbeat_text_counts_as_life(void **state)
{
    static const char *const args[] = {"--ping", "0.3", "--pong", "0.5", NULL};
    static struct server s;
    struct peer p;
    long long end;
    (void)state;
    server_start(&s, args);
    peer_open(&s, &p, "browser", NULL);
    for (end = now_ms() + 1500; now_ms() < end; pause_ms(50))
        assert_int_equal(peer_send_text(&p, "HEART-BEAT"), 0);
    push_expect(&s, "browser", "37 %", 1);
    peer_expect_text(&p, "37 %");       /* nothing echoed before it */
    assert_true(server_metric(&s, "exportws_heartbeats_total") > 0);
    assert_int_equal(server_metric(&s, "exportws_messages_received_total"), 0);
    peer_close(&p);
    server_stop(&s);
}

static void java_full_table_hangs(void **state)
{
    static const char *const args[] = {"--capacity", "5", NULL};
    static struct server s;
    static struct reply r;
    struct peer all[5], late;
    int i;
    (void)state;
    server_start(&s, args);
    crowd_open(&s, all, 5);
    for (i = 0; i < 100; i++) {
        long long begin = now_ms();
        assert_int_equal(peer_try(&s, &late, "late", NULL, 0, NULL, &r), 503);
        assert_true(now_ms() - begin < 2000 * harness_slow());
        assert_non_null(reply_header(&r, "Retry-After"));
        peer_expect_eof(&late);
        peer_close(&late);
    }
    assert_int_equal(server_metric(&s, "exportws_refused_total{status=\"503\"}"), 100);
    for (i = 0; i < 5; i++)
        peer_expect_alive(&all[i]);
    peer_leave(&all[2]);
    peer_open(&s, &all[2], "late", NULL);
    server_online_wait(&s, 5, 5);
    server_check_books(&s);
    crowd_close(all, 5);
    server_stop(&s);
}

/* ===== The same token twice ===== */

static void java_same_token_replaced_and_removed(void **state)
{
    static struct server s;
    struct peer old, fresh;
    char text[40];
    int i;
    (void)state;
    server_start(&s, NULL);
    peer_open(&s, &old, "export", NULL);
    for (i = 0; i < 200; i++) {
        peer_open(&s, &fresh, "export", NULL);
        snprintf(text, sizeof text, "both %d", i);
        push_expect(&s, "export", text, 2);
        peer_expect_text(&old, text);
        peer_expect_text(&fresh, text);
        peer_leave(&old);               /* must not take the new one with it */
        server_online_wait(&s, 1, 1);
        snprintf(text, sizeof text, "one %d", i);
        push_expect(&s, "export", text, 1);
        peer_expect_text(&fresh, text);
        old = fresh;
    }
    peer_leave(&old);
    server_online_wait(&s, 0, 0);
    assert_int_equal(server_metric(&s, "exportws_messages_delivered_total"), 600);
    server_check_books(&s);
    server_stop(&s);
}

static void java_same_token_oldest_gives_way(void **state)
{
    static const char *const args[] = {"--per-token", "3", NULL};
    static struct server s;
    struct peer p[5], other;
    int i;
    (void)state;
    server_start(&s, args);
    peer_open(&s, &other, "other", NULL);
    for (i = 0; i < 5; i++)             /* 0 and 1 give way to 3 and 4, in this order */
        peer_open(&s, &p[i], "export", NULL);
    for (i = 0; i < 2; i++) {
        peer_expect_close(&p[i], 4001);
        peer_send_close(&p[i], 4001, "");
        peer_expect_eof(&p[i]);
        peer_close(&p[i]);
    }
    push_expect(&s, "export", "three", 3);
    for (i = 2; i < 5; i++)
        peer_expect_text(&p[i], "three");
    server_online_wait(&s, 2, 4);
    assert_int_equal(server_metric(&s, "exportws_sessions_closed_total{reason=\"replaced\"}"), 2);
    peer_leave(&p[3]);                  /* from the middle of the token's list */
    push_expect(&s, "export", "two", 2);
    peer_expect_text(&p[2], "two");
    peer_expect_text(&p[4], "two");
    server_online_wait(&s, 2, 3);
    peer_expect_alive(&other);
    server_check_books(&s);
    peer_close(&p[2]);
    peer_close(&p[4]);
    peer_close(&other);
    server_stop(&s);
}

/* ===== Slow readers ===== */

/* The next message of each of n peers is the one numbered `want`: nothing lost, nothing doubled. */
static void crowd_expect(struct peer *crowd, int n, int want, size_t size)
{
    struct frame f;
    int i;
    for (i = 0; i < n; i++) {
        peer_expect_message(&crowd[i], &f, OP_TEXT);
        assert_int_equal(frame_number(&f, size), want);
    }
}

/* What a slow peer still finds: the first messages, whole and in order, then 1013. Their count. */
static int slow_expect_1013(struct peer *p, size_t size)
{
    struct frame f;
    int next = 0;
    for (;; next++) {
        assert_int_equal(peer_read_message(p, &f, deadline_usual()), READ_OK);
        if (f.opcode == OP_CLOSE)
            break;
        assert_int_equal(frame_number(&f, size), next);
    }
    assert_true(f.size >= 2);
    assert_int_equal(f.data[0] << 8 | f.data[1], 1013);
    return next;
}

static void java_slow_reader_stalls_broadcast(void **state)
{
    enum { SIZE = 32768, MOST = 1000 };
    static const char *const args[] = {"--queue", "16", "--close-timeout", "9", NULL};
    static struct server s;
    static struct reply r;
    struct peer crowd[CROWD - 1], slow;
    struct conn pusher;
    int i, reached = CROWD;
    (void)state;
    server_start(&s, args);
    peer_open_slow(&s, &slow, "slow", 4096);
    crowd_open(&s, crowd, CROWD - 1);
    conn_open(&pusher, s.push);
    for (i = 0; reached == CROWD && i < MOST; i++) {
        long long begin = now_ms();
        push_text_on(&pusher, &s, "", numbered_text(i, SIZE), &r);
        assert_int_equal(r.status, 200);
        reached = (int)json_number(r.body, "delivered");
        crowd_expect(crowd, CROWD - 1, i, SIZE);
        assert_true(now_ms() - begin < 5000 * harness_slow());
    }
    assert_int_equal(reached, CROWD - 1);
    assert_true(slow_expect_1013(&slow, SIZE) > 0);
    peer_send_close(&slow, 1013, "");
    peer_close(&slow);
    server_metric_wait(&s, "exportws_sessions_closed_total{reason=\"slow\"}", 1);
    server_log_wait(&s, "reason=slow", 1);
    server_online_wait(&s, CROWD - 1, CROWD - 1);
    broadcast_expect(&s, numbered_text(i, SIZE), CROWD - 1);
    crowd_expect(crowd, CROWD - 1, i, SIZE);
    server_check_books(&s);
    conn_close(&pusher);
    crowd_close(crowd, CROWD - 1);
    server_stop(&s);
}

/* How many messages a peer that reads nothing is sent before it is closed: kernel and queue. */
static int slow_capacity(const struct server *s, size_t size)
{
    static struct reply r;
    struct peer p;
    struct conn pusher;
    int n;
    peer_open_slow(s, &p, "calibrate", 4096);
    conn_open(&pusher, s->push);
    for (n = 0; n < 2000; n++) {
        push_text_on(&pusher, s, "calibrate", numbered_text(n, size), &r);
        if (r.status != 200)
            break;
    }
    conn_close(&pusher);
    peer_rst(&p);
    push_request(s, "DELETE", DEFAULT_PATH "calibrate", NULL, NULL, 0, &r);
    return n;
}

static void java_slow_but_moving_reader_is_left_alone(void **state)
{
    enum { SIZE = 65000, QUEUE = 64 };
    static const char *const args[] = {"--queue",         "64", "--buffer", "16m",
                                       "--write-timeout", "2",  NULL};
    static struct server s;
    struct peer p;
    struct frame f;
    int ahead, pushed, got = 0;
    long long end;
    (void)state;
    server_start(&s, args);
    ahead = slow_capacity(&s, SIZE) - QUEUE / 2;    /* kernel buffers full, queue half full */
    assert_true(ahead > 0);
    peer_open_slow(&s, &p, "slow", 4096);
    for (pushed = 0; pushed < ahead; pushed++)
        push_expect(&s, "slow", numbered_text(pushed, SIZE), 1);
    for (end = now_ms() + 5000; now_ms() < end; pause_ms(25)) {
        peer_expect_message(&p, &f, OP_TEXT);
        assert_int_equal(frame_number(&f, SIZE), got++);
        push_expect(&s, "slow", numbered_text(pushed++, SIZE), 1);
    }
    for (; got < pushed; got++) {
        peer_expect_message(&p, &f, OP_TEXT);
        assert_int_equal(frame_number(&f, SIZE), got);
    }
    peer_expect_alive(&p);
    peer_close(&p);
    server_stop(&s);
}

/* ===== One failure, everybody's failure ===== */

/*
 * A session dies by RST and a push arrives while the server is asleep. It wakes up to both and
 * hears of the push first, since the pusher was there before the session: its send() fails.
 */
static void push_into_rst(struct server *s, struct conn *pusher, struct peer *dying,
                          const char *token, const char *text, struct reply *r)
{
    char head[256];
    server_signal(s, SIGSTOP);
    peer_rst(dying);
    snprintf(head, sizeof head,
             "POST " DEFAULT_PATH "%s HTTP/1.1\r\nHost: push\r\nContent-Length: %lu\r\n\r\n", token,
             (unsigned long)strlen(text));
    conn_send_text(pusher, head);
    conn_send_text(pusher, text);
    server_signal(s, SIGCONT);
    reply_read(pusher, r);
    assert_int_equal(r->status, 200);
}

static void java_one_failure_ends_broadcast(void **state)
{
    enum { ROUNDS = 400 };
    static struct server s;
    static struct reply r;
    struct peer crowd[CROWD - 1], flapping;
    struct conn pusher;
    int i, k;
    (void)state;
    server_start(&s, NULL);
    conn_open(&pusher, s.push);
    push_on(&pusher, "GET", "/healthz", NULL, NULL, 0, &r);
    crowd_open(&s, crowd, CROWD / 2);
    peer_open(&s, &flapping, "flapping", NULL);
    crowd_open(&s, crowd + CROWD / 2, CROWD - 1 - CROWD / 2);      /* before and behind it */
    for (k = 0; k < ROUNDS; k++) {
        push_into_rst(&s, &pusher, &flapping, "", numbered_text(k, 64), &r);
        assert_in_range(json_number(r.body, "delivered"), CROWD - 1, CROWD);
        peer_open(&s, &flapping, "flapping", NULL);
    }
    for (k = 0; k < ROUNDS; k++)
        crowd_expect(crowd, CROWD - 1, k, 64);
    for (i = 0; i < CROWD - 1; i++)
        peer_expect_alive(&crowd[i]);
    server_check_books(&s);
    conn_close(&pusher);
    peer_close(&flapping);
    crowd_close(crowd, CROWD - 1);
    server_stop(&s);
}

/* The same among the sessions of one token, whichever of them fails. */
static void java_one_failure_ends_push_to_one_token(void **state)
{
    enum { SESSIONS = 4, ROUNDS = 40 };
    static struct server s;
    static struct reply r;
    struct peer p[SESSIONS];
    struct conn pusher;
    int i, k;
    (void)state;
    server_start(&s, NULL);
    conn_open(&pusher, s.push);
    push_on(&pusher, "GET", "/healthz", NULL, NULL, 0, &r);
    for (i = 0; i < SESSIONS; i++)
        peer_open(&s, &p[i], "export", NULL);
    for (k = 0; k < ROUNDS; k++) {
        push_into_rst(&s, &pusher, &p[k % SESSIONS], "export", numbered_text(k, 64), &r);
        for (i = 0; i < SESSIONS; i++)
            if (i != k % SESSIONS)
                crowd_expect(&p[i], 1, k, 64);
        peer_open(&s, &p[k % SESSIONS], "export", NULL);
    }
    server_online_wait(&s, 1, SESSIONS);
    server_check_books(&s);
    conn_close(&pusher);
    crowd_close(p, SESSIONS);
    server_stop(&s);
}

static void java_poison_text(void **state)
{
    static const char *const poison[] = {
        "\xed\xa0\x80",             /* the first half of a surrogate pair */
        "\xed\xbf\xbf",             /* the second */
        "\xed\xa0\xbd\xed\xb8\x80", /* both, as CESU-8 */
        "fine \xed\xa0\x80",        /* not at the front */
        "\xc0\x80",                 /* overlong */
        "\xe2\x82",                 /* cut off */
        "\xf4\x90\x80\x80",         /* above U+10FFFF */
        "\xff",
    };
    static struct server s;
    static struct reply r;
    struct peer p, other;
    size_t i;
    (void)state;
    server_start(&s, NULL);
    peer_open(&s, &p, "export", NULL);
    peer_open(&s, &other, "other", NULL);
    for (i = 0; i < sizeof poison / sizeof *poison; i++) {
        push_text(&s, "export", poison[i], &r);
        assert_int_equal(r.status, 400);
        assert_non_null(strstr(r.body, "\"error\":\""));
        broadcast_text(&s, poison[i], &r);
        assert_int_equal(r.status, 400);
        push_text(&s, "absent", poison[i], &r);
        assert_int_equal(r.status, 400);
    }
    push_expect(&s, "export", "\xf0\x9f\x98\x80", 1);
    broadcast_expect(&s, "all", 2);
    peer_expect_text(&p, "\xf0\x9f\x98\x80");
    peer_expect_text(&p, "all");
    peer_expect_text(&other, "all");
    peer_close(&p);
    peer_close(&other);
    server_stop(&s);
}

/* ===== Lost messages ===== */

enum { PUSHERS = 4, EACH = 500 };

/* One pusher process: numbered messages, every fourth of them a broadcast, on one connection. */
static void pusher_run(const struct server *s, int who)
{
    static struct reply r;
    struct conn c;
    int i;
    conn_open(&c, s->push);
    for (i = 0; i < EACH; i++) {
        char text[32];
        int all = i % 4 == 3;
        snprintf(text, sizeof text, "%d %d", who, i);
        push_text_on(&c, s, all ? "" : "export", text, &r);
        if (r.status != 200 || json_number(r.body, "delivered") < 2)
            harness_fail("pusher %d message %d: %d %s", who, i, r.status, r.body);
        if (!all && json_number(r.body, "delivered") != 2)
            harness_fail("pusher %d message %d: %s", who, i, r.body);
    }
    conn_close(&c);
}

/* One process whose clients come and go while the others push. */
static void churn_run(const struct server *s)
{
    int i;
    for (i = 0; i < 300; i++) {
        struct peer p;
        char token[24];
        snprintf(token, sizeof token, "churn-%d", i % 7);
        peer_open(s, &p, token, NULL);
        if (i % 3 == 0)
            peer_rst(&p);
        else
            peer_close(&p);
    }
}

/* Takes every message of every pusher off one session and checks each pusher's order. */
static void pushers_expect(struct peer *p)
{
    int next[PUSHERS] = {0}, i;
    for (i = 0; i < PUSHERS * EACH; i++) {
        struct frame f;
        char text[32];
        int who = -1, number = -1;
        peer_expect_message(p, &f, OP_TEXT);
        snprintf(text, sizeof text, "%.*s", (int)f.size, (const char *)f.data);
        assert_int_equal(sscanf(text, "%d %d", &who, &number), 2);
        assert_in_range(who, 0, PUSHERS - 1);
        assert_int_equal(number, next[who]++);
    }
}

static void java_two_threads_lose_messages(void **state)
{
    static struct server s;
    struct peer first, second;
    pid_t pids[PUSHERS + 1];
    int i;
    (void)state;
    server_start(&s, NULL);
    peer_open(&s, &first, "export", NULL);
    peer_open(&s, &second, "export", NULL);
    for (i = 0; i <= PUSHERS; i++) {
        pids[i] = harness_fork();
        if (pids[i] != 0)
            continue;
        if (i < PUSHERS)
            pusher_run(&s, i);
        else
            churn_run(&s);
        _exit(0);
    }
    pushers_expect(&first);
    pushers_expect(&second);
    for (i = 0; i <= PUSHERS; i++)
        harness_join(pids[i], deadline_in(30000));
    server_online_wait(&s, 1, 2);
    peer_expect_alive(&first);          /* and nothing doubled behind the last */
    peer_expect_alive(&second);
    assert_int_equal(server_metric(&s, "exportws_messages_pushed_total"), PUSHERS * EACH);
    server_check_books(&s);
    peer_close(&first);
    peer_close(&second);
    server_stop(&s);
}

static void java_message_after_101_lost(void **state)
{
    static struct server s;
    static struct reply r;
    struct conn pusher;
    int i;
    (void)state;
    server_start(&s, NULL);
    conn_open(&pusher, s.push);
    for (i = 0; i < 300; i++) {
        struct peer p;
        char token[24];
        snprintf(token, sizeof token, "t%d", i);
        peer_open(&s, &p, token, NULL);
        push_text_on(&pusher, &s, token, token, &r);
        assert_int_equal(r.status, 200);
        assert_int_equal(json_number(r.body, "delivered"), 1);
        peer_expect_text(&p, token);
        peer_close(&p);
    }
    conn_close(&pusher);
    server_stop(&s);
}

/* Its pusher is told: held. */
static void java_absent_token_silent(void **state)
{
    static struct server s;
    static struct reply r;
    struct peer p;
    (void)state;
    server_start(&s, NULL);
    push_text(&s, "absent", "37 %", &r);
    assert_int_equal(r.status, 202);
    assert_int_equal(json_number(r.body, "delivered"), 0);
    assert_non_null(strstr(r.body, "\"held\":true"));
    peer_open(&s, &p, "absent", NULL);
    peer_expect_text(&p, "37 %");
    peer_close(&p);
    server_stop(&s);
}

/* Its pusher is told: refused, since holding is off. */
static void java_absent_token_silent_without_hold(void **state)
{
    static const char *const args[] = {"--hold", "0", NULL};
    static struct server s;
    static struct reply r;
    struct peer p;
    (void)state;
    server_start(&s, args);
    push_text(&s, "absent", "37 %", &r);
    assert_int_equal(r.status, 404);
    assert_non_null(strstr(r.body, "\"error\":\""));
    peer_open(&s, &p, "absent", NULL);
    push_expect(&s, "absent", "38 %", 1);
    peer_expect_text(&p, "38 %");       /* the first was not kept */
    peer_close(&p);
    server_stop(&s);
}

/* Its pusher is told: refused, since there is no room; what was held before is untouched. */
static void java_absent_token_silent_when_full(void **state)
{
    enum { SIZE = 60000 };
    static const char *const args[] = {"--buffer", "512k", NULL};
    static struct server s;
    static struct reply r;
    struct peer p;
    struct frame f;
    int held, i;
    (void)state;
    server_start(&s, args);
    for (held = 0; held < 20; held++) {
        push_text(&s, "absent", numbered_text(held, SIZE), &r);
        if (r.status != 202)
            break;
    }
    assert_in_range(held, 4, 8);        /* 8 x 60,000 is what fits in 512 KiB */
    assert_int_equal(r.status, 503);
    assert_non_null(reply_header(&r, "Retry-After"));
    assert_int_equal(server_metric(&s, "exportws_held_messages"), held);
    peer_open(&s, &p, "absent", NULL);
    for (i = 0; i < held; i++) {
        peer_expect_message(&p, &f, OP_TEXT);
        assert_int_equal(frame_number(&f, SIZE), i);
    }
    peer_expect_alive(&p);              /* the refused one is not among them */
    assert_int_equal(server_metric(&s, "exportws_held_messages"), 0);
    push_text(&s, "absent-too", numbered_text(0, SIZE), &r);
    assert_int_equal(r.status, 202);    /* and there is room again */
    peer_close(&p);
    server_stop(&s);
}

/* ===== Anybody, from anywhere ===== */

struct origin_row {
    const char *headers;
    int want;
};

static void origins_expect(const struct server *s, const struct origin_row *rows, size_t n)
{
    static struct reply r;
    size_t i;
    for (i = 0; i < n; i++) {
        struct peer p;
        int status = peer_try(s, &p, "export", rows[i].headers, 0, NULL, &r);
        if (status != rows[i].want)
            harness_fail("%s: wanted %d, got %d", rows[i].headers, rows[i].want, status);
        if (status == 101)
            peer_leave(&p);
        else {
            peer_expect_eof(&p);
            peer_close(&p);
        }
    }
}

static void java_anybody_may_connect(void **state)
{
    static const struct origin_row rows[] = {
        {NULL, 101},                                    /* not a browser */
        {"Origin: http://localhost\r\n", 101},          /* the Host header's own */
        {"Origin: https://localhost:8443\r\n", 101},    /* another port, another scheme */
        {"Origin: http://LOCALHOST\r\n", 101},
        {"Origin: http://evil.example\r\n", 403},
        {"Origin: http://localhost.evil.example\r\n", 403},
        {"Origin: http://evil.example/localhost\r\n", 403},
        {"Origin: http://localhost@evil.example\r\n", 403},
        {"Origin: http://notlocalhost\r\n", 403},
        {"Origin: http://local\r\n", 403},
        {"Origin: http://localhosx\r\n", 403},
        {"Origin: null\r\n", 403},                      /* a sandboxed frame, a file */
        {"Origin: \r\n", 403},
    };
    static struct server s;
    (void)state;
    server_start(&s, NULL);
    origins_expect(&s, rows, sizeof rows / sizeof *rows);
    assert_int_equal(server_metric(&s, "exportws_refused_total{status=\"403\"}"), 9);
    server_stop(&s);
}

static void java_anybody_may_connect_only_from_listed_origins(void **state)
{
    static const char *const args[] = {"--origin", "https://app.example.com",
                                       "--origin=http://10.0.0.1:8000", NULL};
    static const struct origin_row rows[] = {
        {NULL, 101},
        {"Origin: https://app.example.com\r\n", 101},
        {"Origin: http://10.0.0.1:8000\r\n", 101},
        {"Origin: http://app.example.com\r\n", 403},
        {"Origin: https://app.example.com:444\r\n", 403},
        {"Origin: https://app.example.com.evil.example\r\n", 403},
        {"Origin: http://10.0.0.1\r\n", 403},
        {"Origin: http://localhost\r\n", 403},          /* same host, but not in the list */
        {"Origin: null\r\n", 403},
    };
    static struct server s;
    (void)state;
    server_start(&s, args);
    origins_expect(&s, rows, sizeof rows / sizeof *rows);
    server_stop(&s);
}

static void java_anybody_may_connect_when_told_so(void **state)
{
    static const char *const args[] = {"--origin", "*", NULL};
    static const struct origin_row rows[] = {
        {NULL, 101},
        {"Origin: https://app.example.com\r\n", 101},
        {"Origin: null\r\n", 101},
    };
    static struct server s;
    (void)state;
    server_start(&s, args);
    origins_expect(&s, rows, sizeof rows / sizeof *rows);
    server_stop(&s);
}

static void java_anybody_may_connect_as_often_as_they_like(void **state)
{
    static const char *const args[] = {"--per-address", "3", NULL};
    static struct server s;
    static struct reply r;
    struct peer p[3], late, other;
    struct conn probe;
    (void)state;
    server_start(&s, args);
    crowd_open(&s, p, 3);
    assert_int_equal(peer_try(&s, &late, "late", NULL, 0, NULL, &r), 429);
    assert_non_null(reply_header(&r, "Retry-After"));
    peer_expect_eof(&late);
    peer_close(&late);
    if (conn_dial(&probe, s.clients, 0, "127.0.0.2") == 0) {   /* loopback may be a network */
        conn_close(&probe);
        assert_int_equal(peer_try(&s, &other, "other", NULL, 0, "127.0.0.2", &r), 101);
        peer_expect_alive(&other);
        peer_close(&other);
    }
    peer_leave(&p[1]);                  /* its place is free at once */
    assert_int_equal(peer_try(&s, &p[1], "late", NULL, 0, NULL, &r), 101);
    assert_int_equal(server_metric(&s, "exportws_refused_total{status=\"429\"}"), 1);
    crowd_close(p, 3);
    server_stop(&s);
}

/* ===== The log ===== */

/* Every line is one of ours: begins with time=, has a known event, and no control byte. */
static void log_check_lines(const char *log)
{
    static const char *const events[] = {"open", "close", "refuse", "message", "push", "hold",
                                         "expire", "drain", "start", "stop"};
    const char *line;
    for (line = log; *line != '\0'; line += strcspn(line, "\n") + 1) {
        size_t size = strcspn(line, "\n"), i, known = 0;
        char text[4096], mark[32];
        snprintf(text, sizeof text, "%.*s", (int)size, line);
        assert_int_equal(strncmp(text, "time=", 5), 0);
        assert_int_equal(strncmp(text + 25, " level=", 7), 0);
        for (i = 0; i < sizeof events / sizeof *events; i++) {
            snprintf(mark, sizeof mark, " event=%s", events[i]);
            if (strncmp(text + 32 + strcspn(text + 32, " "), mark, strlen(mark)) == 0)
                known = 1;
        }
        if (!known)
            harness_fail("unknown log line: %s", text);
        for (i = 0; i < size; i++)
            if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
                harness_fail("raw control byte 0x%02x in: %s", (unsigned char)line[i], text);
        assert_int_equal(line[size], '\n');
    }
}

static void java_log_forged_by_newline(void **state)
{
    static struct server s;
    static struct reply r;
    struct peer p;
    char *log;
    (void)state;
    server_start(&s, NULL);
    peer_open(&s, &p, "e%0Atime=1970-01-01T00:00:00Z%20level=info%20event=forged", NULL);
    peer_send_text(&p, "x\ntime=1970-01-01T00:00:00Z level=info event=forged");
    peer_send_text(&p, "y\r\nz\x1b[2J\t\x7f\" event=forged \\");
    peer_expect_alive(&p);
    peer_send_close(&p, 1000, "bye\ntime=1970-01-01T00:00:00Z level=info event=forged");
    peer_expect_close(&p, 1000);
    peer_expect_eof(&p);
    peer_close(&p);
    peer_try(&s, &p, "t", "Origin: http://a\tevent=forged\r\n", 0, NULL, &r);
    peer_close(&p);
    push_request(&s, "POST", "/nope%0Aevent=forged", NULL, "x", 1, &r);
    push_text(&s, "e%0Atime=1970%20event=forged", "held", &r);
    assert_int_equal(r.status, 202);
    server_log_wait(&s, "event=message", 2);
    log = server_log_read(&s);
    log_check_lines(log);
    assert_null(strstr(log, "\ntime=1970"));
    free(log);
    server_stop(&s);
}

/* A token is a capability, a body is private: neither is in the log, and one push is one line. */
static void java_log_shows_tokens_and_links(void **state)
{
    static struct server s;
    static char body[64000];
    struct peer crowd[20];
    size_t before, after;
    char *log;
    (void)state;
    memset(body, 'L', sizeof body - 1);
    server_start(&s, NULL);
    peer_open(&s, &crowd[0], "abcdefghijkl", NULL);
    crowd_open(&s, crowd + 1, 19);
    push_expect(&s, "abcdefghijkl", "https://files.example/private-link", 1);
    push_expect(&s, "abcdefghijkl", "second", 1);
    server_log_wait(&s, "event=push", 2);
    log = server_log_read(&s);
    before = strlen(log);
    free(log);
    broadcast_expect(&s, body, 20);
    server_log_wait(&s, "event=push", 3);
    log = server_log_read(&s);
    after = strlen(log);
    assert_true(after - before < 400);
    assert_non_null(strstr(log, "token=abcd\xe2\x80\xa6"));
    assert_null(strstr(log, "abcde"));
    assert_null(strstr(log, "private-link"));
    assert_null(strstr(log, "second"));
    assert_null(strstr(log, "LLLL"));
    free(log);
    assert_int_equal(server_log_count(&s, "event=push"), 3);
    crowd_close(crowd, 20);
    server_stop(&s);
}

static void java_log_shows_whole_tokens_at_debug_only(void **state)
{
    static const char *const args[] = {"--log", "debug", NULL};
    static struct server s;
    struct peer p;
    (void)state;
    server_start(&s, args);
    peer_open(&s, &p, "abcdefghijkl", NULL);
    server_log_wait(&s, "token=abcdefghijkl", 1);
    peer_close(&p);
    server_stop(&s);
}

#define ROW(name) cmocka_unit_test_teardown(name, server_teardown)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        ROW(java_close_left_session_in_list),
        ROW(java_error_left_session),
        ROW(java_vanished_peer_stays_for_ever),
        ROW(java_heartbeat_text_counts_as_life),
        ROW(java_full_table_hangs),
        ROW(java_same_token_replaced_and_removed),
        ROW(java_same_token_oldest_gives_way),
        ROW(java_slow_reader_stalls_broadcast),
        ROW(java_slow_but_moving_reader_is_left_alone),
        ROW(java_one_failure_ends_broadcast),
        ROW(java_one_failure_ends_push_to_one_token),
        ROW(java_poison_text),
        ROW(java_two_threads_lose_messages),
        ROW(java_message_after_101_lost),
        ROW(java_absent_token_silent),
        ROW(java_absent_token_silent_without_hold),
        ROW(java_absent_token_silent_when_full),
        ROW(java_anybody_may_connect),
        ROW(java_anybody_may_connect_only_from_listed_origins),
        ROW(java_anybody_may_connect_when_told_so),
        ROW(java_anybody_may_connect_as_often_as_they_like),
        ROW(java_log_forged_by_newline),
        ROW(java_log_shows_tokens_and_links),
        ROW(java_log_shows_whole_tokens_at_debug_only),
    };
    return cmocka_run_group_tests_name("java", tests, NULL, NULL);
}
