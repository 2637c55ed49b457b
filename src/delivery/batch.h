/*
 * Batches: which items of a lane may go together in one request, how long they wait for company, and what a refusal of all says about one of them.
 *
 * Memory only.  A lane whose format is not batch sends one item at a time, and meets nothing of this.
 */
#ifndef OUTBOX_BATCH_H
#define OUTBOX_BATCH_H

#include "lane.h"

extern void outbox_batch_init(MemoryContext context);

/* Should the lane's ready items wait for more? If so it is remembered, and enlisted when their time has come. */
extern bool outbox_batch_waits(OutboxLane *lane);

/* The lane is no longer one that may wait. */
extern void outbox_batch_forget(OutboxLane *lane);

/* Enlists lanes whose items have waited long enough.  When the next one will have; DT_NOEND: none waits. */
extern void outbox_batch_ripen(TimestampTz now);
extern TimestampTz outbox_batch_next_ripe(void);

/* With how many at most, itself included, this item may be in one request. */
extern int	outbox_batch_most(const OutboxItem *item);

/* The next item that may go in the same request as this one of its lane; not taken yet.  NULL: none. */
extern OutboxItem *outbox_batch_candidate(OutboxItem *last);

/*
 * The request of these items failed: are they sent again at once, in halves, because it may be the fault of one of them?  The attempt is then not over. dice: as of outbox_verdict.
 */
extern bool outbox_batch_splits(OutboxItem *const *items, int n, const OutboxExchange *exchange, TimestampTz now, double dice);

#endif							/* OUTBOX_BATCH_H */
