/* audit.h - recounts all that a server keeps books about, from its tables alone
 *
 *     const char *wrong = audit(w);          NULL, or what does not add up
 *     wrong = audit_left(w, 1);              the same, and: but for one session nothing is in use
 * any more
 *
 * Comes behind exportws.c, of which it uses the types and none of the functions but the hash: what
 * it counts, it counts itself. Call it between two turns or two calls of the API, never from inside
 * a callback. The server is not changed. */
#ifndef EXPORTWS_TEST_AUDIT_H
#define EXPORTWS_TEST_AUDIT_H

enum { AUDIT_MOST = 1024 }; /* slots, blocks or records that one server may have here */

/* What was seen on the way. */
struct audit {
    uint8_t slot[AUDIT_MOST], block[AUDIT_MOST], address[AUDIT_MOST]; /* how often */
    uint8_t record[AUDIT_MOST];                                       /* 1: never used; 2: in a bucket */
    uint8_t linked[AUDIT_MOST]; /* 1: the message that starts here stands in a chain; 2: it has been
                                   seen ageing */
    uint32_t refs[AUDIT_MOST];  /* sessions that wait for the message that starts here */
    uint32_t slots, sessions, private_blocks, drafts, held, history, history_blocks;
    uint32_t ageing[2]; /* what nobody has got; history */
};

static inline const struct message *audit_message(const struct exportws *w, uint32_t index)
{
    return (const void *)(w->blocks + (size_t)index * w->block_bytes);
}

static inline const char *audit_name(const struct exportws *w, uint32_t slot)
{
    return w->names + (size_t)slot * w->name_bytes;
}

/* ----- slots ----- */

/* One pool: every slot is free or in use, and only one of both. */
static inline const char *audit_pool(const struct exportws *w, struct audit *a, uint32_t first,
                                     uint32_t end, uint32_t unused, uint32_t used)
{
    uint32_t count = 0;
    for (; unused != NONE; unused = w->conns[unused].timer_next, count++) {
        if (unused < first || unused >= end) return "a free list leaves its pool";
        if (a->slot[unused]++) return "a free list is a ring";
        if (w->conns[unused].state != CONN_FREE) return "a slot in use is on a free list";
    }
    if (count + used != end - first) return "free slots + slots in use != capacity";
    for (uint32_t i = first; i < end; i++)
        if ((w->conns[i].state == CONN_FREE) != a->slot[i]) return "a free slot is on no free list";
    return NULL;
}

/* Each pool's connections are in states that the pool knows. */
static inline const char *audit_states(const struct exportws *w, struct audit *a)
{
    for (uint32_t i = 0; i < w->conns_end; i++) {
        unsigned state = w->conns[i].state;
        if (state == CONN_FREE || state == CONN_DEAD || state == CONN_LINGER) continue;
        if (i < w->capacity     ? state != CONN_OPEN && state != CONN_CLOSING
            : i < w->pushers_at ? state != CONN_HEAD && state != CONN_PAGE
                                : state != CONN_PUSH)
            return "a state that its pool does not know";
        if (state == CONN_OPEN) a->sessions++;
    }
    return a->sessions != w->sessions ? "sessions != open slots" : NULL;
}

static inline const char *audit_slots(const struct exportws *w, struct audit *a)
{
    uint32_t pushers = w->pushers; /* and those too many, who are being told so */
    for (uint32_t i = w->pushers_at; i < w->conns_end; i++)
        pushers += w->conns[i].state != CONN_FREE && (w->conns[i].flags & CONN_EXTRA);
    a->slots = w->seats + w->handshakes + pushers;
    const char *wrong = audit_pool(w, a, 0, w->capacity, w->free_session, w->seats);
    if (!wrong)
        wrong = audit_pool(w, a, w->capacity, w->pushers_at, w->free_handshake, w->handshakes);
    if (!wrong) wrong = audit_pool(w, a, w->pushers_at, w->conns_end, w->free_pusher, pushers);
    if (!wrong && w->pushers > w->o.pushers) wrong = "more pushers than there may be";
    return wrong ? wrong : audit_states(w, a);
}

