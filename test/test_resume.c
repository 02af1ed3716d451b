/* Reconnecting without loss: ids before messages, ?last=, what is kept and for how long, `gap` when
 * something is missing, a token's last message. What clients see, in a server whose clock and
 * system calls are the test's: see faults.h. */
#include "faults.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))

static struct world s;
static uint64_t first; /* the id that the first message gets */

static void begin(void)
{
    faults_clear();
    world_init(&s, "resume");
    world_doors(&s);
    s.o.per_token = 3, s.o.history = 4, s.o.queue = 8;
}

static void start(void)
{
    world_start(&s);
    first = exportws_last_id(s.w) + 1;
}

static int setup(void **state)
{
    (void)state;
    begin();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (s.w) world_end(&s);
    s.w = NULL;
    return 0;
}

static void finish(void)
{
    world_end(&s);
    s.w = NULL;
    if (s.wrong[0] != '\0') fail_msg("%s", s.wrong);
}

/* ===== Clients whose messages have ids: the first is 1, whatever the clock says ===== */

/* Asks for `target` (a token, and a query) and offers `offer` (NULL: nothing). */
static struct peer *ask(const char *target, const char *offer)
{
    char text[512];
    struct peer *p = world_dial(&s, EXPORTWS_CLIENTS);
    snprintf(text, sizeof text,
             "GET /app/ws/export-task/%s HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
             "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n%s%s%s"
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
             target, offer ? "Sec-WebSocket-Protocol: " : "", offer ? offer : "",
             offer ? "\r\n" : "");
    peer_say(p, text);
    world_settle(&s);
    return p;
}

static struct peer *resume_at(const char *token, int last)
{
    char target[64];
    snprintf(target, sizeof target, "%s?last=%llu", token,
             last > 0 ? (unsigned long long)first + (unsigned)last - 1 : 0);
    return ask(target, "exportws.v1");
}

/* What a peer has got, each id as "N:". */
static const char *got(const struct peer *p)
{
    static char text[PEER_GOT];
    char *to = text;
    for (const char *at = p->got; *at;) {
        char *end;
        unsigned long long id = strtoull(at, &end, 10);
        if (*end == '\n') {
            to += snprintf(to, 24, "%llu:", id - (unsigned long long)first + 1);
            at = end + 1;
        }
        while ((*to++ = *at++) != ' ') {}
    }
    *to = '\0';
    return text;
}

static void expect(const char *what, const struct peer *p, const char *want)
{
    if (strcmp(got(p), want) != 0) fail_msg("%s: got %s, not %s", what, got(p), want);
    if (p->broken) fail_msg("%s: %s", what, p->broken);
}

/* To a token, or (NULL) to all. */
static int tell(const char *token, const char *text)
{
    int result = token ? exportws_send(s.w, token, text, strlen(text), EXPORTWS_TEXT)
                       : exportws_broadcast(s.w, text, strlen(text), EXPORTWS_TEXT);
    world_settle(&s);
    return result;
}

static void leave(struct peer *p)
{
    peer_leave(p);
    world_settle(&s);
}

/* "m1", "m2" and so on up to m<n>. */
static void tell_many(const char *token, int n)
{
    char text[16];
    for (int i = 1; i <= n; i++) snprintf(text, sizeof text, "m%d", i), tell(token, text);
}

/* What one has got who came first: "m1" to m<n>, then what is behind. */
static const char *counted(int n, const char *behind)
{
    static char want[PEER_GOT];
    size_t used = (size_t)snprintf(want, sizeof want, "101 ");
    for (int i = 1; i <= n; i++)
        used += (size_t)snprintf(want + used, sizeof want - used, "m%d ", i);
    snprintf(want + used, sizeof want - used, "%s", behind);
    return want;
}

/* ===== Who gets ids ===== */

static void ids_are_for_those_who_offer_the_protocol(void **state)
{
    static const struct {
        const char *offer;
        int ids;
    } rows[] = {{NULL, 0},
                {"exportws.v1", 1},
                {"chat, exportws.v1", 1},
                {"exportws.v1,exportws.v2", 1},
                {"exportws.v2", 0},
                {"exportws.v10", 0},
                {"xexportws.v1", 0},
                {"EXPORTWS.V1", 0},
                {"exportws.v", 0}};
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        begin();
        start();
        struct peer *p = ask("a", rows[i].offer);
        tell("a", "m1");
        assert_int_equal(exportws_send(s.w, "a", "m2", 2, EXPORTWS_BINARY), 1);
        tell(NULL, "b1");
        expect(rows[i].offer ? rows[i].offer : "none", p,
               rows[i].ids ? "101 1:m1 2:m2 3:b1 " : "101 m1 m2 b1 ");
        finish();
    }
}

