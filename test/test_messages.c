/* Messages, Tokens, Timers: the buffer's books, held messages and their time, what waits for slow
 * sessions.
 *
 * Link with -Wl,--wrap=clock_gettime -Wl,--wrap=time: time stands still but for clock_advance(). */
#define EXPORTWS_NO_MAIN
#include "../exportws.c"
#include "test.h"

#include "audit.h"

static struct unit u;
static struct script peers[4];

/* A small server: 8 sessions, messages held for a second; history has its own tests. */
static void small_options(void)
{
    unit_defaults(&u);
    u.o.capacity = 8, u.o.handshakes = 2, u.o.pushers = 2;
    u.o.max_push_bytes = 70000, u.o.buffer_bytes = 102000, u.o.hold_ms = 1000, u.o.history = 0;
}

static int small_start(void **state)
{
    (void)state;
    small_options();
    unit_start(&u);
    for (size_t i = 0; i < COUNT(peers); i++) peers[i].fd = -1;
    return 0;
}

static size_t answers_in(const struct script *s)
{
    size_t n = 0;
    for (size_t i = 0; i + 13 <= s->got_size; i++) n += memcmp(s->got + i, "HTTP/1.1 200 ", 13) == 0;
    return n;
}

static int small_end(void **state)
{
    (void)state;
    if (u.w) unit_end(&u);
    for (size_t i = 0; i < COUNT(peers); i++) script_close(&peers[i]);
    return 0;
}

/* ===== Books ===== */

static uint32_t blocks_used(void)
{
    return u.w->block_count - u.w->blocks_free;
}

/* The blocks that a message takes. */
static uint32_t blocks_for(size_t name, size_t payload)
{
    size_t bytes = sizeof(struct message) + name + payload;
    return (uint32_t)((bytes + u.w->block_bytes - 1) / u.w->block_bytes);
}

static void expect_books(uint32_t blocks, uint32_t held)
{
    const char *wrong = audit(u.w);
    if (wrong) fail_msg("%s", wrong);
    assert_int_equal(blocks_used(), blocks);
    assert_int_equal(u.w->held, held);
}

/* ===== Blocks ===== */

/* Bytes that differ from block to block. */
static const uint8_t *pattern(size_t n)
{
    static uint8_t bytes[70000];
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)(i * 31 + i / 251);
    return bytes;
}

static uint32_t make(unsigned kind, const char *name, size_t name_size, const uint8_t *p, size_t n)
{
    uint32_t index = message_new(u.w, kind, 0, (const uint8_t *)name, name_size);
    if (index == NONE) return NONE;
    if (message_append(u.w, index, p, n) == 0) return index;
    message_free(u.w, index);
    return NONE;
}

static void blocks_are_counted_at_every_size(void **state)
{
    static const size_t names[] = {0, 1, 63, 64};
    char name[64];
    (void)state;
    memset(name, 'n', sizeof name);
    for (size_t i = 0; i < COUNT(names); i++) {
        for (size_t n = 0; n <= 3 * u.w->block_bytes; n++) {
            uint32_t index = make(OP_TEXT, name, names[i], guard_copy(pattern(n), n), n);
            assert_int_equal(blocks_used(), blocks_for(names[i], n));
            assert_int_equal(u.w->blocks_private, 0);
            assert_int_equal(message_at(u.w, index)->size, n);
            assert_memory_equal(message_name(message_at(u.w, index)), name, names[i]);
            message_free(u.w, index);
            assert_int_equal(blocks_used(), 0);
        }
    }
}

static void private_blocks_are_counted_apart(void **state)
{
    (void)state;
    uint32_t text = make(OP_TEXT, "t", 1, pattern(1000), 1000),
             own = make(0, NULL, 0, pattern(2000), 2000);
    assert_int_equal(u.w->blocks_private, blocks_for(0, 2000));
    assert_int_equal(blocks_used(), blocks_for(1, 1000) + blocks_for(0, 2000));
    message_free(u.w, text);
    assert_int_equal(u.w->blocks_private, blocks_for(0, 2000));
    message_free(u.w, own);
    assert_int_equal(u.w->blocks_private, 0);
    expect_books(0, 0);
}

static void payload_is_copied_from_every_offset(void **state)
{
    const size_t n = 3 * u.w->block_bytes - sizeof(struct message) - 4; /* ends with a block */
    static const size_t names[] = {0, 4, 64};
    (void)state;
    for (size_t i = 0; i < COUNT(names); i++) {
        char name[64] = {0};
        uint32_t index = make(OP_BINARY, name, names[i], pattern(n), n);
        const size_t sizes[] = {
            0, 1, 2, 63, u.w->block_bytes - 1, u.w->block_bytes, u.w->block_bytes + 1, n, n + 9};
        for (size_t from = 0; from <= n; from++) {
            for (size_t k = 0; k < COUNT(sizes); k++) {
                size_t want = sizes[k] < n - from ? sizes[k] : n - from;
                uint8_t *room = guard_room(want);
                assert_int_equal(message_copy(u.w, index, from, room, sizes[k]), want);
                if (memcmp(room, pattern(n) + from, want) != 0)
                    fail_msg("%zu from %zu", sizes[k], from);
                assert_true(guard_room_kept(room));
            }
        }
        message_free(u.w, index);
    }
}

static void payload_may_come_in_pieces_of_any_size(void **state)
{
    const size_t n = 4 * u.w->block_bytes;
    static uint8_t out[4096];
    (void)state;
    assert_true(n <= sizeof out);
    for (size_t piece = 1; piece <= u.w->block_bytes + 1; piece++) {
        uint32_t index = message_new(u.w, OP_TEXT, 0, (const uint8_t *)"abc", 3);
        for (size_t at = 0; at < n; at += piece) {
            size_t size = n - at < piece ? n - at : piece;
            assert_int_equal(message_append(u.w, index, guard_copy(pattern(n) + at, size), size),
                             0);
            assert_int_equal(message_append(u.w, index, guard_copy("", 0), 0), 0);
            assert_int_equal(blocks_used(), blocks_for(3, at + size));
        }
        assert_int_equal(message_copy(u.w, index, 0, out, n), n);
        assert_memory_equal(out, pattern(n), n);
        message_free(u.w, index);
        assert_int_equal(blocks_used(), 0);
    }
}

/* Messages until there is no room; returns how many. */
static uint32_t fill_buffer(uint32_t *messages, size_t payload)
{
    uint32_t n = 0, index;
    while ((index = make(OP_TEXT, NULL, 0, pattern(payload), payload)) != NONE)
        messages[n++] = index;
    return n;
}

static void full_buffer_says_so_and_all_of_it_comes_back(void **state)
{
    static uint32_t messages[1000], again[1000];
    const size_t payload = u.w->block_bytes; /* two blocks each */
    uint32_t one = fill_buffer(messages, 0);
    (void)state;
    assert_true(one >= 100000 / 400);
    for (uint32_t i = 0; i < one; i++) /* no block is given out twice */
        for (uint32_t k = 0; k < i; k++) assert_int_not_equal(messages[i], messages[k]);
    assert_int_equal(message_append(u.w, messages[0], pattern(payload), payload), -1);
    assert_int_equal(message_at(u.w, messages[0])->size, u.w->block_bytes - sizeof(struct message));
    for (uint32_t i = 0; i < one; i += 2) message_free(u.w, messages[i]);
    for (uint32_t i = 1; i < one; i += 2) message_free(u.w, messages[i]);
    assert_int_equal(blocks_used(), 0);
    uint32_t two = fill_buffer(messages, payload);
    assert_int_equal(two, one / 2);
    for (uint32_t i = two; i > 0; i--) message_free(u.w, messages[i - 1]);
    assert_int_equal(blocks_used(), 0);
    assert_int_equal(fill_buffer(again, 0), one);
    for (uint32_t i = 0; i < one; i++) message_free(u.w, again[i]);
    expect_books(0, 0);
}