/* ----- the poll set ----- */

static inline const char *audit_poll_conn(const struct exportws *w, uint32_t at, uint32_t owner)
{
    const struct conn *c = &w->conns[owner];
    const struct pollfd *p = &w->polls[at];
    int output = c->queued > 0 || c->state == CONN_PAGE;
    int unread = (c->flags & CONN_WAITING) ||
                 (output && (conn_is_pusher(w, c) || c->state == CONN_PAGE));
    if (c->state == CONN_FREE) return "a free slot is polled";
    if (c->at != at || c->fd != p->fd)
        return "a connection and its poll entry do not know each other";
    if (c->state == CONN_DEAD) return NULL;
    if (at >= w->hot && (c->state != CONN_OPEN || c->queued > 0))
        return "one that has to be polled is cold";
    if (((p->events & POLLIN) == 0) != unread)
        return "a connection is read that may not be, or the other way round";
    return ((p->events & POLLOUT) != 0) != output
             ? "POLLOUT without output, or output without POLLOUT"
             : NULL;
}

static inline const char *audit_polls(const struct exportws *w, struct audit *a)
{
    uint32_t conns = 0, others = 0;
    const char *wrong = w->live > w->hot         ? "more is live than hot"
                      : w->hot > w->poll_count ? "more is hot than there is"
                                               : NULL;
    for (uint32_t at = 0; at < w->poll_count && !wrong; at++) {
        uint32_t owner = w->owners[at];
        if (owner < w->conns_end) {
            conns++;
            wrong = audit_poll_conn(w, at, owner);
        } else if (at >= w->hot) {
            wrong = "a door is cold";
        } else if (owner == OWNER_WAKE) {
            others++;
            if (w->polls[at].fd != w->wake[0] || w->polls[at].events != POLLIN)
                wrong = "the wake-up pipe is not polled";
        } else {
            const struct door *d = &w->doors[owner - OWNER_DOOR];
            others++;
            if (w->polls[at].fd != d->fd || d->at != at)
                wrong = "a door and its poll entry do not know each other";
            if (w->polls[at].events != (w->accept_paused ? 0 : POLLIN))
                wrong = "a door is watched that may not be";
        }
    }
    if (wrong) return wrong;
    if (conns != a->slots) return "connections in use != poll entries";
    return others != 1U + (w->doors[0].fd >= 0) + (w->doors[1].fd >= 0) ? "doors != poll entries"
                                                                        : NULL;
}

/* ----- timers ----- */

/* Whether a connection may be on that list. */
static inline int audit_timer_fits(const struct exportws *w, const struct conn *c, unsigned timer)
{
    switch (c->state) {
    case CONN_HEAD: return timer == TIMER_HEAD;
    case CONN_OPEN: /* TIMER_HEAD: it waits for an input */
        return timer == TIMER_PING || timer == TIMER_PONG || timer == TIMER_WRITE ||
               timer == TIMER_HEAD;
    case CONN_CLOSING: return timer == TIMER_CLOSE || timer == TIMER_WRITE;
    case CONN_PAGE: return timer == TIMER_CLOSE;
    case CONN_LINGER: /* TIMER_WRITE: a pusher that has not read its last answers yet */
        return timer == (conn_is_pusher(w, c) && c->queued > 0 ? TIMER_WRITE : TIMER_CLOSE);
    case CONN_PUSH: return timer == TIMER_HEAD || timer == TIMER_IDLE || timer == TIMER_WRITE;
    default: return timer == TIMER_DEAD;
    }
}