/* A place to go on from is an id; clients without ids have none, whatever they ask for. */
static void last_must_be_an_id(void **state)
{
    static const struct {
        const char *query, *offer, *got;
    } rows[] = {{"?last=", "exportws.v1", "400 "},
                {"?last", "exportws.v1", "400 "},
                {"?last=x", "exportws.v1", "400 "},
                {"?last=-1", "exportws.v1", "400 "},
                {"?last=1x", "exportws.v1", "400 "},
                {"?last=99999999999999999999", "exportws.v1", "101 gap 1:b1 "},
                {"?a=b&last=x&c", "exportws.v1", "400 "},
                {"?lastly=x", "exportws.v1", "101 "},
                {"?xlast=x", "exportws.v1", "101 "},
                {"?a&b=last", "exportws.v1", "101 "},
                {"?", "exportws.v1", "101 "},
                {"?last=0", "exportws.v1", "101 1:b1 "},
                {"?a=b&last=0", "exportws.v1", "101 1:b1 "},
                {"?last=0&last=x", "exportws.v1", "101 1:b1 "},
                {"?last=x", NULL, "101 "},
                {"?last=0", NULL, "101 "}};
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        char target[64];
        begin();
        start();
        tell(NULL, "b1");
        snprintf(target, sizeof target, "a%s", rows[i].query);
        expect(target, ask(target, rows[i].offer), rows[i].got);
        finish();
    }
}

/* ===== What was missed ===== */

static void missed_messages_come_in_order_and_once(void **state)
{
    static const struct {
        int last;
        const char *got;
    } rows[] = {{0, "101 1:m1 2:b2 3:m3 4:b4 5:m5 "}, {1, "101 2:b2 3:m3 4:b4 5:m5 "},
                {2, "101 3:m3 4:b4 5:m5 "},           {3, "101 4:b4 5:m5 "},
                {4, "101 5:m5 "},                     {5, "101 "}};
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        begin();
        start();
        struct peer *a = ask("a", "exportws.v1"), *x = ask("x", "exportws.v1"), *b = ask("a", NULL);
        tell("a", "m1"), tell(NULL, "b2");
        leave(a);
        tell("a", "m3"), tell(NULL, "b4"), tell("a", "m5");
        expect("b", b, "101 m1 b2 m3 b4 m5 ");
        expect("x", x, "101 2:b2 4:b4 ");
        struct peer *again = resume_at("a", rows[i].last);
        expect("again", again, rows[i].got);
        tell("a", "m6");
        char want[128];
        snprintf(want, sizeof want, "%s6:m6 ", rows[i].got);
        expect("again, and what is new", again, want);
        finish();
    }
}

/* Without a place to go on from it is what nobody has got, with or without ids. */
static void newcomer_gets_what_is_held_only(void **state)
{
    (void)state;
    start();
    struct peer *a = ask("a", "exportws.v1");
    tell("a", "m1"), tell(NULL, "b2");
    leave(a);
    tell("a", "m3");
    struct peer *b = ask("a", "exportws.v1");
    expect("b", b, "101 3:m3 ");
    expect("c", ask("a", NULL), "101 ");
    tell("x", "m4");
    expect("x", ask("x", NULL), "101 m4 ");
    expect("x, again", resume_at("x", 3), "101 4:m4 ");
    finish();
}

/* What nobody has got is new to everybody, whatever they say that they have seen. */
static void held_message_comes_whatever_is_asked(void **state)
{
    (void)state;
    start();
    tell(NULL, "b1"), tell("a", "m2"), tell("a", "m3");
    expect("a", resume_at("a", 3), "101 2:m2 3:m3 ");
    expect("another", resume_at("a", 3), "101 ");
    expect("a newcomer", ask("a", NULL), "101 ");
    finish();
}

static void message_of_another_token_is_not_missed(void **state)
{
    (void)state;
    start();
    struct peer *a = ask("a", "exportws.v1"), *b = ask("b", "exportws.v1");
    tell("a", "m1"), tell("b", "m2"), tell("a", "m3");
    leave(a), leave(b);
    expect("a", resume_at("a", 1), "101 3:m3 ");
    expect("b", resume_at("b", 1), "101 2:m2 ");
    finish();
}

/* ===== What is no more ===== */

