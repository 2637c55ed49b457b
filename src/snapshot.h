/*
 * Snapshots as values: which transactions a tick can see.
 *
 * A copy of an MVCC snapshot in 64-bit, top-level transaction ids.  Rows carry the top-level xid of their
 * transaction, so whether a *committed* row belongs to a snapshot is arithmetic and needs no commit log.
 *
 * `next` and `clock` bound the ids of everything a snapshot cannot see.  They are read after the snapshot,
 * clock first:  a transaction with xid >= next got its xid after `next` was read, and an event gets its id after
 * its transaction got its xid; so its id has clock bits > clock.  And everything the snapshot sees has
 * an id with clock bits <= clock, because it committed before the clock was read.
 * (xmax alone would not do: it is one past the newest *completed* xid, and transactions in [xmax, next) may
 * have written events long ago.)
 */
#ifndef OUTBOX_SNAPSHOT_H
#define OUTBOX_SNAPSHOT_H

#include "port/atomics.h"
#include "utils/snapshot.h"

typedef struct OutboxSnapshot
{
	uint64		xmin;			/* everything below is finished */
	uint64		xmax;			/* everything from here on is not visible */
	uint64		next;			/* everything from here on had no xid yet */
	uint64		clock;			/* id clock: see above */
	uint32		nxip;
	uint64		xip[FLEXIBLE_ARRAY_MEMBER]; /* in progress, in [xmin, xmax), ascending */
} OutboxSnapshot;

/*
 * Copies an MVCC snapshot of this transaction, in CurrentMemoryContext; clock is the database's id clock.  With own_xid, the
 * current transaction counts as in progress (its own events come later); without, it must have no xid.
 */
extern PGDLLEXPORT OutboxSnapshot *outbox_snapshot_take(Snapshot mvcc, pg_atomic_uint64 *clock, bool own_xid);

/* Was this transaction, known to be committed now, visible then?  NULL stands for the empty snapshot: false. */
extern PGDLLEXPORT bool outbox_snapshot_sees(const OutboxSnapshot *snapshot, uint64 xid);

/* Was everything that `earlier` sees visible in `later` too?  False also when that cannot be told. */
extern PGDLLEXPORT bool outbox_snapshot_includes(const OutboxSnapshot *later, const OutboxSnapshot *earlier);

/* To and from type pg_snapshot (palloc'd varlena); next and clock travel beside it as xid8 and bigint. */
extern PGDLLEXPORT Datum outbox_snapshot_to_datum(const OutboxSnapshot *snapshot);
extern PGDLLEXPORT OutboxSnapshot *outbox_snapshot_from_datum(Datum pg_snapshot, uint64 next, uint64 clock);

#endif							/* OUTBOX_SNAPSHOT_H */