static inline const char *audit_timers(const struct exportws *w, struct audit *a)
{
    uint32_t count = 0;
    for (unsigned timer = TIMER_NONE; timer < TIMERS; timer++) {
        uint32_t before = NONE;
        for (uint32_t i = w->timers[timer].first; i != NONE;
             before = i, i = w->conns[i].timer_next) {
            const struct conn *c = &w->conns[i];
            if (++count > w->conns_end) return "a list of deadlines is a ring";
            if (c->timer != timer || c->timer_prev != before)
                return "a list of deadlines is broken";
            if (!audit_timer_fits(w, c, timer)) return "a deadline that does not fit the state";
            if (before != NONE && timer != TIMER_DEAD && w->conns[before].due_ms > c->due_ms)
                return "a list of deadlines is out of order";
        }
        if (w->timers[timer].last != before) return "a list of deadlines has another last member";
    }
    return count != a->slots ? "a connection has no deadline" : NULL;
}

/* ----- inputs ----- */

static inline const char *audit_inputs(const struct exportws *w, struct audit *a)
{
    uint32_t unused = 0, holders = 0, waiting = 0, replays = 0;
    (void)a;
    for (uint32_t i = 0; i < w->input_count; i++) {
        const struct input *in = &w->inputs[i];
        if (in->owner == NONE) {
            unused++;
            continue;
        }
        if (in->owner >= w->conns_end || w->conns[in->owner].input != i + 1)
            return "an input's owner does not know it";
        if (in->used > in->size || in->raw > in->used || in->have > in->raw)
            return "an input is fuller than it is";
    }
    for (uint32_t i = 0; i < w->conns_end; i++) {
        const struct conn *c = &w->conns[i];
        if (c->state == CONN_FREE && (c->flags & CONN_WAITING)) return "a free slot waits";
        holders += c->state != CONN_FREE && c->input > 0;
        waiting += c->state != CONN_FREE && (c->flags & CONN_WAITING) != 0;
        replays += c->state != CONN_FREE && c->replay > 0;
        if (c->replay > c->queued) return "more is replayed than waits";
    }
    if (replays != w->replays) return "replays != connections that have missed something";
    if (unused != w->free_inputs || unused + holders != w->input_count)
        return "free inputs + those held != inputs";
    return waiting != w->waiting ? "waiting != connections that wait for an input" : NULL;
}

/* ----- messages ----- */

static inline uint32_t audit_length(const struct exportws *w, uint32_t index)
{
    const struct message *m = audit_message(w, index);
    return (uint32_t)((sizeof *m + m->name_size + m->size + w->block_bytes - 1) / w->block_bytes);
}

/* Marks a message's blocks; kind is 0 where it must be, 1 where it must not. */
static inline const char *audit_blocks(const struct exportws *w, struct audit *a, uint32_t index,
                                       int shared)
{
    if (index >= w->block_count) return "a message starts nowhere";
    const struct message *m = audit_message(w, index);
    uint32_t n = 1;
    if ((m->kind != 0) != shared) return "a private message in a chain, or a shared one in a queue";
    for (uint32_t block = index;; block = w->links[block], n++) {
        if (block >= w->block_count || a->block[block]++) return "a block belongs to two messages";
        if (block == m->last) break;
    }
    if (!shared) a->private_blocks += n;
    return n != audit_length(w, index) ? "a message has more or fewer blocks than it needs" : NULL;
}

/* The chain of one token (record), or of all (NONE). */
static inline const char *audit_chain(const struct exportws *w, struct audit *a,
                                      const struct chain *chain, uint32_t record)
{
    uint32_t before = NONE;
    uint64_t id = 0;
    for (uint32_t i = chain->first; i != NONE; before = i, i = audit_message(w, i)->next) {
        const char *wrong = audit_blocks(w, a, i, 1);
        if (wrong) return wrong;
        const struct message *m = audit_message(w, i);
        if (m->prev != before || m->token != record || !(m->flags & MESSAGE_LINKED))
            return "a chain is broken";
        if (m->id <= id) return "a chain is out of order";
        if ((m->flags & MESSAGE_GOT) && i != chain->first &&
            !(audit_message(w, before)->flags & MESSAGE_GOT))
            return "somebody has got a message, but nobody the one before";
        unsigned got = (m->flags & MESSAGE_GOT) != 0;
        if (record == NONE && !got) return "a broadcast that is held";
        if ((m->flags & MESSAGE_AGING) && (m->flags & MESSAGE_OVERDUE))
            return "what is overdue grows old";
        if ((m->flags & MESSAGE_AGING) && (w->o.hold_ms == 0 || (got && w->o.history == 0)))
            return "what is not held grows old";
        id = m->id;
        a->linked[i] = 1;
        a->ageing[got] += (m->flags & MESSAGE_AGING) != 0;
    }
    return chain->last != before ? "a chain has another last member" : NULL;
}