static void gap_tells_of_what_is_missing(void **state)
{
    static const struct {
        const char *token; /* NULL: to all */
        int last;
        const char *got;
    } rows[] = {{"a", 1, "101 gap 3:m3 4:m4 5:m5 6:m6 "}, {"a", 2, "101 3:m3 4:m4 5:m5 6:m6 "},
                {"a", 0, "101 gap 3:m3 4:m4 5:m5 6:m6 "}, {"a", 5, "101 6:m6 "},
                {NULL, 1, "101 gap 3:m3 4:m4 5:m5 6:m6 "}, {NULL, 2, "101 3:m3 4:m4 5:m5 6:m6 "},
                {NULL, 0, "101 gap 3:m3 4:m4 5:m5 6:m6 "}};
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        begin();
        start();
        struct peer *a = ask("a", NULL);
        tell_many(rows[i].token, 6); /* the newest four are kept */
        expect("a", a, "101 m1 m2 m3 m4 m5 m6 ");
        leave(a);
        expect(rows[i].token ? "its own" : "to all", resume_at("a", rows[i].last), rows[i].got);
        finish();
    }
}

/* That of another server's life, say: nothing is known then, so all there is comes again. */
static void id_that_was_never_given_out_is_a_gap(void **state)
{
    (void)state;
    start();
    struct peer *a = ask("a", "exportws.v1");
    tell("a", "m1"), tell("a", "m2");
    expect("ahead", resume_at("a", 3), "101 gap 1:m1 2:m2 ");
    expect("far ahead", resume_at("a", 3000), "101 gap 1:m1 2:m2 ");
    expect("a", a, "101 1:m1 2:m2 ");
    finish();
}

static void history_ends_with_its_time(void **state)
{
    (void)state;
    start();
    struct peer *a = ask("a", "exportws.v1");
    tell("a", "m1"), tell(NULL, "b2");
    clock_pass(2000);
    tell("a", "m3");
    clock_pass(2999);
    world_settle(&s);
    expect("in time", resume_at("a", 1), "101 2:b2 3:m3 ");
    clock_pass(1);
    world_settle(&s);
    expect("too late", resume_at("a", 1), "101 gap 3:m3 ");
    clock_pass(2000);
    world_settle(&s);
    leave(a);
    assert_int_equal(s.w->m->expired, 0); /* somebody got them */
    finish();
}

/* A held message that nobody came for is missing to whoever asks for it later. */
static void expired_message_leaves_a_gap(void **state)
{
    (void)state;
    start();
    tell("a", "m1");
    clock_pass(5000);
    world_settle(&s);
    assert_int_equal(s.w->m->expired, 1);
    tell("a", "m2");
    expect("from the start", resume_at("a", 0), "101 gap 2:m2 ");
    expect("behind it", resume_at("a", 1), "101 2:m2 ");
    expect("another", resume_at("b", 0), "101 ");
    finish();
}

static void kick_leaves_a_gap(void **state)
{
    (void)state;
    start();
    struct peer *a = ask("a", "exportws.v1");
    tell("a", "m1"), tell("a", "m2");
    assert_int_equal(exportws_kick(s.w, "a"), 1);
    world_settle(&s);
    expect("a", a, "101 1:m1 2:m2 close:1000 ");
    leave(a);
    expect("after", resume_at("a", 1), "101 gap ");
    expect("behind it", resume_at("a", 2), "101 ");
    finish();
}

static void without_history_what_was_got_is_gone(void **state)
{
    static const struct {
        size_t history;
        unsigned hold_ms;
    } rows[] = {{0, 5000}, {4, 0}, {0, 0}};
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        begin();
        s.o.history = rows[i].history, s.o.hold_ms = rows[i].hold_ms;
        start();
        struct peer *a = ask("a", "exportws.v1");
        tell("a", "m1"), tell(NULL, "b2");
        expect("a", a, "101 1:m1 2:b2 ");
        assert_int_equal(s.w->blocks_free, s.w->block_count);
        expect("from the start", resume_at("a", 0), "101 gap ");
        expect("behind all", resume_at("a", 2), "101 ");
        finish();
    }
}

/* ===== History and those that are slow ===== */

static void make_slow(struct peer *p, const char *token)
{
    const int little = 1;
    const struct conn *c = world_slot(&s, token);
    assert_non_null(c);
    __real_setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &little, sizeof little);
    p->deaf = 1;
}

/* Sends "m1" and so on, each of 300 bytes, until `waiting` wait for the slow one of that slot. */
static int tell_until(const char *token, const struct conn *slow, uint32_t waiting)
{
    char text[300];
    int n = 0;
    while (slow->queued < waiting && n < 40) {
        memset(text, '.', sizeof text);
        int size = snprintf(text, sizeof text, "m%d", ++n);
        text[size] = '.';
        exportws_send(s.w, token, text, sizeof text, EXPORTWS_TEXT);
        world_settle(&s);
    }
    assert_int_equal(slow->queued, waiting);
    return n;
}

