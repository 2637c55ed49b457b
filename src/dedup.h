/*
 * Deduplication when enqueueing: a dedup_key stands for one event, for a while.
 */
#ifndef OUTBOX_DEDUP_H
#define OUTBOX_DEDUP_H

#include "event_log.h"

typedef struct OutboxDedup OutboxDedup;

/* Of n checked events, those that have a key; NULL if none has. */
extern OutboxDedup *outbox_dedup_begin(const OutboxNewEvent *events, int n);
extern void outbox_dedup_end(OutboxDedup *dedup);

/*
 * Finds those whose key is taken: duplicate[i] is set and ids[i] is the id of the event that has the key.  Waits for transactions that have claimed the
 * same keys; may raise 40001.  Writes nothing.
 */
extern void outbox_dedup_find(OutboxDedup *dedup, pg_uuid_t *ids, bool *duplicate);

/*
 * Claims the keys of the others, for the events with these ids[], recorded at created_at.  Who finds that somebody was faster, or that an earlier one of these has the same key, is a
 * duplicate after all.  May also raise 40P01.
 */
extern void outbox_dedup_claim(OutboxDedup *dedup, pg_uuid_t *ids, bool *duplicate);

#endif							/* OUTBOX_DEDUP_H */