static inline int audit_named(const struct exportws *w, uint32_t record, const char *name, size_t n)
{
    const struct token *t = &w->tokens[record];
    for (uint32_t i = t->messages.first; i != NONE; i = audit_message(w, i)->next) {
        const struct message *m = audit_message(w, i);
        if (m->name_size != n || memcmp(m + 1, name, n) != 0) return 0;
    }
    return t->hash == siphash(w->key, (const uint8_t *)name, n);
}

/* The ring of a token's sessions, and that all that is of the token bears its name. */
static inline const char *audit_ring(const struct exportws *w, struct audit *a, uint32_t record)
{
    const struct token *t = &w->tokens[record];
    uint32_t i = t->first_session;
    if (t->first_session == REMEMBERED)
        return t->sessions > 0 || t->history > 1 || (t->history == 0 && t->lost > w->forgotten)
                 ? "a spare record with something to tell"
                 : NULL;
    if (t->sessions == 0 && t->first_session != NONE)
        return "a token without sessions has a first one";
    if (t->sessions == 0 && t->messages.first == NONE) return "a record of nothing";
    if (t->sessions > w->o.per_token) return "more sessions of a token than per_token";
    if (t->sessions == 0) {
        const struct message *m = audit_message(w, t->messages.first);
        return audit_named(w, record, (const char *)(m + 1), m->name_size)
                 ? NULL
                 : "a message of another token";
    }
    for (uint32_t n = 0; n < t->sessions; n++, i = w->conns[i].next) {
        const struct conn *c = &w->conns[i];
        if (i >= w->capacity || c->state != CONN_OPEN || c->token != record)
            return "a token's ring has a stranger";
        if (w->conns[c->next].prev != i || a->slot[i]++) return "a token's ring is broken";
        if (!audit_named(w, record, audit_name(w, i), c->name_size))
            return "a session or message of another token";
    }
    return i != t->first_session ? "a token's ring is longer than its count" : NULL;
}

static inline const char *audit_record(const struct exportws *w, struct audit *a, uint32_t record,
                                       uint32_t bucket)
{
    const struct token *t = &w->tokens[record];
    const char *wrong;
    if (a->record[record] != 0) return "a record is in two buckets";
    a->record[record] = 2;
    if ((t->hash & w->bucket_mask) != bucket) return "a record is in another's bucket";
    wrong = audit_ring(w, a, record);
    if (t->first_session == REMEMBERED) return wrong;
    return wrong ? wrong : audit_chain(w, a, &t->messages, record);
}

static inline const char *audit_tokens(const struct exportws *w, struct audit *a)
{
    uint32_t records = 0, online = 0, ringed = 0;
    for (uint32_t bucket = 0; bucket <= w->bucket_mask; bucket++)
        for (uint32_t i = w->buckets[bucket]; i != NONE; i = w->tokens[i].next) {
            const char *wrong =
                i < w->token_count ? audit_record(w, a, i, bucket) : "a bucket leads nowhere";
            if (wrong) return wrong;
            online += w->tokens[i].sessions > 0;
            ringed += w->tokens[i].sessions;
            records++;
        }
    for (uint32_t i = w->spare[0].first; i != NONE; i = w->tokens[i].messages.last) {
        if (i >= w->token_count) return "the list of spare records is broken";
        if (w->tokens[i].first_session != NONE) continue;
        if (a->record[i]++) return "a record in use is spare"; /* of no token yet */
        records++;
    }
    if (records != w->token_count) return "spare records + those in use != all";
    if (online != w->online) return "online != tokens with a session";
    if (ringed != w->sessions) return "an open session is in no ring";
    return audit_chain(w, a, &w->all->messages, NONE);
}