/* Somebody still reads what is history to others: it is kept for that one, past the bound. */
static void history_that_somebody_reads_stays(void **state)
{
    (void)state;
    s.o.history = 1, s.o.buffer_bytes = 65536;
    start();
    struct peer *slow = ask("a", NULL);
    const struct conn *c = world_slot(&s, "a");
    struct peer *b = ask("a", NULL);
    make_slow(slow, "a");
    int sent = tell_until("a", c, 3);
    assert_int_equal(s.w->history, 3); /* the newest, and what is waited for */
    expect("b", b, counted(sent, ""));
    slow->deaf = 0;
    world_settle(&s);
    expect("slow", slow, counted(sent, ""));
    assert_int_equal(s.w->history, 1);
    char want[64];
    snprintf(want, sizeof want, "101 gap %d:m%d ", sent, sent);
    expect("again", resume_at("a", 0), want);
    finish();
}

/* The slow one is no session any more, but still reads when others are held behind what it reads.
 */
static void history_is_trimmed_before_what_is_held(void **state)
{
    (void)state;
    s.o.history = 1, s.o.buffer_bytes = 65536;
    start();
    struct peer *slow = ask("a", NULL);
    const struct conn *c = world_slot(&s, "a");
    struct peer *b = ask("a", NULL);
    make_slow(slow, "a");
    int sent = tell_until("a", c, 3);
    leave(b);
    assert_int_equal(exportws_close(s.w, conn_id(s.w, c), 3000, NULL), 0);
    assert_int_equal(tell("a", "held"), 0), assert_int_equal(tell("a", "too"), 0);
    slow->deaf = 0;
    world_settle(&s);
    expect("slow", slow, counted(sent, "close:3000 "));
    assert_int_equal(s.w->history, 1);
    char want[96];
    snprintf(want, sizeof want, "101 gap %d:m%d %d:held %d:too ", sent, sent, sent + 1, sent + 2);
    expect("again", resume_at("a", 1), want);
    finish();
}

/* For a new message the oldest history gives way, but not what somebody reads; then the push is
 * refused. */
static void history_gives_way_to_what_is_new(void **state)
{
    char text[700];
    (void)state;
    s.o.history = 100;
    start();
    struct peer *slow = ask("a", NULL);
    const struct conn *c = world_slot(&s, "a");
    struct peer *b = ask("a", NULL), *x = ask("x", NULL);
    make_slow(slow, "a");
    int sent = tell_until("a", c, 2);
    memset(text, '.', sizeof text), memcpy(text, "x!", 2);
    for (int i = 0; i < 40; i++) {
        assert_int_equal(exportws_send(s.w, "x", text, sizeof text, EXPORTWS_TEXT), 1);
        if (i % 4 == 3) world_settle(&s);
    }
    assert_true(s.w->blocks_free <= s.w->reserve + 3);
    int held = 0;
    while (exportws_send(s.w, "absent", text, sizeof text, EXPORTWS_TEXT) == 0) held++;
    assert_int_equal(exportws_send(s.w, "absent", text, sizeof text, EXPORTWS_TEXT), EXPORTWS_FULL);
    assert_int_equal(s.w->held, held);
    assert_int_equal(s.w->history, 2); /* what is waited for */
    slow->deaf = 0;
    world_settle(&s);
    expect("slow", slow, counted(sent, ""));
    expect("b", b, counted(sent, ""));
    assert_int_equal(exportws_send(s.w, "absent", text, sizeof text, EXPORTWS_TEXT), 0);
    leave(x);
    finish();
}

/* ===== More tokens than can be remembered ===== */

static void expire(const char *token)
{
    tell(token, "m");
    clock_pass(5000);
    world_settle(&s);
}

/* That something of a token was thrown away is remembered while there are records; then all that
 * can be said is that it may have been. */
static void forgotten_tokens_have_gaps(void **state)
{
    char name[16];
    int n = 0;
    (void)state;
    start();
    struct peer *stay = ask("stay", "exportws.v1");
    for (int i = 1; i <= 5; i++) tell("stay", "m"); /* of these the first is thrown away, */
    expire("first");                                /* then this one, which is forgotten first */
    leave(stay);
    expect("another", resume_at("other", 0), "101 ");
    while (s.w->forgotten < first && n < 2000) snprintf(name, sizeof name, "%d", n++), expire(name);
    assert_int_equal(s.w->forgotten, first + 5);
    expect("another, in doubt", resume_at("unknown", 5), "101 gap ");
    expect("another, since then", resume_at("unknown", 6), "101 ");
    expect("of one that is remembered", resume_at("0", 6), "101 gap ");
    for (int i = 0; i < 4; i++) snprintf(name, sizeof name, "%d", n++), expire(name);
    assert_true(s.w->forgotten > first + 5);
    finish();
}

