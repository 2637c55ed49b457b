/*
 * Dispatch: which lanes an event goes to, whose turn it is, and what an outcome means for a lane.
 *
 * Memory only: no SQL, no network.  Events come in from chunks, items go out to be sent, outcomes come back; what must be remembered is
 * noted in the ledger.
 */
#ifndef OUTBOX_DISPATCH_H
#define OUTBOX_DISPATCH_H

#include "lane.h"

extern void outbox_dispatch_init(OutboxDatabase *database);

/* ---- configuration ---- */

/* Takes over a freshly loaded list; lanes of missing subscriptions are dropped. New lanes are appended to *added. */
extern void outbox_dispatch_configure(List *subscriptions, List **added);

/* Exceptions read back: at start, and after an operator changed some (then those that vanished are dropped). */
extern void outbox_dispatch_exceptions(const OutboxException *exceptions, int n);

/* Exceptions that a replay has just made, of events for which there is none, or a dead one. */
extern void outbox_dispatch_replayed(const OutboxException *exceptions, int n);

/* ---- in ---- */

/* The head's next chunk, which begins at this offset: to every lane at the head that wants its events. */
extern void outbox_dispatch_route(OutboxChunk *chunk, uint64 offset);

/* A chunk for one lane that is not at the head. Advances its position as far as it has room. */
extern void outbox_dispatch_fill(OutboxLane *lane, OutboxChunk *chunk);

/* Items whose events must be read again, some of which only wait to leave with another; hand them over by outbox_dispatch_fetched (missing ones are buried). */
extern bool outbox_dispatch_fetching(void);
extern int	outbox_dispatch_to_fetch(OutboxItem **items, int max);
extern void outbox_dispatch_fetched(OutboxItem **items, int n, OutboxChunk *chunk);

/* ---- out ---- */

/* The next item to send, by turns, now IN_FLIGHT; NULL: nothing may be sent.  Its request may get more (batch.h); when it has all of them, the lane is to be enlisted again. */
extern OutboxItem *outbox_dispatch_next(int max_in_flight, TimestampTz now);

/* A request ended, with these items in it, in their order. */
extern void outbox_dispatch_finished(OutboxItem *const *items, int n, const OutboxExchange *exchange, TimestampTz now);
extern int	outbox_dispatch_in_flight(void);	/* requests */

/*
 * An error kept their request from being made.  Each goes alone from now on; whose error it was for the third time, it is a dead letter.  Want of memory (blameless) is nobody's error.
 */
extern void outbox_dispatch_mishap(OutboxItem *const *items, int n, OutboxExchange *exchange, bool blameless, TimestampTz now);

/* The same for a lease: how it was settled; retry_in: microseconds until the next attempt, if there is one, -1: as the retry policy says. */
extern void outbox_dispatch_returned(OutboxItem *item, const OutboxExchange *exchange, int64 retry_in, TimestampTz now);

/* ---- cursors ---- */

/* Notes rows for items that were overtaken before the lane's mark was set, so that cursors can pass them. True: for some it is too early yet. */
extern bool outbox_dispatch_pass_overtaken(void);

/* What has been overtaken by now gets a row the next time: of all lanes, or of those that have finished so many items since their last mark. */
extern void outbox_dispatch_mark(uint64 items);

#endif							/* OUTBOX_DISPATCH_H */