/* ----- queues ----- */

/* What a connection sends next of three queues: the lowest id, as it was queued. 0: nothing. */
static inline int audit_next(const struct exportws *w, uint32_t *cursors[3], uint32_t **next)
{
    *next = NULL;
    for (unsigned i = 0; i < 3; i++)
        if (*cursors[i] != NONE &&
            (!*next || audit_message(w, *cursors[i])->id < audit_message(w, **next)->id))
            *next = cursors[i];
    return *next != NULL;
}

/* Walks a connection's queue to its end. */
static inline const char *audit_queue(const struct exportws *w, struct audit *a,
                                      const struct conn *c)
{
    uint32_t out = c->out.first, own = c->own, all = c->all, *cursors[3] = {&out, &own, &all},
             *next, last = NONE;
    if (c->queued == 0 && (own != NONE || all != NONE || out != NONE))
        return "a queue that is empty leads on";
    if (c->queued == 0 && c->sent != 0) return "half a message was sent that does not wait";
    for (uint32_t left = c->queued; left > 0; left--) {
        if (!audit_next(w, cursors, &next)) return "queued is more than what waits";
        uint32_t index = *next;
        const struct message *m = audit_message(w, index);
        if (next == &out) {
            const char *wrong = audit_blocks(w, a, index, 0);
            if (wrong) return wrong;
            last = index;
        } else {
            if (a->linked[index] == 0) return "a session waits for a message that is in no chain";
            if ((next == &all) != (m->token == NONE))
                return "a session waits for another token's message";
            a->refs[index]++;
        }
        if (left == c->queued && c->sent >= m->size + MESSAGE_HEAD_MAX)
            return "more was sent than there is";
        *next = m->next;
        if (c->flags & CONN_ABRUPT) own = all = NONE;
    }
    if (out != NONE || last != c->out.last) return "a queue of its own goes on behind its end";
    return NULL;
}

static inline const char *audit_queues(const struct exportws *w, struct audit *a)
{
    for (uint32_t i = 0; i < w->conns_end; i++) {
        const struct conn *c = &w->conns[i];
        const char *wrong = c->state == CONN_FREE ? NULL : audit_queue(w, a, c);
        if (wrong) return wrong;
        if (c->state == CONN_FREE && c->queued > 0) return "a free slot has a queue";
    }
    for (uint32_t i = 0; i < w->conns_end - w->pushers_at; i++) {
        const struct push *q = &w->pushes[i];
        const char *wrong = q->draft == NONE ? NULL : audit_blocks(w, a, q->draft, 1);
        if (wrong) return wrong;
        if (q->draft != NONE && w->conns[w->pushers_at + i].state == CONN_FREE)
            return "a draft without a pusher";
        if (q->draft == NONE) continue;
        if (audit_message(w, q->draft)->flags != MESSAGE_DRAFT) return "a draft that is in a chain";
        a->drafts += audit_length(w, q->draft);
    }
    for (uint32_t i = w->expired; i != NONE; i = audit_message(w, i)->next) {
        const char *wrong = audit_blocks(w, a, i, 1);
        if (wrong) return wrong;
    }
    return NULL;
}

/* ----- what all of that comes to ----- */

/* One owner's messages: references, what is held (nobody has got it, nobody is getting it, its time
 * is not over) and what is history. */