static void append_without_room_leaves_what_came(void **state)
{
    static uint32_t messages[1000];
    static uint8_t out[2000];
    uint32_t count = fill_buffer(messages, 0);
    (void)state;
    for (int i = 0; i < 3; i++) message_free(u.w, messages[--count]); /* three blocks are free */
    uint32_t index = message_new(u.w, OP_TEXT, 0, NULL, 0);
    const size_t most = 3 * u.w->block_bytes - sizeof(struct message);
    assert_int_equal(message_append(u.w, index, pattern(10), 10), 0);
    assert_int_equal(message_append(u.w, index, pattern(most + 1) + 10, most - 10 + 1), -1);
    assert_int_equal(message_at(u.w, index)->size, most);
    assert_int_equal(message_copy(u.w, index, 0, out, sizeof out), most);
    assert_memory_equal(out, pattern(most), most);
    assert_int_equal(message_append(u.w, index, pattern(1), 1), -1);
    assert_int_equal(message_new(u.w, OP_TEXT, 0, NULL, 0), NONE);
    message_free(u.w, index);
    while (count > 0) message_free(u.w, messages[--count]);
    expect_books(0, 0);
}

/* ===== Chains ===== */

/* Takes a message out of its chain and gives its blocks back. */
static void drop(uint32_t index)
{
    message_unlink(u.w, index);
    message_free(u.w, index);
}