/* ===== A token's last message ===== */

static void push_end(struct peer *p, const char *token, const char *text)
{
    char target[64];
    snprintf(target, sizeof target, "%s?end", token);
    peer_post(p, target, text);
    world_settle(&s);
}

static void last_message_ends_its_sessions(void **state)
{
    (void)state;
    start();
    struct peer *a = ask("a", NULL), *b = ask("a", "exportws.v1"), *x = ask("x", NULL),
                *p = world_pusher(&s);
    push_end(p, "a", "done");
    expect("p", p, "200 ");
    expect("a", a, "101 done close:1000 ");
    expect("b", b, "101 1:done close:1000 ");
    expect("x", x, "101 ");
    push_end(p, "", "done");
    expect("p, to all", p, "200 400 ");
    expect("x, to all", x, "101 ");
    assert_int_equal(s.w->sessions, 1);
    leave(a), leave(b), leave(p);
    expect("who has missed it", resume_at("a", 0), "101 1:done close:1000 ");
    expect("who has not", resume_at("a", 1), "101 close:1000 ");
    finish();
}

/* Held, it ends the session that comes for it; one behind it is no more the last. */
static void last_message_is_held_as_such(void **state)
{
    (void)state;
    start();
    struct peer *p = world_pusher(&s);
    peer_post(p, "a", "half");
    push_end(p, "a", "done");
    expect("p", p, "202 202 ");
    struct peer *a = ask("a", NULL);
    expect("a", a, "101 half done close:1000 ");
    push_end(p, "b", "done");
    peer_leave(a);
    tell("b", "once more");
    expect("b", ask("b", "exportws.v1"), "101 3:done 4:once more close:1000 ");
    expect("b, again", resume_at("b", 4), "101 ");
    finish();
}

/* What waits goes first, then the last message, then the close. */
static void last_message_waits_for_a_slow_session(void **state)
{
    (void)state;
    s.o.buffer_bytes = 65536;
    start();
    struct peer *a = ask("a", NULL), *p = world_pusher(&s);
    const struct conn *c = world_slot(&s, "a");
    make_slow(a, "a");
    int sent = tell_until("a", c, 2);
    push_end(p, "a", "done");
    expect("p", p, "200 ");
    assert_int_equal(s.w->sessions, 0);
    a->deaf = 0;
    world_settle(&s);
    expect("a", a, counted(sent, "done close:1000 "));
    finish();
}

static void close_at_once(void *user, exportws_id session, const char *token)
{
    (void)user, (void)token;
    exportws_close(s.w, session, 3001, "not today");
}

/* The embedder has its own mind about one that would end anyway. */
static void last_message_and_on_open_close_once(void **state)
{
    (void)state;
    s.o.on_open = close_at_once;
    start();
    struct peer *p = world_pusher(&s);
    push_end(p, "a", "done");
    expect("a", ask("a", NULL), "101 done close:3001 ");
    assert_int_equal(s.w->m->closed[EXPORTWS_BY_ENDED], 1);
    finish();
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(ids_are_for_those_who_offer_the_protocol),
        TEST(last_must_be_an_id),
        TEST(missed_messages_come_in_order_and_once),
        TEST(newcomer_gets_what_is_held_only),
        TEST(held_message_comes_whatever_is_asked),
        TEST(message_of_another_token_is_not_missed),
        TEST(gap_tells_of_what_is_missing),
        TEST(id_that_was_never_given_out_is_a_gap),
        TEST(history_ends_with_its_time),
        TEST(expired_message_leaves_a_gap),
        TEST(kick_leaves_a_gap),
        TEST(without_history_what_was_got_is_gone),
        TEST(history_that_somebody_reads_stays),
        TEST(history_is_trimmed_before_what_is_held),
        TEST(history_gives_way_to_what_is_new),
        TEST(forgotten_tokens_have_gaps),
        TEST(last_message_ends_its_sessions),
        TEST(last_message_is_held_as_such),
        TEST(last_message_waits_for_a_slow_session),
        TEST(last_message_and_on_open_close_once),
    };
    return cmocka_run_group_tests_name("resume", tests, NULL, world_folder_remove);
}