static inline const char *audit_owner(const struct exportws *w, struct audit *a,
                                      const struct token *t)
{
    uint32_t held = 0, history = 0;
    for (uint32_t i = t->messages.first; i != NONE; i = audit_message(w, i)->next) {
        const struct message *m = audit_message(w, i);
        int got = (m->flags & MESSAGE_GOT) != 0, ages = (m->flags & MESSAGE_AGING) != 0;
        if (a->refs[i] == 0 && !ages) return "a message that nobody waits for is kept";
        held += a->refs[i] == 0 && !got;
        history += got && ages;
        if (a->refs[i] == 0 && got) a->history_blocks += audit_length(w, i);
    }
    if (history != t->history) return "a token's history != what of it is kept";
    a->held += held;
    a->history += history;
    return NULL;
}

static inline const char *audit_held(const struct exportws *w, struct audit *a)
{
    const char *wrong = audit_owner(w, a, w->all);
    for (uint32_t record = 0; record < w->token_count && !wrong; record++)
        if (a->record[record] == 2 && w->tokens[record].first_session != REMEMBERED)
            wrong = audit_owner(w, a, &w->tokens[record]);
    if (wrong) return wrong;
    for (uint32_t i = 0; i < w->block_count; i++)
        if (a->linked[i] && audit_message(w, i)->refs != a->refs[i])
            return "references != sessions that wait";
    if (a->history != w->history) return "history != the sum of all tokens";
    return a->held != w->held ? "held != the sum of all tokens" : NULL;
}

/* The records without session and message, by age. */
static inline const char *audit_spare(const struct exportws *w, struct audit *a)
{
    uint32_t count = 0, marked = 0;
    for (unsigned list = 0; list < 2; list++) {
        uint32_t before = NONE;
        for (uint32_t i = w->spare[list].first; i != NONE;
             before = i, i = w->tokens[i].messages.last) {
            const struct token *t = &w->tokens[i];
            if (++count > w->token_count || t->history != list || t->messages.first != before)
                return "a list of spare records is broken";
            if (a->record[i] != (t->first_session == REMEMBERED ? 2 : 1))
                return "a record in use is spare";
        }
        if (w->spare[list].last != before) return "the spare records have another last member";
    }
    for (uint32_t i = 0; i < w->token_count; i++)
        marked += a->record[i] == 1 || w->tokens[i].first_session == REMEMBERED;
    return marked != count ? "a spare record is on no list" : NULL;
}

static inline const char *audit_ages(const struct exportws *w, struct audit *a, unsigned list)
{
    uint32_t before = NONE, count = 0;
    for (uint32_t i = w->ages[list].first; i != NONE;
         before = i, i = audit_message(w, i)->age_next, count++) {
        const struct message *m = audit_message(w, i);
        if (a->linked[i] != 1 || !(m->flags & MESSAGE_AGING) || m->age_prev != before)
            return "the list by age is broken";
        if (((m->flags & MESSAGE_GOT) != 0) != list) return "a message is on the other list by age";
        if (before != NONE && audit_message(w, before)->due_ms > m->due_ms)
            return "the list by age is out of order";
        a->linked[i] = 2;
    }
    if (w->ages[list].last != before) return "the list by age has another last member";
    return count != a->ageing[list] ? "a message that grows old is not on the list" : NULL;
}

static inline const char *audit_ageing(const struct exportws *w, struct audit *a)
{
    const char *wrong = audit_ages(w, a, 0);
    return wrong ? wrong : audit_ages(w, a, 1);
}

static inline const char *audit_buffer(const struct exportws *w, struct audit *a)
{
    uint32_t used = 0, unused = 0;
    for (uint32_t i = 0; i < w->block_count; i++) used += a->block[i];
    for (uint32_t i = w->free_block; i != NONE; i = w->links[i], unused++)
        if (i >= w->block_count || a->block[i]++) return "a free block is in use, or free twice";
    if (unused != w->blocks_free) return "blocks_free != free blocks";
    if (used + unused != w->block_count) return "a block is lost";
    if (used - a->drafts > w->block_count - w->reserve)
        return "the reserve is used for what is no draft";
    return a->private_blocks != w->blocks_private ? "blocks_private != blocks of rests" : NULL;
}