/* Drops the messages of a token in every order: the rest stays in its own. */
static void chains_survive_drops_in_every_order(void **state)
{
    static const uint8_t orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                         {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    (void)state;
    for (size_t i = 0; i < COUNT(orders); i++) {
        uint32_t index[3], record = token_make(u.w, (const uint8_t *)"abc", 3);
        int there[3] = {1, 1, 1};
        for (int k = 0; k < 3; k++) {
            index[k] = make(OP_TEXT, "abc", 3, pattern(10), 10);
            message_link(u.w, index[k], record);
        }
        for (int k = 0; k < 3; k++) {
            uint32_t expect = NONE, at = u.w->tokens[record].messages.first, age = u.w->ages[0].first,
                     before = NONE;
            for (int j = 0; j < 3; j++) {
                if (!there[j]) continue;
                assert_int_equal(at, index[j]);
                assert_int_equal(age, index[j]);
                assert_int_equal(message_at(u.w, at)->prev, before);
                assert_int_equal(message_at(u.w, at)->age_prev, before);
                before = expect = at, at = message_at(u.w, at)->next,
                age = message_at(u.w, age)->age_next;
            }
            assert_int_equal(at, NONE);
            assert_int_equal(age, NONE);
            assert_int_equal(u.w->tokens[record].messages.last, expect);
            assert_int_equal(u.w->ages[0].last, expect);
            there[orders[i][k]] = 0;
            drop(index[orders[i][k]]);
        }
        assert_int_equal(u.w->tokens[record].messages.first, NONE);
        assert_int_equal(u.w->ages[0].first, NONE);
        token_release(u.w, record);
        expect_books(0, 0);
    }
}

static void messages_for_all_do_not_age(void **state)
{
    uint32_t index = make(OP_TEXT, NULL, 0, pattern(10), 10);
    (void)state;
    message_link(u.w, index, NONE);
    assert_int_equal(u.w->all->messages.first, index);
    assert_int_equal(u.w->ages[0].first, NONE);
    drop(index);
    assert_int_equal(u.w->all->messages.first, NONE);
    assert_int_equal(u.w->all->messages.last, NONE);
    expect_books(0, 0);
}

/* ===== Tokens ===== */

static uint32_t token_with_message(const char *name, size_t n)
{
    uint32_t index = make(OP_TEXT, name, n, pattern(1), 1);
    message_link(u.w, index, token_make(u.w, (const uint8_t *)name, n));
    return index;
}

static void token_without(uint32_t index)
{
    uint32_t record = message_at(u.w, index)->token;
    drop(index);
    token_release(u.w, record);
}

/* Whether there is more of a token than a record that remembers it. */
static int token_there(const char *name, size_t n)
{
    uint32_t record = token_find(u.w, guard_copy(name, n), n);
    return record != NONE && u.w->tokens[record].first_session != REMEMBERED;
}

static void tokens_are_told_apart_by_every_byte(void **state)
{
    static const struct {
        const char *name;
        size_t n;
    } rows[] = {
        {"a", 1},         {"ab", 2},
        {"abc", 3},       {"b", 1},
        {"A", 1},         {"a ", 2},
        {"\xff\xfe", 2},  {"aaaaaaaa", 8},
        {"aaaaaaaaa", 9}, {"0123456789012345678901234567890123456789012345678901234567890123", 64}};
    uint32_t index[COUNT(rows)];
    (void)state;
    for (unsigned mask = 0; mask < 2; mask++) {
        unit_end(&u);
        small_options();
        unit_start(&u);
        if (mask == 1) u.w->bucket_mask = 0; /* all in one bucket */
        for (size_t i = 0; i < COUNT(rows); i++) {
            assert_int_equal(token_there(rows[i].name, rows[i].n), 0);
            index[i] = token_with_message(rows[i].name, rows[i].n);
        }
        for (size_t i = 0; i < COUNT(rows); i++) {
            uint32_t record = message_at(u.w, index[i])->token;
            assert_int_equal(token_find(u.w, guard_copy(rows[i].name, rows[i].n), rows[i].n),
                             record);
            assert_int_equal(token_make(u.w, guard_copy(rows[i].name, rows[i].n), rows[i].n),
                             record);
        }
        for (size_t i = 0; i < COUNT(rows); i++) { /* first those in the midst of a bucket */
            size_t k = (i * 3 + 4) % COUNT(rows);
            token_without(index[k]);
            assert_int_equal(token_there(rows[k].name, rows[k].n), 0);
            for (size_t j = i + 1; j < COUNT(rows); j++) {
                size_t left = (j * 3 + 4) % COUNT(rows);
                uint32_t record = message_at(u.w, index[left])->token;
                assert_int_equal(token_find(u.w, (const uint8_t *)rows[left].name, rows[left].n),
                                 record);
            }
        }
    }
    expect_books(0, 0);
}

/* Two names with one hash: the bytes decide, of a session's name as of a message's. */
static void tokens_of_one_hash_are_two(void **state)
{
    (void)state;
    uint32_t index = token_with_message("abc", 3), record = message_at(u.w, index)->token;
    const uint64_t own = u.w->tokens[record].hash,
                   other = siphash(u.w->key, (const uint8_t *)"abd", 3);
    u.w->bucket_mask = 0;
    u.w->buckets[0] = record;
    u.w->tokens[record].next = NONE;
    u.w->tokens[record].hash = other;
    assert_int_equal(token_find(u.w, (const uint8_t *)"abd", 3), NONE);
    u.w->tokens[record].hash = siphash(u.w->key, (const uint8_t *)"ab", 2);
    assert_int_equal(token_find(u.w, (const uint8_t *)"ab", 2), NONE);
    u.w->tokens[record].hash = own;
    token_without(index);
    script_join(&peers[0], &u, "abc");
    record = token_find(u.w, (const uint8_t *)"abc", 3);
    u.w->tokens[record].hash = other;
    assert_int_equal(token_find(u.w, (const uint8_t *)"abd", 3), NONE);
    u.w->tokens[record].hash = siphash(u.w->key, (const uint8_t *)"abcd", 4);
    assert_int_equal(token_find(u.w, (const uint8_t *)"abcd", 4), NONE);
    u.w->tokens[record].hash = own;
    assert_int_equal(token_find(u.w, (const uint8_t *)"abc", 3), record);
}

/* Peer addresses that are all in one bucket: each is counted for itself, whoever leaves first. */
static void addresses_of_one_bucket_are_told_apart(void **state)
{
    static struct conn from[8];
    static const unsigned order[8] = {3, 0, 7, 1, 6, 2, 5, 4};
    (void)state;
    unit_end(&u);
    small_options();
    u.o.per_address = 2;
    unit_start(&u);
    u.w->address_mask = 0;
    for (unsigned n = 0; n < 2; n++)
        for (uint8_t i = 0; i < 8; i++) {
            from[i].address[15] = i;
            assert_true(address_admits(u.w, from[i].address));
            address_join(u.w, &from[i]);
        }
    for (unsigned i = 0; i < 8; i++) {
        for (unsigned k = 0; k < 8; k++)
            assert_int_equal(address_admits(u.w, from[order[k]].address), k < i);
        address_leave(u.w, &from[order[i]]);
        assert_true(address_admits(u.w, from[order[i]].address));
        address_leave(u.w, &from[order[i]]);
    }
    assert_int_equal(u.w->address_buckets[0], NONE);
    free_lists(u.w);
}

/* A record for each block and each session: they can't run out before those do. */
static void tokens_never_run_out_of_records(void **state)
{
    static uint32_t index[1000];
    uint32_t n = 0;
    char name[16];
    (void)state;
    for (;; n++) {
        snprintf(name, sizeof name, "t%u", n);
        index[n] = make(OP_TEXT, name, strlen(name), pattern(0), 0);
        if (index[n] == NONE) break;
        message_link(u.w, index[n], token_make(u.w, (const uint8_t *)name, strlen(name)));
    }
    assert_int_equal(exportws_send(u.w, "one more", "x", 1, EXPORTWS_TEXT), EXPORTWS_FULL);
    for (uint32_t i = 0; i < u.w->capacity; i++) assert_int_not_equal(u.w->spare[0].first, NONE);
    for (uint32_t i = 0; i < n; i++) {
        snprintf(name, sizeof name, "t%u", i);
        assert_int_equal(token_find(u.w, (const uint8_t *)name, strlen(name)),
                         message_at(u.w, index[i])->token);
    }
    while (n > 0) token_without(index[--n]);
    expect_books(0, 0);
}

/* ===== Timers ===== */

static void timers_keep_the_order_of_deadlines(void **state)
{
    struct exportws *w = u.w;
    struct conn *c = w->conns;
    (void)state;
    w->durations_ms[TIMER_PING] = 100;
    for (int i = 0; i < 4; i++) {
        timer_set(w, &c[i], TIMER_PING);
        w->now_ms += 10;
    }
    assert_null(timer_due(w, TIMER_PING));
    assert_null(timer_due(w, TIMER_PONG));
    w->now_ms += 59;
    assert_null(timer_due(w, TIMER_PING));
    w->now_ms += 1;
    assert_ptr_equal(timer_due(w, TIMER_PING), &c[0]);
    timer_set(w, &c[0], TIMER_PING); /* it goes to the end */
    assert_null(timer_due(w, TIMER_PING));
    w->now_ms += 10;
    assert_ptr_equal(timer_due(w, TIMER_PING), &c[1]);
    timer_clear(w, &c[2]); /* from the midst */
    timer_clear(w, &c[1]); /* the first */
    w->now_ms += 20;
    assert_ptr_equal(timer_due(w, TIMER_PING), &c[3]);
    timer_clear(w, &c[0]); /* the last */
    assert_int_equal(w->timers[TIMER_PING].last, 3);
    timer_set(w, &c[3], TIMER_PONG); /* another list */
    assert_int_equal(w->timers[TIMER_PING].first, NONE);
    assert_int_equal(w->timers[TIMER_PING].last, NONE);
    assert_int_equal(w->timers[TIMER_PONG].first, 3);
    assert_int_equal(w->timers[TIMER_PONG].last, 3);
    timer_clear(w, &c[3]);
    timer_clear(w, &c[3]); /* twice is once */
    assert_int_equal(w->timers[TIMER_PONG].first, NONE);
    for (int i = 0; i < 4; i++) memset(&c[i], 0, sizeof c[i]);
    free_lists(w);
    expect_books(0, 0);
}

/* ===== Sessions that do not read ===== */

/* Fills the kernel's buffer of a session with empty pings: what is sent next has to wait. */
static void session_clog(uint32_t slot)
{
    const int size = 1024;
    setsockopt(u.w->conns[slot].fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    for (int i = 0; i < 100000; i++)
        if (send(u.w->conns[slot].fd, "\x89\x00", 2, MSG_NOSIGNAL) != 2) return;
    fail_msg("the kernel takes all");
}

/* Reads until all that waited has come, and takes the pings off. */
static void session_unclog(struct script *s)
{
    script_read(s);
    script_play(s, &u);
    while (s->got_size >= 2 && s->got[0] == 0x89 && s->got[1] == 0) script_take(s, 2);
}

/* ===== Hold ===== */

static int send_text(const char *token, const char *text)
{
    return exportws_send(u.w, token, text, strlen(text), EXPORTWS_TEXT);
}

static void held_message_expires_on_its_millisecond(void **state)
{
    (void)state;
    assert_int_equal(send_text("abc", "37 %"), 0);
    expect_books(blocks_for(3, 4), 1);
    assert_int_equal(u.w->m->held, 1);
    clock_advance(400);
    assert_int_equal(send_text("abc", "38 %"), 0);
    assert_int_equal(send_text("other", "1 %"), 0);
    clock_advance(599);
    assert_int_equal(exportws_step(u.w, 0), 0);
    expect_books(2 * blocks_for(3, 4) + blocks_for(5, 3), 3);
    clock_advance(1);
    assert_int_equal(exportws_step(u.w, 0), 1);
    expect_books(blocks_for(3, 4) + blocks_for(5, 3), 2);
    assert_int_equal(u.w->m->expired, 1);
    assert_non_null(strstr(unit_line(&u), " event=expire token=abc\xe2\x80\xa6 id="));
    clock_advance(400);
    assert_int_equal(exportws_step(u.w, 0), 2);
    expect_books(0, 0);
    assert_int_equal(u.w->m->expired, 3);
    assert_int_equal(u.w->m->held, 3);
    assert_int_equal(exportws_kick(u.w, "abc"), EXPORTWS_ABSENT);
}

static void step_sleeps_until_a_message_expires(void **state)
{
    int timeout = 5000;
    struct pollfd fds[16];
    (void)state;
    assert_true(exportws_pollfds(u.w, fds, COUNT(fds), &timeout) >= 1);
    assert_int_equal(timeout, 5000);
    assert_int_equal(send_text("abc", "x"), 0);
    assert_true(exportws_pollfds(u.w, fds, COUNT(fds), &timeout) >= 1);
    assert_int_equal(timeout, 1000);
    clock_advance(300);
    timeout = -1;
    exportws_pollfds(u.w, fds, COUNT(fds), &timeout);
    assert_int_equal(timeout, 700);
}

static void nothing_is_held_when_holding_is_off(void **state)
{
    (void)state;
    unit_end(&u);
    small_options();
    u.o.hold_ms = 0;
    unit_start(&u);
    assert_int_equal(send_text("abc", "x"), EXPORTWS_ABSENT);
    expect_books(0, 0);
    assert_int_equal(u.w->m->pushed, 0);
}

/* With holding off a message may still wait for a slow session, and for nobody else. */
static void message_waits_for_a_slow_session_when_holding_is_off(void **state)
{
    (void)state;
    unit_end(&u);
    small_options();
    u.o.hold_ms = 0;
    unit_start(&u);
    script_join(&peers[0], &u, "abc");
    session_clog(0);
    assert_int_equal(send_text("abc", "1"), 1);
    clock_advance(5000);
    unit_settle(&u);
    expect_books(blocks_for(3, 1), 0);
    session_unclog(&peers[0]);
    script_expect_text(&peers[0], "1");
    session_clog(0);
    assert_int_equal(send_text("abc", "2"), 1);
    script_close(&peers[0]);
    unit_settle(&u);
    expect_books(0, 0);
    assert_int_equal(u.w->m->expired, 0);
}

static void expiry_is_counted_though_nobody_reads_the_log(void **state)
{
    (void)state;
    u.w->o.log_level = EXPORTWS_LOG_WARN;
    assert_int_equal(send_text("abc", "x"), 0);
    clock_advance(1000);
    assert_int_equal(exportws_step(u.w, 0), 1);
    assert_int_equal(u.count, 0);
    assert_int_equal(u.w->m->expired, 1);
}

static void broadcast_to_nobody_keeps_nothing(void **state)
{
    (void)state;
    assert_int_equal(exportws_broadcast(u.w, "x", 1, EXPORTWS_TEXT), 0);
    expect_books(0, 0);
    assert_int_equal(u.w->m->pushed, 1);
    assert_int_equal(u.w->m->held, 0);
}

static void held_messages_reach_the_next_session_in_order_once(void **state)
{
    static const uint8_t bytes[] = {0, 0xff, 0x80};
    static char large[60000];
    (void)state;
    memset(large, 'l', sizeof large);
    assert_int_equal(send_text("abc", "first"), 0);
    assert_int_equal(send_text("abd", "another's"), 0);
    assert_int_equal(exportws_send(u.w, "abc", bytes, sizeof bytes, EXPORTWS_BINARY), 0);
    assert_int_equal(send_text("abc", ""), 0);
    assert_int_equal(exportws_send(u.w, "abc", large, sizeof large, EXPORTWS_TEXT), 0);
    script_join(&peers[0], &u, "abc");
    script_expect_text(&peers[0], "first");
    script_expect(&peers[0], OP_BINARY, bytes, sizeof bytes);
    script_expect_text(&peers[0], "");
    script_expect(&peers[0], OP_TEXT, large, sizeof large);
    assert_int_equal(peers[0].got_size, 0);
    expect_books(blocks_for(3, 9), 1);
    script_join(&peers[1], &u, "abc");
    assert_int_equal(peers[1].got_size, 0);
    assert_int_equal(send_text("abc", "now"), 2);
    script_play(&peers[0], &u), script_play(&peers[1], &u);
    script_expect_text(&peers[0], "now");
    script_expect_text(&peers[1], "now");
    assert_int_equal(u.w->m->delivered, 6);
    assert_int_equal(u.w->m->expired, 0);
}

static void kick_drops_what_is_held(void **state)
{
    (void)state;
    assert_int_equal(send_text("abc", "1"), 0);
    assert_int_equal(send_text("abc", "2"), 0);
    assert_int_equal(send_text("abd", "3"), 0);
    assert_int_equal(exportws_kick(u.w, "abc"), 0);
    expect_books(blocks_for(3, 1), 1);
    assert_int_equal(exportws_kick(u.w, "abc"), EXPORTWS_ABSENT);
    script_join(&peers[0], &u, "abc");
    assert_int_equal(peers[0].got_size, 0);
    clock_advance(1000);
    exportws_step(u.w, 0);
    expect_books(0, 0);
    assert_int_equal(u.w->m->expired, 1);
}

static void full_buffer_refuses_and_keeps_nothing_of_it(void **state)
{
    int sent = 0, result;
    (void)state;
    while ((result = exportws_send(u.w, "abc", pattern(1000), 1000, EXPORTWS_BINARY)) == 0) sent++;
    assert_int_equal(result, EXPORTWS_FULL);
    assert_true(sent >= 60);
    expect_books((uint32_t)sent * blocks_for(3, 1000), (uint32_t)sent);
    assert_int_equal(exportws_send(u.w, "new", pattern(1000), 1000, EXPORTWS_BINARY),
                     EXPORTWS_FULL);
    assert_int_equal(token_find(u.w, (const uint8_t *)"new", 3), NONE);
    assert_int_equal(u.w->m->pushed, sent);
    clock_advance(1000);
    assert_int_equal(exportws_step(u.w, 0), sent);
    expect_books(0, 0);
    assert_int_equal(exportws_send(u.w, "abc", pattern(1000), 1000, EXPORTWS_BINARY), 0);
    expect_books(blocks_for(3, 1000), 1);
}

static void message_larger_than_the_buffer_is_refused_whole(void **state)
{
    (void)state;
    unit_end(&u);
    small_options();
    u.o.buffer_bytes = 20000;
    unit_start(&u);
    assert_int_equal(send_text("abc", "small"), 0);
    assert_int_equal(exportws_send(u.w, "abc", pattern(70000), 70000, EXPORTWS_BINARY),
                     EXPORTWS_FULL);
    expect_books(blocks_for(3, 5), 1);
    script_join(&peers[0], &u, "abc");
    script_expect_text(&peers[0], "small");
    assert_int_equal(peers[0].got_size, 0);
}

static void fill_with_held(void)
{
    while (exportws_send(u.w, "other", pattern(1000), 1000, EXPORTWS_BINARY) == 0) {}
    while (send_text("other", "fills the last blocks") == 0) {}
}

/* A body that comes in pieces is put together in the reserve, so that what is held for others can't
 * keep it from a session that is there. */
static void full_buffer_does_not_stop_a_body_on_its_way(void **state)
{
    static const struct piece there[] = {
        PIECE("POST /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe"),
        PIECE("llo")};
    static const struct piece absent[] = {
        PIECE("POST /app/ws/export-task/new HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe"),
        PIECE("llo")};
    (void)state;
    script_join(&peers[0], &u, "abc");
    fill_with_held();
    const uint32_t full = blocks_used(), held = u.w->held;
    script_attach(&peers[1], &u, EXPORTWS_PUSH, there, COUNT(there));
    assert_int_equal(script_send(&peers[1]), 1);
    unit_settle(&u);
    expect_books(full + blocks_for(3, 2), held);
    script_play(&peers[1], &u), script_play(&peers[0], &u);
    assert_memory_equal(peers[1].got, "HTTP/1.1 200 ", 13);
    script_expect_text(&peers[0], "hello");
    expect_books(full, held);
    script_attach(&peers[2], &u, EXPORTWS_PUSH, absent, COUNT(absent));
    script_play(&peers[2], &u);
    assert_memory_equal(peers[2].got, "HTTP/1.1 503 ", 13);
    peers[2].got[peers[2].got_size] = '\0';
    assert_non_null(strstr((char *)peers[2].got, "nobody there, and no room to hold it"));
    expect_books(full, held);
}

#define ALL "POST /app/ws/export-task HTTP/1.1\r\nHost:x\r\nContent-Length:1\r\n\r\nx"

static int inputs_overflow(void)
{
    int n = 0;
    for (uint32_t i = 0; i < u.w->input_count; i++)
        n += u.w->inputs[i].owner != NONE && u.w->inputs[i].used > u.w->inputs[i].size;
    return n;
}

/* Of a batch of broadcasts a turn serves no more than it has sends for, once and once again, and of
 * a second batch one at least; in order, and whole, also when the pusher says no more behind it. In a
 * small server what is left stays in the kernel. */
static void batches_of_broadcasts_are_served_in_turns(void **state)
{
    static char batch[420 * (sizeof ALL - 1)];
    const size_t n = sizeof ALL - 1;
    const struct piece piece = {batch, sizeof batch}, half = PIECE("GET /");
    const uint32_t sessions = 400, share = TURN_SENDS / sessions + 1;
    (void)state;
    for (size_t i = 0; i < 420; i++) memcpy(batch + i * n, ALL, n);
    for (int small = 0; small < 2; small++) {
        unit_end(&u);
        small_options();
        if (!small) u.o.capacity = 200;
        unit_start(&u);
        for (int i = 0; i < 2; i++) script_attach(&peers[i], &u, EXPORTWS_PUSH, &piece, 1);
        script_attach(&peers[2], &u, EXPORTWS_CLIENTS, &half, 1), script_play(&peers[2], &u);
        assert_int_equal(script_send(&peers[0]), 1);
        assert_int_equal(shutdown(peers[0].fd, SHUT_WR), 0);
        u.w->sessions = sessions;
        exportws_step(u.w, 0);
        assert_int_equal(u.w->m->pushed, small ? share : 2 * share);
        if (small) assert_int_equal(u.w->waiting, 0);
        else assert_int_equal(loop_timeout(u.w, -1), 0);
        assert_int_equal(script_send(&peers[1]), 1);
        const uint64_t before = u.w->m->pushed;
        for (unsigned turn = 1; turn <= 3; turn++) {
            assert_true(exportws_step(u.w, 0) > 0);
            assert_in_range(u.w->m->pushed, before + turn * 2, before + turn * 2 * (share + 2));
            assert_int_equal(inputs_overflow(), 0);
            script_read(&peers[1]);
            assert_true(answers_in(&peers[1]) >= turn);
        }
        while (exportws_step(u.w, 0) > 0 || u.w->pushes_left) {
            assert_int_equal(inputs_overflow(), 0);
            script_read(&peers[0]), script_read(&peers[1]);
        }
        u.w->sessions = 0;
        script_play(&peers[0], &u), script_play(&peers[1], &u);
        assert_int_equal(u.w->m->pushed, 840);
        for (int i = 0; i < 2; i++) assert_int_equal(answers_in(&peers[i]), 420);
        assert_int_equal(u.w->pushes_left, 0);
        for (int i = 0; i < 3; i++) script_close(&peers[i]);
        unit_settle(&u);
        expect_books(0, 0);
    }
}

/* A token's message counts with each session that it reaches. */
static void sends_to_a_token_count(void **state)
{
    (void)state;
    script_join(&peers[0], &u, "abc"), script_join(&peers[1], &u, "abc");
    u.w->sends = 0;
    assert_int_equal(send_text("abc", "x"), 2);
    assert_int_equal(u.w->sends, 3);
}

/* However little a turn has left, a request goes on in all that has come of it. */
static void chunks_behind_a_turns_last_send_are_read(void **state)
{
    static const struct piece pieces[] = {
        PIECE("POST /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\n"
              "Transfer-Encoding: chunked\r\n\r\n"
              "1\r\na\r\n1\r\nb\r\n1\r\nc\r\n1\r\nd\r\n1\r\ne\r\n1\r\nf\r\n0\r\n\r\n")};
    (void)state;
    script_attach(&peers[0], &u, EXPORTWS_PUSH, pieces, 1);
    assert_int_equal(script_send(&peers[0]), 1);
    u.w->sends = TURN_SENDS;
    exportws_step(u.w, 0);
    assert_int_equal(u.w->m->pushed, 1);
}

/* A body longer than an input, when the turn has no sends left: it is whole in the next. */
static void body_behind_a_turns_last_send_is_whole(void **state)
{
    static char request[60000 + 200];
    int n = sprintf(request, "POST /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\n"
                             "Content-Length: 60000\r\n\r\n");
    const struct piece pieces[] = {{request, 40000}, {request + 40000, (size_t)n + 20000}};
    (void)state;
    unit_end(&u);
    small_options();
    u.o.capacity = 200;
    unit_start(&u);
    memcpy(request + n, pattern(60000), 60000);
    for (int i = 0; i < 60000; i++) request[n + i] = (char)('a' + (unsigned char)request[n + i] % 26);
    script_join(&peers[1], &u, "abc");
    script_attach(&peers[0], &u, EXPORTWS_PUSH, pieces, 2);
    assert_int_equal(script_send(&peers[0]), 1);
    for (int turn = 0; turn < 10; turn++) {
        u.w->sends = TURN_SENDS;
        exportws_step(u.w, 0);
        assert_int_equal(inputs_overflow(), 0);
    }
    script_play(&peers[0], &u), script_play(&peers[1], &u);
    assert_int_equal(answers_in(&peers[0]), 1);
    script_expect(&peers[1], OP_TEXT, request + n, 60000);
    expect_books(0, 0);
}

/* The same for what threads have posted; neither keeps the other waiting. */
static void posts_are_served_in_turns(void **state)
{
    static const struct piece piece = PIECE(ALL ALL ALL);
    (void)state;
    unit_end(&u);
    small_options();
    u.o.capacity = 200; /* with inputs for heads */
    unit_start(&u);
    script_attach(&peers[0], &u, EXPORTWS_PUSH, &piece, 1);
    for (int i = 0; i < 2; i++)
        assert_int_equal(exportws_post(u.w, NULL, "x", 1, EXPORTWS_TEXT), 0);
    u.w->sessions = TURN_SENDS;
    assert_int_equal(script_send(&peers[0]), 1);
    exportws_step(u.w, 0);
    assert_int_equal(u.w->m->pushed, 3); /* of the two posts, and of three requests twice, one */
    assert_int_equal(loop_timeout(u.w, -1), 0);
    exportws_step(u.w, 0);
    assert_int_equal(u.w->m->pushed, 5);
    u.w->sessions = 0;
    unit_settle(&u);
    assert_int_equal(u.w->posts_left, 0);
    expect_books(0, 0);
}

/* A body for which there is no room is bounded all the same. */
static void body_without_room_is_bounded(void **state)
{
    static const char head[] = "POST /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\n"
                               "Transfer-Encoding: chunked\r\n\r\n";
    static char chunks[18 * 4104];
    const struct piece first = PIECE("POST /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\n"
                                     "Content-Length: 70000\r\n\r\n"),
                       pieces[] = {{head, sizeof head - 1}, {chunks, sizeof chunks}};
    (void)state;
    fill_with_held();
    script_attach(&peers[0], &u, EXPORTWS_PUSH, &first, 1), script_play(&peers[0], &u);
    memset(chunks, 'x', 69000);
    assert_int_equal(send(peers[0].fd, chunks, 69000, MSG_NOSIGNAL), 69000);
    unit_settle(&u);
    for (size_t i = 0; i < 18; i++) {
        memset(chunks + i * 4104, 'x', 4104);
        memcpy(chunks + i * 4104, "1000\r\n", 6);
        memcpy(chunks + i * 4104 + 4102, "\r\n", 2);
    }
    script_attach(&peers[1], &u, EXPORTWS_PUSH, pieces, 2), script_play(&peers[1], &u);
    assert_memory_equal(peers[1].got, "HTTP/1.1 413 ", 13);
}

/* The reserve holds the longest message there may be, and nothing but bodies on their way. */
static void reserve_is_for_bodies_only(void **state)
{
    static uint32_t messages[1000];
    uint32_t count = fill_buffer(messages, 0), used = blocks_used();
    (void)state;
    assert_int_equal(u.w->blocks_free, u.w->reserve);
    assert_int_equal(message_new(u.w, OP_TEXT, 0, NULL, 0), NONE);
    assert_int_equal(message_new(u.w, 0, 0, NULL, 0), NONE);
    uint32_t draft = message_new(u.w, OP_TEXT, 1, (const uint8_t *)"abc", 3);
    assert_int_not_equal(draft, NONE);
    assert_int_equal(message_append(u.w, draft, pattern(70000), u.o.max_push_bytes), 0);
    assert_int_equal(blocks_used(), used + blocks_for(3, u.o.max_push_bytes));
    message_free(u.w, draft);
    while (count > 0) message_free(u.w, messages[--count]);
    expect_books(0, 0);
}

static uint64_t logged_id(void)
{
    const char *at = strstr(unit_line(&u), " id=");
    assert_non_null(at);
    return strtoull(at + 4, NULL, 10);
}

static void ids_start_from_the_clock_and_only_grow(void **state)
{
    uint64_t before = fake_clock.realtime_ms * 1000 - 1;
    (void)state;
    for (int server = 0; server < 3; server++) {
        for (int i = 0; i < 50; i++) {
            assert_int_equal(
                i % 2 ? exportws_broadcast(u.w, "x", 1, EXPORTWS_TEXT) : send_text("abc", "x"), 0);
            assert_true(logged_id() > before);
            before = logged_id();
        }
        clock_advance(1);
        unit_end(&u);
        small_options();
        unit_start(&u);
    }
}

/* ===== Slow sessions ===== */

static void broadcast_is_kept_once_for_all_that_wait(void **state)
{
    static const char text[] = "to all";
    (void)state;
    for (uint32_t i = 0; i < 4; i++) script_join(&peers[i], &u, i < 2 ? "abc" : "abd");
    for (uint32_t i = 0; i < 3; i++) session_clog(i);
    assert_int_equal(exportws_broadcast(u.w, text, sizeof text - 1, EXPORTWS_TEXT), 4);
    expect_books(blocks_for(0, sizeof text - 1), 0);
    assert_int_equal(message_at(u.w, u.w->all->messages.first)->refs, 3);
    script_play(&peers[3], &u);
    script_expect_text(&peers[3], text);
    for (uint32_t i = 0; i < 3; i++) {
        expect_books(blocks_for(0, sizeof text - 1), 0);
        session_unclog(&peers[i]);
        script_expect_text(&peers[i], text);
        assert_int_equal(peers[i].got_size, 0);
    }
    expect_books(0, 0);
    assert_int_equal(exportws_sessions(u.w), 4);
}

/* Its own, those for all, and pongs come in the order in which they were sent. */
static void waiting_messages_of_all_kinds_keep_their_order(void **state)
{
    static const struct piece ping[] = {PIECE("\x89\x81\x00\x00\x00\x00p")};
    (void)state;
    script_join(&peers[0], &u, "abc");
    script_join(&peers[1], &u, "abd");
    session_clog(0);
    assert_int_equal(send_text("abc", "own 1"), 1);
    assert_int_equal(exportws_broadcast(u.w, "all 1", 5, EXPORTWS_TEXT), 2);
    assert_int_equal(send_text("abd", "not mine"), 1);
    assert_int_equal(send_text("abc", "own 2"), 1);
    peers[0].pieces = ping, peers[0].count = 1;
    assert_int_equal(script_send(&peers[0]), 1);
    unit_settle(&u);
    assert_int_equal(exportws_broadcast(u.w, "all 2", 5, EXPORTWS_TEXT), 2);
    assert_int_equal(exportws_broadcast(u.w, "all 3", 5, EXPORTWS_TEXT), 2);
    assert_int_equal(send_text("abc", "own 3"), 1);
    expect_books(6 * blocks_for(3, 5) + 1, 0);
    session_unclog(&peers[0]);
    script_expect_text(&peers[0], "own 1");
    script_expect_text(&peers[0], "all 1");
    script_expect_text(&peers[0], "own 2");
    script_expect(&peers[0], OP_PONG, "p", 1);
    script_expect_text(&peers[0], "all 2");
    script_expect_text(&peers[0], "all 3");
    script_expect_text(&peers[0], "own 3");
    assert_int_equal(peers[0].got_size, 0);
    expect_books(0, 0);
}

/* The kernel takes a part of a frame; the rest follows byte for byte, at any pace. */
static void rest_of_a_large_message_follows_whole(void **state)
{
    static uint8_t large[70000];
    (void)state;
    memcpy(large, pattern(sizeof large), sizeof large);
    script_join(&peers[0], &u, "abc");
    session_clog(0);
    assert_int_equal(exportws_send(u.w, "abc", large, sizeof large, EXPORTWS_BINARY), 1);
    expect_books(blocks_for(3, sizeof large), 0);
    assert_int_equal(send_text("abc", "behind"), 1);
    session_unclog(&peers[0]);
    script_expect(&peers[0], OP_BINARY, large, sizeof large);
    script_expect_text(&peers[0], "behind");
    expect_books(0, 0);
}

static void message_that_somebody_waits_for_outlives_its_time(void **state)
{
    (void)state;
    script_join(&peers[0], &u, "abc");
    session_clog(0);
    assert_int_equal(send_text("abc", "late"), 1);
    clock_advance(2000);
    unit_settle(&u);
    expect_books(blocks_for(3, 4), 0);
    session_unclog(&peers[0]);
    script_expect_text(&peers[0], "late");
    expect_books(0, 0);
    assert_int_equal(u.w->m->expired, 0);
}

/* Who waits for a message leaves: it is held when its time is not over and nobody got it. */
static void message_of_a_session_that_left_is_held_for_the_next(void **state)
{
    (void)state;
    script_join(&peers[0], &u, "abc");
    session_clog(0);
    assert_int_equal(send_text("abc", "not got"), 1);
    expect_books(blocks_for(3, 7), 0);
    script_close(&peers[0]);
    unit_settle(&u);
    expect_books(blocks_for(3, 7), 1);
    assert_int_equal(exportws_sessions(u.w), 0);
    script_join(&peers[1], &u, "abc");
    script_expect_text(&peers[1], "not got");
    expect_books(0, 0);
}

static void message_of_a_session_that_left_too_late_is_expired(void **state)
{
    (void)state;
    script_join(&peers[0], &u, "abc");
    session_clog(0);
    assert_int_equal(send_text("abc", "not got"), 1);
    clock_advance(1000);
    unit_settle(&u);
    assert_int_equal(u.w->m->expired, 0);
    script_close(&peers[0]);
    unit_settle(&u);
    expect_books(0, 0);
    assert_int_equal(u.w->m->expired, 1);
    script_join(&peers[1], &u, "abc");
    assert_int_equal(peers[1].got_size, 0);
}

static void message_that_one_session_got_is_not_held_for_others(void **state)
{
    (void)state;
    script_join(&peers[0], &u, "abc");
    script_join(&peers[1], &u, "abc");
    session_clog(0);
    assert_int_equal(send_text("abc", "got by one"), 2);
    expect_books(blocks_for(3, 10), 0);
    script_close(&peers[0]);
    unit_settle(&u);
    expect_books(0, 0);
    script_play(&peers[1], &u);
    script_expect_text(&peers[1], "got by one");
    assert_int_equal(u.w->m->expired, 0);
}

static void broadcast_is_not_held_for_one_that_left(void **state)
{
    (void)state;
    script_join(&peers[0], &u, "abc");
    session_clog(0);
    assert_int_equal(exportws_broadcast(u.w, "to all", 6, EXPORTWS_TEXT), 1);
    expect_books(blocks_for(0, 6), 0);
    script_close(&peers[0]);
    unit_settle(&u);
    expect_books(0, 0);
}

/* Two wait for the same: the newcomer, too, gets what nobody has got. */
static void newcomer_gets_what_another_still_waits_for(void **state)
{
    (void)state;
    script_join(&peers[0], &u, "abc");
    session_clog(0);
    assert_int_equal(send_text("abc", "1"), 1);
    assert_int_equal(send_text("abc", "2"), 1);
    script_join(&peers[1], &u, "abc");
    script_expect_text(&peers[1], "1");
    script_expect_text(&peers[1], "2");
    expect_books(2 * blocks_for(3, 1), 0);
    script_join(&peers[2], &u, "abc"); /* by now somebody has got them */
    assert_int_equal(peers[2].got_size, 0);
    session_unclog(&peers[0]);
    script_expect_text(&peers[0], "1");
    script_expect_text(&peers[0], "2");
    expect_books(0, 0);
}

static void full_queue_closes_the_slow_session_alone(void **state)
{
    const uint64_t *slow = &u.w->m->closed[EXPORTWS_BY_SLOW];
    (void)state;
    script_join(&peers[0], &u, "abc");
    script_join(&peers[1], &u, "abc");
    session_clog(0);
    for (size_t i = 0; i < u.o.queue; i++) assert_int_equal(send_text("abc", "x"), 2);
    assert_int_equal(*slow, 0);
    expect_books((uint32_t)u.o.queue * blocks_for(3, 1), 0);
    assert_int_equal(send_text("abc", "one more"), 1);
    assert_int_equal(*slow, 1);
    expect_books(1, 0); /* its close frame */
    session_unclog(&peers[0]);
    script_expect_close(&peers[0], 1013, "too slow: queue full");
    script_play(&peers[1], &u);
    for (size_t i = 0; i < u.o.queue; i++) script_expect_text(&peers[1], "x");
    script_expect_text(&peers[1], "one more");
    assert_int_equal(exportws_sessions(u.w), 1);
    expect_books(0, 0);
}

static void full_buffer_closes_the_slow_session_alone(void **state)
{
    uint32_t sent = 0;
    int result;
    (void)state;
    script_join(&peers[0], &u, "abc");
    script_join(&peers[1], &u, "abd");
    session_clog(0);
    while ((result = exportws_send(u.w, "abc", pattern(5000), 5000, EXPORTWS_BINARY)) == 1) sent++;
    assert_int_equal(result, EXPORTWS_FULL);
    assert_true(sent >= 10 && sent < u.o.queue);
    assert_int_equal(u.w->m->closed[EXPORTWS_BY_SLOW], 1);
    /* Those it waited for, and its close frame. */
    expect_books(sent * blocks_for(3, 5000) + 1, sent);
    session_unclog(&peers[0]);
    script_expect_close(&peers[0], 1013, "too slow: buffer full");
    assert_int_equal(send_text("abd", "well"), 1);
    script_play(&peers[1], &u);
    script_expect_text(&peers[1], "well");
}

static void kick_lets_waiting_messages_go_first(void **state)
{
    (void)state;
    script_join(&peers[0], &u, "abc");
    session_clog(0);
    assert_int_equal(send_text("abc", "last words"), 1);
    assert_int_equal(exportws_kick(u.w, "abc"), 1);
    assert_int_equal(exportws_online(u.w), 0);
    assert_int_equal(exportws_kick(u.w, "abc"), EXPORTWS_ABSENT);
    assert_int_equal(send_text("abc", "for the next"), 0);
    expect_books(blocks_for(3, 10) + 1 + blocks_for(3, 12), 1);
    session_unclog(&peers[0]);
    script_expect_text(&peers[0], "last words");
    script_expect_close(&peers[0], 1000, "ended");
    expect_books(blocks_for(3, 12), 1);
    script_join(&peers[1], &u, "abc");
    script_expect_text(&peers[1], "for the next");
    expect_books(0, 0);
}

static void close_frame_that_fails_is_told_as_none(void **state)
{
    (void)state;
    script_join(&peers[0], &u, "abc");
    script_close(&peers[0]);
    assert_int_equal(exportws_kick(u.w, "abc"), 1);
    unit_settle(&u);
    assert_non_null(strstr(unit_line(&u), " reason=ended code=1006"));
    assert_int_equal(u.w->m->closed[EXPORTWS_BY_ENDED], 1);
    expect_books(0, 0);
}

/* ===== Pushers that are slow, or many ===== */

#define ASK "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"
#define ASK_LAST "GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"

/* A pusher whose answers wait for it: its connection takes few bytes at a time. */
static struct conn *slow_pusher(struct script *s, const struct piece *pieces, size_t count)
{
    const int size = 4096;
    script_attach(s, &u, EXPORTWS_PUSH, pieces, count);
    struct conn *c = &u.w->conns[u.w->pushers_at];
    while (c->state != CONN_PUSH) c++;
    assert_int_equal(setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
    assert_int_equal(script_send(s), 1);
    unit_settle(&u);
    assert_int_not_equal(c->queued, 0);
    return c;
}

/* Who has said its last may still take its time to read. */
static void last_answers_wait_for_who_reads_them(void **state)
{
    static const struct piece pieces[] = {PIECE(ASK ASK ASK ASK ASK_LAST)};
    (void)state;
    struct conn *c = slow_pusher(&peers[0], pieces, 1);
    assert_int_equal(c->state, CONN_LINGER);
    assert_int_equal(shutdown(peers[0].fd, SHUT_WR), 0);
    for (unsigned reads = 0; c->queued > 0; reads++) {
        assert_in_range(reads, 0, 20);
        clock_advance(u.o.write_timeout_ms - 1);
        unit_settle(&u);
        script_read(&peers[0]);
        unit_settle(&u);
    }
    script_play(&peers[0], &u);
    assert_int_equal(answers_in(&peers[0]), 5);
    assert_int_equal(peers[0].ended, 1);
    assert_int_equal(c->state, CONN_FREE);
    expect_books(0, 0);
}

static void last_answers_do_not_wait_for_ever(void **state)
{
    static const struct piece pieces[] = {PIECE(ASK ASK ASK ASK ASK_LAST)};
    (void)state;
    struct conn *c = slow_pusher(&peers[0], pieces, 1);
    clock_advance(u.o.write_timeout_ms - 1);
    unit_settle(&u);
    assert_int_equal(c->state, CONN_LINGER);
    clock_advance(1);
    unit_settle(&u);
    assert_int_equal(c->state, CONN_FREE);
    expect_books(0, 0);
}

/* Behind answers that had to wait: a head, or a body, has its deadline, and a pusher at rest has the
 * longer one. */
static void answers_that_waited_leave_the_deadline_as_it_is(void **state)
{
    static const struct {
        struct piece piece;
        unsigned timer;
    } rows[] = {
        {PIECE(ASK ASK ASK ASK), TIMER_IDLE},
        {PIECE(ASK ASK ASK ASK "GET /onl"), TIMER_HEAD},
        {PIECE(ASK ASK ASK ASK "POST /app/ws/export-task/abc HTTP/1.1\r\n"
               "Host: h\r\nContent-Length: 5\r\n\r\n"), TIMER_HEAD},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        const struct conn *c = slow_pusher(&peers[i], &rows[i].piece, 1);
        assert_int_equal(c->timer, TIMER_WRITE);
        script_play(&peers[i], &u);
        assert_int_equal(answers_in(&peers[i]), 4);
        assert_int_equal(c->timer, rows[i].timer);
        script_close(&peers[i]);
        unit_settle(&u);
    }
    expect_books(0, 0);
}

/* With a secret, who has not shown it gives way, whatever he does, who came first first; nobody else
 * does. */
static void strangers_at_the_push_door_give_way(void **state)
{
    static const struct piece half = PIECE("GET /onl"),
                              ask = PIECE("GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"),
                              wrong = PIECE("POST /online HTTP/1.1\r\nHost: h\r\n"
                                            "Content-Length: 1\r\n\r\n1"),
                              right = PIECE("GET /online HTTP/1.1\r\nHost: h\r\n"
                                            "Authorization: Bearer secret\r\n\r\n");
    static const struct piece *const pieces[4] = {&right, &half, &ask, &wrong};
    static struct script late[5], shy;
    const struct sockaddr from = {.sa_family = AF_UNIX};
    (void)state;
    unit_end(&u);
    small_options();
    u.o.pushers = 5, u.o.push_secret = "secret";
    unit_start(&u);
    for (unsigned i = 0; i < 4; i++) {
        clock_advance(i > 0 ? 1 : 0);
        script_attach(&peers[i], &u, EXPORTWS_PUSH, pieces[i], 1);
        script_play(&peers[i], &u);
    }
    clock_advance(1);
    script_attach(&shy, &u, EXPORTWS_PUSH, &right, 1);
    for (unsigned i = 0; i < 5; i++) { /* the first comes too early, the last finds no stranger */
        const char *want = i > 0 && i < 4 ? "HTTP/1.1 200 " : "HTTP/1.1 503 ";
        if (i < 4) {
            script_attach(&late[i], &u, EXPORTWS_PUSH, &right, 1);
        } else {
            int fd = script_open(&late[i], &right, 1);
            assert_int_equal(script_send(&shy), 1); /* it shows the secret at the last moment */
            pusher_accept(u.w, fd, &from);
        }
        script_play(&late[i], &u);
        assert_memory_equal(late[i].got, want, 13);
        for (unsigned k = 1; k < 4; k++) {
            script_play(&peers[k], &u);
            assert_int_equal(peers[k].ended, k == 3 || k <= i); /* k == 3: it was refused */
            peers[k].got[peers[k].got_size] = '\0';
            const int told = strstr((char *)peers[k].got, "HTTP/1.1 408 ") != NULL;
            assert_int_equal(told, k < 3 && k <= i);
        }
        assert_int_equal(u.w->pushers, 5);
        clock_advance(STRANGER_MS);
    }
    script_play(&peers[0], &u), script_play(&shy, &u);
    assert_int_equal(peers[0].ended + shy.ended, 0);
    assert_int_equal(answers_in(&shy), 1);
    assert_int_equal(u.w->waiting, 0);
    for (unsigned i = 0; i < 5; i++) script_close(&late[i]);
    script_close(&shy);
    unit_settle(&u);
    expect_books(0, 0);
}

/* A POST that stops has an id in its refusal as soon as its first line has come. */
static void post_that_stops_is_refused_with_an_id(void **state)
{
    static const struct {
        struct piece piece;
        int id;
    } rows[] = {{PIECE("POST /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\n"), 1},
                {PIECE("POST /app/ws/export-task/abc HTTP/1.1\r\nHost: h\r\n"
                       "Content-Length: 5\r\n\r\nhe"), 1},
                {PIECE("GET /online HTTP/1.1\r\nHost: h\r\n"), 0},
                {PIECE("POST /app/ws/exp"), 0}};
    (void)state;
    for (int small = 0; small < 2; small++) { /* there what is not whole stays in the kernel */
        unit_end(&u);
        small_options();
        if (!small) u.o.capacity = 200;
        unit_start(&u);
        for (size_t i = 0; i < COUNT(rows); i++) {
            script_attach(&peers[0], &u, EXPORTWS_PUSH, &rows[i].piece, 1);
            script_play(&peers[0], &u);
            clock_advance(u.o.handshake_timeout_ms);
            script_play(&peers[0], &u);
            assert_memory_equal(peers[0].got, "HTTP/1.1 408 ", 13);
            peers[0].got[peers[0].got_size] = '\0';
            assert_int_equal(strstr((char *)peers[0].got, "\"id\":") != NULL, rows[i].id);
            script_close(&peers[0]);
            unit_settle(&u);
        }
        expect_books(0, 0);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, small_start, small_end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(blocks_are_counted_at_every_size),
        TEST(private_blocks_are_counted_apart),
        TEST(payload_is_copied_from_every_offset),
        TEST(payload_may_come_in_pieces_of_any_size),
        TEST(full_buffer_says_so_and_all_of_it_comes_back),
        TEST(append_without_room_leaves_what_came),
        TEST(chains_survive_drops_in_every_order),
        TEST(messages_for_all_do_not_age),
        TEST(tokens_are_told_apart_by_every_byte),
        TEST(tokens_of_one_hash_are_two),
        TEST(addresses_of_one_bucket_are_told_apart),
        TEST(tokens_never_run_out_of_records),
        TEST(timers_keep_the_order_of_deadlines),
        TEST(held_message_expires_on_its_millisecond),
        TEST(step_sleeps_until_a_message_expires),
        TEST(nothing_is_held_when_holding_is_off),
        TEST(message_waits_for_a_slow_session_when_holding_is_off),
        TEST(expiry_is_counted_though_nobody_reads_the_log),
        TEST(broadcast_to_nobody_keeps_nothing),
        TEST(held_messages_reach_the_next_session_in_order_once),
        TEST(kick_drops_what_is_held),
        TEST(full_buffer_refuses_and_keeps_nothing_of_it),
        TEST(message_larger_than_the_buffer_is_refused_whole),
        TEST(full_buffer_does_not_stop_a_body_on_its_way),
        TEST(batches_of_broadcasts_are_served_in_turns),
        TEST(sends_to_a_token_count),
        TEST(chunks_behind_a_turns_last_send_are_read),
        TEST(body_behind_a_turns_last_send_is_whole),
        TEST(posts_are_served_in_turns),
        TEST(body_without_room_is_bounded),
        TEST(reserve_is_for_bodies_only),
        TEST(close_frame_that_fails_is_told_as_none),
        TEST(last_answers_wait_for_who_reads_them),
        TEST(last_answers_do_not_wait_for_ever),
        TEST(answers_that_waited_leave_the_deadline_as_it_is),
        TEST(strangers_at_the_push_door_give_way),
        TEST(post_that_stops_is_refused_with_an_id),
        TEST(ids_start_from_the_clock_and_only_grow),
        TEST(broadcast_is_kept_once_for_all_that_wait),
        TEST(waiting_messages_of_all_kinds_keep_their_order),
        TEST(rest_of_a_large_message_follows_whole),
        TEST(message_that_somebody_waits_for_outlives_its_time),
        TEST(message_of_a_session_that_left_is_held_for_the_next),
        TEST(message_of_a_session_that_left_too_late_is_expired),
        TEST(message_that_one_session_got_is_not_held_for_others),
        TEST(broadcast_is_not_held_for_one_that_left),
        TEST(newcomer_gets_what_another_still_waits_for),
        TEST(full_queue_closes_the_slow_session_alone),
        TEST(full_buffer_closes_the_slow_session_alone),
        TEST(kick_lets_waiting_messages_go_first),
    };
    return cmocka_run_group_tests_name("messages", tests, NULL, NULL);
}