/* Slots of sessions per address, counted again. */
static inline const char *audit_addresses(const struct exportws *w, struct audit *a)
{
    uint32_t records = 0, sessions = 0;
    if (w->o.per_address == 0) return NULL;
    for (uint32_t bucket = 0; bucket <= w->address_mask; bucket++)
        for (uint32_t i = w->address_buckets[bucket]; i != NONE;
             i = w->addresses[i].next, records++) {
            uint32_t here = 0;
            if (i >= w->capacity || a->address[i]++) return "an address is in two buckets";
            for (uint32_t k = 0; k < w->capacity; k++)
                here += w->conns[k].state != CONN_FREE &&
                        memcmp(w->conns[k].address, w->addresses[i].bytes, 16) == 0;
            if (here == 0 || here != w->addresses[i].sessions)
                return "an address has another number of sessions";
            if (here > w->o.per_address) return "more sessions from an address than per_address";
            sessions += here;
        }
    for (uint32_t i = w->free_address; i != NONE; i = w->addresses[i].next, records++)
        if (i >= w->capacity || a->address[i]++) return "a free address is in use";
    if (records != w->capacity) return "free addresses + those in use != capacity";
    return sessions != w->seats ? "sessions of all addresses != slots in use" : NULL;
}

/* The metrics' promise, and what is only true between turns. */
static inline const char *audit_counts(const struct exportws *w, struct audit *a)
{
    uint64_t closed = 0;
    uint32_t left = 0, last = NONE;
    (void)a;
    for (unsigned i = 0; i < EXPORTWS_REASONS; i++) closed += w->m->closed[i];
    if (w->m->opened - closed != w->sessions) return "opened - closed != sessions";
    for (uint32_t i = w->left_first; i != NONE; last = i, i = w->conns[i].next) {
        if (i >= w->capacity || ++left > w->capacity) return "the list of those who left is broken";
        if (w->conns[i].state == CONN_OPEN || w->conns[i].state == CONN_FREE)
            return "one who left is still here";
    }
    if (w->left_last != last) return "the list of those who left has another last member";
    if (w->in_turn || w->in_log || w->answers_used > 0) return "a turn is not over";
    return w->ring.used > w->ring.size ? "the ring is fuller than it is" : NULL;
}

/* NULL, or what does not add up. *a is what was seen. */
static inline const char *audit_into(const struct exportws *w, struct audit *a)
{
    static const char *(*const checks[])(const struct exportws *, struct audit *) = {
        audit_slots,      audit_polls,  audit_timers, audit_inputs,    audit_tokens, audit_queues,
        audit_held,       audit_ageing, audit_buffer, audit_addresses, audit_counts,
        audit_spare};
    const char *wrong = NULL;
    memset(a, 0, sizeof *a);
    if (w->conns_end > AUDIT_MOST || w->block_count > AUDIT_MOST || w->token_count > AUDIT_MOST)
        return "the audit is too small for this server";
    for (size_t i = 0; i < sizeof checks / sizeof *checks && !wrong; i++) wrong = checks[i](w, a);
    return wrong;
}

static inline const char *audit(const struct exportws *w)
{
    static struct audit a;
    return audit_into(w, &a);
}

/* NULL when it adds up and nothing is in use but what these open sessions need, and history. */
static inline const char *audit_left(const struct exportws *w, uint32_t sessions)
{
    static struct audit a;
    const char *wrong = audit_into(w, &a);
    if (wrong) return wrong;
    if (w->sessions != sessions || w->online != sessions) return "sessions are left, or are not";
    if (w->seats != sessions) return "a session's slot was not given back";
    if (w->handshakes != 0) return "a handshake's slot was not given back";
    if (w->pushers != 0) return "a pusher's slot was not given back";
    if (w->blocks_free + a.history_blocks != w->block_count) return "a block was not given back";
    if (w->free_inputs != w->input_count || w->waiting != 0) return "an input was not given back";
    return w->held != 0 || w->left_first != NONE || w->expired != NONE
             ? "something is held, or somebody was not told of"
             : NULL;
}

#endif
